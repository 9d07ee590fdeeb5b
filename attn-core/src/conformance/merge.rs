//! Attention over parts of the keys, put together, beside the oracle.

mod exact;

use super::arrays::Placed;
use super::cases::Placement;
use super::data::Numbers;
use super::oracle::{dot, exponential, sum};
use super::properties::{Broken, OnHost};
use super::verdict::{Comparison, Failure, Place, Report};
use super::{Maths, plain};
use crate::dtype::Element;
use crate::error::Error;
use crate::merge::{Merge, Partial};
use crate::view::Host;
use alloc::format;
use alloc::vec::Vec;

const BATCH: usize = 2;
/// So many rows that the largest error of plain arithmetic is known for sums of every size.
const LENGTH: usize = 67;
const HEADS: usize = 3;

/// What rows have seen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Some keys each.
    Seen,
    /// Now and then none, and then what the output holds must not matter.
    Empty,
    /// Now and then Flax's fill value for all.
    Filled,
}

/// What differs from case to case.
#[derive(Debug, Clone, Copy)]
struct Case {
    parts: usize,
    value_depth: usize,
    /// How far the largest scores of parts are apart.
    size: f64,
    kind: Kind,
    statistics: bool,
    placement: Placement,
}

/// Parts of all numbers and depths, near and far apart, empty and filled; then what must hold exactly.
pub(super) fn merge<T: Element, B: OnHost<T>>(
    backend: &B,
    maths: &Maths,
) -> Result<Report, Failure> {
    let mut report = Report::default();
    for case in cases() {
        match case.share::<T, B>(backend, maths)? {
            Some(share) => report.add(share),
            None => report.refuse(),
        }
    }
    if report.refused == 0 {
        report.cases += exact::run::<T, B>(backend)?;
    } else if report.refused < report.cases {
        return Err(Failure::new(
            "merge",
            "some cases are refused, others are not",
        ));
    }
    Ok(report)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for parts in [1, 2, 3, 5, 17] {
        for kind in [Kind::Seen, Kind::Empty, Kind::Filled] {
            for (value_depth, size, placement) in [
                (1, 1.0, Placement::Contiguous),
                (3, 4.0, Placement::Gaps),
                (64, 1.0, Placement::HeadsMajor),
                (65, 30.0, Placement::Contiguous),
                (130, 0.1, Placement::Gaps),
            ] {
                cases.push(Case {
                    parts,
                    value_depth,
                    size,
                    kind,
                    statistics: value_depth != 65,
                    placement,
                });
            }
        }
    }
    cases
}

/// A part's arrays.
struct Arrays<T: Element> {
    out: Placed<T>,
    statistics: Placed<T::Acc>,
}

