//! Caches: pools of rows in every place and format.

use super::super::arrays::Placed;
use super::super::case::{Case, PlaceCase, Placement, RowsCase, SequencesCase};
use super::super::data::Numbers;
use crate::dtype::Element;
use crate::error::Result;
use crate::f16;
use crate::source::{Cached, Place, Rows};
use crate::view::{Flat, Host};
use alloc::vec;
use alloc::vec::Vec;

/// The pools of keys and of values, and where tokens are in them.
pub(super) struct Cache<T> {
    key: Pool<T>,
    value: Pool<T>,
    table: Vec<i32>,
}

/// The rows of keys or of values.
enum Pool<T> {
    Plain(Placed<T>),
    Int8(Placed<i8>, Vec<f32>),
    Q8_0(Placed<u8>),
}

/// Entries of a page table that no sequence's tokens reach.
const NO_PAGE: i32 = -7;
/// Pages that belong to nothing.
const FREE_PAGES: usize = 2;

impl<T: Element> Cache<T> {
    pub(super) fn new(case: &Case, numbers: &mut Numbers) -> Result<Option<Self>> {
        let Some(cache) = &case.cache else {
            return Ok(None);
        };
        let table = match cache.place {
            PlaceCase::Paged { page_size, shared } => table(case, page_size, shared, numbers),
            _ => Vec::new(),
        };
        let mut leading = case.batch.clone();
        match cache.place {
            PlaceCase::Contiguous { spare } => leading.push(case.key_length + spare),
            PlaceCase::Ring { capacity } => leading.push(capacity),
            PlaceCase::Paged { page_size, .. } => {
                let pages = table.iter().copied().max().unwrap_or(0).max(0) as usize;
                leading = vec![pages + 1 + FREE_PAGES, page_size];
            }
        }
        let written = written(case, &leading, &table);
        leading.push(case.key_heads);
        let mut pool = |kind, depth, size| {
            let mut rows = RandomRows {
                numbers: &mut *numbers,
                written: &written,
                heads: case.key_heads,
                size,
            };
            rows.pool(kind, &leading, depth, case.placement)
        };
        let (key, value) = (
            pool(cache.key, case.depth, case.size)?,
            pool(cache.value, case.value_depth, 1.0)?,
        );
        Ok(Some(Self { key, value, table }))
    }

    pub(super) fn cached(&self, case: &Case) -> Result<Cached<'_, Host, T>> {
        let place = match case.cache.as_ref().map(|cache| cache.place) {
            Some(PlaceCase::Ring { .. }) => Place::Ring,
            Some(PlaceCase::Paged { .. }) => Place::Paged {
                table: Flat::new(&self.table[..]),
            },
            _ => Place::Contiguous,
        };
        Ok(Cached {
            key: self.key.rows()?,
            value: self.value.rows()?,
            place,
            length: case.key_length,
        })
    }
}

/// Tokens of each batch entry.
fn tokens(case: &Case) -> Vec<usize> {
    match &case.sequences {
        Some(SequencesCase::Padded(keys, _)) => {
            keys.iter().map(|&length| length as usize).collect()
        }
        _ => vec![case.key_length; case.batch.iter().product()],
    }
}

/// Pages in no order; the first ones are shared by all batch entries.
fn table(case: &Case, page_size: usize, shared: usize, numbers: &mut Numbers) -> Vec<i32> {
    let each = case.key_length.div_ceil(page_size) + 1;
    let tokens = tokens(case);
    let mut pages: Vec<i32> = (0..(tokens.len() * each) as i32).collect();
    for n in (1..pages.len()).rev() {
        pages.swap(n, (numbers.bits() % (n as u64 + 1)) as usize);
    }
    let mut table = Vec::new();
    for (batch, tokens) in tokens.iter().enumerate() {
        table.extend((0..each).map(|page| match page {
            _ if page >= tokens.div_ceil(page_size) => NO_PAGE,
            _ if page < shared => pages[page],
            _ => pages[batch * each + page],
        }));
    }
    table
}

/// Whether a token was written to each row, counted over all axes of `leading`.
fn written(case: &Case, leading: &[usize], table: &[i32]) -> Vec<bool> {
    let rows = leading.last().copied().unwrap_or(1);
    let mut written = vec![false; leading.iter().product()];
    let tokens = tokens(case);
    let each = table.len() / tokens.len().max(1);
    for (batch, &tokens) in tokens.iter().enumerate() {
        for token in 0..tokens {
            let row = match case.cache.as_ref().map(|cache| cache.place) {
                Some(PlaceCase::Paged { .. }) => {
                    table[batch * each + token / rows] as usize * rows + token % rows
                }
                _ => batch * rows + token % rows,
            };
            written[row] = true;
        }
    }
    written
}

