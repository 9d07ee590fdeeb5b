//! Plain same-dtype arithmetic in Flax's order of operations: what the tolerance is derived from, and a slow but complete
//! backend to test layers on.

use super::check::Maths;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::kernels::{Backend, Kernels, Projection};
use crate::mask::FullyMasked;
use crate::request::{Attention, AttentionShape, KeyValue};
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec::Vec;

/// Rounds to `T` and back.
pub(super) fn round<T: Element>(value: f64) -> f64 {
    T::from_f64(value).to_f64()
}

/// The order of a sum, which no definition fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// From the first term to the last.
    Forward,
    /// From the last term to the first.
    Backward,
    /// The even terms, the odd terms, then both.
    Alternate,
}

impl Order {
    pub(super) const ALL: [Self; 3] = [Self::Forward, Self::Backward, Self::Alternate];
}

/// A sum in the accumulator's type.
fn accumulate<T: Element>(
    order: Order,
    terms: impl DoubleEndedIterator<Item = f64> + Clone,
) -> f64 {
    let add = |sum, term| round::<T::Acc>(sum + round::<T::Acc>(term));
    match order {
        Order::Forward => terms.fold(0.0, add),
        Order::Backward => terms.rev().fold(0.0, add),
        Order::Alternate => {
            let even = terms.clone().step_by(2).fold(0.0, add);
            let odd = terms.skip(1).step_by(2).fold(0.0, add);
            round::<T::Acc>(even + odd)
        }
    }
}

/// `Σ a · b` accumulated, then rounded to `T`.
pub(super) fn dot<T: Element>(order: Order, a: &[f64], b: &[f64]) -> f64 {
    round::<T>(accumulate::<T>(order, a.iter().zip(b).map(|(a, b)| a * b)))
}

/// The weights of one query as Flax computes them in `T`; `products` are `(q / sqrt(d)) · k`, rounded.
pub(super) fn weights<T: Element>(
    order: Order,
    products: &[f64],
    bias: Option<&[f64]>,
    seen: &[bool],
    fully_masked: FullyMasked,
    maths: &Maths,
) -> Vec<f64> {
    let fill = match fully_masked {
        FullyMasked::MeanOfValues => lowest::<T>(),
        FullyMasked::Zero => f64::NEG_INFINITY,
    };
    let scores: Vec<f64> = (0..products.len())
        .map(|key| {
            let score = round::<T>(products[key] + bias.map_or(0.0, |bias| bias[key]));
            if seen[key] { score } else { fill }
        })
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY && fully_masked == FullyMasked::Zero {
        return alloc::vec![0.0; products.len()];
    }
    let exponentials: Vec<f64> = scores
        .iter()
        .map(|score| round::<T>((maths.exp)(round::<T>(score - largest))))
        .collect();
    let total = round::<T>(accumulate::<T>(order, exponentials.iter().copied()));
    exponentials.iter().map(|e| round::<T>(e / total)).collect()
}

fn lowest<T: Element>() -> f64 {
    match T::DTYPE {
        crate::DType::F32 => f32::MIN.into(),
        crate::DType::F64 => f64::MIN,
        crate::DType::F16 => crate::f16::MIN.to_f64(),
        crate::DType::BF16 => crate::bf16::MIN.to_f64(),
    }
}

/// Layer norm of one row as Flax computes it: the fast variance, in the accumulator's type.
pub(super) fn normalize<T: Element>(
    order: Order,
    row: &[f64],
    scale: &[f64],
    epsilon: f64,
    maths: &Maths,
) -> Vec<f64> {
    let acc = round::<T::Acc>;
    let count = row.len() as f64;
    let mean = acc(accumulate::<T>(order, row.iter().copied()) / count);
    let square = acc(accumulate::<T>(order, row.iter().map(|x| acc(x * x))) / count);
    let variance = acc(square - acc(mean * mean)).max(0.0);
    let factor = acc(1.0 / acc((maths.sqrt)(acc(variance + epsilon))));
    row.iter()
        .zip(scale)
        .map(|(x, scale)| round::<T>(acc(acc(x - mean) * acc(factor * scale))))
        .collect()
}

/// A backend of plain loops: slow, complete, for tests.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// What `core` has no function for.
    pub maths: Maths,
}

impl Backend for Reference {
    type Storage = Host;
    type Error = Error;
    fn name(&self) -> &'static str {
        "reference"
    }
}

impl<T: Element> Kernels<T> for Reference {
    fn project_scratch(&self, _: usize, _: usize, _: usize) -> usize {
        0
    }

