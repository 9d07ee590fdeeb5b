//! Attention beside the oracle.

use super::arrays::{Inputs, Placed};
use super::cases::Case;
use super::data::Numbers;
use super::plain;
use super::properties::OnHost;
use super::rows::{Head, Rows};
use super::verdict::{Comparison, Failure, Place};
use super::{Maths, draws, oracle};
use crate::dtype::Element;
use crate::error::Result;
use crate::mask::FullyMasked;
use crate::request::{Attention, AttentionShape};
use crate::view::Host;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// Runs a case and gives its largest error as a part of what is allowed.
pub(super) fn attend<T: Element, B: OnHost<T>>(
    backend: &B,
    case: &Case,
    maths: &Maths,
) -> Result<f64, Failure> {
    let work = case.query_length * case.key_length * (case.depth + case.value_depth);
    let mut exam = Exam::new(case, maths);
    loop {
        exam.sit::<T, B>(backend)
            .map_err(|error| Failure::new(&*case.name, format!("{error}")))?;
        if !draws::another(exam.draw, exam.outputs.rows, draws::ROWS, work) {
            break;
        }
    }
    let outputs = exam.outputs.verdict::<T>(&case.name, "out")?;
    let weights = exam.weights.verdict::<T>(&case.name, "weights")?;
    Ok(outputs.max(weights))
}

/// A case and what came of it.
struct Exam<'a> {
    case: &'a Case,
    maths: &'a Maths,
    draw: usize,
    outputs: Comparison,
    weights: Comparison,
}

/// What a backend made of a draw. Elements that it left out are NaN.
struct Computed<T: Element> {
    out: Placed<T>,
    weights: Option<Placed<T::Acc>>,
}

impl<'a> Exam<'a> {
    fn new(case: &'a Case, maths: &'a Maths) -> Self {
        Self {
            case,
            maths,
            draw: 0,
            outputs: Comparison::default(),
            weights: Comparison::default(),
        }
    }

    /// Draws inputs, lets the backend compute, compares.
    fn sit<T: Element, B: OnHost<T>>(&mut self, backend: &B) -> Result<()> {
        let inputs = Inputs::<T>::new(self.case, self.draw)?;
        let call = inputs.call(self.case)?;
        let shape = call.shape()?;
        let computed = self.compute(backend, &inputs, &shape)?;
        self.compare(&call, &shape, &computed)?;
        self.draw += 1;
        Ok(())
    }

    fn compute<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        inputs: &Inputs<T>,
        shape: &AttentionShape,
    ) -> Result<Computed<T>> {
        let case = self.case;
        let size = [case.query_length, case.heads, case.value_depth];
        let nan = || T::from_f64(f64::NAN);
        let acc_nan = || T::Acc::from_f64(f64::NAN);
        let call = inputs.call(case)?;
        let weights_shape = shape.weights(call.query.shape())?;
        let mut weights = match case.weights {
            true => Some(Placed::tensor(
                case.placement,
                &weights_shape,
                acc_nan(),
                acc_nan,
            )?),
            false => None,
        };
        let mut out = Placed::new(case.placement, &case.batch, size, nan)?;
        let mut scratch = vec![acc_nan(); backend.attend_scratch(shape)];
        let asked = weights.as_mut().map(Placed::view_mut).transpose()?;
        backend.attend(call.with_weights(asked), out.view_mut()?, &mut scratch)?;
        Ok(Computed { out, weights })
    }

    fn compare<T: Element>(
        &mut self,
        call: &Attention<'_, Host, T>,
        shape: &AttentionShape,
        computed: &Computed<T>,
    ) -> Result<()> {
        let mut numbers = Numbers::new(&format!("{} sample {}", self.case.name, self.draw));
        let (key, value) = call.dense()?;
        let rows = Rows::new(call, shape)?;
        for matrix in 0..shape.batch * shape.num_heads {
            let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
            let [q, k, v] = [call.query.layout(), key.layout(), value.layout()]
                .map(|layout| Head::new(layout, batch, head));
            let keys = k.rows(key.buf());
            let columns: Vec<(usize, Vec<f64>)> = draws::columns(shape.value_depth, &mut numbers)
                .into_iter()
                .map(|column| (column, v.column(value.buf(), column)))
                .collect();
            for query in draws::rows(shape.query_length, &mut numbers) {
                let row = Row {
                    query: q.row(call.query.buf(), query),
                    keys: &keys,
                    bias: rows.bias(matrix, query),
                    seen: rows.seen(matrix, query),
                    factors: rows.factors(matrix, query),
                };
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
        let truth = row.truth(self.case, self.maths);
        let plainly = row.plainly::<T>(self.case, self.maths);
        let dropped = plain::dropped::<T>(&plainly, &row.factors);
        self.outputs.rows += 1;
        let (batch, head) = (
            place.matrix / shape.num_heads,
            place.matrix % shape.num_heads,
        );
        let out = Head::new(&computed.out.layout, batch, head);
        for (column, values) in columns {
            let [truth, factors, values_] =
                [&truth, &row.factors, values].map(|x| x.iter().copied());
            let exact = oracle::dot3(truth, factors, values_).value();
            let sum = plain::dot::<T>(&dropped, values);
            let got = computed.out.buffer[out.at(place.row, *column)].to_f64();
            let place = Place {
                column: *column,
                ..place
            };
            self.outputs.push(place, got, exact, sum);
        }
        let Some(weights) = &computed.weights else {
            return;
        };
        let first = (place.matrix * shape.query_length + place.row) * shape.key_length;
        for (column, &truth) in truth.iter().enumerate() {
            let rank = weights.layout.shape().rank();
            let got = weights.buffer[weights.layout.base(rank, first + column)].to_f64();
            let place = Place { column, ..place };
            self.weights.push(place, got, truth, plainly[column]);
        }
    }
}

/// One query and what it meets.
struct Row<'a> {
    query: Vec<f64>,
    keys: &'a [Vec<f64>],
    bias: Option<Vec<f64>>,
    seen: Vec<bool>,
    factors: Vec<f64>,
}

impl Row<'_> {
    fn truth(&self, case: &Case, maths: &Maths) -> Vec<f64> {
        let product = |key: &Vec<f64>| oracle::dot(self.query.iter().copied(), key.iter().copied());
        let row = oracle::Row {
            products: self.keys.iter().map(product).collect(),
            scale: case.scale.factor(case.depth, maths.sqrt),
            bias: self.bias.as_deref(),
            seen: &self.seen,
            zero_if_blind: case.fully_masked == FullyMasked::Zero,
            maths,
        };
        row.softmax().weights
    }

    /// The weights of plain arithmetic.
    fn plainly<T: Element>(&self, case: &Case, maths: &Maths) -> Vec<f64> {
        let scaled = plain::scaled::<T>(&self.query, case.scale, maths);
        let products = plain::products::<T>(&scaled, self.keys);
        plain::softmax::<T>(
            &products,
            self.bias.as_deref(),
            &self.seen,
            case.fully_masked,
            maths,
        )
        .weights
    }
}
