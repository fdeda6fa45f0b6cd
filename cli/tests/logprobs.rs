//! `xent logprobs`: the numbers of the library and of PyTorch, as text and as JSON, and what goes wrong.

use crate::common::{Dtype, Files, bytes, failure, noise, nulls_are_named, text, xent};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Output, Stdio};
use xent::reference::ulp_error;
use xent::{Backend, LogProbs, Logits, Sample, TokenLogProbs, bf16, f16};

const INF: f32 = f32::INFINITY;

fn logprobs<S: AsRef<OsStr>>(file: &Path, args: impl IntoIterator<Item = S>) -> Output {
    xent().arg("logprobs").arg(file).args(args).output().unwrap()
}

fn stdout(file: &Path, args: &[&str]) -> String {
    let output = logprobs(file, args);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
    text(&output.stdout).to_owned()
}

/// The objects that `--json` prints, one on each line.
fn json_lines(file: &Path, args: &[&str]) -> Vec<Value> {
    let stdout = stdout(file, &[args, &["--json"]].concat());
    let parse = |line: &str| {
        let row = serde_json::from_str(line).unwrap();
        nulls_are_named(&row, line);
        row
    };
    stdout.lines().map(parse).collect()
}

/// From text: a `Value` holds an f64, and rounding to f32 is then a second time.
fn f32_of(value: &Value) -> f32 {
    value.to_string().parse().unwrap_or_else(|_| panic!("{value}"))
}

fn bad_file(file: &Path, args: &[&str]) -> String {
    let message = failure(&logprobs(file, args), 1);
    let name = file.display().to_string();
    message.strip_prefix(&name).unwrap_or_else(|| panic!("{message}")).to_owned()
}

fn bad_usage(args: &[&str]) -> String {
    let files = Files::new();
    failure(&logprobs(&files.dump(&[0.0; 4], 2, &[0, 1]), args), 2)
}

const LOGITS: [f32; 12] = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0, 0.0, 0.0, 0.0, -INF, 4.0, 4.0];

#[test]
fn the_table() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 1, -100, 2]);
    assert_eq!(
        stdout(&file, &[]),
        "     row   target        logprob     rank   argmax
       0        2    -0.40760598        1        2
       1        1     -3.2413113        3        2
       2     -100              -        -        -
       3        2     -0.6931472        2        1

rows 3 kept, 1 ignored; mean logprob -1.44735; perplexity 4.25185; accuracy 33.33 % (1 of 3)
"
    );
    assert_eq!(
        stdout(&file, &["--top", "2", "--entropy", "--varentropy", "--sample=1", "--sample-temperature=0"]),
        "     row   target        logprob     rank   argmax        entropy     varentropy  sampled        logprob top
       0        2    -0.40760598        1        2      0.8323956     0.42440453        2    -0.40760598 2:-0.40760598 1:-1.407606
       1        1     -3.2413113        3        2      0.6215846      0.6018088        2     -0.2413113 2:-0.2413113 0:-1.7413113
       2     -100              -        -        -              -              -        -              - -
       3        2     -0.6931472        2        1      0.6931472            0.0        1     -0.6931472 1:-0.6931472 2:-0.6931472

rows 3 kept, 1 ignored; mean logprob -1.44735; perplexity 4.25185; accuracy 33.33 % (1 of 3); mean entropy 0.715709
"
    );
}

#[test]
fn the_table_without_targets() {
    let files = Files::new();
    let tensors = [("x", Dtype::F32, vec![2, 2, 3], bytes(&LOGITS))];
    let file = files.tensors("bare", &tensors);
    assert_eq!(
        stdout(&file, &["--logits=x"]),
        "     row   argmax argmax-logprob
       0        2    -0.40760598
       1        2     -0.2413113
       2        0     -1.0986123
       3        1     -0.6931472

rows 4; mean logprob of the argmax -0.610169
"
    );
    let top = stdout(&file, &["--logits=x", "--top=1", "--vocab=2", "--entropy"]);
    let lines: Vec<&str> = top.lines().collect();
    assert_eq!(lines[0], "     row   argmax argmax-logprob        entropy top");
    assert_eq!(lines[4], "       3        1            0.0            0.0 1:0.0");
    assert!(lines[6].starts_with("rows 4; mean logprob of the argmax -0."), "{top}");
    assert!(lines[6].contains("; mean entropy 0."), "{top}");
}

