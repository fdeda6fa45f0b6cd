//! `xent compare`: what is printed is what the library says; bad files and command lines.

use crate::common::{Dtype, Files, bytes, failure, noise, nulls_are_named, text, xent};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use xent::{
    Backend, Compare, CompareOutputs, Comparison, CrossEntropy, Estimate, Logits, RowOutputs,
    Targets, bf16,
};

const ROWS: usize = 24;
const VOCAB: usize = 101;

fn compare(base: &Path, other: &Path, args: &[&str]) -> Output {
    xent().arg("compare").arg(base).arg(other).args(args).output().unwrap()
}

fn printed(base: &Path, other: &Path, args: &[&str]) -> String {
    let output = compare(base, other, args);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
    text(&output.stdout).to_owned()
}

fn json(base: &Path, other: &Path, args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let stdout = printed(base, other, &args);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let report = serde_json::from_str(&stdout).unwrap();
    nulls_are_named(&report, &stdout);
    report
}

/// Two models that are much alike, and targets.
fn models() -> (Vec<f32>, Vec<bf16>, Vec<i64>) {
    let p = noise(ROWS * VOCAB, 7);
    let q = p.iter().zip(noise(ROWS * VOCAB, 8)).map(|(x, y)| bf16::from_f32(x + 0.05 * y));
    let targets = (0..ROWS).map(|i| if i % 5 == 2 { -100 } else { (i * 37 % VOCAB) as i64 });
    (p.clone(), q.collect(), targets.collect())
}

/// Files of the two, the base with targets if they are to be there.
fn files(files: &Files, with_targets: bool) -> (PathBuf, PathBuf) {
    let (p, q, targets) = models();
    let mut base = vec![("logits", Dtype::F32, vec![ROWS, VOCAB], bytes(&p))];
    if with_targets {
        base.push(("targets", Dtype::I64, vec![ROWS], bytes(&targets)));
    }
    let q: Vec<u16> = q.iter().map(|x| x.to_bits()).collect();
    let other = ("logits", Dtype::BF16, vec![ROWS, VOCAB], bytes(&q));
    (files.tensors("base", &base), files.tensors("other", &[other]))
}

/// What the library says.
fn expected(compare: Compare<'_>) -> (Comparison, [Vec<f64>; 3]) {
    let (p, q, _) = models();
    let (p, q) = (Logits::new(&p, ROWS, VOCAB).unwrap(), Logits::new(&q, ROWS, VOCAB).unwrap());
    let [mut reverse, mut jsd, mut tv] = [(); 3].map(|()| vec![0.0; ROWS]);
    let outputs = CompareOutputs::new().reverse_kl(&mut reverse).jsd(&mut jsd);
    let all = compare.evaluate(p, q, outputs.total_variation(&mut tv)).unwrap();
    (all, [reverse, jsd, tv])
}

#[track_caller]
fn same(got: &Value, want: f64) {
    assert_eq!(got.as_f64().map(f64::to_bits), Some(want.to_bits()), "{got} {want}");
}

#[track_caller]
fn estimate(report: &Value, name: &str, want: Estimate) {
    same(&report[name], want.value);
    same(&report[format!("{name}_stderr")], want.stderr);
}

/// That of each model, base first.
fn perplexities(ce: &CrossEntropy<'_>, targets: &[i64]) -> [Estimate; 2] {
    let (p, q, _) = models();
    let (p, q) = (Logits::new(&p, ROWS, VOCAB).unwrap(), Logits::new(&q, ROWS, VOCAB).unwrap());
    let of_base = ce.evaluate(p, targets, RowOutputs::new()).unwrap();
    let of_other = ce.evaluate(q, targets, RowOutputs::new()).unwrap();
    [of_base, of_other].map(|e| Estimate { value: e.perplexity(), stderr: e.perplexity_stderr() })
}

