//! A case made ready on the device: its arrays, and a call that can be made again and again.

use crate::cases::{Case, Operation};
use anyhow::Result;
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Causal, DenseKernel, Dims, Element, Kernels,
    Projection, RowOrder, View, ViewMut,
};
use attn_kernels_cuda::{CudaDevice, CudaError, Device, DeviceBuffer};

/// Sets of arrays: calls take turns on them, so that none finds its arrays in the cache from its last turn.
const SETS: usize = 3;

/// A case on the device.
pub(crate) struct Job<T: Element> {
    case: Case,
    sets: Vec<Set<T>>,
    scratch: DeviceBuffer<T::Acc>,
}

struct Set<T: Element> {
    query: DeviceBuffer<T>,
    key: DeviceBuffer<T>,
    value: DeviceBuffer<T>,
    out: DeviceBuffer<T>,
    /// For gradients: the statistics, the output's gradient and those that are wanted.
    backward: Option<Backward<T>>,
}

struct Backward<T: Element> {
    statistics: DeviceBuffer<T::Acc>,
    d_out: DeviceBuffer<T>,
    d_query: DeviceBuffer<T>,
    d_key: DeviceBuffer<T>,
    d_value: DeviceBuffer<T>,
}

impl<T: Element> Job<T> {
    pub(crate) fn new(device: &CudaDevice, case: &Case) -> Result<Self> {
        let mut sets = Vec::new();
        for number in 0..SETS {
            sets.push(Set::new(device, case, number as u64)?);
        }
        let scratch = match case.operation {
            Operation::Project => {
                let rows = case.batch * case.query_length;
                Kernels::<T>::project_scratch(device, rows, case.depth, case.heads)
            }
            Operation::Backward => {
                let shape = shape(case)?;
                Kernels::<T>::attend_scratch(device, &shape)
                    .max(Kernels::<T>::attend_backward_scratch(device, &shape))
            }
            _ => Kernels::<T>::attend_scratch(device, &shape(case)?),
        };
        let mut job = Self {
            case: case.clone(),
            sets,
            scratch: device.buffer(scratch)?,
        };
        if case.operation == Operation::Backward {
            for number in 0..SETS {
                job.attend(device, number)?;
            }
        }
        Ok(job)
    }

    /// Starts the case once.
    pub(crate) fn start(&mut self, device: &CudaDevice, turn: usize) -> Result<(), CudaError> {
        let number = turn % SETS;
        match self.case.operation {
            Operation::Forward | Operation::Decode => self.attend(device, number),
            Operation::Backward => self.attend_backward(device, number),
            Operation::Project => self.project(device, number),
        }
    }

    fn attend(&mut self, device: &CudaDevice, number: usize) -> Result<(), CudaError> {
        let case = &self.case;
        let set = &mut self.sets[number];
        let statistics = match &mut set.backward {
            Some(backward) => Some(ViewMut::new(&mut backward.statistics, &statistics(case))?),
            None => None,
        };
        let call = call(case, &set.query, &set.key, &set.value)?.with_statistics(statistics);
        let out = ViewMut::new(&mut set.out, &queries(case))?;
        device.attend(call, out, &mut self.scratch)
    }

    fn attend_backward(&mut self, device: &CudaDevice, number: usize) -> Result<(), CudaError> {
        let case = &self.case;
        let set = &mut self.sets[number];
        let Some(backward) = &mut set.backward else {
            return Ok(());
        };
        let request = AttentionBackward {
            call: call(case, &set.query, &set.key, &set.value)?,
            out: View::new(&set.out, &queries(case))?,
            statistics: View::new(&backward.statistics, &statistics(case))?,
            d_out: View::new(&backward.d_out, &queries(case))?,
            d_query: ViewMut::new(&mut backward.d_query, &queries(case))?,
            d_key: ViewMut::new(&mut backward.d_key, &keys(case))?,
            d_value: ViewMut::new(&mut backward.d_value, &keys(case))?,
            d_bias: None,
            d_relative: None,
            d_sinks: None,
        };
        device.attend_backward(request, &mut self.scratch)
    }

    fn project(&mut self, device: &CudaDevice, number: usize) -> Result<(), CudaError> {
        let case = &self.case;
        let set = &mut self.sets[number];
        let rows = case.batch * case.query_length;
        let call = Projection {
            input: View::new(&set.query, &[rows, case.depth])?,
            kernel: DenseKernel::Plain(View::new(&set.key, &[case.depth, case.heads])?),
            bias: None,
            row_order: RowOrder::Any,
        };
        let out = ViewMut::new(&mut set.out, &[rows, case.heads])?;
        device.project(&call, out, &mut self.scratch)
    }
}

impl<T: Element> Set<T> {
    fn new(device: &CudaDevice, case: &Case, number: u64) -> Result<Self> {
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let mut seed = number * 100 + 1;
        let mut random = |elements: usize| {
            seed += 1;
            device.upload(&numbers::<T>(elements, seed))
        };
        if case.operation == Operation::Project {
            let rows = case.batch * case.query_length;
            return Ok(Self {
                query: random(rows * case.depth)?,
                key: random(case.depth * case.heads)?,
                value: device.buffer(0)?,
                out: device.buffer(rows * case.heads)?,
                backward: None,
            });
        }
        let (q, k) = (size(&queries(case)), size(&keys(case)));
        let backward = match case.operation {
            Operation::Backward => Some(Backward {
                statistics: device.buffer(size(&statistics(case)))?,
                d_out: random(q)?,
                d_query: device.buffer(q)?,
                d_key: device.buffer(k)?,
                d_value: device.buffer(k)?,
            }),
            _ => None,
        };
        Ok(Self {
            query: random(q)?,
            key: random(k)?,
            value: random(k)?,
            out: device.buffer(q)?,
            backward,
        })
    }
}

fn queries(case: &Case) -> [usize; 4] {
    [case.batch, case.query_length, case.heads, case.depth]
}

fn keys(case: &Case) -> [usize; 4] {
    [case.batch, case.key_length, case.key_heads, case.depth]
}

fn statistics(case: &Case) -> [usize; 4] {
    [case.batch, case.heads, case.query_length, 2]
}

fn shape(case: &Case) -> Result<AttentionShape> {
    let (queries, keys) = (Dims::new(&queries(case))?, Dims::new(&keys(case))?);
    Ok(AttentionShape::of(&queries, &keys, &keys)?)
}

fn call<'a, T: Element>(
    case: &Case,
    query: &'a DeviceBuffer<T>,
    key: &'a DeviceBuffer<T>,
    value: &'a DeviceBuffer<T>,
) -> Result<Attention<'a, Device, T>, CudaError> {
    let causal = case.is_causal.then(Causal::top_left);
    let call = Attention::new(
        View::new(query, &queries(case))?,
        View::new(key, &keys(case))?,
        View::new(value, &keys(case))?,
    );
    Ok(call.with_causal(causal))
}

/// Numbers of about normal size: a device computes faster on zeros.
fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // A few thousand different ones, repeated at an odd period, are as random to the device and quicker to make.
    let period = 4099.min(count.max(1));
    let few: Vec<T> = (0..period)
        .map(|_| {
            let mut sum = 0.0;
            for _ in 0..4 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                sum += (state >> 33) as f64 / f64::from(1u32 << 31) - 0.5;
            }
            T::from_f64(sum * 1.7)
        })
        .collect();
    few.iter().copied().cycle().take(count).collect()
}
