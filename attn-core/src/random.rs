//! JAX's random keys and bits: Threefry-2x32 as a function from a key and an index to a word.
//!
//! Every element of a random array depends on its key and its own index alone, so a kernel can make the bits of a tile
//! where it needs them and never store them. All arithmetic is in integers: the bits are the same on every machine.
//!
//! Source: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3* (2011), and `jax.random` as observed.

use crate::error::{Error, Result};

/// Which number an element of a random array is drawn from: the setting `jax_threefry_partitionable` of the process whose
/// numbers are to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counters {
    /// Its own index (`True`, JAX's default since 0.5).
    #[default]
    PerElement,
    /// The array's words are numbered and cut into two halves that share a call (`False`): old checkpoints.
    SplitInHalves,
}

/// Width of a plain number: the setting `jax_enable_x64` of the process whose numbers are to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DefaultWidth {
    /// 32 bits (`False`, JAX's default): seeds are cut, probabilities are compared in `float32`.
    #[default]
    Bits32,
    /// 64 bits (`True`).
    Bits64,
}

/// How JAX was set up when it drew.
///
/// ```
/// use attn_core::random::{Convention, Counters, DefaultWidth};
/// let old = Convention { counters: Counters::SplitInHalves, ..Convention::default() };
/// assert_eq!(old.width, DefaultWidth::Bits32);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Convention {
    /// `jax_threefry_partitionable`.
    pub counters: Counters,
    /// `jax_enable_x64`.
    pub width: DefaultWidth,
}

/// A key of `jax.random`, generator `threefry2x32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// `jax.random.key(seed)`: with 32 bits the seed is cut, so `-5` and `2^32 - 5` are the same.
    ///
    /// ```
    /// use attn_core::random::{DefaultWidth, Key};
    /// assert_eq!(Key::new(-5, DefaultWidth::Bits32).words(), [0, 0xffff_fffb]);
    /// assert_eq!(Key::new(-5, DefaultWidth::Bits64).words(), [0xffff_ffff, 0xffff_fffb]);
    /// ```
    #[must_use]
    pub const fn new(seed: i64, width: DefaultWidth) -> Self {
        match width {
            DefaultWidth::Bits32 => Self([0, seed as u32]),
            DefaultWidth::Bits64 => Self([(seed >> 32) as u32, seed as u32]),
        }
    }

    /// The key of these words: what `jax.random.key_data` gives.
    #[must_use]
    pub const fn from_words(words: [u32; 2]) -> Self {
        Self(words)
    }

    /// The key of an array of words.
    ///
    /// # Errors
    ///
    /// [`Error::KeyWords`] if there are not two: other generators have longer keys.
    pub fn from_slice(words: &[u32]) -> Result<Self> {
        match *words {
            [first, second] => Ok(Self([first, second])),
            _ => Err(Error::KeyWords { got: words.len() }),
        }
    }

    /// Its words.
    #[must_use]
    pub const fn words(self) -> [u32; 2] {
        self.0
    }

    /// `jax.random.fold_in`.
    ///
    /// ```
    /// use attn_core::random::Key;
    /// assert_eq!(Key::from_words([0, 42]).fold_in(7).words(), [0x97d0_552f, 0x51bf_719f]);
    /// ```
    #[must_use]
    pub const fn fold_in(self, data: u32) -> Self {
        Self(threefry(self.0, [0, data]))
    }

    /// `jax.random.split(key, count)`, one key after the other.
    ///
    /// # Errors
    ///
    /// [`Error::RandomLength`] where [`Counters::SplitInHalves`] would need more than 2^32 words.
    ///
    /// ```
    /// use attn_core::random::{Counters, Key};
    /// let keys = Key::from_words([0, 42]).split(2, Counters::PerElement)?.collect::<Vec<_>>();
    /// assert_eq!(keys[1].words(), [0x03d7_b32d, 0xadd0_83f4]);
    /// # Ok::<(), attn_core::Error>(())
    /// ```
    pub fn split(self, count: u32, counters: Counters) -> Result<impl Iterator<Item = Self>> {
        let count = u64::from(count);
        let bits = Bits::new(self, counters, 32, count * 2)?;
        Ok((0..count).map(move |i| match counters {
            Counters::PerElement => Self(threefry(self.0, halves(i))),
            Counters::SplitInHalves => Self([bits.word(2 * i), bits.word(2 * i + 1)]),
        }))
    }
}

