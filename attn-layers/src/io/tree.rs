//! A whole file as a tree of names, read in place.

use super::error::{Error, Problem, Result};
use super::msgpack::{self, Segment, Value};
use super::safetensors;
use crate::params::ParamSource;
use crate::tensor::{Tensor, TensorView};
use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use attn_core::Dims;
use core::fmt;

/// What stands at the end of a path.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Leaf<'a> {
    /// An array, its bytes where they lie in the file, or joined from chunks.
    Tensor(TensorOf<'a>),
    /// Anything else that Flax writes: numbers, texts, nothing.
    Other(Value<'a>),
}

/// An array in the file or one joined from its chunks.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorOf<'a> {
    /// In the file.
    Borrowed(TensorView<'a>),
    /// Joined.
    Owned(Tensor),
}

/// A whole file as a tree of names.
///
/// Names of safetensors are split at `/`, or at `.` where there is no `/`.
#[derive(Debug, Clone)]
pub struct Tree<'a> {
    nodes: Vec<Node<'a>>,
    children: BTreeMap<(usize, Cow<'a, str>), usize>,
}

#[derive(Debug, Clone)]
struct Node<'a> {
    parent: usize,
    name: Cow<'a, str>,
    leaf: Option<Leaf<'a>>,
    /// Part of a chunked array that was joined: not an entry of its own.
    hidden: bool,
}

const ROOT: usize = 0;
const CHUNKED: &str = "__msgpack_chunked_array__";

