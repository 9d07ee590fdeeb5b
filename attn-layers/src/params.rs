//! The parameters of a layer: typed views for the typed layers, and a source of named arrays for Flax's.

use crate::plan::Plan;
#[cfg(feature = "alloc")]
use crate::tensor::Tensor;
use crate::tensor::TensorView;
use attn_core::{DenseKernel, Dims, Element, Error, Result, Storage, View};

/// A dense layer's parameters (`flax.linen.DenseGeneral`).
#[derive(Debug)]
pub struct Dense<'p, S: Storage, T: Element> {
    /// `[features, num_heads, head_dim]` for query, `[features, num_kv_heads, head_dim]` for key and value; `[num_heads, head_dim, features]` for out. Or packed ([`PackedParams`](crate::PackedParams)).
    pub kernel: DenseKernel<'p, S, T>,
    /// `[num_heads, head_dim]` for query, `[num_kv_heads, head_dim]` for key and value; `[features]` for out. Not looked at with `use_bias: false`.
    pub bias: Option<View<'p, S, T>>,
}

/// All parameters of a layer, by Flax's names, in one dtype.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
#[derive(Debug)]
pub struct Params<'p, S: Storage, T: Element> {
    /// `query`.
    pub query: Dense<'p, S, T>,
    /// `key`.
    pub key: Dense<'p, S, T>,
    /// `value`.
    pub value: Dense<'p, S, T>,
    /// `out`.
    pub out: Dense<'p, S, T>,
    /// `query_ln/scale`, `[head_dim]`, with `normalize_qk`; else not looked at.
    pub query_ln: Option<View<'p, S, T::Acc>>,
    /// `key_ln/scale`, `[head_dim]`, with `normalize_qk`; else not looked at.
    pub key_ln: Option<View<'p, S, T::Acc>>,
}

impl<S: Storage, T: Element> Clone for Dense<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for Dense<'_, S, T> {}

impl<S: Storage, T: Element> Clone for Params<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for Params<'_, S, T> {}

impl<S: Storage, T: Element> Dense<'_, S, T> {
    fn check(
        &self,
        scope: &'static str,
        kernel: &[usize],
        bias: &[usize],
        use_bias: bool,
    ) -> Result<()> {
        match &self.kernel {
            DenseKernel::Plain(view) => same_shape(scope, "kernel", view.shape(), kernel)?,
            DenseKernel::Packed(packed) => {
                let split = if scope == "out" { kernel.len() - 1 } else { 1 };
                let (features, outputs) = kernel.split_at(split);
                let wanted = [features, outputs].map(|axes| axes.iter().product());
                same_shape(scope, "kernel", &packed.shape()?, &wanted)?;
            }
        }
        match &self.bias {
            Some(given) if use_bias => same_shape(scope, "bias", given.shape(), bias),
            None if use_bias => Err(Error::ParamMissing {
                scope,
                name: "bias",
            }),
            _ => Ok(()),
        }
    }
}

impl<S: Storage, T: Element> Params<'_, S, T> {
    /// Checks those that a layer with these fields has; others are not looked at.
    pub(crate) fn check(&self, plan: &Plan, use_bias: bool, normalize_qk: bool) -> Result<()> {
        let inputs = [
            ("query", &self.query, plan.num_heads),
            ("key", &self.key, plan.num_kv_heads),
            ("value", &self.value, plan.num_kv_heads),
        ];
        let depth = plan.head_dim;
        for ((scope, dense, heads), features) in inputs.into_iter().zip(plan.features) {
            dense.check(scope, &[features, heads, depth], &[heads, depth], use_bias)?;
        }
        if normalize_qk {
            for (scope, scale) in [("query_ln", &self.query_ln), ("key_ln", &self.key_ln)] {
                let scale = scale.as_ref().ok_or(Error::ParamMissing {
                    scope,
                    name: "scale",
                })?;
                same_shape(scope, "scale", scale.shape(), &[depth])?;
            }
        }
        self.out.check(
            "out",
            &[plan.num_heads, depth, plan.out_features],
            &[plan.out_features],
            use_bias,
        )
    }
}

fn same_shape(scope: &'static str, name: &'static str, got: &Dims, wanted: &[usize]) -> Result<()> {
    if got.as_slice() == wanted {
        return Ok(());
    }
    Err(Error::ParamShape {
        scope,
        name,
        got: *got,
        wanted: Dims::new(wanted)?,
    })
}

/// Where a layer's parameters are looked up: `query/kernel`, `query/bias`, …, `query_ln/scale`, `out/bias`.
///
/// A part of a weight file is one (`io::Subtree`), and so is a list of names and arrays:
///
/// ```
/// use attn_layers::{ParamSource, tensor::TensorView};
/// let params = [("query/kernel", TensorView::from_slice(&[1.0f32], &[1, 1, 1])?)];
/// assert!(params.tensor("query", "kernel").is_some() && params.tensor("key", "kernel").is_none());
/// # Ok::<(), attn_layers::Error>(())
/// ```
pub trait ParamSource {
    /// The array `scope/name`, if it is there.
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>>;

