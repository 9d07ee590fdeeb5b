//! The three products of a pair of tiles. Queries lie in lanes, keys go down the rows.

use crate::micro::{Block, ByColumns, ByRows, Tile, load_row, multiply, store_row, width, zeros};
use crate::scores::KEYS;
use crate::simd::{Lane, Simd, splat};

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
            zeros::<S, A, ROWS>(simd),
        );
        for (row, to) in acc
            .into_iter()
            .zip(self.out[first * width..].chunks_exact_mut(width))
        {
            store_row::<S, A>(row, to);
        }
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
        let alpha = load_row::<S, A>(simd, self.alpha);
        let out = &mut self.out[first * width..][..ROWS * width];
        let mut acc: Tile<S, A, ROWS> = [[splat(simd, A::default()); 2]; ROWS];
        for (acc, row) in acc.iter_mut().zip(out.chunks_exact(width)) {
            let row = load_row::<S, A>(simd, row);
            *acc = core::array::from_fn(|v| row[v] * alpha[v]);
        }
        let left = ByColumns {
            matrix: self.rows,
            stride: self.depth,
            first,
        };
        let acc = multiply(simd, self.keys, &left, self.lanes, width, acc);
        for (row, to) in acc.into_iter().zip(out.chunks_exact_mut(width)) {
            store_row::<S, A>(row, to);
        }
    }
}

/// `out += tile · rows` for some keys, summed over the queries: the gradients of keys and of values.
pub(crate) struct OverQueries<'a, A> {
    /// `[strip][KEYS][width]`.
    pub(crate) tile: &'a [A],
    /// `[query][stride]`, 0 for lanes that hold no query.
    pub(crate) rows: &'a [A],
    /// `[key][stride]`.
    pub(crate) out: &'a mut [A],
    /// Columns, a multiple of the width.
    pub(crate) stride: usize,
    pub(crate) strips: usize,
}

impl<S: Simd, A: Lane> Block<S> for OverQueries<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let (width, stride) = (width::<S, A>(), self.stride);
        let out = &mut self.out[first * stride..][..ROWS * stride];
        for column in (0..stride).step_by(width) {
            let mut acc: Tile<S, A, ROWS> =
                core::array::from_fn(|i| load_row(simd, &out[i * stride + column..][..width]));
            for strip in 0..self.strips {
                let tile = &self.tile[strip * width * KEYS..];
                let left = ByRows::<A, ROWS>::new(tile, width, first, width);
                let rows = &self.rows[strip * width * stride + column..];
                acc = multiply(simd, width, &left, rows, stride, acc);
            }
            for (i, row) in acc.into_iter().enumerate() {
                store_row::<S, A>(row, &mut out[i * stride + column..][..width]);
            }
        }
    }
}