    fn project(
        &self,
        call: &Projection<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        _: &mut [T::Acc],
    ) -> Result<()> {
        let (rows, features, outputs) = call.sizes(out.shape())?;
        let layout = *out.layout();
        let at = |view: &HostView<'_, T>, index: usize| view.buf()[index].to_f64();
        for row in 0..rows {
            let input = call.input.layout().base(call.input.shape().rank() - 1, row);
            let step = call.input.layout().strides().last().copied().unwrap_or(0);
            let start = layout.base(layout.shape().rank() - 1, row);
            for column in 0..outputs {
                let terms = (0..features).map(|f| {
                    at(&call.input, input + f * step)
                        * at(&call.kernel, call.kernel.layout().at(&[f, column]))
                });
                let bias = call
                    .bias
                    .map_or(0.0, |bias| at(&bias, bias.layout().at(&[column])));
                let value = round::<T::Acc>(accumulate::<T>(Order::Forward, terms) + bias);
                let index = start + column * layout.strides().last().copied().unwrap_or(0);
                out.buf_mut()[index] = T::from_f64(value);
            }
        }
        Ok(())
    }

    fn normalize(
        &self,
        mut x: HostViewMut<'_, T>,
        scale: HostView<'_, T::Acc>,
        epsilon: f64,
    ) -> Result<()> {
        let layout = *x.layout();
        let Some((&depth, rows)) = layout.shape().split_last() else {
            return Err(Error::Rank {
                argument: "x",
                got: 0,
                wanted: "[..., depth]",
            });
        };
        if scale.shape().as_slice() != [depth] {
            return Err(Error::Shape {
                argument: "scale",
                got: *scale.shape(),
                wanted: crate::Dims::new(&[depth])?,
            });
        }
        let scale: Vec<f64> = (0..depth)
            .map(|i| scale.buf()[scale.layout().at(&[i])].to_f64())
            .collect();
        for row in 0..rows.iter().product() {
            let start = layout.base(rows.len(), row);
            let step = layout.strides()[rows.len()];
            let values: Vec<f64> = (0..depth)
                .map(|i| x.buf_mut()[start + i * step].to_f64())
                .collect();
            for (i, value) in normalize::<T>(Order::Forward, &values, &scale, epsilon, &self.maths)
                .into_iter()
                .enumerate()
            {
                x.buf_mut()[start + i * step] = T::from_f64(value);
            }
        }
        Ok(())
    }

    fn attend_scratch(&self, _: &AttentionShape) -> usize {
        0
    }

    fn attend(
        &self,
        mut call: Attention<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        _: &mut [T::Acc],
    ) -> Result<()> {
        let shape = call.shape()?;
        let wanted = shape.output(call.query.shape())?;
        if *out.shape() != wanted {
            return Err(Error::Shape {
                argument: "output",
                got: *out.shape(),
                wanted,
            });
        }
        let KeyValue::Dense { key, value } = call.source;
        let rows = super::check::Rows::new(&call, &shape)?;
        let factor = call.scores.scale.factor(shape.depth, self.maths.sqrt);
        let out_layout = *out.layout();
        let axes = out_layout.shape().rank() - 3;
        for matrix in 0..shape.batch * shape.num_heads {
            let (batch, head) = (
                matrix / shape.num_heads.max(1),
                matrix % shape.num_heads.max(1),
            );
            for query in 0..shape.query_length {
                let q: Vec<f64> = rows
                    .row(&call.query, batch, head, query)
                    .map(|x| round::<T>(x * round::<T>(factor)))
                    .collect();
                let products: Vec<f64> = (0..shape.key_length)
                    .map(|k| {
                        let k: Vec<f64> = rows.row(&key, batch, head, k).collect();
                        dot::<T>(Order::Forward, &q, &k)
                    })
                    .collect();
                let (bias, seen) = (rows.bias(matrix, query), rows.seen(matrix, query));
                let weights = weights::<T>(
                    Order::Forward,
                    &products,
                    bias.as_deref(),
                    &seen,
                    call.visible.fully_masked,
                    &self.maths,
                );
                for column in 0..shape.value_depth {
                    let values: Vec<f64> = (0..shape.key_length)
                        .map(|k| rows.element(&value, batch, head, k, column))
                        .collect();
                    let sum = dot::<T>(Order::Forward, &weights, &values);
                    let strides = out_layout.strides();
                    let index = out_layout.base(axes, batch)
                        + query * strides[axes]
                        + head * strides[axes + 1]
                        + column * strides[axes + 2];
                    out.buf_mut()[index] = T::from_f64(sum);
                }
                if let Some(asked) = &mut call.outputs.weights {
                    let layout = *asked.layout();
                    let rank = layout.shape().rank();
                    let start = layout.base(rank - 1, matrix * shape.query_length + query);
                    for (k, weight) in weights.into_iter().enumerate() {
                        asked.buf_mut()[start + k * layout.strides()[rank - 1]] =
                            T::Acc::from_f64(weight);
                    }
                }
            }
        }
        Ok(())
    }
}
