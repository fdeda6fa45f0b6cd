//! The cases with `bf16` and `f16` logits that PyTorch computed, on every backend: `tests/golden/README.md`.
//!
//! References are PyTorch's `f64` results of the same numbers. What is per row is in `f32`, and its bounds are
//! in ULP of that; gradients and softmax are rounded once to the type of the logits, so they are within half a
//! unit of it, and what their `f32` was off by.

use crate::golden_data::{Case, Index, Tensors};
use safetensors::Dtype;
use std::collections::BTreeMap;
use xent::reference::{self, ulp_error};
use xent::{Backend, CrossEntropy, Element, Gradient, Logits, LogitsMut, Reduction, RowOutputs};
use xent::{Softmax, Targets, Upstream, bf16, f16};

/// What the references may be off by, relative to the larger of a result and 1.
const FLOOR: f64 = 4e-16;

/// Row losses, in ULP of `f32`: of one class, with smoothing, and of probability targets. 0.62 seen of the first, or
/// 0.78 without fused multiply-add.
const LOSS_BOUNDS: [f64; 3] = [1.0, 1.25, 1.5];

const LOGSUMEXP_BOUND: f64 = 0.75;

/// Of gradients and softmax, before they are rounded: in units of 2^-23 of the result.
const BEFORE_ROUNDING: f64 = 2.25;

/// A type of logits.
trait Half: Element<Real = f32> {
    const NAME: &'static str;
    const DTYPE: Dtype;
    /// Exponents of the last place of 1 and of the smallest number.
    const EXPONENTS: (i32, i32);
    fn load(file: &Tensors, case: &Case, name: &str) -> Vec<Self>;
    fn widen(self) -> f64;
    fn round(x: f64) -> Self;
}

macro_rules! half {
    ($($type:ident $dtype:ident $exponents:expr;)*) => {$(
        impl Half for $type {
            const NAME: &'static str = stringify!($type);
            const DTYPE: Dtype = Dtype::$dtype;
            const EXPONENTS: (i32, i32) = $exponents;
            fn load(file: &Tensors, case: &Case, name: &str) -> Vec<Self> {
                file.u16s(case, name, Self::DTYPE).into_iter().map($type::from_bits).collect()
            }
            fn widen(self) -> f64 {
                self.to_f64()
            }
            fn round(x: f64) -> Self {
                $type::from_f64(x)
            }
        }
    )*};
}
half! {
    bf16 BF16 (-7, -133);
    f16 F16 (-10, -24);
}

fn wide<T: Half>(values: Vec<T>) -> Vec<f32> {
    values.into_iter().map(|x| x.widen() as f32).collect()
}

/// The largest error of each statistic, in its unit, and PyTorch's own.
#[derive(Default)]
struct Worst(BTreeMap<(&'static str, &'static str), (usize, f64, f64)>);

impl Worst {
    fn see<T: Half>(&mut self, what: &'static str, xent: f64, torch: f64) {
        let line = self.0.entry((T::NAME, what)).or_default();
        *line = (line.0 + 1, line.1.max(xent), line.2.max(torch));
    }

    /// An `f32` result, in ULP.
    fn single<T: Half>(
        &mut self,
        what: &'static str,
        case: &Case,
        got: f32,
        exact: f64,
        bound: f64,
    ) {
        let mut error = ulp_error(got, exact);
        if error.is_finite() && exact.is_finite() {
            let unit = 2f64.powi(((exact.abs().to_bits() >> 52) as i32 - 1023).max(-126) - 23);
            error = (error - FLOOR * exact.abs().max(1.0) / unit).max(0.0);
        }
        assert!(error <= bound, "{what} of {}: {got:e} instead of {exact:e}: {error}", case.name);
        self.see::<T>(what, error, 0.0);
    }

