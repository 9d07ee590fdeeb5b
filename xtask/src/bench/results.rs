//! What a run found, as values and as JSON.

use crate::limits::Limits;
use crate::race::OWN;
use crate::spec::{CoreSizes, Pass, Spec, Work, short_name};
use anyhow::{Context, Result};
use attn_core::DType;
use serde_json::{Value, json};

/// Inputs that a step reads anew from memory: less stays in the caches from one step to the next.
const OUT_OF_CACHE: f64 = (8u32 << 20) as f64;

/// One runner's times of one case.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) runner: String,
    pub(crate) threads: usize,
    /// Median of the slots' medians.
    pub(crate) median_ms: f64,
    /// The fastest slot's median.
    pub(crate) fastest_ms: f64,
    /// Distance of the slots' quartiles by the median.
    pub(crate) spread: f64,
    pub(crate) slots: usize,
    /// Steps of a slot.
    pub(crate) steps: usize,
    /// Largest error against `f64` by the largest number; `None` where nothing is known.
    pub(crate) error: Option<f64>,
    pub(crate) extra_bytes: Option<u64>,
}

/// A runner that cannot do a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsupported {
    pub(crate) case: String,
    pub(crate) runner: String,
    pub(crate) threads: usize,
    pub(crate) why: String,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Results {
    pub(crate) machine: String,
    pub(crate) date: String,
    /// Peers with their versions.
    pub(crate) versions: Vec<String>,
    /// What is not installed.
    pub(crate) absent: Vec<String>,
    /// From `exec` to the end of a process that computes a small layer once.
    pub(crate) cold_start_ms: Option<f64>,
    pub(crate) limits: Vec<Limits>,
    pub(crate) cases: Vec<Spec>,
    pub(crate) rows: Vec<Row>,
    pub(crate) unsupported: Vec<Unsupported>,
}

/// What bounds a case on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Arithmetic,
    Memory,
    Cache,
}

impl Results {
    /// The cases that are plotted against the length, each with it.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (usize, &Spec)> {
        self.cases.iter().filter_map(|case| match case.work {
            Work::Core(CoreSizes { query_length, .. }) if is_length(case) => {
                Some((query_length, case))
            }
            _ => None,
        })
    }

    /// The other cases.
    pub(crate) fn named(&self) -> impl Iterator<Item = &Spec> {
        self.cases.iter().filter(|case| !is_length(case))
    }

    /// Numbers of threads, in the order of the run.
    pub(crate) fn threads(&self) -> impl Iterator<Item = usize> {
        self.limits.iter().map(|limits| limits.threads)
    }

    pub(crate) fn own(&self, case: &str, threads: usize) -> Option<&Row> {
        self.rows_of(case, threads).find(|row| row.runner == OWN)
    }

    /// The fastest that is not ours.
    pub(crate) fn fastest_peer(&self, case: &str, threads: usize) -> Option<&Row> {
        let peers = self.rows_of(case, threads).filter(|row| row.runner != OWN);
        peers.min_by(|a, b| a.median_ms.total_cmp(&b.median_ms))
    }

    pub(crate) fn rows_of(&self, case: &str, threads: usize) -> impl Iterator<Item = &Row> {
        self.rows
            .iter()
            .filter(move |row| row.case == case && row.threads == threads)
    }

    /// The runners of any case, ours first, then in the order of the run.
    pub(crate) fn runners(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !all.contains(&row.runner.as_str()) {
                all.push(&row.runner);
            }
        }
        all.sort_by_key(|name| *name != OWN);
        all
    }

    /// Which share of the machine's limit the fastest slot of `row` reaches, and what the limit is.
    pub(crate) fn fraction(&self, spec: &Spec, row: &Row) -> Option<(f64, Bound)> {
        let limits = self
            .limits
            .iter()
            .find(|limits| limits.threads == row.threads)?;
        let (time, bound) = shortest(spec, limits);
        Some((time * 1e3 / row.fastest_ms, bound))
    }
}

