//! Benchmarks: builds the program of `bench/` in release and becomes it.
//!
//! This tool is built by the dev profile, without the layers. What is measured is a program of its own (`bench/main.rs`, feature
//! `bench`), which takes the same arguments.

use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Name of the program, and of the feature that builds it.
const PROGRAM: &str = "xtask-bench";
const FEATURE: &str = "bench";

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let args: Vec<OsString> = args.raw_args()?.collect();
    let program = build()?;
    if args.iter().any(|arg| arg == "--print-worker") {
        println!("{} --worker", program.display());
        return Ok(());
    }
    become_program(Command::new(program).args(args))
}

/// Builds it and says where it is. Cargo's words go to the standard error stream, which a worker's protocol leaves free.
fn build() -> Result<PathBuf> {
    let mut command = shell::cargo();
    command.args(["build", "--quiet", "--release", "--package", "xtask"]);
    command.args(["--bin", PROGRAM, "--features", FEATURE]);
    command.args(["--message-format", "json-render-diagnostics"]);
    executable(&shell::stdout_of(&mut command)?)
}

/// The path of [`PROGRAM`] in cargo's messages.
fn executable(messages: &str) -> Result<PathBuf> {
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo")?;
        if message["target"]["name"] == PROGRAM
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(path.into());
        }
    }
    bail!("cargo built no program `{PROGRAM}`")
}

/// Replaces this process, so that its number is the worker's: who measures a worker looks at that process's threads.
#[cfg(unix)]
fn become_program(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", shell::words(command)))
}

#[cfg(not(unix))]
fn become_program(command: &mut Command) -> Result<()> {
    shell::succeed(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"attn-core"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"xtask-bench"},"executable":"/t/release/xtask-bench"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(
            executable(messages).unwrap(),
            PathBuf::from("/t/release/xtask-bench")
        );
        assert!(executable(r#"{"reason":"build-finished"}"#).is_err());
        assert!(executable("no message").is_err());
    }
}
