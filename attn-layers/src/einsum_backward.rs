//! The gradients of the attention core around a user's einsums: plain arithmetic between the user's own two.

use crate::dropout::Multipliers;
use crate::einsum::{Broadcast, Kept, SCORES, VALUES, root, scaled};
use crate::functions::DotProductAttention;
use crate::hooks::{Einsum, gradients};
use crate::stage_backward::AttentionParts;
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{AttentionShape, DType, Dropout, Result, ScalarType};

/// A call of the core, its sizes known.
pub(crate) struct Backward<'a> {
    pub(crate) arguments: &'a DotProductAttention<'a>,
    pub(crate) value: &'a TensorView<'a>,
    pub(crate) dtype: DType,
    pub(crate) shape: AttentionShape,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) kept: &'a Kept,
}

impl Backward<'_> {
    /// From the gradient of the output to those of query, key and value, in the computation dtype, and of the bias.
    pub(crate) fn run(
        &self,
        [qk, values]: [&dyn Einsum; 2],
        d_out: &TensorView<'_>,
    ) -> Result<AttentionParts> {
        let [d_weights, d_value] = self.values(values, d_out)?;
        let d_scores = self.scores(&d_weights)?;
        let bias = self.bias(&d_scores)?;
        let weights_shape = self.kept.weights.shape();
        let d_scores = Tensor::from_f64s(self.kept.scores, weights_shape, d_scores)?;
        let [d_query, d_key] = self.queries_and_keys(qk, &d_scores.view())?;
        Ok(AttentionParts {
            heads: [d_query, d_key, d_value],
            bias,
        })
    }

    /// Through the sum of values: the gradients of the weights after dropout and of the values.
    fn values(&self, einsum: &dyn Einsum, d_out: &TensorView<'_>) -> Result<[Tensor; 2]> {
        let (arguments, weights) = (self.arguments, &self.kept.weights);
        let dropped = self
            .dropout
            .map(|dropout| arguments.drop_weights(weights, &dropout, self.dtype, &self.shape))
            .transpose()?;
        let value = self.value.to_scalar(self.dtype.scalar())?;
        let (lhs, rhs) = (dropped.as_ref().unwrap_or(weights).view(), value.view());
        let given = einsum.vjp(VALUES, lhs, rhs, *d_out);
        gradients("attn_weights_value_einsum", given, [&lhs, &rhs])
    }

    /// Through dropout, softmax and mask: the gradient of the scores.
    fn scores(&self, d_dropped: &Tensor) -> Result<Vec<f64>> {
        let weights = self.kept.weights.view();
        let multipliers = self
            .dropout
            .map(|dropout| Multipliers::new(&dropout, &self.shape))
            .transpose()?;
        let mask = self.arguments.mask.as_ref();
        let mask = Broadcast::new("mask", mask, weights.shape())?;
        let multiplier = |index| multipliers.as_ref().map_or(1.0, |all| all.at(index));
        let d_dropped = d_dropped.view();
        let mut d_scores: Vec<f64> = d_dropped
            .iter_f64()
            .enumerate()
            .map(|(index, gradient)| gradient * multiplier(index))
            .collect();
        let keys = self.shape.key_length.max(1);
        for (row, gradients) in d_scores.chunks_mut(keys).enumerate() {
            let weight = |key: usize| weights.get_f64(row * keys + key);
            let along: f64 = gradients
                .iter()
                .enumerate()
                .map(|(key, gradient)| weight(key) * gradient)
                .sum();
            for (key, gradient) in gradients.iter_mut().enumerate() {
                *gradient = weight(key) * (*gradient - along);
            }
        }
        if let Some(mask) = mask {
            for (index, gradient) in d_scores.iter_mut().enumerate() {
                if !mask.view.is_nonzero(mask.at(index)) {
                    *gradient = 0.0;
                }
            }
        }
        Ok(d_scores)
    }

    /// Summed over the axes that the bias was broadcast along.
    fn bias(&self, d_scores: &[f64]) -> Result<Option<Tensor>> {
        let bias = self.arguments.bias.as_ref();
        let weights = self.kept.weights.shape();
        let Some(bias) = Broadcast::new("bias", bias, weights)? else {
            return Ok(None);
        };
        let shape = bias.view.shape();
        let mut sums = crate::tensor::filled(0.0, bias.view.elements(), shape)?;
        for (index, gradient) in d_scores.iter().enumerate() {
            sums[bias.at(index)] += gradient;
        }
        Tensor::from_f64s(ScalarType::F64, shape, sums).map(Some)
    }

    /// Through the scores: the gradients of queries and keys.
    fn queries_and_keys(
        &self,
        einsum: &dyn Einsum,
        d_scores: &TensorView<'_>,
    ) -> Result<[Tensor; 2]> {
        let arguments = self.arguments;
        let query = scaled(&arguments.query, self.shape.depth, self.dtype)?;
        let key = arguments.key.to_scalar(self.dtype.scalar())?;
        let (lhs, rhs) = (query.view(), key.view());
        let given = einsum.vjp(SCORES, lhs, rhs, *d_scores);
        let [d_scaled, d_key] = gradients("qk_attn_weights_einsum", given, [&lhs, &rhs])?;
        let root = root(self.shape.depth, self.dtype)?;
        let quotients = d_scaled.view();
        let quotients = quotients.iter_f64().map(|x| x / root);
        let d_query = Tensor::from_f64s(d_scaled.scalar(), d_scaled.shape(), quotients)?;
        Ok([d_query, d_key])
    }
}
