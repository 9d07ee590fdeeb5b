//! The tile loop of one job: some queries of one head against all keys, memory for one tile at a time.
//!
//! ```text
//! m = -inf, l = 0, o = 0
//! for each tile of keys:
//!     s = k · qᵀ            [keys][queries], queries in lanes
//!     s += bias, s = fill where masked
//!     m, l, alpha, s -> p   online softmax down the lanes
//!     o = o · alpha + vᵀ · p
//! out = (o / l)ᵀ
//! ```
//!
//! Departures from the FlashAttention papers: (1) everything is transposed, so that softmax needs no sums across lanes,
//! keys and values are read as they lie (as broadcasts), and only the queries are ever transposed, once a job; (2) Flax's
//! fill value is finite, which alone makes a fully masked row the mean of all values; tiles that are masked for every
//! query are passed over unless such a row is among them.

use crate::element::Stored;
use crate::micro::{
    self, Block, ByColumns, ByRows, for_each_block, load_row, multiply, store_row, width, zeros,
};
use crate::shared::Shared;
use crate::simd::{Lane, Simd, SimdBase, lanes, load, splat};
use crate::softmax::{self, Running};
use crate::visibility::{Seen, Visibility};
use attn_core::{AttentionShape, FullyMasked, HostView, Layout};
use core::ops::Range;

/// Queries of a job. A tile of queries, scores and output (64 × 64 × 4 bytes = 16 KiB each at depth 64) stays in L2, one
/// strip of each in L1; fewer queries would read keys and values, or widen them, more often.
pub(crate) const QUERIES: usize = 64;
/// Keys of a tile: with 64 a tile of keys, one of values and one strip of scores (4 KiB) fit the 32 KiB of L1 one after
/// the other; the softmax state is updated once per 64 keys.
pub(crate) const KEYS: usize = 64;

/// Bytes to which the tiles are aligned: a 64-byte vector that crosses a cache line costs twice.
const ALIGN: usize = 64;

/// An array `[batch..., length, heads, depth]`.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) layout: Layout,
}

impl<'a, T: Stored> Heads<'a, T> {
    pub(crate) fn new(view: &HostView<'a, T>) -> Self {
        Self {
            data: view.buf(),
            layout: *view.layout(),
        }
    }

    fn column_stride(&self) -> usize {
        self.layout.strides().last().copied().unwrap_or(1)
    }

    /// Widens the rows `rows` of a head into `to`, `depth` elements each.
    #[inline(always)]
    fn widen(
        &self,
        batch: usize,
        head: usize,
        rows: Range<usize>,
        depth: usize,
        to: &mut [T::Acc],
    ) {
        let (first, stride) = row_start(&self.layout, batch, head);
        let columns = self.column_stride();
        for (row, to) in rows.zip(to.chunks_exact_mut(depth.max(1))) {
            let start = first + row * stride;
            if columns == 1 {
                T::widen(&self.data[start..start + depth], to);
            } else {
                for (column, to) in to.iter_mut().enumerate() {
                    *to = self.data[start + column * columns].to_acc();
                }
            }
        }
    }

    /// The rows `rows` of a head as a matrix of `depth` columns without gaps: as they lie where they can be used so, else
    /// widened into `copy`.
    #[inline(always)]
    fn tile<'b>(
        &self,
        batch: usize,
        head: usize,
        rows: Range<usize>,
        depth: usize,
        copy: &'b mut [T::Acc],
    ) -> &'b [T::Acc]
    where
        'a: 'b,
    {
        let (first, stride) = row_start(&self.layout, batch, head);
        let contiguous = stride == depth && self.column_stride() == 1;
        if contiguous && let Some(data) = T::as_acc(self.data) {
            return &data[first + rows.start * stride..][..rows.len() * depth];
        }
        self.widen(batch, head, rows, depth, copy);
        copy
    }
}

/// Index of row 0 of a head in `[batch..., length, heads, depth]`, and elements from one row to the next.
fn row_start(layout: &Layout, batch: usize, head: usize) -> (usize, usize) {
    let axes = layout.shape().rank() - 3;
    (
        layout.base(axes, batch) + head * layout.strides()[axes + 1],
        layout.strides()[axes],
    )
}

