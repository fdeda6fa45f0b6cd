//! How numbers are spread: their mean, its standard error, and the correlation with others.
//!
//! Numbers that differ in their last bits only have a spread with digits, and equal ones have exactly none:
//! deviations are taken from the first number, exactly, and then from the mean, in numbers of 106 bits, which
//! also hold the sums. And all are relative to a power of two, as squares of numbers beyond 1e154 or below 1e-162
//! are out of the range of `f64`.
#![forbid(unsafe_code)]

use super::double_double::{Dd, DdSum};
use super::functions::{exp2_int, exponent};

/// A number of one precision or the other.
pub(crate) trait Value: Copy + Into<Dd> {
    fn leading(self) -> f64;
    fn scaled(self, power: f64) -> Self;
    /// Within 2^-104 of the difference.
    fn minus(self, other: Self) -> Dd;
}

impl Value for f64 {
    #[inline(always)]
    fn leading(self) -> f64 {
        self
    }
    #[inline(always)]
    fn scaled(self, power: f64) -> Self {
        self * power
    }
    #[inline(always)]
    fn minus(self, other: Self) -> Dd {
        Dd::sum(self, -other)
    }
}

impl Value for Dd {
    #[inline(always)]
    fn leading(self) -> f64 {
        self.hi
    }
    #[inline(always)]
    fn scaled(self, power: f64) -> Self {
        self.times_power(power)
    }
    #[inline(always)]
    fn minus(self, other: Self) -> Dd {
        self - other
    }
}

/// Where the middle of some numbers is.
struct Center<V> {
    count: u64,
    /// The unit of everything here is `2^exponent`.
    exponent: i32,
    first: V,
    /// By how much the mean is above the first.
    above: Dd,
    /// The sum of infinities and NaN; 0 if there are none.
    beyond: f64,
}

impl<V: Value> Center<V> {
    /// `None` of none.
    fn of(mut values: impl Iterator<Item = V> + Clone) -> Option<Self> {
        let (mut count, mut largest, mut beyond) = (0, 0.0_f64, 0.0);
        for value in values.clone() {
            count += 1;
            let value = value.leading();
            if value.is_finite() {
                largest = largest.max(value.abs());
            } else {
                beyond += value;
            }
        }
        let first = values.next()?;
        // The inverse of each of these units is a normal number.
        let exponent = exponent(largest).clamp(-1022, 1022);
        let first = first.scaled(exp2_int(-exponent));
        let mut center = Center { count, exponent, first, above: Dd::ZERO, beyond };
        let mut sum = DdSum::default();
        values.for_each(|value| sum.add(center.above_first(value)));
        center.above = sum.value() / count as f64;
        Some(center)
    }

    #[inline(always)]
    fn above_first(&self, value: V) -> Dd {
        value.scaled(exp2_int(-self.exponent)).minus(self.first)
    }

    #[inline(always)]
    fn deviation(&self, value: V) -> Dd {
        self.above_first(value) - self.above
    }

    /// NaN is beyond too.
    fn is_finite(&self) -> bool {
        self.beyond == 0.0
    }
}

/// How many numbers there are, their mean, and the sum of their squared deviations from it.
///
/// The mean and the standard error are within 1 ULP of the exact ones, for up to 2^24 numbers that do not cancel each
/// other. An infinity or NaN makes the mean what a sum of them is, and the standard error NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    count: u64,
    /// The unit of the mean is `2^exponent`, that of the squares its square.
    exponent: i32,
    mean: Dd,
    squares: Dd,
}

impl Spread {
    const NONE: Spread = Spread { count: 0, exponent: 0, mean: Dd::ZERO, squares: Dd::ZERO };

    pub(crate) fn of<V: Value>(values: impl Iterator<Item = V> + Clone) -> Self {
        let Some(center) = Center::of(values.clone()) else { return Spread::NONE };
        let Center { count, exponent, first, above, beyond } = center;
        if !center.is_finite() {
            return Spread::beyond(count, beyond);
        }
        let mut squares = DdSum::default();
        for value in values {
            let deviation = center.deviation(value);
            squares.add(deviation * deviation);
        }
        Spread { count, exponent, mean: first.into() + above, squares: squares.value() }
    }

