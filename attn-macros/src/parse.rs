//! From tokens to the attribute's arguments and the item, as written.

use proc_macro2::{Span, TokenStream};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Ident, Item, LitStr, Path, Token, parenthesized};

/// The attribute's arguments.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) dtypes: Vec<Ident>,
    pub(crate) options: Vec<Choice>,
}

/// One of the attribute's options, with the place where it stands.
pub(crate) struct Choice {
    pub(crate) name: Ident,
    pub(crate) value: Value,
}

/// What an option is given.
pub(crate) enum Value {
    /// `option = "text"`.
    Text(LitStr),
    /// `option(path, path)`.
    Paths(Vec<Path>),
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut arguments = Self::default();
        while !input.is_empty() {
            // `crate` is a keyword, hence `parse_any`.
            let name = input.call(syn::ext::IdentExt::parse_any)?;
            if input.peek(Token![=]) {
                input.parse::<Token![=]>()?;
                arguments.options.push(Choice {
                    name,
                    value: Value::Text(input.parse()?),
                });
            } else if input.peek(syn::token::Paren) {
                let content;
                parenthesized!(content in input);
                let paths = Punctuated::<Path, Token![,]>::parse_terminated(&content)?;
                arguments.options.push(Choice {
                    name,
                    value: Value::Paths(paths.into_iter().collect()),
                });
            } else {
                arguments.dtypes.push(name);
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(arguments)
    }
}

/// Attribute and item.
pub(crate) fn parse(attribute: TokenStream, item: TokenStream) -> syn::Result<(Arguments, Item)> {
    let arguments = syn::parse2(attribute)?;
    let item = syn::parse2(item).map_err(|_| syn::Error::new(Span::call_site(), NOT_AN_ITEM))?;
    Ok((arguments, item))
}

pub(crate) const NOT_AN_ITEM: &str = "`dtype_variants` goes on a struct or an impl";
