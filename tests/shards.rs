//! [`RowStats`]: what shards of a row say, merged in any order, is what the whole row says.

use common::{Kind, Rng, any_target, distance, for_each_backend, property, thin};
use proptest::prelude::*;
use std::ops::Range;
use xent::{
    AllowedTokens, Backend, Element, Error, LogProbs, LogitBias, Logits, RowStats, Sample, Shard,
    bf16, f16, reference,
};

trait Number: Element<Real = f32> + Into<f64> {
    fn of(x: f32) -> Self;
}

impl Number for f32 {
    fn of(x: f32) -> Self {
        x
    }
}

impl Number for bf16 {
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

impl Number for f16 {
    fn of(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// A row and what is asked about it.
#[derive(Clone, Copy)]
struct Question<'a, T> {
    row: &'a [T],
    target: i64,
    k: usize,
    sample: Sample,
    backend: Backend,
    temperature: f64,
}

impl<T: Number> Question<'_, T> {
    fn with_ask<R>(&self, f: impl FnOnce(LogProbs<'_>) -> R) -> R {
        let (targets, samples) = ([self.target], [self.sample]);
        f(LogProbs::new()
            .targets(&targets)
            .top_k(self.k)
            .ranks(true)
            .entropy(true)
            .varentropy(true)
            .sample(&samples)
            .temperature(self.temperature)
            .backend(self.backend))
    }

    fn part(&self, classes: Range<usize>, target_logit: Option<f32>) -> RowStats {
        let logits = [target_logit.unwrap_or(0.0)];
        let mut shard = Shard::new(classes.start, self.row.len());
        if target_logit.is_some() {
            shard = shard.target_logits(&logits);
        }
        let mut stats = [RowStats::default()];
        let x = Logits::new(&self.row[classes.clone()], 1, classes.len()).unwrap();
        self.with_ask(|ask| ask.row_stats(x, shard, &mut stats).unwrap());
        stats[0]
    }

    fn whole(&self) -> RowStats {
        self.part(0..self.row.len(), None)
    }

    /// In two phases, as processes do it: the shard of the target tells its logit, then all count.
    fn parts(&self, cuts: &[usize]) -> Vec<RowStats> {
        let classes = || cuts.windows(2).map(|cut| cut[0]..cut[1]);
        let logits = classes().filter_map(|classes| self.part(classes, None).target_logit());
        let logits: Vec<f32> = logits.collect();
        assert_eq!(logits.len(), 1);
        classes().map(|classes| self.part(classes, Some(logits[0]))).collect()
    }
}

fn key(x: f64) -> u64 {
    if x.is_nan() { u64::MAX } else { x.to_bits() }
}

/// Everything there is to ask, to the last bit of `f64`.
fn facts(stats: &RowStats) -> Vec<(&'static str, Vec<u64>)> {
    let number = |x: Option<f64>| x.map(key).into_iter().collect::<Vec<_>>();
    let id = |x: Option<u32>| x.map(u64::from).into_iter().collect::<Vec<_>>();
    let f32_key = |x: f32| key(x.into());
    let top = stats.top_k().flat_map(|t| [t.id.into(), f32_key(t.logit), f32_key(t.logprob)]);
    let saved = stats.saved();
    vec![
        ("loss", number(stats.loss())),
        ("logprob", number(stats.logprob())),
        ("target_logit", stats.target_logit().map(f32_key).into_iter().collect()),
        ("logsumexp", number(Some(stats.logsumexp()))),
        ("saved", vec![f32_key(saved.hi), f32_key(saved.lo)]),
        ("logprob_of", number(Some(stats.logprob_of(1.5)))),
        ("rank", stats.rank().into_iter().collect()),
        ("strict_rank", stats.strict_rank().into_iter().collect()),
        ("top_k", top.collect()),
        ("argmax", id(stats.argmax())),
        ("entropy", number(stats.entropy())),
        ("varentropy", number(stats.varentropy())),
        ("sampled", id(stats.sampled())),
    ]
}

fn merged(parts: &[RowStats]) -> RowStats {
    parts.iter().fold(RowStats::default(), |all, part| all.merge(part).unwrap())
}

/// Merges neighbours or not, in any order, until one is left.
fn merged_anyhow(rng: &mut Rng, mut parts: Vec<RowStats>) -> RowStats {
    while parts.len() > 1 {
        let a = parts.swap_remove(rng.below(parts.len()));
        let at = rng.below(parts.len());
        let merged = if rng.below(2) == 0 { parts[at].merge(&a) } else { a.merge(&parts[at]) };
        parts[at] = merged.unwrap();
    }
    parts[0]
}

/// Cuts, some of which make shards of nothing.
fn random_cuts(rng: &mut Rng, vocab: usize, unit: usize) -> Vec<usize> {
    let mut cuts = vec![0, vocab];
    for _ in 0..rng.below(8) {
        cuts.push(rng.below(vocab / unit + 1) * unit);
    }
    cuts.sort_unstable();
    cuts
}

/// The largest finite number.
fn size<T: Number>(row: &[T], temperature: f64) -> f64 {
    let finite = row.iter().map(|&x| x.into()).filter(|x: &f64| x.is_finite());
    finite.fold(0.0, |max: f64, x| max.max(x.abs())) / temperature
}

/// Sums of ordinary rows have the same bytes in any order; the results of others the same within 1 ULP.
fn check<T: Number>(seed: u64, vocab: usize, backend: Backend) {
    let mut rng = Rng::new(seed);
    let kind = Kind::any(&mut rng);
    let x = kind.row(&mut rng, vocab);
    let target = any_target(&mut rng, &x) as i64;
    let row: Vec<T> = x.into_iter().map(T::of).collect();
    let temperature = rng.pick(&[0.0, 0.5, 1.0, 1.7]);
    let question = Question {
        row: &row,
        target,
        k: rng.below(vocab.min(128) + 1),
        sample: Sample::new(rng.bits(), rng.bits()).temperature(temperature),
        backend,
        temperature: rng.pick(&[1.0, 1.0, 0.8, 3.0]),
    };
    let what = format!("{kind:?} of {vocab}, seed {seed}, {backend}");
    let whole = question.whole();
    let size = size(&row, question.temperature);
    // Where all backends merge exactly: see `RowStats`.
    let ordinary = size < 350.0;
    for unit in [1, 1, 64, 1000, RowStats::CHUNK] {
        let cuts = random_cuts(&mut rng, vocab, unit);
        let parts = question.parts(&cuts);
        let one = merged(&parts);
        if unit == RowStats::CHUNK && ordinary {
            assert_eq!(facts(&one), facts(&whole), "cuts {cuts:?}, {what}");
        }
        close(&one, &whole, size, &format!("cuts {cuts:?}, {what}"));
        for _ in 0..3 {
            let other = merged_anyhow(&mut rng, parts.clone());
            if ordinary {
                same_bytes(&other, &one, &format!("cuts {cuts:?}, {what}"));
            }
            close(&other, &one, size, &format!("in another order, cuts {cuts:?}, {what}"));
        }
        let again = RowStats::from_bytes(&one.to_bytes()).unwrap();
        assert_eq!(facts(&again), facts(&one), "{what}");
        for part in parts {
            let none = RowStats::default();
            same_bytes(&part.merge(&none).unwrap(), &part, &what);
            same_bytes(&none.merge(&part).unwrap(), &part, &what);
        }
    }
    agrees_with_collect(&question, &whole, &what);
}

#[track_caller]
fn same_bytes(got: &RowStats, want: &RowStats, what: &str) {
    assert_eq!(facts(got), facts(want), "{what}");
    let (a, b) = (got.to_bytes(), want.to_bytes());
    let differ: Vec<usize> = (0..a.len()).filter(|&i| a[i] != b[i]).collect();
    assert!(differ.is_empty() && got == want, "bytes {differ:?}: {what}");
}

/// Integers are the same, and numbers rounded to `f32` are at most 1 ULP apart.
fn close(got: &RowStats, want: &RowStats, size: f64, what: &str) {
    // What cancels in a variance: moments are kept around 0 up to logits of 363,000.
    let cancelled = size.min(4e5).powi(2) * 2f64.powi(-50);
    // 2^-20 of the mean square of `ln p - max ln p`, which that has as a bound.
    let square = want.varentropy().unwrap_or(0.0) + want.entropy().unwrap_or(0.0).powi(2);
    let off = cancelled + square / 1_048_576.0;
    for ((name, got), (_, want)) in facts(got).into_iter().zip(facts(want)) {
        assert_eq!(got.len(), want.len(), "{name}, {what}");
        let is_exact = matches!(
            name,
            "target_logit" | "rank" | "strict_rank" | "argmax" | "sampled" | "saved" | "top_k"
        );
        if name == "top_k" {
            let ids = |values: &[u64]| values.iter().step_by(3).copied().collect::<Vec<_>>();
            assert_eq!(ids(&got), ids(&want), "{what}");
        } else if is_exact && name != "saved" {
            assert_eq!(got, want, "{name}, {what}");
        }
        let is_number = !is_exact || name == "top_k" || name == "saved";
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            let (a, b) = (f64::from_bits(got), f64::from_bits(want));
            let near = distance(a as f32, b as f32) <= 1
                // What is 0 but for rounding has no ULP.
                || name == "logsumexp" && (a - b).abs() <= f64::from(f32::EPSILON) / 2.0
                || name == "varentropy" && (a - b).abs() <= off;
            // A sum of two numbers, and ids.
            let skipped = name == "saved" || name == "top_k" && i % 3 == 0;
            assert!(!is_number || skipped || near, "{name}: {a:e}, {b:e}; {what}");
        }
    }
}

/// The one row of [`LogProbs::collect`] says the same, rounded.
fn agrees_with_collect<T: Number>(question: &Question<'_, T>, whole: &RowStats, what: &str) {
    let logits = Logits::new(question.row, 1, question.row.len()).unwrap();
    let found = question.with_ask(|ask| ask.collect(logits).unwrap());
    let is_lost = whole.entropy().is_some_and(f64::is_nan);
    if is_lost && question.temperature < 1.0 && !found.entropy[0].is_nan() {
        // Logits that a temperature takes out of the range of `f32` are for whole rows only.
        return;
    }
    // A log-probability that is rounded to 0 has no sign.
    let rounded = |x: Option<f64>| common::key(x.unwrap() as f32 + 0.0);
    assert_eq!(common::key(found.logprobs[0]), rounded(whole.logprob()), "{what}");
    assert_eq!(common::key(found.entropy[0]), rounded(whole.entropy()), "{what}");
    assert_eq!(common::key(found.varentropy[0]), rounded(whole.varentropy()), "{what}");
    assert_eq!(common::key(found.logsumexp[0]), rounded(Some(whole.logsumexp())), "{what}");
    assert_eq!(found.ranks[0], whole.rank().unwrap() as i64, "{what}");
    assert_eq!(found.strict_ranks[0], whole.strict_rank().unwrap() as i64, "{what}");
    assert_eq!(found.argmax[0], i64::from(whole.argmax().unwrap()), "{what}");
    assert_eq!(found.sampled[0], whole.sampled().map_or(-1, i64::from), "{what}");
    let top: Vec<_> = whole.top_k().map(|t| (t.id.into(), common::key(t.logprob))).collect();
    let want: Vec<_> = found.top(0).map(|(id, logprob)| (id, common::key(logprob))).collect();
    assert_eq!(top, want, "{what}");
}

proptest! {
    #![proptest_config(property(60))]

    #[test]
    fn short_rows_in_any_parts(seed: u64, vocab in 1..3000usize) {
        for &backend in Backend::available() {
            check::<f32>(seed, vocab, backend);
            check::<bf16>(seed, vocab, backend);
            check::<f16>(seed, vocab, backend);
        }
    }
}

proptest! {
    #![proptest_config(property(25))]

    /// Of several chunks.
    #[test]
    fn long_rows_in_any_parts(seed: u64, vocab in 30_000..140_000usize) {
        let vocab = if thin() > 1 { 32_700 + vocab % 200 } else { vocab };
        for &backend in Backend::available() {
            check::<f32>(seed, vocab, backend);
            check::<bf16>(seed ^ 1, vocab, backend);
        }
    }
}

/// The bytes of the statistics do not depend on threads.
#[test]
fn threads_do_not_matter() {
    let vocab = if thin() > 1 { 66_000 } else { 150_001 };
    let mut rng = Rng::new(4);
    let row: Vec<f32> = (0..vocab).map(|_| 4.0 * rng.normal()).collect();
    for_each_backend(|backend| {
        let sample = Sample::new(1, 2);
        let target = 70_000 % vocab as i64;
        let question = Question { row: &row, target, k: 50, sample, backend, temperature: 1.0 };
        let bytes = [1, 2, 3, 5].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| question.whole()).to_bytes()
        });
        assert!(bytes.iter().all(|other| *other == bytes[0]), "{backend}");
    });
}

