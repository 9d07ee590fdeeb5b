//! `flax.linen.dot_product_attention` and `dot_product_attention_weights`.

use crate::einsum;
use crate::hooks::Einsum;
use crate::layer::Precision;
use crate::stage::{self, Attended, HostKernels, Keep, Options, promote};
use crate::tensor::{Tensor, TensorView};
use attn_core::{AttentionShape, Causal, DType, Dims, Error, Result, ScalarType};

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
            deterministic: false,
            dtype: None,
            precision: None,
            force_fp32_for_softmax: false,
            qk_attn_weights_einsum: None,
            attn_weights_value_einsum: None,
        }
    }

    /// Both einsums or neither.
    fn check_pair(&self) -> Result<()> {
        if self.qk_attn_weights_einsum.is_some() == self.attn_weights_value_einsum.is_some() {
            return Ok(());
        }
        Err(Error::Together {
            left: "qk_attn_weights_einsum",
            right: "attn_weights_value_einsum",
        })
    }

    /// A user's einsum has a precision of its own.
    fn check_precision(&self) -> Result<()> {
        if self.precision.is_some() && self.qk_attn_weights_einsum.is_some() {
            return Err(Error::Exclusive {
                left: "precision",
                right: "qk_attn_weights_einsum",
            });
        }
        Ok(())
    }

    /// Shapes and dropout, in Flax's order; gives the sizes of the call.
    fn check(&self, value: &Dims) -> Result<AttentionShape> {
        let shape = AttentionShape::of(self.query.shape(), self.key.shape(), value)?;
        let weights = shape.weights(self.query.shape())?;
        check_broadcast("bias", self.bias.as_ref(), &weights)?;
        check_broadcast("mask", self.mask.as_ref(), &weights)?;
        self.check_dropout()?;
        Ok(shape)
    }

    fn check_dropout(&self) -> Result<()> {
        // NaN and negative rates are "not above 0", as in Flax.
        let active = self.dropout_rate > 0.0 && !self.deterministic;
        if !active {
            return Ok(());
        }
        if self.dropout_rng.is_none() {
            return Err(Error::DropoutRngMissing);
        }
        Err(Error::Unsupported {
            backend: "this version",
            feature: "active dropout",
            instead: "Set `deterministic`, or a `dropout_rate` of 0",
        })
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
/// [`Error::Mismatch`], [`Error::Broadcast`], [`Error::NotInexact`], [`Error::Together`], [`Error::Exclusive`], [`Error::Unsupported`] for active
/// dropout.
pub fn dot_product_attention<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: TensorView<'_>,
) -> Result<Tensor> {
    Ok(attention(backend, arguments, &value, false, None)?.out)
}

/// `flax.linen.dot_product_attention_weights`: `[batch..., heads, query_length, key_length]`.
///
/// # Errors
///
/// As [`dot_product_attention`].
pub fn dot_product_attention_weights<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
) -> Result<Tensor> {
    arguments.check_precision()?;
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
    let weights = match arguments.qk_attn_weights_einsum {
        Some(qk) => einsum::weights(qk, arguments, dtype, &shape, None)?,
        None => fused(backend, arguments, dtype, &value, true, None)?
            .weights
            .ok_or(Error::Unsupported {
                backend: backend.name(),
                feature: "attention weights",
                instead: "Use another backend",
            })?,
    };
    weights.to_dtype(arguments.weights_dtype(dtype))
}

/// Output and, if wanted, weights, in Flax's dtypes; `causal` is the mask of a cache.
pub(crate) fn attention<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: &TensorView<'_>,
    weights: bool,
    causal: Option<Causal>,
) -> Result<Attended> {
    arguments.check_pair()?;
    arguments.check_precision()?;
    let (query, key) = (&arguments.query, &arguments.key);
    let dtype = promote(
        inexact(arguments.dtype)?,
        [query.scalar(), key.scalar(), value.scalar()],
    );
    let shape = arguments.check(value.shape())?;
    let (qk, value_einsum) = (
        arguments.qk_attn_weights_einsum,
        arguments.attn_weights_value_einsum,
    );
    let attended = if let (Some(qk), Some(value_einsum)) = (qk, value_einsum) {
        let weights = einsum::weights(qk, arguments, dtype, &shape, causal)?
            .to_dtype(arguments.weights_dtype(dtype))?;
        let wanted = shape.output(query.shape())?;
        Attended {
            out: einsum::values(value_einsum, &weights, value, dtype, &wanted)?,
            weights: Some(weights),
        }
    } else {
        fused(backend, arguments, dtype, value, weights, causal)?
    };
    let weights = attended.weights.filter(|_| weights);
    Ok(Attended {
        out: attended.out,
        weights: weights
            .map(|weights| weights.to_dtype(arguments.weights_dtype(dtype)))
            .transpose()?,
    })
}

/// The backend's own attention, computing in `dtype` or more. Its weights are in the accumulator's dtype.
fn fused<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    dtype: DType,
    value: &TensorView<'_>,
    weights: bool,
    causal: Option<Causal>,
) -> Result<Attended> {
    let (query, key) = (&arguments.query, &arguments.key);
    let keep = arguments.mask.as_ref().map(Keep::new).transpose()?;
    let options = Options {
        bias: arguments.bias.as_ref(),
        keep: keep.as_ref(),
        causal,
        weights,
    };
    // Weights that stay float32 make the product with 16-bit values a float32 one. Elsewhere the kernels' own softmax
    // is at least as exact as the one that is asked for.
    let core = if arguments.force_fp32_for_softmax {
        dtype.promote(DType::F32)
    } else {
        dtype
    };
    if core == dtype {
        return stage::attend(backend, core, [query, key, value], &options);
    }
    // The operands are rounded to the computation dtype first.
    let cast = |view: &TensorView<'_>| view.to_scalar(dtype.scalar());
    let (query, key, value) = (cast(query)?, cast(key)?, cast(value)?);
    let operands = [&query.view(), &key.view(), &value.view()];
    stage::attend(backend, core, operands, &options)
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
