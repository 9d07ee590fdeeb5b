//! Gradients that depend neither on the scratch nor on where they lie.

use super::super::super::arrays::Placed;
use super::super::super::cases::Placement;
use super::super::super::data::Numbers;
use super::super::{Broken, OnHost};
use super::{elements_between_gaps, exact_scratch, same};
use crate::backward::{AttentionBackward, ProjectionBackward};
use crate::dropout::Dropout;
use crate::dtype::{DType, Element};
use crate::error::Error;
use crate::position::Causal;
use crate::random::{Convention, Key};
use crate::request::Attention;
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec;
use alloc::vec::Vec;

/// `[queries, heads, depth]`: more than a tile, and not a multiple of one.
const SIZE: [usize; 3] = [70, 2, 24];
const ELEMENTS: usize = 70 * 2 * 24;

/// A call with every part that a kernel may treat on a path of its own, the output and the statistics that a backend gives
/// for it, and a gradient of the output.
struct Setting<T: Element> {
    arrays: [Vec<T>; 4],
    bias: Vec<T::Acc>,
    dropout: Option<Dropout>,
    out: Vec<T>,
    statistics: Vec<T::Acc>,
}

impl<T: Element> Setting<T> {
    fn new<B: OnHost<T>>(name: &str, backend: &B) -> Result<Self, Error> {
        let mut numbers = Numbers::new(name);
        let key = Key::from_words([1, 2]);
        let nan = T::Acc::from_f64(f64::NAN);
        let mut setting = Self {
            arrays: core::array::from_fn(|_| numbers.elements(ELEMENTS, 1.0)),
            bias: numbers.elements(SIZE[0], 1.0),
            dropout: Dropout::new(key, 0.3, DType::F32, false, Convention::default())?,
            out: vec![T::from_f64(f64::NAN); ELEMENTS],
            statistics: vec![nan; SIZE[1] * SIZE[0] * 2],
        };
        let (mut out, mut statistics) = (setting.out.clone(), setting.statistics.clone());
        let asked = HostViewMut::new(&mut statistics, &STATISTICS)?;
        let call = setting.call()?.with_statistics(Some(asked));
        let mut scratch = vec![nan; backend.attend_scratch(&call.shape()?)];
        backend.attend(call, HostViewMut::new(&mut out, &SIZE)?, &mut scratch)?;
        (setting.out, setting.statistics) = (out, statistics);
        Ok(setting)
    }

    fn call(&self) -> Result<Attention<'_, Host, T>, Error> {
        let [query, key, value, _] = &self.arrays;
        let bias = HostView::new(&self.bias, &[SIZE[0], 1])?;
        let call = Attention::new(
            HostView::new(query, &SIZE)?,
            HostView::new(key, &SIZE)?,
            HostView::new(value, &SIZE)?,
        );
        Ok(call
            .with_causal(Some(Causal::top_left()))
            .with_bias(Some(bias))
            .with_dropout(self.dropout))
    }

    /// Lets `backend` write the gradients of query, key and value.
    fn backward<B: OnHost<T>>(
        &self,
        backend: &B,
        [d_query, d_key, d_value]: [HostViewMut<'_, T>; 3],
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let call = AttentionBackward {
            call: self.call()?,
            out: HostView::new(&self.out, &SIZE)?,
            statistics: HostView::new(&self.statistics, &STATISTICS)?,
            d_out: HostView::new(&self.arrays[3], &SIZE)?,
            d_query,
            d_key,
            d_value,
            d_bias: None,
            d_relative: None,
            d_sinks: None,
        };
        backend.attend_backward(call, scratch)
    }
}

const STATISTICS: [usize; 3] = [SIZE[1], SIZE[0], 2];

/// Cuts a buffer into the gradients of query, key and value.
fn cut<T: Element>(buffer: &mut [T]) -> Result<[HostViewMut<'_, T>; 3], Error> {
    let (d_query, rest) = buffer.split_at_mut(ELEMENTS);
    let (d_key, d_value) = rest.split_at_mut(ELEMENTS);
    Ok([
        HostViewMut::new(d_query, &SIZE)?,
        HostViewMut::new(d_key, &SIZE)?,
        HostViewMut::new(d_value, &SIZE)?,
    ])
}

pub(super) fn attend_scratch<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let setting = Setting::<T>::new("scratch of gradients", backend)?;
    let needed = backend.attend_backward_scratch(&setting.call()?.shape()?);
    exact_scratch::<T>(needed, 3 * ELEMENTS, |out, scratch| {
        setting.backward(backend, cut(out)?, scratch)
    })
}

pub(super) fn attention_into_gaps<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let setting = Setting::<T>::new("gradients into gaps", backend)?;
    let needed = backend.attend_backward_scratch(&setting.call()?.shape()?);
    let mut scratch = vec![T::Acc::default(); needed];
    let mut dense = vec![T::default(); 3 * ELEMENTS];
    setting.backward(backend, cut(&mut dense)?, &mut scratch)?;
    for placement in [
        Placement::HeadsMajor,
        Placement::Gaps,
        Placement::Transposed,
    ] {
        let placed = || Placed::<T>::new(placement, &[], SIZE, T::default);
        let (mut d_query, mut d_key, mut d_value) = (placed()?, placed()?, placed()?);
        let gradients = [d_query.view_mut()?, d_key.view_mut()?, d_value.view_mut()?];
        setting.backward(backend, gradients, &mut scratch)?;
        for (expected, got) in dense.chunks(ELEMENTS).zip([&d_query, &d_key, &d_value]) {
            same(expected, &elements_between_gaps(&got.buffer, &got.layout)?)?;
        }
    }
    Ok(())
}

/// Asking for statistics changes nothing in the output.
pub(super) fn with_and_without_statistics<T: Element, B: OnHost<T>>(
    backend: &B,
) -> Result<(), Broken> {
    let setting = Setting::<T>::new("with and without statistics", backend)?;
    let call = setting.call()?;
    let mut scratch = vec![T::Acc::default(); backend.attend_scratch(&call.shape()?)];
    let mut out = vec![T::default(); ELEMENTS];
    backend.attend(call, HostViewMut::new(&mut out, &SIZE)?, &mut scratch)?;
    same(&setting.out, &out)
}

pub(super) fn project_scratch<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    let (features, outputs) = (65, 33);
    for rows in [1, 50] {
        let mut numbers = Numbers::new("scratch of a projection's gradients");
        let input: Vec<T> = numbers.elements(rows * features, 1.0);
        let kernel: Vec<T> = numbers.elements(features * outputs, 1.0);
        let d_out: Vec<T> = numbers.elements(rows * outputs, 1.0);
        let needed = backend.project_backward_scratch(rows, features, outputs);
        let gradients = rows * features + features * outputs + outputs;
        exact_scratch::<T>(needed, gradients, |out, scratch| {
            let (d_input, rest) = out.split_at_mut(rows * features);
            let (d_kernel, d_bias) = rest.split_at_mut(features * outputs);
            let call = ProjectionBackward {
                input: HostView::new(&input, &[rows, features])?,
                kernel: HostView::new(&kernel, &[features, outputs])?,
                d_out: HostView::new(&d_out, &[rows, outputs])?,
                d_input: Some(HostViewMut::new(d_input, &[rows, features])?),
                accumulate: true,
                d_kernel: Some(HostViewMut::new(d_kernel, &[features, outputs])?),
                d_bias: Some(HostViewMut::new(d_bias, &[outputs])?),
            };
            backend.project_backward(call, scratch)
        })?;
    }
    Ok(())
}
