//! What softmax leaves of a row.

use super::super::matrix::Matrix;
use super::super::oracle::backward::Gradients as Truth;
use super::super::plain;
use super::super::plain::backward::Gradients as Plain;
use super::super::properties::Broken;
use super::super::verdict::Place;
use super::{Computed, Exam};
use crate::dtype::Element;
use crate::mask::FullyMasked;
use alloc::format;

impl Exam<'_> {
    /// The largest score, and the sum of exponentials as it would be beside the true largest score. What a row without a finite
    /// score has is the backend's affair, but for a fully masked row that is the mean of all values.
    pub(super) fn compare_statistics<T: Element>(
        &mut self,
        matrix: &Matrix,
        truth: &Truth<'_>,
        plain: &Plain<'_, T>,
        computed: &Computed<T>,
        place: Place,
    ) -> Result<(), Broken> {
        let layout = &computed.statistics.layout;
        let axes = layout.shape().rank() - 1;
        for (row, softmax) in truth.softmax.iter().enumerate() {
            let start = layout.base(axes, place.matrix * truth.softmax.len() + row);
            let got = [0, 1].map(|i| {
                let index = start + i * layout.strides()[axes];
                computed.statistics.buffer[index].to_f64()
            });
            let place = Place { row, ..place };
            match softmax.statistics {
                Some([largest, total]) => {
                    let beside = |[m, l]: [f64; 2]| l * (self.maths.exp)(m - largest);
                    let plain = plain.statistics[row];
                    let comparisons = &mut self.comparisons;
                    comparisons.largest.push(place, got[0], largest, plain[0]);
                    comparisons
                        .total
                        .push(place, beside(got), total, beside(plain));
                }
                None => check_blind::<T>(matrix, row, got)
                    .map_err(|Broken(what)| Broken(format!("statistics at {place}: {what}")))?,
            }
        }
        Ok(())
    }
}

fn check_blind<T: Element>(matrix: &Matrix, row: usize, got: [f64; 2]) -> Result<(), Broken> {
    let seen = &matrix.seen[row];
    let mean = matrix.fully_masked == FullyMasked::MeanOfValues;
    let wanted = [plain::lowest::<T::Acc>(), seen.len() as f64];
    if !mean || seen.is_empty() || seen.contains(&true) || got == wanted {
        return Ok(());
    }
    Err(Broken(format!(
        "a fully masked row has {got:?}, wanted {wanted:?}"
    )))
}
