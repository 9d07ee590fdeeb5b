//! Flax's `__call__`, step by step and in its order of errors, on arrays whose dtypes are known only at run time.

use crate::cache::{AnyCache, CacheAccess};
use crate::functions::{Attended, DotProductAttention, attention_over, inexact};
use crate::hooks::{AttentionArgs, DotGeneral, DotGeneralCls};
use crate::layer::{Call, MultiHeadDotProductAttention, Output};
use crate::params::{ParamSource, find};
use crate::plan::head_dim;
use crate::stage::{self, HostKernels, promote};
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{Causal, DType, Dims, Error, Result, RowOrder, ScalarType};

type Layer<'h> = MultiHeadDotProductAttention<'h>;

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
        return pass.finish(&call, &projected, None);
    }
    match access {
        CacheAccess::None => Err(Error::CacheMissing),
        CacheAccess::Immutable(cache) => {
            check_query(cache, projected.query.shape(), 1)?;
            Err(Error::CacheImmutable)
        }
        CacheAccess::Mutable(cache) => match cache {
            Some(cache) => {
                check_query(cache, projected.query.shape(), 1)?;
                pass.step(&call, projected, cache)
            }
            None => {
                let fresh = empty_cache(&projected.key.view(), &projected.value.view())?;
                let output = pass.finish(&call, &projected, None)?;
                *cache = Some(fresh);
                Ok(output)
            }
        },
    }
}

pub(crate) fn prefill<B: HostKernels>(
    layer: &Layer<'_>,
    backend: &B,
    params: &dyn ParamSource,
    call: Call<'_>,
    cache: &mut AnyCache,
) -> Result<Output> {
    if !layer.decode {
        return Err(Error::CacheMissing);
    }
    let before = cache.clone();
    let result = prefill_parts(layer, backend, params, &call, cache);
    if result.is_err() {
        *cache = before;
    }
    result
}

/// All tokens that fit at once; past the end one by one, since each overwrites the last slot.
fn prefill_parts<B: HostKernels>(
    layer: &Layer<'_>,
    backend: &B,
    params: &dyn ParamSource,
    call: &Call<'_>,
    cache: &mut AnyCache,
) -> Result<Output> {
    let pass = Pass::new(layer, backend, params, call)?;
    let inputs = resolve(call)?;
    let axis = inputs[0].shape().rank().checked_sub(2).ok_or(NO_LENGTH)?;
    let tokens = inputs[0].shape()[axis];
    let max_length = max_length(cache)?;
    let mut outputs = Vec::new();
    let mut weights = Vec::new();
    let mut done = 0;
    while done < tokens || outputs.is_empty() {
        let index = usize::try_from(cache.cache_index).unwrap_or(0);
        let count = max_length
            .saturating_sub(index)
            .min(tokens - done)
            .max(1)
            .min(tokens);
        let [q, k, v] = inputs.map(|input| slice(&input, axis, done, count));
        let (q, k, v) = (q?, k?, v?);
        let mask = match &call.mask {
            Some(mask) => Some(slice_rows(mask, done, count)?),
            None => None,
        };
        let part = Call::new(q.view())
            .with_inputs_k(Some(k.view()))
            .with_inputs_v(Some(v.view()))
            .with_mask(mask.as_ref().map(Tensor::view))
            .with_deterministic(call.deterministic)
            .with_dropout_rng(call.dropout_rng)
            .with_sow_weights(call.sow_weights);
        let projected = pass.project_inputs(&part)?;
        check_query(cache, projected.query.shape(), count)?;
        let output = pass.step(&part, projected, cache)?;
        // Flax counts calls; here each token is one.
        cache.cache_index = cache
            .cache_index
            .saturating_add(i32::try_from(count).unwrap_or(i32::MAX).saturating_sub(1));
        outputs.push(output.out);
        weights.extend(output.attention_weights);
        done += count;
    }
    let attention_weights = match weights.first() {
        Some(first) => Some(concatenate(&weights, first.shape().rank() - 2)?),
        None => None,
    };
    Ok(Output {
        out: concatenate(&outputs, axis)?,
        attention_weights,
    })
}

