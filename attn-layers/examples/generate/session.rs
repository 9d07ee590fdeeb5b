//! A decoder at work: a cache for each of its attention layers, and the next characters of a sequence.

use crate::model::Decoder;
use crate::nn::add;
use anyhow::{Result, ensure};
use attn_layers::core::{Element, Kernels};
use attn_layers::{
    Dims, HostKernels, HostView, HostViewMut, KvCachePlan, NextTokens, OwnedKvCache, OwnedScratch,
    Plan,
};

pub(crate) struct Session<'m, B, T: Element> {
    backend: &'m B,
    model: &'m Decoder<T>,
    caches: Vec<OwnedKvCache<T>>,
    /// The most characters of a sequence.
    longest: usize,
    call: Call<T>,
}

/// What a call with so many characters works in.
struct Call<T: Element> {
    shape: Dims,
    plan: Plan,
    scratch: OwnedScratch<T>,
    out: Vec<T>,
}

impl<'m, B: HostKernels + Kernels<T>, T: Element> Session<'m, B, T> {
    /// Without a sequence, with caches like `cache` for sequences of at most `longest` characters.
    pub(crate) fn new(
        backend: &'m B,
        model: &'m Decoder<T>,
        cache: KvCachePlan,
        longest: usize,
    ) -> Result<Self> {
        let empty = || {
            let mut cache = OwnedKvCache::new(cache)?;
            cache.borrow().remove_all();
            Ok::<_, anyhow::Error>(cache)
        };
        let caches = model.blocks.iter().map(|_| empty());
        Ok(Self {
            caches: caches.collect::<Result<_>>()?,
            call: Call::new(backend, model, &cache, 1, longest)?,
            backend,
            model,
            longest,
        })
    }

    /// Adds an empty sequence and gives its number, which is the same in every cache: they see the same calls.
    pub(crate) fn add(&mut self) -> Result<usize> {
        self.each(|cache| Ok(cache.borrow().add()?))
    }

    /// Adds a sequence that goes on from `sequence`.
    pub(crate) fn fork(&mut self, sequence: usize) -> Result<usize> {
        self.each(|cache| Ok(cache.borrow().fork(sequence)?))
    }

    pub(crate) fn remove(&mut self, sequence: usize) -> Result<()> {
        self.each(|cache| Ok(cache.borrow().remove(sequence)?))
    }

    fn each<R: PartialEq>(
        &mut self,
        mut change: impl FnMut(&mut OwnedKvCache<T>) -> Result<R>,
    ) -> Result<R> {
        let results: Vec<R> = self
            .caches
            .iter_mut()
            .map(&mut change)
            .collect::<Result<_>>()?;
        ensure!(
            results.windows(2).all(|pair| pair[0] == pair[1]),
            "the caches number their sequences differently"
        );
        results
            .into_iter()
            .next()
            .ok_or_else(|| anyhow::anyhow!("the model has no layer"))
    }

    /// The character of an id.
    pub(crate) fn character(&self, id: usize) -> char {
        self.model.description.characters[id]
    }

    /// Bytes that all caches hold.
    pub(crate) fn bytes(&self) -> usize {
        self.caches.iter().map(OwnedKvCache::bytes).sum()
    }

    /// Feeds the next characters of a sequence; the logits of the character after each, `[tokens, characters]`.
    pub(crate) fn feed(&mut self, sequence: usize, ids: &[usize]) -> Result<Vec<f32>> {
        let (backend, model) = (self.backend, self.model);
        if self.call.tokens() != ids.len() {
            let cache = self.caches[0].plan();
            self.call = Call::new(backend, model, cache, ids.len(), self.longest)?;
        }
        let mut x = model.embed(ids);
        for (block, cache) in model.blocks.iter().zip(&mut self.caches) {
            let y: Vec<T> = (block.before_attention(&x).iter())
                .map(|&y| T::from_f64(y.into()))
                .collect();
            let Call {
                shape,
                plan,
                scratch,
                out,
            } = &mut self.call;
            let tokens = NextTokens::new(HostView::new(&y, shape)?)
                .with_sequences(Some(core::slice::from_ref(&sequence)))
                .with_window(Some(model.description.window));
            model.attention.extend(
                backend,
                plan,
                &block.attention()?,
                &tokens,
                &mut cache.borrow(),
                HostViewMut::new(out, shape)?,
                &mut scratch.borrow(),
            )?;
            let attended: Vec<f32> = out.iter().map(|y| y.to_f64() as f32).collect();
            x = add(x, &attended);
            let y = block.mlp(backend, &x)?;
            x = add(x, &y);
        }
        model.logits(backend, &x)
    }
}

impl<T: Element> Call<T> {
    fn new<B: HostKernels + Kernels<T>>(
        backend: &B,
        model: &Decoder<T>,
        cache: &KvCachePlan,
        tokens: usize,
        longest: usize,
    ) -> Result<Self> {
        let shape = Dims::new(&[1, tokens, model.description.features])?;
        let plan = model.attention.plan(&shape, &shape, &shape)?;
        Ok(Self {
            scratch: OwnedScratch::new(&plan.extend_scratch::<T, _>(backend, cache, longest))?,
            out: vec![T::default(); shape.elements()?],
            shape,
            plan,
        })
    }

    fn tokens(&self) -> usize {
        self.shape[1]
    }
}
