//! Which sequences there are, how long they are, and where their tokens lie.

use super::pages::Pool;
use super::plan::{KvCachePlan, KvLayout};
use attn_core::{Error, Flat, Host, Place, Result};
use core::ops::Range;

/// The bookkeeping of a cache, in one buffer of the caller's.
#[derive(Debug)]
pub(super) struct Index<'c> {
    /// Tokens that the last call added to the sequence of each batch entry.
    pub(super) added: &'c mut [i32],
    /// Lengths of the sequences that were chosen for a call.
    chosen_lengths: &'c mut [i32],
    /// Their rows of the table; for a contiguous cache their numbers: the rows of a sequence are one long page.
    chosen_table: &'c mut [i32],
    /// Tokens of each sequence.
    pub(super) lengths: &'c mut [i32],
    /// 1 for a sequence that is there.
    present: &'c mut [i32],
    place: Slots<'c>,
}

#[derive(Debug)]
enum Slots<'c> {
    Contiguous {
        capacity: usize,
    },
    Ring {
        window: usize,
        capacity: usize,
        /// The first token of each sequence that was not overwritten.
        starts: &'c mut [i32],
    },
    Paged {
        page_size: usize,
        table: Table<'c>,
        pool: Pool<'c>,
    },
}

/// Pages of each sequence, `[sequences, pages_per_sequence]`.
#[derive(Debug)]
struct Table<'c> {
    pages: &'c mut [i32],
    width: usize,
}

impl Table<'_> {
    fn row(&self, sequence: usize) -> &[i32] {
        &self.pages[sequence * self.width..][..self.width]
    }

    fn at(&mut self, sequence: usize, page: usize) -> &mut i32 {
        &mut self.pages[sequence * self.width + page]
    }
}

/// Rows to be copied before a sequence's next tokens are written.
pub(super) struct Copies {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) count: usize,
}

impl<'c> Index<'c> {
    /// Over a buffer of the plan's size.
    pub(super) fn new(plan: &KvCachePlan, buffer: &'c mut [i32]) -> Self {
        let (added, rest) = buffer.split_at_mut(plan.sequences);
        let (lengths, rest) = rest.split_at_mut(plan.sequences);
        let (present, rest) = rest.split_at_mut(plan.sequences);
        let (chosen_lengths, rest) = rest.split_at_mut(plan.sequences);
        let (chosen_table, rest) = rest.split_at_mut(plan.sequences * plan.table_width());
        let place = match plan.layout {
            KvLayout::Contiguous { capacity } => Slots::Contiguous { capacity },
            KvLayout::Ring { window, capacity } => Slots::Ring {
                window,
                capacity,
                starts: rest,
            },
            KvLayout::Paged {
                page_size,
                pages_per_sequence: width,
                ..
            } => {
                let (pages, pool) = rest.split_at_mut(plan.sequences * width);
                Slots::Paged {
                    page_size,
                    table: Table { pages, width },
                    pool: Pool(pool),
                }
            }
        };
        Self {
            added,
            chosen_lengths,
            chosen_table,
            lengths,
            present,
            place,
        }
    }

    /// Every sequence empty, and there or not.
    pub(super) fn reset(&mut self, present: bool) {
        self.added.fill(0);
        self.chosen_lengths.fill(0);
        self.chosen_table.fill(0);
        self.lengths.fill(0);
        self.present.fill(i32::from(present));
        match &mut self.place {
            Slots::Contiguous { .. } => {}
            Slots::Ring { starts, .. } => starts.fill(0),
            Slots::Paged { table, pool, .. } => {
                table.pages.fill(0);
                pool.clear();
            }
        }
    }

    pub(super) fn is_present(&self, sequence: usize) -> bool {
        self.present.get(sequence).is_some_and(|&flag| flag != 0)
    }

