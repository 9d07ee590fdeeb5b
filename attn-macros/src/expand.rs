//! From the model to tokens.

use crate::check::{check, is_dispatch, is_parameter, mentions};
use crate::model::{Common, DType, Method, Request, Returns};
use crate::parse::parse;
use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::punctuated::Punctuated;
use syn::visit_mut::{VisitMut, visit_type_path_mut};
use syn::{
    GenericArgument, GenericParam, Generics, Ident, ImplItem, Item, ItemImpl, ItemStruct, Path,
    PathArguments, Token, Type, TypePath, WherePredicate, parse_quote,
};

/// The attribute's expansion. After an error the item still stands, so that one error does not cause others.
pub(crate) fn variants(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let original = item.clone();
    match parse(attribute, item).and_then(|(arguments, item)| check(arguments, item)) {
        Ok(Request::Struct {
            common,
            derives,
            item,
        }) => structure(&common, &derives, &item),
        Ok(Request::Impl {
            common,
            item,
            methods,
        }) => implementation(&common, item, &methods),
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
    fn any(&self) -> Ident {
        format_ident!("Any{}", self.name)
    }

    fn alias(&self, dtype: DType) -> Ident {
        format_ident!("{}{}", self.name, dtype.variant())
    }
}

fn structure(common: &Common, derives: &[Path], item: &ItemStruct) -> TokenStream {
    let aliases = common
        .dtypes
        .iter()
        .map(|&dtype| alias(common, item, dtype));
    let any = enumeration(common, derives, item);
    let conversions = common
        .dtypes
        .iter()
        .map(|&dtype| conversions(common, item, dtype));
    quote!(#item #(#aliases)* #any #(#conversions)*)
}

/// `pub type NameF32<'a, S> = Struct<'a, S, f32>;`
fn alias(common: &Common, item: &ItemStruct, dtype: DType) -> TokenStream {
    let ItemStruct {
        vis,
        ident,
        generics,
        ..
    } = item;
    let alias = common.alias(dtype);
    let doc = format!(" The `{}` variant of [`{ident}`].", dtype.name());
    let parameters = names_without(generics, &common.over);
    let parameters = if parameters.is_empty() {
        quote!()
    } else {
        quote!(<#parameters>)
    };
    let of = type_of(common, item, dtype);
    quote!(#[doc = #doc] #vis type #alias #parameters = #of;)
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

fn name(parameter: &GenericParam) -> TokenStream {
    match parameter {
        GenericParam::Lifetime(parameter) => parameter.lifetime.to_token_stream(),
        GenericParam::Type(parameter) => parameter.ident.to_token_stream(),
        GenericParam::Const(parameter) => parameter.ident.to_token_stream(),
    }
}

fn names_without(generics: &Generics, over: &Ident) -> TokenStream {
    let names = without(generics, over)
        .params
        .iter()
        .map(name)
        .collect::<Vec<_>>();
    quote!(#(#names),*)
}

/// The generics without the type parameter and what is said of it.
fn without(generics: &Generics, over: &Ident) -> Generics {
    let mut generics = generics.clone();
    generics.params = generics
        .params
        .into_iter()
        .filter(|parameter| !matches!(parameter, GenericParam::Type(parameter) if parameter.ident == *over))
        .collect();
    if let Some(clause) = &mut generics.where_clause {
        clause.predicates = core::mem::take(&mut clause.predicates)
            .into_iter()
            .filter(|predicate| !mentions(predicate, over))
            .collect();
    }
    generics
}

fn enumeration(common: &Common, derives: &[Path], item: &ItemStruct) -> TokenStream {
    let (any, core, vis) = (common.any(), &common.core, &item.vis);
    let generics = without(&item.generics, &common.over);
    let (impl_generics, type_generics, clause) = generics.split_for_impl();
    let doc = format!(" A [`{}`] of a dtype known only at run time.", item.ident);
    let derive = if derives.is_empty() {
        quote!()
    } else {
        quote!(#[derive(#(#derives),*)])
    };
    let variants = common.dtypes.iter().map(|&dtype| {
        let variant = format_ident!("{}", dtype.variant());
        let of = type_of(common, item, dtype);
        let doc = format!(" Of `{}`.", dtype.name());
        quote!(#[doc = #doc] #variant(#of))
    });
    let arms = common.dtypes.iter().map(|&dtype| {
        let variant = format_ident!("{}", dtype.variant());
        quote!(Self::#variant(_) => #core::DType::#variant)
    });
    quote! {
        #[doc = #doc]
        #derive
        #vis enum #any #generics #clause {
            #(#variants),*
        }

        impl #impl_generics #any #type_generics #clause {
            /// Its dtype.
            #[must_use]
            pub const fn dtype(&self) -> #core::DType {
                match self {
                    #(#arms),*
                }
            }
        }
    }
}

/// From the variant to the enum, and back by value and by both references.
fn conversions(common: &Common, item: &ItemStruct, dtype: DType) -> TokenStream {
    let (any, core) = (common.any(), &common.core);
    let generics = without(&item.generics, &common.over);
    let (impl_generics, type_generics, clause) = generics.split_for_impl();
    let variant = format_ident!("{}", dtype.variant());
    let of = type_of(common, item, dtype);
    let mut borrowed = generics.clone();
    borrowed.params.insert(0, parse_quote!('any));
    let (borrowed_generics, ..) = borrowed.split_for_impl();
    let argument = snake_case(&common.name.to_string());
    let mismatch = quote! {
        #[allow(unreachable_patterns, reason = "there may be one dtype only")]
        other => Err(#core::Error::dtype_mismatch(#argument, other.dtype(), #core::DType::#variant)),
    };
    quote! {
        impl #impl_generics From<#of> for #any #type_generics #clause {
            fn from(value: #of) -> Self {
                Self::#variant(value)
            }
        }

        impl #impl_generics TryFrom<#any #type_generics> for #of #clause {
            type Error = #core::Error;
            fn try_from(any: #any #type_generics) -> Result<Self, Self::Error> {
                match any {
                    #any::#variant(value) => Ok(value),
                    #mismatch
                }
            }
        }

        impl #borrowed_generics TryFrom<&'any #any #type_generics> for &'any #of #clause {
            type Error = #core::Error;
            fn try_from(any: &'any #any #type_generics) -> Result<Self, Self::Error> {
                match any {
                    #any::#variant(value) => Ok(value),
                    #mismatch
                }
            }
        }

        impl #borrowed_generics TryFrom<&'any mut #any #type_generics> for &'any mut #of #clause {
            type Error = #core::Error;
            fn try_from(any: &'any mut #any #type_generics) -> Result<Self, Self::Error> {
                match any {
                    #any::#variant(value) => Ok(value),
                    #mismatch
                }
            }
        }
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_uppercase() && index > 0 {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

fn implementation(common: &Common, mut item: ItemImpl, methods: &[Method]) -> TokenStream {
    remove_dispatch(&mut item);
    if methods.is_empty() {
        return item.into_token_stream();
    }
    let generics = without(&item.generics, &common.over);
    let (impl_generics, _, clause) = generics.split_for_impl();
    let any = any_type(&item.self_ty, common);
    let methods = methods.iter().map(|method| dispatch(common, method));
    quote! {
        #item

        impl #impl_generics #any #clause {
            #(#methods)*
        }
    }
}

/// The enum in the place of the impl's own type.
fn any_type(own: &Type, common: &Common) -> Type {
    let mut any = own.clone();
    Anys { over: &common.over }.visit_type_mut(&mut any);
    if let Type::Path(path) = &mut any
        && let Some(last) = path.path.segments.last_mut()
    {
        last.ident = common.any();
    }
    any
}

fn dispatch(common: &Common, method: &Method) -> TokenStream {
    let mut signature = method.signature.clone();
    spread_bounds(common, &mut signature.generics);
    let mut anys = Anys { over: &common.over };
    for input in signature.inputs.iter_mut().skip(1) {
        anys.visit_fn_arg_mut(input);
    }
    anys.visit_return_type_mut(&mut signature.output);
    let name = &signature.ident;
    let arguments = method.arguments.iter().map(|argument| {
        let name = &argument.name;
        if argument.converted {
            quote!(TryFrom::try_from(#name)?)
        } else {
            name.to_token_stream()
        }
    });
    let arguments = arguments.collect::<Vec<_>>();
    let result = match method.returns {
        Returns::AsIs => quote!(),
        Returns::Converted => quote!(.into()),
        Returns::ResultConverted => quote!(.map(Into::into)),
    };
    let arms = common.dtypes.iter().map(|dtype| {
        let variant = format_ident!("{}", dtype.variant());
        quote!(Self::#variant(this) => this.#name(#(#arguments),*)#result)
    });
    let (docs, visibility) = (&method.docs, &method.visibility);
    let many =
        quote!(#[allow(clippy::too_many_arguments, reason = "those of the method that it calls")]);
    quote! {
        #(#docs)*
        #many
        #visibility #signature {
            match self {
                #(#arms),*
            }
        }
    }
}

/// `B: Kernels<T>` becomes `B: Kernels<f32> + Kernels<f64> + …`.
fn spread_bounds(common: &Common, generics: &mut Generics) {
    let spread = |bounds: &mut Punctuated<syn::TypeParamBound, Token![+]>| {
        let old = core::mem::take(bounds);
        for bound in old {
            if !mentions(&bound, &common.over) {
                bounds.push(bound);
                continue;
            }
            for &dtype in &common.dtypes {
                let mut bound = bound.clone();
                Replaces {
                    over: &common.over,
                    by: dtype.type_tokens(&common.core),
                }
                .visit_type_param_bound_mut(&mut bound);
                bounds.push(bound);
            }
        }
    };
    for parameter in &mut generics.params {
        if let GenericParam::Type(parameter) = parameter {
            spread(&mut parameter.bounds);
        }
    }
    if let Some(clause) = &mut generics.where_clause {
        for predicate in &mut clause.predicates {
            if let WherePredicate::Type(predicate) = predicate {
                spread(&mut predicate.bounds);
            }
        }
    }
}

/// Puts a dtype in the type parameter's place.
struct Replaces<'a> {
    over: &'a Ident,
    by: TokenStream,
}

impl VisitMut for Replaces<'_> {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if is_parameter(ty, self.over) {
            let by = &self.by;
            *ty = parse_quote!(#by);
        } else {
            syn::visit_mut::visit_type_mut(self, ty);
        }
    }
}

/// `Name<'a, S, T>` becomes `AnyName<'a, S>`.
struct Anys<'a> {
    over: &'a Ident,
}

impl VisitMut for Anys<'_> {
    fn visit_type_path_mut(&mut self, path: &mut TypePath) {
        visit_type_path_mut(self, path);
        let Some(last) = path.path.segments.last_mut() else {
            return;
        };
        let PathArguments::AngleBracketed(arguments) = &mut last.arguments else {
            return;
        };
        let is_over = |argument: &GenericArgument| matches!(argument, GenericArgument::Type(ty) if is_parameter(ty, self.over));
        if !arguments.args.iter().any(is_over) {
            return;
        }
        let kept = core::mem::take(&mut arguments.args)
            .into_iter()
            .filter(|argument| !is_over(argument));
        let kept: Punctuated<GenericArgument, Token![,]> = kept.collect();
        last.ident = format_ident!("Any{}", last.ident);
        if kept.is_empty() {
            last.arguments = PathArguments::None;
        } else {
            arguments.args = kept;
        }
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
            pub struct Params<'p, S: Storage, T: Element> where S: Copy, T: Copy { x: &'p S::Buf<T> }
        };
        insta::assert_snapshot!(expanded(quote!(f64), item));
    }

    #[test]
    fn marked_methods_are_dispatched() {
        let item = quote! {
            impl<T: Element> LayerOf<T> {
                /// Applies.
                #[dispatch]
                pub fn apply<B: Kernels<T>>(
                    &self, backend: &B, params: &Params<'_, B::Storage, T>, out: View<'_, T>,
                ) -> Result<(), B::Error> { body() }
                /// Not dispatched.
                pub fn other(&self) {}
                #[dispatch]
                fn clone_of(&self) -> LayerOf<T> { body() }
            }
        };
        insta::assert_snapshot!(expanded(quote!(f32, f16, name = "Layer"), item));
    }
}
