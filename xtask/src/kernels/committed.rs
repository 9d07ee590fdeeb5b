//! What is committed must be what the sources give. Compiling them takes a compiler that not every machine has; their digests do not.

use crate::sources::Sources;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn crate_folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("the workspace")
        .join("attn-kernels-cuda")
}

fn sources() -> Sources {
    Sources::read(&crate_folder().join("kernels")).expect("the kernels' folder")
}

fn report(module: &str) -> Value {
    let path = crate_folder().join(format!("generated/{module}.json"));
    let text = std::fs::read_to_string(&path).expect("each module has a report");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn every_module_was_compiled_from_its_present_source() {
    let sources = sources();
    for module in sources.modules(None).expect("modules") {
        assert_eq!(
            report(&module)["source"],
            sources.digest(&module).as_str(),
            "{module}: run `cargo xtask kernels`"
        );
    }
}

#[test]
fn nothing_is_committed_that_no_module_gives() {
    let modules = sources().modules(None).expect("modules");
    let files = std::fs::read_dir(crate_folder().join("generated")).expect("a folder");
    for file in files {
        let name = file.expect("an entry").file_name();
        let name = name.to_string_lossy();
        let module = name.split('.').next().unwrap_or_default();
        assert!(modules.iter().any(|known| known == module), "{name}");
    }
}