/// Any logits that are no larger than 363,000 where multiply-add is fused.
#[test]
fn sums_of_large_logits_are_exact_too() {
    let vocab = if thin() > 1 { 300 } else { 40_000 };
    for_each_backend(|backend| {
        for (seed, offset) in [-362_000.0, -1e4, 360.0, 1e5, 3.6e5].into_iter().enumerate() {
            let mut rng = Rng::new(seed as u64);
            let row: Vec<f32> = (0..vocab).map(|_| offset + 30.0 * rng.normal()).collect();
            let sample = Sample::new(9, 9);
            let question =
                Question { row: &row, target: 7, k: 3, sample, backend, temperature: 1.0 };
            let parts = question.parts(&random_cuts(&mut rng, vocab, 1));
            let one = merged(&parts);
            close(&one, &question.whole(), size(&row, 1.0), &format!("{offset}, {backend}"));
            if backend.is_bit_exact() {
                for _ in 0..5 {
                    let other = merged_anyhow(&mut rng, parts.clone());
                    same_bytes(&other, &one, &format!("{offset}, {backend}"));
                }
            }
        }
    });
}

/// Masks and biases are those of the shard.
#[test]
fn options_of_shards() {
    let vocab = if thin() > 1 { 640 } else { RowStats::CHUNK + 9000 };
    let mut rng = Rng::new(6);
    let row: Vec<f32> = (0..vocab).map(|_| 3.0 * rng.normal()).collect();
    let mask: Vec<u32> = (0..vocab.div_ceil(32)).map(|_| rng.bits() as u32).collect();
    let bias: Vec<(u32, f32)> =
        (0..vocab as u32).step_by(37).map(|id| (id, 5.0 - (id % 11) as f32)).collect();
    let target = (0..vocab).find(|&id| mask[id / 32] >> (id % 32) & 1 == 1).unwrap();
    let (targets, samples) = ([target as i64], [Sample::new(3, 3)]);
    for_each_backend(|backend| {
        let ask = LogProbs::new().targets(&targets).top_k(30).ranks(true).entropy(true);
        let ask = ask.varentropy(true).sample(&samples).temperature(0.7).backend(backend);
        let part = |classes: Range<usize>| {
            let here: Vec<(u32, f32)> = bias
                .iter()
                .filter(|(id, _)| classes.contains(&(*id as usize)))
                .map(|&(id, bias)| (id - classes.start as u32, bias))
                .collect();
            let words = &mask[classes.start / 32..classes.end.div_ceil(32)];
            let ask =
                ask.logit_bias(LogitBias::new(&here)).allowed_tokens(AllowedTokens::new(words));
            let logit =
                [(row[target] + bias.iter().find(|b| b.0 == target as u32).map_or(0.0, |b| b.1))];
            let shard = Shard::new(classes.start, vocab).target_logits(&logit);
            let mut stats = [RowStats::default()];
            let x = Logits::new(&row[classes.clone()], 1, classes.len()).unwrap();
            ask.row_stats(x, shard, &mut stats).unwrap();
            stats[0]
        };
        let cut = if thin() > 1 { 320 } else { RowStats::CHUNK };
        let (whole, one) = (part(0..vocab), part(cut..vocab).merge(&part(0..cut)).unwrap());
        if cut == RowStats::CHUNK {
            assert_eq!(facts(&one), facts(&whole), "{backend}");
        }
        close(&one, &whole, size(&row, 0.7) + 10.0, "options");
        assert_eq!(one.top_k().count(), 30);
    });
}

