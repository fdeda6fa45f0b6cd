//! Gradients of every backend against the `f64` oracle, and the oracle against finite differences.

use common::training::{Setup, Trained, Wanted, train};
use common::{Kind, Rng, any_target, argmax, for_each_backend};
use rayon::prelude::*;
use std::fmt::Debug;
use xent::reference::{self, Options, Target, ulp_error};
use xent::{Backend, CrossEntropy, Gradient, LogSumExp, Logits, LogitsMut, Reduction, RowOutputs};

/// The largest of some errors, and where it was.
#[derive(Clone, Debug, Default)]
struct Worst {
    error: f64,
    at: String,
}

impl Worst {
    fn add(&mut self, error: f64, at: impl FnOnce() -> String) {
        // A NaN is worse than anything.
        if error > self.error || error.is_nan() {
            *self = Worst { error: if error.is_nan() { f64::INFINITY } else { error }, at: at() };
        }
    }

    fn or(self, other: Worst) -> Worst {
        if other.error > self.error { other } else { self }
    }

    #[track_caller]
    fn check(&self, what: &str, bound: f64) {
        let Worst { error, at } = self;
        println!("{what}: {error:.3e} of {bound}; {at}");
        assert!(*error <= bound, "{what}: {error:e} above {bound}; {at}");
    }
}

/// A row, its class, and what the oracle says.
struct Case {
    what: String,
    row: Vec<f32>,
    target: usize,
    exact: Vec<f64>,
}

impl Case {
    fn new(what: String, row: Vec<f32>, target: usize) -> Case {
        let exact =
            reference::gradient(&row, Target::Class(target), &Options::default(), [1.0, 1.0]);
        Case { what, row, target, exact }
    }
}

/// Sizes around vectors, steps, blocks and chunks, with the number of rows of each kind.
const SIZES: &[(usize, u64)] = &[
    (1, 3),
    (2, 8),
    (3, 6),
    (5, 4),
    (8, 3),
    (13, 3),
    (15, 3),
    (16, 3),
    (17, 3),
    (31, 3),
    (32, 3),
    (33, 3),
    (47, 3),
    (63, 3),
    (64, 3),
    (65, 3),
    (70, 3),
    (127, 4),
    (128, 3),
    (129, 3),
    (300, 3),
    (1023, 2),
    (1024, 2),
    (1025, 2),
    (4097, 2),
    (33_000, 1),
    (50_257, 1),
];

fn cases() -> Vec<Case> {
    let cases = SIZES.par_iter().flat_map(|&(vocab, repeat)| {
        Kind::ORDINARY.par_iter().flat_map_iter(move |&kind| {
            (0..repeat).map(move |i| {
                let mut rng = Rng::new((kind as u64) << 32 | (vocab as u64) << 8 | i);
                let row = kind.row(&mut rng, vocab);
                let target = any_target(&mut rng, &row);
                Case::new(format!("{kind:?} of {vocab}, seed {i}, target {target}"), row, target)
            })
        })
    });
    // The target is up to 110 above all others: what is left of it goes down to nothing.
    let confident = [2, 3, 17, 64, 100, 1025].into_par_iter().flat_map_iter(|vocab: usize| {
        (1..=1100).step_by(if vocab < 100 { 3 } else { 40 }).map(move |tenths: u64| {
            let mut rng = Rng::new(tenths << 16 | vocab as u64);
            let offset = rng.pick(&[0.0, 0.0, 10.0, -300.0, 1e4]);
            let noise = rng.pick(&[0.0, 0.3, 2.0]);
            let mut row: Vec<f32> = (0..vocab).map(|_| offset + noise * rng.normal()).collect();
            let target = rng.below(vocab);
            row[target] = row[argmax(&row)] + tenths as f32 * 0.1;
            Case::new(format!("gap {tenths}/10 in {vocab}"), row, target)
        })
    });
    cases.chain(confident).collect()
}

/// The gradient of the sum, from one call or from saved statistics.
fn gradient(backend: Backend, row: &[f32], target: usize, saved: bool) -> Vec<f32> {
    let ce = CrossEntropy::new().backend(backend).reduction(Reduction::Sum);
    let logits = Logits::new(row, 1, row.len()).unwrap();
    if !saved {
        return train(&ce, logits, &[target], 1.0).gradient;
    }
    let mut stats = [LogSumExp::default()];
    ce.evaluate(logits, &[target], RowOutputs::new().saved(&mut stats)).unwrap();
    let mut g = vec![f32::NAN; row.len()];
    let to = Gradient::new(LogitsMut::new(&mut g, 1, row.len()).unwrap());
    ce.backward(logits, &[target], &stats, to).unwrap();
    g
}

