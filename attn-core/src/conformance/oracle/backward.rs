//! The true gradients, from their definition.

use super::super::Maths;
use super::super::matrix::{Matrix, ScoreRow, column};
use super::{Pair, Row, Softmax, dot, dot3, sum};
use alloc::vec::Vec;
use core::iter::zip;

/// What the gradients of one [`Matrix`] are made from.
pub(in super::super) struct Gradients<'a> {
    matrix: &'a Matrix,
    scale: f64,
    pub(in super::super) softmax: Vec<Softmax>,
    /// The weights of all keys of the array.
    weights: Vec<Vec<f64>>,
    factors: Vec<Vec<f64>>,
    pub(in super::super) rows: Vec<ScoreRow>,
}

impl<'a> Gradients<'a> {
    pub(in super::super) fn new(matrix: &'a Matrix, maths: &'a Maths) -> Self {
        let mut this = Self {
            matrix,
            scale: matrix.scale.factor(matrix.depth(), maths.sqrt),
            softmax: Vec::new(),
            weights: Vec::new(),
            factors: Vec::new(),
            rows: Vec::new(),
        };
        for (query, line) in zip(&matrix.queries, &matrix.lines) {
            let product = |key: &Vec<f64>| dot(query.iter().copied(), key.iter().copied());
            let row = Row {
                products: matrix.keys[line.keys.clone()].iter().map(product).collect(),
                scale: this.scale,
                line,
                maths,
            };
            this.push_row(&row);
        }
        this
    }

    fn push_row(&mut self, row: &Row<'_>) {
        let (line, count) = (row.line, self.matrix.keys.len());
        let softmax = row.softmax();
        self.rows.push(score_row(
            self.matrix,
            self.rows.len(),
            row,
            &softmax.weights,
        ));
        self.weights.push(line.spread(&softmax.weights, count));
        self.factors.push(line.spread(&line.factors, count));
        self.softmax.push(softmax);
    }

    pub(in super::super) fn d_query(&self, query: usize, depth: usize) -> f64 {
        let d_products = self.rows[query].d_products.iter().copied();
        let sum = dot(d_products, column(&self.matrix.keys, depth));
        sum.scaled(self.scale).value()
    }

    pub(in super::super) fn d_key(&self, key: usize, depth: usize) -> f64 {
        let d_products = self.rows.iter().map(|row| row.d_products[key]);
        let sum = dot(d_products, column(&self.matrix.queries, depth));
        sum.scaled(self.scale).value()
    }

    pub(in super::super) fn d_value(&self, key: usize, depth: usize) -> f64 {
        let d_out = column(&self.matrix.d_out, depth);
        dot3(
            column(&self.weights, key),
            column(&self.factors, key),
            d_out,
        )
        .value()
    }

    /// The gradient of the sink: `-w Σ w dW` of every row, with its own weight before the sum.
    pub(in super::super) fn d_sink(&self) -> f64 {
        let shares = self.softmax.iter().map(|softmax| -softmax.sink);
        dot(shares, self.rows.iter().map(|row| row.mean)).value()
    }

    /// The factor that takes the gradient of a score to those of the query and the key.
    pub(in super::super) fn scale(&self) -> f64 {
        self.scale
    }
}

