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
use attn_core::{Dims, ScalarType};
use core::fmt;

/// A whole file as a tree of names.
///
/// A path is a text with `/` or `.` between its steps: `params/encoder/attn` and `params.encoder.attn` name the same part.
/// A name in the file that holds separators itself (safetensors, flattened dicts) is split at `/`, or at `.` where there is no
/// `/`; of a module's name in Flax msgpack only at `/`.
///
/// Arrays stay where they lie in the file, but for those joined from chunks. An entry takes some 150 bytes of memory.
#[derive(Clone)]
pub struct Tree<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node<'a>>,
    children: BTreeMap<(usize, Segment<'a>), usize>,
    tensors: Vec<Array<'a>>,
}

#[derive(Clone)]
enum Array<'a> {
    InFile(TensorView<'a>),
    Joined(Tensor),
}

#[derive(Clone, Copy)]
struct Node<'a> {
    parent: usize,
    name: Segment<'a>,
    kind: Kind,
    offset: usize,
    /// Part of a chunked array that was joined: neither it nor what is below is an entry of its own.
    hidden: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Has entries below it only.
    Branch,
    /// The array of that number.
    Tensor(usize),
    /// Another leaf, at the node's offset.
    Other,
}

const ROOT: usize = 0;
const CHUNKED: &str = "__msgpack_chunked_array__";
const SEPARATORS: [char; 2] = ['/', '.'];

