//! The race: everybody who computes a case takes turns, a slot each, round after round.
//!
//! A benchmark of one function at a time asks whether that function changed. Here the question is a ratio, ours to a peer's or to the machine's limit, on a
//! machine that others may use and whose clock moves. So the runners of a case take turns within seconds, slow times hit them alike, and a number
//! is the median of its slots' medians, which a disturbed slot cannot move. Each number comes with its spread, `(p75 - p25) / median` of the
//! slots, and with its fastest slot, which is held against the limit. Everybody keeps to the same cores.

use crate::cores::Kept;
use crate::data::{Arrays, Drawn};
use crate::job::{self, Job};
use crate::limits::Probe;
use crate::peers::{PeerRunner, Peers};
use crate::reference::Reference;
use crate::results::{Row, Unsupported};
use crate::spec::Spec;
use crate::statistics::{median, quantile};
use crate::worker::timed;
use anyhow::Result;
use attn_kernels_cpu::Cpu;
use core::time::Duration;

/// Time that a slot should take, in milliseconds.
const SLOT_MS: f64 = 150.0;
/// Time that one runner may take for all its slots of a case.
const BUDGET_MS: f64 = 6000.0;
/// Steps of a slot at most.
const MOST_STEPS: f64 = 5000.0;
/// Rounds at least, however long they are: fewer for steps of more than a second.
const FEWEST_ROUNDS: usize = 3;
const FEWEST_LONG_ROUNDS: usize = 2;
/// Samples of the limits at least, beside each case.
const FEWEST_SAMPLES: usize = 5;
/// Before a slot: threads of the last runner may still spin in wait for work.
const PAUSE: Duration = Duration::from_millis(20);

/// Somebody who computes cases.
pub(crate) trait Runner {
    fn name(&self) -> &str;
    /// Makes a case ready and computes it twice.
    fn prepare(&mut self, spec: &Spec) -> Result<Prepared>;
    /// Milliseconds of each of `steps` steps.
    fn time(&mut self, steps: usize) -> Result<Vec<f64>>;
    /// Lets go of the case.
    fn finish(&mut self);
}

/// What preparing gave.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// About how long a step takes.
    pub(crate) estimate_ms: f64,
    pub(crate) result: Vec<f32>,
    /// Memory that a step needs beside what it is given and gives.
    pub(crate) extra_bytes: Option<u64>,
}

/// What a race leaves.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    pub(crate) unsupported: Vec<Unsupported>,
}

/// The name under which our own layers run.
pub(crate) const OWN: &str = "own";

/// The layers of this workspace, in this process.
struct Own {
    cpu: Cpu,
    job: Option<Box<dyn Job>>,
}

impl Runner for Own {
    fn name(&self) -> &str {
        OWN
    }

    fn prepare(&mut self, spec: &Spec) -> Result<Prepared> {
        let arrays = Arrays::of(spec, &mut Drawn::new(&spec.data))?;
        let mut job = job::prepare(spec, arrays, &self.cpu)?;
        let first = timed(job.as_mut())?;
        let estimate_ms = timed(job.as_mut())?.min(first);
        let prepared = Prepared {
            estimate_ms,
            result: job.fetch(),
            extra_bytes: Some(job.extra_bytes() as u64),
        };
        self.job = Some(job);
        Ok(prepared)
    }

    fn time(&mut self, steps: usize) -> Result<Vec<f64>> {
        let job = self.job.as_mut();
        let Some(job) = job else {
            return Ok(Vec::new());
        };
        (0..steps).map(|_| timed(job.as_mut())).collect()
    }

    fn finish(&mut self) {
        self.job = None;
    }
}

/// Runs one case on one number of threads.
pub(crate) struct Race<'r> {
    pub(crate) threads: usize,
    pub(crate) rounds: usize,
    pub(crate) probe: &'r mut Probe,
    pub(crate) peers: &'r mut Peers,
}

