//! Ragged sequences: scores against the oracle, one call against one per sequence, wrong offsets.

use common::{Kind, Rng, argmax, for_each_backend, key64, property};
use proptest::prelude::*;
use xent::{AllowedTokens, CrossEntropy, Error, Logits, SequenceScore, Targets, bf16, reference};

type Score<'a> = (&'a [f32], &'a [i64], &'a [usize]);

fn score(ce: &CrossEntropy, vocab: usize, (x, targets, offsets): Score<'_>) -> Vec<SequenceScore> {
    let logits = Logits::new(x, targets.len(), vocab).unwrap();
    let scores = ce.score_sequences(logits, targets, offsets).unwrap();
    let mut into = vec![SequenceScore { tokens: 99, ..SequenceScore::default() }; scores.len()];
    ce.sequences(logits, targets, offsets, &mut into).unwrap();
    assert_eq!(keys(&into), keys(&scores));
    scores
}

/// To compare by: every NaN is the same NaN.
fn keys(scores: &[SequenceScore]) -> Vec<(u64, usize, Option<usize>)> {
    scores.iter().map(|s| (key64(s.logprob), s.tokens, s.first_mismatch)).collect()
}

#[test]
fn scores_by_hand() {
    for_each_backend(|backend| {
        let ce = CrossEntropy::new().backend(backend);
        let ln2 = 2f64.ln();
        let near = 1f64.exp().ln_1p() - 1.0; // -ln p of the larger of 0 and 1
        // Rows [0, 0], [0, 1], [1, 0], [0, 0], [0, 1].
        let x = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let targets = [0, 1, -100, 1, 0];
        let all = score(&ce, 2, (&x, &targets, &[0, 2, 2, 3, 5]));
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-7, "{got} {want}");

        // The first of two equal classes is the most probable one.
        close(all[0].logprob, -ln2 - near);
        close(all[0].mean(), (-ln2 - near) / 2.0);
        close(all[0].perplexity(), ((ln2 + near) / 2.0).exp());
        assert_eq!((all[0].tokens, all[0].first_mismatch, all[0].is_greedy()), (2, None, true));

        // No rows, and no kept rows.
        for none in &all[1..3] {
            assert_eq!(*none, SequenceScore::default());
            assert_eq!(none.logprob.to_bits(), 0);
            assert!(none.mean().is_nan() && none.perplexity().is_nan() && none.is_greedy());
        }

        close(all[3].logprob, -ln2 - 1.0 - near);
        assert_eq!((all[3].tokens, all[3].first_mismatch, all[3].is_greedy()), (2, Some(0), false));

        // Counted from the start of the sequence, with the ignored row.
        let all = score(&ce, 2, (&x, &targets, &[0, 1, 5]));
        assert_eq!((all[1].tokens, all[1].first_mismatch), (3, Some(2)));
        assert!(score(&ce, 2, (&[], &[], &[0])).is_empty());
        assert_eq!(score(&ce, 2, (&[], &[], &[0, 0])), [SequenceScore::default()]);
    });
}

