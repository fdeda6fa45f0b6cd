//! Means, standard errors and correlations against exact arithmetic: of numbers that differ in their last bits only, of
//! huge and tiny ones, of equal ones, in one piece and in batches.

use common::{Rng, for_each_backend, property};
use dashu_float::FBig;
use dashu_float::round::mode::HalfEven;
use proptest::prelude::*;
use xent::{
    AtTargets, Compare, CompareOutputs, CrossEntropy, Element, Error, Estimate, Evaluation, Logits,
    RowOutputs,
};

type Big = FBig<HalfEven, 2>;

/// `x` with room for everything that is made of numbers from 2^-1074 to 2^1024 and their squares.
fn big(x: f64) -> Big {
    Big::try_from(x).unwrap().with_precision(5000).value()
}

fn rounded(x: &Big) -> f64 {
    x.to_f64().value()
}

fn root(x: &Big) -> Big {
    let x = x.clone().with_precision(400).value();
    if rounded(&x) == 0.0 && x == big(0.0) { x } else { x.sqrt() }
}

fn mean(values: &[f64]) -> Big {
    values.iter().fold(big(0.0), |sum, &x| sum + big(x)) / big(values.len() as f64)
}

/// `sum((a - mean a) (b - mean b))`
fn products(a: &[f64], b: &[f64]) -> Big {
    let (of_a, of_b) = (mean(a), mean(b));
    let terms = a.iter().zip(b).map(|(&a, &b)| (big(a) - &of_a) * (big(b) - &of_b));
    terms.fold(big(0.0), |sum, x| sum + x)
}

fn stderr(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if n < 2.0 {
        f64::NAN
    } else {
        rounded(&root(&(products(values, values) / big(n * (n - 1.0)))))
    }
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let squares = products(a, a) * products(b, b);
    if squares == big(0.0) { f64::NAN } else { rounded(&(products(a, b) / root(&squares))) }
}

