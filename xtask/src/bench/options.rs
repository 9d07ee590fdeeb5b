//! The command line.

use anyhow::{Context, Result, bail};
use lexopt::{Arg, ValueExt};
use std::path::PathBuf;

pub(crate) const HELP: &str = "\
cargo xtask bench [OPTIONS]

  --cases A,B1     these cases: names, or beginnings of names (default: all)
  --threads 1,2    numbers of threads (default: 1, and all cores if there are more)
  --rounds N       slots of each runner (default: 7; fewer where a step is long)
  --peers VENV     the peers of a Python environment take turns with us; may be given several times
  --report FILE    writes a page with plots, FILE.html, and the numbers beside, FILE.json; adds cases of growing length
  --readme         writes the README's table
  --from FILE      takes the numbers of an earlier run's FILE.json and measures nothing
  --once CASE      computes one case once and prints the sum of the result: a cold start, to be timed from outside
  --data FOLDER    takes the inputs of --once from raw f32 files, as the worker does
  --worker         speaks the line protocol on the standard streams; BENCH_THREADS says how many threads
  --print-worker   builds the worker and prints the command that starts it, without cargo

The peers are PyTorch, JAX with Flax, and ONNX Runtime (`pip install torch numpy onnx onnxruntime`, `pip install jax flax numpy`); what an
environment lacks is said and left out. `cargo xtask bench --worker` may itself be a racer elsewhere: its process becomes the worker's.
";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Names of cases or groups; none is all.
    pub(crate) cases: Vec<String>,
    pub(crate) threads: Vec<usize>,
    pub(crate) rounds: usize,
    pub(crate) peers: Vec<PathBuf>,
    pub(crate) report: Option<PathBuf>,
    pub(crate) readme: bool,
    pub(crate) from: Option<PathBuf>,
    /// Where the inputs of [`Mode::Once`] lie; they are drawn if it is nowhere.
    pub(crate) data: Option<PathBuf>,
    pub(crate) mode: Mode,
}

/// What the program does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    Work,
    /// Computes this case once.
    Once(String),
    Help,
}

impl Options {
    pub(crate) fn parse(mut args: lexopt::Parser) -> Result<Self> {
        let mut options = Self {
            cases: Vec::new(),
            threads: default_threads(),
            rounds: 7,
            peers: Vec::new(),
            report: None,
            readme: false,
            from: None,
            data: None,
            mode: Mode::Run,
        };
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Long("cases") => options.cases = list(&args.value()?.string()?),
                Arg::Long("threads") => options.threads = counts(&args.value()?.string()?)?,
                Arg::Long("rounds") => options.rounds = count(&args.value()?.string()?)?,
                Arg::Long("peers") => options.peers.push(args.value()?.into()),
                Arg::Long("report") => options.report = Some(args.value()?.into()),
                Arg::Long("readme") => options.readme = true,
                Arg::Long("from") => options.from = Some(args.value()?.into()),
                Arg::Long("data") => options.data = Some(args.value()?.into()),
                Arg::Long("once") => options.mode = Mode::Once(args.value()?.string()?),
                Arg::Long("worker") => options.mode = Mode::Work,
                Arg::Long("help") | Arg::Short('h') => options.mode = Mode::Help,
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(options)
    }
}

fn default_threads() -> Vec<usize> {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        1 => vec![1],
        all => vec![1, all],
    }
}

fn list(text: &str) -> Vec<String> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts.map(str::to_owned).collect()
}

fn counts(text: &str) -> Result<Vec<usize>> {
    let counts: Vec<_> = list(text)
        .iter()
        .map(|part| count(part))
        .collect::<Result<_>>()?;
    if counts.is_empty() {
        bail!("a number of threads is wanted");
    }
    Ok(counts)
}

fn count(text: &str) -> Result<usize> {
    match text
        .parse()
        .with_context(|| format!("`{text}` is no number"))?
    {
        0 => bail!("0 is too few"),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(lexopt::Parser::from_args(args))
    }

    #[test]
    fn lists_are_taken_apart() {
        let options = parse(&[
            "--cases",
            "A,B1",
            "--threads",
            "1,2",
            "--rounds=3",
            "--peers",
            "x",
            "--peers",
            "y",
        ])
        .unwrap();
        assert_eq!(options.cases, ["A", "B1"]);
        assert_eq!((options.threads, options.rounds), (vec![1, 2], 3));
        assert_eq!(options.peers, [PathBuf::from("x"), PathBuf::from("y")]);
    }

    #[test]
    fn no_thread_and_no_round_are_refused() {
        assert!(parse(&["--threads", "0"]).is_err());
        assert!(parse(&["--threads", ","]).is_err());
        assert!(parse(&["--rounds", "0"]).is_err());
        assert!(parse(&["--unknown"]).is_err());
    }
}
