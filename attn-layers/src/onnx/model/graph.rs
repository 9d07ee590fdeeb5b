//! A model file: its nodes of attention and the arrays that it holds.

use super::error::ModelError;
use super::node::{Node, Operator};
use super::proto::{NodeProto, OpsetImport, tensor_name};
use super::wire::Message;
use crate::io::{Error, Problem, Result};
use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// A model file, read as far as attention needs it.
#[derive(Debug)]
pub struct Model<'a> {
    nodes: Vec<Node<'a>>,
}

/// Arrays by the names of their values, not looked into yet.
pub(super) type Arrays<'a> = BTreeMap<&'a str, Message<'a>>;

impl<'a> Model<'a> {
    /// Reads the bytes of a model file.
    ///
    /// # Errors
    ///
    /// [`Error`] for a damaged file.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut imports = Vec::new();
        let mut graph = None;
        for field in (Message { bytes, offset: 0 }).fields() {
            let field = field?;
            match field.number {
                7 => graph = Some(field.message()?),
                8 => imports.push(OpsetImport::read(field.message()?)?),
                _ => {}
            }
        }
        let wanted = "a model with a graph";
        let graph = graph.ok_or(Error::new(0, Problem::Unexpected { wanted }))?;
        let (protos, arrays) = read_graph(graph)?;
        let mut nodes = Vec::new();
        for proto in protos {
            if let Some(operator) = Operator::of(&proto, &imports) {
                nodes.push(Node::new(operator, proto, &arrays));
            }
        }
        Ok(Self { nodes })
    }

    /// The nodes of attention, in the file's order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.iter()
    }

    /// The node of this name, or the only one.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoNode`], [`ModelError::Ambiguous`].
    pub fn node(&self, name: Option<&str>) -> Result<&Node<'a>, ModelError> {
        let mut found = self
            .nodes
            .iter()
            .filter(|node| name.is_none_or(|name| node.name() == name));
        let first = found.next().ok_or_else(|| ModelError::NoNode {
            name: name.map(ToOwned::to_owned),
        })?;
        match found.count() {
            0 => Ok(first),
            more => Err(ModelError::Ambiguous { count: more + 1 }),
        }
    }
}

/// The nodes that could be of attention, and the arrays: initializers, and what nodes `Constant` give.
fn read_graph(graph: Message<'_>) -> Result<(Vec<NodeProto<'_>>, Arrays<'_>)> {
    let mut nodes = Vec::new();
    let mut arrays = Arrays::new();
    for field in graph.fields() {
        let field = field?;
        match field.number {
            1 => {
                let node = NodeProto::read(field.message()?)?;
                match (node.op_type, node.domain) {
                    ("Constant", "" | "ai.onnx") => constant(&node, &mut arrays)?,
                    ("Attention" | "MultiHeadAttention", _) => nodes.push(node),
                    _ => {}
                }
            }
            5 => {
                let array = field.message()?;
                add(&mut arrays, tensor_name(array)?, array)?;
            }
            _ => {}
        }
    }
    Ok((nodes, arrays))
}

fn constant<'a>(node: &NodeProto<'a>, arrays: &mut Arrays<'a>) -> Result<()> {
    let value = node
        .attributes
        .iter()
        .find_map(|attribute| attribute.tensor);
    match (node.outputs.first(), value) {
        (Some(name), Some(value)) => add(arrays, name, value),
        _ => Ok(()),
    }
}

fn add<'a>(arrays: &mut Arrays<'a>, name: &'a str, array: Message<'a>) -> Result<()> {
    match arrays.insert(name, array) {
        None => Ok(()),
        Some(_) => Err(Error::new(array.offset, Problem::Duplicate)),
    }
}
