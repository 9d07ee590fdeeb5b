//! Numbers of 32 and 64 bits.
//!
//! Every operation is rounded correctly. That holds for the approximate ones (`ex2.approx` and the like) too: they are the exact
//! function, rounded once, where a device may be a few units in the last place off.

use super::{Function, convert::Rounding};
use crate::lanes::{map1, map2, map3};

const NEAREST: u8 = 0;
const ZERO: u8 = 1;
const DOWN: u8 = 2;
const UP: u8 = 3;

/// Bits of a result; a NaN is the one that devices give.
#[inline(always)]
pub(super) fn pack(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

#[inline(always)]
fn pack_double(x: f64) -> u64 {
    x.to_bits()
}

/// A number with subnormals flushed to zero.
#[inline(always)]
pub(super) fn flush<const FTZ: bool>(x: f32) -> f32 {
    if FTZ && x.abs() < f32::MIN_POSITIVE {
        f32::from_bits(x.to_bits() & 0x8000_0000)
    } else {
        x
    }
}

#[inline(always)]
fn take<const FTZ: bool>(bits: u32) -> f32 {
    flush::<FTZ>(f32::from_bits(bits))
}

#[inline(always)]
fn give<const FTZ: bool, const SAT: bool>(x: f32) -> u32 {
    let x = flush::<FTZ>(x);
    if SAT {
        // A NaN saturates to 0.
        (if x > 0.0 { x.min(1.0) } else { 0.0 }).to_bits()
    } else {
        pack(x)
    }
}

/// `sum + error`, of which `sum` is the rounded value, in 32 bits.
fn round<const R: u8>(sum: f64, error: f64) -> f32 {
    let near = sum as f32;
    if !sum.is_finite() || near.is_nan() {
        return near;
    }
    let over = f64::from(near) - sum;
    let above = over > 0.0 || (over == 0.0 && error < 0.0);
    let below = over < 0.0 || (over == 0.0 && error > 0.0);
    let down = match R {
        DOWN => true,
        UP => false,
        _ => sum > 0.0 || (sum == 0.0 && error > 0.0),
    };
    if down && above {
        near.next_down()
    } else if !down && below {
        near.next_up()
    } else {
        near
    }
}

fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    (sum, if error.is_nan() { 0.0 } else { error })
}

#[inline(always)]
fn add<const FTZ: bool, const SAT: bool, const R: u8>(a: u32, b: u32) -> u32 {
    let (a, b) = (take::<FTZ>(a), take::<FTZ>(b));
    give::<FTZ, SAT>(if R == NEAREST {
        a + b
    } else {
        let (sum, error) = two_sum(f64::from(a), f64::from(b));
        if sum == 0.0 && a != 0.0 && R == DOWN {
            -0.0
        } else {
            round::<R>(sum, error)
        }
    })
}

#[inline(always)]
fn sub<const FTZ: bool, const SAT: bool, const R: u8>(a: u32, b: u32) -> u32 {
    add::<FTZ, SAT, R>(a, b ^ 0x8000_0000)
}

#[inline(always)]
fn mul<const FTZ: bool, const SAT: bool, const R: u8>(a: u32, b: u32) -> u32 {
    let (a, b) = (take::<FTZ>(a), take::<FTZ>(b));
    give::<FTZ, SAT>(if R == NEAREST {
        a * b
    } else {
        round::<R>(f64::from(a) * f64::from(b), 0.0)
    })
}

#[inline(always)]
fn fma<const FTZ: bool, const SAT: bool, const R: u8>(a: u32, b: u32, c: u32) -> u32 {
    let (a, b, c) = (take::<FTZ>(a), take::<FTZ>(b), take::<FTZ>(c));
    give::<FTZ, SAT>(if R == NEAREST {
        a.mul_add(b, c)
    } else {
        let (sum, error) = two_sum(f64::from(a) * f64::from(b), f64::from(c));
        round::<R>(sum, error)
    })
}

#[inline(always)]
fn div<const FTZ: bool, const SAT: bool, const R: u8>(a: u32, b: u32) -> u32 {
    let (a, b) = (take::<FTZ>(a), take::<FTZ>(b));
    give::<FTZ, SAT>(if R == NEAREST {
        a / b
    } else {
        let near = f64::from(a) / f64::from(b);
        let error = (-near).mul_add(f64::from(b), f64::from(a));
        round::<R>(near, if b < 0.0 { -error } else { error })
    })
}

