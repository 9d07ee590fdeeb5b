//! The gradients of one head, tile by tile: weights are made again from the statistics of their rows.
//!
//! ```text
//! dk = 0, dv = 0
//! for each tile of queries:
//!     delta = Σ do · o,  dq = 0     or Σ p · dp, where one tile has all keys that are seen
//!     for each tile of keys:
//!         p  = e^(score - m) / l        as in the forward pass
//!         dp = v · doᵀ · keep           keep: dropout's factors, made again
//!         ds = p · (dp - delta)         0 where the mask hides
//!         ds = ds · (1 - (s / cap)²)    where scores are capped
//!         dq += kᵀ · ds;  dk += ds · q;  dv += (p · keep) · do
//! ```
//!
//! Five products where the forward pass has two. `dk` and `dv` of a head of keys stay in scratch until its last query, so a job is a
//! whole head of keys with all heads of queries that it serves, and nothing is computed twice or shared between threads.

mod bias;
mod part;
mod relative;
mod sinks;

pub(crate) use part::Pass;

use part::Part;

use crate::buffers::{aligned, margin};
use crate::dropout::{Dropped, Strip};
use crate::element::Stored;
use crate::heads::{Heads, row_start, write_narrowed};
use crate::hidden::{Places, any_not_finite, clean};
use crate::micro::{MAX_WIDTH, for_each_block, width};
use crate::products::{Columns, OverQueries, Products};
use crate::scores::{Job, KEYS, QUERIES, Scoring, lane_index};
use crate::shared::Shared;
use crate::simd::{Lane, Select, Simd, SimdBase, lanes, load, splat};
use crate::softmax;
use crate::spans::Spans;
use crate::tokens::Tokens;
use crate::visibility::Seen;
use attn_core::{AttentionShape, HostView, Layout};
use core::ops::Range;

/// An output that several threads write, and where its elements lie.
pub(crate) type Output<'a, T> = (Shared<'a, T>, Layout);

/// What all jobs of a call share.
pub(crate) struct Call<'a, T: Stored> {
    pub(crate) scoring: Scoring<'a, T>,
    pub(crate) spans: Spans<'a>,
    pub(crate) value: Tokens<'a, T>,
    pub(crate) dropout: Option<Dropped<T::Acc>>,
    pub(crate) out: Heads<'a, T>,
    pub(crate) statistics: HostView<'a, T::Acc>,
    pub(crate) d_out: Heads<'a, T>,
    pub(crate) d_query: Output<'a, T>,
    pub(crate) d_key: Output<'a, T>,
    pub(crate) d_value: Output<'a, T>,
    /// The layout is that of the bias, broadcast to the shape of the weights.
    pub(crate) d_bias: Option<Output<'a, T::Acc>>,
    /// `[heads, distances]`.
    pub(crate) d_relative: Option<Shared<'a, T::Acc>>,
}

