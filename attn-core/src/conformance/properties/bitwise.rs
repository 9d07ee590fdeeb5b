//! Results that do not depend on what is computed beside them, where they lie, or what the scratch held.

mod backward;
mod few;
mod heads;
mod packed;
mod parts;
mod together;

use super::super::arrays::{Placed, written_outside};
use super::super::cases::Placement;
use super::super::data::Numbers;
use super::super::verdict::Failure;
use super::{Broken, OnHost, run};
use crate::dtype::Element;
use crate::error::Error;
use crate::layout::{Dims, Layout};
use crate::position::Causal;
use crate::projection::{DenseKernel, Projection, RowOrder};
use crate::request::Attention;
use crate::view::{Host, HostView, HostViewMut};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;

/// Runs every check of this file.
pub(in super::super) fn bitwise<T: Element, B: OnHost<T>>(backend: &B) -> Result<usize, Failure> {
    run(
        backend,
        &[
            (
                "queries alone and together",
                queries_alone_and_together::<T, B>,
            ),
            (
                "few queries alone and among others",
                few::alone_and_among_others::<T, B>,
            ),
            ("rows alone and together", rows_alone_and_together::<T, B>),
            ("packed and plain", packed::packed_and_plain::<T, B>),
            (
                "packed from between gaps",
                packed::from_between_gaps::<T, B>,
            ),
            ("dense layers together", together::one_by_one::<T, B>),
            ("output in heads", heads::output::<T, B>),
            ("outputs in heads together", heads::outputs::<T, B>),
            ("gradient of an output in heads", heads::gradient::<T, B>),
            ("attention into gaps", attention_into_gaps::<T, B>),
            ("projection between gaps", projection_between_gaps::<T, B>),
            ("layer norm between gaps", norm_between_gaps::<T, B>),
            (
                "sequences alone and together",
                parts::sequences_alone_and_together::<T, B>,
            ),
            ("grouped and repeated", parts::grouped_and_repeated::<T, B>),
            ("caches and arrays", parts::caches_and_arrays::<T, B>),
            ("scratch of attention", attend_scratch::<T, B>),
            ("scratch of a projection", project_scratch::<T, B>),
            ("scratch of a packed projection", packed::scratch::<T, B>),
            (
                "scratch of dense layers together",
                together::scratch::<T, B>,
            ),
            ("scratch of gradients", backward::attend_scratch::<T, B>),
            ("gradients into gaps", backward::attention_into_gaps::<T, B>),
            (
                "with and without statistics",
                backward::with_and_without_statistics::<T, B>,
            ),
            (
                "scratch of a projection's gradients",
                backward::project_scratch::<T, B>,
            ),
        ],
    )
}

fn same<T: Element>(left: &[T], right: &[T]) -> Result<(), Broken> {
    if left.len() != right.len() {
        let (left, right) = (left.len(), right.len());
        return Err(Broken(format!(
            "{left} elements one way and {right} the other"
        )));
    }
    let differ = |(a, b): (&T, &T)| bytemuck::bytes_of(a) != bytemuck::bytes_of(b);
    match left.iter().zip(right).position(differ) {
        None => Ok(()),
        Some(index) => {
            let (a, b) = (left[index].to_f64(), right[index].to_f64());
            Err(Broken(format!(
                "element {index} is {a:e} one way and {b:e} the other"
            )))
        }
    }
}

/// The elements of a buffer that `layout` names, row-major; all others must still be NaN.
fn elements_between_gaps<T: Element>(buffer: &[T], layout: &Layout) -> Result<Vec<T>, Broken> {
    let rank = layout.shape().rank();
    let elements = (0..layout.elements())
        .map(|n| buffer[layout.base(rank, n)])
        .collect();
    match written_outside(buffer, layout) {
        None => Ok(elements),
        Some(index) => Err(Broken(format!(
            "element {index} of the buffer lies outside the output and was written"
        ))),
    }
}

/// Says in which case a property is broken.
fn in_case<R>(case: impl Debug, result: Result<R, Broken>) -> Result<R, Broken> {
    result.map_err(|Broken(what)| Broken(format!("{case:?}: {what}")))
}

/// Queries, keys and values, each `[keys, heads, depth]`.
struct Cache<T> {
    keys: usize,
    heads: usize,
    depth: usize,
    arrays: [Vec<T>; 3],
}

impl<T: Element> Cache<T> {
    fn new(name: &str, keys: usize, heads: usize, depth: usize) -> Self {
        let mut numbers = Numbers::new(name);
        let arrays = core::array::from_fn(|_| numbers.elements(keys * heads * depth, 1.0));
        Self {
            keys,
            heads,
            depth,
            arrays,
        }
    }

