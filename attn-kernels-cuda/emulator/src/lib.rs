//! An emulator of NVIDIA GPUs for the tests of `attn-kernels-cuda`: it runs the very PTX that the crate ships, on any machine, and checks
//! every access.
//!
//! ```
//! use attn_cuda_emulator::{Emulator, Options};
//! use attn_kernels_cuda::driver::Driver;
//!
//! let device = Emulator::new(Options::default());
//! let memory = device.allocate(16)?;
//! assert_eq!(device.unwritten(memory, 16)?, Some(0));
//! # Ok::<(), attn_kernels_cuda::driver::DriverError>(())
//! ```
//!
//! | module | subject |
//! |---|---|
//! | `lexer`, `module`, `types` | a module's text |
//! | `decode`, `program` | a kernel, made ready: every name a row of a register file |
//! | `alu`, `lanes`, `atomic` | arithmetic of 32 lanes |
//! | `warp` | registers, divergence and reconvergence |
//! | `step`, `block` | one instruction; the warps of a block |
//! | `access`, `collective`, `barrier` | what a lane reads and writes; what lanes, and what warps do together |
//! | `tensor`, `wgmma` | products of a warp and of a warpgroup |
//! | `copy`, `bulk`, `mbarrier` | asynchronous copies, and what counts them |
//! | `global`, `shared`, `local`, `clocks` | memory, what is known of its bytes, and what happened before what |
//! | `finding`, `report` | what is wrong, what was done |
//! | `emulator` | the device |
//!
//! # What it is true to
//!
//! Arithmetic is rounded correctly, also where a device approximates (`ex2.approx`). Sums of matrix products are `f32` in the order of
//! the inner index. Lanes of a warp run in lockstep and come together at the lowest instruction; a collective waits for the lanes that
//! its mask names. Blocks run one after another; accesses of two blocks that nothing orders are found all the same.
//!
//! # What it cannot see
//!
//! Speed. Errors of the assembler, which makes machine code of PTX. How a device rounds approximations, and in which order its tensor
//! cores add. Registers that `setmaxnreg` moves, and what waits for them.

extern crate alloc;

mod access;
mod alu;
mod atomic;
mod barrier;
mod block;
mod bulk;
mod clocks;
mod collective;
mod copy;
mod decode;
mod emulator;
mod finding;
mod global;
mod lanes;
mod lexer;
mod local;
mod mbarrier;
mod module;
mod program;
mod report;
mod shared;
mod step;
mod tensor;
mod types;
mod warp;
mod wgmma;

pub use emulator::{Emulator, Options, WarpOrder};
pub use finding::{Finding, FindingKind};
pub use report::Report;
