//! The test matrix: every test of the workspace, then every feature alone, and a table at the end.
//!
//! The dev profile runs it: it compiles fastest, and the suites spend their time in kernels that the profile optimises.

mod features;
pub(crate) mod matrix;
pub(crate) mod output;
mod report;
mod run;
pub(crate) mod table;

use crate::status::Status;
use anyhow::{Result, bail};
use lexopt::{Arg, ValueExt};
use matrix::{Backend, Filter};
use report::Report;
use run::{Run, Runner};

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) filter: Filter,
    /// A skip is a failure.
    pub(crate) require: bool,
    /// Every line of every test is shown.
    pub(crate) verbose: bool,
}

impl Options {
    fn parse(mut args: lexopt::Parser) -> Result<Self> {
        let mut options = Self::default();
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Long("dtype") => options.filter.add_dtype(&args.value()?.string()?)?,
                Arg::Long("isa") => options.filter.add_isa(&args.value()?.string()?)?,
                Arg::Long("backend") => {
                    options.filter.backend = Some(Backend::from_name(&args.value()?.string()?)?);
                }
                Arg::Long("require") => options.require = true,
                Arg::Long("verbose") => options.verbose = true,
                other => return Err(other.unexpected().into()),
            }
        }
        options.filter.check()?;
        Ok(options)
    }
}

pub(crate) fn command(args: lexopt::Parser) -> Result<()> {
    run_matrix(&Options::parse(args)?)?;
    Ok(())
}

/// Runs what `options` ask for, prints the table and fails if anything failed. Gives every result.
pub(crate) fn run_matrix(options: &Options) -> Result<Vec<output::TestResult>> {
    let mut runner = Runner::new(options);
    let report = if options.filter.is_empty() {
        let tests = runner.test(&["--workspace", "--all-features"], &[])?;
        let features = features::run(&mut runner)?;
        Report::of_everything(tests, features)
    } else {
        Report::of_part(run_part(&mut runner, &options.filter)?)
    };
    println!("\n{report}");
    if report.verdict().is_err() {
        bail!("the test matrix failed; the lines that begin with FAILED say where");
    }
    Ok(report.into_results())
}

/// The conformance tests alone, as `support` needs them.
pub(crate) fn run_conformance() -> Result<Vec<output::TestResult>> {
    let mut results = Vec::new();
    for backend in [Backend::Cpu, Backend::Cuda] {
        let run = run_part(&mut Runner::new(&Options::default()), &every_dtype(backend))?;
        let report = Report::of_part(run);
        report.verdict()?;
        results.extend(report.into_results());
    }
    Ok(results)
}

fn every_dtype(backend: Backend) -> Filter {
    Filter {
        dtypes: matrix::DTYPES.to_vec(),
        backend: Some(backend),
        ..Filter::default()
    }
}

/// The tests of one backend: its conformance suite if a dtype or an instruction set is named, else all of its crate.
fn run_part(runner: &mut Runner, filter: &Filter) -> Result<Run> {
    let package = filter.backend.unwrap_or(Backend::Cpu).package();
    let names = filter.test_names();
    let mut what = vec!["--package", package, "--all-features"];
    if !names.is_empty() {
        what.extend(["--test", "conformance"]);
    }
    runner.test(&what, &names)
}

impl Runner {
    fn new(options: &Options) -> Self {
        Self {
            required: options.require.then(|| options.filter.required()),
            verbose: options.verbose,
            status: Status::new(),
        }
    }
}