#[inline(always)]
fn rcp<const FTZ: bool, const SAT: bool, const R: u8>(a: u32) -> u32 {
    div::<FTZ, SAT, R>(1f32.to_bits(), a)
}

#[inline(always)]
fn sqrt<const FTZ: bool, const SAT: bool, const R: u8>(a: u32) -> u32 {
    let a = take::<FTZ>(a);
    give::<FTZ, SAT>(if R == NEAREST {
        a.sqrt()
    } else {
        let near = f64::from(a).sqrt();
        round::<R>(near, (-near).mul_add(near, f64::from(a)))
    })
}

/// The smaller, with -0 below +0; a NaN loses, unless both are.
#[inline(always)]
pub(super) fn smaller(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

/// The larger, likewise.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    -smaller(-a, -b)
}

#[inline(always)]
fn min<const FTZ: bool, const NAN: bool>(a: u32, b: u32) -> u32 {
    let (a, b) = (take::<FTZ>(a), take::<FTZ>(b));
    pack(if NAN && (a.is_nan() || b.is_nan()) {
        f32::NAN
    } else {
        smaller(a, b)
    })
}

#[inline(always)]
fn max<const FTZ: bool, const NAN: bool>(a: u32, b: u32) -> u32 {
    let (a, b) = (take::<FTZ>(a), take::<FTZ>(b));
    pack(if NAN && (a.is_nan() || b.is_nan()) {
        f32::NAN
    } else {
        larger(a, b)
    })
}

macro_rules! exact {
    ($name:ident, $f:expr) => {
        #[inline(always)]
        fn $name<const FTZ: bool>(a: u32) -> u32 {
            let f: fn(f64) -> f64 = $f;
            give::<FTZ, false>(f(f64::from(take::<FTZ>(a))) as f32)
        }
    };
}
exact!(ex2, f64::exp2);
exact!(lg2, f64::log2);
exact!(sin, f64::sin);
exact!(cos, f64::cos);
exact!(tanh, f64::tanh);
exact!(rsqrt, |a| 1.0 / a.sqrt());

macro_rules! rounded {
    ($map:ident, $wrap:ident, $f:ident, $m:expr, ($($a:ident),+)) => {{
        macro_rules! one {
            ($ftz:literal, $sat:literal, $r:ident) => {
                Function::$wrap(|$($a),+| $map($($a),+, $f::<$ftz, $sat, $r>))
            };
        }
        match ($m.flush, $m.saturate, $m.rounding) {
            (false, false, NEAREST) => one!(false, false, NEAREST),
            (false, false, ZERO) => one!(false, false, ZERO),
            (false, false, DOWN) => one!(false, false, DOWN),
            (false, false, _) => one!(false, false, UP),
            (false, true, NEAREST) => one!(false, true, NEAREST),
            (false, true, ZERO) => one!(false, true, ZERO),
            (false, true, DOWN) => one!(false, true, DOWN),
            (false, true, _) => one!(false, true, UP),
            (true, false, NEAREST) => one!(true, false, NEAREST),
            (true, false, ZERO) => one!(true, false, ZERO),
            (true, false, DOWN) => one!(true, false, DOWN),
            (true, false, _) => one!(true, false, UP),
            (true, true, NEAREST) => one!(true, true, NEAREST),
            (true, true, ZERO) => one!(true, true, ZERO),
            (true, true, DOWN) => one!(true, true, DOWN),
            (true, true, _) => one!(true, true, UP),
        }
    }};
}

macro_rules! flushed {
    ($map:ident, $wrap:ident, $f:ident, $m:expr, ($($a:ident),+)) => {
        if $m.flush {
            Function::$wrap(|$($a),+| $map($($a),+, $f::<true>))
        } else {
            Function::$wrap(|$($a),+| $map($($a),+, $f::<false>))
        }
    };
}

struct Modifiers {
    flush: bool,
    saturate: bool,
    rounding: u8,
    nan: bool,
}

fn modifiers(qualifiers: &[&str]) -> Modifiers {
    let has = |name: &str| qualifiers.contains(&name);
    Modifiers {
        flush: has("ftz"),
        saturate: has("sat"),
        rounding: match qualifiers.iter().find_map(|name| Rounding::parse(name)) {
            Some(Rounding::Zero) => ZERO,
            Some(Rounding::Down) => DOWN,
            Some(Rounding::Up) => UP,
            _ => NEAREST,
        },
        nan: has("NaN"),
    }
}

