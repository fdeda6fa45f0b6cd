//! What a caller can get wrong: the exact error, its text, and that no output was touched.

use super::common;
use std::fmt::Debug;
use xent::{
    Backend, CrossEntropy, Error, Gradient, LogSumExp, Logits, LogitsMut, Reduction, RowOutputs,
    Softmax, SparseProbs, Targets, Upstream,
};

#[track_caller]
fn fails<T: Debug>(result: Result<T, Error>, expected: Error, text: &str) {
    assert_eq!(result.unwrap_err(), expected);
    assert_eq!(expected.to_string(), text);
}

/// Two rows of three classes.
const X: [f32; 6] = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0];

fn two_rows() -> Logits<'static> {
    Logits::new(&X, 2, 3).unwrap()
}

#[test]
fn length() {
    for (len, rows, vocab, text) in [
        (5, 2, 3, "2 rows of 3 need 6 elements, but the slice has 5"),
        (7, 2, 3, "2 rows of 3 need 6 elements, but the slice has 7"),
        (0, 1, 1, "1 rows of 1 need 1 elements, but the slice has 0"),
        (1, 0, 3, "0 rows of 3 need 0 elements, but the slice has 1"),
        (1, 3, 0, "3 rows of 0 need 0 elements, but the slice has 1"),
    ] {
        let mut data = vec![0.0; len];
        let error = Error::Length { rows, vocab, len };
        fails(Logits::new(&data, rows, vocab), error.clone(), text);
        fails(LogitsMut::new(&mut data, rows, vocab), error, text);
    }
}

#[test]
fn strided_length() {
    for (len, rows, vocab, stride, needed, text) in [
        (10, 3, 3, 4, 11, "3 rows of 3 at stride 4 need 11 elements, but the slice has 10"),
        (2, 1, 3, 9, 3, "1 rows of 3 at stride 9 need 3 elements, but the slice has 2"),
        (3, 2, 0, 4, 4, "2 rows of 0 at stride 4 need 4 elements, but the slice has 3"),
    ] {
        let mut data = vec![0.0; len];
        let error = Error::StridedLength { rows, vocab, stride, needed, len };
        fails(Logits::with_stride(&data, rows, vocab, stride), error.clone(), text);
        fails(LogitsMut::with_stride(&mut data, rows, vocab, stride), error, text);
        // One more will do, and so will many more.
        for len in [needed, needed + 100] {
            let mut data = vec![0.0; len];
            assert!(Logits::with_stride(&data, rows, vocab, stride).is_ok());
            assert!(LogitsMut::with_stride(&mut data, rows, vocab, stride).is_ok());
        }
    }
}

#[test]
fn stride_below_the_vocabulary() {
    for rows in [0, 1, 2, usize::MAX] {
        let error = Error::Stride { stride: 2, vocab: 3 };
        let text = "a row stride of 2 is smaller than the vocabulary of 3";
        fails(Logits::with_stride(&X, rows, 3, 2), error.clone(), text);
        fails(LogitsMut::with_stride(&mut [0.0; 6], rows, 3, 2), error, text);
    }
}

#[test]
fn overflow() {
    let half = usize::MAX / 2 + 1;
    for (rows, elements) in [(half, 2), (2, half), (usize::MAX, usize::MAX)] {
        let error = Error::Overflow { rows, elements };
        let text = format!("{rows} rows of {elements} elements are more than an address can count");
        fails(Logits::new(&X, rows, elements), error.clone(), &text);
        fails(LogitsMut::<f32>::new(&mut [], rows, elements), error.clone(), &text);
        fails(Logits::with_stride(&X, rows, 1, elements), error.clone(), &text);
        fails(LogitsMut::<f32>::with_stride(&mut [], rows, 1, elements), error, &text);
    }
    // Huge, but countable: too short.
    let needed = usize::MAX - 1;
    assert_eq!(
        Logits::new(&X, needed, 1).unwrap_err(),
        Error::Length { rows: needed, vocab: 1, len: 6 }
    );
}

