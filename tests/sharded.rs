//! [`ShardedCrossEntropy`]: what shards say of a loss, merged in any order, is what the whole row says.

use common::{Kind, Rng, any_target, distance, for_each_backend, property, thin};
use proptest::prelude::*;
use std::fmt::Debug;
use std::ops::Range;
use xent::{
    AllowedTokens, Backend, CrossEntropy, Element, Error, Gradient, LogSumExp, Logits, LogitsMut,
    LossStats, Reduction, RowOutputs, Shard, Upstream, bf16, f16,
};

trait Number: Element<Real = f32> + Into<f64> + PartialEq + Debug {
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

/// Everything that a loss yields, as bits.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    losses: Vec<u32>,
    logprobs: Vec<u32>,
    logsumexp: Vec<u32>,
    z_losses: Vec<u32>,
    saved: Vec<(u32, u32)>,
    loss: u64,
}

/// Rows of logits and targets, and the loss.
struct Task<'a, T> {
    x: &'a [T],
    targets: &'a [i64],
    vocab: usize,
    mask: Option<&'a [u32]>,
    ce: CrossEntropy<'a>,
    upstream: f64,
}

impl<'a, T: Number> Task<'a, T> {
    fn rows(&self) -> usize {
        self.targets.len()
    }

    fn classes(&self, classes: Range<usize>) -> Logits<'a, T> {
        let (rows, vocab) = (self.rows(), self.vocab);
        match classes.len() {
            0 => Logits::new(&[], rows, 0).unwrap(),
            len => Logits::with_stride(&self.x[classes.start..], rows, len, vocab).unwrap(),
        }
    }

    fn found(
        &self,
        evaluate: impl FnOnce(RowOutputs<'_>) -> xent::Evaluation,
    ) -> (Found, Vec<LogSumExp>) {
        let rows = self.rows();
        let [mut losses, mut logprobs, mut logsumexp, mut z_losses] =
            [(); 4].map(|()| vec![7.0; rows]);
        let mut saved = vec![LogSumExp::default(); rows];
        let out = RowOutputs::new()
            .losses(&mut losses)
            .logprobs(&mut logprobs)
            .logsumexp(&mut logsumexp)
            .z_losses(&mut z_losses)
            .saved(&mut saved);
        let evaluation = evaluate(out);
        let bits = |values: Vec<f32>| values.into_iter().map(common::key).collect();
        let found = Found {
            losses: bits(losses),
            logprobs: bits(logprobs),
            logsumexp: bits(logsumexp),
            z_losses: bits(z_losses),
            saved: saved.iter().map(|s| (common::key(s.hi), common::key(s.lo))).collect(),
            loss: if evaluation.loss().is_nan() { 1 } else { evaluation.loss().to_bits() },
        };
        (found, saved)
    }

    /// The mask of classes that begin at a multiple of 32.
    fn masked(&self, classes: &Range<usize>) -> CrossEntropy<'a> {
        match self.mask {
            None => self.ce.clone(),
            Some(words) => {
                let words = &words[classes.start / 32..classes.end.div_ceil(32)];
                self.ce.clone().allowed_tokens(AllowedTokens::new(words).stride(0))
            }
        }
    }

    fn whole(&self) -> Found {
        let all = 0..self.vocab;
        self.found(|out| {
            self.masked(&all).evaluate(self.classes(all.clone()), self.targets, out).unwrap()
        })
        .0
    }

    fn whole_gradient(&self, saved: &[LogSumExp]) -> Vec<T> {
        let mut g = vec![T::of(3.0); self.x.len()];
        let to = LogitsMut::new(&mut g, self.rows(), self.vocab).unwrap();
        let gradient = Gradient::new(to).upstream(self.upstream);
        let all = 0..self.vocab;
        self.masked(&all).backward(self.classes(all), self.targets, saved, gradient).unwrap();
        g
    }

    /// What shards yield that are cut there, merged in some order.
    fn sharded(&self, rng: &mut Rng, cuts: &[usize]) -> (Found, Vec<LogSumExp>) {
        let mut parts: Vec<Vec<LossStats>> = cuts
            .windows(2)
            .map(|cut| {
                let classes = cut[0]..cut[1];
                let mut stats = vec![LossStats::default(); self.rows()];
                let shard = self.masked(&classes).shard(Shard::new(cut[0], self.vocab));
                shard.stats(self.classes(classes), self.targets, &mut stats).unwrap();
                stats
            })
            .collect();
        while parts.len() > 1 {
            let a = parts.swap_remove(rng.below(parts.len()));
            let at = rng.below(parts.len());
            for (to, from) in parts[at].iter_mut().zip(&a) {
                *to = if rng.below(2) == 0 { to.merge(from) } else { from.merge(to) };
                let again = LossStats::from_bytes(&to.to_bytes()).unwrap();
                assert_eq!(again.to_bytes(), to.to_bytes());
            }
        }
        for (stats, &target) in parts[0].iter().zip(self.targets) {
            assert_eq!(stats.loss().is_some(), target != -100);
        }
        let shard = self.masked(&(0..self.vocab)).shard(Shard::new(0, self.vocab));
        self.found(|out| shard.evaluate(&parts[0], self.targets, out).unwrap())
    }

    /// Gradients that are added to what is there, one upstream gradient a row, of columns: of shards and of all.
    fn check_columns(&self, saved: &[LogSumExp], cuts: &[usize], what: &str) {
        let (rows, vocab) = (self.rows(), self.vocab);
        let columns: Vec<T> =
            (0..vocab * rows).map(|i| self.x[i % rows * vocab + i / rows]).collect();
        let upstream: Vec<f32> = (0..rows).map(|row| row as f32 - 1.5).collect();
        let mut want = vec![T::of(0.5); columns.len()];
        let mut got = want.clone();
        let part = |ce: CrossEntropy<'a>, g: &mut [T], classes: Range<usize>, first, vocab| {
            let at = classes.start * rows..classes.end * rows;
            let to = LogitsMut::classes_first(&mut g[at.clone()], 1, classes.len(), rows).unwrap();
            let gradient = Gradient::new(to).upstream(Upstream::rows(&upstream)).accumulate();
            let x = Logits::classes_first(&columns[at], 1, classes.len(), rows).unwrap();
            ce.shard(Shard::new(first, vocab)).backward(x, self.targets, saved, gradient).unwrap();
        };
        part(self.masked(&(0..vocab)), &mut want, 0..vocab, 0, vocab);
        for cut in cuts.windows(2) {
            let classes = cut[0]..cut[1];
            part(self.masked(&classes), &mut got, classes, cut[0], vocab);
        }
        same_bits(&got, &want, what);
    }

    /// The gradients of all shards, side by side.
    fn sharded_gradient(&self, saved: &[LogSumExp], cuts: &[usize], in_place: bool) -> Vec<T> {
        let mut g = if in_place { self.x.to_vec() } else { vec![T::of(3.0); self.x.len()] };
        for cut in cuts.windows(2) {
            let classes = cut[0]..cut[1];
            if classes.is_empty() {
                continue;
            }
            let shard = self.masked(&classes).shard(Shard::new(cut[0], self.vocab));
            let to =
                LogitsMut::with_stride(&mut g[cut[0]..], self.rows(), classes.len(), self.vocab)
                    .unwrap();
            if in_place {
                shard.backward_in_place(to, self.targets, saved, self.upstream).unwrap();
            } else {
                let gradient = Gradient::new(to).upstream(Upstream::from(self.upstream));
                shard.backward(self.classes(classes), self.targets, saved, gradient).unwrap();
            }
        }
        g
    }
}

