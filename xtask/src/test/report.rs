//! What ran, what was skipped and why, what failed.

use super::features::FeatureRow;
use super::matrix::{DTYPES, ISAS, Isa, Place};
use super::output::{Outcome, TestResult};
use super::run::Run;
use super::table::Table;
use anyhow::{Result, bail};
use core::fmt;

/// The results of a run of the matrix.
#[derive(Debug)]
pub(crate) struct Report {
    tests: Run,
    features: Vec<FeatureRow>,
    /// Whether everything was asked for, so that what is absent is a failure.
    complete: bool,
}

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    skipped: usize,
    ignored: usize,
    failed: usize,
}

impl Counts {
    fn of<'a>(tests: impl Iterator<Item = &'a TestResult>) -> Self {
        tests.fold(Self::default(), |mut counts, test| {
            match test.outcome {
                Outcome::Passed | Outcome::Refused => counts.passed += 1,
                Outcome::Skipped(_) => counts.skipped += 1,
                Outcome::Ignored => counts.ignored += 1,
                Outcome::Failed => counts.failed += 1,
            }
            counts
        })
    }

    fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn row(self, first: &str, second: &str) -> Vec<String> {
        let counts = [self.passed, self.skipped, self.ignored, self.failed];
        let mut row = vec![first.to_owned(), second.to_owned()];
        row.extend(counts.map(|count| count.to_string()));
        row
    }
}

const COUNTED: [&str; 4] = ["passed", "skipped", "ignored", "failed"];

impl Report {
    /// Of the whole matrix.
    pub(crate) fn of_everything(tests: Run, features: Vec<FeatureRow>) -> Self {
        Self {
            tests,
            features,
            complete: true,
        }
    }

    /// Of a part that a filter named.
    pub(crate) fn of_part(tests: Run) -> Self {
        Self {
            tests,
            features: Vec::new(),
            complete: false,
        }
    }

    /// Every test of the workspace's run.
    pub(crate) fn into_results(self) -> Vec<TestResult> {
        self.tests.results
    }

    /// Fails if anything failed.
    ///
    /// A run that found no test has tested nothing, so it fails too.
    pub(crate) fn verdict(&self) -> Result<()> {
        let failures = self.failures();
        if !failures.is_empty() {
            bail!("{}", failures.join("; "));
        }
        Ok(())
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = failures_of("the tests", &self.tests);
        if self.tests.succeeded && self.tests.results.is_empty() {
            failures.push("no test matches; `cargo xtask --help` shows the filters".to_owned());
        }
        if self.complete && self.readme().is_empty() {
            failures.push("README.md has no example that is tested".to_owned());
        }
        for row in &self.features {
            let name = format!("{} with features: {}", row.package, row.features);
            if !row.built {
                failures.push(format!("{name} does not build"));
            }
            failures.extend(failures_of(&name, &row.tests));
        }
        failures
    }

    fn readme(&self) -> Counts {
        let tests = self.tests.results.iter();
        Counts::of(tests.filter(|test| is_readme(test)))
    }

    fn matrix_table(&self) -> Table {
        let mut table = Table::new(&[&["isa", "dtype"], &COUNTED[..]].concat());
        for isa in self.isas() {
            for dtype in DTYPES {
                let counts = Counts::of(self.at(isa, dtype));
                if !counts.is_empty() {
                    table.push(counts.row(isa, dtype));
                }
            }
        }
        for (name, counts) in self.other_tests() {
            if !counts.is_empty() {
                table.push(counts.row(name, ""));
            }
        }
        table
    }

    /// The rows in order: instruction sets as listed, then whatever else has conformance tests.
    fn isas(&self) -> Vec<&str> {
        let mut names: Vec<_> = ISAS.iter().map(|isa| isa.name).collect();
        let places = self.tests.results.iter().filter_map(place);
        for place in places {
            if !names.contains(&place.isa) {
                names.push(place.isa);
            }
        }
        names
    }

