//! Keys and values of earlier calls: joined with the new ones, and their gradients taken apart again.

use super::heads::same;
use crate::tensor::{Tensor, TensorView};
use attn_core::{Dims, Error, Layout, Result};

/// Past rows and new ones, `[batch, heads, past_length + length, size]`. `new` has `layout`, as `[batch, length, heads, size]`.
pub(super) fn join(
    argument: &'static str,
    past: Option<&TensorView<'_>>,
    new: &TensorView<'_>,
    layout: &Layout,
) -> Result<Tensor> {
    let sizes = Sizes::new(argument, past, new, layout)?;
    let bytes = new.scalar().size();
    let mut joined = Tensor::zeros(new.scalar(), &sizes.joined()?)?;
    let mut to = joined.as_mut_bytes();
    let mut copy = |from: &[u8]| {
        if let Some((head, rest)) = core::mem::take(&mut to).split_at_mut_checked(from.len()) {
            head.copy_from_slice(from);
            to = rest;
        }
    };
    for (batch, head) in sizes.heads() {
        if let Some(past) = past {
            copy(&past.bytes()[sizes.past_of(batch, head, bytes)]);
        }
        for row in 0..sizes.length {
            let start = layout.at(&[batch, row, head]) * bytes;
            copy(&new.bytes()[start..start + sizes.size * bytes]);
        }
    }
    Ok(joined)
}

/// The gradients of past and new rows, from those of the joined ones. The new ones' has their own shape.
pub(super) fn split(
    joined: &Tensor,
    past: Option<&TensorView<'_>>,
    new: &TensorView<'_>,
    layout: &Layout,
) -> Result<(Option<Tensor>, Tensor)> {
    let sizes = Sizes::new("past", past, new, layout)?;
    let bytes = joined.scalar().size();
    let mut of_new = Tensor::zeros(joined.scalar(), new.shape())?;
    let mut of_past = match past {
        Some(past) => Some(Tensor::zeros(joined.scalar(), past.shape())?),
        None => None,
    };
    let view = joined.view();
    let mut from = view.bytes();
    let mut copy = |to: &mut [u8]| {
        if let Some((head, rest)) = from.split_at_checked(to.len()) {
            to.copy_from_slice(head);
            from = rest;
        }
    };
    for (batch, head) in sizes.heads() {
        if let Some(past) = &mut of_past {
            copy(&mut past.as_mut_bytes()[sizes.past_of(batch, head, bytes)]);
        }
        for row in 0..sizes.length {
            let start = layout.at(&[batch, row, head]) * bytes;
            copy(&mut of_new.as_mut_bytes()[start..start + sizes.size * bytes]);
        }
    }
    Ok((of_past, of_new))
}

struct Sizes {
    batch: usize,
    heads: usize,
    past: usize,
    length: usize,
    size: usize,
}

impl Sizes {
    fn new(
        argument: &'static str,
        past: Option<&TensorView<'_>>,
        new: &TensorView<'_>,
        layout: &Layout,
    ) -> Result<Self> {
        let &[batch, length, heads, size] = layout.shape().as_slice() else {
            return Err(rank(argument, layout.shape()));
        };
        let past = match past {
            None => 0,
            Some(past) => {
                if past.scalar() != new.scalar() {
                    return Err(Error::DTypeMismatch {
                        argument,
                        got: past.scalar(),
                        wanted: new.scalar(),
                    });
                }
                let &[_, _, length, _] = past.shape().as_slice() else {
                    return Err(rank(argument, past.shape()));
                };
                same(argument, past.shape(), &[batch, heads, length, size])?;
                length
            }
        };
        Ok(Self {
            batch,
            heads,
            past,
            length,
            size,
        })
    }

    fn joined(&self) -> Result<Dims> {
        let total = self.past.saturating_add(self.length);
        Dims::new(&[self.batch, self.heads, total, self.size])
    }

    /// Batch entries and heads, in the order of the joined array.
    fn heads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.heads;
        (0..self.batch).flat_map(move |batch| (0..heads).map(move |head| (batch, head)))
    }

    /// The bytes of a head's past rows.
    fn past_of(&self, batch: usize, head: usize, bytes: usize) -> core::ops::Range<usize> {
        let block = self.past * self.size * bytes;
        let start = (batch * self.heads + head) * block;
        start..start + block
    }
}

fn rank(argument: &'static str, got: &Dims) -> Error {
    Error::Rank {
        argument,
        got: got.rank(),
        wanted: "[batch, kv_num_heads, past_length, head_size]",
    }
}
