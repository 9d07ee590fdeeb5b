//! The README's table of benchmarks.

use crate::results::Results;
use crate::table;
use anyhow::{Context, Result};
use std::path::Path;

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// Writes the table of `results` between the markers.
pub(crate) fn write(results: &Results) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(&path)?;
    std::fs::write(&path, with_table(&readme, &table::markdown(results))?)?;
    println!("wrote the README's benchmarks");
    Ok(())
}

/// `readme` with `table` in place of what stands between the markers.
fn with_table(readme: &str, table: &str) -> Result<String> {
    let missing = || {
        format!("README.md needs the lines `{BEGIN}` and `{END}` around the table of benchmarks")
    };
    let (before, rest) = readme.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_what_stands_between_the_markers() {
        let readme = format!("above\n{BEGIN}old{END}\nbelow");
        let wanted = format!("above\n{BEGIN}new{END}\nbelow");
        assert_eq!(with_table(&readme, "new").unwrap(), wanted);
        assert!(with_table("no markers", "new").is_err());
        assert!(with_table(&format!("{END}{BEGIN}"), "new").is_err());
    }

    #[test]
    fn the_readme_has_the_markers() {
        let readme = include_str!("../../../README.md");
        assert!(with_table(readme, "").is_ok());
    }
}
