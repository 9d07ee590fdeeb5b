//! What a tile of queries and keys may see: the causal mask and the mask tensor in one place.

use attn_core::{AttentionShape, Host, Layout, Result, Visible};
use core::ops::Range;

/// How much of a tile is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    Part,
    Everything,
}

impl Seen {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::Nothing) => Self::Nothing,
            (Self::Everything, Self::Everything) => Self::Everything,
            _ => Self::Part,
        }
    }
}

/// Which keys each query sees.
pub(crate) struct Visibility<'a> {
    causal: Option<attn_core::Causal>,
    mask: Option<MaskRows<'a>>,
    query_length: usize,
    key_length: usize,
}

impl<'a> Visibility<'a> {
    pub(crate) fn new(
        visible: &Visible<'a, Host>,
        shape: &AttentionShape,
        weights: &attn_core::Dims,
    ) -> Result<Self> {
        let mask = match &visible.mask {
            None => None,
            Some(mask) => {
                let view = mask.view().broadcast_to("mask", weights)?;
                Some(MaskRows {
                    bytes: view.buf(),
                    layout: *view.layout(),
                    set_means_keep: mask.set_means_keep(),
                })
            }
        };
        Ok(Self {
            causal: visible.causal,
            mask,
            query_length: shape.query_length,
            key_length: shape.key_length,
        })
    }

    /// How many keys, from the first on, the causal mask lets `query` see.
    fn reach(&self, query: usize) -> usize {
        self.causal.map_or(self.key_length, |causal| {
            causal.visible(query, self.query_length, self.key_length)
        })
    }

    /// How much of the tile `queries × keys` of matrix `head` (batch and head, row-major) is seen.
    pub(crate) fn tile(&self, head: usize, queries: Range<usize>, keys: Range<usize>) -> Seen {
        let (least, most) = (self.reach(queries.start), self.reach(queries.end - 1));
        let causal = if most <= keys.start {
            Seen::Nothing
        } else if least >= keys.end {
            Seen::Everything
        } else {
            Seen::Part
        };
        match &self.mask {
            Some(mask) if causal != Seen::Nothing => causal.and(mask.tile(head, queries, keys)),
            _ => causal,
        }
    }

    /// Whether one of `queries` sees no key at all.
    pub(crate) fn any_blind(&self, head: usize, queries: Range<usize>) -> bool {
        match &self.mask {
            // Reach grows with the query, so the first one sees least.
            None => self.reach(queries.start) == 0,
            Some(mask) => queries.into_iter().any(|query| {
                !(0..self.reach(query)).any(|key| mask.keeps(mask.row(head, query), key))
            }),
        }
    }

    /// Calls `hide(i)` for each key `keys.start + i` that `query` does not see.
    #[inline(always)]
    pub(crate) fn for_each_hidden(
        &self,
        head: usize,
        query: usize,
        keys: Range<usize>,
        mut hide: impl FnMut(usize),
    ) {
        let reach = self.reach(query).clamp(keys.start, keys.end);
        if let Some(mask) = &self.mask {
            let row = mask.row(head, query);
            for key in keys.start..reach {
                if !mask.keeps(row, key) {
                    hide(key - keys.start);
                }
            }
        }
        for key in reach..keys.end {
            hide(key - keys.start);
        }
    }
}

/// A mask tensor broadcast to `[batch..., heads, query_length, key_length]`.
struct MaskRows<'a> {
    bytes: &'a [u8],
    layout: Layout,
    set_means_keep: bool,
}

impl MaskRows<'_> {
    fn row(&self, head: usize, query: usize) -> usize {
        let rank = self.layout.shape().rank();
        self.layout.base(rank - 2, head) + query * self.layout.strides()[rank - 2]
    }

    #[inline(always)]
    fn keeps(&self, row: usize, key: usize) -> bool {
        (self.bytes[row + key * self.key_stride()] != 0) == self.set_means_keep
    }

    #[inline(always)]
    fn key_stride(&self) -> usize {
        self.layout.strides().last().copied().unwrap_or(0)
    }

    fn tile(&self, head: usize, queries: Range<usize>, keys: Range<usize>) -> Seen {
        let repeated = self.layout.strides()[self.layout.shape().rank() - 2] == 0;
        let queries = if repeated {
            queries.start..queries.start + 1
        } else {
            queries
        };
        let mut rows = queries.map(|query| self.row_of_tile(self.row(head, query), keys.clone()));
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
            return Self::seen(same, first);
        }
        let bytes = &self.bytes[row + keys.start..row + keys.end];
        let set = bytes.iter().filter(|&&byte| byte != 0).count();
        Self::seen(
            set == 0 || set == bytes.len(),
            (set != 0) == self.set_means_keep,
        )
    }

    fn seen(same: bool, kept: bool) -> Seen {
        match (same, kept) {
            (false, _) => Seen::Part,
            (true, true) => Seen::Everything,
            (true, false) => Seen::Nothing,
        }
    }
}
