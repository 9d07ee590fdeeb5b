//! Counts beside the baseline's: a table, and whether they may pass.

use super::baseline::Baseline;
use crate::test::table::Table;
use anyhow::{Result, bail};
use core::fmt;

/// Percent by which a count may grow. The same code counts the same; what a change beside it moves (an inlining, a register) stays below.
const LIMIT: u64 = 3;

/// How the way to a new baseline is named.
const ACCEPT: &str = "`cargo xtask instructions --accept`";

/// What became of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Within,
    Fewer,
    More,
    /// Not in the baseline.
    New,
    /// In the baseline only.
    Gone,
}

impl Verdict {
    fn of(before: Option<u64>, now: Option<u64>) -> Self {
        let (before, now) = match (before, now) {
            (Some(before), Some(now)) => (u128::from(before), u128::from(now)),
            (None, _) => return Self::New,
            (_, None) => return Self::Gone,
        };
        let limit = u128::from(LIMIT);
        if now * 100 > before * (100 + limit) {
            Self::More
        } else if now * 100 < before * (100 - limit) {
            Self::Fewer
        } else {
            Self::Within
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Within => "as before",
            Self::Fewer => "fewer",
            Self::More => "MORE",
            Self::New => "NEW",
            Self::Gone => "GONE",
        }
    }
}

#[derive(Debug)]
struct Row {
    call: String,
    before: Option<u64>,
    now: Option<u64>,
}

impl Row {
    fn verdict(&self) -> Verdict {
        Verdict::of(self.before, self.now)
    }

    fn cells(&self) -> Vec<String> {
        let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), grouped);
        vec![
            self.call.clone(),
            self.verdict().name().to_owned(),
            number(self.before),
            number(self.now),
            self.change(),
        ]
    }

    fn change(&self) -> String {
        match (self.before, self.now) {
            (Some(before), Some(now)) if before > 0 => {
                let percent = (now as f64 / before as f64 - 1.0) * 100.0;
                format!("{percent:+.2} %")
            }
            _ => "-".to_owned(),
        }
    }
}

/// Every call of the baseline and of now.
#[derive(Debug)]
pub(crate) struct Comparison {
    rows: Vec<Row>,
    /// The baseline's compiler, where it is not the one of now.
    other_compiler: Option<String>,
}

impl Comparison {
    pub(crate) fn new(before: &Baseline, now: &Baseline) -> Self {
        let mut calls: Vec<_> = before.instructions.keys().collect();
        calls.extend(now.instructions.keys());
        calls.sort();
        calls.dedup();
        let row = |call: &String| Row {
            call: call.clone(),
            before: before.instructions.get(call).copied(),
            now: now.instructions.get(call).copied(),
        };
        Self {
            rows: calls.into_iter().map(row).collect(),
            other_compiler: (before.compiler != now.compiler).then(|| before.compiler.clone()),
        }
    }

    /// Fails if a call has grown beyond the limit, or if the baseline and the benchmark have not the same calls.
    pub(crate) fn judge(&self) -> Result<()> {
        let calls = |wanted: &[Verdict]| {
            let rows = self.rows.iter();
            let rows = rows.filter(|row| wanted.contains(&row.verdict()));
            let calls: Vec<_> = rows.map(|row| row.call.as_str()).collect();
            calls.join(", ")
        };
        let strangers = calls(&[Verdict::New, Verdict::Gone]);
        if !strangers.is_empty() {
            bail!(
                "the baseline and the benchmark differ in {strangers}; {ACCEPT} brings them together"
            );
        }
        if self.other_compiler.is_some() {
            return Ok(());
        }
        let more = calls(&[Verdict::More]);
        if !more.is_empty() {
            bail!(
                "more than {LIMIT} % more instructions: {more}. If they are worth it, {ACCEPT} takes them"
            );
        }
        let fewer = calls(&[Verdict::Fewer]);
        if !fewer.is_empty() {
            println!(
                "more than {LIMIT} % fewer instructions: {fewer}. {ACCEPT} keeps them from growing back"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["call", "instructions", "baseline", "now", "change"]);
        for row in &self.rows {
            table.push(row.cells());
        }
        write!(f, "{table}")?;
        match &self.other_compiler {
            Some(compiler) => writeln!(
                f,
                "NOT HELD AGAINST THE LIMIT: the baseline was counted with {compiler}"
            ),
            None => Ok(()),
        }
    }
}

/// Digits in groups of three.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(compiler: &str, counts: &[(&str, u64)]) -> Baseline {
        let counts = counts.iter();
        Baseline {
            compiler: compiler.to_owned(),
            instructions: counts
                .map(|(call, count)| ((*call).to_owned(), *count))
                .collect(),
        }
    }

    fn judge(before: u64, now: u64) -> Result<()> {
        let (before, now) = (
            baseline("a", &[("x", before)]),
            baseline("a", &[("x", now)]),
        );
        Comparison::new(&before, &now).judge()
    }

    #[test]
    fn growth_beyond_the_limit_fails() {
        assert!(judge(10_000, 10_300).is_ok());
        let error = judge(10_000, 10_301).unwrap_err().to_string();
        assert!(error.contains("x") && error.contains(ACCEPT), "{error}");
    }

    #[test]
    fn fewer_instructions_pass() {
        assert!(judge(10_000, 1).is_ok());
        assert_eq!(Verdict::of(Some(10_000), Some(9_699)), Verdict::Fewer);
        assert_eq!(Verdict::of(Some(10_000), Some(9_700)), Verdict::Within);
    }

    #[test]
    fn another_compilers_counts_are_shown_and_not_judged() {
        let before = baseline("old", &[("x", 1)]);
        let comparison = Comparison::new(&before, &baseline("new", &[("x", 2)]));
        assert!(comparison.judge().is_ok());
        let text = comparison.to_string();
        assert!(
            text.contains("with old") && text.contains("+100.00 %"),
            "{text}"
        );
    }

    #[test]
    fn a_call_that_only_one_of_them_has_fails() {
        let both = [("x", 1), ("y", 1)];
        let (one, two) = (baseline("a", &both[..1]), baseline("b", &both));
        for (before, now) in [(&one, &two), (&two, &one)] {
            let error = Comparison::new(before, now).judge().unwrap_err();
            assert!(error.to_string().contains("in y;"), "{error}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_call() {
        let before = baseline("a", &[("x", 1_234_567), ("y", 5)]);
        let comparison = Comparison::new(&before, &baseline("a", &[("x", 1_234_567)]));
        let wanted = "\
call  instructions   baseline        now   change
x     as before     1 234 567  1 234 567  +0.00 %
y     GONE                  5          -        -
";
        assert_eq!(comparison.to_string(), wanted);
    }
}