pub(crate) fn init_cache(
    layer: &Layer<'_>,
    params: &dyn ParamSource,
    call: &Call<'_>,
) -> Result<AnyCache> {
    let [query, key, value] = resolve(call)?;
    let sizes = Sizes::new(layer, &query)?;
    let dtype = inexact(layer.dtype)?;
    let projected = |scope: &'static str, input: &TensorView<'_>| {
        let dense = sizes.dense(layer, params, scope, input)?;
        let shape = dense.rows.concat(&[layer.num_heads, sizes.head_dim])?;
        Ok((promote(dtype, dense.scalars(input)), shape))
    };
    let (mut key_dtype, key_shape) = projected("key", &key)?;
    let (value_dtype, value_shape) = projected("value", &value)?;
    if layer.normalize_qk {
        let scale = find(params, "key_ln", "scale", &[sizes.head_dim])?;
        key_dtype = promote(dtype, [key_dtype.scalar(), scale.scalar()]);
    }
    Ok(AnyCache {
        cached_key: Tensor::zeros(key_dtype.scalar(), &key_shape)?,
        cached_value: Tensor::zeros(value_dtype.scalar(), &value_shape)?,
        cache_index: 0,
    })
}

const NO_LENGTH: Error = Error::Rank {
    argument: "inputs_q",
    got: 1,
    wanted: "[batch..., length, features]",
};

/// Which array serves as query, key and value.
fn resolve<'a>(call: &Call<'a>) -> Result<[TensorView<'a>; 3]> {
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

/// The sizes that the fields and `inputs_q` give.
struct Sizes {
    head_dim: usize,
    hidden: usize,
    out_features: usize,
}

impl Sizes {
    fn new(layer: &Layer<'_>, inputs_q: &TensorView<'_>) -> Result<Self> {
        let Some(&features) = inputs_q.shape().last() else {
            return Err(Error::Rank {
                argument: "inputs_q",
                got: 0,
                wanted: "[batch..., length, features]",
            });
        };
        let or_features =
            |given: Option<usize>| given.filter(|&given| given != 0).unwrap_or(features);
        let hidden = or_features(layer.qkv_features);
        let head_dim = head_dim(hidden, layer.num_heads)?;
        Ok(Self {
            head_dim,
            hidden,
            out_features: or_features(layer.out_features),
        })
    }

    /// The parameters of query, key or value.
    fn dense<'p>(
        &self,
        layer: &Layer<'_>,
        params: &'p dyn ParamSource,
        scope: &'static str,
        input: &TensorView<'_>,
    ) -> Result<DenseParams<'p>> {
        let Some((&features, rows)) = input.shape().split_last() else {
            return Err(Error::Rank {
                argument: "inputs",
                got: 0,
                wanted: "[batch..., length, features]",
            });
        };
        let heads = [layer.num_heads, self.head_dim];
        let kernel = find(params, scope, "kernel", &[features, heads[0], heads[1]])?;
        let bias = match layer.use_bias {
            true => Some(find(params, scope, "bias", &heads)?.reshape(&[self.hidden])?),
            false => None,
        };
        Ok(DenseParams {
            kernel: kernel.reshape(&[features, self.hidden])?,
            bias,
            rows: Dims::new(rows)?,
        })
    }
}

/// A dense layer's parameters, its axes flattened.
struct DenseParams<'p> {
    kernel: TensorView<'p>,
    bias: Option<TensorView<'p>>,
    /// The input's axes before the last.
    rows: Dims,
}

impl DenseParams<'_> {
    fn scalars(&self, input: &TensorView<'_>) -> impl Iterator<Item = ScalarType> {
        [
            Some(input.scalar()),
            Some(self.kernel.scalar()),
            self.bias.map(|bias| bias.scalar()),
        ]
        .into_iter()
        .flatten()
    }
}

