//! The CUDA backend: attention, its gradients, dense layers and layer norm on NVIDIA's GPUs from compute capability 8.0 on.
//!
//! [`Cuda`] computes on the host's arrays and takes the place of a CPU backend; [`CudaDevice`] computes on arrays that stay on the device:
//!
//! ```no_run
//! # #[cfg(feature = "driver")]
//! # fn main() -> Result<(), attn_kernels_cuda::CudaError> {
//! use attn_core::{Attention, Kernels, View, ViewMut};
//! use attn_kernels_cuda::CudaDevice;
//!
//! let device = CudaDevice::new(0)?;
//! let x = device.upload(&[0.5f32; 6 * 4 * 32])?;
//! let mut y = device.buffer(6 * 4 * 32)?;
//!
//! let shape = [6, 4, 32]; // length, heads, depth
//! let view = View::new(&x, &shape)?;
//! let call = Attention::new(view, view, view);
//! device.attend(call, ViewMut::new(&mut y, &shape)?, &mut device.buffer(0)?)?; // only starts it
//!
//! let mut out = [0.0f32; 6 * 4 * 32];
//! device.download(&y, &mut out)?; // waits
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "driver"))]
//! # fn main() {}
//! ```
//!
//! Neither a build nor a link needs CUDA: the device's code comes with the crate, libraries are opened at run time, and what is missing is
//! a [`CudaError`]. `KERNELS.md` describes the kernels, what each device supports, and which results have the same bits.
//!
//! | module | subject |
//! |---|---|
//! | `host` | the backend on the host's arrays: copies in, computes, copies out |
//! | `cuda` | the backend on the device's arrays |
//! | `device` | where its buffers live |
//! | `driver` | what a device does for the backend, as a trait |
//! | `nvidia` | NVIDIA's driver, through `cudarc` |
//! | `nvrtc` | NVIDIA's run-time compiler |
//! | `images` | the code that comes with the crate |
//! | `sources` | the kernels' sources, compiled where no code in the crate runs |
//! | `params` | what kernels take |
//! | `launch` | allocations and launches |
//! | `options` | what a device may trade |
//! | `ops` | what each operation checks and launches |
//! | `error` | what can go wrong |
#![expect(
    clippy::std_instead_of_alloc,
    reason = "a crate around a driver has std"
)]

mod cuda;
mod device;
pub mod driver;
mod error;
mod host;
mod images;
mod launch;
#[cfg(feature = "driver")]
mod nvidia;
#[cfg(feature = "driver")]
pub mod nvrtc;
mod ops;
mod options;
mod params;
#[cfg(feature = "driver")]
mod sources;

#[cfg(feature = "driver")]
pub use cudarc;

pub use cuda::CudaDevice;
pub use device::{Device, DeviceBuffer};
pub use error::CudaError;
pub use host::Cuda;

/// The backend's name in messages and tables.
const NAME: &str = "attn-kernels-cuda";
