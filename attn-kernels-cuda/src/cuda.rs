//! The backend on a device's own memory.

use crate::device::{Device, DeviceBuffer};
use crate::driver::{DeviceInfo, Driver, Image, ModuleId};
use crate::error::CudaError;
use crate::images::{self, Loaded, Module};
use crate::ops;
use crate::options::Options;
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Buffer, Element, Error, Features,
    Kernels, NormalizeBackward, Projection, ProjectionBackward, Scalar, View, ViewMut,
};
use core::fmt;
use std::sync::{Arc, OnceLock};

/// A CUDA device that computes on arrays in its own memory. A clone is the same device.
///
/// Work is started in the order of the calls and goes on beside the host; [`CudaDevice::download`] and
/// [`CudaDevice::synchronize`] wait for it.
#[derive(Clone)]
pub struct CudaDevice {
    shared: Arc<Shared>,
    options: Options,
}

struct Shared {
    driver: Arc<dyn Driver>,
    modules: [OnceLock<ModuleId>; Module::ALL.len()],
}

impl CudaDevice {
    /// A device behind a driver of the caller's.
    #[must_use]
    pub fn with_driver(driver: Arc<dyn Driver>) -> Self {
        Self {
            shared: Arc::new(Shared {
                driver,
                modules: Default::default(),
            }),
            options: Options::default(),
        }
    }

    /// Whether a few queries over many keys may be cut over the keys and their parts merged: much faster where batch and heads do
    /// not fill the device, repeatable, but not to the bits of the same queries among many.
    #[must_use]
    pub const fn with_split_decode(mut self, allowed: bool) -> Self {
        self.options.split_decode = allowed;
        self
    }

    /// Whether dense layers whose rows need not be rounded alike may be computed by cuBLASLt, where it is installed: faster where a
    /// product is large, but not to the bits of the same rows among others or of another version of it.
    #[must_use]
    pub const fn with_library_products(mut self, allowed: bool) -> Self {
        self.options.library_products = allowed;
        self
    }

    pub(crate) const fn options(&self) -> Options {
        self.options
    }

    /// What is known of the device.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        self.driver().info()
    }

    /// A new buffer. Its content is undefined.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] and the driver's own.
    pub fn buffer<T: Scalar>(&self, len: usize) -> Result<DeviceBuffer<T>, CudaError> {
        DeviceBuffer::new(&self.shared.driver, len)
    }

    /// A new buffer with these elements.
    ///
    /// # Errors
    ///
    /// As [`CudaDevice::buffer`].
    pub fn upload<T: Scalar>(&self, elements: &[T]) -> Result<DeviceBuffer<T>, CudaError> {
        let buffer = self.buffer(elements.len())?;
        if !elements.is_empty() {
            self.driver()
                .upload(buffer.address(), bytemuck::cast_slice(elements))?;
        }
        Ok(buffer)
    }

    /// Waits for what was started before, and copies a buffer's elements to the host.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if `to` has another length; the driver's own, those of earlier work too.
    pub fn download<T: Scalar>(
        &self,
        from: &DeviceBuffer<T>,
        to: &mut [T],
    ) -> Result<(), CudaError> {
        if from.len() != to.len() {
            return Err(Error::Buffer {
                argument: "to",
                got: to.len(),
                wanted: from.len(),
            }
            .into());
        }
        match to.is_empty() {
            true => self.synchronize(),
            false => Ok(self
                .driver()
                .download(from.address(), bytemuck::cast_slice_mut(to))?),
        }
    }

    /// Waits until everything started is done.
    ///
    /// # Errors
    ///
    /// The driver's own, those of earlier work too.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        Ok(self.driver().synchronize()?)
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.shared.driver
    }

    /// A module, loaded when it is first asked for.
    pub(crate) fn module(&self, module: Module) -> Result<ModuleId, CudaError> {
        let slot = &self.shared.modules[module as usize];
        if let Some(id) = slot.get() {
            return Ok(*id);
        }
        let id = match images::for_device(module, self.info())? {
            Loaded::Ptx(text) => self.driver().load(Image::Ptx(&text)),
            Loaded::Cubin(code) => self.driver().load(Image::Cubin(&code)),
        }?;
        Ok(*slot.get_or_init(|| id))
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CudaDevice").field(self.info()).finish()
    }
}

impl Backend for CudaDevice {
    type Storage = Device;
    type Error = CudaError;

    fn name(&self) -> &'static str {
        crate::NAME
    }
}

impl<T: Element> Kernels<T> for CudaDevice {
    fn project_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize {
        ops::dense::scratch(rows, features, outputs)
    }

    fn project(
        &self,
        call: &Projection<'_, Device, T>,
        out: ViewMut<'_, Device, T>,
        scratch: &mut DeviceBuffer<T::Acc>,
    ) -> Result<(), CudaError> {
        ops::dense::project(self, call, out, scratch)
    }

    fn normalize(
        &self,
        x: ViewMut<'_, Device, T>,
        scale: View<'_, Device, T::Acc>,
        epsilon: f64,
    ) -> Result<(), CudaError> {
        ops::norm::normalize(self, x, scale, epsilon)
    }

    fn features(&self) -> Features {
        ops::attend::SUPPORTED
    }

    fn backward_features(&self) -> Features {
        ops::attend::SUPPORTED
    }

    fn attend_scratch(&self, shape: &AttentionShape) -> usize {
        ops::attend::scratch::<T>(self, shape)
    }

    fn attend(
        &self,
        call: Attention<'_, Device, T>,
        out: ViewMut<'_, Device, T>,
        scratch: &mut DeviceBuffer<T::Acc>,
    ) -> Result<(), CudaError> {
        ops::attend::attend(self, call, out, scratch)
    }

    fn project_backward_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize {
        ops::dense::backward_scratch(rows, features, outputs)
    }

    fn project_backward(
        &self,
        call: ProjectionBackward<'_, Device, T>,
        scratch: &mut DeviceBuffer<T::Acc>,
    ) -> Result<(), CudaError> {
        ops::dense::project_backward(self, call, scratch)
    }

    fn normalize_backward(&self, call: NormalizeBackward<'_, Device, T>) -> Result<(), CudaError> {
        ops::norm::normalize_backward(self, call)
    }

    fn attend_backward_scratch(&self, shape: &AttentionShape) -> usize {
        ops::attend_backward::scratch::<T>(self, shape)
    }

    fn attend_backward(
        &self,
        call: AttentionBackward<'_, Device, T>,
        scratch: &mut DeviceBuffer<T::Acc>,
    ) -> Result<(), CudaError> {
        ops::attend_backward::attend_backward(self, call, scratch)
    }
}