fn score_row(matrix: &Matrix, query: usize, scores: &Row<'_>, weights: &[f64]) -> ScoreRow {
    let (line, d_out) = (scores.line, &matrix.d_out[query]);
    let d_weights: Vec<Pair> = zip(&matrix.values[line.keys.clone()], &line.factors)
        .map(|(value, &factor)| dot(d_out.iter().copied(), value.iter().copied()).scaled(factor))
        .collect();
    let first: Vec<Pair> = zip(&d_weights, weights)
        .map(|(d, &w)| d.scaled(w))
        .collect();
    let mean = first.iter().fold(Pair::default(), |sum, &d| sum.add(d));
    let mut row = ScoreRow::new(matrix.keys.len());
    row.mean = mean.value();
    for (i, key) in line.keys.clone().enumerate().filter(|(i, _)| line.seen[*i]) {
        let d_score = d_weights[i].add(mean.scaled(-1.0)).scaled(weights[i]);
        let (parts, slope) = ([first[i], mean.scaled(weights[i])], scores.slope(i));
        row.d_scores[key] = d_score.value();
        row.d_products[key] = d_score.times(slope).value();
        row.parts[key] = parts.map(Pair::value);
        row.product_parts[key] = parts.map(|part| part.times(slope).value());
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
    use super::super::super::rows::Line;
    use super::*;
    use crate::mask::FullyMasked;
    use crate::scores::Scale;
    use alloc::vec;

    const MATHS: Maths = Maths {
        exp: f64::exp,
        sqrt: f64::sqrt,
    };
    /// Central differences of step `h` are off by about `h^2`, and by rounding of the loss over `h`.
    const STEP: f64 = 1e-5;
    const CLOSE: f64 = 1e-8;

    /// The parts of a request beside Flax's.
    #[derive(Clone, Copy, Default)]
    struct Parts {
        softcap: Option<f64>,
        sink: Option<f64>,
        rest: bool,
    }

    fn matrix(fully_masked: FullyMasked, parts: Parts) -> Matrix {
        let mut numbers = Numbers::new("gradients by differences");
        let mut rows = |count: usize, depth: usize| -> Vec<Vec<f64>> {
            (0..count).map(|_| numbers.elements(depth, 1.0)).collect()
        };
        let (queries, keys, values) = (rows(4, 3), rows(5, 3), rows(5, 2));
        let (d_out, bias) = (rows(4, 2), rows(4, 5));
        // The third query sees nothing, the last has a sequence of its own.
        let seen = |query: usize, key: usize| query != 2 && !(query + key).is_multiple_of(4);
        let factor = |n: usize| if n.is_multiple_of(3) { 0.0 } else { 1.25 };
        let line = |query: usize| {
            let keys = if parts.rest && query == 3 { 1..4 } else { 0..5 };
            Line {
                seen: keys.clone().map(|key| seen(query, key)).collect(),
                softcap: parts.softcap,
                bias: Some(bias[query][keys.clone()].to_vec()),
                alibi: parts
                    .rest
                    .then(|| (0.3, keys.clone().map(|key| -(key as f64)).collect())),
                relative: (parts.rest)
                    .then(|| (vec![0.4, -0.8, 0.1], keys.clone().map(|k| k % 3).collect())),
                sink: parts.sink,
                factors: keys.clone().map(|k| factor(query + 2 * k)).collect(),
                fully_masked,
                is_outside: false,
                keys,
            }
        };
        Matrix {
            queries,
            keys,
            values,
            d_out,
            lines: (0..4).map(line).collect(),
            scale: Scale::Value(0.7),
        }
    }

    /// `Σ out · d_out`.
    fn loss(matrix: &Matrix) -> f64 {
        let gradients = Gradients::new(matrix, &MATHS);
        let mut loss = 0.0;
        for (query, softmax) in gradients.softmax.iter().enumerate() {
            let line = &matrix.lines[query];
            for (depth, d_out) in matrix.d_out[query].iter().enumerate() {
                let weights = zip(&softmax.weights, &line.factors);
                let out: f64 = zip(weights, column(&matrix.values[line.keys.clone()], depth))
                    .map(|((w, factor), value)| w * factor * value)
                    .sum();
                loss += out * d_out;
            }
        }
        loss
    }

    fn close(gradient: f64, matrix: impl Fn() -> Matrix, change: impl Fn(&mut Matrix, f64)) {
        let beside = |step: f64| {
            let mut matrix = matrix();
            change(&mut matrix, step);
            loss(&matrix)
        };
        let difference = (beside(STEP) - beside(-STEP)) / (2.0 * STEP);
        let off = (gradient - difference).abs();
        assert!(off < CLOSE, "{gradient} and {difference}");
    }

    fn are_slopes(rule: FullyMasked, parts: Parts) {
        let make = || matrix(rule, parts);
        let matrix = make();
        let gradients = Gradients::new(&matrix, &MATHS);
        for depth in 0..3 {
            for query in 0..4 {
                let gradient = gradients.d_query(query, depth);
                close(gradient, make, |m, step| m.queries[query][depth] += step);
            }
            for key in 0..5 {
                let gradient = gradients.d_key(key, depth);
                close(gradient, make, |m, step| m.keys[key][depth] += step);
            }
        }
        for key in 0..5 {
            for depth in 0..2 {
                let gradient = gradients.d_value(key, depth);
                close(gradient, make, |m, step| m.values[key][depth] += step);
            }
            for query in 0..4 {
                let gradient = gradients.rows[query].d_scores[key];
                close(gradient, make, |m, step| {
                    let line = &mut m.lines[query];
                    if let (Some(bias), true) = (&mut line.bias, line.keys.contains(&key)) {
                        bias[key - line.keys.start] += step;
                    }
                });
            }
        }
        for entry in 0..3 {
            let columns = |query: usize| matrix.lines[query].relative.as_ref().map(|(_, c)| c);
            let of_row = |query: usize| -> f64 {
                let d_scores = &gradients.rows[query].d_scores[matrix.lines[query].keys.clone()];
                let of_key = |(d, c): (&f64, &usize)| if *c == entry { *d } else { 0.0 };
                columns(query).map_or(0.0, |columns| zip(d_scores, columns).map(of_key).sum())
            };
            close((0..4).map(of_row).sum(), make, |m, step| {
                for (table, _) in m.lines.iter_mut().filter_map(|line| line.relative.as_mut()) {
                    table[entry] += step;
                }
            });
        }
        close(gradients.d_sink(), make, |m, step| {
            for sink in m.lines.iter_mut().filter_map(|line| line.sink.as_mut()) {
                *sink += step;
            }
        });
    }

    #[test]
    fn gradients_are_the_slopes_of_the_output() {
        for rule in [FullyMasked::MeanOfValues, FullyMasked::Zero] {
            for softcap in [None, Some(1.5)] {
                for sink in [None, Some(0.2)] {
                    for rest in [false, true] {
                        let parts = Parts {
                            softcap,
                            sink,
                            rest,
                        };
                        are_slopes(rule, parts);
                    }
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
