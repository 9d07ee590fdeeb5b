//! Numbers that are not finite where a mask hides them. In a tile of which a part is seen they would reach the sums, since 0 times them is
//! NaN; where a query that sees nothing gets zero, they must not. So 0 stands for them in the product of the tile, and what is left are
//! the few that a query does see: such a term makes a sum what it is wherever it is added.

use crate::element::Stored;
use crate::scores::{Job, KEYS, QUERIES, Scoring, lane_index};
use crate::simd::{Lane, Simd};
use crate::tokens::Head;
use crate::visibility::Seen;
use attn_core::FullyMasked;
use core::ops::Range;

/// Whether one of the numbers of some rows is not finite.
#[inline(always)]
pub(crate) fn any_not_finite<S: Simd, A: Lane>(
    simd: S,
    rows: &[A],
    stride: usize,
    depth: usize,
) -> bool {
    simd.vectorize(
        #[inline(always)]
        || {
            rows.chunks(stride.max(1)).any(|row| {
                let row = &row[..depth.min(row.len())];
                row.iter().fold(false, |any, &x| any | !is_finite(x))
            })
        },
    )
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

/// Where the weights and the sums of a job's queries lie: strips of `width` lanes, the first query in lane `first`, `columns` sums each.
pub(crate) struct Places {
    pub(crate) width: usize,
    pub(crate) first: usize,
    pub(crate) columns: usize,
}

impl Places {
    const fn sum(&self, i: usize, column: usize) -> usize {
        i / self.width * self.width * self.columns + column * self.width + i % self.width
    }
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
        rows: &Head<'_, '_, T>,
        places: &Places,
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
                    let row = places.first + i;
                    sums[places.sum(row, column)] += weights[lane_index(places.width, row, n)] * x;
                }
            }
        }
    }
}
