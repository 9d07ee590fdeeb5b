//! Gradients of dense layers beside the oracle.

use super::super::arrays::Placed;
use super::super::cases::Placement;
use super::super::data::Numbers;
use super::super::matrix::column;
use super::super::plain::{self, round};
use super::super::properties::{Broken, OnHost};
use super::super::verdict::{Comparison, Failure, Outcome, Place, Report};
use super::super::{draws, oracle};
use crate::backward::ProjectionBackward;
use crate::dtype::Element;
use crate::view::HostViewMut;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Rows, features, outputs.
const SIZES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 130, 33],
    [2, 65, 257],
    [3, 7, 5],
    [5, 16, 16],
    [17, 3, 64],
    [48, 64, 48],
    [49, 130, 65],
    [300, 40, 40],
    [2100, 5, 7],
    [3, 5, 2100],
    [0, 4, 4],
    [4, 0, 4],
    [4, 4, 0],
];

/// Which gradients are wanted.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    input: bool,
    kernel: bool,
    bias: bool,
}

const ALL: Wanted = Wanted {
    input: true,
    kernel: true,
    bias: true,
};

/// Gradients of dense layers of all sizes: all of them, each alone, into what is there, between gaps.
pub(in super::super) fn project<T: Element, B: OnHost<T>>(backend: &B) -> Result<Report, Failure> {
    let none = Wanted {
        input: false,
        kernel: false,
        bias: false,
    };
    let kinds = [
        (ALL, false, Placement::Contiguous),
        (ALL, true, Placement::Contiguous),
        (ALL, true, Placement::Gaps),
        (
            Wanted {
                input: true,
                ..none
            },
            false,
            Placement::Gaps,
        ),
        (
            Wanted {
                kernel: true,
                ..none
            },
            false,
            Placement::Contiguous,
        ),
        (Wanted { bias: true, ..none }, true, Placement::Contiguous),
        (none, false, Placement::Contiguous),
    ];
    let mut report = Report::default();
    for sizes in SIZES {
        for (wanted, accumulate, placement) in kinds {
            let case = Case {
                name: format!("{sizes:?} {wanted:?} accumulate {accumulate} {placement:?}"),
                sizes,
                wanted,
                accumulate,
                placement,
            };
            report.add(Outcome::Right(case.share::<T, B>(backend)?));
        }
    }
    Ok(report)
}

struct Case {
    name: String,
    sizes: [usize; 3],
    wanted: Wanted,
    accumulate: bool,
    placement: Placement,
}

/// One draw. What is not wanted is not there.
struct Arrays<T> {
    input: Placed<T>,
    kernel: Placed<T>,
    d_out: Placed<T>,
    d_input: Option<Placed<T>>,
    d_kernel: Option<Placed<T>>,
    d_bias: Option<Placed<T>>,
}

#[derive(Default)]
struct Comparisons {
    d_input: Comparison,
    d_kernel: Comparison,
    d_bias: Comparison,
}

impl Comparisons {
    fn named(&self) -> [(&Comparison, &'static str); 3] {
        [
            (&self.d_input, "d_input"),
            (&self.d_kernel, "d_kernel"),
            (&self.d_bias, "d_bias"),
        ]
    }

    /// Rows of the gradient that was looked at least.
    fn rows(&self) -> usize {
        let rows = self.named().map(|(comparison, _)| comparison.rows);
        rows.into_iter().filter(|&rows| rows > 0).min().unwrap_or(0)
    }
}

impl Case {
    /// The largest error as a part of what is allowed.
    fn share<T: Element, B: OnHost<T>>(&self, backend: &B) -> Result<f64, Failure> {
        let mut comparisons = Comparisons::default();
        let work = 2 * self.sizes.iter().product::<usize>();
        let mut draw = 0;
        loop {
            self.sit::<T, B>(backend, draw, &mut comparisons)
                .map_err(|Broken(what)| Failure::new(&*self.name, what))?;
            draw += 1;
            if !draws::another(draw, comparisons.rows(), draws::ROWS, work) {
                break;
            }
        }
        let mut worst = 0.0f64;
        for (comparison, name) in comparisons.named() {
            worst = worst.max(comparison.verdict::<T>(&self.name, name)?);
        }
        Ok(worst)
    }

    /// The arrays of a draw. A gradient is NaN before the call unless it is added to.
    fn draw<T: Element>(&self, draw: usize) -> crate::Result<Arrays<T>> {
        let [rows, features, outputs] = self.sizes;
        let mut numbers = Numbers::new(&format!("{} {draw}", self.name));
        let nan = T::from_f64(f64::NAN);
        let mut drawn = |shape: &[usize]| {
            let next = || T::from_f64(numbers.normal());
            Placed::tensor(self.placement, shape, nan, next)
        };
        let empty = |shape: &[usize], wanted: bool| match wanted {
            true => Placed::tensor(self.placement, shape, nan, || nan).map(Some),
            false => Ok(None),
        };
        Ok(Arrays {
            input: drawn(&[rows, features])?,
            kernel: drawn(&[features, outputs])?,
            d_out: drawn(&[rows, outputs])?,
            d_input: match self.wanted.input && self.accumulate {
                true => Some(drawn(&[rows, features])?),
                false => empty(&[rows, features], self.wanted.input)?,
            },
            d_kernel: empty(&[features, outputs], self.wanted.kernel)?,
            d_bias: empty(&[outputs], self.wanted.bias)?,
        })
    }

