//! Arrays `[batch..., length, heads, depth]`: reading tiles of a head, writing its rows.

use crate::element::Stored;
use crate::prefetch::prefetch;
use crate::shared::Shared;
use crate::simd::Simd;
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
        if rows.is_empty() || depth == 0 {
            // The layout of an empty array may name any place.
            return &[];
        }
        let (first, stride) = row_start(&self.layout, batch, head);
        let contiguous = stride == depth && self.column_stride() == 1;
        if contiguous && let Some(data) = T::as_acc(self.data) {
            return &data[first + rows.start * stride..][..rows.len() * depth];
        }
        self.widen(batch, head, rows, depth, copy);
        copy
    }
}

/// The rows of one head.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a, T> {
    data: &'a [T],
    first: usize,
    stride: usize,
    column_stride: usize,
    depth: usize,
}

impl<'a, T: Stored> Heads<'a, T> {
    pub(crate) fn head(&self, batch: usize, head: usize, depth: usize) -> Head<'a, T> {
        let (first, stride) = row_start(&self.layout, batch, head);
        Head {
            data: self.data,
            first,
            stride,
            column_stride: self.column_stride(),
            depth,
        }
    }
}

impl<'a, T: Stored> Head<'a, T> {
    /// Some rows, and the elements from one to the next: as they lie, or widened into `copy` where they need widening or do not end
    /// with a whole number of `multiple` columns; then what follows them is 0. A copied row is 16 columns or a multiple long.
    #[inline(always)]
    pub(crate) fn rows<'b, S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        multiple: usize,
        copy: &'b mut [T::Acc],
    ) -> (&'b [T::Acc], usize)
    where
        'a: 'b,
    {
        let (depth, stride) = (self.depth, self.stride);
        if rows.is_empty() || depth == 0 {
            return (&[], depth);
        }
        let start = self.first + rows.start * stride;
        if self.column_stride == 1
            && depth.is_multiple_of(multiple)
            && stride >= depth
            && let Some(data) = T::as_acc(self.data)
        {
            return (&data[start..][..(rows.len() - 1) * stride + depth], stride);
        }
        let width = depth.next_multiple_of(16);
        for (n, to) in copy.chunks_exact_mut(width).take(rows.len()).enumerate() {
            let start = start + n * stride;
            let (to, beyond) = to.split_at_mut(depth);
            match self.column_stride {
                1 => T::widen_on(simd, &self.data[start..start + depth], to),
                columns => {
                    for (column, to) in to.iter_mut().enumerate() {
                        *to = self.data[start + column * columns].to_acc();
                    }
                }
            }
            beyond.fill(T::Acc::default());
        }
        (copy, width)
    }

    /// Asks for rows that will be read soon; those beyond the end are passed over.
    #[inline(always)]
    pub(crate) fn prefetch(&self, rows: Range<usize>) {
        for row in rows {
            let start = self.first + row * self.stride;
            if let Some(row) = self.data.get(start..start + self.depth) {
                prefetch(row);
            }
        }
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
///
/// # Safety
///
/// As [`Shared::write`].
#[inline(always)]
#[expect(unsafe_code, reason = "passes the contract of `Shared` on")]
pub(crate) unsafe fn write_narrowed<T: Stored>(
    out: &Shared<'_, T>,
    start: usize,
    stride: usize,
    row: &[T::Acc],
) {
    const CHUNK: usize = 64;
    if row.is_empty() {
        // The layout of an empty array may name any place.
        return;
    }
    if stride == 1 {
        // SAFETY: these are the elements that the caller vouches for.
        T::narrow(row, unsafe { out.slice(start..start + row.len()) });
        return;
    }
    let mut narrow = [T::default(); CHUNK];
    for (n, row) in row.chunks(CHUNK).enumerate() {
        T::narrow(row, &mut narrow[..row.len()]);
        // SAFETY: these are elements of the row that the caller vouches for.
        unsafe { out.write(start + n * CHUNK * stride, stride, &narrow[..row.len()]) };
    }
}
