//! The gradients of the operations of a layer on arrays whose dtype is known only at run time. A gradient leaves in the dtype of
//! its array.

use crate::scratch::buffer;
use crate::stage::{HostKernels, Operands, Options, view_mut, with_dtype};
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{
    AttentionBackward, AttentionShape, Backend, DType, Dims, Element, Error, Host, HostView,
    Kernels, NormalizeBackward, ProjectionBackward, Result, Scalar, ScalarType, bf16, f16,
};

/// A dense layer as its backward pass sees it.
pub(crate) struct DenseCall<'a> {
    /// `[rows..., features]`.
    pub(crate) input: TensorView<'a>,
    /// `[features, outputs]`.
    pub(crate) kernel: TensorView<'a>,
    /// `[outputs]`.
    pub(crate) bias: Option<TensorView<'a>>,
    /// `[rows..., outputs]`.
    pub(crate) d_out: TensorView<'a>,
}

/// The gradients of a dense layer, shaped and typed like its arrays.
pub(crate) struct DenseGradients {
    pub(crate) input: Tensor,
    pub(crate) kernel: Tensor,
    pub(crate) bias: Option<Tensor>,
}

/// The gradients of a dense layer that computed in `dtype`. That of the input is added to `earlier`, what the input's other uses gave.
pub(crate) fn project<B: HostKernels>(
    backend: &B,
    dtype: DType,
    call: &DenseCall<'_>,
    earlier: Option<Tensor>,
) -> Result<DenseGradients> {
    let (in_place, apart) = match earlier {
        Some(sum) if sum.scalar() == dtype.scalar() => (Some(sum), None),
        other => (None, other),
    };
    let gradients = with_dtype!(dtype, project_as(backend, call, in_place))?;
    let input = cast_like(gradients.input, &call.input)?;
    let bias = match (gradients.bias, &call.bias) {
        (Some(gradient), Some(bias)) => Some(cast(gradient, bias.scalar())?),
        _ => None,
    };
    Ok(DenseGradients {
        input: add(apart, input)?,
        kernel: cast(gradients.kernel, call.kernel.scalar())?,
        bias,
    })
}

fn project_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    call: &DenseCall<'_>,
    sum: Option<Tensor>,
) -> Result<DenseGradients> {
    let accumulate = sum.is_some();
    let mut d_input = match sum {
        Some(sum) => sum,
        None => Tensor::zeros(T::SCALAR, call.input.shape())?,
    };
    let mut d_kernel = Tensor::zeros(T::SCALAR, call.kernel.shape())?;
    let mut d_bias = match &call.bias {
        Some(bias) => Some(Tensor::zeros(T::SCALAR, bias.shape())?),
        None => None,
    };
    // There may be more empty rows than a kernel could ever count.
    if !call.d_out.shape().contains(&0) {
        let (input, kernel) = (call.input.cast::<T>()?, call.kernel.cast::<T>()?);
        let d_out = call.d_out.cast::<T>()?;
        let request = ProjectionBackward {
            input: HostView::new(&input, call.input.shape())?,
            kernel: HostView::new(&kernel, call.kernel.shape())?,
            d_out: HostView::new(&d_out, call.d_out.shape())?,
            d_input: Some(view_mut(&mut d_input)?),
            accumulate,
            d_kernel: Some(view_mut(&mut d_kernel)?),
            d_bias: d_bias.as_mut().map(view_mut).transpose()?,
        };
        let (rows, features, outputs) = request.sizes()?;
        let mut scratch: Vec<T::Acc> =
            buffer(backend.project_backward_scratch(rows, features, outputs))?;
        backend.project_backward(request, &mut scratch)?;
    }
    Ok(DenseGradients {
        input: d_input,
        kernel: d_kernel,
        bias: d_bias,
    })
}

/// From the gradient of a layer norm's result to those of `x` and of its scale, of a norm that computed in `dtype`.
pub(crate) fn normalize<B: HostKernels>(
    backend: &B,
    dtype: DType,
    x: &TensorView<'_>,
    scale: &TensorView<'_>,
    gradient: Tensor,
) -> Result<[Tensor; 2]> {
    let [d_x, d_scale] = with_dtype!(dtype, normalize_as(backend, x, scale, gradient))?;
    Ok([cast(d_x, x.scalar())?, cast(d_scale, scale.scalar())?])
}

fn normalize_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    x: &TensorView<'_>,
    scale: &TensorView<'_>,
    gradient: Tensor,
) -> Result<[Tensor; 2]> {
    let mut gradient = cast(gradient, T::SCALAR)?;
    let mut d_scale = Tensor::zeros(<T::Acc as Scalar>::SCALAR, scale.shape())?;
    let (x_data, scale_data) = (x.cast::<T>()?, scale.cast::<T::Acc>()?);
    backend.normalize_backward(NormalizeBackward {
        x: HostView::new(&x_data, x.shape())?,
        scale: HostView::new(&scale_data, scale.shape())?,
        epsilon: crate::typed::EPSILON,
        gradient: view_mut(&mut gradient)?,
        d_scale: Some(view_mut(&mut d_scale)?),
    })?;
    Ok([gradient, d_scale])
}

