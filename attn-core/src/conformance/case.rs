//! One call of attention as the suite describes it.

use crate::mask::FullyMasked;
use crate::position::{Alignment, Causal, Window};
use crate::random::Convention;
use crate::scores::{Scale, Stage};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How an array lies in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// `[batch..., length, heads, depth]` without gaps.
    Contiguous,
    /// Stored as `[batch..., heads, length, depth]`.
    HeadsMajor,
    /// With gaps between heads, rows and at the start.
    Gaps,
    /// Depth before length: the last axis is not contiguous.
    Transposed,
}

/// A mask tensor.
#[derive(Debug, Clone)]
pub(super) struct MaskCase {
    /// Its shape, which broadcasts to `[batch..., heads, query_length, key_length]`.
    pub(super) shape: Vec<usize>,
    /// How much of it is seen.
    pub(super) density: f64,
    /// Whether every third row sees nothing.
    pub(super) blind_rows: bool,
    /// Whether a set byte means that the query sees the key.
    pub(super) keep: bool,
}

/// Dropout of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct DropoutCase {
    pub(super) rate: f64,
    /// Whether all heads and batch entries share a mask.
    pub(super) shared: bool,
    pub(super) convention: Convention,
}

/// Sequences of their own lengths.
#[derive(Debug, Clone)]
pub(super) enum SequencesCase {
    /// Lengths of each batch entry: of keys, and of queries if not all are used.
    Padded(Vec<i32>, Option<Vec<i32>>),
    /// The starts of queries and of keys.
    Packed(Vec<i32>, Vec<i32>),
}

/// A mask of whole blocks, as [`MaskCase`] is one of keys.
#[derive(Debug, Clone)]
pub(super) struct BlocksCase {
    /// What broadcasts to `[batch..., heads, query_blocks, key_blocks]`.
    pub(super) shape: Vec<usize>,
    pub(super) query_block: usize,
    pub(super) key_block: usize,
    pub(super) density: f64,
}

/// A table of relative positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct RelativeCase {
    pub(super) distances: usize,
    pub(super) zero: usize,
    pub(super) alignment: Alignment,
}

/// The scores of sinks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum SinksCase {
    /// About this large.
    Near(f64),
    /// -inf for every second head, else about 0.
    Infinite,
}

/// Where the rows of a cache are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceCase {
    /// With so many rows that no token was written to.
    Contiguous { spare: usize },
    /// Of so many rows.
    Ring { capacity: usize },
    /// In pages of so many rows, in any order; batch entries share their first pages.
    Paged { page_size: usize, shared: usize },
}

/// The rows of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowsCase {
    Plain,
    Int8,
    Q8_0,
}

/// A cache in the place of arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheCase {
    pub(super) place: PlaceCase,
    pub(super) key: RowsCase,
    pub(super) value: RowsCase,
}

