//! Plain same-dtype arithmetic in Flax's order of operations: what the tolerance is derived from.

pub(super) mod backward;

use super::Maths;
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

/// What softmax makes of one row of scores.
pub(super) struct Softmax {
    /// The weights.
    pub(super) weights: Vec<f64>,
    /// The largest score, with what masked keys have among them.
    pub(super) largest: f64,
    /// The sum of the exponentials of the differences to it, as accumulated.
    pub(super) total: f64,
}

/// The softmax of one query as Flax computes it in `T`; `products` are those of the [`scaled`] query and the keys.
pub(super) fn softmax<T: Element>(
    products: &[f64],
    bias: Option<&[f64]>,
    seen: &[bool],
    fully_masked: FullyMasked,
    maths: &Maths,
) -> Softmax {
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
        return Softmax {
            weights: vec![0.0; products.len()],
            largest,
            total: 0.0,
        };
    }
    let exponentials: Vec<f64> = scores
        .iter()
        .map(|score| round::<T>((maths.exp)(round::<T>(score - largest))))
        .collect();
    let total = accumulate::<T>(exponentials.iter().copied());
    let divisor = round::<T>(total);
    Softmax {
        weights: (exponentials.iter())
            .map(|e| round::<T>(e / divisor))
            .collect(),
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

/// A pair of elements, turned, its cosine and sine rounded to the accumulator's type already.
pub(super) fn turned<T: Element>([a, b]: [f64; 2], [cos, sin]: [f64; 2]) -> [f64; 2] {
    let times = |x: f64, y: f64| round::<T::Acc>(x * y);
    [
        round::<T>(round::<T::Acc>(times(a, cos) - times(b, sin))),
        round::<T>(round::<T::Acc>(times(b, cos) + times(a, sin))),
    ]
}

/// The weights of the parts of a row, and the row's own statistics. Each part is `(m, l)`.
pub(super) fn merged<T: Element>(parts: &[[f64; 2]], maths: &Maths) -> (Vec<f64>, [f64; 2]) {
    let seen = || parts.iter().filter(|[_, l]| *l != 0.0);
    let largest = seen().map(|[m, _]| *m).fold(f64::NEG_INFINITY, f64::max);
    let share = |[m, l]: &[f64; 2]| match *l == 0.0 {
        true => 0.0,
        false => round::<T::Acc>(round::<T::Acc>((maths.exp)(round::<T::Acc>(m - largest))) * l),
    };
    let total = accumulate::<T>(parts.iter().map(share));
    let weight = |part| match total == 0.0 {
        true => 0.0,
        false => round::<T::Acc>(share(part) / total),
    };
    let largest = if total.is_nan() { total } else { largest };
    (parts.iter().map(weight).collect(), [largest, total])
}
