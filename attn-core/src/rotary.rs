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

use crate::dtype::{Element, Scalar};
use crate::elementary;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::view::{Flat, Host, Storage, ViewMut};

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
        let ln_base = elementary::ln(self.base);
        let (change, attention_factor) = self.scaling.change(pairs, ln_base[0]);
        Ok(Frequencies {
            pairs,
            ln_base,
            change,
            attention_factor,
        })
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
        check_end(first, rows, MAX_POSITION)?;
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

    /// What is done to frequencies of a base with this logarithm, and the factor on cosine and sine.
    fn change(&self, pairs: usize, ln_base: f64) -> (Change, f64) {
        match *self {
            Self::None => (Change::Divide(1.0), 1.0),
            Self::Linear { factor } => (Change::Divide(factor), 1.0),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                let change = Change::ByWave {
                    factor,
                    turns: [low_freq_factor, high_freq_factor],
                    positions: original_max_position as f64,
                };
                (change, 1.0)
            }
            Self::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position,
                attention_factor,
                truncate,
            } => {
                let pair = |turns| pair_of_turns(turns, original_max_position, pairs, ln_base);
                let ramp = ramp([pair(beta_fast), pair(beta_slow)], pairs, truncate);
                let default = 0.1 * elementary::ln(factor)[0] + 1.0;
                let change = Change::ByPair { factor, ramp };
                (change, attention_factor.unwrap_or(default))
            }
        }
    }
}

/// The pair that turns so often over the training's positions, as a fraction: the inverse of `turns = positions · frequency / 2 π`.
fn pair_of_turns(turns: f64, positions: usize, pairs: usize, ln_base: f64) -> f64 {
    let ln = |x: f64| elementary::ln(x)[0];
    let waves = ln(positions as f64) - ln(turns) - ln(core::f64::consts::TAU);
    pairs as f64 * waves / ln_base
}

/// Where the ramp begins and ends, within the row. Its end is held against the number of elements, not of pairs, as in the paper's code.
fn ramp([low, high]: [f64; 2], pairs: usize, truncate: bool) -> [f64; 2] {
    let last = (2 * pairs).saturating_sub(1) as f64;
    let (low, high) = (low.clamp(0.0, last), high.clamp(0.0, last));
    let [low, high] = match truncate {
        // Not below 0, so cutting off is rounding down.
        true => {
            let floor = |x: f64| (x as u64) as f64;
            let up = floor(high) + f64::from(u8::from(high > floor(high)));
            [floor(low), up]
        }
        false => [low, high],
    };
    // A ramp of no length would divide by 0.
    [low, if low == high { high + 0.001 } else { high }]
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

/// What scaling does to a frequency.
#[derive(Debug, Clone, Copy)]
enum Change {
    Divide(f64),
    /// By how often it turns over the training's positions: up to the first it is divided, from the second on it stays.
    ByWave {
        factor: f64,
        turns: [f64; 2],
        positions: f64,
    },
    /// By its number: up to the first pair it stays, from the second on it is divided.
    ByPair {
        factor: f64,
        ramp: [f64; 2],
    },
}

/// The frequencies of a [`Rotary`] for rows of one depth, in radians a position.
#[derive(Debug, Clone, Copy)]
pub struct Frequencies {
    pairs: usize,
    ln_base: [f64; 2],
    change: Change,
    attention_factor: f64,
}

impl Frequencies {
    /// Pairs that turn.
    #[must_use]
    pub const fn pairs(&self) -> usize {
        self.pairs
    }

    /// The factor on cosine and sine: 1 but for YaRN.
    #[must_use]
    pub const fn attention_factor(&self) -> f64 {
        self.attention_factor
    }

    /// The frequency of a pair, at most 1.
    #[must_use]
    pub fn of(&self, pair: usize) -> f64 {
        let plain = elementary::power(self.ln_base, pair, self.pairs.max(1));
        let mixed = |factor: f64, stays: f64| {
            let stays = stays.clamp(0.0, 1.0);
            (1.0 - stays) * (plain / factor) + stays * plain
        };
        match self.change {
            Change::Divide(factor) => plain / factor,
            Change::ByWave {
                factor,
                turns: [low, high],
                positions,
            } => {
                let turns = positions * plain / core::f64::consts::TAU;
                mixed(factor, (turns - low) / (high - low))
            }
            Change::ByPair {
                factor,
                ramp: [first, last],
            } => mixed(factor, 1.0 - (pair as f64 - first) / (last - first)),
        }
    }

    /// The frequencies of the pairs from `first` on.
    pub fn fill(&self, first: usize, to: &mut [f64]) {
        for (pair, to) in (first..).zip(to) {
            *to = self.of(pair);
        }
    }

    /// Cosine and sine, times the attention factor, at a position of at most [`MAX_POSITION`] for one of the frequencies.
    #[must_use]
    #[inline(always)]
    pub fn cos_sin<A: Element>(&self, position: usize, frequency: f64) -> [A; 2] {
        let angle = (position as f64 * frequency).min(elementary::MAX_ANGLE);
        elementary::cos_sin(angle).map(|x| A::from_f64(self.attention_factor * x))
    }
}

/// Cosines and sines that were made before, by [`Rotary::fill_table`] or elsewhere.
#[derive(Debug)]
pub struct RotaryTable<'a, S: Storage, A: Scalar> {
    /// `[positions, rotary_dim / 2]`, row-major, from position 0 on.
    pub cos: Flat<'a, S, A>,
    /// Likewise.
    pub sin: Flat<'a, S, A>,
}

