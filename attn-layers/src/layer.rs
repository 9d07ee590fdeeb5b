//! Flax's layer: every constructor field and call argument by its own name.

use crate::backward::{self, Residuals};
use crate::cache::{AnyCache, CacheAccess};
use crate::forward::{self, Pass};
use crate::gradients::Gradients;
use crate::hooks::{AttentionFn, DotGeneral, DotGeneralCls, EinsumCls};
use crate::initializers::{Initializer, NormalOrder};
use crate::params::ParamSource;
use crate::plan::{Widths, features};
use crate::prefill::prefill;
use crate::random::{Convention, Counters, DefaultWidth, PathNames, Rngs};
use crate::stage::HostKernels;
use crate::tensor::{Tensor, TensorView};
use attn_core::{Dims, Error, Result, Rotary, ScalarType, dropout::check_rate};
use core::fmt;

/// `jax.lax.Precision`. On a CPU all are exact `float32` products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The backend's fastest.
    Default,
    /// Between the others.
    High,
    /// Exact in the dtype.
    Highest,
}

/// `flax.linen.MultiHeadDotProductAttention`: plain configuration that holds no data. Dtypes are those of the arrays at hand and
/// promote as in JAX.
///
/// ```
/// use attn_layers::{Call, Cpu, MultiHeadDotProductAttention, tensor::TensorView};
///
/// let layer = MultiHeadDotProductAttention { use_bias: false, ..MultiHeadDotProductAttention::new(1) };
/// let one = TensorView::from_slice(&[1.0f32], &[1, 1, 1])?;
/// let params = [("query/kernel", one), ("key/kernel", one), ("value/kernel", one), ("out/kernel", one)];
/// let x = TensorView::from_slice(&[0.5f32, 0.5], &[2, 1])?;
/// let y = layer.apply(&Cpu::detect(), &params, Call::new(x))?;
/// assert_eq!(y.out.as_slice(), Some([0.5f32, 0.5].as_slice()));
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Clone)]
pub struct MultiHeadDotProductAttention<'h> {
    /// Number of heads.
    pub num_heads: usize,
    /// Number of heads of keys and values, each of which serves `num_heads / num_kv_heads` heads of queries; `None` is `num_heads`.
    /// `flax.linen` has none. The kernels of `key` and `value` are `[features, num_kv_heads, head_dim]`, their biases
    /// `[num_kv_heads, head_dim]`, and a cache has as many heads. `attention_fn` gets keys and values as they are projected.
    pub num_kv_heads: Option<usize>,
    /// Computation dtype; `None` infers it from inputs and parameters.
    pub dtype: Option<ScalarType>,
    /// Dtype of the parameters that [`MultiHeadDotProductAttention::init`] makes. As in JAX there is `float64` only with
    /// [`DefaultWidth::Bits64`] in the streams' convention; else it is narrowed to `float32`.
    pub param_dtype: ScalarType,
    /// Total width of query, key and value; `None` or 0 is the width of `inputs_q`.
    pub qkv_features: Option<usize>,
    /// Width of the output; `None` or 0 is the width of `inputs_q`.
    pub out_features: Option<usize>,
    /// Whether one dropout mask serves all batch entries and heads.
    pub broadcast_dropout: bool,
    /// Probability that an attention weight is dropped.
    pub dropout_rate: f64,
    /// Whether there is no dropout; looked at only if the rate is above 0.
    pub deterministic: Option<bool>,
    /// Precision of the products.
    pub precision: Option<Precision>,
    /// Initializer of the kernels of query, key, value, and of out unless it has its own.
    pub kernel_init: Initializer<'h>,
    /// Initializer of out's kernel.
    pub out_kernel_init: Option<Initializer<'h>>,
    /// Initializer of the biases of query, key, value, and of out unless it has its own.
    pub bias_init: Initializer<'h>,
    /// Initializer of out's bias.
    pub out_bias_init: Option<Initializer<'h>>,
    /// Whether the dense layers have a bias.
    pub use_bias: bool,
    /// A replacement of the attention core.
    pub attention_fn: Option<&'h dyn AttentionFn>,
    /// Whether the layer decodes with a cache.
    pub decode: bool,
    /// Layer norm over `head_dim` of queries and keys.
    pub normalize_qk: bool,
    /// Rotary embedding of queries and keys, after the layer norm; `flax.linen` has none. Rows lie at the positions from 0 on, in a decoding
    /// step from `cache_index` on. Keys in a cache are rotated.
    pub rotary: Option<Rotary>,
    /// Whether softmax runs in `float32` and its weights stay so.
    pub force_fp32_for_softmax: bool,
    /// A replacement of the product in query, key and value.
    pub qkv_dot_general: Option<&'h dyn DotGeneral>,
    /// A replacement of the product in out.
    pub out_dot_general: Option<&'h dyn DotGeneral>,
    /// A factory of `qkv_dot_general`; wins over it.
    pub qkv_dot_general_cls: Option<DotGeneralCls<'h>>,
    /// A factory of `out_dot_general`; wins over it.
    pub out_dot_general_cls: Option<DotGeneralCls<'h>>,
    /// A factory of the einsum of queries and keys; both einsums or neither, and not with `precision` or fewer `num_kv_heads` than `num_heads`.
    pub qk_attn_weights_einsum_cls: Option<EinsumCls<'h>>,
    /// A factory of the einsum of weights and values.
    pub attn_weights_value_einsum_cls: Option<EinsumCls<'h>>,
    /// Names of the modules from the root down to this one: its place in the random streams. Empty at the root.
    pub path: &'h [&'h str],
}

