//! The layer in one dtype: no allocation, any backend. Project three times, normalise, attend, project.

use crate::params::{AnyParams, Dense, Params};
use crate::plan::Plan;
use crate::scratch::{AnyScratch, Scratch};
use attn_core::{
    AnyViewMut, Attention, Causal, Dims, Element, Error, FullyMasked, Kernels, Layout, Mask,
    Projection, Result, RowOrder, Storage, View, ViewMut, view::Buffer,
};
use core::marker::PhantomData;

/// Flax's epsilon of the layer norms of `normalize_qk`.
pub(crate) const EPSILON: f64 = 1e-6;

/// `flax.linen.MultiHeadDotProductAttention` computing wholly in `T`: its constructor fields that matter to a call, no
/// data. The named variants are [`MultiHeadDotProductAttentionF32`], …; [`AnyMultiHeadDotProductAttention`] holds one of
/// them, chosen when the weights' dtype is known.
///
/// ```
/// use attn_layers::{Cpu, Dense, Dims, HostView, HostViewMut, Inputs, MultiHeadDotProductAttentionF32, OwnedScratch, Params};
///
/// let cpu = Cpu::detect();
/// let layer = MultiHeadDotProductAttentionF32::new(1);
/// let shape = Dims::new(&[2, 1])?; // [length, features]
/// let plan = layer.plan(&shape, &shape, &shape)?;
/// let (one, zero) = ([1.0f32], [0.0f32]);
/// let input = Dense { kernel: HostView::new(&one, &[1, 1, 1])?, bias: Some(HostView::new(&zero, &[1, 1])?) };
/// let out = Dense { kernel: HostView::new(&one, &[1, 1, 1])?, bias: Some(HostView::new(&zero, &[1])?) };
/// let params = Params { query: input, key: input, value: input, out, query_ln: None, key_ln: None };
/// let mut scratch = OwnedScratch::new(&plan.scratch::<f32, _>(&cpu))?;
///
/// let x = [0.5f32, 0.5];
/// let mut y = [0.0f32; 2];
/// let inputs = Inputs::self_attention(HostView::new(&x, &[2, 1])?);
/// layer.apply(&cpu, &plan, &params, inputs, HostViewMut::new(&mut y, &[2, 1])?, &mut scratch.borrow())?;
/// assert_eq!(y, [0.5, 0.5]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[attn_macros::dtype_variants(
    f32,
    f64,
    f16,
    bf16,
    name = "MultiHeadDotProductAttention",
    derive(Debug, Clone)
)]
#[derive(Debug, Clone)]
pub struct MultiHeadDotProductAttentionOf<T> {
    /// Number of heads.
    pub num_heads: usize,
    /// Total width of query, key and value; `None` or 0 is the width of `inputs_q`.
    pub qkv_features: Option<usize>,
    /// Width of the output; `None` or 0 is the width of `inputs_q`.
    pub out_features: Option<usize>,
    /// Whether the dense layers have a bias.
    pub use_bias: bool,
    /// Layer norm over `head_dim` of queries and keys.
    pub normalize_qk: bool,
    /// What a query gets that sees no key.
    pub fully_masked: FullyMasked,
    dtype: PhantomData<T>,
}

/// The inputs of a call of a typed layer.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
#[derive(Debug)]
pub struct Inputs<'a, S: Storage, T: Element> {
    /// `[batch..., query_length, features]`.
    pub q: View<'a, S, T>,
    /// `[batch..., key_length, features]`.
    pub k: View<'a, S, T>,
    /// `[batch..., key_length, features]`.
    pub v: View<'a, S, T>,
    /// A mask tensor that broadcasts to `[batch..., heads, query_length, key_length]`.
    pub mask: Option<Mask<'a, S>>,
    /// A causal mask without a tensor.
    pub causal: Option<Causal>,
    /// Where to put the attention weights, `[batch..., heads, query_length, key_length]`, if they are wanted.
    pub weights: Option<ViewMut<'a, S, T::Acc>>,
}

impl<'a, S: Storage, T: Element> Inputs<'a, S, T> {
    /// Queries, keys and values from one array.
    #[must_use]
    pub fn self_attention(x: View<'a, S, T>) -> Self {
        Self::cross_attention(x, x, x)
    }