fn cuts(rng: &mut Rng, vocab: usize, unit: usize) -> Vec<usize> {
    let mut cuts = vec![0, vocab];
    for _ in 0..rng.below(6) {
        cuts.push(rng.below(vocab / unit + 1) * unit);
    }
    cuts.sort_unstable();
    cuts
}

fn near(got: &[u32], want: &[u32], ulp: u32, slack: f32, what: &str) {
    for (&got, &want) in got.iter().zip(want) {
        let (a, b) = (f32::from_bits(got), f32::from_bits(want));
        let is_near = got == want || distance(a, b) <= ulp || (a - b).abs() <= slack;
        assert!(is_near, "{a:e}, {b:e}: {what}");
    }
}

fn same_bits<T: Number>(got: &[T], want: &[T], what: &str) {
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let (a, b): (f64, f64) = (got.into(), want.into());
        assert!(
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
            "{i}: {a:e}, {b:e}: {what}"
        );
    }
}

/// Bits where shards begin at chunks, 1 ULP elsewhere, and always the gradient of the same `saved`.
fn check<T: Number>(seed: u64, vocab: usize, backend: Backend) {
    let mut rng = Rng::new(seed);
    let rows = 1 + rng.below(4);
    let (mut x, mut targets) = (Vec::new(), Vec::new());
    let mut ordinary = true;
    for _ in 0..rows {
        let row = Kind::any(&mut rng).row(&mut rng, vocab);
        targets.push(if rng.below(6) == 0 { -100 } else { any_target(&mut rng, &row) as i64 });
        ordinary &= row.iter().all(|x| x.abs() < 350.0 || *x == f32::NEG_INFINITY);
        x.extend(row.into_iter().map(T::of));
    }
    let smoothing = rng.pick(&[0.0, 0.0, 0.1]);
    let weights: Vec<f32> = (0..rows).map(|_| rng.pick(&[1.0, 0.5, 2.0])).collect();
    let mut ce = CrossEntropy::new()
        .backend(backend)
        .label_smoothing(smoothing)
        .z_loss(rng.pick(&[0.0, 1e-3]))
        .logit_scale(rng.pick(&[1.0, 1.0, 0.5]))
        .temperature(rng.pick(&[1.0, 1.0, 1.7]))
        .reduction(rng.pick(&[Reduction::Mean, Reduction::Sum, Reduction::MeanOver(3.0)]));
    if rng.below(3) == 0 {
        ce = ce.softcap(30.0);
    }
    if rng.below(2) == 0 {
        ce = ce.token_weights(&weights);
    }
    let words: Vec<u32> =
        (0..vocab.div_ceil(32)).map(|_| rng.bits() as u32 | rng.bits() as u32).collect();
    let mask = (rng.below(3) == 0).then_some(&words[..]);
    let upstream = rng.pick(&[1.0, 0.25, -3.0]);
    let task = Task { x: &x, targets: &targets, vocab, mask, ce, upstream };
    let whole = task.whole();
    for unit in [1, 32, LossStats::CHUNK] {
        let unit = if mask.is_some() { unit.max(32) } else { unit };
        let cuts = cuts(&mut rng, vocab, unit);
        let what = format!("{vocab} cut at {cuts:?}, seed {seed}, {backend}, {:?}", task.ce);
        let (found, saved) = task.sharded(&mut rng, &cuts);
        if unit == LossStats::CHUNK && ordinary && smoothing == 0.0 {
            assert_eq!(found, whole, "{what}");
        }
        // Of a sum that cancels, which is in neither way exact to the last bit.
        let (ulp, slack) = if smoothing == 0.0 { (1, 0.0) } else { (3, 1e-11) };
        near(&found.losses, &whole.losses, ulp, slack, &what);
        near(&found.logprobs, &whole.logprobs, 1, 0.0, &what);
        near(&found.z_losses, &whole.z_losses, 1, 1e-12, &what);
        near(&found.logsumexp, &whole.logsumexp, 1, f32::EPSILON / 2.0, &what);
        let want = task.whole_gradient(&saved);
        same_bits(&task.sharded_gradient(&saved, &cuts, false), &want, &what);
        same_bits(&task.sharded_gradient(&saved, &cuts, true), &want, &what);
        if vocab < 3000 {
            task.check_columns(&saved, &cuts, &what);
        }
    }
}

