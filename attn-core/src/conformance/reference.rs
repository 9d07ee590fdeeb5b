//! A backend of plain loops: slow, complete, for tests.

mod backward;

use super::Maths;
use super::plain::{self, Softmax, accumulate, round};
use super::rows::{Head, Line, Rows};
use super::source::keys_and_values;
use crate::backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::kernels::{Backend, Kernels};
use crate::layout::Dims;
use crate::mask::FullyMasked;
use crate::projection::{ColumnGroups, DenseKernel, Packing, Projection};
use crate::request::{Attention, AttentionShape, Features, Outputs};
use crate::scores::Stage;
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;
use core::mem;

/// Plain same-dtype arithmetic, in the order in which Flax writes it, on arrays with any strides.
///
/// A layer can be tested on it without any other backend. It needs no scratch.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// What `core` has no function for.
    pub maths: Maths,
}

const NAME: &str = "reference";

/// What has gradients: all but caches.
const BACKWARD: Features = Features::ALL
    .without(Features::CACHED)
    .without(Features::RING)
    .without(Features::PAGED)
    .without(Features::INT8)
    .without(Features::Q8_0);

/// Column after column.
const fn packing(features: usize, outputs: usize) -> Packing {
    Packing {
        elements: features.saturating_mul(outputs),
        panel: 1,
    }
}

/// The kernel of a dense layer, `[outputs][features]`.
fn weights<T: Element>(
    call: &Projection<'_, Host, T>,
    features: usize,
    outputs: usize,
) -> Result<Vec<f64>> {
    Ok(match &call.kernel {
        DenseKernel::Packed(packed) => {
            let packed = packed.buf_packed_as(NAME, Some(packing(features, outputs)))?;
            packed.iter().map(|weight| weight.to_f64()).collect()
        }
        DenseKernel::Plain(kernel) => {
            let places = (0..outputs).flat_map(|column| (0..features).map(move |f| [f, column]));
            let at = |place: [usize; 2]| kernel.buf()[kernel.layout().at(&place)].to_f64();
            places.map(at).collect()
        }
    })
}

impl Backend for Reference {
    type Storage = Host;
    type Error = Error;
    fn name(&self) -> &'static str {
        NAME
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
        let (from, to) = (*call.input.layout(), *out.layout());
        let axes = from.shape().rank() - 1;
        let columns = ColumnGroups::new("output", &to, axes)?;
        let weights = weights(call, features, outputs)?;
        for row in 0..rows {
            let (input, output) = (from.base(axes, row), to.base(axes, row));
            for column in 0..outputs {
                let weights = &weights[column * features..][..features];
                let terms = weights.iter().enumerate().map(|(feature, weight)| {
                    let x = call.input.buf()[input + feature * from.strides()[axes]];
                    x.to_f64() * weight
                });
                let at = |bias: HostView<'_, T>| bias.buf()[bias.layout().at(&[column])].to_f64();
                let bias = call.bias.map_or(0.0, at);
                let sum = round::<T::Acc>(accumulate::<T>(terms) + bias);
                out.buf_mut()[output + columns.at(column)] = T::from_f64(sum);
            }
        }
        Ok(())
    }

    fn packing(&self, features: usize, outputs: usize) -> Option<Packing> {
        Some(packing(features, outputs))
    }

    fn pack(&self, kernel: HostView<'_, T>, to: &mut [T]) -> Result<()> {
        let (features, outputs) = DenseKernel::Plain(kernel).sizes()?;
        if to.len() != features * outputs {
            return Err(Error::Buffer {
                argument: "packed kernel",
                got: to.len(),
                wanted: features * outputs,
            });
        }
        for (column, to) in to.chunks_mut(features.max(1)).enumerate() {
            for (feature, to) in to.iter_mut().enumerate() {
                *to = kernel.buf()[kernel.layout().at(&[feature, column])];
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
                wanted: Dims::new(&[depth])?,
            });
        }
        let scale: Vec<f64> = (0..depth)
            .map(|i| scale.buf()[scale.layout().at(&[i])].to_f64())
            .collect();
        for row in 0..rows.iter().product() {
            let start = layout.base(rows.len(), row);
            let at = |i: usize| start + i * layout.strides()[rows.len()];
            let values: Vec<f64> = (0..depth).map(|i| x.buf_mut()[at(i)].to_f64()).collect();
            let normal = plain::normalize::<T>(&values, &scale, epsilon, &self.maths);
            for (i, value) in normal.into_iter().enumerate() {
                x.buf_mut()[at(i)] = T::from_f64(value);
            }
        }
        Ok(())
    }

    fn features(&self) -> Features {
        Features::ALL
    }

    fn backward_features(&self) -> Features {
        BACKWARD
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
        call.check_supported(NAME, Features::ALL)?;
        let shape = call.shape()?;
        call.check_contents(&shape)?;
        let wanted = shape.output(call.query.shape())?;
        if *out.shape() != wanted {
            return Err(Error::Shape {
                argument: "output",
                got: *out.shape(),
                wanted,
            });
        }
        let mut asked = mem::take(&mut call.outputs);
        for matrix in 0..shape.batch * shape.num_heads {
            self.attend_matrix(&call, &shape, matrix, out.reborrow(), &mut asked)?;
        }
        Ok(())
    }

    fn project_backward_scratch(&self, _: usize, _: usize, _: usize) -> usize {
        0
    }

    fn project_backward(
        &self,
        call: ProjectionBackward<'_, Host, T>,
        _: &mut [T::Acc],
    ) -> Result<()> {
        backward::project(call)
    }

    fn normalize_backward(&self, call: NormalizeBackward<'_, Host, T>) -> Result<()> {
        backward::normalize(call, &self.maths)
    }

    fn attend_backward_scratch(&self, _: &AttentionShape) -> usize {
        0
    }

    fn attend_backward(
        &self,
        call: AttentionBackward<'_, Host, T>,
        _: &mut [T::Acc],
    ) -> Result<()> {
        call.call.check_supported(NAME, BACKWARD)?;
        backward::attend(call, &self.maths)
    }
}

