//! The arrays of a case, placed in buffers in several ways.

use super::case::{Case, Placement};
use super::data::Numbers;
use crate::dtype::{Element, Scalar};
use crate::error::Result;
use crate::layout::{Dims, Layout};
use crate::view::{HostView, HostViewMut};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// An array in a buffer of its own.
pub(super) struct Placed<T> {
    pub(super) buffer: Vec<T>,
    pub(super) layout: Layout,
}

impl<T: Element> Placed<T> {
    /// `[batch..., length, heads, depth]`, filled by `next` in that order; what it does not cover is NaN.
    pub(super) fn new(
        placement: Placement,
        batch: &[usize],
        [length, heads, depth]: [usize; 3],
        next: impl FnMut() -> T,
    ) -> Result<Self> {
        let row = heads * (depth + 3) + 1;
        let (offset, [sl, sh, sd], size) = match placement {
            Placement::Contiguous => (0, [heads * depth, depth, 1], length * heads * depth),
            Placement::HeadsMajor => (0, [depth, length * depth, 1], length * heads * depth),
            Placement::Gaps => (5, [row, depth + 3, 1], length * row),
            Placement::Transposed => (0, [1, length * depth, length], length * heads * depth),
        };
        let shape = Dims::new(batch)?.concat(&[length, heads, depth])?;
        let mut strides = vec![0; shape.rank()];
        strides[batch.len()..].copy_from_slice(&[sl, sh, sd]);
        let mut step = size;
        for axis in (0..batch.len()).rev() {
            strides[axis] = step;
            step *= batch[axis];
        }
        let layout = Layout::strided(offset, shape, &strides)?;
        Self::fill(layout, offset + step, T::from_f64(f64::NAN), next)
    }
}

impl<T: Scalar> Placed<T> {
    /// An array of any shape, filled by `next` in row-major order; `gap` is what it does not cover.
    pub(super) fn tensor(
        placement: Placement,
        shape: &[usize],
        gap: T,
        next: impl FnMut() -> T,
    ) -> Result<Self> {
        let rank = shape.len();
        let mut order: Vec<usize> = (0..rank).collect();
        if placement == Placement::Transposed && rank >= 2 {
            order.swap(rank - 2, rank - 1);
        }
        let (offset, gap_length) = match placement {
            Placement::Gaps => (3, 2),
            _ => (0, 0),
        };
        let mut strides = vec![0; rank];
        let mut step = 1;
        for (inner, &axis) in order.iter().rev().enumerate() {
            strides[axis] = step;
            step *= shape[axis];
            if inner == 0 {
                step += gap_length;
            }
        }
        let layout = Layout::strided(offset, Dims::new(shape)?, &strides)?;
        Self::fill(layout, offset + step, gap, next)
    }

    fn fill(layout: Layout, length: usize, gap: T, mut next: impl FnMut() -> T) -> Result<Self> {
        let mut buffer = vec![gap; length.max(layout.end()?)];
        for n in 0..layout.elements() {
            buffer[layout.base(layout.shape().rank(), n)] = next();
        }
        Ok(Self { buffer, layout })
    }

    /// An element of the buffer that is not the array's and holds something else than NaN.
    pub(super) fn written_outside(&self) -> Option<usize>
    where
        T: Element,
    {
        written_outside(&self.buffer, &self.layout)
    }

    /// The `n`-th element, row-major.
    pub(super) fn at(&self, n: usize) -> T {
        self.buffer[self.layout.base(self.layout.shape().rank(), n)]
    }

    pub(super) fn view(&self) -> Result<HostView<'_, T>> {
        HostView::with_layout(&self.buffer, self.layout)
    }

    pub(super) fn view_mut(&mut self) -> Result<HostViewMut<'_, T>> {
        HostViewMut::with_layout(&mut self.buffer, self.layout)
    }
}

/// Index of an element of `buffer` that `layout` does not name and that is not NaN.
pub(super) fn written_outside<T: Element>(buffer: &[T], layout: &Layout) -> Option<usize> {
    let mut outside = vec![true; buffer.len()];
    for n in 0..layout.elements() {
        outside[layout.base(layout.shape().rank(), n)] = false;
    }
    (0..buffer.len()).find(|&index| outside[index] && !buffer[index].to_f64().is_nan())
}

/// The gradient of a case's output, in one of its draws.
pub(super) fn d_out<T: Element>(case: &Case, draw: usize) -> Result<Placed<T>> {
    let mut numbers = Numbers::new(&format!("{} {draw} d_out", case.name));
    let shape = [case.query_length, case.heads, case.value_depth];
    Placed::new(case.placement, &case.batch, shape, || {
        T::from_f64(numbers.normal())
    })
}
