//! An attention call: checks, jobs, threads.

use crate::cpu::Cpu;
use crate::element::Stored;
use crate::flash::{Call, Heads, Job, QUERIES, Tiles};
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::threads::Jobs;
use crate::visibility::Visibility;
use attn_core::{
    Attention, AttentionShape, Error, Host, HostViewMut, KeyValue, Result, request::Features,
};

const SUPPORTED: Features = Features::DENSE
    .union(Features::BIAS)
    .union(Features::SCALE)
    .union(Features::CAUSAL)
    .union(Features::MASK)
    .union(Features::ZERO_ROWS)
    .union(Features::WEIGHTS);

pub(crate) fn scratch<T: Stored>(cpu: &Cpu, shape: &AttentionShape) -> usize {
    Tiles::<T::Acc>::size(shape).saturating_mul(cpu.threads())
}

pub(crate) fn attend<T: Stored>(
    cpu: &Cpu,
    request: Attention<'_, Host, T>,
    mut out: HostViewMut<'_, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    let shape = check(cpu, &request, &out, scratch.len())?;
    let weights_shape = shape.weights(request.query.shape())?;
    let Attention {
        query,
        source: KeyValue::Dense { key, value },
        scores,
        visible,
        mut outputs,
        ..
    } = request
    else {
        return Err(Error::Unsupported {
            backend: "attn-kernels-cpu",
            feature: "this source of keys and values",
            instead: "Pass dense keys and values",
        });
    };
    let bias = scores
        .bias
        .map(|bias| bias.broadcast_to("bias", &weights_shape))
        .transpose()?;
    let scale = scores.scale.factor(shape.depth, libm::sqrt);
    let out_layout = *out.layout();
    let weights = outputs.weights.as_mut().map(|weights| {
        let layout = *weights.layout();
        (Shared::new(weights), layout)
    });
    let call = Call {
        shape,
        query: Heads::new(&query),
        key: Heads::new(&key),
        value: Heads::new(&value),
        scale: <T::Acc as attn_core::Element>::from_f64(scale),
        bias,
        visible: Visibility::new(&visible, &shape, &weights_shape)?,
        fully_masked: visible.fully_masked,
        out: Shared::new(&mut out),
        out_layout,
        weights,
    };
    let tiles = shape.query_length.div_ceil(QUERIES);
    let jobs = shape.batch * shape.num_heads * tiles;
    cpu.run(
        jobs,
        scratch,
        Tiles::<T::Acc>::size(&shape),
        |jobs, scratch| {
            cpu.level().dispatch(Worker {
                call: &call,
                jobs,
                scratch,
            });
        },
    );
    Ok(())
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
    if scratch < needed {
        return Err(Error::Scratch {
            argument: "tiles",
            got: scratch,
            wanted: needed,
        });
    }
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
        let shape = &self.call.shape;
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
