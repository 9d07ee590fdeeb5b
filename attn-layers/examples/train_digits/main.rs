//! Trains the digits classifier from Flax's own initial parameters, with Flax's own dropout, and holds the result against Flax's.
//!
//! ```text
//! cargo run --release --example train_digits -- [--epochs N] [--no-dropout] [--threads N] [--out DIR | --no-out]
//! ```
//!
//! `record.py` made the files beside this one. The attention, its gradients, its dropout and all initial numbers are this library's; the other
//! layers' gradients are in `layers.rs`, the optimizer in `adam.rs`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program prints"
)]

mod adam;
mod check;
mod data;
mod layers;
#[expect(dead_code, reason = "what only the other example shows")]
#[path = "../digits/model.rs"]
mod model;
#[path = "../digits/nn.rs"]
mod nn;
mod options;
mod parameters;
mod pass;
mod plot;
mod progress;
mod training;

use anyhow::{Context, Result, ensure};
use attn_layers::Cpu;
use data::{Data, Recorded};
use model::Description;
use options::Options;
use parameters::Parameters;
use plot::Curve;
use progress::Progress;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use training::{Epoch, Training};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("train_digits: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(options) = Options::from_args()? else {
        println!("{}", options::USAGE);
        return Ok(());
    };
    let description = Description::parse(&data::read("../digits/model.json")?)?;
    let (data, recorded) = (Data::load()?, Recorded::load()?);
    let cpu = Cpu::detect().with_threads(options.threads)?;

    let start = Parameters::initial(&description, recorded.settings.seed)?;
    check::start(&start, &recorded)?;
    println!(
        "initial parameters         {} arrays, Flax's bit for bit",
        start.iter().count()
    );
    let followed = check::follow(&description, &cpu, &data, &recorded)?;
    println!(
        "first {} losses            within rounding of Flax's: {:.0} % of what is allowed, at most {:.1e} apart",
        followed.steps,
        100.0 * followed.part,
        followed.from_flax
    );
    println!(
        "                           and {:.1e} from exact arithmetic",
        followed.from_truth
    );

    check::dropout(&description, &cpu, &data, &recorded)?;
    println!("first loss with dropout    Flax's, within rounding\n");

    let epochs = options.epochs.unwrap_or(recorded.settings.epochs);
    let began = Instant::now();
    let (trained, curve) = train(&description, &cpu, &data, &recorded, &options, epochs)?;
    println!(
        "{epochs} epochs in {:.1} s on {} with {} thread(s)",
        began.elapsed().as_secs_f64(),
        cpu.isa(),
        options.threads
    );
    report(&trained, &curve, &recorded, &options)
}

/// Trains, and tests after each epoch.
fn train(
    description: &Description,
    cpu: &Cpu,
    data: &Data,
    recorded: &Recorded,
    options: &Options,
    epochs: usize,
) -> Result<(Parameters, Vec<f32>)> {
    let mut training = Training::new(description, cpu, data, &recorded.settings, options.dropout)?;
    let mut progress = Progress::new(epochs);
    let mut curve = Vec::new();
    for _ in 0..epochs {
        let Epoch { loss } = training.epoch()?;
        let accuracy = data.accuracy(description, cpu, training.parameters())?;
        curve.push(accuracy);
        progress.show(curve.len(), loss, accuracy);
    }
    progress.finish();
    Ok((training.into_parameters(), curve))
}

/// Says how good the classifier has become, draws it, writes the files, and fails if it is not within half a percent of Flax's.
fn report(
    trained: &Parameters,
    curve: &[f32],
    recorded: &Recorded,
    options: &Options,
) -> Result<()> {
    let flax = recorded.accuracy(options.dropout);
    let curves = [
        Curve {
            name: "this library",
            values: curve,
        },
        Curve {
            name: "Flax",
            values: flax,
        },
    ];
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = std::io::stdout().is_terminal() && !no_color;
    println!("\n{}", plot::terminal(&curves, colour));
    if let Some(folder) = &options.out {
        write(folder, trained, &plot::svg(&curves))?;
    }
    let (Some(last), Some(wanted)) = (curve.last(), flax.get(curve.len().wrapping_sub(1))) else {
        return Ok(());
    };
    println!(
        "test accuracy              {:.2} % (Flax: {:.2} %)",
        100.0 * last,
        100.0 * wanted
    );
    if curve.len() == flax.len() {
        let apart = (last - wanted).abs();
        ensure!(
            apart <= 0.005,
            "the test accuracy is {:.2} % from Flax's; 0.5 % is allowed",
            100.0 * apart
        );
        println!("within 0.5 % of Flax's");
    }
    Ok(())
}

fn write(folder: &Path, trained: &Parameters, svg: &str) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, bytes) in [
        ("accuracy.svg", svg.as_bytes()),
        ("trained.msgpack", &trained.to_file()?),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
