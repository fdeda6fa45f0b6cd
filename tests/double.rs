//! Rows of `f64`: the exponential, losses, softmax and gradients against the oracle, the oracle against
//! arbitrary precision, the same bits from every backend.

use common::{Kind, Rng, for_each_backend, key64, property};
use dashu_float::FBig;
use dashu_float::round::mode::HalfEven;
use proptest::prelude::*;
use rayon::prelude::*;
use std::sync::Mutex;
use xent::internals::{self, EXP_F64_MAX_ULP, Place, ScaledExp, Subtract};
use xent::reference::{self, Precise, ulp_error_f64};
use xent::{Backend, reference::row_f64};
use xent::{CrossEntropy, LogSumExp, Logits, LogitsMut, RowOutputs, Softmax};

type Big = FBig<HalfEven, 2>;

/// `x` with room for 200 bits.
fn view(row: &[f64]) -> Logits<'_, f64> {
    Logits::new(row, 1, row.len()).unwrap()
}

fn view_mut(row: &mut [f64]) -> LogitsMut<'_, f64> {
    let vocab = row.len();
    LogitsMut::new(row, 1, vocab).unwrap()
}

fn row_loss(backend: Backend, row: &[f64], target: usize) -> f64 {
    let mut loss = [-1.0];
    CrossEntropy::new().backend(backend).forward_into(view(row), &[target], &mut loss).unwrap();
    loss[0]
}

/// The logsumexp as two numbers, on the way that a loss takes.
fn row_lse(backend: Backend, row: &[f64], target: usize) -> (f64, f64) {
    let mut stats = [LogSumExp::default()];
    let outputs = RowOutputs::new().saved(&mut stats);
    CrossEntropy::new().backend(backend).evaluate(view(row), &[target], outputs).unwrap();
    (stats[0].hi, stats[0].lo)
}

fn row_argmax(backend: Backend, row: &[f64]) -> usize {
    let mut argmax = [-1];
    let outputs = RowOutputs::new().argmax(&mut argmax);
    CrossEntropy::new().backend(backend).evaluate(view(row), &[0usize], outputs).unwrap();
    argmax[0] as usize
}

fn logsumexp(backend: Backend, row: &[f64]) -> f64 {
    let mut lse = [-1.0];
    Softmax::new().backend(backend).logsumexp(view(row), &mut lse).unwrap();
    lse[0]
}

fn softmax(backend: Backend, row: &mut [f64]) {
    Softmax::new().backend(backend).softmax_in_place(view_mut(row)).unwrap();
}

fn log_softmax(backend: Backend, row: &mut [f64]) {
    Softmax::new().backend(backend).log_softmax_in_place(view_mut(row)).unwrap();
}

fn big(x: f64) -> Big {
    Big::try_from(x).unwrap().with_precision(200).value()
}

fn precise(x: &Big) -> Precise {
    let hi = x.to_f64().value();
    Precise { hi, lo: (x.clone() - big(hi)).to_f64().value() }
}

/// `|a - b|`
fn apart(a: Precise, b: Precise) -> f64 {
    ((a.hi - b.hi) + (a.lo - b.lo)).abs()
}

/// The largest of many errors, and where it was.
struct Worst(Mutex<(f64, String)>);

impl Default for Worst {
    fn default() -> Self {
        Worst(Mutex::new((f64::NEG_INFINITY, String::new())))
    }
}

impl Worst {
    fn add(&self, error: f64, at: impl FnOnce() -> String) {
        let mut worst = self.0.lock().unwrap();
        if error > worst.0 || error.is_nan() {
            *worst = (error, at());
        }
    }

    #[track_caller]
    fn check(self, what: &str, limit: f64) {
        let (worst, at) = self.0.into_inner().unwrap();
        println!("{what}: {worst:.4}; {at}");
        assert!(worst <= limit, "{what}: {worst} is more than {limit}; {at}");
    }
}

