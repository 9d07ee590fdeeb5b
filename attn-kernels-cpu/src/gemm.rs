//! The door to matrixmultiply, for large `f64` products.
//!
//! It packs both factors, which pays from some rows on; it allocates, so it is there with `std` only; and it chooses its
//! instruction set itself, so it serves only where ours is the machine's best.
#![cfg_attr(
    feature = "std",
    expect(unsafe_code, reason = "matrixmultiply takes raw pointers")
)]

use crate::cpu::Cpu;
use crate::dense::{Dense, Part, Right};
use crate::element::Stored;
use crate::matrix::Matrix;
use crate::threads::Jobs;
use attn_core::Element;
use core::ops::Range;

/// Fewest rows for which packing pays.
const MIN_ROWS: usize = 16;
/// Rows of one call.
const ROWS: usize = 256;
/// Fewest multiply-adds for which packing pays.
const MIN_WORK: usize = 32 * 32 * 32;

/// A matrix in a slice: index of its first element, elements from one row and from one column to the next.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(feature = "std"),
    expect(dead_code, reason = "without `std` it serves nothing")
)]
struct Strided {
    first: usize,
    row: usize,
    column: usize,
}

/// Whether matrixmultiply is the way for this product.
fn serves<T: Element>(cpu: &Cpu, (m, k, n): (usize, usize, usize)) -> bool {
    let work = m.saturating_mul(k).saturating_mul(n);
    cfg!(feature = "std")
        && T::DTYPE == attn_core::DType::F64
        && m >= MIN_ROWS
        && work >= MIN_WORK
        && cpu.isa() == crate::isa::Isa::detect()
}

/// `out[m, n] = left[m, k] · right[k, n]` for a product that it [`serves`], added to what is there with `accumulate`.
#[cfg(feature = "std")]
fn multiply<T: Element>(
    (m, k, n): (usize, usize, usize),
    (left, left_at): (&[T], Strided),
    (right, right_at): (&[T], Strided),
    (out, out_at): (&mut [T], Strided),
    accumulate: bool,
) {
    // What makes the pointer arithmetic below sound, checked here once.
    let inside = |at: Strided, rows: usize, columns: usize, len: usize| {
        rows == 0
            || columns == 0
            || at.first + (rows - 1) * at.row + (columns - 1) * at.column < len
    };
    assert!(
        inside(left_at, m, k, left.len()) && inside(right_at, k, n, right.len()),
        "factors outside their buffers"
    );
    assert!(
        inside(out_at, m, n, out.len()) && out_at.row >= n && out_at.column == 1,
        "product outside its buffer"
    );
    let (Ok(left), Ok(right), Ok(out)) = (
        bytemuck::try_cast_slice::<T, f64>(left),
        bytemuck::try_cast_slice::<T, f64>(right),
        bytemuck::try_cast_slice_mut::<T, f64>(out),
    ) else {
        // Not `f64`: a product that it does not serve.
        return;
    };
    let (left, right) = (
        left[left_at.first.min(left.len())..].as_ptr(),
        right[right_at.first.min(right.len())..].as_ptr(),
    );
    let out = out[out_at.first..].as_mut_ptr();
    let strides = |at: Strided| (at.row as isize, at.column as isize);
    let ((rsa, csa), (rsb, csb), (rsc, csc)) =
        (strides(left_at), strides(right_at), strides(out_at));
    let beta = if accumulate { 1.0 } else { 0.0 };
    // SAFETY: every index that the three matrices reach was checked above to lie inside its slice, and `out` is borrowed
    // exclusively.
    unsafe {
        matrixmultiply::dgemm(
            m, k, n, 1.0, left, rsa, csa, right, rsb, csb, beta, out, rsc, csc,
        );
    }
}

/// Without `std` it serves nothing.
#[cfg(not(feature = "std"))]
fn multiply<T: Element>(
    _: (usize, usize, usize),
    _: (&[T], Strided),
    _: (&[T], Strided),
    _: (&mut [T], Strided),
    _: bool,
) {
}

/// A matrix as evenly spaced elements, if it is that.
fn strided<T: Stored>(matrix: &Matrix<'_, T>) -> Option<Strided> {
    let (first, distance) = matrix.rows.even()?;
    let (row, column) = match matrix.transposed {
        true => (1, distance),
        false => (distance, 1),
    };
    Some(Strided { first, row, column })
}

/// A product by matrixmultiply, cut into blocks of rows: the same for every number of threads.
pub(crate) struct Gemm<'a, 'c, T: Stored> {
    call: &'a Dense<'c, T>,
    part: &'a Part<'c, T>,
    left: Strided,
    right: (&'a [T], Strided),
    out: Strided,
}

impl<'a, 'c, T: Stored> Gemm<'a, 'c, T> {
    /// The product as one for matrixmultiply, if it is.
    pub(crate) fn new(cpu: &Cpu, call: &'a Dense<'c, T>) -> Option<Self> {
        let [Some(part), None, ..] = &call.parts else {
            return None;
        };
        let Right::Matrix(right) = &part.right else {
            return None;
        };
        if !serves::<T>(cpu, (call.rows, call.depth, part.outputs)) {
            return None;
        }
        let (first, row) = (part.to.rows.even()).filter(|out| out.1 >= part.outputs)?;
        Some(Self {
            call,
            part,
            left: strided(&call.left)?,
            right: (right.data, strided(right)?),
            out: Strided {
                first,
                row,
                column: 1,
            },
        })
    }

    /// The last block takes the rows that are left over, so that none is too short for packing to pay.
    pub(crate) fn blocks(&self) -> usize {
        (self.call.rows / ROWS).max(1)
    }

    fn block(&self, block: usize) -> Range<usize> {
        let end = if block + 1 == self.blocks() {
            self.call.rows
        } else {
            (block + 1) * ROWS
        };
        block * ROWS..end
    }

    #[expect(unsafe_code, reason = "each job writes a block of its own")]
    pub(crate) fn run(&self, jobs: &Jobs) {
        let call = self.call;
        while let Some(block) = jobs.take() {
            let rows = self.block(block);
            let first = self.out.first + rows.start * self.out.row;
            let last = self.out.first + (rows.end - 1) * self.out.row;
            // SAFETY: `Jobs` gives each block once, and blocks of rows at least as far apart as they are long are disjoint ranges.
            let out = unsafe { self.part.to.out.slice(first..last + self.part.outputs) };
            let left = Strided {
                first: self.left.first + rows.start * self.left.row,
                ..self.left
            };
            let to = Strided {
                first: 0,
                ..self.out
            };
            multiply(
                (rows.len(), call.depth, self.part.outputs),
                (call.left.data, left),
                self.right,
                (out, to),
                self.part.to.accumulate,
            );
            self.add_bias(out);
        }
    }

    fn add_bias(&self, out: &mut [T]) {
        const CHUNK: usize = 64;
        if self.part.bias.is_none() {
            return;
        }
        let columns = self.part.outputs;
        for first in (0..columns).step_by(CHUNK) {
            let count = CHUNK.min(columns - first);
            let mut bias = [T::Acc::default(); CHUNK];
            self.part.load_bias(&(first..first + count), &mut bias);
            for row in out.chunks_mut(self.out.row) {
                for (out, bias) in row[first..first + count].iter_mut().zip(&bias) {
                    *out = T::from_acc(out.to_acc() + *bias);
                }
            }
        }
    }
}
