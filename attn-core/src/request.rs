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
use crate::mask::{FullyMasked, Mask};
use crate::position::{Causal, Window};
use crate::scores::{Alibi, Relative, Scale, Scores, Stage};
use crate::source::{Cached, KeyValue, Place, Rows};
use crate::view::{Flat, Storage, View, ViewMut};
use crate::visible::{Blocks, Segments, Sequences, Visible};

/// What is asked for beside the output itself.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outputs<'a, S: Storage, T: Element> {
    /// The weights after softmax, `[batch..., heads, query_length, key_length]`, unrounded. Asking for them is the only way to ever
    /// hold an array of that size. They are those before dropout.
    pub weights: Option<ViewMut<'a, S, T::Acc>>,
    /// Whether the weights are rather the scores at an earlier stage.
    pub stage: Stage,
    /// What softmax leaves of a row, `[batch..., heads, query_length, 2]`: the largest score `m` and the sum `l` of `e^(score - m)`, so that
    /// `m + ln(l)` is the logarithm of the sum of exponentials. The backward pass needs them. (Two numbers, since a fully masked row's
    /// `m` is Flax's fill value, beside which `ln(l)` would vanish.)
    pub statistics: Option<ViewMut<'a, S, T::Acc>>,
}

impl<S: Storage, T: Element> Default for Outputs<'_, S, T> {
    fn default() -> Self {
        Self {
            weights: None,
            stage: Stage::Softmax,
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

    /// Plain attention of `query` over a cache. A query that sees no key gets zero: a cache has no values beyond those of its tokens.
    #[must_use]
    pub fn cached(query: View<'a, S, T>, cached: &'a Cached<'a, S, T>) -> Self {
        Self {
            query,
            source: KeyValue::Cached(cached),
            scores: Scores::default(),
            visible: Visible {
                fully_masked: FullyMasked::Zero,
                ..Visible::default()
            },
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

    /// A softcap on the scores.
    #[must_use]
    pub fn with_softcap(mut self, softcap: Option<f64>) -> Self {
        self.scores.softcap = softcap;
        self
    }

    /// Slopes against distance.
    #[must_use]
    pub fn with_alibi(mut self, alibi: Option<Alibi<'a, S, T>>) -> Self {
        self.scores.alibi = alibi;
        self
    }

    /// A relative position bias.
    #[must_use]
    pub fn with_relative(mut self, relative: Option<Relative<'a, S, T>>) -> Self {
        self.scores.relative = relative;
        self
    }

    /// Attention sinks, `[heads]`.
    #[must_use]
    pub fn with_sinks(mut self, sinks: Option<Flat<'a, S, T::Acc>>) -> Self {
        self.scores.sinks = sinks;
        self
    }

    /// A window around each query.
    #[must_use]
    pub fn with_window(mut self, window: Option<Window>) -> Self {
        self.visible.window = window;
        self
    }

    /// Where sequences begin and end.
    #[must_use]
    pub fn with_sequences(mut self, sequences: Option<Sequences<'a, S>>) -> Self {
        self.visible.sequences = sequences;
        self
    }

    /// Ids by which queries and keys belong together.
    #[must_use]
    pub fn with_segments(mut self, segments: Option<Segments<'a, S>>) -> Self {
        self.visible.segments = segments;
        self
    }

    /// A mask of whole blocks.
    #[must_use]
    pub fn with_blocks(mut self, blocks: Option<&'a Blocks<'a, S>>) -> Self {
        self.visible.blocks = blocks;
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

    /// Asks for the scores at a stage in place of the weights.
    #[must_use]
    pub fn with_scores_at(mut self, stage: Stage, scores: Option<ViewMut<'a, S, T::Acc>>) -> Self {
        self.outputs.stage = stage;
        self.outputs.weights = scores;
        self
    }

    /// Checks that all parts fit each other and gives the call's sizes.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Mismatch`] (in Flax's order: rank, batch dims, heads, lengths, depths), [`Error::Broadcast`] for bias and
    /// mask, [`Error::Shape`] for the weights and the statistics, [`Error::RandomLength`] for dropout.
    pub fn shape(&self) -> Result<AttentionShape> {
        let shape = match &self.source {
            KeyValue::Dense { key, value } => {
                AttentionShape::of(self.query.shape(), key.shape(), value.shape())?
            }
            source @ KeyValue::Cached(_) => {
                let [key, value] = source.shapes(self.query.shape())?;
                self.check_cached()?;
                AttentionShape::of(self.query.shape(), &key, &value)?
            }
        };
        let weights = shape.weights(self.query.shape())?;
        self.scores.check(&shape, &weights)?;
        self.visible.check(&shape, &weights)?;
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

    /// Keys and values, if they are arrays.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a cache.
    #[expect(clippy::type_complexity, reason = "a pair of views")]
    pub fn dense(&self) -> Result<(&View<'a, S, T>, &View<'a, S, T>)> {
        match &self.source {
            KeyValue::Dense { key, value } => Ok((key, value)),
            KeyValue::Cached(_) => Err(Error::Unsupported {
                backend: "this operation",
                feature: "a cache",
                instead: "Pass keys and values as arrays",
            }),
        }
    }

    /// The mean of all values would be one over slots that no token has been written to.
    fn check_cached(&self) -> Result<()> {
        match self.visible.fully_masked {
            FullyMasked::Zero => Ok(()),
            FullyMasked::MeanOfValues => Err(Error::Unsupported {
                backend: "attention over a cache",
                feature: "the mean of values for fully masked rows",
                instead: "Use FullyMasked::Zero",
            }),
        }
    }

    /// The parts that this request uses.
    #[must_use]
    pub fn features(&self) -> Features {
        let (scores, visible) = (&self.scores, &self.visible);
        let parts = [
            (Features::BIAS, scores.bias.is_some()),
            (Features::SCALE, scores.scale != Scale::InverseSqrtDepth),
            (Features::SOFTCAP, scores.softcap.is_some()),
            (Features::ALIBI, scores.alibi.is_some()),
            (Features::RELATIVE, scores.relative.is_some()),
            (Features::SINKS, scores.sinks.is_some()),
            (Features::CAUSAL, visible.causal.is_some()),
            (Features::WINDOW, visible.window.is_some()),
            (Features::SEQUENCES, visible.sequences.is_some()),
            (Features::SEGMENTS, visible.segments.is_some()),
            (Features::BLOCKS, visible.blocks.is_some()),
            (Features::MASK, visible.mask.is_some()),
            (
                Features::ZERO_ROWS,
                visible.fully_masked == FullyMasked::Zero,
            ),
            (Features::DROPOUT, self.dropout.is_some()),
            (Features::STATISTICS, self.outputs.statistics.is_some()),
            (Features::WEIGHTS, self.outputs.weights.is_some()),
            (Features::STAGES, self.outputs.stage != Stage::Softmax),
            (Features::GROUPED, self.is_grouped()),
        ];
        let source = match &self.source {
            KeyValue::Dense { .. } => Features::DENSE,
            KeyValue::Cached(cached) => cached_features(cached),
        };
        parts
            .into_iter()
            .fold(source, |used, (part, is_used)| used.with(part, is_used))
    }

    /// Whether keys have fewer heads than queries, each for a group of them.
    fn is_grouped(&self) -> bool {
        let heads = |shape: &Dims| shape.rank().checked_sub(2).map(|axis| shape[axis]);
        let key = match &self.source {
            KeyValue::Dense { key, .. } => heads(key.shape()),
            KeyValue::Cached(cached) => match &cached.key {
                Rows::Plain(view) => heads(view.shape()),
                Rows::Int8 { values, .. } => heads(values.shape()),
                Rows::Q8_0 { bytes } => heads(bytes.shape()),
            },
        };
        match (key, heads(self.query.shape())) {
            (Some(key), Some(query)) => key < query && query.checked_rem(key) == Some(0),
            _ => false,
        }
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

fn cached_features<S: Storage, T: Element>(cached: &Cached<'_, S, T>) -> Features {
    let place = match cached.place {
        Place::Contiguous => Features::CACHED,
        Place::Ring => Features::RING,
        Place::Paged { .. } => Features::PAGED,
    };
    [&cached.key, &cached.value]
        .into_iter()
        .fold(place, |used, rows| match rows {
            Rows::Plain(_) => used,
            Rows::Int8 { .. } => used.union(Features::INT8),
            Rows::Q8_0 { .. } => used.union(Features::Q8_0),
        })
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

    /// Fewer heads of keys than of queries.
    pub const GROUPED: Self = Self(1 << 9);
    /// A softcap.
    pub const SOFTCAP: Self = Self(1 << 10);
    /// Linear biases.
    pub const ALIBI: Self = Self(1 << 11);
    /// A relative position bias.
    pub const RELATIVE: Self = Self(1 << 12);
    /// Attention sinks.
    pub const SINKS: Self = Self(1 << 13);
    /// A window.
    pub const WINDOW: Self = Self(1 << 14);
    /// Sequences of their own lengths.
    pub const SEQUENCES: Self = Self(1 << 15);
    /// Segments.
    pub const SEGMENTS: Self = Self(1 << 16);
    /// A mask of blocks.
    pub const BLOCKS: Self = Self(1 << 17);
    /// Scores at an earlier stage as an output.
    pub const STAGES: Self = Self(1 << 18);
    /// A contiguous cache.
    pub const CACHED: Self = Self(1 << 19);
    /// A ring.
    pub const RING: Self = Self(1 << 20);
    /// Pages.
    pub const PAGED: Self = Self(1 << 21);
    /// A cache of integers and factors.
    pub const INT8: Self = Self(1 << 22);
    /// A cache of blocks of 32 integers.
    pub const Q8_0: Self = Self(1 << 23);

    /// What Flax's layers ask for, and the library's own choice for rows that see nothing.
    pub const FLAX: Self = Self::DENSE
        .union(Self::BIAS)
        .union(Self::SCALE)
        .union(Self::CAUSAL)
        .union(Self::MASK)
        .union(Self::ZERO_ROWS)
        .union(Self::WEIGHTS)
        .union(Self::DROPOUT)
        .union(Self::STATISTICS);

    /// Every part that there is.
    pub const ALL: Self = Self((1 << 24) - 1);

    const NAMES: [(Self, &'static str); 24] = [
        (Self::DENSE, "dense keys and values"),
        (Self::BIAS, "an additive bias"),
        (Self::SCALE, "a custom scale"),
        (Self::CAUSAL, "a causal mask"),
        (Self::MASK, "a mask tensor"),
        (Self::ZERO_ROWS, "zero for fully masked rows"),
        (Self::WEIGHTS, "attention weights as an output"),
        (Self::DROPOUT, "dropout"),
        (Self::STATISTICS, "row statistics as an output"),
        (Self::GROUPED, "grouped heads"),
        (Self::SOFTCAP, "a softcap"),
        (Self::ALIBI, "linear biases"),
        (Self::RELATIVE, "a relative position bias"),
        (Self::SINKS, "attention sinks"),
        (Self::WINDOW, "a window"),
        (Self::SEQUENCES, "sequences of their own lengths"),
        (Self::SEGMENTS, "segments"),
        (Self::BLOCKS, "a mask of blocks"),
        (Self::STAGES, "scores as an output"),
        (Self::CACHED, "a contiguous cache"),
        (Self::RING, "a ring cache"),
        (Self::PAGED, "a paged cache"),
        (Self::INT8, "a cache of int8"),
        (Self::Q8_0, "a cache of q8_0 blocks"),
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

    /// Whether all of `other` are in `self`.
    ///
    /// ```
    /// use attn_core::Features;
    /// assert!(Features::FLAX.contains(Features::MASK) && !Features::FLAX.contains(Features::WINDOW));
    /// ```
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.without(self).0 == 0
    }

    const fn with(self, other: Self, used: bool) -> Self {
        if used { self.union(other) } else { self }
    }

    /// The name of the first of them, as [`Error::Unsupported`] gives it; `None` if there are none.
    #[must_use]
    pub fn first_name(self) -> Option<&'static str> {
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
    /// Heads of keys and values, of which each serves `num_heads / key_heads` query heads.
    pub key_heads: usize,
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
        Self::checked(query, key, value, true)
    }

    /// As [`AttentionShape::of`], with as many heads of keys as of queries: Flax has no grouped heads.
    ///
    /// # Errors
    ///
    /// As [`Attention::shape`].
    pub fn of_equal_heads(query: &Dims, key: &Dims, value: &Dims) -> Result<Self> {
        Self::checked(query, key, value, false)
    }

    fn checked(query: &Dims, key: &Dims, value: &Dims, may_group: bool) -> Result<Self> {
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
        for other in [key, value] {
            if query[..axes] != other[..axes] {
                return mismatch(Disagreement::BatchDims, query, other);
            }
        }
        let (num_heads, key_heads) = (query[axes + 1], key[axes + 1]);
        let is_grouped = may_group && num_heads.checked_rem(key_heads) == Some(0) && num_heads > 0;
        if num_heads != key_heads && !is_grouped {
            return mismatch(Disagreement::NumHeads, query, key);
        }
        if value[axes + 1] != key_heads {
            return mismatch(Disagreement::NumHeads, query, value);
        }
        if key[axes] != value[axes] {
            return mismatch(Disagreement::Lengths, key, value);
        }
        if query[axes + 2] != key[axes + 2] {
            return mismatch(Disagreement::Depths, query, key);
        }
        Ok(Self {
            batch: Dims::new(&query[..axes])?.elements()?,
            num_heads,
            key_heads,
            query_length: query[axes],
            key_length: key[axes],
            depth: query[axes + 2],
            value_depth: value[axes + 2],
        })
    }

    /// The head of keys and values that serves a query head.
    #[must_use]
    pub const fn key_head(&self, head: usize) -> usize {
        match self.num_heads.checked_div(self.key_heads) {
            Some(group) if group > 0 => head / group,
            _ => head,
        }
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
