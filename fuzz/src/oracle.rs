//! Results against `xent::reference`, within the documented bounds and where these hold.

use crate::answer::Answer;
use crate::case::{Case, OwnedTargets};
use crate::input::Numbers;
use crate::number::{Logit, Number};
use xent::reference::{self, Options, Precise, Target, ulp_error, ulp_error_f64};
use xent::{Backend, EmptyMean, LOSS_MAX_ULP, Reduction};

pub fn check<T: Logit>(case: &Case<T>, answer: &Answer<T>, backend: Backend) {
    let weights = case.options.class_weights.as_ref().map(Numbers::values);
    let divisors = divisors(case, weights.as_deref());
    let ignored = case.is_ignored();
    // A weight of 0 is a mask.
    let weighs = |i: usize| case.options.token_weights.as_ref().is_none_or(|w| w.get(i) != 0.0);
    let (mut correct, mut nans, mut first_nan) = (0, 0, None);
    for i in (0..case.rows).filter(|&i| !ignored[i]) {
        let row = Row::new(case, i, weights.as_deref(), divisors);
        let at = |what: &str| format!("{what} of row {i} on {backend}: {case:?}");
        let best = argmax(&row.x);
        assert_eq!(answer.outputs.argmax[i], best as i64, "{}", at("argmax"));
        // Without a distribution there is an argmax, and nothing that is right.
        let is_nan = answer.outputs.logprobs[i].value().is_nan();
        correct += u64::from(row.most_probable == Some(best) && weighs(i) && !is_nan);
        if is_nan || answer.outputs.losses[i].value().is_nan() {
            nans += 1;
            first_nan = first_nan.or(Some(i as u64));
        }
        if !case.options.transforms() {
            let got = answer.outputs.logsumexp[i].value();
            let error = lse_error::<T::Real>(got, &row.x);
            assert!(error <= 1.0, "{got:e}, {error} ULP: {}", at("logsumexp"));
        }
        if is_plain(case) {
            plain_loss(&row, answer.outputs.losses[i], answer.outputs.logprobs[i], &at);
        }
        let is_double = size_of::<T::Real>() == 8;
        let sizes = is_ordinary(case).then(|| Sizes::new(&row));
        if let Some(sizes) = &sizes {
            let got = answer.outputs.losses[i].value();
            row.check_loss(got, sizes, is_double, &at);
        }
        // Gradients of 16 bits are those of `f32`, rounded, which is checked by itself.
        if size_of::<T>() < 4 {
            continue;
        }
        for (g, saved) in [(&answer.gradient, false), (&answer.saved, true)] {
            let g: Vec<f64> = g[i * case.vocab..][..case.vocab].iter().map(|g| g.value()).collect();
            let what = if saved { "gradient from statistics" } else { "gradient" };
            if case.upstream.get(i) == 0.0 {
                assert!(g.iter().all(|g| g.to_bits() == 0), "{}", at(what));
                continue;
            }
            if is_plain(case) && !is_double {
                row.check_plain_gradient(&g, saved, backend.is_bit_exact(), &|| at(what));
            } else if let Some(sizes) = &sizes {
                row.check_gradient(&g, sizes, saved, is_double, backend, &|| at(what));
            }
        }
    }
    if !has_nan_probs(case) {
        assert_eq!(answer.evaluation.correct(), Some(correct), "{case:?}");
    }
    let counted = (0..case.rows).filter(|&i| !ignored[i] && weighs(i)).count() as u64;
    let counts = (answer.evaluation.count(), answer.evaluation.ignored());
    assert_eq!(counts, (counted, case.rows as u64 - counted), "{case:?}");
    let got = (answer.evaluation.nan_rows(), answer.evaluation.first_nan_row());
    assert_eq!(got, (nans, first_nan), "{case:?}");
}

/// The first NaN, or else the first of the largest, as PyTorch has it.
pub fn argmax(row: &[f64]) -> usize {
    let mut best = 0;
    for (j, &x) in row.iter().enumerate() {
        if x.is_nan() {
            return j;
        }
        if x > row[best] {
            best = j;
        }
    }
    best
}

