//! The gradients of attention by ordinary arithmetic: `kernels/attend_backward.cu`, which serves every call.

use super::super::suffix;
use super::super::tiles::{Blocks, ROWS, Width};
use crate::cuda::CudaDevice;
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::Attend;
use attn_core::{AttentionShape, DType};

/// Columns of gradients that the widest kernel has at once: two sums of `f64` are as many registers as four of `f32`.
const fn widest(dtype: DType) -> usize {
    match dtype {
        DType::F64 => 64,
        DType::F32 | DType::F16 | DType::BF16 => 128,
    }
}

/// Elements of scratch: a number for each query, its `delta`.
pub(super) const fn scratch(shape: &AttentionShape) -> usize {
    shape
        .batch
        .saturating_mul(shape.num_heads)
        .saturating_mul(shape.query_length)
}

/// A call and its sizes.
pub(super) struct Ordinary<'a> {
    pub(super) device: &'a CudaDevice,
    pub(super) dtype: DType,
    pub(super) shape: &'a AttentionShape,
    pub(super) params: &'a Attend,
}

impl Ordinary<'_> {
    /// Starts the kernels; that of the bias if its gradient is wanted.
    pub(super) fn run(&self, of_bias: bool) -> Result<(), CudaError> {
        self.of_queries()?;
        self.of_keys()?;
        match of_bias {
            true => self.of_bias(),
            false => Ok(()),
        }
    }

    fn of_queries(&self) -> Result<(), CudaError> {
        let (shape, widest) = (self.shape, widest(self.dtype));
        let width = Width::of(shape.depth, widest);
        let blocks = Blocks::of(shape.query_length, shape.key_length);
        let each = blocks.count * width.chunks(shape.depth);
        self.launch(
            &format!("queries_{}_w{}", suffix(self.dtype), width.number()),
            self.params.matrices().saturating_mul(each),
            blocks.threads,
        )
    }

    fn of_keys(&self) -> Result<(), CudaError> {
        let (shape, widest) = (self.shape, widest(self.dtype));
        let columns = shape.depth.max(shape.value_depth);
        let width = Width::of(columns, widest);
        let blocks = Blocks::of(shape.key_length, shape.query_length);
        let each = blocks.count * width.chunks(columns);
        let matrices = u64::from(self.params.batches) * u64::from(self.params.key_heads);
        self.launch(
            &format!("keys_{}_w{}", suffix(self.dtype), width.number()),
            matrices.saturating_mul(each),
            blocks.threads,
        )
    }

    /// Blocks own elements of the bias: those of a tile, of a strip of tiles where queries or keys share them, or all of a matrix;
    /// and of one of the matrices that share them.
    fn of_bias(&self) -> Result<(), CudaError> {
        let (shape, params) = (self.shape, self.params);
        let blocks = Blocks::of(shape.query_length, shape.key_length);
        let tiles = |own: bool, count: u64| if own { count } else { 1 };
        let of_queries = tiles(params.d_bias.row != 0, blocks.count);
        let of_keys = tiles(
            params.d_bias.column != 0,
            shape.key_length.div_ceil(ROWS) as u64,
        );
        let axes = params.batch.axes as usize;
        let batch = params.batch.dims[..axes].iter().zip(&params.d_bias.batch);
        let heads = [(&params.heads, &params.d_bias.head)];
        let owners = batch
            .chain(heads)
            .filter(|(_, stride)| **stride != 0)
            .fold(1u64, |owners, (&length, _)| {
                owners.saturating_mul(u64::from(length))
            });
        self.launch(
            &format!("bias_{}", suffix(self.dtype)),
            owners.saturating_mul(of_queries).saturating_mul(of_keys),
            blocks.threads,
        )
    }

    fn launch(&self, name: &str, blocks: u64, threads: u32) -> Result<(), CudaError> {
        self.device.launch(
            Kernel {
                module: Module::AttendBackward,
                name: &format!("attend_backward_{name}"),
                blocks,
                threads,
                shared: 0,
            },
            self.params,
        )
    }
}
