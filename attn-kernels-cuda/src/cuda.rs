//! The backend value.

use crate::device::{Device, DeviceBuffer};
use crate::driver;
use crate::error::CudaError;
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Kernels, NormalizeBackward, Projection,
    ProjectionBackward, View, ViewMut,
};
use core::convert::Infallible;

/// A CUDA device that computes. This version has no way to make one.
#[derive(Debug, Clone)]
pub struct Cuda {
    never: Infallible,
}

impl Cuda {
    /// The device with this number, counted as the driver counts.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoDriver`] if the driver's library is not on this machine, [`CudaError::NoKernels`] if it is: this
    /// version ships none, so it never succeeds.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        Err(missing(ordinal, driver::find().is_some()))
    }
}

/// What is missing on a machine with or without the driver.
fn missing(ordinal: usize, driver_found: bool) -> CudaError {
    if driver_found {
        CudaError::NoKernels {
            ordinal,
            next: "Use the CPU backend, or a later version of this crate",
        }
    } else {
        CudaError::NoDriver {
            looked_for: driver::LIBRARY,
            next: "Install NVIDIA's driver, add its folder to the loader's search path, or use the CPU backend",
        }
    }
}

impl Backend for Cuda {
    type Storage = Device;
    type Error = CudaError;

    fn name(&self) -> &'static str {
        match self.never {}
    }
}

// No `Cuda` exists to call these on. They are here so that every layer is compiled against a backend whose buffers are
// not slices and whose error is its own.
macro_rules! impl_kernels {
    ($(($type:ty, $variant:ident, $acc:ty)),+ $(,)?) => {$(
        impl Kernels<$type> for Cuda {
            fn project_scratch(&self, _rows: usize, _features: usize, _outputs: usize) -> usize {
                match self.never {}
            }

            fn project(
                &self,
                _call: &Projection<'_, Device, $type>,
                _out: ViewMut<'_, Device, $type>,
                _scratch: &mut DeviceBuffer<$acc>,
            ) -> Result<(), CudaError> {
                match self.never {}
            }

            fn normalize(
                &self,
                _x: ViewMut<'_, Device, $type>,
                _scale: View<'_, Device, $acc>,
                _epsilon: f64,
            ) -> Result<(), CudaError> {
                match self.never {}
            }

            fn attend_scratch(&self, _shape: &AttentionShape) -> usize {
                match self.never {}
            }

            fn attend(
                &self,
                _call: Attention<'_, Device, $type>,
                _out: ViewMut<'_, Device, $type>,
                _scratch: &mut DeviceBuffer<$acc>,
            ) -> Result<(), CudaError> {
                match self.never {}
            }

            fn project_backward_scratch(&self, _rows: usize, _features: usize, _outputs: usize) -> usize {
                match self.never {}
            }

            fn project_backward(
                &self,
                _call: ProjectionBackward<'_, Device, $type>,
                _scratch: &mut DeviceBuffer<$acc>,
            ) -> Result<(), CudaError> {
                match self.never {}
            }

            fn normalize_backward(&self, _call: NormalizeBackward<'_, Device, $type>) -> Result<(), CudaError> {
                match self.never {}
            }

            fn attend_backward_scratch(&self, _shape: &AttentionShape) -> usize {
                match self.never {}
            }

            fn attend_backward(
                &self,
                _call: AttentionBackward<'_, Device, $type>,
                _scratch: &mut DeviceBuffer<$acc>,
            ) -> Result<(), CudaError> {
                match self.never {}
            }
        }
    )+};
}
attn_core::for_each_dtype!(impl_kernels);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_says_which_part_is_missing() {
        assert!(matches!(
            missing(0, false),
            CudaError::NoDriver { looked_for, .. } if looked_for == driver::LIBRARY
        ));
        assert!(matches!(
            missing(7, true),
            CudaError::NoKernels { ordinal: 7, .. }
        ));
    }

    #[test]
    fn new_reports_what_this_machine_lacks() {
        let error = Cuda::new(1).unwrap_err();
        assert_eq!(error, missing(1, driver::find().is_some()));
    }

    #[test]
    fn generic_code_compiles_for_every_dtype() {
        fn is_backend<B>()
        where
            B: Kernels<f32> + Kernels<f64> + Kernels<attn_core::f16> + Kernels<attn_core::bf16>,
            B: Backend<Storage = Device, Error = CudaError>,
        {
        }
        is_backend::<Cuda>();
    }
}
