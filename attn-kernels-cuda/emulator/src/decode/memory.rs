//! Loads, stores, atomic operations and fences.

use super::{
    Decoded, Decoder, Opcode,
    arithmetic::{count, window},
    operand::Operand,
};
use crate::{
    program::{Atomic, Extend, Op, Order, Reg, Window},
    types::Ty,
};

impl<'a> Decoder<'a> {
    /// Decodes an access to memory; false if it is none.
    pub(super) fn memory(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        let space = window(opcode).unwrap_or(Window::Generic);
        match opcode.base {
            "ld" | "ldu" => {
                let ([to, at], Some(ty)) = (operands, opcode.ty()) else {
                    return Err(count());
                };
                let narrow = match to {
                    Operand::List(list) => matches!(list.first(), Some(Operand::Reg(_, 16))),
                    one => matches!(one, Operand::Reg(_, 16)),
                };
                let extend = match ty {
                    Ty::S8 if narrow => Extend::Sign16,
                    ty if ty.is_signed() => Extend::Sign,
                    _ => Extend::Zero,
                };
                let to = self.registers_of(to, ty)?;
                let op = Op::Load {
                    at: self.address(at, space)?,
                    size: element_size(ty)?,
                    extend,
                    to,
                    order: order(opcode, Order::Weak),
                };
                self.emit(op);
            }
            "st" => {
                let ([at, from], Some(ty)) = (operands, opcode.ty()) else {
                    return Err(count());
                };
                let from = self.values_of(from, ty)?;
                let op = Op::Store {
                    at: self.address(at, space)?,
                    size: element_size(ty)?,
                    from,
                    order: order(opcode, Order::Weak),
                };
                self.emit(op);
            }
            "atom" | "red" if !opcode.has("async") => self.atomic(opcode, operands, space)?,
            "membar" => self.emit(Op::Fence {
                wide: !opcode.has("cta"),
            }),
            "fence" if opcode.has("sc") || opcode.has("acq_rel") => self.emit(Op::Fence {
                wide: !opcode.has("cta"),
            }),
            "fence" if opcode.has("mbarrier_init") => self.emit(Op::FenceBarriers),
            "fence" if opcode.has("async") || opcode.has("async::generic") => {
                self.emit(Op::FenceProxy);
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => self.emit(Op::Nothing),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn atomic(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
        space: Window,
    ) -> Decoded<()> {
        let ty = opcode.ty().ok_or("type")?;
        element_size(ty)?;
        let kind = opcode
            .qualifiers
            .iter()
            .find_map(|name| {
                Some(match *name {
                    "add" => Atomic::Add,
                    "min" => Atomic::Min,
                    "max" => Atomic::Max,
                    "inc" => Atomic::Inc,
                    "dec" => Atomic::Dec,
                    "and" => Atomic::And,
                    "or" => Atomic::Or,
                    "xor" => Atomic::Xor,
                    "exch" => Atomic::Exchange,
                    "cas" => Atomic::CompareExchange,
                    _ => return None,
                })
            })
            .ok_or("operation")?;
        let (d, rest) = if opcode.base == "red" {
            (None, operands)
        } else {
            let (d, rest) = operands.split_first().ok_or_else(count)?;
            (Some(self.registers_of(d, ty)?), rest)
        };
        let (at, b, c) = match (kind, rest) {
            (Atomic::CompareExchange, [at, b, c]) => (at, b, Some(self.any(c, ty)?)),
            // A cache policy may follow.
            (_, [at, b] | [at, b, Operand::Reg(Reg::Q(_), _)]) => (at, b, None),
            _ => return Err(count()),
        };
        let op = Op::Atomic {
            at: self.address(at, space)?,
            kind,
            ty,
            d,
            b: self.values_of(b, ty)?,
            c,
            order: order(opcode, Order::Relaxed),
        };
        self.emit(op);
        Ok(())
    }

    /// Where the elements of a load go.
    fn registers_of(&mut self, operand: &Operand<'a>, ty: Ty) -> Decoded<Box<[Reg]>> {
        match operand {
            Operand::List(list) => list.iter().map(|one| self.any_target(one, ty)).collect(),
            one => Ok([self.any_target(one, ty)?].into()),
        }
    }

    /// Where the elements of a store come from.
    fn values_of(&mut self, operand: &Operand<'a>, ty: Ty) -> Decoded<Box<[Reg]>> {
        match operand {
            Operand::List(list) => list.iter().map(|one| self.any(one, ty)).collect(),
            one => Ok([self.any(one, ty)?].into()),
        }
    }
}

fn element_size(ty: Ty) -> Decoded<u8> {
    match ty {
        Ty::B128 | Ty::Pred => Err("elements of this type".to_owned()),
        _ => Ok(ty.size() as u8),
    }
}

fn order(opcode: &Opcode<'_>, plain: Order) -> Order {
    if opcode.has("acq_rel") {
        Order::AcquireRelease
    } else if opcode.has("acquire") {
        Order::Acquire
    } else if opcode.has("release") {
        Order::Release
    } else if opcode.has("relaxed") || opcode.has("volatile") || opcode.has("mmio") {
        Order::Relaxed
    } else {
        plain
    }
}
