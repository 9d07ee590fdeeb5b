//! What a struct gets: aliases, the enum, conversions.

use super::generics::{name, of_alias, of_any};
use crate::model::{Common, DType};
use proc_macro2::TokenStream;
use quote::quote;
use syn::{GenericParam, Ident, ItemStruct, Path, parse_quote};

pub(super) fn expand(common: &Common, derives: &[Path], item: &ItemStruct) -> TokenStream {
    let aliases = common
        .dtypes
        .iter()
        .map(|&dtype| alias(common, item, dtype));
    let any = enumeration(common, derives, item);
    let conversions = common
        .variants()
        .map(|(dtype, variant)| conversions(common, item, dtype, &variant));
    quote!(#item #(#aliases)* #any #(#conversions)*)
}

/// `pub type NameF32<'a, S> = Struct<'a, S, f32>;`
fn alias(common: &Common, item: &ItemStruct, dtype: DType) -> TokenStream {
    let (vis, cfgs, alias) = (&item.vis, &common.cfgs, common.alias(dtype));
    let doc = format!(" The `{}` variant of [`{}`].", dtype.name(), item.ident);
    let generics = of_alias(common, &item.generics, dtype);
    let of = type_of(common, item, dtype);
    quote!(#(#cfgs)* #[doc = #doc] #vis type #alias #generics = #of;)
}

/// The struct with a dtype in the type parameter's place.
fn type_of(common: &Common, item: &ItemStruct, dtype: DType) -> TokenStream {
    let ident = &item.ident;
    let arguments = item
        .generics
        .params
        .iter()
        .map(|parameter| match parameter {
            GenericParam::Type(parameter) if parameter.ident == common.over => {
                dtype.type_tokens(&common.core)
            }
            other => name(other),
        });
    quote!(#ident<#(#arguments),*>)
}

fn enumeration(common: &Common, derives: &[Path], item: &ItemStruct) -> TokenStream {
    let (any, core, vis, cfgs) = (common.any(), &common.core, &item.vis, &common.cfgs);
    let generics = of_any(common, &item.generics);
    let (impl_generics, type_generics, clause) = generics.split_for_impl();
    let doc = format!(" A [`{}`] of a dtype known only at run time.", item.ident);
    let derive = (!derives.is_empty()).then(|| quote!(#[derive(#(#derives),*)]));
    let variants = common.variants().map(|(dtype, variant)| {
        let of = type_of(common, item, dtype);
        let doc = format!(" Of `{}`.", dtype.name());
        quote!(#[doc = #doc] #variant(#of))
    });
    let arms = common
        .variants()
        .map(|(_, variant)| quote!(Self::#variant(_) => #core::DType::#variant));
    quote! {
        #(#cfgs)*
        #[doc = #doc]
        #derive
        #vis enum #any #generics #clause {
            #(#variants),*
        }

        #(#cfgs)*
        impl #impl_generics #any #type_generics #clause {
            /// Its dtype.
            #[must_use]
            #vis const fn dtype(&self) -> #core::DType {
                match self {
                    #(#arms),*
                }
            }
        }
    }
}

/// From the variant to the enum, and back by value and by both references.
fn conversions(common: &Common, item: &ItemStruct, dtype: DType, variant: &Ident) -> TokenStream {
    let (any, cfgs) = (common.any(), &common.cfgs);
    let generics = of_any(common, &item.generics);
    let (impl_generics, type_generics, clause) = generics.split_for_impl();
    let of = type_of(common, item, dtype);
    let back = [quote!(), quote!(&'any), quote!(&'any mut)].map(|reference| {
        let mut generics = generics.clone();
        if !reference.is_empty() {
            generics.params.insert(0, parse_quote!('any));
        }
        let (impl_generics, ..) = generics.split_for_impl();
        let (from, to) = (
            quote!(#reference #any #type_generics),
            quote!(#reference #of),
        );
        let body = unwrapped(common, variant);
        let core = &common.core;
        quote! {
            #(#cfgs)*
            impl #impl_generics ::core::convert::TryFrom<#from> for #to #clause {
                type Error = #core::Error;
                fn try_from(any: #from) -> ::core::result::Result<Self, Self::Error> {
                    #body
                }
            }
        }
    });
    quote! {
        #(#cfgs)*
        impl #impl_generics ::core::convert::From<#of> for #any #type_generics #clause {
            fn from(value: #of) -> Self {
                Self::#variant(value)
            }
        }

        #(#back)*
    }
}

/// What is in the enum if it is of this variant. With one dtype there is no other.
fn unwrapped(common: &Common, variant: &Ident) -> TokenStream {
    let (any, core) = (common.any(), &common.core);
    let argument = snake_case(&common.name.to_string());
    let other = (common.dtypes.len() > 1).then(|| {
        quote! {
            other => ::core::result::Result::Err(
                #core::Error::dtype_mismatch(#argument, other.dtype(), #core::DType::#variant)
            ),
        }
    });
    quote! {
        match any {
            #any::#variant(value) => ::core::result::Result::Ok(value),
            #other
        }
    }
}

/// `ViewMut` is `view_mut`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