/// The random words of an array, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    key: Key,
    counters: Counters,
    width: u32,
    /// Elements of the array.
    length: u64,
    /// Of its 32-bit words, how many the first half has.
    half: u64,
}

impl Bits {
    /// The bits of an array of `length` elements of `width` bits: 8, 16, 32 or 64.
    ///
    /// # Errors
    ///
    /// [`Error::RandomLength`] where [`Counters::SplitInHalves`] would need more than 2^32 words.
    pub(crate) fn new(key: Key, counters: Counters, width: u32, length: u64) -> Result<Self> {
        let words = (u128::from(length) * u128::from(width)).div_ceil(32);
        if counters == Counters::SplitInHalves && words > 1 << 32 {
            return Err(Error::RandomLength { got: length });
        }
        let half = words.div_ceil(2) as u64;
        Ok(Self {
            key,
            counters,
            width,
            length,
            half,
        })
    }

    /// Bits of 8-bit elements.
    ///
    /// # Errors
    ///
    /// [`Error::RandomLength`] where [`Counters::SplitInHalves`] would need more than 2^32 words.
    pub fn of_8(key: Key, counters: Counters, length: u64) -> Result<Self> {
        Self::new(key, counters, 8, length)
    }

    /// Bits of 16-bit elements.
    ///
    /// # Errors
    ///
    /// As [`Bits::of_8`].
    pub fn of_16(key: Key, counters: Counters, length: u64) -> Result<Self> {
        Self::new(key, counters, 16, length)
    }

    /// Bits of 32-bit elements.
    ///
    /// # Errors
    ///
    /// As [`Bits::of_8`].
    pub fn of_32(key: Key, counters: Counters, length: u64) -> Result<Self> {
        Self::new(key, counters, 32, length)
    }

    /// Bits of 64-bit elements.
    ///
    /// # Errors
    ///
    /// As [`Bits::of_8`].
    pub fn of_64(key: Key, counters: Counters, length: u64) -> Result<Self> {
        Self::new(key, counters, 64, length)
    }

    /// Elements of the array.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The key that they are drawn with.
    #[must_use]
    pub const fn key(&self) -> Key {
        self.key
    }

    /// What each element is drawn from.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Bits of an element.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// The bits of element `index`, in the low bits (`jax.random.bits`).
    ///
    /// ```
    /// use attn_core::random::{Bits, Counters, Key};
    /// let bits = Bits::of_16(Key::from_words([0, 42]), Counters::PerElement, 4)?;
    /// assert_eq!([0, 1, 2, 3].map(|i| bits.at(i)), [0x13a2, 0x30d9, 0xf9f9, 0xc1d7]);
    /// # Ok::<(), attn_core::Error>(())
    /// ```
    #[must_use]
    pub const fn at(&self, index: u64) -> u64 {
        match self.counters {
            Counters::PerElement => {
                let [a, b] = threefry(self.key.0, halves(index));
                match self.width {
                    64 => (a as u64) << 32 | b as u64,
                    32 => (a ^ b) as u64,
                    width => (a ^ b) as u64 & ((1 << width) - 1),
                }
            }
            Counters::SplitInHalves => match self.width {
                64 => (self.word(index) as u64) << 32 | self.word(self.length + index) as u64,
                32 => self.word(index) as u64,
                width => {
                    let pieces = (32 / width) as u64;
                    let shift = (index % pieces) as u32 * width;
                    self.word(index / pieces) as u64 >> shift & ((1 << width) - 1)
                }
            },
        }
    }

    /// A 32-bit word under [`Counters::SplitInHalves`]: the halves are the two results of the same calls. Where the number
    /// of words is odd, the last call has 0 as its second counter.
    const fn word(&self, index: u64) -> u32 {
        let words = (self.length as u128 * self.width as u128).div_ceil(32) as u64;
        let first = if index < self.half {
            index
        } else {
            index - self.half
        };
        let second = first + self.half;
        let second = if second < words { second as u32 } else { 0 };
        let [a, b] = threefry(self.key.0, [first as u32, second]);
        if index < self.half { a } else { b }
    }
}

