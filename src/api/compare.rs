//! Two models compared, row by row: options and validation.
#![forbid(unsafe_code)]

use crate::api::comparison::Comparison;
use crate::api::evaluation::NanRows;
use crate::data::error::{Error, number};
use crate::data::logits::Logits;
use crate::data::masks::AllowedTokens;
use crate::data::targets::{Ignored, TargetRows, Targets};
use crate::dispatch::element::Element;
use crate::kernel::double::compare::{Job, Outputs};
use crate::rows::panels;
use crate::simd::backend::Backend;
use crate::simd::float_env;

/// Two matrices of logits compared, row by row: how far a model Q (`other`: quantised, distilled, fine-tuned) is
/// from a model P (`base`).
///
/// With `p` and `q` the softmax of the two rows,
///
/// ```text
/// KL(P||Q)         = sum_j p[j] (ln p[j] - ln q[j])
/// KL(Q||P)         = sum_j q[j] (ln q[j] - ln p[j])
/// JSD              = beta KL(P||M) + (1 - beta) KL(Q||M)    with M = beta P + (1 - beta) Q
/// total variation  = 1/2 sum_j |p[j] - q[j]|
/// ```
///
/// in nats, and 0 to 1 for the total variation. The matrices are `[rows, vocab]`, of one shape; they may be of
/// different types (a `bf16` model against its `f32` original) and in different layouts. Each pair of rows is read
/// from memory once, and gone through once more in the cache, or twice for JSD and total variation.
///
/// # Accuracy
/// Everything is computed in `f64`, whatever the type of the logits. Divergences are within 1e-14 of the exact
/// ones plus 1e-13 of their magnitude, so that one of 1e-6, of two quantisations of a model, has eight digits and
/// more (`tests/compare.rs`, which prints how close they are). Identical rows have exactly 0. Log-probabilities are
/// within 4e-15 of their magnitude, down to -1e-30 and below where a model is sure. They may differ in the last
/// digits from those of [`CrossEntropy`](crate::CrossEntropy), which are rounded to `f32` for `f32` logits, as is
/// what a temperature makes of logits there, not here.
///
/// The bits of a result do not depend on threads, on the position of a row or on layout, nor on the backend as
/// long as it has fused multiply-add.
///
/// # Special values
/// - -inf is a mask: probability 0. Classes that are masked in both rows do not count; where P has a
///   probability and Q is masked KL(P||Q) is +inf, and where Q has one and P is masked KL(Q||P) is. JSD and
///   total variation are finite. What is less than 2^-1022 times as probable as the most probable class counts
///   as 0.
/// - If either row has a NaN or +inf, or nothing but -inf, or no classes, all results of the pair are NaN, and its
///   most probable class is not the same: there is none. [`Comparison::nan_rows`] says how many pairs these are.
/// - Rows whose target is `ignore_index`, or one of `ignore_indices`, have 0 and `false`, and are
///   not read, unless their classes lie apart.
///
/// # Example
/// ```
/// use xent::{Compare, CompareOutputs, Logits, bf16};
///
/// let base = [1.0_f32, 2.0, 3.01, 0.5, -1.0, 2.0];
/// let other = base.map(bf16::from_f32); // 3.01 becomes 3.015625
/// let (base, other) = (Logits::new(&base, 2, 3)?, Logits::new(&other, 2, 3)?);
/// let mut kl = [0.0; 2];
/// Compare::new().divergences(base, other, CompareOutputs::new().kl(&mut kl))?;
/// assert!((kl[0] - 3.50e-6).abs() < 1e-8);
/// assert_eq!(kl[1], 0.0);
///
/// let targets = [2i64, 0];
/// let all = Compare::new().targets(&targets).evaluate(base, other, CompareOutputs::new())?;
/// assert_eq!(all.mean_kl().value, kl[0] / 2.0);
/// assert_eq!(all.same_top().value, 1.0);
/// let at_targets = all.at_targets().unwrap();
/// println!("ln(PPL(Q)/PPL(base)) {} +/- {}", at_targets.log_ratio().value, at_targets.log_ratio().stderr);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Compare<'a> {
    targets: Option<Targets<'a>>,
    ignored: Ignored<'a>,
    temperature: f64,
    beta: f64,
    allowed_tokens: Option<AllowedTokens<'a>>,
    backend: Option<Backend>,
}

