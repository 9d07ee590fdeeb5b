//! Decoding: a call that creates the cache, then one token at a time.

use super::case::Case;
use super::forward::Arguments;
use super::random::Drawn;
use super::{Outputs, axis, cache, layer};
use anyhow::{Result, ensure};
use attn_layers::HostKernels;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{AnyCache, CacheAccess};

/// Feeds `inputs_q` token by token into a fresh cache. Outputs are joined along the length.
pub(crate) fn run<B: HostKernels>(case: &Case, backend: &B) -> Result<Outputs> {
    let path = case.path();
    let layer = layer::of(case, &path)?;
    ensure!(layer.decode, "a decode case needs config.decode");
    let params: Vec<_> = case.params.iter().collect();
    let arguments = Arguments::of(case)?;
    let mut outputs = Outputs::new();

    let mut cache: Option<AnyCache> = None;
    if let Some(call) = cache::creating_call(case)? {
        let created = layer.apply(
            backend,
            &params,
            call.with_cache(CacheAccess::Mutable(&mut cache)),
        )?;
        outputs.insert("out_init".to_owned(), created.out);
    } else {
        cache = cache::before_call(case, &layer, &params)?;
    }

    let steps = Steps::of(case, &arguments)?;
    let (mut outs, mut weights) = (Vec::new(), Vec::new());
    for step in 0..steps.count {
        let token = Token::of(&arguments, &steps, step)?;
        let call = token
            .arguments()
            .call(case, CacheAccess::Mutable(&mut cache))?;
        let output = layer.apply(backend, &params, call)?;
        outs.push(output.out);
        weights.extend(output.attention_weights);
    }
    join_into(&mut outputs, "out", &outs)?;
    // Every step draws the same numbers: each is an apply of its own.
    if let Some(slots) = cache.as_ref().map(|cache| cache.cached_key.shape()) {
        let max_length = slots.iter().rev().nth(2).copied().unwrap_or(0);
        if let Some(drawn) = Drawn::in_layer(case, 1, max_length)? {
            outputs.insert("dropout_keep".to_owned(), drawn.kept(case.convention())?);
        }
    }
    if !weights.is_empty() {
        join_into(&mut outputs, "attention_weights", &weights)?;
    }
    if let Some(cache) = cache {
        cache::add_to(&mut outputs, cache)?;
    }
    Ok(outputs)
}

fn join_into(outputs: &mut Outputs, name: &str, parts: &[Tensor]) -> Result<()> {
    let axis = parts
        .first()
        .map_or(Ok(0), |part| axis::from_end(&part.view(), 2))?;
    outputs.insert(name.to_owned(), axis::join(parts, axis)?);
    Ok(())
}

/// How many steps there are, over how many batch axes.
struct Steps {
    count: usize,
    batch_axes: usize,
}

impl Steps {
    fn of(case: &Case, arguments: &Arguments<'_>) -> Result<Self> {
        let batch_axes = axis::from_end(&arguments.inputs_q, 2)?;
        let count = arguments.inputs_q.shape()[batch_axes];
        ensure!(
            case.steps.is_none_or(|steps| steps == count),
            "case.steps is not the length of inputs_q, {count}"
        );
        Ok(Self { count, batch_axes })
    }
}

/// The tensors of one step.
struct Token {
    inputs_q: Tensor,
    inputs_k: Option<Tensor>,
    inputs_v: Option<Tensor>,
    inputs_kv: Option<Tensor>,
    mask: Option<Tensor>,
}

impl Token {
    fn of(arguments: &Arguments<'_>, steps: &Steps, step: usize) -> Result<Self> {
        // Inputs as long as the queries are fed alike; others are the same at every step.
        let input = |view: Option<TensorView<'_>>| {
            view.map(|view| match axis::from_end(&view, 2)? {
                length if view.shape()[length] == steps.count => axis::entry(&view, length, step),
                _ => Ok(view.to_tensor()?),
            })
            .transpose()
        };
        Ok(Self {
            inputs_q: axis::entry(&arguments.inputs_q, steps.batch_axes, step)?,
            inputs_k: input(arguments.inputs_k)?,
            inputs_v: input(arguments.inputs_v)?,
            inputs_kv: input(arguments.inputs_kv)?,
            mask: arguments
                .mask
                .map(|mask| mask_of_step(&mask, steps, step))
                .transpose()?,
        })
    }

    fn arguments(&self) -> Arguments<'_> {
        Arguments {
            inputs_q: self.inputs_q.view(),
            inputs_k: self.inputs_k.as_ref().map(Tensor::view),
            inputs_v: self.inputs_v.as_ref().map(Tensor::view),
            inputs_kv: self.inputs_kv.as_ref().map(Tensor::view),
            mask: self.mask.as_ref().map(Tensor::view),
        }
    }
}

/// A mask with a row for each query gives each step its row; a mask with one row, `[batch..., 1, 1, max_length]`, serves
/// all steps; one with an axis more, `[steps, batch..., 1, 1, max_length]`, is a list of masks.
fn mask_of_step(mask: &TensorView<'_>, steps: &Steps, step: usize) -> Result<Tensor> {
    let shape = mask.shape();
    let rank_of_step = steps.batch_axes + 3;
    if shape.rank() == rank_of_step + 1 && shape[0] == steps.count {
        return Ok(axis::entry(mask, 0, step)?.reshape(&shape[1..])?);
    }
    if shape.rank() == rank_of_step && shape[rank_of_step - 2] == steps.count {
        return axis::entry(mask, rank_of_step - 2, step);
    }
    Ok(mask.to_tensor()?)
}
