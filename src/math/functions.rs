//! `exp`, `ln` and `ln_1p` in `f64`, the few scalar steps at the end of a row.
//!
//! The standard library calls the C library of the target, whose last bits differ from system to
//! system. These use additions, multiplications and divisions only, in one order, so that the
//! results of a row are the same bits on every machine.
#![forbid(unsafe_code)]

use std::f64::consts::{LN_2, LOG2_E};

// ln 2 in two parts; the first has 32 trailing zero bits, so that its product with an exponent is
// exact.
const LN_2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN_2_LO: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);

/// A sum that does not lose what rounding takes from each addition (Neumaier's algorithm).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Compensated {
    sum: f64,
    lost: f64,
}

impl Compensated {
    #[inline(always)]
    pub(crate) fn add(&mut self, x: f64) {
        let next = self.sum + x;
        // Infinities have nothing to lose.
        if next.is_finite() {
            self.lost += if self.sum.abs() >= x.abs() {
                (self.sum - next) + x
            } else {
                (x - next) + self.sum
            };
        }
        self.sum = next;
    }

    #[inline(always)]
    pub(crate) fn value(&self) -> f64 {
        self.sum + self.lost
    }
}

/// `2^k`; exactly 0 below the normal range and infinity above it.
pub fn exp2_int(k: i32) -> f64 {
    match k {
        ..-1022 => 0.0,
        -1022..1024 => f64::from_bits(((k + 1023) as u64) << 52),
        1024.. => f64::INFINITY,
    }
}

/// `k` of a normal `x` between `2^k` and `2^(k + 1)`; -1023 for what is smaller.
pub fn exponent(x: f64) -> i32 {
    (x.abs().to_bits() >> 52) as i32 - 1023
}

/// `e^x` within 2 ULP of normal results; 0 below -745.2 and infinity above 709.79.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.79 {
        return f64::INFINITY;
    }
    if x < -745.2 {
        return 0.0;
    }
    // Adding and subtracting 1.5 * 2^52 rounds to an integer without a library call.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let k = (x * LOG2_E + ROUND) - ROUND;
    let r = (x - k * LN_2_HI) - k * LN_2_LO;
    // Taylor to degree 13: the remainder is below 4e-18 for |r| <= ln(2) / 2.
    let mut p = 1.0 / 6_227_020_800.0;
    for c in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
    ] {
        p = p * r + c;
    }
    // In two factors, as 2^k may be out of range where the result is not.
    let half = k as i32 / 2;
    (1.0 + (r + r * r * p)) * exp2_int(half) * exp2_int(k as i32 - half)
}

/// `2 atanh(s) = ln((1 + s) / (1 - s))` for `|s| <= 0.172`, by its series to `s^21`.
fn two_atanh(s: f64) -> f64 {
    let z = s * s;
    let mut p = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        p = p * z + 1.0 / odd;
    }
    2.0 * s + 2.0 * s * z * p
}

/// `ln x` within 2 ULP for normal `x`; the logarithm of 0 is -inf.
pub fn ln(x: f64) -> f64 {
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == f64::INFINITY {
        return x;
    }
    if x < f64::MIN_POSITIVE {
        return ln(x * exp2_int(54)) - 54.0 * LN_2;
    }
    // x = m * 2^k with m in [sqrt(1/2), sqrt(2))
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let k = ((x.to_bits().wrapping_sub(SQRT_HALF)) as i64) >> 52;
    let m = f64::from_bits(x.to_bits().wrapping_sub((k as u64) << 52));
    let k = k as f64;
    let y = two_atanh((m - 1.0) / (m + 1.0));
    k * LN_2_HI + (k * LN_2_LO + y)
}

/// `ln(1 + w)` for `w >= 0`, with full relative accuracy down to the smallest `w`.
pub fn ln_1p(w: f64) -> f64 {
    if w <= 0.41 {
        return two_atanh(w / (2.0 + w));
    }
    if w == f64::INFINITY {
        return w;
    }
    let u = 1.0 + w;
    // What rounding took from u, to first order.
    let lost = if w > 1.0 { 1.0 - (u - w) } else { w - (u - 1.0) };
    ln(u) + lost / u
}

/// `-ln(1 - v)` for `0 <= v <= 0.29`, with full relative accuracy down to the smallest `v`.
pub fn neg_ln_one_minus(v: f64) -> f64 {
    two_atanh(v / (2.0 - v))
}

/// `1 - e^(-x)` for `x >= 0`, with full relative accuracy down to the smallest `x`.
pub fn one_minus_exp_neg(x: f64) -> f64 {
    if x > 0.5 || x.is_nan() {
        return 1.0 - exp(-x);
    }
    // Taylor to degree 16: the remainder is below 2^-54 of the result.
    let mut p = 1.0;
    let mut n = 16.0;
    while n > 1.0 {
        p = 1.0 - p * x / n;
        n -= 1.0;
    }
    x * p
}
