//! NaN and infinity where nothing may look.

use super::super::arrays::{self, Placed};
use super::super::case::Case;
use super::super::rows::{Head, Rows};
use super::Inputs;
use crate::dtype::Element;
use crate::error::Result;
use crate::request::AttentionShape;
use alloc::vec;
use alloc::vec::Vec;

impl<T: Element> Inputs<T> {
    /// The same inputs with spoilt keys and values where no query sees them, and spoilt queries that belong to no sequence, if the
    /// case asks for it. Rows of caches that no token was written to are so from the start.
    pub(in super::super) fn poisoned(&self, case: &Case, draw: usize) -> Result<Option<Self>> {
        if !case.poisoned {
            return Ok(None);
        }
        let borrowed = self.borrowed(case)?;
        let call = self.call(case, &borrowed)?;
        let shape = call.shape()?;
        let rows = Rows::new(&call, &shape)?;
        let mut spoilt = Self::new(case, draw)?;
        for batch in 0..shape.batch {
            for key_head in 0..shape.key_heads {
                let (queries, keys) = takes_no_part(&rows, &shape, batch, key_head);
                for query in queries {
                    for head in 0..shape.num_heads {
                        spoil(&mut spoilt.query, batch, head, query, shape.depth);
                    }
                }
                for key in keys {
                    spoil(&mut spoilt.key, batch, key_head, key, shape.depth);
                    spoil(&mut spoilt.value, batch, key_head, key, shape.value_depth);
                }
            }
        }
        Ok(Some(spoilt))
    }

    /// The gradient of the output, spoilt likewise where queries belong to no sequence.
    pub(in super::super) fn poisoned_d_out(
        &self,
        case: &Case,
        draw: usize,
    ) -> Result<Option<Placed<T>>> {
        if !case.poisoned {
            return Ok(None);
        }
        let borrowed = self.borrowed(case)?;
        let call = self.call(case, &borrowed)?;
        let shape = call.shape()?;
        let rows = Rows::new(&call, &shape)?;
        let mut spoilt = arrays::d_out::<T>(case, draw)?;
        for matrix in 0..shape.batch * shape.num_heads {
            let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
            let is_outside = |query: &usize| rows.line(matrix, *query).is_outside;
            for query in (0..shape.query_length).filter(is_outside) {
                spoil(&mut spoilt, batch, head, query, shape.value_depth);
            }
        }
        Ok(Some(spoilt))
    }
}

/// Queries outside of all sequences, and keys that no query of the group of heads sees.
fn takes_no_part<T: Element>(
    rows: &Rows<'_, T>,
    shape: &AttentionShape,
    batch: usize,
    key_head: usize,
) -> (Vec<usize>, Vec<usize>) {
    let mut outside = vec![false; shape.query_length];
    let mut seen = vec![false; shape.key_length];
    for head in (0..shape.num_heads).filter(|&head| shape.key_head(head) == key_head) {
        for query in 0..shape.query_length {
            let line = rows.line(batch * shape.num_heads + head, query);
            outside[query] |= line.is_outside;
            for (sees, key) in line.seen.iter().zip(line.keys) {
                seen[key] |= *sees;
            }
        }
    }
    let which = |of: &[bool], wanted: bool| -> Vec<usize> {
        (0..of.len()).filter(|&n| of[n] == wanted).collect()
    };
    (which(&outside, true), which(&seen, false))
}

fn spoil<T: Element>(array: &mut Placed<T>, batch: usize, head: usize, row: usize, depth: usize) {
    let place = Head::new(&array.layout, batch, head);
    for column in 0..depth {
        let spoilt = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][(row + column) % 3];
        array.buffer[place.at(row, column)] = T::from_f64(spoilt);
    }
}
