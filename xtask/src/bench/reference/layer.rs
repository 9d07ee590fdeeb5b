//! A layer and its gradients, with every score held.

use super::matrix::{parallel, product, softmax, transposed, wide_product, widened};
use crate::data::{DenseArrays, LayerArrays};
use crate::spec::LayerSizes;

/// The output; for a training step the gradients of `x`, of the query's and of the output's kernel in its place.
pub(super) fn results(sizes: LayerSizes, train: bool, arrays: &LayerArrays) -> Vec<Vec<f64>> {
    let features = sizes.features;
    let x = widened(&arrays.x);
    let projected =
        [&arrays.query, &arrays.key, &arrays.value].map(|dense| apply(dense, &x, features));
    let wo = widened(&arrays.out.kernel);
    if !train {
        let heads = parallel(sizes.batch * sizes.heads, |n| {
            Head::of(sizes, &projected, n).context
        });
        return vec![apply(&arrays.out, &joined(sizes, heads), features)];
    }
    let g = widened(&arrays.g);
    let d_context = wide_product(&g, &transposed(&wo, features), features, features);
    let heads = parallel(sizes.batch * sizes.heads, |n| {
        let head = Head::of(sizes, &projected, n);
        let gradients = head.gradients(&part(sizes, &d_context, n));
        (head.context, gradients)
    });
    let (contexts, gradients): (Vec<_>, Vec<_>) = heads.into_iter().unzip();
    let mut d_x = vec![0.0; x.len()];
    let mut d_query = Vec::new();
    for (which, dense) in [&arrays.query, &arrays.key, &arrays.value]
        .into_iter()
        .enumerate()
    {
        let d = joined(
            sizes,
            gradients
                .iter()
                .map(|gradient| gradient[which].clone())
                .collect(),
        );
        let kernel = transposed(&widened(&dense.kernel), features);
        let through = wide_product(&d, &kernel, features, features);
        d_x.iter_mut()
            .zip(through)
            .for_each(|(sum, more)| *sum += more);
        if which == 0 {
            d_query = d;
        }
    }
    let rows = sizes.batch * sizes.length;
    let d_wq = wide_product(&transposed(&x, features), &d_query, rows, features);
    let d_wo = wide_product(
        &transposed(&joined(sizes, contexts), features),
        &g,
        rows,
        features,
    );
    vec![d_x, d_wq, d_wo]
}

/// `x · kernel + bias`.
fn apply(dense: &DenseArrays, x: &[f64], features: usize) -> Vec<f64> {
    let mut y = wide_product(x, &widened(&dense.kernel), features, features);
    for row in y.chunks_exact_mut(features) {
        row.iter_mut()
            .zip(&dense.bias)
            .for_each(|(y, &bias)| *y += f64::from(bias));
    }
    y
}

/// One head of a batch entry.
struct Head {
    length: usize,
    depth: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    weights: Vec<f64>,
    context: Vec<f64>,
}

impl Head {
    fn of(sizes: LayerSizes, projected: &[Vec<f64>; 3], n: usize) -> Self {
        let (length, depth) = (sizes.length, sizes.depth());
        let [q, k, v] = [0, 1, 2].map(|which: usize| part(sizes, &projected[which], n));
        let scale = 1.0 / (depth as f64).sqrt();
        let mut weights = product(&q, &transposed(&k, depth), length, depth, length);
        for row in weights.chunks_exact_mut(length) {
            row.iter_mut().for_each(|score| *score *= scale);
            softmax(row);
        }
        let context = product(&weights, &v, length, length, depth);
        Self {
            length,
            depth,
            q,
            k,
            v,
            weights,
            context,
        }
    }

