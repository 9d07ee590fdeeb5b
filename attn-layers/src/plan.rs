//! The sizes of one call of a layer, checked once.

use attn_core::{AttentionShape, Backend, Dims, Element, Error, Kernels, Layout, Result};

/// The sizes of one call: every error of shape ends here. Plain numbers, made once for a shape and used for every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Batch axes, the same for all inputs.
    pub(crate) batch: Dims,
    pub(crate) batch_size: usize,
    pub(crate) query_length: usize,
    pub(crate) key_length: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Features of the inputs to query, key and value.
    pub(crate) features: [usize; 3],
    pub(crate) out_features: usize,
    /// Product of the hidden axes, `num_heads * head_dim`.
    pub(crate) hidden: usize,
    /// The same of keys and values, `num_kv_heads * head_dim`.
    pub(crate) kv_hidden: usize,
    /// Queries and keys, `[batch..., length, heads, head_dim]`, the rows of a head side by side, as the attention core reads
    /// them fastest.
    queries: Option<Layout>,
    keys: Option<Layout>,
    /// The context, `[batch..., query_length, num_heads, head_dim]` and with its heads flattened, without gaps.
    context: Option<Layout>,
    flat_context: Option<Layout>,
}

/// Elements of each buffer of a [`Scratch`](crate::Scratch).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScratchSizes {
    /// Projected queries.
    pub q: usize,
    /// Projected keys.
    pub k: usize,
    /// Projected values.
    pub v: usize,
    /// Output of the attention core.
    pub context: usize,
    /// The kernels' own tiles, in accumulators.
    pub tiles: usize,
}

/// Elements of each buffer of [`ResidualBuffers`](crate::ResidualBuffers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResidualSizes {
    /// Queries.
    pub q: usize,
    /// Keys.
    pub k: usize,
    /// Values.
    pub v: usize,
    /// Output of the attention core.
    pub context: usize,
    /// Statistics of the rows, in accumulators.
    pub statistics: usize,
}

/// What a layer's fields make of the width of `inputs_q`.
pub(crate) struct Widths {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Product of the hidden axes, `num_heads * head_dim`.
    pub(crate) hidden: usize,
    /// The same of keys and values, `num_kv_heads * head_dim`.
    pub(crate) kv_hidden: usize,
    pub(crate) out_features: usize,
}

impl Widths {
    pub(crate) fn new(
        num_heads: usize,
        num_kv_heads: Option<usize>,
        qkv_features: Option<usize>,
        out_features: Option<usize>,
        features: usize,
    ) -> Result<Self> {
        // Flax's `x or y`: 0 means not given.
        let or_features =
            |given: Option<usize>| given.filter(|&given| given != 0).unwrap_or(features);
        let hidden = or_features(qkv_features);
        let head_dim = head_dim(hidden, num_heads)?;
        let num_kv_heads = kv_heads(num_heads, num_kv_heads)?;
        Ok(Self {
            num_heads,
            num_kv_heads,
            head_dim,
            hidden,
            kv_hidden: num_kv_heads * head_dim,
            out_features: or_features(out_features),
        })
    }
}

/// The last axis of an input, `[batch..., length, features]`.
pub(crate) fn features(argument: &'static str, input: &Dims) -> Result<usize> {
    input.last().copied().ok_or(Error::Rank {
        argument,
        got: 0,
        wanted: "[batch..., length, features]",
    })
}

/// `num_heads` must be there and divide `qkv_features`.
fn head_dim(qkv_features: usize, num_heads: usize) -> Result<usize> {
    match qkv_features.checked_rem(num_heads) {
        None => Err(Error::NoHeads),
        Some(0) => Ok(qkv_features / num_heads),
        Some(_) => Err(Error::HeadsDoNotDivide {
            qkv_features,
            num_heads,
        }),
    }
}