impl MultiHeadDotProductAttention<'_> {
    /// Flax's defaults.
    #[must_use]
    pub const fn new(num_heads: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads: None,
            dtype: None,
            param_dtype: ScalarType::F32,
            qkv_features: None,
            out_features: None,
            broadcast_dropout: true,
            dropout_rate: 0.0,
            deterministic: None,
            precision: None,
            kernel_init: Initializer::LecunNormal,
            out_kernel_init: None,
            bias_init: Initializer::Zeros,
            out_bias_init: None,
            use_bias: true,
            attention_fn: None,
            decode: false,
            normalize_qk: false,
            rotary: None,
            force_fp32_for_softmax: false,
            qkv_dot_general: None,
            out_dot_general: None,
            qkv_dot_general_cls: None,
            out_dot_general_cls: None,
            qk_attn_weights_einsum_cls: None,
            attn_weights_value_einsum_cls: None,
            path: &[],
        }
    }

    /// `module.apply`. With `decode` the call makes the cache or does one step on it.
    ///
    /// # Errors
    ///
    /// Everything that Flax refuses, in Flax's order; see [`Error`](crate::Error).
    pub fn apply<B: HostKernels>(
        &self,
        backend: &B,
        params: &dyn ParamSource,
        call: Call<'_>,
    ) -> Result<Output> {
        forward::apply(self, backend, params, call)
    }

    /// `jax.vjp` of `module.apply`, its first half: the output, and what the gradients need. A call of a decoding layer that makes the cache
    /// is plain attention and has gradients; a step has none.
    ///
    /// # Errors
    ///
    /// Those of [`MultiHeadDotProductAttention::apply`]; [`Error::DTypeMismatch`] for a parameter of integers, which has no
    /// gradient (an input of integers merely goes without); [`Error::Unsupported`] for a decoding step.
    pub fn forward<'a, B: HostKernels>(
        &self,
        backend: &B,
        params: &'a dyn ParamSource,
        call: Call<'a>,
    ) -> Result<(Output, Residuals<'a>)> {
        backward::forward(self, backend, params, call)
    }

    /// `jax.vjp` of `module.apply`, its second half: the gradients of inputs and parameters from that of the output,
    /// `[batch..., query_length, out_features]`, in the output's dtype. The layer and the backend are those of the forward pass.
    ///
    /// ```
    /// use attn_layers::{Call, Cpu, MultiHeadDotProductAttention, tensor::TensorView};
    ///
    /// let layer = MultiHeadDotProductAttention { use_bias: false, ..MultiHeadDotProductAttention::new(1) };
    /// let one = TensorView::from_slice(&[1.0f32], &[1, 1, 1])?;
    /// let params = [("query/kernel", one), ("key/kernel", one), ("value/kernel", one), ("out/kernel", one)];
    /// let x = TensorView::from_slice(&[0.5f32, 0.5], &[2, 1])?;
    /// let cpu = Cpu::detect();
    /// let (y, residuals) = layer.forward(&cpu, &params, Call::new(x))?;
    /// let d_y = TensorView::from_slice(&[1.0f32, 1.0], &[2, 1])?;
    /// let gradients = layer.backward(&cpu, &residuals, d_y)?;
    /// let d_x = gradients.d_inputs_q.expect("inputs_q holds floats");
    /// assert_eq!(d_x.to_vec_f64(), [1.0, 1.0]);
    /// for (path, gradient) in gradients.params.iter() {
    ///     println!("{path}: {:?}", gradient);
    /// }
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::DTypeMismatch`] if `d_out` is not like the output; [`Error::Unsupported`] for a hook that brings no `vjp`
    /// and from a backend without gradients.
    pub fn backward<B: HostKernels>(
        &self,
        backend: &B,
        residuals: &Residuals<'_>,
        d_out: TensorView<'_>,
    ) -> Result<Gradients> {
        backward::backward(self, backend, residuals, &d_out)
    }

    /// Many tokens of decoding at once: the same outputs and cache, bit for bit, as feeding them one by one. The cache must be there
    /// (a call of [`MultiHeadDotProductAttention::apply`] or [`MultiHeadDotProductAttention::init_cache`] makes it); a mask
    /// broadcasts to `[batch..., heads, tokens, max_length]`. The call's own `cache` is not looked at.
    ///
    /// # Errors
    ///
    /// [`Error::CacheMissing`] if the layer does not decode, and those of [`MultiHeadDotProductAttention::apply`]; the cache is then
    /// as it was.
    pub fn prefill<B: HostKernels>(
        &self,
        backend: &B,
        params: &dyn ParamSource,
        call: Call<'_>,
        cache: &mut AnyCache,
    ) -> Result<Output> {
        if !self.decode {
            return Err(Error::CacheMissing);
        }
        let pass = Pass::new(self, backend, params, &call)?;
        prefill(&pass, &call, cache)
    }

    /// What the fields make of the width of `inputs_q`, `[batch..., length, features]`.
    pub(crate) fn widths(&self, inputs_q: &Dims) -> Result<Widths> {
        let features = features("inputs_q", inputs_q)?;
        Widths::new(
            self.num_heads,
            self.num_kv_heads,
            self.qkv_features,
            self.out_features,
            features,
        )
    }

    /// Whether a call with this `deterministic` drops weights.
    pub(crate) fn drops(&self, deterministic: Option<bool>) -> Result<bool> {
        check_rate(self.dropout_rate)?;
        if self.dropout_rate == 0.0 {
            return Ok(false);
        }
        match (self.deterministic, deterministic) {
            (Some(_), Some(_)) => Err(Error::DeterministicGivenTwice),
            (None, None) => Err(Error::DeterministicMissing),
            (Some(given), None) | (None, Some(given)) => Ok(!given),
        }
    }

    /// An empty cache for inputs like these, `[batch..., max_length, features]`: what the initializing call of Flax leaves.
    ///
    /// # Errors
    ///
    /// Those of [`MultiHeadDotProductAttention::apply`] that concern shapes and parameters of key and value.
    pub fn init_cache(&self, params: &dyn ParamSource, call: &Call<'_>) -> Result<AnyCache> {
        forward::init_cache(self, params, call)
    }
}

impl fmt::Debug for MultiHeadDotProductAttention<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiHeadDotProductAttention")
            .field("num_heads", &self.num_heads)
            .field("num_kv_heads", &self.num_kv_heads)
            .field("dtype", &self.dtype)
            .field("qkv_features", &self.qkv_features)
            .field("out_features", &self.out_features)
            .field("use_bias", &self.use_bias)
            .field("decode", &self.decode)
            .field("normalize_qk", &self.normalize_qk)
            .field("rotary", &self.rotary)
            .finish_non_exhaustive()
    }
}

/// [`Rngs::default`], which is no constant.
const NO_STREAMS: Rngs = Rngs {
    params: None,
    dropout: None,
    convention: JAX_DEFAULT,
    names: PathNames::Joined,
    normal_order: NormalOrder::DeviationLast,
};

/// [`Convention::default`], which is no constant.
pub(crate) const JAX_DEFAULT: Convention = Convention {
    counters: Counters::PerElement,
    width: DefaultWidth::Bits32,
};

/// The arguments of a call, by Flax's names.
#[derive(Debug)]
#[non_exhaustive]
pub struct Call<'a> {
    /// `[batch..., query_length, features]`.
    pub inputs_q: TensorView<'a>,
    /// `[batch..., key_length, features]`; `None` is `inputs_q`.
    pub inputs_k: Option<TensorView<'a>>,
    /// `[batch..., key_length, features]`; `None` is `inputs_k`.
    pub inputs_v: Option<TensorView<'a>>,
    /// Keys and values in one; not together with the others.
    pub inputs_kv: Option<TensorView<'a>>,
    /// Broadcasts to `[batch..., heads, query_length, key_length]`; any dtype, not 0 means that the query sees the key.
    pub mask: Option<TensorView<'a>>,
    /// Whether there is no dropout.
    pub deterministic: Option<bool>,
    /// The words of the dropout key; `None` draws one from `rngs`.
    pub dropout_rng: Option<[u32; 2]>,
    /// The random streams. Their convention is also that of `dropout_rng`.
    pub rngs: Rngs,
    /// Which draw of this module within one `apply` of the model the dropout key is: 1 for its first call, 2 if it is called again, ….
    /// 0 is none: an error where a key is drawn.
    pub make_rng_count: u32,
    /// Whether to return the attention weights.
    pub sow_weights: bool,
    /// The collection `cache`.
    pub cache: CacheAccess<'a>,
}

impl<'a> Call<'a> {
    /// Self-attention of `inputs_q`.
    #[must_use]
    pub const fn new(inputs_q: TensorView<'a>) -> Self {
        Self {
            inputs_q,
            inputs_k: None,
            inputs_v: None,
            inputs_kv: None,
            mask: None,
            deterministic: None,
            dropout_rng: None,
            rngs: NO_STREAMS,
            make_rng_count: 1,
            sow_weights: false,
            cache: CacheAccess::None,
        }
    }

    /// With `inputs_k`.
    #[must_use]
    pub fn with_inputs_k(mut self, inputs_k: Option<TensorView<'a>>) -> Self {
        self.inputs_k = inputs_k;
        self
    }

    /// With `inputs_v`.
    #[must_use]
    pub fn with_inputs_v(mut self, inputs_v: Option<TensorView<'a>>) -> Self {
        self.inputs_v = inputs_v;
        self
    }

    /// With `inputs_kv`.
    #[must_use]
    pub fn with_inputs_kv(mut self, inputs_kv: Option<TensorView<'a>>) -> Self {
        self.inputs_kv = inputs_kv;
        self
    }

    /// With `mask`.
    #[must_use]
    pub fn with_mask(mut self, mask: Option<TensorView<'a>>) -> Self {
        self.mask = mask;
        self
    }

    /// With `deterministic`.
    #[must_use]
    pub fn with_deterministic(mut self, deterministic: Option<bool>) -> Self {
        self.deterministic = deterministic;
        self
    }

    /// With `dropout_rng`.
    #[must_use]
    pub fn with_dropout_rng(mut self, dropout_rng: Option<[u32; 2]>) -> Self {
        self.dropout_rng = dropout_rng;
        self
    }

    /// With random streams (`apply(..., rngs={'dropout': key})`).
    ///
    /// ```
    /// use attn_layers::{Call, Cpu, MultiHeadDotProductAttention, tensor::TensorView};
    /// use attn_layers::random::{DefaultWidth, Key, Rngs};
    ///
    /// let layer = MultiHeadDotProductAttention {
    ///     use_bias: false,
    ///     dropout_rate: 0.5,
    ///     deterministic: Some(false),
    ///     ..MultiHeadDotProductAttention::new(1)
    /// };
    /// let one = TensorView::from_slice(&[1.0f32], &[1, 1, 1])?;
    /// let params = [("query/kernel", one), ("key/kernel", one), ("value/kernel", one), ("out/kernel", one)];
    /// let x = TensorView::from_slice(&[1.0f32; 4], &[4, 1])?;
    /// let rngs = Rngs { dropout: Some(Key::new(1, DefaultWidth::Bits32)), ..Rngs::default() };
    /// let y = layer.apply(&Cpu::detect(), &params, Call::new(x).with_rngs(rngs))?;
    /// // Each query keeps some of its four weights of 1/4, and doubles them.
    /// assert!(y.out.to_vec_f64().iter().all(|sum| [0.0, 0.5, 1.0, 1.5, 2.0].contains(sum)));
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    #[must_use]
    pub fn with_rngs(mut self, rngs: Rngs) -> Self {
        self.rngs = rngs;
        self
    }

    /// With `make_rng_count`.
    #[must_use]
    pub fn with_make_rng_count(mut self, make_rng_count: u32) -> Self {
        self.make_rng_count = make_rng_count;
        self
    }

    /// With `sow_weights`.
    #[must_use]
    pub fn with_sow_weights(mut self, sow_weights: bool) -> Self {
        self.sow_weights = sow_weights;
        self
    }

    /// With the collection `cache`.
    #[must_use]
    pub fn with_cache(mut self, cache: CacheAccess<'a>) -> Self {
        self.cache = cache;
        self
    }
}