/// One call of attention.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// Its name in reports; the data depend on it.
    pub(super) name: String,
    /// Batch axes.
    pub(super) batch: Vec<usize>,
    /// Queries.
    pub(super) query_length: usize,
    /// Keys.
    pub(super) key_length: usize,
    /// Heads of queries.
    pub(super) heads: usize,
    /// Heads of keys and values.
    pub(super) key_heads: usize,
    /// Depth of queries and keys.
    pub(super) depth: usize,
    /// Depth of values.
    pub(super) value_depth: usize,
    /// How the arrays lie.
    pub(super) placement: Placement,
    /// A causal mask.
    pub(super) causal: Option<Causal>,
    /// A window around each query.
    pub(super) window: Option<Window>,
    /// Where sequences begin and end.
    pub(super) sequences: Option<SequencesCase>,
    /// So many ids, drawn for each query and key.
    pub(super) segments: Option<usize>,
    /// A mask of blocks.
    pub(super) blocks: Option<BlocksCase>,
    /// A mask tensor.
    pub(super) mask: Option<MaskCase>,
    /// An additive bias of this shape; with `true` some of it is -inf.
    pub(super) bias: Option<(Vec<usize>, bool)>,
    /// The factor on the scores.
    pub(super) scale: Scale,
    /// A softcap.
    pub(super) softcap: Option<f64>,
    /// Slopes against distance.
    pub(super) alibi: Option<Alignment>,
    /// A table of what distances add.
    pub(super) relative: Option<RelativeCase>,
    /// Scores without a key.
    pub(super) sinks: Option<SinksCase>,
    /// A cache in the place of arrays.
    pub(super) cache: Option<CacheCase>,
    /// Whether keys and values that no query sees, and queries outside of all sequences, are NaN and infinite.
    pub(super) poisoned: bool,
    /// What a query gets that sees no key.
    pub(super) fully_masked: FullyMasked,
    /// Which weights are dropped.
    pub(super) dropout: Option<DropoutCase>,
    /// Whether weights are asked for.
    pub(super) weights: bool,
    /// Whether the weights are rather scores.
    pub(super) stage: Stage,
    /// Whether the forward pass is asked for the statistics. The backward pass always needs them.
    pub(super) statistics: bool,
    /// Size of queries and keys.
    pub(super) size: f64,
}

impl Case {
    pub(super) fn new(query_length: usize, key_length: usize, depth: usize) -> Self {
        Self {
            name: format!("q{query_length} k{key_length} d{depth}"),
            batch: Vec::new(),
            query_length,
            key_length,
            heads: 1,
            key_heads: 1,
            depth,
            value_depth: depth,
            placement: Placement::Contiguous,
            causal: None,
            window: None,
            sequences: None,
            segments: None,
            blocks: None,
            mask: None,
            bias: None,
            scale: Scale::InverseSqrtDepth,
            softcap: None,
            alibi: None,
            relative: None,
            sinks: None,
            cache: None,
            poisoned: false,
            fully_masked: FullyMasked::MeanOfValues,
            dropout: None,
            weights: false,
            stage: Stage::Softmax,
            statistics: false,
            size: 1.0,
        }
    }

    pub(super) fn with_dropout(self, dropout: DropoutCase) -> Self {
        let case = Self {
            dropout: Some(dropout),
            ..self
        };
        case.named(&format!("{dropout:?}"))
    }

    pub(super) fn with_mask(self, shape: &[usize], density: f64, blind_rows: bool) -> Self {
        let mask = MaskCase {
            shape: shape.to_vec(),
            density,
            blind_rows,
            keep: true,
        };
        let case = Self {
            mask: Some(mask),
            ..self
        };
        case.named(&format!("mask {shape:?} {density} {blind_rows}"))
    }

    pub(super) fn with_causal(self, causal: Causal) -> Self {
        let case = Self {
            causal: Some(causal),
            ..self
        };
        case.named(&format!("{causal:?}"))
    }

    pub(super) fn with_bias(self, shape: &[usize], infinite: bool) -> Self {
        let case = Self {
            bias: Some((shape.to_vec(), infinite)),
            ..self
        };
        case.named(&format!("bias {shape:?} infinite {infinite}"))
    }

    pub(super) fn with_scale(self, scale: f64) -> Self {
        let case = Self {
            scale: Scale::Value(scale),
            ..self
        };
        case.named(&format!("scale {scale}"))
    }

    pub(super) fn with_value_depth(self, value_depth: usize) -> Self {
        let case = Self {
            value_depth,
            ..self
        };
        case.named(&format!("value depth {value_depth}"))
    }

    pub(super) fn zero_if_blind(self) -> Self {
        let case = Self {
            fully_masked: FullyMasked::Zero,
            ..self
        };
        case.named("zero")
    }

    pub(super) fn sized(self, size: f64) -> Self {
        Self { size, ..self }.named(&format!("size {size}"))
    }

    pub(super) fn named(mut self, what: &str) -> Self {
        self.name = format!("{} {what}", self.name);
        self
    }