/// The number of representable numbers from `a` to `b`; 0 for two NaN, and infinitely many to a NaN or an
/// infinity from anything else.
pub fn distance(a: f32, b: f32) -> u32 {
    let ordered = |x: f32| {
        let bits = i64::from(x.to_bits() & 0x7fff_ffff);
        if x.is_sign_negative() { -bits } else { bits }
    };
    if a.is_nan() && b.is_nan() || a == b {
        0
    } else if a.is_finite() && b.is_finite() {
        ordered(a).abs_diff(ordered(b)) as u32
    } else {
        u32::MAX
    }
}

/// The error of a logsumexp over its bound: 1 ULP of the larger of its magnitude and 1, 2 of `f64`.
pub fn lse_error<R: Number>(got: f64, row: &[f64]) -> f64 {
    if size_of::<R>() == 8 {
        let exact = reference::logsumexp_f64(row);
        // Of a logsumexp near 0 it is the absolute error that counts.
        let apart = ((got - exact.hi) - exact.lo).abs() * 2f64.powi(53);
        return 0.5
            * ulp_error_f64(got, exact).min(if apart.is_nan() { f64::INFINITY } else { apart });
    }
    let exact = reference::logsumexp(row);
    if distance(got as f32, exact as f32) == 0 {
        return 0.0;
    }
    let magnitude = exact.abs().max(1.0);
    (got - exact).abs() / (f64::from(f32::EPSILON) * 2f64.powi(magnitude.log2().floor() as i32))
}

/// No options but those of the reduction, and classes as targets.
fn is_plain<T: Logit>(case: &Case<T>) -> bool {
    let options = &case.options;
    matches!(case.targets, OwnedTargets::Classes(_))
        && !options.transforms()
        && options.label_smoothing == 0.0
        && options.z_loss == 0.0
        && options.class_weights.is_none()
        && options.token_weights.is_none()
}

/// Options of a size that leaves all intermediate results among the normal numbers of `f32`, far from the
/// ends. Beyond, bounds in units of the last place mean little.
fn is_ordinary<T: Logit>(case: &Case<T>) -> bool {
    let options = &case.options;
    let within = |x: f64, from: f64, to: f64| (from..=to).contains(&x.abs());
    let or_zero = |x: f64, from: f64, to: f64| x == 0.0 || within(x, from, to);
    let weights = |numbers: &Option<Numbers>| {
        numbers.as_ref().is_none_or(|w| w.values().into_iter().all(|w| or_zero(w, 1e-3, 100.0)))
    };
    let probs = match &case.targets {
        OwnedTargets::Classes(_) | OwnedTargets::Shifted { .. } => true,
        OwnedTargets::Dense(probs) | OwnedTargets::Sparse { probs, .. } => {
            probs.values().into_iter().all(|p| p >= 0.0 && or_zero(p, 1e-6, 100.0))
        }
    };
    // Transformed logits are rounded: very large ones have no digits left.
    let logits = !options.transforms()
        || case.x.iter().map(|x| x.value()).all(|x| !x.is_finite() || x.abs() <= 1e4);
    or_zero(options.label_smoothing, 1e-4, 1.0)
        && or_zero(options.z_loss, 1e-6, 10.0)
        && within(options.logit_scale, 0.05, 20.0)
        && within(options.temperature, 0.05, 20.0)
        && options.softcap.is_none_or(|c| within(c, 0.25, 1000.0))
        && weights(&options.class_weights)
        && weights(&options.token_weights)
        && probs
        && logits
}

/// Which class is the most probable is then not defined.
fn has_nan_probs<T: Logit>(case: &Case<T>) -> bool {
    match &case.targets {
        OwnedTargets::Classes(_) | OwnedTargets::Shifted { .. } => false,
        OwnedTargets::Dense(probs) | OwnedTargets::Sparse { probs, .. } => {
            probs.values().into_iter().any(f64::is_nan)
        }
    }
}

/// What the cross-entropy and the z-loss are divided by.
fn divisors<T: Logit>(case: &Case<T>, weights: Option<&[f64]>) -> [f64; 2] {
    match case.options.reduction {
        Reduction::Sum => [1.0; 2],
        Reduction::MeanOver(count) => [count; 2],
        _ => {
            let ignored = case.is_ignored();
            let (mut sums, mut empty) = ([0.0; 2], [case.options.empty_mean == EmptyMean::Zero; 2]);
            for i in (0..case.rows).filter(|&i| !ignored[i]) {
                let weight = match (&case.targets, weights) {
                    (OwnedTargets::Classes(ids), Some(weights)) => {
                        weights[ids.values()[i] as usize]
                    }
                    _ => 1.0,
                };
                let token = case.options.token_weights.as_ref().map_or(1.0, |w| w.get(i));
                for (k, weight) in [token * weight, token].into_iter().enumerate() {
                    sums[k] += weight;
                    empty[k] &= weight == 0.0;
                }
            }
            // Nothing but NaN is left of what that divides.
            [0, 1].map(|k| if empty[k] { f64::INFINITY } else { sums[k] })
        }
    }
}