    fn beyond(count: u64, mean: f64) -> Self {
        Spread { count, exponent: 0, mean: Dd::new(mean), squares: Dd::new(f64::NAN) }
    }

    /// Of the numbers of both.
    pub(crate) fn merge(&self, next: &Spread) -> Self {
        if self.count == 0 || next.count == 0 {
            return if self.count == 0 { *next } else { *self };
        }
        let count = self.count + next.count;
        if !(self.mean.hi.is_finite() && next.mean.hi.is_finite()) {
            return Spread::beyond(count, self.mean.hi + next.mean.hi);
        }
        let exponent = self.exponent.max(next.exponent);
        let [a, b] = [self, next].map(|spread| {
            let unit = exp2_int(spread.exponent - exponent);
            let squares = spread.squares.times_power(unit).times_power(unit);
            (spread.mean.times_power(unit), squares)
        });
        // Chan, Golub and LeVeque's update of the squared deviations.
        let apart = b.0 - a.0;
        let share = Dd::new(next.count as f64) / count as f64;
        let squares = a.1 + b.1 + apart * apart * share * self.count as f64;
        Spread { count, exponent, mean: a.0 + apart * share, squares }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// NaN for none. Finite numbers have a finite mean.
    pub(crate) fn mean(&self) -> f64 {
        if self.count == 0 { f64::NAN } else { self.mean.hi * exp2_int(self.exponent) }
    }

    /// The root of the mean of numbers that are squares.
    pub(crate) fn root_mean(&self) -> f64 {
        let unit = exp2_int(self.exponent);
        if self.count == 0 { f64::NAN } else { self.mean.times_power(unit).sqrt().hi }
    }

    /// `sqrt(variance / (n - 1))` with the variance over `n`; NaN for fewer than two.
    pub(crate) fn stderr(&self) -> f64 {
        if self.count < 2 {
            return f64::NAN;
        }
        let n = self.count as f64;
        (self.squares / n / (n - 1.0)).sqrt().hi * exp2_int(self.exponent)
    }
}

/// The correlation of up to 2^24 pairs, within an ULP of 1 and, if it is not close to 0, of itself; never beyond -1 or
/// 1. NaN if either side is the same for all, or has an infinity or NaN.
pub(crate) fn correlation(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let a = Center::of(pairs.clone().map(|(a, _)| a));
    let b = Center::of(pairs.clone().map(|(_, b)| b));
    let (Some(a), Some(b)) = (a, b) else { return f64::NAN };
    if !(a.is_finite() && b.is_finite()) {
        return f64::NAN;
    }
    let [mut aa, mut bb, mut ab] = [DdSum::default(); 3];
    for (x, y) in pairs {
        let (x, y) = (a.deviation(x), b.deviation(y));
        aa.add(x * x);
        bb.add(y * y);
        ab.add(x * y);
    }
    let (of_both, ab) = ((aa.value() * bb.value()).sqrt(), ab.value());
    if of_both.hi == 0.0 {
        return f64::NAN;
    }
    let r = ab.hi / of_both.hi;
    let rest = ab - of_both * r;
    (r + rest.hi / of_both.hi).clamp(-1.0, 1.0)
}

/// The share `k / n`, and `sqrt(k / n (1 - k / n) / (n - 1))`: the mean of `k` ones and `n - k` zeros with its
/// standard error.
pub(crate) fn share(k: u64, n: u64) -> (f64, f64) {
    let (k, n) = (k as f64, n as f64);
    let variance = Dd::product(k, n - k) / n / n;
    let stderr = if n < 2.0 { f64::NAN } else { (variance / (n - 1.0)).sqrt().hi };
    (k / n, stderr)
}
