//! Instructions against the same in Rust.

mod support;

use half::{bf16, f16};
use support::Kernel;

/// Numbers that are interesting as integers and as bits of floating-point numbers, in four arrays of 64.
fn inputs() -> [Vec<u32>; 3] {
    let mut state = 12345u32;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let special = [
        0,
        1,
        2,
        31,
        32,
        33,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x0000_1234,
        0x0080_0000,
        0x4049_0fdb,
        0x3eaa_aaab,
        0x0001_8000,
        0xffff_8000,
    ];
    [0, 7, 13].map(|shift| {
        (0..64)
            .map(|at| {
                if at < special.len() {
                    special[(at + shift) % special.len()]
                } else if at < 44 {
                    // A number of moderate size.
                    (((next() % 2000) as f32 - 1000.0) / 64.0).to_bits()
                } else {
                    next()
                }
            })
            .collect()
    })
}

/// Runs `instruction` on `%r10`, `%r11`, `%r12` (also as `%f10` … and, of two words, `%rd10` …) in 64 threads; the result is that of
/// `%r20`.
#[track_caller]
fn words(instruction: &str) -> Vec<u32> {
    let [a, b, c] = inputs();
    let input: Vec<u32> = a.iter().chain(&b).chain(&c).copied().collect();
    let body = format!(
        "ld.global.u32 %r10, [%rd4]; ld.global.u32 %r11, [%rd4+256]; ld.global.u32 %r12, [%rd4+512];
         mov.b32 %f10, %r10; mov.b32 %f11, %r11; mov.b32 %f12, %r12;
         mov.b64 %rd10, {{%r10, %r11}}; mov.b64 %rd11, {{%r11, %r12}}; mov.b64 %rd12, {{%r12, %r10}};
         cvt.u16.u32 %rs10, %r10; cvt.u16.u32 %rs11, %r11; cvt.u16.u32 %rs12, %r12;
         {instruction}
         st.global.u32 [%rd5], %r20;"
    );
    let ran = Kernel {
        block: 64,
        input,
        body: &body,
        ..Kernel::default()
    }
    .run();
    if let Err(error) = &ran.result {
        panic!("{error}");
    }
    ran.words(64)
}

/// That `instruction` gives what `f` does, bit for bit; any NaN equals any other.
#[track_caller]
fn check(instruction: &str, f: impl Fn(u32, u32, u32) -> u32) {
    let [a, b, c] = inputs();
    let found = words(instruction);
    for at in 0..64 {
        let want = f(a[at], b[at], c[at]);
        assert_eq!(
            found[at], want,
            "{instruction} of {:#x}, {:#x}, {:#x}: {:#x}, not {want:#x}",
            a[at], b[at], c[at], found[at]
        );
    }
}

