//! The register tile: a sum of outer products, `acc[i][lane] += Σ_k left(k)[i] · right[k][lane]`.
//!
//! Everything rests on it: scores (left = keys, lanes = queries), the sum of values (left = values, lanes = queries) and
//! projections (left = input rows, lanes = output columns). Each accumulator is one chain over `k` in order, so an
//! element has the same bits whatever tile it is computed in; that is what makes results independent of the number of
//! rows, queries and threads.
//!
//! Two vectors of lanes and 6 or 8 rows give 12 or 16 independent chains: enough to hide the latency of a fused
//! multiply-add (4 cycles, 2 a cycle), few enough for the 16 registers of AVX2 (12 + 2 + 1). With 512-bit registers there
//! are 32, and 8 rows divide the usual depths.

use crate::simd::{Lane, Simd, SimdBase, SimdFloat, Vector, lanes, load, splat};

/// Vectors of lanes in a tile.
const VECTORS: usize = 2;

/// Rows of the widest tile.
pub(crate) const MAX_ROWS: usize = 8;

/// Lanes of the widest tile of all instruction sets: two 64-byte vectors of `f32`.
pub(crate) const MAX_WIDTH: usize = 32;

/// Lanes of a tile.
pub(crate) const fn width<S: Simd, A: Lane>() -> usize {
    VECTORS * lanes::<S, A>()
}

/// The accumulators of a tile.
pub(crate) type Tile<S, A, const ROWS: usize> = [[Vector<S, A>; VECTORS]; ROWS];

/// The left factor.
pub(crate) trait Left<A, const ROWS: usize> {
    /// Its rows at step `k`.
    fn at(&self, k: usize) -> [A; ROWS];
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

impl<A: Copy + Default, const ROWS: usize> Left<A, ROWS> for ByRows<'_, A, ROWS> {
    #[inline(always)]
    fn at(&self, k: usize) -> [A; ROWS] {
        let mut rows = [A::default(); ROWS];
        for (to, row) in rows.iter_mut().zip(&self.0) {
            *to = row[k];
        }
        rows
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

impl<A: Copy + Default, const ROWS: usize> Left<A, ROWS> for ByColumns<'_, A> {
    #[inline(always)]
    fn at(&self, k: usize) -> [A; ROWS] {
        let mut rows = [A::default(); ROWS];
        rows.copy_from_slice(&self.matrix[k * self.stride + self.first..][..ROWS]);
        rows
    }
}

/// Adds `depth` outer products to `acc`. `right` has `stride` elements a step, of which the first [`width`] are used.
#[inline(always)]
pub(crate) fn multiply<S: Simd, A: Lane, L: Left<A, ROWS>, const ROWS: usize>(
    simd: S,
    depth: usize,
    left: &L,
    right: &[A],
    stride: usize,
    mut acc: Tile<S, A, ROWS>,
) -> Tile<S, A, ROWS> {
    for (k, right) in right.chunks(stride).take(depth).enumerate() {
        let right = load_row::<S, A>(simd, right);
        let left = left.at(k);
        for i in 0..ROWS {
            let left = splat(simd, left[i]);
            for v in 0..VECTORS {
                acc[i][v] = left.mul_add(right[v], acc[i][v]);
            }
        }
    }
    acc
}

/// A tile of zeros.
#[inline(always)]
pub(crate) fn zeros<S: Simd, A: Lane, const ROWS: usize>(simd: S) -> Tile<S, A, ROWS> {
    [[splat(simd, A::default()); VECTORS]; ROWS]
}

/// Loads a row of a tile from [`width`] elements.
#[inline(always)]
pub(crate) fn load_row<S: Simd, A: Lane>(simd: S, from: &[A]) -> [Vector<S, A>; VECTORS] {
    let lanes = lanes::<S, A>();
    // Written out: the compiler does not always inline `array::from_fn`, and then nothing stays in registers.
    [
        load(simd, &from[..lanes]),
        load(simd, &from[lanes..VECTORS * lanes]),
    ]
}

/// Loads a tile whose rows lie side by side. (Loops over chunks, since neither `array::from_fn` nor indexed loops are always
/// inlined and unrolled, and the tile must stay in registers.)
#[inline(always)]
pub(crate) fn load_tile<S: Simd, A: Lane, const ROWS: usize>(
    simd: S,
    from: &[A],
) -> Tile<S, A, ROWS> {
    let mut tile = zeros::<S, A, ROWS>(simd);
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
    for (row, to) in tile.into_iter().zip(to.chunks_exact_mut(width::<S, A>())) {
        store_row::<S, A>(row, to);
    }
}

/// Stores a row of a tile to [`width`] elements.
#[inline(always)]
pub(crate) fn store_row<S: Simd, A: Lane>(row: [Vector<S, A>; VECTORS], to: &mut [A]) {
    let lanes = lanes::<S, A>();
    for (v, vector) in row.into_iter().enumerate() {
        vector.store_slice(&mut to[v * lanes..(v + 1) * lanes]);
    }
}

/// Something done for a block of `ROWS` rows that begin at `first`.
pub(crate) trait Block<S: Simd> {
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
    if lanes::<S, A>() * size_of::<A>() == 64 {
        while first + MAX_ROWS <= rows {
            block.run::<MAX_ROWS>(simd, first);
            first += MAX_ROWS;
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
