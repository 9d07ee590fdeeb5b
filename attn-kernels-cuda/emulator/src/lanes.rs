//! Thirty-two lanes at once.

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// 32-bit lanes.
pub(crate) type L = [u32; LANES];
/// 64-bit lanes.
pub(crate) type Q = [u64; LANES];

/// `f` of each lane.
#[inline(always)]
pub(crate) fn map1<A: Copy, R: Copy + Default>(a: &[A; LANES], f: impl Fn(A) -> R) -> [R; LANES] {
    let mut out = [R::default(); LANES];
    for (r, &a) in out.iter_mut().zip(a) {
        *r = f(a);
    }
    out
}

/// `f` of each lane of two rows.
#[inline(always)]
pub(crate) fn map2<A: Copy, B: Copy, R: Copy + Default>(
    a: &[A; LANES],
    b: &[B; LANES],
    f: impl Fn(A, B) -> R,
) -> [R; LANES] {
    let mut out = [R::default(); LANES];
    for ((r, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *r = f(a, b);
    }
    out
}

/// `f` of each lane of three rows.
#[inline(always)]
pub(crate) fn map3<A: Copy, B: Copy, C: Copy, R: Copy + Default>(
    a: &[A; LANES],
    b: &[B; LANES],
    c: &[C; LANES],
    f: impl Fn(A, B, C) -> R,
) -> [R; LANES] {
    let mut out = [R::default(); LANES];
    for (((r, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
        *r = f(a, b, c);
    }
    out
}

/// `f` of each lane of four rows.
#[inline(always)]
pub(crate) fn map4<A: Copy, B: Copy, C: Copy, D: Copy, R: Copy + Default>(
    a: &[A; LANES],
    b: &[B; LANES],
    c: &[C; LANES],
    d: &[D; LANES],
    f: impl Fn(A, B, C, D) -> R,
) -> [R; LANES] {
    let mut out = [R::default(); LANES];
    for ((((r, &a), &b), &c), &d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *r = f(a, b, c, d);
    }
    out
}

/// A bit for each lane of which `f` holds.
#[inline(always)]
pub(crate) fn test2<A: Copy, B: Copy>(
    a: &[A; LANES],
    b: &[B; LANES],
    f: impl Fn(A, B) -> bool,
) -> u32 {
    let mut bits = 0;
    for (lane, (&a, &b)) in a.iter().zip(b).enumerate() {
        bits |= u32::from(f(a, b)) << lane;
    }
    bits
}

/// Writes the lanes of `mask`.
#[inline(always)]
pub(crate) fn blend<T: Copy>(to: &mut [T; LANES], from: &[T; LANES], mask: u32) {
    if mask == u32::MAX {
        *to = *from;
        return;
    }
    for (lane, (to, &from)) in to.iter_mut().zip(from).enumerate() {
        if mask >> lane & 1 != 0 {
            *to = from;
        }
    }
}

/// The lanes whose bit is set, from the first.
pub(crate) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}
