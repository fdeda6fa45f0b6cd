//! Logits in sequences, and with padding: the numbers of contiguous rows, to the bit.

use crate::common::{
    Dtype, Files, Grad, Tensor, bytes, json, json_and_stderr, noise, read_grad, results, score,
    text,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use xent::{bf16, f16};

const BATCH: usize = 3;
const TIME: usize = 5;
const ROWS: usize = BATCH * TIME;
const VOCAB: usize = 37;
const PADDED: usize = 48;

const MATRIX: &[usize] = &[ROWS];
const SEQUENCES: &[usize] = &[BATCH, TIME];

const TYPES: [Dtype; 4] = [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F16];

const LOSS: [&str; 6] = [
    "--weight=w",
    "--label-smoothing=0.1",
    "--z-loss=0.01",
    "--softcap=6",
    "--logit-scale=0.75",
    "--temperature=1.25",
];

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytes(values),
        Dtype::F64 => bytes(&values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
        Dtype::BF16 => {
            bytes(&values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect::<Vec<_>>())
        }
        Dtype::F16 => {
            bytes(&values.iter().map(|&x| f16::from_f32(x).to_bits()).collect::<Vec<_>>())
        }
        _ => panic!("{dtype} is no type of logits"),
    }
}

fn ids() -> Vec<i64> {
    (0..ROWS).map(|i| if i % 4 == 1 { -100 } else { (i * 7 % VOCAB) as i64 }).collect()
}

/// The same numbers however they are laid out, and NaN wherever there is padding.
fn file(files: &Files, dtype: Dtype, rows: &[usize], stored: usize, ids: &[i64]) -> PathBuf {
    let real = if dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
    let with = |classes| [rows, &[classes]].concat();
    let mut padded = vec![f32::NAN; ROWS * stored];
    for (to, row) in padded.chunks_mut(stored).zip(noise(ROWS * VOCAB, 1).chunks(VOCAB)) {
        to[..VOCAB].copy_from_slice(row);
    }
    let probs: Vec<f32> = noise(ROWS * VOCAB, 2).iter().map(|x| x.abs() / 100.0).collect();
    let weight: Vec<f32> = noise(VOCAB, 3).iter().map(|w| 1.0 + w / 8.0).collect();
    let tensors: [Tensor<'_>; 6] = [
        ("logits", dtype, with(stored), encode(dtype, &padded)),
        ("targets", Dtype::I64, rows.to_vec(), bytes(ids)),
        ("w", real, vec![VOCAB], encode(real, &weight)),
        ("teacher", real, with(VOCAB), encode(real, &probs)),
        ("up_rows", Dtype::F32, rows.to_vec(), bytes(&noise(ROWS, 4))),
        ("up", Dtype::F64, vec![], bytes(&[0.375f64])),
    ];
    files.tensors(&format!("{dtype} {rows:?} {stored}"), &tensors)
}

/// What is printed, and the gradient.
fn scored(file: &Path, args: &[&str]) -> (Value, Grad) {
    let out = file.with_extension("grad");
    let report = results(json(file, &[args, &["--grad", out.to_str().unwrap()]].concat()));
    (report, read_grad(&out))
}

/// All lines but those of the clock.
fn lines(file: &Path, args: &[&str]) -> Vec<String> {
    let output = score(file, args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout).lines().filter(|line| !line.starts_with("time "));
    lines.map(str::to_owned).collect()
}

/// A gradient of these rows with padding of zeros.
fn pad(grad: &Grad, rows: &[usize], stored: usize) -> Grad {
    let size = grad.dtype.bitsize() / 8;
    let mut data = Vec::new();
    for row in grad.data.chunks(VOCAB * size) {
        data.extend_from_slice(row);
        data.resize(data.len() + (stored - VOCAB) * size, 0);
    }
    Grad { dtype: grad.dtype, shape: [rows, &[stored]].concat(), data }
}

#[test]
fn neither_sequences_nor_padding_change_a_bit() {
    let vocab = format!("--vocab={VOCAB}");
    let with_probs = [&LOSS[..], &["--target-probs=teacher"]].concat();
    let cases: [&[&str]; 6] = [
        &[],
        &LOSS,
        &with_probs,
        &["--upstream=up_rows", "--weight=w", "--threads=3"],
        &["--upstream=up", "--reduction=sum"],
        &["--reduction=none", "--upstream=up_rows", "--target-probs=teacher"],
    ];
    for dtype in TYPES {
        let files = Files::new();
        let plain = file(&files, dtype, MATRIX, VOCAB, &ids());
        let expected: Vec<_> = cases.iter().map(|args| scored(&plain, args)).collect();
        assert_eq!(expected[0].0["count"], json!(11));
        assert!(expected.iter().all(|(report, _)| report["vocab"] == VOCAB));
        for (rows, stored) in [(SEQUENCES, VOCAB), (MATRIX, PADDED), (SEQUENCES, PADDED)] {
            let other = file(&files, dtype, rows, stored, &ids());
            for (args, (report, grad)) in cases.iter().zip(&expected) {
                let (got, got_grad) = scored(&other, &[args, &[vocab.as_str()][..]].concat());
                assert_eq!(&got, report, "{dtype} {rows:?} {stored} {args:?}");
                let same = got_grad == pad(grad, rows, stored);
                assert!(same, "{dtype} {rows:?} {stored} {args:?}");
            }
            assert_eq!(results(json(&other, &[&vocab])), expected[0].0);
            let table = lines(&plain, &["--per-token"]);
            assert_eq!(lines(&other, &["--per-token", &vocab]), table, "{dtype}");
        }
        // Without the option, that of the file is the vocabulary.
        let sequences = file(&files, dtype, SEQUENCES, VOCAB, &ids());
        assert_eq!(scored(&sequences, &[]).0, expected[0].0);
    }
}