#[test]
fn one_json_object_per_row() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 0, -100, 0]);
    assert_eq!(
        stdout(&file, &["--json"]),
        r#"{"row":0,"target":2,"logprob":-0.40760598,"rank":1,"strict_rank":1,"argmax":2}
{"row":1,"target":0,"logprob":-1.7413113,"rank":2,"strict_rank":2,"argmax":2}
{"row":2,"target":-100,"ignored":true}
{"row":3,"target":0,"logprob":null,"logprob_is":"-inf","rank":3,"strict_rank":3,"argmax":1}
"#
    );
    let more =
        ["--json", "--top=2", "--entropy", "--varentropy", "--sample=3", "--sample-temperature=0"];
    let all = stdout(&file, &more);
    assert_eq!(
        all.lines().last().unwrap(),
        r#"{"row":3,"target":0,"logprob":null,"logprob_is":"-inf","rank":3,"strict_rank":3,"argmax":1,"#
            .to_owned()
            + r#""entropy":0.6931472,"varentropy":0.0,"sampled":1,"sampled_logprob":-0.6931472,"#
            + r#""top":[{"id":1,"logprob":-0.6931472},{"id":2,"logprob":-0.6931472}]}"#
    );
    let bare = files.tensors("bare", &[("logits", Dtype::F32, vec![1, 3], bytes(&LOGITS[..3]))]);
    let line = stdout(&bare, &["--json"]);
    assert_eq!(line, "{\"row\":0,\"argmax\":2,\"argmax_logprob\":-0.40760598}\n");
}

#[test]
fn what_is_not_a_number_is_null() {
    let files = Files::new();
    let file = files.dump(&[f32::NAN, 0.0, -INF, -INF, INF, 0.0], 2, &[1, 0, 0]);
    let args = ["--top=1", "--entropy", "--varentropy", "--sample=0"];
    for (i, row) in json_lines(&file, &args).iter().enumerate() {
        assert_eq!(row["row"], i);
        for key in ["logprob", "entropy", "varentropy", "sampled_logprob"] {
            assert_eq!(row.get(key), Some(&Value::Null), "{key} of {row}");
            assert_eq!(row[format!("{key}_is")], "nan", "{key} of {row}");
        }
        assert_eq!((row.get("sampled"), &row["sampled_is"]), (Some(&Value::Null), &json!("none")));
        assert_eq!(row["top"], json!([{"id": 0, "logprob": null, "logprob_is": "nan"}]));
        assert_eq!(row["argmax"], 0);
    }
    let table = stdout(&file, &args);
    let of_first: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(of_first[..3], ["0", "1", "NaN"]);
    assert_eq!(of_first[4..], ["0", "NaN", "NaN", "-1", "NaN", "0:NaN"]);
    // A NaN is the argmax of its row, and no right answer.
    assert!(
        table.contains("; mean logprob NaN; perplexity NaN; accuracy 0.00 % (0 of 3)"),
        "{table}"
    );
    assert!(table.ends_with("; NaN in 3 rows, first in row 0\n"), "{table}");
    let one = files.dump(&[0.0, 0.0, -INF, -INF], 2, &[0, 0]);
    assert!(stdout(&one, &[]).ends_with("(1 of 2); NaN in 1 row, first in row 1\n"));
    let top = &json_lines(&files.dump(&[0.0, -INF], 2, &[0]), &["--top=2"])[0]["top"];
    assert_eq!(top[1], json!({"id": 1, "logprob": null, "logprob_is": "-inf"}));

    let masked = files.dump(&[-INF, 0.0], 2, &[0]);
    let table = stdout(&masked, &[]);
    assert!(table.contains("mean logprob -inf; perplexity inf; accuracy 0.00 %"), "{table}");
}

