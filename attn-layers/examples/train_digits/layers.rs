//! Gradients of the plain layers around the attention.

use crate::nn::{dense, statistics};

/// Gradients of `dense(x, kernel, bias)` from that of its result.
pub(crate) struct DenseGradients {
    pub(crate) d_x: Vec<f32>,
    /// `[features, outputs]`.
    pub(crate) d_kernel: Vec<f32>,
    pub(crate) d_bias: Vec<f32>,
}

pub(crate) fn dense_backward(
    x: &[f32],
    kernel: &[f32],
    d_y: &[f32],
    outputs: usize,
) -> DenseGradients {
    let features = kernel.len() / outputs;
    let mut transposed = vec![0.0; kernel.len()];
    for (feature, row) in kernel.chunks_exact(outputs).enumerate() {
        for (output, &weight) in row.iter().enumerate() {
            transposed[output * features + feature] = weight;
        }
    }
    let mut d_kernel = vec![0.0f64; kernel.len()];
    for (x, d_y) in x.chunks_exact(features).zip(d_y.chunks_exact(outputs)) {
        for (&x, sums) in x.iter().zip(d_kernel.chunks_exact_mut(outputs)) {
            accumulate(sums, d_y, x.into());
        }
    }
    DenseGradients {
        d_x: dense(d_y, &transposed, &vec![0.0; features]),
        d_kernel: narrowed(&d_kernel),
        d_bias: sum_of_rows(d_y, outputs),
    }
}

/// Gradients of `layer_norm(x, scale, bias, epsilon)` from that of its result.
pub(crate) struct LayerNormGradients {
    pub(crate) d_x: Vec<f32>,
    pub(crate) d_scale: Vec<f32>,
    pub(crate) d_bias: Vec<f32>,
}

pub(crate) fn layer_norm_backward(
    x: &[f32],
    scale: &[f32],
    epsilon: f32,
    d_y: &[f32],
) -> LayerNormGradients {
    let features = scale.len();
    let mut d_x = Vec::with_capacity(x.len());
    let mut d_scale = vec![0.0f64; features];
    for (x, d_y) in x.chunks_exact(features).zip(d_y.chunks_exact(features)) {
        let (mean, inverse) = statistics(x, epsilon);
        let normal: Vec<_> = x.iter().map(|x| (x - mean) * inverse).collect();
        let scaled: Vec<_> = d_y
            .iter()
            .zip(scale)
            .map(|(d_y, scale)| d_y * scale)
            .collect();
        let along = scaled.iter().zip(&normal).map(|(d, n)| d * n).sum::<f32>() / features as f32;
        let level = scaled.iter().sum::<f32>() / features as f32;
        d_x.extend(
            scaled
                .iter()
                .zip(&normal)
                .map(|(d, n)| inverse * (d - level - n * along)),
        );
        for ((sum, d_y), normal) in d_scale.iter_mut().zip(d_y).zip(&normal) {
            *sum += f64::from(d_y * normal);
        }
    }
    LayerNormGradients {
        d_x,
        d_scale: narrowed(&d_scale),
        d_bias: sum_of_rows(d_y, features),
    }
}

/// The gradient before `relu`, of which `y` is the result.
pub(crate) fn relu_backward(y: &[f32], mut d_y: Vec<f32>) -> Vec<f32> {
    for (d, &y) in d_y.iter_mut().zip(y) {
        if y <= 0.0 {
            *d = 0.0;
        }
    }
    d_y
}

/// The gradient before `mean_of_tokens`: `[images, features]` to `[images, tokens, features]`.
pub(crate) fn mean_of_tokens_backward(d_y: &[f32], tokens: usize, features: usize) -> Vec<f32> {
    let mut d_x = Vec::with_capacity(d_y.len() * tokens);
    for row in d_y.chunks_exact(features) {
        for _ in 0..tokens {
            d_x.extend(row.iter().map(|d| d / tokens as f32));
        }
    }
    d_x
}

