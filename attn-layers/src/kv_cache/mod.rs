//! Caches of keys and values: what owns the rows that a kernel reads as [`Cached`], and fills them.
//!
//! A cache has room for a number of sequences, each of a length of its own. Tokens are appended, sequences put back to an earlier length, forked, removed and
//! added. After any error the cache is as it was.

mod incoming;
mod index;
#[cfg(feature = "alloc")]
mod owned;
mod pages;
mod plan;
mod quantize;
mod rows;

use attn_core::{Cached, Dims, Element, Error, Flat, Host, HostView, Place, Result, Sequences};
use index::{Copies, Index};
use rows::Width;

pub(crate) use incoming::{Incoming, Targets};
#[cfg(feature = "alloc")]
pub use owned::OwnedKvCache;
pub use plan::{KvCachePlan, KvCacheSizes, KvFormat, KvLayout, RowSizes};
pub use rows::RowBuffers;

/// The buffers of a [`KvCache`]; [`KvCachePlan::sizes`] gives their lengths.
#[derive(Debug)]
pub struct KvCacheBuffers<'c, T> {
    /// Keys.
    pub key: RowBuffers<'c, T>,
    /// Values.
    pub value: RowBuffers<'c, T>,
    /// Lengths, pages and the like.
    pub index: &'c mut [i32],
}

/// A cache of keys and values in the caller's buffers, without an allocator.
///
/// A sequence is named by its number, which is its place in the batch of a call, from 0 to [`KvCachePlan::sequences`]. The number of one that was removed is given to
/// the next that is added.
///
/// ```
/// use attn_layers::core::{Attention, Causal, Kernels};
/// use attn_layers::{HostView, KvCache, KvCacheBuffers, KvCachePlan, KvLayout, RowBuffers};
///
/// let plan = KvCachePlan::new(KvLayout::Contiguous { capacity: 4 }, 2, 1, 1);
/// let sizes = plan.sizes()?;
/// assert_eq!((sizes.key.plain, sizes.index), (8, 10));
/// let (mut keys, mut values, mut index) = ([0.0f32; 8], [0.0f32; 8], [0; 10]);
/// let buffers = KvCacheBuffers {
///     key: RowBuffers::Plain(&mut keys),
///     value: RowBuffers::Plain(&mut values),
///     index: &mut index,
/// };
/// let mut cache = KvCache::new(plan, buffers)?;
///
/// // Two tokens of the first sequence, one of the second; what follows it is padding.
/// let new = [1.0, 2.0, 3.0, f32::NAN];
/// let new = HostView::new(&new, &[2, 2, 1, 1])?; // [batch, tokens, key_heads, depth]
/// cache.append(new, new, Some(&[2, 1]))?;
/// assert_eq!((cache.length(0)?, cache.length(1)?), (2, 1));
///
/// // What a kernel reads.
/// let cached = cache.as_cached()?;
/// let query = [0.0f32; 2];
/// let call = Attention::cached(HostView::new(&query, &[2, 1, 1, 1])?, &cached)
///     .with_causal(Some(Causal::bottom_right()))
///     .with_sequences(Some(cache.key_lengths()));
/// assert_eq!(call.shape()?.key_length, 2);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[attn_macros::dtype_variants(f32, f64, f16, bf16, derive(Debug))]
#[derive(Debug)]
pub struct KvCache<'c, T: Element> {
    plan: KvCachePlan,
    key: RowBuffers<'c, T>,
    value: RowBuffers<'c, T>,
    index: Index<'c>,
}

impl<'c, T: Element> KvCache<'c, T> {
    /// A cache with all of its sequences, each without a token.
    ///
    /// # Errors
    ///
    /// Those of [`KvCachePlan::sizes`]; [`Error::Buffer`] for a buffer of another length, [`Error::Unsupported`] for one of another format.
    pub fn new(plan: KvCachePlan, buffers: KvCacheBuffers<'c, T>) -> Result<Self> {
        let mut cache = Self::over(plan, buffers)?;
        cache.index.reset(true);
        Ok(cache)
    }

    /// A cache that goes on with what its buffers hold.
    fn over(plan: KvCachePlan, buffers: KvCacheBuffers<'c, T>) -> Result<Self> {
        let sizes = plan.sizes()?;
        let KvCacheBuffers { key, value, index } = buffers;
        key.check("cached key", plan.key_format, &sizes.key)?;
        value.check("cached value", plan.value_format, &sizes.value)?;
        if index.len() != sizes.index {
            return Err(Error::Buffer {
                argument: "cache index",
                got: index.len(),
                wanted: sizes.index,
            });
        }
        Ok(Self {
            index: Index::new(&plan, index),
            plan,
            key,
            value,
        })
    }

