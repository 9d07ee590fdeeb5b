//! The whole tree of initial parameters (`module.init`).

use super::{Init, Param, ParamSizes};
use crate::einsum::{check_heads, check_pair, check_precision};
use crate::forward::roles;
use crate::layer::MultiHeadDotProductAttention;
use crate::params::ParamSource;
use crate::plan::features;
use crate::random::{DefaultWidth, Rngs};
use crate::tensor::{Tensor, TensorView};
use alloc::vec::Vec;
use attn_core::{AttentionShape, DType, Dims, Element, Error, Result, bf16, f16};

/// The arguments of `init` as far as parameters depend on them: shapes, `[batch..., length, features]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct InitShapes<'a> {
    /// Shape of `inputs_q`.
    pub inputs_q: &'a [usize],
    /// Shape of `inputs_k`; `None` is that of `inputs_q`.
    pub inputs_k: Option<&'a [usize]>,
    /// Shape of `inputs_v`; `None` is that of `inputs_k`.
    pub inputs_v: Option<&'a [usize]>,
    /// Shape of keys and values in one; not together with the others.
    pub inputs_kv: Option<&'a [usize]>,
    /// Whether there is no dropout: a layer with dropout wants it in `init` too.
    pub deterministic: Option<bool>,
}

impl<'a> InitShapes<'a> {
    /// Self-attention of `inputs_q`.
    #[must_use]
    pub const fn new(inputs_q: &'a [usize]) -> Self {
        Self {
            inputs_q,
            inputs_k: None,
            inputs_v: None,
            inputs_kv: None,
            deterministic: None,
        }
    }

    /// With the shape of `inputs_k`.
    #[must_use]
    pub const fn with_inputs_k(mut self, inputs_k: Option<&'a [usize]>) -> Self {
        self.inputs_k = inputs_k;
        self
    }

    /// With the shape of `inputs_v`.
    #[must_use]
    pub const fn with_inputs_v(mut self, inputs_v: Option<&'a [usize]>) -> Self {
        self.inputs_v = inputs_v;
        self
    }

    /// With the shape of `inputs_kv`.
    #[must_use]
    pub const fn with_inputs_kv(mut self, inputs_kv: Option<&'a [usize]>) -> Self {
        self.inputs_kv = inputs_kv;
        self
    }

    /// With `deterministic`.
    #[must_use]
    pub const fn with_deterministic(mut self, deterministic: Option<bool>) -> Self {
        self.deterministic = deterministic;
        self
    }

    /// Shapes of query, key and value.
    fn resolve(&self) -> Result<[Dims; 3]> {
        let [query, key, value] =
            roles(self.inputs_q, self.inputs_k, self.inputs_v, self.inputs_kv)?;
        Ok([Dims::new(query)?, Dims::new(key)?, Dims::new(value)?])
    }
}

/// What `init` made: the parameters in Flax's order of creation. A [`ParamSource`], so that it can be applied at once.
#[derive(Debug, Clone, PartialEq)]
pub struct InitialParams {
    entries: Vec<(&'static str, Tensor)>,
}

impl InitialParams {
    /// Paths and arrays, as [`write_msgpack`](crate::io::write_msgpack) takes them.
    #[must_use]
    pub fn views(&self) -> Vec<(&'static str, TensorView<'_>)> {
        self.iter().collect()
    }

    /// Paths and arrays.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, TensorView<'_>)> {
        self.entries
            .iter()
            .map(|(path, tensor)| (*path, tensor.view()))
    }

    /// The arrays themselves, to be trained.
    #[must_use]
    pub fn into_entries(self) -> Vec<(&'static str, Tensor)> {
        self.entries
    }
}

impl ParamSource for InitialParams {
    fn tensor(&self, scope: &str, name: &str) -> Option<TensorView<'_>> {
        self.entries.tensor(scope, name)
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<'h> MultiHeadDotProductAttention<'h> {
    /// `module.init`: the parameters that Flax starts from, bit for bit, all in `param_dtype` — but in `float32` for `float64` where the
    /// streams' convention is that of a JAX without 64-bit types, as it is by default. Inside a parent the field `path` says where
    /// the layer stands.
    ///
    /// # Errors
    ///
    /// Everything that Flax refuses, in Flax's order: wrong combinations of inputs, of heads and features, shapes that do not fit
    /// each other, `deterministic` missing or given twice where there is dropout, [`Error::ParamsRngMissing`], [`Error::NotInexact`] for
    /// `param_dtype`, and those of [`Initializer::fill`](crate::Initializer::fill). [`Error::DropoutRate`] as in a call.
    ///
    /// ```
    /// use attn_layers::{InitShapes, MultiHeadDotProductAttention, io, random::{Key, Rngs}};
    /// let layer = MultiHeadDotProductAttention { qkv_features: Some(6), ..MultiHeadDotProductAttention::new(2) };
    /// let params = layer.init(&Rngs::params(Key::from_words([0, 42])), &InitShapes::new(&[1, 4, 8]))?;
    /// assert_eq!(params.views()[0].1.get_f64(0) as f32, 0.567926);
    /// let file = io::write_msgpack(&params.views())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn init(&self, rngs: &Rngs, inputs: &InitShapes<'_>) -> Result<InitialParams> {
        let shapes = inputs.resolve()?;
        let sizes = self.param_sizes(&shapes)?;
        let mut entries = Vec::new();
        let (last, first) = (&Param::ALL[8..], &Param::ALL[..8]);
        self.make(first, &sizes, rngs, &mut entries)?;
        self.check_call(inputs, &sizes, &shapes)?;
        self.make(last, &sizes, rngs, &mut entries)?;
        Ok(InitialParams { entries })
    }