/// A row of that kind with all the digits and the range of `f64`.
fn row_of(kind: Kind, rng: &mut Rng, vocab: usize) -> Vec<f64> {
    let mut row: Vec<f64> = kind.row(rng, vocab).into_iter().map(f64::from).collect();
    let finite = |bits: u64| Some(f64::from_bits(bits)).filter(|x| x.is_finite()).unwrap_or(1.0);
    match kind {
        Kind::AllEqual => row.fill(rng.pick(&[0.1, -55.5, 1e4, 1e6, 1e30, -1e30, 1e300, f64::MIN])),
        Kind::Offset => {
            let offset = rng.pick(&[1e4, -1e4, 726_817.0, 1e6, -1e6, 1e15, 1e30, -1e300]);
            row.iter_mut().for_each(|x| *x = f64::from(rng.normal()) + offset);
        }
        Kind::Denormals => row.iter_mut().for_each(|x| {
            *x = f64::from_bits(rng.bits() & !(0x7ff << 52));
        }),
        Kind::Extremes => {
            let values = [f64::MAX, f64::MIN, f64::MAX / 2.0, 0.0, 1e300, -1e300, 5e-324, 700.0];
            let values = &values[rng.below(3)..];
            row.iter_mut().for_each(|x| *x = rng.pick(values));
        }
        Kind::RandomBits => row.iter_mut().for_each(|x| *x = finite(rng.bits())),
        Kind::Deep => row.iter_mut().for_each(|x| *x *= 10.0 * rng.unit()),
        Kind::OneHuge if vocab > 0 => {
            row[rng.below(vocab)] += 695.0 * rng.unit();
        }
        Kind::Ties | Kind::Zeros => {}
        // NaN and infinities stay what they are.
        _ => row.iter_mut().for_each(|x| *x += 1e-8 * *x * rng.unit()),
    }
    row
}

fn target_of(rng: &mut Rng, row: &[f64]) -> usize {
    if rng.below(2) == 0 { argmax(row) } else { rng.below(row.len()) }
}

fn argmax(row: &[f64]) -> usize {
    let nan = row.iter().position(|x| x.is_nan());
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    nan.unwrap_or_else(|| row.iter().position(|&x| x == max).unwrap_or(0))
}

struct Case {
    what: String,
    row: Vec<f64>,
    target: usize,
    exact: reference::RowF64,
}

impl Case {
    fn new(what: String, row: Vec<f64>, target: usize) -> Case {
        let exact = row_f64(&row, target);
        Case { what, row, target, exact }
    }
}

/// Rows of every kind, in cheap sizes many and in expensive ones few.
fn cases(kinds: &[Kind]) -> Vec<Case> {
    let small = (1..=40).map(|vocab| (vocab, 6));
    let large = [(100, 6), (1023, 2), (1024, 2), (1025, 2), (5000, 1), (32_769, 1), (70_001, 1)];
    let sizes: Vec<(usize, u64)> = small.chain(large).collect();
    let of = |(vocab, i, kind): (usize, u64, Kind)| {
        let mut rng = Rng::new((kind as u64) << 32 | (vocab as u64) << 8 | i);
        let row = row_of(kind, &mut rng, vocab);
        let target = target_of(&mut rng, &row);
        Case::new(format!("{kind:?} of {vocab}, seed {i}, target {target}"), row, target)
    };
    let all = sizes.iter().flat_map(|&(vocab, n)| (0..n).map(move |i| (vocab, i)));
    let all: Vec<_> = all.flat_map(|(v, i)| kinds.iter().map(move |&k| (v, i, k))).collect();
    all.into_par_iter().map(of).collect()
}

