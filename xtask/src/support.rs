//! The README's support table, made from the results of the conformance tests.
//!
//! Rows are groups of tests, columns instruction sets and the CUDA backend, a cell the dtypes that pass. An instruction set that this
//! machine lacks keeps the column that the README has, so the table is the same wherever it is checked.

use crate::shell;
use crate::test::matrix::{DTYPES, ISAS, Place};
use crate::test::output::{Outcome, TestResult};
use crate::test::run_conformance;
use anyhow::{Context, Result, bail};
use lexopt::Arg;
use std::collections::BTreeMap;

const BEGIN: &str = "<!-- support:begin -->";
const END: &str = "<!-- support:end -->";

/// The columns: the instruction sets, and the other backend.
const COLUMNS: [&str; ISAS.len() + 1] = {
    let mut columns = ["cuda"; ISAS.len() + 1];
    let mut n = 0;
    while n < ISAS.len() {
        columns[n] = ISAS[n].name;
        n += 1;
    }
    columns
};

/// A cell where every dtype passes.
const ALL: &str = "✓";
/// A cell where every dtype refuses every case, by name.
const REFUSED: &str = "no";
/// A cell that no machine has filled yet.
const UNKNOWN: &str = "not run";

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let mut check = false;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("check") => check = true,
            other => return Err(other.unexpected().into()),
        }
    }
    update(&run_conformance()?, check)
}

/// Writes the table of `results` into the README; with `check` fails instead if it differs.
pub(crate) fn update(results: &[TestResult], check: bool) -> Result<()> {
    let path = shell::root().join("README.md");
    let readme = std::fs::read_to_string(&path)?;
    let (before, old, after) = split(&readme)?;
    let table = Table::of(results)?
        .merged_with(&Table::parse(old))
        .to_string();
    if old == table {
        println!("the README's support table is up to date");
        return Ok(());
    }
    if check {
        bail!(
            "the README's support table differs from the tests; run `cargo xtask support`. It should be:\n{table}"
        );
    }
    std::fs::write(&path, format!("{before}{table}{after}"))?;
    println!("wrote the README's support table");
    Ok(())
}

/// The README before, between and after the markers.
fn split(readme: &str) -> Result<(&str, &str, &str)> {
    let missing =
        || format!("README.md needs the lines `{BEGIN}` and `{END}` around the support table");
    let begin = readme.find(BEGIN).with_context(missing)? + BEGIN.len();
    let end = readme[begin..].find(END).with_context(missing)? + begin;
    Ok((&readme[..begin], &readme[begin..end], &readme[end..]))
}

/// Cells by group, then by instruction set; groups in the order of the tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    groups: Vec<(String, BTreeMap<String, String>)>,
}

impl Table {
    fn of(results: &[TestResult]) -> Result<Self> {
        let mut table = Self::default();
        let conformance = || {
            results
                .iter()
                .filter(|test| test.program.ends_with("conformance.rs"))
        };
        for test in conformance() {
            let Some(place) = known_place(&test.name) else {
                continue;
            };
            if table.group(place.group).is_none() {
                let row = COLUMNS
                    .iter()
                    .map(|name| ((*name).to_owned(), cell(conformance(), name, place.group)))
                    .collect();
                table.groups.push((place.group.to_owned(), row));
            }
        }
        if table.groups.is_empty() {
            bail!("no conformance test of an instruction set ran");
        }
        // The order in which tests end varies.
        table.groups.sort();
        Ok(table)
    }

    /// Reads what [`Table`]'s display wrote; anything else gives no cells.
    fn parse(text: &str) -> Self {
        let mut lines = text.lines().filter_map(cells);
        let header = lines.next().unwrap_or_default();
        let groups = lines
            .skip(1)
            .filter_map(|cells| {
                let (group, rest) = cells.split_first()?;
                let named = header.iter().skip(1).zip(rest);
                let row = named
                    .map(|(isa, cell)| (plain(isa), (*cell).to_owned()))
                    .collect();
                Some((plain(group), row))
            })
            .collect();
        Self { groups }
    }

    fn group(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.groups
            .iter()
            .find(|(group, _)| group == name)
            .map(|(_, row)| row)
    }

    /// With the cells of `old` where this machine could not tell.
    fn merged_with(mut self, old: &Self) -> Self {
        for (group, row) in &mut self.groups {
            for (isa, cell) in row.iter_mut().filter(|(_, cell)| *cell == UNKNOWN) {
                if let Some(known) = old.group(group).and_then(|row| row.get(isa)) {
                    cell.clone_from(known);
                }
            }
        }
        self
    }
}

