//! The tile loop of one job: some queries of one head against all keys, memory for one tile at a time.
//!
//! ```text
//! m = -inf, l = 0, o = 0
//! for each tile of keys:
//!     s = k · qᵀ            [keys][queries], queries in lanes
//!     s += bias, s = fill where masked
//!     m, l, alpha, s -> p   online softmax down the lanes
//!     o = (vᵀ · p) + o · alpha
//! out = (o / l)ᵀ
//! ```
//!
//! Departures from the FlashAttention papers: (1) everything is transposed, so that softmax needs no sums across lanes,
//! keys and values are read as they lie (as broadcasts), and only the queries are ever transposed, once a job; (2) Flax's
//! fill value is finite, which alone makes a fully masked row the mean of all values; tiles that are masked for every
//! query are passed over unless such a row is among them.

use crate::buffers::{aligned, margin};
use crate::dropout::{Dropped, Strip};
use crate::element::Stored;
use crate::heads::{row_start, write_narrowed};
use crate::hidden::{Places, any_not_finite, clean};
use crate::matrix::transpose_strided;
use crate::micro::{MAX_WIDTH, for_each_block, width};
use crate::products::Columns;
use crate::scores::{Job, KEYS, QUERIES, Scoring, lane_index, tiles_of_keys};
use crate::shared::Shared;
use crate::simd::{Lane, Simd, SimdBase, lanes, load};
use crate::softmax::{self, Running};
use crate::tokens::{Head, Tokens};
use crate::visibility::Seen;
use attn_core::{AttentionShape, FullyMasked, Layout, Stage};
use core::ops::Range;

/// What all jobs of a call share.
pub(crate) struct Call<'a, T: Stored> {
    pub(crate) scoring: Scoring<'a, T>,
    pub(crate) value: Tokens<'a, T>,
    pub(crate) dropout: Option<Dropped<T::Acc>>,
    pub(crate) out: Shared<'a, T>,
    pub(crate) out_layout: Layout,
    /// The weights, or scores at an earlier stage.
    pub(crate) weights: Option<(Shared<'a, T::Acc>, Layout)>,
    pub(crate) stage: Stage,
    pub(crate) statistics: Option<(Shared<'a, T::Acc>, Layout)>,
}

/// The tiles of one worker, cut from its scratch.
pub(crate) struct Tiles<'a, A> {
    /// Scaled queries, `[strip][depth][width]`.
    q: &'a mut [A],
    /// Scores, then weights, `[strip][KEYS][width]`.
    p: &'a mut [A],
    /// Output so far, `[strip][value_depth][width]`.
    o: &'a mut [A],
    k: &'a mut [A],
    v: &'a mut [A],
    m: &'a mut [A],
    l: &'a mut [A],
    alpha: &'a mut [A],
    /// Dropout's factors of one strip.
    keep: &'a mut [A],
}

impl<'a, A: Lane> Tiles<'a, A> {
    /// Elements of scratch for one worker.
    pub(crate) const fn size(shape: &AttentionShape) -> usize {
        let (depth, value_depth) = (shape.depth, shape.value_depth);
        let sum = depth.saturating_add(value_depth);
        (QUERIES + KEYS)
            .saturating_mul(sum)
            .saturating_add(KEYS * QUERIES + KEYS * MAX_WIDTH + 3 * QUERIES + margin::<A>())
    }

    /// Cuts `scratch`, which has at least [`Tiles::size`] elements.
    pub(crate) fn cut(scratch: &'a mut [A], shape: &AttentionShape) -> Self {
        let mut rest = aligned(scratch);
        let mut cut = |len: usize| {
            let (head, tail) = core::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            head
        };
        // Multiples of the alignment first, so that each begins aligned.
        Self {
            p: cut(KEYS * QUERIES),
            keep: cut(KEYS * MAX_WIDTH),
            m: cut(QUERIES),
            l: cut(QUERIES),
            alpha: cut(QUERIES),
            q: cut(QUERIES * shape.depth),
            o: cut(QUERIES * shape.value_depth),
            k: cut(KEYS * shape.depth),
            v: cut(KEYS * shape.value_depth),
        }
    }
}

impl<A> Tiles<'_, A> {
    /// Room for a row of values.
    pub(crate) fn row(&mut self) -> &mut [A] {
        self.v
    }
}

