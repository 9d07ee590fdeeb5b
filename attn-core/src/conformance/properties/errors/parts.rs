//! Lengths, pages, blocks and the like that cannot be. A backend is held to what it claims to have.

use super::super::{Broken, OnHost};
use super::{ELEMENTS, SHAPE, attention_refused, view};
use crate::dtype::Element;
use crate::error::Error;
use crate::mask::FullyMasked;
use crate::position::Alignment;
use crate::request::{Attention, Features};
use crate::scores::{Alibi, Relative};
use crate::source::{Cached, Place, Rows};
use crate::view::{Flat, Host};
use crate::visible::{Blocks, Segments, Sequences};

/// Two batch entries of 5 queries and keys, 3 heads each.
const BATCHED: &[usize] = &[2, 5, 3, 4];

fn batched<T: Element>(data: &[T]) -> Result<Attention<'_, Host, T>, Error> {
    let x = view(data, BATCHED)?;
    Ok(Attention::new(x, x, x))
}

/// The argument that must be named, and the index of what cannot be; no index where the array has the wrong length.
type Named = (&'static str, Option<usize>);

fn named(wanted: Named) -> impl Fn(&Error) -> bool {
    move |error| match (wanted, *error) {
        (
            (argument, Some(index)),
            Error::Entry {
                argument: a,
                index: i,
                ..
            },
        ) => (argument, index) == (a, i),
        ((argument, None), Error::Buffer { argument: a, .. }) => argument == a,
        _ => false,
    }
}

pub(super) fn lengths<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    /// Lengths of keys and of queries.
    type Padded = (&'static [i32], Option<&'static [i32]>);
    if !backend.features().contains(Features::SEQUENCES) {
        return Ok(());
    }
    let padded: [(Padded, Named); 6] = [
        ((&[5, -1], None), ("key_lengths", Some(1))),
        ((&[6, 0], None), ("key_lengths", Some(0))),
        ((&[5, 5], Some(&[5, 6])), ("query_lengths", Some(1))),
        ((&[5, 5], Some(&[i32::MIN, 0])), ("query_lengths", Some(0))),
        ((&[5], None), ("key_lengths", None)),
        ((&[5, 5], Some(&[5, 5, 5])), ("query_lengths", None)),
    ];
    for ((keys, queries), wanted) in padded {
        let sequences = Sequences::Padded {
            key_lengths: Flat::new(keys),
            query_lengths: queries.map(Flat::new),
        };
        sequences_refused::<T, B>(backend, sequences, wanted)?;
    }
    let packed: [([&[i32]; 2], Named); 7] = [
        ([&[0, 3, 2], &[0, 3, 5]], ("query_starts", Some(2))),
        ([&[0, 3, 6], &[0, 3, 5]], ("query_starts", Some(2))),
        ([&[-1, 3, 5], &[0, 3, 5]], ("query_starts", Some(0))),
        ([&[0, 3, 5], &[0, 4, 3]], ("key_starts", Some(2))),
        ([&[0, 3, 5], &[0, 3, i32::MAX]], ("key_starts", Some(2))),
        ([&[0, 3, 5], &[0, 5]], ("key_starts", None)),
        ([&[], &[]], ("query_starts", None)),
    ];
    for ([queries, keys], wanted) in packed {
        let sequences = Sequences::Packed {
            query_starts: Flat::new(queries),
            key_starts: Flat::new(keys),
        };
        sequences_refused::<T, B>(backend, sequences, wanted)?;
    }
    Ok(())
}

fn sequences_refused<T: Element, B: OnHost<T>>(
    backend: &B,
    sequences: Sequences<'_, Host>,
    wanted: Named,
) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let call = batched(&data)?.with_sequences(Some(sequences));
    attention_refused(backend, call, BATCHED, named(wanted), wanted)
}

