//! A user's product in the place of a dense layer's own, forward and backward.

use crate::bind::DenseParams;
use crate::hooks::{DotGeneral, DotGeneralCls, gradients};
use crate::layer::MultiHeadDotProductAttention;
use crate::stage_backward::{DenseCall, DenseGradients, add, cast, cast_like};
use crate::tensor::{Tensor, TensorView};
use alloc::{boxed::Box, vec::Vec};
use attn_core::{DType, Dims, Error, Result};

/// The fields of a layer that replace a product.
pub(crate) struct Product<'h> {
    pub(crate) field: &'static str,
    factory: Option<DotGeneralCls<'h>>,
    function: Option<&'h dyn DotGeneral>,
}

impl<'h> Product<'h> {
    /// For `query`, `key` and `value`.
    pub(crate) fn of_inputs(layer: &MultiHeadDotProductAttention<'h>) -> Self {
        Self {
            field: "qkv_dot_general",
            factory: layer.qkv_dot_general_cls,
            function: layer.qkv_dot_general,
        }
    }

    /// For `out`.
    pub(crate) fn of_out(layer: &MultiHeadDotProductAttention<'h>) -> Self {
        Self {
            field: "out_dot_general",
            factory: layer.out_dot_general_cls,
            function: layer.out_dot_general,
        }
    }

    /// The user's product, if there is one. A factory, which is called now, wins over a function.
    pub(crate) fn chosen(&self) -> Option<Chosen<'h>> {
        let made = self.factory.map(|factory| Chosen::Made(factory()));
        made.or(self.function.map(Chosen::Given))
    }
}

/// A product that a factory made, or one that was given.
pub(crate) enum Chosen<'h> {
    Made(Box<dyn DotGeneral + 'h>),
    Given(&'h dyn DotGeneral),
}

impl<'h> core::ops::Deref for Chosen<'h> {
    type Target = dyn DotGeneral + 'h;
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Made(made) => made.as_ref(),
            Self::Given(given) => *given,
        }
    }
}

/// A dense layer by the user's product: operands are cast before it, the bias is added after it.
pub(crate) fn run(
    function: &dyn DotGeneral,
    field: &'static str,
    dense: &DenseParams<'_>,
    dtype: DType,
    input: &TensorView<'_>,
) -> Result<Tensor> {
    let input = input.to_scalar(dtype.scalar())?;
    let kernel = dense.kernel.to_scalar(dtype.scalar())?;
    let product = function.call(input.view(), kernel.view())?;
    let rows = &input.shape()[..input.shape().rank() - 1];
    if *product.shape() != Dims::new(rows)?.push(kernel.shape()[1])? {
        return Err(Error::Hook {
            hook: field,
            reason: "its result is not [rows..., outputs]",
        });
    }
    match &dense.bias {
        None => Ok(product),
        Some(bias) => add_bias(&product, &bias.to_scalar(dtype.scalar())?),
    }
}

/// `product + bias` over the last axis, in what JAX promotes the two to.
fn add_bias(product: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let dtype = product.scalar().promote(bias.scalar());
    let bias = bias.to_vec_f64();
    let sums = product
        .view()
        .iter_f64()
        .zip(bias.iter().cycle())
        .map(|(x, b)| x + b)
        .collect::<Vec<_>>();
    Tensor::from_f64s(dtype.scalar(), product.shape(), sums)
}

/// The gradients of [`run`]. That of the input is added to `earlier`, what the input's other uses gave.
pub(crate) fn run_backward(
    function: &dyn DotGeneral,
    field: &'static str,
    dtype: DType,
    call: &DenseCall<'_>,
    earlier: Option<Tensor>,
) -> Result<DenseGradients> {
    let input = call.input.to_scalar(dtype.scalar())?;
    let kernel = call.kernel.to_scalar(dtype.scalar())?;
    let (lhs, rhs) = (input.view(), kernel.view());
    let given = function.vjp(lhs, rhs, call.d_out);
    let [d_input, d_kernel] = gradients(field, given, [&lhs, &rhs])?;
    let bias = match &call.bias {
        Some(bias) => Some(sum_of_rows(&call.d_out, bias)?),
        None => None,
    };
    Ok(DenseGradients {
        input: add(earlier, cast_like(d_input, &call.input)?)?,
        kernel: cast(d_kernel, call.kernel.scalar())?,
        bias,
    })
}

fn sum_of_rows(d_out: &TensorView<'_>, bias: &TensorView<'_>) -> Result<Tensor> {
    let outputs = bias.elements();
    let mut sums = crate::tensor::filled(0.0, outputs, bias.shape())?;
    for (index, gradient) in d_out.iter_f64().enumerate() {
        sums[index % outputs] += gradient;
    }
    Tensor::from_f64s(bias.scalar(), bias.shape(), sums)
}
