//! Attention beside the oracle.

mod row;

use super::arrays::Placed;
use super::case::Case;
use super::data::Numbers;
use super::inputs::Inputs;
use super::oracle;
use super::properties::{Broken, OnHost, done};
use super::rows::{Head, Line, Rows};
use super::source::keys_and_values;
use super::statistics::StatisticsOf;
use super::verdict::{Comparison, Failure, Outcome, Place};
use super::{Maths, draws};
use crate::dtype::Element;
use crate::request::{Attention, AttentionShape};
use crate::scores::Stage;
use crate::view::Host;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use row::Row;

/// Runs a case and gives its largest error as a part of what is allowed.
pub(super) fn attend<T: Element, B: OnHost<T>>(
    backend: &B,
    case: &Case,
    maths: &Maths,
) -> Result<Outcome, Failure> {
    let work = case.query_length * case.key_length * (case.depth + case.value_depth);
    let mut exam = Exam::new(case, maths);
    loop {
        let sat = exam.sit::<T, B>(backend);
        match sat.map_err(|Broken(what)| Failure::new(&*case.name, what))? {
            true => exam.draw += 1,
            false => return Ok(Outcome::Refused),
        }
        if !draws::another(exam.draw, exam.outputs.rows, draws::ROWS, work) {
            break;
        }
    }
    let verdict = exam.verdict::<T>().or_else(|failure| {
        if !exam.is_near::<T>() {
            return Err(failure);
        }
        exam.learn::<T>()
            .map_err(|Broken(what)| Failure::new(&*case.name, what))?;
        exam.verdict::<T>()
    });
    verdict.map(Outcome::Right)
}

/// A case and what came of it.
struct Exam<'a> {
    case: &'a Case,
    maths: &'a Maths,
    draw: usize,
    outputs: Comparison,
    weights: Comparison,
    statistics: StatisticsOf,
}

/// What a backend made of a draw. Elements that it left out are NaN.
struct Computed<T: Element> {
    out: Placed<T>,
    weights: Option<Placed<T::Acc>>,
    statistics: Option<Placed<T::Acc>>,
}

impl<T: Element> Computed<T> {
    fn new(
        case: &Case,
        call: &Attention<'_, Host, T>,
        shape: &AttentionShape,
    ) -> crate::Result<Self> {
        let nan = || T::from_f64(f64::NAN);
        let acc_nan = || T::Acc::from_f64(f64::NAN);
        let array = |shape: &[usize]| Placed::tensor(case.placement, shape, acc_nan(), acc_nan);
        let query = call.query.shape();
        let size = [case.query_length, case.heads, case.value_depth];
        Ok(Self {
            out: Placed::new(case.placement, &case.batch, size, nan)?,
            weights: (case.weights)
                .then(|| array(&shape.weights(query)?))
                .transpose()?,
            statistics: (case.statistics)
                .then(|| array(&shape.statistics(query)?))
                .transpose()?,
        })
    }

    /// Lets the backend compute; `false` if it refused, as it must.
    fn compute<B: OnHost<T>>(
        &mut self,
        backend: &B,
        case: &Case,
        call: Attention<'_, Host, T>,
    ) -> Result<bool, Broken> {
        let shape = call.shape()?;
        let weights = self.weights.as_mut().map(Placed::view_mut).transpose()?;
        let statistics = self.statistics.as_mut().map(Placed::view_mut).transpose()?;
        let call = call
            .with_scores_at(case.stage, weights)
            .with_statistics(statistics);
        let mut scratch = vec![T::Acc::from_f64(f64::NAN); backend.attend_scratch(&shape)];
        let used = call.features();
        let result = backend.attend(call, self.out.view_mut()?, &mut scratch);
        let is_done = done(result, used, backend.features())?;
        if !is_done && self.out.buffer.iter().any(|x| !x.to_f64().is_nan()) {
            return Err(Broken("the output was written and the call refused".into()));
        }
        Ok(is_done)
    }
}

impl<'a> Exam<'a> {
    fn new(case: &'a Case, maths: &'a Maths) -> Self {
        Self {
            case,
            maths,
            draw: 0,
            outputs: Comparison::default(),
            weights: Comparison::default(),
            statistics: StatisticsOf::default(),
        }
    }

    /// Draws inputs, lets the backend compute, compares; `false` if the backend refused, as it must.
    fn sit<T: Element, B: OnHost<T>>(&mut self, backend: &B) -> Result<bool, Broken> {
        let case = self.case;
        let inputs = Inputs::<T>::new(case, self.draw)?;
        let borrowed = inputs.borrowed(case)?;
        let call = inputs.call(case, &borrowed)?;
        let shape = call.shape()?;
        let mut computed = Computed::new(case, &call, &shape)?;
        // The truth is that of the arrays as they are before they are spoilt.
        let poisoned = inputs.poisoned(case, self.draw)?;
        let given = poisoned.as_ref().unwrap_or(&inputs);
        let borrowed = given.borrowed(case)?;
        if !computed.compute(backend, case, given.call(case, &borrowed)?)? {
            return Ok(false);
        }
        self.compare(&call, &shape, &computed)?;
        Ok(true)
    }

