//! The gradient of the sinks. A sink's score has no value, so of `p (dp - delta)` is left `-p · delta`, summed over the rows of its head.

use super::{Call, dot};
use crate::element::Stored;
use crate::scores::Job;
use attn_core::Element;

impl<T: Stored> Call<'_, T> {
    /// Writes the gradients of all sinks; `rows` is room for two rows of values.
    pub(crate) fn sum_sinks(&self, d_sinks: &mut [T::Acc], rows: &mut [T::Acc]) {
        let (shape, sinks) = (&self.scoring.shape, self.scoring.sinks.unwrap_or(&[]));
        for (head, (d_sink, sink)) in d_sinks.iter_mut().zip(sinks).enumerate() {
            let mut sum = 0.0;
            for batch in 0..shape.batch {
                for (queries, span) in self.spans.tiles(batch) {
                    let Some(span) = span else { continue };
                    let job = Job {
                        batch,
                        head,
                        queries,
                        span,
                    };
                    sum += self.sink_of(&job, sink.to_f64(), rows);
                }
            }
            *d_sink = T::Acc::from_f64(sum);
        }
    }

    /// What the rows of a job give.
    fn sink_of(&self, job: &Job, sink: f64, rows: &mut [T::Acc]) -> f64 {
        let depth = self.scoring.shape.value_depth;
        let (d_out, rest) = rows.split_at_mut(depth);
        let out = &mut rest[..depth];
        let terms = job.queries.clone().map(|query| {
            let one = query..query + 1;
            self.d_out
                .widen(job.batch, job.head, one.clone(), depth, d_out);
            self.out.widen(job.batch, job.head, one, depth, out);
            let [m, l] = self.statistics(job, query).map(|x| x.to_f64());
            match sink == f64::NEG_INFINITY {
                true => 0.0,
                false => -libm::exp(sink - m) / l * dot(d_out, out).to_f64(),
            }
        });
        terms.sum()
    }
}
