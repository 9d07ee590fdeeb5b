//! Rotary position embeddings, in place.
//!
//! Cosines and sines of some pairs are made once a position and serve its heads, and where rows follow each other all batch entries too. Pairs
//! lie in lanes, so every element is one multiplication and one multiply-add whatever lies beside it.

use crate::buffers::contiguous_columns;
use crate::cpu::Cpu;
use crate::element::Stored;
use crate::simd::{Kernel, Lane, Simd, SimdBase, SimdFloat, Vector, lanes, load};
use attn_core::rotary::{Frequencies, RotateShape};
use attn_core::{Host, HostViewMut, Layout, Pairing, Positions, Result, RotaryTable, Rotate};

/// Pairs that are worked on at a time: a multiple of every vector's lanes.
const CHUNK: usize = 64;

pub(crate) fn rotate<T: Stored>(cpu: &Cpu, call: Rotate<'_, Host, T>) -> Result<()> {
    let shape = call.shape()?;
    let layout = *call.x.layout();
    contiguous_columns("x", &layout)?;
    call.check_ids(&shape)?;
    if layout.shape().contains(&0) {
        return Ok(());
    }
    let angles = match call.table {
        Some(table) => Angles::Table(table),
        None => Angles::Computed(call.rotary.frequencies(shape.depth)?),
    };
    cpu.level().dispatch(Rotation {
        shape,
        layout,
        angles,
        pairing: call.rotary.pairing,
        positions: call.positions,
        inverse: call.inverse,
        x: call.x,
    });
    Ok(())
}

/// Where cosines and sines come from.
enum Angles<'a, A: Lane> {
    Table(RotaryTable<'a, Host, A>),
    Computed(Frequencies),
}

/// Cosines and sines of some pairs at one position.
struct Turn<A> {
    cos: [A; CHUNK],
    sin: [A; CHUNK],
}

/// Some pairs of a row.
struct Chunk {
    first: usize,
    count: usize,
}

/// A call that was checked.
struct Rotation<'a, T: Stored> {
    shape: RotateShape,
    layout: Layout,
    angles: Angles<'a, T::Acc>,
    pairing: Pairing,
    positions: Positions<'a, Host>,
    inverse: bool,
    x: HostViewMut<'a, T>,
}

impl<T: Stored> Kernel for Rotation<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for first in (0..self.shape.pairs).step_by(CHUNK) {
            let count = CHUNK.min(self.shape.pairs - first);
            self.run_chunk(simd, &Chunk { first, count });
        }
    }
}

impl<T: Stored> Rotation<'_, T> {
    /// Some pairs of all rows.
    #[inline(always)]
    fn run_chunk<S: Simd>(&mut self, simd: S, chunk: &Chunk) {
        let RotateShape { batch, length, .. } = self.shape;
        let mut frequencies = [0.0; CHUNK];
        if let Angles::Computed(all) = &self.angles {
            all.fill(chunk.first, &mut frequencies[..chunk.count]);
        }
        let mut turn = Turn {
            cos: [T::Acc::default(); CHUNK],
            sin: [T::Acc::default(); CHUNK],
        };
        let shared = matches!(self.positions, Positions::From(_));
        for row in 0..length {
            for entry in 0..batch {
                if entry == 0 || !shared {
                    let position = self.positions.at(entry * length + row, length);
                    self.turn(chunk, position, &frequencies, &mut turn);
                }
                self.rotate_heads(simd, chunk, [entry, row], &turn);
            }
        }
    }

    #[inline(always)]
    fn turn(
        &self,
        chunk: &Chunk,
        position: usize,
        frequencies: &[f64; CHUNK],
        turn: &mut Turn<T::Acc>,
    ) {
        let to = turn.cos.iter_mut().zip(&mut turn.sin).take(chunk.count);
        match &self.angles {
            Angles::Computed(all) => {
                for ((cos, sin), frequency) in to.zip(frequencies) {
                    [*cos, *sin] = all.cos_sin(position, *frequency);
                }
            }
            Angles::Table(table) => {
                let from = position * self.shape.pairs + chunk.first;
                let row = |buf: &'_ [T::Acc]| -> [T::Acc; CHUNK] {
                    let mut row = [T::Acc::default(); CHUNK];
                    row[..chunk.count].copy_from_slice(&buf[from..from + chunk.count]);
                    row
                };
                (turn.cos, turn.sin) = (row(table.cos.buf()), row(table.sin.buf()));
            }
        }
        if self.inverse {
            for sin in &mut turn.sin[..chunk.count] {
                *sin = -*sin;
            }
        }
    }

    /// Some pairs of one row of every head.
    #[inline(always)]
    fn rotate_heads<S: Simd>(
        &mut self,
        simd: S,
        chunk: &Chunk,
        [entry, row]: [usize; 2],
        turn: &Turn<T::Acc>,
    ) {
        let axes = self.layout.shape().rank() - 3;
        let strides = self.layout.strides();
        let (of_row, of_head) = (strides[axes], strides[axes + 1]);
        let start = self.layout.base(axes, entry) + row * of_row;
        let data = self.x.buf_mut();
        for head in 0..self.shape.heads {
            let at = start + head * of_head;
            let pairs = match self.pairing {
                Pairing::HalfSplit => Pairs::Halves {
                    at: at + chunk.first,
                    half: self.shape.pairs,
                },
                Pairing::Interleaved => Pairs::Neighbours {
                    at: at + 2 * chunk.first,
                },
            };
            let [mut a, mut b] = pairs.read(simd, data, chunk.count);
            turn_pairs(simd, chunk.count, turn, &mut a, &mut b);
            pairs.write(data, chunk.count, &a, &b);
        }
    }
}

