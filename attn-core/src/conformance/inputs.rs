//! The inputs of a case: its arrays, and the request over them.

mod cache;
mod poison;

use super::arrays::Placed;
use super::case::{Case, SequencesCase, SinksCase};
use super::data::Numbers;
use crate::dropout::Dropout;
use crate::dtype::Element;
use crate::error::Result;
use crate::mask::Mask;
use crate::random::Key;
use crate::request::Attention;
use crate::scores::{Alibi, Relative};
use crate::source::Cached;
use crate::view::{Flat, Host};
use crate::visible::{Blocks, Segments, Sequences};
use alloc::format;
use alloc::vec::Vec;
use cache::Cache;

/// The arrays of a case, in one of its draws.
pub(super) struct Inputs<T: Element> {
    query: Placed<T>,
    key: Placed<T>,
    value: Placed<T>,
    mask: Option<Placed<u8>>,
    bias: Option<Placed<T::Acc>>,
    dropout: Option<Dropout>,
    /// Of queries and of keys.
    segments: Option<[Vec<i32>; 2]>,
    blocks: Option<Placed<u8>>,
    slopes: Option<Vec<T::Acc>>,
    table: Option<Vec<T::Acc>>,
    sinks: Option<Vec<T::Acc>>,
    cache: Option<Cache<T>>,
}

/// What a request borrows as a whole.
pub(super) struct Borrowed<'a, T: Element> {
    blocks: Option<Blocks<'a, Host>>,
    cached: Option<Cached<'a, Host, T>>,
}

impl<T: Element> Inputs<T> {
    pub(super) fn new(case: &Case, draw: usize) -> Result<Self> {
        let mut numbers = Numbers::new(&format!("{} {draw}", case.name));
        let mut placed = |length, heads, depth, size: f64| {
            let shape = [length, heads, depth];
            Placed::new(case.placement, &case.batch, shape, || {
                T::from_f64(numbers.normal() * size)
            })
        };
        // A cache is in the place of both arrays.
        let (keys, key_heads) = match case.cache {
            Some(_) => (0, 0),
            None => (case.key_length, case.key_heads),
        };
        let mut this = Self {
            query: placed(case.query_length, case.heads, case.depth, case.size)?,
            key: placed(keys, key_heads, case.depth, case.size)?,
            value: placed(keys, key_heads, case.value_depth, 1.0)?,
            mask: mask(case, &mut numbers)?,
            bias: bias(case, &mut numbers)?,
            dropout: dropout::<T>(case, &mut numbers)?,
            segments: segments(case, &mut numbers),
            blocks: blocks(case, &mut numbers)?,
            slopes: None,
            table: None,
            sinks: None,
            cache: Cache::new(case, &mut numbers)?,
        };
        this.slopes = case.alibi.map(|_| numbers.elements(case.heads, 0.1));
        this.table =
            (case.relative).map(|relative| numbers.elements(case.heads * relative.distances, 1.0));
        this.sinks = case.sinks.map(|kind| sinks(kind, case.heads, &mut numbers));
        Ok(this)
    }

    /// What [`Inputs::call`] borrows.
    pub(super) fn borrowed(&self, case: &Case) -> Result<Borrowed<'_, T>> {
        let blocks = match (&case.blocks, &self.blocks) {
            (Some(blocks), Some(keep)) => Some(Blocks {
                keep: keep.view()?,
                query_block: blocks.query_block,
                key_block: blocks.key_block,
            }),
            _ => None,
        };
        let cached = self.cache.as_ref().map(|cache| cache.cached(case));
        Ok(Borrowed {
            blocks,
            cached: cached.transpose()?,
        })
    }

    /// The request that the case describes.
    pub(super) fn call<'a>(
        &'a self,
        case: &'a Case,
        borrowed: &'a Borrowed<'a, T>,
    ) -> Result<Attention<'a, Host, T>> {
        let mask = self.mask.as_ref().map(Placed::view).transpose()?;
        let keep = case.mask.as_ref().is_some_and(|mask| mask.keep);
        let mask = mask.map(|bytes| match keep {
            true => Mask::keep(bytes),
            false => Mask::drop(bytes),
        });
        let bias = self.bias.as_ref().map(Placed::view).transpose()?;
        let query = self.query.view()?;
        let call = match &borrowed.cached {
            Some(cached) => Attention::cached(query, cached),
            None => Attention::new(query, self.key.view()?, self.value.view()?),
        };
        Ok(call
            .with_scale(case.scale)
            .with_softcap(case.softcap)
            .with_bias(bias)
            .with_alibi(self.alibi(case))
            .with_relative(self.relative(case))
            .with_sinks(self.sinks.as_deref().map(Flat::new))
            .with_causal(case.causal)
            .with_window(case.window)
            .with_sequences(sequences(case))
            .with_segments(self.segments())
            .with_blocks(borrowed.blocks.as_ref())
            .with_mask(mask)
            .with_fully_masked(case.fully_masked)
            .with_dropout(self.dropout))
    }

    fn alibi(&self, case: &Case) -> Option<Alibi<'_, Host, T>> {
        Some(Alibi {
            slopes: Flat::new(self.slopes.as_deref()?),
            alignment: case.alibi?,
        })
    }

    fn relative(&self, case: &Case) -> Option<Relative<'_, Host, T>> {
        let relative = case.relative?;
        Some(Relative {
            table: Flat::new(self.table.as_deref()?),
            zero: relative.zero,
            alignment: relative.alignment,
        })
    }

    fn segments(&self) -> Option<Segments<'_, Host>> {
        let [queries, keys] = self.segments.as_ref()?;
        Some(Segments {
            queries: Flat::new(&queries[..]),
            keys: Flat::new(&keys[..]),
        })
    }
}

