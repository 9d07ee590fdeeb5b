//! `flax.linen.dot_product_attention` and `dot_product_attention_weights`.

use crate::dropout::drop_weights;
use crate::einsum;
use crate::hooks::Einsum;
use crate::layer::{JAX_DEFAULT, Precision};
use crate::random::{Convention, Key};
use crate::stage::{self, Attended, HostKernels, Keep, Options, Wanted, promote};
use crate::tensor::{Tensor, TensorView};
use attn_core::{
    AttentionShape, Causal, DType, Dims, Dropout, Error, Result, ScalarType, dropout::check_rate,
};

/// The arguments of [`dot_product_attention`], by Flax's names. `deterministic` is `false` by default, as there.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct DotProductAttention<'a> {
    /// `[batch..., query_length, heads, depth]`.
    pub query: TensorView<'a>,
    /// `[batch..., key_length, heads, depth]`.
    pub key: TensorView<'a>,
    /// Added to the scores; broadcasts to `[batch..., heads, query_length, key_length]`.
    pub bias: Option<TensorView<'a>>,
    /// Not 0 means that the query sees the key; broadcasts alike.
    pub mask: Option<TensorView<'a>>,
    /// Whether one dropout mask serves all batch entries and heads.
    pub broadcast_dropout: bool,
    /// The words of the dropout key.
    pub dropout_rng: Option<[u32; 2]>,
    /// The rate of dropout.
    pub dropout_rate: f64,
    /// How the key's numbers are drawn.
    pub convention: Convention,
    /// Whether there is no dropout.
    pub deterministic: bool,
    /// Computation dtype; `None` infers it.
    pub dtype: Option<ScalarType>,
    /// Precision of the products.
    pub precision: Option<Precision>,
    /// Whether softmax runs in `float32` and its weights stay so.
    pub force_fp32_for_softmax: bool,
    /// A replacement of the einsum of queries and keys; with that of weights and values or not at all (but alone for
    /// [`dot_product_attention_weights`]), and not with `precision`.
    pub qk_attn_weights_einsum: Option<&'a dyn Einsum>,
    /// A replacement of the einsum of weights and values.
    pub attn_weights_value_einsum: Option<&'a dyn Einsum>,
    /// Whether keys and values may have fewer heads than queries: a layer's may, Flax's functions refuse them.
    pub(crate) may_group: bool,
}

impl core::fmt::Debug for DotProductAttention<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DotProductAttention")
            .field("query", &self.query)
            .field("key", &self.key)
            .field("bias", &self.bias)
            .field("mask", &self.mask)
            .finish_non_exhaustive()
    }
}

impl<'a> DotProductAttention<'a> {
    /// Flax's defaults.
    #[must_use]
    pub const fn new(query: TensorView<'a>, key: TensorView<'a>) -> Self {
        Self {
            query,
            key,
            bias: None,
            mask: None,
            broadcast_dropout: true,
            dropout_rng: None,
            dropout_rate: 0.0,
            convention: JAX_DEFAULT,
            deterministic: false,
            dtype: None,
            precision: None,
            force_fp32_for_softmax: false,
            qk_attn_weights_einsum: None,
            attn_weights_value_einsum: None,
            may_group: false,
        }
    }

    /// Shapes, in Flax's order; gives the sizes of the call.
    pub(crate) fn check(&self, value: &Dims) -> Result<AttentionShape> {
        let (query, key) = (self.query.shape(), self.key.shape());
        let shape = match self.may_group {
            true => AttentionShape::of(query, key, value)?,
            false => AttentionShape::of_equal_heads(query, key, value)?,
        };
        let weights = shape.weights(query)?;
        check_broadcast("bias", self.bias.as_ref(), &weights)?;
        check_broadcast("mask", self.mask.as_ref(), &weights)?;
        Ok(shape)
    }

    /// Which weights are dropped, in a call that computes in `dtype`.
    pub(crate) fn dropout(&self, dtype: DType) -> Result<Option<Dropout>> {
        check_rate(self.dropout_rate)?;
        if self.dropout_rate == 0.0 || self.deterministic {
            return Ok(None);
        }
        let key = Key::from_words(self.dropout_rng.ok_or(Error::DropoutRngMissing)?);
        Dropout::new(
            key,
            self.dropout_rate,
            dtype,
            self.broadcast_dropout,
            self.convention,
        )
    }

    /// The user's einsums of scores and of values.
    pub(crate) fn einsums(&self) -> Option<[&'a dyn Einsum; 2]> {
        Some([
            self.qk_attn_weights_einsum?,
            self.attn_weights_value_einsum?,
        ])
    }

    /// What query, key and value are cast to.
    pub(crate) fn core_dtype(&self, value: &TensorView<'_>) -> Result<DType> {
        let scalars = [self.query.scalar(), self.key.scalar(), value.scalar()];
        Ok(promote(inexact(self.dtype)?, scalars))
    }

