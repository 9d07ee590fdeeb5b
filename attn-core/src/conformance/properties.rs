//! What must hold bit for bit, and what must be refused.

use super::cases::Placement;
use super::check::{Failure, Placed};
use super::data::Numbers;
use crate::dtype::Element;
use crate::error::Error;
use crate::kernels::{Backend, Kernels, Projection, RowOrder};
use crate::mask::{Causal, Mask};
use crate::request::Attention;
use crate::view::{Host, HostView, HostViewMut};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

fn failed(case: &'static str) -> impl Fn(Error) -> Failure {
    move |error| Failure::new(case, format!("{error}"))
}

fn same<T: Element>(case: &'static str, left: &[T], right: &[T]) -> Result<(), Failure> {
    match left
        .iter()
        .zip(right)
        .position(|(a, b)| bytemuck::bytes_of(a) != bytemuck::bytes_of(b))
    {
        None => Ok(()),
        Some(index) => {
            let (a, b) = (left[index].to_f64(), right[index].to_f64());
            Err(Failure::new(
                case,
                format!("element {index} is {a:e} one way and {b:e} the other"),
            ))
        }
    }
}

/// Results that do not depend on what is computed beside them.
pub(super) fn bitwise<T: Element, B>(backend: &B) -> Result<usize, Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    queries_alone_and_together(backend)?;
    rows_alone_and_together(backend)?;
    strided_output(backend)?;
    scratch_to_the_element(backend)?;
    Ok(4)
}

/// Attention of some queries of a cache.
fn part<T: Element, B>(
    backend: &B,
    case: &'static str,
    [q, k, v]: [&[T]; 3],
    [first, count, keys, heads, depth]: [usize; 5],
) -> Result<Vec<T>, Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    let failed = failed(case);
    let row = heads * depth;
    let shape = [count, heads, depth];
    let query = HostView::new(&q[first * row..(first + count) * row], &shape).map_err(&failed)?;
    let key = HostView::new(k, &[keys, heads, depth]).map_err(&failed)?;
    let value = HostView::new(v, &[keys, heads, depth]).map_err(&failed)?;
    let call = Attention::new(query, key, value).with_causal(Some(Causal::offset(first as isize)));
    let sizes = call.shape().map_err(&failed)?;
    let mut scratch = vec![T::Acc::default(); backend.attend_scratch(&sizes)];
    let mut out = vec![T::default(); count * row];
    backend
        .attend(
            call,
            HostViewMut::new(&mut out, &shape).map_err(&failed)?,
            &mut scratch,
        )
        .map_err(&failed)?;
    Ok(out)
}

fn queries_alone_and_together<T: Element, B>(backend: &B) -> Result<(), Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    const CASE: &str = "queries alone and together";
    let (keys, heads, depth) = (150, 2, 17);
    let row = heads * depth;
    let mut numbers = Numbers::new(CASE);
    let [q, k, v]: [Vec<T>; 3] = core::array::from_fn(|_| numbers.elements(keys * row, 1.0));
    let arrays = [q.as_slice(), &k, &v];
    let together = part(backend, CASE, arrays, [0, keys, keys, heads, depth])?;
    for cut in [1, 7, 64] {
        let mut parts = Vec::new();
        for first in (0..keys).step_by(cut) {
            parts.extend(part(
                backend,
                CASE,
                arrays,
                [first, cut.min(keys - first), keys, heads, depth],
            )?);
        }
        same(CASE, &together, &parts)?;
    }
    Ok(())
}

