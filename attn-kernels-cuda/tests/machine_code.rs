//! What the assembler made of every kernel: a change of registers, shared memory or instructions shows in the snapshot.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// The reports of all modules, by name.
fn reports() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    let files = std::fs::read_dir(folder).expect("a folder");
    let mut paths: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    paths.sort();
    let read = |path| std::fs::read_to_string(path).expect("text");
    let reports = paths.iter().map(read);
    reports
        .map(|text| serde_json::from_str(&text).expect("JSON"))
        .collect()
}

#[test]
fn machine_code() {
    let mut table = String::new();
    for report in reports() {
        for (name, each) in report["kernels"].as_object().expect("kernels") {
            for (architecture, facts) in each.as_object().expect("architectures") {
                let mix = facts["instructions"].as_object().expect("counts");
                let mix: Vec<_> = mix
                    .iter()
                    .map(|(name, count)| format!("{name} {count}"))
                    .collect();
                writeln!(
                    table,
                    "{name:44} {architecture:7} {:>3} registers {:>6} B shared  {}",
                    facts["registers"],
                    facts["shared"],
                    mix.join(", ")
                )
                .expect("a string takes everything");
            }
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn no_kernel_uses_local_memory_and_those_for_warpgroups_use_them() {
    for report in reports() {
        for (name, each) in report["kernels"].as_object().expect("kernels") {
            for facts in each.as_object().expect("architectures").values() {
                let count = |name: &str| facts["instructions"][name].as_u64().unwrap_or(0);
                assert_eq!(count("LDL") + count("STL"), 0, "{name}");
                if name.contains("hopper") {
                    assert!(count("HGMMA") > 0 && count("UTMALDG") > 0, "{name}");
                }
            }
        }
    }
}
