//! The gradients of attention in 16 bits, on tensor cores: `kernels/attend_backward_mma.cu`.

use crate::cuda::CudaDevice;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::ops::suffix;
use crate::params::{Array, Attend};
use attn_core::{AttentionShape, DType};

/// Rows of scratch come in multiples of the largest tile.
const LARGEST: usize = 128;
/// Rows of a warp.
const ROWS: usize = 16;
/// Numbers that the kernel by queries leaves of a row.
const STATES: usize = 3;
/// Bytes that the kernels copy at a time.
const CHUNK: u64 = 16;

/// A depth that kernels were compiled for, and how they cut the work.
pub(super) struct Class {
    depth: u32,
    warps: u32,
    /// Keys, or queries, of a step of a full kernel; a plain one has [`PLAIN_STEP`].
    step: u32,
}

impl Class {
    /// Rows of a block.
    const fn tile(&self) -> u32 {
        self.warps * ROWS as u32
    }

    /// Bytes: two tiles of the block's own rows, two of the other ones' in two stages.
    const fn shared(&self, step: u32) -> u32 {
        (2 * self.tile() + 4 * step) * self.depth * size_of::<u16>() as u32
    }
}

const PLAIN_STEP: u32 = 64;
const CLASSES: [Class; 2] = [
    Class {
        depth: 64,
        warps: 4,
        step: 64,
    },
    Class {
        depth: 128,
        warps: 8,
        step: 32,
    },
];

/// How the gradients of query, key and value are computed here, if they can be; those of biases are another module's.
pub(super) fn class(dtype: DType, shape: &AttentionShape) -> Option<&'static Class> {
    let depth = shape.depth.max(shape.value_depth);
    let classes = match dtype {
        DType::F16 | DType::BF16 => &CLASSES[..],
        DType::F32 | DType::F64 => &[],
    };
    classes.iter().find(|class| depth <= class.depth as usize)
}

/// Elements of scratch: the state of each row, a mark for each sixteen, and what it takes to begin at a whole chunk.
pub(super) fn scratch(shape: &AttentionShape) -> usize {
    let rows = shape
        .query_length
        .checked_next_multiple_of(LARGEST)
        .unwrap_or(usize::MAX);
    rows.saturating_mul(STATES)
        .saturating_add(rows / ROWS)
        .saturating_mul(shape.batch)
        .saturating_mul(shape.num_heads)
        .saturating_add(CHUNK as usize / size_of::<f32>() - 1)
}

/// Starts the kernels.
pub(super) fn launch(
    device: &CudaDevice,
    dtype: DType,
    class: &Class,
    params: &Attend,
) -> Result<(), CudaError> {
    let params = with_aligned_scratch(params);
    let fits = class.shared(PLAIN_STEP) <= device.info().shared_per_block;
    let (kind, step) = match fits && is_plain(&params) {
        true => ("plain", PLAIN_STEP),
        false => ("full", class.step),
    };
    let tile = class.tile();
    let passes = [
        ("queries", params.query_length, params.heads),
        ("keys", params.key_length, params.key_heads),
    ];
    for (by, length, heads) in passes {
        let name = format!(
            "attend_backward_{by}_{}_d{}_{kind}",
            suffix(dtype),
            class.depth
        );
        let tiles = u64::from(length.div_ceil(tile));
        device.launch(
            Kernel {
                module: Module::AttendBackwardMma,
                name: &name,
                blocks: u64::from(params.batches) * u64::from(heads) * tiles,
                threads: class.warps * 32,
                shared: class.shared(step),
            },
            &params,
        )?;
    }
    Ok(())
}

/// The call with a scratch that begins at a whole chunk.
pub(super) const fn with_aligned_scratch(params: &Attend) -> Attend {
    Attend {
        scratch: params.scratch.next_multiple_of(CHUNK),
        ..*params
    }
}

/// Whether a plain kernel serves: no part but a causal mask, no row that sees nothing and gets a mean, arrays in whole chunks.
pub(super) fn is_plain(params: &Attend) -> bool {
    let parts = params.mask.address != 0 || params.bias.address != 0 || params.dropout.width != 0;
    let blind = params.causal != 0 && params.shift < 0 && params.zero_if_blind == 0;
    let arrays = [
        (&params.query, params.heads, params.depth),
        (&params.key, params.key_heads, params.depth),
        (&params.value, params.key_heads, params.value_depth),
        (&params.d_out, params.heads, params.value_depth),
    ];
    !parts
        && !blind
        && arrays
            .iter()
            .all(|&(array, heads, depth)| in_chunks(params, array, heads, depth))
}

/// Whether every row of an array is whole chunks at multiples of their size.
fn in_chunks(params: &Attend, array: &Array, heads: u32, depth: u32) -> bool {
    let elements = CHUNK as i64 / size_of::<u16>() as i64;
    let batch = &array.batch[..params.batch.axes as usize];
    array.column == 1
        && depth > 0
        && array.address.is_multiple_of(CHUNK)
        && i64::from(depth) % elements == 0
        && array.row % elements == 0
        && (heads == 1 || array.head % elements == 0)
        && batch.iter().all(|stride| stride % elements == 0)
}