/// What is below this, or below it times the upstream gradient, may be cut to 0: 2^-125.
const CUT: f64 = 2.0 * f32::MIN_POSITIVE as f64;

/// The error of a gradient in ULP of `of`, as far as it is above the cut.
fn ulps(got: f32, exact: f64, upstream: f64, of: f64) -> f64 {
    if !(exact as f32).is_finite() || !got.is_finite() {
        return ulp_error(got, exact);
    }
    let beyond = (f64::from(got) - exact).abs() - CUT * upstream.abs().max(1.0);
    if beyond <= 0.0 { 0.0 } else { beyond / ulp(of) }
}

/// One unit in the last place.
fn ulp(x: f64) -> f64 {
    let exponent = (x.abs().to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent.max(-126) - 23)
}

/// The sum of a row of gradients, in units of 2^-24 of the sum of their magnitudes.
fn row_sum(g: &[f32]) -> f64 {
    let of = |f: fn(f32) -> f32| g.iter().map(|&g| f64::from(f(g))).sum::<f64>();
    let beyond = (of(|g| g).abs() - g.len() as f64 * CUT).max(0.0);
    if beyond == 0.0 { 0.0 } else { beyond / (of(f32::abs) * 2f64.powi(-24)) }
}

/// The errors of many rows.
#[derive(Clone, Debug, Default)]
struct Errors {
    each: Worst,
    sum: Worst,
}

impl Errors {
    fn add(&mut self, g: &[f32], case: &Case, upstream: f64) {
        for (j, (&got, &exact)) in g.iter().zip(&case.exact).enumerate() {
            let exact = upstream * exact;
            let at = || format!("{}, class {j}: {got:e} for {exact:e}", case.what);
            self.each.add(ulps(got, exact, upstream, exact), at);
        }
        if case.exact[0].is_finite() {
            self.sum.add(row_sum(g), || case.what.clone());
        }
    }

    fn or(self, other: Errors) -> Errors {
        Errors { each: self.each.or(other.each), sum: self.sum.or(other.sum) }
    }
}

#[test]
fn gradients_of_all_kinds_of_rows() {
    let cases = cases();
    let finite = cases.iter().filter(|case| case.exact[0].is_finite()).count();
    let tiny = |case: &&Case| (1e-45..1e-20).contains(&-case.exact[case.target]);
    let tiny = cases.iter().filter(tiny).count();
    println!("{} rows, {finite} finite, {tiny} of a confident target", cases.len());
    assert!(finite > 2500 && tiny > 100);
    for_each_backend(|backend| {
        for saved in [false, true] {
            let errors = cases.par_iter().filter(|case| !saved || is_near(&case.row));
            let errors = errors.map(|case| {
                let mut errors = Errors::default();
                let g = gradient(backend, &case.row, case.target, saved);
                errors.add(&g, case, 1.0);
                errors
            });
            let errors = errors.reduce(Errors::default, Errors::or);
            let what = if saved { "from saved statistics" } else { "in one call" };
            errors.each.check(&format!("{backend} {what}, ULP"), plain_bound(backend));
            errors.sum.check(&format!("{backend} {what}, row sum in 2^-24 of the size"), 3.0);
        }
    });
}

/// Whether the logsumexp is below 2^24: 8 bytes hold enough of it.
fn is_near(row: &[f32]) -> bool {
    let lse = reference::logsumexp(row);
    !lse.is_finite() || lse.abs() < 16_777_216.0
}

/// Where the logsumexp takes all the digits that are saved, probabilities keep nearly all of theirs.
#[test]
fn saved_statistics_of_enormous_rows() {
    let cases: Vec<Case> = cases().into_iter().filter(|case| !is_near(&case.row)).collect();
    println!("{} rows", cases.len());
    assert!(cases.len() > 100);
    for_each_backend(|backend| {
        let mut errors = Errors::default();
        for case in &cases {
            errors.add(&gradient(backend, &case.row, case.target, true), case, 1.0);
        }
        errors.each.check(&format!("{backend}, ULP"), 6.0);
    });
}

