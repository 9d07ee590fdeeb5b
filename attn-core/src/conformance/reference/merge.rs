//! Attention over parts of the keys, put together by plain loops.

use super::super::Maths;
use super::super::plain;
use super::super::rows::Head;
use super::write_row;
use crate::dtype::Element;
use crate::error::Result;
use crate::merge::{Merge, Partial};
use crate::view::Host;
use alloc::vec::Vec;

pub(super) fn merge<T: Element>(mut call: Merge<'_, Host, T>, maths: &Maths) -> Result<()> {
    let shape = call.shape()?;
    for matrix in 0..shape.batch * shape.heads {
        let (batch, head) = (matrix / shape.heads, matrix % shape.heads);
        for query in 0..shape.length {
            let row = matrix * shape.length + query;
            let parts: Vec<[f64; 2]> = call.parts.iter().map(|part| read(part, row)).collect();
            let (weights, statistics) = plain::merged::<T>(&parts, maths);
            for column in 0..shape.value_depth {
                let value = |part: &Partial<'_, Host, T>| {
                    let from = Head::new(part.out.layout(), batch, head);
                    part.out.buf()[from.at(query, column)].to_f64()
                };
                let seen = parts.iter().zip(&weights).zip(call.parts);
                let seen = seen.filter(|(([_, l], _), _)| *l != 0.0);
                let mut terms = seen.map(|((_, weight), part)| weight * value(part));
                // From the first term on: 0 would take the sign of a zero.
                let first = terms.next().map_or(0.0, plain::round::<T::Acc>);
                let sum = terms.fold(first, |sum, term| {
                    plain::round::<T::Acc>(sum + plain::round::<T::Acc>(term))
                });
                let to = Head::new(call.out.layout(), batch, head).at(query, column);
                call.out.buf_mut()[to] = T::from_f64(sum);
            }
            if let Some(merged) = &mut call.statistics {
                write_row(merged, row, &statistics);
            }
        }
    }
    Ok(())
}

/// `m` and `l` of a row, counted over batch entries, heads and queries.
fn read<T: Element>(part: &Partial<'_, Host, T>, row: usize) -> [f64; 2] {
    let layout = part.statistics.layout();
    let axes = layout.shape().rank() - 1;
    let (start, stride) = (layout.base(axes, row), layout.strides()[axes]);
    [0, 1].map(|n| part.statistics.buf()[start + n * stride].to_f64())
}
