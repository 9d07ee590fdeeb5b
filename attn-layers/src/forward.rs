//! Flax's `__call__`, step by step and in its order of errors, on arrays whose dtypes are known only at run time.

use crate::bind::DenseParams;
use crate::cache::{AnyCache, CacheAccess, Overwritten};
use crate::functions::{Core, DotProductAttention, Kept, Purpose, attention, inexact};
use crate::hooks::{AttentionArgs, AttentionFn};
use crate::layer::{Call, MultiHeadDotProductAttention, Output};
use crate::params::ParamSource;
use crate::plan::Widths;
use crate::product::{Product, run};
use crate::random::{Key, Stream};
use crate::stage::{self, HostKernels, Turning, promote};
use crate::tensor::{Tensor, TensorView};
use attn_core::{Causal, Dims, Error, Positions, Result, RowOrder, ScalarType};

type Layer<'h> = MultiHeadDotProductAttention<'h>;

/// `module.apply`: plain attention, the call that makes a cache, or a step on one.
pub(crate) fn apply<B: HostKernels>(
    layer: &Layer<'_>,
    backend: &B,
    params: &dyn ParamSource,
    mut call: Call<'_>,
) -> Result<Output> {
    let access = core::mem::take(&mut call.cache);
    let pass = Pass::new(layer, backend, params, &call)?;
    let projected = pass.project_inputs(&call, pass.first_position(&access)?)?;
    let plain = || pass.finish(&call, &projected.heads(), None);
    if !layer.decode {
        return plain();
    }
    match access {
        CacheAccess::None => Err(Error::CacheMissing),
        CacheAccess::Immutable(cache) => {
            pass.check_query(&projected, cache, 1)?;
            cache.check_update(&projected.key.view(), &projected.value.view())?;
            Err(Error::CacheImmutable)
        }
        CacheAccess::Mutable(Some(cache)) => {
            pass.check_query(&projected, cache, 1)?;
            Ok(pass.step(&call, &projected, cache, 1)?.0)
        }
        CacheAccess::Mutable(absent) => {
            let fresh = AnyCache::like(&projected.key.view(), &projected.value.view())?;
            let output = plain()?;
            *absent = Some(fresh);
            Ok(output)
        }
    }
}

/// The cache that a call would make, without computing it.
pub(crate) fn init_cache(
    layer: &Layer<'_>,
    params: &dyn ParamSource,
    call: &Call<'_>,
) -> Result<AnyCache> {
    let [query, key, value] = resolve(call)?;
    let sizes = layer.widths(query.shape())?;
    let projected = |scope: &'static str, input: &TensorView<'_>| -> Result<_> {
        let dense = sizes.input(params, scope, input, layer.use_bias)?;
        let dtype = promote(inexact(layer.dtype)?, dense.scalars(input));
        let rows = &input.shape()[..input.shape().rank() - 1];
        Ok((dtype, sizes.heads(scope, rows)?))
    };
    let (mut key_dtype, key_shape) = projected("key", &key)?;
    let (value_dtype, value_shape) = projected("value", &value)?;
    if layer.normalize_qk {
        let scale = sizes.scale(params, "key_ln")?;
        key_dtype = promote(inexact(layer.dtype)?, [key_dtype.scalar(), scale.scalar()]);
    }
    Ok(AnyCache {
        cached_key: Tensor::zeros(key_dtype.scalar(), &key_shape)?,
        cached_value: Tensor::zeros(value_dtype.scalar(), &value_shape)?,
        cache_index: 0,
    })
}

/// Which array serves as query, key and value.
pub(crate) fn resolve<'a>(call: &Call<'a>) -> Result<[TensorView<'a>; 3]> {
    roles(call.inputs_q, call.inputs_k, call.inputs_v, call.inputs_kv)
}

/// Which of the inputs, or of what stands for them, serves as query, key and value.
pub(crate) fn roles<I: Copy>(
    query: I,
    key: Option<I>,
    value: Option<I>,
    both: Option<I>,
) -> Result<[I; 3]> {
    match (key, value, both) {
        (None, None, Some(both)) => Ok([query, both, both]),
        (_, _, Some(_)) => Err(Error::InputsKvWithKeyOrValue),
        (None, Some(_), None) => Err(Error::ValueWithoutKey),
        (key, value, None) => {
            let key = key.unwrap_or(query);
            Ok([query, key, value.unwrap_or(key)])
        }
    }
}

/// Projected inputs, normalised and turned where the layer does, `[batch..., length, heads, head_dim]`: queries have `num_heads`, keys
/// and values `num_kv_heads`.
pub(crate) struct Projected {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
}

