//! The three products of a pair of tiles. Queries lie in lanes, keys go down the rows.

use crate::micro::{
    Block, ByColumns, ByRows, Left, VECTORS, Window, add_scaled, load_row, load_tile, multiply,
    store_tile, width, zeros,
};
use crate::scores::KEYS;
use crate::simd::{Lane, Simd};

/// `out = rows · lanesᵀ` for some rows: scores from keys and queries, the gradients of weights from values and gradients of the
/// output.
pub(crate) struct Products<'a, A> {
    pub(crate) rows: &'a [A],
    /// Transposed, `[depth][width]`.
    pub(crate) lanes: &'a [A],
    pub(crate) out: &'a mut [A],
    pub(crate) depth: usize,
}

impl<S: Simd, A: Lane> Block<S> for Products<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let left = ByRows::<A, ROWS>::new(self.rows, self.depth, first, self.depth);
        let acc = multiply(
            simd,
            self.depth,
            &left,
            self.lanes,
            width,
            zeros::<S, A, ROWS, VECTORS>(simd),
        );
        store_tile::<S, A, ROWS>(acc, &mut self.out[first * width..]);
    }
}

/// `out = out · alpha + rowsᵀ · lanes` for some columns of the rows: the output from values and weights, the gradient of queries
/// from keys and gradients of scores.
pub(crate) struct Columns<'a, A> {
    /// `[keys][depth]`.
    pub(crate) rows: &'a [A],
    /// `[keys][width]`.
    pub(crate) lanes: &'a [A],
    /// `[depth][width]`.
    pub(crate) out: &'a mut [A],
    /// A factor for each lane.
    pub(crate) alpha: &'a [A],
    pub(crate) depth: usize,
    pub(crate) keys: usize,
}

impl<S: Simd, A: Lane> Block<S> for Columns<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let out = &mut self.out[first * width..][..ROWS * width];
        let left = ByColumns {
            matrix: self.rows,
            stride: self.depth,
            first,
        };
        let acc = zeros::<S, A, ROWS, VECTORS>(simd);
        let mut acc = multiply(simd, self.keys, &left, self.lanes, width, acc);
        let alpha = load_row::<S, A, VECTORS>(simd, self.alpha);
        for (acc, out) in acc.iter_mut().zip(out.chunks_exact(width)) {
            add_scaled::<S, A, VECTORS>(simd, acc, out, alpha);
        }
        store_tile::<S, A, ROWS>(acc, out);
    }
}

/// `out += tile · rows` for some keys and a panel of columns, summed over the queries: the gradients of keys and of values.
pub(crate) struct OverQueries<'a, A> {
    /// `[strip][KEYS][width]`.
    pub(crate) tile: &'a [A],
    /// The panel's columns of each query, `[query][width]` with `stride` elements a query; 0 for lanes that hold no query.
    pub(crate) rows: &'a [A],
    pub(crate) stride: usize,
    pub(crate) strips: usize,
    /// `[key][width]`.
    pub(crate) out: &'a mut [A],
}

impl<S: Simd, A: Lane> Block<S> for OverQueries<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let out = &mut self.out[first * width..][..ROWS * width];
        let left = ByStrips {
            tile: &self.tile[first * width..],
            width,
        };
        let acc = load_tile::<S, A, ROWS>(simd, out);
        let steps = self.strips * width;
        let acc = multiply(simd, steps, &left, self.rows, self.stride, acc);
        store_tile::<S, A, ROWS>(acc, out);
    }
}

/// The left factor of [`OverQueries`]: a query is a lane of a strip.
struct ByStrips<'a, A> {
    /// From the first key on.
    tile: &'a [A],
    width: usize,
}

impl<A: Copy, const ROWS: usize> Left<A, ROWS> for ByStrips<'_, A> {
    type Window<'w, const N: usize>
        = Lanes<'w, A>
    where
        Self: 'w;

    #[inline(always)]
    fn window<const N: usize>(&self, query: usize) -> Self::Window<'_, N> {
        // A strip is a multiple of the steps of a window wide, so a window lies within one.
        let start = query / self.width * self.width * KEYS + query % self.width;
        Lanes {
            rows: &self.tile[start..][..(ROWS - 1) * self.width + N],
            width: self.width,
        }
    }
}

/// A few queries of [`ByStrips`].
struct Lanes<'w, A> {
    rows: &'w [A],
    width: usize,
}

impl<A: Copy> Window<A> for Lanes<'_, A> {
    #[inline(always)]
    fn at(&self, i: usize, step: usize) -> A {
        self.rows[i * self.width + step]
    }
}
