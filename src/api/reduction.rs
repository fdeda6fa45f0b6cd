//! How the losses of rows become one number.

/// How the losses of the kept rows become one number.
///
/// For no reduction at all, take the row losses themselves:
/// [`CrossEntropy::forward_into`](crate::CrossEntropy::forward_into).
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
    /// Their sum divided by their weight: by the sum of the class weights of their targets, or without
    /// weights by their number, in both cases each multiplied by its token weight. See [`EmptyMean`] if there are none,
    /// or none that weighs anything. Rows with probability targets weigh
    /// 1 whatever the class weights, as in PyTorch.
    #[default]
    Mean,
    /// Their sum divided by this count: for gradient accumulation, where the divisor is the number
    /// of kept rows of all micro-batches. It must be finite and above 0.
    MeanOver(f64),
}

impl Reduction {
    /// What a sum over rows of that weight is divided by.
    #[inline]
    pub(crate) fn denominator(self, weight: Weight, empty_mean: EmptyMean) -> f64 {
        match self {
            Reduction::Sum => 1.0,
            // It leaves nothing of a sum, and of gradients, but NaN.
            Reduction::Mean if weight.is_empty && empty_mean == EmptyMean::Zero => f64::INFINITY,
            Reduction::Mean => weight.sum,
            Reduction::MeanOver(divisor) => divisor,
        }
    }
}

/// What rows weigh together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weight {
    sum: f64,
    /// Whether none weighs anything: weights of both signs may sum to 0 too.
    is_empty: bool,
}

impl Default for Weight {
    #[inline]
    fn default() -> Self {
        Weight { sum: 0.0, is_empty: true }
    }
}

impl Weight {
    #[inline]
    pub(crate) fn add(&mut self, weight: f64) {
        self.sum += weight;
        self.is_empty &= weight == 0.0;
    }

    pub(crate) fn merge(self, next: Weight) -> Weight {
        Weight { sum: self.sum + next.sum, is_empty: self.is_empty && next.is_empty }
    }
}

/// What the mean of nothing is: of no rows, or of rows none of which weighs anything, as their token weights or the
/// class weights of their targets are all 0. (Weights of both signs that sum to 0 are not nothing: their mean is
/// infinite or NaN, as in PyTorch.)
///
/// ```
/// use xent::{CrossEntropy, EmptyMean, Logits};
///
/// let nothing = Logits::<f32>::new(&[], 0, 50_257)?;
/// let targets: &[i64] = &[];
/// assert!(CrossEntropy::new().forward(nothing, targets)?.is_nan());
/// let zero = CrossEntropy::new().empty_mean(EmptyMean::Zero);
/// assert_eq!(zero.forward(nothing, targets)?, 0.0);
///
/// let two = Logits::new(&[1.0_f32, 2.0, 3.0, 4.0], 2, 2)?;
/// assert_eq!(zero.token_weights(&[0.0_f32; 2]).forward(two, &[0i64, 1])?, 0.0);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmptyMean {
    /// NaN, as in PyTorch: 0 divided by 0. So is the gradient of rows that weigh nothing.
    #[default]
    Nan,
    /// 0, for trainers that would rather skip a batch without targets, and the gradient is 0. Rows that are kept and
    /// whose loss is infinite or NaN make it NaN all the same: a weight of 0 does not hide them.
    Zero,
}
