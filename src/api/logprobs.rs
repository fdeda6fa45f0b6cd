//! Log-probabilities of tokens, and what else an inference engine asks about a row.
#![forbid(unsafe_code)]

use crate::api::sample::Sample;
use crate::data::bias::{BiasRows, LogitBias};
use crate::data::error::{Error, number};
use crate::data::logits::{Logits, LogitsMut};
use crate::data::masks::{AllowedRows, AllowedTokens};
use crate::data::targets::{Ids, Ignored, TargetRows, Targets};
use crate::dispatch::element::Element;
use crate::dispatch::element::Real;
use crate::kernel::outputs::{RowSlices, split};
use crate::kernel::part::{Part, Wanted};
use crate::kernel::row_stats::{Distribution, Found, RowStats, Scratch, rounded};
use crate::kernel::top::{MAX_TOP_K, Top};
use crate::kernel::transform::Transform;
use crate::kernel::{forward, sum};
use crate::rows::panels::{self, Panels};
use crate::rows::parallel::{Rows, for_each_group, parts_of_rows, row_stats};
use crate::simd::backend::{Backend, Kernels};
use crate::simd::float_env;

/// Log-probabilities of given tokens and of the most probable ones, ranks, entropy, and a sample: all from one read of
/// each row.
///
/// A request is made of what is asked about ([`LogProbs::targets`], [`LogProbs::candidates`], [`LogProbs::top_k`],
/// [`LogProbs::sample`]), of what is done to the logits first, and of buffers for the results, [`TokenOutputs`]. What
/// has no buffer is not computed. Rows are spread over the caller's rayon pool; a long row is cut into parts where there
/// are fewer rows than threads. No result depends on either: the bits follow from the row and the options
/// alone, on every machine (`tests/digest.rs`), and not from what else is asked, nor, but for what is about the target
/// itself, from the target. (Last digits may depend on the threads where a
/// row that is cut has logits beyond 363,000; and on the machine with the `portable` backend, see [`Backend`].)
///
/// Logits become `z = (x + bias) / temperature`, and -inf where a mask says so. Log-probabilities are
/// `z[id] - ln(sum_j e^z[j])`. By default they are raw, as vLLM reports them: neither temperature nor bias nor mask.
///
/// # Accuracy
/// Ranks and ids are exact. Log-probabilities of targets are within 1 ULP of `f32` and, unless logits are `f64`, have the
/// bits of [`CrossEntropy`](crate::CrossEntropy), which leaves the target out of its sum; all others are within 2 ULP,
/// of one sum for the row: that of the same token among the top k or the candidates may be another in its last digit; also where a probability is close to 1, as the
/// largest logit never enters a sum. The entropy is within 4 ULP, however small. (Rows can be built where the small classes
/// beside a sure one all round alike, and which lose up to 64.) Its variance, a difference of squares, is
/// within 2^-20 of the mean square of `ln p - max ln p`, plus 2^-50 of the square of the largest magnitude of a logit (or of
/// 400,000, if that is less). The logsumexp is within 1 ULP of the largest of its magnitude, that of the largest logit, and
/// 1. For `f64` logits all of this is within 4 ULP of `f64`, and computed by plain code (`tests/logprobs.rs`).
///
/// # Special values
/// -inf is a mask: log-probability -inf. In rows with a NaN or +inf, or with nothing but -inf, log-probabilities and
/// entropies are NaN, and nothing can be sampled: -1. NaN is above all numbers in the top k and for the argmax, as in
/// PyTorch, and never counts in a rank. Rows without a target where others have one, those whose target is `ignore_index`
/// or one of `ignore_indices`, and the last of [shifted](Targets::shifted) sequences, are not read: they have 0
/// everywhere, and -1 for tokens. That 0 is no log-probability. Which rows they are the caller's targets say; of what
/// [`LogProbs::collect`] returns, [`TokenLogProbs::targets`] is -1 and [`TokenLogProbs::logprob`] `None` for them.
///
/// ```
/// use xent::{LogProbs, Logits, TokenOutputs};
///
/// let logits = Logits::new(&[1.0_f32, 3.0, 2.0, 0.0], 1, 4)?;
/// let (mut logprobs, mut ranks, mut entropy) = ([0.0], [0], [0.0]);
/// let (mut ids, mut top) = ([0; 2], [0.0; 2]);
/// let out = TokenOutputs::new()
///     .logprobs(&mut logprobs)
///     .ranks(&mut ranks)
///     .top_k(&mut ids, &mut top)
///     .entropy(&mut entropy);
/// LogProbs::new().targets(&[2i64]).top_k(2).run(logits, out)?;
/// assert_eq!((logprobs, ranks), ([-1.4401897], [2]));
/// assert_eq!((ids, top), ([1, 2], [-0.4401897, -1.4401897]));
/// assert_eq!(entropy, [0.94753695]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LogProbs<'a> {
    targets: Option<Targets<'a>>,
    ignored: Ignored<'a>,
    candidates: Option<(Ids<'a>, usize)>,
    top_k: usize,
    ranks: bool,
    entropy: bool,
    varentropy: bool,
    samples: Option<&'a [Sample]>,
    temperature: f64,
    bias: Option<LogitBias<'a>>,
    allowed: Option<AllowedTokens<'a>>,
    backend: Option<Backend>,
}

