//! The tile loop for a few queries, as in decoding: keys lie in lanes, and values' columns.
//!
//! With queries in lanes, as [`flash`](crate::flash) has them, one query would leave most lanes idle. Here every row of keys and values
//! is read once for all queries of a job, which may be those of a group of heads:
//!
//! ```text
//! for each tile of keys:
//!     s = q · kᵀ         [queries][KEYS], the keys transposed by squares of four
//!     m, l, alpha, s -> p
//!     o = (p · v) + o · alpha
//! ```
//!
//! Every sum has the order that it has there: a score over the depth, a softmax sum over sixteen strided partials, an output
//! over the keys. So a row has the same bits in both.

use crate::buffers::{aligned, margin};
use crate::dropout::Strip;
use crate::element::Stored;
use crate::flash::Call;
use crate::hidden::{Places, any_not_finite, clean};
use crate::matrix::transpose_rows;
use crate::micro::{ByRows, add_scaled, is_512_bits, multiply, store_row, zeros};
use crate::scores::{Job, KEYS, tiles_of_keys};
use crate::simd::{Lane, Simd, SimdBase, SimdFloat, Vector, lanes, load, splat};
use crate::softmax::{PARTIALS, add_sink, exp, finite_or_zero};
use crate::tokens::Head;
use attn_core::{AttentionShape, Stage};
use core::ops::Range;

/// Most queries of a job.
const QUERIES: usize = 8;
/// Lanes of the widest vector: depths are filled up to a multiple.
const MAX_LANES: usize = 16;
/// Elements of transposed keys: 16 KiB, so that L1 has room for the rows that they come from.
const TURNED: usize = 4096;

/// Keys that are transposed between two looks ahead.
const GROUP: usize = 4;
/// How many keys ahead memory is asked for: two tiles, measured against one and four.
const AHEAD: usize = 2 * KEYS;
/// Elements of keys and values of a call from which on memory is asked for. Fewer lie in a cache, where asking costs more than waiting.
const LARGE: usize = 1 << 20;

/// Whether calls of this many queries take this way on tiles of `width` lanes: one that filled half of them would lose nothing
/// in [`flash`](crate::flash).
pub(crate) const fn serves(shape: &AttentionShape, width: usize) -> bool {
    shape.query_length <= QUERIES && 2 * shape.query_length <= width
}

/// How many heads that share keys and values one job serves.
pub(crate) fn heads_at_once(shape: &AttentionShape) -> usize {
    let group = shape.num_heads.checked_div(shape.key_heads).unwrap_or(1);
    let most = QUERIES.checked_div(shape.query_length).unwrap_or(1);
    group.min(most).max(1)
}

/// The tiles of one worker, cut from its scratch. A row is a query of a head; those of one head lie together.
pub(crate) struct FewTiles<'a, A> {
    /// Scaled queries, `[rows][depth]`.
    q: &'a mut [A],
    /// Scores, then weights, `[rows][KEYS]`.
    s: &'a mut [A],
    /// Output so far, `[rows][columns]`.
    o: &'a mut [A],
    /// Keys and values where they are not read as they lie, `[KEYS][columns]`.
    k: &'a mut [A],
    v: &'a mut [A],
    /// Some keys transposed, `[depth][keys]`.
    turned: &'a mut [A],
    m: &'a mut [A],
    l: &'a mut [A],
    alpha: &'a mut [A],
}

/// Elements of a row of `depth` filled up to whole vectors.
const fn columns(depth: usize) -> usize {
    depth.div_ceil(MAX_LANES).saturating_mul(MAX_LANES)
}

impl<'a, A: Lane> FewTiles<'a, A> {
    /// Elements of scratch for one worker.
    pub(crate) const fn size(shape: &AttentionShape) -> usize {
        let (k, v) = (columns(shape.depth), columns(shape.value_depth));
        (KEYS + QUERIES)
            .saturating_mul(k.saturating_add(v))
            .saturating_add(turned(shape.depth))
            .saturating_add(QUERIES * KEYS + 3 * MAX_LANES + margin::<A>())
    }

    /// Cuts `scratch`, which has at least [`FewTiles::size`] elements.
    pub(crate) fn cut(scratch: &'a mut [A], shape: &AttentionShape) -> Self {
        let mut rest = aligned(scratch);
        let mut cut = |len: usize| {
            let (head, tail) = core::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            head
        };
        let (depth, value_depth) = (columns(shape.depth), columns(shape.value_depth));
        Self {
            s: cut(QUERIES * KEYS),
            turned: cut(turned(shape.depth)),
            q: cut(QUERIES * depth),
            o: cut(QUERIES * value_depth),
            k: cut(KEYS * depth),
            v: cut(KEYS * value_depth),
            m: cut(MAX_LANES),
            l: cut(MAX_LANES),
            alpha: cut(MAX_LANES),
        }
    }
}