/// As long as no shard has the target, nothing is said of it.
#[test]
fn target_elsewhere() {
    let row = [1.0_f32, 2.0, 3.0, 4.0];
    for_each_backend(|backend| {
        let sample = Sample::new(0, 0);
        let question = Question { row: &row, target: 3, k: 2, sample, backend, temperature: 1.0 };
        let (a, b) = (question.part(0..2, Some(4.0)), question.part(2..3, Some(4.0)));
        let both = a.merge(&b).unwrap();
        assert_eq!((both.loss(), both.logprob(), both.target_logit()), (None, None, None));
        assert_eq!((both.rank(), both.strict_rank()), (None, None));
        assert!((both.logsumexp() - reference::logsumexp(&row[..3])).abs() < 1e-6);
        assert_eq!(both.argmax(), Some(2));
        assert!((both.entropy().unwrap() - reference::entropy(&row[..3])).abs() < 1e-6);
        let all = both.merge(&question.part(3..4, Some(4.0))).unwrap();
        assert_eq!((all.rank(), all.strict_rank()), (Some(1), Some(1)));
        assert!((all.loss().unwrap() - reference::row(&row, 3).loss).abs() < 1e-6);
        // A rank that one shard could not count is none.
        let uncounted = question.part(0..3, None).merge(&question.part(3..4, Some(4.0))).unwrap();
        assert_eq!((uncounted.rank(), uncounted.strict_rank()), (None, None));
        assert!(uncounted.loss().is_some());
    });
}

