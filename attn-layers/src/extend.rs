//! Decoding over a [`KvCache`]: the next tokens of a batch of sequences, as many of each as there are.

use crate::decode::narrow;
use crate::inputs::{Inputs, same};
use crate::kv_cache::{AnyKvCache, Incoming, KvCache, KvCachePlan, KvLayout, Targets};
use crate::params::{AnyParams, Params};
use crate::plan::{Plan, ScratchSizes};
use crate::scratch::{AnyScratch, Scratch};
use crate::typed::{
    AnyMultiHeadDotProductAttention, MultiHeadDotProductAttentionOf, Pass, read, whole,
};
use attn_core::{
    Alignment, AnyViewMut, Attention, Causal, Dims, Element, Error, Host, HostView, Kernels,
    Layout, Result, RotaryTable, RowOrder, ViewMut, Window, error::Disagreement,
};

/// The next tokens of the sequences of a cache.
///
/// ```no_run
/// # use attn_layers::{Cpu, Dense, KvCachePlan, KvLayout, OwnedScratch, Params};
/// use attn_layers::{Dims, HostView, HostViewMut, MultiHeadDotProductAttentionF32, NextTokens, OwnedKvCache};
/// # let layer = MultiHeadDotProductAttentionF32 { use_bias: false, ..MultiHeadDotProductAttentionF32::new(1) };
/// # let (cpu, one) = (Cpu::detect(), [1.0f32]);
/// # let dense = Dense { kernel: HostView::new(&one, &[1, 1, 1])?.into(), bias: None };
/// # let params = Params { query: dense, key: dense, value: dense, out: dense, query_ln: None, key_ln: None };
/// # let mut owned = OwnedKvCache::new(KvCachePlan::new(KvLayout::Contiguous { capacity: 8 }, 2, 1, 1))?;
///
/// // A prompt of three tokens and a single token, in one call.
/// let shape = Dims::new(&[2, 3, 1])?; // [batch, tokens, features]
/// let x = [0.5, 0.5, 0.5, 2.0, 0.0, 0.0];
/// let tokens = NextTokens::new(HostView::new(&x, &shape)?).with_counts(Some(&[3, 1]));
///
/// let plan = layer.plan(&shape, &shape, &shape)?;
/// let mut scratch = OwnedScratch::new(&plan.extend_scratch::<f32, _>(&cpu, owned.plan(), 8))?;
/// let mut y = [0.0; 6];
/// let out = HostViewMut::new(&mut y, &shape)?;
/// layer.extend(&cpu, &plan, &params, &tokens, &mut owned.borrow(), out, &mut scratch.borrow())?;
/// assert_eq!(y[..4], [0.5, 0.5, 0.5, 2.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug, Clone, Copy))]
#[derive(Debug)]
pub struct NextTokens<'a, T: Element> {
    /// Inputs to queries, `[batch..., tokens, features]`.
    pub q: HostView<'a, T>,
    /// Inputs to keys, likewise.
    pub k: HostView<'a, T>,
    /// Inputs to values, likewise.
    pub v: HostView<'a, T>,
    /// The cache's sequence of each batch entry, `[batch]`; of entry `s` it is `s` without it. Those of a ring must follow each other.
    pub sequences: Option<&'a [usize]>,
    /// How many of the tokens each batch entry has, `[batch]`, 0 among them; the rest is padding. All have all without it.
    pub counts: Option<&'a [usize]>,
    /// How many keys a query sees, its own among them; all up to its own without it. A ring has a window of its own, and the smaller one holds.
    pub window: Option<usize>,
    /// Cosines and sines of the layer's rotary embedding, in the place of computing them for each token: for every position up to the last token's.
    pub rotary_table: Option<RotaryTable<'a, Host, T::Acc>>,
}

impl<T: Element> Clone for NextTokens<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element> Copy for NextTokens<'_, T> {}

impl<'a, T: Element> NextTokens<'a, T> {
    /// Queries, keys and values from one array, `[batch..., tokens, features]`.
    #[must_use]
    pub const fn new(x: HostView<'a, T>) -> Self {
        Self {
            q: x,
            k: x,
            v: x,
            sequences: None,
            counts: None,
            window: None,
            rotary_table: None,
        }
    }

    /// With a table of the layer's rotary embedding, which [`Rotary::fill_table`](attn_core::Rotary::fill_table) fills.
    #[must_use]
    pub const fn with_rotary_table(mut self, table: Option<RotaryTable<'a, Host, T::Acc>>) -> Self {
        self.rotary_table = table;
        self
    }

    /// For these sequences of the cache.
    #[must_use]
    pub const fn with_sequences(mut self, sequences: Option<&'a [usize]>) -> Self {
        self.sequences = sequences;
        self
    }

