//! Everything that a change must pass.

use crate::progress::Steps;
use crate::test::{self, Options};
use crate::{deps, instructions, lint, msrv, no_std, shell, snapshots, support};
use anyhow::{Context, Result};
use lexopt::Arg;

type Step = (&'static str, fn() -> Result<()>);

/// Cheap ones first, so that most mistakes show early.
const STEPS: [Step; 9] = [
    ("format", format),
    ("source lint", lint::check),
    ("dependency tree", deps::check),
    ("rust-version", msrv::check_dependencies),
    ("clippy", clippy),
    ("tests and support table", tests),
    ("snapshots", snapshots_agree),
    ("documentation", documentation),
    ("no std", no_std::check),
];

/// Feature sets that change which code is compiled; every feature alone is built by the tests.
const CLIPPY: [&[&str]; 4] = [
    &["--workspace", "--all-targets", "--all-features"],
    &["--package", "attn-kernels-cpu", "--no-default-features"],
    &["--package", "attn-layers", "--no-default-features"],
    &[
        "--package",
        "attn-layers",
        "--no-default-features",
        "--features",
        "alloc",
    ],
];

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let mut require = false;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("require") => require = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let deny = shell::works(shell::cargo().args(["deny", "--version"]));
    let mut steps = Steps::new(STEPS.len() + 1 + usize::from(deny));
    for (name, step) in STEPS {
        steps.next(name);
        step().with_context(|| format!("step `{name}`"))?;
    }
    steps.next("instruction counts");
    instructions::check(require).context("step `instruction counts`")?;
    if deny {
        steps.next("cargo deny");
        shell::succeed(shell::cargo().args(["deny", "check"]))?;
    }
    steps.finish();
    Ok(())
}

/// Packages that the workspace leaves out, formatted like the others.
const LEFT_OUT: [&str; 2] = ["no-std-check/Cargo.toml", "attn-layers/fuzz/Cargo.toml"];

fn format() -> Result<()> {
    for manifest in LEFT_OUT {
        let mut command = shell::cargo();
        command.args(["fmt", "--check", "--manifest-path", manifest]);
        shell::succeed(&mut command)?;
    }
    shell::succeed(shell::cargo().args(["fmt", "--all", "--check"]))
        .context("`cargo fmt --all` mends it")
}

fn clippy() -> Result<()> {
    for what in CLIPPY {
        let mut command = shell::cargo();
        command.args(["clippy", "--quiet"]).args(what);
        shell::succeed(command.args(["--", "--deny", "warnings"]))?;
    }
    Ok(())
}

fn tests() -> Result<()> {
    let results = test::run_matrix(&Options::default())?;
    support::update(&results, true)
}

fn snapshots_agree() -> Result<()> {
    snapshots::run(snapshots::Mode::Check)
}

fn documentation() -> Result<()> {
    shell::succeed(
        shell::cargo()
            .args([
                "doc",
                "--quiet",
                "--workspace",
                "--all-features",
                "--no-deps",
            ])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )
}
