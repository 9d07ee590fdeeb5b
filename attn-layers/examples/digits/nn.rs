//! The plain layers around the attention: `flax.linen.Dense`, `LayerNorm` and `relu` on rows of `f32`.

use anyhow::{Context, Result, ensure};
use attn_layers::core::Element;
use attn_layers::io::Subtree;

/// `x · kernel + bias` for every row.
pub(crate) struct Dense {
    kernel: Vec<f32>,
    bias: Vec<f32>,
}

impl Dense {
    pub(crate) fn load(
        params: &Subtree<'_, '_>,
        name: &str,
        features: usize,
        outputs: usize,
    ) -> Result<Self> {
        let (kernel, bias) = (
            values(params, &format!("{name}/kernel"))?,
            values(params, &format!("{name}/bias"))?,
        );
        ensure!(
            kernel.len() == features * outputs && bias.len() == outputs,
            "{name}: not [{features}, {outputs}] and [{outputs}]"
        );
        Ok(Self { kernel, bias })
    }

    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        dense(x, &self.kernel, &self.bias)
    }
}

/// `x · kernel + bias` for every row; kernel `[features, outputs]`.
pub(crate) fn dense(x: &[f32], kernel: &[f32], bias: &[f32]) -> Vec<f32> {
    let outputs = bias.len();
    let features = kernel.len() / outputs;
    let mut y = Vec::with_capacity(x.len() / features * outputs);
    for row in x.chunks_exact(features) {
        let start = y.len();
        y.extend_from_slice(bias);
        for (x, weights) in row.iter().zip(kernel.chunks_exact(outputs)) {
            for (y, weight) in y[start..].iter_mut().zip(weights) {
                *y += x * weight;
            }
        }
    }
    y
}

/// Layer norm of every row.
pub(crate) struct LayerNorm {
    scale: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    pub(crate) fn load(
        params: &Subtree<'_, '_>,
        name: &str,
        features: usize,
        epsilon: f32,
    ) -> Result<Self> {
        let (scale, bias) = (
            values(params, &format!("{name}/scale"))?,
            values(params, &format!("{name}/bias"))?,
        );
        ensure!(
            scale.len() == features && bias.len() == features,
            "{name}: not [{features}]"
        );
        Ok(Self {
            scale,
            bias,
            epsilon,
        })
    }

    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        layer_norm(x, &self.scale, &self.bias, self.epsilon)
    }
}

/// Layer norm of every row.
pub(crate) fn layer_norm(x: &[f32], scale: &[f32], bias: &[f32], epsilon: f32) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(scale.len()) {
        let (mean, inverse) = statistics(row, epsilon);
        y.extend(
            row.iter()
                .zip(scale)
                .zip(bias)
                .map(|((x, scale), bias)| (x - mean) * (inverse * scale) + bias),
        );
    }
    y
}

/// Mean and inverse deviation of a row.
pub(crate) fn statistics(row: &[f32], epsilon: f32) -> (f32, f32) {
    let features = row.len() as f32;
    let mean = row.iter().sum::<f32>() / features;
    let square = row.iter().map(|x| x * x).sum::<f32>() / features;
    // Flax's fast variance: the mean of squares less the square of the mean.
    let variance = (square - mean * mean).max(0.0);
    (mean, (variance + epsilon).sqrt().recip())
}

/// Negative numbers become 0.
pub(crate) fn relu(mut x: Vec<f32>) -> Vec<f32> {
    x.iter_mut().for_each(|x| *x = x.max(0.0));
    x
}

/// `x` with `y` added, element by element.
pub(crate) fn add(mut x: Vec<f32>, y: &[f32]) -> Vec<f32> {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    x
}

/// The values of a parameter.
pub(crate) fn values<T: Element>(params: &Subtree<'_, '_>, path: &str) -> Result<Vec<T>> {
    let tensor = params
        .get(path)
        .with_context(|| format!("there is no parameter {path}"))?;
    Ok(tensor.to_vec()?)
}