    /// A result in the type of the logits, in ULP of it. `size` is that of the terms it is the difference of.
    fn rounded<T: Half>(
        &mut self,
        what: &'static str,
        case: &Case,
        (got, torch): (T, T),
        exact: f64,
        size: f64,
    ) {
        let expected = T::round(exact).widen();
        let (got, torch) = (got.widen(), torch.widen());
        if !expected.is_finite() || !got.is_finite() {
            let agree = got == expected || got.is_nan() && expected.is_nan();
            assert!(agree, "{what} of {}: {got:e} instead of {exact:e}", case.name);
            return self.see::<T>(what, 0.0, 0.0);
        }
        let exponent = (exact.abs().to_bits() >> 52) as i32 - 1023;
        let unit = 2f64.powi((exponent + T::EXPONENTS.0).max(T::EXPONENTS.1));
        let size = size.max(exact.abs());
        // What `f32` cannot tell from 0 may be 0.
        let slack = size * BEFORE_ROUNDING * 2f64.powi(-23) + FLOOR * size + 2f64.powi(-125);
        let error = |x: f64| ((x - exact).abs() - slack).max(0.0) / unit;
        assert!(error(got) <= 0.5, "{what} of {}: {got:e} instead of {exact:e}", case.name);
        self.see::<T>(what, error(got), error(torch));
    }
}

fn cross_entropy_case<T: Half>(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    let (rows, classes, options) = (case.rows, case.classes, &case.options);
    let logits = T::load(file, case, "logits");
    let is_index = case.target == "index";
    let ids = if is_index { file.i64s(case, "target") } else { Vec::new() };
    let probs = if is_index { Vec::new() } else { wide(T::load(file, case, "target_probs")) };
    let targets = if is_index { Targets::from(&ids) } else { Targets::probs(&probs) };
    let none = options.reduction == "none";
    let upstream = if none { wide(T::load(file, case, "upstream")) } else { Vec::new() };
    let upstream = if none { Upstream::rows(&upstream) } else { 1.0.into() };
    let weight = options.weight.then(|| wide(T::load(file, case, "weight")));
    let mut ce = CrossEntropy::new()
        .backend(backend)
        .ignore_index(options.ignore_index)
        .label_smoothing(options.label_smoothing)
        .reduction(if options.reduction == "mean" { Reduction::Mean } else { Reduction::Sum });
    if let Some(weight) = &weight {
        ce = ce.class_weights(weight);
    }

    let view = Logits::new(&logits, rows, classes).unwrap();
    let (mut losses, mut lse) = (vec![-1.0; rows], vec![-1.0; rows]);
    let (mut argmax, mut g) = (vec![-2; rows], vec![T::default(); rows * classes]);
    let outputs = RowOutputs::new().losses(&mut losses).logsumexp(&mut lse).argmax(&mut argmax);
    let gradient = Gradient::new(LogitsMut::new(&mut g, rows, classes).unwrap()).upstream(upstream);
    let evaluation = ce.forward_backward(view, targets, gradient, outputs).unwrap();
    let mut same = vec![-1.0; rows];
    ce.forward_into(view, targets, &mut same).unwrap();

    let ignored = |i: usize| is_index && ids[i] == options.ignore_index;
    let (exact, exact_lse) = (file.f64s(case, "row_loss_f64"), file.f64s(case, "lse_f64"));
    let exact_argmax = file.i64s(case, "argmax");
    let signs = weight.as_ref().is_some_and(|weight| weight.iter().any(|&w| w < 0.0));
    let bound = match (is_index, options.label_smoothing == 0.0) {
        (true, true) => LOSS_BOUNDS[0],
        (true, false) => LOSS_BOUNDS[1],
        (false, _) => LOSS_BOUNDS[2],
    };
    let mut deviates = false;
    for i in 0..rows {
        assert!(same[i] == losses[i] || same[i].is_nan() && losses[i].is_nan(), "{}", case.name);
        if ignored(i) {
            assert_eq!((losses[i], lse[i], argmax[i]), (0.0, 0.0, -1), "{}", case.name);
            continue;
        }
        assert_eq!(argmax[i], exact_argmax[i], "argmax {i} of {}", case.name);
        let error = ulp_error(lse[i], exact_lse[i]) * exact_lse[i].abs().min(1.0);
        let scaled = if exact_lse[i].abs() < 1.0 && lse[i].is_finite() {
            error
        } else {
            ulp_error(lse[i], exact_lse[i])
        };
        assert!(scaled <= 2.0 * LOGSUMEXP_BOUND, "lse {i} of {}: {}", case.name, lse[i]);
        // Probability targets of 0 meet a masked class: NaN in PyTorch, and nothing here. Sums of both
        // signs have the unit of their terms.
        let zero_times_infinity = exact[i].is_nan() && losses[i].is_finite() && !is_index;
        deviates |= zero_times_infinity;
        if !zero_times_infinity && !signs {
            worst.single::<T>("row loss", case, losses[i], exact[i], bound);
        }
    }
    if !none && !deviates && !signs {
        let exact = file.f64s(case, "loss_f64")[0];
        let loss = evaluation.loss();
        let close = (loss - exact).abs() <= bound * 2f64.powi(-23) * exact.abs() + FLOOR;
        assert!(close || loss == exact || loss.is_nan() && exact.is_nan(), "{}: {loss}", case.name);
    }

    let (exact, torch) = (file.f64s(case, "grad_f64"), T::load(file, case, "grad"));
    let plain = is_index && options.label_smoothing == 0.0;
    let largest: Vec<f64> = (0..rows)
        .map(|i| exact[i * classes..][..classes].iter().fold(0.0, |max, g| g.abs().max(max)))
        .collect();
    for (j, (&got, &torch)) in g.iter().zip(&torch).enumerate() {
        // The gradient of an ignored row is 0 whatever is in it.
        let exact = if ignored(j / classes) { 0.0 } else { exact[j] };
        let size = if plain { 0.0 } else { largest[j / classes] };
        worst.rounded("gradient", case, (got, torch), exact, size);
    }
    let mut in_place = logits.clone();
    let to = LogitsMut::new(&mut in_place, rows, classes).unwrap();
    ce.forward_backward_in_place(to, targets, upstream, RowOutputs::new()).unwrap();
    assert!(
        in_place.iter().zip(&g).all(|(a, b)| a == b || a.widen().is_nan() && b.widen().is_nan())
    );
}

