//! Which cache: its layout and its format, as the command line names them.

use crate::model::Description;
use anyhow::{Context, Result};
use attn_layers::{KvCachePlan, KvFormat, KvLayout};
use core::fmt;

/// Characters of a page.
const PAGE: usize = 16;
/// What a ring holds beyond its window, so that a long prompt goes in by pieces of this many and one.
const SPARE: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Contiguous,
    Ring,
    Paged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    BF16,
    Int8,
    Q8_0,
}

const LAYOUTS: [(&str, Layout); 3] = [
    ("contiguous", Layout::Contiguous),
    ("ring", Layout::Ring),
    ("paged", Layout::Paged),
];
const FORMATS: [(&str, Format); 5] = [
    ("f32", Format::F32),
    ("f16", Format::F16),
    ("bf16", Format::BF16),
    ("int8", Format::Int8),
    ("q8_0", Format::Q8_0),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cache {
    pub(crate) layout: Layout,
    pub(crate) format: Format,
}

/// What there must be room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Characters of the longest sequence.
    pub(crate) longest: usize,
    /// Sequences at a time: one, or a prompt and a fork of it.
    pub(crate) sequences: usize,
}

impl Cache {
    /// Every layout with every format.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        LAYOUTS.into_iter().flat_map(|(_, layout)| {
            (FORMATS.into_iter()).map(move |(_, format)| Self { layout, format })
        })
    }

    /// `LAYOUT,FORMAT`.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let of = |name: &str| {
            let (layout, format) = name.split_once(',')?;
            let layout = LAYOUTS.iter().find(|(name, _)| *name == layout)?.1;
            let format = FORMATS.iter().find(|(name, _)| *name == format)?.1;
            Some(Self { layout, format })
        };
        of(name).with_context(|| {
            format!(
                "--cache is {name:?}; contiguous, ring or paged is needed, a comma, and f32, f16, bf16, int8 or q8_0"
            )
        })
    }

    /// The cache of one layer.
    pub(crate) fn plan(self, description: &Description, room: Room) -> KvCachePlan {
        let Room { longest, sequences } = room;
        let window = description.window;
        let pages_per_sequence = longest.div_ceil(PAGE);
        let layout = match self.layout {
            Layout::Contiguous => KvLayout::Contiguous { capacity: longest },
            Layout::Ring => KvLayout::Ring {
                window,
                capacity: window.saturating_add(SPARE),
            },
            Layout::Paged => KvLayout::Paged {
                page_size: PAGE,
                // One fork at a time grows to the full length. It shares the pages of its prompt but for the last, to which it appends.
                pages: pages_per_sequence.saturating_add(sequences.saturating_sub(1)),
                pages_per_sequence,
            },
        };
        let format = match self.format {
            Format::F32 | Format::F16 | Format::BF16 => KvFormat::Plain,
            Format::Int8 => KvFormat::Int8,
            Format::Q8_0 => KvFormat::Q8_0,
        };
        let (heads, depth) = (description.num_heads, description.head_dim());
        KvCachePlan::new(layout, sequences, heads, depth).with_formats(format, format)
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = LAYOUTS.iter().find(|(_, layout)| *layout == self.layout);
        let format = FORMATS.iter().find(|(_, format)| *format == self.format);
        let name =
            [layout.map(|one| one.0), format.map(|one| one.0)].map(Option::unwrap_or_default);
        f.pad(&name.join(","))
    }
}