    /// Queries, keys and values from three arrays.
    #[must_use]
    pub fn cross_attention(q: View<'a, S, T>, k: View<'a, S, T>, v: View<'a, S, T>) -> Self {
        Self {
            q,
            k,
            v,
            mask: None,
            causal: None,
            weights: None,
        }
    }

    /// With a mask tensor.
    #[must_use]
    pub fn with_mask(mut self, mask: Option<Mask<'a, S>>) -> Self {
        self.mask = mask;
        self
    }

    /// With a causal mask.
    #[must_use]
    pub fn with_causal(mut self, causal: Option<Causal>) -> Self {
        self.causal = causal;
        self
    }

    /// Asking for the weights.
    #[must_use]
    pub fn with_weights(mut self, weights: Option<ViewMut<'a, S, T::Acc>>) -> Self {
        self.weights = weights;
        self
    }
}

/// What a full cache does with another token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// Overwrites the last slot, as Flax does; the index goes on counting.
    #[default]
    OverwriteLast,
    /// [`Error::CacheFull`], the cache as it was.
    Error,
}

/// The cache of a decoding layer: `cached_key` and `cached_value`, `[batch..., max_length, heads, head_dim]`, and `cache_index`.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
#[derive(Debug)]
pub struct DecodeCache<'c, S: Storage, T: Element> {
    /// Keys, normalised already where the layer does.
    pub cached_key: ViewMut<'c, S, T>,
    /// Values.
    pub cached_value: ViewMut<'c, S, T>,
    /// Tokens seen so far.
    pub cache_index: usize,
    /// What to do when it is full.
    pub on_full: OnFull,
}

impl<S: Storage, T: Element> DecodeCache<'_, S, T> {
    fn max_length(&self) -> Result<usize> {
        let shape = self.cached_key.shape();
        let axis = shape.rank().checked_sub(3).ok_or(Error::Rank {
            argument: "cached_key",
            got: shape.rank(),
            wanted: "[batch..., max_length, heads, head_dim]",
        })?;
        Ok(shape[axis])
    }
}

#[attn_macros::dtype_variants(f32, f64, f16, bf16, name = "MultiHeadDotProductAttention")]
impl<T: Element> MultiHeadDotProductAttentionOf<T> {
    /// Flax's defaults.
    #[must_use]
    pub const fn new(num_heads: usize) -> Self {
        Self {
            num_heads,
            qkv_features: None,
            out_features: None,
            use_bias: true,
            normalize_qk: false,
            fully_masked: FullyMasked::MeanOfValues,
            dtype: PhantomData,
        }
    }

    /// The sizes of a call with inputs of these shapes, `[batch..., length, features]`.
    ///
    /// # Errors
    ///
    /// [`Error::NoHeads`], [`Error::HeadsDoNotDivide`], [`Error::Rank`], [`Error::Mismatch`], [`Error::TooLarge`].
    #[dispatch]
    pub fn plan(&self, inputs_q: &Dims, inputs_k: &Dims, inputs_v: &Dims) -> Result<Plan> {
        Plan::new(
            self.num_heads,
            self.qkv_features,
            self.out_features,
            [inputs_q, inputs_k, inputs_v],
        )
    }

    /// The forward pass. `out` is `[batch..., query_length, out_features]`.
    ///
    /// # Errors
    ///
    /// [`Error::ParamMissing`], [`Error::ParamShape`], [`Error::Shape`], [`Error::Broadcast`], [`Error::Scratch`], and the backend's own.
    #[dispatch]
    pub fn apply<B: Kernels<T>>(
        &self,
        backend: &B,
        plan: &Plan,
        params: &Params<'_, B::Storage, T>,
        inputs: Inputs<'_, B::Storage, T>,
        out: ViewMut<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        params.check(plan, self.use_bias, self.normalize_qk)?;
        let pass = Pass {
            backend,
            plan,
            row_order: RowOrder::Any,
        };
        let (queries, keys) = (plan.query_length, plan.key_length);
        pass.dense(
            &params.query,
            inputs.q,
            whole(scratch.q, &plan.flat(queries)?, "q")?,
            scratch.tiles,
        )?;
        pass.dense(
            &params.key,
            inputs.k,
            whole(scratch.k, &plan.flat(keys)?, "k")?,
            scratch.tiles,
        )?;
        pass.dense(
            &params.value,
            inputs.v,
            whole(scratch.v, &plan.flat(keys)?, "v")?,
            scratch.tiles,
        )?;
        if self.normalize_qk {
            pass.normalize(
                params.query_ln,
                whole(scratch.q, &plan.heads(queries)?, "q")?,
            )?;
            pass.normalize(params.key_ln, whole(scratch.k, &plan.heads(keys)?, "k")?)?;
        }
        let key = read(scratch.k, &plan.heads(keys)?)?;
        let value = read(scratch.v, &plan.heads(keys)?)?;
        let call = Attention::new(read(scratch.q, &plan.heads(queries)?)?, key, value)
            .with_mask(inputs.mask)
            .with_causal(inputs.causal)
            .with_fully_masked(self.fully_masked)
            .with_weights(inputs.weights);
        backend.attend(
            call,
            whole(scratch.context, &plan.heads(queries)?, "context")?,
            scratch.tiles,
        )?;
        pass.dense(
            &params.out,
            read(scratch.context, &plan.flat(queries)?)?,
            out,
            scratch.tiles,
        )
    }

