//! Flax's random streams: which key the n-th draw of a module gets (`flax.core.scope`, `Scope.make_rng`).
//!
//! A draw's key follows from the stream's own key, the module's names from the root down, and the number of the draw in that
//! module: the first word of their SHA-1 is folded into the key.

use super::{Convention, Key};
use crate::initializers::NormalOrder;
use attn_core::{Error, Result};
use sha1::{Digest, Sha1};

/// How the names of a path are joined before they are hashed: the setting `flax_fix_rng_separator` of the process whose numbers are to
/// be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathNames {
    /// One after the other (`False`, Flax's default): `ab/c` and `a/bc` share their keys.
    #[default]
    Joined,
    /// A zero byte before each (`True`).
    Separated,
}

/// What a key is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Parameters.
    Params,
    /// Dropout masks.
    Dropout,
}

/// The streams given to `init` or `apply` (`rngs={'params': ..., 'dropout': ...}`).
///
/// ```
/// use attn_layers::random::{Key, Rngs, Stream};
/// let rngs = Rngs { dropout: Some(Key::from_words([0, 1])), ..Rngs::default() };
/// assert_eq!(rngs.make_rng(Stream::Dropout, &[], 1)?.words(), [0xb776_6976, 0x811d_a1f6]);
/// assert!(rngs.make_rng(Stream::Params, &[], 1).is_err());
/// # Ok::<(), attn_layers::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rngs {
    /// The stream `params`; also serves dropout if that has no stream of its own.
    pub params: Option<Key>,
    /// The stream `dropout`.
    pub dropout: Option<Key>,
    /// How JAX was set up.
    pub convention: Convention,
    /// How Flax was set up.
    pub names: PathNames,
    /// In which order initializers scale normal numbers.
    pub normal_order: NormalOrder,
}

impl Rngs {
    /// The stream `params` alone, drawn as JAX and Flax do by default: what `init(key, ...)` means.
    #[must_use]
    pub fn params(key: Key) -> Self {
        Self {
            params: Some(key),
            ..Self::default()
        }
    }

    /// The key of draw `count` (from 1) of the module at `path` (`module.make_rng`). Two streams that fall together share their count.
    ///
    /// # Errors
    ///
    /// [`Error::DropoutRngMissing`], [`Error::ParamsRngMissing`] if neither the stream nor `params` is there; [`Error::Unsupported`] for a
    /// `count` of 0.
    pub fn make_rng(&self, stream: Stream, path: &[&str], count: u32) -> Result<Key> {
        self.fold(self.key(stream)?, path.iter().copied(), count)
    }

    /// The key of parameter `count` (from 1) of the module `scope` below `path`: of a dense layer the kernel is 1 and the bias 2.
    /// An empty `scope` is the module at `path` itself.
    ///
    /// # Errors
    ///
    /// [`Error::ParamsRngMissing`] if the stream is not there; [`Error::Unsupported`] for a `count` of 0.
    ///
    /// ```
    /// use attn_layers::random::{Key, Rngs};
    /// let rngs = Rngs::params(Key::from_words([0, 0]));
    /// assert_eq!(rngs.param_key(&[], "query", 1)?.words(), [0x4e03_ff6b, 0x4908_ac29]);
    /// # Ok::<(), attn_layers::Error>(())
    /// ```
    pub fn param_key(&self, path: &[&str], scope: &str, count: u32) -> Result<Key> {
        let below = (!scope.is_empty()).then_some(scope);
        let names = path.iter().copied().chain(below);
        self.fold(self.key(Stream::Params)?, names, count)
    }

    fn key(&self, stream: Stream) -> Result<Key> {
        match stream {
            Stream::Params => self.params.ok_or(Error::ParamsRngMissing),
            Stream::Dropout => self.dropout.or(self.params).ok_or(Error::DropoutRngMissing),
        }
    }

    fn fold<'n>(&self, key: Key, names: impl Iterator<Item = &'n str>, count: u32) -> Result<Key> {
        if count == 0 {
            return Err(NO_DRAW);
        }
        let mut hash = Sha1::new();
        let mut part = |bytes: &[u8]| {
            if self.names == PathNames::Separated {
                hash.update([0]);
            }
            hash.update(bytes);
        };
        names.for_each(|name| part(name.as_bytes()));
        let count = count.to_be_bytes();
        let leading_zeros = count.iter().take_while(|&&byte| byte == 0).count();
        part(&count[leading_zeros..]);
        let digest: [u8; 20] = hash.finalize().into();
        Ok(key.fold_in(u32::from_be_bytes([
            digest[0], digest[1], digest[2], digest[3],
        ])))
    }
}

