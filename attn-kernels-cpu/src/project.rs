//! Dense layers and their gradients: checks, and which products they are.

use crate::buffers::{contiguous_columns, enough};
use crate::cpu::Cpu;
use crate::dense::{self, Dense, Matrix};
use crate::element::Stored;
use crate::shared::Shared;
use attn_core::{
    Element, Host, HostView, HostViewMut, Projection, ProjectionBackward, Result, RowOrder,
};

pub(crate) fn scratch<T: Stored>(cpu: &Cpu, rows: usize, features: usize, outputs: usize) -> usize {
    dense::scratch::<T>(cpu, rows, features, outputs)
}

/// `out = input · kernel + bias`.
pub(crate) fn project<T: Stored>(
    cpu: &Cpu,
    projection: &Projection<'_, Host, T>,
    mut out: HostViewMut<'_, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    let (rows, features, outputs) = projection.sizes(out.shape())?;
    enough(
        scratch.len(),
        self::scratch::<T>(cpu, rows, features, outputs),
    )?;
    contiguous_columns("input", projection.input.layout())?;
    contiguous_columns("kernel", projection.kernel.layout())?;
    contiguous_columns("output", out.layout())?;
    let out_layout = *out.layout();
    let product = Dense {
        left: Matrix::new(&projection.input),
        right: Matrix::new(&projection.kernel),
        bias: projection.bias,
        rows,
        depth: features,
        outputs,
        out: Shared::new(&mut out),
        out_layout,
        accumulate: false,
    };
    product.run(cpu, projection.row_order, scratch);
    Ok(())
}

pub(crate) fn backward_scratch<T: Stored>(
    cpu: &Cpu,
    rows: usize,
    features: usize,
    outputs: usize,
) -> usize {
    let d_input = dense::scratch::<T>(cpu, rows, outputs, features);
    d_input.max(dense::scratch::<T>(cpu, features, rows, outputs))
}

/// `d_input = d_out · kernelᵀ`, `d_kernel = inputᵀ · d_out`, `d_bias = Σ d_out`.
pub(crate) fn project_backward<T: Stored>(
    cpu: &Cpu,
    call: ProjectionBackward<'_, Host, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    let (rows, features, outputs) = call.sizes()?;
    enough(
        scratch.len(),
        backward_scratch::<T>(cpu, rows, features, outputs),
    )?;
    for (argument, layout) in [
        ("input", Some(call.input.layout())),
        ("kernel", Some(call.kernel.layout())),
        ("d_out", Some(call.d_out.layout())),
        ("d_input", call.d_input.as_ref().map(HostViewMut::layout)),
        ("d_kernel", call.d_kernel.as_ref().map(HostViewMut::layout)),
    ] {
        layout.map_or(Ok(()), |layout| contiguous_columns(argument, layout))?;
    }
    if let Some(mut d_input) = call.d_input {
        let out_layout = *d_input.layout();
        let product = Dense {
            left: Matrix::new(&call.d_out),
            right: Matrix::transposed(&call.kernel),
            bias: None,
            rows,
            depth: outputs,
            outputs: features,
            out: Shared::new(&mut d_input),
            out_layout,
            accumulate: call.accumulate,
        };
        product.run(cpu, RowOrder::Any, scratch);
    }
    if let Some(mut d_kernel) = call.d_kernel {
        let out_layout = *d_kernel.layout();
        let product = Dense {
            left: Matrix::transposed(&call.input),
            right: Matrix::new(&call.d_out),
            bias: None,
            rows: features,
            depth: rows,
            outputs,
            out: Shared::new(&mut d_kernel),
            out_layout,
            accumulate: false,
        };
        product.run(cpu, RowOrder::Any, scratch);
    }
    if let Some(d_bias) = call.d_bias {
        sum_of_rows(&call.d_out, rows, d_bias);
    }
    Ok(())
}

/// The sum of the rows, each column one chain in `f64`: there may be very many. (Reading them once is all it costs: one thread
/// does it.)
fn sum_of_rows<T: Stored>(from: &HostView<'_, T>, rows: usize, mut to: HostViewMut<'_, T>) {
    const CHUNK: usize = 64;
    let layout = *to.layout();
    let columns = layout.elements();
    let axes = from.shape().rank() - 1;
    for first in (0..columns).step_by(CHUNK) {
        let count = CHUNK.min(columns - first);
        let mut sums = [0.0; CHUNK];
        let mut wide = [T::Acc::default(); CHUNK];
        for row in 0..rows {
            let start = from.layout().base(axes, row) + first;
            T::widen(&from.buf()[start..start + count], &mut wide[..count]);
            for (sum, wide) in sums.iter_mut().zip(wide) {
                *sum += wide.to_f64();
            }
        }
        for (column, sum) in (first..).zip(&sums[..count]) {
            to.buf_mut()[layout.at(&[column])] = T::from_f64(*sum);
        }
    }
}
