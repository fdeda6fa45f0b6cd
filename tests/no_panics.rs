//! Arbitrary shapes, strides, lengths, targets and options: an answer or an error, never a panic.

mod common;

use common::{Kind, Rng, distance, keys, property};
use proptest::prelude::*;
use xent::{
    Backend, CrossEntropy, EmptyMean, Error, Logits, LogitsMut, Reduction, RowOutputs, Softmax,
    Targets, reference,
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
    fn cross_entropy(&self) -> CrossEntropy {
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

/// As many rows as can be counted, of nothing: there is nothing to do, and that takes no time.
#[test]
fn empty_rows_beyond_number() {
    for &backend in Backend::available() {
        for rows in [usize::MAX, 1 << 40] {
            let softmax = Softmax::new().backend(backend);
            let logits = Logits::new(&[], rows, 0).unwrap();
            assert_eq!(softmax.softmax(logits, &mut []), Ok(()));
            assert_eq!(softmax.log_softmax(logits, &mut []), Ok(()));
            assert_eq!(softmax.softmax_in_place(LogitsMut::new(&mut [], rows, 0).unwrap()), Ok(()));
            let wanted = Error::OutputLength { output: "logsumexp", len: 1, expected: rows };
            assert_eq!(softmax.logsumexp(logits, &mut [0.0]), Err(wanted));
            let wanted = Error::TargetCount { rows, targets: 1 };
            assert_eq!(CrossEntropy::new().forward(logits, &[0i64]), Err(wanted));
        }
    }
}