/// The tiles of one worker, cut from its scratch. A stride is a depth, rounded up to whole register tiles.
pub(crate) struct Tiles<'a, A> {
    /// Scaled queries, `[strip][depth][width]`.
    q: &'a mut [A],
    /// Scaled queries, `[query][stride]`.
    q_rows: &'a mut [A],
    /// Gradients of the output, `[strip][value_depth][width]`.
    d_out: &'a mut [A],
    /// Gradients of the output, `[query][stride]`.
    d_out_rows: &'a mut [A],
    /// Weights, `[strip][KEYS][width]`.
    p: &'a mut [A],
    /// Gradients of weights, then of scores.
    ds: &'a mut [A],
    /// Gradients of scaled queries, `[strip][depth][width]`.
    dq: &'a mut [A],
    /// Dropout's factors of one strip.
    keep: &'a mut [A],
    m: &'a mut [A],
    l: &'a mut [A],
    delta: &'a mut [A],
    ones: &'a mut [A],
    rows: [&'a mut [A]; 2],
    /// A tile of keys without those numbers that a mask must keep out.
    clean: &'a mut [A],
    /// Whether the queries look at one tile of keys only.
    alone: bool,
    /// Gradients of all keys of the head, `[panel][key][width]`.
    dk: &'a mut [A],
    /// Gradients of all values of the head, `[panel][key][width]`.
    dv: &'a mut [A],
    /// Where several heads share keys and values, the gradients of those before, likewise: each head's own are summed up first, in chains
    /// no longer than one head makes.
    shared: [&'a mut [A]; 2],
}

/// A depth, rounded up to whole register tiles of every instruction set.
const fn padded(depth: usize) -> usize {
    depth.div_ceil(MAX_WIDTH).saturating_mul(MAX_WIDTH)
}

impl<'a, A: Lane> Tiles<'a, A> {
    /// Elements of each buffer, in the order in which they are cut: multiples of the alignment first.
    const fn lengths(shape: &AttentionShape) -> [usize; 21] {
        let (depth, value_depth, keys) = (shape.depth, shape.value_depth, shape.key_length);
        let shared = if shape.key_heads == shape.num_heads {
            0
        } else {
            keys
        };
        let row = if depth > value_depth {
            depth
        } else {
            value_depth
        };
        [
            KEYS * QUERIES,
            KEYS * QUERIES,
            KEYS * MAX_WIDTH,
            QUERIES,
            QUERIES,
            QUERIES,
            MAX_WIDTH,
            QUERIES.saturating_mul(padded(depth)),
            QUERIES.saturating_mul(padded(value_depth)),
            keys.saturating_mul(padded(depth)),
            keys.saturating_mul(padded(value_depth)),
            shared.saturating_mul(padded(depth)),
            shared.saturating_mul(padded(value_depth)),
            QUERIES.saturating_mul(depth),
            QUERIES.saturating_mul(value_depth),
            QUERIES.saturating_mul(depth),
            keys.saturating_mul(depth),
            keys.saturating_mul(value_depth),
            KEYS.saturating_mul(depth),
            row,
            row,
        ]
    }

    /// Elements of scratch for one worker.
    pub(crate) const fn size(shape: &AttentionShape) -> usize {
        let lengths = Self::lengths(shape);
        let mut sum = margin::<A>();
        let mut i = 0;
        while i < lengths.len() {
            sum = sum.saturating_add(lengths[i]);
            i += 1;
        }
        sum
    }

    /// Cuts `scratch`, which has at least [`Tiles::size`] elements: the tiles, and room for the keys and values of a head.
    pub(crate) fn cut(scratch: &'a mut [A], shape: &AttentionShape) -> (Self, [&'a mut [A]; 2]) {
        let mut rest = aligned(scratch);
        let [
            p,
            ds,
            keep,
            m,
            l,
            delta,
            ones,
            q_rows,
            d_out_rows,
            dk,
            dv,
            shared_k,
            shared_v,
            q,
            d_out,
            dq,
            k,
            v,
            clean,
            row,
            other,
        ] = Self::lengths(shape).map(|length| {
            let (head, tail) = core::mem::take(&mut rest).split_at_mut(length);
            rest = tail;
            head
        });
        ones.fill(A::from(1i8));
        let tiles = Self {
            q,
            q_rows,
            d_out,
            d_out_rows,
            p,
            ds,
            dq,
            keep,
            m,
            l,
            delta,
            ones,
            rows: [row, other],
            clean,
            alone: false,
            dk,
            dv,
            shared: [shared_k, shared_v],
        };
        (tiles, [k, v])
    }
}

impl<A: Lane> Tiles<'_, A> {
    /// Puts what the heads before gave aside.
    fn keep_shared(&mut self) {
        self.add_shared();
        for (sum, head) in self.shared.iter_mut().zip([&mut *self.dk, &mut *self.dv]) {
            if sum.len() == head.len() {
                sum.swap_with_slice(head);
                head.fill(A::default());
            }
        }
    }

    /// Adds what the heads before gave.
    fn add_shared(&mut self) {
        for (sum, head) in self.shared.iter().zip([&mut *self.dk, &mut *self.dv]) {
            for (head, sum) in head.iter_mut().zip(sum.iter()) {
                *head += *sum;
            }
        }
    }
}