    /// With a number of tokens for each batch entry.
    #[must_use]
    pub const fn with_counts(mut self, counts: Option<&'a [usize]>) -> Self {
        self.counts = counts;
        self
    }

    /// With a window.
    #[must_use]
    pub const fn with_window(mut self, window: Option<usize>) -> Self {
        self.window = window;
        self
    }

    fn inputs(&self) -> Inputs<'a, Host, T> {
        Inputs::cross_attention(self.q, self.k, self.v).with_rotary_table(self.rotary_table)
    }

    const fn targets(&self) -> Targets<'a> {
        Targets {
            sequences: self.sequences,
            counts: self.counts,
        }
    }
}

impl Plan {
    /// Buffers that `extend` needs on `backend` with such a cache, whose sequences grow to at most `longest` tokens.
    ///
    /// ```
    /// use attn_layers::{Cpu, Dims, KvCachePlan, KvLayout, MultiHeadDotProductAttentionOf};
    /// let layer = MultiHeadDotProductAttentionOf::<f32>::new(4);
    /// let tokens = Dims::new(&[2, 3, 16])?;
    /// let plan = layer.plan(&tokens, &tokens, &tokens)?;
    /// let cache = KvCachePlan::new(KvLayout::Ring { window: 8, capacity: 16 }, 2, 4, 4);
    /// let sizes = plan.extend_scratch::<f32, _>(&Cpu::portable(), &cache, 1000);
    /// assert_eq!((sizes.q, sizes.k, sizes.v), (2 * 3 * 16, 2 * 3 * 16, 2 * 3 * 16));
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    pub fn extend_scratch<T: Element, B: Kernels<T>>(
        &self,
        backend: &B,
        cache: &KvCachePlan,
        longest: usize,
    ) -> ScratchSizes {
        let sizes = self.scratch::<T, B>(backend);
        ScratchSizes {
            tiles: sizes.tiles.max(attend_tiles(self, backend, cache, longest)),
            ..sizes
        }
    }
}

#[attn_macros::dtype_variants(f32, f64, f16, bf16, name = "MultiHeadDotProductAttention")]
impl<T: Element> MultiHeadDotProductAttentionOf<T> {
    /// The next tokens of the sequences of a cache: a prompt, a piece of one, a token, or none, different numbers in one call. Their keys and values are appended, and each query sees the
    /// tokens of its sequence up to its own, as far as the window goes. There are no gradients.
    ///
    /// `plan` is that of the tokens' inputs, `[batch..., tokens, features]`, whose batch entries are the cache's sequences; `out` is `[batch..., tokens, out_features]`, and what it holds of padding
    /// is of no use. [`Plan::extend_scratch`] says how much scratch it takes.
    ///
    /// The bits are the same however tokens are cut into calls, and whoever is beside them.
    ///
    /// # Errors
    ///
    /// [`Error::CacheQueryShape`] if the cache is one of another batch or other heads; those of [`KvCache::append`] and of [`MultiHeadDotProductAttentionOf::apply`]; [`Error::Zero`] for a window of 0;
    /// [`Error::Unsupported`] if the backend cannot read such a cache. The cache is then as it was, unless the backend itself fails half-way.
    #[dispatch]
    #[expect(clippy::too_many_arguments, reason = "apply's, and the cache")]
    pub fn extend<B: Kernels<T, Storage = Host>>(
        &self,
        backend: &B,
        plan: &Plan,
        params: &Params<'_, Host, T>,
        tokens: &NextTokens<'_, T>,
        cache: &mut KvCache<'_, T>,
        out: ViewMut<'_, Host, T>,
        scratch: &mut Scratch<'_, Host, T>,
    ) -> Result<(), B::Error> {
        params.check(plan, self.use_bias, self.normalize_qk)?;
        check_tokens(plan, tokens)?;
        check_cache(plan, tokens, cache)?;
        same("output", out.shape(), plan.output()?)?;
        let window = window(tokens, cache.plan())?;
        cache.check_room(tokens.targets(), plan.query_length)?;
        self.check_positions(plan, tokens, cache)?;
        check_tiles(plan, backend, cache, scratch.tiles.len())?;
        let extending = Extending {
            layer: self,
            pass: Pass {
                backend,
                plan,
                row_order: RowOrder::Fixed,
                use_bias: self.use_bias,
            },
            params,
            tokens,
            window,
        };
        extending.run(cache, out, scratch)
    }
}

