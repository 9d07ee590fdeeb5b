//! Masks that follow from positions alone: causal ones and windows. Where queries lie among keys is part of the type.

use core::ops::Range;

/// Where the queries lie among the keys: query `q` is at position `q + shift`, key `k` at position `k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alignment {
    /// Query 0 is at key 0: `make_causal_mask`, `is_causal` of PyTorch and JAX.
    #[default]
    TopLeft,
    /// The last query is at the last key: FlashAttention, ONNX with a past.
    BottomRight,
    /// Query 0 is at this key: queries that continue a cache of that many tokens.
    Offset(isize),
}

impl Alignment {
    /// The position of query 0; negative if it lies before key 0. The lengths are those of the query's own sequence.
    #[must_use]
    pub const fn shift(self, query_length: usize, key_length: usize) -> isize {
        match self {
            Self::TopLeft => 0,
            Self::BottomRight => (key_length as isize).wrapping_sub(query_length as isize),
            Self::Offset(offset) => offset,
        }
    }

    /// The position of a query.
    #[must_use]
    pub const fn position(self, query: usize, query_length: usize, key_length: usize) -> isize {
        (query as isize).saturating_add(self.shift(query_length, key_length))
    }
}

/// A window around each query: at position `p` it sees the keys from `p - left` to `p + right`, both ends among them; `None` is no end.
///
/// ```
/// use attn_core::{Alignment, Window};
/// let window = Window::new(Alignment::BottomRight, Some(2), Some(0));
/// assert_eq!(window.visible(0, 1, 10), 7..10);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Where the queries lie.
    pub alignment: Alignment,
    /// How many keys before its own a query sees.
    pub left: Option<usize>,
    /// How many keys after its own a query sees.
    pub right: Option<usize>,
}

impl Window {
    /// A window of these ends.
    #[must_use]
    pub const fn new(alignment: Alignment, left: Option<usize>, right: Option<usize>) -> Self {
        Self {
            alignment,
            left,
            right,
        }
    }

    /// The keys that `query` sees, an empty range among them.
    #[must_use]
    pub const fn visible(
        self,
        query: usize,
        query_length: usize,
        key_length: usize,
    ) -> Range<usize> {
        let position = self.alignment.position(query, query_length, key_length);
        let start = match self.left {
            Some(left) => clamped(position.saturating_sub_unsigned(left), key_length),
            None => 0,
        };
        let end = match self.right {
            Some(right) => clamped(
                position.saturating_add_unsigned(right).saturating_add(1),
                key_length,
            ),
            None => key_length,
        };
        if start < end {
            start..end
        } else {
            start..start
        }
    }
}

const fn clamped(position: isize, key_length: usize) -> usize {
    if position <= 0 {
        0
    } else if (position as usize) < key_length {
        position as usize
    } else {
        key_length
    }
}

/// A causal mask without a tensor: query `q` sees key `k` if `k <= q + shift`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Causal(Alignment);

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

    /// With the queries at this place.
    #[must_use]
    pub const fn aligned(alignment: Alignment) -> Self {
        Self(alignment)
    }

    /// How many keys beyond its own index a query sees; negative if fewer.
    #[must_use]
    pub const fn shift(self, query_length: usize, key_length: usize) -> isize {
        self.0.shift(query_length, key_length)
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
        let end = self.0.position(query, query_length, key_length);
        clamped(end.saturating_add(1), key_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_differ_where_lengths_do() {
        assert_eq!(Causal::top_left().visible(0, 2, 5), 1);
        assert_eq!(Causal::bottom_right().visible(0, 2, 5), 4);
        assert_eq!(Causal::bottom_right().visible(0, 5, 2), 0);
        assert_eq!(Causal::offset(isize::MAX).visible(3, 4, 9), 9);
        assert_eq!(Causal::offset(isize::MIN).visible(3, 4, 9), 0);
    }

    #[test]
    fn windows_end_where_keys_do() {
        let window = |left, right| Window::new(Alignment::TopLeft, left, right);
        assert_eq!(window(Some(1), Some(1)).visible(0, 4, 4), 0..2);
        assert_eq!(window(Some(1), Some(1)).visible(3, 4, 4), 2..4);
        assert_eq!(window(Some(0), Some(0)).visible(9, 10, 4), 4..4);
        assert_eq!(window(None, None).visible(9, 10, 4), 0..4);
        assert_eq!(
            window(Some(usize::MAX), Some(usize::MAX)).visible(3, 4, 9),
            0..9
        );
        let before = Window::new(Alignment::Offset(isize::MIN), Some(3), Some(3));
        assert_eq!(before.visible(0, 1, 9), 0..0);
    }
}
