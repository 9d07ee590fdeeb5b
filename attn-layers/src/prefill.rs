//! Many tokens of decoding at once, bit for bit what one by one gives.

use crate::axis::{concatenate, slice};
use crate::cache::{AnyCache, Overwritten};
use crate::einsum::lowest;
use crate::forward::{Pass, Projected, resolve};
use crate::layer::{Call, Output};
use crate::stage::HostKernels;
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{Error, Result, ScalarType, error::Disagreement};

/// The tokens of one call, the cache unchanged if it fails.
pub(crate) fn prefill<B: HostKernels>(
    pass: &Pass<'_, '_, B>,
    call: &Call<'_>,
    cache: &mut AnyCache,
) -> Result<Output> {
    let mut parts = Parts::default();
    let result = parts.run(pass, call, cache);
    if result.is_err() {
        // The last part first: later ones may have written over the same slot.
        for overwritten in parts.overwritten.into_iter().rev() {
            overwritten.restore(cache);
        }
    }
    result
}

/// What the parts done so far gave.
#[derive(Default)]
struct Parts {
    outputs: Vec<Tensor>,
    weights: Vec<Tensor>,
    overwritten: Vec<Overwritten>,
    /// Whether every token is a part.
    one_by_one: bool,
}

impl Parts {
    /// All tokens that fit are one part, but for blind ones; past the end every token is one, since each overwrites the last slot.
    fn run<B: HostKernels>(
        &mut self,
        pass: &Pass<'_, '_, B>,
        call: &Call<'_>,
        cache: &mut AnyCache,
    ) -> Result<Output> {
        let inputs = resolve(call)?;
        let (axis, tokens) = token_axis(&inputs)?;
        let mut done = 0;
        // Each of the calls that feed one token draws the same numbers for its one row.
        self.one_by_one = pass.may_drop(call);
        // Without any token there is still one (empty) part, for its checks and its output.
        while done < tokens || self.outputs.is_empty() {
            let most = cache.free()?.max(1).min(tokens - done);
            let count = match self.one_by_one {
                true => 1.min(most),
                false => at_once(call.mask.as_ref(), done, cache.cache_index, most),
            };
            let [q, k, v] = inputs.map(|input| slice("inputs", &input, axis, done, count));
            let mask = call.mask.map(|mask| rows(&mask, done, count)).transpose()?;
            let (q, k, v) = (q?, k?, v?);
            let part = Call::new(q.view())
                .with_inputs_k(Some(k.view()))
                .with_inputs_v(Some(v.view()))
                .with_mask(mask.as_ref().map(Tensor::view))
                .with_deterministic(call.deterministic)
                .with_dropout_rng(call.dropout_rng)
                .with_rngs(call.rngs)
                .with_make_rng_count(call.make_rng_count)
                .with_sow_weights(call.sow_weights);
            let projected = pass.project_inputs(&part, pass.position_in(cache)?)?;
            // Without a mask every query sees its own key, whose score is enough to outweigh later slots.
            let older = call.mask.map(|_| cache.cached_key.view());
            if count > 1 && !hides_later_slots(&projected, older) {
                self.one_by_one = true;
                continue;
            }
            pass.check_query(&projected, cache, count)?;
            let (output, overwritten) = pass.step(&part, &projected, cache, count)?;
            self.overwritten.push(overwritten);
            self.outputs.push(output.out);
            self.weights.extend(output.attention_weights);
            done += count;
        }
        self.join(axis)
    }

    fn join(&self, axis: usize) -> Result<Output> {
        let out = concatenate(&self.outputs, axis)?.ok_or(NO_LENGTH)?;
        // The query axis of `[batch..., heads, query_length, key_length]`.
        let attention_weights = concatenate(&self.weights, axis + 1)?;
        Ok(Output {
            out,
            attention_weights,
        })
    }
}

const NO_LENGTH: Error = Error::Rank {
    argument: "inputs_q",
    got: 1,
    wanted: "[batch..., length, features]",
};