/// The function of an opcode on `f32`.
pub(super) fn single(base: &str, qualifiers: &[&str]) -> Option<Function> {
    let m = modifiers(qualifiers);
    Some(match base {
        "mov" => Function::L1(|a| *a),
        "add" => rounded!(map2, L2, add, m, (a, b)),
        "sub" => rounded!(map2, L2, sub, m, (a, b)),
        "mul" => rounded!(map2, L2, mul, m, (a, b)),
        "div" => rounded!(map2, L2, div, m, (a, b)),
        "fma" | "mad" => rounded!(map3, L3, fma, m, (a, b, c)),
        "rcp" => rounded!(map1, L1, rcp, m, (a)),
        "sqrt" => rounded!(map1, L1, sqrt, m, (a)),
        "ex2" => flushed!(map1, L1, ex2, m, (a)),
        "lg2" => flushed!(map1, L1, lg2, m, (a)),
        "sin" => flushed!(map1, L1, sin, m, (a)),
        "cos" => flushed!(map1, L1, cos, m, (a)),
        "tanh" => flushed!(map1, L1, tanh, m, (a)),
        "rsqrt" => flushed!(map1, L1, rsqrt, m, (a)),
        "min" => match (m.flush, m.nan) {
            (false, false) => Function::L2(|a, b| map2(a, b, min::<false, false>)),
            (false, true) => Function::L2(|a, b| map2(a, b, min::<false, true>)),
            (true, false) => Function::L2(|a, b| map2(a, b, min::<true, false>)),
            (true, true) => Function::L2(|a, b| map2(a, b, min::<true, true>)),
        },
        "max" => match (m.flush, m.nan) {
            (false, false) => Function::L2(|a, b| map2(a, b, max::<false, false>)),
            (false, true) => Function::L2(|a, b| map2(a, b, max::<false, true>)),
            (true, false) => Function::L2(|a, b| map2(a, b, max::<true, false>)),
            (true, true) => Function::L2(|a, b| map2(a, b, max::<true, true>)),
        },
        "abs" if m.flush => Function::L1(|a| map1(a, |a| take::<true>(a).abs().to_bits())),
        "neg" if m.flush => Function::L1(|a| map1(a, |a| (-take::<true>(a)).to_bits())),
        "abs" => Function::L1(|a| map1(a, |a| a & 0x7fff_ffff)),
        "neg" => Function::L1(|a| map1(a, |a| a ^ 0x8000_0000)),
        "copysign" => Function::L2(|a, b| map2(a, b, |a, b| (b & 0x7fff_ffff) | (a & 0x8000_0000))),
        _ => return None,
    })
}

#[inline(always)]
fn number(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// The function of an opcode on `f64`. Only rounding to nearest is known.
pub(super) fn double(base: &str, qualifiers: &[&str]) -> Option<Function> {
    if modifiers(qualifiers).rounding != NEAREST {
        return None;
    }
    macro_rules! q1 {
        ($f:expr) => {
            Function::Q1(|a| map1(a, |a| pack_double($f(number(a)))))
        };
    }
    macro_rules! q2 {
        ($f:expr) => {
            Function::Q2(|a, b| map2(a, b, |a, b| pack_double($f(number(a), number(b)))))
        };
    }
    Some(match base {
        "mov" => Function::Q1(|a| *a),
        "add" => q2!(|a: f64, b: f64| a + b),
        "sub" => q2!(|a: f64, b: f64| a - b),
        "mul" => q2!(|a: f64, b: f64| a * b),
        "div" => q2!(|a: f64, b: f64| a / b),
        "min" => q2!(f64::min),
        "max" => q2!(f64::max),
        "fma" | "mad" => Function::Q3(|a, b, c| {
            map3(a, b, c, |a, b, c| {
                pack_double(number(a).mul_add(number(b), number(c)))
            })
        }),
        "rcp" => q1!(|a: f64| 1.0 / a),
        "sqrt" => q1!(f64::sqrt),
        "rsqrt" => q1!(|a: f64| 1.0 / a.sqrt()),
        "abs" => Function::Q1(|a| map1(a, |a| a & (u64::MAX >> 1))),
        "neg" => Function::Q1(|a| map1(a, |a| a ^ (1 << 63))),
        "copysign" => {
            Function::Q2(|a, b| map2(a, b, |a, b| (b & (u64::MAX >> 1)) | (a & (1 << 63))))
        }
        _ => return None,
    })
}
