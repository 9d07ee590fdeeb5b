//! The door to matrixmultiply, for large `f64` products.
//!
//! It packs both factors, which pays from some rows on; it allocates, so it is there with `std` only; and it chooses its
//! instruction set itself, so it serves only where ours is the machine's best.
#![cfg_attr(
    feature = "std",
    expect(unsafe_code, reason = "matrixmultiply takes raw pointers")
)]

use crate::cpu::Cpu;
use attn_core::Element;

/// Fewest rows for which packing pays.
const MIN_ROWS: usize = 16;
/// Fewest multiply-adds for which packing pays.
const MIN_WORK: usize = 32 * 32 * 32;

/// A matrix in a slice: index of its first element, elements from one row and from one column to the next.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub(crate) first: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// Whether matrixmultiply is the way for this product.
pub(crate) fn serves<T: Element>(cpu: &Cpu, (m, k, n): (usize, usize, usize)) -> bool {
    let work = m.saturating_mul(k).saturating_mul(n);
    cfg!(feature = "std")
        && T::DTYPE == attn_core::DType::F64
        && m >= MIN_ROWS
        && work >= MIN_WORK
        && cpu.isa() == crate::isa::Isa::detect()
}

/// `out[m, n] = left[m, k] · right[k, n]` for a product that it [`serves`], added to what is there with `accumulate`.
#[cfg(feature = "std")]
pub(crate) fn multiply<T: Element>(
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
pub(crate) fn multiply<T: Element>(
    _: (usize, usize, usize),
    _: (&[T], Strided),
    _: (&[T], Strided),
    _: (&mut [T], Strided),
    _: bool,
) {
}
