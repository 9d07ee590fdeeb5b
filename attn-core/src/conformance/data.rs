//! Repeatable numbers.

use crate::dtype::Element;
use alloc::vec::Vec;

/// splitmix64.
pub(super) struct Numbers(u64);

impl Numbers {
    /// A stream that depends on `name` alone.
    pub(super) fn new(name: &str) -> Self {
        Self(name.bytes().fold(0x9e37_79b9_7f4a_7c15, |seed, byte| {
            (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, variance 1: the sum of twelve uniforms.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    /// `count` elements of about normal size.
    pub(super) fn elements<T: Element>(&mut self, count: usize, size: f64) -> Vec<T> {
        (0..count)
            .map(|_| T::from_f64(self.normal() * size))
            .collect()
    }
}