    /// One or more tokens of decoding: their keys and values go into the cache, and each query sees the tokens up to its own.
    ///
    /// `plan` is that of the tokens' inputs, `[batch..., tokens, features]`; `out` is `[batch..., tokens, out_features]`; a mask of
    /// `inputs` broadcasts to `[batch..., heads, tokens, max_length]`. Many tokens at once give the same bits as one after the
    /// other.
    ///
    /// # Errors
    ///
    /// [`Error::CacheQueryShape`] if the cache is one of another batch or other heads; [`Error::CacheFull`] if the cache is to say so;
    /// those of [`MultiHeadDotProductAttentionOf::apply`].
    #[dispatch]
    #[expect(clippy::too_many_arguments, reason = "apply's, and the cache")]
    pub fn decode<B: Kernels<T>>(
        &self,
        backend: &B,
        plan: &Plan,
        params: &Params<'_, B::Storage, T>,
        inputs: &Inputs<'_, B::Storage, T>,
        cache: &mut DecodeCache<'_, B::Storage, T>,
        out: ViewMut<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        params.check(plan, self.use_bias, self.normalize_qk)?;
        let max_length = check_cache(plan, cache)?;
        let tokens = plan.query_length;
        let free = max_length.saturating_sub(cache.cache_index);
        if cache.on_full == OnFull::Error && tokens > free {
            return Err(Error::CacheFull { got: tokens, free }.into());
        }
        check_inputs(plan, inputs, max_length, out.shape())?;
        let pass = Pass {
            backend,
            plan,
            row_order: RowOrder::Fixed,
        };
        let (mut out, mut done) = (out, 0);
        while done < tokens {
            // Past the end every token overwrites the last slot, so each must be seen before the next is written.
            let count = max_length
                .saturating_sub(cache.cache_index)
                .min(tokens - done)
                .max(1);
            let slot = cache.cache_index.min(max_length.saturating_sub(count));
            let part = Part {
                first: done,
                count,
                slot,
            };
            self.decode_part(&pass, &part, params, inputs, cache, &mut out, scratch)?;
            cache.cache_index += count;
            done += count;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "decode's, and the part")]
    fn decode_part<B: Kernels<T>>(
        &self,
        pass: &Pass<'_, B>,
        part: &Part,
        params: &Params<'_, B::Storage, T>,
        inputs: &Inputs<'_, B::Storage, T>,
        cache: &mut DecodeCache<'_, B::Storage, T>,
        out: &mut ViewMut<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let plan = pass.plan;
        let length_axis = plan.batch.rank();
        let tokens = |view: &View<'_, B::Storage, T>| {
            narrow(view.layout(), length_axis, part.first, part.count)
        };
        let query = View::with_layout(inputs.q.buf(), tokens(&inputs.q)?)?;
        pass.dense(
            &params.query,
            query,
            whole(scratch.q, &plan.flat(part.count)?, "q")?,
            scratch.tiles,
        )?;
        for (dense, input, cached) in [
            (&params.key, &inputs.k, &mut cache.cached_key),
            (&params.value, &inputs.v, &mut cache.cached_value),
        ] {
            let input = View::with_layout(input.buf(), tokens(input)?)?;
            let slots = narrow(cached.layout(), length_axis, part.slot, part.count)?;
            let slots = ViewMut::with_layout(cached.buf_mut(), flatten_heads(&slots)?)?;
            pass.dense(dense, input, slots, scratch.tiles)?;
        }
        if self.normalize_qk {
            pass.normalize(
                params.query_ln,
                whole(scratch.q, &plan.heads(part.count)?, "q")?,
            )?;
            let slots = narrow(
                cache.cached_key.layout(),
                length_axis,
                part.slot,
                part.count,
            )?;
            pass.normalize(
                params.key_ln,
                ViewMut::with_layout(cache.cached_key.buf_mut(), slots)?,
            )?;
        }
        let mask = match &inputs.mask {
            None => None,
            Some(mask) => Some(narrow_mask(mask, part)?),
        };
        let offset = isize::try_from(cache.cache_index).unwrap_or(isize::MAX);
        let query = read(scratch.q, &plan.heads(part.count)?)?;
        let call = Attention::new(
            query,
            cache.cached_key.as_view(),
            cache.cached_value.as_view(),
        )
        .with_mask(mask)
        .with_causal(Some(Causal::offset(offset)))
        .with_fully_masked(self.fully_masked);
        let backend = pass.backend;
        backend.attend(
            call,
            whole(scratch.context, &plan.heads(part.count)?, "context")?,
            scratch.tiles,
        )?;
        let rows = narrow(out.layout(), length_axis, part.first, part.count)?;
        let out = ViewMut::with_layout(out.buf_mut(), rows)?;
        pass.dense(
            &params.out,
            read(scratch.context, &plan.flat(part.count)?)?,
            out,
            scratch.tiles,
        )
    }
}

