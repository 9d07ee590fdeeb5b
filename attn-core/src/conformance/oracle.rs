//! The truth: each operation from its definition, one output at a time. Products and sums run in pairs of `f64` that carry
//! about 106 bits; only the exponential and the last division of a weight are rounded to `f64`.

pub(super) mod backward;
pub(super) mod rotary;

use super::Maths;
use alloc::vec::Vec;
use core::iter::zip;

/// An unevaluated sum of two `f64`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pair {
    high: f64,
    low: f64,
}

impl From<f64> for Pair {
    fn from(high: f64) -> Self {
        Self { high, low: 0.0 }
    }
}

impl Pair {
    pub(super) fn value(self) -> f64 {
        self.high + self.low
    }

    /// Knuth's exact sum, then the low parts.
    pub(super) fn add(self, other: Self) -> Self {
        let sum = self.high + other.high;
        let back = sum - self.high;
        let error = (self.high - (sum - back)) + (other.high - back);
        Self::normalized(sum, error + self.low + other.low)
    }

    /// Dekker's exact product of two `f64`.
    fn product(a: f64, b: f64) -> Self {
        let split = |x: f64| {
            let scaled = x * 134_217_729.0; // 2^27 + 1
            let high = scaled - (scaled - x);
            (high, x - high)
        };
        let product = a * b;
        let ((a1, a2), (b1, b2)) = (split(a), split(b));
        Self {
            high: product,
            low: ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2,
        }
    }

    fn scaled(self, factor: f64) -> Self {
        let product = Self::product(self.high, factor);
        Self::normalized(product.high, product.low + self.low * factor)
    }

    fn times(self, other: Self) -> Self {
        let product = Self::product(self.high, other.high);
        let cross = self.high * other.low + self.low * other.high;
        Self::normalized(product.high, product.low + cross)
    }

    /// By long division: three quotients, each of what is left.
    fn over(self, other: Self) -> Self {
        let (mut rest, mut quotient) = (self, Self::default());
        for _ in 0..3 {
            let digit = rest.value() / other.high;
            quotient = quotient.add(digit.into());
            rest = rest.add(other.scaled(-digit));
        }
        quotient
    }

    fn negated(self) -> Self {
        Self {
            high: -self.high,
            low: -self.low,
        }
    }

    fn normalized(high: f64, low: f64) -> Self {
        if !high.is_finite() {
            return Self { high, low: 0.0 };
        }
        let sum = high + low;
        Self {
            high: sum,
            low: low - (sum - high),
        }
    }
}

/// `Σ a · b`.
pub(super) fn dot(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> Pair {
    a.zip(b)
        .fold(Pair::default(), |sum, (a, b)| sum.add(Pair::product(a, b)))
}

/// `Σ a · b · c`.
pub(super) fn dot3(
    a: impl Iterator<Item = f64>,
    b: impl Iterator<Item = f64>,
    c: impl Iterator<Item = f64>,
) -> Pair {
    zip(zip(a, b), c).fold(Pair::default(), |sum, ((a, b), c)| {
        let product = match b == 1.0 {
            true => Pair::product(a, c),
            false => Pair::product(a, b).scaled(c),
        };
        sum.add(product)
    })
}

/// `e^(a - b)`, the difference exact.
pub(super) fn exponential(a: f64, b: f64, maths: &Maths) -> f64 {
    let difference = Pair::from(a).add((-b).into());
    (maths.exp)(difference.high) * (1.0 + difference.low)
}

/// `Σ a · b + c`: one output of a dense layer.
pub(super) fn affine(a: &[f64], b: &[f64], c: f64) -> f64 {
    let (a, b) = (a.iter().copied().chain([1.0]), b.iter().copied().chain([c]));
    dot(a, b).value()
}

/// Layer norm of one row, with the variance from the differences to the mean.
pub(super) fn normalize(row: &[f64], scale: &[f64], epsilon: f64, maths: &Maths) -> Vec<f64> {
    let count = row.len() as f64;
    let mean = sum(row.iter().copied()).value() / count;
    let centred = || row.iter().map(|x| x - mean);
    let variance = dot(centred(), centred()).value() / count;
    let deviation = (maths.sqrt)(variance + epsilon);
    centred()
        .zip(scale)
        .map(|(x, scale)| x / deviation * scale)
        .collect()
}

pub(super) fn sum(values: impl Iterator<Item = f64>) -> Pair {
    values.fold(Pair::default(), |sum, value| sum.add(value.into()))
}

/// What one query sees and how its scores are made.
pub(super) struct Row<'a> {
    /// `q · k` for every key, from [`dot`].
    pub(super) products: Vec<Pair>,
    pub(super) scale: f64,
    pub(super) bias: Option<&'a [f64]>,
    pub(super) seen: &'a [bool],
    pub(super) zero_if_blind: bool,
    pub(super) maths: &'a Maths,
}

/// What softmax makes of a row.
pub(super) struct Softmax {
    pub(super) weights: Vec<f64>,
    /// The largest score and the sum of exponentials, if there is a finite score.
    pub(super) statistics: Option<[f64; 2]>,
}

impl Row<'_> {
    /// The weights of the row. A row that sees nothing weighs all keys alike (Flax) or none (ONNX, PyTorch).
    pub(super) fn softmax(&self) -> Softmax {
        let scores: Vec<Option<Pair>> = (0..self.products.len())
            .map(|key| self.seen[key].then(|| self.score(key)))
            .collect();
        let largest = (scores.iter().flatten())
            .map(|score| score.value())
            .fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY && (self.zero_if_blind || self.seen.contains(&false)) {
            return Softmax {
                weights: self.blind(),
                statistics: None,
            };
        }
        let exponentials: Vec<f64> = scores
            .iter()
            .map(|score| score.map_or(0.0, |score| self.exponential(score, largest)))
            .collect();
        let total = sum(exponentials.iter().copied()).value();
        Softmax {
            weights: exponentials.iter().map(|e| e / total).collect(),
            statistics: largest.is_finite().then_some([largest, total]),
        }
    }

    fn score(&self, key: usize) -> Pair {
        let scaled = self.products[key].scaled(self.scale);
        self.bias
            .map_or(scaled, |bias| scaled.add(bias[key].into()))
    }

    fn exponential(&self, score: Pair, largest: f64) -> f64 {
        let difference = score.add((-largest).into());
        (self.maths.exp)(difference.high) * (1.0 + difference.low)
    }

    /// No key has a finite score. Flax gives masked keys the lowest finite one, so they share the weight.
    fn blind(&self) -> Vec<f64> {
        let masked = self.seen.iter().filter(|seen| !**seen).count() as f64;
        let share = |&seen: &bool| {
            if seen || self.zero_if_blind {
                0.0
            } else {
                1.0 / masked
            }
        };
        self.seen.iter().map(share).collect()
    }
}
