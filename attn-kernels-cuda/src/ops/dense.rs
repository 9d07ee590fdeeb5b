//! Dense layers and their gradients.

use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use attn_core::{Element, Error, Projection, ProjectionBackward, ViewMut};

pub(crate) const fn scratch(_rows: usize, _features: usize, _outputs: usize) -> usize {
    0
}

pub(crate) const fn backward_scratch(_rows: usize, _features: usize, _outputs: usize) -> usize {
    0
}

pub(crate) fn project<T: Element>(
    _device: &CudaDevice,
    _call: &Projection<'_, Device, T>,
    _out: ViewMut<'_, Device, T>,
    _scratch: &mut DeviceBuffer<T::Acc>,
) -> Result<(), CudaError> {
    Err(Error::NoHeads.into())
}

pub(crate) fn project_backward<T: Element>(
    _device: &CudaDevice,
    _call: ProjectionBackward<'_, Device, T>,
    _scratch: &mut DeviceBuffer<T::Acc>,
) -> Result<(), CudaError> {
    Err(Error::NoHeads.into())
}
