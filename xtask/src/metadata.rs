//! What cargo knows about the workspace.

use crate::shell;
use anyhow::{Context, Result};
use serde_json::Value;

/// A package of the workspace or of its dependencies.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) rust_version: Option<String>,
    pub(crate) features: Vec<String>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) member: bool,
    /// Whether it has a library; else it has programs only.
    pub(crate) library: bool,
}

/// A dependency as a manifest states it.
#[derive(Debug, Clone)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None` for a normal one, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

/// Every package that the lock file names, for every platform.
pub(crate) fn packages() -> Result<Vec<Package>> {
    ask(&["--all-features"])
}

/// The workspace's own.
pub(crate) fn members() -> Result<Vec<Package>> {
    ask(&["--no-deps"])
}

fn ask(options: &[&str]) -> Result<Vec<Package>> {
    let mut command = shell::cargo();
    command.args(["metadata", "--quiet", "--format-version", "1"]);
    parse(&shell::stdout_of(command.args(options))?)
}

fn parse(json: &str) -> Result<Vec<Package>> {
    let value: Value = serde_json::from_str(json)?;
    let members = list(&value, "workspace_members")?;
    list(&value, "packages")?
        .iter()
        .map(|package| {
            Ok(Package {
                name: text(package, "name")?,
                version: text(package, "version")?,
                rust_version: package["rust_version"].as_str().map(str::to_owned),
                features: keys(&package["features"]),
                dependencies: list(package, "dependencies")?
                    .iter()
                    .map(dependency)
                    .collect::<Result<_>>()?,
                member: members.contains(&package["id"]),
                library: has_library(package),
            })
        })
        .collect()
}

/// Whether one of its targets is what other packages can use.
fn has_library(package: &Value) -> bool {
    let targets = package["targets"].as_array();
    targets.into_iter().flatten().any(|target| {
        let kinds = target["kind"].as_array();
        kinds
            .into_iter()
            .flatten()
            .any(|kind| kind == "lib" || kind == "proc-macro")
    })
}

fn dependency(value: &Value) -> Result<Dependency> {
    Ok(Dependency {
        name: text(value, "name")?,
        kind: value["kind"].as_str().map(str::to_owned),
    })
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key]
        .as_array()
        .with_context(|| format!("cargo metadata gives no list `{key}`"))
}

fn text(value: &Value, key: &str) -> Result<String> {
    let text = value[key]
        .as_str()
        .with_context(|| format!("cargo metadata gives no `{key}`"))?;
    Ok(text.to_owned())
}

fn keys(value: &Value) -> Vec<String> {
    value
        .as_object()
        .map(|map| map.keys().cloned().collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_from_dependencies() {
        let json = r#"{
            "workspace_members": ["a"],
            "packages": [
                {"id": "a", "name": "a", "targets": [{"kind": ["bin"]}, {"kind": ["lib"]}], "version": "1.0.0", "rust_version": "1.89", "features": {"std": [], "alloc": []},
                 "dependencies": [{"name": "b", "kind": null}, {"name": "c", "kind": "dev"}]},
                {"id": "b", "name": "b", "version": "2.0.0", "rust_version": null, "features": {}, "dependencies": []}
            ]
        }"#;
        let packages = parse(json).unwrap();
        assert_eq!([packages[0].member, packages[1].member], [true, false]);
        assert_eq!([packages[0].library, packages[1].library], [true, false]);
        assert_eq!(packages[0].features, ["alloc", "std"]);
        assert_eq!(packages[0].dependencies[1].kind.as_deref(), Some("dev"));
        assert_eq!(packages[1].rust_version, None);
    }

    #[test]
    fn a_missing_part_is_named() {
        let error = parse(r#"{"workspace_members": []}"#).unwrap_err();
        assert!(error.to_string().contains("`packages`"));
    }
}
