//! Arguments that do not fit are typed errors, and no output is written.

mod backward;
mod packed;
mod parts;

use super::super::verdict::Failure;
use super::{Broken, OnHost, first_not, run};
use crate::dtype::Element;
use crate::error::{Disagreement, Error};
use crate::mask::Mask;
use crate::projection::{Projection, RowOrder};
use crate::request::Attention;
use crate::view::{Host, HostView, HostViewMut};
use alloc::format;
use alloc::vec;
use core::fmt::Debug;

/// Runs every check of this file.
pub(in super::super) fn errors<T: Element, B: OnHost<T>>(backend: &B) -> Result<usize, Failure> {
    run(
        backend,
        &[
            ("inputs that disagree", inputs_that_disagree::<T, B>),
            ("inputs without a heads axis", inputs_of_two_axes::<T, B>),
            ("a mask that does not fit", masks_that_do_not_fit::<T, B>),
            ("a bias that does not fit", biases_that_do_not_fit::<T, B>),
            (
                "an output that does not fit",
                outputs_that_do_not_fit::<T, B>,
            ),
            ("weights that do not fit", weights_that_do_not_fit::<T, B>),
            (
                "a projection that does not fit",
                projections_that_do_not_fit::<T, B>,
            ),
            (
                "packed kernels of another kind",
                packed::kernels_of_another_kind::<T, B>,
            ),
            (
                "packed kernels that do not fit",
                packed::kernels_that_do_not_fit::<T, B>,
            ),
            (
                "packing that does not fit",
                packed::packing_that_does_not_fit::<T, B>,
            ),
            (
                "dense layers without outputs",
                packed::calls_without_outputs::<T, B>,
            ),
            (
                "a layer norm that does not fit",
                norms_that_do_not_fit::<T, B>,
            ),
            ("statistics that do not fit", backward::statistics::<T, B>),
            (
                "dropout beyond its counters",
                backward::dropout_beyond_its_counters::<T, B>,
            ),
            ("gradients that do not fit", backward::attention::<T, B>),
            (
                "gradients of a projection that do not fit",
                backward::projection::<T, B>,
            ),
            (
                "gradients of a layer norm that do not fit",
                backward::norm::<T, B>,
            ),
            ("lengths that cannot be", parts::lengths::<T, B>),
            (
                "segments that do not fit",
                parts::segments_that_do_not_fit::<T, B>,
            ),
            (
                "blocks that do not fit",
                parts::blocks_that_do_not_fit::<T, B>,
            ),
            (
                "parts of scores that cannot be",
                parts::scores_that_cannot_be::<T, B>,
            ),
            (
                "pages that there are not",
                parts::pages_that_there_are_not::<T, B>,
            ),
            (
                "caches that do not fit",
                parts::caches_that_do_not_fit::<T, B>,
            ),
            (
                "gradients of parts that there are not",
                backward::parts_that_there_are_not::<T, B>,
            ),
        ],
    )
}

/// Elements of the arrays that views are cut from.
const ELEMENTS: usize = 1 << 9;
/// What outputs hold before the call.
const UNTOUCHED: f64 = 7.0;
/// More than a backend needs for arrays so small.
const SCRATCH: usize = 1 << 20;
/// Queries, keys, values and output where another argument is at fault. The weights are `[3, 5, 5]`.
const SHAPE: &[usize] = &[5, 3, 4];
/// What cannot be broadcast to the weights of [`SHAPE`]: axes of other lengths, and an axis more.
const NO_BROADCAST: [&[usize]; 4] = [&[5, 7], &[2], &[3, 3, 5, 5], &[2, 1, 1, 1]];

/// A view of `shape` on the first elements of `data`.
fn view<'a, T: crate::Scalar>(data: &'a [T], shape: &[usize]) -> Result<HostView<'a, T>, Error> {
    HostView::new(&data[..shape.iter().product()], shape)
}

