//! Arrays `[batch..., length, heads, depth]`: reading tiles of a head, writing its rows.

use crate::element::Stored;
use crate::shared::Shared;
use attn_core::{HostView, Layout};
use core::ops::Range;

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
    pub(crate) fn widen(
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
    pub(crate) fn tile<'b>(
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
pub(crate) fn row_start(layout: &Layout, batch: usize, head: usize) -> (usize, usize) {
    let axes = layout.shape().rank() - 3;
    (
        layout.base(axes, batch) + head * layout.strides()[axes + 1],
        layout.strides()[axes],
    )
}

/// Rounds a row and writes it.
#[inline(always)]
pub(crate) fn write_narrowed<T: Stored>(
    out: &Shared<'_, T>,
    start: usize,
    stride: usize,
    row: &[T::Acc],
) {
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
pub(crate) fn write_row<T: attn_core::Scalar>(
    out: &Shared<'_, T>,
    start: usize,
    stride: usize,
    row: &[T],
) {
    // SAFETY: `Jobs` gives each job once, jobs are disjoint in (batch, head, query), a job writes only rows of its own, and
    // `ViewMut` guarantees that no two elements share an index.
    unsafe { out.write(start, stride, row) };
}

/// Adds a row to what is there, element after element: with a stride of 0 all go to the same one.
#[inline(always)]
#[expect(unsafe_code, reason = "each job adds to elements of its own")]
pub(crate) fn add_to_row<A: crate::simd::Lane>(
    to: &Shared<'_, A>,
    start: usize,
    stride: usize,
    row: &[A],
) {
    let Some(last) = row.len().checked_sub(1) else {
        return;
    };
    // SAFETY: the jobs of a gradient that is shared are cut by its elements, so no other job reaches these while the slice lives.
    let to = unsafe { to.slice(start..start + last * stride + 1) };
    for (n, &value) in row.iter().enumerate() {
        to[n * stride] += value;
    }
}
