//! Sampling that depends on nothing but a seed, a position and the logits.
#![forbid(unsafe_code)]

use crate::data::error::{Error, number};
use crate::dispatch::element::Real;
use crate::kernel::gumbel::{self, Key};
use crate::kernel::part::Draw;
use crate::kernel::row_stats::{Distribution, NONE, RowStats};
use crate::kernel::top::MAX_TOP_K;
use crate::math::{self, Compensated};
use crate::simd::float_env;

/// How to draw a token of a row: the Gumbel-max trick with a random number per token.
///
/// The token with the largest `z[j] + temperature * g[j]` is drawn, where `g[j] = -ln(-ln(u[j]))` and `u[j]` is made of
/// 64 bits of Philox4x32-10, whose key is the seed and whose counter is the position and the token. That has the
/// probabilities of `softmax(z / temperature)` (`tests/sampling.rs`, chi-square), and the draw is the same for any number
/// of threads, vector width, batch, or shards of the vocabulary. Both tails of `g` are exact: tokens with a probability
/// of 1e-19 are still drawn as often as they should be.
///
/// Temperature 0 is the argmax. Logits beyond 2^50 times the temperature leave no digits for `g` in the sum, which is taken in
/// `f64`: of equal ones the lowest wins.
///
/// Of a request: its seed, and the position of the token to be drawn, so that no two draws share their random numbers.
///
/// ```
/// use xent::Sample;
///
/// let sample = Sample::new(42, 7).temperature(0.8);
/// assert_eq!(sample.temperature, 0.8);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Of a request.
    pub seed: u64,
    /// Of the token in its sequence.
    pub position: u64,
    /// Finite and at least 0. The log-probabilities that are reported are not of this temperature: draws at any
    /// temperature come from the one read of the row.
    pub temperature: f64,
}

impl Sample {
    /// At temperature 1.
    pub const fn new(seed: u64, position: u64) -> Self {
        Sample { seed, position, temperature: 1.0 }
    }

    /// Closer to the argmax below 1, more even above.
    pub const fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    pub(crate) fn is_possible(&self) -> bool {
        self.temperature >= 0.0 && self.temperature.is_finite()
    }

    fn key(&self) -> Key {
        Key { seed: self.seed, position: self.position }
    }

    pub(crate) fn draw(&self) -> Draw {
        // From there on all draws are uniform; sums must not overflow.
        Draw { key: self.key(), temperature: self.temperature.min(1e300) }
    }
}

/// Draws among the most probable tokens: top-k, top-p (nucleus) and min-p over what [`LogProbs::top_k`] found, without
/// the row.
///
/// Filters apply in the order of Hugging Face, after the temperature, each to what the one before left: `top_k`, `top_p`,
/// `min_p`. (llama.cpp has the same order, but applies the temperature last.) The result is that of the whole vocabulary, or an
/// error: [`Error::TooFewTokens`] says that a filter would leave tokens that are not among
/// those given. [`Sampler::draw`] takes tokens and their log-probabilities, [`Sampler::draw_row`] the statistics of a row.
///
/// # Where a filter ends
/// A sum of probabilities that reaches `p` but for rounding has reached it, and a token that is `p` times as probable as the
/// first but for rounding stays. Of four equal tokens `top_p(0.25)` leaves one and `top_p(0.5)` two; of the logits
/// `[0, ln 0.5]` `min_p(0.5)` leaves both. Exactly, with log-probabilities `l[0] >= l[1] >= ..` of which each may be off
/// by `d[i]`, with the temperature `t` of the sample, `e[i] = min(d[i] / t, 2^-10)` and `w[i] = exp((l[i] - l[0]) / t)`:
///
/// - `top_p`, where the tokens that `top_k` leaves are known (or all): the first `n` have reached `p` if
///   `A >= p (A + B) (1 - 2^-49)` for `A = sum of w[i] (1 + e[i])` over the first `n`, and `B = sum of w[i] (1 - e[i])` over the
///   others that are left;
/// - `top_p` of a vocabulary of which not all is known (`t` is 1): if
///   `sum of exp(l[i]) (1 + d[i]) >= p (1 - 2^-49)` over the first `n`;
/// - `min_p` below 1 leaves the first, and those after it as long as
///   `exp((l[i] - l[0]) / t + min((d[i] + d[0]) / t, 2^-10)) >= p (1 - 2^-49)`; `min_p` of 1 leaves those with `w[i] = 1`.
///
/// In [`Sampler::draw`] `d[i]` is what [`LogProbs`](crate::LogProbs) states, 2 ULP of `l[i]` in `f32` or 4 in `f64`, which
/// covers that it was rounded. [`Sampler::draw_row`] has the logits, and takes `d[i]` for 0 where all that is left is known. Of a
/// vocabulary of which not all is known it is `2^-23 min(1, -l[0])`, which is what the sum of the pass may be off by; for
/// `min_p`, half an ULP of `f32` of the logit, as what is exactly `p` times as probable is rarely a number of `f32`. 2^-49
/// covers the rounding of `p` to `f64`, of the exponentials (2 ULP) and of the sums, which are compensated.
///
/// [`LogProbs::top_k`]: crate::LogProbs::top_k
///
/// ```
/// use xent::{LogProbs, Logits, Sample, Sampler, TokenOutputs};
///
/// let logits = Logits::new(&[1.0_f32, 5.0, 4.0, 0.0, 0.5, -1.0], 1, 6)?;
/// let (mut ids, mut logprobs) = ([0; 4], [0.0; 4]);
/// LogProbs::new().top_k(4).run(logits, TokenOutputs::new().top_k(&mut ids, &mut logprobs))?;
/// let sampler = Sampler::new().top_p(0.9).min_p(0.05);
/// let token = sampler.draw(&ids, &logprobs, 6, Sample::new(42, 0))?;
/// assert!([1, 2].contains(&token)); // of probabilities 0.70 and 0.26
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampler {
    /// Not 0.
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
}

