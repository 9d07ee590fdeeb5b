//! Dropout of weights that are held as an array: the same bits as the kernels make inside their tiles.

use crate::tensor::Tensor;
use attn_core::dropout::KeepBits;
use attn_core::{AttentionShape, Dropout, Result, ScalarType};

/// What weights, `[batch..., heads, query_length, key_length]`, are multiplied with.
pub(crate) struct Multipliers {
    bits: KeepBits,
    kept: f64,
    queries: usize,
    keys: usize,
}

impl Multipliers {
    pub(crate) fn new(dropout: &Dropout, shape: &AttentionShape) -> Result<Self> {
        Ok(Self {
            bits: dropout.bits(shape)?,
            kept: dropout.multiplier(),
            queries: shape.query_length,
            keys: shape.key_length,
        })
    }

    /// For the weight at a row-major index.
    pub(crate) fn at(&self, index: usize) -> f64 {
        let (row, key) = (index / self.keys, index % self.keys);
        let kept = self.bits.keeps(row / self.queries, row % self.queries, key);
        // A rate of 1 is Flax's 0 / 0, also for what is not kept.
        if kept || self.kept.is_nan() {
            self.kept
        } else {
            0.0
        }
    }
}

/// The weights after dropout, each rounded once to `scalar`.
pub(crate) fn drop_weights(
    weights: &Tensor,
    dropout: &Dropout,
    shape: &AttentionShape,
    scalar: ScalarType,
) -> Result<Tensor> {
    let multipliers = Multipliers::new(dropout, shape)?;
    let view = weights.view();
    let dropped = view
        .iter_f64()
        .enumerate()
        .map(|(index, weight)| weight * multipliers.at(index));
    Tensor::from_f64s(scalar, weights.shape(), dropped)
}
