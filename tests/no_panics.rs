//! Arbitrary shapes, strides, lengths, targets and options: an answer or an error, never a panic.

use common::{Kind, Rng, distance, keys, property};
use proptest::prelude::*;
use xent::{
    Backend, CrossEntropy, EmptyMean, Error, Floats, Gradient, LogProbs, LogSumExp, LogitBias,
    Logits, LogitsMut, Reduction, RowOutputs, RowStats, Sample, Sampler, Shard, Softmax,
    SparseProbs, Targets, TokenOutputs, Upstream, reference,
};

/// What outputs hold before a call, to see whether they are written to.
const UNTOUCHED: f32 = -12_345.678;

/// Small numbers, the numbers around them that do not fit, and astronomical ones.
fn count() -> impl Strategy<Value = usize> {
    let huge = vec![usize::MAX, usize::MAX / 2 + 1, 1 << 32, 1 << 40, usize::MAX / 3];
    prop_oneof![12 => 0..6_usize, 4 => 0..70_usize, 1 => prop::sample::select(huge)]
}

#[derive(Clone, Debug)]
struct Shape {
    rows: usize,
    vocab: usize,
    /// `None` for a contiguous matrix.
    stride: Option<usize>,
    len: usize,
}

impl Shape {
    /// Elements that the matrix takes, in arithmetic that cannot overflow.
    fn needed(&self) -> u128 {
        let (rows, vocab) = (self.rows as u128, self.vocab as u128);
        match self.stride {
            Some(stride) if rows > 0 => (rows - 1) * stride as u128 + vocab,
            Some(_) => 0,
            None => rows * vocab,
        }
    }

    fn is_valid(&self) -> bool {
        let stride = self.stride.unwrap_or(self.vocab);
        let fits = if self.stride.is_some() {
            self.needed() <= self.len as u128
        } else {
            self.needed() == self.len as u128
        };
        stride >= self.vocab && self.rows as u128 * stride as u128 <= usize::MAX as u128 && fits
    }

    fn view<'a>(&self, data: &'a [f32]) -> Result<Logits<'a>, Error> {
        match self.stride {
            Some(stride) => Logits::with_stride(data, self.rows, self.vocab, stride),
            None => Logits::new(data, self.rows, self.vocab),
        }
    }

    fn view_mut<'a>(&self, data: &'a mut [f32]) -> Result<LogitsMut<'a>, Error> {
        match self.stride {
            Some(stride) => LogitsMut::with_stride(data, self.rows, self.vocab, stride),
            None => LogitsMut::new(data, self.rows, self.vocab),
        }
    }
}

/// Valid more often than not; otherwise the length, or anything, is wrong.
fn shape() -> impl Strategy<Value = Shape> {
    let stride =
        prop_oneof![2 => Just(None), 1 => (0..9_usize).prop_map(Some), 1 => count().prop_map(Some)];
    (count(), count(), stride, 0..4_usize, 0..400_usize).prop_map(
        |(rows, vocab, extra, fit, len)| {
            // Mostly a padding, so that strides are wide enough.
            let stride =
                extra.map(|extra| if fit > 0 { vocab.saturating_add(extra) } else { extra });
            let mut shape = Shape { rows, vocab, stride, len };
            let needed = shape.needed();
            if fit > 0 && needed < 1 << 20 {
                shape.len = needed as usize + if stride.is_some() { fit - 1 } else { 0 };
            }
            shape
        },
    )
}

/// Targets in one of the four types.
#[derive(Clone, Debug)]
enum Ids {
    I64(Vec<i64>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    Usize(Vec<usize>),
}

impl Ids {
    fn new(kind: usize, ids: &[i128]) -> Ids {
        match kind {
            0 => Ids::I64(ids.iter().map(|&id| id as i64).collect()),
            1 => Ids::I32(ids.iter().map(|&id| id as i32).collect()),
            2 => Ids::U32(ids.iter().map(|&id| id as u32).collect()),
            _ => Ids::Usize(ids.iter().map(|&id| id as usize).collect()),
        }
    }

