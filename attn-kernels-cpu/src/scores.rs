//! Scores of a tile of queries and keys: the part of a job that the forward and the backward pass share.
//!
//! Queries lie in lanes, keys go down the rows.

use crate::element::Stored;
use crate::heads::Heads;
use crate::matrix::transpose_strided;
use crate::micro::{for_each_block, width};
use crate::products::Products;
use crate::simd::{Lane, Simd};
use crate::visibility::{Seen, Visibility};
use attn_core::{AttentionShape, FullyMasked, HostView};
use core::ops::Range;

/// Queries of a job. A tile of queries, scores and output (64 × 64 × 4 bytes = 16 KiB each at depth 64) stays in L2, one
/// strip of each in L1; fewer queries would read keys and values, or widen them, more often.
pub(crate) const QUERIES: usize = 64;
/// Keys of a tile: with 64 a tile of keys, one of values and one strip of scores (4 KiB) fit the 32 KiB of L1 one after
/// the other; the softmax state is updated once per 64 keys.
pub(crate) const KEYS: usize = 64;

/// One job: queries of one head.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) queries: Range<usize>,
}

/// How scores are made, and which of them count.
pub(crate) struct Scoring<'a, T: Stored> {
    pub(crate) shape: AttentionShape,
    pub(crate) query: Heads<'a, T>,
    pub(crate) key: Heads<'a, T>,
    /// Factor on the queries.
    pub(crate) scale: T::Acc,
    pub(crate) bias: Option<HostView<'a, T::Acc>>,
    pub(crate) visible: Visibility<'a>,
    pub(crate) fully_masked: FullyMasked,
    /// Whether hidden keys count too: dropout of rate 1 makes NaN of their weights, 0, as well.
    pub(crate) hidden_count: bool,
}

impl<T: Stored> Scoring<'_, T> {
    /// The tiles of keys that a job looks at. Tiles that none of its queries sees are passed over, unless what a query gets
    /// depends on them all the same: it sees no key, or its scores may all be -inf.
    pub(crate) fn tiles<'j>(&'j self, job: &'j Job) -> impl Iterator<Item = Range<usize>> + 'j {
        let every_tile = self.hidden_count
            || self.fully_masked == FullyMasked::MeanOfValues
                && (self.bias.is_some()
                    || self
                        .visible
                        .any_blind(self.matrix(job), job.queries.clone()));
        tiles_of_keys(self.shape.key_length)
            .filter(move |keys| every_tile || self.seen(job, keys.clone()) != Seen::Nothing)
    }

    /// The rows of a tile of keys: as they lie, or widened into `copy`.
    #[inline(always)]
    pub(crate) fn keys<'b>(
        &'b self,
        job: &Job,
        keys: Range<usize>,
        copy: &'b mut [T::Acc],
    ) -> &'b [T::Acc] {
        self.key
            .tile(job.batch, job.head, keys, self.shape.depth, copy)
    }

    pub(crate) fn seen(&self, job: &Job, keys: Range<usize>) -> Seen {
        self.visible
            .tile(self.matrix(job), job.queries.clone(), keys)
    }

    pub(crate) fn matrix(&self, job: &Job) -> usize {
        job.batch * self.shape.num_heads + job.head
    }

    /// Queries, scaled and transposed; lanes beyond the last query are 0. `copy` has room for a few rows.
    #[inline(always)]
    pub(crate) fn load_queries<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        q: &mut [T::Acc],
        copy: &mut [T::Acc],
    ) {
        let (width, depth) = (width::<S, T::Acc>(), self.shape.depth);
        let used = job.queries.len().next_multiple_of(width) * depth;
        q[..used].fill(T::Acc::default());
        // Whole strips end with a group of rows, so no group lies in two.
        let group = if copy.len() >= 4 * depth { 4 } else { 1 };
        for first in (0..job.queries.len()).step_by(group) {
            let count = group.min(job.queries.len() - first);
            let copy = &mut copy[..count * depth];
            let queries = job.queries.start + first..job.queries.start + first + count;
            self.query.widen(job.batch, job.head, queries, depth, copy);
            for q in copy.iter_mut() {
                *q *= self.scale;
            }
            let strip = &mut q[first / width * width * depth + first % width..];
            transpose_strided(simd, copy, depth, (count, depth), strip, width);
        }
    }

    /// Scores of a tile of keys, bias and mask applied, `[strip][KEYS][width]`. `k` holds the keys' rows without gaps.
    #[inline(always)]
    pub(crate) fn score<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: Range<usize>,
        q: &[T::Acc],
        k: &[T::Acc],
        p: &mut [T::Acc],
    ) {
        let (width, depth) = (width::<S, T::Acc>(), self.shape.depth);
        for strip in 0..job.queries.len().div_ceil(width) {
            let q = &q[strip * width * depth..][..width * depth];
            let s = &mut p[strip * width * KEYS..][..width * keys.len()];
            for_each_block::<S, T::Acc, _>(
                simd,
                keys.len(),
                &mut Products {
                    rows: k,
                    lanes: q,
                    out: s,
                    depth,
                },
            );
        }
        self.adjust(width, job, keys, p);
    }

    /// Adds the bias to scores, and puts the fill value where a query does not see a key.
    #[inline(always)]
    pub(crate) fn adjust(&self, width: usize, job: &Job, keys: Range<usize>, p: &mut [T::Acc]) {
        if let Some(bias) = &self.bias {
            self.add_bias(bias, width, job, keys.clone(), p);
        }
        if self.seen(job, keys.clone()) != Seen::Everything {
            let fill = match self.fully_masked {
                FullyMasked::MeanOfValues => T::Acc::LOWEST,
                FullyMasked::Zero => T::Acc::NEG_INFINITY,
            };
            self.hide(width, job, keys, fill, p);
        }
    }

    #[inline(always)]
    fn add_bias(
        &self,
        bias: &HostView<'_, T::Acc>,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        p: &mut [T::Acc],
    ) {
        let layout = bias.layout();
        let rank = layout.shape().rank();
        let strides = layout.strides();
        let matrix = layout.base(rank - 2, self.matrix(job));
        for (i, query) in job.queries.clone().enumerate() {
            let row = matrix + query * strides[rank - 2];
            for (n, key) in keys.clone().enumerate() {
                p[lane_index(width, i, n)] += bias.buf()[row + key * strides[rank - 1]];
            }
        }
    }

    /// Puts `fill` where a query does not see a key.
    #[inline(always)]
    pub(crate) fn hide(
        &self,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        fill: T::Acc,
        p: &mut [T::Acc],
    ) {
        for (i, query) in job.queries.clone().enumerate() {
            self.visible
                .for_each_hidden(self.matrix(job), query, keys.clone(), |n| {
                    p[lane_index(width, i, n)] = fill
                });
        }
    }
}

/// Keys by tiles: the same cut for every query, which is part of what makes a row's bits its own.
pub(crate) fn tiles_of_keys(key_length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..key_length)
        .step_by(KEYS)
        .map(move |start| start..(start + KEYS).min(key_length))
}

/// Where the score of the `i`-th query of a job and the `n`-th key of a tile lies.
#[inline(always)]
pub(crate) fn lane_index(width: usize, i: usize, n: usize) -> usize {
    i / width * width * KEYS + n * width + i % width
}