#[test]
fn nothing_is_wrong_with_no_rows() {
    for vocab in [0, 1, usize::MAX] {
        let logits = Logits::<f32>::new(&[], 0, vocab).unwrap();
        assert!(CrossEntropy::new().forward(logits, &[] as &[i64]).unwrap().is_nan());
        let logits = Logits::with_stride(&X, 0, vocab, usize::MAX).unwrap();
        assert!(CrossEntropy::new().forward(logits, &[] as &[u32]).unwrap().is_nan());
        assert!(LogitsMut::<f32>::new(&mut [], 0, vocab).is_ok());
    }
}

#[test]
fn target_count() {
    for (targets, text) in
        [(0, "0 targets for 2 rows"), (1, "1 targets for 2 rows"), (3, "3 targets for 2 rows")]
    {
        // Also where every target is ignored.
        for id in [0, -100] {
            let ids = vec![id; targets];
            let error = Error::TargetCount { rows: 2, targets };
            fails(CrossEntropy::new().forward(two_rows(), &ids), error, text);
        }
    }
}

#[test]
fn target_out_of_range() {
    #[track_caller]
    fn check<'a>(targets: impl Into<Targets<'a>>, row: usize, target: i128) {
        let targets = targets.into();
        let error = Error::TargetOutOfRange { row, target, vocab: 3 };
        let text = format!("row {row}: target {target} is out of range for a vocabulary of 3");
        for &backend in Backend::available() {
            let ce = CrossEntropy::new().backend(backend);
            fails(ce.forward(two_rows(), targets), error.clone(), &text);
            let mut losses = [7.0; 2];
            fails(ce.forward_into(two_rows(), targets, &mut losses), error.clone(), &text);
            let result = ce.evaluate(two_rows(), targets, RowOutputs::new().count_correct());
            fails(result, error.clone(), &text);
            assert_eq!(losses, [7.0; 2]);
        }
    }
    check(&[0i64, 3], 1, 3);
    check(&[-1i64, 0], 0, -1);
    check(&[5i64, 6], 0, 5);
    check(&[-100i64, 3], 1, 3);
    check(&[0i64, -99], 1, -99);
    check(&[i64::MIN, 0], 0, i64::MIN.into());
    check(&[0, i64::MAX], 1, i64::MAX.into());
    check(&[0, i32::MIN], 1, i32::MIN.into());
    check(&[i32::MAX, 0], 0, i32::MAX.into());
    check(&[0, u32::MAX], 1, u32::MAX.into());
    check(&[usize::MAX, 0], 0, usize::MAX as i128);
    // -100 in two's complement is no -100.
    check(&[0, -100i32 as u32], 1, 4_294_967_196);
    check(&[0, -100isize as usize], 1, (-100isize as usize) as i128);
}

#[test]
fn ignore_index_is_compared_before_the_range_is_checked() {
    for ignored in [i64::MIN, -1, 3, i64::MAX] {
        let ce = CrossEntropy::new().ignore_index(ignored);
        let evaluation = ce.evaluate(two_rows(), &[0, ignored], RowOutputs::new()).unwrap();
        assert_eq!((evaluation.count(), evaluation.ignored()), (1, 1));
        // The default is then a target like any other.
        assert_eq!(
            ce.forward(two_rows(), &[0i64, -100]),
            Err(Error::TargetOutOfRange { row: 1, target: -100, vocab: 3 })
        );
    }
}

#[test]
fn no_classes() {
    let logits = Logits::<f32>::new(&[], 2, 0).unwrap();
    fails(
        CrossEntropy::new().forward(logits, &[-100i64, 0]),
        Error::TargetOutOfRange { row: 1, target: 0, vocab: 0 },
        "row 1: target 0 is out of range for a vocabulary of 0",
    );
    let ce = CrossEntropy::new().reduction(Reduction::Sum);
    assert_eq!(ce.forward(logits, &[-100i64, -100]), Ok(0.0));
}

