//! Gradients by plain loops.

use super::super::Maths;
use super::super::matrix::Matrix;
use super::super::plain::backward::{self, Gradients};
use super::super::plain::{self, accumulate, round};
use super::super::rows::Head;
use crate::backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::Layout;
use crate::projection::ColumnGroups;
use crate::request::AttentionShape;
use crate::scores::Relative;
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;

/// Index of `[row, column]`, rows counted over all axes but the last.
fn at(layout: &Layout, row: usize, column: usize) -> usize {
    let axes = layout.shape().rank() - 1;
    layout.base(axes, row) + column * layout.strides()[axes]
}

fn get<T: Element>(view: &HostView<'_, T>, row: usize, column: usize) -> f64 {
    view.buf()[at(view.layout(), row, column)].to_f64()
}

fn set<T: Element>(view: &mut HostViewMut<'_, T>, row: usize, column: usize, value: f64) {
    let index = at(view.layout(), row, column);
    view.buf_mut()[index] = T::from_f64(value);
}

pub(super) fn project<T: Element>(call: ProjectionBackward<'_, Host, T>) -> Result<()> {
    let (rows, features, outputs) = call.sizes()?;
    let (input, kernel, d_out) = (&call.input, &call.kernel, &call.d_out);
    let axes = input.shape().rank() - 1;
    let columns = ColumnGroups::new("d_out", d_out.layout(), axes)?;
    let d = |row, output| {
        let start = d_out.layout().base(axes, row);
        d_out.buf()[start + columns.at(output)].to_f64()
    };
    if let Some(mut d_input) = call.d_input {
        for row in 0..rows {
            for feature in 0..features {
                let term = |o| d(row, o) * get(kernel, feature, o);
                let sum = round::<T>(accumulate::<T>((0..outputs).map(term)));
                let before = match call.accumulate {
                    true => get(&d_input.as_view(), row, feature),
                    false => 0.0,
                };
                set(&mut d_input, row, feature, before + sum);
            }
        }
    }
    if let Some(mut d_kernel) = call.d_kernel {
        for feature in 0..features {
            for output in 0..outputs {
                let term = |row| get(input, row, feature) * d(row, output);
                let sum = accumulate::<T>((0..rows).map(term));
                set(&mut d_kernel, feature, output, sum);
            }
        }
    }
    if let Some(mut d_bias) = call.d_bias {
        for output in 0..outputs {
            let sum = accumulate::<T>((0..rows).map(|row| d(row, output)));
            set(&mut d_bias, 0, output, sum);
        }
    }
    Ok(())
}

pub(super) fn normalize<T: Element>(
    mut call: NormalizeBackward<'_, Host, T>,
    maths: &Maths,
) -> Result<()> {
    let (rows, depth) = call.sizes()?;
    let scale: Vec<f64> = (0..depth).map(|i| get(&call.scale, 0, i)).collect();
    let mut d_scale = vec![0.0; depth];
    for row in 0..rows {
        let read = |view: &HostView<'_, T>| -> Vec<f64> {
            (0..depth).map(|column| get(view, row, column)).collect()
        };
        let (x, gradient) = (read(&call.x), read(&call.gradient.as_view()));
        let (d_row, share) = backward::normalize::<T>(&x, &scale, &gradient, call.epsilon, maths);
        for column in 0..depth {
            set(&mut call.gradient, row, column, d_row[column]);
            d_scale[column] = round::<T::Acc>(d_scale[column] + share[column]);
        }
    }
    if let Some(mut out) = call.d_scale {
        for (column, &sum) in d_scale.iter().enumerate() {
            set(&mut out, 0, column, sum);
        }
    }
    Ok(())
}

/// The weights are made anew; the output and the statistics of the call are not read.
pub(super) fn attend<T: Element>(
    mut call: AttentionBackward<'_, Host, T>,
    maths: &Maths,
) -> Result<()> {
    let shape = call.shape()?;
    call.call.check_contents(&shape)?;
    let sums = Sums::new(&call, &shape)?;
    Sums::clear(&mut call);
    let matrices = (0..shape.batch * shape.num_heads)
        .map(|index| Matrix::read(&call.call, &call.d_out, &shape, index));
    let matrices = matrices.collect::<Result<Vec<Matrix>>>()?;
    let gradients: Vec<Gradients<'_, T>> = (matrices.iter())
        .map(|matrix| Gradients::new(matrix, maths))
        .collect();
    let group = (shape.num_heads / shape.key_heads.max(1)).max(1);
    for (index, group) in gradients.chunks(group).enumerate() {
        attend_group(&mut call, &shape, index, group);
    }
    for (index, (matrix, gradients)) in zip(&matrices, &gradients).enumerate() {
        sums.add(&mut call, index, matrix, gradients);
    }
    Ok(())
}

