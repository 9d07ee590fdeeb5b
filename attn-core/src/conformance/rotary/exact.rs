//! What must hold bit for bit of rotary embeddings, and what must be refused.

use super::super::properties::{Broken, OnHost, run as run_checks};
use super::super::verdict::Failure;
use super::{Arrays, Case, HEADS, LENGTH, Placement, Rows};
use crate::dtype::Element;
use crate::error::Error;
use crate::layout::{Dims, Layout};
use crate::rotary::{MAX_POSITION, Pairing, Positions, Rotary, RotaryScaling, RotaryTable, Rotate};
use crate::view::{Flat, Host, HostViewMut};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;

pub(super) fn run<T: Element, B: OnHost<T>>(backend: &B) -> Result<usize, Failure> {
    run_checks(
        backend,
        &[
            ("a row beside others", rows_alone::<T, B>),
            ("position ids", ids_that_follow::<T, B>),
            ("a table that was filled", filled_tables::<T, B>),
            ("position 0", position_0::<T, B>),
            (
                "a rotation that does not fit",
                calls_that_do_not_fit::<T, B>,
            ),
        ],
    )
}

fn case(pairing: Pairing) -> Case {
    Case {
        rotary: Rotary {
            pairing,
            rotary_dim: Some(76),
            scaling: RotaryScaling::yarn(4.0, 64),
            ..Rotary::new()
        },
        depth: 80,
        rows: Rows::From(123_456),
        table: false,
        inverse: false,
        placement: Placement::Contiguous,
    }
}

const PAIRINGS: [Pairing; 2] = [Pairing::HalfSplit, Pairing::Interleaved];

fn same<T: Element>(what: impl Debug, got: &[T], wanted: &[T]) -> Result<(), Broken> {
    let (got, wanted) = (
        bytemuck::cast_slice::<T, u8>(got),
        bytemuck::cast_slice(wanted),
    );
    match got == wanted {
        true => Ok(()),
        false => Err(Broken(format!("{what:?}: other bits"))),
    }
}

/// The case's arrays before and after.
fn rotated<T: Element, B: OnHost<T>>(backend: &B, case: &Case) -> Result<[Arrays<T>; 2], Broken> {
    let [before, mut after] = [case.arrays::<T>("exact")?, case.arrays::<T>("exact")?];
    backend.rotate(case.call(&mut after)?)?;
    Ok([before, after])
}

/// Every row alone, and every part of the depth too narrow to share a chunk or a vector.
fn rows_alone<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for case in PAIRINGS.map(case) {
        let [mut before, after] = rotated::<T, B>(backend, &case)?;
        let Rows::From(first) = case.rows else {
            return Ok(());
        };
        for n in 0..before.x.layout.elements() / case.depth {
            let start = before.x.layout.base(3, n);
            let shape = Dims::new(&[1, 1, case.depth])?;
            let layout = Layout::strided(start, shape, &[1, 1, 1])?;
            let x = HostViewMut::with_layout(&mut before.x.buffer, layout)?;
            let position = first + n / HEADS % LENGTH;
            backend.rotate(Rotate::new(x, case.rotary, position))?;
        }
        same(case.rotary.pairing, &before.x.buffer, &after.x.buffer)?;
    }
    Ok(())
}

fn ids_that_follow<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for case in PAIRINGS.map(case) {
        let [mut before, after] = rotated::<T, B>(backend, &case)?;
        let rows = before.x.layout.elements() / case.depth / HEADS;
        let ids: Vec<i32> = (0..rows)
            .map(|row| 123_456 + (row % LENGTH) as i32)
            .collect();
        let x = before.x.view_mut()?;
        backend.rotate(Rotate {
            positions: Positions::Ids(Flat::new(&*ids)),
            ..Rotate::new(x, case.rotary, 0)
        })?;
        same(case.rotary.pairing, &before.x.buffer, &after.x.buffer)?;
    }
    Ok(())
}

fn filled_tables<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for pairing in PAIRINGS {
        let case = Case {
            rows: Rows::From(3),
            inverse: true,
            ..case(pairing)
        };
        let [mut before, after] = rotated::<T, B>(backend, &case)?;
        let entries = (3 + LENGTH) * case.pairs();
        let [mut cos, mut sin] = [
            vec![T::Acc::default(); entries],
            vec![T::Acc::default(); entries],
        ];
        case.rotary.fill_table(case.depth, 0, &mut cos, &mut sin)?;
        let table = RotaryTable {
            cos: Flat::new(&*cos),
            sin: Flat::new(&*sin),
        };
        let x = before.x.view_mut()?;
        backend.rotate(
            Rotate::new(x, case.rotary, 3)
                .with_table(Some(table))
                .with_inverse(true),
        )?;
        same(pairing, &before.x.buffer, &after.x.buffer)?;
    }
    Ok(())
}

/// It turns nothing.
fn position_0<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let case = Case {
        rotary: Rotary::new(),
        rows: Rows::From(0),
        ..case(Pairing::HalfSplit)
    };
    let [before, after] = rotated::<T, B>(backend, &case)?;
    let row = HEADS * case.depth;
    let values = |arrays: &Arrays<T>| arrays.x.buffer[..row].iter().map(|x| x.to_f64()).collect();
    let [before, after]: [Vec<f64>; 2] = [values(&before), values(&after)];
    match before == after {
        true => Ok(()),
        false => Err(Broken("the first row changed".into())),
    }
}

