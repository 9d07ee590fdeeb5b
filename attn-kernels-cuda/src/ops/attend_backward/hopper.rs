//! The gradients of attention in 16 bits on compute capability 9.0: calls without bias, mask and dropout, whose arrays the copy
//! engine can read. `kernels/attend_backward_hopper.cu`.

use super::mma;
use crate::cuda::CudaDevice;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::ops::boxes::{CAPABILITY, Read};
use crate::ops::suffix;
use crate::params::Attend;
use attn_core::DType;

/// Rows of a box.
const BOX: u32 = 64;
/// Rows of a block: two warpgroups compute 64 each, a third one copies.
const TILE: u32 = 128;
const THREADS: u32 = 384;

/// A kernel of one of the two passes.
#[derive(Debug, Clone, Copy)]
struct Plan {
    by: &'static str,
    /// Of queries, keys and values; smaller ones are filled up with zeros.
    depth: u32,
    /// Rows of a step, and steps in flight.
    step: u32,
    stages: u32,
}

const PLANS: [[Plan; 2]; 2] = [
    [plan("queries", 64, 128, 3), plan("keys", 64, 128, 3)],
    [plan("queries", 128, 128, 2), plan("keys", 128, 64, 3)],
];

const fn plan(by: &'static str, depth: u32, step: u32, stages: u32) -> Plan {
    Plan {
        by,
        depth,
        step,
        stages,
    }
}

impl Plan {
    /// Bytes: two arrays' rows of the block; in each stage two arrays' rows and two numbers for each; barriers.
    const fn shared(self) -> u32 {
        let stage = 2 * self.step * (2 * self.depth + 4);
        4 * TILE * self.depth + self.stages * stage + 8 * (1 + 2 * self.stages)
    }
}

/// A call that the kernels compute.
pub(super) struct Served<'a> {
    params: &'a Attend,
    dtype: DType,
    plans: [Plan; 2],
    /// Queries, keys, values and gradients of the output.
    arrays: [Read<'a>; 4],
}

impl<'a> Served<'a> {
    /// The call, if they compute it.
    pub(super) fn new(device: &CudaDevice, dtype: DType, params: &'a Attend) -> Option<Self> {
        let info = device.info();
        let needed = params.depth.max(params.value_depth);
        let plans = PLANS.into_iter().find(|[plan, _]| needed <= plan.depth)?;
        let is_served = info.capability == CAPABILITY
            && matches!(dtype, DType::F16 | DType::BF16)
            && params.d_bias.address == 0
            && params.query_length > 0
            && params.key_length > 0
            && mma::is_plain(params)
            && (plans.iter()).all(|plan| plan.shared() <= info.shared_per_block);
        if !is_served {
            return None;
        }
        let queries = [params.heads, params.query_length];
        let keys = [params.key_heads, params.key_length];
        // The output is read in pieces as large as the copy engine's.
        Read::new(&params.out, params, queries, params.value_depth)?;
        Some(Self {
            params,
            dtype,
            plans,
            arrays: [
                Read::new(&params.query, params, queries, params.depth)?,
                Read::new(&params.key, params, keys, params.depth)?,
                Read::new(&params.value, params, keys, params.value_depth)?,
                Read::new(&params.d_out, params, queries, params.value_depth)?,
            ],
        })
    }

    /// Starts the kernels.
    pub(super) fn launch(&self, device: &CudaDevice) -> Result<(), CudaError> {
        let params = mma::with_aligned_scratch(self.params);
        let [query, key, value, d_out] = &self.arrays;
        let map = |read: &Read<'_>| {
            let is_bf16 = self.dtype == DType::BF16;
            device.driver().tensor_map(&read.map(BOX, is_bf16))
        };
        let maps = [map(query)?, map(key)?, map(value)?, map(d_out)?];
        let rows = [
            (params.query_length, params.heads),
            (params.key_length, params.key_heads),
        ];
        let causal = if params.causal == 0 { "" } else { "_causal" };
        for (plan, (length, heads)) in self.plans.into_iter().zip(rows) {
            let name = format!(
                "attend_backward_hopper_{}_{}_d{}{causal}",
                plan.by,
                suffix(self.dtype),
                plan.depth
            );
            let tiles = u64::from(length.div_ceil(TILE));
            device.launch_mapped(
                Kernel {
                    module: Module::AttendBackwardHopper,
                    name: &name,
                    blocks: u64::from(params.batches) * u64::from(heads) * tiles,
                    threads: THREADS,
                    shared: plan.shared(),
                },
                &maps,
                &params,
            )?;
        }
        Ok(())
    }
}