#[test]
fn every_number_is_that_of_the_library() {
    let dir = Files::new();
    let (base, other) = files(&dir, true);
    let (_, _, targets) = models();
    let options = Compare::new().temperature(1.5).beta(0.25).targets(&targets);
    let (all, per_row) = expected(options);
    let report = json(&base, &other, &["--temperature", "1.5", "--beta", "0.25"]);
    assert_eq!(report["count"], all.count());
    assert_eq!(report["ignored"], all.ignored());
    assert!(all.ignored() > 0 && report["vocab"] == VOCAB);
    estimate(&report, "kl", all.mean_kl());
    let names = ["0", "0.001", "0.25", "0.5", "0.999", "1"];
    let fractions = [0.0, 0.001, 0.25, 0.5, 0.999, 1.0];
    for (name, want) in names.iter().zip(all.kl_percentiles(fractions)) {
        same(&report["kl_percentiles"][name], want);
    }
    for (name, values) in ["reverse_kl", "jsd", "total_variation"].iter().zip(per_row) {
        let kept = values.iter().zip(&targets).filter(|(_, t)| **t != -100).map(|(&x, _)| x);
        estimate(&report, name, Estimate::of(&kept.collect::<Vec<_>>()));
    }
    estimate(&report, "same_top", all.same_top());
    let (at, got) = (all.at_targets().unwrap(), &report["targets"]);
    let [of_base, of_other] = perplexities(&CrossEntropy::new().temperature(1.5), &targets);
    estimate(got, "perplexity", of_other);
    estimate(got, "base_perplexity", of_base);
    estimate(got, "log_ratio", at.log_ratio());
    estimate(got, "ratio", at.ratio());
    estimate(got, "difference", at.difference());
    estimate(got, "rms_delta_p", at.rms_delta_p());
    same(&got["correlation"], at.correlation());
    estimate(got, "delta_p", at.mean_delta_p());
    for (name, want) in names.iter().zip(at.delta_p_percentiles(fractions)) {
        same(&got["delta_p_percentiles"][name], want);
    }

    // The same numbers from every backend that has the same bits, and any number of threads.
    for backend in Backend::available().iter().filter(|backend| backend.is_bit_exact()) {
        let mut one = json(&base, &other, &["--backend", backend.name(), "--threads", "1"]);
        let mut two = json(&base, &other, &["--threads", "2"]);
        for key in ["backend", "threads", "seconds", "gb_per_s"] {
            assert!(one.as_object_mut().unwrap().remove(key).is_some());
            assert!(two.as_object_mut().unwrap().remove(key).is_some());
        }
        assert_eq!(one, two, "{backend}");
    }
}

/// Of both models, with any options that the commands have in common, to the last digit.
#[test]
fn perplexities_are_those_of_score() {
    let dir = Files::new();
    let (p, q, targets) = models();
    let q: Vec<f32> = q.iter().map(|x| x.to_f32()).collect();
    let wide: Vec<f64> = p.iter().map(|&x| f64::from(x) * 1.01).collect();
    let mask: Vec<u8> = (0..ROWS).map(|i| u8::from(i % 7 != 3)).collect();
    let weights: Vec<f32> = (0..ROWS).map(|i| (i % 4) as f32).collect();
    let shape = || vec![4, 6, VOCAB];
    let file = dir.tensors(
        "all",
        &[
            ("p", Dtype::F32, shape(), bytes(&p)),
            ("q", Dtype::F32, shape(), bytes(&q)),
            ("wide", Dtype::F64, shape(), bytes(&wide)),
            ("targets", Dtype::I64, vec![4, 6], bytes(&targets)),
            ("m", Dtype::U8, vec![4, 6], mask),
            ("w", Dtype::F32, vec![4, 6], bytes(&weights)),
        ],
    );
    for args in [
        &[][..],
        &["--temperature=0.7", "--vocab=99"],
        &["--shift", "--mask=m", "--threads=2"],
        &["--token-weights=w", "--ignore-index=-100,37"],
    ] {
        for (base, other) in [("p", "q"), ("q", "wide"), ("wide", "p")] {
            let names = ["--logits", base, "--other-logits", other];
            let compared = json(&file, &file, &[&names, args].concat());
            for (logits, key) in [(base, "base_perplexity"), (other, "perplexity")] {
                let scored = crate::common::json(&file, &[&["--logits", logits], args].concat());
                assert_eq!(compared["count"], scored["count"]);
                for of in ["", "_stderr"] {
                    let of_score = scored[format!("perplexity{of}")].as_f64().unwrap();
                    same(&compared["targets"][format!("{key}{of}")], of_score);
                }
            }
        }
    }
}

