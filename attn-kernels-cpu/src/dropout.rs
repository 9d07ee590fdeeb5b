//! Dropout's factors for a strip of weights, made from their counters: Threefry in vectors.
//!
//! Four vectors of counters go through the rounds side by side, since one alone would wait for itself: a round is three
//! operations deep and there are twenty. Old counters, a strip that crosses a multiple of 2^32 elements and dropout
//! of a few queries are rare; the words' own definition in `attn-core` serves them one by one.

use crate::simd::{Lane, Simd, SimdBase};
use attn_core::random::{Bits, Counters, PARITY, ROTATIONS};
use attn_core::{AttentionShape, Dropout, Result, dropout::KeepBits};
use core::ops::Range;

/// Vectors of counters that are worked on at once.
const CHAINS: usize = 4;
/// Widest vector of words of all instruction sets.
const MAX_LANES: usize = 16;

/// Dropout of a call.
pub(crate) struct Dropped<A> {
    bits: KeepBits,
    /// Factor on a weight that is kept.
    kept: A,
    /// Factor on a weight that is dropped: 0, or NaN where none is ever kept, as `0 / 0` in Flax.
    dropped: A,
}

/// A strip of weights, `[keys][width]`: which ones they are.
pub(crate) struct Strip {
    /// Head of a batch entry, batch first.
    pub(crate) matrix: usize,
    /// The query in the first lane.
    pub(crate) query: usize,
    pub(crate) keys: Range<usize>,
    pub(crate) width: usize,
}

impl<A: Lane> Dropped<A> {
    pub(crate) fn new(dropout: &Dropout, shape: &AttentionShape) -> Result<Self> {
        let kept = dropout.multiplier();
        Ok(Self {
            bits: dropout.bits(shape)?,
            kept: A::from_f64(kept),
            dropped: A::from_f64(if kept.is_nan() { kept } else { 0.0 }),
        })
    }

    /// Writes the factors of a strip to `factors`, `[keys][width]`.
    #[inline(always)]
    pub(crate) fn factors<S: Simd>(&self, simd: S, strip: &Strip, factors: &mut [A]) {
        simd.vectorize(
            #[inline(always)]
            || self.strip_factors(simd, strip, factors),
        );
    }

    #[inline(always)]
    fn strip_factors<S: Simd>(&self, simd: S, strip: &Strip, factors: &mut [A]) {
        let words = self.bits.words();
        let last = strip.query + strip.width - 1;
        let first = self.index(strip, strip.query, strip.keys.start);
        let last = self.index(strip, last, strip.keys.end.saturating_sub(1));
        let vectors = strip.width >= S::u32s::LEN;
        if vectors && words.counters() == Counters::PerElement && first >> 32 == last >> 32 {
            match words.width() {
                64 => self.in_vectors::<S, true>(simd, strip, first, factors),
                _ => self.in_vectors::<S, false>(simd, strip, first, factors),
            }
        } else {
            self.one_by_one(strip, factors);
        }
    }

    fn index(&self, strip: &Strip, query: usize, key: usize) -> u64 {
        self.bits.index(strip.matrix, query, key)
    }

    fn one_by_one(&self, strip: &Strip, factors: &mut [A]) {
        for (key, row) in strip.keys.clone().zip(factors.chunks_mut(strip.width)) {
            for (lane, factor) in row.iter_mut().enumerate() {
                let keeps = self.bits.keeps(strip.matrix, strip.query + lane, key);
                *factor = self.factor(keeps);
            }
        }
    }

    #[inline(always)]
    fn factor(&self, keeps: bool) -> A {
        if keeps { self.kept } else { self.dropped }
    }

