//! The typed layer: forward, decoding, forward and backward.

use super::numbers;
use attn_layers::core::{Causal, Element, Host, Kernels};
use attn_layers::{
    Cpu, DecodeCache, Dense, DenseGradientBuffers, Dims, GradientBuffers, HostView, HostViewMut,
    InputGradients, Inputs, MultiHeadDotProductAttentionOf, OnFull, OwnedResiduals, OwnedScratch,
    PackedParams, Params, Plan, Result,
};

/// Self-attention of `[batch, length, features]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) length: usize,
    pub(crate) features: usize,
    pub(crate) heads: usize,
}

/// What a layer is like beside its sizes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Whether queries and keys go through a layer norm.
    pub(crate) normalize_qk: bool,
    /// Whether the kernels are packed beforehand.
    pub(crate) packed: bool,
}

/// A layer and its parameters, biases and layer norms among them.
#[derive(Debug)]
struct Model<T: Element> {
    layer: MultiHeadDotProductAttentionOf<T>,
    features: usize,
    kernels: [Vec<T>; 4],
    biases: [Vec<T>; 4],
    scales: [Vec<T::Acc>; 2],
    packed: Option<PackedParams<T>>,
}

impl<T: Element> Model<T>
where
    Cpu: Kernels<T>,
{
    fn new(cpu: &Cpu, sizes: &Sizes, options: Options) -> Result<Self> {
        let mut model = Self::plain(sizes, options.normalize_qk);
        if options.packed {
            model.packed = Some(PackedParams::new(cpu, &model.params()?)?);
        }
        Ok(model)
    }

    fn plain(sizes: &Sizes, normalize_qk: bool) -> Self {
        let features = sizes.features;
        // Products of numbers near 1 would leave softmax with one key.
        let spread = T::from_f64(1.0 / (features as f64).sqrt());
        let kernel = |stream| {
            let mut kernel = numbers::<T>(stream, features * features);
            for weight in &mut kernel {
                *weight = T::from_f64(weight.to_f64() * spread.to_f64());
            }
            kernel
        };
        Self {
            layer: MultiHeadDotProductAttentionOf {
                normalize_qk,
                ..MultiHeadDotProductAttentionOf::new(sizes.heads)
            },
            features,
            kernels: [10, 11, 12, 13].map(kernel),
            biases: [20, 21, 22, 23].map(|stream| numbers(stream, features)),
            scales: [30, 31].map(|stream| numbers(stream, features / sizes.heads)),
            packed: None,
        }
    }

    fn plan(&self, batch: usize, length: usize) -> Result<Plan> {
        let shape = Dims::new(&[batch, length, self.features])?;
        self.layer.plan(&shape, &shape, &shape)
    }

    fn params(&self) -> Result<Params<'_, Host, T>> {
        if let Some(packed) = &self.packed {
            return packed.borrow();
        }
        let features = self.features;
        let depth = features / self.layer.num_heads;
        let heads = [self.layer.num_heads, depth];
        let dense = |n: usize| -> Result<Dense<'_, Host, T>> {
            Ok(Dense {
                kernel: HostView::new(&self.kernels[n], &[features, heads[0], heads[1]])?.into(),
                bias: Some(HostView::new(&self.biases[n], &heads)?),
            })
        };
        Ok(Params {
            query: dense(0)?,
            key: dense(1)?,
            value: dense(2)?,
            out: Dense {
                kernel: HostView::new(&self.kernels[3], &[heads[0], heads[1], features])?.into(),
                bias: Some(HostView::new(&self.biases[3], &[features])?),
            },
            query_ln: Some(HostView::new(&self.scales[0], &[depth])?),
            key_ln: Some(HostView::new(&self.scales[1], &[depth])?),
        })
    }
}

/// The forward pass.
#[derive(Debug)]
pub(crate) struct Forward<T: Element> {
    model: Model<T>,
    plan: Plan,
    shape: Dims,
    input: Vec<T>,
    out: Vec<T>,
    scratch: OwnedScratch<T>,
}

impl<T: Element> Forward<T>
where
    Cpu: Kernels<T>,
{
    pub(crate) fn new(cpu: &Cpu, sizes: Sizes, options: Options) -> Result<Self> {
        let model = Model::new(cpu, &sizes, options)?;
        let plan = model.plan(sizes.batch, sizes.length)?;
        let shape = plan.output()?;
        let len = shape.elements()?;
        Ok(Self {
            scratch: OwnedScratch::new(&plan.scratch::<T, _>(cpu))?,
            model,
            plan,
            shape,
            input: numbers(1, len),
            out: vec![T::default(); len],
        })
    }

    pub(crate) fn apply(&mut self, cpu: &Cpu) -> Result<()> {
        let inputs = Inputs::self_attention(HostView::new(&self.input, &self.shape)?);
        self.model.layer.apply(
            cpu,
            &self.plan,
            &self.model.params()?,
            inputs,
            HostViewMut::new(&mut self.out, &self.shape)?,
            &mut self.scratch.borrow(),
        )
    }
}

/// Decoding one token, the last that the cache has room for.
#[derive(Debug)]
pub(crate) struct Decoding<T: Element> {
    model: Model<T>,
    plan: Plan,
    token_shape: Dims,
    cache_shape: Dims,
    token: Vec<T>,
    keys: Vec<T>,
    values: Vec<T>,
    out: Vec<T>,
    scratch: OwnedScratch<T>,
}

