//! safetensors: whatever is read can be walked, written and read again.
#![no_main]

use attn_layers::io::{Tree, write_safetensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tree) = Tree::read_safetensors(bytes) else {
        return;
    };
    let tensors: Vec<_> = tree
        .entries()
        .filter_map(|entry| Some((entry.path(), entry.tensor()?)))
        .collect();
    let entries: Vec<_> = tensors
        .iter()
        .map(|(path, view)| (path.as_str(), *view))
        .collect();
    let Ok(written) = write_safetensors(&entries) else {
        return;
    };
    let again = Tree::read_safetensors(&written).expect("what was written is read");
    for (path, view) in entries {
        assert_eq!(again.tensor(&path), Some(view));
    }
});