/// What all jobs of a call share.
pub(crate) struct Call<'a, T: Stored> {
    pub(crate) shape: AttentionShape,
    pub(crate) query: Heads<'a, T>,
    pub(crate) key: Heads<'a, T>,
    pub(crate) value: Heads<'a, T>,
    /// Factor on the queries.
    pub(crate) scale: T::Acc,
    pub(crate) bias: Option<HostView<'a, T::Acc>>,
    pub(crate) visible: Visibility<'a>,
    pub(crate) fully_masked: FullyMasked,
    pub(crate) out: Shared<'a, T>,
    pub(crate) out_layout: Layout,
    pub(crate) weights: Option<(Shared<'a, T::Acc>, Layout)>,
}

/// One job: queries of one head.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) queries: Range<usize>,
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
    /// One row of queries or output.
    row: &'a mut [A],
}

impl<'a, A: Lane> Tiles<'a, A> {
    /// Elements of scratch for one worker.
    pub(crate) const fn size(shape: &AttentionShape) -> usize {
        let (depth, value_depth) = (shape.depth, shape.value_depth);
        let sum = depth.saturating_add(value_depth);
        let row = if depth > value_depth {
            depth
        } else {
            value_depth
        };
        (QUERIES + KEYS)
            .saturating_mul(sum)
            .saturating_add(KEYS * QUERIES + 3 * QUERIES + ALIGN / size_of::<A>())
            .saturating_add(row)
    }

    /// Cuts `scratch`, which has at least [`Tiles::size`] elements.
    pub(crate) fn cut(scratch: &'a mut [A], shape: &AttentionShape) -> Self {
        let skip = scratch
            .as_ptr()
            .align_offset(ALIGN)
            .min(ALIGN / size_of::<A>());
        let mut rest = &mut scratch[skip..];
        let mut cut = |len: usize| {
            let (head, tail) = core::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            head
        };
        // Multiples of the alignment first, so that each begins aligned.
        Self {
            p: cut(KEYS * QUERIES),
            m: cut(QUERIES),
            l: cut(QUERIES),
            alpha: cut(QUERIES),
            q: cut(QUERIES * shape.depth),
            o: cut(QUERIES * shape.value_depth),
            k: cut(KEYS * shape.depth),
            v: cut(KEYS * shape.value_depth),
            row: cut(shape.depth.max(shape.value_depth)),
        }
    }
}

