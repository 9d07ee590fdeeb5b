//! Numbers that are not finite where a mask hides them. In a tile of which a part is seen they would reach the sums, since 0 times them is
//! NaN; where a query that sees nothing gets zero, they must not. So 0 stands for them in the product of the tile, and what is left are
//! the few that a query does see: such a term makes a sum what it is wherever it is added.

use crate::element::Stored;
use crate::scores::{Job, KEYS, QUERIES, Scoring};
use crate::simd::Lane;
use crate::tokens::Head;
use crate::visibility::Seen;
use attn_core::FullyMasked;
use core::ops::Range;

/// Whether one of these numbers is not finite.
#[inline(always)]
pub(crate) fn any_not_finite<A: Lane>(rows: &[A], stride: usize, depth: usize) -> bool {
    rows.chunks(stride.max(1)).any(|row| {
        let row = &row[..depth.min(row.len())];
        row.iter()
            .fold(false, |any, &x| any | (x - x != A::default()))
    })
}

/// Puts 0 for numbers that are not finite.
pub(crate) fn clean<A: Lane>(numbers: &mut [A]) {
    for x in numbers.iter_mut().filter(|x| !is_finite(**x)) {
        *x = A::default();
    }
}

#[inline(always)]
fn is_finite<A: Lane>(x: A) -> bool {
    x > A::NEG_INFINITY && x < A::INFINITY
}

/// Where the weight of a query and a key lies, and where a query's sum over a column.
pub(crate) struct Places<W, O> {
    pub(crate) weight: W,
    pub(crate) sum: O,
}

impl<T: Stored> Scoring<'_, T> {
    /// Whether what a mask hides in a tile must be kept out of sums.
    pub(crate) fn guards(&self, seen: Seen) -> bool {
        seen != Seen::Everything && self.fully_masked == FullyMasked::Zero
    }

    /// Adds the terms of those rows' numbers that are not finite to the sums of the queries that see them.
    pub(crate) fn add_not_finite(
        &self,
        job: &Job,
        keys: Range<usize>,
        rows: &Head<'_, T>,
        places: &Places<impl Fn(usize, usize) -> usize, impl Fn(usize, usize) -> usize>,
        weights: &[T::Acc],
        sums: &mut [T::Acc],
    ) {
        let mut hidden = [[false; KEYS]; QUERIES];
        for (query, hidden) in job.queries.clone().zip(&mut hidden) {
            self.visible
                .for_each_hidden(job, query, keys.clone(), |n| hidden[n] = true);
        }
        for (n, key) in keys.enumerate() {
            for column in 0..rows.depth() {
                let x = rows.number(key, column);
                if is_finite(x) {
                    continue;
                }
                for i in (0..job.queries.len()).filter(|&i| !hidden[i][n]) {
                    sums[(places.sum)(i, column)] += weights[(places.weight)(i, n)] * x;
                }
            }
        }
    }
}
