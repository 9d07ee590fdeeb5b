//! `jax.vjp` of `flax.linen.dot_product_attention`.

use crate::einsum_backward::Backward;
use crate::functions::{DotProductAttention, Kept, Purpose, Rounded, attention};
use crate::inputs::same;
use crate::stage::{HostKernels, Keep, Options};
use crate::stage_backward::{self, AttentionParts, Given, cast_like, of_float};
use crate::tensor::{Tensor, TensorView};
use attn_core::{Dims, Error, Result, ScalarType};

/// The gradients of [`dot_product_attention`](crate::dot_product_attention), each of its array's shape and dtype. An array of
/// integers has none.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AttentionGradients {
    /// `[batch..., query_length, heads, depth]`.
    pub d_query: Option<Tensor>,
    /// `[batch..., key_length, heads, depth]`.
    pub d_key: Option<Tensor>,
    /// `[batch..., key_length, heads, value_depth]`.
    pub d_value: Option<Tensor>,
    /// Of the bias's own shape, summed over the axes that it was broadcast along; `None` without a bias.
    pub d_bias: Option<Tensor>,
}

/// What [`dot_product_attention_vjp`] keeps of its forward pass for the backward pass: the output, and two numbers a row.
pub struct AttentionResiduals<'a> {
    arguments: DotProductAttention<'a>,
    value: TensorView<'a>,
    out: Tensor,
    kept: Kept,
}

impl core::fmt::Debug for AttentionResiduals<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AttentionResiduals")
            .field("arguments", &self.arguments)
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}

/// [`dot_product_attention`](crate::dot_product_attention), and what its gradients need (`jax.vjp`).
///
/// ```
/// use attn_layers::{Cpu, DotProductAttention, dot_product_attention_vjp, tensor::TensorView};
/// let query = TensorView::from_slice(&[1.0f32], &[1, 1, 1])?;
/// let key = TensorView::from_slice(&[0.0f32, 0.0], &[2, 1, 1])?;
/// let value = TensorView::from_slice(&[1.0f32, 3.0], &[2, 1, 1])?;
/// let arguments = DotProductAttention::new(query, key);
/// let cpu = Cpu::detect();
/// let (out, residuals) = dot_product_attention_vjp(&cpu, &arguments, value)?;
/// let one = TensorView::from_slice(&[1.0f32], &[1, 1, 1])?;
/// let gradients = residuals.backward(&cpu, one)?;
/// assert_eq!(out.to_vec_f64(), [2.0]);
/// let [d_key, d_value] = [gradients.d_key, gradients.d_value].map(|gradient| gradient.expect("of floats").to_vec_f64());
/// assert_eq!((d_key, d_value), (vec![-0.5, 0.5], vec![0.5, 0.5]));
/// # Ok::<(), attn_layers::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`dot_product_attention`](crate::dot_product_attention).
pub fn dot_product_attention_vjp<'a, B: HostKernels>(
    backend: &B,
    arguments: &DotProductAttention<'a>,
    value: TensorView<'a>,
) -> Result<(Tensor, AttentionResiduals<'a>)> {
    let purpose = Purpose {
        sow_weights: false,
        gradients: true,
    };
    let core = attention(backend, arguments, &value, None, purpose)?;
    let residuals = AttentionResiduals {
        arguments: *arguments,
        value,
        out: core.out.clone(),
        kept: core.kept.unwrap_or(Kept::Nothing),
    };
    Ok((core.out, residuals))
}

impl AttentionResiduals<'_> {
    /// The gradients, from that of the output: `[batch..., query_length, heads, value_depth]`, in the output's dtype.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::DTypeMismatch`] if `d_out` is not like the output; [`Error::Unsupported`] for einsums without a `vjp`
    /// and from a backend without gradients.
    pub fn backward<B: HostKernels>(
        &self,
        backend: &B,
        d_out: TensorView<'_>,
    ) -> Result<AttentionGradients> {
        check_like(&d_out, self.out.scalar(), self.out.shape())?;
        let call = CoreCall {
            arguments: &self.arguments,
            value: &self.value,
            out: &self.out,
            kept: &self.kept,
        };
        let AttentionParts { heads, bias } = call.backward(backend, &d_out)?;
        let [d_query, d_key, d_value] = heads;
        let d_bias = match (bias, &self.arguments.bias) {
            (Some(gradient), Some(bias)) => of_float(cast_like(gradient, bias)?, bias),
            _ => None,
        };
        Ok(AttentionGradients {
            d_query: of_float(d_query, &self.arguments.query),
            d_key: of_float(d_key, &self.arguments.key),
            d_value: of_float(d_value, &self.value),
            d_bias,
        })
    }
}

/// `d_out` must be like the output.
pub(crate) fn check_like(d_out: &TensorView<'_>, scalar: ScalarType, shape: &Dims) -> Result<()> {
    if d_out.scalar() != scalar {
        return Err(Error::DTypeMismatch {
            argument: "d_out",
            got: d_out.scalar(),
            wanted: scalar,
        });
    }
    same("d_out", d_out.shape(), *shape)
}

/// A call of the attention core and what its forward pass left.
pub(crate) struct CoreCall<'a> {
    pub(crate) arguments: &'a DotProductAttention<'a>,
    pub(crate) value: &'a TensorView<'a>,
    pub(crate) out: &'a Tensor,
    pub(crate) kept: &'a Kept,
}

impl CoreCall<'_> {
    /// The gradients of query, key and value, in their dtypes where those are floats.
    pub(crate) fn backward<B: HostKernels>(
        &self,
        backend: &B,
        d_out: &TensorView<'_>,
    ) -> Result<AttentionParts> {
        let (arguments, value) = (self.arguments, self.value);
        let dtype = arguments.core_dtype(value)?;
        let dropout = arguments.dropout(dtype)?;
        let parts = match (self.kept, arguments.einsums()) {
            (Kept::Statistics(statistics), _) => {
                let rounded = Rounded::new(arguments, dtype, value)?;
                let [query, key, value] = rounded.or([arguments.query, arguments.key, *value]);
                let keep = arguments.mask.as_ref().map(Keep::new).transpose()?;
                let options = Options {
                    bias: arguments.bias.as_ref(),
                    keep: keep.as_ref(),
                    causal: None,
                    dropout,
                };
                let given = Given {
                    out: self.out.view(),
                    statistics: statistics.view(),
                    d_out: *d_out,
                };
                let operands = [&query, &key, &value];
                stage_backward::attend(backend, rounded.core, operands, &options, &given)?
            }
            (Kept::Einsums(kept), Some(einsums)) => Backward {
                arguments,
                value,
                dtype,
                shape: arguments.check(value.shape())?,
                dropout,
                kept,
            }
            .run(einsums, d_out)?,
            _ => {
                return Err(Error::Unsupported {
                    backend: "attention",
                    feature: "a backward pass by other hooks than the forward pass had",
                    instead: "Pass the layer that made the residuals",
                });
            }
        };
        let [d_query, d_key, d_value] = parts.heads;
        Ok(AttentionParts {
            heads: [
                cast_like(d_query, &arguments.query)?,
                cast_like(d_key, &arguments.key)?,
                cast_like(d_value, value)?,
            ],
            bias: parts.bias,
        })
    }
}
