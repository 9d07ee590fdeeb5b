//! One call of a layer, as `Module.apply` makes it.

use super::case::Case;
use super::{Outputs, cache, layer};
use anyhow::{Result, ensure};
use attn_layers::cpu::Cpu;
use attn_layers::tensor::TensorView;
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
            .with_sow_weights(case.call.flag("sow_weights")?.unwrap_or(false))
            .with_cache(cache))
    }
}

/// Makes the call.
///
/// # Errors
///
/// The library's error as it is, or what is wrong with the case.
pub(crate) fn run(case: &Case, cpu: &Cpu) -> Result<Outputs> {
    ensure!(
        case.inputs.find("d_out").is_none(),
        "gradients are not supported yet"
    );
    let layer = layer::of(case)?;
    let params: Vec<_> = case.params.iter().collect();
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
    let called = layer.apply(cpu, &params, Arguments::of(case)?.call(case, access)?);
    ensure!(
        called.is_ok() || after == before,
        "the call failed but changed the cache"
    );
    let mut outputs = named(called?);
    if let Some(cache) = after {
        cache::add_to(&mut outputs, cache)?;
    }
    Ok(outputs)
}

/// The outputs by the names that cases give them.
pub(crate) fn named(output: Output) -> Outputs {
    let mut outputs = Outputs::from([("out".to_owned(), output.out)]);
    if let Some(weights) = output.attention_weights {
        outputs.insert("attention_weights".to_owned(), weights);
    }
    outputs
}
