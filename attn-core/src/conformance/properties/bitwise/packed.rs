//! Packed kernels give the bits of plain ones.

use super::super::super::arrays::Placed;
use super::super::super::cases::Placement;
use super::super::{Broken, OnHost};
use super::{Dense, exact_scratch, in_case, same};
use crate::dtype::Element;
use crate::error::Error;
use crate::projection::{DenseKernel, PackedKernel, Packing, Projection};
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec;
use alloc::vec::Vec;

/// Rows, features, outputs: outputs that fill no panel and outputs that do, one row and many, more features than are likely to
/// be summed at once, none of each.
const SIZES: [[usize; 3]; 12] = [
    [1, 37, 45],
    [2, 130, 33],
    [3, 65, 257],
    [7, 5, 3],
    [13, 64, 64],
    [50, 100, 77],
    [401, 33, 19],
    [5, 1100, 35],
    [1, 1, 1],
    [0, 4, 5],
    [4, 0, 5],
    [4, 5, 0],
];

/// A kernel that a backend packed.
pub(super) struct Packed<T> {
    buffer: Vec<T>,
    features: usize,
    outputs: usize,
    packing: Packing,
}

impl<T: Element> Packed<T> {
    /// `None` if the backend does not pack. What it leaves unwritten is NaN.
    pub(super) fn new<B: OnHost<T>>(
        backend: &B,
        kernel: HostView<'_, T>,
    ) -> Result<Option<Self>, Error> {
        let (features, outputs) = DenseKernel::from(kernel).sizes()?;
        let Some(packing) = backend.packing(features, outputs) else {
            return Ok(None);
        };
        let mut buffer = vec![T::from_f64(f64::NAN); packing.elements];
        backend.pack(kernel, &mut buffer)?;
        Ok(Some(Self {
            buffer,
            features,
            outputs,
            packing,
        }))
    }

    pub(super) fn kernel(&self) -> Result<DenseKernel<'_, Host, T>, Error> {
        let (features, outputs) = (self.features, self.outputs);
        PackedKernel::new(self.buffer.as_slice(), features, outputs, self.packing).map(Into::into)
    }
}

/// The output of `rows` rows, `[rows, outputs]`.
fn run<T: Element, B: OnHost<T>>(
    backend: &B,
    dense: &Dense<T>,
    kernel: DenseKernel<'_, Host, T>,
    rows: usize,
    with_bias: bool,
) -> Result<Vec<T>, Error> {
    let input = HostView::new(&dense.input, &[rows, dense.features])?;
    let call = dense.call(input, kernel)?;
    let bias = call.bias.filter(|_| with_bias);
    let mut out = vec![T::from_f64(f64::NAN); rows * dense.outputs];
    backend.project(
        &Projection { bias, ..call },
        HostViewMut::new(&mut out, &[rows, dense.outputs])?,
        &mut dense.scratch(backend, rows, f64::NAN),
    )?;
    Ok(out)
}

pub(super) fn packed_and_plain<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for [rows, features, outputs] in SIZES {
        let dense = Dense::<T>::new("packed and plain", rows, features, outputs);
        let Some(packed) = Packed::new(backend, dense.kernel()?)? else {
            return Ok(());
        };
        for with_bias in [true, false] {
            let plain = run(backend, &dense, dense.kernel()?.into(), rows, with_bias)?;
            let packed = run(backend, &dense, packed.kernel()?, rows, with_bias)?;
            let case = ([rows, features, outputs], with_bias);
            in_case(case, same(&plain, &packed))?;
        }
    }
    Ok(())
}

/// A kernel whose rows lie apart is packed as one whose rows do not.
pub(super) fn from_between_gaps<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let (rows, features, outputs) = (3, 21, 43);
    let dense = Dense::<T>::new("packed from between gaps", rows, features, outputs);
    let (mut elements, nan) = (dense.kernel.iter(), T::from_f64(f64::NAN));
    let next = || elements.next().copied().unwrap_or(nan);
    let apart = Placed::tensor(Placement::Gaps, &[features, outputs], nan, next)?;
    let Some(packed) = Packed::new(backend, apart.view()?)? else {
        return Ok(());
    };
    let plain = run(backend, &dense, dense.kernel()?.into(), rows, true)?;
    same(&plain, &run(backend, &dense, packed.kernel()?, rows, true)?)
}

pub(super) fn scratch<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for [rows, features, outputs] in [[1, 65, 33], [50, 65, 33], [50, 1100, 35]] {
        let dense = Dense::<T>::new("scratch of a packed one", rows, features, outputs);
        let Some(packed) = Packed::new(backend, dense.kernel()?)? else {
            return Ok(());
        };
        let input = HostView::new(&dense.input, &[rows, features])?;
        let needed = backend.project_scratch(rows, features, outputs);
        exact_scratch::<T>(needed, rows * outputs, |out, scratch| {
            let out = HostViewMut::new(out, &[rows, outputs])?;
            backend.project(&dense.call(input, packed.kernel()?)?, out, scratch)
        })?;
    }
    Ok(())
}
