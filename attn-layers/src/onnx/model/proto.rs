//! The messages of a model file that a node of attention needs (`onnx.proto`), read in place. All others are passed over.

use super::wire::{Field, Message};
use crate::io::{Error, Problem, Result};
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{Dims, ScalarType};

/// A version of a set of operators that a model imports.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OpsetImport<'a> {
    pub(super) domain: &'a str,
    pub(super) version: i64,
}

impl<'a> OpsetImport<'a> {
    pub(super) fn read(message: Message<'a>) -> Result<Self> {
        let mut this = Self::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => this.domain = field.text()?,
                2 => this.version = field.integer()?,
                _ => {}
            }
        }
        Ok(this)
    }
}

/// A node of a graph.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeProto<'a> {
    pub(super) name: &'a str,
    pub(super) op_type: &'a str,
    pub(super) domain: &'a str,
    /// Names of values, empty where an optional one is left out.
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    pub(super) attributes: Vec<Attribute<'a>>,
}

impl<'a> NodeProto<'a> {
    pub(super) fn read(message: Message<'a>) -> Result<Self> {
        let mut this = Self::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => this.inputs.push(field.text()?),
                2 => this.outputs.push(field.text()?),
                3 => this.name = field.text()?,
                4 => this.op_type = field.text()?,
                5 => this.attributes.push(Attribute::read(field.message()?)?),
                7 => this.domain = field.text()?,
                _ => {}
            }
        }
        Ok(this)
    }
}

/// An attribute of a node: whichever of its values it has.
#[derive(Debug, Clone, Default)]
pub(super) struct Attribute<'a> {
    pub(super) name: &'a str,
    pub(super) float: Option<f32>,
    pub(super) integer: Option<i64>,
    pub(super) integers: Vec<i64>,
    pub(super) tensor: Option<Message<'a>>,
}

impl<'a> Attribute<'a> {
    fn read(message: Message<'a>) -> Result<Self> {
        let mut this = Self::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => this.name = field.text()?,
                2 => this.float = Some(field.float()?),
                3 => this.integer = Some(field.integer()?),
                5 => this.tensor = Some(field.message()?),
                8 => field.integers(|integer| {
                    this.integers.push(integer);
                    Ok(())
                })?,
                _ => {}
            }
        }
        Ok(this)
    }
}

/// The name of a tensor.
pub(super) fn tensor_name(message: Message<'_>) -> Result<&str> {
    let mut name = "";
    for field in message.fields() {
        let field = field?;
        if field.number == 8 {
            name = field.text()?;
        }
    }
    Ok(name)
}

/// An array of a file: its bytes where they lie, or its numbers put side by side.
#[derive(Debug, Clone)]
pub(super) enum Array<'a> {
    InPlace(TensorView<'a>),
    Collected(Tensor),
}

impl Array<'_> {
    pub(super) fn view(&self) -> TensorView<'_> {
        match self {
            Self::InPlace(view) => *view,
            Self::Collected(tensor) => tensor.view(),
        }
    }
}

/// The elements of a tensor, as far as they have been read.
#[derive(Default)]
struct Elements<'a> {
    shape: Vec<usize>,
    data_type: i64,
    raw: Option<Message<'a>>,
    collected: Vec<u8>,
    is_external: bool,
}

/// Reads a tensor; `None` if its elements are in another file.
pub(super) fn tensor(message: Message<'_>) -> Result<Option<Array<'_>>> {
    let error = |problem| Error::new(message.offset, problem);
    let mut elements = Elements::default();
    // Elements that are numbers are as wide as their type, which may stand behind them.
    for field in message.fields() {
        elements.read_header(&field?)?;
    }
    if elements.is_external {
        return Ok(None);
    }
    let scalar = scalar(elements.data_type).ok_or(error(Problem::DType))?;
    if let Some(raw) = elements.raw {
        let wanted = bytes(&elements.shape, scalar).ok_or(error(Problem::Shape))?;
        let view = TensorView::new(scalar, &elements.shape, raw.bytes);
        let length = Problem::Length {
            got: raw.bytes.len(),
            wanted,
        };
        return Ok(Some(Array::InPlace(
            view.map_err(|_| Error::new(raw.offset, length))?,
        )));
    }
    for field in message.fields() {
        elements.read_numbers(&field?, scalar)?;
    }
    let wanted = bytes(&elements.shape, scalar).ok_or(error(Problem::Shape))?;
    let got = elements.collected.len();
    let view = TensorView::new(scalar, &elements.shape, &elements.collected);
    let view = view.map_err(|_| error(Problem::Length { got, wanted }))?;
    let tensor = view.to_tensor().map_err(|_| error(Problem::Memory))?;
    Ok(Some(Array::Collected(tensor)))
}

impl<'a> Elements<'a> {
    fn read_header(&mut self, field: &Field<'a>) -> Result<()> {
        match field.number {
            1 => field.integers(|axis| {
                let shape = Error::new(0, Problem::Shape);
                self.shape.push(axis.try_into().map_err(|_| shape)?);
                Ok(())
            })?,
            2 => self.data_type = field.integer()?,
            9 => self.raw = Some(field.message()?),
            14 => self.is_external = field.integer()? == 1,
            _ => {}
        }
        Ok(())
    }

    /// Adds the bytes of numbers. 16-bit floats are stored as the whole numbers that their bits are.
    fn read_numbers(&mut self, field: &Field<'_>, scalar: ScalarType) -> Result<()> {
        let size = scalar.size();
        match (field.number, scalar) {
            (4, ScalarType::F32) | (10, ScalarType::F64) => {
                self.collected.extend_from_slice(field.fixed()?);
                Ok(())
            }
            (5, _) if size < 4 || scalar == ScalarType::I32 => self.add(field, size),
            (7, ScalarType::I64) | (11, ScalarType::U32 | ScalarType::U64) => self.add(field, size),
            _ => Ok(()),
        }
    }

    fn add(&mut self, field: &Field<'_>, size: usize) -> Result<()> {
        field.integers(|integer| {
            self.collected
                .extend_from_slice(&integer.to_le_bytes()[..size]);
            Ok(())
        })
    }
}

fn bytes(shape: &[usize], scalar: ScalarType) -> Option<usize> {
    let elements = Dims::new(shape).ok()?.elements().ok()?;
    elements.checked_mul(scalar.size())
}

/// The type that a number of `TensorProto.DataType` names, if attention knows it.
const fn scalar(data_type: i64) -> Option<ScalarType> {
    Some(match data_type {
        1 => ScalarType::F32,
        2 => ScalarType::U8,
        3 => ScalarType::I8,
        4 => ScalarType::U16,
        5 => ScalarType::I16,
        6 => ScalarType::I32,
        7 => ScalarType::I64,
        9 => ScalarType::Bool,
        10 => ScalarType::F16,
        11 => ScalarType::F64,
        12 => ScalarType::U32,
        13 => ScalarType::U64,
        16 => ScalarType::BF16,
        _ => return None,
    })
}