impl<T: Element> MultiHeadDotProductAttentionOf<T> {
    /// Whether the tokens can turn, each at the position that it has in its sequence.
    fn check_positions(
        &self,
        plan: &Plan,
        tokens: &NextTokens<'_, T>,
        cache: &KvCache<'_, T>,
    ) -> Result<()> {
        let to = tokens.targets();
        let Some(rotary) = &self.rotary else {
            return self.check_rotary(plan, &tokens.inputs(), 0);
        };
        for (sequence, count) in to.growth(plan.batch_size, plan.query_length) {
            if count > 0 {
                let first = cache.length(sequence)?;
                rotary.check(plan.head_dim, tokens.rotary_table.as_ref(), first, count)?;
            }
        }
        Ok(())
    }
}

/// Some of the tokens of every sequence.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    count: usize,
}

/// What the parts of one call share.
struct Extending<'a, B, T: Element> {
    layer: &'a MultiHeadDotProductAttentionOf<T>,
    pass: Pass<'a, B>,
    params: &'a Params<'a, Host, T>,
    tokens: &'a NextTokens<'a, T>,
    window: Option<Window>,
}

impl<B: Kernels<T, Storage = Host>, T: Element> Extending<'_, B, T> {
    fn run(
        &self,
        cache: &mut KvCache<'_, T>,
        mut out: ViewMut<'_, Host, T>,
        scratch: &mut Scratch<'_, Host, T>,
    ) -> Result<(), B::Error> {
        let inputs = self.tokens.inputs();
        self.layer
            .project_inputs(&self.pass, self.params, &inputs, scratch)?;
        self.turn(&inputs, cache, scratch)?;
        let length = self.pass.plan.query_length;
        let part = |first, count| Part { first, count };
        // A backend that cannot do the call says so of no query too, before anything is appended.
        self.attend(part(0, 0), cache, scratch)?;
        self.project_out(part(0, 0), &mut out, scratch)?;
        cache.check(&self.incoming(part(0, length), scratch)?)?;
        let mut done = 0;
        while done < length {
            let part = part(done, at_once(cache).min(length - done));
            cache.write(&self.incoming(part, scratch)?);
            self.attend(part, cache, scratch)?;
            done += part.count;
        }
        self.project_out(part(0, length), &mut out, scratch)
    }

    /// Turns queries and keys, those of each sequence from its length on.
    fn turn(
        &self,
        inputs: &Inputs<'_, Host, T>,
        cache: &KvCache<'_, T>,
        scratch: &mut Scratch<'_, Host, T>,
    ) -> Result<(), B::Error> {
        let plan = self.pass.plan;
        let growth = self
            .tokens
            .targets()
            .growth(plan.batch_size, plan.query_length);
        for (entry, (sequence, count)) in growth.enumerate() {
            if self.layer.rotary.is_none() || count == 0 {
                continue;
            }
            let turn = self.layer.turn(inputs, cache.length(sequence)?);
            for (buf, layout, heads) in [
                (&mut *scratch.q, plan.queries()?, plan.num_heads),
                (&mut *scratch.k, plan.keys()?, plan.num_kv_heads),
            ] {
                let axes = plan.batch.rank();
                let shape = [count, heads, plan.head_dim];
                let start = layout.base(axes, entry);
                let rows = Layout::strided(start, Dims::new(&shape)?, &layout.strides()[axes..])?;
                self.pass.rotate(turn, whole(buf, rows, "q")?)?;
            }
        }
        Ok(())
    }

    /// Projected keys and values.
    fn incoming<'s>(
        &'s self,
        part: Part,
        scratch: &'s Scratch<'_, Host, T>,
    ) -> Result<Incoming<'s, T>> {
        let keys = self.pass.plan.keys()?;
        let (key, value) = (read(scratch.k, keys)?, read(scratch.v, keys)?);
        Ok(Incoming {
            first: part.first,
            most: part.count,
            ..Incoming::new(key, value, self.tokens.targets())
        })
    }

    /// The part's queries over the cache, which has the part already.
    fn attend(
        &self,
        part: Part,
        cache: &mut KvCache<'_, T>,
        scratch: &mut Scratch<'_, Host, T>,
    ) -> Result<(), B::Error> {
        let plan = self.pass.plan;
        // What was appended last may be of another call.
        let appended = part.count > 0;
        let (cached, sequences) = cache.seen_by(self.tokens.targets(), &plan.batch, appended)?;
        let query = read(scratch.q, self.rows(&plan.queries()?, part)?)?;
        let call = Attention::cached(query, &cached)
            .with_causal(Some(Causal::bottom_right()))
            .with_window(self.window)
            .with_sequences(Some(sequences));
        let mut context: ViewMut<'_, Host, T> = whole(scratch.context, plan.context()?, "context")?;
        let rows = self.rows(context.layout(), part)?;
        let context = ViewMut::with_layout(context.buf_mut(), rows)?;
        self.pass.backend.attend(call, context, scratch.tiles)
    }

    fn project_out(
        &self,
        part: Part,
        out: &mut ViewMut<'_, Host, T>,
        scratch: &mut Scratch<'_, Host, T>,
    ) -> Result<(), B::Error> {
        let rows = self.rows(out.layout(), part)?;
        let out = ViewMut::with_layout(out.buf_mut(), rows)?;
        let context = self.rows(&self.pass.plan.flat_context()?, part)?;
        let context = read(scratch.context, context)?;
        self.pass
            .dense(&self.params.out, context, out, scratch.tiles)
    }

    /// The part's tokens of an array `[batch..., tokens, ...]`.
    fn rows(&self, layout: &Layout, part: Part) -> Result<Layout> {
        narrow(layout, self.pass.plan.batch.rank(), part.first, part.count)
    }
}