    fn sit<T: Element, B: OnHost<T>>(
        &self,
        backend: &B,
        draw: usize,
        comparisons: &mut Comparisons,
    ) -> Result<(), Broken> {
        let [rows, features, outputs] = self.sizes;
        let mut arrays = self.draw::<T>(draw)?;
        let before = match &arrays.d_input {
            Some(d_input) if self.accumulate => Some(read(d_input)),
            _ => None,
        };
        let needed = backend.project_backward_scratch(rows, features, outputs);
        let call = ProjectionBackward {
            input: arrays.input.view()?,
            kernel: arrays.kernel.view()?,
            d_out: arrays.d_out.view()?,
            d_input: view_mut(&mut arrays.d_input)?,
            accumulate: self.accumulate,
            d_kernel: view_mut(&mut arrays.d_kernel)?,
            d_bias: view_mut(&mut arrays.d_bias)?,
        };
        backend.project_backward(call, &mut vec![T::Acc::from_f64(f64::NAN); needed])?;
        for (gradient, name) in [
            (&arrays.d_input, "d_input"),
            (&arrays.d_kernel, "d_kernel"),
            (&arrays.d_bias, "d_bias"),
        ] {
            if let Some(index) = gradient.as_ref().and_then(Placed::written_outside) {
                return Err(Broken(format!(
                    "element {index} of the buffer lies outside {name} and was written"
                )));
            }
        }
        self.compare(&arrays, before.as_deref(), draw, comparisons);
        Ok(())
    }

    fn compare<T: Element>(
        &self,
        arrays: &Arrays<T>,
        before: Option<&[Vec<f64>]>,
        draw: usize,
        comparisons: &mut Comparisons,
    ) {
        let [rows, features, outputs] = self.sizes;
        let [input, kernel, d_out] = [&arrays.input, &arrays.kernel, &arrays.d_out].map(read);
        let mut numbers = Numbers::new(&format!("{} sample {draw}", self.name));
        if let Some(d_input) = &arrays.d_input {
            let gradient = |row: usize, feature: usize| {
                let before = before.map_or(0.0, |before| before[row][feature]);
                let sum = plain::dot::<T>(&d_out[row], &kernel[feature]);
                (
                    oracle::affine(&d_out[row], &kernel[feature], before),
                    round::<T>(before + sum),
                )
            };
            let place = (draw, &mut numbers);
            compare(
                &mut comparisons.d_input,
                d_input,
                [rows, features],
                place,
                gradient,
            );
        }
        let ones = vec![1.0; rows];
        let column_of = |array: &[Vec<f64>], at| -> Vec<f64> { column(array, at).collect() };
        let both = |left: &[f64], right: &[f64]| {
            (
                oracle::affine(left, right, 0.0),
                plain::dot::<T>(left, right),
            )
        };
        if let Some(d_kernel) = &arrays.d_kernel {
            let gradient =
                |feature, output| both(&column_of(&input, feature), &column_of(&d_out, output));
            let place = (draw, &mut numbers);
            compare(
                &mut comparisons.d_kernel,
                d_kernel,
                [features, outputs],
                place,
                gradient,
            );
        }
        if let Some(d_bias) = &arrays.d_bias {
            let gradient = |_, output| both(&ones, &column_of(&d_out, output));
            let place = (draw, &mut numbers);
            compare(
                &mut comparisons.d_bias,
                d_bias,
                [1, outputs],
                place,
                gradient,
            );
        }
    }
}

/// Compares some rows and columns; `gradient` gives the truth and what plain arithmetic gives.
fn compare<T: Element>(
    comparison: &mut Comparison,
    got: &Placed<T>,
    [rows, columns]: [usize; 2],
    (draw, numbers): (usize, &mut Numbers),
    gradient: impl Fn(usize, usize) -> (f64, f64),
) {
    let rank = got.layout.shape().rank();
    let sampled = draws::columns(columns, numbers);
    for row in draws::rows(rows, numbers) {
        comparison.rows += 1;
        for &column in &sampled {
            let (truth, plain) = gradient(row, column);
            let place = Place {
                draw,
                matrix: 0,
                row,
                column,
            };
            let got = got.buffer[got.layout.base(rank, row * columns + column)].to_f64();
            comparison.push(place, got, truth, plain);
        }
    }
}

fn view_mut<T: Element>(
    placed: &mut Option<Placed<T>>,
) -> crate::Result<Option<HostViewMut<'_, T>>> {
    placed.as_mut().map(Placed::view_mut).transpose()
}

/// The rows of a matrix.
fn read<T: Element>(placed: &Placed<T>) -> Vec<Vec<f64>> {
    let (layout, shape) = (&placed.layout, placed.layout.shape());
    let at = |row, column| placed.buffer[layout.at(&[row, column])].to_f64();
    (0..shape[0])
        .map(|row| (0..shape[1]).map(|column| at(row, column)).collect())
        .collect()
}
