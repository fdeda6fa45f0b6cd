//! The cases that PyTorch computed, on every backend: `tests/golden/README.md`.
//!
//! References are PyTorch's `f64` results. They are not relatively exact for numbers much smaller
//! than 1 (a loss of 1e-30 is 0 there), hence one absolute term, [`FLOOR`]. Everything else is in ULP
//! of `f32`. The data do not change and the kernels are deterministic, so bounds are the largest
//! errors seen, rounded up to the next quarter; what is documented for all inputs is wider.

#[path = "support/golden_data.rs"]
#[allow(dead_code, reason = "shared with other tests, which use more of it")]
mod golden_data;
#[path = "../examples/support/notebook.rs"]
#[allow(dead_code, reason = "shared with other tests, which use more of it")]
mod notebook;
#[path = "../examples/support/real.rs"]
mod real;

use golden_data::{Case, Index, Tensors};
use notebook::Notebook;
use std::collections::BTreeMap;
use xent::reference::{self, ulp_error};
use xent::{Backend, CrossEntropy, Logits, LogitsMut, Reduction, RowOutputs, Softmax};

/// The error of the references themselves, by comparison with 50-digit arithmetic:
/// `4e-16 * max(1, |v|)`. Above 1 it is 1e-8 ULP of `f32` and does not matter.
const FLOOR: f64 = 4e-16;

/// Row losses and log-probabilities; 0.62 seen, 0.5 of which is the rounding to `f32`.
const LOSS_BOUND: f64 = 0.75;

/// What is left of it for losses that are summed before they are rounded.
const UNROUNDED_LOSS_BOUND: f64 = LOSS_BOUND - 0.5;

/// 0.53 seen, in units of the larger of its own magnitude and 1.
const LOGSUMEXP_BOUND: f64 = 0.75;

/// 1.14 seen.
const SOFTMAX_BOUND: f64 = 1.25;

/// 1.25 seen, next to a class with nearly all the probability.
const LOG_SOFTMAX_BOUND: f64 = 1.5;

/// The unit of the last place of `v` as an `f32`.
fn ulp(v: f64) -> f64 {
    let exponent = (v.abs().to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent.max(-126) - 23)
}

