//! A line that is written over, on a terminal only: what a person sees while something long runs.

use std::io::{IsTerminal, Write};

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
