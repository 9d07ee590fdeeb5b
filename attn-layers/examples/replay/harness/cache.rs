//! The collection `cache` of a case, before a call and after it.

use super::case::Case;
use super::{Outputs, axis};
use anyhow::{Context, Result, ensure};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{AnyCache, Call, MultiHeadDotProductAttention, ParamSource};

/// The cache that a single call finds: the tensors of the case, or an empty one if the case says how long, or none.
pub(crate) fn before_call(
    case: &Case,
    layer: &MultiHeadDotProductAttention<'_>,
    params: &dyn ParamSource,
) -> Result<Option<AnyCache>> {
    if let Some(key) = case.inputs.find("cache/cached_key") {
        return stored(case, key).map(Some);
    }
    if let Some(call) = creating_call(case)? {
        return Ok(Some(layer.init_cache(params, &call)?));
    }
    let Some(max_length) = case.max_length else {
        return Ok(None);
    };
    let inputs_q = case.tensor("inputs_q")?;
    let length = axis::from_end(&inputs_q, 2)?;
    ensure!(
        max_length <= 1 << 16,
        "case.max_length {max_length} is too large for a case without tensors of that length"
    );
    let mut shape = inputs_q.shape().to_vec();
    shape[length] = max_length;
    let empty = Tensor::zeros(inputs_q.scalar(), &shape)?;
    Ok(Some(layer.init_cache(params, &Call::new(empty.view()))?))
}

/// The call that creates the cache, if the case has inputs for one. It has no mask.
pub(crate) fn creating_call(case: &Case) -> Result<Option<Call<'_>>> {
    let Some(inputs_q) = case.inputs.find("init_inputs_q") else {
        return Ok(None);
    };
    let call = Call::new(inputs_q)
        .with_inputs_k(case.inputs.find("init_inputs_k"))
        .with_inputs_v(case.inputs.find("init_inputs_v"))
        .with_inputs_kv(case.inputs.find("init_inputs_kv"))
        .with_deterministic(case.call.flag("deterministic")?)
        .with_dropout_rng(case.dropout_rng()?)
        .with_rngs(case.streams()?)
        .with_make_rng_count(case.make_rng_count);
    Ok(Some(call))
}

/// Adds the collection to the outputs, by the names that cases give them.
pub(crate) fn add_to(outputs: &mut Outputs, cache: AnyCache) -> Result<()> {
    let index = Tensor::from_slice(&[cache.cache_index], &[])?;
    outputs.insert("cache/cached_key".to_owned(), cache.cached_key);
    outputs.insert("cache/cached_value".to_owned(), cache.cached_value);
    outputs.insert("cache/cache_index".to_owned(), index);
    Ok(())
}

fn stored(case: &Case, key: TensorView<'_>) -> Result<AnyCache> {
    let index = case.inputs.view("cache/cache_index")?;
    ensure!(
        index.elements() == 1,
        "cache/cache_index is {}; one number is needed",
        index.shape()
    );
    Ok(AnyCache {
        cached_key: key.to_tensor()?,
        cached_value: case
            .inputs
            .view("cache/cached_value")
            .context("the cache has no values")?
            .to_tensor()?,
        cache_index: index.get_f64(0) as i32,
    })
}
