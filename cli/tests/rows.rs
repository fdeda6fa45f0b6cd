//! Which rows count, and what goes with them: types and shapes of targets, masks, token weights,
//! packed documents. Everything is what it is with targets in I64 that have -100 wherever a row
//! does not count.

use crate::common::{
    Dtype, Files, Tensor, bytes, failure, json, noise, read_grad, results, score, text, xent,
};
use serde_json::{Value, json};
use std::path::Path;
use xent::{CrossEntropy, EmptyMean, Logits, RowOutputs, bf16, f16};

const BATCH: usize = 3;
const TIME: usize = 4;
const ROWS: usize = BATCH * TIME;
const VOCAB: usize = 7;

const MATRIX: &[usize] = &[ROWS];
const SEQUENCES: &[usize] = &[BATCH, TIME];

const TOKENS: [u8; ROWS] = [3, 0, 6, 1, 1, 2, 5, 4, 0, 6, 6, 2];

fn logits(of_rows: &[usize]) -> Tensor<'static> {
    let shape = [of_rows, &[VOCAB]].concat();
    ("logits", Dtype::F32, shape, bytes(&noise(ROWS * VOCAB, 11)))
}

/// Integers in each type.
fn integers(values: &[u8]) -> [(Dtype, Vec<u8>); 8] {
    fn of<T: From<u8> + bytemuck::NoUninit>(values: &[u8]) -> Vec<u8> {
        bytes(&values.iter().map(|&x| T::from(x)).collect::<Vec<_>>())
    }
    [
        (Dtype::U8, values.to_vec()),
        (Dtype::I8, values.to_vec()),
        (Dtype::U16, of::<u16>(values)),
        (Dtype::I16, of::<i16>(values)),
        (Dtype::U32, of::<u32>(values)),
        (Dtype::I32, of::<i32>(values)),
        (Dtype::U64, of::<u64>(values)),
        (Dtype::I64, of::<i64>(values)),
    ]
}

/// Numbers that all types have, in each.
fn reals(values: &[f32]) -> [(Dtype, Vec<u8>); 4] {
    let wide: Vec<f64> = values.iter().map(|&x| x.into()).collect();
    let brain: Vec<u16> = values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    let half: Vec<u16> = values.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
    [
        (Dtype::F32, bytes(values)),
        (Dtype::F64, bytes(&wide)),
        (Dtype::BF16, bytes(&brain)),
        (Dtype::F16, bytes(&half)),
    ]
}

fn run(args: &[&str], files: &[&Path]) -> Vec<u8> {
    let (command, args) = args.split_first().unwrap();
    let output = xent().arg(command).args(files).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{args:?}");
    output.stdout
}

/// What the three commands say of a file, but for the clock.
fn all(file: &Path, args: &[&str]) -> Vec<Value> {
    let grad = file.with_extension("grad");
    let to = grad.to_str().unwrap();
    let mut of_score = results(json(file, &[args, &["--grad", to]].concat()));
    for row in of_score["rows"].as_array_mut().unwrap() {
        // The target of an ignored row is shown as it is, or the first ignored id instead.
        row.as_object_mut().unwrap().remove("target");
    }
    let compare = run(&[&["compare", "--json"], args].concat(), &[file, file]);
    let logprobs = run(&[&["logprobs", "--json", "--top=2", "--entropy"], args].concat(), &[file]);
    let rows = text(&logprobs).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let grad = read_grad(&grad).data;
    let mut all = vec![of_score, results(serde_json::from_slice(&compare).unwrap())];
    all.extend(rows);
    all.push(json!(grad));
    all
}

/// What they say of targets in I64.
fn expected(files: &Files, targets: &[i64]) -> Vec<Value> {
    let ids = ("targets", Dtype::I64, vec![ROWS], bytes(targets));
    all(&files.tensors("expected", &[logits(MATRIX), ids]), &[])
}

/// The tokens that rows predict, and -100 for rows that do not count.
fn targets(count: impl Fn(usize) -> Option<usize>) -> Vec<i64> {
    (0..ROWS).map(|row| count(row).map_or(-100, |i| TOKENS[i].into())).collect()
}

/// The next token of the same sequence.
fn next(row: usize) -> Option<usize> {
    (row % TIME < TIME - 1).then_some(row + 1)
}

#[test]
fn targets_of_every_integer_type() {
    let files = Files::new();
    let plain = expected(&files, &targets(Some));
    let ignoring = targets(|row| Some(row).filter(|&row| TOKENS[row] != 6));
    let shifted = expected(&files, &targets(next));
    let ignored = expected(&files, &ignoring);
    for (dtype, ids) in integers(&TOKENS) {
        let file =
            files.tensors("ids", &[logits(SEQUENCES), ("targets", dtype, SEQUENCES.to_vec(), ids)]);
        assert_eq!(all(&file, &[]), plain, "{dtype}");
        assert_eq!(all(&file, &["--shift"]), shifted, "{dtype}");
        // The target of an ignored row is shown as it is.
        let six = all(&file, &["--ignore-index=6"]);
        for (six, want) in six.iter().zip(&ignored) {
            let mut want = want.clone();
            if want["ignored"] == true {
                want["target"] = json!(6);
            }
            assert_eq!(six, &want, "{dtype}");
        }
    }
    // Signed types have negative targets.
    let negative: Vec<i8> =
        TOKENS.iter().map(|&id| if id == 6 { -100 } else { id as i8 }).collect();
    let wide: Vec<i16> = negative.iter().map(|&id| id.into()).collect();
    for (dtype, ids) in [(Dtype::I8, bytes(&negative)), (Dtype::I16, bytes(&wide))] {
        let file = files.tensors("ids", &[logits(MATRIX), ("targets", dtype, vec![ROWS], ids)]);
        assert_eq!(all(&file, &[]), ignored, "{dtype}");
    }
}

