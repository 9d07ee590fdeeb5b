//! Named tensors of a weight file.

use anyhow::{Context, Result, ensure};
use attn_layers::ScalarType;
use attn_layers::io::Tree;
use attn_layers::tensor::{Tensor, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors by name, `query/kernel`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    /// Reads a whole safetensors or msgpack file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::read_below(path, &[])
    }

    /// Reads the part of a file that lies below `root`.
    pub(crate) fn read_below(path: &Path, root: &[&str]) -> Result<Self> {
        let bytes = read_file(path)?;
        let what = || path.file_name().unwrap_or_default().display().to_string();
        let tree = Tree::read(&bytes).with_context(what)?;
        let mut prefix = root.join("/");
        if !prefix.is_empty() {
            prefix.push('/');
        }
        let mut tensors = BTreeMap::new();
        for entry in tree.entries() {
            if let Some(name) = entry.path().strip_prefix(&prefix)
                && let Some(view) = entry.tensor()
            {
                tensors.insert(name.to_owned(), Tensor::from(view));
            }
        }
        Ok(Self(tensors))
    }

    /// The tensor `name`.
    pub(crate) fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let tensor = self
            .0
            .get(name)
            .with_context(|| format!("there is no tensor {name:?}"))?;
        Ok(tensor.view())
    }

    /// The tensor `name`, if it is there.
    pub(crate) fn find(&self, name: &str) -> Option<TensorView<'_>> {
        self.0.get(name).map(Tensor::view)
    }

    /// All tensors.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.0
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.view()))
    }

    /// The same without 64-bit types: JAX's arrays where they are off.
    pub(crate) fn narrowed(self) -> Result<Self> {
        let narrow = |(name, tensor): (String, Tensor)| {
            let scalar = match tensor.scalar() {
                ScalarType::F64 => ScalarType::F32,
                ScalarType::I64 => ScalarType::I32,
                ScalarType::U64 => ScalarType::U32,
                _ => return Ok((name, tensor)),
            };
            Ok((name, tensor.view().to_scalar(scalar)?))
        };
        Ok(Self(self.0.into_iter().map(narrow).collect::<Result<_>>()?))
    }

    /// Fails on the first difference in names, types, shapes or bits.
    pub(crate) fn same_as(&self, other: &Self) -> Result<()> {
        for name in self.0.keys().chain(other.0.keys()) {
            let (ours, theirs) = (self.view(name)?, other.view(name)?);
            ensure!(
                ours.scalar() == theirs.scalar(),
                "{name} is {}, not {}",
                theirs.scalar(),
                ours.scalar()
            );
            ensure!(
                ours.shape() == theirs.shape(),
                "{name} is {}, not {}",
                theirs.shape(),
                ours.shape()
            );
            ensure!(ours.bytes() == theirs.bytes(), "{name} has other values");
        }
        Ok(())
    }
}

/// Reads a regular file: a pipe or a device under a case's name would never end.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let name = || path.display().to_string();
    ensure!(
        path.metadata().with_context(name)?.is_file(),
        "{} is not a file",
        path.display()
    );
    std::fs::read(path).with_context(name)
}