pub(super) fn segments_that_do_not_fit<T: Element, B: OnHost<T>>(
    backend: &B,
) -> Result<(), Broken> {
    if !backend.features().contains(Features::SEGMENTS) {
        return Ok(());
    }
    let (data, ids) = ([T::default(); ELEMENTS], [0; 11]);
    for (queries, keys, argument) in [(9, 10, "query segments"), (10, 11, "key segments")] {
        let segments = Segments {
            queries: Flat::new(&ids[..queries]),
            keys: Flat::new(&ids[..keys]),
        };
        let call = batched(&data)?.with_segments(Some(segments));
        attention_refused(backend, call, BATCHED, named((argument, None)), argument)?;
    }
    Ok(())
}

pub(super) fn blocks_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    if !backend.features().contains(Features::BLOCKS) {
        return Ok(());
    }
    let (data, bytes) = ([T::default(); ELEMENTS], [1; ELEMENTS]);
    let x = view(&data, SHAPE)?;
    let wrong: [(&[usize], [usize; 2]); 4] = [
        (&[2, 1], [2, 5]),
        (&[3, 2], [2, 2]),
        (&[1, 1], [0, 5]),
        (&[1, 1], [5, 0]),
    ];
    for (shape, [query_block, key_block]) in wrong {
        let blocks = Blocks {
            keep: view(&bytes, shape)?,
            query_block,
            key_block,
        };
        let zero = match (query_block, key_block) {
            (0, _) => Some("query_block"),
            (_, 0) => Some("key_block"),
            _ => None,
        };
        let wanted = |error: &Error| match *error {
            Error::Zero { argument } => Some(argument) == zero,
            Error::Broadcast { argument, .. } => zero.is_none() && argument == "blocks",
            _ => false,
        };
        let call = Attention::new(x, x, x).with_blocks(Some(&blocks));
        attention_refused(
            backend,
            call,
            SHAPE,
            wanted,
            (shape, query_block, key_block),
        )?;
    }
    Ok(())
}

pub(super) fn scores_that_cannot_be<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let has = |part: Features| backend.features().contains(part);
    let (data, numbers) = ([T::default(); ELEMENTS], [T::Acc::default(); 16]);
    if has(Features::SOFTCAP) {
        for cap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let call = batched(&data)?.with_softcap(Some(cap));
            let wanted = |error: &Error| matches!(error, Error::Softcap { .. });
            attention_refused(backend, call, BATCHED, wanted, cap)?;
        }
    }
    // Three heads, and a table of whole rows.
    for count in [0, 2, 4] {
        let few = Flat::new(&numbers[..count]);
        if has(Features::SINKS) {
            let call = batched(&data)?.with_sinks(Some(few));
            attention_refused(backend, call, BATCHED, named(("sinks", None)), count)?;
        }
        if has(Features::ALIBI) {
            let alibi = Alibi {
                slopes: few,
                alignment: Alignment::TopLeft,
            };
            let call = batched(&data)?.with_alibi(Some(alibi));
            attention_refused(backend, call, BATCHED, named(("alibi slopes", None)), count)?;
        }
        if has(Features::RELATIVE) {
            let relative = Relative {
                table: few,
                zero: 0,
                alignment: Alignment::TopLeft,
            };
            let call = batched(&data)?.with_relative(Some(relative));
            attention_refused(
                backend,
                call,
                BATCHED,
                named(("relative table", None)),
                count,
            )?;
        }
    }
    Ok(())
}

/// A cache of two sequences in pages of 2 tokens, `[3, 2, 3, 4]`, and a call of 5 queries each over it.
fn paged_refused<T: Element, B: OnHost<T>>(
    backend: &B,
    (table, length): (&[i32], usize),
    rule: FullyMasked,
    wanted: impl Fn(&Error) -> bool,
) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let rows = || Ok::<_, Error>(Rows::Plain(view(&data, &[3, 2, 3, 4])?));
    let cached = Cached {
        key: rows()?,
        value: rows()?,
        place: Place::Paged {
            table: Flat::new(table),
        },
        length,
    };
    let call = Attention::cached(view(&data, BATCHED)?, &cached).with_fully_masked(rule);
    attention_refused(backend, call, BATCHED, wanted, (table, length))
}

