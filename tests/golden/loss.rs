//! Cross-entropy: losses and gradients, with every option.

use super::number::{Number, bits, error, strided};
use super::terms::Terms;
use super::transforms::check_logsumexp;
use super::worst::{Bound, Worst};
use crate::examples::notebook::Notebook;
use crate::golden_data::{Case, Tensors};
use xent::{
    Backend, CrossEntropy, Evaluation, Gradient, LogSumExp, Logits, LogitsMut, Reduction,
    RowOutputs, Targets, Upstream,
};

/// Row losses and log-probabilities; 0.62 seen, 0.5 of which is the rounding to the type.
pub(crate) const LOSS_BOUND: f64 = 0.75;

/// Row losses with smoothing: 1.09 seen, of the sum of all logits.
const SMOOTHED_LOSS_BOUND: f64 = 1.25;

/// Row losses with probability targets: 1.37 seen. Each term is of `f32` numbers that were rounded.
const PROBS_LOSS_BOUND: f64 = 1.5;

/// Gradients of one-hot targets; 1.82 seen.
const GRADIENT_BOUND: f64 = 2.0;

/// Gradients with smoothing, in ULP of the larger of the two terms; 2.03 seen.
const SMOOTHED_GRADIENT_BOUND: f64 = 2.25;

/// Gradients with probability targets, in ULP of the larger of the two terms; 2.18 seen.
const PROBS_GRADIENT_BOUND: f64 = 2.25;

/// Gradients from saved statistics where the logsumexp has more digits than these hold; 3.78 seen, 6 documented.
const HUGE_GRADIENT_BOUND: f64 = 4.0;

/// What a loss is made of: how it is computed depends on it, and so does its error.
#[derive(Clone, Copy)]
enum Kind {
    /// The log-probability of one class.
    Index,
    /// That, and the sum of all logits.
    Smoothed,
    /// A sum over all classes.
    Probs,
}

impl Kind {
    fn of(case: &Case) -> Self {
        match &case.target[..] {
            "index" if case.options.label_smoothing == 0.0 => Kind::Index,
            "index" => Kind::Smoothed,
            _ => Kind::Probs,
        }
    }
}

/// The inputs of a case.
struct Inputs<T> {
    logits: Vec<T>,
    ids: Vec<i64>,
    probs: Vec<T>,
    weight: Option<Vec<T>>,
    upstream: Option<Vec<T>>,
}

impl<T: Number> Inputs<T> {
    fn load(case: &Case, file: &Tensors) -> Self {
        let is_index = case.target == "index";
        let logits = match case.regenerate {
            Some(_) => Notebook::new().logits.into_iter().map(|x| T::round(x.into())).collect(),
            None => T::load(file, case, "logits"),
        };
        let load = |name, wanted: bool| wanted.then(|| T::load(file, case, name));
        Inputs {
            logits,
            ids: if is_index { file.i64s(case, "target") } else { Vec::new() },
            probs: load("target_probs", !is_index).unwrap_or_default(),
            weight: load("weight", case.options.weight),
            upstream: load(
                "upstream",
                case.options.reduction == "none" && case.regenerate.is_none(),
            ),
        }
    }

    fn targets(&self, case: &Case) -> Targets<'_> {
        match &case.target[..] {
            "index" => Targets::from(&self.ids),
            "probs" => Targets::probs(T::floats(&self.probs)),
            other => panic!("target {other}"),
        }
    }

    fn ignored(&self, case: &Case, i: usize) -> bool {
        self.ids.get(i).is_some_and(|&id| id == case.options.ignore_index)
    }

    fn upstream(&self) -> Upstream<'_> {
        self.upstream.as_ref().map_or(1.0.into(), |each| Upstream::rows(T::floats(each)))
    }

    fn weight(&self, class: usize) -> f64 {
        self.weight.as_ref().map_or(1.0, |weight| weight[class].into())
    }

    fn terms(&self, case: &Case, i: usize) -> Terms {
        let (classes, e) = (case.classes, case.options.label_smoothing);
        let q = |j: usize| match self.ids.get(i) {
            Some(&id) => f64::from(id == j as i64),
            None => self.probs[i * classes + j].into(),
        };
        let v = (0..classes).map(|j| self.weight(j) * ((1.0 - e) * q(j) + e / classes as f64));
        let one_hot = e == 0.0 && self.probs.is_empty();
        Terms::new(&self.logits[i * classes..][..classes], v.collect(), one_hot)
    }

    /// What a reduction divides by.
    fn denominator(&self, case: &Case) -> f64 {
        let kept = (0..case.rows).filter(|&i| !self.ignored(case, i));
        match (&case.options.reduction[..], &case.target[..]) {
            ("mean", "index") => kept.map(|i| self.weight(self.ids[i] as usize)).sum(),
            ("mean", _) => case.rows as f64,
            _ => 1.0,
        }
    }

    fn options(&self, backend: Backend, case: &Case) -> CrossEntropy<'_> {
        let ce = CrossEntropy::new()
            .backend(backend)
            .ignore_index(case.options.ignore_index)
            .label_smoothing(case.options.label_smoothing)
            .reduction(match &case.options.reduction[..] {
                // PyTorch's `none` has no scalar: `forward_into` is its counterpart, and for gradients one
                // upstream gradient per row.
                "none" | "sum" => Reduction::Sum,
                "mean" => Reduction::Mean,
                other => panic!("reduction {other}"),
            });
        match &self.weight {
            Some(weight) => ce.class_weights(T::floats(weight)),
            None => ce,
        }
    }
}