/// The right number or one next to it, but for what may be left of `lost`.
#[track_caller]
fn close(what: &str, got: f64, want: f64, lost: f64) {
    let unit = want.abs().next_up() - want.abs();
    let close = (got - want).abs() <= unit + lost || got.is_nan() && want.is_nan();
    assert!(close, "{what}: {got:e} instead of {want:e}");
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

/// As many numbers, all of one kind.
fn numbers(kind: usize, n: usize, rng: &mut Rng) -> Vec<f64> {
    let base = (1.0 + rng.unit()) * rng.pick(&[1.0, -3.0, 1e3, 1e-5, 1e300, -1e-300, 7e307]);
    let mut steps = |x: f64, most: usize| {
        let steps = rng.below(most) as u64;
        f64::from_bits(x.to_bits() + steps)
    };
    match kind {
        // Steps of the last place.
        0 => (0..n).map(|_| steps(base, 5)).collect(),
        1 => (0..n).map(|_| steps(base, 1 << 20)).collect(),
        2 => vec![base; n],
        3 => (0..n).map(|_| base * rng.unit()).collect(),
        4 => (0..n).map(|_| (base * f64::from(rng.normal())).clamp(f64::MIN, f64::MAX)).collect(),
        5 => (0..n).map(|_| f64::from_bits(rng.bits() >> 12)).collect(),
        6 => {
            let finite = |x: f64| if x.is_finite() { x } else { 1.0 };
            (0..n).map(|_| finite(f64::from_bits(rng.bits()))).collect()
        }
        _ => {
            let ends = [f64::MAX, f64::MAX.next_down(), 1e308, f64::MIN_POSITIVE, 5e-324, 0.0];
            (0..n).map(|_| rng.pick(&ends)).collect()
        }
    }
}

const KINDS: usize = 8;

/// Rows of two classes, the first of which has these losses, exactly: they are large enough.
fn rows(losses: &[f64]) -> Vec<f64> {
    losses.iter().flat_map(|&loss| [0.0, loss]).collect()
}

fn evaluate(ce: &CrossEntropy<'_>, losses: &[f64]) -> Evaluation {
    let (x, targets) = (rows(losses), vec![0i64; losses.len()]);
    let logits = Logits::new(&x, losses.len(), 2).unwrap();
    ce.evaluate(logits, &targets, RowOutputs::new()).unwrap()
}

fn compare<T: Element>(base: &[T], other: &[T], target: i64) -> Result<AtTargets, Error> {
    let rows = base.len() / 2;
    let targets = vec![target; rows];
    let (base, other) = (Logits::new(base, rows, 2)?, Logits::new(other, rows, 2)?);
    let all = Compare::new().targets(&targets).evaluate(base, other, CompareOutputs::new())?;
    Ok(all.at_targets().unwrap().clone())
}

fn close_correlation(at: &AtTargets) {
    let (base, other) = (at.base_logprobs(), at.other_logprobs());
    let (got, want) = (at.correlation(), correlation(base, other));
    let close = (got - want).abs() <= f64::EPSILON || got.is_nan() && want.is_nan();
    assert!(
        close && (got.is_nan() || got.abs() <= 1.0),
        "{got:e} instead of {want:e}: {base:?} {other:?}"
    );
}

proptest! {
    #![proptest_config(property(300))]

    #[test]
    fn estimates(seed: u64, kind in 0..KINDS, n in 1..50_usize) {
        let values = numbers(kind, n, &mut Rng::new(seed));
        let Estimate { value, stderr: error } = Estimate::of(&values);
        close("mean", value, rounded(&mean(&values)), largest(&values) * 2f64.powi(-90));
        close("stderr", error, stderr(&values), 0.0);
        if kind == 2 {
            prop_assert_eq!(value, values[0]);
            prop_assert!(error == 0.0 || n == 1);
        }
    }

    /// In one call, in batches, and in batches of batches.
    #[test]
    fn evaluations(seed: u64, kind in 0..KINDS, n in 1..40_usize) {
        let mut rng = Rng::new(seed);
        // What is far above the other class is the loss.
        let of_kind = numbers(kind, n, &mut rng).into_iter();
        let losses: Vec<f64> = of_kind.map(|x| x.abs()).map(|x| if x < 50.0 { x + 50.0 } else { x }).collect();
        let ce = CrossEntropy::new();
        let (mean, stderr) = (rounded(&mean(&losses)), stderr(&losses));
        let check = |what: &str, e: &Evaluation| {
            close(what, e.mean(), mean, 0.0);
            close(what, e.stderr(), stderr, 0.0);
            assert_eq!(e.count(), losses.len() as u64);
        };
        check("at once", &evaluate(&ce, &losses));
        let mut parts = Vec::new();
        let mut rest = &losses[..];
        while !rest.is_empty() {
            let part;
            (part, rest) = rest.split_at(1 + rng.below(rest.len()));
            parts.push(evaluate(&ce, part));
        }
        let none = evaluate(&ce, &[]);
        check("in order", &parts.iter().fold(none, |all, part| all.merge(part)));
        while parts.len() > 1 {
            let next = parts.remove(1 + rng.below(parts.len() - 1));
            parts[0] = parts[0].merge(&next).merge(&none);
        }
        check("in any order", &parts[0]);
    }

    #[test]
    fn correlations(seed: u64, kind in 0..KINDS, n in 1..30_usize, relation in 0..6_usize) {
        let mut rng = Rng::new(seed);
        let of_kind = numbers(kind, n, &mut rng).into_iter();
        let base: Vec<f64> = of_kind.map(|x| x.abs()).map(|x| if x < 50.0 { x + 50.0 } else { x }).collect();
        let other: Vec<f64> = match relation {
            0 => base.clone(),
            1 => base.iter().map(|x| f64::from_bits(x.to_bits() + rng.below(3) as u64).min(f64::MAX)).collect(),
            2 => base.iter().map(|x| 0.5 * x + 50.0).collect(),
            3 => base.iter().map(|x| 50.0 + x.recip()).collect(),
            4 => vec![60.0; n],
            _ => base.iter().map(|_| 50.0 + rng.unit()).collect(),
        };
        let at = compare(&rows(&base), &rows(&other), 0).unwrap();
        close_correlation(&at);
        if relation == 0 {
            let constant = base.iter().all(|&x| x == base[0]);
            let r = at.correlation();
            prop_assert!(r == 1.0 || constant && r.is_nan(), "{}", r);
        }
    }
}

/// Numbers that were wrong once: deviations of last places from a mean that was rounded.
#[test]
fn what_differs_in_last_places() {
    let close = [0.0, -3.25, 0.0, -3.2500000000000004, 0.0, -3.250000000000001];
    let at = compare(&close, &close, 1).unwrap();
    assert_eq!(at.correlation(), 1.0);
    let at = compare(&[0.0, -1000.0, 0.0, -1001.0], &[0.0, -1000.0, 0.0, -1000.0000000000001], 1);
    assert_eq!(at.unwrap().correlation(), 1.0);
    let at = compare(&[0.0, -1000.0, 0.0, -1001.0], &[0.0, -1000.0000000000001, 0.0, -1000.0], 1);
    assert_eq!(at.unwrap().correlation(), -1.0);
    let single = [4.0_f32, -1.5, 3.0, -1.25];
    assert_eq!(compare(&single, &single, 0).unwrap().correlation(), 1.0);
    let two = Estimate::of(&[1.0, 1.0000000000000002]);
    assert_eq!(two.stderr, 1.1102230246251565e-16);

    // Differences of log-probabilities too, which have more digits than an `f64`.
    let (base, other) = ([50.0, 51.0, 52.0], [1e17, 1e17 + 32.0, 1e17]);
    let at = compare(&rows(&base), &rows(&other), 0).unwrap();
    // 1e17 - 50, 1e17 - 19, 1e17 - 52: 32 1/3 from each other.
    let deviations = [-50.0, -19.0, -52.0].map(|x: f64| x + 121.0 / 3.0);
    let squares: f64 = deviations.iter().map(|d| d * d).sum();
    let ratio = at.log_ratio();
    assert_eq!(ratio.value, 1e17 - 48.0);
    assert!((ratio.stderr / (squares / 6.0).sqrt() - 1.0).abs() < 1e-15, "{ratio:?}");
}

#[test]
fn equal_values_have_no_spread() {
    for x in [0.1, -3.3, 1e308, -1e-308, 5e-324, 0.0] {
        for n in [2, 3, 7, 1000] {
            assert_eq!(
                Estimate::of(&vec![x; n]),
                Estimate { value: x, stderr: 0.0 },
                "{n} of {x:e}"
            );
        }
    }
    // In batches too.
    let ce = CrossEntropy::new();
    let all = [3, 1, 7].map(|n| evaluate(&ce, &vec![100.1; n]));
    let all = all[0].merge(&all[1]).merge(&all[2]);
    assert_eq!((all.mean(), all.stderr(), all.count()), (100.1, 0.0, 11));
    // And percentiles between them are these.
    let (p, q) = ([0.3_f32, 0.0].repeat(7), [0.0_f32, 0.1].repeat(7));
    let (p, q) = (Logits::new(&p, 7, 2).unwrap(), Logits::new(&q, 7, 2).unwrap());
    let kl = Compare::new().evaluate(p, q, CompareOutputs::new()).unwrap();
    assert!(kl.kl_percentiles([0.01, 0.3, 0.7, 0.99]).iter().all(|&x| x == kl.kl()[0]));
}

/// Squares of these are not numbers.
#[test]
fn huge_and_tiny_values() {
    let two = |a: f64, b: f64| Estimate::of(&[a, b]);
    for x in [2f64.powi(1000), 2f64.powi(-1000), 1.5 * 2f64.powi(600)] {
        assert_eq!(two(x, 3.0 * x), Estimate { value: 2.0 * x, stderr: x });
    }
    assert_eq!(two(f64::MAX, f64::MAX), Estimate { value: f64::MAX, stderr: 0.0 });
    assert_eq!(two(f64::MAX, f64::MIN), Estimate { value: 0.0, stderr: f64::MAX });
    assert_eq!(two(5e-324, 15e-324), Estimate { value: 10e-324, stderr: 5e-324 });
    let ce = CrossEntropy::new();
    let x = 2f64.powi(1000);
    let e = evaluate(&ce, &[x]).merge(&evaluate(&ce, &[3.0 * x]));
    assert_eq!((e.mean(), e.stderr()), (2.0 * x, x));
    let e = evaluate(&ce, &[1e308; 3]);
    assert_eq!((e.mean(), e.stderr(), e.sum()), (1e308, 0.0, f64::INFINITY));
    // One is beside the other nothing.
    let e = evaluate(&ce, &[1e300]).merge(&evaluate(&ce, &[50.0]));
    assert_eq!((e.mean(), e.stderr()), (5e299, 5e299));

    // Infinities and NaN are what they are in a sum.
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for (values, mean) in [
        (&[1.0, inf, 2.0][..], inf),
        (&[-inf, 1e308], -inf),
        (&[inf, 1.0, -inf], nan),
        (&[1.0, nan], nan),
        (&[inf], inf),
    ] {
        let Estimate { value, stderr } = Estimate::of(values);
        assert!(
            (value == mean || value.is_nan() && mean.is_nan()) && stderr.is_nan(),
            "{values:?}"
        );
    }
    let masked = evaluate(&ce, &[inf]).merge(&evaluate(&ce, &[60.0, 70.0]));
    assert!(masked.mean().is_nan(), "+inf among the logits");
    let x = [f64::NEG_INFINITY, 0.0, 0.0, 60.0];
    let masked =
        ce.evaluate(Logits::new(&x, 2, 2).unwrap(), &[0i64, 0], RowOutputs::new()).unwrap();
    let merged = masked.merge(&evaluate(&ce, &[60.0, 70.0]));
    for e in [masked, merged, evaluate(&ce, &[1e300]).merge(&merged)] {
        assert_eq!(e.mean(), inf);
        assert!(e.stderr().is_nan());
    }
    let infinite = [f64::NEG_INFINITY, 0.0, 0.0, 60.0, 0.0, 70.0];
    assert!(compare(&infinite, &rows(&[50.0, 60.0, 70.0]), 0).unwrap().correlation().is_nan());

    // Probabilities of 1e-300, whose squares are none.
    let v = [690.0, 690.0, 690.0];
    let at = compare(&rows(&v), &rows(&v.map(|v| v + 1.0)), 0).unwrap();
    let rms = at.rms_delta_p();
    assert_eq!((rms.value, rms.stderr), (-at.delta_p()[0], 0.0));
    assert!(rms.value > 1e-301);
    let at = compare(&rows(&[690.0, 690.0]), &rows(&[690.0, 692.0]), 0).unwrap();
    let (rms, d) = (at.rms_delta_p(), -at.delta_p()[1]);
    // Squares 0 and d^2: half of it, with as large an error.
    assert!((rms.value / (d / 2f64.sqrt()) - 1.0).abs() < 1e-15);
    assert!((rms.stderr / (0.5 * d / 2f64.sqrt()) - 1.0).abs() < 1e-15);
}

#[test]
fn a_million_rows() {
    let unit = 1000f64.next_up() - 1000.0;
    let n = 1_000_002;
    let values: Vec<f64> = (0..n).map(|i| 1000.0 + unit * f64::from(i % 3)).collect();
    let Estimate { value, stderr } = Estimate::of(&values);
    assert_eq!(value, 1000.0 + unit);
    close(
        "stderr",
        stderr,
        unit * (2.0 / 3.0 / f64::from(n - 1)).sqrt(),
        2.0 * f64::EPSILON * stderr,
    );
    assert_eq!(Estimate::of(&vec![0.1; 1_000_000]), Estimate { value: 0.1, stderr: 0.0 });
}

/// Perplexities that are close have a difference with digits.
#[test]
fn differences_of_perplexities() {
    let base = [50.0, 50.5, 52.0];
    for apart in [1e-12, 1e-6, 0.1, 3.0, -1e-12, -0.1] {
        let other = [base[0] + apart, base[1] + 0.5 * apart, base[2]];
        let at = compare(&rows(&base), &rows(&other), 0).unwrap();
        let differences = [other[0] - base[0], other[1] - base[1], 0.0];
        let mean = |x: &[f64; 3]| x.iter().sum::<f64>() / 3.0;
        let (ppl, ratio) = (mean(&base).exp(), mean(&differences));
        let got = at.difference();
        assert!((got.value / (ppl * ratio.exp_m1()) - 1.0).abs() < 1e-13, "{apart}: {got:?}");
        let linear = [0, 1, 2].map(|i| ppl * differences[i] + got.value * other[i]);
        let want = Estimate::of(&linear).stderr;
        assert!((got.stderr / want - 1.0).abs() < 1e-9, "{apart}: {got:?} {want:e}");
    }
    // Beyond the range of `f64`.
    let at = compare(&rows(&[800.0, 900.0]), &rows(&[801.0, 900.0]), 0).unwrap();
    assert_eq!(at.difference().value, f64::INFINITY);
    let at = compare(&rows(&[800.0, 900.0]), &rows(&[800.0, 900.0]), 0).unwrap();
    assert!(at.difference().value.is_nan());
}

/// Losses of all backends have one mean.
#[test]
fn evaluations_of_f32() {
    let (rows, vocab) = (37, 50);
    let mut rng = Rng::new(5);
    let x: Vec<f32> = (0..rows * vocab).map(|_| 3.0 * rng.normal()).collect();
    let targets: Vec<i64> = (0..rows).map(|_| rng.below(vocab) as i64).collect();
    for_each_backend(|backend| {
        let ce = CrossEntropy::new().backend(backend);
        let of = |x: &[f32], targets: &[i64]| {
            let logits = Logits::new(x, targets.len(), vocab).unwrap();
            ce.evaluate(logits, targets, RowOutputs::new()).unwrap()
        };
        let all = of(&x, &targets);
        let each = targets.iter().zip(x.chunks(vocab)).map(|(&target, x)| of(x, &[target]));
        let losses: Vec<f64> = each.clone().map(|e| e.mean()).collect();
        let merged = each.reduce(|a, b| a.merge(&b)).unwrap();
        for e in [all, merged] {
            close("mean", e.mean(), rounded(&mean(&losses)), 0.0);
            close("stderr", e.stderr(), stderr(&losses), 0.0);
        }
    });
}
