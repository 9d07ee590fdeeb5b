//! The gradient of the bias. It may be shared by heads, batch entries, queries or keys, so its jobs are cut by its own
//! elements, and each adds what all that share them give, in order.

use super::Call;
use crate::element::Stored;
use crate::scores::{Job, KEYS, QUERIES, lane_index};
use core::ops::Range;

impl<T: Stored> Call<'_, T> {
    /// Parts of a matrix whose elements are different ones. Tiles of sequences do not begin where parts do, so there is one part then.
    pub(super) fn bias_units(&self) -> usize {
        let shape = &self.scoring.shape;
        if self.spans.has_sequences() {
            return 1;
        }
        match self.bias_strides() {
            [_, key] if key != 0 => shape.key_length.div_ceil(KEYS),
            [query, _] if query != 0 => shape.query_length.div_ceil(QUERIES),
            _ => 1,
        }
    }

    pub(super) fn bias_strides(&self) -> [usize; 2] {
        let strides = self.d_bias.as_ref().map(|(_, layout)| {
            let rank = layout.shape().rank();
            [layout.strides()[rank - 2], layout.strides()[rank - 1]]
        });
        strides.unwrap_or_default()
    }

    /// The axes of batch and heads along which the bias has elements of its own (`own`) or is repeated: length, and matrices
    /// from one index to the next.
    fn bias_axes(&self, own: bool) -> impl Iterator<Item = (usize, usize)> + '_ {
        let layout = self.d_bias.as_ref().map(|(_, layout)| layout);
        layout.into_iter().flat_map(move |layout| {
            let axes = layout.shape().rank() - 2;
            let mut step = 1;
            let all = (0..axes).rev().map(move |axis| {
                let length = layout.shape()[axis];
                let this = step;
                step *= length;
                ((layout.strides()[axis] != 0) == own, length, this)
            });
            all.filter_map(|(wanted, length, step)| wanted.then_some((length, step)))
        })
    }

    /// How many matrices have elements of their own, or how many share those of one.
    pub(super) fn bias_matrices(&self, own: bool) -> usize {
        self.bias_axes(own).map(|(length, _)| length).product()
    }

    /// The `number`-th of [`Call::bias_matrices`].
    pub(super) fn bias_matrix(&self, own: bool, mut number: usize) -> usize {
        let digits = self.bias_axes(own).map(|(length, step)| {
            let digit = number % length;
            number /= length;
            digit * step
        });
        digits.sum()
    }

    /// Adds a tile's gradients of scores. The gradient holds zeros before the first.
    #[expect(unsafe_code, reason = "each job adds to elements of its own")]
    pub(super) fn add_to_bias(&self, width: usize, job: &Job, keys: Range<usize>, ds: &[T::Acc]) {
        let Some((d_bias, layout)) = &self.d_bias else {
            return;
        };
        let base = layout.base(layout.shape().rank() - 2, self.scoring.matrix(job));
        let [query_stride, key_stride] = self.bias_strides();
        for (i, query) in job.queries.clone().enumerate() {
            let row: [T::Acc; KEYS] = core::array::from_fn(|n| {
                let n = n.min(keys.len() - 1);
                ds[lane_index(width, i, n)]
            });
            let start = base + query * query_stride + keys.start * key_stride;
            // SAFETY: `Jobs` gives each job once, jobs are cut by the elements of the bias, and a job reaches only its own.
            unsafe { d_bias.add(start, key_stride, &row[..keys.len()]) };
        }
    }
}