impl<A> FewTiles<'_, A> {
    /// Room for a row of values.
    pub(crate) fn row(&mut self) -> &mut [A] {
        self.v
    }
}

/// Keys that are transposed at once: as many as [`TURNED`] allows.
const fn keys_at_once(depth: usize) -> usize {
    match TURNED.checked_div(depth) {
        Some(0..32) => 16,
        Some(32..64) => 32,
        _ => KEYS,
    }
}

const fn turned(depth: usize) -> usize {
    depth.saturating_mul(keys_at_once(depth))
}

impl<T: Stored> Call<'_, T> {
    /// Computes one job: the queries of `heads` heads from the job's on, at most [`QUERIES`] together.
    #[inline(always)]
    pub(crate) fn run_few<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        heads: usize,
        tiles: &mut FewTiles<'_, T::Acc>,
    ) {
        let scoring = &self.scoring;
        let shape = &scoring.shape;
        let all = shape.batch * shape.key_heads * shape.key_length;
        let sources = Sources {
            large: all * (shape.depth + shape.value_depth) > LARGE,
            key: scoring.keys(job),
            value: self.values(job),
        };
        let rows = heads * job.queries.len();
        tiles.l.fill(T::Acc::default());
        tiles.o.fill(T::Acc::default());
        for (n, job) in job.each_head(heads).enumerate() {
            let rows = rows_of(&job, n);
            self.load_few(&job, rows.start, tiles);
            tiles.m[rows].fill(scoring.sink(&job).unwrap_or(T::Acc::NEG_INFINITY));
        }
        for keys in scoring.tiles(job, heads) {
            self.multiply_few(simd, rows, &sources, keys.clone(), tiles);
            let mut guards = false;
            for (n, job) in job.each_head(heads).enumerate() {
                let s = &mut tiles.s[rows_of(&job, n).start * KEYS..];
                // One query after the other: what the other way calls strips, one lane wide.
                let seen = scoring.finish(simd, 1, &job, keys.clone(), s);
                guards |= scoring.guards(seen);
            }
            for s in tiles.s.chunks_exact_mut(KEYS) {
                s[keys.len()..].fill(T::Acc::NEG_INFINITY);
            }
            update(simd, rows, tiles);
            for (n, job) in job.each_head(heads).enumerate() {
                self.drop_few(simd, &job, rows_of(&job, n).start, keys.clone(), tiles);
            }
            self.add_few(simd, (job, heads), &sources, keys, guards, tiles);
        }
        for (n, job) in job.each_head(heads).enumerate() {
            let rows = rows_of(&job, n);
            if let Some(sink) = scoring.sink(&job) {
                // For all rows, of which those of this head are kept.
                let mut l = [T::Acc::default(); MAX_LANES];
                l.copy_from_slice(tiles.l);
                add_sink(simd, sink, tiles.m, &mut l);
                tiles.l[rows.clone()].copy_from_slice(&l[rows.clone()]);
            }
            self.write_statistics(&job, &tiles.m[rows.clone()], &tiles.l[rows.clone()]);
            self.finish_sums(&job, &mut tiles.l[rows.clone()]);
            self.write_few(&job, rows.start, tiles);
        }
        if self.weights.is_some() {
            self.write_few_weights(simd, (job, heads), &sources, tiles);
        }
    }

    /// Queries, scaled, as the rows from `row` on.
    #[inline(always)]
    fn load_few(&self, job: &Job, row: usize, tiles: &mut FewTiles<'_, T::Acc>) {
        let scoring = &self.scoring;
        let depth = scoring.shape.depth;
        if depth == 0 {
            return;
        }
        let q = &mut tiles.q[row * depth..][..job.queries.len() * depth];
        scoring
            .query
            .widen(job.batch, job.head, job.queries.clone(), depth, q);
        for q in q {
            *q *= scoring.scale;
        }
    }

    /// Products of queries and a tile of keys.
    #[inline(always)]
    fn multiply_few<S: Simd>(
        &self,
        simd: S,
        queries: usize,
        sources: &Sources<'_, T>,
        keys: Range<usize>,
        tiles: &mut FewTiles<'_, T::Acc>,
    ) {
        let depth = self.scoring.shape.depth;
        let (rows, stride) = sources.key.rows(simd, keys.clone(), 1, tiles.k);
        let rows = Rows {
            sources,
            first: keys.start,
            count: keys.len(),
            rows,
            stride,
            depth,
        };
        simd.vectorize(
            #[inline(always)]
            || match keys_at_once(depth) {
                16 => rows.score::<S, 16>(simd, queries, tiles.q, tiles.turned, tiles.s),
                32 => rows.score::<S, 32>(simd, queries, tiles.q, tiles.turned, tiles.s),
                _ => rows.score::<S, KEYS>(simd, queries, tiles.q, tiles.turned, tiles.s),
            },
        );
    }

    #[inline(always)]
    fn drop_few<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        row: usize,
        keys: Range<usize>,
        tiles: &mut FewTiles<'_, T::Acc>,
    ) {
        let Some(dropout) = &self.dropout else {
            return;
        };
        let rows = tiles.s[row * KEYS..].chunks_exact_mut(KEYS);
        for (query, s) in job.queries.clone().zip(rows) {
            let strip = Strip {
                matrix: self.scoring.matrix(job),
                query,
                keys: keys.clone(),
                width: 1,
            };
            let mut factors = [T::Acc::default(); KEYS];
            let factors = &mut factors[..keys.len()];
            dropout.factors(simd, &strip, factors);
            for (s, factor) in s.iter_mut().zip(factors) {
                *s *= *factor;
            }
        }
    }

    /// The sum of values.
    #[inline(always)]
    fn add_few<S: Simd>(
        &self,
        simd: S,
        (job, heads): (&Job, usize),
        sources: &Sources<'_, T>,
        keys: Range<usize>,
        guards: bool,
        tiles: &mut FewTiles<'_, T::Acc>,
    ) {
        let depth = self.scoring.shape.value_depth;
        let lanes = lanes::<S, T::Acc>();
        let value = &sources.value;
        let (rows, stride) = value.rows(simd, keys.clone(), lanes, tiles.v);
        let guards = guards && any_not_finite(simd, rows, stride, depth);
        let (v, stride) = match guards {
            true => {
                tiles.v.fill(T::Acc::default());
                value.copy(simd, keys.clone(), columns(depth), tiles.v);
                clean(tiles.v);
                (&*tiles.v, columns(depth))
            }
            false => (rows, stride),
        };
        let mut sums = Sums {
            p: tiles.s,
            v,
            stride,
            o: tiles.o,
            columns: columns(depth),
            alpha: tiles.alpha,
            keys: keys.len(),
        };
        let rows = heads * job.queries.len();
        simd.vectorize(
            #[inline(always)]
            || cover(simd, rows, depth.div_ceil(lanes), &mut sums),
        );
        if guards {
            for (n, job) in job.each_head(heads).enumerate() {
                let places = Places {
                    width: 1,
                    first: rows_of(&job, n).start,
                    columns: columns(depth),
                };
                self.scoring
                    .add_not_finite(&job, keys.clone(), value, &places, tiles.s, tiles.o);
            }
        }
    }

    #[inline(always)]
    fn write_few(&self, job: &Job, row: usize, tiles: &mut FewTiles<'_, T::Acc>) {
        let depth = self.scoring.shape.value_depth;
        let head = self.out_head(job);
        let rows = tiles.o[row * columns(depth)..].chunks_exact_mut(columns(depth).max(1));
        for ((query, row), l) in job.queries.clone().zip(rows).zip(&tiles.l[row..]) {
            let row = &mut row[..depth];
            for o in row.iter_mut() {
                *o /= *l;
            }
            self.write_row(&head, query, row);
        }
    }

    /// A second pass over the keys: weights from the final `m` and `l`, or scores at the stage that is asked for.
    #[inline(always)]
    fn write_few_weights<S: Simd>(
        &self,
        simd: S,
        (job, heads): (&Job, usize),
        sources: &Sources<'_, T>,
        tiles: &mut FewTiles<'_, T::Acc>,
    ) {
        let rows = heads * job.queries.len();
        for job in job.each_head(heads) {
            self.write_weights_outside(&job);
        }
        for keys in tiles_of_keys(&job.span.keys, job.span.keys.clone()) {
            self.multiply_few(simd, rows, sources, keys.clone(), tiles);
            for (n, job) in job.each_head(heads).enumerate() {
                let rows = rows_of(&job, n);
                let s = &mut tiles.s[rows.start * KEYS..];
                self.stage(simd, 1, &job, keys.clone(), s);
                let s = s.chunks_exact_mut(KEYS);
                for ((query, row), s) in job.queries.clone().zip(rows).zip(s) {
                    if self.stage == Stage::Softmax {
                        normalize(simd, s, tiles.m[row], tiles.l[row]);
                    }
                    self.write_row_of_weights(&job, query, keys.start, &s[..keys.len()]);
                }
            }
        }
    }
}