/// The result is the error that `wanted` recognizes, and `out` is as it was.
fn refused<T: Element>(
    what: impl Debug,
    result: &Result<(), Error>,
    wanted: impl Fn(&Error) -> bool,
    out: &[T],
) -> Result<(), Broken> {
    if !result.as_ref().is_err_and(wanted) {
        return Err(Broken(format!("{what:?} gave {result:?}")));
    }
    match first_not(T::from_f64(UNTOUCHED), out) {
        None => Ok(()),
        Some(index) => Err(Broken(format!(
            "{what:?}: output {index} was written before the error"
        ))),
    }
}

/// Runs `call` into an output of shape `out`, which must be refused.
fn attention_refused<T: Element, B: OnHost<T>>(
    backend: &B,
    call: Attention<'_, Host, T>,
    out: &[usize],
    wanted: impl Fn(&Error) -> bool,
    what: impl Debug,
) -> Result<(), Broken> {
    let mut buffer = vec![T::from_f64(UNTOUCHED); out.iter().product()];
    let mut scratch = vec![T::Acc::default(); SCRATCH];
    let result = backend.attend(call, HostViewMut::new(&mut buffer, out)?, &mut scratch);
    refused(what, &result, wanted, &buffer)
}

fn inputs_that_disagree<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    use Disagreement::{BatchDims, Depths, Lengths, NumHeads, Rank};
    let wrong: [(Disagreement, [&[usize]; 3]); 11] = [
        (Rank, [&[2, 3, 4], &[1, 2, 3, 4], &[2, 3, 4]]),
        (Rank, [&[2, 3, 4], &[2, 3, 4], &[1, 2, 3, 4]]),
        (BatchDims, [&[2, 5, 3, 4], &[1, 5, 3, 4], &[2, 5, 3, 4]]),
        (BatchDims, [&[2, 5, 3, 4], &[2, 5, 3, 4], &[1, 5, 3, 4]]),
        (NumHeads, [&[5, 3, 4], &[5, 2, 4], &[5, 3, 4]]),
        (NumHeads, [&[5, 3, 4], &[5, 3, 4], &[5, 1, 4]]),
        (NumHeads, [&[5, 3, 4], &[5, 0, 4], &[5, 0, 4]]),
        (NumHeads, [&[5, 3, 4], &[5, 6, 4], &[5, 6, 4]]),
        (Lengths, [&[5, 3, 4], &[6, 3, 4], &[5, 3, 4]]),
        (Lengths, [&[5, 3, 4], &[5, 3, 4], &[6, 3, 4]]),
        (Depths, [&[5, 3, 4], &[5, 3, 5], &[5, 3, 4]]),
    ];
    let data = [T::default(); ELEMENTS];
    for (expected, [q, k, v]) in wrong {
        let call = Attention::new(view(&data, q)?, view(&data, k)?, view(&data, v)?);
        let wanted =
            |error: &Error| matches!(error, Error::Mismatch { what, .. } if *what == expected);
        attention_refused(backend, call, q, wanted, (q, k, v))?;
    }
    Ok(())
}

fn inputs_of_two_axes<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let shape: &[usize] = &[3, 4];
    let data = [T::default(); 12];
    let x = view(&data, shape)?;
    let wanted = |error: &Error| {
        matches!(
            error,
            Error::Rank {
                argument: "query",
                got: 2,
                ..
            }
        )
    };
    attention_refused(backend, Attention::new(x, x, x), shape, wanted, shape)
}

fn masks_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let (data, bytes) = ([T::default(); ELEMENTS], [1; ELEMENTS]);
    let x = view(&data, SHAPE)?;
    for shape in NO_BROADCAST {
        let mask = Mask::keep(view(&bytes, shape)?);
        let call = Attention::new(x, x, x).with_mask(Some(mask));
        let wanted = |error: &Error| {
            matches!(
                error,
                Error::Broadcast {
                    argument: "mask",
                    ..
                }
            )
        };
        attention_refused(backend, call, SHAPE, wanted, shape)?;
    }
    Ok(())
}

fn biases_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let (data, numbers) = ([T::default(); ELEMENTS], [T::Acc::default(); ELEMENTS]);
    let x = view(&data, SHAPE)?;
    for shape in NO_BROADCAST {
        let call = Attention::new(x, x, x).with_bias(Some(view(&numbers, shape)?));
        let wanted = |error: &Error| {
            matches!(
                error,
                Error::Broadcast {
                    argument: "bias",
                    ..
                }
            )
        };
        attention_refused(backend, call, SHAPE, wanted, shape)?;
    }
    Ok(())
}

