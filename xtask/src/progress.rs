//! The steps of a command, announced one by one.

use std::time::Instant;

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