    /// Weights after dropout. What they are multiplied with is in the computation dtype, whatever theirs is.
    pub(crate) fn drop_weights(
        &self,
        weights: &Tensor,
        dropout: &Dropout,
        dtype: DType,
        shape: &AttentionShape,
    ) -> Result<Tensor> {
        let promoted = self.weights_dtype(dtype).promote(dtype);
        drop_weights(weights, dropout, shape, promoted.scalar())
    }

    fn weights_dtype(&self, dtype: DType) -> DType {
        if self.force_fp32_for_softmax {
            DType::F32
        } else {
            dtype
        }
    }
}

/// `flax.linen.dot_product_attention`: value `[batch..., key_length, heads, value_depth]` gives
/// `[batch..., query_length, heads, value_depth]`.
///
/// ```
/// use attn_layers::{Cpu, DotProductAttention, dot_product_attention, tensor::TensorView};
/// let query = TensorView::from_slice(&[1.0f32], &[1, 1, 1])?;
/// let key = TensorView::from_slice(&[0.0f32, 0.0], &[2, 1, 1])?;
/// let value = TensorView::from_slice(&[1.0f32, 3.0], &[2, 1, 1])?;
/// let out = dot_product_attention(&Cpu::detect(), &DotProductAttention::new(query, key), value)?;
/// assert_eq!(out.to_vec_f64(), [2.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Mismatch`], [`Error::Broadcast`], [`Error::NotInexact`], [`Error::Together`], [`Error::Exclusive`], [`Error::DropoutRate`],
/// [`Error::DropoutRngMissing`].
pub fn dot_product_attention<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: TensorView<'_>,
) -> Result<Tensor> {
    Ok(attention(backend, arguments, &value, None, Purpose::default())?.out)
}

/// `flax.linen.dot_product_attention_weights`: the weights after dropout, `[batch..., heads, query_length, key_length]`.
///
/// # Errors
///
/// As [`dot_product_attention`].
pub fn dot_product_attention_weights<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
) -> Result<Tensor> {
    einsum::check_precision(arguments.precision, arguments.qk_attn_weights_einsum)?;
    let (query, key) = (&arguments.query, &arguments.key);
    let dtype = promote(inexact(arguments.dtype)?, [query.scalar(), key.scalar()]);
    // Values of depth 0: the weights alone are computed.
    let Some((_, axes)) = key.shape().split_last() else {
        return Err(Error::Rank {
            argument: "key",
            got: 0,
            wanted: "[batch..., length, heads, depth]",
        });
    };
    let value = TensorView::new(key.scalar(), &Dims::new(axes)?.push(0)?, &[])?;
    let shape = arguments.check(value.shape())?;
    let dropout = arguments.dropout(dtype)?;
    let wanted = Wanted {
        weights: true,
        statistics: false,
    };
    let weights = match arguments.qk_attn_weights_einsum {
        Some(qk) => einsum::weights(qk, arguments, dtype, &shape, None)?.0,
        None => fused(backend, arguments, dtype, &value, None, wanted)?
            .weights
            .ok_or(Error::Unsupported {
                backend: backend.name(),
                feature: "attention weights",
                instead: "Use another backend",
            })?,
    };
    let weights = weights.to_dtype(arguments.weights_dtype(dtype))?;
    match dropout {
        None => Ok(weights),
        Some(dropout) => arguments.drop_weights(&weights, &dropout, dtype, &shape),
    }
}

/// What the attention core gives.
pub(crate) struct Core {
    /// `[batch..., query_length, heads, value_depth]`.
    pub(crate) out: Tensor,
    /// The weights that Flax sows, in its dtype.
    pub(crate) weights: Option<Tensor>,
    /// What the backward pass needs beside the arguments and the output.
    pub(crate) kept: Option<Kept>,
}

/// What of the attention core is kept for its backward pass.
pub(crate) enum Kept {
    /// Of the fused core: the statistics of the rows.
    Statistics(Tensor),
    /// Of a core of the user's einsums: what they gave.
    Einsums(einsum::Kept),
    /// Of the user's own core: nothing.
    Nothing,
}

/// What of the core is asked for beside its output.
#[derive(Clone, Copy, Default)]
pub(crate) struct Purpose {
    /// The weights.
    pub(crate) sow_weights: bool,
    /// What the backward pass needs.
    pub(crate) gradients: bool,
}

