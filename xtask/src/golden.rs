//! Makes the recorded cases anew. Needs Python and the network: the cases come from real Flax.

use crate::lint::files_under;
use crate::shell;
use anyhow::{Context, Result, bail};
use lexopt::Arg;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Relative paths with their contents.
type Files = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let mut venv = shell::root().join(".venv");
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("venv") => venv = std::path::absolute(PathBuf::from(args.value()?))?,
            other => return Err(other.unexpected().into()),
        }
    }
    let folder = shell::root().join("attn-layers/golden");
    let python = python_with_flax(&venv, &folder.join("requirements.txt"))?;
    let fresh = make(&python, &folder.join("make.py"))?;
    replace(&folder.join("cases"), &fresh)
}

/// The venv's Python, with the pinned packages installed.
fn python_with_flax(venv: &Path, requirements: &Path) -> Result<PathBuf> {
    let python = python_of(venv);
    if !python.is_file() {
        println!("making {}", venv.display());
        shell::succeed(shell::program("python3").args(["-m", "venv"]).arg(venv))
            .context("Python 3 with its venv module is needed")?;
    }
    let mut install = shell::program(&python);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ]);
    shell::succeed(install.arg(requirements)).context("the network is needed to install Flax")?;
    Ok(python)
}

fn python_of(venv: &Path) -> PathBuf {
    venv.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    })
}

/// Runs the script into an empty folder, so that a failure leaves the committed cases as they are.
fn make(python: &Path, script: &Path) -> Result<Files> {
    let folder = shell::target().join("golden-new");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    shell::succeed(shell::program(python).arg(script).arg(&folder))?;
    let files = read(&folder)?;
    if files.is_empty() {
        bail!("{} made no file", script.display());
    }
    Ok(files)
}

/// Puts `fresh` in the place of what `folder` holds, and says what changed.
fn replace(folder: &Path, fresh: &Files) -> Result<()> {
    let old = if folder.exists() {
        read(folder)?
    } else {
        Files::new()
    };
    let changes = changes(&old, fresh);
    for (path, change) in &changes {
        println!("{change:>8}  {}", path.display());
        let target = folder.join(path);
        match fresh.get(*path) {
            Some(bytes) => {
                std::fs::create_dir_all(target.parent().unwrap_or(folder))?;
                std::fs::write(target, bytes)?;
            }
            None => std::fs::remove_file(target)?,
        }
    }
    println!("{} files, {} changed", fresh.len(), changes.len());
    Ok(())
}

fn changes<'a>(old: &'a Files, fresh: &'a Files) -> Vec<(&'a PathBuf, &'static str)> {
    let written = fresh
        .iter()
        .filter_map(|(path, bytes)| match old.get(path) {
            None => Some((path, "new")),
            Some(before) if before != bytes => Some((path, "changed")),
            Some(_) => None,
        });
    let gone = old.keys().filter(|path| !fresh.contains_key(*path));
    written.chain(gone.map(|path| (path, "gone"))).collect()
}

fn read(folder: &Path) -> Result<Files> {
    files_under(folder)?
        .into_iter()
        .map(|path| {
            Ok((
                path.strip_prefix(folder)?.to_path_buf(),
                std::fs::read(&path)?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn every_kind_of_change_is_told() {
        let old = files(&[("same", "1"), ("other", "1"), ("old", "1")]);
        let fresh = files(&[("same", "1"), ("other", "2"), ("fresh", "1")]);
        let told: Vec<_> = changes(&old, &fresh)
            .into_iter()
            .map(|(path, change)| (path.to_str().unwrap(), change))
            .collect();
        assert_eq!(
            told,
            [("fresh", "new"), ("other", "changed"), ("old", "gone")]
        );
    }

    #[test]
    fn the_folder_holds_the_fresh_files_afterwards() {
        let folder = std::env::temp_dir().join(format!("xtask-golden-{}", std::process::id()));
        replace(&folder, &files(&[("a/x", "1"), ("b", "1")])).unwrap();
        let fresh = files(&[("a/x", "2"), ("a/y", "3")]);
        replace(&folder, &fresh).unwrap();
        let held = read(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(held, fresh);
    }
}
