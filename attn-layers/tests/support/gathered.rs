//! A backend that reads caches: it gathers the rows of every sequence into arrays and gives them to a backend for arrays.

use super::blocks;
use attn_layers::core::{
    Attention, AttentionBackward, AttentionShape, Backend, Cached, Element, Host, Kernels,
    KeyValue, Mask, NormalizeBackward, Place, Projection, ProjectionBackward, Rotate, Rows,
    Sequences, Visible, request::Features,
};
use attn_layers::{Cpu, FullyMasked, HostView, HostViewMut, Result};

/// The CPU, and what it reads of a cache spelled out.
#[derive(Debug)]
pub(crate) struct Gathered {
    cpu: Cpu,
    /// What it says that it can do with a cache.
    supported: Features,
}

impl Gathered {
    /// Every kind of cache.
    pub(crate) fn new() -> Self {
        let kinds = [
            Features::GROUPED,
            Features::CAUSAL,
            Features::WINDOW,
            Features::SEQUENCES,
            Features::ZERO_ROWS,
            Features::CACHED,
            Features::RING,
            Features::PAGED,
            Features::INT8,
            Features::Q8_0,
        ];
        let supported = kinds.into_iter().fold(Features::default(), Features::union);
        Self {
            cpu: Cpu::detect(),
            supported,
        }
    }

    /// No cache.
    pub(crate) fn of_arrays() -> Self {
        Self {
            supported: Features::FLAX,
            ..Self::new()
        }
    }
}

impl Backend for Gathered {
    type Storage = Host;
    type Error = attn_layers::Error;
    fn name(&self) -> &'static str {
        "gathered"
    }
}

/// Lengths of the queries and keys of a batch entry.
fn lengths(visible: &Visible<'_, Host>, entry: usize, all: [usize; 2]) -> [usize; 2] {
    match visible.sequences {
        None => all,
        Some(Sequences::Padded {
            key_lengths,
            query_lengths,
        }) => {
            let queries = query_lengths.map_or(all[0], |lengths| lengths.buf()[entry] as usize);
            [queries, key_lengths.buf()[entry] as usize]
        }
        Some(Sequences::Packed { .. }) => panic!("a cache's sequences are padded"),
    }
}

/// Rows of a token: before its heads, the first axis of rows and the second.
fn place<T: Element>(
    cached: &Cached<'_, Host, T>,
    entry: usize,
    token: usize,
    batch: usize,
) -> usize {
    let shape = cached.key.shape("key").expect("a cache's rows");
    let capacity = shape[shape.rank() - 3];
    match cached.place {
        Place::Contiguous => entry * capacity + token,
        Place::Ring => entry * capacity + token % capacity,
        Place::Paged { table } => {
            let table = table.buf();
            let page = table[entry * (table.len() / batch) + token / capacity];
            page as usize * capacity + token % capacity
        }
    }
}

/// All heads of a row.
fn numbers<T: Element>(rows: &Rows<'_, Host, T>, row: usize) -> Vec<T> {
    let shape = rows.shape("rows").expect("a cache's rows");
    let [heads, depth] = [shape[shape.rank() - 2], shape[shape.rank() - 1]];
    let from = |numbers: Vec<f32>| numbers.into_iter().map(|x| T::from_f64(x.into())).collect();
    match rows {
        Rows::Plain(view) => view.buf()[row * heads * depth..][..heads * depth].to_vec(),
        Rows::Int8 { values, scales } => {
            let each = (row * heads..(row + 1) * heads).flat_map(|head| {
                blocks::numbers(&values.buf()[head * depth..][..depth], scales.buf()[head])
            });
            from(each.collect())
        }
        Rows::Q8_0 { bytes } => {
            let len = heads * depth / 32 * 34;
            from(blocks::numbers_of_blocks(&bytes.buf()[row * len..][..len]))
        }
        _ => panic!("a format that no cache has"),
    }
}

