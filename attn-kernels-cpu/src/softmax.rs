//! The online softmax of one strip: queries in lanes, keys down the rows.
//!
//! For the scores `s` of a tile of keys, with `m` the largest score so far, `l` the sum so far:
//!
//! ```text
//! m' = max(m, max_k s[k]);  alpha = e^(m - m');  p[k] = e^(s[k] - m');  l = l · alpha + Σ_k p[k]
//! ```
//!
//! Departures: (1) where `m'` is -inf (no key seen, or every score -inf) 0 stands for it, so that `p` is 0, not NaN; (2) `Σ` has a
//! fixed order, sixteen partial sums (key index mod 16) added as a tree, which an implementation with keys in lanes can
//! follow too.

use crate::micro::width;
use crate::simd::{Lane, Select, Simd, SimdBase, SimdFloat, Vector, lanes, load, splat};

/// Partial sums of [`update`].
pub(crate) const PARTIALS: usize = 16;

/// `e^x` for `x <= 0`, within 1 unit in the last place with fused multiply-add, 2 without; 0 below the smallest normal
/// number; NaN for NaN.
///
/// `x = n ln(2) + r`: `n` becomes the exponent, a polynomial serves `r` in `[-ln(2)/2, ln(2)/2]`. `ln(2)` comes in two parts, so that
/// `r` is as exact as `x`. A power of 2 with `log2(e)` folded into the scores would save two operations of fifteen; measured
/// against plain arithmetic it made the output's error up to four times as large, since the folded factor is rounded
/// once for every query element and once more for the score.
#[inline(always)]
pub(crate) fn exp<S: Simd, A: Lane>(simd: S, x: Vector<S, A>) -> Vector<S, A> {
    let (less_one, shifted) = reduced::<S, A>(simd, x);
    let result = less_one + splat(simd, one::<A>());
    let scaled = Vector::<S, A>::from_bits(result.to_bits() + (shifted.to_bits() << A::EXPONENT));
    x.simd_lt(splat(simd, A::MIN_EXP))
        .select(splat(simd, A::default()), scaled)
}

/// `e^x`, as [`exp`] has it, and `e^x - 1`, exact to some units in its last place near 0 too.
#[inline(always)]
pub(crate) fn exp_and_m1<S: Simd, A: Lane>(simd: S, x: Vector<S, A>) -> [Vector<S, A>; 2] {
    let (less_one, shifted) = reduced::<S, A>(simd, x);
    let (zero, one) = (splat::<S, A>(simd, A::default()), splat(simd, one::<A>()));
    let power = Vector::<S, A>::from_bits(one.to_bits() + (shifted.to_bits() << A::EXPONENT));
    let is_small = x.simd_lt(splat(simd, A::MIN_EXP));
    [
        is_small.select(zero, less_one.mul_add(power, power)),
        is_small.select(zero - one, less_one.mul_add(power, power - one)),
    ]
}

/// `e^r - 1` and, in the low bits, `n`.
#[inline(always)]
fn reduced<S: Simd, A: Lane>(simd: S, x: Vector<S, A>) -> (Vector<S, A>, Vector<S, A>) {
    let shifted = x.mul_add(splat(simd, A::LOG2_E), splat(simd, A::ROUND));
    let n = splat(simd, A::ROUND) - shifted;
    let r = n.mul_add(splat(simd, A::LN_2[0]), x);
    let r = n.mul_add(splat(simd, A::LN_2[1]), r);
    let (&highest, rest) = A::EXP.split_last().unwrap_or((&A::ROUND, &[]));
    let mut poly = splat(simd, highest);
    for &coefficient in rest.iter().rev() {
        poly = poly.mul_add(r, splat(simd, coefficient));
    }
    ((poly * r).mul_add(r, r), shifted)
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
    simd.vectorize(
        #[inline(always)]
        || update_strip(simd, scores, running),
    );
}

#[inline(always)]
fn update_strip<S: Simd, A: Lane>(simd: S, scores: &mut [A], running: &mut Running<'_, A>) {
    let (lanes, width) = (lanes::<S, A>(), width::<S, A>());
    for first in (0..width).step_by(lanes) {
        let range = first..first + lanes;
        let old = load::<S, A>(simd, &running.m[range.clone()]);
        let new = scores
            .chunks_exact(width)
            .fold(old, |m, row| m.max(load::<S, A>(simd, &row[range.clone()])));
        let safe = finite_or_zero::<S, A>(simd, new);
        let alpha = exp::<S, A>(simd, old - safe);
        let mut partial = [splat(simd, A::default()); PARTIALS];
        for rows in scores.chunks_mut(PARTIALS * width) {
            for (row, partial) in rows.chunks_exact_mut(width).zip(&mut partial) {
                let row = &mut row[range.clone()];
                let p = exp::<S, A>(simd, load::<S, A>(simd, row) - safe);
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

/// Adds the term of a score that has no key to the sums of a strip; it was the first `m`.
#[inline(always)]
pub(crate) fn add_sink<S: Simd, A: Lane>(simd: S, sink: A, m: &[A], l: &mut [A]) {
    let lanes = lanes::<S, A>();
    for (m, l) in m.chunks_exact(lanes).zip(l.chunks_exact_mut(lanes)) {
        let safe = finite_or_zero::<S, A>(simd, load::<S, A>(simd, m));
        let term = exp::<S, A>(simd, splat::<S, A>(simd, sink) - safe);
        (load::<S, A>(simd, l) + term).store_slice(l);
    }
}

/// Turns `scores` into weights by the final `m` and `l`: the second look at a tile when weights are asked for.
#[inline(always)]
pub(crate) fn normalized<S: Simd, A: Lane>(simd: S, scores: &mut [A], m: &[A], l: &[A]) {
    simd.vectorize(
        #[inline(always)]
        || normalize_strip(simd, scores, m, l),
    );
}

#[inline(always)]
fn normalize_strip<S: Simd, A: Lane>(simd: S, scores: &mut [A], m: &[A], l: &[A]) {
    let (lanes, width) = (lanes::<S, A>(), width::<S, A>());
    for first in (0..width).step_by(lanes) {
        let range = first..first + lanes;
        let safe = finite_or_zero::<S, A>(simd, load::<S, A>(simd, &m[range.clone()]));
        let l = load::<S, A>(simd, &l[range.clone()]);
        for row in scores.chunks_exact_mut(width) {
            let row = &mut row[range.clone()];
            (exp::<S, A>(simd, load::<S, A>(simd, row) - safe) / l).store_slice(row);
        }
    }
}

#[inline(always)]
pub(crate) fn finite_or_zero<S: Simd, A: Lane>(simd: S, m: Vector<S, A>) -> Vector<S, A> {
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
