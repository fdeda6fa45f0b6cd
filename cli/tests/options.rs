//! The options of the loss and the gradient: what the formulas say, and the bits of the library.

use crate::common::{Dtype, Files, Tensor, bytes, json, noise, read_grad, results, score, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use xent::{
    Backend, CrossEntropy, Evaluation, Gradient, Logits, LogitsMut, Reduction, RowOutputs, Targets,
    Upstream, reference,
};

const ROWS: usize = 11;
const VOCAB: usize = 37;

/// Logits, targets of which some are ignored, weights of both signs, probabilities, upstream gradients.
struct Sample {
    logits: Vec<f32>,
    targets: Vec<i64>,
    weight: Vec<f32>,
    probs: Vec<f32>,
    upstream: Vec<f64>,
}

impl Sample {
    fn new() -> Self {
        let logits = noise(ROWS * VOCAB, 1);
        let targets = (0..ROWS).map(|i| if i % 4 == 1 { -100 } else { (i * 7 % VOCAB) as i64 });
        let teacher = noise(ROWS * VOCAB, 2);
        let probs = teacher.chunks(VOCAB).flat_map(reference::softmax).map(|p| p as f32);
        Sample {
            logits,
            targets: targets.collect(),
            weight: noise(VOCAB, 3).iter().map(|w| 1.0 + w / 8.0).collect(),
            probs: probs.collect(),
            upstream: noise(ROWS, 4).into_iter().map(f64::from).collect(),
        }
    }

    fn file(&self, files: &Files) -> std::path::PathBuf {
        let matrix = |name, values| (name, Dtype::F32, vec![ROWS, VOCAB], bytes(values));
        let tensors: [Tensor<'_>; 6] = [
            matrix("logits", &self.logits),
            ("targets", Dtype::I64, vec![ROWS], bytes(&self.targets)),
            ("class_weights", Dtype::F32, vec![VOCAB], bytes(&self.weight)),
            matrix("teacher", &self.probs),
            ("up_rows", Dtype::F64, vec![ROWS], bytes(&self.upstream)),
            ("up", Dtype::F32, vec![], bytes(&[0.375f32])),
        ];
        files.tensors("sample.safetensors", &tensors)
    }

    fn ids(&self) -> Targets<'_> {
        (&self.targets).into()
    }
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"))
}

/// A row as the formulas in the help have it: cross-entropy, logsumexp and negative log-probability.
fn formula(x: &[f32], t: usize, w: &[f32], e: f64, z: impl Fn(f64) -> f64) -> (f64, f64, f64) {
    let z: Vec<f64> = x.iter().map(|&x| z(f64::from(x))).collect();
    let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
    let nll = |c: usize| f64::from(w[c]) * (lse - z[c]);
    let all: f64 = (0..z.len()).map(nll).sum();
    ((1.0 - e) * nll(t) + e / z.len() as f64 * all, lse, lse - z[t])
}

