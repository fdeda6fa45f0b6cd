//! Losses, softmax, log-softmax and logsumexp of every backend against the `f64` oracle.

use common::{Kind, Rng, any_target, argmax, distance, for_each_backend};
use rayon::prelude::*;
use xent::{Backend, CrossEntropy, LOSS_MAX_ULP, Logits, RowOutputs, Softmax, reference};

/// Printed apart, as few classes leave errors nothing to average over.
const MANY_CLASSES: usize = 32;

struct Case {
    what: String,
    row: Vec<f32>,
    target: usize,
    /// Of the oracle.
    loss: f64,
    logsumexp: f64,
}

impl Case {
    fn new(what: String, row: Vec<f32>, target: usize) -> Self {
        let reference::Row { loss, logsumexp, .. } = reference::row(&row, target);
        Case { what, row, target, loss, logsumexp }
    }
}

/// Rows of every kind, in cheap sizes many and in expensive ones few.
fn cases() -> Vec<Case> {
    let small = (1..=70).map(|vocab| (vocab, 4));
    let large = [(100, 16), (1000, 8), (1024, 6), (1025, 6), (5000, 2)];
    let long = [32_767, 32_768, 32_769, 50_257, 65_539].map(|vocab| (vocab, 1));
    let sizes: Vec<_> = small.chain(large).chain(long).collect();
    let cases = sizes.par_iter().flat_map(|&(vocab, repeat)| {
        Kind::ORDINARY.par_iter().flat_map_iter(move |&kind| {
            (0..repeat).map(move |i| {
                let mut rng = Rng::new((kind as u64) << 32 | (vocab as u64) << 8 | i);
                let row = kind.row(&mut rng, vocab);
                let target = any_target(&mut rng, &row);
                Case::new(format!("{kind:?} of {vocab}, seed {i}, target {target}"), row, target)
            })
        })
    });
    cases.collect()
}

/// The target is 0.1 to 110 above all others: losses from 8 down to nothing.
fn confident_cases() -> Vec<Case> {
    let sizes = [2, 3, 17, 31, 32, 33, 64, 100, 1000, 1025, 5000];
    let cases = sizes.par_iter().flat_map_iter(|&vocab| {
        (1..=1100).filter(move |gap| vocab < 100 || gap % 16 == 0).map(move |tenths| {
            let mut rng = Rng::new(tenths << 16 | vocab as u64);
            let offset = rng.pick(&[0.0, 0.0, 10.0, -300.0]);
            let noise = rng.pick(&[0.0, 0.3, 2.0]);
            let others = (0..vocab).map(|_| offset + noise * rng.normal());
            let mut row: Vec<f32> = others.collect();
            let target = rng.below(vocab);
            row[target] = row[argmax(&row)] + tenths as f32 * 0.1;
            Case::new(format!("gap {tenths}/10 in {vocab}"), row, target)
        })
    });
    cases.collect()
}

/// The largest errors, and where they were.
#[derive(Default)]
struct Worst {
    distance: u32,
    ulp: f64,
    at: String,
}

impl Worst {
    fn add(&mut self, got: f32, exact: f64, at: impl FnOnce() -> String) {
        let ulp = reference::ulp_error(got, exact);
        let distance = distance(got, exact as f32);
        if (distance, ulp) > (self.distance, self.ulp) {
            self.at = format!("{}: {got:e} for {exact:e}", at());
        }
        self.distance = self.distance.max(distance);
        self.ulp = self.ulp.max(ulp);
    }

    fn or(self, other: Worst) -> Worst {
        let (distance, ulp) = (self.distance.max(other.distance), self.ulp.max(other.ulp));
        let worse = (other.distance, other.ulp) > (self.distance, self.ulp);
        Worst { distance, ulp, at: if worse { other.at } else { self.at } }
    }

    fn print(&self, what: &str) {
        let Worst { distance, ulp, at } = self;
        println!("{what}: {distance} apart, {ulp:.4} ULP; {at}");
    }
}

fn row_loss(backend: Backend, row: &[f32], target: usize) -> f32 {
    let mut loss = [0.0];
    let logits = Logits::new(row, 1, row.len()).unwrap();
    CrossEntropy::new().backend(backend).forward_into(logits, &[target], &mut loss).unwrap();
    loss[0]
}

/// The worst loss of rows of many and of few classes.
fn worst_losses(cases: &[Case], loss: impl Fn(&[f32], usize) -> f32 + Sync) -> [Worst; 2] {
    [true, false].map(|many| {
        let chosen = cases.par_iter().filter(|case| (case.row.len() >= MANY_CLASSES) == many);
        let worst = chosen.map(|case| {
            let mut worst = Worst::default();
            worst.add(loss(&case.row, case.target), case.loss, || case.what.clone());
            worst
        });
        worst.reduce(Worst::default, Worst::or)
    })
}

fn check_losses(cases: &[Case]) {
    let [many, few] = worst_losses(cases, reference::two_pass_f32);
    many.print("two passes in f32, 32 classes or more");
    few.print("two passes in f32, fewer classes");
    assert!(many.distance > 1000, "the plain code is as good: the rows are too easy");
    for_each_backend(|backend| {
        let [many, few] = worst_losses(cases, |row, target| row_loss(backend, row, target));
        many.print(&format!("{backend}, 32 classes or more"));
        few.print(&format!("{backend}, fewer classes"));
        assert!(many.distance <= LOSS_MAX_ULP, "{}", many.at);
        assert!(few.distance <= LOSS_MAX_ULP, "{}", few.at);
    });
}