/// The largest error of each statistic, with PyTorch's own where it has an `f32` result.
#[derive(Default)]
struct Worst(BTreeMap<&'static str, Line>);

#[derive(Default)]
struct Line {
    values: usize,
    xent: f64,
    /// Its error, and the case with the largest.
    torch: Option<(f64, String)>,
}

impl Worst {
    fn see(&mut self, what: &'static str, error: f64) {
        let line = self.0.entry(what).or_default();
        line.values += 1;
        line.xent = line.xent.max(error);
    }

    fn see_torch(&mut self, what: &'static str, error: f64, case: &Case) {
        let torch = &mut self.0.entry(what).or_default().torch;
        if torch.as_ref().is_none_or(|(worst, _)| error > *worst) {
            *torch = Some((error, case.name.clone()));
        }
    }

    /// `f32` results: at most `bound` ULP off, after the error of the reference.
    fn check(&mut self, what: &'static str, case: &Case, got: &[f32], exact: &[f64], bound: f64) {
        assert_eq!(got.len(), exact.len(), "{what} of {}", case.name);
        for (i, (&got, &exact)) in got.iter().zip(exact).enumerate() {
            let error = error_beyond_floor(got, exact);
            assert!(
                error <= bound,
                "{what} {i} of {}: {got:e} instead of {exact:e}, {error} ULP",
                case.name
            );
            self.see(what, error);
        }
    }

    /// `f64` results, in units of `f32` as well; `allowed` is an absolute error.
    fn check_f64(&mut self, what: &'static str, case: &Case, got: f64, exact: f64, allowed: f64) {
        if !exact.is_finite() {
            assert_eq!(got.is_nan(), exact.is_nan(), "{what} of {}: {got}", case.name);
            assert!(got.is_nan() || got == exact, "{what} of {}: {got}", case.name);
            return self.see(what, 0.0);
        }
        let error = (got - exact).abs();
        let allowed = allowed + FLOOR * exact.abs().max(1.0);
        assert!(error <= allowed, "{what} of {}: {got:e} instead of {exact:e}", case.name);
        self.see(what, (error - FLOOR * exact.abs().max(1.0)).max(0.0) / ulp(exact));
    }

    /// PyTorch's own `f32` results.
    fn torch(&mut self, what: &'static str, case: &Case, file: &Tensors, name: &str) {
        let (got, exact) = (file.f32s(case, name), file.f64s(case, &format!("{name}_f64")));
        for (&got, &exact) in got.iter().zip(&exact) {
            self.see_torch(what, error_beyond_floor(got, exact), case);
        }
    }

    fn print(&self, backend: Backend) {
        println!("{backend}, largest error in f32 ULP:");
        for (what, Line { values, xent, torch }) in &self.0 {
            let torch = torch.as_ref().map_or(String::new(), |(error, case)| {
                format!("   PyTorch's f32: {error:.3} ({case})")
            });
            println!("  {what:<18} {values:>7} values   xent {xent:.3}{torch}");
        }
    }
}

/// [`ulp_error`], less what the reference itself may be off by.
fn error_beyond_floor(got: f32, exact: f64) -> f64 {
    let error = ulp_error(got, exact);
    if error.is_finite() && exact.is_finite() {
        (error - FLOOR * exact.abs().max(1.0) / ulp(exact)).max(0.0)
    } else {
        error
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The rows, `stride` apart, with NaN in between.
fn strided(logits: &[f32], rows: usize, classes: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows * stride];
    for i in 0..rows {
        out[i * stride..][..classes].copy_from_slice(&logits[i * classes..][..classes]);
    }
    out
}

/// Why a case is not run yet; `None` for those that are.
fn left_for_later(case: &Case) -> Option<String> {
    let options = &case.options;
    match &case.op[..] {
        "cross_entropy" | "log_softmax" | "softmax" | "logsumexp" => {}
        op => return Some(format!("op {op}")),
    }
    if case.dtype != "f32" {
        return Some(format!("dtype {}", case.dtype));
    }
    if case.target == "probs" {
        return Some("probability targets".to_owned());
    }
    match (options.weight, options.label_smoothing != 0.0) {
        (true, true) => Some("class weights and label smoothing".to_owned()),
        (true, false) => Some("class weights".to_owned()),
        (false, true) => Some("label smoothing".to_owned()),
        (false, false) => None,
    }
}

/// Statistics of the rows of a case, as the checks want them.
fn cross_entropy_case(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    let (rows, classes) = (case.rows, case.classes);
    let logits =
        if case.regenerate.is_some() { Notebook::new().logits } else { file.f32s(case, "logits") };
    let targets = file.i64s(case, "target");
    let ignored = |i: usize| targets[i] == case.options.ignore_index;
    let ce = CrossEntropy::new()
        .backend(backend)
        .ignore_index(case.options.ignore_index)
        .reduction(match &case.options.reduction[..] {
            // PyTorch's `none` has no scalar: `forward_into` below is its counterpart.
            "none" | "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            other => panic!("reduction {other}"),
        });

    let view = Logits::new(&logits, rows, classes).unwrap();
    let mut losses = vec![-1.0; rows];
    ce.forward_into(view, &targets, &mut losses).unwrap();
    let exact = file.f64s(case, "row_loss_f64");
    worst.check("row loss", case, &losses, &exact, LOSS_BOUND);

    let (mut same, mut logprobs) = (vec![-1.0; rows], vec![-1.0; rows]);
    let (mut lse, mut argmax) = (vec![-1.0; rows], vec![-2; rows]);
    let wanted = RowOutputs::new()
        .losses(&mut same)
        .logprobs(&mut logprobs)
        .logsumexp(&mut lse)
        .argmax(&mut argmax);
    let evaluation = ce.evaluate(view, &targets, wanted).unwrap();
    assert_eq!(bits(&same), bits(&losses), "{}", case.name);

    // For ignored rows PyTorch computes these statistics; here they are never read.
    let (exact_lse, exact_logprobs) =
        (file.f64s(case, "lse_f64"), file.f64s(case, "target_logprob_f64"));
    let exact_argmax = file.i64s(case, "argmax");
    for i in 0..rows {
        if ignored(i) {
            let got = (losses[i], logprobs[i], lse[i], argmax[i]);
            assert_eq!(got, (0.0, 0.0, 0.0, -1), "ignored row {i} of {}", case.name);
            continue;
        }
        assert_eq!(argmax[i], exact_argmax[i], "argmax {i} of {}", case.name);
        let (logprob, exact) = (&logprobs[i..=i], &exact_logprobs[i..=i]);
        worst.check("target logprob", case, logprob, exact, LOSS_BOUND);
        check_logsumexp(worst, "row logsumexp", case, lse[i], exact_lse[i]);
    }
    let kept = (0..rows).filter(|&i| !ignored(i));
    let correct = kept.clone().filter(|&i| exact_argmax[i] == targets[i]).count();
    assert_eq!(evaluation.count(), kept.clone().count() as u64, "{}", case.name);
    assert_eq!(evaluation.ignored(), (0..rows).filter(|&i| ignored(i)).count() as u64);
    assert_eq!(evaluation.correct(), Some(correct as u64), "{}", case.name);

    // The sum cannot be off by more than all of its terms.
    let allowed: f64 = kept.map(|i| UNROUNDED_LOSS_BOUND * ulp(exact[i])).sum();
    let loss = ce.forward(view, &targets).unwrap();
    assert_eq!(loss.to_bits(), evaluation.loss().to_bits(), "{}", case.name);
    let reduced = file.f64s(case, "loss_f64");
    match &case.options.reduction[..] {
        "none" => {
            worst.check("row loss", case, &losses, &reduced, LOSS_BOUND);
            worst.torch("row loss", case, file, "loss");
        }
        "sum" => {
            worst.check_f64("sum", case, loss, reduced[0], allowed);
            worst.torch("sum", case, file, "loss");
        }
        _ => {
            let allowed = allowed / evaluation.count() as f64;
            worst.check_f64("mean", case, loss, reduced[0], allowed);
            worst.torch("mean", case, file, "loss");
        }
    }

    let padded = strided(&logits, rows, classes, classes + 3);
    let view = Logits::with_stride(&padded, rows, classes, classes + 3).unwrap();
    ce.forward_into(view, &targets, &mut same).unwrap();
    assert_eq!(bits(&same), bits(&losses), "{} with a stride", case.name);
}

/// The error of a logsumexp. Near 0 its terms cancel: the unit is that of 1, at least.
fn logsumexp_error(got: f32, exact: f64) -> f64 {
    let error = error_beyond_floor(got, exact);
    if error.is_finite() { error * (ulp(exact) / ulp(1.0)).min(1.0) } else { error }
}

fn check_logsumexp(worst: &mut Worst, what: &'static str, case: &Case, got: f32, exact: f64) {
    let error = logsumexp_error(got, exact);
    let name = &case.name;
    assert!(error <= LOGSUMEXP_BOUND, "{what} of {name}: {got:e} instead of {exact:e}");
    worst.see(what, error);
}

/// The functions with a matrix as result: PyTorch's name, bound, out of place, in place.
type Transform = (
    &'static str,
    f64,
    fn(&Softmax, Logits<'_>, &mut [f32]) -> Result<(), xent::Error>,
    fn(&Softmax, LogitsMut<'_>) -> Result<(), xent::Error>,
);
const TRANSFORMS: [Transform; 2] = [
    ("softmax", SOFTMAX_BOUND, Softmax::softmax, Softmax::softmax_in_place),
    ("log_softmax", LOG_SOFTMAX_BOUND, Softmax::log_softmax, Softmax::log_softmax_in_place),
];

fn transform_case(
    backend: Backend,
    (what, bound, out_of_place, in_place): Transform,
    case: &Case,
    file: &Tensors,
    worst: &mut Worst,
) {
    let (rows, classes) = (case.rows, case.classes);
    let logits = file.f32s(case, "logits");
    let exact = file.f64s(case, "out_f64");
    let softmax = Softmax::new().backend(backend);

    let mut out = vec![-1.0; rows * classes];
    out_of_place(&softmax, Logits::new(&logits, rows, classes).unwrap(), &mut out).unwrap();
    for (i, (&got, &exact)) in out.iter().zip(&exact).enumerate() {
        // Documented: below the smallest normal number it may be 0.
        if what == "softmax" && exact < f64::from(f32::MIN_POSITIVE) && got == 0.0 {
            worst.see(what, 0.0);
        } else {
            let element = format!("element {i}: {got:e} instead of {exact:e}");
            let error = error_beyond_floor(got, exact);
            assert!(error <= bound, "{what}, {}, {element}", case.name);
            worst.see(what, error);
        }
    }
    worst.torch(what, case, file, "out");

    let mut same = logits.clone();
    in_place(&softmax, LogitsMut::new(&mut same, rows, classes).unwrap()).unwrap();
    assert_eq!(bits(&same), bits(&out), "{} in place", case.name);

    let stride = classes + 3;
    let mut padded = strided(&logits, rows, classes, stride);
    let view = Logits::with_stride(&padded, rows, classes, stride).unwrap();
    out_of_place(&softmax, view, &mut same).unwrap();
    assert_eq!(bits(&same), bits(&out), "{} with a stride", case.name);
    let view = LogitsMut::with_stride(&mut padded, rows, classes, stride).unwrap();
    in_place(&softmax, view).unwrap();
    let expected = strided(&out, rows, classes, stride);
    assert_eq!(bits(&padded), bits(&expected), "{} in place with a stride", case.name);
}

fn logsumexp_case(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    let (rows, classes) = (case.rows, case.classes);
    let logits = file.f32s(case, "logits");
    let softmax = Softmax::new().backend(backend);
    let mut out = vec![-1.0; rows];
    softmax.logsumexp(Logits::new(&logits, rows, classes).unwrap(), &mut out).unwrap();
    let (torch, exact) = (file.f32s(case, "out"), file.f64s(case, "out_f64"));
    for i in 0..rows {
        check_logsumexp(worst, "logsumexp", case, out[i], exact[i]);
        worst.see_torch("logsumexp", logsumexp_error(torch[i], exact[i]), case);
    }

    let padded = strided(&logits, rows, classes, classes + 3);
    let view = Logits::with_stride(&padded, rows, classes, classes + 3).unwrap();
    let mut same = vec![-1.0; rows];
    softmax.logsumexp(view, &mut same).unwrap();
    assert_eq!(bits(&same), bits(&out), "{} with a stride", case.name);
}

fn run_case(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    match &case.op[..] {
        "cross_entropy" => cross_entropy_case(backend, case, file, worst),
        "softmax" => transform_case(backend, TRANSFORMS[0], case, file, worst),
        "log_softmax" => transform_case(backend, TRANSFORMS[1], case, file, worst),
        "logsumexp" => logsumexp_case(backend, case, file, worst),
        op => panic!("op {op}"),
    }
}

#[test]
fn every_case_in_scope_on_every_backend() {
    let index = Index::load();
    let mut later: BTreeMap<String, usize> = BTreeMap::new();
    let mut ran: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in &index.cases {
        match left_for_later(case) {
            Some(reason) => *later.entry(reason).or_default() += 1,
            None => ran.entry(&case.op).or_default().push(case),
        }
    }

    let mut files: BTreeMap<&str, Tensors> = BTreeMap::new();
    for case in ran.values().flatten() {
        files.entry(&case.file).or_insert_with(|| index.open(&case.file));
    }
    assert_eq!(files.len(), 11);
    for &backend in Backend::ALL {
        if !backend.is_available() {
            println!("{backend}: not on this machine, skipped");
            continue;
        }
        let mut worst = Worst::default();
        for case in ran.values().flatten() {
            run_case(backend, case, &files[&case.file[..]], &mut worst);
        }
        worst.print(backend);
    }

    let count = |op: &str| ran[op].len();
    let backends = Backend::available();
    println!("{} cases ran on each of {backends:?}:", ran.values().flatten().count());
    ran.iter().for_each(|(op, cases)| println!("  {:>4} {op}", cases.len()));
    println!("{} are left for later:", later.values().sum::<usize>());
    later.iter().for_each(|(reason, n)| println!("  {n:>4} {reason}"));
    println!("The gradients of all of them are left for later, too.");
    assert_eq!(count("cross_entropy"), 198);
    assert_eq!((count("softmax"), count("log_softmax"), count("logsumexp")), (10, 10, 14));
    let expected = [
        ("class weights", 39),
        ("class weights and label smoothing", 60),
        ("dtype bf16", 220),
        ("dtype f16", 181),
        ("dtype f64", 185),
        ("label smoothing", 34),
        ("op kl_div", 32),
        ("op kl_div_from_logits", 40),
        ("op linear_cross_entropy", 204),
        ("op nll_loss", 124),
        ("probability targets", 69),
    ];
    assert_eq!(later, expected.map(|(reason, n)| (reason.to_owned(), n)).into());
    let left: usize = later.values().sum();
    assert_eq!((ran.values().flatten().count(), left, index.case_count), (232, 1188, 1420));
}

#[test]
fn the_notebook_case_has_the_same_summary() {
    let index = Index::load();
    let case = index.cases.iter().find(|case| case.name == "notebook").unwrap();
    let file = index.open(&case.file);
    let (book, targets) = (Notebook::new(), file.i64s(case, "target"));
    let logits = Logits::new(&book.logits, case.rows, case.classes).unwrap();
    for &backend in Backend::available() {
        let mut worst = Worst::default();
        let ce = CrossEntropy::new().backend(backend);
        let evaluation = ce.evaluate(logits, &targets, RowOutputs::new()).unwrap();
        let exact = file.f64s(case, "perplexity_f64")[0];
        // The relative error of e^loss is the absolute one of the loss.
        let allowed = exact * UNROUNDED_LOSS_BOUND * ulp(evaluation.loss());
        worst.check_f64("perplexity", case, evaluation.perplexity(), exact, allowed);
        worst.torch("perplexity", case, &file, "perplexity");

        let mut p = vec![0.0; book.logits.len()];
        Softmax::new().backend(backend).softmax(logits, &mut p).unwrap();
        let chosen: Vec<f32> =
            targets.iter().zip(p.chunks(case.classes)).map(|(&t, p)| p[t as usize]).collect();
        let exact = file.f64s(case, "target_prob_f64");
        worst.check("target probability", case, &chosen, &exact, SOFTMAX_BOUND);
        worst.torch("target probability", case, &file, "target_prob");
        let mean = chosen.iter().map(|&p| f64::from(p)).sum::<f64>() / chosen.len() as f64;
        let exact = file.f64s(case, "mean_prob_f64")[0];
        worst.check_f64("mean probability", case, mean, exact, SOFTMAX_BOUND * ulp(exact));
        worst.torch("mean probability", case, &file, "mean_prob");
        worst.print(backend);
    }
}

#[test]
fn real_logits_on_every_backend() {
    let real = real::Real::load().unwrap();
    assert_eq!((real.rows, real.vocab), (10, 49_152));
    let logits = Logits::new(&real.logits, real.rows, real.vocab).unwrap();
    let worst = |losses: &[f32]| {
        losses.iter().zip(&real.losses).map(|(&x, &v)| error_beyond_floor(x, v)).fold(0.0, f64::max)
    };
    for &backend in Backend::available() {
        let (mut losses, mut argmax) = (vec![0.0; real.rows], vec![0; real.rows]);
        let wanted = RowOutputs::new().losses(&mut losses).argmax(&mut argmax);
        let ce = CrossEntropy::new().backend(backend);
        let evaluation = ce.evaluate(logits, &real.targets, wanted).unwrap();
        println!("{backend}: row losses within {:.3} ULP", worst(&losses));
        assert!(worst(&losses) <= LOSS_BOUND);
        assert_eq!(argmax, real.argmax);
        assert_eq!(evaluation.correct(), Some(3));
        let allowed: f64 = real.losses.iter().map(|&v| UNROUNDED_LOSS_BOUND * ulp(v)).sum();
        let error = (evaluation.mean() - real.mean_loss).abs();
        assert!(error <= allowed / real.rows as f64 + FLOOR, "{error:e}");
    }
    let two_pass: Vec<f32> = (0..real.rows)
        .map(|i| reference::two_pass_f32(logits.row(i), real.targets[i] as usize))
        .collect();
    println!("two passes in f32: {:.0} ULP", worst(&two_pass));
}
