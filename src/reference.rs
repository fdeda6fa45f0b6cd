//! The oracle: what the kernels are proven against, and what to verify your own kernel with.
//!
//! Two passes in `f64` with compensated sums, written to be read rather than to be fast. Results are
//! exact to a few units of the last place of `f64`, far beyond the `f32` that they judge, whatever the
//! calling thread has set its floating-point environment to.
//!
//! ```
//! use xent::reference;
//!
//! let my_loss = 0.40760598_f32; // of your own kernel
//! let exact = reference::row(&[1.0, 2.0, 3.0], 2).loss;
//! assert!(reference::ulp_error(my_loss, exact) <= 1.0);
//! ```
#![forbid(unsafe_code)]

use crate::math::double_double::Dd;
use crate::simd::float_env;

/// Everything about one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Negative log-probability of the target.
    pub loss: f64,
    /// Logarithm of the sum of exponentials.
    pub logsumexp: f64,
    /// First index of the largest logit, or of the first NaN.
    pub argmax: usize,
}

/// Adds numbers without losing what rounding takes from each addition (Neumaier's algorithm).
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0);
    for x in values {
        let next = sum + x;
        // NaN and infinities have nothing to lose.
        if next.is_finite() {
            lost += if sum.abs() >= x.abs() { (sum - next) + x } else { (x - next) + sum };
        }
        sum = next;
    }
    sum + lost
}

/// The largest logit, NaN if there is one, -inf if there are none.
fn max(logits: impl Iterator<Item = f64>) -> f64 {
    logits.fold(f64::NEG_INFINITY, |max, x| if x > max || x.is_nan() { x } else { max })
}

/// `ln(sum_j e^x[j])`; -inf for no classes or nothing but -inf.
///
/// ```
/// assert_eq!(xent::reference::logsumexp(&[1e30, 1e30]), 1e30); // ln 2 is lost in 1e30
/// ```
pub fn logsumexp(logits: &[impl Copy + Into<f64>]) -> f64 {
    float_env::scope(|| {
        let x = || logits.iter().map(|&x| x.into());
        let max = max(x());
        let Some(best) = x().position(|x| x == max).filter(|_| max.is_finite()) else {
            return max;
        };
        // The largest is left out of the sum: next to its 1 small ones would have no digits.
        let others = x().enumerate().filter(|&(j, _)| j != best).map(|(_, x)| (x - max).exp());
        max + sum(others).ln_1p()
    })
}

/// Loss, logsumexp and argmax of one row.
///
/// The target is kept out of the sum, `loss = ln(1 + sum_(j != target) e^(x[j] - x[target]))`, which
/// is exact for confident predictions too.
///
/// # Panics
/// If `target` is not a class.
pub fn row(logits: &[impl Copy + Into<f64>], target: usize) -> Row {
    float_env::scope(|| {
        let x = || logits.iter().map(|&x| x.into());
        let t = logits[target].into();
        let others = || x().enumerate().filter(|&(j, _)| j != target).map(|(_, x)| x);
        let max = max(others());
        let loss = if t.is_nan() || t == f64::INFINITY || max.is_nan() || max == f64::INFINITY {
            f64::NAN
        } else if max == f64::NEG_INFINITY {
            if t == f64::NEG_INFINITY { f64::NAN } else { 0.0 }
        } else if max <= t {
            sum(others().map(|x| (x - t).exp())).ln_1p()
        } else {
            (max - t) + (sum(others().map(|x| (x - max).exp())) + (t - max).exp()).ln()
        };
        let (mut argmax, mut best) = (0, f64::NEG_INFINITY);
        for (j, x) in x().enumerate() {
            if x > best || (x.is_nan() && !best.is_nan()) {
                (argmax, best) = (j, x);
            }
        }
        Row { loss, logsumexp: logsumexp(logits), argmax }
    })
}