/// The rows of the queries of the `n`-th head of a job.
fn rows_of(job: &Job, n: usize) -> Range<usize> {
    let queries = job.queries.len();
    n * queries..(n + 1) * queries
}

/// Where keys and values of a job come from.
struct Sources<'a, T> {
    key: Head<'a, 'a, T>,
    value: Head<'a, 'a, T>,
    /// Whether they come from memory.
    large: bool,
}

/// The rows of a tile of keys.
struct Rows<'a, T: Stored> {
    sources: &'a Sources<'a, T>,
    /// Number of the first key.
    first: usize,
    count: usize,
    rows: &'a [T::Acc],
    stride: usize,
    depth: usize,
}

impl<T: Stored> Rows<'_, T> {
    /// Scores, `ONCE` keys at once.
    #[inline(always)]
    fn score<S: Simd, const ONCE: usize>(
        &self,
        simd: S,
        queries: usize,
        q: &[T::Acc],
        turned: &mut [T::Acc],
        s: &mut [T::Acc],
    ) {
        let depth = self.depth;
        for first in (0..self.count).step_by(ONCE) {
            let count = ONCE.min(self.count - first);
            let (places, _) = turned.as_chunks_mut::<ONCE>();
            for n in (0..count).step_by(GROUP) {
                let start = first + n;
                self.prefetch(start);
                let from = &self.rows[(start * self.stride).min(self.rows.len())..];
                let group = (GROUP.min(count - n), depth);
                transpose_rows(simd, from, self.stride, group, n, places);
            }
            let mut scores = Scores {
                q,
                turned,
                s: &mut s[first..],
                depth,
                once: ONCE,
            };
            let vectors = count.div_ceil(lanes::<S, T::Acc>());
            cover(simd, queries, vectors, &mut scores);
        }
    }

    /// Asks for keys and values some way ahead.
    #[inline(always)]
    fn prefetch(&self, start: usize) {
        if self.sources.large {
            let ahead = self.first + start + AHEAD;
            self.sources.key.prefetch(ahead..ahead + GROUP);
            self.sources.value.prefetch(ahead..ahead + GROUP);
        }
    }
}

