//! The vocabulary of the attention workspace: element types, views, masks, the request that describes an
//! attention call, the kernel traits that a backend implements, and the errors all of them share.
//!
//! The crate is `no_std`, never allocates and holds no `unsafe` code. It computes no array: a backend
//! (`attn-kernels-cpu`, `attn-kernels-cuda`) does, and a layer (`attn-layers`) asks it to.
//!
//! | module | subject |
//! |---|---|
//! | [`dtype`] | the one list of element types, JAX's promotion rules |
//! | [`layout`] | shapes and strides of fixed capacity |
//! | [`view`] | a borrowed buffer with a layout; storages that hold buffers |
//! | [`position`], [`mask`], [`visible`] | which keys a query sees, with alignment and polarity in the type |
//! | [`scores`] | how scores are made |
//! | [`source`] | where keys and values come from: arrays, caches |
//! | [`contents`] | what arrays of lengths, starts and pages may hold |
//! | [`random`], [`dropout`] | JAX's keys and bits; which weights are dropped |
//! | [`request`], [`backward`] | one attention call as a value; one call for its gradients |
//! | [`projection`] | one dense layer as a value, its kernel as it lies or packed |
//! | [`kernels`] | what a backend computes |
//! | [`error`] | one error type: argument, got, wanted, what to do |
//!
//! # Features
//!
//! - `conformance`: the suite that every backend runs in its tests (needs `alloc`).
//!
//! # Example
//!
//! ```
//! use attn_core::{Causal, Host, HostView, Mask};
//!
//! let keep = [1u8, 1, 0, 1, 1, 1];
//! let mask = Mask::keep(HostView::new(&keep, &[2, 3])?);
//! assert!(!mask.sees(&[0], 2));
//! let causal = Causal::top_left();
//! assert!(causal.sees(4, 4, 8, 8) && !causal.sees(4, 5, 8, 8));
//! # Ok::<(), attn_core::Error>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
extern crate alloc;

pub mod backward;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod contents;
pub mod dropout;
pub mod dtype;
pub mod error;
pub mod kernels;
pub mod layout;
pub mod mask;
pub mod position;
pub mod projection;
pub mod random;
pub mod request;
pub mod scores;
pub mod source;
pub mod view;
pub mod visible;

pub use backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
pub use dropout::Dropout;
pub use dtype::{DType, Element, Scalar, ScalarType};
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use kernels::{Backend, Kernels};
pub use layout::{Dims, Layout};
pub use mask::{FullyMasked, Mask};
pub use position::{Alignment, Causal, Window};
pub use projection::{DenseKernel, PackedKernel, Packing, Projection, RowOrder};
pub use request::{Attention, AttentionShape, Features, Outputs};
pub use scores::{Alibi, Relative, Scale, Scores, Stage};
pub use source::{Cached, KeyValue, Place, Rows};
pub use view::{
    AnyView, AnyViewMut, Buffer, Flat, FlatMut, Host, HostView, HostViewMut, Storage, View, ViewMut,
};
pub use visible::{Blocks, Segments, Sequences, Span, Visible};
