//! Gradients of attention beside the oracle.

use super::arrays::{self, Placed};
use super::case::Case;
use super::data::Numbers;
use super::inputs::Inputs;
use super::matrix::Matrix;
use super::oracle::backward::Gradients as Truth;
use super::plain::backward::Gradients as Plain;
use super::properties::{Broken, OnHost, done};
use super::rows::Head;
use super::statistics::StatisticsOf;
use super::verdict::{Comparison, Failure, Outcome, Place};
use super::{Maths, draws, oracle, plain};
use crate::backward::AttentionBackward;
use crate::dtype::Element;
use crate::layout::Layout;
use crate::request::{Attention, AttentionShape};
use crate::view::{FlatMut, Host};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;

mod sums;

use sums::ScoreSums;

/// Runs a case and gives its largest error as a part of what is allowed.
pub(super) fn attend<T: Element, B: OnHost<T>>(
    backend: &B,
    case: &Case,
    maths: &Maths,
) -> Result<Outcome, Failure> {
    let matrices: usize = case.batch.iter().product::<usize>() * case.heads;
    let scores = matrices * case.query_length * case.key_length;
    let work = 2 * scores * (case.depth + case.value_depth);
    let mut exam = Exam {
        case,
        maths,
        draw: 0,
        comparisons: Comparisons {
            statistics: StatisticsOf::beside_gradients(),
            ..Comparisons::default()
        },
    };
    loop {
        let sat = exam.sit::<T, B>(backend);
        match sat.map_err(|Broken(what)| Failure::new(&*case.name, what))? {
            true => exam.draw += 1,
            false => return Ok(Outcome::Refused),
        }
        let rows = exam.comparisons.d_query.rows;
        if !draws::another(exam.draw, rows, draws::GRADIENT_ROWS, work) {
            break;
        }
    }
    let verdict = exam
        .comparisons
        .verdict::<T>(&case.name)
        .or_else(|failure| {
            if !exam.comparisons.is_near::<T>() {
                return Err(failure);
            }
            exam.learn::<T>()
                .map_err(|Broken(what)| Failure::new(&*case.name, what))?;
            exam.comparisons.verdict::<T>(&case.name)
        });
    verdict.map(Outcome::Right)
}

/// What is looked at.
#[derive(Default)]
struct Comparisons {
    statistics: StatisticsOf,
    d_query: Comparison,
    d_key: Comparison,
    d_value: Comparison,
    d_bias: Comparison,
    d_relative: Comparison,
    d_sinks: Comparison,
}

impl Comparisons {
    fn gradients(&mut self) -> [&mut Comparison; 6] {
        [
            &mut self.d_query,
            &mut self.d_key,
            &mut self.d_value,
            &mut self.d_bias,
            &mut self.d_relative,
            &mut self.d_sinks,
        ]
    }

    fn is_near<T: Element>(&mut self) -> bool {
        self.statistics.is_near::<T>()
            && (self.gradients().iter()).all(|comparison| comparison.is_near::<T>())
    }

    /// From here on only plain arithmetic is looked at.
    fn of_plain(&mut self) {
        self.statistics.of_plain();
        for comparison in self.gradients() {
            comparison.is_of_plain = true;
        }
    }