impl Projected {
    pub(crate) fn heads(&self) -> Heads<'_> {
        Heads {
            query: self.query.view(),
            key: self.key.view(),
            value: self.value.view(),
        }
    }
}

/// What the attention core reads, `[batch..., length, heads, head_dim]`.
pub(crate) struct Heads<'a> {
    pub(crate) query: TensorView<'a>,
    pub(crate) key: TensorView<'a>,
    pub(crate) value: TensorView<'a>,
}

/// What the steps of one call share.
pub(crate) struct Pass<'a, 'h, B> {
    pub(crate) layer: &'a Layer<'h>,
    pub(crate) backend: &'a B,
    pub(crate) params: &'a dyn ParamSource,
    pub(crate) sizes: Widths,
}

impl<'a, 'h, B: HostKernels> Pass<'a, 'h, B> {
    pub(crate) fn new(
        layer: &'a Layer<'h>,
        backend: &'a B,
        params: &'a dyn ParamSource,
        call: &Call<'_>,
    ) -> Result<Self> {
        let [query, ..] = resolve(call)?;
        Ok(Self {
            layer,
            backend,
            params,
            sizes: layer.widths(query.shape())?,
        })
    }

    /// Decoding must give a token the same bits alone and among others.
    fn row_order(&self) -> RowOrder {
        if self.layer.decode {
            RowOrder::Fixed
        } else {
            RowOrder::Any
        }
    }

    /// The position of the first row of a call, which a step has from its cache.
    fn first_position(&self, access: &CacheAccess<'_>) -> Result<usize> {
        match access {
            CacheAccess::Immutable(cache) if self.layer.decode => self.position_in(cache),
            CacheAccess::Mutable(Some(cache)) if self.layer.decode => self.position_in(cache),
            _ => Ok(0),
        }
    }

    /// The position of the next token, where positions matter.
    pub(crate) fn position_in(&self, cache: &AnyCache) -> Result<usize> {
        if self.layer.rotary.is_none() {
            return Ok(0);
        }
        usize::try_from(cache.cache_index).map_err(|_| Error::Entry {
            argument: "cache_index",
            index: 0,
            got: cache.cache_index.into(),
            least: 0,
            most: i32::MAX.into(),
        })
    }

    /// Whether a cache is one for these queries.
    pub(crate) fn check_query(
        &self,
        projected: &Projected,
        cache: &AnyCache,
        tokens: usize,
    ) -> Result<()> {
        let group = self.sizes.num_heads / self.sizes.num_kv_heads;
        cache.check_query(projected.query.shape(), tokens, group)
    }

    /// Queries and keys as the core reads them, values; the first row lies at position `first`.
    pub(crate) fn project_inputs(&self, call: &Call<'_>, first: usize) -> Result<Projected> {
        let Projected { query, key, value } = self.project_raw(call)?;
        let [query, key] = self.prepare([query, key], first)?;
        Ok(Projected { query, key, value })
    }

    /// Queries and keys through the layer norms and the rotation, where there are any.
    pub(crate) fn prepare(&self, [query, key]: [Tensor; 2], first: usize) -> Result<[Tensor; 2]> {
        let normalized = match self.layer.normalize_qk {
            true => [
                self.normalize("query_ln", query)?,
                self.normalize("key_ln", key)?,
            ],
            false => [query, key],
        };
        let [query, key] = normalized.map(|x| self.rotate(x, first, false));
        Ok([query?, key?])
    }

    /// Queries, keys or their gradients, turned where the layer turns them.
    pub(crate) fn rotate(&self, x: Tensor, first: usize, inverse: bool) -> Result<Tensor> {
        match self.layer.rotary {
            None => Ok(x),
            Some(rotary) => {
                let turning = Turning {
                    rotary,
                    positions: Positions::From(first),
                    table: None,
                    inverse,
                };
                stage::rotate(self.backend, x, &turning)
            }
        }
    }

    /// Queries, keys and values before the layer norms.
    pub(crate) fn project_raw(&self, call: &Call<'_>) -> Result<Projected> {
        let [query, key, value] = resolve(call)?;
        Ok(Projected {
            query: self.project_heads("query", &query)?,
            key: self.project_heads("key", &key)?,
            value: self.project_heads("value", &value)?,
        })
    }

    fn project_heads(&self, scope: &'static str, input: &TensorView<'_>) -> Result<Tensor> {
        let layer = self.layer;
        let dense = self
            .sizes
            .input(self.params, scope, input, layer.use_bias)?;
        let out = self.dense(&dense, input, &Product::of_inputs(layer))?;
        let rows = &input.shape()[..input.shape().rank() - 1];
        out.reshape(&self.sizes.heads(scope, rows)?)
    }

