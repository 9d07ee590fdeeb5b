//! Peers: libraries of a Python environment, each in a process of its own, spoken to by the worker protocol.
//!
//! A process says at first which peers it has and what they compute; one whose library is not installed says so and is left out.

use crate::data::{self, Arrays, Drawn};
use crate::race::{Prepared, Runner};
use crate::spec::{Spec, Work};
use anyhow::{Context, Result, anyhow, bail};
use core::cell::RefCell;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

/// The workers, by the library that each needs.
const SCRIPTS: [&str; 3] = ["torch_peers.py", "jax_peers.py", "onnxruntime_peers.py"];

/// Variables by which libraries take their number of threads.
const THREADS: [&str; 5] = [
    "BENCH_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NPROC",
];

/// The peers of one Python environment, or none.
pub(crate) struct Peers {
    pythons: Vec<PathBuf>,
    /// Where inputs and results lie for them.
    folder: Option<Folder>,
    processes: Vec<Started>,
    /// Scripts whose library an environment lacks, and why.
    absent: Vec<(&'static str, String)>,
}

/// A process, or a script that gave none.
struct Started {
    python: PathBuf,
    script: &'static str,
    threads: usize,
    process: Option<Rc<RefCell<Process>>>,
}

impl Peers {
    /// Those of these environments; of none without a folder for their inputs.
    pub(crate) fn new(environments: &[PathBuf]) -> Result<Self> {
        let pythons: Vec<_> = environments
            .iter()
            .map(|folder| python_of(folder))
            .collect::<Result<_>>()?;
        Ok(Self {
            folder: if pythons.is_empty() {
                None
            } else {
                Some(Folder::new()?)
            },
            pythons,
            processes: Vec::new(),
            absent: Vec::new(),
        })
    }

    /// What no environment has, and why.
    pub(crate) fn absent(&self) -> Vec<String> {
        let runs = |script| {
            self.processes
                .iter()
                .any(|started| started.script == script && started.process.is_some())
        };
        let absent = self.absent.iter().filter(|(script, _)| !runs(*script));
        absent
            .map(|(script, why)| format!("{script}: {why}"))
            .collect()
    }

    /// Name and version of every library that ran.
    pub(crate) fn versions(&self) -> Vec<String> {
        let mut all: Vec<_> = (self.processes.iter())
            .filter_map(|started| Some(started.process.as_ref()?.borrow().version.clone()))
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// The peers that compute cases like `spec`.
    pub(crate) fn runners(&mut self, spec: &Spec, threads: usize) -> Result<Vec<PeerRunner>> {
        let Some(folder) = &self.folder else {
            return Ok(Vec::new());
        };
        let folder = folder.0.clone();
        // Written once for every case, whatever the number of threads; peers read the files.
        Arrays::of(spec, &mut Drawn::kept_in(&folder, &spec.data))?;
        let mut runners = Vec::new();
        for python in self.pythons.clone() {
            for script in SCRIPTS {
                let Some(process) = self.process(&python, script, threads) else {
                    continue;
                };
                let names = process.borrow().peers_of(spec);
                runners.extend(names.into_iter().map(|name| PeerRunner {
                    process: Rc::clone(&process),
                    name,
                    case: spec.name.clone(),
                    folder: folder.clone(),
                }));
            }
        }
        Ok(runners)
    }

    /// The process of a script, started where it has to be: at first, and after it died.
    fn process(
        &mut self,
        python: &Path,
        script: &'static str,
        threads: usize,
    ) -> Option<Rc<RefCell<Process>>> {
        let known = self.processes.iter_mut().find(|started| {
            started.python == python && started.script == script && started.threads == threads
        });
        if let Some(started) = known {
            let process = started.process.as_ref()?;
            if process.borrow_mut().is_alive() {
                return Some(Rc::clone(process));
            }
            started.process = Process::start(python, script, threads).ok().map(shared);
            return started.process.clone();
        }
        let process = match Process::start(python, script, threads) {
            Ok(process) => Some(shared(process)),
            Err(error) => {
                let why = (script, format!("{error:#}"));
                if !self.absent.contains(&why) {
                    self.absent.push(why);
                }
                None
            }
        };
        self.processes.push(Started {
            python: python.to_owned(),
            script,
            threads,
            process: process.clone(),
        });
        process
    }
}

fn shared(process: Process) -> Rc<RefCell<Process>> {
    Rc::new(RefCell::new(process))
}

/// The interpreter of a virtual environment.
fn python_of(environment: &Path) -> Result<PathBuf> {
    let places = ["bin/python", "Scripts/python.exe"].map(|place| environment.join(place));
    let found = places.into_iter().find(|place| place.is_file());
    found.with_context(|| {
        format!(
            "{} is no Python environment: it has no bin/python",
            environment.display()
        )
    })
}

/// A folder for inputs, which goes when this does.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("attention-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Of no consequence if it fails: the folder is one of temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A worker in Python.
struct Process {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    version: String,
    /// Names of peers, each with the kinds of cases that it computes.
    peers: Vec<(String, Vec<String>)>,
}

impl Process {
    fn start(python: &Path, script: &str, threads: usize) -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/peers");
        let mut command = Command::new(python);
        command.arg("-B").arg(folder.join(script));
        command.envs(THREADS.map(|name| (name, threads.to_string())));
        // Their warnings would bury ours; what matters comes as an answer.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the worker has no streams");
        };
        let mut this = Self {
            child,
            requests,
            answers: BufReader::new(answers),
            version: String::new(),
            peers: Vec::new(),
        };
        let answer = this.ask(&json!({"op": "hello"}))?;
        answer["version"]
            .as_str()
            .unwrap_or(script)
            .clone_into(&mut this.version);
        this.peers = peers_in(&answer);
        Ok(this)
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// A request and its answer; one that is not ok is an error.
    fn ask(&mut self, request: &Value) -> Result<Value> {
        let died = || anyhow!("the worker died");
        writeln!(self.requests, "{request}").map_err(|_| died())?;
        self.requests.flush().map_err(|_| died())?;
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(died());
        }
        let answer: Value = serde_json::from_str(&line)?;
        if answer["ok"] != true {
            bail!("{}", answer["why"].as_str().unwrap_or("it gives no reason"));
        }
        Ok(answer)
    }

