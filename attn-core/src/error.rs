//! One error type for the whole workspace: it names the argument, what was got, what was wanted and the next step,
//! and works without an allocator.

use crate::dtype::{DType, ScalarType};
use crate::layout::Dims;
use core::fmt;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// In what two of `query`, `key` and `value` disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disagreement {
    /// Number of axes.
    Rank,
    /// Batch axes.
    BatchDims,
    /// Number of heads.
    NumHeads,
    /// Key and value length.
    Lengths,
    /// Query and key depth.
    Depths,
}

impl Disagreement {
    const fn words(self) -> &'static str {
        match self {
            Self::Rank => "rank",
            Self::BatchDims => "batch dims",
            Self::NumHeads => "num_heads",
            Self::Lengths => "lengths",
            Self::Depths => "depths",
        }
    }
}

/// What went wrong, with the argument's name.
///
/// Each variant that corresponds to an exception of Flax says so; the text is ours.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Wrong number of axes (Flax: `IndexError` for an input without a length axis).
    Rank {
        /// The argument.
        argument: &'static str,
        /// Axes it has.
        got: usize,
        /// Axes it needs.
        wanted: &'static str,
    },
    /// Wrong axis lengths.
    Shape {
        /// The argument.
        argument: &'static str,
        /// Its shape.
        got: Dims,
        /// The shape it needs.
        wanted: Dims,
    },
    /// Cannot be broadcast (Flax: `ValueError: Incompatible shapes for broadcasting`).
    Broadcast {
        /// The argument.
        argument: &'static str,
        /// Its shape.
        got: Dims,
        /// The shape to broadcast to.
        wanted: Dims,
    },
    /// `query`, `key` and `value` do not fit each other (Flax: `AssertionError: q, k, v … must match.`).
    Mismatch {
        /// In what.
        what: Disagreement,
        /// Shape of the first.
        left: Dims,
        /// Shape of the second.
        right: Dims,
    },
    /// A buffer of the wrong length.
    Buffer {
        /// The argument.
        argument: &'static str,
        /// Elements it has.
        got: usize,
        /// Elements it needs.
        wanted: usize,
    },
    /// A scratch buffer that is too short.
    Scratch {
        /// The buffer.
        argument: &'static str,
        /// Elements it has.
        got: usize,
        /// Elements it needs at least.
        wanted: usize,
    },
    /// Strides that the operation cannot take.
    Strides {
        /// The argument.
        argument: &'static str,
        /// What it needs.
        wanted: &'static str,
    },
    /// A shape whose size does not fit the machine's word.
    TooLarge {
        /// The argument.
        argument: &'static str,
        /// Its shape.
        got: Dims,
    },
    /// An array of another type than needed.
    DTypeMismatch {
        /// The argument.
        argument: &'static str,
        /// Its type.
        got: ScalarType,
        /// The type it needs.
        wanted: ScalarType,
    },
    /// A computation dtype that is not floating (Flax: `ValueError: Dtype must be inexact`).
    NotInexact {
        /// The dtype.
        got: ScalarType,
    },
    /// `qkv_features` is not a multiple of `num_heads` (Flax: `AssertionError: Memory dimension (Q) must be divisible …`).
    HeadsDoNotDivide {
        /// `qkv_features`.
        qkv_features: usize,
        /// `num_heads`.
        num_heads: usize,
    },
    /// `num_kv_heads` is 0, or `num_heads` is not a multiple of it.
    KvHeadsDoNotDivide {
        /// `num_heads`.
        num_heads: usize,
        /// `num_kv_heads`.
        num_kv_heads: usize,
    },
    /// `num_heads` is 0 (Flax: `ZeroDivisionError`).
    NoHeads,
    /// `inputs_kv` together with `inputs_k` or `inputs_v` (Flax: `ValueError`).
    InputsKvWithKeyOrValue,
    /// `inputs_v` without `inputs_k` (Flax: `ValueError`).
    ValueWithoutKey,
    /// A decode step with a query of another shape (Flax: `ValueError: Autoregressive cache shape error`).
    CacheQueryShape {
        /// Shape of the projected query.
        got: Dims,
        /// Shape that the cache wants.
        wanted: Dims,
    },
    /// A decode step without a cache, and none may be made (Flax: `ScopeCollectionNotFound`).
    CacheMissing,
    /// A decode step on a cache that may not be written (Flax: `ModifyScopeVariableError`).
    CacheImmutable,
    /// More tokens than free slots, where overwriting was not asked for.
    CacheFull {
        /// Tokens to append.
        got: usize,
        /// Free slots.
        free: usize,
    },
    /// More pages than the pool of a paged cache has left.
    PagesExhausted {
        /// Pages that the call takes.
        got: usize,
        /// Free pages.
        free: usize,
    },
    /// A sequence of a paged cache that its row of the page table has no room for.
    PageTableFull {
        /// The sequence.
        sequence: usize,
        /// Pages that it would have.
        got: usize,
        /// Pages that the table has room for.
        most: usize,
    },
    /// A length that a cached sequence cannot be put back to: it is not that long, or a ring has overwritten what it would need.
    Rollback {
        /// The sequence.
        sequence: usize,
        /// The length.
        got: usize,
        /// The least length but 0 that it can be put back to.
        least: usize,
        /// Its length.
        most: usize,
    },
    /// A sequence that is not in the cache.
    SequenceUnknown {
        /// The sequence.
        sequence: usize,
    },
    /// A sequence that is named twice in one call.
    SequenceTwice {
        /// The sequence.
        sequence: usize,
    },
    /// Another sequence than a cache has room for.
    SequencesFull {
        /// Sequences that there is room for.
        most: usize,
    },
    /// Rows that do not divide into blocks of a quantised format.
    BlockDepth {
        /// The argument.
        argument: &'static str,
        /// Its depth.
        got: usize,
        /// Numbers of a block.
        block: usize,
    },
    /// A number that a quantised format has no factor for: infinite, not a number, or too large.
    NotQuantizable {
        /// The argument.
        argument: &'static str,
        /// The format.
        format: &'static str,
        /// The sequence.
        sequence: usize,
        /// The token, counted from the first of the call.
        token: usize,
    },
    /// Masks of different rank (Flax: `AssertionError: masks must have same rank`).
    MaskRank {
        /// Rank of the first.
        left: usize,
        /// Rank of the second.
        right: usize,
    },
    /// `dropout_rate > 0` and `deterministic` given neither to the constructor nor to the call (Flax: `ValueError`).
    DeterministicMissing,
    /// `dropout_rate > 0` and `deterministic` given to both (Flax: `ValueError`).
    DeterministicGivenTwice,
    /// Dropout is active and there is no key (Flax: `InvalidRngError`).
    DropoutRngMissing,
    /// A parameter is to be drawn and there is no key for it (Flax: `InvalidRngError`).
    ParamsRngMissing,
    /// A shape whose inputs and outputs cannot be told (Flax: `ValueError`) or are none (`ZeroDivisionError`), where the variance of a
    /// parameter is to be divided by them.
    FanShape {
        /// The shape.
        got: Dims,
    },
    /// A dropout rate that is not a probability. Flax takes it for one all the same.
    DropoutRate {
        /// The rate.
        got: f64,
    },
    /// A random key that is not two words: that of another generator than `threefry2x32`.
    KeyWords {
        /// Words it has.
        got: usize,
    },
    /// A random array that is longer than its counters reach.
    RandomLength {
        /// Its elements.
        got: u64,
    },
    /// A parameter of another shape (Flax: `ScopeParamShapeError`).
    ParamShape {
        /// The submodule: `query`, `key`, `value`, `query_ln`, `key_ln`, `out`.
        scope: &'static str,
        /// `kernel`, `bias` or `scale`.
        name: &'static str,
        /// Its shape.
        got: Dims,
        /// The shape the layer needs.
        wanted: Dims,
    },
    /// A parameter that is not there (Flax: `ScopeParamNotFoundError`).
    ParamMissing {
        /// The submodule.
        scope: &'static str,
        /// `kernel`, `bias` or `scale`.
        name: &'static str,
    },
    /// No parameters at all (Flax: `ScopeCollectionNotFound`).
    ParamsEmpty,
    /// Two arguments that exclude each other (Flax: `ValueError: … are mutually exclusive`).
    Exclusive {
        /// The first.
        left: &'static str,
        /// The second.
        right: &'static str,
    },
    /// One argument without the other (Flax: `ValueError: … must be specified together`).
    Together {
        /// The first.
        left: &'static str,
        /// The second.
        right: &'static str,
    },
    /// The backend cannot do a part of the request. It never leaves such a part out silently.
    Unsupported {
        /// The backend, or the layer.
        backend: &'static str,
        /// The part.
        feature: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// A device failed, for a reason that no argument names.
    Device {
        /// The backend.
        backend: &'static str,
        /// What it was asked.
        operation: &'static str,
        /// The driver's number.
        code: i32,
        /// What to do.
        next: &'static str,
    },
    /// A size of 0 where there must be something.
    Zero {
        /// The argument.
        argument: &'static str,
    },
    /// A softcap that is not a number above 0.
    Softcap {
        /// The softcap.
        got: f64,
    },
    /// Elements of a row that are to turn by a rotary embedding and are not pairs, or more than there are.
    RotaryDim {
        /// Elements that are to turn.
        got: usize,
        /// Elements of a row.
        depth: usize,
    },
    /// A number of a rotary embedding that cannot be.
    Rotary {
        /// The field.
        field: &'static str,
        /// The number.
        got: f64,
        /// What it must be.
        wanted: &'static str,
    },
    /// A number in an array of lengths, pages or the like that cannot be.
    Entry {
        /// The argument.
        argument: &'static str,
        /// The element's index.
        index: usize,
        /// The number.
        got: i64,
        /// The least that it may be.
        least: i64,
        /// The most that it may be.
        most: i64,
    },
    /// A user's hook (`attention_fn`, `dot_general`, einsum) reported a failure.
    Hook {
        /// The hook's field.
        hook: &'static str,
        /// Its own words.
        reason: &'static str,
    },
}

