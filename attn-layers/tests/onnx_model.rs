//! Nodes of attention from model files: recorded ones, damaged ones, and what a node refuses.
#![cfg(feature = "onnx")]
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a test has std"
)]

mod support;

use attn_layers::HostKernels;
use attn_layers::cpu::Cpu;
use attn_layers::io::{Problem, Tree};
use attn_layers::onnx::{Model, ModelError, Node, Operator, Opset, Outputs};
use attn_layers::tensor::{Tensor, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const NAMES: [&str; 5] = [
    "attention_mask_in_the_file",
    "microsoft_multi_head_padding",
    "microsoft_multi_head_lengths",
    "microsoft_multi_head_bias",
    "microsoft_projecting",
];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/onnx/models")
        .join(name)
}

fn model_file(name: &str) -> Vec<u8> {
    fs::read(file(&format!("{name}.onnx"))).expect("a recorded model")
}

/// A recorded model's arrays by name: `given/…`, `expected/…`, `atol/…`.
fn arrays(name: &str) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(file(&format!("{name}.safetensors"))).expect("recorded arrays");
    let tree = Tree::read(&bytes).expect("a sound file");
    let entries = tree.entries().filter_map(|entry| {
        let tensor = entry.tensor()?.to_tensor().expect("a small array");
        Some((entry.path(), tensor))
    });
    entries.collect()
}

fn given(arrays: &BTreeMap<String, Tensor>) -> Vec<(&str, TensorView<'_>)> {
    arrays
        .iter()
        .filter_map(|(path, tensor)| Some((path.strip_prefix("given/")?, tensor.view())))
        .collect()
}

fn apply(node: &Node<'_>, given: &[(&str, TensorView<'_>)]) -> Result<Outputs, ModelError> {
    node.apply(&Cpu::detect(), given)
}

fn every_model_gives_what_was_recorded<B: HostKernels>(backend: &B) {
    for name in NAMES {
        let (bytes, arrays) = (model_file(name), arrays(name));
        let model = Model::read(&bytes).expect("a sound file");
        let node = model.node(None).expect("one node");
        let outputs = node.apply(backend, &given(&arrays)).expect(name);
        let named = [
            ("y", Some(outputs.y)),
            ("present_key", outputs.present_key),
            ("present_value", outputs.present_value.clone()),
            ("present", outputs.present_value),
            ("scores", outputs.qk_matmul_output),
        ];
        let mut compared = 0;
        for (output, got) in named {
            let Some(exact) = arrays.get(&format!("expected/{output}")) else {
                continue;
            };
            let got = got.expect("the model uses it");
            assert_eq!(got.shape(), exact.shape(), "{name}: {output}");
            let atol = arrays[&format!("atol/{output}")].to_vec_f64()[0];
            for (got, exact) in got.to_vec_f64().into_iter().zip(exact.to_vec_f64()) {
                let fits = got == exact || (got - exact).abs() <= atol;
                assert!(
                    fits,
                    "{name}: {output} is {got}, wanted {exact}, allowed {atol}"
                );
            }
            compared += 1;
        }
        let recorded = arrays.keys().filter(|path| path.starts_with("expected/"));
        assert_eq!(compared, recorded.count(), "{name}");
    }
}

#[test]
fn every_model_gives_what_was_recorded_on_the_cpu() {
    every_model_gives_what_was_recorded(&Cpu::detect());
}

#[test]
fn every_model_gives_what_was_recorded_in_plain_arithmetic() {
    every_model_gives_what_was_recorded(&support::plain());
}

#[test]
fn a_node_says_what_it_is_and_needs() {
    let bytes = model_file(NAMES[0]);
    let model = Model::read(&bytes).expect("a sound file");
    let node = model.node(Some("core")).expect("of that name");
    assert_eq!(node.operator(), Operator::Attention(Opset::V24));
    assert_eq!(node.open_inputs().collect::<Vec<_>>(), [("Q", "queries")]);
    let missing = model.node(Some("other")).expect_err("no such node");
    assert!(missing.to_string().contains("other"));
    let bytes = model_file("microsoft_projecting");
    let model = Model::read(&bytes).expect("a sound file");
    let node = model.nodes().next().expect("one node");
    assert_eq!(node.operator(), Operator::MicrosoftAttention);
    let open = [("input", "states"), ("mask_index", "mask")];
    assert_eq!(node.open_inputs().collect::<Vec<_>>(), open);
}

#[test]
fn inputs_must_be_given_and_no_others() {
    let (bytes, arrays) = (model_file(NAMES[0]), arrays(NAMES[0]));
    let model = Model::read(&bytes).expect("a sound file");
    let node = model.node(None).expect("one node");
    let queries = arrays["given/queries"].view();
    let missing = apply(node, &[]).expect_err("no queries");
    assert!(matches!(
        missing,
        ModelError::InputMissing { input: "Q", .. }
    ));
    for other in ["keys", "nothing"] {
        let refused = apply(node, &[("queries", queries), (other, queries)]);
        assert!(matches!(refused, Err(ModelError::NoInput { value }) if value == other));
    }
    let wrong = apply(node, &[("queries", arrays["expected/present"].view())]);
    assert!(matches!(wrong, Err(ModelError::Call(_))));
}

/// The place of `text` in a file.
fn place(bytes: &[u8], text: &str) -> usize {
    let found = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes());
    found.expect("the file has this text")
}

#[test]
fn unknown_attributes_and_operators_are_refused() {
    let arrays = arrays(NAMES[0]);
    let mut bytes = model_file(NAMES[0]);
    let at = place(&bytes, "is_causal");
    bytes[at..at + 9].copy_from_slice(b"is_casual");
    let model = Model::read(&bytes).expect("a sound file");
    let refused = apply(model.node(None).expect("one node"), &given(&arrays));
    assert_eq!(
        refused,
        Err(ModelError::Attribute {
            name: "is_casual".to_owned()
        })
    );
    let mut bytes = model_file(NAMES[0]);
    let at = place(&bytes, "Attention");
    bytes[at..at + 9].copy_from_slice(b"attention");
    let model = Model::read(&bytes).expect("a sound file");
    assert_eq!(
        model.node(None).map(|_| ()),
        Err(ModelError::NoNode { name: None })
    );
}

#[test]
fn two_arrays_of_one_name_are_refused() {
    let mut bytes = model_file("microsoft_projecting");
    // The initializers stand behind the node, whose own names are changed alike.
    while let Some(at) = bytes.windows(7).position(|window| window == b"weights") {
        bytes[at..at + 7].copy_from_slice(b"the_one");
    }
    assert!(Model::read(&bytes).is_ok());
    let mut bytes = model_file("attention_mask_in_the_file");
    while let Some(at) = bytes.windows(4).position(|window| window == b"keys") {
        bytes[at..at + 4].copy_from_slice(b"mask");
    }
    let error = Model::read(&bytes).expect_err("two arrays named mask");
    assert_eq!(error.problem, Problem::Duplicate);
}

#[test]
fn no_damage_is_a_panic() {
    for name in NAMES {
        let (whole, arrays) = (model_file(name), arrays(name));
        let given = given(&arrays);
        let try_all = |bytes: &[u8]| {
            let Ok(model) = Model::read(bytes) else {
                return;
            };
            for node in model.nodes() {
                // Whatever it gives: no call of a damaged node may end otherwise than by a result.
                let _ = node.apply(&support::plain(), &given);
            }
        };
        for length in 0..whole.len() {
            try_all(&whole[..length]);
        }
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                try_all(&bytes);
            }
        }
    }
}
