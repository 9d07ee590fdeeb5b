//! Counts the instructions of six calls under Callgrind: `cargo xtask instructions` runs it and holds the counts against
//! `instructions.json`.
//!
//! Instruction set and thread are fixed, so that every machine of an architecture counts the same: AVX2, since Valgrind knows no
//! AVX-512, and the caller's thread. Arrays are made, and the call is run once, before the counting starts. Sizes are as small as they can
//! be without the loops of large ones becoming rare.

#![expect(
    missing_docs,
    unused_qualifications,
    reason = "in what the macros of gungraun write"
)]

#[path = "../hot_path/mod.rs"]
mod hot_path;

use attn_layers::core::{Element, Kernels};
use attn_layers::cpu::Isa;
use attn_layers::{Cpu, Result, bf16};
use core::hint::black_box;
use gungraun::prelude::*;
use hot_path::attention::{self, Core, Parts};
use hot_path::layer::{self, Decoding, Forward};

/// A call, ready to be made.
struct Ready<C> {
    cpu: Cpu,
    call: C,
}

/// Makes the call's arrays and runs it once, so that nothing is left to be initialised.
fn ready<C>(
    make: impl FnOnce(&Cpu) -> Result<C>,
    warm_up: impl FnOnce(&mut C, &Cpu) -> Result<()>,
) -> Ready<C> {
    let cpu = Cpu::with_isa(Isa::Avx2).expect("a machine with AVX2");
    let mut call = make(&cpu).expect("right sizes");
    warm_up(&mut call, &cpu).expect("a right call");
    Ready { cpu, call }
}

/// As a program has its parameters that keeps them.
const PACKED: layer::Options = layer::Options {
    normalize_qk: false,
    packed: true,
};

fn middle_layer() -> Ready<Forward<f32>> {
    forward(layer::Sizes {
        batch: 1,
        length: 128,
        features: 256,
        heads: 4,
    })
}

fn small_layer() -> Ready<Forward<f32>> {
    forward(layer::Sizes {
        batch: 1,
        length: 16,
        features: 64,
        heads: 4,
    })
}

fn forward(sizes: layer::Sizes) -> Ready<Forward<f32>> {
    ready(|cpu| Forward::new(cpu, sizes, PACKED), Forward::apply)
}

fn decoding<T: Element>() -> Ready<Decoding<T>>
where
    Cpu: Kernels<T>,
{
    let sizes = layer::Sizes {
        batch: 1,
        length: 1024,
        features: 256,
        heads: 4,
    };
    ready(|cpu| Decoding::new(cpu, sizes, PACKED), Decoding::step)
}

/// Several tiles of keys for each query.
const CORE: attention::Sizes = attention::Sizes {
    length: 256,
    heads: 2,
    depth: 64,
};

fn core(parts: Parts) -> Ready<Core<f32>> {
    ready(|cpu| Core::new(cpu, CORE, parts), Core::forward)
}

fn causal_core() -> Ready<Core<f32>> {
    core(Parts {
        causal: true,
        ..Parts::default()
    })
}

fn dropout_core() -> Ready<Core<f32>> {
    core(Parts {
        dropout: true,
        ..Parts::default()
    })
}

/// After a forward pass, whose statistics it reads, and one backward pass.
fn backward_core() -> Ready<Core<f32>> {
    ready(
        |cpu| Core::new(cpu, CORE, Parts::default()),
        |core, cpu| {
            core.forward(cpu)?;
            core.backward(cpu)
        },
    )
}

// What was given is given back, so that freeing it is not counted.

#[library_benchmark]
#[bench::middle(setup = middle_layer)]
#[bench::small(setup = small_layer)]
fn layer_forward(mut ready: Ready<Forward<f32>>) -> Ready<Forward<f32>> {
    black_box(ready.call.apply(&ready.cpu)).expect("a right call");
    ready
}

#[library_benchmark]
#[bench::bf16(setup = decoding)]
fn layer_decode(mut ready: Ready<Decoding<bf16>>) -> Ready<Decoding<bf16>> {
    black_box(ready.call.step(&ready.cpu)).expect("a right call");
    ready
}

#[library_benchmark]
#[bench::causal(setup = causal_core)]
#[bench::dropout(setup = dropout_core)]
fn core_forward(mut ready: Ready<Core<f32>>) -> Ready<Core<f32>> {
    black_box(ready.call.forward(&ready.cpu)).expect("a right call");
    ready
}

#[library_benchmark]
#[bench::plain(setup = backward_core)]
fn core_backward(mut ready: Ready<Core<f32>>) -> Ready<Core<f32>> {
    black_box(ready.call.backward(&ready.cpu)).expect("a right call");
    ready
}

/// The harness that gungraun writes.
mod harness {
    use super::{core_backward, core_forward, layer_decode, layer_forward};
    use gungraun::prelude::*;

    library_benchmark_group!(
        name = counts,
        benchmarks = [layer_forward, layer_decode, core_forward, core_backward]
    );

    main!(library_benchmark_groups = counts);

    pub(super) fn run() {
        main();
    }
}

/// The first thread's stack begins where arguments and environment end, and how the C library copies memory depends on where that lies. A
/// thread of our own has a stack that begins with a page, whatever the folder's name.
fn main() {
    let thread = std::thread::spawn(harness::run);
    thread.join().expect("the harness to end well");
}
