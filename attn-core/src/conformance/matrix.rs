//! One head of one batch entry, read as `f64`, for the oracle and for plain arithmetic.

use super::rows::{Head, Rows};
use crate::dtype::Element;
use crate::error::Result;
use crate::mask::FullyMasked;
use crate::request::{Attention, AttentionShape};
use crate::scores::Scale;
use crate::view::{Host, HostView};
use alloc::vec::Vec;

/// What one head of one batch entry computes from, row by row.
pub(super) struct Matrix {
    pub(super) queries: Vec<Vec<f64>>,
    pub(super) keys: Vec<Vec<f64>>,
    pub(super) values: Vec<Vec<f64>>,
    /// The gradient of the output.
    pub(super) d_out: Vec<Vec<f64>>,
    /// What is added to the scores of each query.
    pub(super) bias: Vec<Option<Vec<f64>>>,
    /// Which keys each query sees.
    pub(super) seen: Vec<Vec<bool>>,
    /// What dropout multiplies the weights of each query with.
    pub(super) factors: Vec<Vec<f64>>,
    pub(super) scale: Scale,
    pub(super) fully_masked: FullyMasked,
}

impl Matrix {
    /// The `matrix`-th of a call, counted batch first. `d_out` is `[batch..., query_length, heads, value_depth]`.
    pub(super) fn read<T: Element>(
        call: &Attention<'_, Host, T>,
        d_out: &HostView<'_, T>,
        shape: &AttentionShape,
        matrix: usize,
    ) -> Result<Self> {
        let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
        let (key, value) = call.dense()?;
        let read = |view: &HostView<'_, T>| Head::new(view.layout(), batch, head).rows(view.buf());
        let rows = Rows::new(call, shape)?;
        let queries = 0..shape.query_length;
        Ok(Self {
            queries: read(&call.query),
            keys: read(key),
            values: read(value),
            d_out: read(d_out),
            bias: queries.clone().map(|q| rows.bias(matrix, q)).collect(),
            seen: queries.clone().map(|q| rows.seen(matrix, q)).collect(),
            factors: queries.map(|q| rows.factors(matrix, q)).collect(),
            scale: call.scores.scale,
            fully_masked: call.visible.fully_masked,
        })
    }

    /// Depth of queries and keys, if there are any.
    pub(super) fn depth(&self) -> usize {
        let mut rows = self.queries.iter().chain(&self.keys);
        rows.next().map_or(0, Vec::len)
    }
}

/// A column of rows.
pub(super) fn column(rows: &[Vec<f64>], column: usize) -> impl Iterator<Item = f64> {
    rows.iter().map(move |row| row[column])
}
