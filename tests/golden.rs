//! The cases that PyTorch computed, on every backend: `tests/golden/README.md`.
//!
//! References are PyTorch's `f64` results. They are not relatively exact for numbers much smaller
//! than 1 (a loss of 1e-30 is 0 there), hence one absolute term, [`FLOOR`]. Everything else is in ULP
//! of the type of the logits. The data do not change and the kernels are deterministic, so bounds are the
//! largest errors seen on any backend, rounded up to the next quarter; what is documented for all inputs is
//! wider. Results for `f64` logits have no error beyond what their references may be off by.
//!
//! `golden/loss.rs` has losses and gradients, `golden/kl.rs` divergences, `golden/transforms.rs` softmax and its
//! relatives; `golden/terms.rs` says in which unit an error is measured.

mod kl;
mod loss;
mod number;
mod terms;
mod transforms;
mod worst;

use crate::examples::notebook::Notebook;
use crate::examples::real::Real;
use crate::golden_data::{Case, Index, Tensors};
use kl::kl_case;
use loss::{LOSS_BOUND, cross_entropy_case};
use number::{FLOOR, Number, error_beyond_floor, ulp};
use std::collections::BTreeMap;
use transforms::{SOFTMAX_BOUND, Transform, logsumexp_case};
use worst::{Bound, Worst};
use xent::{Backend, CrossEntropy, Logits, RowOutputs, Softmax, reference};

/// Why cases are left: these have a test of their own, which says what it runs.
const HALF: &str = "half formats: tests/golden_half.rs";
/// `linear_cross_entropy` has hidden states and a matrix, whose product are the logits.
const HIDDEN: &str = "of hidden states: the crate takes logits";
/// `nll_loss` and `kl_div`. Log-softmax would normalise them, which changes the loss if they are not, and the
/// gradient, which is by the logits, even if they are.
const LOG_PROBABILITIES: &str = "of log-probabilities: the crate takes logits";

/// Where we are not as PyTorch, on purpose, and how often in the data:
/// - the gradient of an ignored row that holds NaN or +inf, or nothing but -inf, is 0 here and NaN there;
/// - the loss of a row where a target probability of 0 (or one of a class of weight 0) meets a masked class is
///   what the other classes make of it here and NaN there, and so is the loss of all rows.
///
/// Everywhere else NaN and infinities agree, also where 0 is multiplied by infinity for a target that is an index: a masked
/// target of weight 0, or one that smoothing takes everything from, has loss NaN.
const DEVIATIONS: [((&str, &str), usize); 6] = [
    (("f32", "gradient of an ignored row"), 9),
    (("f32", "loss"), 1),
    (("f32", "row loss"), 4),
    (("f64", "gradient of an ignored row"), 9),
    (("f64", "loss"), 1),
    (("f64", "row loss"), 4),
];

/// Why a case is not run; `None` for those that are.
fn left(case: &Case) -> Option<&'static str> {
    match (&case.op[..], &case.dtype[..]) {
        (_, "bf16" | "f16") => Some(HALF),
        ("nll_loss" | "kl_div", _) => Some(LOG_PROBABILITIES),
        ("linear_cross_entropy", _) => Some(HIDDEN),
        ("cross_entropy" | "kl_div_from_logits", "f32" | "f64") => None,
        ("softmax" | "log_softmax" | "logsumexp", "f32" | "f64") => None,
        (op, dtype) => panic!("{op} of {dtype}"),
    }
}

fn run_case<T: Number>(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    match &case.op[..] {
        "cross_entropy" => cross_entropy_case::<T>(backend, case, file, worst),
        "kl_div_from_logits" => kl_case::<T>(backend, case, file, worst),
        "softmax" => Transform::<T>::SOFTMAX.case(backend, case, file, worst),
        "log_softmax" => Transform::<T>::LOG_SOFTMAX.case(backend, case, file, worst),
        "logsumexp" => logsumexp_case::<T>(backend, case, file, worst),
        op => panic!("op {op}"),
    }
}

