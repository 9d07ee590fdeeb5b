//! The operations of a layer on arrays whose dtype is known only at run time: each casts its operands to the dtype it is
//! told (borrowing where nothing changes) and calls the backend's kernel of that dtype.

use crate::scratch::buffer;
use crate::tensor::{Tensor, TensorView};
use alloc::{borrow::Cow, vec::Vec};
use attn_core::{
    Attention, AttentionShape, Backend, Causal, DType, Dims, Dropout, Element, Error, Flat,
    FullyMasked, Host, HostView, HostViewMut, Kernels, Mask, Positions, Projection, Result, Rotary,
    RotaryTable, Rotate, RowOrder, ScalarType, bf16, f16,
};

/// A backend on the host's memory that has kernels for every dtype: what Flax's layer needs, whose dtypes are known only at
/// run time.
pub trait HostKernels:
    Backend<Storage = Host, Error = Error> + Kernels<f32> + Kernels<f64> + Kernels<f16> + Kernels<bf16>
{
}

impl<B> HostKernels for B where
    B: Backend<Storage = Host, Error = Error>
        + Kernels<f32>
        + Kernels<f64>
        + Kernels<f16>
        + Kernels<bf16>
{
}

/// Calls a function generic over the element type with the one that a [`DType`] names.
macro_rules! with_dtype {
    ($dtype:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $dtype {
            DType::F32 => $function::<f32, _>($($argument),*),
            DType::F64 => $function::<f64, _>($($argument),*),
            DType::F16 => $function::<f16, _>($($argument),*),
            DType::BF16 => $function::<bf16, _>($($argument),*),
        }
    };
}

pub(crate) use with_dtype;

/// `promote_dtype`: the module's dtype if it is set, else what JAX promotes the arrays to: their floats among each other,
/// or `float32` where there is none.
pub(crate) fn promote(dtype: Option<DType>, arrays: impl IntoIterator<Item = ScalarType>) -> DType {
    dtype.unwrap_or_else(|| {
        arrays
            .into_iter()
            .filter_map(ScalarType::float)
            .reduce(DType::promote)
            .unwrap_or(DType::F32)
    })
}

/// `x · kernel + bias` in `dtype`, `x` `[..., features]`, `kernel` `[features, outputs]`.
pub(crate) fn project<B: HostKernels>(
    backend: &B,
    dtype: DType,
    row_order: RowOrder,
    x: &TensorView<'_>,
    kernel: &TensorView<'_>,
    bias: Option<&TensorView<'_>>,
) -> Result<Tensor> {
    with_dtype!(dtype, project_as(backend, row_order, x, kernel, bias))
}

fn project_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    row_order: RowOrder,
    x: &TensorView<'_>,
    kernel: &TensorView<'_>,
    bias: Option<&TensorView<'_>>,
) -> Result<Tensor> {
    let (&[features, outputs], Some((_, rows))) =
        (kernel.shape().as_slice(), x.shape().split_last())
    else {
        return Err(Error::Rank {
            argument: "kernel",
            got: kernel.shape().rank(),
            wanted: "[features, outputs]",
        });
    };
    let shape = Dims::new(rows)?.push(outputs)?;
    let rows = Dims::new(rows)?.elements()?;
    let mut out = Tensor::zeros(T::SCALAR, &shape)?;
    if shape.contains(&0) {
        // There may be more empty rows than a kernel could ever count.
        return Ok(out);
    }
    let (x_data, kernel_data) = (x.cast::<T>()?, kernel.cast::<T>()?);
    let bias_data = bias.map(|bias| bias.cast::<T>()).transpose()?;
    let call = Projection {
        input: HostView::new(&x_data, x.shape())?,
        kernel: HostView::new(&kernel_data, kernel.shape())?.into(),
        bias: bias_data
            .as_ref()
            .map(|bias| HostView::new(bias, &[outputs]))
            .transpose()?,
        row_order,
    };
    let mut scratch: Vec<T::Acc> = buffer(backend.project_scratch(rows, features, outputs))?;
    backend.project(&call, view_mut(&mut out)?, &mut scratch)?;
    Ok(out)
}

