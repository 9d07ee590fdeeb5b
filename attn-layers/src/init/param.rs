//! The list of the layer's parameters: paths, shapes, places in the random streams.

use crate::plan::Plan;
use attn_core::{Dims, Result};

/// A parameter of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Param {
    /// `query/kernel`, `[features, num_heads, head_dim]`.
    QueryKernel,
    /// `query/bias`, `[num_heads, head_dim]`.
    QueryBias,
    /// `key/kernel`, `[features, num_kv_heads, head_dim]`.
    KeyKernel,
    /// `key/bias`, `[num_kv_heads, head_dim]`.
    KeyBias,
    /// `value/kernel`, `[features, num_kv_heads, head_dim]`.
    ValueKernel,
    /// `value/bias`, `[num_kv_heads, head_dim]`.
    ValueBias,
    /// `query_ln/scale`, `[head_dim]`.
    QueryScale,
    /// `key_ln/scale`, `[head_dim]`.
    KeyScale,
    /// `out/kernel`, `[num_heads, head_dim, features]`.
    OutKernel,
    /// `out/bias`, `[features]`.
    OutBias,
}

impl Param {
    /// All, in Flax's order of creation.
    pub const ALL: [Self; 10] = [
        Self::QueryKernel,
        Self::QueryBias,
        Self::KeyKernel,
        Self::KeyBias,
        Self::ValueKernel,
        Self::ValueBias,
        Self::QueryScale,
        Self::KeyScale,
        Self::OutKernel,
        Self::OutBias,
    ];

    /// Its path below the layer: `query/kernel`, ….
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::QueryKernel => "query/kernel",
            Self::QueryBias => "query/bias",
            Self::KeyKernel => "key/kernel",
            Self::KeyBias => "key/bias",
            Self::ValueKernel => "value/kernel",
            Self::ValueBias => "value/bias",
            Self::QueryScale => "query_ln/scale",
            Self::KeyScale => "key_ln/scale",
            Self::OutKernel => "out/kernel",
            Self::OutBias => "out/bias",
        }
    }

    /// The submodule it belongs to: `query`, ….
    #[must_use]
    pub const fn scope(self) -> &'static str {
        match self {
            Self::QueryKernel | Self::QueryBias => "query",
            Self::KeyKernel | Self::KeyBias => "key",
            Self::ValueKernel | Self::ValueBias => "value",
            Self::QueryScale => "query_ln",
            Self::KeyScale => "key_ln",
            Self::OutKernel | Self::OutBias => "out",
        }
    }

    /// Whether a layer with these fields has it.
    #[must_use]
    pub const fn is_used(self, use_bias: bool, normalize_qk: bool) -> bool {
        match self {
            Self::QueryKernel | Self::KeyKernel | Self::ValueKernel | Self::OutKernel => true,
            Self::QueryBias | Self::KeyBias | Self::ValueBias | Self::OutBias => use_bias,
            Self::QueryScale | Self::KeyScale => normalize_qk,
        }
    }

    /// The number of its draw in the submodule.
    pub(super) const fn count(self) -> u32 {
        match self {
            Self::QueryBias | Self::KeyBias | Self::ValueBias | Self::OutBias => 2,
            _ => 1,
        }
    }

    /// Its shape in a layer of these sizes.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    pub fn shape(self, sizes: &ParamSizes) -> Result<Dims> {
        let [heads, kv_heads, head_dim] = [sizes.num_heads, sizes.num_kv_heads, sizes.head_dim];
        match self {
            Self::QueryKernel => Dims::new(&[sizes.features[0], heads, head_dim]),
            Self::KeyKernel => Dims::new(&[sizes.features[1], kv_heads, head_dim]),
            Self::ValueKernel => Dims::new(&[sizes.features[2], kv_heads, head_dim]),
            Self::QueryBias => Dims::new(&[heads, head_dim]),
            Self::KeyBias | Self::ValueBias => Dims::new(&[kv_heads, head_dim]),
            Self::QueryScale | Self::KeyScale => Dims::new(&[head_dim]),
            Self::OutKernel => Dims::new(&[heads, head_dim, sizes.out_features]),
            Self::OutBias => Dims::new(&[sizes.out_features]),
        }
    }

    /// The shape that its initializer sees: a matrix for a kernel, one axis otherwise.
    pub(super) fn flat_shape(self, sizes: &ParamSizes) -> Result<Dims> {
        let shape = self.shape(sizes)?;
        let elements = shape.elements()?;
        match self {
            // The products of heads and head_dim were numbers before they were split.
            Self::OutKernel => Dims::new(&[shape[0] * shape[1], shape[2]]),
            Self::QueryKernel | Self::KeyKernel | Self::ValueKernel => {
                Dims::new(&[shape[0], shape[1] * shape[2]])
            }
            _ => Dims::new(&[elements]),
        }
    }
}

/// The sizes that the parameters' shapes follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamSizes {
    /// Features of the inputs to query, key and value.
    pub(crate) features: [usize; 3],
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) out_features: usize,
}

impl Plan {
    /// The sizes of the parameters.
    #[must_use]
    pub const fn param_sizes(&self) -> ParamSizes {
        ParamSizes {
            features: self.features,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            out_features: self.out_features,
        }
    }
}
