//! Loss and gradient with options: what must hold exactly, and how the ways to call them go together.

use common::training::{Setup, Trained, Wanted, train};
use common::{Kind, Rng, distance, for_each_backend, key, key64, keys, property};
use proptest::prelude::*;
use std::fmt::Debug;
use std::sync::LazyLock;
use xent::reference::{self, Target};
use xent::{
    AllowedTokens, Backend, CrossEntropy, Element, EmptyMean, Floats, Gradient, LogSumExp, Logits,
    LogitsMut, LossStats, Reduction, RowOutputs, Shard, SparseProbs, Targets, Upstream, bf16, f16,
};

/// A batch with everything that a call takes.
#[derive(Clone, Debug)]
struct Batch {
    rows: Vec<Vec<f32>>,
    vocab: usize,
    setup: Setup,
    wanted: Wanted,
    token_weights: Option<Vec<f32>>,
    upstream: Vec<f32>,
    reduction: Reduction,
}

impl Batch {
    /// Rows of any kind, options and targets of any kind.
    fn new(seed: u64, rows: usize, vocab: usize) -> Batch {
        let mut rng = Rng::new(seed);
        let combination = rng.below(Setup::COMBINATIONS);
        let targets = rng.below(Wanted::KINDS);
        Batch::of(&mut rng, rows, vocab, combination, targets, Kind::any)
    }

    fn of(
        rng: &mut Rng,
        rows: usize,
        vocab: usize,
        combination: usize,
        targets: usize,
        kind: impl Fn(&mut Rng) -> Kind,
    ) -> Batch {
        let setup = Setup::new(combination, rng, vocab);
        let rows: Vec<Vec<f32>> = (0..rows).map(|_| kind(rng).row(rng, vocab)).collect();
        let wanted = Wanted::new(targets, rng, &rows);
        let any = |rng: &mut Rng| rng.pick(&[1.0, 0.25, -3.0, 0.0, 0.7]);
        let token_weights = (rng.below(2) == 0).then(|| rows.iter().map(|_| any(rng)).collect());
        let upstream = rows.iter().map(|_| any(rng)).collect();
        let reduction = rng.pick(&[Reduction::Sum, Reduction::Mean, Reduction::MeanOver(7.0)]);
        Batch { rows, vocab, setup, wanted, token_weights, upstream, reduction }
    }

    fn cross_entropy(&self, backend: Backend) -> CrossEntropy<'_> {
        let ce = self.setup.cross_entropy(backend).reduction(self.reduction);
        match &self.token_weights {
            Some(weights) => ce.token_weights(weights),
            None => ce,
        }
    }

    fn pack(&self, padding: usize, offset: usize) -> Packed {
        Packed::new(&self.rows, self.vocab, padding, offset)
    }

    fn train(&self, backend: Backend) -> Trained {
        let packed = self.pack(0, 0);
        let upstream = Upstream::rows(&self.upstream);
        train(&self.cross_entropy(backend), packed.logits(), self.wanted.targets(), upstream)
    }

    /// The rows of these numbers, in this order.
    fn select(&self, rows: &[usize]) -> Batch {
        let take = |values: &[f32]| rows.iter().map(|&i| values[i]).collect();
        Batch {
            rows: rows.iter().map(|&i| self.rows[i].clone()).collect(),
            vocab: self.vocab,
            setup: self.setup.clone(),
            wanted: self.wanted.rows(rows),
            token_weights: self.token_weights.as_deref().map(take),
            upstream: take(&self.upstream),
            reduction: self.reduction,
        }
    }
}

/// What is between rows, and before them: it must neither be read nor written.
const BETWEEN: f32 = -12_345.678;

/// A matrix in a larger slice: rows `stride` apart, the first one `offset` into it.
#[derive(Clone)]
struct Packed {
    data: Vec<f32>,
    rows: usize,
    vocab: usize,
    stride: usize,
    offset: usize,
}

impl Packed {
    fn new(rows: &[Vec<f32>], vocab: usize, padding: usize, offset: usize) -> Packed {
        let stride = vocab + padding;
        let mut data = vec![BETWEEN; offset + rows.len() * stride];
        for (i, row) in rows.iter().enumerate() {
            data[offset + i * stride..][..vocab].copy_from_slice(row);
        }
        Packed { data, rows: rows.len(), vocab, stride, offset }
    }

    fn filled(value: f32, like: &Batch, padding: usize, offset: usize) -> Packed {
        let rows = vec![vec![value; like.vocab]; like.rows.len()];
        Packed::new(&rows, like.vocab, padding, offset)
    }

    fn logits(&self) -> Logits<'_> {
        let data = &self.data[self.offset..];
        Logits::with_stride(data, self.rows, self.vocab, self.stride).unwrap()
    }

    fn logits_mut(&mut self) -> LogitsMut<'_> {
        let data = &mut self.data[self.offset..];
        LogitsMut::with_stride(data, self.rows, self.vocab, self.stride).unwrap()
    }

    /// The rows without what is between them, which must be as it was.
    fn unpack(&self) -> Vec<f32> {
        let (mut rows, mut between) = (Vec::new(), self.data.clone());
        for i in 0..self.rows {
            let row = &mut between[self.offset + i * self.stride..][..self.vocab];
            rows.extend_from_slice(row);
            row.fill(BETWEEN);
        }
        assert!(between.iter().all(|&x| x == BETWEEN), "written between the rows");
        rows
    }
}

/// Sizes around everything that a kernel counts in: vectors, steps, blocks, chunks.
fn vocab() -> impl Strategy<Value = usize> {
    let edges = vec![1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1023, 1024, 1025];
    prop_oneof![
        6 => prop::sample::select(edges),
        4 => 1..200_usize,
        2 => 1000..2100_usize,
    ]
}

