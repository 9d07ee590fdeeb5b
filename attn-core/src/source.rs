//! Where keys and values come from: arrays as they are, or a cache.

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::view::{Flat, Storage, View};

/// Where keys and values come from.
#[derive(Debug)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "there is no allocator to box it with, and the large one is the common one"
)]
pub enum KeyValue<'a, S: Storage, T: Element> {
    /// Two arrays: key `[batch..., key_length, key_heads, depth]`, value `[batch..., key_length, key_heads, value_depth]`. A contiguous
    /// cache of the call's own type is this too, with [`Causal::offset`](crate::Causal::offset) to hide its unwritten slots.
    Dense {
        /// Keys.
        key: View<'a, S, T>,
        /// Values.
        value: View<'a, S, T>,
    },
    /// A cache.
    Cached(&'a Cached<'a, S, T>),
}

/// A cache as a kernel reads it. Sequences of different lengths are said by [`Sequences`](crate::Sequences).
#[derive(Debug)]
pub struct Cached<'a, S: Storage, T: Element> {
    /// Keys, `[batch..., capacity, key_heads, depth]`, or `[pages, page_size, key_heads, depth]`.
    pub key: Rows<'a, S, T>,
    /// Values, likewise.
    pub value: Rows<'a, S, T>,
    /// Where a token's row is.
    pub place: Place<'a, S>,
    /// Tokens that the longest sequence has seen: the call's `key_length`.
    pub length: usize,
}

/// Where the row of a token is.
#[derive(Debug)]
pub enum Place<'a, S: Storage> {
    /// Token `t` is row `t`.
    Contiguous,
    /// Token `t` is row `t % capacity`: only the last `capacity` tokens of a sequence are there, and earlier ones are seen by no query.
    Ring,
    /// Token `t` is row `t % page_size` of page `table[sequence, t / page_size]`.
    Paged {
        /// Pages of each sequence, `[batch, pages_per_sequence]`, row-major. Pages beyond a sequence's length are not looked at.
        table: Flat<'a, S, i32>,
    },
}

/// The rows of a cache, as numbers or quantised.
#[derive(Debug)]
#[non_exhaustive]
pub enum Rows<'a, S: Storage, T: Element> {
    /// In the call's own type.
    Plain(View<'a, S, T>),
    /// Integers and a factor for each row of a head.
    Int8 {
        /// `[..., key_heads, depth]`.
        values: View<'a, S, i8>,
        /// `[..., key_heads]`, row-major: a number is its integer times the factor.
        scales: Flat<'a, S, f32>,
    },
    /// Blocks of 32 numbers in 34 bytes: a factor as `f16`, little-endian, then 32 integers (`q8_0` of ggml).
    Q8_0 {
        /// `[..., key_heads, depth / 32 * 34]`.
        bytes: View<'a, S, u8>,
    },
}

impl<S: Storage, T: Element> Clone for KeyValue<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for KeyValue<'_, S, T> {}

impl<S: Storage, T: Element> Rows<'_, S, T> {
    /// Numbers of a block of [`Rows::Q8_0`].
    pub const BLOCK: usize = 32;
    /// Bytes of a block of [`Rows::Q8_0`].
    pub const BLOCK_BYTES: usize = 34;

    /// The shape of the numbers.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] without axes; [`Error::Buffer`] for factors that are not one for each row of a head, or rows that are not whole blocks.
    pub fn shape(&self, argument: &'static str) -> Result<Dims> {
        match self {
            Self::Plain(view) => Ok(*view.shape()),
            Self::Int8 { values, scales } => {
                let rows = leading(argument, values.shape())?.elements()?;
                scales.check_len("scales", rows)?;
                Ok(*values.shape())
            }
            Self::Q8_0 { bytes } => {
                let rows = leading(argument, bytes.shape())?;
                let got = bytes.shape()[rows.rank()];
                let blocks = got / Self::BLOCK_BYTES;
                if got % Self::BLOCK_BYTES != 0 {
                    return Err(Error::Buffer {
                        argument,
                        got,
                        wanted: blocks.saturating_add(1).saturating_mul(Self::BLOCK_BYTES),
                    });
                }
                rows.push(blocks * Self::BLOCK)
            }
        }
    }
}