/// The mean of `-log(softmax(logits)[label])`, and its gradient (`optax.softmax_cross_entropy_with_integer_labels`).
pub(crate) fn cross_entropy(logits: &[f32], labels: &[usize]) -> (f32, Vec<f32>) {
    let (count, classes) = (labels.len() as f32, logits.len() / labels.len());
    let mut d_logits = Vec::with_capacity(logits.len());
    let mut total = 0.0f64;
    for (logits, &label) in logits.chunks_exact(classes).zip(labels) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials = logits.iter().map(|logit| (logit - largest).exp());
        let sum: f32 = exponentials.clone().sum();
        total += f64::from(sum.ln() - (logits[label] - largest));
        d_logits.extend(exponentials.enumerate().map(|(class, exponential)| {
            (exponential / sum - f32::from(u8::from(class == label))) / count
        }));
    }
    ((total / f64::from(count)) as f32, d_logits)
}

/// The sum of all rows of `width`.
pub(crate) fn sum_of_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        accumulate(&mut sums, row, 1.0);
    }
    narrowed(&sums)
}

/// Sums over a thousand rows run in `f64`: in `f32` their rounding would be the largest of the whole step.
fn accumulate(sums: &mut [f64], row: &[f32], factor: f64) {
    for (sum, &x) in sums.iter_mut().zip(row) {
        *sum += f64::from(x) * factor;
    }
}