/// What is expected of the losses of a case.
struct Expected {
    /// `None`: ignored.
    terms: Vec<Option<Terms>>,
    rows: Vec<f64>,
    reduced: f64,
    /// Whether PyTorch has NaN where 0 is multiplied by infinity.
    deviates: bool,
}

impl Expected {
    fn new<T: Number>(case: &Case, file: &Tensors, inputs: &Inputs<T>, worst: &mut Worst) -> Self {
        let terms: Vec<_> = (0..case.rows)
            .map(|i| (!inputs.ignored(case, i)).then(|| inputs.terms(case, i)))
            .collect();
        let mut rows = file.f64s(case, "row_loss_f64");
        let mut deviates = false;
        for (row, terms) in rows.iter_mut().zip(&terms) {
            // With index targets we are as PyTorch: a masked target of weight 0 has no loss.
            if let Some(terms) = terms
                && case.target == "probs"
                && terms.has_zero_times_infinity()
            {
                assert!(row.is_nan(), "{}", case.name);
                *row = terms.loss();
                worst.deviates::<T>("row loss");
                deviates = true;
            }
        }
        let mut reduced = file.f64s(case, "loss_f64");
        if deviates && case.options.reduction != "none" {
            assert!(reduced[0].is_nan());
            reduced = vec![rows.iter().sum::<f64>() / inputs.denominator(case)];
            worst.deviates::<T>("loss");
        }
        let reduced = reduced.first().copied().unwrap_or(f64::NAN);
        Expected { terms, rows, reduced, deviates }
    }
}

pub(crate) fn cross_entropy_case<T: Number>(
    backend: Backend,
    case: &Case,
    file: &Tensors,
    worst: &mut Worst,
) {
    let inputs = Inputs::<T>::load(case, file);
    let expected = Expected::new(case, file, &inputs, worst);
    let evaluation = losses(backend, case, file, worst, &inputs, &expected);
    // The notebook has no gradient: nothing to compare with but what other tests compare with.
    if case.regenerate.is_none() {
        worst.has_gradient::<T>(case);
        gradients(backend, case, file, worst, &inputs, &expected, &evaluation);
    }
}