impl<T: Stored> Call<'_, T> {
    /// Computes one job.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(&self, simd: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        self.load_queries(simd, job, tiles);
        tiles.m.fill(T::Acc::NEG_INFINITY);
        tiles.l.fill(T::Acc::default());
        tiles.o.fill(T::Acc::default());
        let head = self.matrix(job);
        let every_tile = self.fully_masked == FullyMasked::MeanOfValues
            && (self.bias.is_some() || self.visible.any_blind(head, job.queries.clone()));
        for keys in tiles_of_keys(self.shape.key_length) {
            let seen = self.visible.tile(head, job.queries.clone(), keys.clone());
            if seen == Seen::Nothing && !every_tile {
                continue;
            }
            self.score(simd, job, keys.clone(), seen, tiles);
            self.accumulate(simd, job, keys, tiles);
        }
        self.finish_sums(tiles);
        self.write_output(simd, job, tiles);
        if self.weights.is_some() {
            self.write_weights(simd, job, tiles);
        }
    }

    fn matrix(&self, job: &Job) -> usize {
        job.batch * self.shape.num_heads + job.head
    }

    /// Queries, scaled and transposed; lanes beyond the last query are 0.
    #[inline(always)]
    fn load_queries<S: Simd>(&self, _: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        let (width, depth) = (width::<S, T::Acc>(), self.shape.depth);
        let used = job.queries.len().next_multiple_of(width) * depth;
        tiles.q[..used].fill(T::Acc::default());
        for (i, query) in job.queries.clone().enumerate() {
            let row = &mut tiles.row[..depth];
            self.query
                .widen(job.batch, job.head, query..query + 1, depth, row);
            let strip = &mut tiles.q[i / width * width * depth..][..width * depth];
            for (to, &from) in strip.chunks_exact_mut(width).zip(row.iter()) {
                to[i % width] = from * self.scale;
            }
        }
    }

    /// Scores of a tile of keys, bias and mask applied.
    #[inline(always)]
    fn score<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: Range<usize>,
        seen: Seen,
        tiles: &mut Tiles<'_, T::Acc>,
    ) {
        let (width, depth) = (width::<S, T::Acc>(), self.shape.depth);
        let k = self
            .key
            .tile(job.batch, job.head, keys.clone(), depth, tiles.k);
        for strip in 0..job.queries.len().div_ceil(width) {
            let q = &tiles.q[strip * width * depth..][..width * depth];
            let s = &mut tiles.p[strip * width * KEYS..][..width * keys.len()];
            for_each_block::<S, T::Acc, _>(simd, keys.len(), &mut Scores { k, q, s, depth });
        }
        if let Some(bias) = &self.bias {
            self.add_bias(bias, width, job, keys.clone(), tiles.p);
        }
        if seen != Seen::Everything {
            self.hide(width, job, keys, tiles.p);
        }
    }

    #[inline(always)]
    fn add_bias(
        &self,
        bias: &HostView<'_, T::Acc>,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        p: &mut [T::Acc],
    ) {
        let layout = bias.layout();
        let rank = layout.shape().rank();
        let strides = layout.strides();
        let matrix = layout.base(rank - 2, self.matrix(job));
        for (i, query) in job.queries.clone().enumerate() {
            let row = matrix + query * strides[rank - 2];
            for (n, key) in keys.clone().enumerate() {
                p[lane_index(width, i, n)] += bias.buf()[row + key * strides[rank - 1]];
            }
        }
    }

    #[inline(always)]
    fn hide(&self, width: usize, job: &Job, keys: Range<usize>, p: &mut [T::Acc]) {
        let fill = match self.fully_masked {
            FullyMasked::MeanOfValues => T::Acc::LOWEST,
            FullyMasked::Zero => T::Acc::NEG_INFINITY,
        };
        for (i, query) in job.queries.clone().enumerate() {
            self.visible
                .for_each_hidden(self.matrix(job), query, keys.clone(), |n| {
                    p[lane_index(width, i, n)] = fill
                });
        }
    }

    /// Online softmax and the sum of values for a tile of keys.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: Range<usize>,
        tiles: &mut Tiles<'_, T::Acc>,
    ) {
        let (width, depth) = (width::<S, T::Acc>(), self.shape.value_depth);
        let v = self
            .value
            .tile(job.batch, job.head, keys.clone(), depth, tiles.v);
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
            let o = &mut tiles.o[strip * width * depth..][..width * depth];
            for_each_block::<S, T::Acc, _>(
                simd,
                depth,
                &mut Values {
                    v,
                    p,
                    o,
                    alpha: running.alpha,
                    depth,
                    keys: keys.len(),
                },
            );
        }
    }

    /// A sum of 0 divides nothing where the rule is zero or where there is no key: the output is 0. Under Flax's rule it is
    /// a row whose every score is -inf, and the quotient is NaN as in Flax.
    #[inline(always)]
    fn finish_sums(&self, tiles: &mut Tiles<'_, T::Acc>) {
        if self.fully_masked == FullyMasked::Zero || self.shape.key_length == 0 {
            for l in tiles.l.iter_mut().filter(|l| **l == T::Acc::default()) {
                *l = T::Acc::from(1i8);
            }
        }
    }

    #[inline(always)]
    fn write_output<S: Simd>(&self, simd: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        let (width, depth) = (width::<S, T::Acc>(), self.shape.value_depth);
        let (first, stride) = row_start(&self.out_layout, job.batch, job.head);
        let column_stride = self.out_layout.strides().last().copied().unwrap_or(1);
        for strip in 0..job.queries.len().div_ceil(width) {
            let o = &mut tiles.o[strip * width * depth..][..width * depth];
            divide(simd, o, &tiles.l[strip * width..][..width]);
            for lane in 0..width.min(job.queries.len() - strip * width) {
                for (to, from) in tiles.row[..depth].iter_mut().zip(o.chunks_exact(width)) {
                    *to = from[lane];
                }
                let query = job.queries.start + strip * width + lane;
                write_narrowed(
                    &self.out,
                    first + query * stride,
                    column_stride,
                    &tiles.row[..depth],
                );
            }
        }
    }

    /// A second pass over the keys with the final `m` and `l`.
    #[inline(always)]
    fn write_weights<S: Simd>(&self, simd: S, job: &Job, tiles: &mut Tiles<'_, T::Acc>) {
        let Some((weights, layout)) = &self.weights else {
            return;
        };
        let width = width::<S, T::Acc>();
        let head = self.matrix(job);
        let rank = layout.shape().rank();
        let (matrix, strides) = (layout.base(rank - 2, head), layout.strides());
        for keys in tiles_of_keys(self.shape.key_length) {
            let seen = self.visible.tile(head, job.queries.clone(), keys.clone());
            self.score(simd, job, keys.clone(), seen, tiles);
            for strip in 0..job.queries.len().div_ceil(width) {
                let lanes = strip * width..(strip + 1) * width;
                let p = &mut tiles.p[strip * width * KEYS..][..width * keys.len()];
                softmax::normalized(simd, p, &tiles.m[lanes.clone()], &tiles.l[lanes]);
            }
            for (i, query) in job.queries.clone().enumerate() {
                let row: [T::Acc; KEYS] = core::array::from_fn(|n| {
                    if n < keys.len() {
                        tiles.p[lane_index(width, i, n)]
                    } else {
                        T::Acc::default()
                    }
                });
                let start = matrix + query * strides[rank - 2] + keys.start * strides[rank - 1];
                write_row(weights, start, strides[rank - 1], &row[..keys.len()]);
            }
        }
    }
}

