//! The quantised formats: a factor and integers, for 32 numbers at a time or a whole row.
//!
//! A factor is the largest magnitude over 127, an integer the number over the factor, rounded to nearest, ties away from zero. All in `f32`, into which numbers of
//! an `f64` call are rounded first.

use attn_core::{Element, Host, Rows, f16};

/// Numbers that are gathered at a time; the block of `q8_0`.
pub(super) const BLOCK: usize = Rows::<'static, Host, f32>::BLOCK;
/// Bytes of a block of `q8_0`.
pub(super) const BLOCK_BYTES: usize = Rows::<'static, Host, f32>::BLOCK_BYTES;

/// The numbers of one head of one token, wherever they lie.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, T> {
    pub(super) buf: &'a [T],
    pub(super) start: usize,
    pub(super) stride: usize,
    pub(super) depth: usize,
}

impl<T: Element> Row<'_, T> {
    /// Copied as they are.
    pub(super) fn copy_to(&self, to: &mut [T]) {
        if self.stride == 1 || self.depth <= 1 {
            to.copy_from_slice(&self.buf[self.start..][..self.depth]);
            return;
        }
        for (index, to) in to.iter_mut().enumerate() {
            *to = self.buf[self.start + index * self.stride];
        }
    }

    /// Blocks of 32 numbers, the last filled up with zeros.
    fn blocks(&self) -> impl Iterator<Item = [f32; BLOCK]> {
        let row = *self;
        (0..row.depth).step_by(BLOCK).map(move |first| {
            let mut block = [0.0; BLOCK];
            let count = BLOCK.min(row.depth - first);
            let start = row.start + first * row.stride;
            if row.stride == 1 {
                for (to, from) in block.iter_mut().zip(&row.buf[start..][..count]) {
                    *to = number(*from);
                }
            } else {
                for (index, to) in block.iter_mut().take(count).enumerate() {
                    *to = number(row.buf[start + index * row.stride]);
                }
            }
            block
        })
    }

    /// The largest magnitude; infinite if a number is infinite or none.
    fn largest(&self) -> f32 {
        self.blocks()
            .map(|block| largest(&block))
            .fold(0.0, f32::max)
    }

    /// Whether [`Row::write_int8`] has a factor for this row.
    pub(super) fn fits_int8(&self) -> bool {
        self.largest().is_finite()
    }

    /// Whether [`Row::write_q8_0`] has factors for this row.
    pub(super) fn fits_q8_0(&self) -> bool {
        self.blocks()
            .all(|block| f16::from_f32(largest(&block) / 127.0).is_finite())
    }

    /// Integers, one for each number, and their factor.
    pub(super) fn write_int8(&self, to: &mut [i8]) -> f32 {
        let (factor, inverse) = factors(self.largest());
        for (block, to) in self.blocks().zip(to.chunks_mut(BLOCK)) {
            let integers = integers(&block, inverse);
            to.copy_from_slice(&integers[..to.len()]);
        }
        factor
    }

    /// Blocks of a factor and 32 integers.
    pub(super) fn write_q8_0(&self, to: &mut [u8]) {
        for (block, to) in self.blocks().zip(to.chunks_exact_mut(BLOCK_BYTES)) {
            let (factor, inverse) = factors(largest(&block));
            let (head, body) = to.split_at_mut(BLOCK_BYTES - BLOCK);
            head.copy_from_slice(&f16::from_f32(factor).to_le_bytes());
            for (to, integer) in body.iter_mut().zip(integers(&block, inverse)) {
                *to = integer.cast_unsigned();
            }
        }
    }
}

/// The numbers of a row of integers and their factor.
pub(super) fn from_int8<T: Element>(integers: &[i8], factor: f32, to: &mut [T]) {
    for (to, integer) in to.iter_mut().zip(integers) {
        *to = T::from_f64(f64::from(f32::from(*integer) * factor));
    }
}

/// The numbers of a row of blocks.
pub(super) fn from_q8_0<T: Element>(blocks: &[u8], to: &mut [T]) {
    for (block, to) in blocks.chunks_exact(BLOCK_BYTES).zip(to.chunks_mut(BLOCK)) {
        let (head, body) = block.split_at(BLOCK_BYTES - BLOCK);
        let factor = f16::from_le_bytes([head[0], head[1]]).to_f32();
        for (to, byte) in to.iter_mut().zip(body) {
            *to = T::from_f64(f64::from(f32::from(byte.cast_signed()) * factor));
        }
    }
}

fn number<T: Element>(x: T) -> f32 {
    x.to_f64() as f32
}

/// The largest magnitude of a block; infinite if a number is infinite or none.
fn largest(block: &[f32; BLOCK]) -> f32 {
    // As integers, magnitudes have the order of their bits, infinity and what is no number above all others; and integers vectorise.
    let bits = block.iter().fold(0, |most, x| x.abs().to_bits().max(most));
    f32::from_bits(bits.min(f32::INFINITY.to_bits()))
}

/// The factor for this largest magnitude, and its inverse. Both are 0 where the inverse would overflow: such a row is stored as zeros.
fn factors(largest: f32) -> (f32, f32) {
    let factor = largest / 127.0;
    let inverse = 1.0 / factor;
    match inverse.is_finite() {
        true => (factor, inverse),
        false => (0.0, 0.0),
    }
}

fn integers(block: &[f32; BLOCK], inverse: f32) -> [i8; BLOCK] {
    block.map(|x| round(x * inverse) as i8)
}

/// To nearest, ties away from zero; of magnitudes up to 128. (`f32::round` is a call without `std`, and does not vectorise.)
fn round(x: f32) -> i32 {
    let whole = x as i32;
    let rest = x - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(numbers: &[f32]) -> Row<'_, f32> {
        Row {
            buf: numbers,
            start: 0,
            stride: 1,
            depth: numbers.len(),
        }
    }

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for step in 0..=128 * 64 {
            let x = step as f32 / 64.0;
            for x in [x, x.next_up(), x.next_down(), -x, -x.next_up()] {
                assert_eq!(round(x), libm::roundf(x) as i32, "{x}");
            }
        }
    }

    #[test]
    fn rows_without_a_factor_are_told() {
        let mut numbers = [1.0; 64];
        assert!(row(&numbers).fits_int8() && row(&numbers).fits_q8_0());
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            numbers[40] = bad;
            assert!(!row(&numbers).fits_int8() && !row(&numbers).fits_q8_0());
        }
        // The largest factor of an f16 is 65504.
        numbers[40] = -65504.0 * 127.0;
        assert!(row(&numbers).fits_q8_0());
        numbers[40] = 1e7;
        assert!(row(&numbers).fits_int8() && !row(&numbers).fits_q8_0());
        let wide = [f64::MAX, 1.0];
        let row = Row {
            buf: &wide,
            start: 0,
            stride: 1,
            depth: 2,
        };
        assert!(!row.fits_int8());
    }

    #[test]
    fn tiny_rows_are_zeros_and_not_garbage() {
        for tiny in [f32::from_bits(1), 1e-40, 3e-39, 1e-37] {
            let numbers = [tiny, -tiny, 0.0];
            let (mut integers, mut back) = ([99; 3], [9.0f32; 3]);
            let factor = row(&numbers).write_int8(&mut integers);
            from_int8(&integers, factor, &mut back);
            assert!(back.iter().all(|x| x.abs() <= tiny * 1.01), "{tiny:e}");
            assert_eq!(integers[0], -integers[1]);
        }
    }
}
