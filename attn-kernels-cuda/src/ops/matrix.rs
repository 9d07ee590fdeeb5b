//! What the kernels of dense layers and of layer norm take, byte for byte as `kernels/gemm.cuh`, `sum.cuh` and `norm.cu` declare it.

use crate::error::CudaError;
use crate::launch::Params;
use crate::params::{Placed, size};
use attn_core::layout::MAX_RANK;
use attn_core::projection::ColumnGroups;
use attn_core::{Layout, Result, Scalar};
use bytemuck::{Pod, Zeroable};

/// Axes of rows that an array can have.
const ROW_AXES: usize = MAX_RANK - 1;
/// Bytes that a kernel moves at once where it can.
const VECTOR: usize = 16;

/// Elements may lie anywhere.
const SCATTERED: u32 = 0;
/// The elements of every 16 bytes of a row, from its first column on, lie side by side and are aligned.
const PIECES: u32 = 1;
/// Besides, rows are evenly spaced, each of one piece.
const EVEN: u32 = 2;

/// A matrix: rows over several axes, columns in groups; strides in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Operand {
    pub(crate) address: u64,
    /// From one group of columns to the next.
    group: i64,
    /// From one column of a group to the next.
    pub(crate) column: i64,
    /// Columns of a group.
    columns: u32,
    /// Axes of rows, merged where they can be.
    axes: u32,
    dims: [u32; ROW_AXES],
    /// [`SCATTERED`], [`PIECES`] or [`EVEN`].
    vectors: u32,
    strides: [i64; ROW_AXES],
}

impl Operand {
    /// An array `[rows..., columns]` or `[rows..., groups, columns]` of `T` with this many row axes.
    pub(crate) fn new<T: Scalar>(
        argument: &'static str,
        placed: &Placed,
        row_axes: usize,
    ) -> Result<Self, CudaError> {
        let layout = &placed.layout;
        let groups = ColumnGroups::new(argument, layout, row_axes)?;
        let columns: usize = layout.shape()[row_axes..].iter().product();
        let is_one = groups.columns >= columns
            || groups.stride == groups.columns.saturating_mul(groups.column_stride);
        let mut operand = Self {
            address: placed.address,
            group: if is_one { 0 } else { groups.stride as i64 },
            column: groups.column_stride as i64,
            columns: size(argument, if is_one { columns } else { groups.columns })?,
            ..Self::zeroed()
        };
        operand.merge_rows(argument, layout, row_axes)?;
        operand.vectors = match operand.is_aligned::<T>(is_one) {
            false => SCATTERED,
            true if operand.axes <= 1 && is_one => EVEN,
            true => PIECES,
        };
        Ok(operand)
    }

    /// The row-major matrix of `columns` at an address.
    pub(crate) fn contiguous(address: u64, columns: u32) -> Self {
        let mut operand = Self {
            address,
            column: 1,
            columns,
            axes: 1,
            ..Self::zeroed()
        };
        operand.strides[0] = i64::from(columns);
        operand
    }

    /// Elements from one row to the next, where rows are evenly spaced, each of one piece, and all is aligned to 16 bytes.
    pub(crate) fn even_rows(&self) -> Option<u64> {
        // A single row has no distance; what lies beyond it is nobody's.
        let apart = self.strides[0].max(i64::from(self.columns));
        (self.vectors == EVEN).then_some(apart as u64)
    }

    /// Whether this many rows lie one after the other without gaps.
    pub(crate) fn is_contiguous(&self, rows: u32) -> bool {
        let is_next = rows <= 1 || self.strides[0] == i64::from(self.columns);
        (self.column == 1 || self.columns <= 1) && self.axes <= 1 && self.group == 0 && is_next
    }

    /// Takes the row axes, and joins those that are one step.
    fn merge_rows(
        &mut self,
        argument: &'static str,
        layout: &Layout,
        row_axes: usize,
    ) -> Result<(), CudaError> {
        let mut count = 0usize;
        for axis in 0..row_axes {
            let (dim, stride) = (layout.shape()[axis], layout.strides()[axis] as i64);
            let dim = size(argument, dim)?;
            if dim == 1 {
                continue;
            }
            let before = count.checked_sub(1);
            let joined = before
                .filter(|&before| self.strides[before] == stride * i64::from(dim))
                .and_then(|before| self.dims[before].checked_mul(dim));
            if let (Some(before), Some(joined)) = (before, joined) {
                self.dims[before] = joined;
                self.strides[before] = stride;
                continue;
            }
            self.dims[count] = dim;
            self.strides[count] = stride;
            count += 1;
        }
        self.axes = count as u32;
        Ok(())
    }

