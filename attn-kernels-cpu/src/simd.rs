//! The only door to `fearless_simd`: vectors of accumulators, and the choice of an instruction set by value.

use crate::isa::Isa;
use attn_core::Element;
use fearless_simd::SimdFloatElement;

pub(crate) use fearless_simd::{Select, Simd, SimdBase, SimdFloat};

/// A type that sums run in, with the vector of it that an instruction set offers.
pub(crate) trait Lane: Element<Acc = Self> + SimdFloatElement {
    /// Added to a number of at most 2^21 in size, it rounds it to an integer, whose low bits end the sum's bit pattern.
    const ROUND: Self;
    /// Where the exponent begins in the bit pattern.
    const EXPONENT: u32;
    /// Below it, `e^x` counts as 0: the logarithm of the smallest normal number.
    const MIN_EXP: Self;
    /// The most negative finite number: Flax's fill value.
    const LOWEST: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// Infinity.
    const INFINITY: Self;
    /// `log2(e)`.
    const LOG2_E: Self;
    /// `ln(2)` in two parts, the first so short that its product with an exponent is exact.
    const LN_2: [Self; 2];
    /// Coefficients `c2, c3, …` of `e^r = 1 + r + c2 r² + c3 r³ + …` on `[-ln(2)/2, ln(2)/2]`, from Chebyshev nodes.
    const EXP: &'static [Self];
}

impl Lane for f32 {
    const ROUND: Self = 12_582_912.0; // 1.5 * 2^23
    const EXPONENT: u32 = 23;
    const MIN_EXP: Self = -87.336_54;
    const LOWEST: Self = Self::MIN;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const INFINITY: Self = Self::INFINITY;
    const LOG2_E: Self = core::f32::consts::LOG2_E;
    const LN_2: [Self; 2] = [0.693_359_4, -0.000_212_194_44];
    // Relative error of the polynomial alone: 2^-32.
    const EXP: &'static [Self] = &[
        0.5,
        0.166_666_67,
        0.041_666_463,
        0.008_333_310_5,
        0.001_393_373_1,
        0.000_198_910_8,
    ];
}

impl Lane for f64 {
    const ROUND: Self = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const EXPONENT: u32 = 52;
    const MIN_EXP: Self = -708.396_418_532_264_1;
    const LOWEST: Self = Self::MIN;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const INFINITY: Self = Self::INFINITY;
    const LOG2_E: Self = core::f64::consts::LOG2_E;
    const LN_2: [Self; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    // Relative error of the polynomial alone: 2^-61.9.
    const EXP: &'static [Self] = &[
        0.5,
        0.166_666_666_666_666_7,
        0.041_666_666_666_666_67,
        0.008_333_333_333_326_084,
        0.001_388_888_888_888_371_1,
        0.000_198_412_698_750_022_8,
        2.480_158_732_567_746e-5,
        2.755_725_517_000_089e-6,
        2.755_727_347_871_858e-7,
        2.510_531_272_962_210_3e-8,
        2.091_475_532_589_32e-9,
    ];
}

/// The vector of `A` that the instruction set `S` offers.
pub(crate) type Vector<S, A> = <A as SimdFloatElement>::Native<S>;

/// Lanes of a [`Vector`].
pub(crate) const fn lanes<S: Simd, A: Lane>() -> usize {
    <Vector<S, A> as SimdBase<S>>::LEN
}

/// All lanes `value`.
#[inline(always)]
pub(crate) fn splat<S: Simd, A: Lane>(simd: S, value: A) -> Vector<S, A> {
    Vector::<S, A>::splat(simd, value)
}

/// Loads exactly one vector.
#[inline(always)]
pub(crate) fn load<S: Simd, A: Lane>(simd: S, from: &[A]) -> Vector<S, A> {
    Vector::<S, A>::from_slice(simd, from)
}

/// Something to run on the instruction set that a [`Level`] proves.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The proof that this machine has an instruction set.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    Portable(fearless_simd::Fallback),
    #[cfg(target_arch = "x86_64")]
    Avx2(fearless_simd::x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(fearless_simd::x86::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(fearless_simd::aarch64::Neon),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    WasmSimd128(fearless_simd::wasm32::WasmSimd128),
}

impl Level {
    pub(crate) fn find(isa: Isa) -> Option<Self> {
        #[allow(unused_variables, reason = "not every architecture looks at it")]
        let best = fearless_simd::Level::try_detect().unwrap_or(fearless_simd::Level::baseline());
        match isa {
            Isa::Portable => Some(Self::Portable(fearless_simd::Fallback::new())),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => best.as_avx2().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => best.as_avx512().map(Self::Avx512),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => best.as_neon().map(Self::Neon),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::WasmSimd128 => best.as_wasm_simd128().map(Self::WasmSimd128),
            #[allow(
                unreachable_patterns,
                reason = "which ones are left depends on the architecture"
            )]
            _ => None,
        }
    }

    /// Runs `kernel` with the instruction set's features enabled; what is to profit must be `#[inline(always)]` from here down.
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Self::WasmSimd128(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
        }
    }
}
