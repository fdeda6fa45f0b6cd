//! Two models compared over a set of rows.
#![forbid(unsafe_code)]

use crate::api::evaluation::NanRows;
use crate::math::double_double::Dd;
use crate::math::spread::{self, Spread, Value};
use crate::math::{self, exp2_int, exponent};
use crate::simd::float_env;

/// A statistic and its standard error.
///
/// Means and their standard errors are within 1 ULP of the exact ones, whatever the digits that the values have in
/// common, unless values of both signs cancel each other. Neither overflows as long as the values are finite. An
/// infinite value makes the mean infinite, or NaN together with one of the other sign, and a NaN makes it NaN; the
/// standard error is NaN then.
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
    /// assert_eq!(Estimate::of(&[1.0, 1.0 + f64::EPSILON]).stderr, 0.5 * f64::EPSILON);
    /// assert_eq!(Estimate::of(&[1e308, 1e308, 1e308]), Estimate { value: 1e308, stderr: 0.0 });
    /// assert!(Estimate::of(&[1.0]).stderr.is_nan());
    /// ```
    pub fn of(values: &[f64]) -> Self {
        float_env::scope(|| Self::mean(values.iter().copied()))
    }

    /// The mean of values, in their order, with the standard error `sqrt(variance / (n - 1))`.
    fn mean<V: Value>(values: impl Iterator<Item = V> + Clone) -> Self {
        let spread = Spread::of(values);
        Estimate { value: spread.mean(), stderr: spread.stderr() }
    }

    /// Of `e^self`, to first order.
    fn exp(self) -> Self {
        let value = math::exp(self.value);
        Estimate { value, stderr: value * self.stderr }
    }
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
    nans: NanRows,
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
        let above = sorted[at as usize + 1];
        ((1.0 - share) * below + share * above).clamp(below, above)
    })
}

impl Comparison {
    pub(crate) fn new(kl: Vec<f64>, same_top: u64, nans: NanRows) -> Self {
        Comparison { kl, same_top, ignored: 0, nans, at_targets: None }
    }

