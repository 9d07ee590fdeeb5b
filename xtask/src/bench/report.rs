//! The report: one page that needs nothing else, and the numbers behind it.

mod axis;
mod figures;
mod page;
mod plot;

use crate::results::Results;
use anyhow::{Context, Result};
use std::path::Path;

/// Writes the page to `path` and the numbers beside it, as `.json`.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    let numbers = path.with_extension("json");
    let json = serde_json::to_string_pretty(&results.to_json())?;
    for (path, text) in [(path, page::html(results)), (numbers.as_path(), json)] {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("wrote {} and {}", path.display(), numbers.display());
    Ok(())
}
