//! The decoder of `train.py`: an embedding, blocks of attention and MLP, each normalised before and added, a layer norm, one dense layer.

use crate::dense::Dense;
use crate::nn::{LayerNorm, values};
use anyhow::{Context, Result, ensure};
use attn_layers::core::{Element, Host, Kernels};
use attn_layers::io::{Subtree, Tree};
use attn_layers::{HostKernels, MultiHeadDotProductAttentionOf, Params, Rotary};
use serde_json::Value;

/// What `model.json` says.
#[derive(Clone)]
pub(crate) struct Description {
    pub(crate) features: usize,
    pub(crate) num_heads: usize,
    pub(crate) layers: usize,
    mlp_features: usize,
    /// Characters that one sees, its own among them.
    pub(crate) window: usize,
    pub(crate) rotary_base: f64,
    epsilon: f32,
    /// The character of each id.
    pub(crate) characters: Vec<char>,
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
            let size = json[name].as_u64().filter(|&size| size > 0);
            Ok::<_, anyhow::Error>(size.with_context(|| format!("{name} is missing or 0"))? as usize)
        };
        let characters = json["characters"]
            .as_str()
            .context("characters are missing")?;
        let this = Self {
            features: size("features")?,
            num_heads: size("num_heads")?,
            layers: size("layers")?,
            mlp_features: size("mlp_features")?,
            window: size("window")?,
            rotary_base: number("rotary_base")?,
            epsilon: number("epsilon")? as f32,
            characters: characters.chars().collect(),
        };
        ensure!(
            this.features.is_multiple_of(this.num_heads),
            "{} heads do not divide {} features",
            this.num_heads,
            this.features
        );
        ensure!(!this.characters.is_empty(), "there are no characters");
        Ok(this)
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.features / self.num_heads
    }

    /// The ids of a text.
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<usize>> {
        let id = |wanted: char| {
            let id = self.characters.iter().position(|&one| one == wanted);
            id.with_context(|| {
                let known: String = self.characters.iter().collect();
                format!("the model does not know {wanted:?}; it knows {known:?}")
            })
        };
        text.chars().map(id).collect()
    }
}

/// The decoder with its parameters. Attention computes and caches in `T`, all else is `f32`.
pub(crate) struct Decoder<T: Element> {
    pub(crate) description: Description,
    pub(crate) attention: MultiHeadDotProductAttentionOf<T>,
    /// `[characters, features]`.
    embed: Vec<f32>,
    pub(crate) blocks: Vec<Block<T>>,
    norm: LayerNorm,
    head: Dense<f32>,
}

/// The parameters of a block.
pub(crate) struct Block<T: Element> {
    attention_norm: LayerNorm,
    query: Dense<T>,
    key: Dense<T>,
    value: Dense<T>,
    out: Dense<T>,
    mlp_norm: LayerNorm,
    mlp_in: Dense<f32>,
    mlp_out: Dense<f32>,
}

impl<T: Element> Decoder<T> {
    pub(crate) fn load<B: HostKernels + Kernels<T>>(
        backend: &B,
        description: &Description,
        tree: &Tree<'_>,
    ) -> Result<Self> {
        let params = tree.subtree("")?;
        let (features, characters) = (description.features, description.characters.len());
        let embed = values(&params, "embed/embedding")?;
        ensure!(
            embed.len() == characters * features,
            "embed: not [{characters}, {features}]"
        );
        let blocks = (0..description.layers).map(|layer| {
            let params = params.subtree(&format!("block_{layer}"))?;
            Block::load(backend, &params, description).with_context(|| format!("block_{layer}"))
        });
        Ok(Self {
            attention: MultiHeadDotProductAttentionOf {
                rotary: Some(Rotary {
                    base: description.rotary_base,
                    ..Rotary::new()
                }),
                ..MultiHeadDotProductAttentionOf::new(description.num_heads)
            },
            embed,
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::load(&params, "norm", features, description.epsilon)?,
            head: Dense::load(backend, &params, "head", &[features], &[characters])?,
            description: description.clone(),
        })
    }

    /// Rows of the embedding, `[tokens, features]`.
    pub(crate) fn embed(&self, ids: &[usize]) -> Vec<f32> {
        let features = self.description.features;
        let row = |&id: &usize| &self.embed[id * features..][..features];
        ids.iter().flat_map(row).copied().collect()
    }

    /// Logits of the character after each row, `[tokens, characters]`.
    pub(crate) fn logits<B: HostKernels>(&self, backend: &B, x: &[f32]) -> Result<Vec<f32>> {
        self.head.apply(backend, &self.norm.apply(x))
    }
}

impl<T: Element> Block<T> {
    fn load<B: HostKernels + Kernels<T>>(
        backend: &B,
        params: &Subtree<'_, '_>,
        description: &Description,
    ) -> Result<Self> {
        let (features, hidden) = (description.features, description.mlp_features);
        let heads = [description.num_heads, description.head_dim()];
        let attention = params.subtree("attention")?;
        let norm = |name| LayerNorm::load(params, name, features, description.epsilon);
        let input = |name| Dense::load(backend, &attention, name, &[features], &heads);
        Ok(Self {
            attention_norm: norm("attention_norm")?,
            query: input("query")?,
            key: input("key")?,
            value: input("value")?,
            out: Dense::load(backend, &attention, "out", &heads, &[features])?,
            mlp_norm: norm("mlp_norm")?,
            mlp_in: Dense::load(backend, params, "mlp_in", &[features], &[hidden])?,
            mlp_out: Dense::load(backend, params, "mlp_out", &[hidden], &[features])?,
        })
    }

    /// As an attention layer takes them.
    pub(crate) fn attention(&self) -> Result<Params<'_, Host, T>> {
        Ok(Params {
            query: self.query.borrow()?,
            key: self.key.borrow()?,
            value: self.value.borrow()?,
            out: self.out.borrow()?,
            query_ln: None,
            key_ln: None,
        })
    }

    /// What attention reads of the rows `x`.
    pub(crate) fn before_attention(&self, x: &[f32]) -> Vec<f32> {
        self.attention_norm.apply(x)
    }

    /// What the MLP adds to the rows `x`.
    pub(crate) fn mlp<B: HostKernels>(&self, backend: &B, x: &[f32]) -> Result<Vec<f32>> {
        let mut y = self.mlp_in.apply(backend, &self.mlp_norm.apply(x))?;
        y.iter_mut().for_each(|y| *y = gelu(*y));
        self.mlp_out.apply(backend, &y)
    }
}

/// `jax.nn.gelu`, which approximates by a hyperbolic tangent.
fn gelu(x: f32) -> f32 {
    let inner = (2.0 / core::f32::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}
