//! Shapes and strides of fixed capacity, so that they need no allocator.

use crate::error::{Error, Result};
use core::fmt;

/// The largest rank: thirteen batch axes before `[length, heads, head_dim]`.
pub const MAX_RANK: usize = 16;

/// A list of axis lengths, at most [`MAX_RANK`] of them. Dereferences to a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dims {
    len: u8,
    dims: [usize; MAX_RANK],
}

impl Dims {
    /// The shape of a scalar.
    pub const SCALAR: Self = Self {
        len: 0,
        dims: [0; MAX_RANK],
    };

    /// Takes the axis lengths of `dims`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if there are more than [`MAX_RANK`].
    pub fn new(dims: &[usize]) -> Result<Self> {
        let mut this = Self::SCALAR;
        for &dim in dims {
            this = this.push(dim)?;
        }
        Ok(this)
    }

    /// The same with `dim` as a new last axis.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if the rank is [`MAX_RANK`] already.
    pub fn push(mut self, dim: usize) -> Result<Self> {
        let Some(slot) = self.dims.get_mut(usize::from(self.len)) else {
            return Err(Error::Rank {
                argument: "shape",
                got: MAX_RANK + 1,
                wanted: "at most 16 axes",
            });
        };
        *slot = dim;
        self.len += 1;
        Ok(self)
    }

    /// The axes of `self`, then those of `tail`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if that is more than [`MAX_RANK`].
    pub fn concat(self, tail: &[usize]) -> Result<Self> {
        tail.iter().try_fold(self, |dims, &dim| dims.push(dim))
    }

    /// The axes as a slice.
    #[must_use]
    pub fn as_slice(&self) -> &[usize] {
        &self.dims[..usize::from(self.len)]
    }

    /// Number of axes.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.len as usize
    }

    /// The product of the axes: 1 for a scalar.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if it does not fit a `usize`.
    pub fn elements(&self) -> Result<usize> {
        self.as_slice()
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .ok_or(Error::TooLarge {
                argument: "shape",
                got: *self,
            })
    }

    /// numpy's broadcast of two shapes, or `None` where an axis disagrees and neither is 1.
    ///
    /// ```
    /// use attn_core::Dims;
    /// let a = Dims::new(&[2, 1, 4])?;
    /// assert_eq!(a.broadcast(&Dims::new(&[3, 1])?), Some(Dims::new(&[2, 3, 4])?));
    /// assert_eq!(a.broadcast(&Dims::new(&[3])?), None);
    /// # Ok::<(), attn_core::Error>(())
    /// ```
    #[must_use]
    pub fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let mut out = Self {
            len: rank as u8,
            dims: [0; MAX_RANK],
        };
        for axis in 0..rank {
            let from_end = rank - axis;
            let a = self.axis_from_end(from_end);
            let b = other.axis_from_end(from_end);
            out.dims[axis] = match (a, b) {
                (1, b) => b,
                (a, 1) => a,
                (a, b) if a == b => a,
                _ => return None,
            };
        }
        Some(out)
    }

    /// The `n`-th axis from the end (1 is the last), 1 where the rank is smaller.
    fn axis_from_end(&self, n: usize) -> usize {
        self.rank().checked_sub(n).map_or(1, |axis| self.dims[axis])
    }
}

impl core::ops::Deref for Dims {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        self.as_slice()
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_slice(), f)
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_slice(), f)
    }
}

/// Where the elements of an array lie in a buffer: an offset, axis lengths and strides, all counted in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    offset: usize,
    shape: Dims,
    strides: [usize; MAX_RANK],
}

impl Layout {
    /// Row-major without gaps.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the number of elements does not fit a `usize`.
    pub fn contiguous(shape: Dims) -> Result<Self> {
        shape.elements()?;
        let mut strides = [0; MAX_RANK];
        let mut step = 1usize;
        for axis in (0..shape.rank()).rev() {
            strides[axis] = step;
            // Cannot overflow past an axis of length 0 to a used stride: such an array has no element.
            step = step.wrapping_mul(shape[axis]);
        }
        Ok(Self {
            offset: 0,
            shape,
            strides,
        })
    }

    /// Any offset and strides (0 repeats an axis).
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if `strides` and `shape` differ in length; [`Error::TooLarge`] if the last element's index
    /// does not fit a `usize`.
    pub fn strided(offset: usize, shape: Dims, strides: &[usize]) -> Result<Self> {
        if strides.len() != shape.rank() {
            return Err(Error::Rank {
                argument: "strides",
                got: strides.len(),
                wanted: "one stride for each axis",
            });
        }
        let mut all = [0; MAX_RANK];
        all[..strides.len()].copy_from_slice(strides);
        let this = Self {
            offset,
            shape,
            strides: all,
        };
        this.end()?;
        Ok(this)
    }

    /// Axis lengths.
    #[must_use]
    pub const fn shape(&self) -> &Dims {
        &self.shape
    }

