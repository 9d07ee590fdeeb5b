//! ONNX model files: whatever is read can be computed, or says why not.
#![no_main]

use attn_layers::cpu::{Cpu, Isa};
use attn_layers::onnx::Model;
use attn_layers::tensor::TensorView;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Model::read(bytes) else {
        return;
    };
    let numbers = [0.5f32; 2 * 4 * 6];
    let Ok(cpu) = Cpu::with_isa(Isa::Portable) else {
        return;
    };
    for node in model.nodes() {
        for shape in [&[2, 4, 6][..], &[2, 1, 4, 6]] {
            let Ok(input) = TensorView::from_slice(&numbers, shape) else {
                return;
            };
            let given: Vec<_> = node
                .open_inputs()
                .map(|(_, value)| (value, input))
                .collect();
            let _ = node.apply(&cpu, &given);
        }
    }
});
