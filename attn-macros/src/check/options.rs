//! The rules of the attribute's options.

use super::Errors;
use crate::parse::{Choice, Value};
use quote::format_ident;
use syn::parse::Parse;
use syn::{Ident, LitStr, Path, parse_quote};

/// The options, with what holds where they are not given.
pub(super) struct Options {
    pub(super) name: Option<Ident>,
    pub(super) over: Ident,
    pub(super) core: Path,
    pub(super) derives: Vec<Path>,
}

impl Options {
    pub(super) fn new(choices: Vec<Choice>, on_impl: bool, errors: &mut Errors) -> Self {
        let mut options = Self {
            name: None,
            over: format_ident!("T"),
            core: parse_quote!(::attn_core),
            derives: Vec::new(),
        };
        let mut seen = Vec::new();
        for choice in choices {
            if seen.contains(&choice.name) {
                errors.on(
                    &choice.name,
                    format_args!("option `{}` is given twice", choice.name),
                );
                continue;
            }
            seen.push(choice.name.clone());
            options.take(choice, on_impl, errors);
        }
        options
    }

    fn take(&mut self, choice: Choice, on_impl: bool, errors: &mut Errors) {
        let name = choice.name.to_string();
        let span = choice.name.span();
        match (name.as_str(), choice.value) {
            ("name", Value::Text(text)) => self.name = parsed(&text, "a name", errors),
            ("over", Value::Text(text)) => {
                if let Some(over) = parsed(&text, "a type parameter's name", errors) {
                    self.over = over;
                }
            }
            ("crate", Value::Text(text)) => {
                if let Some(core) = parsed(&text, "a path", errors) {
                    self.core = core;
                }
            }
            ("derive", Value::Paths(_)) if on_impl => {
                errors.push(span, "`derive` belongs on the struct");
            }
            ("derive", Value::Paths(paths)) => self.derives = paths,
            ("name" | "over" | "crate", Value::Paths(_)) => {
                errors.push(span, format_args!("write `{name} = \"..\"`"));
            }
            ("derive", Value::Text(_)) => errors.push(span, "write `derive(..)`"),
            _ => errors.push(
                span,
                format_args!(
                    "unknown option `{name}`; there are `name = \"..\"`, `over = \"..\"`, `crate = \"..\"`, `derive(..)`"
                ),
            ),
        }
    }
}

fn parsed<T: Parse>(text: &LitStr, wanted: &str, errors: &mut Errors) -> Option<T> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        errors.on(text, format_args!("`{}` is not {wanted}", text.value()));
    }
    parsed
}