    fn targets(&self) -> Targets<'_> {
        match self {
            Ids::I64(ids) => ids.into(),
            Ids::I32(ids) => ids.into(),
            Ids::U32(ids) => ids.into(),
            Ids::Usize(ids) => ids.into(),
        }
    }

    fn values(&self) -> Vec<i128> {
        match self {
            Ids::I64(ids) => ids.iter().map(|&id| id.into()).collect(),
            Ids::I32(ids) => ids.iter().map(|&id| id.into()).collect(),
            Ids::U32(ids) => ids.iter().map(|&id| id.into()).collect(),
            Ids::Usize(ids) => ids.iter().map(|&id| id as i128).collect(),
        }
    }
}

fn reduction() -> impl Strategy<Value = (Reduction, bool)> {
    let counts = vec![3.0, 1e-300, f64::MAX, 0.0, -0.0, -1.0, f64::NAN, f64::INFINITY];
    prop_oneof![
        Just((Reduction::Sum, true)),
        Just((Reduction::Mean, true)),
        prop::sample::select(counts)
            .prop_map(|n| (Reduction::MeanOver(n), n > 0.0 && n.is_finite())),
    ]
}

#[derive(Clone, Debug)]
struct Options {
    ignore_index: i64,
    reduction: Reduction,
    reduction_is_valid: bool,
    empty_mean: EmptyMean,
    backend: Backend,
}

impl Options {
    fn cross_entropy(&self) -> CrossEntropy<'static> {
        CrossEntropy::new()
            .ignore_index(self.ignore_index)
            .reduction(self.reduction)
            .empty_mean(self.empty_mean)
            .backend(self.backend)
    }
}

fn options() -> impl Strategy<Value = Options> {
    let ignore = prop::sample::select(vec![-100, -100, -1, 0, 2, i64::MIN, i64::MAX]);
    let empty = prop::sample::select(vec![EmptyMean::Nan, EmptyMean::Zero]);
    (ignore, reduction(), empty, prop::sample::select(Backend::ALL)).prop_map(
        |(ignore_index, (reduction, reduction_is_valid), empty_mean, backend)| Options {
            ignore_index,
            reduction,
            reduction_is_valid,
            empty_mean,
            backend,
        },
    )
}

/// Rows may be so many that only a view of no elements has them.
fn few(rows: usize) -> usize {
    rows.min(100)
}

fn random_targets(rng: &mut Rng, shape: &Shape, valid: bool) -> Vec<i128> {
    let id = |_| {
        if valid && shape.vocab > 0 && rng.below(8) > 0 {
            return rng.below(shape.vocab) as i128;
        }
        let vocab = shape.vocab as i128;
        let any = i128::from(rng.bits());
        let limits = [i64::MIN.into(), i64::MAX.into(), u64::MAX.into(), -100, -1, vocab, any];
        if valid { -100 } else { rng.pick(&limits) }
    };
    (0..few(shape.rows)).map(id).collect()
}

