//! Dense layers and their gradients: checks, and which products they are.

use crate::buffers::enough;
use crate::cpu::Cpu;
use crate::dense::{self, Dense, MAX_PARTS, Part, Right, Target};
use crate::element::Stored;
use crate::matrix::{Matrix, Rows};
use crate::pack::packed;
use crate::shared::Shared;
use attn_core::{
    DenseKernel, Element, Error, Host, HostViewMut, Projection, ProjectionBackward, Result,
    RowOrder,
};

/// No more than [`MAX_PARTS`] of `count` products are computed at once.
pub(crate) fn scratch<T: Stored>(
    cpu: &Cpu,
    rows: usize,
    features: usize,
    outputs: usize,
    count: usize,
) -> usize {
    dense::scratch::<T>(cpu, rows, features, outputs, count.min(MAX_PARTS))
}

/// `out = input · kernel + bias`.
pub(crate) fn project<T: Stored>(
    cpu: &Cpu,
    projection: &Projection<'_, Host, T>,
    out: HostViewMut<'_, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    project_together(cpu, core::slice::from_ref(projection), &mut [out], scratch)
}

/// Several dense layers: those that follow each other and read the same input are one product.
pub(crate) fn project_each<T: Stored>(
    cpu: &Cpu,
    calls: &[Projection<'_, Host, T>],
    outs: &mut [HostViewMut<'_, T>],
    scratch: &mut [T::Acc],
) -> Result<()> {
    if calls.len() != outs.len() {
        return Err(Error::Together {
            left: "calls",
            right: "outs",
        });
    }
    let mut rest = (calls, outs);
    while let Some(first) = rest.0.first() {
        let alike = |call: &&Projection<'_, Host, T>| same_input(first, call);
        let count = (rest.0.iter().take_while(alike).count()).clamp(1, MAX_PARTS);
        let (calls, later_calls) = rest.0.split_at(count);
        let (outs, later_outs) = rest.1.split_at_mut(count);
        project_together(cpu, calls, outs, scratch)?;
        rest = (later_calls, later_outs);
    }
    Ok(())
}

fn same_input<T: Stored>(a: &Projection<'_, Host, T>, b: &Projection<'_, Host, T>) -> bool {
    core::ptr::eq(a.input.buf(), b.input.buf())
        && a.input.layout() == b.input.layout()
        && a.row_order == b.row_order
}

/// Dense layers that read the same input.
fn project_together<T: Stored>(
    cpu: &Cpu,
    calls: &[Projection<'_, Host, T>],
    outs: &mut [HostViewMut<'_, T>],
    scratch: &mut [T::Acc],
) -> Result<()> {
    let Some(first) = calls.first() else {
        return Ok(());
    };
    let (mut rows, mut depth, mut widest) = (0, 0, 0);
    for (call, out) in calls.iter().zip(outs.iter()) {
        let outputs;
        (rows, depth, outputs) = call.sizes(out.shape())?;
        widest = outputs.max(widest);
    }
    let needed = self::scratch::<T>(cpu, rows, depth, widest, calls.len());
    enough(scratch.len(), needed)?;
    let row_axes = first.input.shape().rank() - 1;
    let left = Matrix::new("input", &first.input, row_axes)?;
    let mut parts = [const { None }; MAX_PARTS];
    for ((part, call), out) in parts.iter_mut().zip(calls).zip(outs) {
        *part = Some(Part {
            right: right(cpu, &call.kernel)?,
            bias: call.bias,
            outputs: call.kernel.sizes()?.1,
            to: target("output", out, row_axes, false)?,
        });
    }
    let product = Dense {
        left,
        parts,
        rows,
        depth,
    };
    product.run(cpu, first.row_order, scratch);
    Ok(())
}

fn right<'a, T: Stored>(cpu: &Cpu, kernel: &DenseKernel<'a, Host, T>) -> Result<Right<'a, T>> {
    Ok(match kernel {
        DenseKernel::Plain(view) => Right::Matrix(Matrix::new("kernel", view, 1)?),
        DenseKernel::Packed(kernel) => Right::Packed(packed(cpu, kernel)?),
    })
}

fn target<'v, T: Stored>(
    argument: &'static str,
    out: &'v mut HostViewMut<'_, T>,
    row_axes: usize,
    accumulate: bool,
) -> Result<Target<'v, T>> {
    let rows = Rows::new(argument, out.layout(), row_axes)?;
    Ok(Target {
        out: Shared::new(out),
        rows,
        accumulate,
    })
}

