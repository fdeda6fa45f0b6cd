//! Two models compared over a set of rows.
#![forbid(unsafe_code)]

use crate::math;

/// A statistic and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The statistic.
    pub value: f64,
    /// Its standard error; NaN for fewer than two rows.
    pub stderr: f64,
}

impl Estimate {
    /// The mean of values, and `sqrt(variance / (n - 1))` with the variance over `n` as llama.cpp has it: for
    /// divergences that [`Comparison`] does not keep.
    ///
    /// ```
    /// use xent::Estimate;
    ///
    /// assert_eq!(Estimate::of(&[1.0, 3.0]), Estimate { value: 2.0, stderr: 1.0 });
    /// assert!(Estimate::of(&[1.0]).stderr.is_nan());
    /// ```
    pub fn of(values: &[f64]) -> Self {
        Self::mean(values.iter().copied())
    }

    /// The mean of values, in their order, with the standard error `sqrt(variance / (n - 1))`.
    fn mean(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (mean, deviations, n) = moments(values);
        let stderr = if n < 2.0 { f64::NAN } else { (deviations / n / (n - 1.0)).sqrt() };
        Estimate { value: mean, stderr }
    }

    /// Of `e^self`, to first order.
    fn exp(self) -> Self {
        let value = math::exp(self.value);
        Estimate { value, stderr: value * self.stderr }
    }
}

/// The mean of values, the sum of their squared deviations from it, and how many they are.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().fold(0.0, |sum, x| sum + x) / n;
    // Around the mean before it was rounded, as `Evaluation` has it.
    let center = mean + values.clone().fold(0.0, |sum, x| sum + (x - mean)) / n;
    (mean, values.fold(0.0, |sum, x| sum + (x - center) * (x - center)), n)
}

/// Two models compared over a set of rows: what `llama-perplexity --kl-divergence` prints, with its formulas,
/// made by [`Compare::evaluate`](crate::Compare::evaluate).
///
/// It keeps the values of each row, 8 bytes without and 32 with targets, as percentiles need all of them.
/// Statistics are over the kept rows, those whose target is not ignored, in row order. Standard errors
/// of fewer than two rows are NaN, where llama.cpp has 0 for ten or fewer.
///
/// The default is that of no rows, to append to.
///
/// ```
/// use xent::{Compare, CompareOutputs, Comparison, Logits};
///
/// let (p, q) = ([1.0_f32, 2.0, 0.5, 3.0], [1.1_f32, 2.0, 0.5, 2.7]);
/// let mut all = Comparison::default();
/// for batch in [0..2, 2..4] {
///     let (p, q) = (Logits::new(&p[batch.clone()], 1, 2)?, Logits::new(&q[batch], 1, 2)?);
///     all.append(Compare::new().evaluate(p, q, CompareOutputs::new())?);
/// }
/// let [min, median, max] = all.kl_percentiles([0.0, 0.5, 1.0]);
/// assert_eq!((all.count(), median), (2, 0.5 * (min + max)));
/// assert_eq!(all.same_top().value, 1.0);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    kl: Vec<f64>,
    same_top: u64,
    ignored: u64,
    at_targets: Option<AtTargets>,
}

/// The part of a [`Comparison`] that is about the targets: perplexities, and probabilities of the target.
///
/// ```
/// use xent::{Compare, CompareOutputs, Logits};
///
/// let (p, q) = ([0.0_f32; 4], [0.0, 1.0, 0.0, -1.0]); // p is 1/2 everywhere
/// let compare = Compare::new().targets(&[1i64, 1]);
/// let all = compare.evaluate(Logits::new(&p, 2, 2)?, Logits::new(&q, 2, 2)?, CompareOutputs::new())?;
/// let at_targets = all.at_targets().unwrap();
/// assert_eq!(at_targets.base_perplexity().value, 2.0);
/// assert!((at_targets.log_ratio().value - 0.1201145).abs() < 1e-6); // ln(PPL(Q) / 2)
/// assert!(at_targets.mean_delta_p().value.abs() < 1e-15); // more probable by as much as less probable
/// assert!((at_targets.rms_delta_p().value - 0.2310586).abs() < 1e-6);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AtTargets {
    base_logprobs: Vec<f64>,
    other_logprobs: Vec<f64>,
    delta_p: Vec<f64>,
}