    /// What the cache is like.
    #[must_use]
    pub const fn plan(&self) -> &KvCachePlan {
        &self.plan
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    ///
    /// [`Error::SequenceUnknown`].
    pub fn length(&self, sequence: usize) -> Result<usize> {
        self.index.length(sequence)
    }

    /// Tokens of the longest sequence.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.index.longest()
    }

    /// Whether there is a sequence of this number.
    #[must_use]
    pub fn is_present(&self, sequence: usize) -> bool {
        self.index.is_present(sequence)
    }

    /// Pages that no sequence has; `None` if the cache is not paged.
    #[must_use]
    pub fn free_pages(&self) -> Option<usize> {
        self.index.free_pages()
    }

    /// The pages of a sequence, in the order of its tokens; none if the cache is not paged.
    ///
    /// # Errors
    ///
    /// [`Error::SequenceUnknown`].
    pub fn pages(&self, sequence: usize) -> Result<&[i32]> {
        self.index.pages(sequence)
    }

    /// How many sequences have a page.
    #[must_use]
    pub fn page_owners(&self, page: i32) -> usize {
        self.index.owners(page)
    }

    /// Adds tokens to the sequences: keys `[batch..., tokens, key_heads, depth]`, values likewise, any strides. Of batch entry `s` the first `counts[s]` tokens go to sequence
    /// `s`, all without `counts`. No token of a quantised format may have a number that is infinite or none.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`], [`Error::Rank`], [`Error::Mismatch`]; [`Error::Buffer`] or [`Error::Entry`] for `counts`; [`Error::SequenceUnknown`] for tokens of a sequence that is not there;
    /// [`Error::CacheFull`], [`Error::PageTableFull`], [`Error::PagesExhausted`]; [`Error::NotQuantizable`]. The cache is then as it was.
    pub fn append(
        &mut self,
        key: HostView<'_, T>,
        value: HostView<'_, T>,
        counts: Option<&[usize]>,
    ) -> Result<()> {
        let sequences = None;
        self.take_in(&Incoming::new(key, value, Targets { sequences, counts }))
    }

    /// Adds tokens to some sequences: batch entry `n` is that of sequence `sequences[n]`. One sequence may have no batch axis.
    ///
    /// # Errors
    ///
    /// As [`KvCache::append`]; [`Error::SequenceTwice`].
    pub fn append_to(
        &mut self,
        sequences: &[usize],
        key: HostView<'_, T>,
        value: HostView<'_, T>,
        counts: Option<&[usize]>,
    ) -> Result<()> {
        let sequences = Some(sequences);
        self.take_in(&Incoming::new(key, value, Targets { sequences, counts }))
    }

