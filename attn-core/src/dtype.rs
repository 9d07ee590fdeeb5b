//! Element types: the one list, what each is, and how JAX promotes mixed types.

use bytemuck::Pod;
use core::fmt;
use half::{bf16, f16};

/// Calls a macro with the one list of floating element types, each as `(type, DType variant, accumulator)`.
///
/// Every `match` over [`DType`] in the workspace is exhaustive, so a new row here makes the compiler list what is left to write.
#[macro_export]
macro_rules! for_each_dtype {
    ($callback:path) => {
        $callback! {
            (f32, F32, f32),
            (f64, F64, f64),
            ($crate::f16, F16, f32),
            ($crate::bf16, BF16, f32),
        }
    };
}

/// A floating type that attention computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: binary32 cut to 16 bits.
    BF16,
}

impl DType {
    /// Every dtype, in the order of the one list.
    pub const ALL: [Self; 4] = [Self::F32, Self::F64, Self::F16, Self::BF16];

    /// numpy's name: `float32`, `float64`, `float16`, `bfloat16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.scalar().name()
    }

    /// The same type among all scalar types.
    #[must_use]
    pub const fn scalar(self) -> ScalarType {
        match self {
            Self::F32 => ScalarType::F32,
            Self::F64 => ScalarType::F64,
            Self::F16 => ScalarType::F16,
            Self::BF16 => ScalarType::BF16,
        }
    }

    /// JAX's promotion of two floating types: `bf16 + f16 -> f32`, anything with a wider type gives the wider.
    #[must_use]
    pub const fn promote(self, other: Self) -> Self {
        match (self, other) {
            (Self::F64, _) | (_, Self::F64) => Self::F64,
            (Self::F16, Self::F16) => Self::F16,
            (Self::BF16, Self::BF16) => Self::BF16,
            _ => Self::F32,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Any type that an array of a weight file, an input or a mask may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScalarType {
    /// One byte, zero is false.
    Bool,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 64-bit integer.
    U64,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl ScalarType {
    /// Every scalar type.
    pub const ALL: [Self; 13] = [
        Self::Bool,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
    ];

    /// numpy's name, as weight files spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// The type with numpy's `name`, or `None`.
    ///
    /// ```
    /// use attn_core::ScalarType;
    /// assert_eq!(ScalarType::from_name("bfloat16"), Some(ScalarType::BF16));
    /// assert_eq!(ScalarType::from_name("complex64"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scalar| scalar.name() == name)
    }

    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The floating type, or `None` for an integer or bool.
    #[must_use]
    pub const fn float(self) -> Option<DType> {
        match self {
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::F32 => Some(DType::F32),
            Self::F64 => Some(DType::F64),
            _ => None,
        }
    }

    /// JAX's promotion as far as attention sees it: a float wins over every integer and bool (`int32 + bf16 -> bf16`,
    /// unlike numpy), two floats promote by [`DType::promote`], and without a float the result is `f32`, since
    /// Flax promotes what is not inexact with `float32`.
    ///
    /// ```
    /// use attn_core::{DType, ScalarType::*};
    /// assert_eq!(BF16.promote(F16), DType::F32);
    /// assert_eq!(I32.promote(BF16), DType::BF16);
    /// assert_eq!(Bool.promote(I64), DType::F32);
    /// ```
    #[must_use]
    pub const fn promote(self, other: Self) -> DType {
        match (self.float(), other.float()) {
            (Some(a), Some(b)) => a.promote(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => DType::F32,
        }
    }
}

impl fmt::Display for ScalarType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<DType> for ScalarType {
    fn from(dtype: DType) -> Self {
        dtype.scalar()
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that a buffer can hold: the floats of [`DType`], the bytes of a mask, the integers of lengths and of quantised caches.
pub trait Scalar: sealed::Sealed + Pod + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The type's name among all scalar types.
    const SCALAR: ScalarType;
}

impl sealed::Sealed for u8 {}
impl Scalar for u8 {
    const SCALAR: ScalarType = ScalarType::U8;
}

impl sealed::Sealed for i8 {}
impl Scalar for i8 {
    const SCALAR: ScalarType = ScalarType::I8;
}

impl sealed::Sealed for i32 {}
impl Scalar for i32 {
    const SCALAR: ScalarType = ScalarType::I32;
}

/// A floating type that attention computes in, with the type it accumulates in.
pub trait Element: Scalar + Copy + PartialOrd + Default {
    /// The type's value in [`DType`].
    const DTYPE: DType;
    /// The type that sums run in: `f32` for `f32`, `f16`, `bf16`; `f64` for `f64`. Layer norm's statistics
    /// type of Flax (`promote(dtype, float32)`) is the same.
    type Acc: Element<Acc = Self::Acc>;
    /// Widens exactly.
    fn to_acc(self) -> Self::Acc;
    /// Rounds to nearest, ties to even.
    fn from_acc(acc: Self::Acc) -> Self;
    /// Widens exactly.
    fn to_f64(self) -> f64;
    /// Rounds to nearest, ties to even; once, also to 16 bits.
    fn from_f64(value: f64) -> Self;
}

impl sealed::Sealed for f32 {}
impl Scalar for f32 {
    const SCALAR: ScalarType = ScalarType::F32;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
    type Acc = Self;
    #[inline(always)]
    fn to_acc(self) -> Self {
        self
    }
    #[inline(always)]
    fn from_acc(acc: Self) -> Self {
        acc
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as Self
    }
}

impl sealed::Sealed for f64 {}
impl Scalar for f64 {
    const SCALAR: ScalarType = ScalarType::F64;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
    type Acc = Self;
    #[inline(always)]
    fn to_acc(self) -> Self {
        self
    }
    #[inline(always)]
    fn from_acc(acc: Self) -> Self {
        acc
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
}

macro_rules! impl_half {
    ($type:ty, $variant:ident) => {
        impl sealed::Sealed for $type {}
        impl Scalar for $type {
            const SCALAR: ScalarType = ScalarType::$variant;
        }
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            type Acc = f32;
            #[inline(always)]
            fn to_acc(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn from_acc(acc: f32) -> Self {
                Self::from_f32(acc)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.to_f64()
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                Self::from_f32(round_to_odd(value))
            }
        }
    };
}

/// Rounds to `f32` so that a second rounding to 16 bits is right: an inexact result has its last bit set, hence never
/// looks like a tie. (`half` looks at the upper half of the `f64` only.)
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || nearest.is_nan() || value.is_infinite() {
        return nearest;
    }
    let away_from_zero = back.is_infinite() || (back > value) == (value > 0.0);
    let toward_zero = nearest.to_bits() - u32::from(away_from_zero && nearest != 0.0);
    f32::from_bits(toward_zero | 1)
}
impl_half!(f16, F16);
impl_half!(bf16, BF16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_is_commutative_and_idempotent() {
        for a in DType::ALL {
            assert_eq!(a.promote(a), a);
            for b in DType::ALL {
                assert_eq!(a.promote(b), b.promote(a));
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for scalar in ScalarType::ALL {
            assert_eq!(ScalarType::from_name(scalar.name()), Some(scalar));
        }
    }

    #[test]
    fn f64_rounds_once_to_16_bits() {
        // 1 + 2^-8 + 2^-40 lies above the tie of bf16; rounding through f32 would land on it and go down to even.
        let above_tie = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(
            <bf16 as Element>::from_f64(above_tie).to_f32(),
            1.0 + 2f32.powi(-7)
        );
    }
}
