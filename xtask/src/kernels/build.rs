//! Compiles modules for architectures, on every core.

use crate::report::Report;
use crate::sources::Sources;
use anyhow::{Result, anyhow};
use attn_kernels_cuda::nvrtc::{self, Compiled, Source};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The code of one module for one architecture.
pub(crate) struct Image {
    pub(crate) module: String,
    /// As `90a`.
    pub(crate) architecture: &'static str,
    pub(crate) compiled: Compiled,
    /// PTX with the lines of its sources.
    pub(crate) ptx: String,
}

/// Architectures whose PTX is kept: newer devices are served by it.
const WITH_PTX: [&str; 2] = ["80", "90a"];
/// Architectures whose machine code is kept.
const WITH_CUBIN: [&str; 3] = ["80", "90", "90a"];

/// Compiles all modules.
pub(crate) fn all(sources: &Sources, modules: &[String]) -> Result<Vec<Image>> {
    let jobs: Vec<(&String, &'static str)> = modules
        .iter()
        .flat_map(|module| {
            let architectures = sources.architectures(module).iter();
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
                    let image = one(sources, module, architecture);
                    if let Ok(mut done) = done.lock() {
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

fn one(sources: &Sources, module: &str, architecture: &'static str) -> Result<Image> {
    let headers = sources.headers(module);
    let source = Source {
        name: &format!("{module}.cu"),
        text: sources.text(module),
        headers: &headers,
    };
    let compile = |with_lines| {
        nvrtc::compile(&source, &format!("sm_{architecture}"), with_lines)
            .map_err(|error| anyhow!("{module} for sm_{architecture}: {error}"))
    };
    let compiled = compile(false)?;
    let ptx = match WITH_PTX.contains(&architecture) {
        true => compile(true)?.ptx,
        false => String::new(),
    };
    Ok(Image {
        module: module.to_owned(),
        architecture,
        compiled,
        ptx,
    })
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
        if WITH_CUBIN.contains(&image.architecture) {
            files.push((name("cubin"), packed(&image.compiled.cubin)));
        }
    }
    Ok(files)
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec_zlib(bytes, 10)
}
