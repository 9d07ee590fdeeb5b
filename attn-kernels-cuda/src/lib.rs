//! The CUDA backend's place in the workspace: its value, its storage and its errors.
//!
//! This version ships no kernels. [`Cuda::new`] looks for the driver and says, as a typed error, which part is missing: the
//! driver on this machine, or the kernels in this crate. Nothing falls back to the CPU silently.
//!
//! ```
//! use attn_kernels_cuda::{Cuda, CudaError};
//!
//! match Cuda::new(0) {
//!     Err(CudaError::NoDriver { looked_for, .. }) => println!("no {looked_for} here"),
//!     Err(error) => println!("{error}"),
//!     Ok(cuda) => println!("{cuda:?}"),
//! }
//! ```
//!
//! The types are in place nevertheless: [`Cuda`] is a [`Backend`](attn_core::Backend) with [`Kernels`](attn_core::Kernels) of every dtype over
//! the storage [`Device`], so a layer written over any backend compiles for it today. Neither [`Cuda`] nor a
//! [`DeviceBuffer`] can be made yet, and the compiler knows it.
//!
//! | module | subject |
//! |---|---|
//! | `cuda` | the backend value |
//! | `device` | where its buffers live |
//! | `driver` | whether the driver's library is on this machine |
//! | `error` | what can be missing |

mod cuda;
mod device;
mod driver;
mod error;

pub use cuda::Cuda;
pub use device::{Device, DeviceBuffer};
pub use error::CudaError;