impl<'a> Tree<'a> {
    /// Reads a file of either format.
    ///
    /// # Errors
    ///
    /// [`Error`] with the offset of what is wrong.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        if safetensors::is_safetensors(bytes) {
            return Self::read_safetensors(bytes);
        }
        match bytes.first() {
            Some(0x80..=0x8f | 0xde | 0xdf) => Self::read_msgpack(bytes),
            _ => Err(Error::new(0, Problem::UnknownFormat)),
        }
    }

    /// Reads Flax msgpack.
    ///
    /// # Errors
    ///
    /// As [`Tree::read`].
    pub fn read_msgpack(bytes: &'a [u8]) -> Result<Self> {
        let mut tree = Self::empty();
        msgpack::read(bytes, &mut |found| {
            let mut node = ROOT;
            for (step, segment) in found.path.iter().enumerate() {
                let before = tree.nodes.len();
                node = tree.child_or_new(node, segment_name(segment));
                if step >= found.fresh && node < before {
                    return Err(Error::new(found.offset, Problem::Duplicate));
                }
            }
            let leaf = match found.value {
                Value::Tensor(view) => Leaf::Tensor(TensorOf::Borrowed(view)),
                other => Leaf::Other(other),
            };
            tree.set(node, leaf, found.offset)
        })?;
        tree.join_chunks()?;
        Ok(tree)
    }

    /// Reads safetensors.
    ///
    /// # Errors
    ///
    /// As [`Tree::read`].
    pub fn read_safetensors(bytes: &'a [u8]) -> Result<Self> {
        let mut tree = Self::empty();
        let mut ranges = Vec::new();
        safetensors::read(bytes, &mut |name, view, offset| {
            let separator = if name.contains('/') { '/' } else { '.' };
            let node = name.split(separator).fold(ROOT, |node, segment| {
                tree.child_or_new(node, Cow::Borrowed(segment))
            });
            let start = view.bytes().as_ptr().addr() - bytes.as_ptr().addr();
            ranges.push((start, start + view.bytes().len(), offset));
            tree.set(node, Leaf::Tensor(TensorOf::Borrowed(view)), offset)
        })?;
        // Their lengths add up to the data, as was checked; in order they must then follow each other.
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            if pair[0].1 != pair[1].0 {
                return Err(Error::new(pair[1].2, Problem::Overlap));
            }
        }
        Ok(tree)
    }

    fn empty() -> Self {
        let root = Node {
            parent: ROOT,
            name: Cow::Borrowed(""),
            leaf: None,
            hidden: false,
        };
        Self {
            nodes: Vec::from([root]),
            children: BTreeMap::new(),
        }
    }

    fn child(&self, parent: usize, name: &str) -> Option<usize> {
        self.children.get(&(parent, Cow::Borrowed(name))).copied()
    }

    fn child_or_new(&mut self, parent: usize, name: Cow<'a, str>) -> usize {
        *self
            .children
            .entry((parent, name.clone()))
            .or_insert_with(|| {
                self.nodes.push(Node {
                    parent,
                    name,
                    leaf: None,
                    hidden: false,
                });
                self.nodes.len() - 1
            })
    }

    fn set(&mut self, node: usize, leaf: Leaf<'a>, offset: usize) -> Result<()> {
        match self.nodes[node].leaf.replace(leaf) {
            None => Ok(()),
            Some(_) => Err(Error::new(offset, Problem::Duplicate)),
        }
    }

    /// Makes one array of each map of chunks.
    fn join_chunks(&mut self) -> Result<()> {
        let marked: Vec<usize> = self
            .nodes
            .iter()
            .filter(|node| node.name == CHUNKED)
            .map(|node| node.parent)
            .collect();
        for node in marked {
            let joined = self.joined(node)?;
            let parts = [CHUNKED, "shape", "chunks"].map(|name| self.child(node, name));
            for part in parts.into_iter().flatten() {
                self.nodes[part].hidden = true;
            }
            self.nodes[node].leaf = Some(Leaf::Tensor(joined));
        }
        Ok(())
    }

    fn joined(&self, node: usize) -> Result<TensorOf<'a>> {
        let broken = Error::new(0, Problem::Chunks);
        let mut shape = Dims::SCALAR;
        for dim in self.numbered(self.child(node, "shape").ok_or(broken)?) {
            let dim = match &self.nodes[dim].leaf {
                Some(Leaf::Other(Value::Int(dim))) => usize::try_from(*dim).map_err(|_| broken)?,
                Some(Leaf::Tensor(TensorOf::Borrowed(view))) if view.elements() == 1 => {
                    view.get_f64(0) as usize
                }
                _ => return Err(broken),
            };
            shape = shape.push(dim).map_err(|_| broken)?;
        }
        let mut chunks = Vec::new();
        for chunk in self.numbered(self.child(node, "chunks").ok_or(broken)?) {
            match &self.nodes[chunk].leaf {
                Some(Leaf::Tensor(TensorOf::Borrowed(view))) => chunks.push(*view),
                _ => return Err(broken),
            }
        }
        let first = chunks.first().ok_or(broken)?;
        let bytes = chunks
            .iter()
            .try_fold(0usize, |sum, chunk| sum.checked_add(chunk.bytes().len()));
        let wanted = shape
            .elements()
            .ok()
            .and_then(|elements| elements.checked_mul(first.scalar().size()));
        if chunks.iter().any(|chunk| chunk.scalar() != first.scalar())
            || bytes.is_none()
            || bytes != wanted
        {
            return Err(broken);
        }
        if let [only] = chunks.as_slice() {
            return Ok(TensorOf::Borrowed(
                only.reshape(&shape).map_err(|_| broken)?,
            ));
        }
        let mut joined =
            Tensor::zeros(first.scalar(), &shape).map_err(|_| Error::new(0, Problem::Memory))?;
        let mut rest = joined.as_mut_bytes();
        for chunk in chunks {
            let (to, others) = rest.split_at_mut(chunk.bytes().len());
            to.copy_from_slice(chunk.bytes());
            rest = others;
        }
        Ok(TensorOf::Owned(joined))
    }

    /// The children `0`, `1`, …, in numeric order, as far as they go.
    fn numbered(&self, parent: usize) -> Vec<usize> {
        let own = self
            .children
            .range((parent, Cow::Borrowed(""))..)
            .take_while(|((of, _), _)| *of == parent);
        let mut numbered: Vec<(usize, usize)> = own
            .filter_map(|((_, name), &node)| Some((name.parse().ok()?, node)))
            .collect();
        numbered.sort_unstable();
        numbered.into_iter().map(|(_, node)| node).collect()
    }

    /// All leaves, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_, 'a>> {
        (0..self.nodes.len())
            .filter(|&node| self.nodes[node].leaf.is_some() && !self.is_hidden(node))
            .map(|node| Entry { tree: self, node })
    }

    fn is_hidden(&self, mut node: usize) -> bool {
        while node != ROOT {
            if self.nodes[node].hidden {
                return true;
            }
            node = self.nodes[node].parent;
        }
        false
    }

    fn has_children(&self, node: usize) -> bool {
        let from = (node, Cow::Borrowed(""));
        self.children
            .range(from..)
            .next()
            .is_some_and(|((of, _), _)| *of == node)
    }

    /// The node of a path, its steps separated by `/` or, where there is none, by `.`.
    fn find(&self, from: usize, path: &str) -> Option<usize> {
        let separator = if path.contains('/') { '/' } else { '.' };
        path.split(separator)
            .filter(|step| !step.is_empty())
            .try_fold(from, |node, step| self.child(node, step))
    }

    /// The array of a path.
    #[must_use]
    pub fn tensor(&self, path: &str) -> Option<TensorView<'_>> {
        self.view(self.find(ROOT, path)?)
    }

    fn view(&self, node: usize) -> Option<TensorView<'_>> {
        match self.nodes[node].leaf.as_ref()? {
            Leaf::Tensor(TensorOf::Borrowed(view)) => Some(*view),
            Leaf::Tensor(TensorOf::Owned(tensor)) => Some(tensor.view()),
            Leaf::Other(_) => None,
        }
    }

    /// The part below a path, as a layer's parameters. `""` is the whole; a leading `params` may be left out.
    ///
    /// # Errors
    ///
    /// [`Problem::NoEntry`].
    pub fn subtree(&self, path: &str) -> Result<Subtree<'_, 'a>> {
        let params = self.child(ROOT, "params");
        let node = self
            .find(ROOT, path)
            .filter(|&node| node != ROOT || params.is_none());
        let node = node
            .or_else(|| self.find(params?, path))
            .or_else(|| self.find(ROOT, path));
        match node {
            Some(node) => Ok(Subtree { tree: self, node }),
            None => Err(Error::new(0, Problem::NoEntry)),
        }
    }

    /// The only part whose path ends in `suffix`.
    ///
    /// # Errors
    ///
    /// [`Problem::NoEntry`] if there is none, [`Problem::Ambiguous`] if there are several.
    pub fn find_layer(&self, suffix: &str) -> Result<Subtree<'_, 'a>> {
        let mut found = (0..self.nodes.len()).filter_map(|node| self.find(node, suffix));
        let Some(node) = found.next() else {
            return Err(Error::new(0, Problem::NoEntry));
        };
        match found.count() {
            0 => Ok(Subtree { tree: self, node }),
            more => Err(Error::new(0, Problem::Ambiguous { count: more + 1 })),
        }
    }

    /// Paths of all parts that have the kernels of an attention layer: `query`, `key`, `value`, `out`.
    pub fn attention_layers(&self) -> impl Iterator<Item = String> {
        let has = |node, scope| {
            self.child(node, scope)
                .and_then(|scope| self.child(scope, "kernel"))
                .is_some()
        };
        (0..self.nodes.len())
            .filter(move |&node| {
                ["query", "key", "value", "out"]
                    .into_iter()
                    .all(|scope| has(node, scope))
            })
            .map(|node| self.path(node))
    }

    fn path(&self, mut node: usize) -> String {
        let mut steps = Vec::new();
        while node != ROOT {
            steps.push(&*self.nodes[node].name);
            node = self.nodes[node].parent;
        }
        steps.reverse();
        steps.join("/")
    }
}

