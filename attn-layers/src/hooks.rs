//! A user's own code in the place of a part of the layer: `attention_fn`, the dense layers' `dot_general`, the einsums.

use crate::layer::Precision;
use crate::random::Convention;
use crate::tensor::{Tensor, TensorView};
use alloc::boxed::Box;
use attn_core::{DType, Error, Result};

/// What `attention_fn` is given beside query, key and value.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct AttentionArgs<'a> {
    /// The mask, of any dtype; not 0 means that the query sees the key.
    pub mask: Option<TensorView<'a>>,
    /// The words of the dropout key: the call's, or else drawn from its streams if there is dropout.
    pub dropout_rng: Option<[u32; 2]>,
    /// The rate of dropout.
    pub dropout_rate: f64,
    /// Whether one dropout mask serves all batch entries and heads.
    pub broadcast_dropout: bool,
    /// How the key's numbers are drawn.
    pub convention: Convention,
    /// Whether there is no dropout.
    pub deterministic: bool,
    /// The module's dtype.
    pub dtype: Option<DType>,
    /// The module's precision.
    pub precision: Option<Precision>,
    /// Whether softmax is to run in `float32`.
    pub force_fp32_for_softmax: bool,
}

/// A replacement of `dot_product_attention` in the layer.
pub trait AttentionFn {
    /// From query `[batch..., query_length, num_heads, head_dim]`, key and value `[batch..., key_length, num_kv_heads, head_dim]` to
    /// `[batch..., query_length, num_heads, head_dim]`.
    ///
    /// # Errors
    ///
    /// Its own, [`Error::Hook`].
    fn call(
        &self,
        query: TensorView<'_>,
        key: TensorView<'_>,
        value: TensorView<'_>,
        args: &AttentionArgs<'_>,
    ) -> Result<Tensor>;

    /// From the gradient of what [`AttentionFn::call`] gave, of its shape and dtype, to those of query, key and value. `None`, the
    /// provided answer and that of a closure, is a core without gradients: then the backward pass is [`Error::Unsupported`].
    ///
    /// # Errors
    ///
    /// Its own, [`Error::Hook`].
    fn vjp(
        &self,
        query: TensorView<'_>,
        key: TensorView<'_>,
        value: TensorView<'_>,
        args: &AttentionArgs<'_>,
        d_out: TensorView<'_>,
    ) -> Result<Option<[Tensor; 3]>> {
        let _ = (query, key, value, args, d_out);
        Ok(None)
    }
}

impl<F> AttentionFn for F
where
    F: Fn(TensorView<'_>, TensorView<'_>, TensorView<'_>, &AttentionArgs<'_>) -> Result<Tensor>,
{
    fn call(
        &self,
        query: TensorView<'_>,
        key: TensorView<'_>,
        value: TensorView<'_>,
        args: &AttentionArgs<'_>,
    ) -> Result<Tensor> {
        self(query, key, value, args)
    }
}

/// A replacement of `lax.dot_general` in a dense layer.
pub trait DotGeneral {
    /// The product of `lhs` `[rows..., features]` and `rhs` `[features, outputs]`, both cast to the computation dtype; the bias is
    /// added afterwards.
    ///
    /// # Errors
    ///
    /// Its own, [`Error::Hook`].
    fn call(&self, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor>;

    /// From the gradient of the product, `[rows..., outputs]`, to those of `lhs` and `rhs`. `d_out` is in the dtype that product
    /// and bias have together. `None`, the provided answer and that of a closure, is a product without gradients: then the backward
    /// pass is [`Error::Unsupported`].
    ///
    /// # Errors
    ///
    /// Its own, [`Error::Hook`].
    fn vjp(
        &self,
        lhs: TensorView<'_>,
        rhs: TensorView<'_>,
        d_out: TensorView<'_>,
    ) -> Result<Option<[Tensor; 2]>> {
        let _ = (lhs, rhs, d_out);
        Ok(None)
    }
}

impl<F: Fn(TensorView<'_>, TensorView<'_>) -> Result<Tensor>> DotGeneral for F {
    fn call(&self, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
        self(lhs, rhs)
    }
}

/// A replacement of the einsum of queries and keys, or of weights and values.
pub trait Einsum {
    /// The einsum that `spec` names: `...qhd,...khd->...hqk` or `...hqk,...khd->...qhd`.
    ///
    /// # Errors
    ///
    /// Its own, [`Error::Hook`].
    fn call(&self, spec: &str, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor>;

    /// From the gradient of the einsum that `spec` names, of what [`Einsum::call`] gave, to those of `lhs` and `rhs`. `None`, the
    /// provided answer and that of a closure, is an einsum without gradients: then the backward pass is [`Error::Unsupported`].
    ///
    /// # Errors
    ///
    /// Its own, [`Error::Hook`].
    fn vjp(
        &self,
        spec: &str,
        lhs: TensorView<'_>,
        rhs: TensorView<'_>,
        d_out: TensorView<'_>,
    ) -> Result<Option<[Tensor; 2]>> {
        let _ = (spec, lhs, rhs, d_out);
        Ok(None)
    }
}

impl<F: Fn(&str, TensorView<'_>, TensorView<'_>) -> Result<Tensor>> Einsum for F {
    fn call(&self, spec: &str, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
        self(spec, lhs, rhs)
    }
}

/// A factory of [`DotGeneral`], called once for each dense layer (`qkv_dot_general_cls`, `out_dot_general_cls`).
pub type DotGeneralCls<'h> = &'h dyn Fn() -> Box<dyn DotGeneral + 'h>;
/// A factory of [`Einsum`], called once a call (`qk_attn_weights_einsum_cls`, `attn_weights_value_einsum_cls`).
pub type EinsumCls<'h> = &'h dyn Fn() -> Box<dyn Einsum + 'h>;

/// What the `vjp` of the hook in `field` gave: gradients of the operands' shapes, cast to their dtypes.
pub(crate) fn gradients<const N: usize>(
    field: &'static str,
    given: Result<Option<[Tensor; N]>>,
    operands: [&TensorView<'_>; N],
) -> Result<[Tensor; N]> {
    let mut gradients = given?.ok_or(Error::Unsupported {
        backend: field,
        feature: "gradients",
        instead: "Implement `vjp` for it",
    })?;
    for (gradient, operand) in gradients.iter_mut().zip(operands) {
        if gradient.shape() != operand.shape() {
            return Err(Error::Hook {
                hook: field,
                reason: "a gradient of its `vjp` does not have the shape of its operand",
            });
        }
        if gradient.scalar() != operand.scalar() {
            *gradient = gradient.view().to_scalar(operand.scalar())?;
        }
    }
    Ok(gradients)
}
