//! Arithmetic of lanes: which function an opcode, its qualifiers and its type mean.
//!
//! Values of 8 and 16 bits lie in 32-bit lanes with zeros above.

mod compare;
mod convert;
mod float;
mod half;
mod integer;

pub(crate) use compare::{compare, compare_wide, test, test_wide};
pub(crate) use convert::{Conversion, Rounding, convert, fast_conversion};
pub(crate) use half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub(crate) use integer::{carry, carry_wide, high_product, low_product, reduction};

use crate::{
    lanes::{L, Q},
    types::Ty,
};

/// A function of lanes, by the widths of what it takes and gives: L is 32 bits, Q 64.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Function {
    L1(fn(&L) -> L),
    L2(fn(&L, &L) -> L),
    L3(fn(&L, &L, &L) -> L),
    L4(fn(&L, &L, &L, &L) -> L),
    Q1(fn(&Q) -> Q),
    Q2(fn(&Q, &Q) -> Q),
    Q3(fn(&Q, &Q, &Q) -> Q),
    Shift(fn(&Q, &L) -> Q),
    Extract(fn(&Q, &L, &L) -> Q),
    Insert(fn(&Q, &Q, &L, &L) -> Q),
    Widen1(fn(&L) -> Q),
    Widen2(fn(&L, &L) -> Q),
    Widen3(fn(&L, &L, &Q) -> Q),
    Narrow(fn(&Q) -> L),
}

/// The function of an opcode with its qualifiers, if there is one.
pub(crate) fn function(base: &str, qualifiers: &[&str], ty: Ty) -> Option<Function> {
    match ty {
        Ty::F32 => float::single(base, qualifiers),
        Ty::F64 => float::double(base, qualifiers),
        Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2 => half::function(base, qualifiers, ty),
        _ => integer::function(base, qualifiers, ty),
    }
}