    /// Puts a sequence back to its first `length` tokens. Any sequence can be put back to 0.
    ///
    /// # Errors
    ///
    /// [`Error::SequenceUnknown`]; [`Error::Rollback`] beyond its length, or where a ring does not hold the whole window before `length` any more.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
        self.index.truncate(sequence, length)
    }

    /// Takes all tokens of all sequences.
    pub fn clear(&mut self) {
        for sequence in 0..self.plan.sequences {
            if self.is_present(sequence) {
                // Nothing keeps a sequence that is there from being put back to 0.
                let cleared = self.index.truncate(sequence, 0);
                debug_assert!(cleared.is_ok(), "{cleared:?}");
            }
        }
    }

    /// Adds a sequence without a token and gives its number.
    ///
    /// # Errors
    ///
    /// [`Error::SequencesFull`].
    pub fn add(&mut self) -> Result<usize> {
        self.index.add()
    }

    /// Adds a sequence of the same tokens as `sequence` and gives its number. In a paged cache both have the same pages, of which each copies the one that it
    /// appends to; else the rows are copied.
    ///
    /// # Errors
    ///
    /// [`Error::SequenceUnknown`], [`Error::SequencesFull`].
    pub fn fork(&mut self, sequence: usize) -> Result<usize> {
        let (fork, copies) = self.index.fork(sequence)?;
        self.copy(copies);
        Ok(fork)
    }

    /// Removes a sequence; its pages, as far as no other has them, are free.
    ///
    /// # Errors
    ///
    /// [`Error::SequenceUnknown`].
    pub fn remove(&mut self, sequence: usize) -> Result<()> {
        self.index.remove(sequence)
    }

    /// Removes every sequence.
    pub fn remove_all(&mut self) {
        self.index.reset(false);
    }

    /// The numbers of a token, keys `[key_heads, depth]` and values `[key_heads, value_depth]`, as a kernel sees them.
    ///
    /// # Errors
    ///
    /// [`Error::SequenceUnknown`]; [`Error::Entry`] for a token that is not there (any more); [`Error::Buffer`].
    pub fn read(
        &self,
        sequence: usize,
        token: usize,
        key: &mut [T],
        value: &mut [T],
    ) -> Result<()> {
        let held = self.index.held(sequence)?;
        if !held.contains(&token) {
            return Err(Error::Entry {
                argument: "token",
                index: sequence,
                got: i64::try_from(token).unwrap_or(i64::MAX),
                least: held.start as i64,
                most: held.end as i64 - 1,
            });
        }
        let row = self.index.row(sequence, token);
        let (key_width, value_width) = self.widths();
        for (argument, got, width) in [
            ("key", key.len(), key_width),
            ("value", value.len(), value_width),
        ] {
            let wanted = width.heads * width.depth;
            if got != wanted {
                return Err(Error::Buffer {
                    argument,
                    got,
                    wanted,
                });
            }
        }
        self.key.read(key_width, row, key);
        self.value.read(value_width, row, value);
        Ok(())
    }

    /// As a kernel reads it, for queries of one batch axis.
    ///
    /// # Errors
    ///
    /// None for a cache that was made.
    pub fn as_cached(&self) -> Result<Cached<'_, Host, T>> {
        self.cached_for(&Dims::new(&[self.plan.sequences])?)
    }

    /// Some sequences as a kernel reads them, for queries of one batch axis, and how long they are: entry `n` is sequence `sequences[n]`.
    ///
    /// A contiguous cache is then one of pages as long as its capacity. The sequences of a ring must follow each other.
    ///
    /// # Errors
    ///
    /// [`Error::SequenceUnknown`], [`Error::SequenceTwice`]; [`Error::Unsupported`] for such sequences of a ring.
    pub fn as_cached_of(
        &mut self,
        sequences: &[usize],
    ) -> Result<(Cached<'_, Host, T>, Sequences<'_, Host>)> {
        self.check_choice(sequences)?;
        let batch = Dims::new(&[sequences.len()])?;
        let to = Targets {
            sequences: Some(sequences),
            counts: None,
        };
        self.seen_by(to, &batch, false)
    }

    /// What the queries of a call see, which are the tokens that were appended last, or as many for every batch entry. The targets were checked.
    pub(crate) fn seen_by(
        &mut self,
        to: Targets<'_>,
        batch: &Dims,
        appended: bool,
    ) -> Result<(Cached<'_, Host, T>, Sequences<'_, Host>)> {
        if let Some(sequences) = to.sequences {
            self.index.choose(sequences);
        }
        let entries = to.entries(self.plan.sequences);
        let (cached, lengths) = match to.sequences {
            None => (self.cached_for(batch)?, &*self.index.lengths),
            Some(sequences) => (
                self.chosen(sequences, batch)?,
                self.index.chosen_lengths(entries),
            ),
        };
        let added = Flat::new(&self.index.added[..entries]);
        let lengths = Sequences::Padded {
            key_lengths: Flat::new(lengths),
            query_lengths: appended.then_some(added),
        };
        Ok((cached, lengths))
    }

    fn cached_for(&self, batch: &Dims) -> Result<Cached<'_, Host, T>> {
        self.cached(self.index.place(), 0, batch, self.longest())
    }

    /// The sequences that were chosen.
    fn chosen(&self, sequences: &[usize], batch: &Dims) -> Result<Cached<'_, Host, T>> {
        let place = self.index.chosen_place(sequences.len());
        let lengths = self.index.chosen_lengths(sequences.len());
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let first = sequences.first().copied().unwrap_or(0);
        self.cached(place, first, batch, longest)
    }

    /// Rows from those of sequence `first` on, or all pages.
    fn cached<'s>(
        &'s self,
        place: Place<'s, Host>,
        first: usize,
        batch: &Dims,
        length: usize,
    ) -> Result<Cached<'s, Host, T>> {
        let [outer, inner] = self.plan.row_axes();
        let (first, shape) = match place {
            Place::Paged { .. } => (0, Dims::new(&[outer, inner])?),
            Place::Contiguous | Place::Ring => (first * inner, batch.push(inner)?),
        };
        let (key, value) = self.widths();
        Ok(Cached {
            key: self.key.as_rows(key, first, &shape)?,
            value: self.value.as_rows(value, first, &shape)?,
            place,
            length,
        })
    }

    /// How long each sequence is.
    #[must_use]
    pub fn key_lengths(&self) -> Sequences<'_, Host> {
        Sequences::Padded {
            key_lengths: Flat::new(self.index.lengths),
            query_lengths: None,
        }
    }

    /// The least number of tokens that can be added to any sequence before it is full, or a ring overwrites its first.
    pub(crate) fn least_room(&self) -> usize {
        self.index.least_room()
    }

    const fn widths(&self) -> (Width, Width) {
        let KvCachePlan {
            key_heads: heads,
            depth,
            value_depth,
            ..
        } = self.plan;
        let value = Width {
            heads,
            depth: value_depth,
        };
        (Width { heads, depth }, value)
    }

    fn take_in(&mut self, incoming: &Incoming<'_, T>) -> Result<()> {
        self.check(incoming)?;
        self.write(incoming);
        Ok(())
    }

    /// Whether the tokens fit, in every respect.
    pub(crate) fn check(&self, incoming: &Incoming<'_, T>) -> Result<()> {
        let depths = [self.plan.depth, self.plan.value_depth];
        incoming.check(self.plan.sequences, self.plan.key_heads, depths)?;
        self.check_room(incoming.to, incoming.tokens())?;
        for entry in 0..incoming.to.entries(self.plan.sequences) {
            for token in 0..incoming.count(entry) {
                self.check_token(incoming, entry, token)?;
            }
        }
        Ok(())
    }

    /// Whether the sequences are there, each named once, and have room for their tokens.
    pub(crate) fn check_room(&self, to: Targets<'_>, tokens: usize) -> Result<()> {
        let all = self.plan.sequences;
        to.check_counts(all, tokens)?;
        if let Some(sequences) = to.sequences {
            self.index.check_named(sequences)?;
        }
        self.index.check_room(to.growth(all, tokens))
    }

    /// Whether these sequences can be the batch of a call.
    pub(crate) fn check_choice(&self, sequences: &[usize]) -> Result<()> {
        self.index.check_named(sequences)?;
        self.index.check_order(sequences)
    }

    /// Whether the formats can hold a token.
    fn check_token(&self, incoming: &Incoming<'_, T>, entry: usize, token: usize) -> Result<()> {
        for head in 0..self.plan.key_heads {
            let key = incoming.key(entry, token, head);
            let value = incoming.value(entry, token, head);
            for (argument, rows, row) in [("key", &self.key, key), ("value", &self.value, value)] {
                if let Some(format) = rows.refuses(&row) {
                    return Err(Error::NotQuantizable {
                        argument,
                        format,
                        sequence: incoming.to.sequence(entry),
                        token,
                    });
                }
            }
        }
        Ok(())
    }

    /// Writes tokens that were checked, or parts of them one after the other.
    pub(crate) fn write(&mut self, incoming: &Incoming<'_, T>) {
        for entry in 0..incoming.to.entries(self.plan.sequences) {
            let (sequence, count) = (incoming.to.sequence(entry), incoming.count(entry));
            let first = self.index.lengths[sequence] as usize;
            let copies = self.index.grow(sequence, count);
            self.copy(copies);
            for token in self.index.overwritten(count)..count {
                let row = self.index.row(sequence, first + token);
                self.write_token(incoming, [entry, token], row);
            }
            self.index.added[entry] = count as i32;
        }
    }

    fn write_token(&mut self, incoming: &Incoming<'_, T>, [entry, token]: [usize; 2], row: usize) {
        let (key_width, value_width) = self.widths();
        for head in 0..self.plan.key_heads {
            let key = incoming.key(entry, token, head);
            self.key.write(key_width, row, head, &key);
            let value = incoming.value(entry, token, head);
            self.value.write(value_width, row, head, &value);
        }
    }

    fn copy(&mut self, copies: Option<Copies>) {
        let (key, value) = self.widths();
        if let Some(Copies { from, to, count }) = copies {
            self.key.copy(key, from, to, count);
            self.value.copy(value, from, to, count);
        }
    }
}
