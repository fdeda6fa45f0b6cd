//! The loss: options, validation, reduction.
#![forbid(unsafe_code)]

use crate::api::evaluation::{Evaluation, Reduced};
use crate::api::reduction::{EmptyMean, Reduction, Weight};
use crate::data::error;
use crate::data::error::Error;
use crate::data::floats::Floats;
use crate::data::logits::Logits;
use crate::data::masks::AllowedTokens;
use crate::data::saved::LogSumExp;
use crate::data::targets::{AnyTargets, Ignored, TargetRows, Targets};
use crate::dispatch::element::Element;
use crate::dispatch::element::Real;
use crate::kernel::outputs::RowSlices;
use crate::kernel::pass::{Config, GradientRows, Store};
use crate::kernel::row::Row;
use crate::kernel::transform::{Softcap, Transform};
use crate::kernel::{forward, train};
use crate::rows::panels;
use crate::simd::backend::Backend;
use crate::simd::float_env;

/// Cross-entropy of logits and targets: class ids, or probabilities.
///
/// The loss of a row with logits `x` and target `t` is the negative log-probability of the target
/// under the softmax of the row,
///
/// ```text
/// loss = -ln(e^x[t] / sum_j e^x[j]) = ln(1 + sum_(j != t) e^(x[j] - x[t]))
/// ```
///
/// Each row is read from memory once, and by one thread; rows are spread over the caller's rayon
/// pool. One small row is computed on the calling thread. (Where classes are not next to each other, see
/// [`Logits::classes_first`].)
///
/// # Accuracy
/// Row losses of class ids are the correctly rounded `f32` or the next to it
/// ([`LOSS_MAX_ULP`](crate::LOSS_MAX_ULP)), also where the target has nearly all the probability and the
/// loss is as small as 1e-30: `tests/accuracy.rs`. Label smoothing and probability targets add up to one
/// more ULP; scale, softcap and temperature round each logit, and a loss cannot be better than these
/// (`tests/gradient.rs`). Of `f64` logits, losses are within 2 ULP of `f64` (`tests/double.rs`). Sums are over
/// the losses before they are rounded, in `f64` and in row order.
///
/// The bits of a result do not depend on the number of threads or rows, on the position of a row, on
/// alignment or stride, nor on the backend as long as it has fused multiply-add:
/// `tests/equivalence.rs`.
/// What the calling thread has set its floating-point environment to (rounding, flush-to-zero,
/// signals) changes no bit either, and is as it was when a call returns: `tests/float_env.rs`. So it
/// is with everything else in this crate.
///
/// # Special values
/// - -inf is a mask: probability 0, exactly. As the target's logit it makes the loss +inf.
/// - A row with a NaN or +inf, or with nothing but -inf, has loss NaN; other rows are not affected. It is never
///   correct, whatever its argmax is, and [`Evaluation::nan_rows`] says how many there are.
/// - Rows whose target is `ignore_index`, or one of `ignore_indices`, have loss 0, log-probability
///   0, logsumexp 0, argmax -1. Nothing is computed from them; they are never read, unless their
///   classes lie apart.
///
/// # Example
/// ```
/// use xent::{CrossEntropy, Logits};
///
/// let logits = [1.0_f32, 2.0, 3.0, 0.5, -1.0, 2.0];
/// let logits = Logits::new(&logits, 2, 3)?;
/// let mean = CrossEntropy::new().forward(logits, &[0i64, 1])?;
/// assert!((mean - 2.8244586).abs() < 1e-6);
///
/// let mut losses = [0.0; 2];
/// CrossEntropy::new().forward_into(logits, &[0i64, 1], &mut losses)?;
/// assert_eq!(losses, [2.407606, 3.2413113]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy<'a> {
    pub(crate) ignored: Ignored<'a>,
    pub(crate) reduction: Reduction,
    pub(crate) empty_mean: EmptyMean,
    backend: Option<Backend>,
    label_smoothing: f64,
    z_loss: f64,
    logit_scale: f64,
    temperature: f64,
    softcap: Option<Softcap>,
    pub(crate) class_weights: Option<Floats<'a>>,
    /// Of the class weights, so that it need not be taken in every call.
    weight_sum: f64,
    pub(crate) token_weights: Option<Floats<'a>>,
    allowed_tokens: Option<AllowedTokens<'a>>,
}

