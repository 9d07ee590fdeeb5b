//! The cache of a decoding layer whose dtypes are known only at run time.

use crate::tensor::Tensor;

/// Flax's collection `cache`.
#[derive(Debug, Clone, PartialEq)]
pub struct AnyCache {
    /// `cached_key`, `[batch..., max_length, heads, head_dim]`, normalised where the layer does.
    pub cached_key: Tensor,
    /// `cached_value`, `[batch..., max_length, heads, head_dim]`.
    pub cached_value: Tensor,
    /// `cache_index`: tokens seen so far.
    pub cache_index: i32,
}

/// What a call may do with a cache: whether the caller made the collection `cache` mutable, and whether it is there.
#[derive(Debug, Default)]
pub enum CacheAccess<'c> {
    /// There is none and none can be made.
    #[default]
    None,
    /// It is there and cannot be written.
    Immutable(&'c AnyCache),
    /// It can be written; where it is `None`, the call makes it.
    Mutable(&'c mut Option<AnyCache>),
}
