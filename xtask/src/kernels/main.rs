//! The program behind `cargo xtask kernels`: compiles every module of CUDA kernels for every architecture, looks at the machine code, and
//! writes what comes with the crate.
//!
//! | module | subject |
//! |---|---|
//! | `sources` | the modules, their architectures and their digests |
//! | `build` | compiling them |
//! | `report` | what the assembler and the machine code say of each kernel, and what may not be |
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

mod build;
#[cfg(test)]
mod committed;
mod report;
mod sources;

use anyhow::{Context, Result, bail};
use lexopt::Arg;
use report::Report;
use sources::Sources;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask kernels [--nvrtc FOLDER] [--check] [--every] [--module NAME]

  Compiles the CUDA kernels and writes attn-kernels-cuda/generated/.
  --check   writes nothing; fails if what is there differs from what the sources give
  --every   also looks at the code for sm_86 and sm_120, which does not come with the crate
  --module  this module alone
  --nvrtc   a folder with lib/libnvrtc.so.13 and bin/nvdisasm; else both are fetched by pip
Fails on spills, on local memory, on a kernel for wgmma without HGMMA, on warnings of the assembler.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask kernels: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (mut check, mut every, mut only, mut one) = (false, false, None, None);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("check") => check = true,
            Arg::Long("every") => every = true,
            // How this program compiles in processes of its own.
            Arg::Long("one") => {
                let module = args.value()?.to_string_lossy().into_owned();
                let architecture = args.value()?.to_string_lossy().into_owned();
                one = Some((module, architecture, PathBuf::from(args.value()?)));
            }
            Arg::Long("module") => only = Some(args.value()?.to_string_lossy().into_owned()),
            Arg::Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace")?;
    let crate_folder = root.join("attn-kernels-cuda");
    let sources = Sources::read(&crate_folder.join("kernels"))?;
    if let Some((module, architecture, place)) = one {
        return build::one(&sources, &module, &architecture, &place);
    }
    let modules = sources.modules(only.as_deref())?;
    let built = build::all(&sources, &modules, every)?;
    let generated = crate_folder.join("generated");
    let mut findings = Vec::new();
    for module in &modules {
        let images: Vec<_> = built
            .iter()
            .filter(|image| image.module == *module)
            .collect();
        let report = Report::new(&sources, module, &images)?;
        findings.extend(report.findings());
        report.print();
        for (name, bytes) in build::files(module, &images, &report)? {
            let path = generated.join(&name);
            if !check {
                std::fs::write(&path, bytes)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            } else if std::fs::read(&path).ok().as_deref() != Some(bytes.as_slice()) {
                findings.push(format!("{name} is not what its source gives"));
            }
        }
    }
    if !findings.is_empty() {
        bail!("{}", findings.join("\n  "));
    }
    println!("{} modules, {} images", modules.len(), built.len());
    Ok(())
}