/// The sum of the losses of rows of `vocab` logits, and the number of rows kept.
///
/// ```
/// let (sum, kept) = xent::reference::cross_entropy(&[0.0; 4], 2, &[1, -100], -100);
/// assert_eq!((sum, kept), (2f64.ln(), 1));
/// ```
///
/// # Panics
/// If a target is neither a class nor `ignore_index`.
pub fn cross_entropy(
    logits: &[f32],
    vocab: usize,
    targets: &[i64],
    ignore_index: i64,
) -> (f64, usize) {
    float_env::scope(|| {
        let kept = || targets.iter().enumerate().filter(|&(_, &t)| t != ignore_index);
        let losses = kept().map(|(i, &t)| row(&logits[i * vocab..][..vocab], t as usize).loss);
        (sum(losses), kept().count())
    })
}

/// `e^x[j] / sum_k e^x[k]`; NaN for rows that have none, as the kernels.
///
/// ```
/// assert_eq!(xent::reference::softmax(&[3.0, f32::NEG_INFINITY]), [1.0, 0.0]);
/// ```
pub fn softmax(logits: &[impl Copy + Into<f64>]) -> Vec<f64> {
    float_env::scope(|| log_softmax(logits).into_iter().map(f64::exp).collect())
}

/// `x[j] - ln(sum_k e^x[k])`, with the largest class left out of the sum as the target is in [`row`].
///
/// ```
/// let log_p = xent::reference::log_softmax(&[40.0, 0.0]);
/// assert!((log_p[0] / -(-40f64).exp() - 1.0).abs() < 1e-15); // -4.2e-18, not 0
/// ```
pub fn log_softmax(logits: &[impl Copy + Into<f64>]) -> Vec<f64> {
    float_env::scope(|| {
        let max = max(logits.iter().map(|&x| x.into()));
        let Some(best) = logits.iter().position(|&x| x.into() == max) else {
            return vec![f64::NAN; logits.len()];
        };
        let loss = row(logits, best).loss;
        logits.iter().map(|&x| (x.into() - max) - loss).collect()
    })
}

/// `sum_j e^-d`, and the same times `d - center` and its square, with `d = max - x[j]` and without the largest class: next
/// to its 1 small ones would have no digits. `None` for rows without probabilities.
fn moments(logits: &[impl Copy + Into<f64>], center: f64) -> Option<[f64; 3]> {
    let x = || logits.iter().map(|&x| x.into());
    let max = max(x());
    let best = x().position(|x| x == max).filter(|_| max.is_finite())?;
    // What is -inf, or further below than `f64` can tell, has no part in anything.
    let below = || {
        let others = x().enumerate().filter(move |&(j, _)| j != best);
        others.map(|(_, x)| (max - x, (x - max).exp())).filter(|&(_, e)| e > 0.0)
    };
    let of_power = |n| sum(below().map(|(d, e)| e * (d - center).powi(n)));
    Some([0, 1, 2].map(of_power))
}

/// `-sum_j p[j] ln p[j]` in nats; NaN for rows that have none, as the kernels.
///
/// ```
/// use xent::reference::entropy;
///
/// assert_eq!(entropy(&[7.0, f32::NEG_INFINITY, 7.0]), 2f64.ln());
/// // A token that the model is sure of: what is left is (1 + 40) e^-40, and not 0.
/// assert!((entropy(&[40.0, 0.0]) / (41.0 * (-40f64).exp()) - 1.0).abs() < 1e-15);
/// ```
pub fn entropy(logits: &[impl Copy + Into<f64>]) -> f64 {
    float_env::scope(|| {
        moments(logits, 0.0).map_or(f64::NAN, |[sum, first, _]| sum.ln_1p() + first / (1.0 + sum))
    })
}

/// The variance of `ln p[j]` under `p`; NaN for rows that have none, as the kernels.
///
/// ```
/// use xent::reference::varentropy;
///
/// assert_eq!(varentropy(&[7.0, f32::NEG_INFINITY, 7.0]), 0.0);
/// let p = 1.0 / (1.0 + 1f64.exp());
/// assert!((varentropy(&[0.0, 1.0]) - p * (1.0 - p)).abs() < 1e-15);
/// ```
pub fn varentropy(logits: &[impl Copy + Into<f64>]) -> f64 {
    float_env::scope(|| {
        let Some([sum, first, _]) = moments(logits, 0.0) else { return f64::NAN };
        let mean = first / (1.0 + sum);
        // Around the mean nothing cancels.
        let second = moments(logits, mean).map_or(f64::NAN, |[_, _, second]| second);
        (mean * mean + second) / (1.0 + sum)
    })
}

