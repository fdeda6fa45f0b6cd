//! Several ignored ids: every call yields the bits that it yields with -100 in the place of each.

use common::{Kind, Rng, fastest, property};
use proptest::prelude::*;
use std::fmt::Debug;
use xent::{
    Backend, Compare, CompareOutputs, CrossEntropy, Element, Error, Floats, Gradient, Ids,
    LogProbs, LogSumExp, Logits, LogitsMut, LossStats, Reduction, RowOutputs, RowStats, Sample,
    Shard, SparseProbs, Targets, TokenOutputs, Upstream, bf16, f16,
};

/// Ids of one of the types that they may have.
#[derive(Clone, Debug)]
enum AnyIds {
    I64(Vec<i64>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    Usize(Vec<usize>),
}

impl AnyIds {
    /// The largest and the smallest id of the type.
    fn limits(kind: usize) -> (i128, i128) {
        match kind {
            0 => (i64::MIN.into(), i64::MAX.into()),
            1 => (i32::MIN.into(), i32::MAX.into()),
            2 => (0, u32::MAX.into()),
            _ => (0, usize::MAX as i128),
        }
    }

    fn new(kind: usize, ids: &[i128]) -> AnyIds {
        let ids = ids.iter().copied();
        match kind {
            0 => AnyIds::I64(ids.map(|id| id.try_into().unwrap()).collect()),
            1 => AnyIds::I32(ids.map(|id| id.try_into().unwrap()).collect()),
            2 => AnyIds::U32(ids.map(|id| id.try_into().unwrap()).collect()),
            _ => AnyIds::Usize(ids.map(|id| id.try_into().unwrap()).collect()),
        }
    }

    fn ids(&self) -> Ids<'_> {
        match self {
            AnyIds::I64(ids) => ids.into(),
            AnyIds::I32(ids) => ids.into(),
            AnyIds::U32(ids) => ids.into(),
            AnyIds::Usize(ids) => ids.into(),
        }
    }
}

/// Targets, of which any may be ignored; and the same with -100 for those that are.
struct Batch {
    rows: usize,
    vocab: usize,
    /// With duplicates, classes, and ids that no target is.
    list: Vec<i64>,
    targets: AnyIds,
    plain: Vec<i64>,
    x: Vec<f32>,
}

/// A list to ignore. Whether it is empty, and how many ids it has more than once, is left to chance.
fn any_list(rng: &mut Rng, vocab: usize) -> Vec<i64> {
    let mut list = Vec::new();
    for _ in 0..rng.below(7) {
        let class = rng.below(vocab) as i64;
        let known = [-100, -1, 0, vocab as i64, i64::MIN, i64::MAX, u32::MAX.into(), class, class];
        let twice = !list.is_empty() && rng.below(4) == 0;
        let id = if twice { rng.pick(&list) } else { rng.pick(&known) };
        list.push(id);
    }
    list
}

/// Ids that are classes or on the list, and what they are with -100 alone.
fn any_ids(
    rng: &mut Rng,
    len: usize,
    kind: usize,
    vocab: usize,
    list: &[i64],
) -> (AnyIds, Vec<i64>) {
    let (least, most) = AnyIds::limits(kind);
    let possible: Vec<i64> =
        list.iter().copied().filter(|&id| (least..=most).contains(&id.into())).collect();
    let id = |_| match possible.is_empty() || rng.below(3) > 0 {
        true => rng.below(vocab) as i64,
        false => rng.pick(&possible),
    };
    let ids: Vec<i64> = (0..len).map(id).collect();
    let plain = ids.iter().map(|id| if list.contains(id) { -100 } else { *id }).collect();
    let ids: Vec<i128> = ids.into_iter().map(i128::from).collect();
    (AnyIds::new(kind, &ids), plain)
}

impl Batch {
    fn any(rng: &mut Rng) -> Batch {
        let rows = rng.below(9);
        let vocab = if rng.below(8) == 0 { 1000 + rng.below(100) } else { 1 + rng.below(40) };
        let list = any_list(rng, vocab);
        let kind = rng.below(4);
        let (targets, plain) = any_ids(rng, rows, kind, vocab, &list);
        let mut x = Vec::new();
        for &target in &plain {
            // What is ignored is not read: NaN would show.
            match target {
                -100 => x.extend(std::iter::repeat_n(f32::NAN, vocab)),
                _ => x.extend(Kind::any(rng).row(rng, vocab)),
            }
        }
        Batch { rows, vocab, list, targets, plain, x }
    }
}

