//! What softmax leaves of a row, beside the oracle.

use super::Maths;
use super::oracle::Softmax;
use super::plain;
use super::rows::Line;
use super::verdict::{Comparison, Failure, Place};
use crate::dtype::Element;

/// The largest scores and the sums of exponentials.
#[derive(Default)]
pub(super) struct StatisticsOf {
    may_sum_nothing: bool,
    largest: Comparison,
    total: Comparison,
}

impl StatisticsOf {
    /// Of a forward pass for gradients. A row that sees nothing and gets zero has none, so its sum is left to the backend.
    pub(super) fn beside_gradients() -> Self {
        Self {
            may_sum_nothing: true,
            ..Self::default()
        }
    }

    /// The largest score, and the sum of exponentials as it would be beside the true largest score. What a row without a finite score
    /// has is the backend's affair if the query sees a key, else it is fixed.
    pub(super) fn push<T: Element>(
        &mut self,
        place: Place,
        got: [f64; 2],
        truth: &Softmax,
        plain: [f64; 2],
        line: &Line,
        maths: &Maths,
    ) {
        if let Some([largest, total]) = truth.statistics {
            let beside = |[m, l]: [f64; 2]| l * (maths.exp)(m - largest);
            self.largest.push(place, got[0], largest, plain[0]);
            self.total.push(place, beside(got), total, beside(plain));
        } else if line.is_blind() {
            let has_mean = !line.is_zero_if_blind() && !line.keys.is_empty();
            let (largest, total) = match has_mean {
                true => (plain::lowest::<T::Acc>(), line.keys.len() as f64),
                false => (f64::NEG_INFINITY, 0.0),
            };
            self.largest.push_exact(place, got[0], largest);
            // The exponential of an infinite sink is counted or not.
            if line.sink.is_none() && (has_mean || !self.may_sum_nothing) {
                self.total.push_exact(place, got[1], total);
            }
        }
    }

    pub(super) fn is_near<T: Element>(&self) -> bool {
        self.largest.is_near::<T>() && self.total.is_near::<T>()
    }

    /// From here on only plain arithmetic is looked at.
    pub(super) fn of_plain(&mut self) {
        self.largest.is_of_plain = true;
        self.total.is_of_plain = true;
    }

    pub(super) fn verdict<T: Element>(&self, case: &str) -> Result<f64, Failure> {
        let largest = (self.largest).verdict::<T>(case, "the largest score of a row")?;
        let total = (self.total).verdict::<T>(case, "the sum of exponentials of a row")?;
        Ok(largest.max(total))
    }
}