#[test]
fn rows_of_a_real_model_are_as_pytorch_has_them() {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/real/smollm2_gpl3_rows.safetensors"
    ));
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let data = |name: &str| tensors.tensor(name).unwrap().data().as_chunks().0.to_vec();
    let floats = |name| -> Vec<f64> { data(name).into_iter().map(f64::from_le_bytes).collect() };
    let ints = |name| -> Vec<i64> { data(name).into_iter().map(i64::from_le_bytes).collect() };
    let (losses, entropies, top) =
        (floats("row_loss_f64"), floats("entropy_f64"), floats("top20_logprob_f64"));
    let (targets, argmax, gt, ge) =
        (ints("targets"), ints("argmax"), ints("rank_gt"), ints("rank_ge"));

    let rows = json_lines(path, &["--top", "20", "--entropy"]);
    assert_eq!(rows.len(), 10);
    for (i, row) in rows.iter().enumerate() {
        let Value::Object(row) = row else { panic!("{row}") };
        assert_eq!(row["row"], i);
        assert_eq!(row["target"], targets[i]);
        assert_eq!(row["argmax"], argmax[i]);
        assert_eq!(row["rank"], ge[i], "row {i}");
        assert_eq!(row["strict_rank"], gt[i] + 1, "row {i}");
        assert!(ulp_error(f32_of(&row["logprob"]), -losses[i]) <= 1.0, "row {i}");
        assert!(ulp_error(f32_of(&row["entropy"]), entropies[i]) <= 4.0, "row {i}");
        let found = row["top"].as_array().unwrap();
        assert_eq!(found.len(), 20);
        assert_eq!(found[0]["id"], argmax[i]);
        for (found, &expected) in found.iter().zip(&top[20 * i..]) {
            assert!(ulp_error(f32_of(&found["logprob"]), expected) <= 2.0, "row {i}: {found}");
        }
    }
    let mean = losses.iter().sum::<f64>() / 10.0;
    let table = stdout(path, &[]);
    let correct = (0..10).filter(|&i| argmax[i] == targets[i]).count();
    let summary = format!(
        "rows 10 kept, 0 ignored; mean logprob {:.5}; perplexity {:.4}; accuracy {}0.00 % ({correct} of 10)",
        -mean,
        mean.exp(),
        correct
    );
    assert_eq!(table.lines().last(), Some(&summary[..]));
}

const ROWS: usize = 15;
const VOCAB: usize = 37;

/// Everything that the library has to say.
fn found<T: xent::Element>(
    logits: &[T],
    targets: &[i64],
    temperature: f64,
) -> TokenLogProbs<T::Real> {
    let sample = |row| Sample::new(9, row).temperature(0.5);
    let samples: Vec<Sample> = (0..ROWS as u64).map(sample).collect();
    LogProbs::new()
        .targets(targets)
        .ranks(true)
        .top_k(3)
        .entropy(true)
        .varentropy(true)
        .sample(&samples)
        .temperature(temperature)
        .collect(Logits::new(logits, ROWS, VOCAB).unwrap())
        .unwrap()
}

