//! Flax's `__call__`, step by step and in its order of errors, on arrays whose dtypes are known only at run time.

use crate::bind::{DenseParams, Sizes};
use crate::cache::{AnyCache, CacheAccess, Overwritten};
use crate::functions::{DotProductAttention, attention, inexact};
use crate::hooks::{AttentionArgs, AttentionFn, DotGeneral, DotGeneralCls};
use crate::layer::{Call, MultiHeadDotProductAttention, Output};
use crate::params::ParamSource;
use crate::stage::{self, Attended, HostKernels, promote};
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{Causal, DType, Dims, Error, Result, RowOrder, ScalarType};

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
    let projected = pass.project_inputs(&call)?;
    if !layer.decode {
        return pass.finish(&call, &projected.heads(), None);
    }
    match access {
        CacheAccess::None => Err(Error::CacheMissing),
        CacheAccess::Immutable(cache) => {
            cache.check_query(projected.query.shape(), 1)?;
            cache.check_update(&projected.key.view(), &projected.value.view())?;
            Err(Error::CacheImmutable)
        }
        CacheAccess::Mutable(Some(cache)) => {
            cache.check_query(projected.query.shape(), 1)?;
            Ok(pass.step(&call, &projected, cache, 1)?.0)
        }
        CacheAccess::Mutable(absent) => {
            let fresh = AnyCache::like(&projected.key.view(), &projected.value.view())?;
            let output = pass.finish(&call, &projected.heads(), None)?;
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
    let sizes = Sizes::new(layer, &query)?;
    let projected = |scope: &'static str, input: &TensorView<'_>| {
        let dense = sizes.input(params, scope, input, layer.use_bias)?;
        let dtype = promote(inexact(layer.dtype)?, dense.scalars(input));
        let rows = &input.shape()[..input.shape().rank() - 1];
        Ok((dtype, sizes.heads(rows)?))
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
    let query = call.inputs_q;
    if let Some(both) = call.inputs_kv {
        if call.inputs_k.is_some() || call.inputs_v.is_some() {
            return Err(Error::InputsKvWithKeyOrValue);
        }
        return Ok([query, both, both]);
    }
    if call.inputs_k.is_none() && call.inputs_v.is_some() {
        return Err(Error::ValueWithoutKey);
    }
    let key = call.inputs_k.unwrap_or(query);
    Ok([query, key, call.inputs_v.unwrap_or(key)])
}

/// Projected and normalised inputs, `[batch..., length, heads, head_dim]`.
pub(crate) struct Projected {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
}

impl Projected {
    fn heads(&self) -> Heads<'_> {
        Heads {
            query: self.query.view(),
            key: self.key.view(),
            value: self.value.view(),
        }
    }
}

/// What the attention core reads, `[batch..., length, heads, head_dim]`.
struct Heads<'a> {
    query: TensorView<'a>,
    key: TensorView<'a>,
    value: TensorView<'a>,
}

/// What the steps of one call share.
pub(crate) struct Pass<'a, 'h, B> {
    layer: &'a Layer<'h>,
    backend: &'a B,
    params: &'a dyn ParamSource,
    sizes: Sizes,
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
            sizes: Sizes::new(layer, &query)?,
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

    pub(crate) fn project_inputs(&self, call: &Call<'_>) -> Result<Projected> {
        let [query, key, value] = resolve(call)?;
        let mut query = self.project_heads("query", &query)?;
        let mut key = self.project_heads("key", &key)?;
        let value = self.project_heads("value", &value)?;
        if self.layer.normalize_qk {
            query = self.normalize("query_ln", query)?;
            key = self.normalize("key_ln", key)?;
        }
        Ok(Projected { query, key, value })
    }

    fn project_heads(&self, scope: &'static str, input: &TensorView<'_>) -> Result<Tensor> {
        let layer = self.layer;
        let dense = self
            .sizes
            .input(self.params, scope, input, layer.use_bias)?;
        let hook = Product {
            field: "qkv_dot_general",
            factory: layer.qkv_dot_general_cls,
            function: layer.qkv_dot_general,
        };
        let out = self.dense(&dense, input, &hook)?;
        let rows = &input.shape()[..input.shape().rank() - 1];
        out.reshape(&self.sizes.heads(rows)?)
    }

    /// The out projection of the core's output.
    fn project_out(&self, context: &Tensor) -> Result<Tensor> {
        let (layer, sizes) = (self.layer, &self.sizes);
        let dense = sizes.output(self.params, layer.use_bias)?;
        let heads = [sizes.num_heads, sizes.head_dim];
        let Some(rows) = context.shape().strip_suffix(&heads) else {
            return Err(Error::Hook {
                hook: "attention_fn",
                reason: "its result is not [batch..., length, heads, head_dim]",
            });
        };
        let input = context
            .view()
            .reshape(&Dims::new(rows)?.push(sizes.hidden)?)?;
        let hook = Product {
            field: "out_dot_general",
            factory: layer.out_dot_general_cls,
            function: layer.out_dot_general,
        };
        self.dense(&dense, &input, &hook)
    }

