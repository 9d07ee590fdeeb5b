//! Outputs against what a case expects.

use super::case::{Expected, Limit};
use super::tensors::Tensors;
use anyhow::{Context, Result, ensure};
use attn_layers::tensor::{Tensor, TensorView};
use std::collections::BTreeMap;

/// What was measured at one output.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    /// The largest difference to the truth; NaN where only one of the two is NaN.
    pub(crate) max_abs_err: f64,
    pub(crate) atol: f64,
}

/// The element that is furthest outside of what is allowed.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    index: Vec<usize>,
    got: f64,
    wanted: f64,
    allowed: f64,
    elements: usize,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            index,
            got,
            wanted,
            allowed,
            elements,
        } = self;
        write!(
            f,
            "{index:?} is {got:e}, wanted {wanted:e}, allowed {allowed:e}"
        )?;
        match elements {
            1 => Ok(()),
            more => write!(f, " (the worst of {more} elements)"),
        }
    }
}

/// Compares every expected output with its truth, a tensor of `truths`. Each is measured, also after one has failed; the failures
/// are put in words.
pub(crate) fn outputs(
    expected: &BTreeMap<String, Expected>,
    truths: &Tensors,
    outputs: &BTreeMap<String, Tensor>,
) -> (BTreeMap<String, Measured>, Vec<String>) {
    let mut measured = BTreeMap::new();
    let mut failures = Vec::new();
    for (name, expected) in expected {
        let compared = outputs
            .get(name)
            .context("was not computed")
            .and_then(|output| output_against(truths, expected, output.view()));
        match compared {
            Err(error) => failures.push(format!("{name}: {error:#}")),
            Ok((one, difference)) => {
                measured.insert(name.clone(), one);
                failures.extend(difference.map(|difference| format!("{name}{difference}")));
            }
        }
    }
    (measured, failures)
}

fn output_against(
    truths: &Tensors,
    expected: &Expected,
    output: TensorView<'_>,
) -> Result<(Measured, Option<Difference>)> {
    let dtype = output.scalar().name();
    ensure!(
        dtype == expected.dtype,
        "dtype is {dtype}, wanted {}",
        expected.dtype
    );
    ensure!(
        **output.shape() == *expected.shape,
        "shape is {}, wanted {:?}",
        output.shape(),
        expected.shape
    );
    let truth = truth(truths, expected, &expected.truth)?;
    let (atol, (max_abs_err, difference)) = match &expected.limit {
        Limit::Distance(atol) => (*atol, elements(output, truth, *atol)),
        Limit::Bits { also } => {
            let also = also.as_deref();
            let also = also
                .map(|name| self::truth(truths, expected, name))
                .transpose()?;
            (0.0, same_bits(output, truth, also))
        }
    };
    let measured = Measured {
        dtype,
        shape: expected.shape.clone(),
        max_abs_err,
        atol,
    };
    Ok((measured, difference))
}

/// A tensor of the expected file that `expected` names.
fn truth<'t>(truths: &'t Tensors, expected: &Expected, name: &str) -> Result<TensorView<'t>> {
    let truth = truths.view(name)?;
    ensure!(
        **truth.shape() == *expected.shape,
        "the case is damaged: {name} is {}, not {:?}",
        truth.shape(),
        expected.shape
    );
    Ok(truth)
}

/// Compares all bits with those of `truth` and of `also`: the output must have the one's or the other's.
fn same_bits(
    output: TensorView<'_>,
    truth: TensorView<'_>,
    also: Option<TensorView<'_>>,
) -> (f64, Option<Difference>) {
    let is =
        |view: &TensorView<'_>| view.scalar() == output.scalar() && view.bytes() == output.bytes();
    if is(&truth) || also.as_ref().is_some_and(is) {
        return (0.0, None);
    }
    let (largest, difference) = elements(output, truth, 0.0);
    // Zeros of different signs, and nothing else: as numbers they are equal.
    let signs = || Difference {
        index: Vec::new(),
        got: 0.0,
        wanted: -0.0,
        allowed: 0.0,
        elements: 1,
    };
    (largest, Some(difference.unwrap_or_else(signs)))
}

/// The largest difference, and the worst element if any is outside of `allowed`.
fn elements(
    output: TensorView<'_>,
    truth: TensorView<'_>,
    allowed: f64,
) -> (f64, Option<Difference>) {
    let mut largest = 0.0;
    let mut worst = None;
    let mut outside = 0;
    for i in 0..output.elements() {
        let error = distance(output.get_f64(i), truth.get_f64(i));
        if exceeds(error, allowed) {
            outside += 1;
            if worst.is_none() || exceeds(error, largest) {
                worst = Some(i);
            }
        }
        if exceeds(error, largest) {
            largest = error;
        }
    }
    let difference = worst.map(|i| Difference {
        index: unravel(i, output.shape()),
        got: output.get_f64(i),
        wanted: truth.get_f64(i),
        allowed,
        elements: outside,
    });
    (largest, difference)
}

/// The distance of two numbers: 0 for two NaN or two equal infinities, NaN if only one is NaN.
fn distance(got: f64, wanted: f64) -> f64 {
    if got == wanted || (got.is_nan() && wanted.is_nan()) {
        0.0
    } else {
        (got - wanted).abs()
    }
}

/// Whether `error` is larger than `limit`; NaN is larger than every number.
fn exceeds(error: f64, limit: f64) -> bool {
    !limit.is_nan() && (error.is_nan() || error > limit)
}

/// The index of element `i` in row-major order.
fn unravel(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (at, &dim) in index.iter_mut().zip(shape).rev() {
        *at = i % dim;
        i /= dim;
    }
    index
}
