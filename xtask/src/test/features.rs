//! Every feature of every library alone, and no feature at all: the library must build and its unit tests pass.

use super::run::{Run, Runner};
use crate::metadata::{self, Package};
use anyhow::Result;

/// One set of features of one library.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FeatureSet {
    package: String,
    /// `None` is no feature.
    feature: Option<String>,
}

/// What became of a set.
#[derive(Debug)]
pub(crate) struct FeatureRow {
    pub(crate) package: String,
    pub(crate) features: String,
    pub(crate) built: bool,
    pub(crate) tests: Run,
}

/// Builds and tests every set.
pub(crate) fn run(runner: &mut Runner) -> Result<Vec<FeatureRow>> {
    let sets: Vec<_> = metadata::members()?.iter().flat_map(sets_of).collect();
    sets.iter().map(|set| run_set(runner, set)).collect()
}

fn run_set(runner: &mut Runner, set: &FeatureSet) -> Result<FeatureRow> {
    let what = set.arguments();
    Ok(FeatureRow {
        package: set.package.clone(),
        features: set.label(),
        built: runner.check(&what)?,
        tests: runner.test(&what, &[])?,
    })
}

/// The sets of a library; none for a package without features, or of programs only.
fn sets_of(package: &Package) -> Vec<FeatureSet> {
    let named = package.features.iter().filter(|name| *name != "default");
    let each: Vec<_> = named.cloned().map(Some).collect();
    if each.is_empty() || !package.library {
        return Vec::new();
    }
    let every = core::iter::once(None).chain(each);
    every
        .map(|feature| FeatureSet {
            package: package.name.clone(),
            feature,
        })
        .collect()
}

impl FeatureSet {
    fn arguments(&self) -> Vec<&str> {
        let mut what = vec!["--package", &self.package, "--lib", "--no-default-features"];
        if let Some(feature) = &self.feature {
            what.extend(["--features", feature]);
        }
        what
    }

    fn label(&self) -> String {
        self.feature.clone().unwrap_or_else(|| "none".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(features: &[&str]) -> Package {
        Package {
            name: "p".to_owned(),
            version: "1.0.0".to_owned(),
            rust_version: None,
            features: features.iter().map(|name| (*name).to_owned()).collect(),
            dependencies: Vec::new(),
            member: true,
            library: true,
        }
    }

    #[test]
    fn each_feature_is_alone_and_none_comes_first() {
        let sets = sets_of(&package(&["alloc", "default", "std"]));
        let labels: Vec<_> = sets.iter().map(FeatureSet::label).collect();
        assert_eq!(labels, ["none", "alloc", "std"]);
        let wanted = [
            "--package",
            "p",
            "--lib",
            "--no-default-features",
            "--features",
            "alloc",
        ];
        assert_eq!(sets[1].arguments(), wanted);
        assert_eq!(sets[0].arguments(), wanted[..4]);
    }

    #[test]
    fn a_package_without_features_has_no_rows() {
        assert!(sets_of(&package(&[])).is_empty());
        assert!(sets_of(&package(&["default"])).is_empty());
        let programs = Package {
            library: false,
            ..package(&["extra"])
        };
        assert!(sets_of(&programs).is_empty());
    }
}
