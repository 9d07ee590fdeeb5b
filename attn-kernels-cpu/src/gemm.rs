//! The door to matrixmultiply, for large `f32` and `f64` products.
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

/// A matrix in a slice: index of its first element and elements from one row to the next; columns are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) first: usize,
    pub(crate) stride: usize,
}

/// Whether matrixmultiply is the way for this product.
pub(crate) fn serves<T: Element>(cpu: &Cpu, (m, k, n): (usize, usize, usize)) -> bool {
    let work = m.saturating_mul(k).saturating_mul(n);
    let wide = matches!(T::DTYPE, attn_core::DType::F32 | attn_core::DType::F64);
    cfg!(feature = "std")
        && wide
        && m >= MIN_ROWS
        && work >= MIN_WORK
        && cpu.isa() == crate::isa::Isa::detect()
}

/// `out[m, n] = left[m, k] · right[k, n]` for a product that it [`serves`].
#[cfg(feature = "std")]
pub(crate) fn multiply<T: Element>(
    (m, k, n): (usize, usize, usize),
    left: &[T],
    left_rows: Rows,
    right: &[T],
    right_rows: Rows,
    out: &mut [T],
    out_rows: Rows,
) {
    // What makes the pointer arithmetic below sound, checked here once.
    let inside = |rows: Rows, count: usize, columns: usize, len: usize| {
        count == 0 || columns == 0 || rows.first + (count - 1) * rows.stride + columns <= len
    };
    assert!(
        inside(left_rows, m, k, left.len()) && inside(right_rows, k, n, right.len()),
        "factors outside their buffers"
    );
    assert!(
        inside(out_rows, m, n, out.len()) && out_rows.stride >= n,
        "product outside its buffer"
    );
    macro_rules! call {
        ($type:ty, $gemm:path) => {
            if let (Ok(left), Ok(right), Ok(out)) = (
                bytemuck::try_cast_slice::<T, $type>(left),
                bytemuck::try_cast_slice::<T, $type>(right),
                bytemuck::try_cast_slice_mut::<T, $type>(out),
            ) {
                let (left, right) = (left[left_rows.first..].as_ptr(), right[right_rows.first..].as_ptr());
                let out = out[out_rows.first..].as_mut_ptr();
                let stride = |rows: Rows| rows.stride as isize;
                // SAFETY: every index that the three matrices reach was checked above to lie inside its slice, and `out` is
                // borrowed exclusively.
                unsafe {
                    $gemm(
                        m, k, n, 1.0, left, stride(left_rows), 1, right, stride(right_rows), 1, 0.0, out,
                        stride(out_rows), 1,
                    );
                }
            }
        };
    }
    match T::DTYPE {
        attn_core::DType::F32 => call!(f32, matrixmultiply::sgemm),
        attn_core::DType::F64 => call!(f64, matrixmultiply::dgemm),
        attn_core::DType::F16 | attn_core::DType::BF16 => {}
    }
}

/// Without `std` it serves nothing.
#[cfg(not(feature = "std"))]
pub(crate) fn multiply<T: Element>(
    _: (usize, usize, usize),
    _: &[T],
    _: Rows,
    _: &[T],
    _: Rows,
    _: &mut [T],
    _: Rows,
) {
}
