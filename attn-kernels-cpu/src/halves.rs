//! `f16` converted by the machine's own instructions, which no compiler makes of the plain ones in [`element`](crate::element).

use crate::simd::Simd;
use attn_core::f16;

/// Widens as many of the first elements as there are whole vectors of, and gives their number: 0 on a machine without such instructions.
#[inline(always)]
pub(crate) fn widen<S: Simd>(simd: S, from: &[f16], to: &mut [f32]) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let level = simd.level();
        if let Some(avx512) = level.as_avx512() {
            x86::widen_avx512(avx512, bytemuck::cast_slice(from), to);
            return from.len() / 16 * 16;
        }
        if let Some(avx2) = level.as_avx2() {
            x86::widen_avx2(avx2, bytemuck::cast_slice(from), to);
            return from.len() / 8 * 8;
        }
    }
    let _ = (simd, from, to);
    0
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use crate::simd::SimdBase;
    use core::arch::x86_64::{_mm256_cvtph_ps, _mm512_cvtph_ps};
    use fearless_simd::{SimdFrom, f32x8, f32x16, kernel, u16x8, u16x16};

    kernel!(
        #[inline]
        pub(super) fn widen_avx512(avx512: Avx512, from: &[u16], to: &mut [f32]) {
            for (from, to) in from.chunks_exact(16).zip(to.chunks_exact_mut(16)) {
                let half = u16x16::from_slice(avx512, from);
                f32x16::simd_from(avx512, _mm512_cvtph_ps(half.into())).store_slice(to);
            }
        }
    );

    kernel!(
        #[inline]
        pub(super) fn widen_avx2(avx2: Avx2, from: &[u16], to: &mut [f32]) {
            for (from, to) in from.chunks_exact(8).zip(to.chunks_exact_mut(8)) {
                let half = u16x8::from_slice(avx2, from);
                f32x8::simd_from(avx2, _mm256_cvtph_ps(half.into())).store_slice(to);
            }
        }
    );
}

#[cfg(test)]
mod tests {
    use crate::element::Stored;
    use crate::isa::Isa;
    use crate::simd::{Kernel, Level, Simd};
    use attn_core::f16;

    const PIECE: usize = 37;

    struct Widen<'a>(&'a [f16], &'a mut [f32]);

    impl Kernel for Widen<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            f16::widen_on(simd, self.0, self.1);
        }
    }

    #[test]
    fn every_pattern_widens_alike_on_every_instruction_set() {
        for level in Isa::ALL.into_iter().filter_map(Level::find) {
            // Pieces that are no whole number of vectors, so that there is a rest.
            for first in (0..=u16::MAX).step_by(PIECE) {
                let mut halves = [f16::ZERO; PIECE];
                for (half, bits) in halves.iter_mut().zip(first..=u16::MAX) {
                    *half = f16::from_bits(bits);
                }
                let mut wide = [0.0; PIECE];
                level.dispatch(Widen(&halves, &mut wide));
                for (half, wide) in halves.iter().zip(wide) {
                    let same = wide.to_bits() == half.to_f32().to_bits();
                    assert!(
                        same || wide.is_nan() && half.is_nan(),
                        "{half:?} {wide} {level:?}"
                    );
                }
            }
        }
    }
}
