//! `flax.linen.DenseGeneral` by a backend's products.

use anyhow::{Result, ensure};
use attn_layers::core::{DenseKernel, Element, Host, Kernels, Packing, Projection, RowOrder};
use attn_layers::io::Subtree;
use attn_layers::{Dims, HostKernels, HostView, HostViewMut, PackedKernel};

use crate::nn::values;

/// A dense layer's parameters in one dtype, packed if the backend packs.
pub(crate) struct Dense<T> {
    kernel: Vec<T>,
    packing: Option<Packing>,
    /// Shape of the kernel as Flax has it.
    shape: Dims,
    features: usize,
    outputs: usize,
    bias: Vec<T>,
    bias_shape: Dims,
}

impl<T: Element> Dense<T> {
    /// `name` of the parameters, whose kernel has the axes `inputs` and `outputs`.
    pub(crate) fn load<B: HostKernels + Kernels<T>>(
        backend: &B,
        params: &Subtree<'_, '_>,
        name: &str,
        inputs: &[usize],
        outputs: &[usize],
    ) -> Result<Self> {
        let path = |part: &str| format!("{name}/{part}");
        let (kernel, bias) = (
            values::<T>(params, &path("kernel"))?,
            values::<T>(params, &path("bias"))?,
        );
        let (inputs, bias_shape) = (Dims::new(inputs)?, Dims::new(outputs)?);
        let (features, outputs) = (inputs.elements()?, bias_shape.elements()?);
        ensure!(
            kernel.len() == features * outputs && bias.len() == outputs,
            "{name}: not [{features}, {outputs}] and [{outputs}]"
        );
        let packing = Kernels::<T>::packing(backend, features, outputs);
        Ok(Self {
            kernel: match packing {
                None => kernel,
                Some(packing) => {
                    let mut packed = vec![T::default(); packing.elements];
                    let kernel = HostView::new(&kernel, &[features, outputs])?;
                    Kernels::<T>::pack(backend, kernel, &mut packed)?;
                    packed
                }
            },
            packing,
            shape: inputs.concat(&bias_shape)?,
            features,
            outputs,
            bias,
            bias_shape,
        })
    }

    fn kernel(&self, shape: &Dims) -> Result<DenseKernel<'_, Host, T>> {
        Ok(match self.packing {
            None => HostView::new(&self.kernel, shape)?.into(),
            Some(packing) => {
                PackedKernel::new(self.kernel.as_slice(), self.features, self.outputs, packing)?
                    .into()
            }
        })
    }

    /// As an attention layer takes it.
    pub(crate) fn borrow(&self) -> Result<attn_layers::Dense<'_, Host, T>> {
        Ok(attn_layers::Dense {
            kernel: self.kernel(&self.shape)?,
            bias: Some(HostView::new(&self.bias, &self.bias_shape)?),
        })
    }

    /// `x · kernel + bias` for every row of `x`. A row has the same bits beside any others.
    pub(crate) fn apply<B: HostKernels + Kernels<T>>(
        &self,
        backend: &B,
        x: &[T],
    ) -> Result<Vec<T>> {
        let rows = x.len() / self.features;
        let call = Projection {
            input: HostView::new(x, &[rows, self.features])?,
            kernel: self.kernel(&Dims::new(&[self.features, self.outputs])?)?,
            bias: Some(HostView::new(&self.bias, &[self.outputs])?),
            row_order: RowOrder::Fixed,
        };
        let mut out = vec![T::default(); rows * self.outputs];
        let size = Kernels::<T>::project_scratch(backend, rows, self.features, self.outputs);
        let mut scratch = vec![T::Acc::default(); size];
        let to = HostViewMut::new(&mut out, &[rows, self.outputs])?;
        Kernels::<T>::project(backend, &call, to, &mut scratch)?;
        Ok(out)
    }
}
