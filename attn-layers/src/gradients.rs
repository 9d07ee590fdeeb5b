//! What a backward pass gives: the gradients of a layer's inputs and parameters.

use crate::forward::roles;
use crate::layer::Call;
use crate::params::ParamSource;
use crate::stage_backward::of_float;
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::Result;

/// The gradients of a call of [`MultiHeadDotProductAttention`](crate::MultiHeadDotProductAttention), each of its array's shape and dtype. There
/// is one for each input that was given, unless it holds integers, which have none.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// Of `inputs_q`; in self-attention the sum of its uses as query, key and value.
    pub d_inputs_q: Option<Tensor>,
    /// Of `inputs_k`; without `inputs_v` the sum of its uses as key and value.
    pub d_inputs_k: Option<Tensor>,
    /// Of `inputs_v`.
    pub d_inputs_v: Option<Tensor>,
    /// Of `inputs_kv`: the sum of its uses as key and value.
    pub d_inputs_kv: Option<Tensor>,
    /// Of the parameters.
    pub params: ParamGradients,
}

/// The gradients of a layer's parameters by Flax's names and in its order: `query/kernel`, `query/bias`, `key/…`, `value/…`, `query_ln/scale`,
/// `key_ln/scale`, `out/kernel`, `out/bias`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ParamGradients {
    entries: Vec<(&'static str, Tensor)>,
}

impl ParamGradients {
    /// Each path with its gradient.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, TensorView<'_>)> {
        self.entries
            .iter()
            .map(|(path, tensor)| (*path, tensor.view()))
    }

    pub(crate) fn extend(&mut self, path: &'static str, gradient: Option<Tensor>) {
        self.entries
            .extend(gradient.map(|gradient| (path, gradient)));
    }

    pub(crate) fn push(&mut self, path: &'static str, gradient: Tensor) {
        self.entries.push((path, gradient));
    }
}

impl IntoIterator for ParamGradients {
    type Item = (&'static str, Tensor);
    type IntoIter = alloc::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl ParamSource for ParamGradients {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        self.entries.tensor(scope, name)
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The gradients of the inputs as their uses come in.
pub(crate) struct InputSums {
    /// Which input serves as query, key and value.
    serves: [usize; 3],
    sums: [Option<Tensor>; 3],
}

impl InputSums {
    pub(crate) fn new(call: &Call<'_>) -> Result<Self> {
        let key = call.inputs_k.map(|_| 1);
        let value = call.inputs_v.map(|_| 2);
        let both = call.inputs_kv.map(|_| 1);
        Ok(Self {
            serves: roles(0, key, value, both)?,
            sums: [None, None, None],
        })
    }

    /// The sum so far of the input that serves as query (0), key (1) or value (2); to be put back with the new use.
    pub(crate) fn of(&mut self, role: usize) -> &mut Option<Tensor> {
        &mut self.sums[self.serves[role]]
    }

    /// The gradients, with those of the parameters.
    pub(crate) fn finish(self, call: &Call<'_>, params: ParamGradients) -> Result<Gradients> {
        let [mut query, key, d_inputs_v] = self.sums;
        if query.is_none() {
            // An array without a use changes nothing.
            query = Some(Tensor::zeros(
                call.inputs_q.scalar(),
                call.inputs_q.shape(),
            )?);
        }
        let (d_inputs_k, d_inputs_kv) = match call.inputs_kv {
            Some(_) => (None, key),
            None => (key, None),
        };
        let of_floats =
            |gradient: Option<Tensor>, input: Option<TensorView<'_>>| of_float(gradient?, &input?);
        Ok(Gradients {
            d_inputs_q: of_floats(query, Some(call.inputs_q)),
            d_inputs_k: of_floats(d_inputs_k, call.inputs_k),
            d_inputs_v: of_floats(d_inputs_v, call.inputs_v),
            d_inputs_kv: of_floats(d_inputs_kv, call.inputs_kv),
            params,
        })
    }
}