/// How many logits are at least that of the target, itself among them, and one more than how many are above it: what
/// [`TokenOutputs::ranks`](crate::TokenOutputs::ranks) and
/// [`TokenOutputs::strict_ranks`](crate::TokenOutputs::strict_ranks) are. NaN does not count; a target that is one has 0.
///
/// ```
/// use xent::reference::rank;
///
/// assert_eq!(rank(&[1.0, 3.0, 3.0, 3.0, 2.0], 2), (3, 1));
/// assert_eq!(rank(&[1.0, f32::NAN, 3.0], 0), (2, 2));
/// assert_eq!(rank(&[1.0, f32::NAN, 3.0], 1), (0, 0));
/// ```
///
/// # Panics
/// If `target` is not a class.
pub fn rank(logits: &[impl Copy + Into<f64>], target: usize) -> (u64, u64) {
    float_env::scope(|| {
        let t: f64 = logits[target].into();
        let count =
            |is: &dyn Fn(f64) -> bool| logits.iter().filter(|&&x| is(x.into())).count() as u64;
        if t.is_nan() { (0, 0) } else { (count(&|x| x >= t), count(&|x| x > t) + 1) }
    })
}

/// The `k` classes with the largest logits, in descending order; of equals the lowest first, which both zeros are. NaN is
/// above everything. All classes if there are fewer.
///
/// ```
/// assert_eq!(xent::reference::top_k(&[1.0, f32::NAN, 3.0, f32::INFINITY, 3.0], 4), [1, 3, 2, 4]);
/// ```
pub fn top_k(logits: &[impl Copy + Into<f64>], k: usize) -> Vec<usize> {
    float_env::scope(|| {
        // The sum with 0 has one zero of two.
        let key = |j: usize| -> f64 { logits[j].into() + 0.0 };
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|&a, &b| {
            let (a, b) = (key(a), key(b));
            // Stable: the lowest of equals stays first.
            b.is_nan().cmp(&a.is_nan()).then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
        });
        ids.truncate(k);
        ids
    })
}

/// Options of a loss, named and explained as the functions of [`CrossEntropy`](crate::CrossEntropy).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options<'a> {
    /// What the logits are multiplied by, first.
    pub logit_scale: f64,
    /// `c` of `c tanh(x / c)`.
    pub softcap: Option<f64>,
    /// The cap is one of infinities too, as [`softcap_of_all`](crate::CrossEntropy::softcap_of_all).
    pub caps_infinities: bool,
    /// What the logits are divided by, last.
    pub temperature: f64,
    /// The share of the target that all classes get alike.
    pub label_smoothing: f64,
    /// One per class; `None` for 1.
    pub class_weights: Option<&'a [f64]>,
    /// What the square of the logsumexp is multiplied by.
    pub z_loss: f64,
    /// What the whole loss of the row is multiplied by.
    pub token_weight: f64,
}

impl Default for Options<'_> {
    /// None of them.
    fn default() -> Self {
        Options {
            logit_scale: 1.0,
            softcap: None,
            caps_infinities: false,
            temperature: 1.0,
            label_smoothing: 0.0,
            class_weights: None,
            z_loss: 0.0,
            token_weight: 1.0,
        }
    }
}

/// What a row should have predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target<'a> {
    /// A class.
    Class(usize),
    /// A probability per class.
    Probs(&'a [f64]),
}

/// The loss of a row is the sum of the two parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// With smoothing and weights.
    pub cross_entropy: f64,
    /// With the weight of the token.
    pub z_loss: f64,
}

