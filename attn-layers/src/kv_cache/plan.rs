//! What a cache is like, and how much memory that takes.

use super::quantize::{BLOCK, BLOCK_BYTES};
use attn_core::{Dims, Element, Error, Result};

/// Where the rows of a cache's sequences lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvLayout {
    /// Every sequence has room of its own for `capacity` tokens.
    Contiguous {
        /// Tokens that a sequence has room for.
        capacity: usize,
    },
    /// Every sequence keeps its last tokens, however long it grows; queries see a window of them.
    ///
    /// What there is room for beyond the window is what a sequence can be put back by, and it lets more tokens be added at once:
    /// `capacity - window + 1` in one pass, of which a long prompt takes many.
    Ring {
        /// Keys that a query sees, its own among them.
        window: usize,
        /// Tokens that a sequence has room for, at least `window`.
        capacity: usize,
    },
    /// Sequences take pages from one pool as they grow, and forks of a sequence share them (vLLM's PagedAttention, Kwon et al. 2023).
    Paged {
        /// Tokens of a page.
        page_size: usize,
        /// Pages of the pool.
        pages: usize,
        /// The most pages that a sequence can have.
        pages_per_sequence: usize,
    },
}

/// How the numbers of a cache are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// In the call's own type, bit for bit.
    #[default]
    Plain,
    /// Integers from -127 to 127, and one `f32` factor for each token and head: the largest magnitude over 127.
    Int8,
    /// Blocks of 32 such integers in 34 bytes, whose factor is an `f16` (`q8_0` of ggml, bit for bit). The depth is a multiple of 32.
    Q8_0,
}

/// What a cache is like: a plain value, from which its memory is reckoned.
///
/// ```
/// use attn_layers::{KvCachePlan, KvFormat, KvLayout};
/// let layout = KvLayout::Paged { page_size: 16, pages: 100, pages_per_sequence: 64 };
/// let plain = KvCachePlan::new(layout, 8, 4, 64); // sequences, key heads, depth
/// let quantised = plain.with_formats(KvFormat::Q8_0, KvFormat::Q8_0);
/// assert_eq!(plain.bytes_per_token::<f32>()?, 2 * 4 * 64 * 4);
/// assert_eq!(quantised.bytes_per_token::<f32>()?, 2 * 4 * 68);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCachePlan {
    /// Where rows lie.
    pub layout: KvLayout,
    /// Sequences that there is room for: the batch of a call.
    pub sequences: usize,
    /// Heads of keys and values.
    pub key_heads: usize,
    /// Depth of keys.
    pub depth: usize,
    /// Depth of values.
    pub value_depth: usize,
    /// How keys are stored.
    pub key_format: KvFormat,
    /// How values are stored.
    pub value_format: KvFormat,
}

/// Elements of the buffers for the keys, or the values, of a cache. Those that its format has no use for are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowSizes {
    /// Numbers of the call's own type.
    pub plain: usize,
    /// Integers of [`KvFormat::Int8`].
    pub int8: usize,
    /// Factors of [`KvFormat::Int8`].
    pub scales: usize,
    /// Bytes of [`KvFormat::Q8_0`].
    pub q8_0: usize,
}

/// Elements of each buffer of [`KvCacheBuffers`](crate::KvCacheBuffers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvCacheSizes {
    /// Keys.
    pub key: RowSizes,
    /// Values.
    pub value: RowSizes,
    /// Lengths, pages and the like.
    pub index: usize,
}

impl KvCachePlan {
    /// Keys and values of one depth, in the call's own type.
    #[must_use]
    pub const fn new(layout: KvLayout, sequences: usize, key_heads: usize, depth: usize) -> Self {
        Self {
            layout,
            sequences,
            key_heads,
            depth,
            value_depth: depth,
            key_format: KvFormat::Plain,
            value_format: KvFormat::Plain,
        }
    }

    /// With values of another depth.
    #[must_use]
    pub const fn with_value_depth(mut self, value_depth: usize) -> Self {
        self.value_depth = value_depth;
        self
    }

    /// With other formats.
    #[must_use]
    pub const fn with_formats(mut self, key: KvFormat, value: KvFormat) -> Self {
        self.key_format = key;
        self.value_format = value;
        self
    }

    /// Elements of each buffer.
    ///
    /// # Errors
    ///
    /// [`Error::Zero`] for a part that is 0; [`Error::BlockDepth`]; [`Error::Entry`] for a window beyond its ring's capacity; [`Error::TooLarge`] for more tokens or pages
    /// than an `i32` counts, or buffers beyond what this machine can address.
    pub fn sizes(&self) -> Result<KvCacheSizes> {
        self.check()?;
        Ok(KvCacheSizes {
            key: self.row_sizes("key", self.key_format, self.depth)?,
            value: self.row_sizes("value", self.value_format, self.value_depth)?,
            index: self.index_size()?,
        })
    }

    /// Bytes of all buffers for calls in `T`.
    ///
    /// # Errors
    ///
    /// As [`KvCachePlan::sizes`].
    pub fn bytes<T: Element>(&self) -> Result<usize> {
        let sizes = self.sizes()?;
        let total = || {
            let rows = (sizes.key.bytes::<T>()?).checked_add(sizes.value.bytes::<T>()?)?;
            rows.checked_add(sizes.index.checked_mul(size_of::<i32>())?)
        };
        total().ok_or_else(|| self.too_large("cache"))
    }

    /// Bytes that each token's keys and values of all heads take in calls in `T`.
    ///
    /// # Errors
    ///
    /// As [`KvCachePlan::sizes`].
    pub fn bytes_per_token<T: Element>(&self) -> Result<usize> {
        let sizes = self.sizes()?;
        let rows = self.rows()?;
        let each = |sizes: &RowSizes| Some(sizes.bytes::<T>()? / rows);
        let total = || each(&sizes.key)?.checked_add(each(&sizes.value)?);
        total().ok_or_else(|| self.too_large("cache"))
    }

