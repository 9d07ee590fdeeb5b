//! The classifier's parameters by their paths, as Flax starts them, and their gradients.

use crate::model::Description;
use anyhow::{Context, Result};
use attn_layers::initializers::{Drawing, Initializer};
use attn_layers::io;
use attn_layers::random::{DefaultWidth, Key, Rngs};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{InitShapes, MultiHeadDotProductAttention, ParamSource, ScalarType};

/// Arrays of `float32` by paths, in the order in which they were made.
#[derive(Clone, Default)]
pub(crate) struct Parameters {
    entries: Vec<(String, Tensor)>,
}

impl Parameters {
    /// What Flax starts from: `Classifier().init(jax.random.key(seed), images)`.
    pub(crate) fn initial(description: &Description, seed: i64) -> Result<Self> {
        let mut start = Start {
            rngs: Rngs::params(Key::new(seed, DefaultWidth::Bits32)),
            made: Self::default(),
        };
        let features = description.features;
        start.dense(&[], "embed", description.patch_pixels(), features)?;
        let position = Initializer::Normal { stddev: 0.02 };
        start.draw(
            &[],
            "position",
            1,
            position,
            &[description.tokens(), features],
        )?;
        for layer in 0..description.layers {
            let block = format!("block_{layer}");
            start.norm(&block, "attention_norm", features)?;
            start.attention(description, &block)?;
            start.norm(&block, "mlp_norm", features)?;
            start.dense(&[&block], "mlp_in", features, description.mlp_features)?;
            start.dense(&[&block], "mlp_out", description.mlp_features, features)?;
        }
        start.norm("", "norm", features)?;
        start.dense(&[], "head", features, description.classes)?;
        Ok(start.made)
    }

    /// Arrays of the same paths and shapes, all zeros.
    pub(crate) fn zeros_like(&self) -> Result<Self> {
        let zeros = self.entries.iter().map(|(path, tensor)| {
            Ok((
                path.clone(),
                Tensor::zeros(ScalarType::F32, tensor.shape())?,
            ))
        });
        Ok(Self {
            entries: zeros.collect::<Result<_>>()?,
        })
    }

    pub(crate) fn get(&self, path: &str) -> Result<&[f32]> {
        let found = self.entries.iter().find(|(name, _)| name == path);
        let values = found.and_then(|(_, tensor)| tensor.as_slice());
        values.with_context(|| format!("there is no parameter {path}"))
    }

    pub(crate) fn get_mut(&mut self, path: &str) -> Result<&mut [f32]> {
        let found = self.entries.iter_mut().find(|(name, _)| name == path);
        let values = found.and_then(|(_, tensor)| tensor.as_mut_slice());
        values.with_context(|| format!("there is no parameter {path}"))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.entries
            .iter()
            .map(|(path, tensor)| (path.as_str(), tensor.view()))
    }

    /// The values of each array.
    pub(crate) fn values(&self) -> impl Iterator<Item = &[f32]> {
        self.entries
            .iter()
            .filter_map(|(_, tensor)| tensor.as_slice())
    }

    /// The values of each array.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.entries
            .iter_mut()
            .filter_map(|(_, tensor)| tensor.as_mut_slice())
    }

    /// Those below `path`, for the attention there.
    pub(crate) fn below<'p>(&'p self, path: &'p str) -> Below<'p> {
        Below {
            parameters: self,
            path,
        }
    }

    /// The bytes of `flax.serialization.to_bytes({'params': ...})`.
    pub(crate) fn to_file(&self) -> Result<Vec<u8>> {
        let paths: Vec<_> = self
            .entries
            .iter()
            .map(|(path, _)| format!("params/{path}"))
            .collect();
        let views = paths.iter().zip(&self.entries);
        let views: Vec<_> = views
            .map(|(path, (_, tensor))| (path.as_str(), tensor.view()))
            .collect();
        Ok(io::write_msgpack(&views)?)
    }
}

/// The parameters below a path.
pub(crate) struct Below<'p> {
    parameters: &'p Parameters,
    path: &'p str,
}

impl ParamSource for Below<'_> {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        let is_it = |path: &str| {
            let below = path
                .strip_prefix(self.path)
                .and_then(|rest| rest.strip_prefix('/'));
            below.and_then(|rest| rest.split_once('/')) == Some((scope, name))
        };
        self.parameters
            .iter()
            .find(|(path, _)| is_it(path))
            .map(|(_, view)| view)
    }

    fn is_empty(&self) -> bool {
        self.parameters.entries.is_empty()
    }
}

/// Parameters in the making.
struct Start {
    rngs: Rngs,
    made: Parameters,
}

impl Start {
    /// The parameter `count` of the module `path`.
    fn draw(
        &mut self,
        path: &[&str],
        name: &str,
        count: u32,
        initializer: Initializer<'_>,
        shape: &[usize],
    ) -> Result<()> {
        let key = self.rngs.param_key(path, "", count)?;
        let mut values = vec![0.0f32; shape.iter().product()];
        initializer.fill(key, shape, Drawing::default(), &mut values)?;
        let mut full = path.to_vec();
        full.push(name);
        self.made
            .entries
            .push((full.join("/"), Tensor::from_slice(&values, shape)?));
        Ok(())
    }

    /// `flax.linen.Dense`.
    fn dense(&mut self, path: &[&str], name: &str, features: usize, outputs: usize) -> Result<()> {
        let path = [path, &[name]].concat();
        self.draw(
            &path,
            "kernel",
            1,
            Initializer::LecunNormal,
            &[features, outputs],
        )?;
        self.draw(&path, "bias", 2, Initializer::Zeros, &[outputs])
    }

    /// `flax.linen.LayerNorm`; an empty `parent` is the root.
    fn norm(&mut self, parent: &str, name: &str, features: usize) -> Result<()> {
        let path: Vec<_> = [parent, name]
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        self.draw(&path, "scale", 1, Initializer::Ones, &[features])?;
        self.draw(&path, "bias", 2, Initializer::Zeros, &[features])
    }

    fn attention(&mut self, description: &Description, block: &str) -> Result<()> {
        let layer = MultiHeadDotProductAttention {
            path: &[block, "attention"],
            ..MultiHeadDotProductAttention::new(description.num_heads)
        };
        let shapes = [1, description.tokens(), description.features];
        let params = layer.init(&self.rngs, &InitShapes::new(&shapes))?;
        for (path, tensor) in params.into_entries() {
            self.made
                .entries
                .push((format!("{block}/attention/{path}"), tensor));
        }
        Ok(())
    }
}
