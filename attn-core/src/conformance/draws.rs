//! How much of a case is looked at: the oracle takes its time.

use super::data::Numbers;
use alloc::vec::Vec;

/// Rows of a case for its error to be known: the largest error of a few says little, so a small case is drawn anew until there
/// are so many. (Outputs of one row share its weights and their errors.)
pub(super) const ROWS: usize = 64;
/// The same for gradients. Their largest errors are those of the few rows that attend to one key nearly alone, where the
/// parts of a gradient cancel: some must be among them.
pub(super) const GRADIENT_ROWS: usize = 4 * ROWS;
/// Multiply-adds after which a case is not drawn again.
const WORK: usize = 1 << 21;
/// A near miss is one by less than this factor. Then plain arithmetic's error is looked for in [`MORE`] times as many draws: its largest is a
/// matter of luck, and where it was small by luck, a backend that is as exact misses twice of it. A sum over many rows has few values
/// a draw, so luck may be large.
pub(super) const NEAR: f64 = 8.0;
/// How many times as many draws.
pub(super) const MORE: usize = 16;
/// Draws at least: where every query is fully masked all rows of a draw are the same.
const LEAST: usize = 8;
/// Draws at most.
const MOST: usize = 50;

/// Whether a case that was drawn `draws` times, with so many rows compared of those that are `wanted`, should be drawn again.
/// `work` is the multiply-adds of one draw.
pub(super) fn another(draws: usize, rows: usize, wanted: usize, work: usize) -> bool {
    let known = rows >= wanted && draws >= LEAST;
    rows > 0 && !known && draws < MOST && draws.saturating_mul(work) < WORK
}

/// Rows to look at: the edges of every tile's usual size, and some anywhere.
pub(super) fn rows(count: usize, numbers: &mut Numbers) -> Vec<usize> {
    let edges = [0, 1, 2, 15, 16, 31, 32, 63, 64, 65];
    let ends = [count.wrapping_sub(2), count.wrapping_sub(1)];
    sample(count, 16, edges.into_iter().chain(ends), numbers)
}

/// Columns to look at: both ends, and some anywhere.
pub(super) fn columns(count: usize, numbers: &mut Numbers) -> Vec<usize> {
    let ends = (0..4).flat_map(|i| [i, count.wrapping_sub(1 + i)]);
    sample(count, 32, ends, numbers)
}

/// All of `0..count`, or `most` of them: `chosen`, then any.
fn sample(
    count: usize,
    most: usize,
    chosen: impl Iterator<Item = usize>,
    numbers: &mut Numbers,
) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let mut sample: Vec<usize> = chosen.filter(|&index| index < count).collect();
    while sample.len() < most {
        sample.push((numbers.bits() % count as u64) as usize);
    }
    sample.sort_unstable();
    sample.dedup();
    sample
}
