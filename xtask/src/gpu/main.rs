//! The program that `cargo xtask gpu-check --pack` packs: times the CUDA kernels on a device, and makes a report of what it and the other
//! programs of the pack found.
//!
//! | module | subject |
//! |---|---|
//! | `cases` | what is timed |
//! | `job` | a case made ready on the device |
//! | `bench` | timing by the device's own events |
//! | `report` | one page of all results |
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool speaks on its streams"
)]
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a program has std"
)]

mod bench;
mod cases;
mod job;
mod report;

use anyhow::{Context, Result, bail};
use lexopt::Arg;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
xtask-gpu bench [--json FILE] [--cases PREFIX,…] [--once]
  times the cases on device 0; --once starts each a single time, for profilers
xtask-gpu cases
  the cases, one JSON object a line, for other libraries to time
xtask-gpu report FOLDER
  reads bench.json, torch.json and the checks' logs there, and writes report.json and report.html
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask-gpu: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = lexopt::Parser::from_env();
    let command = match args.next()? {
        Some(Arg::Value(command)) => command.to_string_lossy().into_owned(),
        _ => {
            print!("{HELP}");
            return Ok(());
        }
    };
    match command.as_str() {
        "bench" => {
            let (mut json, mut prefixes, mut once) = (None, Vec::new(), false);
            while let Some(arg) = args.next()? {
                match arg {
                    Arg::Long("json") => json = Some(PathBuf::from(args.value()?)),
                    Arg::Long("once") => once = true,
                    Arg::Long("cases") => {
                        let names = args.value()?.to_string_lossy().into_owned();
                        prefixes = names.split(',').map(str::to_owned).collect();
                    }
                    other => return Err(other.unexpected().into()),
                }
            }
            bench::run(&prefixes, once, json.as_deref())
        }
        "cases" => {
            for case in cases::all() {
                println!("{}", case.to_json());
            }
            Ok(())
        }
        "report" => {
            let folder = args.value().context("a folder is needed")?;
            report::write(&PathBuf::from(folder))
        }
        other => bail!("there is no command `{other}`\n{HELP}"),
    }
}
