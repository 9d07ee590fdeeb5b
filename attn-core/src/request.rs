//! One attention call as a value: how scores are made, which keys a query sees, where keys and values come from,
//! which outputs are asked for.
//!
//! Every part of a request is a bit in [`Features`]. A backend names the bits it can do, and
//! [`Attention::check_supported`] turns the first other one into a typed error, so a part that is added later can
//! never be left out silently by an older backend.

use crate::dropout::Dropout;
use crate::dtype::Element;
use crate::error::{Disagreement, Error, Result};
use crate::layout::Dims;
use crate::mask::{Causal, FullyMasked, Mask};
use crate::view::{Storage, View, ViewMut};

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
}

impl<S: Storage, T: Element> Default for Scores<'_, S, T> {
    fn default() -> Self {
        Self {
            scale: Scale::default(),
            bias: None,
        }
    }
}

/// Which keys a query sees: those that every part lets it see.
#[derive(Debug)]
#[non_exhaustive]
pub struct Visible<'a, S: Storage> {
    /// A causal mask without a tensor.
    pub causal: Option<Causal>,
    /// A mask tensor.
    pub mask: Option<Mask<'a, S>>,
    /// What a query gets that sees no key.
    pub fully_masked: FullyMasked,
}

impl<S: Storage> Default for Visible<'_, S> {
    fn default() -> Self {
        Self {
            causal: None,
            mask: None,
            fully_masked: FullyMasked::default(),
        }
    }
}

/// Where keys and values come from.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyValue<'a, S: Storage, T: Element> {
    /// Two arrays: key `[batch..., key_length, heads, depth]`, value `[batch..., key_length, heads, value_depth]`. A contiguous cache is
    /// this too, with [`Causal::offset`] to hide its unwritten slots.
    Dense {
        /// Keys.
        key: View<'a, S, T>,
        /// Values.
        value: View<'a, S, T>,
    },
}

/// What is asked for beside the output itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outputs<'a, S: Storage, T: Element> {
    /// The weights after softmax, `[batch..., heads, query_length, key_length]`, unrounded. Asking for them is the only way to ever
    /// hold an array of that size. They are those before dropout.
    pub weights: Option<ViewMut<'a, S, T::Acc>>,
    /// What softmax leaves of a row, `[batch..., heads, query_length, 2]`: the largest score `m` and the sum `l` of `e^(score - m)`, so that
    /// `m + ln(l)` is the logarithm of the sum of exponentials. The backward pass needs them. (Two numbers, since a fully masked row's
    /// `m` is Flax's fill value, beside which `ln(l)` would vanish.)
    pub statistics: Option<ViewMut<'a, S, T::Acc>>,
}

impl<S: Storage, T: Element> Default for Outputs<'_, S, T> {
    fn default() -> Self {
        Self {
            weights: None,
            statistics: None,
        }
    }
}

/// One attention call. Make it by [`Attention::new`] and the `with_…` methods.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attention<'a, S: Storage, T: Element> {
    /// Queries, `[batch..., query_length, heads, depth]`.
    pub query: View<'a, S, T>,
    /// Keys and values.
    pub source: KeyValue<'a, S, T>,
    /// How scores are made.
    pub scores: Scores<'a, S, T>,
    /// Which keys a query sees.
    pub visible: Visible<'a, S>,
    /// Which weights are dropped after softmax.
    pub dropout: Option<Dropout>,
    /// What is asked for beside the output.
    pub outputs: Outputs<'a, S, T>,
}

impl<'a, S: Storage, T: Element> Attention<'a, S, T> {
    /// Plain attention of `query` over two arrays, scaled by `1 / sqrt(depth)`, every key seen.
    #[must_use]
    pub fn new(query: View<'a, S, T>, key: View<'a, S, T>, value: View<'a, S, T>) -> Self {
        Self {
            query,
            source: KeyValue::Dense { key, value },
            scores: Scores::default(),
            visible: Visible::default(),
            dropout: None,
            outputs: Outputs::default(),
        }
    }

    /// Another factor on the dot product.
    #[must_use]
    pub fn with_scale(mut self, scale: Scale) -> Self {
        self.scores.scale = scale;
        self
    }

    /// An additive bias.
    #[must_use]
    pub fn with_bias(mut self, bias: Option<View<'a, S, T::Acc>>) -> Self {
        self.scores.bias = bias;
        self
    }