/// `p = e^(s - m) / l`.
#[inline(always)]
fn normalize<S: Simd, A: Lane>(simd: S, s: &mut [A], m: A, l: A) {
    let safe = finite_or_zero::<S, A>(simd, splat(simd, m));
    for s in s.chunks_exact_mut(lanes::<S, A>()) {
        (exp::<S, A>(simd, load(simd, s) - safe) / splat(simd, l)).store_slice(s);
    }
}

/// The online softmax of every query for a tile: as [`softmax`](crate::softmax) has it, with keys in lanes.
#[inline(always)]
fn update<S: Simd, A: Lane>(simd: S, queries: usize, tiles: &mut FewTiles<'_, A>) {
    simd.vectorize(
        #[inline(always)]
        || {
            for (i, s) in tiles.s.chunks_exact_mut(KEYS).take(queries).enumerate() {
                update_query(
                    simd,
                    s,
                    &mut tiles.m[i],
                    &mut tiles.l[i],
                    &mut tiles.alpha[i],
                );
            }
        },
    );
}

#[inline(always)]
fn update_query<S: Simd, A: Lane>(simd: S, s: &mut [A], m: &mut A, l: &mut A, alpha: &mut A) {
    let lanes = lanes::<S, A>();
    let mut buffer = [A::default(); PARTIALS];
    let old = splat::<S, A>(simd, *m);
    let most = s
        .chunks_exact(lanes)
        .fold(old, |most, s| most.max(load(simd, s)));
    most.store_slice(&mut buffer[..lanes]);
    for &most in &buffer[..lanes] {
        if most > *m {
            *m = most;
        }
    }
    let safe = finite_or_zero::<S, A>(simd, splat(simd, *m));
    let factor = exp::<S, A>(simd, old - safe);
    let mut partials = [splat::<S, A>(simd, A::default()); PARTIALS];
    let vectors = PARTIALS / lanes;
    for s in s.chunks_exact_mut(PARTIALS) {
        for (s, partial) in s.chunks_exact_mut(lanes).zip(&mut partials) {
            let p = exp::<S, A>(simd, load::<S, A>(simd, s) - safe);
            p.store_slice(s);
            *partial += p;
        }
    }
    for (partial, buffer) in partials[..vectors]
        .iter()
        .zip(buffer.chunks_exact_mut(lanes))
    {
        partial.store_slice(buffer);
    }
    let mut half = PARTIALS / 2;
    while half > 0 {
        for i in 0..half {
            buffer[i] += buffer[i + half];
        }
        half /= 2;
    }
    let first = |vector: Vector<S, A>, buffer: &mut [A; PARTIALS]| {
        vector.store_slice(&mut buffer[..lanes]);
        buffer[0]
    };
    let sum = splat::<S, A>(simd, buffer[0]);
    *l = first(splat::<S, A>(simd, *l).mul_add(factor, sum), &mut buffer);
    *alpha = first(factor, &mut buffer);
}

