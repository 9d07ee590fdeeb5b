//! What must hold bit for bit, and what must be refused.

mod bitwise;
mod errors;

use super::verdict::Failure;
use crate::dtype::Element;
use crate::error::Error;
use crate::kernels::{Backend, Kernels};
use crate::request::Features;
use crate::view::Host;
use alloc::format;
use alloc::string::String;

pub(super) use bitwise::bitwise;
pub(super) use errors::errors;

/// A backend that the suite can run: its buffers are slices.
pub(super) trait OnHost<T: Element>:
    Kernels<T> + Backend<Storage = Host, Error = Error>
{
}

impl<T: Element, B> OnHost<T> for B where B: Kernels<T> + Backend<Storage = Host, Error = Error> {}

/// In what way a property is broken.
pub(super) struct Broken(pub(super) String);

impl From<Error> for Broken {
    /// A call that should work was refused.
    fn from(error: Error) -> Self {
        Self(format!("{error}"))
    }
}

/// What came of a call that uses `used`, by a backend that has `supported`: done, or refused for the first part that the backend lacks.
pub(super) fn done(
    result: Result<(), Error>,
    used: Features,
    supported: Features,
) -> Result<bool, Broken> {
    let Some(missing) = used.without(supported).first_name() else {
        result?;
        return Ok(true);
    };
    match result {
        Err(Error::Unsupported { feature, .. }) if feature == missing => Ok(false),
        other => Err(Broken(format!(
            "the backend does not claim to have {missing}, and gave {other:?} where it must refuse it by that name"
        ))),
    }
}

type Check<B> = fn(&B) -> Result<(), Broken>;

/// Runs checks, each under its name, and gives their number.
fn run<B>(backend: &B, checks: &[(&str, Check<B>)]) -> Result<usize, Failure> {
    for (name, check) in checks {
        check(backend).map_err(|Broken(what)| Failure::new(*name, what))?;
    }
    Ok(checks.len())
}

/// Index of the first element that does not hold `value`, bit for bit.
fn first_not<T: Element>(value: T, elements: &[T]) -> Option<usize> {
    let kept = |element: &T| bytemuck::bytes_of(element) == bytemuck::bytes_of(&value);
    elements.iter().position(|element| !kept(element))
}
