//! One forward and backward pass of the classifier.

use crate::data::Images;
use crate::layers::{
    cross_entropy, dense_backward, layer_norm_backward, mean_of_tokens_backward, relu_backward,
    sum_of_rows,
};
use crate::model::{Description, mean_of_tokens};
use crate::nn::{add, dense, layer_norm, relu};
use crate::parameters::Parameters;
use anyhow::{Context, Result};
use attn_layers::random::{Key, Rngs};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{Call, Cpu, MultiHeadDotProductAttention};

/// What a pass needs besides images.
pub(crate) struct Pass<'a> {
    pub(crate) description: &'a Description,
    pub(crate) cpu: &'a Cpu,
    pub(crate) parameters: &'a Parameters,
    pub(crate) dropout_rate: f64,
    /// The stream of this step's dropout; without it there is none.
    pub(crate) dropout: Option<Key>,
}

/// The loss of some images, and the gradients of all parameters.
pub(crate) fn loss_and_gradients(pass: &Pass<'_>, images: &Images) -> Result<(f32, Parameters)> {
    let mut descent = Descent {
        pass,
        labels: &images.labels,
        gradients: pass.parameters.zeros_like()?,
    };
    let loss = descent.images(&images.pixels)?;
    Ok((loss, descent.gradients))
}

/// Each layer computes, hands its result to the next, gets the gradient of that result back, and gives the gradient of what it was given.
/// So everything that a layer's gradient needs stays where it was made.
struct Descent<'a> {
    pass: &'a Pass<'a>,
    labels: &'a [usize],
    gradients: Parameters,
}

impl<'a> Descent<'a> {
    fn images(&mut self, pixels: &[f32]) -> Result<f32> {
        let description = self.pass.description;
        let patches = description.patches(pixels);
        let position = self.pass.parameters.get("position")?;
        let mut x = self.dense("embed", &patches)?;
        for image in x.chunks_exact_mut(position.len()) {
            image
                .iter_mut()
                .zip(position)
                .for_each(|(x, position)| *x += position);
        }
        let (loss, d_x) = self.block(0, &x)?;
        let d_position = sum_of_rows(&d_x, position.len());
        self.set("position", &d_position)?;
        self.dense_backward("embed", &patches, &d_x)?;
        Ok(loss)
    }

    /// The loss and `d_x`.
    fn block(&mut self, layer: usize, x: &[f32]) -> Result<(f32, Vec<f32>)> {
        if layer == self.pass.description.layers {
            return self.head(x);
        }
        let name = |part: &str| format!("block_{layer}/{part}");
        let (norm, mlp_norm) = (name("attention_norm"), name("mlp_norm"));
        let (mlp_in, mlp_out) = (name("mlp_in"), name("mlp_out"));
        let pass = self.pass;

        let y = self.norm(&norm, x)?;
        let shape = self.tokens_of(&y);
        let block = format!("block_{layer}");
        let path = [block.as_str(), "attention"];
        let attention = pass.attention(&path);
        let attention_path = name("attention");
        let params = pass.parameters.below(&attention_path);
        let call = Call::new(TensorView::from_slice(&y, &shape)?).with_rngs(pass.rngs());
        let (attended, residuals) = attention.forward(pass.cpu, &params, call)?;
        let after = add(x.to_vec(), attended.out.as_slice().context("float32")?);

        let z = self.norm(&mlp_norm, &after)?;
        let hidden = relu(self.dense(&mlp_in, &z)?);
        let (loss, d_out) = self.block(
            layer + 1,
            &add(after.clone(), &self.dense(&mlp_out, &hidden)?),
        )?;

        let d_hidden = self.dense_backward(&mlp_out, &hidden, &d_out)?;
        let d_z = self.dense_backward(&mlp_in, &z, &relu_backward(&hidden, d_hidden))?;
        let d_after = add(d_out, &self.norm_backward(&mlp_norm, &after, &d_z)?);

        let d_attended = TensorView::from_slice(&d_after, &shape)?;
        let gradients = attention.backward(pass.cpu, &residuals, d_attended)?;
        for (part, gradient) in gradients.params.iter() {
            self.set(
                &format!("{attention_path}/{part}"),
                gradient.as_slice().context("float32")?,
            )?;
        }
        let d_y = gradients.d_inputs_q.as_ref().and_then(Tensor::as_slice);
        let d_y = d_y.context("float32")?;
        let d_x = self.norm_backward(&norm, x, d_y)?;
        Ok((loss, add(d_after, &d_x)))
    }

