//! Which error of the library means the same as an exception of Flax.

use super::case::Exception;
use anyhow::{Result, bail};
use attn_layers::Error;
use attn_layers::core::error::Disagreement;

/// Checks that `error` means what `exception` means.
///
/// # Errors
///
/// If it means something else, or if the exception is not one that the attention layer is known to raise.
pub(crate) fn check(exception: &Exception, error: &Error) -> Result<()> {
    let Some(meaning) = Meaning::of(exception) else {
        bail!(
            "no rule for Flax's {}: {}",
            exception.class,
            exception.message
        );
    };
    if !meaning.fits(error) {
        bail!(
            "the error means something else: got \"{error}\", wanted the meaning of {}: {}",
            exception.class,
            exception.message
        );
    }
    Ok(())
}

/// What an exception says.
#[derive(Debug, Clone, PartialEq)]
enum Meaning {
    InputsKvTwice,
    ValueWithoutKey,
    HeadsDoNotDivide,
    NoHeads,
    Disagreement(Disagreement),
    CacheQueryShape,
    CacheMissing,
    CacheImmutable,
    CacheUpdate,
    CacheType,
    Broadcast,
    MaskRank,
    DeterministicMissing,
    DeterministicTwice,
    DropoutRng,
    KeyWords,
    ParamShape(Parameter),
    ParamMissing(Parameter),
    ParamsEmpty,
    NotInexact,
    MissingAxis,
    Exclusive,
    Together,
}

/// A parameter by its submodule and name.
#[derive(Debug, Clone, PartialEq)]
struct Parameter {
    scope: String,
    name: String,
}

/// Classes and starts of messages whose meaning needs no further look.
const PLAIN: &[(&str, &str, Meaning)] = &[
    (
        "ValueError",
        "If either `inputs_k` or `inputs_v` is not None, `inputs_kv` must be None",
        Meaning::InputsKvTwice,
    ),
    (
        "ValueError",
        "`inputs_k` cannot be None if `inputs_v` is not None",
        Meaning::ValueWithoutKey,
    ),
    (
        "AssertionError",
        "Memory dimension",
        Meaning::HeadsDoNotDivide,
    ),
    ("ZeroDivisionError", "", Meaning::NoHeads),
    (
        "ValueError",
        "Autoregressive cache shape error",
        Meaning::CacheQueryShape,
    ),
    (
        "ScopeCollectionNotFound",
        "Tried to access \"cached_key\" from collection \"cache\"",
        Meaning::CacheMissing,
    ),
    (
        "ModifyScopeVariableError",
        "Cannot update variable \"cach",
        Meaning::CacheImmutable,
    ),
    (
        "TypeError",
        "lax.dynamic_update_slice requires arguments to have the same dtypes",
        Meaning::CacheType,
    ),
    (
        "TypeError",
        "dynamic_update_slice update ",
        Meaning::CacheUpdate,
    ),
    (
        "ValueError",
        "Incompatible shapes for broadcasting",
        Meaning::Broadcast,
    ),
    (
        "AssertionError",
        "masks must have same rank",
        Meaning::MaskRank,
    ),
    (
        "ValueError",
        "Parameter \"deterministic\" must be passed",
        Meaning::DeterministicMissing,
    ),
    (
        "ValueError",
        "Parameter \"deterministic\" was passed",
        Meaning::DeterministicTwice,
    ),
    ("InvalidRngError", "", Meaning::DropoutRng),
    (
        "TypeError",
        "unexpected PRNG key type <class 'NoneType'>",
        Meaning::DropoutRng,
    ),
    (
        "TypeError",
        "JAX encountered invalid PRNG key data: expected key_data.shape",
        Meaning::KeyWords,
    ),
    (
        "ValueError",
        "The ``rngs`` argument passed to an apply function should be",
        Meaning::KeyWords,
    ),
    (
        "ScopeCollectionNotFound",
        "Tried to access \"kernel\" from collection \"params\"",
        Meaning::ParamsEmpty,
    ),
    ("ValueError", "Dtype must be inexact", Meaning::NotInexact),
    (
        "IndexError",
        "tuple index out of range",
        Meaning::MissingAxis,
    ),
];