/// Its lines as the tool has them.
fn lines<R: xent::Real + std::fmt::Debug>(
    found: &TokenLogProbs<R>,
    targets: &[i64],
) -> Vec<String> {
    let line = |i: usize| {
        let target = targets[i];
        if target == -100 {
            return format!(r#"{{"row":{i},"target":-100,"ignored":true}}"#);
        }
        let token = |(id, logprob)| format!(r#"{{"id":{id},"logprob":{logprob:?}}}"#);
        let top: Vec<String> = found.top(i).map(token).collect();
        format!(
            r#"{{"row":{i},"target":{target},"logprob":{:?},"rank":{},"strict_rank":{},"argmax":{},"entropy":{:?},"varentropy":{:?},"sampled":{},"sampled_logprob":{:?},"top":[{}]}}"#,
            found.logprobs[i],
            found.ranks[i],
            found.strict_ranks[i],
            found.argmax[i],
            found.entropy[i],
            found.varentropy[i],
            found.sampled[i],
            found.sampled_logprobs[i],
            top.join(","),
        )
    };
    (0..ROWS).map(line).collect()
}

const ALL: [&str; 8] = [
    "--json",
    "--top=3",
    "--entropy",
    "--varentropy",
    "--sample=9",
    "--sample-temperature=0.5",
    "--temperature=1.25",
    "--vocab=37",
];

#[test]
fn all_types_and_layouts_have_the_bits_of_the_library() {
    const STORED: usize = 40;
    let logits = noise(ROWS * VOCAB, 5);
    let targets: Vec<i64> =
        (0..ROWS).map(|i| if i % 4 == 1 { -100 } else { (i * 7 % VOCAB) as i64 }).collect();
    let padded = |encode: &dyn Fn(&[f32]) -> Vec<u8>| -> Vec<u8> {
        let row = |row: &[f32]| [row, &[f32::NAN; STORED - VOCAB]].concat();
        encode(&logits.chunks(VOCAB).flat_map(row).collect::<Vec<_>>())
    };
    let doubles: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
    let brains: Vec<bf16> = logits.iter().map(|&x| bf16::from_f32(x)).collect();
    let halves: Vec<f16> = logits.iter().map(|&x| f16::from_f32(x)).collect();
    let files = Files::new();
    for (dtype, encoded, expected) in [
        (Dtype::F32, padded(&|x| bytes(x)), lines(&found(&logits, &targets, 1.25), &targets)),
        (
            Dtype::F64,
            padded(&|x| bytes(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())),
            lines(&found(&doubles, &targets, 1.25), &targets),
        ),
        (
            Dtype::BF16,
            padded(&|x| bytes(&x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect::<Vec<_>>())),
            lines(&found(&brains, &targets, 1.25), &targets),
        ),
        (
            Dtype::F16,
            padded(&|x| bytes(&x.iter().map(|&x| f16::from_f32(x).to_bits()).collect::<Vec<_>>())),
            lines(&found(&halves, &targets, 1.25), &targets),
        ),
    ] {
        for of_rows in [&[ROWS][..], &[3, 5]] {
            let shape = [of_rows, &[STORED]].concat();
            let ids = ("targets", Dtype::I64, of_rows.to_vec(), bytes(&targets));
            let file = files.tensors("dump", &[("logits", dtype, shape, encoded.clone()), ids]);
            let printed = stdout(&file, &ALL);
            assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{dtype} {of_rows:?}");
        }
    }
}

#[test]
fn shifted_targets() {
    let logits = noise(ROWS * VOCAB, 6);
    let tokens: Vec<i32> = (0..ROWS).map(|i| (i * 5 % VOCAB) as i32).collect();
    let files = Files::new();
    let file = files.tensors(
        "sequences",
        &[
            ("logits", Dtype::F32, vec![3, 5, VOCAB], bytes(&logits)),
            ("input_ids", Dtype::I32, vec![3, 5], bytes(&tokens)),
        ],
    );
    let target = |row: usize| if row % 5 < 3 { tokens[row + 2].into() } else { -100 };
    let by_hand: Vec<i64> = (0..ROWS).map(target).collect();
    let printed = stdout(&file, &[&ALL[..], &["--targets=input_ids", "--shift=2"]].concat());
    let expected = lines(&found(&logits, &by_hand, 1.25), &by_hand);
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn every_backend_and_any_number_of_threads_print_the_same() {
    let files = Files::new();
    let targets: Vec<i64> = (0..5).collect();
    let file = files.dump(&noise(5 * 9_001, 7), 9_001, &targets);
    let run = |backend: Backend, threads: &str| {
        stdout(&file, &[&ALL[..7], &["--backend", backend.name(), "--threads", threads]].concat())
    };
    let expected = run(Backend::Scalar, "1");
    assert_eq!(expected.lines().count(), 5);
    let mut ran = Vec::new();
    for &backend in Backend::available() {
        // Without fused multiply-add the portable backend has the bound but not the bits.
        let same = if backend.is_bit_exact() { expected.clone() } else { run(backend, "1") };
        for threads in ["1", "2", "3"] {
            assert_eq!(run(backend, threads), same, "{backend}, {threads} threads");
        }
        ran.push(backend);
    }
    assert_eq!(ran, Backend::available());
    println!("ran: {ran:?}");
}

#[test]
fn draws() {
    let files = Files::new();
    let rows = 2_000;
    let file = files.dump(&[0.0, 1.0].repeat(rows), 2, &vec![0; rows]);
    let drawn = |args: &[&str]| -> Vec<i64> {
        let of_row = |row: &Value| row["sampled"].as_i64().unwrap();
        json_lines(&file, args).iter().map(of_row).collect()
    };
    let ones = |args: &[&str]| drawn(args).iter().sum::<i64>();
    let first = drawn(&["--sample", "1"]);
    assert_eq!(drawn(&["--sample", "1", "--threads", "1"]), first);
    assert_ne!(drawn(&["--sample", "2"]), first);
    assert_eq!(ones(&["--sample=1", "--sample-temperature=0"]), 2_000);
    // Of probabilities 0.731, 0.622 and 0.881, give or take five standard deviations.
    let plain = first.iter().sum::<i64>();
    assert!((1_363..=1_561).contains(&plain), "{plain}");
    let warm = ones(&["--sample=1", "--sample-temperature=2"]);
    assert!((1_136..=1_353).contains(&warm), "{warm}");
    let cold = ones(&["--sample=1", "--temperature=0.5"]);
    assert!((1_689..=1_834).contains(&cold), "{cold}");
    assert_eq!(ones(&["--sample=18446744073709551615", "--sample-temperature=1e-9"]), 2_000);
}

#[test]
fn no_rows() {
    let files = Files::new();
    let file = files.dump(&[], 3, &[]);
    let header = "     row   target        logprob     rank   argmax\n\n";
    let summary = "rows 0 kept, 0 ignored; mean logprob NaN; perplexity NaN\n";
    assert_eq!(stdout(&file, &[]), header.to_owned() + summary);
    assert_eq!(stdout(&file, &["--json", "--top=3", "--sample=1"]), "");
    // Their options are checked all the same.
    assert!(failure(&logprobs(&file, ["--temperature=0"]), 2).starts_with("--temperature 0: "));
    let bare = files.tensors("bare", &[("logits", Dtype::F16, vec![0, 0], vec![])]);
    assert_eq!(stdout(&bare, &["--json"]), "");
    // Ignored rows need no classes.
    let ignored = files.dump(&[], 0, &[-100]);
    assert_eq!(stdout(&ignored, &["--json"]), "{\"row\":0,\"target\":-100,\"ignored\":true}\n");
}

#[test]
fn files_at_fault() {
    let files = Files::new();
    let logits = || ("logits", Dtype::F32, vec![2, 3], bytes(&LOGITS[..6]));
    let bare = files.tensors("bare", &[logits()]);
    let missing = ": no tensor `targets` for the targets; the file has `logits` F32 [2, 3]";
    assert_eq!(bad_file(&bare, &["--shift"]), missing);
    assert_eq!(bad_file(&bare, &["--targets", "targets"]), missing);
    let wrong = files.tensors("wrong", &[logits(), ("targets", Dtype::BOOL, vec![2], vec![0; 2])]);
    assert_eq!(
        bad_file(&wrong, &[]),
        ": tensor `targets` is BOOL [2], expected I64, I32, I16, I8, U64, U32, U16 or U8 [2] to go with \
         `logits` F32 [2, 3]"
    );
    assert!(
        bad_file(&bare, &["--vocab", "4"]).ends_with("expected 4 or more classes for --vocab 4")
    );
    assert!(bad_file(&bare, &["--logits", "x"]).contains("try `--logits logits`"));
    assert!(bad_file(&files.path("absent"), &[]).starts_with(": No such file"));
    let header =
        r#"{"logits":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}}"#;
    assert_eq!(
        bad_file(&files.raw(header, &[]), &[]),
        ": tensor `logits` is F32 [4611686018427387904, 0], expected 1 or more classes"
    );
}

#[test]
fn targets_are_checked_before_anything_is_printed() {
    let files = Files::new();
    // More rows than are asked about at once.
    let rows = 40_000;
    let mut targets = vec![0; rows];
    targets[39_999] = 2;
    let file = files.dump(&vec![0.0; 2 * rows], 2, &targets);
    for args in [&[][..], &["--json"]] {
        assert_eq!(
            bad_file(&file, args),
            ": tensor `targets`: row 39999: target 2 is out of range for a vocabulary of 2; \
             the ignore index is -100; `--ignore-index=-100,2` leaves out such rows too"
        );
    }
    let lines = json_lines(&file, &["--ignore-index", "2", "--threads=1"]);
    assert_eq!(lines.len(), rows);
    assert!(lines.iter().enumerate().all(|(i, line)| line["row"] == i));
    assert_eq!(lines[rows - 1], json!({"row": 39_999, "target": 2, "ignored": true}));

    let sequences = [
        ("logits", Dtype::F16, vec![2, 3, 4], vec![0; 48]),
        ("targets", Dtype::I32, vec![2, 3], bytes(&[4i32, 1, 2, 3, 0, -1])),
    ];
    let file = files.tensors("sequences", &sequences);
    let message = bad_file(&file, &["--shift"]);
    assert!(message.starts_with(": tensor `targets` at [1, 2]: row 4: target -1 is"), "{message}");
    let message = bad_file(&file, &[]);
    assert!(message.starts_with(": tensor `targets` at [0, 0]: row 0: target 4 is"), "{message}");
}

#[test]
fn more_of_the_top_than_there_is() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 1, -100, 2]);
    let all = stdout(&file, &["--top=3"]);
    let more = ["--top=4", "--top=129", "--top=18446744073709551615"];
    for more in more {
        assert_eq!(stdout(&file, &[more]), all);
    }
    assert_eq!(stdout(&file, &["--top=0"]), stdout(&file, &[]));
    assert!(json_lines(&file, &["--top=0"])[0].get("top").is_none());
    for more in more {
        assert_eq!(stdout(&files.dump(&[], 3, &[]), &[more, "--json"]), "");
    }

    let wide = files.dump(&noise(2 * 130, 3), 130, &[0, 129]);
    assert_eq!(json_lines(&wide, &["--top=128"])[1]["top"].as_array().unwrap().len(), 128);
    for top in ["129", "130", "1000"] {
        let message = failure(&logprobs(&wide, ["--top", top]), 2);
        assert_eq!(message, format!("--top {top}: it must be at most 128"));
    }
    let most = files.dump(&noise(2 * 128, 3), 128, &[0, 127]);
    assert_eq!(json_lines(&most, &["--top=500"])[1]["top"].as_array().unwrap().len(), 128);
}

