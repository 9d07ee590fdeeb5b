//! The report of one case, as a line or as a JSON object.

use super::compare::Measured;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// What became of a case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) kind: String,
    /// Why the case failed, or none if it passed.
    pub(crate) failure: Option<String>,
    pub(crate) outputs: BTreeMap<String, Measured>,
}

impl Report {
    /// Whether the case passed.
    pub(crate) fn passed(&self) -> bool {
        self.failure.is_none()
    }

    /// The report as one JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let outputs: Map<String, Value> = self
            .outputs
            .iter()
            .map(|(name, measured)| (name.clone(), measured.to_json()))
            .collect();
        json!({
            "name": self.name,
            "kind": self.kind,
            "ok": self.passed(),
            "why": self.failure,
            "outputs": outputs,
        })
    }
}

impl Measured {
    fn to_json(&self) -> Value {
        // JSON has no NaN: it becomes null.
        json!({
            "dtype": self.dtype,
            "shape": self.shape,
            "max_abs_err": self.max_abs_err,
            "atol": self.atol,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            Some(why) => write!(f, "FAIL  {}: {}", self.name, why.replace('\n', " ")),
            None => write!(f, "ok    {} ({})", self.name, self.kind),
        }
    }
}
