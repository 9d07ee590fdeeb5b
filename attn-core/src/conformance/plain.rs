//! Plain same-dtype arithmetic in Flax's order of operations: what the tolerance is derived from.

use super::Maths;
use crate::dtype::Element;
use crate::mask::FullyMasked;
use crate::request::Scale;
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

/// The query as it meets the keys. Flax divides it by a root that is rounded to `T`; a factor of the caller's is rounded likewise.
pub(super) fn scaled<T: Element>(query: &[f64], scale: Scale, maths: &Maths) -> Vec<f64> {
    let depth = query.len();
    let root = round::<T>((maths.sqrt)(depth as f64));
    let factor = round::<T>(scale.factor(depth, maths.sqrt));
    let scaled = query.iter().map(|x| match scale {
        Scale::InverseSqrtDepth => round::<T>(x / root),
        _ => round::<T>(x * factor),
    });
    scaled.collect()
}

/// The products of a scaled query and every key.
pub(super) fn products<T: Element>(scaled: &[f64], keys: &[Vec<f64>]) -> Vec<f64> {
    keys.iter().map(|key| dot::<T>(scaled, key)).collect()
}

/// The weights of one query as Flax computes them in `T`; `products` are those of the [`scaled`] query and the keys.
pub(super) fn weights<T: Element>(
    products: &[f64],
    bias: Option<&[f64]>,
    seen: &[bool],
    fully_masked: FullyMasked,
    maths: &Maths,
) -> Vec<f64> {
    let fill = match fully_masked {
        FullyMasked::MeanOfValues => lowest::<T>(),
        FullyMasked::Zero => f64::NEG_INFINITY,
    };
    let scores: Vec<f64> = (0..products.len())
        .map(|key| {
            let score = round::<T>(products[key] + bias.map_or(0.0, |bias| bias[key]));
            if seen[key] { score } else { fill }
        })
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY && fully_masked == FullyMasked::Zero {
        return vec![0.0; products.len()];
    }
    let exponentials: Vec<f64> = scores
        .iter()
        .map(|score| round::<T>((maths.exp)(round::<T>(score - largest))))
        .collect();
    let total = round::<T>(accumulate::<T>(exponentials.iter().copied()));
    exponentials.iter().map(|e| round::<T>(e / total)).collect()
}

fn lowest<T: Element>() -> f64 {
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