    /// The out projection of the core's output.
    pub(crate) fn project_out(&self, context: &Tensor) -> Result<Tensor> {
        let dense = self.sizes.output(self.params, self.layer.use_bias)?;
        let input = self.flat_context(context)?;
        self.dense(&dense, &input, &Product::of_out(self.layer))
    }

    /// The core's output, `[batch..., length, heads * head_dim]`.
    pub(crate) fn flat_context<'t>(&self, context: &'t Tensor) -> Result<TensorView<'t>> {
        let heads = [self.sizes.num_heads, self.sizes.head_dim];
        let Some(rows) = context.shape().strip_suffix(&heads) else {
            return Err(Error::Hook {
                hook: "attention_fn",
                reason: "its result is not [batch..., length, heads, head_dim]",
            });
        };
        let flat = Dims::new(rows)?.push(self.sizes.hidden)?;
        context.view().reshape(&flat)
    }

    fn dense(
        &self,
        dense: &DenseParams<'_>,
        input: &TensorView<'_>,
        hook: &Product<'h>,
    ) -> Result<Tensor> {
        let dtype = promote(inexact(self.layer.dtype)?, dense.scalars(input));
        match hook.chosen() {
            Some(function) => run(&*function, hook.field, dense, dtype, input),
            None => stage::project(
                self.backend,
                dtype,
                self.row_order(),
                input,
                &dense.kernel,
                dense.bias.as_ref(),
            ),
        }
    }

    pub(crate) fn normalize(&self, scope: &'static str, x: Tensor) -> Result<Tensor> {
        let scale = self.sizes.scale(self.params, scope)?;
        let dtype = promote(inexact(self.layer.dtype)?, [x.scalar(), scale.scalar()]);
        stage::normalize(self.backend, dtype, x, &scale)
    }

    /// A decoding step on a cache that is there, which then has seen `tokens` more.
    pub(crate) fn step(
        &self,
        call: &Call<'_>,
        projected: &Projected,
        cache: &mut AnyCache,
        tokens: usize,
    ) -> Result<(Output, Overwritten)> {
        let offset = cache.cache_index as isize;
        let overwritten = cache.update(&projected.key.view(), &projected.value.view(), tokens)?;
        let heads = Heads {
            query: projected.query.view(),
            key: cache.cached_key.view(),
            value: cache.cached_value.view(),
        };
        let output = check_step_mask(call, heads.key.shape().rank())
            .and_then(|()| self.finish(call, &heads, Some(Causal::offset(offset))));
        match output {
            Ok(output) => Ok((output, overwritten)),
            Err(error) => {
                overwritten.restore(cache);
                Err(error)
            }
        }
    }

    /// The attention core and the out projection.
    fn finish(&self, call: &Call<'_>, heads: &Heads<'_>, causal: Option<Causal>) -> Result<Output> {
        let purpose = Purpose {
            sow_weights: call.sow_weights,
            gradients: false,
        };
        let core = self.core(call, heads, causal, purpose)?.0;
        Ok(Output {
            out: self.project_out(&core.out)?,
            attention_weights: core.weights,
        })
    }

    /// The attention core, the layer's own or the user's, and what was left to chance.
    pub(crate) fn core(
        &self,
        call: &Call<'_>,
        heads: &Heads<'_>,
        causal: Option<Causal>,
        purpose: Purpose,
    ) -> Result<(Core, Chance)> {
        let chance = self.chance(call)?;
        let core = match self.layer.attention_fn {
            Some(function) => self.hooked(function, call, heads, causal, chance)?,
            None => self.with_arguments(call, heads, chance, |arguments| {
                attention(self.backend, arguments, &heads.value, causal, purpose)
            })?,
        };
        Ok((core, chance))
    }

    /// Whether the layer itself would drop weights in this call, if it is a right one.
    pub(crate) fn may_drop(&self, call: &Call<'_>) -> bool {
        let deterministic = self.layer.deterministic.or(call.deterministic);
        self.layer.dropout_rate != 0.0 && deterministic != Some(true)
    }

    /// Whether weights are dropped, and by which key.
    fn chance(&self, call: &Call<'_>) -> Result<Chance> {
        let given = call.dropout_rng;
        if !self.layer.drops(call.deterministic)? {
            return Ok(Chance::none(given));
        }
        let drawn = || {
            let (path, count) = (self.layer.path, call.make_rng_count);
            call.rngs.make_rng(Stream::Dropout, path, count)
        };
        let key = given.map_or_else(|| drawn().map(Key::words), Ok)?;
        Ok(Chance {
            deterministic: false,
            dropout_rng: Some(key),
        })
    }

    /// Calls `run` with the arguments of the layer's own core.
    pub(crate) fn with_arguments<R>(
        &self,
        call: &Call<'_>,
        heads: &Heads<'_>,
        chance: Chance,
        run: impl FnOnce(&DotProductAttention<'_>) -> R,
    ) -> R {
        let layer = self.layer;
        let qk = layer.qk_attn_weights_einsum_cls.map(|factory| factory());
        let value = layer.attn_weights_value_einsum_cls.map(|factory| factory());
        run(&DotProductAttention {
            mask: call.mask,
            broadcast_dropout: layer.broadcast_dropout,
            dropout_rng: chance.dropout_rng,
            dropout_rate: layer.dropout_rate,
            convention: call.rngs.convention,
            deterministic: chance.deterministic,
            dtype: layer.dtype,
            precision: layer.precision,
            force_fp32_for_softmax: layer.force_fp32_for_softmax,
            qk_attn_weights_einsum: qk.as_deref(),
            attn_weights_value_einsum: value.as_deref(),
            may_group: true,
            ..DotProductAttention::new(heads.query, heads.key)
        })
    }

    /// The user's core. It sows no weights: Flax leaves that to it too.
    fn hooked(
        &self,
        function: &dyn AttentionFn,
        call: &Call<'_>,
        heads: &Heads<'_>,
        causal: Option<Causal>,
        chance: Chance,
    ) -> Result<Core> {
        let mask = causal
            .map(|causal| step_mask(call, causal, heads))
            .transpose()?;
        let mask = mask.as_ref().map(Tensor::view).or(call.mask);
        let args = self.attention_args(call, mask, chance)?;
        Ok(Core {
            out: function.call(heads.query, heads.key, heads.value, &args)?,
            weights: None,
            kept: Some(Kept::Nothing),
        })
    }

    /// What the user's core is given beside query, key and value.
    pub(crate) fn attention_args<'m>(
        &self,
        call: &Call<'_>,
        mask: Option<TensorView<'m>>,
        chance: Chance,
    ) -> Result<AttentionArgs<'m>> {
        let layer = self.layer;
        Ok(AttentionArgs {
            mask,
            dropout_rng: chance.dropout_rng,
            dropout_rate: layer.dropout_rate,
            broadcast_dropout: layer.broadcast_dropout,
            convention: call.rngs.convention,
            deterministic: chance.deterministic,
            dtype: inexact(layer.dtype)?,
            precision: layer.precision,
            force_fp32_for_softmax: layer.force_fp32_for_softmax,
        })
    }
}

