//! Matrices of rows that lie anywhere, and the copies of their parts that a product reads.

use crate::buffers::contiguous_columns;
use crate::element::Stored;
use crate::simd::{Lane, Simd, SimdBase, Vector};
use attn_core::projection::ColumnGroups;
use attn_core::{HostView, Layout, Result};
use core::ops::Range;

/// Rows and columns that are transposed at once.
const SQUARE: usize = 4;

/// Where the rows of an array `[rows..., columns]` or `[rows..., groups, columns]` begin, and where their columns lie.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    layout: Layout,
    columns: ColumnGroups,
    /// First element and distance, where rows are evenly spaced.
    even: Option<(usize, usize)>,
}

impl Rows {
    /// Of an array with this many row axes.
    pub(crate) fn new(argument: &'static str, layout: &Layout, row_axes: usize) -> Result<Self> {
        contiguous_columns(argument, layout)?;
        let columns = ColumnGroups::new(argument, layout, row_axes)?;
        Ok(Self {
            layout: *layout,
            columns,
            even: evenly_spaced(layout, row_axes),
        })
    }

    /// Index of a row's first element.
    #[inline(always)]
    pub(crate) fn start(&self, row: usize) -> usize {
        match self.even {
            Some((first, distance)) => first + row * distance,
            None => {
                let axes = self.layout.shape().rank() - self.columns.axes;
                self.layout.base(axes, row)
            }
        }
    }

    /// Index of the first element of each of some rows.
    #[inline(always)]
    pub(crate) fn starts(&self, rows: Range<usize>) -> impl Iterator<Item = usize> {
        let axis = (self.layout.shape().rank() - self.columns.axes).checked_sub(1);
        let (length, stride) = match (self.even, axis) {
            (Some((_, distance)), _) => (usize::MAX, distance),
            (None, Some(axis)) => (self.layout.shape()[axis], self.layout.strides()[axis]),
            (None, None) => (1, 0),
        };
        // Only where the last axis begins anew is the index made from all axes.
        let (mut next, mut left) = (0, 0);
        rows.map(move |row| {
            if left == 0 {
                next = self.start(row);
                left = length - row % length;
            }
            let start = next;
            next += stride;
            left -= 1;
            start
        })
    }

    /// Columns cut where a group ends: the columns of each piece, and where they lie from the start of the row.
    #[inline(always)]
    pub(crate) fn pieces(
        &self,
        columns: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, usize)> + use<> {
        let (groups, mut next) = (self.columns, columns.start);
        core::iter::from_fn(move || {
            if next >= columns.end {
                return None;
            }
            let start = next;
            next = (start / groups.columns * groups.columns + groups.columns).min(columns.end);
            let place = start / groups.columns * groups.stride + start % groups.columns;
            Some((start..next, place))
        })
    }

    /// First element and distance of evenly spaced rows, each of one piece.
    pub(crate) fn even(&self) -> Option<(usize, usize)> {
        self.even.filter(|_| {
            let axes = self.layout.shape().rank() - self.columns.axes;
            let groups = self.layout.shape()[axes..].iter().product::<usize>();
            groups <= self.columns.columns || self.columns.stride == self.columns.columns
        })
    }
}

/// First element of the first row and distance of rows, where the row axes merge into one.
fn evenly_spaced(layout: &Layout, row_axes: usize) -> Option<(usize, usize)> {
    let (shape, strides) = (layout.shape(), layout.strides());
    let mut rows = 1usize;
    let mut distance = 0;
    for (&dim, &stride) in shape[..row_axes].iter().zip(strides).rev() {
        match (dim, rows) {
            (1, _) => continue,
            (_, 1) => distance = stride,
            _ if stride == distance * rows => {}
            _ => return None,
        }
        rows = rows.checked_mul(dim)?;
    }
    let row = shape[row_axes..].iter().product();
    Some((layout.offset(), if rows <= 1 { row } else { distance }))
}

/// Rows anywhere, columns contiguous by groups; or the transpose of that.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: Rows,
    pub(crate) transposed: bool,
}

impl<'a, T: Stored> Matrix<'a, T> {
    /// An array with this many row axes.
    pub(crate) fn new(
        argument: &'static str,
        view: &HostView<'a, T>,
        row_axes: usize,
    ) -> Result<Self> {
        Ok(Self {
            data: view.buf(),
            rows: Rows::new(argument, view.layout(), row_axes)?,
            transposed: false,
        })
    }

    pub(crate) fn transpose(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }

