//! The stated rust-version: no dependency states a newer one, and its compiler takes the workspace.

use crate::metadata::{self, Package};
use crate::shell;
use anyhow::{Context, Result, bail};

pub(crate) fn command(args: lexopt::Parser) -> Result<()> {
    crate::no_more(args)?;
    check_dependencies()?;
    check_compiler()
}

/// Fails if a dependency states a newer rust-version than the workspace.
pub(crate) fn check_dependencies() -> Result<()> {
    let packages = metadata::packages()?;
    let stated = stated(&packages)?;
    let newer = newer(&packages, stated);
    if !newer.is_empty() {
        bail!(
            "newer than the workspace's rust-version: {}. Take an older version of them, or raise the rust-version",
            newer.join(", ")
        );
    }
    println!(
        "no dependency needs a newer Rust than {}.{}",
        stated.0, stated.1
    );
    Ok(())
}

/// Checks the workspace by the stated version's compiler, where it is installed.
fn check_compiler() -> Result<()> {
    let (major, minor) = stated(&metadata::members()?)?;
    let toolchain = format!("{major}.{minor}");
    if !shell::works(shell::cargo_of(&toolchain).arg("--version")) {
        println!(
            "SKIPPED: Rust {toolchain} is not installed; `rustup toolchain install {toolchain}` brings it"
        );
        return Ok(());
    }
    shell::succeed(
        shell::cargo_of(&toolchain)
            .args(["check", "--workspace", "--all-features", "--locked"])
            .arg("--target-dir")
            .arg(shell::target().join("msrv")),
    )
}

fn stated(packages: &[Package]) -> Result<(u32, u32)> {
    let member = packages.iter().find(|package| package.member);
    let text = member
        .and_then(|package| package.rust_version.as_deref())
        .context("the workspace states no rust-version")?;
    version(text).with_context(|| format!("`{text}` is no Rust version"))
}

fn newer(packages: &[Package], than: (u32, u32)) -> Vec<String> {
    let needs = |package: &Package| package.rust_version.as_deref().and_then(version);
    packages
        .iter()
        .filter(|package| needs(package).is_some_and(|needed| needed > than))
        .map(|package| {
            let rust = package.rust_version.as_deref().unwrap_or_default();
            format!("{} {} (Rust {rust})", package.name, package.version)
        })
        .collect()
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, rust_version: Option<&str>, member: bool) -> Package {
        Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            rust_version: rust_version.map(str::to_owned),
            features: Vec::new(),
            dependencies: Vec::new(),
            member,
            library: true,
        }
    }

    #[test]
    fn newer_dependencies_are_named() {
        let packages = [
            package("ours", Some("1.89"), true),
            package("same", Some("1.89.0"), false),
            package("older", Some("1.9"), false),
            package("silent", None, false),
            package("newer", Some("1.100"), false),
        ];
        let stated = stated(&packages).unwrap();
        assert_eq!(newer(&packages, stated), ["newer 1.0.0 (Rust 1.100)"]);
    }

    #[test]
    fn a_workspace_without_version_is_an_error() {
        assert!(stated(&[package("ours", None, true)]).is_err());
        assert!(stated(&[package("ours", Some("new"), true)]).is_err());
    }
}
