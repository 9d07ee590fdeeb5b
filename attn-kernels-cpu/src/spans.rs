//! Where the sequences of a batch entry begin and end.

use attn_core::{AttentionShape, Host, Sequences};
use core::ops::Range;

/// One sequence of a batch entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) queries: Range<usize>,
    pub(crate) keys: Range<usize>,
}

/// The sequences of a call, their lengths checked.
pub(crate) struct Spans<'a> {
    sequences: Option<Sequences<'a, Host>>,
    query_length: usize,
    key_length: usize,
}

impl<'a> Spans<'a> {
    pub(crate) const fn new(
        sequences: Option<Sequences<'a, Host>>,
        shape: &AttentionShape,
    ) -> Self {
        Self {
            sequences,
            query_length: shape.query_length,
            key_length: shape.key_length,
        }
    }

    /// How many of `queries`, from the first on, belong together: to one sequence, or to none.
    pub(crate) fn first_of(&self, batch: usize, queries: Range<usize>) -> (usize, Option<Span>) {
        let span = match &self.sequences {
            None => Some(Span {
                queries: 0..self.query_length,
                keys: 0..self.key_length,
            }),
            Some(Sequences::Padded {
                key_lengths,
                query_lengths,
            }) => {
                let length = |lengths: &[i32]| lengths.get(batch).map_or(0, |&n| n as usize);
                let end = (query_lengths.as_ref())
                    .map_or(self.query_length, |lengths| length(lengths.buf()));
                (queries.start < end).then(|| Span {
                    queries: 0..end,
                    keys: 0..length(key_lengths.buf()),
                })
            }
            Some(Sequences::Packed {
                query_starts,
                key_starts,
            }) => {
                let (query_starts, key_starts) = (query_starts.buf(), key_starts.buf());
                // The last sequence that begins at this query or before: those that begin at the same one have no queries.
                let next = query_starts.partition_point(|&start| start as usize <= queries.start);
                let between = |starts: &[i32]| {
                    let this = *starts.get(next.checked_sub(1)?)? as usize;
                    Some(this..*starts.get(next)? as usize)
                };
                match (between(query_starts), between(key_starts)) {
                    (Some(queries), Some(keys)) => Some(Span { queries, keys }),
                    _ => {
                        let begins = query_starts.get(next).map(|&start| start as usize);
                        let end = begins.map_or(queries.end, |start| start.min(queries.end));
                        return (end - queries.start, None);
                    }
                }
            }
        };
        let end = span.as_ref().map_or(queries.end, |span| span.queries.end);
        (end.min(queries.end) - queries.start, span)
    }
}
