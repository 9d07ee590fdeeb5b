//! A few queries of 16-bit dtypes over many keys: the keys are cut into spans, and what the spans give is put together.
//!
//! A row's bits depend on the cut, which depends on the sizes and the device, so they are not those that the row has among many
//! queries: [`CudaDevice::with_split_decode`] allows it.

use super::super::suffix;
use super::mma;
use crate::cuda::CudaDevice;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::Attend;
use attn_core::{AttentionShape, DType};

/// Queries that share keys: the rows of one product.
const ROWS: usize = 16;
/// Fewer keys are one span.
const FEWEST_KEYS: usize = SPAN;
/// Keys of a span at least: what spans leave is then little beside what they read.
const SPAN: usize = 256;
/// Spans for each multiprocessor: two are there at once, and several rounds of them end almost together.
const BLOCKS: usize = 8;
/// Keys that a warp takes at once.
const SLAB: u32 = 16;

/// How the kernel of a depth is laid out.
struct Layout {
    warps: u32,
    stages: u32,
}

const fn layout(depth: u32) -> Layout {
    let (warps, stages) = match depth {
        32 | 64 => (4, 4),
        128 => (4, 3),
        _ => (2, 3),
    };
    Layout { warps, stages }
}

/// Into how many spans the keys of each head are cut; `None` if the sizes are not those of decoding.
fn splits(device: &CudaDevice, dtype: DType, shape: &AttentionShape) -> Option<usize> {
    let rows = rows(shape)?;
    let serves = device.options().split_decode
        && mma::serves(dtype, shape)
        && (1..=ROWS).contains(&rows)
        && shape.key_length >= FEWEST_KEYS;
    let groups = shape.batch.checked_mul(shape.key_heads)?;
    let wanted = BLOCKS * device.info().multiprocessors as usize;
    (serves && groups > 0).then(|| wanted.div_ceil(groups).clamp(1, shape.key_length / SPAN))
}

/// Queries that share keys.
fn rows(shape: &AttentionShape) -> Option<usize> {
    let group = shape.num_heads.checked_div(shape.key_heads)?;
    group.checked_mul(shape.query_length)
}

/// Elements of scratch for these sizes: of each span and row the columns, the largest number and the sum.
pub(super) fn scratch(device: &CudaDevice, dtype: DType, shape: &AttentionShape) -> usize {
    match (splits(device, dtype, shape), rows(shape)) {
        (Some(splits), Some(rows)) if splits > 1 => (shape.batch * shape.key_heads)
            .saturating_mul(splits * rows)
            .saturating_mul(shape.value_depth + 2),
        _ => 0,
    }
}

/// Starts the kernels, if they serve the call.
pub(super) fn attend(
    device: &CudaDevice,
    dtype: DType,
    shape: &AttentionShape,
    params: &Attend,
) -> Result<bool, CudaError> {
    let Some(splits) = splits(device, dtype, shape).filter(|_| serves(params)) else {
        return Ok(false);
    };
    let groups = u64::from(params.batches) * u64::from(params.key_heads);
    let params = Attend {
        // The second kernel learns the number of spans from it.
        scratch_len: scratch(device, dtype, shape) as u64,
        ..*params
    };
    let depth = mma::class_of(&params);
    let Layout { warps, stages } = layout(depth);
    device.launch(
        Kernel {
            module: Module::Decode,
            name: &format!("decode_{}_{depth}", suffix(dtype)),
            blocks: groups * splits as u64,
            threads: 32 * warps,
            // Of each warp some slabs of keys and of values.
            shared: warps * stages * 2 * SLAB * depth * 2,
        },
        &params,
    )?;
    if splits > 1 {
        let rows = u64::from(params.heads / params.key_heads) * u64::from(params.query_length);
        device.launch(
            Kernel {
                module: Module::Decode,
                name: &format!("decode_combine_{}", suffix(dtype)),
                blocks: groups * rows,
                threads: 128,
                shared: 0,
            },
            &params,
        )?;
    }
    Ok(true)
}

/// Whether the kernels have all parts of a call, whose sizes are those of decoding.
fn serves(params: &Attend) -> bool {
    // A query before the first key sees nothing; the mean of all values is not for kernels that stop where the last query does.
    let sees_all = params.zero_if_blind != 0 || params.causal == 0 || params.shift >= 0;
    params.weights.address == 0
        && params.dropout.width == 0
        && sees_all
        && mma::in_chunks(&params.query, params.depth)
        && mma::in_chunks(&params.key, params.depth)
        && mma::in_chunks(&params.value, params.value_depth)
}