impl Race<'_> {
    /// All runners of `spec`, their results held against `reference`.
    pub(crate) fn run(&mut self, spec: &Spec, reference: Option<&Reference>) -> Result<Outcome> {
        // Peers that start now see all cores, and keep to the same ones by themselves.
        let peers = self.peers.runners(spec, self.threads)?;
        let _kept = Kept::to(self.threads);
        let cpu = Cpu::detect().with_threads(self.threads)?;
        let mut runners: Vec<Box<dyn Runner>> = vec![Box::new(Own { cpu, job: None })];
        runners.extend(
            peers
                .into_iter()
                .map(|peer: PeerRunner| Box::new(peer) as Box<dyn Runner>),
        );
        let mut outcome = Outcome::default();
        let mut lanes = Vec::new();
        for mut runner in runners {
            match prepared(runner.as_mut(), spec) {
                Ok(prepared) => lanes.push(Lane::new(runner, &prepared, reference, self.rounds)),
                Err(error) => {
                    outcome
                        .unsupported
                        .push(self.unsupported(spec, runner.name(), &error))
                }
            }
        }
        self.take_turns(&mut lanes);
        for mut lane in lanes {
            lane.runner.finish();
            match lane.failure.take() {
                Some(error) => {
                    outcome
                        .unsupported
                        .push(self.unsupported(spec, lane.runner.name(), &error))
                }
                None => outcome.rows.push(lane.row(spec, self.threads)),
            }
        }
        Ok(outcome)
    }

    /// Round after round, everybody who has rounds left; the first of a round is another one each time.
    fn take_turns(&mut self, lanes: &mut [Lane]) {
        let most = lanes.iter().map(|lane| lane.rounds).max().unwrap_or(0);
        for round in 0..most.max(FEWEST_SAMPLES) {
            self.probe.sample(self.threads);
            let count = lanes.len();
            for turn in 0..count {
                lanes[(round + turn) % count].take_slot(round);
            }
        }
    }

    fn unsupported(&self, spec: &Spec, runner: &str, error: &anyhow::Error) -> Unsupported {
        Unsupported {
            case: spec.name.clone(),
            runner: runner.to_owned(),
            threads: self.threads,
            why: format!("{error:#}"),
        }
    }
}

/// Makes a case ready; where steps are short, some more of them tell how long they really are, since the first ones are not the rule.
fn prepared(runner: &mut dyn Runner, spec: &Spec) -> Result<Prepared> {
    const SHORT_MS: f64 = 5.0;
    const MORE: usize = 10;
    let mut prepared = runner.prepare(spec)?;
    if prepared.estimate_ms < SHORT_MS {
        prepared.estimate_ms = median(&runner.time(MORE)?);
    }
    Ok(prepared)
}

/// A runner in a race.
struct Lane {
    runner: Box<dyn Runner>,
    steps: usize,
    rounds: usize,
    error: Option<f64>,
    extra_bytes: Option<u64>,
    /// The median of each slot.
    slots: Vec<f64>,
    failure: Option<anyhow::Error>,
}

impl Lane {
    fn new(
        runner: Box<dyn Runner>,
        prepared: &Prepared,
        reference: Option<&Reference>,
        rounds: usize,
    ) -> Self {
        // Below the clock's resolution an estimate may be 0.
        let estimate = prepared.estimate_ms.max(1e-4);
        let steps = (SLOT_MS / estimate).round().clamp(1.0, MOST_STEPS);
        let fewest = if estimate > 1000.0 {
            FEWEST_LONG_ROUNDS
        } else {
            FEWEST_ROUNDS
        };
        let affordable = (BUDGET_MS / (steps * estimate)) as usize;
        Self {
            runner,
            steps: steps as usize,
            rounds: rounds.min(affordable.max(fewest)),
            error: reference.map(|reference| reference.error(&prepared.result)),
            extra_bytes: prepared.extra_bytes,
            slots: Vec::new(),
            failure: None,
        }
    }

    fn take_slot(&mut self, round: usize) {
        if round >= self.rounds || self.failure.is_some() {
            return;
        }
        std::thread::sleep(PAUSE);
        match self.runner.time(self.steps) {
            Ok(times) => self.slots.push(median(&times)),
            Err(error) => self.failure = Some(error),
        }
    }

    fn row(&self, spec: &Spec, threads: usize) -> Row {
        let middle = median(&self.slots);
        Row {
            case: spec.name.clone(),
            runner: self.runner.name().to_owned(),
            threads,
            median_ms: middle,
            fastest_ms: quantile(&self.slots, 0.0),
            spread: (quantile(&self.slots, 0.75) - quantile(&self.slots, 0.25)) / middle,
            slots: self.slots.len(),
            steps: self.steps,
            error: self.error,
            extra_bytes: self.extra_bytes,
        }
    }
}