#[track_caller]
fn check_float(instruction: &str, f: impl Fn(f32, f32, f32) -> f32) {
    let [a, b, c] = inputs().map(|row| row.into_iter().map(f32::from_bits).collect::<Vec<_>>());
    let found = words(&format!("{instruction} mov.b32 %r20, %f20;"));
    for at in 0..64 {
        let want = f(a[at], b[at], c[at]);
        let found = f32::from_bits(found[at]);
        assert!(
            found.to_bits() == want.to_bits() || (found.is_nan() && want.is_nan()),
            "{instruction} of {}, {}, {}: {found:e}, not {want:e}",
            a[at],
            b[at],
            c[at]
        );
    }
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Folds a 64-bit result of `%rd20` into `%r20`.
const FOLD: &str = "mov.b64 {%r21, %r22}, %rd20; mad.lo.u32 %r20, %r22, 31, %r21;";

fn fold(value: u64) -> u32 {
    ((value >> 32) as u32)
        .wrapping_mul(31)
        .wrapping_add(value as u32)
}

#[test]
fn integers() {
    check("add.s32 %r20, %r10, %r11;", |a, b, _| a.wrapping_add(b));
    check("sub.s32 %r20, %r10, %r11;", |a, b, _| a.wrapping_sub(b));
    check("mul.lo.s32 %r20, %r10, %r11;", |a, b, _| a.wrapping_mul(b));
    check("mul.hi.s32 %r20, %r10, %r11;", |a, b, _| {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    });
    check("mul.hi.u32 %r20, %r10, %r11;", |a, b, _| {
        ((u64::from(a) * u64::from(b)) >> 32) as u32
    });
    check("mad.lo.s32 %r20, %r10, %r11, %r12;", |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    check(
        &format!("mul.wide.s32 %rd20, %r10, %r11; {FOLD}"),
        |a, b, _| fold((i64::from(a as i32) * i64::from(b as i32)) as u64),
    );
    check(
        &format!("mul.wide.u32 %rd20, %r10, %r11; {FOLD}"),
        |a, b, _| fold(u64::from(a) * u64::from(b)),
    );
    check(
        &format!("mad.wide.u32 %rd20, %r10, %r11, %rd12; {FOLD}"),
        |a, b, c| fold((u64::from(a) * u64::from(b)).wrapping_add(wide(c, a))),
    );
    check(
        "or.b32 %r13, %r11, 1; div.s32 %r20, %r10, %r13;",
        |a, b, _| (a as i32).wrapping_div((b | 1) as i32) as u32,
    );
    check(
        "or.b32 %r13, %r11, 1; rem.u32 %r20, %r10, %r13;",
        |a, b, _| a % (b | 1),
    );
    check("min.s32 %r20, %r10, %r11;", |a, b, _| {
        (a as i32).min(b as i32) as u32
    });
    check("max.u32 %r20, %r10, %r11;", |a, b, _| a.max(b));
    check("abs.s32 %r20, %r10;", |a, _, _| {
        (a as i32).wrapping_abs() as u32
    });
    check("neg.s32 %r20, %r10;", |a, _, _| a.wrapping_neg());
    check("sad.u32 %r20, %r10, %r11, %r12;", |a, b, c| {
        a.abs_diff(b).wrapping_add(c)
    });
    check("popc.b32 %r20, %r10;", |a, _, _| a.count_ones());
    check("clz.b32 %r20, %r10;", |a, _, _| a.leading_zeros());
    check("brev.b32 %r20, %r10;", |a, _, _| a.reverse_bits());
    check("bfind.u32 %r20, %r10;", |a, _, _| {
        a.checked_ilog2().unwrap_or(u32::MAX)
    });
    check("popc.b64 %r20, %rd10;", |a, b, _| wide(a, b).count_ones());
    check("clz.b64 %r20, %rd10;", |a, b, _| wide(a, b).leading_zeros());
    check(
        &format!("mul.hi.u64 %rd20, %rd10, %rd11; {FOLD}"),
        |a, b, c| fold(((u128::from(wide(a, b)) * u128::from(wide(b, c))) >> 64) as u64),
    );
    check(
        &format!("mad.lo.s64 %rd20, %rd10, %rd11, %rd12; {FOLD}"),
        |a, b, c| fold(wide(a, b).wrapping_mul(wide(b, c)).wrapping_add(wide(c, a))),
    );
    check(
        &format!("or.b64 %rd13, %rd11, 1; div.s64 %rd20, %rd10, %rd13; {FOLD}"),
        |a, b, c| fold((wide(a, b) as i64).wrapping_div((wide(b, c) | 1) as i64) as u64),
    );
    check(
        "add.s16 %rs20, %rs10, %rs11; cvt.u32.u16 %r20, %rs20;",
        |a, b, _| u32::from((a as u16).wrapping_add(b as u16)),
    );
    check("mul.wide.s16 %r20, %rs10, %rs11;", |a, b, _| {
        (i32::from(a as i16) * i32::from(b as i16)) as u32
    });
    check(
        "max.s16 %rs20, %rs10, %rs11; cvt.s32.s16 %r20, %rs20;",
        |a, b, _| i32::from((a as i16).max(b as i16)) as u32,
    );
}

#[test]
fn bits() {
    check("shl.b32 %r20, %r10, %r11;", |a, b, _| {
        a.checked_shl(b).unwrap_or(0)
    });
    check("shr.u32 %r20, %r10, %r11;", |a, b, _| {
        a.checked_shr(b).unwrap_or(0)
    });
    check("shr.s32 %r20, %r10, %r11;", |a, b, _| {
        ((a as i32) >> b.min(31)) as u32
    });
    check(&format!("shr.s64 %rd20, %rd10, %r12; {FOLD}"), |a, b, c| {
        fold(((wide(a, b) as i64) >> c.min(63)) as u64)
    });
    check("shf.l.wrap.b32 %r20, %r10, %r11, %r12;", |a, b, c| {
        ((wide(a, b) << (c & 31)) >> 32) as u32
    });
    check("shf.r.clamp.b32 %r20, %r10, %r11, %r12;", |a, b, c| {
        (wide(a, b) >> c.min(32)) as u32
    });
    check("lop3.b32 %r20, %r10, %r11, %r12, 0x96;", |a, b, c| {
        a ^ b ^ c
    });
    check("lop3.b32 %r20, %r10, %r11, %r12, 0xe8;", |a, b, c| {
        (a & b) | (b & c) | (a & c)
    });
    check("prmt.b32 %r20, %r10, %r11, 0x5410;", |a, b, _| {
        (a & 0xffff) | b << 16
    });
    check("prmt.b32 %r20, %r10, %r11, 0x7632;", |a, b, _| {
        a >> 16 | (b & 0xffff_0000)
    });
    check("prmt.b32 %r20, %r10, %r11, 0xba98;", |a, _, _| {
        a.to_le_bytes().into_iter().rev().fold(0, |all, byte| {
            all << 8 | if byte >> 7 == 1 { 0xff } else { 0 }
        })
    });
    check("bfe.u32 %r20, %r10, 5, 9;", |a, _, _| a >> 5 & 0x1ff);
    check("bfe.s32 %r20, %r10, 5, 9;", |a, _, _| {
        ((a << 18) as i32 >> 23) as u32
    });
    check("bfi.b32 %r20, %r10, %r11, 8, 16;", |a, b, _| {
        (b & 0xff00_00ff) | (a & 0xffff) << 8
    });
    check(
        &format!("bfi.b64 %rd20, %rd10, %rd11, 32, 32; {FOLD}"),
        |a, b, _| fold(wide(b, a)),
    );
    check(
        "add.cc.u32 %r13, %r10, %r11; addc.u32 %r20, %r11, %r12;",
        |a, b, c| {
            let carry = a.checked_add(b).is_none();
            b.wrapping_add(c).wrapping_add(u32::from(carry))
        },
    );
    check(
        "sub.cc.u32 %r13, %r10, %r11; subc.u32 %r20, %r11, %r12;",
        |a, b, c| b.wrapping_sub(c).wrapping_sub(u32::from(a < b)),
    );
    check(
        "mad.lo.cc.u32 %r13, %r10, %r11, %r12; madc.hi.u32 %r20, %r10, %r11, 0;",
        |a, b, c| ((u64::from(a) * u64::from(b) + u64::from(c)) >> 32) as u32,
    );
    check(
        "mov.b32 {%rs20, %rs21}, %r10; mov.b32 %r20, {%rs21, %rs20};",
        |a, _, _| a.rotate_left(16),
    );
}

#[test]
fn numbers() {
    let flush = |x: f32| {
        if x.is_subnormal() {
            f32::copysign(0.0, x)
        } else {
            x
        }
    };
    check_float("add.f32 %f20, %f10, %f11;", |a, b, _| a + b);
    check_float("sub.f32 %f20, %f10, %f11;", |a, b, _| a - b);
    check_float("mul.f32 %f20, %f10, %f11;", |a, b, _| a * b);
    check_float("mul.ftz.f32 %f20, %f10, %f11;", move |a, b, _| {
        flush(flush(a) * flush(b))
    });
    check_float("fma.rn.f32 %f20, %f10, %f11, %f12;", f32::mul_add);
    check_float("div.rn.f32 %f20, %f10, %f11;", |a, b, _| a / b);
    check_float("rcp.rn.f32 %f20, %f10;", |a, _, _| 1.0 / a);
    check_float("sqrt.rn.f32 %f20, %f10;", |a, _, _| a.sqrt());
    check_float("ex2.approx.ftz.f32 %f20, %f10;", move |a, _, _| {
        flush(f64::from(flush(a)).exp2() as f32)
    });
    check_float("lg2.approx.f32 %f20, %f10;", |a, _, _| {
        f64::from(a).log2() as f32
    });
    check_float("neg.f32 %f20, %f10;", |a, _, _| -a);
    check_float("abs.f32 %f20, %f10;", |a, _, _| a.abs());
    check_float("max.f32 %f20, %f10, %f11;", |a, b, _| {
        if a == b {
            if a.is_sign_positive() { a } else { b }
        } else {
            a.max(b)
        }
    });
    check_float("min.f32 %f20, %f10, %f11;", |a, b, _| {
        if a == b {
            if a.is_sign_negative() { a } else { b }
        } else {
            a.min(b)
        }
    });
    check_float("max.NaN.f32 %f20, %f10, %f11;", |a, b, _| {
        if a.is_nan() || b.is_nan() {
            f32::NAN
        } else if a == b {
            if a.is_sign_positive() { a } else { b }
        } else {
            a.max(b)
        }
    });
    check_float("copysign.f32 %f20, %f10, %f11;", |a, b, _| b.copysign(a));
    check_float("fma.rn.sat.f32 %f20, %f10, %f11, %f12;", |a, b, c| {
        let sum = a.mul_add(b, c);
        if sum.is_nan() {
            0.0
        } else {
            sum.clamp(0.0, 1.0) + 0.0
        }
    });
}

/// The value that directed rounding gives is the neighbour on the right side of the exact one.
#[test]
fn directed_rounding() {
    let [a, b, c] = inputs().map(|row| row.into_iter().map(f32::from_bits).collect::<Vec<_>>());
    for (name, down) in [("rm", true), ("rp", false)] {
        let found = words(&format!(
            "add.{name}.f32 %f20, %f10, %f11; mov.b32 %r20, %f20;"
        ));
        let products = words(&format!(
            "fma.{name}.f32 %f20, %f10, %f11, %f12; mov.b32 %r20, %f20;"
        ));
        for at in 0..64 {
            let check = |found: f32, near: f32, exact: f64| {
                if !exact.is_finite() || !near.is_finite() {
                    return;
                }
                let want = if down && f64::from(near) > exact {
                    near.next_down()
                } else if !down && f64::from(near) < exact {
                    near.next_up()
                } else {
                    near
                };
                assert!(found == want, "{name}: {found:e}, not {want:e}");
            };
            let sum = f64::from(a[at]) + f64::from(b[at]);
            if sum - f64::from(a[at]) == f64::from(b[at])
                && sum - f64::from(b[at]) == f64::from(a[at])
            {
                check(f32::from_bits(found[at]), a[at] + b[at], sum);
            }
            let product = f64::from(a[at]) * f64::from(b[at]);
            let sum = product + f64::from(c[at]);
            if sum - product == f64::from(c[at]) && sum - f64::from(c[at]) == product {
                check(
                    f32::from_bits(products[at]),
                    a[at].mul_add(b[at], c[at]),
                    sum,
                );
            }
        }
    }
    // 1 + 2^-60 is above 1, though a 64-bit number does not tell.
    let kernel = "mov.f32 %f1, 0f3f800000; mov.f32 %f2, 0f21800000;";
    let one = 1f32.to_bits();
    for (name, want) in [("rn", one), ("rz", one), ("rm", one), ("rp", one + 1)] {
        let found = words(&format!(
            "{kernel} fma.{name}.f32 %f20, %f1, %f1, %f2; mov.b32 %r20, %f20;"
        ));
        assert_eq!(found[0], want, "{name}");
    }
}

#[test]
fn doubles() {
    let double = |low, high| f64::from_bits(wide(low, high));
    let fold_double = |x: f64| fold(if x.is_nan() { 0 } else { x.to_bits() });
    let run = |name: &str| {
        format!(
            "mov.b64 %fd10, %rd10; mov.b64 %fd11, %rd11; mov.b64 %fd12, %rd12; {name}
             mov.b64 %rd20, %fd14; setp.nan.f64 %p1, %fd14, %fd14; selp.b64 %rd20, 0, %rd20, %p1; {FOLD}"
        )
    };
    check(&run("add.f64 %fd14, %fd10, %fd11;"), move |a, b, c| {
        fold_double(double(a, b) + double(b, c))
    });
    check(&run("mul.f64 %fd14, %fd10, %fd11;"), move |a, b, c| {
        fold_double(double(a, b) * double(b, c))
    });
    check(
        &run("fma.rn.f64 %fd14, %fd10, %fd11, %fd12;"),
        move |a, b, c| fold_double(double(a, b).mul_add(double(b, c), double(c, a))),
    );
    check(&run("div.rn.f64 %fd14, %fd10, %fd11;"), move |a, b, c| {
        fold_double(double(a, b) / double(b, c))
    });
    check(&run("sqrt.rn.f64 %fd14, %fd10;"), move |a, b, _| {
        fold_double(double(a, b).sqrt())
    });
}

#[test]
fn comparisons() {
    let set = |name: &str, operands: &str| {
        format!("setp.{name} %p1, {operands}; selp.u32 %r20, 1, 0, %p1;")
    };
    check(&set("lt.s32", "%r10, %r11"), |a, b, _| {
        u32::from((a as i32) < b as i32)
    });
    check(&set("lt.u32", "%r10, %r11"), |a, b, _| u32::from(a < b));
    check(&set("hs.u32", "%r10, %r11"), |a, b, _| u32::from(a >= b));
    check(&set("ge.s64", "%rd10, %rd11"), |a, b, c| {
        u32::from(wide(a, b) as i64 >= wide(b, c) as i64)
    });
    let float =
        |f: fn(f32, f32) -> bool| move |a, b, _| u32::from(f(f32::from_bits(a), f32::from_bits(b)));
    check(&set("lt.f32", "%f10, %f11"), float(|a, b| a < b));
    check(
        &set("ne.f32", "%f10, %f11"),
        float(|a, b| !a.is_nan() && !b.is_nan() && a != b),
    );
    check(&set("neu.f32", "%f10, %f11"), float(|a, b| a != b));
    check(
        &set("ltu.f32", "%f10, %f11"),
        float(|a, b| a.partial_cmp(&b).is_none_or(|o| o.is_lt())),
    );
    check(
        &set("num.f32", "%f10, %f11"),
        float(|a, b| !a.is_nan() && !b.is_nan()),
    );
    check(&set("eq.s16", "%rs10, %rs11"), |a, b, _| {
        u32::from(a as u16 == b as u16)
    });
    check(
        "setp.lt.u32 %p1, %r10, %r12; setp.gt.and.u32 %p2|%p3, %r10, %r11, %p1; selp.u32 %r20, 1, 0, %p2; selp.u32 %r21, 2, 0, %p3; add.u32 %r20, %r20, %r21;",
        |a, b, c| u32::from(a > b && a < c) + 2 * u32::from(a <= b && a < c),
    );
    check("slct.u32.s32 %r20, %r10, %r11, %r12;", |a, b, c| {
        if c as i32 >= 0 { a } else { b }
    });
    check("set.gt.u32.u32 %r20, %r10, %r11;", |a, b, _| {
        if a > b { u32::MAX } else { 0 }
    });
    check(
        "testp.subnormal.f32 %p1, %f10; selp.u32 %r20, 1, 0, %p1;",
        |a, _, _| u32::from(f32::from_bits(a).is_subnormal()),
    );
}

#[test]
fn conversions() {
    check("cvt.rzi.s32.f32 %r20, %f10;", |a, _, _| {
        f32::from_bits(a) as i32 as u32
    });
    check("cvt.rzi.u32.f32 %r20, %f10;", |a, _, _| {
        f32::from_bits(a) as u32
    });
    check("cvt.rni.s32.f32 %r20, %f10;", |a, _, _| {
        f32::from_bits(a).round_ties_even() as i32 as u32
    });
    check("cvt.rmi.s32.f32 %r20, %f10;", |a, _, _| {
        f32::from_bits(a).floor() as i32 as u32
    });
    check_float("cvt.rni.f32.f32 %f20, %f10;", |a, _, _| a.round_ties_even());
    check_float("cvt.rpi.f32.f32 %f20, %f10;", |a, _, _| a.ceil());
    check_float("cvt.sat.f32.f32 %f20, %f10;", |a, _, _| {
        if a > 0.0 { a.min(1.0) } else { 0.0 }
    });
    check_float("cvt.rn.f32.s32 %f20, %r10;", |a, _, _| {
        a.to_bits() as i32 as f32
    });
    check_float("cvt.rn.f32.u64 %f20, %rd10;", |a, b, _| {
        wide(a.to_bits(), b.to_bits()) as f32
    });
    check_float(
        "mov.b64 %fd10, %rd10; cvt.rn.f32.f64 %f20, %fd10;",
        |a, b, _| f64::from_bits(wide(a.to_bits(), b.to_bits())) as f32,
    );
    check(
        &format!(
            "cvt.f64.f32 %fd10, %f10; add.f64 %fd10, %fd10, %fd10; mov.b64 %rd20, %fd10; testp.notanumber.f64 %p1, %fd10; selp.b64 %rd20, 0, %rd20, %p1; {FOLD}"
        ),
        |a, _, _| {
            let x = 2.0 * f64::from(f32::from_bits(a));
            fold(if x.is_nan() { 0 } else { x.to_bits() })
        },
    );
    check(&format!("cvt.s64.s32 %rd20, %r10; {FOLD}"), |a, _, _| {
        fold(a as i32 as i64 as u64)
    });
    check("cvt.s32.s8 %r20, %r10;", |a, _, _| a as i8 as i32 as u32);
    check("cvt.u32.u8 %r20, %r10;", |a, _, _| a & 0xff);
    check(
        "cvt.sat.s8.s32 %r13, %r10; and.b32 %r20, %r13, 255;",
        |a, _, _| u32::from((a as i32).clamp(-128, 127) as i8 as u8),
    );
    check(
        "cvt.rn.f16.f32 %rs20, %f10; cvt.u32.u16 %r20, %rs20;",
        |a, _, _| {
            let x = f32::from_bits(a);
            if x.is_nan() {
                0x7fff
            } else {
                u32::from(f16::from_f32(x).to_bits())
            }
        },
    );
    check(
        "cvt.rn.bf16.f32 %rs20, %f10; cvt.u32.u16 %r20, %rs20;",
        |a, _, _| {
            let x = f32::from_bits(a);
            if x.is_nan() {
                0x7fff
            } else {
                u32::from(bf16::from_f32(x).to_bits())
            }
        },
    );
    check_float("cvt.f32.f16 %f20, %rs10;", |a, _, _| {
        f16::from_bits(a.to_bits() as u16).to_f32()
    });
    check_float("cvt.f32.bf16 %f20, %rs10;", |a, _, _| {
        bf16::from_bits(a.to_bits() as u16).to_f32()
    });
    check("cvt.rn.bf16x2.f32 %r20, %f10, %f11;", |a, b, _| {
        let half = |x: u32| {
            let x = f32::from_bits(x);
            if x.is_nan() {
                0x7fff
            } else {
                u32::from(bf16::from_f32(x).to_bits())
            }
        };
        half(a) << 16 | half(b)
    });
    check("cvt.rz.bf16x2.f32 %r20, %f10, %f11;", |a, b, _| {
        let half = |x: u32| {
            if f32::from_bits(x).is_nan() {
                0x7fff
            } else {
                x >> 16
            }
        };
        half(a) << 16 | half(b)
    });
    check("cvt.rna.tf32.f32 %r20, %f10;", |a, _, _| {
        if f32::from_bits(a).is_nan() {
            0x7fff_ffff
        } else if f32::from_bits(a).is_infinite() {
            a
        } else {
            a.wrapping_add(0x1000) & 0xffff_e000
        }
    });
}

#[test]
fn halves() {
    fn pack16(x: f32) -> u32 {
        if x.is_nan() {
            0x7fff
        } else {
            u32::from(f16::from_f32(x).to_bits())
        }
    }
    fn packb(x: f32) -> u32 {
        if x.is_nan() {
            0x7fff
        } else {
            u32::from(bf16::from_f32(x).to_bits())
        }
    }
    let h = |x: u32| f16::from_bits(x as u16).to_f32();
    let b16 = |x: u32| bf16::from_bits(x as u16).to_f32();
    check(
        "add.f16 %rs20, %rs10, %rs11; cvt.u32.u16 %r20, %rs20;",
        move |a, b, _| pack16(h(a) + h(b)),
    );
    check("mul.f16x2 %r20, %r10, %r11;", move |a, b, _| {
        pack16(h(a) * h(b)) | pack16(h(a >> 16) * h(b >> 16)) << 16
    });
    check("fma.rn.bf16x2 %r20, %r10, %r11, %r12;", move |a, b, c| {
        // The sum of an exact product, rounded to 64 bits and then to 8: the inputs are such that this is once.
        let one = |a: u32, b: u32, c: u32| {
            let exact = f64::from(b16(a)) * f64::from(b16(b)) + f64::from(b16(c));
            let near = exact as f32;
            let odd = if f64::from(near) == exact || near.to_bits() & 1 == 1 || !near.is_finite() {
                near
            } else if exact > f64::from(near) {
                near.next_up()
            } else {
                near.next_down()
            };
            packb(odd)
        };
        one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16
    });
    check("neg.bf16x2 %r20, %r10;", |a, _, _| a ^ 0x8000_8000);
}

#[test]
fn collectives() {
    // Of 64 threads: two warps.
    let lane = |thread: usize| thread % 32;
    let found = words("shfl.sync.bfly.b32 %r20|%p1, %r1, 5, 31, -1;");
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x as usize == at ^ 5)
    );
    let found = words("shfl.sync.up.b32 %r20|%p1, %r1, 3, 0, -1;");
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x as usize == if lane(at) >= 3 { at - 3 } else { at })
    );
    let found =
        words("shfl.sync.down.b32 %r13|%p1, %r1, 3, 0x1807, -1; selp.u32 %r20, %r13, 999, %p1;");
    // Segments of eight lanes.
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x as usize == if at % 8 + 3 <= 7 { at + 3 } else { 999 })
    );
    let found = words("shfl.sync.idx.b32 %r20|%p1, %r1, 9, 31, -1;");
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x as usize == at / 32 * 32 + 9)
    );
    let found = words("setp.lt.u32 %p1, %r1, 40; vote.sync.ballot.b32 %r20, %p1, -1;");
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x == if at < 32 { u32::MAX } else { 0xff })
    );
    let found = words(
        "setp.lt.u32 %p1, %r1, 40; vote.sync.all.pred %p2, %p1, -1; vote.sync.any.pred %p3, %p1, -1; selp.u32 %r20, 1, 0, %p2; selp.u32 %r21, 2, 0, %p3; add.u32 %r20, %r20, %r21;",
    );
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x == if at < 32 { 3 } else { 2 })
    );
    let found = words("redux.sync.add.s32 %r20, %r1, -1;");
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x == if at < 32 { 496 } else { 1520 })
    );
    let found = words("and.b32 %r13, %r1, 3; match.any.sync.b32 %r20, %r13, -1;");
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x == 0x1111_1111 << (at % 4))
    );
    let found = words("setp.lt.u32 %p1, %r1, 40; bar.red.popc.u32 %r20, 0, %p1;");
    assert!(found.iter().all(|&x| x == 40));
    let found = words(
        "setp.lt.u32 %p1, %r1, 40; @!%p1 bra OTHER; activemask.b32 %r20; bra DONE; OTHER: activemask.b32 %r20; DONE:",
    );
    assert!(found.iter().enumerate().all(|(at, &x)| x
        == match at {
            0..32 => u32::MAX,
            32..40 => 0xff,
            _ => 0xffff_ff00,
        }));
}

