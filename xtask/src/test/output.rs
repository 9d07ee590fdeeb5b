//! Reads what `cargo test -- --show-output` writes.
//!
//! Lines are taken one by one as they come. `Running …` and `Doc-tests …` name the program whose tests follow; `test … ok`
//! gives an outcome; the part between `successes:` and `test result:` holds what passing tests wrote, and there a line
//! `SKIPPED path: reason` turns a pass into a skip, a line `REFUSED path` says that a backend has none of what was asked for and said so, and
//! a line `BACKEND name: what` says on what a backend's tests ran.

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Ignored,
    /// Passed without testing, since this machine lacks something: the reason.
    Skipped(String),
    /// Passed: the backend has none of what was asked for, and refused it by name.
    Refused,
}

/// A test and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestResult {
    /// The program: a source file, or `Doc-tests crate`.
    pub(crate) program: String,
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

impl TestResult {
    pub(crate) fn is_doc_test(&self) -> bool {
        self.program.starts_with(DOC_TESTS)
    }
}

/// What a reader of the log may want of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Always.
    Shown,
    /// The outcome of a test that passed.
    Pass,
    /// What a passing test wrote.
    Hidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Outcomes,
    Successes,
    Failures,
}

const DOC_TESTS: &str = "Doc-tests ";

/// The reader's state.
#[derive(Debug)]
pub(crate) struct Output {
    program: String,
    part: Part,
    /// The test whose words are being read.
    speaker: Option<String>,
    results: Vec<TestResult>,
    /// What backends ran on, as their tests said.
    backends: Vec<String>,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self {
            program: String::new(),
            part: Part::Outcomes,
            speaker: None,
            results: Vec::new(),
            backends: Vec::new(),
        }
    }

    /// What was read so far.
    pub(crate) fn results(&self) -> &[TestResult] {
        &self.results
    }

    /// The program whose tests run.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    pub(crate) fn into_results(self) -> Vec<TestResult> {
        self.results
    }

    /// Takes the next line.
    pub(crate) fn read(&mut self, line: &str) -> Line {
        if line.starts_with("test result: ") {
            self.part = Part::Outcomes;
            return Line::Shown;
        }
        match self.part {
            Part::Outcomes => self.read_outcome(line),
            Part::Successes => self.read_words(line),
            Part::Failures => Line::Shown,
        }
    }

    fn read_outcome(&mut self, line: &str) -> Line {
        match line {
            "successes:" => {
                self.part = Part::Successes;
                self.speaker = None;
                return Line::Hidden;
            }
            "failures:" => {
                self.part = Part::Failures;
                return Line::Shown;
            }
            _ => {}
        }
        if let Some(program) = program(line) {
            self.program = program;
            return Line::Shown;
        }
        let Some((name, outcome)) = outcome(line) else {
            return Line::Shown;
        };
        let shown = match outcome {
            Outcome::Passed => Line::Pass,
            _ => Line::Shown,
        };
        if self.is_libtest_name(name) {
            self.results.push(TestResult {
                program: self.program.clone(),
                name: name.to_owned(),
                outcome,
            });
        }
        shown
    }

    /// A test that runs cases of its own may write lines like libtest's, with file names; those are not libtest's tests.
    fn is_libtest_name(&self, name: &str) -> bool {
        self.program.starts_with(DOC_TESTS) || !name.contains('/')
    }

    fn read_words(&mut self, line: &str) -> Line {
        if line == "failures:" {
            self.part = Part::Failures;
            return Line::Shown;
        }
        if let Some(name) = speaker(line) {
            self.speaker = Some(name.to_owned());
        } else if let Some(reason) = skip_reason(line) {
            self.mark(Outcome::Skipped(reason.to_owned()));
        } else if line.starts_with("REFUSED ") {
            self.mark(Outcome::Refused);
        } else if line.starts_with("BACKEND ") && !self.backends.iter().any(|seen| seen == line) {
            self.backends.push(line.to_owned());
            return Line::Shown;
        }
        Line::Hidden
    }

    /// What the test whose words are read says of its own outcome.
    fn mark(&mut self, outcome: Outcome) {
        let Some(speaker) = &self.speaker else { return };
        let of_speaker =
            |test: &&mut TestResult| test.program == self.program && test.name == *speaker;
        if let Some(test) = self.results.iter_mut().rev().find(of_speaker) {
            test.outcome = outcome;
        }
    }
}

/// `     Running tests/x.rs (target/…)` or `   Doc-tests x`.
fn program(line: &str) -> Option<String> {
    let line = line.trim_start();
    if line.starts_with(DOC_TESTS) {
        return Some(line.to_owned());
    }
    let program = line.strip_prefix("Running ")?;
    Some(program.split(" (").next().unwrap_or(program).to_owned())
}

/// `test name ... ok`.
fn outcome(line: &str) -> Option<(&str, Outcome)> {
    let (name, end) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match end {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ if end.starts_with("ignored") => Outcome::Ignored,
        _ => return None,
    };
    Some((name.trim_end_matches(" - should panic"), outcome))
}