#[test]
fn targets_out_of_range_of_every_integer_type() {
    let files = Files::new();
    let max = u64::MAX.to_string();
    let fails = |dtype, ids: Vec<u8>, target: &str| {
        // Ids to ignore are of I64.
        let hint = match target.parse::<i64>() {
            Ok(_) => format!("; `--ignore-index=-100,{target}` leaves out such rows too"),
            Err(_) => String::new(),
        };
        let n = ids.len() * 8 / Dtype::bitsize(&dtype);
        let logits = ("logits", Dtype::F32, vec![n, 2], vec![0; n * 8]);
        let file = files.tensors("bad", &[logits, ("targets", dtype, vec![n], ids)]);
        let expected = format!(
            "{}: tensor `targets`: row 1: target {target} is out of range for a vocabulary of 2; \
             the ignore index is -100{hint}",
            file.display()
        );
        for command in ["score", "logprobs", "compare"] {
            let mut xent = xent();
            xent.arg(command).arg(&file);
            if command == "compare" {
                xent.arg(&file);
            }
            assert_eq!(failure(&xent.output().unwrap(), 1), expected, "{command}");
        }
    };
    fails(Dtype::U64, bytes(&[0, u64::MAX, 0, u64::MAX]), &max);
    fails(Dtype::U64, bytes(&[0, 1u64 << 63]), "9223372036854775808");
    // The first is named, whichever is too large for what.
    fails(Dtype::U64, bytes(&[0, 2, u64::MAX]), "2");
    fails(Dtype::U64, bytes(&[1, u64::MAX - 99]), "18446744073709551516");
    fails(Dtype::I64, bytes(&[0, i64::MIN]), "-9223372036854775808");
    fails(Dtype::I64, bytes(&[0, i64::MAX]), "9223372036854775807");
    fails(Dtype::U8, vec![0, 255], "255");
    fails(Dtype::I8, vec![0, 255], "-1");
    fails(Dtype::U16, bytes(&[0u16, 65_535]), "65535");
    fails(Dtype::I16, bytes(&[0i16, -101]), "-101");
    fails(Dtype::U32, bytes(&[0, u32::MAX]), "4294967295");
    fails(Dtype::I32, bytes(&[0i32, 2]), "2");

    // An id that is ignored need not be a class.
    let ids = ("targets", Dtype::U64, vec![2], bytes(&[i64::MAX as u64, 1]));
    let logits = ("logits", Dtype::F32, vec![2, 2], vec![0; 16]);
    let file = files.tensors("ignored", &[logits, ids]);
    assert_eq!(json(&file, &["--ignore-index", &i64::MAX.to_string()])["ignored"], json!(1));
}

#[test]
fn several_ids_may_be_ignored() {
    let files = Files::new();
    for (dtype, ids) in integers(&TOKENS) {
        let tensors = [logits(SEQUENCES), ("targets", dtype, SEQUENCES.to_vec(), ids)];
        let file = files.tensors("ids", &tensors);
        for (args, ignored) in [
            (&["--ignore-index=-100,0"][..], &[0u8][..]),
            (&["--ignore-index", "-100,0"], &[0]),
            (&["--ignore-index", "0,6,1"], &[0, 6, 1]),
            (&["--ignore-index", "0", "--ignore-index=6", "--ignore-index", "1"], &[0, 6, 1]),
            (&["--ignore-index", "6,6", "--ignore-index=6,-5"], &[6]),
        ] {
            for shift in [&[][..], &["--shift"]] {
                let kept = |i: usize| !ignored.contains(&TOKENS[i]);
                let want = match shift {
                    [] => targets(|row| Some(row).filter(|&row| kept(row))),
                    _ => targets(|row| next(row).filter(|&next| kept(next))),
                };
                let got = all(&file, &[args, shift].concat());
                // The target of an ignored row is shown as it is, or the first ignored id instead.
                for (got, want) in got.iter().zip(expected(&files, &want)) {
                    let without_target = |mut value: Value| {
                        if value["ignored"] == true {
                            value.as_object_mut().unwrap().remove("target");
                        }
                        value
                    };
                    assert_eq!(without_target(got.clone()), without_target(want), "{args:?}");
                }
            }
        }
    }
    let file = files
        .tensors("ids", &[logits(MATRIX), ("targets", Dtype::U8, vec![ROWS], TOKENS.to_vec())]);
    let lines = run(&["logprobs", "--json", "--ignore-index=6,1", "--shift"], &[&file]);
    let shown: Vec<Value> = text(&lines)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["target"].clone())
        .collect();
    assert_eq!(json!(shown), json!([0, 6, 1, 1, 2, 5, 4, 0, 6, 6, 2, 6]));

    let ids = ("targets", Dtype::I16, vec![ROWS], bytes(&TOKENS.map(|id| i16::from(id) - 1)));
    let file = files.tensors("ids", &[logits(MATRIX), ids]);
    let message = failure(&score(&file, ["--ignore-index=5,-100"]), 1);
    assert!(
        message.ends_with(
            "tensor `targets`: row 1: target -1 is out of range for a vocabulary of 7; \
             the ignore indices are 5, -100; `--ignore-index=5,-100,-1` leaves out such rows too"
        ),
        "{message}"
    );
    for bad in ["", "1,", ",1", "1,,2", "a,1", "1 2", "1.5,2", "--json"] {
        let message = failure(&score(&file, ["--ignore-index", bad]), 2);
        assert!(message.contains("for '--ignore-index <I>'"), "{bad}: {message}");
    }
    let file = files.tensors(
        "probs",
        &[logits(MATRIX), ("q", Dtype::F32, vec![ROWS, VOCAB], bytes(&[0.125f32; ROWS * VOCAB]))],
    );
    let args = ["--target-probs=q", "--ignore-index=-1,3,-100"];
    let message = failure(&score(&file, args), 2);
    assert!(
        message.starts_with("--ignore-index 3 is a class, and with --target-probs "),
        "{message}"
    );
    assert_eq!(json(&file, &["--target-probs=q", "--ignore-index=-1,-2"])["ignored"], json!(0));
}

