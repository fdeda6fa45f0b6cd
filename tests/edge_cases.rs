//! Fifty edge cases of cross-entropy and what goes with it, as PyTorch 2.15 answers them; those that
//! apply to f32 logits, on every backend.
//!
//! The numbers are those of the list that the semantics of this crate were written from. [`LEFT`]
//! says which of them wait for a feature.

use std::f32::consts::LN_2;
use xent::reference::{self, Options, Target, ulp_error};
use xent::{
    AllowedTokens, Backend, CrossEntropy, Element, EmptyMean, Error, Evaluation, Gradient,
    LOSS_MAX_ULP, Logits, LogitsMut, LossStats, Reduction, RowOutputs, Shard, Softmax, Targets,
    Upstream, bf16, f16,
};

/// A test per case, and the list of their numbers.
macro_rules! edge_cases {
    ($($number:literal $name:ident,)*) => {
        const APPLY: &[u32] = &[$($number),*];
        $(
            #[test]
            fn $name() {
                for &backend in Backend::ALL {
                    if backend.is_available() {
                        case::$name(backend);
                    } else {
                        println!("case {}: {backend} is not on this machine, skipped", $number);
                    }
                }
            }
        )*
    };
}

edge_cases! {
    1 e01_every_row_ignored,
    2 e02_ignore_index_inside_and_outside_of_the_classes,
    3 e03_target_out_of_range,
    4 e04_no_rows_and_no_classes,
    5 e05_one_row,
    6 e06_class_weights,
    7 e07_certainty_is_plus_zero,
    8 e08_another_number_of_targets,
    10 e10_target_types,
    11 e11_f32_logits,
    12 e12_strides_and_alignment,
    13 e13_range_of_the_smoothing,
    14 e14_smoothing_weights_and_ignored_rows,
    15 e15_smoothing_of_nothing,
    16 e16_smoothing_over_a_mask,
    17 e17_nan_in_an_ignored_row,
    18 e18_probability_targets,
    19 e19_probability_0_of_a_masked_class,
    20 e20_probabilities_of_any_sum,
    21 e21_masked_classes,
    22 e22_nothing_but_masks_infinity_and_nan,
    23 e23_weight_0_of_a_masked_target,
    24 e24_extremes_of_f32,
    25 e25_confident_rows,
    26 e26_large_offsets,
    27 e27_uniform_rows,
    28 e28_many_rows,
    29 e29_alone_and_in_a_batch,
    30 e30_gradient_of_a_large_vocabulary,
    31 e31_upstream_gradients,
    32 e32_softmax_log_softmax_logsumexp,
    33 e33_argmax,
    39 e39_everything_at_once,
    40 e40_softcap_of_any_number_of_classes,
    41 e41_masks_of_any_shape,
    42 e42_logits_are_never_written,
    43 e43_weights_of_inf_and_nan,
    45 e45_any_number_of_classes,
    46 e46_threads,
    50 e50_perplexity,
}

/// Cases that do not apply yet, or cannot.
const LEFT: &[(&str, &[u32])] = &[
    ("targets of another rank: there is no tensor type that could have one", &[9]),
    ("ranks", &[34]),
    ("sampling", &[35, 37, 49]),
    ("divergences", &[36]),
    ("linear layer", &[38]),
    ("bf16 and f16", &[44]),
    ("entropy", &[47]),
    ("top-k", &[48]),
];

#[test]
fn each_of_the_fifty_is_here_or_left_with_a_reason() {
    println!("{} edge cases on {:?}; left for later:", APPLY.len(), Backend::available());
    LEFT.iter().for_each(|(reason, cases)| println!("  {reason}: {cases:?}"));
    let left = LEFT.iter().flat_map(|(_, cases)| cases.iter());
    let mut all: Vec<u32> = APPLY.iter().chain(left).copied().collect();
    all.sort_unstable();
    assert_eq!(all, (1..=50).collect::<Vec<_>>());
    assert_eq!(APPLY.len(), 40);
}

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;
const MIN: f32 = f32::NEG_INFINITY;

/// Two rows of three classes. The losses of targets 0 and 1 are [`LOSSES`].
const X: [f32; 6] = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0];
const LOSSES: [f64; 2] = [2.407_605_89, 3.241_311_3];

fn ce(backend: Backend) -> CrossEntropy<'static> {
    CrossEntropy::new().backend(backend)
}

fn sum(backend: Backend) -> CrossEntropy<'static> {
    ce(backend).reduction(Reduction::Sum)
}

fn view(x: &[f32], rows: usize) -> Logits<'_> {
    Logits::new(x, rows, x.len() / rows.max(1)).unwrap()
}

/// The loss of one row.
fn loss(backend: Backend, x: &[f32], target: usize) -> f32 {
    let mut out = [-1.0];
    ce(backend).forward_into(view(x, 1), &[target], &mut out).unwrap();
    out[0]
}

fn losses(ce: &CrossEntropy, x: &[f32], targets: &[i64]) -> Vec<f32> {
    let mut out = vec![-1.0; targets.len()];
    ce.forward_into(view(x, targets.len()), targets, &mut out).unwrap();
    out
}

/// Within the bound for short rows, which is also enough for the digits that PyTorch prints.
#[track_caller]
fn close(got: f32, expected: f64) {
    let error = ulp_error(got, expected);
    assert!(error <= 2.0 * f64::from(LOSS_MAX_ULP), "{got:e} instead of {expected:e}: {error} ULP");
}

/// Equal, and if 0 then +0.
#[track_caller]
fn same(got: f32, expected: f32) {
    assert!(
        got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()),
        "{got:e} instead of {expected:e}"
    );
}

/// Reduced loss and gradient.
fn train<'a, 'u>(
    ce: &CrossEntropy,
    x: &[f32],
    rows: usize,
    targets: impl Into<Targets<'a>>,
    upstream: impl Into<Upstream<'u>>,
) -> (f64, Vec<f32>) {
    let mut g = vec![7.0; x.len()];
    let to = LogitsMut::new(&mut g, rows, x.len() / rows.max(1)).unwrap();
    let to = Gradient::new(to).upstream(upstream.into());
    let e = ce.forward_backward(view(x, rows), targets, to, RowOutputs::new()).unwrap();
    (e.loss(), g)
}

/// What PyTorch prints: seven or eight digits, of results that are off by a few units themselves.
#[track_caller]
fn printed(got: f64, expected: f64) {
    let close = (got - expected).abs() <= 3e-7 * expected.abs().max(1.0);
    assert!(
        close || got == expected || got.is_nan() && expected.is_nan(),
        "{got} is not {expected}"
    );
}

#[track_caller]
fn all_printed(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).for_each(|(&got, &expected)| printed(got.into(), expected));
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Numbers that look normally distributed: sums of twelve uniform ones.
fn normal(n: usize, scale: f32) -> Vec<f32> {
    let mut twister = rand_mt::Mt::new(12);
    let mut uniform = || twister.next_u32() as f32 / u32::MAX as f32;
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * scale).collect()
}

