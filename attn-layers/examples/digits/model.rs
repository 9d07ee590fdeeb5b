//! The classifier of `train.py`: patches to tokens, blocks of attention and MLP, the tokens' mean, one dense layer.

use crate::nn::{Dense, LayerNorm, add, relu, values};
use anyhow::{Context, Result, ensure};
use attn_layers::io::{Subtree, Tree};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{Call, Cpu, DType, MultiHeadDotProductAttention};
use serde_json::Value;

/// Pixels of a side of an image.
pub(crate) const SIDE: usize = 8;

/// What `model.json` says.
#[derive(Clone, Copy)]
pub(crate) struct Description {
    patch: usize,
    pub(crate) features: usize,
    pub(crate) num_heads: usize,
    pub(crate) layers: usize,
    pub(crate) mlp_features: usize,
    pub(crate) classes: usize,
    pub(crate) epsilon: f32,
    pixel_scale: f32,
}

impl Description {
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        let json: Value = serde_json::from_slice(json)?;
        let number = |name: &str| {
            json[name]
                .as_f64()
                .with_context(|| format!("{name} is missing"))
        };
        let size = |name: &str| {
            json[name]
                .as_u64()
                .with_context(|| format!("{name} is missing"))
        };
        let this = Self {
            patch: size("patch")? as usize,
            features: size("features")? as usize,
            num_heads: size("num_heads")? as usize,
            layers: size("layers")? as usize,
            mlp_features: size("mlp_features")? as usize,
            classes: size("classes")? as usize,
            epsilon: number("epsilon")? as f32,
            pixel_scale: number("pixel_scale")? as f32,
        };
        let sizes = [this.features, this.layers, this.mlp_features, this.classes];
        ensure!(!sizes.contains(&0), "a size of the model is 0");
        ensure!(
            (1..=SIDE).contains(&this.patch) && SIDE.is_multiple_of(this.patch),
            "patch {} does not divide {SIDE}",
            this.patch
        );
        Ok(this)
    }

    /// Tokens along a side of an image.
    pub(crate) fn grid(&self) -> usize {
        SIDE / self.patch
    }

    pub(crate) fn tokens(&self) -> usize {
        self.grid().pow(2)
    }

    /// Numbers that a token starts from.
    pub(crate) fn patch_pixels(&self) -> usize {
        self.patch.pow(2)
    }

    /// Cuts images into patches, row by row: `[images, tokens, patch · patch]`.
    pub(crate) fn patches(&self, images: &[f32]) -> Vec<f32> {
        let (patch, grid) = (self.patch, self.grid());
        let mut patches = Vec::with_capacity(images.len());
        for image in images.chunks_exact(SIDE * SIDE) {
            for token in 0..grid * grid {
                let corner = token / grid * patch * SIDE + token % grid * patch;
                for row in 0..patch {
                    let pixels = &image[corner + row * SIDE..][..patch];
                    patches.extend(pixels.iter().map(|pixel| pixel / self.pixel_scale));
                }
            }
        }
        patches
    }
}

/// The classifier with its parameters.
pub(crate) struct Classifier<'p> {
    description: Description,
    attention: MultiHeadDotProductAttention<'static>,
    embed: Dense,
    position: Vec<f32>,
    blocks: Vec<Block<'p>>,
    norm: LayerNorm,
    head: Dense,
}

struct Block<'p> {
    attention_norm: LayerNorm,
    attention: Subtree<'p, 'p>,
    mlp_norm: LayerNorm,
    mlp_in: Dense,
    mlp_out: Dense,
}

/// What the classifier gives for a batch of images.
pub(crate) struct Classified {
    /// `[images, classes]`.
    pub(crate) logits: Vec<f32>,
    /// Of each block, if asked for: `[images, heads, tokens, tokens]`.
    pub(crate) attention_weights: Vec<Tensor>,
}

impl<'p> Classifier<'p> {
    /// Binds the parameters of `tree`; attention computes in `dtype`.
    pub(crate) fn new(description: Description, tree: &'p Tree<'p>, dtype: DType) -> Result<Self> {
        let params = tree.subtree("params")?;
        let features = description.features;
        let blocks = (0..description.layers)
            .map(|layer| Block::load(&params.subtree(&format!("block_{layer}"))?, &description));
        let mut attention = MultiHeadDotProductAttention::new(description.num_heads);
        attention.dtype = Some(dtype.scalar());
        let position = values(&params, "position")?;
        ensure!(
            position.len() == description.tokens() * features,
            "position: not [tokens, features]"
        );
        Ok(Self {
            attention,
            embed: Dense::load(&params, "embed", description.patch_pixels(), features)?,
            position,
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::load(&params, "norm", features, description.epsilon)?,
            head: Dense::load(&params, "head", features, description.classes)?,
            description,
        })
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    pub(crate) fn classes(&self) -> usize {
        self.description.classes
    }

    /// Classifies images, `[images, 8, 8]`.
    pub(crate) fn classify(
        &self,
        cpu: &Cpu,
        images: &[f32],
        sow_weights: bool,
    ) -> Result<Classified> {
        let (tokens, features) = (self.description.tokens(), self.description.features);
        let shape = [images.len() / (SIDE * SIDE), tokens, features];
        let mut attention_weights = Vec::new();

        let mut x = self.embed.apply(&self.description.patches(images));
        for image in x.chunks_exact_mut(tokens * features) {
            image
                .iter_mut()
                .zip(&self.position)
                .for_each(|(x, position)| *x += position);
        }
        for block in &self.blocks {
            let y = block.attention_norm.apply(&x);
            let call = Call::new(TensorView::from_slice(&y, &shape)?).with_sow_weights(sow_weights);
            let attended = self.attention.apply(cpu, &block.attention, call)?;
            attention_weights.extend(attended.attention_weights);
            x = add(x, &attended.out.view().to_vec()?);

            let y = relu(block.mlp_in.apply(&block.mlp_norm.apply(&x)));
            x = add(x, &block.mlp_out.apply(&y));
        }
        let x = self.norm.apply(&x);
        let logits = self.head.apply(&mean_of_tokens(&x, tokens, features));
        Ok(Classified {
            logits,
            attention_weights,
        })
    }
}

impl<'p> Block<'p> {
    fn load(params: &Subtree<'p, 'p>, description: &Description) -> Result<Self> {
        let (features, hidden) = (description.features, description.mlp_features);
        let norm = |name| LayerNorm::load(params, name, features, description.epsilon);
        Ok(Self {
            attention_norm: norm("attention_norm")?,
            attention: params.subtree("attention")?,
            mlp_norm: norm("mlp_norm")?,
            mlp_in: Dense::load(params, "mlp_in", features, hidden)?,
            mlp_out: Dense::load(params, "mlp_out", hidden, features)?,
        })
    }
}

/// `[images, tokens, features]` to `[images, features]`.
pub(crate) fn mean_of_tokens(x: &[f32], tokens: usize, features: usize) -> Vec<f32> {
    let mut means = Vec::with_capacity(x.len() / tokens);
    for image in x.chunks_exact(tokens * features) {
        means.extend((0..features).map(|feature| {
            let sum: f32 = image.iter().skip(feature).step_by(features).sum();
            sum / tokens as f32
        }));
    }
    means
}
