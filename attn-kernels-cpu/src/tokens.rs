//! Keys and values: rows of an array, or of a cache whose tokens lie in a ring or in pages and may be quantised.
//!
//! A tile's tokens come in runs of rows that follow each other: one in an array, a few where a ring begins again or a page ends. A run
//! is used as it lies or widened into the caller's copy; what reads the tile sees plain rows either way.

use crate::element::Stored;
use crate::heads::{Heads, row_start};
use crate::prefetch::prefetch;
use crate::simd::{Lane, Simd};
use attn_core::{AttentionShape, Cached, Element, Host, KeyValue, Layout, Place, Rows, f16};
use core::ops::Range;

/// Numbers of a block of q8_0, and its bytes.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 34;

/// Keys or values of a call.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a, T> {
    numbers: Numbers<'a, T>,
    layout: Layout,
    place: Placed<'a>,
    depth: usize,
}

/// How numbers are held.
#[derive(Clone, Copy)]
enum Numbers<'a, T> {
    Plain(&'a [T]),
    /// A factor for each row of a head, in the order of the array's other axes.
    Int8(&'a [i8], &'a [f32]),
    Q8_0(&'a [u8]),
}

/// Where tokens are.
#[derive(Clone, Copy)]
enum Placed<'a> {
    Rows,
    /// Rows of the ring.
    Ring(usize),
    /// Pages of each sequence, and tokens of a page.
    Pages {
        table: &'a [i32],
        each: usize,
        size: usize,
    },
}

impl<'a, T: Stored> Tokens<'a, T> {
    /// Keys and values.
    pub(crate) fn of(source: &KeyValue<'a, Host, T>, shape: &AttentionShape) -> Option<[Self; 2]> {
        match source {
            KeyValue::Dense { key, value } => Some([
                Self::dense(Heads::new(key), shape.depth),
                Self::dense(Heads::new(value), shape.value_depth),
            ]),
            KeyValue::Cached(cached) => Some([
                Self::cached(cached, &cached.key, shape.batch, shape.depth)?,
                Self::cached(cached, &cached.value, shape.batch, shape.value_depth)?,
            ]),
            _ => None,
        }
    }

    fn dense(heads: Heads<'a, T>, depth: usize) -> Self {
        Self {
            numbers: Numbers::Plain(heads.data),
            layout: heads.layout,
            place: Placed::Rows,
            depth,
        }
    }

    fn cached(
        cached: &Cached<'a, Host, T>,
        rows: &Rows<'a, Host, T>,
        batch: usize,
        depth: usize,
    ) -> Option<Self> {
        let (numbers, layout) = match rows {
            Rows::Plain(view) => (Numbers::Plain(view.buf()), *view.layout()),
            Rows::Int8 { values, scales } => {
                let numbers = Numbers::Int8(values.buf(), scales.buf());
                (numbers, *values.layout())
            }
            Rows::Q8_0 { bytes } => (Numbers::Q8_0(bytes.buf()), *bytes.layout()),
            _ => return None,
        };
        let rows = layout.shape()[layout.shape().rank() - 3];
        let place = match &cached.place {
            Place::Contiguous => Placed::Rows,
            Place::Ring => Placed::Ring(rows),
            Place::Paged { table } => Placed::Pages {
                table: table.buf(),
                each: table.len().checked_div(batch)?,
                size: rows,
            },
        };
        Some(Self {
            numbers,
            layout,
            place,
            depth,
        })
    }

    /// How many of its last tokens a ring has.
    pub(crate) const fn held(&self) -> Option<usize> {
        match self.place {
            Placed::Ring(rows) => Some(rows),
            _ => None,
        }
    }

    /// Tokens of a head, which is one of keys and values.
    pub(crate) fn head(&self, batch: usize, head: usize) -> Head<'_, 'a, T> {
        let (first, stride) = match self.place {
            // The place of page 0; those of others follow from it.
            Placed::Pages { .. } => row_start(&self.layout, 0, head),
            _ => row_start(&self.layout, batch, head),
        };
        Head {
            tokens: self,
            batch,
            head,
            first,
            stride,
            column_stride: self.layout.strides().last().copied().unwrap_or(1),
        }
    }
}

/// Tokens of one head.
#[derive(Clone, Copy)]
pub(crate) struct Head<'t, 'a, T> {
    tokens: &'t Tokens<'a, T>,
    batch: usize,
    head: usize,
    /// Index of the first row's first element.
    first: usize,
    /// Elements from one row to the next.
    stride: usize,
    column_stride: usize,
}