/// What was not asked for in all of the parts is not there.
#[test]
fn what_was_not_asked_for() {
    let row = [1.0_f32, 2.0, 3.0];
    let logits = Logits::new(&row, 1, 3).unwrap();
    for_each_backend(|backend| {
        let part = |ask: LogProbs<'_>, first: usize| {
            let mut stats = [RowStats::default()];
            ask.backend(backend).row_stats(logits, Shard::new(first, 6), &mut stats).unwrap();
            stats[0]
        };
        let stats = |ask| part(ask, 0);
        let plain = part(LogProbs::new(), 3);
        let samples = [Sample::new(1, 1)];
        let all = LogProbs::new().targets(&[1i64]).entropy(true).varentropy(true).ranks(true);
        let all = stats(all.sample(&samples).top_k(2));
        assert_eq!((plain.entropy(), plain.varentropy(), plain.sampled()), (None, None, None));
        assert_eq!((plain.top_k().count(), plain.argmax()), (0, Some(5)));
        assert!(all.entropy().is_some() && all.varentropy().is_some() && all.rank().is_some());
        let both = all.merge(&plain).unwrap();
        assert_eq!((both.entropy(), both.varentropy(), both.rank()), (None, None, None));
        assert_eq!((both.sampled(), both.top_k().count()), (None, 0));
        assert!(both.loss().is_some());
        // The variance includes the entropy.
        assert!(stats(LogProbs::new().varentropy(true)).entropy().is_some());
    });
}