proptest! {
    #![proptest_config(property(5000))]

    #[test]
    fn cross_entropy_answers_or_refuses(
        seed: u64,
        shape in shape(),
        kind in 0..4_usize,
        options in options(),
        // Mostly 0: the right number of targets and outputs.
        wrong in prop::collection::vec(prop_oneof![20 => Just(0), 1 => 1..3_usize], 5),
        valid_targets in prop::bool::weighted(0.8),
    ) {
        let mut rng = Rng::new(seed);
        let data = Kind::any(&mut rng).row(&mut rng, shape.len);
        let view = shape.view(&data);
        prop_assert_eq!(view.is_ok(), shape.is_valid(), "{:?}", view);
        let Ok(logits) = view else { return Ok(()) };

        let mut ids = random_targets(&mut rng, &shape, valid_targets);
        ids.extend(std::iter::repeat_n(0, wrong[0]));
        let ids = Ids::new(kind, &ids);
        let rows = few(shape.rows);
        let mut losses = vec![UNTOUCHED; rows + wrong[1]];
        let mut logprobs = vec![UNTOUCHED; rows + wrong[2]];
        let mut lse = vec![UNTOUCHED; rows + wrong[3]];
        let mut argmax = vec![-7; rows + wrong[4]];
        let ce = options.cross_entropy();

        let kept = |id: i128| id != i128::from(options.ignore_index);
        let values = ids.values();
        let valid_ids = values.len() == shape.rows
            && values.iter().all(|&id| !kept(id) || (0..shape.vocab as i128).contains(&id));
        let valid = valid_ids && options.reduction_is_valid && options.backend.is_available();

        prop_assert_eq!(ce.forward(logits, ids.targets()).is_ok(), valid);
        let into = ce.forward_into(logits, ids.targets(), &mut losses);
        prop_assert_eq!(into.is_ok(), valid && losses.len() == shape.rows, "{:?}", into);
        if into.is_err() {
            prop_assert!(losses.iter().all(|&x| x == UNTOUCHED));
        }
        let plain = std::mem::replace(&mut losses, vec![UNTOUCHED; rows + wrong[1]]);

        let outputs = RowOutputs::new()
            .losses(&mut losses)
            .logprobs(&mut logprobs)
            .logsumexp(&mut lse)
            .argmax(&mut argmax);
        let evaluation = ce.evaluate(logits, ids.targets(), outputs);
        let lengths = wrong[1..].iter().all(|&extra| extra == 0) && rows == shape.rows;
        prop_assert_eq!(evaluation.is_ok(), valid && lengths, "{:?}", evaluation);
        let Ok(evaluation) = evaluation else {
            let all = [&losses, &logprobs, &lse];
            prop_assert!(all.into_iter().flatten().all(|&x| x == UNTOUCHED));
            prop_assert!(argmax.iter().all(|&x| x == -7));
            return Ok(());
        };

        prop_assert_eq!(keys(&losses), keys(&plain));
        let mut count = 0;
        for (i, &id) in values.iter().enumerate() {
            if !kept(id) {
                prop_assert_eq!((losses[i], logprobs[i], lse[i], argmax[i]), (0.0, 0.0, 0.0, -1));
                continue;
            }
            count += 1;
            let want = reference::row(logits.row(i), id as usize);
            prop_assert!(distance(losses[i], want.loss as f32) <= 2, "{} {want:?}", losses[i]);
            prop_assert!(distance(-logprobs[i], losses[i]) == 0);
            let unit = f64::from(f32::EPSILON) * want.logsumexp.abs().max(1.0);
            let close = (f64::from(lse[i]) - want.logsumexp).abs() <= unit
                || distance(lse[i], want.logsumexp as f32) == 0;
            prop_assert!(close, "{} {want:?}", lse[i]);
            prop_assert_eq!(argmax[i], want.argmax as i64);
        }
        prop_assert_eq!((evaluation.count(), evaluation.ignored()), (count, rows as u64 - count));
        // Every accessor has an answer, for no rows too.
        let loss = evaluation.loss();
        if count == 0 {
            match (options.reduction, options.empty_mean) {
                (Reduction::Mean, EmptyMean::Nan) => prop_assert!(loss.is_nan()),
                _ => prop_assert_eq!(loss, 0.0),
            }
        }
        let _ = (evaluation.stderr(), evaluation.perplexity(), evaluation.perplexity_stderr());
        let _ = (evaluation.bits_per_token(), evaluation.bits_per_byte(0), evaluation.accuracy());
    }

    #[test]
    fn softmax_answers_or_refuses(
        seed: u64,
        shape in shape(),
        wrong in prop_oneof![10 => Just(0), 1 => 1..3_usize],
        backend in prop::sample::select(Backend::ALL),
    ) {
        let mut rng = Rng::new(seed);
        let mut data = Kind::any(&mut rng).row(&mut rng, shape.len);
        let Ok(logits) = shape.view(&data) else {
            prop_assert!(!shape.is_valid());
            prop_assert!(shape.view_mut(&mut data).is_err());
            return Ok(());
        };
        prop_assert!(shape.is_valid());
        let softmax = Softmax::new().backend(backend);
        // No product of a valid shape is larger than its slice.
        let len = shape.rows * shape.vocab;
        let mut p = vec![UNTOUCHED; len + wrong];
        let mut log_p = p.clone();
        let mut lse = vec![UNTOUCHED; few(shape.rows) + wrong];

        let ok = softmax.logsumexp(logits, &mut lse).is_ok();
        prop_assert_eq!(ok, backend.is_available() && lse.len() == shape.rows);
        prop_assert!(ok || lse.iter().all(|&x| x == UNTOUCHED));
        let ok = softmax.softmax(logits, &mut p).is_ok();
        prop_assert_eq!(ok, backend.is_available() && wrong == 0);
        prop_assert!(ok || p.iter().all(|&x| x == UNTOUCHED));
        prop_assert_eq!(softmax.log_softmax(logits, &mut log_p).is_ok(), ok);
        prop_assert!(ok || log_p.iter().all(|&x| x == UNTOUCHED));
        if ok && shape.vocab > 0 {
            for (i, log_p) in log_p.chunks(shape.vocab).enumerate() {
                let want = reference::log_softmax(logits.row(i));
                for (&got, want) in log_p.iter().zip(want) {
                    prop_assert!(distance(got, want as f32) <= 2, "{} {}", got, want);
                }
            }
        }

        let before = keys(&data);
        let ran = softmax.softmax_in_place(shape.view_mut(&mut data).unwrap());
        prop_assert_eq!(ran.is_ok(), backend.is_available());
        if ran.is_err() {
            prop_assert_eq!(before, keys(&data));
        } else if ok {
            for i in 0..few(shape.rows) {
                let row = shape.view(&data).unwrap().row(i);
                prop_assert_eq!(keys(row), keys(&p[i * shape.vocab..][..shape.vocab]));
            }
        }
    }
}

