//! What arrays of lengths, starts and pages hold. The shapes of a request are checked without a look into its arrays; a backend that
//! can read them checks their contents here, and asks here which sequence a query belongs to.
//!
//! ```
//! use attn_core::{AttentionShape, Dims, Flat, Host, Sequences};
//! let dims = Dims::new(&[6, 1, 8])?;
//! let shape = AttentionShape::of(&dims, &dims, &dims)?;
//! let starts = Flat::<Host, _>::new(&[0, 2, 2, 5]);
//! let sequences = Sequences::Packed { query_starts: starts, key_starts: starts };
//! sequences.check_contents(&shape)?;
//! assert_eq!(sequences.span_of(&shape, 0, 3).map(|span| span.keys), Some(2..5));
//! assert_eq!(sequences.span_of(&shape, 0, 5), None);
//! # Ok::<(), attn_core::Error>(())
//! ```

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::request::{Attention, AttentionShape};
use crate::source::{Cached, KeyValue, Place};
use crate::view::Host;
use crate::visible::{Sequences, Span, Visible};

/// Checks lengths, each from 0 to `most`.
///
/// # Errors
///
/// [`Error::Entry`], naming `argument`.
pub fn check_lengths(argument: &'static str, lengths: &[i32], most: usize) -> Result<()> {
    (lengths.iter().enumerate()).try_for_each(|(index, &length)| {
        check_entry(argument, (index, length), (0, most_entry(most)))
    })
}

/// Checks starts, none below the one before it, from 0 to `most`.
///
/// # Errors
///
/// [`Error::Entry`], naming `argument`.
pub fn check_starts(argument: &'static str, starts: &[i32], most: usize) -> Result<()> {
    let mut least = 0;
    for (index, &start) in starts.iter().enumerate() {
        check_entry(argument, (index, start), (least, most_entry(most)))?;
        least = i64::from(start);
    }
    Ok(())
}

/// Checks the pages of one sequence: the first `count` of `table` are numbers of one of `pages` pages. `first` is the index of
/// `table[0]` in the whole table, for the error.
///
/// # Errors
///
/// [`Error::Entry`].
pub fn check_pages(table: &[i32], first: usize, count: usize, pages: usize) -> Result<()> {
    let most = most_entry(pages).saturating_sub(1);
    (table.iter().take(count).enumerate()).try_for_each(|(index, &page)| {
        check_entry("page table", (first.saturating_add(index), page), (0, most))
    })
}

fn most_entry(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

fn check_entry(
    argument: &'static str,
    (index, got): (usize, i32),
    (least, most): (i64, i64),
) -> Result<()> {
    let got = i64::from(got);
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(Error::Entry {
        argument,
        index,
        got,
        least,
        most,
    })
}

/// A length that [`check_lengths`] or [`check_starts`] has seen. Others are taken to the next that can be, so that nothing panics.
fn entry(of: &[i32], index: usize, most: usize) -> usize {
    let entry = of.get(index).copied().unwrap_or(0);
    usize::try_from(entry).unwrap_or(0).min(most)
}

impl Sequences<'_, Host> {
    /// Checks what the arrays hold.
    ///
    /// # Errors
    ///
    /// [`Error::Entry`] for a length or a start that is negative or beyond the array's end, and for starts that fall.
    pub fn check_contents(&self, shape: &AttentionShape) -> Result<()> {
        match self {
            Self::Padded {
                key_lengths,
                query_lengths,
            } => {
                check_lengths("key_lengths", key_lengths.buf(), shape.key_length)?;
                query_lengths.map_or(Ok(()), |lengths| {
                    check_lengths("query_lengths", lengths.buf(), shape.query_length)
                })
            }
            Self::Packed {
                query_starts,
                key_starts,
            } => {
                check_starts("query_starts", query_starts.buf(), shape.query_length)?;
                check_starts("key_starts", key_starts.buf(), shape.key_length)
            }
        }
    }

    /// Sequences of each batch entry.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Padded { .. } => 1,
            Self::Packed { query_starts, .. } => query_starts.len().saturating_sub(1),
        }
    }

    /// The `n`-th sequence of a batch entry.
    #[must_use]
    pub fn span(&self, shape: &AttentionShape, batch: usize, n: usize) -> Span {
        let (queries, keys) = (shape.query_length, shape.key_length);
        match self {
            Self::Padded {
                key_lengths,
                query_lengths,
            } => {
                let end = |lengths: &[i32]| entry(lengths, batch, queries);
                Span {
                    queries: 0..query_lengths.map_or(queries, |lengths| end(lengths.buf())),
                    keys: 0..entry(key_lengths.buf(), batch, keys),
                }
            }
            Self::Packed {
                query_starts,
                key_starts,
            } => {
                let between = |starts: &[i32], most| {
                    let start = entry(starts, n, most);
                    start..entry(starts, n.saturating_add(1), most).max(start)
                };
                Span {
                    queries: between(query_starts.buf(), queries),
                    keys: between(key_starts.buf(), keys),
                }
            }
        }
    }

    /// The sequences of a batch entry, in order, empty ones among them.
    pub fn spans(&self, shape: &AttentionShape, batch: usize) -> impl Iterator<Item = Span> {
        (0..self.count()).map(move |n| self.span(shape, batch, n))
    }

    /// The sequence that a query belongs to, `None` outside of all.
    #[must_use]
    pub fn span_of(&self, shape: &AttentionShape, batch: usize, query: usize) -> Option<Span> {
        let n = match self {
            Self::Padded { .. } => 0,
            Self::Packed { query_starts, .. } => {
                let begun = (query_starts.buf())
                    .partition_point(|&start| usize::try_from(start).unwrap_or(0) <= query);
                begun.checked_sub(1).filter(|&n| n < self.count())?
            }
        };
        let span = self.span(shape, batch, n);
        span.queries.contains(&query).then_some(span)
    }
}