#[test]
fn atomics() {
    let counted = |operation: &str, start: u32| {
        let body = format!(
            "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%rd2], {start}; bar.sync 0; {operation}"
        );
        let ran = Kernel {
            body: &body,
            ..Kernel::default()
        }
        .run();
        assert_eq!(ran.result, Ok(()), "{operation}");
        ran.words(1)[0]
    };
    assert_eq!(counted("red.global.add.u32 [%rd2], %r1;", 5), 5 + 127 * 64);
    assert_eq!(counted("red.global.max.u32 [%rd2], %r1;", 5), 127);
    assert_eq!(counted("red.global.min.s32 [%rd2], -3;", 5), -3i32 as u32);
    assert_eq!(counted("atom.global.inc.u32 %r3, [%rd2], 9;", 0), 8);
    assert_eq!(counted("atom.global.exch.b32 %r3, [%rd2], 77;", 0), 77);
    assert_eq!(
        counted("atom.global.cas.b32 %r3, [%rd2], %r1, 128;", 20),
        128
    );
    assert_eq!(
        counted("red.global.add.f32 [%rd2], 0f3f000000;", 0),
        64f32.to_bits()
    );
    // A lock of one thread after another.
    assert_eq!(
        counted(
            "AGAIN: ld.volatile.global.u32 %r3, [%rd2]; setp.ne.u32 %p2, %r3, %r1; @%p2 bra AGAIN; add.u32 %r3, %r3, 1; st.volatile.global.u32 [%rd2], %r3;",
            0
        ),
        128
    );
}

