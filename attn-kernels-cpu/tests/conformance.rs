//! The conformance suite on every instruction set, each forced: `avx2::bf16::causal`.

use attn_core::Error;
use attn_kernels_cpu::{Cpu, Isa};

attn_core::conformance_tests!(portable, Ok::<_, Error>(Cpu::portable()));
attn_core::conformance_tests!(avx2, Cpu::with_isa(Isa::Avx2));
attn_core::conformance_tests!(avx512, Cpu::with_isa(Isa::Avx512));
attn_core::conformance_tests!(neon, Cpu::with_isa(Isa::Neon));
attn_core::conformance_tests!(wasm_simd128, Cpu::with_isa(Isa::WasmSimd128));