    fn head(&mut self, x: &[f32]) -> Result<(f32, Vec<f32>)> {
        let (tokens, features) = (
            self.pass.description.tokens(),
            self.pass.description.features,
        );
        let means = mean_of_tokens(&self.norm("norm", x)?, tokens, features);
        let logits = self.dense("head", &means)?;
        let (loss, d_logits) = cross_entropy(&logits, self.labels);
        let d_means = self.dense_backward("head", &means, &d_logits)?;
        let d_y = mean_of_tokens_backward(&d_means, tokens, features);
        Ok((loss, self.norm_backward("norm", x, &d_y)?))
    }

    /// `[images, tokens, features]`.
    fn tokens_of(&self, x: &[f32]) -> [usize; 3] {
        let (tokens, features) = (
            self.pass.description.tokens(),
            self.pass.description.features,
        );
        [x.len() / (tokens * features), tokens, features]
    }

    fn parameter(&self, layer: &str, name: &str) -> Result<&'a [f32]> {
        self.pass.parameters.get(&format!("{layer}/{name}"))
    }

    fn dense(&self, layer: &str, x: &[f32]) -> Result<Vec<f32>> {
        Ok(dense(
            x,
            self.parameter(layer, "kernel")?,
            self.parameter(layer, "bias")?,
        ))
    }

    fn norm(&self, layer: &str, x: &[f32]) -> Result<Vec<f32>> {
        let epsilon = self.pass.description.epsilon;
        Ok(layer_norm(
            x,
            self.parameter(layer, "scale")?,
            self.parameter(layer, "bias")?,
            epsilon,
        ))
    }

    fn dense_backward(&mut self, layer: &str, x: &[f32], d_y: &[f32]) -> Result<Vec<f32>> {
        let outputs = self.parameter(layer, "bias")?.len();
        let gradients = dense_backward(x, self.parameter(layer, "kernel")?, d_y, outputs);
        self.set(&format!("{layer}/kernel"), &gradients.d_kernel)?;
        self.set(&format!("{layer}/bias"), &gradients.d_bias)?;
        Ok(gradients.d_x)
    }

    fn norm_backward(&mut self, layer: &str, x: &[f32], d_y: &[f32]) -> Result<Vec<f32>> {
        let epsilon = self.pass.description.epsilon;
        let gradients = layer_norm_backward(x, self.parameter(layer, "scale")?, epsilon, d_y);
        self.set(&format!("{layer}/scale"), &gradients.d_scale)?;
        self.set(&format!("{layer}/bias"), &gradients.d_bias)?;
        Ok(gradients.d_x)
    }

    fn set(&mut self, path: &str, gradient: &[f32]) -> Result<()> {
        self.gradients.get_mut(path)?.copy_from_slice(gradient);
        Ok(())
    }
}

impl Pass<'_> {
    fn attention<'h>(&self, path: &'h [&'h str]) -> MultiHeadDotProductAttention<'h> {
        MultiHeadDotProductAttention {
            dropout_rate: self.dropout_rate,
            deterministic: Some(self.dropout.is_none()),
            path,
            ..MultiHeadDotProductAttention::new(self.description.num_heads)
        }
    }

    fn rngs(&self) -> Rngs {
        Rngs {
            dropout: self.dropout,
            ..Rngs::default()
        }
    }
}
