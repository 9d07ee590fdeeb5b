//! The sources of kernels.

use anyhow::{Context, Result, bail};
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Architectures whose code comes with the crate.
const SHIPPED: [&str; 2] = ["80", "90"];
/// With those whose code is only looked at: devices of theirs run PTX, or the code of sm_80.
const EVERY: [&str; 4] = ["80", "86", "90", "120"];
/// Those of a module that uses the instructions of one architecture.
const HOPPER: [&str; 1] = ["90a"];

/// Whether code for an architecture comes with the crate.
pub(crate) fn is_shipped(architecture: &str) -> bool {
    SHIPPED.contains(&architecture) || HOPPER.contains(&architecture)
}

/// All files of the kernels' folder, by name.
pub(crate) struct Sources {
    files: BTreeMap<String, String>,
}

impl Sources {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let entries = std::fs::read_dir(folder)
            .with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let is_source = path
                .extension()
                .is_some_and(|extension| extension == "cu" || extension == "cuh");
            if let (true, Some(name)) = (is_source, path.file_name()) {
                let text = std::fs::read_to_string(&path)?;
                files.insert(name.to_string_lossy().into_owned(), text);
            }
        }
        Ok(Self { files })
    }

    /// Names of the modules, or the one that is asked for.
    pub(crate) fn modules(&self, only: Option<&str>) -> Result<Vec<String>> {
        let all = self
            .files
            .keys()
            .filter_map(|name| name.strip_suffix(".cu"));
        let modules: Vec<String> = all
            .filter(|name| only.is_none_or(|only| only == *name))
            .map(str::to_owned)
            .collect();
        if modules.is_empty() {
            bail!("there is no such module of kernels");
        }
        Ok(modules)
    }

    pub(crate) fn text(&self, module: &str) -> &str {
        self.files
            .get(&format!("{module}.cu"))
            .map_or("", String::as_str)
    }

    /// Names and texts of the headers that a module includes, through others too.
    pub(crate) fn headers(&self, module: &str) -> Vec<(&str, &str)> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.text(module)];
        while let Some(text) = open.pop() {
            for name in included(text) {
                if let Some((name, text)) = self.files.get_key_value(name)
                    && found.insert((name.as_str(), text.as_str()))
                {
                    open.push(text);
                }
            }
        }
        found.into_iter().collect()
    }

    /// SHA-1 of a module and its headers.
    pub(crate) fn digest(&self, module: &str) -> String {
        let mut digest = Sha1::new();
        digest.update(self.text(module));
        for (name, text) in self.headers(module) {
            digest.update(name);
            digest.update(text);
        }
        let mut hex = String::new();
        for byte in digest.finalize() {
            // Writing to a string does not fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    pub(crate) fn architectures(&self, module: &str, every: bool) -> &'static [&'static str] {
        match (self.is_hopper(module), every) {
            (true, _) => &HOPPER,
            (false, true) => &EVERY,
            (false, false) => &SHIPPED,
        }
    }

    /// Whether a module uses the instructions of sm_90a.
    pub(crate) fn is_hopper(&self, module: &str) -> bool {
        module.ends_with("_hopper")
    }
}

fn included(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("#include")?;
        rest.trim().strip_prefix('"')?.strip_suffix('"')
    })
}
