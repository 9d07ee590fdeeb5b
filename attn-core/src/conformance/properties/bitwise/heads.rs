//! An output `[rows..., heads, head_dim]` has the bits of `[rows, outputs]` wherever its heads lie.

use super::super::super::arrays::Placed;
use super::super::super::cases::Placement;
use super::super::super::data::Numbers;
use super::super::{Broken, OnHost};
use super::packed::Packed;
use super::{Dense, elements_between_gaps, in_case, same};
use crate::backward::ProjectionBackward;
use crate::dtype::Element;
use crate::error::Error;
use crate::projection::DenseKernel;
use crate::view::{HostView, HostViewMut};
use alloc::vec;
use alloc::vec::Vec;

/// Heads and their depth: heads that end within a panel, at its end, and beyond it, a single one, and single columns.
const HEADS: [[usize; 2]; 6] = [[3, 5], [2, 16], [4, 33], [1, 7], [9, 1], [2, 0]];
/// Heads side by side in a row, each apart from the others with its rows side by side, and gaps between all of them.
const PLACEMENTS: [Placement; 3] = [
    Placement::Contiguous,
    Placement::HeadsMajor,
    Placement::Gaps,
];
const FEATURES: usize = 33;

/// The row axes before the last one, and the length of that.
const ROWS: [(&[usize], usize); 3] = [(&[], 1), (&[], 26), (&[2, 2], 7)];

/// `[batch..., length, features]`.
fn input<'a, T: Element>(
    dense: &'a Dense<T>,
    batch: &[usize],
    length: usize,
) -> Result<HostView<'a, T>, Error> {
    let shape = [batch, &[length, dense.features]].concat();
    HostView::new(&dense.input, &shape)
}

pub(super) fn output<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for [heads, depth] in HEADS {
        for (batch, length) in ROWS {
            let rows = batch.iter().product::<usize>() * length;
            let dense = Dense::<T>::new("output in heads", rows, FEATURES, heads * depth);
            let flat = dense.rows(backend, 0, rows)?;
            let packed = Packed::new(backend, dense.kernel()?)?;
            let mut kernels: Vec<DenseKernel<'_, _, T>> = vec![dense.kernel()?.into()];
            if let Some(packed) = &packed {
                kernels.push(packed.kernel()?);
            }
            for (kernel, placement) in kernels
                .iter()
                .flat_map(|kernel| PLACEMENTS.map(|placement| (*kernel, placement)))
            {
                let nan = || T::from_f64(f64::NAN);
                let mut out = Placed::new(placement, batch, [length, heads, depth], nan)?;
                let call = dense.call(input(&dense, batch, length)?, kernel)?;
                let mut scratch = dense.scratch(backend, rows, f64::NAN);
                backend.project(&call, out.view_mut()?, &mut scratch)?;
                let elements = elements_between_gaps(&out.buffer, &out.layout);
                let result = elements.and_then(|elements| same(&flat, &elements));
                in_case((heads, depth, batch, length, placement), result)?;
            }
        }
    }
    Ok(())
}

/// Query, key and value of one input, each in heads.
pub(super) fn outputs<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let [heads, depth] = [3, 11];
    let (batch, length): (&[usize], _) = (&[2], 9);
    let rows = 2 * length;
    let dense =
        ["query", "key", "value"].map(|name| Dense::<T>::new(name, rows, FEATURES, heads * depth));
    let shared = input(&dense[0], batch, length)?;
    for placement in PLACEMENTS {
        let nan = || T::from_f64(f64::NAN);
        let placed = || Placed::new(placement, batch, [length, heads, depth], nan);
        let mut outs = [placed()?, placed()?, placed()?];
        let calls = dense
            .each_ref()
            .map(|dense| dense.call(shared, dense.kernel()?.into()));
        let [query, key, value] = calls;
        let [to_query, to_key, to_value] = &mut outs;
        let needed = backend.project_each_scratch(rows, FEATURES, heads * depth, 3);
        backend.project_each(
            &[query?, key?, value?],
            &mut [
                to_query.view_mut()?,
                to_key.view_mut()?,
                to_value.view_mut()?,
            ],
            &mut vec![T::Acc::from_f64(f64::NAN); needed],
        )?;
        for (dense, out) in dense.iter().zip(&outs) {
            let mut flat = vec![T::default(); rows * dense.outputs];
            dense.project(
                backend,
                HostView::new(shared.buf(), &[rows, FEATURES])?,
                HostViewMut::new(&mut flat, &[rows, dense.outputs])?,
                &mut dense.scratch(backend, rows, f64::NAN),
            )?;
            let elements = elements_between_gaps(&out.buffer, &out.layout);
            let result = elements.and_then(|elements| same(&flat, &elements));
            in_case(placement, result)?;
        }
    }
    Ok(())
}

/// The gradients of a dense layer whose output's gradient is `d_out`, one after the other. There is no row order in a request
/// for gradients, so the products are small: a backend may sum large ones in another order where their factors lie evenly.
fn gradients<T: Element, B: OnHost<T>>(
    backend: &B,
    dense: &Dense<T>,
    input: HostView<'_, T>,
    d_out: HostView<'_, T>,
) -> Result<Vec<T>, Error> {
    let (features, outputs) = (dense.features, dense.outputs);
    let rows = dense.input.len() / features;
    let (mut d_kernel, mut d_bias) = (vec![T::default(); features * outputs], dense.bias.clone());
    let mut d_input = vec![T::from_f64(f64::NAN); rows * features];
    let call = ProjectionBackward {
        input,
        kernel: dense.kernel()?,
        d_out,
        d_input: Some(HostViewMut::new(&mut d_input, input.shape())?),
        accumulate: false,
        d_kernel: Some(HostViewMut::new(&mut d_kernel, &[features, outputs])?),
        d_bias: Some(HostViewMut::new(&mut d_bias, &[outputs])?),
    };
    let needed = backend.project_backward_scratch(rows, features, outputs);
    backend.project_backward(call, &mut vec![T::Acc::from_f64(f64::NAN); needed])?;
    Ok([d_input, d_kernel, d_bias].concat())
}

pub(super) fn gradient<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for [heads, depth] in [[3, 8], [2, 12], [1, 23], [5, 1], [3, 5]] {
        for (batch, length) in [(&[][..], 40), (&[2, 2], 9), (&[], 1)] {
            let rows = batch.iter().product::<usize>() * length;
            let outputs = heads * depth;
            let dense = Dense::<T>::new("gradient in heads", rows, FEATURES, outputs);
            let input = input(&dense, batch, length)?;
            let elements: Vec<T> = Numbers::new("d_out in heads").elements(rows * outputs, 1.0);
            let flat_shape = [batch, &[length, outputs]].concat();
            let flat = HostView::new(&elements, &flat_shape)?;
            let expected = gradients(backend, &dense, input, flat)?;
            for placement in PLACEMENTS {
                let (mut next, nan) = (elements.iter(), T::from_f64(f64::NAN));
                let next = || next.next().copied().unwrap_or(nan);
                let d_out = Placed::new(placement, batch, [length, heads, depth], next)?;
                let got = gradients(backend, &dense, input, d_out.view()?)?;
                in_case(
                    (heads, depth, batch, length, placement),
                    same(&expected, &got),
                )?;
            }
        }
    }
    Ok(())
}