#[test]
fn command_lines() {
    for (args, message) in [
        (
            &["--temperature", "0"][..],
            "--temperature 0: it must be a positive number of the range of f32",
        ),
        (
            &["--sample=1", "--sample-temperature", "-0.5"],
            "--sample-temperature -0.5: it must be finite and not negative",
        ),
        (
            &["--sample=1", "--sample-temperature", "nan"],
            "--sample-temperature NaN: it must be finite and not negative",
        ),
    ] {
        assert_eq!(bad_usage(args), message);
    }
    for (args, part) in [
        (&["--per-token"][..], "unexpected argument '--per-token' found"),
        (&["--top", "-1"], "invalid value '-1' for '--top <K>'"),
        (&["--sample", "-1"], "invalid value '-1' for '--sample <SEED>'"),
        (&["--sample-temperature", "1"], "arguments were not provided: --sample <SEED>"),
        (&["--vocab", "0"], "a row has at least 1 class"),
        (&["--shift", "dump.st"], "before a file name write --shift=1"),
        (&["--backend", "mmx"], "unknown backend `mmx`"),
        (&["--threads", "0"], "0 is not in 1..=1024"),
    ] {
        let message = bad_usage(args);
        assert!(message.contains(part), "{args:?}: {message}");
        assert!(message.ends_with("see `xent logprobs --help`"), "{args:?}: {message}");
    }
    let files = Files::new();
    let file = files.dump(&[0.0; 4], 2, &[0, 1]);
    let output = xent().env("XENT_BACKEND", "mmx").arg("logprobs").arg(&file).output().unwrap();
    assert!(failure(&output, 2).contains("XENT_BACKEND: unknown backend `mmx`; available: "));
}

#[test]
fn help() {
    let output = xent().args(["logprobs", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for part in [
        "Usage: xent logprobs [OPTIONS] <FILE.safetensors>",
        "z[t] - ln(sum_j e^z[j])",
        "as in vLLM",
        "--shift [<K>]",
        "[default: targets]",
        "`id:logprob`, at most 128",
        "--sample <SEED>",
        "beside each such `x` there is `x_is`",
        "--mask <NAME>",
        "--offsets <NAME>",
        "XENT_BACKEND",
        "Examples:",
        "Exit status:",
    ] {
        let squeezed = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.contains(part), "{part} is missing from\n{help}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let files = Files::new();
    let rows = 50_000;
    let file = files.dump(&vec![0.0; rows], 1, &vec![0; rows]);
    for args in [&[][..], &["--json"], &["--threads=2"]] {
        let mut child = xent()
            .arg("logprobs")
            .arg(&file)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // More would fit into no pipe, so the tool is still writing when its reader goes.
        child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 1, 0, 0]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = xent().arg("logprobs").arg(&file).stdout(full).output().unwrap();
    let message = failure(&output, 1);
    assert!(message.starts_with("standard output: No space left on device"), "{message}");
}
