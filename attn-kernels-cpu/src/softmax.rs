//! The online softmax of one strip: queries in lanes, keys down the rows, in base 2.
//!
//! For the scores `s` (already times `log2 e`) of a tile of keys, with `m` the largest score so far, `l` the sum so far:
//!
//! ```text
//! m' = max(m, max_k s[k]);  alpha = 2^(m - m');  p[k] = 2^(s[k] - m');  l = l · alpha + Σ_k p[k]
//! ```
//!
//! Departures: (1) where `m'` is -inf (no key seen, or every score -inf) 0 stands for it, so that `p` is 0, not NaN; (2) `Σ` has a
//! fixed order, sixteen partial sums (key index mod 16) added as a tree, which an implementation with keys in lanes can
//! follow too.

use crate::micro::width;
use crate::simd::{Lane, Select, Simd, SimdBase, SimdFloat, Vector, lanes, load, splat};

/// Partial sums of [`update`].
const PARTIALS: usize = 16;

/// `2^x` for `x <= 0`, within 2 units in the last place for `f32` and `f64`; 0 below the smallest normal number; NaN for NaN.
///
/// `x` is split into an integer, which becomes the exponent, and `f` in `[-1/2, 1/2]` for a polynomial.
#[inline(always)]
pub(crate) fn exp2<S: Simd, A: Lane>(simd: S, x: Vector<S, A>) -> Vector<S, A> {
    let shifted = x + splat(simd, A::ROUND);
    let fraction = x - (shifted - splat(simd, A::ROUND));
    let (&highest, rest) = A::EXP2.split_last().unwrap_or((&A::ROUND, &[]));
    let mut poly = splat(simd, highest);
    for &coefficient in rest.iter().rev() {
        poly = poly.mul_add(fraction, splat(simd, coefficient));
    }
    poly = poly.mul_add(fraction, splat(simd, one::<A>()));
    let scaled = Vector::<S, A>::from_bits(poly.to_bits() + (shifted.to_bits() << A::EXPONENT));
    x.simd_lt(splat(simd, A::MIN_EXPONENT))
        .select(splat(simd, A::default()), scaled)
}

#[inline(always)]
fn one<A: Lane>() -> A {
    A::from(1i8)
}

/// The running state of a strip, [`width`] queries each.
pub(crate) struct Running<'a, A> {
    /// Largest score so far.
    pub(crate) m: &'a mut [A],
    /// Sum of the exponentials so far.
    pub(crate) l: &'a mut [A],
    /// Factor on what was summed before this tile.
    pub(crate) alpha: &'a mut [A],
}

/// One step of the recurrence: `scores` (`[keys][width]`) become `p`.
#[inline(always)]
pub(crate) fn update<S: Simd, A: Lane>(simd: S, scores: &mut [A], running: &mut Running<'_, A>) {
    let (lanes, width) = (lanes::<S, A>(), width::<S, A>());
    for first in (0..width).step_by(lanes) {
        let range = first..first + lanes;
        let old = load::<S, A>(simd, &running.m[range.clone()]);
        let new = scores
            .chunks_exact(width)
            .fold(old, |m, row| m.max(load::<S, A>(simd, &row[range.clone()])));
        let safe = finite_or_zero::<S, A>(simd, new);
        let alpha = exp2::<S, A>(simd, old - safe);
        let mut partial = [splat(simd, A::default()); PARTIALS];
        for rows in scores.chunks_mut(PARTIALS * width) {
            for (row, partial) in rows.chunks_exact_mut(width).zip(&mut partial) {
                let row = &mut row[range.clone()];
                let p = exp2::<S, A>(simd, load::<S, A>(simd, row) - safe);
                p.store_slice(row);
                *partial += p;
            }
        }
        let sum = tree::<S, A>(partial);
        load::<S, A>(simd, &running.l[range.clone()])
            .mul_add(alpha, sum)
            .store_slice(&mut running.l[range.clone()]);
        new.store_slice(&mut running.m[range.clone()]);
        alpha.store_slice(&mut running.alpha[range]);
    }
}

/// Turns `scores` into weights by the final `m` and `l`: the second look at a tile when weights are asked for.
#[inline(always)]
pub(crate) fn normalized<S: Simd, A: Lane>(simd: S, scores: &mut [A], m: &[A], l: &[A]) {
    let (lanes, width) = (lanes::<S, A>(), width::<S, A>());
    for first in (0..width).step_by(lanes) {
        let range = first..first + lanes;
        let safe = finite_or_zero::<S, A>(simd, load::<S, A>(simd, &m[range.clone()]));
        let l = load::<S, A>(simd, &l[range.clone()]);
        for row in scores.chunks_exact_mut(width) {
            let row = &mut row[range.clone()];
            (exp2::<S, A>(simd, load::<S, A>(simd, row) - safe) / l).store_slice(row);
        }
    }
}

#[inline(always)]
fn finite_or_zero<S: Simd, A: Lane>(simd: S, m: Vector<S, A>) -> Vector<S, A> {
    m.simd_eq(splat(simd, A::NEG_INFINITY))
        .select(splat(simd, A::default()), m)
}

#[inline(always)]
fn tree<S: Simd, A: Lane>(mut partial: [Vector<S, A>; PARTIALS]) -> Vector<S, A> {
    let mut half = PARTIALS / 2;
    while half > 0 {
        for i in 0..half {
            partial[i] += partial[i + half];
        }
        half /= 2;
    }
    partial[0]
}