impl Case {
    fn share<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        maths: &Maths,
    ) -> Result<Option<f64>, Failure> {
        let name = format!("merge {self:?}");
        let mut comparisons = [Comparison::default(), Comparison::default()];
        let compared = self.compare::<T, B>(backend, &name, maths, &mut comparisons);
        match compared {
            Ok(true) => {
                let [out, sums] = comparisons;
                let out = out.verdict::<T>(&name, "the output")?;
                Ok(Some(out.max(sums.verdict::<T::Acc>(&name, "a sum")?)))
            }
            Ok(false) => Ok(None),
            Err(Broken(what)) => Err(Failure::new(name, what)),
        }
    }

    fn arrays<T: Element>(&self, numbers: &mut Numbers) -> Result<Arrays<T>, Error> {
        let rows = BATCH * HEADS * LENGTH;
        let statistics: Vec<[f64; 2]> = (0..rows)
            .map(|_| match (self.kind, numbers.uniform() < 0.3) {
                (Kind::Empty, true) => [f64::NEG_INFINITY, 0.0],
                (Kind::Filled, true) => [plain::lowest::<T::Acc>(), 7.0],
                _ => [self.size * numbers.normal(), 8.0 + 24.0 * numbers.uniform()],
            })
            .collect();
        let mut entries = statistics.iter().flatten();
        let shape = [BATCH, HEADS, LENGTH, 2];
        let nan = T::Acc::from_f64(f64::NAN);
        let next = || entries.next().map_or(nan, |x| T::Acc::from_f64(*x));
        let mut column = 0;
        let out = Placed::new(
            self.placement,
            &[BATCH],
            [LENGTH, HEADS, self.value_depth],
            || {
                // `column` counts `[batch, length, heads, value_depth]`.
                let row = column / self.value_depth;
                let (head, query) = (row % HEADS, row / HEADS % LENGTH);
                let batch = row / HEADS / LENGTH;
                let seen = statistics[(batch * HEADS + head) * LENGTH + query][1] != 0.0;
                column += 1;
                T::from_f64(if seen { numbers.normal() } else { f64::NAN })
            },
        )?;
        Ok(Arrays {
            out,
            statistics: Placed::tensor(self.placement, &shape, nan, next)?,
        })
    }

    fn compare<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        name: &str,
        maths: &Maths,
        [outs, sums]: &mut [Comparison; 2],
    ) -> Result<bool, Broken> {
        let mut numbers = Numbers::new(name);
        let mut arrays = Vec::new();
        for _ in 0..self.parts {
            arrays.push(self.arrays::<T>(&mut numbers)?);
        }
        let mut parts: Vec<Partial<'_, Host, T>> = Vec::new();
        for Arrays { out, statistics } in &arrays {
            parts.push(Partial {
                out: out.view()?,
                statistics: statistics.view()?,
            });
        }
        let nan = T::Acc::from_f64(f64::NAN);
        let shape = [LENGTH, HEADS, self.value_depth];
        let mut out = Placed::new(self.placement, &[BATCH], shape, || T::from_f64(f64::NAN))?;
        let shape = [BATCH, HEADS, LENGTH, 2];
        let mut merged = Placed::tensor(self.placement, &shape, nan, || nan)?;
        let call = Merge {
            parts: &parts,
            out: out.view_mut()?,
            statistics: match self.statistics {
                true => Some(merged.view_mut()?),
                false => None,
            },
        };
        match backend.merge(call) {
            Err(Error::Unsupported { .. }) => return Ok(false),
            result => result?,
        }
        if let Some(index) = out.written_outside().or(merged.written_outside()) {
            return Err(Broken(format!("element {index} is not the array's")));
        }
        for row in 0..BATCH * HEADS * LENGTH {
            let at = |n| merged.layout.base(4, 2 * row + n);
            let of = |part: &Arrays<T>| {
                [0, 1].map(|n| {
                    let layout = &part.statistics.layout;
                    part.statistics.buffer[layout.base(4, 2 * row + n)].to_f64()
                })
            };
            let statistics: Vec<[f64; 2]> = arrays.iter().map(of).collect();
            let exact = Exact::new(&statistics, maths);
            let (plain_weights, plain_statistics) = plain::merged::<T>(&statistics, maths);
            let place = |column| Place {
                draw: 0,
                matrix: row / LENGTH,
                row: row % LENGTH,
                column,
            };
            if self.statistics {
                let got = [0, 1].map(|n| merged.buffer[at(n)].to_f64());
                if got[0] != exact.largest {
                    return Err(Broken(format!("m of row {row} is {}", got[0])));
                }
                sums.push(place(0), got[1], exact.total, plain_statistics[1]);
            }
            let [batch, head, query] = [row / LENGTH / HEADS, row / LENGTH % HEADS, row % LENGTH];
            let first = ((batch * LENGTH + query) * HEADS + head) * self.value_depth;
            for column in 0..self.value_depth {
                let value =
                    |out: &Placed<T>| out.buffer[out.layout.base(4, first + column)].to_f64();
                let values = || {
                    let seen = arrays.iter().zip(&statistics);
                    seen.map(|(part, [_, l])| if *l == 0.0 { 0.0 } else { value(&part.out) })
                };
                let truth = dot(exact.weights.iter().copied(), values()).value();
                let values: Vec<f64> = values().collect();
                let plainly = plain::dot::<T>(&plain_weights, &values);
                outs.push(place(column), value(&out), truth, plainly);
            }
        }
        Ok(true)
    }
}

/// A row from the definition.
struct Exact {
    weights: Vec<f64>,
    largest: f64,
    total: f64,
}

impl Exact {
    fn new(parts: &[[f64; 2]], maths: &Maths) -> Self {
        let seen = || parts.iter().filter(|[_, l]| *l > 0.0);
        let largest = seen().map(|[m, _]| *m).fold(f64::NEG_INFINITY, f64::max);
        let share = |[m, l]: &[f64; 2]| match *l > 0.0 {
            true => exponential(*m, largest, maths) * l,
            false => 0.0,
        };
        let total = sum(parts.iter().map(share)).value();
        let weight = |part| {
            if total > 0.0 {
                share(part) / total
            } else {
                0.0
            }
        };
        Self {
            weights: parts.iter().map(weight).collect(),
            largest,
            total,
        }
    }
}
