//! The suite that every backend on the host runs: an f64 oracle (in twice its precision), tolerances derived from plain
//! same-dtype arithmetic, cases by subject, and properties that must hold bit for bit.
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
//! **The tolerance.** An output may be off by twice the error that plain arithmetic in the same dtype makes on the same
//! case (Flax's own order of operations, every step rounded, the worst of three orders of its sums, which no definition
//! fixes), and always by half a unit in the last place of the largest
//! output: a result rounded correctly from an exact one can be off by that.

mod cases;
mod check;
mod data;
mod oracle;
mod plain;
mod properties;

pub use cases::{Case, Placement};
pub use check::{Failure, Maths};
pub use plain::Reference;

use crate::dtype::Element;
use crate::error::Error;
use crate::kernels::{Backend, Kernels};
use crate::view::Host;

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
    /// Dense layers.
    Project,
    /// Layer norm.
    Normalize,
    /// What must hold bit for bit.
    Bitwise,
    /// Arguments that do not fit.
    Errors,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 12] = [
        Self::Plain,
        Self::Long,
        Self::Causal,
        Self::Mask,
        Self::Bias,
        Self::Weights,
        Self::Strided,
        Self::Extreme,
        Self::Project,
        Self::Normalize,
        Self::Bitwise,
        Self::Errors,
    ];
}

/// Runs a group's cases on a backend and gives their number.
///
/// # Errors
///
/// The first [`Failure`], with the case's name and the numbers.
pub fn run<T: Element, B>(backend: &B, group: Group, maths: &Maths) -> Result<usize, Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    match group {
        Group::Project => check::project(backend, maths),
        Group::Normalize => check::normalize(backend, maths),
        Group::Bitwise => properties::bitwise(backend),
        Group::Errors => properties::errors(backend),
        _ => {
            let mut count = 0;
            for case in cases::of(group) {
                check::attend::<T, B>(backend, &case, maths)?;
                count += 1;
            }
            Ok(count)
        }
    }
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
                bias Bias, weights Weights, strided Strided, extreme Extreme, project Project, normalize Normalize,
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
                            Ok(count) => assert!(count > 0, "a group without cases"),
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
