//! The divergence of two sets of logits: cross-entropy with the probabilities of the teacher as targets, less
//! the teacher's entropy. The gradient is that of the cross-entropy.
//!
//! Whether PyTorch was given the probabilities or their logarithms makes no difference to us.

use super::number::{Number, bits, error};
use super::terms::{Terms, probability_slack};
use super::worst::{Bound, Worst};
use crate::golden_data::{Case, Tensors};
use xent::{
    Backend, CrossEntropy, Gradient, LogSumExp, Logits, LogitsMut, Reduction, RowOutputs, Targets,
};

/// In ULP of the cross-entropy; 1.27 seen, of which the rounding of the targets is up to 1.
const KL_BOUND: f64 = 1.5;

/// In ULP of the larger of the two terms; 3.35 seen, of which the rounding of a target is up to half a one, and of
/// their sum as much.
const KL_GRADIENT_BOUND: f64 = 3.5;

pub(crate) fn kl_case<T: Number>(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    let (rows, classes) = (case.rows, case.classes);
    let logits = T::load(file, case, "logits");
    let teacher = T::load(file, case, "teacher_logits");
    let exact = file.f64s(case, "loss_f64");
    let upstream = (case.options.reduction == "none").then(|| T::load(file, case, "upstream"));
    let divisor = match &case.options.reduction[..] {
        "none" | "sum" => 1.0,
        "batchmean" => rows as f64,
        "mean" => (rows * classes) as f64,
        other => panic!("reduction {other}"),
    };

    // Of the divergence of a class the loss is t ln t - t ln p. `none` has one upstream gradient for each:
    // their derivative is that of the sum with u t for t, which need not sum to 1.
    let mut targets = Vec::new();
    let (mut entropies, mut target_slacks) = (Vec::new(), Vec::new());
    for i in 0..rows {
        let row = i * classes..(i + 1) * classes;
        let log_t = Terms::log_softmax(&teacher[row.clone()]);
        let u = |j: usize| upstream.as_ref().map_or(1.0, |u| u[row.start + j].into());
        let v = |j: usize| u(j) * log_t[j].exp();
        targets.extend((0..classes).map(v));
        target_slacks.extend((0..classes).map(|j| u(j).abs() * probability_slack(log_t[j].exp())));
        entropies.push((0..classes).map(|j| -v(j) * log_t[j]).sum::<f64>());
    }
    let terms: Vec<Terms> = (0..rows)
        .map(|i| {
            let row = i * classes..(i + 1) * classes;
            Terms::new(&logits[row.clone()], targets[row].to_vec(), false)
        })
        .collect();
    let divergences: Vec<f64> = match &upstream {
        Some(upstream) => {
            let weighted = exact.iter().zip(upstream).map(|(loss, &u)| loss * u.into());
            weighted.collect::<Vec<f64>>().chunks(classes).map(|row| row.iter().sum()).collect()
        }
        None => Vec::new(),
    };
    let rounded: Vec<T> = targets.iter().map(|&t| T::round(t)).collect();

    let ce = CrossEntropy::new().backend(backend).reduction(Reduction::MeanOver(divisor));
    let view = Logits::new(&logits, rows, classes).unwrap();
    let targets = Targets::probs(T::floats(&rounded));
    let (mut losses, mut g) = (vec![T::default(); rows], vec![T::default(); rows * classes]);
    let mut stats = vec![LogSumExp::default(); rows];
    let wanted = RowOutputs::new().losses(&mut losses).saved(&mut stats);
    let gradient = Gradient::new(LogitsMut::new(&mut g, rows, classes).unwrap());
    let loss = ce.forward_backward(view, targets, gradient, wanted).unwrap().loss();

    let bound = Bound("kl, row", KL_BOUND);
    // The entropy is exact: the error is that of the cross-entropy, and in its units.
    let mut allowed = 0.0;
    for (i, terms) in terms.iter().enumerate() {
        let (unit, slack) = terms.loss_units::<T>(terms.loss());
        allowed += bound.of::<T>() * unit + slack;
        if let Some(&divergence) = divergences.get(i) {
            let got = losses[i].into() - entropies[i];
            let error = ((got - divergence).abs() - slack).max(0.0) / unit;
            assert!(
                error <= bound.of::<T>(),
                "{} row {i}: {got:e} instead of {divergence:e}",
                case.name
            );
            worst.see::<T>(bound.0, error, case);
        }
    }
    if upstream.is_none() {
        let got = loss - entropies.iter().sum::<f64>() / divisor;
        worst.check_f64::<T>("kl", case, got, exact[0], allowed / divisor);
        worst.torch::<T>("kl", case, file, "loss");
    }

    worst.has_gradient::<T>(case);
    let (exact, torch) = (file.f64s(case, "grad_f64"), T::load(file, case, "grad"));
    for (i, (&got, &exact)) in g.iter().zip(&exact).enumerate() {
        let mut units = terms[i / classes].gradient_units::<T>(i % classes, exact, 1.0 / divisor);
        // So are the targets, here as in PyTorch, from the teacher's logarithms.
        units.1 += target_slacks[i] / divisor;
        worst.check_in(Bound("kl, gradient", KL_GRADIENT_BOUND), case, i, (got, exact), units);
        worst.see_torch::<T>("kl, gradient", error(torch[i], exact, units.0, units.1), case);
    }

    let mut same = logits.clone();
    let to = LogitsMut::new(&mut same, rows, classes).unwrap();
    ce.forward_backward_in_place(to, targets, 1.0, RowOutputs::new()).unwrap();
    assert_eq!(bits(&same), bits(&g), "{} in place", case.name);
}