#[test]
fn the_text_is_laid_out_as_that_of_llama_cpp() {
    let dir = Files::new();
    let (base, other) = files(&dir, true);
    let (_, _, targets) = models();
    let (all, _) = expected(Compare::new().targets(&targets));
    let at = all.at_targets().unwrap();
    let [of_base, of_other] = perplexities(&CrossEntropy::new(), &targets);
    let stdout = printed(&base, &other, &["--backend", "scalar", "--threads", "1"]);
    let lines: Vec<&str> = stdout.lines().collect();
    let with = |e: Estimate| format!("{:10.6} ± {:10.6}", e.value, e.stderr);
    let percent = |e: Estimate| format!("{:6.3} ± {:5.3} %", 100.0 * e.value, 100.0 * e.stderr);
    let [max, p999, median] = all.kl_percentiles([1.0, 0.999, 0.5]);
    let [upper, min] = at.delta_p_percentiles([0.75, 0.0]).map(|p| 100.0 * p);
    for want in [
        "====== Perplexity statistics ======".to_owned(),
        format!("Mean PPL(Q)                   : {}", with(of_other)),
        format!("Mean PPL(base)                : {}", with(of_base)),
        format!("Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2}%", 100.0 * at.correlation()),
        format!("Mean ln(PPL(Q)/PPL(base))     : {}", with(at.log_ratio())),
        format!("Mean PPL(Q)/PPL(base)         : {}", with(at.ratio())),
        format!("Mean PPL(Q)-PPL(base)         : {}", with(at.difference())),
        "====== KL divergence statistics ======".to_owned(),
        format!("Mean    KLD: {}", with(all.mean_kl())),
        format!("Maximum KLD: {max:10.6}"),
        format!("99.9%   KLD: {p999:10.6}"),
        format!("Median  KLD: {median:10.6}"),
        "====== Token probability statistics ======".to_owned(),
        format!("Mean    Δp: {}", percent(at.mean_delta_p())),
        format!("75.0%   Δp: {upper:6.3}%"),
        format!("Minimum Δp: {min:6.3}%"),
        format!("RMS Δp    : {}", percent(at.rms_delta_p())),
        format!("Same top p: {}", percent(all.same_top())),
        format!("rows            {} kept, {} ignored", all.count(), all.ignored()),
        "backend         scalar, 1 thread".to_owned(),
    ] {
        assert!(lines.contains(&want.as_str()), "{want}\n{stdout}");
    }
    assert_eq!(lines.iter().filter(|line| line.contains("KLD")).count(), 13);
    assert_eq!(lines.iter().filter(|line| line.contains("Δp")).count(), 15);
}

#[test]
fn without_targets_there_are_the_divergences() {
    let dir = Files::new();
    let (base, other) = files(&dir, false);
    let (all, _) = expected(Compare::new());
    let report = json(&base, &other, &[]);
    assert_eq!((report["count"].as_u64(), report["ignored"].as_u64()), (Some(24), Some(0)));
    same(&report["kl"], all.mean_kl().value);
    assert!(report.get("targets").is_none());
    let stdout = printed(&base, &other, &[]);
    assert!(!stdout.contains("PPL") && !stdout.contains("Δp"), "{stdout}");
    assert!(stdout.contains("Mean    KLD: ") && stdout.contains("Same top p: "), "{stdout}");

    // A model and itself; of one row there is no standard error.
    let one = dir.tensors("one", &[("x", Dtype::F32, vec![1, 3], bytes(&[1.0_f32, 2.0, 0.0]))]);
    let stdout = printed(&one, &one, &["--logits", "x"]);
    assert!(stdout.contains("Mean    KLD:   0.000000\n"), "{stdout}");
    assert!(stdout.contains("Same top p: 100.000 %\n"), "{stdout}");
    let report = json(&one, &one, &["--logits", "x"]);
    assert!(report["kl_stderr"].is_null());
}