fn is_length(case: &Spec) -> bool {
    case.name.starts_with('L')
}

/// The shortest time that the machine allows a case, in seconds, and why.
fn shortest(spec: &Spec, limits: &Limits) -> (f64, Bound) {
    let arithmetic = spec.work.flops() / limits.flops;
    let bytes = spec.read_bytes();
    let (rate, bound) = if bytes >= OUT_OF_CACHE {
        (limits.bytes, Bound::Memory)
    } else {
        (limits.cached_bytes, Bound::Cache)
    };
    let reading = bytes / rate;
    if reading > arithmetic {
        (reading, bound)
    } else {
        (arithmetic, Bound::Arithmetic)
    }
}

impl Spec {
    /// What is computed, in words and sizes.
    pub(crate) fn description(&self) -> String {
        match self.work {
            Work::Layer(sizes, pass) => {
                let what = match pass {
                    Pass::Forward => "layer".to_owned(),
                    Pass::Train => "training step".to_owned(),
                    Pass::Dropout { rate } => format!("layer, dropout {rate}"),
                };
                let (batch, length) = (sizes.batch, sizes.length);
                format!(
                    "{what}, {batch} × {length} × {}, {} heads",
                    sizes.features, sizes.heads
                )
            }
            Work::Core(sizes) => core_description(self, sizes),
            Work::Product(sizes) => {
                format!(
                    "product, {} × {} × {}",
                    sizes.rows, sizes.inner, sizes.columns
                )
            }
        }
    }

    /// Bytes that a step must read: inputs and parameters, once.
    pub(crate) fn read_bytes(&self) -> f64 {
        let elements = match self.work {
            Work::Layer(sizes, pass) => {
                let inputs = sizes.batch * sizes.length * sizes.features;
                let parameters = 4 * sizes.features * (sizes.features + 1);
                if pass == Pass::Train {
                    2 * (inputs + parameters)
                } else {
                    inputs + parameters
                }
            }
            Work::Core(sizes) => {
                let queries = sizes.heads * sizes.query_length;
                sizes.batch * (queries + 2 * sizes.kv_heads * sizes.keys_read()) * sizes.depth
            }
            Work::Product(sizes) => sizes.inner * (sizes.rows + sizes.columns),
        };
        (elements * self.dtype.scalar().size()) as f64
    }
}

fn core_description(spec: &Spec, sizes: CoreSizes) -> String {
    let heads = if sizes.group() == 1 {
        format!("{} heads", sizes.heads)
    } else {
        format!("{} heads on {}", sizes.heads, sizes.kv_heads)
    };
    let causal = if sizes.causal { ", causal" } else { "" };
    let padding = match sizes.valid {
        Some(valid) => format!(", {} keys padding", sizes.key_length - valid),
        None => String::new(),
    };
    let dtype = match spec.dtype {
        DType::F32 => String::new(),
        other => format!(", {}", short_name(other)),
    };
    if sizes.query_length == 1 {
        return format!(
            "decode, {heads}, {} keys, depth {}{padding}{dtype}",
            sizes.key_length, sizes.depth
        );
    }
    format!(
        "core, {heads}, length {}, depth {}{causal}{padding}{dtype}",
        sizes.query_length, sizes.depth
    )
}