fn options(rng: &mut Rng, backend: Backend) -> CrossEntropy<'static> {
    let ce = CrossEntropy::new().backend(backend).reduction(rng.pick(&[
        Reduction::Mean,
        Reduction::Sum,
        Reduction::MeanOver(3.0),
    ]));
    match rng.below(4) {
        // The forward kernel is another one.
        0 | 1 => ce,
        2 => ce.z_loss(1e-3),
        _ => ce.label_smoothing(0.1).temperature(0.7),
    }
}

/// What all calls of a loss yield, bit for bit but for the payload of NaN.
fn loss_of_all<T: Element>(
    ce: &CrossEntropy<'_>,
    x: &[T],
    (rows, vocab): (usize, usize),
    targets: Targets<'_>,
) -> Vec<(&'static str, String)> {
    let text = |value: &dyn Debug| format!("{value:?}");
    let logits = Logits::new(x, rows, vocab).unwrap();
    let zeros = || vec![T::Real::default(); rows];
    let upstream = Upstream::rows(&[0.5_f32, 2.0, -1.0, 0.0, 1.0, 3.0, 0.25, 7.0][..rows]);
    let mut all = vec![("forward", text(&ce.forward(logits, targets).unwrap()))];

    let mut losses = zeros();
    ce.forward_into(logits, targets, &mut losses).unwrap();
    all.push(("forward_into", text(&losses)));

    let mut saved = vec![LogSumExp::default(); rows];
    let [mut losses, mut logprobs, mut logsumexp, mut z_losses] = [(); 4].map(|()| zeros());
    let mut argmax = vec![7; rows];
    let out = RowOutputs::new()
        .losses(&mut losses)
        .logprobs(&mut logprobs)
        .logsumexp(&mut logsumexp)
        .z_losses(&mut z_losses)
        .saved(&mut saved)
        .argmax(&mut argmax);
    let evaluation = ce.evaluate(logits, targets, out).unwrap();
    all.push(("evaluate", text(&evaluation)));
    all.push(("rows", text(&(losses, logprobs, logsumexp, z_losses, &saved, argmax))));

    let mut g = vec![T::default(); x.len()];
    for accumulate in [false, true] {
        let to = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap()).upstream(upstream);
        let to = if accumulate { to.accumulate() } else { to };
        let e = ce.forward_backward(logits, targets, to, RowOutputs::new()).unwrap();
        all.push(("forward_backward", text(&(e, &g))));
    }
    let mut place = x.to_vec();
    let to = LogitsMut::new(&mut place, rows, vocab).unwrap();
    let e = ce.forward_backward_in_place(to, targets, upstream, RowOutputs::new()).unwrap();
    all.push(("forward_backward_in_place", text(&(e, place))));
    let to = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap()).upstream(upstream);
    ce.backward(logits, targets, &saved, to).unwrap();
    all.push(("backward", text(&g)));
    let mut place = x.to_vec();
    let to = LogitsMut::new(&mut place, rows, vocab).unwrap();
    ce.backward_in_place(to, targets, &saved, upstream).unwrap();
    all.push(("backward_in_place", text(&place)));

    let offsets = [0, rows / 2, rows / 2, rows];
    all.push(("sequences", text(&ce.score_sequences(logits, targets, &offsets).unwrap())));
    all
}

/// What all calls of log-probabilities yield.
fn logprobs_of_all<T: Element>(
    ask: LogProbs<'_>,
    x: &[T],
    (rows, vocab): (usize, usize),
    targets: Targets<'_>,
) -> [String; 2] {
    let logits = Logits::new(x, rows, vocab).unwrap();
    let samples: Vec<Sample> = (0..rows as u64).map(|i| Sample::new(3, i)).collect();
    let candidates = vec![vocab - 1; rows];
    let ask = ask.targets(targets);
    // By the kernel of the loss, and by that of everything.
    let mut logprobs = vec![T::Real::default(); rows];
    ask.run(logits, TokenOutputs::new().logprobs(&mut logprobs)).unwrap();
    let ask = ask.candidates(&candidates, 1).top_k(2.min(vocab)).ranks(true);
    let all = ask.entropy(true).varentropy(true).sample(&samples).collect(logits).unwrap();
    [format!("{logprobs:?}"), format!("{all:?}")]
}