/// Keys by tiles: the same cut for every query, which is part of what makes a row's bits its own.
fn tiles_of_keys(key_length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..key_length)
        .step_by(KEYS)
        .map(move |start| start..(start + KEYS).min(key_length))
}

/// Where the score of the `i`-th query of a job and the `n`-th key of a tile lies.
#[inline(always)]
fn lane_index(width: usize, i: usize, n: usize) -> usize {
    i / width * width * KEYS + n * width + i % width
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

/// Rounds a row and writes it.
#[inline(always)]
fn write_narrowed<T: Stored>(out: &Shared<'_, T>, start: usize, stride: usize, row: &[T::Acc]) {
    const CHUNK: usize = 64;
    let mut narrow = [T::default(); CHUNK];
    for (n, row) in row.chunks(CHUNK).enumerate() {
        T::narrow(row, &mut narrow[..row.len()]);
        write_row(
            out,
            start + n * CHUNK * stride,
            stride,
            &narrow[..row.len()],
        );
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "each job writes rows of its own")]
fn write_row<T: attn_core::Scalar>(out: &Shared<'_, T>, start: usize, stride: usize, row: &[T]) {
    // SAFETY: `Jobs` gives each job once, jobs are disjoint in (batch, head, query), a job writes only rows of its own, and
    // `ViewMut` guarantees that no two elements share an index.
    unsafe { out.write(start, stride, row) };
}

/// `s = k · qᵀ` for some keys.
struct Scores<'a, A> {
    k: &'a [A],
    q: &'a [A],
    s: &'a mut [A],
    depth: usize,
}

impl<S: Simd, A: Lane> Block<S> for Scores<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let left = ByRows::<A, ROWS>::new(self.k, self.depth, first, self.depth);
        let acc = multiply(
            simd,
            self.depth,
            &left,
            self.q,
            width,
            zeros::<S, A, ROWS>(simd),
        );
        for (row, to) in acc
            .into_iter()
            .zip(self.s[first * width..].chunks_exact_mut(width))
        {
            store_row::<S, A>(row, to);
        }
    }
}

/// `o = o · alpha + vᵀ · p` for some columns of the values.
struct Values<'a, A> {
    v: &'a [A],
    p: &'a [A],
    o: &'a mut [A],
    alpha: &'a [A],
    depth: usize,
    keys: usize,
}

impl<S: Simd, A: Lane> Block<S> for Values<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let alpha = load_row::<S, A>(simd, self.alpha);
        let o = &mut self.o[first * width..][..ROWS * width];
        let mut acc: micro::Tile<S, A, ROWS> = [[splat(simd, A::default()); 2]; ROWS];
        for (acc, o) in acc.iter_mut().zip(o.chunks_exact(width)) {
            let row = load_row::<S, A>(simd, o);
            *acc = core::array::from_fn(|v| row[v] * alpha[v]);
        }
        let left = ByColumns {
            matrix: self.v,
            stride: self.depth,
            first,
        };
        let acc = multiply(simd, self.keys, &left, self.p, width, acc);
        for (row, to) in acc.into_iter().zip(o.chunks_exact_mut(width)) {
            store_row::<S, A>(row, to);
        }
    }
}
