//! Flax's mask helpers: `make_attention_mask`, `make_causal_mask`, `combine_masks`.

use super::case::Case;
use super::layer::canonical;
use anyhow::{Context, Result, bail};
use attn_layers::tensor::Tensor;
use attn_layers::{ScalarType, combine_masks, make_attention_mask_with, make_causal_mask};

/// The mask of one `[batch..., query_length]` and one `[batch..., key_length]` input.
pub(crate) fn attention_mask(case: &Case) -> Result<Tensor> {
    case.call.only(&[
        "positional",
        "query_input",
        "key_input",
        "pairwise_fn",
        "extra_batch_dims",
        "dtype",
    ])?;
    let query_input = case
        .argument(0, "query_input")?
        .context("call.query_input is missing")?;
    let key_input = case
        .argument(1, "key_input")?
        .context("call.key_input is missing")?;
    let pairwise_fn = pairwise_fn(case.call.text("pairwise_fn")?)?;
    Ok(make_attention_mask_with(
        &query_input,
        &key_input,
        pairwise_fn,
        extra_batch_dims(case)?,
        dtype(case)?,
    )?)
}

/// The causal mask for an input's shape.
pub(crate) fn causal_mask(case: &Case) -> Result<Tensor> {
    case.call
        .only(&["positional", "x", "extra_batch_dims", "dtype"])?;
    let x = case.argument(0, "x")?.context("call.x is missing")?;
    Ok(make_causal_mask(&x, extra_batch_dims(case)?, dtype(case)?)?)
}

/// All given masks in one, or none.
pub(crate) fn combined(case: &Case) -> Result<Option<Tensor>> {
    case.call.only(&["positional", "masks", "dtype"])?;
    let mut masks = Vec::new();
    for name in case
        .call
        .texts("positional")?
        .into_iter()
        .chain(case.call.texts("masks")?)
    {
        masks.push(name.map(|name| case.inputs.view(name)).transpose()?);
    }
    Ok(combine_masks(&masks, dtype(case)?)?)
}

fn extra_batch_dims(case: &Case) -> Result<usize> {
    Ok(case.call.size("extra_batch_dims")?.unwrap_or(0))
}

/// The mask's type; Flax's default is float32.
fn dtype(case: &Case) -> Result<ScalarType> {
    Ok(canonical(
        case,
        case.call.scalar("dtype")?.unwrap_or(ScalarType::F32),
    ))
}

/// The function of a query's and a key's entry that JAX calls `name`.
fn pairwise_fn(name: Option<&str>) -> Result<fn(f64, f64) -> f64> {
    fn truth(value: bool) -> f64 {
        f64::from(u8::from(value))
    }
    let name = name.unwrap_or("multiply");
    let plain = name.rsplit('.').next().unwrap_or(name);
    Ok(match plain {
        "multiply" => |query, key| query * key,
        "add" => |query, key| query + key,
        "subtract" => |query, key| query - key,
        "minimum" => f64::min,
        "maximum" => f64::max,
        "equal" => |query, key| truth(query == key),
        "not_equal" => |query, key| truth(query != key),
        "less" => |query, key| truth(query < key),
        "less_equal" => |query, key| truth(query <= key),
        "greater" => |query, key| truth(query > key),
        "greater_equal" => |query, key| truth(query >= key),
        "logical_and" => |query, key| truth(query != 0.0 && key != 0.0),
        "logical_or" => |query, key| truth(query != 0.0 || key != 0.0),
        _ => bail!("call.pairwise_fn {name:?} is not supported"),
    })
}
