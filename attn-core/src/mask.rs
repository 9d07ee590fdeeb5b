//! Which keys a query sees. Polarity and alignment are part of the type, so neither can be passed upside down.

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

/// A causal mask without a tensor: query `q` sees key `k` if `k <= q + shift`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Causal(Alignment);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alignment {
    TopLeft,
    BottomRight,
    Offset(isize),
}

impl Causal {
    /// Query 0 sees key 0: `make_causal_mask`, `is_causal` of PyTorch and JAX.
    #[must_use]
    pub const fn top_left() -> Self {
        Self(Alignment::TopLeft)
    }

    /// The last query sees the last key: FlashAttention, ONNX with a past.
    #[must_use]
    pub const fn bottom_right() -> Self {
        Self(Alignment::BottomRight)
    }

    /// Query 0 sees keys `0..=offset`: queries that continue a cache of `offset` tokens.
    #[must_use]
    pub const fn offset(offset: isize) -> Self {
        Self(Alignment::Offset(offset))
    }

    /// How many keys beyond its own index a query sees; negative if fewer.
    #[must_use]
    pub const fn shift(self, query_length: usize, key_length: usize) -> isize {
        match self.0 {
            Alignment::TopLeft => 0,
            Alignment::BottomRight => (key_length as isize).wrapping_sub(query_length as isize),
            Alignment::Offset(offset) => offset,
        }
    }

    /// Whether `query` sees `key`.
    #[must_use]
    pub const fn sees(
        self,
        query: usize,
        key: usize,
        query_length: usize,
        key_length: usize,
    ) -> bool {
        key < self.visible(query, query_length, key_length)
    }

    /// How many keys, from the first on, `query` sees: at most `key_length`.
    #[must_use]
    pub const fn visible(self, query: usize, query_length: usize, key_length: usize) -> usize {
        let end = (query as isize)
            .saturating_add(self.shift(query_length, key_length))
            .saturating_add(1);
        if end <= 0 {
            0
        } else if (end as usize) < key_length {
            end as usize
        } else {
            key_length
        }
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

    #[test]
    fn alignments_differ_where_lengths_do() {
        assert_eq!(Causal::top_left().visible(0, 2, 5), 1);
        assert_eq!(Causal::bottom_right().visible(0, 2, 5), 4);
        assert_eq!(Causal::bottom_right().visible(0, 5, 2), 0);
        assert_eq!(Causal::offset(isize::MAX).visible(3, 4, 9), 9);
        assert_eq!(Causal::offset(isize::MIN).visible(3, 4, 9), 0);
    }
}
