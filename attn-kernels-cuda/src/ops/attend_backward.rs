//! A call for the gradients of attention: checks, then the kernels.

mod hopper;
mod mma;
mod ordinary;

use super::attend::SUPPORTED;
use super::enough;
use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::params::{Attend, Gradients, Placed};
use attn_core::{AttentionBackward, AttentionShape, Buffer, Element};

pub(crate) fn scratch<T: Element>(_device: &CudaDevice, shape: &AttentionShape) -> usize {
    // A gradient of the bias is always made by ordinary arithmetic, and a shape does not say whether it is wanted.
    match mma::class(T::DTYPE, shape) {
        Some(_) => mma::scratch(shape).max(ordinary::scratch(shape)),
        None => ordinary::scratch(shape),
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
    if let Some(served) = hopper::Served::new(device, T::DTYPE, &params) {
        return served.launch(device);
    }
    if let (None, Some(class)) = (&call.d_bias, mma::class(T::DTYPE, &shape)) {
        return mma::launch(device, T::DTYPE, class, &params);
    }
    let call = ordinary::Ordinary {
        device,
        dtype: T::DTYPE,
        shape: &shape,
        params: &params,
    };
    call.run(gradients.d_bias.is_some())
}