fn rows_alone_and_together<T: Element, B>(backend: &B) -> Result<(), Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    const CASE: &str = "rows alone and together";
    let failed = failed(CASE);
    let (rows, features, outputs) = (70, 100, 77);
    let mut numbers = Numbers::new(CASE);
    let input: Vec<T> = numbers.elements(rows * features, 1.0);
    let kernel: Vec<T> = numbers.elements(features * outputs, 1.0);
    let bias: Vec<T> = numbers.elements(outputs, 1.0);
    let run = |first: usize, count: usize| {
        let call = Projection {
            input: HostView::new(
                &input[first * features..(first + count) * features],
                &[count, features],
            )
            .map_err(&failed)?,
            kernel: HostView::new(&kernel, &[features, outputs]).map_err(&failed)?,
            bias: Some(HostView::new(&bias, &[outputs]).map_err(&failed)?),
            row_order: RowOrder::Fixed,
        };
        let mut out = vec![T::default(); count * outputs];
        let mut scratch =
            vec![T::Acc::default(); backend.project_scratch(count, features, outputs)];
        let view = HostViewMut::new(&mut out, &[count, outputs]).map_err(&failed)?;
        backend
            .project(&call, view, &mut scratch)
            .map_err(&failed)?;
        Ok(out)
    };
    let together = run(0, rows)?;
    for cut in [1, 2, 5, 49] {
        let mut parts = Vec::new();
        for first in (0..rows).step_by(cut) {
            parts.extend(run(first, cut.min(rows - first))?);
        }
        same(CASE, &together, &parts)?;
    }
    Ok(())
}

fn strided_output<T: Element, B>(backend: &B) -> Result<(), Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    const CASE: &str = "output with gaps and without";
    let failed = failed(CASE);
    let (length, heads, depth) = (19, 3, 9);
    let mut results = Vec::new();
    for placement in [
        Placement::Contiguous,
        Placement::HeadsMajor,
        Placement::Gaps,
        Placement::Transposed,
    ] {
        let mut numbers = Numbers::new(CASE);
        let mut placed = || {
            let size = [length, heads, depth];
            Placed::new(Placement::Contiguous, &[2], size, || {
                T::from_f64(numbers.normal())
            })
            .map_err(&failed)
        };
        let (q, k, v) = (placed()?, placed()?, placed()?);
        let call = Attention::new(
            q.view().map_err(&failed)?,
            k.view().map_err(&failed)?,
            v.view().map_err(&failed)?,
        );
        let shape = call.shape().map_err(&failed)?;
        let mut scratch = vec![T::Acc::default(); backend.attend_scratch(&shape)];
        let mut out =
            Placed::new(placement, &[2], [length, heads, depth], T::default).map_err(&failed)?;
        backend
            .attend(call, out.view_mut().map_err(&failed)?, &mut scratch)
            .map_err(&failed)?;
        let layout = out.layout;
        let elements: Vec<T> = (0..layout.elements())
            .map(|i| out.buffer[layout.base(4, i)])
            .collect();
        results.push(elements);
    }
    results
        .iter()
        .try_for_each(|other| same(CASE, &results[0], other))
}

fn scratch_to_the_element<T: Element, B>(backend: &B) -> Result<(), Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    const CASE: &str = "scratch to the element";
    let failed = failed(CASE);
    let (length, heads, depth) = (70, 2, 24);
    let mut numbers = Numbers::new(CASE);
    let x: Vec<T> = numbers.elements(length * heads * depth, 1.0);
    let shape = [length, heads, depth];
    let view = || HostView::new(&x, &shape).map_err(&failed);
    let call = || Ok(Attention::new(view()?, view()?, view()?));
    let sizes = call()?.shape().map_err(&failed)?;
    let needed = backend.attend_scratch(&sizes);
    let mut first: Option<Vec<T>> = None;
    for fill in [0.0, f64::NAN] {
        let mut scratch = vec![T::Acc::from_f64(fill); needed];
        let mut out = vec![T::default(); x.len()];
        backend
            .attend(
                call()?,
                HostViewMut::new(&mut out, &shape).map_err(&failed)?,
                &mut scratch,
            )
            .map_err(&failed)?;
        same(CASE, first.get_or_insert_with(|| out.clone()), &out)?;
    }
    if let Some(short) = needed.checked_sub(1) {
        let mut scratch = vec![T::Acc::default(); short];
        let mut out = vec![T::from_f64(7.0); x.len()];
        let result = backend.attend(
            call()?,
            HostViewMut::new(&mut out, &shape).map_err(&failed)?,
            &mut scratch,
        );
        if !matches!(result, Err(Error::Scratch { got, wanted, .. }) if got == short && wanted == needed)
        {
            return Err(Failure::new(
                CASE,
                format!("a scratch too short by one gave {result:?}"),
            ));
        }
        untouched(CASE, &out)?;
    }
    Ok(())
}

