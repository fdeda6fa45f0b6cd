//! The shapes in which the OpenAI API has log-probabilities.

use std::f32::consts::LN_2;
use std::f64;
use xent::openai::*;
use xent::{Error, LogProbs, Logits, Real, Sample, Targets, TokenLogProbs};

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

/// A log-probability as it is written.
fn floored<R: Real>(logprob: R) -> Option<R> {
    let mut found = TokenLogProbs::default();
    found.logprobs = vec![logprob];
    ChoiceLogprobs::new(&found, &[0u32], |_| "x").unwrap().content[0].logprob
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
        assert_eq!(floored(logprob), Some(expected), "{logprob}");
        assert_eq!(floored(f64::from(logprob)), Some(f64::from(expected)), "{logprob}");
    }
    assert_eq!(floored((-9999.0_f64).next_down()), Some(-9999.0));
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
    for (chosen, text, bytes) in [(0, "0", Some(vec![b'0'])), (-100, "", None), (-1, "", None)] {
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