#[test]
fn every_case_in_scope_on_every_backend() {
    let index = Index::load();
    let mut later: BTreeMap<&str, BTreeMap<(&str, &str), usize>> = BTreeMap::new();
    let mut ran: BTreeMap<(&str, &str), Vec<&Case>> = BTreeMap::new();
    for case in &index.cases {
        let of = (&case.op[..], &case.dtype[..]);
        match left(case) {
            Some(why) => *later.entry(why).or_default().entry(of).or_default() += 1,
            None => ran.entry(of).or_default().push(case),
        }
    }

    let mut files: BTreeMap<&str, Tensors> = BTreeMap::new();
    for case in ran.values().flatten() {
        files.entry(&case.file).or_insert_with(|| index.open(&case.file));
    }
    assert_eq!(files.len(), 23);
    for &backend in Backend::ALL {
        if !backend.is_available() {
            println!("{backend}: not on this machine, skipped");
            continue;
        }
        let mut worst = Worst::default();
        for case in ran.values().flatten() {
            let file = &files[&case.file[..]];
            match &case.dtype[..] {
                "f32" => run_case::<f32>(backend, case, file, &mut worst),
                "f64" => run_case::<f64>(backend, case, file, &mut worst),
                dtype => panic!("dtype {dtype}"),
            }
        }
        worst.print(backend);
        assert_eq!(worst.deviations, BTreeMap::from(DEVIATIONS));
        // Of the functions that are no loss the crate has no gradient; nor does the notebook have one.
        let gradients = worst.gradients.iter().map(|((dtype, op), &n)| (&op[..], *dtype, n));
        let expected = [
            ("cross_entropy", "f32", 399),
            ("kl_div_from_logits", "f32", 16),
            ("cross_entropy", "f64", 151),
            ("kl_div_from_logits", "f64", 8),
        ];
        assert_eq!(gradients.collect::<Vec<_>>(), expected);
    }

    let backends = Backend::available();
    println!("{} cases ran on each of {backends:?}:", ran.values().flatten().count());
    ran.iter().for_each(|((op, dtype), cases)| println!("  {:>4} {op} {dtype}", cases.len()));
    let ran: Vec<_> = ran.iter().map(|(&(op, dtype), cases)| (op, dtype, cases.len())).collect();
    let expected = [
        ("cross_entropy", "f32", 400),
        ("cross_entropy", "f64", 151),
        ("kl_div_from_logits", "f32", 16),
        ("kl_div_from_logits", "f64", 8),
        ("log_softmax", "f32", 10),
        ("log_softmax", "f64", 10),
        ("logsumexp", "f32", 14),
        ("logsumexp", "f64", 14),
        ("softmax", "f32", 10),
        ("softmax", "f64", 10),
    ];
    assert_eq!(ran, expected);

    for (why, of) in &later {
        println!("{} are left, {why}:", of.values().sum::<usize>());
        of.iter().for_each(|((op, dtype), n)| println!("  {n:>4} {op} {dtype}"));
    }
    let later: Vec<_> = later.iter().map(|(&why, of)| (why, of.values().sum())).collect();
    assert_eq!(later, [(HALF, 444), (HIDDEN, 177), (LOG_PROBABILITIES, 156)]);
    let left: usize = later.iter().map(|&(_, n)| n).sum();
    assert_eq!((expected.iter().map(|&(.., n)| n).sum(), left, index.case_count), (643, 777, 1420));
}

/// What is left of [`LOSS_BOUND`] for losses that are summed before they are rounded.
const UNROUNDED: f64 = LOSS_BOUND - 0.5;

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
        let allowed = exact * UNROUNDED * ulp::<f32>(evaluation.loss());
        worst.check_f64::<f32>("perplexity", case, evaluation.perplexity(), exact, allowed);
        worst.torch::<f32>("perplexity", case, &file, "perplexity");

        let mut p = vec![0.0; book.logits.len()];
        Softmax::new().backend(backend).softmax(logits, &mut p).unwrap();
        let chosen: Vec<f32> =
            targets.iter().zip(p.chunks(case.classes)).map(|(&t, p)| p[t as usize]).collect();
        let exact = file.f64s(case, "target_prob_f64");
        worst.check(Bound("target probability", SOFTMAX_BOUND), case, &chosen, &exact);
        worst.torch::<f32>("target probability", case, &file, "target_prob");
        let mean = chosen.iter().map(|&p| f64::from(p)).sum::<f64>() / chosen.len() as f64;
        let exact = file.f64s(case, "mean_prob_f64")[0];
        worst.check_f64::<f32>(
            "mean probability",
            case,
            mean,
            exact,
            SOFTMAX_BOUND * ulp::<f32>(exact),
        );
        worst.torch::<f32>("mean probability", case, &file, "mean_prob");
        worst.print(backend);
    }
}

#[test]
fn real_logits_on_every_backend() {
    let real = Real::load().unwrap();
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
        let allowed: f64 = real.losses.iter().map(|&v| UNROUNDED * ulp::<f32>(v)).sum();
        let error = (evaluation.mean() - real.mean_loss).abs();
        assert!(error <= allowed / real.rows as f64 + FLOOR, "{error:e}");
    }
    let two_pass: Vec<f32> = (0..real.rows)
        .map(|i| reference::two_pass_f32(logits.row(i), real.targets[i] as usize))
        .collect();
    println!("two passes in f32: {:.0} ULP", worst(&two_pass));
}
