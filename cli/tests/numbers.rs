//! What is printed is what the library and the oracle say, to the bit.

use crate::common::{Dtype, Files, bytes, json, json_and_stderr, losses, noise, score, text};
use serde::Deserialize;
use serde_json::{Value, json};
use xent::{Backend, CrossEntropy, Logits, RowOutputs, bf16, f16, reference};

const ROWS: usize = 37;
const VOCAB: usize = 1_031;

#[derive(Debug, Deserialize)]
struct Row {
    row: usize,
    target: i64,
    ignored: Option<bool>,
    loss: Option<f32>,
    lse: Option<f32>,
    logprob: Option<f32>,
    argmax: Option<i64>,
    correct: Option<bool>,
}

fn rows(report: &Value) -> Vec<Row> {
    // From text: a `Value` would hold the numbers as f64, rounded twice on their way to f32.
    serde_json::from_str(&report["rows"].to_string()).unwrap()
}

/// Rows of noise, some ignored, some with the largest logit as their target.
fn sample() -> (Vec<f32>, Vec<i64>) {
    let logits = noise(ROWS * VOCAB, 42);
    let target = |(i, row): (usize, &[f32])| match i % 5 {
        0 => -100,
        1 => reference::row(row, 0).argmax as i64,
        _ => (i * 271 % VOCAB) as i64,
    };
    let targets = logits.chunks(VOCAB).enumerate().map(target).collect();
    (logits, targets)
}