#[test]
fn control() {
    // A loop of as many turns as the thread's number.
    let found = words(
        "mov.u32 %r20, 0; mov.u32 %r13, 0; LOOP: setp.ge.u32 %p1, %r13, %r1; @%p1 bra DONE; add.u32 %r20, %r20, %r13; add.u32 %r13, %r13, 1; bra LOOP; DONE:",
    );
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x as usize == at * at.saturating_sub(1) / 2)
    );
    let found = words(
        "TABLE: .branchtargets A, B, C; and.b32 %r13, %r1, 3; min.u32 %r13, %r13, 2; brx.idx %r13, TABLE; A: mov.u32 %r20, 10; bra DONE; B: mov.u32 %r20, 20; bra DONE; C: mov.u32 %r20, 30; DONE:",
    );
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x == [10, 20, 30, 30][at % 4])
    );
    let kernel = Kernel {
        block: 64,
        module: ".const .align 4 .b8 table[16] = {1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0};
            .global .align 4 .u32 factor = 3;
            .func (.param .b32 out) triple(.param .b32 in) { .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .pred %p<2>; ld.param.u32 %r1, [in];
              setp.gt.u32 %p1, %r1, 40; @%p1 bra BIG; and.b32 %r2, %r1, 3; mul.wide.u32 %rd1, %r2, 4; mov.u64 %rd2, table; add.s64 %rd1, %rd1, %rd2;
              ld.const.u32 %r2, [%rd1]; ld.global.u32 %r3, [factor]; mul.lo.u32 %r2, %r2, %r3; st.param.b32 [out], %r2; ret;
              BIG: st.param.b32 [out], %r1; ret; }",
        body: "{ .param .b32 a; .param .b32 b; st.param.b32 [a], %r1; call.uni (b), triple, (a); ld.param.b32 %r20, [b]; }
               st.global.u32 [%rd5], %r20;",
        ..Kernel::default()
    };
    let ran = kernel.run();
    assert_eq!(ran.result, Ok(()));
    let found = ran.words(64);
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(at, &x)| x as usize == if at > 40 { at } else { 3 * (at % 4 + 1) })
    );
}

