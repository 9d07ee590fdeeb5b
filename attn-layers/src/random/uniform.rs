//! Uniform numbers, and truth values from them (`jax.random.uniform`, `jax.random.bernoulli`).
//!
//! Random bits become the mantissa of a number between 1 and 2; less 1, it is stretched over the range. `bfloat16` takes 7 of 8 random
//! bits.

use super::arithmetic::{constant, maximum, multiply_add, negative, sum};
use super::{Bits, Convention, Counters, DefaultWidth, Key};
use attn_core::{DType, Element, Result, bf16, f16};

/// Numbers of `low..high`, all alike (`jax.random.uniform`). Rounding may reach `high`; where `high` is not above `low`, all are `low`.
///
/// # Errors
///
/// [`Error::RandomLength`](crate::Error::RandomLength) where old counters do not reach that far.
///
/// ```
/// use attn_layers::random::{self, Counters, Key};
/// let mut out = [0.0f32; 2];
/// random::uniform(Key::from_words([0, 42]), Counters::PerElement, 0.0, 1.0, &mut out)?;
/// assert_eq!(out, [0.48870957, 0.6797972]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
pub fn uniform<T: Element>(
    key: Key,
    counters: Counters,
    low: f64,
    high: f64,
    out: &mut [T],
) -> Result<()> {
    let range = Range::new(constant(low), constant(high));
    range.fill(key, counters, out, |value| value)
}

/// Truth values, each true with `probability` (`jax.random.bernoulli`). The probability is compared in the default width, so the same key
/// gives others in 64 bits.
///
/// # Errors
///
/// [`Error::RandomLength`](crate::Error::RandomLength) where old counters do not reach that far.
///
/// ```
/// use attn_layers::random::{self, Convention, Key};
/// let mut out = [false; 4];
/// random::bernoulli(Key::from_words([0, 42]), Convention::default(), 0.5, &mut out)?;
/// assert_eq!(out, [true, false, false, false]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
pub fn bernoulli(
    key: Key,
    convention: Convention,
    probability: f64,
    out: &mut [bool],
) -> Result<()> {
    fn compare<T: Element>(
        key: Key,
        counters: Counters,
        probability: f64,
        out: &mut [bool],
    ) -> Result<()> {
        let probability = T::from_f64(probability);
        let bits = bits_for::<T>(key, counters, out.len())?;
        for (index, out) in out.iter_mut().enumerate() {
            *out = unit::<T>(bits.at(index as u64)) < probability;
        }
        Ok(())
    }
    match convention.width {
        DefaultWidth::Bits32 => compare::<f32>(key, convention.counters, probability, out),
        DefaultWidth::Bits64 => compare::<f64>(key, convention.counters, probability, out),
    }
}

/// A range to draw from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range<T> {
    low: T,
    width: T,
}

impl<T: Element> Range<T> {
    pub(crate) fn new(low: T, high: T) -> Self {
        Self {
            low,
            width: sum(high, negative(low)),
        }
    }

    /// Draws an array and puts each number through `map`.
    pub(crate) fn fill(
        &self,
        key: Key,
        counters: Counters,
        out: &mut [T],
        map: impl Fn(T) -> T,
    ) -> Result<()> {
        let bits = bits_for::<T>(key, counters, out.len())?;
        for (index, out) in out.iter_mut().enumerate() {
            let unit = unit(bits.at(index as u64));
            *out = map(maximum(self.low, multiply_add(unit, self.width, self.low)));
        }
        Ok(())
    }
}

/// The bits of an array of `length` numbers.
fn bits_for<T: Element>(key: Key, counters: Counters, length: usize) -> Result<Bits> {
    let length = length as u64;
    match T::DTYPE {
        DType::F64 => Bits::of_64(key, counters, length),
        DType::F32 => Bits::of_32(key, counters, length),
        DType::F16 => Bits::of_16(key, counters, length),
        DType::BF16 => Bits::of_8(key, counters, length),
    }
}

/// A number of `0..1` from an element's bits.
fn unit<T: Element>(bits: u64) -> T {
    T::from_f64(match T::DTYPE {
        DType::F64 => f64::from_bits(bits >> 12 | 1f64.to_bits()) - 1.0,
        DType::F32 => (f32::from_bits((bits >> 9) as u32 | 1f32.to_bits()) - 1.0).into(),
        DType::F16 => f16::from_bits((bits >> 6) as u16 | f16::ONE.to_bits()).to_f64() - 1.0,
        DType::BF16 => bf16::from_bits((bits >> 1) as u16 | bf16::ONE.to_bits()).to_f64() - 1.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::from_words([0, 42]);

    #[test]
    fn uniform_numbers_are_those_of_jax() {
        let mut out = [0.0f32; 4];
        uniform(KEY, Counters::PerElement, 0.0, 1.0, &mut out).unwrap();
        let wanted = [0x3efa_3824, 0x3f2e_0730, 0x3f1d_c3f8, 0x3f0f_9ec0];
        assert_eq!(out.map(f32::to_bits), wanted);
    }

    #[test]
    fn truth_values_depend_on_the_width() {
        for (width, wanted) in [
            (DefaultWidth::Bits32, "1000101000100010"),
            (DefaultWidth::Bits64, "1100000011110001"),
        ] {
            let mut out = [false; 16];
            let convention = Convention {
                width,
                ..Convention::default()
            };
            bernoulli(KEY, convention, 0.5, &mut out).unwrap();
            let wanted: [bool; 16] = core::array::from_fn(|i| wanted.as_bytes()[i] == b'1');
            assert_eq!(out, wanted, "{width:?}");
        }
    }

    #[test]
    fn a_probability_may_be_anything() {
        let mut out = [false; 8];
        for (probability, all) in [(-1.0, false), (0.0, false), (f64::NAN, false), (1.0, true)] {
            bernoulli(KEY, Convention::default(), probability, &mut out).unwrap();
            assert_eq!(out, [all; 8], "{probability}");
        }
    }

    #[test]
    fn an_empty_range_gives_its_beginning() {
        let mut out = [0.0f64; 3];
        uniform(KEY, Counters::SplitInHalves, 2.0, 1.0, &mut out).unwrap();
        assert_eq!(out, [2.0; 3]);
    }
}
