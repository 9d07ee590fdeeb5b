//! CPU kernels for attention: a fused, flash-style attention that never holds a score matrix, and the projections
//! around it. One source serves every instruction set; which one runs is a value, [`Cpu`].
//!
//! ```
//! use attn_core::{Attention, AttentionShape, HostView, HostViewMut, Kernels};
//! use attn_kernels_cpu::Cpu;
//!
//! let cpu = Cpu::detect();
//! // One query and two keys, one head of depth 2: [length, heads, depth].
//! let query = HostView::new(&[1.0f32, 0.0], &[1, 1, 2])?;
//! let key = HostView::new(&[0.0f32, 0.0, 0.0, 0.0], &[2, 1, 2])?;
//! let value = HostView::new(&[1.0f32, 2.0, 3.0, 4.0], &[2, 1, 2])?;
//! let shape = AttentionShape::of(query.shape(), key.shape(), value.shape())?;
//! let mut scratch = vec![0.0; Kernels::<f32>::attend_scratch(&cpu, &shape)];
//! let mut out = [0.0f32; 2];
//! cpu.attend(Attention::new(query, key, value), HostViewMut::new(&mut out, &[1, 1, 2])?, &mut scratch)?;
//! assert_eq!(out, [2.0, 3.0]); // equal scores: the mean of both values
//! # Ok::<(), attn_core::Error>(())
//! ```
//!
//! | module | subject |
//! |---|---|
//! | `cpu`, `isa` | the backend value; instruction sets by name |
//! | `simd` | the only door to the SIMD wrappers |
//! | `element` | widening and narrowing of 16-bit types |
//! | `micro` | the register tile: the product that everything rests on |
//! | `softmax` | `exp` and the online softmax of a strip |
//! | `attend`, `flash`, `few` | jobs; the tile loop of one job; that of a few queries |
//! | `attend_backward`, `backward` | jobs; the gradients of one head, and of a bias |
//! | `products` | the three products of a pair of tiles |
//! | `scores`, `terms`, `modifiers` | scores of a tile; the softcap and what is added; the user's own changes |
//! | `visibility`, `masks`, `spans`, `hidden` | what a tile may see: ranges of keys, masks among them, sequences; what must not be seen |
//! | `dropout`, `weights` | what is dropped; weights and scores as an output |
//! | `tokens`, `heads` | keys and values, from arrays and caches; rows of a head |
//! | `project`, `dense`, `matrix` | dense layers; products of matrices; their rows, and copies of their parts |
//! | `pack`, `gemm` | kernels packed beforehand; the door to matrixmultiply |
//! | `normalize` | layer norm and its gradients |
//! | `rotate`, `merge` | rotary embeddings; attention over parts of the keys, put together |
//! | `buffers`, `prefetch` | what the caller's buffers must be like; asking for memory early |
//! | `threads`, `shared` | jobs on threads; one output written by several |
//!
//! # Features
//!
//! - `std` (default): detection at run time, matrixmultiply for large `f64` products.
//! - `rayon`: threads. Results have the same bits for every number of threads.
//! - without `std`: `no_std`, no allocator.
#![no_std]

#[cfg(feature = "rayon")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod attend;
mod attend_backward;
mod backward;
mod buffers;
mod cpu;
mod dense;
mod dropout;
mod element;
mod few;
mod flash;
mod gemm;
mod halves;
mod heads;
mod hidden;
mod isa;
mod masks;
mod matrix;
mod merge;
mod micro;
mod modifiers;
mod normalize;
mod pack;
mod prefetch;
mod products;
mod project;
mod rotate;
mod scores;
mod shared;
mod simd;
mod softmax;
mod spans;
mod terms;
mod threads;
mod tokens;
mod visibility;
mod weights;

pub use cpu::{AttendModified, Cpu};
pub use isa::Isa;
pub use modifiers::{At, MaskMod, Modifiers, Row, ScoreMod};
#[cfg(feature = "rayon")]
pub use rayon;