#[test]
fn padding_sequences_shifts_and_names() {
    let dir = Files::new();
    let (p, q, _) = models();
    let q: Vec<f32> = q.iter().map(|x| x.to_f32()).collect();
    let tokens: Vec<u32> = (0..ROWS as u32).map(|i| i * i % 90).collect();
    let tensors = [
        ("p", Dtype::F32, vec![4, 6, VOCAB], bytes(&p)),
        ("q", Dtype::F32, vec![ROWS, VOCAB], bytes(&q)),
        ("input_ids", Dtype::U32, vec![4, 6], bytes(&tokens)),
    ];
    let file = dir.tensors("both", &tensors);
    let args = ["--logits", "p", "--other-logits", "q", "--targets", "input_ids"];
    let report = json(&file, &file, &[&args[..], &["--shift", "2", "--vocab", "90"]].concat());
    let of = |x| Logits::with_stride(x, ROWS, 90, VOCAB).unwrap();
    let compare = Compare::new().targets(Targets::shifted(&tokens, 6, 2));
    let want = compare.evaluate(of(&p), of(&q), CompareOutputs::new()).unwrap();
    assert_eq!((report["count"].as_u64(), report["ignored"].as_u64()), (Some(16), Some(8)));
    same(&report["kl"], want.mean_kl().value);
    let ce = CrossEntropy::new();
    let of_other = ce.evaluate(of(&q), Targets::shifted(&tokens, 6, 2), RowOutputs::new()).unwrap();
    same(&report["targets"]["perplexity"], of_other.perplexity());
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let dir = Files::new();
    let (base, other) = files(&dir, true);
    let fails = |base: &Path, other: &Path, args: &[&str], code: i32| {
        failure(&compare(base, other, args), code)
    };
    let short = dir.tensors("short", &[("logits", Dtype::F32, vec![2, 3], bytes(&[0.0_f32; 6]))]);
    assert_eq!(
        fails(&base, &short, &[], 1),
        format!(
            "{}: tensor `logits` is F32 [2, 3], expected 24 rows of 101 classes, as `logits` of {} has",
            short.display(),
            base.display()
        )
    );
    let narrow = ("logits", Dtype::F32, vec![ROWS, 3], bytes(&[0.0_f32; 3 * ROWS]));
    let narrow = dir.tensors("narrow", &[narrow]);
    let message = fails(&base, &narrow, &[], 1);
    assert!(message.ends_with(" has; `--vocab 3` compares the first 3 classes"), "{message}");
    let message = fails(&base, &short, &["--vocab", "4"], 1);
    assert!(message.starts_with(&short.display().to_string()), "{message}");
    assert!(message.contains("4 or more classes for --vocab 4"), "{message}");
    let message = fails(&base, &dir.path("nothing"), &[], 1);
    assert!(message.starts_with(&dir.path("nothing").display().to_string()), "{message}");
    let message = fails(&base, &other, &["--targets", "ids"], 1);
    assert!(message.contains("no tensor `ids` for the targets"), "{message}");
    let message = fails(&short, &short, &["--shift"], 1);
    assert!(message.contains("no tensor `targets` for the targets"), "{message}");
    let message = fails(&base, &other, &["--other-logits", "x"], 1);
    assert!(message.starts_with(&other.display().to_string()), "{message}");
    assert!(message.contains("no tensor `x` for the logits"), "{message}");
    let message = fails(&base, &other, &["--vocab", "30"], 1);
    assert_eq!(
        message,
        format!(
            "{}: tensor `targets`: row 1: target 37 is out of range for a vocabulary of 30; \
             the ignore index is -100; `--ignore-index=-100,37` leaves out such rows too",
            base.display()
        )
    );

    assert_eq!(fails(&base, &other, &["--beta", "2"], 2), "--beta 2: it must be between 0 and 1");
    assert_eq!(
        fails(&base, &other, &["--temperature", "0"], 2),
        "--temperature 0: it must be a positive number of the range of f32"
    );
    let message = fails(&base, &other, &["--backend", "mmx"], 2);
    assert!(message.contains("unknown backend `mmx`"), "{message}");
    assert!(message.ends_with("see `xent compare --help`"), "{message}");
    let output = xent().arg("compare").arg(&base).output().unwrap();
    assert!(failure(&output, 2).contains("OTHER.safetensors"));
    let help = xent().args(["compare", "--help"]).output().unwrap();
    assert!(help.status.success() && text(&help.stdout).contains("llama-perplexity"));
}