/// The target is up to 690 above all others: losses down to 1e-300.
fn confident_cases() -> Vec<Case> {
    let sizes = [2, 3, 8, 9, 17, 100, 1025];
    let cases = sizes.par_iter().flat_map_iter(|&vocab| {
        (1..=690).filter(move |gap| vocab < 20 || gap % 10 == 0).map(move |gap| {
            let mut rng = Rng::new(gap << 16 | vocab as u64);
            let offset = rng.pick(&[0.0, 0.0, 10.0, -300.0, 1e6, -1e30]);
            let noise = rng.pick(&[0.0, 0.3, 2.0]);
            let others = (0..vocab).map(|_| offset + noise * f64::from(rng.normal()));
            let mut row: Vec<f64> = others.collect();
            let target = rng.below(vocab);
            row[target] = row[argmax(&row)] + gap as f64 * rng.unit();
            Case::new(format!("gap {gap} in {vocab}"), row, target)
        })
    });
    cases.collect()
}

#[test]
fn the_oracle_agrees_with_arbitrary_precision() {
    let (loss, lse) = (Worst::default(), Worst::default());
    let kinds = [Kind::Gaussian, Kind::OneHuge, Kind::Ties, Kind::Deep, Kind::AllEqual];
    (0..3000_u64).into_par_iter().for_each(|seed| {
        let mut rng = Rng::new(seed);
        let vocab = 1 + rng.below(9);
        let mut row = row_of(rng.pick(&kinds), &mut rng, vocab);
        // Where exponentials are as large as `e^(1e6)`, exactness is a matter of subtracting first.
        row.iter_mut().for_each(|x| *x = x.clamp(-1e6, 1e6));
        let target = target_of(&mut rng, &row);
        let sum = |from: f64, all: bool| {
            let chosen = row.iter().enumerate().filter(|&(j, _)| all || j != target);
            chosen.fold(big(0.0), |sum, (_, &x)| sum + (big(x) - big(from)).exp())
        };
        let max = row[argmax(&row)];
        let want_lse = big(max) + sum(max, true).ln();
        let want_loss = if row[target] == max {
            sum(max, false).ln_1p()
        } else {
            big(max) - big(row[target]) + sum(max, true).ln()
        };
        let got = row_f64(&row, target);
        let want = precise(&want_loss);
        let error = apart(got.loss, want) / want.hi.max(f64::MIN_POSITIVE);
        // Near the end of the range there is no room for the second part.
        if want.hi > 1e-290 {
            loss.add(error.log2(), || format!("seed {seed}: {got:?}, {want:?}"));
        }
        let want = precise(&want_lse);
        let error = apart(got.logsumexp, want) / want.hi.abs().max(1.0);
        lse.add(error.log2(), || format!("seed {seed}: {got:?}, {want:?}"));
    });
    loss.check("loss, log2 of the relative error", -64.0);
    lse.check("logsumexp, log2 of the error", -66.0);
}

#[test]
fn losses_of_all_kinds_of_rows() {
    let cases = cases(Kind::ORDINARY);
    let finite = |case: &&Case| case.exact.loss.hi.is_finite() && case.exact.loss.hi > 0.0;
    println!("{} rows, {} with digits", cases.len(), cases.iter().filter(finite).count());
    check_losses(&cases);
}

#[test]
fn losses_of_confident_rows() {
    let cases = confident_cases();
    let tiny = cases.iter().filter(|case| (1e-300..1e-200).contains(&case.exact.loss.hi)).count();
    println!("{} rows, {tiny} with a loss between 1e-300 and 1e-200", cases.len());
    assert!(tiny > 100);
    check_losses(&cases);
}

