//! The error function and its inverse as XLA's CPU code computes them.
//!
//! The inverse is Giles' (*Approximating the erfinv function*, 2011): with `w = -log(1 - x^2)`, a polynomial in `w` near the middle, in
//! `sqrt(w)` towards the ends.

use super::arithmetic::{constant, product, quotient};
use super::log::{log1p_32, log1p_64, polynomial32, polynomial64};
use attn_core::{DType, Element};
use core::f64::consts::SQRT_2;

/// The number whose error function is `x`, in -1 to 1; 16 bits by way of `f32`.
pub(super) fn erf_inv<T: Element>(x: T) -> T {
    T::from_f64(match T::DTYPE {
        DType::F64 => erf_inv_64(x.to_f64()),
        DType::F32 | DType::F16 | DType::BF16 => erf_inv_32(x.to_f64() as f32).into(),
    })
}

/// The error function of `bound / sqrt(2)`: where a normal number's `bound` lies among uniform ones. XLA multiplies by the reciprocal
/// of the constant.
pub(super) fn erf_of_bound<T: Element>(bound: T) -> T {
    let x = product(bound, quotient(T::from_f64(1.0), constant(SQRT_2)));
    T::from_f64(match T::DTYPE {
        DType::F64 => libm::erf(x.to_f64()),
        DType::F32 | DType::F16 | DType::BF16 => erf_32(x.to_f64() as f32).into(),
    })
}

fn erf_32(x: f32) -> f32 {
    // From here on the result rounds to 1.
    const END: f32 = f32::from_bits(0x406f_9c68);
    const NUMERATOR: [u32; 5] = [
        0x3970_2d51,
        0x3b5f_5da2,
        0x3d50_b6eb,
        0x3e3d_a740,
        0x3f90_6eba,
    ];
    const DENOMINATOR: [u32; 7] = [
        0xb3fd_3906,
        0x37c5_88df,
        0x3a85_6d28,
        0x3c66_87d4,
        0x3de3_4c21,
        0x3efe_b44a,
        0x3f80_0000,
    ];
    if x.abs() >= END {
        return 1f32.copysign(x);
    }
    let square = x * x;
    x * polynomial32(&NUMERATOR, square) / polynomial32(&DENOMINATOR, square)
}

fn erf_inv_32(x: f32) -> f32 {
    const MIDDLE: [u32; 9] = [
        0x32f1_6588,
        0x34b8_4b36,
        0xb66c_7357,
        0xb693_5ac1,
        0x3965_32db,
        0xbaa4_5408,
        0xbb88_e4ef,
        0x3e7c_8f63,
        0x3fc0_2e2f,
    ];
    const ENDS: [u32; 9] = [
        0xb951_f09b,
        0x38d3_b56b,
        0x3ab0_dc72,
        0xbb70_bde7,
        0x3bbc_127b,
        0xbbf9_c5d7,
        0x3c1a_a57e,
        0x3f80_36db,
        0x4035_4f7e,
    ];
    if x.abs() == 1.0 {
        return x * f32::INFINITY;
    }
    let w = -log1p_32(x * -x);
    let p = if w < 5.0 {
        polynomial32(&MIDDLE, w - 2.5)
    } else {
        polynomial32(&ENDS, libm::sqrtf(w) - 3.0)
    };
    p * x
}

