//! An attention call: checks, jobs, threads.

use crate::buffers::enough;
use crate::cpu::Cpu;
use crate::dropout::Dropped;
use crate::element::Stored;
use crate::few::{self, FewTiles};
use crate::flash::{Call, Tiles};
use crate::heads::Heads;
use crate::micro::width;
use crate::pack;
use crate::scores::{Job, QUERIES, Scoring};
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::threads::{Jobs, Work};
use crate::visibility::Visibility;
use attn_core::{
    Attention, AttentionShape, Error, Features, Host, HostViewMut, Layout, Outputs, Result,
};

pub(crate) const SUPPORTED: Features = Features::FLAX;

pub(crate) fn scratch<T: Stored>(cpu: &Cpu, shape: &AttentionShape) -> usize {
    worker_scratch::<T>(cpu, shape).saturating_mul(cpu.threads())
}

fn worker_scratch<T: Stored>(cpu: &Cpu, shape: &AttentionShape) -> usize {
    match few::serves(shape, pack::panel::<T::Acc>(cpu)) {
        true => FewTiles::<T::Acc>::size(shape),
        false => Tiles::<T::Acc>::size(shape),
    }
}

pub(crate) fn attend<T: Stored>(
    cpu: &Cpu,
    request: Attention<'_, Host, T>,
    mut out: HostViewMut<'_, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    let shape = check(cpu, &request, &out, scratch.len())?;
    let dropout = request
        .dropout
        .map(|dropout| Dropped::new(&dropout, &shape))
        .transpose()?;
    let (scoring, value) = scoring(&request, &shape)?;
    let Outputs {
        mut weights,
        mut statistics,
        ..
    } = request.outputs;
    let out_layout = *out.layout();
    let call = Call {
        scoring,
        value,
        dropout,
        out: Shared::new(&mut out),
        out_layout,
        weights: weights.as_mut().map(shared),
        statistics: statistics.as_mut().map(shared),
    };
    let tiles = shape.query_length.div_ceil(QUERIES);
    let work = Work {
        jobs: shape.batch * shape.num_heads * tiles,
        operations: operations(&shape),
    };
    let each = worker_scratch::<T>(cpu, &shape);
    cpu.run(work, scratch, each, |jobs, scratch| {
        cpu.level().dispatch(Worker {
            call: &call,
            jobs,
            scratch,
        });
    });
    Ok(())
}

/// Multiply-adds of both products of a call, those that a mask rules out too.
pub(crate) fn operations(shape: &AttentionShape) -> usize {
    [shape.batch, shape.num_heads, shape.query_length]
        .into_iter()
        .fold(shape.key_length, usize::saturating_mul)
        .saturating_mul(shape.depth.saturating_add(shape.value_depth))
}

/// What the forward and the backward pass share of a request: how scores are made, and the values.
pub(crate) fn scoring<'a, T: Stored>(
    request: &Attention<'a, Host, T>,
    shape: &AttentionShape,
) -> Result<(Scoring<'a, T>, Heads<'a, T>)> {
    let (key, value) = request.dense()?;
    let weights = shape.weights(request.query.shape())?;
    let bias = request.scores.bias;
    let scale = request.scores.scale.factor(shape.depth, libm::sqrt);
    let scoring = Scoring {
        shape: *shape,
        query: Heads::new(&request.query),
        key: Heads::new(key),
        scale: <T::Acc as attn_core::Element>::from_f64(scale),
        bias: bias
            .map(|bias| bias.broadcast_to("bias", &weights))
            .transpose()?,
        visible: Visibility::new(&request.visible, shape, &weights)?,
        fully_masked: request.visible.fully_masked,
        hidden_count: (request.dropout).is_some_and(|dropout| dropout.multiplier().is_nan()),
    };
    Ok((scoring, Heads::new(value)))
}

/// An output for several threads, and where its elements lie.
pub(crate) fn shared<'v, T: attn_core::Scalar>(
    view: &'v mut HostViewMut<'_, T>,
) -> (Shared<'v, T>, Layout) {
    let layout = *view.layout();
    (Shared::new(view), layout)
}

fn check<T: Stored>(
    cpu: &Cpu,
    request: &Attention<'_, Host, T>,
    out: &HostViewMut<'_, T>,
    scratch: usize,
) -> Result<AttentionShape> {
    request.check_supported("attn-kernels-cpu", SUPPORTED)?;
    let shape = request.shape()?;
    let wanted = shape.output(request.query.shape())?;
    if *out.shape() != wanted {
        return Err(Error::Shape {
            argument: "output",
            got: *out.shape(),
            wanted,
        });
    }
    let needed = self::scratch::<T>(cpu, &shape);
    enough(scratch, needed)?;
    Ok(shape)
}

/// One thread's share of the jobs.
struct Worker<'a, 'c, T: Stored> {
    call: &'a Call<'c, T>,
    jobs: &'a Jobs,
    scratch: &'a mut [T::Acc],
}

impl<T: Stored> Kernel for Worker<'_, '_, T>
where
    T::Acc: Lane,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let shape = &self.call.scoring.shape;
        if few::serves(shape, width::<S, T::Acc>()) {
            self.run_few(simd);
            return;
        }
        let mut tiles = Tiles::cut(self.scratch, shape);
        let per_head = shape.query_length.div_ceil(QUERIES);
        while let Some(number) = self.jobs.take() {
            // The last queries first: under a causal mask they see most, and the longest jobs should not come last.
            let tile = per_head - 1 - number % per_head;
            let matrix = number / per_head;
            let start = tile * QUERIES;
            let job = Job {
                batch: matrix / shape.num_heads,
                head: matrix % shape.num_heads,
                queries: start..(start + QUERIES).min(shape.query_length),
            };
            self.call.run(simd, &job, &mut tiles);
        }
    }
}

impl<T: Stored> Worker<'_, '_, T>
where
    T::Acc: Lane,
{
    /// Heads with a few queries each.
    #[inline(always)]
    fn run_few<S: Simd>(self, simd: S) {
        let shape = &self.call.scoring.shape;
        let mut tiles = FewTiles::cut(self.scratch, shape);
        while let Some(matrix) = self.jobs.take() {
            let job = Job {
                batch: matrix / shape.num_heads,
                head: matrix % shape.num_heads,
                queries: 0..shape.query_length,
            };
            self.call.run_few(simd, &job, &mut tiles);
        }
    }
}
