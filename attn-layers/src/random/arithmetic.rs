//! Single operations in an element type, each rounded once.
//!
//! An `f64` holds the result of one operation on `f32`, `f16` or `bf16` so closely that rounding it again changes nothing
//! (53 bits are more than twice 24 and 2); so operations are done in `f64` and rounded. Only the fused one is not like that.

use attn_core::{DType, Element, bf16, f16};

/// A constant of Python as JAX makes it an array of `T`: `bfloat16` is rounded from `float32`.
pub(crate) fn constant<T: Element>(value: f64) -> T {
    match T::DTYPE {
        DType::BF16 => T::from_f64(f64::from(value as f32)),
        _ => T::from_f64(value),
    }
}

pub(crate) fn sum<T: Element>(a: T, b: T) -> T {
    T::from_f64(a.to_f64() + b.to_f64())
}

pub(crate) fn product<T: Element>(a: T, b: T) -> T {
    T::from_f64(a.to_f64() * b.to_f64())
}

pub(crate) fn quotient<T: Element>(a: T, b: T) -> T {
    T::from_f64(a.to_f64() / b.to_f64())
}

/// Square root.
pub(crate) fn root<T: Element>(a: T) -> T {
    T::from_f64(libm::sqrt(a.to_f64()))
}

pub(crate) fn negative<T: Element>(a: T) -> T {
    T::from_f64(-a.to_f64())
}

/// `a * b + c` as XLA's CPU code does it: fused in `f32` and `f64`, in two steps in 16 bits.
pub(crate) fn multiply_add<T: Element>(a: T, b: T, c: T) -> T {
    match T::DTYPE {
        DType::F64 => T::from_f64(libm::fma(a.to_f64(), b.to_f64(), c.to_f64())),
        DType::F32 => {
            let [a, b, c] = [a, b, c].map(|x| x.to_f64() as f32);
            T::from_f64(libm::fmaf(a, b, c).into())
        }
        DType::F16 | DType::BF16 => sum(product(a, b), c),
    }
}

/// The larger, or NaN if one is NaN.
pub(crate) fn maximum<T: Element>(a: T, b: T) -> T {
    if a > b || a.to_f64().is_nan() { a } else { b }
}

/// The smaller, or NaN if one is NaN.
pub(crate) fn minimum<T: Element>(a: T, b: T) -> T {
    if a < b || a.to_f64().is_nan() { a } else { b }
}

/// The next number towards infinity.
pub(crate) fn next_up<T: Element>(a: T) -> T {
    let a = a.to_f64();
    T::from_f64(match T::DTYPE {
        DType::F64 => a.next_up(),
        DType::F32 => (a as f32).next_up().into(),
        DType::F16 => {
            let bits = <f16 as Element>::from_f64(a).to_bits();
            f16::from_bits(next_up_bits(bits, f16::INFINITY.to_bits())).into()
        }
        DType::BF16 => {
            let bits = <bf16 as Element>::from_f64(a).to_bits();
            bf16::from_bits(next_up_bits(bits, bf16::INFINITY.to_bits())).into()
        }
    })
}

/// The next number towards negative infinity.
pub(crate) fn next_down<T: Element>(a: T) -> T {
    negative(next_up(negative(a)))
}

/// [`next_up`] of a number of sign and magnitude.
fn next_up_bits(bits: u16, infinity: u16) -> u16 {
    const SIGN: u16 = 0x8000;
    let magnitude = bits & !SIGN;
    if magnitude > infinity || bits == infinity {
        bits
    } else if magnitude == 0 {
        1
    } else if bits & SIGN == 0 {
        bits + 1
    } else {
        bits - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_numbers_lie_on_both_sides() {
        fn check<T: Element>(epsilon: f64) {
            assert_eq!(next_up(T::from_f64(1.0)).to_f64(), 1.0 + epsilon);
            assert_eq!(next_down(T::from_f64(1.0)).to_f64(), 1.0 - epsilon / 2.0);
            assert_eq!(next_up(T::from_f64(-1.0)).to_f64(), -1.0 + epsilon / 2.0);
            assert!(next_up(T::from_f64(0.0)) > T::from_f64(0.0));
            assert!(next_down(T::from_f64(0.0)) < T::from_f64(0.0));
            let infinity = T::from_f64(f64::INFINITY);
            assert_eq!(next_up(infinity), infinity);
            assert!(next_up(T::from_f64(f64::NAN)).to_f64().is_nan());
        }
        check::<f32>(f32::EPSILON.into());
        check::<f64>(f64::EPSILON);
        check::<f16>(f16::EPSILON.into());
        check::<bf16>(bf16::EPSILON.into());
    }

    #[test]
    fn nan_is_neither_larger_nor_smaller() {
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            assert!(maximum(a, b).is_nan() && minimum(a, b).is_nan());
        }
        assert_eq!((maximum(1.0f32, 2.0), minimum(1.0f32, 2.0)), (2.0, 1.0));
    }
}