/// From the smallest upstream gradient with a normal product to the largest: no digits are lost to the
/// range of the factors.
#[test]
fn upstream_of_any_size() {
    let cases =
        cases().into_iter().filter(|case| case.row.len() < 200 && case.exact[0].is_finite());
    let cases: Vec<Case> = cases.step_by(7).collect();
    assert!(cases.len() > 200);
    for_each_backend(|backend| {
        let mut errors = Errors::default();
        for upstream in [-1.0, 1e-3, -3.7e5, 1e-30, -2e-37, 1e30, -3e38] {
            for case in &cases {
                let ce = CrossEntropy::new().backend(backend).reduction(Reduction::Sum);
                let logits = Logits::new(&case.row, 1, case.row.len()).unwrap();
                let g = train(&ce, logits, &[case.target], upstream).gradient;
                // Results below the normal numbers have a unit of their own.
                errors.add(&g, case, upstream);
            }
        }
        errors.each.check(&format!("{backend}, ULP"), plain_bound(backend));
    });
}

/// A row with options: what the oracle says, and the sizes that errors are measured by.
struct OptionsCase {
    what: String,
    row: Vec<f32>,
    setup: Setup,
    wanted: Wanted,
    token_weight: f32,
    upstream: f64,
    exact: Vec<f64>,
    loss: reference::Loss,
    /// What probabilities are multiplied by, at most.
    factor: f64,
    /// The larger of the two terms of each class.
    terms: Vec<f64>,
    /// The sum of the magnitudes that the loss is the sum of.
    loss_size: f64,
    /// By how many units of 2^-24 transforms may move each class's logit, from where it is to the logsumexp.
    moved: Vec<f64>,
}

impl OptionsCase {
    fn new(seed: u64, kind: Kind, vocab: usize, combination: usize, targets: usize) -> Self {
        let mut rng = Rng::new(seed);
        let row = kind.row(&mut rng, vocab);
        let setup = Setup::new(combination, &mut rng, vocab);
        let wanted = match targets {
            0 => Wanted::ids(&mut rng, std::slice::from_ref(&row), false),
            _ => Wanted::new(targets, &mut rng, std::slice::from_ref(&row)),
        };
        let token_weight = rng.pick(&[1.0, 1.0, 0.3, -2.0]);
        let upstream = rng.pick(&[1.0, 1.0, 0.001, -7.5]);
        let probs = wanted.probs(0);
        let target = wanted.reference(0, &probs).unwrap();
        let options = setup.reference(token_weight.into());
        let exact = reference::gradient(&row, target, &options, [upstream; 2]);
        let loss = reference::loss(&row, target, &options);
        let what = format!("{kind:?} of {vocab}, seed {seed:x}, {setup:?}, {wanted:?}");
        let what = what.chars().take(6000).collect();

        // The same once more, in magnitudes.
        let cap = options.softcap.unwrap_or(f64::INFINITY);
        let u: Vec<f64> = row.iter().map(|&x| f64::from(x) * options.logit_scale).collect();
        let z = u.iter().map(|&u| {
            let masked = u == f64::NEG_INFINITY && !options.caps_infinities;
            let capped = if cap.is_finite() && !masked { cap * (u / cap).tanh() } else { u };
            capped / options.temperature
        });
        let z: Vec<f64> = z.collect();
        let (p, lse) = (reference::softmax(&z), reference::logsumexp(&z));
        let e = options.label_smoothing;
        let factor = |j: usize| {
            let given = match target {
                Target::Class(class) => {
                    if class == j {
                        1.0
                    } else {
                        0.0
                    }
                }
                Target::Probs(probs) => probs[j],
            };
            ((1.0 - e) * given + e / vocab as f64) * options.class_weights.map_or(1.0, |w| w[j])
        };
        let size: f64 = (0..vocab).map(|j| factor(j).abs()).sum();
        let a = size + 2.0 * options.z_loss * lse.abs();
        let factors =
            upstream * f64::from(token_weight) * options.logit_scale / options.temperature;
        let slope = |j: usize| if cap.is_finite() { (u[j] / cap).cosh().powi(-2) } else { 1.0 };
        let term = |j: usize| (factors * slope(j)).abs() * (a * p[j]).max(factor(j).abs());
        let terms = (0..vocab).map(term).collect();
        let finite = |z: f64| if z.is_finite() { z.abs() } else { 0.0 };
        let nll = reference::log_softmax(&z);
        let largest = z.iter().map(|&z| finite(z)).fold(0.0, f64::max);
        let moved = |j: usize| {
            if setup.transforms() {
                largest + if cap.is_finite() { finite(u[j] / cap) } else { 0.0 }
            } else {
                0.0
            }
        };
        let moved = (0..vocab).map(moved).collect();
        let at = match target {
            Target::Class(class) => finite(z[class]),
            Target::Probs(_) => 0.0,
        };
        let part =
            |j: usize| factor(j).abs() * finite(nll[j]) + (e / vocab as f64) * (finite(z[j]) + at);
        let parts: f64 = (0..vocab).map(part).sum();
        // By how much the loss moves with the logits.
        let moves = if setup.transforms() { 2.0 * a * largest } else { 0.0 };
        let loss_size = f64::from(token_weight).abs() * (parts + moves);
        OptionsCase {
            what,
            row,
            setup,
            wanted,
            token_weight,
            upstream,
            exact,
            factor: factors * a,
            loss,
            terms,
            loss_size,
            moved,
        }
    }