const fn halves(index: u64) -> [u32; 2] {
    [(index >> 32) as u32, index as u32]
}

/// Rotations of the rounds, four and four in turns. A kernel that makes vectors of words has the same.
pub const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];

/// The third word of the key schedule is the other two and this, exclusive-or.
pub const PARITY: u32 = 0x1bd1_1bda;

/// Threefry-2x32 with 20 rounds.
///
/// ```
/// use attn_core::random::threefry;
/// assert_eq!(threefry([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
/// ```
#[must_use]
pub const fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    let schedule = [key[0], key[1], key[0] ^ key[1] ^ PARITY];
    let mut x0 = counter[0].wrapping_add(key[0]);
    let mut x1 = counter[1].wrapping_add(key[1]);
    let mut group = 0;
    while group < 5 {
        let mut round = 0;
        while round < 4 {
            x0 = x0.wrapping_add(x1);
            x1 = x1.rotate_left(ROTATIONS[group % 2][round]) ^ x0;
            round += 1;
        }
        x0 = x0.wrapping_add(schedule[(group + 1) % 3]);
        x1 = x1
            .wrapping_add(schedule[(group + 2) % 3])
            .wrapping_add(group as u32 + 1);
        group += 1;
    }
    [x0, x1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::from_words([0, 42]);

    #[test]
    fn threefry_has_the_published_values() {
        let ones = [u32::MAX; 2];
        assert_eq!(threefry(ones, ones), [0x1cb9_96fc, 0xbb00_2be7]);
        let pi = threefry([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]);
        assert_eq!(pi, [0xc492_3a9c, 0x483d_f7a0]);
    }

    fn all(width: u32, counters: Counters, length: u64) -> [u64; 5] {
        let bits = Bits::new(KEY, counters, width, length).unwrap();
        core::array::from_fn(|i| {
            if (i as u64) < length {
                bits.at(i as u64)
            } else {
                0
            }
        })
    }

    #[test]
    fn bits_per_element_are_those_of_jax() {
        let all = |width| all(width, Counters::PerElement, 4);
        assert_eq!(
            all(32),
            [0x7d1c_13a2, 0xae07_30d9, 0x9dc3_f9f9, 0x8f9e_c1d7, 0]
        );
        assert_eq!(all(8), [0xa2, 0xd9, 0xf9, 0xd7, 0]);
        assert_eq!(all(64)[..2], [0x6d3e_048f_1022_172d, 0x03d7_b32d_add0_83f4]);
    }

    #[test]
    fn bits_in_halves_are_those_of_jax() {
        let all = |width, length| all(width, Counters::SplitInHalves, length);
        assert_eq!(
            all(32, 4),
            [0x92fb_20ea, 0xdb4c_98db, 0x0f38_d913, 0x0ff6_8959, 0]
        );
        assert_eq!(
            all(32, 5),
            [
                0xbad5_6946,
                0xde83_7c89,
                0x3249_c374,
                0x354b_a891,
                0x2fc6_9b62
            ]
        );
        assert_eq!(all(16, 5), [0x20ea, 0x92fb, 0xf86f, 0x19a3, 0xd913]);
        assert_eq!(all(8, 5), [0x2d, 0xb3, 0xd7, 0x03, 0xf4]);
    }

    #[test]
    fn split_is_fold_in_where_counters_are_indices() {
        for (i, key) in KEY.split(4, Counters::PerElement).unwrap().enumerate() {
            assert_eq!(key, KEY.fold_in(i as u32));
        }
    }

    #[test]
    fn a_longer_key_is_refused() {
        assert_eq!(
            Key::from_slice(&[1, 2, 3, 4]),
            Err(Error::KeyWords { got: 4 })
        );
    }

    #[test]
    fn halves_end_where_their_counters_do() {
        let too_long = Bits::of_64(KEY, Counters::SplitInHalves, (1 << 31) + 1);
        assert!(matches!(too_long, Err(Error::RandomLength { .. })));
        assert!(Bits::of_64(KEY, Counters::PerElement, u64::MAX).is_ok());
    }
}