impl Options<'_> {
    /// The logit that the softmax is taken of, and its derivative by the logit given.
    fn transform(&self, x: f64) -> (f64, f64) {
        let x = x * self.logit_scale;
        let (capped, slope) = match self.softcap {
            None => (x, 1.0),
            Some(_) if x.is_infinite() && !self.caps_infinities => (x, 0.0),
            Some(c) => (c * (x / c).tanh(), (x / c).cosh().powi(-2)),
        };
        (capped / self.temperature, slope * self.logit_scale / self.temperature)
    }

    fn weight(&self, class: usize) -> f64 {
        self.class_weights.map_or(1.0, |weights| weights[class])
    }

    /// The factor of `-ln p[j]` in the cross-entropy: the target, smoothed and weighted.
    fn factor(&self, target: Target<'_>, j: usize, vocab: usize) -> f64 {
        let given = match target {
            Target::Class(class) => f64::from(u8::from(class == j)),
            Target::Probs(probs) => probs[j],
        };
        let e = self.label_smoothing;
        let smoothed = (1.0 - e) * given + e / vocab as f64;
        // The weight of a class that has no part in the loss may be anything.
        if smoothed == 0.0 { 0.0 } else { self.weight(j) * smoothed }
    }
}

/// The loss of one row with options.
///
/// A class with a factor of 0 does not count with probability targets, even if it is masked. With a class
/// as target it is 0 times infinity, NaN, as in PyTorch.
///
/// ```
/// use xent::reference::{Options, Target, loss};
///
/// let options = Options { label_smoothing: 0.1, z_loss: 0.5, ..Options::default() };
/// let row = loss(&[1.0, 2.0, 3.0], Target::Class(0), &options);
/// assert!((row.cross_entropy - 2.307605964).abs() < 1e-9);
/// assert!((row.z_loss - 0.5 * 3.407605964 * 3.407605964).abs() < 1e-8);
/// ```
///
/// # Panics
/// If the target, or the weights, do not go with the logits.
pub fn loss(logits: &[impl Copy + Into<f64>], target: Target<'_>, options: &Options<'_>) -> Loss {
    float_env::scope(|| {
        let z: Vec<f64> = logits.iter().map(|&x| options.transform(x.into()).0).collect();
        let nll: Vec<f64> = log_softmax(&z).into_iter().map(|log_p| 0.0 - log_p).collect();
        let (vocab, e) = (z.len(), options.label_smoothing);
        let cross_entropy = match target {
            Target::Class(class) if e == 0.0 => options.weight(class) * nll[class],
            Target::Class(class) => {
                let all = sum((0..vocab).map(|j| options.weight(j) * nll[j]));
                (1.0 - e) * options.weight(class) * nll[class] + e / vocab as f64 * all
            }
            Target::Probs(_) => sum((0..vocab).map(|j| match options.factor(target, j, vocab) {
                0.0 if !nll[j].is_nan() => 0.0,
                factor => factor * nll[j],
            })),
        };
        let lse = logsumexp(&z);
        Loss {
            cross_entropy: options.token_weight * cross_entropy,
            z_loss: options.token_weight * options.z_loss * lse * lse,
        }
    })
}

/// The gradient of a row's loss by each of its logits.
///
/// The two of `upstream` are the derivatives of what is trained by [`Loss::cross_entropy`] and by
/// [`Loss::z_loss`]: 1 and 1 for a sum of rows, 1 / weight and 1 / rows for their mean.
///
/// ```
/// use xent::reference::{Options, Target, gradient};
///
/// let g = gradient(&[1.0, 2.0, 3.0], Target::Class(0), &Options::default(), [1.0, 1.0]);
/// assert!((g[0] - -0.909969427).abs() < 1e-9 && (g[1] + g[2] + g[0]).abs() < 1e-15);
/// ```
///
/// # Panics
/// As [`loss`].
pub fn gradient(
    logits: &[impl Copy + Into<f64>],
    target: Target<'_>,
    options: &Options<'_>,
    upstream: [f64; 2],
) -> Vec<f64> {
    float_env::scope(|| {
        let (z, slope): (Vec<f64>, Vec<f64>) =
            logits.iter().map(|&x| options.transform(x.into())).unzip();
        let vocab = z.len();
        let factor = |j| options.factor(target, j, vocab);
        let (log_p, lse) = (log_softmax(&z), logsumexp(&z));
        let total = sum((0..vocab).map(factor));
        let of_class = |j: usize| {
            // total * p - factor, with a p - 1 that keeps its digits where p is nearly 1.
            let p = log_p[j].exp();
            let cross_entropy = (total - factor(j)) * p + factor(j) * log_p[j].exp_m1();
            let z_loss = options.z_loss * 2.0 * lse * p;
            let [a, b] = upstream;
            options.token_weight * (a * cross_entropy + b * z_loss) * slope[j]
        };
        (0..vocab).map(of_class).collect()
    })
}

