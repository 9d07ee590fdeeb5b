//! Attention over all keys from attention over parts of them.
//!
//! A row has few weights, so they are made in `f64`; its columns lie in lanes and are summed over the parts in their order.

use crate::buffers::contiguous_columns;
use crate::cpu::Cpu;
use crate::element::Stored;
use crate::simd::{Kernel, Simd, SimdBase, SimdFloat, lanes, load, splat};
use attn_core::merge::MergeShape;
use attn_core::{Element, Host, Layout, Merge, Partial, Result};

/// Columns that are worked on at a time: a multiple of every vector's lanes.
const CHUNK: usize = 64;

pub(crate) fn merge<T: Stored>(cpu: &Cpu, call: Merge<'_, Host, T>) -> Result<()> {
    let shape = call.shape()?;
    contiguous_columns("output", call.out.layout())?;
    for part in call.parts {
        contiguous_columns("output of a part", part.out.layout())?;
    }
    if [shape.batch, shape.length, shape.heads].contains(&0) {
        return Ok(());
    }
    cpu.level().dispatch(Merging { shape, call });
    Ok(())
}

/// A call that was checked.
struct Merging<'a, T: Stored> {
    shape: MergeShape,
    call: Merge<'a, Host, T>,
}

impl<T: Stored> Kernel for Merging<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let MergeShape {
            batch,
            length,
            heads,
            ..
        } = self.shape;
        for entry in 0..batch {
            for query in 0..length {
                for head in 0..heads {
                    self.run_row(simd, &Row { entry, query, head });
                }
            }
        }
    }
}

/// One query of one head.
struct Row {
    entry: usize,
    query: usize,
    head: usize,
}

impl Row {
    /// Index of its first element in an output, `[batch..., length, heads, value_depth]`.
    #[inline(always)]
    fn of_output(&self, layout: &Layout) -> usize {
        self.at(layout, [self.query, self.head])
    }

    /// Index of its first element in statistics, `[batch..., heads, length, 2]`.
    #[inline(always)]
    fn of_statistics(&self, layout: &Layout) -> usize {
        self.at(layout, [self.head, self.query])
    }

    #[inline(always)]
    fn at(&self, layout: &Layout, [a, b]: [usize; 2]) -> usize {
        let axes = layout.shape().rank() - 3;
        let strides = layout.strides();
        layout.base(axes, self.entry) + a * strides[axes] + b * strides[axes + 1]
    }

    /// `m` and `l` of a part.
    #[inline(always)]
    fn read<T: Stored>(&self, part: &Partial<'_, Host, T>) -> [f64; 2] {
        let (layout, buf) = (part.statistics.layout(), part.statistics.buf());
        let stride = layout.strides()[layout.shape().rank() - 1];
        let at = self.of_statistics(layout);
        [buf[at].to_f64(), buf[at + stride].to_f64()]
    }
}

/// The statistics of the whole row, `(-inf, 0)` if no part has seen a key.
fn whole(parts: impl Iterator<Item = [f64; 2]> + Clone) -> [f64; 2] {
    let seen = parts.filter(|[_, l]| *l != 0.0);
    // Unlike `f64::max`, a NaN stays.
    let larger = |m: f64, [other, _]: [f64; 2]| match m.is_nan() || m >= other {
        true => m,
        false => other,
    };
    let m = seen.clone().fold(f64::NEG_INFINITY, larger);
    let l = seen.map(|part| share(part, m)).sum::<f64>();
    // An empty sum is -0.
    [if l.is_nan() { l } else { m }, l + 0.0]
}

/// `e^(m_i - m) l_i`, 0 for a part that saw no key.
fn share([m_i, l_i]: [f64; 2], m: f64) -> f64 {
    match l_i == 0.0 {
        true => 0.0,
        false => libm::exp(m_i - m) * l_i,
    }
}

impl<T: Stored> Merging<'_, T> {
    #[inline(always)]
    fn run_row<S: Simd>(&mut self, simd: S, row: &Row) {
        let parts = self.call.parts;
        let [m, l] = whole(parts.iter().map(|part| row.read(part)));
        let to = row.of_output(self.call.out.layout());
        for first in (0..self.shape.value_depth).step_by(CHUNK) {
            let count = CHUNK.min(self.shape.value_depth - first);
            // To add to -0 keeps the sign of a zero.
            let start = if l == 0.0 { 0.0 } else { -0.0 };
            let mut sums = [T::Acc::from_f64(start); CHUNK];
            for part in parts {
                let statistics = row.read(part);
                if statistics[1] == 0.0 {
                    continue;
                }
                let weight = T::Acc::from_f64(share(statistics, m) / l);
                let from = row.of_output(part.out.layout()) + first;
                add_weighed(simd, &part.out.buf()[from..from + count], weight, &mut sums);
            }
            let out = &mut self.call.out.buf_mut()[to + first..to + first + count];
            T::narrow(&sums[..count], out);
        }
        if let Some(statistics) = &mut self.call.statistics {
            let layout = *statistics.layout();
            let stride = layout.strides()[layout.shape().rank() - 1];
            let at = row.of_statistics(&layout);
            statistics.buf_mut()[at] = T::Acc::from_f64(m);
            statistics.buf_mut()[at + stride] = T::Acc::from_f64(l);
        }
    }
}

/// `sums += weight · from`.
#[inline(always)]
fn add_weighed<S: Simd, T: Stored>(
    simd: S,
    from: &[T],
    weight: T::Acc,
    sums: &mut [T::Acc; CHUNK],
) {
    let mut wide = [T::Acc::default(); CHUNK];
    T::widen_on(simd, from, &mut wide[..from.len()]);
    let (lanes, weight) = (lanes::<S, T::Acc>(), splat(simd, weight));
    for first in (0..from.len()).step_by(lanes) {
        let range = first..first + lanes;
        let sum = load::<S, T::Acc>(simd, &sums[range.clone()]);
        load::<S, T::Acc>(simd, &wide[range.clone()])
            .mul_add(weight, sum)
            .store_slice(&mut sums[range]);
    }
}