impl core::fmt::Display for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names = COLUMNS.map(|name| format!("`{name}`"));
        writeln!(f, "\n| tests | {} |", names.join(" | "))?;
        writeln!(f, "|---|{}", ":-:|".repeat(names.len()))?;
        for (group, row) in &self.groups {
            let cells = COLUMNS.map(|name| row.get(name).map_or(UNKNOWN, String::as_str));
            writeln!(f, "| `{group}` | {} |", cells.join(" | "))?;
        }
        writeln!(
            f,
            "\n{ALL}: passes for {}. {REFUSED}: refused with a typed error. `cuda`: on a device, or emulated where there is none. Made by `cargo xtask support` from the conformance tests.",
            DTYPES.join(", ")
        )
    }
}

/// What the tests of one group say of one instruction set.
fn cell<'a>(tests: impl Iterator<Item = &'a TestResult>, isa: &str, group: &str) -> String {
    let here: Vec<_> = tests
        .filter_map(|test| Some((known_place(&test.name)?, &test.outcome)))
        .filter(|(place, _)| place.isa == isa && place.group == group)
        .collect();
    if here
        .iter()
        .all(|(_, outcome)| matches!(outcome, Outcome::Skipped(_)))
    {
        return UNKNOWN.to_owned();
    }
    let passes = |dtype: &&str| {
        here.iter()
            .any(|(place, outcome)| place.dtype == *dtype && **outcome == Outcome::Passed)
    };
    let passing: Vec<_> = DTYPES.into_iter().filter(passes).collect();
    let is_refused = |(_, outcome): &(Place<'_>, &Outcome)| **outcome == Outcome::Refused;
    match passing.as_slice() {
        [] if here.iter().all(is_refused) => REFUSED.to_owned(),
        [] => "✗".to_owned(),
        some if some == DTYPES => ALL.to_owned(),
        some => some.join(" "),
    }
}

/// The place of a test of a column; other backends have none.
fn known_place(test: &str) -> Option<Place<'_>> {
    Place::of(test).filter(|place| COLUMNS.contains(&place.isa))
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

fn plain(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &str, outcome: Outcome) -> TestResult {
        TestResult {
            program: "tests/conformance.rs".to_owned(),
            name: name.to_owned(),
            outcome,
        }
    }

    fn results() -> Vec<TestResult> {
        let skipped = || Outcome::Skipped("not here".to_owned());
        let mut results = vec![
            result("portable::bf16::causal", Outcome::Failed),
            result("portable::f32::causal", Outcome::Passed),
            result("reference::f32::causal", Outcome::Passed),
        ];
        for dtype in DTYPES {
            results.push(result(&format!("portable::{dtype}::bias"), Outcome::Passed));
            results.push(result(&format!("avx512::{dtype}::bias"), skipped()));
            results.push(result(&format!("neon::{dtype}::bias"), Outcome::Failed));
            results.push(result(&format!("avx2::{dtype}::bias"), Outcome::Refused));
        }
        results
    }

    #[test]
    fn cells_say_which_dtypes_pass() {
        let table = Table::of(&results()).unwrap();
        let groups: Vec<_> = table
            .groups
            .iter()
            .map(|(group, _)| group.as_str())
            .collect();
        assert_eq!(groups, ["bias", "causal"]);
        let bias = table.group("bias").unwrap();
        assert_eq!(
            ["portable", "avx512", "neon", "avx2"].map(|isa| bias[isa].as_str()),
            ["✓", "not run", "✗", "no"]
        );
        assert_eq!(table.group("causal").unwrap()["portable"], "f32");
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let table = Table::of(&results()).unwrap();
        assert_eq!(Table::parse(&table.to_string()), table);
        assert_eq!(Table::parse("no table"), Table::default());
    }

    #[test]
    fn what_this_machine_lacks_is_kept() {
        let mut old = Table::of(&results()).unwrap();
        old.groups[0].1.insert("avx512".to_owned(), ALL.to_owned());
        old.groups[0]
            .1
            .insert("portable".to_owned(), "f32".to_owned());
        let merged = Table::of(&results()).unwrap().merged_with(&old);
        let bias = merged.group("bias").unwrap();
        assert_eq!([&bias["avx512"], &bias["portable"]], [ALL, ALL]);
    }

    #[test]
    fn the_table_replaces_what_stands_between_the_markers() {
        let readme = format!("above\n{BEGIN}old{END}\nbelow");
        let (before, old, after) = split(&readme).unwrap();
        assert_eq!(
            format!("{before}new{after}"),
            format!("above\n{BEGIN}new{END}\nbelow")
        );
        assert_eq!(old, "old");
        assert!(split("no markers").is_err());
        assert!(split(&format!("{END}{BEGIN}")).is_err());
    }

    #[test]
    fn no_results_are_no_table() {
        assert!(Table::of(&[]).is_err());
    }
}
