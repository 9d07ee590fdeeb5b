//! Scores of a tile of queries and keys: the part of a job that the forward and the backward pass share.
//!
//! Queries lie in lanes, keys go down the rows.

use crate::element::Stored;
use crate::heads::Heads;
use crate::matrix::transpose_strided;
use crate::micro::{for_each_block, width};
use crate::modifiers::Row;
use crate::products::Products;
use crate::simd::{Lane, Simd};
use crate::terms::Terms;
use crate::tokens::{Head, Tokens};
use crate::visibility::{Seen, Visibility};
use attn_core::{AttentionShape, FullyMasked, Span};
use core::ops::Range;

/// Queries of a job. A tile of queries, scores and output (64 × 64 × 4 bytes = 16 KiB each at depth 64) stays in L2, one
/// strip of each in L1; fewer queries would read keys and values, or widen them, more often.
pub(crate) const QUERIES: usize = 64;
/// Keys of a tile: with 64 a tile of keys, one of values and one strip of scores (4 KiB) fit the 32 KiB of L1 one after
/// the other; the softmax state is updated once per 64 keys.
pub(crate) const KEYS: usize = 64;

/// One job: queries of one sequence and one head. Where a few queries are served, also those of the heads that follow, which share its keys.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) queries: Range<usize>,
    pub(crate) span: Span,
}

impl Job {
    /// A query of the job and some keys, as a user's modifiers know them.
    pub(crate) const fn row(&self, query: usize, keys: Range<usize>) -> Row {
        Row {
            batch: self.batch,
            head: self.head,
            query,
            keys,
        }
    }

    /// The same queries of this head and those that follow, one after the other.
    pub(crate) fn each_head(&self, heads: usize) -> impl Iterator<Item = Self> + '_ {
        (0..heads).map(|n| Self {
            head: self.head + n,
            ..self.clone()
        })
    }
}

/// How scores are made, and which of them count.
pub(crate) struct Scoring<'a, T: Stored> {
    pub(crate) shape: AttentionShape,
    pub(crate) query: Heads<'a, T>,
    pub(crate) key: Tokens<'a, T>,
    /// Factor on the queries.
    pub(crate) scale: T::Acc,
    pub(crate) terms: Terms<'a, T::Acc>,
    /// Scores of no key that take part in softmax, one for each head.
    pub(crate) sinks: Option<&'a [T::Acc]>,
    pub(crate) visible: Visibility<'a>,
    pub(crate) fully_masked: FullyMasked,
    /// Whether hidden keys count too: dropout of rate 1 makes NaN of their weights, 0, as well.
    pub(crate) hidden_count: bool,
    /// Whether scores of seen keys may all be -inf, beside which Flax's fill value is large.
    pub(crate) infinite: bool,
}