impl<T: Stored> Call<'_, T> {
    /// One job of a pass.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(
        &self,
        simd: S,
        pass: Pass,
        number: usize,
        tiles: &mut Tiles<'_, T::Acc>,
        [k, v]: [&mut [T::Acc]; 2],
    ) {
        if pass == Pass::Inputs {
            let [shared_k, shared_v] = &mut tiles.shared;
            for sum in [&mut *tiles.dk, tiles.dv, shared_k, shared_v] {
                sum.fill(T::Acc::default());
            }
        }
        let (shape, part) = (&self.scoring.shape, self.part(pass, number));
        let keys = part.keys(shape.key_length);
        for n in 0..part.matrices {
            let matrix = self.matrix_of(&part, n);
            let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
            let key_head = shape.key_head(head);
            // Gathered once for all queries: the rows of a head lie far apart, and crowd the same few sets of the cache.
            let k = (self.scoring.key.head(batch, key_head)).tile(simd, keys.clone(), k);
            let v = (self.value.head(batch, key_head)).tile(simd, keys.clone(), v);
            tiles.keep_shared();
            for (queries, span) in self.spans.tiles(batch) {
                match span {
                    Some(span) if part.has_queries(&queries) => {
                        let job = Job {
                            batch,
                            head,
                            queries,
                            span,
                        };
                        self.run_tile(simd, &part, &job, [k, v], tiles);
                    }
                    None if pass == Pass::Inputs => {
                        self.write_no_d_query([batch, head], queries, tiles.rows[0]);
                    }
                    _ => {}
                }
            }
        }
        if pass == Pass::Inputs {
            tiles.add_shared();
            self.write_keys_and_values(number, width::<S, T::Acc>(), tiles);
        }
    }

    /// What the queries of a job give.
    #[inline(always)]
    fn run_tile<S: Simd>(
        &self,
        simd: S,
        part: &Part,
        job: &Job,
        [k, v]: [&[T::Acc]; 2],
        tiles: &mut Tiles<'_, T::Acc>,
    ) {
        let (shape, width) = (&self.scoring.shape, width::<S, T::Acc>());
        self.load(simd, job, tiles);
        tiles.dq.fill(T::Acc::default());
        for keys in self.scoring.tiles(job, 1) {
            if !part.has_keys(&keys) {
                continue;
            }
            let first = keys.start - part.keys(shape.key_length).start;
            let k = &k[first * shape.depth..][..keys.len() * shape.depth];
            let v = &v[first * shape.value_depth..][..keys.len() * shape.value_depth];
            let seen = self.score_gradients(simd, job, keys.clone(), [k, v], tiles);
            match part.pass {
                Pass::Inputs => {
                    self.uncap(simd, job, keys.len(), k, tiles);
                    self.accumulate(simd, job, keys, k, seen, tiles);
                }
                Pass::Bias => self.add_to_bias(width, job, keys, tiles.ds),
                Pass::Relative => self.add_to_relative(width, job, keys, tiles.ds),
            }
        }
        if part.pass == Pass::Inputs {
            self.write_d_query(simd, job, tiles);
        }
    }

    /// The gradients of one head of keys of one batch entry.
    fn write_keys_and_values(&self, number: usize, width: usize, tiles: &mut Tiles<'_, T::Acc>) {
        let shape = &self.scoring.shape;
        let place = [number / shape.key_heads, number % shape.key_heads];
        let row = &mut *tiles.rows[0];
        write_panels(&self.d_key, place, tiles.dk, width, &mut row[..shape.depth]);
        let row = &mut row[..shape.value_depth];
        write_panels(&self.d_value, place, tiles.dv, width, row);
    }

    /// Queries and gradients of the output, as rows and transposed; statistics; `delta`.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        tiles.alone = self.scoring.tiles(job, 1).take(2).count() == 1;
        let [row, other] = &mut tiles.rows;
        self.scoring.load_queries(simd, job, tiles.q, row);
        let shape = &self.scoring.shape;
        let (depth, value_depth) = (shape.depth, shape.value_depth);
        let (width, strides) = (
            width::<S, T::Acc>(),
            [depth, value_depth].map(stride::<S, T::Acc>),
        );
        tiles.d_out.fill(T::Acc::default());
        tiles.d_out_rows.fill(T::Acc::default());
        tiles.q_rows.fill(T::Acc::default());
        tiles.m.fill(T::Acc::default());
        tiles.l.fill(T::Acc::from(1i8));
        tiles.delta.fill(T::Acc::default());
        for (i, query) in job.queries.clone().enumerate() {
            let lane = i % width;
            let q = &tiles.q[(i - lane) * depth..][..width * depth];
            let q_row = &mut tiles.q_rows[i * strides[0]..][..depth];
            for (to, from) in q_row.iter_mut().zip(q.chunks_exact(width)) {
                *to = from[lane];
            }
            let one = query..query + 1;
            let d_out_row = &mut tiles.d_out_rows[i * strides[1]..][..value_depth];
            self.d_out
                .widen(job.batch, job.head, one.clone(), value_depth, d_out_row);
            let d_out = &mut tiles.d_out[(i - lane) * value_depth..][..width * value_depth];
            for (to, from) in d_out.chunks_exact_mut(width).zip(d_out_row.iter()) {
                to[lane] = *from;
            }
            let out_row = &mut other[..value_depth];
            self.out
                .widen(job.batch, job.head, one, value_depth, out_row);
            tiles.delta[i] = dot(d_out_row, out_row);
            let [m, l] = self.statistics(job, query);
            tiles.m[i] = m;
            // A row without weights has a sum of 0, which divides nothing.
            if m != T::Acc::NEG_INFINITY || l != T::Acc::default() {
                tiles.l[i] = l;
            }
        }
    }

    fn statistics(&self, job: &Job, query: usize) -> [T::Acc; 2] {
        let layout = self.statistics.layout();
        let axes = layout.shape().rank() - 1;
        let row = self.scoring.matrix(job) * self.scoring.shape.query_length + query;
        let start = layout.base(axes, row);
        [0, layout.strides()[axes]].map(|offset| self.statistics.buf()[start + offset])
    }

    /// Weights and gradients of scores of a tile of keys, as they go into softmax; weights with dropout's factors.
    #[inline(always)]
    fn score_gradients<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: Range<usize>,
        [k, v]: [&[T::Acc]; 2],
        tiles: &mut Tiles<'_, T::Acc>,
    ) -> Seen {
        let scoring = &self.scoring;
        let (width, depth) = (width::<S, T::Acc>(), scoring.shape.value_depth);
        let seen = scoring.score(simd, job, keys.clone(), tiles.q, k, tiles.p);
        for strip in 0..job.queries.len().div_ceil(width) {
            let lanes = strip * width..(strip + 1) * width;
            let tile = strip * width * KEYS..strip * width * KEYS + width * keys.len();
            let (p, ds) = (&mut tiles.p[tile.clone()], &mut tiles.ds[tile]);
            softmax::normalized(simd, p, &tiles.m[lanes.clone()], &tiles.l[lanes.clone()]);
            let mut products = Products {
                rows: v,
                lanes: &tiles.d_out[strip * width * depth..][..width * depth],
                out: ds,
                depth,
            };
            for_each_block::<S, T::Acc, _>(simd, keys.len(), &mut products);
            let keep = self.dropout.as_ref().map(|dropout| {
                let strip = Strip {
                    matrix: scoring.matrix(job),
                    query: job.queries.start + strip * width,
                    keys: keys.clone(),
                    width,
                };
                let keep = &mut tiles.keep[..p.len()];
                dropout.factors(simd, &strip, keep);
                &*keep
            });
            let delta = &mut tiles.delta[lanes];
            if tiles.alone {
                weighted_sum(simd, p, ds, keep, delta);
            }
            through_softmax(simd, p, ds, keep, delta);
        }
        // A hidden key may have a weight, where all are hidden, or a value that is not finite.
        if seen != Seen::Everything {
            scoring.hide(width, job, keys.clone(), T::Acc::default(), tiles.ds);
        }
        if scoring.guards(seen) {
            let idle = job.queries.len()..job.queries.len().next_multiple_of(width);
            for i in idle {
                for n in 0..keys.len() {
                    let at = lane_index(width, i, n);
                    [tiles.p[at], tiles.ds[at]] = [T::Acc::default(); 2];
                }
            }
        }
        seen
    }

    /// Takes the gradients of scores through the softcap, for which the capped scores are made again.
    #[inline(always)]
    fn uncap<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: usize,
        k: &[T::Acc],
        tiles: &mut Tiles<'_, T::Acc>,
    ) {
        let terms = &self.scoring.terms;
        if !terms.is_capped() {
            return;
        }
        let (width, depth) = (width::<S, T::Acc>(), self.scoring.shape.depth);
        for strip in 0..job.queries.len().div_ceil(width) {
            let capped = &mut tiles.keep[..width * KEYS];
            let mut products = Products {
                rows: k,
                lanes: &tiles.q[strip * width * depth..][..width * depth],
                out: &mut capped[..width * keys],
                depth,
            };
            for_each_block::<S, T::Acc, _>(simd, keys, &mut products);
            terms.cap(simd, width, width, capped);
            let ds = &mut tiles.ds[strip * width * KEYS..][..width * keys];
            terms.uncap(simd, capped, ds);
        }
    }

    /// Adds a tile's part to the gradients of queries, keys and values.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: Range<usize>,
        k: &[T::Acc],
        seen: Seen,
        tiles: &mut Tiles<'_, T::Acc>,
    ) {
        let shape = &self.scoring.shape;
        let (width, depth) = (width::<S, T::Acc>(), shape.depth);
        let guarded = self.scoring.guards(seen) && any_not_finite(simd, k, depth, depth);
        let rows = match guarded {
            true => {
                let copy = &mut tiles.clean[..k.len()];
                copy.copy_from_slice(k);
                clean(copy);
                &*copy
            }
            false => k,
        };
        let strips = job.queries.len().div_ceil(width);
        for strip in 0..strips {
            let mut d_query = Columns {
                rows,
                lanes: &tiles.ds[strip * width * KEYS..][..width * keys.len()],
                out: &mut tiles.dq[strip * width * depth..][..width * depth],
                alpha: &tiles.ones[..width],
                depth,
                keys: keys.len(),
            };
            for_each_block::<S, T::Acc, _>(simd, depth, &mut d_query);
        }
        if guarded {
            let places = Places {
                width,
                first: 0,
                columns: depth,
            };
            let rows = self.scoring.keys(job);
            let (ds, dq) = (&*tiles.ds, &mut *tiles.dq);
            self.scoring
                .add_not_finite(job, keys.clone(), &rows, &places, ds, dq);
        }
        let sums = [
            (&*tiles.ds, &*tiles.q_rows, &mut *tiles.dk, shape.depth),
            (
                &*tiles.p,
                &*tiles.d_out_rows,
                &mut *tiles.dv,
                shape.value_depth,
            ),
        ];
        for (tile, rows, out, depth) in sums {
            let stride = stride::<S, T::Acc>(depth);
            for column in (0..stride).step_by(width) {
                let first = column * shape.key_length + keys.start * width;
                let mut sum = OverQueries {
                    tile,
                    rows: &rows[column..],
                    stride,
                    strips,
                    out: &mut out[first..first + keys.len() * width],
                };
                for_each_block::<S, T::Acc, _>(simd, keys.len(), &mut sum);
            }
        }
    }

    /// Zeros for queries outside all sequences.
    #[expect(unsafe_code, reason = "each job writes rows of its own")]
    fn write_no_d_query(
        &self,
        [batch, head]: [usize; 2],
        queries: Range<usize>,
        row: &mut [T::Acc],
    ) {
        let (d_query, layout) = &self.d_query;
        let (first, stride) = row_start(layout, batch, head);
        let column_stride = layout.strides().last().copied().unwrap_or(1);
        let row = &mut row[..self.scoring.shape.depth];
        row.fill(T::Acc::default());
        for query in queries {
            // SAFETY: as in `write_d_query`.
            unsafe { write_narrowed(d_query, first + query * stride, column_stride, row) };
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "each job writes rows of its own")]
    fn write_d_query<S: Simd>(&self, _: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        let (width, depth) = (width::<S, T::Acc>(), self.scoring.shape.depth);
        let (d_query, layout) = &self.d_query;
        let (first, stride) = row_start(layout, job.batch, job.head);
        let column_stride = layout.strides().last().copied().unwrap_or(1);
        let row = &mut tiles.rows[0][..depth];
        for (i, query) in job.queries.clone().enumerate() {
            let lane = i % width;
            let dq = &tiles.dq[(i - lane) * depth..][..width * depth];
            for (to, from) in row.iter_mut().zip(dq.chunks_exact(width)) {
                *to = from[lane] * self.scoring.scale;
            }
            // SAFETY: `Jobs` gives each head once, a job writes only rows of its own head, and `ViewMut` guarantees that no two
            // elements share an index.
            unsafe { write_narrowed(d_query, first + query * stride, column_stride, row) };
        }
    }
}

