//! A call for the gradients of attention: checks, then the kernels.

mod mma;

use super::attend::SUPPORTED;
use super::{enough, suffix};
use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::{Attend, Gradients, Placed};
use attn_core::{AttentionBackward, AttentionShape, Buffer, Element};

pub(crate) fn scratch<T: Element>(_device: &CudaDevice, shape: &AttentionShape) -> usize {
    if mma::class(T::DTYPE, shape).is_some() {
        return mma::scratch(shape);
    }
    0
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
    let name = format!("attend_backward_{}", suffix(T::DTYPE));
    device.launch(
        Kernel {
            module: Module::AttendBackward,
            name: &name,
            blocks: params.matrices(),
            threads: 256,
            shared: 0,
        },
        &params,
    )
}
