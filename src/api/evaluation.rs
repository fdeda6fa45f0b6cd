//! Loss, perplexity and accuracy of a set of rows.
#![forbid(unsafe_code)]

use crate::api::reduction::{EmptyMean, Reduction, Weight};
use crate::kernel::row::Row;
use crate::math;
use crate::math::spread::Spread;
use crate::simd::float_env;
use std::f64::consts::LN_2;

/// What a pass over logits and targets found out about all rows together.
///
/// Made by [`CrossEntropy::evaluate`](crate::CrossEntropy::evaluate). The loss is that of the kept rows, those whose
/// target is not ignored, with all options. All other statistics are over the rows that count: the kept
/// ones whose token weight is not 0 ([`CrossEntropy::token_weights`](crate::CrossEntropy::token_weights)). Each of
/// these counts once there, whatever its weight, with the negative log-probability of its target in `f64`.
///
/// ```
/// use xent::{CrossEntropy, Logits, RowOutputs};
///
/// let uniform = [0.0; 40];
/// let logits = Logits::new(&uniform, 4, 10)?;
/// let e = CrossEntropy::new().evaluate(logits, &[1i64, 2, 3, -100], RowOutputs::new())?;
/// assert_eq!((e.count(), e.ignored()), (3, 1));
/// assert!((e.perplexity() - 10.0).abs() < 1e-6);
/// assert!((e.bits_per_token() - 10f64.log2()).abs() < 1e-7);
/// assert_eq!(e.correct(), None); // not asked for
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    reduced: Reduced,
    /// Of the negative log-probabilities.
    sum: f64,
    nlls: Spread,
    ignored: u64,
    correct: Option<u64>,
    nans: NanRows,
    reduction: Reduction,
    empty_mean: EmptyMean,
}

/// Rows that have NaN where they should have a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NanRows {
    pub(crate) count: u64,
    pub(crate) first: Option<u64>,
}

impl NanRows {
    /// Of whether each row is one.
    pub(crate) fn of(rows: impl Iterator<Item = bool>) -> Self {
        let mut nans = NanRows::default();
        for (row, _) in (0..).zip(rows).filter(|&(_, is_nan)| is_nan) {
            nans.count += 1;
            nans.first = nans.first.or(Some(row));
        }
        nans
    }

    /// With those of the batch after these `rows`.
    pub(crate) fn followed_by(self, rows: u64, next: NanRows) -> Self {
        let first = self.first.or(next.first.map(|row| rows + row));
        NanRows { count: self.count + next.count, first }
    }
}

/// Sums over the kept rows, in row order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reduced {
    loss: f64,
    z_loss: f64,
    weight: Weight,
    token_weight: Weight,
}

impl Reduced {
    #[inline]
    pub(crate) fn new(rows: &[Row]) -> Self {
        let mut sums = Reduced::default();
        for row in rows.iter().filter(|row| row.kept) {
            sums.loss += row.loss;
            sums.z_loss += row.z_loss;
            sums.weight.add(row.weight);
            sums.token_weight.add(row.token_weight);
        }
        sums
    }

    fn merge(&self, next: &Reduced) -> Reduced {
        Reduced {
            loss: self.loss + next.loss,
            z_loss: self.z_loss + next.z_loss,
            weight: self.weight.merge(next.weight),
            token_weight: self.token_weight.merge(next.token_weight),
        }
    }

    #[inline]
    fn cross_entropy(&self, reduction: Reduction, empty_mean: EmptyMean) -> f64 {
        self.loss / reduction.denominator(self.weight, empty_mean)
    }

    #[inline]
    fn z_loss(&self, reduction: Reduction, empty_mean: EmptyMean) -> f64 {
        self.z_loss / reduction.denominator(self.token_weight, empty_mean)
    }

    #[inline]
    pub(crate) fn loss(&self, reduction: Reduction, empty_mean: EmptyMean) -> f64 {
        let loss = self.cross_entropy(reduction, empty_mean);
        // Without a z-loss the second term is 0 or 0 / 0.
        if self.z_loss == 0.0 { loss } else { loss + self.z_loss(reduction, empty_mean) }
    }
}

