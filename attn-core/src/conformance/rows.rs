//! A request read row by row as `f64`, for the oracle and for plain arithmetic.

use crate::dropout::KeepBits;
use crate::dtype::Element;
use crate::error::Result;
use crate::layout::Layout;
use crate::position::Causal;
use crate::request::{Attention, AttentionShape};
use crate::view::{Host, HostView};
use alloc::vec::Vec;

/// Bias, visibility and dropout of a request. A matrix is one head of one batch entry, counted batch first.
pub(super) struct Rows<'a, A: Element> {
    mask: Option<(HostView<'a, u8>, bool)>,
    bias: Option<HostView<'a, A>>,
    causal: Option<Causal>,
    dropout: Option<(KeepBits, f64)>,
    shape: AttentionShape,
}

impl<'a, A: Element> Rows<'a, A> {
    pub(super) fn new<T: Element<Acc = A>>(
        call: &Attention<'a, Host, T>,
        shape: &AttentionShape,
    ) -> Result<Self> {
        let weights = shape.weights(call.query.shape())?;
        let mask = call.visible.mask.map(|mask| {
            let bytes = mask.view().broadcast_to("mask", &weights)?;
            Ok((bytes, mask.set_means_keep()))
        });
        let bias = call.scores.bias.as_ref();
        let dropout = call.dropout.map(|dropout| {
            let bits = dropout.bits(shape)?;
            Ok((bits, dropout.multiplier()))
        });
        Ok(Self {
            mask: mask.transpose()?,
            bias: bias
                .map(|bias| bias.broadcast_to("bias", &weights))
                .transpose()?,
            causal: call.visible.causal,
            dropout: dropout.transpose()?,
            shape: *shape,
        })
    }

    /// What is added to the scores of `query`, for every key.
    pub(super) fn bias(&self, matrix: usize, query: usize) -> Option<Vec<f64>> {
        let bias = self.bias.as_ref()?;
        let keys = self.keys(bias.layout(), matrix, query);
        Some(keys.map(|index| bias.buf()[index].to_f64()).collect())
    }

    /// Whether `query` sees each key.
    pub(super) fn seen(&self, matrix: usize, query: usize) -> Vec<bool> {
        let (queries, keys) = (self.shape.query_length, self.shape.key_length);
        let mut seen: Vec<bool> = (0..keys)
            .map(|key| {
                let sees = |causal: Causal| causal.sees(query, key, queries, keys);
                self.causal.is_none_or(sees)
            })
            .collect();
        if let Some((bytes, set_means_keep)) = &self.mask {
            for (seen, index) in seen
                .iter_mut()
                .zip(self.keys(bytes.layout(), matrix, query))
            {
                *seen &= (bytes.buf()[index] != 0) == *set_means_keep;
            }
        }
        seen
    }

    /// What the weights of `query` are multiplied with after softmax. A dropped one becomes 0, or NaN at a rate of 1, which is
    /// Flax's `0 / 0`.
    pub(super) fn factors(&self, matrix: usize, query: usize) -> Vec<f64> {
        let keys = 0..self.shape.key_length;
        let Some((bits, multiplier)) = &self.dropout else {
            return keys.map(|_| 1.0).collect();
        };
        let kept = |key| f64::from(u8::from(bits.keeps(matrix, query, key)));
        keys.map(|key| kept(key) * multiplier).collect()
    }

    /// Indices of a row of `[batch..., heads, query_length, key_length]`.
    fn keys(&self, layout: &Layout, matrix: usize, query: usize) -> impl Iterator<Item = usize> {
        let axes = layout.shape().rank() - 1;
        let start = layout.base(axes, matrix * self.shape.query_length + query);
        let stride = layout.strides()[axes];
        (0..self.shape.key_length).map(move |key| start + key * stride)
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

    pub(super) fn column<T: Element>(&self, buffer: &[T], column: usize) -> Vec<f64> {
        let rows = 0..self.length;
        rows.map(|row| buffer[self.at(row, column)].to_f64())
            .collect()
    }
}