fn plain_loss<R: Number>(row: &Row<'_>, got: R, logprob: R, at: &dyn Fn(&str) -> String) {
    let Some(class) = row.class else { return };
    let got = got.value();
    if size_of::<R>() == 8 {
        let error = ulp_error_f64(got, reference::row_f64(&row.x, class).loss);
        assert!(error <= 2.0, "{got:e}, {error} ULP: {}", at("loss"));
    } else {
        let exact = reference::row(&row.x, class).loss;
        let apart = distance(got as f32, exact as f32);
        assert!(apart <= LOSS_MAX_ULP, "{got:e} for {exact:e}: {}", at("loss"));
    }
    assert!(logprob.key() == R::round(0.0 - got).key(), "{logprob:?}, {got}: {}", at("logprob"));
}

/// One row as the oracle has it.
struct Row<'a> {
    x: Vec<f64>,
    options: Options<'a>,
    /// `None` for probability targets.
    class: Option<usize>,
    probs: Option<Vec<f64>>,
    most_probable: Option<usize>,
    /// The derivatives of what is trained by cross-entropy and z-loss.
    upstream: [f64; 2],
}

/// How large the numbers are that results are the differences of.
struct Sizes {
    /// The larger of the two terms of each class.
    terms: Vec<f64>,
    /// What probabilities are multiplied by, at most.
    factor: f64,
    /// The sum of the magnitudes that the loss is the sum of.
    loss: f64,
    /// By how many units of rounding transforms may move each class's logit.
    moved: Vec<f64>,
    lse: f64,
}

/// What is below this, or below it times the upstream gradient, may be cut to 0: 2^-125.
const CUT: f64 = 2.0 * f32::MIN_POSITIVE as f64;

/// One unit in the last place of `f32`.
fn ulp(x: f64) -> f64 {
    let exponent = (x.abs().to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent.max(-126) - 23)
}

/// The error of an `f32` in ULP of `of`, as far as it is above the cut and `allowed`.
pub fn ulps(got: f64, exact: f64, upstream: f64, of: f64, allowed: f64) -> f64 {
    if !(exact as f32).is_finite() || !got.is_finite() {
        return ulp_error(got as f32, exact);
    }
    let beyond = (got - exact).abs() - CUT * upstream.abs().max(1.0) - allowed;
    if beyond <= 0.0 { 0.0 } else { beyond / ulp(of) }
}

impl<'a> Row<'a> {
    fn new<T: Logit>(
        case: &'a Case<T>,
        i: usize,
        weights: Option<&'a [f64]>,
        divisors: [f64; 2],
    ) -> Self {
        let options = &case.options;
        let vocab = case.vocab;
        let (mut class, mut probs) = (None, None);
        let most_probable;
        match &case.targets {
            OwnedTargets::Classes(ids) => {
                class = Some(ids.values()[i] as usize);
                most_probable = class;
            }
            OwnedTargets::Shifted { .. } => unreachable!("asked of plain cases"),
            OwnedTargets::Dense(all) => {
                let row: Vec<f64> = (0..vocab).map(|j| all.get(i * vocab + j)).collect();
                most_probable = first_largest(row.iter().copied().enumerate());
                probs = Some(row);
            }
            OwnedTargets::Sparse { ids, probs: all, k } => {
                let is_kept = |id: i128| !options.ignored.contains(id);
                let ids = &ids.values()[i * k..][..*k];
                let (mut row, mut listed) = (vec![0.0; vocab], vec![None; vocab]);
                for (n, &id) in ids.iter().enumerate().filter(|(_, id)| is_kept(**id)) {
                    let (class, p) = (id as usize, all.get(i * k + n));
                    // Two probabilities of a class are added in the precision of the results.
                    row[class] = T::Real::round(row[class] + p).value();
                    listed[class] = Some(listed[class].unwrap_or(0.0) + p);
                }
                let listed = listed.into_iter().enumerate();
                most_probable = first_largest(listed.filter_map(|(j, p)| Some((j, p?))));
                probs = Some(row);
            }
        }
        let up = case.upstream.get(i);
        Row {
            x: case.row(i).iter().map(|x| x.value()).collect(),
            options: Options {
                logit_scale: options.logit_scale,
                softcap: options.softcap,
                caps_infinities: options.caps_infinities,
                temperature: options.temperature,
                label_smoothing: options.label_smoothing,
                class_weights: weights,
                z_loss: options.z_loss,
                token_weight: options.token_weights.as_ref().map_or(1.0, |w| w.get(i)),
            },
            class,
            probs,
            most_probable,
            upstream: divisors.map(|divisor| up / divisor),
        }
    }