    /// Looks at plain arithmetic in more draws.
    fn learn<T: Element>(&mut self) -> Result<(), Broken> {
        for comparison in [&mut self.outputs, &mut self.weights] {
            comparison.is_of_plain = true;
        }
        self.statistics.of_plain();
        for _ in 0..draws::MORE * self.draw {
            let inputs = Inputs::<T>::new(self.case, self.draw)?;
            let borrowed = inputs.borrowed(self.case)?;
            let call = inputs.call(self.case, &borrowed)?;
            let shape = call.shape()?;
            let nothing = Computed::new(self.case, &call, &shape)?;
            self.compare(&call, &shape, &nothing)?;
            self.draw += 1;
        }
        Ok(())
    }

    fn is_near<T: Element>(&self) -> bool {
        [&self.outputs, &self.weights]
            .iter()
            .all(|comparison| comparison.is_near::<T>())
            && self.statistics.is_near::<T>()
    }

    /// The largest error as a part of what is allowed.
    fn verdict<T: Element>(&self) -> Result<f64, Failure> {
        let name = &self.case.name;
        let outputs = self.outputs.verdict::<T>(name, "out")?;
        let weights = self.weights.verdict::<T>(name, "weights")?;
        let statistics = self.statistics.verdict::<T>(name)?;
        Ok(outputs.max(weights).max(statistics))
    }

    fn compare<T: Element>(
        &mut self,
        call: &Attention<'_, Host, T>,
        shape: &AttentionShape,
        computed: &Computed<T>,
    ) -> crate::Result<()> {
        let mut numbers = Numbers::new(&format!("{} sample {}", self.case.name, self.draw));
        let rows = Rows::new(call, shape)?;
        for matrix in 0..shape.batch * shape.num_heads {
            let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
            let queries = Head::new(call.query.layout(), batch, head);
            let [keys, values] = keys_and_values(call, shape, batch, head)?;
            let columns: Vec<(usize, Vec<f64>)> = draws::columns(shape.value_depth, &mut numbers)
                .into_iter()
                .map(|column| (column, values.iter().map(|row| row[column]).collect()))
                .collect();
            for query in draws::rows(shape.query_length, &mut numbers) {
                let line = rows.line(matrix, query);
                let row = Row::new(
                    self.case,
                    self.maths,
                    queries.row(call.query.buf(), query),
                    &keys[line.keys.clone()],
                    &line,
                );
                let place = Place {
                    draw: self.draw,
                    matrix,
                    row: query,
                    column: 0,
                };
                self.compare_row(&row, &columns, shape, computed, place);
            }
        }
        Ok(())
    }

    fn compare_row<T: Element>(
        &mut self,
        row: &Row<'_>,
        columns: &[(usize, Vec<f64>)],
        shape: &AttentionShape,
        computed: &Computed<T>,
        place: Place,
    ) {
        let (truth, plainly) = (row.truth(), row.plainly::<T>());
        self.outputs.rows += 1;
        let (batch, head) = (
            place.matrix / shape.num_heads,
            place.matrix % shape.num_heads,
        );
        let out = Head::new(&computed.out.layout, batch, head);
        for (column, values) in columns {
            let values = &values[row.line.keys.clone()];
            let place = Place {
                column: *column,
                ..place
            };
            let got = computed.out.buffer[out.at(place.row, *column)].to_f64();
            if row.line.is_outside {
                self.outputs.push_exact(place, got, 0.0);
                continue;
            }
            let [weights, factors, values_] =
                [&truth.softmax.weights[..], &row.line.factors, values].map(|x| x.iter().copied());
            let exact = oracle::dot3(weights, factors, values_).value();
            let sum = plainly.out::<T>(values);
            self.outputs.push(place, got, exact, sum);
        }
        if let Some(statistics) = &computed.statistics {
            let first = (place.matrix * shape.query_length + place.row) * 2;
            let got = [0, 1].map(|n| statistics.at(first + n).to_f64());
            let plain = [plainly.softmax.largest, plainly.softmax.total];
            self.statistics
                .push::<T>(place, got, &truth.softmax, plain, row.line, self.maths);
        }
        if let Some(weights) = &computed.weights {
            let first = (place.matrix * shape.query_length + place.row) * shape.key_length;
            for column in 0..shape.key_length {
                let got = weights.at(first + column).to_f64();
                let place = Place { column, ..place };
                self.compare_weight::<T>(row.line, (&truth, &plainly), got, place);
            }
        }
    }

    /// A weight, or a score at the stage that was asked for.
    fn compare_weight<T: Element>(
        &mut self,
        line: &Line,
        (truth, plainly): (&row::Truth, &row::Plainly),
        got: f64,
        place: Place,
    ) {
        let stage = self.case.stage;
        let hidden = match stage {
            Stage::Scaled | Stage::Capped | Stage::Softmax => 0.0,
            Stage::Masked if line.is_zero_if_blind() => f64::NEG_INFINITY,
            Stage::Masked => super::plain::lowest::<T::Acc>(),
        };
        let Some(key) = line
            .keys
            .contains(&place.column)
            .then(|| place.column - line.keys.start)
        else {
            self.weights.push_exact(place, got, hidden);
            return;
        };
        let (truth, plain) = match stage {
            Stage::Scaled => (truth.scaled[key], plainly.products[key]),
            Stage::Capped => (truth.capped[key], plainly.scores.capped[key]),
            Stage::Masked => (truth.scores[key], plainly.scores.masked[key]),
            Stage::Softmax => (truth.softmax.weights[key], plainly.softmax.weights[key]),
        };
        match stage {
            Stage::Masked if !line.seen[key] => self.weights.push_exact(place, got, hidden),
            Stage::Masked if truth.is_infinite() => self.weights.push_exact(place, got, truth),
            _ => self.weights.push(place, got, truth, plain),
        }
    }
}