/// The gradients of the heads of queries that a head of keys and values serves; that one is the `index`-th, counted batch first.
fn attend_group<T: Element>(
    call: &mut AttentionBackward<'_, Host, T>,
    shape: &AttentionShape,
    index: usize,
    group: &[Gradients<'_, T>],
) {
    let (batch, key_head) = (index / shape.key_heads, index % shape.key_heads);
    let write =
        |out: &mut HostViewMut<'_, T>, head, rows, columns, of: &dyn Fn(usize, usize) -> f64| {
            let place = Head::new(out.layout(), batch, head);
            for row in 0..rows {
                for column in 0..columns {
                    out.buf_mut()[place.at(row, column)] = T::from_f64(of(row, column));
                }
            }
        };
    let (queries, keys) = (shape.query_length, shape.key_length);
    for (n, gradients) in group.iter().enumerate() {
        let head = key_head * group.len() + n;
        write(&mut call.d_query, head, queries, shape.depth, &|i, c| {
            gradients.d_query(i, c)
        });
    }
    write(&mut call.d_key, key_head, keys, shape.depth, &|i, c| {
        plain::sum::<T>(group.iter().flat_map(|head| head.d_key(i, c)))
    });
    write(
        &mut call.d_value,
        key_head,
        keys,
        shape.value_depth,
        &|i, c| plain::sum::<T>(group.iter().flat_map(|head| head.d_value(i, c))),
    );
}

/// Gradients that sum over many scores: of the bias, of the table of relative positions, of the sinks.
struct Sums {
    shape: AttentionShape,
    /// Where the gradient of each score is added to that of the bias.
    bias: Option<Layout>,
    distances: usize,
}

impl Sums {
    fn new<T: Element>(
        call: &AttentionBackward<'_, Host, T>,
        shape: &AttentionShape,
    ) -> Result<Self> {
        let weights = shape.weights(call.call.query.shape())?;
        let bias = call
            .d_bias
            .as_ref()
            .map(|d_bias| d_bias.layout().broadcast_to("d_bias", &weights));
        let distances = |relative: &Relative<'_, Host, T>| relative.distances(shape.num_heads);
        Ok(Self {
            shape: *shape,
            bias: bias.transpose()?,
            distances: call.call.scores.relative.as_ref().map_or(0, distances),
        })
    }

    /// All are 0 at first.
    fn clear<T: Element>(call: &mut AttentionBackward<'_, Host, T>) {
        if let Some(d_bias) = &mut call.d_bias {
            let (layout, rank) = (*d_bias.layout(), d_bias.shape().rank());
            for n in 0..layout.elements() {
                d_bias.buf_mut()[layout.base(rank, n)] = T::Acc::default();
            }
        }
        for flat in [&mut call.d_relative, &mut call.d_sinks]
            .into_iter()
            .flatten()
        {
            flat.buf_mut().fill(T::Acc::default());
        }
    }

    fn add<T: Element>(
        &self,
        call: &mut AttentionBackward<'_, Host, T>,
        index: usize,
        matrix: &Matrix,
        gradients: &Gradients<'_, T>,
    ) {
        let head = index % self.shape.num_heads;
        for (query, (row, line)) in zip(&gradients.rows, &matrix.lines).enumerate() {
            for (i, key) in line.keys.clone().enumerate() {
                let d_score = row.d_scores[key];
                if let (Some(d_bias), Some(layout)) = (&mut call.d_bias, &self.bias) {
                    let place = at(layout, index * self.shape.query_length + query, key);
                    add_to(&mut d_bias.buf_mut()[place], d_score);
                }
                if let (Some(d_relative), Some((_, columns))) =
                    (&mut call.d_relative, &line.relative)
                {
                    let place = head * self.distances + columns[i];
                    add_to(&mut d_relative.buf_mut()[place], d_score);
                }
            }
        }
        if let Some(d_sinks) = &mut call.d_sinks {
            add_to(&mut d_sinks.buf_mut()[head], gradients.sink);
        }
    }
}

fn add_to<A: Element>(sum: &mut A, term: f64) {
    *sum = A::from_f64(sum.to_f64() + term);
}