    pub(super) fn batched(mut self, batch: &[usize], heads: usize) -> Self {
        self.name = format!("{} batch {batch:?} heads {heads}", self.name);
        self.batch = batch.to_vec();
        self.heads = heads;
        self.key_heads = heads;
        self
    }

    pub(super) fn grouped(self, key_heads: usize) -> Self {
        Self { key_heads, ..self }.named(&format!("key heads {key_heads}"))
    }

    pub(super) fn with_window(
        self,
        alignment: Alignment,
        left: Option<usize>,
        right: Option<usize>,
    ) -> Self {
        let case = Self {
            window: Some(Window::new(alignment, left, right)),
            ..self
        };
        case.named(&format!("window {alignment:?} {left:?} {right:?}"))
    }

    pub(super) fn padded(self, keys: &[i32], queries: Option<&[i32]>) -> Self {
        let sequences = SequencesCase::Padded(keys.to_vec(), queries.map(<[i32]>::to_vec));
        let case = Self {
            sequences: Some(sequences),
            ..self
        };
        case.named(&format!("padded {keys:?} {queries:?}"))
    }

    pub(super) fn packed(self, queries: &[i32], keys: &[i32]) -> Self {
        let case = Self {
            sequences: Some(SequencesCase::Packed(queries.to_vec(), keys.to_vec())),
            ..self
        };
        case.named(&format!("packed {queries:?} {keys:?}"))
    }

    pub(super) fn with_segments(self, ids: usize) -> Self {
        let case = Self {
            segments: Some(ids),
            ..self
        };
        case.named(&format!("{ids} segments"))
    }

    pub(super) fn with_blocks(
        self,
        shape: &[usize],
        [query, key]: [usize; 2],
        density: f64,
    ) -> Self {
        let case = Self {
            blocks: Some(BlocksCase {
                shape: shape.to_vec(),
                query_block: query,
                key_block: key,
                density,
            }),
            ..self
        };
        case.named(&format!("blocks {shape:?} of {query} and {key} {density}"))
    }

    pub(super) fn with_softcap(self, cap: f64) -> Self {
        let case = Self {
            softcap: Some(cap),
            ..self
        };
        case.named(&format!("softcap {cap}"))
    }

    pub(super) fn with_alibi(self, alignment: Alignment) -> Self {
        let case = Self {
            alibi: Some(alignment),
            ..self
        };
        case.named(&format!("alibi {alignment:?}"))
    }

    pub(super) fn with_relative(self, distances: usize, zero: usize, alignment: Alignment) -> Self {
        let relative = RelativeCase {
            distances,
            zero,
            alignment,
        };
        let case = Self {
            relative: Some(relative),
            ..self
        };
        case.named(&format!("{relative:?}"))
    }

    pub(super) fn with_sinks(self, sinks: SinksCase) -> Self {
        let case = Self {
            sinks: Some(sinks),
            ..self
        };
        case.named(&format!("sinks {sinks:?}"))
    }

    pub(super) fn with_stage(self, stage: Stage) -> Self {
        let case = Self {
            weights: true,
            stage,
            ..self
        };
        case.named(&format!("{stage:?}"))
    }

    /// A cache has no mean of values.
    pub(super) fn with_cache(self, place: PlaceCase, key: RowsCase, value: RowsCase) -> Self {
        let cache = CacheCase { place, key, value };
        let case = Self {
            cache: Some(cache),
            fully_masked: FullyMasked::Zero,
            ..self
        };
        case.named(&format!("{cache:?}"))
    }

    /// With NaN and infinity where nothing may look. Only zero rows have such places within a sequence.
    pub(super) fn poisoned(self) -> Self {
        let case = Self {
            poisoned: true,
            fully_masked: FullyMasked::Zero,
            ..self
        };
        case.named("poisoned")
    }

    pub(super) fn with_weights(self) -> Self {
        let case = Self {
            weights: true,
            ..self
        };
        case.named("weights")
    }

    pub(super) fn with_statistics(self) -> Self {
        let case = Self {
            statistics: true,
            ..self
        };
        case.named("statistics")
    }
}