fn erf_inv_64(x: f64) -> f64 {
    const MIDDLE: [f64; 23] = [
        -3.644_412_064_017_82e-21,
        -1.685_059_138_182_016_6e-19,
        1.285_848_071_525_64e-18,
        1.115_787_767_802_518_1e-17,
        -1.333_171_662_854_621e-16,
        2.097_276_787_596_856_2e-17,
        6.637_638_134_358_324e-15,
        -4.054_566_272_975_207e-14,
        -8.151_934_197_605_472e-14,
        2.633_509_315_308_232_3e-12,
        -1.297_513_325_345_353_2e-11,
        -5.415_412_054_294_628e-11,
        1.051_212_273_321_532_3e-9,
        -4.112_633_980_346_984e-9,
        -2.907_036_995_788_200_5e-8,
        4.234_787_782_793_240_4e-7,
        -1.365_469_200_083_467_9e-6,
        -1.388_252_336_278_646_9e-5,
        0.000_186_734_208_034_057_14,
        -0.000_740_702_534_166_267,
        -0.006_033_670_871_430_149,
        0.240_158_182_425_589_62,
        1.653_654_562_683_102_7,
    ];
    const OUTER: [f64; 19] = [
        2.213_737_692_177_578_7e-9,
        9.075_656_193_888_539e-8,
        -2.751_740_629_706_454_5e-7,
        1.823_962_921_438_922_8e-8,
        1.502_740_396_890_982_8e-6,
        -4.013_867_526_981_546e-6,
        2.923_444_908_995_544_6e-6,
        1.247_530_448_167_177_9e-5,
        -4.731_822_900_905_573_4e-5,
        6.828_485_145_957_318e-5,
        2.403_111_038_709_789_4e-5,
        -0.000_355_037_520_362_847_5,
        0.000_953_289_379_737_380_5,
        -0.001_688_275_556_023_504_7,
        0.002_491_442_096_107_851,
        -0.003_751_208_507_569_241,
        0.005_370_914_553_590_064,
        1.005_258_967_694_159_2,
        3.083_885_610_492_220_8,
    ];
    const ENDS: [f64; 17] = [
        -2.710_992_061_643_857_3e-11,
        -2.555_641_816_996_525e-10,
        1.507_657_269_350_054_8e-9,
        -3.789_465_440_126_737e-9,
        7.615_701_208_078_34e-9,
        -1.496_002_662_714_924e-8,
        2.914_795_345_090_108e-8,
        -6.771_199_775_845_234e-8,
        2.290_048_222_802_665_5e-7,
        -9.929_827_294_231_7e-7,
        4.526_062_597_223_154e-6,
        -1.968_177_810_553_167e-5,
        7.599_527_703_001_776e-5,
        -0.000_215_030_119_300_444_77,
        -0.000_138_719_318_336_231_22,
        1.010_300_464_864_534_4,
        4.849_906_401_408_584,
    ];
    if x.abs() == 1.0 {
        return x * f64::INFINITY;
    }
    let w = -log1p_64(x * -x);
    let p = if w < 6.25 {
        polynomial64(&MIDDLE, w - 3.125)
    } else if w < 16.0 {
        polynomial64(&OUTER, libm::sqrt(w) - 3.25)
    } else {
        polynomial64(&ENDS, libm::sqrt(w) - 5.0)
    };
    p * x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_has_the_bits_of_xla() {
        for (x, wanted) in [
            (0x3a83_126f, 0x3a68_51b2),
            (0x3dcc_cccd, 0x3db5_fa21),
            (0x3f00_0000, 0x3ef4_30fe),
            (0x3f66_6666, 0x3f94_e009),
            (0x3f7d_70a4, 0x3fe9_2333),
            (0x3f7f_ffef, 0x405d_40b6),
            (0xbe80_0000, 0xbe66_b835),
        ] {
            assert_eq!(erf_inv_32(f32::from_bits(x)).to_bits(), wanted, "{x:x}");
        }
    }

    #[test]
    fn the_ends_are_infinite() {
        assert_eq!(erf_inv(1.0f32), f32::INFINITY);
        assert_eq!(erf_inv(-1.0f64), f64::NEG_INFINITY);
    }

    #[test]
    fn bounds_of_two_deviations_are_those_of_xla() {
        use attn_core::{bf16, f16};
        assert_eq!(erf_of_bound(2.0f32).to_bits(), 0x3f74_5a18);
        assert_eq!(erf_of_bound(-2.0f64).to_bits(), 0xbfee_8b43_07d3_627a);
        assert_eq!(erf_of_bound(bf16::from_f32(2.0)).to_bits(), 0x3f74);
        assert_eq!(erf_of_bound(f16::from_f32(2.0)).to_bits(), 0x3ba3);
    }

    #[test]
    fn the_inverse_inverts() {
        // The slope of the inverse is at most 100 here, so both ways lose less than that many units of the last place.
        for i in -99i8..=99 {
            let x = f64::from(i) / 100.0;
            let back = libm::erf(erf_inv_64(x));
            assert!((back - x).abs() <= 100.0 * f64::EPSILON, "{x} {back}");
            let back = libm::erff(erf_inv_32(x as f32));
            assert!(
                (back - x as f32).abs() <= 100.0 * f32::EPSILON,
                "{x} {back}"
            );
        }
    }
}
