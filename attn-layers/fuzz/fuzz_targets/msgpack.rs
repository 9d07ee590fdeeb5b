//! Flax msgpack: whatever is read can be walked, written and read again.
#![no_main]

use attn_layers::io::{Tree, write_msgpack};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tree) = Tree::read_msgpack(bytes) else {
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
    // Names with a slash or empty ones cannot be told apart from paths any more.
    let Ok(written) = write_msgpack(&entries) else {
        return;
    };
    let again = Tree::read_msgpack(&written).expect("what was written is read");
    let count = again
        .entries()
        .filter(|entry| entry.tensor().is_some())
        .count();
    assert_eq!(count, entries.len());
});