fn is_wrong_shape_of(name: &'static str) -> impl Fn(&Error) -> bool {
    move |error| matches!(error, Error::Shape { argument, .. } if *argument == name)
}

fn is_wrong_rank_of(name: &'static str) -> impl Fn(&Error) -> bool {
    move |error| matches!(error, Error::Rank { argument, .. } if *argument == name)
}

fn outputs_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let x = view(&data, SHAPE)?;
    let wrong: [&[usize]; 5] = [&[3, 5, 4], &[5, 3, 5], &[5, 12], &[1, 5, 3, 4], &[5, 3, 0]];
    for shape in wrong {
        let call = Attention::new(x, x, x);
        attention_refused(backend, call, shape, is_wrong_shape_of("output"), shape)?;
    }
    Ok(())
}

fn weights_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let x = view(&data, SHAPE)?;
    let untouched = T::Acc::from_f64(UNTOUCHED);
    let wrong: [&[usize]; 4] = [&[5, 3, 5], &[1, 3, 5, 5], &[15, 5], &[3, 5, 6]];
    for shape in wrong {
        let mut weights = vec![untouched; shape.iter().product()];
        let asked = HostViewMut::new(&mut weights, shape)?;
        let call = Attention::new(x, x, x).with_weights(Some(asked));
        attention_refused(backend, call, SHAPE, is_wrong_shape_of("weights"), shape)?;
        if let Some(index) = first_not(untouched, &weights) {
            return Err(Broken(format!(
                "{shape:?}: weight {index} was written before the error"
            )));
        }
    }
    Ok(())
}

fn projections_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    /// Input, kernel, bias, output.
    type Shapes = [&'static [usize]; 4];
    let data = [T::default(); ELEMENTS];
    let attempt = |shapes: Shapes, wanted: &dyn Fn(&Error) -> bool| {
        let [input, kernel, bias, out] = shapes;
        let call = Projection {
            input: view(&data, input)?,
            kernel: view(&data, kernel)?.into(),
            bias: Some(view(&data, bias)?),
            row_order: RowOrder::Any,
        };
        let mut buffer = vec![T::from_f64(UNTOUCHED); out.iter().product()];
        let mut scratch = vec![T::Acc::default(); SCRATCH];
        let result = backend.project(&call, HostViewMut::new(&mut buffer, out)?, &mut scratch);
        refused(shapes, &result, wanted, &buffer)
    };
    attempt(
        [&[2, 3], &[3, 2, 2], &[4], &[2, 4]],
        &is_wrong_rank_of("kernel"),
    )?;
    attempt([&[], &[3, 4], &[4], &[4]], &is_wrong_rank_of("input"))?;
    attempt(
        [&[2, 4], &[3, 4], &[4], &[2, 4]],
        &is_wrong_shape_of("input"),
    )?;
    attempt(
        [&[2, 3], &[3, 4], &[4], &[4, 2]],
        &is_wrong_shape_of("output"),
    )?;
    attempt([&[2, 3], &[3, 4], &[4], &[8]], &is_wrong_shape_of("output"))?;
    attempt(
        [&[2, 3], &[3, 4], &[1], &[2, 4]],
        &is_wrong_shape_of("bias"),
    )?;
    attempt(
        [&[2, 3], &[3, 4], &[2, 4], &[2, 4]],
        &is_wrong_shape_of("bias"),
    )
}

fn norms_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    const EPSILON: f64 = 1e-6;
    let ones = [T::Acc::from_f64(1.0); ELEMENTS];
    let wrong: [&[usize]; 3] = [&[5], &[1], &[3, 4]];
    for shape in wrong {
        let mut x = [T::from_f64(UNTOUCHED); 12];
        let target = HostViewMut::new(&mut x, &[3, 4])?;
        let result = backend.normalize(target, view(&ones, shape)?, EPSILON);
        refused(shape, &result, is_wrong_shape_of("scale"), &x)?;
    }
    Ok(())
}
