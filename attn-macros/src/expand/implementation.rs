//! What an impl gets: the marked methods on the enum.

use super::generics::{Anys, of_any, turbofish};
use super::remove_dispatch;
use crate::model::{Common, Method, Returns};
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::visit_mut::VisitMut;
use syn::{FnArg, Ident, ItemImpl, Pat, ReceiverKind, Signature};

/// From so many arguments on, `self` among them, clippy complains of a method.
const TOO_MANY_ARGUMENTS: usize = 8;

pub(super) fn expand(common: &Common, mut item: ItemImpl, methods: &[Method]) -> TokenStream {
    remove_dispatch(&mut item);
    let cfgs = &common.cfgs;
    let generics = of_any(common, &item.generics);
    let (impl_generics, _, clause) = generics.split_for_impl();
    let mut any = (*item.self_ty).clone();
    Anys(common).visit_type_mut(&mut any);
    let methods = methods.iter().map(|method| dispatch(common, method));
    quote! {
        #item

        #(#cfgs)*
        impl #impl_generics #any #clause {
            #(#methods)*
        }
    }
}

/// The enum's method: it matches on the dtype and calls the variant's.
fn dispatch(common: &Common, method: &Method) -> TokenStream {
    let Method {
        visibility,
        attributes,
        ..
    } = method;
    let signature = any_signature(common, &method.signature);
    let many = (signature.inputs.len() >= TOO_MANY_ARGUMENTS).then(|| {
        quote!(#[allow(clippy::too_many_arguments, reason = "those of the method that it calls")])
    });
    let call = call(method);
    // Hygiene: an argument may be called `this` too.
    let this = Ident::new("this", Span::mixed_site());
    let arms = common
        .variants()
        .map(|(_, variant)| quote!(Self::#variant(#this) => #this.#call));
    quote! {
        #(#attributes)*
        #many
        #visibility #signature {
            match self {
                #(#arms),*
            }
        }
    }
}

fn any_signature(common: &Common, of: &Signature) -> Signature {
    let mut signature = of.clone();
    signature.generics = of_any(common, &signature.generics);
    let mut anys = Anys(common);
    for input in &mut signature.inputs {
        immutable(input);
        anys.visit_fn_arg_mut(input);
    }
    anys.visit_return_type_mut(&mut signature.output);
    signature
}

/// `mut x` concerns the method's body only.
fn immutable(input: &mut FnArg) {
    match input {
        FnArg::Receiver(receiver) if matches!(receiver.kind, ReceiverKind::Value) => {
            receiver.mutability = None;
        }
        FnArg::Receiver(_) => {}
        FnArg::Typed(input) => {
            if let Pat::Ident(name) = &mut *input.pat {
                name.mutability = None;
            }
        }
    }
}

/// `apply::<B>(backend, TryFrom::try_from(params)?).map(Into::into)`
fn call(method: &Method) -> TokenStream {
    let name = &method.signature.ident;
    let turbofish = turbofish(&method.signature.generics);
    let arguments = method.arguments.iter().map(|argument| {
        let name = &argument.name;
        if argument.converted {
            quote!(::core::convert::TryFrom::try_from(#name)?)
        } else {
            name.to_token_stream()
        }
    });
    let result = match method.returns {
        Returns::AsIs => quote!(),
        Returns::Converted => quote!(.into()),
        Returns::ResultConverted => quote!(.map(::core::convert::Into::into)),
    };
    quote!(#name #turbofish (#(#arguments),*) #result)
}