proptest! {
    #![proptest_config(property(300))]

    #[test]
    fn backends_agree(seed: u64, rows in 1..=5_usize, vocab in vocab()) {
        let batch = Batch::new(seed, rows, vocab);
        let want = batch.train(Backend::Scalar).keys();
        for &backend in Backend::available().iter().filter(|b| b.is_bit_exact()) {
            prop_assert!(batch.train(backend).keys() == want, "{}", backend);
        }
    }

    #[test]
    fn a_row_does_not_know_where_it_is(
        seed: u64,
        rows in 1..=5_usize,
        vocab in vocab(),
        padding in 0..20_usize,
        offset in 0..16_usize,
        backend in prop::sample::select(Backend::available()),
    ) {
        // A mean has a divisor that depends on the other rows.
        let batch = Batch { reduction: Reduction::Sum, ..Batch::new(seed, rows, vocab) };
        let all = batch.train(backend);
        let moved = batch.pack(padding, offset);
        let upstream = Upstream::rows(&batch.upstream);
        let ce = batch.cross_entropy(backend);
        let moved = train(&ce, moved.logits(), batch.wanted.targets(), upstream);
        prop_assert!(moved.keys() == all.keys());
        // From the last to the first, and each alone.
        let order: Vec<usize> = (0..rows).rev().collect();
        let reversed = batch.select(&order).train(backend);
        for (i, row) in order.into_iter().enumerate() {
            let alone = batch.select(&[row]).train(backend);
            let part = |g: &Trained, i: usize| keys(&g.gradient[i * vocab..][..vocab]);
            prop_assert!(part(&alone, 0) == part(&all, row));
            prop_assert!(part(&reversed, i) == part(&all, row));
            let outputs = |t: &Trained, i: usize| {
                let LogSumExp { hi, lo } = t.stats[i];
                let all = [t.losses[i], t.z_losses[i], t.logprobs[i], t.logsumexp[i], hi, lo];
                (keys(&all), t.argmax[i])
            };
            prop_assert_eq!(outputs(&alone, 0), outputs(&all, row));
            prop_assert_eq!(outputs(&reversed, i), outputs(&all, row));
        }
    }

    /// Every way to get a gradient, into every kind of place.
    #[test]
    fn all_ways_lead_to_the_same_gradient(
        seed: u64,
        rows in 1..=4_usize,
        vocab in vocab(),
        padding in 0..20_usize,
        offset in 0..16_usize,
        backend in prop::sample::select(Backend::available()),
    ) {
        let batch = Batch::new(seed, rows, vocab);
        let ce = batch.cross_entropy(backend);
        let (logits, targets) = (batch.pack(3, 1), batch.wanted.targets());
        let upstream = || Upstream::rows(&batch.upstream);
        let want = batch.train(backend);

        let mut to = Packed::filled(7.0, &batch, padding, offset);
        let gradient = Gradient::new(to.logits_mut()).upstream(upstream());
        ce.forward_backward(logits.logits(), targets, gradient, RowOutputs::new()).unwrap();
        prop_assert_eq!(keys(&to.unpack()), keys(&want.gradient));

        let mut to = batch.pack(padding, offset);
        let mut losses = vec![0.0; rows];
        let outputs = RowOutputs::new().losses(&mut losses);
        ce.forward_backward_in_place(to.logits_mut(), targets, upstream(), outputs).unwrap();
        prop_assert_eq!(keys(&to.unpack()), keys(&want.gradient));
        prop_assert_eq!(keys(&losses), keys(&want.losses));

        let mut saved = Packed::filled(7.0, &batch, padding, offset);
        let gradient = Gradient::new(saved.logits_mut()).upstream(upstream());
        ce.backward(logits.logits(), targets, &want.stats, gradient).unwrap();
        let mut in_place = batch.pack(padding, offset);
        ce.backward_in_place(in_place.logits_mut(), targets, &want.stats, upstream()).unwrap();
        prop_assert_eq!(keys(&in_place.unpack()), keys(&saved.unpack()));

        // What the forward pass alone says is the same.
        let evaluation = ce.evaluate(logits.logits(), targets, RowOutputs::new()).unwrap();
        prop_assert_eq!(evaluation.loss().to_bits() << 1, want.evaluation.loss().to_bits() << 1);
        let mut losses = vec![0.0; rows];
        ce.forward_into(logits.logits(), targets, &mut losses).unwrap();
        prop_assert_eq!(keys(&losses), keys(&want.losses));

        // Added to what is there, in `f32`; at a target class the sum is rounded once.
        let old: Vec<f32> = (0..rows * vocab).map(|i| (i % 11) as f32 * 0.3 - 1.0).collect();
        let rows_of_old: Vec<Vec<f32>> = old.chunks(vocab).map(<[f32]>::to_vec).collect();
        let mut to = Packed::new(&rows_of_old, vocab, padding, offset);
        let gradient = Gradient::new(to.logits_mut()).upstream(upstream()).accumulate();
        ce.forward_backward(logits.logits(), targets, gradient, RowOutputs::new()).unwrap();
        for (i, got) in to.unpack().into_iter().enumerate() {
            let (row, class) = (i / vocab, i % vocab);
            let expected = old[i] + want.gradient[i];
            match &batch.wanted {
                Wanted::Ids(ids) if ids[row] == -100 => prop_assert_eq!(got, old[i]),
                Wanted::Ids(ids) if ids[row] == class as i64 => {
                    let unit = f32::EPSILON * expected.abs().max(old[i].abs());
                    let close = distance(got, expected) == 0 || (got - expected).abs() <= unit;
                    prop_assert!(close, "{} for {}", got, expected);
                }
                _ => prop_assert_eq!(key(got), key(expected), "{} + {}", old[i], want.gradient[i]),
            }
        }
    }

    /// Ignored rows: whatever they hold is not looked at, and nothing comes of it.
    #[test]
    fn ignored_rows_are_nothing(
        seed: u64,
        rows in 2..=5_usize,
        vocab in vocab(),
        backend in prop::sample::select(Backend::available()),
    ) {
        let mut rng = Rng::new(seed);
        let combination = rng.below(Setup::COMBINATIONS);
        let mut batch = Batch::of(&mut rng, rows, vocab, combination, 0, |_| Kind::Gaussian);
        let Wanted::Ids(ids) = &mut batch.wanted else { unreachable!() };
        ids[rng.below(rows)] = -100;
        let ids = ids.clone();
        let kept: Vec<usize> = (0..rows).filter(|&i| ids[i] != -100).collect();
        let without = batch.select(&kept).train(backend);
        for (i, row) in batch.rows.iter_mut().enumerate().filter(|(i, _)| ids[*i] == -100) {
            row.fill(rng.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]));
            batch.upstream[i] = f32::NAN;
            if let Some(weights) = &mut batch.token_weights {
                weights[i] = f32::NAN;
            }
        }
        let got = batch.train(backend);
        let mut next = 0;
        for (i, &id) in ids.iter().enumerate() {
            let g = keys(&got.gradient[i * vocab..][..vocab]);
            let LogSumExp { hi, lo } = got.stats[i];
            let outputs = [got.losses[i], got.z_losses[i], got.logprobs[i], got.logsumexp[i], hi, lo];
            if id == -100 {
                prop_assert!(g.iter().all(|&g| g == 0));
                prop_assert_eq!(keys(&outputs), vec![0; 6]);
                prop_assert_eq!(got.argmax[i], -1);
                continue;
            }
            prop_assert!(g == keys(&without.gradient[next * vocab..][..vocab]));
            prop_assert_eq!(key(outputs[0]), key(without.losses[next]));
            next += 1;
        }
        // A weight of 0 is a mask.
        let counts = |i: &&usize| batch.token_weights.as_ref().is_none_or(|w| w[**i] != 0.0);
        prop_assert_eq!(got.evaluation.count(), kept.iter().filter(counts).count() as u64);
        let same = common::key64(got.evaluation.loss()) == common::key64(without.evaluation.loss());
        prop_assert!(same);
        // From saved statistics too, whatever these are.
        let packed = batch.pack(0, 0);
        let mut stats = got.stats.clone();
        stats.iter_mut().zip(&ids).filter(|(_, id)| **id == -100).for_each(|(stats, _)| stats.hi = f32::NAN);
        let mut g = Packed::filled(7.0, &batch, 0, 0);
        let ce = batch.cross_entropy(backend);
        let to = Gradient::new(g.logits_mut()).upstream(Upstream::rows(&batch.upstream));
        ce.backward(packed.logits(), &ids, &stats, to).unwrap();
        for (i, g) in g.unpack().chunks(vocab).enumerate().filter(|(i, _)| ids[*i] == -100) {
            prop_assert!(keys(g).iter().all(|&g| g == 0), "row {}", i);
        }
    }

    /// Options that change nothing change no bit.
    #[test]
    fn neutral_options(seed: u64, vocab in vocab(), backend in prop::sample::select(Backend::available())) {
        let mut rng = Rng::new(seed);
        let targets = rng.below(Wanted::KINDS);
        let batch = Batch::of(&mut rng, 3, vocab, 0, targets, Kind::any);
        let batch = Batch { token_weights: None, ..batch };
        let (packed, targets) = (batch.pack(0, 0), batch.wanted.targets());
        let plain = batch.cross_entropy(backend);
        let want = train(&plain, packed.logits(), targets, 0.5);
        let ones = vec![1.0_f32; vocab.max(3)];
        for (what, ce) in [
            ("smoothing", plain.clone().label_smoothing(0.0)),
            ("z-loss", plain.clone().z_loss(0.0)),
            ("scale", plain.clone().logit_scale(1.0)),
            ("temperature", plain.clone().temperature(1.0)),
            ("class weights", plain.clone().class_weights(&ones[..vocab])),
            ("token weights", plain.clone().token_weights(&ones[..3])),
        ] {
            prop_assert!(train(&ce, packed.logits(), targets, 0.5).keys() == want.keys(), "{}", what);
        }
        let each = Upstream::rows(&[0.5_f32; 3]);
        prop_assert!(train(&plain, packed.logits(), targets, each).keys() == want.keys());
        // Weights of 1 under smoothing: other loops, the same sums.
        let smooth = plain.label_smoothing(0.25);
        let want = train(&smooth, packed.logits(), targets, 0.5);
        let weighted = smooth.class_weights(&ones[..vocab]);
        prop_assert!(train(&weighted, packed.logits(), targets, 0.5).keys() == want.keys());
    }

    /// Twice the upstream gradient is twice the gradient, bit for bit.
    #[test]
    fn gradients_are_linear_in_powers_of_two(
        seed: u64,
        vocab in vocab(),
        power in -8..=8_i32,
        backend in prop::sample::select(Backend::available()),
    ) {
        let mut rng = Rng::new(seed);
        let (combination, targets) = (rng.below(Setup::COMBINATIONS), rng.below(Wanted::KINDS));
        let batch = Batch::of(&mut rng, 3, vocab, combination, targets, |rng| rng.pick(Kind::ORDINARY));
        let ce = batch.cross_entropy(backend);
        let (packed, targets) = (batch.pack(0, 0), batch.wanted.targets());
        let one = train(&ce, packed.logits(), targets, 1.0).gradient;
        let factor = 2f64.powi(power);
        let many = train(&ce, packed.logits(), targets, factor).gradient;
        for (i, (&one, &many)) in one.iter().zip(&many).enumerate() {
            let expected = one * factor as f32;
            // No transform makes it wider than three times that.
            let apart = if same_cut(&batch.rows[i / vocab], 25.0) { 0 } else { 1 };
            // Near the smallest normal numbers digits, or all of a number, are cut off.
            let tiny = |g: f32| g.abs() <= 1e-35;
            let beyond = one.is_infinite() || many.is_infinite();
            let close = distance(many, expected) <= apart || tiny(one) && tiny(many) || beyond;
            prop_assert!(close, "{} {}", many, expected);
        }
        // As is a power of two in every other place.
        let weights: Vec<f32> = batch.token_weights.clone().unwrap_or_else(|| vec![1.0; 3]);
        let scaled: Vec<f32> = weights.iter().map(|w| w * factor as f32).collect();
        let summed = ce.reduction(Reduction::Sum);
        let one = train(&summed.clone().token_weights(&weights), packed.logits(), targets, factor);
        let other = train(&summed.token_weights(&scaled), packed.logits(), targets, 1.0);
        prop_assert!(keys(&one.gradient) == keys(&other.gradient));
    }

    /// Some classes with probabilities are the same as all classes with theirs.
    #[test]
    fn sparse_probabilities_are_dense_ones(
        seed: u64,
        rows in 1..=3_usize,
        vocab in vocab(),
        backend in prop::sample::select(Backend::available()),
    ) {
        let mut rng = Rng::new(seed);
        let combination = rng.below(Setup::COMBINATIONS);
        let sparse = Batch::of(&mut rng, rows, vocab, combination, 2, Kind::any);
        let dense = |i| sparse.wanted.probs(i).unwrap().into_iter().map(|p| p as f32);
        let probs = (0..rows).flat_map(dense).collect();
        let dense = Batch { wanted: Wanted::Dense { probs, vocab }, ..sparse.clone() };
        prop_assert!(sparse.train(backend).keys() == dense.train(backend).keys());
    }
}

