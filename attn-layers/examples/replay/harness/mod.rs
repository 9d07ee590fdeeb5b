//! Everything but the command line, so that the tests run the same code as the program.

mod axis;
mod cache;
mod case;
mod compare;
mod decode;
mod exception;
mod fields;
mod forward;
mod function;
mod gradients;
mod init;
mod initializer;
mod json;
mod layer;
mod mask_helper;
mod onnx;
mod random;
mod report;
mod tensors;

pub(crate) use report::Report;

use anyhow::{Context, Result, bail, ensure};
use attn_layers::Error;
use attn_layers::HostKernels;
use attn_layers::tensor::Tensor;
use case::{Case, CaseFile, Kind};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// The outputs of a call by name.
type Outputs = BTreeMap<String, Tensor>;

/// The cases that `paths` name, folders opened, each folder's in the order of their names.
///
/// # Errors
///
/// If a path does not exist, or a folder has no case in it.
pub(crate) fn find_cases(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut cases = Vec::new();
    for path in paths {
        let kind = path
            .metadata()
            .with_context(|| path.display().to_string())?;
        if kind.is_dir() {
            cases.extend(cases_in(path)?);
        } else {
            cases.push(path.clone());
        }
    }
    Ok(cases)
}

fn cases_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let name = || folder.display().to_string();
    let mut cases = Vec::new();
    for entry in folder.read_dir().with_context(name)? {
        let path = entry.with_context(name)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            cases.push(path);
        }
    }
    ensure!(
        !cases.is_empty(),
        "there is no case (NAME.json) in {}",
        folder.display()
    );
    cases.sort();
    Ok(cases)
}

/// Replays the case whose JSON file is at `path`. Whatever is wrong with it is in the report.
pub(crate) fn replay<B: HostKernels>(path: &Path, backend: &B) -> Report {
    let mut report = Report {
        name: case::file_stem(path),
        ..Report::default()
    };
    // A library that panics on a case has failed it, and the other cases still count.
    let result = catch_unwind(AssertUnwindSafe(|| replay_into(&mut report, path, backend)));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panic) => Some(format!("panicked: {}", panic_message(&*panic))),
    };
    report.failure = failure;
    report
}

fn replay_into<B: HostKernels>(report: &mut Report, path: &Path, backend: &B) -> Result<()> {
    let file = CaseFile::open(path)?;
    let heading = file.heading();
    (report.name, report.kind) = (heading.name, heading.kind);
    let (measured, failures) = match file.operator()? {
        Some("Attention") => {
            let case = file.load_onnx()?;
            let outputs = onnx::run(&case, backend)?;
            compare::outputs(&case.expected, &case.truth, &outputs)
        }
        Some(other) => bail!("cases of the ONNX operator {other} are not supported; Attention is"),
        None => {
            let case = file.load()?;
            if case.kind == Kind::Error {
                return must_fail(&case, backend);
            }
            let outputs = run(&case, backend)?;
            compare::outputs(&case.expected, &case.truth, &outputs)
        }
    };
    report.outputs = measured;
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// The call of an error case must fail in the library, by an error of the same meaning as Flax's exception.
fn must_fail<B: HostKernels>(case: &Case, backend: &B) -> Result<()> {
    let exception = case.error.as_ref().context("the case has no error")?;
    let Err(error) = run(case, backend) else {
        bail!(
            "the call succeeded; wanted {}: {}",
            exception.class,
            exception.message
        );
    };
    match error.downcast_ref::<Error>() {
        Some(library) => exception::check(exception, library),
        None => Err(error.context("the call could not be made")),
    }
}

fn run<B: HostKernels>(case: &Case, backend: &B) -> Result<Outputs> {
    match case.kind {
        Kind::Init => init::run(case),
        Kind::Decode => decode::run(case, backend),
        Kind::Function => function::run(case, backend),
        Kind::Error if case.module.is_none() => function::run(case, backend),
        Kind::Forward | Kind::Error => forward::run(case, backend),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
