//! Conversions between types.

use super::{
    Function,
    float::{flush, pack},
    half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, f64_to_bf16, f64_to_f16},
};
use crate::{
    lanes::{map1, map2},
    types::Ty,
};

/// Which neighbour a value that is not representable becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    NearestAway,
    Zero,
    Down,
    Up,
}

impl Rounding {
    /// By the qualifier, of numbers or integers.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "rn" | "rni" => Self::Nearest,
            "rna" => Self::NearestAway,
            "rz" | "rzi" => Self::Zero,
            "rm" | "rmi" => Self::Down,
            "rp" | "rpi" => Self::Up,
            _ => return None,
        })
    }
}

/// A conversion that has no function of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversion {
    pub(crate) to: Ty,
    pub(crate) from: Ty,
    pub(crate) rounding: Option<Rounding>,
    /// Whether the rounding is to an integer, as in `rni`.
    pub(crate) integral: bool,
    pub(crate) flush: bool,
    pub(crate) saturate: bool,
    pub(crate) relu: bool,
    /// Bits of the register that is written.
    pub(crate) bits: u32,
}

/// The function of a frequent conversion.
pub(crate) fn fast_conversion(conversion: &Conversion) -> Option<Function> {
    let c = conversion;
    if c.saturate || c.relu || c.flush {
        return None;
    }
    let nearest = matches!(c.rounding, None | Some(Rounding::Nearest)) && !c.integral;
    Some(match (c.to, c.from) {
        (Ty::U32 | Ty::S32 | Ty::B32, Ty::U64 | Ty::S64 | Ty::B64) => {
            Function::Narrow(|a| map1(a, |a| a as u32))
        }
        (Ty::U64 | Ty::S64, Ty::U32) => Function::Widen1(|a| map1(a, u64::from)),
        (Ty::U64 | Ty::S64, Ty::S32) => Function::Widen1(|a| map1(a, |a| a as i32 as i64 as u64)),
        (Ty::U64 | Ty::S64, Ty::U16) => Function::Widen1(|a| map1(a, |a| u64::from(a & 0xffff))),
        (Ty::U16 | Ty::S16, Ty::U32 | Ty::S32) if c.bits == 16 => {
            Function::L1(|a| map1(a, |a| a & 0xffff))
        }
        (Ty::U32 | Ty::S32, Ty::U16) => Function::L1(|a| map1(a, |a| a & 0xffff)),
        (Ty::U32 | Ty::S32, Ty::S16) => Function::L1(|a| map1(a, |a| a as i16 as i32 as u32)),
        (Ty::F32, Ty::S32) if nearest => Function::L1(|a| map1(a, |a| (a as i32 as f32).to_bits())),
        (Ty::F32, Ty::U32) if nearest => Function::L1(|a| map1(a, |a| (a as f32).to_bits())),
        (Ty::F32, Ty::F64) if nearest => {
            Function::Narrow(|a| map1(a, |a| pack(f64::from_bits(a) as f32)))
        }
        (Ty::F64, Ty::F32) => {
            Function::Widen1(|a| map1(a, |a| f64::from(f32::from_bits(a)).to_bits()))
        }
        (Ty::F32, Ty::F16) => Function::L1(|a| map1(a, |a| f16_to_f32(a).to_bits())),
        (Ty::F32, Ty::BF16) => Function::L1(|a| map1(a, |a| bf16_to_f32(a).to_bits())),
        (Ty::F16, Ty::F32) if nearest => {
            Function::L1(|a| map1(a, |a| f32_to_f16(f32::from_bits(a))))
        }
        (Ty::BF16, Ty::F32) if nearest => {
            Function::L1(|a| map1(a, |a| f32_to_bf16(f32::from_bits(a))))
        }
        (Ty::F16x2, Ty::F32) if nearest => Function::L2(|a, b| {
            map2(a, b, |a, b| {
                f32_to_f16(f32::from_bits(a)) << 16 | f32_to_f16(f32::from_bits(b))
            })
        }),
        (Ty::BF16x2, Ty::F32) if nearest => Function::L2(|a, b| {
            map2(a, b, |a, b| {
                f32_to_bf16(f32::from_bits(a)) << 16 | f32_to_bf16(f32::from_bits(b))
            })
        }),
        _ => return None,
    })
}

/// A value as it is converted: integers exactly, numbers as `f64`, which holds every narrower one.
enum Value {
    Integer(i128),
    Number(f64),
}

fn read(bits: u64, from: Ty, ftz: bool) -> Value {
    match from {
        Ty::S8 => Value::Integer(i128::from(bits as i8)),
        Ty::S16 => Value::Integer(i128::from(bits as i16)),
        Ty::S32 => Value::Integer(i128::from(bits as i32)),
        Ty::S64 => Value::Integer(i128::from(bits as i64)),
        Ty::F32 | Ty::TF32 => {
            let x = f32::from_bits(bits as u32);
            Value::Number(f64::from(if ftz { flush::<true>(x) } else { x }))
        }
        Ty::F64 => Value::Number(f64::from_bits(bits)),
        Ty::F16 => Value::Number(f64::from(f16_to_f32(bits as u32))),
        Ty::BF16 => Value::Number(f64::from(bf16_to_f32(bits as u32))),
        _ => Value::Integer(i128::from(match from.size() {
            1 => bits & 0xff,
            2 => bits & 0xffff,
            4 => bits & 0xffff_ffff,
            _ => bits,
        })),
    }
}