#[test]
fn options_and_special_rows() {
    for_each_backend(|backend| {
        let ce = CrossEntropy::new().backend(backend);
        let of = |ce: &CrossEntropy, x: &[f32], targets: &[i64]| {
            score(ce, 3, (x, targets, &[0, targets.len()]))[0]
        };
        let x = [3.0, 1.0, 2.0, 0.0, 4.0, 1.0];
        let halves = x.map(|x| x / 2.0);
        assert_eq!(of(&ce.clone().temperature(2.0), &x, &[0, 1]), of(&ce, &halves, &[0, 1]));
        // What is no log-probability of the target has no part in it, other than a weight of 0.
        let weights = [2.0_f32, 3.0];
        let other = ce.clone().label_smoothing(0.1).z_loss(0.5).token_weights(&weights);
        assert_eq!(of(&other, &x, &[0, 1]), of(&ce, &x, &[0, 1]));
        // Greedy among the classes that may be.
        let mask = AllowedTokens::new(&[0b110, 0b110]);
        let masked = of(&ce.clone().allowed_tokens(mask), &x, &[2, 1]);
        assert!(masked.is_greedy() && !of(&ce, &x, &[2, 1]).is_greedy());
        assert!((masked.logprob + (-1f64).exp().ln_1p() + (-3f64).exp().ln_1p()).abs() < 1e-7);
        let never = of(&ce.clone().allowed_tokens(mask), &x, &[0, 1]);
        assert_eq!((never.logprob, never.first_mismatch), (f64::NEG_INFINITY, Some(0)));

        // A bad row is that of one sequence.
        let x = [f32::NAN, 1.0, 2.0, 0.0, 4.0, 1.0, 0.0, f32::INFINITY, 0.0];
        let all = score(&ce, 3, (&x, &[0, 1, 0], &[0, 1, 2, 3]));
        assert!(all[0].logprob.is_nan() && all[2].logprob.is_nan());
        assert_eq!((all[0].is_greedy(), all[0].first_mismatch), (false, Some(0)));
        let greedy = score(&ce, 3, (&x, &[0, 1, 1], &[0, 1, 2, 3]))
            .iter()
            .map(|s| s.is_greedy())
            .collect::<Vec<_>>();
        assert_eq!(greedy, [false, true, false]);
        // What has no weight is not looked at.
        let masked = ce.clone().token_weights(&[0.0_f32, 0.5, 0.0]);
        let all = score(&masked, 3, (&x, &[0, 1, 0], &[0, 3]));
        assert_eq!((all[0].tokens, all[0].first_mismatch), (1, None));
        assert_eq!(all[0].logprob, of(&ce, &x[3..6], &[1]).logprob);
        let all = score(&ce, 3, (&x, &[0, 1, 0], &[0, 1, 2, 3]));
        assert_eq!(keys(&all[1..2]), keys(&[of(&ce, &x[3..6], &[1])]));

        // Tokens as they went into the model, of sequences of two; targets that are probabilities.
        let logits = Logits::new(&halves, 2, 3).unwrap();
        let all = ce.score_sequences(logits, Targets::shifted(&[7i64, 0], 2, 1), &[0, 2]).unwrap();
        assert_eq!(keys(&all), keys(&score(&ce, 3, (&halves, &[0, -100], &[0, 2]))));
        let one_hot = [1.0_f32, 0.0, 0.0, 0.0, 1.0, 0.0];
        let probs = ce.score_sequences(logits, Targets::probs(&one_hot), &[0, 2]).unwrap();
        let ids = of(&ce, &halves, &[0, 1]);
        assert!((probs[0].logprob - ids.logprob).abs() < 1e-6);
        assert_eq!((probs[0].tokens, probs[0].first_mismatch), (2, None));

        // Other types.
        let wide = halves.map(f64::from);
        let single = ce.score_sequences(logits, &[0i64, 2], &[0, 2]).unwrap()[0];
        let double = ce.score_sequences(Logits::new(&wide, 2, 3).unwrap(), &[0i64, 2], &[0, 2]);
        assert!((double.unwrap()[0].logprob - single.logprob).abs() < 1e-6);
        let half = halves.map(bf16::from_f32);
        let half = ce.score_sequences(Logits::new(&half, 2, 3).unwrap(), &[0i64, 2], &[0, 2]);
        assert_eq!(half.unwrap(), [single]);
    });
}

