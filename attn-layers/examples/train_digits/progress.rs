//! A progress bar on a terminal.

use std::io::{IsTerminal, Write, stderr};

pub(crate) struct Progress {
    epochs: usize,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(epochs: usize) -> Self {
        Self {
            epochs,
            shown: stderr().is_terminal(),
        }
    }

    /// Draws the bar again, over the old one.
    pub(crate) fn show(&mut self, done: usize, loss: f32, accuracy: f32) {
        const WIDTH: usize = 30;
        if !self.shown {
            return;
        }
        let full = WIDTH * done / self.epochs.max(1);
        // A bar that cannot be drawn is no reason to stop.
        let _ = write!(
            stderr(),
            "\r{}{} epoch {done}/{}, loss {loss:.4}, test accuracy {:.1} % ",
            "█".repeat(full),
            "░".repeat(WIDTH - full),
            self.epochs,
            100.0 * accuracy
        );
        let _ = stderr().flush();
    }

    /// Leaves the line.
    pub(crate) fn finish(&mut self) {
        if self.shown {
            let _ = writeln!(stderr());
        }
    }
}