#[test]
fn mean_over() {
    for (count, name) in [
        (0.0, "0"),
        (-0.0, "-0"),
        (-1.0, "-1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
        (f64::NEG_INFINITY, "-inf"),
    ] {
        let ce = CrossEntropy::new().reduction(Reduction::MeanOver(count));
        let error = Error::Count { count: name.to_owned() };
        let text =
            format!("a mean over {name} is not defined: the count must be finite and above 0");
        fails(ce.forward(two_rows(), &[0i64, 1]), error.clone(), &text);
        let mut losses = [7.0; 2];
        fails(ce.forward_into(two_rows(), &[0i64, 1], &mut losses), error, &text);
        assert_eq!(losses, [7.0; 2]);
    }
    let sum = CrossEntropy::new().reduction(Reduction::Sum).forward(two_rows(), &[0i64, 1]);
    for count in [0.5, 2.0, 7.0] {
        let ce = CrossEntropy::new().reduction(Reduction::MeanOver(count));
        assert_eq!(ce.forward(two_rows(), &[0i64, 1]).unwrap(), sum.clone().unwrap() / count);
    }
}

fn wrong_length(output: &'static str, len: usize, expected: usize) -> (Error, String) {
    let text = format!("output `{output}` has {len} elements instead of {expected}");
    (Error::OutputLength { output, len, expected }, text)
}

#[test]
fn output_length() {
    for len in [0, 1, 3] {
        let ce = CrossEntropy::new();
        let (mut f, mut i) = (vec![7.0; len], vec![7; len]);
        let (error, text) = wrong_length("losses", len, 2);
        fails(ce.forward_into(two_rows(), &[0i64, 1], &mut f), error.clone(), &text);
        let evaluate = |wanted: RowOutputs<'_>| ce.evaluate(two_rows(), &[0i64, 1], wanted);
        fails(evaluate(RowOutputs::new().losses(&mut f)), error, &text);
        let (error, text) = wrong_length("logprobs", len, 2);
        fails(evaluate(RowOutputs::new().logprobs(&mut f)), error, &text);
        let (error, text) = wrong_length("logsumexp", len, 2);
        fails(evaluate(RowOutputs::new().logsumexp(&mut f)), error, &text);
        let (error, text) = wrong_length("argmax", len, 2);
        fails(evaluate(RowOutputs::new().argmax(&mut i)), error, &text);
        let (error, text) = wrong_length("z_losses", len, 2);
        fails(evaluate(RowOutputs::new().z_losses(&mut f)), error, &text);
        let mut stats = vec![LogSumExp { hi: 7.0, lo: 7.0 }; len];
        let (error, text) = wrong_length("saved", len, 2);
        fails(evaluate(RowOutputs::new().saved(&mut stats)), error, &text);
        assert_eq!(stats, vec![LogSumExp { hi: 7.0, lo: 7.0 }; len]);

        let (error, text) = wrong_length("logsumexp", len, 2);
        fails(Softmax::new().logsumexp(two_rows(), &mut f), error, &text);
        assert_eq!((f, i), (vec![7.0; len], vec![7; len]));
    }
    for len in [0, 5, 7] {
        let mut out = vec![7.0; len];
        let (error, text) = wrong_length("out", len, 6);
        fails(Softmax::new().softmax(two_rows(), &mut out), error.clone(), &text);
        fails(Softmax::new().log_softmax(two_rows(), &mut out), error, &text);
        assert_eq!(out, vec![7.0; len]);
    }
}

/// Every call with these targets fails so, and touches nothing.
#[track_caller]
fn refused<'a>(ce: &CrossEntropy, targets: impl Into<Targets<'a>>, error: Error, text: &str) {
    let targets = targets.into();
    for &backend in Backend::available() {
        let ce = ce.clone().backend(backend);
        fails(ce.forward(two_rows(), targets), error.clone(), text);
        let (mut losses, mut z_losses) = ([7.0; 2], [7.0; 2]);
        let mut stats = [LogSumExp { hi: 7.0, lo: 7.0 }; 2];
        fails(ce.forward_into(two_rows(), targets, &mut losses), error.clone(), text);
        let outputs = RowOutputs::new().losses(&mut losses).z_losses(&mut z_losses);
        let outputs = outputs.saved(&mut stats);
        fails(ce.evaluate(two_rows(), targets, outputs), error.clone(), text);
        let mut g = [7.0; 6];
        let to = || RowOutputs::new();
        let gradient = Gradient::new(LogitsMut::new(&mut g, 2, 3).unwrap());
        fails(ce.forward_backward(two_rows(), targets, gradient, to()), error.clone(), text);
        let in_place = LogitsMut::new(&mut g, 2, 3).unwrap();
        fails(ce.forward_backward_in_place(in_place, targets, 1.0, to()), error.clone(), text);
        let gradient = Gradient::new(LogitsMut::new(&mut g, 2, 3).unwrap());
        fails(ce.backward(two_rows(), targets, &stats, gradient), error.clone(), text);
        let in_place = LogitsMut::new(&mut g, 2, 3).unwrap();
        fails(ce.backward_in_place(in_place, targets, &stats, 1.0), error.clone(), text);
        assert_eq!((losses, z_losses, g), ([7.0; 2], [7.0; 2], [7.0; 6]));
        assert_eq!(stats, [LogSumExp { hi: 7.0, lo: 7.0 }; 2]);
    }
}

