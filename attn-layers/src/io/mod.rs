//! Weight files without Python: Flax's msgpack (`flax.serialization`) and safetensors, read in place and written.
//!
//! ```
//! use attn_layers::{ParamSource, io::{self, Tree}, tensor::TensorView};
//!
//! let kernel = TensorView::from_slice(&[1.0f32, 2.0], &[1, 1, 2])?;
//! let file = io::write_msgpack(&[("params/encoder/attn/query/kernel", kernel)])?;
//! let tree = Tree::read(&file)?;
//! println!("{tree}");
//! let layer = tree.subtree("encoder/attn")?;
//! assert_eq!(layer.tensor("query", "kernel"), Some(kernel));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The readers [`msgpack`] and [`safetensors`] need no allocator: they hand each leaf to a visitor, its bytes where they lie.
//! [`Tree`] (with `alloc`) collects them. Files are not trusted: lengths are held against the file before anything else is done
//! with them, nesting is bounded, products are checked, and memory grows with the file's size, not with what it claims.
//! Bytes after the end of a file are an error in both formats.

mod error;
#[cfg(feature = "std")]
mod file;
pub mod msgpack;
pub mod safetensors;
#[cfg(feature = "alloc")]
mod tree;
#[cfg(feature = "alloc")]
mod write;

pub use error::{Error, Problem, Result};
#[cfg(feature = "std")]
pub use file::File;
#[cfg(feature = "alloc")]
pub use tree::{Entry, Subtree, Tree};
#[cfg(feature = "alloc")]
pub use write::{write_msgpack, write_msgpack_chunked, write_safetensors};
