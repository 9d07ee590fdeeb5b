//! What atomic operations compute.

use crate::{
    alu::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16},
    program::Atomic,
    types::Ty,
};

/// The new value of a variable that holds `old`; `other` is what a comparison stores.
pub(crate) fn apply(kind: Atomic, ty: Ty, old: u64, operand: u64, other: u64) -> u64 {
    let value = match kind {
        Atomic::Exchange => operand,
        Atomic::CompareExchange => {
            let mask = mask(ty);
            if old & mask == operand & mask {
                other
            } else {
                old
            }
        }
        Atomic::And => old & operand,
        Atomic::Or => old | operand,
        Atomic::Xor => old ^ operand,
        Atomic::Inc => {
            if old >= operand & mask(ty) {
                0
            } else {
                old + 1
            }
        }
        Atomic::Dec => {
            if old == 0 || old > operand & mask(ty) {
                operand
            } else {
                old - 1
            }
        }
        Atomic::Add => add(ty, old, operand),
        Atomic::Min => pick(ty, old, operand, true),
        Atomic::Max => pick(ty, old, operand, false),
    };
    value & mask(ty)
}

fn mask(ty: Ty) -> u64 {
    match ty.size() {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

fn half(old: u32, operand: u32) -> u32 {
    f32_to_f16(f16_to_f32(old) + f16_to_f32(operand))
}

fn bhalf(old: u32, operand: u32) -> u32 {
    f32_to_bf16(bf16_to_f32(old) + bf16_to_f32(operand))
}

fn add(ty: Ty, old: u64, operand: u64) -> u64 {
    let (a, b) = (old as u32, operand as u32);
    match ty {
        Ty::F32 => u64::from((f32::from_bits(a) + f32::from_bits(b)).to_bits()),
        Ty::F64 => (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
        Ty::F16 => u64::from(half(a, b)),
        Ty::BF16 => u64::from(bhalf(a, b)),
        Ty::F16x2 => u64::from(half(a, b) | half(a >> 16, b >> 16) << 16),
        Ty::BF16x2 => u64::from(bhalf(a, b) | bhalf(a >> 16, b >> 16) << 16),
        _ => old.wrapping_add(operand),
    }
}

fn pick(ty: Ty, old: u64, operand: u64, smaller: bool) -> u64 {
    let less = match ty {
        Ty::S32 => (operand as i32) < (old as i32),
        Ty::S64 => (operand as i64) < (old as i64),
        Ty::F32 => f32::from_bits(operand as u32) < f32::from_bits(old as u32),
        Ty::F64 => f64::from_bits(operand) < f64::from_bits(old),
        _ => operand & mask(ty) < old,
    };
    if less == smaller { operand } else { old }
}