impl Gathered {
    fn attend_cached<T: Element>(
        &self,
        call: &Attention<'_, Host, T>,
        cached: &Cached<'_, Host, T>,
        out: &mut HostViewMut<'_, T>,
    ) -> Result<()>
    where
        Cpu: Kernels<T>,
    {
        call.check_supported("gathered", self.supported)?;
        let shape = call.shape()?;
        let axes = call.query.shape().rank() - 3;
        let all = [shape.query_length, shape.key_length];
        for entry in 0..shape.batch {
            let [queries, keys] = lengths(&call.visible, entry, all);
            let tokens = |rows: &Rows<'_, Host, T>| -> Vec<T> {
                let rows =
                    (0..keys).map(|token| numbers(rows, place(cached, entry, token, shape.batch)));
                rows.flatten().collect()
            };
            let (key, value) = (tokens(&cached.key), tokens(&cached.value));
            let held = match cached.place {
                Place::Ring => cached.key.shape("key")?[axes],
                Place::Contiguous | Place::Paged { .. } => keys,
            };
            let sees = |query: usize, token: usize| {
                let causal = call
                    .visible
                    .causal
                    .is_none_or(|causal| causal.sees(query, token, queries, keys));
                let window = call
                    .visible
                    .window
                    .is_none_or(|window| window.visible(query, queries, keys).contains(&token));
                causal && window && token + held >= keys
            };
            let bytes: Vec<u8> = (0..queries)
                .flat_map(|query| (0..keys).map(move |token| u8::from(sees(query, token))))
                .collect();
            let row = shape.num_heads * shape.depth;
            let at = |layout: &attn_layers::core::Layout, index: usize| {
                let [head, column] = [index / shape.depth, index % shape.depth];
                let strides = &layout.strides()[axes..];
                (
                    layout.base(axes, entry),
                    strides[0],
                    head * strides[1] + column * strides[2],
                )
            };
            let query: Vec<T> = (0..queries * row)
                .map(|index| {
                    let (base, step, rest) = at(call.query.layout(), index % row);
                    call.query.buf()[base + index / row * step + rest]
                })
                .collect();
            let dense = |buf, length, heads, depth| HostView::new(buf, &[length, heads, depth]);
            let request = Attention::new(
                dense(&query, queries, shape.num_heads, shape.depth)?,
                dense(&key, keys, shape.key_heads, shape.depth)?,
                dense(&value, keys, shape.key_heads, shape.value_depth)?,
            )
            .with_mask(Some(Mask::keep(HostView::new(&bytes, &[queries, keys])?)))
            .with_fully_masked(FullyMasked::Zero);
            let mut context = vec![T::default(); all[0] * row];
            let to = HostViewMut::new(
                &mut context[..queries * row],
                &[queries, shape.num_heads, shape.depth],
            )?;
            let sizes = request.shape()?;
            let mut scratch =
                vec![T::Acc::default(); Kernels::<T>::attend_scratch(&self.cpu, &sizes)];
            self.cpu.attend(request, to, &mut scratch)?;
            let layout = *out.layout();
            for (index, x) in context.into_iter().enumerate() {
                let (base, step, rest) = at(&layout, index % row);
                out.buf_mut()[base + index / row * step + rest] = x;
            }
        }
        Ok(())
    }
}

impl<T: Element> Kernels<T> for Gathered
where
    Cpu: Kernels<T> + Backend<Storage = Host, Error = attn_layers::Error>,
{
    fn project_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize {
        Kernels::<T>::project_scratch(&self.cpu, rows, features, outputs)
    }

    fn project(
        &self,
        call: &Projection<'_, Host, T>,
        out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<()> {
        self.cpu.project(call, out, scratch)
    }

    fn normalize(
        &self,
        x: HostViewMut<'_, T>,
        scale: HostView<'_, T::Acc>,
        epsilon: f64,
    ) -> Result<()> {
        self.cpu.normalize(x, scale, epsilon)
    }

    fn rotate(&self, call: Rotate<'_, Host, T>) -> Result<()> {
        self.cpu.rotate(call)
    }

    fn attend_scratch(&self, shape: &AttentionShape) -> usize {
        Kernels::<T>::attend_scratch(&self.cpu, shape)
    }

    fn attend(
        &self,
        call: Attention<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<()> {
        match call.source {
            KeyValue::Cached(cached) => self.attend_cached(&call, cached, &mut out),
            _ => self.cpu.attend(call, out, scratch),
        }
    }

    fn project_backward_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize {
        Kernels::<T>::project_backward_scratch(&self.cpu, rows, features, outputs)
    }

    fn project_backward(
        &self,
        call: ProjectionBackward<'_, Host, T>,
        scratch: &mut [T::Acc],
    ) -> Result<()> {
        self.cpu.project_backward(call, scratch)
    }

    fn normalize_backward(&self, call: NormalizeBackward<'_, Host, T>) -> Result<()> {
        self.cpu.normalize_backward(call)
    }

    fn attend_backward_scratch(&self, shape: &AttentionShape) -> usize {
        Kernels::<T>::attend_backward_scratch(&self.cpu, shape)
    }

    fn attend_backward(
        &self,
        call: AttentionBackward<'_, Host, T>,
        scratch: &mut [T::Acc],
    ) -> Result<()> {
        self.cpu.attend_backward(call, scratch)
    }
}
