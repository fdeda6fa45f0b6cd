//! `softmax`, `log_softmax` and `logsumexp` of one row, as `kernel/softmax.rs`.

use super::grad::{ScaledExp, Subtract, scaled_exp};
use super::scan::{self, Map, map_lanes};
use super::sum;
use crate::data::masks::Allowed;
use crate::kernel::gradient::Piece;
use crate::kernel::softmax::SoftmaxRow;
use crate::kernel::transform::Transform;
use crate::simd::Simd;

/// `ln(sum(e^x))`; -inf for nothing but -inf, +inf if there is one, NaN if there is one.
#[inline(always)]
fn logsumexp<S: Simd>(s: S, row: &[f64], allowed: Option<Allowed<'_>>) -> f64 {
    let mask = Transform { allowed, ..Transform::IDENTITY };
    sum::transformed_row(s, row, None, &mask).lse(s).0
}

/// In place; NaN for rows that have none.
#[inline(always)]
fn softmax<S: Simd>(s: S, row: &mut [f64]) {
    let lse = sum::row(s, row, None).lse(s);
    let probability = ScaledExp { a: 1.0, lse, subtract: Subtract::Nothing, slope: None };
    scaled_exp(s, &probability, None, Piece::Plain(row), 0.0);
}

/// In place; NaN for rows that have none.
#[inline(always)]
fn log_softmax<S: Simd>(s: S, row: &mut [f64]) {
    if row.is_empty() {
        return;
    }
    // The largest element is left out of the sum, as the target of a loss is: its own
    // log-probability then keeps its digits when it is close to 0.
    let best = scan::argmax(s, row);
    let max = row[best];
    let (hi, lo) = sum::row(s, row, Some(best)).loss_parts(s, max);
    if hi.is_nan() {
        row.fill(f64::NAN);
        return;
    }
    map_lanes(s, row, &LogProbability { max: s.dsplat(max), hi: s.dsplat(hi), lo: s.dsplat(lo) });
}

struct LogProbability<S: Simd> {
    max: S::D,
    hi: S::D,
    lo: S::D,
}

impl<S: Simd> Map<S> for LogProbability<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::D) -> S::D {
        // Three subtractions: folding `max` and the logarithm loses digits where `max` is large.
        s.dsub(s.dsub(s.dsub(x, self.max), self.hi), self.lo)
    }
}

impl SoftmaxRow for f64 {
    const MASKED: f64 = f64::NEG_INFINITY;

    #[inline(always)]
    fn softmax<S: Simd>(s: S, row: &mut [f64]) {
        softmax(s, row);
    }
    #[inline(always)]
    fn log_softmax<S: Simd>(s: S, row: &mut [f64]) {
        log_softmax(s, row);
    }
    #[inline(always)]
    fn logsumexp<S: Simd>(s: S, row: &[f64], allowed: Option<Allowed<'_>>) -> f64 {
        logsumexp(s, row, allowed)
    }
}