fn leading(argument: &'static str, shape: &Dims) -> Result<Dims> {
    match shape.split_last() {
        Some((_, rows)) => Dims::new(rows),
        None => Err(Error::Rank {
            argument,
            got: 0,
            wanted: "[..., length, key_heads, depth]",
        }),
    }
}

impl<S: Storage, T: Element> KeyValue<'_, S, T> {
    /// The shapes of keys and values as if they lay in two arrays, `[batch..., key_length, key_heads, depth]`, for a query of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Buffer`], [`Error::CacheFull`] for a length beyond what there is room for.
    pub fn shapes(&self, query: &Dims) -> Result<[Dims; 2]> {
        match self {
            Self::Dense { key, value } => Ok([*key.shape(), *value.shape()]),
            Self::Cached(cached) => cached.shapes(query),
        }
    }
}

impl<S: Storage, T: Element> Cached<'_, S, T> {
    fn shapes(&self, query: &Dims) -> Result<[Dims; 2]> {
        let arrays = [
            self.key.shape("cached key")?,
            self.value.shape("cached value")?,
        ];
        let rank = |argument, got: usize| Error::Rank {
            argument,
            got,
            wanted: "[batch..., capacity, key_heads, depth], or [pages, page_size, key_heads, depth]",
        };
        let axes = (query.rank().checked_sub(3)).ok_or(rank("query", query.rank()))?;
        for array in &arrays {
            let wanted = if self.is_paged() { 4 } else { axes + 3 };
            if array.rank() != wanted {
                return Err(rank("cache", array.rank()));
            }
        }
        if arrays[0][..arrays[0].rank() - 2] != arrays[1][..arrays[1].rank() - 2] {
            return Err(Error::Mismatch {
                what: crate::error::Disagreement::Lengths,
                left: arrays[0],
                right: arrays[1],
            });
        }
        let rows = arrays[0][arrays[0].rank() - 3];
        let capacity = match &self.place {
            Place::Contiguous => rows,
            Place::Ring if rows > 0 => usize::MAX,
            Place::Ring => 0,
            Place::Paged { table } => {
                let batch = Dims::new(&query[..axes])?.elements()?;
                let pages = table.len().checked_div(batch).unwrap_or(0);
                table.check_len("page table", pages.saturating_mul(batch))?;
                pages.saturating_mul(rows)
            }
        };
        if self.length > capacity {
            return Err(Error::CacheFull {
                got: self.length,
                free: capacity,
            });
        }
        let batch = match self.is_paged() {
            true => Dims::new(&query[..axes])?,
            false => Dims::new(&arrays[0][..axes])?,
        };
        let [key, value] = arrays.map(|array| [array[array.rank() - 2], array[array.rank() - 1]]);
        Ok([
            batch.concat(&[self.length, key[0], key[1]])?,
            batch.concat(&[self.length, value[0], value[1]])?,
        ])
    }

    /// Batch entries or pages, and rows of each.
    pub(crate) fn rows(&self) -> Result<[usize; 2]> {
        let shape = self.key.shape("cached key")?;
        let rows = shape.rank().saturating_sub(3);
        let of = |axis: usize| shape.get(axis).copied().unwrap_or(0);
        Ok([of(rows.saturating_sub(1)), of(rows)])
    }

    /// The first token that is still there of a sequence that has seen `tokens` of them.
    #[must_use]
    pub fn first_token(&self, tokens: usize) -> usize {
        match (&self.place, self.rows()) {
            (Place::Ring, Ok([_, capacity])) => tokens.saturating_sub(capacity),
            _ => 0,
        }
    }

    const fn is_paged(&self) -> bool {
        matches!(self.place, Place::Paged { .. })
    }
}