/// Percentiles of values, for fractions of 0 to 1: between the values in order, where it falls between two, at
/// `fraction * (n - 1)`. NaN for no values, if one of them is, and for a fraction that is.
fn percentiles<const N: usize>(values: &[f64], fractions: [f64; N]) -> [f64; N] {
    if values.is_empty() || values.iter().any(|x| x.is_nan()) {
        return [f64::NAN; N];
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    fractions.map(|fraction| {
        if fraction.is_nan() {
            return f64::NAN;
        }
        let at = fraction.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
        let below = sorted[at as usize];
        let share = at - at.floor();
        // An infinity has no share in what is exactly another value.
        if share == 0.0 {
            return below;
        }
        (1.0 - share) * below + share * sorted[at as usize + 1]
    })
}

impl Comparison {
    pub(crate) fn new(kl: Vec<f64>, same_top: u64) -> Self {
        Comparison { kl, same_top, ignored: 0, at_targets: None }
    }

    /// Of so many rows, some of which are left out of the values.
    pub(crate) fn with_targets(
        kl: Vec<f64>,
        same_top: u64,
        rows: u64,
        [base_logprobs, other_logprobs, delta_p]: [Vec<f64>; 3],
    ) -> Self {
        let ignored = rows - kl.len() as u64;
        let at_targets = Some(AtTargets { base_logprobs, other_logprobs, delta_p });
        Comparison { kl, same_top, ignored, at_targets }
    }

    /// Adds the rows of `next`, for logits that come in batches: the same as one comparison of all rows.
    ///
    /// What is about targets is known if it is for both; no rows at all need not have had any.
    pub fn append(&mut self, mut next: Comparison) {
        let of = |comparison: &mut Comparison| match comparison.kl.is_empty() {
            true => Some(comparison.at_targets.take().unwrap_or_default()),
            false => comparison.at_targets.take(),
        };
        let known = self.at_targets.is_some() || next.at_targets.is_some();
        self.at_targets =
            of(self).zip(of(&mut next)).filter(|_| known).map(|(mut all, mut next)| {
                all.base_logprobs.append(&mut next.base_logprobs);
                all.other_logprobs.append(&mut next.other_logprobs);
                all.delta_p.append(&mut next.delta_p);
                all
            });
        self.kl.append(&mut next.kl);
        self.same_top += next.same_top;
        self.ignored += next.ignored;
    }

    /// The number of kept rows.
    pub fn count(&self) -> u64 {
        self.kl.len() as u64
    }

    /// The number of rows left out.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// KL(P||Q) of each kept row, in nats.
    pub fn kl(&self) -> &[f64] {
        &self.kl
    }

    /// The mean of KL(P||Q), in nats.
    pub fn mean_kl(&self) -> Estimate {
        Estimate::of(&self.kl)
    }

    /// Percentiles of KL(P||Q), for fractions of 0, the minimum, to 1, the maximum: interpolated between two values
    /// at `fraction * (n - 1)`. NaN for no rows, and if a row has NaN.
    pub fn kl_percentiles<const N: usize>(&self, fractions: [f64; N]) -> [f64; N] {
        percentiles(&self.kl, fractions)
    }

    /// The share `s` of rows with the same most probable class in both models, and `sqrt(s (1 - s) / (n - 1))`.
    pub fn same_top(&self) -> Estimate {
        let n = self.kl.len() as f64;
        let share = self.same_top as f64 / n;
        let stderr = if n < 2.0 { f64::NAN } else { (share * (1.0 - share) / (n - 1.0)).sqrt() };
        Estimate { value: share, stderr }
    }

    /// What is about the targets, if there were any.
    pub fn at_targets(&self) -> Option<&AtTargets> {
        self.at_targets.as_ref()
    }
}

impl AtTargets {
    /// The log-probability of each target under P.
    pub fn base_logprobs(&self) -> &[f64] {
        &self.base_logprobs
    }

    /// The log-probability of each target under Q.
    pub fn other_logprobs(&self) -> &[f64] {
        &self.other_logprobs
    }

    /// The probability of each target under Q less that under P.
    pub fn delta_p(&self) -> &[f64] {
        &self.delta_p
    }

    /// Negative log-probabilities under P and under Q.
    fn nlls(&self) -> impl Iterator<Item = (f64, f64)> + Clone {
        let negative = |(&base, &other): (&f64, &f64)| (0.0 - base, 0.0 - other);
        self.base_logprobs.iter().zip(&self.other_logprobs).map(negative)
    }

    /// PPL(base), `e^mean` of the negative log-probabilities under P.
    pub fn base_perplexity(&self) -> Estimate {
        Estimate::mean(self.nlls().map(|(base, _)| base)).exp()
    }

    /// PPL(Q).
    pub fn other_perplexity(&self) -> Estimate {
        Estimate::mean(self.nlls().map(|(_, other)| other)).exp()
    }

    /// Cor(ln PPL(Q), ln PPL(base)): the correlation of the two log-probabilities of a token. NaN if either is
    /// the same for all.
    pub fn correlation(&self) -> f64 {
        let (base, base_square, _) = moments(self.nlls().map(|(base, _)| base));
        let (other, other_square, _) = moments(self.nlls().map(|(_, other)| other));
        let product = self.nlls().fold(0.0, |sum, (b, o)| sum + (b - base) * (o - other));
        product / (base_square.sqrt() * other_square.sqrt())
    }

    /// The mean of ln(PPL(Q) / PPL(base)): of the differences of log-probabilities, whose standard error is much
    /// smaller than that of either perplexity where the models agree.
    pub fn log_ratio(&self) -> Estimate {
        Estimate::mean(self.nlls().map(|(base, other)| other - base))
    }

    /// PPL(Q) / PPL(base).
    pub fn ratio(&self) -> Estimate {
        self.log_ratio().exp()
    }

    /// PPL(Q) - PPL(base).
    pub fn difference(&self) -> Estimate {
        let (base, other) = (self.base_perplexity().value, self.other_perplexity().value);
        // To first order, covariance included.
        let linear = Estimate::mean(self.nlls().map(|(b, o)| other * o - base * b));
        Estimate { value: other - base, stderr: linear.stderr }
    }

    /// The mean of the probability of the target under Q less that under P, 1 being all of it.
    pub fn mean_delta_p(&self) -> Estimate {
        Estimate::of(&self.delta_p)
    }

    /// Percentiles of it, as [`Comparison::kl_percentiles`].
    pub fn delta_p_percentiles<const N: usize>(&self, fractions: [f64; N]) -> [f64; N] {
        percentiles(&self.delta_p, fractions)
    }

    /// The root of the mean of its square, with the standard error `0.5 / rms` times that of the square; 0 if it is
    /// 0 everywhere.
    pub fn rms_delta_p(&self) -> Estimate {
        let square = Estimate::mean(self.delta_p.iter().map(|d| d * d));
        let value = square.value.sqrt();
        let stderr = if value == 0.0 { square.stderr } else { 0.5 / value * square.stderr };
        Estimate { value, stderr }
    }
}
