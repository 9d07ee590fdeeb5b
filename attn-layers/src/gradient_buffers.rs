//! Where a typed layer puts its gradients: arrays of the caller's.

use crate::inputs::same;
use crate::plan::Plan;
use attn_core::{Dims, Element, Error, Result, Storage, ViewMut};

/// Where the gradients of the inputs go, by which of them are the same array.
#[expect(
    clippy::large_enum_variant,
    reason = "a view holds its layout inline, and there is no allocator to put it elsewhere"
)]
#[derive(Debug)]
pub enum InputGradients<'g, S: Storage, T: Element> {
    /// Nowhere: they are not wanted.
    NotWanted,
    /// Self-attention: one array, which gets the sum of its three uses.
    SelfAttention {
        /// `[batch..., length, features]`.
        x: ViewMut<'g, S, T>,
    },
    /// Keys and values from one array, which gets the sum of its two uses.
    KeyValue {
        /// `[batch..., query_length, features]`.
        q: ViewMut<'g, S, T>,
        /// `[batch..., key_length, features]`.
        kv: ViewMut<'g, S, T>,
    },
    /// Three arrays.
    Separate {
        /// `[batch..., query_length, features]`.
        q: ViewMut<'g, S, T>,
        /// `[batch..., key_length, features]`.
        k: ViewMut<'g, S, T>,
        /// `[batch..., key_length, features]`.
        v: ViewMut<'g, S, T>,
    },
}

/// Where the gradients of a dense layer's parameters go; `None` where one is not wanted, and where the layer has no such parameter.
#[derive(Debug)]
pub struct DenseGradientBuffers<'g, S: Storage, T: Element> {
    /// Of the kernel's shape: `[features, num_heads, head_dim]` for query, `[features, num_kv_heads, head_dim]` for key and value;
    /// `[num_heads, head_dim, features]` for out.
    pub kernel: Option<ViewMut<'g, S, T>>,
    /// Of the bias's shape: `[num_heads, head_dim]` for query, `[num_kv_heads, head_dim]` for key and value; `[features]` for out. `None` with `use_bias: false`.
    pub bias: Option<ViewMut<'g, S, T>>,
}

/// Where the gradients of a call go. All of them are overwritten: one for a parameter that the layer has not is an error
/// ([`Error::Together`](crate::Error::Together)), before anything is written.
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
#[derive(Debug)]
pub struct GradientBuffers<'g, S: Storage, T: Element> {
    /// Of the inputs.
    pub inputs: InputGradients<'g, S, T>,
    /// Of `query`.
    pub query: DenseGradientBuffers<'g, S, T>,
    /// Of `key`.
    pub key: DenseGradientBuffers<'g, S, T>,
    /// Of `value`.
    pub value: DenseGradientBuffers<'g, S, T>,
    /// Of `out`.
    pub out: DenseGradientBuffers<'g, S, T>,
    /// Of `query_ln/scale`, `[head_dim]`, with `normalize_qk`.
    pub query_ln: Option<ViewMut<'g, S, T::Acc>>,
    /// Of `key_ln/scale`, `[head_dim]`, with `normalize_qk`.
    pub key_ln: Option<ViewMut<'g, S, T::Acc>>,
}

impl<S: Storage, T: Element> InputGradients<'_, S, T> {
    /// Where the gradient of the query's input goes. The values' is written first, then the queries', then the keys'; whether it is added to
    /// what is there.
    pub(crate) fn query(&mut self) -> (Option<ViewMut<'_, S, T>>, bool) {
        match self {
            Self::NotWanted => (None, false),
            Self::SelfAttention { x } => (Some(x.reborrow()), true),
            Self::KeyValue { q, .. } | Self::Separate { q, .. } => (Some(q.reborrow()), false),
        }
    }

    /// Where the gradient of the key's input goes.
    pub(crate) fn key(&mut self) -> (Option<ViewMut<'_, S, T>>, bool) {
        match self {
            Self::NotWanted => (None, false),
            Self::SelfAttention { x } => (Some(x.reborrow()), true),
            Self::KeyValue { kv, .. } => (Some(kv.reborrow()), true),
            Self::Separate { k, .. } => (Some(k.reborrow()), false),
        }
    }

    /// Where the gradient of the value's input goes.
    pub(crate) fn value(&mut self) -> (Option<ViewMut<'_, S, T>>, bool) {
        match self {
            Self::NotWanted => (None, false),
            Self::SelfAttention { x } => (Some(x.reborrow()), false),
            Self::KeyValue { kv, .. } => (Some(kv.reborrow()), false),
            Self::Separate { v, .. } => (Some(v.reborrow()), false),
        }
    }

    fn check(&mut self, plan: &Plan) -> Result<()> {
        let [query, key, value] = plan.inputs()?;
        let parts = [
            (
                "d_inputs_q",
                self.query().0.map(|view| *view.shape()),
                query,
            ),
            ("d_inputs_k", self.key().0.map(|view| *view.shape()), key),
            (
                "d_inputs_v",
                self.value().0.map(|view| *view.shape()),
                value,
            ),
        ];
        for (argument, got, wanted) in parts {
            if let Some(got) = got {
                same(argument, &got, wanted)?;
            }
        }
        Ok(())
    }
}

impl<S: Storage, T: Element> DenseGradientBuffers<'_, S, T> {
    /// `name` is that of the bias's gradient.
    fn check(
        &self,
        name: &'static str,
        kernel: &[usize],
        bias: &[usize],
        use_bias: bool,
    ) -> Result<()> {
        if let Some(view) = &self.kernel {
            same("d_kernel", view.shape(), Dims::new(kernel)?)?;
        }
        match &self.bias {
            Some(_) if !use_bias => Err(Error::Together {
                left: name,
                right: "use_bias",
            }),
            Some(view) => same("d_bias", view.shape(), Dims::new(bias)?),
            None => Ok(()),
        }
    }
}

impl<S: Storage, T: Element> GradientBuffers<'_, S, T> {
    /// Whether every array has the plan's shape, and belongs to a parameter that the layer has.
    pub(crate) fn check(&mut self, plan: &Plan, use_bias: bool, normalize_qk: bool) -> Result<()> {
        self.inputs.check(plan)?;
        let inputs = [
            ("query.bias", &self.query, plan.num_heads),
            ("key.bias", &self.key, plan.num_kv_heads),
            ("value.bias", &self.value, plan.num_kv_heads),
        ];
        let depth = plan.head_dim;
        for ((name, dense, heads), features) in inputs.into_iter().zip(plan.features) {
            dense.check(name, &[features, heads, depth], &[heads, depth], use_bias)?;
        }
        for (name, scale) in [("query_ln", &self.query_ln), ("key_ln", &self.key_ln)] {
            match scale {
                Some(_) if !normalize_qk => {
                    return Err(Error::Together {
                        left: name,
                        right: "normalize_qk",
                    });
                }
                Some(scale) => same("d_scale", scale.shape(), Dims::new(&[depth])?)?,
                None => {}
            }
        }
        let features = plan.out_features;
        let kernel = [plan.num_heads, depth, features];
        self.out.check("out.bias", &kernel, &[features], use_bias)
    }
}
