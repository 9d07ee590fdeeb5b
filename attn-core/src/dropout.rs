//! Dropout of attention weights as a value: which weights are kept follows from a key and an index.

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::random::{Bits, Convention, Counters, DefaultWidth, Key};
use crate::request::AttentionShape;

/// What dropout does to the weights after softmax: kept ones are multiplied, others become 0, none are renormalised.
///
/// The mask is never an array: a kernel asks for the bits of a tile, in the forward pass and again in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    key: Key,
    counters: Counters,
    shared: bool,
    width: DefaultWidth,
    limit: u128,
    multiplier: f64,
}

/// The bits of a call's mask: where an element lies, and which words mean that it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepBits {
    bits: Bits,
    limit: u128,
    /// Elements from one matrix (a head of a batch entry) to the next; 0 if all share one mask.
    matrix: u64,
    keys: u64,
}

impl Dropout {
    /// Dropout of `rate` with the numbers of `key`. `dtype` is the one that Flax rounds the multiplier to; `shared` is
    /// `broadcast_dropout`: one mask for all batch entries and heads. `None` for a rate of 0.
    ///
    /// A rate of 1 makes every output NaN, as Flax's `0 / 0` does.
    ///
    /// # Errors
    ///
    /// [`Error::DropoutRate`] for a rate that is not in `0..=1`.
    ///
    /// ```
    /// use attn_core::{DType, Dropout, random::{Convention, Key}};
    /// let key = Key::from_words([0xb776_6976, 0x811d_a1f6]);
    /// let dropout = Dropout::new(key, 0.1, DType::BF16, true, Convention::default())?.unwrap();
    /// assert_eq!(dropout.multiplier(), 1.109375);
    /// assert!(Dropout::new(key, 1.5, DType::F32, true, Convention::default()).is_err());
    /// # Ok::<(), attn_core::Error>(())
    /// ```
    pub fn new(
        key: Key,
        rate: f64,
        dtype: DType,
        shared: bool,
        convention: Convention,
    ) -> Result<Option<Self>> {
        check_rate(rate)?;
        if rate == 0.0 {
            return Ok(None);
        }
        let keep = 1.0 - rate;
        // `uniform < keep` for numbers that are a whole count of steps: the count is compared, in the place where the
        // word has it.
        let limit = match convention.width {
            DefaultWidth::Bits32 => steps(f64::from(keep as f32), 23) << 9,
            DefaultWidth::Bits64 => steps(keep, 52) << 12,
        };
        Ok(Some(Self {
            key,
            counters: convention.counters,
            shared,
            width: convention.width,
            limit,
            multiplier: multiplier(dtype, keep),
        }))
    }

    /// What a kept weight is multiplied with; NaN for a rate of 1.
    #[must_use]
    pub const fn multiplier(&self) -> f64 {
        self.multiplier
    }

    /// The bits for a call of this shape.
    ///
    /// # Errors
    ///
    /// [`Error::RandomLength`] where old counters do not reach that far.
    pub fn bits(&self, shape: &AttentionShape) -> Result<KeepBits> {
        let matrix = (shape.query_length as u64).saturating_mul(shape.key_length as u64);
        let matrices = match self.shared {
            true => 1,
            false => (shape.batch as u64).saturating_mul(shape.num_heads as u64),
        };
        let length = matrix.saturating_mul(matrices);
        let bits = match self.width {
            DefaultWidth::Bits32 => Bits::of_32(self.key, self.counters, length)?,
            DefaultWidth::Bits64 => Bits::of_64(self.key, self.counters, length)?,
        };
        Ok(KeepBits {
            bits,
            limit: self.limit,
            matrix: if self.shared { 0 } else { matrix },
            keys: shape.key_length as u64,
        })
    }
}

impl KeepBits {
    /// Whether the weight of `query` and `key` in `matrix` (a head of a batch entry, batch first) is kept.
    #[must_use]
    pub const fn keeps(&self, matrix: usize, query: usize, key: usize) -> bool {
        let word = self.bits.at(self.index(matrix, query, key));
        (word as u128) < self.limit
    }

    /// Where that weight's word lies among the words.
    #[must_use]
    pub const fn index(&self, matrix: usize, query: usize, key: usize) -> u64 {
        self.matrix * matrix as u64 + self.keys * query as u64 + key as u64
    }