    /// A causal mask without a tensor.
    #[must_use]
    pub fn with_causal(mut self, causal: Option<Causal>) -> Self {
        self.visible.causal = causal;
        self
    }

    /// A mask tensor.
    #[must_use]
    pub fn with_mask(mut self, mask: Option<Mask<'a, S>>) -> Self {
        self.visible.mask = mask;
        self
    }

    /// What a query gets that sees no key.
    #[must_use]
    pub fn with_fully_masked(mut self, fully_masked: FullyMasked) -> Self {
        self.visible.fully_masked = fully_masked;
        self
    }

    /// With dropout.
    #[must_use]
    pub fn with_dropout(mut self, dropout: Option<Dropout>) -> Self {
        self.dropout = dropout;
        self
    }

    /// Asks for the statistics of the rows.
    #[must_use]
    pub fn with_statistics(mut self, statistics: Option<ViewMut<'a, S, T::Acc>>) -> Self {
        self.outputs.statistics = statistics;
        self
    }

    /// Asks for the weights.
    #[must_use]
    pub fn with_weights(mut self, weights: Option<ViewMut<'a, S, T::Acc>>) -> Self {
        self.outputs.weights = weights;
        self
    }

    /// Checks that all parts fit each other and gives the call's sizes.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Mismatch`] (in Flax's order: rank, batch dims, heads, lengths, depths), [`Error::Broadcast`] for bias and
    /// mask, [`Error::Shape`] for the weights and the statistics, [`Error::RandomLength`] for dropout.
    pub fn shape(&self) -> Result<AttentionShape> {
        let KeyValue::Dense { key, value } = &self.source;
        let shape = AttentionShape::of(self.query.shape(), key.shape(), value.shape())?;
        let weights = shape.weights(self.query.shape())?;
        if let Some(bias) = &self.scores.bias {
            bias.broadcast_to("bias", &weights)?;
        }
        if let Some(mask) = &self.visible.mask {
            mask.view().broadcast_to("mask", &weights)?;
        }
        if let Some(out) = &self.outputs.weights
            && *out.shape() != weights
        {
            return Err(Error::Shape {
                argument: "weights",
                got: *out.shape(),
                wanted: weights,
            });
        }
        if let Some(out) = &self.outputs.statistics {
            let wanted = shape.statistics(self.query.shape())?;
            if *out.shape() != wanted {
                return Err(Error::Shape {
                    argument: "statistics",
                    got: *out.shape(),
                    wanted,
                });
            }
        }
        if let Some(dropout) = &self.dropout {
            dropout.bits(&shape)?;
        }
        Ok(shape)
    }

    /// The parts that this request uses.
    #[must_use]
    pub fn features(&self) -> Features {
        let mut used = match self.source {
            KeyValue::Dense { .. } => Features::DENSE,
        };
        used = used.with(Features::BIAS, self.scores.bias.is_some());
        used = used.with(
            Features::SCALE,
            self.scores.scale != Scale::InverseSqrtDepth,
        );
        used = used.with(Features::CAUSAL, self.visible.causal.is_some());
        used = used.with(Features::MASK, self.visible.mask.is_some());
        used = used.with(
            Features::ZERO_ROWS,
            self.visible.fully_masked == FullyMasked::Zero,
        );
        used = used.with(Features::DROPOUT, self.dropout.is_some());
        used = used.with(Features::STATISTICS, self.outputs.statistics.is_some());
        used.with(Features::WEIGHTS, self.outputs.weights.is_some())
    }

    /// Refuses the first part that is not in `supported`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] with the part's name.
    pub fn check_supported(&self, backend: &'static str, supported: Features) -> Result<()> {
        match self.features().without(supported).first_name() {
            None => Ok(()),
            Some(feature) => Err(Error::Unsupported {
                backend,
                feature,
                instead: "Use a backend that does, or leave it out",
            }),
        }
    }
}

/// A set of parts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u32);

impl Features {
    /// Keys and values as two arrays.
    pub const DENSE: Self = Self(1);
    /// An additive bias.
    pub const BIAS: Self = Self(1 << 1);
    /// A scale of the caller's.
    pub const SCALE: Self = Self(1 << 2);
    /// A causal mask.
    pub const CAUSAL: Self = Self(1 << 3);
    /// A mask tensor.
    pub const MASK: Self = Self(1 << 4);
    /// Zero for a query that sees no key.
    pub const ZERO_ROWS: Self = Self(1 << 5);
    /// The weights as an output.
    pub const WEIGHTS: Self = Self(1 << 6);

