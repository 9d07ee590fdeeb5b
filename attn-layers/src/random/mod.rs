//! JAX's random numbers, bit for bit: keys and bits from Threefry, Flax's key of each parameter and of each dropout, and the
//! distributions that initializers draw from.
//!
//! Nothing here needs an allocator: arrays are the caller's. The bits are the same on every instruction set, with `std` and without.

mod rngs;

pub use attn_core::random::{Bits, Convention, Counters, DefaultWidth, Key};
pub use rngs::{PathNames, Rngs, Stream};
