//! Layer norm of rows.
//!
//! Flax computes `mean(x²) - mean(x)²`, which loses every digit that square and mean have in common, in short rows often all
//! of them. Here mean and variance are two passes in `f64`: the rows are short, beside the product that made them their
//! cost does not show, and the result is as exact as its type.

use crate::element::Stored;
use attn_core::{Dims, Element, Error, HostView, HostViewMut, Result};

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
    if depth > 1 && (layout.strides()[axes] != 1 || scale.layout().strides() != [1]) {
        return Err(Error::Strides {
            argument: "x",
            wanted: "a contiguous last axis",
        });
    }
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
    let count = x.len() as f64;
    let mean = x.iter().map(|x| x.to_f64()).sum::<f64>() / count;
    let squares = x.iter().map(|x| {
        let centred = x.to_f64() - mean;
        centred * centred
    });
    let factor = 1.0 / libm::sqrt(squares.sum::<f64>() / count + epsilon);
    for (x, scale) in x.iter_mut().zip(scale) {
        *x = T::from_f64((x.to_f64() - mean) * (factor * scale.to_f64()));
    }
}