fn check_losses(cases: &[Case]) {
    for_each_backend(|backend| {
        let (loss, lse, alone) = (Worst::default(), Worst::default(), Worst::default());
        cases.par_iter().for_each(|Case { what, row, target, exact }| {
            let got = row_loss(backend, row, *target);
            let at = || format!("{what}: {got:e} for {:e}", exact.loss.hi);
            loss.add(ulp_error_f64(got, exact.loss), at);
            // What counts is the error of e^(x - lse), in units of 2^-53.
            let (hi, lo) = row_lse(backend, row, *target);
            let want = exact.logsumexp;
            if want.hi.is_finite() {
                let at = || format!("{what}: {hi:e} + {lo:e} for {want:?}");
                lse.add(apart(Precise { hi, lo }, want) * 2f64.powi(53), at);
            } else {
                assert_eq!(key64(hi), key64(want.hi), "{what}");
            }
            let got = logsumexp(backend, row);
            // A logsumexp near 0 is the difference of larger numbers: there the same counts.
            let error = ulp_error_f64(got, want)
                .min(apart(Precise { hi: got, lo: 0.0 }, want) * 2f64.powi(53));
            alone.add(error, || format!("{what}: {got:e} for {want:?}"));
        });
        loss.check(&format!("{backend}: loss, ULP"), 2.0);
        lse.check(&format!("{backend}: logsumexp in two parts, 2^-53"), 1.0);
        alone.check(&format!("{backend}: logsumexp, ULP"), 2.0);
    });
}

#[test]
fn special_values_are_those_of_the_oracle() {
    let cases = cases(&[Kind::Special, Kind::MaskedEntirely, Kind::MaskedButOne]);
    check_losses(&cases);
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    for_each_backend(|backend| {
        for (row, loss, lse) in [
            (&[nan, 0.0][..], nan, nan),
            (&[0.0, nan], nan, nan),
            (&[inf, 0.0], nan, inf),
            (&[0.0, inf], nan, inf),
            (&[inf, nan], nan, nan),
            (&[-inf, nan], nan, nan),
            (&[-inf, 0.0], inf, 0.0),
            (&[0.0, -inf], 0.0, 0.0),
            (&[-inf, -inf], nan, -inf),
            (&[-inf], nan, -inf),
            (&[-7.25], 0.0, -7.25),
            (&[f64::MIN, f64::MAX], inf, f64::MAX),
            (&[f64::MAX, f64::MIN], 0.0, f64::MAX),
        ] {
            let got = row_loss(backend, row, 0);
            assert_eq!(key64(got), key64(loss), "{backend}: {row:?}");
            let (hi, lo) = row_lse(backend, row, 0);
            assert_eq!((key64(hi), lo), (key64(lse), 0.0), "{backend}: {row:?}");
            assert_eq!(key64(logsumexp(backend, row)), key64(lse));
            assert_eq!(key64(row_f64(row, 0).loss.hi), key64(loss), "oracle: {row:?}");
        }
        assert_eq!(logsumexp(backend, &[]), -inf);
        softmax(backend, &mut []);
        log_softmax(backend, &mut []);
    });
}

#[test]
fn exponentials_are_within_the_stated_bound() {
    let mut rng = Rng::new(1);
    let mut x: Vec<f64> = (0..30_000)
        .map(|i| match i % 4 {
            0 => 1417.0 * rng.unit() - 708.0,
            1 => 2.0 * rng.unit() - 1.0,
            // Near the ends of the range of the polynomial.
            2 => (rng.below(2000) as f64 - 999.5) * 2f64.ln() + 1e-3 * (rng.unit() - 0.5),
            _ => f64::from_bits(rng.bits() & !(0x7ff << 52) | (rng.below(60) as u64 + 972) << 52),
        })
        .collect();
    x.extend([0.0, -0.0, 5e-324, 709.4, -708.39, 1.0, -1.0]);
    let exact: Vec<Precise> = x.par_iter().map(|&x| precise(&big(x).exp())).collect();
    for_each_backend(|backend| {
        let mut y = x.clone();
        internals::exp_f64(backend, &mut y).unwrap();
        let worst = Worst::default();
        for ((x, &y), &exact) in x.iter().zip(&y).zip(&exact) {
            worst.add(ulp_error_f64(y, exact), || format!("e^{x:?}"));
        }
        let limit = if backend.is_bit_exact() { EXP_F64_MAX_ULP } else { 1.5 };
        worst.check(&format!("{backend}: {} exponentials, ULP", x.len()), limit);
        let mut y = [f64::NEG_INFINITY, f64::MIN, -709.0, f64::NAN, 0.0, -0.0];
        internals::exp_f64(backend, &mut y).unwrap();
        assert_eq!(y.map(key64), [0.0, 0.0, 0.0, f64::NAN, 1.0, 1.0].map(key64), "{backend}");
    });
}

