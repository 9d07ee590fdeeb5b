//! Rotary position embeddings (Su et al. 2021, "RoFormer"): pairs of a head's elements are rotated by angles that grow with the position,
//! so that a product of a query and a key depends on the distance between them.
//!
//! Pair `i` of a row at position `p` turns by `p · frequency(i)`, with `frequency(i) = base^(-2 i / rotary_dim)` before scaling:
//!
//! ```text
//! a' = a · cos - b · sin
//! b' = b · cos + a · sin
//! ```
//!
//! Frequencies, angles, cosines and sines are computed in `f64` and rounded once to the accumulator's type, so a position of a million is
//! as exact as the first. They have the same bits on every machine.

mod frequencies;
mod request;

use crate::dtype::{Element, Scalar};
use crate::elementary;
use crate::error::{Error, Result};
use crate::view::Storage;
use request::{check_end, table_rows};

pub use frequencies::Frequencies;
pub use request::{Positions, RotaryTable, Rotate, RotateShape};

/// The last position that there may be: positions are `i32`, as ids are.
pub const MAX_POSITION: usize = i32::MAX as usize;

/// Frequencies that are kept at a time, where there is no allocator.
const CHUNK: usize = 64;

/// Which elements of a row are a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pairing {
    /// Elements `i` and `i + rotary_dim / 2`: GPT-NeoX, Llama as Hugging Face stores it, ONNX by default.
    #[default]
    HalfSplit,
    /// Elements `2 i` and `2 i + 1`: RoFormer, GPT-J, ONNX with `interleaved`.
    Interleaved,
}

/// How frequencies are changed for contexts longer than those of the training. The names are those of Hugging Face's `rope_scaling`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// Not at all.
    #[default]
    None,
    /// Every frequency is divided by `factor` (Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation").
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones stay, those between are mixed (`rope_type: llama3`, Llama 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// A wave longer than `original_max_position / low_freq_factor` is divided.
        low_freq_factor: f64,
        /// A wave shorter than `original_max_position / high_freq_factor` stays; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Positions of the training.
        original_max_position: usize,
    },
    /// As for Llama 3 with a ramp over the pairs, and a factor on cosine and sine (Peng et al. 2023, "YaRN").
    Yarn {
        /// At least 1.
        factor: f64,
        /// Turns over the training's positions from which on a frequency stays (32 in the paper); above `beta_slow`.
        beta_fast: f64,
        /// Turns over the training's positions up to which a frequency is divided (1 in the paper).
        beta_slow: f64,
        /// Positions of the training.
        original_max_position: usize,
        /// The factor on cosine and sine; `None` is the paper's, `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Whether the ends of the ramp are rounded outwards to whole pairs, as the paper's code does.
        truncate: bool,
    },
}

impl RotaryScaling {
    /// YaRN with the paper's constants.
    #[must_use]
    pub const fn yarn(factor: f64, original_max_position: usize) -> Self {
        Self::Yarn {
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position,
            attention_factor: None,
            truncate: true,
        }
    }
}

/// A rotary embedding: which elements turn together, and how fast.
///
/// ```
/// use attn_core::{Pairing, Rotary, RotaryScaling};
///
/// let rotary = Rotary { base: 500_000.0, ..Rotary::new() };
/// let frequencies = rotary.frequencies(128)?;
/// assert_eq!((frequencies.pairs(), frequencies.of(0)), (64, 1.0));
/// let linear = Rotary { scaling: RotaryScaling::Linear { factor: 4.0 }, ..rotary };
/// assert_eq!(linear.frequencies(128)?.of(0), 0.25);
/// assert!(Rotary { rotary_dim: Some(7), ..rotary }.frequencies(128).is_err());
/// # Ok::<(), attn_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Which elements are a pair.
    pub pairing: Pairing,
    /// How many elements of a row turn, from the first on; the others pass as they are. `None` is all of them. Even.
    pub rotary_dim: Option<usize>,
    /// `base` of the frequencies, at least 1: 10,000 in the paper.
    pub base: f64,
    /// How frequencies are changed for long contexts.
    pub scaling: RotaryScaling,
}

impl Default for Rotary {
    fn default() -> Self {
        Self::new()
    }
}