#[test]
fn padding_shows_as_soon_as_it_is_no_padding() {
    let files = Files::new();
    let padded = file(&files, Dtype::F32, SEQUENCES, PADDED, &ids());
    let vocab = format!("--vocab={}", VOCAB + 1);
    for args in [&[][..], &[vocab.as_str()]] {
        let (report, stderr) = json_and_stderr(&padded, args);
        assert_eq!((&report["loss_is"], &report["nan_rows"]), (&json!("nan"), &json!(11)));
        let expected = "the loss of 11 rows is NaN, first in row 0: a logit is NaN\n";
        assert!(stderr.ends_with(expected), "{args:?}: {stderr}");
    }
}

#[test]
fn a_vocabulary_of_one_class() {
    let files = Files::new();
    let x = [3f32, f32::NAN, f32::INFINITY, 4.0, f32::NAN, f32::NAN];
    let file = files.dump(&x, 3, &[0, 0]);
    let (report, grad) = scored(&file, &["--vocab", "1"]);
    assert_eq!((&report["loss"], &report["vocab"]), (&json!(0.0), &json!(1)));
    assert_eq!((grad.shape, grad.data), (vec![2, 3], bytes(&[0f32; 6])));
}

#[test]
fn a_padded_gradient_that_can_be_worked_out_by_hand() {
    let files = Files::new();
    let file = files.dump(&[0.0, 0.0, 9.0, 0.0, 0.0, 9.0], 3, &[0, 1]);
    let (report, grad) = scored(&file, &["--vocab", "2", "--reduction", "sum"]);
    assert!((report["loss"].as_f64().unwrap() - 2.0 * 2f64.ln()).abs() < 1e-12);
    assert_eq!(grad.data, bytes(&[-0.5f32, 0.5, 0.0, 0.5, -0.5, 0.0]));
}

/// The targets of rows that predict the tokens `by` later in sequences of this many.
fn shifted(tokens: &[i64], sequence: usize, by: usize, ignored: i64) -> Vec<i64> {
    let target = |row: usize| {
        let is_there = row % sequence + by < sequence;
        if is_there { tokens[row + by] } else { ignored }
    };
    (0..tokens.len()).map(target).collect()
}

/// Of the rows of a report.
fn targets(report: &Value) -> Vec<i64> {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().map(|row| row["target"].as_i64().unwrap()).collect()
}

#[test]
fn a_shift_is_targets_shifted_by_hand_to_the_bit() {
    let vocab = format!("--vocab={VOCAB}");
    let all = [&LOSS[..], &["--upstream=up_rows", "--threads=3"]].concat();
    let cases: [&[&str]; 3] = [&[], &all, &["--reduction=none", "--upstream=up"]];
    for dtype in TYPES {
        let files = Files::new();
        for (rows, stored, by) in [
            (SEQUENCES, VOCAB, 1),
            (SEQUENCES, PADDED, 4),
            (MATRIX, PADDED, 1),
            (MATRIX, VOCAB, 3),
            (MATRIX, VOCAB, ROWS - 1),
        ] {
            let by_hand = shifted(&ids(), rows[rows.len() - 1], by, -100);
            let shift = format!("--shift={by}");
            // Written over by the file with the tokens.
            let plain = file(&files, dtype, rows, stored, &by_hand);
            let expected = cases.map(|args| scored(&plain, &[args, &[vocab.as_str()]].concat()));
            let table = lines(&plain, &["--per-token", &vocab]);
            let tokens = file(&files, dtype, rows, stored, &ids());
            for (args, (report, grad)) in cases.iter().zip(&expected) {
                let args = [args, &[vocab.as_str(), &shift][..]].concat();
                let (got, got_grad) = scored(&tokens, &args);
                assert_eq!(targets(&got), by_hand, "{dtype} {rows:?} {args:?}");
                assert_eq!(&got, report, "{dtype} {rows:?} {args:?}");
                assert!(&got_grad == grad, "{dtype} {rows:?} {args:?}");
            }
            let without_gradient = results(json(&tokens, &[&vocab, &shift]));
            assert_eq!(without_gradient, expected[0].0, "{dtype} {rows:?} {shift}");
            assert_eq!(lines(&tokens, &["--per-token", &vocab, &shift]), table, "{dtype} {shift}");
        }
    }
}

