//! The files beside this one, which `train.py` made.

use crate::model::{Decoder, Description};
use anyhow::{Context, Result};
use attn_layers::HostKernels;
use attn_layers::core::{Element, Kernels};
use attn_layers::io::Tree;

/// The model as it was trained.
pub(crate) struct Files {
    pub(crate) description: Description,
    /// Parameters in `float16`, by Flax's names.
    weights: Vec<u8>,
}

impl Files {
    pub(crate) fn load() -> Result<Self> {
        Ok(Self {
            description: Description::parse(&read("model.json")?).context("model.json")?,
            weights: read("weights.safetensors")?,
        })
    }

    /// The decoder, whose attention computes in `T`.
    pub(crate) fn decoder<T: Element, B: HostKernels + Kernels<T>>(
        &self,
        backend: &B,
    ) -> Result<Decoder<T>> {
        let weights = Tree::read_safetensors(&self.weights)?;
        Decoder::load(backend, &self.description, &weights).context("weights.safetensors")
    }
}

pub(crate) fn read(name: &str) -> Result<Vec<u8>> {
    let path = format!("{}/examples/generate/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).context(path)
}
