//! Gradients of the loss by the logits.
#![forbid(unsafe_code)]

use crate::api::cross_entropy::{Call, CrossEntropy, RowOutputs};
use crate::api::evaluation::Evaluation;
use crate::data::error::Error;
use crate::data::floats::Floats;
use crate::data::logits::{Logits, LogitsMut};
use crate::data::saved::LogSumExp;
use crate::data::targets::Targets;
use crate::dispatch::element::Element;
use crate::kernel::outputs::RowSlices;
use crate::kernel::pass::{GradientRows, Store, UpstreamRows};

/// The derivative of what is trained by the loss: what the gradient is multiplied by.
///
/// Where it is 0 nothing that is trained depends on the row: the gradient is 0, exactly, whatever the logits are,
/// NaN too.
///
/// ```
/// use xent::Upstream;
///
/// let of_a_scalar: Upstream = 0.5.into(); // of the reduced loss
/// let of_each_row = Upstream::rows(&[1.0_f32, 0.0, 2.0]); // of each row's, before the reduction
/// # let _ = (of_a_scalar, of_each_row);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a>(UpstreamRows<'a>);

impl<'a> Upstream<'a> {
    /// One per row, in any precision. With [`Reduction::Sum`](crate::Reduction::Sum) these are the
    /// derivatives by the unreduced losses; a mean divides by its count as well. The one of an ignored
    /// row does not matter.
    pub fn rows(each: impl Into<Floats<'a>>) -> Self {
        Upstream(UpstreamRows::Each(each.into()))
    }
}

impl Default for Upstream<'_> {
    /// 1
    fn default() -> Self {
        1.0.into()
    }
}

impl From<f64> for Upstream<'_> {
    fn from(all: f64) -> Self {
        Upstream(UpstreamRows::All(all))
    }
}

/// Where a gradient goes, and how.
///
/// The gradient of the loss by the logit `x[j]` of a row with target `t` is, with `p` the softmax of the
/// transformed logits, `w` the class weights, `W` their sum, `e` the smoothing, `D` what the reduction divides
/// by, `n` the sum of the token weights of the kept rows for a mean (their number without) and else `D`, and `up` the upstream gradient times the token
/// weight of the row,
///
/// ```text
/// g[j] = { up / D * [ (1 - e) w[t] (p[j] - [j = t]) + e / V (W p[j] - w[j]) ]
///        + up / n * 2 z_loss lse p[j] }  *  (1 - (cap(u) / c)^2) * scale / temperature
/// ```
///
/// and for probability targets `q`, with `v[j] = w[j] ((1 - e) q[j] + e / V)`, the first line is
/// `up / D * (sum(v) p[j] - v[j])`.
///
/// ```
/// use xent::{CrossEntropy, Gradient, Logits, LogitsMut, RowOutputs};
///
/// let x = [1.0_f32, 2.0, 3.0];
/// let mut g = [0.0; 3];
/// let gradient = Gradient::new(LogitsMut::new(&mut g, 1, 3)?).upstream(2.0);
/// let logits = Logits::new(&x, 1, 3)?;
/// let loss = CrossEntropy::new()
///     .forward_backward(logits, &[0i64], gradient, RowOutputs::new())?
///     .loss();
/// assert!((loss - 2.407606).abs() < 1e-6);
/// assert_eq!(g, [-1.8199389, 0.48945695, 1.3304819]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Debug)]
pub struct Gradient<'a, T = f32> {
    to: LogitsMut<'a, T>,
    upstream: Upstream<'a>,
    accumulate: bool,
}

impl<'a, T> Gradient<'a, T> {
    /// Into a matrix of the shape of the logits, whose contents are overwritten.
    pub fn new(to: LogitsMut<'a, T>) -> Self {
        Gradient { to, upstream: Upstream::default(), accumulate: false }
    }

    /// What the gradient is multiplied by; 1 if this is not called.
    pub fn upstream(mut self, upstream: impl Into<Upstream<'a>>) -> Self {
        self.upstream = upstream.into();
        self
    }