/// Shards with special values, and without any class.
#[test]
fn special_shards() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for_each_backend(|backend| {
        let stats = |row: &[f32], cuts: &[usize]| {
            let sample = Sample::new(2, 2);
            let question = Question { row, target: 0, k: 2, sample, backend, temperature: 1.0 };
            merged(&question.parts(cuts))
        };
        for (row, argmax) in [
            (&[1.0, 2.0, nan, 3.0][..], Some(2)),
            (&[1.0, nan, inf, nan], Some(1)),
            (&[nan, 0.0, 0.0, 0.0], Some(0)),
            (&[1.0, -inf, inf, inf], Some(2)),
            (&[inf, -inf, inf, 0.0], Some(0)),
            (&[-inf, -inf, -inf, -inf], Some(0)),
        ] {
            for cuts in [&[0, 4][..], &[0, 2, 4], &[0, 0, 1, 2, 2, 3, 4, 4]] {
                let one = stats(row, cuts);
                assert_eq!(one.argmax(), argmax, "{row:?} {cuts:?}");
                assert_eq!(one.sampled(), None, "{row:?} {cuts:?}");
                assert!(one.loss().unwrap().is_nan(), "{row:?} {cuts:?}");
                assert!(one.entropy().unwrap().is_nan() && one.varentropy().unwrap().is_nan());
                assert_eq!(
                    key(one.logsumexp()),
                    key(reference::logsumexp(row)),
                    "{row:?} {cuts:?}"
                );
                let top: Vec<usize> = one.top_k().map(|t| t.id as usize).collect();
                assert_eq!(top, reference::top_k(row, 2), "{row:?} {cuts:?}");
            }
        }
        // A shard that is masked, beside one that is not.
        let one = stats(&[0.0, 0.0, -inf, -inf], &[0, 2, 4]);
        assert_eq!(one.entropy().map(|h| h as f32), Some(2f32.ln()));
        assert_eq!((one.rank(), one.strict_rank()), (Some(2), Some(1)));
        // Nothing at all has no argmax.
        let empty = Question {
            row: &[] as &[f32],
            target: -100,
            k: 0,
            sample: Sample::new(0, 0),
            backend,
            temperature: 1.0,
        };
        assert_eq!(empty.whole().argmax(), None);
        let mut stats = [RowStats::default()];
        let logits = Logits::<f32>::new(&[], 1, 0).unwrap();
        LogProbs::new().backend(backend).row_stats(logits, Shard::new(5, 9), &mut stats).unwrap();
        assert_eq!(stats[0].argmax(), None);
        assert_eq!(stats[0].logsumexp(), f64::NEG_INFINITY);
    });
}

