//! What a training step holds, against its own arrays, over the length: `cargo run --release --example memory`.
//!
//! The attention core (one batch entry, 8 heads of depth 64, `float32`) is run forward and backward at each length in buffers of this
//! program; beside them the kernels hold little. The limit holds for the core. The layer around it keeps projections and context too,
//! and makes their gradients: a long step holds about three times its arrays.
#![expect(clippy::print_stdout, reason = "a program")]

use anyhow::Result;
use attn_layers::core::{
    Attention, AttentionBackward, AttentionShape, HostView, HostViewMut, Kernels,
};
use attn_layers::{Cpu, Dims, MultiHeadDotProductAttentionF32, ScratchSizes};

const HEADS: usize = 8;
const DEPTH: usize = 64;
const LENGTHS: [usize; 5] = [512, 1024, 2048, 4096, 8192];
/// What a step of the core may hold at most, as a multiple of its own arrays.
const LIMIT: f64 = 1.3;

fn main() -> Result<()> {
    let cpu = Cpu::detect().with_threads(2)?;
    println!(
        "one training step, batch 1, {HEADS} heads of depth {DEPTH}, float32, 2 threads; MB\n"
    );
    println!("{:>35} {:>35}", "attention core", "layer");
    println!(
        "{:>8} {:>10} {:>14} {:>9} {:>10} {:>14} {:>9} {:>17}",
        "length",
        "arrays",
        "beside them",
        "times",
        "arrays",
        "beside them",
        "times",
        "scores would be"
    );
    for length in LENGTHS {
        let core = core_step(&cpu, length)?;
        let layer = layer_step(&cpu, length)?;
        let scores = HEADS * length * length * size_of::<f32>();
        println!(
            "{length:>8} {:>10.1} {:>14.1} {:>9.2} {:>10.1} {:>14.1} {:>9.2} {:>17.1}  {}",
            mega(core.arrays),
            mega(core.beside),
            core.ratio(),
            mega(layer.arrays),
            mega(layer.beside),
            layer.ratio(),
            mega(scores),
            "#".repeat((mega(core.arrays + core.beside) / 4.0).ceil() as usize)
        );
        anyhow::ensure!(
            core.ratio() < LIMIT,
            "the core holds {} times its arrays",
            core.ratio()
        );
    }
    println!(
        "\ncore: query, key, value, output and their gradients; beside them statistics and scratch.\n\
         layer: input, output, parameters and their gradients; beside them residuals and scratch.\n\n\
         The limit of {LIMIT} times holds for the core alone. A step of the layer holds about 3 times its arrays: to the four of the\n\
         length (input, output and their gradients) come queries, keys, values and context, kept for the backward pass, and\n\
         the gradients of these four. Core and layer both grow with the length, not with its square."
    );
    Ok(())
}

fn mega(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Bytes of a step.
struct Held {
    arrays: usize,
    beside: usize,
}

impl Held {
    fn ratio(&self) -> f64 {
        (self.arrays + self.beside) as f64 / self.arrays as f64
    }
}

/// Runs the core forward and backward, and counts the buffers that it was given.
fn core_step(cpu: &Cpu, length: usize) -> Result<Held> {
    let dims = Dims::new(&[1, length, HEADS, DEPTH])?;
    let shape = AttentionShape::of(&dims, &dims, &dims)?;
    let count = dims.elements()?;
    let numbers = |seed: usize| -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0)
            .collect()
    };
    let (query, key, value, d_out) = (numbers(1), numbers(2), numbers(3), numbers(4));
    let mut out = vec![0.0; count];
    let mut gradients = [vec![0.0; count], vec![0.0; count], vec![0.0; count]];
    let rows = shape.statistics(&dims)?;
    let mut statistics = vec![0.0; rows.elements()?];
    let sizes = [
        Kernels::<f32>::attend_scratch(cpu, &shape),
        Kernels::<f32>::attend_backward_scratch(cpu, &shape),
    ];
    let mut scratch = vec![0.0; sizes[0].max(sizes[1])];

    let view = |data| HostView::new(data, &dims);
    let call = || Ok::<_, anyhow::Error>(Attention::new(view(&query)?, view(&key)?, view(&value)?));
    let asked = HostViewMut::new(&mut statistics, &rows)?;
    let to = HostViewMut::new(&mut out, &dims)?;
    cpu.attend(call()?.with_statistics(Some(asked)), to, &mut scratch)?;
    let [d_query, d_key, d_value] = &mut gradients;
    let backward = AttentionBackward {
        call: call()?,
        out: view(&out)?,
        statistics: HostView::new(&statistics, &rows)?,
        d_out: view(&d_out)?,
        d_query: HostViewMut::new(d_query, &dims)?,
        d_key: HostViewMut::new(d_key, &dims)?,
        d_value: HostViewMut::new(d_value, &dims)?,
        d_bias: None,
        d_relative: None,
        d_sinks: None,
    };
    cpu.attend_backward(backward, &mut scratch)?;
    Ok(Held {
        arrays: 8 * count * size_of::<f32>(),
        beside: (statistics.len() + scratch.len()) * size_of::<f32>(),
    })
}

/// Counts what a step of the layer asks its caller for, in self-attention.
fn layer_step(cpu: &Cpu, length: usize) -> Result<Held> {
    let features = HEADS * DEPTH;
    let inputs = Dims::new(&[1, length, features])?;
    let layer = MultiHeadDotProductAttentionF32::new(HEADS);
    let plan = layer.plan(&inputs, &inputs, &inputs)?;
    let (forward, backward) = (
        plan.forward_scratch::<f32, _>(cpu),
        plan.backward_scratch::<f32, _>(cpu),
    );
    let of = |sizes: &ScratchSizes| sizes.q + sizes.k + sizes.v + sizes.context + sizes.tiles;
    let kept = plan.residuals();
    let residuals = kept.q + kept.k + kept.v + kept.context + kept.statistics;
    let parameters = 4 * (features * features + features);
    Ok(Held {
        arrays: (4 * inputs.elements()? + 2 * parameters) * size_of::<f32>(),
        beside: (residuals + of(&forward).max(of(&backward))) * size_of::<f32>(),
    })
}
