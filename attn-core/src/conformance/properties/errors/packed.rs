//! Packed kernels, packing, and dense layers together that do not fit.

use super::super::{Broken, OnHost};
use super::{ELEMENTS, SCRATCH, UNTOUCHED, is_wrong_rank_of, is_wrong_shape_of, refused, view};
use crate::dtype::Element;
use crate::error::Error;
use crate::projection::{DenseKernel, PackedKernel, Packing, Projection, RowOrder};
use crate::view::{Host, HostView, HostViewMut};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;

/// Rows, features and outputs where another argument is at fault.
const ROWS: usize = 2;
const FEATURES: usize = 6;
const OUTPUTS: usize = 5;

fn is_unsupported(error: &Error) -> bool {
    matches!(error, Error::Unsupported { .. })
}

fn is_wrong_length(error: &Error) -> bool {
    let argument = "packed kernel";
    matches!(error, Error::Buffer { argument: name, got, wanted } if *name == argument && got != wanted)
}

/// Input, bias and output of a projection.
type Shapes = [&'static [usize]; 3];

/// What fits.
const FITS: Shapes = [&[ROWS, FEATURES], &[OUTPUTS], &[ROWS, OUTPUTS]];

/// Runs a projection by itself, and among others, which must be refused both times.
fn projection_refused<T: Element, B: OnHost<T>>(
    backend: &B,
    kernel: PackedKernel<'_, Host, T>,
    [input, bias, out]: Shapes,
    wanted: impl Fn(&Error) -> bool,
    what: impl Debug,
) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let call = Projection {
        input: view(&data, input)?,
        kernel: kernel.into(),
        bias: Some(view(&data, bias)?),
        row_order: RowOrder::Fixed,
    };
    let mut buffer = vec![T::from_f64(UNTOUCHED); out.iter().product()];
    let mut scratch = vec![T::Acc::default(); SCRATCH];
    let result = backend.project(&call, HostViewMut::new(&mut buffer, out)?, &mut scratch);
    refused(&what, &result, &wanted, &buffer)?;
    let mut outs = [HostViewMut::new(&mut buffer, out)?];
    let result = backend.project_each(core::slice::from_ref(&call), &mut outs, &mut scratch);
    refused(&what, &result, &wanted, &buffer)
}

/// What a backend that does not pack may be given all the same.
const BY_HAND: Packing = Packing {
    elements: FEATURES * OUTPUTS,
    panel: 1,
};

/// A packing that is not the backend's: another width of its panels, another length, or any if it has none.
pub(super) fn kernels_of_another_kind<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let others = match backend.packing(FEATURES, OUTPUTS) {
        None => vec![BY_HAND],
        Some(Packing { elements, panel }) => [
            (elements, panel + 1),
            (elements, 2 * panel),
            (elements, 0),
            (elements, usize::MAX),
            (elements + panel, panel),
            (elements - 1, panel),
            (0, panel),
        ]
        .map(|(elements, panel)| Packing { elements, panel })
        .to_vec(),
    };
    for other in others {
        let buffer = vec![T::default(); other.elements];
        let kernel = PackedKernel::new(buffer.as_slice(), FEATURES, OUTPUTS, other)?;
        projection_refused(backend, kernel, FITS, is_unsupported, other)?;
    }
    Ok(())
}

/// A buffer that is not as long as its packing says, and the backend's own packing with an input, a bias or an output of other sizes.
pub(super) fn kernels_that_do_not_fit<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let Some(packing) = backend.packing(FEATURES, OUTPUTS) else {
        return Ok(());
    };
    for length in [0, packing.elements - 1, packing.elements + 1] {
        let buffer = vec![T::default(); length];
        let result = PackedKernel::<Host, T>::new(&buffer, FEATURES, OUTPUTS, packing);
        if !result.as_ref().is_err_and(is_wrong_length) {
            return Err(Broken(format!("{length} elements gave {result:?}")));
        }
    }
    let buffer = vec![T::default(); packing.elements];
    let kernel = PackedKernel::new(buffer.as_slice(), FEATURES, OUTPUTS, packing)?;
    let [input, bias, out] = FITS;
    for (argument, shapes) in [
        ("input", [&[ROWS, OUTPUTS], bias, out]),
        ("bias", [input, &[OUTPUTS + 1], out]),
        ("output", [input, bias, &[ROWS, OUTPUTS + 1]]),
        ("output", [input, bias, &[ROWS, OUTPUTS, 2]]),
        ("output", [input, bias, &[OUTPUTS, ROWS]]),
    ] {
        let wanted = is_wrong_shape_of(argument);
        projection_refused(backend, kernel, shapes, wanted, shapes)?;
    }
    Ok(())
}

/// Kernels that are no matrix, and buffers of another length than the packing's.
pub(super) fn packing_that_does_not_fit<T: Element, B: OnHost<T>>(
    backend: &B,
) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let packing = backend.packing(FEATURES, OUTPUTS);
    let elements = packing.unwrap_or(BY_HAND).elements;
    let attempt = |shape: &[usize], length: usize, wanted: &dyn Fn(&Error) -> bool| {
        let mut to = vec![T::from_f64(UNTOUCHED); length];
        let result = backend.pack(view(&data, shape)?, &mut to);
        refused((shape, length), &result, wanted, &to)
    };
    let matrix = [FEATURES, OUTPUTS];
    if packing.is_none() {
        return attempt(&matrix, elements, &is_unsupported);
    }
    for length in [0, elements - 1, elements + 1] {
        attempt(&matrix, length, &is_wrong_length)?;
    }
    for shape in [&[FEATURES * OUTPUTS][..], &[FEATURES, OUTPUTS, 1], &[]] {
        attempt(shape, elements, &is_wrong_rank_of("kernel"))?;
    }
    Ok(())
}

/// More outputs than calls, and fewer.
pub(super) fn calls_without_outputs<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let data = [T::default(); ELEMENTS];
    let kernel: HostView<'_, T> = view(&data, &[FEATURES, OUTPUTS])?;
    let call = || {
        Ok::<_, Error>(Projection {
            input: view(&data, &[ROWS, FEATURES])?,
            kernel: DenseKernel::Plain(kernel),
            bias: None,
            row_order: RowOrder::Fixed,
        })
    };
    let wanted = |error: &Error| matches!(error, Error::Together { .. });
    for (calls, outs) in [(2, 1), (1, 2), (0, 1), (1, 0), (4, 3), (3, 4)] {
        let calls = (0..calls).map(|_| call()).collect::<Result<Vec<_>, _>>()?;
        let mut buffer = vec![T::from_f64(UNTOUCHED); outs * ROWS * OUTPUTS];
        let mut views = buffer
            .chunks_mut(ROWS * OUTPUTS)
            .map(|out| HostViewMut::new(out, &[ROWS, OUTPUTS]))
            .collect::<Result<Vec<_>, _>>()?;
        let mut scratch = vec![T::Acc::default(); SCRATCH];
        let result = backend.project_each(&calls, &mut views, &mut scratch);
        let what = (calls.len(), outs);
        refused(what, &result, wanted, &buffer)?;
    }
    Ok(())
}
