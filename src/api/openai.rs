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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::logprobs::LogProbs;
    use crate::api::sample::Sample;
    use crate::data::logits::Logits;
    use crate::data::targets::Targets;

    use std::f32::consts::LN_2;
    use std::f64;

    const INF: f32 = f32::INFINITY;

    /// Of two rows of three tokens: log-probabilities of thirds of 1 in the first, and a mask in the second.
    fn found() -> TokenLogProbs {
        let logits = Logits::new(&[0.5_f32, 0.5, 0.5, 7.0, -INF, 7.0], 2, 3).unwrap();
        LogProbs::new().targets(&[1u32, 1]).top_k(2).collect(logits).unwrap()
    }

    /// The first byte of a euro sign, one that no text has, and nothing.
    fn bytes(id: i64) -> &'static [u8] {
        [&[0xe2][..], &[0xff], b""][id as usize]
    }

    #[test]
    fn the_json_of_chat_completions() {
        let logprobs = ChoiceLogprobs::new(&found(), &[1u32, 1], bytes).unwrap();
        let json = concat!(
            r#"{"content":["#,
            r#"{"token":"�","logprob":-1.0986123,"bytes":[255],"top_logprobs":["#,
            r#"{"token":"�","logprob":-1.0986123,"bytes":[226]},"#,
            r#"{"token":"�","logprob":-1.0986123,"bytes":[255]}]},"#,
            r#"{"token":"�","logprob":-9999.0,"bytes":[255],"top_logprobs":["#,
            r#"{"token":"�","logprob":-0.6931472,"bytes":[226]},"#,
            r#"{"token":"","logprob":-0.6931472,"bytes":[]}]}]}"#,
        );
        assert_eq!(serde_json::to_string(&logprobs).unwrap(), json);
        assert_eq!(serde_json::from_str::<ChoiceLogprobs>(json).unwrap(), logprobs);
        // What servers add, and tokens without bytes.
        let other = r#"{"content":[{"token":"<|end|>","logprob":-0.5,"bytes":null,"top_logprobs":[]}],"refusal":null}"#;
        let ChoiceLogprobs { content } = serde_json::from_str::<ChoiceLogprobs>(other).unwrap();
        let [TokenLogprob { token, logprob: Some(-0.5), bytes: None, top_logprobs }] = &content[..]
        else {
            panic!("{content:?}");
        };
        assert_eq!((&token[..], &top_logprobs[..]), ("<|end|>", &[][..]));
    }

    #[test]
    fn the_json_of_completions() {
        let logprobs = CompletionLogprobs::new(&found(), &[1i64, 1], 5, bytes).unwrap();
        // The first of the tokens with the same text stays.
        let json = concat!(
            r#"{"tokens":["�","�"],"token_logprobs":[-1.0986123,-9999.0],"#,
            r#""top_logprobs":[{"�":-1.0986123},{"":-0.6931472,"�":-0.6931472}],"text_offset":[5,6]}"#,
        );
        assert_eq!(serde_json::to_string(&logprobs).unwrap(), json);
        assert_eq!(serde_json::from_str::<CompletionLogprobs>(json).unwrap(), logprobs);
        let echo =
            r#"{"tokens":["a"],"token_logprobs":[null],"top_logprobs":[null],"text_offset":[0]}"#;
        let echo = serde_json::from_str::<CompletionLogprobs>(echo).unwrap();
        assert_eq!(echo.token_logprobs, [None]);
    }

    #[test]
    fn tokens_with_one_text_keep_the_larger_logprob() {
        let logits = Logits::new(&[1.0_f32, 0.0], 1, 2).unwrap();
        let found = LogProbs::new().targets(&[1u32]).top_k(2).collect(logits).unwrap();
        let logprobs = CompletionLogprobs::new(&found, &[1u32], 0, |_| [0xff]).unwrap();
        assert_eq!(logprobs.top_logprobs[0], Some([("\u{fffd}".to_owned(), -0.3132617)].into()));
        assert_eq!(logprobs.token_logprobs, [Some(-1.3132616)]);
    }

    #[test]
    fn the_floor() {
        for (logprob, expected) in [
            (0.0_f32, 0.0),
            (-9998.999, -9998.999),
            (-9999.0, -9999.0),
            (-9999.001, -9999.0),
            (f32::MIN, -9999.0),
            (-INF, -9999.0),
            (INF, -9999.0),
            (f32::NAN, -9999.0),
        ] {
            assert_eq!(floored(logprob), expected, "{logprob}");
            assert_eq!(floored(f64::from(logprob)), f64::from(expected), "{logprob}");
        }
        assert_eq!(floored((-9999.0_f64).next_down()), -9999.0);
        // A row without log-probabilities: all of them.
        let logits = Logits::new(&[f32::NAN, 1.0], 1, 2).unwrap();
        let found = LogProbs::new().targets(&[1u32]).top_k(2).collect(logits).unwrap();
        assert!(found.logprobs[0].is_nan() && found.top_logprobs.iter().all(|x| x.is_nan()));
        let logprobs = ChoiceLogprobs::new(&found, &[1u32], |_| "x").unwrap();
        let x = TopLogprob { token: "x".to_owned(), logprob: -9999.0, bytes: Some(vec![b'x']) };
        assert_eq!(logprobs.content[0].logprob, Some(-9999.0));
        assert_eq!(logprobs.content[0].top_logprobs, [x.clone(), x]);
    }

    #[test]
    fn numbers_of_f64_keep_their_digits() {
        let logits = Logits::new(&[0.0_f64; 3], 1, 3).unwrap();
        let found = LogProbs::new().targets(&[2u32]).collect(logits).unwrap();
        let logprobs = ChoiceLogprobs::new(&found, &[2u32], |_| "x").unwrap();
        assert_eq!(
            serde_json::to_string(&logprobs).unwrap(),
            r#"{"content":[{"token":"x","logprob":-1.0986122886681098,"bytes":[120],"top_logprobs":[]}]}"#
        );
    }

    #[test]
    fn sampled_tokens() {
        let logits = Logits::new(&[0.0_f32, 90.0, f32::NAN, 0.0], 2, 2).unwrap();
        let samples = [Sample::new(1, 0), Sample::new(1, 1)];
        let mut found = LogProbs::new().sample(&samples).collect(logits).unwrap();
        let error = ChoiceLogprobs::sampled(&found, |_| "x").unwrap_err();
        assert_eq!(error, Error::NotAToken { row: 1, id: -1 });
        found.sampled.pop();
        found.sampled_logprobs.pop();
        let logprobs = CompletionLogprobs::sampled(&found, 0, |id| id.to_string()).unwrap();
        assert_eq!(logprobs.tokens, ["1"]);
        assert_eq!(logprobs.token_logprobs, [Some(found.sampled_logprobs[0])]);
    }

    /// An ignored row, and the last of a sequence: no row was read for them, and 0 would be certainty.
    #[test]
    fn rows_without_a_target() {
        let x = [0.0_f32, 0.0, 5.0, 5.0, f32::NAN, 0.0, 0.0, -INF];
        let logits = Logits::new(&x, 4, 2).unwrap();
        let (ignored, shifted) = ([-100i64, 1, 0, 1], [7i64, -100, 1, 0]);
        let found = LogProbs::new().targets(&ignored).top_k(1).collect(logits).unwrap();
        assert_eq!((&found.targets[..], found.logprobs[0]), (&[-1, 1, 0, 1][..], 0.0));
        assert_eq!((found.logprob(0), found.logprob(1)), (None, Some(-LN_2)));
        assert!(found.logprob(2).unwrap().is_nan());
        assert_eq!((found.logprob(3), found.logprob(4)), (Some(-INF), None));
        let half = || Some([("0".to_owned(), -LN_2), ("1".to_owned(), -LN_2)].into());
        // A token that may be any, or none.
        for (chosen, text, bytes) in [(0, "0", Some(vec![b'0'])), (-100, "", None), (-1, "", None)]
        {
            let chosen = [chosen, 1, 0, 1];
            let old = CompletionLogprobs::new(&found, &chosen, 3, |id| id.to_string()).unwrap();
            assert_eq!(old.tokens, [text, "1", "0", "1"]);
            assert_eq!(old.token_logprobs, [None, Some(-LN_2), Some(-9999.0), Some(-9999.0)]);
            assert_eq!(old.top_logprobs[..2], [None, half()]);
            assert_eq!(old.text_offset[..2], [3, 3 + text.len()]);
            let json = serde_json::to_string(&old).unwrap();
            assert!(json.contains(r#""token_logprobs":[null,-0.6931472,"#), "{json}");
            assert!(json.contains(r#""top_logprobs":[null,{"#), "{json}");
            assert_eq!(serde_json::from_str::<CompletionLogprobs>(&json).unwrap(), old);
            let chat = ChoiceLogprobs::new(&found, &chosen, |id| id.to_string()).unwrap();
            let none =
                TokenLogprob { token: text.to_owned(), logprob: None, bytes, top_logprobs: vec![] };
            assert_eq!(chat.content[0], none);
            assert_eq!(chat.content[1].logprob, Some(-LN_2));
            let json = serde_json::to_value(&chat).unwrap();
            assert!(json["content"][0]["logprob"].is_null(), "{json}");
            assert_eq!(serde_json::from_value::<ChoiceLogprobs>(json).unwrap(), chat);
        }
        // Of f64, and without the top k.
        let logits = Logits::new(&[0.0_f64; 8], 4, 2).unwrap();
        let next = Targets::shifted(&shifted, 2, 1);
        let found = LogProbs::new().targets(next).collect(logits).unwrap();
        assert_eq!(found.targets, [-1, -1, 0, -1]);
        let old = CompletionLogprobs::new(&found, &[1i64, 1, 0, 1], 0, |_| "x").unwrap();
        assert_eq!(old.token_logprobs, [None, None, Some(-f64::consts::LN_2), None]);
        // No target, no number: of all rows.
        let found = LogProbs::new().targets(&[-100i64; 4]).collect(logits).unwrap();
        let old = CompletionLogprobs::new(&found, &[-100i64; 4], 0, |_| "x").unwrap();
        assert_eq!((old.token_logprobs, old.top_logprobs), (vec![None; 4], vec![None; 4]));
    }

    #[test]
    fn what_was_written_before_there_were_targets() {
        let mut value = serde_json::to_value(found()).unwrap();
        assert!(value.as_object_mut().unwrap().remove("targets").is_some());
        value["logprobs"][1] = 0.0.into(); // -inf, which JSON has not
        let old: TokenLogProbs = serde_json::from_value(value).unwrap();
        assert!(old.targets.is_empty());
        assert_eq!((old.logprob(1), old.logprob(2)), (Some(0.0), None));
        let logprobs = CompletionLogprobs::new(&old, &[1u32, 1], 0, bytes).unwrap();
        assert_eq!(logprobs.token_logprobs[1], Some(0.0));
    }

    #[test]
    fn nothing() {
        let found = TokenLogProbs::<f32>::default();
        let empty: [i64; 0] = [];
        let logprobs = ChoiceLogprobs::new(&found, &empty, bytes).unwrap();
        assert_eq!(serde_json::to_string(&logprobs).unwrap(), r#"{"content":[]}"#);
        assert_eq!(ChoiceLogprobs::sampled(&found, bytes).unwrap(), logprobs);
        let logprobs = CompletionLogprobs::new(&found, &empty, 9, bytes).unwrap();
        assert_eq!(logprobs, CompletionLogprobs::default());
    }

    #[test]
    fn what_does_not_go_together() {
        let error = |found: &TokenLogProbs, chosen: &[i64]| {
            let error = ChoiceLogprobs::new(found, chosen, |_| "x").unwrap_err();
            assert_eq!(CompletionLogprobs::new(found, chosen, 0, |_| "x").unwrap_err(), error);
            error
        };
        let length = |what, len, expected| Error::InputLength { what, len, expected };
        assert_eq!(error(&found(), &[1]), length("chosen tokens", 1, 2));
        assert_eq!(error(&found(), &[1, 1, 1]), length("chosen tokens", 3, 2));
        assert_eq!(error(&found(), &[1, -100]), Error::NotAToken { row: 1, id: -100 });
        assert_eq!(error(&found(), &[1, -100]).to_string(), "row 1: -100 is not a token");

        // Log-probabilities of other tokens than those that were chosen.
        let other = Error::ChosenToken { row: 1, chosen: 2, target: 1 };
        assert_eq!(error(&found(), &[1, 2]), other);
        let text = "row 1: token 2 is said to be chosen, but the log-probability is that of target 1; \
                    ask with LogProbs::targets for the tokens that were chosen";
        assert_eq!(other.to_string(), text);
        assert_eq!(error(&found(), &[99, 1]), Error::ChosenToken { row: 0, chosen: 99, target: 1 });

        let mut other = found();
        other.targets.pop();
        assert_eq!(error(&other, &[1, 1]), length("targets", 1, 2));
        let mut other = found();
        other.top_ids[3] = -1;
        assert_eq!(error(&other, &[1, 1]), Error::NotAToken { row: 1, id: -1 });
        other.top_ids.pop();
        let what = "ids of the most probable tokens";
        assert_eq!(error(&other, &[1, 1]), length(what, 3, 4));
        let mut other = found();
        other.top_logprobs.push(0.0);
        let what = "log-probabilities of the most probable tokens";
        assert_eq!(error(&other, &[1, 1]), length(what, 5, 4));
        other.k = usize::MAX;
        let overflow = Error::Overflow { rows: 2, elements: usize::MAX };
        assert_eq!(error(&other, &[1, 1]), overflow);

        let logits = Logits::new(&[0.0_f32; 2], 1, 2).unwrap();
        let neither = LogProbs::new().collect(logits).unwrap();
        let missing = |output, needs| Error::Missing { output, needs };
        assert_eq!(error(&neither, &[1]), missing("logprobs", "targets"));
        let sampled = ChoiceLogprobs::sampled(&neither, |_| "x").unwrap_err();
        assert_eq!(sampled, missing("sampled", "samples"));
        let large = [usize::MAX];
        let mut one = LogProbs::new().targets(&[1u32]).collect(logits).unwrap();
        one.k = 0;
        let error = ChoiceLogprobs::new(&one, &large, |_| "x").unwrap_err();
        assert_eq!(error, Error::NotAToken { row: 0, id: usize::MAX as i128 });
    }
}