#[test]
fn input_length() {
    let check = |ce: &CrossEntropy, targets: Targets<'_>, what, len, expected| {
        let text = format!("{what}: {len} values instead of {expected}");
        refused(ce, targets, Error::InputLength { what, len, expected }, &text);
    };
    let (ids, ce) = ([0i64, 1], CrossEntropy::new());
    for len in [0, 1, 2, 4, 5, 7] {
        let values = vec![1.0_f32; len];
        if len != 3 {
            check(&ce.clone().class_weights(&values), (&ids).into(), "class_weights", len, 3);
        }
        if len != 2 {
            check(&ce.clone().token_weights(&values), (&ids).into(), "token_weights", len, 2);
        }
        if len != 6 {
            check(&ce, Targets::probs(&values), "target probabilities", len, 6);
        }
        if len != 4 {
            let wrong = vec![0i64; len];
            let sparse = SparseProbs::new(&wrong, &[0.5_f32; 4], 2);
            check(&ce, sparse.into(), "sparse target ids", len, 4);
            let sparse = SparseProbs::new(&[0i64; 4], &values, 2);
            check(&ce, sparse.into(), "sparse target probabilities", len, 4);
        }
    }
    // No class per row is a row of nothing.
    let none = SparseProbs::new(&[] as &[i64], &[] as &[f32], 0);
    assert_eq!(ce.forward(two_rows(), none), Ok(0.0));

    for len in [0, 1, 3] {
        let mut g = [7.0; 6];
        let (stats, upstream) = (vec![LogSumExp::default(); len], vec![1.0_f32; len]);
        let what = "row statistics";
        let text = format!("{what}: {len} values instead of 2");
        let error = Error::InputLength { what, len, expected: 2 };
        let gradient = Gradient::new(LogitsMut::new(&mut g, 2, 3).unwrap());
        fails(ce.backward(two_rows(), &ids, &stats, gradient), error.clone(), &text);
        let in_place = LogitsMut::new(&mut g, 2, 3).unwrap();
        fails(ce.backward_in_place(in_place, &ids, &stats, 1.0), error, &text);
        let what = "upstream gradients";
        let text = format!("{what}: {len} values instead of 2");
        let error = Error::InputLength { what, len, expected: 2 };
        let gradient = Gradient::new(LogitsMut::new(&mut g, 2, 3).unwrap());
        let gradient = gradient.upstream(Upstream::rows(&upstream));
        let outputs = RowOutputs::new();
        fails(ce.forward_backward(two_rows(), &ids, gradient, outputs), error.clone(), &text);
        let in_place = LogitsMut::new(&mut g, 2, 3).unwrap();
        let stats = [LogSumExp::default(); 2];
        let rows = Upstream::rows(&upstream);
        fails(ce.backward_in_place(in_place, &ids, &stats, rows), error, &text);
        assert_eq!(g, [7.0; 6]);
    }
}