mod case {
    use super::*;

    pub(super) fn e01_every_row_ignored(b: Backend) {
        let none = &[-100i64; 2];
        assert!(ce(b).forward(view(&X, 2), none).unwrap().is_nan());
        let zero = ce(b).empty_mean(EmptyMean::Zero);
        assert_eq!(zero.forward(view(&X, 2), none).unwrap().to_bits(), 0);
        assert_eq!(sum(b).forward(view(&X, 2), none).unwrap().to_bits(), 0);
        let over = ce(b).reduction(Reduction::MeanOver(3.0));
        assert_eq!(over.forward(view(&X, 2), none).unwrap().to_bits(), 0);
        assert_eq!(bits(&losses(&ce(b), &X, none)), [0, 0]);
    }

    pub(super) fn e02_ignore_index_inside_and_outside_of_the_classes(b: Backend) {
        let inside = ce(b).ignore_index(1);
        let outside = ce(b).ignore_index(7);
        let expected = losses(&inside, &X, &[1, 2]);
        same(expected[0], 0.0);
        // PyTorch's f32, 0.24131133, is 2.2 ULP off.
        close(expected[1], reference::row(&X[3..], 2).loss);
        let mean = inside.forward(view(&X, 2), &[1i64, 2]).unwrap();
        same(mean as f32, expected[1]);
        assert_eq!(bits(&losses(&outside, &X, &[7, 2])), bits(&expected));
        let other = outside.forward(view(&X, 2), &[7i64, 2]).unwrap();
        assert_eq!(other.to_bits(), mean.to_bits());
    }

    pub(super) fn e03_target_out_of_range(b: Backend) {
        let reductions = [Reduction::Sum, Reduction::Mean, Reduction::MeanOver(1.0)];
        for target in [-1, 3, i64::MIN] {
            let expected = Error::TargetOutOfRange { row: 0, target: target.into(), vocab: 3 };
            for reduction in reductions {
                let ce = ce(b).reduction(reduction);
                assert_eq!(ce.forward(view(&X, 2), &[target, 2]), Err(expected.clone()));
            }
            let result = ce(b).forward_into(view(&X, 2), &[target, 2], &mut [0.0; 2]);
            assert_eq!(result, Err(expected));
        }
    }

    pub(super) fn e04_no_rows_and_no_classes(b: Backend) {
        for classes in [3, 0] {
            let empty = Logits::<f32>::new(&[], 0, classes).unwrap();
            assert!(ce(b).forward(empty, &[] as &[i64]).unwrap().is_nan());
            assert_eq!(sum(b).forward(empty, &[] as &[i64]).unwrap().to_bits(), 0);
            ce(b).forward_into(empty, &[] as &[i64], &mut []).unwrap();
            Softmax::new().backend(b).softmax(empty, &mut []).unwrap();
            Softmax::new().backend(b).log_softmax(empty, &mut []).unwrap();
            Softmax::new().backend(b).logsumexp(empty, &mut []).unwrap();
        }
        let no_classes = Logits::<f32>::new(&[], 2, 0).unwrap();
        assert_eq!(
            ce(b).forward(no_classes, &[0i64, 0]),
            Err(Error::TargetOutOfRange { row: 0, target: 0, vocab: 0 })
        );
        let ignored = &[-100i64; 2];
        assert!(ce(b).forward(no_classes, ignored).unwrap().is_nan());
        assert_eq!(sum(b).forward(no_classes, ignored).unwrap().to_bits(), 0);
        assert_eq!(bits(&losses(&ce(b), &[], ignored)), [0, 0]);
    }

    pub(super) fn e05_one_row(b: Backend) {
        let one = view(&X[..3], 1);
        close(loss(b, &X[..3], 2), 0.407_605_95);
        let mean = ce(b).forward(one, &[2i64]).unwrap();
        same(mean as f32, loss(b, &X[..3], 2));
        assert!(ce(b).forward(one, &[-100i64]).unwrap().is_nan());
        assert_eq!(sum(b).forward(one, &[-100i64]).unwrap().to_bits(), 0);
        assert_eq!(bits(&losses(&ce(b), &X[..3], &[-100])), [0]);
    }

    pub(super) fn e06_class_weights(b: Backend) {
        let (mean, total) = (ce(b), sum(b));
        let (loss, g) =
            train(&mean.clone().class_weights(&[1.0f32, 0.0, 1.0]), &X, 2, &[1i64, 1], 1.0);
        assert!(loss.is_nan() && g.iter().all(|g| g.is_nan()));
        let (loss, g) =
            train(&total.clone().class_weights(&[1.0f32, 0.0, 1.0]), &X, 2, &[1i64, 1], 1.0);
        assert_eq!((loss.to_bits(), g), (0, vec![0.0; 6]));
        let loss = |ce: CrossEntropy, weights: [f32; 3]| {
            ce.class_weights(&weights).forward(view(&X, 2), &[0i64, 1]).unwrap()
        };
        printed(loss(mean.clone(), [1.0, -2.0, 1.0]), 4.075_017_0);
        printed(loss(total.clone(), [1.0, -2.0, 1.0]), -4.075_017_0);
        assert_eq!(loss(mean, [1.0, -1.0, 1.0]), f64::NEG_INFINITY);
        printed(loss(total, [1.0, -1.0, 1.0]), -0.833_705_4);
    }

    pub(super) fn e07_certainty_is_plus_zero(b: Backend) {
        same(loss(b, &[5.0], 0), 0.0);
        same(loss(b, &[-3e38], 0), 0.0);
        same(loss(b, &[200.0, 0.0, 0.0], 0), 0.0);
        let mut logprob = [-1.0];
        let wanted = RowOutputs::new().logprobs(&mut logprob);
        ce(b).evaluate(view(&[5.0], 1), &[0i64], wanted).unwrap();
        same(logprob[0], 0.0);

        let equal = X[..3].repeat(1000);
        let mean = ce(b).forward(view(&equal, 1000), &vec![0i64; 1000]).unwrap();
        assert!(ulp_error(loss(b, &X[..3], 0), mean) <= 0.5 + 1e-6);
    }

    pub(super) fn e08_another_number_of_targets(b: Backend) {
        for targets in [&[0i64; 0][..], &[0], &[0; 3]] {
            assert_eq!(
                ce(b).forward(view(&X, 2), targets),
                Err(Error::TargetCount { rows: 2, targets: targets.len() })
            );
        }
    }

    pub(super) fn e10_target_types(b: Backend) {
        let expected = ce(b).forward(view(&X, 2), &[0i64, 1]).unwrap();
        assert!((expected - 2.824_458_6).abs() < 1e-7);
        for got in [
            ce(b).forward(view(&X, 2), &[0i32, 1]),
            ce(b).forward(view(&X, 2), &[0u32, 1]),
            ce(b).forward(view(&X, 2), &[0usize, 1]),
        ] {
            assert_eq!(got.unwrap().to_bits(), expected.to_bits());
        }
        let ignored = ce(b).forward(view(&X, 2), &[0i32, -100]).unwrap();
        same(ignored as f32, loss(b, &X[..3], 0));
    }