    fn at<'a>(&'a self, isa: &'a str, dtype: &'a str) -> impl Iterator<Item = &'a TestResult> {
        let here = move |place: Place<'_>| place.isa == isa && place.dtype == dtype;
        self.tests
            .results
            .iter()
            .filter(move |test| place(test).is_some_and(here))
    }

    fn other_tests(&self) -> [(&'static str, Counts); 3] {
        let outside = || {
            self.tests
                .results
                .iter()
                .filter(|test| place(test).is_none())
        };
        [
            (
                "other tests",
                Counts::of(outside().filter(|test| !test.is_doc_test())),
            ),
            (
                "doc tests",
                Counts::of(outside().filter(|test| test.is_doc_test() && !is_readme(test))),
            ),
            ("README", self.readme()),
        ]
    }

    fn feature_table(&self) -> Table {
        let mut table = Table::new(&[&["crate", "features alone", "build"], &COUNTED[..]].concat());
        for row in &self.features {
            let mut cells = Counts::of(row.tests.results.iter()).row(&row.package, &row.features);
            let build = if row.built { "ok" } else { "FAILED" };
            cells.insert(2, build.to_owned());
            table.push(cells);
        }
        table
    }

    /// `(what, why)` of everything skipped, each once.
    fn skips(&self) -> Vec<(&str, &str)> {
        let mut skips = Vec::new();
        for test in &self.tests.results {
            if let Outcome::Skipped(reason) = &test.outcome {
                let what = lacking(test);
                if !skips.iter().any(|(known, _)| *known == what) {
                    let first_sentence = reason.split(". ").next().unwrap_or(reason);
                    skips.push((what, first_sentence));
                }
            }
        }
        skips
    }

    fn write_skips(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_foreign =
            |what: &str| Isa::from_name(what).is_some_and(|isa| !isa.fits_this_architecture());
        let (foreign, missing): (Vec<_>, Vec<_>) = self
            .skips()
            .into_iter()
            .partition(|(what, _)| is_foreign(what));
        for (what, reason) in missing {
            writeln!(f, "skipped for want of hardware: {what} ({reason})")?;
        }
        if !foreign.is_empty() {
            let names: Vec<_> = foreign.iter().map(|(what, _)| *what).collect();
            writeln!(f, "skipped, other architecture: {}", names.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.matrix_table())?;
        if !self.features.is_empty() {
            writeln!(f, "{}", self.feature_table())?;
        }
        self.write_skips(f)?;
        for failure in self.failures() {
            writeln!(f, "FAILED: {failure}")?;
        }
        let all = self.features.iter().flat_map(|row| &row.tests.results);
        let counts = Counts::of(self.tests.results.iter().chain(all));
        write!(
            f,
            "{} passed, {} skipped, {} ignored, {} failed",
            counts.passed, counts.skipped, counts.ignored, counts.failed
        )
    }
}

fn failures_of(name: &str, run: &Run) -> Vec<String> {
    let failed: Vec<_> = run
        .results
        .iter()
        .filter(|test| test.outcome == Outcome::Failed)
        .collect();
    match (failed.as_slice(), run.succeeded) {
        ([], true) => Vec::new(),
        ([], false) => vec![format!(
            "{name}: a program did not build or did not end; the log above says why"
        )],
        (failed, _) => failed
            .iter()
            .map(|test| format!("{name}: {} in {}", test.name, test.program))
            .collect(),
    }
}

/// The place in the matrix; only the conformance programs have it, a unit test of that name would be a chance.
fn place(test: &TestResult) -> Option<Place<'_>> {
    test.program
        .ends_with("conformance.rs")
        .then(|| Place::of(&test.name))
        .flatten()
}

/// What a skipped test lacks: the instruction set or device that its path begins with, else the test itself.
fn lacking(test: &TestResult) -> &str {
    let first = test.name.split("::").next().unwrap_or(&test.name);
    if place(test).is_some() || Isa::from_name(first).is_some() {
        first
    } else {
        &test.name
    }
}