/// Whether no class is so improbable that it matters where probabilities are cut to 0, which depends on what
/// they are multiplied by: a last trace of one can decide how a difference is rounded.
fn same_cut(row: &[f32], range: f32) -> bool {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().all(|x| largest - x < range)
}

/// Pools of 1 to 8 threads, on a machine of any size.
static POOLS: LazyLock<Vec<rayon::ThreadPool>> = LazyLock::new(|| {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    (1..=8).map(pool).collect()
});

/// Batches that are cut into many groups, the last of them uneven.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut tried = 0;
    for_each_backend(|backend| {
        for (rows, vocab) in [(3, 70_001), (53, 3_003), (2_500, 32)] {
            for targets in 0..Wanted::KINDS {
                let mut rng = Rng::new((rows + targets) as u64);
                let combination = [0, 7, 63][targets];
                let batch = Batch::of(&mut rng, rows, vocab, combination, targets, Kind::any);
                let want = POOLS[0].install(|| batch.train(backend)).keys();
                for pool in &POOLS[1..] {
                    let got = pool.install(|| batch.train(backend)).keys();
                    assert!(got == want, "{backend}, {} threads", pool.current_num_threads());
                    tried += 1;
                }
            }
        }
    });
    assert_eq!(tried, 7 * 9 * Backend::available().len());
}

/// From 32 MiB gradients are written past the caches. They are the same.
#[test]
fn large_gradients_are_the_small_ones() {
    let (rows, vocab) = (700, 12_037);
    assert!(rows * vocab * size_of::<f32>() > 32 << 20);
    let mut rng = Rng::new(3);
    let row: Vec<f32> = (0..vocab + rows).map(|_| 4.0 * rng.normal()).collect();
    let all: Vec<Vec<f32>> = (0..rows).map(|i| row[i..][..vocab].to_vec()).collect();
    let options = Setup::SMOOTHING | Setup::WEIGHTS | Setup::SOFTCAP;
    for (combination, padding, offset) in [(0, 5, 3), (options, 0, 0)] {
        let batch = Batch {
            setup: Setup::new(combination, &mut Rng::new(1), vocab),
            wanted: Wanted::ids(&mut Rng::new(2), &all, true),
            rows: all.clone(),
            vocab,
            token_weights: None,
            upstream: vec![0.5; rows],
            reduction: Reduction::Sum,
        };
        let packed = batch.pack(0, 0);
        let mut to = Packed::filled(7.0, &batch, padding, offset);
        for_each_backend(|backend| {
            if combination != 0 && backend == Backend::Scalar {
                // A function call per operation.
                return;
            }
            let gradient = Gradient::new(to.logits_mut()).upstream(0.5);
            let (logits, targets) = (packed.logits(), batch.wanted.targets());
            let ce = batch.cross_entropy(backend);
            ce.forward_backward(logits, targets, gradient, RowOutputs::new()).unwrap();
            let got = to.unpack();
            for (i, got) in got.chunks(100 * vocab).enumerate() {
                let some: Vec<usize> = (100 * i..100 * i + got.len() / vocab).collect();
                let want = batch.select(&some).train(backend).gradient;
                assert!(keys(got) == keys(&want), "{backend}, rows from {}", 100 * i);
            }
        });
    }
}