fn untouched<T: Element>(case: &'static str, out: &[T]) -> Result<(), Failure> {
    match out.iter().any(|x| x.to_f64() != 7.0) {
        true => Err(Failure::new(
            case,
            "the output was written before the error",
        )),
        false => Ok(()),
    }
}

/// Arguments that do not fit are typed errors, and the output stays as it was.
pub(super) fn errors<T: Element, B>(backend: &B) -> Result<usize, Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    const CASE: &str = "arguments that do not fit";
    let failed = failed(CASE);
    let data = [T::default(); 1 << 9];
    let view =
        |shape: &[usize]| HostView::new(&data[..shape.iter().product()], shape).map_err(&failed);
    let wrong: [(&str, [&[usize]; 3]); 7] = [
        ("rank", [&[2, 3, 4], &[1, 2, 3, 4], &[2, 3, 4]]),
        ("no heads axis", [&[3, 4], &[3, 4], &[3, 4]]),
        ("batch", [&[2, 5, 3, 4], &[1, 5, 3, 4], &[2, 5, 3, 4]]),
        ("heads", [&[5, 3, 4], &[5, 2, 4], &[5, 3, 4]]),
        ("value heads", [&[5, 3, 4], &[5, 3, 4], &[5, 1, 4]]),
        ("lengths", [&[5, 3, 4], &[6, 3, 4], &[5, 3, 4]]),
        ("depths", [&[5, 3, 4], &[5, 3, 5], &[5, 3, 4]]),
    ];
    let mut count = 0;
    let mut scratch = vec![T::Acc::default(); 1 << 20];
    for (what, [q, k, v]) in wrong {
        let call = Attention::new(view(q)?, view(k)?, view(v)?);
        let mut out = vec![T::from_f64(7.0); q.iter().product()];
        let result = backend.attend(
            call,
            HostViewMut::new(&mut out, q).map_err(&failed)?,
            &mut scratch,
        );
        if !matches!(result, Err(Error::Mismatch { .. } | Error::Rank { .. })) {
            return Err(Failure::new(CASE, format!("{what}: {result:?}")));
        }
        untouched(CASE, &out)?;
        count += 1;
    }
    let shape = [5, 3, 4];
    let bytes = [1u8; 64];
    let call = || Ok(Attention::new(view(&shape)?, view(&shape)?, view(&shape)?));
    let mask = HostView::new(&bytes[..28], &[4, 7]).map_err(&failed)?;
    let mut out = vec![T::from_f64(7.0); 60];
    let result = backend.attend(
        call()?.with_mask(Some(Mask::keep(mask))),
        HostViewMut::new(&mut out, &shape).map_err(&failed)?,
        &mut scratch,
    );
    if !matches!(
        result,
        Err(Error::Broadcast {
            argument: "mask",
            ..
        })
    ) {
        return Err(Failure::new(CASE, format!("mask: {result:?}")));
    }
    let result = backend.attend(
        call()?,
        HostViewMut::new(&mut out, &[3, 5, 4]).map_err(&failed)?,
        &mut scratch,
    );
    if !matches!(
        result,
        Err(Error::Shape {
            argument: "output",
            ..
        })
    ) {
        return Err(Failure::new(CASE, format!("output: {result:?}")));
    }
    untouched(CASE, &out)?;
    Ok(count + 2)
}