impl Rotary {
    /// The paper's frequencies over the whole of a row, halves paired.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pairing: Pairing::HalfSplit,
            rotary_dim: None,
            base: 10_000.0,
            scaling: RotaryScaling::None,
        }
    }

    /// Pairs that turn in rows of `depth`.
    ///
    /// # Errors
    ///
    /// [`Error::RotaryDim`] if the elements that turn are not pairs, or more than there are.
    pub const fn pairs(&self, depth: usize) -> Result<usize> {
        let got = match self.rotary_dim {
            Some(dim) => dim,
            None => depth,
        };
        if !got.is_multiple_of(2) || got > depth {
            return Err(Error::RotaryDim { got, depth });
        }
        Ok(got / 2)
    }

    /// The frequencies for rows of `depth`.
    ///
    /// # Errors
    ///
    /// [`Error::RotaryDim`]; [`Error::Rotary`] for a base or a number of the scaling that cannot be.
    pub fn frequencies(&self, depth: usize) -> Result<Frequencies> {
        let pairs = self.pairs(depth)?;
        at_least_1("base", self.base)?;
        self.scaling.check()?;
        if matches!(self.scaling, RotaryScaling::Yarn { .. }) {
            // Its ramp is over pairs of different frequencies.
            let wanted = "above 1 for YaRN";
            number("base", self.base, wanted, self.base > 1.0)?;
        }
        let ln_base = elementary::ln(self.base);
        let (change, attention_factor) = self.scaling.change(pairs, ln_base[0]);
        Ok(Frequencies {
            pairs,
            ln_base,
            change,
            attention_factor,
        })
    }

    /// Whether rows of `depth` can turn at the `length` positions from `first` on, by the table if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Rotary::frequencies`], but for the base and scaling where there is a table; [`Error::Buffer`] for a table without whole rows;
    /// [`Error::Entry`] for a position beyond it or [`MAX_POSITION`].
    pub fn check<S: Storage, A: Scalar>(
        &self,
        depth: usize,
        table: Option<&RotaryTable<'_, S, A>>,
        first: usize,
        length: usize,
    ) -> Result<()> {
        let (_, rows) = self.pairs_and_rows(depth, table)?;
        check_end(first, length, rows)
    }

    /// Pairs that turn, and the positions that there are.
    fn pairs_and_rows<S: Storage, A: Scalar>(
        &self,
        depth: usize,
        table: Option<&RotaryTable<'_, S, A>>,
    ) -> Result<(usize, usize)> {
        match table {
            None => Ok((self.frequencies(depth)?.pairs(), MAX_POSITION + 1)),
            Some(table) => {
                let pairs = self.pairs(depth)?;
                Ok((pairs, table.positions(pairs)?))
            }
        }
    }

    /// Fills a table for the positions from `first` on: `cos` and `sin` are `[positions, rotary_dim / 2]`, row-major, for rows of `depth`.
    /// The numbers are those of a [`Rotate`] without a table.
    ///
    /// # Errors
    ///
    /// Those of [`Rotary::frequencies`]; [`Error::Buffer`] if the two differ in length or hold no whole rows; [`Error::Entry`] beyond
    /// [`MAX_POSITION`].
    pub fn fill_table<A: Element>(
        &self,
        depth: usize,
        first: usize,
        cos: &mut [A],
        sin: &mut [A],
    ) -> Result<()> {
        let frequencies = self.frequencies(depth)?;
        let pairs = frequencies.pairs();
        let rows = table_rows(cos.len(), sin.len(), pairs)?;
        check_end(first, rows, MAX_POSITION + 1)?;
        let mut kept = [0.0; CHUNK];
        for start in (0..pairs).step_by(CHUNK) {
            let count = CHUNK.min(pairs - start);
            frequencies.fill(start, &mut kept[..count]);
            for row in 0..rows {
                let at = row * pairs + start;
                let row_of = cos[at..at + count].iter_mut().zip(&mut sin[at..at + count]);
                for ((cos, sin), frequency) in row_of.zip(&kept) {
                    [*cos, *sin] = frequencies.cos_sin(first + row, *frequency);
                }
            }
        }
        Ok(())
    }
}

impl RotaryScaling {
    fn check(&self) -> Result<()> {
        match *self {
            Self::None => Ok(()),
            Self::Linear { factor } => at_least_1("factor", factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position,
            } => {
                at_least_1("factor", factor)?;
                above_0("low_freq_factor", low)?;
                above_0("high_freq_factor", high)?;
                ascending("high_freq_factor", "above low_freq_factor", low, high)?;
                trained_positions(original_max_position)
            }
            Self::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position,
                attention_factor,
                ..
            } => {
                at_least_1("factor", factor)?;
                above_0("beta_slow", beta_slow)?;
                above_0("beta_fast", beta_fast)?;
                ascending("beta_fast", "above beta_slow", beta_slow, beta_fast)?;
                attention_factor.map_or(Ok(()), |factor| above_0("attention_factor", factor))?;
                trained_positions(original_max_position)
            }
        }
    }
}

fn number(field: &'static str, got: f64, wanted: &'static str, is_right: bool) -> Result<()> {
    match is_right {
        true => Ok(()),
        false => Err(Error::Rotary { field, got, wanted }),
    }
}

fn at_least_1(field: &'static str, got: f64) -> Result<()> {
    let wanted = "a finite number of at least 1";
    number(field, got, wanted, got.is_finite() && got >= 1.0)
}

fn above_0(field: &'static str, got: f64) -> Result<()> {
    let wanted = "a normal number above 0";
    number(field, got, wanted, got.is_normal() && got > 0.0)
}

fn ascending(field: &'static str, wanted: &'static str, low: f64, high: f64) -> Result<()> {
    number(field, high, wanted, high > low)
}

fn trained_positions(got: usize) -> Result<()> {
    let argument = "original_max_position";
    match got {
        0 => Err(Error::Zero { argument }),
        _ => Ok(()),
    }
}