fn losses<T: Number>(
    backend: Backend,
    case: &Case,
    file: &Tensors,
    worst: &mut Worst,
    inputs: &Inputs<T>,
    expected: &Expected,
) -> Evaluation {
    let (rows, classes) = (case.rows, case.classes);
    let (ce, targets) = (inputs.options(backend, case), inputs.targets(case));
    let is_index = case.target == "index";
    let bound = match Kind::of(case) {
        Kind::Index => Bound("row loss", LOSS_BOUND),
        Kind::Smoothed => Bound("row loss, smoothed", SMOOTHED_LOSS_BOUND),
        Kind::Probs => Bound("row loss, probs", PROBS_LOSS_BOUND),
    };
    let zeros = || vec![T::default(); rows];

    let view = Logits::new(&inputs.logits, rows, classes).unwrap();
    let mut losses = zeros();
    ce.forward_into(view, targets, &mut losses).unwrap();
    let (mut same, mut logprobs, mut lse, mut argmax) = (zeros(), zeros(), zeros(), vec![-2; rows]);
    let wanted = RowOutputs::new()
        .losses(&mut same)
        .logprobs(&mut logprobs)
        .logsumexp(&mut lse)
        .argmax(&mut argmax);
    let evaluation = ce.evaluate(view, targets, wanted).unwrap();
    assert_eq!(bits(&same), bits(&losses), "{}", case.name);

    let exact_lse = file.f64s(case, "lse_f64");
    let exact_logprobs = is_index.then(|| file.f64s(case, "target_logprob_f64"));
    let exact_argmax = file.i64s(case, "argmax");
    let torch = (case.options.reduction == "none").then(|| T::load(file, case, "loss"));
    let (mut allowed, mut kept, mut correct) = (0.0, 0u64, 0u64);
    for i in 0..rows {
        let Some(terms) = &expected.terms[i] else {
            // For ignored rows PyTorch computes these statistics; here they are never read.
            let got = [losses[i], logprobs[i], lse[i]].map(|x| x.into());
            assert_eq!((got, argmax[i]), ([0.0; 3], -1), "ignored row {i} of {}", case.name);
            assert_eq!(expected.rows[i], 0.0, "{}", case.name);
            continue;
        };
        let (exact, units) = (expected.rows[i], terms.loss_units::<T>(expected.rows[i]));
        worst.check_in(bound, case, i, (losses[i], exact), units);
        if let Some(torch) = torch.as_ref().filter(|_| !expected.deviates) {
            worst.see_torch::<T>(bound.0, error(torch[i], exact, units.0, units.1), case);
        }
        // The sum cannot be off by more than all of its terms.
        allowed += bound.unrounded::<T>() * units.0 + units.1;
        kept += 1;

        assert_eq!(argmax[i], exact_argmax[i], "argmax {i} of {}", case.name);
        check_logsumexp(worst, "row logsumexp", case, lse[i], exact_lse[i]);
        let target = match &exact_logprobs {
            Some(exact) => {
                let bound = Bound("target logprob", LOSS_BOUND);
                worst.check(bound, case, &logprobs[i..=i], &exact[i..=i]);
                inputs.ids[i]
            }
            None => {
                let (logprob, loss): (f64, f64) = (logprobs[i].into(), losses[i].into());
                assert!(logprob == -loss || logprob.is_nan() && loss.is_nan(), "{}", case.name);
                let probs = &inputs.probs[i * classes..][..classes];
                let largest = probs.iter().copied().reduce(|a, b| if b > a { b } else { a });
                probs.iter().position(|&p| Some(p) == largest).unwrap() as i64
            }
        };
        let is_nan = Into::<f64>::into(logprobs[i]).is_nan();
        correct += u64::from(exact_argmax[i] == target && !is_nan);
    }
    assert_eq!((evaluation.count(), evaluation.ignored()), (kept, rows as u64 - kept));
    assert_eq!(evaluation.correct(), Some(correct), "{}", case.name);

    let loss = ce.forward(view, targets).unwrap();
    assert_eq!(loss.to_bits(), evaluation.loss().to_bits(), "{}", case.name);
    let reduction = &case.options.reduction[..];
    let what = match (reduction, Kind::of(case)) {
        ("sum", Kind::Index) => "sum",
        ("sum", Kind::Smoothed) => "sum, smoothed",
        ("sum", Kind::Probs) => "sum, probs",
        (_, Kind::Index) => "mean",
        (_, Kind::Smoothed) => "mean, smoothed",
        (_, Kind::Probs) => "mean, probs",
    };
    if reduction != "none" {
        let allowed = allowed / inputs.denominator(case).abs();
        worst.check_f64::<T>(what, case, loss, expected.reduced, allowed);
        if !expected.deviates {
            worst.torch::<T>(what, case, file, "loss");
        }
    }

    let padded = strided(&inputs.logits, rows, classes, classes + 3);
    let view = Logits::with_stride(&padded, rows, classes, classes + 3).unwrap();
    ce.forward_into(view, targets, &mut same).unwrap();
    assert_eq!(bits(&same), bits(&losses), "{} with a stride", case.name);
    evaluation
}

