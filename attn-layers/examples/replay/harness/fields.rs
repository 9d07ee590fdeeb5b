//! A JSON object whose members are read by name and type. What is never read is an unknown member, and reported.

use anyhow::{Context, Result, bail, ensure};
use attn_layers::ScalarType;
use serde_json::{Map, Value};

/// An object of a case file: `config`, `call`, `rngs` or the case itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    what: &'static str,
    members: Map<String, Value>,
}

impl Fields {
    /// Takes `value`, which must be an object or null. `what` names it in messages.
    pub(crate) fn new(what: &'static str, value: Value) -> Result<Self> {
        match value {
            Value::Object(members) => Ok(Self { what, members }),
            Value::Null => Ok(Self {
                what,
                members: Map::new(),
            }),
            other => bail!("{what} is {other}; an object is needed"),
        }
    }

    /// Takes the member `name` out, null if it is not there.
    pub(crate) fn take(&mut self, name: &str) -> Value {
        self.members.remove(name).unwrap_or_default()
    }

    /// The member `name`; null is the same as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// The members' names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        self.typed(name, "a text", Value::as_str)
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number", Value::as_f64)
    }

    /// A whole number of 64 bits.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>> {
        self.typed(name, "a whole number of 64 bits", Value::as_i64)
    }

    /// A size.
    pub(crate) fn size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a size", |value| {
            value.as_u64().and_then(|size| size.try_into().ok())
        })
    }

    /// An array type by numpy's name.
    pub(crate) fn scalar(&self, name: &str) -> Result<Option<ScalarType>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let scalar = ScalarType::from_name(text);
        ensure!(
            scalar.is_some(),
            "{}.{name}: the type {text:?} is not supported",
            self.what
        );
        Ok(scalar)
    }

    /// A list of texts; null entries stay.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<Option<&str>>> {
        let Some(value) = self.get(name) else {
            return Ok(Vec::new());
        };
        let list = value
            .as_array()
            .with_context(|| self.wanted(name, "a list", value))?;
        list.iter()
            .map(|entry| match entry {
                Value::Null => Ok(None),
                Value::String(text) => Ok(Some(text.as_str())),
                other => bail!("{}", self.wanted(name, "a list of texts", other)),
            })
            .collect()
    }

    /// Fails on the first member that is neither null nor one of `known`: a part of a case that would be left out silently.
    pub(crate) fn only(&self, known: &[&str]) -> Result<()> {
        let unknown = self
            .names()
            .find(|name| self.get(name).is_some() && !known.contains(name));
        match unknown {
            None => Ok(()),
            Some(name) => bail!("{}.{name} is not supported", self.what),
        }
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(name)
            .map(|value| read(value).with_context(|| self.wanted(name, kind, value)))
            .transpose()
    }

    fn wanted(&self, name: &str, kind: &str, got: &Value) -> String {
        format!("{}.{name} is {got}; {kind} is needed", self.what)
    }
}