fn shards_of_all(
    ce: &CrossEntropy<'_>,
    batch: &Batch,
    targets: Targets<'_>,
) -> (Vec<[u8; LossStats::BYTES]>, String, u64) {
    let (rows, vocab, seam) = (batch.rows, batch.vocab, batch.vocab / 2);
    let mut merged = vec![LossStats::default(); rows];
    for classes in [0..seam, seam..vocab] {
        let shard = ce.clone().shard(Shard::new(classes.start, vocab));
        let mut stats = vec![LossStats::default(); rows];
        let part = batch.x.get(classes.start..).unwrap_or(&[]);
        let logits = Logits::with_stride(part, rows, classes.len(), vocab).unwrap();
        shard.stats(logits, targets, &mut stats).unwrap();
        for (merged, stats) in merged.iter_mut().zip(&stats) {
            *merged = merged.merge(stats);
        }
    }
    let shard = ce.clone().shard(Shard::new(seam, vocab));
    let mut saved = vec![LogSumExp::default(); rows];
    let out = RowOutputs::new().saved(&mut saved);
    let evaluation = shard.evaluate(&merged, targets, out).unwrap();
    let part = batch.x.get(seam..).unwrap_or(&[]);
    let logits = Logits::with_stride(part, rows, vocab - seam, vocab).unwrap();
    let mut g = vec![0.0; rows * (vocab - seam)];
    let to = Gradient::new(LogitsMut::new(&mut g, rows, vocab - seam).unwrap());
    shard.backward(logits, targets, &saved, to).unwrap();
    let fingerprint = shard.fingerprint(rows, targets).unwrap();
    let bytes = merged.iter().map(LossStats::to_bytes).collect();
    (bytes, format!("{evaluation:?} {saved:?} {g:?}"), fingerprint)
}