impl Sampler {
    /// No filter: that needs the whole vocabulary, which [`LogProbs::sample`](crate::LogProbs::sample) draws from.
    pub const fn new() -> Self {
        Sampler { top_k: None, top_p: None, min_p: None }
    }

    /// Leaves the `k` most probable tokens, of equal ones those with the lower ids. 0 is off, as in vLLM, llama.cpp and
    /// Hugging Face, and so is the vocabulary or more.
    pub const fn top_k(mut self, k: usize) -> Self {
        self.top_k = if k == 0 { None } else { Some(k) };
        self
    }

    /// Leaves as few of the most probable tokens as together have at least the probability `p`, of those that `top_k`
    /// leaves: [above](Sampler#where-a-filter-ends) is what rounding may do. At least one is left, also for 0. From 1 on
    /// it is off.
    ///
    /// Without `top_k` probabilities are those of the whole vocabulary. Unless all of it is known, they are known for the
    /// temperature of the log-probabilities only: a [`Sample`] must have temperature 1 or 0 then, or drawing is an error.
    pub const fn top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Leaves the tokens that are at least `p` times as probable as the most probable one, at the temperature of the
    /// sample. 0 is off.
    pub const fn min_p(mut self, p: f64) -> Self {
        self.min_p = Some(p);
        self
    }

    /// Draws one of the tokens: `ids` and their log-probabilities in descending order, as
    /// [`TokenOutputs::top_k`](crate::TokenOutputs::top_k) has them for a vocabulary of `vocab`.
    ///
    /// Without a filter that bites, the token is the one that [`LogProbs::sample`](crate::LogProbs::sample) draws for the
    /// same sample, but for ties after rounding.
    ///
    /// # Errors
    /// [`Error::InputLength`] unless there are as many log-probabilities as ids, [`Error::Option`] for `top_p` or
    /// `min_p` that is negative or NaN, and for a temperature that `top_p` cannot be computed at (see
    /// there), [`Error::SampleTemperature`] (row 0), [`Error::TooFewTokens`], and [`Error::NothingToSample`] for
    /// log-probabilities that are NaN or all -inf, [`Error::NotAToken`] (row 0) for ids that none is.
    pub fn draw<R: Real>(
        &self,
        ids: &[i64],
        logprobs: &[R],
        vocab: usize,
        sample: Sample,
    ) -> Result<i64, Error> {
        Error::check_input("log-probabilities of tokens", logprobs.len(), ids.len())?;
        float_env::scope(|| self.draw_among(&Reported { ids, logprobs }, vocab, sample))
    }