    /// Whether there is no array at all: Flax tells a layer without parameters from one that lacks some.
    fn is_empty(&self) -> bool;
}

/// Whether `path` is `scope/name`.
fn is_path(path: &str, scope: &str, name: &str) -> bool {
    path.strip_prefix(scope)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|rest| rest == name)
}

impl ParamSource for [(&str, TensorView<'_>)] {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        self.iter()
            .find(|(path, _)| is_path(path, scope, name))
            .map(|&(_, view)| view)
    }

    fn is_empty(&self) -> bool {
        <[_]>::is_empty(self)
    }
}

impl<const N: usize> ParamSource for [(&str, TensorView<'_>); N] {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        self.as_slice().tensor(scope, name)
    }

    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

#[cfg(feature = "alloc")]
impl ParamSource for alloc::vec::Vec<(&str, TensorView<'_>)> {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        self.as_slice().tensor(scope, name)
    }

    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

#[cfg(feature = "alloc")]
impl ParamSource for alloc::vec::Vec<(&str, Tensor)> {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        self.iter()
            .find(|(path, _)| is_path(path, scope, name))
            .map(|(_, tensor)| tensor.view())
    }

    fn is_empty(&self) -> bool {
        <[_]>::is_empty(self)
    }
}

/// Parameters whose dense layers do not know of heads, as Hugging Face's Flax models keep them: kernels `[features, heads * head_dim]`
/// (out: `[heads * head_dim, features]`) and biases `[heads * head_dim]` are seen in Flax's shapes. Others pass as they are.
///
/// ```
/// use attn_layers::{ParamSource, SplitHeads, tensor::TensorView};
/// let flat = [("query/kernel", TensorView::from_slice(&[0.0f32; 12], &[3, 4])?)];
/// let params = SplitHeads { params: &flat, num_heads: 2, num_kv_heads: None };
/// let kernel = params.tensor("query", "kernel").expect("it is there");
/// assert_eq!(kernel.shape().as_slice(), [3, 2, 2]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct SplitHeads<'p> {
    /// The parameters as they are kept.
    pub params: &'p dyn ParamSource,
    /// Number of heads.
    pub num_heads: usize,
    /// Number of heads of keys and values; `None` is `num_heads`.
    pub num_kv_heads: Option<usize>,
}

impl core::fmt::Debug for SplitHeads<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SplitHeads")
            .field("num_heads", &self.num_heads)
            .field("num_kv_heads", &self.num_kv_heads)
            .finish_non_exhaustive()
    }
}

impl SplitHeads<'_> {
    /// The shape with heads, `None` where there is none.
    fn split(&self, scope: &str, name: &str, shape: &[usize]) -> Option<Dims> {
        let heads = match scope {
            "key" | "value" => self.num_kv_heads.unwrap_or(self.num_heads),
            _ => self.num_heads,
        };
        let split =
            |hidden: usize| (hidden.checked_rem(heads)? == 0).then(|| [heads, hidden / heads]);
        match (scope, name, shape) {
            ("out", "kernel", &[hidden, features]) => {
                Dims::new(&split(hidden)?).ok()?.push(features).ok()
            }
            ("query" | "key" | "value", "kernel", &[features, hidden]) => {
                Dims::new(&[features]).ok()?.concat(&split(hidden)?).ok()
            }
            ("query" | "key" | "value", "bias", &[hidden]) => Dims::new(&split(hidden)?).ok(),
            _ => None,
        }
    }
}

impl ParamSource for SplitHeads<'_> {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        let tensor = self.params.tensor(scope, name)?;
        let split = self
            .split(scope, name, tensor.shape())
            .and_then(|shape| tensor.reshape(&shape).ok());
        // A shape that cannot be split is left to the layer, whose error names it.
        Some(split.unwrap_or(tensor))
    }

    fn is_empty(&self) -> bool {
        self.params.is_empty()
    }
}

/// The array `scope/name` of a source, checked.
#[cfg(feature = "alloc")]
pub(crate) fn find<'p>(
    params: &'p dyn ParamSource,
    scope: &'static str,
    name: &'static str,
    shape: &[usize],
) -> Result<TensorView<'p>> {
    let missing = || {
        if params.is_empty() {
            Error::ParamsEmpty
        } else {
            Error::ParamMissing { scope, name }
        }
    };
    let tensor = params.tensor(scope, name).ok_or_else(missing)?;
    same_shape(scope, name, tensor.shape(), shape)?;
    Ok(tensor)
}
