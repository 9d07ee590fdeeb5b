//! From the model to tokens.

mod generics;
mod implementation;
mod structure;

use crate::check::check;
use crate::model::{Common, DType, Request, is_dispatch};
use crate::parse::parse;
use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::{Ident, ImplItem, Item, ItemImpl};

/// The attribute's expansion. After an error the item still stands, so that one error does not cause others.
pub(crate) fn variants(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let original = item.clone();
    match parse(attribute, item).and_then(|(arguments, item)| check(arguments, item)) {
        Ok(Request::Struct {
            common,
            derives,
            item,
        }) => structure::expand(&common, &derives, &item),
        Ok(Request::Impl {
            common,
            item,
            methods,
        }) => implementation::expand(&common, item, &methods),
        Err(error) => {
            let error = error.into_compile_error();
            let item = without_dispatch(original);
            quote!(#item #error)
        }
    }
}

/// The item as it was, without the helper attribute that only this macro knows.
fn without_dispatch(item: TokenStream) -> TokenStream {
    match syn::parse2::<Item>(item.clone()) {
        Ok(Item::Impl(mut item)) => {
            remove_dispatch(&mut item);
            item.into_token_stream()
        }
        _ => item,
    }
}

fn remove_dispatch(item: &mut ItemImpl) {
    for item in &mut item.items {
        if let ImplItem::Fn(function) = item {
            function.attrs.retain(|attribute| !is_dispatch(attribute));
        }
    }
}

impl Common {
    /// The enum's name.
    fn any(&self) -> Ident {
        format_ident!("Any{}", self.name)
    }

    fn alias(&self, dtype: DType) -> Ident {
        format_ident!("{}{}", self.name, dtype.variant())
    }

    /// The dtypes' types with their variants of the enum.
    fn variants(&self) -> impl Iterator<Item = (DType, Ident)> {
        self.dtypes
            .iter()
            .map(|&dtype| (dtype, format_ident!("{}", dtype.variant())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(attribute: TokenStream, item: TokenStream) -> String {
        let file = syn::parse2(variants(attribute, item)).expect("the expansion parses");
        prettyplease::unparse(&file)
    }

    #[test]
    fn a_struct_gets_aliases_an_enum_and_conversions() {
        let item = quote! {
            /// Doc.
            #[derive(Debug)]
            pub struct LayerOf<T> { x: T }
        };
        insta::assert_snapshot!(expanded(
            quote!(f32, bf16, name = "Layer", derive(Debug)),
            item
        ));
    }

    #[test]
    fn other_generics_are_kept() {
        let item = quote! {
            #[cfg(feature = "params")]
            pub(crate) struct Params<'a, 'p: 'a, S: Storage + Holds<T>, T: Element, const N: usize, B = Vec<T>>
            where
                S: Copy,
                T: Copy,
                T::Acc: Copy,
                S::Buf<T>: Debug,
            {
                x: &'p S::Buf<T>,
            }
        };
        insta::assert_snapshot!(expanded(quote!(f64, f16), item));
    }

    #[test]
    fn one_dtype_has_no_mismatch() {
        let item = quote! {
            struct Layer<U>(U);
        };
        insta::assert_snapshot!(expanded(
            quote!(f16, over = "U", crate = "crate::core"),
            item
        ));
    }

    #[test]
    fn marked_methods_are_dispatched() {
        let item = quote! {
            impl<T: Element> LayerOf<T> {
                /// Applies.
                #[dispatch]
                #[cfg(feature = "apply")]
                #[inline]
                pub fn apply<B: Kernels<T>>(
                    &self, backend: &B, params: &Params<'_, B::Storage, T>, mut out: View<'_, T>,
                ) -> Result<(), B::Error> { body() }
                /// Not dispatched.
                pub fn other(&self) {}
                #[dispatch]
                #[must_use]
                fn doubled(mut self) -> Self { body() }
                #[dispatch]
                fn tried(&mut self, other: &Self) -> Result<LayerOf<T>, Error> { body() }
                #[dispatch]
                fn with(&self, backend: &impl Kernels<T>) -> Factor<T>
                where
                    T: Copy,
                    Vec<T>: Clone,
                { body() }
            }
        };
        insta::assert_snapshot!(expanded(quote!(f32, f16, name = "Layer"), item));
    }
}
