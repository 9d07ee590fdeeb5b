//! Rotary embeddings beside the oracle, and what must hold of them bit for bit.

mod exact;

use super::arrays::Placed;
use super::cases::Placement;
use super::data::Numbers;
use super::oracle::rotary::{Angles, Precision, turned};
use super::plain;
use super::properties::{Broken, OnHost};
use super::verdict::{Comparison, Failure, Place, Report};
use crate::dtype::Element;
use crate::error::Error;
use crate::rotary::{MAX_POSITION, Pairing, Positions, Rotary, RotaryScaling, RotaryTable, Rotate};
use crate::view::Flat;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const HEADS: usize = 3;
const BATCH: usize = 2;
const LENGTH: usize = 7;

/// Where the rows of a case lie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rows {
    From(usize),
    /// Ids anywhere below this one.
    Ids(usize),
}

/// What differs from case to case.
#[derive(Debug, Clone, Copy)]
struct Case {
    rotary: Rotary,
    depth: usize,
    rows: Rows,
    /// Whether cosines and sines are given.
    table: bool,
    inverse: bool,
    placement: Placement,
}

/// Depths and parts of them, positions up to the last, every scaling, tables, both directions; then what must hold exactly.
pub(super) fn rotate<T: Element, B: OnHost<T>>(backend: &B) -> Result<Report, Failure> {
    let mut report = Report::default();
    for case in cases() {
        match case.share::<T, B>(backend) {
            Ok(Some(share)) => report.add(share),
            Ok(None) => report.refuse(),
            Err(failure) => return Err(failure),
        }
    }
    if report.refused == 0 {
        report.cases += exact::run::<T, B>(backend)?;
    } else if report.refused < report.cases {
        return Err(Failure::new(
            "rotate",
            "some cases are refused, others are not",
        ));
    }
    Ok(report)
}

const SCALINGS: [RotaryScaling; 6] = [
    RotaryScaling::Linear { factor: 2.5 },
    RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    },
    RotaryScaling::yarn(4.0, 4096),
    RotaryScaling::Yarn {
        factor: 40.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position: 4096,
        attention_factor: Some(1.25),
        truncate: false,
    },
    // Both ends of the ramp are cut off at the row's own.
    RotaryScaling::yarn(16.0, 1),
    RotaryScaling::yarn(1.0, 1_000_000),
];

fn cases() -> Vec<Case> {
    let plain = Case {
        rotary: Rotary::new(),
        depth: 64,
        rows: Rows::From(0),
        table: false,
        inverse: false,
        placement: Placement::Contiguous,
    };
    let mut cases = Vec::new();
    for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
        let rotary = Rotary {
            pairing,
            ..Rotary::new()
        };
        let depths = [2, 4, 6, 10, 16, 34, 64, 66, 128, 130, 256];
        cases.extend(depths.map(|depth| Case {
            rotary,
            depth,
            ..plain
        }));
        for (part, depth) in [(0, 6), (2, 3), (4, 10), (32, 80), (64, 65)] {
            cases.push(Case {
                rotary: Rotary {
                    rotary_dim: Some(part),
                    ..rotary
                },
                depth,
                placement: Placement::HeadsMajor,
                ..plain
            });
        }
        for rows in [
            Rows::From(131_071),
            Rows::From(1_000_000),
            Rows::From(MAX_POSITION + 1 - LENGTH),
            Rows::Ids(1_000_000),
        ] {
            for (table, placement) in [(false, Placement::Contiguous), (false, Placement::Gaps)] {
                cases.push(Case {
                    rotary,
                    rows,
                    table,
                    placement,
                    ..plain
                });
            }
        }
        for rows in [Rows::From(5), Rows::Ids(40)] {
            for inverse in [false, true] {
                for (table, depth) in [(true, 64), (true, 130), (false, 64)] {
                    cases.push(Case {
                        rotary,
                        depth,
                        rows,
                        table,
                        inverse,
                        placement: Placement::Gaps,
                    });
                }
            }
        }
    }
    for scaling in SCALINGS {
        for rows in [Rows::From(0), Rows::Ids(100_000)] {
            cases.push(Case {
                rotary: Rotary {
                    base: 500_000.0,
                    scaling,
                    ..Rotary::new()
                },
                depth: 128,
                rows,
                ..plain
            });
        }
    }
    cases
}

/// A call's arrays.
struct Arrays<T: Element> {
    x: Placed<T>,
    ids: Vec<i32>,
    cos: Vec<T::Acc>,
    sin: Vec<T::Acc>,
}

impl Case {
    fn name(&self) -> String {
        format!("rotate {self:?}")
    }

    /// The largest error as a part of what is allowed; `None` if the backend does not rotate.
    fn share<T: Element, B: OnHost<T>>(&self, backend: &B) -> Result<Option<f64>, Failure> {
        let name = self.name();
        let mut comparison = Comparison::default();
        match self.compare::<T, B>(backend, &name, &mut comparison) {
            Ok(true) => comparison.verdict::<T>(&name, "x").map(Some),
            Ok(false) => Ok(None),
            Err(Broken(what)) => Err(Failure::new(name, what)),
        }
    }