#[test]
fn precision() {
    let ce = CrossEntropy::new();
    let check = |ce: &CrossEntropy, targets: Targets<'_>, what| {
        let text = format!("`{what}` must be f32 for these logits, not f64");
        refused(ce, targets, Error::Precision { what, needed: "f32", given: "f64" }, &text);
    };
    let ids = [0i64, 1];
    check(&ce.clone().class_weights(&[1.0_f64; 3]), (&ids).into(), "class_weights");
    check(&ce, Targets::probs(&[0.5_f64; 6]), "target probabilities");
    let sparse = SparseProbs::new(&[0i64; 4], &[0.5_f64; 4], 2);
    check(&ce, sparse.into(), "sparse target probabilities");
    // One number per row may have any.
    assert!(ce.token_weights(&[1.0_f64; 2]).forward(two_rows(), &ids).is_ok());
}

#[test]
fn gradient_shape() {
    for (rows, vocab) in [(2, 2), (2, 4), (1, 3), (3, 3), (3, 2), (0, 3), (2, 0)] {
        let mut g = vec![7.0; rows * vocab];
        let error = Error::GradientShape { gradient: (rows, vocab), logits: (2, 3) };
        let text = format!("the gradient is {rows} x {vocab}, but the logits are 2 x 3");
        let (ids, mut losses) = ([0i64, 1], [7.0; 2]);
        let gradient = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap());
        let outputs = RowOutputs::new().losses(&mut losses);
        let ce = CrossEntropy::new();
        fails(ce.forward_backward(two_rows(), &ids, gradient, outputs), error.clone(), &text);
        let gradient = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap());
        let stats = [LogSumExp::default(); 2];
        fails(ce.backward(two_rows(), &ids, &stats, gradient), error, &text);
        assert_eq!((g, losses), (vec![7.0; rows * vocab], [7.0; 2]));
    }
}

#[test]
fn probability_targets_without_classes() {
    let text = "2 rows with probability targets have no classes";
    let (no_ids, no_probs): (&[i64], &[f32]) = (&[], &[]);
    let ce = CrossEntropy::new().reduction(Reduction::Sum);
    let mut losses = [7.0; 2];
    for targets in [Targets::probs(no_probs), SparseProbs::new(no_ids, no_probs, 0).into()] {
        let error = Error::NoClasses { rows: 2 };
        let logits = Logits::<f32>::new(&[], 2, 0).unwrap();
        fails(ce.forward(logits, targets), error.clone(), text);
        fails(ce.forward_into(logits, targets, &mut losses), error.clone(), text);
        let outputs = RowOutputs::new().losses(&mut losses).count_correct();
        fails(ce.evaluate(logits, targets, outputs), error.clone(), text);
        let empty = || LogitsMut::<f32>::new(&mut [], 2, 0).unwrap();
        let gradient = Gradient::new(empty());
        fails(
            ce.forward_backward(logits, targets, gradient, RowOutputs::new()),
            error.clone(),
            text,
        );
        let stats = [LogSumExp::default(); 2];
        fails(ce.backward(logits, targets, &stats, Gradient::new(empty())), error.clone(), text);
        fails(ce.backward_in_place(empty(), targets, &stats, 1.0), error, text);
        assert_eq!(losses, [7.0; 2]);
        let logits = Logits::<f32>::new(&[], 0, 0).unwrap();
        assert_eq!(ce.forward(logits, targets), Ok(0.0));
    }
}

#[test]
fn ignore_index_with_probabilities() {
    let probs = [0.5_f32; 6];
    for ignore_index in [0, 1, 7, i64::MAX] {
        let text = format!("ignore_index {ignore_index} means nothing for probability targets");
        let ce = CrossEntropy::new().ignore_index(ignore_index);
        let error = Error::IgnoreIndexWithProbs { ignore_index };
        refused(&ce, Targets::probs(&probs), error, &text);
    }
    for ignore_index in [-1, -100, i64::MIN] {
        let ce = CrossEntropy::new().ignore_index(ignore_index);
        assert!(ce.forward(two_rows(), Targets::probs(&probs)).is_ok());
    }
    // Sparse ones have ids: those that are ignored do not count.
    let ce = CrossEntropy::new().ignore_index(1).reduction(Reduction::Sum);
    let some = SparseProbs::new(&[0i64, 1, 1, 1], &[1.0_f32, 9.0, 9.0, 9.0], 2);
    let evaluation = ce.evaluate(two_rows(), some, RowOutputs::new()).unwrap();
    assert!((evaluation.loss() - 2.407606).abs() < 1e-6);
    assert_eq!(evaluation.count(), 2);
}