    #[inline(always)]
    fn in_vectors<S: Simd, const WIDE: bool>(
        &self,
        simd: S,
        strip: &Strip,
        first: u64,
        factors: &mut [A],
    ) {
        let lanes = S::u32s::LEN;
        let groups = strip.width / lanes;
        // Index of the first key for each lane; the low halves are enough, the high ones are all the same.
        let per_query = self.index(strip, strip.query + 1, strip.keys.start) - first;
        let mut start = [S::u32s::splat(simd, first as u32); 2];
        for (group, start) in start.iter_mut().enumerate() {
            let mut indices = [0; MAX_LANES];
            for (lane, index) in indices.iter_mut().enumerate() {
                *index = ((group * lanes + lane) as u32).wrapping_mul(per_query as u32);
            }
            *start += S::u32s::from_slice(simd, &indices[..lanes]);
        }
        let block = Block::<S>::new(simd, self.bits.words(), first);
        for (n, factors) in factors.chunks_mut(CHAINS * lanes).enumerate() {
            let mut low = [start[0]; CHAINS];
            for (chain, low) in low.iter_mut().enumerate() {
                let vector = n * CHAINS + chain;
                *low = start[vector % groups] + S::u32s::splat(simd, (vector / groups) as u32);
            }
            let (a, b) = block.words(low);
            for (chain, factors) in factors.chunks_mut(lanes).enumerate() {
                if WIDE {
                    self.compare_wide::<S>(a[chain], b[chain], factors);
                } else {
                    self.compare::<S>(a[chain] ^ b[chain], factors);
                }
            }
        }
    }

    #[inline(always)]
    fn compare<S: Simd>(&self, words: S::u32s, factors: &mut [A]) {
        let Ok(limit) = u32::try_from(self.bits.limit()) else {
            factors.fill(self.kept);
            return;
        };
        let mut buffer = [0; MAX_LANES];
        words.store_slice(&mut buffer[..S::u32s::LEN]);
        for (factor, word) in factors.iter_mut().zip(buffer) {
            *factor = self.factor(word < limit);
        }
    }

    #[inline(always)]
    fn compare_wide<S: Simd>(&self, high: S::u32s, low: S::u32s, factors: &mut [A]) {
        let mut buffers = [[0; MAX_LANES]; 2];
        high.store_slice(&mut buffers[0][..S::u32s::LEN]);
        low.store_slice(&mut buffers[1][..S::u32s::LEN]);
        for (i, factor) in factors.iter_mut().enumerate() {
            let word = u128::from(buffers[0][i]) << 32 | u128::from(buffers[1][i]);
            *factor = self.factor(word < self.bits.limit());
        }
    }
}

/// Threefry-2x32 under one key, on [`CHAINS`] vectors of counters whose high halves are all the same.
struct Block<S: Simd> {
    schedule: [S::u32s; 3],
    high: S::u32s,
}

impl<S: Simd> Block<S> {
    #[inline(always)]
    fn new(simd: S, bits: &Bits, index: u64) -> Self {
        let [k0, k1] = bits.key().words();
        let parity = k0 ^ k1 ^ PARITY;
        Self {
            schedule: [
                S::u32s::splat(simd, k0),
                S::u32s::splat(simd, k1),
                S::u32s::splat(simd, parity),
            ],
            high: S::u32s::splat(simd, (index >> 32) as u32),
        }
    }

    #[inline(always)]
    fn words(&self, low: [S::u32s; CHAINS]) -> ([S::u32s; CHAINS], [S::u32s; CHAINS]) {
        const R: [[u32; 4]; 2] = ROTATIONS;
        let key = &self.schedule;
        let mut x = ([self.high + key[0]; CHAINS], low);
        for x1 in &mut x.1 {
            *x1 += key[1];
        }
        // Constant rotations become one instruction each where there is one.
        self.group::<{ R[0][0] }, { R[0][1] }, { R[0][2] }, { R[0][3] }>(&mut x, 1);
        self.group::<{ R[1][0] }, { R[1][1] }, { R[1][2] }, { R[1][3] }>(&mut x, 2);
        self.group::<{ R[0][0] }, { R[0][1] }, { R[0][2] }, { R[0][3] }>(&mut x, 3);
        self.group::<{ R[1][0] }, { R[1][1] }, { R[1][2] }, { R[1][3] }>(&mut x, 4);
        self.group::<{ R[0][0] }, { R[0][1] }, { R[0][2] }, { R[0][3] }>(&mut x, 5);
        x
    }

    /// Four rounds, and the key that comes after them.
    #[inline(always)]
    fn group<const A: u32, const B: u32, const C: u32, const D: u32>(
        &self,
        (x0, x1): &mut ([S::u32s; CHAINS], [S::u32s; CHAINS]),
        number: usize,
    ) {
        round::<S, A>(x0, x1);
        round::<S, B>(x0, x1);
        round::<S, C>(x0, x1);
        round::<S, D>(x0, x1);
        let added = self.schedule[(number + 1) % 3] + number as u32;
        for (x0, x1) in x0.iter_mut().zip(x1) {
            *x0 += self.schedule[number % 3];
            *x1 += added;
        }
    }
}

