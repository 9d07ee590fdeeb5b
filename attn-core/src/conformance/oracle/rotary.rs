//! Angles of rotary embeddings from their formulas, in about 106 bits.

use super::pair::{LN_2, Pair};
use crate::rotary::{Rotary, RotaryScaling};
use alloc::vec::Vec;

const PI: Pair = Pair {
    high: core::f64::consts::PI,
    low: 1.224_646_799_147_353_2e-16,
};
/// Terms of a series of Taylor for arguments below 1: the next is below 2^-110.
const TERMS: usize = 32;

/// How exact arithmetic is.
#[derive(Clone, Copy, PartialEq)]
pub(in super::super) enum Precision {
    /// Twice that of `f64`.
    Exact,
    /// Every step is rounded to `f64`.
    Rounded,
}

impl Precision {
    fn of(self, x: Pair) -> Pair {
        match self {
            Self::Exact => x,
            Self::Rounded => x.value().into(),
        }
    }
}

/// The angles of an embedding.
pub(in super::super) struct Angles {
    precision: Precision,
    /// Radians a position, of each pair.
    frequencies: Vec<Pair>,
    /// On cosine and sine.
    factor: Pair,
}

impl Angles {
    pub(in super::super) fn new(rotary: &Rotary, pairs: usize, precision: Precision) -> Self {
        let formula = Formula {
            rotary,
            pairs,
            precision,
            ln_base: ln(rotary.base),
        };
        Self {
            precision,
            frequencies: (0..pairs).map(|pair| formula.frequency(pair)).collect(),
            factor: formula.factor(),
        }
    }

    /// Cosine and sine of a pair at a position, times the factor.
    pub(in super::super) fn at(&self, pair: usize, position: usize) -> [f64; 2] {
        let angle = self.frequencies[pair].scaled(position as f64);
        cos_sin(self.precision.of(angle)).map(|x| {
            self.precision
                .of(self.precision.of(x).times(self.factor))
                .value()
        })
    }
}

/// A pair of elements, turned.
pub(in super::super) fn turned([a, b]: [f64; 2], [cos, sin]: [f64; 2]) -> [f64; 2] {
    [
        Pair::product(a, cos).add(Pair::product(-b, sin)).value(),
        Pair::product(b, cos).add(Pair::product(a, sin)).value(),
    ]
}

/// The formulas of an embedding.
struct Formula<'a> {
    rotary: &'a Rotary,
    pairs: usize,
    precision: Precision,
    ln_base: Pair,
}

impl Formula<'_> {
    fn frequency(&self, pair: usize) -> Pair {
        let round = |x| self.precision.of(x);
        let part = Pair::from(pair as f64).over((self.pairs as f64).into());
        let plain = round(exp(part.times(self.ln_base).negated()));
        let divided = |factor: f64| round(plain.over(factor.into()));
        match self.rotary.scaling {
            RotaryScaling::None => plain,
            RotaryScaling::Linear { factor } => divided(factor),
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position,
            } => {
                let circle = round(PI.scaled(2.0));
                let turns = round(round(plain.scaled(original_max_position as f64)).over(circle));
                let above = round(turns.add((-low).into()));
                let smooth = round(above.over(Pair::from(high).add((-low).into())));
                self.mixed(smooth, divided(factor), plain)
            }
            RotaryScaling::Yarn { factor, .. } => {
                let [low, high] = self.ramp();
                let into = Pair::from(pair as f64).add((-low).into());
                let length = Pair::from(high).add((-low).into());
                let ramp = round(round(into).over(round(length)));
                let stays = round(Pair::from(1.0).add(ramp.negated()));
                self.mixed(stays, divided(factor), plain)
            }
        }
    }

    /// `(1 - stays) divided + stays plain`, `stays` cut to `[0, 1]`.
    fn mixed(&self, stays: Pair, divided: Pair, plain: Pair) -> Pair {
        let round = |x| self.precision.of(x);
        if stays.value() <= 0.0 {
            return divided;
        }
        if stays.value() >= 1.0 {
            return plain;
        }
        let goes = round(Pair::from(1.0).add(stays.negated()));
        round(round(goes.times(divided)).add(round(stays.times(plain))))
    }

    /// Where YaRN's ramp begins and ends.
    fn ramp(&self) -> [f64; 2] {
        let RotaryScaling::Yarn {
            beta_fast,
            beta_slow,
            original_max_position,
            truncate,
            ..
        } = self.rotary.scaling
        else {
            return [0.0, 1.0];
        };
        let round = |x| self.precision.of(x);
        let circle = PI.scaled(2.0);
        let [high, low] = circle.parts();
        let ln_circle = round(ln(high).add((low / high).into()));
        let pair_of = |turns: f64| {
            let ratio = round(ln(original_max_position as f64)).add(round(ln(turns)).negated());
            let waves = round(round(ratio).add(ln_circle.negated()));
            let pairs = round(waves.scaled(self.pairs as f64));
            pairs.over(round(self.ln_base)).value()
        };
        let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
        if truncate {
            let floor = |x: f64| x - (x % 1.0) - f64::from(u8::from(x % 1.0 < 0.0));
            (low, high) = (floor(low), -floor(-high));
        }
        let last = 2.0 * self.pairs as f64 - 1.0;
        (low, high) = (low.max(0.0), high.min(last));
        [low, if low == high { high + 0.001 } else { high }]
    }

    fn factor(&self) -> Pair {
        match self.rotary.scaling {
            RotaryScaling::Yarn {
                attention_factor: Some(factor),
                ..
            } => factor.into(),
            RotaryScaling::Yarn { factor, .. } => {
                let tenth = Pair::from(1.0).over(10.0.into());
                self.precision.of(ln(factor).times(tenth).add(1.0.into()))
            }
            _ => 1.0.into(),
        }
    }
}