/// The divergence from a teacher: cross-entropy with its probabilities as targets, less their entropy.
fn kl_case<T: Half>(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    let (rows, classes) = (case.rows, case.classes);
    let logits = T::load(file, case, "logits");
    let teacher: Vec<f64> =
        T::load(file, case, "teacher_logits").into_iter().map(T::widen).collect();
    let none = case.options.reduction == "none";
    // One for each divergence of a class: the derivative is that of the sum with u t for t.
    let upstream = if none { wide(T::load(file, case, "upstream")) } else { Vec::new() };
    let (mut targets, mut entropy) = (Vec::new(), 0.0);
    for (i, x) in teacher.chunks(classes).enumerate() {
        let lse = reference::logsumexp_f64(x).hi;
        for (j, &x) in x.iter().enumerate() {
            let v = (x - lse).exp() * upstream.get(i * classes + j).map_or(1.0, |&u| f64::from(u));
            entropy -= if v == 0.0 { 0.0 } else { v * (x - lse) };
            targets.push(v as f32);
        }
    }
    let divisor = match &case.options.reduction[..] {
        "batchmean" => rows as f64,
        "mean" => (rows * classes) as f64,
        _ => 1.0,
    };
    let ce = CrossEntropy::new().backend(backend).reduction(Reduction::MeanOver(divisor));
    let view = Logits::new(&logits, rows, classes).unwrap();
    let mut g = vec![T::default(); rows * classes];
    let gradient = Gradient::new(LogitsMut::new(&mut g, rows, classes).unwrap());
    let loss = ce
        .forward_backward(view, Targets::probs(&targets), gradient, RowOutputs::new())
        .unwrap()
        .loss();

    let exact = file.f64s(case, "loss_f64");
    let exact = match none {
        true => exact.iter().zip(&upstream).map(|(&loss, &u)| loss * f64::from(u)).sum(),
        false => exact[0],
    };
    let (got, size) = (loss - entropy / divisor, loss.abs() + entropy.abs() / divisor);
    let error = (got - exact).abs() / (size * 2f64.powi(-23));
    assert!(error <= 1.5, "kl of {}: {got:e} instead of {exact:e}", case.name);
    worst.see::<T>("kl", error, 0.0);

    let (exact, torch) = (file.f64s(case, "grad_f64"), T::load(file, case, "grad"));
    for (j, (&got, &torch)) in g.iter().zip(&torch).enumerate() {
        let row = j / classes * classes..(j / classes + 1) * classes;
        // The terms are within the gradient and its target, which is rounded too.
        let v = targets[row].iter().fold(0.0, |max: f32, v| max.max(v.abs()));
        let size = f64::from(v) / divisor + exact[j].abs();
        worst.rounded("kl gradient", case, (got, torch), exact[j], size);
    }
}