pub(crate) fn backward_scratch<T: Stored>(
    cpu: &Cpu,
    rows: usize,
    features: usize,
    outputs: usize,
) -> usize {
    let d_input = scratch::<T>(cpu, rows, outputs, features, 1);
    d_input.max(scratch::<T>(cpu, features, rows, outputs, 1))
}

/// `d_input = d_out · kernelᵀ`, `d_kernel = inputᵀ · d_out`, `d_bias = Σ d_out`.
pub(crate) fn project_backward<T: Stored>(
    cpu: &Cpu,
    call: ProjectionBackward<'_, Host, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    let (rows, features, outputs) = call.sizes()?;
    let needed = backward_scratch::<T>(cpu, rows, features, outputs);
    enough(scratch.len(), needed)?;
    let row_axes = call.input.shape().rank() - 1;
    let input = Matrix::new("input", &call.input, row_axes)?;
    let kernel = Matrix::new("kernel", &call.kernel, 1)?;
    let d_out = Matrix::new("d_out", &call.d_out, row_axes)?;
    let (mut d_input, mut d_kernel) = (call.d_input, call.d_kernel);
    // Both are checked before either is written.
    let to_input = d_input
        .as_mut()
        .map(|to| target("d_input", to, row_axes, call.accumulate))
        .transpose()?;
    let to_kernel = d_kernel
        .as_mut()
        .map(|to| target("d_kernel", to, 1, false))
        .transpose()?;
    if let Some(to) = to_input {
        let sizes = (rows, outputs, features);
        multiply(cpu, sizes, d_out, kernel.transpose(), to, scratch);
    }
    if let Some(to) = to_kernel {
        let sizes = (features, rows, outputs);
        multiply(cpu, sizes, input.transpose(), d_out, to, scratch);
    }
    if let Some(d_bias) = call.d_bias {
        sum_of_rows(&d_out, rows, d_bias);
    }
    Ok(())
}

/// One product without a bias.
fn multiply<T: Stored>(
    cpu: &Cpu,
    (rows, depth, outputs): (usize, usize, usize),
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    to: Target<'_, T>,
    scratch: &mut [T::Acc],
) {
    let part = Part {
        right: Right::Matrix(right),
        bias: None,
        outputs,
        to,
    };
    let product = Dense {
        left,
        parts: [Some(part), None, None],
        rows,
        depth,
    };
    product.run(cpu, RowOrder::Any, scratch);
}

/// The sum of the rows, each column one chain in `f64`: there may be very many. (Reading them once is all it costs: one thread
/// does it.)
fn sum_of_rows<T: Stored>(from: &Matrix<'_, T>, rows: usize, mut to: HostViewMut<'_, T>) {
    const CHUNK: usize = 64;
    let layout = *to.layout();
    let columns = layout.elements();
    for first in (0..columns).step_by(CHUNK) {
        let count = CHUNK.min(columns - first);
        let mut sums = [0.0; CHUNK];
        let mut wide = [T::Acc::default(); CHUNK];
        for row in 0..rows {
            from.widen_row(row, first..first + count, &mut wide[..count]);
            for (sum, wide) in sums.iter_mut().zip(wide) {
                *sum += wide.to_f64();
            }
        }
        for (column, sum) in (first..).zip(&sums[..count]) {
            to.buf_mut()[layout.at(&[column])] = T::from_f64(*sum);
        }
    }
}