/// A number that an option may have, and whether it may.
fn number(valid: Vec<f64>, invalid: Vec<f64>) -> impl Strategy<Value = (f64, bool)> {
    let (valid, invalid) = (prop::sample::select(valid), prop::sample::select(invalid));
    prop_oneof![
        30 => valid.prop_map(|value| (value, true)),
        1 => invalid.prop_map(|value| (value, false)),
    ]
}

fn positive() -> impl Strategy<Value = (f64, bool)> {
    let valid = vec![1.0, 1.0, 1.0, 0.5, 3.0, 50.0, 1e-37, 1e38];
    number(valid, vec![0.0, -1.0, f64::NAN, f64::INFINITY, 1e-50, 1e50])
}

/// One of a few lengths around the right one, mostly that.
fn length() -> impl Strategy<Value = i8> {
    prop_oneof![30 => Just(0), 1 => Just(1), 1 => Just(-1)]
}

/// `values` of the right length and one that is off by `wrong`.
fn values(rng: &mut Rng, len: usize, wrong: i8) -> Vec<f32> {
    let any = [0.0, 1.0, 0.5, 2.0, -1.0, 1e-30, f32::INFINITY, f32::NAN, 1e30];
    let any = &any[..3 + rng.below(7)];
    (0..len.saturating_add_signed(wrong.into())).map(|_| rng.pick(any)).collect()
}

