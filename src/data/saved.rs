//! What a backward pass needs to know about a row.
#![forbid(unsafe_code)]

/// The logsumexp of a row as a sum of two numbers: all that [`CrossEntropy::backward`] needs besides logits
/// and targets. 8 bytes a row for `f32` logits, 16 for `f64`.
///
/// In one `f32` a logsumexp of 20 is off by up to 1e-6, and with it every probability of the row. The pair
/// has 48 bits, and where logits are so large that `hi` alone takes all of them (1e30, say), `lo` is the
/// logarithm of the number of classes that share the maximum.
///
/// [`CrossEntropy::backward`]: crate::CrossEntropy::backward
///
/// ```
/// use xent::{CrossEntropy, Logits, RowOutputs, LogSumExp};
///
/// let x = [1.0_f32, 2.0, 3.0];
/// let mut saved = [LogSumExp::default()];
/// CrossEntropy::new().evaluate(Logits::new(&x, 1, 3)?, &[2i64], RowOutputs::new().saved(&mut saved))?;
/// let LogSumExp { hi, lo } = saved[0];
/// assert_eq!(hi, 3.407606);
/// assert!((f64::from(hi) + f64::from(lo) - 3.4076059644443806).abs() < 1e-7);
/// assert_eq!(size_of::<LogSumExp>(), 8);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogSumExp<R = f32> {
    /// The logsumexp, rounded.
    pub hi: R,
    /// What rounding took from it.
    pub lo: R,
}