/// The gradient from saved statistics: nearly all of it the same bits.
#[test]
fn saved_statistics_are_as_good() {
    for_each_backend(|backend| {
        let (mut same, mut all, mut worst) = (0, 0, 0.0_f64);
        for seed in 0..600 {
            let mut rng = Rng::new(seed);
            let vocab = 1 + rng.below(150);
            let combination = rng.below(Setup::COMBINATIONS);
            let targets = rng.below(Wanted::KINDS);
            let kind = |rng: &mut Rng| {
                rng.pick(&[Kind::Gaussian, Kind::OneHuge, Kind::MaskedRandomly, Kind::Spikes])
            };
            let batch = Batch::of(&mut rng, 2, vocab, combination, targets, kind);
            let batch = Batch { reduction: Reduction::Sum, upstream: vec![1.0; 2], ..batch };
            let want = batch.train(backend);
            let mut g = Packed::filled(7.0, &batch, 0, 0);
            let packed = batch.pack(0, 0);
            batch
                .cross_entropy(backend)
                .backward(
                    packed.logits(),
                    batch.wanted.targets(),
                    &want.stats,
                    Gradient::new(g.logits_mut()),
                )
                .unwrap();
            let size = want
                .gradient
                .chunks(vocab)
                .map(|g| g.iter().filter(|g| g.is_finite()).fold(0.0_f32, |a, g| a.max(g.abs())));
            let size: Vec<f32> = size.collect();
            for (i, (&got, &want)) in g.unpack().iter().zip(&want.gradient).enumerate() {
                all += 1;
                same += usize::from(key(got) == key(want));
                if distance(got, want) > 1 {
                    // What is left is of the size of rounding beside the largest of the row.
                    let error = f64::from((got - want).abs()) / f64::from(size[i / vocab]);
                    worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
                }
            }
        }
        println!(
            "{backend}: {same} of {all} are the same bits, others {worst:e} of the row's largest"
        );
        assert!(same * 1000 >= all * 995, "{backend}: {same} of {all}");
        assert!(worst <= f64::from(f32::EPSILON), "{backend}: {worst:e}");
    });
}

/// Probabilities of 0 and 1 are a class.
#[test]
fn one_hot_probabilities_are_a_class() {
    for_each_backend(|backend| {
        let (mut loss_apart, mut worst) = (0, 0.0_f64);
        for seed in 0..800 {
            let mut rng = Rng::new(seed);
            let vocab = 1 + rng.below(if seed % 10 == 0 { 2100 } else { 150 });
            let combination = rng.below(Setup::COMBINATIONS) & !Setup::WEIGHTS;
            let large = [Kind::Extremes, Kind::RandomBits, Kind::Offset, Kind::AllEqual];
            let kind = |rng: &mut Rng| {
                let kind = rng.pick(Kind::ORDINARY);
                if large.contains(&kind) { Kind::OneHuge } else { kind }
            };
            let ids = Batch::of(&mut rng, 2, vocab, combination, 0, kind);
            let ids = Batch { reduction: Reduction::Sum, upstream: vec![1.0; 2], ..ids };
            let ids = Batch { wanted: Wanted::ids(&mut rng, &ids.rows, false), ..ids };
            let Wanted::Ids(classes) = &ids.wanted else { unreachable!() };
            let mut probs = vec![0.0; 2 * vocab];
            for (i, &class) in classes.iter().enumerate() {
                probs[i * vocab + class as usize] = 1.0;
            }
            let dense = Batch { wanted: Wanted::Dense { probs, vocab }, ..ids.clone() };
            let (a, b) = (ids.train(backend), dense.train(backend));
            for (&a, &b) in a.losses.iter().zip(&b.losses) {
                // Masks under smoothing are infinite in both.
                loss_apart =
                    loss_apart.max(distance(a, b).min(if a.abs() < 1e-37 { 0 } else { u32::MAX }));
            }
            for (i, (&a, &b)) in a.gradient.iter().zip(&b.gradient).enumerate() {
                if a.is_nan() || b.is_nan() {
                    assert!(a.is_nan() && b.is_nan(), "{a} {b}");
                    continue;
                }
                let row = &ids.rows[i / vocab];
                let _ = row;
                let size =
                    ids.setup.logit_scale.unwrap_or(1.0) / ids.setup.temperature.unwrap_or(1.0);
                let lse = f64::from(b.abs()).max(size);
                worst = worst.max(f64::from((a - b).abs()) / lse);
            }
        }
        println!("{backend}: losses {loss_apart} apart, gradients {worst:e}");
        assert!(loss_apart <= 8 && worst < 1e-6);
    });
}

/// A constant added to all logits, without rounding, changes nothing.
#[test]
fn logits_have_no_origin() {
    for_each_backend(|backend| {
        let (mut loss_apart, mut worst) = (0, 0.0_f64);
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let vocab = 2 + rng.below(200);
            let grid = |rng: &mut Rng| (rng.normal() * 64.0).round() / 8.0;
            let row: Vec<f32> = (0..vocab).map(|_| grid(&mut rng)).collect();
            let shift = rng.pick(&[0.125, -3.5, 100.0, 4096.0, -65_536.0]);
            let shifted: Vec<f32> = row.iter().map(|x| x + shift).collect();
            assert!(row.iter().zip(&shifted).all(|(x, y)| y - shift == *x));
            let setup = Setup::new(rng.below(4), &mut rng, vocab);
            let ce = setup.cross_entropy(backend).reduction(Reduction::Sum);
            let target = [rng.below(vocab)];
            let [a, b] = [&row, &shifted]
                .map(|row| train(&ce, Logits::new(row, 1, vocab).unwrap(), &target, 1.0));
            if setup.weights.is_none() {
                loss_apart = loss_apart.max(distance(a.losses[0], b.losses[0]));
            }
            let size = a.gradient.iter().fold(0.0_f32, |a, g| a.max(g.abs()));
            for (a, b) in a.gradient.iter().zip(&b.gradient) {
                worst = worst.max(f64::from((a - b).abs() / size));
            }
        }
        println!("{backend}: losses {loss_apart} apart, gradients {worst:e} of the row's largest");
        assert!(loss_apart <= 2 && worst <= 3.0 * f64::from(f32::EPSILON));
    });
}

