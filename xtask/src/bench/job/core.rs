//! The attention core over arrays `[batch, heads, length, depth]`, which the kernels read through strides.

use super::{Computes, Job, bytes_of, rounded, to_f32};
use crate::data::CoreArrays;
use crate::spec::CoreSizes;
use anyhow::Result;
use attn_core::{
    Attention, AttentionShape, Causal, Dims, Element, HostView, HostViewMut, Kernels, Layout, Mask,
};
use attn_kernels_cpu::Cpu;

/// A core.
pub(super) struct Core<T: Element> {
    cpu: Cpu,
    causal: Option<Causal>,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    /// Keep bytes `[1, 1, 1, key_length]` of the keys that are no padding.
    keep: Option<Vec<u8>>,
    key: Layout,
    /// Queries and outputs of each call that makes a step.
    queries: Vec<Layout>,
    scratch: Vec<T::Acc>,
    out: Vec<T>,
}

impl<T: Element> Core<T>
where
    Cpu: Computes<T>,
{
    pub(super) fn new(sizes: CoreSizes, arrays: CoreArrays, cpu: &Cpu) -> Result<Self> {
        let key = head_major(sizes.batch, sizes.kv_heads, sizes.key_length, sizes.depth)?;
        let queries = calls(sizes)?;
        let mut scratch = 0;
        for query in &queries {
            let shape = AttentionShape::of(query.shape(), key.shape(), key.shape())?;
            scratch = scratch.max(cpu.attend_scratch(&shape));
        }
        let keep = |valid| {
            (0..sizes.key_length)
                .map(|key| u8::from(key < valid))
                .collect()
        };
        Ok(Self {
            cpu: cpu.clone(),
            causal: sizes.causal.then(Causal::top_left),
            out: vec![T::default(); arrays.q.len()],
            q: rounded(arrays.q),
            k: rounded(arrays.k),
            v: rounded(arrays.v),
            keep: sizes.valid.map(keep),
            key,
            queries,
            scratch: vec![T::Acc::default(); scratch],
        })
    }
}

impl<T: Element> Job for Core<T>
where
    Cpu: Computes<T>,
{
    fn step(&mut self) -> Result<()> {
        let key = HostView::with_layout(&self.k, self.key)?;
        let value = HostView::with_layout(&self.v, self.key)?;
        let keep = self.keep.as_deref();
        let mask = keep
            .map(|keep| HostView::new(keep, &[1, 1, 1, keep.len()]))
            .transpose()?;
        for &layout in &self.queries {
            let call = Attention::new(HostView::with_layout(&self.q, layout)?, key, value)
                .with_causal(self.causal)
                .with_mask(mask.map(Mask::keep));
            let out = HostViewMut::with_layout(&mut self.out, layout)?;
            self.cpu.attend(call, out, &mut self.scratch)?;
        }
        Ok(())
    }

    fn fetch(&self) -> Vec<f32> {
        to_f32(&self.out)
    }

    fn extra_bytes(&self) -> usize {
        bytes_of::<T::Acc>(self.scratch.len())
    }
}

/// `[batch, length, heads, depth]` of elements that lie as `[batch, heads, length, depth]`.
fn head_major(batch: usize, heads: usize, length: usize, depth: usize) -> Result<Layout> {
    let shape = Dims::new(&[batch, length, heads, depth])?;
    let strides = [heads * length * depth, depth, length * depth, 1];
    Ok(Layout::strided(0, shape, &strides)?)
}

/// The queries of each call: one call where every head has keys of its own.
///
/// Where heads share keys, the one query of each head of a group is passed as one of many queries of a single head, so that one call reads the keys once.
/// With more queries, or a causal mask, which counts them, there is a call for each place in the groups.
fn calls(sizes: CoreSizes) -> Result<Vec<Layout>> {
    let CoreSizes {
        batch,
        heads,
        kv_heads,
        query_length,
        depth,
        ..
    } = sizes;
    let group = sizes.group();
    if group == 1 {
        return Ok(vec![head_major(batch, heads, query_length, depth)?]);
    }
    let head = query_length * depth;
    if query_length == 1 && !sizes.causal {
        let shape = Dims::new(&[batch, group, kv_heads, depth])?;
        let strides = [heads * head, head, group * head, 1];
        return Ok(vec![Layout::strided(0, shape, &strides)?]);
    }
    let shape = Dims::new(&[batch, query_length, kv_heads, depth])?;
    let strides = [heads * head, depth, group * head, 1];
    (0..group)
        .map(|place| Ok(Layout::strided(place * head, shape, &strides)?))
        .collect()
}
