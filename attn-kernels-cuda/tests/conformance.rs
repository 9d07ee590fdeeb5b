//! The conformance suite on a device.

use attn_kernels_cuda::{Cuda, CudaError};

fn backend() -> Result<Cuda, CudaError> {
    Cuda::new(0)
}

attn_core::conformance_tests!(cuda, backend());