    pub(super) fn e11_f32_logits(b: Backend) {
        close(ce(b).forward(view(&X, 2), &[1i64, 0]).unwrap() as f32, 1.574_458_63);
    }

    pub(super) fn e12_strides_and_alignment(b: Backend) {
        let (rows, classes) = (3, 131);
        let x = normal(rows * classes, 3.0);
        let targets = [130, 0, 64];
        let expected = losses(&ce(b), &x, &targets);
        for stride in [classes, classes + 1, classes + 2, 200] {
            for offset in 0..4 {
                let mut padded = vec![NAN; offset + rows * stride];
                for (i, row) in x.chunks(classes).enumerate() {
                    padded[offset + i * stride..][..classes].copy_from_slice(row);
                }
                let logits = Logits::with_stride(&padded[offset..], rows, classes, stride).unwrap();
                let mut got = [0.0; 3];
                ce(b).forward_into(logits, &targets, &mut got).unwrap();
                assert_eq!(bits(&got), bits(&expected), "stride {stride}, offset {offset}");
            }
        }
    }

    pub(super) fn e13_range_of_the_smoothing(b: Backend) {
        let smoothed = |e: f64| ce(b).label_smoothing(e).forward(view(&X, 2), &[0i64, 1]);
        printed(smoothed(1.0).unwrap(), 1.574_458_8);
        printed(smoothed(0.0).unwrap(), 2.824_458_6);
        // PyTorch takes the last two of these for 0.
        for (e, value) in [(1.1, "1.1"), (-0.1, "-0.1"), (f64::NAN, "NaN")] {
            let (option, value) = ("label_smoothing", value.to_owned());
            let error = Error::Option { option, value, range: "between 0 and 1" };
            assert_eq!(smoothed(e), Err(error));
        }
    }

