//! Matrix products of a warp, and how their factors come from shared memory and go there.

use super::{Decoded, Decoder, Opcode, arithmetic::count, operand::Operand};
use crate::{
    program::{Element, MmaShape, Op, Row, Window},
    types::Ty,
};

impl<'a> Decoder<'a> {
    /// Decodes an instruction on matrices; false if it is none.
    pub(super) fn matrix(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        match opcode.base {
            "ldmatrix" => {
                let ([to, at], true) = (operands, opcode.has("m8n8") && opcode.has("b16")) else {
                    return Err(count());
                };
                let op = Op::LoadMatrix {
                    at: self.address(at, Window::Shared)?,
                    transposed: opcode.has("trans"),
                    to: self.target_rows(to)?,
                };
                self.emit(op);
            }
            "stmatrix" => {
                let ([at, from], true) = (operands, opcode.has("m8n8") && opcode.has("b16")) else {
                    return Err(count());
                };
                let op = Op::StoreMatrix {
                    at: self.address(at, Window::Shared)?,
                    transposed: opcode.has("trans"),
                    from: self.source_rows(from)?,
                };
                self.emit(op);
            }
            "mma" => {
                let [d, a, b, c] = operands else {
                    return Err(count());
                };
                let shape = mma_shape(opcode).ok_or("shape or types")?;
                let op = Op::Mma {
                    shape,
                    d: self.target_rows(d)?,
                    a: self.source_rows(a)?,
                    b: self.source_rows(b)?,
                    c: self.source_rows(c)?,
                };
                let Op::Mma { d, a, b, c, .. } = &op else {
                    return Ok(false);
                };
                let sums = if shape.half_sums { 2 } else { 4 };
                let width = if shape.element == Element::TF32 { 4 } else { 8 };
                let factor = usize::from(shape.k) / width;
                if (d.len(), a.len(), b.len(), c.len()) != (sums, 2 * factor, factor, sums) {
                    return Err(count());
                }
                self.emit(op);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn target_rows(&self, operand: &Operand<'a>) -> Decoded<Box<[Row]>> {
        match operand {
            Operand::List(list) => list.iter().map(|one| self.target(one)).collect(),
            one => Ok([self.target(one)?].into()),
        }
    }

    pub(super) fn source_rows(&mut self, operand: &Operand<'a>) -> Decoded<Box<[Row]>> {
        match operand {
            Operand::List(list) => list.iter().map(|one| self.row(one, Ty::B32)).collect(),
            one => Ok([self.row(one, Ty::B32)?].into()),
        }
    }
}

fn mma_shape(opcode: &Opcode<'_>) -> Option<MmaShape> {
    if !opcode.has("row") || !opcode.has("col") {
        return None;
    }
    let types: Vec<Ty> = opcode.types().collect();
    let [sum, a, b, c] = types[..] else {
        return None;
    };
    if a != b || sum != c {
        return None;
    }
    let element = match a {
        Ty::F16 => Element::F16,
        Ty::BF16 => Element::BF16,
        Ty::TF32 => Element::TF32,
        _ => return None,
    };
    let k = match (element, opcode.qualifiers.get(2).copied()?) {
        (Element::F16 | Element::BF16, "m16n8k16") => 16,
        (_, "m16n8k8") => 8,
        (Element::TF32, "m16n8k4") => 4,
        _ => return None,
    };
    let half_sums = match sum {
        Ty::F32 => false,
        Ty::F16 if element == Element::F16 => true,
        _ => return None,
    };
    Some(MmaShape {
        k,
        element,
        half_sums,
    })
}
