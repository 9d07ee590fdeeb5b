//! Builds, links and runs a program over the layers without the standard library and without an allocator.

use crate::shell;
use anyhow::{Context, Result, bail};

const MANIFEST: &str = "no-std-check/Cargo.toml";

/// No start files, no C library, nothing shared: what the program needs must be in its own crates.
const LINK: [&str; 3] = ["-nostartfiles", "-nostdlib", "-static"];

pub(crate) fn command(args: lexopt::Parser) -> Result<()> {
    crate::no_more(args)?;
    check()
}

/// Fails if the program does not link, or computes something else than it should.
pub(crate) fn check() -> Result<()> {
    if !cfg!(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    )) {
        println!("SKIPPED: the program starts by itself on Linux on x86-64 and ARM64 only");
        return Ok(());
    }
    let target = shell::target().join("no-std");
    shell::succeed(
        shell::cargo()
            .args(["rustc", "--quiet", "--release", "--manifest-path", MANIFEST])
            .arg("--target-dir")
            .arg(&target)
            .arg("--")
            .args(LINK.map(|argument| format!("-Clink-arg={argument}")))
            // A static program at a fixed address needs no code that moves it.
            .arg("-Crelocation-model=static"),
    )
    .context("the layers do not link without std")?;
    let program = target.join("release/no-std-check");
    let status = shell::program(&program).status()?;
    if !status.success() {
        bail!(
            "{} ended with {status}; its source says which number means what",
            program.display()
        );
    }
    println!("an attention layer runs without std and without an allocator");
    Ok(())
}
