//! Integers and bits.

use super::Function;
use crate::{
    lanes::{L, Q, map1, map2, map3, map4},
    types::Ty,
};

macro_rules! l1 {
    ($f:expr) => {
        Function::L1(|a| map1(a, $f))
    };
}
macro_rules! l2 {
    ($f:expr) => {
        Function::L2(|a, b| map2(a, b, $f))
    };
}
macro_rules! l3 {
    ($f:expr) => {
        Function::L3(|a, b, c| map3(a, b, c, $f))
    };
}
macro_rules! q1 {
    ($f:expr) => {
        Function::Q1(|a| map1(a, $f))
    };
}
macro_rules! q2 {
    ($f:expr) => {
        Function::Q2(|a, b| map2(a, b, $f))
    };
}

fn low16(x: u32) -> u32 {
    x & 0xffff
}

fn signed16(x: u32) -> i32 {
    i32::from(x as u16 as i16)
}

/// A 16-bit result in its lane.
fn put16(x: i32) -> u32 {
    x as u32 & 0xffff
}

fn high_signed(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

fn high_unsigned(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

fn high_signed_wide(a: u64, b: u64) -> u64 {
    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
}

fn high_unsigned_wide(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// What a device gives for a division by zero is not defined; all ones is what it is seen to give.
fn divide_unsigned(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

fn divide_signed(a: u32, b: u32) -> u32 {
    if b == 0 {
        u32::MAX
    } else {
        (a as i32).wrapping_div(b as i32) as u32
    }
}

fn remainder_unsigned(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(u32::MAX)
}

fn remainder_signed(a: u32, b: u32) -> u32 {
    if b == 0 {
        u32::MAX
    } else {
        (a as i32).wrapping_rem(b as i32) as u32
    }
}

fn wide_divide_signed(a: u64, b: u64) -> u64 {
    if b == 0 {
        u64::MAX
    } else {
        (a as i64).wrapping_div(b as i64) as u64
    }
}

fn wide_remainder_signed(a: u64, b: u64) -> u64 {
    if b == 0 {
        u64::MAX
    } else {
        (a as i64).wrapping_rem(b as i64) as u64
    }
}

fn shift_left(a: u32, b: u32) -> u32 {
    a.checked_shl(b).unwrap_or(0)
}

fn shift_right(a: u32, b: u32) -> u32 {
    a.checked_shr(b).unwrap_or(0)
}

fn shift_right_signed(a: u32, b: u32) -> u32 {
    ((a as i32) >> b.min(31)) as u32
}

fn bit_field_insert(a: u64, b: u64, position: u32, length: u32, bits: u32) -> u64 {
    let position = position & 0xff;
    let length = length & 0xff;
    if length == 0 || position >= bits {
        return b;
    }
    let field = if length >= 64 {
        u64::MAX
    } else {
        (1 << length) - 1
    };
    let mask = field << position;
    (b & !mask) | ((a << position) & mask)
}

fn bit_field_extract(a: u64, position: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let position = position & 0xff;
    let length = length & 0xff;
    let top = bits - 1;
    let sign = if !signed || length == 0 {
        0
    } else {
        a >> (position + length - 1).min(top) & 1
    };
    let mut out = 0;
    for bit in 0..bits {
        let source = if bit < length && position + bit <= top {
            a >> (position + bit) & 1
        } else {
            sign
        };
        out |= source << bit;
    }
    out
}

/// The bytes of `a` (0 to 3) and `b` (4 to 7) that the nibbles of `c` name; bit 3 of a nibble spreads the byte's sign.
fn permute(a: u32, b: u32, c: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut out = 0;
    for place in 0..4 {
        let pick = c >> (4 * place) & 0xf;
        let byte = (bytes >> (8 * (pick & 7))) as u32 & 0xff;
        let byte = if pick & 8 == 0 {
            byte
        } else if byte & 0x80 != 0 {
            0xff
        } else {
            0
        };
        out |= byte << (8 * place);
    }
    out
}

/// The selector that a mode of `prmt` makes of the low bits of `c`.
fn permute_mode(mode: &str) -> Option<Function> {
    Some(match mode {
        "f4e" => l3!(|a, b, c| permute(a, b, [0x3210, 0x4321, 0x5432, 0x6543][c as usize & 3])),
        "b4e" => l3!(|a, b, c| permute(a, b, [0x5670, 0x6701, 0x7012, 0x0123][c as usize & 3])),
        "rc8" => l3!(|a, b, c: u32| permute(a, b, (c & 3) * 0x1111)),
        "ecl" => l3!(|a, b, c| permute(a, b, [0x3210, 0x3211, 0x3222, 0x3333][c as usize & 3])),
        "ecr" => l3!(|a, b, c| permute(a, b, [0x0000, 0x1110, 0x2210, 0x3210][c as usize & 3])),
        "rc16" => l3!(|a, b, c: u32| permute(a, b, [0x1010, 0x3232][c as usize & 1])),
        _ => return None,
    })
}

/// Any function of three bits, by its table.
fn lookup(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut out = 0;
    for index in 0..8 {
        if table >> index & 1 != 0 {
            let x = if index & 4 != 0 { a } else { !a };
            let y = if index & 2 != 0 { b } else { !b };
            let z = if index & 1 != 0 { c } else { !c };
            out |= x & y & z;
        }
    }
    out
}

fn funnel(left: bool, clamp: bool) -> Function {
    match (left, clamp) {
        (true, true) => l3!(|a: u32, b: u32, c: u32| {
            let pair = u64::from(b) << 32 | u64::from(a);
            ((pair << c.min(32)) >> 32) as u32
        }),
        (true, false) => l3!(|a: u32, b: u32, c: u32| {
            let pair = u64::from(b) << 32 | u64::from(a);
            ((pair << (c & 31)) >> 32) as u32
        }),
        (false, true) => l3!(|a: u32, b: u32, c: u32| {
            let pair = u64::from(b) << 32 | u64::from(a);
            (pair >> c.min(32)) as u32
        }),
        (false, false) => l3!(|a: u32, b: u32, c: u32| {
            let pair = u64::from(b) << 32 | u64::from(a);
            (pair >> (c & 31)) as u32
        }),
    }
}

/// The function of an integer opcode.
pub(super) fn function(base: &str, qualifiers: &[&str], ty: Ty) -> Option<Function> {
    let has = |name: &str| qualifiers.contains(&name);
    match base {
        "mul" | "mad" => return product(base == "mad", qualifiers, ty),
        "shf" => return Some(funnel(has("l"), has("clamp"))),
        "prmt" => {
            return Some(
                qualifiers
                    .iter()
                    .find_map(|mode| permute_mode(mode))
                    .unwrap_or(l3!(permute)),
            );
        }
        "lop3" => return Some(Function::L4(|a, b, c, d| map4(a, b, c, d, lookup))),
        _ => {}
    }
    match ty.size() {
        1 | 2 => narrow(base, ty),
        4 => word(base, qualifiers, ty),
        8 => wide(base, ty),
        _ => None,
    }
}

fn narrow(base: &str, ty: Ty) -> Option<Function> {
    let signed = ty.is_signed();
    Some(match base {
        "mov" => l1!(low16),
        "add" => l2!(|a, b| low16(a.wrapping_add(b))),
        "sub" => l2!(|a, b| low16(a.wrapping_sub(b))),
        "and" => l2!(|a, b| a & b),
        "or" => l2!(|a, b| a | b),
        "xor" => l2!(|a, b| a ^ b),
        "not" => l1!(|a| low16(!a)),
        "cnot" => l1!(|a| u32::from(a == 0)),
        "neg" => l1!(|a: u32| low16(a.wrapping_neg())),
        "abs" => l1!(|a| put16(signed16(a).wrapping_abs())),
        "min" if signed => l2!(|a, b| put16(signed16(a).min(signed16(b)))),
        "max" if signed => l2!(|a, b| put16(signed16(a).max(signed16(b)))),
        "min" => l2!(|a: u32, b: u32| a.min(b)),
        "max" => l2!(|a: u32, b: u32| a.max(b)),
        "div" if signed => l2!(|a, b| low16(divide_signed(signed16(a) as u32, signed16(b) as u32))),
        "rem" if signed => {
            l2!(|a, b| low16(remainder_signed(signed16(a) as u32, signed16(b) as u32)))
        }
        "div" => l2!(|a, b| low16(divide_unsigned(a, b))),
        "rem" => l2!(|a, b| low16(remainder_unsigned(a, b))),
        "shl" => l2!(|a, b| low16(shift_left(a, b))),
        "shr" if signed => l2!(|a, b| put16(signed16(a) >> b.min(15))),
        "shr" => l2!(shift_right),
        _ => return None,
    })
}

fn word(base: &str, qualifiers: &[&str], ty: Ty) -> Option<Function> {
    let signed = ty.is_signed();
    let saturate = qualifiers.contains(&"sat");
    let relu = qualifiers.contains(&"relu");
    Some(match base {
        "mov" => l1!(|a| a),
        "add" if saturate => l2!(|a, b| (a as i32).saturating_add(b as i32) as u32),
        "sub" if saturate => l2!(|a, b| (a as i32).saturating_sub(b as i32) as u32),
        "add" => l2!(|a: u32, b: u32| a.wrapping_add(b)),
        "sub" => l2!(|a: u32, b: u32| a.wrapping_sub(b)),
        "and" => l2!(|a, b| a & b),
        "or" => l2!(|a, b| a | b),
        "xor" => l2!(|a, b| a ^ b),
        "not" => l1!(|a: u32| !a),
        "cnot" => l1!(|a| u32::from(a == 0)),
        "neg" => l1!(|a: u32| a.wrapping_neg()),
        "abs" => l1!(|a| (a as i32).unsigned_abs()),
        "min" if relu => l2!(|a, b| (a as i32).min(b as i32).max(0) as u32),
        "max" if relu => l2!(|a, b| (a as i32).max(b as i32).max(0) as u32),
        "min" if signed => l2!(|a, b| (a as i32).min(b as i32) as u32),
        "max" if signed => l2!(|a, b| (a as i32).max(b as i32) as u32),
        "min" => l2!(|a: u32, b: u32| a.min(b)),
        "max" => l2!(|a: u32, b: u32| a.max(b)),
        "div" if signed => l2!(divide_signed),
        "rem" if signed => l2!(remainder_signed),
        "div" => l2!(divide_unsigned),
        "rem" => l2!(remainder_unsigned),
        "shl" => l2!(shift_left),
        "shr" if signed => l2!(shift_right_signed),
        "shr" => l2!(shift_right),
        "popc" => l1!(|a: u32| a.count_ones()),
        "clz" => l1!(|a: u32| a.leading_zeros()),
        "brev" => l1!(|a: u32| a.reverse_bits()),
        "bfind" if signed => l1!(|a: u32| {
            let a = if a >> 31 != 0 { !a } else { a };
            31u32.wrapping_sub(a.leading_zeros())
        }),
        "bfind" => l1!(|a: u32| 31u32.wrapping_sub(a.leading_zeros())),
        "sad" if signed => {
            l3!(|a: u32, b: u32, c: u32| { c.wrapping_add((a as i32).abs_diff(b as i32)) })
        }
        "sad" => l3!(|a: u32, b: u32, c: u32| c.wrapping_add(a.abs_diff(b))),
        "bfe" if signed => {
            l3!(|a: u32, b, c| bit_field_extract(u64::from(a), b, c, 32, true) as u32)
        }
        "bfe" => l3!(|a: u32, b, c| bit_field_extract(u64::from(a), b, c, 32, false) as u32),
        "bfi" => Function::L4(|a, b, c, d| {
            map4(a, b, c, d, |a: u32, b: u32, c, d| {
                bit_field_insert(u64::from(a), u64::from(b), c, d, 32) as u32
            })
        }),
        "bmsk" => l2!(|a: u32, b: u32| {
            bit_field_insert(u64::MAX, 0, a.min(255), b.min(255), 32) as u32
        }),
        _ => return None,
    })
}

fn wide(base: &str, ty: Ty) -> Option<Function> {
    let signed = ty.is_signed();
    Some(match base {
        "mov" => q1!(|a| a),
        "add" => q2!(|a: u64, b: u64| a.wrapping_add(b)),
        "sub" => q2!(|a: u64, b: u64| a.wrapping_sub(b)),
        "and" => q2!(|a, b| a & b),
        "or" => q2!(|a, b| a | b),
        "xor" => q2!(|a, b| a ^ b),
        "not" => q1!(|a: u64| !a),
        "cnot" => q1!(|a| u64::from(a == 0)),
        "neg" => q1!(|a: u64| a.wrapping_neg()),
        "abs" => q1!(|a| (a as i64).unsigned_abs()),
        "min" if signed => q2!(|a, b| (a as i64).min(b as i64) as u64),
        "max" if signed => q2!(|a, b| (a as i64).max(b as i64) as u64),
        "min" => q2!(|a: u64, b: u64| a.min(b)),
        "max" => q2!(|a: u64, b: u64| a.max(b)),
        "div" if signed => q2!(wide_divide_signed),
        "rem" if signed => q2!(wide_remainder_signed),
        "div" => q2!(|a: u64, b: u64| a.checked_div(b).unwrap_or(u64::MAX)),
        "rem" => q2!(|a: u64, b: u64| a.checked_rem(b).unwrap_or(u64::MAX)),
        "shl" => Function::Shift(|a, b| map2(a, b, |a: u64, b| a.checked_shl(b).unwrap_or(0))),
        "shr" if signed => {
            Function::Shift(|a, b| map2(a, b, |a: u64, b: u32| ((a as i64) >> b.min(63)) as u64))
        }
        "shr" => Function::Shift(|a, b| map2(a, b, |a: u64, b| a.checked_shr(b).unwrap_or(0))),
        "popc" => Function::Narrow(|a| map1(a, |a: u64| a.count_ones())),
        "clz" => Function::Narrow(|a| map1(a, |a: u64| a.leading_zeros())),
        "bfind" if signed => Function::Narrow(|a| {
            map1(a, |a: u64| {
                let a = if a >> 63 != 0 { !a } else { a };
                63u32.wrapping_sub(a.leading_zeros())
            })
        }),
        "bfind" => Function::Narrow(|a| map1(a, |a: u64| 63u32.wrapping_sub(a.leading_zeros()))),
        "brev" => q1!(|a: u64| a.reverse_bits()),
        "bfe" if signed => Function::Extract(|a, b, c| {
            map3(a, b, c, |a, b, c| bit_field_extract(a, b, c, 64, true))
        }),
        "bfe" => Function::Extract(|a, b, c| {
            map3(a, b, c, |a, b, c| bit_field_extract(a, b, c, 64, false))
        }),
        "bfi" => Function::Insert(|a, b, c, d| {
            map4(a, b, c, d, |a, b, c, d| bit_field_insert(a, b, c, d, 64))
        }),
        _ => return None,
    })
}

fn product(adds: bool, qualifiers: &[&str], ty: Ty) -> Option<Function> {
    let has = |name: &str| qualifiers.contains(&name);
    let signed = ty.is_signed();
    Some(match (ty.size(), has("wide"), has("hi"), adds) {
        (2, true, _, false) if signed => l2!(|a, b| (signed16(a) * signed16(b)) as u32),
        (2, true, _, false) => l2!(|a: u32, b: u32| a.wrapping_mul(b)),
        (2, true, _, true) if signed => {
            l3!(|a, b, c: u32| ((signed16(a) * signed16(b)) as u32).wrapping_add(c))
        }
        (2, true, _, true) => l3!(|a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
        (2, false, true, false) if signed => {
            l2!(|a, b| low16(((signed16(a) * signed16(b)) >> 16) as u32))
        }
        (2, false, true, false) => l2!(|a: u32, b: u32| a.wrapping_mul(b) >> 16),
        (2, false, false, false) => l2!(|a: u32, b: u32| low16(a.wrapping_mul(b))),
        (2, false, false, true) => {
            l3!(|a: u32, b: u32, c: u32| low16(a.wrapping_mul(b).wrapping_add(c)))
        }
        (4, true, _, false) if signed => Function::Widen2(|a, b| {
            map2(a, b, |a: u32, b: u32| {
                (i64::from(a as i32) * i64::from(b as i32)) as u64
            })
        }),
        (4, true, _, false) => {
            Function::Widen2(|a, b| map2(a, b, |a: u32, b: u32| u64::from(a) * u64::from(b)))
        }
        (4, true, _, true) if signed => Function::Widen3(|a, b, c| {
            map3(a, b, c, |a: u32, b: u32, c: u64| {
                ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c)
            })
        }),
        (4, true, _, true) => Function::Widen3(|a, b, c| {
            map3(a, b, c, |a: u32, b: u32, c: u64| {
                (u64::from(a) * u64::from(b)).wrapping_add(c)
            })
        }),
        (4, false, true, false) if signed => l2!(high_signed),
        (4, false, true, false) => l2!(high_unsigned),
        (4, false, true, true) if signed => {
            l3!(|a, b, c: u32| high_signed(a, b).wrapping_add(c))
        }
        (4, false, true, true) => l3!(|a, b, c: u32| high_unsigned(a, b).wrapping_add(c)),
        (4, false, false, false) => l2!(|a: u32, b: u32| a.wrapping_mul(b)),
        (4, false, false, true) => {
            l3!(|a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c))
        }
        (8, false, true, false) if signed => q2!(high_signed_wide),
        (8, false, true, false) => q2!(high_unsigned_wide),
        (8, false, true, true) if signed => Function::Q3(|a, b, c| {
            map3(a, b, c, |a, b, c: u64| {
                high_signed_wide(a, b).wrapping_add(c)
            })
        }),
        (8, false, true, true) => Function::Q3(|a, b, c| {
            map3(a, b, c, |a, b, c: u64| {
                high_unsigned_wide(a, b).wrapping_add(c)
            })
        }),
        (8, false, false, false) => q2!(|a: u64, b: u64| a.wrapping_mul(b)),
        (8, false, false, true) => Function::Q3(|a, b, c| {
            map3(a, b, c, |a: u64, b: u64, c: u64| {
                a.wrapping_mul(b).wrapping_add(c)
            })
        }),
        _ => return None,
    })
}

/// The low half of a product, for multiplications that carry.
pub(crate) fn low_product() -> fn(&L, &L) -> L {
    |a, b| map2(a, b, u32::wrapping_mul)
}

/// The high half.
pub(crate) fn high_product(signed: bool) -> fn(&L, &L) -> L {
    if signed {
        |a, b| map2(a, b, high_signed)
    } else {
        |a, b| map2(a, b, high_unsigned)
    }
}

/// Sum or difference with the carry of each lane, and the new carries.
pub(crate) fn carry(a: &L, b: &L, carry: u32, subtract: bool) -> (L, u32) {
    let mut out = [0; 32];
    let mut carries = 0;
    for lane in 0..32 {
        let take = u64::from(carry >> lane & 1);
        let (x, y) = (u64::from(a[lane]), u64::from(b[lane]));
        let sum = if subtract {
            x.wrapping_sub(y).wrapping_sub(take)
        } else {
            x + y + take
        };
        out[lane] = sum as u32;
        carries |= ((sum >> 32 & 1) as u32) << lane;
    }
    (out, carries)
}

/// The same on 64 bits.
pub(crate) fn carry_wide(a: &Q, b: &Q, carry: u32, subtract: bool) -> (Q, u32) {
    let mut out = [0; 32];
    let mut carries = 0;
    for lane in 0..32 {
        let take = u128::from(carry >> lane & 1);
        let (x, y) = (u128::from(a[lane]), u128::from(b[lane]));
        let sum = if subtract {
            x.wrapping_sub(y).wrapping_sub(take)
        } else {
            x + y + take
        };
        out[lane] = sum as u64;
        carries |= ((sum >> 64 & 1) as u32) << lane;
    }
    (out, carries)
}

/// What `redux` does with two lanes.
pub(crate) fn reduction(name: &str, ty: Ty) -> Option<fn(u32, u32) -> u32> {
    Some(match name {
        "add" => u32::wrapping_add,
        "min" if ty.is_signed() => |a, b| (a as i32).min(b as i32) as u32,
        "max" if ty.is_signed() => |a, b| (a as i32).max(b as i32) as u32,
        "min" => |a, b| a.min(b),
        "max" => |a, b| a.max(b),
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        "xor" => |a, b| a ^ b,
        _ => return None,
    })
}
