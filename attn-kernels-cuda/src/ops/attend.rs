//! A call of attention: checks, then one of the kernels.

mod decode;
mod hopper;
mod mma;
mod ordinary;

use super::enough;
use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::params::Attend;
use attn_core::Features;
use attn_core::{Attention, AttentionShape, Buffer, Element, Error, ViewMut};

pub(crate) const SUPPORTED: Features = Features::FLAX.union(Features::GROUPED);

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
    if let Some(served) = hopper::Served::new(device, T::DTYPE, &params) {
        return served.attend(device);
    }
    if mma::serves(T::DTYPE, &shape) {
        return mma::attend(device, T::DTYPE, &params);
    }
    ordinary::attend(device, T::DTYPE, &shape, &params)
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
