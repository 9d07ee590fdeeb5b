//! A user's own changes of scores and of what a query sees (`score_mod` and `mask_mod` of PyTorch's flex attention).
//!
//! A kernel calls a modifier once for a row of a tile, and the modifier's own loop calls the user's function for each key. So the function is
//! inlined where it is used, and kernels are compiled once, not once for each user's function.

use crate::visibility::Seen;
use attn_core::Element;
use core::ops::Range;

/// A query of a head, and keys that follow each other. All are places in the arrays, whatever sequences there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The batch entry, counted over all batch axes.
    pub batch: usize,
    /// The head of queries.
    pub head: usize,
    /// The query.
    pub query: usize,
    /// The keys.
    pub keys: Range<usize>,
}

/// One score: which query and key it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The batch entry, counted over all batch axes.
    pub batch: usize,
    /// The head of queries.
    pub head: usize,
    /// The query.
    pub query: usize,
    /// The key.
    pub key: usize,
}

impl Row {
    #[inline(always)]
    fn at(&self) -> impl Iterator<Item = At> + '_ {
        self.keys.clone().map(|key| At {
            batch: self.batch,
            head: self.head,
            query: self.query,
            key,
        })
    }
}

/// Changes scores after everything else that makes them, before masks. Every `Fn(At, A) -> A` is one.
pub trait ScoreMod<A: Element>: Sync {
    /// Changes the scores of a row, one for each key, `stride` elements apart.
    fn change(&self, row: &Row, scores: &mut [A], stride: usize);
}

impl<A: Element, F: Fn(At, A) -> A + Sync> ScoreMod<A> for F {
    #[inline]
    fn change(&self, row: &Row, scores: &mut [A], stride: usize) {
        let scores = scores.iter_mut().step_by(stride.max(1));
        for (at, score) in row.at().zip(scores) {
            *score = self(at, *score);
        }
    }
}

/// Says which keys a query sees, of those that everything else lets it see. Every `Fn(At) -> bool` is one.
pub trait MaskMod: Sync {
    /// Sets `sees` for each key of a row.
    fn sees(&self, row: &Row, sees: &mut [bool]);

    /// Whether some queries of a head see all of some keys or none of them, if that is known: then nothing is asked row by row, and
    /// what nobody sees is not computed.
    fn tile(
        &self,
        _batch: usize,
        _head: usize,
        _queries: Range<usize>,
        _keys: Range<usize>,
    ) -> Option<bool> {
        None
    }
}

impl<F: Fn(At) -> bool + Sync> MaskMod for F {
    #[inline]
    fn sees(&self, row: &Row, sees: &mut [bool]) {
        for (at, sees) in row.at().zip(sees) {
            *sees = self(at);
        }
    }
}

/// A user's modifiers of one call.
#[derive(Clone, Copy)]
pub struct Modifiers<'a, A: Element> {
    /// Of the scores.
    pub score: Option<&'a dyn ScoreMod<A>>,
    /// Of what a query sees.
    pub mask: Option<&'a dyn MaskMod>,
}

impl<A: Element> Default for Modifiers<'_, A> {
    fn default() -> Self {
        Self {
            score: None,
            mask: None,
        }
    }
}

impl<A: Element> core::fmt::Debug for Modifiers<'_, A> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Modifiers")
            .field("score", &self.score.is_some())
            .field("mask", &self.mask.is_some())
            .finish()
    }
}

/// How much of a tile a modifier lets be seen.
pub(crate) fn seen(tile: Option<bool>) -> Seen {
    match tile {
        None => Seen::Part,
        Some(true) => Seen::Everything,
        Some(false) => Seen::Nothing,
    }
}