proptest! {
    #![proptest_config(property(120))]

    #[test]
    fn short_rows(seed: u64, vocab in 1..3000usize) {
        for &backend in Backend::available() {
            check::<f32>(seed, vocab, backend);
            check::<bf16>(seed, vocab, backend);
            check::<f16>(seed, vocab, backend);
        }
    }
}

proptest! {
    #![proptest_config(property(16))]

    /// Of several chunks.
    #[test]
    fn long_rows(seed: u64, vocab in 30_000..140_000usize) {
        let vocab = if thin() > 1 { 32_700 + vocab % 200 } else { vocab };
        for &backend in Backend::available() {
            check::<f32>(seed, vocab, backend);
            check::<bf16>(seed ^ 1, vocab, backend);
        }
    }
}

/// Also where a chunk begins with a logit that is far from all others: that of an unused token, say.
#[test]
fn outliers_at_the_beginning_of_a_shard() {
    let vocab = if thin() > 1 { 2000 } else { 2 * LossStats::CHUNK };
    let mut rng = Rng::new(8);
    let mut x: Vec<f32> = (0..vocab).map(|_| 5.0 + 3.0 * rng.normal()).collect();
    for_each_backend(|backend| {
        for outlier in [-1e4, -65_504.0, -1e9, 300.0] {
            (x[0], x[vocab / 2]) = (outlier, outlier);
            let ce = CrossEntropy::new().backend(backend).label_smoothing(0.1);
            let targets = [vocab as i64 - 3];
            let task = Task { x: &x, targets: &targets, vocab, mask: None, ce, upstream: 1.0 };
            let (found, _) = task.sharded(&mut Rng::new(1), &[0, vocab / 2, vocab]);
            near(&found.losses, &task.whole().losses, 1, 0.0, &format!("{outlier}, {backend}"));
        }
    });
}

