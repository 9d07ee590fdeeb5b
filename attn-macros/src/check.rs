//! The rules. All broken ones are reported at once, each at its place.

use crate::model::{Argument, Common, DType, Method, Request, Returns};
use crate::parse::{Arguments, NOT_AN_ITEM, Value};
use proc_macro2::Span;
use quote::format_ident;
use syn::spanned::Spanned;
use syn::{
    FnArg, GenericArgument, GenericParam, Generics, Ident, ImplItem, Item, ItemImpl, ItemStruct,
    Pat, Path, PathArguments, ReturnType, Type, parse_quote,
};

/// Errors found so far.
#[derive(Default)]
struct Errors(Option<syn::Error>);

impl Errors {
    fn push(&mut self, span: Span, message: impl core::fmt::Display) {
        let error = syn::Error::new(span, message);
        match &mut self.0 {
            Some(all) => all.combine(error),
            None => self.0 = Some(error),
        }
    }
}

/// Holds arguments and item against the rules.
pub(crate) fn check(arguments: Arguments, item: Item) -> syn::Result<Request> {
    let mut errors = Errors::default();
    let dtypes = dtypes(&arguments, &mut errors);
    let options = Options::new(arguments, matches!(item, Item::Struct(_)), &mut errors);
    let request = match item {
        Item::Struct(item) => {
            let name = options.name.unwrap_or_else(|| item.ident.clone());
            let common = Common {
                dtypes,
                name,
                over: options.over,
                core: options.core,
            };
            type_parameter(&item, &common.over, &mut errors);
            Some(Request::Struct {
                common,
                derives: options.derives,
                item,
            })
        }
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

fn dtypes(arguments: &Arguments, errors: &mut Errors) -> Vec<DType> {
    let mut dtypes = Vec::new();
    for name in &arguments.dtypes {
        match DType::from_name(&name.to_string()) {
            None => errors.push(
                name.span(),
                format_args!("unknown dtype `{name}`; there are f32, f64, f16, bf16"),
            ),
            Some(dtype) if dtypes.contains(&dtype) => {
                errors.push(name.span(), format_args!("dtype `{name}` is listed twice"));
            }
            Some(dtype) => dtypes.push(dtype),
        }
    }
    if arguments.dtypes.is_empty() {
        errors.push(
            Span::call_site(),
            "list at least one dtype: `#[dtype_variants(f32, f64, f16, bf16)]`",
        );
    }
    dtypes
}

struct Options {
    name: Option<Ident>,
    over: Ident,
    core: Path,
    derives: Vec<Path>,
}

impl Options {
    fn new(arguments: Arguments, on_struct: bool, errors: &mut Errors) -> Self {
        let mut options = Self {
            name: None,
            over: format_ident!("T"),
            core: parse_quote!(::attn_core),
            derives: Vec::new(),
        };
        for choice in arguments.options {
            let name = choice.name.to_string();
            match (name.as_str(), choice.value) {
                ("name", Value::Text(text)) => options.name = parsed(&text, errors),
                ("over", Value::Text(text)) => {
                    if let Some(over) = parsed(&text, errors) {
                        options.over = over;
                    }
                }
                ("crate", Value::Text(text)) => {
                    if let Some(core) = parsed(&text, errors) {
                        options.core = core;
                    }
                }
                ("derive", Value::Paths(paths)) if on_struct => options.derives = paths,
                ("derive", Value::Paths(_)) => errors.push(choice.name.span(), "`derive` belongs on the struct"),
                _ => errors.push(
                    choice.name.span(),
                    format_args!(
                        "unknown option `{name}`; there are `name = \"..\"`, `over = \"..\"`, `crate = \"..\"`, `derive(..)`"
                    ),
                ),
            }
        }
        options
    }
}

fn parsed<T: syn::parse::Parse>(text: &syn::LitStr, errors: &mut Errors) -> Option<T> {
    text.parse()
        .map_err(|error| errors.push(text.span(), error))
        .ok()
}

fn type_parameter(item: &ItemStruct, over: &Ident, errors: &mut Errors) {
    let found = item
        .generics
        .type_params()
        .find(|parameter| parameter.ident == *over);
    match found {
        None => errors.push(
            item.ident.span(),
            format_args!("`{}` has no type parameter `{over}` for the dtypes; add it, or name another by `over`", item.ident),
        ),
        Some(parameter) if parameter.default.is_some() => {
            errors.push(parameter.span(), format_args!("`{over}` must not have a default: it stands for every dtype"));
        }
        Some(_) => {}
    }
}

fn implementation(
    item: ItemImpl,
    dtypes: Vec<DType>,
    options: Options,
    errors: &mut Errors,
) -> Option<Request> {
    if let Some((path, ..)) = &item.trait_ {
        errors.push(
            path.span(),
            "`dtype_variants` goes on an inherent impl, not on a trait's",
        );
    }
    let Type::Path(path) = &*item.self_ty else {
        errors.push(
            item.self_ty.span(),
            "`dtype_variants` needs an impl of a named type",
        );
        return None;
    };
    let own = path.path.segments.last()?.ident.clone();
    let common = Common {
        dtypes,
        name: options.name.unwrap_or(own),
        over: options.over,
        core: options.core,
    };
    if !has_type(&item.generics, &common.over) {
        let message = format_args!(
            "this impl has no type parameter `{}` for the dtypes",
            common.over
        )
        .to_string();
        errors.push(item.self_ty.span(), message);
    }
    let methods = item
        .items
        .iter()
        .filter_map(|item| match item {
            ImplItem::Fn(function) if function.attrs.iter().any(is_dispatch) => Some(function),
            _ => None,
        })
        .filter_map(|function| method(function, &common.over, errors))
        .collect();
    Some(Request::Impl {
        common,
        item,
        methods,
    })
}

fn has_type(generics: &Generics, name: &Ident) -> bool {
    generics
        .params
        .iter()
        .any(|parameter| matches!(parameter, GenericParam::Type(t) if t.ident == *name))
}

pub(crate) fn is_dispatch(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("dispatch")
}

fn method(function: &syn::ImplItemFn, over: &Ident, errors: &mut Errors) -> Option<Method> {
    let signature = &function.sig;
    let Some(FnArg::Receiver(_)) = signature.inputs.first() else {
        errors.push(
            signature.ident.span(),
            "a `#[dispatch]` method needs `self`: the dtype is chosen by it",
        );
        return None;
    };
    let mut arguments = Vec::new();
    for input in signature.inputs.iter().skip(1) {
        let FnArg::Typed(input) = input else { continue };
        let Pat::Ident(name) = &*input.pat else {
            errors.push(
                input.pat.span(),
                "an argument of a `#[dispatch]` method needs a plain name",
            );
            continue;
        };
        let converted = mentions(&input.ty, over);
        if converted && !is_convertible(&input.ty, over) {
            errors.push(
                input.ty.span(),
                format_args!("an argument that mentions `{over}` must be `Name<.., {over}>`, `&Name<.., {over}>` or `&mut Name<.., {over}>`"),
            );
        }
        arguments.push(Argument {
            name: name.ident.clone(),
            converted,
        });
    }
    let returns = returns(&signature.output, over);
    let converts = arguments.iter().any(|argument| argument.converted);
    if converts && result_arguments(&signature.output).is_none() {
        errors.push(
            signature.ident.span(),
            "this method must return a `Result`: converting its arguments to a dtype can fail",
        );
    }
    let docs = function
        .attrs
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .cloned()
        .collect();
    let visibility = function.vis.clone();
    Some(Method {
        signature: signature.clone(),
        visibility,
        docs,
        arguments,
        returns,
    })
}

fn returns(output: &ReturnType, over: &Ident) -> Returns {
    let ReturnType::Type(_, ty) = output else {
        return Returns::AsIs;
    };
    match result_arguments(output) {
        Some(ok) if mentions(ok, over) => Returns::ResultConverted,
        None if mentions(ty, over) => Returns::Converted,
        _ => Returns::AsIs,
    }
}

/// The first argument of a `Result`.
fn result_arguments(output: &ReturnType) -> Option<&Type> {
    let ReturnType::Type(_, ty) = output else {
        return None;
    };
    let Type::Path(path) = &**ty else { return None };
    let last = path
        .path
        .segments
        .last()
        .filter(|segment| segment.ident == "Result")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    })
}

/// `Name<.., T>` behind at most one reference.
fn is_convertible(ty: &Type, over: &Ident) -> bool {
    let ty = match ty {
        Type::Reference(reference) => &*reference.elem,
        other => other,
    };
    let Type::Path(path) = ty else { return false };
    let Some(PathArguments::AngleBracketed(arguments)) =
        path.path.segments.last().map(|last| &last.arguments)
    else {
        return false;
    };
    arguments
        .args
        .iter()
        .any(|argument| matches!(argument, GenericArgument::Type(ty) if is_parameter(ty, over)))
}

pub(crate) fn is_parameter(ty: &Type, over: &Ident) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident(over))
}

/// Whether a type mentions the parameter anywhere.
pub(crate) fn mentions(tokens: &impl quote::ToTokens, over: &Ident) -> bool {
    fn any(stream: proc_macro2::TokenStream, over: &Ident) -> bool {
        stream.into_iter().any(|token| match token {
            proc_macro2::TokenTree::Ident(ident) => ident == *over,
            proc_macro2::TokenTree::Group(group) => any(group.stream(), over),
            _ => false,
        })
    }
    any(tokens.to_token_stream(), over)
}
