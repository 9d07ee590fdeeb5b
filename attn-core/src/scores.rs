//! How scores are made from queries and keys.
//!
//! ```text
//! s = scale · (q · k)
//! s = softcap · tanh(s / softcap)
//! s = s + bias + slope · -|position - k| + table[k - position]
//! s = fill where the query does not see the key
//! ```
//!
//! Sinks are no scores of keys: a head's sink takes part in its softmax as one more score, of a key without a value. It is part of a row's
//! statistics, it has no weight among those that a call may ask for, and dropout does not touch it. A row that sees no key and gets zero has the sink and 1 for its
//! statistics.

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::position::Alignment;
use crate::request::AttentionShape;
use crate::view::{Flat, Storage, View};

/// What scores are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Scale {
    /// `1 / sqrt(depth)`, Flax's.
    #[default]
    InverseSqrtDepth,
    /// A number of the caller's.
    Value(f64),
}

impl Scale {
    /// The factor for queries of `depth`.
    ///
    /// ```
    /// assert_eq!(attn_core::Scale::InverseSqrtDepth.factor(16, |x| x.sqrt()), 0.25);
    /// ```
    ///
    /// `sqrt` is the caller's, since `core` has none.
    pub fn factor(self, depth: usize, sqrt: impl Fn(f64) -> f64) -> f64 {
        match self {
            Self::InverseSqrtDepth => 1.0 / sqrt(depth as f64),
            Self::Value(value) => value,
        }
    }
}

/// How scores are made from a query and a key.
#[derive(Debug)]
#[non_exhaustive]
pub struct Scores<'a, S: Storage, T: Element> {
    /// The factor on the dot product.
    pub scale: Scale,
    /// Added to the scaled scores before the mask; broadcasts to `[batch..., heads, query_length, key_length]`.
    pub bias: Option<View<'a, S, T::Acc>>,
    /// `c` of `c · tanh(s / c)`, which keeps scores between `-c` and `c` (Gemma 2); above 0.
    pub softcap: Option<f64>,
    /// Slopes against distance.
    pub alibi: Option<Alibi<'a, S, T>>,
    /// A table of what distances add.
    pub relative: Option<Relative<'a, S, T>>,
    /// A score for each query head, `[heads]`, that takes part in softmax beside those of the keys (attention sinks).
    pub sinks: Option<Flat<'a, S, T::Acc>>,
}

/// Attention with linear biases: `-slope · |position - k|` is added to a score (Press et al. 2022).
#[derive(Debug)]
pub struct Alibi<'a, S: Storage, T: Element> {
    /// The slope of each query head, `[heads]`.
    pub slopes: Flat<'a, S, T::Acc>,
    /// Where the queries lie.
    pub alignment: Alignment,
}

/// Relative position bias: `table[head, clamp(k - position + zero)]` is added to a score. Distances beyond the table have its first or last
/// entry. Buckets (T5) are tables with equal entries.
#[derive(Debug)]
pub struct Relative<'a, S: Storage, T: Element> {
    /// `[heads, distances]`.
    pub table: Flat<'a, S, T::Acc>,
    /// The column of distance 0.
    pub zero: usize,
    /// Where the queries lie.
    pub alignment: Alignment,
}

impl<S: Storage, T: Element> Relative<'_, S, T> {
    /// Columns of the table for `num_heads` rows; 0 if there is none.
    #[must_use]
    pub fn distances(&self, num_heads: usize) -> usize {
        self.table.len().checked_div(num_heads).unwrap_or(0)
    }

    /// The column for a key and a query's position.
    #[must_use]
    pub const fn column(zero: usize, distances: usize, key: usize, position: isize) -> usize {
        let column = (key as isize)
            .saturating_sub(position)
            .saturating_add_unsigned(zero);
        if column <= 0 {
            0
        } else if (column as usize) < distances {
            column as usize
        } else {
            distances.saturating_sub(1)
        }
    }
}

/// How far scores have come on their way to weights.
///
/// Up to [`Stage::Capped`] hidden keys have their scores too. Where there is no key for a query, outside of its sequence or lost from a ring, there is 0, and at
/// [`Stage::Masked`] what hidden keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// The product with the scale: ONNX's `qk_matmul_output_mode` 0.
    Scaled,
    /// After the softcap: mode 1.
    Capped,
    /// With all that is added, and where a query does not see a key the lowest finite number of the accumulator, or -inf under
    /// [`FullyMasked::Zero`](crate::FullyMasked::Zero): mode 2.
    Masked,
    /// After softmax: mode 3.
    #[default]
    Softmax,
}

impl<S: Storage, T: Element> Default for Scores<'_, S, T> {
    fn default() -> Self {
        Self {
            scale: Scale::default(),
            bias: None,
            softcap: None,
            alibi: None,
            relative: None,
            sinks: None,
        }
    }
}

impl<S: Storage, T: Element> Clone for Alibi<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for Alibi<'_, S, T> {}

impl<S: Storage, T: Element> Clone for Relative<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for Relative<'_, S, T> {}

impl<S: Storage, T: Element> Scores<'_, S, T> {
    /// Checks that all parts fit a call; `weights` is the shape of its weights.
    pub(crate) fn check(&self, shape: &AttentionShape, weights: &Dims) -> Result<()> {
        if let Some(bias) = &self.bias {
            bias.broadcast_to("bias", weights)?;
        }
        if let Some(got) = self.softcap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
            return Err(Error::Softcap { got });
        }
        let heads = shape.num_heads;
        if let Some(alibi) = &self.alibi {
            alibi.slopes.check_len("alibi slopes", heads)?;
        }
        if let Some(relative) = &self.relative {
            let wanted = relative.distances(heads).max(1).saturating_mul(heads);
            relative.table.check_len("relative table", wanted)?;
        }
        match &self.sinks {
            Some(sinks) => sinks.check_len("sinks", heads),
            None => Ok(()),
        }
    }
}
