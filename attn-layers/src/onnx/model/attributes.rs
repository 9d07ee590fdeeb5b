//! The attributes of a node, by name and type. What is never read is an attribute that would be left out silently.

use super::error::ModelError;
use super::proto::Attribute;
use alloc::borrow::ToOwned;

/// The attributes of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'n, 'a>(pub(super) &'n [Attribute<'a>]);

impl<'n, 'a> Attributes<'n, 'a> {
    fn get(self, name: &str) -> Option<&'n Attribute<'a>> {
        self.0.iter().find(|attribute| attribute.name == name)
    }

    /// Fails on the first attribute that is none of `known`. One of those in `unused` must be 0.
    pub(super) fn only(self, known: &[&str], unused: &[&str]) -> Result<(), ModelError> {
        let is_known = |attribute: &&Attribute<'_>| {
            known.contains(&attribute.name)
                || (unused.contains(&attribute.name) && attribute.integer == Some(0))
        };
        match self.0.iter().find(|attribute| !is_known(attribute)) {
            None => Ok(()),
            Some(unknown) => Err(refused(unknown.name)),
        }
    }

    pub(super) fn integer(self, name: &str) -> Result<Option<i64>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(attribute) => attribute.integer.map(Some).ok_or_else(|| refused(name)),
        }
    }

    pub(super) fn float(self, name: &str) -> Result<Option<f32>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(attribute) => attribute.float.map(Some).ok_or_else(|| refused(name)),
        }
    }

    pub(super) fn integers(self, name: &str) -> Option<&'n [i64]> {
        Some(&self.get(name)?.integers)
    }

    pub(super) fn flag(self, name: &str) -> Result<bool, ModelError> {
        match self.integer(name)? {
            None | Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(_) => Err(refused(name)),
        }
    }

    /// A number of heads or the like: at least 1.
    pub(super) fn count(self, name: &str) -> Result<Option<usize>, ModelError> {
        let Some(count) = self.integer(name)? else {
            return Ok(None);
        };
        let count = usize::try_from(count).ok().filter(|count| *count > 0);
        count.map(Some).ok_or_else(|| refused(name))
    }
}

pub(super) fn refused(name: &str) -> ModelError {
    ModelError::Attribute {
        name: name.to_owned(),
    }
}
