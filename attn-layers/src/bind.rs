//! A layer's parameters looked up in a source and checked, their head axes flattened.

use crate::params::{ParamSource, find};
use crate::plan::{Widths, features};
use crate::tensor::TensorView;
use attn_core::{Dims, Result, ScalarType};

/// A dense layer's parameters.
pub(crate) struct DenseParams<'p> {
    /// `[features, outputs]`.
    pub(crate) kernel: TensorView<'p>,
    /// `[outputs]`.
    pub(crate) bias: Option<TensorView<'p>>,
}

impl Widths {
    /// The heads that `query`, `key` or `value` projects to.
    fn heads_of(&self, scope: &'static str) -> usize {
        match scope {
            "query" => self.num_heads,
            _ => self.num_kv_heads,
        }
    }

    /// What `query`, `key` or `value` projects to, its head axes flattened.
    pub(crate) fn hidden_of(&self, scope: &'static str) -> usize {
        match scope {
            "query" => self.hidden,
            _ => self.kv_hidden,
        }
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
        let heads = [self.heads_of(scope), self.head_dim];
        let hidden = self.hidden_of(scope);
        let kernel = find(params, scope, "kernel", &[features, heads[0], heads[1]])?
            .reshape(&[features, hidden])?;
        let bias = match use_bias {
            true => Some(find(params, scope, "bias", &heads)?.reshape(&[hidden])?),
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

    /// What `query`, `key` or `value` projects rows to, `[rows..., heads, head_dim]`.
    pub(crate) fn heads(&self, scope: &'static str, rows: &[usize]) -> Result<Dims> {
        Dims::new(rows)?.concat(&[self.heads_of(scope), self.head_dim])
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
