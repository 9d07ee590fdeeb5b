//! The suite that every backend on the host runs: an oracle in `f64` and beyond, tolerances derived from plain same-dtype
//! arithmetic, cases by subject, and properties that must hold bit for bit.
//!
//! A backend's test file is a list of one-liners:
//!
//! ```ignore
//! attn_core::conformance_tests!(portable, Ok::<_, Error>(Cpu::portable()));
//! attn_core::conformance_tests!(avx2, Cpu::with_isa(Isa::Avx2));
//! ```
//!
//! Each gives tests named `avx2::bf16::causal`. Where the machine lacks what a backend needs, a test prints `SKIPPED` and the reason, or
//! fails if the environment variable `ATTN_REQUIRE` names the backend or says `all`.
//!
//! **What a backend does not have.** A case with a part that the backend does not name in [`Kernels::features`] is run all the same, and must
//! be refused with that part's name. A group of which every case was refused prints `REFUSED`.
//!
//! **The tolerance.** An output may be off by twice the error that plain arithmetic in the same dtype makes on the same
//! case (Flax's own order of operations, every step rounded, sums from the first term to the last),
//! and always by half a unit in the last place of the largest output: a result rounded correctly from an exact
//! one can be off by that. A gradient of a score is a difference, `w (dW - Σ w dW)`: there the error that plain arithmetic
//! makes in either part of a term counts too, since in its own order of sums the errors of both may be the same and vanish
//! (with one key they always do). Both errors are the largest of a case, over rows and columns at the edges and anywhere; before a near miss
//! counts, plain arithmetic's is looked for in more draws of the case.

mod arrays;
mod case;
mod cases;
mod data;
mod dense;
mod draws;
mod forward;
mod gradients;
mod inputs;
mod matrix;
mod merge;
mod norm;
mod oracle;
mod plain;
mod properties;
mod reference;
mod rotary;
mod rows;
mod source;
mod statistics;
mod verdict;

pub use reference::Reference;
pub use verdict::{Failure, Report};

use case::Case;
use verdict::Outcome;

use crate::dtype::Element;
use crate::error::Error;
use crate::kernels::{Backend, Kernels};
use crate::view::Host;

/// Functions that `core` lacks. With `std`: `Maths { exp: f64::exp, sqrt: f64::sqrt }`.
#[derive(Debug, Clone, Copy)]
pub struct Maths {
    /// `f64::exp`.
    pub exp: fn(f64) -> f64,
    /// `f64::sqrt`.
    pub sqrt: fn(f64) -> f64,
}

/// A subject of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Lengths and depths of all sizes.
    Plain,
    /// Keys by the thousand.
    Long,
    /// Causal masks of every alignment.
    Causal,
    /// Mask tensors of every rank and polarity, fully masked rows.
    Mask,
    /// Additive bias and custom scales.
    Bias,
    /// Weights as an output.
    Weights,
    /// Arrays that are not contiguous.
    Strided,
    /// Large scores, no queries, no keys.
    Extreme,
    /// Weights that are dropped.
    Dropout,
    /// Fewer heads of keys than of queries.
    Grouped,
    /// Windows of every alignment.
    Window,
    /// Padded and packed sequences.
    Sequences,
    /// Segments.
    Segments,
    /// Masks of whole blocks.
    Blocks,
    /// Softcaps, linear biases, tables of relative positions.
    Scores,
    /// Attention sinks.
    Sinks,
    /// Scores as an output.
    Stages,
    /// Caches in every place and format.
    Caches,
    /// Gradients of attention, and the statistics that they are made from.
    Gradients,
    /// Gradients under causal masks, mask tensors and dropout.
    GradientsMasked,
    /// Gradients of a bias, however it was broadcast.
    GradientsBias,
    /// Gradients of and into arrays that are not contiguous.
    GradientsStrided,
    /// Gradients of keys and values that several heads of queries share.
    GradientsGrouped,
    /// Gradients under windows.
    GradientsWindow,
    /// Gradients of sequences, and of what lies outside of them.
    GradientsSequences,
    /// Gradients under segments.
    GradientsSegments,
    /// Gradients under masks of blocks.
    GradientsBlocks,
    /// Gradients through softcaps and beside linear biases, and of tables of relative positions.
    GradientsScores,
    /// Gradients beside sinks, and of them.
    GradientsSinks,
    /// Dense layers.
    Project,
    /// Gradients of dense layers.
    ProjectBackward,
    /// Layer norm.
    Normalize,
    /// Gradients of layer norm.
    NormalizeBackward,
    /// Rotary embeddings.
    Rotary,
    /// Attention over parts of the keys, put together.
    Merge,
    /// What must hold bit for bit.
    Bitwise,
    /// Arguments that do not fit.
    Errors,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 37] = [
        Self::Plain,
        Self::Long,
        Self::Causal,
        Self::Mask,
        Self::Bias,
        Self::Weights,
        Self::Strided,
        Self::Extreme,
        Self::Dropout,
        Self::Grouped,
        Self::Window,
        Self::Sequences,
        Self::Segments,
        Self::Blocks,
        Self::Scores,
        Self::Sinks,
        Self::Stages,
        Self::Caches,
        Self::Gradients,
        Self::GradientsMasked,
        Self::GradientsBias,
        Self::GradientsStrided,
        Self::GradientsGrouped,
        Self::GradientsWindow,
        Self::GradientsSequences,
        Self::GradientsSegments,
        Self::GradientsBlocks,
        Self::GradientsScores,
        Self::GradientsSinks,
        Self::Project,
        Self::ProjectBackward,
        Self::Normalize,
        Self::NormalizeBackward,
        Self::Rotary,
        Self::Merge,
        Self::Bitwise,
        Self::Errors,
    ];
}