fn narrowed(sums: &[f64]) -> Vec<f32> {
    sums.iter().map(|&sum| sum as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::layer_norm;

    const EPSILON: f32 = 1e-6;

    /// What one rounding is off by, relatively.
    const UNIT: f64 = f32::EPSILON as f64 / 2.0;

    /// Holds a gradient against the slope between two points, which is off by `h^2 f'''/6` and by the roundings of the two values,
    /// `rounding` at most each, over their distance. `f'''` is itself had from differences, whose roundings are half as much again:
    /// twice the sum holds all.
    fn check(f: impl Fn(&[f32]) -> f64, at: &[f32], gradient: &[f32], rounding: f64) {
        let h = 1e-2f32;
        for (i, &gradient) in gradient.iter().enumerate() {
            let [lowest, low, high, highest] = [-2.0 * h, -h, h, 2.0 * h].map(|step| {
                let mut moved = at.to_vec();
                moved[i] += step;
                (f64::from(moved[i]), f(&moved))
            });
            let distance = high.0 - low.0;
            let slope = (high.1 - low.1) / distance;
            let half = distance / 2.0;
            let third = (highest.1 - 2.0 * high.1 + 2.0 * low.1 - lowest.1) / (2.0 * half.powi(3));
            let bent = third.abs() * half.powi(2) / 6.0;
            let rounded = 2.0 * rounding / distance;
            assert!(
                (slope - f64::from(gradient)).abs() <= 2.0 * (bent + rounded),
                "{i}: {slope} {gradient}, {bent} {rounded}"
            );
        }
    }

    fn weighted(y: &[f32], d_y: &[f32]) -> f64 {
        y.iter()
            .zip(d_y)
            .map(|(y, d)| f64::from(*y) * f64::from(*d))
            .sum()
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 37 + seed * 11) % 23) as f32 / 11.5 - 1.0)
            .collect()
    }

    fn magnitudes(x: &[f32]) -> Vec<f32> {
        x.iter().map(|x| x.abs()).collect()
    }

    /// A sum of `features` products and a bias: each addition rounds at most the sum of magnitudes, and so do the products together.
    fn dense_rounding(x: &[f32], kernel: &[f32], bias: &[f32], d_y: &[f32]) -> f64 {
        let [x, kernel, bias, d_y] = [x, kernel, bias, d_y].map(magnitudes);
        let features = kernel.len() / bias.len();
        (features + 1) as f64 * UNIT * weighted(&dense(&x, &kernel, &bias), &d_y)
    }

    /// The roundings of `(x - mean) * (inverse * scale) + bias`, those within mean and inverse included: the mean is off by a rounding
    /// for each feature, and the variance, a difference of two sums of that length, by some 3 for each, of the mean of squares.
    fn layer_norm_rounding(x: &[f32], scale: &[f32], bias: &[f32], d_y: &[f32]) -> f64 {
        let features = scale.len();
        let n = features as f64;
        let rows = x.chunks_exact(features).zip(d_y.chunks_exact(features));
        rows.map(|(x, d_y)| {
            let (mean, inverse) = statistics(x, EPSILON);
            let (mean, inverse) = (f64::from(mean), f64::from(inverse));
            let wide = || x.iter().map(|&x| f64::from(x));
            let magnitude = wide().map(f64::abs).sum::<f64>() / n;
            let square = wide().map(|x| x * x).sum::<f64>() / n;
            // Half the variance's own, and those of adding epsilon, of root and reciprocal.
            let of_inverse = 1.5 * (n + 1.0) * square * inverse.powi(2) + 3.0;
            let each = wide().zip(scale).zip(bias).zip(d_y);
            each.map(|(((x, &scale), &bias), &d_y)| {
                let normal = (x - mean).abs() * (of_inverse + 3.0) + n * magnitude;
                let scaled = f64::from(scale.abs()) * inverse;
                let sum = scaled * (x - mean).abs() + f64::from(bias.abs());
                UNIT * f64::from(d_y.abs()) * (scaled * normal + sum)
            })
            .sum::<f64>()
        })
        .sum()
    }

    /// The roundings of a mean of `log(sum(exp(logit - largest))) - (logit - largest)`, where `spread` is the most that a difference can be.
    fn cross_entropy_rounding(classes: usize, rows: usize, spread: f64) -> f64 {
        let (classes, rows) = (classes as f64, rows as f64);
        let loss = classes.ln() + spread;
        // Of the sum relatively, thus of its logarithm absolutely: a difference, an exponential of two roundings, and the additions.
        let of_sum = spread + 2.0 + classes;
        // The logarithm's own two, the other difference, and their difference.
        let of_row = of_sum + 2.0 * classes.ln() + spread + loss;
        UNIT * (of_row + (rows + 1.0) * loss)
    }

    #[test]
    fn gradients_of_a_dense_layer_are_slopes() {
        let (x, kernel, bias, d_y) = (numbers(6, 1), numbers(12, 2), numbers(4, 3), numbers(8, 4));
        let got = dense_backward(&x, &kernel, &d_y, 4);
        let rounding = dense_rounding(&x, &kernel, &bias, &d_y);
        check(
            |x| weighted(&dense(x, &kernel, &bias), &d_y),
            &x,
            &got.d_x,
            rounding,
        );
        check(
            |kernel| weighted(&dense(&x, kernel, &bias), &d_y),
            &kernel,
            &got.d_kernel,
            rounding,
        );
        check(
            |bias| weighted(&dense(&x, &kernel, bias), &d_y),
            &bias,
            &got.d_bias,
            rounding,
        );
    }

    #[test]
    fn gradients_of_a_layer_norm_are_slopes() {
        let (x, scale, bias, d_y) = (numbers(10, 1), numbers(5, 2), numbers(5, 3), numbers(10, 4));
        let got = layer_norm_backward(&x, &scale, EPSILON, &d_y);
        let rounding = layer_norm_rounding(&x, &scale, &bias, &d_y);
        check(
            |x| weighted(&layer_norm(x, &scale, &bias, EPSILON), &d_y),
            &x,
            &got.d_x,
            rounding,
        );
        check(
            |scale| weighted(&layer_norm(&x, scale, &bias, EPSILON), &d_y),
            &scale,
            &got.d_scale,
            rounding,
        );
        check(
            |bias| weighted(&layer_norm(&x, &scale, bias, EPSILON), &d_y),
            &bias,
            &got.d_bias,
            rounding,
        );
    }

    #[test]
    fn the_gradient_of_cross_entropy_is_its_slope() {
        let (logits, labels) = (numbers(12, 5), [2, 0, 3]);
        let (_, gradient) = cross_entropy(&logits, &labels);
        // The logits lie between -1 and 1.
        let rounding = cross_entropy_rounding(logits.len() / labels.len(), labels.len(), 2.0);
        check(
            |logits| cross_entropy(logits, &labels).0.into(),
            &logits,
            &gradient,
            rounding,
        );
    }
}
