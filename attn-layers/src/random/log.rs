//! `log(1 + x)` as XLA's CPU code computes it: a rational function near 0, else the logarithm of the sum.
//!
//! In `f32` the logarithm is XLA's too, operation by operation. In `f64` XLA calls the C library; here it is carried in two numbers, so
//! that its rounding is nearly always the right one, as the C library's is.

use libm::{fma, fmaf};

/// `p[0] * x^n + p[1] * x^(n-1) + ...`, each step fused.
pub(super) fn polynomial32(p: &[u32], x: f32) -> f32 {
    let coefficients = p.iter().map(|&bits| f32::from_bits(bits));
    coefficients.reduce(|sum, c| fmaf(sum, x, c)).unwrap_or(0.0)
}

/// As [`polynomial32`].
pub(super) fn polynomial64(p: &[f64], x: f64) -> f64 {
    p.iter()
        .copied()
        .reduce(|sum, c| fma(sum, x, c))
        .unwrap_or(0.0)
}

/// `log(1 + x)` for `x` from -1 to 0 and above.
pub(super) fn log1p_32(x: f32) -> f32 {
    // sqrt(2) - 1, up to which the rational function serves.
    const NEAR: f32 = f32::from_bits(0x3ed4_13cd);
    const NUMERATOR: [u32; 7] = [
        0x383d_e04b,
        0x3eff_40c5,
        0x40d2_84fa,
        0x41ef_4b9c,
        0x4273_cc76,
        0x4264_73ad,
        0x41a0_5101,
    ];
    const DENOMINATOR: [u32; 7] = [
        0x3f80_0000,
        0x4171_01ad,
        0x42a6_185b,
        0x435d_c32d,
        0x439a_8ca3,
        0x4358_6d8a,
        0x4270_7982,
    ];
    if x.abs() >= NEAR {
        return log_32(1.0 + x);
    }
    let square = x * x;
    let ratio = polynomial32(&NUMERATOR, x) / polynomial32(&DENOMINATOR, x);
    x + fmaf(-square, 0.5, x * square * ratio)
}

/// `log(v)` for `v` above 0.
fn log_32(v: f32) -> f32 {
    const SQRT_HALF: f32 = f32::from_bits(0x3f35_04f3);
    /// `log(2)` in two parts.
    const LN2: [f32; 2] = [f32::from_bits(0x3f31_8000), f32::from_bits(0xb95e_8083)];
    /// Three polynomials, whose powers go up by three from one to the next.
    const THIRDS: [[u32; 3]; 3] = [
        [0x3d90_21bb, 0xbdeb_d1b8, 0x3def_251a],
        [0xbdfe_5d4f, 0x3e11_e9bf, 0xbe2a_ae50],
        [0x3e4c_ceac, 0xbe7f_fffc, 0x3eaa_aaaa],
    ];
    let bits = v.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = ((bits >> 23) as i32 - 126) as f32;
    let mantissa = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    let mut x = mantissa - 1.0;
    if mantissa < SQRT_HALF {
        exponent -= 1.0;
        x += mantissa;
    }
    let square = x * x;
    let cube = square * x;
    let [high, middle, low] = THIRDS.map(|p| polynomial32(&p, x));
    let tail = fmaf(fmaf(high, cube, middle), cube, low);
    let tail = fmaf(tail, cube, exponent * LN2[1]);
    fmaf(exponent, LN2[0], fmaf(-square, 0.5, x) + tail)
}

/// As [`log1p_32`].
pub(super) fn log1p_64(x: f64) -> f64 {
    const NEAR: f64 = f64::from_bits(0x3fda_8279_99fc_ef32);
    const NUMERATOR: [u64; 7] = [
        0x3f07_bc09_62b3_95ca,
        0x3fdf_e818_a0fe_1a83,
        0x401a_509f_46f4_fa53,
        0x403d_e973_8b8c_b9c9,
        0x404e_798e_b86c_3351,
        0x404c_8e75_9747_9a10,
        0x4034_0a20_2d99_830a,
    ];
    const DENOMINATOR: [u64; 7] = [
        0x3ff0_0000_0000_0000,
        0x402e_2035_9e90_3e37,
        0x4054_c30b_5221_3498,
        0x406b_b865_90fc_fb56,
        0x4073_5194_5dc9_08a5,
        0x406b_0db1_3e48_e066,
        0x404e_0f30_4466_448e,
    ];
    if x.abs() >= NEAR {
        return log_64(1.0 + x);
    }
    let square = x * x;
    let numerator = polynomial64(&NUMERATOR.map(f64::from_bits), x);
    let denominator = polynomial64(&DENOMINATOR.map(f64::from_bits), x);
    x + fma(-square, 0.5, x * square * (numerator / denominator))
}

/// `log(v)` for normal `v` above 0, within 0.52 units of the last place: `v` is `2^exponent * m`, and with `s = (m - 1) / (m + 1)`,
/// `log(m) = 2 * (s + s^3/3 + s^5/5 + ...)`, of which the first term is carried in two numbers.
fn log_64(v: f64) -> f64 {
    /// `log(2)` in two parts, the first so short that multiples of it are exact.
    const LN2: [f64; 2] = [
        f64::from_bits(0x3fe6_2e42_fee0_0000),
        f64::from_bits(0x3dea_39ef_3579_3c76),
    ];
    let (exponent, m) = split(v);
    let exponent = f64::from(exponent);
    let (difference, sum) = (m - 1.0, m + 1.0);
    let lost = m - (sum - 1.0);
    let s = difference / sum;
    let remainder = (fma(-s, sum, difference) - s * lost) / sum;
    let square = s * s;
    let tail = s * square * series(square);
    let (high, first) = (exponent * LN2[0], 2.0 * s);
    let total = high + first;
    let rest = first - (total - high);
    total + (rest + fma(exponent, LN2[1], 2.0 * (remainder + tail)))
}

/// `1/3 + x/5 + x^2/7 + ...` for `x` up to 0.03.
fn series(x: f64) -> f64 {
    (0..11)
        .rev()
        .map(|i| 1.0 / f64::from(2 * i + 3))
        .fold(0.0, |sum, c| fma(sum, x, c))
}

/// A power of two and a number from `sqrt(1/2)` to `sqrt(2)`, whose product is `v`.
fn split(v: f64) -> (i32, f64) {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = v.to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    let m = f64::from_bits(bits & MANTISSA | 1f64.to_bits());
    if m > core::f64::consts::SQRT_2 {
        (exponent + 1, m / 2.0)
    } else {
        (exponent, m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_within_a_unit_of_another() {
        // Each is off by less than a unit of the last place.
        for i in 1..4000 {
            let v = f64::from(i) / 4096.0;
            let (got, other) = (log_64(v), libm::log(v));
            let apart = (got - other).abs();
            assert!(
                apart <= 2.0 * f64::EPSILON * other.abs(),
                "{v} {got} {other}"
            );
        }
    }

    #[test]
    fn powers_of_two_have_multiples_of_log_2() {
        for exponent in [-1074 + 52, -53, -1, 0, 1, 1023] {
            let got = log_64(libm::scalbn(1.0, exponent));
            assert_eq!(got, f64::from(exponent) * core::f64::consts::LN_2);
        }
    }

    #[test]
    fn both_widths_agree() {
        for i in 0..1000i16 {
            let x = -f32::from(i) / 1000.0;
            let (narrow, wide) = (log1p_32(x), log1p_64(x.into()));
            let unit = f64::from(f32::EPSILON) * wide.abs();
            assert!((f64::from(narrow) - wide).abs() <= 2.0 * unit, "{x}");
        }
    }
}
