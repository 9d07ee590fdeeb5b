//! A call for the gradients of attention: checks, jobs, threads.

use crate::attend::{operations, scoring, shared};
use crate::backward::{Call, Pass, Tiles};
use crate::buffers::enough;
use crate::cpu::Cpu;
use crate::dropout::Dropped;
use crate::element::Stored;
use crate::heads::Heads;
use crate::modifiers::Modifiers;
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::spans::Spans;
use crate::threads::{Jobs, Work};
use attn_core::{AttentionBackward, AttentionShape, Features, Host, Layout, Result};

/// What there are gradients of: everything but caches.
pub(crate) const SUPPORTED: Features = crate::attend::SUPPORTED.without(CACHES);

const CACHES: Features = Features::CACHED
    .union(Features::RING)
    .union(Features::PAGED)
    .union(Features::INT8)
    .union(Features::Q8_0);

pub(crate) fn scratch<T: Stored>(cpu: &Cpu, shape: &AttentionShape) -> usize {
    let heads = shape.batch.saturating_mul(shape.num_heads).max(1);
    Tiles::<T::Acc>::size(shape).saturating_mul(cpu.threads().min(heads))
}

pub(crate) fn attend_backward<T: Stored>(
    cpu: &Cpu,
    request: AttentionBackward<'_, Host, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    request
        .call
        .check_supported("attn-kernels-cpu", SUPPORTED)?;
    let shape = request.shape()?;
    request.call.check_contents(&shape)?;
    enough(scratch.len(), self::scratch::<T>(cpu, &shape))?;
    let AttentionBackward {
        call,
        out,
        statistics,
        d_out,
        mut d_query,
        mut d_key,
        mut d_value,
        mut d_bias,
        mut d_relative,
        mut d_sinks,
        ..
    } = request;
    let weights = shape.weights(call.query.shape())?;
    let dropout = call
        .dropout
        .map(|dropout| Dropped::new(&dropout, &shape))
        .transpose()?;
    let (scoring, value) = scoring(&call, Modifiers::default(), &shape)?;
    let d_bias = match &mut d_bias {
        None => None,
        Some(d_bias) => {
            clear(d_bias);
            let (to, layout) = shared(d_bias);
            Some((to, layout.broadcast_to("d_bias", &weights)?))
        }
    };
    let call = Call {
        scoring,
        spans: Spans::new(call.visible.sequences, shape),
        value,
        dropout,
        out: Heads::new(&out),
        statistics,
        d_out: Heads::new(&d_out),
        d_query: shared(&mut d_query),
        d_key: shared(&mut d_key),
        d_value: shared(&mut d_value),
        d_bias,
        d_relative: d_relative.as_mut().map(|table| {
            table.buf_mut().fill(T::Acc::default());
            Shared::from_slice(table.buf_mut())
        }),
    };
    let mut run = |pass| {
        let each = Tiles::<T::Acc>::size(&shape);
        let work = Work {
            jobs: call.jobs(pass),
            operations: operations(&shape),
        };
        cpu.run(work, scratch, each, |jobs, scratch| {
            cpu.level().dispatch(Worker {
                call: &call,
                jobs,
                pass,
                scratch,
            });
        });
    };
    run(Pass::Inputs);
    if call.d_bias.is_some() {
        run(Pass::Bias);
    }
    if call.d_relative.is_some() {
        run(Pass::Relative);
    }
    if let Some(d_sinks) = &mut d_sinks {
        call.sum_sinks(d_sinks.buf_mut(), scratch);
    }
    Ok(())
}

/// Zeros in every element of a view.
fn clear<A: Lane>(view: &mut attn_core::HostViewMut<'_, A>) {
    let layout: Layout = *view.layout();
    let rank = layout.shape().rank();
    for n in 0..layout.elements() {
        view.buf_mut()[layout.base(rank, n)] = A::default();
    }
}

/// One thread's share of the jobs.
struct Worker<'a, 'c, T: Stored> {
    call: &'a Call<'c, T>,
    jobs: &'a Jobs,
    pass: Pass,
    scratch: &'a mut [T::Acc],
}

impl<T: Stored> Kernel for Worker<'_, '_, T>
where
    T::Acc: Lane,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (mut tiles, [k, v]) = Tiles::cut(self.scratch, &self.call.scoring.shape);
        while let Some(number) = self.jobs.take() {
            self.call
                .run(simd, self.pass, number, &mut tiles, [&mut *k, &mut *v]);
        }
    }
}