proptest! {
    #![proptest_config(property(400))]

    #[test]
    fn losses_and_gradients(seed: u64) {
        let mut rng = Rng::new(seed);
        let backend = rng.pick(Backend::available());
        let batch = Batch::any(&mut rng);
        let plain = options(&mut rng, backend);
        let ce = plain.clone().ignore_indices(&batch.list);
        let shape = (batch.rows, batch.vocab);

        // Of sequences, the first `shift` tokens of which are never a target.
        let shift = rng.below(batch.rows.max(1));
        let shifted = |ids| Targets::shifted(ids, batch.rows, shift);
        // Entries that are ignored fill up rows of sparse probabilities.
        let (k, kind) = (rng.below(4), rng.below(4));
        let (entries, plain_entries) =
            any_ids(&mut rng, batch.rows * k, kind, batch.vocab, &batch.list);
        let probs: Vec<f32> = (0..batch.rows * k).map(|_| rng.below(5) as f32 / 4.0).collect();
        let probs_f64: Vec<f64> = probs.iter().map(|&p| p.into()).collect();
        let of = |ids, double| {
            let single = Floats::from(&probs);
            SparseProbs::new(ids, if double { Floats::from(&probs_f64) } else { single }, k).into()
        };
        let ids = batch.targets.ids();
        for (targets, wanted) in [
            (Targets::Ids(ids), Targets::from(&batch.plain)),
            (shifted(ids), shifted((&batch.plain).into())),
        ] {
            let check = |got: Vec<(&str, String)>, want: Vec<(&str, String)>| {
                for (got, want) in got.into_iter().zip(want) {
                    prop_assert_eq!(got, want, "{:?} {:?}", batch.list, targets);
                }
                Ok(())
            };
            let single = &batch.x[..];
            let (got, want) = (
                loss_of_all(&ce, single, shape, targets),
                loss_of_all(&plain, single, shape, wanted),
            );
            check(got, want)?;
            let double: Vec<f64> = batch.x.iter().map(|&x| x.into()).collect();
            let (got, want) = (
                loss_of_all(&ce, &double, shape, targets),
                loss_of_all(&plain, &double, shape, wanted),
            );
            check(got, want)?;
            let half: Vec<bf16> = batch.x.iter().map(|&x| bf16::from_f32(x)).collect();
            let (got, want) = (
                loss_of_all(&ce, &half, shape, targets),
                loss_of_all(&plain, &half, shape, wanted),
            );
            check(got, want)?;
        }
        // Rows with probabilities are read whatever their entries are.
        let x: Vec<f32> = batch.x.iter().map(|&x| if x.is_nan() { 0.5 } else { x }).collect();
        let (got, want) = (of(entries.ids(), false), of((&plain_entries).into(), false));
        prop_assert_eq!(
            loss_of_all(&ce, &x, shape, got),
            loss_of_all(&plain, &x, shape, want)
        );
        let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        let (got, want) = (of(entries.ids(), true), of((&plain_entries).into(), true));
        prop_assert_eq!(
            loss_of_all(&ce, &x, shape, got),
            loss_of_all(&plain, &x, shape, want)
        );
    }

    #[test]
    fn tokens_and_divergences(seed: u64) {
        let mut rng = Rng::new(seed);
        let backend = rng.pick(Backend::available());
        let batch = Batch::any(&mut rng);
        let shape = (batch.rows, batch.vocab);
        let shift = rng.below(batch.rows.max(1));
        let (ids, plain_ids) = (batch.targets.ids(), Ids::from(&batch.plain));
        let shifted = |ids| Targets::shifted(ids, batch.rows, shift);
        let temperature = rng.pick(&[1.0, 0.7]);
        let plain = LogProbs::new().backend(backend).temperature(temperature);
        let ask = plain.ignore_indices(&batch.list);
        let half: Vec<f16> = batch.x.iter().map(|&x| f16::from_f32(x)).collect();
        let double: Vec<f64> = batch.x.iter().map(|&x| x.into()).collect();
        let compare = Compare::new().backend(backend).temperature(temperature);
        let base = Logits::new(&batch.x, batch.rows, batch.vocab).unwrap();
        let other = Logits::new(&half, batch.rows, batch.vocab).unwrap();
        let divergences = |compare: Compare<'_>| {
            let [mut kl, mut jsd, mut delta_p] = [(); 3].map(|()| vec![7.0; batch.rows]);
            let out = CompareOutputs::new().kl(&mut kl).jsd(&mut jsd).delta_p(&mut delta_p);
            let all = compare.evaluate(base, other, out).unwrap();
            format!("{all:?} {kl:?} {jsd:?} {delta_p:?}")
        };
        let stats = |ask: LogProbs<'_>| -> Vec<[u8; RowStats::BYTES]> {
            let mut stats = vec![RowStats::default(); batch.rows];
            let shard = Shard::new(0, batch.vocab);
            ask.row_stats(base, shard, &mut stats).unwrap();
            stats.iter().map(RowStats::to_bytes).collect()
        };
        for (got, want) in [
            (Targets::Ids(ids), Targets::Ids(plain_ids)),
            (shifted(ids), shifted(plain_ids)),
        ] {
            prop_assert_eq!(
                logprobs_of_all(ask, &batch.x, shape, got),
                logprobs_of_all(plain, &batch.x, shape, want)
            );
            prop_assert_eq!(
                logprobs_of_all(ask, &half, shape, got),
                logprobs_of_all(plain, &half, shape, want)
            );
            prop_assert_eq!(
                logprobs_of_all(ask, &double, shape, got),
                logprobs_of_all(plain, &double, shape, want)
            );
            prop_assert_eq!(stats(ask.targets(got)), stats(plain.targets(want)));
            prop_assert_eq!(
                divergences(compare.ignore_indices(&batch.list).targets(got)),
                divergences(compare.targets(want))
            );
        }
    }

    #[test]
    fn shards(seed: u64) {
        let mut rng = Rng::new(seed);
        let batch = Batch::any(&mut rng);
        let plain = options(&mut rng, fastest());
        let ce = plain.clone().ignore_indices(&batch.list);
        let (stats, loss, fingerprint) = shards_of_all(&ce, &batch, batch.targets.ids().into());
        let (plain_stats, plain_loss, _) = shards_of_all(&plain, &batch, (&batch.plain).into());
        prop_assert_eq!(stats, plain_stats);
        prop_assert_eq!(loss, plain_loss);

        // The set of ids is what processes have in common, however they came by it.
        let mut other = batch.list.clone();
        other.reverse();
        other.extend(batch.list.first());
        let of = |list: &[i64]| {
            let shard = plain.clone().ignore_indices(list).shard(Shard::new(0, batch.vocab));
            shard.fingerprint(batch.rows, batch.targets.ids())
        };
        prop_assert_eq!(of(&other), Ok(fingerprint));
        prop_assert_eq!(&plain.clone().ignore_indices(&other), &ce);
        // One more, which no target is.
        other.push(-77);
        prop_assert_ne!(of(&other), Ok(fingerprint));
        prop_assert_ne!(&plain.clone().ignore_indices(&other), &ce);
    }

    /// A target has to be a class unless it is on the list, of which -100 is not by itself.
    #[test]
    fn answers_or_refuses(seed: u64, kind in 0..4_usize, wrong in 0..8_usize) {
        let mut rng = Rng::new(seed);
        let vocab = 1 + rng.below(6);
        let list = any_list(&mut rng, vocab);
        let (least, most) = AnyIds::limits(kind);
        let ids: Vec<i128> = (0..4)
            .map(|_| {
                let on_the_list = list.get(rng.below(8)).map_or(0, |&id| id.into());
                let others = [
                    on_the_list,
                    // In two's complement.
                    on_the_list & 0xffff_ffff,
                    on_the_list & 0xffff_ffff_ffff_ffff,
                    -100,
                    vocab as i128,
                    least,
                    most,
                ];
                let id = if rng.below(8) < wrong { rng.pick(&others) } else { on_the_list };
                if (least..=most).contains(&id) { id } else { 0 }
            })
            .collect();
        let bad = |id: &i128| {
            !list.iter().any(|&ignored| i128::from(ignored) == *id)
                && !(0..vocab as i128).contains(id)
        };
        let x = vec![0.0_f32; 4 * vocab];
        let logits = Logits::new(&x, 4, vocab).unwrap();
        let owned = AnyIds::new(kind, &ids);
        let error = |row| Error::TargetOutOfRange { row, target: ids[row], vocab };
        let expected = ids.iter().position(&bad).map(error);

        let ce = CrossEntropy::new().ignore_indices(&list);
        let mut losses = [7.0; 4];
        let result = ce.forward_into(logits, owned.ids(), &mut losses);
        prop_assert_eq!(result.err(), expected.clone(), "{:?} {:?}", &list, &owned);
        prop_assert!(expected.is_none() || losses == [7.0; 4]);
        prop_assert_eq!(ce.z_loss(1.0).forward(logits, owned.ids()).err(), expected.clone());
        let ask = LogProbs::new().ignore_indices(&list).targets(owned.ids());
        prop_assert_eq!(ask.collect(logits).err(), expected.clone());
        let compare = Compare::new().ignore_indices(&list).targets(owned.ids());
        prop_assert_eq!(compare.divergences(logits, logits, CompareOutputs::new()).err(), expected);

        // Sparse probabilities, of which there are two in a row.
        let logits = Logits::new(&x[..2 * vocab], 2, vocab).unwrap();
        let error = |i| Error::TargetOutOfRange { row: i / 2, target: ids[i], vocab };
        let expected = ids.iter().position(bad).map(error);
        let sparse = SparseProbs::new(owned.ids(), &[0.5_f32; 4], 2);
        let ce = CrossEntropy::new().ignore_indices(&list);
        prop_assert_eq!(ce.forward(logits, sparse).err(), expected);
    }
}

