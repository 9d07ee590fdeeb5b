//! A request read row by row as `f64`, for the oracle and for plain arithmetic.

use crate::dropout::KeepBits;
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::Layout;
use crate::mask::FullyMasked;
use crate::request::{Attention, AttentionShape};
use crate::scores::{Alibi, Relative};
use crate::source::KeyValue;
use crate::view::{Flat, Host, HostView};
use crate::visible::{Span, Visible};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// What one query meets beside the keys themselves. All lists are of the keys in `keys`.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// The keys that there are for the query: those of its sequence that a cache still has. None outside of all sequences.
    pub(super) keys: Range<usize>,
    /// Whether the query belongs to no sequence.
    pub(super) is_outside: bool,
    /// Whether the query sees each key.
    pub(super) seen: Vec<bool>,
    pub(super) softcap: Option<f64>,
    /// What is added to the scores by a bias.
    pub(super) bias: Option<Vec<f64>>,
    /// The slope, and what it is multiplied with for each key.
    pub(super) alibi: Option<(f64, Vec<f64>)>,
    /// The table's row, and the column of each key.
    pub(super) relative: Option<(Vec<f64>, Vec<usize>)>,
    /// The score without a key.
    pub(super) sink: Option<f64>,
    /// What dropout multiplies the weights with.
    pub(super) factors: Vec<f64>,
    pub(super) fully_masked: FullyMasked,
}

impl Line {
    pub(super) fn is_zero_if_blind(&self) -> bool {
        self.fully_masked == FullyMasked::Zero
    }

    /// Whether it sees no key.
    pub(super) fn is_blind(&self) -> bool {
        !self.seen.contains(&true)
    }

    /// A list of all `count` keys, 0 at those that there are not.
    pub(super) fn spread(&self, of_keys: &[f64], count: usize) -> Vec<f64> {
        let mut all = vec![0.0; count];
        all[self.keys.clone()].copy_from_slice(of_keys);
        all
    }
}

