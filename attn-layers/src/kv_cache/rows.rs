//! The rows of keys, or of values, in whatever format.

use super::plan::{KvFormat, RowSizes};
use super::quantize::{self, Row};
use attn_core::{Dims, Element, Error, Flat, Host, HostView, Result, Rows};

/// The buffers for keys, or for values, that a cache keeps its rows in; [`KvCachePlan::sizes`](crate::KvCachePlan::sizes) gives their lengths.
#[derive(Debug)]
pub enum RowBuffers<'c, T> {
    /// For [`KvFormat::Plain`].
    Plain(&'c mut [T]),
    /// For [`KvFormat::Int8`].
    Int8 {
        /// The integers.
        values: &'c mut [i8],
        /// A factor for each token and head.
        scales: &'c mut [f32],
    },
    /// For [`KvFormat::Q8_0`].
    Q8_0(&'c mut [u8]),
}

/// What a row is: all heads of a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Width {
    pub(super) heads: usize,
    pub(super) depth: usize,
}

impl<T: Element> RowBuffers<'_, T> {
    /// Whether these are the buffers of a format, and as long as its sizes say.
    pub(super) fn check(
        &self,
        argument: &'static str,
        format: KvFormat,
        sizes: &RowSizes,
    ) -> Result<()> {
        let (own, lengths) = match self {
            Self::Plain(numbers) => (KvFormat::Plain, [(numbers.len(), sizes.plain); 2]),
            Self::Int8 { values, scales } => (
                KvFormat::Int8,
                [(values.len(), sizes.int8), (scales.len(), sizes.scales)],
            ),
            Self::Q8_0(bytes) => (KvFormat::Q8_0, [(bytes.len(), sizes.q8_0); 2]),
        };
        if own != format {
            return Err(Error::Unsupported {
                backend: "the cache",
                feature: "buffers of another format than its plan's",
                instead: "Make buffers for the plan's formats",
            });
        }
        match lengths.into_iter().find(|(got, wanted)| got != wanted) {
            None => Ok(()),
            Some((got, wanted)) => Err(Error::Buffer {
                argument,
                got,
                wanted,
            }),
        }
    }

    /// The name of the format, if it has no factor for this head of a token.
    pub(super) fn refuses(&self, row: &Row<'_, T>) -> Option<&'static str> {
        match self {
            Self::Plain(_) => None,
            Self::Int8 { .. } => (!row.fits_int8()).then_some("int8"),
            Self::Q8_0(_) => (!row.fits_q8_0()).then_some("q8_0"),
        }
    }

    /// Writes one head of the token in row `to`.
    pub(super) fn write(&mut self, width: Width, to: usize, head: usize, row: &Row<'_, T>) {
        let at = to * width.heads + head;
        match self {
            Self::Plain(numbers) => row.copy_to(part(numbers, at, width.depth)),
            Self::Int8 { values, scales } => {
                scales[at] = row.write_int8(part(values, at, width.depth));
            }
            Self::Q8_0(bytes) => row.write_q8_0(part(bytes, at, block_bytes(width.depth))),
        }
    }

    /// Copies `count` rows as they are.
    pub(super) fn copy(&mut self, width: Width, from: usize, to: usize, count: usize) {
        let Width { heads, depth } = width;
        match self {
            Self::Plain(numbers) => copy(numbers, heads * depth, from, to, count),
            Self::Int8 { values, scales } => {
                copy(values, heads * depth, from, to, count);
                copy(scales, heads, from, to, count);
            }
            Self::Q8_0(bytes) => copy(bytes, heads * block_bytes(depth), from, to, count),
        }
    }

    /// The numbers of a row, `[heads, depth]`.
    pub(super) fn read(&self, width: Width, row: usize, out: &mut [T]) {
        for (head, out) in out.chunks_mut(width.depth).enumerate() {
            let at = row * width.heads + head;
            match self {
                Self::Plain(numbers) => {
                    out.copy_from_slice(&numbers[at * width.depth..][..width.depth]);
                }
                Self::Int8 { values, scales } => {
                    let values = &values[at * width.depth..][..width.depth];
                    quantize::from_int8(values, scales[at], out);
                }
                Self::Q8_0(bytes) => {
                    let bytes_per_row = block_bytes(width.depth);
                    quantize::from_q8_0(&bytes[at * bytes_per_row..][..bytes_per_row], out);
                }
            }
        }
    }

    /// Some rows as a kernel reads them, `[shape..., heads, depth]`, from row `first` on.
    pub(super) fn as_rows(
        &self,
        width: Width,
        first: usize,
        shape: &Dims,
    ) -> Result<Rows<'_, Host, T>> {
        let Width { heads, depth } = width;
        let count = shape.elements()?;
        let shaped = |depth| shape.concat(&[heads, depth]);
        Ok(match self {
            Self::Plain(numbers) => {
                let numbers = rows(numbers, heads * depth, first, count);
                Rows::Plain(HostView::new(numbers, &shaped(depth)?)?)
            }
            Self::Int8 { values, scales } => Rows::Int8 {
                values: HostView::new(rows(values, heads * depth, first, count), &shaped(depth)?)?,
                scales: Flat::new(rows(scales, heads, first, count)),
            },
            Self::Q8_0(bytes) => {
                let bytes = rows(bytes, heads * block_bytes(depth), first, count);
                Rows::Q8_0 {
                    bytes: HostView::new(bytes, &shaped(block_bytes(depth))?)?,
                }
            }
        })
    }
}

fn rows<N>(buf: &[N], row: usize, first: usize, count: usize) -> &[N] {
    &buf[first * row..][..count * row]
}

const fn block_bytes(depth: usize) -> usize {
    depth / quantize::BLOCK * quantize::BLOCK_BYTES
}

fn part<N>(buf: &mut [N], index: usize, len: usize) -> &mut [N] {
    &mut buf[index * len..][..len]
}

fn copy<N: Copy>(buf: &mut [N], row: usize, from: usize, to: usize, count: usize) {
    buf.copy_within(from * row..(from + count) * row, to * row);
}
