//! One call of a layer, as `Module.apply` makes it.

use super::case::Case;
use super::random::Drawn;
use super::{Outputs, axis, cache, gradients, layer};
use anyhow::{Error, Result, ensure};
use attn_layers::HostKernels;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{CacheAccess, Call, Output};

/// The arguments of a call that are tensors, whole.
#[derive(Clone, Copy)]
pub(crate) struct Arguments<'a> {
    pub(crate) inputs_q: TensorView<'a>,
    pub(crate) inputs_k: Option<TensorView<'a>>,
    pub(crate) inputs_v: Option<TensorView<'a>>,
    pub(crate) inputs_kv: Option<TensorView<'a>>,
    pub(crate) mask: Option<TensorView<'a>>,
}

impl<'a> Arguments<'a> {
    pub(crate) fn of(case: &'a Case) -> Result<Self> {
        case.call.only(&[
            "inputs_q",
            "inputs_k",
            "inputs_v",
            "inputs_kv",
            "mask",
            "deterministic",
            "dropout_rng",
            "sow_weights",
        ])?;
        Ok(Self {
            inputs_q: case.tensor("inputs_q")?,
            inputs_k: case.optional_tensor("inputs_k")?,
            inputs_v: case.optional_tensor("inputs_v")?,
            inputs_kv: case.optional_tensor("inputs_kv")?,
            mask: case.optional_tensor("mask")?,
        })
    }

    /// The library's call with these tensors, and with the case's other arguments.
    pub(crate) fn call(self, case: &'a Case, cache: CacheAccess<'a>) -> Result<Call<'a>> {
        Ok(Call::new(self.inputs_q)
            .with_inputs_k(self.inputs_k)
            .with_inputs_v(self.inputs_v)
            .with_inputs_kv(self.inputs_kv)
            .with_mask(self.mask)
            .with_deterministic(case.call.flag("deterministic")?)
            .with_dropout_rng(case.dropout_rng()?)
            .with_rngs(case.streams()?)
            .with_make_rng_count(case.make_rng_count)
            .with_sow_weights(case.call.flag("sow_weights")?.unwrap_or(false))
            .with_cache(cache))
    }
}

/// Makes the call.
///
/// # Errors
///
/// The library's error as it is, or what is wrong with the case.
pub(crate) fn run<B: HostKernels>(case: &Case, backend: &B) -> Result<Outputs> {
    let path = case.path();
    let layer = layer::of(case, &path)?;
    let params: Vec<_> = case.params.iter().collect();
    let arguments = Arguments::of(case)?;
    let before = if layer.decode {
        cache::before_call(case, &layer, &params)?
    } else {
        None
    };
    let mut after = before.clone();
    let access = match &before {
        _ if case.mutable => CacheAccess::Mutable(&mut after),
        Some(cache) => CacheAccess::Immutable(cache),
        None => CacheAccess::None,
    };
    let call = arguments.call(case, access)?;
    let called = match case.inputs.find("d_out") {
        None => layer
            .apply(backend, &params, call)
            .map(named)
            .map_err(Error::from),
        Some(d_out) => gradients::of_layer(backend, &layer, &params, call, d_out)
            .map(|(output, gradients)| named(output).into_iter().chain(gradients).collect()),
    };
    ensure!(
        called.is_ok() || after == before,
        "the call failed but changed the cache"
    );
    let mut outputs: Outputs = called?;
    if let Some(kept) = kept(case, &arguments)? {
        outputs.insert("dropout_keep".to_owned(), kept);
    }
    if let Some(cache) = after {
        cache::add_to(&mut outputs, cache)?;
    }
    Ok(outputs)
}

/// Which weights the call's dropout keeps.
fn kept(case: &Case, arguments: &Arguments<'_>) -> Result<Option<Tensor>> {
    let keys = arguments.inputs_kv.or(arguments.inputs_k);
    let length = |view: &TensorView<'_>| Ok::<_, Error>(view.shape()[axis::from_end(view, 2)?]);
    let query_length = length(&arguments.inputs_q)?;
    let key_length = keys.as_ref().map_or(Ok(query_length), length)?;
    let drawn = Drawn::in_layer(case, query_length, key_length)?;
    drawn.map(|drawn| drawn.kept(case.convention())).transpose()
}

/// The outputs by the names that cases give them.
pub(crate) fn named(output: Output) -> Outputs {
    let mut outputs = Outputs::from([("out".to_owned(), output.out)]);
    if let Some(weights) = output.attention_weights {
        outputs.insert("attention_weights".to_owned(), weights);
    }
    outputs
}