proptest! {
    #![proptest_config(property(4000))]

    #[test]
    fn training_answers_or_refuses(
        seed: u64,
        (rows, vocab) in (0..5_usize, prop_oneof![1 => Just(0), 9 => 1..70_usize]),
        options in options(),
        (smoothing, z_loss) in (
            number(vec![0.0, 0.1, 1.0], vec![-0.1, 1.1, f64::NAN]),
            number(vec![0.0, 1e-4, 1e30], vec![-1.0, f64::NAN, f64::INFINITY]),
        ),
        (scale, temperature, cap) in (positive(), positive(), prop::option::of(positive())),
        kind in 0..3_usize,
        (weighted, token_weighted, each, all, double) in
            (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.03)),
        lengths in prop::collection::vec(length(), 6),
        (gradient_rows, gradient_vocab) in (length(), length()),
        k in prop_oneof![20 => 0..5_usize, 1 => Just(usize::MAX)],
        valid_ids in prop::bool::weighted(0.9),
    ) {
        let mut rng = Rng::new(seed);
        let data = Kind::any(&mut rng).row(&mut rng, rows * vocab);
        let logits = Logits::new(&data, rows, vocab).unwrap();
        let weights = values(&mut rng, vocab, lengths[0]);
        let weights_f64: Vec<f64> = weights.iter().map(|&w| w.into()).collect();
        let token_weights = values(&mut rng, rows, lengths[1]);
        let upstream = values(&mut rng, rows, lengths[2]);
        let stats = vec![LogSumExp::default(); rows.saturating_add_signed(lengths[3].into())];
        let huge = k > 5;
        let len = match kind {
            0 => rows,
            1 => rows * vocab,
            _ => rows * k.min(5),
        };
        let mut id = |_| match valid_ids && vocab > 0 {
            true => rng.below(vocab) as i64,
            false => rng.pick(&[options.ignore_index, -1, vocab as i64, i64::MIN, 0]),
        };
        let len_of_ids = len.saturating_add_signed(lengths[4].into());
        let ids: Vec<i64> = (0..len_of_ids).map(&mut id).collect();
        let probs = values(&mut rng, len, lengths[5]);
        let targets = match kind {
            0 => Targets::from(&ids),
            1 => Targets::probs(&probs),
            _ => SparseProbs::new(&ids, &probs, k).into(),
        };
        let mut ce = options
            .cross_entropy()
            .label_smoothing(smoothing.0)
            .z_loss(z_loss.0)
            .logit_scale(scale.0)
            .temperature(temperature.0);
        if let Some((cap, _)) = cap {
            ce = if all { ce.softcap_of_all(cap) } else { ce.softcap(cap) };
        }
        if weighted {
            let single = Floats::from(&weights);
            ce = ce.class_weights(if double { Floats::from(&weights_f64) } else { single });
        }
        if token_weighted {
            ce = ce.token_weights(&token_weights);
        }

        // What is expected, from the documentation.
        let kept = |id: &&i64| **id != options.ignore_index;
        let in_range = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < vocab);
        let ids_fit = ids.iter().filter(kept).all(in_range);
        let targets_fit = match kind {
            0 => ids.len() == rows && ids_fit,
            _ if vocab == 0 && rows > 0 => false,
            1 => probs.len() == len && options.ignore_index < 0,
            _ => {
                let fits = if huge { rows == 0 } else { true };
                fits && ids.len() == len && probs.len() == len && ids_fit
            }
        };
        let numbers = [smoothing, z_loss, scale, temperature, cap.unwrap_or((1.0, true))];
        let valid = targets_fit
            && options.reduction_is_valid
            && options.backend.is_available()
            && numbers.iter().all(|(_, valid)| *valid)
            && (!weighted || weights.len() == vocab && !double)
            && (!token_weighted || token_weights.len() == rows);
        let shape_fits = gradient_rows == 0 && gradient_vocab == 0;
        let upstream_fits = !each || upstream.len() == rows;
        let shape = [
            rows.saturating_add_signed(gradient_rows.into()),
            vocab.saturating_add_signed(gradient_vocab.into()),
        ];
        let shape_fits = shape_fits || shape == [rows, vocab];
        let upstream = || if each { Upstream::rows(&upstream) } else { 0.5.into() };

        let mut g = vec![UNTOUCHED; shape[0] * shape[1]];
        let mut losses = vec![UNTOUCHED; rows];
        let outputs = RowOutputs::new().losses(&mut losses).count_correct();
        let to = Gradient::new(LogitsMut::new(&mut g, shape[0], shape[1]).unwrap());
        let result = ce.forward_backward(logits, targets, to.upstream(upstream()), outputs);
        prop_assert_eq!(result.is_ok(), valid && shape_fits && upstream_fits, "{:?}", result);
        if result.is_err() {
            prop_assert!(g.iter().chain(&losses).all(|&x| x == UNTOUCHED));
        }
        let once = std::mem::take(&mut g);

        let mut g = vec![UNTOUCHED; shape[0] * shape[1]];
        let to = Gradient::new(LogitsMut::new(&mut g, shape[0], shape[1]).unwrap());
        let saved = ce.backward(logits, targets, &stats, to.upstream(upstream()));
        let stats_fit = stats.len() == rows;
        prop_assert_eq!(saved.is_ok(), valid && shape_fits && upstream_fits && stats_fit, "{:?}", saved);
        if saved.is_err() {
            prop_assert!(g.iter().all(|&x| x == UNTOUCHED));
        }

        let mut place = data.clone();
        let to = LogitsMut::new(&mut place, rows, vocab).unwrap();
        let in_place = ce.forward_backward_in_place(to, targets, upstream(), RowOutputs::new());
        prop_assert_eq!(in_place.is_ok(), valid && upstream_fits, "{:?}", in_place);
        if in_place.is_err() {
            prop_assert_eq!(keys(&place), keys(&data));
        } else if result.is_ok() {
            prop_assert_eq!(keys(&place), keys(&once));
        }
        let mut place = data.clone();
        let to = LogitsMut::new(&mut place, rows, vocab).unwrap();
        let in_place = ce.backward_in_place(to, targets, &stats, upstream());
        prop_assert_eq!(in_place.is_ok(), valid && upstream_fits && stats_fit);

        let forward = ce.forward(logits, targets);
        prop_assert_eq!(forward.is_ok(), valid, "{:?}", forward);
        prop_assert_eq!(ce.forward_into(logits, targets, &mut losses).is_ok(), valid);
    }
}

