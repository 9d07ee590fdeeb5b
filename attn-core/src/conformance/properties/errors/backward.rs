//! Gradients whose arguments do not fit.

use super::super::{Broken, OnHost, first_not};
use super::{
    ELEMENTS, NO_BROADCAST, SCRATCH, SHAPE, UNTOUCHED, is_wrong_rank_of, is_wrong_shape_of, view,
};
use crate::backward::{AttentionBackward, NormalizeBackward, ProjectionBackward};
use crate::dropout::Dropout;
use crate::dtype::{DType, Element};
use crate::error::Error;
use crate::layout::{Dims, Layout};
use crate::position::Alignment;
use crate::random::{Convention, Counters, Key};
use crate::request::{Attention, Features};
use crate::scores::Relative;
use crate::view::{Flat, FlatMut, Host, HostView, HostViewMut};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;

/// The result is the error that `wanted` recognizes.
fn is_error(
    what: impl Debug,
    result: &Result<(), Error>,
    wanted: impl Fn(&Error) -> bool,
) -> Result<(), Broken> {
    match result.as_ref().is_err_and(wanted) {
        true => Ok(()),
        false => Err(Broken(format!("{what:?} gave {result:?}"))),
    }
}

/// Arrays that a call may write.
struct Outputs<T>(Vec<Vec<T>>);

impl<T: Element> Outputs<T> {
    fn new(count: usize) -> Self {
        Self(vec![vec![T::from_f64(UNTOUCHED); ELEMENTS]; count])
    }

    /// Views of these shapes on the first elements of each.
    fn views<const N: usize>(
        &mut self,
        shapes: [&[usize]; N],
    ) -> Result<[HostViewMut<'_, T>; N], Error> {
        let mut views = Vec::new();
        for (array, shape) in self.0.iter_mut().zip(shapes) {
            let layout = Layout::contiguous(Dims::new(shape)?)?;
            views.push(HostViewMut::with_layout(array, layout)?);
        }
        let count = views.len();
        views.try_into().map_err(|_| Error::Buffer {
            argument: "outputs",
            got: count,
            wanted: N,
        })
    }

    fn untouched(&self, what: impl Debug) -> Result<(), Broken> {
        let touched = |array: &Vec<T>| first_not(T::from_f64(UNTOUCHED), array);
        match self.0.iter().find_map(touched) {
            None => Ok(()),
            Some(index) => Err(Broken(format!(
                "{what:?}: element {index} was written before the error"
            ))),
        }
    }
}

/// Shapes of a call for gradients of attention. Those of the bias and its gradient are left out where there is none.
#[derive(Debug, Clone, Copy)]
struct Shapes<'a> {
    inputs: [&'a [usize]; 3],
    bias: Option<&'a [usize]>,
    out: &'a [usize],
    statistics: &'a [usize],
    d_out: &'a [usize],
    gradients: [&'a [usize]; 3],
    d_bias: Option<&'a [usize]>,
}

/// All fit. The weights are `[3, 5, 5]`.
const FITS: Shapes<'_> = Shapes {
    inputs: [SHAPE; 3],
    bias: Some(&[3, 1, 5]),
    out: SHAPE,
    statistics: &[3, 5, 2],
    d_out: SHAPE,
    gradients: [SHAPE; 3],
    d_bias: Some(&[3, 1, 5]),
};

fn attention_refused<T: Element, B: OnHost<T>>(
    backend: &B,
    shapes: Shapes<'_>,
    dropout: Option<Dropout>,
    wanted: impl Fn(&Error) -> bool,
) -> Result<(), Broken> {
    let (data, numbers) = ([T::default(); ELEMENTS], [T::Acc::default(); ELEMENTS]);
    let [query, key, value] = shapes.inputs;
    let bias = shapes.bias.map(|shape| view(&numbers, shape)).transpose()?;
    let call = Attention::new(view(&data, query)?, view(&data, key)?, view(&data, value)?);
    let (mut outputs, mut d_bias) = (Outputs::<T>::new(3), Outputs::<T::Acc>::new(1));
    let [d_query, d_key, d_value] = outputs.views(shapes.gradients)?;
    let asked = match shapes.d_bias {
        Some(shape) => {
            let [asked] = d_bias.views([shape])?;
            Some(asked)
        }
        None => None,
    };
    let backward = AttentionBackward {
        call: call.with_bias(bias).with_dropout(dropout),
        out: view(&data, shapes.out)?,
        statistics: view(&numbers, shapes.statistics)?,
        d_out: view(&data, shapes.d_out)?,
        d_query,
        d_key,
        d_value,
        d_bias: asked,
        d_relative: None,
        d_sinks: None,
    };
    let mut scratch = vec![T::Acc::default(); SCRATCH];
    let result = backend.attend_backward(backward, &mut scratch);
    is_error(shapes, &result, wanted)?;
    outputs.untouched(shapes)?;
    d_bias.untouched(shapes)
}

