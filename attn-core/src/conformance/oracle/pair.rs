//! Arithmetic with twice the digits of an `f64`.

/// An unevaluated sum of two `f64`.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Pair {
    pub(super) high: f64,
    pub(super) low: f64,
}

impl From<f64> for Pair {
    fn from(high: f64) -> Self {
        Self { high, low: 0.0 }
    }
}

/// `ln(2)`.
pub(super) const LN_2: Pair = Pair {
    high: core::f64::consts::LN_2,
    low: 2.319_046_813_846_299_6e-17,
};
/// Beyond this, `tanh` is 1 in more digits than a pair has.
const FLAT: f64 = 40.0;
/// The exponential's argument is halved so often, and its result squared as often.
const HALVINGS: i32 = 8;
/// Terms of the exponential's series: the next is below 2^-104 for arguments up to `ln(2) / 2` after the halvings.
const TERMS: u32 = 8;

impl Pair {
    pub(in super::super) fn value(self) -> f64 {
        self.high + self.low
    }

    /// The nearest `f64`, and what is left.
    pub(in super::super) fn parts(self) -> [f64; 2] {
        [self.high, self.low]
    }

    /// Knuth's exact sum, then the low parts.
    pub(in super::super) fn add(self, other: Self) -> Self {
        let sum = self.high + other.high;
        let back = sum - self.high;
        let error = (self.high - (sum - back)) + (other.high - back);
        Self::normalized(sum, error + self.low + other.low)
    }

    /// Dekker's exact product of two `f64`.
    pub(super) fn product(a: f64, b: f64) -> Self {
        let split = |x: f64| {
            let scaled = x * 134_217_729.0; // 2^27 + 1
            let high = scaled - (scaled - x);
            (high, x - high)
        };
        let product = a * b;
        let ((a1, a2), (b1, b2)) = (split(a), split(b));
        Self {
            high: product,
            low: ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2,
        }
    }

    pub(in super::super) fn scaled(self, factor: f64) -> Self {
        let product = Self::product(self.high, factor);
        Self::normalized(product.high, product.low + self.low * factor)
    }

    pub(super) fn times(self, other: Self) -> Self {
        let product = Self::product(self.high, other.high);
        let cross = self.high * other.low + self.low * other.high;
        Self::normalized(product.high, product.low + cross)
    }

    /// By long division: three quotients, each of what is left.
    pub(in super::super) fn over(self, other: Self) -> Self {
        let (mut rest, mut quotient) = (self, Self::default());
        for _ in 0..3 {
            let digit = rest.value() / other.high;
            quotient = quotient.add(digit.into());
            rest = rest.add(other.scaled(-digit));
        }
        quotient
    }

    pub(super) fn negated(self) -> Self {
        Self {
            high: -self.high,
            low: -self.low,
        }
    }

    /// `(1 - e^-2x) / (1 + e^-2x)` of the size, with the sign.
    pub(in super::super) fn tanh(self) -> Self {
        let sign = if self.high < 0.0 { -1.0 } else { 1.0 };
        if self.high.abs() > FLAT {
            return sign.into();
        }
        let (one, power) = (Self::from(1.0), self.scaled(-2.0 * sign).exp());
        one.add(power.scaled(-1.0))
            .over(one.add(power))
            .scaled(sign)
    }

    /// `2^n e^r` with a small `r` to 97 bits, for arguments down to a few hundred below 0.
    fn exp(self) -> Self {
        let n = (self.high / LN_2.high - 0.5) as i64;
        let rest = self.add(LN_2.scaled(-(n as f64)));
        let rest = rest.scaled(1.0 / f64::from(1 << HALVINGS));
        let (mut sum, mut term) = (Self::from(1.0), Self::from(1.0));
        for i in 1..=TERMS {
            term = term.times(rest).over(f64::from(i).into());
            sum = sum.add(term);
        }
        for _ in 0..HALVINGS {
            sum = sum.times(sum);
        }
        let exponent = u64::try_from(n + 1023).unwrap_or(0);
        sum.scaled(f64::from_bits(exponent << 52))
    }

    fn normalized(high: f64, low: f64) -> Self {
        if !high.is_finite() {
            return Self { high, low: 0.0 };
        }
        let sum = high + low;
        Self {
            high: sum,
            low: low - (sum - high),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tanh(0.5)` and `tanh(3)` to 32 digits, in two parts.
    const KNOWN: [(f64, [f64; 2]); 2] = [
        (0.5, [0.46211715726000974, 2.1916603238260928e-17]),
        (3.0, [0.9950547536867305, -1.2991892863562624e-17]),
    ];

    #[test]
    fn the_hyperbolic_tangent_has_nearly_all_digits_of_a_pair() {
        for (x, [high, low]) in KNOWN {
            for sign in [1.0, -1.0] {
                let off = Pair::from(sign * x).tanh().scaled(sign).add(Pair {
                    high: -high,
                    low: -low,
                });
                assert!(off.value().abs() < 1e-29, "{x}: {off:?}");
            }
        }
        // `x - x^3 / 3 + 2 x^5 / 15`, and what follows is below the last digit.
        let x = 1e-6;
        let off = Pair::from(x).tanh().add((-x).into()).value();
        assert!((off + 1e-18 / 3.0).abs() < 1e-28, "{off:e}");
        assert_eq!(Pair::from(1e300).tanh().value(), 1.0);
        assert_eq!(Pair::from(-41.0).tanh().value(), -1.0);
        assert!(Pair::from(f64::NAN).tanh().value().is_nan());
    }
}
