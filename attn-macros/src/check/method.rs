//! The rules of a method marked `#[dispatch]`.

use super::{Errors, bounds, is_over_parameter};
use crate::model::{Argument, Method, Returns, mentions};
use syn::spanned::Spanned;
use syn::{
    Attribute, FnArg, GenericArgument, Ident, ImplItemFn, Pat, PatIdent, PathArguments, Receiver,
    ReceiverKind, ReturnType, Signature, Type,
};

/// What an attribute of a method says of the enum's method too.
const SHARED: [&str; 5] = ["doc", "cfg", "must_use", "deprecated", "track_caller"];

pub(super) fn check(function: &ImplItemFn, over: &Ident, errors: &mut Errors) -> Option<Method> {
    let signature = &function.sig;
    qualifiers(signature, errors);
    let Some(FnArg::Receiver(receiver)) = signature.inputs.first() else {
        errors.on(
            &signature.ident,
            "a `#[dispatch]` method needs `self`: the dtype is chosen by it",
        );
        return None;
    };
    self::receiver(receiver, errors);
    bounds(&signature.generics, over, errors);
    let arguments = arguments(signature, over, errors);
    let returns = returns(&signature.output, over, errors);
    let converts = arguments.iter().any(|argument| argument.converted);
    if converts && result(&signature.output).is_none() {
        errors.on(
            &signature.ident,
            "this method must return a `Result`: converting its arguments to a dtype can fail",
        );
    }
    Some(Method {
        signature: signature.clone(),
        visibility: function.vis.clone(),
        attributes: shared(&function.attrs),
        arguments,
        returns,
    })
}

/// A match with conversions cannot be `const`, does not await, and promises nothing on behalf of unsafe code.
fn qualifiers(signature: &Signature, errors: &mut Errors) {
    let refused = [
        signature.constness.map(|token| (token.span, "const")),
        signature.asyncness.map(|token| (token.span, "async")),
    ];
    for (span, qualifier) in refused.into_iter().flatten() {
        errors.push(
            span,
            format_args!("a `#[dispatch]` method cannot be `{qualifier}`"),
        );
    }
    if !matches!(signature.safety, syn::Safety::Default) {
        errors.on(
            &signature.safety,
            "a `#[dispatch]` method cannot be `unsafe`",
        );
    }
}

fn receiver(receiver: &Receiver, errors: &mut Errors) {
    if !matches!(
        receiver.kind,
        ReceiverKind::Value | ReceiverKind::Reference(..)
    ) {
        errors.on(
            receiver,
            "a `#[dispatch]` method takes `self`, `&self` or `&mut self`",
        );
    }
}

fn arguments(signature: &Signature, over: &Ident, errors: &mut Errors) -> Vec<Argument> {
    let mut arguments = Vec::new();
    for input in signature.inputs.iter().skip(1) {
        let FnArg::Typed(input) = input else { continue };
        let Pat::Ident(PatIdent {
            ident,
            subpat: None,
            ..
        }) = &*input.pat
        else {
            errors.on(
                &input.pat,
                "an argument of a `#[dispatch]` method needs a plain name",
            );
            continue;
        };
        let ty = dereferenced(&input.ty);
        let converted = has_dtype(ty, over) && !matches!(ty, Type::ImplTrait(_));
        if converted && !is_convertible(ty, over) {
            errors.on(
                &input.ty,
                format_args!(
                    "an argument that mentions `{over}` must be `Name<.., {over}>`, `&Name<.., {over}>` or `&mut Name<.., {over}>`"
                ),
            );
        }
        arguments.push(Argument {
            name: ident.clone(),
            converted,
        });
    }
    arguments
}

fn returns(output: &ReturnType, over: &Ident, errors: &mut Errors) -> Returns {
    let ReturnType::Type(_, whole) = output else {
        return Returns::AsIs;
    };
    let (ty, converted) = match result(output) {
        Some((ok, error)) => {
            if let Some(error) = error.filter(|error| has_dtype(error, over)) {
                errors.on(
                    error,
                    format_args!(
                        "the error must not mention `{over}`: it is the same for every dtype"
                    ),
                );
            }
            (ok, Returns::ResultConverted)
        }
        None => (&**whole, Returns::Converted),
    };
    if !has_dtype(ty, over) {
        return Returns::AsIs;
    }
    if !is_convertible(ty, over) {
        errors.on(
            ty,
            format_args!(
                "what mentions `{over}` is returned as `Name<.., {over}>` or `Result<Name<.., {over}>, _>`"
            ),
        );
    }
    converted
}

/// A `Result`'s arguments.
fn result(output: &ReturnType) -> Option<(&Type, Option<&Type>)> {
    let ReturnType::Type(_, ty) = output else {
        return None;
    };
    let Type::Path(path) = &**ty else { return None };
    let last = path.path.segments.last()?;
    if last.ident != "Result" {
        return None;
    }
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    let mut types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    Some((types.next()?, types.next()))
}

/// The type behind at most one reference.
fn dereferenced(ty: &Type) -> &Type {
    match ty {
        Type::Reference(reference) => &reference.elem,
        other => other,
    }
}

/// Whether the type is another one for each dtype.
fn has_dtype(ty: &Type, over: &Ident) -> bool {
    mentions(ty, over) || mentions(ty, &Ident::new("Self", ty.span()))
}

/// Whether the type has an `Any…` kin: `Name<.., T>` or `Self`.
fn is_convertible(ty: &Type, over: &Ident) -> bool {
    let Type::Path(path) = ty else { return false };
    path.path.is_ident("Self")
        || path
            .path
            .segments
            .last()
            .is_some_and(|last| is_over_parameter(last, over))
}

fn shared(attributes: &[Attribute]) -> Vec<Attribute> {
    attributes
        .iter()
        .filter(|attribute| SHARED.iter().any(|name| attribute.path().is_ident(name)))
        .cloned()
        .collect()
}
