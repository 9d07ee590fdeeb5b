//! One head of one batch entry, read as `f64`, for the oracle and for plain arithmetic.

use super::rows::{Head, Line, Rows};
use super::source::keys_and_values;
use crate::dtype::Element;
use crate::error::Result;
use crate::request::{Attention, AttentionShape};
use crate::scores::Scale;
use crate::view::{Host, HostView};
use alloc::vec;
use alloc::vec::Vec;

/// What one head of one batch entry computes from, row by row.
pub(super) struct Matrix {
    pub(super) queries: Vec<Vec<f64>>,
    pub(super) keys: Vec<Vec<f64>>,
    pub(super) values: Vec<Vec<f64>>,
    /// The gradient of the output.
    pub(super) d_out: Vec<Vec<f64>>,
    /// What each query meets.
    pub(super) lines: Vec<Line>,
    pub(super) scale: Scale,
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
        let read = |view: &HostView<'_, T>| Head::new(view.layout(), batch, head).rows(view.buf());
        let [keys, values] = keys_and_values(call, shape, batch, head)?;
        let rows = Rows::new(call, shape)?;
        let mut this = Self {
            queries: read(&call.query),
            keys,
            values,
            d_out: read(d_out),
            lines: (0..shape.query_length)
                .map(|q| rows.line(matrix, q))
                .collect(),
            scale: call.scores.scale,
        };
        this.clear_what_takes_no_part();
        Ok(this)
    }

    /// Rows that nothing looks at may hold anything, and a product with 0 would not make it vanish.
    fn clear_what_takes_no_part(&mut self) {
        let mut takes_part = vec![false; self.keys.len()];
        for (query, line) in self.lines.iter().enumerate() {
            for (seen, key) in line.seen.iter().zip(line.keys.clone()) {
                takes_part[key] |= *seen || !line.is_zero_if_blind();
            }
            if line.is_outside {
                self.queries[query].fill(0.0);
                self.d_out[query].fill(0.0);
            }
        }
        for (key, _) in takes_part.iter().enumerate().filter(|(_, takes)| !**takes) {
            self.keys[key].fill(0.0);
            self.values[key].fill(0.0);
        }
    }

    /// Depth of queries and keys, if there are any.
    pub(super) fn depth(&self) -> usize {
        let mut rows = self.queries.iter().chain(&self.keys);
        rows.next().map_or(0, Vec::len)
    }
}

/// The gradients of the scores of one query, for every key of the array.
pub(super) struct ScoreRow {
    /// Those of the scores, `w (dW - Σ w dW)`, 0 at masked keys.
    pub(super) d_scores: Vec<f64>,
    /// Those of the scaled products, before a softcap.
    pub(super) d_products: Vec<f64>,
    /// What the gradient of a score is the difference of: `w dW` and `w Σ w dW`, both 0 at masked keys.
    pub(super) parts: Vec<[f64; 2]>,
    /// The same for products.
    pub(super) product_parts: Vec<[f64; 2]>,
    /// `Σ w dW`.
    pub(super) mean: f64,
}

impl ScoreRow {
    /// All 0.
    pub(super) fn new(keys: usize) -> Self {
        Self {
            d_scores: vec![0.0; keys],
            d_products: vec![0.0; keys],
            parts: vec![[0.0; 2]; keys],
            product_parts: vec![[0.0; 2]; keys],
            mean: 0.0,
        }
    }
}

/// A column of rows.
pub(super) fn column(rows: &[Vec<f64>], column: usize) -> impl Iterator<Item = f64> {
    rows.iter().map(move |row| row[column])
}
