//! Sequences, caches and grouped heads give the bits of the calls that they are short for. A backend is held to what it claims to have.

use super::super::super::data::Numbers;
use super::super::{Broken, OnHost};
use super::{in_case, same};
use crate::dtype::Element;
use crate::error::Error;
use crate::mask::FullyMasked;
use crate::position::{Alignment, Causal, Window};
use crate::request::{Attention, Features};
use crate::source::{Cached, Place, Rows};
use crate::view::{Flat, Host, HostView, HostViewMut};
use crate::visible::Sequences;
use alloc::vec;
use alloc::vec::Vec;

const HEADS: usize = 2;
const DEPTH: usize = 9;
const ROW: usize = HEADS * DEPTH;

fn attend<T: Element, B: OnHost<T>>(
    backend: &B,
    call: Attention<'_, Host, T>,
) -> Result<Vec<T>, Error> {
    let shape = call.shape()?;
    let out_shape = shape.output(call.query.shape())?;
    let mut scratch = vec![T::Acc::default(); backend.attend_scratch(&shape)];
    let mut out = vec![T::default(); out_shape.elements()?];
    backend.attend(call, HostViewMut::new(&mut out, &out_shape)?, &mut scratch)?;
    Ok(out)
}

/// Rows of `[rows, HEADS, DEPTH]`.
fn rows<T>(array: &[T], rows: core::ops::Range<usize>) -> &[T] {
    &array[rows.start * ROW..rows.end * ROW]
}

fn view<'a, T: Element>(array: &'a [T], leading: &[usize]) -> Result<HostView<'a, T>, Error> {
    let shape: Vec<usize> = leading.iter().copied().chain([HEADS, DEPTH]).collect();
    HostView::new(array, &shape)
}

/// What each sequence gives alone it gives among others, packed one after the other or padded in a batch.
pub(super) fn sequences_alone_and_together<T: Element, B: OnHost<T>>(
    backend: &B,
) -> Result<(), Broken> {
    let used = Features::SEQUENCES.union(Features::CAUSAL);
    if !backend.features().contains(used) {
        return Ok(());
    }
    in_case(
        "many queries",
        sequences(backend, [5, 70, 0, 3], [70, 130, 7, 2]),
    )?;
    in_case(
        "few queries",
        sequences(backend, [1, 2, 1, 0], [70, 130, 1, 65]),
    )
}

fn sequences<T: Element, B: OnHost<T>>(
    backend: &B,
    queries: [usize; 4],
    keys: [usize; 4],
) -> Result<(), Broken> {
    let mut numbers = Numbers::new("sequences alone and together");
    let starts = |lengths: [usize; 4]| {
        let mut starts = [0; 5];
        (0..4).for_each(|n| starts[n + 1] = starts[n] + lengths[n]);
        starts
    };
    let (query_starts, key_starts) = (starts(queries), starts(keys));
    let mut array = |count: usize| -> Vec<T> { numbers.elements(count * ROW, 1.0) };
    let (q, k, v) = (
        array(query_starts[4]),
        array(key_starts[4]),
        array(key_starts[4]),
    );
    let causal = Some(Causal::bottom_right());
    let mut alone = Vec::new();
    for n in 0..4 {
        let of_queries = query_starts[n]..query_starts[n + 1];
        let of_keys = key_starts[n]..key_starts[n + 1];
        let call = Attention::new(
            view(rows(&q, of_queries), &[queries[n]])?,
            view(rows(&k, of_keys.clone()), &[keys[n]])?,
            view(rows(&v, of_keys), &[keys[n]])?,
        );
        alone.push(attend(backend, call.with_causal(causal))?);
    }
    let [query_entries, key_entries] = [query_starts, key_starts].map(|of| of.map(|n| n as i32));
    let call = Attention::new(
        view(&q, &[query_starts[4]])?,
        view(&k, &[key_starts[4]])?,
        view(&v, &[key_starts[4]])?,
    );
    let packed = Sequences::Packed {
        query_starts: Flat::new(&query_entries[..]),
        key_starts: Flat::new(&key_entries[..]),
    };
    let packed = attend(
        backend,
        call.with_causal(causal).with_sequences(Some(packed)),
    )?;
    in_case("packed", same(&alone.concat(), &packed))?;

    let longest = |lengths: [usize; 4]| lengths.into_iter().max().unwrap_or(0);
    let (most_queries, most_keys) = (longest(queries), longest(keys));
    let pad = |array: &[T], starts: [usize; 5], most: usize| {
        let mut padded = Vec::new();
        for n in 0..4 {
            padded.extend_from_slice(rows(array, starts[n]..starts[n + 1]));
            padded.resize((n + 1) * most * ROW, T::from_f64(f64::NAN));
        }
        padded
    };
    let [q, k, v] = [
        pad(&q, query_starts, most_queries),
        pad(&k, key_starts, most_keys),
        pad(&v, key_starts, most_keys),
    ];
    let call = Attention::new(
        view(&q, &[4, most_queries])?,
        view(&k, &[4, most_keys])?,
        view(&v, &[4, most_keys])?,
    );
    let [query_lengths, key_lengths] = [queries, keys].map(|of| of.map(|n| n as i32));
    let padded = Sequences::Padded {
        key_lengths: Flat::new(&key_lengths[..]),
        query_lengths: Some(Flat::new(&query_lengths[..])),
    };
    let padded = attend(
        backend,
        call.with_causal(causal).with_sequences(Some(padded)),
    )?;
    for (n, alone) in alone.iter().enumerate() {
        let first = n * most_queries;
        in_case(
            "padded",
            same(alone, rows(&padded, first..first + queries[n])),
        )?;
    }
    Ok(())
}

