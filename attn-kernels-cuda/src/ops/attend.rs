//! A call of attention: checks, then one of the kernels.

mod decode;
mod mma;

use super::tiles::{Blocks, Width};
use super::{enough, suffix};
use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::Attend;
use attn_core::request::Features;
use attn_core::{Attention, AttentionShape, Buffer, Element, Error, ViewMut};

pub(crate) const SUPPORTED: Features = Features::DENSE
    .union(Features::BIAS)
    .union(Features::SCALE)
    .union(Features::CAUSAL)
    .union(Features::MASK)
    .union(Features::ZERO_ROWS)
    .union(Features::WEIGHTS)
    .union(Features::DROPOUT)
    .union(Features::STATISTICS)
    .union(Features::GROUPED);

/// Columns of values that the widest kernel has at once.
const WIDEST: usize = 128;

pub(crate) fn scratch<T: Element>(device: &CudaDevice, shape: &AttentionShape) -> usize {
    decode::scratch(device, T::DTYPE, shape)
}

pub(crate) fn attend<T: Element>(
    device: &CudaDevice,
    call: Attention<'_, Device, T>,
    out: ViewMut<'_, Device, T>,
    scratch: &mut DeviceBuffer<T::Acc>,
) -> Result<(), CudaError> {
    let shape = check(device, &call, &out, scratch.len())?;
    let params = Attend::forward(&call, &shape, &out, scratch)?;
    if decode::attend(device, T::DTYPE, &shape, &params)? {
        return Ok(());
    }
    if mma::serves(T::DTYPE, &shape) {
        return mma::attend(device, T::DTYPE, &params);
    }
    ordinary::<T>(device, &shape, &params)
}

/// The kernels of ordinary arithmetic, which serve every call.
fn ordinary<T: Element>(
    device: &CudaDevice,
    shape: &AttentionShape,
    params: &Attend,
) -> Result<(), CudaError> {
    let width = Width::of(shape.value_depth, WIDEST);
    let blocks = Blocks::of(shape.query_length, shape.key_length);
    let each = blocks.count * width.chunks(shape.value_depth);
    device.launch(
        Kernel {
            module: Module::Attend,
            name: &format!("attend_{}_w{}", suffix(T::DTYPE), width.number()),
            blocks: params.matrices().saturating_mul(each),
            threads: blocks.threads,
            shared: 0,
        },
        params,
    )
}

fn check<T: Element>(
    device: &CudaDevice,
    call: &Attention<'_, Device, T>,
    out: &ViewMut<'_, Device, T>,
    scratch: usize,
) -> Result<AttentionShape, CudaError> {
    call.check_supported(crate::NAME, SUPPORTED)?;
    let shape = call.shape()?;
    let wanted = shape.output(call.query.shape())?;
    if *out.shape() != wanted {
        return Err(Error::Shape {
            argument: "output",
            got: *out.shape(),
            wanted,
        }
        .into());
    }
    enough(scratch, self::scratch::<T>(device, &shape))?;
    Ok(shape)
}
