//! Arrays `[batch..., length, heads, depth]`: reading and writing rows of a head.

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
