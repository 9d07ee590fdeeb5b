//! Gradients of what is added to scores: the gradients of the scores, summed over all that share an element.

use super::super::matrix::ScoreRow;
use super::super::oracle::Pair;
use super::super::plain::round;
use super::super::verdict::{Comparison, Place};
use crate::dtype::Element;
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;

/// Sums that are true and sums of plain arithmetic.
pub(super) struct ScoreSums(Vec<Sum>);

/// One element of the gradient.
#[derive(Clone, Copy, Default)]
struct Sum {
    gradient: (Pair, f64),
    /// What the gradient is the difference of. The two are the same where an element is shared by all keys of a query.
    parts: [(Pair, f64); 2],
}

impl ScoreSums {
    pub(super) fn new(elements: usize) -> Self {
        Self(vec![Sum::default(); elements])
    }

    /// Adds the rows of a matrix; `element` says which one a query and a key add to.
    pub(super) fn add<T: Element>(
        &mut self,
        truth: &[ScoreRow],
        plain: &[ScoreRow],
        element: impl Fn(usize, usize) -> Option<usize>,
    ) {
        let add = |(true_sum, plain_sum): &mut (Pair, f64), truth: f64, plain: f64| {
            *true_sum = true_sum.add(truth.into());
            *plain_sum = round::<T::Acc>(*plain_sum + plain);
        };
        for (query, (truth, plain)) in zip(truth, plain).enumerate() {
            for key in 0..truth.d_scores.len() {
                let Some(sum) = element(query, key).map(|element| &mut self.0[element]) else {
                    continue;
                };
                add(&mut sum.gradient, truth.d_scores[key], plain.d_scores[key]);
                for (i, part) in sum.parts.iter_mut().enumerate() {
                    add(part, truth.parts[key][i], plain.parts[key][i]);
                }
            }
        }
    }

    /// `got` gives the backend's elements.
    pub(super) fn compare(
        self,
        got: impl Fn(usize) -> f64,
        draw: usize,
        comparison: &mut Comparison,
    ) {
        for (column, sum) in self.0.iter().enumerate() {
            let place = Place {
                draw,
                matrix: 0,
                row: 0,
                column,
            };
            let (truth, plain) = sum.gradient;
            comparison.push(place, got(column), truth.value(), plain);
            for (truth, plain) in sum.parts {
                comparison.part(truth.value(), plain);
            }
        }
    }
}
