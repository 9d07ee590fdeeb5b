//! Replays recorded calls of Flax's attention and of the ONNX operator, and says whether this library gives the same numbers.
//!
//! ```text
//! cargo run --release --example replay -- [--backend cpu|cuda] [--isa NAME] [--threads N] [--json] PATH...
//! ```
//!
//! PATH is a case's `NAME.json`, with its tensors in files beside it, or a folder of cases. Every case gives a line, a failed
//! one with its worst difference: which output, index, got, wanted, allowed. The exit status is 0 only if no case failed.
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a program has std"
)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program prints"
)]

mod harness;
mod options;

use anyhow::Result;
use attn_layers::HostKernels;
use options::{Chosen, Options};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("replay: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Replays all cases and gives the number of failed ones.
fn run() -> Result<usize> {
    let Some(options) = Options::from_args()? else {
        println!("{}", options::USAGE);
        return Ok(0);
    };
    let cases = harness::find_cases(&options.paths)?;
    match options.backend()? {
        Chosen::Cpu(cpu) => replay_all(&cases, &cpu, options.json),
        #[cfg(feature = "cuda")]
        Chosen::Cuda(cuda) => replay_all(&cases, &cuda, options.json),
    }
}

fn replay_all<B: HostKernels>(cases: &[PathBuf], backend: &B, json: bool) -> Result<usize> {
    // A panic is reported as its case's failure; its backtrace would only break the lines.
    std::panic::set_hook(Box::new(|_| {}));
    let mut out = std::io::stdout().lock();
    let mut failed = 0;
    for case in cases {
        let report = harness::replay(case, backend);
        failed += usize::from(!report.passed());
        if json {
            writeln!(out, "{}", report.to_json())?;
        } else {
            writeln!(out, "{report}")?;
        }
    }
    writeln!(out, "{} passed, {failed} failed", cases.len() - failed)?;
    Ok(failed)
}