#[test]
fn options_out_of_range() {
    let check = |ce: CrossEntropy, option, value: f64, range| {
        let error = Error::Option { option, value: value.to_string(), range };
        refused(&ce, &[0i64, 1], error, &format!("{option} = {value} is not {range}"));
    };
    let ce = CrossEntropy::new;
    for e in [-0.1, 1.0 + 1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        check(ce().label_smoothing(e), "label_smoothing", e, "between 0 and 1");
    }
    for z in [-1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        check(ce().z_loss(z), "z_loss", z, "finite and not negative");
    }
    // As an `f32` the last three are 0, subnormal and infinite.
    for value in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, 1e-60, 1e-40, 1e39] {
        let range = "a positive number of the range of f32";
        check(ce().logit_scale(value), "logit_scale", value, range);
        check(ce().temperature(value), "temperature", value, range);
        check(ce().softcap(value), "softcap", value, range);
        check(ce().softcap_of_all(value), "softcap", value, range);
    }
    for allowed in [
        ce().label_smoothing(1.0),
        ce().label_smoothing(-0.0),
        ce().z_loss(1e300),
        ce().logit_scale(f64::from(f32::MIN_POSITIVE)),
        ce().temperature(f64::from(f32::MAX)),
        ce().softcap(f64::from(f32::MAX)),
    ] {
        assert!(allowed.forward(two_rows(), &[0i64, 1]).is_ok(), "{allowed:?}");
    }
}

#[test]
fn sparse_ids_out_of_range() {
    let check = |ids: [i64; 4], row, target: i64| {
        let text = format!("row {row}: target {target} is out of range for a vocabulary of 3");
        let error = Error::TargetOutOfRange { row, target: target.into(), vocab: 3 };
        refused(&CrossEntropy::new(), SparseProbs::new(&ids, &[0.25_f32; 4], 2), error, &text);
    };
    check([0, 3, 1, 2], 0, 3);
    check([0, 1, -1, 2], 1, -1);
    check([0, 1, -100, i64::MIN], 1, i64::MIN);
    check([0, i64::MAX, 5, 6], 0, i64::MAX);
    let unsigned = [u32::MAX, 0, 0, 0];
    refused(
        &CrossEntropy::new(),
        SparseProbs::new(&unsigned, &[0.25_f32; 4], 2),
        Error::TargetOutOfRange { row: 0, target: u32::MAX.into(), vocab: 3 },
        "row 0: target 4294967295 is out of range for a vocabulary of 3",
    );
}

#[test]
fn more_sparse_targets_than_can_be_counted() {
    for k in [usize::MAX, usize::MAX / 2 + 1] {
        let sparse = SparseProbs::new(&[0i64; 4], &[0.25_f32; 4], k);
        let error = Error::Overflow { rows: 2, elements: k };
        let text = format!("2 rows of {k} elements are more than an address can count");
        refused(&CrossEntropy::new(), sparse, error, &text);
    }
}

