//! Masks that choose among the keys of a range: a tensor of bytes, segments, blocks, the user's own.

use crate::modifiers::{self, MaskMod};
use crate::scores::{Job, KEYS};
use crate::visibility::Seen;
use attn_core::{AttentionShape, Dims, Host, HostView, Layout, Result, Visible};
use core::ops::Range;

/// The masks of a call. A query sees the keys that all of them let it see.
pub(crate) struct Chosen<'a> {
    mask: Option<Bytes<'a>>,
    segments: Option<Ids<'a>>,
    blocks: Option<ByBlocks<'a>>,
    modifier: Option<&'a dyn MaskMod>,
}

impl<'a> Chosen<'a> {
    pub(crate) fn new(
        visible: &Visible<'a, Host>,
        shape: &AttentionShape,
        weights: &Dims,
        modifier: Option<&'a dyn MaskMod>,
    ) -> Result<Self> {
        let mask = match &visible.mask {
            None => None,
            Some(mask) => {
                let view = mask.view().broadcast_to("mask", weights)?;
                Some(Bytes::new(&view, shape.num_heads, mask.set_means_keep()))
            }
        };
        let blocks = match visible.blocks {
            None => None,
            Some(blocks) => {
                let view = (blocks.keep).broadcast_to("blocks", &blocks.shape(weights)?)?;
                Some(ByBlocks {
                    keep: Bytes::new(&view, shape.num_heads, true),
                    sizes: [blocks.query_block, blocks.key_block],
                })
            }
        };
        let segments = visible.segments.map(|segments| Ids {
            queries: segments.queries.buf(),
            keys: segments.keys.buf(),
            lengths: [shape.query_length, shape.key_length],
        });
        Ok(Self {
            mask,
            segments,
            blocks,
            modifier,
        })
    }

    pub(crate) const fn is_some(&self) -> bool {
        self.mask.is_some()
            || self.segments.is_some()
            || self.blocks.is_some()
            || self.modifier.is_some()
    }

    /// How much of the tile of a job's queries and `keys` is seen.
    pub(crate) fn tile(&self, job: &Job, keys: Range<usize>) -> Seen {
        let queries = || job.queries.clone();
        let mut seen = Seen::Everything;
        if let Some(segments) = &self.segments {
            seen = seen.and(segments.tile(job.batch, queries(), keys.clone()));
        }
        if let Some(blocks) = self.blocks.as_ref().filter(|_| seen != Seen::Nothing) {
            seen = seen.and(blocks.tile(job, queries(), keys.clone()));
        }
        if let Some(mask) = self.mask.as_ref().filter(|_| seen != Seen::Nothing) {
            seen = seen.and(mask.tile(job, queries(), keys.clone()));
        }
        if let Some(modifier) = self.modifier.filter(|_| seen != Seen::Nothing) {
            let tile = modifier.tile(job.batch, job.head, queries(), keys);
            seen = seen.and(modifiers::seen(tile));
        }
        seen
    }

    /// Whether all masks let `query` see `key`.
    pub(crate) fn sees(&self, job: &Job, query: usize, key: usize) -> bool {
        let mut sees = true;
        self.for_each_hidden(job, query, key..key + 1, |_| sees = false);
        sees
    }

    /// Calls `hide` for each of `keys` that a mask hides from `query`, once for each that does.
    #[inline(always)]
    pub(crate) fn for_each_hidden(
        &self,
        job: &Job,
        query: usize,
        keys: Range<usize>,
        mut hide: impl FnMut(usize),
    ) {
        if let Some(mask) = &self.mask {
            let row = mask.row(job, query);
            for key in keys.clone().filter(|&key| !mask.keeps(row, key)) {
                hide(key);
            }
        }
        if let Some(ids) = &self.segments {
            let (id, of_keys) = (ids.query(job.batch, query), ids.keys(job.batch));
            for key in keys.clone().filter(|&key| of_keys[key] != id) {
                hide(key);
            }
        }
        if let Some(blocks) = &self.blocks {
            let [queries, size] = blocks.sizes;
            let row = blocks.keep.row(job, query / queries);
            for key in keys
                .clone()
                .filter(|key| !blocks.keep.keeps(row, key / size))
            {
                hide(key);
            }
        }
        if let Some(modifier) = self.modifier {
            let mut row = job.row(query, keys.clone());
            for first in keys.clone().step_by(KEYS) {
                row.keys = first..keys.end.min(first + KEYS);
                let mut sees = [true; KEYS];
                modifier.sees(&row, &mut sees[..row.keys.len()]);
                for (key, _) in row.keys.clone().zip(sees).filter(|(_, sees)| !sees) {
                    hide(key);
                }
            }
        }
    }
}

