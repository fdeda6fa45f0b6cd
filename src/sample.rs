//! Sampling that depends on nothing but a seed, a position and the logits.
#![forbid(unsafe_code)]

use crate::kernel::gumbel::{self, Key};
use crate::kernel::logprobs::Draw;
use crate::row_stats::NONE;
use crate::{Error, Real, math};

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
/// those given.
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
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
}

impl Sampler {
    /// No filter: that needs the whole vocabulary, which [`LogProbs::sample`](crate::LogProbs::sample) draws from.
    pub const fn new() -> Self {
        Sampler { top_k: None, top_p: None, min_p: None }
    }

    /// Leaves the `k` most probable tokens. (More than the vocabulary are all, 0 is none.)
    pub const fn top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Leaves as many of the most probable tokens as together have at least the probability `p`, of those that `top_k`
    /// leaves. From 1 on, all. At least one is left.
    ///
    /// Without `top_k` probabilities are those of the whole vocabulary, which the log-probabilities tell for the
    /// temperature that they are of: a [`Sample`] must have temperature 1 or 0 then, or [`Sampler::draw`] is an error.
    pub const fn top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Leaves the tokens that are at least `p` times as probable as the most probable one, at the temperature of the
    /// sample.
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
    /// `min_p` that is negative or NaN, for `top_k` 0, and for a temperature that `top_p` cannot be computed at (see
    /// there), [`Error::SampleTemperature`] (row 0), [`Error::TooFewTokens`], and [`Error::NothingToSample`] for
    /// log-probabilities that are NaN or all -inf, [`Error::NotAToken`] (row 0) for ids that none is.
    pub fn draw<R: Real>(
        &self,
        ids: &[i64],
        logprobs: &[R],
        vocab: usize,
        sample: Sample,
    ) -> Result<i64, Error> {
        self.check(ids.len(), logprobs.len(), &sample)?;
        let known = ids.len();
        let logprob = |i: usize| -> f64 { logprobs[i].into() };
        let complete = known >= vocab;
        let too_few = |option| Error::TooFewTokens { option, known };
        if (0..known).any(|i| logprob(i).is_nan()) || known == 0 || logprob(0) == f64::NEG_INFINITY
        {
            return Err(Error::NothingToSample { known });
        }
        if let Some(&id) = ids.iter().find(|&&id| !(0..i64::from(NONE)).contains(&id)) {
            return Err(Error::NotAToken { row: 0, id: id.into() });
        }
        let t = sample.draw().temperature;
        if t == 0.0 {
            return Ok(ids[0]);
        }
        // Relative to the most probable, at the temperature.
        let weight = |i: usize| math::exp(((logprob(i) - logprob(0)) / t).min(0.0));
        let (mut left, is_cut) = match self.top_k {
            None => (known, complete),
            Some(k) if k <= known || complete => (k.min(known), true),
            // Tokens of which not all are known, unless `min_p` leaves those that are.
            Some(_) if self.top_p.is_none_or(|p| p >= 1.0) && self.min_p.is_some() => {
                (known, false)
            }
            Some(_) => return Err(too_few("top_k")),
        };
        let mut is_complete = is_cut;
        // From 1 on it leaves all, also those that do not show in a sum.
        if let Some(p) = self.top_p.filter(|&p| p < 1.0) {
            let all =
                if is_cut { (0..left).map(weight).sum::<f64>() } else { math::exp(-logprob(0)) };
            let mut sum = 0.0;
            let reached = (0..left).find(|&i| {
                sum += weight(i);
                sum >= p * all
            });
            match reached {
                Some(last) => (left, is_complete) = (last + 1, true),
                None if is_cut => {}
                None => return Err(too_few("top_p")),
            }
        }
        if let Some(p) = self.min_p {
            let kept = (0..left).find(|&i| weight(i) < p).map(|first_out| first_out.max(1));
            match kept {
                Some(kept) => left = kept,
                None if is_complete => {}
                None => return Err(too_few("min_p")),
            }
        } else if !is_complete {
            return Err(too_few(if self.top_p.is_some() { "top_p" } else { "no filter" }));
        }
        let mut best = (f64::NEG_INFINITY, 0);
        for i in 0..left {
            let g = gumbel::from_bits(gumbel::bits(sample.key(), ids[i] as u32));
            let score = logprob(i) + t * g;
            let wins = score > best.0 || score == best.0 && ids[i] < ids[best.1];
            if wins {
                best = (score, i);
            }
        }
        Ok(ids[best.1])
    }

    fn check(&self, ids: usize, logprobs: usize, sample: &Sample) -> Result<(), Error> {
        Error::check_input("log-probabilities of tokens", logprobs, ids)?;
        if !sample.is_possible() {
            let temperature = sample.temperature.to_string();
            return Err(Error::SampleTemperature { row: 0, temperature });
        }
        for (option, value) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if let Some(value) = value.filter(|&value| value.is_nan() || value < 0.0) {
                return Err(Error::Option {
                    option,
                    value: value.to_string(),
                    range: "at least 0",
                });
            }
        }
        if self.top_k == Some(0) {
            let range = "at least 1";
            return Err(Error::Option { option: "top_k", value: "0".to_owned(), range });
        }
        let t = sample.temperature;
        if self.top_p.is_some() && self.top_k.is_none() && t != 1.0 && t != 0.0 {
            let range = "1 or 0, where top_p is of the whole vocabulary";
            return Err(Error::Option { option: "temperature", value: t.to_string(), range });
        }
        Ok(())
    }
}
