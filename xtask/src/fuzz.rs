//! Runs the fuzz targets for a fixed number of runs.

use crate::shell;
use anyhow::{Context, Result, bail};
use lexopt::{Arg, ValueExt};
use std::path::Path;

const TOOLCHAIN: &str = "nightly";
const FOLDER: &str = "attn-layers/fuzz";
const TARGETS: [&str; 3] = ["msgpack", "safetensors", "onnx"];
const RUNS: u64 = 200_000;

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let mut runs = RUNS;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("runs") => runs = args.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    require_tools()?;
    for target in TARGETS {
        run(target, runs).with_context(|| {
            format!("fuzz target `{target}`; {FOLDER}/artifacts holds the input")
        })?;
    }
    Ok(())
}

fn require_tools() -> Result<()> {
    if !shell::works(shell::cargo_of(TOOLCHAIN).arg("--version")) {
        bail!("fuzzing needs a {TOOLCHAIN} toolchain: `rustup toolchain install {TOOLCHAIN}`");
    }
    if !shell::works(shell::cargo_of(TOOLCHAIN).args(["fuzz", "--version"])) {
        bail!("fuzzing needs cargo-fuzz: `cargo install cargo-fuzz`");
    }
    Ok(())
}

fn run(target: &str, runs: u64) -> Result<()> {
    let corpus = Path::new(FOLDER).join("corpus").join(target);
    std::fs::create_dir_all(shell::root().join(&corpus))?;
    let mut command = shell::cargo_of(TOOLCHAIN);
    command.args(["fuzz", "run", "--fuzz-dir", FOLDER, target]);
    // New inputs go to the first folder, the committed seeds are read only.
    command
        .arg(&corpus)
        .arg(Path::new(FOLDER).join("seeds").join(target));
    command.args(["--", &format!("-runs={runs}"), "-print_final_stats=1"]);
    shell::succeed(&mut command)
}