/// What a call leaves to chance.
#[derive(Clone, Copy)]
pub(crate) struct Chance {
    deterministic: bool,
    /// The key that was given, or the one that was drawn.
    dropout_rng: Option<[u32; 2]>,
}

impl Chance {
    fn none(dropout_rng: Option<[u32; 2]>) -> Self {
        Self {
            deterministic: true,
            dropout_rng,
        }
    }
}

/// In a step the mask is combined with the cache's own, which has the rank of the weights.
fn check_step_mask(call: &Call<'_>, rank: usize) -> Result<()> {
    match &call.mask {
        Some(mask) if mask.shape().rank() != rank => Err(Error::MaskRank {
            left: mask.shape().rank(),
            right: rank,
        }),
        _ => Ok(()),
    }
}

/// The mask that `attention_fn` sees in a step: the user's and the cache's.
fn step_mask(call: &Call<'_>, causal: Causal, heads: &Heads<'_>) -> Result<Tensor> {
    let [batch @ .., queries, _, _] = heads.query.shape().as_slice() else {
        return Err(Error::Rank {
            argument: "query",
            got: heads.query.shape().rank(),
            wanted: "[batch..., length, heads, head_dim]",
        });
    };
    let keys = heads.key.shape()[batch.len()];
    let shape = Dims::new(batch)?.concat(&[1, *queries, keys])?;
    let rows = shape.elements()?.checked_div(keys).unwrap_or(0);
    let sees = (0..rows).flat_map(|row| {
        let query = row % queries;
        (0..keys).map(move |key| f64::from(u8::from(causal.sees(query, key, *queries, keys))))
    });
    let own = Tensor::from_f64s(ScalarType::F32, &shape, sees)?;
    let both = crate::masks::combine_masks(&[call.mask, Some(own.view())], ScalarType::F32)?;
    Ok(both.unwrap_or(own))
}
