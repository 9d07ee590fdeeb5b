//! The worker: prepares and times cases for another program, which asks by lines of JSON.
//!
//! | request | answer |
//! |---|---|
//! | `{"op":"prep","case":NAME,"spec":SPEC,"data_dir":FOLDER,"out":FILE}` | `{"ok":true,"first_ms":A,"second_ms":B}`; the result goes to the file |
//! | `{"op":"time","case":NAME,"reps":N}` | `{"ok":true,"ms":[...]}`, a number for each step |
//! | `{"op":"drop","case":NAME}` | `{"ok":true}` |
//! | `{"op":"quit"}`, or the end of the input | none, and the worker ends |
//!
//! What goes wrong is `{"ok":false,"why":TEXT}`, and the worker goes on. `BENCH_THREADS` says how many threads it may use.

use crate::data::{self, Arrays, Folder};
use crate::job::{self, Job};
use crate::spec::Spec;
use anyhow::{Context, Result, anyhow, bail};
use attn_kernels_cpu::Cpu;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

/// The variable that says how many threads there are.
const THREADS: &str = "BENCH_THREADS";

/// Serves the standard streams.
pub(crate) fn command() -> Result<()> {
    let threads = match std::env::var(THREADS) {
        Ok(text) => text.parse().with_context(|| format!("{THREADS}={text}"))?,
        Err(_) => 1,
    };
    let cpu = Cpu::detect().with_threads(threads)?;
    serve(cpu, std::io::stdin().lock(), std::io::stdout().lock())
}

/// Answers every line of `requests` until one says `quit`.
pub(crate) fn serve(cpu: Cpu, requests: impl BufRead, mut answers: impl Write) -> Result<()> {
    let mut worker = Worker {
        cpu,
        jobs: BTreeMap::new(),
    };
    for line in requests.lines() {
        let request: Value = serde_json::from_str(&line?)?;
        if request["op"] == "quit" {
            break;
        }
        let answer = worker
            .answer(&request)
            .unwrap_or_else(|error| json!({"ok": false, "why": format!("{error:#}")}));
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}

struct Worker {
    cpu: Cpu,
    /// The cases that are prepared, by the names that requests give them.
    jobs: BTreeMap<String, Box<dyn Job>>,
}

impl Worker {
    fn answer(&mut self, request: &Value) -> Result<Value> {
        let name = text(request, "case")?;
        match text(request, "op")? {
            "prep" => {
                let (job, answer) = caught(|| self.prepare(request))?;
                self.jobs.insert(name.to_owned(), job);
                Ok(answer)
            }
            "time" => {
                let reps = request["reps"].as_u64().unwrap_or(1);
                let job = self
                    .jobs
                    .get_mut(name)
                    .context("the case is not prepared")?;
                let times = caught(|| {
                    (0..reps)
                        .map(|_| timed(job.as_mut()))
                        .collect::<Result<Vec<_>>>()
                })?;
                Ok(json!({"ok": true, "ms": times}))
            }
            "drop" => {
                self.jobs.remove(name);
                Ok(json!({"ok": true}))
            }
            other => bail!("there is no operation `{other}`"),
        }
    }

    fn prepare(&self, request: &Value) -> Result<(Box<dyn Job>, Value)> {
        let spec = Spec::from_json(&request["spec"])?;
        let mut folder = Folder::new(text(request, "data_dir")?, &spec.data);
        let mut job = job::prepare(&spec, Arrays::of(&spec, &mut folder)?, &self.cpu)?;
        let first = timed(job.as_mut())?;
        if let Some(path) = request["out"].as_str() {
            data::write(Path::new(path), &job.fetch())?;
        }
        let second = timed(job.as_mut())?;
        Ok((
            job,
            json!({"ok": true, "first_ms": first, "second_ms": second}),
        ))
    }
}

/// Milliseconds of one step.
pub(crate) fn timed(job: &mut dyn Job) -> Result<f64> {
    let start = Instant::now();
    job.step()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// A panic as an error, so that one case cannot end the others' worker.
fn caught<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(anyhow!("panic: {}", text.unwrap_or("without words")))
    })
}

fn text<'v>(request: &'v Value, key: &str) -> Result<&'v str> {
    request[key]
        .as_str()
        .with_context(|| format!("the request has no `{key}`"))
}
