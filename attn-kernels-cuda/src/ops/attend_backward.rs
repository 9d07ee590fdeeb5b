//! A call for the gradients of attention: checks, then the kernels.

mod mma;

use super::attend::SUPPORTED;
use super::tiles::{Blocks, ROWS, Width};
use super::{enough, suffix};
use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::{Attend, Gradients, Placed};
use attn_core::{AttentionBackward, AttentionShape, Buffer, DType, Element};

/// Columns of gradients that the widest kernel has at once: two sums of `f64` are as many registers as four of `f32`.
const fn widest(dtype: DType) -> usize {
    match dtype {
        DType::F64 => 64,
        DType::F32 | DType::F16 | DType::BF16 => 128,
    }
}

/// A number for each query: its `delta`.
pub(crate) fn scratch<T: Element>(_device: &CudaDevice, shape: &AttentionShape) -> usize {
    let deltas = shape
        .batch
        .saturating_mul(shape.num_heads)
        .saturating_mul(shape.query_length);
    match mma::class(T::DTYPE, shape) {
        Some(_) => deltas.max(mma::scratch(shape)),
        None => deltas,
    }
}

pub(crate) fn attend_backward<T: Element>(
    device: &CudaDevice,
    call: AttentionBackward<'_, Device, T>,
    scratch: &mut DeviceBuffer<T::Acc>,
) -> Result<(), CudaError> {
    call.call.check_supported(crate::NAME, SUPPORTED)?;
    let shape = call.shape()?;
    enough(scratch.len(), self::scratch::<T>(device, &shape))?;
    let gradients = Gradients {
        statistics: Placed::of(&call.statistics),
        out: Placed::of(&call.out),
        d_out: Placed::of(&call.d_out),
        d_query: Placed::of_mut(&call.d_query),
        d_key: Placed::of_mut(&call.d_key),
        d_value: Placed::of_mut(&call.d_value),
        d_bias: call.d_bias.as_ref().map(Placed::of_mut),
    };
    let params = Attend::backward(&call.call, &shape, &gradients, scratch)?;
    if let (None, Some(class)) = (&call.d_bias, mma::class(T::DTYPE, &shape)) {
        return mma::launch(device, T::DTYPE, class, &params);
    }
    Ordinary {
        device,
        shape: &shape,
        params: &params,
        dtype: T::DTYPE,
    }
    .run(call.d_bias.is_some())
}

/// The kernels of ordinary arithmetic, which serve every call.
struct Ordinary<'a> {
    device: &'a CudaDevice,
    shape: &'a AttentionShape,
    params: &'a Attend,
    dtype: DType,
}

impl Ordinary<'_> {
    fn run(&self, of_bias: bool) -> Result<(), CudaError> {
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
