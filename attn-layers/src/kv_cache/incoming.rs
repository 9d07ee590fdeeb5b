//! Tokens on their way into a cache.

use super::quantize::Row;
use attn_core::{Element, Error, HostView, Layout, Result, error::Disagreement};

/// The sequences of a call's batch entries, and how many tokens each gets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Targets<'a> {
    /// The sequence of each batch entry; of entry `s` it is `s` without them.
    pub(crate) sequences: Option<&'a [usize]>,
    /// How many tokens of each batch entry are meant; all without them.
    pub(crate) counts: Option<&'a [usize]>,
}

impl Targets<'_> {
    /// Batch entries of a call on a cache that has room for `all` sequences.
    pub(crate) fn entries(&self, all: usize) -> usize {
        self.sequences.map_or(all, <[usize]>::len)
    }

    /// The sequence of a batch entry.
    pub(super) fn sequence(&self, entry: usize) -> usize {
        self.sequences.map_or(entry, |sequences| sequences[entry])
    }

    /// Of `tokens` tokens of a batch entry, how many are meant.
    fn count(&self, entry: usize, tokens: usize) -> usize {
        self.counts.map_or(tokens, |counts| counts[entry])
    }

    /// The sequences of a call on a cache of `all`, each with how many of its `tokens` are meant.
    pub(crate) fn growth(
        self,
        all: usize,
        tokens: usize,
    ) -> impl Iterator<Item = (usize, usize)> + Clone {
        (0..self.entries(all)).map(move |entry| (self.sequence(entry), self.count(entry, tokens)))
    }

    /// Whether there is a count for each batch entry and none is beyond `tokens`.
    pub(super) fn check_counts(&self, all: usize, tokens: usize) -> Result<()> {
        let Some(counts) = self.counts else {
            return Ok(());
        };
        let (got, wanted) = (counts.len(), self.entries(all));
        if got != wanted {
            return Err(Error::Buffer {
                argument: "counts",
                got,
                wanted,
            });
        }
        let beyond = counts.iter().position(|&count| count > tokens);
        beyond.map_or(Ok(()), |index| {
            Err(Error::Entry {
                argument: "counts",
                index,
                got: i64::try_from(counts[index]).unwrap_or(i64::MAX),
                least: 0,
                most: i64::try_from(tokens).unwrap_or(i64::MAX),
            })
        })
    }
}

/// Keys and values, `[batch..., tokens, key_heads, depth]`, for some sequences.
#[derive(Debug)]
pub(crate) struct Incoming<'a, T: Element> {
    pub(crate) key: HostView<'a, T>,
    pub(crate) value: HostView<'a, T>,
    pub(crate) to: Targets<'a>,
    /// The first token that is meant.
    pub(crate) first: usize,
    /// How many are meant at most.
    pub(crate) most: usize,
}

impl<'a, T: Element> Incoming<'a, T> {
    /// All tokens.
    pub(crate) const fn new(key: HostView<'a, T>, value: HostView<'a, T>, to: Targets<'a>) -> Self {
        Self {
            key,
            value,
            to,
            first: 0,
            most: usize::MAX,
        }
    }

    /// Tokens of a batch entry.
    pub(super) fn tokens(&self) -> usize {
        let shape = self.key.shape();
        shape[shape.rank() - 3]
    }

    /// How many tokens of a batch entry are meant.
    pub(super) fn count(&self, entry: usize) -> usize {
        let all = self.to.count(entry, self.tokens());
        all.saturating_sub(self.first).min(self.most)
    }

    /// Whether keys and values fit each other and a cache of these sizes.
    pub(super) fn check(
        &self,
        sequences: usize,
        key_heads: usize,
        [depth, value_depth]: [usize; 2],
    ) -> Result<()> {
        let batch = self.to.entries(sequences);
        for (argument, view, depth) in [
            ("key", &self.key, depth),
            ("value", &self.value, value_depth),
        ] {
            let got = *view.shape();
            let rank = Error::Rank {
                argument,
                got: got.rank(),
                wanted: "[batch..., tokens, key_heads, depth]",
            };
            let axes = got.rank().checked_sub(3).ok_or(rank)?;
            let entries = attn_core::Dims::new(&got[..axes])?.elements()?;
            if entries != batch || got[axes + 1..] != [key_heads, depth] {
                let wanted = [batch, got[axes], key_heads, depth];
                return Err(Error::Shape {
                    argument,
                    got,
                    wanted: attn_core::Dims::new(&wanted)?,
                });
            }
        }
        let tokens = self.tokens();
        let value = self.value.shape();
        if value[value.rank() - 3] != tokens {
            return Err(Error::Mismatch {
                what: Disagreement::Lengths,
                left: *self.key.shape(),
                right: *value,
            });
        }
        self.to.check_counts(sequences, tokens)
    }

    /// One head of the key of a token, counted from the first that is meant.
    pub(super) fn key(&self, entry: usize, token: usize, head: usize) -> Row<'a, T> {
        row(&self.key, entry, self.first + token, head)
    }

    /// One head of the value of a token.
    pub(super) fn value(&self, entry: usize, token: usize, head: usize) -> Row<'a, T> {
        row(&self.value, entry, self.first + token, head)
    }
}

fn row<'a, T: Element>(
    view: &HostView<'a, T>,
    entry: usize,
    token: usize,
    head: usize,
) -> Row<'a, T> {
    let layout: &Layout = view.layout();
    let axes = layout.shape().rank() - 3;
    let strides = &layout.strides()[axes..];
    Row {
        buf: view.buf(),
        start: layout.base(axes, entry) + token * strides[0] + head * strides[1],
        stride: strides[2],
        depth: layout.shape()[axes + 2],
    }
}
