//! The gradient of the table of relative positions: a job adds what all batch entries give to the row of its head, in order.

use super::{Call, Tiles};
use crate::element::Stored;
use crate::micro::width;
use crate::simd::Simd;

impl<T: Stored> Call<'_, T> {
    /// One job: the row of `head`, which holds zeros.
    #[inline(always)]
    #[expect(unsafe_code, reason = "each job adds to elements of its own")]
    pub(crate) fn run_relative<S: Simd>(
        &self,
        simd: S,
        head: usize,
        tiles: &mut Tiles<'_, T::Acc>,
        [k, v]: [&mut [T::Acc]; 2],
    ) {
        let (Some(d_relative), shape) = (&self.d_relative, &self.scoring.shape) else {
            return;
        };
        let terms = &self.scoring.terms;
        let distances = terms.distances();
        // SAFETY: `Jobs` gives each head once, and a job reaches only its own row.
        let row = unsafe { d_relative.slice(head * distances..(head + 1) * distances) };
        row.fill(T::Acc::default());
        for batch in 0..shape.batch {
            for job in self.jobs_of(batch * shape.num_heads + head) {
                self.load(simd, &job, tiles);
                for keys in self.scoring.tiles(&job, 1) {
                    self.remake(simd, &job, keys.clone(), [&mut *k, &mut *v], tiles);
                    terms.add_to_table(width::<S, T::Acc>(), &job, keys, tiles.ds, row);
                }
            }
        }
    }
}
