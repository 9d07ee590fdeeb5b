//! `flax.linen.dot_product_attention` and `dot_product_attention_weights`.

use crate::einsum;
use crate::hooks::Einsum;
use crate::layer::Precision;
use crate::stage::{self, HostKernels, Keep, Options, promote};
use crate::tensor::{Tensor, TensorView};
use attn_core::{AttentionShape, DType, Dims, Error, Result, ScalarType};

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
    /// A replacement of the einsum of queries and keys; both or neither, and not with `precision`.
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

    fn check_einsums(&self) -> Result<()> {
        let (qk, value) = (
            self.qk_attn_weights_einsum.is_some(),
            self.attn_weights_value_einsum.is_some(),
        );
        if qk != value {
            return Err(Error::Together {
                left: "qk_attn_weights_einsum",
                right: "attn_weights_value_einsum",
            });
        }
        if self.precision.is_some() && qk {
            return Err(Error::Exclusive {
                left: "precision",
                right: "qk_attn_weights_einsum",
            });
        }
        Ok(())
    }

    pub(crate) fn check_dropout(&self) -> Result<()> {
        if self.dropout_rate <= 0.0 || self.deterministic {
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

/// Output and weights of [`attention`].
pub(crate) struct Attended {
    pub(crate) out: Tensor,
    pub(crate) weights: Option<Tensor>,
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
    Ok(attention(backend, arguments, &value, false)?.out)
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
    let key = arguments.key;
    // Values of depth 0: the weights alone are computed.
    let Some((_, axes)) = key.shape().split_last() else {
        return Err(Error::Rank {
            argument: "key",
            got: 0,
            wanted: "[batch..., length, heads, depth]",
        });
    };
    let value = TensorView::new(key.scalar(), &Dims::new(axes)?.push(0)?, &[])?;
    let attended = attention(backend, arguments, &value, true)?;
    attended.weights.ok_or(Error::Unsupported {
        backend: backend.name(),
        feature: "attention weights",
        instead: "Use another backend",
    })
}

/// Output and, if wanted, weights, in Flax's dtypes.
pub(crate) fn attention<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: &TensorView<'_>,
    weights: bool,
) -> Result<Attended> {
    attention_over(backend, arguments, value, weights, None)
}

/// [`attention`], with the causal mask of a cache.
pub(crate) fn attention_over<B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'_>,
    value: &TensorView<'_>,
    weights: bool,
    causal: Option<attn_core::Causal>,
) -> Result<Attended> {
    arguments.check_einsums()?;
    let (query, key) = (&arguments.query, &arguments.key);
    let given = inexact(arguments.dtype)?;
    let dtype = promote(given, [query.scalar(), key.scalar(), value.scalar()]);
    let shape = AttentionShape::of(query.shape(), key.shape(), value.shape())?;
    let weights_shape = shape.weights(query.shape())?;
    check_broadcast("bias", arguments.bias.as_ref(), &weights_shape)?;
    check_broadcast("mask", arguments.mask.as_ref(), &weights_shape)?;
    arguments.check_dropout()?;
    if let (Some(qk), Some(value_einsum)) = (
        arguments.qk_attn_weights_einsum,
        arguments.attn_weights_value_einsum,
    ) {
        let unfused = einsum::Unfused {
            qk,
            value: value_einsum,
            dtype,
            causal,
            force_fp32: arguments.force_fp32_for_softmax,
        };
        return unfused.run(arguments, value, weights);
    }
    let keep = arguments.mask.as_ref().map(Keep::new).transpose()?;
    // Weights that stay float32 make the product with 16-bit values a float32 one. Elsewhere the kernels' own softmax
    // is at least as exact as the one that is asked for.
    let core = if arguments.force_fp32_for_softmax {
        dtype.promote(DType::F32)
    } else {
        dtype
    };
    let options = Options {
        bias: arguments.bias.as_ref(),
        keep: keep.as_ref(),
        causal,
        weights,
    };
    let attended = if core == dtype {
        stage::attend(backend, core, [query, key, value], &options)?
    } else {
        // The operands are rounded to the computation dtype first.
        let cast = |view: &TensorView<'_>| view.to_scalar(dtype.scalar());
        let (query, key, value) = (cast(query)?, cast(key)?, cast(value)?);
        stage::attend(
            backend,
            core,
            [&query.view(), &key.view(), &value.view()],
            &options,
        )?
    };
    let weights = attended
        .weights
        .map(|weights| weights.to_dtype(arguments.weights_dtype(dtype)))
        .transpose()?;
    Ok(Attended {
        out: attended.out,
        weights,
    })
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