impl Evaluation {
    pub(crate) fn new(
        rows: &[Row],
        count_correct: bool,
        reduction: Reduction,
        empty_mean: EmptyMean,
    ) -> Self {
        let counted = || rows.iter().filter(|row| row.counts());
        let nlls = Spread::of(counted().map(|row| row.nll));
        let correct = counted().filter(|row| row.is_correct()).count() as u64;
        Evaluation {
            reduced: Reduced::new(rows),
            sum: counted().map(|row| row.nll).sum::<f64>() + 0.0,
            nlls,
            ignored: rows.len() as u64 - nlls.count(),
            correct: count_correct.then_some(correct),
            nans: NanRows::of(rows.iter().map(Row::is_nan)),
            reduction,
            empty_mean,
        }
    }

    /// The statistics of the rows of both, for logits that come in batches.
    ///
    /// The reduction is that of `self`, whose rows come first. The last bits of loss and sum may differ from those of
    /// one call over all rows, as they are sums of sums; mean and standard error do not lose digits.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, RowOutputs};
    ///
    /// let (ce, targets) = (CrossEntropy::new(), [1i64, 0]);
    /// let x = [1.0, 2.0, 3.0, 4.0];
    /// let a = ce.evaluate(Logits::new(&x[..2], 1, 2)?, &targets[..1], RowOutputs::new())?;
    /// let b = ce.evaluate(Logits::new(&x[2..], 1, 2)?, &targets[1..], RowOutputs::new())?;
    /// let all = ce.evaluate(Logits::new(&x, 2, 2)?, &targets, RowOutputs::new())?;
    /// assert_eq!(a.merge(&b).loss(), all.loss());
    /// assert!((a.merge(&b).stderr() - all.stderr()).abs() < 1e-15);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn merge(&self, next: &Evaluation) -> Evaluation {
        float_env::scope(|| self.merge_here(next))
    }

    fn merge_here(&self, next: &Evaluation) -> Evaluation {
        Evaluation {
            reduced: self.reduced.merge(&next.reduced),
            sum: self.sum + next.sum,
            nlls: self.nlls.merge(&next.nlls),
            ignored: self.ignored + next.ignored,
            correct: self.correct_with(next),
            nans: self.nans.followed_by(self.count() + self.ignored, next.nans),
            reduction: self.reduction,
            empty_mean: self.empty_mean,
        }
    }

    /// Known if it is for both; no rows at all need not have been counted.
    fn correct_with(&self, next: &Evaluation) -> Option<u64> {
        let of = |e: &Evaluation| if e.count() == 0 { Some(0) } else { e.correct };
        let known = self.correct.is_some() || next.correct.is_some();
        of(self).zip(of(next)).filter(|_| known).map(|(a, b)| a + b)
    }

    /// The loss with all options and the z-loss, reduced as
    /// [`CrossEntropy::reduction`](crate::CrossEntropy::reduction) says.
    pub fn loss(&self) -> f64 {
        float_env::scope(|| self.reduced.loss(self.reduction, self.empty_mean))
    }

    /// The part of [`Evaluation::loss`] that is not z-loss.
    pub fn cross_entropy(&self) -> f64 {
        float_env::scope(|| self.reduced.cross_entropy(self.reduction, self.empty_mean))
    }

    /// The part of [`Evaluation::loss`] that is z-loss; 0 without
    /// [`CrossEntropy::z_loss`](crate::CrossEntropy::z_loss).
    pub fn z_loss(&self) -> f64 {
        float_env::scope(|| match self.reduced.z_loss {
            0.0 => 0.0,
            _ => self.reduced.z_loss(self.reduction, self.empty_mean),
        })
    }

    /// The sum of the negative log-probabilities of the targets, in nats, of the rows that count, whatever the options;
    /// for probability targets that of their cross-entropies, weighted and smoothed.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The mean of the negative log-probabilities of the targets, in nats; NaN for no rows. Whatever
    /// the reduction and the options, and so are the statistics that follow from it.
    ///
    /// Within 1 ULP of the exact mean of the rows' own, in however many batches they came; finite if these are.
    pub fn mean(&self) -> f64 {
        float_env::scope(|| self.nlls.mean())
    }

    /// The standard error of the mean, `sqrt(variance / (n - 1))` with the variance over `n` as
    /// llama.cpp has it; NaN for fewer than two rows, and if one is infinite or NaN.
    ///
    /// Within 1 ULP of the exact one, also where rows differ in their last digits only.
    pub fn stderr(&self) -> f64 {
        float_env::scope(|| self.nlls.stderr())
    }

    /// `e^mean`: the number of equally probable classes that would be as hard to guess among.
    ///
    /// With token weights that are a mask, 1 and 0, it is that of the rows of weight 1. With others and no further
    /// option, `e^loss` of a mean is the weighted one.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, RowOutputs};
    ///
    /// let logits = Logits::new(&[0.0, 0.0, 0.0, 9.0], 2, 2)?;
    /// let first = CrossEntropy::new().token_weights(&[1.0_f32, 0.0]);
    /// let e = first.evaluate(logits, &[0i64, 0], RowOutputs::new())?;
    /// assert_eq!((e.perplexity(), e.count(), e.ignored()), (2.0, 1, 1));
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn perplexity(&self) -> f64 {
        float_env::scope(|| math::exp(self.mean()))
    }

    /// The standard error of the perplexity, to first order: perplexity times [`Evaluation::stderr`].
    pub fn perplexity_stderr(&self) -> f64 {
        float_env::scope(|| self.perplexity() * self.stderr())
    }

    /// `mean / ln 2`.
    pub fn bits_per_token(&self) -> f64 {
        float_env::scope(|| self.mean() / LN_2)
    }

    /// `sum / (bytes * ln 2)`, for the number of bytes of text that the rows that count stand for.
    pub fn bits_per_byte(&self, bytes: u64) -> f64 {
        float_env::scope(|| self.sum / (bytes as f64 * LN_2))
    }

    /// The share of the rows that count whose argmax is the target, if it was asked for; NaN for no rows.
    pub fn accuracy(&self) -> Option<f64> {
        float_env::scope(|| self.correct.map(|correct| correct as f64 / self.count() as f64))
    }

    /// The number of rows that count whose argmax is the target, if it was asked for. A row whose log-probability is
    /// NaN is never correct: it has a NaN or +inf, or nothing but -inf, and no most probable class.
    pub fn correct(&self) -> Option<u64> {
        self.correct
    }

    /// The number of rows that count: that are kept, and whose token weight is not 0.
    pub fn count(&self) -> u64 {
        self.nlls.count()
    }

    /// The number of rows that do not count: those left out, and those whose token weight is 0.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The number of kept rows whose loss or log-probability is NaN, of any token weight: with one of them
    /// [`Evaluation::loss`] is NaN, and with one that counts the mean and what follows from it.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, RowOutputs};
    ///
    /// let (good, bad) = ([0.0_f32, 1.0], [0.0, f32::NAN]);
    /// let ce = CrossEntropy::new();
    /// let of = |x| ce.evaluate(Logits::new(x, 1, 2)?, &[1i64], RowOutputs::new().count_correct());
    /// let all = of(&good)?.merge(&of(&bad)?);
    /// assert!(all.loss().is_nan());
    /// assert_eq!((all.nan_rows(), all.first_nan_row()), (1, Some(1)));
    /// assert_eq!(all.correct(), Some(1)); // the first
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn nan_rows(&self) -> u64 {
        self.nans.count
    }

    /// The first of [`Evaluation::nan_rows`], counted from 0 through all rows, ignored ones included; after
    /// [`Evaluation::merge`] through all batches, in the order in which they were merged.
    pub fn first_nan_row(&self) -> Option<u64> {
        self.nans.first
    }
}
