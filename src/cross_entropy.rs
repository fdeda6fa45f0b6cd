//! The loss: options, validation, reduction.
#![forbid(unsafe_code)]

use crate::backend::Kernels;
use crate::kernel::forward::{Job, Row};
use crate::rows::{RowSlices, for_each_group};
use crate::targets::TargetRows;
use crate::{Backend, Error, Evaluation, Logits, Targets, evaluation};

/// How the losses of the kept rows become one number.
///
/// For no reduction at all, take the row losses themselves:
/// [`CrossEntropy::forward_into`].
///
/// ```
/// use xent::{CrossEntropy, Logits, Reduction};
///
/// let (x, targets) = ([0.0; 6], [0i64, 1, -100]); // the last row is ignored
/// let logits = Logits::new(&x, 3, 2)?;
/// let loss = |reduction| CrossEntropy::new().reduction(reduction).forward(logits, &targets);
/// let sum = loss(Reduction::Sum)?;
/// assert_eq!(loss(Reduction::Mean)?, sum / 2.0);
/// assert_eq!(loss(Reduction::MeanOver(8.0))?, sum / 8.0);
/// assert!(loss(Reduction::MeanOver(0.0)).is_err());
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Reduction {
    /// Their sum; 0 if there are none.
    Sum,
    /// Their sum divided by their number; see [`EmptyMean`] if there are none.
    #[default]
    Mean,
    /// Their sum divided by this count: for gradient accumulation, where the divisor is the number
    /// of kept rows of all micro-batches. It must be finite and above 0.
    MeanOver(f64),
}

impl Reduction {
    #[inline]
    pub(crate) fn apply(self, sum: f64, count: u64, empty_mean: EmptyMean) -> f64 {
        match self {
            Reduction::Sum => sum,
            Reduction::Mean if count == 0 && empty_mean == EmptyMean::Zero => 0.0,
            Reduction::Mean => sum / count as f64,
            Reduction::MeanOver(divisor) => sum / divisor,
        }
    }
}

/// What the mean of no rows is.
///
/// ```
/// use xent::{CrossEntropy, EmptyMean, Logits};
///
/// let nothing = Logits::new(&[], 0, 50_257)?;
/// let targets: &[i64] = &[];
/// assert!(CrossEntropy::new().forward(nothing, targets)?.is_nan());
/// assert_eq!(CrossEntropy::new().empty_mean(EmptyMean::Zero).forward(nothing, targets)?, 0.0);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmptyMean {
    /// NaN, as in PyTorch: 0 divided by 0.
    #[default]
    Nan,
    /// 0, for trainers that would rather skip a batch without targets.
    Zero,
}

/// Cross-entropy of logits and target ids.
///
/// The loss of a row with logits `x` and target `t` is the negative log-probability of the target
/// under the softmax of the row,
///
/// ```text
/// loss = -ln(e^x[t] / sum_j e^x[j]) = ln(1 + sum_(j != t) e^(x[j] - x[t]))
/// ```
///
/// Each row is read from memory once, and by one thread; rows are spread over the caller's rayon
/// pool. One small row is computed on the calling thread.
///
/// # Accuracy
/// Row losses are the correctly rounded `f32` or the next to it
/// ([`LOSS_MAX_ULP`](crate::LOSS_MAX_ULP)), also where the target has nearly all the probability and the
/// loss is as small as 1e-30: `tests/accuracy.rs`. Sums are over the losses before they are rounded to
/// `f32`, in `f64` and in row order.
///
/// The bits of a result do not depend on the number of threads or rows, on the position of a row, on
/// alignment or stride, nor on the backend as long as it has fused multiply-add:
/// `tests/equivalence.rs`.
///
/// # Special values
/// - -inf is a mask: probability 0, exactly. As the target's logit it makes the loss +inf.
/// - A row with a NaN or +inf, or with nothing but -inf, has loss NaN; other rows are not affected.
/// - Rows whose target is `ignore_index` are never read: loss 0, log-probability 0, logsumexp 0,
///   argmax -1.
///
/// # Example
/// ```
/// use xent::{CrossEntropy, Logits};
///
/// let logits = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0];
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
pub struct CrossEntropy {
    ignore_index: Option<i64>,
    reduction: Reduction,
    empty_mean: EmptyMean,
    backend: Option<Backend>,
}