#[test]
fn wrong_offsets_are_named_and_nothing_is_written() {
    let x = [0.0_f32; 10];
    let logits = Logits::new(&x, 5, 2).unwrap();
    let mut scores = [SequenceScore { tokens: 7, ..SequenceScore::default() }; 3];
    let before = scores;
    let mut refuse = |targets: &[i64], offsets: &[usize], error: Error, text: &str| {
        assert_eq!(error.to_string(), text);
        let ce = CrossEntropy::new();
        assert_eq!(ce.score_sequences(logits, targets, offsets), Err(error.clone()));
        assert_eq!(ce.sequences(logits, targets, offsets, &mut scores), Err(error));
        assert_eq!(scores, before);
    };
    let ids = [0i64; 5];
    refuse(&ids, &[], Error::NoOffsets, "no offsets: n sequences have n + 1 of them");
    let bound = |index, offset, expected| Error::OffsetBound { index, offset, expected };
    let all_rows = "sequences must take up all rows";
    refuse(&ids, &[1, 2, 3, 5], bound(0, 1, 0), &format!("offset 0 is 1 instead of 0: {all_rows}"));
    refuse(&ids, &[0, 2, 3, 4], bound(3, 4, 5), &format!("offset 3 is 4 instead of 5: {all_rows}"));
    refuse(&ids, &[0, 2, 3, 9], bound(3, 9, 5), &format!("offset 3 is 9 instead of 5: {all_rows}"));
    refuse(&ids, &[0], bound(0, 0, 5), &format!("offset 0 is 0 instead of 5: {all_rows}"));
    let order = Error::OffsetOrder { index: 2, offset: 2, before: 4 };
    refuse(&ids, &[0, 4, 2, 5], order, "offset 2 is 2, less than the 4 before it");
    let order = Error::OffsetOrder { index: 1, offset: 0, before: usize::MAX };
    assert_eq!(
        CrossEntropy::new().score_sequences(logits, &ids, &[usize::MAX, 0]),
        Err(bound(0, usize::MAX, 0)),
        "the first is looked at first, {order}"
    );
    let range = Error::TargetOutOfRange { row: 3, target: 2, vocab: 2 };
    let text = "row 3: target 2 is out of range for a vocabulary of 2";
    refuse(&[0, 0, 0, 2, 0], &[0, 2, 3, 5], range, text);
    let count = Error::TargetCount { rows: 5, targets: 4 };
    let text = "4 targets for 5 rows; \
                where each row predicts the next token, give all tokens to Targets::shifted";
    refuse(&ids[1..], &[0, 2, 3, 5], count, text);
    let length = Error::OutputLength { output: "scores", len: 3, expected: 2 };
    let ce = CrossEntropy::new();
    assert_eq!(ce.sequences(logits, &ids, &[0, 2, 5], &mut scores), Err(length));
    assert_eq!(scores, before);

    // Rows of no elements may be more than memory.
    let units = Logits::<f32>::new(&[], usize::MAX, 0).unwrap();
    let none: &[i64] = &[];
    let count = Error::TargetCount { rows: usize::MAX, targets: 0 };
    assert_eq!(ce.score_sequences(units, none, &[0, usize::MAX]), Err(count));
}

proptest! {
    #![proptest_config(property(96))]

    #[test]
    fn a_score_depends_on_its_sequence_alone(
        seed: u64,
        vocab in 1usize..300,
        lengths in prop::collection::vec(0usize..12, 0..9),
    ) {
        let mut rng = Rng::new(seed);
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |end, &len| { *end += len; Some(*end) }));
        let rows = *offsets.last().unwrap();
        let (mut x, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..rows {
            let row = Kind::any(&mut rng).row(&mut rng, vocab);
            targets.push(match rng.below(4) {
                0 => -100,
                1 => rng.below(vocab) as i64,
                _ => argmax(&row) as i64,
            });
            x.extend(row);
        }
        for_each_backend(|backend| {
            let ce = CrossEntropy::new().backend(backend);
            let all = score(&ce, vocab, (&x, &targets, &offsets));
            assert_eq!(all.len(), lengths.len());
            for (range, got) in offsets.windows(2).zip(&all) {
                let range = range[0]..range[1];
                let (x, ids) = (&x[range.start * vocab..range.end * vocab], &targets[range]);
                let alone = score(&ce, vocab, (x, ids, &[0, ids.len()]));
                assert_eq!(keys(&alone), keys(&[*got]), "{backend}");

                // Against the oracle.
                let rows: Vec<_> = x.chunks(vocab).zip(ids).collect();
                let kept = rows.iter().filter(|(_, id)| **id != -100);
                let exact = |(x, id): &(&[f32], &i64)| reference::row(x, **id as usize);
                let want = kept.clone().map(|row| 0.0 - exact(row).loss).sum::<f64>() + 0.0;
                let tolerance = 1.5e-7 * want.abs();
                let close = (got.logprob - want).abs() <= tolerance || got.logprob == want;
                assert!(close || got.logprob.is_nan() && want.is_nan(), "{got:?} {want}");
                assert_eq!(got.tokens, kept.count());
                // Without a distribution there is no most probable class.
                let missed = |row: &(&[f32], &i64)| {
                    *row.1 != -100 && (argmax(row.0) as i64 != *row.1 || exact(row).loss.is_nan())
                };
                assert_eq!(got.first_mismatch, rows.iter().position(missed));
            }
        });
    }
}