    /// Elements side by side of a row as it is stored: a column of a transposed matrix.
    #[inline(always)]
    fn stored(&self, row: usize, place: usize, count: usize) -> &'a [T] {
        &self.data[self.rows.start(row) + place..][..count]
    }

    /// Widens columns of a row as it is stored.
    #[inline(always)]
    pub(crate) fn widen_row(&self, row: usize, columns: Range<usize>, to: &mut [T::Acc]) {
        let first = columns.start;
        for (piece, place) in self.rows.pieces(columns) {
            let to = &mut to[piece.start - first..piece.end - first];
            widen_short::<T>(self.stored(row, place, piece.len()), to);
        }
    }

    /// Widens `ROWS` rows from `first` on, transposed: `[columns][ROWS]`.
    #[inline(always)]
    pub(crate) fn pack<S: Simd, const ROWS: usize>(
        &self,
        simd: S,
        first: usize,
        columns: Range<usize>,
        to: &mut [T::Acc],
    ) {
        let (to, _) = to.as_chunks_mut::<ROWS>();
        if self.transposed {
            let whole = self.rows.pieces(first..first + ROWS).next();
            let place = whole.and_then(|(piece, place)| (piece.len() == ROWS).then_some(place));
            for (column, to) in columns.zip(to) {
                match place {
                    // Of constant length, so that it becomes moves of vectors.
                    Some(place) => T::widen(&self.stored(column, place, ROWS)[..ROWS], to),
                    None => self.widen_row(column, first..first + ROWS, to),
                }
            }
            return;
        }
        let before = columns.start;
        for (piece, place) in self.rows.pieces(columns) {
            let to = &mut to[piece.start - before..piece.end - before];
            self.pack_piece(simd, first, place, to);
        }
    }

    /// Widens and transposes elements side by side of `ROWS` rows.
    #[inline(always)]
    fn pack_piece<S: Simd, const ROWS: usize>(
        &self,
        simd: S,
        first: usize,
        place: usize,
        to: &mut [[T::Acc; ROWS]],
    ) {
        // By squares of four, the last one overlapping the one before it where four does not divide: compilers make shuffles of
        // these, and of longer columns gathers.
        let mut start = 0;
        while start < ROWS {
            let corner = start.min(ROWS.saturating_sub(SQUARE));
            if ROWS < SQUARE {
                for i in 0..ROWS {
                    let from = self.stored(first + i, place, to.len());
                    for (to, from) in to.iter_mut().zip(from) {
                        to[i] = from.to_acc();
                    }
                }
            } else {
                self.pack_squares(simd, first + corner, place, corner, to);
            }
            start += SQUARE;
        }
    }

    /// Widens four rows to four places, from `corner` on, of each entry of `to`.
    #[inline(always)]
    fn pack_squares<S: Simd, const ROWS: usize>(
        &self,
        simd: S,
        first: usize,
        place: usize,
        corner: usize,
        to: &mut [[T::Acc; ROWS]],
    ) {
        let row = |i| {
            self.stored(first + i, place, to.len())
                .as_chunks::<SQUARE>()
        };
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        let (squares, rest) = to.as_chunks_mut::<SQUARE>();
        for ((((to, a), b), c), d) in squares.iter_mut().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
            let mut square = [[T::Acc::default(); SQUARE]; SQUARE];
            T::widen(a, &mut square[0]);
            T::widen(b, &mut square[1]);
            T::widen(c, &mut square[2]);
            T::widen(d, &mut square[3]);
            let [a, b, c, d] = &square;
            transpose(simd, (a, b, c, d), corner, to);
        }
        for (j, to) in rest.iter_mut().enumerate() {
            let column = [a.1[j], b.1[j], c.1[j], d.1[j]].map(T::to_acc);
            to[corner..corner + SQUARE].copy_from_slice(&column);
        }
    }

    /// Widens some columns of the rows `depth` to `[depth][width]`; lanes beyond the last column become 0.
    #[inline(always)]
    pub(crate) fn widen_panel<S: Simd>(
        &self,
        simd: S,
        depth: Range<usize>,
        columns: Range<usize>,
        width: usize,
        panel: &mut [T::Acc],
    ) {
        let panel = &mut panel[..depth.len() * width];
        if self.transposed {
            self.transpose_panel(simd, depth, columns, width, panel);
            return;
        }
        for (step, to) in depth.zip(panel.chunks_exact_mut(width)) {
            let (used, unused) = to.split_at_mut(columns.len());
            self.widen_row(step, columns.clone(), used);
            unused.fill(T::Acc::default());
        }
    }

    #[inline(always)]
    fn transpose_panel<S: Simd>(
        &self,
        simd: S,
        depth: Range<usize>,
        columns: Range<usize>,
        width: usize,
        panel: &mut [T::Acc],
    ) {
        if columns.len() < width {
            panel.fill(T::Acc::default());
        }
        if let Some((_, distance)) = self.rows.even()
            && let Some(data) = T::as_acc(self.data)
            && !depth.is_empty()
        {
            let from = &data[self.rows.start(columns.start) + depth.start..];
            let sizes = (columns.len(), depth.len());
            transpose_strided(simd, from, distance, sizes, panel, width);
            return;
        }
        let before = depth.start;
        for (lane, column) in columns.enumerate() {
            for (piece, place) in self.rows.pieces(depth.clone()) {
                let to = &mut panel[(piece.start - before) * width..];
                let from = self.stored(column, place, piece.len());
                for (to, from) in to.chunks_exact_mut(width).zip(from) {
                    to[lane] = from.to_acc();
                }
            }
        }
    }
}