pub(super) fn pages_that_there_are_not<T: Element, B: OnHost<T>>(
    backend: &B,
) -> Result<(), Broken> {
    if !backend.features().contains(Features::PAGED) {
        return Ok(());
    }
    use FullyMasked::{MeanOfValues, Zero};
    let page = |index| named(("page table", Some(index)));
    paged_refused::<T, B>(backend, (&[0, 3, 1, 2], 4), Zero, page(1))?;
    paged_refused::<T, B>(backend, (&[0, 1, 1, -1], 3), Zero, page(3))?;
    paged_refused::<T, B>(backend, (&[i32::MAX, 1, 1, 0], 1), Zero, page(0))?;
    let odd = named(("page table", None));
    paged_refused::<T, B>(backend, (&[0, 1, 2], 2), Zero, odd)?;
    let full = |error: &Error| matches!(error, Error::CacheFull { got: 5, free: 4 });
    paged_refused::<T, B>(backend, (&[0, 1, 1, 2], 5), Zero, full)?;
    let mean = |error: &Error| matches!(error, Error::Unsupported { .. });
    paged_refused::<T, B>(backend, (&[0, 1, 1, 2], 4), MeanOfValues, mean)
}

/// Calls of one query over one sequence in a cache of 8 rows of one head of 32.
pub(super) fn caches_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let has = |part: Features| backend.features().contains(part);
    let (data, integers, bytes) = ([T::default(); ELEMENTS], [0i8; ELEMENTS], [0u8; ELEMENTS]);
    let scales = [0f32; 9];
    let plain = || Ok::<_, Error>(Rows::Plain(view(&data, &[8, 1, 32])?));
    let refused = |rows: Rows<'_, Host, T>,
                   place: Place<'_, Host>,
                   length: usize,
                   wanted: &dyn Fn(&Error) -> bool| {
        let what = (rows_of(&rows), length);
        let cached = Cached {
            key: rows,
            value: plain()?,
            place,
            length,
        };
        let call = Attention::cached(view(&data, &[1, 1, 32])?, &cached);
        attention_refused(backend, call, &[1, 1, 32], wanted, what)
    };
    if has(Features::CACHED) {
        let full = |error: &Error| matches!(error, Error::CacheFull { got: 9, free: 8 });
        refused(plain()?, Place::Contiguous, 9, &full)?;
        let fewer = Rows::Plain(view(&data, &[7, 1, 32])?);
        let lengths = |error: &Error| matches!(error, Error::Mismatch { .. });
        refused(fewer, Place::Contiguous, 7, &lengths)?;
    }
    if has(Features::CACHED) && has(Features::INT8) {
        for count in [7, 9] {
            let rows = Rows::Int8 {
                values: view(&integers, &[8, 1, 32])?,
                scales: Flat::new(&scales[..count]),
            };
            refused(rows, Place::Contiguous, 8, &named(("scales", None)))?;
        }
    }
    if has(Features::CACHED) && has(Features::Q8_0) {
        let rows = |columns| {
            Ok::<_, Error>(Rows::Q8_0 {
                bytes: view(&bytes, &[8, 1, columns])?,
            })
        };
        refused(
            rows(33)?,
            Place::Contiguous,
            8,
            &named(("cached key", None)),
        )?;
        let depths = |error: &Error| matches!(error, Error::Mismatch { .. });
        refused(rows(0)?, Place::Contiguous, 8, &depths)?;
    }
    Ok(())
}

fn rows_of<T: Element>(rows: &Rows<'_, Host, T>) -> &'static str {
    match rows {
        Rows::Plain(_) => "plain rows",
        Rows::Int8 { .. } => "rows of int8",
        Rows::Q8_0 { .. } => "rows of q8_0",
    }
}
