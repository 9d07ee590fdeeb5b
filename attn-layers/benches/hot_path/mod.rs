//! Calls of the hot path, with everything that they read and write made beforehand. One program counts their instructions,
//! another their allocations.
#![allow(dead_code, reason = "each program has its own copy and uses a part")]

pub(crate) mod attention;
pub(crate) mod layer;

use attn_layers::core::{Dropout, Element};
use attn_layers::random::{Convention, Key};

/// Repeatable numbers in `[-1, 1)` (splitmix64); another `stream`, other numbers.
pub(crate) fn numbers<T: Element>(stream: u64, len: usize) -> Vec<T> {
    let mut state = stream << 32;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = (z ^ (z >> 31)) >> 11;
        T::from_f64(bits as f64 / (1u64 << 52) as f64 - 1.0)
    };
    (0..len).map(|_| next()).collect()
}

/// A mask of its own for every head, as Flax's function draws it with `broadcast_dropout=False`.
pub(crate) fn dropout<T: Element>() -> Option<Dropout> {
    let key = Key::from_words([1, 2]);
    Dropout::new(key, 0.1, T::DTYPE, false, Convention::default()).expect("a probability")
}
