//! What must hold exactly of merged results, and what must be refused.

use super::super::properties::{Broken, OnHost, run as run_checks};
use super::super::verdict::Failure;
use crate::dtype::Element;
use crate::error::Error;
use crate::merge::{Merge, Partial};
use crate::view::{Host, HostView, HostViewMut};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

pub(super) fn run<T: Element, B: OnHost<T>>(backend: &B) -> Result<usize, Failure> {
    run_checks(
        backend,
        &[
            ("one part alone", one_part::<T, B>),
            ("parts without keys", parts_without_keys::<T, B>),
            ("parts that are not numbers", not_numbers::<T, B>),
            ("parts that do not fit", parts_that_do_not_fit::<T, B>),
        ],
    )
}

/// Two rows of one head, a part each as `[m, l]` and outputs for both columns.
type Part = ([f64; 2], [f64; 2]);

/// Merges parts of one row, and gives its output and statistics.
fn merged<T: Element, B: OnHost<T>>(
    backend: &B,
    parts: &[Part],
) -> Result<([f64; 2], [f64; 2]), Broken> {
    let arrays: Vec<([T::Acc; 2], [T; 2])> = parts
        .iter()
        .map(|(statistics, out)| (statistics.map(T::Acc::from_f64), out.map(T::from_f64)))
        .collect();
    let mut views: Vec<Partial<'_, Host, T>> = Vec::new();
    for (statistics, out) in &arrays {
        views.push(Partial {
            out: HostView::new(out, &[1, 1, 2])?,
            statistics: HostView::new(statistics, &[1, 1, 2])?,
        });
    }
    let mut out = [T::from_f64(7.0); 2];
    let mut statistics = [T::Acc::from_f64(7.0); 2];
    backend.merge(Merge {
        parts: &views,
        out: HostViewMut::new(&mut out, &[1, 1, 2])?,
        statistics: Some(HostViewMut::new(&mut statistics, &[1, 1, 2])?),
    })?;
    Ok((out.map(T::to_f64), statistics.map(|x| x.to_f64())))
}

fn same(what: &str, got: [f64; 2], wanted: [f64; 2]) -> Result<(), Broken> {
    let is_same = |(got, wanted): (f64, f64)| {
        got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan())
    };
    match got.into_iter().zip(wanted).all(is_same) {
        true => Ok(()),
        false => Err(Broken(format!("{what}: {got:?}, wanted {wanted:?}"))),
    }
}

const EMPTY: Part = ([f64::NEG_INFINITY, 0.0], [f64::NAN, f64::INFINITY]);

/// Its own bits, the sign of a zero among them, beside empty parts too.
fn one_part<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for part in [([1.5, 3.0], [-0.0, 0.25]), ([-90.0, 1.0], [-3.0, 0.0])] {
        for parts in [&[part][..], &[EMPTY, part, EMPTY]] {
            let (out, statistics) = merged::<T, B>(backend, parts)?;
            same("output", out, part.1)?;
            same("statistics", statistics, part.0)?;
        }
    }
    Ok(())
}

fn parts_without_keys<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let divisible = ([f64::NEG_INFINITY, 1.0], EMPTY.1);
    for parts in [&[EMPTY][..], &[EMPTY; 3], &[divisible, EMPTY]] {
        let (out, statistics) = merged::<T, B>(backend, parts)?;
        same("output", out, [0.0; 2])?;
        same("statistics", statistics, [f64::NEG_INFINITY, 0.0])?;
    }
    Ok(())
}

fn not_numbers<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let (nan, infinite) = (f64::NAN, f64::INFINITY);
    let right = ([1.0, 2.0], [0.5, 1.0]);
    for wrong in [[nan, 1.0], [1.0, nan], [infinite, 1.0]] {
        for parts in [[right, (wrong, [1.0; 2])], [(wrong, [1.0; 2]), right]] {
            let (out, statistics) = merged::<T, B>(backend, &parts)?;
            same("output", out, [nan; 2])?;
            same("statistics", statistics, [nan; 2])?;
        }
    }
    // In an output it stays in its column.
    let (out, statistics) = merged::<T, B>(backend, &[right, ([1.0, 2.0], [nan, 1.0])])?;
    same("output", out, [nan, 1.0])?;
    same("statistics", statistics, [1.0, 4.0])
}

fn parts_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let (out, statistics): (&[usize], &[usize]) = (&[2, 5, 3, 4], &[2, 3, 5, 2]);
    let shape = |error: &Error| matches!(error, Error::Shape { .. });
    let rank = |error: &Error| matches!(error, Error::Rank { .. });
    let zero = |error: &Error| matches!(error, Error::Zero { .. });
    /// Of the parts, each its output's and its statistics'; of the output and the statistics.
    type Shapes<'s> = (&'s [[&'s [usize]; 2]], &'s [usize], &'s [usize]);
    type Wanted<'s> = &'s dyn Fn(&Error) -> bool;
    let right = [out, statistics];
    let wrong: [(Shapes<'_>, Wanted<'_>); 8] = [
        ((&[], out, statistics), &zero),
        (
            (&[right, [&[2, 5, 3, 3], statistics]], out, statistics),
            &shape,
        ),
        (
            (&[right, [&[5, 3, 4], statistics]], out, statistics),
            &shape,
        ),
        ((&[right, [out, &[2, 5, 3, 2]]], out, statistics), &shape),
        ((&[[out, &[2, 3, 5, 1]], right], out, statistics), &shape),
        ((&[right], &[2, 5, 4, 3], statistics), &shape),
        ((&[right], out, &[2, 3, 5]), &shape),
        ((&[right], &[30, 4], statistics), &rank),
    ];
    let (zeros, sums) = ([T::default(); 120], [T::Acc::default(); 120]);
    for ((parts, out, statistics), wanted) in wrong {
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let mut views: Vec<Partial<'_, Host, T>> = Vec::new();
        for [out, statistics] in parts {
            views.push(Partial {
                out: HostView::new(&zeros[..count(out)], out)?,
                statistics: HostView::new(&sums[..count(statistics)], statistics)?,
            });
        }
        let mut to = vec![T::from_f64(7.0); count(out)];
        let mut merged = vec![T::Acc::default(); count(statistics)];
        let result = backend.merge(Merge {
            parts: &views,
            out: HostViewMut::new(&mut to, out)?,
            statistics: Some(HostViewMut::new(&mut merged, statistics)?),
        });
        if !result.as_ref().is_err_and(wanted) || to.iter().any(|x| x.to_f64() != 7.0) {
            return Err(Broken(format!("{parts:?} into {out:?} gave {result:?}")));
        }
    }
    Ok(())
}