/// The distance of `got` from `exact`, in units of the last place of `exact` rounded to `f32`.
///
/// 0 for two NaN, and for infinities that agree (`exact` beyond the range of `f32` is one). The unit
/// of 0 and of subnormal numbers is the smallest subnormal.
pub fn ulp_error(got: f32, exact: f64) -> f64 {
    float_env::scope(|| {
        let rounded = exact as f32;
        if got.is_nan() || rounded.is_nan() {
            return if got.is_nan() && rounded.is_nan() { 0.0 } else { f64::INFINITY };
        }
        if got.is_infinite() || rounded.is_infinite() {
            return if got == rounded { 0.0 } else { f64::INFINITY };
        }
        let exponent = (exact.abs().to_bits() >> 52) as i32 - 1023;
        let unit = 2f64.powi(exponent.max(-126) - 23);
        (f64::from(got) - exact).abs() / unit
    })
}

/// The loss of a row as it is often written by hand: a pass for the maximum, a pass for the sum of
/// exponentials, all in `f32`. The baseline that the benches compare with.
///
/// ```
/// use xent::reference;
///
/// // A token that the model is sure of: what is left of 4.5e-5 is three digits, and of 2.1e-9 nothing.
/// let error = |x: &[f32]| reference::ulp_error(reference::two_pass_f32(x, 0), reference::row(x, 0).loss);
/// assert!(error(&[10.0, 0.0]) > 1000.0);
/// assert_eq!(reference::two_pass_f32(&[20.0, 0.0], 0), 0.0);
/// ```
///
/// # Panics
/// If `target` is not a class.
pub fn two_pass_f32(logits: &[f32], target: usize) -> f32 {
    float_env::scope(|| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|&x| (x - max).exp()).sum();
        sum.ln() + max - logits[target]
    })
}

/// A number of about 68 correct bits: `hi` is the nearest `f64`, `lo` what that leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precise {
    /// The number, correctly rounded but for ties.
    pub hi: f64,
    /// The rest.
    pub lo: f64,
}

impl From<Dd> for Precise {
    fn from(Dd { hi, lo }: Dd) -> Self {
        Precise { hi, lo }
    }
}

/// Everything about one row of `f64`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowF64 {
    /// Negative log-probability of the target.
    pub loss: Precise,
    /// Logarithm of the sum of exponentials.
    pub logsumexp: Precise,
    /// First index of the largest logit, or of the first NaN.
    pub argmax: usize,
}

/// `sum_j e^(x[j] - from)` for finite `from`.
fn exp_sum(x: impl Iterator<Item = f64>, from: f64) -> Dd {
    let exp = |x: f64| {
        // -inf, and differences beyond the range of `f64`.
        if x - from == f64::NEG_INFINITY { Dd::ZERO } else { Dd::sum(x, -from).exp() }
    };
    x.fold(Dd::ZERO, |sum, x| sum + exp(x))
}

/// [`logsumexp`] of `f64`, to 68 bits.
///
/// ```
/// let lse = xent::reference::logsumexp_f64(&[1e30, 1e30]);
/// assert_eq!((lse.hi, lse.lo), (1e30, 2f64.ln()));
/// ```
pub fn logsumexp_f64(logits: &[f64]) -> Precise {
    float_env::scope(|| {
        let max = max(logits.iter().copied());
        if !max.is_finite() {
            return Dd::new(max).into();
        }
        (Dd::new(max) + exp_sum(logits.iter().copied(), max).ln()).into()
    })
}