impl<S: Storage, A: Scalar> Clone for RotaryTable<'_, S, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage, A: Scalar> Copy for RotaryTable<'_, S, A> {}

impl<S: Storage, A: Scalar> RotaryTable<'_, S, A> {
    /// Positions of a table with so many pairs.
    ///
    /// # Errors
    ///
    /// [`Error::Buffer`] if cosines and sines differ in number or are no whole rows.
    pub fn positions(&self, pairs: usize) -> Result<usize> {
        table_rows(self.cos.len(), self.sin.len(), pairs)
    }
}

fn table_rows(cos: usize, sin: usize, pairs: usize) -> Result<usize> {
    // Without pairs a table is empty and serves every position.
    let rows = cos.checked_div(pairs).unwrap_or(MAX_POSITION + 1);
    let wanted = rows.saturating_mul(pairs);
    for (argument, got) in [("rotary cos", cos), ("rotary sin", sin)] {
        if got != wanted {
            return Err(Error::Buffer {
                argument,
                got,
                wanted,
            });
        }
    }
    Ok(rows)
}

/// Where the rows of an array lie.
#[derive(Debug)]
pub enum Positions<'a, S: Storage> {
    /// Row `t` of the length axis is at this position plus `t`.
    From(usize),
    /// Each has its own, `[batch, length]`, row-major, from 0 to [`MAX_POSITION`].
    Ids(Flat<'a, S, i32>),
}

impl<S: Storage> Clone for Positions<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Storage> Copy for Positions<'_, S> {}

impl Positions<'_, Host> {
    /// The position of a row of a call that was checked; `index` counts the rows of all batch entries of this `length`.
    #[must_use]
    pub fn at(&self, index: usize, length: usize) -> usize {
        match self {
            Self::From(first) => first.saturating_add(index.checked_rem(length).unwrap_or(0)),
            Self::Ids(ids) => usize::try_from(ids.buf()[index]).unwrap_or(0),
        }
    }
}

/// One rotation, in place.
#[derive(Debug)]
pub struct Rotate<'a, S: Storage, T: Element> {
    /// Queries or keys, `[batch..., length, heads, depth]`; they become the rotated ones.
    pub x: ViewMut<'a, S, T>,
    /// Which elements turn together, and how fast. With a table only its pairing and `rotary_dim` are looked at.
    pub rotary: Rotary,
    /// Where the rows lie.
    pub positions: Positions<'a, S>,
    /// Cosines and sines to use, from position 0 on; `None` computes them.
    pub table: Option<RotaryTable<'a, S, T::Acc>>,
    /// Whether to rotate by the negative angles, which makes of the gradient of the rotated array that of the array. (It undoes the
    /// rotation, too, but for YaRN's factor, which both have.)
    pub inverse: bool,
}