impl Default for CrossEntropy {
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
/// let logits = Logits::new(&[1.0, 2.0, 3.0, 0.5, -1.0, 2.0], 2, 3)?;
/// let (mut logprobs, mut argmax) = ([0.0; 2], [0; 2]);
/// let wanted = RowOutputs::new().logprobs(&mut logprobs).argmax(&mut argmax);
/// let evaluation = CrossEntropy::new().evaluate(logits, &[2i64, 1], wanted)?;
/// assert_eq!(argmax, [2, 2]);
/// assert_eq!(logprobs, [-0.40760598, -3.2413113]);
/// assert_eq!(evaluation.accuracy(), Some(0.5));
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct RowOutputs<'a> {
    slices: RowSlices<'a>,
    count_correct: bool,
}

impl<'a> RowOutputs<'a> {
    /// Nothing per row.
    pub fn new() -> Self {
        Self::default()
    }

    /// The loss of each row; 0 for ignored ones.
    pub fn losses(mut self, out: &'a mut [f32]) -> Self {
        self.slices.losses = Some(out);
        self
    }

    /// The log-probability of each target, the negative loss.
    pub fn logprobs(mut self, out: &'a mut [f32]) -> Self {
        self.slices.logprobs = Some(out);
        self
    }

    /// `ln(sum_j e^x[j])` of each row: -inf for nothing but -inf, +inf if there is one, NaN if there
    /// is one. 0 for ignored rows. Within 1 ULP of the larger of its own magnitude and 1.
    pub fn logsumexp(mut self, out: &'a mut [f32]) -> Self {
        self.slices.logsumexp = Some(out);
        self
    }

    /// The first class with the largest logit, or with a NaN if there is one, as in PyTorch; -1 for
    /// ignored rows. Implies [`RowOutputs::count_correct`].
    pub fn argmax(mut self, out: &'a mut [i64]) -> Self {
        self.slices.argmax = Some(out);
        self.count_correct = true;
        self
    }

    /// Counts the rows whose argmax is the target: [`Evaluation::correct`].
    ///
    /// Costs one more maximum per vector, from the first-level cache.
    pub fn count_correct(mut self) -> Self {
        self.count_correct = true;
        self
    }
}

impl CrossEntropy {
    /// The defaults of PyTorch: `ignore_index` -100, mean over the kept rows, NaN if there are none.
    pub const fn new() -> Self {
        CrossEntropy {
            ignore_index: Some(-100),
            reduction: Reduction::Mean,
            empty_mean: EmptyMean::Nan,
            backend: None,
        }
    }