    /// Attention of the queries `first..first + count`, each over the keys up to its own place.
    fn attend<B: OnHost<T>>(
        &self,
        backend: &B,
        first: usize,
        count: usize,
    ) -> Result<Vec<T>, Error> {
        let [q, k, v] = &self.arrays;
        let row = self.heads * self.depth;
        let shape = [count, self.heads, self.depth];
        let whole = [self.keys, self.heads, self.depth];
        let call = Attention::new(
            HostView::new(&q[first * row..(first + count) * row], &shape)?,
            HostView::new(k, &whole)?,
            HostView::new(v, &whole)?,
        )
        .with_causal(Some(Causal::offset(first as isize)));
        let mut scratch = vec![T::Acc::default(); backend.attend_scratch(&call.shape()?)];
        let mut out = vec![T::default(); count * row];
        backend.attend(call, HostViewMut::new(&mut out, &shape)?, &mut scratch)?;
        Ok(out)
    }
}

fn queries_alone_and_together<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let cache = Cache::<T>::new("queries alone and together", 150, 2, 17);
    let together = cache.attend(backend, 0, cache.keys)?;
    for cut in [1, 7, 64] {
        let mut parts = Vec::new();
        for first in (0..cache.keys).step_by(cut) {
            parts.extend(cache.attend(backend, first, cut.min(cache.keys - first))?);
        }
        same(&together, &parts)?;
    }
    Ok(())
}

/// A dense layer's arrays.
struct Dense<T> {
    features: usize,
    outputs: usize,
    input: Vec<T>,
    kernel: Vec<T>,
    bias: Vec<T>,
}

impl<T: Element> Dense<T> {
    fn new(name: &str, rows: usize, features: usize, outputs: usize) -> Self {
        let mut numbers = Numbers::new(name);
        Self {
            features,
            outputs,
            input: numbers.elements(rows * features, 1.0),
            kernel: numbers.elements(features * outputs, 1.0),
            bias: numbers.elements(outputs, 1.0),
        }
    }

    /// The kernel as it lies.
    fn kernel(&self) -> Result<HostView<'_, T>, Error> {
        HostView::new(&self.kernel, &[self.features, self.outputs])
    }

    fn call<'a>(
        &'a self,
        input: HostView<'a, T>,
        kernel: DenseKernel<'a, Host, T>,
    ) -> Result<Projection<'a, Host, T>, Error> {
        Ok(Projection {
            input,
            kernel,
            bias: Some(HostView::new(&self.bias, &[self.outputs])?),
            row_order: RowOrder::Fixed,
        })
    }

    fn project<B: OnHost<T>>(
        &self,
        backend: &B,
        input: HostView<'_, T>,
        out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let call = self.call(input, self.kernel()?.into())?;
        backend.project(&call, out, scratch)
    }

    fn scratch<B: OnHost<T>>(&self, backend: &B, rows: usize, fill: f64) -> Vec<T::Acc> {
        let count = backend.project_scratch(rows, self.features, self.outputs);
        vec![T::Acc::from_f64(fill); count]
    }

    /// The rows `first..first + count`.
    fn rows<B: OnHost<T>>(&self, backend: &B, first: usize, count: usize) -> Result<Vec<T>, Error> {
        let part = &self.input[first * self.features..(first + count) * self.features];
        let mut out = vec![T::default(); count * self.outputs];
        self.project(
            backend,
            HostView::new(part, &[count, self.features])?,
            HostViewMut::new(&mut out, &[count, self.outputs])?,
            &mut self.scratch(backend, count, 0.0),
        )?;
        Ok(out)
    }
}

fn rows_alone_and_together<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    const ROWS: usize = 70;
    let dense = Dense::<T>::new("rows alone and together", ROWS, 100, 77);
    let together = dense.rows(backend, 0, ROWS)?;
    for cut in [1, 2, 5, 49] {
        let mut parts = Vec::new();
        for first in (0..ROWS).step_by(cut) {
            parts.extend(dense.rows(backend, first, cut.min(ROWS - first))?);
        }
        same(&together, &parts)?;
    }
    Ok(())
}

fn attention_into_gaps<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let size = [19, 3, 9];
    let mut numbers = Numbers::new("attention into gaps");
    let mut placed = || {
        Placed::new(Placement::Contiguous, &[2], size, || {
            T::from_f64(numbers.normal())
        })
    };
    let (q, k, v) = (placed()?, placed()?, placed()?);
    let mut dense: Option<Vec<T>> = None;
    for placement in [
        Placement::Contiguous,
        Placement::HeadsMajor,
        Placement::Gaps,
        Placement::Transposed,
    ] {
        let call = Attention::new(q.view()?, k.view()?, v.view()?);
        let mut scratch = vec![T::Acc::default(); backend.attend_scratch(&call.shape()?)];
        let mut out = Placed::new(placement, &[2], size, T::default)?;
        backend.attend(call, out.view_mut()?, &mut scratch)?;
        let elements = elements_between_gaps(&out.buffer, &out.layout)?;
        same(dense.get_or_insert_with(|| elements.clone()), &elements)?;
    }
    Ok(())
}

