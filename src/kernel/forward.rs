//! Cross-entropy of a group of rows: one pass each, then a few scalar steps.

use super::outputs::RowSlices;
use super::row::Row;
use super::sum::{self, ConvertedRow, RowSum};
use super::transform::Transform;
use crate::data::logits::Logits;
use crate::data::number::Number;
use crate::data::targets::TargetRows;
use crate::simd::Op;
use crate::simd::{AnyRow, Lane, Simd};

/// A group of rows and where their results go.
pub(crate) struct Job<'a, T: Number = f32> {
    pub(crate) logits: Logits<'a, T>,
    pub(crate) targets: TargetRows<'a>,
    pub(crate) out: RowSlices<'a, T::Float>,
    pub(crate) argmax: bool,
}

/// One row, target in range. [`sum::MAX`] costs one more maximum per vector.
#[inline(always)]
pub(crate) fn row<S: Simd, T: Lane, const LEVEL: u8>(
    s: S,
    logits: &[T],
    target: usize,
) -> (RowSum, f64) {
    let skip = Some(target);
    // Short rows of `f32` have no time for a call.
    let row = if LEVEL == sum::PLAIN && T::IS_CONVERTED {
        RowSum::plain(s.outlined(ConvertedRow { row: logits, skip }))
    } else {
        sum::row::<S, T, LEVEL>(s, logits, skip)
    };
    let loss = row.sum.loss(S::FUSED, logits[target].widen());
    (row, loss)
}

/// The first index of the largest element; the first NaN if there is one.
#[inline(always)]
fn argmax<S: Simd, T: Lane>(s: S, logits: &[T], row: &RowSum, target: usize) -> usize {
    let x = logits[target].widen();
    if (row.sum.is_poisoned() || x.is_nan())
        && let Some(nan) = sum::first_nan(s, logits)
    {
        return nan;
    }
    // The target is not among the elements that `row` knows.
    if x > row.max {
        return target;
    }
    let other = sum::first_in_block(s, logits, row.max_block, row.max);
    if x == row.max { other.min(target) } else { other }
}

/// The loss of one row and nothing else.
#[inline(always)]
fn row_loss<S: Simd>(s: S, logits: &[f32], target: usize) -> f64 {
    let identity = &Transform::IDENTITY;
    let (sum, _) = sum::sum_of(s, AnyRow::F32(logits), Some(target), identity, None);
    sum.loss(S::FUSED, logits[target])
}

#[inline(always)]
fn run<S: Simd, T: Lane + Number<Float = f32>, const LEVEL: u8>(s: S, job: &mut Job<'_, T>) {
    let out = &mut job.out;
    for i in 0..job.logits.rows() {
        let Some(target) = job.targets.get(i) else {
            // An ignored row is never read: it may hold anything.
            out.write_ignored(i);
            continue;
        };
        let logits = job.logits.row(i);
        let (row, loss) = row::<S, T, LEVEL>(s, logits, target);
        let lse = if out.wants_logsumexp() {
            row.sum.lse_with(S::FUSED, logits[target].widen(), loss).value()
        } else {
            0.0
        };
        let wants_argmax = LEVEL == sum::MAX;
        let best = if wants_argmax { argmax(s, logits, &row, target) } else { 0 };
        let row = Row::plain(loss, wants_argmax && best == target);
        out.write(i, row, lse, best as i64);
    }
}

/// A [`Job`] whose argmax nobody asks for.
pub(crate) struct LossAlone<'j, 'a, T: Number>(pub(crate) &'j mut Job<'a, T>);

impl<T: Lane + Number<Float = f32>> Op for LossAlone<'_, '_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run::<S, T, { sum::PLAIN }>(s, self.0);
    }
}

/// A [`Job`] that finds the argmax too.
pub(crate) struct WithArgmax<'j, 'a, T: Number>(pub(crate) &'j mut Job<'a, T>);

impl<T: Lane + Number<Float = f32>> Op for WithArgmax<'_, '_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run::<S, T, { sum::MAX }>(s, self.0);
    }
}

/// The loss of one row, whose target is a class of it.
pub(crate) struct RowLoss<'a>(pub(crate) &'a [f32], pub(crate) usize);

impl Op for RowLoss<'_> {
    type Out = f64;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> f64 {
        row_loss(s, self.0, self.1)
    }
}