#[test]
fn identity() {
    let none = RowStats::default();
    assert_eq!(none.merge(&none), Ok(none));
    assert_eq!((none.loss(), none.argmax(), none.sampled()), (None, None, None));
    assert_eq!((none.rank(), none.top_k().count()), (None, 0));
    assert_eq!(none.logsumexp(), f64::NEG_INFINITY);
    assert!(none.entropy().unwrap().is_nan());
    // Ignored rows, of which one that would poison everything.
    let x = [f32::NAN, 1.0, 2.0, 3.0];
    let logits = Logits::new(&x, 2, 2).unwrap();
    let mut stats = [none; 2];
    let ask = LogProbs::new().targets(&[-100i64, 1]).top_k(1);
    ask.row_stats(logits, Shard::new(0, 2), &mut stats).unwrap();
    assert_eq!(stats[0], none);
    assert_ne!(stats[1], none);
}

/// Shards that are no parts of one row make no number.
#[test]
fn shards_twice_or_missing() {
    let row = [1.0_f32, 2.0, 3.0, 4.0];
    for_each_backend(|backend| {
        let sample = Sample::new(0, 0);
        let at =
            |temperature| Question { row: &row, target: 3, k: 2, sample, backend, temperature };
        let part = |from, to| at(1.0).part(from..to, Some(4.0));
        let overlap = |a, b| Err(Error::ShardOverlap { a, b });
        let merge = |a: RowStats, b: RowStats| a.merge(&b);
        assert_eq!(merge(part(0, 3), part(1, 4)), overlap((0, 3), (1, 4)));
        assert_eq!(merge(part(0, 3), part(0, 3)), overlap((0, 3), (0, 3)));
        assert_eq!(merge(part(3, 4), part(3, 4)), overlap((3, 4), (3, 4)));
        assert_eq!(merge(part(0, 4), part(1, 2)), overlap((0, 4), (1, 2)));
        // Of what has a gap nothing is said, and it may be filled.
        let ends = merge(part(0, 1), part(3, 4)).unwrap();
        assert_eq!(ends.check(7), Err(Error::ShardClasses { row: 7, classes: 2, vocab: 4 }));
        assert_eq!((ends.loss(), ends.rank(), ends.argmax()), (None, None, None));
        assert_eq!((ends.sampled(), ends.top_k().count()), (None, 0));
        assert!(ends.logsumexp().is_nan() && ends.entropy().unwrap().is_nan());
        assert!(ends.varentropy().unwrap().is_nan() && ends.logprob_of(1.0).is_nan());
        let all = merge(ends, part(1, 3)).unwrap();
        assert_eq!(all.check(7), Ok(()));
        assert_eq!((all.rank(), all.argmax()), (Some(1), Some(3)));
        assert!((all.loss().unwrap() - reference::row(&row, 3).loss).abs() < 1e-6);
        // As many as there are classes, but not each of them once.
        let twice = merge(merge(part(0, 1), part(2, 3)).unwrap(), part(1, 2)).unwrap();
        assert_eq!(twice.check(0), Err(Error::ShardClasses { row: 0, classes: 3, vocab: 4 }));
        let gaps = merge(part(0, 1), part(2, 4)).unwrap();
        assert_eq!(merge(gaps, part(1, 3)), overlap((0, 4), (1, 3)));
        let error = Error::ShardOptions { what: "temperature", a: "1".into(), b: "2".into() };
        assert_eq!(merge(part(0, 1), at(2.0).part(1..4, Some(4.0))), Err(error));
        let mut stats = [RowStats::default()];
        let logits = Logits::new(&row[1..], 1, 3).unwrap();
        let ask = LogProbs::new().backend(backend);
        ask.row_stats(logits, Shard::new(1, 5), &mut stats).unwrap();
        let error = Error::ShardOptions { what: "vocabulary", a: "4".into(), b: "5".into() };
        assert_eq!(merge(part(0, 1), stats[0]), Err(error));
    });
}

