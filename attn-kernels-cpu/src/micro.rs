//! The register tile: a sum of outer products, `acc[i][lane] += Σ_k left(k)[i] · right[k][lane]`.
//!
//! Everything rests on it: scores (left = keys, lanes = queries), the sum of values (left = values, lanes = queries) and
//! projections (left = input rows, lanes = output columns). Each accumulator is one chain over `k` in order, so an
//! element has the same bits whatever tile it is computed in; that is what makes results independent of the number of
//! rows, queries and threads.
//!
//! Two vectors of lanes and 6, 8 or 12 rows give 12, 16 or 24 independent chains: enough to hide the latency of a fused
//! multiply-add (4 cycles, 2 a cycle). 6 rows fit the 16 registers of AVX2 (12 + 2 + 1). With 512-bit registers there are 32: 12 rows where
//! the left factor is packed for the tile, else 8, since each row then needs a pointer of its own.

use crate::simd::{Lane, Simd, SimdBase, SimdFloat, Vector, lanes, load, splat};
use core::ops::Range;

/// Vectors of lanes in a tile.
pub(crate) const VECTORS: usize = 2;

/// Rows of the widest tile.
pub(crate) const MAX_ROWS: usize = 12;

/// Lanes of the widest tile of all instruction sets: two 64-byte vectors of `f32`.
pub(crate) const MAX_WIDTH: usize = 32;

/// Lanes of a tile.
pub(crate) const fn width<S: Simd, A: Lane>() -> usize {
    VECTORS * lanes::<S, A>()
}

/// The accumulators of a tile.
pub(crate) type Tile<S, A, const ROWS: usize, const V: usize = VECTORS> = [[Vector<S, A>; V]; ROWS];

/// The left factor.
pub(crate) trait Left<A, const ROWS: usize> {
    /// Its rows at the `N` steps from `k` on; bounds are checked here, once.
    type Window<'w, const N: usize>: Window<A>
    where
        Self: 'w;

    /// The steps from `k` on.
    fn window<const N: usize>(&self, k: usize) -> Self::Window<'_, N>;
}

/// A few steps of a left factor.
pub(crate) trait Window<A> {
    /// Row `i` at a step.
    fn at(&self, i: usize, step: usize) -> A;
}

/// A left factor given row by row.
pub(crate) struct ByRows<'a, A, const ROWS: usize>([&'a [A]; ROWS]);

impl<'a, A, const ROWS: usize> ByRows<'a, A, ROWS> {
    /// Rows `first..first + ROWS` of a matrix with `depth` columns, `stride` apart.
    #[inline(always)]
    pub(crate) fn new(matrix: &'a [A], stride: usize, first: usize, depth: usize) -> Self {
        let mut rows: [&[A]; ROWS] = [&[]; ROWS];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &matrix[(first + i) * stride..][..depth];
        }
        Self(rows)
    }
}

impl<A: Copy, const ROWS: usize> Left<A, ROWS> for ByRows<'_, A, ROWS> {
    type Window<'w, const N: usize>
        = [&'w [A; N]; ROWS]
    where
        Self: 'w;

    #[inline(always)]
    fn window<const N: usize>(&self, k: usize) -> Self::Window<'_, N> {
        let mut window = [self.0[0][k..]
            .first_chunk()
            .expect("steps within the depth"); ROWS];
        for (to, row) in window.iter_mut().zip(&self.0) {
            *to = row[k..].first_chunk().expect("steps within the depth");
        }
        window
    }
}

impl<A: Copy, const N: usize, const ROWS: usize> Window<A> for [&[A; N]; ROWS] {
    #[inline(always)]
    fn at(&self, i: usize, step: usize) -> A {
        self[i][step]
    }
}

/// A left factor whose rows at one step lie side by side: a transposed matrix.
pub(crate) struct ByColumns<'a, A> {
    /// The matrix, `stride` elements a step.
    pub(crate) matrix: &'a [A],
    /// Elements from one step to the next.
    pub(crate) stride: usize,
    /// Index of the first row.
    pub(crate) first: usize,
}

