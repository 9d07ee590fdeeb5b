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
use core::panic::AssertUnwindSafe;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::panic::catch_unwind;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Drawn;
    use crate::reference::Reference;
    use crate::spec::short_name;
    use std::path::PathBuf;

    /// A folder that goes when this does.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("bench-worker-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn answers(requests: &[Value], threads: usize) -> Vec<Value> {
        let lines: Vec<_> = requests.iter().map(Value::to_string).collect();
        let mut out = Vec::new();
        let cpu = Cpu::detect().with_threads(threads).unwrap();
        serve(cpu, lines.join("\n").as_bytes(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The error of what a worker computes for `spec`, and the whole conversation.
    fn error_of(spec: Value, threads: usize) -> Option<f64> {
        let spec = Spec::from_json(&spec).unwrap();
        let folder = Temporary::new(&format!("{}-{threads}", spec.name));
        let arrays = Arrays::of(&spec, &mut Drawn::kept_in(&folder.0, &spec.data)).unwrap();
        let out = folder.0.join("out");
        let answers = answers(
            &[
                json!({"op": "prep", "case": "x", "spec": spec.to_json(), "data_dir": folder.0, "out": out}),
                json!({"op": "time", "case": "x", "reps": 3}),
                json!({"op": "drop", "case": "x"}),
                json!({"op": "time", "case": "x", "reps": 1}),
                json!({"op": "quit"}),
                json!({"op": "drop", "case": "x"}),
            ],
            threads,
        );
        assert_eq!(answers.len(), 4, "nothing follows `quit`");
        assert_eq!(answers[0]["ok"], true, "{}", answers[0]);
        assert_eq!(answers[1]["ms"].as_array().unwrap().len(), 3);
        assert_eq!(
            (&answers[2]["ok"], &answers[3]["ok"]),
            (&json!(true), &json!(false))
        );
        let result = data::read(&out).unwrap();
        Some(Reference::of(&spec, &arrays)?.error(&result))
    }

    /// Half of a dtype's digits. A wrong order of axes, a wrong mask or a wrong head leaves none; how many more are right is what the conformance
    /// suite measures.
    fn half_of_the_digits(dtype: &str) -> f64 {
        let digits = match dtype {
            "f64" | "f32" => 24, // results are passed on as f32
            "f16" => 11,
            _ => 8,
        };
        0.5f64.powi(digits / 2)
    }

    fn assert_right(mut spec: Value, name: &str) {
        for dtype in [
            attn_core::DType::F32,
            attn_core::DType::F64,
            attn_core::DType::F16,
            attn_core::DType::BF16,
        ]
        .map(short_name)
        {
            spec["dtype"] = json!(dtype);
            spec["name"] = json!(format!("{name}-{dtype}"));
            for threads in [1, 2] {
                let error = error_of(spec.clone(), threads).unwrap();
                assert!(error < half_of_the_digits(dtype), "{name} {dtype}: {error}");
            }
        }
    }

    #[test]
    fn layers_are_right() {
        assert_right(
            json!({"kind": "layer", "B": 2, "L": 5, "D": 12, "H": 3}),
            "layer",
        );
    }

    #[test]
    fn training_steps_are_right() {
        assert_right(
            json!({"kind": "train", "B": 2, "L": 5, "D": 12, "H": 3}),
            "train",
        );
    }

    #[test]
    fn products_are_right() {
        assert_right(json!({"kind": "gemm", "M": 3, "N": 7, "K": 5}), "gemm");
    }

    #[test]
    fn cores_are_right() {
        let plain = json!({"kind": "core", "B": 2, "H": 4, "Hkv": 4, "Lq": 6, "Lk": 6, "d": 8});
        assert_right(plain.clone(), "core");
        let mut causal = plain.clone();
        causal["causal"] = json!(true);
        assert_right(causal.clone(), "causal");
        causal["valid"] = json!(4);
        assert_right(causal, "causal-padding");
        let mut longer = plain;
        longer["Lk"] = json!(9);
        longer["valid"] = json!(7);
        assert_right(longer, "padding");
    }

    #[test]
    fn shared_keys_are_right() {
        let decode = json!({"kind": "core", "B": 2, "H": 6, "Hkv": 2, "Lq": 1, "Lk": 9, "d": 8});
        assert_right(decode.clone(), "decode");
        for (name, key, value) in [
            ("decode-padding", "valid", json!(5)),
            ("decode-causal", "causal", json!(true)),
            ("groups", "Lq", json!(4)),
        ] {
            let mut spec = decode.clone();
            spec[key] = value;
            assert_right(spec, name);
        }
    }

    #[test]
    fn dropout_drops() {
        let spec = |rate: f64| json!({"kind": "dropout", "B": 1, "L": 8, "D": 8, "H": 2, "p": rate, "name": format!("p{rate}")});
        assert_eq!(error_of(spec(0.5), 1), None);
        let result = |rate: f64| {
            let spec = Spec::from_json(&spec(rate)).unwrap();
            let arrays = Arrays::of(&spec, &mut Drawn::new("dropout")).unwrap();
            let mut job = job::prepare(&spec, arrays, &Cpu::detect()).unwrap();
            job.step().unwrap();
            job.fetch()
        };
        assert_ne!(result(0.5), result(0.0));
        assert!(result(0.5).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn what_goes_wrong_is_an_answer() {
        let core = json!({"name": "q", "kind": "core", "B": 1, "H": 1, "Hkv": 1, "Lq": 1, "Lk": 1, "d": 8, "dtype": "q8_0"});
        let dense = json!({"name": "no such data", "kind": "gemm", "M": 1, "N": 1, "K": 1});
        let answers = answers(
            &[
                json!({"op": "prep", "case": "x", "spec": core, "data_dir": "."}),
                json!({"op": "prep", "case": "x", "spec": dense, "data_dir": "."}),
                json!({"op": "dance", "case": "x"}),
                json!({"op": "time"}),
            ],
            1,
        );
        assert_eq!(answers.len(), 4);
        for (answer, word) in answers
            .iter()
            .zip(["quantised", "cannot read", "dance", "`case`"])
        {
            assert_eq!(answer["ok"], false);
            assert!(answer["why"].as_str().unwrap().contains(word), "{answer}");
        }
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = caught(|| -> Result<()> { panic!("with {} words", "two") }).unwrap_err();
        assert_eq!(error.to_string(), "panic: with two words");
    }
}