    /// The target of rows to leave out. It is compared before targets are checked for range, and
    /// may itself be a class.
    pub const fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignore_index = Some(ignore_index);
        self
    }

    /// No row is left out: every target has to be a class.
    pub const fn no_ignore_index(mut self) -> Self {
        self.ignore_index = None;
        self
    }

    /// How row losses become one number.
    pub const fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// What the mean of no rows is.
    pub const fn empty_mean(mut self, empty_mean: EmptyMean) -> Self {
        self.empty_mean = empty_mean;
        self
    }

    /// The instructions to use, instead of [`Backend::selected`]. Calls return
    /// [`Error::BackendUnavailable`] if this machine cannot run them.
    pub const fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// The reduced loss.
    ///
    /// Allocates 16 bytes per row, so that the sum can be taken in row order.
    ///
    /// # Errors
    /// [`Error::TargetCount`], [`Error::TargetOutOfRange`], [`Error::Count`], and the errors of
    /// [`Backend::selected`] and [`CrossEntropy::backend`].
    pub fn forward<'a>(
        &self,
        logits: Logits<'_>,
        targets: impl Into<Targets<'a>>,
    ) -> Result<f64, Error> {
        let out = RowSlices::default();
        self.with_rows(&logits, targets.into(), out, false, |rows| {
            let (sum, count) = evaluation::sum(rows);
            self.reduction.apply(sum, count, self.empty_mean)
        })
    }

    /// The loss of each row, unreduced, into `losses`; 0 for ignored rows. Does not allocate.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let mut losses = [f32::NAN; 2];
    /// let logits = Logits::new(&[200.0, 0.0, 0.0, 0.0], 2, 2)?;
    /// CrossEntropy::new().ignore_index(1).forward_into(logits, &[0i64, 1], &mut losses)?;
    /// assert_eq!(losses, [0.0; 2]); // e^-200 is below the smallest f32; the second row is ignored
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`], and [`Error::OutputLength`] unless `losses` has one element per
    /// row. On error `losses` is as it was.
    pub fn forward_into<'a>(
        &self,
        logits: Logits<'_>,
        targets: impl Into<Targets<'a>>,
        losses: &mut [f32],
    ) -> Result<(), Error> {
        let out = RowSlices { losses: Some(losses), ..RowSlices::default() };
        let (kernels, targets) = self.check(&logits, targets.into(), &out)?;
        run(kernels, Job { logits, targets, out }, false);
        Ok(())
    }

    /// Everything that the pass over the rows can tell: sums for loss, perplexity and accuracy, and
    /// the results per row that `outputs` asks for.
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
    pub fn evaluate<'a>(
        &self,
        logits: Logits<'_>,
        targets: impl Into<Targets<'a>>,
        outputs: RowOutputs<'_>,
    ) -> Result<Evaluation, Error> {
        let RowOutputs { slices, count_correct } = outputs;
        self.with_rows(&logits, targets.into(), slices, count_correct, |rows| {
            Evaluation::new(rows, count_correct, self.reduction, self.empty_mean)
        })
    }

    /// Runs the kernel and hands what it found about each row to `f`.
    #[inline(always)]
    fn with_rows<T>(
        &self,
        logits: &Logits<'_>,
        targets: Targets<'_>,
        out: RowSlices<'_>,
        argmax: bool,
        f: impl FnOnce(&[Row]) -> T,
    ) -> Result<T, Error> {
        let (kernels, targets) = self.check(logits, targets, &out)?;
        // The few rows of a decoding step need no allocation.
        let mut few = [Row::default(); 4];
        let mut many;
        let rows = match few.get_mut(..logits.rows()) {
            Some(few) => few,
            None => {
                many = vec![Row::default(); logits.rows()];
                &mut many[..]
            }
        };
        let out = RowSlices { rows: Some(&mut *rows), ..out };
        run(kernels, Job { logits: *logits, targets, out }, argmax);
        Ok(f(rows))
    }

    /// Everything that can be wrong is found here, before anything is written.
    #[inline]
    fn check<'a>(
        &self,
        logits: &Logits<'_>,
        targets: Targets<'a>,
        out: &RowSlices<'_>,
    ) -> Result<(Kernels, TargetRows<'a>), Error> {
        if let Reduction::MeanOver(count) = self.reduction
            && !(count > 0.0 && count.is_finite())
        {
            return Err(Error::Count { count: count.to_string() });
        }
        let kernels = Backend::kernels(self.backend)?;
        let targets = TargetRows::new(targets, self.ignore_index, logits.rows(), logits.vocab())?;
        out.check(logits.rows())?;
        Ok((kernels, targets))
    }
}

#[inline]
fn run(kernels: Kernels, job: Job<'_>, argmax: bool) {
    if argmax {
        for_each_group(job, &|job: &mut Job<'_>| kernels.forward_argmax(job));
    } else {
        for_each_group(job, &|job: &mut Job<'_>| kernels.forward(job));
    }
}
