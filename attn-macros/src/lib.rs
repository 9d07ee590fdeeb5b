//! `#[dtype_variants(f32, f64, f16, bf16)]`: one generic layer, named variants for every dtype, and an enum over them.
//!
//! On a struct `Name<T>` it adds the aliases `NameF32`, `NameF64`, `NameF16`, `NameBF16`, the enum `AnyName` of all of them with
//! `dtype()`, and conversions both ways. On an `impl` it adds to `AnyName` each method marked `#[dispatch]`: arguments that
//! mention `T` become their `Any…` kin and are converted, a wrong dtype being `attn_core::Error::DTypeMismatch`.
//!
//! Options, after the dtypes: `name = "Other"` for another name than the struct's own, `over = "U"` for another type parameter than
//! `T`, `derive(Debug, Clone)` for the enum, `crate = "path"` for another path to `attn_core`.
//!
//! ```
//! use attn_core::DType;
//! use attn_macros::dtype_variants;
//!
//! /// A layer.
//! #[dtype_variants(f32, f16, derive(Debug))]
//! #[derive(Debug)]
//! pub struct Scale<T> {
//!     /// The factor.
//!     pub factor: T,
//! }
//!
//! let layer: AnyScale = ScaleF32 { factor: 2.0 }.into();
//! assert_eq!(layer.dtype(), DType::F32);
//! ```
//!
//! The crate's own way: `parse` reads the attribute and the item, `check` holds them against the rules and gives a `model`,
//! `expand` writes it out.

mod check;
mod expand;
mod model;
mod parse;

use proc_macro::TokenStream;

/// See the [crate's documentation](crate).
#[proc_macro_attribute]
pub fn dtype_variants(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand::variants(attribute.into(), item.into()).into()
}
