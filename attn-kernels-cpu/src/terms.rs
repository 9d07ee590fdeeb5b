//! What scores are besides products: the softcap, and what is added for a query and a key.
//!
//! Scores lie as `[strip][KEYS][width]`, queries in lanes; with one lane a strip is a row of keys.

use crate::modifiers::ScoreMod;
use crate::scores::{Job, KEYS, lane_index};
use crate::simd::{Lane, Select, Simd, SimdBase, Vector, lanes, load, splat};
use crate::softmax::exp_and_m1;
use attn_core::{Alignment, Dims, Element, Host, HostView, Result, Scores};
use core::ops::Range;

/// The terms of a call.
pub(crate) struct Terms<'a, A: Element> {
    cap: Option<A>,
    bias: Option<HostView<'a, A>>,
    alibi: Option<(&'a [A], Alignment)>,
    relative: Option<Table<'a, A>>,
    modifier: Option<&'a dyn ScoreMod<A>>,
}

/// A table of what distances add.
struct Table<'a, A> {
    /// `[heads, distances]`.
    table: &'a [A],
    distances: usize,
    zero: usize,
    alignment: Alignment,
}

impl<'a, A: Lane> Terms<'a, A> {
    pub(crate) fn new<T: Element<Acc = A>>(
        scores: &Scores<'a, Host, T>,
        num_heads: usize,
        weights: &Dims,
        modifier: Option<&'a dyn ScoreMod<A>>,
    ) -> Result<Self> {
        let bias = scores.bias.as_ref();
        Ok(Self {
            cap: scores.softcap.map(A::from_f64),
            bias: bias
                .map(|bias| bias.broadcast_to("bias", weights))
                .transpose()?,
            alibi: (scores.alibi).map(|alibi| (alibi.slopes.buf(), alibi.alignment)),
            relative: scores.relative.map(|relative| Table {
                table: relative.table.buf(),
                distances: relative.distances(num_heads),
                zero: relative.zero,
                alignment: relative.alignment,
            }),
            modifier,
        })
    }

    /// Whether a term may make a score infinite, as a bias may.
    pub(crate) fn may_be_infinite(&self) -> bool {
        let not_finite = |numbers: &[A]| numbers.iter().any(|number| !number.to_f64().is_finite());
        self.bias.is_some()
            || self.modifier.is_some()
            || self.alibi.is_some_and(|(slopes, _)| not_finite(slopes))
            || self
                .relative
                .as_ref()
                .is_some_and(|relative| not_finite(relative.table))
    }

    /// Whether there is anything to add to scores.
    pub(crate) const fn any_added(&self) -> bool {
        self.bias.is_some()
            || self.alibi.is_some()
            || self.relative.is_some()
            || self.modifier.is_some()
    }

    pub(crate) const fn is_capped(&self) -> bool {
        self.cap.is_some()
    }

    /// Caps the scores of a tile.
    #[inline(always)]
    pub(crate) fn cap<S: Simd>(&self, simd: S, width: usize, queries: usize, p: &mut [A]) {
        let Some(cap) = self.cap else {
            return;
        };
        let used = queries.next_multiple_of(width) * KEYS;
        simd.vectorize(
            #[inline(always)]
            || {
                let cap = splat::<S, A>(simd, cap);
                for s in p[..used].chunks_exact_mut(lanes::<S, A>()) {
                    let x = load::<S, A>(simd, s) / cap;
                    (tanh::<S, A>(simd, x) * cap).store_slice(s);
                }
            },
        );
    }

    /// Adds what there is to add for `matrix`, the job's head of its batch entry.
    pub(crate) fn add(
        &self,
        width: usize,
        job: &Job,
        matrix: usize,
        keys: Range<usize>,
        p: &mut [A],
    ) {
        if let Some(bias) = &self.bias {
            add_bias(bias, width, job, matrix, keys.clone(), p);
        }
        if let Some((slopes, alignment)) = self.alibi {
            let slope = slopes[job.head];
            for_each_distance(width, job, alignment, keys.clone(), |at, distance| {
                p[at] -= slope * A::from_f64(distance.unsigned_abs() as f64);
            });
        }
        if let Some(relative) = &self.relative {
            let row = &relative.table[job.head * relative.distances..];
            relative.for_each(width, job, keys.clone(), |at, column| p[at] += row[column]);
        }
        if let Some(modifier) = self.modifier {
            for (i, query) in job.queries.clone().enumerate() {
                let row = job.row(query, keys.clone());
                modifier.change(&row, &mut p[lane_index(width, i, 0)..], width);
            }
        }
    }