#[test]
fn transforms_that_are_powers_of_two_are_exact() {
    for_each_backend(|backend| {
        let mut exact = 0;
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let combination = rng.below(4);
            let targets = rng.below(Wanted::KINDS);
            let vocab = 1 + rng.below(1100);
            let batch = Batch::of(&mut rng, 2, vocab, combination, targets, |_| Kind::Gaussian);
            let batch = Batch { reduction: Reduction::Sum, ..batch };
            for factor in [0.25, 2.0, 16.0] {
                let scaled = batch.rows.iter().map(|row| row.iter().map(|x| x * factor).collect());
                let scaled = Batch { rows: scaled.collect(), ..batch.clone() };
                let want = scaled.train(backend);
                let factor = f64::from(factor);
                let scale = Setup { logit_scale: Some(factor), ..batch.setup.clone() };
                let divisor = Setup { temperature: Some(1.0 / factor), ..batch.setup.clone() };
                for setup in [scale, divisor] {
                    let got = Batch { setup, ..batch.clone() }.train(backend);
                    assert_eq!(keys(&got.losses), keys(&want.losses));
                    for (i, (&got, &want)) in got.gradient.iter().zip(&want.gradient).enumerate() {
                        // By the logits before they were scaled.
                        let want = want * factor as f32;
                        let apart = if same_cut(&scaled.rows[i / vocab], 75.0) { 0 } else { 1 };
                        exact += usize::from(apart == 0);
                        let close = distance(got, want) <= apart || want.abs() < 1e-35;
                        assert!(close, "{got:e} {want:e}");
                    }
                }
            }
        }
        assert!(exact > 10_000, "{exact}");
    });
}

/// A cap far above all logits is none.
#[test]
fn a_high_softcap_changes_little() {
    for_each_backend(|backend| {
        let mut last = f64::INFINITY;
        for cap in [1e2, 1e3, 1e4, 1e6] {
            let mut worst = 0.0_f64;
            for seed in 0..50 {
                let mut rng = Rng::new(seed);
                let row: Vec<f32> = (0..100).map(|_| 3.0 * rng.normal()).collect();
                let (logits, target) = (Logits::new(&row, 1, 100).unwrap(), [rng.below(100)]);
                let ce = CrossEntropy::new().backend(backend);
                let plain = train(&ce, logits, &target, 1.0);
                let capped = train(&ce.softcap(cap), logits, &target, 1.0);
                for (a, b) in plain.gradient.iter().zip(&capped.gradient) {
                    worst = worst.max(f64::from((a - b).abs()));
                }
                worst = worst.max(f64::from((plain.losses[0] - capped.losses[0]).abs()));
            }
            println!("{backend}, cap {cap:e}: {worst:e} apart");
            // x - c tanh(x / c) is x^3 / 3 c^2, and at last a few roundings of a logit.
            assert!(worst <= (700.0 / (cap * cap)).max(5e-6) && worst <= last.max(5e-6));
            last = worst;
        }
    });
}

/// Losses, z-losses and gradients are divided by what the documentation says.
#[test]
fn reductions() {
    for_each_backend(|backend| {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let (rows, vocab) = (1 + rng.below(6), 1 + rng.below(40));
            let combination = rng.below(Setup::COMBINATIONS);
            let targets = rng.below(Wanted::KINDS);
            let batch = Batch::of(&mut rng, rows, vocab, combination, targets, |_| Kind::Gaussian);
            let one = |i: usize| f64::from(batch.token_weights.as_ref().map_or(1.0, |w| w[i]));
            let class_weight =
                |class: usize| f64::from(batch.setup.weights.as_ref().map_or(1.0, |w| w[class]));
            let (mut loss, mut z_loss, mut weight, mut count) = (0.0, 0.0, 0.0, 0.0);
            let probs: Vec<_> = (0..rows).map(|i| batch.wanted.probs(i)).collect();
            let targets: Vec<_> = (0..rows).map(|i| batch.wanted.reference(i, &probs[i])).collect();
            for (i, target) in targets.iter().enumerate() {
                let Some(target) = *target else { continue };
                let options = batch.setup.reference(one(i));
                let exact = reference::loss(&batch.rows[i], target, &options);
                loss += exact.cross_entropy;
                z_loss += exact.z_loss;
                weight += one(i)
                    * match target {
                        Target::Class(class) => class_weight(class),
                        Target::Probs(_) => 1.0,
                    };
                count += one(i);
            }
            for (reduction, divisors) in [
                (Reduction::Sum, [1.0, 1.0]),
                (Reduction::Mean, [weight, count]),
                (Reduction::MeanOver(2.5), [2.5, 2.5]),
            ] {
                if divisors.iter().any(|d| d.abs() < 1e-3) {
                    continue;
                }
                let batch = Batch { reduction, upstream: vec![1.0; rows], ..batch.clone() };
                let got = batch.train(backend);
                let close = |got: f64, exact: f64| {
                    assert!((got - exact).abs() <= 1e-4 * (1.0 + exact.abs()), "{got} {exact}");
                };
                close(got.evaluation.cross_entropy(), loss / divisors[0]);
                close(got.evaluation.z_loss(), z_loss / divisors[1]);
                let parts = got.evaluation.cross_entropy() + got.evaluation.z_loss();
                assert_eq!(got.evaluation.loss(), parts);
                let upstream = divisors.map(|d| 1.0 / d);
                for (i, g) in got.gradient.chunks(vocab).enumerate() {
                    let Some(target) = targets[i] else {
                        assert!(keys(g).iter().all(|&g| g == 0));
                        continue;
                    };
                    let options = batch.setup.reference(one(i));
                    let exact = reference::gradient(&batch.rows[i], target, &options, upstream);
                    g.iter().zip(exact).for_each(|(&g, exact)| close(g.into(), exact));
                }
            }
        }
    });
}

/// What the mean of no rows is, and its gradient.
#[test]
fn nothing_to_train_on() {
    let x = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let logits = Logits::new(&x, 2, 3).unwrap();
    for_each_backend(|backend| {
        let weights = [0.5_f32, 2.0, 1.0];
        let all = CrossEntropy::new().backend(backend).label_smoothing(0.1).z_loss(0.1);
        for ce in [all.clone(), all.class_weights(&weights), CrossEntropy::new().backend(backend)] {
            for (reduction, empty, expected) in [
                (Reduction::Mean, EmptyMean::Nan, f64::NAN),
                (Reduction::Mean, EmptyMean::Zero, 0.0),
                (Reduction::Sum, EmptyMean::Nan, 0.0),
                (Reduction::MeanOver(2.0), EmptyMean::Nan, 0.0),
            ] {
                let ce = ce.clone().reduction(reduction).empty_mean(empty);
                let got = train(&ce, logits, &[-100i64; 2], 1.0);
                let loss = got.evaluation.loss();
                assert!(loss.to_bits() == expected.to_bits() || loss.is_nan() && expected.is_nan());
                assert_eq!(keys(&got.gradient), [0; 6]);
                let nothing = Logits::<f32>::new(&[], 0, 3).unwrap();
                let none: &[i64] = &[];
                let loss = train(&ce, nothing, none, 1.0).evaluation.loss();
                assert!(loss.to_bits() == expected.to_bits() || loss.is_nan() && expected.is_nan());
                let probs: &[f32] = &[];
                let loss = train(&ce, nothing, Targets::probs(probs), 1.0).evaluation.loss();
                assert!(loss.to_bits() == expected.to_bits() || loss.is_nan() && expected.is_nan());
            }
        }
    });
}