    /// Whether differences of logits are out of the range of `f32`.
    fn is_far(&self) -> bool {
        let finite = || self.row.iter().filter(|x| x.is_finite());
        let max = finite().fold(f32::MIN, |a, b| a.max(*b));
        let min = finite().fold(f32::MAX, |a, b| a.min(*b));
        max - min > f32::MAX / 64.0
    }

    fn has_masked_target(&self) -> bool {
        matches!(&self.wanted, Wanted::Ids(ids) if self.row[ids[0] as usize] == f32::NEG_INFINITY)
    }

    fn train(&self, backend: Backend) -> Trained {
        let logits = Logits::new(&self.row, 1, self.row.len()).unwrap();
        let token_weights = [self.token_weight];
        let ce = self.setup.cross_entropy(backend).token_weights(&token_weights);
        train(&ce.reduction(Reduction::Sum), logits, self.wanted.targets(), self.upstream)
    }
}

fn options_cases() -> Vec<OptionsCase> {
    let sizes = [1, 2, 3, 9, 16, 17, 31, 33, 64, 70, 130, 1023, 1025, 4097];
    let cases = (0..Setup::COMBINATIONS * Wanted::KINDS).into_par_iter().flat_map_iter(|i| {
        sizes.into_iter().flat_map(move |vocab| {
            let mut rng = Rng::new((i << 16 | vocab) as u64);
            let number = if vocab < 100 { 6 } else { 1 };
            (0..number).filter_map(move |_| {
                let kind = rng.pick(Kind::ORDINARY);
                let combination = i % Setup::COMBINATIONS;
                let seed = rng.bits();
                // Logits so large that f32 has no digits left for their products.
                let large = [Kind::Extremes, Kind::RandomBits, Kind::Offset, Kind::AllEqual];
                let transforms = combination >= Setup::SOFTCAP;
                (!transforms || !large.contains(&kind)).then(|| {
                    OptionsCase::new(seed, kind, vocab, combination, i / Setup::COMBINATIONS)
                })
            })
        })
    });
    cases.collect()
}

/// In ULP of the gradient of the plain loss.
fn plain_bound(backend: Backend) -> f64 {
    if backend == Backend::Portable { 2.5 } else { 2.0 }
}

/// In ULP of the larger of the two terms that are subtracted, of which each is rounded, as their difference is.
fn options_bound(backend: Backend) -> f64 {
    if backend == Backend::Portable { 3.0 } else { 2.5 }
}

