//! Gradients by plain loops.

use super::super::Maths;
use super::super::matrix::Matrix;
use super::super::plain::backward::{self, Gradients};
use super::super::plain::{accumulate, round};
use super::super::rows::Head;
use crate::backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::Layout;
use crate::projection::ColumnGroups;
use crate::request::AttentionShape;
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec;
use alloc::vec::Vec;

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
    let d_bias_layout = match &call.d_bias {
        Some(d_bias) => {
            let weights = shape.weights(call.call.query.shape())?;
            Some(d_bias.layout().broadcast_to("d_bias", &weights)?)
        }
        None => None,
    };
    if let Some(d_bias) = &mut call.d_bias {
        let (layout, rank) = (*d_bias.layout(), d_bias.shape().rank());
        for n in 0..layout.elements() {
            d_bias.buf_mut()[layout.base(rank, n)] = T::Acc::default();
        }
    }
    for index in 0..shape.batch * shape.num_heads {
        let matrix = Matrix::read(&call.call, &call.d_out, &shape, index)?;
        let gradients = Gradients::<T>::new(&matrix, maths);
        attend_matrix(&mut call, &shape, index, &gradients);
        if let (Some(d_bias), Some(layout)) = (&mut call.d_bias, &d_bias_layout) {
            for (query, row) in gradients.rows.iter().enumerate() {
                for (key, d_score) in row.d_scores.iter().enumerate() {
                    let at = at(layout, index * shape.query_length + query, key);
                    let sum = d_bias.buf_mut()[at].to_f64() + d_score;
                    d_bias.buf_mut()[at] = T::Acc::from_f64(sum);
                }
            }
        }
    }
    Ok(())
}

/// The gradients of one head of one batch entry.
fn attend_matrix<T: Element>(
    call: &mut AttentionBackward<'_, Host, T>,
    shape: &AttentionShape,
    matrix: usize,
    gradients: &Gradients<'_, T>,
) {
    let write = |out: &mut HostViewMut<'_, T>, rows, columns, of: &dyn Fn(usize, usize) -> f64| {
        let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
        let place = Head::new(out.layout(), batch, head);
        for row in 0..rows {
            for column in 0..columns {
                out.buf_mut()[place.at(row, column)] = T::from_f64(of(row, column));
            }
        }
    };
    let (queries, keys) = (shape.query_length, shape.key_length);
    write(&mut call.d_query, queries, shape.depth, &|i, c| {
        gradients.d_query(i, c)
    });
    write(&mut call.d_key, keys, shape.depth, &|i, c| {
        gradients.d_key(i, c)
    });
    write(&mut call.d_value, keys, shape.value_depth, &|i, c| {
        gradients.d_value(i, c)
    });
}
