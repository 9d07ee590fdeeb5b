//! The buffers that a call works in, given by the caller.

#[cfg(feature = "alloc")]
use crate::plan::ScratchSizes;
#[cfg(feature = "alloc")]
use alloc::vec::Vec;
#[cfg(feature = "alloc")]
use attn_core::{Host, Result};

use attn_core::{Element, Storage};

/// The buffers that a call works in; [`Plan::scratch`](crate::Plan::scratch) gives their sizes, [`Plan::forward_scratch`](crate::Plan::forward_scratch)
/// and [`Plan::backward_scratch`](crate::Plan::backward_scratch) those for gradients. Longer ones are fine.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
pub struct Scratch<'s, S: Storage, T: Element> {
    /// Projected queries; in a backward pass their gradient.
    pub q: &'s mut S::Buf<T>,
    /// Projected keys; in decoding the cache takes their place; in a backward pass their gradient.
    pub k: &'s mut S::Buf<T>,
    /// Projected values; in decoding the cache takes their place; in a backward pass their gradient.
    pub v: &'s mut S::Buf<T>,
    /// Output of the attention core; in a backward pass its gradient.
    pub context: &'s mut S::Buf<T>,
    /// The kernels' own tiles.
    pub tiles: &'s mut S::Buf<T::Acc>,
}

impl<S: Storage, T: Element> core::fmt::Debug for Scratch<'_, S, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// A [`Scratch`] that owns its buffers, on the host. Make it once, use it for every call.
#[cfg(feature = "alloc")]
#[derive(Debug, Clone, Default)]
pub struct OwnedScratch<T: Element> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    context: Vec<T>,
    tiles: Vec<T::Acc>,
}

#[cfg(feature = "alloc")]
impl<T: Element> OwnedScratch<T> {
    /// Buffers of these sizes.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`](crate::Error::TooLarge) if there is no memory for them.
    pub fn new(sizes: &ScratchSizes) -> Result<Self> {
        Ok(Self {
            q: buffer(sizes.q)?,
            k: buffer(sizes.k)?,
            v: buffer(sizes.v)?,
            context: buffer(sizes.context)?,
            tiles: buffer(sizes.tiles)?,
        })
    }

    /// The buffers, borrowed.
    pub fn borrow(&mut self) -> Scratch<'_, Host, T> {
        Scratch {
            q: &mut self.q,
            k: &mut self.k,
            v: &mut self.v,
            context: &mut self.context,
            tiles: &mut self.tiles,
        }
    }
}

/// A buffer of zeros.
#[cfg(feature = "alloc")]
pub(crate) fn buffer<T: Element>(len: usize) -> Result<Vec<T>> {
    crate::tensor::filled(T::default(), len, &attn_core::Dims::new(&[len])?)
}