impl Default for Compare<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The results per row that a caller wants, in slices of its own, one element per row. What is not asked for
/// is not written, and what takes another pass, JSD and total variation, not computed.
///
/// ```
/// use xent::{Compare, CompareOutputs, Logits};
///
/// let (p, q) = ([0.0_f32, f32::NEG_INFINITY], [f32::NEG_INFINITY, 0.0]); // nothing in common
/// let (mut kl, mut jsd, mut tv) = ([0.0], [0.0], [0.0]);
/// let outputs = CompareOutputs::new().kl(&mut kl).jsd(&mut jsd).total_variation(&mut tv);
/// Compare::new().divergences(Logits::new(&p, 1, 2)?, Logits::new(&q, 1, 2)?, outputs)?;
/// assert_eq!((kl, jsd, tv), ([f64::INFINITY], [2f64.ln()], [1.0]));
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct CompareOutputs<'a> {
    slices: Outputs<'a>,
}

impl<'a> CompareOutputs<'a> {
    /// Nothing per row.
    pub fn new() -> Self {
        Self::default()
    }

    /// KL(P||Q), the forward divergence, in nats: what `llama-perplexity --kl-divergence` calls KLD.
    pub fn kl(mut self, out: &'a mut [f64]) -> Self {
        self.slices.kl = Some(out);
        self
    }

    /// KL(Q||P), in nats.
    pub fn reverse_kl(mut self, out: &'a mut [f64]) -> Self {
        self.slices.reverse_kl = Some(out);
        self
    }

    /// The Jensen-Shannon divergence with [`Compare::beta`], in nats.
    pub fn jsd(mut self, out: &'a mut [f64]) -> Self {
        self.slices.jsd = Some(out);
        self
    }

    /// The total variation, 0 to 1: by how much the probability of any set of classes may differ.
    pub fn total_variation(mut self, out: &'a mut [f64]) -> Self {
        self.slices.total_variation = Some(out);
        self
    }

    /// The log-probability of the target under P. Needs [`Compare::targets`].
    pub fn base_logprobs(mut self, out: &'a mut [f64]) -> Self {
        self.slices.base_logprobs = Some(out);
        self
    }

    /// The log-probability of the target under Q. Needs [`Compare::targets`].
    pub fn other_logprobs(mut self, out: &'a mut [f64]) -> Self {
        self.slices.other_logprobs = Some(out);
        self
    }

    /// The probability of the target under Q less that under P. Needs [`Compare::targets`].
    pub fn delta_p(mut self, out: &'a mut [f64]) -> Self {
        self.slices.delta_p = Some(out);
        self
    }

    /// Whether both rows have the same most probable class, the first if several are. `false` where the other
    /// results are NaN.
    pub fn same_top(mut self, out: &'a mut [bool]) -> Self {
        self.slices.same_top = Some(out);
        self
    }
}

impl<'a> Compare<'a> {
    /// All classes of all rows, without targets; `beta` 1/2, temperature 1, `ignore_index` -100.
    pub const fn new() -> Self {
        Compare {
            targets: None,
            ignored: Ignored::one(-100),
            temperature: 1.0,
            beta: 0.5,
            allowed_tokens: None,
            backend: None,
        }
    }

    /// Targets, class ids or [`Targets::shifted`] ones: for log-probabilities, and to leave out rows that are ignored.
    pub fn targets(mut self, targets: impl Into<Targets<'a>>) -> Self {
        self.targets = Some(targets.into());
        self
    }