impl Visible<'_, Host> {
    /// The sequence that a query belongs to, `None` outside of all. Where there are no sequences, a batch entry is one.
    #[must_use]
    pub fn span_of(&self, shape: &AttentionShape, batch: usize, query: usize) -> Option<Span> {
        match &self.sequences {
            Some(sequences) => sequences.span_of(shape, batch, query),
            None => Some(Span::whole(shape)),
        }
    }
}

impl<T: Element> Cached<'_, Host, T> {
    /// Tokens that a batch entry has seen: its own length, if batch entries are padded sequences, else that of all.
    #[must_use]
    pub fn tokens(
        &self,
        shape: &AttentionShape,
        sequences: Option<&Sequences<'_, Host>>,
        batch: usize,
    ) -> usize {
        match sequences {
            Some(padded @ Sequences::Padded { .. }) => padded.span(shape, batch, 0).keys.end,
            _ => self.length,
        }
    }

    /// Checks that each sequence's tokens lie in pages that there are.
    ///
    /// # Errors
    ///
    /// [`Error::Entry`] for another page's number; [`Error::Rank`] for rows without axes.
    pub fn check_contents(
        &self,
        shape: &AttentionShape,
        sequences: Option<&Sequences<'_, Host>>,
    ) -> Result<()> {
        let Place::Paged { table } = &self.place else {
            return Ok(());
        };
        let [pages, page_size] = self.rows()?;
        let each = table.len().checked_div(shape.batch).unwrap_or(0);
        for (batch, of_batch) in table.buf().chunks(each.max(1)).enumerate() {
            let count = self
                .tokens(shape, sequences, batch)
                .div_ceil(page_size.max(1));
            check_pages(of_batch, batch.saturating_mul(each), count, pages)?;
        }
        Ok(())
    }

    /// Where a token's row is: the batch entry or page, counted over all axes before the rows, and the row in it. The token is one
    /// that [`Cached::first_token`] lets the cache have.
    #[must_use]
    pub fn row_of(&self, shape: &AttentionShape, batch: usize, token: usize) -> [usize; 2] {
        let rows = self.rows().map_or(0, |[_, rows]| rows).max(1);
        match &self.place {
            Place::Contiguous => [batch, token],
            Place::Ring => [batch, token % rows],
            Place::Paged { table } => {
                let each = table.len().checked_div(shape.batch).unwrap_or(0);
                let index = batch.saturating_mul(each).saturating_add(token / rows);
                [entry(table.buf(), index, usize::MAX), token % rows]
            }
        }
    }
}