    fn is_aligned<T: Scalar>(&self, is_one_group: bool) -> bool {
        let width = (VECTOR / size_of::<T>()) as i64;
        let whole = |elements: i64| elements % width == 0;
        let groups = is_one_group || (whole(self.group) && whole(i64::from(self.columns)));
        self.address.is_multiple_of(VECTOR as u64)
            && (self.column == 1 || self.columns == 1 && is_one_group)
            && groups
            && self.strides.iter().all(|&stride| whole(stride))
    }
}

/// `out[m, n] = Σ a b + bias` over `k`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Product {
    /// Stored `[m, k]`, or `[k, m]` for the gradient of a kernel.
    pub(crate) a: Operand,
    /// Stored `[k, n]`, or `[n, k]` for the gradient of an input.
    pub(crate) b: Operand,
    pub(crate) out: Operand,
    /// Address of `[n]`; 0 for none.
    pub(crate) bias: u64,
    pub(crate) bias_stride: i64,
    pub(crate) m: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
    /// Whether it is added to what is there.
    pub(crate) accumulate: u32,
    /// Address of the sums over slices of `k`, `[slices, m, n]` of accumulators; 0 if `k` is not cut.
    pub(crate) parts: u64,
    /// Of `k`; the last slice may have less.
    pub(crate) slice: u32,
    pub(crate) _pad: u32,
}

/// Sums of the rows of a matrix, by slices of rows.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Sum {
    pub(crate) from: Operand,
    /// Address of `[slices, columns]`.
    pub(crate) to: u64,
    pub(crate) slice: i64,
    pub(crate) column: i64,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    /// The last slice may have fewer.
    pub(crate) rows_of_slice: u32,
    pub(crate) _pad: u32,
}

/// Layer norm in place.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Norm {
    pub(crate) x: Operand,
    pub(crate) scale: u64,
    pub(crate) scale_stride: i64,
    pub(crate) epsilon: f64,
    pub(crate) rows: u32,
    pub(crate) depth: u32,
}

/// The gradients of layer norm.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct NormBackward {
    pub(crate) x: Operand,
    pub(crate) gradient: Operand,
    pub(crate) scale: u64,
    pub(crate) scale_stride: i64,
    pub(crate) epsilon: f64,
    /// Address of each block's share in the gradient of the scale, `f64 [blocks, depth]` or, of `f64`, `[blocks, 2, depth]`; 0 if
    /// that is not wanted.
    pub(crate) d_scale: u64,
    pub(crate) rows: u32,
    pub(crate) depth: u32,
    pub(crate) rows_of_block: u32,
    pub(crate) _pad: u32,
}

// SAFETY: made in this folder alone, from views that were checked against their buffers and from buffers of the sizes that the
// kernels write.
#[expect(unsafe_code, reason = "vouches for the addresses")]
unsafe impl Params for Product {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "vouches for the addresses")]
unsafe impl Params for Sum {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "vouches for the addresses")]
unsafe impl Params for Norm {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "vouches for the addresses")]
unsafe impl Params for NormBackward {}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_core::{Dims, f16};

    fn operand(
        shape: &[usize],
        strides: &[usize],
        row_axes: usize,
    ) -> core::result::Result<Operand, CudaError> {
        let layout = Layout::strided(0, Dims::new(shape)?, strides)?;
        let placed = Placed {
            address: 256,
            layout,
        };
        Operand::new::<f16>("x", &placed, row_axes)
    }

    #[test]
    fn rows_that_are_one_step_are_one_axis() {
        let operand = operand(&[2, 3, 1, 8], &[24, 8, 5, 1], 3).unwrap();
        assert_eq!(
            (operand.axes, operand.dims[0], operand.strides[0]),
            (1, 6, 8)
        );
        assert_eq!(operand.vectors, EVEN);
    }

    #[test]
    fn rows_between_gaps_stay_apart() {
        let operand = operand(&[2, 3, 8], &[32, 9, 1], 2).unwrap();
        assert_eq!((operand.axes, operand.strides[1]), (2, 9));
        assert_eq!(operand.vectors, SCATTERED);
    }

    #[test]
    fn heads_side_by_side_are_one_group() {
        let operand = operand(&[4, 2, 8], &[16, 8, 1], 1).unwrap();
        assert_eq!((operand.columns, operand.vectors), (16, EVEN));
    }

    #[test]
    fn heads_apart_are_groups() {
        let apart = operand(&[4, 2, 8], &[8, 32, 1], 1).unwrap();
        assert_eq!((apart.columns, apart.group, apart.vectors), (8, 32, PIECES));
        let odd = operand(&[4, 2, 4], &[8, 32, 1], 1).unwrap();
        assert_eq!((odd.columns, odd.vectors), (4, SCATTERED));
    }
}