/// Some of the tokens of a decoding call, and the cache's slot of the first.
struct Part {
    first: usize,
    count: usize,
    slot: usize,
}

/// What the steps of one pass share.
struct Pass<'a, B> {
    backend: &'a B,
    plan: &'a Plan,
    row_order: RowOrder,
}

impl<B> Pass<'_, B> {
    /// `DenseGeneral`, its axes flattened: the first or last two of the kernel's are heads and head_dim.
    fn dense<T: Element>(
        &self,
        dense: &Dense<'_, B::Storage, T>,
        input: View<'_, B::Storage, T>,
        out: ViewMut<'_, B::Storage, T>,
        tiles: &mut <B::Storage as Storage>::Buf<T::Acc>,
    ) -> Result<(), B::Error>
    where
        B: Kernels<T>,
    {
        let (Some(&features), Some(&outputs)) = (input.shape().last(), out.shape().last()) else {
            return Err(Error::Rank {
                argument: "inputs",
                got: 0,
                wanted: "[batch..., length, features]",
            }
            .into());
        };
        let kernel = dense.kernel.reshape(&[features, outputs])?;
        let bias = dense
            .bias
            .map(|bias| bias.reshape(&[outputs]))
            .transpose()?;
        let call = Projection {
            input,
            kernel,
            bias,
            row_order: self.row_order,
        };
        self.backend.project(&call, out, tiles)
    }

    fn normalize<T: Element>(
        &self,
        scale: Option<View<'_, B::Storage, T::Acc>>,
        x: ViewMut<'_, B::Storage, T>,
    ) -> Result<(), B::Error>
    where
        B: Kernels<T>,
    {
        match scale {
            Some(scale) => self.backend.normalize(x, scale, EPSILON),
            None => Ok(()),
        }
    }
}

/// The first elements of a scratch buffer as an array.
fn whole<'b, S: Storage, T: attn_core::Scalar>(
    buf: &'b mut S::Buf<T>,
    shape: &Dims,
    name: &'static str,
) -> Result<ViewMut<'b, S, T>> {
    let (got, wanted) = (buf.len(), shape.elements()?);
    if got < wanted {
        return Err(Error::Scratch {
            argument: name,
            got,
            wanted,
        });
    }
    ViewMut::with_layout(buf, Layout::contiguous(*shape)?)
}

fn read<'b, S: Storage, T: attn_core::Scalar>(
    buf: &'b S::Buf<T>,
    shape: &Dims,
) -> Result<View<'b, S, T>> {
    View::with_layout(buf, Layout::contiguous(*shape)?)
}