/// Megatron's formula in `f64`, label smoothing too.
#[test]
fn close_to_f64() {
    let (rows, vocab) = (3, 5000);
    let mut rng = Rng::new(3);
    let x: Vec<f32> = (0..rows * vocab).map(|_| 6.0 * rng.normal()).collect();
    let targets = [4999i64, -100, 17];
    for_each_backend(|backend| {
        for e in [0.0, 0.2] {
            let ce = CrossEntropy::new().backend(backend).label_smoothing(e);
            let task = Task { x: &x, targets: &targets, vocab, mask: None, ce, upstream: 1.0 };
            let (found, _) = task.sharded(&mut rng, &[0, 1000, 1007, 5000]);
            for (row, &target) in targets.iter().enumerate().filter(|(_, t)| **t >= 0) {
                let x = &x[row * vocab..][..vocab];
                let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
                let nll = sum.ln() - f64::from(x[target as usize]);
                let all: f64 = x.iter().map(|&x| sum.ln() - f64::from(x)).sum();
                let want = ((1.0 - e) * nll + e / vocab as f64 * all) as f32;
                let got = f32::from_bits(found.losses[row]);
                let ulp = if e == 0.0 { 1 } else { 2 };
                assert!(distance(got, want) <= ulp, "{got}, {want}, {backend}");
            }
        }
    });
}

/// What was found wrong before: logits too far apart for `f32`, and a mask, which makes a smoothed loss infinite.
#[test]
fn rows_that_went_wrong() {
    for_each_backend(|backend| {
        check::<bf16>(8_905_656_815_859_595_455, 210, backend);
        let x = [3e38_f32, -3e38, f32::NEG_INFINITY, 1.0, 0.0];
        let logits = Logits::new(&x, 1, 5).unwrap();
        let ce = CrossEntropy::new().backend(backend).label_smoothing(0.1);
        assert_eq!(ce.forward(logits, &[1i64]), Ok(f64::INFINITY));
    });
}

/// Rows that have no loss, and masked targets, however they are cut.
#[test]
fn special_values() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows: [([f32; 4], i64); 6] = [
        ([1.0, nan, 2.0, 0.0], 0),
        ([1.0, inf, 2.0, 0.0], 0),
        ([-inf; 4], 2),
        ([1.0, -inf, 2.0, 0.0], 1),
        ([1.0, -inf, -inf, 0.0], 3),
        ([nan; 4], -100),
    ];
    let x: Vec<f32> = rows.iter().flat_map(|(x, _)| *x).collect();
    let targets = rows.map(|(_, target)| target);
    let mut rng = Rng::new(1);
    for_each_backend(|backend| {
        for e in [0.0, 0.5] {
            let ce = CrossEntropy::new().backend(backend).label_smoothing(e);
            let task = Task { x: &x, targets: &targets, vocab: 4, mask: None, ce, upstream: 1.0 };
            let whole = task.whole();
            for cuts in [&[0, 4][..], &[0, 2, 4], &[0, 1, 2, 3, 4], &[0, 0, 3, 4]] {
                let (found, saved) = task.sharded(&mut rng, cuts);
                assert_eq!(found, whole, "{cuts:?}, {e}, {backend}");
                let want = task.whole_gradient(&saved);
                same_bits(&task.sharded_gradient(&saved, cuts, false), &want, "special");
            }
        }
    });
}