fn is_readme(test: &TestResult) -> bool {
    test.is_doc_test() && test.name.contains("README.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(program: &str, name: &str, outcome: Outcome) -> TestResult {
        TestResult {
            program: program.to_owned(),
            name: name.to_owned(),
            outcome,
        }
    }

    fn run(results: Vec<TestResult>, succeeded: bool) -> Run {
        Run { results, succeeded }
    }

    fn conformance(name: &str, outcome: Outcome) -> TestResult {
        test("tests/conformance.rs", name, outcome)
    }

    fn skipped(reason: &str) -> Outcome {
        Outcome::Skipped(reason.to_owned())
    }

    /// An instruction set that no machine of this architecture has.
    fn foreign() -> &'static str {
        ISAS.iter()
            .find(|isa| !isa.fits_this_architecture())
            .unwrap()
            .name
    }

    fn everything() -> Report {
        let results = vec![
            conformance("portable::f32::plain", Outcome::Passed),
            conformance("portable::f32::causal", Outcome::Passed),
            conformance("portable::bf16::plain", Outcome::Passed),
            conformance(&format!("{}::f32::plain", foreign()), skipped("not here")),
            test(
                "tests/memory.rs",
                &format!("{}::f32", foreign()),
                skipped("not here"),
            ),
            conformance("cuda::f32::device", skipped("no driver. Install it")),
            test(
                "unittests src/lib.rs",
                "layout::tests::base",
                Outcome::Passed,
            ),
            test(
                "Doc-tests attn_core",
                "src/lib.rs - (line 1)",
                Outcome::Passed,
            ),
            test(
                "Doc-tests attn_layers",
                "src/../../README.md - (line 9)",
                Outcome::Passed,
            ),
        ];
        let row = FeatureRow {
            package: "attn-core".to_owned(),
            features: "none".to_owned(),
            built: true,
            tests: run(
                vec![test("unittests src/lib.rs", "a", Outcome::Passed)],
                true,
            ),
        };
        Report::of_everything(run(results, true), vec![row])
    }

    #[test]
    fn the_table_says_what_ran_and_what_did_not() {
        let text = everything().to_string();
        let squeezed: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let has = |line: &str| {
            assert!(
                squeezed.iter().any(|found| found == line),
                "{line} in\n{text}"
            )
        };
        has("isa dtype passed skipped ignored failed");
        has("portable f32 2 0 0 0");
        has("portable bf16 1 0 0 0");
        has("cuda f32 0 1 0 0");
        has("other tests 1 1 0 0");
        has("doc tests 1 0 0 0");
        has("README 1 0 0 0");
        has("attn-core none ok 1 0 0 0");
        has("skipped for want of hardware: cuda (no driver)");
        has(&format!("skipped, other architecture: {}", foreign()));
        let skips = squeezed.iter().filter(|line| line.starts_with("skipped"));
        assert_eq!(skips.count(), 2, "{text}");
        has("7 passed, 3 skipped, 0 ignored, 0 failed");
        assert!(everything().verdict().is_ok());
    }

    #[test]
    fn a_failed_test_is_named() {
        let mut report = everything();
        report.tests.results[0].outcome = Outcome::Failed;
        report.tests.succeeded = false;
        let error = report.verdict().unwrap_err().to_string();
        assert_eq!(
            error,
            "the tests: portable::f32::plain in tests/conformance.rs"
        );
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let mut report = everything();
        report.tests.succeeded = false;
        assert!(
            report
                .verdict()
                .unwrap_err()
                .to_string()
                .contains("did not build")
        );
    }

    #[test]
    fn a_feature_that_does_not_build_is_a_failure() {
        let mut report = everything();
        report.features[0].built = false;
        let error = report.verdict().unwrap_err().to_string();
        assert_eq!(error, "attn-core with features: none does not build");
        assert!(report.to_string().contains("FAILED: attn-core"));
    }

    #[test]
    fn a_readme_without_test_is_a_failure_of_the_whole_only() {
        let results = vec![conformance("portable::f32::plain", Outcome::Passed)];
        assert!(
            Report::of_part(run(results.clone(), true))
                .verdict()
                .is_ok()
        );
        assert!(
            Report::of_everything(run(results, true), Vec::new())
                .verdict()
                .is_err()
        );
    }

    #[test]
    fn a_filter_that_matches_nothing_is_a_failure() {
        assert!(Report::of_part(run(Vec::new(), true)).verdict().is_err());
    }
}
