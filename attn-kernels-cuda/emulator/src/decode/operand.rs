//! Operands, and the rows that they are read from.

use super::{Decoded, Decoder, Symbol};
use crate::{
    lexer::Token,
    module::number_bits,
    program::{Address, FALSE, PRED_SINK, Pred, Reg, Row, SINK, Source, Special, Window},
    types::Ty,
};

/// An operand as it is written.
#[derive(Debug, Clone)]
pub(super) enum Operand<'a> {
    /// A register and its bits.
    Reg(Reg, u32),
    Pred(Pred),
    Number {
        word: &'a str,
        negative: bool,
    },
    Special(Special),
    Clock,
    /// The address of a variable in its own space.
    Symbol(Window, u64),
    DynamicShared,
    Targets(Vec<String>),
    /// A label or a function.
    Name(&'a str),
    /// In braces.
    List(Vec<Operand<'a>>),
    /// In parentheses.
    Group(Vec<Operand<'a>>),
    Memory {
        base: Box<Operand<'a>>,
        offset: i64,
        /// Coordinates of a tensor.
        coordinates: Vec<Operand<'a>>,
    },
    /// `_`.
    Sink,
}

fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| match name {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((register, component)) = name.split_once('.') {
        let axis = axis(component)?;
        return Some(match register {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" | "%clusterid" => Special::Ctaid(axis),
            "%nctaid" | "%nclusterid" => Special::Nctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_eq" => Special::LaneMaskEq,
        "%lanemask_lt" => Special::LaneMaskLt,
        "%lanemask_le" => Special::LaneMaskLe,
        "%lanemask_gt" => Special::LaneMaskGt,
        "%lanemask_ge" => Special::LaneMaskGe,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => return None,
    })
}

/// Special registers that are the same number for every thread here: one multiprocessor, one grid, clusters of one block.
fn fixed(name: &str) -> Option<&'static str> {
    Some(match name {
        "%smid" | "%gridid" | "%cluster_ctarank" | "%cluster_ctaid.x" | "%cluster_ctaid.y"
        | "%cluster_ctaid.z" => "0",
        "%nsmid" | "%cluster_nctarank" | "%cluster_nctaid.x" | "%cluster_nctaid.y"
        | "%cluster_nctaid.z" => "1",
        "WARP_SZ" => "32",
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    /// The operands of an instruction, and whether the first two were joined by `|`.
    pub(super) fn operands(&mut self, tokens: &[Token<'a>]) -> Decoded<(Vec<Operand<'a>>, bool)> {
        let mut at = 0;
        let mut pair = false;
        let mut found = Vec::new();
        while at < tokens.len() {
            match tokens[at] {
                Token::Mark(b',') => at += 1,
                Token::Mark(b'|') => {
                    pair = true;
                    at += 1;
                }
                _ => found.push(self.operand(tokens, &mut at)?),
            }
        }
        Ok((found, pair))
    }

    fn list(
        &mut self,
        tokens: &[Token<'a>],
        at: &mut usize,
        close: u8,
    ) -> Decoded<Vec<Operand<'a>>> {
        let mut found = Vec::new();
        loop {
            match tokens.get(*at) {
                None => return Err("a list has no end".to_owned()),
                Some(Token::Mark(b',')) => *at += 1,
                Some(Token::Mark(mark)) if *mark == close => {
                    *at += 1;
                    return Ok(found);
                }
                Some(_) => found.push(self.operand(tokens, at)?),
            }
        }
    }

    fn operand(&mut self, tokens: &[Token<'a>], at: &mut usize) -> Decoded<Operand<'a>> {
        let token = tokens[*at];
        *at += 1;
        match token {
            Token::Mark(b'{') => Ok(Operand::List(self.list(tokens, at, b'}')?)),
            Token::Mark(b'(') => Ok(Operand::Group(self.list(tokens, at, b')')?)),
            Token::Mark(b'[') => self.address_operand(tokens, at),
            Token::Mark(b'!') => match self.operand(tokens, at)? {
                Operand::Pred(pred) => Ok(Operand::Pred(Pred {
                    negated: !pred.negated,
                    ..pred
                })),
                _ => Err("`!` before what is no predicate".to_owned()),
            },
            Token::Mark(b'-') => match self.operand(tokens, at)? {
                Operand::Number { word, negative } => Ok(Operand::Number {
                    word,
                    negative: !negative,
                }),
                _ => Err("`-` before what is no number".to_owned()),
            },
            Token::Word("_") => Ok(Operand::Sink),
            Token::Word(word) => {
                // `symbol+4` outside of brackets.
                let operand = self.word(word);
                if let (Operand::Symbol(window, value), Some(Token::Mark(b'+'))) =
                    (&operand, tokens.get(*at))
                {
                    if let Some(Token::Word(number)) = tokens.get(*at + 1)
                        && let Some(offset) = number_bits(number, Ty::U64)
                    {
                        *at += 2;
                        return Ok(Operand::Symbol(*window, value.wrapping_add(offset)));
                    }
                    return Err("an offset that is no number".to_owned());
                }
                Ok(operand)
            }
            _ => Err(format!("operand {token:?}")),
        }
    }

    fn word(&mut self, word: &'a str) -> Operand<'a> {
        if word.as_bytes()[0].is_ascii_digit() {
            return Operand::Number {
                word,
                negative: false,
            };
        }
        if let Some(special) = special(word) {
            return Operand::Special(special);
        }
        if let Some(number) = fixed(word) {
            return Operand::Number {
                word: number,
                negative: false,
            };
        }
        if matches!(
            word,
            "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo"
        ) {
            return Operand::Clock;
        }
        let symbol = self.lookup(word).or_else(|| self.module_symbol(word));
        match symbol {
            Some(Symbol::Reg(reg, bits)) => Operand::Reg(reg, bits),
            Some(Symbol::Pred(row)) => Operand::Pred(Pred {
                row,
                negated: false,
            }),
            Some(Symbol::Address(window, value)) => Operand::Symbol(window, value),
            Some(Symbol::DynamicShared) => Operand::DynamicShared,
            Some(Symbol::Targets(labels)) => Operand::Targets(labels),
            None => Operand::Name(word),
        }
    }

    /// What follows a bracket.
    fn address_operand(&mut self, tokens: &[Token<'a>], at: &mut usize) -> Decoded<Operand<'a>> {
        let mut base = None;
        let mut offset = 0i64;
        let mut coordinates = Vec::new();
        let mut sign = 1;
        loop {
            match tokens.get(*at) {
                None => return Err("an address has no end".to_owned()),
                Some(Token::Mark(b']')) => {
                    *at += 1;
                    break;
                }
                Some(Token::Mark(b'+' | b',')) => *at += 1,
                Some(Token::Mark(b'-')) => {
                    sign = -sign;
                    *at += 1;
                }
                Some(_) => match self.operand(tokens, at)? {
                    Operand::Number { word, .. } => {
                        let value =
                            number_bits(word, Ty::U64).ok_or_else(|| format!("offset `{word}`"))?;
                        offset = offset.wrapping_add(sign * value as i64);
                        sign = 1;
                    }
                    Operand::List(list) => coordinates = list,
                    other => base = Some(other),
                },
            }
        }
        Ok(Operand::Memory {
            base: Box::new(base.unwrap_or(Operand::Number {
                word: "0",
                negative: false,
            })),
            offset,
            coordinates,
        })
    }

    /// The bits of a number in a register of `ty`.
    fn bits(word: &str, negative: bool, ty: Ty) -> Decoded<u64> {
        let value = number_bits(word, ty).ok_or_else(|| format!("number `{word}`"))?;
        let value = if negative {
            value.wrapping_neg()
        } else {
            value
        };
        Ok(match ty.size() {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        })
    }

    /// The row of a 32-bit operand.
    pub(super) fn row(&mut self, operand: &Operand<'a>, ty: Ty) -> Decoded<Row> {
        match operand {
            Operand::Reg(Reg::L(row), _) => Ok(*row),
            Operand::Number { word, negative } => {
                let bits = Self::bits(word, *negative, ty)?;
                Ok(self.constant(Source::Value(bits)))
            }
            Operand::Special(special) => Ok(self.constant(Source::Special(*special))),
            Operand::Symbol(_, value) => Ok(self.constant(Source::Value(*value))),
            Operand::DynamicShared => Ok(self.constant(Source::DynamicShared)),
            _ => Err(format!("{operand:?} in the place of a 32-bit operand")),
        }
    }

    /// The row of a 64-bit operand.
    pub(super) fn wide_row(&mut self, operand: &Operand<'a>, ty: Ty) -> Decoded<Row> {
        match operand {
            Operand::Reg(Reg::Q(row), _) => Ok(*row),
            Operand::Number { word, negative } => {
                let bits = Self::bits(word, *negative, ty)?;
                Ok(self.wide_constant(Source::Value(bits)))
            }
            Operand::Special(special) => Ok(self.wide_constant(Source::Special(*special))),
            Operand::Symbol(_, value) => Ok(self.wide_constant(Source::Value(*value))),
            Operand::DynamicShared => Ok(self.wide_constant(Source::DynamicShared)),
            _ => Err(format!("{operand:?} in the place of a 64-bit operand")),
        }
    }

    /// The row of an operand of `ty`, in the file of that size.
    pub(super) fn any(&mut self, operand: &Operand<'a>, ty: Ty) -> Decoded<Reg> {
        match operand {
            Operand::Reg(reg, _) => Ok(*reg),
            _ if ty.size() == 8 => Ok(Reg::Q(self.wide_row(operand, ty)?)),
            _ => Ok(Reg::L(self.row(operand, ty)?)),
        }
    }

    /// The row that a 32-bit result goes to.
    pub(super) fn target(&self, operand: &Operand<'a>) -> Decoded<Row> {
        match operand {
            Operand::Reg(Reg::L(row), _) => Ok(*row),
            Operand::Sink => Ok(SINK),
            _ => Err(format!("{operand:?} in the place of a 32-bit result")),
        }
    }

    /// The row that a 64-bit result goes to.
    pub(super) fn wide_target(&self, operand: &Operand<'a>) -> Decoded<Row> {
        match operand {
            Operand::Reg(Reg::Q(row), _) => Ok(*row),
            Operand::Sink => Ok(SINK),
            _ => Err(format!("{operand:?} in the place of a 64-bit result")),
        }
    }

    /// The register of either file that a result of `ty` goes to.
    pub(super) fn any_target(&self, operand: &Operand<'a>, ty: Ty) -> Decoded<Reg> {
        match operand {
            Operand::Reg(reg, _) => Ok(*reg),
            Operand::Sink if ty.size() == 8 => Ok(Reg::Q(SINK)),
            Operand::Sink => Ok(Reg::L(SINK)),
            _ => Err(format!("{operand:?} in the place of a result")),
        }
    }

    /// The predicate that a result goes to.
    pub(super) fn pred_target(&self, operand: &Operand<'a>) -> Decoded<Row> {
        match operand {
            Operand::Pred(Pred {
                row,
                negated: false,
            }) => Ok(*row),
            Operand::Sink => Ok(PRED_SINK),
            _ => Err(format!("{operand:?} in the place of a predicate")),
        }
    }

    /// A predicate that is read; numbers are true unless zero.
    pub(super) fn pred(&self, operand: &Operand<'a>) -> Decoded<Pred> {
        match operand {
            Operand::Pred(pred) => Ok(*pred),
            Operand::Number { word, .. } => Ok(Pred {
                row: FALSE,
                negated: number_bits(word, Ty::U32) != Some(0),
            }),
            _ => Err(format!("{operand:?} in the place of a predicate")),
        }
    }

    /// A number that must be known here.
    pub(super) fn immediate(operand: &Operand<'a>) -> Decoded<i64> {
        match operand {
            Operand::Number { word, negative } => Ok(Self::bits(word, *negative, Ty::S64)? as i64),
            _ => Err(format!("{operand:?} in the place of a number")),
        }
    }

    /// An address in brackets. A variable may be in another space than the instruction says: parameters of functions are local.
    pub(super) fn address(&mut self, operand: &Operand<'a>, window: Window) -> Decoded<Address> {
        let Operand::Memory { base, offset, .. } = operand else {
            return Err(format!("{operand:?} in the place of an address"));
        };
        match &**base {
            Operand::Reg(reg, _) => Ok(Address {
                window,
                base: Some(*reg),
                offset: *offset,
            }),
            Operand::Symbol(own, value) => Ok(Address {
                window: *own,
                base: None,
                offset: offset.wrapping_add(*value as i64),
            }),
            Operand::DynamicShared => Ok(Address {
                window: Window::Shared,
                base: Some(Reg::L(self.constant(Source::DynamicShared))),
                offset: *offset,
            }),
            Operand::Number { .. } => Ok(Address {
                window,
                base: None,
                offset: *offset,
            }),
            other => Err(format!("{other:?} in the place of an address")),
        }
    }
}
