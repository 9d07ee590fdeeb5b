//! Flax's attention functions.

use super::case::Case;
use super::layer::{canonical, precision};
use super::{Outputs, mask_helper};
use anyhow::{Context, Result, bail};
use attn_layers::cpu::Cpu;
use attn_layers::tensor::Tensor;
use attn_layers::{DotProductAttention, dot_product_attention, dot_product_attention_weights};

/// Calls the function that the case names.
///
/// # Errors
///
/// The library's error as it is, or what is wrong with the case.
pub(crate) fn run(case: &Case, cpu: &Cpu) -> Result<Outputs> {
    let name = case
        .function
        .as_deref()
        .context("case.function is missing")?;
    let result = match name {
        "dot_product_attention" => Some(attention(case, cpu)?),
        "dot_product_attention_weights" => Some(weights(case, cpu)?),
        "make_attention_mask" => Some(mask_helper::attention_mask(case)?),
        "make_causal_mask" => Some(mask_helper::causal_mask(case)?),
        "combine_masks" => mask_helper::combined(case)?,
        other => bail!("the function {other:?} is not supported"),
    };
    let mut outputs = Outputs::new();
    if let Some(result) = result {
        // A function has one result; the case may give it any name.
        let name = case.expected.keys().next().map_or("out", String::as_str);
        outputs.insert(name.to_owned(), result);
    }
    Ok(outputs)
}

const OPTIONS: [&str; 10] = [
    "positional",
    "bias",
    "mask",
    "broadcast_dropout",
    "dropout_rng",
    "dropout_rate",
    "deterministic",
    "dtype",
    "precision",
    "force_fp32_for_softmax",
];

fn attention(case: &Case, cpu: &Cpu) -> Result<Tensor> {
    case.call
        .only(&[&["query", "key", "value"], OPTIONS.as_slice()].concat())?;
    let value = case
        .argument(2, "value")?
        .context("call.value is missing")?;
    Ok(dot_product_attention(cpu, &arguments(case, 3)?, value)?)
}

fn weights(case: &Case, cpu: &Cpu) -> Result<Tensor> {
    case.call
        .only(&[&["query", "key"], OPTIONS.as_slice()].concat())?;
    Ok(dot_product_attention_weights(cpu, &arguments(case, 2)?)?)
}

/// The arguments but the value; `bias` and `mask` are the positional ones from `bias_position` on.
fn arguments(case: &Case, bias_position: usize) -> Result<DotProductAttention<'_>> {
    let call = &case.call;
    let query = case
        .argument(0, "query")?
        .context("call.query is missing")?;
    let key = case.argument(1, "key")?.context("call.key is missing")?;
    let mut arguments = DotProductAttention::new(query, key);
    arguments.bias = case.argument(bias_position, "bias")?;
    arguments.mask = case.argument(bias_position + 1, "mask")?;
    arguments.broadcast_dropout = call.flag("broadcast_dropout")?.unwrap_or(true);
    arguments.dropout_rng = case.dropout_rng()?;
    arguments.dropout_rate = call.number("dropout_rate")?.unwrap_or(0.0);
    arguments.deterministic = call.flag("deterministic")?.unwrap_or(false);
    arguments.dtype = call.scalar("dtype")?.map(|dtype| canonical(case, dtype));
    arguments.precision = precision(call.text("precision")?)?;
    arguments.force_fp32_for_softmax = call.flag("force_fp32_for_softmax")?.unwrap_or(false);
    Ok(arguments)
}