    /// The words.
    #[must_use]
    pub const fn words(&self) -> &Bits {
        &self.bits
    }

    /// A word below it means that the weight is kept. At most 2 to the power of the words' width.
    #[must_use]
    pub const fn limit(&self) -> u128 {
        self.limit
    }
}

/// A rate must be a probability.
///
/// # Errors
///
/// [`Error::DropoutRate`].
pub fn check_rate(rate: f64) -> Result<()> {
    if (0.0..=1.0).contains(&rate) {
        Ok(())
    } else {
        Err(Error::DropoutRate { got: rate })
    }
}

/// How many multiples of `2^-bits`, from 0 on, lie below `x` in `0..=1`.
fn steps(x: f64, bits: u32) -> u128 {
    let scaled = x * (1u64 << bits) as f64;
    let whole = scaled as u64;
    u128::from(whole) + u128::from(whole as f64 != scaled)
}

/// `1 / keep`, both rounded to `dtype`.
fn multiplier(dtype: DType, keep: f64) -> f64 {
    fn inverse<T: Element>(keep: f64) -> f64 {
        let keep = T::from_f64(keep).to_f64();
        if keep == 0.0 {
            return f64::NAN;
        }
        T::from_f64(1.0 / keep).to_f64()
    }
    match dtype {
        DType::F32 => inverse::<f32>(keep),
        DType::F64 => inverse::<f64>(keep),
        DType::F16 => inverse::<crate::f16>(keep),
        DType::BF16 => inverse::<crate::bf16>(keep),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> AttentionShape {
        AttentionShape {
            batch: 2,
            num_heads: 3,
            key_heads: 3,
            query_length: 4,
            key_length: 4,
            depth: 1,
            value_depth: 1,
        }
    }

    #[test]
    fn the_mask_is_the_one_of_flax() {
        // key(1), the root module's first draw.
        let key = Key::from_words([0xb776_6976, 0x811d_a1f6]);
        let dropout = Dropout::new(key, 0.1, DType::F32, true, Convention::default());
        let bits = dropout.unwrap().unwrap().bits(&shape()).unwrap();
        for matrix in [0, 5] {
            for (i, keep) in "0101111111111111".chars().enumerate() {
                assert_eq!(bits.keeps(matrix, i / 4, i % 4), keep == '1', "{i}");
            }
        }
    }

    #[test]
    fn wide_probabilities_give_another_mask() {
        // key(42), p = 0.5.
        let key = Key::from_words([0, 42]);
        for (width, mask) in [
            (DefaultWidth::Bits32, "1000101000100010"),
            (DefaultWidth::Bits64, "1100000011110001"),
        ] {
            let convention = Convention {
                width,
                ..Convention::default()
            };
            let dropout = Dropout::new(key, 0.5, DType::F32, true, convention).unwrap();
            let bits = dropout.unwrap().bits(&shape()).unwrap();
            for (i, keep) in mask.chars().enumerate() {
                assert_eq!(bits.keeps(0, i / 4, i % 4), keep == '1', "{width:?} {i}");
            }
        }
    }

    #[test]
    fn rates_beyond_probabilities_are_refused() {
        for rate in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let dropout = Dropout::new(
                Key::from_words([0, 0]),
                rate,
                DType::F32,
                true,
                Convention::default(),
            );
            assert!(matches!(dropout, Err(Error::DropoutRate { .. })), "{rate}");
        }
    }

    #[test]
    fn a_rate_of_one_keeps_nothing_and_multiplies_by_nan() {
        let key = Key::from_words([0, 42]);
        let dropout = Dropout::new(key, 1.0, DType::F32, false, Convention::default());
        let dropout = dropout.unwrap().unwrap();
        let bits = dropout.bits(&shape()).unwrap();
        assert!(dropout.multiplier().is_nan() && !bits.keeps(0, 0, 0));
    }

    #[test]
    fn a_tiny_rate_keeps_every_weight() {
        let key = Key::from_words([0, 42]);
        let dropout = Dropout::new(key, 1e-12, DType::F32, false, Convention::default());
        assert_eq!(dropout.unwrap().unwrap().limit, 1 << 32);
    }
}