/// `a' = a cos - b sin`, `b' = b cos + a sin`.
#[inline(always)]
fn turn_pairs<S: Simd, A: Lane>(
    simd: S,
    count: usize,
    turn: &Turn<A>,
    a: &mut [A; CHUNK],
    b: &mut [A; CHUNK],
) {
    let lanes = lanes::<S, A>();
    for first in (0..count).step_by(lanes) {
        let range = first..first + lanes;
        let of = |from: &[A; CHUNK]| -> Vector<S, A> { load::<S, A>(simd, &from[range.clone()]) };
        let (cos, sin, x, y) = (of(&turn.cos), of(&turn.sin), of(a), of(b));
        x.mul_add(cos, -(y * sin))
            .store_slice(&mut a[range.clone()]);
        y.mul_add(cos, x * sin).store_slice(&mut b[range]);
    }
}

/// Where the pairs of a chunk of one row are.
enum Pairs {
    Halves { at: usize, half: usize },
    Neighbours { at: usize },
}

impl Pairs {
    #[inline(always)]
    fn read<S: Simd, T: Stored>(&self, simd: S, data: &[T], count: usize) -> [[T::Acc; CHUNK]; 2] {
        let zeros = [T::Acc::default(); CHUNK];
        let [mut a, mut b] = [zeros, zeros];
        match *self {
            Self::Halves { at, half } => {
                T::widen_on(simd, &data[at..at + count], &mut a[..count]);
                T::widen_on(simd, &data[at + half..at + half + count], &mut b[..count]);
            }
            Self::Neighbours { at } => {
                let mut both = [T::Acc::default(); 2 * CHUNK];
                T::widen_on(simd, &data[at..at + 2 * count], &mut both[..2 * count]);
                for (pair, (a, b)) in both.chunks_exact(2).zip(a.iter_mut().zip(&mut b)) {
                    (*a, *b) = (pair[0], pair[1]);
                }
            }
        }
        [a, b]
    }

    #[inline(always)]
    fn write<T: Stored>(
        &self,
        data: &mut [T],
        count: usize,
        a: &[T::Acc; CHUNK],
        b: &[T::Acc; CHUNK],
    ) {
        match *self {
            Self::Halves { at, half } => {
                T::narrow(&a[..count], &mut data[at..at + count]);
                T::narrow(&b[..count], &mut data[at + half..at + half + count]);
            }
            Self::Neighbours { at } => {
                let mut both = [T::Acc::default(); 2 * CHUNK];
                for (pair, (a, b)) in both.chunks_exact_mut(2).zip(a.iter().zip(b)) {
                    (pair[0], pair[1]) = (*a, *b);
                }
                T::narrow(&both[..2 * count], &mut data[at..at + 2 * count]);
            }
        }
    }
}
