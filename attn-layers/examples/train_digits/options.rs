//! The command line.

use anyhow::{Result, ensure};
use lexopt::prelude::*;
use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
Usage: train_digits [--epochs N] [--no-dropout] [--threads N] [--out DIR | --no-out]

  --epochs N    epochs to train (default: as many as Flax did)
  --no-dropout  train without dropout
  --threads N   threads (default: 1)
  --out DIR     where to write accuracy.svg and trained.msgpack (default: target/train_digits)
  --no-out      write nothing";

pub(crate) struct Options {
    pub(crate) epochs: Option<usize>,
    pub(crate) dropout: bool,
    pub(crate) threads: usize,
    pub(crate) out: Option<PathBuf>,
}

impl Options {
    /// Reads the command line; none if only the usage was asked for.
    pub(crate) fn from_args() -> Result<Option<Self>> {
        let mut options = Self {
            epochs: None,
            dropout: true,
            threads: 1,
            out: Some(PathBuf::from("target/train_digits")),
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("epochs") => options.epochs = Some(args.value()?.parse()?),
                Long("no-dropout") => options.dropout = false,
                Long("threads") => options.threads = args.value()?.parse()?,
                Long("out") => options.out = Some(args.value()?.into()),
                Long("no-out") => options.out = None,
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected().into()),
            }
        }
        ensure!(options.threads > 0, "--threads is 0; at least 1 is needed");
        ensure!(
            options.epochs != Some(0),
            "--epochs is 0; at least 1 is needed"
        );
        Ok(Some(options))
    }
}
