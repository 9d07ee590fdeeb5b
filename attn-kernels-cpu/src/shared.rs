//! One output written by several threads.
//!
//! Rows of different heads interleave in `[length, heads, depth]`, so jobs that own disjoint rows cannot be given disjoint
//! slices. This module is the fence around the one pointer that takes their place.
#![expect(
    unsafe_code,
    reason = "disjoint interleaved rows cannot be expressed as slices"
)]

use attn_core::{Host, Scalar, ViewMut};
use core::marker::PhantomData;
use core::ops::Range;

/// A mutable buffer whose elements are written by several jobs, each its own.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only accesses are `write`, `add` and `slice`, whose contracts forbid two threads to touch one element; `T: Send` lets another
// thread write values of it.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Scalar> Shared<'a, T> {
    pub(crate) fn new(view: &'a mut ViewMut<'_, Host, T>) -> Self {
        Self::from_slice(view.buf_mut())
    }

    pub(crate) fn from_slice(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }

    /// Writes `values` to the elements `first, first + stride, …`.
    ///
    /// # Panics
    ///
    /// If an element lies outside the buffer.
    ///
    /// # Safety
    ///
    /// While `self` lives, no other thread may reach the same elements at the same time.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, first: usize, stride: usize, values: &[T]) {
        let Some(last) = values.len().checked_sub(1) else {
            return;
        };
        assert!(
            first
                .checked_add(last * stride)
                .is_some_and(|end| end < self.len),
            "write outside the output"
        );
        for (i, &value) in values.iter().enumerate() {
            // SAFETY: the index is at most `end`, which was checked above, so the pointer stays inside the buffer.
            let to = unsafe { self.start.add(first + i * stride) };
            // SAFETY: `to` points into the exclusively borrowed buffer, and by this function's contract no other thread reaches it.
            unsafe { to.write(value) };
        }
    }

    /// Adds `values` to the elements `first, first + stride, …`, one after the other: with a stride of 0 all to the same.
    ///
    /// # Panics
    ///
    /// If an element lies outside the buffer.
    ///
    /// # Safety
    ///
    /// While `self` lives, no other thread may reach the same elements at the same time.
    #[inline(always)]
    pub(crate) unsafe fn add(&self, first: usize, stride: usize, values: &[T])
    where
        T: core::ops::AddAssign,
    {
        let Some(last) = values.len().checked_sub(1) else {
            return;
        };
        assert!(
            first
                .checked_add(last * stride)
                .is_some_and(|end| end < self.len),
            "sum outside the output"
        );
        for (i, &value) in values.iter().enumerate() {
            // SAFETY: the index is at most `end`, which was checked above, so the pointer stays inside the buffer.
            let to = unsafe { self.start.add(first + i * stride) };
            // SAFETY: `to` points into the exclusively borrowed buffer, and by this function's contract no other thread reaches it.
            unsafe { *to += value };
        }
    }

    /// The elements `range`.
    ///
    /// # Panics
    ///
    /// If an element lies outside the buffer.
    ///
    /// # Safety
    ///
    /// While the slice lives, nobody else may reach these elements through `self`.
    #[expect(
        clippy::mut_from_ref,
        reason = "the contract takes the borrow checker's place"
    )]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "range outside the output"
        );
        // SAFETY: the range was checked above to lie inside the buffer.
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: `start..` has `range.len()` initialised elements of the exclusively borrowed buffer, and by this function's
        // contract nobody else reaches them.
        unsafe { core::slice::from_raw_parts_mut(start, range.len()) }
    }
}
