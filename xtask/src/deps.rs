//! The dependency tree of `attn-core`: `half`, `bytemuck` and what they bring, nothing else.

use crate::metadata::{self, Package};
use anyhow::{Context, Result, bail};

const ALLOWED: [&str; 2] = ["bytemuck", "half"];

pub(crate) fn command(args: lexopt::Parser) -> Result<()> {
    crate::no_more(args)?;
    check()
}

/// Fails if `attn-core` depends on anything else.
pub(crate) fn check() -> Result<()> {
    let packages = metadata::members()?;
    let core = packages
        .iter()
        .find(|package| package.name == "attn-core")
        .context("the workspace has no attn-core")?;
    let others = other_dependencies(core);
    if !others.is_empty() {
        bail!(
            "attn-core depends on {}; only {} are its dependencies. Move what needs the others to another crate",
            others.join(", "),
            ALLOWED.join(" and ")
        );
    }
    println!("attn-core depends on {} only", ALLOWED.join(" and "));
    Ok(())
}

fn other_dependencies(package: &Package) -> Vec<&str> {
    let normal = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind.as_deref() != Some("dev"));
    normal
        .map(|dependency| dependency.name.as_str())
        .filter(|name| !ALLOWED.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    #[test]
    fn build_dependencies_count_and_dev_dependencies_do_not() {
        let dependency = |name: &str, kind: Option<&str>| Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
        };
        let package = Package {
            name: "attn-core".to_owned(),
            version: "0.1.0".to_owned(),
            rust_version: None,
            features: Vec::new(),
            dependencies: vec![
                dependency("half", None),
                dependency("serde", None),
                dependency("cc", Some("build")),
                dependency("proptest", Some("dev")),
            ],
            member: true,
            library: true,
        };
        assert_eq!(other_dependencies(&package), ["serde", "cc"]);
    }
}