    /// The gradients of queries, keys and values.
    fn gradients(&self, d_context: &[f64]) -> [Vec<f64>; 3] {
        let (length, depth) = (self.length, self.depth);
        let d_v = product(
            &transposed(&self.weights, length),
            d_context,
            length,
            length,
            depth,
        );
        let mut d_scores = product(
            d_context,
            &transposed(&self.v, depth),
            length,
            depth,
            length,
        );
        let scale = 1.0 / (depth as f64).sqrt();
        for (d, weights) in d_scores
            .chunks_exact_mut(length)
            .zip(self.weights.chunks_exact(length))
        {
            let mean: f64 = d.iter().zip(weights).map(|(d, weight)| d * weight).sum();
            d.iter_mut()
                .zip(weights)
                .for_each(|(d, weight)| *d = weight * (*d - mean) * scale);
        }
        let d_q = product(&d_scores, &self.k, length, length, depth);
        let d_k = product(
            &transposed(&d_scores, length),
            &self.q,
            length,
            length,
            depth,
        );
        [d_q, d_k, d_v]
    }
}

/// Columns of head `n`, counted through all batch entries.
fn part(sizes: LayerSizes, rows: &[f64], n: usize) -> Vec<f64> {
    let (batch, head) = (n / sizes.heads, n % sizes.heads);
    let entry = sizes.length * sizes.features;
    rows[batch * entry..][..entry]
        .chunks_exact(sizes.features)
        .flat_map(|row| &row[head * sizes.depth()..][..sizes.depth()])
        .copied()
        .collect()
}

/// All heads, side by side again.
fn joined(sizes: LayerSizes, heads: Vec<Vec<f64>>) -> Vec<f64> {
    let depth = sizes.depth();
    let mut out = Vec::with_capacity(sizes.batch * sizes.length * sizes.features);
    for batch in heads.chunks_exact(sizes.heads) {
        for row in 0..sizes.length {
            for head in batch {
                out.extend_from_slice(&head[row * depth..][..depth]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Drawn, Source};

    fn dense(draw: &mut Drawn, name: &str, features: usize) -> DenseArrays {
        DenseArrays {
            kernel: draw.array(name, features * features, 0.5).unwrap(),
            bias: draw.array(&format!("b{name}"), features, 0.5).unwrap(),
        }
    }

    /// The gradient of the sum of `y * g` along one element of `x`, by a central difference, is the one that the formulas give.
    #[test]
    fn gradients_are_those_of_the_output() {
        let sizes = LayerSizes {
            batch: 2,
            length: 3,
            features: 4,
            heads: 2,
        };
        let mut draw = Drawn::new("gradients");
        let mut arrays = LayerArrays {
            x: draw.array("x", 24, 1.0).unwrap(),
            g: draw.array("g", 24, 1.0).unwrap(),
            query: dense(&mut draw, "q", 4),
            key: dense(&mut draw, "k", 4),
            value: dense(&mut draw, "v", 4),
            out: dense(&mut draw, "o", 4),
        };
        let gradients = results(sizes, true, &arrays);
        let loss = |arrays: &LayerArrays| -> f64 {
            let y = results(sizes, false, arrays).remove(0);
            y.iter()
                .zip(&arrays.g)
                .map(|(y, &g)| y * f64::from(g))
                .sum()
        };
        // A power of 2, so that the step in f32 is exact up to the rounding of `x`; it is measured back.
        let step = 1.0 / 1024.0;
        for element in [0, 7, 23] {
            let middle = arrays.x[element];
            arrays.x[element] = middle + step;
            let (right, after) = (f64::from(arrays.x[element]), loss(&arrays));
            arrays.x[element] = middle - step;
            let (left, before) = (f64::from(arrays.x[element]), loss(&arrays));
            arrays.x[element] = middle;
            let slope = (after - before) / (right - left);
            // The difference errs with the square of the step, times third derivatives that are of the slopes' size.
            let size = gradients[0]
                .iter()
                .fold(1.0f64, |size, d| size.max(d.abs()));
            let tolerance = f64::from(step) * size;
            assert!(
                (slope - gradients[0][element]).abs() < tolerance,
                "{element}: {slope}"
            );
        }
    }
}