impl Results {
    /// The whole run.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "machine": self.machine,
            "date": self.date,
            "versions": self.versions,
            "absent": self.absent,
            "cold_start_ms": self.cold_start_ms,
            "limits": self.limits.iter().map(limits_to_json).collect::<Vec<_>>(),
            "cases": self.cases.iter().map(case_to_json).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(|row| self.row_to_json(row)).collect::<Vec<_>>(),
            "unsupported": self.unsupported.iter().map(unsupported_to_json).collect::<Vec<_>>(),
        })
    }

    /// Reads what [`Results::to_json`] made; what follows from the rest is not looked at.
    pub(crate) fn from_json(value: &Value) -> Result<Self> {
        Ok(Self {
            machine: text(value, "machine")?,
            date: text(value, "date")?,
            versions: texts(value, "versions")?,
            absent: texts(value, "absent")?,
            cold_start_ms: value["cold_start_ms"].as_f64(),
            limits: each(value, "limits", limits_from_json)?,
            cases: each(value, "cases", |case| Spec::from_json(&case["spec"]))?,
            rows: each(value, "rows", row_from_json)?,
            unsupported: each(value, "unsupported", unsupported_from_json)?,
        })
    }

    fn row_to_json(&self, row: &Row) -> Value {
        let spec = self.cases.iter().find(|case| case.name == row.case);
        let fraction = spec.and_then(|spec| self.fraction(spec, row));
        json!({
            "case": row.case,
            "runner": row.runner,
            "threads": row.threads,
            "median_ms": row.median_ms,
            "fastest_ms": row.fastest_ms,
            "spread": row.spread,
            "slots": row.slots,
            "steps": row.steps,
            "error": row.error,
            "extra_bytes": row.extra_bytes,
            "gflops": spec.map(|spec| spec.work.flops() / row.median_ms / 1e6),
            "fraction_of_limit": fraction.map(|(fraction, _)| fraction),
            "limit": fraction.map(|(_, bound)| bound.name()),
        })
    }
}

impl Bound {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::Memory => "memory",
            Self::Cache => "cache",
        }
    }
}

fn limits_to_json(limits: &Limits) -> Value {
    json!({
        "threads": limits.threads,
        "gflops": limits.flops / 1e9,
        "gigabytes_per_s": limits.bytes / 1e9,
        "cached_gigabytes_per_s": limits.cached_bytes / 1e9,
        "gigaexponentials_per_s": limits.exponentials / 1e9,
    })
}

fn limits_from_json(value: &Value) -> Result<Limits> {
    Ok(Limits {
        threads: count(value, "threads")?,
        flops: number(value, "gflops")? * 1e9,
        bytes: number(value, "gigabytes_per_s")? * 1e9,
        cached_bytes: number(value, "cached_gigabytes_per_s")? * 1e9,
        exponentials: number(value, "gigaexponentials_per_s")? * 1e9,
    })
}

fn case_to_json(spec: &Spec) -> Value {
    json!({
        "spec": spec.to_json(),
        "description": spec.description(),
        "flops": spec.work.flops(),
        "exponentials": spec.work.exponentials(),
        "read_bytes": spec.read_bytes(),
    })
}

fn row_from_json(value: &Value) -> Result<Row> {
    Ok(Row {
        case: text(value, "case")?,
        runner: text(value, "runner")?,
        threads: count(value, "threads")?,
        median_ms: number(value, "median_ms")?,
        fastest_ms: number(value, "fastest_ms")?,
        spread: number(value, "spread")?,
        slots: count(value, "slots")?,
        steps: count(value, "steps")?,
        error: value["error"].as_f64(),
        extra_bytes: value["extra_bytes"].as_u64(),
    })
}

fn unsupported_to_json(row: &Unsupported) -> Value {
    json!({"case": row.case, "runner": row.runner, "threads": row.threads, "why": row.why})
}

fn unsupported_from_json(value: &Value) -> Result<Unsupported> {
    Ok(Unsupported {
        case: text(value, "case")?,
        runner: text(value, "runner")?,
        threads: count(value, "threads")?,
        why: text(value, "why")?,
    })
}

fn each<R>(value: &Value, key: &str, read: impl Fn(&Value) -> Result<R>) -> Result<Vec<R>> {
    let list = value[key]
        .as_array()
        .with_context(|| format!("the results have no list `{key}`"))?;
    list.iter().map(read).collect()
}

