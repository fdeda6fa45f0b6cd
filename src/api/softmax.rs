//! Softmax, log-softmax and logsumexp over rows.
#![forbid(unsafe_code)]

use crate::data::error::Error;
use crate::data::logits::{Logits, LogitsMut};
use crate::data::masks::{AllowedRows, AllowedTokens};
use crate::dispatch::element::Element;
use crate::kernel::softmax::{Job, LogSumExpJob};
use crate::rows::panels::{self, Output};
use crate::simd::backend::Backend;

/// Softmax and its relatives over the classes of each row, in the type of the logits.
///
/// Rows are spread over the caller's rayon pool; each is read from memory once (softmax reads it a
/// second time, log-softmax a third time, from the cache) and written once. The bits of a result depend on the row alone, as with
/// [`CrossEntropy`](crate::CrossEntropy).
///
/// # Special values
/// -inf is a mask: probability 0, log-probability -inf. A row with a NaN or +inf, or with nothing
/// but -inf, becomes NaN, as in PyTorch.
///
/// ```
/// use xent::{Logits, Softmax};
///
/// let logits = Logits::new(&[1.0_f32, 2.0, 3.0], 1, 3)?;
/// let mut p = [0.0; 3];
/// Softmax::new().softmax(logits, &mut p)?;
/// assert_eq!(p, [0.09003057, 0.24472848, 0.66524094]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Softmax<'a> {
    backend: Option<Backend>,
    allowed_tokens: Option<AllowedTokens<'a>>,
}

impl<'a> Softmax<'a> {
    /// Of all classes, on the fastest backend.
    pub const fn new() -> Self {
        Softmax { backend: None, allowed_tokens: None }
    }

    /// Which classes may be, a bit for each class of each row. The others are as if their logits were -inf,
    /// whatever is in memory; a row without any allowed class becomes NaN.
    ///
    /// With a mask all functions may also return [`Error::InputLength`], [`Error::Option`] or
    /// [`Error::Overflow`] for one that does not go with the logits.
    pub const fn allowed_tokens(mut self, allowed: AllowedTokens<'a>) -> Self {
        self.allowed_tokens = Some(allowed);
        self
    }

    /// The instructions to use, instead of [`Backend::selected`].
    pub const fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// `p[j] = e^x[j] / sum_k e^x[k]` into `out`: contiguous rows, also where the logits are
    /// [`Logits::classes_first`]. (In place, they stay where they are.)
    ///
    /// Within 2 ULP; what is below the smallest normal number may be 0 (`tests/accuracy.rs`). Rows of `f64`
    /// whose logsumexp is beyond 1e14 are within 8 ULP (`tests/double.rs`).
    ///
    /// # Errors
    /// [`Error::OutputLength`] unless `out` has `rows * vocab` elements, and those of
    /// [`Backend::selected`]. On error `out` is as it was.
    pub fn softmax<T: Element>(&self, logits: Logits<'_, T>, out: &mut [T]) -> Result<(), Error> {
        self.out_of_place(logits, out, false)
    }

    /// As [`Softmax::softmax`], over the logits themselves.
    ///
    /// # Errors
    /// Those of [`Backend::selected`].
    pub fn softmax_in_place<T: Element>(&self, logits: LogitsMut<'_, T>) -> Result<(), Error> {
        self.transform(None, logits, false)
    }

    /// `y[j] = x[j] - ln(sum_k e^x[k])` into `out`, contiguous rows as with [`Softmax::softmax`].
    ///
    /// Within 2 ULP, also for the most probable class where its log-probability is close to 0
    /// (`tests/accuracy.rs`).
    ///
    /// ```
    /// use xent::{Logits, Softmax};
    ///
    /// let mut y = [0.0; 2];
    /// Softmax::new().log_softmax(Logits::new(&[40.0_f32, 0.0], 1, 2)?, &mut y)?;
    /// assert_eq!(y, [-4.248354e-18, -40.0]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Softmax::softmax`].
    pub fn log_softmax<T: Element>(
        &self,
        logits: Logits<'_, T>,
        out: &mut [T],
    ) -> Result<(), Error> {
        self.out_of_place(logits, out, true)
    }

    /// As [`Softmax::log_softmax`], over the logits themselves.
    ///
    /// # Errors
    /// Those of [`Backend::selected`].
    pub fn log_softmax_in_place<T: Element>(&self, logits: LogitsMut<'_, T>) -> Result<(), Error> {
        self.transform(None, logits, true)
    }

    /// `ln(sum_j e^x[j])` of each row into `out`: -inf for nothing but -inf or no classes, +inf if
    /// there is one, NaN if there is one.
    ///
    /// Within 1 ULP of the larger of its own magnitude and 1.
    ///
    /// ```
    /// use xent::{Logits, Softmax};
    ///
    /// let mut lse = [0.0; 2];
    /// Softmax::new().logsumexp(Logits::new(&[0.0_f32, 0.0, 1.0, f32::NEG_INFINITY], 2, 2)?, &mut lse)?;
    /// assert_eq!(lse, [2f32.ln(), 1.0]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutputLength`] unless `out` has one element per row, and those of
    /// [`Backend::selected`]. On error `out` is as it was.
    pub fn logsumexp<T: Element>(
        &self,
        logits: Logits<'_, T>,
        out: &mut [T::Real],
    ) -> Result<(), Error> {
        let kernels = Backend::kernels(self.backend)?;
        check_output("logsumexp", out.len(), logits.rows())?;
        let allowed = self.allowed(logits.rows(), logits.vocab())?;
        panels::run(kernels, LogSumExpJob { logits, out, allowed }, logits.columns(), None);
        Ok(())
    }

    fn allowed(&self, rows: usize, vocab: usize) -> Result<Option<AllowedRows<'a>>, Error> {
        self.allowed_tokens.map(|allowed| allowed.rows(rows, vocab)).transpose()
    }

    fn out_of_place<T: Element>(
        &self,
        logits: Logits<'_, T>,
        out: &mut [T],
        log: bool,
    ) -> Result<(), Error> {
        // The product fits: it is at most rows * stride, which was checked.
        let (rows, vocab) = (logits.rows(), logits.vocab());
        check_output("out", out.len(), rows * vocab)?;
        self.transform(Some(logits), LogitsMut::new(out, rows, vocab)?, log)
    }

    fn transform<T: Element>(
        &self,
        src: Option<Logits<'_, T>>,
        mut dst: LogitsMut<'_, T>,
        log: bool,
    ) -> Result<(), Error> {
        let kernels = Backend::kernels(self.backend)?;
        let allowed = self.allowed(dst.rows(), dst.vocab())?;
        if dst.vocab() == 0 {
            // There may be any number of empty rows.
            return Ok(());
        }
        let x = src.and_then(|src| src.columns());
        let to = dst.take_columns().map(|columns| Output { columns, read: src.is_none() });
        panels::run(kernels, Job { src, dst, allowed, log }, x, to);
        Ok(())
    }
}

fn check_output(output: &'static str, len: usize, expected: usize) -> Result<(), Error> {
    if len == expected { Ok(()) } else { Err(Error::OutputLength { output, len, expected }) }
}