#[test]
fn errors() {
    let x = [1.0_f32, 2.0, 3.0, 4.0];
    let logits = Logits::new(&x, 2, 2).unwrap();
    let before = [RowStats::default(); 2];
    let mut stats = before;
    for (first, vocab) in [(3, 4), (0, 1), (usize::MAX, 4), (usize::MAX - 1, usize::MAX - 1)] {
        let error = Error::Shard { first, classes: 2, vocab };
        assert_eq!(
            LogProbs::new().row_stats(logits, Shard::new(first, vocab), &mut stats),
            Err(error)
        );
    }
    let shard = Shard::new(2, 4);
    let ask = LogProbs::new().targets(&[0i64, 4]);
    let error = Error::TargetOutOfRange { row: 1, target: 4, vocab: 4 };
    assert_eq!(ask.row_stats(logits, shard, &mut stats), Err(error));
    let error = Error::InputLength { what: "target logits", len: 1, expected: 2 };
    let ask = LogProbs::new().targets(&[0i64, 3]).ranks(true);
    assert_eq!(ask.row_stats(logits, shard.target_logits(&[1.0]), &mut stats), Err(error));
    let error = Error::OutputLength { output: "stats", len: 1, expected: 2 };
    assert_eq!(ask.row_stats(logits, shard, &mut stats[..1]), Err(error));
    let range = "at most 128, the most tokens that are found of a row";
    let error = Error::Option { option: "top_k", value: "129".to_owned(), range };
    assert_eq!(ask.top_k(129).row_stats(logits, shard, &mut stats), Err(error));
    assert_eq!(stats, before);
    // More than the shard has, and more than the vocabulary, which are all.
    for k in [4, 5] {
        assert_eq!(ask.top_k(k).row_stats(logits, shard, &mut stats), Ok(()));
        assert_eq!(stats[1].top_k().map(|t| t.id).collect::<Vec<_>>(), [3, 2]);
    }
}

/// A draw is the same wherever the vocabulary is cut.
#[test]
fn misaligned_shards_draw_the_same() {
    let vocab = 1000;
    let mut rng = Rng::new(12);
    let row: Vec<f32> = (0..vocab).map(|_| rng.normal()).collect();
    for_each_backend(|backend| {
        for position in 0..(200 / thin()).max(20) as u64 {
            let sample = Sample::new(77, position);
            let question =
                Question { row: &row, target: 0, k: 0, sample, backend, temperature: 1.0 };
            let whole = question.whole().sampled().unwrap();
            let first = 1 + rng.below(vocab - 1);
            let second = first + rng.below(vocab - first);
            let parts = question.parts(&[0, first, second, vocab]);
            assert_eq!(merged(&parts).sampled(), Some(whole), "{first}, {second}, {position}");
        }
    });
}

/// Whatever it is made of, there is an answer.
fn use_all(stats: &RowStats, others: &[RowStats]) {
    assert!(RowStats::from_bytes(&stats.to_bytes()).is_ok());
    let _ = facts(stats);
    for other in others {
        for merged in [stats.merge(other), other.merge(stats)].into_iter().flatten() {
            let _ = (facts(&merged), merged.to_bytes());
            let _ = merged.merge(stats).map(|merged| facts(&merged));
        }
    }
}

/// The one or the other half of rows of all kinds.
fn samples_of_stats(half: usize) -> Vec<RowStats> {
    const HALF: usize = 300;
    let mut rng = Rng::new(1);
    let mut all = vec![RowStats::default()];
    for &kind in Kind::ORDINARY.iter().chain([&Kind::Special]) {
        let row = kind.row(&mut rng, 2 * HALF);
        for target in [any_target(&mut rng, &row) as i64, -100] {
            let sample = Sample::new(rng.bits(), 0);
            let backend = rng.pick(Backend::available());
            let row = &row[..];
            let question = Question { row, target, k: 5, sample, backend, temperature: 1.0 };
            all.push(question.part(half * HALF..(half + 1) * HALF, None));
        }
    }
    all
}