impl Error {
    /// An array of dtype `got` where `wanted` is needed.
    #[must_use]
    pub const fn dtype_mismatch(argument: &'static str, got: DType, wanted: DType) -> Self {
        Self::DTypeMismatch {
            argument,
            got: got.scalar(),
            wanted: wanted.scalar(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Rank { argument, got, wanted } => {
                write!(f, "`{argument}` has {got} axes; it needs {wanted}. Reshape it")
            }
            Self::Shape { argument, got, wanted } => {
                write!(f, "`{argument}` is {got}; it needs {wanted}. Pass an array of that shape")
            }
            Self::Broadcast { argument, got, wanted } => write!(
                f,
                "`{argument}` is {got} and cannot be broadcast to {wanted}. Each of its axes, counted from the last, must be 1 or equal"
            ),
            Self::Mismatch { what, left, right } => write!(
                f,
                "query, key and value must agree in {}; got {left} and {right} ([batch..., length, heads, depth]). Pass inputs that agree",
                what.words()
            ),
            Self::Buffer { argument, got, wanted } => {
                write!(f, "`{argument}` has {got} elements; its shape needs {wanted}. Pass a buffer of that length")
            }
            Self::Scratch { argument, got, wanted } => {
                write!(f, "scratch `{argument}` has {got} elements; this call needs {wanted}. Size it by the plan's scratch")
            }
            Self::Strides { argument, wanted } => {
                write!(f, "`{argument}` has strides that cannot be used; it needs {wanted}. Copy it first")
            }
            Self::TooLarge { argument, got } => {
                write!(f, "`{argument}` of shape {got} is larger than this machine can address. Check where its shape comes from")
            }
            Self::DTypeMismatch { argument, got, wanted } => {
                write!(f, "`{argument}` is {got}; {wanted} is needed. Cast it, or pick the variant for {got}")
            }
            Self::NotInexact { got } => {
                write!(f, "`dtype` is {got}; it must be a floating type. Choose float32, float64, float16 or bfloat16")
            }
            Self::HeadsDoNotDivide { qkv_features, num_heads } => write!(
                f,
                "`qkv_features` is {qkv_features}, not a multiple of `num_heads` {num_heads}. Choose a number of heads that divides it"
            ),
            Self::KvHeadsDoNotDivide { num_heads, num_kv_heads } => write!(
                f,
                "`num_kv_heads` is {num_kv_heads}; it must be at least 1 and divide `num_heads` {num_heads}. \
                 Choose a number that does, or leave it out for as many as `num_heads`"
            ),
            Self::NoHeads => f.write_str("`num_heads` is 0; at least 1 is needed. Set it to the number of heads of the trained layer"),
            Self::InputsKvWithKeyOrValue => {
                f.write_str("`inputs_kv` was given together with `inputs_k` or `inputs_v`; pass either the one or the others")
            }
            Self::ValueWithoutKey => f.write_str("`inputs_v` was given without `inputs_k`; pass `inputs_k` too"),
            Self::CacheQueryShape { got, wanted } => write!(
                f,
                "the projected query of a decode step is {got}; the cache wants {wanted}. Feed one token a step with the cache's batch, or use prefill"
            ),
            Self::CacheMissing => f.write_str("`decode` needs a cache and there is none; make one first with `init_cache`"),
            Self::CacheImmutable => f.write_str("the cache cannot be updated since it was passed as immutable; pass it as `&mut`"),
            Self::CacheFull { got, free } => {
                write!(f, "{got} tokens do not fit the {free} free slots of the cache. Make a longer cache, or feed fewer tokens")
            }
            Self::PagesExhausted { got, free } => {
                write!(f, "{got} pages are needed and {free} are free. Remove or truncate a sequence, or make a cache of more pages")
            }
            Self::PageTableFull { sequence, got, most } => write!(
                f,
                "sequence {sequence} would have {got} pages and its row of the page table has room for {most}. Make a cache of more pages a sequence"
            ),
            Self::Rollback { sequence, got, least, most } => write!(
                f,
                "sequence {sequence} cannot be put back to length {got}; from {least} to {most} it can. \
                 Clear it, or make a ring with more room beyond its window"
            ),
            Self::SequenceUnknown { sequence } => {
                write!(f, "sequence {sequence} is not in the cache. Name one that was added and not removed")
            }
            Self::SequenceTwice { sequence } => {
                write!(f, "sequence {sequence} is named twice in one call. Name each once, and give it all of its tokens")
            }
            Self::SequencesFull { most } => {
                write!(f, "the cache has {most} sequences and room for no other. Remove one, or make a cache of more sequences")
            }
            Self::BlockDepth { argument, got, block } => write!(
                f,
                "`{argument}` has depth {got}, not a multiple of the {block} numbers of a block. Use int8, which takes any depth"
            ),
            Self::NotQuantizable { argument, format, sequence, token } => write!(
                f,
                "`{argument}` of sequence {sequence}, token {token}, has a number that is infinite, not a number, or too large for {format}. \
                 Keep this cache in the call's own dtype"
            ),
            Self::MaskRank { left, right } => {
                write!(f, "masks must have the same rank; got {left} and {right}. Add axes of length 1 to the smaller")
            }
            Self::DeterministicMissing => f.write_str(
                "`deterministic` was given neither to the constructor nor to the call, and `dropout_rate` is above 0; give it to one of them",
            ),
            Self::DeterministicGivenTwice => f.write_str(
                "`deterministic` was given to the constructor and to the call, and `dropout_rate` is above 0; give it to one of them",
            ),
            Self::DropoutRngMissing => f.write_str("dropout needs a random key; pass `dropout_rng`, or set `deterministic`"),
            Self::ParamsRngMissing => f.write_str("parameters are drawn from a random key and there is none; set `params` of the streams"),
            Self::FanShape { got } => write!(
                f,
                "an initializer that scales by the numbers of inputs and outputs got the shape {got}; it needs two axes or more, none of them 0. \
                 Give this parameter another initializer, such as zeros or normal"
            ),
            Self::DropoutRate { got } => {
                write!(f, "`dropout_rate` is {got}; it must lie between 0 and 1. Give the probability that a weight is dropped")
            }
            Self::KeyWords { got } => {
                write!(f, "a random key has {got} words; 2 are needed. Make it with the generator threefry2x32, JAX's default")
            }
            Self::RandomLength { got } => write!(
                f,
                "a random array of {got} elements needs more counters than there are. Draw less, or use one counter for each element"
            ),
            Self::ParamShape { scope, name, got, wanted } => write!(
                f,
                "parameter `{scope}/{name}` is {got}; the layer's fields and inputs need {wanted}. Check num_heads, num_kv_heads, qkv_features and out_features"
            ),
            Self::ParamMissing { scope, name } => write!(
                f,
                "parameter `{scope}/{name}` is not in the tree. Check the path of the layer in the file, and use_bias and normalize_qk"
            ),
            Self::ParamsEmpty => f.write_str("the layer has no parameters. Check the path of the layer in the file"),
            Self::Exclusive { left, right } => write!(f, "`{left}` and `{right}` exclude each other; give only one of them"),
            Self::Together { left, right } => write!(f, "`{left}` and `{right}` must be given together; give both or neither"),
            Self::Unsupported { backend, feature, instead } => write!(f, "{backend} does not support {feature}. {instead}"),
            Self::Device { backend, operation, code, next } => {
                write!(f, "{backend}: {operation} failed with error {code}. {next}")
            }
            Self::Zero { argument } => write!(f, "`{argument}` is 0; at least 1 is needed. Set it"),
            Self::Softcap { got } => {
                write!(f, "`softcap` is {got}; it must be a finite number above 0. Leave it out to cap nothing")
            }
            Self::RotaryDim { got, depth } => write!(
                f,
                "{got} elements of a row are to turn in pairs, of {depth} that it has; that must be even and at most {depth}. Set `rotary_dim`"
            ),
            Self::Rotary { field, got, wanted } => {
                write!(f, "`{field}` of the rotary embedding is {got}; it must be {wanted}. Take it from the model's configuration")
            }
            Self::Entry { argument, index, got, least, most } => write!(
                f,
                "`{argument}` has {got} at index {index}; it must lie between {least} and {most}. Check how that array is made"
            ),
            Self::Hook { hook, reason } => write!(f, "the hook `{hook}` failed: {reason}"),
        }
    }
}

impl core::error::Error for Error {}
