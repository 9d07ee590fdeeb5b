//! How the kernels of ordinary arithmetic cut a call into blocks, as `kernels/tile.cuh` does.

/// Rows of a tile.
pub(crate) const ROWS: usize = 64;
/// Threads of a block that has [`ROWS`] rows; fewer have fewer rows.
const THREADS: u32 = 256;
/// Rows of a warp.
const WARP_ROWS: usize = 8;
/// Rows of the other side from which on a block has all its threads, since they load what all rows meet.
const MANY: usize = 256;

/// Columns of sums that a block has, of a kernel made for so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Width(usize);

impl Width {
    /// The narrowest of the kernels' widths, at most `widest`, that has `columns` columns at once, or the widest.
    pub(crate) const fn of(columns: usize, widest: usize) -> Self {
        let mut width = 32;
        while width < columns && width < widest {
            width *= 2;
        }
        Self(width)
    }

    /// Blocks for `columns` columns, at least one.
    pub(crate) fn chunks(self, columns: usize) -> u64 {
        columns.div_ceil(self.0).max(1) as u64
    }

    /// Its part of a kernel's name.
    pub(crate) const fn number(self) -> usize {
        self.0
    }
}

/// Threads of a block and blocks for some rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) threads: u32,
    pub(crate) count: u64,
}

impl Blocks {
    /// Blocks for `rows` rows that meet `others`. A few rows get a small block, so that no warp has nothing to do.
    pub(crate) fn of(rows: usize, others: usize) -> Self {
        if others > MANY || rows > ROWS / 2 {
            return Self {
                threads: THREADS,
                count: rows.div_ceil(ROWS) as u64,
            };
        }
        Self {
            threads: 32 * rows.div_ceil(WARP_ROWS).max(1).next_power_of_two() as u32,
            count: u64::from(rows > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_have_few_threads() {
        let threads = |rows, others| Blocks::of(rows, others).threads;
        assert_eq!(
            [threads(1, 9), threads(9, 9), threads(17, 9)],
            [32, 64, 128]
        );
        assert_eq!([threads(33, 9), threads(1, 4096)], [256, 256]);
        assert_eq!(Blocks::of(0, 9).count, 0);
        assert_eq!(Blocks::of(65, 9).count, 2);
    }

    #[test]
    fn wider_sums_are_cut() {
        assert_eq!(Width::of(0, 128).chunks(0), 1);
        assert_eq!(Width::of(33, 128), Width(64));
        assert_eq!(Width::of(300, 128).chunks(300), 3);
        assert_eq!(Width::of(65, 64).chunks(65), 2);
    }
}
