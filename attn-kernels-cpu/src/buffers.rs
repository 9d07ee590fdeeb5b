//! What the caller's buffers must be like, and where the tiles in its scratch begin.

use attn_core::{Error, Layout, Result};

/// Bytes to which tiles are aligned: a 64-byte vector that crosses a cache line costs twice.
const ALIGN: usize = 64;

/// Elements of scratch that alignment may cost.
pub(crate) const fn margin<A>() -> usize {
    ALIGN / size_of::<A>()
}

/// The scratch from its first aligned element on; at most [`margin`] elements are lost.
pub(crate) fn aligned<A>(scratch: &mut [A]) -> &mut [A] {
    let skip = scratch.as_ptr().align_offset(ALIGN).min(margin::<A>());
    &mut scratch[skip..]
}

/// A scratch must be long enough.
pub(crate) fn enough(got: usize, wanted: usize) -> Result<()> {
    if got >= wanted {
        return Ok(());
    }
    Err(Error::Scratch {
        argument: "tiles",
        got,
        wanted,
    })
}

/// Rows may lie anywhere, the elements of one must lie side by side.
pub(crate) fn contiguous_columns(argument: &'static str, layout: &Layout) -> Result<()> {
    match (layout.shape().last(), layout.strides().last()) {
        (Some(&columns), Some(&stride)) if columns > 1 && stride != 1 => Err(Error::Strides {
            argument,
            wanted: "a contiguous last axis",
        }),
        _ => Ok(()),
    }
}
