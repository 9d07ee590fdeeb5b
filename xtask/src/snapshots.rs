//! Snapshot tests, without cargo-insta.

use crate::{metadata, shell};
use anyhow::{Result, bail};
use lexopt::Arg;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What to do with a snapshot that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Write it beside the old one as `.snap.new` and fail.
    Show,
    /// Fail.
    Check,
    /// Put it in the old one's place.
    Accept,
}

impl Mode {
    /// The word that insta takes for it.
    const fn insta(self) -> &'static str {
        match self {
            Self::Show => "new",
            Self::Check => "no",
            Self::Accept => "always",
        }
    }
}

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let mut mode = Mode::Show;
    while let Some(arg) = args.next()? {
        mode = match arg {
            Arg::Long("check") => Mode::Check,
            Arg::Long("accept") => Mode::Accept,
            other => return Err(other.unexpected().into()),
        };
    }
    run(mode)
}

/// Runs the snapshot tests of every crate that has some, then looks for snapshots that no test asked for.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let packages = packages_with_snapshots()?;
    if packages.is_empty() {
        bail!("no crate of the workspace depends on insta, so there are no snapshots");
    }
    let asked_for = shell::target().join("xtask-snapshots.txt");
    std::fs::create_dir_all(shell::target())?;
    std::fs::write(&asked_for, "")?;
    for package in &packages {
        shell::succeed(
            shell::cargo()
                .args(["test", "--quiet", "--package", package])
                .args(programs_with_snapshots(package)?)
                .env("INSTA_UPDATE", mode.insta())
                .env("INSTA_FORCE_PASS", "0")
                .env("INSTA_SNAPSHOT_REFERENCES_FILE", &asked_for),
        )?;
    }
    let asked_for = std::fs::read_to_string(&asked_for)?;
    let stored = stored_snapshots(&packages)?;
    let stale = unreferenced(&stored, &asked_for);
    treat_stale(mode, &stale)?;
    println!("{} snapshots agree", stored.len() - stale.len());
    Ok(())
}

fn treat_stale(mode: Mode, stale: &[&PathBuf]) -> Result<()> {
    for path in stale {
        println!("no test asks for {}", path.display());
        if mode == Mode::Accept {
            std::fs::remove_file(path)?;
        }
    }
    if !stale.is_empty() && mode != Mode::Accept {
        bail!(
            "{} snapshots are left over; `cargo xtask snapshots --accept` removes them",
            stale.len()
        );
    }
    Ok(())
}

fn packages_with_snapshots() -> Result<Vec<String>> {
    let mut packages = metadata::members()?;
    packages.retain(|package| {
        package
            .dependencies
            .iter()
            .any(|dependency| dependency.name == "insta")
    });
    Ok(packages.into_iter().map(|package| package.name).collect())
}

/// The library, and the test programs that use insta: others of the package may take long and are of no use here.
fn programs_with_snapshots(package: &str) -> Result<Vec<String>> {
    let mut programs = vec!["--lib".to_owned()];
    let tests = shell::root().join(package).join("tests");
    if !tests.is_dir() {
        return Ok(programs);
    }
    for entry in std::fs::read_dir(tests)? {
        let path = entry?.path();
        let is_source = path.extension().is_some_and(|extension| extension == "rs");
        if is_source && std::fs::read_to_string(&path)?.contains("insta::") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            programs.extend(["--test".to_owned(), name.into_owned()]);
        }
    }
    Ok(programs)
}

fn stored_snapshots(packages: &[String]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for package in packages {
        // Members lie in folders of their own names.
        for path in crate::lint::files_under(&shell::root().join(package))? {
            if path
                .extension()
                .is_some_and(|extension| extension == "snap")
            {
                found.push(path.canonicalize()?);
            }
        }
    }
    Ok(found)
}

fn unreferenced<'a>(stored: &'a [PathBuf], asked_for: &str) -> Vec<&'a PathBuf> {
    let asked_for: BTreeSet<_> = asked_for.lines().map(resolve).collect();
    stored
        .iter()
        .filter(|path| !asked_for.contains(*path))
        .collect()
}

/// The path without `..`, so that two spellings compare equal.
fn resolve(path: &str) -> PathBuf {
    let path = shell::root().join(Path::new(path));
    path.canonicalize().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_referenced_however_its_path_is_spelled() {
        let manifest = shell::root().join("Cargo.toml").canonicalize().unwrap();
        let lock = shell::root().join("Cargo.lock").canonicalize().unwrap();
        let stored = [manifest, lock.clone()];
        let asked_for = format!("{}/xtask/../Cargo.toml\n", shell::root().display());
        assert_eq!(unreferenced(&stored, &asked_for), [&lock]);
    }
}
