//! Which keys a query sees: its sequence and the positions give it one range of keys, masks choose among those.

use crate::masks::Chosen;
use crate::modifiers::MaskMod;
use crate::scores::Job;
use attn_core::{AttentionShape, Causal, Host, Result, Span, Visible, Window};
use core::ops::Range;

/// How much of a tile is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    Part,
    Everything,
}

impl Seen {
    pub(crate) const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::Nothing) => Self::Nothing,
            (Self::Everything, Self::Everything) => Self::Everything,
            _ => Self::Part,
        }
    }
}

/// Which keys each query sees.
pub(crate) struct Visibility<'a> {
    causal: Option<Causal>,
    window: Option<Window>,
    /// How many of its last tokens a ring has.
    held: Option<usize>,
    chosen: Chosen<'a>,
}

impl<'a> Visibility<'a> {
    pub(crate) fn new(
        visible: &Visible<'a, Host>,
        held: Option<usize>,
        shape: &AttentionShape,
        weights: &attn_core::Dims,
        modifier: Option<&'a dyn MaskMod>,
    ) -> Result<Self> {
        Ok(Self {
            causal: visible.causal,
            window: visible.window,
            held,
            chosen: Chosen::new(visible, shape, weights, modifier)?,
        })
    }

    /// The keys among which masks choose for a query. Both ends grow with the query; where the end is not beyond the start there are none.
    #[inline(always)]
    fn range(&self, span: &Span, query: usize) -> Range<usize> {
        let (queries, keys) = (span.queries.len(), span.keys.len());
        let query = query - span.queries.start;
        let mut range = 0..keys;
        if let Some(causal) = self.causal {
            range.end = causal.visible(query, queries, keys);
        }
        if let Some(window) = self.window {
            let window = window.visible(query, queries, keys);
            range = range.start.max(window.start)..range.end.min(window.end);
        }
        if let Some(held) = self.held {
            range.start = range.start.max(keys.saturating_sub(held));
        }
        range.start + span.keys.start..range.end + span.keys.start
    }

    /// The first of a sequence's keys that there still is.
    pub(crate) fn first_held(&self, span: &Span) -> usize {
        let gone = self
            .held
            .map_or(0, |held| span.keys.len().saturating_sub(held));
        span.keys.start + gone
    }

    /// From the first key that a query of the job may see to the last.
    pub(crate) fn reach(&self, job: &Job) -> Range<usize> {
        let first = self.range(&job.span, job.queries.start);
        let last = self.range(&job.span, job.queries.end - 1);
        first.start..last.end
    }

    /// Whether masks choose among the keys of a range.
    pub(crate) const fn has_masks(&self) -> bool {
        self.chosen.is_some()
    }

    /// How much of the tile of a job's queries and `keys` is seen.
    pub(crate) fn tile(&self, job: &Job, keys: Range<usize>) -> Seen {
        let first = self.range(&job.span, job.queries.start);
        let last = self.range(&job.span, job.queries.end - 1);
        let by_position = if last.end <= keys.start || first.start >= keys.end {
            Seen::Nothing
        } else if last.start <= keys.start && first.end >= keys.end {
            Seen::Everything
        } else {
            Seen::Part
        };
        match self.chosen.is_some() && by_position != Seen::Nothing {
            true => by_position.and(self.chosen.tile(job, keys)),
            false => by_position,
        }
    }

    /// Whether one of a job's queries sees no key at all.
    pub(crate) fn any_blind(&self, job: &Job) -> bool {
        let is_blind = |query| self.range(&job.span, query).is_empty();
        // Both ends of a range move with the query, so the emptiest one is that of the first or the last.
        if is_blind(job.queries.start) || is_blind(job.queries.end - 1) {
            return true;
        }
        self.chosen.is_some()
            && job.queries.clone().any(|query| {
                let mut range = self.range(&job.span, query);
                !range.any(|key| self.chosen.sees(job, query, key))
            })
    }

    /// Where among `keys` the range of a query begins and ends.
    #[inline(always)]
    pub(crate) fn range_in(&self, job: &Job, query: usize, keys: &Range<usize>) -> (usize, usize) {
        let range = self.range(&job.span, query);
        let start = range.start.clamp(keys.start, keys.end);
        let end = range.end.clamp(start, keys.end);
        (start - keys.start, end - keys.start)
    }

    /// Calls `hide(i)` for each key `keys.start + i` that `query` does not see, for some of them more than once.
    #[inline(always)]
    pub(crate) fn for_each_hidden(
        &self,
        job: &Job,
        query: usize,
        keys: Range<usize>,
        mut hide: impl FnMut(usize),
    ) {
        let range = self.range(&job.span, query);
        let start = range.start.clamp(keys.start, keys.end);
        let end = range.end.clamp(start, keys.end);
        for key in keys.start..start {
            hide(key - keys.start);
        }
        if self.chosen.is_some() {
            (self.chosen).for_each_hidden(job, query, start..end, |key| hide(key - keys.start));
        }
        for key in end..keys.end {
            hide(key - keys.start);
        }
    }
}
