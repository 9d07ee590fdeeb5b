//! Where the heads of an array lie, in both of the operator's ranks.

use attn_core::error::Disagreement;
use attn_core::{Dims, Error, Layout, Result};

/// The layouts of `Q`, `K` and `V` as `[batch, length, heads, head_size]`.
pub(super) fn layouts(shapes: [&Dims; 3], counts: [Option<usize>; 2]) -> Result<[Layout; 3]> {
    let [q, k, v] = shapes;
    for other in [k, v] {
        if other.rank() != q.rank() {
            return Err(Error::Mismatch {
                what: Disagreement::Rank,
                left: *q,
                right: *other,
            });
        }
    }
    let [q_num_heads, kv_num_heads] = counts;
    Ok([
        layout("Q", q, q_num_heads)?,
        layout("K", k, kv_num_heads)?,
        layout("V", v, kv_num_heads)?,
    ])
}

/// The layout of an array of `shape` as `[batch, length, heads, head_size]`.
fn layout(argument: &'static str, shape: &Dims, count: Option<usize>) -> Result<Layout> {
    match (shape.as_slice(), count) {
        (&[batch, heads, length, size], count) => {
            let wanted = [batch, count.unwrap_or(heads), length, size];
            same(argument, shape, &wanted)?;
            by_heads(&wanted)
        }
        (&[batch, length, hidden], Some(heads)) => {
            let size = hidden.checked_div(heads).ok_or(Error::NoHeads)?;
            let whole = hidden.div_ceil(heads).saturating_mul(heads);
            same(argument, shape, &[batch, length, whole])?;
            Layout::contiguous(Dims::new(&[batch, length, heads, size])?)
        }
        _ => Err(Error::Rank {
            argument,
            got: shape.rank(),
            wanted: "[batch, heads, length, head_size], or [batch, length, heads * head_size] with q_num_heads and kv_num_heads",
        }),
    }
}

/// The layout of a row-major `[batch, heads, length, size]` as `[batch, length, heads, size]`.
pub(super) fn by_heads(&[batch, heads, length, size]: &[usize; 4]) -> Result<Layout> {
    let lies = Layout::contiguous(Dims::new(&[batch, heads, length, size])?)?;
    let &[of_batch, of_head, of_row, of_element] = lies.strides() else {
        return Ok(lies);
    };
    let shape = Dims::new(&[batch, length, heads, size])?;
    Layout::strided(0, shape, &[of_batch, of_row, of_head, of_element])
}

/// The shape of the output and its layout as `[batch, length, heads, size]`, which `sizes` has: of rank `rank`.
pub(super) fn output(rank: usize, sizes: &Dims) -> Result<(Dims, Layout)> {
    let &[batch, length, heads, size] = sizes.as_slice() else {
        return Ok((*sizes, Layout::contiguous(*sizes)?));
    };
    if rank == 4 {
        let shape = [batch, heads, length, size];
        return Ok((Dims::new(&shape)?, by_heads(&shape)?));
    }
    let hidden = heads.checked_mul(size).ok_or(Error::TooLarge {
        argument: "Y",
        got: *sizes,
    })?;
    Ok((
        Dims::new(&[batch, length, hidden])?,
        Layout::contiguous(*sizes)?,
    ))
}

/// The same layout with only the first `length` rows.
pub(super) fn cut(layout: &Layout, length: usize) -> Result<Layout> {
    let &[batch, _, heads, size] = layout.shape().as_slice() else {
        return Ok(*layout);
    };
    let shape = Dims::new(&[batch, length, heads, size])?;
    Layout::strided(layout.offset(), shape, layout.strides())
}

/// The first `columns` of the last axis of an array of `shape`.
pub(super) fn columns(shape: &Dims, columns: usize) -> Result<Layout> {
    let all = Layout::contiguous(*shape)?;
    let rows = shape.split_last().map_or(&[][..], |(_, rows)| rows);
    Layout::strided(0, Dims::new(rows)?.push(columns)?, all.strides())
}

pub(super) fn same(argument: &'static str, got: &Dims, wanted: &[usize]) -> Result<()> {
    if got.as_slice() == wanted {
        return Ok(());
    }
    Err(Error::Shape {
        argument,
        got: *got,
        wanted: Dims::new(wanted)?,
    })
}
