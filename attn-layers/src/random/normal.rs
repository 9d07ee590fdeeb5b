//! Normal numbers, whole and truncated (`jax.random.normal`, `jax.random.truncated_normal`): the inverse error function of uniform ones.

use super::arithmetic::{constant, maximum, minimum, next_down, next_up, product};
use super::erf::{erf_inv, erf_of_bound};
use super::{Counters, Key, Range};
use attn_core::{Element, Result};
use core::f64::consts::SQRT_2;

/// Normal numbers of mean 0 and deviation 1 (`jax.random.normal`).
///
/// # Errors
///
/// [`Error::RandomLength`](crate::Error::RandomLength) where old counters do not reach that far.
pub fn normal<T: Element>(key: Key, counters: Counters, out: &mut [T]) -> Result<()> {
    NormalDraw::new().fill(key, counters, out, |value| product(constant(SQRT_2), value))
}

/// Normal numbers of deviation 1 that lie between `lower` and `upper` (`jax.random.truncated_normal`).
///
/// # Errors
///
/// [`Error::RandomLength`](crate::Error::RandomLength) where old counters do not reach that far.
///
/// ```
/// use attn_layers::random::{self, Counters, Key};
/// let mut out = [0.0f32; 2];
/// random::truncated_normal(Key::from_words([0, 42]), Counters::PerElement, -2.0, 2.0, &mut out)?;
/// assert_eq!(out, [-0.027016498, 0.44438082]);
/// # Ok::<(), attn_layers::Error>(())
/// ```
pub fn truncated_normal<T: Element>(
    key: Key,
    counters: Counters,
    lower: f64,
    upper: f64,
    out: &mut [T],
) -> Result<()> {
    TruncatedDraw::new(lower, upper).fill(key, counters, out, |value| value)
}

/// Draws of a normal number over `sqrt(2)`: the factor is left to the caller, since JAX joins it with others in more than one order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormalDraw<T> {
    range: Range<T>,
}

impl<T: Element> NormalDraw<T> {
    pub(crate) fn new() -> Self {
        let low = next_up(T::from_f64(-1.0));
        Self {
            range: Range::new(low, T::from_f64(1.0)),
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
        self.range
            .fill(key, counters, out, |uniform| map(erf_inv(uniform)))
    }
}

/// Draws of a truncated normal number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TruncatedDraw<T> {
    range: Range<T>,
    /// The bounds themselves are outside.
    first: T,
    last: T,
}

impl<T: Element> TruncatedDraw<T> {
    pub(crate) fn new(lower: f64, upper: f64) -> Self {
        let (lower, upper) = (constant(lower), constant(upper));
        Self {
            range: Range::new(erf_of_bound(lower), erf_of_bound(upper)),
            first: next_up(lower),
            last: next_down(upper),
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
        let sqrt2 = constant(SQRT_2);
        self.range.fill(key, counters, out, |uniform| {
            let value = product(sqrt2, erf_inv(uniform));
            map(minimum(maximum(value, self.first), self.last))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_core::{bf16, f16};

    const KEY: Key = Key::from_words([0, 42]);

    #[test]
    fn normal_numbers_are_those_of_jax() {
        let mut out = [0.0f32; 4];
        normal(KEY, Counters::PerElement, &mut out).unwrap();
        let wanted = [0xbce7_df15, 0x3eef_2be8, 0x3e97_6661, 0x3e1d_3b24];
        assert_eq!(out.map(f32::to_bits), wanted);
    }

    fn truncated<T: Element>() -> [T; 4] {
        let mut out = [T::default(); 4];
        truncated_normal(KEY, Counters::PerElement, -2.0, 2.0, &mut out).unwrap();
        out
    }

    #[test]
    fn truncated_numbers_are_those_of_jax() {
        assert_eq!(
            truncated::<f32>().map(f32::to_bits),
            [0xbcdd_51b4, 0x3ee3_85e2, 0x3e90_5231, 0x3e16_0635]
        );
        assert_eq!(
            truncated::<bf16>().map(bf16::to_bits),
            [0x3ea3, 0x3f72, 0x3fcd, 0x3f6b]
        );
        assert_eq!(
            truncated::<f16>().map(f16::to_bits),
            [0xbd3b, 0xba9a, 0x3ebc, 0x3947]
        );
        assert_eq!(
            truncated::<f64>()[..2],
            [-0.17621763938261406, -1.7856590554261624]
        );
    }

    #[test]
    fn truncated_numbers_stay_inside() {
        let mut out = [f16::ZERO; 2000];
        truncated_normal(KEY, Counters::PerElement, -0.5, 3.0, &mut out).unwrap();
        let (lower, upper) = (f16::from_f32(-0.5), f16::from_f32(3.0));
        assert!(out.iter().all(|&x| x > lower && x < upper));
    }
}