impl<A: Copy, const ROWS: usize> Left<A, ROWS> for ByColumns<'_, A> {
    type Window<'w, const N: usize>
        = Steps<'w, A, ROWS, N>
    where
        Self: 'w;

    #[inline(always)]
    fn window<const N: usize>(&self, k: usize) -> Self::Window<'_, N> {
        let step = |k: usize| {
            let from = &self.matrix[k * self.stride + self.first..];
            from.first_chunk().expect("rows within the matrix")
        };
        let mut steps = [step(k); N];
        for (n, to) in steps.iter_mut().enumerate().skip(1) {
            *to = step(k + n);
        }
        Steps(steps)
    }
}

/// A few steps of a transposed matrix.
pub(crate) struct Steps<'w, A, const ROWS: usize, const N: usize>([&'w [A; ROWS]; N]);

impl<A: Copy, const ROWS: usize, const N: usize> Window<A> for Steps<'_, A, ROWS, N> {
    #[inline(always)]
    fn at(&self, i: usize, step: usize) -> A {
        self.0[step][i]
    }
}

/// A left factor packed for its tile: its rows at one step lie side by side, and the steps too.
pub(crate) struct Packed<'a, A>(pub(crate) &'a [A]);

impl<A: Copy, const ROWS: usize> Left<A, ROWS> for Packed<'_, A> {
    type Window<'w, const N: usize>
        = Interleaved<'w, A, ROWS>
    where
        Self: 'w;

    #[inline(always)]
    fn window<const N: usize>(&self, k: usize) -> Self::Window<'_, N> {
        Interleaved(&self.0[k * ROWS..][..N * ROWS])
    }
}

/// A few steps of [`Packed`].
pub(crate) struct Interleaved<'w, A, const ROWS: usize>(&'w [A]);

impl<A: Copy, const ROWS: usize> Window<A> for Interleaved<'_, A, ROWS> {
    #[inline(always)]
    fn at(&self, i: usize, step: usize) -> A {
        self.0[step * ROWS + i]
    }
}

/// Adds `depth` outer products to `acc`. `right` has `stride` elements a step, of which as many as the tile is wide are used.
#[inline(always)]
pub(crate) fn multiply<S: Simd, A: Lane, L: Left<A, ROWS>, const ROWS: usize, const V: usize>(
    simd: S,
    depth: usize,
    left: &L,
    right: &[A],
    stride: usize,
    acc: Tile<S, A, ROWS, V>,
) -> Tile<S, A, ROWS, V> {
    // With 512-bit registers a step takes so many cycles that its checks of bounds are hidden; with more steps at once compilers
    // load too early and spill.
    let whole = match is_512_bits::<S, A>() {
        true => 0,
        false => depth / STEPS * STEPS,
    };
    let acc = add_products::<S, A, L, ROWS, V, STEPS>(simd, 0..whole, left, right, stride, acc);
    add_products::<S, A, L, ROWS, V, 1>(simd, whole..depth, left, right, stride, acc)
}

/// Steps between two checks of bounds.
const STEPS: usize = 4;

/// Whether there are 32 registers of 64 bytes.
pub(crate) const fn is_512_bits<S: Simd, A: Lane>() -> bool {
    lanes::<S, A>() * size_of::<A>() == 64
}

/// The steps `depth`, a multiple of `N`.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "loops of constant length over arrays are unrolled, adaptors not always"
)]
fn add_products<
    S: Simd,
    A: Lane,
    L: Left<A, ROWS>,
    const ROWS: usize,
    const V: usize,
    const N: usize,
>(
    simd: S,
    depth: Range<usize>,
    left: &L,
    right: &[A],
    stride: usize,
    mut acc: Tile<S, A, ROWS, V>,
) -> Tile<S, A, ROWS, V> {
    let mut k = depth.start;
    while k < depth.end {
        let right = &right[k * stride..][..(N - 1) * stride + V * lanes::<S, A>()];
        let left = left.window::<N>(k);
        for step in 0..N {
            let right = load_row::<S, A, V>(simd, &right[step * stride..]);
            for i in 0..ROWS {
                let left = splat(simd, left.at(i, step));
                for v in 0..V {
                    acc[i][v] = left.mul_add(right[v], acc[i][v]);
                }
            }
        }
        k += N;
    }
    acc
}

/// A tile of zeros.
#[inline(always)]
pub(crate) fn zeros<S: Simd, A: Lane, const ROWS: usize, const V: usize>(
    simd: S,
) -> Tile<S, A, ROWS, V> {
    [[splat(simd, A::default()); V]; ROWS]
}