const X: [f32; 12] = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0, 4.0, 1.0, 0.0, 1.0, 1.5, 2.0];

#[test]
fn padding_and_end_of_text() {
    const PAD_AND_END: CrossEntropy<'static> = CrossEntropy::new().ignore_indices(&[0, 2]);
    let logits = Logits::new(&X, 4, 3).unwrap();
    let targets = [1u32, 2, 0, 1];
    let evaluation = PAD_AND_END.evaluate(logits, &targets, RowOutputs::new()).unwrap();
    assert_eq!((evaluation.count(), evaluation.ignored()), (2, 2));
    let want = CrossEntropy::new().forward(logits, &[1i64, -100, -100, 1]);
    assert_eq!(PAD_AND_END.forward(logits, &targets), want);
    // -100 is a target like any other once other ids are ignored.
    let error = Error::TargetOutOfRange { row: 1, target: -100, vocab: 3 };
    assert_eq!(PAD_AND_END.forward(logits, &[1i64, -100, 0, 1]), Err(error));
}

/// Each setter replaces what others set.
#[test]
fn the_last_setter_counts() {
    let ce = CrossEntropy::new;
    assert_eq!(ce().ignore_indices(&[]), ce().no_ignore_index());
    assert_eq!(ce().ignore_indices(&[-100]), ce());
    assert_eq!(ce().ignore_indices(&[5, 6]).ignore_index(-100), ce());
    assert_eq!(ce().ignore_indices(&[5, 6]).no_ignore_index(), ce().no_ignore_index());
    assert_eq!(ce().ignore_indices(&[5, 6]).ignore_indices(&[7]), ce().ignore_index(7));
    assert_eq!(ce().ignore_indices(&[5, 6, 5]), ce().ignore_indices(&[6, 5]));
    assert_eq!(ce().ignore_indices(&[5, 5]), ce().ignore_index(5));
    assert_ne!(ce().ignore_indices(&[5, 6]), ce().ignore_indices(&[5, 7]));
    assert_ne!(ce().ignore_indices(&[5, 6]), ce().ignore_index(5));
    let text = format!("{:?}", ce().ignore_indices(&[5, 6]));
    assert!(text.contains("[5, 6]"), "{text}");
}

