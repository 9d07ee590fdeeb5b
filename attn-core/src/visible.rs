//! Which keys a query sees, as small values that compose: a query sees the keys that every part lets it see.
//!
//! Positions ([`Causal`], [`Window`]) and [`Sequences`] give each query one range of keys, so that a kernel passes over all others
//! without looking at them; [`Segments`], [`Blocks`] and a [`Mask`] tensor choose among the keys of the range.

use crate::error::Result;
use crate::layout::Dims;
use crate::mask::{FullyMasked, Mask};
use crate::position::{Alignment, Causal, Window};
use crate::request::AttentionShape;
use crate::view::{Flat, Storage, View};
use core::ops::Range;

/// Which keys a query sees: those that every part lets it see.
#[derive(Debug)]
#[non_exhaustive]
pub struct Visible<'a, S: Storage> {
    /// A causal mask without a tensor.
    pub causal: Option<Causal>,
    /// A window around each query.
    pub window: Option<Window>,
    /// Where sequences begin and end. Positions are then those in the query's own sequence.
    pub sequences: Option<Sequences<'a, S>>,
    /// Only keys of the query's own segment.
    pub segments: Option<Segments<'a, S>>,
    /// Only keys of some blocks.
    pub blocks: Option<&'a Blocks<'a, S>>,
    /// A mask tensor.
    pub mask: Option<Mask<'a, S>>,
    /// What a query gets that sees no key.
    pub fully_masked: FullyMasked,
}

impl<S: Storage> Default for Visible<'_, S> {
    fn default() -> Self {
        Self {
            causal: None,
            window: None,
            sequences: None,
            segments: None,
            blocks: None,
            mask: None,
            fully_masked: FullyMasked::default(),
        }
    }
}

/// Where sequences begin and end. What lies outside of all of them is seen by nothing and sees nothing.
#[derive(Debug)]
pub enum Sequences<'a, S: Storage> {
    /// Every batch entry is one sequence, padded at its end.
    Padded {
        /// Keys of each batch entry, `[batch]`, from 0 to `key_length`.
        key_lengths: Flat<'a, S, i32>,
        /// Queries of each batch entry, `[batch]`, from 0 to `query_length`; all where there is none.
        query_lengths: Option<Flat<'a, S, i32>>,
    },
    /// Every batch entry is many sequences, one after the other (`cu_seqlens` of FlashAttention).
    Packed {
        /// The first query of each sequence and the end of the last, `[sequences + 1]`, never falling, from 0 to `query_length`.
        query_starts: Flat<'a, S, i32>,
        /// The first key of each sequence and the end of the last, `[sequences + 1]`, never falling, from 0 to `key_length`.
        key_starts: Flat<'a, S, i32>,
    },
}

/// One sequence of a batch entry: the rows of its queries and keys in their arrays. Positions count from the first of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its queries.
    pub queries: Range<usize>,
    /// Its keys.
    pub keys: Range<usize>,
}

impl Span {
    /// A whole batch entry.
    #[must_use]
    pub const fn whole(shape: &AttentionShape) -> Self {
        Self {
            queries: 0..shape.query_length,
            keys: 0..shape.key_length,
        }
    }

    /// The position of a query of the sequence, counted as its keys are from the sequence's first key.
    #[must_use]
    pub fn position(&self, alignment: Alignment, query: usize) -> isize {
        let query = query.saturating_sub(self.queries.start);
        alignment.position(query, self.queries.len(), self.keys.len())
    }
}

/// Ids by which queries and keys belong together: a query sees the keys of its own id.
#[derive(Debug)]
pub struct Segments<'a, S: Storage> {
    /// `[batch, query_length]`, row-major.
    pub queries: Flat<'a, S, i32>,
    /// `[batch, key_length]`, row-major.
    pub keys: Flat<'a, S, i32>,
}

/// A mask of whole blocks.
#[derive(Debug)]
pub struct Blocks<'a, S: Storage> {
    /// A byte other than 0 lets the queries of a block see the keys of a block; broadcasts to
    /// `[batch..., heads, query_blocks, key_blocks]`.
    pub keep: View<'a, S, u8>,
    /// Queries of a block, at least 1.
    pub query_block: usize,
    /// Keys of a block, at least 1.
    pub key_block: usize,
}

impl<S: Storage> Clone for Sequences<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage> Copy for Sequences<'_, S> {}

impl<S: Storage> Clone for Segments<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage> Copy for Segments<'_, S> {}

impl<S: Storage> Blocks<'_, S> {
    /// The shape that the bytes broadcast to, for weights of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`](crate::Error::Zero) for blocks of no queries or no keys.
    pub fn shape(&self, weights: &Dims) -> Result<Dims> {
        let count = |argument, length: usize, block: usize| match block {
            0 => Err(crate::Error::Zero { argument }),
            _ => Ok(length.div_ceil(block)),
        };
        let axes = weights.rank().saturating_sub(2);
        Dims::new(&weights[..axes])?.concat(&[
            count("query_block", weights[axes], self.query_block)?,
            count("key_block", weights[axes + 1], self.key_block)?,
        ])
    }
}

impl<S: Storage> Visible<'_, S> {
    /// The keys that a query of `span` sees by its position alone, as rows of the array of keys. The rows are the sequence's own.
    #[must_use]
    pub fn keys_in(&self, span: &Span, query: usize) -> Range<usize> {
        let (queries, keys) = (span.queries.len(), span.keys.len());
        let query = query.saturating_sub(span.queries.start);
        let window = (self.window).map_or(0..keys, |window| window.visible(query, queries, keys));
        let end = (self.causal).map_or(keys, |causal| causal.visible(query, queries, keys));
        let end = end.min(window.end).max(window.start);
        span.keys.start + window.start..span.keys.start + end
    }

    /// Checks that all parts fit a call; `weights` is the shape of its weights. What arrays hold is the backend's to check.
    pub(crate) fn check(&self, shape: &AttentionShape, weights: &Dims) -> Result<()> {
        if let Some(sequences) = &self.sequences {
            sequences.check(shape)?;
        }
        if let Some(segments) = &self.segments {
            let (queries, keys) = (shape.query_length, shape.key_length);
            let of = |length: usize| shape.batch.saturating_mul(length);
            segments.queries.check_len("query segments", of(queries))?;
            segments.keys.check_len("key segments", of(keys))?;
        }
        if let Some(blocks) = self.blocks {
            blocks
                .keep
                .broadcast_to("blocks", &blocks.shape(weights)?)?;
        }
        if let Some(mask) = &self.mask {
            mask.view().broadcast_to("mask", weights)?;
        }
        Ok(())
    }
}

impl<S: Storage> Sequences<'_, S> {
    fn check(&self, shape: &AttentionShape) -> Result<()> {
        match self {
            Self::Padded {
                key_lengths,
                query_lengths,
            } => {
                key_lengths.check_len("key_lengths", shape.batch)?;
                query_lengths.map_or(Ok(()), |lengths| {
                    lengths.check_len("query_lengths", shape.batch)
                })
            }
            Self::Packed {
                query_starts,
                key_starts,
            } => {
                query_starts.check_len("query_starts", query_starts.len().max(1))?;
                key_starts.check_len("key_starts", query_starts.len())
            }
        }
    }
}
