//! Flax's attention functions.

use super::case::Case;
use super::layer::{canonical, precision};
use super::random::Drawn;
use super::{Outputs, gradients, mask_helper};
use anyhow::{Context, Result, bail, ensure};
use attn_layers::HostKernels;
use attn_layers::{DotProductAttention, dot_product_attention, dot_product_attention_weights};

/// Calls the function that the case names.
///
/// # Errors
///
/// The library's error as it is, or what is wrong with the case.
pub(crate) fn run<B: HostKernels>(case: &Case, backend: &B) -> Result<Outputs> {
    let name = case
        .function
        .as_deref()
        .context("case.function is missing")?;
    let result = match name {
        "dot_product_attention" => return attention(case, backend),
        "dot_product_attention_weights" => return weights(case, backend),
        "make_attention_mask" => Some(mask_helper::attention_mask(case)?),
        "make_causal_mask" => Some(mask_helper::causal_mask(case)?),
        "combine_masks" => mask_helper::combined(case)?,
        other => bail!("the function {other:?} is not supported"),
    };
    let result = result.map(|result| (result_name(case), result));
    Ok(result.into_iter().collect())
}

/// A function has one result; the case may give it any name.
fn result_name(case: &Case) -> String {
    let is_result = |name: &&String| *name != DROPOUT_KEEP && !name.starts_with("d_");
    let name = case.expected.keys().find(is_result);
    name.map_or_else(|| "out".to_owned(), String::clone)
}

const DROPOUT_KEEP: &str = "dropout_keep";

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

fn attention<B: HostKernels>(case: &Case, backend: &B) -> Result<Outputs> {
    case.call
        .only(&[&["query", "key", "value"], OPTIONS.as_slice()].concat())?;
    let value = case
        .argument(2, "value")?
        .context("call.value is missing")?;
    let arguments = arguments(case, 3)?;
    let (out, mut outputs) = match case.inputs.find("d_out") {
        None => (
            dot_product_attention(backend, &arguments, value)?,
            Outputs::new(),
        ),
        Some(d_out) => gradients::of_attention(backend, &arguments, value, d_out)?,
    };
    outputs.insert(result_name(case), out);
    add_kept(case, &arguments, &mut outputs)?;
    Ok(outputs)
}

fn weights<B: HostKernels>(case: &Case, backend: &B) -> Result<Outputs> {
    case.call
        .only(&[&["query", "key"], OPTIONS.as_slice()].concat())?;
    ensure!(
        case.inputs.find("d_out").is_none(),
        "gradients of the weights are not supported"
    );
    let arguments = arguments(case, 2)?;
    let weights = dot_product_attention_weights(backend, &arguments)?;
    let mut outputs = Outputs::from([(result_name(case), weights)]);
    add_kept(case, &arguments, &mut outputs)?;
    Ok(outputs)
}

/// Adds which weights the call's dropout keeps.
fn add_kept(case: &Case, arguments: &DotProductAttention<'_>, outputs: &mut Outputs) -> Result<()> {
    if let Some(drawn) = Drawn::in_function(case, &arguments.query, &arguments.key)? {
        outputs.insert(DROPOUT_KEEP.to_owned(), drawn.kept(case.convention())?);
    }
    Ok(())
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
    arguments.convention = case.convention();
    arguments.dropout_rate = call.number("dropout_rate")?.unwrap_or(0.0);
    arguments.deterministic = call.flag("deterministic")?.unwrap_or(false);
    arguments.dtype = call.scalar("dtype")?.map(|dtype| canonical(case, dtype));
    arguments.precision = precision(call.text("precision")?)?;
    arguments.force_fp32_for_softmax = call.flag("force_fp32_for_softmax")?.unwrap_or(false);
    Ok(arguments)
}
