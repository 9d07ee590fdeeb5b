//! JAX's random numbers, bit for bit: keys and bits from Threefry, Flax's key of each parameter and of each dropout, and the
//! distributions that initializers draw from.
//!
//! Nothing here needs an allocator: arrays are the caller's. The bits are the same on every instruction set, with `std` and without.
//! They are those of JAX 0.10 on an x86-64 CPU. Only normal and truncated normal numbers in `float64` may rarely differ from it in the last
//! bits: there JAX itself has them from the machine's C library.
//!
//! ```
//! use attn_layers::random::{self, Counters, DefaultWidth, Key};
//! let mut out = [0.0f32; 4];
//! random::normal(Key::new(42, DefaultWidth::Bits32), Counters::PerElement, &mut out)?;
//! assert_eq!(out, [-0.028304616, 0.46713185, 0.29570296, 0.15354592]);
//! # Ok::<(), attn_layers::Error>(())
//! ```

mod arithmetic;
mod erf;
mod log;
mod normal;
mod rngs;
mod uniform;

pub(crate) use arithmetic::{constant, product, quotient, root};
pub(crate) use normal::{NormalDraw, TruncatedDraw};
pub(crate) use uniform::Range;

pub use attn_core::random::{Bits, Convention, Counters, DefaultWidth, Key};
pub use normal::{normal, truncated_normal};
pub use rngs::{PathNames, Rngs, Stream};
pub use uniform::{bernoulli, uniform};