/// All that does not depend on the clock or on how it was computed.
fn results(mut report: Value) -> Value {
    for key in ["backend", "threads", "seconds", "gb_per_s"] {
        assert!(report.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    report
}

#[test]
fn rows_are_within_the_stated_error_of_the_oracle() {
    let (logits, targets) = sample();
    let report = json(&Files::new().dump(&logits, VOCAB, &targets), &[]);
    let rows = rows(&report);
    assert_eq!(rows.len(), ROWS);
    let mut kept = 0;
    for ((row, logits), &target) in rows.iter().zip(logits.chunks(VOCAB)).zip(&targets) {
        assert_eq!(row.target, target);
        let Ok(target) = usize::try_from(target) else {
            let nothing = [row.loss, row.lse, row.logprob].iter().all(Option::is_none);
            assert!(nothing && row.ignored == Some(true), "{row:?}");
            assert_eq!((row.argmax, row.correct), (None, None));
            continue;
        };
        assert_eq!(row.ignored, None);
        let (loss, lse, logprob) = (row.loss.unwrap(), row.lse.unwrap(), row.logprob.unwrap());
        kept += 1;
        let exact = reference::row(logits, target);
        assert!(
            reference::ulp_error(loss, exact.loss) <= f64::from(xent::LOSS_MAX_ULP),
            "{row:?} {exact:?}"
        );
        assert!(reference::ulp_error(lse, exact.logsumexp) <= 1.0, "{row:?} {exact:?}");
        assert_eq!(logprob, -loss);
        assert_eq!(row.argmax, Some(exact.argmax as i64));
        assert_eq!(row.correct, Some(exact.argmax == target));
    }
    assert_eq!(kept, 29);

    let (sum, count) = reference::cross_entropy(&logits, VOCAB, &targets, -100);
    assert_eq!(report["count"], json!(count));
    assert_eq!(report["ignored"], json!(ROWS - count));
    let mean = sum / count as f64;
    assert!((report["loss"].as_f64().unwrap() - mean).abs() <= 1e-7 * mean);
}

#[test]
fn every_number_reads_back_as_the_same_bits() {
    let (logits, targets) = sample();
    let file = Files::new();
    let file = file.dump(&logits, VOCAB, &targets);
    let (mut losses, mut lse) = ([0.0; ROWS], [0.0; ROWS]);
    let (mut logprobs, mut argmax) = ([0.0; ROWS], [0; ROWS]);
    let outputs = RowOutputs::new()
        .losses(&mut losses)
        .logsumexp(&mut lse)
        .logprobs(&mut logprobs)
        .argmax(&mut argmax);
    let logits = Logits::new(&logits, ROWS, VOCAB).unwrap();
    let e = CrossEntropy::new().evaluate(logits, &targets, outputs).unwrap();

    let report = json(&file, &[]);
    for (key, want) in [
        ("loss", e.loss()),
        ("perplexity", e.perplexity()),
        ("nll", e.mean()),
        ("nll_stderr", e.stderr()),
        ("perplexity_stderr", e.perplexity_stderr()),
        ("bits_per_token", e.bits_per_token()),
        ("accuracy", e.accuracy().unwrap()),
    ] {
        assert_eq!(report[key].as_f64().unwrap().to_bits(), want.to_bits(), "{key}");
    }
    for (i, row) in rows(&report).iter().enumerate() {
        assert_eq!(row.row, i);
        if targets[i] < 0 {
            continue;
        }
        let got = [row.loss, row.lse, row.logprob].map(|x| x.unwrap().to_bits());
        assert_eq!(got, [losses[i], lse[i], logprobs[i]].map(f32::to_bits), "row {i}");
        assert_eq!(row.argmax, Some(argmax[i]));
    }
    // Shortest for f32: what `Debug` prints, and not the digits of the same number as f64.
    let output = score(&file, ["--json", "--per-token"]);
    assert!(
        text(&output.stdout).contains(&format!("\"loss\":{:?},\"lse\":{:?},", losses[1], lse[1]))
    );
}

#[test]
fn the_schema() {
    let logits = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0];
    let report = json(&Files::new().dump(&logits, 3, &[2, 1]), &[]);
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    let mut expected = vec![
        "loss",
        "loss_is",
        "reduction",
        "perplexity",
        "perplexity_stderr",
        "nll",
        "nll_stderr",
        "bits_per_token",
        "accuracy",
        "count",
        "ignored",
        "nan_rows",
        "vocab",
        "backend",
        "threads",
        "seconds",
        "gb_per_s",
        "rows",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(report["loss_is"], "finite");
    assert_eq!(report["reduction"], "mean");
    assert_eq!(report["accuracy"], json!(0.5));
    assert_eq!(report["vocab"], json!(3));
    assert_eq!(report["backend"], Backend::selected().unwrap().name());
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    assert!(report["gb_per_s"].as_f64().unwrap() > 0.0);
    let [a, b] = losses(&logits, 3, [2, 1]);
    let expected = format!(
        r#"[{{"row":0,"target":2,"loss":{a:?},"lse":{},"logprob":{:?},"argmax":2,"correct":true}},
            {{"row":1,"target":1,"loss":{b:?},"lse":{},"logprob":{:?},"argmax":2,"correct":false}}]"#,
        report["rows"][0]["lse"], -a, report["rows"][1]["lse"], -b,
    );
    assert_eq!(report["rows"], serde_json::from_str::<Value>(&expected).unwrap());
}

#[test]
fn numbers_that_json_cannot_hold_are_null_and_named() {
    const INF: f32 = f32::INFINITY;
    let files = Files::new();
    let (report, _) = json_and_stderr(&files.dump(&[f32::NAN, 0.0, 0.0, 0.0], 2, &[1, 0]), &[]);
    assert_eq!((&report["loss"], &report["loss_is"]), (&Value::Null, &json!("nan")));
    for key in ["perplexity", "perplexity_stderr", "nll", "nll_stderr", "bits_per_token"] {
        assert_eq!(report[key], Value::Null, "{key}");
        assert_eq!(report[format!("{key}_is")], "nan", "{key}");
    }
    assert_eq!(
        report["rows"][0],
        json!({
            "row": 0, "target": 1, "loss": null, "loss_is": "nan", "lse": null, "lse_is": "nan", "logprob": null,
            "logprob_is": "nan", "argmax": 0, "correct": false
        })
    );
    assert_eq!(report["rows"][1].get("loss_is"), None);

    let report = json(&files.dump(&[-INF, 0.0, 0.0, 0.0], 2, &[0, 0]), &["--reduction", "sum"]);
    assert_eq!((&report["loss"], &report["loss_is"]), (&Value::Null, &json!("inf")));
    for (key, is) in [("perplexity", "inf"), ("bits_per_token", "inf"), ("nll_stderr", "nan")] {
        assert_eq!(report[format!("{key}_is")], is, "{key}");
    }
    assert_eq!(report["nan_rows"], json!(0));
    let masked = &report["rows"][0];
    assert!(masked["lse"].as_f64().unwrap().abs() <= f64::from(f32::EPSILON), "{masked}");
    assert_eq!((&masked["loss"], &masked["loss_is"]), (&Value::Null, &json!("inf")));
    assert_eq!((&masked["logprob"], &masked["argmax"]), (&Value::Null, &json!(1)));
    assert_eq!(masked["logprob_is"], "-inf");
    assert_eq!(masked.get("lse_is"), None);

    let args = ["--z-loss=1", "--reduction=none"];
    let (report, _) = json_and_stderr(&files.dump(&[INF, 0.0], 2, &[0]), &args);
    for key in ["loss", "cross_entropy", "z_loss"] {
        assert_eq!((&report[key], &report[format!("{key}_is")]), (&Value::Null, &json!("none")));
    }
    assert_eq!(report["nll_is"], "nan");
    let row = &report["rows"][0];
    assert_eq!((&row["z_loss_is"], &row["lse_is"]), (&json!("inf"), &json!("inf")));
    let (report, _) = json_and_stderr(&files.dump(&[INF, 0.0], 2, &[0]), &["--z-loss=1"]);
    assert_eq!((&report["cross_entropy_is"], &report["z_loss_is"]), (&json!("nan"), &json!("inf")));
    files.dump(&[-INF, 0.0, 0.0, 0.0], 2, &[0, 0]);

    let output = score(&files.path("dump.safetensors"), ["--per-token"]);
    let stdout = text(&output.stdout);
    assert!(stdout.contains("loss            inf +/- NaN (mean)"), "{stdout}");
    assert!(stdout.lines().nth(1).unwrap().contains(" inf "), "{stdout}");
}

#[test]
fn reductions() {
    let (logits, targets) = sample();
    let files = Files::new();
    let file = files.dump(&logits, VOCAB, &targets);
    let mean = json(&file, &["--reduction", "mean"]);
    let sum = json(&file, &["--reduction", "sum"]);
    let over = json(&file, &["--reduction", "mean-over:8"]);
    let none = json(&file, &["--reduction", "none"]);
    let total = sum["loss"].as_f64().unwrap();
    assert_eq!(mean["loss"].as_f64().unwrap(), total / 29.0);
    assert_eq!(over["loss"].as_f64().unwrap(), total / 8.0);
    assert_eq!((&none["loss"], &none["loss_is"]), (&Value::Null, &json!("none")));
    let names = [&mean, &sum, &over, &none].map(|report| report["reduction"].as_str().unwrap());
    assert_eq!(names, ["mean", "sum", "mean-over:8", "none"]);
    for report in [&sum, &over, &none] {
        for key in ["perplexity", "nll", "nll_stderr", "bits_per_token", "accuracy", "rows"] {
            assert_eq!(report[key], mean[key], "{key}");
        }
    }
}

#[test]
fn every_backend_and_any_number_of_threads_give_the_same_output() {
    let (logits, targets) = sample();
    let files = Files::new();
    let file = files.dump(&logits, VOCAB, &targets);
    let expected = results(json(&file, &["--backend", "scalar", "--threads", "1"]));
    let mut ran = Vec::new();
    for &backend in Backend::ALL {
        if !backend.is_available() {
            println!("skipped: {backend} is not available here");
            continue;
        }
        // Without fused multiply-add the portable backend has the bound but not the bits.
        let same_bits = backend.is_bit_exact();
        for threads in ["1", "2", "3"] {
            let report = json(&file, &["--backend", backend.name(), "--threads", threads]);
            assert_eq!(report["backend"], backend.name());
            assert_eq!(report["threads"].to_string(), threads);
            if same_bits {
                assert_eq!(results(report), expected, "{backend}, {threads} threads");
            } else {
                let one = json(&file, &["--backend", backend.name(), "--threads", "1"]);
                let (one, report) = (results(one), results(report));
                assert_eq!(report, one, "{backend}, {threads} threads");
                let (a, b) = (report["loss"].as_f64(), expected["loss"].as_f64());
                assert!((a.unwrap() - b.unwrap()).abs() < 1e-6);
            }
        }
        ran.push(backend);
    }
    assert_eq!(ran, Backend::available());
    println!("ran: {ran:?}");
}

#[test]
fn the_environment_chooses_a_backend_unless_the_command_line_does() {
    let files = Files::new();
    let file = files.dump(&[0.0; 4], 2, &[0, 1]);
    let backend = |args: &[&str]| {
        let mut command = crate::common::xent();
        command.env("XENT_BACKEND", "scalar").arg("score").arg(&file).arg("--json").args(args);
        let report: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        report["backend"].clone()
    };
    assert_eq!(backend(&[]), "scalar");
    assert_eq!(backend(&["--backend", "portable"]), "portable");
    assert_eq!(backend(&["--backend", "Portable"]), "portable");
}

/// Half formats are the `f32` rows with the same numbers, and their gradients are of their own type.
#[test]
fn logits_of_sixteen_bits() {
    let (logits, targets) = sample();
    let files = Files::new();
    let rows = targets.len();
    let halves: [(Dtype, Vec<u16>, Vec<f32>); 2] = [
        (
            Dtype::BF16,
            logits.iter().map(|&x| bf16::from_f32(x).to_bits()).collect(),
            logits.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        ),
        (
            Dtype::F16,
            logits.iter().map(|&x| f16::from_f32(x).to_bits()).collect(),
            logits.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        ),
    ];
    for (dtype, stored, wide) in halves {
        let ids = ("targets", Dtype::I64, vec![rows], bytes(&targets));
        let logits = ("logits", dtype, vec![rows, VOCAB], bytes(&stored));
        let file = files.tensors("half", &[logits, ids]);
        let grad = files.path("grad");
        let args = ["--grad", grad.to_str().unwrap()];
        let expected = results(json(&files.dump(&wide, VOCAB, &targets), &[]));
        assert_eq!(results(json(&file, &[])), expected, "{dtype}");
        assert_eq!(results(json(&file, &args)), expected, "{dtype} with a gradient");
        let bytes = std::fs::read(&grad).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let grad = tensors.tensor("grad").unwrap();
        assert_eq!((grad.dtype(), grad.shape()), (dtype, &[rows, VOCAB][..]));
    }
}

#[test]
fn targets_of_any_type_and_tensors_of_any_name() {
    let logits = [1.0f32, 2.0, 3.0, 0.5, -1.0, 2.0, 7.0, 8.0, 9.0];
    let logits = || bytes(&logits);
    let files = Files::new();
    let expected = results(json(
        &files.tensors(
            "i64",
            &[
                ("logits", Dtype::F32, vec![3, 3], logits()),
                ("targets", Dtype::I64, vec![3], bytes(&[2i64, 9, 1])),
            ],
        ),
        &["--ignore-index", "9"],
    ));
    assert_eq!(expected["ignored"], json!(1));
    for (dtype, ids) in [(Dtype::I32, bytes(&[2i32, 9, 1])), (Dtype::U32, bytes(&[2u32, 9, 1]))] {
        let tensors = [
            ("lm_head.out", Dtype::F32, vec![3, 3], logits()),
            ("labels", dtype, vec![3], ids),
            ("logits", Dtype::U8, vec![2], vec![0, 0]),
        ];
        let file = files.tensors("other", &tensors);
        let args = ["--logits", "lm_head.out", "--targets=labels", "--ignore-index=9"];
        assert_eq!(results(json(&file, &args)), expected, "{dtype}");
    }
}

#[test]
fn an_ignore_index_may_be_negative_or_a_class_and_is_never_correct() {
    let files = Files::new();
    let file = files.dump(&[5.0, 1.0, f32::NAN, 2.0], 2, &[0, -1]);
    let report = json(&file, &["--ignore-index", "-1"]);
    assert_eq!((&report["count"], &report["ignored"]), (&json!(1), &json!(1)));
    assert_eq!(report["accuracy"], json!(1.0));
    assert_eq!(report["rows"][1], json!({"row": 1, "target": -1, "ignored": true}));
    let file = files.dump(&[5.0, 1.0, f32::NAN, 2.0], 2, &[0, 1]);
    let of_class = json(&file, &["--ignore-index", "1"]);
    assert_eq!(of_class["rows"][0], report["rows"][0]);
    assert_eq!(of_class["rows"][1], json!({"row": 1, "target": 1, "ignored": true}));
}

#[test]
fn tensors_that_are_not_aligned_are_read_all_the_same() {
    let logits = noise(4 * 9, 7);
    let ids = [3i64, -100, 0, 8];
    let files = Files::new();
    let expected = results(json(&files.dump(&logits, 9, &ids), &[]));
    let header = r#"{"logits":{"dtype":"F32","shape":[4,9],"data_offsets":[0,144]},"targets":{"dtype":"I64","shape":[4],"data_offsets":[144,176]}}"#;
    let data = [bytes(&logits), bytes(&ids)].concat();
    for padding in 0..8 {
        let file = files.raw(&(header.to_owned() + &" ".repeat(padding)), &data);
        assert_eq!(results(json(&file, &[])), expected, "{padding} bytes of padding");
    }
}

#[test]
fn empty_shapes() {
    let files = Files::new();
    let report = json(&files.dump(&[], 5, &[]), &[]);
    assert_eq!((&report["loss"], &report["loss_is"]), (&Value::Null, &json!("nan")));
    assert_eq!((&report["accuracy"], &report["count"]), (&Value::Null, &json!(0)));
    assert_eq!(report["rows"], json!([]));
    assert_eq!(json(&files.dump(&[], 5, &[]), &["--reduction", "sum"])["loss"], json!(0.0));

    let report = json(&files.dump(&[], 0, &[-100, -100]), &[]);
    assert_eq!((&report["ignored"], &report["loss_is"]), (&json!(2), &json!("nan")));
    let output = score(&files.path("dump.safetensors"), [""; 0]);
    assert!(text(&output.stdout).contains("rows            0 kept, 2 ignored"));
}

/// A NaN is no error, but nobody should have to look for it.
#[test]
fn rows_that_are_nan_are_counted_and_the_first_is_named() {
    const INF: f32 = f32::INFINITY;
    let files = Files::new();
    for (bad, why) in [
        ([f32::NAN, 1.0], "a logit is NaN"),
        ([f32::NAN, INF], "a logit is NaN"),
        ([0.0, INF], "a logit is +inf"),
        ([-INF, -INF], "all logits are -inf"),
    ] {
        let [a, b] = bad;
        let logits = [0.0, 0.0, a, b, 0.0, 1.0, a, b, a, b];
        // The last of these rows is left out, and not looked at.
        let file = files.dump(&logits, 2, &[0, 0, 1, 1, -100]);
        let expected =
            format!("xent: {}: the loss of 2 rows is NaN, first in row 1: {why}\n", file.display());
        let grad = files.path("grad");
        for args in [&[][..], &["--json"], &["--per-token"], &["--grad", grad.to_str().unwrap()]] {
            let output = score(&file, args);
            assert_eq!(output.status.code(), Some(0), "{args:?}");
            assert_eq!(text(&output.stderr), expected, "{args:?}");
        }
        let (report, _) = json_and_stderr(&file, &[]);
        assert_eq!((&report["nan_rows"], &report["first_nan_row"]), (&json!(2), &json!(1)));
        assert_eq!((&report["count"], &report["ignored"]), (&json!(4), &json!(1)));
        assert_eq!(report["accuracy"], json!(0.5));
        let correct: Vec<Option<bool>> = rows(&report).iter().map(|row| row.correct).collect();
        assert_eq!(correct, [Some(true), Some(false), Some(true), Some(false), None], "{why}");
        let table = score(&file, ["--per-token"]);
        let second = text(&table.stdout).lines().nth(2).unwrap().to_owned();
        assert!(second.contains(" NaN ") && second.ends_with(" no"), "{second}");
    }

    // Rows are counted through all sequences, and what is padding is not looked at.
    let mut logits = [0f32; 24];
    logits[4 * 4] = INF;
    logits[4 * 4 + 3] = f32::NAN;
    let tensors = |targets: &[i64; 6]| {
        [
            ("logits", Dtype::F32, vec![2, 3, 4], bytes(&logits)),
            ("targets", Dtype::I64, vec![2, 3], bytes(targets)),
        ]
    };
    let file = files.tensors("sequences", &tensors(&[0; 6]));
    let (report, stderr) = json_and_stderr(&file, &["--shift", "--vocab=3"]);
    assert_eq!((&report["nan_rows"], &report["first_nan_row"]), (&json!(1), &json!(4)));
    assert!(stderr.ends_with("the loss of 1 row is NaN, first in row 4: a logit is +inf\n"));

    // What is not the logits' fault has no reason given.
    let weights = [1f32, f32::NAN, 1.0, 1.0];
    let [logits, targets] = tensors(&[0, 0, 0, 1, 0, 0]);
    let w = ("w", Dtype::F32, vec![4], bytes(&weights));
    let file = files.tensors("weights", &[logits, targets, w]);
    let (_, stderr) = json_and_stderr(&file, &["--weight=w"]);
    assert!(stderr.ends_with("the loss of 2 rows is NaN, first in row 3\n"), "{stderr}");

    // Rows without a loss that is NaN are not mentioned, nor is the mean of no rows.
    assert_eq!(json(&files.dump(&[-INF, 0.0], 2, &[0]), &[])["nan_rows"], json!(0));
    let report = json(&files.dump(&[f32::NAN; 2], 2, &[-100]), &[]);
    assert_eq!((&report["loss_is"], report.get("first_nan_row")), (&json!("nan"), None));
}

#[test]
fn numbers_have_an_exponent_where_there_would_be_dozens_of_zeros() {
    let files = Files::new();
    let file = files.dump(&[0.0, 0.0], 2, &[0]);
    for (count, shown) in [("1e-38", "1e-38"), ("1e300", "1e300"), ("8", "8"), ("0.125", "0.125")] {
        let reduction = format!("--reduction=mean-over:{count}");
        assert_eq!(json(&file, &[&reduction])["reduction"], format!("mean-over:{shown}"));
        let output = score(&file, [&reduction]);
        let first = text(&output.stdout).lines().next().unwrap().to_owned();
        assert!(first.ends_with(&format!(" (mean-over:{shown})")) && first.len() < 60, "{first}");
    }
}