/// That a file is compared with another with something said on standard error.
fn report_and_stderr(base: &Path, other: &Path, args: &[&str]) -> (Value, String) {
    let output = compare(base, other, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    let report = serde_json::from_slice(&output.stdout).unwrap();
    nulls_are_named(&report, text(&output.stdout));
    (report, text(&output.stderr).to_owned())
}

#[test]
fn rows_that_are_nan_are_counted_and_the_first_is_named() {
    const INF: f32 = f32::INFINITY;
    let dir = Files::new();
    let good = [0f32, 1.0, 2.0, 0.0, 1.0, 1.0, 3.0, 0.0];
    let write = |name: &str, x: &[f32]| {
        let ids = ("targets", Dtype::U8, vec![4], vec![255, 1, 1, 1]);
        dir.tensors(name, &[("logits", Dtype::F32, vec![4, 2], bytes(x)), ids])
    };
    let base = write("base", &good);
    let args = ["--ignore-index=255"];
    for (bad, why) in [
        ([f32::NAN, 1.0], "a logit is NaN"),
        ([0.0, INF], "a logit is +inf"),
        ([-INF, -INF], "all logits are -inf"),
    ] {
        let mut x = good;
        // The first row is left out.
        (x[0], x[2], x[3], x[6], x[7]) = (f32::NAN, bad[0], bad[1], bad[0], bad[1]);
        let bad = write("bad", &x);
        for (p, q, model) in [(&base, &bad, "the other"), (&bad, &base, "the base")] {
            let (report, stderr) = report_and_stderr(p, q, &args);
            assert_eq!(
                stderr,
                format!(
                    "xent: {}: the divergence of 2 rows is NaN, first in row 1: {why} in {model}\n",
                    p.display()
                )
            );
            assert_eq!((&report["nan_rows"], &report["first_nan_row"]), (&2.into(), &1.into()));
            assert_eq!(report["kl_is"], "nan");
            assert_eq!(report["kl_percentiles"]["0.5_is"], "nan");
            assert_eq!(report["targets"]["correlation_is"], "nan");
        }
    }
    // No probability where the base has one is no NaN.
    let masked = write("masked", &[0.0, 1.0, 2.0, -INF, 1.0, 1.0, 3.0, 0.0]);
    let (report, stderr) = report_and_stderr(&base, &masked, &args);
    assert_eq!((stderr.as_str(), &report["nan_rows"]), ("", &0.into()));
    assert_eq!((&report["kl_is"], &report["kl_stderr_is"]), (&"inf".into(), &"nan".into()));
    assert_eq!(report["kl_percentiles"]["1_is"], "inf");
    assert_eq!(report["kl_percentiles"].get("0_is"), None);
    assert_eq!(report["targets"]["perplexity_is"], "inf");
    assert_eq!(report.get("first_nan_row"), None);
    // Nor is a standard error of one row.
    let one = dir.tensors("one", &[("logits", Dtype::F32, vec![1, 2], bytes(&good[..2]))]);
    let (report, stderr) = report_and_stderr(&one, &one, &[]);
    assert_eq!((stderr.as_str(), &report["kl_stderr_is"]), ("", &"nan".into()));
}

#[test]
fn numbers_have_an_exponent_where_there_would_be_dozens_of_digits() {
    let dir = Files::new();
    let sure = |x: f32| {
        let ids = ("targets", Dtype::I64, vec![2], bytes(&[0i64, 0]));
        dir.tensors(
            &x.to_string(),
            &[("logits", Dtype::F32, vec![2, 2], bytes(&[0.0, x, 0.0, x])), ids],
        )
    };
    let stdout = printed(&sure(600.0), &sure(0.0), &["--beta=1e-38"]);
    assert!(stdout.contains("Mean PPL(base)                : 3.773020e260"), "{stdout}");
    assert!(stdout.contains("Mean JSD, beta 1e-38: "), "{stdout}");
    assert!(stdout.lines().all(|line| line.len() < 80), "{stdout}");
}