/// [`row`] of `f64`, to 68 bits.
///
/// ```
/// use xent::reference;
///
/// let loss = reference::row_f64(&[40.0, 0.0], 0).loss; // ln(1 + e^-40)
/// assert!(reference::ulp_error_f64((-40f64).exp().ln_1p(), loss) < 1.0);
/// ```
///
/// # Panics
/// If `target` is not a class.
pub fn row_f64(logits: &[f64], target: usize) -> RowF64 {
    float_env::scope(|| {
        let t = logits[target];
        let others = || logits.iter().enumerate().filter(|&(j, _)| j != target).map(|(_, &x)| x);
        let max = max(others());
        let loss = if t.is_nan() || t == f64::INFINITY || max.is_nan() || max == f64::INFINITY {
            Dd::new(f64::NAN)
        } else if max == f64::NEG_INFINITY {
            Dd::new(if t == f64::NEG_INFINITY { f64::NAN } else { 0.0 })
        } else if max - t == f64::INFINITY {
            Dd::new(max - t)
        } else if max <= t {
            exp_sum(others(), t).ln_1p()
        } else {
            Dd::sum(max, -t) + exp_sum(logits.iter().copied(), max).ln()
        };
        let mut argmax = 0;
        for (j, x) in logits.iter().enumerate() {
            if *x > logits[argmax] || (x.is_nan() && !logits[argmax].is_nan()) {
                argmax = j;
            }
        }
        RowF64 { loss: loss.into(), logsumexp: logsumexp_f64(logits), argmax }
    })
}

/// [`log_softmax`] of `f64`, to 68 bits; NaN for rows that have none.
pub fn log_softmax_f64(logits: &[f64]) -> Vec<Precise> {
    float_env::scope(|| {
        let max = max(logits.iter().copied());
        let Some(best) = logits.iter().position(|&x| x == max) else {
            return vec![Dd::new(f64::NAN).into(); logits.len()];
        };
        let loss = row_f64(logits, best).loss;
        let log_p = |&x: &f64| match x - max {
            // Of -inf and what is beyond the range of `f64`, and where the loss is NaN.
            apart if apart.is_infinite() || loss.hi.is_nan() => Dd::new(apart - loss.hi),
            _ => Dd::sum(x, -max) - Dd { hi: loss.hi, lo: loss.lo },
        };
        logits.iter().map(log_p).map(Precise::from).collect()
    })
}

/// [`softmax`] of `f64`, to 68 bits of numbers above 1e-290; NaN for rows that have none.
pub fn softmax_f64(logits: &[f64]) -> Vec<Precise> {
    float_env::scope(|| {
        let exp = |Precise { hi, lo }: Precise| {
            if hi == f64::NEG_INFINITY { Dd::ZERO } else { Dd { hi, lo }.exp() }
        };
        log_softmax_f64(logits).into_iter().map(exp).map(Precise::from).collect()
    })
}

/// [`ulp_error`] of `f64`: the distance of `got` from `exact`, in units of the last place of `exact`.
pub fn ulp_error_f64(got: f64, exact: Precise) -> f64 {
    float_env::scope(|| {
        if got.is_nan() || exact.hi.is_nan() {
            return if got.is_nan() && exact.hi.is_nan() { 0.0 } else { f64::INFINITY };
        }
        if got.is_infinite() || exact.hi.is_infinite() {
            return if got == exact.hi { 0.0 } else { f64::INFINITY };
        }
        let magnitude = exact.hi.abs();
        let unit = (magnitude.next_up() - magnitude).min(f64::MAX - f64::MAX.next_down());
        ((got - exact.hi) - exact.lo).abs() / unit
    })
}

/// `ln p[j]` of a row.
fn log_probs(logits: &[impl Copy + Into<f64>]) -> Vec<Dd> {
    let logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
    log_softmax_f64(&logits).into_iter().map(|Precise { hi, lo }| Dd { hi, lo }).collect()
}

/// `p[j]`, from its logarithm; 0 below 2^-1022.
fn prob(log_p: Dd) -> Dd {
    let p = if log_p.hi == f64::NEG_INFINITY { Dd::ZERO } else { log_p.exp() };
    if p.hi < f64::MIN_POSITIVE { Dd::ZERO } else { p }
}

