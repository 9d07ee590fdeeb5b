//! Plain `f64` matrices, row-major.

use core::sync::atomic::{AtomicUsize, Ordering};
use fearless_simd::{Level, Simd, dispatch};

/// Rows of a product that share a look at the right factor.
const ROWS: usize = 8;

/// `a · b` for `a` `[rows, inner]` and `b` `[inner, columns]`.
///
/// The loops are plain; compiling them for the machine's instruction set makes a reference for a large layer a matter of a second.
pub(super) fn product(a: &[f64], b: &[f64], rows: usize, inner: usize, columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * columns];
    dispatch!(Level::new(), simd => on(simd, a, b, inner, columns, &mut out));
    out
}

#[inline(always)]
fn on<S: Simd>(simd: S, a: &[f64], b: &[f64], inner: usize, columns: usize, out: &mut [f64]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let blocks = a.chunks(ROWS * inner).zip(out.chunks_mut(ROWS * columns));
            for (a, out) in blocks {
                for (k, b) in b.chunks_exact(columns).enumerate() {
                    for (a, out) in a.chunks_exact(inner).zip(out.chunks_exact_mut(columns)) {
                        let factor = a[k];
                        for (out, &b) in out.iter_mut().zip(b) {
                            *out += factor * b;
                        }
                    }
                }
            }
        },
    );
}

/// [`product`], its rows shared out to threads.
pub(super) fn wide_product(a: &[f64], b: &[f64], inner: usize, columns: usize) -> Vec<f64> {
    let blocks: Vec<&[f64]> = a.chunks(ROWS * ROWS * inner).collect();
    let done = parallel(blocks.len(), |n| {
        product(blocks[n], b, blocks[n].len() / inner, inner, columns)
    });
    done.concat()
}

/// `[columns, rows]` of `[rows, columns]`.
pub(super) fn transposed(a: &[f64], columns: usize) -> Vec<f64> {
    let rows = a.len() / columns;
    let mut out = vec![0.0; a.len()];
    for (i, row) in a.chunks_exact(columns).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            out[j * rows + i] = value;
        }
    }
    out
}

pub(super) fn softmax(row: &mut [f64]) {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|x| *x = (*x - largest).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

pub(super) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// `work` of every number below `count`, in order, on all threads of the machine.
pub(super) fn parallel<R: Send>(count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let share = || {
        let mut done = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return done;
            }
            done.push((n, work(n)));
        }
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(count);
    let mut all: Vec<(usize, R)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(share)).collect();
        let mut all = share();
        for other in others {
            // A panic of a thread is this one's too.
            all.extend(
                other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
        }
        all
    });
    all.sort_unstable_by_key(|&(n, _)| n);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_rows_times_columns() {
        let (a, b) = (
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            [1.0, 0.0, 2.0, 1.0, 0.0, 1.0],
        );
        let wanted = [5.0, 5.0, 14.0, 11.0];
        assert_eq!(product(&a, &b, 2, 3, 2), wanted);
        assert_eq!(wide_product(&a, &b, 3, 2), wanted);
        assert_eq!(transposed(&a, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(parallel(100, |n| n * n)[99], 99 * 99);
    }
}