#[test]
fn outputs_are_untouched_on_error() {
    type Call = fn(&CrossEntropy, RowOutputs<'_>) -> Error;
    let calls: [(&str, Call); 4] = [
        ("target", |ce, out| ce.evaluate(two_rows(), &[0i64, 3], out).unwrap_err()),
        ("count of targets", |ce, out| ce.evaluate(two_rows(), &[0i64], out).unwrap_err()),
        ("divisor", |ce, out| {
            let ce = ce.clone().reduction(Reduction::MeanOver(0.0));
            ce.evaluate(two_rows(), &[0i64, 1], out).unwrap_err()
        }),
        ("one output", |ce, out| {
            ce.evaluate(two_rows(), &[0i64, 1], out.argmax(&mut [0; 3])).unwrap_err()
        }),
    ];
    for &backend in Backend::available() {
        for (what, call) in calls {
            let (mut losses, mut logprobs, mut lse) = ([7.0; 2], [7.0; 2], [7.0; 2]);
            let mut argmax = [7; 2];
            let wanted = RowOutputs::new()
                .losses(&mut losses)
                .logprobs(&mut logprobs)
                .logsumexp(&mut lse)
                .argmax(&mut argmax);
            let error = call(&CrossEntropy::new().backend(backend), wanted);
            assert_eq!([losses, logprobs, lse], [[7.0; 2]; 3], "{what}: {error}");
            assert_eq!(argmax, [7; 2], "{what}: {error}");
        }
    }
}

#[test]
fn unknown_backend() {
    let available = Backend::available();
    let names: Vec<&str> = available.iter().map(|b| b.name()).collect();
    for name in ["", "sve", "avx", "avx512 ", "äöü"] {
        fails(
            name.parse::<Backend>(),
            Error::UnknownBackend { name: name.to_owned(), available },
            &format!("unknown backend `{name}`; available: {}", names.join(", ")),
        );
    }
}

#[test]
fn unavailable_backend() {
    let text = |requested| Error::BackendUnavailable {
        requested,
        available: &[Backend::Scalar, Backend::Portable],
    };
    assert_eq!(
        text(Backend::Avx512).to_string(),
        "backend `avx512` is not available here; available: scalar, portable"
    );
    for &requested in Backend::ALL {
        if requested.is_available() {
            println!("{requested} is available: it cannot be refused here");
            continue;
        }
        let error = Error::BackendUnavailable { requested, available: Backend::available() };
        let ce = CrossEntropy::new().backend(requested);
        let mut out = [7.0; 6];
        assert_eq!(ce.forward(two_rows(), &[0i64, 1]), Err(error.clone()));
        assert_eq!(ce.forward_into(two_rows(), &[0i64, 1], &mut out[..2]), Err(error.clone()));
        let softmax = Softmax::new().backend(requested);
        assert_eq!(softmax.softmax(two_rows(), &mut out), Err(error.clone()));
        assert_eq!(softmax.logsumexp(two_rows(), &mut out[..2]), Err(error));
        assert_eq!(out, [7.0; 6]);
    }
}

/// Prints what the environment selects: the other half of the next test.
#[test]
fn print_what_is_selected() {
    match Backend::selected() {
        Ok(backend) => println!("selected: {backend}."),
        Err(error) => {
            // Every call fails in the same way, unless it names a backend.
            let result = CrossEntropy::new().forward(two_rows(), &[0i64, 1]);
            assert_eq!(result, Err(error.clone()));
            let named = CrossEntropy::new().backend(Backend::Scalar);
            assert!(named.forward(two_rows(), &[0i64, 1]).is_ok());
            println!("error: {error}.");
        }
    }
}

#[test]
fn the_environment_selects() {
    let selected = |value: Option<&str>| {
        let mut command = common::command(std::env::current_exe().unwrap());
        command.args(["--exact", "misuse::print_what_is_selected", "--nocapture"]);
        match value {
            Some(value) => command.env("XENT_BACKEND", value),
            None => command.env_remove("XENT_BACKEND"),
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let expect = |value: Option<&str>, expected: String| {
        let got = selected(value);
        assert!(got.contains(&expected), "{value:?}: {got}");
    };
    let fastest = Backend::available().last().unwrap();
    expect(None, format!("selected: {fastest}."));
    expect(Some(""), format!("selected: {fastest}."));
    for &backend in Backend::ALL {
        for name in [backend.name().to_owned(), backend.name().to_uppercase()] {
            if backend.is_available() {
                expect(Some(&name), format!("selected: {backend}."));
            } else {
                expect(Some(&name), format!("error: backend `{backend}` is not available here"));
            }
        }
    }
    expect(Some("sse9"), "error: unknown backend `sse9`; available: scalar, portable".to_owned());
}
