//! Flax msgpack: whatever is read can be walked, written and read again.
#![no_main]

use attn_layers::ScalarType;
use attn_layers::io::{Problem, Tree, write_msgpack};
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
    // An array and a part of one name cannot both be written.
    let Ok(written) = write_msgpack(&entries) else {
        return;
    };
    match Tree::read_msgpack(&written) {
        Ok(again) => assert_eq!(contents(&tree), contents(&again)),
        // A joined array `a.b` beside a part `a` with an array `b`.
        Err(error) => assert_eq!(error.problem, Problem::Duplicate),
    }
});

/// The arrays of a tree, whatever their order and the separators of their paths.
fn contents<'t>(tree: &'t Tree<'_>) -> Vec<(String, ScalarType, Vec<usize>, &'t [u8])> {
    let tensors = tree
        .entries()
        .filter_map(|entry| Some((entry.path(), entry.tensor()?)));
    let mut contents: Vec<_> = tensors
        .map(|(path, view)| {
            let shape = view.shape().to_vec();
            (path.replace('.', "/"), view.scalar(), shape, view.bytes())
        })
        .collect();
    contents.sort();
    contents
}
