//! Gradients of attention beside the oracle.

use super::arrays::{self, Inputs, Placed};
use super::cases::Case;
use super::data::Numbers;
use super::matrix::Matrix;
use super::oracle::backward::Gradients as Truth;
use super::plain::backward::Gradients as Plain;
use super::properties::{Broken, OnHost};
use super::rows::Head;
use super::verdict::{Comparison, Failure, Place};
use super::{Maths, draws};
use crate::backward::AttentionBackward;
use crate::dtype::Element;
use crate::layout::Layout;
use crate::request::AttentionShape;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;

mod bias;
mod statistics;

use bias::BiasSums;

/// Runs a case and gives its largest error as a part of what is allowed.
pub(super) fn attend<T: Element, B: OnHost<T>>(
    backend: &B,
    case: &Case,
    maths: &Maths,
) -> Result<f64, Failure> {
    let matrices: usize = case.batch.iter().product::<usize>() * case.heads;
    let scores = matrices * case.query_length * case.key_length;
    let work = 2 * scores * (case.depth + case.value_depth);
    let mut exam = Exam {
        case,
        maths,
        draw: 0,
        comparisons: Comparisons::default(),
    };
    loop {
        exam.sit::<T, B>(backend)
            .map_err(|Broken(what)| Failure::new(&*case.name, what))?;
        exam.draw += 1;
        let rows = exam.comparisons.d_query.rows;
        if !draws::another(exam.draw, rows, draws::GRADIENT_ROWS, work) {
            break;
        }
    }
    exam.comparisons.verdict::<T>(&case.name)
}

/// What is looked at.
#[derive(Default)]
struct Comparisons {
    largest: Comparison,
    total: Comparison,
    d_query: Comparison,
    d_key: Comparison,
    d_value: Comparison,
    d_bias: Comparison,
}

impl Comparisons {
    fn verdict<T: Element>(&self, case: &str) -> Result<f64, Failure> {
        let outputs = [
            (&self.largest, "the largest score of a row"),
            (&self.total, "the sum of exponentials of a row"),
            (&self.d_query, "d_query"),
            (&self.d_key, "d_key"),
            (&self.d_value, "d_value"),
            (&self.d_bias, "d_bias"),
        ];
        outputs.iter().try_fold(0.0, |worst: f64, (output, name)| {
            Ok(worst.max(output.verdict::<T>(case, name)?))
        })
    }
}

/// A case and what came of it.
struct Exam<'a> {
    case: &'a Case,
    maths: &'a Maths,
    draw: usize,
    comparisons: Comparisons,
}

/// What a backend made of a draw. Elements that it left out are NaN.
struct Computed<T: Element> {
    statistics: Placed<T::Acc>,
    d_query: Placed<T>,
    d_key: Placed<T>,
    d_value: Placed<T>,
    d_bias: Option<Placed<T::Acc>>,
}

impl<T: Element> Computed<T> {
    /// Arrays of NaN, placed as the case's inputs are.
    fn new(case: &Case, statistics: &[usize]) -> crate::Result<Self> {
        let nan = || T::from_f64(f64::NAN);
        let acc_nan = || T::Acc::from_f64(f64::NAN);
        let array = |length, depth| {
            let size = [length, case.heads, depth];
            Placed::new(case.placement, &case.batch, size, nan)
        };
        let d_bias = |shape: &Vec<usize>| Placed::tensor(case.placement, shape, acc_nan(), acc_nan);
        Ok(Self {
            statistics: Placed::tensor(case.placement, statistics, acc_nan(), acc_nan)?,
            d_query: array(case.query_length, case.depth)?,
            d_key: array(case.key_length, case.depth)?,
            d_value: array(case.key_length, case.value_depth)?,
            d_bias: case
                .bias
                .as_ref()
                .map(|(shape, _)| d_bias(shape))
                .transpose()?,
        })
    }

    fn check_gaps(&self) -> Result<(), Broken> {
        let gaps = [
            ("statistics", self.statistics.written_outside()),
            ("d_query", self.d_query.written_outside()),
            ("d_key", self.d_key.written_outside()),
            ("d_value", self.d_value.written_outside()),
            (
                "d_bias",
                self.d_bias.as_ref().and_then(Placed::written_outside),
            ),
        ];
        for (name, gap) in gaps {
            if let Some(index) = gap {
                return Err(Broken(format!(
                    "element {index} of the buffer lies outside {name} and was written"
                )));
            }
        }
        Ok(())
    }
}