/// `[2, rows, columns]` whose rows lie further apart than they are long, and NaN between them.
fn with_gaps<T: Element>(
    rows: usize,
    columns: usize,
    elements: &[T],
) -> Result<(Vec<T>, Layout), Error> {
    let (row, offset) = (columns + 3, 2);
    let matrix = rows * row + 1;
    let shape = Dims::new(&[2, rows, columns])?;
    let layout = Layout::strided(offset, shape, &[matrix, row, 1])?;
    let mut buffer = vec![T::from_f64(f64::NAN); offset + 2 * matrix];
    for (n, &element) in elements.iter().enumerate() {
        buffer[layout.base(3, n)] = element;
    }
    Ok((buffer, layout))
}

fn projection_between_gaps<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    const ROWS: usize = 26;
    let dense = Dense::<T>::new("projection between gaps", 2 * ROWS, 33, 40);
    let (input, input_layout) = with_gaps(ROWS, dense.features, &dense.input)?;
    let (mut out, out_layout) = with_gaps::<T>(ROWS, dense.outputs, &[])?;
    dense.project(
        backend,
        HostView::with_layout(&input, input_layout)?,
        HostViewMut::with_layout(&mut out, out_layout)?,
        &mut dense.scratch(backend, 2 * ROWS, 0.0),
    )?;
    let expected = dense.rows(backend, 0, 2 * ROWS)?;
    same(&expected, &elements_between_gaps(&out, &out_layout)?)
}

fn norm_between_gaps<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    const EPSILON: f64 = 1e-6;
    let (rows, depth) = (5, 37);
    let mut numbers = Numbers::new("layer norm between gaps");
    let mut expected: Vec<T> = numbers.elements(2 * rows * depth, 1.0);
    let scale: Vec<T::Acc> = numbers.elements(depth, 1.0);
    let scale = HostView::new(&scale, &[depth])?;
    let (mut x, layout) = with_gaps(rows, depth, &expected)?;
    backend.normalize(HostViewMut::with_layout(&mut x, layout)?, scale, EPSILON)?;
    let together = HostViewMut::new(&mut expected, &[2 * rows, depth])?;
    backend.normalize(together, scale, EPSILON)?;
    same(&expected, &elements_between_gaps(&x, &layout)?)
}

/// Runs `call` with scratches of the `needed` length and longer, of zeros and of NaN, which all must give the same; then with one
/// too short by one element, which must be refused before anything is written.
fn exact_scratch<T: Element>(
    needed: usize,
    outputs: usize,
    mut call: impl FnMut(&mut [T], &mut [T::Acc]) -> Result<(), Error>,
) -> Result<(), Broken> {
    let mut first: Option<Vec<T>> = None;
    for (length, fill) in [(needed, 0.0), (needed, f64::NAN), (needed + 9, f64::NAN)] {
        let mut out = vec![T::default(); outputs];
        call(&mut out, &mut vec![T::Acc::from_f64(fill); length])?;
        same(first.get_or_insert_with(|| out.clone()), &out)?;
    }
    let Some(short) = needed.checked_sub(1) else {
        return Ok(());
    };
    let untouched = T::from_f64(7.0);
    let mut out = vec![untouched; outputs];
    let result = call(&mut out, &mut vec![T::Acc::default(); short]);
    if !matches!(result, Err(Error::Scratch { got, wanted, .. }) if got == short && wanted == needed)
    {
        return Err(Broken(format!(
            "a scratch too short by one gave {result:?}"
        )));
    }
    match super::first_not(untouched, &out) {
        None => Ok(()),
        Some(index) => Err(Broken(format!(
            "output {index} was written before the error"
        ))),
    }
}

fn attend_scratch<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let shape = [70, 2, 24];
    let x: Vec<T> = Numbers::new("scratch of attention").elements(shape.iter().product(), 1.0);
    let view = HostView::new(&x, &shape)?;
    let needed = backend.attend_scratch(&Attention::new(view, view, view).shape()?);
    exact_scratch::<T>(needed, x.len(), |out, scratch| {
        let out = HostViewMut::new(out, &shape)?;
        backend.attend(Attention::new(view, view, view), out, scratch)
    })
}

fn project_scratch<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for rows in [1, 50] {
        let dense = Dense::<T>::new("scratch of a projection", rows, 65, 33);
        let input = HostView::new(&dense.input, &[rows, dense.features])?;
        let needed = backend.project_scratch(rows, dense.features, dense.outputs);
        exact_scratch::<T>(needed, rows * dense.outputs, |out, scratch| {
            let out = HostViewMut::new(out, &[rows, dense.outputs])?;
            dense.project(backend, input, out, scratch)
        })?;
    }
    Ok(())
}
