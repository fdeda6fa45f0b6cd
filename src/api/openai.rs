//! Log-probabilities in the shapes in which the OpenAI API returns them, for servers that speak it.
//!
//! [`ChoiceLogprobs`] is `choices[].logprobs` of chat completions, [`CompletionLogprobs`] that of the completions before.
//! They are made of what [`LogProbs::collect`](crate::LogProbs::collect) found, of the tokens that were chosen, and of a
//! function that has the bytes of each token. serde writes and reads them.
//!
//! # Text and bytes
//! A token may be a part of a character only. `bytes` is exact: the text of an answer is that of the `bytes` of all its
//! tokens, concatenated. `token` is the same bytes as UTF-8, U+FFFD where they are none, and different tokens may have
//! the same.
//!
//! # The floor
//! JSON has no infinity. Here, and nowhere else in this crate, -9999 stands for -inf, for everything below -9999, and for
//! NaN, the log-probability in rows with a NaN or +inf (and for +inf, which is none): [`FLOOR`].
//!
//! # Rows without a target
//! A row that was ignored, or the last of a [shifted](crate::Targets::shifted) sequence, was not read. Its `logprob` is
//! null, as that of the first token of a prompt is in other servers (OpenAI's completions with `echo`, vLLM's
//! `prompt_logprobs`), and so is its element of `top_logprobs` of a completion; that of a chat completion is empty. Its token
//! is whichever the caller says was chosen; an id below 0, as the ignore index, has the empty text.
//!
//! ```
//! use xent::openai::ChoiceLogprobs;
//! use xent::{LogProbs, Logits};
//!
//! let vocabulary = ["Hello", " world", "!", "é"];
//! let logits = Logits::new(&[1.0_f32, 3.0, f32::NEG_INFINITY, 2.0], 1, 4)?;
//! let chosen = [3];
//! let found = LogProbs::new().targets(&chosen).top_k(2).collect(logits)?;
//! let logprobs = ChoiceLogprobs::new(&found, &chosen, |id| vocabulary[id as usize])?;
//! assert_eq!(
//!     serde_json::to_string(&logprobs)?,
//!     r#"{"content":[{"token":"é","logprob":-1.407606,"bytes":[195,169],"top_logprobs":[
//!         {"token":" world","logprob":-0.40760598,"bytes":[32,119,111,114,108,100]},
//!         {"token":"é","logprob":-1.407606,"bytes":[195,169]}]}]}"#.replace("\n        ", "")
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

use crate::api::logprobs::TokenLogProbs;
use crate::data::error::Error;
use crate::data::targets::Ids;
use crate::dispatch::element::Real;
use crate::simd::float_env;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What stands for log-probabilities that are not representable in JSON, or less.
pub const FLOOR: f64 = -9999.0;

/// `choices[].logprobs` of a chat completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChoiceLogprobs<R = f32> {
    /// Of each token of the answer.
    pub content: Vec<TokenLogprob<R>>,
}

/// A token of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob<R = f32> {
    /// Its text: lossy, see [above](self#text-and-bytes).
    pub token: String,
    /// At least [`FLOOR`]. `None`, null, for a [row without a target](self#rows-without-a-target).
    pub logprob: Option<R>,
    /// What it is exactly. Other servers have null for tokens without bytes, which here an id below 0 is.
    pub bytes: Option<Vec<u8>>,
    /// The most probable tokens in its place, in descending order; none for a row without a target.
    pub top_logprobs: Vec<TopLogprob<R>>,
}

/// One of the most probable tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob<R = f32> {
    /// Its text: lossy, see [above](self#text-and-bytes).
    pub token: String,
    /// At least [`FLOOR`].
    pub logprob: R,
    /// What it is exactly. Other servers have null for tokens without bytes.
    pub bytes: Option<Vec<u8>>,
}

/// `choices[].logprobs` of a completion, before there was chat. It has an element per token in each of its lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs<R = f32> {
    /// Their texts: lossy, see [above](self#text-and-bytes).
    pub tokens: Vec<String>,
    /// At least [`FLOOR`]. `None`, null, for a [row without a target](self#rows-without-a-target).
    pub token_logprobs: Vec<Option<R>>,
    /// The most probable tokens in the place of each, and the token itself. Of tokens with the same text it is the more
    /// probable one. `None`, null, for a row without a target.
    pub top_logprobs: Vec<Option<BTreeMap<String, R>>>,
    /// Where each token begins, in characters of `tokens`.
    pub text_offset: Vec<usize>,
}

