//! What each operation checks and launches.

pub(crate) mod attend;
pub(crate) mod attend_backward;
mod boxes;
pub(crate) mod dense;
mod matrix;
pub(crate) mod norm;
pub(crate) mod tiles;

use attn_core::{DType, Error};

/// A scratch must be long enough before anything is written.
pub(crate) fn enough(got: usize, wanted: usize) -> Result<(), Error> {
    if got >= wanted {
        return Ok(());
    }
    Err(Error::Scratch {
        argument: "scratch",
        got,
        wanted,
    })
}

/// A dtype in the names of kernels.
pub(crate) const fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
    }
}