/// `delta` of rows that lie in one tile, from the very numbers that it is then subtracted from: `do · o` is the same but for the
/// rounding of `o`, which would stay where the difference vanishes, as it does in a row that sees one key.
#[inline(always)]
fn weighted_sum<S: Simd, A: Lane>(simd: S, p: &[A], ds: &[A], keep: Option<&[A]>, delta: &mut [A]) {
    let (lanes, width) = (lanes::<S, A>(), delta.len());
    let zero = splat(simd, A::default());
    for first in (0..width).step_by(lanes) {
        let mut sum = zero;
        for row in (first..p.len()).step_by(width) {
            let range = row..row + lanes;
            let weight = load::<S, A>(simd, &p[range.clone()]);
            let mut gradient = load::<S, A>(simd, &ds[range.clone()]);
            if let Some(keep) = keep {
                gradient *= load::<S, A>(simd, &keep[range]);
            }
            // A hidden key has no part in it, be its value what it may.
            sum += weight.simd_eq(zero).select(zero, weight * gradient);
        }
        sum.store_slice(&mut delta[first..first + lanes]);
    }
}

/// Turns `ds`, the gradient of a strip's weights, into that of its scores, and multiplies the weights by dropout's
/// factors.
#[inline(always)]
fn through_softmax<S: Simd, A: Lane>(
    simd: S,
    p: &mut [A],
    ds: &mut [A],
    keep: Option<&[A]>,
    delta: &[A],
) {
    let (lanes, width) = (lanes::<S, A>(), delta.len());
    for first in (0..width).step_by(lanes) {
        let delta = load::<S, A>(simd, &delta[first..first + lanes]);
        for row in (first..p.len()).step_by(width) {
            let range = row..row + lanes;
            let weight = load::<S, A>(simd, &p[range.clone()]);
            let mut gradient = load::<S, A>(simd, &ds[range.clone()]);
            if let Some(keep) = keep {
                let keep = load::<S, A>(simd, &keep[range.clone()]);
                gradient *= keep;
                (weight * keep).store_slice(&mut p[range.clone()]);
            }
            (weight * (gradient - delta)).store_slice(&mut ds[range]);
        }
    }
}