    /// The length of a sequence that is there.
    pub(super) fn length(&self, sequence: usize) -> Result<usize> {
        match self.is_present(sequence) {
            true => Ok(self.lengths[sequence] as usize),
            false => Err(Error::SequenceUnknown { sequence }),
        }
    }

    /// The length of the longest sequence.
    pub(super) fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0) as usize
    }

    /// The least number of tokens that no sequence has filled its rows with yet.
    pub(super) fn least_room(&self) -> usize {
        let capacity = match &self.place {
            Slots::Contiguous { capacity } | Slots::Ring { capacity, .. } => *capacity,
            Slots::Paged {
                page_size, table, ..
            } => page_size * table.width,
        };
        capacity.saturating_sub(self.longest())
    }

    pub(super) fn free_pages(&self) -> Option<usize> {
        match &self.place {
            Slots::Paged { pool, .. } => Some(pool.free()),
            Slots::Contiguous { .. } | Slots::Ring { .. } => None,
        }
    }

    /// The pages of a sequence, in order; none but in a paged cache.
    pub(super) fn pages(&self, sequence: usize) -> Result<&[i32]> {
        let length = self.length(sequence)?;
        Ok(match &self.place {
            Slots::Paged {
                page_size, table, ..
            } => &table.row(sequence)[..length.div_ceil(*page_size)],
            Slots::Contiguous { .. } | Slots::Ring { .. } => &[],
        })
    }

    /// How many sequences have a page; 0 for a number that is no page.
    pub(super) fn owners(&self, page: i32) -> usize {
        match &self.place {
            Slots::Paged { pool, .. } if (0..pool.0.len() as i64 - 2).contains(&page.into()) => {
                pool.owners(page)
            }
            _ => 0,
        }
    }

    /// Where a kernel finds the row of a token.
    pub(super) fn place(&self) -> Place<'_, Host> {
        match &self.place {
            Slots::Contiguous { .. } => Place::Contiguous,
            Slots::Ring { .. } => Place::Ring,
            Slots::Paged { table, .. } => Place::Paged {
                table: Flat::new(table.pages),
            },
        }
    }

    /// Whether these sequences are there, each named once.
    pub(super) fn check_named(&self, sequences: &[usize]) -> Result<()> {
        for (entry, &sequence) in sequences.iter().enumerate() {
            self.length(sequence)?;
            if sequences[..entry].contains(&sequence) {
                return Err(Error::SequenceTwice { sequence });
            }
        }
        Ok(())
    }

    /// Whether these sequences can be one batch.
    pub(super) fn check_order(&self, sequences: &[usize]) -> Result<()> {
        let follow = sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        match &self.place {
            Slots::Ring { .. } if !follow => Err(Error::Unsupported {
                backend: "a ring",
                feature: "a batch of sequences that do not follow each other",
                instead: "Name them in the order of their numbers without gaps, or give those between no token",
            }),
            _ => Ok(()),
        }
    }

    /// Makes sequences the batch of the next call. The choice was checked.
    pub(super) fn choose(&mut self, sequences: &[usize]) {
        for (to, &sequence) in self.chosen_lengths.iter_mut().zip(sequences) {
            *to = self.lengths[sequence];
        }
        match &self.place {
            Slots::Ring { .. } => {}
            Slots::Contiguous { .. } => {
                for (to, &sequence) in self.chosen_table.iter_mut().zip(sequences) {
                    *to = sequence as i32;
                }
            }
            Slots::Paged { table, .. } => {
                let rows = self.chosen_table.chunks_exact_mut(table.width);
                for (to, &sequence) in rows.zip(sequences) {
                    to.copy_from_slice(table.row(sequence));
                }
            }
        }
    }

    /// Lengths of the first `count` sequences that were chosen.
    pub(super) fn chosen_lengths(&self, count: usize) -> &[i32] {
        &self.chosen_lengths[..count]
    }

    /// Where a kernel finds the row of a token of the first `count` sequences that were chosen.
    pub(super) fn chosen_place(&self, count: usize) -> Place<'_, Host> {
        let width = match &self.place {
            Slots::Ring { .. } => return Place::Ring,
            Slots::Contiguous { .. } => 1,
            Slots::Paged { table, .. } => table.width,
        };
        Place::Paged {
            table: Flat::new(&self.chosen_table[..count * width]),
        }
    }

    /// The tokens of a sequence whose rows are there.
    pub(super) fn held(&self, sequence: usize) -> Result<Range<usize>> {
        let length = self.length(sequence)?;
        Ok(match &self.place {
            Slots::Ring { starts, .. } => starts[sequence] as usize..length,
            Slots::Contiguous { .. } | Slots::Paged { .. } => 0..length,
        })
    }

    /// The row of a token.
    pub(super) fn row(&self, sequence: usize, token: usize) -> usize {
        match &self.place {
            Slots::Contiguous { capacity } => sequence * capacity + token,
            Slots::Ring { capacity, .. } => sequence * capacity + token % capacity,
            Slots::Paged {
                page_size, table, ..
            } => {
                let page = table.row(sequence)[token / page_size] as usize;
                page * page_size + token % page_size
            }
        }
    }

    /// Tokens before the last so many of a call that adds `count` are overwritten by it.
    pub(super) fn overwritten(&self, count: usize) -> usize {
        match &self.place {
            Slots::Ring { capacity, .. } => count.saturating_sub(*capacity),
            Slots::Contiguous { .. } | Slots::Paged { .. } => 0,
        }
    }

    /// Whether there is room for so many more tokens of these sequences, each named once.
    pub(super) fn check_room(
        &self,
        growth: impl Iterator<Item = (usize, usize)> + Clone,
    ) -> Result<()> {
        let growth = growth.filter(|&(_, added)| added > 0);
        let mut pages = 0usize;
        for (position, (sequence, added)) in growth.clone().enumerate() {
            let length = self.length(sequence)?;
            let total = length.saturating_add(added);
            let capacity = match &self.place {
                Slots::Contiguous { capacity } => *capacity,
                Slots::Ring { .. } => i32::MAX as usize,
                Slots::Paged {
                    page_size, table, ..
                } => {
                    check_table(sequence, total.div_ceil(*page_size), table.width)?;
                    pages += total.div_ceil(*page_size) - length.div_ceil(*page_size);
                    let before = growth.clone().take(position).map(|(other, _)| other);
                    pages += usize::from(self.copies_tail(sequence, before));
                    continue;
                }
            };
            if total > capacity {
                return Err(Error::CacheFull {
                    got: added,
                    free: capacity - length,
                });
            }
        }
        match self.free_pages() {
            Some(free) if free < pages => Err(Error::PagesExhausted { got: pages, free }),
            _ => Ok(()),
        }
    }

    /// The page that a sequence's next token goes to, if it has tokens already.
    fn tail(&self, sequence: usize) -> Option<i32> {
        let Slots::Paged {
            page_size, table, ..
        } = &self.place
        else {
            return None;
        };
        let length = self.lengths[sequence] as usize;
        (!length.is_multiple_of(*page_size)).then(|| table.row(sequence)[length / page_size])
    }

    /// Whether a sequence must write to a copy of its last page. Of those that share one, each that comes `before` it in the call has left it by then.
    fn copies_tail(&self, sequence: usize, before: impl Iterator<Item = usize>) -> bool {
        let Slots::Paged { pool, .. } = &self.place else {
            return false;
        };
        let Some(page) = self.tail(sequence) else {
            return false;
        };
        let owners = pool.owners(page);
        // Most pages have one, and need no look at the others.
        owners > 1
            && owners
                - before
                    .filter(|&other| self.tail(other) == Some(page))
                    .count()
                > 1
    }

    /// Makes a sequence longer. Its room was checked.
    pub(super) fn grow(&mut self, sequence: usize, count: usize) -> Option<Copies> {
        let tail = self.tail(sequence);
        let length = self.lengths[sequence] as usize;
        self.lengths[sequence] += count as i32;
        match &mut self.place {
            Slots::Contiguous { .. } => None,
            Slots::Ring {
                capacity, starts, ..
            } => {
                let first = (length + count).saturating_sub(*capacity) as i32;
                starts[sequence] = starts[sequence].max(first);
                None
            }
            Slots::Paged {
                page_size,
                table,
                pool,
            } => {
                let shared = tail.filter(|&page| count > 0 && pool.owners(page) > 1);
                let copies = shared.map(|page| {
                    let own = pool.take();
                    pool.release(page);
                    *table.at(sequence, length / *page_size) = own;
                    Copies {
                        from: page as usize * *page_size,
                        to: own as usize * *page_size,
                        count: length % *page_size,
                    }
                });
                for page in length.div_ceil(*page_size)..(length + count).div_ceil(*page_size) {
                    *table.at(sequence, page) = pool.take();
                }
                copies
            }
        }
    }

    /// Puts a sequence back to its first `length` tokens.
    pub(super) fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
        let most = self.length(sequence)?;
        let least = match &self.place {
            // All of a window must be there.
            Slots::Ring { window, starts, .. } if starts[sequence] > 0 => {
                starts[sequence] as usize + window
            }
            _ => 0,
        };
        let can_be = length == 0 || length == most || (least..=most).contains(&length);
        if !can_be {
            return Err(Error::Rollback {
                sequence,
                got: length,
                least: least.min(most),
                most,
            });
        }
        match &mut self.place {
            Slots::Contiguous { .. } => {}
            Slots::Ring { starts, .. } => {
                if length == 0 {
                    starts[sequence] = 0;
                }
            }
            Slots::Paged {
                page_size,
                table,
                pool,
            } => {
                for page in length.div_ceil(*page_size)..most.div_ceil(*page_size) {
                    pool.release(core::mem::take(table.at(sequence, page)));
                }
            }
        }
        self.lengths[sequence] = length as i32;
        Ok(())
    }

    /// Adds an empty sequence at the first place that is free.
    pub(super) fn add(&mut self) -> Result<usize> {
        let most = self.present.len();
        let free = self.present.iter().position(|&flag| flag == 0);
        let sequence = free.ok_or(Error::SequencesFull { most })?;
        self.present[sequence] = 1;
        Ok(sequence)
    }

    /// Takes a sequence out.
    pub(super) fn remove(&mut self, sequence: usize) -> Result<()> {
        self.truncate(sequence, 0)?;
        self.present[sequence] = 0;
        self.added[sequence] = 0;
        Ok(())
    }

    /// A new sequence of the same tokens, and the rows to copy for it: none where pages are shared.
    pub(super) fn fork(&mut self, sequence: usize) -> Result<(usize, Option<Copies>)> {
        let length = self.length(sequence)?;
        let fork = self.add()?;
        self.lengths[fork] = self.lengths[sequence];
        let capacity = match &mut self.place {
            Slots::Contiguous { capacity } => *capacity,
            Slots::Ring {
                capacity, starts, ..
            } => {
                starts[fork] = starts[sequence];
                *capacity
            }
            Slots::Paged {
                page_size,
                table,
                pool,
            } => {
                for page in 0..length.div_ceil(*page_size) {
                    let shared = *table.at(sequence, page);
                    pool.share(shared);
                    *table.at(fork, page) = shared;
                }
                return Ok((fork, None));
            }
        };
        let copies = Copies {
            from: sequence * capacity,
            to: fork * capacity,
            count: length.min(capacity),
        };
        Ok((fork, Some(copies)))
    }
}

fn check_table(sequence: usize, got: usize, most: usize) -> Result<()> {
    match got <= most {
        true => Ok(()),
        false => Err(Error::PageTableFull {
            sequence,
            got,
            most,
        }),
    }
}
