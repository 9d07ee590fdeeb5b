//! The command line.

use anyhow::{Context, Result, bail, ensure};
use attn_layers::cpu::{Cpu, Isa};
use lexopt::prelude::*;
use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
Usage: replay [--backend cpu|cuda] [--isa NAME] [--threads N] [--json] PATH...

  PATH            a case's NAME.json, or a folder of cases
  --backend NAME  cpu (default) or cuda
  --isa NAME      portable, avx2, avx512, neon or wasm_simd128 (default: the best of this machine)
  --threads N     threads on the CPU (default: 1)
  --json          one JSON object a case instead of one line";

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) json: bool,
    cuda: bool,
    isa: Option<Isa>,
    threads: Option<usize>,
}

impl Options {
    /// Reads the command line; none if only the usage was asked for.
    pub(crate) fn from_args() -> Result<Option<Self>> {
        let mut options = Self::default();
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("backend") => options.cuda = cuda(&args.value()?.string()?)?,
                Long("isa") => options.isa = Some(isa(&args.value()?.string()?)?),
                Long("threads") => options.threads = Some(args.value()?.parse()?),
                Long("json") => options.json = true,
                Long("help") | Short('h') => return Ok(None),
                Value(path) => options.paths.push(path.into()),
                other => return Err(other.unexpected().into()),
            }
        }
        ensure!(!options.paths.is_empty(), "no PATH was given\n\n{USAGE}");
        ensure!(
            options.threads != Some(0),
            "--threads is 0; at least 1 is needed"
        );
        Ok(Some(options))
    }

    /// The backend that was asked for.
    pub(crate) fn backend(&self) -> Result<Chosen> {
        if self.cuda {
            return cuda_backend();
        }
        let cpu = match self.isa {
            Some(isa) => Cpu::with_isa(isa)?,
            None => Cpu::detect(),
        };
        Ok(Chosen::Cpu(match self.threads {
            Some(threads) => cpu.with_threads(threads)?,
            None => cpu,
        }))
    }
}

/// A backend that replays cases.
pub(crate) enum Chosen {
    Cpu(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(attn_layers::cuda::Cuda),
}

/// A device, or the emulator where there is none.
#[cfg(feature = "cuda")]
fn cuda_backend() -> Result<Chosen> {
    use attn_cuda_emulator::{Emulator, Options};
    use attn_layers::cuda::{Cuda, CudaDevice};
    let cuda = match Cuda::new(0) {
        Ok(cuda) => cuda,
        Err(error) => {
            eprintln!("no device ({error}): the kernels' PTX is emulated");
            Cuda::on(CudaDevice::with_driver(std::sync::Arc::new(Emulator::new(
                Options::default(),
            ))))
        }
    };
    eprintln!("CUDA: {:?}", cuda.device());
    Ok(Chosen::Cuda(cuda))
}

/// Why the CUDA backend cannot replay a case.
#[cfg(not(feature = "cuda"))]
fn cuda_backend() -> Result<Chosen> {
    bail!(
        "this program was built without CUDA; add `--features cuda` before the `--`, or use --backend cpu"
    )
}

fn cuda(name: &str) -> Result<bool> {
    match name {
        "cpu" => Ok(false),
        "cuda" => Ok(true),
        other => bail!("--backend is {other:?}; cpu or cuda is needed"),
    }
}

fn isa(name: &str) -> Result<Isa> {
    Isa::from_name(name).with_context(|| {
        let names = Isa::ALL.map(Isa::name).join(", ");
        format!("--isa is {name:?}; one of {names} is needed")
    })
}