#[test]
fn losses_are_those_of_the_formulas() {
    let sample = Sample::new();
    let files = Files::new();
    let file = sample.file(&files);
    let ones = vec![1f32; VOCAB];
    let cap = |x: f64| 5.0 * (x / 5.0).tanh();
    type Case<'a> = (&'a [&'a str], &'a [f32], f64, f64, &'a dyn Fn(f64) -> f64);
    let cases: [Case<'_>; 8] = [
        (&[], &ones, 0.0, 0.0, &|x| x),
        (&["--label-smoothing", "0.25"], &ones, 0.25, 0.0, &|x| x),
        (&["--weight", "class_weights"], &sample.weight, 0.0, 0.0, &|x| x),
        (&["--z-loss", "0.01"], &ones, 0.0, 0.01, &|x| x),
        (&["--softcap", "5"], &ones, 0.0, 0.0, &cap),
        (&["--logit-scale", "0.5"], &ones, 0.0, 0.0, &|x| 0.5 * x),
        (&["--temperature", "2.5"], &ones, 0.0, 0.0, &|x| x / 2.5),
        (
            &[
                "--label-smoothing=0.25",
                "--weight=class_weights",
                "--z-loss=0.01",
                "--softcap=5",
                "--logit-scale=0.5",
                "--temperature=2.5",
            ],
            &sample.weight,
            0.25,
            0.01,
            &|x| cap(0.5 * x) / 2.5,
        ),
    ];
    for (args, w, e, z_factor, z) in cases {
        let report = json(&file, args);
        let close = |got: &Value, want: f64, what: &str| {
            let got = got.as_f64().unwrap_or_else(|| panic!("{args:?}: {what} {got}"));
            assert!(
                (got - want).abs() <= 1e-6 * want.abs().max(1.0),
                "{args:?}: {what} {got} {want}"
            );
        };
        let (mut loss, mut z_loss, mut nll, mut weight, mut kept) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, &target) in sample.targets.iter().enumerate() {
            let row = &report["rows"][i];
            let Ok(t) = usize::try_from(target) else {
                assert_eq!(row, &json!({"row": i, "target": -100, "ignored": true}));
                continue;
            };
            assert_eq!(row.get("z_loss").is_some(), z_factor != 0.0, "{args:?}: {row}");
            let x = &sample.logits[i * VOCAB..][..VOCAB];
            let (row_loss, lse, row_nll) = formula(x, t, w, e, z);
            let row_z = z_factor * lse * lse;
            close(&row["loss"], row_loss + row_z, "loss of a row");
            close(&row["lse"], lse, "lse");
            close(&row["logprob"], -row_nll, "logprob");
            if z_factor != 0.0 {
                close(&row["z_loss"], row_z, "z-loss of a row");
            }
            (loss, z_loss, nll) = (loss + row_loss, z_loss + row_z, nll + row_nll);
            (weight, kept) = (weight + f64::from(w[t]), kept + 1.0);
        }
        close(&report["loss"], loss / weight + z_loss / kept, "loss");
        close(&report["perplexity"], (nll / kept).exp(), "perplexity");
        close(&report["bits_per_token"], nll / kept / 2f64.ln(), "bits");
        assert_eq!(report["count"], json!(kept as u64));
        close(&report["nll"], nll / kept, "nll");
        for key in ["cross_entropy", "z_loss"] {
            assert_eq!(report.get(key).is_some(), z_factor != 0.0, "{args:?}: {key}");
        }
        if z_factor != 0.0 {
            close(&report["cross_entropy"], loss / weight, "cross-entropy");
            close(&report["z_loss"], z_loss / kept, "z-loss");
        }
    }
}

#[test]
fn numbers_that_can_be_worked_out_by_hand() {
    let files = Files::new();
    // Two classes of the same probability: the negative log-probability of each is ln 2.
    let tensors = [
        ("logits", Dtype::F32, vec![2, 2], bytes(&[0f32; 4])),
        ("targets", Dtype::I64, vec![2], bytes(&[0i64, 1])),
        ("w", Dtype::F32, vec![2], bytes(&[1f32, 3.0])),
    ];
    let file = files.tensors("hand", &tensors);
    let ln2 = 2f64.ln();
    let close = |report: &Value, key: &str, want: f64| {
        assert!((number(report, key) - want).abs() < 1e-12, "{key} in {report}");
    };
    let report = json(&file, &["--weight", "w", "--reduction", "sum", "--z-loss", "0.5"]);
    let z = 2.0 * 0.5 * ln2 * ln2;
    close(&report, "cross_entropy", 4.0 * ln2);
    close(&report, "z_loss", z);
    close(&report, "loss", 4.0 * ln2 + z);
    close(&report, "perplexity", 2.0);
    // The mean divides by the sum of the weights, that of the z-loss by the number of rows.
    let report = json(&file, &["--weight", "w", "--z-loss", "0.5"]);
    close(&report, "cross_entropy", ln2);
    close(&report, "z_loss", z / 2.0);
    let report = json(&file, &["--weight", "w", "--z-loss", "0.5", "--reduction", "mean-over:8"]);
    close(&report, "loss", (4.0 * ln2 + z) / 8.0);
    let report = json(&file, &["--weight", "w", "--z-loss", "0.5", "--reduction", "none"]);
    for key in ["loss", "cross_entropy", "z_loss"] {
        assert_eq!(report[key], Value::Null, "{key}");
    }
    assert_eq!(report["loss_is"], "none");
    close(&report, "nll", ln2);

    let out = files.path("grad");
    json(&file, &["--weight", "w", "--grad", out.to_str().unwrap()]);
    let grad = read_grad(&out);
    assert_eq!((grad.dtype, grad.shape), (Dtype::F32, vec![2, 2]));
    assert_eq!(grad.data, bytes(&[-0.125f32, 0.125, 0.375, -0.375]));
}