impl Meaning {
    fn of(exception: &Exception) -> Option<Self> {
        let Exception { class, message } = exception;
        if let Some((.., meaning)) = PLAIN
            .iter()
            .find(|(c, start, _)| c == class && message.starts_with(start))
        {
            return Some(meaning.clone());
        }
        match class.as_str() {
            "AssertionError" => Self::of_assertion(message),
            "TypeError" if message.contains("got incompatible shapes for broadcasting") => {
                Some(Self::Broadcast)
            }
            "ValueError" if message.contains("mutually exclusive") => Some(Self::Exclusive),
            "ValueError" if message.contains("must be specified together") => Some(Self::Together),
            "ScopeParamShapeError" => Some(Self::ParamShape(Parameter::named_in(message)?)),
            "ScopeParamNotFoundError" => Some(Self::ParamMissing(Parameter::named_in(message)?)),
            _ => None,
        }
    }

    /// `q, k, v must have same rank.` and its kin.
    fn of_assertion(message: &str) -> Option<Self> {
        let what = [
            ("must have same rank", Disagreement::Rank),
            ("batch dims must match", Disagreement::BatchDims),
            ("num_heads must match", Disagreement::NumHeads),
            ("lengths must match", Disagreement::Lengths),
            ("depths must match", Disagreement::Depths),
        ];
        let found = what.iter().find(|(words, _)| message.contains(words));
        found.map(|&(_, what)| Self::Disagreement(what))
    }

    fn fits(&self, error: &Error) -> bool {
        match self {
            Self::InputsKvTwice => matches!(error, Error::InputsKvWithKeyOrValue),
            Self::ValueWithoutKey => matches!(error, Error::ValueWithoutKey),
            Self::HeadsDoNotDivide => matches!(error, Error::HeadsDoNotDivide { .. }),
            Self::NoHeads => matches!(error, Error::NoHeads),
            Self::Disagreement(wanted) => {
                matches!(error, Error::Mismatch { what, .. } if what == wanted)
            }
            Self::CacheQueryShape => matches!(error, Error::CacheQueryShape { .. }),
            Self::CacheMissing => matches!(error, Error::CacheMissing),
            Self::CacheImmutable => matches!(error, Error::CacheImmutable),
            Self::CacheType => matches!(error, Error::DTypeMismatch { .. }),
            Self::CacheUpdate => matches!(
                error,
                Error::Shape { .. }
                    | Error::Rank { .. }
                    | Error::Mismatch { .. }
                    | Error::CacheFull { .. }
            ),
            Self::Broadcast => matches!(error, Error::Broadcast { .. }),
            Self::MaskRank => matches!(error, Error::MaskRank { .. }),
            Self::DeterministicMissing => matches!(error, Error::DeterministicMissing),
            Self::DeterministicTwice => matches!(error, Error::DeterministicGivenTwice),
            Self::DropoutRng => matches!(error, Error::DropoutRngMissing),
            Self::KeyWords => matches!(error, Error::KeyWords { .. }),
            Self::ParamShape(wanted) => {
                matches!(error, Error::ParamShape { scope, name, .. } if wanted.is(scope, name))
            }
            Self::ParamMissing(wanted) => {
                matches!(error, Error::ParamMissing { scope, name } if wanted.is(scope, name))
            }
            Self::ParamsEmpty => matches!(error, Error::ParamsEmpty),
            Self::NotInexact => matches!(error, Error::NotInexact { .. }),
            Self::MissingAxis => matches!(error, Error::Rank { .. }),
            Self::Exclusive => matches!(error, Error::Exclusive { .. }),
            Self::Together => matches!(error, Error::Together { .. }),
        }
    }
}

impl Parameter {
    /// Reads `parameter named "bias" in scope "/a/query"` and `parameter "bias" in "/a/query"`: the first two quoted texts.
    fn named_in(message: &str) -> Option<Self> {
        let mut quoted = message.split('"').skip(1).step_by(2);
        let name = quoted.next()?.to_owned();
        let scope = quoted.next()?.rsplit('/').next()?.to_owned();
        Some(Self { scope, name })
    }

    fn is(&self, scope: &str, name: &str) -> bool {
        self.scope == scope && self.name == name
    }
}