    /// Columns of the table of relative positions.
    pub(crate) fn distances(&self) -> usize {
        self.relative.as_ref().map_or(0, |table| table.distances)
    }

    /// Adds a tile's gradients of scores to those of the table's row.
    pub(crate) fn add_to_table(
        &self,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        ds: &[A],
        row: &mut [A],
    ) {
        if let Some(relative) = &self.relative {
            relative.for_each(width, job, keys, |at, column| row[column] += ds[at]);
        }
    }

    /// The factor of softcap's gradient, from the capped scores of a tile: `1 - (s / cap)²`.
    #[inline(always)]
    pub(crate) fn uncap<S: Simd>(&self, simd: S, capped: &[A], ds: &mut [A]) {
        let Some(cap) = self.cap else {
            return;
        };
        let (once, one) = (lanes::<S, A>(), splat(simd, A::from(1i8)));
        let cap = splat::<S, A>(simd, cap);
        for (ds, s) in ds.chunks_exact_mut(once).zip(capped.chunks_exact(once)) {
            let t = load::<S, A>(simd, s) / cap;
            (load::<S, A>(simd, ds) * (one - t * t)).store_slice(ds);
        }
    }
}

fn add_bias<A: Lane>(
    bias: &HostView<'_, A>,
    width: usize,
    job: &Job,
    matrix: usize,
    keys: Range<usize>,
    p: &mut [A],
) {
    let layout = bias.layout();
    let rank = layout.shape().rank();
    let strides = layout.strides();
    let matrix = layout.base(rank - 2, matrix);
    for (i, query) in job.queries.clone().enumerate() {
        let row = matrix + query * strides[rank - 2];
        for (n, key) in keys.clone().enumerate() {
            p[lane_index(width, i, n)] += bias.buf()[row + key * strides[rank - 1]];
        }
    }
}

impl<A> Table<'_, A> {
    /// Calls `each` with the place of the score of each query and key, and its column.
    #[inline(always)]
    fn for_each(
        &self,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        mut each: impl FnMut(usize, usize),
    ) {
        for_each_distance(width, job, self.alignment, keys, |at, distance| {
            let shifted = distance.saturating_add_unsigned(self.zero).max(0);
            each(at, shifted.unsigned_abs().min(self.distances - 1));
        });
    }
}

/// Calls `each` with the place of the score of each query and key, and the distance from the query's position to the key.
#[inline(always)]
fn for_each_distance(
    width: usize,
    job: &Job,
    alignment: Alignment,
    keys: Range<usize>,
    mut each: impl FnMut(usize, isize),
) {
    let span = &job.span;
    for (i, query) in job.queries.clone().enumerate() {
        let query = query - span.queries.start;
        let position = alignment.position(query, span.queries.len(), span.keys.len());
        for (n, key) in keys.clone().enumerate() {
            let distance = ((key - span.keys.start) as isize).saturating_sub(position);
            each(lane_index(width, i, n), distance);
        }
    }
}

/// `tanh(x)`: near 0 `(1 - e) / (1 + e)` with `e = e^(-2|x|)`, whose numerator loses no digits, elsewhere `1 - 2e / (1 + e)`.
#[inline(always)]
fn tanh<S: Simd, A: Lane>(simd: S, x: Vector<S, A>) -> Vector<S, A> {
    let number = |x: i8| splat::<S, A>(simd, A::from(x));
    let (zero, one) = (number(0), number(1));
    let size = x.max(zero - x);
    let [e, less_one] = exp_and_m1::<S, A>(simd, zero - (size + size));
    // From where on the second is at most 1/2.
    let is_far = e.simd_lt(splat(simd, A::from_f64(1.0 / 3.0)));
    let part = is_far.select(e + e, zero - less_one) / (one + e);
    let result = is_far.select(one - part, part);
    x.simd_lt(zero).select(zero - result, result)
}