impl Exam<'_> {
    /// Draws inputs, lets the backend compute, compares.
    fn sit<T: Element, B: OnHost<T>>(&mut self, backend: &B) -> Result<(), Broken> {
        let inputs = Inputs::<T>::new(self.case, self.draw)?;
        let d_out = arrays::d_out::<T>(self.case, self.draw)?;
        let shape = inputs.call(self.case)?.shape()?;
        let computed = self.compute(backend, &inputs, &d_out, &shape)?;
        computed.check_gaps()?;
        self.compare(&inputs, &d_out, &shape, &computed)
    }

    /// Forward for the output and the statistics, then backward.
    fn compute<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        inputs: &Inputs<T>,
        d_out: &Placed<T>,
        shape: &AttentionShape,
    ) -> Result<Computed<T>, Broken> {
        let case = self.case;
        let nan = T::Acc::from_f64(f64::NAN);
        let call = inputs.call(case)?;
        let mut computed = Computed::new(case, &shape.statistics(call.query.shape())?)?;
        let mut out = Placed::new(
            case.placement,
            &case.batch,
            [case.query_length, case.heads, case.value_depth],
            || T::from_f64(f64::NAN),
        )?;
        let asked = Some(computed.statistics.view_mut()?);
        let mut scratch = vec![nan; backend.attend_scratch(shape)];
        backend.attend(call.with_statistics(asked), out.view_mut()?, &mut scratch)?;
        let backward = AttentionBackward {
            call: inputs.call(case)?,
            out: out.view()?,
            statistics: computed.statistics.view()?,
            d_out: d_out.view()?,
            d_query: computed.d_query.view_mut()?,
            d_key: computed.d_key.view_mut()?,
            d_value: computed.d_value.view_mut()?,
            d_bias: computed.d_bias.as_mut().map(Placed::view_mut).transpose()?,
            d_relative: None,
            d_sinks: None,
        };
        let mut scratch = vec![nan; backend.attend_backward_scratch(shape)];
        backend.attend_backward(backward, &mut scratch)?;
        Ok(computed)
    }

    fn compare<T: Element>(
        &mut self,
        inputs: &Inputs<T>,
        d_out: &Placed<T>,
        shape: &AttentionShape,
        computed: &Computed<T>,
    ) -> Result<(), Broken> {
        let name = format!("{} gradients sample {}", self.case.name, self.draw);
        let mut numbers = Numbers::new(&name);
        let call = inputs.call(self.case)?;
        let weights = shape.weights(call.query.shape())?;
        let mut d_bias = match &computed.d_bias {
            Some(placed) => Some(BiasSums::new(placed.layout.shape(), &weights)?),
            None => None,
        };
        for index in 0..shape.batch * shape.num_heads {
            let matrix = Matrix::read(&call, &d_out.view()?, shape, index)?;
            let truth = Truth::new(&matrix, self.maths);
            let plain = Plain::<T>::new(&matrix, self.maths);
            let place = Place {
                draw: self.draw,
                matrix: index,
                row: 0,
                column: 0,
            };
            self.compare_statistics(&matrix, &truth, &plain, computed, place)?;
            self.compare_parts(&matrix, &truth, &plain);
            self.compare_matrix(&truth, &plain, shape, computed, (place, &mut numbers));
            if let Some(sums) = &mut d_bias {
                sums.add::<T>(index, &truth.rows, &plain.rows);
            }
        }
        if let (Some(sums), Some(got)) = (d_bias, &computed.d_bias) {
            sums.compare(got, self.draw, &mut self.comparisons.d_bias);
        }
        Ok(())
    }

    fn compare_matrix<T: Element>(
        &mut self,
        truth: &Truth<'_>,
        plain: &Plain<'_, T>,
        shape: &AttentionShape,
        computed: &Computed<T>,
        (place, numbers): (Place, &mut Numbers),
    ) {
        let (batch, head) = (
            place.matrix / shape.num_heads,
            place.matrix % shape.num_heads,
        );
        let head_of = |layout: &Layout| Head::new(layout, batch, head);
        let (queries, keys) = (shape.query_length, shape.key_length);
        let comparisons = &mut self.comparisons;
        compare(
            &mut comparisons.d_query,
            (&computed.d_query, head_of(&computed.d_query.layout)),
            (queries, shape.depth),
            |row, column| (truth.d_query(row, column), plain.d_query(row, column)),
            (place, numbers),
        );
        compare(
            &mut comparisons.d_key,
            (&computed.d_key, head_of(&computed.d_key.layout)),
            (keys, shape.depth),
            |row, column| (truth.d_key(row, column), plain.d_key(row, column)),
            (place, numbers),
        );
        compare(
            &mut comparisons.d_value,
            (&computed.d_value, head_of(&computed.d_value.layout)),
            (keys, shape.value_depth),
            |row, column| (truth.d_value(row, column), plain.d_value(row, column)),
            (place, numbers),
        );
    }

    /// The gradient of a score is a difference that may cancel, wholly where there is one key.
    fn compare_parts<T: Element>(
        &mut self,
        matrix: &Matrix,
        truth: &Truth<'_>,
        plain: &Plain<'_, T>,
    ) {
        let size = |row: &Vec<f64>| row.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let keys: Vec<f64> = matrix.keys.iter().map(size).collect();
        let scale = truth.scale();
        for (query, (truth, plain)) in zip(&truth.rows, &plain.rows).enumerate() {
            let query_size = size(&matrix.queries[query]);
            for (key, (truth, plain)) in zip(&truth.parts, &plain.parts).enumerate() {
                for (truth, plain) in zip(truth, plain) {
                    let part = |comparison: &mut Comparison, factor: f64| {
                        comparison.part(truth * factor, plain * factor);
                    };
                    part(&mut self.comparisons.d_query, scale * keys[key]);
                    part(&mut self.comparisons.d_key, scale * query_size);
                }
            }
        }
    }
}

/// Compares some rows and columns of one head of one batch entry of `got`; `of` gives the truth and what plain arithmetic gives.
fn compare<T: Element>(
    comparison: &mut Comparison,
    (got, head): (&Placed<T>, Head),
    (rows, columns): (usize, usize),
    of: impl Fn(usize, usize) -> (f64, f64),
    (place, numbers): (Place, &mut Numbers),
) {
    let columns = draws::columns(columns, numbers);
    for row in draws::rows(rows, numbers) {
        comparison.rows += 1;
        for &column in &columns {
            let (truth, plain) = of(row, column);
            let got = got.buffer[head.at(row, column)].to_f64();
            let place = Place {
                row,
                column,
                ..place
            };
            comparison.push(place, got, truth, plain);
        }
    }
}
