//! The rules. All broken ones are reported at once, each at its place.

mod method;
mod options;

use crate::model::{Common, DType, Request, is_dispatch, is_parameter, mentions, starts_with};
use crate::parse::{Arguments, NOT_AN_ITEM};
use options::Options;
use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{
    Attribute, GenericArgument, GenericParam, Generics, Ident, ImplItem, Item, ItemImpl,
    ItemStruct, PathArguments, PathSegment, Type, TypeParam, WherePredicate,
};

/// Errors found so far.
#[derive(Default)]
struct Errors(Option<syn::Error>);

impl Errors {
    /// At the whole of what these tokens are.
    fn on(&mut self, tokens: impl ToTokens, message: impl core::fmt::Display) {
        self.add(syn::Error::new_spanned(tokens, message));
    }

    fn push(&mut self, span: Span, message: impl core::fmt::Display) {
        self.add(syn::Error::new(span, message));
    }

    fn add(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            None => self.0 = Some(error),
        }
    }
}

/// Holds arguments and item against the rules.
pub(crate) fn check(arguments: Arguments, item: Item) -> syn::Result<Request> {
    let mut errors = Errors::default();
    let dtypes = dtypes(&arguments.dtypes, &mut errors);
    let options = Options::new(
        arguments.options,
        matches!(item, Item::Impl(_)),
        &mut errors,
    );
    let request = match item {
        Item::Struct(item) => Some(structure(item, dtypes, options, &mut errors)),
        Item::Impl(item) => implementation(item, dtypes, options, &mut errors),
        other => {
            errors.push(other.span(), NOT_AN_ITEM);
            None
        }
    };
    match (errors.0, request) {
        (None, Some(request)) => Ok(request),
        (Some(error), _) => Err(error),
        (None, None) => Err(syn::Error::new(Span::call_site(), NOT_AN_ITEM)),
    }
}

fn dtypes(names: &[Ident], errors: &mut Errors) -> Vec<DType> {
    let mut dtypes = Vec::new();
    for name in names {
        match DType::from_name(&name.to_string()) {
            None => errors.on(
                name,
                format_args!("unknown dtype `{name}`; there are f32, f64, f16, bf16"),
            ),
            Some(dtype) if dtypes.contains(&dtype) => {
                errors.on(name, format_args!("dtype `{name}` is listed twice"));
            }
            Some(dtype) => dtypes.push(dtype),
        }
    }
    if names.is_empty() {
        errors.push(
            Span::call_site(),
            "list at least one dtype: `#[dtype_variants(f32, f64, f16, bf16)]`",
        );
    }
    dtypes
}

fn structure(
    item: ItemStruct,
    dtypes: Vec<DType>,
    options: Options,
    errors: &mut Errors,
) -> Request {
    match type_parameter(&item.generics, &options.over) {
        None => errors.on(
            &item.ident,
            format_args!(
                "`{}` has no type parameter `{over}` for the dtypes; add it, or name another by `over`",
                item.ident,
                over = options.over
            ),
        ),
        Some(parameter) if parameter.default.is_some() => errors.on(
            parameter,
            format_args!("`{}` must not have a default: it stands for every dtype", options.over),
        ),
        Some(_) => {}
    }
    bounds(&item.generics, &options.over, errors);
    Request::Struct {
        common: Common {
            dtypes,
            name: options.name.unwrap_or_else(|| item.ident.clone()),
            own: item.ident.clone(),
            over: options.over,
            core: options.core,
            cfgs: cfgs(&item.attrs),
        },
        derives: options.derives,
        item,
    }
}

