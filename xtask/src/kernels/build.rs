//! Compiles modules for architectures, on every core. Each in a process of its own: the compiler does one thing at a time in one.

use crate::report::Report;
use crate::sources::{Sources, is_shipped};
use anyhow::{Result, anyhow, bail};
use attn_kernels_cuda::nvrtc::{self, Source};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The code of one module for one architecture.
pub(crate) struct Image {
    pub(crate) module: String,
    /// As `90a`.
    pub(crate) architecture: &'static str,
    /// Machine code.
    pub(crate) cubin: Vec<u8>,
    /// PTX with the lines of its sources; empty where none is kept.
    pub(crate) ptx: String,
    /// What the compiler and the assembler said.
    pub(crate) log: String,
}

/// Architectures whose PTX is kept: newer devices are served by it.
const WITH_PTX: [&str; 2] = ["80", "90a"];

/// Compiles all modules; `every` also for architectures whose code is only looked at.
pub(crate) fn all(sources: &Sources, modules: &[String], every: bool) -> Result<Vec<Image>> {
    let jobs: Vec<(&String, &'static str)> = modules
        .iter()
        .flat_map(|module| {
            let architectures = sources.architectures(module, every).iter();
            architectures.map(move |architecture| (module, *architecture))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&(module, architecture)) =
                    jobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let image = in_a_process(module, architecture);
                    if let Ok(mut done) = done.lock() {
                        eprintln!(
                            "{}/{} {module} sm_{architecture}",
                            done.len() + 1,
                            jobs.len()
                        );
                        done.push(image);
                    }
                }
            });
        }
    });
    let done = done
        .into_inner()
        .map_err(|_| anyhow!("a compiling thread panicked"))?;
    let mut images = done.into_iter().collect::<Result<Vec<_>>>()?;
    images.sort_by(|a, b| (&a.module, a.architecture).cmp(&(&b.module, b.architecture)));
    Ok(images)
}

/// Has another process of this program compile, and reads what it made.
fn in_a_process(module: &str, architecture: &'static str) -> Result<Image> {
    let place = std::env::temp_dir().join(format!(
        "xtask-kernels-{}-{module}-{architecture}",
        std::process::id()
    ));
    let output = Command::new(std::env::current_exe()?)
        .args(["--one", module, architecture])
        .arg(&place)
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let take = |kind: &str| -> Result<Vec<u8>> {
        let path = place.with_extension(kind);
        let bytes = std::fs::read(&path)?;
        std::fs::remove_file(path)?;
        Ok(bytes)
    };
    Ok(Image {
        module: module.to_owned(),
        architecture,
        cubin: take("cubin")?,
        ptx: String::from_utf8(take("ptx")?)?,
        log: String::from_utf8(take("log")?)?,
    })
}

/// Compiles one module for one architecture, and writes what comes of it beside `place`.
pub(crate) fn one(sources: &Sources, module: &str, architecture: &str, place: &Path) -> Result<()> {
    let headers = sources.headers(module);
    let source = Source {
        name: &format!("{module}.cu"),
        text: sources.text(module),
        headers: &headers,
    };
    let compile = |target: &str, with_lines| {
        nvrtc::compile(&source, target, with_lines)
            .map_err(|error| anyhow!("{module} for {target}: {error}"))
    };
    let code = compile(&format!("sm_{architecture}"), false)?;
    let ptx = match WITH_PTX.contains(&architecture) {
        // Without machine code the assembler has nothing to do.
        true => compile(&format!("compute_{architecture}"), true)?.ptx,
        false => String::new(),
    };
    std::fs::write(place.with_extension("cubin"), code.cubin)?;
    std::fs::write(place.with_extension("ptx"), ptx)?;
    std::fs::write(place.with_extension("log"), code.log)?;
    Ok(())
}

/// Names and contents of a module's generated files.
pub(crate) fn files(
    module: &str,
    images: &[&Image],
    report: &Report,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![(format!("{module}.json"), report.to_json()?)];
    for image in images {
        let name = |kind| format!("{module}.{}.{kind}.z", image.architecture);
        if WITH_PTX.contains(&image.architecture) {
            files.push((name("ptx"), packed(image.ptx.as_bytes())));
        }
        if is_shipped(image.architecture) {
            files.push((name("cubin"), packed(&image.cubin)));
        }
    }
    Ok(files)
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec_zlib(bytes, 10)
}
