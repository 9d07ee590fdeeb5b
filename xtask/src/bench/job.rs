//! A case made ready: everything is allocated, converted and laid out before the clock starts; a step computes once.

mod core;
mod layer;
mod product;
mod train;

use crate::data::Arrays;
use crate::spec::{Pass, Spec, Work};
use ::core::any::Any;
use anyhow::{Result, bail};
use attn_core::{DType, Element, Host, Kernels, bf16, f16};
use attn_kernels_cpu::Cpu;

/// A case that is ready to run.
pub(crate) trait Job {
    /// Computes once. It neither allocates nor converts.
    fn step(&mut self) -> Result<()>;

    /// The result of the last step in the protocol's order of axes: `[batch, length, features]` of a layer, then for a training step the gradients of
    /// `x`, of the kernels of query and out instead; `[batch, heads, query_length, depth]` of a core; `[rows, columns]` of a product.
    fn fetch(&self) -> Vec<f32>;

    /// Bytes that a step works in beside its inputs, parameters, output and gradients.
    fn extra_bytes(&self) -> usize;
}

/// Makes `spec` ready on `cpu`.
pub(crate) fn prepare(spec: &Spec, arrays: Arrays, cpu: &Cpu) -> Result<Box<dyn Job>> {
    match spec.dtype {
        DType::F32 => prepare_in::<f32>(spec, arrays, cpu),
        DType::F64 => prepare_in::<f64>(spec, arrays, cpu),
        DType::F16 => prepare_in::<f16>(spec, arrays, cpu),
        DType::BF16 => prepare_in::<bf16>(spec, arrays, cpu),
    }
}

fn prepare_in<T: Element>(spec: &Spec, arrays: Arrays, cpu: &Cpu) -> Result<Box<dyn Job>>
where
    Cpu: Computes<T>,
{
    Ok(match (spec.work, arrays) {
        (Work::Layer(sizes, Pass::Train), Arrays::Layer(arrays)) => {
            Box::new(train::Train::<T>::new(sizes, arrays, cpu)?)
        }
        (Work::Layer(sizes, pass), Arrays::Layer(arrays)) => {
            Box::new(layer::Forward::<T>::new(sizes, pass, arrays, cpu)?)
        }
        (Work::Core(sizes), Arrays::Core(arrays)) => {
            Box::new(core::Core::<T>::new(sizes, arrays, cpu)?)
        }
        (Work::Product(sizes), Arrays::Product(arrays)) => {
            Box::new(product::Product::<T>::new(sizes, arrays, cpu)?)
        }
        _ => bail!("the inputs are those of another kind of case"),
    })
}

/// The CPU computes in `T`, in the host's memory.
trait Computes<T: Element>: Kernels<T, Storage = Host, Error = attn_core::Error> {}
impl<T: Element, B: Kernels<T, Storage = Host, Error = attn_core::Error>> Computes<T> for B {}

/// Rounds every number to `T`. Numbers that are of that type already are not copied: two of each would be in the peak of a process's memory.
fn rounded<T: Element>(values: Vec<f32>) -> Vec<T> {
    let values: Box<dyn Any> = Box::new(values);
    match values.downcast::<Vec<T>>() {
        Ok(same) => *same,
        Err(other) => {
            let values = other.downcast::<Vec<f32>>().unwrap_or_default();
            values
                .iter()
                .map(|&value| T::from_f64(f64::from(value)))
                .collect()
        }
    }
}

fn to_f32<T: Element>(values: &[T]) -> Vec<f32> {
    values.iter().map(|value| value.to_f64() as f32).collect()
}

fn bytes_of<T>(elements: usize) -> usize {
    elements * size_of::<T>()
}
