//! Layer norm of rows, and its gradients.
//!
//! Flax computes `mean(x²) - mean(x)²`, which loses every digit that square and mean have in common, in short rows often all
//! of them. Here mean and variance are two passes in `f64`: the rows are short, beside the product that made them their
//! cost does not show, and the result is as exact as its type.

use crate::buffers::contiguous_columns;
use crate::element::Stored;
use attn_core::{Dims, Element, Error, Host, HostView, HostViewMut, NormalizeBackward, Result};

/// Deeper rows are worked on in parts of this size.
const CHUNK: usize = 64;

pub(crate) fn normalize<T: Stored>(
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
    let axes = rows.len();
    contiguous_columns("x", &layout)?;
    contiguous_columns("scale", scale.layout())?;
    if depth == 0 {
        return Ok(());
    }
    let scale = &scale.buf()[scale.layout().offset()..][..depth];
    let data = x.buf_mut();
    for row in 0..layout.elements() / depth {
        let start = layout.base(axes, row);
        normalize_row(&mut data[start..start + depth], scale, epsilon);
    }
    Ok(())
}

fn normalize_row<T: Stored>(x: &mut [T], scale: &[T::Acc], epsilon: f64) {
    let (mean, factor) = moments(x, epsilon);
    for (x, scale) in x.iter_mut().zip(scale) {
        *x = T::from_f64((x.to_f64() - mean) * (factor * scale.to_f64()));
    }
}

/// Mean, and one by the standard deviation.
fn moments<T: Element>(x: &[T], epsilon: f64) -> (f64, f64) {
    let count = x.len() as f64;
    let mean = x.iter().map(|x| x.to_f64()).sum::<f64>() / count;
    let squares = x.iter().map(|x| {
        let centred = x.to_f64() - mean;
        centred * centred
    });
    (
        mean,
        1.0 / libm::sqrt(squares.sum::<f64>() / count + epsilon),
    )
}

/// With `n` the normalised row, `g` the gradient times the scale and `f` one by the standard deviation:
/// `dx = f (g - mean(g) - n mean(g n))`, `d_scale = Σ gradient n` over the rows.
pub(crate) fn normalize_backward<T: Stored>(
    mut call: NormalizeBackward<'_, Host, T>,
) -> Result<()> {
    let (rows, depth) = call.sizes()?;
    let (from, to) = (*call.x.layout(), *call.gradient.layout());
    for (argument, layout) in [
        ("x", &from),
        ("gradient", &to),
        ("scale", call.scale.layout()),
    ] {
        contiguous_columns(argument, layout)?;
    }
    if depth == 0 {
        return Ok(());
    }
    let scale = &call.scale.buf()[call.scale.layout().offset()..][..depth];
    let axes = from.shape().rank() - 1;
    if let Some(d_scale) = &mut call.d_scale {
        let gradient = call.gradient.as_view();
        scale_gradient(&call.x, &gradient, call.epsilon, rows, d_scale);
    }
    for row in 0..rows {
        let x = &call.x.buf()[from.base(axes, row)..][..depth];
        let start = to.base(axes, row);
        let gradient = &mut call.gradient.buf_mut()[start..start + depth];
        row_gradient(x, scale, call.epsilon, gradient);
    }
    Ok(())
}

fn row_gradient<T: Stored>(x: &[T], scale: &[T::Acc], epsilon: f64, gradient: &mut [T]) {
    let (mean, factor) = moments(x, epsilon);
    let count = x.len() as f64;
    let normal = |x: &T| (x.to_f64() - mean) * factor;
    let (mut sum, mut product) = (0.0, 0.0);
    for ((x, scale), gradient) in x.iter().zip(scale).zip(gradient.iter()) {
        let g = gradient.to_f64() * scale.to_f64();
        sum += g;
        product += g * normal(x);
    }
    for ((x, scale), gradient) in x.iter().zip(scale).zip(gradient) {
        let g = gradient.to_f64() * scale.to_f64();
        *gradient = T::from_f64(factor * (g - sum / count - normal(x) * (product / count)));
    }
}

/// Summed over the rows, some columns at a time.
fn scale_gradient<T: Stored>(
    x: &HostView<'_, T>,
    gradient: &HostView<'_, T>,
    epsilon: f64,
    rows: usize,
    d_scale: &mut HostViewMut<'_, T::Acc>,
) {
    let (from, layout) = (x.layout(), *d_scale.layout());
    let (axes, depth) = (from.shape().rank() - 1, layout.elements());
    for first in (0..depth).step_by(CHUNK) {
        let count = CHUNK.min(depth - first);
        let mut sums = [0.0; CHUNK];
        for row in 0..rows {
            let x = &x.buf()[from.base(axes, row)..][..depth];
            let start = gradient.layout().base(axes, row) + first;
            let gradient = &gradient.buf()[start..start + count];
            let (mean, factor) = moments(x, epsilon);
            for ((sum, x), gradient) in sums.iter_mut().zip(&x[first..]).zip(gradient) {
                *sum += gradient.to_f64() * ((x.to_f64() - mean) * factor);
            }
        }
        for (column, sum) in (first..).zip(&sums[..count]) {
            d_scale.buf_mut()[layout.at(&[column])] = T::Acc::from_f64(*sum);
        }
    }
}
