//! Comparisons.

use super::{
    float::flush,
    half::{bf16_to_f32, f16_to_f32},
};
use crate::{
    lanes::{L, Q, test2},
    types::Ty,
};

macro_rules! integers {
    ($name:expr, $a:ident, $b:ident, $x:expr, $y:expr) => {
        match $name {
            "eq" => |a, b| test2(a, b, |$a, $b| $x == $y),
            "ne" => |a, b| test2(a, b, |$a, $b| $x != $y),
            "lt" | "lo" => |a, b| test2(a, b, |$a, $b| $x < $y),
            "le" | "ls" => |a, b| test2(a, b, |$a, $b| $x <= $y),
            "gt" | "hi" => |a, b| test2(a, b, |$a, $b| $x > $y),
            "ge" | "hs" => |a, b| test2(a, b, |$a, $b| $x >= $y),
            _ => return None,
        }
    };
}

/// Ordered comparisons are false where a number is NaN, those that end in `u` true.
macro_rules! floats {
    ($name:expr, $f:expr) => {
        match $name {
            "eq" => |a, b| test2(a, b, |a, b| $f(a) == $f(b)),
            "ne" => |a, b| test2(a, b, |a, b| $f(a) < $f(b) || $f(a) > $f(b)),
            "lt" => |a, b| test2(a, b, |a, b| $f(a) < $f(b)),
            "le" => |a, b| test2(a, b, |a, b| $f(a) <= $f(b)),
            "gt" => |a, b| test2(a, b, |a, b| $f(a) > $f(b)),
            "ge" => |a, b| test2(a, b, |a, b| $f(a) >= $f(b)),
            "equ" => |a, b| test2(a, b, |a, b| !($f(a) < $f(b) || $f(a) > $f(b))),
            "neu" => |a, b| test2(a, b, |a, b| $f(a) != $f(b)),
            "ltu" => |a, b| {
                test2(a, b, |a, b| {
                    $f(a) < $f(b) || $f(a).is_nan() || $f(b).is_nan()
                })
            },
            "leu" => |a, b| {
                test2(a, b, |a, b| {
                    $f(a) <= $f(b) || $f(a).is_nan() || $f(b).is_nan()
                })
            },
            "gtu" => |a, b| {
                test2(a, b, |a, b| {
                    $f(a) > $f(b) || $f(a).is_nan() || $f(b).is_nan()
                })
            },
            "geu" => |a, b| {
                test2(a, b, |a, b| {
                    $f(a) >= $f(b) || $f(a).is_nan() || $f(b).is_nan()
                })
            },
            "num" => |a, b| test2(a, b, |a, b| !($f(a).is_nan() || $f(b).is_nan())),
            "nan" => |a, b| test2(a, b, |a, b| $f(a).is_nan() || $f(b).is_nan()),
            _ => return None,
        }
    };
}

fn plain(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn flushed(bits: u32) -> f32 {
    flush::<true>(f32::from_bits(bits))
}

fn signed16(bits: u32) -> i16 {
    bits as u16 as i16
}

/// The comparison `name` of values up to 32 bits.
pub(crate) fn compare(name: &str, ty: Ty, ftz: bool) -> Option<fn(&L, &L) -> u32> {
    let unsigned = matches!(name, "lo" | "ls" | "hi" | "hs");
    Some(match ty {
        Ty::F32 if ftz => floats!(name, flushed),
        Ty::F32 => floats!(name, plain),
        Ty::F16 => floats!(name, f16_to_f32),
        Ty::BF16 => floats!(name, bf16_to_f32),
        Ty::S16 if !unsigned => integers!(name, x, y, signed16(x), signed16(y)),
        Ty::S32 if !unsigned => integers!(name, x, y, (x as i32), (y as i32)),
        Ty::B16 | Ty::U16 | Ty::S16 | Ty::B32 | Ty::U32 | Ty::S32 => {
            integers!(name, x, y, x, y)
        }
        _ => return None,
    })
}

/// The comparison `name` of 64-bit values.
pub(crate) fn compare_wide(name: &str, ty: Ty) -> Option<fn(&Q, &Q) -> u32> {
    let unsigned = matches!(name, "lo" | "ls" | "hi" | "hs");
    Some(match ty {
        Ty::F64 => floats!(name, f64::from_bits),
        Ty::S64 if !unsigned => integers!(name, x, y, (x as i64), (y as i64)),
        Ty::B64 | Ty::U64 | Ty::S64 => integers!(name, x, y, x, y),
        _ => return None,
    })
}

macro_rules! tests {
    ($name:expr, $f:expr) => {
        match $name {
            "finite" => |a, _| test2(a, a, |a, _| $f(a).is_finite()),
            "infinite" => |a, _| test2(a, a, |a, _| $f(a).is_infinite()),
            "number" => |a, _| test2(a, a, |a, _| !$f(a).is_nan()),
            "notanumber" => |a, _| test2(a, a, |a, _| $f(a).is_nan()),
            "normal" => |a, _| test2(a, a, |a, _| $f(a).is_normal()),
            "subnormal" => |a, _| test2(a, a, |a, _| $f(a).is_subnormal()),
            _ => return None,
        }
    };
}

/// The property of an `f32` that `testp` names; the second row is not looked at.
pub(crate) fn test(name: &str) -> Option<fn(&L, &L) -> u32> {
    Some(tests!(name, plain))
}

/// The same of an `f64`.
pub(crate) fn test_wide(name: &str) -> Option<fn(&Q, &Q) -> u32> {
    Some(tests!(name, f64::from_bits))
}