#[test]
fn masks_of_every_type() {
    let files = Files::new();
    let mask: [u8; ROWS] = [0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1];
    let plain = expected(&files, &targets(|row| Some(row).filter(|&row| mask[row] == 1)));
    let shifted = expected(&files, &targets(|row| next(row).filter(|&next| mask[next] == 1)));
    // What is not 0 counts.
    let other = mask.map(|m| if m == 1 { 100 } else { 0 });
    let floats = mask.map(|m| f32::from(m) * 0.5);
    let zeros = mask.map(|m| if m == 1 { 1.0 } else { -0.0 });
    let negative = mask.map(|m| -i32::from(m));
    let masks = [(Dtype::BOOL, mask.to_vec()), (Dtype::I32, bytes(&negative))];
    let masks = masks.into_iter().chain(integers(&mask)).chain(integers(&other));
    for (dtype, mask) in masks.chain(reals(&floats)).chain(reals(&zeros)) {
        let ids = ("targets", Dtype::U16, SEQUENCES.to_vec(), bytes(&TOKENS.map(u16::from)));
        let mask = ("attention_mask", dtype, SEQUENCES.to_vec(), mask);
        let file = files.tensors("masked", &[logits(SEQUENCES), ids, mask]);
        assert_eq!(all(&file, &["--mask=attention_mask"]), plain, "{dtype}");
        // A row counts if the token that it predicts does, whatever its own.
        assert_eq!(all(&file, &["--mask=attention_mask", "--shift"]), shifted, "{dtype}");
    }
}

#[test]
fn masked_rows_may_hold_anything() {
    let files = Files::new();
    let mut x = noise(ROWS * VOCAB, 11);
    x[2 * VOCAB..3 * VOCAB].fill(f32::NAN);
    x[7 * VOCAB..8 * VOCAB].fill(f32::INFINITY);
    let mut ids = TOKENS.map(u64::from);
    (ids[2], ids[7]) = (u64::MAX, 7);
    let mask: Vec<bool> = (0..ROWS).map(|row| row != 2 && row != 7).collect();
    let tensors = [
        ("logits", Dtype::F32, vec![ROWS, VOCAB], bytes(&x)),
        ("targets", Dtype::U64, vec![ROWS], bytes(&ids)),
        (
            "m",
            Dtype::BOOL,
            vec![ROWS],
            bytes(&mask.iter().map(|&m| u8::from(m)).collect::<Vec<_>>()),
        ),
    ];
    let file = files.tensors("masked", &tensors);
    let want = expected(&files, &targets(|row| Some(row).filter(|&row| mask[row])));
    assert_eq!(all(&file, &["--mask=m"]), want);
    let none = ("m", Dtype::U8, vec![ROWS], vec![0; ROWS]);
    let [logits, targets, _] = tensors;
    let report = json(&files.tensors("none", &[logits, targets, none]), &["--mask=m"]);
    assert_eq!((&report["count"], &report["ignored"]), (&json!(0), &json!(ROWS)));
    assert_eq!(report["loss_is"], "nan");
}

/// Left padding, and right: what Hugging Face's tokenizers return, and the loss that its recipe for
/// perplexity has.
#[test]
fn an_attention_mask_is_of_the_tokens_that_are_predicted() {
    let files = Files::new();
    let mask = [0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1u8];
    let file = files.tensors(
        "batch",
        &[
            logits(SEQUENCES),
            ("input_ids", Dtype::I64, SEQUENCES.to_vec(), bytes(&TOKENS.map(i64::from))),
            ("attention_mask", Dtype::I64, SEQUENCES.to_vec(), bytes(&mask.map(i64::from))),
        ],
    );
    let args = ["--targets=input_ids", "--mask=attention_mask", "--shift"];
    let report = json(&file, &args);
    // 2 and 3 of the first, 5 and 6 of the second, all but the first of the third.
    let count = |row: &Value| row["ignored"] != true;
    let rows = report["rows"].as_array().unwrap();
    let counted: Vec<usize> = (0..ROWS).filter(|&row| count(&rows[row])).collect();
    assert_eq!(counted, [1, 2, 4, 5, 8, 9, 10]);
    assert_eq!((&rows[1]["target"], &rows[0]["target"]), (&json!(6), &json!(-100)));
}