impl Default for LogProbs<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> LogProbs<'a> {
    /// How many of the most probable tokens [`LogProbs::top_k`] can be asked for.
    pub const MAX_TOP_K: usize = MAX_TOP_K;

    /// Nothing is asked yet, and logits are as they are. `ignore_index` is -100.
    pub const fn new() -> Self {
        LogProbs {
            targets: None,
            ignored: Ignored::one(-100),
            candidates: None,
            top_k: 0,
            ranks: false,
            entropy: false,
            varentropy: false,
            samples: None,
            temperature: 1.0,
            bias: None,
            allowed: None,
            backend: None,
        }
    }

    /// One token per row, the one that was chosen or comes next: what log-probabilities and ranks are of. Class ids, also
    /// [shifted](Targets::shifted).
    pub fn targets(mut self, targets: impl Into<Targets<'a>>) -> Self {
        self.targets = Some(targets.into());
        self
    }

    /// The target of rows that are not read, the only one: see [`LogProbs::ignore_indices`] for
    /// several. It may be a class.
    pub const fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignored = Ignored::one(ignore_index);
        self
    }

    /// The targets of rows that are not read, -100 only if it is among them. They should be a short
    /// list, as [`CrossEntropy::ignore_indices`](crate::CrossEntropy::ignore_indices).
    ///
    /// ```
    /// use xent::{LogProbs, Logits};
    ///
    /// const PAD: i64 = 0;
    /// const END: i64 = 1;
    /// let logits = Logits::new(&[1.0_f32, 2.0, 3.0, 0.5, -1.0, 2.0, 0.0, 0.0, 0.0], 3, 3)?;
    /// let ask = LogProbs::new().ignore_indices(&[PAD, END]);
    /// let found = ask.targets(&[2, END, PAD]).collect(logits)?;
    /// assert_eq!((found.logprobs, found.argmax), (vec![-0.40760598, 0.0, 0.0], vec![2, -1, -1]));
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn ignore_indices(mut self, ids: &'a [i64]) -> Self {
        self.ignored = Ignored::all(ids);
        self
    }

    /// Reads all rows; targets must be classes.
    pub const fn no_ignore_index(mut self) -> Self {
        self.ignored = Ignored::NONE;
        self
    }

    /// `[rows, k]` tokens whose log-probabilities are wanted: [`TokenOutputs::candidates`]. Costs a few nanoseconds each.
    ///
    /// ```
    /// use xent::{LogProbs, Logits, TokenOutputs};
    ///
    /// let mut logprobs = [0.0; 3];
    /// LogProbs::new()
    ///     .candidates(&[3u32, 0, 3], 3)
    ///     .run(Logits::new(&[0.0_f32; 4], 1, 4)?, TokenOutputs::new().candidates(&mut logprobs))?;
    /// assert_eq!(logprobs, [-(4f32.ln()); 3]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn candidates(mut self, ids: impl Into<Ids<'a>>, k: usize) -> Self {
        self.candidates = Some((ids.into(), k));
        self
    }

    /// How many of the most probable tokens to find: at most [`LogProbs::MAX_TOP_K`], or [`Error::Option`]. 0 is off. More
    /// than the vocabulary are all of it: results are `[rows, min(k, vocab)]`.
    pub const fn top_k(mut self, k: usize) -> Self {
        self.top_k = k;
        self
    }

    /// For [`LogProbs::row_stats`] and [`LogProbs::collect`], which have no buffers to tell: whether to count ranks.
    pub const fn ranks(mut self, wanted: bool) -> Self {
        self.ranks = wanted;
        self
    }

    /// As [`LogProbs::ranks`], of the entropy.
    pub const fn entropy(mut self, wanted: bool) -> Self {
        self.entropy = wanted;
        self
    }

    /// As [`LogProbs::ranks`], of the variance of the log-probabilities.
    pub const fn varentropy(mut self, wanted: bool) -> Self {
        self.varentropy = wanted;
        self
    }

    /// Draws a token of each row, in the same pass: see [`Sample`], of which there is one per row.
    ///
    /// ```
    /// use xent::{LogProbs, Logits, Sample, TokenOutputs};
    ///
    /// let logits = Logits::new(&[0.0_f32, 9.0, 0.0, 0.0], 1, 4)?;
    /// let (mut token, mut logprob) = ([0], [0.0]);
    /// let out = TokenOutputs::new().sampled(&mut token).sampled_logprobs(&mut logprob);
    /// LogProbs::new().sample(&[Sample::new(42, 0)]).run(logits, out)?;
    /// assert_eq!((token, logprob), ([1], [-0.00037016088])); // of its probability, 0.9996
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn sample(mut self, samples: &'a [Sample]) -> Self {
        self.samples = Some(samples);
        self
    }

    /// What logits are divided by: a positive number of the range of `f32`. The distribution that everything is
    /// reported of is that at this temperature; a [`Sample`] has another of its own.
    ///
    /// Order does not depend on it: argmax, top k, ranks and greedy draws are of the logits before the division, which may make
    /// equals of them. A row that a low temperature takes out of the range of `f32` is divided from its largest logit on: that
    /// has log-probability 0. (Shards do not know the largest logit of the row: theirs becomes NaN then.)
    pub const fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// What is added to the logits of some tokens, before the temperature.
    pub const fn logit_bias(mut self, bias: LogitBias<'a>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Which tokens may be; the others are as if their logits were -inf.
    pub const fn allowed_tokens(mut self, allowed: AllowedTokens<'a>) -> Self {
        self.allowed = Some(allowed);
        self
    }

    /// The instructions to use, instead of [`Backend::selected`].
    pub const fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Answers into the buffers of `out`. Does not allocate, except for [`Logits::classes_first`] and, once a call,
    /// where a row is spread over threads.
    ///
    /// # Errors
    /// [`Error::TargetCount`], [`Error::TargetOutOfRange`], [`Error::Sequence`] and [`Error::Shift`] for targets,
    /// [`Error::Missing`] for an output that needs targets, candidates, samples or a `top_k` that were not given,
    /// [`Error::OutputLength`] for one of the wrong length, [`Error::InputLength`] and [`Error::CandidateOutOfRange`]
    /// for candidates, [`Error::SampleTemperature`] for samples, [`Error::LogitBias`], [`Error::Option`] for the
    /// temperature, `top_k` and targets that are probabilities, [`Error::Overflow`] for a vocabulary of [`u32::MAX`]
    /// classes or more, the errors of masks, and those of [`Backend::selected`].
    /// On error all outputs are as they were.
    pub fn run<T: Element>(
        &self,
        logits: Logits<'_, T>,
        out: TokenOutputs<'_, T::Real>,
    ) -> Result<(), Error> {
        let (rows, vocab) = (logits.rows(), logits.vocab());
        let kernels = Backend::kernels(self.backend)?;
        let wanted = Wanted {
            level: match (&out.varentropy, &out.entropy) {
                (Some(_), _) => sum::SECOND,
                (None, Some(_)) => sum::FIRST,
                (None, None) => sum::STEPS,
            },
            ranks: out.ranks.is_some() || out.strict_ranks.is_some(),
            strict_ranks: out.strict_ranks.is_some(),
            top_k: if out.top_ids.is_some() || out.top_logprobs.is_some() {
                self.check_top_k(vocab)?
            } else {
                0
            },
            loss: out.logprobs.is_some(),
        };
        let ask = self.check(rows, vocab, 0, vocab, wanted)?;
        out.check(rows, &ask, self.top_k > 0)?;
        if out.is_empty() {
            // Rows of no classes may be as many as can be counted.
            return Ok(());
        }
        if let Some(targets) = ask.targets
            && T::HAS_FORWARD
            && out.wants_loss_only()
            && ask.parts_of_rows(rows, vocab) == 1
            && float_env::scope(|| self.is_raw())
        {
            let out = RowSlices { logprobs: out.logprobs, ..RowSlices::default() };
            let job = forward::Job { logits, targets, out, argmax: false };
            panels::run(kernels, job, logits.columns(), None);
            return Ok(());
        }
        let job = Batch { logits, ask: &ask, first: 0, out: Sink::Outputs(out) };
        panels::run(kernels, job, logits.columns(), None);
        Ok(())
    }

    /// As [`LogProbs::run`], into vectors: log-probabilities where there are targets, argmax and logsumexp, and whatever
    /// else was asked for.
    ///
    /// ```
    /// use xent::{LogProbs, Logits};
    ///
    /// let logits = Logits::new(&[1.0_f32, 3.0, 2.0, 0.0], 1, 4)?;
    /// let found = LogProbs::new().targets(&[2i64]).top_k(2).ranks(true).collect(logits)?;
    /// assert_eq!((found.logprobs[0], found.ranks[0]), (-1.4401897, 2));
    /// assert_eq!(found.top(0).collect::<Vec<_>>(), [(1, -0.4401897), (2, -1.4401897)]);
    /// assert_eq!(found.argmax, [1]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`LogProbs::run`], and [`Error::Overflow`] if the results of so many rows are more than memory holds.
    pub fn collect<T: Element>(
        &self,
        logits: Logits<'_, T>,
    ) -> Result<TokenLogProbs<T::Real>, Error> {
        let (rows, vocab) = (logits.rows(), logits.vocab());
        let per_row = |wanted: bool| if wanted { rows } else { 0 };
        let (targets, samples) = (self.targets.is_some(), self.samples.is_some());
        let mut k = 0;
        if let Some((ids, each)) = self.candidates {
            // Before there is memory for as many.
            let len = rows.checked_mul(each).ok_or(Error::Overflow { rows, elements: each })?;
            Error::check_input("candidates", ids.len(), len)?;
            k = each;
        }
        let top = self.check_top_k(vocab)?;
        // Before memory is taken for rows that there may be no targets for.
        let wanted = Wanted {
            level: sum::STEPS,
            ranks: false,
            strict_ranks: false,
            top_k: top,
            loss: false,
        };
        let ask = self.check(rows, vocab, 0, vocab, wanted)?;
        let mut found = TokenLogProbs {
            targets: zeros(per_row(targets), 1)?,
            logprobs: zeros(per_row(targets), 1)?,
            ranks: zeros(per_row(targets && self.ranks), 1)?,
            strict_ranks: zeros(per_row(targets && self.ranks), 1)?,
            candidates: zeros(rows, k)?,
            k: top,
            top_ids: zeros(rows, top)?,
            top_logprobs: zeros(rows, top)?,
            argmax: zeros(rows, 1)?,
            entropy: zeros(per_row(self.entropy), 1)?,
            varentropy: zeros(per_row(self.varentropy), 1)?,
            logsumexp: zeros(rows, 1)?,
            sampled: zeros(per_row(samples), 1)?,
            sampled_logprobs: zeros(per_row(samples), 1)?,
        };
        let has_ranks = targets && self.ranks;
        let out = TokenOutputs {
            logprobs: targets.then_some(&mut found.logprobs[..]),
            ranks: has_ranks.then_some(&mut found.ranks[..]),
            strict_ranks: has_ranks.then_some(&mut found.strict_ranks[..]),
            candidates: self.candidates.is_some().then_some(&mut found.candidates[..]),
            top_ids: Some(&mut found.top_ids),
            top_logprobs: Some(&mut found.top_logprobs),
            argmax: Some(&mut found.argmax),
            entropy: self.entropy.then_some(&mut found.entropy[..]),
            varentropy: self.varentropy.then_some(&mut found.varentropy[..]),
            logsumexp: Some(&mut found.logsumexp),
            sampled: samples.then_some(&mut found.sampled[..]),
            sampled_logprobs: samples.then_some(&mut found.sampled_logprobs[..]),
        };
        self.run(logits, out)?;
        if let Some(targets) = ask.targets {
            for (row, to) in found.targets.iter_mut().enumerate() {
                *to = targets.get(row).map_or(-1, |target| target as i64);
            }
        }
        Ok(found)
    }

    /// What can be said of a shard of the vocabulary, to be merged with what the others say: see [`RowStats`].
    ///
    /// Targets and the ids that are found are of the whole vocabulary; logits, bias and mask are those of the shard,
    /// counted from its first class. Candidates are not used. A target that is in another shard is not in this one's sums. Ranks need its logit:
    /// [`Shard::target_logits`]. What is found is what the builder asks for: log-probability, argmax and logsumexp
    /// always, [`LogProbs::ranks`], [`LogProbs::top_k`], [`LogProbs::entropy`], [`LogProbs::varentropy`] and
    /// [`LogProbs::sample`] if asked. `top_k` may exceed the shard.
    ///
    /// Ignored rows yield [`RowStats::default`].
    ///
    /// # Errors
    /// As [`LogProbs::run`], and [`Error::Shard`] for one that is not part of the vocabulary.
    pub fn row_stats<T: Element<Real = f32>>(
        &self,
        logits: Logits<'_, T>,
        shard: Shard<'_>,
        out: &mut [RowStats],
    ) -> Result<(), Error> {
        let kernels = Backend::kernels(self.backend)?;
        let (rows, classes) = (logits.rows(), logits.vocab());
        let Shard { first, vocab, target_logits } = shard;
        if first.checked_add(classes).is_none_or(|end| end > vocab) {
            return Err(Error::Shard { first, classes, vocab });
        }
        let wanted = Wanted {
            level: match (self.varentropy, self.entropy) {
                (true, _) => sum::SECOND,
                (false, true) => sum::FIRST,
                (false, false) => sum::STEPS,
            },
            ranks: self.ranks,
            strict_ranks: self.ranks,
            top_k: self.check_top_k(vocab)?,
            loss: true,
        };
        let mut ask = self.check(rows, classes, first, vocab, wanted)?;
        if let Some(logits) = target_logits {
            Error::check_input("target logits", logits.len(), rows)?;
        }
        ask.target_logits = target_logits;
        if out.len() != rows {
            return Err(Error::OutputLength { output: "stats", len: out.len(), expected: rows });
        }
        let job = Batch { logits, ask: &ask, first: 0, out: Sink::Stats(out) };
        panels::run(kernels, job, logits.columns(), None);
        Ok(())
    }

    fn is_raw(&self) -> bool {
        self.temperature == 1.0 && self.bias.is_none() && self.allowed.is_none()
    }

    fn check_top_k(&self, vocab: usize) -> Result<usize, Error> {
        if self.top_k <= MAX_TOP_K {
            return Ok(self.top_k.min(vocab));
        }
        let range = "at most 128, the most tokens that are found of a row";
        Err(Error::Option { option: "top_k", value: self.top_k.to_string(), range })
    }

    /// Everything but the outputs.
    fn check(
        &self,
        rows: usize,
        classes: usize,
        first_class: usize,
        vocab: usize,
        wanted: Wanted,
    ) -> Result<Ask<'a>, Error> {
        if vocab >= u32::MAX as usize {
            return Err(Error::Overflow { rows, elements: vocab });
        }
        let targets = match self.targets {
            None => None,
            Some(Targets::Ids(ids)) => Some(TargetRows::new(ids, self.ignored, rows, vocab)?),
            Some(Targets::Shifted(ids)) => {
                Some(TargetRows::shifted(ids, self.ignored, rows, vocab)?)
            }
            Some(others) => {
                // An error, as there are no other ids.
                others.ids_only()?;
                None
            }
        };
        let temperature = self.temperature;
        float_env::scope(|| Error::check_positive("temperature", temperature))?;
        if let Some((ids, k)) = self.candidates {
            let Some(len) = rows.checked_mul(k) else {
                return Err(Error::Overflow { rows, elements: k });
            };
            Error::check_input("candidates", ids.len(), len)?;
            let is_class = |id: i128| usize::try_from(id).is_ok_and(|id| id < vocab);
            if let Some(i) = (0..len).find(|&i| !is_class(ids.get(i))) {
                return Err(Error::CandidateOutOfRange { row: i / k, id: ids.get(i), vocab });
            }
        }
        if let Some(samples) = self.samples {
            Error::check_input("samples", samples.len(), rows)?;
            let impossible = || samples.iter().position(|sample| !sample.is_possible());
            if let Some(row) = float_env::scope(impossible) {
                let temperature = number(samples[row].temperature);
                return Err(Error::SampleTemperature { row, temperature });
            }
        }
        let bias = self.bias.map(|bias| float_env::scope(|| bias.rows(rows, classes)));
        let bias = bias.transpose()?;
        let allowed = self.allowed.map(|allowed| allowed.rows(rows, classes)).transpose()?;
        Ok(Ask {
            targets,
            target_logits: None,
            candidates: self.candidates,
            samples: self.samples,
            transform: Transform { temperature, ..Transform::IDENTITY },
            bias,
            allowed,
            wanted,
            first_class,
            vocab: vocab as u32,
        })
    }
}