    /// Three rows, with the class weights of the next case.
    const SMOOTHED: [f32; 9] = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0, 0.1, 0.2, 0.3];
    const WEIGHTS: [f32; 3] = [0.2, 0.5, 1.7];

    pub(super) fn e14_smoothing_weights_and_ignored_rows(b: Backend) {
        let smoothed = ce(b).label_smoothing(0.1);
        let weighted = smoothed.clone().class_weights(&WEIGHTS);
        for (ce, mean, total, ignored_mean, ignored_total) in [
            (smoothed, 1.266_953_370_6, 3.800_860_1, 1.349_458_630_8, 2.698_917_2),
            (weighted.clone(), 0.634_799_348_6, 1.523_518_5, 0.497_099_332_3, 0.944_488_8),
        ] {
            let targets = [0, 2, 1];
            let some = ce.clone().ignore_index(1);
            printed(ce.forward(view(&SMOOTHED, 3), &targets).unwrap(), mean);
            printed(some.forward(view(&SMOOTHED, 3), &targets).unwrap(), ignored_mean);
            let (ce, some) = (ce.reduction(Reduction::Sum), some.reduction(Reduction::Sum));
            printed(ce.forward(view(&SMOOTHED, 3), &targets).unwrap(), total);
            printed(some.forward(view(&SMOOTHED, 3), &targets).unwrap(), ignored_total);
        }
        let rows = losses(&weighted, &SMOOTHED, &[0, 2, 1]);
        all_printed(&rows, &[0.495_977_6, 0.448_511_2, 0.579_029_7]);
    }

    pub(super) fn e15_smoothing_of_nothing(b: Backend) {
        let smoothed = ce(b).label_smoothing(0.1);
        for ce in [smoothed.clone(), smoothed.class_weights(&WEIGHTS)] {
            let (mean, g) = train(&ce, &X, 2, &[-100i64; 2], 1.0);
            assert!(mean.is_nan());
            assert_eq!(bits(&g), [0; 6]);
            let (total, g) = train(&ce.reduction(Reduction::Sum), &X, 2, &[-100i64; 2], 1.0);
            assert_eq!((total.to_bits(), bits(&g)), (0, vec![0; 6]));
        }
    }

    pub(super) fn e16_smoothing_over_a_mask(b: Backend) {
        let x = [1.0, 2.0, MIN];
        let smoothed = ce(b).label_smoothing(0.1);
        let (loss, g) = train(&smoothed, &x, 1, &[0i64], 1.0);
        assert_eq!(loss, f64::INFINITY);
        all_printed(&g, &[-0.664_391_9, 0.697_725_2, -0.033_333_3]);
        // 0 times infinity.
        let (loss, g) = train(&smoothed.class_weights(&[1.0f32, 1.0, 0.0]), &x, 1, &[0i64], 1.0);
        assert!(loss.is_nan());
        all_printed(&g, &[-0.673_356_6, 0.673_356_7, 0.0]);
        // Far apart, but no mask: what is summed is beyond f32, the loss is not.
        let far = [f32::MIN, 0.0, 0.0];
        let smoothed = ce(b).label_smoothing(0.1);
        for (x, target) in [(far, 0), (far, 1), ([0.0, f32::MIN, f32::MIN], 0)] {
            let options = Options { label_smoothing: 0.1, ..Options::default() };
            let exact = reference::loss(&x, Target::Class(target), &options).cross_entropy;
            let got = smoothed.forward(view(&x, 1), &[target]).unwrap();
            assert!((got / exact - 1.0).abs() < 1e-7, "{x:?}: {got:e} for {exact:e}");
        }
    }

    pub(super) fn e17_nan_in_an_ignored_row(b: Backend) {
        let clean = [&X[..3], &[0.0; 3]].concat();
        for bad in [[NAN; 3], [INF; 3], [MIN; 3], [NAN, INF, MIN]] {
            let x = [&X[..3], &bad].concat();
            let results = [&x, &clean].map(|x| {
                let (mut losses, mut logprobs) = ([-1.0; 2], [-1.0; 2]);
                let (mut lse, mut argmax) = ([-1.0; 2], [-2; 2]);
                let wanted = RowOutputs::new()
                    .losses(&mut losses)
                    .logprobs(&mut logprobs)
                    .logsumexp(&mut lse)
                    .argmax(&mut argmax);
                let e = ce(b).evaluate(view(x, 2), &[1i64, -100], wanted).unwrap();
                same(losses[1], 0.0);
                same(logprobs[1], 0.0);
                same(lse[1], 0.0);
                assert_eq!((argmax[1], e.count(), e.ignored()), (-1, 1, 1));
                // PyTorch: NaN.
                let (_, g) = train(&ce(b).label_smoothing(0.1), x, 2, &[0i64, -100], 1.0);
                all_printed(&g[..3], &[-0.843_302_8, 0.211_395_2, 0.631_907_6]);
                assert_eq!(bits(&g[3..]), [0; 3]);
                (e, losses, logprobs, lse, argmax)
            });
            assert_eq!(results[0], results[1]);
        }
    }

    pub(super) fn e18_probability_targets(b: Backend) {
        let probs = [0.2f32, 0.3, 0.5, 1.0, 0.0, 0.0];
        let loss = |ce: CrossEntropy| ce.forward(view(&X, 2), Targets::probs(&probs));
        printed(loss(ce(b)).unwrap(), 1.424_458_6);
        // Divided by the number of rows, whatever the weights.
        printed(loss(ce(b).class_weights(&WEIGHTS)).unwrap(), 0.501_086_2);
        printed(loss(ce(b).label_smoothing(0.1)).unwrap(), 1.439_458_6);
        let error = Error::IgnoreIndexWithProbs { ignore_index: 1 };
        assert_eq!(loss(ce(b).ignore_index(1)), Err(error));
        printed(loss(ce(b).no_ignore_index()).unwrap(), 1.424_458_6);
        // PyTorch converts them; here it would cost a pass that nobody sees.
        let probs = probs.map(f64::from);
        assert_eq!(
            ce(b).forward(view(&X, 2), Targets::probs(&probs)),
            Err(Error::Precision { what: "target probabilities", needed: "f32", given: "f64" })
        );
    }

    pub(super) fn e19_probability_0_of_a_masked_class(b: Backend) {
        // PyTorch: NaN.
        let probs = [0.5f32, 0.5, 0.0];
        let (loss, g) = train(&ce(b), &[1.0, 2.0, MIN], 1, Targets::probs(&probs), 1.0);
        printed(loss, 0.813_261_7);
        all_printed(&g, &[-0.231_058_6, 0.231_058_6, 0.0]);
        let probs = [0.5f32, 0.25, 0.25];
        let (loss, g) = train(&ce(b), &[1.0, 2.0, MIN], 1, Targets::probs(&probs), 1.0);
        assert_eq!(loss, f64::INFINITY);
        all_printed(&g, &[-0.231_058_6, 0.481_058_6, -0.25]);
    }

    pub(super) fn e20_probabilities_of_any_sum(b: Backend) {
        let probs = [2.0f32, 0.0, 0.0, 0.0, 0.0, 0.0];
        let (loss, g) = train(&sum(b), &X, 2, Targets::probs(&probs), 1.0);
        printed(loss, 4.815_211_8);
        all_printed(&g, &[-1.819_938_9, 0.489_457_0, 1.330_482_1, 0.0, 0.0, 0.0]);
        let none: &[f32] = &[];
        for classes in [3, 0] {
            let empty = Logits::<f32>::new(&[], 0, classes).unwrap();
            assert!(ce(b).forward(empty, Targets::probs(none)).unwrap().is_nan());
            // PyTorch: -0.
            assert_eq!(sum(b).forward(empty, Targets::probs(none)).unwrap().to_bits(), 0);
        }
        let no_classes = Logits::<f32>::new(&[], 2, 0).unwrap();
        assert_eq!(
            ce(b).forward(no_classes, Targets::probs(none)),
            Err(Error::NoClasses { rows: 2 })
        );
    }

    pub(super) fn e21_masked_classes(b: Backend) {
        let x = [1.0, 2.0, MIN];
        close(loss(b, &x, 0), 1.313_261_6);
        same(loss(b, &x, 2), INF);
        same(loss(b, &[1.0, MIN, MIN], 0), 0.0);
        assert_eq!(ce(b).forward(view(&x, 1), &[2i64]).unwrap(), f64::INFINITY);
        let (_, g) = train(&ce(b), &x, 1, &[0i64], 1.0);
        all_printed(&g, &[-0.731_058_6, 0.731_058_6, 0.0]);
        let (_, g) = train(&ce(b), &x, 1, &[2i64], 1.0);
        all_printed(&g, &[0.268_941_4, 0.731_058_6, -1.0]);
        let (_, g) = train(&ce(b), &[1.0, MIN, MIN], 1, &[0i64], 1.0);
        assert_eq!(g, [0.0; 3]);
    }

    pub(super) fn e22_nothing_but_masks_infinity_and_nan(b: Backend) {
        for target in 0..3 {
            same(loss(b, &[MIN; 3], target), NAN);
            let nan = |x: [f32; 3]| {
                let (loss, g) = train(&ce(b), &x, 1, &[target], 1.0);
                assert!(loss.is_nan() && g.iter().all(|g| g.is_nan()), "{x:?}: {loss}, {g:?}");
            };
            nan([MIN; 3]);
            for bad in [INF, NAN] {
                for at in 0..3 {
                    let mut x = [1.0, 2.0, 3.0];
                    x[at] = bad;
                    nan(x);
                    same(loss(b, &x, target), NAN);
                    x = [MIN; 3];
                    x[at] = bad;
                    same(loss(b, &x, target), NAN);
                }
            }
        }
        let x = [&X[..3], &[1.0, NAN, 2.0]].concat();
        let got = losses(&ce(b), &x, &[0, 0]);
        close(got[0], LOSSES[0]);
        same(got[1], NAN);
        assert!(ce(b).forward(view(&x, 2), &[0i64, 0]).unwrap().is_nan());

        let x = [&X[..3], &[MIN; 3]].concat();
        let got = ce(b).forward(view(&x, 2), &[0i64, -100]).unwrap();
        close(got as f32, LOSSES[0]);
    }

    pub(super) fn e23_weight_0_of_a_masked_target(b: Backend) {
        let weighted = ce(b).class_weights(&[1.0f32, 1.0, 0.0]);
        let (loss, g) = train(&weighted, &[1.0, 2.0, MIN], 1, &[2i64], 1.0);
        assert!(loss.is_nan() && g.iter().all(|g| g.is_nan()));
        let total = weighted.reduction(Reduction::Sum);
        let (loss, g) = train(&total, &[1.0, 2.0, MIN], 1, &[2i64], 1.0);
        assert!(loss.is_nan());
        assert_eq!(g, [0.0; 3]);
    }

    pub(super) fn e24_extremes_of_f32(b: Backend) {
        let far = [3e38, -3e38];
        same(loss(b, &far, 1), INF);
        // The row overflows f32; the sum is f64 and does not.
        assert!((sum(b).forward(view(&far, 1), &[1i64]).unwrap() / 6e38 - 1.0).abs() < 1e-7);
        same(loss(b, &far, 0), 0.0);
        assert_eq!(train(&ce(b), &far, 1, &[1i64], 1.0).1, [1.0, -1.0]);
        assert_eq!(train(&ce(b), &far, 1, &[0i64], 1.0).1, [0.0, 0.0]);
        for x in [f32::MAX, -f32::MAX] {
            for target in 0..4 {
                close(loss(b, &[x; 4], target), 1.386_294_36);
                let mut expected = [0.25; 4];
                expected[target] = -0.75;
                assert_eq!(train(&ce(b), &[x; 4], 1, &[target], 1.0).1, expected);
            }
        }
        same(loss(b, &[1.0, -1e9, -1e9], 1), 1e9);
        same(loss(b, &[1.0, -f32::MAX], 1), f32::MAX);
        same(loss(b, &[0.0, -100.0], 1), 100.0);
    }

    pub(super) fn e25_confident_rows(b: Backend) {
        // PyTorch's f32: 4.5417706e-5, 1.1920929e-7 and 0.
        for (gap, exact) in [(10.0, 4.539_889_9e-5), (16.0, 1.125_351_7e-7), (20.0, 2.061_153_6e-9)]
        {
            let got = loss(b, &[gap, 0.0], 0);
            assert!(
                ulp_error(got, f64::exp(-f64::from(gap)).ln_1p()) <= 2.0 * f64::from(LOSS_MAX_ULP)
            );
            assert!((f64::from(got) / exact - 1.0).abs() < 2e-7, "{got:e}");
        }
    }

    pub(super) fn e26_large_offsets(b: Backend) {
        let x = normal(50_257, 5.0);
        for offset in [0.0, 1e4, 1e6, -1e6, 1e30] {
            let x: Vec<f32> = x.iter().map(|x| x + offset).collect();
            let exact = reference::log_softmax(&x);
            for target in [0, 777, 50_256] {
                let error = ulp_error(loss(b, &x, target), -exact[target]);
                assert!(error <= f64::from(LOSS_MAX_ULP), "offset {offset:e}: {error} ULP");
            }
        }
    }

    pub(super) fn e27_uniform_rows(b: Backend) {
        // PyTorch's f32: 11.9312143.
        let x = vec![0.0; 151_936];
        let got = loss(b, &x, 151_935);
        assert!(ulp_error(got, f64::from(151_936).ln()) <= f64::from(LOSS_MAX_ULP), "{got}");
    }

    pub(super) fn e28_many_rows(b: Backend) {
        // PyTorch's f32 mean: 1.0986120, 2.4e-7 off.
        let n = 100_000;
        let zeros = vec![0.0; 3 * n];
        let (targets, exact) = (vec![0i64; n], 3f64.ln());
        // Half an ULP of f32 is 6e-8 here; nothing is lost on top of the error of one row.
        let row = loss(b, &zeros[..3], 0);
        assert!(ulp_error(row, exact) <= f64::from(LOSS_MAX_ULP));
        let mean = ce(b).forward(view(&zeros, n), &targets).unwrap();
        assert!((mean - exact).abs() <= 6e-8, "{mean}");
        let total = sum(b).forward(view(&zeros, n), &targets).unwrap();
        assert!((total / n as f64 - mean).abs() <= 1e-15 * mean, "{total}");

        // The scalar backend calls a function per multiply-add: fewer rows there.
        let n = if b == Backend::Scalar || common::thin() > 1 { 1 << 15 } else { 1 << 21 };
        let mean = ce(b).forward(view(&vec![0.0; 2 * n], n), &vec![0i64; n]).unwrap();
        assert!((mean - std::f64::consts::LN_2).abs() <= 3e-8, "{mean}");
    }

    pub(super) fn e29_alone_and_in_a_batch(b: Backend) {
        let (rows, classes) = (4, 50_257);
        let x = normal(rows * classes, 2.0);
        let targets = [0, 50_256, 31_000, 1_024];
        let batch = losses(&ce(b), &x, &targets);
        for (i, row) in x.chunks(classes).enumerate() {
            same(loss(b, row, targets[i] as usize), batch[i]);
        }
    }

    pub(super) fn e30_gradient_of_a_large_vocabulary(b: Backend) {
        // PyTorch's f32: up to 1.9e-6 off, and the sum of the row 2.6e-6 from 0.
        let x = normal(50_257, 5.0);
        let (_, g) = train(&ce(b), &x, 1, &[777i64], 1.0);
        let exact = reference::gradient(&x, Target::Class(777), &Options::default(), [1.0; 2]);
        for (&g, exact) in g.iter().zip(exact) {
            let error = (f64::from(g) - exact).abs();
            assert!(error <= 2.5e-7 * exact.abs() + 1e-37, "{g:e} for {exact:e}");
        }
        let total: f64 = g.iter().map(|&g| f64::from(g)).sum();
        assert!(total.abs() < 1e-7, "{total:e}");
    }

    pub(super) fn e31_upstream_gradients(b: Backend) {
        let doubled = [-1.819_938_9, 0.489_457_0, 1.330_482_1];
        all_printed(&train(&ce(b), &X[..3], 1, &[0i64], 2.0).1, &doubled);
        let (_, g) = train(&ce(b), &X, 2, &[-100i64, 0], f64::INFINITY);
        assert_eq!(bits(&g[..3]), [0; 3]);
        // PyTorch: NaN at the target, from the difference of two infinities.
        assert_eq!(g[3..], [MIN, INF, INF]);
        let (_, g) = train(&ce(b), &X, 2, &[-100i64, 0], f64::NAN);
        assert_eq!(bits(&g[..3]), [0; 3]);
        assert!(g[3..].iter().all(|g| g.is_nan()));

        let x = [&X[..3], &[1.0, NAN, 2.0]].concat();
        let (_, g) = train(&sum(b), &x, 2, &[0i64, 0], Upstream::rows(&[2.0f32, 0.0]));
        all_printed(&g[..3], &doubled);
        // PyTorch: NaN.
        assert_eq!(bits(&g[3..]), [0; 3]);
        let upstream = [f64::NAN, 2.0];
        let (_, g) =
            train(&sum(b), &X.map(|x| x + 1.0), 2, &[-100i64, 0], Upstream::rows(&upstream));
        assert_eq!(bits(&g[..3]), [0; 3]);
        assert!(g[3..].iter().all(|g| g.is_finite()));
    }

    pub(super) fn e32_softmax_log_softmax_logsumexp(b: Backend) {
        let softmax = Softmax::new().backend(b);
        let both = |x: &[f32]| {
            let (mut p, mut log_p) = (vec![-1.0; x.len()], vec![-1.0; x.len()]);
            softmax.softmax(view(x, 1), &mut p).unwrap();
            softmax.log_softmax(view(x, 1), &mut log_p).unwrap();
            let (mut p_in_place, mut log_p_in_place) = (x.to_vec(), x.to_vec());
            let logits = LogitsMut::new(&mut p_in_place, 1, x.len()).unwrap();
            softmax.softmax_in_place(logits).unwrap();
            let logits = LogitsMut::new(&mut log_p_in_place, 1, x.len()).unwrap();
            softmax.log_softmax_in_place(logits).unwrap();
            for i in 0..x.len() {
                same(p_in_place[i], p[i]);
                same(log_p_in_place[i], log_p[i]);
            }
            (p, log_p)
        };
        for x in [[MIN, MIN], [INF, 1.0], [1.0, INF], [INF, INF], [NAN, 1.0], [MIN, NAN]] {
            let (p, log_p) = both(&x);
            p.iter().chain(&log_p).for_each(|&p| same(p, NAN));
        }
        let (p, log_p) = both(&[MIN, 1.0]);
        assert_eq!((bits(&p), bits(&log_p)), (bits(&[0.0, 1.0]), bits(&[MIN, 0.0])));

        let logsumexp = |x: &[f32]| {
            let mut out = [-1.0];
            softmax.logsumexp(view(x, 1), &mut out).unwrap();
            out[0]
        };
        same(logsumexp(&[MIN, MIN]), MIN);
        same(logsumexp(&[INF, 1.0]), INF);
        same(logsumexp(&[INF, INF]), INF);
        same(logsumexp(&[INF, MIN]), INF);
        same(logsumexp(&[NAN, 1.0]), NAN);
        same(logsumexp(&[INF, NAN]), NAN);
        same(logsumexp(&[]), MIN);
        same(logsumexp(&[0.0, 0.0]), LN_2);
    }

    pub(super) fn e33_argmax(b: Backend) {
        let check = |x: &[f32], expected: i64| {
            for target in 0..x.len() {
                let mut argmax = [-2];
                let wanted = RowOutputs::new().argmax(&mut argmax);
                let e = ce(b).evaluate(view(x, 1), &[target], wanted).unwrap();
                assert_eq!(argmax[0], expected, "{x:?}, target {target}");
                // PyTorch's argmax knows no distribution; a row without one is never correct.
                let right = target as i64 == expected && !e.loss().is_nan();
                assert_eq!(e.correct(), Some(u64::from(right)));
            }
        };
        check(&[1.0, 3.0, 3.0, 2.0], 1);
        check(&[1.0, NAN, 3.0, NAN], 1);
        check(&[INF, NAN], 1);
        check(&[-0.0, 0.0], 0);
        check(&[0.0, -0.0], 0);
        check(&[MIN; 3], 0);
        check(&[MIN, INF, INF], 1);
        // Ties across vectors, blocks and chunks.
        let mut long = vec![0.0; 3000];
        (long[2999], long[1500], long[1023]) = (1.0, 1.0, 1.0);
        for target in [0, 1023, 1500, 2999] {
            let mut argmax = [-2];
            let wanted = RowOutputs::new().argmax(&mut argmax);
            ce(b).evaluate(view(&long, 1), &[target], wanted).unwrap();
            assert_eq!(argmax, [1023]);
        }
        assert!(ce(b).evaluate(view(&[], 1), &[0usize], RowOutputs::new()).is_err());
    }

    pub(super) fn e39_everything_at_once(b: Backend) {
        let (classes, kept) = (131, 4);
        let x = normal(6 * classes, 9.0);
        let weights: Vec<f32> = (0..classes).map(|j| (j % 7) as f32 * 0.3).collect();
        let weights_f64: Vec<f64> = weights.iter().map(|&w| w.into()).collect();
        let targets = [130i64, -100, 5, 64, -100, 3];
        let options = Options {
            label_smoothing: 0.1,
            class_weights: Some(&weights_f64),
            z_loss: 1e-2,
            softcap: Some(30.0),
            ..Options::default()
        };
        let ce = ce(b).label_smoothing(0.1).class_weights(&weights).z_loss(1e-2).softcap(30.0);
        let (loss, g) = train(&ce, &x, 6, &targets, 1.0);
        let rows = || x.chunks(classes).zip(targets).filter(|(_, t)| *t >= 0);
        let weight: f64 = rows().map(|(_, t)| weights_f64[t as usize]).sum();
        let each = rows().map(|(row, t)| reference::loss(row, Target::Class(t as usize), &options));
        let parts = each.map(|loss| loss.cross_entropy / weight + loss.z_loss / f64::from(kept));
        printed(loss, parts.sum());
        let upstream = [1.0 / weight, 1.0 / f64::from(kept)];
        for ((row, target), g) in x.chunks(classes).zip(targets).zip(g.chunks(classes)) {
            if target < 0 {
                assert!(bits(g).iter().all(|&g| g == 0));
                continue;
            }
            let exact =
                reference::gradient(row, Target::Class(target as usize), &options, upstream);
            for (&g, exact) in g.iter().zip(exact) {
                assert!((f64::from(g) - exact).abs() <= 2e-7, "{g:e} for {exact:e}");
            }
        }
    }

    pub(super) fn e40_softcap_of_any_number_of_classes(b: Backend) {
        for classes in (1..=70).chain([127, 128, 129, 1023, 1024, 1025]) {
            let x = normal(classes, 3.0);
            let capped: Vec<f32> = x.iter().map(|&x| f64::from(x).tanh() as f32).collect();
            for target in [0, classes / 2, classes - 1] {
                let exact = ce(b).forward(view(&capped, 1), &[target]).unwrap();
                for ce in [ce(b).softcap(1.0), ce(b).softcap_of_all(1.0)] {
                    let got = ce.forward(view(&x, 1), &[target]).unwrap();
                    assert!((got - exact).abs() <= 1e-6, "{classes} classes: {got} for {exact}");
                }
            }
        }
        let masked = [1.0, 2.0, MIN];
        let kept = ce(b).softcap(5.0);
        printed(kept.forward(view(&masked, 1), &[0i64]).unwrap(), 1.250_319_6);
        assert_eq!(train(&kept, &masked, 1, &[0i64], 1.0).1[2], 0.0);
        assert!(kept.forward(view(&[1.0, INF, 2.0], 1), &[0i64]).unwrap().is_nan());
        let of_all = ce(b).softcap_of_all(5.0);
        printed(of_all.forward(view(&masked, 1), &[0i64]).unwrap(), 1.251_038_6);
        let infinite = of_all.forward(view(&[1.0, INF, 2.0], 1), &[0i64]).unwrap();
        let composed = [f64::tanh(0.2), 1.0, f64::tanh(0.4)].map(|x| 5.0 * x);
        printed(infinite, reference::row(&composed, 0).loss);
        assert!(of_all.forward(view(&[1.0, NAN, 2.0], 1), &[0i64]).unwrap().is_nan());
    }

    pub(super) fn e41_masks_of_any_shape(b: Backend) {
        let row = [vec![MIN; 2 * 1024], vec![1.0, 2.0]].concat();
        for masked in 0..=2 * 1024 {
            let x = &row[2 * 1024 - masked..];
            close(loss(b, x, masked), 1.313_261_6);
            same(loss(b, &x[..masked + 1], masked), 0.0);
        }
        // Every lane, alone with every other.
        for i in 0..70 {
            for j in (0..70).filter(|&j| j != i) {
                let mut x = [MIN; 70];
                (x[i], x[j]) = (1.0, 2.0);
                close(loss(b, &x, i), 1.313_261_6);
                let (capped, g) = train(&ce(b).softcap(100.0), &x, 1, &[i], 1.0);
                assert!((capped - 1.313_091_1).abs() < 1e-6, "{capped}");
                let others = g.iter().enumerate().filter(|(k, _)| ![i, j].contains(k));
                assert!(others.into_iter().all(|(_, &g)| g == 0.0), "{g:?}");
                all_printed(&[g[i], g[j]], &[-0.730_939_7, 0.730_720_4]);
            }
        }
    }

    pub(super) fn e42_logits_are_never_written(b: Backend) {
        let mut x = normal(4 * 1500, 3.0);
        (x[10], x[20], x[1510], x[3010]) = (NAN, -NAN, INF, MIN);
        let before = bits(&x);
        let logits = view(&x, 4);
        let targets = [0i64, 1499, -100, 7];
        ce(b).forward(logits, &targets).unwrap();
        ce(b).forward_into(logits, &targets, &mut [0.0; 4]).unwrap();
        let (mut argmax, mut out) = ([0; 4], vec![0.0; x.len()]);
        ce(b).evaluate(logits, &targets, RowOutputs::new().argmax(&mut argmax)).unwrap();
        Softmax::new().backend(b).softmax(logits, &mut out).unwrap();
        Softmax::new().backend(b).log_softmax(logits, &mut out).unwrap();
        Softmax::new().backend(b).logsumexp(logits, &mut [0.0; 4]).unwrap();
        let to = Gradient::new(LogitsMut::new(&mut out, 4, 1500).unwrap());
        ce(b).forward_backward(logits, &targets, to, RowOutputs::new()).unwrap();
        assert_eq!(bits(&x), before);
    }

    pub(super) fn e43_weights_of_inf_and_nan(b: Backend) {
        let one = view(&X[..3], 1);
        let infinite = ce(b).class_weights(&[INF, 1.0, 1.0]);
        assert!(infinite.forward(one, &[0i64]).unwrap().is_nan());
        let nan = ce(b).class_weights(&[1.0, NAN, 1.0]);
        printed(nan.forward(one, &[0i64]).unwrap(), 2.407_605_9);
        all_printed(
            &train(&nan, &X[..3], 1, &[0i64], 1.0).1,
            &[-0.909_969_4, 0.244_728_5, 0.665_240_9],
        );
        let smoothed = nan.label_smoothing(0.1);
        assert!(smoothed.forward(one, &[0i64]).unwrap().is_nan());
    }

    pub(super) fn e45_any_number_of_classes(b: Backend) {
        let sizes = [
            1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 127, 129, 32_000, 32_001, 50_257, 128_256,
            151_936, 262_144,
        ];
        for classes in sizes {
            let x = normal(classes, 1.0);
            let exact = reference::logsumexp(&x);
            let bound =
                if classes < 32 { 2.0 * f64::from(LOSS_MAX_ULP) } else { f64::from(LOSS_MAX_ULP) };
            let ends = (0..17).chain(classes.saturating_sub(17)..classes);
            for target in ends.chain([classes / 2]).filter(|&t| t < classes) {
                let exact = if classes < 32 {
                    reference::row(&x, target).loss
                } else {
                    exact - f64::from(x[target])
                };
                let error = ulp_error(loss(b, &x, target), exact);
                assert!(error <= bound, "{classes} classes, target {target}: {error} ULP");
            }
        }
    }

    pub(super) fn e46_threads(b: Backend) {
        let (rows, classes) = (40, 5_003);
        let x = normal(rows * classes, 4.0);
        let targets: Vec<i64> = (0..rows as i64).map(|i| i * 125).collect();
        let run = || {
            let mut losses = vec![0.0; rows];
            let wanted = RowOutputs::new().losses(&mut losses).count_correct();
            let e = ce(b).evaluate(view(&x, rows), &targets, wanted).unwrap();
            let mut p = x.clone();
            let logits = LogitsMut::new(&mut p, rows, classes).unwrap();
            Softmax::new().backend(b).softmax_in_place(logits).unwrap();
            (e.loss().to_bits(), e.stderr().to_bits(), bits(&losses), bits(&p))
        };
        let expected = run();
        for threads in 1..=8 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(run) == expected, "{threads} threads");
        }
    }

    pub(super) fn e50_perplexity(b: Backend) {
        let evaluate = |x: &[f32], targets: &[i64]| {
            ce(b).evaluate(view(x, targets.len()), targets, RowOutputs::new()).unwrap()
        };
        let none = evaluate(&X, &[-100, -100]);
        assert!(none.perplexity().is_nan() && none.stderr().is_nan());
        assert_eq!((none.count(), none.sum().to_bits()), (0, 0));

        let one = evaluate(&X, &[0, -100]);
        assert!((one.perplexity() / LOSSES[0].exp() - 1.0).abs() < 3e-7);
        assert!(one.stderr().is_nan() && one.perplexity_stderr().is_nan());

        let equal = evaluate(&X[..3].repeat(5), &[0; 5]);
        assert_eq!((equal.stderr(), equal.perplexity_stderr()), (0.0, 0.0));

        let two = evaluate(&X, &[0, 1]);
        let spread = (LOSSES[1] - LOSSES[0]) / 2.0;
        assert!((two.stderr() / spread - 1.0).abs() < 1e-6);
        assert!((two.bits_per_token() / (two.mean() / std::f64::consts::LN_2) - 1.0).abs() < 1e-15);

        let infinite = evaluate(&[1.0, 2.0, MIN, 1.0, 2.0, 3.0], &[2, 0]);
        assert_eq!((infinite.perplexity(), infinite.count()), (f64::INFINITY, 2));
        let nan = evaluate(&[1.0, 2.0, NAN, 1.0, 2.0, 3.0], &[2, 0]);
        assert!(nan.perplexity().is_nan());
        assert_eq!(nan.count(), 2);
    }
}

