//! Decoding in one dtype: tokens are projected straight into the slots of a cache that the caller holds.

use crate::inputs::{AnyInputs, Inputs, same};
use crate::params::{AnyParams, Params};
use crate::plan::Plan;
use crate::scratch::{AnyScratch, Scratch};
use crate::typed::{
    AnyMultiHeadDotProductAttention, MultiHeadDotProductAttentionOf, Pass, read, whole,
};
use attn_core::{
    AnyViewMut, Attention, Causal, Dims, Element, Error, FullyMasked, Kernels, Layout, Mask,
    Result, RowOrder, Storage, View, ViewMut, error::Disagreement,
};

/// What a full cache does with another token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// Overwrites the last slot, as Flax does; the index goes on counting.
    #[default]
    OverwriteLast,
    /// [`Error::CacheFull`], the cache as it was.
    Error,
}

/// The cache of a decoding layer: `cached_key` and `cached_value`, `[batch..., max_length, num_kv_heads, head_dim]`, and `cache_index`.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
#[derive(Debug)]
pub struct DecodeCache<'c, S: Storage, T: Element> {
    /// Keys, normalised and rotated already where the layer does.
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
            wanted: "[batch..., max_length, num_kv_heads, head_dim]",
        })?;
        Ok(shape[axis])
    }
}

#[attn_macros::dtype_variants(f32, f64, f16, bf16, name = "MultiHeadDotProductAttention")]
impl<T: Element> MultiHeadDotProductAttentionOf<T> {
    /// One or more tokens of decoding: their keys and values go into the cache, and each query sees the tokens up to its own.
    ///
    /// `plan` is that of the tokens' inputs, `[batch..., tokens, features]`; `out` is `[batch..., tokens, out_features]`; a mask of
    /// `inputs` broadcasts to `[batch..., heads, tokens, max_length]`. [`Plan::decode_scratch`] says how much scratch it takes.
    ///
    /// Many tokens at once give the same bits as one after the other, if all are finite and scores far from the dtype's limits (a backend may let a query
    /// meet later values with a weight of 0, and beside a score of -inf a masked slot counts). With dropout, or a mask and [`FullyMasked::MeanOfValues`], they are done one after the other.
    ///
    /// # Errors
    ///
    /// [`Error::CacheQueryShape`] if the cache is one of another batch or other heads; [`Error::CacheFull`] if the cache is to say so;
    /// those of [`MultiHeadDotProductAttentionOf::apply`]. The index is as it was unless the backend itself fails half-way.
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
        inputs.check(plan, max_length)?;
        refuse_unsupported(inputs)?;
        self.check_rotary(plan, inputs, cache.cache_index)?;
        same("output", out.shape(), plan.output()?)?;
        let tokens = plan.query_length;
        let free = max_length.saturating_sub(cache.cache_index);
        if cache.on_full == OnFull::Error && tokens > free {
            return Err(Error::CacheFull { got: tokens, free }.into());
        }
        let pass = Pass {
            backend,
            plan,
            row_order: RowOrder::Fixed,
            use_bias: self.use_bias,
        };
        let decoding = Decoding {
            layer: self,
            pass,
            params,
            inputs,
        };
        // A query that sees no key gets the mean of all slots, of which those after its own must not be written yet. The mask's bytes
        // may lie on a device, so with one every token is taken to be such.
        let may_be_blind = inputs.mask.is_some() && self.fully_masked == FullyMasked::MeanOfValues;
        // Each token fed alone draws the same numbers for its one row.
        let most = match may_be_blind || inputs.dropout.is_some() {
            true => 1,
            false => tokens,
        };
        let (mut out, mut done) = (out, 0);
        while done < tokens {
            // Past the end every token overwrites the last slot, so each must be seen before the next is written.
            let free = max_length.saturating_sub(cache.cache_index);
            let count = free.min(tokens - done).min(most).max(1);
            let part = Part {
                first: done,
                count,
                slot: cache.cache_index.min(max_length - count),
            };
            decoding.write(&part, cache, scratch)?;
            decoding.attend(&part, cache, scratch)?;
            decoding.project_out(&part, &mut out, scratch)?;
            cache.cache_index = cache.cache_index.saturating_add(count);
            done += count;
        }
        Ok(())
    }
}

/// Some of the tokens of a decoding call, and the cache's slot of the first.
struct Part {
    first: usize,
    count: usize,
    slot: usize,
}

/// What the parts of one decoding call share.
struct Decoding<'a, B: Kernels<T>, T: Element> {
    layer: &'a MultiHeadDotProductAttentionOf<T>,
    pass: Pass<'a, B>,
    params: &'a Params<'a, B::Storage, T>,
    inputs: &'a Inputs<'a, B::Storage, T>,
}

