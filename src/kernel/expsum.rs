//! A sum of exponentials, and its logarithm.

use super::exp;
use crate::data::saved::LogSumExp;
use crate::math;
use crate::simd::Simd;
use std::f64::consts::LN_2;

/// The exponent field of the reference, and what may come above and below it.
///
/// A new reference has field 122, s = 2^-5. A class 2^5 times as probable (3.5 nats above) still fits;
/// the next one moves the reference up. Below, everything down to 2^-122 of the reference (84 nats)
/// counts, and what is smaller is exactly 0; but where a block has nothing within 2^-10 of the
/// reference, its elements would be small beside the units of the sums, and the reference moves down.
pub(super) const FIELD: f32 = 122.0;
pub(super) const HEADROOM: f32 = 5.0;
pub(super) const DEPTH: f32 = 10.0;

/// `sum(e^x)` of a part of a row, as `sum * e^(origin) * 2^(exponent)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ExpSum {
    /// Subtracted from every `x` before it is split; 0 but for rows that are astronomically large.
    pub(crate) origin: f32,
    /// An integer; -inf as long as nothing but -inf was seen.
    pub(crate) exponent: f32,
    pub(crate) sum: f64,
    /// A NaN or +inf was seen where it does not show in `sum`.
    pub(crate) nan: bool,
    pub(crate) inf: bool,
}

impl ExpSum {
    pub(crate) const EMPTY: ExpSum =
        ExpSum { origin: 0.0, exponent: f32::NEG_INFINITY, sum: 0.0, nan: false, inf: false };

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.exponent == f32::NEG_INFINITY
    }

    /// The factor that turns a sum relative to `self` into one relative to `to`: a power of two,
    /// hence exact, unless an origin is involved.
    #[inline(always)]
    pub(crate) fn scale_to<S: Simd>(&self, to: &ExpSum) -> f64 {
        if self.is_empty() {
            1.0
        } else if self.origin == to.origin {
            math::exp2_int((self.exponent - to.exponent) as i32)
        } else {
            math::exp(self.reference(S::FUSED) - to.reference(S::FUSED))
        }
    }

    #[inline(always)]
    fn reference(&self, fused: bool) -> f64 {
        f64::from(self.origin) + f64::from(self.exponent) * exp::ln_2_step(fused)
    }

    /// `ln` of the factor by which `sum` is smaller than the sum of `e^(x + shift)`.
    ///
    /// The origin may be as large as an `f32` can be: it is added to the shift first, before anything
    /// small.
    #[inline(always)]
    pub(crate) fn ln_unit(&self, fused: bool, shift: f64) -> f64 {
        const FIELD_UNIT: f64 = HEADROOM as f64 * LN_2;
        (f64::from(self.origin) + shift)
            + f64::from(self.exponent) * exp::ln_2_step(fused)
            + FIELD_UNIT
    }

    /// What is subtracted from every element before it is split.
    #[inline(always)]
    pub(crate) fn origin(&self) -> f32 {
        self.origin
    }

    /// Whether the softmax of the row is NaN: a NaN or +inf was seen.
    #[inline(always)]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.nan | self.inf | self.sum.is_nan()
    }

    /// `ln(sum(e^x))`; -inf for nothing but -inf, +inf if there was one, NaN if there was one.
    #[inline(always)]
    pub(crate) fn ln(&self, fused: bool) -> f64 {
        self.ln_shifted(fused, 0.0)
    }

    /// `ln(sum(e^(x - origin)))`, as [`ExpSum::ln`] otherwise.
    #[inline(always)]
    pub(crate) fn ln_from_origin(&self, fused: bool) -> f64 {
        self.ln_shifted(fused, -f64::from(self.origin))
    }

    #[inline(always)]
    fn ln_shifted(&self, fused: bool, shift: f64) -> f64 {
        if self.nan | self.sum.is_nan() {
            f64::NAN
        } else if self.inf {
            f64::INFINITY
        } else if self.is_empty() {
            f64::NEG_INFINITY
        } else {
            self.ln_unit(fused, shift) + math::ln(self.sum)
        }
    }

    /// `ln(sum(e^x))` over these classes and the target, whose loss among them is `loss`.
    #[inline(always)]
    pub(crate) fn lse_with(&self, fused: bool, target: f32, loss: f64) -> Lse {
        let x = f64::from(target);
        if self.is_poisoned() || !x.is_finite() {
            // NaN and +inf among the others decide alone; a target of -inf adds nothing to them.
            let alone = x.is_nan() || !self.is_poisoned() && x == f64::INFINITY;
            return if alone { Lse { hi: 0.0, lo: x } } else { self.lse(fused) };
        }
        if loss < 1.0 {
            return Lse { hi: x, lo: loss };
        }
        // A target far below the others would cancel in `x + loss`.
        let others = self.lse(fused);
        let gap = (x - others.hi) - others.lo;
        Lse { lo: others.lo + math::ln_1p(math::exp(gap)), ..others }
    }

    /// As [`ExpSum::ln`], in two parts.
    #[inline(always)]
    pub(crate) fn lse(&self, fused: bool) -> Lse {
        let lo = self.ln_from_origin(fused);
        Lse { hi: if lo.is_finite() { f64::from(self.origin) } else { 0.0 }, lo }
    }

    /// `ln(1 + sum(e^(x - target)))`, the loss of a row whose other classes were summed.
    ///
    /// The target never enters a sum, so that the loss of a confident row keeps all its digits.
    #[inline(always)]
    pub(crate) fn loss(&self, fused: bool, target: f32) -> f64 {
        if self.is_poisoned() || target.is_nan() || target == f32::INFINITY {
            return f64::NAN;
        }
        if self.is_empty() || self.sum == 0.0 {
            return if target == f32::NEG_INFINITY { f64::NAN } else { 0.0 };
        }
        let gap = self.ln_unit(fused, -f64::from(target));
        if gap < 600.0 { math::ln_1p(self.sum * math::exp(gap)) } else { gap + math::ln(self.sum) }
    }
}

/// A logsumexp as a sum of two numbers. The first is an `f32`, or for `f64` logits an `f64`, and other than 0
/// where logits are so large that adding the second to it would lose digits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lse {
    pub(crate) hi: f64,
    pub(crate) lo: f64,
}

impl Lse {
    /// NaN for rows with a NaN, infinite for rows with +inf or nothing but -inf.
    #[inline(always)]
    pub(crate) fn value(self) -> f64 {
        self.hi + self.lo
    }

    /// In two numbers of `f32`, as a backward pass takes it.
    #[inline(always)]
    pub(crate) fn saved(self) -> LogSumExp<f32> {
        let hi = self.value() as f32;
        let lo = if hi.is_finite() { (self.hi - f64::from(hi)) + self.lo } else { 0.0 };
        LogSumExp { hi, lo: lo as f32 }
    }
}