#[test]
fn losses_of_all_kinds_of_rows() {
    let cases = cases();
    let finite = cases.iter().filter(|case| case.loss.is_finite() && case.loss > 0.0).count();
    println!("{} rows, {finite} with a loss that has digits", cases.len());
    assert!(cases.len() > 5000 && finite > cases.len() / 2);
    check_losses(&cases);
}

#[test]
fn losses_of_confident_rows() {
    let cases = confident_cases();
    let tiny = cases.iter().filter(|case| case.loss > 0.0 && case.loss < 1e-30).count();
    println!("{} rows, {tiny} with a loss below 1e-30", cases.len());
    assert!(tiny > 1000);
    check_losses(&cases);
}

/// The error of a logsumexp in units of the last place of the larger of its magnitude and 1.
fn lse_error(got: f32, exact: f64) -> f64 {
    if distance(got, exact as f32) == 0 && !exact.is_finite() {
        return 0.0;
    }
    let magnitude = exact.abs().max(1.0);
    let unit = f64::from(f32::EPSILON) * 2f64.powi(magnitude.log2().floor() as i32);
    (f64::from(got) - exact).abs() / unit
}

#[test]
fn logsumexp_of_all_kinds_of_rows() {
    let cases = cases();
    for_each_backend(|backend| {
        let worst = cases.par_iter().map(|case| {
            let (mut alone, mut with_loss) = ([0.0], [0.0]);
            let logits = Logits::new(&case.row, 1, case.row.len()).unwrap();
            Softmax::new().backend(backend).logsumexp(logits, &mut alone).unwrap();
            let outputs = RowOutputs::new().logsumexp(&mut with_loss);
            let ce = CrossEntropy::new().backend(backend);
            ce.evaluate(logits, &[case.target], outputs).unwrap();
            [alone, with_loss].map(|[got]| {
                let error = lse_error(got, case.logsumexp);
                let at = || format!("{}: {got:e} for {:e}", case.what, case.logsumexp);
                assert!(error <= 1.0, "{backend}: {error} ULP, {}", at());
                error
            })
        });
        let [a, b] = worst.reduce(|| [0.0; 2], |a, b| [a[0].max(b[0]), a[1].max(b[1])]);
        println!("{backend}: logsumexp, worst {a:.4} ULP; of the forward pass {b:.4} ULP");
    });
}

#[test]
fn softmax_and_log_softmax_of_all_kinds_of_rows() {
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.row.len() < 30_000).collect();
    for_each_backend(|backend| {
        let softmax = Softmax::new().backend(backend);
        let worst = cases.par_iter().map(|case| {
            let (mut p, mut log_p) = (Worst::default(), Worst::default());
            let logits = Logits::new(&case.row, 1, case.row.len()).unwrap();
            let mut got = vec![0.0; case.row.len()];
            let at = |j| move || format!("{}, class {j}", case.what);
            softmax.softmax(logits, &mut got).unwrap();
            for (j, (&got, exact)) in got.iter().zip(reference::softmax(&case.row)).enumerate() {
                // What is below the normal numbers may be cut off.
                let cut = got == 0.0 && exact < f64::from(f32::MIN_POSITIVE);
                p.add(got, if cut { 0.0 } else { exact }, at(j));
            }
            softmax.log_softmax(logits, &mut got).unwrap();
            let exact = reference::log_softmax(&case.row);
            for (j, (&got, exact)) in got.iter().zip(exact).enumerate() {
                log_p.add(got, exact, at(j));
            }
            (p, log_p)
        });
        let none = || (Worst::default(), Worst::default());
        let (p, log_p) = worst.reduce(none, |a, b| (a.0.or(b.0), a.1.or(b.1)));
        p.print(&format!("{backend}, softmax"));
        log_p.print(&format!("{backend}, log-softmax"));
        assert!(p.distance <= 2, "softmax: {}", p.at);
        assert!(log_p.distance <= 2, "log-softmax: {}", log_p.at);
    });
}

/// One logit above many equal ones: errors of equal elements do not average out, and they are small
/// beside the reference.
#[test]
fn one_large_logit_over_many_equal_ones() {
    for_each_backend(|backend| {
        let sizes = [100, 1000, 8192, 32_768].into_par_iter();
        let worst = sizes.flat_map(|vocab| {
            (30..160).into_par_iter().map(move |tenths| {
                let mut worst = Worst::default();
                for values in 1..=3 {
                    let depth = tenths as f32 * 0.1003;
                    let equal = |i: usize| -depth - (i % values) as f32 * 0.37;
                    let mut row: Vec<f32> = (0..vocab).map(equal).collect();
                    row[0] = 0.0;
                    row[vocab - 1] = 22.0 + depth * 0.001;
                    let exact = reference::row(&row, vocab - 1).loss;
                    let at = || format!("{values} values {depth} below, of {vocab}");
                    worst.add(row_loss(backend, &row, vocab - 1), exact, at);
                }
                worst
            })
        });
        let worst = worst.reduce(Worst::default, Worst::or);
        worst.print(&format!("{backend}, one above many"));
        assert!(worst.distance <= LOSS_MAX_ULP, "{}", worst.at);
    });
}