impl<R: Real> ChoiceLogprobs<R> {
    /// Of the targets that log-probabilities were asked for, which are the tokens `chosen`, one per row; `bytes` has those
    /// of a token.
    ///
    /// Of a row without a target `chosen` may be anything.
    ///
    /// For sampled tokens there is [`ChoiceLogprobs::sampled`].
    ///
    /// # Errors
    /// [`Error::Missing`] if `found` is of no targets, [`Error::InputLength`] unless there is a token per row, or if the
    /// most probable tokens in `found` are not [`TokenLogProbs::k`] per row, [`Error::NotAToken`] for ids that are negative
    /// in rows that have a target, and [`Error::ChosenToken`] for a token that is not the target of its row.
    pub fn new<'a, B: AsRef<[u8]>>(
        found: &TokenLogProbs<R>,
        chosen: impl Into<Ids<'a>>,
        bytes: impl FnMut(i64) -> B,
    ) -> Result<Self, Error> {
        Self::of(Chosen::targets(found, chosen.into())?, bytes)
    }

    /// Of the tokens that were drawn, [`TokenLogProbs::sampled`].
    ///
    /// ```
    /// use xent::openai::ChoiceLogprobs;
    /// use xent::{LogProbs, Logits, Sample};
    ///
    /// let logits = Logits::new(&[0.0_f32, 9.0, 0.0, 0.0], 1, 4)?;
    /// let found = LogProbs::new().sample(&[Sample::new(42, 0)]).collect(logits)?;
    /// let logprobs = ChoiceLogprobs::sampled(&found, |id| format!("<{id}>"))?;
    /// assert_eq!((&logprobs.content[0].token[..], logprobs.content[0].logprob), ("<1>", Some(-0.00037016088)));
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`ChoiceLogprobs::new`]; [`Error::NotAToken`] also for rows that nothing could be drawn of.
    pub fn sampled<B: AsRef<[u8]>>(
        found: &TokenLogProbs<R>,
        bytes: impl FnMut(i64) -> B,
    ) -> Result<Self, Error> {
        Self::of(Chosen::sampled(found)?, bytes)
    }

    fn of<B: AsRef<[u8]>>(
        chosen: Chosen<'_, R>,
        mut bytes: impl FnMut(i64) -> B,
    ) -> Result<Self, Error> {
        let mut content = Vec::with_capacity(chosen.rows());
        for row in 0..chosen.rows() {
            let (id, logprob) = chosen.token(row)?;
            let exactly = id.map(|id| bytes(id).as_ref().to_vec());
            let mut part = |(id, logprob): (i64, R)| {
                let bytes = bytes(id).as_ref().to_vec();
                TopLogprob { token: text(&bytes), logprob: floored(logprob), bytes: Some(bytes) }
            };
            let top_logprobs = match logprob {
                Some(_) => chosen.top(row)?.map(&mut part).collect(),
                None => Vec::new(),
            };
            content.push(TokenLogprob {
                token: text(exactly.as_deref().unwrap_or_default()),
                logprob: logprob.map(floored),
                bytes: exactly,
                top_logprobs,
            });
        }
        Ok(ChoiceLogprobs { content })
    }
}

impl<R: Real> CompletionLogprobs<R> {
    /// As [`ChoiceLogprobs::new`]. `text_offset` is where the first token begins: the characters of the answer so far.
    ///
    /// ```
    /// use xent::openai::CompletionLogprobs;
    /// use xent::{LogProbs, Logits};
    ///
    /// let logits = Logits::new(&[0.0_f32; 4], 2, 2)?;
    /// let found = LogProbs::new().targets(&[0u32, 1]).top_k(1).collect(logits)?;
    /// let logprobs = CompletionLogprobs::new(&found, &[0u32, 1], 7, |id| ["né", "e"][id as usize])?;
    /// assert_eq!(
    ///     serde_json::to_string(&logprobs)?,
    ///     r#"{"tokens":["né","e"],"token_logprobs":[-0.6931472,-0.6931472],"top_logprobs":[{"né":-0.6931472},
    ///         {"e":-0.6931472,"né":-0.6931472}],"text_offset":[7,9]}"#.replace("\n        ", "")
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`ChoiceLogprobs::new`].
    pub fn new<'a, B: AsRef<[u8]>>(
        found: &TokenLogProbs<R>,
        chosen: impl Into<Ids<'a>>,
        text_offset: usize,
        bytes: impl FnMut(i64) -> B,
    ) -> Result<Self, Error> {
        Self::of(Chosen::targets(found, chosen.into())?, text_offset, bytes)
    }

    /// As [`ChoiceLogprobs::sampled`].
    ///
    /// # Errors
    /// As [`ChoiceLogprobs::sampled`].
    pub fn sampled<B: AsRef<[u8]>>(
        found: &TokenLogProbs<R>,
        text_offset: usize,
        bytes: impl FnMut(i64) -> B,
    ) -> Result<Self, Error> {
        Self::of(Chosen::sampled(found)?, text_offset, bytes)
    }

    fn of<B: AsRef<[u8]>>(
        chosen: Chosen<'_, R>,
        mut text_offset: usize,
        mut bytes: impl FnMut(i64) -> B,
    ) -> Result<Self, Error> {
        let mut all = CompletionLogprobs {
            tokens: Vec::with_capacity(chosen.rows()),
            token_logprobs: Vec::with_capacity(chosen.rows()),
            top_logprobs: Vec::with_capacity(chosen.rows()),
            text_offset: Vec::with_capacity(chosen.rows()),
        };
        for row in 0..chosen.rows() {
            let (id, logprob) = chosen.token(row)?;
            let token = id.map_or_else(String::new, |id| text(bytes(id).as_ref()));
            let logprob = logprob.map(floored);
            let mut top = None;
            if let Some(logprob) = logprob {
                let top = top.insert(BTreeMap::new());
                for (id, logprob) in chosen.top(row)? {
                    top.entry(text(bytes(id).as_ref())).or_insert(floored(logprob));
                }
                top.entry(token.clone()).or_insert(logprob);
            }
            all.text_offset.push(text_offset);
            text_offset = text_offset.saturating_add(token.chars().count());
            all.tokens.push(token);
            all.token_logprobs.push(logprob);
            all.top_logprobs.push(top);
        }
        Ok(all)
    }
}