/// `num_kv_heads`, or as many as `num_heads`, must be there and divide those.
fn kv_heads(num_heads: usize, num_kv_heads: Option<usize>) -> Result<usize> {
    let num_kv_heads = num_kv_heads.unwrap_or(num_heads);
    match num_heads.checked_rem(num_kv_heads) {
        Some(0) => Ok(num_kv_heads),
        _ => Err(Error::KvHeadsDoNotDivide {
            num_heads,
            num_kv_heads,
        }),
    }
}

/// `[batch..., length, heads, head_dim]` with the rows of a head side by side.
fn by_heads(shape: &Dims) -> Result<Layout> {
    let rank = shape.rank();
    let (length, heads, row) = (shape[rank - 3], shape[rank - 2], shape[rank - 1]);
    let mut strides = [0; attn_core::layout::MAX_RANK];
    strides[rank - 1] = 1;
    strides[rank - 2] = row.saturating_mul(length);
    strides[rank - 3] = row;
    let mut entry = row.saturating_mul(length).saturating_mul(heads);
    for axis in (0..rank - 3).rev() {
        strides[axis] = entry;
        entry = entry.saturating_mul(shape[axis]);
    }
    Layout::strided(0, *shape, &strides[..rank])
}

/// A layout, or the error that there is none for this shape.
fn made(layout: Option<Layout>, shape: impl FnOnce() -> Result<Dims>) -> Result<Layout> {
    match layout {
        Some(layout) => Ok(layout),
        None => Err(Error::TooLarge {
            argument: "shape",
            got: shape()?,
        }),
    }
}

impl Plan {
    /// For inputs `[batch..., length, features]`.
    ///
    /// # Errors
    ///
    /// [`Error::NoHeads`], [`Error::HeadsDoNotDivide`], [`Error::KvHeadsDoNotDivide`], [`Error::Rank`], [`Error::Mismatch`],
    /// [`Error::TooLarge`].
    pub(crate) fn new(
        num_heads: usize,
        num_kv_heads: Option<usize>,
        qkv_features: Option<usize>,
        out_features: Option<usize>,
        [query, key, value]: [&Dims; 3],
    ) -> Result<Self> {
        let width = features("inputs_q", query)?;
        let Widths {
            num_heads,
            num_kv_heads,
            head_dim,
            hidden,
            kv_hidden,
            out_features,
        } = Widths::new(num_heads, num_kv_heads, qkv_features, out_features, width)?;
        let features = [
            width,
            features("inputs_k", key)?,
            features("inputs_v", value)?,
        ];
        let split = |dims: &Dims, heads| {
            let rows = Dims::new(&dims[..dims.rank() - 1])?;
            rows.concat(&[heads, head_dim])
        };
        let (queries, keys) = (split(query, num_heads)?, split(key, num_kv_heads)?);
        let shape = AttentionShape::of(&queries, &keys, &split(value, num_kv_heads)?)?;
        let batch = Dims::new(&query[..query.rank() - 2])?;
        Ok(Self {
            // What no machine holds has no layout; it is refused where memory would be taken.
            queries: by_heads(&queries).ok(),
            keys: by_heads(&keys).ok(),
            context: Layout::contiguous(queries).ok(),
            flat_context: Layout::contiguous(batch.concat(&[shape.query_length, hidden])?).ok(),
            batch,
            batch_size: shape.batch,
            query_length: shape.query_length,
            key_length: shape.key_length,
            num_heads,
            num_kv_heads,
            head_dim,
            features,
            out_features,
            hidden,
            kv_hidden,
        })
    }

    /// Shape of the output, `[batch..., query_length, out_features]`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] beyond 16 axes.
    pub fn output(&self) -> Result<Dims> {
        self.batch.concat(&[self.query_length, self.out_features])
    }

    /// Shape of the attention weights, `[batch..., num_heads, query_length, key_length]`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] beyond 16 axes.
    pub fn weights(&self) -> Result<Dims> {
        self.batch
            .concat(&[self.num_heads, self.query_length, self.key_length])
    }

