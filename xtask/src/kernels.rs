//! The CUDA kernels' machine code: fetches NVIDIA's run-time compiler, builds the program of `kernels/` and runs it.
//!
//! Needs Python's pip and the network, unless `--nvrtc` names a folder that has the compiler. Nothing else needs this command:
//! what it makes is committed.

use crate::shell;
use anyhow::{Context, Result};
use lexopt::Arg;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Pinned: the driver's CUDA version must not be older than the compiler's.
const PACKAGES: [&str; 2] = [
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-nvdisasm==13.5.37",
];

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let mut folder = None;
    let mut rest: Vec<OsString> = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("nvrtc") => folder = Some(PathBuf::from(args.value()?)),
            Arg::Long(name) => rest.push(format!("--{name}").into()),
            Arg::Value(value) => rest.push(value),
            other => return Err(other.unexpected().into()),
        }
    }
    let folder = match folder {
        Some(folder) => folder,
        None => fetched()?,
    };
    let library = folder.join("lib");
    let mut path: OsString = library.into();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(others);
    }
    let mut run = shell::cargo();
    run.args(["run", "--quiet", "--release", "--package", "xtask"]);
    run.args(["--bin", "xtask-kernels", "--features", "kernels", "--"]);
    run.args(rest);
    run.env("LD_LIBRARY_PATH", path);
    run.env("NVDISASM", folder.join("bin/nvdisasm"));
    shell::succeed(&mut run)
}

/// The compiler in a folder beside cargo's, from the Python package index.
fn fetched() -> Result<PathBuf> {
    let site = shell::target().join("nvrtc");
    let folder = site.join("nvidia/cu13");
    if !is_complete(&folder) {
        println!("fetching {}", PACKAGES.join(", "));
        let mut install = shell::program("python3");
        install.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
        install.args(["--disable-pip-version-check", "--upgrade", "--target"]);
        install.arg(&site).args(PACKAGES);
        shell::succeed(&mut install)
            .context("Python's pip and the network are needed, or --nvrtc FOLDER")?;
    }
    Ok(folder)
}

fn is_complete(folder: &Path) -> bool {
    folder.join("lib/libnvrtc.so.13").is_file() && folder.join("bin/nvdisasm").is_file()
}