#[test]
fn products_of_matrices() {
    // a[row][k] = row + k and b[k][column] = column - k, small integers, so every order of sums gives the same.
    let start = "and.b32 %r30, %r1, 31; shr.u32 %r31, %r30, 2; and.b32 %r32, %r30, 3; shl.b32 %r33, %r32, 1;";
    // Packs a(row, k) and a(row, k + 1) of row = %r34, k = %r35 into register `to`.
    let pair = |to: &str, f: &str| {
        format!(
            "{f} cvt.rn.f32.s32 %f30, %r36; cvt.rn.f32.s32 %f31, %r37; cvt.rn.bf16x2.f32 {to}, %f31, %f30;"
        )
    };
    let mut body = String::from(start);
    for (register, rows, first) in [
        ("%r40", 0, 0),
        ("%r41", 8, 0),
        ("%r42", 0, 8),
        ("%r43", 8, 8),
    ] {
        body += &pair(
            register,
            &format!(
                "add.s32 %r34, %r31, {rows}; add.s32 %r35, %r33, {first}; add.s32 %r36, %r34, %r35; add.s32 %r37, %r36, 1;"
            ),
        );
    }
    for (register, first) in [("%r44", 0), ("%r45", 8)] {
        body += &pair(
            register,
            &format!(
                "add.s32 %r35, %r33, {first}; sub.s32 %r36, %r31, %r35; sub.s32 %r37, %r36, 1;"
            ),
        );
    }
    body += "mov.f32 %f1, 0f3f800000; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5}, {%r40, %r41, %r42, %r43}, {%r44, %r45}, {%f1, %f1, %f1, %f1};
             shl.b32 %r50, %r31, 5; shl.b32 %r51, %r32, 3; add.u32 %r50, %r50, %r51; cvt.u64.u32 %rd20, %r50; add.s64 %rd20, %rd20, %rd2;
             st.global.v2.f32 [%rd20], {%f2, %f3}; st.global.v2.f32 [%rd20+256], {%f4, %f5};";
    let ran = Kernel {
        block: 32,
        body: &body,
        ..Kernel::default()
    }
    .run();
    assert_eq!(ran.result, Ok(()));
    let found = ran.words(128);
    for row in 0..16i32 {
        for column in 0..8i32 {
            let want: i32 = 1 + (0..16).map(|k| (row + k) * (column - k)).sum::<i32>();
            assert_eq!(
                f32::from_bits(found[(8 * row + column) as usize]),
                want as f32,
                "({row}, {column})"
            );
        }
    }
}