#[test]
fn gradients_and_losses_with_options() {
    let cases = options_cases();
    println!("{} rows", cases.len());
    assert!(cases.len() > 8000);
    for_each_backend(|backend| {
        // Of ids and of probabilities, with transforms, losses, sums of rows.
        let none = || [(); 7].map(|()| Worst::default());
        let worst = cases.par_iter().map(|case| {
            let mut worst = none();
            let trained = case.train(backend);
            let probs = usize::from(!matches!(case.wanted, Wanted::Ids(_)));
            for (j, (&got, &exact)) in trained.gradient.iter().zip(&case.exact).enumerate() {
                let at = || format!("class {j}: {got:e} for {exact:e}, {}", case.what);
                let error = ulps(got, exact, case.factor, case.terms[j]);
                if case.setup.transforms() {
                    worst[2].add(error / (1.0 + case.moved[j]), at);
                } else {
                    worst[probs].add(error, at);
                }
            }
            if case.setup.z_loss == 0.0 && case.setup.softcap.is_none() && !case.exact[0].is_nan() {
                let sum: f64 = trained.gradient.iter().map(|&g| f64::from(g)).sum();
                let size = case.terms.iter().sum::<f64>() * 2f64.powi(-24);
                let beyond = sum.abs() - case.row.len() as f64 * CUT;
                let at = || format!("{sum:e} of {size:e}, {}", case.what);
                worst[5 + probs].add(if beyond <= 0.0 { 0.0 } else { beyond / size }, at);
            }
            let got = trained.losses[0];
            let loss = case.loss.cross_entropy + case.loss.z_loss;
            let at = || format!("{got:e} for {loss:e}, {}", case.what);
            let size = case.loss_size + case.loss.z_loss.abs();
            if probs == 1 && case.is_far() {
                // The difference of two classes is beyond f32.
                return worst;
            }
            if case.has_masked_target() && loss.is_nan() {
                // Infinite by itself; weights of other masks do not make it NaN here.
                assert!(!got.is_finite(), "{}", at());
                return worst;
            }
            let transforms = usize::from(case.setup.transforms());
            worst[3 + transforms].add(ulps(got, loss, 1e8, size), at);
            worst
        });
        let both = |a: [Worst; 7], b: [Worst; 7]| {
            let mut pairs = a.into_iter().zip(b).map(|(a, b)| a.or(b));
            [(); 7].map(|()| pairs.next().unwrap())
        };
        let [ids, probs, transformed, loss, transformed_loss, sum, sum_of_probs] =
            worst.reduce(none, both);
        let what = |what: &str| format!("{backend}, {what}");
        ids.check(&what("classes, ULP of the larger term"), options_bound(backend));
        probs.check(&what("probabilities, ULP of the larger term"), options_bound(backend));
        transformed.check(&what("with transforms, ULP per moved logit"), 7.0);
        loss.check(&what("losses, ULP of the sum of magnitudes"), 2.0);
        transformed_loss.check(&what("losses with transforms, the same"), 2.0);
        sum.check(&what("row sums of classes, 2^-24 of the terms"), 3.0);
        sum_of_probs.check(&what("row sums of probabilities"), 3.0);
    });
}

/// The gradient of the oracle is the derivative of its loss.
#[test]
fn the_oracle_against_central_differences() {
    let mut worst = Worst::default();
    let mut tried = 0;
    for combination in 0..Setup::COMBINATIONS {
        for targets in 0..Wanted::KINDS {
            for i in 0..3 {
                let mut rng = Rng::new((combination << 8 | targets << 4 | i) as u64);
                let vocab = 1 + rng.below(9);
                let mut row = vec![0.0_f64; vocab];
                row.iter_mut().for_each(|x| *x = 3.0 * f64::from(rng.normal()));
                if i == 2 {
                    // A mask, with a target that is not masked.
                    row.push(f64::NEG_INFINITY);
                }
                let as_f32: Vec<f32> = row.iter().map(|&x| x as f32).collect();
                let setup = Setup::new(combination, &mut rng, row.len());
                let wanted = Wanted::new(targets, &mut rng, std::slice::from_ref(&as_f32));
                let mut probs = wanted.probs(0);
                if i == 2
                    && let Some(probs) = &mut probs
                {
                    probs[vocab] = 0.0;
                }
                let target = match wanted.reference(0, &probs) {
                    Some(Target::Class(class)) => Target::Class(class.min(vocab - 1)),
                    Some(target) => target,
                    None => Target::Class(0),
                };
                let options = setup.reference(rng.pick(&[1.0, 0.3, -2.0]));
                let upstream = [rng.pick(&[1.0, 0.2, -3.0]), rng.pick(&[1.0, 0.7])];
                let trained = |row: &[f64]| {
                    let loss = reference::loss(row, target, &options);
                    upstream[0] * loss.cross_entropy + upstream[1] * loss.z_loss
                };
                if !trained(&row).is_finite() {
                    // Smoothing over a mask: the loss is infinite, and has no differences.
                    assert!(i == 2 && setup.label_smoothing > 0.0, "{setup:?} {row:?}");
                    continue;
                }
                let g = reference::gradient(&row, target, &options, upstream);
                for j in 0..vocab {
                    let step = 1e-5;
                    let at = |x: f64| {
                        let mut row = row.clone();
                        row[j] = x;
                        trained(&row)
                    };
                    let difference = (at(row[j] + step) - at(row[j] - step)) / (2.0 * step);
                    let size = 1.0 + g.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                    let what = || format!("class {j}, {setup:?}, {row:?}, {target:?}");
                    worst.add((g[j] - difference).abs() / size, what);
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 2000, "{tried}");
    println!("{tried} derivatives");
    worst.check("oracle against differences", 1e-8);
}
