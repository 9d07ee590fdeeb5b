//! A job's queries, cut where sequences begin and end.

use crate::scores::QUERIES;
use attn_core::{AttentionShape, Host, Sequences, Span};
use core::ops::Range;

/// The sequences of a call; their contents are checked.
pub(crate) struct Spans<'a> {
    sequences: Option<Sequences<'a, Host>>,
    shape: AttentionShape,
}

impl<'a> Spans<'a> {
    pub(crate) const fn new(sequences: Option<Sequences<'a, Host>>, shape: AttentionShape) -> Self {
        Self { sequences, shape }
    }

    pub(crate) const fn has_sequences(&self) -> bool {
        self.sequences.is_some()
    }

    /// All queries of a batch entry in tiles cut from the first query of each sequence, and the sequence that each belongs to.
    pub(crate) fn tiles(
        &self,
        batch: usize,
    ) -> impl Iterator<Item = (Range<usize>, Option<Span>)> + '_ {
        let mut rest = 0..self.shape.query_length;
        core::iter::from_fn(move || {
            let next = rest.start..rest.end.min(rest.start.saturating_add(QUERIES));
            let (queries, span) = (!next.is_empty()).then(|| self.first(batch, next))?;
            rest.start = queries.end;
            Some((queries, span))
        })
    }

    /// The first of `queries`, at least one, that belong to one sequence, or to none.
    pub(crate) fn first(
        &self,
        batch: usize,
        queries: Range<usize>,
    ) -> (Range<usize>, Option<Span>) {
        let Some(sequences) = &self.sequences else {
            return (queries, Some(Span::whole(&self.shape)));
        };
        let span = sequences.span_of(&self.shape, batch, queries.start);
        let end = match (&span, sequences) {
            (Some(span), _) => span.queries.end,
            (None, Sequences::Padded { .. }) => queries.end,
            (None, Sequences::Packed { query_starts, .. }) => {
                let starts = query_starts.buf().iter().map(|&start| start as usize);
                let mut later = starts.filter(|&start| start > queries.start);
                later.next().unwrap_or(queries.end)
            }
        };
        (queries.start..end.min(queries.end), span)
    }
}