/// Transposes `rows` rows of `columns` elements, `stride` apart, to places from `at` on of each entry of `to`.
#[inline(always)]
pub(crate) fn transpose_rows<S: Simd, A: Lane, const TO: usize>(
    simd: S,
    from: &[A],
    stride: usize,
    (rows, columns): (usize, usize),
    at: usize,
    to: &mut [[A; TO]],
) {
    let whole = rows / SQUARE * SQUARE;
    for first in (0..whole).step_by(SQUARE) {
        let row = |i: usize| from[(first + i) * stride..][..columns].as_chunks::<SQUARE>();
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        // It is never beyond: said so that no square checks it.
        let place = (at + first).min(TO - SQUARE);
        let (to, rest) = to[..columns].as_chunks_mut::<SQUARE>();
        for ((((to, a), b), c), d) in to.iter_mut().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
            transpose(simd, (a, b, c, d), place, to);
        }
        for (n, to) in rest.iter_mut().enumerate() {
            let four = [a.1[n], b.1[n], c.1[n], d.1[n]];
            to[place..place + SQUARE].copy_from_slice(&four);
        }
    }
    for row in whole..rows {
        for (to, &from) in to.iter_mut().zip(&from[row * stride..][..columns]) {
            to[at + row] = from;
        }
    }
}

/// Transposes `(rows, columns)` of `from`, rows `stride` apart, into rows `to_stride` apart.
#[inline(always)]
pub(crate) fn transpose_strided<S: Simd, A: Lane>(
    simd: S,
    from: &[A],
    stride: usize,
    (rows, columns): (usize, usize),
    to: &mut [A],
    to_stride: usize,
) {
    let (even_rows, even_columns) = (rows / SQUARE * SQUARE, columns / SQUARE * SQUARE);
    for row in (0..even_rows).step_by(SQUARE) {
        let from = &from[row * stride..];
        let (a, b) = (&from[..columns], &from[stride..][..columns]);
        let (c, d) = (
            &from[2 * stride..][..columns],
            &from[3 * stride..][..columns],
        );
        let squares = (a.as_chunks::<SQUARE>().0.iter()).zip(b.as_chunks::<SQUARE>().0);
        let squares = squares
            .zip(c.as_chunks::<SQUARE>().0)
            .zip(d.as_chunks::<SQUARE>().0);
        for ((((a, b), c), d), to) in squares.zip(to.chunks_mut(SQUARE * to_stride)) {
            let mut square = [[A::default(); SQUARE]; SQUARE];
            transpose(simd, (a, b, c, d), 0, &mut square);
            let to = &mut to[row..row + 3 * to_stride + SQUARE];
            to[..SQUARE].copy_from_slice(&square[0]);
            to[to_stride..][..SQUARE].copy_from_slice(&square[1]);
            to[2 * to_stride..][..SQUARE].copy_from_slice(&square[2]);
            to[3 * to_stride..][..SQUARE].copy_from_slice(&square[3]);
        }
        for column in even_columns..columns {
            let to = &mut to[column * to_stride + row..][..SQUARE];
            to.copy_from_slice(&[a[column], b[column], c[column], d[column]]);
        }
    }
    for row in even_rows..rows {
        for (column, &from) in from[row * stride..][..columns].iter().enumerate() {
            to[column * to_stride + row] = from;
        }
    }
}

/// Transposes a square, by interleaving its rows twice, to places from `corner` on.
#[inline(always)]
fn transpose<S: Simd, A: Lane, const TO: usize>(
    simd: S,
    (a, b, c, d): (&[A; SQUARE], &[A; SQUARE], &[A; SQUARE], &[A; SQUARE]),
    corner: usize,
    to: &mut [[A; TO]; SQUARE],
) {
    let step = Quarter::<S, A>::LEN;
    for first in (0..SQUARE).step_by(step) {
        let row = |row: &[A; SQUARE]| Quarter::<S, A>::from_slice(simd, &row[first..first + step]);
        let (even, odd) = (row(a).interleave(row(c)), row(b).interleave(row(d)));
        let (low, high) = (even.0.interleave(odd.0), even.1.interleave(odd.1));
        let mut put = |n: usize, part: Quarter<S, A>| {
            let place = n * step;
            let start = corner + place % SQUARE;
            part.store_slice(&mut to[first + place / SQUARE][start..start + step]);
        };
        put(0, low.0);
        put(1, low.1);
        put(2, high.0);
        put(3, high.1);
    }
}

/// A vector of 16 bytes.
type Quarter<S, A> = <Vector<S, A> as SimdBase<S>>::Block;

/// Widens a few elements. (By pieces of constant length, which become vector moves: a call of `memcpy` for a row of a panel
/// costs more than the copy.)
#[inline(always)]
pub(crate) fn widen_short<T: Stored>(from: &[T], to: &mut [T::Acc]) {
    const PIECE: usize = 8;
    let (pieces, rest) = from.as_chunks::<PIECE>();
    let (to_pieces, to_rest) = to.as_chunks_mut::<PIECE>();
    for (from, to) in pieces.iter().zip(to_pieces) {
        T::widen(from, to);
    }
    for (from, to) in rest.iter().zip(to_rest) {
        *to = from.to_acc();
    }
}