fn implementation(
    item: ItemImpl,
    dtypes: Vec<DType>,
    options: Options,
    errors: &mut Errors,
) -> Option<Request> {
    if let Some((path, ..)) = &item.trait_ {
        errors.on(
            path,
            "`dtype_variants` goes on an inherent impl, not on a trait's",
        );
        return None;
    }
    let Type::Path(path) = &*item.self_ty else {
        errors.on(
            &item.self_ty,
            "`dtype_variants` needs an impl of a named type",
        );
        return None;
    };
    let last = path.path.segments.last()?;
    own_parameter(&item, last, &options.over, errors);
    bounds(&item.generics, &options.over, errors);
    let own = last.ident.clone();
    let common = Common {
        dtypes,
        name: options.name.unwrap_or_else(|| own.clone()),
        own,
        over: options.over,
        core: options.core,
        cfgs: cfgs(&item.attrs),
    };
    let marked = item.items.iter().filter_map(|item| match item {
        ImplItem::Fn(function) if function.attrs.iter().any(is_dispatch) => Some(function),
        _ => None,
    });
    let marked = marked.collect::<Vec<_>>();
    if marked.is_empty() {
        errors.on(
            &item.self_ty,
            "no method of this impl is marked `#[dispatch]`: there is nothing to add to the enum",
        );
    }
    let methods = marked
        .into_iter()
        .filter_map(|function| method::check(function, &common.over, errors))
        .collect();
    Some(Request::Impl {
        common,
        item,
        methods,
    })
}

/// The dtypes' parameter must be the impl's and stand in its type.
fn own_parameter(item: &ItemImpl, last: &PathSegment, over: &Ident, errors: &mut Errors) {
    if type_parameter(&item.generics, over).is_none() {
        errors.on(
            &item.self_ty,
            format_args!(
                "this impl has no type parameter `{over}` for the dtypes; add it, or name another by `over`"
            ),
        );
    } else if !is_over_parameter(last, over) {
        errors.on(
            &item.self_ty,
            format_args!("this impl must be for `{}<.., {over}>`", last.ident),
        );
    }
}

fn type_parameter<'g>(generics: &'g Generics, over: &Ident) -> Option<&'g TypeParam> {
    generics
        .type_params()
        .find(|parameter| parameter.ident == *over)
}

fn cfgs(attributes: &[Attribute]) -> Vec<Attribute> {
    attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("cfg"))
        .cloned()
        .collect()
}

/// Whether the segment is `Name<.., T>` with the parameter in one place and nowhere else.
fn is_over_parameter(segment: &PathSegment, over: &Ident) -> bool {
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else {
        return false;
    };
    let (own, others) = arguments
        .args
        .iter()
        .filter(|argument| mentions(argument, over))
        .partition::<Vec<_>, _>(
            |argument| matches!(argument, GenericArgument::Type(ty) if is_parameter(ty, over)),
        );
    own.len() == 1 && others.is_empty()
}

/// A bound on another parameter is repeated for each dtype; `T::Item` there would become `f32::Item`, which names no trait.
fn bounds(generics: &Generics, over: &Ident, errors: &mut Errors) {
    let mut through = Through { over, errors };
    for parameter in &generics.params {
        match parameter {
            GenericParam::Type(parameter) if parameter.ident == *over => {}
            other => through.visit_generic_param(other),
        }
    }
    for predicate in generics
        .where_clause
        .iter()
        .flat_map(|clause| &clause.predicates)
    {
        match predicate {
            WherePredicate::Type(predicate) if starts_with(&predicate.bounded_ty, over) => {}
            other => through.visit_where_predicate(other),
        }
    }
}

/// Reports types named through the parameter without their trait.
struct Through<'a> {
    over: &'a Ident,
    errors: &'a mut Errors,
}

impl<'ast> Visit<'ast> for Through<'_> {
    fn visit_type_path(&mut self, path: &'ast syn::TypePath) {
        let segments = &path.path.segments;
        if path.qself.is_none()
            && segments.len() > 1
            && segments
                .first()
                .is_some_and(|first| first.ident == *self.over)
        {
            let over = self.over;
            self.errors.on(
                path,
                format_args!("name the trait: `<{over} as Trait>::..`, so that a dtype can take the place of `{over}`"),
            );
        }
        syn::visit::visit_type_path(self, path);
    }
}
