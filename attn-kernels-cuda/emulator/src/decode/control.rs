//! Branches, barriers, and what the lanes of a warp tell each other.

use super::{Decoded, Decoder, END_OF_CALL, Opcode, arithmetic::count, operand::Operand};
use crate::{
    alu,
    program::{Op, PRED_SINK, Reduce, Reduced, Row, SINK, Shuffle, Vote},
    types::Ty,
};

impl<'a> Decoder<'a> {
    /// Decodes a branch, a barrier or a collective of a warp; false if it is none.
    pub(super) fn control(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
        pair: bool,
    ) -> Decoded<bool> {
        match opcode.base {
            "bra" => {
                let [Operand::Name(label)] = operands else {
                    return Err(count());
                };
                self.emit_branch(Op::Branch { target: 0 }, vec![(*label).to_owned()]);
            }
            "brx" => {
                let [index, Operand::Targets(labels)] = operands else {
                    return Err(count());
                };
                let index = self.row(index, Ty::U32)?;
                let labels = labels.clone();
                self.emit_branch(
                    Op::BranchIndexed {
                        index,
                        targets: [].into(),
                    },
                    labels,
                );
            }
            "call" => self.call(operands)?,
            "ret" if !self.calls.is_empty() => {
                self.emit_branch(Op::Branch { target: 0 }, vec![END_OF_CALL.to_owned()]);
            }
            "ret" | "exit" => self.emit(Op::Exit),
            "trap" | "brkpt" => self.emit(Op::Trap),
            "nanosleep" | "pmevent" | "griddepcontrol" | "setmaxnreg" => self.emit(Op::Nothing),
            "bar" | "barrier" => return self.barrier(opcode, operands),
            "shfl" => self.shuffle(opcode, operands, pair)?,
            "vote" => self.vote(opcode, operands)?,
            "match" => {
                let all = opcode.has("all");
                let (d, p, rest) = self.with_pred(operands, pair)?;
                let ([a, mask], Some(ty)) = (rest, opcode.ty()) else {
                    return Err(count());
                };
                let op = Op::Match {
                    all,
                    d,
                    p,
                    a: self.any(a, ty)?,
                    mask: self.row(mask, Ty::B32)?,
                };
                self.emit(op);
            }
            "redux" => {
                let ([d, a, mask], Some(ty)) = (operands, opcode.ty()) else {
                    return Err(count());
                };
                let name = opcode.qualifiers.get(1).copied().unwrap_or("");
                let op = Op::Reduce {
                    f: alu::reduction(name, ty).ok_or("operation")?,
                    d: self.target(d)?,
                    a: self.row(a, ty)?,
                    mask: self.row(mask, Ty::B32)?,
                };
                self.emit(op);
            }
            "elect" => {
                let (d, p, [mask]) = self.with_pred(operands, pair)? else {
                    return Err(count());
                };
                let mask = self.row(mask, Ty::B32)?;
                self.emit(Op::Elect { d, p, mask });
            }
            "activemask" => {
                let [d] = operands else {
                    return Err(count());
                };
                let d = self.target(d)?;
                self.emit(Op::ActiveMask { d });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `d|p` and what follows.
    fn with_pred<'o>(
        &self,
        operands: &'o [Operand<'a>],
        pair: bool,
    ) -> Decoded<(Row, Row, &'o [Operand<'a>])> {
        match (pair, operands) {
            (true, [d, p, rest @ ..]) => Ok((self.target(d)?, self.pred_target(p)?, rest)),
            (false, [d, rest @ ..]) => Ok((self.target(d)?, PRED_SINK, rest)),
            _ => Err(count()),
        }
    }

    fn barrier(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<bool> {
        let aligned = opcode.base == "bar" || opcode.has("aligned");
        if opcode.has("warp") {
            let [mask] = operands else {
                return Err(count());
            };
            let mask = self.row(mask, Ty::B32)?;
            self.emit(Op::SyncWarp { mask });
            return Ok(true);
        }
        if opcode.has("cluster") {
            return Ok(false);
        }
        if opcode.has("red") {
            let (d, id, threads, p) = match operands {
                [d, id, p] => (d, id, None, p),
                [d, id, threads, p] => (d, id, Some(threads), p),
                _ => return Err(count()),
            };
            let reduce = if opcode.has("popc") {
                Reduce::Count
            } else if opcode.has("and") {
                Reduce::And
            } else {
                Reduce::Or
            };
            let to = if reduce == Reduce::Count {
                Reduced::Number(self.target(d)?)
            } else {
                Reduced::Pred(self.pred_target(d)?)
            };
            let op = Op::Barrier {
                id: self.row(id, Ty::U32)?,
                threads: threads.map(|n| self.row(n, Ty::U32)).transpose()?,
                waits: true,
                aligned,
                reduce: Some((reduce, self.pred(p)?, to)),
            };
            self.emit(op);
            return Ok(true);
        }
        let waits = !opcode.has("arrive");
        let (id, threads) = match operands {
            [id] if waits => (id, None),
            [id, threads] => (id, Some(threads)),
            _ => return Err(count()),
        };
        let op = Op::Barrier {
            id: self.row(id, Ty::U32)?,
            threads: threads.map(|n| self.row(n, Ty::U32)).transpose()?,
            waits,
            aligned,
            reduce: None,
        };
        self.emit(op);
        Ok(true)
    }

    fn shuffle(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
        pair: bool,
    ) -> Decoded<()> {
        let kind = opcode
            .qualifiers
            .iter()
            .find_map(|name| {
                Some(match *name {
                    "up" => Shuffle::Up,
                    "down" => Shuffle::Down,
                    "bfly" => Shuffle::Butterfly,
                    "idx" => Shuffle::Index,
                    _ => return None,
                })
            })
            .ok_or("which lanes?")?;
        let (d, p, [a, b, c, mask]) = self.with_pred(operands, pair)? else {
            return Err(count());
        };
        let op = Op::Shuffle {
            kind,
            d,
            p,
            a: self.row(a, Ty::B32)?,
            b: self.row(b, Ty::B32)?,
            c: self.row(c, Ty::B32)?,
            mask: self.row(mask, Ty::B32)?,
        };
        self.emit(op);
        Ok(())
    }

    fn vote(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<()> {
        let [d, a, mask] = operands else {
            return Err(count());
        };
        let kind = opcode
            .qualifiers
            .iter()
            .find_map(|name| {
                Some(match *name {
                    "all" => Vote::All,
                    "any" => Vote::Any,
                    "uni" => Vote::Uniform,
                    "ballot" => Vote::Ballot,
                    _ => return None,
                })
            })
            .ok_or("on what?")?;
        let d = match (kind, d) {
            (_, Operand::Sink) => SINK,
            (Vote::Ballot, d) => self.target(d)?,
            (_, d) => self.pred_target(d)?,
        };
        let op = Op::Vote {
            kind,
            d,
            a: self.pred(a)?,
            mask: self.row(mask, Ty::B32)?,
        };
        self.emit(op);
        Ok(())
    }
}
