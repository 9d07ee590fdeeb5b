//! Layer norm with Flax's fast variance: `mean(x²) - mean(x)²`, clipped at 0.

use crate::cpu::Cpu;
use crate::element::Stored;
use crate::simd::{Kernel, Lane, Simd, SimdBase, SimdFloat, lanes, load, splat};
use attn_core::{Dims, Element, Error, HostView, HostViewMut, Result};

pub(crate) fn normalize<T: Stored>(
    cpu: &Cpu,
    mut x: HostViewMut<'_, T>,
    scale: HostView<'_, T::Acc>,
    epsilon: f64,
) -> Result<()> {
    let layout = *x.layout();
    let Some((&depth, _)) = layout.shape().split_last() else {
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
    let axes = layout.shape().rank() - 1;
    if depth > 1 && (layout.strides()[axes] != 1 || scale.layout().strides() != [1]) {
        return Err(Error::Strides {
            argument: "x",
            wanted: "a contiguous last axis",
        });
    }
    let scale = &scale.buf()[scale.layout().offset()..][..depth];
    let rows = layout.elements().checked_div(depth).unwrap_or(0);
    let epsilon = T::Acc::from_f64(epsilon);
    let data = x.buf_mut();
    for row in 0..rows {
        let start = layout.base(axes, row);
        cpu.level().dispatch(Row {
            x: &mut data[start..start + depth],
            scale,
            epsilon,
        });
    }
    Ok(())
}

struct Row<'a, T: Stored> {
    x: &'a mut [T],
    scale: &'a [T::Acc],
    epsilon: T::Acc,
}

/// Elements widened at a time.
const CHUNK: usize = 64;

impl<T: Stored> Kernel for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, scale, epsilon } = self;
        let (mut sum, mut squares) = (
            splat::<S, T::Acc>(simd, T::Acc::default()),
            splat::<S, T::Acc>(simd, T::Acc::default()),
        );
        let mut wide = [T::Acc::default(); CHUNK];
        for x in x.chunks(CHUNK) {
            // Zeros beyond the end add nothing to either sum.
            wide[x.len()..].fill(T::Acc::default());
            T::widen(x, &mut wide[..x.len()]);
            for wide in wide.chunks_exact(lanes::<S, T::Acc>()) {
                let wide = load::<S, T::Acc>(simd, wide);
                sum += wide;
                squares = wide.mul_add(wide, squares);
            }
        }
        let count = T::Acc::from_f64(x.len() as f64);
        let mean = reduce::<S, T::Acc>(sum) / count;
        let variance = reduce::<S, T::Acc>(squares) / count - mean * mean;
        let clipped = if variance < T::Acc::default() {
            T::Acc::default()
        } else {
            variance
        };
        let root = splat::<S, T::Acc>(simd, clipped + epsilon).sqrt()[0];
        for (x, scale) in x.chunks_mut(CHUNK).zip(scale.chunks(CHUNK)) {
            let wide = &mut wide[..x.len()];
            T::widen(x, wide);
            for (wide, &scale) in wide.iter_mut().zip(scale) {
                *wide = (*wide - mean) * (T::Acc::from(1i8) / root * scale);
            }
            T::narrow(wide, x);
        }
    }
}

#[inline(always)]
fn reduce<S: Simd, A: Lane>(vector: crate::simd::Vector<S, A>) -> A {
    vector
        .as_slice()
        .iter()
        .fold(A::default(), |sum, &x| sum + x)
}
