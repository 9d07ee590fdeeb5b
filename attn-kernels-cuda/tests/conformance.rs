//! The conformance suite: on device 0 if there is one, else on the emulator, which runs the same PTX. `ATTN_CUDA` chooses: `device` or
//! `emulator`.
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a test has std"
)]
#![expect(clippy::print_stderr, reason = "the log must say what ran")]

use attn_cuda_emulator::{Emulator, Options};
use attn_kernels_cuda::{Cuda, CudaDevice, CudaError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Backends that tests take turns with: an emulator does one launch after another, and its modules are read once.
const SHARED: usize = 2;

fn backend() -> Result<Cuda, CudaError> {
    static BACKENDS: [OnceLock<Result<Cuda, CudaError>>; SHARED] =
        [const { OnceLock::new() }; SHARED];
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let shared = &BACKENDS[TURN.fetch_add(1, Ordering::Relaxed) % SHARED];
    let opened = shared.get_or_init(|| {
        let opened = open();
        if let Ok(cuda) = &opened {
            eprintln!("BACKEND cuda: {:?}", cuda.device().info());
        }
        opened
    });
    opened.clone()
}

fn open() -> Result<Cuda, CudaError> {
    match std::env::var("ATTN_CUDA").as_deref() {
        Ok("device") => Cuda::new(0),
        Ok("emulator") => Ok(emulated()),
        _ => Cuda::new(0).or_else(|_| Ok(emulated())),
    }
}

/// A finding is a panic, so that a failed test shows all of it.
fn emulated() -> Cuda {
    Cuda::on(CudaDevice::with_driver(Arc::new(Emulator::new(Options {
        panic_on_finding: true,
        ..Options::default()
    }))))
}

attn_core::conformance_tests!(cuda, backend());
