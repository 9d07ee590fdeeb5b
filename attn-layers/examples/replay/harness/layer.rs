//! The layer that a case's config describes.

use super::case::Case;
use super::initializer;
use anyhow::{Context, Result, bail, ensure};
use attn_layers::tensor::TensorView;
use attn_layers::{Einsum, EinsumCls, Error, MultiHeadDotProductAttention, Precision, ScalarType};

/// Fields that only matter when parameters are made.
const INITIALIZERS: [&str; 4] = [
    "kernel_init",
    "out_kernel_init",
    "bias_init",
    "out_bias_init",
];

/// Flax's classes of this layer. They differ in their names, and `SelfAttention` takes one input.
const MODULES: [&str; 3] = [
    "MultiHeadDotProductAttention",
    "MultiHeadAttention",
    "SelfAttention",
];

/// Replacements of the einsums.
const EINSUMS: [&str; 2] = [
    "qk_attn_weights_einsum_cls",
    "attn_weights_value_einsum_cls",
];

const FIELDS: [&str; 14] = [
    "num_heads",
    "dtype",
    "param_dtype",
    "qkv_features",
    "out_features",
    "broadcast_dropout",
    "dropout_rate",
    "deterministic",
    "precision",
    "use_bias",
    "decode",
    "normalize_qk",
    "force_fp32_for_softmax",
    "name",
];

/// Makes the layer; `path` is that of the case.
///
/// # Errors
///
/// If a field has a value of the wrong kind, or a field is not known: it must not be left out silently.
pub(crate) fn of<'h>(case: &Case, path: &'h [&'h str]) -> Result<MultiHeadDotProductAttention<'h>> {
    let config = &case.config;
    config.only(&[FIELDS.as_slice(), &INITIALIZERS, &EINSUMS].concat())?;
    let module = case.module.as_deref().context("case.module is missing")?;
    ensure!(
        MODULES.contains(&module),
        "the module {module:?} is not supported"
    );
    let mut layer = MultiHeadDotProductAttention::new(
        config
            .size("num_heads")?
            .context("config.num_heads is missing")?,
    );
    layer.dtype = config.scalar("dtype")?.map(|dtype| canonical(case, dtype));
    layer.qkv_features = config.size("qkv_features")?;
    layer.out_features = config.size("out_features")?;
    layer.deterministic = config.flag("deterministic")?;
    layer.precision = precision(config.text("precision")?)?;
    if let Some(param_dtype) = config.scalar("param_dtype")? {
        layer.param_dtype = canonical(case, param_dtype);
    }
    if let Some(rate) = config.number("dropout_rate")? {
        layer.dropout_rate = rate;
    }
    for (name, field) in [
        ("broadcast_dropout", &mut layer.broadcast_dropout),
        ("use_bias", &mut layer.use_bias),
        ("decode", &mut layer.decode),
        ("normalize_qk", &mut layer.normalize_qk),
        ("force_fp32_for_softmax", &mut layer.force_fp32_for_softmax),
    ] {
        if let Some(flag) = config.flag(name)? {
            *field = flag;
        }
    }
    let [kernel, out_kernel, bias, out_bias] =
        INITIALIZERS.map(|field| initializer::of(config, field));
    layer.kernel_init = kernel?.unwrap_or(layer.kernel_init);
    layer.bias_init = bias?.unwrap_or(layer.bias_init);
    (layer.out_kernel_init, layer.out_bias_init) = (out_kernel?, out_bias?);
    layer.path = path;
    let einsum = |name| {
        config
            .get(name)
            .map(|_| &(no_einsum as fn() -> _) as EinsumCls<'_>)
    };
    layer.qk_attn_weights_einsum_cls = einsum(EINSUMS[0]);
    layer.attn_weights_value_einsum_cls = einsum(EINSUMS[1]);
    Ok(layer)
}

/// A case can say that there is an einsum of the user's, not what it does.
fn no_einsum() -> Box<dyn Einsum> {
    Box::new(|_: &str, _: TensorView<'_>, _: TensorView<'_>| {
        Err(Error::Hook {
            hook: "einsum",
            reason: "a case does not hold its code",
        })
    })
}

/// The type that JAX takes for `scalar`: without 64-bit types the narrow one of its kind.
pub(crate) fn canonical(case: &Case, scalar: ScalarType) -> ScalarType {
    match scalar {
        ScalarType::F64 if !case.x64 => ScalarType::F32,
        ScalarType::I64 if !case.x64 => ScalarType::I32,
        ScalarType::U64 if !case.x64 => ScalarType::U32,
        other => other,
    }
}

/// A precision by JAX's name.
pub(crate) fn precision(name: Option<&str>) -> Result<Option<Precision>> {
    match name {
        None => Ok(None),
        Some("default") => Ok(Some(Precision::Default)),
        Some("high") => Ok(Some(Precision::High)),
        Some("highest") => Ok(Some(Precision::Highest)),
        Some(other) => bail!("config.precision {other:?} is not supported"),
    }
}
