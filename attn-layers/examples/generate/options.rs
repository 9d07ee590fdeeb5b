//! The command line.

use crate::cache::{Cache, Format, Layout};
use crate::sampling::Sampling;
use anyhow::{Result, bail, ensure};
use attn_layers::Cpu;
use lexopt::prelude::*;

pub(crate) const USAGE: &str = "\
Usage: generate [--prompt TEXT] [--cache LAYOUT,FORMAT] [--tokens N] [--temperature X] [--top-k N] [--seed N]
                [--samples N] [--threads N] [--backend cpu|cuda] [--check]

  --prompt TEXT          what the text begins with (default: In the beginning)
  --cache LAYOUT,FORMAT  contiguous, ring or paged; f32, f16, bf16, int8 or q8_0 (default: paged,f32). With f16 and bf16 the
                         attention itself computes in them: a cache that is not quantised has the layer's own type
  --tokens N             characters to write (default: 400)
  --temperature X        how freely to choose: 0 takes the likeliest character (default: 0.7)
  --top-k N              choose among the N likeliest (default: among all)
  --seed N               another seed, another text (default: 0)
  --samples N            continuations of the prompt, each in a fork of its cache (default: 1)
  --threads N            threads on the CPU (default: 1)
  --backend NAME         cpu (default) or cuda
  --check                hold the logits to those of Flax, with every cache or that of --cache";

pub(crate) struct Options {
    pub(crate) prompt: String,
    /// The cache that was asked for.
    cache: Option<Cache>,
    pub(crate) tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) samples: u32,
    threads: usize,
    cuda: bool,
    pub(crate) check: bool,
}

impl Options {
    /// Reads the command line; none if only the usage was asked for.
    pub(crate) fn from_args() -> Result<Option<Self>> {
        let mut options = Self {
            prompt: "In the beginning".to_owned(),
            cache: None,
            tokens: 400,
            sampling: Sampling {
                temperature: 0.7,
                top_k: None,
                seed: 0,
            },
            samples: 1,
            threads: 1,
            cuda: false,
            check: false,
        };
        let sampling = &mut options.sampling;
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("prompt") => options.prompt = args.value()?.string()?,
                Long("cache") => options.cache = Some(Cache::parse(&args.value()?.string()?)?),
                Long("tokens") => options.tokens = args.value()?.parse()?,
                Long("temperature") => sampling.temperature = args.value()?.parse()?,
                Long("top-k") => sampling.top_k = Some(args.value()?.parse()?),
                Long("seed") => sampling.seed = args.value()?.parse()?,
                Long("samples") => options.samples = args.value()?.parse()?,
                Long("threads") => options.threads = args.value()?.parse()?,
                Long("backend") => options.cuda = cuda(&args.value()?.string()?)?,
                Long("check") => options.check = true,
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        options.validate()?;
        Ok(Some(options))
    }

    fn validate(&self) -> Result<()> {
        ensure!(
            !self.prompt.is_empty(),
            "--prompt is empty; a character or more is needed"
        );
        let temperature = self.sampling.temperature;
        ensure!(
            temperature.is_finite() && temperature >= 0.0,
            "--temperature is {temperature}; a finite number of at least 0 is needed"
        );
        for (name, is_zero) in [
            ("tokens", self.tokens == 0),
            ("top-k", self.sampling.top_k == Some(0)),
            ("samples", self.samples == 0),
            ("threads", self.threads == 0),
        ] {
            ensure!(!is_zero, "--{name} is 0; at least 1 is needed");
        }
        Ok(())
    }

    /// Whether continuations are forks of the prompt.
    pub(crate) const fn is_forked(&self) -> bool {
        self.samples > 1
    }

    /// The cache to write with.
    pub(crate) fn cache(&self) -> Cache {
        self.cache.unwrap_or(Cache {
            layout: Layout::Paged,
            format: Format::F32,
        })
    }

    /// The caches to check.
    pub(crate) fn caches(&self) -> Vec<Cache> {
        self.cache
            .map_or_else(|| Cache::all().collect(), |cache| vec![cache])
    }

    /// The backend that was asked for.
    pub(crate) fn backend(&self) -> Result<Chosen> {
        match self.cuda {
            true => cuda_backend(),
            false => Ok(Chosen::Cpu(Cpu::detect().with_threads(self.threads)?)),
        }
    }
}

/// A backend that decodes.
pub(crate) enum Chosen {
    Cpu(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(attn_layers::cuda::Cuda),
}

#[cfg(feature = "cuda")]
fn cuda_backend() -> Result<Chosen> {
    Ok(Chosen::Cuda(attn_layers::cuda::Cuda::new(0)?))
}

/// Why the CUDA backend cannot decode.
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