/// A token per row, with its log-probability.
struct Chosen<'a, R> {
    found: &'a TokenLogProbs<R>,
    ids: Ids<'a>,
    logprobs: &'a [R],
    /// What the tokens must be, -1 in rows that were not read; empty if that is not known.
    targets: &'a [i64],
}

impl<'a, R: Real> Chosen<'a, R> {
    fn targets(found: &'a TokenLogProbs<R>, ids: Ids<'a>) -> Result<Self, Error> {
        if found.logprobs.is_empty() && !ids.is_empty() {
            return Err(Error::Missing { output: "logprobs", needs: "targets" });
        }
        Self::checked(found, ids, &found.logprobs, &found.targets)
    }

    fn sampled(found: &'a TokenLogProbs<R>) -> Result<Self, Error> {
        if found.sampled.is_empty() && !found.argmax.is_empty() {
            return Err(Error::Missing { output: "sampled", needs: "samples" });
        }
        Self::checked(found, (&found.sampled).into(), &found.sampled_logprobs, &[])
    }

    /// Lengths: fields are public, and may come from anywhere.
    fn checked(
        found: &'a TokenLogProbs<R>,
        ids: Ids<'a>,
        logprobs: &'a [R],
        targets: &'a [i64],
    ) -> Result<Self, Error> {
        Error::check_input("chosen tokens", ids.len(), logprobs.len())?;
        if !targets.is_empty() {
            Error::check_input("targets", targets.len(), logprobs.len())?;
        }
        let (rows, k) = (logprobs.len(), found.k);
        let top = rows.checked_mul(k).ok_or(Error::Overflow { rows, elements: k })?;
        Error::check_input("ids of the most probable tokens", found.top_ids.len(), top)?;
        let len = found.top_logprobs.len();
        Error::check_input("log-probabilities of the most probable tokens", len, top)?;
        Ok(Chosen { found, ids, logprobs, targets })
    }

    fn rows(&self) -> usize {
        self.logprobs.len()
    }

    /// The token, if it is one, and its log-probability, if there is a number.
    fn token(&self, row: usize) -> Result<(Option<i64>, Option<R>), Error> {
        let id = self.ids.get(row);
        let token = i64::try_from(id).ok().filter(|&id| id >= 0);
        let target = self.targets.get(row).copied();
        if target.is_some_and(|target| target < 0) {
            return Ok((token, None));
        }
        let chosen = token.ok_or(Error::NotAToken { row, id })?;
        match target.filter(|&target| target != chosen) {
            Some(target) => Err(Error::ChosenToken { row, chosen, target }),
            None => Ok((token, Some(self.logprobs[row]))),
        }
    }

    fn top(&self, row: usize) -> Result<impl Iterator<Item = (i64, R)> + 'a, Error> {
        match self.found.top(row).find(|&(id, _)| id < 0) {
            Some((id, _)) => Err(Error::NotAToken { row, id: id.into() }),
            None => Ok(self.found.top(row)),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn floored<R: Real>(logprob: R) -> R {
    // A NaN is not above anything.
    let is_fine = || logprob.into() >= FLOOR && logprob.into().is_finite();
    if float_env::scope(is_fine) { logprob } else { R::from_f64(FLOOR) }
}