/// How many tokens of each sequence can be appended before the first of them attends: after that, a ring must still hold its window.
fn at_once<T: Element>(cache: &KvCache<'_, T>) -> usize {
    match cache.plan().layout {
        KvLayout::Contiguous { .. } | KvLayout::Paged { .. } => usize::MAX,
        KvLayout::Ring { window, capacity } => (capacity - window + 1).max(cache.least_room()),
    }
}

/// The kernels' own tiles for the attention of any part of a call.
fn attend_tiles<T: Element, B: Kernels<T>>(
    plan: &Plan,
    backend: &B,
    cache: &KvCachePlan,
    longest: usize,
) -> usize {
    let least = match cache.layout {
        KvLayout::Contiguous { .. } | KvLayout::Paged { .. } => plan.query_length,
        KvLayout::Ring { .. } => 1,
    };
    (least..=plan.query_length)
        .filter_map(|queries| plan.attention_shape(queries, longest).ok())
        .map(|shape| backend.attend_scratch(&shape))
        .fold(0, usize::max)
}

fn check_tiles<T: Element, B: Kernels<T>>(
    plan: &Plan,
    backend: &B,
    cache: &KvCache<'_, T>,
    got: usize,
) -> Result<()> {
    let longest = cache.longest().saturating_add(plan.query_length);
    let wanted = attend_tiles(plan, backend, cache.plan(), longest);
    if got < wanted {
        return Err(Error::Scratch {
            argument: "tiles",
            got,
            wanted,
        });
    }
    Ok(())
}

/// The window of a call: its own or its ring's, whichever is smaller.
fn window<T: Element>(tokens: &NextTokens<'_, T>, cache: &KvCachePlan) -> Result<Option<Window>> {
    let of_ring = match cache.layout {
        KvLayout::Ring { window, .. } => Some(window),
        KvLayout::Contiguous { .. } | KvLayout::Paged { .. } => None,
    };
    let keys = match (tokens.window, of_ring) {
        (Some(own), Some(ring)) => Some(own.min(ring)),
        (own, ring) => own.or(ring),
    };
    let Some(keys) = keys else { return Ok(None) };
    let before = keys
        .checked_sub(1)
        .ok_or(Error::Zero { argument: "window" })?;
    Ok(Some(Window::new(
        Alignment::BottomRight,
        Some(before),
        None,
    )))
}

fn check_tokens<T: Element>(plan: &Plan, tokens: &NextTokens<'_, T>) -> Result<()> {
    if plan.query_length != plan.key_length {
        return Err(Error::Mismatch {
            what: Disagreement::Lengths,
            left: plan.heads(plan.query_length)?,
            right: plan.kv_heads(plan.key_length)?,
        });
    }
    tokens.inputs().check(plan, plan.key_length)
}

fn check_cache<T: Element>(
    plan: &Plan,
    tokens: &NextTokens<'_, T>,
    cache: &KvCache<'_, T>,
) -> Result<()> {
    let got = Dims::new(&[
        plan.batch_size,
        plan.query_length,
        plan.num_heads,
        plan.head_dim,
    ])?;
    let KvCachePlan {
        sequences,
        key_heads,
        depth,
        value_depth,
        ..
    } = *cache.plan();
    let entries = tokens.targets().entries(sequences);
    let heads = key_heads.saturating_mul(plan.group());
    for depth in [depth, value_depth] {
        let wanted = Dims::new(&[entries, plan.query_length, heads, depth])?;
        if got != wanted {
            return Err(Error::CacheQueryShape { got, wanted });
        }
    }
    tokens
        .sequences
        .map_or(Ok(()), |sequences| cache.check_choice(sequences))
}
