//! Generic parameters and types with a dtype, or nothing, in the type parameter's place.

use crate::model::{Common, DType, is_parameter, mentions, starts_with};
use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::punctuated::Punctuated;
use syn::token::Paren;
use syn::visit_mut::{self, VisitMut};
use syn::{
    GenericArgument, GenericParam, Generics, PathArguments, Token, Type, TypeImplTrait,
    TypeParamBound, TypeParen, TypePath, TypeReference, WherePredicate, parse_quote,
};

/// A parameter's name, as an argument.
pub(super) fn name(parameter: &GenericParam) -> TokenStream {
    match parameter {
        GenericParam::Lifetime(parameter) => parameter.lifetime.to_token_stream(),
        GenericParam::Type(parameter) => parameter.ident.to_token_stream(),
        GenericParam::Const(parameter) => parameter.ident.to_token_stream(),
    }
}

/// The parameters of a type alias for this dtype: no bounds, as an alias does not hold them.
pub(super) fn of_alias(common: &Common, generics: &Generics, dtype: DType) -> Generics {
    let mut generics = generics.clone();
    generics.where_clause = None;
    generics.params = kept(common, &generics)
        .map(|mut parameter| {
            match &mut parameter {
                GenericParam::Lifetime(lifetime) => {
                    lifetime.colon_token = None;
                    lifetime.bounds.clear();
                }
                GenericParam::Type(ty) => {
                    ty.colon_token = None;
                    ty.bounds.clear();
                }
                GenericParam::Const(_) => {}
            }
            Replaces::new(common, dtype).visit_generic_param_mut(&mut parameter);
            parameter
        })
        .collect();
    generics
}

/// The generics without the type parameter; what mentions it beside others is said of every dtype instead.
pub(super) fn of_any(common: &Common, generics: &Generics) -> Generics {
    let mut generics = generics.clone();
    generics.params = kept(common, &generics).collect();
    for parameter in generics.type_params_mut() {
        spread(common, &mut parameter.bounds);
        if parameter
            .default
            .as_ref()
            .is_some_and(|(_, default)| mentions(default, &common.over))
        {
            parameter.default = None;
        }
    }
    if let Some(clause) = &mut generics.where_clause {
        clause.predicates = core::mem::take(&mut clause.predicates)
            .into_iter()
            .flat_map(|predicate| of_any_predicate(common, predicate))
            .collect();
    }
    generics
}

fn kept(common: &Common, generics: &Generics) -> impl Iterator<Item = GenericParam> {
    generics
        .params
        .clone()
        .into_iter()
        .filter(|parameter| !matches!(parameter, GenericParam::Type(ty) if ty.ident == common.over))
}

/// What is said of the parameter itself the dtypes' own types fulfil; a bound that mentions it is spread; a type that
/// mentions it stands once for every dtype.
fn of_any_predicate(common: &Common, predicate: WherePredicate) -> Vec<WherePredicate> {
    let WherePredicate::Type(mut of) = predicate else {
        return vec![predicate];
    };
    if starts_with(&of.bounded_ty, &common.over) {
        return Vec::new();
    }
    if !mentions(&of.bounded_ty, &common.over) {
        spread(common, &mut of.bounds);
        return vec![WherePredicate::Type(of)];
    }
    common
        .dtypes
        .iter()
        .map(|&dtype| {
            let mut of = of.clone();
            Replaces::new(common, dtype).visit_predicate_type_mut(&mut of);
            WherePredicate::Type(of)
        })
        .collect()
}

/// `B: Kernels<T>` becomes `B: Kernels<f32> + Kernels<f64> + …`.
fn spread(common: &Common, bounds: &mut Punctuated<TypeParamBound, Token![+]>) {
    for bound in core::mem::take(bounds) {
        if !mentions(&bound, &common.over) {
            bounds.push(bound);
            continue;
        }
        for &dtype in &common.dtypes {
            let mut bound = bound.clone();
            Replaces::new(common, dtype).visit_type_param_bound_mut(&mut bound);
            bounds.push(bound);
        }
    }
}

/// Puts a dtype in the type parameter's place.
struct Replaces<'a> {
    common: &'a Common,
    by: TokenStream,
}

impl<'a> Replaces<'a> {
    fn new(common: &'a Common, dtype: DType) -> Self {
        Self {
            common,
            by: dtype.type_tokens(&common.core),
        }
    }
}

impl VisitMut for Replaces<'_> {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if is_parameter(ty, &self.common.over) {
            let by = &self.by;
            *ty = parse_quote!(#by);
        } else {
            visit_mut::visit_type_mut(self, ty);
        }
    }
}

/// `Name<'a, S, T>` becomes `AnyName<'a, S>`.
pub(super) struct Anys<'a>(pub(super) &'a Common);

impl Anys<'_> {
    fn is_over(&self, argument: &GenericArgument) -> bool {
        matches!(argument, GenericArgument::Type(ty) if is_parameter(ty, &self.0.over))
    }
}

impl VisitMut for Anys<'_> {
    /// `&impl A + B` is ambiguous, `&(impl A + B)` is not.
    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        visit_mut::visit_type_reference_mut(self, reference);
        if matches!(&*reference.elem, Type::ImplTrait(of) if of.bounds.len() > 1) {
            let elem = reference.elem.clone();
            *reference.elem = Type::Paren(TypeParen {
                attrs: Vec::new(),
                paren_token: Paren::default(),
                elem,
            });
        }
    }

    fn visit_type_impl_trait_mut(&mut self, ty: &mut TypeImplTrait) {
        spread(self.0, &mut ty.bounds);
    }

    fn visit_type_path_mut(&mut self, path: &mut TypePath) {
        visit_mut::visit_type_path_mut(self, path);
        let Some(last) = path.path.segments.last_mut() else {
            return;
        };
        let PathArguments::AngleBracketed(arguments) = &mut last.arguments else {
            return;
        };
        let kept = arguments
            .args
            .iter()
            .filter(|argument| !self.is_over(argument));
        let kept: Punctuated<GenericArgument, Token![,]> = kept.cloned().collect();
        if kept.len() == arguments.args.len() {
            return;
        }
        last.ident = if last.ident == self.0.own {
            self.0.any()
        } else {
            format_ident!("Any{}", last.ident)
        };
        if kept.is_empty() {
            last.arguments = PathArguments::None;
        } else {
            arguments.args = kept;
        }
    }
}

/// The type and const arguments to call a method with, `::<B, N>`: the compiler could not always infer them again.
pub(super) fn turbofish(generics: &Generics) -> TokenStream {
    let names = generics
        .params
        .iter()
        .filter(|parameter| !matches!(parameter, GenericParam::Lifetime(_)))
        .map(name)
        .collect::<Vec<_>>();
    if names.is_empty() {
        quote!()
    } else {
        quote!(::<#(#names),*>)
    }
}
