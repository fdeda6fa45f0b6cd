//! Cross-entropy of a group of rows: one pass each, then a few scalar steps.

use super::sum::{self, RowSum};
use crate::logits::Logits;
use crate::math;
use crate::rows::RowSlices;
use crate::simd::Simd;
use crate::targets::TargetRows;

/// What one row yields.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Row {
    /// Negative log-probability of the target, before it is rounded to `f32`.
    pub(crate) loss: f64,
    pub(crate) kept: bool,
    pub(crate) correct: bool,
}

/// A group of rows and where their results go.
pub(crate) struct Job<'a> {
    pub(crate) logits: Logits<'a>,
    pub(crate) targets: TargetRows<'a>,
    pub(crate) out: RowSlices<'a>,
}

/// One row, target in range. `ARGMAX` costs one more maximum per vector and a look at one block.
#[inline(always)]
pub(crate) fn row<S: Simd, const ARGMAX: bool>(
    s: S,
    logits: &[f32],
    target: usize,
) -> (RowSum, f64) {
    let row = sum::row::<S, ARGMAX>(s, logits, Some(target));
    let loss = row.sum.loss::<S>(logits[target]);
    (row, loss)
}

/// The first index of the largest element; the first NaN if there is one.
#[inline(always)]
fn argmax(logits: &[f32], row: &RowSum, target: usize) -> usize {
    let x = logits[target];
    if (row.sum.is_poisoned() || x.is_nan())
        && let Some(nan) = logits.iter().position(|x| x.is_nan())
    {
        return nan;
    }
    // The target is not among the elements that `row` knows.
    if x > row.max {
        return target;
    }
    let other = sum::first_in_block(logits, row.max_block, row.max);
    if x == row.max { other.min(target) } else { other }
}

/// The loss of one row and nothing else.
#[inline(always)]
pub(crate) fn row_loss<S: Simd>(s: S, logits: &[f32], target: usize) -> f64 {
    row::<S, false>(s, logits, target).1
}

#[inline(always)]
pub(crate) fn run<S: Simd, const ARGMAX: bool>(s: S, job: &mut Job<'_>) {
    let out = &mut job.out;
    for i in 0..job.logits.rows() {
        let Some(target) = job.targets.get(i) else {
            // An ignored row is never read: it may hold anything.
            out.write(i, Row::default(), 0.0, -1);
            continue;
        };
        let logits = job.logits.row(i);
        let (row, loss) = row::<S, ARGMAX>(s, logits, target);
        let x = f64::from(logits[target]);
        // +inf and NaN among the others decide alone; a target of -inf adds nothing to them.
        let lse = if !out.wants_logsumexp() {
            0.0
        } else if x.is_nan() {
            x
        } else if row.sum.is_poisoned() || x == f64::NEG_INFINITY {
            row.sum.ln::<S>()
        } else if x == f64::INFINITY {
            x
        } else if loss < 1.0 {
            x + loss
        } else {
            // A target far below the others would cancel in `x + loss`.
            let others = row.sum.ln::<S>();
            others + math::ln_1p(math::exp(x - others))
        };
        let best = if ARGMAX { argmax(logits, &row, target) } else { 0 };
        let row = Row { loss, kept: true, correct: ARGMAX && best == target };
        out.write(i, row, lse, best as i64);
    }
}
