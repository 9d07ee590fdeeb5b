//! Counts as they are stored: which call, how many instructions, by which compiler.

use crate::shell;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The file, from the workspace's folder.
const FILE: &str = "attn-layers/benches/instructions.json";

/// Instructions of each call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Baseline {
    /// Another compiler writes other code, so only counts by the same one can be held against each other.
    pub(crate) compiler: String,
    pub(crate) instructions: BTreeMap<String, u64>,
}

impl Baseline {
    /// The stored one.
    pub(crate) fn read() -> Result<Self> {
        let text =
            std::fs::read_to_string(path()).with_context(|| format!("cannot read {FILE}"))?;
        Self::parse(&text).with_context(|| format!("{FILE} is not a baseline"))
    }

    /// Stores it.
    pub(crate) fn write(&self) -> Result<()> {
        std::fs::write(path(), self.text()?).with_context(|| format!("cannot write {FILE}"))?;
        println!("{FILE}: {} counts", self.instructions.len());
        Ok(())
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let compiler = value["compiler"].as_str().context("no `compiler`")?;
        let counts = value["instructions"]
            .as_object()
            .context("no `instructions`")?;
        let instructions = counts.iter().map(|(call, count)| {
            let count = count.as_u64();
            let count = count.with_context(|| format!("no number for `{call}`"))?;
            Ok((call.clone(), count))
        });
        Ok(Self {
            compiler: compiler.to_owned(),
            instructions: instructions.collect::<Result<_>>()?,
        })
    }

    fn text(&self) -> Result<String> {
        let value = json!({ "compiler": self.compiler, "instructions": self.instructions });
        Ok(serde_json::to_string_pretty(&value)? + "\n")
    }
}

fn path() -> PathBuf {
    shell::root().join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let baseline = Baseline {
            compiler: "rustc 1.95.0, x86_64-unknown-linux-gnu".to_owned(),
            instructions: [("a".to_owned(), 7), ("b".to_owned(), u64::MAX)].into(),
        };
        let text = baseline.text().unwrap();
        assert!(text.ends_with("}\n"));
        assert_eq!(Baseline::parse(&text).unwrap(), baseline);
    }

    #[test]
    fn what_is_missing_is_named() {
        let cases = [
            (r#"{"instructions": {}}"#, "compiler"),
            (r#"{"compiler": "rustc"}"#, "instructions"),
            (r#"{"compiler": "rustc", "instructions": {"a": -1}}"#, "`a`"),
        ];
        for (text, name) in cases {
            let error = Baseline::parse(text).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn the_stored_one_is_whole() {
        assert!(!Baseline::read().unwrap().instructions.is_empty());
    }
}