#[test]
fn target_probabilities() {
    let sample = Sample::new();
    let files = Files::new();
    let file = sample.file(&files);
    let report = json(&file, &["--target-probs", "teacher"]);
    let mut sum = 0.0;
    let mut correct = 0;
    for i in 0..ROWS {
        let (x, q) = (&sample.logits[i * VOCAB..][..VOCAB], &sample.probs[i * VOCAB..][..VOCAB]);
        let log_p = reference::log_softmax(x);
        let loss: f64 = q.iter().zip(&log_p).map(|(&q, log_p)| -f64::from(q) * log_p).sum();
        let row = &report["rows"][i];
        assert!((row["loss"].as_f64().unwrap() - loss).abs() < 1e-6 * loss, "{row} {loss}");
        assert_eq!(row["logprob"].as_f64().unwrap(), -row["loss"].as_f64().unwrap());
        let best = |v: &[f32]| (0..VOCAB).reduce(|a, b| if v[b] > v[a] { b } else { a }).unwrap();
        assert_eq!(row["argmax"], json!(best(x)));
        assert_eq!(row["correct"], json!(best(x) == best(q)));
        correct += u32::from(best(x) == best(q));
        sum += loss;
    }
    assert_eq!((&report["count"], &report["ignored"]), (&json!(ROWS), &json!(0)));
    assert_eq!(number(&report, "accuracy"), f64::from(correct) / ROWS as f64);
    assert!((number(&report, "loss") - sum / ROWS as f64).abs() < 1e-6);
    assert_eq!(report["nll"], report["loss"]);

    // Of one class, they are that class.
    let mut one_hot = vec![0f32; ROWS * VOCAB];
    let ids: Vec<i64> = (0..ROWS).map(|i| (i * 5 % VOCAB) as i64).collect();
    ids.iter().enumerate().for_each(|(i, &id)| one_hot[i * VOCAB + id as usize] = 1.0);
    let tensors = [
        ("logits", Dtype::F32, vec![ROWS, VOCAB], bytes(&sample.logits)),
        ("targets", Dtype::I64, vec![ROWS], bytes(&ids)),
        ("one_hot", Dtype::F32, vec![ROWS, VOCAB], bytes(&one_hot)),
    ];
    let file = files.tensors("one_hot", &tensors);
    let (a, b) = (json(&file, &[]), json(&file, &["--target-probs", "one_hot"]));
    assert!((number(&a, "loss") - number(&b, "loss")).abs() < 1e-6);
    assert_eq!(a["accuracy"], b["accuracy"]);
    for (a, b) in a["rows"].as_array().unwrap().iter().zip(b["rows"].as_array().unwrap()) {
        assert_eq!((&a["argmax"], &a["correct"]), (&b["argmax"], &b["correct"]));
    }
    let output = score(&file, ["--target-probs", "one_hot", "--per-token"]);
    let third = text(&output.stdout).lines().nth(3).unwrap();
    assert!(third.starts_with("       2       10 "), "{third}");
}