    /// Adds to what the matrix holds, instead of overwriting it. Ignored rows, and those whose upstream gradient is 0,
    /// stay as they are.
    pub fn accumulate(mut self) -> Self {
        self.accumulate = true;
        self
    }

    pub(crate) fn check(&self, logits: (usize, usize)) -> Result<(), Error> {
        check(&self.to, &self.upstream.0, logits)
    }

    pub(crate) fn rows(self) -> GradientRows<'a, T> {
        let bytes = self.to.rows().saturating_mul(self.to.vocab()).saturating_mul(size_of::<T>());
        let store = match self.accumulate {
            true => Store::Add,
            false if bytes >= STREAM => Store::Stream,
            false => Store::Plain,
        };
        GradientRows { to: self.to, upstream: self.upstream.0, store }
    }
}

impl<T> GradientRows<'_, T> {
    /// That it goes with logits of that shape.
    pub(crate) fn check(&self, logits: (usize, usize)) -> Result<(), Error> {
        check(&self.to, &self.upstream, logits)
    }
}

fn check<T>(
    to: &LogitsMut<'_, T>,
    upstream: &UpstreamRows<'_>,
    logits: (usize, usize),
) -> Result<(), Error> {
    let gradient = (to.rows(), to.vocab());
    if gradient != logits {
        return Err(Error::GradientShape { gradient, logits });
    }
    match upstream {
        UpstreamRows::Each(each) => Error::check_input("upstream gradients", each.len(), logits.0),
        UpstreamRows::All(_) => Ok(()),
    }
}

/// Bytes from which a gradient is written past the caches: what comes next would not find it there.
/// `STREAM` of `bindings/candle/src/op.rs` is the same number.
const STREAM: usize = 32 << 20;

