//! Counting: the benchmark `instructions` of the layers, under Valgrind, by gungraun's runner.

use super::baseline::Baseline;
use crate::{metadata, shell};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Why nothing can be counted here, if so.
pub(crate) fn hindrance() -> Option<&'static str> {
    if !has_instruction_set() {
        return Some("the baseline is one of AVX2 on x86-64 Linux");
    }
    if !shell::works(shell::program("valgrind").arg("--version")) {
        return Some("valgrind is not installed; the system's package manager has it");
    }
    None
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_instruction_set() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn has_instruction_set() -> bool {
    false
}

/// Counts every call.
pub(crate) fn count() -> Result<Baseline> {
    let runner = runner()?;
    let mut command = shell::cargo();
    command
        .args(["bench", "--quiet", "--package", "attn-layers"])
        .args(["--bench", "instructions", "--"])
        // Instructions are all that is asked for; the caches would take half of the time.
        .args(["--output-format=json", "--callgrind-args=--cache-sim=no"])
        .env("PATH", path_with(&runner)?);
    Ok(Baseline {
        compiler: compiler()?,
        instructions: parse(&shell::stdout_of(&mut command)?)?,
    })
}

/// The folder with gungraun's runner, of the version that the library has: they talk to each other. It is built once.
fn runner() -> Result<PathBuf> {
    let packages = metadata::packages()?;
    let library = packages.iter().find(|package| package.name == "gungraun");
    let version = &library.context("no package depends on gungraun")?.version;
    let tools = shell::target().join("xtask-tools");
    let root = tools.join(format!("gungraun-runner-{version}"));
    let folder = root.join("bin");
    if !folder.join("gungraun-runner").is_file() {
        println!("building gungraun-runner {version}, once");
        shell::succeed(
            shell::cargo()
                .args(["install", "--quiet", "--locked", "gungraun-runner"])
                .args(["--version", version])
                .arg("--root")
                .arg(&root)
                .arg("--target-dir")
                .arg(tools.join("build")),
        )?;
    }
    Ok(folder)
}

/// Where programs are looked for, in `folder` first.
fn path_with(folder: &Path) -> Result<OsString> {
    let others = std::env::var_os("PATH").unwrap_or_default();
    let folders = core::iter::once(folder.to_path_buf()).chain(std::env::split_paths(&others));
    Ok(std::env::join_paths(folders)?)
}

/// The compiler's version and the platform that it compiles for.
fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let words = shell::stdout_of(shell::program(rustc).arg("-vV"))?;
    let version = words.lines().next();
    let host = words.lines().find_map(|line| line.strip_prefix("host: "));
    match (version, host) {
        (Some(version), Some(host)) => Ok(format!("{version}, {host}")),
        _ => anyhow::bail!("`rustc -vV` names no version and host"),
    }
}

/// The runner writes a line of JSON for each call.
fn parse(output: &str) -> Result<BTreeMap<String, u64>> {
    let summaries = output.lines().filter(|line| line.starts_with('{'));
    summaries.map(parse_summary).collect()
}

fn parse_summary(line: &str) -> Result<(String, u64)> {
    let summary: Value = serde_json::from_str(line)?;
    let name = |part: &str| {
        let name = summary[part].as_str();
        name.with_context(|| format!("the runner's summary has no `{part}`"))
    };
    let call = format!("{} {}", name("function_name")?, name("id")?);
    let count = &summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"];
    let count = count.as_u64();
    let count = count.with_context(|| format!("the runner counted no instructions of {call}"))?;
    Ok((call, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(id: &str, values: &str) -> String {
        format!(
            r#"{{"function_name": "attend", "id": "{id}", "profiles":
            [{{"data": {{"total": {{"metrics": {{"Ir": {{"values": {values}}}}}}}}}}}]}}"#
        )
        .replace('\n', " ")
    }

    #[test]
    fn counts_are_read_from_what_the_runner_writes() {
        let lines = [
            summary("small", r#"{"new": 12, "old": 11}"#),
            "words".to_owned(),
            summary("large", r#"{"new": 4000000000000}"#),
        ];
        let counts = parse(&lines.join("\n")).unwrap();
        let wanted = [("attend large", 4_000_000_000_000), ("attend small", 12)];
        assert_eq!(
            counts,
            wanted.map(|(call, count)| (call.to_owned(), count)).into()
        );
    }

    #[test]
    fn a_call_without_a_count_is_an_error() {
        let error = parse(&summary("small", r#"{"old": 11}"#)).unwrap_err();
        assert!(error.to_string().contains("attend small"), "{error}");
    }

    #[test]
    fn the_runners_folder_comes_first() {
        let path = path_with(Path::new("/tools")).unwrap();
        assert_eq!(
            std::env::split_paths(&path).next(),
            Some(PathBuf::from("/tools"))
        );
    }

    #[test]
    fn the_compiler_is_named_with_its_platform() {
        let compiler = compiler().unwrap();
        assert!(
            compiler.starts_with("rustc 1.") && compiler.contains(", "),
            "{compiler}"
        );
    }
}