    /// Strides in elements, one for each axis.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.shape.rank()]
    }

    /// Index of the first element.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// One past the largest index that an element has, 0 for an array without elements.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if it does not fit a `usize`.
    pub fn end(&self) -> Result<usize> {
        self.shape.elements()?;
        if self.shape.contains(&0) {
            return Ok(0);
        }
        self.shape
            .iter()
            .zip(self.strides())
            .try_fold(self.offset, |end, (&dim, &stride)| {
                end.checked_add((dim - 1).checked_mul(stride)?)
            })
            .and_then(|last| last.checked_add(1))
            .ok_or(Error::TooLarge {
                argument: "layout",
                got: self.shape,
            })
    }

    /// Whether the elements lie row-major without gaps.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for (&dim, &stride) in self.shape.iter().zip(self.strides()).rev() {
            if dim == 0 {
                return true;
            }
            if dim != 1 && stride != step {
                return false;
            }
            step *= dim;
        }
        true
    }

    /// numpy's broadcast to `shape`: new and repeated axes get stride 0.
    ///
    /// # Errors
    ///
    /// [`Error::Broadcast`], naming `argument`, if the shape cannot be broadcast.
    pub fn broadcast_to(&self, argument: &'static str, shape: &Dims) -> Result<Self> {
        if self.shape.broadcast(shape) != Some(*shape) {
            return Err(Error::Broadcast {
                argument,
                got: self.shape,
                wanted: *shape,
            });
        }
        let added = shape.rank() - self.shape.rank();
        let mut strides = [0; MAX_RANK];
        for axis in 0..self.shape.rank() {
            if self.shape[axis] == shape[added + axis] {
                strides[added + axis] = self.strides[axis];
            }
        }
        Ok(Self {
            offset: self.offset,
            shape: *shape,
            strides,
        })
    }

    /// Index of the element at `index` (as many leading axes as given; the rest at 0).
    #[must_use]
    pub fn at(&self, index: &[usize]) -> usize {
        self.offset
            + index
                .iter()
                .zip(self.strides())
                .map(|(i, s)| i * s)
                .sum::<usize>()
    }

    /// Index of element 0 of the `n`-th (row-major) entry of the first `axes` axes.
    #[must_use]
    pub fn base(&self, axes: usize, n: usize) -> usize {
        let mut rest = n;
        let mut index = self.offset;
        for axis in (0..axes).rev() {
            let dim = self.shape[axis];
            index += (rest % dim) * self.strides[axis];
            rest /= dim;
        }
        index
    }

    /// The same elements as `[rows, columns]` with the last `tail` axes as columns, if strides allow it without a copy.
    #[must_use]
    pub fn as_matrix(&self, tail: usize) -> Option<Matrix> {
        let split = self.shape.rank().checked_sub(tail)?;
        let (rows, row_stride) = self.merge(0, split)?;
        let (columns, column_stride) = self.merge(split, self.shape.rank())?;
        Some(Matrix {
            offset: self.offset,
            rows,
            row_stride,
            columns,
            column_stride,
        })
    }

    /// Length and stride of the axes `from..to` merged into one, if they lie evenly spaced.
    fn merge(&self, from: usize, to: usize) -> Option<(usize, usize)> {
        let mut length = 1usize;
        let mut stride = 0usize;
        for axis in (from..to).rev() {
            let (dim, step) = (self.shape[axis], self.strides[axis]);
            if dim == 1 {
                continue;
            }
            if length == 1 {
                stride = step;
            } else if length != 0 && dim != 0 && step != stride * length {
                return None;
            }
            length = length.checked_mul(dim)?;
        }
        // A single element has no stride of its own; 1 lets it pass as a contiguous row.
        Some((length, if length <= 1 { 1 } else { stride }))
    }
}

/// A layout seen as rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Index of the first element.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Number of columns.
    pub columns: usize,
    /// Elements from one column to the next.
    pub column_stride: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_layout_is_one_matrix_for_every_split() {
        let layout = Layout::contiguous(Dims::new(&[2, 3, 4]).unwrap()).unwrap();
        for tail in 0..=3 {
            let matrix = layout.as_matrix(tail).unwrap();
            assert_eq!(matrix.rows * matrix.columns, 24);
        }
    }

    #[test]
    fn transposed_layout_is_not_one_matrix() {
        let layout = Layout::strided(0, Dims::new(&[3, 2, 4]).unwrap(), &[4, 12, 1]).unwrap();
        assert!(layout.as_matrix(1).is_none());
        assert!(!layout.is_contiguous());
    }

    #[test]
    fn huge_shape_is_an_error() {
        let dims = Dims::new(&[usize::MAX, 2]).unwrap();
        assert!(matches!(
            Layout::contiguous(dims),
            Err(Error::TooLarge { .. })
        ));
        assert!(Layout::strided(usize::MAX, Dims::new(&[2]).unwrap(), &[1]).is_err());
    }

    #[test]
    fn base_walks_row_major() {
        let layout = Layout::contiguous(Dims::new(&[2, 3, 4]).unwrap()).unwrap();
        let bases: [usize; 6] = core::array::from_fn(|n| layout.base(2, n));
        assert_eq!(bases, [0, 4, 8, 12, 16, 20]);
    }
}