/// No module of Flax ever draws it.
const NO_DRAW: Error = Error::Unsupported {
    backend: "a random stream",
    feature: "a draw of number 0",
    instead: "Count a module's draws from 1",
};

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Key = Key::from_words([0, 0]);
    const ONE: Key = Key::from_words([0, 1]);

    #[test]
    fn parameters_of_a_root_module_get_the_keys_of_flax() {
        let rngs = Rngs::params(ZERO);
        for (scope, count, words) in [
            ("query", 1, [0x4e03_ff6b, 0x4908_ac29]),
            ("query", 2, [0x8860_2531, 0x94e4_9aa9]),
            ("key", 1, [0x7bfd_a305, 0x6c40_f36e]),
            ("key", 2, [0x0b5f_272b, 0xe359_0154]),
            ("value", 1, [0xb893_1c03, 0x9c4a_7c8d]),
            ("value", 2, [0xa679_4afd, 0x0660_13f8]),
            ("out", 1, [0x0ce8_71ff, 0xb447_63ea]),
            ("out", 2, [0x6a8e_b979, 0xfe01_f15b]),
        ] {
            let key = rngs.param_key(&[], scope, count).unwrap();
            assert_eq!(key.words(), words, "{scope} {count}");
        }
    }

    #[test]
    fn a_parent_is_part_of_the_path() {
        let path = ["MultiHeadDotProductAttention_0"];
        let rngs = Rngs::params(ZERO);
        let query = rngs.param_key(&path, "query", 1).unwrap();
        assert_eq!(query.words(), [0x8275_7a2e, 0x4505_f017]);
        let dropout = rngs.make_rng(Stream::Dropout, &path, 1).unwrap();
        assert_eq!(dropout.words(), [0xf574_945f, 0x34ae_6c0c]);
    }

    #[test]
    fn dropout_has_a_stream_or_shares_that_of_parameters() {
        let dropout = Rngs {
            dropout: Some(ONE),
            ..Rngs::default()
        };
        let shared = Rngs::params(ONE);
        for rngs in [dropout, shared] {
            let key = rngs.make_rng(Stream::Dropout, &[], 1).unwrap();
            assert_eq!(key.words(), [0xb776_6976, 0x811d_a1f6]);
        }
        let none = Rngs::default();
        assert_eq!(
            none.make_rng(Stream::Dropout, &[], 1),
            Err(Error::DropoutRngMissing)
        );
        assert_eq!(
            dropout.param_key(&[], "query", 1),
            Err(Error::ParamsRngMissing)
        );
    }

    #[test]
    fn draws_are_counted_from_one() {
        let rngs = Rngs::params(ZERO);
        for drawn in [
            rngs.make_rng(Stream::Params, &[], 0),
            rngs.make_rng(Stream::Dropout, &["layer"], 0),
            rngs.param_key(&[], "query", 0),
        ] {
            assert_eq!(drawn, Err(NO_DRAW));
        }
    }

    #[test]
    fn counts_are_hashed_without_padding() {
        // SHA-1 of the one byte 02, and of 01 00, begins with these words.
        let rngs = Rngs::params(ZERO);
        for (count, word) in [(2, 0xc4ea_21bb), (256, 0x0e35_6ba5)] {
            let key = rngs.make_rng(Stream::Params, &[], count).unwrap();
            assert_eq!(key, ZERO.fold_in(word), "{count}");
        }
    }

    #[test]
    fn separated_names_do_not_run_together() {
        let names = |names| Rngs {
            names,
            ..Rngs::params(ZERO)
        };
        let both = |rngs: Rngs| {
            [
                rngs.param_key(&["ab"], "c", 1).unwrap(),
                rngs.param_key(&["a"], "bc", 1).unwrap(),
            ]
        };
        let [first, second] = both(names(PathNames::Joined));
        assert_eq!(first, second);
        let [first, second] = both(names(PathNames::Separated));
        assert_ne!(first, second);
        assert_eq!(second.words(), [0xe8b2_7978, 0x62e0_4e9b]);
    }
}
