//! Elementary functions of `f64` that `core` lacks. They are plain arithmetic, so an angle has the same bits on every machine and
//! for every backend.

/// `ln(2)` in two parts, the first so short that its product with an exponent is exact.
const LN_2: [f64; 2] = [0.693_147_180_560_117_7, -1.723_944_452_561_483_5e-13];
/// `π / 2` in four parts, the first three of 22 bits, so that their products with an integer below 2^31 are exact.
const HALF_PI: [f64; 4] = [
    1.570_796_489_715_576_2,
    -1.629_206_849_429_465_4e-7,
    5.390_302_529_957_765e-15,
    3.282_003_542_873_500_5e-22,
];
/// Added to a number of at most 2^51 in size and taken away again, it rounds it to an integer.
const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
/// Largest size of an angle that [`cos_sin`] is made for.
pub(crate) const MAX_ANGLE: f64 = 2_147_483_648.0; // 2^31

/// The exact sum of two numbers, its rounded value first (Knuth 1969).
#[inline(always)]
fn sum(a: f64, b: f64) -> [f64; 2] {
    let sum = a + b;
    let back = sum - a;
    [sum, (a - (sum - back)) + (b - back)]
}

/// The exact product of two numbers of moderate size, its rounded value first (Dekker 1971).
#[inline(always)]
fn product(a: f64, b: f64) -> [f64; 2] {
    let split = |x: f64| {
        let scaled = x * 134_217_729.0; // 2^27 + 1
        let high = scaled - (scaled - x);
        [high, x - high]
    };
    let product = a * b;
    let ([a1, a2], [b1, b2]) = (split(a), split(b));
    [product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2]
}

/// `ln(x)` of a normal number above 0 as an unevaluated sum of two, within 2^-58 of it.
///
/// `x = 2^k m` with `m` near 1, and `ln(m) = 2 artanh((m - 1) / (m + 1))` by its series.
pub(crate) fn ln(x: f64) -> [f64; 2] {
    const FRACTION: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as f64 - 1023.0;
    let mut m = f64::from_bits((bits & FRACTION) | (1023 << 52));
    if m > core::f64::consts::SQRT_2 {
        m /= 2.0;
        exponent += 1.0;
    }
    let (above, [below, below_low]) = (m - 1.0, sum(m, 1.0));
    let s = above / below;
    let [back, back_low] = product(s, below);
    let s_low = ((above - back) - back_low - s * below_low) / below;
    let z = s * s;
    let mut series = 0.0;
    for n in (3..=23).rev().step_by(2) {
        series = series * z + 2.0 / f64::from(n);
    }
    let [high, low] = sum(exponent * LN_2[0], 2.0 * s);
    let low = low + (exponent * LN_2[1] + (2.0 * s_low + series * z * s));
    let high_and_low = high + low;
    [high_and_low, low - (high_and_low - high)]
}

/// `base^-(numerator / denominator)` of a normal base above 0, given as [`ln`] of it; the integers are below 2^26, the result normal.
pub(crate) fn power(ln_base: [f64; 2], numerator: usize, denominator: usize) -> f64 {
    let (numerator, denominator) = (numerator as f64, denominator as f64);
    let [high, low] = product(ln_base[0], numerator);
    let low = low + ln_base[1] * numerator;
    let quotient = high / denominator;
    let [back, back_low] = product(quotient, denominator);
    let rest = ((high - back) - back_low + low) / denominator;
    exp(-quotient, -rest)
}

/// `e^(high + low)` with `low` at most a unit in the last place of `high`, within 0.6 units in the last place.
fn exp(high: f64, low: f64) -> f64 {
    let n = high * core::f64::consts::LOG2_E + ROUND - ROUND;
    let [r, r_low] = sum(high - n * LN_2[0], low - n * LN_2[1]);
    // 1/2! + r/3! + …, of which 14 terms are enough for |r| <= ln(2)/2.
    let mut series = 0.0;
    for k in (2..=15).rev() {
        series = (series * r + 1.0) / f64::from(k);
    }
    let [power, rest] = sum(1.0, r);
    let power = power + (rest + (r_low + r * r * series));
    // In two steps, since 2^n alone need not be a normal number.
    let half = (n / 2.0) as i64;
    let scale = |n: i64| f64::from_bits(((1023 + n) as u64) << 52);
    power * scale(half) * scale(n as i64 - half)
}

