//! `#[dtype_variants(f32, f64, f16, bf16)]`: one generic layer, named variants for every dtype, and an enum over them.
//!
//! On a struct `Name<T>` it adds the aliases `NameF32`, `NameF64`, `NameF16`, `NameBF16`, the enum `AnyName` of all of them with
//! `dtype()`, `From` each of them, and `TryFrom` back to each by value, `&` and `&mut`. Other generics are kept; a bound on one
//! of them that mentions `T`, `S: Holds<T>`, becomes a bound for every dtype.
//!
//! On an inherent `impl` it adds to `AnyName` each method marked `#[dispatch]`. Arguments `Other<.., T>` by value, `&` or `&mut`
//! become `AnyOther<..>` and are converted, a wrong dtype being `attn_core::Error::DTypeMismatch`; so the method returns a
//! `Result` whose error is `From<attn_core::Error>`. A returned `Other<.., T>`, in a `Result` or not, becomes `AnyOther<..>` too.
//! `Self` and the type's own name stand for the enum.
//!
//! Options, after the dtypes: `name = "Other"` for another name than the struct's own, `over = "U"` for another type parameter than
//! `T`, `derive(Debug, Clone)` for the enum, `crate = "path"` for another path to `attn_core`.
//!
//! ```
//! use attn_core::{DType, Element};
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
//! #[dtype_variants(f32, f16)]
//! impl<T: Element> Scale<T> {
//!     /// `x` times the factor.
//!     #[dispatch]
//!     pub fn apply(&self, x: f64) -> f64 {
//!         self.factor.to_f64() * x
//!     }
//! }
//!
//! // The dtype is known at run time only, as when weights are loaded.
//! let layer: AnyScale = ScaleF32 { factor: 2.0 }.into();
//! assert_eq!(layer.dtype(), DType::F32);
//! assert_eq!(layer.apply(3.0), 6.0);
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