proptest! {
    #![proptest_config(property(4000))]

    #[test]
    fn logprobs_answers_or_refuses(
        seed: u64,
        shape in shape(),
        kind in 0..4_usize,
        backend in prop::sample::select(Backend::ALL),
        // Mostly 0: the right number of inputs and outputs.
        wrong in prop::collection::vec(prop_oneof![20 => Just(0), 1 => 1..3_usize], 5),
        top_k in prop_oneof![20 => 0..3_usize, 1 => 3..130_usize, 1 => Just(usize::MAX)],
        (temperature, sampled_at) in (
            positive(),
            number(vec![0.0, 1.0, 1.0, 5e-324, 1e-30, f64::MAX], vec![-1.0, f64::NAN, f64::INFINITY]),
        ),
        (valid_ids, valid_bias) in (prop::bool::weighted(0.9), prop::bool::weighted(0.9)),
        (first, beyond) in (prop_oneof![3 => Just(0), 2 => 0..9_usize, 1 => count()], 0..9_usize),
    ) {
        let mut rng = Rng::new(seed);
        let data = Kind::any(&mut rng).row(&mut rng, shape.len);
        let Ok(logits) = shape.view(&data) else { return Ok(()) };
        let (vocab, rows) = (shape.vocab, few(shape.rows));
        let mut ids = random_targets(&mut rng, &shape, valid_ids);
        ids.extend(std::iter::repeat_n(0, wrong[0]));
        let ids = Ids::new(kind, &ids);
        let candidate = |i: usize| if valid_ids && vocab > 0 { i * 7 % vocab } else { i + vocab };
        let candidates: Vec<usize> = (0..rows + wrong[1]).map(candidate).collect();
        let sample = |i: usize| Sample::new(seed, i as u64).temperature(sampled_at.0);
        let samples: Vec<Sample> = (0..rows + wrong[2]).map(sample).collect();
        let last = if valid_bias { vocab.saturating_sub(1) } else { vocab };
        let mut bias = vec![(0, 1.5), (last.min(1 << 31) as u32, f32::NEG_INFINITY)];
        bias.dedup_by_key(|&mut (id, _)| id);
        if vocab == 0 && valid_bias {
            bias.clear();
        }
        let ask = LogProbs::new()
            .targets(ids.targets())
            .candidates(&candidates, 1)
            .sample(&samples)
            .top_k(top_k)
            .temperature(temperature.0)
            .logit_bias(LogitBias::new(&bias))
            .backend(backend);

        let values = ids.values();
        let ids_fit = values.len() == shape.rows
            && values.iter().all(|&id| id == -100 || (0..vocab as i128).contains(&id));
        let bias_fits = bias.iter().all(|&(id, _)| (id as usize) < vocab);
        let valid = ids_fit
            && candidates.len() == shape.rows
            && candidates.iter().all(|&id| id < vocab)
            && samples.len() == shape.rows
            && (samples.is_empty() || sampled_at.1)
            && temperature.1
            && bias_fits
            && vocab < u32::MAX as usize
            && top_k <= 128
            && backend.is_available();
        prop_assert_eq!(ask.collect(logits).is_ok(), valid, "{:?}", ask.collect(logits));

        let mut logprobs = vec![UNTOUCHED; rows + wrong[3]];
        let mut sampled = vec![-7; rows + wrong[4]];
        let few_k = top_k.min(vocab).min(200);
        let (mut top_ids, mut top) = (vec![-7; rows * few_k], vec![UNTOUCHED; rows * few_k]);
        let out = TokenOutputs::new().logprobs(&mut logprobs).sampled(&mut sampled);
        let ran = ask.run(logits, out.top_k(&mut top_ids, &mut top));
        prop_assert_eq!(ran.is_ok(), valid && wrong[3] == 0 && wrong[4] == 0, "{:?}", ran);
        if ran.is_err() {
            prop_assert!(logprobs.iter().chain(&top).all(|&x| x == UNTOUCHED));
            prop_assert!(sampled.iter().chain(&top_ids).all(|&id| id == -7));
        } else if rows > 0 && top_k > 0 {
            // Whatever was found can be drawn from, or not.
            for p in [0.0, 0.5, 1.0] {
                let _ = Sampler::new().top_p(p).min_p(p).draw(&top_ids, &top, vocab, samples[0]);
                let _ = Sampler::new().top_k(2).draw(&top_ids, &top, vocab, samples[0]);
            }
        }

        // As a shard of a larger vocabulary, of which the target may be anywhere.
        let whole = first.saturating_add(vocab).saturating_add(beyond);
        let mut stats = vec![RowStats::default(); rows + wrong[3]];
        let ran = ask.ranks(true).row_stats(logits, Shard::new(first, whole), &mut stats);
        if ran.is_err() {
            prop_assert!(stats.iter().all(|stats| *stats == RowStats::default()));
        }
        for stats in &stats {
            let both = stats.merge(&RowStats::default()).unwrap();
            prop_assert!(both.merge(stats).is_err() || *stats == RowStats::default() || vocab == 0);
            let _ = (both.loss(), both.rank(), both.logsumexp(), both.argmax(), both.sampled());
            let _ = both.top_k().count();
            for p in [0.0, 0.5, 1.0] {
                let sampler = Sampler::new().top_k(top_k).top_p(p).min_p(p);
                let _ = sampler.draw_row(&both, whole, Sample::new(1, 2));
            }
        }
    }
}

