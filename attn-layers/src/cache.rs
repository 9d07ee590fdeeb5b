//! The cache of a decoding layer whose dtypes are known only at run time.

use crate::axis::{slice, with_length, write_at};
use crate::tensor::{Tensor, TensorView};
use attn_core::{Dims, Error, Result};

/// Flax's collection `cache`.
///
/// A step writes keys and values at `cache_index` and counts on by 1. Past the end the last slot is overwritten again and
/// again, as `lax.dynamic_update_slice` does it. Unlike there, keys of a smaller batch than the cache's are an error.
#[derive(Debug, Clone, PartialEq)]
pub struct AnyCache {
    /// `cached_key`, `[batch..., max_length, num_kv_heads, head_dim]`, normalised and rotated where the layer does.
    pub cached_key: Tensor,
    /// `cached_value`, `[batch..., max_length, num_kv_heads, head_dim]`.
    pub cached_value: Tensor,
    /// `cache_index`: tokens seen so far.
    pub cache_index: i32,
}

/// What a call may do with a cache: whether the caller made the collection `cache` mutable, and whether it is there.
#[derive(Debug, Default)]
pub enum CacheAccess<'c> {
    /// There is none and none can be made.
    #[default]
    None,
    /// It is there and cannot be written.
    Immutable(&'c AnyCache),
    /// It can be written; where it is `None`, the call makes it.
    Mutable(&'c mut Option<AnyCache>),
}

/// What a step wrote over, to be put back if the call fails: a cache is unchanged after an error.
pub(crate) struct Overwritten {
    key: (usize, Tensor),
    value: (usize, Tensor),
    cache_index: i32,
}

impl AnyCache {
    /// Zeros in the shapes of these keys and values, no token seen.
    pub(crate) fn like(key: &TensorView<'_>, value: &TensorView<'_>) -> Result<Self> {
        Ok(Self {
            cached_key: Tensor::zeros(key.scalar(), key.shape())?,
            cached_value: Tensor::zeros(value.scalar(), value.shape())?,
            cache_index: 0,
        })
    }

    /// Number of slots.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] if `cached_key` has no length axis.
    pub fn max_length(&self) -> Result<usize> {
        Ok(self.cached_key.shape()[self.length_axis()?])
    }

    pub(crate) fn length_axis(&self) -> Result<usize> {
        let rank = self.cached_key.shape().rank();
        rank.checked_sub(3).ok_or(Error::Rank {
            argument: "cached_key",
            got: rank,
            wanted: "[batch..., max_length, num_kv_heads, head_dim]",
        })
    }

    /// Slots that no token has been written to.
    pub(crate) fn free(&self) -> Result<usize> {
        Ok(self.max_length()?.saturating_sub(self.start()?))
    }

    /// Only the query is held against the cache, as in Flax; each of the cache's heads serves `group` of the query's.
    pub(crate) fn check_query(&self, query: &Dims, tokens: usize, group: usize) -> Result<()> {
        let axis = self.length_axis()?;
        let heads = self.cached_key.shape()[axis + 1].saturating_mul(group);
        let wanted = with_length(self.cached_key.shape(), axis, tokens)?;
        let wanted = with_length(&wanted, axis + 1, heads)?;
        if *query == wanted {
            return Ok(());
        }
        Err(Error::CacheQueryShape {
            got: *query,
            wanted,
        })
    }

    /// Whether keys and values can be written: the dtypes of the cache, its shape but for a length that fits.
    pub(crate) fn check_update(&self, key: &TensorView<'_>, value: &TensorView<'_>) -> Result<()> {
        let axis = self.length_axis()?;
        let depth = self.cached_value.shape().last().copied().unwrap_or(0);
        let wanted = with_length(self.cached_key.shape(), axis + 2, depth)?;
        if *self.cached_value.shape() != wanted {
            return Err(Error::Shape {
                argument: "cached_value",
                got: *self.cached_value.shape(),
                wanted,
            });
        }
        check_one("key", &self.cached_key, key, axis)?;
        check_one("value", &self.cached_value, value, axis)
    }

    /// Writes keys and values at the index and counts on by `tokens`.
    pub(crate) fn update(
        &mut self,
        key: &TensorView<'_>,
        value: &TensorView<'_>,
        tokens: usize,
    ) -> Result<Overwritten> {
        self.check_update(key, value)?;
        let (axis, start) = (self.length_axis()?, self.start()?);
        let overwritten = Overwritten {
            key: overwrite(&mut self.cached_key, key, axis, start)?,
            value: overwrite(&mut self.cached_value, value, axis, start)?,
            cache_index: self.cache_index,
        };
        let tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
        self.cache_index = self.cache_index.saturating_add(tokens);
        Ok(overwritten)
    }

    /// The slot that the index names: a negative one counts from the end, as in `lax.dynamic_update_slice`.
    fn start(&self) -> Result<usize> {
        let from_end = self.cache_index.unsigned_abs() as usize;
        if self.cache_index < 0 {
            Ok(self.max_length()?.saturating_sub(from_end))
        } else {
            Ok(from_end)
        }
    }
}

impl Overwritten {
    pub(crate) fn restore(self, cache: &mut AnyCache) {
        // The slots were written before, so the axis is there.
        let axis = cache.cached_key.shape().rank() - 3;
        for (cached, (first, old)) in [
            (&mut cache.cached_key, self.key),
            (&mut cache.cached_value, self.value),
        ] {
            write_at(cached, &old.view(), axis, first);
        }
        cache.cache_index = self.cache_index;
    }
}

fn check_one(
    argument: &'static str,
    cached: &Tensor,
    new: &TensorView<'_>,
    axis: usize,
) -> Result<()> {
    if cached.scalar() != new.scalar() {
        return Err(Error::DTypeMismatch {
            argument,
            got: new.scalar(),
            wanted: cached.scalar(),
        });
    }
    let length = new.shape().get(axis).copied().unwrap_or(0);
    let fits = length <= cached.shape()[axis]
        && *new.shape() == with_length(cached.shape(), axis, length)?;
    if fits {
        return Ok(());
    }
    Err(Error::Shape {
        argument,
        got: *new.shape(),
        wanted: *cached.shape(),
    })
}

/// Writes `new` from slot `start` on, moved back where it would not fit (`lax.dynamic_update_slice`), and gives the slot and
/// what was there.
fn overwrite(
    cached: &mut Tensor,
    new: &TensorView<'_>,
    axis: usize,
    start: usize,
) -> Result<(usize, Tensor)> {
    let count = new.shape()[axis];
    let first = start.min(cached.shape()[axis] - count);
    let old = slice("cache", &cached.view(), axis, first, count)?;
    write_at(cached, new, axis, first);
    Ok((first, old))
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_core::ScalarType;

    fn cache(max_length: usize) -> AnyCache {
        let empty = Tensor::zeros(ScalarType::F32, &[max_length, 1, 1]).unwrap();
        AnyCache::like(&empty.view(), &empty.view()).unwrap()
    }

    fn token(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, &[values.len(), 1, 1]).unwrap()
    }

    fn feed(cache: &mut AnyCache, values: &[f32]) -> Overwritten {
        let new = token(values);
        cache.update(&new.view(), &new.view(), 1).unwrap()
    }

    #[test]
    fn past_the_end_the_last_slot_is_overwritten_and_the_index_counts_on() {
        let mut cache = cache(2);
        for value in [1.0, 2.0, 3.0, 4.0] {
            feed(&mut cache, &[value]);
        }
        assert_eq!(cache.cached_key.to_vec_f64(), [1.0, 4.0]);
        assert_eq!((cache.cache_index, cache.free().unwrap()), (4, 0));
    }

    #[test]
    fn several_keys_of_one_step_are_moved_back_to_fit() {
        let mut cache = cache(3);
        feed(&mut cache, &[1.0]);
        feed(&mut cache, &[2.0, 3.0, 4.0]);
        assert_eq!(cache.cached_key.to_vec_f64(), [2.0, 3.0, 4.0]);
        assert_eq!(cache.cache_index, 2);
    }

    #[test]
    fn a_negative_index_counts_from_the_end() {
        let mut cache = cache(3);
        for (index, value) in [(-1, 1.0), (-3, 2.0), (-9, 3.0)] {
            cache.cache_index = index;
            feed(&mut cache, &[value]);
        }
        assert_eq!(cache.cached_value.to_vec_f64(), [3.0, 0.0, 1.0]);
    }

    #[test]
    fn a_step_can_be_undone() {
        let mut cache = cache(2);
        feed(&mut cache, &[1.0]);
        let before = cache.clone();
        let overwritten = feed(&mut cache, &[5.0, 6.0]);
        assert_ne!(cache, before);
        overwritten.restore(&mut cache);
        assert_eq!(cache, before);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut cache = cache(2);
        let (good, long) = (token(&[1.0]), token(&[1.0; 3]));
        let double = Tensor::zeros(ScalarType::F64, &[1, 1, 1]).unwrap();
        assert!(matches!(
            cache.update(&long.view(), &good.view(), 1),
            Err(Error::Shape {
                argument: "key",
                ..
            })
        ));
        assert!(matches!(
            cache.update(&good.view(), &double.view(), 1),
            Err(Error::DTypeMismatch {
                argument: "value",
                ..
            })
        ));
        cache.cached_value = Tensor::zeros(ScalarType::F32, &[2]).unwrap();
        assert!(matches!(
            cache.update(&good.view(), &good.view(), 1),
            Err(Error::Shape {
                argument: "cached_value",
                ..
            })
        ));
        cache.cached_key = Tensor::zeros(ScalarType::F32, &[2]).unwrap();
        assert!(matches!(cache.max_length(), Err(Error::Rank { .. })));
    }
}