/// Each head of keys and values given once, and given to each head of queries.
pub(super) fn grouped_and_repeated<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    const GROUP: usize = 3;
    if !backend.features().contains(Features::GROUPED) {
        return Ok(());
    }
    let keys = 130;
    for queries in [1, 5, 70] {
        let mut numbers = Numbers::new("grouped and repeated");
        let q: Vec<T> = numbers.elements(queries * GROUP * ROW, 1.0);
        let [k, v]: [Vec<T>; 2] = core::array::from_fn(|_| numbers.elements(keys * ROW, 1.0));
        let query = HostView::new(&q, &[queries, GROUP * HEADS, DEPTH])?;
        let grouped = attend(
            backend,
            Attention::new(query, view(&k, &[keys])?, view(&v, &[keys])?),
        )?;
        let repeated = |array: &[T]| -> Vec<T> {
            let heads = array.chunks(DEPTH).map(|head| head.repeat(GROUP));
            heads.collect::<Vec<_>>().concat()
        };
        let (k, v) = (repeated(&k), repeated(&v));
        let shape = [keys, GROUP * HEADS, DEPTH];
        let call = Attention::new(
            query,
            HostView::new(&k, &shape)?,
            HostView::new(&v, &shape)?,
        );
        in_case(queries, same(&grouped, &attend(backend, call)?))?;
    }
    Ok(())
}

/// Tokens of each of two sequences.
const TOKENS: usize = 100;
const PAGE: usize = 16;
const PAGES: usize = TOKENS.div_ceil(PAGE);

/// The same tokens as an array and in every cache.
pub(super) fn caches_and_arrays<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for queries in [1, 3, 70] {
        for window in [None, Some(20)] {
            let result = caches::<T, B>(backend, queries, window);
            in_case((queries, "queries, window", window), result)?;
        }
    }
    Ok(())
}

fn caches<T: Element, B: OnHost<T>>(
    backend: &B,
    queries: usize,
    left: Option<usize>,
) -> Result<(), Broken> {
    let has = |part: Features| backend.features().contains(part);
    if left.is_some() && !has(Features::WINDOW) {
        return Ok(());
    }
    let mut numbers = Numbers::new("caches and arrays");
    let q: Vec<T> = numbers.elements(2 * queries * ROW, 1.0);
    let [k, v]: [Vec<T>; 2] = core::array::from_fn(|_| numbers.elements(2 * TOKENS * ROW, 1.0));
    let query = view(&q, &[2, queries])?;
    let with_positions = |call: Attention<'_, Host, T>| {
        let window = left.map(|left| Window::new(Alignment::BottomRight, Some(left), Some(0)));
        attend(
            backend,
            call.with_causal(Some(Causal::bottom_right()))
                .with_window(window),
        )
    };
    let dense = Attention::new(query, view(&k, &[2, TOKENS])?, view(&v, &[2, TOKENS])?);
    let dense = with_positions(dense.with_fully_masked(FullyMasked::Zero))?;

    let table: Vec<i32> = (0..2 * PAGES)
        .map(|page| ((page * 5 + 3) % (2 * PAGES)) as i32)
        .collect();
    // A ring that has room for what queries see, and no more.
    let capacity = left.map_or(TOKENS, |left| (queries + left).min(TOKENS));
    let places = [
        (Features::CACHED, Place::Contiguous, [2, TOKENS + 7]),
        (Features::RING, Place::Ring, [2, capacity]),
        (
            Features::PAGED,
            Place::Paged {
                table: Flat::new(&table[..]),
            },
            [2 * PAGES, PAGE],
        ),
    ];
    for (part, place, [entries, rows]) in places {
        if !has(part) {
            continue;
        }
        let pool = |array: &[T]| -> Vec<T> {
            let mut pool = vec![T::from_f64(f64::NAN); entries * rows * ROW];
            for sequence in 0..2 {
                let first = if part == Features::RING {
                    TOKENS - rows
                } else {
                    0
                };
                for token in first..TOKENS {
                    let entry = match part {
                        Features::PAGED => table[sequence * PAGES + token / rows] as usize,
                        _ => sequence,
                    };
                    let (to, from) = (entry * rows + token % rows, sequence * TOKENS + token);
                    pool[to * ROW..][..ROW].copy_from_slice(&array[from * ROW..][..ROW]);
                }
            }
            pool
        };
        let (k, v) = (pool(&k), pool(&v));
        let cached = Cached {
            key: Rows::Plain(view(&k, &[entries, rows])?),
            value: Rows::Plain(view(&v, &[entries, rows])?),
            place,
            length: TOKENS,
        };
        let cached = with_positions(Attention::cached(query, &cached))?;
        in_case(part.first_name(), same(&dense, &cached))?;
    }
    Ok(())
}