/// Bytes broadcast to `[batch..., heads, queries, keys]`.
struct Bytes<'a> {
    bytes: &'a [u8],
    layout: Layout,
    num_heads: usize,
    set_means_keep: bool,
}

impl<'a> Bytes<'a> {
    fn new(view: &HostView<'a, u8>, num_heads: usize, set_means_keep: bool) -> Self {
        Self {
            bytes: view.buf(),
            layout: *view.layout(),
            num_heads,
            set_means_keep,
        }
    }

    fn row(&self, job: &Job, query: usize) -> usize {
        let rank = self.layout.shape().rank();
        let matrix = job.batch * self.num_heads + job.head;
        self.layout.base(rank - 2, matrix) + query * self.layout.strides()[rank - 2]
    }

    #[inline(always)]
    fn keeps(&self, row: usize, key: usize) -> bool {
        (self.bytes[row + key * self.key_stride()] != 0) == self.set_means_keep
    }

    #[inline(always)]
    fn key_stride(&self) -> usize {
        self.layout.strides().last().copied().unwrap_or(0)
    }

    fn tile(&self, job: &Job, queries: Range<usize>, keys: Range<usize>) -> Seen {
        let repeated = self.layout.strides()[self.layout.shape().rank() - 2] == 0;
        let queries = if repeated {
            queries.start..queries.start + 1
        } else {
            queries
        };
        let mut rows = queries.map(|query| self.row_of_tile(self.row(job, query), keys.clone()));
        let first = rows.next().unwrap_or(Seen::Everything);
        if first == Seen::Part || rows.any(|row| row != first) {
            Seen::Part
        } else {
            first
        }
    }

    fn row_of_tile(&self, row: usize, keys: Range<usize>) -> Seen {
        if self.key_stride() != 1 {
            let first = self.keeps(row, keys.start);
            let same = keys.clone().all(|key| self.keeps(row, key) == first);
            return seen(same, first);
        }
        let bytes = &self.bytes[row + keys.start..row + keys.end];
        let set = bytes.iter().filter(|&&byte| byte != 0).count();
        seen(
            set == 0 || set == bytes.len(),
            (set != 0) == self.set_means_keep,
        )
    }
}

const fn seen(same: bool, kept: bool) -> Seen {
    match (same, kept) {
        (false, _) => Seen::Part,
        (true, true) => Seen::Everything,
        (true, false) => Seen::Nothing,
    }
}

/// A byte for each block of queries and keys.
struct ByBlocks<'a> {
    keep: Bytes<'a>,
    /// Queries and keys of a block.
    sizes: [usize; 2],
}

impl ByBlocks<'_> {
    fn tile(&self, job: &Job, queries: Range<usize>, keys: Range<usize>) -> Seen {
        let blocks = |range: Range<usize>, size| range.start / size..range.end.div_ceil(size);
        let [query_block, key_block] = self.sizes;
        let (queries, keys) = (blocks(queries, query_block), blocks(keys, key_block));
        self.keep.tile(job, queries, keys)
    }
}

/// Ids of queries and keys, `[batch, length]`.
struct Ids<'a> {
    queries: &'a [i32],
    keys: &'a [i32],
    /// Queries and keys of a batch entry.
    lengths: [usize; 2],
}

impl Ids<'_> {
    fn query(&self, batch: usize, query: usize) -> i32 {
        self.queries[batch * self.lengths[0] + query]
    }

    /// The ids of a batch entry's keys.
    fn keys(&self, batch: usize) -> &[i32] {
        &self.keys[batch * self.lengths[1]..][..self.lengths[1]]
    }

    /// By the smallest and the largest ids: ids in between may be missing, and then nothing is seen of a tile that is looked at.
    fn tile(&self, batch: usize, queries: Range<usize>, keys: Range<usize>) -> Seen {
        let of_queries = &self.queries[batch * self.lengths[0]..][queries];
        let [low, high] = bounds(of_queries);
        let [first, last] = bounds(&self.keys(batch)[keys]);
        if high < first || last < low {
            Seen::Nothing
        } else if low == high && first == last {
            Seen::Everything
        } else {
            Seen::Part
        }
    }
}

/// The smallest and the largest id.
fn bounds(ids: &[i32]) -> [i32; 2] {
    ids.iter().fold([i32::MAX, i32::MIN], |[low, high], &id| {
        [low.min(id), high.max(id)]
    })
}
