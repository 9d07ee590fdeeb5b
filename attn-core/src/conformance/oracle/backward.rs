//! The true gradients, from their definition.

use super::super::Maths;
use super::super::matrix::{Matrix, column};
use super::{Pair, Row, Softmax, dot, dot3, sum};
use crate::mask::FullyMasked;
use alloc::vec::Vec;
use core::iter::zip;

/// The gradient of a row's scores.
#[derive(Default)]
pub(in super::super) struct ScoreRow {
    /// `w (dW - Σ w dW)`, 0 at masked keys.
    pub(in super::super) d_scores: Vec<f64>,
    /// What a gradient is the difference of: `w dW` and `w Σ w dW`, both 0 at masked keys.
    pub(in super::super) parts: Vec<[f64; 2]>,
}

/// What the gradients of one [`Matrix`] are made from.
pub(in super::super) struct Gradients<'a> {
    matrix: &'a Matrix,
    scale: f64,
    pub(in super::super) softmax: Vec<Softmax>,
    pub(in super::super) rows: Vec<ScoreRow>,
}

impl<'a> Gradients<'a> {
    pub(in super::super) fn new(matrix: &'a Matrix, maths: &'a Maths) -> Self {
        let scale = matrix.scale.factor(matrix.depth(), maths.sqrt);
        let softmax: Vec<Softmax> = (matrix.queries.iter().enumerate())
            .map(|(i, query)| {
                let product = |key: &Vec<f64>| dot(query.iter().copied(), key.iter().copied());
                let row = Row {
                    products: matrix.keys.iter().map(product).collect(),
                    scale,
                    bias: matrix.bias[i].as_deref(),
                    seen: &matrix.seen[i],
                    zero_if_blind: matrix.fully_masked == FullyMasked::Zero,
                    maths,
                };
                row.softmax()
            })
            .collect();
        let rows = (softmax.iter().enumerate())
            .map(|(query, softmax)| score_row(matrix, query, &softmax.weights))
            .collect();
        Self {
            matrix,
            scale,
            softmax,
            rows,
        }
    }

    pub(in super::super) fn d_query(&self, query: usize, depth: usize) -> f64 {
        let d_scores = self.rows[query].d_scores.iter().copied();
        let sum = dot(d_scores, column(&self.matrix.keys, depth));
        sum.scaled(self.scale).value()
    }

    pub(in super::super) fn d_key(&self, key: usize, depth: usize) -> f64 {
        let d_scores = self.rows.iter().map(|row| row.d_scores[key]);
        let sum = dot(d_scores, column(&self.matrix.queries, depth));
        sum.scaled(self.scale).value()
    }

    pub(in super::super) fn d_value(&self, key: usize, depth: usize) -> f64 {
        let weights = self.softmax.iter().map(|row| row.weights[key]);
        let factors = column(&self.matrix.factors, key);
        dot3(weights, factors, column(&self.matrix.d_out, depth)).value()
    }

    /// The factor that takes the gradient of a score to those of the query and the key.
    pub(in super::super) fn scale(&self) -> f64 {
        self.scale
    }
}

fn score_row(matrix: &Matrix, query: usize, weights: &[f64]) -> ScoreRow {
    let d_out = &matrix.d_out[query];
    let d_weights: Vec<Pair> = zip(&matrix.values, &matrix.factors[query])
        .map(|(value, &factor)| dot(d_out.iter().copied(), value.iter().copied()).scaled(factor))
        .collect();
    let first: Vec<Pair> = zip(&d_weights, weights)
        .map(|(d, &w)| d.scaled(w))
        .collect();
    let mean = first.iter().fold(Pair::default(), |sum, &d| sum.add(d));
    let mut row = ScoreRow::default();
    for (key, &seen) in matrix.seen[query].iter().enumerate() {
        let parts = [first[key], mean.scaled(weights[key])];
        let difference = d_weights[key].add(mean.scaled(-1.0));
        let d_score = difference.scaled(weights[key]).value();
        row.d_scores.push(if seen { d_score } else { 0.0 });
        row.parts
            .push(parts.map(|part| if seen { part.value() } else { 0.0 }));
    }
    row
}

/// The gradient of a row under layer norm, with the variance from the differences to the mean, and its share in the
/// gradient of the scale.
pub(in super::super) fn normalize(
    row: &[f64],
    scale: &[f64],
    gradient: &[f64],
    epsilon: f64,
    maths: &Maths,
) -> (Vec<f64>, Vec<f64>) {
    let count = row.len() as f64;
    let mean = sum(row.iter().copied()).scaled(1.0 / count);
    let centred: Vec<Pair> = (row.iter())
        .map(|&x| Pair::from(x).add(mean.scaled(-1.0)))
        .collect();
    let values = || centred.iter().map(|x| x.value());
    let shifted = dot(values(), values()).value() / count + epsilon;
    let deviation = (maths.sqrt)(shifted);
    let scaled: Vec<Pair> = zip(gradient, scale)
        .map(|(&g, &scale)| Pair::product(g, scale))
        .collect();
    let mean_of = |terms: Pair| terms.scaled(1.0 / count);
    let average = mean_of(scaled.iter().fold(Pair::default(), |sum, &g| sum.add(g)));
    let slope =
        mean_of(zip(&scaled, values()).fold(Pair::default(), |sum, (g, x)| sum.add(g.scaled(x))));
    let slope = slope.scaled(1.0 / shifted);
    let d_row = zip(&scaled, values())
        .map(|(g, x)| {
            let rest = average.add(slope.scaled(x)).scaled(-1.0);
            g.add(rest).value() / deviation
        })
        .collect();
    let d_scale = zip(gradient, values())
        .map(|(g, x)| g * x / deviation)
        .collect();
    (d_row, d_scale)
}