/// A depth, rounded up to whole register tiles.
#[inline(always)]
fn stride<S: Simd, A: Lane>(depth: usize) -> usize {
    depth.next_multiple_of(width::<S, A>())
}

/// Rounds the rows of a head, `[panel][key][width]`, and writes them. `row` is room for one.
#[inline(always)]
#[expect(unsafe_code, reason = "each job writes rows of its own")]
fn write_panels<T: Stored>(
    (to, layout): &Output<'_, T>,
    [batch, head]: [usize; 2],
    panels: &[T::Acc],
    width: usize,
    row: &mut [T::Acc],
) {
    let (first, row_stride) = row_start(layout, batch, head);
    let column_stride = layout.strides().last().copied().unwrap_or(1);
    let keys = layout.shape()[layout.shape().rank() - 3];
    for key in 0..keys {
        for (panel, row) in row.chunks_mut(width).enumerate() {
            let from = &panels[(panel * keys + key) * width..];
            row.copy_from_slice(&from[..row.len()]);
        }
        // SAFETY: `Jobs` gives each head once, a job writes only rows of its own head, and `ViewMut` guarantees that no two
        // elements share an index.
        unsafe { write_narrowed(to, first + key * row_stride, column_stride, row) };
    }
}

/// `Σ a · b` in eight partial sums.
#[inline(always)]
fn dot<A: Lane>(a: &[A], b: &[A]) -> A {
    const PARTIALS: usize = 8;
    let mut partial = [A::default(); PARTIALS];
    for (a, b) in a.chunks(PARTIALS).zip(b.chunks(PARTIALS)) {
        for ((partial, &a), &b) in partial.iter_mut().zip(a).zip(b) {
            *partial += a * b;
        }
    }
    let [a, b, c, d, e, f, g, h] = partial;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}
