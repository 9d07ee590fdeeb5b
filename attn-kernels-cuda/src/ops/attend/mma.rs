//! Attention of 16-bit dtypes on tensor cores: any call whose heads are not too deep.

use super::super::suffix;
use crate::cuda::CudaDevice;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::{Array, Attend};
use attn_core::{AttentionShape, DType};

/// Depths that kernels are made for; others are filled up with zeros.
const DEPTHS: [u32; 4] = [32, 64, 128, 256];
/// Keys of a tile. They are part of a row's bits, so they are the same in both kinds.
const KEYS: u32 = 64;
/// Queries of a block of a full kernel, which has four warps.
const FULL_ROWS: u32 = 64;
/// Queries of a block of a plain kernel.
const PLAIN_ROWS: u32 = 128;
/// Factors for which products need not become scores first, as `kernels/exponent.cuh` has them.
const FACTORS: core::ops::RangeInclusive<f32> = 8.271_806e-25..=128.0;
/// Elements of 16 bytes.
const CHUNK: i64 = 8;
/// The farthest that rows lie apart in plain kernels, as `kernels/copy.cuh` has it.
const FARTHEST: i64 = 1 << 24;

/// Whether the kernels have a depth for these sizes.
pub(super) fn serves(dtype: DType, shape: &AttentionShape) -> bool {
    let deepest = DEPTHS[DEPTHS.len() - 1] as usize;
    matches!(dtype, DType::F16 | DType::BF16) && shape.depth.max(shape.value_depth) <= deepest
}

/// Starts the kernel for a call that is [served](serves).
pub(super) fn attend(device: &CudaDevice, dtype: DType, params: &Attend) -> Result<(), CudaError> {
    let depth = class_of(params);
    let plain_shared = shared(PLAIN_ROWS, depth);
    let plain = is_plain(params)
        && params.query_length > FULL_ROWS
        && plain_shared <= device.info().shared_per_block;
    let (kind, rows) = match plain {
        true => ("plain", PLAIN_ROWS),
        false => ("full", FULL_ROWS),
    };
    let name = format!("attend_mma_{}_{depth}_{kind}", suffix(dtype));
    device.launch(
        Kernel {
            module: Module::AttendMma,
            name: &name,
            blocks: params.matrices() * u64::from(params.query_length.div_ceil(rows)),
            // Warps of the deepest plain kernel have 16 queries in place of 32: registers hold no more.
            threads: if plain && depth == 256 { 256 } else { 128 },
            shared: shared(rows, depth),
        },
        params,
    )
}

/// The depth of the kernel.
pub(super) fn class_of(params: &Attend) -> u32 {
    let needed = params.depth.max(params.value_depth);
    let enough = DEPTHS.into_iter().find(|&depth| depth >= needed);
    enough.unwrap_or(DEPTHS[DEPTHS.len() - 1])
}

/// A tile of queries, one of keys, one of values.
const fn shared(rows: u32, depth: u32) -> u32 {
    (rows + 2 * KEYS) * depth * 2
}

/// Whether a call has a causal mask at most, and its rows are whole chunks.
fn is_plain(params: &Attend) -> bool {
    let absent = [&params.mask, &params.bias, &params.weights];
    absent.iter().all(|array| array.address == 0)
        && params.dropout.width == 0
        && has_ordinary_factor(params)
        && in_chunks(&params.query, params.depth)
        && in_chunks(&params.key, params.depth)
        && in_chunks(&params.value, params.value_depth)
        && in_chunks(&params.out, params.value_depth)
}

/// Whether products become exponents by one factor.
pub(super) fn has_ordinary_factor(params: &Attend) -> bool {
    FACTORS.contains(&((params.scale * core::f64::consts::LOG2_E) as f32))
}

/// Whether every row of an array is whole chunks at addresses that 16-byte accesses may have.
pub(super) fn in_chunks(array: &Array, columns: u32) -> bool {
    let strides = array.batch.iter().chain([&array.head, &array.row]);
    array.column == 1
        && columns > 0
        && i64::from(columns) % CHUNK == 0
        && array.address.is_multiple_of(16)
        && array.row < FARTHEST
        && strides.into_iter().all(|stride| stride % CHUNK == 0)
}
