//! The gradient of a bias: the gradients of the scores, summed over the axes that the bias was broadcast along.

use super::super::arrays::Placed;
use super::super::oracle::Pair;
use super::super::oracle::backward::ScoreRow as TrueRow;
use super::super::plain::backward::ScoreRow as PlainRow;
use super::super::plain::round;
use super::super::verdict::{Comparison, Place};
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::{Dims, Layout};
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;

/// Sums that are true and sums of plain arithmetic, row-major as the bias.
pub(super) struct BiasSums {
    /// Where the sum of each score lies.
    layout: Layout,
    sums: Vec<Sum>,
}

/// One element of the gradient.
#[derive(Clone, Copy, Default)]
struct Sum {
    gradient: (Pair, f64),
    /// What the gradient is the difference of. The two are the same where the bias was broadcast along the keys.
    parts: [(Pair, f64); 2],
}

impl BiasSums {
    pub(super) fn new(bias: &Dims, weights: &Dims) -> Result<Self> {
        Ok(Self {
            layout: Layout::contiguous(*bias)?.broadcast_to("d_bias", weights)?,
            sums: vec![Sum::default(); bias.elements()?],
        })
    }

    /// Adds the rows of a matrix.
    pub(super) fn add<T: Element>(&mut self, matrix: usize, truth: &[TrueRow], plain: &[PlainRow]) {
        let axes = self.layout.shape().rank() - 1;
        let (queries, stride) = (self.layout.shape()[axes - 1], self.layout.strides()[axes]);
        let add = |(true_sum, plain_sum): &mut (Pair, f64), truth: f64, plain: f64| {
            *true_sum = true_sum.add(truth.into());
            *plain_sum = round::<T::Acc>(*plain_sum + plain);
        };
        for (query, (truth, plain)) in zip(truth, plain).enumerate() {
            let start = self.layout.base(axes, matrix * queries + query);
            for key in 0..truth.d_scores.len() {
                let sum = &mut self.sums[start + key * stride];
                add(&mut sum.gradient, truth.d_scores[key], plain.d_scores[key]);
                for (i, part) in sum.parts.iter_mut().enumerate() {
                    add(part, truth.parts[key][i], plain.parts[key][i]);
                }
            }
        }
    }

    pub(super) fn compare<A: Element>(
        self,
        got: &Placed<A>,
        draw: usize,
        comparison: &mut Comparison,
    ) {
        let rank = got.layout.shape().rank();
        for (column, sum) in self.sums.iter().enumerate() {
            let place = Place {
                draw,
                matrix: 0,
                row: 0,
                column,
            };
            let got = got.buffer[got.layout.base(rank, column)].to_f64();
            let (truth, plain) = sum.gradient;
            comparison.push(place, got, truth.value(), plain);
            for (truth, plain) in sum.parts {
                comparison.part(truth.value(), plain);
            }
        }
    }
}
