//! Plain same-dtype arithmetic in Flax's order of operations: what the tolerance is derived from.

pub(super) mod backward;

use super::Maths;
use super::oracle::Pair;
use super::rows::Line;
use crate::dtype::Element;
use crate::mask::FullyMasked;
use crate::scores::Scale;
use alloc::vec;
use alloc::vec::Vec;

/// Rounds to `T` and back.
pub(super) fn round<T: Element>(value: f64) -> f64 {
    T::from_f64(value).to_f64()
}

/// A sum in the accumulator's type, from the first term to the last.
pub(super) fn accumulate<T: Element>(terms: impl Iterator<Item = f64>) -> f64 {
    terms.fold(0.0, |sum, term| {
        round::<T::Acc>(sum + round::<T::Acc>(term))
    })
}

/// `Σ a · b` accumulated, then rounded to `T`.
pub(super) fn dot<T: Element>(a: &[f64], b: &[f64]) -> f64 {
    round::<T>(accumulate::<T>(a.iter().zip(b).map(|(a, b)| a * b)))
}

/// A sum of numbers of `T`, rounded to `T` at its end.
pub(super) fn sum<T: Element>(terms: impl Iterator<Item = f64>) -> f64 {
    round::<T>(accumulate::<T>(terms))
}

/// An element of a query of `depth` as it meets the keys. Flax divides it by a root that is rounded to `T`; a factor of the
/// caller's is rounded likewise.
pub(super) fn rescale<T: Element>(x: f64, depth: usize, scale: Scale, maths: &Maths) -> f64 {
    match scale {
        Scale::InverseSqrtDepth => round::<T>(x / round::<T>((maths.sqrt)(depth as f64))),
        _ => round::<T>(x * round::<T>(scale.factor(depth, maths.sqrt))),
    }
}

/// The query as it meets the keys.
pub(super) fn scaled<T: Element>(query: &[f64], scale: Scale, maths: &Maths) -> Vec<f64> {
    let rescaled = |x: &f64| rescale::<T>(*x, query.len(), scale, maths);
    query.iter().map(rescaled).collect()
}

/// The products of a scaled query and every key.
pub(super) fn products<T: Element>(scaled: &[f64], keys: &[Vec<f64>]) -> Vec<f64> {
    keys.iter().map(|key| dot::<T>(scaled, key)).collect()
}

/// What becomes of the products of one query on their way to scores, each step rounded to `T`.
pub(super) struct Scores {
    /// The softcap's hyperbolic tangents, if there is one.
    pub(super) tanh: Option<Vec<f64>>,
    /// After the softcap.
    pub(super) capped: Vec<f64>,
    /// With all that is added, and what masked keys have.
    pub(super) masked: Vec<f64>,
}

/// The scores of one query as Flax would make them in `T`; `products` are those of the [`scaled`] query and the keys.
pub(super) fn scores<T: Element>(products: &[f64], line: &Line) -> Scores {
    let tanh = line.softcap.map(|cap| {
        let cap = round::<T>(cap);
        let tanh = |x: &f64| round::<T>(Pair::from(round::<T>(x / cap)).tanh().value());
        products.iter().map(tanh).collect::<Vec<f64>>()
    });
    let capped: Vec<f64> = match (&tanh, line.softcap) {
        (Some(tanh), Some(cap)) => (tanh.iter())
            .map(|tanh| round::<T>(round::<T>(cap) * tanh))
            .collect(),
        _ => products.to_vec(),
    };
    let fill = match line.fully_masked {
        FullyMasked::MeanOfValues => lowest::<T>(),
        FullyMasked::Zero => f64::NEG_INFINITY,
    };
    let masked = (0..products.len())
        .map(|key| match line.seen[key] {
            true => added::<T>(capped[key], line, key),
            false => fill,
        })
        .collect();
    Scores {
        tanh,
        capped,
        masked,
    }
}

fn added<T: Element>(capped: f64, line: &Line, key: usize) -> f64 {
    let mut score = round::<T>(capped + line.bias.as_ref().map_or(0.0, |bias| bias[key]));
    if let Some((slope, distances)) = &line.alibi {
        score = round::<T>(score + round::<T>(slope * distances[key]));
    }
    if let Some((table, columns)) = &line.relative {
        score = round::<T>(score + round::<T>(table[columns[key]]));
    }
    score
}

/// What softmax makes of one row of scores.
pub(super) struct Softmax {
    /// The weights.
    pub(super) weights: Vec<f64>,
    /// The weight of the sink, which is no key's.
    pub(super) sink: f64,
    /// The largest score, with what masked keys have and the sink among them.
    pub(super) largest: f64,
    /// The sum of the exponentials of the differences to it, as accumulated.
    pub(super) total: f64,
}

/// The softmax of one query as Flax computes it in `T`.
pub(super) fn softmax<T: Element>(scores: &Scores, line: &Line, maths: &Maths) -> Softmax {
    let sink = line.sink.map(round::<T>);
    let largest = (scores.masked.iter().copied()).fold(sink.unwrap_or(f64::NEG_INFINITY), f64::max);
    if largest == f64::NEG_INFINITY && line.is_zero_if_blind() {
        return Softmax {
            weights: vec![0.0; scores.masked.len()],
            sink: 0.0,
            largest,
            total: 0.0,
        };
    }
    let exponential = |score: f64| round::<T>((maths.exp)(round::<T>(score - largest)));
    let exponentials: Vec<f64> = (scores.masked.iter().copied()).map(exponential).collect();
    let of_sink = sink.map(exponential);
    let total = accumulate::<T>(exponentials.iter().copied().chain(of_sink));
    let divisor = round::<T>(total);
    let share = |exponential: f64| round::<T>(exponential / divisor);
    Softmax {
        weights: exponentials.iter().copied().map(share).collect(),
        sink: of_sink.map_or(0.0, share),
        largest,
        total,
    }
}

/// The weights after dropout.
pub(super) fn dropped<T: Element>(weights: &[f64], factors: &[f64]) -> Vec<f64> {
    let pairs = weights.iter().zip(factors);
    pairs.map(|(w, factor)| round::<T>(w * factor)).collect()
}

/// The lowest finite number: what Flax gives a masked key for a score.
pub(super) fn lowest<T: Element>() -> f64 {
    match T::DTYPE {
        crate::DType::F32 => f32::MIN.into(),
        crate::DType::F64 => f64::MIN,
        crate::DType::F16 => crate::f16::MIN.to_f64(),
        crate::DType::BF16 => crate::bf16::MIN.to_f64(),
    }
}

/// Layer norm of one row as Flax computes it: the fast variance, in the accumulator's type.
pub(super) fn normalize<T: Element>(
    row: &[f64],
    scale: &[f64],
    epsilon: f64,
    maths: &Maths,
) -> Vec<f64> {
    let acc = round::<T::Acc>;
    let count = row.len() as f64;
    let mean = acc(accumulate::<T>(row.iter().copied()) / count);
    let square = acc(accumulate::<T>(row.iter().map(|x| acc(x * x))) / count);
    let variance = acc(square - acc(mean * mean)).max(0.0);
    let factor = acc(1.0 / acc((maths.sqrt)(acc(variance + epsilon))));
    row.iter()
        .zip(scale)
        .map(|(x, scale)| round::<T>(acc(acc(x - mean) * acc(factor * scale))))
        .collect()
}