    fn peers_of(&self, spec: &Spec) -> Vec<String> {
        let kind = kind(spec);
        let named = self.peers.iter().filter(|(_, kinds)| kinds.contains(&kind));
        named.map(|(name, _)| name.clone()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has died already cannot be asked to end, nor need it.
        let _ = writeln!(self.requests, "{}", json!({"op": "quit"}));
        let _ = self.requests.flush();
        let _ = self.child.wait();
    }
}

fn kind(spec: &Spec) -> String {
    let json = spec.to_json();
    json["kind"].as_str().unwrap_or_default().to_owned()
}

fn peers_in(answer: &Value) -> Vec<(String, Vec<String>)> {
    let strings = |list: &Value| {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let peers = answer["peers"].as_object().into_iter().flatten();
    peers
        .map(|(name, kinds)| (name.clone(), strings(kinds)))
        .collect()
}

/// A peer of a process.
pub(crate) struct PeerRunner {
    process: Rc<RefCell<Process>>,
    name: String,
    case: String,
    folder: PathBuf,
}

impl PeerRunner {
    fn ask(&self, op: &str, mut more: Value) -> Result<Value> {
        more["op"] = json!(op);
        more["peer"] = json!(self.name);
        more["case"] = json!(self.case);
        self.process.borrow_mut().ask(&more)
    }
}

impl Runner for PeerRunner {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, spec: &Spec) -> Result<Prepared> {
        let out = self.folder.join("result");
        let answer = self.ask(
            "prep",
            json!({"spec": spec.to_json(), "data_dir": self.folder, "out": out}),
        )?;
        let number = |key: &str| {
            answer[key]
                .as_f64()
                .with_context(|| format!("the answer has no `{key}`"))
        };
        let result = data::read(&out)?;
        let given = result_bytes(spec, result.len());
        Ok(Prepared {
            estimate_ms: number("first_ms")?.min(number("second_ms")?),
            extra_bytes: answer["grown_bytes"]
                .as_u64()
                .map(|grown| grown.saturating_sub(given)),
            result,
        })
    }

    fn time(&mut self, steps: usize) -> Result<Vec<f64>> {
        let answer = self.ask("time", json!({"reps": steps}))?;
        let times = answer["ms"].as_array().context("the answer has no times")?;
        Ok(times.iter().filter_map(Value::as_f64).collect())
    }

    fn finish(&mut self) {
        // The case stays in a worker that does not answer; it has been reported by then.
        let _ = self.ask("drop", json!({}));
    }
}

/// Bytes of the result, which a peer makes anew and which do not count as extra.
fn result_bytes(spec: &Spec, numbers: usize) -> u64 {
    let each = match (spec.work, spec.dtype) {
        (Work::Core(_), dtype) => dtype.scalar().size(),
        _ => size_of::<f32>(),
    };
    (numbers * each) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_python_is_named() {
        let Err(error) = Peers::new(&[PathBuf::from("no/such/environment")]) else {
            panic!("it is there");
        };
        assert!(error.to_string().contains("no/such/environment"), "{error}");
    }

    #[test]
    fn no_environment_is_no_peer() {
        let mut peers = Peers::new(&[]).unwrap();
        for spec in crate::cases::all() {
            assert!(peers.runners(&spec, 1).unwrap().is_empty());
        }
        assert!(peers.absent().is_empty() && peers.versions().is_empty());
    }

    #[test]
    fn a_greeting_says_who_computes_what() {
        let greeting =
            json!({"ok": true, "version": "x 1", "peers": {"x.a": ["core", "gemm"], "x.b": []}});
        let both = ["core", "gemm"].map(str::to_owned).to_vec();
        let wanted = [("x.a".to_owned(), both), ("x.b".to_owned(), Vec::new())];
        assert_eq!(peers_in(&greeting), wanted);
        assert!(peers_in(&json!({})).is_empty());
    }

    #[test]
    fn every_script_is_there() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/peers");
        for script in SCRIPTS {
            assert!(folder.join(script).is_file(), "{script}");
        }
    }
}
