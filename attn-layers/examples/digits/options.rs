//! The command line.

use anyhow::{Result, bail, ensure};
use attn_layers::DType;
use lexopt::prelude::*;

pub(crate) const USAGE: &str = "\
Usage: digits [--dtype f32|f64|f16|bf16] [--threads N] [--image N]

  --dtype NAME  what attention computes in (default: f32)
  --threads N   threads (default: 1)
  --image N     the test image to draw (default: 0)";

pub(crate) struct Options {
    pub(crate) dtype: DType,
    pub(crate) threads: usize,
    pub(crate) image: usize,
}

impl Options {
    /// Reads the command line; none if only the usage was asked for.
    pub(crate) fn from_args() -> Result<Option<Self>> {
        let mut options = Self {
            dtype: DType::F32,
            threads: 1,
            image: 0,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("dtype") => options.dtype = dtype(&args.value()?.string()?)?,
                Long("threads") => options.threads = args.value()?.parse()?,
                Long("image") => options.image = args.value()?.parse()?,
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        ensure!(options.threads > 0, "--threads is 0; at least 1 is needed");
        Ok(Some(options))
    }
}

fn dtype(name: &str) -> Result<DType> {
    match name {
        "f32" | "float32" => Ok(DType::F32),
        "f64" | "float64" => Ok(DType::F64),
        "f16" | "float16" => Ok(DType::F16),
        "bf16" | "bfloat16" => Ok(DType::BF16),
        other => bail!("--dtype is {other:?}; f32, f64, f16 or bf16 is needed"),
    }
}
