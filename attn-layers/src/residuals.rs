//! What a forward pass of a typed layer keeps for the backward pass, in buffers of the caller's.

#[cfg(feature = "alloc")]
use crate::plan::ResidualSizes;
#[cfg(feature = "alloc")]
use crate::scratch::buffer;
#[cfg(feature = "alloc")]
use alloc::vec::Vec;
#[cfg(feature = "alloc")]
use attn_core::{Host, Result};

use attn_core::{Element, Storage};

/// What a forward pass keeps; [`Plan::residuals`](crate::Plan::residuals) gives the sizes. Longer ones are fine. The weights are not among it: they are
/// made again.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
pub struct ResidualBuffers<'r, S: Storage, T: Element> {
    /// Queries as the attention core reads them, `[batch..., query_length, num_heads, head_dim]`. What they were before a layer norm is
    /// projected again.
    pub q: &'r mut S::Buf<T>,
    /// Keys, likewise, `[batch..., key_length, num_kv_heads, head_dim]`.
    pub k: &'r mut S::Buf<T>,
    /// Values, of the keys' shape.
    pub v: &'r mut S::Buf<T>,
    /// Output of the attention core.
    pub context: &'r mut S::Buf<T>,
    /// What softmax left of each row, `[batch..., heads, query_length, 2]`.
    pub statistics: &'r mut S::Buf<T::Acc>,
}

impl<S: Storage, T: Element> core::fmt::Debug for ResidualBuffers<'_, S, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ResidualBuffers").finish_non_exhaustive()
    }
}

/// [`ResidualBuffers`] that own their memory, on the host.
#[cfg(feature = "alloc")]
#[derive(Debug, Clone, Default)]
pub struct OwnedResiduals<T: Element> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    context: Vec<T>,
    statistics: Vec<T::Acc>,
}

#[cfg(feature = "alloc")]
impl<T: Element> OwnedResiduals<T> {
    /// Buffers of these sizes.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`](crate::Error::TooLarge) if there is no memory for them.
    pub fn new(sizes: &ResidualSizes) -> Result<Self> {
        Ok(Self {
            q: buffer(sizes.q)?,
            k: buffer(sizes.k)?,
            v: buffer(sizes.v)?,
            context: buffer(sizes.context)?,
            statistics: buffer(sizes.statistics)?,
        })
    }

    /// The buffers, borrowed.
    pub fn borrow(&mut self) -> ResidualBuffers<'_, Host, T> {
        ResidualBuffers {
            q: &mut self.q,
            k: &mut self.k,
            v: &mut self.v,
            context: &mut self.context,
            statistics: &mut self.statistics,
        }
    }
}
