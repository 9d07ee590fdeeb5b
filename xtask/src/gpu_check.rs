//! One folder for a machine with a GPU, without Rust and without a network: the tests, the benchmark, a script that runs both, NVIDIA's
//! sanitizers and other libraries on the same shapes, and writes a report.

use crate::shell;
use anyhow::{Context, Result, bail};
use lexopt::Arg;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the folder may weigh.
const LIMIT: u64 = 60 << 20;

const SCRIPT: &str = include_str!("gpu/check.sh");
const PEER: &str = include_str!("gpu/torch_peer.py");

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let mut folder = None;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("pack") => folder = Some(PathBuf::from(args.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    let folder = folder.context("say where: `cargo xtask gpu-check --pack FOLDER`")?;
    pack(&std::path::absolute(folder)?)
}

fn pack(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut tests = cargo(&[
        "test",
        "--no-run",
        "-p",
        "attn-kernels-cuda",
        "--test",
        "conformance",
    ]);
    copy(&mut tests, "conformance", &folder.join("conformance"))?;
    let mut bench = cargo(&[
        "build",
        "-p",
        "xtask",
        "--bin",
        "xtask-gpu",
        "--features",
        "gpu",
    ]);
    copy(&mut bench, "xtask-gpu", &folder.join("xtask-gpu"))?;
    std::fs::write(folder.join("check.sh"), SCRIPT)?;
    std::fs::write(folder.join("torch_peer.py"), PEER)?;
    let weight = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum::<Result<u64>>()?;
    if weight > LIMIT {
        bail!("the folder weighs {weight} bytes; it must not weigh more than {LIMIT}");
    }
    println!(
        "{} ({weight} bytes): run `bash check.sh OUTPUT_FOLDER` there",
        folder.display()
    );
    Ok(())
}

/// A release build without symbols.
fn cargo(args: &[&str]) -> Command {
    let mut command = shell::cargo();
    command.args(args);
    command.args([
        "--release",
        "--quiet",
        "--config",
        "profile.release.strip=true",
    ]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command
}

/// Builds, and copies the program of that name.
fn copy(build: &mut Command, name: &str, to: &Path) -> Result<()> {
    for line in shell::stdout_of(build)?.lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo")?;
        if message["target"]["name"] == name
            && let Some(path) = message["executable"].as_str()
        {
            std::fs::copy(path, to).with_context(|| format!("cannot write {}", to.display()))?;
            return Ok(());
        }
    }
    bail!("cargo built no program `{name}`")
}
