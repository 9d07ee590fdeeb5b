//! Runs `cargo test`, shows its log and reads it.

use super::output::{Line, Outcome, Output, TestResult};
use crate::shell;
use crate::status::Status;
use anyhow::Result;

/// The variable that names the instruction sets whose tests may not be skipped.
const REQUIRE: &str = "ATTN_REQUIRE";

/// Runs cargo and shows how it goes.
#[derive(Debug)]
pub(crate) struct Runner {
    /// Content of [`REQUIRE`].
    pub(super) required: Option<String>,
    pub(super) verbose: bool,
    pub(super) status: Status,
}

/// One `cargo test`.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) results: Vec<TestResult>,
    /// Whether cargo itself was content: a program that does not build or dies gives no results.
    pub(crate) succeeded: bool,
}

impl Runner {
    /// `cargo test` of `what`; only the tests with one of `names` in their path, all if there are none.
    pub(crate) fn test(&mut self, what: &[&str], names: &[String]) -> Result<Run> {
        let mut command = shell::cargo();
        command.args(["test", "--no-fail-fast"]).args(what);
        command
            .args(["--", "--show-output", "--color", "never"])
            .args(names);
        command.env("CARGO_TERM_COLOR", "never");
        if let Some(required) = &self.required {
            command.env(REQUIRE, required);
        }
        println!("{}", shell::words(&command));
        let mut output = Output::new();
        let ended = shell::stream(&mut command, |line| self.show(&mut output, line))?;
        self.status.clear();
        Ok(Run {
            results: output.into_results(),
            succeeded: ended.success(),
        })
    }

    /// `cargo check` of `what`; whether it passed. Its words are shown if it did not.
    pub(crate) fn check(&mut self, what: &[&str]) -> Result<bool> {
        let mut command = shell::cargo();
        command.args(["check", "--quiet"]).args(what);
        self.status.set(&shell::words(&command));
        let mut words = Vec::new();
        let ended = shell::stream(&mut command, |line| words.push(line.to_owned()))?;
        self.status.clear();
        if !ended.success() {
            println!("{} failed:\n{}", shell::words(&command), words.join("\n"));
        }
        Ok(ended.success())
    }

    /// The whole log without a terminal; on a terminal what matters, and a line that counts.
    fn show(&mut self, output: &mut Output, line: &str) {
        let shown = match output.read(line) {
            Line::Shown => !line.is_empty() || self.verbose,
            Line::Pass => self.verbose || !self.status.is_terminal(),
            Line::Hidden => self.verbose,
        };
        if shown {
            self.status.clear();
            println!("{line}");
        }
        if self.status.is_terminal() {
            self.status.set(&count(output));
        }
    }
}

fn count(output: &Output) -> String {
    let failed = output
        .results()
        .iter()
        .filter(|test| test.outcome == Outcome::Failed);
    format!(
        "{} tests, {} failed; {}",
        output.results().len(),
        failed.count(),
        output.program()
    )
}