/// Layer norm of the last axis in `dtype`.
pub(crate) fn normalize<B: HostKernels>(
    backend: &B,
    dtype: DType,
    x: Tensor,
    scale: &TensorView<'_>,
) -> Result<Tensor> {
    with_dtype!(dtype, normalize_as(backend, x, scale))
}

fn normalize_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    mut x: Tensor,
    scale: &TensorView<'_>,
) -> Result<Tensor> {
    if x.scalar() != T::SCALAR {
        x = x.to_dtype(T::DTYPE)?;
    }
    // The scale is not rounded to the computation dtype: Flax multiplies in the statistics' type.
    let scale = scale.cast::<T::Acc>()?;
    backend.normalize(
        view_mut::<T>(&mut x)?,
        HostView::new(&scale, &[scale.len()])?,
        crate::typed::EPSILON,
    )?;
    Ok(x)
}

/// How the rows of an array turn.
#[derive(Clone, Copy)]
pub(crate) struct Turning<'a> {
    pub(crate) rotary: Rotary,
    pub(crate) positions: Positions<'a, Host>,
    /// Cosines and sines.
    pub(crate) table: Option<[TensorView<'a>; 2]>,
    pub(crate) inverse: bool,
}

/// Rotary embedding of an array of floats, `[batch..., length, heads, depth]`, in its own dtype.
pub(crate) fn rotate<B: HostKernels>(
    backend: &B,
    x: Tensor,
    turning: &Turning<'_>,
) -> Result<Tensor> {
    let dtype = x
        .scalar()
        .float()
        .ok_or(Error::NotInexact { got: x.scalar() })?;
    with_dtype!(dtype, rotate_as(backend, x, turning))
}

fn rotate_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    mut x: Tensor,
    turning: &Turning<'_>,
) -> Result<Tensor> {
    let table = match &turning.table {
        None => None,
        Some([cos, sin]) => Some((cos.cast::<T::Acc>()?, sin.cast::<T::Acc>()?)),
    };
    let call = Rotate {
        x: view_mut::<T>(&mut x)?,
        rotary: turning.rotary,
        positions: turning.positions,
        table: table.as_ref().map(|(cos, sin)| RotaryTable {
            cos: Flat::new(&**cos),
            sin: Flat::new(&**sin),
        }),
        inverse: turning.inverse,
    };
    call.shape()?;
    // There may be more empty rows than a kernel could ever count.
    if !call.x.shape().contains(&0) {
        backend.rotate(call)?;
    }
    Ok(x)
}

/// The parts of an attention call beside query, key and value.
#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) bias: Option<&'a TensorView<'a>>,
    pub(crate) keep: Option<&'a Keep>,
    pub(crate) causal: Option<Causal>,
    pub(crate) dropout: Option<Dropout>,
}

/// What is asked for beside the output.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) weights: bool,
    pub(crate) statistics: bool,
}

/// Output of the attention core, weights and statistics of the rows in accumulator precision.
pub(crate) struct Attended {
    pub(crate) out: Tensor,
    pub(crate) weights: Option<Tensor>,
    pub(crate) statistics: Option<Tensor>,
}