fn sequences(case: &Case) -> Option<Sequences<'_, Host>> {
    Some(match case.sequences.as_ref()? {
        SequencesCase::Padded(keys, queries) => Sequences::Padded {
            key_lengths: Flat::new(&keys[..]),
            query_lengths: queries.as_deref().map(Flat::new),
        },
        SequencesCase::Packed(queries, keys) => Sequences::Packed {
            query_starts: Flat::new(&queries[..]),
            key_starts: Flat::new(&keys[..]),
        },
    })
}

fn mask(case: &Case, numbers: &mut Numbers) -> Result<Option<Placed<u8>>> {
    let Some(mask) = &case.mask else {
        return Ok(None);
    };
    let columns = mask.shape.last().copied().unwrap_or(1).max(1);
    let mut index = 0;
    let next = || {
        let blind = mask.blind_rows && (index / columns).is_multiple_of(3);
        let seen = numbers.uniform() < mask.density && !blind;
        // Any byte but 0 is set.
        let set = 1 + (index % 255) as u8;
        index += 1;
        if seen == mask.keep { set } else { 0 }
    };
    Placed::tensor(case.placement, &mask.shape, 1, next).map(Some)
}

fn blocks(case: &Case, numbers: &mut Numbers) -> Result<Option<Placed<u8>>> {
    let Some(blocks) = &case.blocks else {
        return Ok(None);
    };
    let mut set = 0u8;
    let next = || {
        set = set.wrapping_add(1).max(1);
        if numbers.uniform() < blocks.density {
            set
        } else {
            0
        }
    };
    Placed::tensor(case.placement, &blocks.shape, 1, next).map(Some)
}

fn segments(case: &Case, numbers: &mut Numbers) -> Option<[Vec<i32>; 2]> {
    let ids = case.segments?;
    let batch: usize = case.batch.iter().product();
    let mut ids = |length: usize| -> Vec<i32> {
        (0..batch * length)
            .map(|_| (numbers.bits() % ids as u64) as i32 - 1)
            .collect()
    };
    Some([ids(case.query_length), ids(case.key_length)])
}

fn sinks<A: Element>(kind: SinksCase, heads: usize, numbers: &mut Numbers) -> Vec<A> {
    let sink = |head: usize, number: f64| match kind {
        SinksCase::Near(size) => size + number,
        SinksCase::Infinite if head.is_multiple_of(2) => f64::NEG_INFINITY,
        SinksCase::Infinite => number,
    };
    (0..heads)
        .map(|head| A::from_f64(sink(head, numbers.normal())))
        .collect()
}

/// Each draw has a key of its own.
fn dropout<T: Element>(case: &Case, numbers: &mut Numbers) -> Result<Option<Dropout>> {
    let Some(dropout) = case.dropout else {
        return Ok(None);
    };
    let bits = numbers.bits();
    let key = Key::from_words([(bits >> 32) as u32, bits as u32]);
    Dropout::new(
        key,
        dropout.rate,
        T::DTYPE,
        dropout.shared,
        dropout.convention,
    )
}

fn bias<A: Element>(case: &Case, numbers: &mut Numbers) -> Result<Option<Placed<A>>> {
    let Some((shape, infinite)) = &case.bias else {
        return Ok(None);
    };
    let next = || {
        let value = numbers.normal();
        let cut = *infinite && value > 1.0;
        A::from_f64(if cut { f64::NEG_INFINITY } else { value })
    };
    Placed::tensor(case.placement, shape, A::from_f64(f64::NAN), next).map(Some)
}