/// Indices of lists get names, as Flax itself writes lists as maps.
fn segment_name<'a>(segment: &Segment<'a>) -> Cow<'a, str> {
    match *segment {
        Segment::Name(name) => Cow::Borrowed(name),
        Segment::Index(index) => Cow::Owned(index.to_string()),
    }
}

/// A leaf of a [`Tree`].
#[derive(Debug, Clone, Copy)]
pub struct Entry<'t, 'a> {
    tree: &'t Tree<'a>,
    node: usize,
}

impl<'t> Entry<'t, '_> {
    /// Its path, `params/encoder/attn/query/kernel`.
    #[must_use]
    pub fn path(&self) -> String {
        self.tree.path(self.node)
    }

    /// The array, if it is one.
    #[must_use]
    pub fn tensor(&self) -> Option<TensorView<'t>> {
        self.tree.view(self.node)
    }
}

/// A part of a [`Tree`]: a layer's parameters.
#[derive(Debug, Clone, Copy)]
pub struct Subtree<'t, 'a> {
    tree: &'t Tree<'a>,
    node: usize,
}

impl<'t, 'a> Subtree<'t, 'a> {
    /// The array of a path below this part.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<TensorView<'t>> {
        self.tree.view(self.tree.find(self.node, path)?)
    }

    /// The part below a path.
    ///
    /// # Errors
    ///
    /// [`Problem::NoEntry`].
    pub fn subtree(&self, path: &str) -> Result<Self> {
        let node = self
            .tree
            .find(self.node, path)
            .ok_or(Error::new(0, Problem::NoEntry))?;
        Ok(Self {
            tree: self.tree,
            node,
        })
    }
}

impl ParamSource for Subtree<'_, '_> {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        let scope = self.tree.child(self.node, scope)?;
        self.tree.view(self.tree.child(scope, name)?)
    }

    fn is_empty(&self) -> bool {
        !self.tree.has_children(self.node)
    }
}

impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in self.entries() {
            let path = entry.path();
            match entry.tensor() {
                Some(view) => writeln!(f, "{path:<60} {:>8} {}", view.scalar(), view.shape())?,
                None => writeln!(f, "{path:<60} {:?}", self.nodes[entry.node].leaf)?,
            }
        }
        Ok(())
    }
}