/// `count` entries of one axis from `first` on.
fn narrow(layout: &Layout, axis: usize, first: usize, count: usize) -> Result<Layout> {
    let mut shape = [0; attn_core::layout::MAX_RANK];
    let shape = &mut shape[..layout.shape().rank()];
    shape.copy_from_slice(layout.shape());
    shape[axis] = count;
    Layout::strided(
        layout.offset() + first * layout.strides()[axis],
        Dims::new(shape)?,
        layout.strides(),
    )
}

/// `[..., heads, head_dim]` without gaps as `[..., heads * head_dim]`.
fn flatten_heads(layout: &Layout) -> Result<Layout> {
    let (shape, strides) = (layout.shape(), layout.strides());
    let rank = shape.rank();
    let hidden = shape[rank - 2] * shape[rank - 1];
    if strides[rank - 1] != 1 || strides[rank - 2] != shape[rank - 1] {
        return Err(Error::Strides {
            argument: "cache",
            wanted: "heads and head_dim without gaps",
        });
    }
    let mut all = [0; attn_core::layout::MAX_RANK];
    all[..rank - 2].copy_from_slice(&strides[..rank - 2]);
    all[rank - 2] = 1;
    Layout::strided(
        layout.offset(),
        Dims::new(&shape[..rank - 2])?.push(hidden)?,
        &all[..rank - 1],
    )
}

/// The rows of a mask that belong to a part of the tokens; a mask that is one row for all stays as it is.
fn narrow_mask<'a, S: Storage>(mask: &Mask<'a, S>, part: &Part) -> Result<Mask<'a, S>> {
    let view = mask.view();
    let Some(axis) = view
        .shape()
        .rank()
        .checked_sub(2)
        .filter(|&axis| view.shape()[axis] != 1)
    else {
        return Ok(*mask);
    };
    let view = View::with_layout(
        view.buf(),
        narrow(view.layout(), axis, part.first, part.count)?,
    )?;
    Ok(if mask.set_means_keep() {
        Mask::keep(view)
    } else {
        Mask::drop(view)
    })
}

fn check_cache<S: Storage, T: Element>(
    plan: &Plan,
    cache: &DecodeCache<'_, S, T>,
) -> Result<usize> {
    let max_length = cache.max_length()?;
    let wanted = plan.heads(max_length)?;
    for view in [cache.cached_key.shape(), cache.cached_value.shape()] {
        if *view != wanted {
            return Err(Error::CacheQueryShape {
                got: plan.heads(plan.query_length)?,
                wanted: *view,
            });
        }
    }
    if plan.query_length != plan.key_length {
        let (left, right) = (plan.heads(plan.query_length)?, plan.heads(plan.key_length)?);
        return Err(Error::Mismatch {
            what: attn_core::error::Disagreement::Lengths,
            left,
            right,
        });
    }
    if max_length == 0 {
        return Err(Error::CacheFull {
            got: plan.query_length,
            free: 0,
        });
    }
    Ok(max_length)
}

/// What must hold before the first part is written.
fn check_inputs<S: Storage, T: Element>(
    plan: &Plan,
    inputs: &Inputs<'_, S, T>,
    max_length: usize,
    out: &Dims,
) -> Result<()> {
    let arguments = [
        ("inputs_q", &inputs.q),
        ("inputs_k", &inputs.k),
        ("inputs_v", &inputs.v),
    ];
    for ((argument, input), features) in arguments.into_iter().zip(plan.features) {
        let wanted = plan.batch.concat(&[plan.query_length, features])?;
        if *input.shape() != wanted {
            return Err(Error::Shape {
                argument,
                got: *input.shape(),
                wanted,
            });
        }
    }
    if *out != plan.output()? {
        return Err(Error::Shape {
            argument: "output",
            got: *out,
            wanted: plan.output()?,
        });
    }
    if let Some(mask) = &inputs.mask {
        let weights = plan
            .batch
            .concat(&[plan.num_heads, plan.query_length, max_length])?;
        mask.view().broadcast_to("mask", &weights)?;
    }
    if inputs.weights.is_some() || inputs.causal.is_some() {
        return Err(Error::Unsupported {
            backend: "decode",
            feature: "attention weights, or a causal mask beside the cache's own",
            instead: "Leave them out",
        });
    }
    Ok(())
}