    /// Queries, `[batch..., query_length, num_heads, head_dim]`, the rows of a head side by side.
    pub(crate) fn queries(&self) -> Result<Layout> {
        made(self.queries, || self.heads(self.query_length))
    }

    /// Keys or values, `[batch..., key_length, num_kv_heads, head_dim]`, the rows of a head side by side.
    pub(crate) fn keys(&self) -> Result<Layout> {
        made(self.keys, || self.kv_heads(self.key_length))
    }

    /// The output of the attention core, `[batch..., query_length, num_heads, head_dim]`.
    pub(crate) fn context(&self) -> Result<Layout> {
        made(self.context, || self.heads(self.query_length))
    }

    /// The same, `[batch..., query_length, num_heads * head_dim]`.
    pub(crate) fn flat_context(&self) -> Result<Layout> {
        made(self.flat_context, || self.heads(self.query_length))
    }

    pub(crate) fn flat(&self, length: usize) -> Result<Dims> {
        self.batch.concat(&[length, self.hidden])
    }

    pub(crate) fn heads(&self, length: usize) -> Result<Dims> {
        self.batch.concat(&[length, self.num_heads, self.head_dim])
    }

    /// Of keys and values.
    pub(crate) fn kv_heads(&self, length: usize) -> Result<Dims> {
        let heads = [length, self.num_kv_heads, self.head_dim];
        self.batch.concat(&heads)
    }

    /// Query heads that each head of keys and values serves.
    pub(crate) const fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// `[batch..., length, num_heads, head_dim]` without gaps.
    pub(crate) fn by_rows(&self, length: usize) -> Result<Layout> {
        Layout::contiguous(self.heads(length)?)
    }

    /// Buffers that `apply` needs on `backend`.
    ///
    /// ```
    /// use attn_layers::{Cpu, Dims, MultiHeadDotProductAttentionOf};
    /// let layer = MultiHeadDotProductAttentionOf::<f32>::new(4);
    /// let inputs = Dims::new(&[2, 10, 16])?;
    /// let plan = layer.plan(&inputs, &inputs, &inputs)?;
    /// assert_eq!(plan.scratch::<f32, _>(&Cpu::portable()).q, 2 * 10 * 16);
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    pub fn scratch<T: Element, B: Kernels<T> + Backend>(&self, backend: &B) -> ScratchSizes {
        self.sizes(backend, self.key_length, self.rows(self.key_length))
    }

    /// Buffers that `decode` needs on `backend` with a cache of `max_length`, which takes the place of `k` and `v`.
    ///
    /// ```
    /// use attn_layers::{Cpu, Dims, MultiHeadDotProductAttentionOf};
    /// let layer = MultiHeadDotProductAttentionOf::<f32>::new(4);
    /// let token = Dims::new(&[2, 1, 16])?;
    /// let plan = layer.plan(&token, &token, &token)?;
    /// let sizes = plan.decode_scratch::<f32, _>(&Cpu::portable(), 1000);
    /// assert_eq!((sizes.q, sizes.k, sizes.v), (2 * 16, 0, 0));
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    pub fn decode_scratch<T: Element, B: Kernels<T> + Backend>(
        &self,
        backend: &B,
        max_length: usize,
    ) -> ScratchSizes {
        self.sizes(backend, max_length, 0)
    }

    /// Buffers that `forward` needs on `backend`: the kernels' own alone, since the rest is kept as residuals.
    pub fn forward_scratch<T: Element, B: Kernels<T> + Backend>(
        &self,
        backend: &B,
    ) -> ScratchSizes {
        ScratchSizes {
            tiles: self.scratch(backend).tiles,
            ..ScratchSizes::default()
        }
    }