impl<T: Element> Decoding<T>
where
    Cpu: Kernels<T>,
{
    /// `sizes.length` is that of the cache.
    pub(crate) fn new(cpu: &Cpu, sizes: Sizes, options: Options) -> Result<Self> {
        let model = Model::new(cpu, &sizes, options)?;
        let plan = model.plan(sizes.batch, 1)?;
        let token_shape = plan.output()?;
        let depth = sizes.features / sizes.heads;
        let cache_shape = Dims::new(&[sizes.batch, sizes.length, sizes.heads, depth])?;
        let (token, cache) = (token_shape.elements()?, cache_shape.elements()?);
        Ok(Self {
            scratch: OwnedScratch::new(&plan.decode_scratch::<T, _>(cpu, sizes.length))?,
            model,
            plan,
            token_shape,
            cache_shape,
            token: numbers(1, token),
            keys: numbers(2, cache),
            values: numbers(3, cache),
            out: vec![T::default(); token],
        })
    }

    pub(crate) fn step(&mut self, cpu: &Cpu) -> Result<()> {
        let mut cache = DecodeCache {
            cached_key: HostViewMut::new(&mut self.keys, &self.cache_shape)?,
            cached_value: HostViewMut::new(&mut self.values, &self.cache_shape)?,
            cache_index: self.cache_shape[1] - 1,
            on_full: OnFull::Error,
        };
        let inputs = Inputs::self_attention(HostView::new(&self.token, &self.token_shape)?);
        self.model.layer.decode(
            cpu,
            &self.plan,
            &self.model.params()?,
            &inputs,
            &mut cache,
            HostViewMut::new(&mut self.out, &self.token_shape)?,
            &mut self.scratch.borrow(),
        )
    }
}

/// The forward pass that keeps its residuals and the backward pass, with a causal mask and dropout, all gradients wanted.
#[derive(Debug)]
pub(crate) struct Training<T: Element> {
    model: Model<T>,
    plan: Plan,
    shape: Dims,
    input: Vec<T>,
    out: Vec<T>,
    d_out: Vec<T>,
    d_input: Vec<T>,
    d_model: Model<T>,
    residuals: OwnedResiduals<T>,
    scratch: OwnedScratch<T>,
}

impl<T: Element> Training<T>
where
    Cpu: Kernels<T>,
{
    pub(crate) fn new(cpu: &Cpu, sizes: Sizes, options: Options) -> Result<Self> {
        let model = Model::new(cpu, &sizes, options)?;
        let plan = model.plan(sizes.batch, sizes.length)?;
        let shape = plan.output()?;
        let len = shape.elements()?;
        Ok(Self {
            residuals: OwnedResiduals::new(&plan.residuals())?,
            scratch: OwnedScratch::new(&plan.backward_scratch::<T, _>(cpu))?,
            model,
            d_model: Model::plain(&sizes, options.normalize_qk),
            plan,
            shape,
            input: numbers(1, len),
            out: vec![T::default(); len],
            d_out: numbers(2, len),
            d_input: vec![T::default(); len],
        })
    }

    pub(crate) fn step(&mut self, cpu: &Cpu) -> Result<()> {
        let (layer, plan, params) = (&self.model.layer, &self.plan, self.model.params()?);
        let input = HostView::new(&self.input, &self.shape)?;
        let inputs = || {
            Inputs::self_attention(input)
                .with_causal(Some(Causal::top_left()))
                .with_dropout(super::dropout::<T>())
        };
        let mut residuals = self.residuals.borrow();
        layer.forward(
            cpu,
            plan,
            &params,
            inputs(),
            HostViewMut::new(&mut self.out, &self.shape)?,
            &mut residuals,
            &mut self.scratch.borrow(),
        )?;
        let d_input = HostViewMut::new(&mut self.d_input, &self.shape)?;
        layer.backward(
            cpu,
            plan,
            &params,
            &inputs(),
            &residuals,
            HostView::new(&self.d_out, &self.shape)?,
            &mut gradients(&mut self.d_model, d_input)?,
            &mut self.scratch.borrow(),
        )
    }
}

/// Gradients go where a second model of the same sizes has its parameters.
fn gradients<'g, T: Element>(
    model: &'g mut Model<T>,
    x: HostViewMut<'g, T>,
) -> Result<GradientBuffers<'g, Host, T>> {
    let features = model.features;
    let depth = features / model.layer.num_heads;
    let heads = [model.layer.num_heads, depth];
    let split = [features, heads[0], heads[1]];
    let [query, key, value, out] = &mut model.kernels;
    let [query_bias, key_bias, value_bias, out_bias] = &mut model.biases;
    let [query_ln, key_ln] = &mut model.scales;
    let wanted = model.layer.normalize_qk;
    Ok(GradientBuffers {
        inputs: InputGradients::SelfAttention { x },
        query: dense(query, &split, query_bias, &heads)?,
        key: dense(key, &split, key_bias, &heads)?,
        value: dense(value, &split, value_bias, &heads)?,
        out: dense(out, &[heads[0], heads[1], features], out_bias, &[features])?,
        query_ln: Some(HostViewMut::new(query_ln, &[depth])?).filter(|_| wanted),
        key_ln: Some(HostViewMut::new(key_ln, &[depth])?).filter(|_| wanted),
    })
}

fn dense<'g, T: Element>(
    kernel: &'g mut [T],
    kernel_shape: &[usize],
    bias: &'g mut [T],
    bias_shape: &[usize],
) -> Result<DenseGradientBuffers<'g, Host, T>> {
    Ok(DenseGradientBuffers {
        kernel: Some(HostViewMut::new(kernel, kernel_shape)?),
        bias: Some(HostViewMut::new(bias, bias_shape)?),
    })
}