/// The axis of tokens, and how many there are: as many keys and values as queries.
fn token_axis([query, key, value]: &[TensorView<'_>; 3]) -> Result<(usize, usize)> {
    let axis = query.shape().rank().checked_sub(2).ok_or(NO_LENGTH)?;
    let tokens = query.shape()[axis];
    for other in [key, value] {
        if other.shape().get(axis) != Some(&tokens) {
            return Err(Error::Mismatch {
                what: Disagreement::Lengths,
                left: *query.shape(),
                right: *other.shape(),
            });
        }
    }
    Ok((axis, tokens))
}

/// Whether the slots after a query's own get a weight of 0, and whether that hides what lies in them: a weight of 0 does not hide an
/// infinite value, and beside a score of -inf, or near it, that of a masked slot counts. Tokens for which it does not hold are
/// written one after the other.
fn hides_later_slots(projected: &Projected, older: Option<TensorView<'_>>) -> bool {
    let Projected { query, key, value } = projected;
    let older_keys = older.as_ref().map_or(0.0, largest);
    let most_key = largest(&key.view()).max(older_keys);
    let depth = query.shape().last().copied().unwrap_or(0);
    let most_score = largest(&query.view()) * most_key * libm::sqrt(depth as f64);
    let keys = older.map_or(key.scalar(), |older| older.scalar());
    let limit = [query.scalar(), key.scalar(), keys]
        .into_iter()
        .filter_map(ScalarType::float)
        .fold(f64::MAX, |limit, dtype| limit.min(-lowest(dtype)));
    // Half of it leaves room for rounding, and for the exponential of the distance to be 0.
    most_score < limit / 2.0 && largest(&value.view()) < f64::INFINITY
}

/// The largest magnitude, infinite if an element is not a number.
fn largest(tensor: &TensorView<'_>) -> f64 {
    fn of(elements: impl Iterator<Item = f64>) -> f64 {
        elements.fold(0.0, |most, x| match x.is_nan() {
            true => f64::INFINITY,
            false => f64::max(most, x.abs()),
        })
    }
    match tensor.as_slice::<f32>() {
        Some(elements) => of(elements.iter().copied().map(f64::from)),
        None => of(tensor.iter_f64()),
    }
}

/// How many of the next tokens can be done at once: those up to the first blind one. It sees no key in some row and so gets the mean
/// of all slots, of which those after its own must not be written yet.
fn at_once(mask: Option<&TensorView<'_>>, first: usize, cache_index: i32, most: usize) -> usize {
    let seen = |token: usize| (cache_index as isize).saturating_add_unsigned(token + 1);
    (0..most)
        .find(|&token| is_blind(mask, first + token, seen(token)))
        .map_or(most, |blind| blind + 1)
}

/// Whether some batch entry and head of a mask's `row` lets none of the first `seen` keys be seen.
fn is_blind(mask: Option<&TensorView<'_>>, row: usize, seen: isize) -> bool {
    let Some(seen) = usize::try_from(seen).ok().filter(|&seen| seen > 0) else {
        return true;
    };
    let Some(mask) = mask.filter(|mask| mask.elements() > 0) else {
        return false;
    };
    let [leading @ .., rows, keys] = mask.shape().as_slice() else {
        return false;
    };
    let row = if *rows == 1 { 0 } else { row };
    if row >= *rows {
        return false;
    }
    let mut entries = 0..leading.iter().product::<usize>();
    entries.any(|entry| {
        let start = (entry * rows + row) * keys;
        !(start..start + seen.min(*keys)).any(|index| mask.is_nonzero(index))
    })
}

/// The rows of a mask that belong to some queries; one row for all stays as it is.
fn rows(mask: &TensorView<'_>, first: usize, count: usize) -> Result<Tensor> {
    match mask.shape().rank().checked_sub(2) {
        Some(axis) if mask.shape()[axis] != 1 => slice("mask", mask, axis, first, count),
        _ => mask.to_tensor(),
    }
}