#[test]
fn rows_without_targets_may_be_masked() {
    let files = Files::new();
    let mask: [u8; ROWS] = [0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1];
    for (dtype, mask_bytes) in
        [(Dtype::BOOL, mask.to_vec()), (Dtype::F32, bytes(&mask.map(f32::from)))]
    {
        let file = files
            .tensors("bare", &[logits(SEQUENCES), ("m", dtype, SEQUENCES.to_vec(), mask_bytes)]);
        for option in ["--mask", "--token-weights"] {
            if dtype == Dtype::BOOL && option != "--mask" {
                continue;
            }
            // Ids that are ignored are none that stand for rows without targets.
            for ignored in ["-100", "0", "-1"] {
                let args = [option, "m", "--ignore-index", ignored, "--json"];
                let report: Value = serde_json::from_slice(&run(
                    &[&["compare"], &args[..]].concat(),
                    &[&file, &file],
                ))
                .unwrap();
                assert_eq!((&report["count"], &report["ignored"]), (&json!(8), &json!(4)));
                assert!(report.get("targets").is_none());
                let lines = run(&[&["logprobs"], &args[..]].concat(), &[&file]);
                let bare = run(&["logprobs", "--json"], &[&file]);
                for ((line, bare), (row, m)) in
                    text(&lines).lines().zip(text(&bare).lines()).zip(mask.iter().enumerate())
                {
                    let expected = match m {
                        0 => format!(r#"{{"row":{row},"ignored":true}}"#),
                        _ => bare.to_owned(),
                    };
                    assert_eq!(line, expected);
                }
            }
        }
        let table = run(&["logprobs", "--mask=m"], &[&file]);
        let lines: Vec<&str> = text(&table).lines().collect();
        assert_eq!(lines[1], "       0        -              -");
        assert!(lines[14].starts_with("rows 8 kept, 4 ignored; mean logprob of the argmax -"));
    }
}

#[test]
fn float_masks_that_mean_something_else_are_errors() {
    let files = Files::new();
    for (value, shown) in [
        (f32::NEG_INFINITY, "-inf"),
        (f32::MIN, "-3.4028234663852886e38"),
        (-1.0, "-1.0"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
    ] {
        let mut mask = [1f32; ROWS];
        mask[5] = value;
        let ids = ("targets", Dtype::U8, SEQUENCES.to_vec(), TOKENS.to_vec());
        let mask = ("m", Dtype::F32, SEQUENCES.to_vec(), bytes(&mask));
        let file = files.tensors("masked", &[logits(SEQUENCES), ids, mask]);
        assert_eq!(
            failure(&score(&file, ["--mask=m"]), 1),
            format!(
                "{}: tensor `m`: element [1, 1] is {shown}, expected 0 for rows to leave out and a \
                 positive number for others; of a mask that is added to attention scores, write \
                 `mask == 0`",
                file.display()
            )
        );
    }
}

/// The numbers of the library, of weights in F64.
fn weighted(targets: &[i64], weights: &[f64]) -> (f64, f64, Vec<f32>) {
    let x = noise(ROWS * VOCAB, 11);
    let logits = Logits::new(&x, ROWS, VOCAB).unwrap();
    let mut losses = vec![0.0; ROWS];
    let ce = CrossEntropy::new().token_weights(weights).empty_mean(EmptyMean::Nan);
    let outputs = RowOutputs::new().losses(&mut losses);
    let e = ce.evaluate(logits, targets, outputs).unwrap();
    (e.loss(), e.mean(), losses)
}

#[test]
fn token_weights_of_every_type() {
    let files = Files::new();
    let weights = [1.0, 0.5, 0.25, 2.0, 1.0, 0.0, 3.0, 1.5, 0.75, 1.0, 4.0, 0.125f32];
    let own = weights.map(f64::from);
    let of_next: Vec<f64> = (0..ROWS).map(|row| next(row).map_or(0.0, |i| own[i])).collect();
    let cases = [
        (weighted(&targets(Some), &own), &[][..]),
        (weighted(&targets(next), &of_next), &["--shift"]),
    ];
    for (dtype, weights) in reals(&weights) {
        let ids = ("targets", Dtype::U8, SEQUENCES.to_vec(), TOKENS.to_vec());
        let weights = ("w", dtype, SEQUENCES.to_vec(), weights);
        let file = files.tensors("weighted", &[logits(SEQUENCES), ids, weights]);
        let grad = files.path("grad");
        for ((loss, mean, losses), shift) in &cases {
            for grad in [&[][..], &["--grad", grad.to_str().unwrap()]] {
                let report = json(&file, &[shift, grad, &["--token-weights=w"]].concat());
                let rows = report["rows"].as_array().unwrap().iter();
                let ignored = rows.filter(|row| row["ignored"] == true).count();
                assert_eq!(report["ignored"], json!(ignored), "{dtype}");
                assert_eq!(report["loss"], json!(loss), "{dtype}");
                assert!(
                    (report["bits_per_token"].as_f64().unwrap() - mean / 2f64.ln()).abs() < 1e-12
                );
                for (row, loss) in report["rows"].as_array().unwrap().iter().zip(losses) {
                    // A row of weight 0 does not count, but was read.
                    match row.get("loss") {
                        Some(of_row) => assert_eq!(of_row.to_string(), format!("{loss:?}")),
                        None => assert_eq!((&row["ignored"], *loss), (&json!(true), 0.0)),
                    }
                    assert!(row["ignored"] == true || *loss != 0.0, "{dtype}: {row}");
                }
            }
        }
        // Where there is no weighted mean, rows of weight 0 do not count.
        let args = ["--token-weights=w"];
        let want = expected(&files, &targets(|row| Some(row).filter(|&row| own[row] != 0.0)));
        let compare = run(&[&["compare", "--json"], &args[..]].concat(), &[&file, &file]);
        assert_eq!(results(serde_json::from_slice(&compare).unwrap()), want[1], "{dtype}");
        let lines =
            run(&[&["logprobs", "--json", "--top=2", "--entropy"], &args[..]].concat(), &[&file]);
        for (line, want) in text(&lines).lines().zip(&want[2..]) {
            assert_eq!(&serde_json::from_str::<Value>(line).unwrap(), want, "{dtype}");
        }
    }
}

#[test]
fn packed_documents() {
    let files = Files::new();
    // Of three tokens, one, none, six and two.
    let offsets = [0u8, 3, 4, 4, 10, 12];
    let document = |row| offsets.iter().filter(|&&offset| usize::from(offset) <= row).count();
    let inside = |by: usize| {
        move |row: usize| {
            let next = row + by;
            (next < ROWS && document(next) == document(row)).then_some(next)
        }
    };
    let lasts = |row: usize| inside(1)(row).map(|_| row);
    let cases: [(&[&str], Vec<i64>); 5] = [
        (&["--shift"], targets(inside(1))),
        (&["--shift=2"], targets(inside(2))),
        (&["--shift=99"], targets(|_| None)),
        // Already shifted: the target of a last row is of the next document.
        (&[], targets(lasts)),
        (&["--shift=0"], targets(lasts)),
    ];
    let cases = cases.map(|(args, targets)| (args, expected(&files, &targets)));
    let write = |of_rows: &[usize], dtype, shape: &[usize], offsets: Vec<u8>| {
        let ids = ("targets", Dtype::I32, of_rows.to_vec(), bytes(&TOKENS.map(i32::from)));
        let offsets = ("cu_seqlens", dtype, shape.to_vec(), offsets);
        files.tensors("packed", &[logits(of_rows), ids, offsets])
    };
    // In one row of a batch or in several, documents are counted through them.
    for of_rows in [MATRIX, &[1, ROWS], SEQUENCES] {
        let file = write(of_rows, Dtype::U8, &[6], offsets.to_vec());
        for (args, expected) in &cases {
            let args = [*args, &["--offsets=cu_seqlens"]].concat();
            assert_eq!(&all(&file, &args), expected, "{of_rows:?} {args:?}");
        }
        let table = run(&["logprobs", "--shift", "--offsets=cu_seqlens"], &[&file]);
        assert!(text(&table).contains("rows 8 kept, 4 ignored; "), "{}", text(&table));
    }
    for (dtype, offsets) in integers(&offsets) {
        for shape in [&[1, 6], &[6, 1]] {
            let file = write(MATRIX, dtype, shape, offsets.clone());
            assert_eq!(all(&file, &["--offsets=cu_seqlens", "--shift"]), cases[0].1, "{dtype}");
        }
    }
}

#[test]
fn documents_that_are_cut() {
    let files = Files::new();
    for (offsets, kept) in [
        (&[0i64, 12][..], 11),
        (&[0, 0, 12, 12], 11),
        (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 0),
        (&[0, 2, 4, 6, 8, 10, 12], 6),
    ] {
        // Targets that were shifted already, without the last.
        let full = ("targets", Dtype::U8, vec![ROWS], TOKENS.to_vec());
        let cut = ("targets", Dtype::U8, vec![ROWS - 1], TOKENS[1..].to_vec());
        let cu = || ("cu", Dtype::I64, vec![offsets.len()], bytes(offsets));
        let full = files.tensors("full", &[logits(MATRIX), full, cu()]);
        let cut = files.tensors("cut", &[logits(MATRIX), cut, cu()]);
        let args = ["--shift", "--offsets=cu"];
        assert_eq!(all(&cut, &args), all(&full, &args), "{offsets:?}");
        assert_eq!(json(&full, &args)["count"], json!(kept), "{offsets:?}");
    }
    let nothing = [
        ("logits", Dtype::F32, vec![0, 3], vec![]),
        ("targets", Dtype::I64, vec![0], vec![]),
        ("cu", Dtype::I32, vec![3], vec![0; 12]),
    ];
    let report = json(&files.tensors("nothing", &nothing), &["--shift", "--offsets=cu"]);
    assert_eq!((&report["count"], &report["ignored"]), (&json!(0), &json!(0)));
}

#[test]
fn offsets_that_are_none() {
    let files = Files::new();
    let ids = || ("targets", Dtype::U8, vec![ROWS], TOKENS.to_vec());
    let fails = |offsets: Tensor<'_>, expected: &str| {
        let file = files.tensors("packed", &[logits(MATRIX), ids(), offsets]);
        for command in [&["score"][..], &["logprobs"], &["compare", file.to_str().unwrap()]] {
            let mut xent = xent();
            let output = xent.args(command).arg(&file).args(["--shift", "--offsets=cu"]).output();
            let message = failure(&output.unwrap(), 1);
            assert_eq!(message, format!("{}: tensor `cu`{expected}", file.display()));
        }
    };
    let i64s = |offsets: &[i64]| ("cu", Dtype::I64, vec![offsets.len()], bytes(offsets));
    fails(i64s(&[1, 12]), ": entry 0 is 1, expected 0, where the first document begins");
    fails(i64s(&[-1, 12]), ": entry 0 is -1, expected 0, where the first document begins");
    fails(i64s(&[0, 5, 4, 12]), ": entry 2 is 4, expected at least the 5 of the entry before");
    fails(i64s(&[0, -1]), ": entry 1 is -1, expected at least the 0 of the entry before");
    fails(i64s(&[0, 13]), ": entry 1 is 13, expected 12, the number of rows, at the end");
    fails(i64s(&[0, 5, 11]), ": entry 2 is 11, expected 12, the number of rows, at the end");
    fails(i64s(&[0]), ": entry 0 is 0, expected 12, the number of rows, at the end");
    fails(i64s(&[]), " has no offsets: n documents have n + 1 of them");
    fails(i64s(&[0, 13, 12]), ": entry 2 is 12, expected at least the 13 of the entry before");
    let huge = ("cu", Dtype::U64, vec![2], bytes(&[0, u64::MAX]));
    let end = "expected 12, the number of rows, at the end";
    fails(huge, &format!(": entry 1 is 18446744073709551615, {end}"));
    let types = "expected I64, I32, I16, I8, U64, U32, U16 or U8 [documents + 1]";
    fails(("cu", Dtype::F32, vec![2], vec![0; 8]), &format!(" is F32 [2], {types}"));
    fails(("cu", Dtype::I64, vec![2, 2], vec![0; 32]), &format!(" is I64 [2, 2], {types}"));
    fails(("cu", Dtype::I64, vec![], vec![0; 8]), &format!(" is I64 [], {types}"));
    let file = files.tensors("packed", &[logits(MATRIX), ids(), i64s(&[0, 12])]);
    let message = failure(&score(&file, ["--offsets=x"]), 1);
    assert!(message.contains(": no tensor `x` for the offsets of documents; the file has "));
    let args = ["--offsets=cu", "--target-probs=q"];
    assert!(failure(&score(&file, args), 2).contains("cannot be used with"));
    let message = failure(&score(&file, ["--mask=x"]), 1);
    assert!(message.contains(": no tensor `x` for the mask; the file has "), "{message}");
}

#[test]
fn dimensions_of_1_may_be_missing_or_added() {
    let files = Files::new();
    let mask: [u8; ROWS] = [0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1];
    let weights = mask.map(|m| if m == 1 { 1.5f32 } else { 0.0 });
    let matrix: [&[usize]; 5] = [&[ROWS], &[ROWS, 1], &[1, ROWS], &[1, ROWS, 1], &[1, 1, ROWS]];
    let sequences: [&[usize]; 5] = [
        &[BATCH, TIME],
        &[1, BATCH, TIME],
        &[BATCH, TIME, 1],
        &[1, BATCH, TIME, 1],
        &[BATCH, 1, TIME],
    ];
    let upstream = noise(ROWS, 9);
    let mut of_all = Vec::new();
    for (of_rows, shapes) in
        [(MATRIX, &matrix), (&[1, ROWS], &matrix), (&[ROWS, 1], &matrix), (SEQUENCES, &sequences)]
    {
        for shape in shapes {
            let with = |name, dtype, data| (name, dtype, shape.to_vec(), data);
            let tensors = [
                logits(of_rows),
                with("targets", Dtype::U8, TOKENS.to_vec()),
                with("m", Dtype::BOOL, mask.to_vec()),
                with("w", Dtype::F32, bytes(&weights)),
                with("up", Dtype::F32, bytes(&upstream)),
            ];
            let file = files.tensors("shapes", &tensors);
            of_all.push(all(&file, &["--mask=m", "--token-weights=w"]));
            let grad = files.path("grad");
            json(&file, &["--upstream=up", "--grad", grad.to_str().unwrap()]);
            of_all.last_mut().unwrap().push(json!(read_grad(&grad).data));
        }
    }
    assert_eq!(of_all.len(), 20);
    assert!(of_all.iter().all(|one| one == &of_all[0]));

    // A scalar for one row, and the number of elements is not all that counts.
    let one = |shape: &[usize]| {
        let ids = ("targets", Dtype::I64, shape.to_vec(), bytes(&[1i64]));
        files.tensors("one", &[("logits", Dtype::F32, vec![1, 2], vec![0; 8]), ids])
    };
    for shape in [&[][..], &[1], &[1, 1]] {
        assert_eq!(json(&one(shape), &[])["count"], json!(1), "{shape:?}");
    }
    let ids = ("targets", Dtype::U8, vec![TIME, BATCH], TOKENS.to_vec());
    let file = files.tensors("transposed", &[logits(SEQUENCES), ids]);
    assert!(failure(&score(&file, [""; 0]), 1).contains("is U8 [4, 3], expected "));
}

#[test]
fn targets_that_were_cut_already() {
    let files = Files::new();
    let mask: [u8; ROWS] = [0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1];
    for by in [1, 2, 3] {
        for of_rows in [SEQUENCES, MATRIX] {
            let time = of_rows[of_rows.len() - 1];
            let shift = format!("--shift={by}");
            let cut: Vec<usize> = (0..ROWS).filter(|token| token % time >= by).collect();
            let short = [&of_rows[..of_rows.len() - 1], &[time - by]].concat();
            let of = |values: &[u8; ROWS]| cut.iter().map(|&i| values[i]).collect::<Vec<_>>();
            let ids = |cut: bool| match cut {
                false => ("targets", Dtype::U8, of_rows.to_vec(), TOKENS.to_vec()),
                true => ("targets", Dtype::U8, short.clone(), of(&TOKENS)),
            };
            let masks = |cut: bool| match cut {
                false => ("m", Dtype::U8, of_rows.to_vec(), mask.to_vec()),
                true => ("m", Dtype::U8, [&[1], &short[..], &[1]].concat(), of(&mask)),
            };
            let weights = |cut: bool| match cut {
                false => ("w", Dtype::F32, of_rows.to_vec(), bytes(&TOKENS.map(f32::from))),
                true => {
                    let weights: Vec<f32> = of(&TOKENS).into_iter().map(f32::from).collect();
                    ("w", Dtype::F32, short.clone(), bytes(&weights))
                }
            };
            let full =
                files.tensors("full", &[logits(of_rows), ids(false), masks(false), weights(false)]);
            for args in [&[][..], &["--mask=m"], &["--mask=m", "--token-weights=w"]] {
                let args = [args, &[&shift]].concat();
                let want = all(&full, &args);
                for (a, b, c) in [(true, true, true), (true, false, true), (false, true, false)] {
                    let tensors = [logits(of_rows), ids(a), masks(b), weights(c)];
                    let file = files.tensors("cut", &tensors);
                    assert_eq!(all(&file, &args), want, "{of_rows:?} {args:?}");
                }
            }
            // Without a shift they do not go with these logits, nor with another.
            let file = files.tensors("cut", &[logits(of_rows), ids(true)]);
            let message = failure(&score(&file, [""; 0]), 1);
            assert!(message.contains("`targets` is U8 "), "{message}");
            let hint = "; `--shift` takes one token fewer per sequence";
            assert_eq!(message.ends_with(hint), by == 1, "{message}");
            let message = failure(&score(&file, [format!("--shift={}", by % 3 + 1)]), 1);
            assert!(message.contains("`targets` is U8 ") && message.contains(" or ["), "{message}");
        }
    }
    // What is out of range is named where the file has it.
    let ids = ("targets", Dtype::I64, vec![2, 2], bytes(&[0i64, 1, 5, 1]));
    let logits = ("logits", Dtype::F32, vec![2, 3, 5], vec![0; 120]);
    let file = files.tensors("bad", &[logits, ids]);
    let message = failure(&score(&file, ["--shift"]), 1);
    assert!(
        message.contains("tensor `targets` at [1, 0]: row 3: target 5 is out of range"),
        "{message}"
    );
}

#[test]
fn class_weights_and_probabilities_of_sixteen_bits() {
    let files = Files::new();
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let x = noise(ROWS * VOCAB, 11);
    for half in [Dtype::BF16, Dtype::F16] {
        let rounded = |values: &[f32]| -> (Vec<u16>, Vec<f32>) {
            let round = |&x: &f32| match half {
                Dtype::BF16 => (bf16::from_f32(x).to_bits(), bf16::from_f32(x).to_f32()),
                _ => (f16::from_f32(x).to_bits(), f16::from_f32(x).to_f32()),
            };
            values.iter().map(round).unzip()
        };
        let (weights, weights32) =
            rounded(&noise(VOCAB, 3).iter().map(|w| 1.0 + w / 9.0).collect::<Vec<_>>());
        let (probs, probs32) =
            rounded(&noise(ROWS * VOCAB, 2).iter().map(|q| q.abs() / 50.0).collect::<Vec<_>>());
        let (halves, _) = rounded(&x);
        let (up, up32) = rounded(&noise(ROWS, 5));
        for (dtype, data, real) in [
            (Dtype::F32, bytes(&x), Dtype::F32),
            (Dtype::F64, bytes(&wide(&x)), Dtype::F64),
            (half, bytes(&halves), Dtype::F32),
        ] {
            let real = |values: &[f32]| match real {
                Dtype::F64 => (Dtype::F64, bytes(&wide(values))),
                _ => (Dtype::F32, bytes(values)),
            };
            let write = |name, [weights, probs, up]: [(Dtype, Vec<u8>); 3]| {
                let mask = (0..ROWS).map(|row| u8::from(row % 5 > 1)).collect();
                let tensors: [Tensor<'_>; 6] = [
                    ("logits", dtype, vec![ROWS, VOCAB], data.clone()),
                    ("targets", Dtype::U8, vec![ROWS], TOKENS.to_vec()),
                    ("m", Dtype::BOOL, vec![ROWS], mask),
                    ("w", weights.0, vec![VOCAB], weights.1),
                    ("q", probs.0, vec![1, ROWS, VOCAB], probs.1),
                    ("up", up.0, vec![ROWS], up.1),
                ];
                files.tensors(name, &tensors)
            };
            let expected = write("wide", [real(&weights32), real(&probs32), real(&up32)]);
            let own = [(half, bytes(&weights)), (half, bytes(&probs)), (half, bytes(&up))];
            let mut others = vec![write("half", own)];
            // Numbers of F32 are numbers of F64.
            if dtype == Dtype::F64 {
                let own = [&weights32[..], &probs32, &up32].map(|x| (Dtype::F32, bytes(x)));
                others.push(write("single", own));
            }
            for args in [
                &["--weight=w"][..],
                &["--target-probs=q"],
                &["--target-probs=q", "--weight=w", "--label-smoothing=0.1", "--upstream=up"],
                &["--target-probs=q", "--mask=m", "--upstream=up", "--z-loss=0.01"],
                &["--target-probs=q", "--mask=m", "--reduction=sum"],
            ] {
                let scored = |file: &Path| {
                    let grad = files.path("grad");
                    let args = [args, &["--grad", grad.to_str().unwrap()]].concat();
                    (results(json(file, &args)), read_grad(&grad))
                };
                let want = scored(&expected);
                for other in &others {
                    assert_eq!(scored(other), want, "{half} for {dtype}, {args:?}");
                }
            }
        }
    }
}

/// Target probabilities have no target to ignore: a mask leaves rows out all the same.
#[test]
fn rows_with_target_probabilities_may_be_masked() {
    let files = Files::new();
    let mask: [u8; ROWS] = [0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1];
    let kept: Vec<usize> = (0..ROWS).filter(|&row| mask[row] == 1).collect();
    let (mut x, q) = (noise(ROWS * VOCAB, 11), noise(ROWS * VOCAB, 2));
    let of_kept =
        |x: &[f32]| kept.iter().flat_map(|row| x[row * VOCAB..][..VOCAB].to_vec()).collect();
    let (x_kept, q_kept): (Vec<f32>, Vec<f32>) = (of_kept(&x), of_kept(&q));
    for row in (0..ROWS).filter(|&row| mask[row] == 0) {
        x[row * VOCAB..][..VOCAB].fill(f32::NAN);
    }
    let write = |name, x: &[f32], q: &[f32], mask: Vec<u8>| {
        let rows = mask.len();
        let tensors = [
            ("logits", Dtype::F32, vec![rows, VOCAB], bytes(x)),
            ("q", Dtype::F32, vec![rows, VOCAB], bytes(q)),
            ("m", Dtype::U8, vec![rows], mask),
        ];
        files.tensors(name, &tensors)
    };
    let masked = write("masked", &x, &q, mask.to_vec());
    let alone = write("alone", &x_kept, &q_kept, vec![1; kept.len()]);
    let scored = |file: &Path, args: &[&str]| {
        let grad = files.path("grad");
        let args = [&["--target-probs=q", "--mask=m", "--grad", grad.to_str().unwrap()], args];
        (json(file, &args.concat()), read_grad(&grad).data)
    };
    for args in [&[][..], &["--reduction=sum"], &["--reduction=mean-over:3", "--z-loss=0.1"]] {
        let ((report, grad), (want, want_grad)) = (scored(&masked, args), scored(&alone, args));
        assert_eq!((&report["count"], &report["ignored"]), (&json!(8), &json!(4)));
        for key in ["loss", "perplexity", "nll_stderr", "accuracy"] {
            let of = |report: &Value| report[key].as_f64().unwrap();
            assert!((of(&report) - of(&want)).abs() <= 1e-12 * of(&want).abs(), "{key}");
        }
        let row = |grad: &[u8], i: usize| -> Vec<f32> {
            let bytes = grad[i * VOCAB * 4..][..VOCAB * 4].as_chunks().0;
            bytes.iter().map(|&x| f32::from_le_bytes(x)).collect()
        };
        for (i, &row_of_file) in kept.iter().enumerate() {
            let mut want = want["rows"][i].clone();
            want["row"] = json!(row_of_file);
            assert_eq!(report["rows"][row_of_file], want);
            for (a, b) in row(&grad, row_of_file).iter().zip(row(&want_grad, i)) {
                assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} {b}");
            }
        }
        assert_eq!(row(&grad, 0), [0.0; VOCAB]);
        assert_eq!(report["rows"][0], json!({"row": 0, "target": -100, "ignored": true}));
    }
    // All rows, or none.
    let none = write("none", &x, &q, vec![0; ROWS]);
    let (report, grad) = scored(&none, &[]);
    assert_eq!((&report["count"], &report["loss_is"]), (&json!(0), &json!("nan")));
    assert!(grad.iter().all(|&byte| byte == 0));
    for (file, args) in [(&masked, "--mask=m"), (&none, "--mask=m"), (&alone, "--mask=m")] {
        let args = ["--target-probs=q", "--ignore-index=1", args];
        let message = failure(&score(file, args), 2);
        assert!(message.starts_with("--ignore-index 1 is a class, and "), "{message}");
    }
}

