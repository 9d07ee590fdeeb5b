//! Rotary embeddings by plain loops, on arrays with any strides.

use super::super::plain::turned;
use crate::dtype::Element;
use crate::error::Result;
use crate::rotary::{Pairing, Rotate};
use crate::view::Host;

pub(super) fn rotate<T: Element>(mut call: Rotate<'_, Host, T>) -> Result<()> {
    let shape = call.shape()?;
    call.check_ids(&shape)?;
    let frequencies = match &call.table {
        None => Some(call.rotary.frequencies(shape.depth)?),
        Some(_) => None,
    };
    let layout = *call.x.layout();
    let axes = layout.shape().rank();
    for n in 0..layout.elements().checked_div(shape.depth).unwrap_or(0) {
        let row = n / shape.heads;
        let position = call.positions.at(row, shape.length);
        let start = layout.base(axes - 1, n);
        let element = |column: usize| start + column * layout.strides()[axes - 1];
        for pair in 0..shape.pairs {
            let [cos, sin]: [T::Acc; 2] = match (&call.table, &frequencies) {
                (Some(table), _) => {
                    let at = position * shape.pairs + pair;
                    [table.cos.buf()[at], table.sin.buf()[at]]
                }
                (None, Some(all)) => all.cos_sin(position, all.of(pair)),
                (None, None) => [T::Acc::default(); 2],
            };
            let sign = if call.inverse { -1.0 } else { 1.0 };
            let [a, b] = match call.rotary.pairing {
                Pairing::HalfSplit => [pair, pair + shape.pairs],
                Pairing::Interleaved => [2 * pair, 2 * pair + 1],
            }
            .map(element);
            let x = call.x.buf_mut();
            let both = [x[a].to_f64(), x[b].to_f64()];
            let [to_a, to_b] = turned::<T>(both, [cos.to_f64(), sign * sin.to_f64()]);
            (x[a], x[b]) = (T::from_f64(to_a), T::from_f64(to_b));
        }
    }
    Ok(())
}