#[test]
fn errors() {
    let x = [1.0_f32, 2.0, 3.0, 4.0];
    let logits = Logits::new(&x, 2, 2).unwrap();
    let before = [LossStats::default(); 2];
    let mut stats = before;
    let shard = |first, vocab| CrossEntropy::new().shard(Shard::new(first, vocab));
    for (first, vocab) in [(3, 4), (0, 1), (usize::MAX, 4), (usize::MAX - 1, usize::MAX - 1)] {
        let error = Error::Shard { first, classes: 2, vocab };
        assert_eq!(shard(first, vocab).stats(logits, &[0i64, 0], &mut stats), Err(error));
    }
    let error = Error::TargetOutOfRange { row: 1, target: 4, vocab: 4 };
    assert_eq!(shard(2, 4).stats(logits, &[0i64, 4], &mut stats), Err(error.clone()));
    assert_eq!(shard(2, 4).fingerprint(2, &[0i64, 4]), Err(error.clone()));
    let error = Error::OutputLength { output: "stats", len: 1, expected: 2 };
    assert_eq!(shard(2, 4).stats(logits, &[0i64, 3], &mut stats[..1]), Err(error));
    let probs = [0.25_f32; 4];
    let given = xent::Targets::probs(&probs);
    let error = Error::Option {
        option: "targets",
        value: "probabilities".to_owned(),
        range: "a class id per row",
    };
    assert_eq!(shard(2, 4).stats(logits, given, &mut stats), Err(error.clone()));
    assert_eq!(shard(2, 4).fingerprint(2, given), Err(error));
    let weighted = CrossEntropy::new().class_weights(&[1.0_f32; 4]).shard(Shard::new(2, 4));
    let error = Error::Option {
        option: "class_weights",
        value: "given".to_owned(),
        range: "none for a sharded vocabulary",
    };
    assert_eq!(weighted.stats(logits, &[0i64, 3], &mut stats), Err(error.clone()));
    assert_eq!(weighted.evaluate(&before, &[0i64, 3], RowOutputs::new()).unwrap_err(), error);
    let smooth = CrossEntropy::new().label_smoothing(2.0).shard(Shard::new(2, 4));
    assert!(matches!(smooth.stats(logits, &[0i64, 3], &mut stats), Err(Error::Option { .. })));
    assert_eq!(stats, before);

    // What is merged must be the whole vocabulary, once.
    let targets = [0i64, -100];
    let part = |first| {
        let mut stats = before;
        shard(first, 4).stats(logits, &targets, &mut stats).unwrap();
        stats
    };
    let (low, high, mut losses) = (part(0), part(2), [7.0_f32; 2]);
    let mut evaluate = |merged: &[LossStats]| {
        shard(0, 4).evaluate(merged, &targets, RowOutputs::new().losses(&mut losses))
    };
    let error = Error::ShardClasses { row: 0, classes: 2, vocab: 4 };
    assert_eq!(
        error.to_string(),
        "row 0: the shards that were merged have 2 classes of a vocabulary of 4"
    );
    assert_eq!(evaluate(&low).unwrap_err(), error);
    let twice = [low[0].merge(&low[0]), low[1]];
    let error = Error::ShardSeams { row: 0 };
    assert_eq!(error.to_string(), "row 0: the shards that were merged leave a gap or overlap");
    assert_eq!(evaluate(&twice).unwrap_err(), error);
    let mut middle = before;
    shard(1, 4).stats(logits, &targets, &mut middle).unwrap();
    let overlap = [low[0].merge(&middle[0]), low[1]];
    assert_eq!(evaluate(&overlap).unwrap_err(), error);
    // Of another process, whose target was another.
    let mut other = before;
    shard(2, 4).stats(logits, &[3i64, -100], &mut other).unwrap();
    let two = [low[0].merge(&other[0]), low[1]];
    let error = Error::ShardTarget { row: 0, target: 0, shards: 2 };
    assert_eq!(evaluate(&two).unwrap_err(), error);
    shard(0, 4).stats(logits, &[3i64, -100], &mut other).unwrap();
    let none = [other[0].merge(&high[0]), high[1]];
    let error = Error::ShardTarget { row: 0, target: 0, shards: 0 };
    assert_eq!(evaluate(&none).unwrap_err(), error);
    let error = Error::TargetCount { rows: 1, targets: 2 };
    assert_eq!(evaluate(&low[..1]).unwrap_err(), error);
    let merged = [low[0].merge(&high[0]), low[1].merge(&high[1])];
    assert!(evaluate(&merged).is_ok());
    assert_eq!(losses[1], 0.0);
    let error = Error::Missing { output: "argmax", needs: "RowStats" };
    let counted = RowOutputs::new().count_correct();
    assert_eq!(shard(0, 4).evaluate(&merged, &targets, counted).unwrap_err(), error);

    let mut g = [7.0_f32; 4];
    let error = Error::InputLength { what: "row statistics", len: 1, expected: 2 };
    let saved = [LogSumExp::default(); 2];
    let to = Gradient::new(LogitsMut::new(&mut g, 2, 2).unwrap());
    assert_eq!(shard(2, 4).backward(logits, &targets, &saved[..1], to), Err(error));
    let error = Error::Shard { first: 3, classes: 2, vocab: 4 };
    let to = Gradient::new(LogitsMut::new(&mut g, 2, 2).unwrap());
    assert_eq!(shard(3, 4).backward(logits, &targets, &saved, to), Err(error));
    assert_eq!(g, [7.0; 4]);
}

