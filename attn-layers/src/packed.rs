//! Parameters in the order in which a backend's products read them.

use crate::params::{Dense, Params};
use crate::scratch::buffer;
use alloc::vec::Vec;
use attn_core::{
    Backend, DenseKernel, Dims, Element, Error, Host, HostView, Kernels, PackedKernel, Packing,
    Result,
};

/// A layer's parameters with their kernels packed, once, for one backend: products then need not gather them in every call. They
/// keep their dtype. The parameters that they were made from are not needed any more.
///
/// ```
/// use attn_layers::{Cpu, Dense, Dims, HostView, HostViewMut, Inputs, MultiHeadDotProductAttentionF32, OwnedScratch, PackedParams, Params};
///
/// let cpu = Cpu::detect();
/// let dense = Dense { kernel: HostView::new(&[1.0f32], &[1, 1, 1])?.into(), bias: None };
/// let params = Params { query: dense, key: dense, value: dense, out: dense, query_ln: None, key_ln: None };
/// let packed = PackedParams::new(&cpu, &params)?;
///
/// let mut layer = MultiHeadDotProductAttentionF32::new(1);
/// layer.use_bias = false;
/// let shape = Dims::new(&[2, 1])?; // [length, features]
/// let plan = layer.plan(&shape, &shape, &shape)?;
/// let mut scratch = OwnedScratch::new(&plan.scratch::<f32, _>(&cpu))?;
/// let mut y = [0.0f32; 2];
/// let inputs = Inputs::self_attention(HostView::new(&[0.5f32, 0.5], &[2, 1])?);
/// let out = HostViewMut::new(&mut y, &[2, 1])?;
/// layer.apply(&cpu, &plan, &packed.borrow()?, inputs, out, &mut scratch.borrow())?;
/// assert_eq!(y, [0.5, 0.5]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PackedParams<T: Element> {
    query: PackedDense<T>,
    key: PackedDense<T>,
    value: PackedDense<T>,
    out: PackedDense<T>,
    query_ln: Option<Vec<T::Acc>>,
    key_ln: Option<Vec<T::Acc>>,
}

/// A dense layer with its kernel packed.
#[derive(Debug, Clone)]
struct PackedDense<T: Element> {
    kernel: Vec<T>,
    packing: Packing,
    features: usize,
    outputs: usize,
    bias: Option<(Vec<T>, Dims)>,
}

impl<T: Element> PackedParams<T> {
    /// Packs the kernels for `backend`, and copies the rest.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the backend does not pack, or a kernel is packed already; [`Error::Rank`], [`Error::TooLarge`], and the
    /// backend's own.
    pub fn new<B>(backend: &B, params: &Params<'_, Host, T>) -> Result<Self, B::Error>
    where
        B: Kernels<T> + Backend<Storage = Host>,
    {
        let scale = |scale: &Option<HostView<'_, T::Acc>>| scale.as_ref().map(copied).transpose();
        Ok(Self {
            query: PackedDense::new(backend, &params.query, 1)?,
            key: PackedDense::new(backend, &params.key, 1)?,
            value: PackedDense::new(backend, &params.value, 1)?,
            out: PackedDense::new(backend, &params.out, 2)?,
            query_ln: scale(&params.query_ln)?,
            key_ln: scale(&params.key_ln)?,
        })
    }

    /// The parameters, borrowed, as a layer takes them.
    ///
    /// # Errors
    ///
    /// None that a value made by [`PackedParams::new`] can give.
    pub fn borrow(&self) -> Result<Params<'_, Host, T>> {
        Ok(Params {
            query: self.query.borrow()?,
            key: self.key.borrow()?,
            value: self.value.borrow()?,
            out: self.out.borrow()?,
            query_ln: vector(self.query_ln.as_deref())?,
            key_ln: vector(self.key_ln.as_deref())?,
        })
    }
}

fn vector<A: Element>(values: Option<&[A]>) -> Result<Option<HostView<'_, A>>> {
    values
        .map(|values| HostView::new(values, &[values.len()]))
        .transpose()
}

/// The elements of an array in row-major order.
fn copied<A: Element>(view: &HostView<'_, A>) -> Result<Vec<A>> {
    let layout = view.layout();
    let mut copy = buffer(layout.elements())?;
    for (n, to) in copy.iter_mut().enumerate() {
        *to = view.buf()[layout.base(layout.shape().rank(), n)];
    }
    Ok(copy)
}

impl<T: Element> PackedDense<T> {
    /// `split` axes of the kernel are features, the others outputs.
    fn new<B>(backend: &B, dense: &Dense<'_, Host, T>, split: usize) -> Result<Self, B::Error>
    where
        B: Kernels<T> + Backend<Storage = Host>,
    {
        let kernel = dense.kernel.plain("packing")?;
        let (features, outputs) = kernel.shape().split_at_checked(split).ok_or(Error::Rank {
            argument: "kernel",
            got: kernel.shape().rank(),
            wanted: "[features, heads, head_dim], of out [heads, head_dim, features]",
        })?;
        let features = Dims::new(features)?.elements()?;
        let outputs = Dims::new(outputs)?.elements()?;
        let packing = backend
            .packing(features, outputs)
            .ok_or(Error::Unsupported {
                backend: backend.name(),
                feature: "packed kernels",
                instead: "Give the parameters as they lie",
            })?;
        let mut packed = buffer(packing.elements)?;
        backend.pack(kernel.reshape(&[features, outputs])?, &mut packed)?;
        let bias = dense.bias.as_ref();
        let bias = bias.map(|bias| Ok::<_, Error>((copied(bias)?, *bias.shape())));
        Ok(Self {
            kernel: packed,
            packing,
            features,
            outputs,
            bias: bias.transpose()?,
        })
    }

    fn borrow(&self) -> Result<Dense<'_, Host, T>> {
        let kernel = PackedKernel::new(
            self.kernel.as_slice(),
            self.features,
            self.outputs,
            self.packing,
        )?;
        let bias = self.bias.as_ref();
        let bias = bias.map(|(values, shape)| HostView::new(values.as_slice(), shape));
        Ok(Dense {
            kernel: DenseKernel::Packed(kernel),
            bias: bias.transpose()?,
        })
    }
}
