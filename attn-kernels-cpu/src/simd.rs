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
    /// Below it, `2^x` counts as 0: the smallest normal number's exponent.
    const MIN_EXPONENT: Self;
    /// The most negative finite number: Flax's fill value.
    const LOWEST: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// `log2(e)`.
    const LOG2_E: Self;
    /// Coefficients `c1, c2, …` of `2^f = 1 + c1 f + c2 f² + …` on `[-1/2, 1/2]`, from Chebyshev nodes.
    const EXP2: &'static [Self];
}

impl Lane for f32 {
    const ROUND: Self = 12_582_912.0; // 1.5 * 2^23
    const EXPONENT: u32 = 23;
    const MIN_EXPONENT: Self = -126.0;
    const LOWEST: Self = Self::MIN;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const LOG2_E: Self = core::f32::consts::LOG2_E;
    // Relative error of the polynomial alone: 2^-27.5.
    const EXP2: &'static [Self] = &[
        core::f32::consts::LN_2,
        0.240_226_5,
        0.055_503_57,
        0.009_618_083,
        0.001_339_086_3,
        0.000_154_531_63,
    ];
}

impl Lane for f64 {
    const ROUND: Self = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const EXPONENT: u32 = 52;
    const MIN_EXPONENT: Self = -1022.0;
    const LOWEST: Self = Self::MIN;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const LOG2_E: Self = core::f64::consts::LOG2_E;
    // Relative error of the polynomial alone: 2^-62.9.
    const EXP2: &'static [Self] = &[
        core::f64::consts::LN_2,
        0.240_226_506_959_100_72,
        0.055_504_108_664_821_625,
        0.009_618_129_107_628_48,
        0.001_333_355_814_640_647,
        0.000_154_035_303_933_707_34,
        1.525_273_384_155_677_3e-5,
        1.321_548_680_870_556_3e-6,
        1.017_805_708_773_394_1e-7,
        7.054_897_304_155_499_5e-9,
        4.455_817_908_336_065e-10,
        2.572_932_417_736_230_5e-11,
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
