//! Weights, or scores at an earlier stage, as an output.

use crate::element::Stored;
use crate::flash::Call;
use crate::scores::{Job, KEYS};
use crate::simd::Simd;
use attn_core::Stage;
use core::ops::Range;

impl<T: Stored> Call<'_, T> {
    /// Brings the products of a tile to the stage that is asked for; for weights, to the scores that softmax takes.
    #[inline(always)]
    pub(crate) fn stage<S: Simd>(
        &self,
        simd: S,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        p: &mut [T::Acc],
    ) {
        let scoring = &self.scoring;
        if self.stage == Stage::Capped {
            scoring.terms.cap(simd, width, job.queries.len(), p);
        }
        if matches!(self.stage, Stage::Masked | Stage::Softmax) {
            scoring.finish(simd, width, job, keys, p);
        }
    }

    /// What stands for a key that is not of the query's sequence.
    fn outside(&self) -> T::Acc {
        match self.stage {
            Stage::Masked => self.scoring.fill(),
            _ => T::Acc::default(),
        }
    }

    /// Writes what stands for keys that are not of the job's sequence, or no longer there.
    pub(crate) fn write_weights_outside(&self, job: &Job) {
        let keys = self.scoring.shape.key_length;
        for query in job.queries.clone() {
            self.fill_weights(job, query, 0..job.span.keys.start);
            self.fill_weights(job, query, job.span.keys.end..keys);
        }
    }

    /// Writes what stands for keys that are not of the query's sequence.
    pub(crate) fn fill_weights(&self, job: &Job, query: usize, keys: Range<usize>) {
        let row = [self.outside(); KEYS];
        for first in keys.clone().step_by(KEYS) {
            self.write(job, query, first, &row[..KEYS.min(keys.end - first)]);
        }
    }

    /// Writes the weights of a query for the keys from `key` on, if they are asked for.
    pub(crate) fn write_row_of_weights(&self, job: &Job, query: usize, key: usize, row: &[T::Acc]) {
        let gone = match self.stage {
            // Rows of tokens that a ring no longer has hold those of others.
            Stage::Scaled | Stage::Capped => self.scoring.visible.first_held(&job.span),
            _ => 0,
        };
        let gone = gone.saturating_sub(key).min(row.len());
        self.fill_weights(job, query, key..key + gone);
        self.write(job, query, key + gone, &row[gone..]);
    }

    /// Writes a part of a query's row.
    #[expect(unsafe_code, reason = "each job writes rows of its own")]
    fn write(&self, job: &Job, query: usize, key: usize, row: &[T::Acc]) {
        let Some((weights, layout)) = &self.weights else {
            return;
        };
        let rank = layout.shape().rank();
        let strides = layout.strides();
        let matrix = layout.base(rank - 2, self.scoring.matrix(job));
        let start = matrix + query * strides[rank - 2] + key * strides[rank - 1];
        // SAFETY: `Jobs` gives each job once, jobs are disjoint in (batch, head, query), a job writes only rows of its own, and
        // `ViewMut` guarantees that no two elements share an index.
        unsafe { weights.write(start, strides[rank - 1], row) };
    }
}
