//! Attention of 16-bit dtypes on compute capability 9.0: calls without bias, mask, dropout and weights, whose arrays the copy
//! engine can read.

use super::super::boxes::{CAPABILITY, Read};
use super::super::suffix;
use crate::cuda::CudaDevice;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::Attend;
use attn_core::DType;

/// Queries of a warpgroup.
const GROUP: u32 = 64;
/// Factors for which products need not become scores before the largest is looked for: neither side of the exponent leaves the
/// range of f32.
const FACTORS: core::ops::RangeInclusive<f64> = 1e-24..=128.0;

/// A kernel of `kernels/attend_hopper.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Of keys and values; smaller ones are filled up with zeros.
    depth: u32,
    causal: bool,
    /// The most queries that a call has.
    most: u32,
    /// Warpgroups that compute.
    groups: u32,
    /// Keys of a tile. They are part of a row's bits: the same for every number of queries.
    keys: u32,
    /// Tiles of keys, and of values, that shared memory holds.
    stages: u32,
    /// Below this many keys, as many blocks as the device runs at once go from tile to tile, which begins a tile of queries while
    /// the one before ends. From there on a tile is a block: the device hands them out as others end.
    lasting: u32,
}

/// Sizes as measured on an H200 with 16,384 tokens of 2,048 columns, in sequences of 512 to 8,192.
const PLANS: [Plan; 7] = [
    Plan {
        depth: 64,
        causal: false,
        most: u32::MAX,
        groups: 3,
        keys: 128,
        stages: 3,
        lasting: u32::MAX,
    },
    // A third warpgroup has little to do where few tiles of keys are seen.
    Plan {
        depth: 64,
        causal: true,
        most: 1024,
        groups: 2,
        keys: 128,
        stages: 3,
        lasting: 4096,
    },
    Plan {
        depth: 64,
        causal: true,
        most: u32::MAX,
        groups: 3,
        keys: 128,
        stages: 3,
        lasting: 4096,
    },
    Plan {
        depth: 128,
        causal: false,
        most: u32::MAX,
        groups: 2,
        keys: 176,
        stages: 2,
        lasting: u32::MAX,
    },
    Plan {
        depth: 128,
        causal: true,
        most: u32::MAX,
        groups: 2,
        keys: 128,
        stages: 3,
        lasting: 4096,
    },
    Plan {
        depth: 256,
        causal: false,
        most: u32::MAX,
        groups: 2,
        keys: 80,
        stages: 2,
        lasting: u32::MAX,
    },
    Plan {
        depth: 256,
        causal: true,
        most: u32::MAX,
        groups: 2,
        keys: 80,
        stages: 2,
        lasting: 0,
    },
];

impl Plan {
    fn of(params: &Attend) -> Option<Self> {
        let needed = params.depth.max(params.value_depth);
        let fits = |plan: &Self| {
            plan.depth >= needed
                && plan.causal == (params.causal != 0)
                && plan.most >= params.query_length
        };
        PLANS.into_iter().find(fits)
    }

    /// Queries of a block.
    const fn queries(self) -> u32 {
        GROUP * self.groups
    }

    /// Bytes: the queries, stages of keys and of values, what the queries are, two barriers for each part.
    const fn shared(self) -> u32 {
        let rows = self.queries() + 2 * self.stages * self.keys;
        2 * self.depth * rows + 16 * self.groups + 16 * (self.groups + 2 * self.stages)
    }

    /// Tiles of queries of all heads.
    fn tiles(self, params: &Attend) -> u64 {
        params.matrices() * u64::from(params.query_length.div_ceil(self.queries()))
    }

    fn blocks(self, device: &CudaDevice, params: &Attend) -> u64 {
        let tiles = self.tiles(params);
        match params.key_length < self.lasting {
            true => tiles.min(u64::from(device.info().multiprocessors).max(1)),
            false => tiles,
        }
    }

    fn name(self, dtype: DType) -> String {
        let kind = if self.causal { "_causal" } else { "" };
        format!(
            "attend_hopper_{}_d{}_q{}{kind}",
            suffix(dtype),
            self.depth,
            self.queries()
        )
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
        let fits = plan.shared() <= info.shared_per_block && plan.tiles(params) < 1 << 31;
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
        let map = |read: &Read<'_>, rows: u32| {
            let is_bf16 = self.dtype == DType::BF16;
            device.driver().tensor_map(&read.map(rows, is_bf16))
        };
        let maps = [
            map(&self.query, GROUP)?,
            map(&self.key, plan.keys)?,
            map(&self.value, plan.keys)?,
        ];
        device.launch_mapped(
            Kernel {
                module: Module::AttendHopper,
                name: &plan.name(self.dtype),
                blocks: plan.blocks(device, params),
                threads: 128 * (plan.groups + 1),
                shared: plan.shared(),
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