/// Projected and normalised inputs, `[batch..., length, heads, head_dim]`.
struct Projected {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

/// What the steps of one call share.
struct Pass<'a, 'h, B> {
    layer: &'a Layer<'h>,
    backend: &'a B,
    params: &'a dyn ParamSource,
    sizes: Sizes,
}

impl<'a, 'h, B: HostKernels> Pass<'a, 'h, B> {
    fn new(
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

    fn project_inputs(&self, call: &Call<'_>) -> Result<Projected> {
        let [query, key, value] = resolve(call)?;
        let mut query = self.project_heads("query", &query)?;
        let mut key = self.project_heads("key", &key)?;
        let value = self.project_heads("value", &value)?;
        if self.layer.normalize_qk {
            query = self.normalize("query_ln", &query)?;
            key = self.normalize("key_ln", &key)?;
        }
        Ok(Projected { query, key, value })
    }

    fn project_heads(&self, scope: &'static str, input: &TensorView<'_>) -> Result<Tensor> {
        let dense = self.sizes.dense(self.layer, self.params, scope, input)?;
        let dtype = promote(inexact(self.layer.dtype)?, dense.scalars(input));
        let hook = (self.layer.qkv_dot_general_cls, self.layer.qkv_dot_general);
        let out = self.dense(&dense, dtype, input, hook, "qkv_dot_general")?;
        out.reshape(
            &dense
                .rows
                .concat(&[self.layer.num_heads, self.sizes.head_dim])?,
        )
    }

    fn dense(
        &self,
        dense: &DenseParams<'_>,
        dtype: DType,
        input: &TensorView<'_>,
        (factory, hook): (Option<DotGeneralCls<'h>>, Option<&'h dyn DotGeneral>),
        name: &'static str,
    ) -> Result<Tensor> {
        let made = factory.map(|factory| factory());
        let Some(hook) = made.as_deref().or(hook) else {
            return stage::project(
                self.backend,
                dtype,
                self.row_order(),
                input,
                &dense.kernel,
                dense.bias.as_ref(),
            );
        };
        let (input, kernel) = (
            input.to_scalar(dtype.scalar())?,
            dense.kernel.to_scalar(dtype.scalar())?,
        );
        let product = hook.call(input.view(), kernel.view())?;
        let outputs = kernel.shape()[1];
        if *product.shape() != dense.rows.push(outputs)? {
            return Err(Error::Hook {
                hook: name,
                reason: "its result is not [rows..., outputs]",
            });
        }
        match &dense.bias {
            None => Ok(product),
            Some(bias) => {
                let bias = bias.to_scalar(dtype.scalar())?.to_vec_f64();
                let biased = product
                    .view()
                    .iter_f64()
                    .zip(bias.iter().cycle())
                    .map(|(x, b)| x + b)
                    .collect::<Vec<_>>();
                Tensor::from_f64s(product.scalar(), product.shape(), biased)
            }
        }
    }

    fn normalize(&self, scope: &'static str, x: &Tensor) -> Result<Tensor> {
        let scale = find(self.params, scope, "scale", &[self.sizes.head_dim])?;
        let dtype = promote(inexact(self.layer.dtype)?, [x.scalar(), scale.scalar()]);
        stage::normalize(self.backend, dtype, &x.view(), &scale)
    }

    /// A decoding step on a cache that is there: one token, or as many as the queries are when prefilling.
    fn step(&self, call: &Call<'_>, projected: Projected, cache: &mut AnyCache) -> Result<Output> {
        let index = cache.cache_index;
        let undo = Undo::new(cache, &projected)?;
        let (max_length, rank) = (max_length(cache)?, cache.cached_key.shape().rank());
        check_step_mask(call, rank)?;
        undo.write(cache, &projected)?;
        let offset = isize::try_from(index).unwrap_or(isize::MAX);
        debug_assert!(max_length > 0);
        let over = Projected {
            query: projected.query,
            key: cache.cached_key.clone(),
            value: cache.cached_value.clone(),
        };
        match self.finish(call, &over, Some(Causal::offset(offset))) {
            Ok(output) => {
                cache.cache_index = index.saturating_add(1);
                Ok(output)
            }
            Err(error) => {
                undo.restore(cache)?;
                Err(error)
            }
        }
    }

    /// The attention core and the out projection.
    fn finish(
        &self,
        call: &Call<'_>,
        projected: &Projected,
        causal: Option<Causal>,
    ) -> Result<Output> {
        let deterministic = self.deterministic(call)?;
        let attended = self.attention(call, projected, causal, deterministic)?;
        let out = self.project_out(&attended.out)?;
        Ok(Output {
            out,
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
        projected: &Projected,
        causal: Option<Causal>,
        deterministic: bool,
    ) -> Result<Attended> {
        let layer = self.layer;
        let (query, key, value) = (
            projected.query.view(),
            projected.key.view(),
            projected.value.view(),
        );
        let qk = layer.qk_attn_weights_einsum_cls.map(|factory| factory());
        let value_einsum = layer.attn_weights_value_einsum_cls.map(|factory| factory());
        if let Some(hook) = layer.attention_fn {
            let mask = causal
                .map(|causal| step_mask(call, causal, &query, &key))
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
            return Ok(Attended {
                out: hook.call(query, key, value, &args)?,
                weights: None,
            });
        }
        let mut arguments = DotProductAttention::new(query, key);
        arguments.mask = call.mask;
        arguments.dropout_rng = call.dropout_rng;
        arguments.dropout_rate = layer.dropout_rate;
        arguments.broadcast_dropout = layer.broadcast_dropout;
        arguments.deterministic = deterministic;
        arguments.dtype = layer.dtype;
        arguments.precision = layer.precision;
        arguments.force_fp32_for_softmax = layer.force_fp32_for_softmax;
        arguments.qk_attn_weights_einsum = qk.as_deref();
        arguments.attn_weights_value_einsum = value_einsum.as_deref();
        attention_over(self.backend, &arguments, &value, call.sow_weights, causal)
    }

    fn project_out(&self, context: &Tensor) -> Result<Tensor> {
        let (layer, sizes) = (self.layer, &self.sizes);
        let kernel = find(
            self.params,
            "out",
            "kernel",
            &[layer.num_heads, sizes.head_dim, sizes.out_features],
        )?;
        let bias = match layer.use_bias {
            true => Some(find(self.params, "out", "bias", &[sizes.out_features])?),
            false => None,
        };
        let Some(axes) = context.shape().rank().checked_sub(2) else {
            return Err(Error::Hook {
                hook: "attention_fn",
                reason: "its result is not [batch..., length, heads, depth]",
            });
        };
        if context.shape()[axes..] != [layer.num_heads, sizes.head_dim] {
            return Err(Error::Hook {
                hook: "attention_fn",
                reason: "its result is not [batch..., length, heads, depth]",
            });
        }
        let rows = Dims::new(&context.shape()[..axes])?;
        let input = context.view().reshape(&rows.push(sizes.hidden)?)?;
        let kernel = kernel.reshape(&[sizes.hidden, sizes.out_features])?;
        let dense = DenseParams { kernel, bias, rows };
        let dtype = promote(inexact(layer.dtype)?, dense.scalars(&input));
        let hook = (layer.out_dot_general_cls, layer.out_dot_general);
        self.dense(&dense, dtype, &input, hook, "out_dot_general")
    }
}

fn empty_cache(key: &TensorView<'_>, value: &TensorView<'_>) -> Result<AnyCache> {
    Ok(AnyCache {
        cached_key: Tensor::zeros(key.scalar(), key.shape())?,
        cached_value: Tensor::zeros(value.scalar(), value.shape())?,
        cache_index: 0,
    })
}

fn max_length(cache: &AnyCache) -> Result<usize> {
    let shape = cache.cached_key.shape();
    let axis = shape.rank().checked_sub(3).ok_or(Error::Rank {
        argument: "cached_key",
        got: shape.rank(),
        wanted: "[batch..., max_length, heads, head_dim]",
    })?;
    Ok(shape[axis])
}

/// Only the query is held against the cache, as in Flax.
fn check_query(cache: &AnyCache, query: &Dims, tokens: usize) -> Result<()> {
    max_length(cache)?;
    let shape = cache.cached_key.shape();
    let axis = shape.rank() - 3;
    let wanted = Dims::new(&shape[..axis])?.concat(&[tokens, shape[axis + 1], shape[axis + 2]])?;
    if *query == wanted {
        Ok(())
    } else {
        Err(Error::CacheQueryShape {
            got: *query,
            wanted,
        })
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
fn step_mask(
    call: &Call<'_>,
    causal: Causal,
    query: &TensorView<'_>,
    key: &TensorView<'_>,
) -> Result<Tensor> {
    let axes = query.shape().rank().checked_sub(3).ok_or(NO_LENGTH)?;
    let (queries, keys) = (query.shape()[axes], key.shape()[axes]);
    let mut shape = Dims::SCALAR;
    for _ in 0..axes + 1 {
        shape = shape.push(1)?;
    }
    let values = (0..queries)
        .flat_map(|q| (0..keys).map(move |k| f64::from(u8::from(causal.sees(q, k, queries, keys)))))
        .collect::<Vec<_>>();
    let own = Tensor::from_f64s(ScalarType::F32, &shape.concat(&[queries, keys])?, values)?;
    let both = crate::masks::combine_masks(&[call.mask, Some(own.view())], ScalarType::F32)?;
    Ok(both.unwrap_or(own))
}

/// The slots that a step overwrites, kept until the step is done: a cache is unchanged after an error.
struct Undo {
    first: usize,
    key: Tensor,
    value: Tensor,
}

impl Undo {
    fn new(cache: &AnyCache, projected: &Projected) -> Result<Self> {
        let axis = cache.cached_key.shape().rank() - 3;
        let max_length = max_length(cache)?;
        for (argument, cached, new) in [
            ("key", &cache.cached_key, &projected.key),
            ("value", &cache.cached_value, &projected.value),
        ] {
            if cached.scalar() != new.scalar() {
                return Err(Error::DTypeMismatch {
                    argument,
                    got: new.scalar(),
                    wanted: cached.scalar(),
                });
            }
            let fits = new.shape().rank() == cached.shape().rank()
                && new.shape()[..axis] == cached.shape()[..axis]
                && new.shape()[axis + 1..] == cached.shape()[axis + 1..]
                && new.shape()[axis] <= max_length;
            if !fits {
                return Err(Error::Shape {
                    argument,
                    got: *new.shape(),
                    wanted: *cached.shape(),
                });
            }
        }
        let index = usize::try_from(cache.cache_index).unwrap_or(0);
        let count = projected.key.shape()[axis];
        // `dynamic_update_slice` moves the start so that the update fits.
        let first = index.min(max_length - count);
        Ok(Self {
            first,
            key: slice(&cache.cached_key.view(), axis, first, count)?,
            value: slice(
                &cache.cached_value.view(),
                axis,
                first,
                projected.value.shape()[axis],
            )?,
        })
    }

    fn write(&self, cache: &mut AnyCache, projected: &Projected) -> Result<()> {
        update(&mut cache.cached_key, &projected.key, self.first)?;
        update(&mut cache.cached_value, &projected.value, self.first)
    }

    fn restore(&self, cache: &mut AnyCache) -> Result<()> {
        update(&mut cache.cached_key, &self.key, self.first)?;
        update(&mut cache.cached_value, &self.value, self.first)
    }
}

/// Bytes of the axes from `axis` on, and how many such blocks there are.
fn blocks(shape: &Dims, axis: usize, scalar: ScalarType) -> (usize, usize) {
    let bytes = shape[axis + 1..].iter().product::<usize>() * scalar.size();
    (shape[..axis].iter().product(), bytes)
}

/// Writes `new` into `[batch..., length, heads, head_dim]` from slot `first` on.
fn update(cached: &mut Tensor, new: &Tensor, first: usize) -> Result<()> {
    let axis = new.shape().rank() - 3;
    let (batch, slot) = blocks(new.shape(), axis, new.scalar());
    let (count, length) = (new.shape()[axis], cached.shape()[axis]);
    let from = new.view();
    let to = cached.as_mut_bytes();
    for entry in 0..batch {
        let source = &from.bytes()[entry * count * slot..(entry + 1) * count * slot];
        to[(entry * length + first) * slot..][..count * slot].copy_from_slice(source);
    }
    Ok(())
}

/// `count` entries of an axis from `first` on.
fn slice(view: &TensorView<'_>, axis: usize, first: usize, count: usize) -> Result<Tensor> {
    let Some(&length) = view.shape().get(axis) else {
        return Err(NO_LENGTH);
    };
    if first + count > length {
        return Err(Error::Buffer {
            argument: "inputs",
            got: length,
            wanted: first + count,
        });
    }
    let mut shape = Dims::new(&view.shape()[..axis])?.push(count)?;
    shape = shape.concat(&view.shape()[axis + 1..])?;
    let (batch, slot) = blocks(view.shape(), axis, view.scalar());
    let mut out = Tensor::zeros(view.scalar(), &shape)?;
    let to = out.as_mut_bytes();
    for entry in 0..batch {
        let source = &view.bytes()[(entry * length + first) * slot..][..count * slot];
        to[entry * count * slot..(entry + 1) * count * slot].copy_from_slice(source);
    }
    Ok(out)
}

/// The rows of a mask that belong to some queries; one row for all stays as it is.
fn slice_rows(mask: &TensorView<'_>, first: usize, count: usize) -> Result<Tensor> {
    match mask.shape().rank().checked_sub(2) {
        Some(axis) if mask.shape()[axis] != 1 => slice(mask, axis, first, count),
        _ => mask.to_tensor(),
    }
}

/// Joins arrays along an axis.
fn concatenate(parts: &[Tensor], axis: usize) -> Result<Tensor> {
    let [first, rest @ ..] = parts else {
        return Err(NO_LENGTH);
    };
    if rest.is_empty() {
        return Ok(first.clone());
    }
    let length = parts.iter().map(|part| part.shape()[axis]).sum();
    let shape = Dims::new(&first.shape()[..axis])?
        .push(length)?
        .concat(&first.shape()[axis + 1..])?;
    let mut out = Tensor::zeros(first.scalar(), &shape)?;
    let (batch, slot) = blocks(&shape, axis, first.scalar());
    let mut done = 0;
    for part in parts {
        let count = part.shape()[axis];
        let view = part.view();
        let to = out.as_mut_bytes();
        for entry in 0..batch {
            let source = &view.bytes()[entry * count * slot..(entry + 1) * count * slot];
            to[(entry * length + done) * slot..][..count * slot].copy_from_slice(source);
        }
        done += count;
    }
    Ok(out)
}
