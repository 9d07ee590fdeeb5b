//! Parts of arrays along one axis: cut out, joined, written over.

use crate::tensor::{Tensor, TensorView};
use attn_core::{Dims, Error, Result, ScalarType};

/// `count` entries of `axis` from `first` on.
pub(crate) fn slice(
    argument: &'static str,
    view: &TensorView<'_>,
    axis: usize,
    first: usize,
    count: usize,
) -> Result<Tensor> {
    let length = view.shape().get(axis).copied().unwrap_or(0);
    let Some(end) = first.checked_add(count).filter(|&end| end <= length) else {
        return Err(Error::Buffer {
            argument,
            got: length,
            wanted: first.saturating_add(count),
        });
    };
    let mut out = Tensor::zeros(view.scalar(), &with_length(view.shape(), axis, count)?)?;
    let (blocks, entry) = blocks(view.shape(), axis, view.scalar());
    let to = out.as_mut_bytes();
    for block in 0..blocks {
        let from = &view.bytes()[(block * length + first) * entry..(block * length + end) * entry];
        to[block * count * entry..][..from.len()].copy_from_slice(from);
    }
    Ok(out)
}

/// Writes `new` over `array` from entry `first` of `axis` on. Beside `axis` their shapes are equal, and `new` fits.
pub(crate) fn write_at(array: &mut Tensor, new: &TensorView<'_>, axis: usize, first: usize) {
    let (count, length) = (new.shape()[axis], array.shape()[axis]);
    let (blocks, entry) = blocks(new.shape(), axis, new.scalar());
    let to = array.as_mut_bytes();
    for block in 0..blocks {
        let from = &new.bytes()[block * count * entry..(block + 1) * count * entry];
        to[(block * length + first) * entry..][..from.len()].copy_from_slice(from);
    }
}

/// Joins arrays along `axis`, `None` if there is none. Beside `axis` their shapes are equal.
pub(crate) fn concatenate(parts: &[Tensor], axis: usize) -> Result<Option<Tensor>> {
    let [first, rest @ ..] = parts else {
        return Ok(None);
    };
    if rest.is_empty() {
        return Ok(Some(first.clone()));
    }
    let length = parts.iter().map(|part| part.shape()[axis]).sum();
    let mut joined = Tensor::zeros(first.scalar(), &with_length(first.shape(), axis, length)?)?;
    let mut done = 0;
    for part in parts {
        write_at(&mut joined, &part.view(), axis, done);
        done += part.shape()[axis];
    }
    Ok(Some(joined))
}

/// `shape` with another length of one axis.
pub(crate) fn with_length(shape: &Dims, axis: usize, length: usize) -> Result<Dims> {
    Dims::new(&shape[..axis])?
        .push(length)?
        .concat(&shape[axis + 1..])
}

/// How many times the axis is run through, and the bytes of one of its entries. Both 0 for an array without elements,
/// where an axis may be too long to multiply.
fn blocks(shape: &Dims, axis: usize, scalar: ScalarType) -> (usize, usize) {
    if shape.contains(&0) {
        return (0, 0);
    }
    let entry = shape[axis + 1..].iter().product::<usize>() * scalar.size();
    (shape[..axis].iter().product(), entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> Tensor {
        let elements = shape.iter().product::<usize>();
        Tensor::from_f64s(ScalarType::I32, shape, (0..elements).map(|n| n as f64)).unwrap()
    }

    #[test]
    fn slices_join_to_the_whole() {
        let whole = counting(&[2, 5, 3]);
        for axis in 0..3 {
            let length = whole.shape()[axis];
            let parts = [(0, 1), (1, length - 1)]
                .map(|(first, count)| slice("whole", &whole.view(), axis, first, count).unwrap());
            assert_eq!(concatenate(&parts, axis).unwrap(), Some(whole.clone()));
        }
    }

    #[test]
    fn a_slice_beyond_the_end_is_an_error() {
        let view = counting(&[2, 3]);
        assert!(slice("x", &view.view(), 1, 2, 2).is_err());
        assert!(slice("x", &view.view(), 1, usize::MAX, 2).is_err());
        assert!(slice("x", &view.view(), 2, 0, 1).is_err());
    }

    #[test]
    fn arrays_without_elements_may_have_axes_too_long_to_multiply() {
        let shape = [usize::MAX, 0, usize::MAX];
        let empty = TensorView::new(ScalarType::F64, &shape, &[]).unwrap();
        assert_eq!(
            *slice("x", &empty, 1, 0, 0).unwrap().shape(),
            *empty.shape()
        );
    }

    #[test]
    fn writing_touches_only_its_entries() {
        let mut array = Tensor::zeros(ScalarType::I32, &[2, 3]).unwrap();
        write_at(&mut array, &counting(&[2, 1]).view(), 1, 2);
        assert_eq!(array.to_vec_f64(), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    }
}