#[test]
fn matrices_from_shared_memory() {
    // Element (row, column) of matrix m is 64 m + 8 row + column; stored by rows, read back as fragments.
    let body = ".shared .align 16 .b8 tile[512];
        and.b32 %r30, %r1, 31; shl.b32 %r31, %r30, 3; shl.b32 %r32, %r30, 4;
        mov.u32 %r33, 0; FILL: add.u32 %r34, %r31, %r33; cvt.u16.u32 %rs1, %r34; shl.b32 %r35, %r33, 1; add.u32 %r35, %r35, %r32; st.shared.u16 [%r35], %rs1;
        add.u32 %r33, %r33, 1; setp.lt.u32 %p1, %r33, 8; @%p1 bra FILL; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r40, %r41, %r42, %r43}, [%r32];
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r44, %r45}, [%r32]; bar.sync 0;
        stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r32], {%r40, %r41, %r42, %r43}; bar.sync 0;
        ld.shared.u32 %r46, [%r32];
        mul.lo.u32 %r50, %r1, 28; cvt.u64.u32 %rd20, %r50; add.s64 %rd20, %rd20, %rd2;
        st.global.u32 [%rd20], %r40; st.global.u32 [%rd20+4], %r41; st.global.u32 [%rd20+8], %r42; st.global.u32 [%rd20+12], %r43;
        st.global.u32 [%rd20+16], %r44; st.global.u32 [%rd20+20], %r45; st.global.u32 [%rd20+24], %r46;";
    let ran = Kernel {
        block: 32,
        target: "sm_90a",
        body,
        ..Kernel::default()
    }
    .run();
    assert_eq!(ran.result, Ok(()));
    let found = ran.words(7 * 32);
    let element =
        |matrix: usize, row: usize, column: usize| (64 * matrix + 8 * row + column) as u32;
    for lane in 0..32 {
        let (group, place) = (lane / 4, 2 * (lane % 4));
        for matrix in 0..4 {
            let want = element(matrix, group, place) | element(matrix, group, place + 1) << 16;
            assert_eq!(found[7 * lane + matrix], want);
        }
        for matrix in 0..2 {
            let want = element(matrix, place, group) | element(matrix, place + 1, group) << 16;
            assert_eq!(found[7 * lane + 4 + matrix], want);
        }
        // Row `lane % 8` of matrix `lane / 8` is now a column of it.
        let want = element(lane / 8, 0, lane % 8) | element(lane / 8, 1, lane % 8) << 16;
        assert_eq!(found[7 * lane + 6], want);
    }
}

#[test]
fn bank_conflicts_are_counted() {
    let conflicts = |stride: u32| {
        let body = format!(
            ".shared .align 16 .b8 tile[16384]; mul.lo.u32 %r3, %r1, {stride}; st.shared.u32 [%r3], %r1;"
        );
        let ran = Kernel {
            block: 32,
            body: &body,
            ..Kernel::default()
        }
        .run();
        assert_eq!(ran.result, Ok(()));
        ran.device.reports()["kernel"].conflicts
    };
    assert_eq!(conflicts(4), 0);
    assert_eq!(conflicts(8), 1);
    assert_eq!(conflicts(128), 31);
    assert_eq!(conflicts(132), 0);
}
