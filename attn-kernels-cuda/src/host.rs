//! The backend on the host's arrays: every operation copies its inputs to the device and its outputs back.

use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::ops;
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, DenseKernel, Element, Error, Features,
    Host, HostView, HostViewMut, Kernels, Layout, Mask, NormalizeBackward, Projection,
    ProjectionBackward, Result, Scalar, View, ViewMut,
};
use std::sync::{Arc, Mutex, PoisonError};

/// A CUDA device that computes on arrays in the host's memory: what a layer takes in place of `Cpu`.
///
/// Every operation copies what it reads to the device and what it writes back, and waits. Arrays that stay on the device are
/// [`Cuda::device`]'s.
#[derive(Debug, Clone)]
pub struct Cuda {
    device: CudaDevice,
    last_error: Arc<Mutex<Option<CudaError>>>,
}

impl Cuda {
    /// The device with this number, counted as the driver counts.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoDevice`], [`CudaError::NoCode`], and the driver's own.
    #[cfg(feature = "driver")]
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        CudaDevice::new(ordinal).map(Self::on)
    }

    /// A device that is open already.
    #[must_use]
    pub fn on(device: CudaDevice) -> Self {
        Self {
            device,
            last_error: Arc::default(),
        }
    }

    /// The device, for arrays in its own memory.
    #[must_use]
    pub const fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// The last error that was not about arguments, with the driver's words, and forgets it. The operations' own error type has no
    /// room for them.
    #[must_use]
    pub fn last_error(&self) -> Option<CudaError> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Runs an operation and keeps what it says when it fails.
    fn keeping<R>(&self, run: impl FnOnce() -> Result<R, CudaError>) -> Result<R> {
        run().map_err(|error| {
            if !matches!(error, CudaError::Core(_)) {
                *self
                    .last_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            }
            error.into()
        })
    }
}

impl Backend for Cuda {
    type Storage = Host;
    type Error = Error;

    fn name(&self) -> &'static str {
        crate::NAME
    }
}

/// A view's elements on the device.
struct Input<T> {
    buffer: DeviceBuffer<T>,
    layout: Layout,
}

impl<T: Scalar> Input<T> {
    fn new(device: &CudaDevice, view: &HostView<'_, T>) -> Result<Self, CudaError> {
        let (elements, layout) = extent(view.layout())?;
        Ok(Self {
            buffer: device.upload(&view.buf()[elements])?,
            layout,
        })
    }

    fn view(&self) -> Result<View<'_, Device, T>> {
        View::with_layout(&self.buffer, self.layout)
    }
}

/// The part of a buffer that a layout reaches, and the layout within it.
fn extent(layout: &Layout) -> Result<(core::ops::Range<usize>, Layout)> {
    let end = layout.end()?;
    let start = layout.offset().min(end);
    let within = Layout::strided(0, *layout.shape(), layout.strides())?;
    Ok((start..end, within))
}

/// A place on the device for an output of the host's.
struct Output<'v, T: Scalar> {
    input: Input<T>,
    view: HostViewMut<'v, T>,
}

impl<'v, T: Scalar> Output<'v, T> {
    /// Elements between those of the view, and those that are added to, must be there: then the buffer is copied in too.
    fn new(
        device: &CudaDevice,
        view: HostViewMut<'v, T>,
        is_read: bool,
    ) -> Result<Self, CudaError> {
        let input = match is_read || !view.layout().is_contiguous() {
            true => Input::new(device, &view.as_view())?,
            false => {
                let (elements, layout) = extent(view.layout())?;
                Input {
                    buffer: device.buffer(elements.len())?,
                    layout,
                }
            }
        };
        Ok(Self { input, view })
    }

    fn on_device(&mut self) -> Result<ViewMut<'_, Device, T>> {
        ViewMut::with_layout(&mut self.input.buffer, self.input.layout)
    }

    /// Waits, and copies back.
    fn finish(mut self, device: &CudaDevice) -> Result<(), CudaError> {
        let (elements, _) = extent(self.view.layout())?;
        if self.view.layout().elements() == 0 {
            return Ok(());
        }
        device.download(&self.input.buffer, &mut self.view.buf_mut()[elements])
    }
}

/// As [`Output::new`], for an output that may not be asked for.
fn optional<'v, T: Scalar>(
    device: &CudaDevice,
    view: Option<HostViewMut<'v, T>>,
) -> Result<Option<Output<'v, T>>, CudaError> {
    view.map(|view| Output::new(device, view, false))
        .transpose()
}

