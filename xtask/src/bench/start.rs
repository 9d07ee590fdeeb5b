//! A cold start: how long a new process takes from `exec` to the first result of a case, and to its end.

use crate::cases;
use crate::data::{Arrays, Drawn, Folder, Source};
use crate::job;
use crate::statistics::median;
use anyhow::{Context, Result, bail};
use attn_kernels_cpu::Cpu;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The case that is started.
pub(crate) const CASE: &str = "A3";
/// Starts that are measured; one more goes before them, which brings the program into memory.
const STARTS: usize = 21;

/// Computes a case once, alone in its process, and prints the sum of the result.
pub(crate) fn once(name: &str, folder: Option<&Path>) -> Result<()> {
    let all = cases::all();
    let spec = all.iter().find(|case| case.name == name);
    let spec = spec.with_context(|| format!("there is no case `{name}`"))?;
    let mut source: Box<dyn Source> = match folder {
        Some(folder) => Box::new(Folder::new(folder, &spec.data)),
        None => Box::new(Drawn::new(&spec.data)),
    };
    let mut job = job::prepare(spec, Arrays::of(spec, source.as_mut())?, &Cpu::detect())?;
    job.step()?;
    println!("{}", job.fetch().iter().map(|&x| f64::from(x)).sum::<f64>());
    Ok(())
}

/// The median time of such a process, in milliseconds, from before it is started until it has ended. Drawing the inputs is part of it.
pub(crate) fn measure() -> Result<f64> {
    let program = std::env::current_exe()?;
    let mut times = Vec::new();
    for _ in 0..=STARTS {
        let mut command = Command::new(&program);
        command
            .args(["--once", CASE])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let start = Instant::now();
        let status = command.status()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if !status.success() {
            bail!("a cold start of {CASE} failed ({status})");
        }
    }
    Ok(median(&times[1..]))
}