impl<T: Element> Attention<'_, Host, T> {
    /// Checks what the arrays of lengths, starts and pages hold; `shape` is [`Attention::shape`].
    ///
    /// # Errors
    ///
    /// [`Error::Entry`], as [`Sequences::check_contents`] and [`Cached::check_contents`].
    pub fn check_contents(&self, shape: &AttentionShape) -> Result<()> {
        let sequences = self.visible.sequences.as_ref();
        sequences.map_or(Ok(()), |sequences| sequences.check_contents(shape))?;
        match &self.source {
            KeyValue::Dense { .. } => Ok(()),
            KeyValue::Cached(cached) => cached.check_contents(shape, sequences),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Dims;
    use crate::position::{Causal, Window};
    use crate::view::{Flat, HostView};
    use crate::{Alignment, Rows};

    fn shape(batch: usize, queries: usize, keys: usize) -> AttentionShape {
        let query = Dims::new(&[batch, queries, 1, 4]).unwrap();
        let key = Dims::new(&[batch, keys, 1, 4]).unwrap();
        AttentionShape::of(&query, &key, &key).unwrap()
    }

    fn flat(numbers: &[i32]) -> Flat<'_, Host, i32> {
        Flat::new(numbers)
    }

    fn packed<'a>(query_starts: &'a [i32], key_starts: &'a [i32]) -> Sequences<'a, Host> {
        Sequences::Packed {
            query_starts: flat(query_starts),
            key_starts: flat(key_starts),
        }
    }

    #[test]
    fn a_query_belongs_to_the_sequence_that_began_last() {
        let sequences = packed(&[1, 3, 3, 3, 6], &[0, 4, 4, 5, 5]);
        let shape = shape(1, 7, 5);
        assert!(sequences.check_contents(&shape).is_ok());
        let of = |query| sequences.span_of(&shape, 0, query);
        assert_eq!([of(0), of(6), of(70)], [None, None, None]);
        assert_eq!(of(2).map(|span| span.keys), Some(0..4));
        // Its two empty neighbours own nothing.
        assert_eq!(
            of(3).map(|span| (span.queries, span.keys)),
            Some((3..6, 5..5))
        );
        assert_eq!(sequences.spans(&shape, 0).count(), 4);
    }

    #[test]
    fn padding_belongs_to_nothing() {
        let (keys, queries) = ([3, 0], [2, 4]);
        let sequences = Sequences::Padded {
            key_lengths: flat(&keys),
            query_lengths: Some(flat(&queries)),
        };
        let shape = shape(2, 4, 5);
        assert_eq!(sequences.span_of(&shape, 0, 2), None);
        assert_eq!(
            sequences.span_of(&shape, 1, 3).map(|span| span.keys),
            Some(0..0)
        );
    }

    #[test]
    fn contents_that_cannot_be_are_named() {
        let shape = shape(1, 7, 5);
        let wrong = |starts: &[i32], argument, index| {
            let error = packed(starts, &[0; 3]).check_contents(&shape);
            assert!(
                matches!(error, Err(Error::Entry { argument: a, index: i, .. }) if (a, i) == (argument, index)),
                "{error:?}"
            );
        };
        wrong(&[-1, 2, 3], "query_starts", 0);
        wrong(&[0, 3, 2], "query_starts", 2);
        wrong(&[0, 3, 8], "query_starts", 2);
        assert!(
            packed(&[0, 7, 7], &[0, 5, 6])
                .check_contents(&shape)
                .is_err()
        );
        let far = packed(&[i32::MIN, 9, 3], &[7, -4, 99]);
        assert!((0..9).all(|query| {
            far.span_of(&shape, 0, query)
                .is_none_or(|span| span.keys.end <= 5)
        }));
    }

    #[test]
    fn positions_are_those_in_the_sequence() {
        let span = Span {
            queries: 10..13,
            keys: 20..25,
        };
        let visible = Visible::<'_, Host> {
            causal: Some(Causal::bottom_right()),
            window: Some(Window::new(Alignment::BottomRight, Some(1), None)),
            ..Visible::default()
        };
        assert_eq!(visible.keys_in(&span, 10), 21..23);
        assert_eq!(visible.keys_in(&span, 12), 23..25);
    }

    #[test]
    fn only_pages_that_hold_tokens_are_looked_at() {
        let data = [0f32; 3 * 2 * 4];
        let rows = || Rows::Plain(HostView::new(&data, &[3, 2, 1, 4]).unwrap());
        let table = [2, 0, 77, 1, -5, -5];
        let cached = |length| Cached::<'_, Host, f32> {
            key: rows(),
            value: rows(),
            place: Place::Paged {
                table: flat(&table),
            },
            length,
        };
        let shape = |length| shape(2, 1, length);
        assert!(cached(2).check_contents(&shape(2), None).is_ok());
        assert!(matches!(
            cached(3).check_contents(&shape(3), None),
            Err(Error::Entry {
                index: 4,
                got: -5,
                most: 2,
                ..
            })
        ));
        let lengths = [4, 1];
        let sequences = Sequences::Padded {
            key_lengths: flat(&lengths),
            query_lengths: None,
        };
        assert!(
            cached(4)
                .check_contents(&shape(4), Some(&sequences))
                .is_ok()
        );
        assert_eq!(cached(4).row_of(&shape(4), 0, 3), [0, 1]);
    }
}
