//! Why a node of a model cannot be had or computed.

use crate::io;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

/// What is wrong with a model, its node, or the inputs that it is given.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// The file is damaged.
    File(io::Error),
    /// There is no node of attention, or none of this name.
    NoNode {
        /// The name that was asked for.
        name: Option<String>,
    },
    /// There are several nodes of attention, and it was not said which is meant.
    Ambiguous {
        /// How many.
        count: usize,
    },
    /// The weights of an input are in a file of their own.
    External {
        /// The input's name.
        input: String,
    },
    /// An attribute that the operator does not have, or that is not supported with this value.
    Attribute {
        /// Its name.
        name: String,
    },
    /// An attribute that must be there and is not.
    AttributeMissing {
        /// Its name.
        name: &'static str,
    },
    /// An input that the node needs was not given, and the file has no weights for it.
    InputMissing {
        /// The input by the operator's name.
        input: &'static str,
        /// The value by the model's name, empty if the node has none.
        value: String,
    },
    /// A value that was given is no input of the node, or its weights are in the file.
    NoInput {
        /// The value by the model's name.
        value: String,
    },
    /// More inputs or outputs than the operator has.
    TooMany {
        /// How many are known.
        known: usize,
    },
    /// An input or output that the operator has and this library does not.
    Unsupported {
        /// What it is.
        feature: &'static str,
    },
    /// The call cannot be made.
    Call(Box<crate::Error>),
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::NoNode { name: None } => {
                f.write_str("the model's graph has no node Attention or com.microsoft.MultiHeadAttention. Fuse its attention first")
            }
            Self::NoNode { name: Some(name) } => write!(f, "the model's graph has no node of attention named {name:?}. List them by `nodes`"),
            Self::Ambiguous { count } => write!(f, "the model has {count} nodes of attention. Name one of them"),
            Self::External { input } => {
                write!(f, "the weights of `{input}` are in a file of their own. Save the model with its weights inside")
            }
            Self::Attribute { name } => write!(f, "the attribute `{name}` is not supported with its value. Export the model without it"),
            Self::AttributeMissing { name } => write!(f, "the attribute `{name}` is needed and is not there. Export the model anew"),
            Self::InputMissing { input, value } => {
                write!(f, "the input `{input}` was not given. Give the value {value:?} by its name")
            }
            Self::NoInput { value } => write!(f, "the value {value:?} is no open input of the node. Leave it out"),
            Self::TooMany { known } => write!(f, "the node has more than the {known} inputs or outputs that its operator has. Check the opset"),
            Self::Unsupported { feature } => write!(f, "{feature} of this operator is not supported. Export the model without it"),
            Self::Call(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ModelError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::File(error) => Some(error),
            Self::Call(error) => Some(&**error),
            _ => None,
        }
    }
}

impl From<io::Error> for ModelError {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl From<crate::Error> for ModelError {
    fn from(error: crate::Error) -> Self {
        Self::Call(Box::new(error))
    }
}
