//! The plain layers around the attention: `flax.linen.Dense`, `LayerNorm` and `relu` on rows of `f32`.

use anyhow::{Context, Result, ensure};
use attn_layers::io::Subtree;

/// `x · kernel + bias` for every row.
pub(crate) struct Dense {
    kernel: Vec<f32>,
    bias: Vec<f32>,
}

impl Dense {
    pub(crate) fn load(params: &Subtree<'_, '_>, name: &str) -> Result<Self> {
        let (kernel, bias) = (
            values(params, &format!("{name}/kernel"))?,
            values(params, &format!("{name}/bias"))?,
        );
        ensure!(
            !bias.is_empty() && kernel.len() % bias.len() == 0,
            "{name}: kernel and bias do not fit"
        );
        Ok(Self { kernel, bias })
    }

    pub(crate) fn outputs(&self) -> usize {
        self.bias.len()
    }

    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let outputs = self.outputs();
        let features = self.kernel.len() / outputs;
        let mut y = Vec::with_capacity(x.len() / features * outputs);
        for row in x.chunks_exact(features) {
            let start = y.len();
            y.extend_from_slice(&self.bias);
            for (x, weights) in row.iter().zip(self.kernel.chunks_exact(outputs)) {
                for (y, weight) in y[start..].iter_mut().zip(weights) {
                    *y += x * weight;
                }
            }
        }
        y
    }
}

/// Layer norm of every row.
pub(crate) struct LayerNorm {
    scale: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    pub(crate) fn load(params: &Subtree<'_, '_>, name: &str, epsilon: f32) -> Result<Self> {
        let (scale, bias) = (
            values(params, &format!("{name}/scale"))?,
            values(params, &format!("{name}/bias"))?,
        );
        ensure!(
            !scale.is_empty() && scale.len() == bias.len(),
            "{name}: scale and bias do not fit"
        );
        Ok(Self {
            scale,
            bias,
            epsilon,
        })
    }

    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let features = self.scale.len();
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(features) {
            let mean = row.iter().sum::<f32>() / features as f32;
            let square = row.iter().map(|x| x * x).sum::<f32>() / features as f32;
            // Flax's fast variance: the mean of squares less the square of the mean.
            let inverse = (square - mean * mean).max(0.0) + self.epsilon;
            let inverse = inverse.sqrt().recip();
            y.extend(
                row.iter()
                    .zip(&self.scale)
                    .zip(&self.bias)
                    .map(|((x, scale), bias)| (x - mean) * (inverse * scale) + bias),
            );
        }
        y
    }
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
pub(crate) fn values(params: &Subtree<'_, '_>, path: &str) -> Result<Vec<f32>> {
    let tensor = params
        .get(path)
        .with_context(|| format!("there is no parameter {path}"))?;
    Ok(tensor.to_vec()?)
}
