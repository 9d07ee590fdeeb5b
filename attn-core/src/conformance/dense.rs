//! Dense layers beside the oracle.

pub(super) mod backward;

use super::data::Numbers;
use super::plain::{self, round};
use super::properties::OnHost;
use super::verdict::{Comparison, Failure, Outcome, Place, Report};
use super::{draws, oracle};
use crate::dtype::Element;
use crate::error::Result;
use crate::projection::{Projection, RowOrder};
use crate::view::{HostView, HostViewMut};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Rows, features, outputs.
const SIZES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 768, 33],
    [2, 65, 257],
    [3, 7, 5],
    [5, 16, 16],
    [6, 33, 31],
    [17, 3, 64],
    [48, 64, 48],
    [49, 130, 65],
    [70, 256, 96],
    [300, 40, 40],
    [0, 4, 4],
    [4, 0, 4],
    [4, 4, 0],
];

/// Dense layers of all sizes, in both row orders, with and without bias.
pub(super) fn project<T: Element, B: OnHost<T>>(backend: &B) -> Result<Report, Failure> {
    let mut report = Report::default();
    for [rows, features, outputs] in SIZES {
        for row_order in [RowOrder::Any, RowOrder::Fixed] {
            for with_bias in [true, false] {
                let case = Case {
                    name: format!("project {rows} {features} {outputs} {row_order:?} {with_bias}"),
                    rows,
                    features,
                    outputs,
                    row_order,
                    with_bias,
                };
                report.add(Outcome::Right(case.share::<T, B>(backend)?));
            }
        }
    }
    Ok(report)
}

struct Case {
    name: String,
    rows: usize,
    features: usize,
    outputs: usize,
    row_order: RowOrder,
    with_bias: bool,
}

impl Case {
    /// The largest error as a part of what is allowed.
    fn share<T: Element, B: OnHost<T>>(&self, backend: &B) -> Result<f64, Failure> {
        let work = self.rows * self.features * self.outputs;
        let mut comparison = Comparison::default();
        let mut draw = 0;
        loop {
            self.compare::<T, B>(backend, draw, &mut comparison)
                .map_err(|error| Failure::new(&*self.name, format!("{error}")))?;
            draw += 1;
            if !draws::another(draw, comparison.rows, draws::ROWS, work) {
                return comparison.verdict::<T>(&self.name, "out");
            }
        }
    }

    fn compare<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        draw: usize,
        comparison: &mut Comparison,
    ) -> Result<()> {
        let (rows, features, outputs) = (self.rows, self.features, self.outputs);
        let mut numbers = Numbers::new(&format!("{} {draw}", self.name));
        let input: Vec<T> = numbers.elements(rows * features, 1.0);
        let kernel: Vec<T> = numbers.elements(features * outputs, 1.0);
        let bias: Vec<T> = numbers.elements(outputs, 1.0);
        let bias_view = HostView::new(&bias, &[outputs])?;
        let call = Projection {
            input: HostView::new(&input, &[rows, features])?,
            kernel: HostView::new(&kernel, &[features, outputs])?.into(),
            bias: self.with_bias.then_some(bias_view),
            row_order: self.row_order,
        };
        let mut out = vec![T::from_f64(f64::NAN); rows * outputs];
        let scratch = backend.project_scratch(rows, features, outputs);
        backend.project(
            &call,
            HostViewMut::new(&mut out, &[rows, outputs])?,
            &mut vec![T::Acc::from_f64(f64::NAN); scratch],
        )?;
        let widen = |x: &T| x.to_f64();
        for row in draws::rows(rows, &mut numbers) {
            comparison.rows += 1;
            let left: Vec<f64> = input[row * features..][..features]
                .iter()
                .map(widen)
                .collect();
            for column in 0..outputs {
                let right: Vec<f64> = (0..features)
                    .map(|f| kernel[f * outputs + column].to_f64())
                    .collect();
                let added = match self.with_bias {
                    true => bias[column].to_f64(),
                    false => 0.0,
                };
                let exact = oracle::affine(&left, &right, added);
                let plainly = round::<T>(plain::dot::<T>(&left, &right) + added);
                let place = Place {
                    draw,
                    matrix: 0,
                    row,
                    column,
                };
                comparison.push(place, out[row * outputs + column].to_f64(), exact, plainly);
            }
        }
        Ok(())
    }
}