/// A part of a vocabulary, from class `first` on: of as many classes as the logits that go with it.
#[derive(Clone, Copy, Debug)]
pub struct Shard<'a> {
    pub(crate) first: usize,
    pub(crate) vocab: usize,
    target_logits: Option<&'a [f32]>,
}

impl<'a> Shard<'a> {
    /// Of a vocabulary of `vocab` classes.
    pub const fn new(first: usize, vocab: usize) -> Self {
        Shard { first, vocab, target_logits: None }
    }

    /// The logits of the targets of all rows, wherever they are: [`RowStats::target_logit`] of the shard that has them,
    /// from an exchange before. Without them a shard that does not have the target counts no ranks, and there is none when all are
    /// merged.
    pub const fn target_logits(mut self, logits: &'a [f32]) -> Self {
        self.target_logits = Some(logits);
        self
    }
}

fn zeros<R: Clone + Default>(rows: usize, each: usize) -> Result<Vec<R>, Error> {
    let mut zeros = Vec::new();
    let overflow = Error::Overflow { rows, elements: each };
    let len = rows.checked_mul(each).ok_or(overflow.clone())?;
    zeros.try_reserve_exact(len).map_err(|_| overflow)?;
    zeros.resize(len, R::default());
    Ok(zeros)
}

/// What [`LogProbs::run`] should write, a buffer for each. What is not given is not computed, unless it comes by the way:
/// `docs/performance.md` has what each output costs.
#[derive(Debug)]
pub struct TokenOutputs<'a, R = f32> {
    logprobs: Option<&'a mut [R]>,
    ranks: Option<&'a mut [i64]>,
    strict_ranks: Option<&'a mut [i64]>,
    candidates: Option<&'a mut [R]>,
    top_ids: Option<&'a mut [i64]>,
    top_logprobs: Option<&'a mut [R]>,
    argmax: Option<&'a mut [i64]>,
    entropy: Option<&'a mut [R]>,
    varentropy: Option<&'a mut [R]>,
    logsumexp: Option<&'a mut [R]>,
    sampled: Option<&'a mut [i64]>,
    sampled_logprobs: Option<&'a mut [R]>,
}