/// The sizes of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotateShape {
    /// Product of the batch axes.
    pub batch: usize,
    /// Rows of the length axis.
    pub length: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a row.
    pub depth: usize,
    /// Pairs that turn.
    pub pairs: usize,
    /// The last position that the call can serve.
    pub last_position: usize,
}

impl<'a, S: Storage, T: Element> Rotate<'a, S, T> {
    /// A rotation of rows that follow each other from position `first` on.
    #[must_use]
    pub const fn new(x: ViewMut<'a, S, T>, rotary: Rotary, first: usize) -> Self {
        Self {
            x,
            rotary,
            positions: Positions::From(first),
            table: None,
            inverse: false,
        }
    }

    /// With a table, or without.
    #[must_use]
    pub const fn with_table(mut self, table: Option<RotaryTable<'a, S, T::Acc>>) -> Self {
        self.table = table;
        self
    }

    /// By the negative angles, or not.
    #[must_use]
    pub const fn with_inverse(mut self, inverse: bool) -> Self {
        self.inverse = inverse;
        self
    }

    /// Checks that all parts fit each other and gives the call's sizes. What ids hold is for a backend on the host to check by
    /// [`Rotate::check_ids`].
    ///
    /// # Errors
    ///
    /// [`Error::Rank`]; those of [`Rotary::frequencies`], but for the base and scaling of a call with a table; [`Error::Buffer`] for a table without whole rows and
    /// for ids that are not one for each row; [`Error::Entry`] for rows from a first position on that go beyond the table or [`MAX_POSITION`].
    pub fn shape(&self) -> Result<RotateShape> {
        let shape = self.x.shape();
        let [batch @ .., length, heads, depth] = shape.as_slice() else {
            return Err(Error::Rank {
                argument: "x",
                got: shape.rank(),
                wanted: "[batch..., length, heads, depth]",
            });
        };
        let (pairs, rows) = match &self.table {
            Some(table) => {
                let pairs = self.rotary.pairs(*depth)?;
                (pairs, table.positions(pairs)?)
            }
            None => (self.rotary.frequencies(*depth)?.pairs(), MAX_POSITION + 1),
        };
        let batch = Dims::new(batch)?.elements()?;
        let rows_of_x = batch.checked_mul(*length).ok_or(Error::TooLarge {
            argument: "x",
            got: *shape,
        })?;
        let sizes = RotateShape {
            batch,
            length: *length,
            heads: *heads,
            depth: *depth,
            pairs,
            last_position: rows.saturating_sub(1).min(MAX_POSITION),
        };
        match &self.positions {
            Positions::From(first) => check_end(*first, *length, rows.saturating_sub(1))?,
            Positions::Ids(ids) => ids.check_len("positions", rows_of_x)?,
        }
        if rows == 0 && rows_of_x > 0 {
            return Err(Error::Zero {
                argument: "positions of the rotary table",
            });
        }
        Ok(sizes)
    }
}

impl<T: Element> Rotate<'_, Host, T> {
    /// Checks the position ids of a call of these sizes.
    ///
    /// # Errors
    ///
    /// [`Error::Entry`] for the first that is negative or that the table does not reach.
    pub fn check_ids(&self, shape: &RotateShape) -> Result<()> {
        let Positions::Ids(ids) = &self.positions else {
            return Ok(());
        };
        let most = shape.last_position as i64;
        let is_wrong = |id: &i32| !(0..=most).contains(&i64::from(*id));
        match ids.buf().iter().position(is_wrong) {
            None => Ok(()),
            Some(index) => Err(Error::Entry {
                argument: "positions",
                index,
                got: ids.buf()[index].into(),
                least: 0,
                most,
            }),
        }
    }
}

/// `length` rows from position `first` on must end at `last`.
fn check_end(first: usize, length: usize, last: usize) -> Result<()> {
    let Some(index) = length.checked_sub(1) else {
        return Ok(());
    };
    let end = first.saturating_add(index);
    let last = last.min(MAX_POSITION);
    if end <= last {
        return Ok(());
    }
    Err(Error::Entry {
        argument: "positions",
        index,
        got: i64::try_from(end).unwrap_or(i64::MAX),
        least: 0,
        most: last as i64,
    })
}