fn softmax_case<T: Half>(backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
    let (rows, classes) = (case.rows, case.classes);
    let logits = T::load(file, case, "logits");
    let view = Logits::new(&logits, rows, classes).unwrap();
    let softmax = Softmax::new().backend(backend);
    let (exact, torch) = (file.f64s(case, "out_f64"), T::load(file, case, "out"));
    let mut out = vec![T::default(); rows * classes];
    match &case.op[..] {
        "softmax" => softmax.softmax(view, &mut out).unwrap(),
        "log_softmax" => softmax.log_softmax(view, &mut out).unwrap(),
        _ => {
            let mut lse = vec![-1.0; rows];
            softmax.logsumexp(view, &mut lse).unwrap();
            for (&lse, &exact) in lse.iter().zip(&exact) {
                let bound = LOGSUMEXP_BOUND * (1.0 / exact.abs()).max(1.0);
                worst.single::<T>("logsumexp", case, lse, exact, bound);
            }
            return;
        }
    }
    let what = if case.op == "softmax" { "softmax" } else { "log-softmax" };
    for ((&got, &torch), &exact) in out.iter().zip(&torch).zip(&exact) {
        worst.rounded(what, case, (got, torch), exact, 0.0);
    }
}

#[test]
fn every_case_of_half_formats_on_every_backend() {
    let index = Index::load();
    let ops = ["cross_entropy", "kl_div_from_logits", "softmax", "log_softmax", "logsumexp"];
    let cases: Vec<&Case> = (index.cases.iter())
        .filter(|case| ["bf16", "f16"].contains(&&case.dtype[..]) && ops.contains(&&case.op[..]))
        .collect();
    assert_eq!(cases.len(), 417);
    let mut files: BTreeMap<&str, Tensors> = BTreeMap::new();
    for case in &cases {
        files.entry(&case.file).or_insert_with(|| index.open(&case.file));
    }
    for &backend in Backend::available() {
        let mut worst = Worst::default();
        for case in &cases {
            let file = &files[&case.file[..]];
            match (&case.op[..], &case.dtype[..]) {
                ("cross_entropy", "bf16") => {
                    cross_entropy_case::<bf16>(backend, case, file, &mut worst)
                }
                ("cross_entropy", _) => cross_entropy_case::<f16>(backend, case, file, &mut worst),
                ("kl_div_from_logits", "bf16") => kl_case::<bf16>(backend, case, file, &mut worst),
                ("kl_div_from_logits", _) => kl_case::<f16>(backend, case, file, &mut worst),
                (_, "bf16") => softmax_case::<bf16>(backend, case, file, &mut worst),
                (_, _) => softmax_case::<f16>(backend, case, file, &mut worst),
            }
        }
        println!("{backend}: largest errors, in ULP of f32 for losses, of the type for the rest");
        for ((dtype, what), (values, xent, torch)) in &worst.0 {
            println!("  {dtype} {what:<12} {values:>7} values  xent {xent:.3}  PyTorch {torch:.3}");
        }
    }
}
