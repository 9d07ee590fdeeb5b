//! A rotation as a value: the array, where its rows lie, a table.

use super::{MAX_POSITION, Rotary};
use crate::dtype::{Element, Scalar};
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::view::{Flat, Host, Storage, ViewMut};

/// Cosines and sines that were made before, by [`Rotary::fill_table`] or elsewhere.
#[derive(Debug)]
pub struct RotaryTable<'a, S: Storage, A: Scalar> {
    /// `[positions, rotary_dim / 2]`, row-major, from position 0 on.
    pub cos: Flat<'a, S, A>,
    /// Likewise.
    pub sin: Flat<'a, S, A>,
}

impl<S: Storage, A: Scalar> Clone for RotaryTable<'_, S, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, A: Scalar> Copy for RotaryTable<'_, S, A> {}

impl<S: Storage, A: Scalar> RotaryTable<'_, S, A> {
    /// Positions of a table with so many pairs.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if cosines and sines differ in number or are no whole rows.
    pub fn positions(&self, pairs: usize) -> Result<usize> {
        table_rows(self.cos.len(), self.sin.len(), pairs)
    }
}

pub(super) fn table_rows(cos: usize, sin: usize, pairs: usize) -> Result<usize> {
    // Without pairs a table is empty and serves every position.
    let rows = cos.checked_div(pairs).unwrap_or(MAX_POSITION + 1);
    let wanted = rows.saturating_mul(pairs);
    for (argument, got) in [("rotary cos", cos), ("rotary sin", sin)] {
        if got != wanted {
            return Err(Error::Buffer {
                argument,
                got,
                wanted,
            });
        }
    }
    Ok(rows)
}

/// Where the rows of an array lie.
#[derive(Debug)]
pub enum Positions<'a, S: Storage> {
    /// Row `t` of the length axis is at this position plus `t`.
    From(usize),
    /// Each has its own, `[batch, length]`, row-major, from 0 to [`MAX_POSITION`].
    Ids(Flat<'a, S, i32>),
}

impl<S: Storage> Clone for Positions<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage> Copy for Positions<'_, S> {}

impl Positions<'_, Host> {
    /// The position of a row of a call that was checked; `index` counts the rows of all batch entries of this `length`.
    #[must_use]
    pub fn at(&self, index: usize, length: usize) -> usize {
        match self {
            Self::From(first) => first.saturating_add(index.checked_rem(length).unwrap_or(0)),
            Self::Ids(ids) => usize::try_from(ids.buf()[index]).unwrap_or(0),
        }
    }
}

/// One rotation, in place.
#[derive(Debug)]
pub struct Rotate<'a, S: Storage, T: Element> {
    /// Queries or keys, `[batch..., length, heads, depth]`; they become the rotated ones.
    pub x: ViewMut<'a, S, T>,
    /// Which elements turn together, and how fast. With a table only its pairing and `rotary_dim` are looked at.
    pub rotary: Rotary,
    /// Where the rows lie.
    pub positions: Positions<'a, S>,
    /// Cosines and sines to use, from position 0 on; `None` computes them.
    pub table: Option<RotaryTable<'a, S, T::Acc>>,
    /// Whether to rotate by the negative angles, which makes of the gradient of the rotated array that of the array. (It undoes the
    /// rotation, too, but for YaRN's factor, which both have.)
    pub inverse: bool,
}

/// The sizes of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotateShape {
    /// Product of the batch axes.
    pub batch: usize,
    /// Rows of the length axis.
    pub length: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a row.
    pub depth: usize,
    /// Pairs that turn.
    pub pairs: usize,
    /// Positions that the call can serve, from 0 on.
    pub positions: usize,
}

impl<'a, S: Storage, T: Element> Rotate<'a, S, T> {
    /// A rotation of rows that follow each other from position `first` on.
    #[must_use]
    pub const fn new(x: ViewMut<'a, S, T>, rotary: Rotary, first: usize) -> Self {
        Self {
            x,
            rotary,
            positions: Positions::From(first),
            table: None,
            inverse: false,
        }
    }

    /// With a table, or without.
    #[must_use]
    pub const fn with_table(mut self, table: Option<RotaryTable<'a, S, T::Acc>>) -> Self {
        self.table = table;
        self
    }

    /// By the negative angles, or not.
    #[must_use]
    pub const fn with_inverse(mut self, inverse: bool) -> Self {
        self.inverse = inverse;
        self
    }

    /// Checks that all parts fit each other and gives the call's sizes. What ids hold is for a backend on the host to check by
    /// [`Rotate::check_ids`].
    ///
    /// # Errors
    ///
    /// [`Error::Rank`]; those of [`Rotary::frequencies`], but for the base and scaling of a call with a table; [`Error::Buffer`] for a table without whole rows and
    /// for ids that are not one for each row; [`Error::Entry`] for rows from a first position on that go beyond the table or [`MAX_POSITION`].
    pub fn shape(&self) -> Result<RotateShape> {
        let shape = self.x.shape();
        let [batch @ .., length, heads, depth] = shape.as_slice() else {
            return Err(Error::Rank {
                argument: "x",
                got: shape.rank(),
                wanted: "[batch..., length, heads, depth]",
            });
        };
        let (pairs, rows) = self.rotary.pairs_and_rows(*depth, self.table.as_ref())?;
        let batch = Dims::new(batch)?.elements()?;
        let rows_of_x = batch.checked_mul(*length).ok_or(Error::TooLarge {
            argument: "x",
            got: *shape,
        })?;
        let sizes = RotateShape {
            batch,
            length: *length,
            heads: *heads,
            depth: *depth,
            pairs,
            positions: rows.min(MAX_POSITION + 1),
        };
        match &self.positions {
            Positions::From(first) => check_end(*first, *length, rows)?,
            Positions::Ids(ids) => ids.check_len("positions", rows_of_x)?,
        }
        Ok(sizes)
    }
}

impl<T: Element> Rotate<'_, Host, T> {
    /// Checks the position ids of a call of these sizes.
    ///
    /// # Errors
    ///
    /// [`Error::Entry`] for the first that is negative or that the table does not reach.
    pub fn check_ids(&self, shape: &RotateShape) -> Result<()> {
        let Positions::Ids(ids) = &self.positions else {
            return Ok(());
        };
        let most = shape.positions as i64 - 1;
        let is_wrong = |id: &i32| !(0..=most).contains(&i64::from(*id));
        match ids.buf().iter().position(is_wrong) {
            None => Ok(()),
            Some(index) => Err(Error::Entry {
                argument: "positions",
                index,
                got: ids.buf()[index].into(),
                least: 0,
                most,
            }),
        }
    }
}

/// `length` rows from position `first` on must lie among these many `positions`.
pub(super) fn check_end(first: usize, length: usize, positions: usize) -> Result<()> {
    let Some(index) = length.checked_sub(1) else {
        return Ok(());
    };
    let end = first.saturating_add(index);
    let positions = positions.min(MAX_POSITION + 1);
    if end < positions {
        return Ok(());
    }
    Err(Error::Entry {
        argument: "positions",
        index,
        got: i64::try_from(end).unwrap_or(i64::MAX),
        least: 0,
        most: positions as i64 - 1,
    })
}