/// A type of logits, of numbers that all of them hold.
trait Number: Element {
    fn of(x: f32) -> Self;
}

macro_rules! numbers {
    ($($type:ty: $of:expr;)*) => {$(
        impl Number for $type {
            fn of(x: f32) -> Self {
                $of(x)
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

/// Rows of two classes and their targets. The argmax is the target of all but the last, and all but two of them have
/// no distribution, so that nothing can be right about them.
const WITHOUT: [([f32; 2], usize); 8] = [
    ([0.0, 1.0], 1),
    ([NAN, 1.0], 0),
    ([0.0, INF], 1),
    ([MIN, MIN], 0),
    ([1.0, NAN], 1),
    ([INF, INF], 0),
    ([NAN, INF], 0),
    ([1.0, 0.0], 1),
];

fn rows_without_a_distribution_are_never_right<T: Number>(backend: Backend) {
    let x: Vec<T> = WITHOUT.iter().flat_map(|(x, _)| x.map(T::of)).collect();
    let targets = WITHOUT.map(|(_, target)| target as i64);
    let logits = Logits::new(&x, 8, 2).unwrap();
    let ones = [1.0_f32; 8];
    let plain = CrossEntropy::new().backend(backend);
    // Each is a kernel of its own, or another way through one.
    for ce in [
        plain.clone(),
        plain.clone().token_weights(&ones),
        plain.clone().z_loss(0.1),
        plain.clone().temperature(2.0),
        plain.clone().softcap(30.0),
        plain.clone().allowed_tokens(AllowedTokens::new(&[0b11; 8])),
    ] {
        let check = |e: &Evaluation| {
            assert_eq!((e.correct(), e.accuracy(), e.count()), (Some(1), Some(0.125), 8));
            assert_eq!((e.nan_rows(), e.first_nan_row()), (6, Some(1)));
            assert!(e.loss().is_nan() && e.perplexity().is_nan() && e.stderr().is_nan());
        };
        // The argmax itself is that of PyTorch.
        let mut argmax = [-2; 8];
        let e = ce.evaluate(logits, &targets, RowOutputs::new().argmax(&mut argmax)).unwrap();
        check(&e);
        assert_eq!(argmax, [1, 0, 1, 0, 1, 0, 0, 0]);
        let counted = || RowOutputs::new().count_correct();
        check(&ce.evaluate(logits, &targets, counted()).unwrap());
        let mut g = x.clone();
        let to = LogitsMut::new(&mut g, 8, 2).unwrap();
        check(&ce.forward_backward_in_place(to, &targets, 1.0, counted()).unwrap());
        for (i, score) in ce
            .score_sequences(logits, &targets, &[0, 1, 2, 3, 4, 5, 6, 7, 8])
            .unwrap()
            .iter()
            .enumerate()
        {
            assert_eq!(score.is_greedy(), i == 0, "row {i}");
        }
        // Numbered through batches, ignored rows included.
        let mut ignored = targets;
        ignored[1] = -100;
        let batch = |range: std::ops::Range<usize>| {
            let logits = Logits::new(&x[2 * range.start..2 * range.end], range.len(), 2).unwrap();
            let one = plain.clone();
            one.evaluate(logits, &ignored[range], counted()).unwrap()
        };
        let e = batch(0..2).merge(&batch(2..2)).merge(&batch(2..3)).merge(&batch(3..8));
        assert_eq!((e.nan_rows(), e.first_nan_row()), (5, Some(2)));
        assert_eq!((e.correct(), e.count(), e.ignored()), (Some(1), 7, 1));
        let good = batch(0..1);
        assert_eq!((good.nan_rows(), good.first_nan_row()), (0, None));
    }
    // Without any class that may be.
    let masked = plain.clone().allowed_tokens(AllowedTokens::new(&[0]).stride(0));
    let two = Logits::new(&x[..2], 1, 2).unwrap();
    let e = masked.evaluate(two, &[0i64], RowOutputs::new().count_correct()).unwrap();
    assert_eq!((e.correct(), e.first_nan_row()), (Some(0), Some(0)));
    assert!(!masked.score_sequences(two, &[0i64], &[0, 1]).unwrap()[0].is_greedy());
    // What is masked is no NaN.
    let first = plain.clone().allowed_tokens(AllowedTokens::new(&[0b10]));
    let e = first.evaluate(
        Logits::new(&x[2..4], 1, 2).unwrap(),
        &[1i64],
        RowOutputs::new().count_correct(),
    );
    let e = e.unwrap();
    assert_eq!((e.correct(), e.nan_rows()), (Some(1), 0));
    // A cap that leaves no infinity leaves a distribution.
    let capped = plain.clone().softcap_of_all(5.0);
    let e = capped.evaluate(
        Logits::new(&x[4..6], 1, 2).unwrap(),
        &[1i64],
        RowOutputs::new().count_correct(),
    );
    assert_eq!((e.clone().unwrap().correct(), e.unwrap().nan_rows()), (Some(1), 0));
    // A masked target has a loss, an infinite one.
    let masked = [T::of(MIN), T::of(0.0)];
    let e = plain.evaluate(
        Logits::new(&masked, 1, 2).unwrap(),
        &[0i64],
        RowOutputs::new().count_correct(),
    );
    assert_eq!((e.clone().unwrap().correct(), e.unwrap().nan_rows()), (Some(0), 0));
    // Long rows, of more than a chunk.
    for (bad, at) in [(NAN, 0), (NAN, 40_000), (INF, 69_999), (MIN, 0)] {
        let mut row = vec![T::of(if bad == MIN { MIN } else { 0.0 }); 70_000];
        row[at] = T::of(bad);
        let e = plain.evaluate(
            Logits::new(&row, 1, 70_000).unwrap(),
            &[at],
            RowOutputs::new().count_correct(),
        );
        let e = e.unwrap();
        assert_eq!((e.correct(), e.nan_rows()), (Some(0), 1), "{bad} at {at}");
    }
}

#[test]
fn what_has_no_distribution_is_never_right() {
    for &backend in Backend::available() {
        rows_without_a_distribution_are_never_right::<f32>(backend);
        rows_without_a_distribution_are_never_right::<f64>(backend);
        rows_without_a_distribution_are_never_right::<bf16>(backend);
        rows_without_a_distribution_are_never_right::<f16>(backend);

        // Targets that are probabilities.
        let x: Vec<f32> = WITHOUT.iter().flat_map(|(x, _)| *x).collect();
        let one_hot = WITHOUT.map(|(_, target)| [1.0 - target as f32, target as f32]);
        let counted = RowOutputs::new().count_correct();
        let probs = Targets::probs(one_hot.as_flattened());
        let e = ce(backend).evaluate(view(&x, 8), probs, counted).unwrap();
        assert_eq!((e.correct(), e.nan_rows(), e.first_nan_row()), (Some(1), 6, Some(1)));
        // NaN among these makes a row that has no loss.
        let counted = RowOutputs::new().count_correct();
        let e = ce(backend).evaluate(view(&[1.0, 0.0], 1), Targets::probs(&[NAN, 0.0]), counted);
        let e = e.unwrap();
        assert_eq!((e.correct(), e.nan_rows()), (Some(0), 1));
        // A loss that options make NaN is one of a row that may well be right.
        let counted = RowOutputs::new().count_correct();
        let weighted = ce(backend).class_weights(&[NAN, 1.0]);
        let e = weighted.evaluate(view(&[1.0, 0.0], 1), &[0i64], counted).unwrap();
        assert_eq!((e.correct(), e.nan_rows()), (Some(1), 1));
        // Shards.
        let targets = WITHOUT.map(|(_, target)| target as i64);
        let shard = ce(backend).shard(Shard::new(0, 2));
        let mut stats = [LossStats::default(); 8];
        shard.stats(view(&x, 8), &targets, &mut stats).unwrap();
        let e = shard.evaluate(&stats, &targets, RowOutputs::new()).unwrap();
        assert_eq!((e.correct(), e.nan_rows(), e.first_nan_row()), (None, 6, Some(1)));
    }
}