#[test]
fn a_shift_is_of_tokens_of_any_type_and_by_1_if_nothing_else_is_said() {
    let files = Files::new();
    let x = noise(6 * 4, 5);
    let tokens = [3u32, 0, 1, 2, 2, 3];
    let write = |dtype, shape: [usize; 2], ids| {
        let logits = ("logits", Dtype::F32, [&shape[..], &[4]].concat(), bytes(&x));
        files.tensors("tokens", &[logits, ("input_ids", dtype, shape.to_vec(), ids)])
    };
    let by_hand = [0i64, 1, 7, 2, 3, 7];
    let args = ["--targets=input_ids", "--ignore-index=7"];
    let expected = results(json(&write(Dtype::I64, [2, 3], bytes(&by_hand)), &args));
    for (dtype, ids) in [
        (Dtype::U32, bytes(&tokens)),
        (Dtype::I32, bytes(&tokens.map(|id| id as i32))),
        (Dtype::I64, bytes(&tokens.map(i64::from))),
    ] {
        let file = write(dtype, [2, 3], ids);
        for shift in [&["--shift"][..], &["--shift", "1"], &["--shift=1"]] {
            let report = results(json(&file, &[shift, &args].concat()));
            // Those of rows without a target are the ignore index.
            assert_eq!(targets(&report), by_hand, "{dtype} {shift:?}");
            assert_eq!(report, expected, "{dtype} {shift:?}");
        }
        let table = lines(&file, &[&args[..], &["--per-token", "--shift"]].concat());
        let columns = |line: &str| -> Vec<String> {
            let all: Vec<&str> = line.split_whitespace().collect();
            [all[0], all[1], all[all.len() - 1]].map(str::to_owned).to_vec()
        };
        assert_eq!(columns(&table[3]), ["2", "7", "ignored"], "{table:?}");
        assert_eq!(columns(&table[4])[..2], ["3", "2"], "{table:?}");
    }
    // A shift by 0 is none.
    let file = write(Dtype::I64, [2, 3], bytes(&by_hand));
    let report = results(json(&file, &[&args[..], &["--shift", "0"]].concat()));
    assert_eq!(targets(&report), by_hand);
    assert_eq!(report, expected);
}

#[test]
fn tokens_that_nothing_predicts_may_be_anything() {
    let files = Files::new();
    let tensors = |first: i64| {
        [
            ("logits", Dtype::F32, vec![2, 2, 3], bytes(&noise(12, 6))),
            ("targets", Dtype::I64, vec![2, 2], bytes(&[first, 1, first, 2])),
        ]
    };
    let expected = results(json(&files.tensors("first", &tensors(0)), &["--shift"]));
    for first in [3, -1, i64::MIN, i64::MAX, -100] {
        let file = files.tensors("first", &tensors(first));
        assert_eq!(results(json(&file, &["--shift"])), expected, "{first}");
    }
    assert_eq!((&expected["count"], &expected["ignored"]), (&json!(2), &json!(2)));
}

#[test]
fn rows_without_a_target_are_not_read() {
    let files = Files::new();
    let file = files.dump(&[0.0, 0.0, f32::NAN, f32::NAN], 2, &[0, 1]);
    let (report, grad) = scored(&file, &["--shift"]);
    assert_eq!(report["count"], json!(1));
    assert!((report["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-12);
    assert_eq!(report["rows"][1]["target"], json!(-100));
    assert_eq!(grad.data, bytes(&[0.5f32, -0.5, 0.0, 0.0]));
}

#[test]
fn sequences_of_nothing() {
    let files = Files::new();
    for shape in [[0, 4, 5], [2, 0, 5], [0, 0, 0], [2, 3, 0]] {
        let rows = shape[0] * shape[1];
        let tensors = [
            ("logits", Dtype::BF16, shape.to_vec(), vec![]),
            ("targets", Dtype::I32, shape[..2].to_vec(), bytes(&vec![-100i32; rows])),
        ];
        let file = files.tensors("nothing", &tensors);
        let (report, grad) = scored(&file, &[]);
        assert_eq!((&report["count"], &report["ignored"]), (&json!(0), &json!(rows)), "{shape:?}");
        assert_eq!((grad.dtype, grad.shape), (Dtype::BF16, shape.to_vec()));
        assert!(grad.data.is_empty());
        // Of no rows, none is without a target.
        let by = if rows == 0 { "9" } else { "2" };
        let (shifted, _) = scored(&file, &["--shift", by]);
        assert_eq!(targets(&shifted), vec![-100; rows], "{shape:?}");
        assert_eq!(shifted, report, "{shape:?}");
    }
}
