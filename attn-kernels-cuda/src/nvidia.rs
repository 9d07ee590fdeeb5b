//! NVIDIA's driver, through `cudarc`.
//!
//! Its library is opened when a device is first asked for. `cudarc` panics where a library or a function of it is missing, so
//! everything here begins with the question whether it is there.

use crate::cuda::CudaDevice;
use crate::error::CudaError;

impl CudaDevice {
    /// The device with this number, counted as the driver counts, on a stream of its own.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoDevice`], [`CudaError::NoCode`], and the driver's own.
    pub fn new(_ordinal: usize) -> Result<Self, CudaError> {
        Err(CudaError::NoDriver {
            looked_for: "libcuda.so.1",
            next: "Install NVIDIA's driver, add its folder to the loader's search path, or use the CPU backend",
        })
    }
}
