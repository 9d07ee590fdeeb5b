//! Instructions that only compute: on registers, lane by lane.

use super::{Decoded, Decoder, Opcode, operand::Operand};
use crate::{
    alu::{self, Conversion, Function, Rounding},
    lanes::{map1, map2},
    program::{FALSE, Logic, Op, PRED_SINK, Pred, Reg, Row, Source, Window},
    types::Ty,
};

impl<'a> Decoder<'a> {
    /// Decodes an instruction that computes; false if it is none.
    pub(super) fn arithmetic(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
        pair: bool,
    ) -> Decoded<bool> {
        let ty = opcode.ty();
        match (opcode.base, ty) {
            ("mov", Some(Ty::Pred)) | ("not", Some(Ty::Pred)) => {
                let [d, a] = operands else {
                    return Err(count());
                };
                let d = self.pred_target(d)?;
                let a = self.pred(a)?;
                let negated = a.negated != (opcode.base == "not");
                self.emit(Op::Logic {
                    logic: Logic::Or,
                    d,
                    a: Pred {
                        row: a.row,
                        negated,
                    },
                    b: NEVER,
                });
            }
            ("and" | "or" | "xor", Some(Ty::Pred)) => {
                let [d, a, b] = operands else {
                    return Err(count());
                };
                let op = Op::Logic {
                    logic: logic(opcode.base).ok_or_else(count)?,
                    d: self.pred_target(d)?,
                    a: self.pred(a)?,
                    b: self.pred(b)?,
                };
                self.emit(op);
            }
            ("mov", Some(ty)) => self.mov(operands, ty)?,
            ("setp", Some(ty)) => self.setp(opcode, operands, ty, pair)?,
            ("set", Some(ty)) => self.set(opcode, operands, ty)?,
            ("testp", Some(ty)) => self.testp(opcode, operands, ty)?,
            ("selp", Some(ty)) => {
                let [d, a, b, p] = operands else {
                    return Err(count());
                };
                let p = self.pred(p)?;
                self.select(d, a, b, p, ty)?;
            }
            ("slct", _) => self.slct(opcode, operands)?,
            ("cvt", _) => self.cvt(opcode, operands)?,
            ("cvta", Some(ty)) => self.cvta(opcode, operands, ty)?,
            ("isspacep", _) => {
                let [d, a] = operands else {
                    return Err(count());
                };
                let op = Op::IsSpace {
                    window: window(opcode).ok_or("in which space?")?,
                    d: self.pred_target(d)?,
                    a: self.any(a, Ty::U64)?,
                };
                self.emit(op);
            }
            // Blocks are clusters of their own, so an address of the cluster is one of the block.
            ("mapa", Some(ty)) => {
                let [d, a, _] = operands else {
                    return Err(count());
                };
                self.mov(&[d.clone(), a.clone()], ty)?;
            }
            ("add" | "sub" | "addc" | "subc", Some(ty))
                if opcode.has("cc") || opcode.base.ends_with('c') =>
            {
                self.carry(opcode, operands, ty)?;
            }
            ("mad" | "madc", Some(ty)) if opcode.has("cc") || opcode.base == "madc" => {
                self.mad_carry(opcode, operands, ty)?;
            }
            ("lop3", Some(ty)) => {
                if opcode.has("BoolOp") || operands.len() != 5 {
                    return Err("only of five operands".to_owned());
                }
                self.apply(opcode, operands, ty)?;
            }
            // A policy for caches means nothing here.
            ("createpolicy", _) => {
                let d = self.wide_target(operands.first().ok_or_else(count)?)?;
                let a = self.wide_constant(Source::Value(0));
                self.emit(Op::Q1 { f: |a| *a, d, a });
            }
            (_, Some(ty)) => return self.apply(opcode, operands, ty),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Applies a function of lanes; false if the opcode names none.
    fn apply(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>], ty: Ty) -> Decoded<bool> {
        let Some(function) = alu::function(opcode.base, &opcode.qualifiers, ty) else {
            return Ok(false);
        };
        let (d, sources) = operands.split_first().ok_or_else(count)?;
        self.emit_function(function, d, sources, ty)?;
        Ok(true)
    }

    fn emit_function(
        &mut self,
        function: Function,
        d: &Operand<'a>,
        sources: &[Operand<'a>],
        ty: Ty,
    ) -> Decoded<()> {
        let op = match (function, sources) {
            (Function::L1(f), [a]) => Op::L1 {
                f,
                d: self.target(d)?,
                a: self.row(a, ty)?,
            },
            (Function::L2(f), [a, b]) => Op::L2 {
                f,
                d: self.target(d)?,
                a: self.row(a, ty)?,
                b: self.row(b, ty)?,
            },
            (Function::L3(f), [a, b, c]) => Op::L3 {
                f,
                d: self.target(d)?,
                a: self.row(a, ty)?,
                b: self.row(b, ty)?,
                c: self.row(c, ty)?,
            },
            (Function::L4(f), [a, b, c, e]) => Op::L4 {
                f,
                d: self.target(d)?,
                s: [
                    self.row(a, ty)?,
                    self.row(b, ty)?,
                    self.row(c, Ty::U32)?,
                    self.row(e, Ty::U32)?,
                ],
            },
            (Function::Q1(f), [a]) => Op::Q1 {
                f,
                d: self.wide_target(d)?,
                a: self.wide_row(a, ty)?,
            },
            (Function::Q2(f), [a, b]) => Op::Q2 {
                f,
                d: self.wide_target(d)?,
                a: self.wide_row(a, ty)?,
                b: self.wide_row(b, ty)?,
            },
            (Function::Q3(f), [a, b, c]) => Op::Q3 {
                f,
                d: self.wide_target(d)?,
                a: self.wide_row(a, ty)?,
                b: self.wide_row(b, ty)?,
                c: self.wide_row(c, ty)?,
            },
            (Function::Shift(f), [a, b]) => Op::Shift {
                f,
                d: self.wide_target(d)?,
                a: self.wide_row(a, ty)?,
                b: self.row(b, Ty::U32)?,
            },
            (Function::Extract(f), [a, b, c]) => Op::Extract {
                f,
                d: self.wide_target(d)?,
                a: self.wide_row(a, ty)?,
                b: self.row(b, Ty::U32)?,
                c: self.row(c, Ty::U32)?,
            },
            (Function::Insert(f), [a, b, c, e]) => Op::Insert {
                f,
                d: self.wide_target(d)?,
                s: [
                    self.wide_row(a, ty)?,
                    self.wide_row(b, ty)?,
                    self.row(c, Ty::U32)?,
                    self.row(e, Ty::U32)?,
                ],
            },
            (Function::Widen1(f), [a]) => Op::Widen1 {
                f,
                d: self.wide_target(d)?,
                a: self.row(a, ty)?,
            },
            (Function::Widen2(f), [a, b]) => Op::Widen2 {
                f,
                d: self.wide_target(d)?,
                a: self.row(a, ty)?,
                b: self.row(b, ty)?,
            },
            (Function::Widen3(f), [a, b, c]) => Op::Widen3 {
                f,
                d: self.wide_target(d)?,
                a: self.row(a, ty)?,
                b: self.row(b, ty)?,
                c: self.wide_row(c, Ty::U64)?,
            },
            (Function::Narrow(f), [a]) => Op::Narrow {
                f,
                d: self.target(d)?,
                a: self.wide_row(a, ty)?,
            },
            _ => return Err(count()),
        };
        self.emit(op);
        Ok(())
    }

    fn mov(&mut self, operands: &[Operand<'a>], ty: Ty) -> Decoded<()> {
        let [d, a] = operands else {
            return Err(count());
        };
        match (d, a) {
            (Operand::List(parts), a) => self.unpack(parts, a, ty),
            (d, Operand::List(parts)) => self.pack(d, parts, ty),
            (d, Operand::Clock) => {
                let op = Op::Clock {
                    d: self.any_target(d, ty)?,
                };
                self.emit(op);
                Ok(())
            }
            (d, a) if ty.size() == 8 => {
                let op = Op::Q1 {
                    f: |a| *a,
                    d: self.wide_target(d)?,
                    a: self.wide_row(a, ty)?,
                };
                self.emit(op);
                Ok(())
            }
            (d, a) => {
                let op = Op::L1 {
                    f: |a| *a,
                    d: self.target(d)?,
                    a: self.row(a, ty)?,
                };
                self.emit(op);
                Ok(())
            }
        }
    }

    /// `mov.b64 {a, b}, c` and the like.
    fn unpack(&mut self, parts: &[Operand<'a>], a: &Operand<'a>, ty: Ty) -> Decoded<()> {
        match (ty.size(), parts) {
            (8, [low, high]) => {
                let a = self.wide_row(a, ty)?;
                let (low, high) = (self.target(low)?, self.target(high)?);
                self.emit(Op::Narrow {
                    f: |a| map1(a, |a| a as u32),
                    d: low,
                    a,
                });
                self.emit(Op::Narrow {
                    f: |a| map1(a, |a| (a >> 32) as u32),
                    d: high,
                    a,
                });
            }
            (8, [p0, p1, p2, p3]) => {
                let a = self.wide_row(a, ty)?;
                let functions: [fn(&crate::lanes::Q) -> crate::lanes::L; 4] = [
                    |a| map1(a, |a| a as u32 & 0xffff),
                    |a| map1(a, |a| (a >> 16) as u32 & 0xffff),
                    |a| map1(a, |a| (a >> 32) as u32 & 0xffff),
                    |a| map1(a, |a| (a >> 48) as u32),
                ];
                for (part, f) in [p0, p1, p2, p3].into_iter().zip(functions) {
                    let d = self.target(part)?;
                    self.emit(Op::Narrow { f, d, a });
                }
            }
            (4, [low, high]) => {
                let a = self.row(a, ty)?;
                let (low, high) = (self.target(low)?, self.target(high)?);
                self.emit(Op::L1 {
                    f: |a| map1(a, |a| a & 0xffff),
                    d: low,
                    a,
                });
                self.emit(Op::L1 {
                    f: |a| map1(a, |a| a >> 16),
                    d: high,
                    a,
                });
            }
            (4, [p0, p1, p2, p3]) => {
                let a = self.row(a, ty)?;
                let functions: [fn(&crate::lanes::L) -> crate::lanes::L; 4] = [
                    |a| map1(a, |a| a & 0xff),
                    |a| map1(a, |a| a >> 8 & 0xff),
                    |a| map1(a, |a| a >> 16 & 0xff),
                    |a| map1(a, |a| a >> 24),
                ];
                for (part, f) in [p0, p1, p2, p3].into_iter().zip(functions) {
                    let d = self.target(part)?;
                    self.emit(Op::L1 { f, d, a });
                }
            }
            _ => return Err(count()),
        }
        Ok(())
    }

    /// `mov.b64 c, {a, b}` and the like.
    fn pack(&mut self, d: &Operand<'a>, parts: &[Operand<'a>], ty: Ty) -> Decoded<()> {
        match (ty.size(), parts) {
            (8, [low, high]) => {
                let op = Op::Widen2 {
                    f: |a, b| map2(a, b, |a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
                    d: self.wide_target(d)?,
                    a: self.row(low, Ty::B32)?,
                    b: self.row(high, Ty::B32)?,
                };
                self.emit(op);
            }
            (8, [p0, p1, p2, p3]) => {
                let d = self.wide_target(d)?;
                let (low, _) = (self.program.rows as Row, ());
                self.program.rows += 2;
                for (row, a, b) in [(low, p0, p1), (low + 1, p2, p3)] {
                    let op = Op::L2 {
                        f: |a, b| map2(a, b, |a: u32, b: u32| (a & 0xffff) | b << 16),
                        d: row,
                        a: self.row(a, Ty::B16)?,
                        b: self.row(b, Ty::B16)?,
                    };
                    self.emit(op);
                }
                self.emit(Op::Widen2 {
                    f: |a, b| map2(a, b, |a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
                    d,
                    a: low,
                    b: low + 1,
                });
            }
            (4, [low, high]) => {
                let op = Op::L2 {
                    f: |a, b| map2(a, b, |a: u32, b: u32| (a & 0xffff) | b << 16),
                    d: self.target(d)?,
                    a: self.row(low, Ty::B16)?,
                    b: self.row(high, Ty::B16)?,
                };
                self.emit(op);
            }
            (4, [p0, p1, p2, p3]) => {
                let op = Op::L4 {
                    f: |a, b, c, d| {
                        crate::lanes::map4(a, b, c, d, |a: u32, b: u32, c: u32, d: u32| {
                            (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24
                        })
                    },
                    d: self.target(d)?,
                    s: [
                        self.row(p0, Ty::B8)?,
                        self.row(p1, Ty::B8)?,
                        self.row(p2, Ty::B8)?,
                        self.row(p3, Ty::B8)?,
                    ],
                };
                self.emit(op);
            }
            _ => return Err(count()),
        }
        Ok(())
    }

    fn setp(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
        ty: Ty,
        pair: bool,
    ) -> Decoded<()> {
        let comparison = opcode.qualifiers.first().copied().unwrap_or("");
        let (d, complement, rest) = match (pair, operands) {
            (true, [d, q, rest @ ..]) => (self.pred_target(d)?, self.pred_target(q)?, rest),
            (false, [d, rest @ ..]) => (self.pred_target(d)?, PRED_SINK, rest),
            _ => return Err(count()),
        };
        let (a, b, with) = match rest {
            [a, b] => (a, b, None),
            [a, b, c] => {
                let logic = opcode
                    .qualifiers
                    .iter()
                    .find_map(|name| logic(name))
                    .ok_or("how are the predicates joined?")?;
                (a, b, Some((logic, self.pred(c)?)))
            }
            _ => return Err(count()),
        };
        let op = if ty.size() == 8 {
            Op::CompareQ {
                f: alu::compare_wide(comparison, ty).ok_or("comparison")?,
                d,
                complement,
                a: self.wide_row(a, ty)?,
                b: self.wide_row(b, ty)?,
                with,
            }
        } else {
            Op::CompareL {
                f: alu::compare(comparison, ty, opcode.has("ftz")).ok_or("comparison")?,
                d,
                complement,
                a: self.row(a, ty)?,
                b: self.row(b, ty)?,
                with,
            }
        };
        self.emit(op);
        Ok(())
    }

    fn set(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>], ty: Ty) -> Decoded<()> {
        let ([d, a, b], Some(to)) = (operands, opcode.types().next()) else {
            return Err(count());
        };
        let comparison = opcode.qualifiers.first().copied().unwrap_or("");
        let one = match to {
            Ty::F32 => 1f32.to_bits(),
            Ty::U32 | Ty::S32 => u32::MAX,
            _ => return Err("result type".to_owned()),
        };
        let op = Op::SetL {
            f: alu::compare(comparison, ty, opcode.has("ftz")).ok_or("comparison")?,
            d: self.target(d)?,
            a: self.row(a, ty)?,
            b: self.row(b, ty)?,
            one,
        };
        self.emit(op);
        Ok(())
    }

    fn testp(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>], ty: Ty) -> Decoded<()> {
        let [d, a] = operands else {
            return Err(count());
        };
        let test = opcode.qualifiers.first().copied().unwrap_or("");
        let d = self.pred_target(d)?;
        let op = if ty == Ty::F64 {
            let a = self.wide_row(a, ty)?;
            Op::CompareQ {
                f: alu::test_wide(test).ok_or("test")?,
                d,
                complement: PRED_SINK,
                a,
                b: a,
                with: None,
            }
        } else {
            let a = self.row(a, ty)?;
            Op::CompareL {
                f: alu::test(test).ok_or("test")?,
                d,
                complement: PRED_SINK,
                a,
                b: a,
                with: None,
            }
        };
        self.emit(op);
        Ok(())
    }

    fn select(
        &mut self,
        d: &Operand<'a>,
        a: &Operand<'a>,
        b: &Operand<'a>,
        p: Pred,
        ty: Ty,
    ) -> Decoded<()> {
        let op = if ty.size() == 8 {
            Op::SelectQ {
                d: self.wide_target(d)?,
                a: self.wide_row(a, ty)?,
                b: self.wide_row(b, ty)?,
                p,
            }
        } else {
            Op::SelectL {
                d: self.target(d)?,
                a: self.row(a, ty)?,
                b: self.row(b, ty)?,
                p,
            }
        };
        self.emit(op);
        Ok(())
    }

    /// `slct.type.sel d, a, b, c`: a where c is not negative.
    fn slct(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<()> {
        let ([d, a, b, c], Some(ty), Some(by)) = (operands, opcode.types().next(), opcode.ty())
        else {
            return Err(count());
        };
        self.program.preds += 1;
        let row = self.program.preds as Row - 1;
        let c = self.row(c, by)?;
        let zero = self.constant(Source::Value(0));
        self.emit(Op::CompareL {
            f: alu::compare("ge", by, opcode.has("ftz")).ok_or("selector")?,
            d: row,
            complement: PRED_SINK,
            a: c,
            b: zero,
            with: None,
        });
        let p = Pred {
            row,
            negated: false,
        };
        self.select(d, a, b, p, ty)
    }

    fn cvt(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<()> {
        let mut types = opcode.types();
        let (Some(to), Some(from)) = (types.next(), types.next()) else {
            return Err("types".to_owned());
        };
        let (d, sources) = operands.split_first().ok_or_else(count)?;
        let bits = match d {
            Operand::Reg(_, bits) => *bits,
            _ => 8 * to.size() as u32,
        };
        let rounding = opcode
            .qualifiers
            .iter()
            .find_map(|name| Rounding::parse(name));
        let conversion = Conversion {
            to,
            from,
            rounding,
            integral: ["rni", "rzi", "rmi", "rpi"]
                .iter()
                .any(|name| opcode.has(name)),
            flush: opcode.has("ftz"),
            saturate: opcode.has("sat") || opcode.has("satfinite"),
            relu: opcode.has("relu"),
            bits,
        };
        // A wider register is read as the low part of what it holds.
        let wide_source = matches!(sources, [Operand::Reg(Reg::Q(_), _)]) && from.size() < 8;
        let wide_result = matches!(d, Operand::Reg(Reg::Q(_), _)) && to.size() < 8;
        if !wide_source
            && !wide_result
            && let Some(function) = alu::fast_conversion(&conversion)
        {
            return self.emit_function(function, d, sources, from);
        }
        match sources {
            [a] => {
                let op = Op::ConvertNumber {
                    conversion,
                    d: self.any_target(d, to)?,
                    a: self.any(a, from)?,
                };
                self.emit(op);
                Ok(())
            }
            [a, b] => {
                let half = match to {
                    Ty::F16x2 => Ty::F16,
                    Ty::BF16x2 => Ty::BF16,
                    _ => return Err("two sources".to_owned()),
                };
                let op = Op::ConvertPair {
                    conversion: Conversion {
                        to: half,
                        bits: 16,
                        ..conversion
                    },
                    d: self.target(d)?,
                    a: self.row(a, from)?,
                    b: self.row(b, from)?,
                };
                self.emit(op);
                Ok(())
            }
            _ => Err(count()),
        }
    }

    fn cvta(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>], ty: Ty) -> Decoded<()> {
        let [d, a] = operands else {
            return Err(count());
        };
        let mut window = window(opcode).ok_or("of which space?")?;
        if let Operand::Symbol(own, _) = a {
            window = *own;
        }
        let op = Op::ConvertAddress {
            window,
            to_generic: !opcode.has("to"),
            d: self.any_target(d, ty)?,
            a: self.any(a, ty)?,
        };
        self.emit(op);
        Ok(())
    }

    fn carry(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>], ty: Ty) -> Decoded<()> {
        let [d, a, b] = operands else {
            return Err(count());
        };
        let subtract = opcode.base.starts_with("sub");
        let take = opcode.base.ends_with('c');
        let give = opcode.has("cc");
        let op = if ty.size() == 8 {
            Op::CarryQ {
                subtract,
                take,
                give,
                d: self.wide_target(d)?,
                a: self.wide_row(a, ty)?,
                b: self.wide_row(b, ty)?,
            }
        } else {
            Op::CarryL {
                subtract,
                take,
                give,
                d: self.target(d)?,
                a: self.row(a, ty)?,
                b: self.row(b, ty)?,
            }
        };
        self.emit(op);
        Ok(())
    }

    fn mad_carry(&mut self, opcode: &Opcode<'a>, operands: &[Operand<'a>], ty: Ty) -> Decoded<()> {
        let ([d, a, b, c], 4) = (operands, ty.size()) else {
            return Err(count());
        };
        let op = Op::MadCarry {
            f: if opcode.has("hi") {
                alu::high_product(ty.is_signed())
            } else {
                alu::low_product()
            },
            take: opcode.base == "madc",
            give: opcode.has("cc"),
            d: self.target(d)?,
            a: self.row(a, ty)?,
            b: self.row(b, ty)?,
            c: self.row(c, ty)?,
        };
        self.emit(op);
        Ok(())
    }
}

/// A predicate that never holds.
const NEVER: Pred = Pred {
    row: FALSE,
    negated: false,
};

fn logic(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return None,
    })
}

/// The state space that an opcode names.
pub(super) fn window(opcode: &Opcode<'_>) -> Option<Window> {
    opcode.qualifiers.iter().find_map(|name| {
        Some(match *name {
            "global" | "const" => Window::Global,
            "shared" | "shared::cta" | "shared::cluster" => Window::Shared,
            "local" => Window::Local,
            "param" | "param::entry" => Window::Param,
            "param::func" => Window::Local,
            _ => return None,
        })
    })
}

/// The message for a wrong number of operands.
pub(super) fn count() -> String {
    "not with these operands".to_owned()
}