/// Something done, with accumulators `A`, for `ROWS` queries from `row` on and `V` vectors from `vector` on.
trait Panel<S: Simd, A> {
    fn run<const ROWS: usize, const V: usize>(&mut self, simd: S, row: usize, vector: usize);
}

/// Covers queries and vectors by panels with about as many accumulators as hide the latency of a fused multiply-add.
#[inline(always)]
fn cover<S: Simd, A: Lane>(simd: S, rows: usize, vectors: usize, panel: &mut impl Panel<S, A>) {
    let mut row = 0;
    while row + 4 <= rows {
        match is_512_bits::<S, A>() {
            true => across::<S, A, _, 4, 4>(simd, row, vectors, panel),
            false => across::<S, A, _, 4, 2>(simd, row, vectors, panel),
        }
        row += 4;
    }
    if row + 2 <= rows {
        across::<S, A, _, 2, 4>(simd, row, vectors, panel);
        row += 2;
    }
    if row < rows {
        match is_512_bits::<S, A>() {
            true => across::<S, A, _, 1, 4>(simd, row, vectors, panel),
            false => across::<S, A, _, 1, 8>(simd, row, vectors, panel),
        }
    }
}

#[inline(always)]
fn across<S: Simd, A, P: Panel<S, A>, const ROWS: usize, const V: usize>(
    simd: S,
    row: usize,
    vectors: usize,
    panel: &mut P,
) {
    let mut vector = 0;
    while vector + V <= vectors {
        panel.run::<ROWS, V>(simd, row, vector);
        vector += V;
    }
    if V > 2 && vector + 2 <= vectors {
        panel.run::<ROWS, 2>(simd, row, vector);
        vector += 2;
    }
    while vector < vectors {
        panel.run::<ROWS, 1>(simd, row, vector);
        vector += 1;
    }
}

/// `s = q · kᵀ`.
struct Scores<'a, A> {
    q: &'a [A],
    /// `[depth][once]`.
    turned: &'a [A],
    /// From the first of these keys on.
    s: &'a mut [A],
    depth: usize,
    once: usize,
}

impl<S: Simd, A: Lane> Panel<S, A> for Scores<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize, const V: usize>(&mut self, simd: S, row: usize, vector: usize) {
        let first = vector * lanes::<S, A>();
        let left = ByRows::<A, ROWS>::new(self.q, self.depth, row, self.depth);
        let right = &self.turned[first.min(self.turned.len())..];
        let acc = zeros::<S, A, ROWS, V>(simd);
        let acc = multiply(simd, self.depth, &left, right, self.once, acc);
        for (i, acc) in acc.iter().enumerate() {
            store_row::<S, A, V>(acc, &mut self.s[(row + i) * KEYS + first..]);
        }
    }
}

/// `o = o · alpha + p · v`.
struct Sums<'a, A> {
    p: &'a [A],
    /// `[keys][stride]`.
    v: &'a [A],
    stride: usize,
    /// `[queries][columns]`.
    o: &'a mut [A],
    columns: usize,
    alpha: &'a [A],
    keys: usize,
}

impl<S: Simd, A: Lane> Panel<S, A> for Sums<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize, const V: usize>(&mut self, simd: S, row: usize, vector: usize) {
        let first = vector * lanes::<S, A>();
        let left = ByRows::<A, ROWS>::new(self.p, KEYS, row, self.keys);
        let right = &self.v[first.min(self.v.len())..];
        let acc = zeros::<S, A, ROWS, V>(simd);
        let mut acc = multiply(simd, self.keys, &left, right, self.stride, acc);
        for (i, acc) in acc.iter_mut().enumerate() {
            let alpha = splat::<S, A>(simd, self.alpha[row + i]);
            let out = &mut self.o[(row + i) * self.columns + first..];
            add_scaled::<S, A, V>(simd, acc, out, [alpha; V]);
            store_row::<S, A, V>(acc, out);
        }
    }
}
