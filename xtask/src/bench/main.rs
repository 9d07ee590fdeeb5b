//! The program behind `cargo xtask bench`: times the layers and their parts, beside the machine's limits and beside other libraries.
//!
//! | module | subject |
//! |---|---|
//! | `spec`, `cases`, `data` | what a case is; the named ones; their inputs |
//! | `job` | a case made ready on our own layers |
//! | `worker` | the line protocol, for races that others run |
//! | `peers` | workers of other libraries, over the same protocol |
//! | `limits`, `reference` | what the machine can do; what a case should give, in `f64` |
//! | `race`, `cores`, `run`, `statistics` | turns and slots; which cores they run on; a whole run; medians |
//! | `start` | a cold start |
//! | `results`, `table`, `readme`, `report` | what a run found, and its forms |
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool speaks on its streams"
)]
#![expect(
    clippy::std_instead_of_alloc,
    reason = "a program with std has no need to name alloc"
)]

mod cases;
mod cores;
mod data;
mod job;
mod limits;
mod machine;
mod options;
mod peers;
mod race;
mod readme;
mod reference;
mod report;
mod results;
mod run;
mod spec;
mod start;
mod statistics;
#[path = "../status.rs"]
mod status;
mod table;
mod worker;

use anyhow::Result;
use options::{HELP, Mode, Options};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse(lexopt::Parser::from_env())?;
    match &options.mode {
        Mode::Help => {
            print!("{HELP}");
            Ok(())
        }
        Mode::Work => worker::command(),
        Mode::Once(case) => start::once(case, options.data.as_deref()),
        Mode::Run => run::command(&options),
    }
}
