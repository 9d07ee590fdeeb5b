//! The CUDA backend: attention, its gradients, dense layers and layer norm on NVIDIA's GPUs.
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
