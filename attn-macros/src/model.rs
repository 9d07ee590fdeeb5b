//! What the attribute asks for, after every rule has been checked.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Ident, ItemImpl, ItemStruct, Path, Signature};

/// A dtype by Rust's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DType {
    F32,
    F64,
    F16,
    BF16,
}

impl DType {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "f32" => Self::F32,
            "f64" => Self::F64,
            "f16" => Self::F16,
            "bf16" => Self::BF16,
            _ => return None,
        })
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// The suffix of aliases, and the variant of the enum and of `attn_core::DType`.
    pub(crate) const fn variant(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
        }
    }

    /// The type itself.
    pub(crate) fn type_tokens(self, core: &Path) -> TokenStream {
        match self {
            Self::F32 => quote!(f32),
            Self::F64 => quote!(f64),
            Self::F16 => quote!(#core::f16),
            Self::BF16 => quote!(#core::bf16),
        }
    }
}

/// What struct and impl have in common.
pub(crate) struct Common {
    pub(crate) dtypes: Vec<DType>,
    /// The name that aliases and the enum are made of.
    pub(crate) name: Ident,
    /// The type parameter that the dtypes replace.
    pub(crate) over: Ident,
    /// The path to `attn_core`.
    pub(crate) core: Path,
}

/// A request, checked.
pub(crate) enum Request {
    Struct {
        common: Common,
        derives: Vec<Path>,
        item: ItemStruct,
    },
    Impl {
        common: Common,
        item: ItemImpl,
        methods: Vec<Method>,
    },
}

/// A method marked `#[dispatch]`.
pub(crate) struct Method {
    pub(crate) signature: Signature,
    pub(crate) visibility: syn::Visibility,
    pub(crate) docs: Vec<syn::Attribute>,
    /// How each argument after `self` is passed on.
    pub(crate) arguments: Vec<Argument>,
    /// Whether the result mentions the type parameter.
    pub(crate) returns: Returns,
}

/// An argument of a dispatched method.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    /// Whether its type mentions the type parameter.
    pub(crate) converted: bool,
}

/// How a dispatched method's result is made that of the enum's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Returns {
    AsIs,
    Converted,
    ResultConverted,
}
