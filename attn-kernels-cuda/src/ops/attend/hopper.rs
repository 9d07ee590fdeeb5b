//! Attention of 16-bit dtypes on compute capability 9.0: calls without bias, mask, dropout and weights, whose arrays the copy
//! engine can read.

use super::super::suffix;
use crate::cuda::CudaDevice;
use crate::driver::TensorMap;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::{Array, Attend};
use attn_core::DType;

/// The device that `kernels/attend_hopper.cu` is for.
const CAPABILITY: (u32, u32) = (9, 0);
/// Elements of 16 bytes: what the copy engine reads at once, and what a thread writes.
const CHUNK: u64 = 8;
/// Columns of a panel: rows of 128 bytes in shared memory.
const PANEL: u32 = 64;
/// Queries of a warpgroup.
const GROUP: u32 = 64;
/// Tiles of keys, and of values, that shared memory holds.
const STAGES: u32 = 2;
/// Keys from which on a tile of queries takes long.
const LONG: u32 = 4096;
/// Strides from here on cannot be said to the copy engine.
const FARTHEST: u64 = 1 << 40;
/// Factors for which products need not become scores before the largest is looked for: neither side of the exponent leaves the
/// range of f32.
const FACTORS: core::ops::RangeInclusive<f64> = 1e-24..=128.0;

/// How `kernels/attend_hopper.cu` computes for a depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Of keys and values; smaller ones are filled up with zeros.
    depth: u32,
    /// Warpgroups that compute, 64 queries each.
    groups: u32,
    /// Keys of a tile, without and with causality.
    keys: [u32; 2],
}

const PLANS: [Plan; 3] = [
    Plan {
        depth: 64,
        groups: 3,
        keys: [128, 128],
    },
    Plan {
        depth: 128,
        groups: 2,
        keys: [176, 128],
    },
    Plan {
        depth: 256,
        groups: 2,
        keys: [80, 80],
    },
];

impl Plan {
    fn of(params: &Attend) -> Option<Self> {
        let needed = params.depth.max(params.value_depth);
        PLANS.into_iter().find(|plan| plan.depth >= needed)
    }

    const fn queries(self) -> u32 {
        GROUP * self.groups
    }

    const fn keys(self, causal: bool) -> u32 {
        self.keys[causal as usize]
    }

    /// Bytes: the queries, stages of keys and of values, what the queries are, two barriers for each part.
    const fn shared(self, causal: bool) -> u32 {
        let rows = self.queries() + 2 * STAGES * self.keys(causal);
        2 * self.depth * rows + 16 * self.groups + 16 * (self.groups + 2 * STAGES)
    }

    /// Blocks go from tile to tile. Where tiles take long, it is better that each is a block, which the device hands out.
    fn blocks(self, device: &CudaDevice, params: &Attend) -> u64 {
        let tiles = self.tiles(params);
        match params.key_length < LONG {
            true => tiles.min(u64::from(device.info().multiprocessors).max(1)),
            false => tiles,
        }
    }

    /// Tiles of queries of all heads.
    fn tiles(self, params: &Attend) -> u64 {
        params.matrices() * u64::from(params.query_length.div_ceil(self.queries()))
    }
}

/// A call that the kernels compute.
pub(super) struct Served<'a> {
    params: &'a Attend,
    dtype: DType,
    plan: Plan,
    query: Read<'a>,
    key: Read<'a>,
    value: Read<'a>,
}

impl<'a> Served<'a> {
    /// The call, if they compute it. How many queries it has does not count, so that a query gets the same bits alone and among
    /// others.
    pub(super) fn new(device: &CudaDevice, dtype: DType, params: &'a Attend) -> Option<Self> {
        let info = device.info();
        let plan = Plan::of(params)?;
        let fits = plan.shared(params.causal != 0) <= info.shared_per_block
            && plan.tiles(params) < 1 << 31;
        let is_served = info.capability == CAPABILITY
            && matches!(dtype, DType::F16 | DType::BF16)
            && fits
            && is_plain(params)
            && FACTORS.contains(&params.scale);
        if !is_served {
            return None;
        }
        let queries = [params.heads, params.query_length];
        let keys = [params.key_heads, params.key_length];
        // The output is written in pieces as large as those that are read.
        Read::new(&params.out, params, queries, params.value_depth)?;
        Some(Self {
            params,
            dtype,
            plan,
            query: Read::new(&params.query, params, queries, params.depth)?,
            key: Read::new(&params.key, params, keys, params.depth)?,
            value: Read::new(&params.value, params, keys, params.value_depth)?,
        })
    }

    /// Starts the kernel.
    pub(super) fn attend(&self, device: &CudaDevice) -> Result<(), CudaError> {
        let (params, plan) = (self.params, self.plan);
        let is_causal = params.causal != 0;
        let map = |read: &Read<'_>, rows: u32| {
            let is_bf16 = self.dtype == DType::BF16;
            device.driver().tensor_map(&read.map(rows, is_bf16))
        };
        let keys = plan.keys(is_causal);
        let maps = [
            map(&self.query, GROUP)?,
            map(&self.key, keys)?,
            map(&self.value, keys)?,
        ];
        let kind = if is_causal { "_causal" } else { "" };
        let name = format!("attend_hopper_{}_d{}{kind}", suffix(self.dtype), plan.depth);
        device.launch_mapped(
            Kernel {
                module: Module::AttendHopper,
                name: &name,
                blocks: plan.blocks(device, params),
                threads: 128 * (plan.groups + 1),
                shared: plan.shared(is_causal),
            },
            &maps,
            params,
        )
    }
}

/// Whether scores are all there is to the weights, and every query sees a key.
fn is_plain(params: &Attend) -> bool {
    let absent = [&params.bias, &params.mask, &params.weights];
    absent.iter().all(|array| array.address == 0)
        && params.dropout.width == 0
        && params.query_length > 0
        && params.key_length > 0
        && (params.causal == 0 || params.shift >= 0)
}

/// An array that the copy engine can read.
struct Read<'a> {
    array: &'a Array,
    /// Depth, rows, heads and batch entries.
    dims: [u64; 4],
    /// Bytes from one row, head and batch entry to the next.
    strides: [u64; 3],
}

impl<'a> Read<'a> {
    fn new(array: &'a Array, params: &Attend, [heads, rows]: [u32; 2], depth: u32) -> Option<Self> {
        let dims = [depth, rows, heads, params.batches].map(u64::from);
        let is_served = params.batch.axes <= 1
            && array.column == 1
            && array.address.is_multiple_of(2 * CHUNK)
            && depth > 0
            && dims[0].is_multiple_of(CHUNK);
        if !is_served {
            return None;
        }
        // An axis of one entry has no stride that matters.
        let mut strides = [2 * CHUNK; 3];
        let axes = [array.row, array.head, array.batch[0]];
        for ((bytes, stride), &entries) in strides.iter_mut().zip(axes).zip(&dims[1..]) {
            if entries > 1 {
                let stride = u64::try_from(stride).ok().filter(|&stride| stride > 0)?;
                *bytes = stride.checked_mul(2).filter(|&bytes| bytes < FARTHEST)?;
                if !stride.is_multiple_of(CHUNK) {
                    return None;
                }
            }
        }
        Some(Self {
            array,
            dims,
            strides,
        })
    }

    /// As the copy engine takes it, boxes of so many rows.
    const fn map(&self, rows: u32, is_bf16: bool) -> TensorMap {
        TensorMap {
            address: self.array.address,
            dims: self.dims,
            strides: self.strides,
            box_dims: [PANEL, rows, 1, 1],
            is_bf16,
        }
    }
}