fn on_device<'o, T: Scalar>(
    output: &'o mut Option<Output<'_, T>>,
) -> Result<Option<ViewMut<'o, Device, T>>> {
    output.as_mut().map(Output::on_device).transpose()
}

fn finish<T: Scalar>(output: Option<Output<'_, T>>, device: &CudaDevice) -> Result<(), CudaError> {
    output.map_or(Ok(()), |output| output.finish(device))
}

/// The inputs of a call of attention, on the device.
struct Request<T: Element> {
    query: Input<T>,
    key: Input<T>,
    value: Input<T>,
    bias: Option<Input<T::Acc>>,
    mask: Option<Input<u8>>,
}

impl<T: Element> Request<T> {
    fn new(device: &CudaDevice, call: &Attention<'_, Host, T>) -> Result<Self, CudaError> {
        let (key, value) = call.dense()?;
        let bias = call.scores.bias.as_ref();
        let mask = call.visible.mask.as_ref();
        Ok(Self {
            query: Input::new(device, &call.query)?,
            key: Input::new(device, key)?,
            value: Input::new(device, value)?,
            bias: bias.map(|bias| Input::new(device, bias)).transpose()?,
            mask: mask
                .map(|mask| Input::new(device, mask.view()))
                .transpose()?,
        })
    }

    /// The call on the device, without its outputs.
    fn call(&self, host: &Attention<'_, Host, T>) -> Result<Attention<'_, Device, T>> {
        let bias = self.bias.as_ref().map(Input::view).transpose()?;
        let mask = match (&self.mask, &host.visible.mask) {
            (Some(bytes), Some(mask)) if mask.set_means_keep() => Some(Mask::keep(bytes.view()?)),
            (Some(bytes), Some(_)) => Some(Mask::drop(bytes.view()?)),
            _ => None,
        };
        let call = Attention::new(self.query.view()?, self.key.view()?, self.value.view()?);
        Ok(call
            .with_scale(host.scores.scale)
            .with_bias(bias)
            .with_causal(host.visible.causal)
            .with_mask(mask)
            .with_fully_masked(host.visible.fully_masked)
            .with_dropout(host.dropout))
    }
}

/// No scratch is asked for: the device's own is allocated there.
impl<T: Element> Kernels<T> for Cuda {
    fn project_scratch(&self, _rows: usize, _features: usize, _outputs: usize) -> usize {
        0
    }

    fn project(
        &self,
        call: &Projection<'_, Host, T>,
        out: HostViewMut<'_, T>,
        _scratch: &mut [T::Acc],
    ) -> Result<()> {
        self.keeping(|| {
            let (rows, features, outputs) = call.sizes(out.shape())?;
            let device = &self.device;
            let input = Input::new(device, &call.input)?;
            let kernel = Input::new(device, &call.kernel.plain(crate::NAME)?)?;
            let bias = call.bias.as_ref();
            let bias = bias.map(|bias| Input::new(device, bias)).transpose()?;
            let mut out = Output::new(device, out, false)?;
            let scratch = Kernels::<T>::project_scratch(device, rows, features, outputs);
            let on_device_call = Projection {
                input: input.view()?,
                kernel: DenseKernel::Plain(kernel.view()?),
                bias: bias.as_ref().map(Input::view).transpose()?,
                row_order: call.row_order,
            };
            device.project(
                &on_device_call,
                out.on_device()?,
                &mut device.buffer(scratch)?,
            )?;
            out.finish(device)
        })
    }

    fn normalize(
        &self,
        x: HostViewMut<'_, T>,
        scale: HostView<'_, T::Acc>,
        epsilon: f64,
    ) -> Result<()> {
        self.keeping(|| {
            let device = &self.device;
            let mut x = Output::new(device, x, true)?;
            let scale = Input::new(device, &scale)?;
            device.normalize(x.on_device()?, scale.view()?, epsilon)?;
            x.finish(device)
        })
    }

    fn features(&self) -> Features {
        ops::attend::SUPPORTED
    }

    fn backward_features(&self) -> Features {
        ops::attend::SUPPORTED
    }

    fn attend_scratch(&self, _shape: &AttentionShape) -> usize {
        0
    }