impl<R> Default for TokenOutputs<'_, R> {
    fn default() -> Self {
        TokenOutputs {
            logprobs: None,
            ranks: None,
            strict_ranks: None,
            candidates: None,
            top_ids: None,
            top_logprobs: None,
            argmax: None,
            entropy: None,
            varentropy: None,
            logsumexp: None,
            sampled: None,
            sampled_logprobs: None,
        }
    }
}

impl<'a, R> TokenOutputs<'a, R> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The log-probability of each target.
    pub fn logprobs(mut self, out: &'a mut [R]) -> Self {
        self.logprobs = Some(out);
        self
    }

    /// How many logits are at least that of the target, itself among them: 1 for the largest, and where others are equal
    /// the last place they share. That is vLLM's `rank`. Of transformed logits: a masked target comes last.
    pub fn ranks(mut self, out: &'a mut [i64]) -> Self {
        self.ranks = Some(out);
        self
    }

    /// One more than how many logits are above that of the target: where others are equal the first place they share.
    pub fn strict_ranks(mut self, out: &'a mut [i64]) -> Self {
        self.strict_ranks = Some(out);
        self
    }

    /// `[rows, k]` log-probabilities of [`LogProbs::candidates`].
    pub fn candidates(mut self, out: &'a mut [R]) -> Self {
        self.candidates = Some(out);
        self
    }

    /// `[rows, k]` tokens with the largest logits and their log-probabilities, for [`LogProbs::top_k`]: in descending
    /// order, of equals the lower id first. For a `k` above the vocabulary `[rows, vocab]`.
    pub fn top_k(mut self, ids: &'a mut [i64], logprobs: &'a mut [R]) -> Self {
        (self.top_ids, self.top_logprobs) = (Some(ids), Some(logprobs));
        self
    }

    /// The first token with the largest logit, or with a NaN if there is one.
    pub fn argmax(mut self, out: &'a mut [i64]) -> Self {
        self.argmax = Some(out);
        self
    }

    /// `-sum_j p[j] ln p[j]`, in nats. -inf does not count.
    pub fn entropy(mut self, out: &'a mut [R]) -> Self {
        self.entropy = Some(out);
        self
    }

    /// The variance of `ln p[j]` under `p`, in square nats.
    pub fn varentropy(mut self, out: &'a mut [R]) -> Self {
        self.varentropy = Some(out);
        self
    }

    /// `ln(sum_j e^z[j])`: -inf for nothing but -inf, +inf if there is one, NaN if there is one.
    pub fn logsumexp(mut self, out: &'a mut [R]) -> Self {
        self.logsumexp = Some(out);
        self
    }

    /// The tokens drawn for [`LogProbs::sample`]; -1 where there is none that could be.
    pub fn sampled(mut self, out: &'a mut [i64]) -> Self {
        self.sampled = Some(out);
        self
    }

    /// Their log-probabilities, at the temperature of [`LogProbs::temperature`]; NaN where there is none.
    pub fn sampled_logprobs(mut self, out: &'a mut [R]) -> Self {
        self.sampled_logprobs = Some(out);
        self
    }

    /// Whether there is no place for any result.
    fn is_empty(&self) -> bool {
        let reals = [
            &self.logprobs,
            &self.candidates,
            &self.top_logprobs,
            &self.entropy,
            &self.varentropy,
            &self.logsumexp,
            &self.sampled_logprobs,
        ];
        let ids = [&self.ranks, &self.strict_ranks, &self.top_ids, &self.argmax, &self.sampled];
        let lengths = reals.map(len).into_iter().chain(ids.map(len));
        lengths.flatten().all(|len| len == 0)
    }

    fn wants_loss_only(&self) -> bool {
        self.ranks.is_none()
            && self.strict_ranks.is_none()
            && self.candidates.is_none()
            && self.top_ids.is_none()
            && self.top_logprobs.is_none()
            && self.argmax.is_none()
            && self.entropy.is_none()
            && self.varentropy.is_none()
            && self.logsumexp.is_none()
            && self.sampled.is_none()
            && self.sampled_logprobs.is_none()
    }

    fn check(&self, rows: usize, ask: &Ask<'_>, has_top_k: bool) -> Result<(), Error> {
        const TOP_K: &str = "LogProbs::top_k(k), how many to find";
        let fits = |len: Option<usize>| has_top_k || len == Some(0);
        let k = ask.candidates.map_or(0, |(_, k)| k);
        let top_k = ask.wanted.top_k;
        let all = [
            ("logprobs", len(&self.logprobs), 1, ask.targets.is_some(), "targets"),
            ("ranks", len(&self.ranks), 1, ask.targets.is_some(), "targets"),
            ("strict_ranks", len(&self.strict_ranks), 1, ask.targets.is_some(), "targets"),
            ("candidates", len(&self.candidates), k, ask.candidates.is_some(), "candidates"),
            ("top_k ids", len(&self.top_ids), top_k, fits(len(&self.top_ids)), TOP_K),
            (
                "top_k logprobs",
                len(&self.top_logprobs),
                top_k,
                fits(len(&self.top_logprobs)),
                TOP_K,
            ),
            ("argmax", len(&self.argmax), 1, true, ""),
            ("entropy", len(&self.entropy), 1, true, ""),
            ("varentropy", len(&self.varentropy), 1, true, ""),
            ("logsumexp", len(&self.logsumexp), 1, true, ""),
            ("sampled", len(&self.sampled), 1, ask.samples.is_some(), "samples"),
            ("sampled_logprobs", len(&self.sampled_logprobs), 1, ask.samples.is_some(), "samples"),
        ];
        for (output, len, each, given, needs) in all {
            let Some(len) = len else { continue };
            if !given {
                return Err(Error::Missing { output, needs });
            }
            let expected =
                rows.checked_mul(each).ok_or(Error::Overflow { rows, elements: each })?;
            if len != expected {
                return Err(Error::OutputLength { output, len, expected });
            }
        }
        Ok(())
    }
}