/// As many rows as can be counted, of nothing: there is nothing to do, and that takes no time.
#[test]
fn empty_rows_beyond_number() {
    for &backend in Backend::available() {
        for rows in [usize::MAX, 1 << 40] {
            let softmax = Softmax::new().backend(backend);
            let logits = Logits::<f32>::new(&[], rows, 0).unwrap();
            assert_eq!(softmax.softmax(logits, &mut []), Ok(()));
            assert_eq!(softmax.log_softmax(logits, &mut []), Ok(()));
            assert_eq!(
                softmax.softmax_in_place(LogitsMut::<f32>::new(&mut [], rows, 0).unwrap()),
                Ok(())
            );
            let wanted = Error::OutputLength { output: "logsumexp", len: 1, expected: rows };
            assert_eq!(softmax.logsumexp(logits, &mut [0.0]), Err(wanted));
            let wanted = Error::TargetCount { rows, targets: 1 };
            let ce = CrossEntropy::new().backend(backend);
            assert_eq!(ce.forward(logits, &[0i64]), Err(wanted));
            let ask = LogProbs::new().candidates(&[] as &[u32], 0).backend(backend);
            assert_eq!(ask.run(logits, TokenOutputs::new()), Ok(()));
            let out = TokenOutputs::new().top_k(&mut [], &mut []).candidates(&mut []);
            assert_eq!(ask.run(logits, out), Ok(()));
            let wanted = Error::OutputLength { output: "argmax", len: 1, expected: rows };
            assert_eq!(ask.run(logits, TokenOutputs::new().argmax(&mut [0])), Err(wanted));
            assert_eq!(ask.collect(logits), Err(Error::Overflow { rows, elements: 1 }));
            let wanted = Error::NoClasses { rows };
            let probs: &[f32] = &[];
            assert_eq!(ce.forward(logits, Targets::probs(probs)), Err(wanted.clone()));
            let place = LogitsMut::<f32>::new(&mut [], rows, 0).unwrap();
            let result = ce.backward_in_place(place, Targets::probs(probs), &[], 1.0);
            assert_eq!(result, Err(wanted));
        }
    }
}