/// A type of logits, of numbers that all of them hold.
trait Number: Element + PartialEq + Debug {
    fn of(x: f32) -> Self;

    /// To compare by: NaN is NaN, and +0 is not -0.
    fn key(self) -> u64;
}

macro_rules! numbers {
    ($($type:ty: $of:expr;)*) => {$(
        impl Number for $type {
            fn of(x: f32) -> Self {
                $of(x)
            }

            fn key(self) -> u64 {
                key64(self.into())
            }
        }
    )*};
}
numbers! {
    f32: |x| x;
    f64: f64::from;
    bf16: bf16::from_f32;
    f16: f16::from_f32;
}

fn keys_of<T: Number>(x: &[T]) -> Vec<u64> {
    x.iter().map(|&x| x.key()).collect()
}

/// The gradient of a batch, by every way that there is.
struct Ways<'a, T: Number> {
    ce: &'a CrossEntropy<'a>,
    x: &'a [T],
    rows: usize,
    targets: Targets<'a>,
    upstream: Upstream<'a>,
}

impl<T: Number> Ways<'_, T> {
    /// What is written, by four ways, and by two what is added to `old`.
    fn gradients(&self, old: &[T]) -> ([Vec<T>; 4], [Vec<T>; 2], f64) {
        let (ce, targets, upstream, rows) = (self.ce, self.targets, self.upstream, self.rows);
        let vocab = self.x.len() / rows;
        let logits = Logits::new(self.x, rows, vocab).unwrap();
        let mut saved = vec![LogSumExp::default(); rows];
        let out = RowOutputs::new().saved(&mut saved);
        let loss = ce.evaluate(logits, targets, out).unwrap().loss();
        let into = |from: &[T], f: &dyn Fn(LogitsMut<'_, T>)| {
            let mut g = from.to_vec();
            f(LogitsMut::new(&mut g, rows, vocab).unwrap());
            g
        };
        let none = RowOutputs::new;
        fn gradient<'a, T>(to: LogitsMut<'a, T>, upstream: Upstream<'a>) -> Gradient<'a, T> {
            Gradient::new(to).upstream(upstream)
        }
        let check = |evaluation: Result<xent::Evaluation, xent::Error>| {
            assert_eq!(key64(evaluation.unwrap().loss()), key64(loss));
        };
        let written = [
            into(old, &|to| {
                check(ce.forward_backward(logits, targets, gradient(to, upstream), none()))
            }),
            into(self.x, &|to| check(ce.forward_backward_in_place(to, targets, upstream, none()))),
            into(old, &|to| ce.backward(logits, targets, &saved, gradient(to, upstream)).unwrap()),
            into(self.x, &|to| ce.backward_in_place(to, targets, &saved, upstream).unwrap()),
        ];
        let added = [
            into(old, &|to| {
                let gradient = gradient(to, upstream).accumulate();
                check(ce.forward_backward(logits, targets, gradient, none()));
            }),
            into(old, &|to| {
                ce.backward(logits, targets, &saved, gradient(to, upstream).accumulate()).unwrap();
            }),
        ];
        (written, added, loss)
    }
}

/// Rows of four, the last two of which have a gradient.
const BAD: [[f32; 4]; 6] = [
    [f32::NAN, 1.0, 2.0, 0.5],
    [1.0, f32::INFINITY, 2.0, 0.5],
    [f32::NEG_INFINITY; 4],
    [f32::NAN; 4],
    [1.0, 2.0, f32::NEG_INFINITY, 3.0],
    [0.5, -1.0, 2.0, 0.0],
];

fn nothing_depends_on_a_row_of_upstream_0<T>(backend: Backend)
where
    T: Number,
    for<'a> Floats<'a>: From<&'a [T::Real]>,
    T::Real: From<f32>,
{
    let x: Vec<T> = BAD.as_flattened().iter().map(|&x| T::of(x)).collect();
    let old: Vec<T> = (0..24).map(|i| T::of(i as f32 * 0.25 - 3.0)).collect();
    let reals = |values: &[f32]| values.iter().map(|&x| T::Real::from(x)).collect::<Vec<_>>();
    let (weights, zeros) = (reals(&[0.5, 2.0, 1.0, 0.25]), reals(&[0.0; 4]));
    let plain = CrossEntropy::new().backend(backend);
    let ces = [
        plain.clone(),
        plain.clone().reduction(Reduction::Sum),
        plain.clone().label_smoothing(0.1),
        plain.clone().z_loss(0.1),
        plain.clone().class_weights(&weights[..]).label_smoothing(0.1),
        plain.clone().softcap(20.0).logit_scale(0.5),
        plain.clone().allowed_tokens(AllowedTokens::new(&[0b1111, 0, 0b11, 1, 0b111, 0b1111])),
        // Of a mean that is 0 divided by 0, or infinite.
        plain.clone().class_weights(&zeros[..]),
        plain.clone().token_weights(&[f32::NAN, f32::INFINITY, 0.0, 1.0, -1.0, 0.0]),
    ];
    let ids = [0i64, 1, 2, 3, 0, 1];
    let probs = reals(&[0.25; 24]);
    let sparse_ids = [0i64, 1, -100, 2, 3, 3, 0, 0, 1, 2, 3, 0];
    let sparse = reals(&[0.5; 12]);
    for (which, ce) in ces.iter().enumerate() {
        for (kind, targets) in [
            Targets::from(&ids),
            Targets::probs(&probs[..]),
            SparseProbs::new(&sparse_ids, &sparse[..], 2).into(),
        ]
        .into_iter()
        .enumerate()
        {
            let some = [0.0, -0.0, 0.0, 0.0, 1.0, -0.5];
            let others = Ways { ce, x: &x, rows: 6, targets, upstream: Upstream::rows(&some) };
            let (written, added, loss) = others.gradients(&old);
            let ones = [1.0; 6];
            let upstream = Upstream::rows(&ones);
            let (all, ..) = Ways { upstream, ..others }.gradients(&old);
            for (written, all) in written.iter().zip(&all) {
                assert_eq!(keys_of(&written[..16]), [0; 16], "{which} {kind}");
                // The others are what they are.
                assert_eq!(keys_of(&written[16..20]), keys_of(&all[16..20]), "{which} {kind}");
            }
            added.iter().for_each(|added| assert_eq!(added[..16], old[..16], "{which} {kind}"));
            assert!(loss.is_nan(), "{which} {kind}");
            // One for all of them.
            for zero in [0.0, -0.0] {
                let upstream = zero.into();
                let (written, added, _) = Ways { upstream, ..others }.gradients(&old);
                written.iter().for_each(|g| assert_eq!(keys_of(g), [0; 24], "{which} {kind}"));
                added.iter().for_each(|g| assert_eq!(g, &old, "{which} {kind}"));
            }
        }
    }
}