#[test]
fn fingerprints() {
    let of = |ce: CrossEntropy<'_>, targets: &[i64]| {
        ce.shard(Shard::new(0, 10)).fingerprint(targets.len(), targets).unwrap()
    };
    let ce = CrossEntropy::new;
    let (weights, others) = ([1.0_f32, 2.0], [1.0_f32, 3.0]);
    let targets = [1, 2];
    let all = [
        of(ce(), &targets),
        of(ce(), &[2, 1]),
        of(ce(), &[1, -100]),
        of(ce(), &[1]),
        of(ce(), &[]),
        of(ce().reduction(Reduction::Sum), &targets),
        of(ce().reduction(Reduction::MeanOver(2.0)), &targets),
        of(ce().reduction(Reduction::MeanOver(3.0)), &targets),
        of(ce().label_smoothing(0.1), &targets),
        of(ce().z_loss(0.1), &targets),
        of(ce().logit_scale(0.1), &targets),
        of(ce().temperature(0.1), &targets),
        of(ce().softcap(3.0), &targets),
        of(ce().softcap_of_all(3.0), &targets),
        of(ce().token_weights(&weights), &targets),
        of(ce().token_weights(&others), &targets),
        ce().shard(Shard::new(0, 11)).fingerprint(2, &targets).unwrap(),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(!all[..i].contains(a), "{i}");
    }
    assert_eq!(of(ce().backend(Backend::Portable), &targets), all[0]);
    assert_eq!(of(ce().allowed_tokens(AllowedTokens::new(&[3, 3])), &targets), all[0]);
    assert_eq!(ce().shard(Shard::new(5, 10)).fingerprint(2, &[1u32, 2]).unwrap(), all[0]);
    let error = Error::TargetCount { rows: 3, targets: 2 };
    assert_eq!(ce().shard(Shard::new(5, 10)).fingerprint(3, &targets), Err(error));
}

proptest! {
    #![proptest_config(property(3000))]

    /// Bytes of any origin are refused, or make statistics that answer.
    #[test]
    fn bytes_of_any_origin(seed: u64) {
        let mut rng = Rng::new(seed);
        let row: Vec<f32> = (0..40).map(|_| 300.0 * rng.normal()).collect();
        let mut stats = [LossStats::default()];
        let logits = Logits::new(&row, 1, 40).unwrap();
        let shard = CrossEntropy::new().shard(Shard::new(0, 40));
        shard.stats(logits, &[7i64], &mut stats).unwrap();
        let mut bytes = stats[0].to_bytes();
        prop_assert_eq!(LossStats::from_bytes(&bytes), Ok(stats[0]));
        for _ in 0..1 + rng.below(5) {
            let at = rng.below(bytes.len());
            let any = rng.bits() as u8;
            bytes[at] = rng.pick(&[0, 1, 0x7f, 0x80, 0xff, any]);
        }
        if let Ok(other) = LossStats::from_bytes(&bytes) {
            let (a, b) = (other.merge(&stats[0]), stats[0].merge(&other));
            for stats in [other, a, b, a.merge(&b)] {
                let _ = (stats.loss(), stats.logsumexp(), stats.saved(), stats.to_bytes());
                let _ = shard.evaluate(&[stats], &[7i64], RowOutputs::new());
            }
        }
    }
}