/// `x` without its fraction.
fn integral(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// The number with `bits` bits after the leading one that `x` rounds to, where the smallest exponent is `least`.
fn round_to(x: f64, bits: i32, least: i32, rounding: Rounding) -> f64 {
    if !x.is_finite() || x == 0.0 {
        return x;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    let unit = 2f64.powi(exponent - bits);
    integral(x / unit, rounding) * unit
}

fn limits(to: Ty) -> (i128, i128) {
    let bits = 8 * to.size() as u32;
    if to.is_signed() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// Converts one value; the result is in the low bits.
pub(crate) fn convert(c: &Conversion, bits: u64) -> u64 {
    let value = read(bits, c.from, c.flush);
    let rounding = c.rounding.unwrap_or(Rounding::Nearest);
    if c.to.is_float() {
        let mut x = match value {
            Value::Number(x) => x,
            // An i64 does not fit an f64; rounding it twice is avoided by rounding to odd first.
            Value::Integer(i) => odd_f64(i, c.to, rounding),
        };
        if c.integral {
            x = integral(x, rounding);
        }
        if c.saturate {
            x = if x > 0.0 { x.min(1.0) } else { 0.0 };
        }
        if c.relu && !x.is_nan() {
            x = x.max(0.0);
        }
        return write_float(x, c, rounding);
    }
    let (least, most) = limits(c.to);
    let integer = match value {
        Value::Integer(i) if c.saturate => i.clamp(least, most),
        Value::Integer(i) => i,
        // Numbers beyond the range give its ends, NaN gives 0 (or, to 64 bits, the top bit).
        Value::Number(x) if x.is_nan() => {
            if c.to.size() == 8 {
                1 << 63
            } else {
                0
            }
        }
        Value::Number(x) => {
            (integral(x, c.rounding.unwrap_or(Rounding::Zero)) as i128).clamp(least, most)
        }
    };
    let low = match c.to.size() {
        1 if c.to.is_signed() => i128::from(integer as i8),
        1 => i128::from(integer as u8),
        2 if c.to.is_signed() => i128::from(integer as i16),
        2 => i128::from(integer as u16),
        4 if c.to.is_signed() => i128::from(integer as i32),
        4 => i128::from(integer as u32),
        _ => integer,
    } as u64;
    match c.bits {
        16 => low & 0xffff,
        32 => low & 0xffff_ffff,
        _ => low,
    }
}

/// An integer as `f64`, rounded as asked if that is what is wanted, else to odd, so that a second rounding is correct.
fn odd_f64(i: i128, to: Ty, rounding: Rounding) -> f64 {
    let near = i as f64;
    let exact = near as i128;
    if exact == i {
        return near;
    }
    let (below, above) = if exact < i {
        (near, near.next_up())
    } else {
        (near.next_down(), near)
    };
    if to == Ty::F64 {
        return match rounding {
            Rounding::Nearest | Rounding::NearestAway => near,
            Rounding::Down => below,
            Rounding::Up => above,
            Rounding::Zero => {
                if i > 0 {
                    below
                } else {
                    above
                }
            }
        };
    }
    if below.to_bits() & 1 == 1 {
        below
    } else {
        above
    }
}

fn write_float(x: f64, c: &Conversion, rounding: Rounding) -> u64 {
    match c.to {
        Ty::F64 => x.to_bits(),
        Ty::TF32 => {
            let rounded = round_to(x, 10, -126, rounding) as f32;
            u64::from(pack(rounded))
        }
        Ty::F16 => u64::from(if rounding == Rounding::Nearest {
            f64_to_f16(x)
        } else {
            f32_to_f16(clamp_zero(round_to(x, 10, -14, rounding), 65504.0, rounding) as f32)
        }),
        Ty::BF16 => u64::from(if rounding == Rounding::Nearest {
            f64_to_bf16(x)
        } else {
            let most = f64::from(half::bf16::MAX.to_f32());
            f32_to_bf16(clamp_zero(round_to(x, 7, -126, rounding), most, rounding) as f32)
        }),
        _ => {
            let rounded = if rounding == Rounding::Nearest || c.integral {
                x as f32
            } else {
                clamp_zero(
                    round_to(x, 23, -126, rounding),
                    f64::from(f32::MAX),
                    rounding,
                ) as f32
            };
            let rounded = if c.flush {
                flush::<true>(rounded)
            } else {
                rounded
            };
            u64::from(pack(rounded))
        }
    }
}

/// Finite numbers that round towards zero do not become infinite.
fn clamp_zero(x: f64, most: f64, rounding: Rounding) -> f64 {
    if rounding == Rounding::Zero && x.is_finite() {
        x.clamp(-most, most)
    } else {
        x
    }
}
