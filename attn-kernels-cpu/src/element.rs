//! Between a stored element and its accumulator: exact widening, narrowing to nearest even.
//!
//! The 16-bit conversions are straight-line integer and float operations, so that the compiler makes vectors of them on
//! every instruction set.

use crate::halves;
use crate::simd::{Lane, Simd};
use attn_core::{Element, bf16, f16};

/// A stored element whose accumulator has vectors.
pub(crate) trait Stored: Element<Acc: Lane> {
    /// `to[i] = from[i]`, exactly. Slices of equal length.
    fn widen(from: &[Self], to: &mut [Self::Acc]);
    /// As [`Stored::widen`], by the machine's own instructions where it has some.
    #[inline(always)]
    fn widen_on<S: Simd>(_simd: S, from: &[Self], to: &mut [Self::Acc]) {
        Self::widen(from, to);
    }
    /// `to[i] = from[i]`, rounded. Slices of equal length.
    fn narrow(from: &[Self::Acc], to: &mut [Self]);
    /// The same elements where no widening is needed.
    fn as_acc(from: &[Self]) -> Option<&[Self::Acc]>;
    /// The same elements where no rounding is needed.
    fn as_acc_mut(to: &mut [Self]) -> Option<&mut [Self::Acc]>;
}

macro_rules! stored_as_is {
    ($type:ty) => {
        impl Stored for $type {
            #[inline(always)]
            fn widen(from: &[Self], to: &mut [Self]) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn narrow(from: &[Self], to: &mut [Self]) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn as_acc(from: &[Self]) -> Option<&[Self]> {
                Some(from)
            }
            #[inline(always)]
            fn as_acc_mut(to: &mut [Self]) -> Option<&mut [Self]> {
                Some(to)
            }
        }
    };
}
stored_as_is!(f32);
stored_as_is!(f64);

macro_rules! stored_in_16_bits {
    ($type:ty, $widen:expr, $narrow:expr, $first:expr) => {
        impl Stored for $type {
            #[inline(always)]
            fn widen(from: &[Self], to: &mut [f32]) {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = $widen(from.to_bits());
                }
            }
            #[inline(always)]
            fn widen_on<S: Simd>(simd: S, from: &[Self], to: &mut [f32]) {
                let done = $first(simd, from, &mut *to);
                Self::widen(&from[done..], &mut to[done..]);
            }
            #[inline(always)]
            fn narrow(from: &[f32], to: &mut [Self]) {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = Self::from_bits($narrow(*from));
                }
            }
            #[inline(always)]
            fn as_acc(_: &[Self]) -> Option<&[f32]> {
                None
            }
            #[inline(always)]
            fn as_acc_mut(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }
        }
    };
}
stored_in_16_bits!(bf16, bf16_to_f32, f32_to_bf16, |_, _, _| 0);
stored_in_16_bits!(f16, f16_to_f32, f32_to_f16, halves::widen);

#[inline(always)]
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline(always)]
fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN stays one: its payload could round away or overflow into infinity.
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// Puts exponent and fraction where `f32` has them and corrects the exponent's bias by a product, which is exact and
/// makes subnormal numbers right too.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 127 - 15) << 23); // 2^112
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * BIAS).to_bits();
    let infinite = if bits & 0x7c00 == 0x7c00 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(finite | infinite | u32::from(bits & 0x8000) << 16)
}

/// Rounds normal results by adding half a unit to the bits, subnormal ones by adding a number whose unit in the last place
/// is theirs.
#[inline(always)]
fn f32_to_f16(value: f32) -> u16 {
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    const OVERFLOW: u32 = (127 + 16) << 23;
    const UNIT: f32 = f32::from_bits((127 - 1) << 23); // unit in the last place 2^-24
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal = magnitude
        .wrapping_sub((127 - 15) << 23)
        .wrapping_add(0xfff + ((magnitude >> 13) & 1))
        >> 13;
    let subnormal = (f32::from_bits(magnitude) + UNIT)
        .to_bits()
        .wrapping_sub(UNIT.to_bits());
    let finite = if magnitude < SMALLEST_NORMAL {
        subnormal
    } else {
        normal
    };
    let special = if value.is_nan() {
        0x7e00 | ((magnitude >> 13) & 0x3ff)
    } else {
        0x7c00
    };
    let result = if magnitude >= OVERFLOW {
        special
    } else {
        finite
    };
    (result | (bits >> 16) & 0x8000) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_pattern_widens_as_half_does_and_returns() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(f16_to_f32(bits).to_bits() == half.to_f32().to_bits() || half.is_nan());
            assert!(bf16_to_f32(bits).to_bits() == brain.to_f32().to_bits() || brain.is_nan());
            if half.is_nan() {
                assert!(f16::from_bits(f32_to_f16(f16_to_f32(bits))).is_nan());
            } else {
                assert_eq!(f32_to_f16(f16_to_f32(bits)), bits);
            }
            if brain.is_nan() {
                assert!(bf16::from_bits(f32_to_bf16(bf16_to_f32(bits))).is_nan());
            } else {
                assert_eq!(f32_to_bf16(bf16_to_f32(bits)), bits);
            }
        }
    }

    #[test]
    fn rounding_is_that_of_half() {
        // Every exponent, with fractions at, just below and just above the ties of both types.
        for high in 0..=0xffffu32 {
            for low in [
                0u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff,
            ] {
                let value = f32::from_bits(high << 16 | low);
                if value.is_nan() {
                    continue;
                }
                assert_eq!(
                    f32_to_f16(value),
                    f16::from_f32(value).to_bits(),
                    "{value:e}"
                );
                assert_eq!(
                    f32_to_bf16(value),
                    bf16::from_f32(value).to_bits(),
                    "{value:e}"
                );
            }
        }
    }
}
