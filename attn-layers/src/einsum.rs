//! The attention core around a user's einsums. It holds the scores, since the user's code must see them; every step is
//! rounded to the dtype as Flax does it.

use crate::functions::{Attended, DotProductAttention};
use crate::hooks::Einsum;
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{Causal, DType, Error, Layout, Result, ScalarType};

pub(crate) struct Unfused<'a> {
    pub(crate) qk: &'a dyn Einsum,
    pub(crate) value: &'a dyn Einsum,
    pub(crate) dtype: DType,
    pub(crate) causal: Option<Causal>,
    pub(crate) force_fp32: bool,
}

impl Unfused<'_> {
    pub(crate) fn run(
        &self,
        arguments: &DotProductAttention<'_>,
        value: &TensorView<'_>,
        weights: bool,
    ) -> Result<Attended> {
        let scalar = self.dtype.scalar();
        let (query, key) = (
            arguments.query.to_scalar(scalar)?,
            arguments.key.to_scalar(scalar)?,
        );
        let value = value.to_scalar(scalar)?;
        let query = self.scaled(&query)?;
        let scores = self
            .qk
            .call("...qhd,...khd->...hqk", query.view(), key.view())?;
        let normalized = self.softmax(&scores, arguments)?;
        let out = self
            .value
            .call("...hqk,...khd->...qhd", normalized.view(), value.view())?;
        Ok(Attended {
            out,
            weights: weights.then_some(normalized),
        })
    }

    /// Queries divided by the square root of their depth, itself rounded to the dtype.
    fn scaled(&self, query: &Tensor) -> Result<Tensor> {
        let depth = query.shape().last().copied().unwrap_or(1);
        let root = Tensor::from_f64s(self.dtype.scalar(), &[], [libm::sqrt(depth as f64)])?
            .view()
            .get_f64(0);
        Tensor::from_f64s(
            self.dtype.scalar(),
            query.shape(),
            query.view().iter_f64().map(|x| x / root),
        )
    }

    fn softmax(&self, scores: &Tensor, arguments: &DotProductAttention<'_>) -> Result<Tensor> {
        let shape = *scores.shape();
        let [.., query_length, key_length] = *shape.as_slice() else {
            return Err(Error::Hook {
                hook: "qk_attn_weights_einsum",
                reason: "its result has fewer than two axes",
            });
        };
        let layout = |view: &TensorView<'_>, name| {
            Layout::contiguous(*view.shape())?.broadcast_to(name, &shape)
        };
        let bias = arguments
            .bias
            .as_ref()
            .map(|bias| Ok((bias, layout(bias, "bias")?)))
            .transpose()?;
        let mask = arguments
            .mask
            .as_ref()
            .map(|mask| Ok((mask, layout(mask, "mask")?)))
            .transpose()?;
        let fill = lowest(self.dtype);
        let mut values = Vec::new();
        for (index, score) in scores.view().iter_f64().enumerate() {
            let at = |layout: &Layout| layout.base(shape.rank(), index);
            let (query, key) = (index / key_length % query_length, index % key_length);
            let masked = mask
                .as_ref()
                .is_some_and(|(mask, layout)| !mask.is_nonzero(at(layout)));
            let hidden = self
                .causal
                .is_some_and(|causal| !causal.sees(query, key, query_length, key_length));
            let biased = score
                + bias
                    .as_ref()
                    .map_or(0.0, |(bias, layout)| bias.get_f64(at(layout)));
            values.push(if masked || hidden { fill } else { biased });
        }
        let weights_type = if self.force_fp32 {
            ScalarType::F32
        } else {
            self.dtype.scalar()
        };
        for row in values.chunks_mut(key_length.max(1)) {
            normalize(row);
        }
        Tensor::from_f64s(weights_type, &shape, values)
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
fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f32::MIN.into(),
        DType::F64 => f64::MIN,
        DType::F16 => attn_core::f16::MIN.to_f64(),
        DType::BF16 => attn_core::bf16::MIN.to_f64(),
    }
}