    /// The target of rows to leave out, the only one: see [`Compare::ignore_indices`] for several.
    /// It may be a class.
    pub const fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignored = Ignored::one(ignore_index);
        self
    }

    /// The targets of rows to leave out, -100 only if it is among them. They should be a short
    /// list, as [`CrossEntropy::ignore_indices`](crate::CrossEntropy::ignore_indices).
    ///
    /// ```
    /// use xent::{Compare, CompareOutputs, Logits};
    ///
    /// const PAD: i64 = 0;
    /// const END: i64 = 1;
    /// let (p, q) = ([0.0_f32; 9], [0.0_f32, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 5.0, 0.0]);
    /// let (p, q) = (Logits::new(&p, 3, 3)?, Logits::new(&q, 3, 3)?);
    /// let compare = Compare::new().targets(&[2, END, PAD]).ignore_indices(&[PAD, END]);
    /// let all = compare.evaluate(p, q, CompareOutputs::new())?;
    /// assert_eq!((all.count(), all.ignored(), all.mean_kl().value), (1, 2, 0.0));
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn ignore_indices(mut self, ids: &'a [i64]) -> Self {
        self.ignored = Ignored::all(ids);
        self
    }

    /// No row is left out: every target has to be a class.
    pub const fn no_ignore_index(mut self) -> Self {
        self.ignored = Ignored::NONE;
        self
    }

    /// All logits, of both models, are divided by this: distillation with a temperature. A positive number of the
    /// range of `f32`.
    pub const fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// The share of P in the mixture of the Jensen-Shannon divergence, 0 to 1.
    ///
    /// At 0 it is KL(P||Q), at 1 KL(Q||P): not what the formula gives there, which is 0, but what it tends to
    /// when divided by `beta` or `1 - beta`, and the convention of generalised knowledge distillation in TRL and
    /// Liger.
    pub const fn beta(mut self, beta: f64) -> Self {
        self.beta = beta;
        self
    }

    /// Which classes may be, a bit for each class of each row, as
    /// [`CrossEntropy::allowed_tokens`](crate::CrossEntropy::allowed_tokens); of both models.
    pub const fn allowed_tokens(mut self, allowed: AllowedTokens<'a>) -> Self {
        self.allowed_tokens = Some(allowed);
        self
    }

    /// The instructions to use, instead of [`Backend::selected`].
    pub const fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// The results of each row that `outputs` asks for. Does not allocate, except for
    /// [`Logits::classes_first`].
    ///
    /// ```
    /// use xent::{Compare, CompareOutputs, Logits};
    ///
    /// let (p, q) = ([0.0_f32, 0.0], [3f32.ln(), 0.0]); // 1/2 and 1/2, 3/4 and 1/4
    /// let (p, q) = (Logits::new(&p, 1, 2)?, Logits::new(&q, 1, 2)?);
    /// let (mut kl, mut delta_p) = ([0.0], [0.0]);
    /// let outputs = CompareOutputs::new().kl(&mut kl).delta_p(&mut delta_p);
    /// Compare::new().targets(&[0i64]).divergences(p, q, outputs)?;
    /// assert!((kl[0] - 0.5 * (4f64 / 3.0).ln()).abs() < 1e-7);
    /// assert!((delta_p[0] - 0.25).abs() < 1e-7);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ComparedShape`], [`Error::Option`] for temperature and `beta`, [`Error::OutputLength`],
    /// [`Error::TargetCount`] (also for outputs that need targets where there are none),
    /// [`Error::TargetOutOfRange`], [`Error::Sequence`] and [`Error::Shift`] for targets, [`Error::ComparedProbs`] for
    /// targets that are probabilities, [`Error::InputLength`], [`Error::Option`] and [`Error::Overflow`] for masks, and
    /// those of [`Backend::selected`]. On error all outputs are as they were.
    pub fn divergences<P: Element, Q: Element>(
        &self,
        base: Logits<'_, P>,
        other: Logits<'_, Q>,
        outputs: CompareOutputs<'_>,
    ) -> Result<(), Error> {
        self.check(base, other)?;
        let targets = self.checked_targets(base.rows(), base.vocab())?;
        self.run(base, other, targets, outputs.slices)
    }

    /// All rows together: what `llama-perplexity --kl-divergence` prints; and the results per row that `outputs`
    /// asks for. Allocates 33 bytes per row, of which [`Comparison`] keeps up to 32.
    ///
    /// # Errors
    /// As [`Compare::divergences`].
    pub fn evaluate<P: Element, Q: Element>(
        &self,
        base: Logits<'_, P>,
        other: Logits<'_, Q>,
        outputs: CompareOutputs<'_>,
    ) -> Result<Comparison, Error> {
        self.check(base, other)?;
        let (rows, elements) = (base.rows(), base.vocab());
        let targets = self.checked_targets(rows, elements)?;
        let wanted = outputs.slices;
        check_outputs(&wanted, rows, targets.is_some())?;
        // Without targets there may be more rows, of no elements, than memory.
        let zeros = |rows| {
            let mut values = Vec::new();
            match values.try_reserve_exact(rows) {
                Ok(()) => values.resize(rows, 0.0),
                Err(_) => return Err(Error::Overflow { rows, elements }),
            }
            Ok(values)
        };
        let at_targets = if targets.is_some() { rows } else { 0 };
        let mut kl = zeros(rows)?;
        let [mut base_logprobs, mut other_logprobs, mut delta_p] =
            [zeros(at_targets)?, zeros(at_targets)?, zeros(at_targets)?];
        let mut same_top = vec![false; rows];
        let of_targets = |values| targets.is_some().then_some(values);
        let out = Outputs {
            kl: Some(&mut kl[..]),
            reverse_kl: wanted.reverse_kl,
            jsd: wanted.jsd,
            total_variation: wanted.total_variation,
            base_logprobs: of_targets(&mut base_logprobs[..]),
            other_logprobs: of_targets(&mut other_logprobs[..]),
            delta_p: of_targets(&mut delta_p[..]),
            same_top: Some(&mut same_top[..]),
        };
        self.run(base, other, targets, out)?;
        for (to, from) in [
            (wanted.kl, &kl),
            (wanted.base_logprobs, &base_logprobs),
            (wanted.other_logprobs, &other_logprobs),
            (wanted.delta_p, &delta_p),
        ] {
            if let Some(to) = to {
                to.copy_from_slice(from);
            }
        }
        if let Some(to) = wanted.same_top {
            to.copy_from_slice(&same_top);
        }
        // Ignored rows are `false`, and have 0.
        let same_top = same_top.into_iter().filter(|&same| same).count() as u64;
        let nans = float_env::scope(|| NanRows::of(kl.iter().map(|kl| kl.is_nan())));
        let Some(targets) = targets else { return Ok(Comparison::new(kl, same_top, nans)) };
        for values in [&mut kl, &mut base_logprobs, &mut other_logprobs, &mut delta_p] {
            let mut row = 0..;
            values.retain(|_| row.next().is_some_and(|row| targets.get(row).is_some()));
        }
        Ok(Comparison::with_targets(
            kl,
            same_top,
            nans,
            rows as u64,
            [base_logprobs, other_logprobs, delta_p],
        ))
    }

    fn check<P, Q>(&self, base: Logits<'_, P>, other: Logits<'_, Q>) -> Result<(), Error> {
        float_env::scope(|| self.check_here(base, other))
    }

    fn check_here<P, Q>(&self, base: Logits<'_, P>, other: Logits<'_, Q>) -> Result<(), Error> {
        let (base, other) = ((base.rows(), base.vocab()), (other.rows(), other.vocab()));
        if base != other {
            return Err(Error::ComparedShape { base, other });
        }
        Error::check_positive("temperature", self.temperature)?;
        if !(0.0..=1.0).contains(&self.beta) {
            let (value, range) = (number(self.beta), "between 0 and 1");
            return Err(Error::Option { option: "beta", value, range });
        }
        Ok(())
    }

    fn checked_targets(&self, rows: usize, vocab: usize) -> Result<Option<TargetRows<'a>>, Error> {
        match self.targets {
            None => Ok(None),
            Some(Targets::Ids(ids)) => TargetRows::new(ids, self.ignored, rows, vocab).map(Some),
            Some(Targets::Shifted(ids)) => {
                TargetRows::shifted(ids, self.ignored, rows, vocab).map(Some)
            }
            Some(Targets::Probs(_) | Targets::Sparse(_)) => Err(Error::ComparedProbs),
        }
    }

    /// What is left to check, and the kernel.
    fn run<P: Element, Q: Element>(
        &self,
        base: Logits<'_, P>,
        other: Logits<'_, Q>,
        targets: Option<TargetRows<'_>>,
        out: Outputs<'_>,
    ) -> Result<(), Error> {
        let (rows, vocab) = (base.rows(), base.vocab());
        let any = check_outputs(&out, rows, targets.is_some())?;
        let kernels = Backend::kernels(self.backend)?;
        let allowed = self.allowed_tokens.map(|allowed| allowed.rows(rows, vocab)).transpose()?;
        if !any {
            // There may be any number of empty rows.
            return Ok(());
        }
        let (base, other) = (P::any(base), Q::any(other));
        let (rate, beta) = (float_env::scope(|| 1.0 / self.temperature), self.beta);
        panels::compare(kernels, Job { base, other, targets, allowed, rate, beta, out });
        Ok(())
    }
}

/// Whether there are any.
fn check_outputs(out: &Outputs<'_>, rows: usize, has_targets: bool) -> Result<bool, Error> {
    let lengths = [
        ("kl", out.kl.as_ref().map(|x| x.len()), false),
        ("reverse_kl", out.reverse_kl.as_ref().map(|x| x.len()), false),
        ("jsd", out.jsd.as_ref().map(|x| x.len()), false),
        ("total_variation", out.total_variation.as_ref().map(|x| x.len()), false),
        ("base_logprobs", out.base_logprobs.as_ref().map(|x| x.len()), true),
        ("other_logprobs", out.other_logprobs.as_ref().map(|x| x.len()), true),
        ("delta_p", out.delta_p.as_ref().map(|x| x.len()), true),
        ("same_top", out.same_top.as_ref().map(|x| x.len()), false),
    ];
    for (output, len, needs_targets) in lengths {
        let Some(len) = len else { continue };
        if len != rows {
            return Err(Error::OutputLength { output, len, expected: rows });
        }
        if needs_targets && !has_targets {
            return Err(Error::TargetCount { rows, targets: 0 });
        }
    }
    Ok(lengths.iter().any(|(_, len, _)| len.is_some()))
}
