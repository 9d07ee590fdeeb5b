//! Tokens on their way into a cache.

use super::quantize::Row;
use attn_core::{Element, Error, HostView, Layout, Result, error::Disagreement};

/// Keys and values, `[batch..., tokens, key_heads, depth]`, and how many tokens of each batch entry are meant.
#[derive(Debug)]
pub(crate) struct Incoming<'a, T: Element> {
    pub(crate) key: HostView<'a, T>,
    pub(crate) value: HostView<'a, T>,
    pub(crate) counts: Counts<'a>,
    /// The first token that is meant.
    pub(crate) first: usize,
    /// How many are meant at most.
    pub(crate) most: usize,
}

/// How many tokens each sequence gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Counts<'a> {
    /// All of its batch entry.
    All,
    /// The first so many of its batch entry.
    Each(&'a [usize]),
    /// The only batch entry is this sequence's.
    One(usize),
}

impl Counts<'_> {
    /// Of `tokens` tokens of a batch entry, how many go to a sequence.
    pub(crate) fn of(&self, sequence: usize, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::Each(counts) => counts[sequence],
            Self::One(one) => match *one == sequence {
                true => tokens,
                false => 0,
            },
        }
    }

    /// The batch entry of a sequence.
    const fn entry(&self, sequence: usize) -> usize {
        match self {
            Self::All | Self::Each(_) => sequence,
            Self::One(_) => 0,
        }
    }

    /// Whether there is a count for each sequence and none is beyond `tokens`.
    pub(crate) fn check(&self, sequences: usize, tokens: usize) -> Result<()> {
        let Self::Each(counts) = self else {
            return Ok(());
        };
        if counts.len() != sequences {
            return Err(Error::Buffer {
                argument: "counts",
                got: counts.len(),
                wanted: sequences,
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

impl<'a, T: Element> Incoming<'a, T> {
    /// All tokens.
    pub(crate) const fn new(
        key: HostView<'a, T>,
        value: HostView<'a, T>,
        counts: Counts<'a>,
    ) -> Self {
        Self {
            key,
            value,
            counts,
            first: 0,
            most: usize::MAX,
        }
    }

    /// Tokens of a batch entry.
    fn tokens(&self) -> usize {
        let shape = self.key.shape();
        shape[shape.rank() - 3]
    }

    /// How many tokens go to a sequence.
    pub(super) fn count(&self, sequence: usize) -> usize {
        let all = self.counts.of(sequence, self.tokens());
        all.saturating_sub(self.first).min(self.most)
    }

    /// Whether keys and values fit each other and a cache of these sizes.
    pub(super) fn check(
        &self,
        sequences: usize,
        key_heads: usize,
        [depth, value_depth]: [usize; 2],
    ) -> Result<()> {
        let batch = match self.counts {
            Counts::One(_) => 1,
            Counts::All | Counts::Each(_) => sequences,
        };
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
        self.counts.check(sequences, tokens)
    }

    /// One head of the key of a token, counted from the first that is meant.
    pub(super) fn key(&self, sequence: usize, token: usize, head: usize) -> Row<'a, T> {
        row(
            &self.key,
            self.counts.entry(sequence),
            self.first + token,
            head,
        )
    }

    /// One head of the value of a token.
    pub(super) fn value(&self, sequence: usize, token: usize, head: usize) -> Row<'a, T> {
        row(
            &self.value,
            self.counts.entry(sequence),
            self.first + token,
            head,
        )
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
