//! A layer's parameters looked up in a source and checked, their head axes flattened.

use crate::layer::MultiHeadDotProductAttention;
use crate::params::{ParamSource, find};
use crate::plan::{Widths, features};
use crate::tensor::TensorView;
use attn_core::{Dims, Result, ScalarType};

/// The sizes that the fields and `inputs_q` give.
pub(crate) struct Sizes {
    pub(crate) num_heads: usize,
    pub(crate) head_dim: usize,
    /// `num_heads * head_dim`.
    pub(crate) hidden: usize,
    pub(crate) out_features: usize,
}

/// A dense layer's parameters.
pub(crate) struct DenseParams<'p> {
    /// `[features, outputs]`.
    pub(crate) kernel: TensorView<'p>,
    /// `[outputs]`.
    pub(crate) bias: Option<TensorView<'p>>,
}

impl Sizes {
    pub(crate) fn new(
        layer: &MultiHeadDotProductAttention<'_>,
        inputs_q: &TensorView<'_>,
    ) -> Result<Self> {
        let Widths {
            head_dim,
            hidden,
            out_features,
        } = layer.widths(inputs_q.shape())?;
        Ok(Self {
            num_heads: layer.num_heads,
            head_dim,
            hidden,
            out_features,
        })
    }

    /// The parameters of `query`, `key` or `value`.
    pub(crate) fn input<'p>(
        &self,
        params: &'p dyn ParamSource,
        scope: &'static str,
        input: &TensorView<'_>,
        use_bias: bool,
    ) -> Result<DenseParams<'p>> {
        let features = features("inputs", input.shape())?;
        let heads = [self.num_heads, self.head_dim];
        let kernel = find(params, scope, "kernel", &[features, heads[0], heads[1]])?
            .reshape(&[features, self.hidden])?;
        let bias = match use_bias {
            true => Some(find(params, scope, "bias", &heads)?.reshape(&[self.hidden])?),
            false => None,
        };
        Ok(DenseParams { kernel, bias })
    }

    /// The parameters of `out`.
    pub(crate) fn output<'p>(
        &self,
        params: &'p dyn ParamSource,
        use_bias: bool,
    ) -> Result<DenseParams<'p>> {
        let shape = [self.num_heads, self.head_dim, self.out_features];
        let kernel =
            find(params, "out", "kernel", &shape)?.reshape(&[self.hidden, self.out_features])?;
        let bias = match use_bias {
            true => Some(find(params, "out", "bias", &[self.out_features])?),
            false => None,
        };
        Ok(DenseParams { kernel, bias })
    }

    /// The layer norm's scale of `query_ln` or `key_ln`, `[head_dim]`.
    pub(crate) fn scale<'p>(
        &self,
        params: &'p dyn ParamSource,
        scope: &'static str,
    ) -> Result<TensorView<'p>> {
        find(params, scope, "scale", &[self.head_dim])
    }

    /// `[rows..., heads, head_dim]`.
    pub(crate) fn heads(&self, rows: &[usize]) -> Result<Dims> {
        Dims::new(rows)?.concat(&[self.num_heads, self.head_dim])
    }
}

impl DenseParams<'_> {
    /// The types that promote together in this dense layer.
    pub(crate) fn scalars(&self, input: &TensorView<'_>) -> impl Iterator<Item = ScalarType> {
        [
            Some(input.scalar()),
            Some(self.kernel.scalar()),
            self.bias.map(|bias| bias.scalar()),
        ]
        .into_iter()
        .flatten()
    }
}
