//! A run: every case on every number of threads, with its progress, and what is made of the results.

use crate::cases;
use crate::data::{Arrays, Drawn};
use crate::limits::Probe;
use crate::options::Options;
use crate::peers::Peers;
use crate::race::{Outcome, Race};
use crate::reference::Reference;
use crate::results::{Results, Row};
use crate::spec::Spec;
use crate::status::Status;
use crate::table::{plural, time};
use crate::{machine, readme, report, start, table};
use anyhow::{Context, Result};

/// Measures, or takes what was measured, and writes what is asked for.
pub(crate) fn command(options: &Options) -> Result<()> {
    let results = match &options.from {
        Some(path) => {
            let json = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Results::from_json(&serde_json::from_str(&json)?)?
        }
        None => measure(options)?,
    };
    println!("{}", table::markdown(&results));
    if let Some(path) = &options.report {
        report::write(&results, path)?;
    }
    if options.readme {
        readme::write(&results)?;
    }
    Ok(())
}

fn measure(options: &Options) -> Result<Results> {
    let mut cases = if options.cases.is_empty() {
        cases::all()
    } else {
        cases::named(&options.cases)?
    };
    if options.report.is_some() {
        cases.extend(cases::lengths());
    }
    let mut peers = Peers::new(&options.peers)?;
    let mut probe = Probe::new(&options.threads);
    let mut progress = Progress::new(cases.len() * options.threads.len());
    let mut all = Outcome::default();
    for spec in &cases {
        let arrays = Arrays::of(spec, &mut Drawn::new(&spec.data))?;
        let reference = Reference::of(spec, &arrays);
        drop(arrays);
        for &threads in &options.threads {
            progress.next(spec, threads);
            let mut race = Race {
                threads,
                rounds: options.rounds,
                probe: &mut probe,
                peers: &mut peers,
            };
            let outcome = race.run(spec, reference.as_ref())?;
            progress.show(&outcome);
            all.rows.extend(outcome.rows);
            all.unsupported.extend(outcome.unsupported);
        }
    }
    progress.done();
    for absent in peers.absent() {
        println!("left out: {absent}");
    }
    Ok(Results {
        machine: machine::description(),
        date: machine::today(),
        versions: peers.versions(),
        absent: peers.absent(),
        cold_start_ms: Some(start::measure()?),
        limits: probe.best().to_vec(),
        cases,
        rows: all.rows,
        unsupported: all.unsupported,
    })
}

/// A bar on a terminal; lines of results everywhere.
struct Progress {
    status: Status,
    total: usize,
    started: usize,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            status: Status::new(),
            total,
            started: 0,
        }
    }

    fn next(&mut self, spec: &Spec, threads: usize) {
        let bar = bar(self.started, self.total);
        self.started += 1;
        let place = format!(
            "{}/{} {} on {}",
            self.started,
            self.total,
            spec.name,
            plural(threads)
        );
        if self.status.is_terminal() {
            self.status
                .set(&format!("{bar} {place}: {}", spec.description()));
        } else {
            println!("{place}: {}", spec.description());
        }
    }

    fn show(&mut self, outcome: &Outcome) {
        self.status.clear();
        for row in &outcome.rows {
            println!("{}", line(row));
        }
        for no in &outcome.unsupported {
            println!(
                "{:7} {:20} {}: cannot: {}",
                no.case,
                no.runner,
                plural(no.threads),
                first_line(&no.why)
            );
        }
    }

    fn done(&mut self) {
        self.status.clear();
    }
}

fn bar(done: usize, total: usize) -> String {
    const WIDTH: usize = 24;
    let full = done * WIDTH / total.max(1);
    format!("[{}{}]", "=".repeat(full), " ".repeat(WIDTH - full))
}

fn line(row: &Row) -> String {
    let error = row
        .error
        .map_or("–".to_owned(), |error| format!("{error:.1e}"));
    format!(
        "{:7} {:20} {}: {:>7} ms ± {:4.1} %, fastest {:>7}, {} × {} steps, error {error}",
        row.case,
        row.runner,
        plural(row.threads),
        time(row.median_ms),
        100.0 * row.spread,
        time(row.fastest_ms),
        row.slots,
        row.steps,
    )
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        assert_eq!(bar(0, 4).matches('=').count(), 0);
        assert_eq!(bar(2, 4), format!("[{}{}]", "=".repeat(12), " ".repeat(12)));
        assert_eq!(bar(4, 4).matches(' ').count(), 0);
        assert_eq!(bar(0, 0).len(), 26);
    }
}