fn len<T>(slice: &Option<&mut [T]>) -> Option<usize> {
    slice.as_ref().map(|slice| slice.len())
}

/// What [`LogProbs::collect`] found. Vectors of what was not asked for are empty; the others have an element per row, or
/// `k` of them.
///
/// With the feature `serde` it can be written and read. JSON has no -inf and no NaN: what writes null for them does not
/// read it as a number; the module `openai` has a floor instead.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TokenLogProbs<R = f32> {
    /// The target of each row, -1 for rows that have none: ignored ones, and the last of [shifted](Targets::shifted)
    /// sequences. Empty also where what was read with serde was written before there was this list.
    #[cfg_attr(feature = "serde", serde(default))]
    pub targets: Vec<i64>,
    /// Of the targets. 0 for rows that have none, which is no log-probability: [`TokenLogProbs::logprob`] tells.
    pub logprobs: Vec<R>,
    /// [`TokenOutputs::ranks`].
    pub ranks: Vec<i64>,
    /// [`TokenOutputs::strict_ranks`].
    pub strict_ranks: Vec<i64>,
    /// `[rows, k]`, of the candidates.
    pub candidates: Vec<R>,
    /// Of [`LogProbs::top_k`], at most the vocabulary.
    pub k: usize,
    /// `[rows, k]`
    pub top_ids: Vec<i64>,
    /// `[rows, k]`
    pub top_logprobs: Vec<R>,
    /// [`TokenOutputs::argmax`].
    pub argmax: Vec<i64>,
    /// [`TokenOutputs::entropy`].
    pub entropy: Vec<R>,
    /// [`TokenOutputs::varentropy`].
    pub varentropy: Vec<R>,
    /// [`TokenOutputs::logsumexp`].
    pub logsumexp: Vec<R>,
    /// [`TokenOutputs::sampled`].
    pub sampled: Vec<i64>,
    /// [`TokenOutputs::sampled_logprobs`].
    pub sampled_logprobs: Vec<R>,
}