/// What the library has to say: results and gradient.
fn differentiated(
    sample: &Sample,
    ce: CrossEntropy<'_>,
    targets: Targets<'_>,
    upstream: Upstream<'_>,
) -> (Evaluation, Vec<f32>) {
    let mut grad = vec![f32::NAN; ROWS * VOCAB];
    let to = Gradient::new(LogitsMut::new(&mut grad, ROWS, VOCAB).unwrap()).upstream(upstream);
    let logits = Logits::new(&sample.logits, ROWS, VOCAB).unwrap();
    let outputs = RowOutputs::new().count_correct();
    (ce.forward_backward(logits, targets, to, outputs).unwrap(), grad)
}

#[test]
fn gradients_are_those_of_the_library_to_the_bit() {
    let sample = Sample::new();
    let files = Files::new();
    let file = sample.file(&files);
    let out = files.path("grad.safetensors");
    let check = |args: &[&str], ce: CrossEntropy<'_>, targets: Targets<'_>, up: Upstream<'_>| {
        let (e, want) = differentiated(&sample, ce, targets, up);
        let with = [args, &["--grad", out.to_str().unwrap()]].concat();
        let report = json(&file, &with);
        let got = read_grad(&out);
        assert_eq!((got.dtype, got.shape), (Dtype::F32, vec![ROWS, VOCAB]), "{args:?}");
        assert!(got.data == bytes(&want), "{args:?}");
        if report["reduction"] != "none" {
            assert_eq!(number(&report, "loss").to_bits(), e.loss().to_bits(), "{args:?}");
        }
        // All else is as without the gradient, which replaces the file of the case before.
        let plain: Vec<&str> = match args.iter().position(|&arg| arg == "--upstream") {
            Some(i) => [&args[..i], &args[i + 2..]].concat(),
            None => args.to_vec(),
        };
        assert_eq!(results(report), results(json(&file, &plain)), "{args:?}");
    };
    let ce = CrossEntropy::new;
    let rows = || Upstream::rows(&sample.upstream);
    let one = Upstream::default;
    check(&[], ce(), sample.ids(), one());
    check(&["--reduction=sum"], ce().reduction(Reduction::Sum), sample.ids(), one());
    check(&["--reduction=none"], ce().reduction(Reduction::Sum), sample.ids(), one());
    check(
        &["--reduction=none", "--upstream", "up_rows"],
        ce().reduction(Reduction::Sum),
        sample.ids(),
        rows(),
    );
    check(&["--upstream", "up_rows"], ce(), sample.ids(), rows());
    check(&["--upstream", "up"], ce(), sample.ids(), 0.375.into());
    check(
        &["--reduction=mean-over:5", "--upstream", "up"],
        ce().reduction(Reduction::MeanOver(5.0)),
        sample.ids(),
        0.375.into(),
    );
    let options = || {
        ce().class_weights(&sample.weight)
            .label_smoothing(0.1)
            .z_loss(1e-3)
            .softcap(6.0)
            .logit_scale(0.75)
            .temperature(1.25)
    };
    let args = [
        "--weight=class_weights",
        "--label-smoothing=0.1",
        "--z-loss=1e-3",
        "--softcap=6",
        "--logit-scale=0.75",
        "--temperature=1.25",
    ];
    check(&args, options(), sample.ids(), one());
    let with_upstream = [&args[..], &["--upstream", "up_rows"]].concat();
    check(&with_upstream, options(), sample.ids(), rows());
    let probs = || Targets::probs(&sample.probs);
    let with_probs = [&args[..], &["--target-probs", "teacher"]].concat();
    check(&with_probs, options(), probs(), one());
    check(&["--target-probs", "teacher", "--upstream", "up_rows"], ce(), probs(), rows());
}

