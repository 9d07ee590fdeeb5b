//! What the assembler says of each kernel, and what its machine code is made of.

use crate::build::Image;
use crate::sources::{Sources, is_shipped};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// Instructions that are counted: matrix products, loads of their operands, copies, local memory.
const COUNTED: [&str; 9] = [
    "HMMA", "HGMMA", "DMMA", "FFMA", "LDSM", "LDGSTS", "UTMALDG", "LDL", "STL",
];

/// Remarks of the assembler that mean a slow kernel: wgmma that is serialised, setmaxnreg that is ignored.
const BAD_REMARKS: [&str; 3] = ["C7508", "C7510", "C7514"];

/// One kernel on one architecture.
struct Kernel {
    architecture: &'static str,
    registers: u64,
    shared: u64,
    stack: u64,
    spills: u64,
    mix: BTreeMap<&'static str, u64>,
}

/// All kernels of a module.
pub(crate) struct Report {
    module: String,
    digest: String,
    is_hopper: bool,
    kernels: BTreeMap<String, Vec<Kernel>>,
    remarks: Vec<String>,
}

impl Report {
    pub(crate) fn new(sources: &Sources, module: &str, images: &[&Image]) -> Result<Self> {
        let mut report = Self {
            module: module.to_owned(),
            digest: sources.digest(module),
            is_hopper: sources.is_hopper(module),
            kernels: BTreeMap::new(),
            remarks: Vec::new(),
        };
        for image in images {
            let mix = mix(image)?;
            for (name, mut kernel) in kernels(image)? {
                kernel.mix = mix.get(&name).cloned().unwrap_or_default();
                report.kernels.entry(name).or_default().push(kernel);
            }
            let log = image.log.lines();
            let bad = log.filter(|line| BAD_REMARKS.iter().any(|remark| line.contains(remark)));
            report
                .remarks
                .extend(bad.map(|line| format!("{module}: {line}")));
        }
        Ok(report)
    }

    /// What may not be.
    pub(crate) fn findings(&self) -> Vec<String> {
        let mut findings = self.remarks.clone();
        for (name, kernels) in &self.kernels {
            for kernel in kernels {
                let mut find = |what: &str| {
                    findings.push(format!("{name} on sm_{}: {what}", kernel.architecture));
                };
                if kernel.spills > 0 {
                    find("registers are spilled");
                }
                if kernel.stack > 0 || kernel.count("LDL") + kernel.count("STL") > 0 {
                    find("local memory is used");
                }
                if self.is_hopper && kernel.count("HGMMA") == 0 {
                    find("no wgmma is in it");
                }
            }
        }
        findings
    }

    pub(crate) fn print(&self) {
        println!("{} ({} kernels)", self.module, self.kernels.len());
        for (name, kernels) in &self.kernels {
            for kernel in kernels {
                let mix: Vec<String> = kernel
                    .mix
                    .iter()
                    .map(|(name, count)| format!("{name} {count}"))
                    .collect();
                println!(
                    "  {name:34} sm_{:4} {:3} registers {:6} B shared  {}",
                    kernel.architecture,
                    kernel.registers,
                    kernel.shared,
                    mix.join(" ")
                );
            }
        }
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        let kernels: Map<String, Value> = self
            .kernels
            .iter()
            .map(|(name, kernels)| {
                let shipped = kernels
                    .iter()
                    .filter(|kernel| is_shipped(kernel.architecture));
                let each = shipped.map(|kernel| {
                    let facts = json!({
                        "registers": kernel.registers,
                        "shared": kernel.shared,
                        "instructions": kernel.mix,
                    });
                    (format!("sm_{}", kernel.architecture), facts)
                });
                (name.clone(), Value::Object(each.collect()))
            })
            .collect();
        let report = json!({ "source": self.digest, "kernels": kernels });
        let mut bytes = serde_json::to_vec_pretty(&report)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl Kernel {
    fn count(&self, name: &str) -> u64 {
        self.mix.get(name).copied().unwrap_or(0)
    }
}

/// The kernels that the assembler speaks of.
fn kernels(image: &Image) -> Result<Vec<(String, Kernel)>> {
    let mut kernels: Vec<(String, Kernel)> = Vec::new();
    for line in image.log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            let kernel = Kernel {
                architecture: image.architecture,
                registers: 0,
                shared: 0,
                stack: 0,
                spills: 0,
                mix: BTreeMap::new(),
            };
            kernels.push((name, kernel));
        }
        let Some((_, kernel)) = kernels.last_mut() else {
            continue;
        };
        if line.contains("bytes stack frame") {
            kernel.stack = before(line, "bytes stack frame");
            kernel.spills = before(line, "bytes spill stores") + before(line, "bytes spill loads");
        }
        if line.contains("registers") {
            kernel.registers = before(line, "registers");
            kernel.shared = before(line, "bytes smem");
        }
    }
    if kernels.is_empty() {
        bail!("the assembler names no kernel of {}", image.module);
    }
    Ok(kernels)
}

/// The number before `words` in a line, 0 if they are not there.
fn before(line: &str, words: &str) -> u64 {
    let number = line.split_once(words).map(|(before, _)| before.trim_end());
    let digits = number.and_then(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// How often each counted instruction is in the kernels of an image.
fn mix(image: &Image) -> Result<BTreeMap<String, BTreeMap<&'static str, u64>>> {
    let tool = std::env::var_os("NVDISASM").map_or_else(|| "nvdisasm".into(), PathBuf::from);
    let file = std::env::temp_dir().join(format!(
        "{}-{}-{}.cubin",
        image.module,
        image.architecture,
        std::process::id()
    ));
    std::fs::write(&file, &image.cubin)?;
    let output = Command::new(&tool).arg("-c").arg(&file).output();
    std::fs::remove_file(&file)?;
    let output = output.with_context(|| format!("cannot start {}", tool.display()))?;
    if !output.status.success() {
        bail!("nvdisasm: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut all: BTreeMap<String, BTreeMap<&'static str, u64>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix(".section\t.text.") {
            current = name.split(',').next().unwrap_or_default().to_owned();
        }
        let Some(opcode) = opcode(line) else { continue };
        if let Some(counted) = COUNTED.iter().find(|counted| **counted == opcode) {
            *all.entry(current.clone())
                .or_default()
                .entry(counted)
                .or_default() += 1;
        }
    }
    Ok(all)
}

/// The instruction of a line such as `/*0010*/ @P0 HMMA.16816.F32 R4, … ;`.
fn opcode(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("/*")?.split_once("*/")?.1;
    let mut words = rest.split_whitespace();
    let first = words.next()?;
    let opcode = if first.starts_with('@') {
        words.next()?
    } else {
        first
    };
    opcode.trim_end_matches(';').split('.').next()
}
