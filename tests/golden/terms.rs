//! What losses and gradients are made of, in `f64`: it says in which units errors are to be measured.
//!
//! With `v[j] = w[j] ((1 - e) q[j] + e / V)`, where `q` is one-hot for an index target, the loss of a row is
//! `-sum(v ln p)`, and its gradient `up / D (sum(v) p - v)`.

use super::number::{FLOOR, Number, ulp};

/// What a reference that is the probability `p` may be off by: it is computed from a logarithm, whose error is
/// relative to its own size and then relative to `p`. So small probabilities are checked to all their digits.
/// Half as much for the logarithm would be too little for `f64`.
pub(crate) fn probability_slack(p: f64) -> f64 {
    if p == 0.0 { 0.0 } else { FLOOR * p * (1.0 - p.ln() / 2.0) }
}

/// The terms of one row.
pub(crate) struct Terms {
    /// Log-probabilities of the classes.
    log_p: Vec<f64>,
    v: Vec<f64>,
    v_sum: f64,
    /// That of the sizes.
    v_size: f64,
    /// Neither smoothing nor probability targets: no class but the target has a `v`.
    one_hot: bool,
}

impl Terms {
    pub(crate) fn new<T: Number>(logits: &[T], v: Vec<f64>, one_hot: bool) -> Self {
        Terms {
            log_p: Self::log_softmax(logits),
            v_sum: v.iter().sum(),
            v_size: v.iter().map(|v| v.abs()).sum(),
            v,
            one_hot,
        }
    }

    pub(crate) fn log_softmax<T: Number>(logits: &[T]) -> Vec<f64> {
        let x = || logits.iter().map(|&x| x.into());
        let max: f64 = x().fold(f64::NEG_INFINITY, f64::max);
        // Of differences: the logsumexp of large logits has no digits left for probabilities.
        let ln_sum = x().map(|x: f64| (x - max).exp()).sum::<f64>().ln();
        x().map(|x: f64| (x - max) - ln_sum).collect()
    }

    /// Whether 0 is multiplied by infinity somewhere: NaN, or nothing.
    pub(crate) fn has_zero_times_infinity(&self) -> bool {
        self.v.iter().zip(&self.log_p).any(|(&v, &log_p)| v == 0.0 && log_p == f64::NEG_INFINITY)
    }

    pub(crate) fn p(&self, class: usize) -> f64 {
        self.log_p[class].exp()
    }

    fn products(&self) -> impl Iterator<Item = f64> {
        let terms = self.v.iter().zip(&self.log_p);
        terms.filter(|&(&v, _)| v != 0.0).map(|(v, log_p)| -v * log_p)
    }

    /// The loss, where 0 times infinity is 0.
    pub(crate) fn loss(&self) -> f64 {
        self.products().sum()
    }

    /// The unit of the loss, and the slack of the reference. Its own last place; with weights of both signs,
    /// where terms cancel, that of what they would be without.
    pub(crate) fn loss_units<T: Number>(&self, exact: f64) -> (f64, f64) {
        let size = match self.v.iter().any(|&v| v < 0.0) {
            true if exact.is_finite() => {
                self.products().map(f64::abs).sum::<f64>().max(exact.abs())
            }
            _ => exact.abs(),
        };
        (ulp::<T>(size), FLOOR * size.max(self.v_size.max(1.0)))
    }

    /// The unit of the gradient by the logit of a class, and the slack of its reference; `factor` is `up / D`.
    ///
    /// The gradient is `factor (sum(v) p - v)`, and the unit the last place of the larger of the two: what is
    /// subtracted was rounded, and so was what is left. Not so for one-hot targets: there the kernels do not
    /// subtract, and the unit is the last place of the gradient itself.
    ///
    /// The reference is computed from these two, too.
    pub(crate) fn gradient_units<T: Number>(
        &self,
        class: usize,
        exact: f64,
        factor: f64,
    ) -> (f64, f64) {
        let p = self.p(class);
        let (a, b) = ((factor * self.v_sum * p).abs(), (factor * self.v[class]).abs());
        let size = if self.one_hot { exact.abs() } else { exact.abs().max(a).max(b) };
        (ulp::<T>(size), (factor * self.v_size).abs() * probability_slack(p) + FLOOR * b)
    }

    /// What the two numbers of saved row statistics may add to the error at the target: there, unlike elsewhere,
    /// the gradient is far smaller than `p`.
    pub(crate) fn saved_slack<T: Number>(&self, class: usize, lse: f64, factor: f64) -> f64 {
        (factor * self.v[class]).abs() * T::SAVED * lse.abs().max(1.0)
    }
}