impl<R: Copy> TokenLogProbs<R> {
    /// The log-probability of the target of a row; `None` for a row that has none, that there is not, or if no targets
    /// were given.
    ///
    /// ```
    /// use xent::{LogProbs, Logits};
    ///
    /// let logits = Logits::new(&[0.0_f32; 6], 3, 2)?;
    /// let found = LogProbs::new().targets(&[1i64, -100, 0]).collect(logits)?;
    /// assert_eq!((&found.targets[..], found.logprobs[1]), (&[1, -1, 0][..], 0.0));
    /// let kept: Vec<f32> = (0..3).filter_map(|row| found.logprob(row)).collect();
    /// let mean = kept.iter().sum::<f32>() / kept.len() as f32;
    /// assert_eq!((kept.len(), mean), (2, -0.6931472));
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn logprob(&self, row: usize) -> Option<R> {
        let logprob = self.logprobs.get(row).copied();
        logprob.filter(|_| self.targets.get(row).is_none_or(|&target| target >= 0))
    }

    /// The most probable tokens of a row and their log-probabilities, in descending order; none for a row that there is
    /// not.
    pub fn top(&self, row: usize) -> impl Iterator<Item = (i64, R)> + '_ {
        let range = row.saturating_mul(self.k)..row.saturating_add(1).saturating_mul(self.k);
        let ids = self.top_ids.get(range.clone()).unwrap_or(&[]);
        let logprobs = self.top_logprobs.get(range).unwrap_or(&[]);
        ids.iter().copied().zip(logprobs.iter().copied())
    }
}

