//! Allocations and launches: the driver's answers as this crate's errors.

use crate::cuda::CudaDevice;
use crate::driver::{Driver, DriverError, Launch};
use crate::error::CudaError;
use crate::images::Module;
use bytemuck::Pod;

/// Blocks that a launch can have along its first axis.
const MAX_BLOCKS: u64 = (1 << 31) - 1;

/// New memory.
pub(crate) fn allocate(driver: &dyn Driver, bytes: usize) -> Result<u64, CudaError> {
    driver.allocate(bytes).map_err(|error| match error.code {
        DriverError::OUT_OF_MEMORY => CudaError::OutOfMemory { bytes },
        _ => error.into(),
    })
}

/// A kernel of this crate and how its threads are laid out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel<'a> {
    /// Where it is.
    pub(crate) module: Module,
    /// Its name there.
    pub(crate) name: &'a str,
    /// Blocks, in one row: a kernel takes its number apart itself, since the other axes end at 65,535.
    pub(crate) blocks: u64,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Dynamic shared memory, in bytes.
    pub(crate) shared: u32,
}

/// Parameters of a kernel, byte for byte as it declares them.
///
/// # Safety
///
/// Every address in a value names memory of the device that the kernels which take it may access as they do.
#[expect(unsafe_code, reason = "a launch trusts what parameters name")]
pub(crate) unsafe trait Params: Pod {}

impl CudaDevice {
    /// Starts a kernel. Nothing is started for no blocks.
    pub(crate) fn launch<P: Params>(
        &self,
        kernel: Kernel<'_>,
        params: &P,
    ) -> Result<(), CudaError> {
        self.launch_bytes(kernel, &[bytemuck::bytes_of(params)])
    }

    /// As [`CudaDevice::launch`], with tensor maps before the parameters.
    pub(crate) fn launch_mapped<P: Params>(
        &self,
        kernel: Kernel<'_>,
        maps: &[[u64; 16]],
        params: &P,
    ) -> Result<(), CudaError> {
        let maps = maps.iter().map(bytemuck::bytes_of);
        let all: Vec<&[u8]> = maps.chain([bytemuck::bytes_of(params)]).collect();
        self.launch_bytes(kernel, &all)
    }

    fn launch_bytes(&self, kernel: Kernel<'_>, params: &[&[u8]]) -> Result<(), CudaError> {
        if kernel.blocks == 0 {
            return Ok(());
        }
        if kernel.blocks > MAX_BLOCKS {
            return Err(CudaError::Grid {
                got: kernel.blocks,
                limit: MAX_BLOCKS,
            });
        }
        let launch = Launch {
            module: self.module(kernel.module)?,
            kernel: kernel.name,
            grid: [kernel.blocks as u32, 1, 1],
            block: [kernel.threads, 1, 1],
            shared: kernel.shared,
            params,
        };
        // SAFETY: the kernel is this crate's, and so is the type of its parameters, whose `Params` vouches for the addresses.
        #[expect(unsafe_code, reason = "the one place that starts kernels")]
        let started = unsafe { self.driver().launch(&launch) };
        Ok(started?)
    }
}