    /// The most tokens that a sequence can have: a ring's may have any number.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        match self.layout {
            KvLayout::Contiguous { capacity } => capacity,
            KvLayout::Ring { .. } => i32::MAX as usize,
            KvLayout::Paged {
                page_size,
                pages_per_sequence,
                ..
            } => page_size.saturating_mul(pages_per_sequence),
        }
    }

    /// Tokens that all buffers have rows for.
    fn rows(&self) -> Result<usize> {
        let [outer, inner] = self.row_axes();
        outer
            .checked_mul(inner)
            .ok_or_else(|| self.too_large("cache"))
    }

    /// The axes before those of heads: sequences and capacity, or pages and their size.
    pub(super) const fn row_axes(&self) -> [usize; 2] {
        match self.layout {
            KvLayout::Contiguous { capacity } | KvLayout::Ring { capacity, .. } => {
                [self.sequences, capacity]
            }
            KvLayout::Paged {
                page_size, pages, ..
            } => [pages, page_size],
        }
    }

    fn check(&self) -> Result<()> {
        let [outer, inner] = self.row_axes();
        let (window, longest) = match self.layout {
            KvLayout::Ring { window, capacity } => (window, capacity),
            KvLayout::Contiguous { .. } | KvLayout::Paged { .. } => (1, self.capacity()),
        };
        let names = match self.layout {
            KvLayout::Contiguous { .. } | KvLayout::Ring { .. } => ["sequences", "capacity"],
            KvLayout::Paged { .. } => ["pages", "page_size"],
        };
        let sizes = [
            ("sequences", self.sequences),
            ("key_heads", self.key_heads),
            ("depth", self.depth),
            ("value_depth", self.value_depth),
            (names[0], outer),
            (names[1], inner),
            ("pages_per_sequence", longest),
            ("window", window),
        ];
        if let Some((argument, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(Error::Zero { argument });
        }
        if window > longest {
            return Err(Error::Entry {
                argument: "window",
                index: 0,
                got: i64::try_from(window).unwrap_or(i64::MAX),
                least: 1,
                most: i64::try_from(longest).unwrap_or(i64::MAX),
            });
        }
        // Kernels take lengths and pages as i32, and the pool numbers one page beyond its own.
        match self.sequences.max(outer).max(longest) < i32::MAX as usize {
            true => Ok(()),
            false => Err(self.too_large("cache")),
        }
    }

    fn row_sizes(
        &self,
        argument: &'static str,
        format: KvFormat,
        depth: usize,
    ) -> Result<RowSizes> {
        let [outer, inner] = self.row_axes();
        let elements = |width| Dims::new(&[outer, inner, self.key_heads, width])?.elements();
        let numbers = elements(depth)?;
        Ok(match format {
            KvFormat::Plain => RowSizes {
                plain: numbers,
                ..RowSizes::default()
            },
            KvFormat::Int8 => RowSizes {
                int8: numbers,
                scales: elements(1)?,
                ..RowSizes::default()
            },
            KvFormat::Q8_0 => RowSizes {
                q8_0: elements(q8_0_bytes(argument, depth)?)?,
                ..RowSizes::default()
            },
        })
    }

    /// Numbers of each sequence in a table of pages.
    pub(super) const fn table_width(&self) -> usize {
        match self.layout {
            // Its rows are one long page where a call chooses sequences.
            KvLayout::Contiguous { .. } => 1,
            KvLayout::Ring { .. } => 0,
            KvLayout::Paged {
                pages_per_sequence, ..
            } => pages_per_sequence,
        }
    }

    fn index_size(&self) -> Result<usize> {
        // Tokens added, lengths, which are there, lengths that were chosen, and their pages; then what a layout keeps of its own.
        let (each, pool) = match self.layout {
            KvLayout::Contiguous { .. } => (4, 0),
            KvLayout::Ring { .. } => (5, 0),
            KvLayout::Paged { pages, .. } => (4, pages.saturating_add(2)),
        };
        let tables = match self.layout {
            KvLayout::Contiguous { .. } | KvLayout::Ring { .. } => 1,
            KvLayout::Paged { .. } => 2,
        };
        let total = || {
            let each = self.table_width().checked_mul(tables)?.checked_add(each)?;
            self.sequences.checked_mul(each)?.checked_add(pool)
        };
        total().ok_or_else(|| self.too_large("page table"))
    }

    fn too_large(&self, argument: &'static str) -> Error {
        let [outer, inner] = self.row_axes();
        let got = Dims::SCALAR.concat(&[outer, inner, self.key_heads, self.depth]);
        Error::TooLarge {
            argument,
            got: got.unwrap_or(Dims::SCALAR),
        }
    }
}

/// Bytes of a row of this many numbers.
fn q8_0_bytes(argument: &'static str, depth: usize) -> Result<usize> {
    if !depth.is_multiple_of(BLOCK) {
        return Err(Error::BlockDepth {
            argument,
            got: depth,
            block: BLOCK,
        });
    }
    // Cannot overflow to a small number: a depth near it is refused with its buffer.
    Ok((depth / BLOCK).saturating_mul(BLOCK_BYTES))
}

impl RowSizes {
    fn bytes<T: Element>(&self) -> Option<usize> {
        let plain = self.plain.checked_mul(size_of::<T>())?;
        let scales = self.scales.checked_mul(size_of::<f32>())?;
        plain
            .checked_add(scales)?
            .checked_add(self.int8)?
            .checked_add(self.q8_0)
    }
}