#[inline(always)]
fn round<S: Simd, const ROTATION: u32>(x0: &mut [S::u32s; CHAINS], x1: &mut [S::u32s; CHAINS]) {
    for (x0, x1) in x0.iter_mut().zip(x1) {
        *x0 += *x1;
        *x1 = (*x1 << ROTATION | *x1 >> (32 - ROTATION)) ^ *x0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::micro::{MAX_WIDTH, width};
    use crate::simd::Kernel;
    use attn_core::DType;
    use attn_core::random::{Convention, DefaultWidth, Key};

    /// Compares a few strips with the words' own definition.
    struct Strips<'a, A> {
        dropped: &'a Dropped<A>,
        shape: &'a AttentionShape,
    }

    impl<A: Lane> Kernel for Strips<'_, A> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let width = width::<S, A>();
            let mut factors = [A::default(); 64 * MAX_WIDTH];
            for (matrix, query, keys) in [(0, 0, 0..7), (1, 32, 5..69), (3, 90, 99..100)] {
                let count = keys.len();
                let strip = Strip {
                    matrix,
                    query,
                    keys: keys.clone(),
                    width,
                };
                self.dropped
                    .factors(simd, &strip, &mut factors[..count * width]);
                let queries = (query + width).min(self.shape.query_length) - query;
                for (n, key) in keys.enumerate() {
                    for lane in 0..queries {
                        let keeps = self.dropped.bits.keeps(matrix, query + lane, key);
                        let factor = factors[n * width + lane];
                        assert_eq!(factor, self.dropped.factor(keeps), "{matrix} {key} {lane}");
                    }
                }
            }
        }
    }

    fn check<A: Lane>(dtype: DType) {
        let shape = AttentionShape::of(
            &attn_core::Dims::new(&[2, 100, 2, 1]).unwrap(),
            &attn_core::Dims::new(&[2, 100, 2, 1]).unwrap(),
            &attn_core::Dims::new(&[2, 100, 2, 1]).unwrap(),
        )
        .unwrap();
        for counters in [Counters::PerElement, Counters::SplitInHalves] {
            for width in [DefaultWidth::Bits32, DefaultWidth::Bits64] {
                for shared in [true, false] {
                    let convention = Convention { counters, width };
                    let key = Key::from_words([7, 11]);
                    let dropout = Dropout::new(key, 0.3, dtype, shared, convention).unwrap();
                    let dropped = Dropped::<A>::new(&dropout.unwrap(), &shape).unwrap();
                    for level in Isa::ALL.into_iter().filter_map(|isa| isa.level().ok()) {
                        let (dropped, shape) = (&dropped, &shape);
                        level.dispatch(Strips { dropped, shape });
                    }
                }
            }
        }
    }

    #[test]
    fn vectors_hold_the_words_of_the_definition() {
        check::<f32>(DType::F32);
        check::<f64>(DType::F64);
    }

    #[test]
    fn a_strip_may_cross_the_end_of_the_low_counters() {
        let dims = attn_core::Dims::new(&[1 << 17, 1, 1]).unwrap();
        let shape = AttentionShape::of(&dims, &dims, &dims).unwrap();
        let key = Key::from_words([7, 11]);
        let dropout = Dropout::new(key, 0.5, DType::F32, true, Convention::default()).unwrap();
        let dropped = Dropped::<f32>::new(&dropout.unwrap(), &shape).unwrap();
        // Element 2^32 is the first of query 2^15.
        for query in [(1 << 15) - 1, 1 << 15, 1 << 16] {
            let strip = Strip {
                matrix: 0,
                query,
                keys: 0..3,
                width: 8,
            };
            let mut factors = [0.0; 24];
            dropped.factors(fearless_simd::Fallback::new(), &strip, &mut factors);
            for (n, &factor) in factors.iter().enumerate() {
                let keeps = dropped.bits.keeps(0, query + n % 8, n / 8);
                assert_eq!(factor, dropped.factor(keeps));
            }
        }
    }
}