#[test]
fn hostile_masks_weights_and_offsets() {
    let files = Files::new();
    let rows = 1u64 << 62;
    // As many rows as can be counted, of no classes: what goes with them would have to be as many.
    let header = format!(
        r#"{{"logits":{{"dtype":"F32","shape":[{rows},0],"data_offsets":[0,0]}},
        "targets":{{"dtype":"U8","shape":[8],"data_offsets":[0,8]}},
        "q":{{"dtype":"F16","shape":[{rows},0],"data_offsets":[0,0]}},
        "cu":{{"dtype":"U64","shape":[2],"data_offsets":[8,24]}}}}"#
    );
    let cu = [0, rows].map(u64::to_le_bytes).concat();
    let file = files.raw(&header, &[&[0; 8][..], &cu].concat());
    for args in [
        &["--offsets=cu", "--shift"][..],
        &["--mask=targets", "--target-probs=q"],
        &["--token-weights=q", "--target-probs=q"],
        &["--target-probs=q"],
        &["--mask=q"],
    ] {
        let message = failure(&score(&file, args), 1);
        assert!(!message.contains("panicked"), "{message}");
    }
    for args in [["--mask=targets"], ["--token-weights=targets"], ["--offsets=cu"]] {
        for command in ["logprobs", "compare"] {
            let mut xent = xent();
            xent.arg(command).arg(&file).args(args);
            if command == "compare" {
                xent.arg(&file);
            }
            failure(&xent.output().unwrap(), 1);
        }
    }
    // Elements that are not aligned.
    let header = r#"{"targets":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
        "m":{"dtype":"I16","shape":[3],"data_offsets":[3,9]},
        "w":{"dtype":"F64","shape":[3],"data_offsets":[9,33]},
        "cu":{"dtype":"I32","shape":[3],"data_offsets":[33,45]},
        "logits":{"dtype":"F32","shape":[3,2],"data_offsets":[45,69]}}"#;
    let data = [
        vec![0u8, 1, 1],
        [1i16, 0, 7].map(i16::to_le_bytes).concat(),
        [1f64, 2.0, 3.0].map(f64::to_le_bytes).concat(),
        [0i32, 3, 3].map(i32::to_le_bytes).concat(),
        [0f32, 0.0, 1.0, 0.0, 0.0, 2.0].map(f32::to_le_bytes).concat(),
    ]
    .concat();
    let args = ["--mask=m", "--token-weights=w", "--offsets=cu", "--shift"];
    let reports: Vec<Value> = (0..8)
        .map(|padding| {
            let file = files.raw(&(header.to_owned() + &" ".repeat(padding)), &data);
            results(json(&file, &args))
        })
        .collect();
    assert_eq!((&reports[0]["count"], &reports[0]["ignored"]), (&json!(1), &json!(2)));
    assert!(reports.iter().all(|report| report == &reports[0]));
}