/// `---- name stdout ----`.
fn speaker(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// `SKIPPED path: reason`.
fn skip_reason(line: &str) -> Option<&str> {
    let (_path, reason) = line.strip_prefix("SKIPPED ")?.split_once(": ")?;
    Some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
   Compiling attn-kernels-cpu v0.1.0
warning: a line of the compiler
     Running unittests src/lib.rs (target/debug/deps/a-1)

running 2 tests
test isa::tests::names ... ok
test isa::tests::panics - should panic ... ok

successes:

---- isa::tests::names stdout ----
SKIPPED-LOOKING words of a test: no skip
failures are named here


successes:
    isa::tests::names
    isa::tests::panics

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/conformance.rs (target/debug/deps/conformance-2)

running 4 tests
test avx512::f32::plain ... ok
test neon::f32::plain ... ok
test portable::f32::plain ... FAILED
test portable::f32::long ... ignored, takes minutes

successes:

---- avx512::f32::plain stdout ----
SKIPPED conformance::avx512::f32: this CPU has no avx512

successes:
    avx512::f32::plain

failures:

---- portable::f32::plain stdout ----
SKIPPED conformance::portable: not a skip, it failed
test portable::f32::forged ... ok

failures:
    portable::f32::plain

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

     Running tests/ui.rs (target/debug/deps/ui-3)
test tests/ui/fail_item.rs ... ok
test ui ... ok
   Doc-tests attn_layers

running 1 test
test attn-layers/src/../../README.md - (line 12) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    fn read(log: &str) -> (Vec<TestResult>, Vec<(&str, Line)>) {
        let mut output = Output::new();
        let lines = log.lines().map(|line| (line, output.read(line))).collect();
        (output.into_results(), lines)
    }

    #[test]
    fn every_test_has_its_program_and_outcome() {
        let (results, _) = read(LOG);
        let found: Vec<_> = results
            .iter()
            .map(|test| (test.program.as_str(), test.name.as_str(), &test.outcome))
            .collect();
        let skipped = Outcome::Skipped("this CPU has no avx512".to_owned());
        let conformance = "tests/conformance.rs";
        assert_eq!(
            found,
            [
                (
                    "unittests src/lib.rs",
                    "isa::tests::names",
                    &Outcome::Passed
                ),
                (
                    "unittests src/lib.rs",
                    "isa::tests::panics",
                    &Outcome::Passed
                ),
                (conformance, "avx512::f32::plain", &skipped),
                (conformance, "neon::f32::plain", &Outcome::Passed),
                (conformance, "portable::f32::plain", &Outcome::Failed),
                (conformance, "portable::f32::long", &Outcome::Ignored),
                ("tests/ui.rs", "ui", &Outcome::Passed),
                (
                    "Doc-tests attn_layers",
                    "attn-layers/src/../../README.md - (line 12)",
                    &Outcome::Passed
                ),
            ]
        );
        assert!(results[7].is_doc_test() && !results[6].is_doc_test());
    }

    #[test]
    fn a_group_that_is_refused_whole_says_so() {
        let log = "     Running tests/conformance.rs (c-1)\n\ntest portable::f32::window ... ok\ntest portable::f32::plain ... ok\n\n\
            successes:\n\n---- portable::f32::window stdout ----\nREFUSED conformance::portable::f32::window\n";
        let (results, _) = read(log);
        let outcomes: Vec<_> = results.iter().map(|test| &test.outcome).collect();
        assert_eq!(outcomes, [&Outcome::Refused, &Outcome::Passed]);
    }

    #[test]
    fn what_a_backend_ran_on_is_shown_once() {
        let log = "test a ... ok\n\nsuccesses:\n\n---- a stdout ----\nBACKEND cuda: emulated\nBACKEND cuda: emulated\n";
        let (_, lines) = read(log);
        let of_backend = lines.iter().filter(|(line, _)| line.starts_with("BACKEND"));
        let kinds: Vec<Line> = of_backend.map(|(_, kind)| *kind).collect();
        assert_eq!(kinds, [Line::Shown, Line::Hidden]);
    }

    #[test]
    fn results_and_failures_stay_visible_and_successes_do_not() {
        let (_, lines) = read(LOG);
        let kind = |start: &str| {
            lines
                .iter()
                .find(|(line, _)| line.starts_with(start))
                .unwrap()
                .1
        };
        assert_eq!(kind("warning:"), Line::Shown);
        assert_eq!(kind("test isa::tests::names"), Line::Pass);
        assert_eq!(kind("SKIPPED-LOOKING"), Line::Hidden);
        assert_eq!(kind("SKIPPED conformance::portable"), Line::Shown);
        assert_eq!(kind("test portable::f32::plain"), Line::Shown);
        let results: Vec<_> = lines
            .iter()
            .filter(|(line, _)| line.starts_with("test result:"))
            .collect();
        assert_eq!(results.len(), 3);
        assert!(results.iter().all(|(_, kind)| *kind == Line::Shown));
    }
}
