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

#[cfg(test)]
mod tests {
    extern crate std;

    use super::super::super::data::Numbers;
    use super::*;
    use crate::scores::Scale;
    use alloc::vec;

    const MATHS: Maths = Maths {
        exp: f64::exp,
        sqrt: f64::sqrt,
    };
    /// Central differences of step `h` are off by about `h^2`, and by rounding of the loss over `h`.
    const STEP: f64 = 1e-5;
    const CLOSE: f64 = 1e-8;

    fn matrix(fully_masked: FullyMasked) -> Matrix {
        let mut numbers = Numbers::new("gradients by differences");
        let mut rows = |count: usize, depth: usize| -> Vec<Vec<f64>> {
            (0..count).map(|_| numbers.elements(depth, 1.0)).collect()
        };
        let (queries, keys, values) = (rows(4, 3), rows(5, 3), rows(5, 2));
        let (d_out, bias) = (rows(4, 2), rows(4, 5));
        // The third query sees nothing.
        let seen = |query: usize| {
            (0..5)
                .map(|key| query != 2 && !(query + key).is_multiple_of(4))
                .collect()
        };
        let factor = |n: usize| if n.is_multiple_of(3) { 0.0 } else { 1.25 };
        Matrix {
            queries,
            keys,
            values,
            d_out,
            bias: bias.into_iter().map(Some).collect(),
            seen: (0..4).map(seen).collect(),
            factors: (0..4)
                .map(|q| (0..5).map(|k| factor(q + 2 * k)).collect())
                .collect(),
            scale: Scale::Value(0.7),
            fully_masked,
        }
    }

    /// `Σ out · d_out`.
    fn loss(matrix: &Matrix) -> f64 {
        let gradients = Gradients::new(matrix, &MATHS);
        let mut loss = 0.0;
        for (query, softmax) in gradients.softmax.iter().enumerate() {
            for (depth, d_out) in matrix.d_out[query].iter().enumerate() {
                let weights = zip(&softmax.weights, &matrix.factors[query]);
                let out: f64 = zip(weights, column(&matrix.values, depth))
                    .map(|((w, factor), value)| w * factor * value)
                    .sum();
                loss += out * d_out;
            }
        }
        loss
    }

    fn close(gradient: f64, fully_masked: FullyMasked, change: impl Fn(&mut Matrix, f64)) {
        let beside = |step: f64| {
            let mut matrix = matrix(fully_masked);
            change(&mut matrix, step);
            loss(&matrix)
        };
        let difference = (beside(STEP) - beside(-STEP)) / (2.0 * STEP);
        let off = (gradient - difference).abs();
        assert!(off < CLOSE, "{gradient} and {difference}");
    }

    #[test]
    fn gradients_are_the_slopes_of_the_output() {
        for rule in [FullyMasked::MeanOfValues, FullyMasked::Zero] {
            let matrix = matrix(rule);
            let gradients = Gradients::new(&matrix, &MATHS);
            for depth in 0..3 {
                for query in 0..4 {
                    let gradient = gradients.d_query(query, depth);
                    close(gradient, rule, |m, step| m.queries[query][depth] += step);
                }
                for key in 0..5 {
                    let gradient = gradients.d_key(key, depth);
                    close(gradient, rule, |m, step| m.keys[key][depth] += step);
                }
            }
            for key in 0..5 {
                for depth in 0..2 {
                    let gradient = gradients.d_value(key, depth);
                    close(gradient, rule, |m, step| m.values[key][depth] += step);
                }
                for query in 0..4 {
                    let gradient = gradients.rows[query].d_scores[key];
                    close(gradient, rule, |m, step| {
                        if let Some(bias) = &mut m.bias[query] {
                            bias[key] += step;
                        }
                    });
                }
            }
        }
    }

    #[test]
    fn gradients_of_layer_norm_are_its_slopes() {
        let (row, scale) = (vec![0.3, -1.2, 2.0, 0.5], vec![1.0, 0.5, -2.0, 1.5]);
        let gradient = vec![0.7, -0.4, 1.1, 0.2];
        let epsilon = 0.1;
        let loss = |row: &[f64], scale: &[f64]| -> f64 {
            let normal = super::super::normalize(row, scale, epsilon, &MATHS);
            zip(&normal, &gradient).map(|(x, g)| x * g).sum()
        };
        let (d_row, d_scale) = normalize(&row, &scale, &gradient, epsilon, &MATHS);
        let beside = |values: &[f64], i: usize, step: f64| {
            let mut values = values.to_vec();
            values[i] += step;
            values
        };
        for i in 0..4 {
            let slope = |of: &dyn Fn(f64) -> f64| (of(STEP) - of(-STEP)) / (2.0 * STEP);
            let through_row = slope(&|step| loss(&beside(&row, i, step), &scale));
            let through_scale = slope(&|step| loss(&row, &beside(&scale, i, step)));
            assert!((d_row[i] - through_row).abs() < CLOSE, "{i}");
            assert!((d_scale[i] - through_scale).abs() < CLOSE, "{i}");
        }
    }
}
