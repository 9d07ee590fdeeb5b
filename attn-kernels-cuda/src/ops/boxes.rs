//! What the copy engine of compute capability 9.0 can read: 16-bit arrays of rows, by boxes.

use crate::driver::TensorMap;
use crate::params::{Array, Attend};

/// The device that kernels with `hopper` in their names are for.
pub(crate) const CAPABILITY: (u32, u32) = (9, 0);
/// Elements of 16 bytes: what the copy engine reads at once, and what a thread writes.
const CHUNK: u64 = 8;
/// Columns of a panel: rows of 128 bytes in shared memory.
const PANEL: u32 = 64;
/// Strides from here on cannot be said to the copy engine.
const FARTHEST: u64 = 1 << 40;

/// An array that the copy engine can read.
pub(crate) struct Read<'a> {
    array: &'a Array,
    /// Depth, rows, heads and batch entries.
    dims: [u64; 4],
    /// Bytes from one row, head and batch entry to the next.
    strides: [u64; 3],
}

impl<'a> Read<'a> {
    pub(crate) fn new(array: &'a Array, params: &Attend, [heads, rows]: [u32; 2], depth: u32) -> Option<Self> {
        let dims = [depth, rows, heads, params.batches].map(u64::from);
        let is_served = params.batch.axes <= 1
            && array.column == 1
            && array.address.is_multiple_of(2 * CHUNK)
            && depth > 0
            && dims[0].is_multiple_of(CHUNK);
        if !is_served {
            return None;
        }
        // An axis of one entry has no stride that matters.
        let mut strides = [2 * CHUNK; 3];
        let axes = [array.row, array.head, array.batch[0]];
        for ((bytes, stride), &entries) in strides.iter_mut().zip(axes).zip(&dims[1..]) {
            if entries > 1 {
                let stride = u64::try_from(stride).ok().filter(|&stride| stride > 0)?;
                *bytes = stride.checked_mul(2).filter(|&bytes| bytes < FARTHEST)?;
                if !stride.is_multiple_of(CHUNK) {
                    return None;
                }
            }
        }
        Some(Self {
            array,
            dims,
            strides,
        })
    }

    /// As the copy engine takes it, boxes of so many rows.
    pub(crate) const fn map(&self, rows: u32, is_bf16: bool) -> TensorMap {
        TensorMap {
            address: self.array.address,
            dims: self.dims,
            strides: self.strides,
            box_dims: [PANEL, rows, 1, 1],
            is_bf16,
        }
    }
}