/// The fused attention in `dtype`.
pub(crate) fn attend<B: HostKernels>(
    backend: &B,
    dtype: DType,
    operands: [&TensorView<'_>; 3],
    options: &Options<'_>,
    wanted: Wanted,
) -> Result<Attended> {
    with_dtype!(dtype, attend_as(backend, operands, options, wanted))
}

fn attend_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    operands: [&TensorView<'_>; 3],
    options: &Options<'_>,
    wanted: Wanted,
) -> Result<Attended> {
    let [query, key, value] = operands.map(TensorView::shape);
    let shape = AttentionShape::of(query, key, value)?;
    let out_shape = shape.output(query)?;
    let extra = |wanted, shape: Dims| {
        let scalar = <T::Acc as attn_core::Scalar>::SCALAR;
        match wanted {
            true => Tensor::zeros(scalar, &shape).map(Some),
            false => Ok(None),
        }
    };
    let mut out = Tensor::zeros(T::SCALAR, &out_shape)?;
    let mut weights = extra(wanted.weights, shape.weights(query)?)?;
    let mut statistics = extra(wanted.statistics, shape.statistics(query)?)?;
    let is_empty = |tensor: &Option<Tensor>| {
        let tensor = tensor.as_ref();
        tensor.is_none_or(|tensor| tensor.shape().contains(&0))
    };
    if out_shape.contains(&0) && is_empty(&weights) && is_empty(&statistics) {
        return Ok(Attended {
            out,
            weights,
            statistics,
        });
    }
    let operands = Operands::<T>::new(operands, options)?;
    let call = operands
        .call(options)?
        .with_weights(weights.as_mut().map(view_mut).transpose()?)
        .with_statistics(statistics.as_mut().map(view_mut).transpose()?);
    let mut scratch: Vec<T::Acc> = buffer(backend.attend_scratch(&shape))?;
    backend.attend(call, view_mut(&mut out)?, &mut scratch)?;
    Ok(Attended {
        out,
        weights,
        statistics,
    })
}

/// What an attention call reads, cast to its dtype.
pub(crate) struct Operands<'a, T: Element> {
    parts: [(Cow<'a, [T]>, Dims); 3],
    bias: Option<(Cow<'a, [T::Acc]>, Dims)>,
}

impl<'a, T: Element> Operands<'a, T> {
    pub(crate) fn new(
        [query, key, value]: [&TensorView<'a>; 3],
        options: &Options<'a>,
    ) -> Result<Self> {
        let cast = |view: &TensorView<'a>| Ok::<_, Error>((view.cast::<T>()?, *view.shape()));
        let bias = |bias: &TensorView<'a>| Ok::<_, Error>((bias.cast::<T::Acc>()?, *bias.shape()));
        Ok(Self {
            parts: [cast(query)?, cast(key)?, cast(value)?],
            bias: options.bias.map(bias).transpose()?,
        })
    }

    /// The call, its outputs not asked for yet.
    pub(crate) fn call<'b>(&'b self, options: &Options<'b>) -> Result<Attention<'b, Host, T>> {
        let [query, key, value] = &self.parts;
        let bias = self.bias.as_ref();
        let call = Attention::new(
            HostView::new(&query.0, &query.1)?,
            HostView::new(&key.0, &key.1)?,
            HostView::new(&value.0, &value.1)?,
        )
        .with_bias(
            bias.map(|(data, shape)| HostView::new(data, shape))
                .transpose()?,
        )
        .with_mask(options.keep.map(Keep::mask).transpose()?)
        .with_causal(options.causal)
        .with_fully_masked(FullyMasked::MeanOfValues)
        .with_dropout(options.dropout);
        Ok(call)
    }
}

/// The elements of a tensor that was made with this type.
pub(crate) fn elements<T: attn_core::Scalar>(tensor: &mut Tensor) -> Result<&mut [T]> {
    let got = tensor.scalar();
    tensor.as_mut_slice().ok_or(Error::DTypeMismatch {
        argument: "tensor",
        got,
        wanted: T::SCALAR,
    })
}

/// A tensor that was made with this type, to be written.
pub(crate) fn view_mut<T: attn_core::Scalar>(tensor: &mut Tensor) -> Result<HostViewMut<'_, T>> {
    let shape = *tensor.shape();
    HostViewMut::new(elements(tensor)?, &shape)
}

/// A mask of any dtype as bytes: 1 where it is not 0.
pub(crate) struct Keep {
    bytes: Vec<u8>,
    shape: Dims,
}

impl Keep {
    pub(crate) fn new(mask: &TensorView<'_>) -> Result<Self> {
        let mut bytes = crate::tensor::filled(0u8, mask.elements(), mask.shape())?;
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from(mask.is_nonzero(index));
        }
        Ok(Self {
            bytes,
            shape: *mask.shape(),
        })
    }

    fn mask(&self) -> Result<Mask<'_, Host>> {
        Ok(Mask::keep(HostView::new(&self.bytes, &self.shape)?))
    }
}
