//! `jax.vjp` of `module.apply`: a forward pass that keeps what its gradients need, and the backward pass over it.

use crate::bind::DenseParams;
use crate::cache::{AnyCache, CacheAccess};
use crate::forward::{Chance, Heads, Pass, Projected, resolve};
use crate::functions::{Kept, Purpose, inexact};
use crate::gradients::{Gradients, InputSums, ParamGradients};
use crate::hooks;
use crate::layer::{Call, MultiHeadDotProductAttention, Output};
use crate::params::ParamSource;
use crate::product::{Product, run_backward};
use crate::stage::{HostKernels, promote};
use crate::stage_backward::{self as stage, DenseCall, DenseGradients, check_float};
use crate::tensor::{Tensor, TensorView};
use crate::vjp::{CoreCall, check_like};
use attn_core::{Dims, Error, Result, ScalarType};

type Layer<'h> = MultiHeadDotProductAttention<'h>;

/// What the gradients of a call need of its forward pass. It borrows the call's arrays and parameters, and holds query, key and value as they left
/// their projections, the core's output, and two numbers for each query and head: memory linear in the length.
///
/// Made by [`MultiHeadDotProductAttention::forward`].
pub struct Residuals<'a> {
    params: &'a dyn ParamSource,
    /// Its cache is taken out.
    call: Call<'a>,
    /// Before the layer norms and the rotation, which are made again.
    raw: Projected,
    context: Tensor,
    kept: Kept,
    chance: Chance,
    out: (ScalarType, Dims),
}

impl core::fmt::Debug for Residuals<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Residuals")
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}

/// The forward pass. A call that makes a cache is plain attention; a step on one has no gradients here.
pub(crate) fn forward<'a, B: HostKernels>(
    layer: &Layer<'_>,
    backend: &B,
    params: &'a dyn ParamSource,
    mut call: Call<'a>,
) -> Result<(Output, Residuals<'a>)> {
    let access = core::mem::take(&mut call.cache);
    let pass = Pass::new(layer, backend, params, &call)?;
    let raw = pass.project_raw(&call)?;
    let prepared = pass.prepared(&raw)?;
    let heads = heads_of(&raw, prepared.as_ref());
    let absent = match (layer.decode, access) {
        (false, _) => None,
        (true, CacheAccess::None) => return Err(Error::CacheMissing),
        (true, CacheAccess::Mutable(absent @ None)) => Some(absent),
        (true, _) => return Err(STEP),
    };
    let purpose = Purpose {
        sow_weights: call.sow_weights,
        gradients: true,
    };
    let (core, chance) = pass.core(&call, &heads, None, purpose)?;
    let out = pass.project_out(&core.out)?;
    pass.check_floats(&call)?;
    if let Some(absent) = absent {
        *absent = Some(AnyCache::like(&heads.key, &heads.value)?);
    }
    let residuals = Residuals {
        params,
        call,
        raw,
        context: core.out,
        kept: core.kept.unwrap_or(Kept::Nothing),
        chance,
        out: (out.scalar(), *out.shape()),
    };
    let output = Output {
        out,
        attention_weights: core.weights,
    };
    Ok((output, residuals))
}

const STEP: Error = Error::Unsupported {
    backend: "the layer",
    feature: "gradients of a decoding step",
    instead: "Train without `decode`, on whole sequences with a causal mask",
};