#[test]
fn gradients_do_not_depend_on_threads_backends_or_alignment() {
    let sample = Sample::new();
    let files = Files::new();
    let file = sample.file(&files);
    let out = files.path("grad");
    let grad = |file: &Path, args: &[&str]| {
        let options = ["--label-smoothing=0.1", "--weight=class_weights", "--upstream=up_rows"];
        json(file, &[&options[..], args, &["--grad", out.to_str().unwrap()]].concat());
        read_grad(&out).data
    };
    let expected = grad(&file, &["--threads=1", "--backend=scalar"]);
    for &backend in Backend::available() {
        // Without fused multiply-add the portable backend has the bound but not the bits.
        if backend == Backend::Portable && !cfg!(target_feature = "fma") {
            continue;
        }
        for threads in ["--threads=1", "--threads=3"] {
            assert!(grad(&file, &["--backend", backend.name(), threads]) == expected, "{backend}");
        }
    }
    let good = fs::read(&file).unwrap();
    let (len, rest) = good.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let header = text(header).trim_end();
    for padding in 0..8 {
        let file = files.raw(&(header.to_owned() + &" ".repeat(padding)), data);
        assert!(grad(&file, &[]) == expected, "{padding} bytes of padding");
    }
}

#[test]
fn gradients_of_ignored_rows_and_of_nothing() {
    let files = Files::new();
    let out = files.path("grad");
    let to = out.to_str().unwrap();
    let file = files.dump(&[f32::NAN, 1.0, 0.0, 0.0], 2, &[-100, 1]);
    json(&file, &["--grad", to]);
    assert_eq!(read_grad(&out).data, bytes(&[0f32, 0.0, 0.5, -0.5]));
    for (logits, vocab, targets) in
        [(&[][..], 5, &[][..]), (&[][..], 0, &[-100, -100][..]), (&[1.0; 2], 1, &[-100, -100])]
    {
        json(&files.dump(logits, vocab, targets), &["--grad", to]);
        let grad = read_grad(&out);
        assert_eq!(grad.shape, [targets.len(), vocab]);
        assert_eq!(grad.data, vec![0; logits.len() * 4]);
    }
}

#[test]
fn a_gradient_replaces_a_file_and_leaves_no_other() {
    let files = Files::new();
    let file = files.dump(&[0.0; 2], 2, &[1]);
    let out = files.write(
        "grad",
        b"something of before, longer than the gradient will be".repeat(9).as_slice(),
    );
    json(&file, &["--grad", out.to_str().unwrap()]);
    assert_eq!(read_grad(&out).data, bytes(&[0.5f32, -0.5]));
    assert_eq!(files.names(), ["dump.safetensors", "grad"]);

    // A relative path, and text.
    let mut command = crate::common::xent();
    command.current_dir(files.path(".")).args(["score", "dump.safetensors", "--grad", "new"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("loss            0.693147 (mean)\n"));
    assert_eq!(files.names(), ["dump.safetensors", "grad", "new"]);
    assert_eq!(fs::read(files.path("new")).unwrap(), fs::read(&out).unwrap());

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Whatever the tests may do to new files, the tool may.
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&out), mode(&files.write("other", b"")));
        // A link stays one, and what it leads to is replaced.
        let link = files.path("link");
        std::os::unix::fs::symlink(&out, &link).unwrap();
        json(&file, &["--grad", link.to_str().unwrap(), "--reduction=mean-over:2"]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read_grad(&out).data, bytes(&[0.25f32, -0.25]));
    }
}

#[test]
fn text_shows_the_parts_of_the_loss() {
    let sample = Sample::new();
    let files = Files::new();
    let file = sample.file(&files);
    let lines = |args: &[&str]| -> Vec<String> {
        let output = score(&file, args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(str::to_owned).collect()
    };
    let starts = |lines: &[String], starts: &[&str]| {
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line:?}, not {start:?}");
        }
    };
    let plain = lines(&[]);
    starts(&plain, &["loss ", "perplexity ", "bits"]);
    let smoothed = lines(&["--label-smoothing", "0.1"]);
    starts(&smoothed, &["loss ", "nll  ", "perplexity "]);
    assert!(smoothed[0].ends_with(" (mean)") && !smoothed[0].contains("+/-"), "{smoothed:?}");
    // The same, as it does not depend on the smoothing.
    assert_eq!(smoothed[1].strip_prefix("nll "), plain[0].strip_prefix("loss"));
    assert_eq!(smoothed[2..4], plain[1..3]);
    let z = lines(&["--z-loss", "0.1"]);
    starts(&z, &["loss ", "  cross-entropy ", "  z-loss        ", "nll ", "perplexity "]);
    let of = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap();
    assert!((of(&z[0]) - of(&z[1]) - of(&z[2])).abs() < 2e-6, "{z:?}");
    let rows = lines(&["--z-loss", "0.1", "--reduction", "none"]);
    let header =
        "     row   target           loss         z-loss        logprob            lse   argmax";
    assert_eq!(rows[0], format!("{header} correct"));
    let columns = |line: &str| line.split_whitespace().count();
    assert_eq!((columns(&rows[1]), columns(&rows[2])), (8, 8));
    starts(&rows[ROWS + 1..], &["", "nll ", "perplexity "]);
}

