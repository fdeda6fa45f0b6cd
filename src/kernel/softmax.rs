//! `softmax`, `log_softmax` and `logsumexp` of a group of rows.

use super::exp::{Map, Scale, map_lanes};
use super::expsum::ExpSum;
use super::single::Single;
use super::sum;
use super::transform::{Transform, ZeroBelow, has_subnormals};
use crate::data::logits::{Logits, LogitsMut};
use crate::data::masks::{Allowed, AllowedRows};
use crate::data::number::Number;
use crate::math;
use crate::simd::Op;
use crate::simd::{Lane, Simd};
use std::f64::consts::LN_2;

/// Rows to transform in place, after copying `src` over them if there is one.
pub(crate) struct Job<'a, T> {
    pub(crate) src: Option<Logits<'a, T>>,
    pub(crate) dst: LogitsMut<'a, T>,
    pub(crate) allowed: Option<AllowedRows<'a>>,
    /// Log-softmax.
    pub(crate) log: bool,
}

/// Rows to reduce to one number each.
pub(crate) struct LogSumExpJob<'a, T: Number> {
    pub(crate) logits: Logits<'a, T>,
    pub(crate) out: &'a mut [T::Float],
    pub(crate) allowed: Option<AllowedRows<'a>>,
}

/// `x` as the sum of two `f32`.
fn split(x: f64) -> (f32, f32) {
    let hi = x as f32;
    (hi, (x - f64::from(hi)) as f32)
}

#[inline(always)]
fn probabilities<S: Simd, T: Lane>(s: S, row: &mut [T], sum: &ExpSum) {
    let lse = sum.ln_from_origin(S::FUSED);
    if !lse.is_finite() {
        row.fill(T::NAN);
        return;
    }
    // e^(x - lse) = s (1 + q) e^(exponent ln 2 - lse) with s = 2^(n - exponent) <= 2. The last
    // factor is close to 1 and needs two parts, or its rounding would show in every result.
    if has_subnormals(s, row) {
        map_lanes(s, row, &ZeroBelow::<S>(s.splat(f32::MIN_POSITIVE)));
    }
    let exponent = ((lse / LN_2) as f32).round_ties_even();
    let (hi, lo) = split(math::exp(f64::from(exponent) * LN_2 - lse));
    let probability = Probability {
        scale: Scale::<S>::new(s, exponent, 127.0),
        origin: s.splat(sum.origin()),
        hi: s.splat(hi),
        lo: s.splat(lo),
    };
    map_lanes(s, row, &probability);
}

struct Probability<S: Simd> {
    scale: Scale<S>,
    origin: S::V,
    hi: S::V,
    lo: S::V,
}

impl<S: Simd> Map<S> for Probability<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        let exp = self.scale.split::<true>(s, s.sub(x, self.origin));
        let low = s.mul_add(self.lo, exp.q, self.lo);
        s.mul(exp.s, s.add(self.hi, s.mul_add(self.hi, exp.q, low)))
    }
}

#[inline(always)]
fn log_probabilities<S: Simd, T: Lane>(s: S, row: &mut [T], max: T, others: &ExpSum) {
    let max = max.widen();
    let loss = others.loss(S::FUSED, max);
    if loss.is_nan() {
        row.fill(T::NAN);
        return;
    }
    let (hi, lo) = split(loss);
    map_lanes(s, row, &LogProbability { max: s.splat(max), hi: s.splat(hi), lo: s.splat(lo) });
}

struct LogProbability<S: Simd> {
    max: S::V,
    hi: S::V,
    lo: S::V,
}

impl<S: Simd> Map<S> for LogProbability<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        // Three subtractions: folding `max` and the logarithm loses digits where `max` is large.
        s.sub(s.sub(s.sub(x, self.max), self.hi), self.lo)
    }
}

/// What becomes of a row of one element type.
pub(crate) trait SoftmaxRow: Number {
    /// What has no probability.
    const MASKED: Self;
    fn softmax<S: Simd>(s: S, row: &mut [Self]);
    fn log_softmax<S: Simd>(s: S, row: &mut [Self]);
    fn logsumexp<S: Simd>(s: S, row: &[Self], allowed: Option<Allowed<'_>>) -> Self::Float;
}

/// The sum over a row of classes that may be.
#[inline(always)]
fn masked_sum<S: Simd, T: Lane>(s: S, row: &[T], allowed: Option<Allowed<'_>>) -> ExpSum {
    let mask = Transform { allowed, ..Transform::IDENTITY };
    sum::sum_of(s, T::any(row), None, &mask, None).0
}

impl<T: Single> SoftmaxRow for T {
    const MASKED: T = T::NEG_INFINITY;

    #[inline(always)]
    fn softmax<S: Simd>(s: S, row: &mut [T]) {
        let sum = masked_sum(s, row, None);
        probabilities(s, row, &sum);
    }
    #[inline(always)]
    fn log_softmax<S: Simd>(s: S, row: &mut [T]) {
        // The largest element is left out of the sum, as the target of a loss is: its own
        // log-probability then keeps its digits when it is close to 0.
        let best = sum::argmax_ignoring_nan(s, row, None);
        let others = sum::sum_of(s, T::any(row), Some(best), &Transform::IDENTITY, None).0;
        log_probabilities(s, row, row[best], &others);
    }
    #[inline(always)]
    fn logsumexp<S: Simd>(s: S, row: &[T], allowed: Option<Allowed<'_>>) -> f32 {
        masked_sum(s, row, allowed).ln(S::FUSED) as f32
    }
}

#[inline(always)]
fn run<S: Simd, T: SoftmaxRow, const LOG: bool>(s: S, job: &mut Job<'_, T>) {
    for i in 0..job.dst.rows() {
        let row = job.dst.row_mut(i);
        if let Some(src) = &job.src {
            row.copy_from_slice(src.row(i));
        }
        if let Some(allowed) = job.allowed {
            allowed.row(i).fill_others(row, T::MASKED);
        }
        if LOG {
            SoftmaxRow::log_softmax(s, row);
        } else {
            SoftmaxRow::softmax(s, row);
        }
    }
}

#[inline(always)]
fn run_logsumexp<S: Simd, T: SoftmaxRow>(s: S, job: &mut LogSumExpJob<'_, T>) {
    for (i, out) in job.out.iter_mut().enumerate() {
        let allowed = job.allowed.map(|allowed| allowed.row(i));
        *out = SoftmaxRow::logsumexp(s, job.logits.row(i), allowed);
    }
}

/// The softmax of rows.
pub(crate) struct Softmax<'j, 'a, T>(pub(crate) &'j mut Job<'a, T>);

impl<T: SoftmaxRow> Op for Softmax<'_, '_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run::<S, T, false>(s, self.0);
    }
}

/// Its logarithm.
pub(crate) struct LogSoftmax<'j, 'a, T>(pub(crate) &'j mut Job<'a, T>);

impl<T: SoftmaxRow> Op for LogSoftmax<'_, '_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run::<S, T, true>(s, self.0);
    }
}

/// The logsumexp of rows.
pub(crate) struct LogSumExp<'j, 'a, T: Number>(pub(crate) &'j mut LogSumExpJob<'a, T>);

impl<T: SoftmaxRow> Op for LogSumExp<'_, '_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run_logsumexp(s, self.0);
    }
}