#[test]
fn a_row_that_nothing_depends_on_has_gradient_0() {
    for_each_backend(|backend| {
        nothing_depends_on_a_row_of_upstream_0::<f32>(backend);
        nothing_depends_on_a_row_of_upstream_0::<f64>(backend);
        nothing_depends_on_a_row_of_upstream_0::<bf16>(backend);
        nothing_depends_on_a_row_of_upstream_0::<f16>(backend);

        // Rows that are long, columns, and shards.
        let (rows, vocab) = (3, 40_000);
        let x: Vec<f32> = (0..rows * vocab)
            .map(|i| if i / vocab == 1 { f32::NAN } else { (i % 89) as f32 * 0.1 })
            .collect();
        let (upstream, targets) = ([1.0, 0.0, 2.0], [5i64, 6, 7]);
        let ce = CrossEntropy::new().backend(backend).reduction(Reduction::Sum);
        let got =
            train(&ce, Logits::new(&x, rows, vocab).unwrap(), &targets, Upstream::rows(&upstream));
        assert_eq!(keys(&got.gradient[vocab..2 * vocab]), vec![0; vocab]);
        assert!(got.gradient[2 * vocab..].iter().all(|&g| g != 0.0 && !g.is_nan()));
        let turned = |x: &[f32]| -> Vec<f32> {
            (0..vocab * rows).map(|i| x[i % rows * vocab + i / rows]).collect()
        };
        let (columns, mut g) = (turned(&x), vec![7.0; rows * vocab]);
        let to = LogitsMut::classes_first(&mut g, 1, vocab, rows).unwrap();
        let to = Gradient::new(to).upstream(Upstream::rows(&upstream));
        let logits = Logits::classes_first(&columns, 1, vocab, rows).unwrap();
        ce.forward_backward(logits, &targets, to, RowOutputs::new()).unwrap();
        assert_eq!(keys(&g), keys(&turned(&got.gradient)));
        let mut g = vec![7.0; rows * vocab];
        for (first, len) in [(0, 32_768), (32_768, vocab - 32_768)] {
            let to = LogitsMut::with_stride(&mut g[first..], rows, len, vocab).unwrap();
            let to = Gradient::new(to).upstream(Upstream::rows(&upstream));
            let logits = Logits::with_stride(&x[first..], rows, len, vocab).unwrap();
            let shard = ce.clone().shard(Shard::new(first, vocab));
            shard.backward(logits, &targets, &got.stats, to).unwrap();
        }
        assert_eq!(keys(&g[vocab..2 * vocab]), vec![0; vocab]);
        assert!(g.iter().all(|g| !g.is_nan()));
    });
    // What is written past the caches.
    let (rows, vocab) = (9, 1 << 20);
    let mut x = vec![0.0_f32; rows * vocab];
    x[..vocab].fill(f32::NAN);
    let mut upstream = [1.0; 9];
    upstream[0] = 0.0;
    let logits = Logits::new(&x, rows, vocab).unwrap();
    let got = train(&CrossEntropy::new(), logits, &[3i64; 9], Upstream::rows(&upstream));
    assert!(got.gradient[..vocab].iter().all(|g| g.to_bits() == 0));
    assert!(got.gradient[vocab..].iter().all(|&g| g != 0.0 && g.is_finite()));
}

fn a_mean_that_weighs_nothing<T>(backend: Backend)
where
    T: Number,
    for<'a> Floats<'a>: From<&'a [T::Real]>,
    T::Real: From<f32>,
{
    let x: Vec<T> = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0].map(T::of).to_vec();
    let old: Vec<T> = (0..6).map(|i| T::of(i as f32 - 3.0)).collect();
    let reals = |values: &[f32]| values.iter().map(|&x| T::Real::from(x)).collect::<Vec<_>>();
    // Of the targets; but for smoothing it does not matter what the others are.
    let classes = [[0.0, 0.0, 1.0], [-0.0, 0.0, 2.0], [0.0; 3]].map(|weights| reals(&weights));
    let base = CrossEntropy::new().backend(backend);
    let targets = Targets::from(&[0i64, 1]);
    let mut empty = vec![
        base.clone().token_weights(&[0.0_f32, 0.0]),
        base.clone().token_weights(&[0.0_f64, -0.0]),
        base.clone().token_weights(&[0.0_f32; 2]).z_loss(0.1),
        base.clone().token_weights(&[0.0_f32; 2]).label_smoothing(0.1).softcap(10.0),
        base.clone().token_weights(&[0.0_f32; 2]).class_weights(&classes[0][..]),
    ];
    for weights in &classes {
        let weighted = base.clone().class_weights(&weights[..]);
        empty.extend([weighted.clone(), weighted.label_smoothing(0.1)]);
    }
    for (which, ce) in empty.iter().enumerate() {
        let ways = |ce, x| {
            let ways = Ways::<T> { ce, x, rows: 2, targets, upstream: 1.5.into() };
            ways.gradients(&old)
        };
        // PyTorch: 0 divided by 0, or by 0 what smoothing has made of it.
        let (_, _, loss) = ways(ce, &x);
        assert!(!loss.is_finite(), "{which}: {loss}");
        let zero = ce.clone().empty_mean(EmptyMean::Zero);
        let (written, added, loss) = ways(&zero, &x);
        assert_eq!(loss.to_bits(), 0, "{which}");
        written.iter().for_each(|g| assert!(g.iter().all(|&g| g == T::of(0.0)), "{which}: {g:?}"));
        added.iter().for_each(|g| assert_eq!(g, &old, "{which}"));
        // Other reductions have a divisor of their own.
        let summed = zero.clone().reduction(Reduction::MeanOver(3.0));
        let sum = ways(&summed, &x).2;
        assert!(sum.is_finite(), "{which}: {sum}");
        // A weight of 0 hides no NaN.
        let mut bad = x.clone();
        bad[1] = T::of(f32::NAN);
        let (written, _, loss) = ways(&zero, &bad);
        assert!(loss.is_nan(), "{which}");
        for g in written {
            assert!(g[..3].iter().all(|&g| g.key() == key64(f64::NAN)), "{which}: {g:?}");
            assert!(g[3..].iter().all(|&g| g == T::of(0.0)), "{which}: {g:?}");
        }
        // Beside rows that weigh something it is nothing.
        let logits = Logits::new(&x, 2, 3).unwrap();
        let none = zero.evaluate(logits, targets, RowOutputs::new()).unwrap();
        let some = base.evaluate(logits, targets, RowOutputs::new()).unwrap();
        if which == 0 {
            assert_eq!(none.merge(&some).loss(), some.loss());
            assert_eq!(none.merge(&none).loss().to_bits(), 0);
            assert_eq!((none.count(), none.ignored(), none.merge(&some).count()), (0, 2, 2));
        }
    }
    // The z-loss of rows whose class weights are 0 is another mean.
    let weighted = base.clone().class_weights(&classes[0][..]).empty_mean(EmptyMean::Zero);
    let logits = Logits::new(&x, 2, 3).unwrap();
    let of = |ce: &CrossEntropy<'_>| ce.evaluate(logits, targets, RowOutputs::new()).unwrap();
    let (with, plain) = (of(&weighted.clone().z_loss(0.5)), of(&base.clone().z_loss(0.5)));
    assert_eq!((with.cross_entropy(), with.z_loss()), (0.0, plain.z_loss()));
    assert_eq!(with.loss(), plain.z_loss());
    let z_loss = weighted.z_loss(0.5);
    let ways = Ways { ce: &z_loss, x: &x, rows: 2, targets, upstream: 1.0.into() };
    for g in ways.gradients(&old).0 {
        assert!(g.iter().all(|&g| g != T::of(0.0) && g.key() != key64(f64::NAN)), "{g:?}");
    }
    // Weights that cancel each other are not nothing.
    let opposite = base.token_weights(&[1.0_f32, -1.0]).empty_mean(EmptyMean::Zero);
    assert_eq!(of(&opposite).loss(), f64::NEG_INFINITY);
}

