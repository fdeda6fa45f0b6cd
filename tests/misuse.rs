//! What a caller can get wrong: the exact error, its text, and that no output was touched.

use std::fmt::Debug;
use xent::{
    AllowedTokens, Backend, Compare, CompareOutputs, CrossEntropy, Error, Gradient, LogProbs,
    LogSumExp, LogitBias, Logits, LogitsMut, Reduction, RowOutputs, RowStats, Sample, Sampler,
    SequenceScore, Shard, Softmax, SparseProbs, Targets, TokenOutputs, Upstream,
};

#[track_caller]
fn fails<T: Debug>(result: Result<T, Error>, expected: Error, text: &str) {
    assert_eq!(result.unwrap_err(), expected);
    assert_eq!(expected.to_string(), text);
}

/// Zeros are not many.
fn number(x: impl Debug) -> String {
    let text = format!("{x:?}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
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
        (
            8,
            2,
            3,
            "2 rows of 3 need 6 elements, but the slice has 8; \
             for rows that begin 4 elements apart use with_stride(.., 4)",
        ),
        (4, 2, 3, "2 rows of 3 need 6 elements, but the slice has 4"),
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

/// What follows where there is one target less than rows.
const NEXT_TOKENS: &str =
    "; where each row predicts the next token, give all tokens to Targets::shifted";

/// What is said of a target that is no class.
fn out_of_range(row: usize, target: i128, vocab: usize) -> String {
    let ignored = match target {
        ..0 => format!("; ignore_index({target}) ignores such rows"),
        _ => String::new(),
    };
    format!("row {row}: target {target} is out of range for a vocabulary of {vocab}{ignored}")
}

#[test]
fn target_count() {
    let one = format!("1 targets for 2 rows{NEXT_TOKENS}");
    for (targets, text) in [(0, "0 targets for 2 rows"), (1, &one), (3, "3 targets for 2 rows")] {
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
        let text = out_of_range(row, target, 3);
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
        (-1e-38, "-1e-38"),
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
        let value = number(value);
        let text = format!("{option} = {value} is not {range}");
        refused(&ce, &[0i64, 1], Error::Option { option, value, range }, &text);
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
        let text = out_of_range(row, target.into(), 3);
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

/// Refused by all that takes a request, with all outputs as they were.
#[track_caller]
fn not_answered(ask: LogProbs<'_>, error: Error, text: &str) {
    for &backend in Backend::available() {
        let ask = ask.backend(backend);
        let (mut logprobs, mut entropy, mut argmax) = ([7.0; 2], [7.0; 2], [7; 2]);
        let (mut ids, mut top) = ([7; 2], [7.0; 2]);
        let out = TokenOutputs::new()
            .logprobs(&mut logprobs)
            .entropy(&mut entropy)
            .argmax(&mut argmax)
            .top_k(&mut ids, &mut top);
        fails(ask.run(two_rows(), out), error.clone(), text);
        assert_eq!([logprobs, entropy, top], [[7.0; 2]; 3]);
        assert_eq!([argmax, ids], [[7; 2]; 2]);
        fails(ask.collect(two_rows()), error.clone(), text);
        let mut stats = [marked(); 2];
        fails(ask.row_stats(two_rows(), Shard::new(0, 3), &mut stats), error.clone(), text);
        assert_eq!(stats, [marked(); 2]);
    }
}

/// Statistics that no request of these tests has.
fn marked() -> RowStats {
    let mut stats = [RowStats::default()];
    let logits = Logits::new(&[7.0_f32], 1, 1).unwrap();
    LogProbs::new().row_stats(logits, Shard::new(0, 1), &mut stats).unwrap();
    stats[0]
}

#[test]
fn requests_of_log_probabilities() {
    let ask = LogProbs::new().targets(&[0i64, 1]).top_k(1);
    let with = |targets: &'static [i64]| LogProbs::new().targets(targets).top_k(1);
    let error = Error::TargetCount { rows: 2, targets: 3 };
    not_answered(with(&[0, 1, 2]), error, "3 targets for 2 rows");
    for target in [3, -1, i64::MIN, i64::MAX] {
        let targets = [-100, target];
        let error = Error::TargetOutOfRange { row: 1, target: target.into(), vocab: 3 };
        let text = out_of_range(1, target.into(), 3);
        not_answered(LogProbs::new().targets(&targets).top_k(1), error, &text);
    }
    let error = Error::Sequence { rows: 2, sequence: 0 };
    let shifted = LogProbs::new().targets(Targets::shifted(&[0i64, 1], 0, 0));
    not_answered(shifted.top_k(1), error, "2 rows are no whole number of sequences of 0");
    let range = "a class id per row";
    let error = Error::Option { option: "targets", value: "probabilities".to_owned(), range };
    let probs = LogProbs::new().targets(Targets::probs(&[0.5_f32; 6])).top_k(1);
    not_answered(probs, error, "targets = probabilities is not a class id per row");

    for (k, len, expected) in [(1, 1, 2), (1, 3, 2), (2, 3, 4), (0, 1, 0)] {
        let ids = vec![0u32; len];
        let error = Error::InputLength { what: "candidates", len, expected };
        let text = format!("candidates: {len} values instead of {expected}");
        not_answered(ask.candidates(&ids, k), error, &text);
    }
    let error = Error::Overflow { rows: 2, elements: usize::MAX };
    let text = format!("2 rows of {} elements are more than an address can count", usize::MAX);
    not_answered(ask.candidates(&[0u32; 2], usize::MAX), error, &text);
    // Nothing is ignored among candidates.
    for id in [-100, 3, -1, i64::MAX] {
        let ids = [0, 2, 1, id];
        let error = Error::CandidateOutOfRange { row: 1, id: id.into(), vocab: 3 };
        let text = format!("row 1: candidate {id} is out of range for a vocabulary of 3");
        not_answered(ask.candidates(&ids, 2), error, &text);
    }

    for k in [129, usize::MAX] {
        let range = "at most 128, the most tokens that are found of a row";
        let error = Error::Option { option: "top_k", value: k.to_string(), range };
        not_answered(ask.top_k(k), error, &format!("top_k = {k} is not {range}"));
    }
    for (t, value) in [
        (0.0, "0"),
        (-0.0, "-0"),
        (-1.5, "-1.5"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
        (f64::NEG_INFINITY, "-inf"),
        (1e-38, "1e-38"),
        (1e-40, "1e-40"),
        (-1e39, "-1e39"),
        (f64::MAX, "1.7976931348623157e308"),
    ] {
        let range = "a positive number of the range of f32";
        let error = Error::Option { option: "temperature", value: value.to_owned(), range };
        not_answered(ask.temperature(t), error, &format!("temperature = {value} is not {range}"));
    }
    for (words, hint) in
        [(&[0u32; 1][..], "; AllowedTokens::stride(0) has one mask for all rows"), (&[0; 3], "")]
    {
        let len = words.len();
        let error = Error::InputLength { what: "words of allowed tokens", len, expected: 2 };
        let text = format!("words of allowed tokens: {len} values instead of 2{hint}");
        not_answered(ask.allowed_tokens(AllowedTokens::new(words)), error, &text);
    }
}

#[test]
fn samples() {
    let ask = LogProbs::new().targets(&[0i64, 1]).top_k(1);
    for len in [0, 1, 3] {
        let samples = vec![Sample::new(1, 2); len];
        let error = Error::InputLength { what: "samples", len, expected: 2 };
        let text = format!("samples: {len} values instead of 2");
        not_answered(ask.sample(&samples), error, &text);
    }
    for (t, temperature) in [
        (-1.0, "-1"),
        (-5e-324, "-5e-324"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
        (f64::NEG_INFINITY, "-inf"),
    ] {
        let samples = [Sample::new(1, 2), Sample::new(1, 2).temperature(t)];
        let error = Error::SampleTemperature { row: 1, temperature: temperature.to_owned() };
        let text =
            format!("row 1: temperature {temperature} of a sample is not finite and at least 0");
        not_answered(ask.sample(&samples), error, &text);
    }
    // All others will do.
    for t in [0.0, -0.0, 5e-324, 1e-300, 1e300, f64::MAX] {
        let samples = [Sample::new(1, 2).temperature(t); 2];
        for &backend in Backend::available() {
            let found = ask.sample(&samples).backend(backend).collect(two_rows()).unwrap();
            assert!(found.sampled.iter().all(|id| (0..3).contains(id)), "{t}: {found:?}");
            let double = [1.0, f64::MAX, f64::MIN, f64::NEG_INFINITY, 5e-324, 0.0];
            let double = Logits::new(&double, 2, 3).unwrap();
            let found = ask.sample(&samples).backend(backend).collect(double).unwrap();
            assert!(found.sampled.iter().all(|id| (0..3).contains(id)), "{t}: {found:?}");
        }
    }
}

#[test]
fn logit_biases() {
    const INF: f32 = f32::INFINITY;
    let ask = LogProbs::new().targets(&[0i64, 1]).top_k(1);
    let in_vocabulary = "the token must be in the vocabulary";
    let ascend = "its token must be above that of the entry before it; \
                  sort entries by token, with each token once";
    let a_number = "the value must be a number or -inf";
    for (entries, entry, range) in [
        (&[(0, 1.0), (3, 1.0)][..], 1, in_vocabulary),
        (&[(u32::MAX, 1.0)], 0, in_vocabulary),
        (&[(1, 1.0), (0, 1.0)], 1, ascend),
        (&[(1, 1.0), (1, 1.0)], 1, ascend),
        (&[(7, 1e-38)], 0, in_vocabulary),
        (&[(0, f32::NAN)], 0, a_number),
        (&[(0, 1.0), (1, INF)], 1, a_number),
    ] {
        let (id, value) = entries[entry];
        let value = number(value);
        let text = format!("logit bias, entry {entry} (token {id}, value {value}): {range}");
        let error = Error::LogitBias { entry, id, value, range };
        not_answered(ask.logit_bias(LogitBias::new(entries)), error.clone(), &text);
        // The entries of one row, whose number is that among all.
        let offsets = [0, 0, entries.len()];
        not_answered(ask.logit_bias(LogitBias::per_row(entries, &offsets)), error, &text);
    }
    let entries = [(2, 1.0), (0, 1.0)];
    // They ascend within a row only.
    let each = LogitBias::per_row(&entries, &[0, 1, 2]);
    assert!(ask.logit_bias(each).collect(two_rows()).is_ok());
    let what = "offsets of logit biases";
    for offsets in [&[][..], &[0], &[0, 2], &[0, 1, 2, 2]] {
        let error = Error::InputLength { what, len: offsets.len(), expected: 3 };
        let text = format!("{what}: {} values instead of 3", offsets.len());
        not_answered(ask.logit_bias(LogitBias::per_row(&entries, offsets)), error, &text);
    }
    for offsets in [[0, 2, 1], [0, 1, 3], [3, 3, 3], [usize::MAX, 0, 0], [0, 0, usize::MAX]] {
        let range = "ascending, up to the number of entries";
        let value = format!("(.., {})", offsets[2]);
        let text = format!("{what} = {value} is not {range}");
        let error = Error::Option { option: what, value, range };
        not_answered(ask.logit_bias(LogitBias::per_row(&entries, &offsets)), error, &text);
    }
}

#[test]
fn token_outputs() {
    let ask = LogProbs::new().targets(&[0i64, 1]).top_k(1).candidates(&[0u32; 4], 2);
    let samples = [Sample::new(1, 2); 2];
    let all = ask.sample(&samples);
    type Set = for<'a> fn(TokenOutputs<'a>, &'a mut [f32], &'a mut [i64]) -> TokenOutputs<'a>;
    let outputs: [(&str, usize, &str, Set); 12] = [
        ("logprobs", 2, "targets", |out, x, _| out.logprobs(x)),
        ("ranks", 2, "targets", |out, _, ids| out.ranks(ids)),
        ("strict_ranks", 2, "targets", |out, _, ids| out.strict_ranks(ids)),
        ("candidates", 4, "candidates", |out, x, _| out.candidates(x)),
        ("argmax", 2, "", |out, _, ids| out.argmax(ids)),
        ("entropy", 2, "", |out, x, _| out.entropy(x)),
        ("varentropy", 2, "", |out, x, _| out.varentropy(x)),
        ("logsumexp", 2, "", |out, x, _| out.logsumexp(x)),
        ("sampled", 2, "samples", |out, _, ids| out.sampled(ids)),
        ("sampled_logprobs", 2, "samples", |out, x, _| out.sampled_logprobs(x)),
        ("top_k ids", 2, "", |out, x, ids| out.top_k(ids, &mut x[..2])),
        ("top_k logprobs", 2, "", |out, x, ids| out.top_k(&mut ids[..2], x)),
    ];
    for &backend in Backend::available() {
        for (output, expected, needs, set) in outputs {
            for len in (0..9).filter(|&len| len != expected) {
                if output.starts_with("top_k") && len < 2 {
                    continue;
                }
                let (mut x, mut ids, mut argmax) = (vec![7.0; len], vec![7; len], [7; 2]);
                // The other one of two is as long as it must be.
                match output {
                    "top_k ids" => x.resize(2, 7.0),
                    "top_k logprobs" => ids.resize(2, 7),
                    _ => {}
                }
                let mut out = TokenOutputs::new();
                if output != "argmax" {
                    out = out.argmax(&mut argmax);
                }
                let result = all.backend(backend).run(two_rows(), set(out, &mut x, &mut ids));
                let error = Error::OutputLength { output, len, expected };
                let text = format!("output `{output}` has {len} elements instead of {expected}");
                fails(result, error, &text);
                assert!(x.iter().all(|&x| x == 7.0) && ids.iter().all(|&id| id == 7), "{output}");
                assert_eq!(argmax, [7; 2], "{output}");
            }
            if !needs.is_empty() {
                let (mut x, mut ids) = (vec![7.0; expected], vec![7; expected]);
                let out = set(TokenOutputs::new(), &mut x, &mut ids);
                let result = LogProbs::new().backend(backend).run(two_rows(), out);
                let text = format!("output `{output}` needs {needs}");
                fails(result, Error::Missing { output, needs }, &text);
            }
        }
    }
}

#[test]
fn outputs_for_a_top_k_that_was_not_asked_for() {
    let needs = "LogProbs::top_k(k), how many to find";
    for k in 1..5 {
        let (mut ids, mut top, mut argmax) = (vec![7; k], vec![7.0; k], [7; 2]);
        let out = TokenOutputs::new().argmax(&mut argmax).top_k(&mut ids, &mut top);
        let text = format!("output `top_k ids` needs {needs}");
        let error = Error::Missing { output: "top_k ids", needs };
        fails(LogProbs::new().run(two_rows(), out), error, &text);
        let out = TokenOutputs::new().argmax(&mut argmax).top_k(&mut [], &mut top);
        let text = format!("output `top_k logprobs` needs {needs}");
        let error = Error::Missing { output: "top_k logprobs", needs };
        fails(LogProbs::new().run(two_rows(), out), error, &text);
        assert_eq!((ids, top, argmax), (vec![7; k], vec![7.0; k], [7; 2]));
    }
    let out = TokenOutputs::new().top_k(&mut [], &mut []);
    assert_eq!(LogProbs::new().run(two_rows(), out), Ok(()));
}

#[test]
fn shards() {
    let ask = LogProbs::new().targets(&[0i64, 1]).ranks(true);
    for (first, vocab) in [(0, 2), (1, 3), (3, 3), (usize::MAX, 3), (usize::MAX, usize::MAX)] {
        let error = Error::Shard { first, classes: 3, vocab };
        let text =
            format!("a shard of 3 classes from {first} on is not part of a vocabulary of {vocab}");
        let mut stats = [marked(); 2];
        fails(ask.row_stats(two_rows(), Shard::new(first, vocab), &mut stats), error, &text);
        assert_eq!(stats, [marked(); 2]);
    }
    for len in [0, 1, 3] {
        let (logits, mut stats) = (vec![0.0; len], vec![marked(); 2]);
        let shard = Shard::new(0, 3).target_logits(&logits);
        let error = Error::InputLength { what: "target logits", len, expected: 2 };
        let text = format!("target logits: {len} values instead of 2");
        fails(ask.row_stats(two_rows(), shard, &mut stats), error, &text);
        assert_eq!(stats, [marked(); 2]);
        let mut stats = vec![marked(); len];
        let error = Error::OutputLength { output: "stats", len, expected: 2 };
        let text = format!("output `stats` has {len} elements instead of 2");
        fails(ask.row_stats(two_rows(), Shard::new(0, 3), &mut stats), error, &text);
        assert!(stats.iter().all(|stats| *stats == marked()));
    }
    // The top k may exceed a shard; a target may be anywhere in the vocabulary.
    let mut stats = [marked(); 2];
    let far = LogProbs::new().targets(&[999i64, 1]).top_k(128);
    assert!(far.row_stats(two_rows(), Shard::new(500, 1000), &mut stats).is_ok());
    assert_eq!(stats.map(|stats| stats.top_k().count()), [3; 2]);
    assert_eq!(stats.map(|stats| stats.loss()), [None; 2]);
    let error = Error::TargetOutOfRange { row: 0, target: 999, vocab: 503 };
    let text = "row 0: target 999 is out of range for a vocabulary of 503";
    fails(far.row_stats(two_rows(), Shard::new(500, 503), &mut stats), error, text);
}

/// Ids are of 32 bits, of which the last one is no token: also where there is nothing to find.
#[test]
fn more_tokens_than_ids() {
    let most = u32::MAX as usize;
    let ask = LogProbs::new();
    for vocab in [most, most + 1, usize::MAX] {
        let logits = Logits::<f32>::new(&[], 0, vocab).unwrap();
        let error = Error::Overflow { rows: 0, elements: vocab };
        let text = format!("0 rows of {vocab} elements are more than an address can count");
        fails(ask.run(logits, TokenOutputs::new()), error.clone(), &text);
        fails(ask.collect(logits), error.clone(), &text);
        fails(ask.row_stats(logits, Shard::new(0, vocab), &mut []), error, &text);
        let mut stats = [marked(); 2];
        let error = Error::Overflow { rows: 2, elements: vocab };
        let text = format!("2 rows of {vocab} elements are more than an address can count");
        fails(ask.row_stats(two_rows(), Shard::new(1, vocab), &mut stats), error, &text);
        assert_eq!(stats, [marked(); 2]);
    }
    let logits = Logits::<f32>::new(&[], 0, most - 1).unwrap();
    assert!(ask.collect(logits).is_ok());
    // The last of all ids.
    let mut stats = [marked(); 2];
    let last = [u32::MAX - 2; 2];
    let shard = Shard::new(most - 4, most - 1);
    ask.targets(&last).top_k(1).row_stats(two_rows(), shard, &mut stats).unwrap();
    assert_eq!(stats.map(|stats| stats.argmax()), [Some(u32::MAX - 2); 2]);
    assert_eq!(stats.map(|stats| stats.target_logit()), [Some(3.0), Some(2.0)]);
}

#[test]
fn requests_of_nothing() {
    let none: [i64; 0] = [];
    for &backend in Backend::available() {
        for vocab in [0, 1, 1000] {
            let logits = Logits::<f32>::new(&[], 0, vocab).unwrap();
            let ask = LogProbs::new().backend(backend).targets(&none).candidates(&none, 7);
            let ask = ask.sample(&[]).entropy(true).ranks(true).top_k(vocab.min(128));
            assert!(ask.collect(logits).unwrap().argmax.is_empty());
            assert_eq!(ask.row_stats(logits, Shard::new(vocab, 2 * vocab), &mut []), Ok(()));
        }
        // Rows of no classes: nothing is probable, and nothing can be drawn.
        let logits = Logits::<f32>::new(&[], 2, 0).unwrap();
        let samples = [Sample::new(1, 2); 2];
        let ask = LogProbs::new().backend(backend).entropy(true).sample(&samples);
        let found = ask.collect(logits).unwrap();
        assert_eq!((found.argmax, found.sampled), (vec![-1; 2], vec![-1; 2]));
        assert_eq!(found.logsumexp, [f32::NEG_INFINITY; 2]);
        assert!(found.entropy.iter().chain(&found.sampled_logprobs).all(|x| x.is_nan()));
        let logits = Logits::<f64>::new(&[], 2, 0).unwrap();
        let found = ask.collect(logits).unwrap();
        assert_eq!((found.argmax, found.sampled), (vec![-1; 2], vec![-1; 2]));
        let error = Error::TargetOutOfRange { row: 0, target: 0, vocab: 0 };
        assert_eq!(ask.targets(&[0i64, -100]).collect(logits).unwrap_err(), error);
    }
}

#[test]
fn samplers() {
    let sample = Sample::new(1, 2);
    let option = |option, value: &str, range| Error::Option { option, value: value.into(), range };
    let draw = |sampler: Sampler, sample| sampler.draw(&[1, 0], &[-0.5_f32, -1.0], 9, sample);
    let of = |sampler: Sampler, error: Error, text: &str| fails(draw(sampler, sample), error, text);
    for (p, value) in [(-1e-9, "-1e-9"), (f64::NAN, "NaN"), (f64::NEG_INFINITY, "-inf")] {
        let (range, text) = ("at least 0", format!("top_p = {value} is not at least 0"));
        of(Sampler::new().top_p(p), option("top_p", value, range), &text);
        let text = format!("min_p = {value} is not at least 0");
        of(Sampler::new().min_p(p), option("min_p", value, range), &text);
    }
    // Of a vocabulary of 9, where 2 are known.
    let all = "without top_k, top_p or min_p all tokens are needed, but only the 2 most probable are known; \
               set Sampler::top_k, or draw among all with LogProbs::sample";
    let more = |option: &str| {
        format!(
            "{option} needs more than the 2 most probable tokens; ask LogProbs::top_k for more, \
             set Sampler::top_k to at most 2, or draw among all with LogProbs::sample"
        )
    };
    let many = "top_k needs more than the 2 most probable tokens; \
                ask LogProbs::top_k for as many, or draw among all with LogProbs::sample";
    for (sampler, option, text) in [
        (Sampler::new(), "no filter", all),
        (Sampler::new().top_k(0), "no filter", all),
        (Sampler::new().top_p(1.0), "no filter", all),
        (Sampler::new().min_p(0.0), "no filter", all),
        (Sampler::new().top_k(3), "top_k", many),
        (Sampler::new().top_k(9), "top_k", many),
        (Sampler::new().top_k(usize::MAX), "top_k", many),
        (Sampler::new().top_p(0.99), "top_p", &more("top_p")),
        (Sampler::new().top_k(0).top_p(0.99), "top_p", &more("top_p")),
        (Sampler::new().min_p(0.5), "min_p", &more("min_p")),
    ] {
        of(sampler, Error::TooFewTokens { option, known: 2 }, text);
    }
    for (t, temperature) in
        [(-1.0, "-1"), (-1e-300, "-1e-300"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")]
    {
        let error = Error::SampleTemperature { row: 0, temperature: temperature.to_owned() };
        let text =
            format!("row 0: temperature {temperature} of a sample is not finite and at least 0");
        fails(draw(Sampler::new().top_k(1), sample.temperature(t)), error, &text);
    }
    let range = "1 or 0, where top_p is of the whole vocabulary (after top_k it may be any)";
    for (t, value) in [(0.5, "0.5"), (1e-38, "1e-38"), (1e300, "1e300")] {
        let text = format!("temperature = {value} is not {range}");
        let error = option("temperature", value, range);
        fails(draw(Sampler::new().top_p(0.1), sample.temperature(t)), error, &text);
    }
    let what = "log-probabilities of tokens";
    let result = Sampler::new().draw(&[1, 0], &[0.0_f32], 2, sample);
    let text = "log-probabilities of tokens: 1 values instead of 2";
    fails(result, Error::InputLength { what, len: 1, expected: 2 }, text);
    for logprobs in [[f32::NAN, 0.0], [0.0, f32::NAN], [f32::NEG_INFINITY; 2]] {
        let text =
            "no token can be drawn: 2 are known, none with a finite log-probability, or one is NaN";
        let drawn = Sampler::new().draw(&[1, 0], &logprobs, 2, sample);
        fails(drawn, Error::NothingToSample { known: 2 }, text);
    }
    let error = Error::NothingToSample { known: 0 };
    let text =
        "no token can be drawn: no token is known; ask LogProbs::top_k for the most probable ones";
    fails(Sampler::new().draw::<f32>(&[], &[], 0, sample), error.clone(), text);
    fails(Sampler::new().draw_row(&RowStats::default(), 9, sample), error.clone(), text);
    fails(Sampler::new().draw_row(&marked(), 1, sample), error, text);
    // Whatever the order, the ids and the vocabulary: one of the tokens.
    let (ids, logprobs) = ([i64::from(u32::MAX) - 1, 7, 7], [-3.0, 9.0, f64::INFINITY]);
    let filters = [0.0, 1e-300, 0.5, 1.0 - 2f64.powi(-53), 1.0, f64::INFINITY];
    for t in [0.0, 5e-324, 1e-300, 1.0, f64::MAX] {
        for vocab in [0, 3, 9] {
            for p in filters {
                for sampler in [
                    Sampler::new(),
                    Sampler::new().top_p(p),
                    Sampler::new().min_p(p),
                    Sampler::new().top_k(2).top_p(p).min_p(p),
                    Sampler::new().top_k(usize::MAX).top_p(p).min_p(p),
                ] {
                    let drawn = sampler.draw(&ids, &logprobs, vocab, sample.temperature(t));
                    let is_whole = vocab <= 3;
                    assert!(drawn.is_ok() || !is_whole, "{t}, {sampler:?}: {drawn:?}");
                    assert!(drawn.is_err() || ids.contains(&drawn.unwrap()));
                }
            }
        }
    }
    for id in [i64::MIN, -1, u32::MAX.into(), i64::MAX] {
        let error = Error::NotAToken { row: 0, id: id.into() };
        let drawn = Sampler::new().draw(&[1, id], &logprobs[..2], 0, sample);
        fails(drawn, error, &format!("row 0: {id} is not a token"));
    }
}

#[test]
fn statistics_from_bytes() {
    let bytes = marked().to_bytes();
    assert_eq!(RowStats::from_bytes(&bytes), Ok(marked()));
    let text = "these bytes are no statistics of a row, or of another version of this crate";
    fails(RowStats::from_bytes(&[0xff; RowStats::BYTES]), Error::RowStatsBytes, text);
    // A bit more or less is refused, or makes other statistics, which answer all the same.
    for bit in 0..8 * RowStats::BYTES {
        let mut bytes = bytes;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(stats) = RowStats::from_bytes(&bytes) else { continue };
        let merged = [stats.merge(&marked()), marked().merge(&stats), stats.merge(&stats)];
        for stats in merged.into_iter().flatten().chain([stats]) {
            let _ = (stats.loss(), stats.saved(), stats.rank(), stats.strict_rank());
            let _ = (stats.argmax(), stats.entropy(), stats.varentropy(), stats.sampled());
            assert!(stats.top_k().count() <= 128);
            let sampler = Sampler::new().top_k(2).top_p(0.5).min_p(0.5);
            let _ = sampler.draw_row(&stats, 2, Sample::new(1, 2));
        }
    }
}

#[test]
fn comparisons() {
    let (mut kl, mut same_top, mut logprobs) = ([7.0; 2], [true; 2], [7.0; 2]);
    let mut refused = |compare: Compare, other: Logits<'_>, error: Error, text: &str| {
        for &backend in Backend::available() {
            let compare = compare.backend(backend);
            let mut out = CompareOutputs::new().kl(&mut kl).same_top(&mut same_top);
            fails(compare.divergences(two_rows(), other, out), error.clone(), text);
            out = CompareOutputs::new().kl(&mut kl).same_top(&mut same_top);
            fails(compare.evaluate(two_rows(), other, out), error.clone(), text);
            assert_eq!((kl, same_top), ([7.0; 2], [true; 2]));
        }
    };
    for (rows, vocab) in [(1, 3), (2, 2), (3, 2), (6, 1), (0, 3)] {
        let error = Error::ComparedShape { base: (2, 3), other: (rows, vocab) };
        let text = format!("the base is 2 x 3, but the other is {rows} x {vocab}");
        let other = Logits::new(&X[..rows * vocab], rows, vocab).unwrap();
        refused(Compare::new(), other, error, &text);
    }
    let option = |option, value: f64, range| {
        let value = number(value);
        let text = format!("{option} = {value} is not {range}");
        (Error::Option { option, value, range }, text)
    };
    for t in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-40, 1e39] {
        let (error, text) = option("temperature", t, "a positive number of the range of f32");
        refused(Compare::new().temperature(t), two_rows(), error, &text);
    }
    for beta in [-1e-9, 1.0 + 1e-9, f64::NAN, f64::INFINITY] {
        let (error, text) = option("beta", beta, "between 0 and 1");
        refused(Compare::new().beta(beta), two_rows(), error, &text);
    }
    let error = Error::TargetOutOfRange { row: 1, target: 3, vocab: 3 };
    let text = "row 1: target 3 is out of range for a vocabulary of 3";
    refused(Compare::new().targets(&[-100i64, 3]), two_rows(), error, text);
    let text = "models are compared at targets that are classes, not probabilities";
    let probs = Compare::new().targets(Targets::probs(&[0.5_f32; 6]));
    refused(probs, two_rows(), Error::ComparedProbs, text);
    for &backend in Backend::available() {
        let compare = Compare::new().backend(backend);
        let out = CompareOutputs::new().kl(&mut kl).base_logprobs(&mut logprobs);
        let error = Error::TargetCount { rows: 2, targets: 0 };
        let text = "0 targets for 2 rows";
        fails(compare.divergences(two_rows(), two_rows(), out), error.clone(), text);
        let out = CompareOutputs::new().kl(&mut kl).base_logprobs(&mut logprobs);
        fails(compare.evaluate(two_rows(), two_rows(), out), error, text);
        let out = CompareOutputs::new().kl(&mut kl).jsd(&mut logprobs[..1]);
        let error = Error::OutputLength { output: "jsd", len: 1, expected: 2 };
        let text = "output `jsd` has 1 elements instead of 2";
        fails(compare.divergences(two_rows(), two_rows(), out), error, text);
        assert_eq!((kl, logprobs), ([7.0; 2], [7.0; 2]));
    }
}

#[test]
fn offsets_of_sequences() {
    let score = SequenceScore { logprob: 7.0, tokens: 7, first_mismatch: None };
    let bound = |index, offset, expected| Error::OffsetBound { index, offset, expected };
    for (offsets, error) in [
        (&[][..], Error::NoOffsets),
        (&[0], bound(0, 0, 2)),
        (&[1, 2], bound(0, 1, 0)),
        (&[0, 1], bound(1, 1, 2)),
        (&[0, 3], bound(1, 3, 2)),
        (&[0, usize::MAX], bound(1, usize::MAX, 2)),
        (&[0, 2, 1], Error::OffsetOrder { index: 2, offset: 1, before: 2 }),
        (&[0, usize::MAX, 2], Error::OffsetOrder { index: 2, offset: 2, before: usize::MAX }),
    ] {
        for &backend in Backend::available() {
            let ce = CrossEntropy::new().backend(backend);
            let mut scores = vec![score; offsets.len().saturating_sub(1)];
            let result = ce.sequences(two_rows(), &[0i64, 1], offsets, &mut scores);
            assert_eq!(result, Err(error.clone()));
            assert!(scores.iter().all(|&other| other == score));
            let result = ce.score_sequences(two_rows(), &[0i64, 1], offsets);
            assert_eq!(result, Err(error.clone()));
        }
    }
    let mut scores = [score; 2];
    for len in [0, 2] {
        let error = Error::OutputLength { output: "scores", len, expected: 1 };
        let ce = CrossEntropy::new();
        let result = ce.sequences(two_rows(), &[0i64, 1], &[0, 2], &mut scores[..len]);
        assert_eq!(result, Err(error));
        let error = Error::TargetOutOfRange { row: 1, target: 3, vocab: 3 };
        let result = ce.sequences(two_rows(), &[0i64, 3], &[0, 2], &mut scores[..1]);
        assert_eq!(result, Err(error));
    }
    assert_eq!(scores, [score; 2]);
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
