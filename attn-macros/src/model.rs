//! What the attribute asks for, after every rule has been checked.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{Attribute, Ident, ItemImpl, ItemStruct, Path, Signature, Type, Visibility};

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
    /// The type's own name.
    pub(crate) own: Ident,
    /// The type parameter that the dtypes replace.
    pub(crate) over: Ident,
    /// The path to `attn_core`.
    pub(crate) core: Path,
    /// The item's `#[cfg(..)]`, which what is generated shares.
    pub(crate) cfgs: Vec<Attribute>,
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
    pub(crate) visibility: Visibility,
    /// Those that say as much of the enum's method as of this one.
    pub(crate) attributes: Vec<Attribute>,
    /// How each argument after `self` is passed on.
    pub(crate) arguments: Vec<Argument>,
    pub(crate) returns: Returns,
}

/// An argument of a dispatched method.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    /// Whether the enum's method takes its `Any…` kin.
    pub(crate) converted: bool,
}

/// How a dispatched method's result is made that of the enum's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Returns {
    AsIs,
    Converted,
    ResultConverted,
}

/// Whether the attribute is the one that marks a method for the enum.
pub(crate) fn is_dispatch(attribute: &Attribute) -> bool {
    attribute.path().is_ident("dispatch")
}

/// Whether the type is the parameter itself.
pub(crate) fn is_parameter(ty: &Type, over: &Ident) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident(over))
}

/// Whether the parameter stands anywhere in it.
pub(crate) fn mentions(tokens: &impl ToTokens, over: &Ident) -> bool {
    fn any(stream: TokenStream, over: &Ident) -> bool {
        stream.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => ident == *over,
            TokenTree::Group(group) => any(group.stream(), over),
            _ => false,
        })
    }
    any(tokens.to_token_stream(), over)
}

/// Whether the type is the parameter, or a type named through it, as `T::Acc` is.
pub(crate) fn starts_with(ty: &Type, over: &Ident) -> bool {
    match ty {
        Type::Path(path) => match &path.qself {
            Some(of) => starts_with(&of.ty, over),
            None => path
                .path
                .segments
                .first()
                .is_some_and(|first| first.ident == *over),
        },
        _ => false,
    }
}
