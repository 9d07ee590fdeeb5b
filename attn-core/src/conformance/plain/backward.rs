//! Gradients in plain same-dtype arithmetic: `jax.vjp` of Flax's formulas, every array that it makes rounded to `T`.

use super::super::Maths;
use super::super::matrix::{Matrix, column};
use super::{Softmax, accumulate, dot, dropped, products, rescale, round, scaled, softmax};
use crate::dtype::Element;
use alloc::vec::Vec;
use core::iter::zip;
use core::marker::PhantomData;

/// The gradient of a row's scores.
#[derive(Default)]
pub(in super::super) struct ScoreRow {
    /// `w (dW - Σ w dW)`, 0 at masked keys.
    pub(in super::super) d_scores: Vec<f64>,
    /// What a gradient is the difference of: `w dW` and `w Σ w dW`, both 0 at masked keys.
    pub(in super::super) parts: Vec<[f64; 2]>,
}

/// What the gradients of one [`Matrix`] are made from.
pub(in super::super) struct Gradients<'a, T> {
    matrix: &'a Matrix,
    maths: &'a Maths,
    scaled: Vec<Vec<f64>>,
    dropped: Vec<Vec<f64>>,
    pub(in super::super) rows: Vec<ScoreRow>,
    /// The largest score and the sum of exponentials of each row.
    pub(in super::super) statistics: Vec<[f64; 2]>,
    dtype: PhantomData<T>,
}

impl<'a, T: Element> Gradients<'a, T> {
    pub(in super::super) fn new(matrix: &'a Matrix, maths: &'a Maths) -> Self {
        let scaled: Vec<Vec<f64>> = (matrix.queries.iter())
            .map(|query| scaled::<T>(query, matrix.scale, maths))
            .collect();
        let softmax: Vec<Softmax> = (scaled.iter().enumerate())
            .map(|(query, scaled)| {
                softmax::<T>(
                    &products::<T>(scaled, &matrix.keys),
                    matrix.bias[query].as_deref(),
                    &matrix.seen[query],
                    matrix.fully_masked,
                    maths,
                )
            })
            .collect();
        let rows = (softmax.iter().enumerate())
            .map(|(query, softmax)| score_row::<T>(matrix, query, &softmax.weights))
            .collect();
        let dropped = zip(&softmax, &matrix.factors)
            .map(|(softmax, factors)| dropped::<T>(&softmax.weights, factors))
            .collect();
        let statistics = softmax.iter().map(|row| [row.largest, row.total]).collect();
        Self {
            matrix,
            maths,
            scaled,
            dropped,
            rows,
            statistics,
            dtype: PhantomData,
        }
    }

    pub(in super::super) fn d_query(&self, query: usize, depth: usize) -> f64 {
        let d_scores = &self.rows[query].d_scores;
        let terms = zip(d_scores, column(&self.matrix.keys, depth)).map(|(a, b)| a * b);
        let gradient = round::<T>(accumulate::<T>(terms));
        let matrix = self.matrix;
        rescale::<T>(gradient, matrix.depth(), matrix.scale, self.maths)
    }

    pub(in super::super) fn d_key(&self, key: usize, depth: usize) -> f64 {
        let d_scores = self.rows.iter().map(|row| row.d_scores[key]);
        let terms = zip(d_scores, column(&self.scaled, depth)).map(|(a, b)| a * b);
        round::<T>(accumulate::<T>(terms))
    }

    pub(in super::super) fn d_value(&self, key: usize, depth: usize) -> f64 {
        let weights = column(&self.dropped, key);
        let terms = zip(weights, column(&self.matrix.d_out, depth)).map(|(a, b)| a * b);
        round::<T>(accumulate::<T>(terms))
    }
}

fn score_row<T: Element>(matrix: &Matrix, query: usize, weights: &[f64]) -> ScoreRow {
    let d_out = &matrix.d_out[query];
    let d_weights: Vec<f64> = zip(&matrix.values, &matrix.factors[query])
        .map(|(value, factor)| round::<T>(dot::<T>(d_out, value) * factor))
        .collect();
    let first: Vec<f64> = zip(weights, &d_weights)
        .map(|(w, d)| round::<T>(w * d))
        .collect();
    let mean = round::<T>(accumulate::<T>(first.iter().copied()));
    let mut row = ScoreRow::default();
    for (key, &seen) in matrix.seen[query].iter().enumerate() {
        let weight = weights[key];
        let parts = [first[key], round::<T>(weight * mean)];
        let d_score = round::<T>(weight * round::<T>(d_weights[key] - mean));
        row.d_scores.push(if seen { d_score } else { 0.0 });
        row.parts
            .push(parts.map(|part| if seen { part } else { 0.0 }));
    }
    row
}

/// The gradient of a row under layer norm, through the fast variance, and its share in the gradient of the scale.
pub(in super::super) fn normalize<T: Element>(
    row: &[f64],
    scale: &[f64],
    gradient: &[f64],
    epsilon: f64,
    maths: &Maths,
) -> (Vec<f64>, Vec<f64>) {
    let acc = round::<T::Acc>;
    let sum = |terms: Vec<f64>| accumulate::<T>(terms.into_iter());
    let count = row.len() as f64;
    let mean = acc(sum(row.to_vec()) / count);
    let square = acc(sum(row.iter().map(|x| acc(x * x)).collect()) / count);
    let difference = acc(square - acc(mean * mean));
    let shifted = acc(difference.max(0.0) + epsilon);
    let inverse = acc(1.0 / acc((maths.sqrt)(shifted)));
    let centred: Vec<f64> = row.iter().map(|x| acc(x - mean)).collect();
    // `y = centred · factor`, `factor = inverse · scale`.
    let d_factor: Vec<f64> = zip(gradient, &centred).map(|(g, x)| acc(g * x)).collect();
    let d_centred: Vec<f64> = zip(gradient, scale)
        .map(|(g, scale)| acc(g * acc(inverse * scale)))
        .collect();
    let d_inverse = sum(zip(&d_factor, scale)
        .map(|(d, scale)| acc(d * scale))
        .collect());
    let d_shifted = acc(d_inverse * acc(-0.5 * acc(inverse / shifted)));
    // A variance that was cut at 0 passes nothing on, one that is 0 passes half.
    let d_variance = match difference.partial_cmp(&0.0) {
        Some(core::cmp::Ordering::Greater) => d_shifted,
        Some(core::cmp::Ordering::Equal) => acc(d_shifted / 2.0),
        _ => 0.0,
    };
    let through_mean = acc(acc(2.0 * mean) * -d_variance);
    let d_mean = acc(through_mean - sum(d_centred.clone()));
    let (d_mean, d_square) = (acc(d_mean / count), acc(d_variance / count));
    let d_row = zip(row, &d_centred)
        .map(|(x, d)| round::<T>(acc(acc(d + d_mean) + acc(acc(2.0 * x) * d_square))))
        .collect();
    let d_scale = d_factor.iter().map(|d| acc(d * inverse)).collect();
    (d_row, d_scale)
}
