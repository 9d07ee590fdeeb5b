//! A cache that owns its buffers.

use super::{KvCache, KvCachePlan, KvFormat, RowBuffers, RowSizes};
use crate::tensor::filled;
use alloc::vec::Vec;
use attn_core::{Dims, Element, Result};

/// A [`KvCache`] that owns its buffers. All of its memory is taken when it is made.
///
/// ```
/// use attn_layers::{HostView, KvCachePlan, KvFormat, KvLayout, OwnedKvCache};
/// let layout = KvLayout::Paged { page_size: 2, pages: 4, pages_per_sequence: 3 };
/// let plan = KvCachePlan::new(layout, 2, 1, 32).with_formats(KvFormat::Q8_0, KvFormat::Int8);
/// let mut owned = OwnedKvCache::<f32>::new(plan)?;
/// let mut cache = owned.borrow();
///
/// cache.remove_all();
/// let prompt = cache.add()?;
/// let rows = [0.5f32; 96];
/// let rows = HostView::new(&rows, &[3, 1, 32])?; // [tokens, key_heads, depth]
/// cache.append_to(&[prompt], rows, rows, None)?;
///
/// let answer = cache.fork(prompt)?; // takes no page
/// assert_eq!((cache.length(answer)?, cache.free_pages()), (3, Some(2)));
/// let (mut key, mut value) = ([0.0; 32], [0.0; 32]);
/// cache.read(answer, 2, &mut key, &mut value)?;
/// assert!((value[0] - 0.5).abs() < 1e-6 && (key[0] - 0.5).abs() < 1e-3);
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct OwnedKvCache<T: Element> {
    plan: KvCachePlan,
    key: OwnedRows<T>,
    value: OwnedRows<T>,
    index: Vec<i32>,
}

#[derive(Debug, Clone)]
enum OwnedRows<T> {
    Plain(Vec<T>),
    Int8 { values: Vec<i8>, scales: Vec<f32> },
    Q8_0(Vec<u8>),
}

impl<T: Element> OwnedKvCache<T> {
    /// A cache with all of its sequences, each without a token.
    ///
    /// # Errors
    ///
    /// Those of [`KvCachePlan::sizes`]; [`Error::TooLarge`](crate::Error::TooLarge) if there is no memory for it.
    pub fn new(plan: KvCachePlan) -> Result<Self> {
        let sizes = plan.sizes()?;
        let mut owned = Self {
            plan,
            key: OwnedRows::new(plan.key_format, &sizes.key)?,
            value: OwnedRows::new(plan.value_format, &sizes.value)?,
            index: zeros(sizes.index)?,
        };
        owned.borrow().index.reset(true);
        Ok(owned)
    }

    /// The cache, borrowed: it goes on with what is there.
    pub fn borrow(&mut self) -> KvCache<'_, T> {
        KvCache {
            plan: self.plan,
            key: self.key.borrow(),
            value: self.value.borrow(),
            index: super::Index::new(&self.plan, &mut self.index),
        }
    }

    /// What the cache is like.
    #[must_use]
    pub const fn plan(&self) -> &KvCachePlan {
        &self.plan
    }

    /// Bytes that its buffers take.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.key.bytes() + self.value.bytes() + size_of_val(self.index.as_slice())
    }
}

impl<T: Element> OwnedRows<T> {
    fn new(format: KvFormat, sizes: &RowSizes) -> Result<Self> {
        Ok(match format {
            KvFormat::Plain => Self::Plain(zeros(sizes.plain)?),
            KvFormat::Int8 => Self::Int8 {
                values: zeros(sizes.int8)?,
                scales: zeros(sizes.scales)?,
            },
            KvFormat::Q8_0 => Self::Q8_0(zeros(sizes.q8_0)?),
        })
    }

    fn borrow(&mut self) -> RowBuffers<'_, T> {
        match self {
            Self::Plain(numbers) => RowBuffers::Plain(numbers),
            Self::Int8 { values, scales } => RowBuffers::Int8 { values, scales },
            Self::Q8_0(bytes) => RowBuffers::Q8_0(bytes),
        }
    }

    const fn bytes(&self) -> usize {
        match self {
            Self::Plain(numbers) => size_of_val(numbers.as_slice()),
            Self::Int8 { values, scales } => {
                size_of_val(values.as_slice()) + size_of_val(scales.as_slice())
            }
            Self::Q8_0(bytes) => bytes.len(),
        }
    }
}

fn zeros<N: Clone + Default>(len: usize) -> Result<Vec<N>> {
    filled(N::default(), len, &Dims::new(&[len])?)
}