/// The sum over the classes of what `f` makes of `ln p[j]` and `ln q[j]`; NaN if either row has no softmax.
fn sum_pairs(
    base: &[impl Copy + Into<f64>],
    other: &[impl Copy + Into<f64>],
    f: impl Fn(Dd, Dd) -> Dd,
) -> f64 {
    assert_eq!(base.len(), other.len(), "rows of one length");
    let (p, q) = (log_probs(base), log_probs(other));
    if p.is_empty() || p.iter().chain(&q).any(|x| x.hi.is_nan()) {
        return f64::NAN;
    }
    let mut sum = Dd::ZERO;
    for (&p, &q) in p.iter().zip(&q) {
        let term = f(p, q);
        if term.hi.is_infinite() {
            return term.hi;
        }
        sum = sum + term;
    }
    sum.hi
}

/// `KL(P||Q) = sum_j p[j] (ln p[j] - ln q[j])` of the softmax of two rows, to the last place but one of `f64`: for
/// [`Compare`](crate::Compare). 0 where `p` is 0, +inf where only `q` is.
///
/// ```
/// let kl = xent::reference::kl(&[0.0, 0.0], &[3f64.ln(), 0.0]);
/// assert!((kl - 0.5 * (4f64 / 3.0).ln()).abs() < 1e-16);
/// ```
///
/// # Panics
/// If the rows are not of one length.
pub fn kl(base: &[impl Copy + Into<f64>], other: &[impl Copy + Into<f64>]) -> f64 {
    float_env::scope(|| {
        sum_pairs(base, other, |log_p, log_q| {
            let p = prob(log_p);
            if p.hi == 0.0 {
                Dd::ZERO
            } else if log_q.hi == f64::NEG_INFINITY {
                Dd::new(f64::INFINITY)
            } else {
                p * (log_p - log_q)
            }
        })
    })
}

/// The Jensen-Shannon divergence `beta KL(P||M) + (1 - beta) KL(Q||M)` with `M = beta P + (1 - beta) Q`; as
/// [`Compare::beta`](crate::Compare::beta) says at 0 and 1.
///
/// ```
/// let nothing_in_common = xent::reference::jsd(&[0.0, f64::NEG_INFINITY], &[f64::NEG_INFINITY, 0.0], 0.5);
/// assert_eq!(nothing_in_common, 2f64.ln());
/// ```
///
/// # Panics
/// As [`kl`].
pub fn jsd(base: &[impl Copy + Into<f64>], other: &[impl Copy + Into<f64>], beta: f64) -> f64 {
    float_env::scope(|| {
        if beta == 0.0 {
            return kl(base, other);
        }
        if beta == 1.0 {
            return kl(other, base);
        }
        sum_pairs(base, other, |log_p, log_q| {
            let (p, q) = (prob(log_p), prob(log_q));
            let rest = Dd::sum(1.0, -beta);
            let m = p * beta + q * rest;
            // Nothing beside the others, and beyond the range of the logarithm.
            if m.hi < 1e-290 {
                return Dd::ZERO;
            }
            let log_m = m.ln();
            let part = |p: Dd, log_p: Dd| if p.hi == 0.0 { p } else { p * (log_p - log_m) };
            part(p, log_p) * beta + part(q, log_q) * rest
        })
    })
}

/// The total variation `1/2 sum_j |p[j] - q[j]|`.
///
/// ```
/// assert!((xent::reference::total_variation(&[0.0, 0.0], &[3f64.ln(), 0.0]) - 0.25).abs() < 1e-16);
/// ```
///
/// # Panics
/// As [`kl`].
pub fn total_variation(base: &[impl Copy + Into<f64>], other: &[impl Copy + Into<f64>]) -> f64 {
    float_env::scope(|| {
        0.5 * sum_pairs(base, other, |log_p, log_q| {
            let d = prob(log_p) - prob(log_q);
            if d.hi < 0.0 { -d } else { d }
        })
    })
}
