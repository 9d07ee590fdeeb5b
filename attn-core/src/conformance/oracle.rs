//! The truth: each operation from its definition, one output at a time. Products, sums and the softcap run in pairs of `f64` that
//! carry about 106 bits; only the exponential and the last division of a weight are rounded to `f64`.

pub(super) mod backward;
mod pair;

use super::Maths;
use super::rows::Line;
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;

pub(super) use pair::Pair;

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

/// One query and the scores of its keys.
pub(super) struct Row<'a> {
    /// `q · k` for every key of the line, from [`dot`].
    pub(super) products: Vec<Pair>,
    pub(super) scale: f64,
    pub(super) line: &'a Line,
    pub(super) maths: &'a Maths,
}

/// What softmax makes of a row.
pub(super) struct Softmax {
    pub(super) weights: Vec<f64>,
    /// The weight of the sink, which is no key's.
    pub(super) sink: f64,
    /// The largest score and the sum of exponentials, if there is a finite score.
    pub(super) statistics: Option<[f64; 2]>,
}

impl Row<'_> {
    /// The weights of the row. A row that sees nothing weighs all keys alike (Flax) or none (ONNX, PyTorch), unless a sink has a score.
    pub(super) fn softmax(&self) -> Softmax {
        let line = self.line;
        let scores: Vec<Option<Pair>> = (0..self.products.len())
            .map(|key| line.seen[key].then(|| self.score(key)))
            .collect();
        let sink = line.sink.unwrap_or(f64::NEG_INFINITY);
        let largest = (scores.iter().flatten())
            .map(|score| score.value())
            .fold(sink, f64::max);
        let has_hidden = line.is_zero_if_blind() || line.seen.contains(&false);
        if largest == f64::NEG_INFINITY && has_hidden {
            return Softmax {
                weights: self.blind(),
                sink: 0.0,
                statistics: None,
            };
        }
        let exponentials: Vec<f64> = scores
            .iter()
            .map(|score| score.map_or(0.0, |score| self.exponential(score, largest)))
            .collect();
        let of_sink = line
            .sink
            .map_or(0.0, |sink| self.exponential(sink.into(), largest));
        let total = sum(exponentials.iter().copied().chain([of_sink])).value();
        Softmax {
            weights: exponentials.iter().map(|e| e / total).collect(),
            sink: of_sink / total,
            statistics: largest.is_finite().then_some([largest, total]),
        }
    }

    /// The product with the scale.
    pub(super) fn scaled(&self, key: usize) -> Pair {
        self.products[key].scaled(self.scale)
    }

    /// After the softcap.
    pub(super) fn capped(&self, key: usize) -> Pair {
        let scaled = self.scaled(key);
        self.line
            .softcap
            .map_or(scaled, |cap| scaled.divided(cap.into()).tanh().scaled(cap))
    }

    /// What the softcap's slope is at a score.
    fn slope(&self, key: usize) -> Pair {
        let one = Pair::from(1.0);
        self.line.softcap.map_or(one, |cap| {
            let tanh = self.scaled(key).divided(cap.into()).tanh();
            one.add(tanh.times(tanh).scaled(-1.0))
        })
    }

    /// With all that is added.
    pub(super) fn score(&self, key: usize) -> Pair {
        let line = self.line;
        let mut score = self.capped(key);
        if let Some(bias) = &line.bias {
            score = score.add(bias[key].into());
        }
        if let Some((slope, distances)) = &line.alibi {
            score = score.add(Pair::product(*slope, distances[key]));
        }
        if let Some((table, columns)) = &line.relative {
            score = score.add(table[columns[key]].into());
        }
        score
    }

    fn exponential(&self, score: Pair, largest: f64) -> f64 {
        let difference = score.add((-largest).into());
        let (high, low) = difference.parts();
        (self.maths.exp)(high) * (1.0 + low)
    }

    /// No key has a finite score. Flax gives masked keys the lowest finite one, so they share the weight.
    fn blind(&self) -> Vec<f64> {
        let seen = &self.line.seen;
        if self.line.is_zero_if_blind() {
            return vec![0.0; seen.len()];
        }
        let masked = seen.iter().filter(|seen| !**seen).count() as f64;
        let share = |&seen: &bool| if seen { 0.0 } else { 1.0 / masked };
        seen.iter().map(share).collect()
    }
}