/// Tokens that lie one after the other.
struct Run {
    /// Index of the first one's first element.
    start: usize,
    /// Number of the first one's row among all of the array.
    row: usize,
    count: usize,
}

impl<'a, T: Stored> Head<'_, 'a, T> {
    /// Columns of a row.
    pub(crate) const fn depth(&self) -> usize {
        self.tokens.depth
    }

    /// The first run of some tokens.
    #[inline(always)]
    fn run(&self, tokens: Range<usize>) -> Run {
        let at = |row: usize, count: usize| Run {
            start: self.first + row * self.stride,
            row,
            count,
        };
        match self.tokens.place {
            Placed::Rows => at(tokens.start, tokens.len()),
            Placed::Ring(rows) => {
                let row = tokens.start % rows;
                at(row, tokens.len().min(rows - row))
            }
            Placed::Pages { table, each, size } => {
                let row = tokens.start % size;
                let page = table[self.batch * each + tokens.start / size] as usize;
                let run = at(row, tokens.len().min(size - row));
                Run {
                    start: run.start + page * self.tokens.layout.strides()[0],
                    row: page * size + row,
                    ..run
                }
            }
        }
    }

    /// The rows of some tokens as they lie, and the elements from one to the next, where they can be used so.
    #[inline(always)]
    fn as_they_lie(&self, tokens: Range<usize>) -> Option<(&'a [T::Acc], usize)> {
        let Numbers::Plain(data) = self.tokens.numbers else {
            return None;
        };
        let data = T::as_acc(data)?;
        let count = tokens.len();
        let run = self.run(tokens);
        let (depth, stride) = (self.tokens.depth, self.stride);
        (self.column_stride == 1 && run.count == count && (stride >= depth || count == 1))
            .then(|| (&data[run.start..][..(count - 1) * stride + depth], stride))
    }

    /// The rows of some tokens as a matrix without gaps: as they lie where they can be used so, else widened into `copy`.
    #[inline(always)]
    pub(crate) fn tile<'b, S: Simd>(
        &self,
        simd: S,
        tokens: Range<usize>,
        copy: &'b mut [T::Acc],
    ) -> &'b [T::Acc]
    where
        'a: 'b,
    {
        let depth = self.tokens.depth;
        if tokens.is_empty() || depth == 0 {
            // The layout of an empty array may name any place.
            return &[];
        }
        match self.as_they_lie(tokens.clone()) {
            Some((rows, stride)) if stride == depth => rows,
            _ => {
                self.copy(simd, tokens, depth, copy);
                copy
            }
        }
    }

    /// Some rows, and the elements from one to the next: as they lie, or widened into `copy` where they need widening or do not end
    /// with a whole number of `multiple` columns; then what follows them is 0. A copied row is 16 columns or a multiple long.
    #[inline(always)]
    pub(crate) fn rows<'b, S: Simd>(
        &self,
        simd: S,
        tokens: Range<usize>,
        multiple: usize,
        copy: &'b mut [T::Acc],
    ) -> (&'b [T::Acc], usize)
    where
        'a: 'b,
    {
        let depth = self.tokens.depth;
        if tokens.is_empty() || depth == 0 {
            return (&[], depth);
        }
        if depth.is_multiple_of(multiple)
            && let Some(rows) = self.as_they_lie(tokens.clone())
        {
            return rows;
        }
        let width = depth.next_multiple_of(16);
        let count = tokens.len();
        self.copy(simd, tokens, width, copy);
        if width > depth {
            for row in copy.chunks_exact_mut(width).take(count) {
                row[depth..].fill(T::Acc::default());
            }
        }
        (copy, width)
    }

    /// Widens the rows of some tokens into `to`, `width` elements each. A function of its own in the machine code: it is called where
    /// rows are copied anyway.
    #[inline(always)]
    pub(crate) fn copy<S: Simd>(
        &self,
        simd: S,
        tokens: Range<usize>,
        width: usize,
        to: &mut [T::Acc],
    ) {
        simd.vectorize(
            #[inline(always)]
            || self.widen(simd, tokens, width, to),
        );
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, simd: S, tokens: Range<usize>, width: usize, to: &mut [T::Acc]) {
        let mut rest = tokens;
        let mut rows = to.chunks_exact_mut(width);
        while !rest.is_empty() {
            let run = self.run(rest.clone());
            rest.start += run.count;
            let rows = rows.by_ref().take(run.count).enumerate();
            match self.tokens.numbers {
                Numbers::Plain(data) => self.widen_plain(simd, &run, data, rows),
                Numbers::Int8(data, scales) => {
                    for (n, to) in rows {
                        let scale = T::Acc::from_f64(f64::from(scales[self.row(run.row + n)]));
                        let to = &mut to[..self.tokens.depth];
                        self.widen_int8(&data[run.start + n * self.stride..], scale, to);
                    }
                }
                Numbers::Q8_0(bytes) => {
                    for (n, to) in rows {
                        let to = &mut to[..self.tokens.depth];
                        self.widen_q8_0(&bytes[run.start + n * self.stride..], to);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn widen_plain<'r, S: Simd>(
        &self,
        simd: S,
        run: &Run,
        data: &[T],
        rows: impl Iterator<Item = (usize, &'r mut [T::Acc])>,
    ) where
        T::Acc: 'r,
    {
        let (depth, columns) = (self.tokens.depth, self.column_stride);
        if columns == 1 {
            for (n, to) in rows {
                let start = run.start + n * self.stride;
                T::widen_on(simd, &data[start..start + depth], &mut to[..depth]);
            }
            return;
        }
        for (n, to) in rows {
            let from = &data[run.start + n * self.stride..];
            for (column, to) in to[..depth].iter_mut().enumerate() {
                *to = from[column * columns].to_acc();
            }
        }
    }

    #[inline(always)]
    fn widen_int8(&self, from: &[i8], scale: T::Acc, to: &mut [T::Acc]) {
        match self.column_stride {
            1 => scaled(&from[..to.len()], scale, to),
            columns => {
                for (column, to) in to.iter_mut().enumerate() {
                    *to = T::Acc::from(from[column * columns]) * scale;
                }
            }
        }
    }

    #[inline(always)]
    fn widen_q8_0(&self, from: &[u8], to: &mut [T::Acc]) {
        for (block, to) in to.chunks_mut(BLOCK).enumerate() {
            let start = block * BLOCK_BYTES * self.column_stride;
            let byte = |n: usize| from[start + n * self.column_stride];
            let scale = f16::from_le_bytes([byte(0), byte(1)]);
            let scale = T::Acc::from_f64(scale.to_f64());
            match self.column_stride {
                1 => scaled(
                    bytemuck::cast_slice(&from[start + 2..][..to.len()]),
                    scale,
                    to,
                ),
                _ => {
                    for (n, to) in to.iter_mut().enumerate() {
                        *to = T::Acc::from(byte(n + 2) as i8) * scale;
                    }
                }
            }
        }
    }

    /// The number of a row of this head among all of the array, its heads and batch entries or pages.
    fn row(&self, row: usize) -> usize {
        let shape = self.tokens.layout.shape();
        let rows = shape[shape.rank() - 3];
        let before = match self.tokens.place {
            Placed::Pages { .. } => 0,
            _ => self.batch * rows,
        };
        (before + row) * shape[shape.rank() - 2] + self.head
    }

    /// One number.
    pub(crate) fn number(&self, token: usize, column: usize) -> T::Acc {
        let run = self.run(token..token + 1);
        let at = |column: usize| run.start + column * self.column_stride;
        match self.tokens.numbers {
            Numbers::Plain(data) => data[at(column)].to_acc(),
            Numbers::Int8(data, scales) => {
                let scale = scales[self.row(run.row)];
                T::Acc::from(data[at(column)]) * T::Acc::from_f64(f64::from(scale))
            }
            Numbers::Q8_0(bytes) => {
                let start = column / BLOCK * BLOCK_BYTES;
                let scale = [0, 1].map(|n| bytes[at(start + n)]);
                let number = bytes[at(start + 2 + column % BLOCK)] as i8;
                T::Acc::from(number) * T::Acc::from_f64(f16::from_le_bytes(scale).to_f64())
            }
        }
    }

    /// Asks for rows that will be read soon; those beyond the end are passed over.
    #[inline(always)]
    pub(crate) fn prefetch(&self, tokens: Range<usize>) {
        let (Placed::Rows, Numbers::Plain(data)) = (self.tokens.place, self.tokens.numbers) else {
            return;
        };
        for row in tokens {
            let start = self.first + row * self.stride;
            if let Some(row) = data.get(start..start + self.tokens.depth) {
                prefetch(row);
            }
        }
    }
}

/// `to[i] = from[i] · scale`.
#[inline(always)]
fn scaled<A: Lane>(from: &[i8], scale: A, to: &mut [A]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = A::from(*from) * scale;
    }
}