proptest! {
    #![proptest_config(property(2000))]

    #[test]
    fn comparing_and_scoring_answers_or_refuses(
        seed: u64,
        (rows, vocab) in (0..5_usize, 0..70_usize),
        (temperature, beta) in (positive(), number(vec![0.0, 0.5, 1.0], vec![-0.1, 1.1, f64::NAN])),
        backend in prop::sample::select(Backend::ALL),
        (targeted, valid_ids) in (any::<bool>(), prop::bool::weighted(0.9)),
        lengths in prop::collection::vec(length(), 5),
        (first, last) in (length(), length()),
    ) {
        let mut rng = Rng::new(seed);
        let [p, q] = [0, 1].map(|_| Kind::any(&mut rng).row(&mut rng, rows * vocab));
        let view = |x| Logits::new(x, rows, vocab).unwrap();
        let id = |i: usize| match (i % 3, valid_ids) {
            (0, true) => -100,
            (_, true) if vocab > 0 => (i * 5 % vocab) as i64,
            (_, valid) => if valid { -100 } else { vocab as i64 },
        };
        let ids: Vec<i64> = (0..rows.saturating_add_signed(lengths[0].into())).map(id).collect();
        let ids_fit = ids.len() == rows
            && ids.iter().all(|&id| id == -100 || (0..vocab as i64).contains(&id));

        let len = |i: usize| rows.saturating_add_signed(lengths[i].into());
        let (mut kl, mut jsd) = (vec![7.0; len(1)], vec![7.0; len(2)]);
        let (mut delta_p, mut same_top) = (vec![7.0; len(3)], vec![true; len(4)]);
        let mut compare =
            xent::Compare::new().temperature(temperature.0).beta(beta.0).backend(backend);
        let mut out = xent::CompareOutputs::new().kl(&mut kl).jsd(&mut jsd).same_top(&mut same_top);
        if targeted {
            (compare, out) = (compare.targets(&ids), out.delta_p(&mut delta_p));
        }
        let outputs_fit = [1, 2, 4].into_iter().all(|i| len(i) == rows)
            && (!targeted || len(3) == rows && ids_fit);
        let valid = outputs_fit && temperature.1 && beta.1 && backend.is_available();
        let ran = compare.evaluate(view(&p), view(&q), out);
        prop_assert_eq!(ran.is_ok(), valid, "{:?}", ran);
        match ran {
            Err(_) => {
                prop_assert!(kl.iter().chain(&jsd).chain(&delta_p).all(|&x| x == 7.0));
                prop_assert!(same_top.iter().all(|&same| same));
            }
            Ok(all) => {
                // Every accessor has an answer, for any fraction and for no rows too.
                let fractions = [0.0, 0.5, 1.0, -1.0, 2.0, f64::NAN, f64::INFINITY];
                let _ = (all.mean_kl(), all.same_top(), all.kl_percentiles(fractions));
                if let Some(at) = all.at_targets() {
                    let _ = (at.correlation(), at.ratio(), at.difference(), at.rms_delta_p());
                    let _ = (at.base_perplexity(), at.delta_p_percentiles(fractions));
                }
            }
        }

        let offset = |by: i8, right: usize| right.wrapping_add_signed(by.into());
        let offsets = [offset(first, 0), rows / 2, offset(last, rows)];
        let in_order = first == 0 && last == 0;
        let untouched = xent::SequenceScore { logprob: 7.0, ..Default::default() };
        let mut scores = vec![untouched; 2];
        let ce = CrossEntropy::new().backend(backend);
        let ran = ce.sequences(view(&p), &ids, &offsets, &mut scores);
        prop_assert_eq!(ran.is_ok(), in_order && ids_fit && backend.is_available(), "{:?}", ran);
        prop_assert!(ran.is_ok() || scores == [untouched; 2]);
    }
}
