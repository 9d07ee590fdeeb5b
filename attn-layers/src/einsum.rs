//! The attention core around a user's einsums. It holds the scores, since the user's code must see them.

use crate::functions::DotProductAttention;
use crate::hooks::Einsum;
use crate::layer::Precision;
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{AttentionShape, Causal, DType, Dims, Error, Layout, Result, ScalarType};

pub(crate) const SCORES: &str = "...qhd,...khd->...hqk";
pub(crate) const VALUES: &str = "...hqk,...khd->...qhd";

/// Both einsums, or the factories of both, or neither.
pub(crate) fn check_pair<E>(qk: Option<E>, values: Option<E>) -> Result<()> {
    if qk.is_some() == values.is_some() {
        return Ok(());
    }
    Err(Error::Together {
        left: "qk_attn_weights_einsum",
        right: "attn_weights_value_einsum",
    })
}

/// A user's einsum has a precision of its own.
pub(crate) fn check_precision<E>(precision: Option<Precision>, qk: Option<E>) -> Result<()> {
    if precision.is_none() || qk.is_none() {
        return Ok(());
    }
    Err(Error::Exclusive {
        left: "precision",
        right: "qk_attn_weights_einsum",
    })
}

/// What the user's einsums compute has one letter for the heads of all operands.
pub(crate) fn check_heads(shape: &AttentionShape) -> Result<()> {
    if shape.key_heads == shape.num_heads {
        return Ok(());
    }
    Err(Error::Unsupported {
        backend: "qk_attn_weights_einsum",
        feature: "grouped heads",
        instead: "Leave the einsums out, or `num_kv_heads`",
    })
}

/// What of the core's forward pass its backward pass needs: it holds the weights anyway.
pub(crate) struct Kept {
    /// After softmax, before dropout.
    pub(crate) weights: Tensor,
    /// The dtype of the user's scores.
    pub(crate) scores: ScalarType,
}

/// Weights `[batch..., heads, query_length, key_length]` from the user's scores, unrounded, and the scores' dtype.
pub(crate) fn weights(
    qk: &dyn Einsum,
    arguments: &DotProductAttention<'_>,
    dtype: DType,
    shape: &AttentionShape,
    causal: Option<Causal>,
) -> Result<(Tensor, ScalarType)> {
    let wanted = shape.weights(arguments.query.shape())?;
    let query = scaled(&arguments.query, shape.depth, dtype)?;
    let key = arguments.key.to_scalar(dtype.scalar())?;
    let scores = qk.call(SCORES, query.view(), key.view())?;
    if *scores.shape() != wanted {
        return Err(Error::Hook {
            hook: "qk_attn_weights_einsum",
            reason: "its result is not [batch..., heads, query_length, key_length]",
        });
    }
    let mut values = biased_and_masked(&scores, arguments, dtype, causal)?;
    for row in values.chunks_mut(shape.key_length.max(1)) {
        normalize(row);
    }
    let weights = Tensor::from_f64s(ScalarType::F64, &wanted, values)?;
    Ok((weights, scores.scalar()))
}

/// The user's sum of values, `[batch..., query_length, heads, value_depth]`.
pub(crate) fn values(
    einsum: &dyn Einsum,
    weights: &Tensor,
    value: &TensorView<'_>,
    dtype: DType,
    wanted: &Dims,
) -> Result<Tensor> {
    let value = value.to_scalar(dtype.scalar())?;
    let out = einsum.call(VALUES, weights.view(), value.view())?;
    if out.shape() == wanted {
        return Ok(out);
    }
    Err(Error::Hook {
        hook: "attn_weights_value_einsum",
        reason: "its result is not [batch..., query_length, heads, depth]",
    })
}

/// Queries divided by the square root of their depth; root and quotient are rounded to the dtype.
pub(crate) fn scaled(query: &TensorView<'_>, depth: usize, dtype: DType) -> Result<Tensor> {
    let scalar = dtype.scalar();
    let root = root(depth, dtype)?;
    let query = query.to_scalar(scalar)?;
    let quotients = query.view();
    let quotients = quotients.iter_f64().map(|x| x / root);
    Tensor::from_f64s(scalar, query.shape(), quotients)
}

/// The square root of the depth, rounded to the dtype.
pub(crate) fn root(depth: usize, dtype: DType) -> Result<f64> {
    let root = Tensor::from_f64s(dtype.scalar(), &[], [libm::sqrt(depth as f64)])?;
    Ok(root.view().get_f64(0))
}

/// Scores with the bias added and the fill value where a query does not see a key.
fn biased_and_masked(
    scores: &Tensor,
    arguments: &DotProductAttention<'_>,
    dtype: DType,
    causal: Option<Causal>,
) -> Result<Vec<f64>> {
    let shape = scores.shape();
    let (rank, fill) = (shape.rank(), lowest(dtype));
    let (queries, keys) = (shape[rank - 2], shape[rank - 1]);
    let bias = Broadcast::new("bias", arguments.bias.as_ref(), shape)?;
    let mask = Broadcast::new("mask", arguments.mask.as_ref(), shape)?;
    let scores = scores.view();
    let values = scores.iter_f64().enumerate().map(|(index, score)| {
        let (query, key) = (index / keys % queries, index % keys);
        let masked = mask
            .as_ref()
            .is_some_and(|mask| !mask.view.is_nonzero(mask.at(index)));
        let hidden = causal.is_some_and(|causal| !causal.sees(query, key, queries, keys));
        if masked || hidden {
            fill
        } else {
            score
                + bias
                    .as_ref()
                    .map_or(0.0, |bias| bias.view.get_f64(bias.at(index)))
        }
    });
    Ok(values.collect())
}

/// An array read as if it had the shape of the scores.
pub(crate) struct Broadcast<'a> {
    pub(crate) view: &'a TensorView<'a>,
    layout: Layout,
}

impl<'a> Broadcast<'a> {
    pub(crate) fn new(
        argument: &'static str,
        view: Option<&'a TensorView<'a>>,
        shape: &Dims,
    ) -> Result<Option<Self>> {
        let Some(view) = view else { return Ok(None) };
        let layout = Layout::contiguous(*view.shape())?.broadcast_to(argument, shape)?;
        Ok(Some(Self { view, layout }))
    }

    /// Where the element at a row-major index of the scores lies.
    pub(crate) fn at(&self, index: usize) -> usize {
        self.layout.base(self.layout.shape().rank(), index)
    }
}

fn normalize(row: &mut [f64]) {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for value in row.iter_mut() {
        *value = libm::exp(*value - largest);
    }
    let sum: f64 = row.iter().sum();
    for value in row {
        *value /= sum;
    }
}

/// `finfo(dtype).min`.
pub(crate) fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f32::MIN.into(),
        DType::F64 => f64::MIN,
        DType::F16 => attn_core::f16::MIN.to_f64(),
        DType::BF16 => attn_core::bf16::MIN.to_f64(),
    }
}
