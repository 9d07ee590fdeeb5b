//! Entries of one axis of a tensor: taken out one by one, and joined again.

use anyhow::{Context, Result, ensure};
use attn_layers::tensor::{Tensor, TensorView};

/// The number of the axis that is the `n`-th from the end, the last being 1.
pub(crate) fn from_end(view: &TensorView<'_>, n: usize) -> Result<usize> {
    let rank = view.shape().rank();
    rank.checked_sub(n)
        .with_context(|| format!("an input has {rank} axes; at least {n} are needed"))
}

/// Entry `index` of `axis`, which stays as an axis of length 1.
pub(crate) fn entry(view: &TensorView<'_>, axis: usize, index: usize) -> Result<Tensor> {
    let mut shape = view.shape().to_vec();
    ensure!(
        index < shape[axis],
        "entry {index} of an axis of length {}",
        shape[axis]
    );
    let inner = shape[axis + 1..].iter().product::<usize>() * view.scalar().size();
    let block = inner * shape[axis];
    let mut bytes = Vec::with_capacity(view.bytes().len() / shape[axis]);
    if inner > 0 {
        for block in view.bytes().chunks(block) {
            bytes.extend_from_slice(&block[index * inner..][..inner]);
        }
    }
    shape[axis] = 1;
    Ok(TensorView::new(view.scalar(), &shape, &bytes)?.to_tensor()?)
}

/// Tensors that differ in nothing but their values, joined along `axis`.
pub(crate) fn join(parts: &[Tensor], axis: usize) -> Result<Tensor> {
    let first = parts.first().context("there is no step")?;
    ensure!(
        parts
            .iter()
            .all(|part| part.shape() == first.shape() && part.scalar() == first.scalar()),
        "the steps' outputs differ in shape or type"
    );
    let mut shape = first.shape().to_vec();
    let block = shape[axis..].iter().product::<usize>() * first.scalar().size();
    let mut bytes = Vec::with_capacity(parts.len() * first.view().bytes().len());
    for start in (0..first.view().bytes().len()).step_by(block.max(1)) {
        for part in parts {
            bytes.extend_from_slice(&part.view().bytes()[start..start + block]);
        }
    }
    shape[axis] *= parts.len();
    Ok(TensorView::new(first.scalar(), &shape, &bytes)?.to_tensor()?)
}
