//! Arithmetic in pairs of `f64`, about 106 bits, so that `f64` itself can be held against the truth.

use std::ops::{Add, Div, Mul, Sub};

/// An unevaluated sum of two `f64`, the second below half a unit of the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub(crate) struct Twice {
    high: f64,
    low: f64,
}

/// `ln 2` in 106 bits.
const LN_2: Twice = Twice {
    high: std::f64::consts::LN_2,
    low: 2.319_046_813_846_299_6e-17,
};

impl Twice {
    pub(crate) const ZERO: Self = Self {
        high: 0.0,
        low: 0.0,
    };

    pub(crate) fn value(self) -> f64 {
        self.high + self.low
    }

    /// Exact if `|high| >= |low|`.
    fn normalized(high: f64, low: f64) -> Self {
        let sum = high + low;
        Self {
            high: sum,
            low: low - (sum - high),
        }
    }

    pub(crate) fn sum(terms: impl Iterator<Item = Self>) -> Self {
        terms.fold(Self::ZERO, Add::add)
    }

    pub(crate) fn sqrt(self) -> Self {
        if self == Self::ZERO {
            return self;
        }
        // One Newton step from the nearest double squares its error.
        let near = Self::from(self.high.sqrt());
        near + (self - near * near) / (near + near)
    }

    /// By `exp(x) = 2^k exp(r / 256)^256` and the series of the last.
    pub(crate) fn exp(self) -> Self {
        let k = (self.high / LN_2.high).round();
        let r = (self - LN_2 * Self::from(k)) * Self::from(1.0 / 256.0);
        let mut term = Self::from(1.0);
        let mut sum = term;
        for n in 1..14 {
            term = term * r / Self::from(f64::from(n));
            sum = sum + term;
        }
        for _ in 0..8 {
            sum = sum * sum;
        }
        sum * Self::from(k.exp2())
    }
}

impl From<f64> for Twice {
    fn from(high: f64) -> Self {
        Self { high, low: 0.0 }
    }
}

impl Add for Twice {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let sum = self.high + other.high;
        let back = sum - self.high;
        let error = (self.high - (sum - back)) + (other.high - back);
        Self::normalized(sum, error + (self.low + other.low))
    }
}

impl Sub for Twice {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + Self {
            high: -other.high,
            low: -other.low,
        }
    }
}

impl Mul for Twice {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let product = self.high * other.high;
        let error = self.high.mul_add(other.high, -product);
        Self::normalized(
            product,
            error + (self.high * other.low + self.low * other.high),
        )
    }
}

impl Div for Twice {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let near = Self::from(self.high / other.high);
        let rest = self - near * other;
        near + Self::from(rest.high / other.high)
    }
}

#[test]
fn identities_hold_far_beyond_f64() {
    // Rounding of 2^-104 or so, which the eight squarings of `exp` make 256 times larger.
    let small = |error: Twice| error.value().abs() < 1e-27;
    for x in [0.3, 1.7, 5.0, 11.25].map(Twice::from) {
        assert!(small(x.sqrt() * x.sqrt() / x - Twice::from(1.0)));
        assert!(small(x.exp() * (Twice::ZERO - x).exp() - Twice::from(1.0)));
        assert!(small(
            (x + x).exp() / (x.exp() * x.exp()) - Twice::from(1.0)
        ));
        assert!(small(
            (x / Twice::from(3.0)) * Twice::from(3.0) / x - Twice::from(1.0)
        ));
        assert!((x.exp().value() / x.high.exp() - 1.0).abs() <= f64::EPSILON);
    }
}