/// Runs a group's cases on a backend.
///
/// # Errors
///
/// The first [`Failure`], with the case's name and the numbers.
pub fn run<T: Element, B>(backend: &B, group: Group, maths: &Maths) -> Result<Report, Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    match group {
        Group::Project => dense::project::<T, B>(backend),
        Group::ProjectBackward => dense::backward::project::<T, B>(backend),
        Group::Normalize => norm::normalize::<T, B>(backend, maths),
        Group::NormalizeBackward => norm::backward::normalize::<T, B>(backend, maths),
        Group::Rotary => rotary::rotate::<T, B>(backend),
        Group::Merge => merge::merge::<T, B>(backend, maths),
        Group::Bitwise => properties::bitwise::<T, B>(backend).map(Report::exact),
        Group::Errors => properties::errors::<T, B>(backend).map(Report::exact),
        Group::Gradients
        | Group::GradientsMasked
        | Group::GradientsBias
        | Group::GradientsStrided
        | Group::GradientsGrouped
        | Group::GradientsWindow
        | Group::GradientsSequences
        | Group::GradientsSegments
        | Group::GradientsBlocks
        | Group::GradientsScores
        | Group::GradientsSinks => cases(group, |case| {
            gradients::attend::<T, B>(backend, case, maths)
        }),
        _ => cases(group, |case| forward::attend::<T, B>(backend, case, maths)),
    }
}

fn cases(
    group: Group,
    outcome: impl Fn(&Case) -> Result<Outcome, Failure>,
) -> Result<Report, Failure> {
    let mut report = Report::default();
    for case in cases::of(group) {
        report.add(outcome(&case)?);
    }
    Ok(report)
}

/// Tests of a backend for every dtype and group; see [`conformance`](crate::conformance).
#[macro_export]
macro_rules! conformance_tests {
    ($name:ident, $backend:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "what the backend's expression needs")]
            use super::*;
            $crate::conformance_tests!(@dtype $name, f32, f32, $backend);
            $crate::conformance_tests!(@dtype $name, f64, f64, $backend);
            $crate::conformance_tests!(@dtype $name, f16, $crate::f16, $backend);
            $crate::conformance_tests!(@dtype $name, bf16, $crate::bf16, $backend);
        }
    };
    (@dtype $name:ident, $dtype:ident, $type:ty, $backend:expr) => {
        mod $dtype {
            #[allow(unused_imports, reason = "what the backend's expression needs")]
            use super::super::*;
            $crate::conformance_tests!(@group $name, $type, $backend, plain Plain, long Long, causal Causal, mask Mask,
                bias Bias, weights Weights, strided Strided, extreme Extreme, dropout Dropout, grouped Grouped, window Window,
                sequences Sequences, segments Segments, blocks Blocks, scores Scores, sinks Sinks, stages Stages, caches Caches,
                gradients Gradients,
                gradients_masked GradientsMasked, gradients_bias GradientsBias, gradients_strided GradientsStrided,
                gradients_grouped GradientsGrouped, gradients_window GradientsWindow, gradients_sequences GradientsSequences,
                gradients_segments GradientsSegments, gradients_blocks GradientsBlocks, gradients_scores GradientsScores,
                gradients_sinks GradientsSinks,
                project Project, project_backward ProjectBackward, normalize Normalize,
                normalize_backward NormalizeBackward, rotary Rotary, merge Merge,
                bitwise Bitwise, errors Errors);
        }
    };
    (@group $name:ident, $type:ty, $backend:expr, $($test:ident $group:ident),+) => {
        $(
            #[test]
            #[allow(clippy::print_stderr, reason = "a skip must be seen")]
            fn $test() {
                let maths = $crate::conformance::Maths { exp: f64::exp, sqrt: f64::sqrt };
                match $backend {
                    Ok(backend) => {
                        let group = $crate::conformance::Group::$group;
                        match $crate::conformance::run::<$type, _>(&backend, group, &maths) {
                            Ok(report) => {
                                assert!(report.cases > 0, "a group without cases");
                                if report.is_all_refused() {
                                    ::std::eprintln!("REFUSED {}::{}", module_path!(), stringify!($test));
                                }
                            }
                            Err(failure) => panic!("{failure}"),
                        }
                    }
                    Err(reason) => {
                        let required = ::std::env::var("ATTN_REQUIRE").unwrap_or_default();
                        let this = stringify!($name);
                        let asked = required.split(',').any(|name| name == this || name == "all");
                        assert!(!asked, "{this} is required: {reason}");
                        ::std::eprintln!("SKIPPED {}::{}: {reason}", module_path!(), stringify!($test));
                    }
                }
            }
        )+
    };
}