/// How scores are made in a request, which keys are seen, which weights are dropped. A matrix is one head of one batch entry, counted
/// batch first.
pub(super) struct Rows<'a, T: Element> {
    visible: &'a Visible<'a, Host>,
    source: KeyValue<'a, Host, T>,
    mask: Option<(HostView<'a, u8>, bool)>,
    blocks: Option<(HostView<'a, u8>, [usize; 2])>,
    softcap: Option<f64>,
    bias: Option<HostView<'a, T::Acc>>,
    alibi: Option<Alibi<'a, Host, T>>,
    relative: Option<Relative<'a, Host, T>>,
    sinks: Option<Flat<'a, Host, T::Acc>>,
    dropout: Option<(KeepBits, f64)>,
    shape: AttentionShape,
}

impl<'a, T: Element> Rows<'a, T> {
    pub(super) fn new(call: &'a Attention<'a, Host, T>, shape: &AttentionShape) -> Result<Self> {
        let weights = shape.weights(call.query.shape())?;
        let mask = call.visible.mask.map(|mask| {
            let bytes = mask.view().broadcast_to("mask", &weights)?;
            Ok((bytes, mask.set_means_keep()))
        });
        let blocks = call.visible.blocks.map(|blocks| {
            let shape = blocks.shape(&weights)?;
            let keep = blocks.keep.broadcast_to("blocks", &shape)?;
            Ok((keep, [blocks.query_block, blocks.key_block]))
        });
        let dropout = call.dropout.map(|dropout| {
            let bits = dropout.bits(shape)?;
            Ok((bits, dropout.multiplier()))
        });
        let bias = call.scores.bias.as_ref();
        Ok(Self {
            visible: &call.visible,
            source: call.source,
            mask: mask.transpose()?,
            blocks: blocks.transpose()?,
            softcap: call.scores.softcap,
            bias: bias
                .map(|bias| bias.broadcast_to("bias", &weights))
                .transpose()?,
            alibi: call.scores.alibi,
            relative: call.scores.relative,
            sinks: call.scores.sinks,
            dropout: dropout.transpose()?,
            shape: *shape,
        })
    }

    /// All that `query` meets.
    pub(super) fn line(&self, matrix: usize, query: usize) -> Line {
        let (batch, head) = (matrix / self.shape.num_heads, matrix % self.shape.num_heads);
        let span = self.visible.span_of(&self.shape, batch, query);
        let is_outside = span.is_none();
        let span = span.unwrap_or(Span {
            queries: 0..0,
            keys: 0..0,
        });
        let keys = self.held(&span, batch);
        Line {
            seen: self.seen(matrix, query, &span, &keys),
            softcap: self.softcap,
            bias: self.bias(matrix, query, &keys),
            alibi: self.alibi(head, query, &span, &keys),
            relative: self.relative(head, query, &span, &keys),
            sink: (self.sinks.filter(|_| !is_outside)).map(|sinks| sinks.buf()[head].to_f64()),
            factors: self.factors(matrix, query, &keys),
            fully_masked: self.visible.fully_masked,
            is_outside,
            keys,
        }
    }

    /// The keys of a sequence that there are.
    fn held(&self, span: &Span, batch: usize) -> Range<usize> {
        let KeyValue::Cached(cached) = &self.source else {
            return span.keys.clone();
        };
        let tokens = cached.tokens(&self.shape, self.visible.sequences.as_ref(), batch);
        let first = cached.first_token(tokens).max(span.keys.start);
        first.min(span.keys.end)..span.keys.end
    }

    fn bias(&self, matrix: usize, query: usize, keys: &Range<usize>) -> Option<Vec<f64>> {
        let bias = self.bias.as_ref()?;
        let places = self.places(bias.layout(), matrix, query, keys);
        Some(places.map(|index| bias.buf()[index].to_f64()).collect())
    }

    fn alibi(
        &self,
        head: usize,
        query: usize,
        span: &Span,
        keys: &Range<usize>,
    ) -> Option<(f64, Vec<f64>)> {
        let alibi = self.alibi.as_ref()?;
        let position = span.position(alibi.alignment, query);
        let distance = |key: usize| -(position.abs_diff((key - span.keys.start) as isize) as f64);
        let slope = alibi.slopes.buf()[head].to_f64();
        Some((slope, keys.clone().map(distance).collect()))
    }

    fn relative(
        &self,
        head: usize,
        query: usize,
        span: &Span,
        keys: &Range<usize>,
    ) -> Option<(Vec<f64>, Vec<usize>)> {
        let relative = self.relative.as_ref()?;
        let distances = relative.distances(self.shape.num_heads);
        let position = span.position(relative.alignment, query);
        let column = |key: usize| {
            let key = key - span.keys.start;
            Relative::<Host, T>::column(relative.zero, distances, key, position)
        };
        let table = &relative.table.buf()[head * distances..][..distances];
        let table = table.iter().map(|entry| entry.to_f64()).collect();
        Some((table, keys.clone().map(column).collect()))
    }

    fn seen(&self, matrix: usize, query: usize, span: &Span, keys: &Range<usize>) -> Vec<bool> {
        let batch = matrix / self.shape.num_heads;
        let in_reach = self.visible.keys_in(span, query);
        let mut seen: Vec<bool> = keys.clone().map(|key| in_reach.contains(&key)).collect();
        if let Some(segments) = &self.visible.segments {
            let of_query = segments.queries.buf()[batch * self.shape.query_length + query];
            let of_keys = &segments.keys.buf()[batch * self.shape.key_length..];
            for (seen, of_key) in seen.iter_mut().zip(&of_keys[keys.clone()]) {
                *seen &= *of_key == of_query;
            }
        }
        if let Some((bytes, [query_block, key_block])) = &self.blocks {
            let (layout, rank) = (bytes.layout(), bytes.shape().rank());
            let row = query / query_block + matrix * layout.shape()[rank - 2];
            let (start, stride) = (layout.base(rank - 1, row), layout.strides()[rank - 1]);
            for (seen, key) in seen.iter_mut().zip(keys.clone()) {
                *seen &= bytes.buf()[start + key / key_block * stride] != 0;
            }
        }
        if let Some((bytes, set_means_keep)) = &self.mask {
            let places = self.places(bytes.layout(), matrix, query, keys);
            for (seen, index) in seen.iter_mut().zip(places) {
                *seen &= (bytes.buf()[index] != 0) == *set_means_keep;
            }
        }
        seen
    }

    /// A dropped weight becomes 0, or NaN at a rate of 1, which is Flax's `0 / 0`.
    fn factors(&self, matrix: usize, query: usize, keys: &Range<usize>) -> Vec<f64> {
        let Some((bits, multiplier)) = &self.dropout else {
            return vec![1.0; keys.len()];
        };
        let kept = |key| f64::from(u8::from(bits.keeps(matrix, query, key)));
        keys.clone().map(|key| kept(key) * multiplier).collect()
    }

    /// Indices of keys in a row of `[batch..., heads, query_length, key_length]`.
    fn places(
        &self,
        layout: &Layout,
        matrix: usize,
        query: usize,
        keys: &Range<usize>,
    ) -> impl Iterator<Item = usize> + use<T> {
        let axes = layout.shape().rank() - 1;
        let start = layout.base(axes, matrix * self.shape.query_length + query);
        let stride = layout.strides()[axes];
        keys.clone().map(move |key| start + key * stride)
    }
}

/// One head of one batch entry of `[batch..., length, heads, depth]`.
#[derive(Clone, Copy)]
pub(super) struct Head {
    start: usize,
    row: usize,
    column: usize,
    length: usize,
    depth: usize,
}

impl Head {
    pub(super) fn new(layout: &Layout, batch: usize, head: usize) -> Self {
        let (shape, strides, axes) = (layout.shape(), layout.strides(), layout.shape().rank() - 3);
        Self {
            start: layout.base(axes, batch) + head * strides[axes + 1],
            row: strides[axes],
            column: strides[axes + 2],
            length: shape[axes],
            depth: shape[axes + 2],
        }
    }

    /// Index of an element in the buffer.
    pub(super) fn at(&self, row: usize, column: usize) -> usize {
        self.start + row * self.row + column * self.column
    }

    pub(super) fn row<T: Element>(&self, buffer: &[T], row: usize) -> Vec<f64> {
        let columns = 0..self.depth;
        columns
            .map(|column| buffer[self.at(row, column)].to_f64())
            .collect()
    }

    pub(super) fn rows<T: Element>(&self, buffer: &[T]) -> Vec<Vec<f64>> {
        (0..self.length).map(|row| self.row(buffer, row)).collect()
    }
}
