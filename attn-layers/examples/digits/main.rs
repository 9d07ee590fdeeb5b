//! Classifies real handwritten digits by a model that Flax trained, and compares every number with Flax's.
//!
//! ```text
//! cargo run --release --example digits -- [--dtype f32|f64|f16|bf16] [--threads N] [--image N]
//! ```
//!
//! `train.py` made the files beside this one. The attention is this library's; the rest of the model is in `model.rs`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program prints"
)]

mod model;
mod nn;
mod options;
mod picture;

use anyhow::{Context, Result, ensure};
use attn_layers::io::Tree;
use attn_layers::{Cpu, DType};
use model::{Classifier, Description, SIDE};
use options::Options;
use picture::Picture;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("digits: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(options) = Options::from_args()? else {
        println!("{}", options::USAGE);
        return Ok(());
    };
    let (weights, test) = (read("digits.msgpack")?, read("digits_test.safetensors")?);
    let (weights, test) = (Tree::read(&weights)?, Test::load(&Tree::read(&test)?)?);
    let description = Description::parse(&read("model.json")?).context("model.json")?;
    let classifier = Classifier::new(description, &weights, options.dtype)?;
    let cpu = Cpu::detect().with_threads(options.threads)?;

    let start = Instant::now();
    let logits = classifier.classify(&cpu, &test.images, false)?.logits;
    let seconds = start.elapsed().as_secs_f64();

    let result = test.compare(&logits, classifier.classes());
    let count = test.labels.len();
    let percent = |part: usize| 100.0 * part as f64 / count as f64;
    let accuracy = percent(result.right);
    println!(
        "{count} test images, {} on {} with {} thread(s)",
        options.dtype,
        cpu.isa(),
        options.threads
    );
    println!(
        "accuracy                   {accuracy:.2} % (Flax: {:.2} %)",
        percent(result.flax_right)
    );
    println!("predictions equal Flax's   {} of {count}", result.agreeing);
    println!("largest logit difference   {:.2e}", result.difference);
    println!(
        "time per image             {:.1} µs",
        1e6 * seconds / count as f64
    );
    println!("\n{}", draw(&classifier, &cpu, &test, options.image)?);

    ensure!(
        accuracy >= 97.0,
        "the accuracy is {accuracy:.2} %; 97 % or more is needed"
    );
    let exact = matches!(options.dtype, DType::F32 | DType::F64);
    ensure!(
        !exact || result.agreeing == count,
        "{} predictions differ from Flax's",
        count - result.agreeing
    );
    Ok(())
}

fn read(name: &str) -> Result<Vec<u8>> {
    let path = format!("{}/examples/digits/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).context(path)
}

/// The held-out images and what Flax says of them.
struct Test {
    /// `[images, 8, 8]`.
    images: Vec<f32>,
    labels: Vec<f32>,
    predictions: Vec<f32>,
    /// `[images, classes]`.
    logits: Vec<f32>,
}

struct Comparison {
    right: usize,
    flax_right: usize,
    agreeing: usize,
    difference: f32,
}

impl Test {
    fn load(tree: &Tree<'_>) -> Result<Self> {
        let values = |name: &str| -> Result<Vec<f32>> {
            Ok(tree
                .tensor(name)
                .with_context(|| format!("there is no {name}"))?
                .to_vec()?)
        };
        let test = Self {
            images: values("images")?,
            labels: values("labels")?,
            predictions: values("predictions")?,
            logits: values("logits")?,
        };
        let count = test.labels.len();
        ensure!(
            count > 0 && test.images.len() == count * SIDE * SIDE,
            "images and labels do not fit"
        );
        ensure!(
            test.predictions.len() == count,
            "predictions and labels do not fit"
        );
        Ok(test)
    }

    fn compare(&self, logits: &[f32], classes: usize) -> Comparison {
        let found = || {
            logits
                .chunks_exact(classes)
                .map(|logits| largest(logits) as f32)
        };
        let equal = |wanted: &[f32]| {
            found()
                .zip(wanted)
                .filter(|(found, wanted)| found == *wanted)
                .count()
        };
        let differences = logits
            .iter()
            .zip(&self.logits)
            .map(|(ours, flax)| (ours - flax).abs());
        Comparison {
            right: equal(&self.labels),
            flax_right: self
                .predictions
                .iter()
                .zip(&self.labels)
                .filter(|(flax, label)| flax == label)
                .count(),
            agreeing: equal(&self.predictions),
            difference: differences.fold(0.0, f32::max),
        }
    }
}

/// The index of the first largest number.
fn largest(numbers: &[f32]) -> usize {
    let mut best = 0;
    for (i, number) in numbers.iter().enumerate() {
        if *number > numbers[best] {
            best = i;
        }
    }
    best
}

/// One image, and beside it how much each block looks at its parts: weights averaged over heads and queries.
fn draw(classifier: &Classifier<'_>, cpu: &Cpu, test: &Test, image: usize) -> Result<String> {
    let pixels = test.images.chunks_exact(SIDE * SIDE).nth(image);
    let pixels = pixels.with_context(|| format!("there is no test image {image}"))?;
    let classified = classifier.classify(cpu, pixels, true)?;
    let title = format!("this is a {}", largest(&classified.logits));
    let mut pictures = vec![Picture::scaled(title, SIDE, pixels.to_vec())];

    let grid = classifier.description().grid();
    for (block, weights) in classified.attention_weights.iter().enumerate() {
        let mut looked_at = vec![0.0; grid * grid];
        for row in weights.view().to_vec::<f32>()?.chunks_exact(grid * grid) {
            looked_at
                .iter_mut()
                .zip(row)
                .for_each(|(sum, weight)| *sum += weight);
        }
        pictures.push(
            Picture::scaled(format!("attention {block}"), grid, looked_at).enlarged(SIDE / grid),
        );
    }
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Ok(picture::beside(
        &pictures,
        std::io::stdout().is_terminal() && !no_color,
    ))
}