impl Default for CrossEntropy<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The results per row that a caller wants, in slices of its own. What is not asked for is not
/// computed.
///
/// ```
/// use xent::{CrossEntropy, Logits, RowOutputs};
///
/// let logits = Logits::new(&[1.0_f32, 2.0, 3.0, 0.5, -1.0, 2.0], 2, 3)?;
/// let (mut logprobs, mut argmax) = ([0.0; 2], [0; 2]);
/// let wanted = RowOutputs::new().logprobs(&mut logprobs).argmax(&mut argmax);
/// let evaluation = CrossEntropy::new().evaluate(logits, &[2i64, 1], wanted)?;
/// assert_eq!(argmax, [2, 2]);
/// assert_eq!(logprobs, [-0.40760598, -3.2413113]);
/// assert_eq!(evaluation.accuracy(), Some(0.5));
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Debug)]
pub struct RowOutputs<'a, R = f32> {
    pub(crate) slices: RowSlices<'a, R>,
    pub(crate) count_correct: bool,
}

impl<R> Default for RowOutputs<'_, R> {
    fn default() -> Self {
        RowOutputs { slices: RowSlices::default(), count_correct: false }
    }
}

impl<'a, R> RowOutputs<'a, R> {
    /// Nothing per row.
    pub fn new() -> Self {
        Self::default()
    }

    /// The loss of each row, with all options and its z-loss; 0 for ignored ones.
    pub fn losses(mut self, out: &'a mut [R]) -> Self {
        self.slices.losses = Some(out);
        self
    }

    /// The log-probability of each target, whatever the weights and the smoothing; for probability
    /// targets the negative of their cross-entropy.
    pub fn logprobs(mut self, out: &'a mut [R]) -> Self {
        self.slices.logprobs = Some(out);
        self
    }

    /// `ln(sum_j e^z[j])` of each row: -inf for nothing but -inf, +inf if there is one, NaN if there
    /// is one. 0 for ignored rows. Within 1 ULP of the larger of its own magnitude and 1.
    pub fn logsumexp(mut self, out: &'a mut [R]) -> Self {
        self.slices.logsumexp = Some(out);
        self
    }

    /// The z-loss of each row, which is part of its loss; 0 without [`CrossEntropy::z_loss`].
    pub fn z_losses(mut self, out: &'a mut [R]) -> Self {
        self.slices.z_losses = Some(out);
        self
    }

    /// What [`CrossEntropy::backward`] needs to know about each row.
    pub fn saved(mut self, out: &'a mut [LogSumExp<R>]) -> Self {
        self.slices.saved = Some(out);
        self
    }

    /// The first class with the largest logit, or with a NaN if there is one, as in PyTorch; -1 for
    /// ignored rows. Implies [`RowOutputs::count_correct`].
    pub fn argmax(mut self, out: &'a mut [i64]) -> Self {
        self.slices.argmax = Some(out);
        self.count_correct = true;
        self
    }

    /// Counts the rows whose argmax is the target: [`Evaluation::correct`]. For probability targets that
    /// is the first class with the largest probability. Rows whose log-probability is NaN have an argmax, and are
    /// never correct.
    ///
    /// Costs one more maximum per vector, from the first-level cache.
    pub fn count_correct(mut self) -> Self {
        self.count_correct = true;
        self
    }
}

impl<'w> CrossEntropy<'w> {
    /// The defaults of PyTorch: `ignore_index` -100, mean over the kept rows, NaN if there are none; no
    /// weights, no smoothing, no z-loss, logits as they are.
    pub const fn new() -> Self {
        CrossEntropy {
            ignored: Ignored::one(-100),
            reduction: Reduction::Mean,
            empty_mean: EmptyMean::Nan,
            backend: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            logit_scale: 1.0,
            temperature: 1.0,
            softcap: None,
            class_weights: None,
            weight_sum: 0.0,
            token_weights: None,
            allowed_tokens: None,
        }
    }