#[test]
fn f64_logits() {
    let sample = Sample::new();
    let wide = |values: &[f32]| -> Vec<f64> {
        // Not all of them numbers of f32.
        values.iter().map(|&x| f64::from(x) * (1.0 + 1e-10)).collect()
    };
    let (logits, weight) = (wide(&sample.logits), wide(&sample.weight));
    let probs = wide(&sample.probs);
    let files = Files::new();
    let file = files.tensors(
        "wide",
        &[
            ("logits", Dtype::F64, vec![ROWS, VOCAB], bytes(&logits)),
            ("targets", Dtype::I64, vec![ROWS], bytes(&sample.targets)),
            ("w", Dtype::F64, vec![VOCAB], bytes(&weight)),
            ("teacher", Dtype::F64, vec![ROWS, VOCAB], bytes(&probs)),
        ],
    );
    let out = files.path("grad");
    let (mut losses, mut lse) = ([0f64; ROWS], [0f64; ROWS]);
    let mut check = |args: &[&str], ce: CrossEntropy<'_>, targets: Targets<'_>| {
        let mut grad = vec![f64::NAN; ROWS * VOCAB];
        let to = Gradient::new(LogitsMut::new(&mut grad, ROWS, VOCAB).unwrap());
        let x = Logits::new(&logits, ROWS, VOCAB).unwrap();
        let outputs = RowOutputs::new().losses(&mut losses).logsumexp(&mut lse);
        let e = ce.forward_backward(x, targets, to, outputs).unwrap();
        let report = json(&file, &[args, &["--grad", out.to_str().unwrap()]].concat());
        assert_eq!(number(&report, "loss").to_bits(), e.loss().to_bits(), "{args:?}");
        for i in 0..ROWS {
            let row = &report["rows"][i];
            if row["ignored"] == true {
                assert_eq!(losses[i], 0.0, "{args:?}");
                continue;
            }
            assert_eq!(number(row, "loss").to_bits(), losses[i].to_bits(), "{args:?}");
            assert_eq!(number(row, "lse").to_bits(), lse[i].to_bits(), "{args:?}");
        }
        let got = read_grad(&out);
        assert_eq!((got.dtype, got.shape), (Dtype::F64, vec![ROWS, VOCAB]));
        assert!(got.data == bytes(&grad), "{args:?}");
    };
    check(&[], CrossEntropy::new(), sample.ids());
    let args = ["--weight=w", "--label-smoothing=0.1", "--z-loss=0.01"];
    let options = CrossEntropy::new().class_weights(&weight).label_smoothing(0.1).z_loss(0.01);
    check(&args, options, sample.ids());
    check(&["--target-probs=teacher"], CrossEntropy::new(), Targets::probs(&probs));

    // And what the oracle says, of logits that are numbers of f32.
    let narrow: Vec<f64> = sample.logits.iter().map(|&x| x.into()).collect();
    let file = files.tensors(
        "narrow",
        &[
            ("logits", Dtype::F64, vec![ROWS, VOCAB], bytes(&narrow)),
            ("targets", Dtype::I64, vec![ROWS], bytes(&sample.targets)),
        ],
    );
    let report = json(&file, &[]);
    let (sum, kept) = reference::cross_entropy(&sample.logits, VOCAB, &sample.targets, -100);
    assert!((number(&report, "loss") - sum / kept as f64).abs() < 1e-14);
    let output = score(&file, ["--per-token"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}
