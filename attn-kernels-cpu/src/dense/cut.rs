//! How a product is cut into jobs, blocks, chunks and slices. The cut changes no bit of the result.

use crate::buffers::margin;
use crate::cpu::Cpu;
use crate::micro::{MAX_ROWS, MAX_WIDTH};

/// Rows of a block of the left factor: 96 × 768 × 4 bytes = 288 KiB of L2 at the usual depth, and whole tiles of 12, 8 or 6 rows.
const ROWS: usize = 96;
/// Most depth of a chunk: 96 × 1024 × 4 bytes = 384 KiB.
const CHUNK: usize = 1024;
/// Depth of a slice: 192 × 32 × 4 bytes = 24 KiB of a panel (half of that with 32-byte vectors) stay in L1 beside the rows of a tile; 128
/// and 256 were measured to be no faster.
pub(super) const SLICE: usize = 192;
/// Columns of a job whose right factor is gathered: whole panels of every instruction set, at most 2 MiB. Its block of the left
/// factor is copied once for so many.
const COLUMNS: usize = 512;
/// Most rows of a job whose sums wait for the next chunk.
const WAITING_ROWS: usize = 384;
/// Fewest rows of a job that gathers, where there are threads to keep busy.
const MIN_ROWS: usize = 48;
/// Jobs for each thread, so that none waits long for the last.
const JOBS_A_THREAD: usize = 4;

/// The cut of one product.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Rows and columns of a job.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows of a block.
    pub(super) block: usize,
    /// Depth of a chunk.
    pub(super) chunk: usize,
    /// Columns whose sums are held at once.
    pub(super) held: usize,
    /// Rows of such sums.
    pub(super) waiting: usize,
    /// Elements of scratch for panels.
    pub(super) panels: usize,
}

impl Cut {
    /// `outputs` is a multiple of [`MAX_WIDTH`].
    pub(super) fn new(cpu: &Cpu, rows: usize, depth: usize, outputs: usize, packed: bool) -> Self {
        let whole = depth <= CHUNK;
        let jobs = match cpu.threads() {
            1 => 1,
            threads => JOBS_A_THREAD.saturating_mul(threads),
        };
        let (rows_of_job, columns) = if packed && whole {
            let groups = jobs.div_ceil(rows.div_ceil(ROWS).max(1)).max(1);
            (ROWS, outputs.div_ceil(groups))
        } else {
            let parts = jobs.div_ceil(outputs.div_ceil(COLUMNS).max(1));
            let most = if whole { usize::MAX } else { WAITING_ROWS };
            let even = rows.div_ceil(parts).max(MIN_ROWS).min(most);
            (even.div_ceil(MAX_ROWS).saturating_mul(MAX_ROWS), COLUMNS)
        };
        let rows_of_job = rows_of_job.min(rows).max(1);
        let columns = padded(columns.max(1)).min(outputs);
        let (block, chunk) = (rows_of_job.min(ROWS), depth.min(CHUNK));
        Self {
            rows: rows_of_job,
            columns,
            block,
            chunk,
            held: if whole {
                columns.min(MAX_WIDTH)
            } else {
                columns
            },
            waiting: if whole { block } else { rows_of_job },
            panels: if packed {
                chunk.min(SLICE) * MAX_WIDTH
            } else {
                chunk * columns
            },
        }
    }

    /// Elements of scratch for one worker: panels, a bias, a block of the left factor, sums.
    pub(super) fn worker_scratch<A>(&self) -> usize {
        let left = self.block * self.chunk;
        self.panels + MAX_WIDTH + left + self.waiting * self.held + margin::<A>()
    }

    pub(super) fn jobs(&self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.columns)
    }
}

/// Columns that a part takes in the count of all: whole panels of every instruction set.
pub(super) fn padded(outputs: usize) -> usize {
    outputs.div_ceil(MAX_WIDTH).saturating_mul(MAX_WIDTH)
}
