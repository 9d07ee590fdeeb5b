//! Numbers of 16 bits, alone and in pairs.

use super::{
    Function,
    float::{larger, smaller},
};
use crate::{
    lanes::{map1, map2, map3},
    types::Ty,
};
use half::f16;

/// The value of the low 16 bits.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32_const()
}

/// The value of the low 16 bits.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// Rounded to nearest even; a NaN is the one that devices give.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u32 {
    if x.is_nan() {
        0x7fff
    } else {
        u32::from(f16::from_f32_const(x).to_bits())
    }
}

/// Rounded to nearest even; a NaN is the one that devices give.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        0x7fff
    } else {
        bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
    }
}

/// `x` in 32 bits, rounded to odd: rounding that to 16 bits gives what rounding `x` itself would.
#[inline(always)]
fn odd(x: f64) -> f32 {
    let near = x as f32;
    let lost = x - f64::from(near);
    if lost == 0.0 || near.to_bits() & 1 == 1 || !near.is_finite() {
        near
    } else if lost > 0.0 {
        near.next_up()
    } else {
        near.next_down()
    }
}

/// Rounded to nearest even.
#[inline(always)]
pub(super) fn f64_to_f16(x: f64) -> u32 {
    f32_to_f16(odd(x))
}

/// Rounded to nearest even.
#[inline(always)]
pub(super) fn f64_to_bf16(x: f64) -> u32 {
    f32_to_bf16(odd(x))
}

/// The product is exact in `f64`, and what that loses of the sum is far below the last bit of a half.
fn fma_f16(a: f32, b: f32, c: f32) -> u32 {
    f64_to_f16(f64::from(a) * f64::from(b) + f64::from(c))
}

fn fma_bf16(a: f32, b: f32, c: f32) -> u32 {
    f64_to_bf16(f64::from(a) * f64::from(b) + f64::from(c))
}

macro_rules! functions {
    ($module:ident, $take:path, $give:path, $fma:path) => {
        mod $module {
            use super::*;

            macro_rules! one {
                ($pair:expr, $f:expr) => {
                    if $pair {
                        Function::L1(|a| {
                            map1(a, |a: u32| {
                                $give($f($take(a))) | $give($f($take(a >> 16))) << 16
                            })
                        })
                    } else {
                        Function::L1(|a| map1(a, |a: u32| $give($f($take(a)))))
                    }
                };
            }
            macro_rules! two {
                ($pair:expr, $f:expr) => {
                    if $pair {
                        Function::L2(|a, b| {
                            map2(a, b, |a: u32, b: u32| {
                                $give($f($take(a), $take(b)))
                                    | $give($f($take(a >> 16), $take(b >> 16))) << 16
                            })
                        })
                    } else {
                        Function::L2(|a, b| {
                            map2(a, b, |a: u32, b: u32| $give($f($take(a), $take(b))))
                        })
                    }
                };
            }

            pub(super) fn function(
                base: &str,
                qualifiers: &[&str],
                pair: bool,
            ) -> Option<Function> {
                let nan = qualifiers.contains(&"NaN");
                let relu = qualifiers.contains(&"relu");
                Some(match base {
                    "mov" => Function::L1(|a| *a),
                    "add" => two!(pair, |a: f32, b: f32| a + b),
                    "sub" => two!(pair, |a: f32, b: f32| a - b),
                    "mul" => two!(pair, |a: f32, b: f32| a * b),
                    "min" if nan => two!(pair, |a: f32, b: f32| if a.is_nan() || b.is_nan() {
                        f32::NAN
                    } else {
                        smaller(a, b)
                    }),
                    "max" if nan => two!(pair, |a: f32, b: f32| if a.is_nan() || b.is_nan() {
                        f32::NAN
                    } else {
                        larger(a, b)
                    }),
                    "min" => two!(pair, smaller),
                    "max" => two!(pair, larger),
                    "ex2" => one!(pair, |a: f32| f64::from(a).exp2() as f32),
                    "tanh" => one!(pair, |a: f32| f64::from(a).tanh() as f32),
                    "neg" if pair => Function::L1(|a| map1(a, |a| a ^ 0x8000_8000)),
                    "neg" => Function::L1(|a| map1(a, |a| a ^ 0x8000)),
                    "abs" if pair => Function::L1(|a| map1(a, |a| a & 0x7fff_7fff)),
                    "abs" => Function::L1(|a| map1(a, |a| a & 0x7fff)),
                    "fma" if relu => return None,
                    "fma" if pair => Function::L3(|a, b, c| {
                        map3(a, b, c, |a: u32, b: u32, c: u32| {
                            $fma($take(a), $take(b), $take(c))
                                | $fma($take(a >> 16), $take(b >> 16), $take(c >> 16)) << 16
                        })
                    }),
                    "fma" => Function::L3(|a, b, c| {
                        map3(a, b, c, |a: u32, b: u32, c: u32| {
                            $fma($take(a), $take(b), $take(c))
                        })
                    }),
                    _ => return None,
                })
            }
        }
    };
}
functions!(of_f16, f16_to_f32, f32_to_f16, fma_f16);
functions!(of_bf16, bf16_to_f32, f32_to_bf16, fma_bf16);

/// The function of an opcode on 16-bit numbers. Sums and products in `f32` are exact enough to be rounded once more.
pub(super) fn function(base: &str, qualifiers: &[&str], ty: Ty) -> Option<Function> {
    match ty {
        Ty::F16 => of_f16::function(base, qualifiers, false),
        Ty::F16x2 => of_f16::function(base, qualifiers, true),
        Ty::BF16 => of_bf16::function(base, qualifiers, false),
        Ty::BF16x2 => of_bf16::function(base, qualifiers, true),
        _ => None,
    }
}