    /// Dropout of weights.
    pub const DROPOUT: Self = Self(1 << 7);
    /// The statistics of the rows as an output.
    pub const STATISTICS: Self = Self(1 << 8);

    const NAMES: [(Self, &'static str); 9] = [
        (Self::DENSE, "dense keys and values"),
        (Self::BIAS, "an additive bias"),
        (Self::SCALE, "a custom scale"),
        (Self::CAUSAL, "a causal mask"),
        (Self::MASK, "a mask tensor"),
        (Self::ZERO_ROWS, "zero for fully masked rows"),
        (Self::WEIGHTS, "attention weights as an output"),
        (Self::DROPOUT, "dropout"),
        (Self::STATISTICS, "row statistics as an output"),
    ];

    /// Both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of `self` that `other` lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn with(self, other: Self, used: bool) -> Self {
        if used { self.union(other) } else { self }
    }

    fn first_name(self) -> Option<&'static str> {
        if self.0 == 0 {
            return None;
        }
        let named = Self::NAMES.iter().find(|(bit, _)| self.0 & bit.0 != 0);
        Some(named.map_or("a part of this request", |&(_, name)| name))
    }
}

/// The sizes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttentionShape {
    /// Product of the batch axes.
    pub batch: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Queries.
    pub query_length: usize,
    /// Keys.
    pub key_length: usize,
    /// Depth of query and key.
    pub depth: usize,
    /// Depth of value and output.
    pub value_depth: usize,
}

impl AttentionShape {
    /// The sizes for arrays of these shapes.
    ///
    /// # Errors
    ///
    /// As [`Attention::shape`].
    pub fn of(query: &Dims, key: &Dims, value: &Dims) -> Result<Self> {
        let mismatch = |what, left: &Dims, right: &Dims| {
            Err(Error::Mismatch {
                what,
                left: *left,
                right: *right,
            })
        };
        for other in [key, value] {
            if query.rank() != other.rank() {
                return mismatch(Disagreement::Rank, query, other);
            }
        }
        let Some(axes) = query.rank().checked_sub(3) else {
            return Err(Error::Rank {
                argument: "query",
                got: query.rank(),
                wanted: "[batch..., length, heads, depth]",
            });
        };
        for (what, range) in [
            (Disagreement::BatchDims, 0..axes),
            (Disagreement::NumHeads, axes + 1..axes + 2),
        ] {
            for other in [key, value] {
                if query[range.clone()] != other[range.clone()] {
                    return mismatch(what, query, other);
                }
            }
        }
        if key[axes] != value[axes] {
            return mismatch(Disagreement::Lengths, key, value);
        }
        if query[axes + 2] != key[axes + 2] {
            return mismatch(Disagreement::Depths, query, key);
        }
        Ok(Self {
            batch: Dims::new(&query[..axes])?.elements()?,
            num_heads: query[axes + 1],
            query_length: query[axes],
            key_length: key[axes],
            depth: query[axes + 2],
            value_depth: value[axes + 2],
        })
    }

    /// The shape of the weights, `[batch..., heads, query_length, key_length]`, for a query of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if `query` has fewer than three axes.
    pub fn weights(&self, query: &Dims) -> Result<Dims> {
        let Some(axes) = query.rank().checked_sub(3) else {
            return Err(Error::Rank {
                argument: "query",
                got: query.rank(),
                wanted: "[batch..., length, heads, depth]",
            });
        };
        Dims::new(&query[..axes])?.concat(&[self.num_heads, self.query_length, self.key_length])
    }

    /// The shape of the row statistics, `[batch..., heads, query_length, 2]`, for a query of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if `query` has fewer than three axes.
    pub fn statistics(&self, query: &Dims) -> Result<Dims> {
        let weights = self.weights(query)?;
        Dims::new(&weights[..weights.rank() - 1])?.push(2)
    }

    /// The shape of the output, `[batch..., query_length, heads, value_depth]`, for a query of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if `query` has fewer than three axes.
    pub fn output(&self, query: &Dims) -> Result<Dims> {
        let Some(axes) = query.rank().checked_sub(3) else {
            return Err(Error::Rank {
                argument: "query",
                got: query.rank(),
                wanted: "[batch..., length, heads, depth]",
            });
        };
        Dims::new(&query[..axes])?.concat(&[self.query_length, self.num_heads, self.value_depth])
    }
}
