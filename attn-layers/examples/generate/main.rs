//! Writes text by a small decoder that Flax trained on the King James Bible, a character at a time, over any cache.
//!
//! ```text
//! cargo run --release --example generate -- --prompt "In the beginning" --cache paged,int8
//! ```
//!
//! `train.py` made the files beside this one. Attention, rotary embedding, caches, dense layers and random numbers are this library's; the rest of the
//! model is in `model.rs`. `--check` holds the logits to those of Flax.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program prints"
)]

mod cache;
mod check;
mod dense;
mod files;
mod model;
#[expect(dead_code, reason = "what only the other examples use")]
#[path = "../digits/nn.rs"]
mod nn;
mod options;
mod sampling;
mod session;

use anyhow::{Context, Result};
use attn_layers::core::{Element, Kernels};
use attn_layers::{HostKernels, bf16, f16};
use cache::{Cache, Format, Room};
use check::Recorded;
use files::Files;
use options::{Chosen, Options};
use session::Session;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(options) = Options::from_args()? else {
        println!("{}", options::USAGE);
        return Ok(());
    };
    match options.backend()? {
        Chosen::Cpu(cpu) => run_on(&cpu, &options),
        #[cfg(feature = "cuda")]
        Chosen::Cuda(cuda) => run_on(&cuda, &options),
    }
}

fn run_on<B: HostKernels>(backend: &B, options: &Options) -> Result<()> {
    let files = Files::load()?;
    if options.check {
        return check(backend, &files, &options.caches());
    }
    match options.cache().format {
        Format::F16 => generate::<f16, B>(backend, &files, options),
        Format::BF16 => generate::<bf16, B>(backend, &files, options),
        Format::F32 | Format::Int8 | Format::Q8_0 => generate::<f32, B>(backend, &files, options),
    }
}

/// Holds the logits with each cache to those of Flax.
fn check<B: HostKernels>(backend: &B, files: &Files, caches: &[Cache]) -> Result<()> {
    let recorded = Recorded::load(&files.description)?;
    let positions = recorded.positions();
    println!(
        "logits after {positions} characters: in f32 {:.1e} from exact arithmetic is allowed, twice what rounding leads Flax astray;",
        recorded.allowed()
    );
    println!("other formats round keys and values, and are reported\n");
    println!("{:16} from Flax  from exact  same likeliest", "cache");
    for &cache in caches {
        let followed = check::follow(backend, files, cache, &recorded)?;
        println!(
            "{cache:16} {:9.1e} {:11.1e}  {:>3} of {positions}",
            followed.from_flax, followed.from_truth, followed.agreeing
        );
    }
    println!("\none character at a time and all at once: the same bits");
    Ok(())
}

/// Writes continuations of the prompt, then how long that took and what the caches hold.
fn generate<T: Element, B: HostKernels + Kernels<T>>(
    backend: &B,
    files: &Files,
    options: &Options,
) -> Result<()> {
    let model = files.decoder::<T, B>(backend)?;
    let prompt = model.description.ids(&options.prompt)?;
    let (longest, cache) = (prompt.len().saturating_add(options.tokens), options.cache());
    let room = Room {
        longest,
        sequences: 1 + usize::from(options.is_forked()),
    };
    let plan = cache.plan(&model.description, room);
    let mut session = Session::new(backend, &model, plan, longest)?;
    let mut out = std::io::stdout().lock();

    let start = Instant::now();
    let sequence = session.add()?;
    let logits = session.feed(sequence, &prompt)?;
    let reading = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let last = &logits[logits.len() - model.description.characters.len()..];
    stream_all(&mut session, options, sequence, last, &mut out)?;
    let writing = start.elapsed().as_secs_f64();

    let written = options.tokens as f64 * f64::from(options.samples);
    writeln!(
        out,
        "\n{} characters read at {:.0} a second, {written} written at {:.0} a second; {cache} holds {:.1} KiB, {} bytes a character",
        prompt.len(),
        prompt.len() as f64 / reading,
        written / writing,
        session.bytes() as f64 / 1024.0,
        plan.bytes_per_token::<T>()? * model.blocks.len(),
    )?;
    Ok(())
}

/// Writes every continuation of a prompt, whose last character has these logits: several in forks of its sequence.
fn stream_all<T: Element, B: HostKernels + Kernels<T>>(
    session: &mut Session<'_, B, T>,
    options: &Options,
    prompt: usize,
    logits: &[f32],
    out: &mut impl Write,
) -> Result<()> {
    if !options.is_forked() {
        return stream(session, options, prompt, 0, logits, out);
    }
    for sample in 0..options.samples {
        writeln!(out, "--- {} of {}", sample + 1, options.samples)?;
        let fork = session.fork(prompt)?;
        stream(session, options, fork, sample, logits, out)?;
        session.remove(fork)?;
    }
    Ok(())
}

/// Writes one continuation, every character as soon as it is drawn.
fn stream<T: Element, B: HostKernels + Kernels<T>>(
    session: &mut Session<'_, B, T>,
    options: &Options,
    sequence: usize,
    sample: u32,
    logits: &[f32],
    out: &mut impl Write,
) -> Result<()> {
    write!(out, "{}", options.prompt)?;
    let mut logits = logits.to_vec();
    for token in 0..options.tokens {
        let token = u32::try_from(token).context("--tokens is beyond the seeds that there are")?;
        let id = options.sampling.draw(&logits, sample, token)?;
        write!(out, "{}", session.character(id))?;
        out.flush()?;
        logits = session.feed(sequence, &[id])?;
    }
    writeln!(out)?;
    Ok(())
}