pub(super) fn attention<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let other: &[usize] = &[5, 4, 3];
    let [q, k, v] = FITS.gradients;
    let wrong = [
        ("out", Shapes { out: other, ..FITS }),
        (
            "statistics",
            Shapes {
                statistics: &[5, 3, 2],
                ..FITS
            },
        ),
        (
            "statistics",
            Shapes {
                statistics: &[3, 5],
                ..FITS
            },
        ),
        (
            "d_out",
            Shapes {
                d_out: other,
                ..FITS
            },
        ),
        (
            "d_query",
            Shapes {
                gradients: [other, k, v],
                ..FITS
            },
        ),
        (
            "d_key",
            Shapes {
                gradients: [q, &[6, 3, 4], v],
                ..FITS
            },
        ),
        (
            "d_value",
            Shapes {
                gradients: [q, k, &[1, 5, 3, 4]],
                ..FITS
            },
        ),
        (
            "d_bias",
            Shapes {
                d_bias: Some(&[3, 5, 5]),
                ..FITS
            },
        ),
    ];
    for (argument, shapes) in wrong {
        attention_refused::<T, B>(backend, shapes, None, is_wrong_shape_of(argument))?;
    }
    for shape in NO_BROADCAST {
        let shapes = Shapes {
            bias: Some(shape),
            d_bias: Some(shape),
            ..FITS
        };
        let wanted = |error: &Error| {
            matches!(
                error,
                Error::Broadcast {
                    argument: "bias",
                    ..
                }
            )
        };
        attention_refused::<T, B>(backend, shapes, None, wanted)?;
    }
    let alone = |error: &Error| {
        matches!(
            error,
            Error::Together {
                left: "d_bias",
                right: "bias"
            }
        )
    };
    let shapes = Shapes { bias: None, ..FITS };
    attention_refused::<T, B>(backend, shapes, None, alone)?;
    let shapes = Shapes {
        inputs: [SHAPE, &[6, 3, 4], SHAPE],
        ..FITS
    };
    let mismatch = |error: &Error| matches!(error, Error::Mismatch { .. });
    attention_refused::<T, B>(backend, shapes, None, mismatch)
}

/// Gradients of a table and of sinks, without those or of another length.
pub(super) fn parts_that_there_are_not<T: Element, B: OnHost<T>>(
    backend: &B,
) -> Result<(), Broken> {
    let numbers = [T::Acc::default(); 6];
    let relative = Relative {
        table: Flat::new(&numbers[..]),
        zero: 0,
        alignment: Alignment::TopLeft,
    };
    let sinks = Flat::new(&numbers[..3]);
    let together = |part: &'static str| move |error: &Error| matches!(error, Error::Together { left, .. } if *left == part);
    let length = |part: &'static str| move |error: &Error| matches!(error, Error::Buffer { argument, .. } if *argument == part);
    parts_refused::<T, B>(
        backend,
        (None, Some(6)),
        (None, None),
        together("d_relative"),
    )?;
    parts_refused::<T, B>(backend, (None, None), (None, Some(3)), together("d_sinks"))?;
    if backend.backward_features().contains(Features::RELATIVE) {
        let parts = (Some(relative), Some(5));
        parts_refused::<T, B>(backend, parts, (None, None), length("d_relative"))?;
    }
    if backend.backward_features().contains(Features::SINKS) {
        parts_refused::<T, B>(
            backend,
            (None, None),
            (Some(sinks), Some(4)),
            length("d_sinks"),
        )?;
    }
    Ok(())
}

