//! A backend of plain loops: slow, complete, for tests.

use super::Maths;
use super::plain::{self, accumulate, round};
use super::rows::{Head, Rows};
use crate::backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::kernels::{Backend, Kernels, Projection};
use crate::layout::Dims;
use crate::request::{Attention, AttentionShape, Features, KeyValue};
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec::Vec;

/// Plain same-dtype arithmetic, in the order in which Flax writes it, on arrays with any strides.
///
/// A layer can be tested on it without any other backend. It needs no scratch.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// What `core` has no function for.
    pub maths: Maths,
}

const NAME: &str = "reference";

/// Every part of a request that there is today.
const SUPPORTED: Features = Features::DENSE
    .union(Features::BIAS)
    .union(Features::SCALE)
    .union(Features::CAUSAL)
    .union(Features::MASK)
    .union(Features::ZERO_ROWS)
    .union(Features::WEIGHTS);

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
        let (from, to, kernel) = (*call.input.layout(), *out.layout(), call.kernel.layout());
        let axes = to.shape().rank() - 1;
        for row in 0..rows {
            let (input, output) = (from.base(axes, row), to.base(axes, row));
            for column in 0..outputs {
                let terms = (0..features).map(|feature| {
                    let x = call.input.buf()[input + feature * from.strides()[axes]];
                    let weight = call.kernel.buf()[kernel.at(&[feature, column])];
                    x.to_f64() * weight.to_f64()
                });
                let at = |bias: HostView<'_, T>| bias.buf()[bias.layout().at(&[column])].to_f64();
                let bias = call.bias.map_or(0.0, at);
                let sum = round::<T::Acc>(accumulate::<T>(terms) + bias);
                out.buf_mut()[output + column * to.strides()[axes]] = T::from_f64(sum);
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

    fn attend_scratch(&self, _: &AttentionShape) -> usize {
        0
    }

    fn attend(
        &self,
        mut call: Attention<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        _: &mut [T::Acc],
    ) -> Result<()> {
        call.check_supported(NAME, SUPPORTED)?;
        let shape = call.shape()?;
        let wanted = shape.output(call.query.shape())?;
        if *out.shape() != wanted {
            return Err(Error::Shape {
                argument: "output",
                got: *out.shape(),
                wanted,
            });
        }
        let mut weights = call.outputs.weights.take();
        for matrix in 0..shape.batch * shape.num_heads {
            let asked = weights.as_mut().map(HostViewMut::reborrow);
            self.attend_matrix(&call, &shape, matrix, out.reborrow(), asked)?;
        }
        Ok(())
    }

    fn project_backward_scratch(&self, _: usize, _: usize, _: usize) -> usize {
        0
    }

    fn project_backward(&self, _: ProjectionBackward<'_, Host, T>, _: &mut [T::Acc]) -> Result<()> {
        Err(no_gradients())
    }

    fn normalize_backward(&self, _: NormalizeBackward<'_, Host, T>) -> Result<()> {
        Err(no_gradients())
    }

    fn attend_backward_scratch(&self, _: &AttentionShape) -> usize {
        0
    }

    fn attend_backward(&self, _: AttentionBackward<'_, Host, T>, _: &mut [T::Acc]) -> Result<()> {
        Err(no_gradients())
    }
}

/// What is said until there are gradients.
fn no_gradients() -> Error {
    Error::Unsupported {
        backend: "reference",
        feature: "gradients",
        instead: "Use a backend that has them",
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
        mut asked: Option<HostViewMut<'_, T::Acc>>,
    ) -> Result<()> {
        let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
        let KeyValue::Dense { key, value } = &call.source;
        let rows = Rows::new(call, shape)?;
        let [q, k, v, o] = [
            call.query.layout(),
            key.layout(),
            value.layout(),
            out.layout(),
        ]
        .map(|layout| Head::new(layout, batch, head));
        let keys = k.rows(key.buf());
        for query in 0..shape.query_length {
            let scaled = plain::scaled::<T>(
                &q.row(call.query.buf(), query),
                call.scores.scale,
                &self.maths,
            );
            let weights = plain::weights::<T>(
                &plain::products::<T>(&scaled, &keys),
                rows.bias(matrix, query).as_deref(),
                &rows.seen(matrix, query),
                call.visible.fully_masked,
                &self.maths,
            );
            for column in 0..shape.value_depth {
                let values = v.column(value.buf(), column);
                let sum = plain::dot::<T>(&weights, &values);
                out.buf_mut()[o.at(query, column)] = T::from_f64(sum);
            }
            if let Some(asked) = &mut asked {
                let layout = *asked.layout();
                let axes = layout.shape().rank() - 1;
                let start = layout.base(axes, matrix * shape.query_length + query);
                for (key, weight) in weights.into_iter().enumerate() {
                    asked.buf_mut()[start + key * layout.strides()[axes]] =
                        T::Acc::from_f64(weight);
                }
            }
        }
        Ok(())
    }
}
