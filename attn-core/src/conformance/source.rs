//! Keys and values of a request read as `f64`, wherever they come from.

use super::rows::Head;
use crate::dtype::Element;
use crate::layout::{Dims, Layout};
use crate::request::{Attention, AttentionShape};
use crate::source::{Cached, KeyValue, Rows};
use crate::view::{Host, HostView};
use crate::{Result, f16};
use alloc::vec;
use alloc::vec::Vec;

/// Keys and values that serve a head of queries of a batch entry, a row for each of `key_length` keys. Rows of tokens that a cache does not
/// have are 0.
pub(super) fn keys_and_values<T: Element>(
    call: &Attention<'_, Host, T>,
    shape: &AttentionShape,
    batch: usize,
    head: usize,
) -> Result<[Vec<Vec<f64>>; 2]> {
    let head = shape.key_head(head);
    match &call.source {
        KeyValue::Dense { key, value } => Ok([key, value]
            .map(|view: &HostView<'_, T>| Head::new(view.layout(), batch, head).rows(view.buf()))),
        KeyValue::Cached(cached) => {
            let sequences = call.visible.sequences.as_ref();
            let tokens = cached.tokens(shape, sequences, batch);
            let from = Tokens {
                cached,
                shape,
                batch,
                head,
                tokens,
            };
            Ok([from.read(&cached.key)?, from.read(&cached.value)?])
        }
    }
}

/// The tokens of a batch entry in a cache.
struct Tokens<'a, T: Element> {
    cached: &'a Cached<'a, Host, T>,
    shape: &'a AttentionShape,
    batch: usize,
    head: usize,
    tokens: usize,
}

impl<T: Element> Tokens<'_, T> {
    fn read(&self, rows: &Rows<'_, Host, T>) -> Result<Vec<Vec<f64>>> {
        let depth = rows.shape("cache")?.last().copied().unwrap_or(0);
        let mut all = vec![vec![0.0; depth]; self.shape.key_length];
        for token in self.cached.first_token(self.tokens)..self.tokens {
            all[token] = self.row(rows, self.cached.row_of(self.shape, self.batch, token))?;
        }
        Ok(all)
    }

    fn row(&self, rows: &Rows<'_, Host, T>, [entry, row]: [usize; 2]) -> Result<Vec<f64>> {
        let of = |layout: &Layout| Head::new(layout, entry, self.head);
        Ok(match rows {
            Rows::Plain(view) => of(view.layout()).row(view.buf(), row),
            Rows::Int8 { values, scales } => {
                let shape = values.shape();
                let order = Layout::contiguous(Dims::new(&shape[..shape.rank() - 1])?.push(1)?)?;
                let scale = scales.buf()[of(&order).at(row, 0)];
                let place = of(values.layout());
                let depth = shape.last().copied().unwrap_or(0);
                let number = |column| f32::from(values.buf()[place.at(row, column)]) * scale;
                (0..depth).map(|column| f64::from(number(column))).collect()
            }
            Rows::Q8_0 { bytes } => {
                let place = of(bytes.layout());
                let blocks =
                    bytes.shape().last().copied().unwrap_or(0) / Rows::<Host, T>::BLOCK_BYTES;
                let byte = |index: usize| bytes.buf()[place.at(row, index)];
                (0..blocks)
                    .flat_map(|block| q8_0(block * Rows::<Host, T>::BLOCK_BYTES, byte))
                    .collect()
            }
        })
    }
}

/// The 32 numbers of a block that begins at byte `start`.
fn q8_0(start: usize, byte: impl Fn(usize) -> u8) -> [f64; 32] {
    let factor = f32::from(f16::from_le_bytes([byte(start), byte(start + 1)]));
    core::array::from_fn(|n| {
        let integer = i8::from_le_bytes([byte(start + 2 + n)]);
        f64::from(f32::from(integer) * factor)
    })
}