/// Parts, each with the length of its gradient.
fn parts_refused<T: Element, B: OnHost<T>>(
    backend: &B,
    (relative, d_relative): (Option<Relative<'_, Host, T>>, Option<usize>),
    (sinks, d_sinks): (Option<Flat<'_, Host, T::Acc>>, Option<usize>),
    wanted: impl Fn(&Error) -> bool,
) -> Result<(), Broken> {
    let (data, numbers) = ([T::default(); ELEMENTS], [T::Acc::default(); ELEMENTS]);
    let x = view(&data, SHAPE)?;
    let (mut outputs, mut sums) = (Outputs::<T>::new(3), Outputs::<T::Acc>::new(2));
    let [d_query, d_key, d_value] = outputs.views([SHAPE; 3])?;
    let [of_relative, of_sinks] = sums.0.get_disjoint_mut([0, 1]).map_err(|_| Error::Zero {
        argument: "outputs",
    })?;
    let backward = AttentionBackward {
        call: Attention::new(x, x, x)
            .with_relative(relative)
            .with_sinks(sinks),
        out: x,
        statistics: view(&numbers, FITS.statistics)?,
        d_out: x,
        d_query,
        d_key,
        d_value,
        d_bias: None,
        d_relative: d_relative.map(|count| FlatMut::new(&mut of_relative[..count])),
        d_sinks: d_sinks.map(|count| FlatMut::new(&mut of_sinks[..count])),
    };
    let mut scratch = vec![T::Acc::default(); SCRATCH];
    let result = backend.attend_backward(backward, &mut scratch);
    is_error((d_relative, d_sinks), &result, wanted)?;
    outputs.untouched((d_relative, d_sinks))?;
    sums.untouched((d_relative, d_sinks))
}

/// Old counters end at 2^32 words; the arrays of such a call are small, since keys and queries may repeat.
pub(super) fn dropout_beyond_its_counters<T: Element, B: OnHost<T>>(
    backend: &B,
) -> Result<(), Broken> {
    const LENGTH: usize = 1 << 17;
    let convention = Convention {
        counters: Counters::SplitInHalves,
        ..Convention::default()
    };
    let dropout = Dropout::new(Key::from_words([0, 1]), 0.1, DType::F32, true, convention)?;
    let one = [T::default()];
    let layout = Layout::strided(0, Dims::new(&[LENGTH, 1, 1])?, &[0, 0, 0])?;
    let x = HostView::with_layout(&one, layout)?;
    let call = || -> Attention<'_, Host, T> { Attention::new(x, x, x).with_dropout(dropout) };
    let wanted = |error: &Error| matches!(error, Error::RandomLength { .. });
    let untouched = T::from_f64(UNTOUCHED);
    let mut outputs = vec![untouched; 3 * LENGTH];
    let mut scratch = vec![T::Acc::default(); SCRATCH];
    let shape = [LENGTH, 1, 1];
    let (first, rest) = outputs.split_at_mut(LENGTH);
    let result = backend.attend(call(), HostViewMut::new(first, &shape)?, &mut scratch);
    is_error("a mask too long", &result, wanted)?;
    let (second, third) = rest.split_at_mut(LENGTH);
    let statistics = [T::Acc::default()];
    let layout = Layout::strided(0, Dims::new(&[1, LENGTH, 2])?, &[0, 0, 0])?;
    let backward = AttentionBackward {
        call: call(),
        out: x,
        statistics: HostView::with_layout(&statistics, layout)?,
        d_out: x,
        d_query: HostViewMut::new(first, &shape)?,
        d_key: HostViewMut::new(second, &shape)?,
        d_value: HostViewMut::new(third, &shape)?,
        d_bias: None,
        d_relative: None,
        d_sinks: None,
    };
    let result = backend.attend_backward(backward, &mut scratch);
    is_error("a mask too long", &result, wanted)?;
    match first_not(untouched, &outputs) {
        None => Ok(()),
        Some(index) => Err(Broken(format!(
            "element {index} was written before the error"
        ))),
    }
}

pub(super) fn statistics<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let x = view(&data, SHAPE)?;
    let wrong: [&[usize]; 4] = [&[5, 3, 2], &[3, 5], &[1, 3, 5, 2], &[3, 5, 1]];
    for shape in wrong {
        let mut outputs = Outputs::<T::Acc>::new(1);
        let [asked] = outputs.views([shape])?;
        let call = Attention::new(x, x, x).with_statistics(Some(asked));
        super::attention_refused(backend, call, SHAPE, is_wrong_shape_of("statistics"), shape)?;
        outputs.untouched(shape)?;
    }
    Ok(())
}

pub(super) fn projection<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    /// Input, kernel, gradient of the output, gradients of input, kernel, bias.
    type Shapes = [&'static [usize]; 6];
    const FITS: Shapes = [&[2, 3], &[3, 4], &[2, 4], &[2, 3], &[3, 4], &[4]];
    let data = [T::default(); ELEMENTS];
    let attempt = |shapes: Shapes, wanted: &dyn Fn(&Error) -> bool| {
        let [input, kernel, d_out, d_input, d_kernel, d_bias] = shapes;
        let mut outputs = Outputs::<T>::new(3);
        let [to_input, to_kernel, to_bias] = outputs.views([d_input, d_kernel, d_bias])?;
        let call = ProjectionBackward {
            input: view(&data, input)?,
            kernel: view(&data, kernel)?,
            d_out: view(&data, d_out)?,
            d_input: Some(to_input),
            accumulate: false,
            d_kernel: Some(to_kernel),
            d_bias: Some(to_bias),
        };
        let mut scratch = vec![T::Acc::default(); SCRATCH];
        let result = backend.project_backward(call, &mut scratch);
        is_error(shapes, &result, wanted)?;
        outputs.untouched(shapes)
    };
    let with = |place: usize, shape: &'static [usize]| {
        let mut shapes = FITS;
        shapes[place] = shape;
        shapes
    };
    attempt(with(0, &[]), &is_wrong_rank_of("input"))?;
    attempt(with(0, &[2, 4]), &is_wrong_shape_of("input"))?;
    attempt(with(1, &[3, 2, 2]), &is_wrong_rank_of("kernel"))?;
    attempt(with(2, &[4, 2]), &is_wrong_shape_of("d_out"))?;
    attempt(with(2, &[8]), &is_wrong_shape_of("d_out"))?;
    attempt(with(3, &[3, 2]), &is_wrong_shape_of("d_input"))?;
    attempt(with(4, &[4, 3]), &is_wrong_shape_of("d_kernel"))?;
    attempt(with(5, &[1]), &is_wrong_shape_of("d_bias"))?;
    attempt(with(5, &[1, 4]), &is_wrong_shape_of("d_bias"))
}