fn texts(value: &Value, key: &str) -> Result<Vec<String>> {
    each(value, key, |text| {
        text.as_str().map(str::to_owned).context("a text is wanted")
    })
}

fn text(value: &Value, key: &str) -> Result<String> {
    let text = value[key]
        .as_str()
        .with_context(|| format!("the results have no text `{key}`"))?;
    Ok(text.to_owned())
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key]
        .as_f64()
        .with_context(|| format!("the results have no number `{key}`"))
}

fn count(value: &Value, key: &str) -> Result<usize> {
    Ok(usize::try_from(value[key].as_u64().with_context(
        || format!("the results have no count `{key}`"),
    )?)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cases;

    /// A run of every case with made-up times: ours 2 ms, a peer's 3 ms.
    pub(crate) fn example() -> Results {
        let mut cases = cases::all();
        cases.extend(cases::lengths());
        let mut rows = Vec::new();
        for spec in &cases {
            for (runner, median_ms) in [("torch.sdpa", 3.0), (OWN, 2.0)] {
                for threads in [1, 2] {
                    let row = Row {
                        case: spec.name.clone(),
                        runner: runner.to_owned(),
                        threads,
                        median_ms,
                        fastest_ms: median_ms / 2.0,
                        spread: 0.01,
                        slots: 7,
                        steps: 75,
                        error: (spec.name != "F1").then_some(1e-7),
                        extra_bytes: (runner == OWN).then_some(65_536),
                    };
                    rows.push(row);
                }
            }
        }
        let limits = |threads| Limits {
            threads,
            flops: 1e11,
            bytes: 2e10,
            cached_bytes: 5e10,
            exponentials: 2.5e9,
        };
        Results {
            machine: "a <machine> & more".to_owned(),
            date: "2026-01-31".to_owned(),
            versions: vec!["torch 1.0".to_owned()],
            absent: vec!["jax_peers.py: no jax".to_owned()],
            cold_start_ms: Some(1.5),
            limits: vec![limits(1), limits(2)],
            cases,
            rows,
            unsupported: vec![Unsupported {
                case: "B1".to_owned(),
                runner: "flax".to_owned(),
                threads: 1,
                why: "it cannot".to_owned(),
            }],
        }
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let results = example();
        let text = results.to_json().to_string();
        assert_eq!(
            Results::from_json(&serde_json::from_str(&text).unwrap()).unwrap(),
            results
        );
        assert!(Results::from_json(&json!({})).is_err());
    }

    #[test]
    fn the_fastest_slot_is_held_against_the_limit() {
        let results = example();
        let fraction = |name: &str| {
            let spec = results.cases.iter().find(|case| case.name == name).unwrap();
            results
                .fraction(spec, results.own(name, 1).unwrap())
                .unwrap()
        };
        // 2 · 128 · 384 · 384 operations at 1e11 a second, in 1 ms.
        let (share, bound) = fraction("D3");
        assert_eq!(bound, Bound::Arithmetic);
        assert!((share - 0.377_487_36).abs() < 1e-12);
        // 4 bytes of 2 · 8 · 4096 · 128 keys and values and 32 · 128 queries at 2e10 a second, in 1 ms.
        let (share, bound) = fraction("C1f32");
        assert_eq!(bound, Bound::Memory);
        assert!((share - 33_570_816.0 / 2e10 * 1e3).abs() < 1e-12);
        // What stays in a cache is read faster: 4 bytes of 2 · 8 · 1024 · 64 keys and values and 8 · 64 queries at 5e10 a second.
        let (share, bound) = fraction("C2f32");
        assert_eq!(bound, Bound::Cache);
        assert!((share - 4_196_352.0 / 5e10 * 1e3).abs() < 1e-12);
    }

    #[test]
    fn ours_comes_first() {
        assert_eq!(example().runners(), [OWN, "torch.sdpa"]);
        assert_eq!(
            example().lengths().map(|(length, _)| length).max(),
            Some(8192)
        );
    }
}