    /// As [`Sampler::draw`], of what [`LogProbs::row_stats`](crate::LogProbs::row_stats) found with
    /// [`LogProbs::top_k`](crate::LogProbs::top_k) about a row of `vocab` classes, its shards merged if it had any.
    ///
    /// Nothing is rounded to `f32` on the way: filters decide with the logits and with the sum that the pass over the row
    /// had, within 2^-23 of itself. Without a filter that bites, the token is the one that
    /// [`LogProbs::sample`](crate::LogProbs::sample) draws, always.
    ///
    /// ```
    /// use xent::{LogProbs, Logits, RowStats, Sample, Sampler, Shard};
    ///
    /// let mut row = [RowStats::default()];
    /// let logits = Logits::new(&[0.0_f32; 50_000], 1, 50_000)?;
    /// LogProbs::new().top_k(40).row_stats(logits, Shard::new(0, 50_000), &mut row)?;
    /// let sampler = Sampler::new().top_p(0.0004); // 20 of 50,000 equal tokens
    /// let token = sampler.draw_row(&row[0], 50_000, Sample::new(42, 0))?;
    /// assert!((0..20).contains(&token));
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Sampler::draw`]; [`Error::NothingToSample`] also for statistics without the most probable tokens, as those of
    /// an ignored row.
    pub fn draw_row(&self, row: &RowStats, vocab: usize, sample: Sample) -> Result<i64, Error> {
        float_env::scope(|| self.draw_among(&OfRow::new(row), vocab, sample))
    }

    fn draw_among(&self, tokens: &impl Ranked, vocab: usize, sample: Sample) -> Result<i64, Error> {
        let known = tokens.len();
        self.check(known, vocab, &sample)?;
        let is_nan = |i: usize| tokens.logprob(i).is_nan();
        if known == 0 || (0..known).any(is_nan) || tokens.logprob(0) == f64::NEG_INFINITY {
            return Err(Error::NothingToSample { known });
        }
        let is_token = |id: &i64| (0..i64::from(NONE)).contains(id);
        if let Some(id) = (0..known).map(|i| tokens.id(i)).find(|id| !is_token(id)) {
            return Err(Error::NotAToken { row: 0, id: id.into() });
        }
        let t = sample.draw().temperature;
        if t == 0.0 {
            return Ok(tokens.id(0));
        }
        let left = self.left(tokens, vocab, t)?;
        let mut best = (f64::NEG_INFINITY, 0);
        for i in 0..left {
            let g = gumbel::from_bits(gumbel::bits(sample.key(), tokens.id(i) as u32));
            let score = tokens.z(i) + t * g;
            let wins = score > best.0 || score == best.0 && tokens.id(i) < tokens.id(best.1);
            if wins {
                best = (score, i);
            }
        }
        Ok(tokens.id(best.1))
    }

    /// How many of the tokens the filters leave: at least 1, if there is one.
    fn left(&self, tokens: &impl Ranked, vocab: usize, t: f64) -> Result<usize, Error> {
        let known = tokens.len();
        let too_few = |option| Error::TooFewTokens { option, known };
        let Filters { top_k, top_p, min_p } = self.filters(known, vocab);
        // Whether all that is left so far is known.
        let (mut left, mut is_whole) = match top_k {
            Some(k) if k <= known => (k, true),
            // Tokens of which not all are known, unless `min_p` leaves those that are.
            Some(_) if top_p.is_none() && min_p.is_some() => (known, false),
            Some(_) => return Err(too_few("top_k")),
            None => (known, known >= vocab),
        };
        if let Some(p) = top_p {
            match reaches(p, tokens, left, is_whole, t) {
                Some(count) => (left, is_whole) = (count, true),
                None if is_whole => {}
                None => return Err(too_few("top_p")),
            }
        }
        if let Some(p) = min_p {
            match (0..left).find(|&i| !is_as_probable(p, tokens, i, t)) {
                Some(first_out) => left = first_out.max(1),
                None if is_whole => {}
                None => return Err(too_few("min_p")),
            }
        } else if !is_whole {
            return Err(too_few(if self.top_k.is_some() { "top_k" } else { "no filter" }));
        }
        Ok(left)
    }

    /// Without those that are off.
    fn filters(&self, known: usize, vocab: usize) -> Filters {
        Filters {
            top_k: self.top_k.filter(|&k| k < vocab.max(known)),
            top_p: self.top_p.filter(|&p| p < 1.0),
            min_p: self.min_p.filter(|&p| p > 0.0),
        }
    }

    fn check(&self, known: usize, vocab: usize, sample: &Sample) -> Result<(), Error> {
        if !sample.is_possible() {
            let temperature = number(sample.temperature);
            return Err(Error::SampleTemperature { row: 0, temperature });
        }
        for (option, value) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if let Some(value) = value.filter(|&value| value.is_nan() || value < 0.0) {
                return Err(Error::Option { option, value: number(value), range: "at least 0" });
            }
        }
        let t = sample.temperature;
        let Filters { top_k, top_p, .. } = self.filters(known, vocab);
        if top_p.is_some() && top_k.is_none() && known < vocab && t != 1.0 && t != 0.0 {
            let range =
                "1 or 0, where top_p is of the whole vocabulary (after top_k it may be any)";
            return Err(Error::Option { option: "temperature", value: number(t), range });
        }
        Ok(())
    }
}

struct Filters {
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
}

/// The most probable tokens, in descending order.
trait Ranked {
    fn len(&self) -> usize;
    fn id(&self, i: usize) -> i64;
    /// What differs from the log-probability by the same for all.
    fn z(&self, i: usize) -> f64;
    /// In the whole vocabulary.
    fn logprob(&self, i: usize) -> f64;
    /// How far it may be from the true one.
    fn error_of_logprob(&self, i: usize) -> f64;
    fn error_of_z(&self, i: usize) -> f64;
    /// How far `z` may be from a number that it stands for, in a tie of two tokens.
    fn error_in_ties(&self, i: usize) -> f64;
}

/// What [`LogProbs`](crate::LogProbs) reported.
struct Reported<'a, R> {
    ids: &'a [i64],
    logprobs: &'a [R],
}

impl<R: Real> Ranked for Reported<'_, R> {
    fn len(&self) -> usize {
        self.ids.len()
    }
    fn id(&self, i: usize) -> i64 {
        self.ids[i]
    }
    fn z(&self, i: usize) -> f64 {
        self.logprob(i)
    }
    fn logprob(&self, i: usize) -> f64 {
        self.logprobs[i].into()
    }
    fn error_of_logprob(&self, i: usize) -> f64 {
        R::LOGPROB_ERROR * math::exp2_int(math::exponent(self.logprob(i)))
    }
    fn error_of_z(&self, i: usize) -> f64 {
        self.error_of_logprob(i)
    }
    fn error_in_ties(&self, i: usize) -> f64 {
        self.error_of_logprob(i)
    }
}

/// What the pass over a row knows.
struct OfRow {
    tokens: [(u32, f32); MAX_TOP_K],
    len: usize,
    distribution: Distribution,
}

impl OfRow {
    fn new(row: &RowStats) -> Self {
        let (mut tokens, mut len) = ([(NONE, f32::NAN); MAX_TOP_K], 0);
        for (to, top) in tokens.iter_mut().zip(row.top_k()) {
            *to = (top.id, top.logit);
            len += 1;
        }
        OfRow { tokens, len, distribution: row.distribution() }
    }
}

impl Ranked for OfRow {
    fn len(&self) -> usize {
        self.len
    }
    fn id(&self, i: usize) -> i64 {
        self.tokens[i].0.into()
    }
    fn z(&self, i: usize) -> f64 {
        self.tokens[i].1.into()
    }
    fn logprob(&self, i: usize) -> f64 {
        self.distribution.logprob(self.z(i))
    }
    fn error_of_logprob(&self, _: usize) -> f64 {
        // That of the exponentials, which all but the largest logit have a part in.
        f64::from(f32::EPSILON) * self.distribution.nll.min(1.0)
    }
    fn error_of_z(&self, _: usize) -> f64 {
        0.0
    }
    fn error_in_ties(&self, i: usize) -> f64 {
        // A logit that is exactly so far below another is rarely a number of `f32`.
        0.5 * f64::from(f32::EPSILON) * math::exp2_int(math::exponent(self.z(i)))
    }
}

/// Errors of log-probabilities are divided by the temperature; beyond this they are no rounding any more, and would make
/// different tokens of equal ones.
const MOST: f64 = 1.0 / 1024.0;

/// What the rounding of `p`, of exponentials and of sums may take, of 1: see [`Sampler`].
const ROUNDING: f64 = 8.0 * f64::EPSILON;

fn weight(tokens: &impl Ranked, i: usize, t: f64) -> f64 {
    math::exp(((tokens.z(i) - tokens.z(0)) / t).min(0.0))
}

/// The first of how many tokens have together the probability `p`, less than 1: of those that are `left` if that is the
/// whole, or else of all tokens, at the temperature of the log-probabilities.
fn reaches(p: f64, tokens: &impl Ranked, left: usize, is_whole: bool, t: f64) -> Option<usize> {
    let share = |i: usize| {
        if is_whole { weight(tokens, i, t) } else { math::exp(tokens.logprob(i)) }
    };
    let error = |i: usize| {
        let error = if is_whole { tokens.error_of_z(i) } else { tokens.error_of_logprob(i) };
        (error / t).min(MOST)
    };
    let (mut sum, mut rest) = (Compensated::default(), Compensated::default());
    if is_whole {
        (0..left).for_each(|i| rest.add(share(i) * (1.0 - error(i))));
    }
    let last = (0..left).find(|&i| {
        let (share, error) = (share(i), error(i));
        sum.add(share * (1.0 + error));
        rest.add(-(share * (1.0 - error)));
        let all = if is_whole { sum.value() + rest.value().max(0.0) } else { 1.0 };
        sum.value() >= p * all * (1.0 - ROUNDING)
    });
    last.map(|last| last + 1)
}

/// Whether a token is at least `p` times as probable as the first.
fn is_as_probable(p: f64, tokens: &impl Ranked, i: usize, t: f64) -> bool {
    if p >= 1.0 {
        return weight(tokens, i, t) >= p;
    }
    let below = ((tokens.z(i) - tokens.z(0)) / t).min(0.0);
    let error = (tokens.error_in_ties(i) + tokens.error_in_ties(0)) / t;
    math::exp(below + error.min(MOST)) >= p * (1.0 - ROUNDING)
}
