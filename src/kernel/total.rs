//! Statistics of parts of a row, merged exactly: the parts may come in any order, from any thread or machine.

use super::exp;
use super::expsum::ExpSum;
use crate::math;
use crate::math::exact::ExactSum;

/// A sum of exponentials, and with it `sum(e^x (x - origin))` and `sum(e^x (x - origin)^2)`, in its units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    pub(crate) sum: ExpSum,
    pub(crate) first: f64,
    pub(crate) second: f64,
}

/// The sums over any number of parts.
///
/// Exact, hence the same bits for any partition, as long as all parts have one origin: logits would have to be
/// beyond 363,000 for another than 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Total {
    pub(crate) origin: f32,
    pub(crate) exponent: f32,
    /// Whether exponents count in the `ln 2` of backends with fused multiply-add.
    pub(crate) fused: bool,
    /// Of `e^x`, and times the first and the second power of `x - origin`.
    pub(crate) sums: [ExactSum; 3],
    pub(crate) nan: bool,
    pub(crate) inf: bool,
}

impl Total {
    pub(crate) const fn empty(fused: bool) -> Total {
        let ExpSum { origin, exponent, nan, inf, .. } = ExpSum::EMPTY;
        Total { origin, exponent, fused, sums: [ExactSum::ZERO; 3], nan, inf }
    }

    fn is_empty(&self) -> bool {
        self.exponent == f32::NEG_INFINITY
    }

    pub(crate) fn ln_2(&self) -> f64 {
        exp::ln_2_step(self.fused)
    }

    fn reference(&self) -> f64 {
        f64::from(self.origin) + f64::from(self.exponent) * self.ln_2()
    }

    /// Adds the sum of a part, without moments, and says what the sum is then.
    pub(crate) fn with_sum(&mut self, part: &ExpSum) -> ExpSum {
        self.add(&Moments { sum: *part, first: 0.0, second: 0.0 });
        self.sum()
    }

    pub(crate) fn add(&mut self, part: &Moments) {
        let ExpSum { origin, exponent, sum, nan, inf } = part.sum;
        // The sum with 0 has one zero of two: equal statistics have equal bytes.
        let exponent = exponent + 0.0;
        let mut other = Total { origin, exponent, nan, inf, ..Total::empty(self.fused) };
        if sum.is_nan() {
            other.nan = true;
        } else if exponent.is_finite() {
            for (to, v) in other.sums.iter_mut().zip([sum, part.first, part.second]) {
                // The moments are not finite where logits of one part differ by more than `f32` holds.
                if v.is_finite() {
                    to.add(v, exponent as i32);
                }
            }
        }
        self.merge(&other);
    }

    pub(crate) fn merge(&mut self, other: &Total) {
        let (nan, inf) = (self.nan | other.nan, self.inf | other.inf);
        let self_is_low =
            self.is_empty() || !other.is_empty() && other.reference() > self.reference();
        let (mut total, low) = if self_is_low { (*other, &*self) } else { (*self, other) };
        (total.nan, total.inf) = (nan, inf);
        if total.is_empty() {
            // Of nothing, as of the identity, which says it is fused: the other one decides, in any order.
            total.fused = self.fused & other.fused;
        }
        if !low.is_empty() {
            if low.origin == total.origin && low.fused == total.fused {
                for (sum, low) in total.sums.iter_mut().zip(&low.sums) {
                    sum.merge(low);
                }
            } else {
                total.add_from_elsewhere(low);
            }
        }
        *self = total;
    }

    /// Adds sums that have another origin, or count in another `ln 2`: rounded to `f64`.
    fn add_from_elsewhere(&mut self, low: &Total) {
        let factor = math::exp(low.reference() - self.reference());
        if factor == 0.0 {
            return;
        }
        let [sum, first, second] = low.sums.map(|sum| sum.relative_to(low.exponent as i32));
        let by = f64::from(low.origin) - f64::from(self.origin);
        let moved = [sum, first + by * sum, second + 2.0 * by * first + by * by * sum];
        for (to, v) in self.sums.iter_mut().zip(moved) {
            // What comes from elsewhere may be anything.
            if (factor * v).is_finite() {
                to.add(factor * v, self.exponent as i32);
            }
        }
    }

    /// Relative to the highest reference.
    pub(crate) fn moments(&self) -> Moments {
        let Total { origin, exponent, sums, nan, inf, .. } = *self;
        let [sum, first, second] = if self.is_empty() {
            [0.0; 3]
        } else {
            sums.map(|sum| sum.relative_to(exponent as i32))
        };
        Moments { sum: ExpSum { origin, exponent, sum, nan, inf }, first, second }
    }

    pub(crate) fn sum(&self) -> ExpSum {
        let Total { origin, exponent, sums, nan, inf, .. } = *self;
        let sum = if self.is_empty() { 0.0 } else { sums[0].relative_to(exponent as i32) };
        ExpSum { origin, exponent, sum, nan, inf }
    }
}