/// What a forward pass of attention gave, and the gradient of its output.
pub(crate) struct Given<'a> {
    pub(crate) out: TensorView<'a>,
    pub(crate) statistics: TensorView<'a>,
    pub(crate) d_out: TensorView<'a>,
}

/// The gradients of an attention call, in the dtype it computed in; that of the bias in its accumulator's.
pub(crate) struct AttentionParts {
    pub(crate) heads: [Tensor; 3],
    pub(crate) bias: Option<Tensor>,
}

/// The gradients of the fused attention in `dtype`.
pub(crate) fn attend<B: HostKernels>(
    backend: &B,
    dtype: DType,
    operands: [&TensorView<'_>; 3],
    options: &Options<'_>,
    given: &Given<'_>,
) -> Result<AttentionParts> {
    with_dtype!(dtype, attend_as(backend, operands, options, given))
}

fn attend_as<T: Element, B: Kernels<T> + Backend<Storage = Host, Error = Error>>(
    backend: &B,
    operands: [&TensorView<'_>; 3],
    options: &Options<'_>,
    given: &Given<'_>,
) -> Result<AttentionParts> {
    let [query, key, value] = operands.map(TensorView::shape);
    let shape = AttentionShape::of(query, key, value)?;
    let zeros = |shape: &Dims| Tensor::zeros(T::SCALAR, shape);
    let [mut d_query, mut d_key, mut d_value] = [zeros(query)?, zeros(key)?, zeros(value)?];
    let mut d_bias = match options.bias {
        Some(bias) => Some(Tensor::zeros(<T::Acc as Scalar>::SCALAR, bias.shape())?),
        None => None,
    };
    // Without output or keys nothing flows back, and a backend need not count what is empty.
    if !given.d_out.shape().contains(&0) && shape.key_length > 0 {
        let operands = Operands::<T>::new(operands, options)?;
        let (out, d_out) = (given.out.cast::<T>()?, given.d_out.cast::<T>()?);
        let statistics = given.statistics.cast::<T::Acc>()?;
        let request = AttentionBackward {
            call: operands.call(options)?,
            out: HostView::new(&out, given.out.shape())?,
            statistics: HostView::new(&statistics, given.statistics.shape())?,
            d_out: HostView::new(&d_out, given.d_out.shape())?,
            d_query: view_mut(&mut d_query)?,
            d_key: view_mut(&mut d_key)?,
            d_value: view_mut(&mut d_value)?,
            d_bias: d_bias.as_mut().map(view_mut).transpose()?,
            d_relative: None,
            d_sinks: None,
        };
        let mut scratch: Vec<T::Acc> = buffer(backend.attend_backward_scratch(&shape))?;
        backend.attend_backward(request, &mut scratch)?;
    }
    Ok(AttentionParts {
        heads: [d_query, d_key, d_value],
        bias: d_bias,
    })
}

/// A gradient in the dtype of its array.
pub(crate) fn cast(gradient: Tensor, scalar: ScalarType) -> Result<Tensor> {
    if gradient.scalar() == scalar {
        return Ok(gradient);
    }
    gradient.view().to_scalar(scalar)
}

/// A gradient in the dtype of its array. Integers have none: what would be theirs stays as it is, and is left out of the result.
pub(crate) fn cast_like(gradient: Tensor, array: &TensorView<'_>) -> Result<Tensor> {
    match array.scalar().float() {
        Some(_) => cast(gradient, array.scalar()),
        None => Ok(gradient),
    }
}

/// The gradient of an array that has one.
pub(crate) fn of_float(gradient: Tensor, array: &TensorView<'_>) -> Option<Tensor> {
    array.scalar().float().map(|_| gradient)
}

/// The sum of the gradients of an array's uses.
pub(crate) fn add(sum: Option<Tensor>, more: Tensor) -> Result<Tensor> {
    let Some(sum) = sum else { return Ok(more) };
    let (left, right) = (sum.view(), more.view());
    let sums = left.iter_f64().zip(right.iter_f64()).map(|(a, b)| a + b);
    Tensor::from_f64s(more.scalar(), more.shape(), sums)
}

/// Only floats have gradients.
pub(crate) fn check_float(argument: &'static str, view: &TensorView<'_>) -> Result<()> {
    match view.scalar().float() {
        Some(_) => Ok(()),
        None => Err(Error::DTypeMismatch {
            argument,
            got: view.scalar(),
            wanted: ScalarType::F32,
        }),
    }
}
