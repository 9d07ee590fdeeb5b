//! What a call of a typed layer reads.

use crate::plan::Plan;
use attn_core::{
    Causal, Dims, Dropout, Element, Error, Mask, Result, RotaryTable, Storage, View, ViewMut,
};

/// The inputs of a call of a typed layer.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
#[derive(Debug)]
pub struct Inputs<'a, S: Storage, T: Element> {
    /// `[batch..., query_length, features]`.
    pub q: View<'a, S, T>,
    /// `[batch..., key_length, features]`.
    pub k: View<'a, S, T>,
    /// `[batch..., key_length, features]`.
    pub v: View<'a, S, T>,
    /// A mask tensor that broadcasts to `[batch..., heads, query_length, key_length]`.
    pub mask: Option<Mask<'a, S>>,
    /// A causal mask without a tensor.
    pub causal: Option<Causal>,
    /// Which weights are dropped after softmax.
    pub dropout: Option<Dropout>,
    /// Cosines and sines of the layer's rotary embedding, in the place of computing them for each token.
    pub rotary_table: Option<RotaryTable<'a, S, T::Acc>>,
    /// Where to put the attention weights, those before dropout, `[batch..., heads, query_length, key_length]`, if they are wanted.
    pub weights: Option<ViewMut<'a, S, T::Acc>>,
}

impl<'a, S: Storage, T: Element> Inputs<'a, S, T> {
    /// Queries, keys and values from one array.
    #[must_use]
    pub fn self_attention(x: View<'a, S, T>) -> Self {
        Self::cross_attention(x, x, x)
    }

    /// Queries, keys and values from three arrays.
    #[must_use]
    pub fn cross_attention(q: View<'a, S, T>, k: View<'a, S, T>, v: View<'a, S, T>) -> Self {
        Self {
            q,
            k,
            v,
            mask: None,
            causal: None,
            dropout: None,
            rotary_table: None,
            weights: None,
        }
    }

    /// With a mask tensor.
    #[must_use]
    pub fn with_mask(mut self, mask: Option<Mask<'a, S>>) -> Self {
        self.mask = mask;
        self
    }

    /// With a causal mask.
    #[must_use]
    pub fn with_causal(mut self, causal: Option<Causal>) -> Self {
        self.causal = causal;
        self
    }

    /// With dropout: [`Dropout::new`] makes it from a key, and [`Rngs::make_rng`](crate::random::Rngs::make_rng) makes the key.
    #[must_use]
    pub fn with_dropout(mut self, dropout: Option<Dropout>) -> Self {
        self.dropout = dropout;
        self
    }

    /// With a table of the layer's rotary embedding, which [`Rotary::fill_table`](attn_core::Rotary::fill_table) fills for every position of a call, in
    /// decoding for every one of the cache and those after it.
    #[must_use]
    pub fn with_rotary_table(mut self, table: Option<RotaryTable<'a, S, T::Acc>>) -> Self {
        self.rotary_table = table;
        self
    }

    /// Asking for the weights.
    #[must_use]
    pub fn with_weights(mut self, weights: Option<ViewMut<'a, S, T::Acc>>) -> Self {
        self.weights = weights;
        self
    }

    /// Whether every array has the plan's shape. `key_length` is that of the keys that queries see: a cache's, or the plan's.
    pub(crate) fn check(&self, plan: &Plan, key_length: usize) -> Result<()> {
        let arguments = [
            ("inputs_q", &self.q, plan.query_length),
            ("inputs_k", &self.k, plan.key_length),
            ("inputs_v", &self.v, plan.key_length),
        ];
        for ((argument, input, length), features) in arguments.into_iter().zip(plan.features) {
            same(
                argument,
                input.shape(),
                plan.batch.concat(&[length, features])?,
            )?;
        }
        let weights = plan
            .batch
            .concat(&[plan.num_heads, plan.query_length, key_length])?;
        if let Some(mask) = &self.mask {
            mask.view().broadcast_to("mask", &weights)?;
        }
        match &self.weights {
            Some(view) => same("weights", view.shape(), weights),
            None => Ok(()),
        }
    }
}

/// An argument's shape must be the one that is wanted.
pub(crate) fn same(argument: &'static str, got: &Dims, wanted: Dims) -> Result<()> {
    if *got == wanted {
        return Ok(());
    }
    Err(Error::Shape {
        argument,
        got: *got,
        wanted,
    })
}