/// The steps of a name that holds separators: at `/`, or at `.` where there is no `/`.
fn steps(name: &str) -> core::str::Split<'_, char> {
    name.split(if name.contains('/') { '/' } else { '.' })
}

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
        let mut tree = Self::empty(bytes);
        // The nodes on the way to the leaf before, whose first steps are those of the next.
        let mut way = [ROOT; msgpack::MAX_DEPTH + 1];
        msgpack::read(bytes, &mut |found| {
            for (step, &segment) in found.path.iter().enumerate().skip(found.fresh) {
                let leaf = step + 1 == found.path.len();
                way[step + 1] = tree.add(way[step], segment, leaf, found.offset)?;
            }
            let node = way[found.path.len()];
            tree.nodes[node].offset = found.offset;
            tree.nodes[node].kind = match found.value {
                Value::Tensor(view) => tree.keep(Array::InFile(view)),
                _ => Kind::Other,
            };
            Ok(())
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
        let mut tree = Self::empty(bytes);
        let mut ranges = Vec::new();
        safetensors::read(bytes, &mut |name, view, offset| {
            let node = tree.descend(ROOT, steps(name), offset)?;
            if tree.nodes[node].kind != Kind::Branch {
                return Err(Error::new(offset, Problem::Duplicate));
            }
            tree.nodes[node].kind = tree.keep(Array::InFile(view));
            let start = view.bytes().as_ptr().addr() - bytes.as_ptr().addr();
            ranges.push((start, start + view.bytes().len(), offset));
            Ok(())
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

    fn empty(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            nodes: Vec::from([Node {
                parent: ROOT,
                name: Segment::Name(""),
                kind: Kind::Branch,
                offset: 0,
                hidden: false,
            }]),
            children: BTreeMap::new(),
            tensors: Vec::new(),
        }
    }

    fn keep(&mut self, array: Array<'a>) -> Kind {
        self.tensors.push(array);
        Kind::Tensor(self.tensors.len() - 1)
    }

    /// The new node of a map's key or a list's index.
    fn add(
        &mut self,
        parent: usize,
        segment: Segment<'a>,
        leaf: bool,
        offset: usize,
    ) -> Result<usize> {
        let before = self.nodes.len();
        let node = match segment {
            Segment::Name(name) if leaf => self.descend(parent, steps(name), offset)?,
            Segment::Name(name) => self.descend(parent, name.split('/'), offset)?,
            Segment::Index(_) => self.child_or_new(parent, segment, offset),
        };
        if node < before {
            return Err(Error::new(offset, Problem::Duplicate));
        }
        Ok(node)
    }

    fn descend(
        &mut self,
        from: usize,
        mut names: core::str::Split<'a, char>,
        offset: usize,
    ) -> Result<usize> {
        let node = names
            .by_ref()
            .take(msgpack::MAX_DEPTH)
            .fold(from, |node, name| {
                self.child_or_new(node, Segment::Name(name), offset)
            });
        match names.next() {
            None => Ok(node),
            Some(_) => Err(Error::new(
                offset,
                Problem::TooDeep {
                    limit: msgpack::MAX_DEPTH,
                },
            )),
        }
    }

    fn child(&self, parent: usize, name: &str) -> Option<usize> {
        let named = self.children.get(&(parent, Segment::Name(name)));
        let index = || {
            let canonical = name == "0" || !name.starts_with(['0', '+']);
            let index = name.parse().ok().filter(|_| canonical)?;
            self.children.get(&(parent, Segment::Index(index)))
        };
        named.or_else(index).copied()
    }

    fn child_or_new(&mut self, parent: usize, name: Segment<'a>, offset: usize) -> usize {
        *self.children.entry((parent, name)).or_insert_with(|| {
            self.nodes.push(Node {
                parent,
                name,
                kind: Kind::Branch,
                offset,
                hidden: false,
            });
            self.nodes.len() - 1
        })
    }

    fn children(&self, parent: usize) -> impl Iterator<Item = usize> {
        self.children
            .range((parent, Segment::Name(""))..)
            .take_while(move |((of, _), _)| *of == parent)
            .map(|(_, &node)| node)
    }

    /// Makes one array of each map of chunks.
    fn join_chunks(&mut self) -> Result<()> {
        let marked: Vec<usize> = self
            .nodes
            .iter()
            .filter(|node| node.name == Segment::Name(CHUNKED))
            .map(|node| node.parent)
            .collect();
        for node in marked {
            let joined = self
                .joined(node)
                .ok_or(Error::new(self.nodes[node].offset, Problem::Chunks))??;
            let parts = [CHUNKED, "shape", "chunks"].map(|name| self.child(node, name));
            for part in parts.into_iter().flatten() {
                self.nodes[part].hidden = true;
            }
            self.nodes[node].kind = self.keep(joined);
        }
        Ok(())
    }

    /// The array of a map of chunks, `None` where they do not fit.
    fn joined(&self, node: usize) -> Option<Result<Array<'a>>> {
        let mut shape = Dims::SCALAR;
        for dim in self.list(self.child(node, "shape")?)? {
            shape = shape.push(self.whole_number(dim)?).ok()?;
        }
        let chunks = self
            .list(self.child(node, "chunks")?)?
            .into_iter()
            .map(|chunk| self.in_file(chunk))
            .collect::<Option<Vec<TensorView<'a>>>>()?;
        let scalar = chunks.first()?.scalar();
        let bytes = chunks
            .iter()
            .try_fold(0usize, |sum, chunk| sum.checked_add(chunk.bytes().len()))?;
        let wanted = shape.elements().ok()?.checked_mul(scalar.size())?;
        if bytes != wanted || chunks.iter().any(|chunk| chunk.scalar() != scalar) {
            return None;
        }
        if let [only] = chunks.as_slice() {
            return Some(Ok(Array::InFile(only.reshape(&shape).ok()?)));
        }
        let memory = Error::new(self.nodes[node].offset, Problem::Memory);
        Some(
            concatenated(scalar, &shape, &chunks)
                .map(Array::Joined)
                .ok_or(memory),
        )
    }

    /// The children `0`, `1`, …: all that there are, or `None`.
    fn list(&self, parent: usize) -> Option<Vec<usize>> {
        (0..self.children(parent).count())
            .map(|index| self.child(parent, &index.to_string()))
            .collect()
    }

    fn whole_number(&self, node: usize) -> Option<usize> {
        match self.value(node)? {
            Value::Int(number) => usize::try_from(number).ok(),
            // Floats are no lengths; a `usize` that a float holds exactly is one.
            Value::Tensor(view) if view.elements() == 1 && view.scalar().float().is_none() => {
                let number = view.get_f64(0);
                (number >= 0.0).then_some(number as usize)
            }
            _ => None,
        }
    }

    fn in_file(&self, node: usize) -> Option<TensorView<'a>> {
        match self.nodes[node].kind {
            Kind::Tensor(number) => match self.tensors[number] {
                Array::InFile(view) => Some(view),
                Array::Joined(_) => None,
            },
            _ => None,
        }
    }

    /// All leaves, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_, 'a>> {
        (0..self.nodes.len())
            .filter(|&node| self.nodes[node].kind != Kind::Branch && !self.is_hidden(node))
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

    fn value(&self, node: usize) -> Option<Value<'_>> {
        match self.nodes[node].kind {
            Kind::Branch => None,
            Kind::Tensor(_) => self.view(node).map(Value::Tensor),
            // It was read before, so it can be read.
            Kind::Other => msgpack::leaf(self.bytes, self.nodes[node].offset).ok(),
        }
    }

    /// The node of a path: by the names between `/` if there is one, else by any reading of its separators.
    fn find(&self, from: usize, path: &str) -> Option<usize> {
        path.split('/')
            .try_fold(from, |node, name| self.child(node, name))
            .or_else(|| self.find_mixed(from, path.trim_matches(SEPARATORS)))
    }

    /// Names may hold a separator themselves, so each one is tried as the end of the first name.
    fn find_mixed(&self, from: usize, path: &str) -> Option<usize> {
        if path.is_empty() {
            return Some(from);
        }
        let ends = path.match_indices(SEPARATORS).map(|(end, _)| end);
        ends.chain([path.len()]).find_map(|end| {
            let child = self.child(from, &path[..end])?;
            self.find_mixed(child, path.get(end + 1..).unwrap_or(""))
        })
    }

    /// Gives the part at `from` the path `to` as well, so that a layer finds it under the name that it looks for.
    ///
    /// ```
    /// use attn_layers::{ParamSource, io::{self, Tree}, tensor::TensorView};
    /// let kernel = TensorView::from_slice(&[1.0f32, 2.0], &[2, 1])?;
    /// let file = io::write_msgpack(&[("attention/output/dense/kernel", kernel)])?;
    /// let mut tree = Tree::read(&file)?;
    /// tree.alias("attention/output/dense", "attention/self/out")?;
    /// assert_eq!(tree.subtree("attention/self")?.tensor("out", "kernel"), Some(kernel));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// [`Tree::entries`] lists it once, under its own path.
    ///
    /// # Errors
    ///
    /// [`Problem::NoEntry`] if there is nothing at `from`; [`Problem::Duplicate`] if there is something at `to`, or `to` lies
    /// below `from`; [`Problem::TooDeep`].
    pub fn alias(&mut self, from: &str, to: &'a str) -> Result<()> {
        let node = self
            .find(ROOT, from)
            .ok_or(Error::new(0, Problem::NoEntry))?;
        let separator = if to.contains('/') { '/' } else { '.' };
        let (parent, name) = to.rsplit_once(separator).unwrap_or(("", to));
        let parent = if parent.is_empty() {
            ROOT
        } else {
            self.descend(ROOT, parent.split(separator), 0)?
        };
        if self.child(parent, name).is_some() || self.is_below(parent, node) {
            return Err(Error::new(0, Problem::Duplicate));
        }
        self.children.insert((parent, Segment::Name(name)), node);
        Ok(())
    }

    /// Whether `node` is `above` or one of the nodes below it.
    fn is_below(&self, mut node: usize, above: usize) -> bool {
        while node != above && node != ROOT {
            node = self.nodes[node].parent;
        }
        node == above
    }

    /// The array of a path.
    #[must_use]
    pub fn tensor(&self, path: &str) -> Option<TensorView<'_>> {
        self.view(self.find(ROOT, path)?)
    }

    fn view(&self, node: usize) -> Option<TensorView<'_>> {
        match self.nodes[node].kind {
            Kind::Tensor(number) => Some(match &self.tensors[number] {
                Array::InFile(view) => *view,
                Array::Joined(tensor) => tensor.view(),
            }),
            Kind::Branch | Kind::Other => None,
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
            steps.push(match self.nodes[node].name {
                Segment::Name(name) => Cow::Borrowed(name),
                Segment::Index(index) => Cow::Owned(index.to_string()),
            });
            node = self.nodes[node].parent;
        }
        steps.reverse();
        steps.join("/")
    }
}

/// The chunks one after the other, `None` where there is no memory for that.
fn concatenated(scalar: ScalarType, shape: &Dims, chunks: &[TensorView<'_>]) -> Option<Tensor> {
    let mut joined = Tensor::zeros(scalar, shape).ok()?;
    let mut rest = joined.as_mut_bytes();
    for chunk in chunks {
        let (to, others) = rest.split_at_mut_checked(chunk.bytes().len())?;
        to.copy_from_slice(chunk.bytes());
        rest = others;
    }
    Some(joined)
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

    /// What stands there.
    #[must_use]
    pub fn value(&self) -> Value<'t> {
        self.tree.value(self.node).unwrap_or(Value::Empty)
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
        self.tree.children(self.node).next().is_none()
    }
}

/// A table: path, element type and shape, or the value of what is no array.
impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in self.entries() {
            let path = entry.path();
            match entry.value() {
                Value::Tensor(view) => {
                    writeln!(f, "{path:<60} {:>8} {}", view.scalar(), view.shape())?
                }
                value => writeln!(f, "{path:<60} {value:?}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree of {} entries", self.entries().count())
    }
}