/// The backward pass.
pub(crate) fn backward<B: HostKernels>(
    layer: &Layer<'_>,
    backend: &B,
    residuals: &Residuals<'_>,
    d_out: &TensorView<'_>,
) -> Result<Gradients> {
    let (scalar, shape) = residuals.out;
    check_like(d_out, scalar, &shape)?;
    let call = &residuals.call;
    let pass = Pass::new(layer, backend, residuals.params, call)?;
    let out = pass.out_backward(residuals, d_out)?;
    let [query, key, value] = pass.core_backward(residuals, out.input)?;
    let [query, key] = [query, key].map(|gradient| pass.rotate(gradient, 0, true));
    let heads = [query?, key?, value];
    let (heads, scales) = pass.normalize_backward(&residuals.raw, heads)?;
    let mut sums = InputSums::new(call)?;
    let inputs = resolve(call)?;
    let mut dense = [None, None, None];
    let [query, key, value] = heads;
    // The order of the typed layer, whose sums have the same bits.
    for (role, gradient) in [(2, value), (0, query), (1, key)] {
        let sum = sums.of(role);
        let gradients = pass.input_backward(role, &inputs[role], gradient, sum.take())?;
        *sum = Some(gradients.input);
        dense[role] = Some((gradients.kernel, gradients.bias));
    }
    let mut params = ParamGradients::default();
    for ((kernel, bias), gradients) in PATHS.into_iter().zip(dense) {
        if let Some((d_kernel, d_bias)) = gradients {
            params.push(kernel, d_kernel);
            params.extend(bias, d_bias);
        }
    }
    if let Some([query_ln, key_ln]) = scales {
        params.push("query_ln/scale", query_ln);
        params.push("key_ln/scale", key_ln);
    }
    params.push("out/kernel", out.kernel);
    params.extend("out/bias", out.bias);
    sums.finish(call, params)
}

const SCOPES: [&str; 3] = ["query", "key", "value"];
const PATHS: [(&str, &str); 3] = [
    ("query/kernel", "query/bias"),
    ("key/kernel", "key/bias"),
    ("value/kernel", "value/bias"),
];

/// What the core read.
fn heads_of<'t>(raw: &'t Projected, prepared: Option<&'t [Tensor; 2]>) -> Heads<'t> {
    let heads = raw.heads();
    match prepared {
        None => heads,
        Some([query, key]) => Heads {
            query: query.view(),
            key: key.view(),
            value: heads.value,
        },
    }
}

impl<B: HostKernels> Pass<'_, '_, B> {
    /// Queries and keys after the layer norms and the rotation, if there is either.
    fn prepared(&self, raw: &Projected) -> Result<Option<[Tensor; 2]>> {
        if !self.layer.normalize_qk && self.layer.rotary.is_none() {
            return Ok(None);
        }
        let raw = [raw.query.clone(), raw.key.clone()];
        self.prepare(raw, 0).map(Some)
    }

    /// Only floats have gradients: integer inputs go without, integer parameters are not what was meant.
    fn check_floats(&self, call: &Call<'_>) -> Result<()> {
        for (scope, input) in SCOPES.into_iter().zip(resolve(call)?) {
            let use_bias = self.layer.use_bias;
            check_dense(&self.sizes.input(self.params, scope, &input, use_bias)?)?;
        }
        if self.layer.normalize_qk {
            for scope in ["query_ln", "key_ln"] {
                check_float("scale", &self.sizes.scale(self.params, scope)?)?;
            }
        }
        check_dense(&self.sizes.output(self.params, self.layer.use_bias)?)
    }

    /// From the gradient of the layer's output to those of `out`; the input's is that of the core's output.
    fn out_backward(
        &self,
        residuals: &Residuals<'_>,
        d_out: &TensorView<'_>,
    ) -> Result<DenseGradients> {
        let sizes = &self.sizes;
        let dense = sizes.output(self.params, self.layer.use_bias)?;
        let input = self.flat_context(&residuals.context)?;
        let product = Product::of_out(self.layer);
        let gradients = self.dense_backward(&dense, &input, *d_out, &product, None)?;
        let shape = [sizes.num_heads, sizes.head_dim, sizes.out_features];
        Ok(DenseGradients {
            input: gradients.input.reshape(residuals.context.shape())?,
            kernel: gradients.kernel.reshape(&shape)?,
            bias: gradients.bias,
        })
    }