/// A request, checked. What is per row is of all rows.
pub(crate) struct Ask<'a> {
    targets: Option<TargetRows<'a>>,
    target_logits: Option<&'a [f32]>,
    candidates: Option<(Ids<'a>, usize)>,
    samples: Option<&'a [Sample]>,
    transform: Transform<'static>,
    bias: Option<BiasRows<'a>>,
    allowed: Option<AllowedRows<'a>>,
    wanted: Wanted,
    /// Of the shard.
    first_class: usize,
    /// Of the whole vocabulary.
    vocab: u32,
}

impl Ask<'_> {
    fn parts_of_rows(&self, rows: usize, vocab: usize) -> usize {
        // Random numbers take longer than everything else.
        let cost = if self.samples.is_some() { 4 } else { 1 };
        parts_of_rows(rows, vocab, cost)
    }
}

/// A group of rows, from `first` on.
///
/// Arithmetic is in scopes of [`float_env`], one for each step: a row may be cut into parts between
/// two of them.
struct Batch<'a, T: Element> {
    logits: Logits<'a, T>,
    ask: &'a Ask<'a>,
    first: usize,
    out: Sink<'a, T::Real>,
}

enum Sink<'a, R> {
    Outputs(TokenOutputs<'a, R>),
    Stats(&'a mut [RowStats]),
}

impl<T: Element> Batch<'_, T> {
    fn answer(&mut self, kernels: Kernels, parts: usize) {
        let ask = self.ask;
        let mut scratch = Scratch { stats: RowStats::default(), top: Top::new(0) };
        for i in 0..self.logits.rows() {
            let row = self.first + i;
            let target = match &ask.targets {
                None => None,
                Some(targets) => match targets.get(row) {
                    None => {
                        self.out.write_ignored(i, ask);
                        continue;
                    }
                    target => target,
                },
            };
            let x = self.logits.row(i);
            let mut transform = Transform {
                allowed: ask.allowed.map(|allowed| allowed.row(row)),
                bias: ask.bias.map_or(&[], |bias| bias.row(row)),
                ..ask.transform
            };
            let local = target
                .and_then(|target| target.checked_sub(ask.first_class))
                .filter(|&target| target < x.len());
            let raw_of = |class: usize| float_env::scope(|| T::raw(&transform, class, x[class]));
            let own = local.map(raw_of);
            let elsewhere = |logits: &[f32]| float_env::scope(|| logits[row].into());
            let mut part = Part {
                row: x,
                classes: 0..x.len(),
                transform,
                wanted: ask.wanted,
                target: local,
                target_logit: own.or(ask.target_logits.map(elsewhere)),
                draw: ask.samples.map(|samples| float_env::scope(|| samples[row].draw())),
                first_id: ask.first_class as u32,
                vocab: ask.vocab,
            };
            match &mut self.out {
                Sink::Stats(out) => {
                    if let Some(row) = T::any_row(x) {
                        row_stats(kernels, &part.of(row), parts, &mut out[i]);
                    }
                }
                Sink::Outputs(out) => {
                    let mut found = found(kernels, &part, parts, &mut scratch);
                    if float_env::scope(|| found.is_out_of_range(&transform)) {
                        transform.origin = found.max;
                        part.transform.origin = found.max;
                        found = self::found(kernels, &part, parts, &mut scratch);
                    }
                    let z = |id: i128| {
                        let class = id as usize;
                        T::cooled(&transform, T::raw(&transform, class, x[class]))
                    };
                    let cooled = |raw: f64| T::cooled(&transform, raw);
                    float_env::scope(|| {
                        let target_logit = own.map(cooled);
                        out.write(
                            i,
                            row,
                            &found,
                            target_logit,
                            ask,
                            (z, |raw: T::Real| cooled(raw.into())),
                        );
                    });
                }
            }
        }
    }
}

/// Everything about a row, in so many parts.
fn found<'s, T: Element>(
    kernels: Kernels,
    part: &Part<'_, &[T]>,
    parts: usize,
    scratch: &'s mut Scratch<T::Real>,
) -> Found<'s, T::Real> {
    if let Some(row) = T::any_row(part.row) {
        row_stats(kernels, &part.of(row), parts, &mut scratch.stats);
    }
    T::found(part, scratch)
}

impl<R: Real> Sink<'_, R> {
    fn write_ignored(&mut self, i: usize, ask: &Ask<'_>) {
        match self {
            Sink::Stats(out) => out[i] = RowStats::default(),
            Sink::Outputs(out) => out.write_ignored(i, ask),
        }
    }
}

