//! Attention over all keys from attention over parts of them: what ring attention, sequence parallelism and a cut of a long cache need.
//!
//! With the output `o` of a part and what softmax left of its rows, the largest score `m` and the sum `l` of `e^(score - m)`:
//!
//! ```text
//! M = max m;  L = Σ e^(m - M) l;  out = Σ (e^(m - M) l / L) o
//! ```
//!
//! (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".)

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::view::{Storage, View, ViewMut};

/// Attention over a part of the keys.
#[derive(Debug)]
pub struct Partial<'a, S: Storage, T: Element> {
    /// Its output, `[batch..., length, heads, value_depth]`.
    pub out: View<'a, S, T>,
    /// What softmax left of its rows, `[batch..., heads, length, 2]`: [`Outputs::statistics`](crate::Outputs::statistics).
    pub statistics: View<'a, S, T::Acc>,
}

impl<S: Storage, T: Element> Clone for Partial<'_, S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, T: Element> Copy for Partial<'_, S, T> {}

/// Attention over all keys from parts of them.
///
/// A part that saw no key of a row, with `l = 0`, adds nothing to it, whatever its output and `m` hold. Where all are such, the output is 0 and the
/// statistics are `(-inf, 0)`. Among the parts that count, a NaN in `m` or `l`, or a largest `m` that is infinite (the difference of infinite scores is no
/// number), makes the row's output and statistics NaN; a NaN in an output makes its own column NaN.
///
/// One part alone gives its own bits. The order of the parts matters to the last bits. Dropout is no obstacle: statistics are those before it. Attention
/// sinks must take part in one part only.
#[derive(Debug)]
pub struct Merge<'a, S: Storage, T: Element> {
    /// The parts, one at least.
    pub parts: &'a [Partial<'a, S, T>],
    /// Where the output goes, `[batch..., length, heads, value_depth]`.
    pub out: ViewMut<'a, S, T>,
    /// Where the statistics of the whole go, `[batch..., heads, length, 2]`, if they are wanted: to merge again, or for the backward pass.
    pub statistics: Option<ViewMut<'a, S, T::Acc>>,
}

/// The sizes of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeShape {
    /// Product of the batch axes.
    pub batch: usize,
    /// Queries.
    pub length: usize,
    /// Query heads.
    pub heads: usize,
    /// Elements of a row.
    pub value_depth: usize,
}

impl<S: Storage, T: Element> Merge<'_, S, T> {
    /// Checks that all parts fit each other and gives the call's sizes.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`] without a part; [`Error::Rank`]; [`Error::Shape`] if an output or statistics are not like the merged output.
    pub fn shape(&self) -> Result<MergeShape> {
        if self.parts.is_empty() {
            return Err(Error::Zero {
                argument: "number of parts",
            });
        }
        let out = *self.out.shape();
        let [batch @ .., length, heads, value_depth] = out.as_slice() else {
            return Err(Error::Rank {
                argument: "output",
                got: out.rank(),
                wanted: "[batch..., length, heads, value_depth]",
            });
        };
        let statistics = Dims::new(batch)?.concat(&[*heads, *length, 2])?;
        for part in self.parts {
            same("output of a part", part.out.shape(), out)?;
            same("statistics of a part", part.statistics.shape(), statistics)?;
        }
        if let Some(merged) = &self.statistics {
            same("statistics", merged.shape(), statistics)?;
        }
        Ok(MergeShape {
            batch: Dims::new(batch)?.elements()?,
            length: *length,
            heads: *heads,
            value_depth: *value_depth,
        })
    }
}

fn same(argument: &'static str, got: &Dims, wanted: Dims) -> Result<()> {
    if *got == wanted {
        return Ok(());
    }
    Err(Error::Shape {
        argument,
        got: *got,
        wanted,
    })
}
