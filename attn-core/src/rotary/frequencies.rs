//! Frequencies from their formulas, cosines and sines of their angles.

use super::RotaryScaling;
use crate::dtype::Element;
use crate::elementary;

impl RotaryScaling {
    /// What is done to frequencies of a base with this logarithm, and the factor on cosine and sine.
    pub(super) fn change(&self, pairs: usize, ln_base: f64) -> (Change, f64) {
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

/// Where the ramp begins and ends. The end is held against the number of elements, not of pairs, as in the paper's code.
fn ramp([low, high]: [f64; 2], pairs: usize, truncate: bool) -> [f64; 2] {
    let (low, high) = match truncate {
        true => (floor(low), -floor(-high)),
        false => (low, high),
    };
    let last = (2 * pairs).saturating_sub(1) as f64;
    let (low, high) = (low.max(0.0), high.min(last));
    // A ramp of no length would divide by 0.
    [low, if low == high { high + 0.001 } else { high }]
}

fn floor(x: f64) -> f64 {
    let cut = x as i64 as f64;
    if cut > x { cut - 1.0 } else { cut }
}

/// What scaling does to a frequency.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
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

/// The frequencies of a [`Rotary`](super::Rotary) for rows of one depth, in radians a position.
#[derive(Debug, Clone, Copy)]
pub struct Frequencies {
    pub(super) pairs: usize,
    pub(super) ln_base: [f64; 2],
    pub(super) change: Change,
    pub(super) attention_factor: f64,
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

    /// Cosine and sine, times the attention factor, at a position of at most [`MAX_POSITION`](super::MAX_POSITION) for one of the frequencies.
    #[must_use]
    #[inline(always)]
    pub fn cos_sin<A: Element>(&self, position: usize, frequency: f64) -> [A; 2] {
        let angle = (position as f64 * frequency).min(elementary::MAX_ANGLE);
        elementary::cos_sin(angle).map(|x| A::from_f64(self.attention_factor * x))
    }
}

#[cfg(test)]
mod tests {
    use crate::rotary::{Rotary, RotaryScaling};

    fn close(got: f64, wanted: f64) {
        assert!(
            (got - wanted).abs() <= 1e-14 * wanted.abs(),
            "{got}, wanted {wanted}"
        );
    }

    fn holds(base: f64, scaling: RotaryScaling, depth: usize, wanted: &[(usize, f64)]) {
        let rotary = Rotary {
            base,
            scaling,
            ..Rotary::new()
        };
        let frequencies = rotary.frequencies(depth).unwrap();
        for &(pair, wanted) in wanted {
            close(frequencies.of(pair), wanted);
        }
    }

    /// `1 / base**(arange(0, dim, 2) / dim)` in numpy.
    #[test]
    fn plain_frequencies_are_those_of_the_paper() {
        let wanted = [
            (0, 1.0),
            (1, 0.8659643233600653),
            (29, 0.01539926526059492),
            (63, 0.00011547819846894582),
        ];
        holds(10_000.0, RotaryScaling::None, 128, &wanted);
    }

    /// In numpy, with `f` the plain frequencies and `w = 2*pi/f`:
    /// `s = (8192/w - 1) / (4 - 1)`, and `f/8` where `w > 8192/1`, `f` where `w < 8192/4`, else `(1-s)*f/8 + s*f`.
    #[test]
    fn frequencies_of_llama_3_are_those_of_its_formula() {
        let scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        };
        let wanted = [
            (0, 1.0),
            (1, 0.8146172338565447),
            (28, 0.0032114459947525913),
            (29, 0.002166570763503359),
            (31, 0.0008567514129196324),
            (34, 0.00017850781276799638),
            (35, 9.556212353964683e-05),
            (63, 3.068925988914511e-07),
        ];
        holds(500_000.0, scaling, 128, &wanted);
    }

    /// In numpy: `d(n) = dim*log(orig/(n*2*pi)) / (2*log(base))`, `low, high = max(floor(d(32)), 0), min(ceil(d(1)), dim-1)` (not rounded
    /// without `truncate`), `r = clip((arange(dim//2)-low) / (high-low), 0, 1)`, `f/factor*r + f*(1-r)`; the factor is
    /// `0.1*log(factor) + 1`.
    #[test]
    fn frequencies_of_yarn_are_those_of_its_formula() {
        let scaling = RotaryScaling::yarn(16.0, 4096);
        let wanted = [
            (0, 1.0),
            (20, 0.056234132519034905),
            (24, 0.027061799207210167),
            (31, 0.006967554763390721),
            (40, 0.0008817889629315673),
            (63, 7.217387404309114e-06),
        ];
        holds(10_000.0, scaling, 128, &wanted);
        let rotary = Rotary {
            scaling,
            ..Rotary::new()
        };
        let factor = rotary.frequencies(128).unwrap().attention_factor();
        close(factor, 1.2772588722239782);
        let scaling = RotaryScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position: 32_768,
            attention_factor: None,
            truncate: false,
        };
        let wanted = [
            (1, 0.6493816315762113),
            (10, 0.01333521432163324),
            (14, 0.0018835024401661154),
            (18, 0.00017734424630684023),
            (31, 3.84981631514873e-07),
        ];
        holds(1e6, scaling, 64, &wanted);
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let llama = |low, high, positions| RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position: positions,
        };
        let yarn = |fast, slow, attention_factor| RotaryScaling::Yarn {
            factor: 2.0,
            beta_fast: fast,
            beta_slow: slow,
            original_max_position: 10,
            attention_factor,
            truncate: true,
        };
        for scaling in [
            RotaryScaling::Linear { factor: 0.5 },
            RotaryScaling::Linear { factor: f64::NAN },
            RotaryScaling::yarn(f64::INFINITY, 10),
            RotaryScaling::yarn(2.0, 0),
            llama(4.0, 1.0, 10),
            llama(1.0, 1.0, 10),
            llama(0.0, 1.0, 10),
            llama(1.0, f64::NAN, 10),
            llama(1.0, 4.0, 0),
            yarn(1.0, 1.0, None),
            yarn(32.0, -1.0, None),
            yarn(32.0, 1.0, Some(0.0)),
        ] {
            let rotary = Rotary {
                scaling,
                ..Rotary::new()
            };
            assert!(rotary.frequencies(8).is_err(), "{scaling:?}");
        }
        let flat = Rotary {
            base: 1.0,
            scaling: RotaryScaling::yarn(2.0, 100),
            ..Rotary::new()
        };
        assert!(
            flat.frequencies(8).is_err(),
            "a ramp over equal frequencies"
        );
    }
}
