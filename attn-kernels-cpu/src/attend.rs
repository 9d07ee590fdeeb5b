//! An attention call: checks, jobs, threads.

use crate::buffers::enough;
use crate::cpu::Cpu;
use crate::dropout::Dropped;
use crate::element::Stored;
use crate::few::{self, FewTiles};
use crate::flash::{Call, Tiles};
use crate::heads::Heads;
use crate::micro::width;
use crate::modifiers::Modifiers;
use crate::pack;
use crate::scores::{Job, QUERIES, Scoring};
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::spans::Spans;
use crate::terms::Terms;
use crate::threads::{Jobs, Work};
use crate::tokens::Tokens;
use crate::visibility::Visibility;
use attn_core::{
    Attention, AttentionShape, Error, Features, Host, HostViewMut, Layout, Outputs, Result, Span,
};
use core::ops::Range;

/// What the forward pass computes.
pub(crate) const SUPPORTED: Features = Features::FLAX
    .union(Features::GROUPED)
    .union(Features::SOFTCAP)
    .union(Features::ALIBI)
    .union(Features::RELATIVE)
    .union(Features::SINKS)
    .union(Features::WINDOW)
    .union(Features::SEQUENCES)
    .union(Features::SEGMENTS)
    .union(Features::BLOCKS)
    .union(Features::STAGES)
    .union(Features::CACHED)
    .union(Features::RING)
    .union(Features::PAGED)
    .union(Features::INT8)
    .union(Features::Q8_0);

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
    modifiers: Modifiers<'_, T::Acc>,
    mut out: HostViewMut<'_, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    let shape = check(cpu, &request, &out, scratch.len())?;
    let dropout = request
        .dropout
        .map(|dropout| Dropped::new(&dropout, &shape))
        .transpose()?;
    let (scoring, value) = scoring(&request, modifiers, &shape)?;
    let Outputs {
        mut weights,
        mut statistics,
        stage,
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
        stage,
        statistics: statistics.as_mut().map(shared),
    };
    let spans = Spans::new(request.visible.sequences, shape);
    let few = few::serves(&shape, pack::panel::<T::Acc>(cpu));
    let per_matrix = match few {
        true => {
            let group = shape.num_heads.checked_div(shape.key_heads).unwrap_or(0);
            shape.key_heads * group.div_ceil(few::heads_at_once(&shape))
        }
        false => shape.num_heads * shape.query_length.div_ceil(QUERIES),
    };
    let work = Work {
        jobs: shape.batch * per_matrix,
        operations: operations(&shape),
    };
    let each = worker_scratch::<T>(cpu, &shape);
    cpu.run(work, scratch, each, |jobs, scratch| {
        cpu.level().dispatch(Worker {
            call: &call,
            spans: &spans,
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
    modifiers: Modifiers<'a, T::Acc>,
    shape: &AttentionShape,
) -> Result<(Scoring<'a, T>, Tokens<'a, T>)> {
    let weights = shape.weights(request.query.shape())?;
    let scale = request.scores.scale.factor(shape.depth, libm::sqrt);
    let [key, value] = Tokens::of(&request.source, shape).ok_or(Error::Unsupported {
        backend: "attn-kernels-cpu",
        feature: "this source of keys and values",
        instead: "Pass keys and values as arrays",
    })?;
    let terms = Terms::new(&request.scores, shape.num_heads, &weights, modifiers.score)?;
    let scoring = Scoring {
        shape: *shape,
        query: Heads::new(&request.query),
        scale: <T::Acc as attn_core::Element>::from_f64(scale),
        infinite: terms.may_be_infinite(),
        terms,
        sinks: request.scores.sinks.map(|sinks| sinks.buf()),
        visible: Visibility::new(
            &request.visible,
            key.held(),
            shape,
            &weights,
            modifiers.mask,
        )?,
        key,
        fully_masked: request.visible.fully_masked,
        hidden_count: (request.dropout).is_some_and(|dropout| dropout.multiplier().is_nan()),
    };
    Ok((scoring, value))
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
    request.check_contents(&shape)?;
    let needed = self::scratch::<T>(cpu, &shape);
    enough(scratch, needed)?;
    Ok(shape)
}

/// One thread's share of the jobs.
struct Worker<'a, 'c, T: Stored> {
    call: &'a Call<'c, T>,
    spans: &'a Spans<'c>,
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
            let mut rest = start..(start + QUERIES).min(shape.query_length);
            while !rest.is_empty() {
                let (queries, span) = self.spans.first(matrix / shape.num_heads, rest.clone());
                rest.start = queries.end;
                let job = job(shape, matrix, queries, span.as_ref());
                match span {
                    Some(_) => self.call.run(simd, &job, &mut tiles),
                    None => self.call.write_nothing(&job, tiles.row()),
                }
            }
        }
    }
}

/// A job of one head of one batch entry.
fn job(shape: &AttentionShape, matrix: usize, queries: Range<usize>, span: Option<&Span>) -> Job {
    Job {
        batch: matrix / shape.num_heads,
        head: matrix % shape.num_heads,
        span: span.cloned().unwrap_or(Span {
            queries: queries.clone(),
            keys: 0..0,
        }),
        queries,
    }
}

impl<T: Stored> Worker<'_, '_, T>
where
    T::Acc: Lane,
{
    /// A few queries of heads that share keys and values.
    #[inline(always)]
    fn run_few<S: Simd>(self, simd: S) {
        let shape = &self.call.scoring.shape;
        let mut tiles = FewTiles::cut(self.scratch, shape);
        let group = shape.num_heads / shape.key_heads.max(1);
        let heads_at_once = few::heads_at_once(shape);
        let per_group = group.div_ceil(heads_at_once);
        while let Some(number) = self.jobs.take() {
            let first = number % per_group * heads_at_once;
            let heads = heads_at_once.min(group - first);
            let matrix = number / per_group * group + first;
            let mut rest = 0..shape.query_length;
            while !rest.is_empty() {
                let (queries, span) = self.spans.first(matrix / shape.num_heads, rest.clone());
                rest.start = queries.end;
                let job = job(shape, matrix, queries, span.as_ref());
                match span {
                    Some(_) => self.call.run_few(simd, &job, heads, &mut tiles),
                    None => {
                        for job in job.each_head(heads) {
                            self.call.write_nothing(&job, tiles.row());
                        }
                    }
                }
            }
        }
    }
}
