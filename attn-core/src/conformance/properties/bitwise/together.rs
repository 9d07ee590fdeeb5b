//! Dense layers computed together give the bits of each alone.

use super::super::super::data::Numbers;
use super::super::{Broken, OnHost};
use super::packed::Packed;
use super::{Dense, exact_scratch, in_case, same};
use crate::dtype::Element;
use crate::error::Error;
use crate::layout::{Dims, Layout};
use crate::projection::Projection;
use crate::view::{Host, HostView, HostViewMut};
use alloc::vec;
use alloc::vec::Vec;

const FEATURES: usize = 33;

/// Which input a dense layer reads.
#[derive(Debug, Clone, Copy)]
enum Input {
    /// The first rows of an array.
    First,
    /// The rows of the same array from the second on.
    Second,
    /// Another array.
    Other,
}
use Input::{First, Other, Second};

/// A dense layer among others: its input, its outputs, whether its kernel is packed (where the backend does that).
type Member = (Input, usize, bool);

/// Query, key and value; more than that, packed and not; inputs that change, and change back; layers without outputs, no layers.
const GROUPS: [&[Member]; 6] = [
    &[(First, 40, false), (First, 7, false), (First, 96, false)],
    &[
        (First, 40, true),
        (First, 33, false),
        (First, 1, true),
        (First, 70, true),
        (First, 5, false),
    ],
    &[
        (First, 20, false),
        (First, 0, false),
        (Second, 20, true),
        (Second, 31, false),
        (Other, 64, true),
        (First, 17, true),
        (Second, 20, false),
    ],
    &[
        (Other, 64, true),
        (Other, 64, true),
        (Other, 64, true),
        (Other, 64, true),
    ],
    &[(Other, 17, false)],
    &[],
];

/// The arrays of a group.
struct Group<T> {
    rows: usize,
    inputs: [Vec<T>; 2],
    members: Vec<(Dense<T>, Option<Packed<T>>)>,
}

impl<T: Element> Group<T> {
    fn new<B: OnHost<T>>(backend: &B, rows: usize, members: &[Member]) -> Result<Self, Error> {
        let mut numbers = Numbers::new("dense layers together");
        let elements = (rows + 1) * FEATURES;
        let inputs = core::array::from_fn(|_| numbers.elements(elements, 1.0));
        let member = |(n, &(_, outputs, packed)): (usize, &Member)| {
            let names = ["one", "two", "three", "four", "five", "six", "seven"];
            let dense = Dense::new(names[n], 0, FEATURES, outputs);
            let packed = match packed {
                true => Packed::new(backend, dense.kernel()?)?,
                false => None,
            };
            Ok((dense, packed))
        };
        let members = members.iter().enumerate().map(member);
        Ok(Self {
            rows,
            inputs,
            members: members.collect::<Result<_, Error>>()?,
        })
    }

    fn input(&self, from: Input) -> Result<HostView<'_, T>, Error> {
        let (input, offset) = match from {
            First => (&self.inputs[0], 0),
            Second => (&self.inputs[0], FEATURES),
            Other => (&self.inputs[1], 0),
        };
        let shape = Dims::new(&[self.rows, FEATURES])?;
        HostView::with_layout(input, Layout::strided(offset, shape, &[FEATURES, 1])?)
    }

    /// Every second one has no bias.
    fn calls(&self, members: &[Member]) -> Result<Vec<Projection<'_, Host, T>>, Error> {
        let mut calls = Vec::new();
        for (n, ((dense, packed), member)) in self.members.iter().zip(members).enumerate() {
            let kernel = match packed {
                Some(packed) => packed.kernel()?,
                None => dense.kernel()?.into(),
            };
            let call = dense.call(self.input(member.0)?, kernel)?;
            let bias = call.bias.filter(|_| n.is_multiple_of(2));
            calls.push(Projection { bias, ..call });
        }
        Ok(calls)
    }
}

/// Outputs of `[rows, outputs]` for each of a group, all NaN.
fn outputs<T: Element>(rows: usize, members: &[Member]) -> Vec<Vec<T>> {
    let nan = T::from_f64(f64::NAN);
    let empty = |&(_, outputs, _): &Member| vec![nan; rows * outputs];
    members.iter().map(empty).collect()
}

/// Views of `[rows, outputs]`.
fn views<'a, T: Element>(
    rows: usize,
    buffers: &'a mut [Vec<T>],
    members: &[Member],
) -> Result<Vec<HostViewMut<'a, T>>, Error> {
    let buffers = buffers.iter_mut().zip(members);
    buffers
        .map(|(buffer, &(_, outputs, _))| HostViewMut::new(buffer, &[rows, outputs]))
        .collect()
}

pub(super) fn one_by_one<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    for members in GROUPS {
        for rows in [0, 1, 2, 21] {
            let group = Group::<T>::new(backend, rows, members)?;
            let calls = group.calls(members)?;
            let widest = members.iter().map(|&(_, outputs, _)| outputs).max();
            let (widest, count) = (widest.unwrap_or(0), members.len());
            let needed = backend.project_each_scratch(rows, FEATURES, widest, count);
            let mut together = outputs::<T>(rows, members);
            backend.project_each(
                &calls,
                &mut views(rows, &mut together, members)?,
                &mut vec![T::Acc::from_f64(f64::NAN); needed],
            )?;
            let mut alone = outputs::<T>(rows, members);
            for ((call, out), &(_, outputs, _)) in calls.iter().zip(&mut alone).zip(members) {
                let needed = backend.project_scratch(rows, FEATURES, outputs);
                backend.project(
                    call,
                    HostViewMut::new(out, &[rows, outputs])?,
                    &mut vec![T::Acc::from_f64(f64::NAN); needed],
                )?;
            }
            for (n, (together, alone)) in together.iter().zip(&alone).enumerate() {
                in_case((rows, members, n), same(alone, together))?;
            }
        }
    }
    Ok(())
}

pub(super) fn scratch<T: Element, B: OnHost<T>>(backend: &B) -> Result<(), Broken> {
    const OUTPUTS: usize = 40;
    for packed in [false, true] {
        for (count, rows) in [(1, 1), (2, 50), (3, 1), (3, 50), (5, 50)] {
            let members = vec![(First, OUTPUTS, packed); count];
            let group = Group::<T>::new(backend, rows, &members)?;
            let calls = group.calls(&members)?;
            let needed = backend.project_each_scratch(rows, FEATURES, OUTPUTS, count);
            let result = exact_scratch::<T>(needed, count * rows * OUTPUTS, |out, scratch| {
                let outs = out.chunks_mut(rows * OUTPUTS);
                let mut outs = outs
                    .map(|out| HostViewMut::new(out, &[rows, OUTPUTS]))
                    .collect::<Result<Vec<_>, _>>()?;
                backend.project_each(&calls, &mut outs, scratch)
            });
            in_case((packed, count, rows), result)?;
        }
    }
    Ok(())
}