impl<T: Stored> Call<'_, T> {
    /// Computes one job.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(&self, simd: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        let scoring = &self.scoring;
        let (key, value) = (scoring.keys(job), self.values(job));
        scoring.load_queries(simd, job, tiles.q, tiles.k);
        let sink = scoring.sink(job);
        tiles.m.fill(sink.unwrap_or(T::Acc::NEG_INFINITY));
        tiles.l.fill(T::Acc::default());
        tiles.o.fill(T::Acc::default());
        for keys in scoring.tiles(job, 1) {
            let k = key.tile(simd, keys.clone(), tiles.k);
            let seen = scoring.score(simd, job, keys.clone(), tiles.q, k, tiles.p);
            self.accumulate(simd, job, keys, &value, seen, tiles);
        }
        if let Some(sink) = sink {
            softmax::add_sink(simd, sink, tiles.m, tiles.l);
        }
        self.write_statistics(job, tiles.m, tiles.l);
        self.finish_sums(job, tiles.l);
        self.write_output(simd, job, tiles);
        if self.weights.is_some() {
            self.write_weights(simd, job, &key, tiles);
        }
    }

    /// The values of a job.
    pub(crate) fn values(&self, job: &Job) -> Head<'_, '_, T> {
        (self.value).head(job.batch, self.scoring.shape.key_head(job.head))
    }

    /// Online softmax and the sum of values for a tile of keys.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: Range<usize>,
        value: &Head<'_, '_, T>,
        seen: Seen,
        tiles: &mut Tiles<'_, T::Acc>,
    ) {
        let (width, depth) = (width::<S, T::Acc>(), self.scoring.shape.value_depth);
        let rows = value.tile(simd, keys.clone(), tiles.v);
        let guarded = self.scoring.guards(seen) && any_not_finite(simd, rows, depth, depth);
        let v = match guarded {
            true => {
                value.copy(simd, keys.clone(), depth, tiles.v);
                clean(tiles.v);
                &*tiles.v
            }
            false => rows,
        };
        for strip in 0..job.queries.len().div_ceil(width) {
            let p = &mut tiles.p[strip * width * KEYS..][..width * keys.len()];
            let lanes = strip * width..(strip + 1) * width;
            let alpha = &mut tiles.alpha[lanes.clone()];
            let mut running = Running {
                m: &mut tiles.m[lanes.clone()],
                l: &mut tiles.l[lanes],
                alpha,
            };
            softmax::update(simd, p, &mut running);
            if let Some(dropout) = &self.dropout {
                let strip = Strip {
                    matrix: self.scoring.matrix(job),
                    query: job.queries.start + strip * width,
                    keys: keys.clone(),
                    width,
                };
                drop_weights(simd, dropout, &strip, p, tiles.keep);
            }
            let o = &mut tiles.o[strip * width * depth..][..width * depth];
            for_each_block::<S, T::Acc, _>(
                simd,
                depth,
                &mut Columns {
                    rows: v,
                    lanes: p,
                    out: o,
                    alpha: running.alpha,
                    depth,
                    keys: keys.len(),
                },
            );
        }
        if guarded {
            let places = Places {
                width,
                first: 0,
                columns: depth,
            };
            self.scoring
                .add_not_finite(job, keys, value, &places, tiles.p, tiles.o);
        }
    }

    /// A sum of 0 divides nothing where the rule is zero or where there is no key: the output is 0. Under Flax's rule it is
    /// a row whose every score is -inf, and the quotient is NaN as in Flax.
    #[inline(always)]
    pub(crate) fn finish_sums(&self, job: &Job, l: &mut [T::Acc]) {
        if self.scoring.fully_masked == FullyMasked::Zero || job.span.keys.is_empty() {
            for l in l.iter_mut().filter(|l| **l == T::Acc::default()) {
                *l = T::Acc::from(1i8);
            }
        }
    }

    #[inline(always)]
    fn write_output<S: Simd>(&self, simd: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        let (width, depth) = (width::<S, T::Acc>(), self.scoring.shape.value_depth);
        let head = self.out_head(job);
        for strip in 0..job.queries.len().div_ceil(width) {
            let o = &mut tiles.o[strip * width * depth..][..width * depth];
            divide(simd, o, &tiles.l[strip * width..][..width]);
            let count = width.min(job.queries.len() - strip * width);
            transpose_strided(simd, o, width, (depth, count), tiles.v, depth);
            for lane in 0..count {
                let query = job.queries.start + strip * width + lane;
                self.write_row(&head, query, &tiles.v[lane * depth..][..depth]);
            }
        }
    }

    /// What queries outside all sequences get. `row` has room for a row of the output.
    pub(crate) fn write_nothing(&self, job: &Job, row: &mut [T::Acc]) {
        let row = &mut row[..self.scoring.shape.value_depth];
        row.fill(T::Acc::default());
        let head = self.out_head(job);
        for query in job.queries.clone() {
            self.write_row(&head, query, row);
            self.fill_weights(job, query, 0..self.scoring.shape.key_length);
        }
        let nothing = (
            [T::Acc::NEG_INFINITY; QUERIES],
            [T::Acc::default(); QUERIES],
        );
        self.write_statistics(job, &nothing.0, &nothing.1);
    }

    /// Where the output of a job's head lies.
    pub(crate) fn out_head(&self, job: &Job) -> OutHead {
        let (first, stride) = row_start(&self.out_layout, job.batch, job.head);
        OutHead {
            first,
            stride,
            column_stride: self.out_layout.strides().last().copied().unwrap_or(1),
        }
    }

    /// Rounds and writes a row of the output.
    #[inline(always)]
    #[expect(unsafe_code, reason = "each job writes rows of its own")]
    pub(crate) fn write_row(&self, head: &OutHead, query: usize, row: &[T::Acc]) {
        let start = head.first + query * head.stride;
        // SAFETY: `Jobs` gives each job once, jobs are disjoint in (batch, head, query), a job writes only rows of its own, and
        // `ViewMut` guarantees that no two elements share an index.
        unsafe { write_narrowed(&self.out, start, head.column_stride, row) };
    }

    /// The largest score and the sum of each row.
    #[expect(unsafe_code, reason = "each job writes rows of its own")]
    pub(crate) fn write_statistics(&self, job: &Job, m: &[T::Acc], l: &[T::Acc]) {
        let Some((statistics, layout)) = &self.statistics else {
            return;
        };
        let axes = layout.shape().rank() - 1;
        let first = self.scoring.matrix(job) * self.scoring.shape.query_length;
        let stride = layout.strides()[axes];
        for (i, query) in job.queries.clone().enumerate() {
            let start = layout.base(axes, first + query);
            // SAFETY: `Jobs` gives each job once, jobs are disjoint in (batch, head, query), a job writes only rows of its own, and
            // `ViewMut` guarantees that no two elements share an index.
            unsafe { statistics.write(start, stride, &[m[i], l[i]]) };
        }
    }

    /// A second pass over the keys: weights from the final `m` and `l`, or scores at the stage that is asked for.
    #[inline(always)]
    fn write_weights<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        key: &Head<'_, '_, T>,
        tiles: &mut Tiles<'_, T::Acc>,
    ) {
        let width = width::<S, T::Acc>();
        self.write_weights_outside(job);
        for keys in tiles_of_keys(&job.span.keys, job.span.keys.clone()) {
            let k = key.tile(simd, keys.clone(), tiles.k);
            (self.scoring).multiply(simd, job, keys.len(), tiles.q, k, tiles.p);
            self.stage(simd, width, job, keys.clone(), tiles.p);
            if self.stage == Stage::Softmax {
                for strip in 0..job.queries.len().div_ceil(width) {
                    let lanes = strip * width..(strip + 1) * width;
                    let p = &mut tiles.p[strip * width * KEYS..][..width * keys.len()];
                    softmax::normalized(simd, p, &tiles.m[lanes.clone()], &tiles.l[lanes]);
                }
            }
            for (i, query) in job.queries.clone().enumerate() {
                let mut row = [T::Acc::default(); KEYS];
                for (n, to) in row[..keys.len()].iter_mut().enumerate() {
                    *to = tiles.p[lane_index(width, i, n)];
                }
                self.write_row_of_weights(job, query, keys.start, &row[..keys.len()]);
            }
        }
    }
}

/// Where the output of a head lies: its first row, elements from one row and from one column to the next.
pub(crate) struct OutHead {
    first: usize,
    stride: usize,
    column_stride: usize,
}

/// Multiplies a strip of weights by dropout's factors.
#[inline(always)]
fn drop_weights<S: Simd, A: Lane>(
    simd: S,
    dropout: &Dropped<A>,
    strip: &Strip,
    p: &mut [A],
    factors: &mut [A],
) {
    let factors = &mut factors[..p.len()];
    dropout.factors(simd, strip, factors);
    for (p, factor) in p.iter_mut().zip(factors.iter()) {
        *p *= *factor;
    }
}

#[inline(always)]
fn divide<S: Simd, A: Lane>(simd: S, o: &mut [A], l: &[A]) {
    let (lanes, width) = (lanes::<S, A>(), l.len());
    for row in o.chunks_exact_mut(width) {
        for (o, l) in row.chunks_exact_mut(lanes).zip(l.chunks_exact(lanes)) {
            (load::<S, A>(simd, o) / load::<S, A>(simd, l)).store_slice(o);
        }
    }
}