impl<B: Kernels<T>, T: Element> Decoding<'_, B, T> {
    /// Projects the part's queries into the scratch, its keys and values into the cache.
    fn write(
        &self,
        part: &Part,
        cache: &mut DecodeCache<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let (pass, params, inputs) = (&self.pass, self.params, self.inputs);
        let axis = pass.plan.batch.rank();
        let query = self.tokens(&inputs.q, part)?;
        let to = whole(
            scratch.q,
            Layout::contiguous(pass.plan.flat(part.count)?)?,
            "q",
        )?;
        pass.dense(&params.query, query, to, scratch.tiles)?;
        for (dense, input, cached) in [
            (&params.key, &inputs.k, &mut cache.cached_key),
            (&params.value, &inputs.v, &mut cache.cached_value),
        ] {
            let slots = narrow(cached.layout(), axis, part.slot, part.count)?;
            let to = ViewMut::with_layout(cached.buf_mut(), flatten_heads(&slots)?)?;
            pass.dense(dense, self.tokens(input, part)?, to, scratch.tiles)?;
        }
        if self.layer.normalize_qk {
            let query = whole(scratch.q, pass.plan.by_rows(part.count)?, "q")?;
            pass.normalize(params.query_ln, query)?;
            let slots = narrow(cache.cached_key.layout(), axis, part.slot, part.count)?;
            let key = ViewMut::with_layout(cache.cached_key.buf_mut(), slots)?;
            pass.normalize(params.key_ln, key)?;
        }
        if let Some(turn) = self.layer.turn(inputs, cache.cache_index) {
            let query = whole(scratch.q, pass.plan.by_rows(part.count)?, "q")?;
            pass.rotate(Some(turn), query)?;
            let slots = narrow(cache.cached_key.layout(), axis, part.slot, part.count)?;
            let key = ViewMut::with_layout(cache.cached_key.buf_mut(), slots)?;
            pass.rotate(Some(turn), key)?;
        }
        Ok(())
    }

    /// The part's queries over the cache, each seeing the tokens up to its own.
    fn attend(
        &self,
        part: &Part,
        cache: &DecodeCache<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let heads = self.pass.plan.by_rows(part.count)?;
        let mask = self.inputs.mask.as_ref();
        let offset = isize::try_from(cache.cache_index).unwrap_or(isize::MAX);
        let call = Attention::new(
            read(scratch.q, heads)?,
            cache.cached_key.as_view(),
            cache.cached_value.as_view(),
        )
        .with_mask(mask.map(|mask| narrow_mask(mask, part)).transpose()?)
        .with_causal(Some(Causal::offset(offset)))
        .with_dropout(self.inputs.dropout)
        .with_fully_masked(self.layer.fully_masked);
        let context = whole(scratch.context, heads, "context")?;
        self.pass.backend.attend(call, context, scratch.tiles)
    }

    fn project_out(
        &self,
        part: &Part,
        out: &mut ViewMut<'_, B::Storage, T>,
        scratch: &mut Scratch<'_, B::Storage, T>,
    ) -> Result<(), B::Error> {
        let plan = self.pass.plan;
        let rows = narrow(out.layout(), plan.batch.rank(), part.first, part.count)?;
        let out = ViewMut::with_layout(out.buf_mut(), rows)?;
        let context = read(scratch.context, Layout::contiguous(plan.flat(part.count)?)?)?;
        self.pass
            .dense(&self.params.out, context, out, scratch.tiles)
    }

    /// The part's tokens of an input.
    fn tokens<'v>(
        &self,
        input: &View<'v, B::Storage, T>,
        part: &Part,
    ) -> Result<View<'v, B::Storage, T>> {
        let axis = self.pass.plan.batch.rank();
        View::with_layout(
            input.buf(),
            narrow(input.layout(), axis, part.first, part.count)?,
        )
    }
}

/// `count` entries of one axis from `first` on.
pub(crate) fn narrow(layout: &Layout, axis: usize, first: usize, count: usize) -> Result<Layout> {
    let mut shape = [0; attn_core::layout::MAX_RANK];
    let shape = &mut shape[..layout.shape().rank()];
    shape.copy_from_slice(layout.shape());
    shape[axis] = count;
    let offset = first
        .checked_mul(layout.strides()[axis])
        .and_then(|step| step.checked_add(layout.offset()))
        .ok_or(Error::TooLarge {
            argument: "layout",
            got: *layout.shape(),
        })?;
    Layout::strided(offset, Dims::new(shape)?, layout.strides())
}

/// `[..., heads, head_dim]` without gaps as `[..., heads * head_dim]`.
fn flatten_heads(layout: &Layout) -> Result<Layout> {
    let (shape, strides) = (layout.shape(), layout.strides());
    let rank = shape.rank();
    let (heads, head_dim) = (shape[rank - 2], shape[rank - 1]);
    let gaps =
        (head_dim > 1 && strides[rank - 1] != 1) || (heads > 1 && strides[rank - 2] != head_dim);
    if gaps {
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
        Dims::new(&shape[..rank - 2])?.push(heads * head_dim)?,
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
    let wanted = plan.kv_heads(max_length)?;
    if *cache.cached_key.shape() != wanted {
        return Err(Error::CacheQueryShape {
            got: plan.heads(plan.query_length)?,
            wanted: queries_of(cache.cached_key.shape(), plan)?,
        });
    }
    same("cached_value", cache.cached_value.shape(), wanted)?;
    if plan.query_length != plan.key_length {
        return Err(Error::Mismatch {
            what: Disagreement::Lengths,
            left: plan.heads(plan.query_length)?,
            right: plan.kv_heads(plan.key_length)?,
        });
    }
    if max_length == 0 && plan.query_length > 0 {
        return Err(Error::CacheFull {
            got: plan.query_length,
            free: 0,
        });
    }
    Ok(max_length)
}

/// The queries that a cache of this shape, `[batch..., max_length, num_kv_heads, head_dim]`, would serve.
fn queries_of(cached: &[usize], plan: &Plan) -> Result<Dims> {
    let (batch, rows) = cached.split_at(cached.len() - 3);
    let heads = rows[1].saturating_mul(plan.group());
    Dims::new(batch)?.concat(&[plan.query_length, heads, rows[2]])
}

fn refuse_unsupported<S: Storage, T: Element>(inputs: &Inputs<'_, S, T>) -> Result<()> {
    if inputs.weights.is_none() && inputs.causal.is_none() {
        return Ok(());
    }
    Err(Error::Unsupported {
        backend: "decode",
        feature: "attention weights, or a causal mask beside the cache's own",
        instead: "Leave them out",
    })
}