/// Where the numbers of rows come from: random where a token was written, NaN elsewhere.
struct RandomRows<'a> {
    numbers: &'a mut Numbers,
    written: &'a [bool],
    heads: usize,
    size: f64,
}

impl RandomRows<'_> {
    /// The next row, `None` if no token was written to it.
    fn row(&mut self, n: usize, depth: usize) -> Option<Vec<f64>> {
        let row = (0..depth)
            .map(|_| self.numbers.normal() * self.size)
            .collect();
        self.written[n / self.heads.max(1)].then_some(row)
    }

    fn pool<T: Element>(
        &mut self,
        kind: RowsCase,
        leading: &[usize],
        depth: usize,
        placement: Placement,
    ) -> Result<Pool<T>> {
        let count = leading.iter().product();
        let shape =
            |columns: usize| -> Vec<usize> { leading.iter().copied().chain([columns]).collect() };
        Ok(match kind {
            RowsCase::Plain => {
                let mut all = Vec::new();
                for n in 0..count {
                    let row = self.row(n, depth).unwrap_or_else(|| vec![f64::NAN; depth]);
                    all.extend(row.into_iter().map(T::from_f64));
                }
                Pool::Plain(placed(
                    placement,
                    &shape(depth),
                    T::from_f64(f64::NAN),
                    all,
                )?)
            }
            RowsCase::Int8 => {
                let (mut all, mut scales) = (Vec::new(), Vec::new());
                for n in 0..count {
                    let (integers, scale) = match self.row(n, depth) {
                        Some(row) => quantised(&row),
                        None => (vec![-128; depth], f32::NAN),
                    };
                    all.extend(integers);
                    scales.push(scale);
                }
                Pool::Int8(placed(placement, &shape(depth), 1, all)?, scales)
            }
            RowsCase::Q8_0 => {
                let mut all = Vec::new();
                for n in 0..count {
                    let row = self.row(n, depth).unwrap_or_else(|| vec![f64::NAN; depth]);
                    row.chunks(Rows::<Host, T>::BLOCK)
                        .for_each(|block| push_block(&mut all, block));
                }
                let columns = depth / Rows::<Host, T>::BLOCK * Rows::<Host, T>::BLOCK_BYTES;
                Pool::Q8_0(placed(placement, &shape(columns), 0xff, all)?)
            }
        })
    }
}

/// Integers and what they are multiplied with. The largest number is 127.
fn quantised(row: &[f64]) -> (Vec<i8>, f32) {
    let largest = row.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let scale = (largest / 127.0).max(1e-30);
    let integer = |x: &f64| {
        let half = if *x < 0.0 { -0.5 } else { 0.5 };
        (x / scale + half) as i8
    };
    (row.iter().map(integer).collect(), scale as f32)
}

/// A factor as `f16` and 32 integers; NaN where a number is.
fn push_block(bytes: &mut Vec<u8>, block: &[f64]) {
    let is_written = block.iter().all(|x| !x.is_nan());
    let (integers, scale) = quantised(block);
    let factor = if is_written {
        f16::from_f32(scale)
    } else {
        f16::NAN
    };
    bytes.extend(factor.to_le_bytes());
    bytes.extend(integers.iter().map(|integer| integer.to_le_bytes()[0]));
}

/// A tensor of these elements. The axes of a row may have gaps, so that strides matter.
fn placed<E: crate::Scalar>(
    placement: Placement,
    shape: &[usize],
    gap: E,
    elements: Vec<E>,
) -> Result<Placed<E>> {
    let mut elements = elements.into_iter();
    Placed::tensor(placement, shape, gap, || elements.next().unwrap_or(gap))
}

impl<T: Element> Pool<T> {
    fn rows(&self) -> Result<Rows<'_, Host, T>> {
        Ok(match self {
            Self::Plain(rows) => Rows::Plain(rows.view()?),
            Self::Int8(rows, scales) => Rows::Int8 {
                values: rows.view()?,
                scales: Flat::new(&scales[..]),
            },
            Self::Q8_0(rows) => Rows::Q8_0 {
                bytes: rows.view()?,
            },
        })
    }
}