proptest! {
    #![proptest_config(property(4000))]

    #[test]
    fn bytes_of_any_origin(seed: u64) {
        let (all, others) = (samples_of_stats(0), samples_of_stats(1));
        let mut rng = Rng::new(seed);
        let mut bytes = all[rng.below(all.len())].to_bytes();
        if rng.below(20) == 0 {
            bytes.fill_with(|| rng.bits() as u8);
        }
        for _ in 0..1 + rng.below(6) {
            // Mostly the numbers at the beginning: what is behind are the largest tokens.
            let within = if rng.below(4) == 0 { RowStats::BYTES } else { RowStats::BYTES.min(420) };
            let at = rng.below(within);
            let values = [0, 1, 0x7f, 0x80, 0xff, rng.bits() as u8];
            let len = rng.pick(&[1, 1, 2, 4, 8, 16]).min(RowStats::BYTES - at);
            match rng.below(3) {
                0 => bytes[at..at + len].fill(rng.pick(&values)),
                1 => bytes[at] ^= 1 << rng.below(8),
                _ => (0..len).for_each(|i| bytes[at + i] = rng.bits() as u8),
            }
        }
        if let Ok(stats) = RowStats::from_bytes(&bytes) {
            let others = [rng.pick(&others), rng.pick(&others), rng.pick(&all)];
            use_all(&stats, &others);
        }
    }

    /// Numbers at the edge of what [`RowStats::from_bytes`] accepts, where they are.
    #[test]
    fn extreme_sums(seed: u64) {
        let halves = [samples_of_stats(0), samples_of_stats(1)];
        let mut rng = Rng::new(seed);
        let pick = |rng: &mut Rng, half: usize| {
            let mut bytes = rng.pick(&halves[half]).to_bytes();
            for total in [1, 166] {
                let origin = rng.pick(&[0.0, 1.0, -1e5, 3e38, -3e38, f32::MIN_POSITIVE]);
                let exponent = rng.pick(&[0.0, 1.0, -7.0, 1_048_576.0, -1_048_576.0, f32::NEG_INFINITY]);
                if rng.below(2) == 0 {
                    bytes[total..total + 4].copy_from_slice(&f32::to_le_bytes(origin));
                }
                if rng.below(2) == 0 {
                    bytes[total + 4..total + 8].copy_from_slice(&f32::to_le_bytes(exponent));
                }
                bytes[total + 8] ^= rng.pick(&[0, 1, 2, 4]);
                for sum in 0..3 {
                    let at = total + 9 + 52 * sum;
                    if rng.below(2) == 0 {
                        let top = rng.pick(&[0, 1, -1, 1000, (1 << 20) - 1, 1 - (1 << 20)]);
                        bytes[at..at + 4].copy_from_slice(&i32::to_le_bytes(top));
                    }
                    for bin in 0..3 {
                        let at = at + 4 + 16 * bin;
                        let values = [0, 1, -1, (1 << 120) - 1, 1 - (1 << 120)];
                        if rng.below(3) == 0 {
                            let value: i128 = rng.pick(&values);
                            bytes[at..at + 16].copy_from_slice(&value.to_le_bytes());
                        }
                    }
                }
            }
            bytes
        };
        let (a, b) = (pick(&mut rng, 0), pick(&mut rng, 1));
        if let (Ok(a), Ok(b)) = (RowStats::from_bytes(&a), RowStats::from_bytes(&b)) {
            use_all(&a, &[b, RowStats::default()]);
        }
    }
}

/// What was found wrong before.
#[test]
fn rows_that_went_wrong() {
    for_each_backend(|backend| {
        for (seed, vocab) in
            [(12_104_785_612_824_229_462, 1732), (12_104_785_612_824_229_462, 1910)]
        {
            check::<f32>(seed, vocab, backend);
            check::<bf16>(seed, vocab, backend);
            check::<f16>(seed, vocab, backend);
        }
    });
}