    fn attend(
        &self,
        mut call: Attention<'_, Host, T>,
        out: HostViewMut<'_, T>,
        _scratch: &mut [T::Acc],
    ) -> Result<()> {
        self.keeping(|| {
            call.check_supported(crate::NAME, ops::attend::SUPPORTED)?;
            let shape = call.shape()?;
            let device = &self.device;
            let asked = core::mem::take(&mut call.outputs);
            let request = Request::new(device, &call)?;
            let mut out = Output::new(device, out, false)?;
            let mut weights = optional(device, asked.weights)?;
            let mut statistics = optional(device, asked.statistics)?;
            let on_device_call = request
                .call(&call)?
                .with_weights(on_device(&mut weights)?)
                .with_statistics(on_device(&mut statistics)?);
            let scratch = Kernels::<T>::attend_scratch(device, &shape);
            let mut scratch = device.buffer(scratch)?;
            device.attend(on_device_call, out.on_device()?, &mut scratch)?;
            out.finish(device)?;
            finish(weights, device)?;
            finish(statistics, device)
        })
    }

    fn project_backward_scratch(&self, _rows: usize, _features: usize, _outputs: usize) -> usize {
        0
    }

    fn project_backward(
        &self,
        call: ProjectionBackward<'_, Host, T>,
        _scratch: &mut [T::Acc],
    ) -> Result<()> {
        self.keeping(|| {
            let (rows, features, outputs) = call.sizes()?;
            let device = &self.device;
            let input = Input::new(device, &call.input)?;
            let kernel = Input::new(device, &call.kernel)?;
            let d_out = Input::new(device, &call.d_out)?;
            let accumulate = call.accumulate;
            let mut d_input = call
                .d_input
                .map(|view| Output::new(device, view, accumulate))
                .transpose()?;
            let mut d_kernel = optional(device, call.d_kernel)?;
            let mut d_bias = optional(device, call.d_bias)?;
            let scratch = Kernels::<T>::project_backward_scratch(device, rows, features, outputs);
            let on_device_call = ProjectionBackward {
                input: input.view()?,
                kernel: kernel.view()?,
                d_out: d_out.view()?,
                d_input: on_device(&mut d_input)?,
                accumulate,
                d_kernel: on_device(&mut d_kernel)?,
                d_bias: on_device(&mut d_bias)?,
            };
            device.project_backward(on_device_call, &mut device.buffer(scratch)?)?;
            finish(d_input, device)?;
            finish(d_kernel, device)?;
            finish(d_bias, device)
        })
    }

    fn normalize_backward(&self, call: NormalizeBackward<'_, Host, T>) -> Result<()> {
        self.keeping(|| {
            call.sizes()?;
            let device = &self.device;
            let x = Input::new(device, &call.x)?;
            let scale = Input::new(device, &call.scale)?;
            let mut gradient = Output::new(device, call.gradient, true)?;
            let mut d_scale = optional(device, call.d_scale)?;
            device.normalize_backward(NormalizeBackward {
                x: x.view()?,
                scale: scale.view()?,
                epsilon: call.epsilon,
                gradient: gradient.on_device()?,
                d_scale: on_device(&mut d_scale)?,
            })?;
            gradient.finish(device)?;
            finish(d_scale, device)
        })
    }

    fn attend_backward_scratch(&self, _shape: &AttentionShape) -> usize {
        0
    }

    fn attend_backward(
        &self,
        call: AttentionBackward<'_, Host, T>,
        _scratch: &mut [T::Acc],
    ) -> Result<()> {
        self.keeping(|| {
            call.call
                .check_supported(crate::NAME, ops::attend::SUPPORTED)?;
            let shape = call.shape()?;
            let device = &self.device;
            let request = Request::new(device, &call.call)?;
            let out = Input::new(device, &call.out)?;
            let statistics = Input::new(device, &call.statistics)?;
            let d_out = Input::new(device, &call.d_out)?;
            let mut d_query = Output::new(device, call.d_query, false)?;
            let mut d_key = Output::new(device, call.d_key, false)?;
            let mut d_value = Output::new(device, call.d_value, false)?;
            let mut d_bias = optional(device, call.d_bias)?;
            let scratch = Kernels::<T>::attend_backward_scratch(device, &shape);
            let on_device_call = AttentionBackward {
                call: request.call(&call.call)?,
                out: out.view()?,
                statistics: statistics.view()?,
                d_out: d_out.view()?,
                d_query: d_query.on_device()?,
                d_key: d_key.on_device()?,
                d_value: d_value.on_device()?,
                d_bias: on_device(&mut d_bias)?,
                d_relative: None,
                d_sinks: None,
            };
            device.attend_backward(on_device_call, &mut device.buffer(scratch)?)?;
            d_query.finish(device)?;
            d_key.finish(device)?;
            d_value.finish(device)?;
            finish(d_bias, device)
        })
    }
}
