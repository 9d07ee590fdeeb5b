//! Layer norm beside the oracle.

pub(super) mod backward;

use super::data::Numbers;
use super::properties::OnHost;
use super::verdict::{Comparison, Failure, Outcome, Place, Report};
use super::{Maths, oracle, plain};
use crate::dtype::Element;
use crate::error::Result;
use crate::view::{HostView, HostViewMut};
use alloc::format;
use alloc::vec::Vec;

const DEPTHS: [usize; 11] = [1, 2, 3, 5, 8, 16, 31, 64, 65, 130, 256];
const ROWS: usize = 64;
/// Flax's.
const EPSILON: f64 = 1e-6;

/// What rows are like: where they lie, and how far apart their elements.
#[derive(Debug, Clone, Copy)]
struct Kind {
    mean: f64,
    size: f64,
}

const KINDS: [Kind; 4] = [
    Kind {
        mean: 0.0,
        size: 1.0,
    },
    Kind {
        mean: 1.0,
        size: 1.0,
    },
    Kind {
        mean: 8.0,
        size: 1.0,
    },
    Kind {
        mean: 0.0,
        size: 1e-3,
    },
];

/// Layer norm of rows around 0, of rows far from 0, where the fast variance loses digits, and of rows so small that epsilon counts.
pub(super) fn normalize<T: Element, B: OnHost<T>>(
    backend: &B,
    maths: &Maths,
) -> Result<Report, Failure> {
    let mut report = Report::default();
    for depth in DEPTHS {
        for kind in KINDS {
            let name = format!("normalize {depth} {kind:?}");
            let mut comparison = Comparison::default();
            compare::<T, B>(backend, &name, depth, kind, maths, &mut comparison)
                .map_err(|error| Failure::new(&*name, format!("{error}")))?;
            report.add(Outcome::Right(comparison.verdict::<T>(&name, "x")?));
        }
    }
    Ok(report)
}

/// Rows of normal numbers, now and then one with next to no variance.
fn rows<T: Element>(depth: usize, kind: Kind, numbers: &mut Numbers) -> Vec<T> {
    (0..ROWS * depth)
        .map(|_| T::from_f64(kind.mean + kind.size * numbers.normal()))
        .collect()
}

fn compare<T: Element, B: OnHost<T>>(
    backend: &B,
    name: &str,
    depth: usize,
    kind: Kind,
    maths: &Maths,
    comparison: &mut Comparison,
) -> Result<()> {
    let mut numbers = Numbers::new(name);
    let input = rows::<T>(depth, kind, &mut numbers);
    let scale: Vec<T::Acc> = (0..depth)
        .map(|_| T::Acc::from_f64(1.0 + numbers.normal() / 4.0))
        .collect();
    let mut x = input.clone();
    backend.normalize(
        HostViewMut::new(&mut x, &[ROWS, depth])?,
        HostView::new(&scale, &[depth])?,
        EPSILON,
    )?;
    let scale: Vec<f64> = scale.iter().map(|x| x.to_f64()).collect();
    for (row, (input, got)) in input.chunks(depth).zip(x.chunks(depth)).enumerate() {
        let input: Vec<f64> = input.iter().map(|x| x.to_f64()).collect();
        let exact = oracle::normalize(&input, &scale, EPSILON, maths);
        let plainly = plain::normalize::<T>(&input, &scale, EPSILON, maths);
        for column in 0..depth {
            let place = Place {
                draw: 0,
                matrix: 0,
                row,
                column,
            };
            comparison.push(place, got[column].to_f64(), exact[column], plainly[column]);
        }
    }
    Ok(())
}
