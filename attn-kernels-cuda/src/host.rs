//! The backend on the host's arrays: every operation copies its inputs to the device and its outputs back.

use crate::cuda::CudaDevice;

/// A CUDA device that computes on arrays in the host's memory.
#[derive(Debug, Clone)]
pub struct Cuda {
    device: CudaDevice,
}

impl Cuda {
    /// The device, for arrays in its own memory.
    #[must_use]
    pub const fn device(&self) -> &CudaDevice {
        &self.device
    }
}