/// What a call gives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// `[batch..., query_length, out_features]`.
    pub out: Tensor,
    /// With `sow_weights`: the weights after softmax, `[batch..., heads, query_length, key_length]`.
    pub attention_weights: Option<Tensor>,
}

/// `flax.linen.MultiHeadAttention`: the same layer; in Flax only its automatic name differs.
pub type MultiHeadAttention<'h> = MultiHeadDotProductAttention<'h>;

/// `flax.linen.SelfAttention`: the same layer for one input.
///
/// ```
/// use attn_layers::{Cpu, SelfAttention, tensor::TensorView};
/// let mut layer = SelfAttention::new(1);
/// layer.0.use_bias = false;
/// let one = TensorView::from_slice(&[1.0f32], &[1, 1, 1])?;
/// let params = [("query/kernel", one), ("key/kernel", one), ("value/kernel", one), ("out/kernel", one)];
/// let x = TensorView::from_slice(&[1.0f32, 3.0], &[2, 1])?;
/// let only_the_first = TensorView::from_slice(&[1u8, 0], &[2])?;
/// let y = layer.apply(&Cpu::detect(), &params, x, Some(only_the_first), None, None, false)?;
/// assert_eq!(y.out.to_vec_f64(), [1.0, 1.0]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SelfAttention<'h>(pub MultiHeadDotProductAttention<'h>);

impl SelfAttention<'_> {
    /// Flax's defaults.
    #[must_use]
    pub const fn new(num_heads: usize) -> Self {
        Self(MultiHeadDotProductAttention::new(num_heads))
    }

    /// `module.apply`, its arguments in Flax's order: `mask` is the second. For a cache, random streams or gradients use the methods of
    /// the field.
    ///
    /// # Errors
    ///
    /// As [`MultiHeadDotProductAttention::apply`].
    #[expect(clippy::too_many_arguments, reason = "Flax's own arguments")]
    pub fn apply<B: HostKernels>(
        &self,
        backend: &B,
        params: &dyn ParamSource,
        inputs_q: TensorView<'_>,
        mask: Option<TensorView<'_>>,
        deterministic: Option<bool>,
        dropout_rng: Option<[u32; 2]>,
        sow_weights: bool,
    ) -> Result<Output> {
        let call = Call::new(inputs_q)
            .with_mask(mask)
            .with_deterministic(deterministic)
            .with_dropout_rng(dropout_rng)
            .with_sow_weights(sow_weights);
        self.0.apply(backend, params, call)
    }
}
