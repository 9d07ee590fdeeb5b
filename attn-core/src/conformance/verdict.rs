//! The rule: how far an output may be off.

use super::draws;
use crate::dtype::{DType, Element};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What a backend did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// What, with the numbers.
    pub what: String,
}

impl Failure {
    pub(super) fn new(case: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            case: case.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.what)
    }
}

impl core::error::Error for Failure {}

/// What a backend did right.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// Cases that were run.
    pub cases: usize,
    /// Those of them that have parts which the backend does not claim to have, and that it refused by name.
    pub refused: usize,
    /// The largest error as a part of what was allowed in its case; 0 for what must hold exactly.
    pub worst: f64,
}

impl Report {
    pub(super) fn exact(cases: usize) -> Self {
        Self {
            cases,
            ..Self::default()
        }
    }

    /// Counts one more case.
    pub(super) fn add(&mut self, outcome: Outcome) {
        self.cases += 1;
        match outcome {
            Outcome::Right(share) => self.worst = self.worst.max(share),
            Outcome::Refused => self.refused += 1,
        }
    }

    /// Whether the backend has none of what the cases ask for.
    #[must_use]
    pub const fn is_all_refused(&self) -> bool {
        self.cases > 0 && self.refused == self.cases
    }
}

/// How a case ended well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    /// The largest error as a part of what was allowed.
    Right(f64),
    /// The backend does not have a part of the case, and says so.
    Refused,
}

/// Half a unit in the last place of numbers of size 1.
fn half_unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::F64 => f64::EPSILON / 2.0,
        DType::F16 => crate::f16::EPSILON.to_f64() / 2.0,
        DType::BF16 => crate::bf16::EPSILON.to_f64() / 2.0,
    }
}

/// Where an output stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) draw: usize,
    /// A head of a batch entry, batch first.
    pub(super) matrix: usize,
    pub(super) row: usize,
    pub(super) column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            draw,
            matrix,
            row,
            column,
        } = self;
        write!(
            f,
            "draw {draw}, matrix {matrix}, row {row}, column {column}"
        )
    }
}

/// Outputs of a case beside the truth and beside plain arithmetic.
#[derive(Default)]
pub(super) struct Comparison {
    entries: Vec<(Place, f64, f64)>,
    /// What must be so to the bit.
    exact: Vec<(Place, f64, f64)>,
    plain_error: f64,
    /// Whether what follows is looked at for plain arithmetic's error alone.
    pub(super) is_of_plain: bool,
    /// Rows that were compared.
    pub(super) rows: usize,
}

impl Comparison {
    /// One output: its place, what the backend gave, the truth, what plain arithmetic gives.
    pub(super) fn push(&mut self, place: Place, got: f64, truth: f64, plain: f64) {
        if !self.is_of_plain {
            self.entries.push((place, got, truth));
        }
        self.part(truth, plain);
    }

    /// One output that has no error: a fill value, or zero.
    pub(super) fn push_exact(&mut self, place: Place, got: f64, wanted: f64) {
        if !self.is_of_plain {
            self.exact.push((place, got, wanted));
        }
    }

    /// A part of an output that other parts may cancel: what plain arithmetic gets wrong in it, it may get wrong in the
    /// output, though in its own order the errors cancel too.
    pub(super) fn part(&mut self, truth: f64, plain: f64) {
        let error = (truth - plain).abs();
        if error.is_finite() {
            self.plain_error = self.plain_error.max(error);
        }
    }

    /// The largest error as a part of what is allowed; the rule is in the documentation of [`conformance`](super).
    pub(super) fn verdict<T: Element>(&self, case: &str, output: &str) -> Result<f64, Failure> {
        if let Some((place, got, wanted)) =
            (self.exact.iter()).find(|(_, got, wanted)| got != wanted)
        {
            let what = format!("{output} at {place} is {got:e}, wanted exactly {wanted:e}");
            return Err(Failure::new(case, what));
        }
        let allowed = self.allowed::<T>();
        let mut worst = 0.0f64;
        for &(place, got, truth) in &self.entries {
            let error = error_of(got, truth);
            if error.is_nan() || error > allowed {
                let what = format!(
                    "{output} at {place} is {got:e}, wanted {truth:e}, off by {:e}, allowed {allowed:e}",
                    got - truth
                );
                return Err(Failure::new(case, what));
            }
            worst = worst.max(error);
        }
        Ok(if worst > 0.0 { worst / allowed } else { 0.0 })
    }

    /// Whether all errors are within a few times of what is allowed.
    pub(super) fn is_near<T: Element>(&self) -> bool {
        let allowed = draws::NEAR * self.allowed::<T>();
        let mut errors = (self.entries.iter()).map(|&(_, got, truth)| error_of(got, truth));
        self.exact.iter().all(|(_, got, wanted)| got == wanted)
            && errors.all(|error| error <= allowed)
    }

    fn allowed<T: Element>(&self) -> f64 {
        let truths = self.entries.iter().map(|(_, _, truth)| truth.abs());
        let largest = truths.filter(|truth| truth.is_finite()).fold(0.0, f64::max);
        (2.0 * self.plain_error).max(half_unit(T::DTYPE) * largest)
    }
}

/// How far a number is off; NaN where only one of the two is.
fn error_of(got: f64, truth: f64) -> f64 {
    match truth.is_nan() && got.is_nan() {
        true => 0.0,
        false => (got - truth).abs(),
    }
}