/// Loads a row of a tile.
#[inline(always)]
pub(crate) fn load_row<S: Simd, A: Lane, const V: usize>(simd: S, from: &[A]) -> [Vector<S, A>; V] {
    let lanes = lanes::<S, A>();
    // Not by `array::from_fn`, which compilers do not always inline: then nothing stays in registers.
    let mut row = [splat(simd, A::default()); V];
    for v in 0..V {
        row[v] = load(simd, &from[v * lanes..(v + 1) * lanes]);
    }
    row
}

/// `acc += out · alpha` for a row of sums. After the products and not before: a sum over many keys is then one of tiles' sums, which are
/// rounded less.
#[inline(always)]
pub(crate) fn add_scaled<S: Simd, A: Lane, const V: usize>(
    simd: S,
    acc: &mut [Vector<S, A>; V],
    out: &[A],
    alpha: [Vector<S, A>; V],
) {
    let before = load_row::<S, A, V>(simd, out);
    for v in 0..V {
        acc[v] = before[v].mul_add(alpha[v], acc[v]);
    }
}

/// Loads a tile whose rows lie side by side. (Loops over chunks, since neither `array::from_fn` nor indexed loops are always
/// inlined and unrolled, and the tile must stay in registers.)
#[inline(always)]
pub(crate) fn load_tile<S: Simd, A: Lane, const ROWS: usize>(
    simd: S,
    from: &[A],
) -> Tile<S, A, ROWS> {
    let mut tile = zeros::<S, A, ROWS, VECTORS>(simd);
    for (row, from) in tile.iter_mut().zip(from.chunks_exact(width::<S, A>())) {
        *row = load_row(simd, from);
    }
    tile
}

/// Stores a tile to rows side by side.
#[inline(always)]
pub(crate) fn store_tile<S: Simd, A: Lane, const ROWS: usize>(
    tile: Tile<S, A, ROWS>,
    to: &mut [A],
) {
    let to = &mut to[..ROWS * width::<S, A>()];
    for i in 0..ROWS {
        store_row::<S, A, VECTORS>(&tile[i], &mut to[i * width::<S, A>()..]);
    }
}

/// Stores a row of a tile.
#[inline(always)]
pub(crate) fn store_row<S: Simd, A: Lane, const V: usize>(row: &[Vector<S, A>; V], to: &mut [A]) {
    let lanes = lanes::<S, A>();
    for v in 0..V {
        row[v].store_slice(&mut to[v * lanes..(v + 1) * lanes]);
    }
}

/// Something done for a block of `ROWS` rows that begin at `first`.
pub(crate) trait Block<S: Simd> {
    /// Whether blocks of [`MAX_ROWS`] rows pay where registers hold them: with a left factor packed for it, one pointer serves
    /// all rows; else there are too few registers for the pointers.
    const PACKED: bool = false;

    fn run<const ROWS: usize>(&mut self, simd: S, first: usize);
}

/// Covers `rows` rows by blocks: the widest that the instruction set's registers hold, then what is left.
///
/// A function of its own in the machine code too, one for each accumulator and not for each element type and caller: inlined
/// everywhere the tiles would be most of the program, and most of the time it takes to compile.
#[inline(always)]
pub(crate) fn for_each_block<S: Simd, A: Lane, B: Block<S>>(simd: S, rows: usize, block: &mut B) {
    simd.vectorize(
        #[inline(always)]
        || cover::<S, A, B>(simd, rows, block),
    );
}

#[inline(always)]
fn cover<S: Simd, A: Lane, B: Block<S>>(simd: S, rows: usize, block: &mut B) {
    let mut first = 0;
    if is_512_bits::<S, A>() {
        while B::PACKED && first + MAX_ROWS <= rows {
            block.run::<MAX_ROWS>(simd, first);
            first += MAX_ROWS;
        }
        while first + 8 <= rows {
            block.run::<8>(simd, first);
            first += 8;
        }
    } else {
        while first + 6 <= rows {
            block.run::<6>(simd, first);
            first += 6;
        }
    }
    if first + 4 <= rows {
        block.run::<4>(simd, first);
        first += 4;
    }
    if first + 2 <= rows {
        block.run::<2>(simd, first);
        first += 2;
    }
    if first < rows {
        block.run::<1>(simd, first);
    }
}
