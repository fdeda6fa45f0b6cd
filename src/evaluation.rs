//! Loss, perplexity and accuracy of a set of rows.
#![forbid(unsafe_code)]

use crate::kernel::forward::Row;
use crate::math;
use crate::{EmptyMean, Reduction};
use std::f64::consts::LN_2;

/// What a pass over logits and targets found out about all rows together.
///
/// Made by [`CrossEntropy::evaluate`](crate::CrossEntropy::evaluate). All statistics are over the
/// kept rows, those whose target is not ignored, from losses in `f64` taken in row order.
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
    mean: f64,
    /// Sum of squared deviations of these from their mean.
    deviations: f64,
    count: u64,
    ignored: u64,
    correct: Option<u64>,
    reduction: Reduction,
    empty_mean: EmptyMean,
}

/// Sums over the kept rows, in row order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reduced {
    loss: f64,
    z_loss: f64,
    weight: f64,
    token_weight: f64,
    count: u64,
}

impl Reduced {
    #[inline]
    pub(crate) fn new(rows: &[Row]) -> Self {
        let mut sums = Reduced::default();
        for row in rows.iter().filter(|row| row.kept) {
            sums.loss += row.loss;
            sums.z_loss += row.z_loss;
            sums.weight += row.weight;
            sums.token_weight += row.token_weight;
            sums.count += 1;
        }
        sums
    }

    fn merge(&self, next: &Reduced) -> Reduced {
        Reduced {
            loss: self.loss + next.loss,
            z_loss: self.z_loss + next.z_loss,
            weight: self.weight + next.weight,
            token_weight: self.token_weight + next.token_weight,
            count: self.count + next.count,
        }
    }

    #[inline]
    fn cross_entropy(&self, reduction: Reduction, empty_mean: EmptyMean) -> f64 {
        reduction.apply(self.loss, self.weight, self.count == 0, empty_mean)
    }

    #[inline]
    fn z_loss(&self, reduction: Reduction, empty_mean: EmptyMean) -> f64 {
        reduction.apply(self.z_loss, self.token_weight, self.count == 0, empty_mean)
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
        let reduced = Reduced::new(rows);
        let count = reduced.count;
        let correct = rows.iter().filter(|row| row.correct).count() as u64;
        let kept = || rows.iter().filter(|row| row.kept).map(|row| row.nll);
        let sum = kept().sum::<f64>() + 0.0;
        let mean = sum / count as f64;
        // Around the mean, as E[v^2] - E[v]^2 cancels, and may even come out negative; and around it
        // before it was rounded, so that equal losses have no deviation.
        let center = mean + kept().map(|loss| loss - mean).sum::<f64>() / count as f64;
        let deviations = kept().map(|loss| (loss - center) * (loss - center)).sum();
        Evaluation {
            reduced,
            sum,
            mean,
            deviations,
            count,
            ignored: rows.len() as u64 - count,
            correct: count_correct.then_some(correct),
            reduction,
            empty_mean,
        }
    }

    /// The statistics of the rows of both, for logits that come in batches.
    ///
    /// The reduction is that of `self`. The last bits of the sum may differ from those of one call over
    /// all rows, as it is a sum of sums.
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
        if self.count == 0 || next.count == 0 {
            let some = if self.count == 0 { next } else { self };
            return Evaluation {
                reduced: self.reduced.merge(&next.reduced),
                ignored: self.ignored + next.ignored,
                correct: self.correct_with(next),
                reduction: self.reduction,
                empty_mean: self.empty_mean,
                ..*some
            };
        }
        // Chan, Golub and LeVeque's update of the squared deviations.
        let (n, m) = (self.count as f64, next.count as f64);
        let apart = next.mean - self.mean;
        let sum = self.sum + next.sum;
        let count = self.count + next.count;
        Evaluation {
            reduced: self.reduced.merge(&next.reduced),
            sum,
            mean: sum / count as f64,
            deviations: self.deviations + next.deviations + apart * apart * (n * m / (n + m)),
            count,
            ignored: self.ignored + next.ignored,
            correct: self.correct_with(next),
            reduction: self.reduction,
            empty_mean: self.empty_mean,
        }
    }

    /// Known if it is for both; no rows at all need not have been counted.
    fn correct_with(&self, next: &Evaluation) -> Option<u64> {
        let of = |e: &Evaluation| if e.count == 0 { Some(0) } else { e.correct };
        let known = self.correct.is_some() || next.correct.is_some();
        of(self).zip(of(next)).filter(|_| known).map(|(a, b)| a + b)
    }

    /// The loss with all options and the z-loss, reduced as
    /// [`CrossEntropy::reduction`](crate::CrossEntropy::reduction) says.
    pub fn loss(&self) -> f64 {
        self.reduced.loss(self.reduction, self.empty_mean)
    }

    /// The part of [`Evaluation::loss`] that is not z-loss.
    pub fn cross_entropy(&self) -> f64 {
        self.reduced.cross_entropy(self.reduction, self.empty_mean)
    }

    /// The part of [`Evaluation::loss`] that is z-loss; 0 without
    /// [`CrossEntropy::z_loss`](crate::CrossEntropy::z_loss).
    pub fn z_loss(&self) -> f64 {
        if self.reduced.z_loss == 0.0 {
            0.0
        } else {
            self.reduced.z_loss(self.reduction, self.empty_mean)
        }
    }

    /// The sum of the negative log-probabilities of the targets, in nats, whatever the options; for probability
    /// targets that of their cross-entropies, weighted and smoothed.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The mean of the negative log-probabilities of the targets, in nats; NaN for no rows. Whatever
    /// the reduction and the options, and so are the statistics that follow from it.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard error of the mean, `sqrt(variance / (n - 1))` with the variance over `n` as
    /// llama.cpp has it; NaN for fewer than two rows.
    pub fn stderr(&self) -> f64 {
        let n = self.count as f64;
        if self.count < 2 { f64::NAN } else { (self.deviations / n / (n - 1.0)).sqrt() }
    }

    /// `e^mean`: the number of equally probable classes that would be as hard to guess among.
    pub fn perplexity(&self) -> f64 {
        math::exp(self.mean)
    }

    /// The standard error of the perplexity, to first order: perplexity times [`Evaluation::stderr`].
    pub fn perplexity_stderr(&self) -> f64 {
        self.perplexity() * self.stderr()
    }

    /// `mean / ln 2`.
    pub fn bits_per_token(&self) -> f64 {
        self.mean / LN_2
    }

    /// `sum / (bytes * ln 2)`, for the number of bytes of text that the kept rows stand for.
    pub fn bits_per_byte(&self, bytes: u64) -> f64 {
        self.sum / (bytes as f64 * LN_2)
    }

    /// The share of kept rows whose argmax is the target, if it was asked for; NaN for no rows.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|correct| correct as f64 / self.count as f64)
    }

    /// The number of kept rows whose argmax is the target, if it was asked for.
    pub fn correct(&self) -> Option<u64> {
        self.correct
    }

    /// The number of kept rows.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The number of rows left out.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }
}