    /// The target of rows to leave out, the only one: see [`CrossEntropy::ignore_indices`] for
    /// several. It is compared before targets are checked for range, and may itself be a class.
    /// With probability targets there is nothing to compare: a class is then an error
    /// ([`Error::IgnoreIndexWithProbs`]), as in PyTorch, and a negative number without effect.
    pub const fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignored = Ignored::one(ignore_index);
        self
    }

    /// The targets of rows to leave out: those of padding and of the end of the text, say. They
    /// replace what was ignored before, -100 included. What [`CrossEntropy::ignore_index`] says of
    /// one id holds for each of them. An empty list is [`CrossEntropy::no_ignore_index`]. Order and
    /// repetition do not matter.
    ///
    /// It should be a short list: a target is compared with one id after the other.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// const PAD: i64 = 0;
    /// const END: i64 = 2;
    /// let x = [0.5_f32, -1.0, 2.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 4.0, 0.0, 1.0];
    /// let logits = Logits::new(&x, 4, 3)?;
    /// let ce = CrossEntropy::new().ignore_indices(&[PAD, END, -100]);
    /// let loss = ce.forward(logits, &[1, END, PAD, -100])?;
    /// assert_eq!(loss, CrossEntropy::new().forward(logits, &[1i64, -100, -100, -100])?);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn ignore_indices(mut self, ids: &'w [i64]) -> Self {
        self.ignored = Ignored::all(ids);
        self
    }

    /// No row is left out: every target has to be a class.
    pub const fn no_ignore_index(mut self) -> Self {
        self.ignored = Ignored::NONE;
        self
    }

    /// How row losses become one number.
    pub const fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// What the mean of no rows is, or of rows that weigh nothing.
    pub const fn empty_mean(mut self, empty_mean: EmptyMean) -> Self {
        self.empty_mean = empty_mean;
        self
    }

    /// Moves the share `e` of each target's probability to all classes alike:
    ///
    /// ```text
    /// loss = (1 - e) w[t] (-ln p[t]) + e / V * sum_c w[c] (-ln p[c])
    /// ```
    ///
    /// For probability targets `t` becomes `(1 - e) t + e / V`. As in PyTorch; but `e` below 0 or NaN is
    /// an error too ([`Error::Option`]), not only above 1. A masked class makes the loss infinite, as its
    /// log-probability is, and its gradient `-e / V` times its weight; with a weight of 0 the loss is NaN, as 0
    /// times infinity is.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let logits = Logits::new(&[1.0, 2.0, 3.0], 1, 3)?;
    /// let loss = CrossEntropy::new().label_smoothing(0.1).forward(logits, &[0i64])?;
    /// assert!((loss - 2.307605964).abs() < 1e-7);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn label_smoothing(mut self, e: f64) -> Self {
        self.label_smoothing = e;
        self
    }

    /// A weight per class, of any sign. A row's loss is multiplied by that of its target; the mean is
    /// divided by the sum of these. For probability targets each term has the weight of its class.
    ///
    /// In the precision of the results ([`Element::Real`]).
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, Reduction};
    ///
    /// let logits = Logits::new(&[0.0_f32; 4], 2, 2)?;
    /// let weighted = CrossEntropy::new().class_weights(&[1.0_f32, 3.0]);
    /// assert_eq!(weighted.forward(logits, &[0i64, 1])?, 2f64.ln());
    /// assert_eq!(weighted.reduction(Reduction::Sum).forward(logits, &[0i64, 1])?, 4.0 * 2f64.ln());
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn class_weights(mut self, weights: impl Into<Floats<'w>>) -> Self {
        let weights = weights.into();
        self.class_weights = Some(weights);
        self.weight_sum = weights.sum();
        self
    }

    /// A weight per row, of any sign and in any precision: its loss, its z-loss and what it counts in a
    /// mean are multiplied by it. 0 does not hide a loss that is infinite or NaN: that is what `ignore_index` is for.
    /// If all are 0 the mean is that of nothing: see [`EmptyMean`].
    ///
    /// Rows whose weight is 0 do not count in [`Evaluation::perplexity`], [`Evaluation::accuracy`] and all other
    /// statistics of log-probabilities, whatever is in them, so a mask of 1 and 0 may be given as it is. Those with any
    /// other weight each count once there.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let logits = Logits::new(&[0.0, 0.0, 9.0, 0.0], 2, 2)?;
    /// let half_of_the_second = CrossEntropy::new().token_weights(&[1.0_f32, 0.5]);
    /// let loss = half_of_the_second.forward(logits, &[0i64, 1])?;
    /// assert!((loss - (2f64.ln() + 0.5 * 9.0001234) / 1.5).abs() < 1e-7);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn token_weights(mut self, weights: impl Into<Floats<'w>>) -> Self {
        self.token_weights = Some(weights.into());
        self
    }

    /// Adds `factor * lse^2` to the loss of each kept row, with `lse` its logsumexp: keeps logits from
    /// drifting (the auxiliary loss of PaLM, Liger's `lse_square_scale`). Not multiplied by class weights;
    /// a mean divides it by the number of kept rows (the sum of their token weights).
    ///
    /// Part of all losses, and reported by itself: [`Evaluation::z_loss`], [`RowOutputs::z_losses`].
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, RowOutputs};
    ///
    /// let logits = Logits::new(&[3.0, 3.0], 1, 2)?;
    /// let e = CrossEntropy::new().z_loss(0.5).evaluate(logits, &[1i64], RowOutputs::new())?;
    /// let lse = 3.0 + 2f64.ln();
    /// assert!((e.z_loss() - 0.5 * lse * lse).abs() < 1e-6);
    /// assert_eq!(e.loss(), 2f64.ln() + e.z_loss());
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn z_loss(mut self, factor: f64) -> Self {
        self.z_loss = factor;
        self
    }

    /// Logits are multiplied by this first. Finite and above 0.
    ///
    /// `z = cap(scale * x) / temperature`, each step rounded to the precision of the results.
    pub const fn logit_scale(mut self, scale: f64) -> Self {
        self.logit_scale = scale;
        self
    }

    /// Logits are divided by this last. Finite and above 0. A finite logit that a scale takes out of range
    /// makes its row NaN, as +inf does. A temperature does not: where it would, logits are counted from the largest, which
    /// then has all the probability. (Not those of shards; and what [`RowOutputs::saved`] has of such a row is infinite.)
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let (x, half) = ([1.0_f32, 3.0], [0.5_f32, 1.5]);
    /// let scaled = CrossEntropy::new().logit_scale(2.0).temperature(4.0);
    /// let loss = scaled.forward(Logits::new(&x, 1, 2)?, &[0i64])?;
    /// assert_eq!(loss, CrossEntropy::new().forward(Logits::new(&half, 1, 2)?, &[0i64])?);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Logits are bounded by `c tanh(x / c)`, as in Gemma 2. `c` has to be finite and above 0.
    ///
    /// A mask stays a mask: -inf stays -inf with probability and gradient 0, and +inf still makes its row
    /// NaN. [`CrossEntropy::softcap_of_all`] does what the formula says of them.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let ce = CrossEntropy::new().softcap(5.0);
    /// let masked = Logits::new(&[1.0_f32, 2.0, f32::NEG_INFINITY], 1, 3)?;
    /// assert!((ce.forward(masked, &[0i64])? - 1.2503195).abs() < 1e-6); // of two classes
    /// assert!((ce.softcap_of_all(5.0).forward(masked, &[0i64])? - 1.2510386).abs() < 1e-6);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn softcap(mut self, c: f64) -> Self {
        self.softcap = Some(Softcap { cap: c, keep_infinite: true });
        self
    }

    /// As [`CrossEntropy::softcap`], but -inf becomes `-c` and +inf becomes `c`: the composition of the
    /// two functions in other frameworks, where masks have to be applied after the cap.
    pub const fn softcap_of_all(mut self, c: f64) -> Self {
        self.softcap = Some(Softcap { cap: c, keep_infinite: false });
        self
    }

    /// Which classes may be, a bit for each class of each row. The others are as if their logits were -inf,
    /// whatever is in memory: probability 0, gradient 0 (of the plain loss), and loss +inf as a target. Also of a
    /// capped logit, with [`CrossEntropy::softcap_of_all`] too. As with any masked class, label smoothing or a
    /// probability target above 0 there make the loss infinite. A row without any allowed class has loss NaN,
    /// logsumexp -inf and argmax 0.
    ///
    /// ```
    /// use xent::{AllowedTokens, CrossEntropy, Logits};
    ///
    /// let logits = Logits::new(&[1.0_f32, 2.0, f32::NAN], 1, 3)?;
    /// let ce = CrossEntropy::new().allowed_tokens(AllowedTokens::new(&[0b011]));
    /// assert!((ce.forward(logits, &[1i64])? - 0.3132617).abs() < 1e-7); // of two classes
    /// assert_eq!(ce.forward(logits, &[2i64])?, f64::INFINITY);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn allowed_tokens(mut self, allowed: AllowedTokens<'w>) -> Self {
        self.allowed_tokens = Some(allowed);
        self
    }

    /// The instructions to use, instead of [`Backend::selected`]. Calls return
    /// [`Error::BackendUnavailable`] if this machine cannot run them.
    pub const fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    pub(crate) const fn allowed(&self) -> Option<AllowedTokens<'w>> {
        self.allowed_tokens
    }

    /// The same options, but for what they borrow: copies of it.
    pub(crate) const fn with_copies<'b>(
        &self,
        ignored: Ignored<'b>,
        class_weights: Option<Floats<'b>>,
        token_weights: Option<Floats<'b>>,
        allowed_tokens: Option<AllowedTokens<'b>>,
    ) -> CrossEntropy<'b> {
        CrossEntropy {
            ignored,
            reduction: self.reduction,
            empty_mean: self.empty_mean,
            backend: self.backend,
            label_smoothing: self.label_smoothing,
            z_loss: self.z_loss,
            logit_scale: self.logit_scale,
            temperature: self.temperature,
            softcap: self.softcap,
            class_weights,
            weight_sum: self.weight_sum,
            token_weights,
            allowed_tokens,
        }
    }

    /// The reduced loss.
    ///
    /// Allocates 48 bytes per row, so that the sum can be taken in row order.
    ///
    /// # Errors
    /// [`Error::TargetCount`], [`Error::TargetOutOfRange`], [`Error::Sequence`] and [`Error::Shift`] for shifted
    /// targets, [`Error::Count`], [`Error::Option`], [`Error::InputLength`] and [`Error::Precision`] for weights
    /// and probabilities, [`Error::InputLength`] and [`Error::Option`] for masks, [`Error::NoClasses`] and
    /// [`Error::IgnoreIndexWithProbs`] for probabilities, [`Error::Overflow`] if there are more rows than memory
    /// can hold results of, and the errors of [`Backend::selected`] and
    /// [`CrossEntropy::backend`].
    pub fn forward<'a, T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
    ) -> Result<f64, Error> {
        let call = Call::new(Some(logits), targets.into(), RowSlices::default(), None);
        self.with_rows(call, false, |rows| Reduced::new(rows).loss(self.reduction, self.empty_mean))
    }

    /// The loss of each row, unreduced, into `losses`; 0 for ignored rows. Does not allocate, except for
    /// [`Logits::classes_first`].
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let mut losses = [f32::NAN; 2];
    /// let logits = Logits::new(&[200.0_f32, 0.0, 0.0, 0.0], 2, 2)?;
    /// CrossEntropy::new().ignore_index(1).forward_into(logits, &[0i64, 1], &mut losses)?;
    /// assert_eq!(losses, [0.0; 2]); // e^-200 is below the smallest f32; the second row is ignored
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`], and [`Error::OutputLength`] unless `losses` has one element per
    /// row. On error `losses` is as it was.
    pub fn forward_into<'a, T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        losses: &mut [T::Real],
    ) -> Result<(), Error> {
        let out = RowSlices { losses: Some(losses), ..RowSlices::default() };
        self.run(Call::new(Some(logits), targets.into(), out, None), false)
    }

    /// Everything that the pass over the rows can tell: sums for loss, perplexity and accuracy, and
    /// the results per row that `outputs` asks for. Allocates 48 bytes per row.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, RowOutputs};
    ///
    /// let logits = Logits::new(&[2.0, 0.0, 0.0, 0.0, 3.0, 0.0], 2, 3)?;
    /// let all = RowOutputs::new().count_correct();
    /// let evaluation = CrossEntropy::new().evaluate(logits, &[0i64, 2], all)?;
    /// assert_eq!(evaluation.correct(), Some(1));
    /// println!("perplexity {:.2} +/- {:.2}", evaluation.perplexity(), evaluation.perplexity_stderr());
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`], and [`Error::OutputLength`] for an output without exactly one
    /// element per row. On error all outputs are as they were.
    pub fn evaluate<'a, T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        outputs: RowOutputs<'_, T::Real>,
    ) -> Result<Evaluation, Error> {
        let call = Call::new(Some(logits), targets.into(), RowSlices::default(), None);
        self.evaluate_call(call, outputs)
    }

    pub(crate) fn evaluate_call<T: Element>(
        &self,
        call: Call<'_, T>,
        outputs: RowOutputs<'_, T::Real>,
    ) -> Result<Evaluation, Error> {
        let RowOutputs { slices, count_correct } = outputs;
        self.with_rows(Call { out: slices, ..call }, count_correct, |rows| {
            Evaluation::new(rows, count_correct, self.reduction, self.empty_mean)
        })
    }

    /// Runs the kernel and hands what it found about each row to `f`.
    #[inline(always)]
    fn with_rows<T: Element, U>(
        &self,
        call: Call<'_, T>,
        argmax: bool,
        f: impl FnOnce(&[Row]) -> U,
    ) -> Result<U, Error> {
        // Checked before memory is asked for: the matrix may have any number of rows of no elements.
        call.targets.check_len(call.rows(), call.vocab())?;
        // The few rows of a decoding step need no allocation.
        let mut few = [Row::IGNORED; 4];
        let mut many;
        let rows = match few.get_mut(..call.rows()) {
            Some(few) => few,
            None => {
                let rows = call.rows();
                many = Vec::new();
                // Rows without targets of their own, sparse ones of none, may be more than memory.
                if many.try_reserve_exact(rows).is_err() {
                    return Err(Error::Overflow { rows, elements: call.vocab() });
                }
                many.resize(rows, Row::IGNORED);
                &mut many[..]
            }
        };
        let out = RowSlices { rows: Some(&mut *rows), ..call.out };
        self.run(Call { out, ..call }, argmax)?;
        Ok(float_env::scope(|| f(rows)))
    }

    /// Checks everything that can be wrong before anything is written, and runs the kernels.
    #[inline(always)]
    pub(crate) fn run<T: Element>(&self, call: Call<'_, T>, argmax: bool) -> Result<(), Error> {
        // A short row takes a fraction of a microsecond: what it does not need is out of its way.
        if T::HAS_FORWARD
            && float_env::scope(|| self.is_plain())
            && !call.out.wants_training()
            && call.gradient.is_none()
            && let (Some(logits), Targets::Ids(_) | Targets::Shifted(_)) =
                (call.logits, call.targets)
        {
            self.check_reduction()?;
            let kernels = Backend::kernels(self.backend)?;
            let (rows, vocab) = (logits.rows(), logits.vocab());
            let targets = match call.targets {
                Targets::Shifted(ids) => TargetRows::shifted(ids, self.ignored, rows, vocab)?,
                Targets::Ids(ids) => TargetRows::new(ids, self.ignored, rows, vocab)?,
                _ => unreachable!("matched above"),
            };
            call.out.check(rows)?;
            let job = forward::Job { logits, targets, out: call.out, argmax };
            panels::run(kernels, job, logits.columns(), None);
            return Ok(());
        }
        self.train(call, argmax)
    }

    #[inline(never)]
    fn train<T: Element>(&self, call: Call<'_, T>, argmax: bool) -> Result<(), Error> {
        let (rows, classes) = (call.rows(), call.vocab());
        self.check_reduction()?;
        float_env::scope(|| self.check_options(rows, classes))?;
        let kernels = Backend::kernels(self.backend)?;
        // From here on `vocab` may be more than there is of logits.
        let (first_class, vocab, targets) = match call.shard {
            None => (0, classes, call.targets),
            Some((first, vocab)) => (first, vocab, call.targets.ids_only()?),
        };
        let targets = AnyTargets::<T::Real>::new(targets, self.ignored, rows, vocab)?;
        call.out.check(rows)?;
        call.check_gradient()?;
        let allowed = match self.allowed_tokens {
            Some(allowed) => Some(allowed.rows(rows, classes)?),
            None => None,
        };
        let mut config = self.config::<T::Real>(vocab, first_class)?;
        config.argmax = argmax;
        if call.gradient.is_some() {
            let denominators = || self.denominators(&targets, config.weights, rows);
            config.denominators = float_env::scope(denominators);
        }
        let mut gradient = call.gradient;
        let columns = call.logits.and_then(|logits| logits.columns());
        let to = gradient.as_mut().and_then(|gradient| {
            let read = call.logits.is_none() || gradient.store == Store::Add;
            gradient.to.take_columns().map(|columns| panels::Output { columns, read })
        });
        let job = train::Job {
            config: &config,
            logits: call.logits,
            targets,
            token_weights: self.token_weights,
            allowed,
            saved: call.saved,
            out: call.out,
            gradient,
        };
        panels::run(kernels, job, columns, to);
        Ok(())
    }

    /// For a vocabulary of so many classes, for the forward pass.
    pub(crate) fn config<R: Real>(
        &self,
        vocab: usize,
        first_class: usize,
    ) -> Result<Config<'_, R>, Error> {
        let weights = match self.class_weights {
            Some(weights) => Some(R::of(weights).ok_or(Error::Precision {
                what: "class_weights",
                needed: R::PRECISION,
                given: weights.precision(),
            })?),
            None => None,
        };
        Ok(Config {
            transform: self.transform(),
            smoothing: self.label_smoothing,
            z_loss: self.z_loss,
            weights,
            // Exact in any floating-point environment: no vocabulary has 2^53 classes.
            weight_sum: if weights.is_some() { self.weight_sum } else { vocab as f64 },
            vocab,
            first_class,
            denominators: (1.0, 1.0),
            argmax: false,
        })
    }

    /// The numbers that processes which share the loss must have in common; not masks, and not the backend.
    pub(crate) fn common(&self) -> Vec<u64> {
        let (kind, over) = match self.reduction {
            Reduction::Sum => (0, 0.0),
            Reduction::Mean => (1, 0.0),
            Reduction::MeanOver(count) => (2, count),
        };
        let cap = self.softcap.map_or(0.0, |softcap| softcap.cap);
        let kept = self.softcap.is_some_and(|softcap| softcap.keep_infinite);
        let zero = self.empty_mean == EmptyMean::Zero;
        let ignored = self.ignored.sorted();
        let (first, more) = match &ignored[..] {
            [] => (0, &[][..]),
            [first, more @ ..] => (*first, more),
        };
        let flags = [kept, zero, !ignored.is_empty()];
        let flags = flags.iter().fold(kind, |bits, &flag| bits << 1 | u64::from(flag));
        let words = [
            // Words that follow are counted: no others can be taken for them.
            flags | (more.len() as u64) << 8,
            first as u64,
            over.to_bits(),
            self.label_smoothing.to_bits(),
            self.z_loss.to_bits(),
            self.logit_scale.to_bits(),
            self.temperature.to_bits(),
            cap.to_bits(),
            self.token_weights.map_or(0, |weights| weights.len() as u64 + 1),
        ];
        words.into_iter().chain(more.iter().map(|&id| id as u64)).collect()
    }

    /// Whether the loss is that of the forward kernel.
    #[inline]
    fn is_plain(&self) -> bool {
        self.label_smoothing == 0.0
            && self.z_loss == 0.0
            && self.class_weights.is_none()
            && self.token_weights.is_none()
            && self.allowed_tokens.is_none()
            && self.transform().is_identity()
    }

    #[inline]
    fn transform(&self) -> Transform<'static> {
        Transform {
            scale: self.logit_scale,
            temperature: self.temperature,
            origin: 0.0,
            softcap: self.softcap,
            allowed: None,
            bias: &[],
        }
    }

    /// What gradients are divided by. In row order, as the sums of the forward pass.
    fn denominators<R: Real>(
        &self,
        targets: &AnyTargets<'_, R>,
        weights: Option<&[R]>,
        rows: usize,
    ) -> (f64, f64) {
        let [mut weight, mut token_weight] = [Weight::default(); 2];
        if self.reduction == Reduction::Mean {
            for row in 0..rows {
                let w = self.token_weights.map_or(1.0, |weights| weights.get(row));
                if let Some(class_weight) = targets.weight(row, weights) {
                    weight.add(w * class_weight);
                    token_weight.add(w);
                }
            }
        }
        let divisor = |weight| self.reduction.denominator(weight, self.empty_mean);
        (divisor(weight), divisor(token_weight))
    }

    #[inline]
    pub(crate) fn check_reduction(&self) -> Result<(), Error> {
        match self.reduction {
            Reduction::MeanOver(count) => float_env::scope(|| match count {
                _ if count > 0.0 && count.is_finite() => Ok(()),
                _ => Err(Error::Count { count: error::number(count) }),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn check_options(&self, rows: usize, vocab: usize) -> Result<(), Error> {
        let number = |option, value: f64, allowed: bool, range| {
            if allowed {
                Ok(())
            } else {
                Err(Error::Option { option, value: error::number(value), range })
            }
        };
        let e = self.label_smoothing;
        number("label_smoothing", e, (0.0..=1.0).contains(&e), "between 0 and 1")?;
        let z = self.z_loss;
        number("z_loss", z, z >= 0.0 && z.is_finite(), "finite and not negative")?;
        Error::check_positive("logit_scale", self.logit_scale)?;
        Error::check_positive("temperature", self.temperature)?;
        if let Some(softcap) = self.softcap {
            Error::check_positive("softcap", softcap.cap)?;
        }
        if let Some(weights) = self.class_weights {
            Error::check_input("class_weights", weights.len(), vocab)?;
        }
        match self.token_weights {
            Some(weights) => Error::check_input("token_weights", weights.len(), rows),
            None => Ok(()),
        }
    }
}

/// The arguments of one call.
pub(crate) struct Call<'a, T: Element> {
    /// `None`: they are where the gradient goes.
    pub(crate) logits: Option<Logits<'a, T>>,
    pub(crate) targets: Targets<'a>,
    pub(crate) out: RowSlices<'a, T::Real>,
    pub(crate) saved: Option<&'a [LogSumExp<T::Real>]>,
    pub(crate) gradient: Option<GradientRows<'a, T>>,
    /// The first class of these, and how many there are in the whole vocabulary, if they are not all.
    pub(crate) shard: Option<(usize, usize)>,
}

impl<'a, T: Element> Call<'a, T> {
    #[inline(always)]
    pub(crate) fn new(
        logits: Option<Logits<'a, T>>,
        targets: Targets<'a>,
        out: RowSlices<'a, T::Real>,
        gradient: Option<GradientRows<'a, T>>,
    ) -> Self {
        Call { logits, targets, out, saved: None, gradient, shard: None }
    }

    fn shape(&self) -> (usize, usize) {
        match (&self.logits, &self.gradient) {
            (Some(logits), _) => (logits.rows(), logits.vocab()),
            (None, Some(gradient)) => (gradient.to.rows(), gradient.to.vocab()),
            (None, None) => (0, 0),
        }
    }

    fn rows(&self) -> usize {
        self.shape().0
    }

    pub(crate) fn vocab(&self) -> usize {
        self.shape().1
    }

    fn check_gradient(&self) -> Result<(), Error> {
        let rows = self.rows();
        if let Some(saved) = self.saved {
            Error::check_input("row statistics", saved.len(), rows)?;
        }
        self.gradient.as_ref().map_or(Ok(()), |gradient| gradient.check(self.shape()))
    }
}