    /// From the gradient of the core's output to those of query, key and value as it read them.
    fn core_backward(&self, residuals: &Residuals<'_>, d_context: Tensor) -> Result<[Tensor; 3]> {
        let Residuals {
            call, raw, chance, ..
        } = residuals;
        let prepared = self.prepared(raw)?;
        let heads = heads_of(raw, prepared.as_ref());
        if let Some(function) = self.layer.attention_fn {
            let args = self.attention_args(call, call.mask, *chance)?;
            let Heads { query, key, value } = &heads;
            let given = function.vjp(*query, *key, *value, &args, d_context.view());
            return hooks::gradients("attention_fn", given, [query, key, value]);
        }
        self.with_arguments(call, &heads, *chance, |arguments| {
            let core = CoreCall {
                arguments,
                value: &heads.value,
                out: &residuals.context,
                kept: &residuals.kept,
            };
            Ok(core.backward(self.backend, &d_context.view())?.heads)
        })
    }

    /// Through the layer norms, if there are any; gives the gradients of their scales too.
    fn normalize_backward(
        &self,
        raw: &Projected,
        [query, key, value]: [Tensor; 3],
    ) -> Result<([Tensor; 3], Option<[Tensor; 2]>)> {
        if !self.layer.normalize_qk {
            return Ok(([query, key, value], None));
        }
        let [query, query_ln] = self.norm_backward("query_ln", &raw.query, query)?;
        let [key, key_ln] = self.norm_backward("key_ln", &raw.key, key)?;
        Ok(([query, key, value], Some([query_ln, key_ln])))
    }

    fn norm_backward(
        &self,
        scope: &'static str,
        x: &Tensor,
        gradient: Tensor,
    ) -> Result<[Tensor; 2]> {
        let scale = self.sizes.scale(self.params, scope)?;
        let dtype = promote(inexact(self.layer.dtype)?, [x.scalar(), scale.scalar()]);
        stage::normalize(self.backend, dtype, &x.view(), &scale, gradient)
    }

    /// Through the dense layer of query (0), key (1) or value (2).
    fn input_backward(
        &self,
        role: usize,
        input: &TensorView<'_>,
        gradient: Tensor,
        earlier: Option<Tensor>,
    ) -> Result<DenseGradients> {
        let sizes = &self.sizes;
        let scope = SCOPES[role];
        let dense = sizes.input(self.params, scope, input, self.layer.use_bias)?;
        let (&features, rows) = input.shape().split_last().ok_or(NO_FEATURES)?;
        let flat = Dims::new(rows)?.push(sizes.hidden_of(scope))?;
        let d_out = gradient.view().reshape(&flat)?;
        let product = Product::of_inputs(self.layer);
        let gradients = self.dense_backward(&dense, input, d_out, &product, earlier)?;
        let bias = gradients.bias;
        let bias = bias.map(|bias| bias.reshape(&sizes.heads(scope, &[])?));
        Ok(DenseGradients {
            input: gradients.input,
            kernel: gradients
                .kernel
                .reshape(&sizes.heads(scope, &[features])?)?,
            bias: bias.transpose()?,
        })
    }

    fn dense_backward(
        &self,
        dense: &DenseParams<'_>,
        input: &TensorView<'_>,
        d_out: TensorView<'_>,
        product: &Product<'_>,
        earlier: Option<Tensor>,
    ) -> Result<DenseGradients> {
        let dtype = promote(inexact(self.layer.dtype)?, dense.scalars(input));
        let call = DenseCall {
            input: *input,
            kernel: dense.kernel,
            bias: dense.bias,
            d_out,
        };
        match product.chosen() {
            Some(function) => run_backward(&*function, product.field, dtype, &call, earlier),
            None => stage::project(self.backend, dtype, &call, earlier),
        }
    }
}

const NO_FEATURES: Error = Error::Rank {
    argument: "inputs",
    got: 0,
    wanted: "[batch..., length, features]",
};

fn check_dense(dense: &DenseParams<'_>) -> Result<()> {
    check_float("kernel", &dense.kernel)?;
    dense
        .bias
        .iter()
        .try_for_each(|bias| check_float("bias", bias))
}
