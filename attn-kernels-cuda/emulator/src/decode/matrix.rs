//! Matrix products of a warp, and how their factors come from shared memory and go there.

use super::{Decoded, Decoder, Opcode, arithmetic::count, operand::Operand};
use crate::{
    program::{Element, GroupFactor, GroupProduct, MmaShape, Op, Row, Window},
    types::Ty,
};
use alloc::sync::Arc;

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
            "wgmma" if opcode.has("fence") => self.emit(Op::GroupFence),
            "wgmma" if opcode.has("commit_group") => self.emit(Op::GroupCommit),
            "wgmma" if opcode.has("wait_group") => {
                let [keep] = operands else {
                    return Err(count());
                };
                let keep = Self::immediate(keep)? as u32;
                self.emit(Op::GroupWait { keep });
            }
            "wgmma" if opcode.has("mma_async") => self.group_product(opcode, operands)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `wgmma.mma_async … d, a, b, adds, scale-a, scale-b[, trans-a], trans-b`.
    fn group_product(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<()> {
        let n: u16 = opcode
            .qualifiers
            .iter()
            .find_map(|name| name.strip_prefix("m64n")?.strip_suffix("k16")?.parse().ok())
            .ok_or("shape")?;
        let element = match opcode.types().collect::<Vec<_>>()[..] {
            [Ty::F32, Ty::F16, Ty::F16] => Element::F16,
            [Ty::F32, Ty::BF16, Ty::BF16] => Element::BF16,
            _ => return Err("types".to_owned()),
        };
        let [d, a, b, adds, scale_a, scale_b, transposed @ ..] = operands else {
            return Err(count());
        };
        let across = |operand: &Operand<'a>| Ok::<_, String>(Self::immediate(operand)? != 0);
        let (a, b_across) = match (a, transposed) {
            (Operand::List(list), [trans_b]) => {
                let rows: Vec<Row> = list
                    .iter()
                    .map(|one| self.row(one, Ty::B32))
                    .collect::<Decoded<_>>()?;
                let rows = <[Row; 4]>::try_from(rows).map_err(|_| count())?;
                (GroupFactor::Registers(rows), across(trans_b)?)
            }
            (a, [trans_a, trans_b]) => {
                let row = self.wide_row(a, Ty::B64)?;
                (
                    GroupFactor::Shared {
                        row,
                        across: across(trans_a)?,
                    },
                    across(trans_b)?,
                )
            }
            _ => return Err(count()),
        };
        let product = GroupProduct {
            n,
            element,
            d: self.target_rows(d)?,
            a,
            b: self.wide_row(b, Ty::B64)?,
            b_across,
            adds: self.pred(adds)?,
            scale_a: Self::immediate(scale_a)? as f32,
            scale_b: Self::immediate(scale_b)? as f32,
        };
        if n == 0 || !n.is_multiple_of(8) || n > 256 || product.d.len() != usize::from(n) / 2 {
            return Err(count());
        }
        self.emit(Op::GroupIssue(Arc::new(product)));
        Ok(())
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
