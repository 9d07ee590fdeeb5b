//! Copies that go on while the program does.

use super::{
    Decoded, Decoder, Opcode,
    arithmetic::{count, window},
    operand::Operand,
};
use crate::{
    program::{Arrival, Op, Reg, Row, Window},
    types::Ty,
};

impl<'a> Decoder<'a> {
    /// Decodes an instruction of the copy engines; false if it is none.
    pub(super) fn asynchronous(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        if opcode.base == "mbarrier" {
            return self.barrier_object(opcode, operands);
        }
        if opcode.base != "cp" || !opcode.has("async") {
            return Ok(false);
        }
        if opcode.has("bulk") {
            return self.bulk(opcode, operands);
        }
        if opcode.has("commit_group") {
            self.emit(Op::CopyCommit);
        } else if opcode.has("wait_group") {
            let [keep] = operands else {
                return Err(count());
            };
            let keep = Self::immediate(keep)? as u32;
            self.emit(Op::CopyWait { keep, all: false });
        } else if opcode.has("wait_all") {
            self.emit(Op::CopyWait { keep: 0, all: true });
        } else if opcode.has("mbarrier") {
            return Ok(false);
        } else {
            let [to, from, size, rest @ ..] = operands else {
                return Err(count());
            };
            let size = Self::immediate(size)?;
            if !matches!(size, 4 | 8 | 16) || (opcode.has("cg") && size != 16) {
                return Err(format!("{size} bytes"));
            }
            let (mut source, mut ignore) = (None, None);
            for operand in rest {
                match operand {
                    Operand::Pred(pred) => ignore = Some(*pred),
                    // A 64-bit register is a cache policy.
                    Operand::Reg(Reg::Q(_), _) => {}
                    other => source = Some(self.row(other, Ty::U32)?),
                }
            }
            let op = Op::CopyAsync {
                to: self.address(to, Window::Shared)?,
                from: self.address(from, Window::Global)?,
                size: size as u8,
                source,
                ignore,
            };
            self.emit(op);
        }
        Ok(true)
    }

    /// Barrier objects.
    fn barrier_object(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<bool> {
        let window = window(opcode).unwrap_or(Window::Generic);
        match opcode.qualifiers.first().copied() {
            Some("init") => {
                let [at, arrivals] = operands else {
                    return Err(count());
                };
                let op = Op::BarrierInit {
                    at: self.address(at, window)?,
                    count: self.row(arrivals, Ty::U32)?,
                };
                self.emit(op);
            }
            Some("inval") => {
                let [at] = operands else {
                    return Err(count());
                };
                let at = self.address(at, window)?;
                self.emit(Op::BarrierEnd { at });
            }
            Some("expect_tx") => {
                let [at, bytes] = operands else {
                    return Err(count());
                };
                let op = Op::BarrierArrive {
                    at: self.address(at, window)?,
                    arrivals: Arrival::Expect,
                    count: None,
                    bytes: Some(self.row(bytes, Ty::U32)?),
                    state: None,
                };
                self.emit(op);
            }
            Some(kind @ ("arrive" | "arrive_drop")) if !opcode.has("noComplete") => {
                let (state, at, rest) = match operands {
                    [at @ Operand::Memory { .. }, rest @ ..] => (None, at, rest),
                    [Operand::Sink, at, rest @ ..] => (None, at, rest),
                    [state, at, rest @ ..] => (Some(self.any_target(state, Ty::B64)?), at, rest),
                    _ => return Err(count()),
                };
                let operand = match rest {
                    [] => None,
                    [one] => Some(self.row(one, Ty::U32)?),
                    _ => return Err(count()),
                };
                let (arrivals, bytes) = if opcode.has("expect_tx") {
                    (None, operand)
                } else {
                    (operand, None)
                };
                let op = Op::BarrierArrive {
                    at: self.address(at, window)?,
                    arrivals: if kind == "arrive" {
                        Arrival::Arrive
                    } else {
                        Arrival::Drop
                    },
                    count: arrivals,
                    bytes,
                    state,
                };
                self.emit(op);
            }
            Some("try_wait" | "test_wait") => {
                let [d, at, phase, ..] = operands else {
                    return Err(count());
                };
                let is_parity = opcode.has("parity");
                let ty = if is_parity { Ty::U32 } else { Ty::B64 };
                let op = Op::BarrierTest {
                    at: self.address(at, window)?,
                    d: self.pred_target(d)?,
                    phase: self.any(phase, ty)?,
                    is_parity,
                };
                self.emit(op);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Copies of the copy engine.
    fn bulk(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<bool> {
        let loads = opcode.has("mbarrier::complete_tx::bytes") && opcode.has("tensor");
        if !loads || opcode.has("im2col") || opcode.has("multicast::cluster") {
            return Ok(false);
        }
        let [to, map, barrier, ..] = operands else {
            return Err(count());
        };
        let (map, coordinates) = self.box_of(map)?;
        let op = Op::CopyBox {
            to: self.address(to, Window::Shared)?,
            map,
            coordinates,
            barrier: self.address(barrier, Window::Shared)?,
        };
        self.emit(op);
        Ok(true)
    }

    /// `[map, {c0, c1, …}]`.
    fn box_of(&mut self, operand: &Operand<'a>) -> Decoded<(Reg, Box<[Row]>)> {
        let Operand::Memory {
            base,
            offset: 0,
            coordinates,
        } = operand
        else {
            return Err(count());
        };
        if coordinates.is_empty() || coordinates.len() > 4 {
            return Err(format!("{} coordinates", coordinates.len()));
        }
        let map = self.any(base, Ty::B64)?;
        let coordinates = coordinates
            .iter()
            .map(|one| self.row(one, Ty::S32))
            .collect::<Decoded<_>>()?;
        Ok((map, coordinates))
    }
}