#[test]
fn softmax_and_log_softmax_of_all_kinds_of_rows() {
    let mut cases = cases(Kind::ORDINARY);
    cases.retain(|case| case.row.len() <= 1025);
    for_each_backend(|backend| {
        let (worst_p, worst_far, worst_log) =
            (Worst::default(), Worst::default(), Worst::default());
        cases.par_iter().for_each(|case| {
            let (mut p, mut log_p) = (case.row.clone(), case.row.clone());
            softmax(backend, &mut p);
            log_softmax(backend, &mut log_p);
            let exact = reference::softmax_f64(&case.row);
            // Beside such a number the logarithm of a sum has the digits of one `f64`.
            let far = case.exact.logsumexp.hi.abs() > 1e14;
            let worst_p = if far { &worst_far } else { &worst_p };
            for (j, (&got, exact)) in p.iter().zip(exact).enumerate() {
                // What is below the normal numbers may be cut off.
                if !(got < 1e-290 && exact.hi < 1e-290) {
                    let at = || format!("{}, class {j}: {got:e}, {exact:?}", case.what);
                    worst_p.add(ulp_error_f64(got, exact), at);
                }
            }
            let exact = reference::log_softmax_f64(&case.row);
            for (j, (&got, exact)) in log_p.iter().zip(exact).enumerate() {
                let at = || format!("{}, class {j}: {got:e}, {exact:?}", case.what);
                worst_log.add(ulp_error_f64(got, exact), at);
            }
        });
        worst_p.check(&format!("{backend}: softmax, ULP"), 2.0);
        worst_far.check(&format!("{backend}: softmax of logits beyond 1e14, ULP"), 8.0);
        worst_log.check(&format!("{backend}: log-softmax, ULP"), 2.0);
    });
}

/// `a e^(x - lse)` alone.
fn scaled(backend: Backend, a: f64, lse: (f64, f64), x: &[f64]) -> Vec<f64> {
    let terms = ScaledExp { a, lse, subtract: Subtract::Nothing, slope: None };
    let mut g = x.to_vec();
    internals::scaled_exp_f64(backend, &terms, Place::InPlace(&mut g)).unwrap();
    g
}

#[test]
fn scaled_exponentials_are_within_the_stated_bound() {
    for_each_backend(|backend| {
        let worst = Worst::default();
        (0..4000_u64).into_par_iter().for_each(|seed| {
            let mut rng = Rng::new(seed);
            let kinds = [Kind::Gaussian, Kind::OneHuge, Kind::Offset, Kind::Ramp, Kind::Deep];
            let row = row_of(rng.pick(&kinds), &mut rng, 33);
            let lse = reference::logsumexp_f64(&row);
            let a = rng.pick(&[1.0, -1.0, 0.3, 1e-300, -1e300, f64::MAX, 5e-324, 1e-310, 0.0])
                * (1.0 - 0.5 * rng.unit());
            let got = scaled(backend, a, (lse.hi, lse.lo), &row);
            for ((&got, p), x) in got.iter().zip(reference::softmax_f64(&row)).zip(&row) {
                let hi = a * p.hi;
                let exact = Precise { hi, lo: a.mul_add(p.hi, -hi) + a * p.lo };
                // Below, the oracle has no digits, or results may be 0.
                let vanishing = f64::max(1e-290, 1e-290 * a.abs());
                if p.hi > 1e-290 && hi.abs() > vanishing {
                    let at = || format!("{a:e} e^({x:?} - {lse:?}): {got:e}, {exact:?}");
                    worst.add(ulp_error_f64(got, exact), at);
                } else {
                    assert!(got.abs() <= 2.0 * vanishing, "{got:e}, {hi:e}");
                }
            }
        });
        // A little more without fused multiply-add.
        let limit = if backend.is_bit_exact() { 1.5 } else { 2.0 };
        worst.check(&format!("{backend}: a e^(x - lse), ULP"), limit);
        let poisoned = [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (f64::NEG_INFINITY, 0.0)];
        for lse in poisoned {
            let all = scaled(backend, 1.0, lse, &[0.0, f64::NEG_INFINITY, 1.0]);
            assert!(all.iter().all(|g| g.is_nan()), "{backend}: {all:?} of {lse:?}");
        }
        let masked = scaled(backend, -2.0, (1.0, 0.0), &[f64::NEG_INFINITY, f64::NAN, f64::MIN]);
        assert!(masked[0] == 0.0 && masked[1].is_nan() && masked[2] == 0.0, "{masked:?}");
    });
}