#[test]
fn a_mean_of_what_weighs_nothing() {
    for_each_backend(|backend| {
        a_mean_that_weighs_nothing::<f32>(backend);
        a_mean_that_weighs_nothing::<f64>(backend);
        a_mean_that_weighs_nothing::<bf16>(backend);
        a_mean_that_weighs_nothing::<f16>(backend);

        // Probabilities have no class weight, but that of their token.
        let x = [1.0_f32, 2.0, 3.0, 0.5, -1.0, 2.0];
        let logits = Logits::new(&x, 2, 3).unwrap();
        let probs = Targets::probs(&[0.5_f32, 0.5, 0.0, 0.0, 0.25, 0.75]);
        let base = CrossEntropy::new().backend(backend).empty_mean(EmptyMean::Zero);
        let masked = base.clone().token_weights(&[0.0_f32; 2]);
        let got = train(&masked, logits, probs, 1.0);
        assert_eq!(got.evaluation.loss().to_bits(), 0);
        assert!(got.gradient.iter().all(|&g| g == 0.0));

        // Shards.
        let shards = [(0, 2), (2, 1)]
            .map(|(first, len)| (masked.clone().shard(Shard::new(first, 3)), first, len));
        let targets = [0i64, 2];
        let mut merged = [LossStats::default(); 2];
        for (shard, first, len) in &shards {
            let mut stats = merged;
            let part = Logits::with_stride(&x[*first..], 2, *len, 3).unwrap();
            shard.stats(part, &targets, &mut stats).unwrap();
            merged = [0, 1].map(|i| merged[i].merge(&stats[i]));
        }
        let mut saved = [LogSumExp::default(); 2];
        let out = RowOutputs::new().saved(&mut saved);
        let e = shards[0].0.evaluate(&merged, &targets, out).unwrap();
        assert_eq!((e.loss().to_bits(), e.count(), e.ignored()), (0, 0, 2));
        let mut g = [7.0_f32; 6];
        for (shard, first, len) in &shards {
            let part = Logits::with_stride(&x[*first..], 2, *len, 3).unwrap();
            let to = LogitsMut::with_stride(&mut g[*first..], 2, *len, 3).unwrap();
            shard.backward(part, &targets, &saved, Gradient::new(to)).unwrap();
        }
        assert_eq!(g, [0.0; 6]);
    });
}

/// Token weights that are a mask: statistics are those of the rows that are left.
#[test]
fn rows_without_weight_do_not_count() {
    for_each_backend(|backend| {
        let base = CrossEntropy::new().backend(backend);
        let counted = || RowOutputs::new().count_correct();
        let first = base.clone().token_weights(&[1.0_f32, 0.0]);
        let logits = Logits::new(&[0.0_f32, 0.0, 0.0, 9.0], 2, 2).unwrap();
        let e = first.evaluate(logits, &[0i64, 0], counted()).unwrap();
        assert_eq!((e.perplexity(), e.accuracy(), e.bits_per_token()), (2.0, Some(1.0), 1.0));
        assert_eq!((e.count(), e.ignored(), e.correct()), (1, 1, Some(1)));
        assert_eq!((e.sum(), e.bits_per_byte(1)), (2f64.ln(), 1.0));
        assert_eq!(e.loss(), 2f64.ln());

        // As if they were ignored, whatever the weights of the others, each of which counts once.
        let (rows, vocab) = (40, 30);
        let mut rng = Rng::new(9);
        let x: Vec<f32> = (0..rows * vocab).map(|_| 2.0 * rng.normal()).collect();
        let weights: Vec<f64> =
            (0..rows).map(|_| rng.pick(&[0.0, -0.0, 1.0, 0.25, -3.0, 1e-300])).collect();
        let row = |i: usize| &x[i * vocab..][..vocab];
        let targets: Vec<i64> = (0..rows)
            .map(|i| match rng.below(3) {
                0 => common::argmax(row(i)) as i64,
                1 => rng.below(vocab) as i64,
                _ => {
                    if i % 9 == 0 {
                        -100
                    } else {
                        1
                    }
                }
            })
            .collect();
        let ignored: Vec<i64> =
            targets.iter().zip(&weights).map(|(&t, &w)| if w == 0.0 { -100 } else { t }).collect();
        let weighted = base.clone().token_weights(&weights);
        let logits = Logits::new(&x, rows, vocab).unwrap();
        let all = weighted.evaluate(logits, &targets, counted()).unwrap();
        let want = base.evaluate(logits, &ignored, counted()).unwrap();
        let statistics = |e: &xent::Evaluation| {
            let numbers = [e.sum(), e.mean(), e.stderr(), e.perplexity(), e.bits_per_token()];
            (numbers.map(f64::to_bits), e.correct(), e.count(), e.ignored())
        };
        assert_eq!(statistics(&all), statistics(&want));
        assert_eq!(all.count() + all.ignored(), rows as u64);
        // In batches.
        let part = |range: std::ops::Range<usize>| {
            let weighted = base.clone().token_weights(&weights[range.clone()]);
            let x = &x[range.start * vocab..range.end * vocab];
            let logits = Logits::new(x, range.len(), vocab).unwrap();
            weighted.evaluate(logits, &targets[range], counted()).unwrap()
        };
        let merged = part(0..7).merge(&part(7..8)).merge(&part(8..rows));
        assert_eq!((merged.count(), merged.ignored()), (want.count(), want.ignored()));
        assert_eq!(merged.correct(), want.correct());
        assert!((merged.mean() / want.mean() - 1.0).abs() < 1e-15);
        // The score of a sequence.
        let offsets = [0, 1, 20, rows];
        let scores = weighted.score_sequences(logits, &targets, &offsets).unwrap();
        assert_eq!(scores, base.score_sequences(logits, &ignored, &offsets).unwrap());

        // NaN in a row that does not count is in the loss, and not in these.
        let logits = Logits::new(&[0.0_f32, 0.0, f32::NAN, 9.0], 2, 2).unwrap();
        let e = first.evaluate(logits, &[0i64, 0], counted()).unwrap();
        assert_eq!((e.perplexity(), e.accuracy(), e.count()), (2.0, Some(1.0), 1));
        assert!(e.loss().is_nan());
        assert_eq!((e.nan_rows(), e.first_nan_row()), (1, Some(1)));
        // A weight that is none is not 0.
        let nan = base.token_weights(&[f32::NAN, 1.0]);
        let logits = Logits::new(&[0.0_f32; 4], 2, 2).unwrap();
        let e = nan.evaluate(logits, &[0i64, 0], counted()).unwrap();
        assert_eq!((e.perplexity(), e.count(), e.nan_rows()), (2.0, 2, 1));
    });
}