impl Reference {
    /// One head of one batch entry.
    fn attend_matrix<T: Element>(
        &self,
        call: &Attention<'_, Host, T>,
        shape: &AttentionShape,
        matrix: usize,
        mut out: HostViewMut<'_, T>,
        asked: &mut Outputs<'_, Host, T>,
    ) -> Result<()> {
        let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
        let rows = Rows::new(call, shape)?;
        let [keys, values] = keys_and_values(call, shape, batch, head)?;
        let [q, o] =
            [call.query.layout(), out.layout()].map(|layout| Head::new(layout, batch, head));
        for query in 0..shape.query_length {
            let line = rows.line(matrix, query);
            let scaled = plain::scaled::<T>(
                &q.row(call.query.buf(), query),
                call.scores.scale,
                &self.maths,
            );
            let products = plain::products::<T>(&scaled, &keys[line.keys.clone()]);
            let scores = plain::scores::<T>(&products, &line);
            let softmax = plain::softmax::<T>(&scores, &line, &self.maths);
            let dropped = plain::dropped::<T>(&softmax.weights, &line.factors);
            for column in 0..shape.value_depth {
                let values = values_met(&line, &values, column);
                out.buf_mut()[o.at(query, column)] =
                    T::from_f64(plain::dot::<T>(&dropped, &values));
            }
            let row = matrix * shape.query_length + query;
            if let Some(weights) = &mut asked.weights {
                let of_keys = match asked.stage {
                    Stage::Scaled => products,
                    Stage::Capped => scores.capped,
                    Stage::Masked => masked::<T>(scores.masked, &line),
                    Stage::Softmax => softmax.weights.clone(),
                };
                let absent = match asked.stage {
                    Stage::Masked => fill::<T>(&line),
                    _ => 0.0,
                };
                let mut all = vec![absent; shape.key_length];
                all[line.keys.clone()].copy_from_slice(&of_keys);
                write_row(weights, row, &all);
            }
            if let Some(statistics) = &mut asked.statistics {
                write_row(statistics, row, &statistics_of::<T>(&softmax, &line));
            }
        }
        Ok(())
    }
}

/// A column of the values that a query meets. Under [`FullyMasked::Zero`](crate::FullyMasked::Zero) the others may be anything, and 0 times that would not vanish.
fn values_met(line: &Line, values: &[Vec<f64>], column: usize) -> Vec<f64> {
    let met = |seen: bool, value: f64| match seen || !line.is_zero_if_blind() {
        true => value,
        false => 0.0,
    };
    let values = &values[line.keys.clone()];
    zip(&line.seen, values)
        .map(|(&seen, row)| met(seen, row[column]))
        .collect()
}

/// What a score is where a query does not see the key, in the accumulator's type.
fn fill<T: Element>(line: &Line) -> f64 {
    match line.fully_masked {
        FullyMasked::MeanOfValues => plain::lowest::<T::Acc>(),
        FullyMasked::Zero => f64::NEG_INFINITY,
    }
}

fn masked<T: Element>(scores: Vec<f64>, line: &Line) -> Vec<f64> {
    zip(scores, &line.seen)
        .map(|(score, &seen)| if seen { score } else { fill::<T>(line) })
        .collect()
}

/// The largest score and the sum of exponentials. A row that sees nothing has the fill value of the accumulator's type.
fn statistics_of<T: Element>(softmax: &Softmax, line: &Line) -> [f64; 2] {
    let is_filled = line.is_blind() && !line.keys.is_empty() && !line.is_zero_if_blind();
    let has_sink = line.sink.is_some_and(|sink| sink > plain::lowest::<T>());
    let largest = match is_filled && !has_sink {
        true => plain::lowest::<T::Acc>(),
        false => softmax.largest,
    };
    [largest, softmax.total]
}

/// Writes the `row`-th row of an array, counted over all axes but the last.
fn write_row<A: Element>(out: &mut HostViewMut<'_, A>, row: usize, values: &[f64]) {
    let layout = *out.layout();
    let axes = layout.shape().rank() - 1;
    let (start, stride) = (layout.base(axes, row), layout.strides()[axes]);
    for (column, &value) in values.iter().enumerate() {
        out.buf_mut()[start + column * stride] = A::from_f64(value);
    }
}
