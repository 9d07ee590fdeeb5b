//! The workspace's own commands: `cargo xtask COMMAND`. A file for each.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool speaks on its streams"
)]
#![expect(
    clippy::std_instead_of_alloc,
    reason = "a program with std has no need to name alloc"
)]

mod bench;
mod ci;
mod deps;
mod fuzz;
mod golden;
mod gpu_check;
mod instructions;
mod kernels;
mod lint;
mod metadata;
mod msrv;
mod no_std;
mod progress;
mod shell;
mod snapshots;
mod status;
mod support;
mod test;

use anyhow::{Result, bail};
use lexopt::Arg;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND [OPTIONS]

  test [--dtype NAME] [--isa NAME] [--backend cpu|cuda] [--require] [--verbose]
              the matrix of dtypes, instruction sets and features, with a table at the end; a filter narrows it,
              --require makes a skip a failure
  bench [--cases A,B1] [--threads 1,2] [--rounds N] [--peers VENV] [--report FILE.html] [--readme]
              times every case beside the machine's limits and the peers of a Python environment, and writes a page or the
              README's table; --worker speaks a line protocol, --print-worker says by which command; --help has more
  ci          everything that a change must pass, `test` included
              (ci --require: it is a failure if instructions cannot be counted)
  support [--check]
              writes the README's support table from the conformance tests, or fails if it differs
  snapshots [--check|--accept]
              runs the snapshot tests: shows new ones, fails on new ones, or accepts them
  instructions [--accept|--require]
              counts the instructions of six calls under Callgrind (needs valgrind) and fails if one takes over 3 % more than the
              baseline; accepts the counts as the new one, or makes a skip a failure
  golden [--venv DIR]
              makes the recorded cases anew from real Flax (needs Python and the network)
  gpu-check --pack FOLDER
              puts what a machine with a GPU needs to check and time the CUDA kernels into a folder, with a script that does it
  kernels [--nvrtc FOLDER] [--check] [--module NAME]
              compiles the CUDA kernels for every architecture (needs Python's pip and the network, or a folder with NVRTC), or fails
              if what is committed is not what the sources give
  fuzz [--runs N]
              runs both fuzz targets (needs cargo-fuzz and a nightly toolchain)
  msrv        checks the stated rust-version
  no-std      builds, links and runs the layers without the standard library
  lint        searches the sources for what no compiler lint finds
  deps        checks the dependency tree of attn-core
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = lexopt::Parser::from_env();
    let command = match args.next()? {
        None | Some(Arg::Long("help") | Arg::Short('h')) => {
            print!("{HELP}");
            return Ok(());
        }
        Some(Arg::Value(name)) => name.to_string_lossy().into_owned(),
        Some(other) => return Err(other.unexpected().into()),
    };
    match command.as_str() {
        "test" => test::command(args),
        "bench" => bench::command(args),
        "ci" => ci::command(args),
        "support" => support::command(args),
        "snapshots" => snapshots::command(args),
        "instructions" => instructions::command(args),
        "golden" => golden::command(args),
        "gpu-check" => gpu_check::command(args),
        "kernels" => kernels::command(args),
        "fuzz" => fuzz::command(args),
        "msrv" => msrv::command(args),
        "no-std" => no_std::command(args),
        "lint" => lint::command(args),
        "deps" => deps::command(args),
        _ => bail!("there is no command `{command}`; `cargo xtask --help` lists them"),
    }
}

/// Fails on any argument, for commands that take none.
fn no_more(mut args: lexopt::Parser) -> Result<()> {
    match args.next()? {
        None => Ok(()),
        Some(arg) => Err(arg.unexpected().into()),
    }
}
