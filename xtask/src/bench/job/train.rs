//! A training step: the layer's forward pass and all its gradients.

use super::layer::{
    DenseParameters, DenseShapes, Layer, Parameters, input_shapes, out_shapes, scratch_bytes, shape,
};
use super::{Computes, Job, bytes_of, rounded, to_f32};
use crate::data::LayerArrays;
use crate::spec::LayerSizes;
use anyhow::Result;
use attn_core::{Element, Host, HostView, HostViewMut};
use attn_kernels_cpu::Cpu;
use attn_layers::{
    DenseGradientBuffers, GradientBuffers, InputGradients, OwnedResiduals, OwnedScratch,
    ResidualSizes,
};

/// A forward and a backward pass.
pub(super) struct Train<T: Element> {
    layer: Layer<T>,
    /// The gradient of the output.
    d_y: Vec<T>,
    y: Vec<T>,
    d_x: Vec<T>,
    gradients: Parameters<T>,
    residuals: OwnedResiduals<T>,
    scratch: OwnedScratch<T>,
    extra_bytes: usize,
}

impl<T: Element> Train<T>
where
    Cpu: Computes<T>,
{
    pub(super) fn new(sizes: LayerSizes, mut arrays: LayerArrays, cpu: &Cpu) -> Result<Self> {
        let zeros = vec![T::default(); arrays.x.len()];
        let d_y = rounded(core::mem::take(&mut arrays.g));
        let layer = Layer::new(sizes, arrays, cpu)?;
        let scratch = layer.plan.backward_scratch::<T, _>(cpu);
        let residuals = layer.plan.residuals();
        Ok(Self {
            d_y,
            y: zeros.clone(),
            d_x: zeros,
            gradients: Parameters {
                query: DenseParameters::zeros(sizes.features),
                key: DenseParameters::zeros(sizes.features),
                value: DenseParameters::zeros(sizes.features),
                out: DenseParameters::zeros(sizes.features),
            },
            extra_bytes: scratch_bytes::<T>(&scratch) + residual_bytes::<T>(&residuals),
            residuals: OwnedResiduals::new(&residuals)?,
            scratch: OwnedScratch::new(&scratch)?,
            layer,
        })
    }

    fn forward(&mut self) -> Result<()> {
        let Layer {
            cpu,
            layer,
            plan,
            sizes,
            ..
        } = &self.layer;
        layer.forward(
            cpu,
            plan,
            &self.layer.params()?,
            self.layer.inputs()?,
            HostViewMut::new(&mut self.y, &shape(*sizes))?,
            &mut self.residuals.borrow(),
            &mut self.scratch.borrow(),
        )?;
        Ok(())
    }

    fn backward(&mut self) -> Result<()> {
        let Layer {
            cpu,
            layer,
            plan,
            sizes,
            ..
        } = &self.layer;
        let shape = shape(*sizes);
        let input = input_shapes(*sizes);
        let mut gradients = GradientBuffers {
            inputs: InputGradients::SelfAttention {
                x: HostViewMut::new(&mut self.d_x, &shape)?,
            },
            query: self.gradients.query.buffers(&input)?,
            key: self.gradients.key.buffers(&input)?,
            value: self.gradients.value.buffers(&input)?,
            out: self.gradients.out.buffers(&out_shapes(*sizes))?,
            query_ln: None,
            key_ln: None,
        };
        layer.backward(
            cpu,
            plan,
            &self.layer.params()?,
            &self.layer.inputs()?,
            &self.residuals.borrow(),
            HostView::new(&self.d_y, &shape)?,
            &mut gradients,
            &mut self.scratch.borrow(),
        )?;
        Ok(())
    }
}

impl<T: Element> Job for Train<T>
where
    Cpu: Computes<T>,
{
    fn step(&mut self) -> Result<()> {
        self.forward()?;
        self.backward()
    }

    fn fetch(&self) -> Vec<f32> {
        let kernels = [&self.gradients.query.kernel, &self.gradients.out.kernel];
        let mut all = to_f32(&self.d_x);
        all.extend(kernels.into_iter().flat_map(|kernel| to_f32(kernel)));
        all
    }

    fn extra_bytes(&self) -> usize {
        self.extra_bytes
    }
}

impl<T: Element> DenseParameters<T> {
    fn zeros(features: usize) -> Self {
        Self {
            kernel: vec![T::default(); features * features],
            bias: vec![T::default(); features],
        }
    }

    fn buffers(&mut self, shapes: &DenseShapes) -> Result<DenseGradientBuffers<'_, Host, T>> {
        Ok(DenseGradientBuffers {
            kernel: Some(HostViewMut::new(&mut self.kernel, &shapes.kernel)?),
            bias: Some(HostViewMut::new(&mut self.bias, &shapes.bias)?),
        })
    }
}

fn residual_bytes<T: Element>(sizes: &ResidualSizes) -> usize {
    bytes_of::<T>(sizes.q + sizes.k + sizes.v + sizes.context)
        + bytes_of::<T::Acc>(sizes.statistics)
}