pub(super) fn norm<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    /// What was normalised, the scale, the gradient, that of the scale.
    type Shapes = [&'static [usize]; 4];
    let (data, numbers) = ([T::default(); ELEMENTS], [T::Acc::from_f64(1.0); ELEMENTS]);
    let attempt = |shapes: Shapes, wanted: &dyn Fn(&Error) -> bool| {
        let [x, scale, gradient, d_scale] = shapes;
        let (mut outputs, mut d_scales) = (Outputs::<T>::new(1), Outputs::<T::Acc>::new(1));
        let [gradient] = outputs.views([gradient])?;
        let [d_scale] = d_scales.views([d_scale])?;
        let call = NormalizeBackward {
            x: view(&data, x)?,
            scale: view(&numbers, scale)?,
            epsilon: 1e-6,
            gradient,
            d_scale: Some(d_scale),
        };
        let result = backend.normalize_backward(call);
        is_error(shapes, &result, wanted)?;
        outputs.untouched(shapes)?;
        d_scales.untouched(shapes)
    };
    attempt([&[], &[4], &[], &[4]], &is_wrong_rank_of("x"))?;
    attempt([&[3, 4], &[3], &[3, 4], &[4]], &is_wrong_shape_of("scale"))?;
    attempt(
        [&[3, 4], &[4], &[4, 3], &[4]],
        &is_wrong_shape_of("gradient"),
    )?;
    attempt([&[3, 4], &[4], &[12], &[4]], &is_wrong_shape_of("gradient"))?;
    attempt(
        [&[3, 4], &[4], &[3, 4], &[1, 4]],
        &is_wrong_shape_of("d_scale"),
    )
}