    fn verdict<T: Element>(&self, case: &str) -> Result<f64, Failure> {
        let outputs = [
            (&self.d_query, "d_query"),
            (&self.d_key, "d_key"),
            (&self.d_value, "d_value"),
            (&self.d_bias, "d_bias"),
            (&self.d_relative, "d_relative"),
            (&self.d_sinks, "d_sinks"),
        ];
        let statistics = self.statistics.verdict::<T>(case)?;
        outputs
            .iter()
            .try_fold(statistics, |worst, (output, name)| {
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
    d_relative: Option<Vec<T::Acc>>,
    d_sinks: Option<Vec<T::Acc>>,
}

impl<T: Element> Computed<T> {
    /// Arrays of NaN, placed as the case's inputs are.
    fn new(case: &Case, statistics: &[usize]) -> crate::Result<Self> {
        let nan = || T::from_f64(f64::NAN);
        let acc_nan = || T::Acc::from_f64(f64::NAN);
        let array = |length, heads, depth| {
            let size = [length, heads, depth];
            Placed::new(case.placement, &case.batch, size, nan)
        };
        let d_bias = |shape: &Vec<usize>| Placed::tensor(case.placement, shape, acc_nan(), acc_nan);
        let flat = |count: usize| vec![acc_nan(); count];
        Ok(Self {
            statistics: Placed::tensor(case.placement, statistics, acc_nan(), acc_nan)?,
            d_query: array(case.query_length, case.heads, case.depth)?,
            d_key: array(case.key_length, case.key_heads, case.depth)?,
            d_value: array(case.key_length, case.key_heads, case.value_depth)?,
            d_bias: case
                .bias
                .as_ref()
                .map(|(shape, _)| d_bias(shape))
                .transpose()?,
            d_relative: (case.relative).map(|relative| flat(case.heads * relative.distances)),
            d_sinks: case.sinks.map(|_| flat(case.heads)),
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

    /// Forward for the output and the statistics, then backward; `false` if either was refused, as it must be.
    fn compute<B: OnHost<T>>(
        &mut self,
        backend: &B,
        case: &Case,
        inputs: &Inputs<T>,
        d_out: &Placed<T>,
    ) -> Result<bool, Broken> {
        let nan = T::Acc::from_f64(f64::NAN);
        let borrowed = inputs.borrowed(case)?;
        let call = inputs.call(case, &borrowed)?;
        let shape = call.shape()?;
        let size = [case.query_length, case.heads, case.value_depth];
        let mut out = Placed::new(case.placement, &case.batch, size, || T::from_f64(f64::NAN))?;
        let mut scratch = vec![nan; backend.attend_scratch(&shape)];
        let call = call.with_statistics(Some(self.statistics.view_mut()?));
        let used = call.features();
        let result = backend.attend(call, out.view_mut()?, &mut scratch);
        if !done(result, used, backend.features())? {
            return Ok(false);
        }
        let call = inputs.call(case, &borrowed)?;
        let used = call.features();
        let backward = AttentionBackward {
            call,
            out: out.view()?,
            statistics: self.statistics.view()?,
            d_out: d_out.view()?,
            d_query: self.d_query.view_mut()?,
            d_key: self.d_key.view_mut()?,
            d_value: self.d_value.view_mut()?,
            d_bias: self.d_bias.as_mut().map(Placed::view_mut).transpose()?,
            d_relative: self.d_relative.as_deref_mut().map(FlatMut::new),
            d_sinks: self.d_sinks.as_deref_mut().map(FlatMut::new),
        };
        let mut scratch = vec![nan; backend.attend_backward_scratch(&shape)];
        let result = backend.attend_backward(backward, &mut scratch);
        done(result, used, backend.backward_features())
    }
}

impl Exam<'_> {
    /// Draws inputs, lets the backend compute, compares; `false` if the backend refused, as it must.
    fn sit<T: Element, B: OnHost<T>>(&mut self, backend: &B) -> Result<bool, Broken> {
        let case = self.case;
        let inputs = Inputs::<T>::new(case, self.draw)?;
        let d_out = arrays::d_out::<T>(case, self.draw)?;
        let borrowed = inputs.borrowed(case)?;
        let call = inputs.call(case, &borrowed)?;
        let shape = call.shape()?;
        let mut computed = Computed::new(case, &shape.statistics(call.query.shape())?)?;
        // The truth is that of the arrays as they are before they are spoilt.
        let poisoned = inputs.poisoned(case, self.draw)?;
        let given = poisoned.as_ref().unwrap_or(&inputs);
        let given_d_out = inputs.poisoned_d_out(case, self.draw)?;
        if !computed.compute(backend, case, given, given_d_out.as_ref().unwrap_or(&d_out))? {
            return Ok(false);
        }
        computed.check_gaps()?;
        self.compare(&call, &d_out, &shape, &computed)?;
        Ok(true)
    }

    /// Looks at plain arithmetic in more draws.
    fn learn<T: Element>(&mut self) -> Result<(), Broken> {
        self.comparisons.of_plain();
        for _ in 0..draws::MORE * self.draw {
            let inputs = Inputs::<T>::new(self.case, self.draw)?;
            let d_out = arrays::d_out::<T>(self.case, self.draw)?;
            let borrowed = inputs.borrowed(self.case)?;
            let call = inputs.call(self.case, &borrowed)?;
            let shape = call.shape()?;
            let nothing = Computed::new(self.case, &shape.statistics(call.query.shape())?)?;
            self.compare(&call, &d_out, &shape, &nothing)?;
            self.draw += 1;
        }
        Ok(())
    }

    fn compare<T: Element>(
        &mut self,
        call: &Attention<'_, Host, T>,
        d_out: &Placed<T>,
        shape: &AttentionShape,
        computed: &Computed<T>,
    ) -> Result<(), Broken> {
        let name = format!("{} gradients sample {}", self.case.name, self.draw);
        let mut numbers = Numbers::new(&name);
        let matrices = (0..shape.batch * shape.num_heads)
            .map(|index| Matrix::read(call, &d_out.view()?, shape, index));
        let matrices = matrices.collect::<crate::Result<Vec<Matrix>>>()?;
        let truths: Vec<Truth<'_>> = (matrices.iter())
            .map(|matrix| Truth::new(matrix, self.maths))
            .collect();
        let plains: Vec<Plain<'_, T>> = (matrices.iter())
            .map(|matrix| Plain::new(matrix, self.maths))
            .collect();
        for (index, ((matrix, truth), plain)) in zip(zip(&matrices, &truths), &plains).enumerate() {
            self.compare_statistics(matrix, truth, plain, computed, index);
            self.compare_parts(matrix, truth, plain);
        }
        let group = shape.num_heads / shape.key_heads.max(1);
        for (index, (truths, plains)) in
            zip(truths.chunks(group.max(1)), plains.chunks(group.max(1))).enumerate()
        {
            self.compare_group(truths, plains, shape, computed, (index, &mut numbers));
        }
        self.compare_sums(call, &matrices, (&truths, &plains), shape, computed)?;
        Ok(())
    }

    fn compare_statistics<T: Element>(
        &mut self,
        matrix: &Matrix,
        truth: &Truth<'_>,
        plain: &Plain<'_, T>,
        computed: &Computed<T>,
        index: usize,
    ) {
        for (row, line) in matrix.lines.iter().enumerate() {
            let first = (index * matrix.lines.len() + row) * 2;
            let got = [0, 1].map(|n| computed.statistics.at(first + n).to_f64());
            let place = Place {
                draw: self.draw,
                matrix: index,
                row,
                column: 0,
            };
            let (truth, plain) = (&truth.softmax[row], plain.statistics[row]);
            let statistics = &mut self.comparisons.statistics;
            statistics.push::<T>(place, got, truth, plain, line, self.maths);
        }
    }

    /// The heads of queries that a head of keys and values serves, whose gradients sum over them.
    fn compare_group<T: Element>(
        &mut self,
        truths: &[Truth<'_>],
        plains: &[Plain<'_, T>],
        shape: &AttentionShape,
        computed: &Computed<T>,
        (index, numbers): (usize, &mut Numbers),
    ) {
        let (batch, key_head) = (index / shape.key_heads, index % shape.key_heads);
        let (queries, keys) = (shape.query_length, shape.key_length);
        let comparisons = &mut self.comparisons;
        for (n, (truth, plain)) in zip(truths, plains).enumerate() {
            let head = key_head * truths.len() + n;
            let place = Place {
                draw: self.draw,
                matrix: batch * shape.num_heads + head,
                row: 0,
                column: 0,
            };
            compare(
                &mut comparisons.d_query,
                (
                    &computed.d_query,
                    Head::new(&computed.d_query.layout, batch, head),
                ),
                (queries, shape.depth),
                |row, column| (truth.d_query(row, column), plain.d_query(row, column)),
                (place, numbers),
            );
        }
        let place = Place {
            draw: self.draw,
            matrix: index,
            row: 0,
            column: 0,
        };
        let d_key = |row, column| {
            let truth = oracle::sum(truths.iter().map(|truth| truth.d_key(row, column))).value();
            (
                truth,
                plain::sum::<T>(plains.iter().flat_map(|plain| plain.d_key(row, column))),
            )
        };
        let d_value = |row, column| {
            let truth = oracle::sum(truths.iter().map(|truth| truth.d_value(row, column))).value();
            (
                truth,
                plain::sum::<T>(plains.iter().flat_map(|plain| plain.d_value(row, column))),
            )
        };
        let head_of = |layout: &Layout| Head::new(layout, batch, key_head);
        compare(
            &mut comparisons.d_key,
            (&computed.d_key, head_of(&computed.d_key.layout)),
            (keys, shape.depth),
            d_key,
            (place, numbers),
        );
        compare(
            &mut comparisons.d_value,
            (&computed.d_value, head_of(&computed.d_value.layout)),
            (keys, shape.value_depth),
            d_value,
            (place, numbers),
        );
    }

    /// Gradients that sum over many scores: of the bias, of the table of relative positions, of the sinks.
    fn compare_sums<T: Element>(
        &mut self,
        call: &Attention<'_, Host, T>,
        matrices: &[Matrix],
        (truths, plains): (&[Truth<'_>], &[Plain<'_, T>]),
        shape: &AttentionShape,
        computed: &Computed<T>,
    ) -> crate::Result<()> {
        if let Some(got) = &computed.d_bias {
            let bias = got.layout.shape();
            let weights = shape.weights(call.query.shape())?;
            let layout = Layout::contiguous(*bias)?.broadcast_to("d_bias", &weights)?;
            let axes = layout.shape().rank() - 1;
            let mut sums = ScoreSums::new(bias.elements()?);
            for (index, (truth, plain)) in zip(truths, plains).enumerate() {
                sums.add::<T>(&truth.rows, &plain.rows, |query, key| {
                    let row = layout.base(axes, index * shape.query_length + query);
                    Some(row + key * layout.strides()[axes])
                });
            }
            sums.compare(
                |n| got.at(n).to_f64(),
                self.draw,
                &mut self.comparisons.d_bias,
            );
        }
        if let (Some(got), Some(relative)) = (&computed.d_relative, &call.scores.relative) {
            let distances = relative.distances(shape.num_heads);
            let mut sums = ScoreSums::new(got.len());
            for (index, (truth, plain)) in zip(truths, plains).enumerate() {
                let head = index % shape.num_heads;
                sums.add::<T>(&truth.rows, &plain.rows, |query, key| {
                    let line = &matrices[index].lines[query];
                    let (_, columns) = line.relative.as_ref()?;
                    let key = line.keys.contains(&key).then(|| key - line.keys.start)?;
                    Some(head * distances + columns[key])
                });
            }
            sums.compare(
                |n| got[n].to_f64(),
                self.draw,
                &mut self.comparisons.d_relative,
            );
        }
        if let Some(got) = &computed.d_sinks {
            for (head, got) in got.iter().enumerate() {
                let of_head = |index: &usize| index % shape.num_heads == head;
                let indices = || (0..truths.len()).filter(of_head);
                let truth = oracle::sum(indices().map(|index| truths[index].d_sink())).value();
                let plain = indices().fold(0.0, |sum, index| {
                    plain::round::<T::Acc>(sum + plains[index].sink)
                });
                let place = Place {
                    draw: self.draw,
                    matrix: head,
                    row: 0,
                    column: 0,
                };
                self.comparisons
                    .d_sinks
                    .push(place, got.to_f64(), truth, plain);
            }
        }
        Ok(())
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
            for (key, (truth, plain)) in zip(&truth.product_parts, &plain.product_parts).enumerate()
            {
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