    fn target(&self) -> Target<'_> {
        match (self.class, &self.probs) {
            (Some(class), _) => Target::Class(class),
            (None, probs) => Target::Probs(probs.as_deref().unwrap_or_default()),
        }
    }

    fn transforms(&self) -> bool {
        let Options { softcap, logit_scale, temperature, .. } = self.options;
        softcap.is_some() || logit_scale != 1.0 || temperature != 1.0
    }

    /// Whether differences of logits are out of the range of `f32`.
    fn is_far(&self) -> bool {
        let finite = || self.x.iter().copied().filter(|x| x.is_finite());
        finite().fold(f64::MIN, f64::max) - finite().fold(f64::MAX, f64::min)
            > f64::from(f32::MAX) / 64.0
    }

    fn has_masked_target(&self) -> bool {
        self.class.is_some_and(|class| self.x[class] == f64::NEG_INFINITY)
    }

    fn check_loss(&self, got: f64, sizes: &Sizes, is_double: bool, at: &dyn Fn(&str) -> String) {
        if self.class.is_none() && self.is_far() {
            // The difference of two classes is beyond the range of the results.
            return;
        }
        let loss = reference::loss(&self.x, self.target(), &self.options);
        let exact = loss.cross_entropy + loss.z_loss;
        if self.has_masked_target() && exact.is_nan() {
            // Infinite by itself; weights of other masks do not make it NaN here.
            assert!(!got.is_finite(), "{got:e} for {exact:e}: {}", at("loss"));
            return;
        }
        let size = sizes.loss + loss.z_loss.abs();
        let error =
            if is_double { coarse(got, exact, size) } else { ulps(got, exact, 1e8, size, 0.0) };
        assert!(error <= 2.0, "{got:e} for {exact:e}, {error:e}: {}", at("loss"));
    }

    /// Whether the logsumexp is below 2^24: the statistics of a row hold enough of it.
    fn is_near(&self, lse: f64) -> bool {
        !lse.is_finite() || lse.abs() < 16_777_216.0
    }

    /// How far the gradient of a target may be off from saved statistics.
    fn saved_error(&self, lse: f64) -> f64 {
        if lse.is_finite() { 2f64.powi(-47) * lse.abs().max(1.0) } else { 0.0 }
    }

    fn check_plain_gradient(&self, g: &[f64], saved: bool, fused: bool, at: &dyn Fn() -> String) {
        let (up, Some(class)) = (self.upstream[0], self.class) else { return };
        let lse = reference::logsumexp(&self.x);
        let has_digits = up == 0.0 || (1e-37..3e38).contains(&up.abs());
        if !has_digits || saved && !self.is_near(lse) {
            return;
        }
        let exact = reference::gradient(&self.x, Target::Class(class), &self.options, [up; 2]);
        for (j, (&got, &exact)) in g.iter().zip(&exact).enumerate() {
            let allowed = if saved && j == class { up.abs() * self.saved_error(lse) } else { 0.0 };
            let error = ulps(got, exact, up, exact, allowed);
            let bound = if fused { 2.0 } else { 2.5 };
            assert!(error <= bound, "class {j}, {got:e} for {exact:e}, {error} ULP: {}", at());
        }
    }

    fn check_gradient(
        &self,
        g: &[f64],
        sizes: &Sizes,
        saved: bool,
        is_double: bool,
        backend: Backend,
        at: &dyn Fn() -> String,
    ) {
        let within = |up: f64| up == 0.0 || (1e-6..1e6).contains(&up.abs());
        if !self.upstream.into_iter().all(within) || saved && !self.is_near(sizes.lse) {
            return;
        }
        let exact = reference::gradient(&self.x, self.target(), &self.options, self.upstream);
        let bound = match backend.is_bit_exact() {
            _ if self.transforms() => 7.0,
            true => 2.5,
            false => 3.0,
        };
        for (j, (&got, &exact)) in g.iter().zip(&exact).enumerate() {
            let moved = 1.0 + sizes.moved[j];
            let allowed = match saved && self.class == Some(j) {
                true => sizes.factor.abs() * self.saved_error(sizes.lse),
                false => 0.0,
            };
            let error = if is_double {
                coarse(got, exact, sizes.terms[j] * moved)
            } else {
                ulps(got, exact, sizes.factor, sizes.terms[j], allowed) / moved
            };
            assert!(error <= bound, "class {j}, {got:e} for {exact:e}, {error} ULP: {}", at());
        }
    }
}