/// `e^x`, 0 where it is next to no number.
pub(in super::super) fn exp(x: Pair) -> Pair {
    if x.value() < -690.0 {
        return Pair::default();
    }
    let n = x.over(LN_2).value();
    let n = (n - n % 1.0).clamp(-1000.0, 1000.0);
    let r = x.add(LN_2.scaled(-n));
    let mut sum = Pair::from(1.0);
    for k in (1..=TERMS).rev() {
        sum = sum.times(r).over((k as f64).into()).add(1.0.into());
    }
    let scale = f64::from_bits(((1023.0 + n) as u64) << 52);
    sum.scaled(scale)
}

/// `ln(x)`, by Halley's steps from the exponent.
fn ln(x: f64) -> Pair {
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as f64 - 1023.0;
    let mut y = LN_2.scaled(exponent);
    for _ in 0..6 {
        let power = exp(y);
        let (less, sum) = (power.negated().add(x.into()), power.add(x.into()));
        y = y.add(less.over(sum).scaled(2.0));
    }
    y
}

fn cos_sin(angle: Pair) -> [Pair; 2] {
    let half_pi = PI.scaled(0.5);
    let n = angle.over(half_pi).value() + 0.5;
    let n = n - n % 1.0;
    let r = angle.add(half_pi.scaled(-n));
    let square = r.times(r).negated();
    let series = |first: usize| {
        let mut sum = Pair::from(1.0);
        for k in (1..=TERMS / 2).rev() {
            let divisor = ((2 * k + first - 1) * (2 * k + first)) as f64;
            sum = sum.times(square).over(divisor.into()).add(1.0.into());
        }
        sum
    };
    let (cos, sin) = (series(0), series(1).times(r));
    match n as u64 % 4 {
        0 => [cos, sin],
        1 => [sin.negated(), cos],
        2 => [cos.negated(), sin.negated()],
        _ => [sin, cos.negated()],
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn functions_are_those_of_the_standard_library() {
        let near = |got: Pair, wanted: f64| {
            let error = (got.value() - wanted).abs();
            assert!(error <= wanted.abs() * f64::EPSILON, "{got:?} {wanted}");
        };
        for x in [0.1, 0.7, 1.0, 3.5, 1e4, 123_456.7] {
            let [cos, sin] = cos_sin(x.into());
            near(cos, x.cos());
            near(sin, x.sin());
            if x > 1.0 {
                near(ln(x), x.ln());
            }
            near(exp(Pair::from(-x / 1024.0)), (-x / 1024.0).exp());
        }
    }

    #[test]
    fn a_logarithm_undoes_a_power_to_the_last_bits() {
        for x in [1.5, 10_000.0, 500_000.0, 0.031] {
            let back = exp(ln(x)).add((-x).into());
            assert!(back.value().abs() < x * 1e-29, "{x}: {back:?}");
        }
        let [cos, sin] = cos_sin(Pair::from(1e6).scaled(0.7));
        let one = cos.times(cos).add(sin.times(sin)).add((-1.0).into());
        assert!(one.value().abs() < 1e-29, "{one:?}");
    }
}