impl<R: Real> TokenOutputs<'_, R> {
    /// Row `i` of these, which is row `row` of the inputs.
    fn write(
        &mut self,
        i: usize,
        row: usize,
        found: &Found<'_, R>,
        target_logit: Option<f64>,
        ask: &Ask<'_>,
        (z, cooled): (impl Fn(i128) -> f64, impl Fn(R) -> f64),
    ) {
        let Distribution { entropy, varentropy, .. } = found.distribution;
        // Of any token but the target of the row: they must not depend on which that is.
        let logprob = |z: f64| found.distribution.logprob(z);
        if let Some(out) = &mut self.logprobs {
            out[i] =
                rounded(found.logprob.unwrap_or_else(|| target_logit.map_or(f64::NAN, logprob)));
        }
        if let Some(out) = &mut self.ranks {
            out[i] = found.ranks.0 as i64;
        }
        if let Some(out) = &mut self.strict_ranks {
            out[i] = found.ranks.1 as i64;
        }
        if let Some((out, (ids, k))) = self.candidates.as_mut().zip(ask.candidates) {
            for (j, out) in out[i * k..][..k].iter_mut().enumerate() {
                let id = ids.get(row * k + j);
                *out = rounded(logprob(z(id)));
            }
        }
        let k = ask.wanted.top_k;
        if let Some(out) = &mut self.top_ids {
            for (out, &(_, id)) in out[i * k..][..k].iter_mut().zip(found.top) {
                *out = id.into();
            }
        }
        if let Some(out) = &mut self.top_logprobs {
            for (out, &(raw, _)) in out[i * k..][..k].iter_mut().zip(found.top) {
                *out = rounded(logprob(cooled(raw)));
            }
        }
        if let Some(out) = &mut self.argmax {
            out[i] = found.argmax;
        }
        if let Some(out) = &mut self.entropy {
            out[i] = R::from_f64(entropy);
        }
        if let Some(out) = &mut self.varentropy {
            out[i] = R::from_f64(varentropy);
        }
        if let Some(out) = &mut self.logsumexp {
            out[i] = R::from_f64(found.logsumexp);
        }
        if let Some(out) = &mut self.sampled {
            out[i] = found.drawn.map_or(-1, |(id, _)| id.into());
        }
        if let Some(out) = &mut self.sampled_logprobs {
            out[i] = rounded(found.drawn.map_or(f64::NAN, |(_, z)| logprob(z)));
        }
    }

    fn write_ignored(&mut self, i: usize, ask: &Ask<'_>) {
        let zero = R::default();
        let one = |out: &mut Option<&mut [R]>| {
            if let Some(out) = out {
                out[i] = zero;
            }
        };
        for out in [
            &mut self.logprobs,
            &mut self.entropy,
            &mut self.varentropy,
            &mut self.logsumexp,
            &mut self.sampled_logprobs,
        ] {
            one(out);
        }
        for (out, value) in [
            (&mut self.ranks, 0),
            (&mut self.strict_ranks, 0),
            (&mut self.argmax, -1),
            (&mut self.sampled, -1),
        ] {
            if let Some(out) = out {
                out[i] = value;
            }
        }
        if let Some((out, (_, k))) = self.candidates.as_mut().zip(ask.candidates) {
            out[i * k..][..k].fill(zero);
        }
        let k = ask.wanted.top_k;
        if let Some(out) = &mut self.top_ids {
            out[i * k..][..k].fill(-1);
        }
        if let Some(out) = &mut self.top_logprobs {
            out[i * k..][..k].fill(zero);
        }
    }

    fn split_at(self, row: usize, ask: &Ask<'_>) -> (Self, Self) {
        let k = ask.candidates.map_or(0, |(_, k)| k);
        let top_k = ask.wanted.top_k;
        let (logprobs, logprobs_b) = split(self.logprobs, row);
        let (ranks, ranks_b) = split(self.ranks, row);
        let (strict_ranks, strict_ranks_b) = split(self.strict_ranks, row);
        let (candidates, candidates_b) = split(self.candidates, row * k);
        let (top_ids, top_ids_b) = split(self.top_ids, row * top_k);
        let (top_logprobs, top_logprobs_b) = split(self.top_logprobs, row * top_k);
        let (argmax, argmax_b) = split(self.argmax, row);
        let (entropy, entropy_b) = split(self.entropy, row);
        let (varentropy, varentropy_b) = split(self.varentropy, row);
        let (logsumexp, logsumexp_b) = split(self.logsumexp, row);
        let (sampled, sampled_b) = split(self.sampled, row);
        let (sampled_logprobs, sampled_logprobs_b) = split(self.sampled_logprobs, row);
        let a = TokenOutputs {
            logprobs,
            ranks,
            strict_ranks,
            candidates,
            top_ids,
            top_logprobs,
            argmax,
            entropy,
            varentropy,
            logsumexp,
            sampled,
            sampled_logprobs,
        };
        let b = TokenOutputs {
            logprobs: logprobs_b,
            ranks: ranks_b,
            strict_ranks: strict_ranks_b,
            candidates: candidates_b,
            top_ids: top_ids_b,
            top_logprobs: top_logprobs_b,
            argmax: argmax_b,
            entropy: entropy_b,
            varentropy: varentropy_b,
            logsumexp: logsumexp_b,
            sampled: sampled_b,
            sampled_logprobs: sampled_logprobs_b,
        };
        (a, b)
    }
}

impl<T: Element> Rows for Batch<'_, T> {
    fn rows(&self) -> usize {
        self.logits.rows()
    }
    fn vocab(&self) -> usize {
        self.logits.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (logits, logits_b) = self.logits.split_at(row);
        let (ask, first) = (self.ask, self.first);
        let (out, out_b) = match self.out {
            Sink::Outputs(out) => {
                let (a, b) = out.split_at(row, ask);
                (Sink::Outputs(a), Sink::Outputs(b))
            }
            Sink::Stats(out) => {
                let (a, b) = out.split_at_mut(row);
                (Sink::Stats(a), Sink::Stats(b))
            }
        };
        (
            Batch { logits, ask, first, out },
            Batch { logits: logits_b, ask, first: first + row, out: out_b },
        )
    }
}

impl<T: Element> Panels<T> for Batch<'_, T> {
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, _: Option<LogitsMut<'_, T>>) {
        let job = Batch { logits: x.unwrap_or(self.logits), ..self };
        let parts = job.ask.parts_of_rows(job.rows(), job.vocab());
        for_each_group(job, &|job: &mut Batch<'_, T>| job.answer(kernels, parts));
    }
}
