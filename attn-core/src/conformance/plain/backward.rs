//! Gradients in plain same-dtype arithmetic: `jax.vjp` of Flax's formulas, every array that it makes rounded to `T`.

use super::super::Maths;
use super::super::matrix::{Matrix, ScoreRow, column};
use super::{Scores, accumulate, dot, dropped, products, rescale, round, scaled, scores, softmax};
use crate::dtype::Element;
use alloc::vec::Vec;
use core::iter::zip;
use core::marker::PhantomData;

/// What the gradients of one [`Matrix`] are made from.
pub(in super::super) struct Gradients<'a, T> {
    matrix: &'a Matrix,
    maths: &'a Maths,
    scaled: Vec<Vec<f64>>,
    dropped: Vec<Vec<f64>>,
    pub(in super::super) rows: Vec<ScoreRow>,
    /// The largest score and the sum of exponentials of each row.
    pub(in super::super) statistics: Vec<[f64; 2]>,
    /// The gradient of the sink.
    pub(in super::super) sink: f64,
    dtype: PhantomData<T>,
}

impl<'a, T: Element> Gradients<'a, T> {
    pub(in super::super) fn new(matrix: &'a Matrix, maths: &'a Maths) -> Self {
        let mut this = Self {
            matrix,
            maths,
            scaled: (matrix.queries.iter())
                .map(|query| scaled::<T>(query, matrix.scale, maths))
                .collect(),
            dropped: Vec::new(),
            rows: Vec::new(),
            statistics: Vec::new(),
            sink: 0.0,
            dtype: PhantomData,
        };
        for query in 0..matrix.queries.len() {
            this.push_row(query);
        }
        this
    }

    fn push_row(&mut self, query: usize) {
        let (matrix, line) = (self.matrix, &self.matrix.lines[query]);
        let keys = &matrix.keys[line.keys.clone()];
        let scores = scores::<T>(&products::<T>(&self.scaled[query], keys), line);
        let softmax = softmax::<T>(&scores, line, self.maths);
        let dropped = dropped::<T>(&softmax.weights, &line.factors);
        let row = score_row::<T>(matrix, query, &softmax.weights, &scores);
        if line.sink.is_some() {
            let d_sink = round::<T>(softmax.sink * row.mean);
            self.sink = round::<T::Acc>(self.sink - d_sink);
        }
        self.dropped.push(line.spread(&dropped, matrix.keys.len()));
        self.rows.push(row);
        self.statistics.push([softmax.largest, softmax.total]);
    }

    pub(in super::super) fn d_query(&self, query: usize, depth: usize) -> f64 {
        let d_products = &self.rows[query].d_products;
        let terms = zip(d_products, column(&self.matrix.keys, depth)).map(|(a, b)| a * b);
        let gradient = round::<T>(accumulate::<T>(terms));
        let matrix = self.matrix;
        rescale::<T>(gradient, matrix.depth(), matrix.scale, self.maths)
    }

    /// What the queries add to the gradient of a key.
    pub(in super::super) fn d_key(
        &self,
        key: usize,
        depth: usize,
    ) -> impl Iterator<Item = f64> + '_ {
        let d_products = self.rows.iter().map(move |row| row.d_products[key]);
        zip(d_products, column(&self.scaled, depth)).map(|(a, b)| a * b)
    }

    /// What the queries add to the gradient of a value.
    pub(in super::super) fn d_value(
        &self,
        key: usize,
        depth: usize,
    ) -> impl Iterator<Item = f64> + '_ {
        let weights = column(&self.dropped, key);
        zip(weights, column(&self.matrix.d_out, depth)).map(|(a, b)| a * b)
    }
}

fn score_row<T: Element>(
    matrix: &Matrix,
    query: usize,
    weights: &[f64],
    scores: &Scores,
) -> ScoreRow {
    let (line, d_out) = (&matrix.lines[query], &matrix.d_out[query]);
    let d_weights: Vec<f64> = zip(&matrix.values[line.keys.clone()], &line.factors)
        .map(|(value, factor)| round::<T>(dot::<T>(d_out, value) * factor))
        .collect();
    let first: Vec<f64> = zip(weights, &d_weights)
        .map(|(w, d)| round::<T>(w * d))
        .collect();
    let mean = round::<T>(accumulate::<T>(first.iter().copied()));
    let mut row = ScoreRow::new(matrix.keys.len());
    row.mean = mean;
    for (i, key) in line.keys.clone().enumerate().filter(|(i, _)| line.seen[*i]) {
        // JAX's rule for tanh.
        let slope = |d: f64| match &scores.tanh {
            Some(tanh) => {
                let through = round::<T>(d + round::<T>(d * tanh[i]));
                round::<T>(through * round::<T>(1.0 - tanh[i]))
            }
            None => d,
        };
        let parts = [first[i], round::<T>(weights[i] * mean)];
        row.d_scores[key] = round::<T>(weights[i] * round::<T>(d_weights[i] - mean));
        row.d_products[key] = slope(row.d_scores[key]);
        row.parts[key] = parts;
        row.product_parts[key] = parts.map(slope);
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
