//! The truth: each operation from its definition, one output at a time, in pairs of `f64` that carry about 106 bits.

use super::check::Maths;
use alloc::vec::Vec;

/// An unevaluated sum of two `f64`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pair {
    high: f64,
    low: f64,
}

impl Pair {
    pub(super) fn value(self) -> f64 {
        self.high + self.low
    }

    /// Knuth's exact sum, then the low parts.
    fn add(self, other: Self) -> Self {
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

pub(super) fn sum(values: impl Iterator<Item = f64>) -> Pair {
    values.fold(Pair::default(), |sum, value| {
        sum.add(Pair {
            high: value,
            low: 0.0,
        })
    })
}

/// What one query sees and how its scores are made.
pub(super) struct Row<'a> {
    /// `q · k` for every key, from [`dot`].
    pub(super) products: Vec<Pair>,
    pub(super) scale: f64,
    pub(super) bias: Option<Vec<f64>>,
    pub(super) seen: Vec<bool>,
    pub(super) zero_if_blind: bool,
    pub(super) maths: &'a Maths,
}

impl Row<'_> {
    /// The weights of the row. A row that sees nothing weighs all keys alike (Flax) or none (ONNX, PyTorch).
    pub(super) fn weights(&self) -> Vec<f64> {
        let count = self.products.len();
        if !self.seen.contains(&true) {
            let weight = if self.zero_if_blind {
                0.0
            } else {
                1.0 / count as f64
            };
            return alloc::vec![weight; count];
        }
        let scores: Vec<Option<Pair>> = (0..count)
            .map(|key| {
                let bias = self.bias.as_ref().map_or(0.0, |bias| bias[key]);
                let score = self.products[key].scaled(self.scale).add(Pair {
                    high: bias,
                    low: 0.0,
                });
                self.seen[key].then_some(score)
            })
            .collect();
        let seen = || scores.iter().flatten();
        let largest = seen()
            .map(|score| score.value())
            .fold(f64::NEG_INFINITY, f64::max);
        let all_infinite = largest == f64::NEG_INFINITY;
        if all_infinite && (self.zero_if_blind || self.seen.contains(&false)) {
            // Flax's finite fill beats -inf: the masked keys share the weight.
            let masked = self.seen.iter().filter(|seen| !**seen).count() as f64;
            let weight = if self.zero_if_blind {
                0.0
            } else {
                1.0 / masked
            };
            return self
                .seen
                .iter()
                .map(|&seen| if seen { 0.0 } else { weight })
                .collect();
        }
        let exponential = |score: &Pair| {
            let (high, low) = (score.high - largest, score.low);
            (self.maths.exp)(high) * (1.0 + low)
        };
        let total = sum(seen().map(exponential)).value();
        scores
            .iter()
            .map(|score| {
                score
                    .as_ref()
                    .map_or(0.0, |score| exponential(score) / total)
            })
            .collect()
    }
}