/// Cosine and sine of an angle of at most [`MAX_ANGLE`] in size, each within 1 unit in the last place.
///
/// The nearest multiple of `π / 2` is taken away in four exact or nearly exact steps; the rest goes into Taylor's series.
#[inline(always)]
pub(crate) fn cos_sin(angle: f64) -> [f64; 2] {
    let n = angle * core::f64::consts::FRAC_2_PI + ROUND - ROUND;
    let exact = (angle - n * HALF_PI[0]) - n * HALF_PI[1];
    let [r, low] = sum(exact, -n * HALF_PI[2]);
    let [r, low] = sum(r, low - n * HALF_PI[3]);
    let (cos, sin) = (cos_near_0(r, low), sin_near_0(r, low));
    match (n as i64) & 3 {
        0 => [cos, sin],
        1 => [-sin, cos],
        2 => [-cos, -sin],
        _ => [sin, -cos],
    }
}

/// `sin(r + low)` for `|r| <= π / 4`.
#[inline(always)]
fn sin_near_0(r: f64, low: f64) -> f64 {
    const TERMS: [f64; 8] = [
        -1.0 / 6.0,
        1.0 / 120.0,
        -1.0 / 5_040.0,
        1.0 / 362_880.0,
        -1.0 / 39_916_800.0,
        1.0 / 6_227_020_800.0,
        -1.0 / 1_307_674_368_000.0,
        1.0 / 355_687_428_096_000.0,
    ];
    let z = r * r;
    let series = TERMS.iter().rev().fold(0.0, |sum, term| sum * z + term);
    r + (low * (1.0 - 0.5 * z) + r * z * series)
}

/// `cos(r + low)` for `|r| <= π / 4`.
#[inline(always)]
fn cos_near_0(r: f64, low: f64) -> f64 {
    const TERMS: [f64; 8] = [
        1.0 / 24.0,
        -1.0 / 720.0,
        1.0 / 40_320.0,
        -1.0 / 3_628_800.0,
        1.0 / 479_001_600.0,
        -1.0 / 87_178_291_200.0,
        1.0 / 20_922_789_888_000.0,
        -1.0 / 6_402_373_705_728_000.0,
    ];
    let z = r * r;
    let series = TERMS.iter().rev().fold(0.0, |sum, term| sum * z + term);
    let [one, rounded] = sum(1.0, -0.5 * z);
    one + (rounded + (z * z * series - r * low))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// Units in the last place of the wanted number.
    fn units(got: f64, wanted: f64) -> f64 {
        let unit = f64::from_bits(wanted.abs().to_bits() + 1) - wanted.abs();
        ((got - wanted) / unit).abs()
    }

    #[test]
    fn angles_of_all_sizes_are_right_to_a_unit() {
        let mut angle = 1e-9;
        while angle < MAX_ANGLE {
            for angle in [angle, -angle, f64::round(angle)] {
                let [cos, sin] = cos_sin(angle);
                assert!(units(cos, angle.cos()) <= 1.0, "cos {angle}: {cos}");
                assert!(units(sin, angle.sin()) <= 1.0, "sin {angle}: {sin}");
            }
            angle *= 1.000_37;
        }
        assert_eq!(cos_sin(0.0), [1.0, 0.0]);
    }

    #[test]
    fn an_angle_next_to_a_multiple_of_a_right_one_keeps_its_digits() {
        for n in [1.0, 2.0, 3.0, 1e3, 12_345.0, 1e6, 1e9] {
            let angle = n * core::f64::consts::FRAC_PI_2;
            let [cos, sin] = cos_sin(angle);
            assert!(units(cos, angle.cos()) <= 1.0, "cos {angle}: {cos}");
            assert!(units(sin, angle.sin()) <= 1.0, "sin {angle}: {sin}");
        }
    }

    #[test]
    fn logarithms_and_powers_are_right_to_a_unit() {
        for x in [
            1e-300, 0.1, 0.999, 1.0, 1.001, 1.5, 2.0, 1e4, 5e5, 1e6, 1e300,
        ] {
            let [high, low] = ln(x);
            assert!(
                (high - x.ln()).abs() <= high.abs() * f64::EPSILON,
                "ln {x}: {high}"
            );
            assert!(low.abs() <= high.abs() * f64::EPSILON, "ln {x}: {low}");
        }
        // Exponents that are sums of powers of 2 have exact powers beside them.
        for base in [1.5f64, 2.0, 1e4, 5e5, 1e300] {
            assert!(units(power(ln(base), 1, 1), 1.0 / base) <= 1.0, "{base}");
            assert!(
                units(power(ln(base), 2, 4), 1.0 / base.sqrt()) <= 1.5,
                "{base}"
            );
            assert_eq!(power(ln(base), 0, 64), 1.0);
        }
    }
}
