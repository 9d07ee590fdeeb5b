//! The gradient of the table of relative positions: a job adds what all batch entries give to the row of its head, in order.

use super::Call;
use crate::element::Stored;
use crate::scores::Job;
use core::ops::Range;

impl<T: Stored> Call<'_, T> {
    /// Adds a tile's gradients of scores. The table holds zeros before the first.
    #[expect(unsafe_code, reason = "each job adds to elements of its own")]
    pub(super) fn add_to_relative(
        &self,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        ds: &[T::Acc],
    ) {
        let terms = &self.scoring.terms;
        if let Some(d_relative) = &self.d_relative {
            let row = job.head * terms.distances()..(job.head + 1) * terms.distances();
            // SAFETY: `Jobs` gives each head once, and a job of the pass for the table reaches only the row of its head.
            let row = unsafe { d_relative.slice(row) };
            terms.add_to_table(width, job, keys, ds, row);
        }
    }
}
