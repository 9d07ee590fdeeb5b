//! The attention core: forward and backward.

use super::{dropout, numbers};
use attn_layers::core::{
    Attention, AttentionBackward, AttentionShape, Causal, Element, Kernels, Mask,
};
use attn_layers::{Cpu, Dims, HostView, HostViewMut, Result};

/// Queries, keys and values of one length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) length: usize,
    pub(crate) heads: usize,
    pub(crate) depth: usize,
}

/// Which parts a call has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    pub(crate) causal: bool,
    pub(crate) dropout: bool,
    /// Padding: the last third of the keys is hidden from every query.
    pub(crate) mask: bool,
}

/// The core with its arrays, and the scratch for both passes.
#[derive(Debug)]
pub(crate) struct Core<T: Element> {
    parts: Parts,
    shape: Dims,
    statistics_shape: Dims,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    mask: Vec<u8>,
    out: Vec<T>,
    statistics: Vec<T::Acc>,
    d_out: Vec<T>,
    d_q: Vec<T>,
    d_k: Vec<T>,
    d_v: Vec<T>,
    tiles: Vec<T::Acc>,
}

impl<T: Element> Core<T>
where
    Cpu: Kernels<T>,
{
    pub(crate) fn new(cpu: &Cpu, sizes: Sizes, parts: Parts) -> Result<Self> {
        let Sizes {
            length,
            heads,
            depth,
        } = sizes;
        let shape = Dims::new(&[length, heads, depth])?;
        let sizes = AttentionShape::of(&shape, &shape, &shape)?;
        let statistics_shape = sizes.statistics(&shape)?;
        let tiles = cpu
            .attend_scratch(&sizes)
            .max(cpu.attend_backward_scratch(&sizes));
        let len = shape.elements()?;
        let zeros = || vec![T::default(); len];
        Ok(Self {
            parts,
            shape,
            statistics_shape,
            q: numbers(1, len),
            k: numbers(2, len),
            v: numbers(3, len),
            mask: (0..length)
                .map(|key| u8::from(key < length - length / 3))
                .collect(),
            out: zeros(),
            statistics: vec![T::Acc::default(); statistics_shape.elements()?],
            d_out: numbers(4, len),
            d_q: zeros(),
            d_k: zeros(),
            d_v: zeros(),
            tiles: vec![T::Acc::default(); tiles],
        })
    }

    /// The forward pass; it keeps what the backward pass needs.
    pub(crate) fn forward(&mut self, cpu: &Cpu) -> Result<()> {
        let shape = &self.shape;
        let call = request(&self.parts, shape, [&self.q, &self.k, &self.v], &self.mask)?;
        let statistics = HostViewMut::new(&mut self.statistics, &self.statistics_shape)?;
        cpu.attend(
            call.with_statistics(Some(statistics)),
            HostViewMut::new(&mut self.out, shape)?,
            &mut self.tiles,
        )
    }

    /// The backward pass, after a forward pass.
    pub(crate) fn backward(&mut self, cpu: &Cpu) -> Result<()> {
        let shape = &self.shape;
        let call = request(&self.parts, shape, [&self.q, &self.k, &self.v], &self.mask)?;
        let request = AttentionBackward {
            call,
            out: HostView::new(&self.out, shape)?,
            statistics: HostView::new(&self.statistics, &self.statistics_shape)?,
            d_out: HostView::new(&self.d_out, shape)?,
            d_query: HostViewMut::new(&mut self.d_q, shape)?,
            d_key: HostViewMut::new(&mut self.d_k, shape)?,
            d_value: HostViewMut::new(&mut self.d_v, shape)?,
            d_bias: None,
            d_relative: None,
            d_sinks: None,
        };
        cpu.attend_backward(request, &mut self.tiles)
    }
}

fn request<'a, T: Element>(
    parts: &Parts,
    shape: &Dims,
    [q, k, v]: [&'a Vec<T>; 3],
    mask: &'a [u8],
) -> Result<Attention<'a, attn_layers::core::Host, T>> {
    let (q, k, v) = (
        HostView::new(q, shape)?,
        HostView::new(k, shape)?,
        HostView::new(v, shape)?,
    );
    let mask = Mask::keep(HostView::new(mask, &[1, 1, mask.len()])?);
    Ok(Attention::new(q, k, v)
        .with_causal(parts.causal.then(Causal::top_left))
        .with_mask(parts.mask.then_some(mask))
        .with_dropout(if parts.dropout { dropout::<T>() } else { None }))
}