    /// Of so many rows, some of which are left out of the values.
    pub(crate) fn with_targets(
        kl: Vec<f64>,
        same_top: u64,
        nans: NanRows,
        rows: u64,
        [base_logprobs, other_logprobs, delta_p]: [Vec<f64>; 3],
    ) -> Self {
        let ignored = rows - kl.len() as u64;
        let at_targets = Some(AtTargets { base_logprobs, other_logprobs, delta_p });
        Comparison { kl, same_top, ignored, nans, at_targets }
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
        self.nans = self.nans.followed_by(self.count() + self.ignored, next.nans);
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

    /// The number of kept rows without a result, as either model has a NaN, +inf, or nothing but -inf there: with one
    /// of them means and percentiles are NaN.
    ///
    /// ```
    /// use xent::{Compare, CompareOutputs, Logits};
    ///
    /// let (p, q) = ([0.0_f32, 1.0, f32::NAN, 1.0], [0.0_f32, 1.0, 0.0, 1.0]);
    /// let (p, q) = (Logits::new(&p, 2, 2)?, Logits::new(&q, 2, 2)?);
    /// let all = Compare::new().evaluate(p, q, CompareOutputs::new())?;
    /// assert_eq!((all.nan_rows(), all.first_nan_row()), (1, Some(1)));
    /// assert_eq!(all.same_top().value, 0.5); // there is no agreement on a row without a result
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn nan_rows(&self) -> u64 {
        self.nans.count
    }

    /// The first of [`Comparison::nan_rows`], counted from 0 through all rows, ignored ones and those of earlier batches
    /// ([`Comparison::append`]) included.
    pub fn first_nan_row(&self) -> Option<u64> {
        self.nans.first
    }

    /// KL(P||Q) of each kept row, in nats.
    pub fn kl(&self) -> &[f64] {
        &self.kl
    }

    /// The mean of KL(P||Q), in nats.
    pub fn mean_kl(&self) -> Estimate {
        float_env::scope(|| Estimate::of(&self.kl))
    }

    /// Percentiles of KL(P||Q), for fractions of 0, the minimum, to 1, the maximum: interpolated between two values
    /// at `fraction * (n - 1)`. NaN for no rows, and if a row has NaN.
    pub fn kl_percentiles<const N: usize>(&self, fractions: [f64; N]) -> [f64; N] {
        float_env::scope(|| percentiles(&self.kl, fractions))
    }

    /// The share `s` of kept rows with the same most probable class in both models, and `sqrt(s (1 - s) / (n - 1))`.
    /// [`Comparison::nan_rows`] have no most probable class: they count as rows where the models differ.
    pub fn same_top(&self) -> Estimate {
        let (value, stderr) = float_env::scope(|| spread::share(self.same_top, self.count()));
        Estimate { value, stderr }
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
        float_env::scope(|| Estimate::mean(self.nlls().map(|(base, _)| base)).exp())
    }

    /// PPL(Q).
    pub fn other_perplexity(&self) -> Estimate {
        float_env::scope(|| Estimate::mean(self.nlls().map(|(_, other)| other)).exp())
    }

    /// Cor(ln PPL(Q), ln PPL(base)): the correlation of the two log-probabilities of a token, from -1 to 1. NaN if
    /// either is the same for all, or infinite or NaN for one.
    ///
    /// Within 2^-52 of the exact one however little log-probabilities differ: that of a model with itself is 1.
    pub fn correlation(&self) -> f64 {
        float_env::scope(|| spread::correlation(self.nlls()))
    }

    /// The mean of ln(PPL(Q) / PPL(base)): of the differences of log-probabilities, whose standard error is much
    /// smaller than that of either perplexity where the models agree.
    pub fn log_ratio(&self) -> Estimate {
        float_env::scope(|| Estimate::mean(self.nlls().map(|(base, other)| Dd::sum(other, -base))))
    }

    /// PPL(Q) / PPL(base).
    pub fn ratio(&self) -> Estimate {
        float_env::scope(|| self.log_ratio().exp())
    }

    /// PPL(Q) - PPL(base), from [`AtTargets::log_ratio`], so that a small one keeps its digits. Of perplexities beyond
    /// the range of `f64` it is infinite, or NaN if they are equal, and its standard error NaN.
    pub fn difference(&self) -> Estimate {
        float_env::scope(|| self.difference_here())
    }

    fn difference_here(&self) -> Estimate {
        let (base, other) = (self.base_perplexity().value, self.other_perplexity().value);
        let log_ratio = self.log_ratio().value;
        let apart = if log_ratio >= 0.0 {
            other * math::one_minus_exp_neg(log_ratio)
        } else {
            -(base * math::one_minus_exp_neg(-log_ratio))
        };
        // PPL(Q) times its log-probabilities less PPL(base) times its own: to first order, covariance included.
        let linear = self.nlls().map(|(b, o)| Dd::sum(o, -b) * base + Dd::product(apart, o));
        Estimate { value: apart, stderr: Estimate::mean(linear).stderr }
    }

    /// The mean of the probability of the target under Q less that under P, 1 being all of it.
    pub fn mean_delta_p(&self) -> Estimate {
        float_env::scope(|| Estimate::of(&self.delta_p))
    }

    /// Percentiles of it, as [`Comparison::kl_percentiles`].
    pub fn delta_p_percentiles<const N: usize>(&self, fractions: [f64; N]) -> [f64; N] {
        float_env::scope(|| percentiles(&self.delta_p, fractions))
    }

    /// The root of the mean of its square, with the standard error `0.5 / rms` times that of the square; 0 if it is
    /// 0 everywhere.
    pub fn rms_delta_p(&self) -> Estimate {
        float_env::scope(|| self.rms_delta_p_here())
    }

    fn rms_delta_p_here(&self) -> Estimate {
        let largest = self.delta_p.iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
        // Squares of less than 1e-154 would be cut to 0.
        let exponent = exponent(largest).clamp(-1022, 0);
        let (unit, inverse) = (exp2_int(exponent), exp2_int(-exponent));
        let squares = self.delta_p.iter().map(|d| Dd::product(d * inverse, d * inverse));
        let spread = Spread::of(squares);
        let (rms, stderr) = (spread.root_mean(), spread.stderr());
        let stderr = if rms == 0.0 { stderr } else { 0.5 * stderr / rms };
        Estimate { value: rms * unit, stderr: stderr * unit }
    }
}