/// The error of an `f64` in units of 1e-10 of `size`: its oracle has no more digits than it.
fn coarse(got: f64, exact: f64, size: f64) -> f64 {
    if !got.is_finite() || !exact.is_finite() {
        return ulp_error_f64(got, Precise { hi: exact, lo: 0.0 });
    }
    let beyond = (got - exact).abs() - 1e-280;
    if beyond <= 0.0 { 0.0 } else { beyond / (1e-10 * size) }
}

fn first_largest(probs: impl Iterator<Item = (usize, f64)>) -> Option<usize> {
    let better = |best: Option<(usize, f64)>, (j, p): (usize, f64)| match best {
        Some((_, top)) if p <= top || p.is_nan() => best,
        _ => Some((j, p)),
    };
    probs.fold(None, better).map(|(j, _)| j)
}

impl Sizes {
    fn new(row: &Row<'_>) -> Self {
        let Options { logit_scale, temperature, label_smoothing: e, .. } = row.options;
        let (x, vocab) = (&row.x, row.x.len());
        let cap = row.options.softcap.unwrap_or(f64::INFINITY);
        let u: Vec<f64> = x.iter().map(|&x| x * logit_scale).collect();
        let z = u.iter().map(|&u| {
            let kept = u.is_infinite() && !row.options.caps_infinities;
            let capped = if cap.is_finite() && !kept { cap * (u / cap).tanh() } else { u };
            capped / temperature
        });
        let z: Vec<f64> = z.collect();
        let (p, lse) = (reference::softmax(&z), reference::logsumexp(&z));
        let weight = |j: usize| row.options.class_weights.map_or(1.0, |w| w[j]);
        let factor = |j: usize| {
            let given = match row.target() {
                Target::Class(class) => f64::from(u8::from(class == j)),
                Target::Probs(probs) => probs[j],
            };
            (((1.0 - e) * given + e / vocab as f64) * weight(j)).abs()
        };
        let size: f64 = (0..vocab).map(factor).sum();
        let scales = (row.options.token_weight * logit_scale / temperature).abs();
        let [a, b] = row.upstream.map(f64::abs);
        let times_p = a * size + b * 2.0 * row.options.z_loss * lse.abs();
        let slope = |j: usize| if cap.is_finite() { (u[j] / cap).cosh().powi(-2) } else { 1.0 };
        let term = |j: usize| scales * slope(j) * (times_p * p[j]).max(a * factor(j));
        let finite = |z: f64| if z.is_finite() { z.abs() } else { 0.0 };
        let largest = z.iter().map(|&z| finite(z)).fold(0.0, f64::max);
        let moved = |j: usize| match row.transforms() {
            true => largest + if cap.is_finite() { finite(u[j] / cap) } else { 0.0 },
            false => 0.0,
        };
        let nll = reference::log_softmax(&z);
        let at = row.class.map_or(0.0, |class| finite(z[class]));
        let part = |j: usize| factor(j) * finite(nll[j]) + e / vocab as f64 * (finite(z[j]) + at);
        let parts: f64 = (0..vocab).map(part).sum();
        let moves = size + 2.0 * row.options.z_loss * lse.abs();
        let moves = if row.transforms() { 2.0 * moves * largest } else { 0.0 };
        Sizes {
            terms: (0..vocab).map(term).collect(),
            factor: scales * times_p,
            loss: row.options.token_weight.abs() * (parts + moves),
            moved: (0..vocab).map(moved).collect(),
            lse,
        }
    }
}
