//! Attention by ordinary arithmetic: `kernels/attend.cu`, which serves every call.

use super::super::suffix;
use super::super::tiles::{Blocks, Width};
use crate::cuda::CudaDevice;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::Attend;
use attn_core::{AttentionShape, DType};

/// Columns of values that the widest kernel has at once.
const WIDEST: usize = 128;

/// Starts the kernel.
pub(super) fn attend(
    device: &CudaDevice,
    dtype: DType,
    shape: &AttentionShape,
    params: &Attend,
) -> Result<(), CudaError> {
    let width = Width::of(shape.value_depth, WIDEST);
    let blocks = Blocks::of(shape.query_length, shape.key_length);
    let each = blocks.count * width.chunks(shape.value_depth);
    device.launch(
        Kernel {
            module: Module::Attend,
            name: &format!("attend_{}_w{}", suffix(dtype), width.number()),
            blocks: params.matrices().saturating_mul(each),
            threads: blocks.threads,
            shared: 0,
        },
        params,
    )
}