/// Shards with different lists must not be merged, whatever their targets are.
#[test]
fn fingerprints() {
    let of = |ce: CrossEntropy<'_>| ce.shard(Shard::new(0, 10)).fingerprint(2, &[1, 2]).unwrap();
    let ce = CrossEntropy::new;
    let lists: [&[i64]; 8] =
        [&[], &[0], &[0, 7], &[0, 8], &[7, 8], &[0, 7, 8], &[-100], &[0, i64::MIN]];
    let all = lists.map(|list| of(ce().ignore_indices(list)));
    for (i, a) in all.iter().enumerate() {
        assert!(!all[..i].contains(a), "{:?}", lists[i]);
    }
    assert_eq!(all[0], of(ce().no_ignore_index()));
    assert_eq!(all[1], of(ce().ignore_index(0)));
    assert_eq!(all[2], of(ce().ignore_indices(&[7, 0, 7, 7])));
    assert_eq!(all[6], of(ce()));
}

/// For probabilities there is nothing to compare ids with.
#[test]
fn classes_with_probabilities() {
    let logits = Logits::new(&X[..6], 2, 3).unwrap();
    let probs = [0.5_f32; 6];
    let loss = |list: &[i64]| {
        CrossEntropy::new().ignore_indices(list).forward(logits, Targets::probs(&probs))
    };
    assert_eq!(loss(&[-1, -100, i64::MIN]), loss(&[]));
    for (list, ignore_index) in
        [(&[-1, 2][..], 2), (&[7, 2], 7), (&[-100, -1, i64::MAX], i64::MAX), (&[0, 0], 0)]
    {
        let error = loss(list).unwrap_err();
        assert_eq!(error, Error::IgnoreIndexWithProbs { ignore_index });
        let text = format!("ignore_index {ignore_index} means nothing for probability targets");
        assert_eq!(error.to_string(), text);
    }
}

/// Slow, but right.
#[test]
fn a_long_list() {
    let list: Vec<i64> = (0..100_000).map(|i| 3 * i).collect();
    let x: Vec<f32> = (0..40).map(|i| (i * i % 11) as f32).collect();
    let logits = Logits::new(&x, 4, 10).unwrap();
    let ce = CrossEntropy::new().ignore_indices(&list);
    let want = CrossEntropy::new().forward(logits, &[1i64, -100, -100, 8]).unwrap();
    assert_eq!(ce.forward(logits, &[1usize, 299_997, 6, 8]), Ok(want));
    let error = Error::TargetOutOfRange { row: 1, target: 299_998, vocab: 10 };
    assert_eq!(ce.forward(logits, &[1usize, 299_998, 6, 8]), Err(error));
}
