//! The arrays of a case, placed in buffers in several ways.

use super::cases::{Case, Placement};
use super::data::Numbers;
use crate::dropout::Dropout;
use crate::dtype::{Element, Scalar};
use crate::error::Result;
use crate::layout::{Dims, Layout};
use crate::mask::Mask;
use crate::random::Key;
use crate::request::Attention;
use crate::view::{Host, HostView, HostViewMut};
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

/// The inputs of a case, in one of its draws.
pub(super) struct Inputs<T: Element> {
    query: Placed<T>,
    key: Placed<T>,
    value: Placed<T>,
    mask: Option<Placed<u8>>,
    bias: Option<Placed<T::Acc>>,
    dropout: Option<Dropout>,
}

impl<T: Element> Inputs<T> {
    pub(super) fn new(case: &Case, draw: usize) -> Result<Self> {
        let mut numbers = Numbers::new(&format!("{} {draw}", case.name));
        let mut placed = |length, depth, size: f64| {
            let shape = [length, case.heads, depth];
            Placed::new(case.placement, &case.batch, shape, || {
                T::from_f64(numbers.normal() * size)
            })
        };
        Ok(Self {
            query: placed(case.query_length, case.depth, case.size)?,
            key: placed(case.key_length, case.depth, case.size)?,
            value: placed(case.key_length, case.value_depth, 1.0)?,
            mask: mask(case, &mut numbers)?,
            bias: bias(case, &mut numbers)?,
            dropout: dropout::<T>(case, &mut numbers)?,
        })
    }

    /// The request that the case describes.
    pub(super) fn call(&self, case: &Case) -> Result<Attention<'_, Host, T>> {
        let mask = self.mask.as_ref().map(Placed::view).transpose()?;
        let keep = case.mask.as_ref().is_some_and(|mask| mask.keep);
        let mask = mask.map(|bytes| match keep {
            true => Mask::keep(bytes),
            false => Mask::drop(bytes),
        });
        let bias = self.bias.as_ref().map(Placed::view).transpose()?;
        Ok(
            Attention::new(self.query.view()?, self.key.view()?, self.value.view()?)
                .with_scale(case.scale)
                .with_causal(case.causal)
                .with_mask(mask)
                .with_bias(bias)
                .with_fully_masked(case.fully_masked)
                .with_dropout(self.dropout),
        )
    }
}

fn mask(case: &Case, numbers: &mut Numbers) -> Result<Option<Placed<u8>>> {
    let Some(mask) = &case.mask else {
        return Ok(None);
    };
    let columns = mask.shape.last().copied().unwrap_or(1).max(1);
    let mut index = 0;
    let next = || {
        let blind = mask.blind_rows && (index / columns).is_multiple_of(3);
        let seen = numbers.uniform() < mask.density && !blind;
        // Any byte but 0 is set.
        let set = 1 + (index % 255) as u8;
        index += 1;
        if seen == mask.keep { set } else { 0 }
    };
    Placed::tensor(case.placement, &mask.shape, 1, next).map(Some)
}

/// Each draw has a key of its own.
fn dropout<T: Element>(case: &Case, numbers: &mut Numbers) -> Result<Option<Dropout>> {
    let Some(dropout) = case.dropout else {
        return Ok(None);
    };
    let bits = numbers.bits();
    let key = Key::from_words([(bits >> 32) as u32, bits as u32]);
    Dropout::new(
        key,
        dropout.rate,
        T::DTYPE,
        dropout.shared,
        dropout.convention,
    )
}

fn bias<A: Element>(case: &Case, numbers: &mut Numbers) -> Result<Option<Placed<A>>> {
    let Some((shape, infinite)) = &case.bias else {
        return Ok(None);
    };
    let next = || {
        let value = numbers.normal();
        let cut = *infinite && value > 1.0;
        A::from_f64(if cut { f64::NEG_INFINITY } else { value })
    };
    Placed::tensor(case.placement, shape, A::from_f64(f64::NAN), next).map(Some)
}
