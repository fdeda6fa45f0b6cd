//! Cross-entropy of a group of rows: one pass each, then a few scalar steps.

use super::sum::{self, RowSum};
use crate::data::logits::Logits;
use crate::data::targets::TargetRows;
use crate::dispatch::element::Element;
use crate::rows::parallel::RowSlices;
use crate::simd::{Lane, Simd};

/// What one row yields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// The loss before it is rounded: weighted and smoothed, without the z-loss.
    pub(crate) loss: f64,
    /// Negative log-probability of the target.
    pub(crate) nll: f64,
    pub(crate) z_loss: f64,
    /// What the row counts in a mean: weights of its class and of itself, and of itself only.
    pub(crate) weight: f64,
    pub(crate) token_weight: f64,
    pub(crate) kept: bool,
    /// Whether the target is the argmax, if that was asked for.
    pub(crate) at_argmax: bool,
}

impl Row {
    pub(crate) const IGNORED: Row = Row {
        loss: 0.0,
        nll: 0.0,
        z_loss: 0.0,
        weight: 0.0,
        token_weight: 0.0,
        kept: false,
        at_argmax: false,
    };

    /// A row without any options.
    #[inline(always)]
    pub(crate) fn plain(nll: f64, at_argmax: bool) -> Row {
        Row { loss: nll, nll, z_loss: 0.0, weight: 1.0, token_weight: 1.0, kept: true, at_argmax }
    }

    /// Whether it is one of those that statistics are over. A weight of 0 is a mask.
    pub(crate) fn counts(&self) -> bool {
        self.kept && self.token_weight != 0.0
    }

    /// Whether its target is the most probable class. Without a distribution there is none, though an argmax.
    pub(crate) fn is_correct(&self) -> bool {
        self.at_argmax && !self.nll.is_nan()
    }

    pub(crate) fn is_nan(&self) -> bool {
        self.kept && (self.nll.is_nan() || (self.loss + self.z_loss).is_nan())
    }
}

/// A group of rows and where their results go.
pub(crate) struct Job<'a, T: Element = f32> {
    pub(crate) logits: Logits<'a, T>,
    pub(crate) targets: TargetRows<'a>,
    pub(crate) out: RowSlices<'a, T::Real>,
    pub(crate) argmax: bool,
}

/// One row, target in range. [`sum::MAX`] costs one more maximum per vector.
#[inline(always)]
pub(crate) fn row<S: Simd, T: Lane, const LEVEL: u8>(
    s: S,
    logits: &[T],
    target: usize,
) -> (RowSum, f64) {
    let row = sum::row::<S, T, LEVEL>(s, logits, Some(target));
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
pub(crate) fn row_loss<S: Simd>(s: S, logits: &[f32], target: usize) -> f64 {
    row::<S, f32, { sum::PLAIN }>(s, logits, target).1
}

#[inline(always)]
pub(crate) fn run<S: Simd, T: Lane + Element<Real = f32>, const LEVEL: u8>(
    s: S,
    job: &mut Job<'_, T>,
) {
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
