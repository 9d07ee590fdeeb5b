//! Gradients of layer norm beside the oracle.

use super::super::Maths;
use super::super::arrays::Placed;
use super::super::cases::Placement;
use super::super::data::Numbers;
use super::super::oracle::backward as oracle;
use super::super::oracle::sum;
use super::super::plain::backward as plain;
use super::super::plain::round;
use super::super::properties::{Broken, OnHost};
use super::super::verdict::{Comparison, Failure, Outcome, Place, Report};
use super::{DEPTHS, EPSILON, KINDS, Kind, ROWS, rows};
use crate::backward::NormalizeBackward;
use crate::dtype::Element;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::iter::zip;

/// What differs from case to case.
struct Case {
    depth: usize,
    kind: Kind,
    placement: Placement,
    d_scale: bool,
}

/// Gradients of layer norm of rows around 0, far from 0 and of next to no variance, with and without that of the scale.
pub(in super::super) fn normalize<T: Element, B: OnHost<T>>(
    backend: &B,
    maths: &Maths,
) -> Result<Report, Failure> {
    let mut report = Report::default();
    for depth in DEPTHS {
        for kind in KINDS {
            for (placement, d_scale) in [
                (Placement::Contiguous, true),
                (Placement::Contiguous, false),
                (Placement::HeadsMajor, true),
            ] {
                let case = Case {
                    depth,
                    kind,
                    placement,
                    d_scale,
                };
                report.add(Outcome::Right(case.share::<T, B>(backend, maths)?));
            }
        }
    }
    Ok(report)
}

impl Case {
    /// The largest error as a part of what is allowed.
    fn share<T: Element, B: OnHost<T>>(&self, backend: &B, maths: &Maths) -> Result<f64, Failure> {
        let Self {
            depth,
            kind,
            placement,
            d_scale,
        } = self;
        let name = format!("gradient of normalize {depth} {kind:?} {placement:?} scale {d_scale}");
        let mut comparisons = [Comparison::default(), Comparison::default()];
        self.compare::<T, B>(backend, &name, maths, &mut comparisons)
            .map_err(|Broken(what)| Failure::new(&*name, what))?;
        let [d_x, d_scale] = comparisons;
        let d_x = d_x.verdict::<T>(&name, "the gradient of x")?;
        Ok(d_x.max(d_scale.verdict::<T>(&name, "d_scale")?))
    }

    fn compare<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        name: &str,
        maths: &Maths,
        [d_x, d_scale]: &mut [Comparison; 2],
    ) -> Result<(), Broken> {
        const HEADS: usize = 4;
        let (depth, size) = (self.depth, [ROWS / HEADS, HEADS, self.depth]);
        let mut numbers = Numbers::new(name);
        let mut x = rows::<T>(depth, self.kind, &mut numbers).into_iter();
        let x = Placed::new(self.placement, &[], size, || x.next().unwrap_or_default())?;
        let mut gradient =
            Placed::new(self.placement, &[], size, || T::from_f64(numbers.normal()))?;
        let before = read(&gradient, depth);
        let next = || T::Acc::from_f64(1.0 + numbers.normal() / 4.0);
        let nan = T::Acc::from_f64(f64::NAN);
        let scale = Placed::tensor(Placement::Contiguous, &[depth], nan, next)?;
        let mut got_scale = Placed::tensor(Placement::Contiguous, &[depth], nan, || nan)?;
        backend.normalize_backward(NormalizeBackward {
            x: x.view()?,
            scale: scale.view()?,
            epsilon: EPSILON,
            gradient: gradient.view_mut()?,
            d_scale: match self.d_scale {
                true => Some(got_scale.view_mut()?),
                false => None,
            },
        })?;
        let (x, got) = (read(&x, depth), read(&gradient, depth));
        let scale: Vec<f64> = scale.buffer.iter().map(|x| x.to_f64()).collect();
        let mut shares: Vec<Vec<f64>> = Vec::new();
        let mut plain_scale = vec![0.0; depth];
        for row in 0..ROWS {
            let (exact, share) = oracle::normalize(&x[row], &scale, &before[row], EPSILON, maths);
            let (plainly, plain_share) =
                plain::normalize::<T>(&x[row], &scale, &before[row], EPSILON, maths);
            for column in 0..depth {
                d_x.push(
                    at(row, column),
                    got[row][column],
                    exact[column],
                    plainly[column],
                );
            }
            shares.push(share);
            for (sum, share) in zip(&mut plain_scale, plain_share) {
                *sum = round::<T::Acc>(*sum + share);
            }
        }
        for column in (0..depth).filter(|_| self.d_scale) {
            let truth = sum(shares.iter().map(|share| share[column])).value();
            let got = got_scale.buffer[column].to_f64();
            d_scale.push(at(0, column), got, truth, plain_scale[column]);
        }
        Ok(())
    }
}

fn at(row: usize, column: usize) -> Place {
    Place {
        draw: 0,
        matrix: 0,
        row,
        column,
    }
}

/// The rows of `[length, heads, depth]`.
fn read<T: Element>(placed: &Placed<T>, depth: usize) -> Vec<Vec<f64>> {
    let value = |n: usize| placed.buffer[placed.layout.base(3, n)].to_f64();
    (0..ROWS)
        .map(|row| {
            (0..depth)
                .map(|column| value(row * depth + column))
                .collect()
        })
        .collect()
}