    fn pairs(&self) -> usize {
        self.rotary.rotary_dim.unwrap_or(self.depth) / 2
    }

    fn arrays<T: Element>(&self, name: &str) -> Result<Arrays<T>, Error> {
        let mut numbers = Numbers::new(name);
        let shape = [LENGTH, HEADS, self.depth];
        let x = Placed::new(self.placement, &[BATCH], shape, || {
            T::from_f64(numbers.normal())
        })?;
        let ids = match self.rows {
            Rows::From(_) => Vec::new(),
            Rows::Ids(end) => (0..BATCH * LENGTH)
                .map(|_| (numbers.bits() % end as u64) as i32)
                .collect(),
        };
        let entries = match self.table {
            true => 40 * self.pairs(),
            false => 0,
        };
        Ok(Arrays {
            x,
            ids,
            cos: numbers.elements(entries, 1.0),
            sin: numbers.elements(entries, 1.0),
        })
    }

    fn call<'a, T: Element>(
        &self,
        arrays: &'a mut Arrays<T>,
    ) -> Result<Rotate<'a, crate::Host, T>, Error> {
        Ok(Rotate {
            x: arrays.x.view_mut()?,
            rotary: self.rotary,
            positions: match self.rows {
                Rows::From(first) => Positions::From(first),
                Rows::Ids(_) => Positions::Ids(Flat::new(&*arrays.ids)),
            },
            table: self.table.then_some(RotaryTable {
                cos: Flat::new(&*arrays.cos),
                sin: Flat::new(&*arrays.sin),
            }),
            inverse: self.inverse,
        })
    }

    fn compare<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        name: &str,
        comparison: &mut Comparison,
    ) -> Result<bool, Broken> {
        let mut arrays = self.arrays::<T>(name)?;
        let before = arrays.x.buffer.clone();
        match backend.rotate(self.call(&mut arrays)?) {
            Err(Error::Unsupported { .. }) => return Ok(false),
            result => result?,
        }
        if let Some(index) = arrays.x.written_outside() {
            return Err(Broken(format!("element {index} is not the array's")));
        }
        let pairs = self.pairs();
        let [exact, rounded] = [Precision::Exact, Precision::Rounded]
            .map(|precision| Angles::new(&self.rotary, pairs, precision));
        let layout = arrays.x.layout;
        for row in 0..BATCH * LENGTH {
            let position = match self.rows {
                Rows::From(first) => first + row % LENGTH,
                Rows::Ids(_) => arrays.ids[row] as usize,
            };
            let turns: Vec<[[f64; 2]; 2]> = (0..pairs)
                .map(|pair| {
                    let given = |table: &[T::Acc]| table[position * pairs + pair].to_f64();
                    let both = match self.table {
                        true => [[given(&arrays.cos), given(&arrays.sin)]; 2],
                        false => [
                            exact.at(pair, position),
                            rounded.at(pair, position).map(plain::round::<T::Acc>),
                        ],
                    };
                    let sign = if self.inverse { -1.0 } else { 1.0 };
                    both.map(|[cos, sin]| [cos, sign * sin])
                })
                .collect();
            for head in 0..HEADS {
                let start = layout.base(3, row * HEADS + head);
                let got = &arrays.x.buffer[start..start + self.depth];
                self.compare_row(&before[start..], got, &turns, [row, head], comparison)?;
            }
        }
        Ok(true)
    }

    fn compare_row<T: Element>(
        &self,
        before: &[T],
        got: &[T],
        turns: &[[[f64; 2]; 2]],
        [row, head]: [usize; 2],
        comparison: &mut Comparison,
    ) -> Result<(), Broken> {
        let pairs = turns.len();
        for (pair, [exact, rounded]) in turns.iter().enumerate() {
            let columns = match self.rotary.pairing {
                Pairing::HalfSplit => [pair, pair + pairs],
                Pairing::Interleaved => [2 * pair, 2 * pair + 1],
            };
            let both = columns.map(|column| before[column].to_f64());
            let (truths, plain) = (turned(both, *exact), plain::turned::<T>(both, *rounded));
            for ((column, truth), plain) in columns.into_iter().zip(truths).zip(plain) {
                let place = Place {
                    draw: 0,
                    matrix: head,
                    row,
                    column,
                };
                comparison.push(place, got[column].to_f64(), truth, plain);
            }
        }
        // What does not turn passes as it is.
        let rest = 2 * pairs..self.depth;
        match bytemuck::cast_slice::<T, u8>(&got[rest.clone()])
            == bytemuck::cast_slice::<T, u8>(&before[rest])
        {
            true => Ok(()),
            false => Err(Broken(format!("row {row} changed where it does not turn"))),
        }
    }
}
