//! What a person sees while commands run: a line that is written over, on a terminal only.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// A line that changes in place. Elsewhere than on a terminal it is silent.
#[derive(Debug)]
pub(crate) struct Status {
    terminal: bool,
    shown: bool,
}

impl Status {
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            shown: false,
        }
    }

    /// Whether a person watches.
    pub(crate) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Shows `text` in place of what was shown.
    pub(crate) fn set(&mut self, text: &str) {
        if !self.terminal {
            return;
        }
        let text: String = text.chars().take(100).collect();
        eprint!("\r\x1b[2K{text}");
        // Nothing depends on the line; a closed stream shows up at the next real message.
        let _ = std::io::stderr().flush();
        self.shown = true;
    }

    /// Takes the line away, before other words are written.
    pub(crate) fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[2K");
            self.shown = false;
        }
    }
}

/// Numbered steps with their times.
#[derive(Debug)]
pub(crate) struct Steps {
    total: usize,
    done: usize,
    start: Instant,
}

impl Steps {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            done: 0,
            start: Instant::now(),
        }
    }

    /// Announces the next step.
    pub(crate) fn next(&mut self, name: &str) {
        self.done += 1;
        let seconds = self.start.elapsed().as_secs();
        eprintln!("== {}/{} {name} (at {seconds} s)", self.done, self.total);
    }

    /// Announces the end.
    pub(crate) fn finish(&self) {
        eprintln!(
            "== all {} steps passed in {} s",
            self.total,
            self.start.elapsed().as_secs()
        );
    }
}
