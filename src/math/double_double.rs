//! Numbers of about 106 bits, each the sum of two `f64`: what a row of `f64` ends with.
//!
//! Only `+ - * /` and `f64::mul_add` are used, which every system rounds alike. Everything is inlined
//! into the kernels, where `mul_add` is one instruction. Infinities and NaN come out as NaN, unless
//! a function says otherwise.
#![forbid(unsafe_code)]

use super::functions::{exp2_int, ln, ln_1p};
use std::f64::consts::LOG2_E;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// `hi + lo`, where `hi` is that sum rounded to `f64`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Dd {
    pub(crate) hi: f64,
    pub(crate) lo: f64,
}

/// `ln 2`, to 2^-109.
pub(crate) const LN_2: Dd =
    Dd { hi: std::f64::consts::LN_2, lo: f64::from_bits(0x3c7a_bc9e_3b39_803f) };

impl Dd {
    pub(crate) const ZERO: Dd = Dd::new(0.0);
    pub(crate) const ONE: Dd = Dd::new(1.0);

    #[inline(always)]
    pub(crate) const fn new(x: f64) -> Dd {
        Dd { hi: x, lo: 0.0 }
    }

    /// `a + b`, exactly.
    #[inline(always)]
    pub(crate) fn sum(a: f64, b: f64) -> Dd {
        let hi = a + b;
        let from_b = hi - a;
        Dd { hi, lo: (a - (hi - from_b)) + (b - from_b) }
    }

    /// `a + b`, exactly, for `|a| >= |b|`.
    #[inline(always)]
    fn ordered_sum(a: f64, b: f64) -> Dd {
        let hi = a + b;
        Dd { hi, lo: b - (hi - a) }
    }

    /// `a * b`, exactly.
    #[inline(always)]
    pub(crate) fn product(a: f64, b: f64) -> Dd {
        let hi = a * b;
        Dd { hi, lo: a.mul_add(b, -hi) }
    }

    /// Times a power of two.
    #[inline(always)]
    pub(crate) fn times_power(self, power: f64) -> Dd {
        Dd { hi: self.hi * power, lo: self.lo * power }
    }

    /// The root, within 2^-100 of it; that of 0 is 0, and of a negative number NaN.
    pub(crate) fn sqrt(self) -> Dd {
        let root = self.hi.sqrt();
        if root == 0.0 || !root.is_finite() {
            return Dd::new(root);
        }
        // A step of Newton.
        let rest = self - Dd::product(root, root);
        Dd::ordered_sum(root, rest.hi / (2.0 * root))
    }

    /// `e^self` within 2^-68; 0 below -746, infinity above 710.
    #[inline(always)]
    pub(crate) fn exp(self) -> Dd {
        if self.hi < -746.0 {
            return Dd::ZERO;
        }
        if self.hi > 710.0 {
            return Dd::new(f64::INFINITY);
        }
        // Adding and subtracting 1.5 * 2^52 rounds to an integer without a library call.
        const ROUND: f64 = 6_755_399_441_055_744.0;
        let k = (self.hi * LOG2_E + ROUND) - ROUND;
        let e = Dd::ONE + (self - LN_2 * k).small_exp_m1();
        // In two factors, as 2^k may be out of range where the result is not.
        let half = k as i32 / 2;
        let (a, b) = (exp2_int(half), exp2_int(k as i32 - half));
        Dd { hi: e.hi * a * b, lo: e.lo * a * b }
    }

    /// `e^self - 1` for `|self| <= 0.42`, within 2^-68 of it.
    #[inline(always)]
    fn small_exp_m1(self) -> Dd {
        // The series as r (1 + r/2 (1 + r/3 (1 + ...))). The error of the inner brackets counts r^5/720
        // and less: one `f64` is enough for them.
        let mut inner = 1.0;
        for n in (7..=17).rev() {
            inner = 1.0 + self.hi * inner * (1.0 / f64::from(n));
        }
        let mut bracket = Dd::new(inner);
        for n in (2..=6).rev() {
            bracket = Dd::ONE + self * bracket / f64::from(n);
        }
        self * bracket
    }

    /// `ln self` for positive normal numbers below 2^1000, within 2^-68 of the larger of it and 2^-36.
    #[inline(always)]
    pub(crate) fn ln(self) -> Dd {
        // A step of Newton from y, which is right to 52 bits: ln x = y + ln(x e^-y), and the second
        // logarithm is as good as its argument less 1.
        let y = ln(self.hi);
        Dd::new(y) + (self * Dd::new(-y).exp() - Dd::ONE)
    }

    /// `ln(1 + self)` for `0 <= self < 2^1000`, within 2^-66 of it down to the smallest.
    #[inline(always)]
    pub(crate) fn ln_1p(self) -> Dd {
        if self.hi > 0.41 {
            return (Dd::ONE + self).ln();
        }
        // As above, with (1 + w) e^-y - 1 = w + d + w d where d = e^-y - 1.
        let y = ln_1p(self.hi);
        let d = Dd::new(-y).small_exp_m1();
        Dd::new(y) + (self + d + self * d)
    }
}

/// A sum of such numbers, which is off by at most `n^2 2^-106` times the sum of the magnitudes of `n` of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DdSum {
    sum: f64,
    /// What rounding took from it, and the lower parts.
    lost: f64,
}

impl DdSum {
    #[inline(always)]
    pub(crate) fn add(&mut self, x: Dd) {
        let sum = Dd::sum(self.sum, x.hi);
        self.sum = sum.hi;
        self.lost += sum.lo + x.lo;
    }

    #[inline(always)]
    pub(crate) fn value(&self) -> Dd {
        Dd::sum(self.sum, self.lost)
    }
}

impl From<f64> for Dd {
    #[inline(always)]
    fn from(x: f64) -> Dd {
        Dd::new(x)
    }
}

impl Add for Dd {
    type Output = Dd;
    #[inline(always)]
    fn add(self, other: Dd) -> Dd {
        let (hi, lo) = (Dd::sum(self.hi, other.hi), Dd::sum(self.lo, other.lo));
        let sum = Dd::ordered_sum(hi.hi, hi.lo + lo.hi);
        Dd::ordered_sum(sum.hi, sum.lo + lo.lo)
    }
}

impl Neg for Dd {
    type Output = Dd;
    #[inline(always)]
    fn neg(self) -> Dd {
        Dd { hi: -self.hi, lo: -self.lo }
    }
}

impl Sub for Dd {
    type Output = Dd;
    #[inline(always)]
    fn sub(self, other: Dd) -> Dd {
        self + -other
    }
}

impl Mul for Dd {
    type Output = Dd;
    #[inline(always)]
    fn mul(self, other: Dd) -> Dd {
        let p = Dd::product(self.hi, other.hi);
        Dd::ordered_sum(p.hi, p.lo + (self.hi * other.lo + self.lo * other.hi))
    }
}

impl Mul<f64> for Dd {
    type Output = Dd;
    #[inline(always)]
    fn mul(self, other: f64) -> Dd {
        let p = Dd::product(self.hi, other);
        Dd::ordered_sum(p.hi, p.lo + self.lo * other)
    }
}

impl Div<f64> for Dd {
    type Output = Dd;
    #[inline(always)]
    fn div(self, other: f64) -> Dd {
        let q = self.hi / other;
        let rest = (-q).mul_add(other, self.hi);
        Dd::ordered_sum(q, (rest + self.lo) / other)
    }
}