    /// Buffers that `backward` needs on `backend`: the gradients of projections and context.
    pub fn backward_scratch<T: Element, B: Kernels<T> + Backend>(
        &self,
        backend: &B,
    ) -> ScratchSizes {
        let forward = self.scratch(backend);
        let tiles = self.projections().map(|(rows, features, outputs)| {
            backend.project_backward_scratch(rows, features, outputs)
        });
        let attend = self
            .attention_shape(self.query_length, self.key_length)
            .map_or(0, |shape| backend.attend_backward_scratch(&shape));
        ScratchSizes {
            // Projections are made again before a layer norm.
            tiles: tiles
                .into_iter()
                .fold(attend.max(forward.tiles), usize::max),
            ..forward
        }
    }

    /// Buffers of the residuals of `forward`.
    ///
    /// ```
    /// use attn_layers::{Dims, MultiHeadDotProductAttentionOf};
    /// let layer = MultiHeadDotProductAttentionOf::<f32>::new(4);
    /// let inputs = Dims::new(&[2, 10, 16])?;
    /// let sizes = layer.plan(&inputs, &inputs, &inputs)?.residuals();
    /// assert_eq!((sizes.q, sizes.statistics), (2 * 10 * 16, 2 * 4 * 10 * 2));
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    #[must_use]
    pub fn residuals(&self) -> ResidualSizes {
        let queries = self.rows(self.query_length);
        let q = queries.saturating_mul(self.hidden);
        let k = self.rows(self.key_length).saturating_mul(self.kv_hidden);
        let statistics = queries.saturating_mul(self.num_heads).saturating_mul(2);
        ResidualSizes {
            q,
            k,
            v: k,
            context: q,
            statistics,
        }
    }

    /// Shape of the statistics of rows, `[batch..., num_heads, query_length, 2]`.
    pub(crate) fn statistics(&self) -> Result<Dims> {
        self.batch.concat(&[self.num_heads, self.query_length, 2])
    }

    /// Shapes of the inputs to query, key and value.
    pub(crate) fn inputs(&self) -> Result<[Dims; 3]> {
        let of = |length, features| self.batch.concat(&[length, features]);
        Ok([
            of(self.query_length, self.features[0])?,
            of(self.key_length, self.features[1])?,
            of(self.key_length, self.features[2])?,
        ])
    }

    /// Rows, features and outputs of query, key, value and out.
    fn projections(&self) -> [(usize, usize, usize); 4] {
        let (queries, keys) = (self.rows(self.query_length), self.rows(self.key_length));
        [
            (queries, self.features[0], self.hidden),
            (keys, self.features[1], self.kv_hidden),
            (keys, self.features[2], self.kv_hidden),
            (queries, self.hidden, self.out_features),
        ]
    }

    /// For queries over `key_length` keys, of which the scratch holds `kept` rows.
    fn sizes<T: Element, B: Kernels<T> + Backend>(
        &self,
        backend: &B,
        key_length: usize,
        kept: usize,
    ) -> ScratchSizes {
        let queries = self.rows(self.query_length);
        let tiles = self.projections().map(|(rows, features, outputs)| {
            backend.project_each_scratch(rows, features, outputs, 3)
        });
        let attend = self
            .attention_shape(self.query_length, key_length)
            .map_or(0, |shape| backend.attend_scratch(&shape));
        let (q, k) = (
            queries.saturating_mul(self.hidden),
            kept.saturating_mul(self.kv_hidden),
        );
        ScratchSizes {
            q,
            k,
            v: k,
            context: q,
            tiles: tiles.into_iter().fold(attend, usize::max),
        }
    }

    /// Rows of all batch entries.
    fn rows(&self, length: usize) -> usize {
        self.batch_size.saturating_mul(length)
    }

    pub(crate) fn attention_shape(&self, queries: usize, keys: usize) -> Result<AttentionShape> {
        let (query, key) = (self.heads(queries)?, self.kv_heads(keys)?);
        AttentionShape::of(&query, &key, &key)
    }
}