    fn dense(
        &self,
        dense: &DenseParams<'_>,
        input: &TensorView<'_>,
        hook: &Product<'h>,
    ) -> Result<Tensor> {
        let dtype = promote(inexact(self.layer.dtype)?, dense.scalars(input));
        let made = hook.factory.map(|factory| factory());
        match made.as_deref().or(hook.function) {
            Some(function) => hook.run(function, dense, dtype, input),
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

    fn normalize(&self, scope: &'static str, x: Tensor) -> Result<Tensor> {
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
        let deterministic = self.deterministic(call)?;
        let attended = match self.layer.attention_fn {
            Some(function) => self.hooked(function, call, heads, causal, deterministic)?,
            None => self.attention(call, heads, causal, deterministic)?,
        };
        Ok(Output {
            out: self.project_out(&attended.out)?,
            attention_weights: attended.weights,
        })
    }

    fn deterministic(&self, call: &Call<'_>) -> Result<bool> {
        // NaN and negative rates are "not above 0", as in Flax.
        let may_drop = self.layer.dropout_rate > 0.0;
        if !may_drop {
            return Ok(true);
        }
        let deterministic = match (self.layer.deterministic, call.deterministic) {
            (Some(_), Some(_)) => return Err(Error::DeterministicGivenTwice),
            (None, None) => return Err(Error::DeterministicMissing),
            (Some(given), None) | (None, Some(given)) => given,
        };
        if !deterministic && call.dropout_rng.is_none() {
            return Err(Error::DropoutRngMissing);
        }
        Ok(deterministic)
    }

    fn attention(
        &self,
        call: &Call<'_>,
        heads: &Heads<'_>,
        causal: Option<Causal>,
        deterministic: bool,
    ) -> Result<Attended> {
        let layer = self.layer;
        let qk = layer.qk_attn_weights_einsum_cls.map(|factory| factory());
        let value = layer.attn_weights_value_einsum_cls.map(|factory| factory());
        let arguments = DotProductAttention {
            mask: call.mask,
            broadcast_dropout: layer.broadcast_dropout,
            dropout_rng: call.dropout_rng,
            dropout_rate: layer.dropout_rate,
            deterministic,
            dtype: layer.dtype,
            precision: layer.precision,
            force_fp32_for_softmax: layer.force_fp32_for_softmax,
            qk_attn_weights_einsum: qk.as_deref(),
            attn_weights_value_einsum: value.as_deref(),
            ..DotProductAttention::new(heads.query, heads.key)
        };
        attention(
            self.backend,
            &arguments,
            &heads.value,
            call.sow_weights,
            causal,
        )
    }

    /// The user's core. It sows no weights: Flax leaves that to it too.
    fn hooked(
        &self,
        function: &dyn AttentionFn,
        call: &Call<'_>,
        heads: &Heads<'_>,
        causal: Option<Causal>,
        deterministic: bool,
    ) -> Result<Attended> {
        let layer = self.layer;
        let mask = causal
            .map(|causal| step_mask(call, causal, heads))
            .transpose()?;
        let args = AttentionArgs {
            mask: mask.as_ref().map(Tensor::view).or(call.mask),
            dropout_rng: call.dropout_rng,
            dropout_rate: layer.dropout_rate,
            broadcast_dropout: layer.broadcast_dropout,
            deterministic,
            dtype: inexact(layer.dtype)?,
            precision: layer.precision,
            force_fp32_for_softmax: layer.force_fp32_for_softmax,
        };
        Ok(Attended {
            out: function.call(heads.query, heads.key, heads.value, &args)?,
            weights: None,
        })
    }
}

/// A user's product in the place of a dense layer's own.
struct Product<'h> {
    field: &'static str,
    factory: Option<DotGeneralCls<'h>>,
    function: Option<&'h dyn DotGeneral>,
}

impl Product<'_> {
    fn run(
        &self,
        function: &dyn DotGeneral,
        dense: &DenseParams<'_>,
        dtype: DType,
        input: &TensorView<'_>,
    ) -> Result<Tensor> {
        let input = input.to_scalar(dtype.scalar())?;
        let kernel = dense.kernel.to_scalar(dtype.scalar())?;
        let product = function.call(input.view(), kernel.view())?;
        let rows = &input.shape()[..input.shape().rank() - 1];
        if *product.shape() != Dims::new(rows)?.push(kernel.shape()[1])? {
            return Err(Error::Hook {
                hook: self.field,
                reason: "its result is not [rows..., outputs]",
            });
        }
        match &dense.bias {
            None => Ok(product),
            Some(bias) => add_bias(&product, &bias.to_scalar(dtype.scalar())?),
        }
    }
}

/// `product + bias` over the last axis, in what JAX promotes the two to.
fn add_bias(product: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let dtype = product.scalar().promote(bias.scalar());
    let bias = bias.to_vec_f64();
    let sums = product
        .view()
        .iter_f64()
        .zip(bias.iter().cycle())
        .map(|(x, b)| x + b)
        .collect::<Vec<_>>();
    Tensor::from_f64s(dtype.scalar(), product.shape(), sums)
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