/// Every form is the plain exponential and one operation per part, in every place.
#[test]
fn gradients_are_composed_of_their_parts() {
    for_each_backend(|backend| {
        let mut rng = Rng::new(5);
        for len in (0..40).chain([1000]) {
            let mut random = |scale: f64| -> Vec<f64> {
                (0..len).map(|_| scale * f64::from(rng.normal())).collect()
            };
            let (x, v, slopes, old) = (random(3.0), random(1.0), random(1.0), random(1e-2));
            let (a, lse, b, beta) = (0.25, (12.5, 1e-17), 0.125, -0.75);
            let p = scaled(backend, a, lse, &x);
            let forms = [Subtract::Nothing, Subtract::Constant(b), Subtract::Times(b, &v)];
            for (subtract, slope) in forms.into_iter().flat_map(|s| [(s, false), (s, true)]) {
                // `b` is a power of two, so that products are exact with and without fusion.
                let want = |j: usize| {
                    let y = match subtract {
                        Subtract::Nothing => p[j],
                        Subtract::Constant(b) => p[j] - b,
                        Subtract::Times(b, v) => p[j] - b * v[j],
                    };
                    if slope { y * slopes[j] } else { y }
                };
                let want: Vec<f64> = (0..len).map(want).collect();
                let terms = ScaledExp { a, lse, subtract, slope: slope.then_some(&slopes[..]) };
                let run = |place: Place<'_>| {
                    internals::scaled_exp_f64(backend, &terms, place).unwrap();
                };
                let mut g = x.clone();
                run(Place::InPlace(&mut g));
                assert_eq!(g, want, "{backend}: {terms:?}");
                let mut g = vec![f64::NAN; len];
                run(Place::Write(&x, &mut g));
                assert_eq!(g, want);
                for offset in 0..9 {
                    let mut g = vec![7.0; len + 20];
                    run(Place::Stream(&x, &mut g[offset..offset + len]));
                    assert_eq!(g[offset..][..len], want);
                    assert!(g[..offset].iter().chain(&g[offset + len..]).all(|&g| g == 7.0));
                }
                let mut g = old.clone();
                run(Place::Add(&x, &mut g, beta));
                for j in 0..len {
                    let fused = beta.mul_add(old[j], want[j]);
                    let plain = beta * old[j] + want[j];
                    assert!(g[j] == if backend.is_bit_exact() { fused } else { plain });
                }
            }
        }
    });
}