/// The attention core, in Flax's dtypes; `causal` is the mask of a cache.
pub(crate) fn attention<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: &TensorView<'_>,
    causal: Option<Causal>,
    purpose: Purpose,
) -> Result<Core> {
    einsum::check_pair(
        arguments.qk_attn_weights_einsum,
        arguments.attn_weights_value_einsum,
    )?;
    einsum::check_precision(arguments.precision, arguments.qk_attn_weights_einsum)?;
    let dtype = arguments.core_dtype(value)?;
    let shape = arguments.check(value.shape())?;
    let weights_dtype = arguments.weights_dtype(dtype);
    if let Some(einsums) = arguments.einsums() {
        return around_einsums(einsums, arguments, value, (dtype, &shape), causal, purpose);
    }
    let wanted = Wanted {
        weights: purpose.sow_weights,
        statistics: purpose.gradients,
    };
    let attended = fused(backend, arguments, dtype, value, causal, wanted)?;
    let weights = attended.weights;
    Ok(Core {
        out: attended.out,
        weights: weights
            .map(|weights| weights.to_dtype(weights_dtype))
            .transpose()?,
        kept: attended.statistics.map(Kept::Statistics),
    })
}

/// The core around the user's einsums, of scores and of values.
fn around_einsums(
    [qk, values]: [&dyn Einsum; 2],
    arguments: &DotProductAttention<'_>,
    value: &TensorView<'_>,
    (dtype, shape): (DType, &AttentionShape),
    causal: Option<Causal>,
    purpose: Purpose,
) -> Result<Core> {
    einsum::check_heads(shape)?;
    let dropout = arguments.dropout(dtype)?;
    let (weights, scores) = einsum::weights(qk, arguments, dtype, shape, causal)?;
    let weights = weights.to_dtype(arguments.weights_dtype(dtype))?;
    let dropped = dropout
        .map(|dropout| arguments.drop_weights(&weights, &dropout, dtype, shape))
        .transpose()?;
    let wanted = shape.output(arguments.query.shape())?;
    let seen = dropped.as_ref().unwrap_or(&weights);
    let out = einsum::values(values, seen, value, dtype, &wanted)?;
    let sown = purpose.sow_weights.then(|| weights.clone());
    let kept = purpose
        .gradients
        .then_some(Kept::Einsums(einsum::Kept { weights, scores }));
    Ok(Core {
        out,
        weights: sown,
        kept,
    })
}

/// The backend's own attention, computing in `dtype` or more. Its weights are in the accumulator's dtype.
fn fused<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    dtype: DType,
    value: &TensorView<'_>,
    causal: Option<Causal>,
    wanted: Wanted,
) -> Result<Attended> {
    let keep = arguments.mask.as_ref().map(Keep::new).transpose()?;
    let options = Options {
        bias: arguments.bias.as_ref(),
        keep: keep.as_ref(),
        causal,
        dropout: arguments.dropout(dtype)?,
    };
    let rounded = Rounded::new(arguments, dtype, value)?;
    let [query, key, value] = rounded.or([arguments.query, arguments.key, *value]);
    stage::attend(
        backend,
        rounded.core,
        [&query, &key, &value],
        &options,
        wanted,
    )
}

/// The operands of the fused core where it computes in more than the call's dtype, to which they are rounded first.
pub(crate) struct Rounded {
    /// What the core computes in.
    pub(crate) core: DType,
    operands: Option<[Tensor; 3]>,
}

impl Rounded {
    pub(crate) fn new(
        arguments: &DotProductAttention<'_>,
        dtype: DType,
        value: &TensorView<'_>,
    ) -> Result<Self> {
        // Weights that stay float32 make the product with 16-bit values a float32 one. Elsewhere the kernels' own softmax
        // is at least as exact as the one that is asked for.
        let core = match arguments.force_fp32_for_softmax {
            true => dtype.promote(DType::F32),
            false => dtype,
        };
        let cast = |view: &TensorView<'_>| view.to_scalar(dtype.scalar());
        let operands = match core == dtype {
            true => None,
            false => Some([cast(&arguments.query)?, cast(&arguments.key)?, cast(value)?]),
        };
        Ok(Self { core, operands })
    }

    /// The rounded operands, or those at hand.
    pub(crate) fn or<'v>(&'v self, operands: [TensorView<'v>; 3]) -> [TensorView<'v>; 3] {
        match &self.operands {
            Some(rounded) => rounded.each_ref().map(Tensor::view),
            None => operands,
        }
    }
}

/// A module's dtype as one to compute in.
pub(crate) fn inexact(dtype: Option<ScalarType>) -> Result<Option<DType>> {
    match dtype {
        None => Ok(None),
        Some(scalar) => scalar
            .float()
            .map(Some)
            .ok_or(Error::NotInexact { got: scalar }),
    }
}

fn check_broadcast(
    argument: &'static str,
    view: Option<&TensorView<'_>>,
    weights: &Dims,
) -> Result<()> {
    match view {
        Some(view) if view.shape().broadcast(weights) != Some(*weights) => Err(Error::Broadcast {
            argument,
            got: *view.shape(),
            wanted: *weights,
        }),
        _ => Ok(()),
    }
}
