//! Mask tensors. Polarity is part of the type, so it cannot be passed upside down.

use crate::view::{Host, Storage, View};
use core::fmt;

/// What a query gets that sees no key at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FullyMasked {
    /// The mean of all values, masked ones included: what Flax's finite fill value amounts to.
    #[default]
    MeanOfValues,
    /// Zero, as ONNX, PyTorch and FlashAttention define it.
    Zero,
}

/// What a set byte of a mask tensor means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Polarity {
    Keep,
    Drop,
}

/// A mask tensor of bytes that broadcasts to `[batch..., heads, query_length, key_length]`.
///
/// There is no constructor that leaves the meaning of a set byte open.
pub struct Mask<'a, S: Storage> {
    view: View<'a, S, u8>,
    polarity: Polarity,
}

impl<'a, S: Storage> Mask<'a, S> {
    /// A byte other than 0 means: the query sees the key (Flax, JAX, `scaled_dot_product_attention`, ONNX).
    #[must_use]
    pub const fn keep(view: View<'a, S, u8>) -> Self {
        Self {
            view,
            polarity: Polarity::Keep,
        }
    }

    /// A byte other than 0 means: the query does not see the key (`torch.nn.MultiheadAttention`, burn).
    #[must_use]
    pub const fn drop(view: View<'a, S, u8>) -> Self {
        Self {
            view,
            polarity: Polarity::Drop,
        }
    }

    /// The bytes.
    #[must_use]
    pub const fn view(&self) -> &View<'a, S, u8> {
        &self.view
    }

    /// Whether a byte other than 0 lets the query see the key. A kernel compares `(byte != 0) == set_means_keep()`.
    #[must_use]
    pub const fn set_means_keep(&self) -> bool {
        matches!(self.polarity, Polarity::Keep)
    }
}

impl Mask<'_, Host> {
    /// Whether the query at `index` (all axes but the last) sees `key`. For tests and tools; kernels read whole rows.
    #[must_use]
    pub fn sees(&self, index: &[usize], key: usize) -> bool {
        let rank = self.view.shape().rank();
        let stride = rank
            .checked_sub(1)
            .map_or(0, |last| self.view.layout().strides()[last]);
        let byte = self
            .view
            .buf()
            .get(self.view.layout().at(index) + key * stride);
        byte.is_some_and(|&byte| (byte != 0) == self.set_means_keep())
    }
}

impl<S: Storage> Clone for Mask<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage> Copy for Mask<'_, S> {}

impl<S: Storage> fmt::Debug for Mask<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask::{:?}({:?})", self.polarity, self.view.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::HostView;

    #[test]
    fn polarity_turns_the_same_bytes_around() {
        let bytes = [1u8, 0];
        let view = HostView::new(&bytes, &[1, 2]).unwrap();
        assert!(Mask::keep(view).sees(&[0], 0) && !Mask::drop(view).sees(&[0], 0));
        assert!(!Mask::keep(view).sees(&[0], 1) && Mask::drop(view).sees(&[0], 1));
    }
}