    fn param_sizes(&self, shapes: &[Dims; 3]) -> Result<ParamSizes> {
        let [query, key, value] = shapes;
        let widths = self.widths(query)?;
        Ok(ParamSizes {
            num_heads: widths.num_heads,
            num_kv_heads: widths.num_kv_heads,
            head_dim: widths.head_dim,
            out_features: widths.out_features,
            features: [
                features("inputs_q", query)?,
                features("inputs_k", key)?,
                features("inputs_v", value)?,
            ],
        })
    }

    /// Those of `params` that the layer has.
    fn make(
        &self,
        params: &[Param],
        sizes: &ParamSizes,
        rngs: &Rngs,
        entries: &mut Vec<(&'static str, Tensor)>,
    ) -> Result<()> {
        let init = self.init_fields();
        let used = |param: &&Param| param.is_used(self.use_bias, self.normalize_qk);
        let dtype = self.narrowed_param_dtype(rngs.convention.width)?;
        for &param in params.iter().filter(used) {
            let tensor = match dtype {
                DType::F32 => tensor::<f32>(&init, param, sizes, rngs),
                DType::F64 => tensor::<f64>(&init, param, sizes, rngs),
                DType::F16 => tensor::<f16>(&init, param, sizes, rngs),
                DType::BF16 => tensor::<bf16>(&init, param, sizes, rngs),
            };
            entries.push((param.path(), tensor?));
        }
        Ok(())
    }

    /// `param_dtype` as JAX takes it: without 64-bit types the narrow one.
    fn narrowed_param_dtype(&self, width: DefaultWidth) -> Result<DType> {
        let got = self.param_dtype;
        match (got.float().ok_or(Error::NotInexact { got })?, width) {
            (DType::F64, DefaultWidth::Bits32) => Ok(DType::F32),
            (dtype, _) => Ok(dtype),
        }
    }

    /// The fields that initial parameters follow from, for [`Init::fill`].
    #[must_use]
    pub fn init_fields(&self) -> Init<'h> {
        Init {
            kernel: self.kernel_init,
            out_kernel: self.out_kernel_init,
            bias: self.bias_init,
            out_bias: self.out_bias_init,
            path: self.path,
        }
    }

    /// What Flax finds wrong between the inner projections and the outer one: it runs the whole layer to make its parameters.
    fn check_call(
        &self,
        inputs: &InitShapes<'_>,
        sizes: &ParamSizes,
        shapes: &[Dims; 3],
    ) -> Result<()> {
        self.drops(inputs.deterministic)?;
        if self.attention_fn.is_some() {
            return Ok(());
        }
        check_pair(
            self.qk_attn_weights_einsum_cls,
            self.attn_weights_value_einsum_cls,
        )?;
        check_precision(self.precision, self.qk_attn_weights_einsum_cls)?;
        let split = |shape: &Dims, heads| {
            let rows = shape.split_last().map_or(&[][..], |(_, rows)| rows);
            Dims::new(rows)?.concat(&[heads, sizes.head_dim])
        };
        let [query, key, value] = shapes;
        let query = split(query, sizes.num_heads)?;
        let [key, value] = [key, value].map(|shape| split(shape, sizes.num_kv_heads));
        let shape = AttentionShape::of(&query, &key?, &value?)?;
        match self.qk_attn_weights_einsum_cls {
            Some(_) => check_heads(&shape),
            None => Ok(()),
        }
    }
}

fn tensor<T: Element>(
    init: &Init<'_>,
    param: Param,
    sizes: &ParamSizes,
    rngs: &Rngs,
) -> Result<Tensor> {
    let mut tensor = Tensor::zeros(T::SCALAR, &param.shape(sizes)?)?;
    match tensor.as_mut_slice::<T>() {
        Some(values) => init.fill(param, sizes, rngs, values)?,
        None => {
            return Err(Error::Unsupported {
                backend: "the tensor",
                feature: "big-endian machines",
                instead: "Fill your own buffers with `Init::fill`",
            });
        }
    }
    Ok(tensor)
}