impl<T: Stored> Scoring<'_, T> {
    /// The tiles of keys that a job of `heads` heads looks at. Tiles that none of its queries sees are passed over, unless what a query
    /// gets depends on them all the same: it sees no key, or its scores may all be -inf.
    pub(crate) fn tiles<'j>(
        &'j self,
        job: &'j Job,
        heads: usize,
    ) -> impl Iterator<Item = Range<usize>> + 'j {
        let any_blind = || {
            let mut jobs = job.each_head(heads);
            jobs.any(|job| self.visible.any_blind(&job))
        };
        let every_tile = self.hidden_count
            || self.fully_masked == FullyMasked::MeanOfValues && (self.infinite || any_blind());
        let reach = match every_tile {
            true => job.span.keys.clone(),
            false => self.visible.reach(job),
        };
        let any_may_be_seen = every_tile || !self.visible.has_masks();
        tiles_of_keys(&job.span.keys, reach).filter(move |keys| {
            let mut jobs = job.each_head(heads);
            any_may_be_seen || jobs.any(|job| self.seen(&job, keys.clone()) != Seen::Nothing)
        })
    }

    pub(crate) fn seen(&self, job: &Job, keys: Range<usize>) -> Seen {
        self.visible.tile(job, keys)
    }

    pub(crate) fn matrix(&self, job: &Job) -> usize {
        job.batch * self.shape.num_heads + job.head
    }

    /// The keys of a job.
    pub(crate) fn keys(&self, job: &Job) -> Head<'_, '_, T> {
        self.key.head(job.batch, self.shape.key_head(job.head))
    }

    /// The score without a key of a job's head. Softmax begins with it as the largest score; its term is added last, as it may be so
    /// large that terms of keys would be rounded away one by one.
    pub(crate) fn sink(&self, job: &Job) -> Option<T::Acc> {
        self.sinks.map(|sinks| sinks[job.head])
    }

    /// What a score is where a query does not see the key.
    pub(crate) const fn fill(&self) -> T::Acc {
        match self.fully_masked {
            FullyMasked::MeanOfValues => T::Acc::LOWEST,
            FullyMasked::Zero => T::Acc::NEG_INFINITY,
        }
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

    /// Scores of a tile of keys, `[strip][KEYS][width]`, as they go into softmax, and how much of the tile is seen. `k` holds the keys'
    /// rows without gaps.
    #[inline(always)]
    pub(crate) fn score<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: Range<usize>,
        q: &[T::Acc],
        k: &[T::Acc],
        p: &mut [T::Acc],
    ) -> Seen {
        self.multiply(simd, job, keys.len(), q, k, p);
        self.finish(simd, width::<S, T::Acc>(), job, keys, p)
    }

    /// Scaled products of queries and keys.
    #[inline(always)]
    pub(crate) fn multiply<S: Simd>(
        &self,
        simd: S,
        job: &Job,
        keys: usize,
        q: &[T::Acc],
        k: &[T::Acc],
        p: &mut [T::Acc],
    ) {
        let (width, depth) = (width::<S, T::Acc>(), self.shape.depth);
        for strip in 0..job.queries.len().div_ceil(width) {
            let q = &q[strip * width * depth..][..width * depth];
            let s = &mut p[strip * width * KEYS..][..width * keys];
            for_each_block::<S, T::Acc, _>(
                simd,
                keys,
                &mut Products {
                    rows: k,
                    lanes: q,
                    out: s,
                    depth,
                },
            );
        }
    }

    /// Makes scores of products: the softcap, what is added, the fill value where a query does not see a key.
    #[inline(always)]
    pub(crate) fn finish<S: Simd>(
        &self,
        simd: S,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        p: &mut [T::Acc],
    ) -> Seen {
        self.terms.cap(simd, width, job.queries.len(), p);
        if self.terms.any_added() {
            self.terms
                .add(width, job, self.matrix(job), keys.clone(), p);
        }
        let seen = self.seen(job, keys.clone());
        if seen != Seen::Everything {
            self.hide(width, job, keys, self.fill(), p);
        }
        seen
    }

    /// Puts `fill` where a query does not see a key.
    #[inline(never)]
    pub(crate) fn hide(
        &self,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        fill: T::Acc,
        p: &mut [T::Acc],
    ) {
        if !self.visible.has_masks() {
            self.hide_ranges(width, job, keys, fill, p);
            return;
        }
        for (i, query) in job.queries.clone().enumerate() {
            self.visible.for_each_hidden(job, query, keys.clone(), |n| {
                p[lane_index(width, i, n)] = fill
            });
        }
    }

    /// As [`Scoring::hide`], where a query sees one range of keys. Both ends of ranges grow with the queries, so of a strip a key is hidden
    /// from some first lanes and some last ones.
    fn hide_ranges(
        &self,
        width: usize,
        job: &Job,
        keys: Range<usize>,
        fill: T::Acc,
        p: &mut [T::Acc],
    ) {
        let mut ranges = [(0, 0); QUERIES];
        for (range, query) in ranges.iter_mut().zip(job.queries.clone()) {
            *range = self.visible.range_in(job, query, &keys);
        }
        let ranges = ranges[..job.queries.len()].chunks(width);
        for (strip, ranges) in p.chunks_mut(width * KEYS).zip(ranges) {
            if width == 1 {
                strip[..ranges[0].0].fill(fill);
                strip[ranges[0].1..keys.len()].fill(fill);
                continue;
            }
            let (mut ended, mut begun) = (0, 0);
            for (n, row) in strip.chunks_mut(width).take(keys.len()).enumerate() {
                while ranges.get(ended).is_some_and(|&(_, end)| end <= n) {
                    ended += 1;
                }
                while ranges.get(begun).is_some_and(|&(start, _)| start <= n) {
                    begun += 1;
                }
                row[..ended].fill(fill);
                row[begun.max(ended)..ranges.len()].fill(fill);
            }
        }
    }
}

/// The tiles of a sequence's keys that meet `reach`. They are cut from the sequence's first key: the same for every query, and wherever
/// the sequence lies, which is part of what makes a row's bits its own.
pub(crate) fn tiles_of_keys(
    keys: &Range<usize>,
    reach: Range<usize>,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let before = reach.start.saturating_sub(keys.start) / KEYS * KEYS;
    let end = keys.end;
    (keys.start + before..reach.end)
        .step_by(KEYS)
        .map(move |start| start..(start + KEYS).min(end))
}

/// Where the score of the `i`-th query of a job and the `n`-th key of a tile lies.
#[inline(always)]
pub(crate) fn lane_index(width: usize, i: usize, n: usize) -> usize {
    i / width * width * KEYS + n * width + i % width
}