impl CrossEntropy<'_> {
    /// Loss and gradient in one call, for one read of the logits from memory and one write of the gradient:
    /// each row is read a second time while it is in the cache.
    ///
    /// The gradient of ignored rows is exactly 0, and their logits are not read; it is exactly 0 as well where the
    /// upstream gradient is 0, whatever else is NaN or infinite. That of other rows with a NaN, +inf
    /// or nothing but -inf is NaN. Where the target is masked (-inf) it is `p - 1` at the target, as in
    /// PyTorch. An infinite factor makes infinities and NaN: of the upstream gradient, or where a mean has weights that
    /// sum to 0 and [`EmptyMean`](crate::EmptyMean) does not make it 0. Allocates 48 bytes per row, nothing per class.
    ///
    /// # Accuracy
    /// `tests/gradient.rs` holds every backend to these bounds; the bits are the same on all with fused
    /// multiply-add.
    /// - Plain loss: 2 ULP, or 2.5 without fused multiply-add; what is below `2^-125` may be 0.
    /// - Class weights, z-loss, smoothing and probability targets: 2.5 ULP of the larger of the two terms that
    ///   are subtracted, or 3 without fused multiply-add.
    /// - Scale, softcap `c` and temperature round logits: 7 ULP of the larger term times
    ///   `1 + max |z| + |scale x / c|`.
    /// - Without z-loss and softcap a row sums to 0, within `3 2^-24` of the sum of its larger terms.
    /// - Of `f64` logits the same number of ULP of `f64`, and a few more at the target of a class id. What is
    ///   accumulated is rounded once more.
    /// - What is subtracted is multiplied by `upstream * e / V`, or `upstream` for probability targets, as one
    ///   number of the type: beyond its range of normal numbers these bounds do not hold.
    ///
    /// An upstream gradient times a power of two is the gradient times that power, bit for bit, as long as
    /// no class is so improbable that its gradient is cut to 0.
    ///
    /// # Errors
    /// As [`CrossEntropy::evaluate`], and [`Error::GradientShape`] and [`Error::InputLength`] for a gradient
    /// or upstream gradients that do not go with the logits. On error nothing was written.
    pub fn forward_backward<'a, T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        gradient: Gradient<'_, T>,
        outputs: RowOutputs<'_, T::Real>,
    ) -> Result<Evaluation, Error> {
        let gradient = Some(gradient.rows());
        let call = Call::new(Some(logits), targets.into(), RowSlices::default(), gradient);
        self.evaluate_call(call, outputs)
    }

    /// As [`CrossEntropy::forward_backward`], with the gradient in place of the logits.
    ///
    /// ```
    /// use xent::{CrossEntropy, LogitsMut, RowOutputs};
    ///
    /// let mut x = [1.0_f32, 2.0, 3.0];
    /// let logits = LogitsMut::new(&mut x, 1, 3)?;
    /// CrossEntropy::new().forward_backward_in_place(logits, &[0i64], 1.0, RowOutputs::new())?;
    /// assert_eq!(x, [-0.90996945, 0.24472848, 0.66524094]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CrossEntropy::forward_backward`]. On error the logits are as they were.
    pub fn forward_backward_in_place<'a, 'u, T: Element>(
        &self,
        logits: LogitsMut<'_, T>,
        targets: impl Into<Targets<'a>>,
        upstream: impl Into<Upstream<'u>>,
        outputs: RowOutputs<'_, T::Real>,
    ) -> Result<Evaluation, Error> {
        let gradient = in_place(logits, upstream.into());
        let call = Call::new(None, targets.into(), RowSlices::default(), gradient);
        self.evaluate_call(call, outputs)
    }

    /// The gradient alone, from what an earlier pass found out about each row
    /// ([`RowOutputs::saved`]) with the same options, logits and targets.
    ///
    /// ```
    /// use xent::{CrossEntropy, Gradient, Logits, LogitsMut, RowOutputs, LogSumExp};
    ///
    /// let x = [1.0_f32, 2.0, 3.0];
    /// let (logits, ce) = (Logits::new(&x, 1, 3)?, CrossEntropy::new());
    /// let mut saved = [LogSumExp::default()];
    /// let loss = ce.evaluate(logits, &[0i64], RowOutputs::new().saved(&mut saved))?.loss();
    /// // ... what is trained depends on the loss; its derivative comes back:
    /// let mut g = [0.0; 3];
    /// let gradient = Gradient::new(LogitsMut::new(&mut g, 1, 3)?).upstream(0.5);
    /// ce.backward(logits, &[0i64], &saved, gradient)?;
    /// assert_eq!(g, [-0.45498472, 0.12236424, 0.33262047]);
    /// # assert!(loss > 2.4);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Accuracy
    /// As [`CrossEntropy::forward_backward`], but for a confident target, whose gradient `p - 1` is off by
    /// up to `2^-47` times the logsumexp or 1, whichever is larger, and but for rows whose logsumexp is
    /// above `2^24`, whose probabilities are off by up to 6 ULP: 8 bytes hold no more.
    ///
    /// # Errors
    /// As [`CrossEntropy::forward_backward`], and [`Error::InputLength`] unless there is one of `saved` per
    /// row.
    pub fn backward<'a, T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        saved: &[LogSumExp<T::Real>],
        gradient: Gradient<'_, T>,
    ) -> Result<(), Error> {
        let gradient = Some(gradient.rows());
        let call = Call::new(Some(logits), targets.into(), RowSlices::default(), gradient);
        self.run(Call { saved: Some(saved), ..call }, false)
    }

    /// As [`CrossEntropy::backward`], with the gradient in place of the logits.
    ///
    /// # Errors
    /// As [`CrossEntropy::backward`]. On error the logits are as they were.
    pub fn backward_in_place<'a, 'u, T: Element>(
        &self,
        logits: LogitsMut<'_, T>,
        targets: impl Into<Targets<'a>>,
        saved: &[LogSumExp<T::Real>],
        upstream: impl Into<Upstream<'u>>,
    ) -> Result<(), Error> {
        let gradient = in_place(logits, upstream.into());
        let call = Call::new(None, targets.into(), RowSlices::default(), gradient);
        self.run(Call { saved: Some(saved), ..call }, false)
    }
}

pub(crate) fn in_place<'a, T>(
    to: LogitsMut<'a, T>,
    upstream: Upstream<'a>,
) -> Option<GradientRows<'a, T>> {
    Some(GradientRows { to, upstream: upstream.0, store: Store::Plain })
}
