//! The passes of a call, and what a job of each looks at.
//!
//! A pass makes weights and gradients of scores again for what it adds up. Its jobs are cut so that no two add to the same element.

use super::Call;
use crate::element::Stored;
use crate::scores::{KEYS, QUERIES};
use core::ops::Range;

/// Which gradients a pass is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Queries, keys and values. A job is a head of keys of a batch entry.
    Inputs,
    /// The bias. A job is a part of its elements.
    Bias,
    /// The table of relative positions. A job is a head.
    Relative,
}

/// What one job looks at.
pub(super) struct Part {
    pub(super) pass: Pass,
    /// The first head of a batch entry, and how many there are; [`Call::matrix_of`] names the others.
    first: usize,
    pub(super) matrices: usize,
    /// Only this tile of queries.
    of_queries: Option<usize>,
    /// Only this tile of keys.
    of_keys: Option<usize>,
}

impl Part {
    pub(super) fn has_queries(&self, queries: &Range<usize>) -> bool {
        self.of_queries
            .is_none_or(|tile| queries.start / QUERIES == tile)
    }

    pub(super) fn has_keys(&self, keys: &Range<usize>) -> bool {
        self.of_keys.is_none_or(|tile| keys.start / KEYS == tile)
    }

    /// The keys among which those of the job are.
    pub(super) fn keys(&self, key_length: usize) -> Range<usize> {
        match self.of_keys {
            Some(tile) => tile * KEYS..key_length.min((tile + 1) * KEYS),
            None => 0..key_length,
        }
    }
}

impl<T: Stored> Call<'_, T> {
    /// How many jobs a pass has.
    pub(crate) fn jobs(&self, pass: Pass) -> usize {
        let shape = &self.scoring.shape;
        match pass {
            Pass::Inputs => shape.batch * shape.key_heads,
            Pass::Bias => self.bias_matrices(true) * self.bias_units(),
            Pass::Relative => shape.num_heads,
        }
    }

    /// What a job of a pass looks at.
    pub(super) fn part(&self, pass: Pass, number: usize) -> Part {
        let shape = &self.scoring.shape;
        let whole = |first, matrices| Part {
            pass,
            first,
            matrices,
            of_queries: None,
            of_keys: None,
        };
        match pass {
            Pass::Inputs => {
                let group = shape.num_heads / shape.key_heads;
                whole(number * group, group)
            }
            Pass::Relative => whole(number, shape.batch),
            Pass::Bias => {
                let units = self.bias_units();
                let unit = (units > 1).then_some(number % units);
                let by_key = self.bias_strides()[1] != 0;
                Part {
                    of_queries: unit.filter(|_| !by_key),
                    of_keys: unit.filter(|_| by_key),
                    ..whole(
                        self.bias_matrix(true, number / units),
                        self.bias_matrices(false),
                    )
                }
            }
        }
    }

    /// The `n`-th head of a batch entry of a job.
    pub(super) fn matrix_of(&self, part: &Part, n: usize) -> usize {
        part.first
            + match part.pass {
                Pass::Inputs => n,
                Pass::Relative => n * self.scoring.shape.num_heads,
                Pass::Bias => self.bias_matrix(false, n),
            }
    }
}