/// Elements that are not written.
const UNTOUCHED: f64 = 7.0;

fn refused<T: Element, B: OnHost<T>>(
    backend: &B,
    what: impl Debug,
    shape: &[usize],
    change: impl Fn(&mut Rotate<'_, Host, T>),
    wanted: impl Fn(&Error) -> bool,
) -> Result<(), Broken> {
    let mut buffer = vec![T::from_f64(UNTOUCHED); shape.iter().product()];
    let x = HostViewMut::new(&mut buffer, shape)?;
    let mut call = Rotate::new(x, Rotary::new(), 0);
    change(&mut call);
    let result = backend.rotate(call);
    if !result.as_ref().is_err_and(wanted) {
        return Err(Broken(format!("{what:?} gave {result:?}")));
    }
    match buffer.iter().all(|x| x.to_f64() == UNTOUCHED) {
        true => Ok(()),
        false => Err(Broken(format!("{what:?}: x was written before the error"))),
    }
}

fn calls_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let shape: &[usize] = &[2, 3, 2, 8];
    let rank = |error: &Error| matches!(error, Error::Rank { .. });
    refused(backend, "two axes", &[3, 8], |_| {}, rank)?;
    for (dim, depth) in [(Some(3), 8), (Some(10), 8), (None, 7)] {
        let change = |call: &mut Rotate<'_, Host, T>| call.rotary.rotary_dim = dim;
        let wanted =
            |error: &Error| matches!(error, Error::RotaryDim { depth: d, .. } if *d == depth);
        refused(backend, (dim, depth), &[1, 1, depth], change, wanted)?;
    }
    for base in [0.0, -1.0, 0.5, f64::NAN, f64::INFINITY] {
        let change = |call: &mut Rotate<'_, Host, T>| call.rotary.base = base;
        let wanted = |error: &Error| matches!(error, Error::Rotary { field: "base", .. });
        refused(backend, ("base", base), shape, change, wanted)?;
    }
    let linear = RotaryScaling::Linear { factor: 0.0 };
    let change = |call: &mut Rotate<'_, Host, T>| call.rotary.scaling = linear;
    let wanted = |error: &Error| {
        matches!(
            error,
            Error::Rotary {
                field: "factor",
                ..
            }
        )
    };
    refused(backend, linear, shape, change, wanted)?;
    ids_that_do_not_fit::<T, B>(backend, shape)?;
    tables_that_do_not_fit::<T, B>(backend, shape)
}

fn ids_that_do_not_fit<T: Element, B: OnHost<T>>(
    backend: &B,
    shape: &[usize],
) -> Result<(), Broken> {
    for (ids, wanted_index) in [(&[0, 1, 2, 3, -4, 5][..], Some(4)), (&[0; 5], None)] {
        let mut buffer = vec![T::from_f64(UNTOUCHED); shape.iter().product()];
        let result = backend.rotate(Rotate {
            positions: Positions::Ids(Flat::new(ids)),
            ..Rotate::new(HostViewMut::new(&mut buffer, shape)?, Rotary::new(), 0)
        });
        let is_right = match (&result, wanted_index) {
            (Err(Error::Entry { index, got, .. }), Some(wanted)) => *index == wanted && *got == -4,
            (Err(Error::Buffer { got, wanted, .. }), None) => (*got, *wanted) == (5, 6),
            _ => false,
        };
        if !is_right || buffer.iter().any(|x| x.to_f64() != UNTOUCHED) {
            return Err(Broken(format!("{ids:?} gave {result:?}")));
        }
    }
    let far = |call: &mut Rotate<'_, Host, T>| call.positions = Positions::From(MAX_POSITION - 1);
    let entry = |error: &Error| matches!(error, Error::Entry { .. });
    refused(backend, "beyond the last position", shape, far, entry)?;
    let further = |call: &mut Rotate<'_, Host, T>| call.positions = Positions::From(usize::MAX);
    refused(backend, "beyond all", shape, further, entry)
}

fn tables_that_do_not_fit<T: Element, B: OnHost<T>>(
    backend: &B,
    shape: &[usize],
) -> Result<(), Broken> {
    // Two positions of four pairs; the call has three, or an id of 2.
    let entries = [T::Acc::default(); 12];
    for (cos, sin, ids) in [
        (8, 8, false),
        (8, 8, true),
        (11, 11, false),
        (12, 8, false),
        (0, 0, false),
    ] {
        let mut buffer = vec![T::from_f64(UNTOUCHED); shape.iter().product()];
        let table = RotaryTable {
            cos: Flat::new(&entries[..cos]),
            sin: Flat::new(&entries[..sin]),
        };
        let x = HostViewMut::new(&mut buffer, shape)?;
        let mut call = Rotate::new(x, Rotary::new(), 0).with_table(Some(table));
        if ids {
            call.positions = Positions::Ids(Flat::new([0, 1, 1, 0, 2, 0].as_slice()));
        }
        let result = backend.rotate(call);
        let is_right = match &result {
            Err(Error::Entry {
                most: 1, got: 2, ..
            }) => cos == 8,
            Err(Error::Buffer { .. }) => cos > 8,
            Err(Error::Entry { most: -1, .. }) => cos == 0,
            _ => false,
        };
        if !is_right || buffer.iter().any(|x| x.to_f64() != UNTOUCHED) {
            return Err(Broken(format!(
                "a table of {cos} and {sin} gave {result:?}"
            )));
        }
    }
    Ok(())
}