#[test]
fn sums_are_rounded_once() {
    for_each_backend(|backend| {
        let worst = Worst::default();
        (0..300_u64).into_par_iter().for_each(|seed| {
            let mut rng = Rng::new(seed);
            let len = rng.below(60) + rng.pick(&[0, 0, 1000]);
            let scale = rng.pick(&[1.0, 1e10, 1e-10]);
            let mut random =
                |_| scale * f64::from(rng.normal()) * rng.pick(&[1.0, 1e8, 1e-8]) + rng.unit();
            let x: Vec<f64> = (0..len).map(&mut random).collect();
            let w: Vec<f64> = (0..len).map(&mut random).collect();
            let from = random(0);
            let plain = x.iter().fold(big(0.0), |sum, &x| sum + (big(x) - big(from)));
            let terms = x.iter().zip(&w).map(|(&x, &w)| (big(x) - big(from)) * big(w));
            let weighted = terms.clone().fold(big(0.0), |sum, term| sum + term);
            let size = terms.fold(0.0, |sum, term| sum + term.to_f64().value().abs());
            let got = internals::sum_from_f64(backend, &x, None, from).unwrap();
            worst.add(ulp_error_f64(got, precise(&plain)), || format!("seed {seed}"));
            let got = internals::sum_from_f64(backend, &x, Some(&w), from).unwrap();
            let error = if backend.is_bit_exact() {
                ulp_error_f64(got, precise(&weighted))
            } else {
                apart(Precise { hi: got, lo: 0.0 }, precise(&weighted))
                    / (size * f64::EPSILON).max(f64::MIN_POSITIVE)
            };
            worst.add(error, || format!("seed {seed}, weighted"));
        });
        worst.check(&format!("{backend}: sums, ULP"), 1.0);
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        for (x, from, want) in [
            (&[1.0, -inf, 2.0][..], 1.0, -inf),
            (&[inf; 17], 0.0, inf),
            (&[inf, -inf], 0.0, nan),
            (&[nan, 1.0], 0.0, nan),
            (&[], 1.0, 0.0),
        ] {
            let got = internals::sum_from_f64(backend, x, None, from).unwrap();
            assert_eq!(key64(got), key64(want), "{backend}: {x:?} from {from}");
        }
    });
}

/// Every result of a row, as bits.
fn bits(backend: Backend, row: &[f64], target: usize) -> Vec<u64> {
    let (hi, lo) = row_lse(backend, row, target);
    let mut p = row.to_vec();
    softmax(backend, &mut p);
    let mut log_p = row.to_vec();
    log_softmax(backend, &mut log_p);
    let terms = ScaledExp {
        a: 0.37,
        lse: (hi, lo),
        subtract: Subtract::Times(0.1, row),
        slope: Some(&log_p),
    };
    let mut g = p.clone();
    internals::scaled_exp_f64(backend, &terms, Place::Add(row, &mut g, 0.3)).unwrap();
    let scalars = [
        row_loss(backend, row, target),
        hi,
        lo,
        logsumexp(backend, row),
        row_argmax(backend, row) as f64,
        internals::sum_from_f64(backend, row, None, hi).unwrap(),
        internals::sum_from_f64(backend, row, Some(&p), row[0]).unwrap(),
    ];
    scalars.into_iter().chain(p).chain(log_p).chain(g).map(key64).collect()
}

fn vocab() -> impl Strategy<Value = usize> {
    let edges = vec![1, 2, 7, 8, 9, 15, 16, 17, 1023, 1024, 1025, 32_768, 32_769];
    prop_oneof![
        4 => prop::sample::select(edges),
        4 => 1..100_usize,
        2 => 1000..3100_usize,
        1 => 32_700..33_000_usize,
    ]
}

proptest! {
    #![proptest_config(property(400))]

    #[test]
    fn backends_agree(seed: u64, vocab in vocab(), offset in 0..8_usize) {
        let mut rng = Rng::new(seed);
        let row = row_of(Kind::any(&mut rng), &mut rng, vocab);
        let target = target_of(&mut rng, &row);
        let want = bits(Backend::Scalar, &row, target);
        prop_assert_eq!(argmax(&row), row_argmax(Backend::Scalar, &row));
        // Somewhere else in memory.
        let mut moved = vec![f64::NAN; offset];
        moved.extend(&row);
        for &backend in Backend::available().iter().filter(|backend| backend.is_bit_exact()) {
            prop_assert!(bits(backend, &moved[offset..], target) == want, "{}", backend);
        }
    }
}
