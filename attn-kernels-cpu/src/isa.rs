//! Instruction sets by name, and whether this machine has them.

use crate::simd::Level;
use attn_core::{Error, Result};
use core::fmt;

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: every target, no SIMD but what the compiler finds.
    Portable,
    /// x86-64 with AVX2, FMA and F16C (x86-64-v3).
    Avx2,
    /// x86-64 with the AVX-512 of Ice Lake and Zen 4.
    Avx512,
    /// 64-bit ARM.
    Neon,
    /// WebAssembly compiled with `simd128`.
    WasmSimd128,
}

impl Isa {
    /// Every instruction set, on whatever machine.
    pub const ALL: [Self; 5] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512,
        Self::Neon,
        Self::WasmSimd128,
    ];

    /// Its name in tests, tables and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::WasmSimd128 => "wasm_simd128",
        }
    }

    /// The instruction set with this name, or `None`.
    ///
    /// ```
    /// use attn_kernels_cpu::Isa;
    /// assert_eq!(Isa::from_name("avx2"), Some(Isa::Avx2));
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// The best one of this machine; without `std` the best one of the compilation target.
    #[must_use]
    pub fn detect() -> Self {
        [Self::Avx512, Self::Avx2, Self::Neon, Self::WasmSimd128]
            .into_iter()
            .find(|isa| isa.level().is_ok())
            .unwrap_or(Self::Portable)
    }

    /// The proof that this machine has it.
    pub(crate) fn level(self) -> Result<Level> {
        Level::find(self).ok_or(Error::Unsupported {
            backend: self.name(),
            feature: "this machine: it has other instructions",
            instead: "Choose another instruction set, or let `Cpu::detect` choose",
        })
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