/// Forward and backward in one call or two, in place or not: with which error, and the same where it should be.
fn gradients<T: Number>(
    backend: Backend,
    case: &Case,
    file: &Tensors,
    worst: &mut Worst,
    inputs: &Inputs<T>,
    expected: &Expected,
    evaluation: &Evaluation,
) {
    let (rows, classes, name) = (case.rows, case.classes, &case.name);
    let (ce, targets) = (inputs.options(backend, case), inputs.targets(case));
    let upstream = inputs.upstream();
    let view = Logits::new(&inputs.logits, rows, classes).unwrap();
    // What was there before has to go.
    let nan = || vec![T::round(f64::NAN); rows * classes];
    let (mut stats, mut losses) = (vec![LogSumExp::default(); rows], vec![T::default(); rows]);
    let wanted = RowOutputs::new().saved(&mut stats).losses(&mut losses);
    let saved = ce.evaluate(view, targets, wanted).unwrap();
    assert_eq!(saved.loss().to_bits(), evaluation.loss().to_bits(), "{name}");

    let mut fused = nan();
    let (mut fused_stats, mut fused_losses) = (stats.clone(), losses.clone());
    let wanted = RowOutputs::new().saved(&mut fused_stats).losses(&mut fused_losses);
    let to = LogitsMut::new(&mut fused, rows, classes).unwrap();
    let gradient = Gradient::new(to).upstream(upstream);
    let both = ce.forward_backward(view, targets, gradient, wanted).unwrap();
    assert_eq!(both.loss().to_bits(), evaluation.loss().to_bits(), "{name}");
    assert_eq!(bits(&fused_losses), bits(&losses), "{name}");
    let stats_bits = |stats: &[LogSumExp<T>]| -> Vec<u64> {
        stats.iter().flat_map(|s| [s.hi.bits(), s.lo.bits()]).collect()
    };
    assert_eq!(stats_bits(&fused_stats), stats_bits(&stats), "{name}");
    check_gradient(case, file, worst, inputs, expected, &fused, false);

    let mut same = inputs.logits.clone();
    let to = LogitsMut::new(&mut same, rows, classes).unwrap();
    let both = ce.forward_backward_in_place(to, targets, upstream, RowOutputs::new()).unwrap();
    assert_eq!(both.loss().to_bits(), evaluation.loss().to_bits(), "{name} in place");
    assert_eq!(bits(&same), bits(&fused), "{name} in place");

    let mut two_steps = nan();
    let to = LogitsMut::new(&mut two_steps, rows, classes).unwrap();
    let gradient = Gradient::new(to).upstream(upstream);
    ce.backward(view, targets, &stats, gradient).unwrap();
    check_gradient(case, file, worst, inputs, expected, &two_steps, true);

    same.copy_from_slice(&inputs.logits);
    let to = LogitsMut::new(&mut same, rows, classes).unwrap();
    ce.backward_in_place(to, targets, &stats, upstream).unwrap();
    assert_eq!(bits(&same), bits(&two_steps), "{name} in place");

    let stride = classes + 3;
    let padded = strided(&inputs.logits, rows, classes, stride);
    let mut out = vec![T::round(f64::NAN); rows * stride];
    let view = Logits::with_stride(&padded, rows, classes, stride).unwrap();
    let to = LogitsMut::with_stride(&mut out, rows, classes, stride).unwrap();
    let gradient = Gradient::new(to).upstream(upstream);
    ce.forward_backward(view, targets, gradient, RowOutputs::new()).unwrap();
    let between = strided(&fused, rows, classes, stride);
    assert_eq!(bits(&out), bits(&between), "{name} with a stride");
}

fn check_gradient<T: Number>(
    case: &Case,
    file: &Tensors,
    worst: &mut Worst,
    inputs: &Inputs<T>,
    expected: &Expected,
    got: &[T],
    from_stats: bool,
) {
    let classes = case.classes;
    let (exact, torch) = (file.f64s(case, "grad_f64"), T::load(file, case, "grad"));
    let lse = file.f64s(case, "lse_f64");
    let denominator = inputs.denominator(case);
    let kind = Kind::of(case);
    for (i, terms) in expected.terms.iter().enumerate() {
        let row = i * classes..(i + 1) * classes;
        let Some(terms) = terms else {
            // Whatever such a row holds; PyTorch multiplies 0 by its NaN.
            assert!(bits(&got[row.clone()]).iter().all(|&bits| bits == 0), "{}", case.name);
            if exact[row.clone()].iter().all(|g| g.is_nan()) {
                if !from_stats {
                    worst.deviates::<T>("gradient of an ignored row");
                }
            } else {
                assert!(exact[row].iter().all(|&g| g == 0.0), "{}", case.name);
            }
            continue;
        };
        let huge = from_stats && lse[i].abs() > T::HUGE;
        // "2": in two steps, from saved statistics.
        let bound = match (kind, from_stats) {
            _ if huge => Bound("gradient 2, huge", HUGE_GRADIENT_BOUND),
            (Kind::Index, false) => Bound("gradient", GRADIENT_BOUND),
            (Kind::Index, true) => Bound("gradient 2", GRADIENT_BOUND),
            (Kind::Smoothed, false) => Bound("gradient, smoothed", SMOOTHED_GRADIENT_BOUND),
            (Kind::Smoothed, true) => Bound("gradient 2, smoothed", SMOOTHED_GRADIENT_BOUND),
            (Kind::Probs, false) => Bound("gradient, probs", PROBS_GRADIENT_BOUND),
            (Kind::Probs, true) => Bound("gradient 2, probs", PROBS_GRADIENT_BOUND),
        };
        let up = inputs.upstream.as_ref().map_or(1.0, |each| each[i].into());
        for (j, at) in row.enumerate() {
            let factor = up / denominator;
            let (unit, mut slack) = terms.gradient_units::<T>(j, exact[at], factor);
            if from_stats {
                slack += terms.saved_slack::<T>(j, lse[i], factor);
            } else {
                worst.see_torch::<T>(bound.0, error(torch[at], exact[at], unit, slack), case);
            }
            // Documented: next to the smallest normal number it may be 0.
            if exact[at].abs() < 4.0 * T::MIN_POSITIVE && got[at] == T::default() {
                worst.see::<T>(bound.0, 0.0, case);
            } else {
                worst.check_in(bound, case, at, (got[at], exact[at]), (unit, slack));
            }
        }
    }
}
