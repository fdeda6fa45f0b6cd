//! Two models compared: divergences against the oracle on every backend, in every layout; statistics against
//! plain formulas.

use common::{Kind, Rng, argmax, for_each_backend, key64, property};
use proptest::prelude::*;
use std::sync::Mutex;
use xent::{
    AllowedTokens, Backend, Compare, CompareOutputs, Comparison, Element, Error, Estimate, Logits,
    SparseProbs, Targets, bf16, f16, reference,
};

const INF: f64 = f64::INFINITY;
const MASK: f32 = f32::NEG_INFINITY;

/// Everything that can be asked of rows, in slices.
#[derive(Clone, Debug)]
struct Results {
    kl: Vec<f64>,
    reverse_kl: Vec<f64>,
    jsd: Vec<f64>,
    total_variation: Vec<f64>,
    base_logprobs: Vec<f64>,
    other_logprobs: Vec<f64>,
    delta_p: Vec<f64>,
    same_top: Vec<bool>,
}

impl Results {
    /// Of so many rows, nothing of which may be left.
    fn new(rows: usize) -> Self {
        let unset = || vec![-7.0; rows];
        Results {
            kl: unset(),
            reverse_kl: unset(),
            jsd: unset(),
            total_variation: unset(),
            base_logprobs: unset(),
            other_logprobs: unset(),
            delta_p: unset(),
            same_top: vec![true; rows],
        }
    }

    fn divergences(&mut self) -> CompareOutputs<'_> {
        CompareOutputs::new()
            .kl(&mut self.kl)
            .reverse_kl(&mut self.reverse_kl)
            .jsd(&mut self.jsd)
            .total_variation(&mut self.total_variation)
            .same_top(&mut self.same_top)
    }

    fn all(&mut self) -> CompareOutputs<'_> {
        CompareOutputs::new()
            .kl(&mut self.kl)
            .reverse_kl(&mut self.reverse_kl)
            .jsd(&mut self.jsd)
            .total_variation(&mut self.total_variation)
            .base_logprobs(&mut self.base_logprobs)
            .other_logprobs(&mut self.other_logprobs)
            .delta_p(&mut self.delta_p)
            .same_top(&mut self.same_top)
    }

    /// To compare by: every NaN is the same NaN.
    fn keys(&self) -> Vec<u64> {
        let numbers = [
            &self.kl,
            &self.reverse_kl,
            &self.jsd,
            &self.total_variation,
            &self.base_logprobs,
            &self.other_logprobs,
            &self.delta_p,
        ];
        let keys = numbers.into_iter().flatten().map(|&x| key64(x));
        keys.chain(self.same_top.iter().map(|&same| same.into())).collect()
    }
}

/// One pair of rows.
fn pair<P: Element, Q: Element>(compare: Compare<'_>, p: &[P], q: &[Q]) -> Results {
    let mut results = Results::new(1);
    let (p, q) = (Logits::new(p, 1, p.len()).unwrap(), Logits::new(q, 1, q.len()).unwrap());
    compare.divergences(p, q, results.divergences()).unwrap();
    results
}

fn pair_at<P: Element, Q: Element>(
    compare: Compare<'_>,
    p: &[P],
    q: &[Q],
    target: usize,
) -> Results {
    let mut results = Results::new(1);
    let (p, q) = (Logits::new(p, 1, p.len()).unwrap(), Logits::new(q, 1, q.len()).unwrap());
    compare.targets(&[target]).divergences(p, q, results.all()).unwrap();
    results
}

/// KL, reverse KL, JSD and total variation.
fn four(results: &Results) -> [f64; 4] {
    [results.kl[0], results.reverse_kl[0], results.jsd[0], results.total_variation[0]]
}

fn exact<P: Copy + Into<f64>, Q: Copy + Into<f64>>(p: &[P], q: &[Q], beta: f64) -> [f64; 4] {
    let p: Vec<f64> = p.iter().map(|&x| x.into()).collect();
    let q: Vec<f64> = q.iter().map(|&x| x.into()).collect();
    [
        reference::kl(&p, &q),
        reference::kl(&q, &p),
        reference::jsd(&p, &q, beta),
        reference::total_variation(&p, &q),
    ]
}

/// How far off, in units of what the documentation allows: 1e-14 and 1e-13 of the exact value.
fn excess(got: f64, want: f64) -> f64 {
    if got.is_nan() || want.is_nan() || want.is_infinite() {
        return if key64(got) == key64(want) { 0.0 } else { INF };
    }
    (got - want).abs() / (1e-14 + 1e-13 * want.abs())
}

#[track_caller]
fn check(what: &str, got: [f64; 4], want: [f64; 4]) {
    for i in 0..4 {
        assert!(excess(got[i], want[i]) <= 1.0, "{what}, {i}: {got:?} instead of {want:?}");
    }
}

#[test]
fn closed_forms() {
    for_each_backend(|backend| {
        let compare = Compare::new().backend(backend);
        let ln = f64::ln;
        // 1/4 1/4 1/2 and 1/2 1/4 1/4
        let (p, q) = ([0.0, 0.0, ln(2.0)], [ln(2.0), 0.0, 0.0]);
        let want =
            [0.25 * ln(2.0), 0.25 * ln(2.0), 0.25 * ln(2.0 / 3.0) + 0.5 * ln(4.0 / 3.0), 0.25];
        let got = pair(compare, &p, &q);
        check("thirds", four(&got), want);
        assert_eq!(got.same_top, [false]);
        // Two Bernoulli distributions, in f32, of logits that are exact there.
        let (p, q) = ([1.5_f32, 0.0], [-0.5_f32, 0.0]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let (a, b) = (sigmoid(1.5), sigmoid(-0.5));
        let kl = |a: f64, b: f64| a * ln(a / b) + (1.0 - a) * ln((1.0 - a) / (1.0 - b));
        let m = 0.25 * a + 0.75 * b;
        let want = [kl(a, b), kl(b, a), 0.25 * kl(a, m) + 0.75 * kl(b, m), a - b];
        let got = pair_at(compare.beta(0.25), &p, &q, 0);
        check("Bernoulli", four(&got), want);
        assert!((got.base_logprobs[0] - ln(a)).abs() < 1e-15);
        assert!((got.other_logprobs[0] - ln(b)).abs() < 1e-15);
        assert!((got.delta_p[0] - (b - a)).abs() < 1e-15);
        // Of GKD: 0 is the forward and 1 the reverse divergence.
        for (beta, want) in [(0.0, kl(a, b)), (1.0, kl(b, a))] {
            let mut jsd = [0.0];
            let outputs = CompareOutputs::new().jsd(&mut jsd);
            let (p, q) = (Logits::new(&p, 1, 2).unwrap(), Logits::new(&q, 1, 2).unwrap());
            compare.beta(beta).divergences(p, q, outputs).unwrap();
            assert!((jsd[0] - want).abs() < 1e-15, "{beta}");
        }
        // Symmetric in the middle, mirrored elsewhere.
        for beta in [0.5, 0.1, 0.9, 0.0, 1.0] {
            let there = pair(compare.beta(beta), &p, &q).jsd[0];
            let back = pair(compare.beta(1.0 - beta), &q, &p).jsd[0];
            assert!((there - back).abs() < 1e-15, "{beta}: {there} {back}");
        }
        // Temperature divides both.
        let (hot_p, hot_q) = (p.map(|x| x * 4.0), q.map(|x| x * 4.0));
        let hot = pair(compare.temperature(4.0), &hot_p, &hot_q);
        assert_eq!(hot.keys(), pair(compare, &p, &q).keys());
        // One class.
        let one = pair_at(compare, &[5.0_f32], &[-3.0_f32], 0);
        assert_eq!(four(&one), [0.0; 4]);
        assert_eq!((one.base_logprobs[0], one.other_logprobs[0], one.delta_p[0]), (0.0, 0.0, 0.0));
    });
}

#[test]
fn special_values() {
    for_each_backend(|backend| {
        let compare = Compare::new().backend(backend);
        let ln2 = 2f64.ln();
        let all = |p: &[f32], q: &[f32]| four(&pair(compare, p, q));
        // Nothing in common.
        check("disjoint", all(&[0.0, MASK], &[MASK, 0.0]), [INF, INF, ln2, 1.0]);
        check("disjoint", all(&[0.0, 0.0, MASK], &[MASK, MASK, 3.0]), [INF, INF, ln2, 1.0]);
        // Masked in both does not count; in one, the other does.
        let plain = all(&[1.0, 2.0], &[2.0, 0.5]);
        let padded = all(&[1.0, MASK, 2.0, MASK], &[2.0, MASK, 0.5, MASK]);
        check("masked in both", padded, plain);
        let half = all(&[0.0, 0.0], &[0.0, MASK]);
        // M is 3/4 and 1/4.
        let jsd = 0.5 * (0.5 * (2f64 / 3.0).ln() + 0.5 * ln2) + 0.5 * (4f64 / 3.0).ln();
        check("q = 0", half, [INF, ln2, jsd, 0.5]);
        let half = all(&[0.0, MASK], &[0.0, 0.0]);
        assert_eq!((half[0], half[1]), (ln2, INF));
        // One class left, the same one and not.
        assert_eq!(all(&[MASK, 7.0, MASK], &[MASK, -1e30, MASK]), [0.0; 4]);
        assert_eq!(all(&[7.0, MASK, MASK], &[MASK, MASK, 1e30]), [INF, INF, ln2, 1.0]);
        // Astronomical, and not infinite.
        let one_hot = all(&[1e30, 0.0, -1e30], &[0.0, 1e30, -1e30]);
        check("1e30", one_hot, [f64::from(1e30_f32), f64::from(1e30_f32), ln2, 1.0]);
        assert_eq!(all(&[1e30, 1e30, -1e30], &[1e30, 1e30, -1e30]), [0.0; 4]);
        let extremes = all(&[f32::MAX, f32::MIN], &[f32::MIN, f32::MAX]);
        check("MAX", extremes, [2.0 * f64::from(f32::MAX), 2.0 * f64::from(f32::MAX), ln2, 1.0]);
        // What is nothing beside the largest is nothing, masked or not.
        let far = all(&[0.0, -800.0], &[0.0, MASK]);
        assert_eq!(far, [0.0; 4]);
        let near = all(&[0.0, -700.0], &[0.0, MASK]);
        assert_eq!(near[0], INF);
        assert!((near[1] / (-700f64).exp() - 1.0).abs() < 1e-14, "{near:?}");

        // NaN, +inf, nothing but masks, no classes.
        let good: &[f32] = &[1.0, 2.0, 3.0];
        for bad in [
            [0.0, f32::NAN, f32::NAN],
            [0.0, f32::INFINITY, MASK],
            [f32::INFINITY, 0.0, f32::NAN],
            [0.0, 1.0, f32::INFINITY],
            [0.0, 1.0, f32::NAN],
            [MASK; 3],
        ] {
            for (p, q) in [(&bad, &bad), (&bad, &[1.0, 2.0, 3.0])] {
                let got = pair_at(compare, p, q, 1);
                let numbers = [got.base_logprobs[0], got.other_logprobs[0], got.delta_p[0]];
                assert!(four(&got).into_iter().chain(numbers).all(f64::is_nan), "{got:?}");
                // What has no distribution agrees with nothing, itself included.
                assert_eq!(got.same_top, [false], "{p:?} {q:?}");
                let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
                assert_eq!(pair(compare, &wide(p), &wide(q)).same_top, [false]);
                let half = |x: &[f32]| x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
                assert_eq!(pair(compare, &half(q), &wide(p)).same_top, [false]);
                assert_eq!(got.keys(), pair_at(compare, q, p, 1).keys());
            }
        }
        assert!(four(&pair::<f32, f32>(compare, &[], &[])).into_iter().all(f64::is_nan));
        // A bad row is a row by itself.
        let x = [f32::NAN, 0.0, 0.0, 1.0, 2.0, 3.0];
        let y = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0];
        let mut kl = [0.0; 2];
        let logits = |x| Logits::new(x, 2, 3).unwrap();
        compare.divergences(logits(&x), logits(&y), CompareOutputs::new().kl(&mut kl)).unwrap();
        assert!(kl[0].is_nan() && kl[1] == 0.0);
        // Ties: the first of both.
        assert_eq!(pair(compare, &[1.0, 3.0, 3.0], good).same_top, [false]);
        assert_eq!(pair(compare, &[1.0, 3.0, 3.0], &[1.0, 3.0, 2.0]).same_top, [true]);

        // A target that is masked, and one that both are sure of.
        let got = pair_at(compare, &[0.0, MASK], &[0.0, 0.0], 1);
        assert_eq!((got.base_logprobs[0], got.delta_p[0]), (f64::NEG_INFINITY, 0.5));
        let got = pair_at(compare, &[60.0, 0.0], &[70.0, 0.0], 0);
        let want = [-(-60f64).exp(), -(-70f64).exp()];
        assert!((got.base_logprobs[0] / want[0] - 1.0).abs() < 1e-14, "{got:?}");
        assert!((got.other_logprobs[0] / want[1] - 1.0).abs() < 1e-14, "{got:?}");
    });
}

/// A row near another: the same with noise, rounded to fewer bits, or partly masked; or another one.
fn neighbour(rng: &mut Rng, row: &[f32]) -> Vec<f32> {
    match rng.below(6) {
        0 => row.to_vec(),
        1 => row.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        2 => {
            let noise = rng.pick(&[1e-7, 1e-5, 1e-3, 0.1, 3.0]);
            row.iter().map(|&x| x + noise * rng.normal()).collect()
        }
        3 => {
            let masked = |&x: &f32| if rng.below(3) == 0 { MASK } else { x };
            row.iter().map(masked).collect()
        }
        4 => row.iter().map(|&x| x + 13.25).collect(),
        _ => Kind::any(rng).row(rng, row.len()),
    }
}

/// The largest excess seen, and where.
static WORST: Mutex<[f64; 4]> = Mutex::new([0.0; 4]);

proptest! {
    #![proptest_config(property(192))]

    #[test]
    fn divergences_are_those_of_the_oracle(
        seed: u64,
        vocab in prop_oneof![1usize..40, 1usize..3000],
        beta in prop_oneof![Just(0.5), Just(0.0), Just(1.0), 0.0..1.0],
        // Powers of two: the division, here and there, is exact.
        temperature in prop_oneof![Just(1.0), Just(0.25), Just(2.0)],
    ) {
        let mut rng = Rng::new(seed);
        let p = Kind::any(&mut rng).row(&mut rng, vocab);
        let q = neighbour(&mut rng, &p);
        let divided = |x: &[f32]| -> Vec<f64> {
            x.iter().map(|&x| f64::from(x) / temperature).collect()
        };
        let want = exact(&divided(&p), &divided(&q), beta);
        let target = rng.below(vocab);
        for_each_backend(|backend| {
            let compare = Compare::new().backend(backend).beta(beta).temperature(temperature);
            let got = pair_at(compare, &p, &q, target);
            check(backend.name(), four(&got), want);
            let mut worst = WORST.lock().unwrap();
            for ((worst, got), want) in worst.iter_mut().zip(four(&got)).zip(want) {
                *worst = worst.max(excess(got, want));
            }
            println!("largest errors, in units of 1e-14 + 1e-13 x: {worst:.3?}");
            assert_eq!(got.same_top, [argmax(&p) == argmax(&q) && !want[0].is_nan()]);
            if p == q && !want[0].is_nan() {
                assert_eq!(four(&got), [0.0; 4], "identical rows");
            }
            if !want[0].is_nan() {
                let of = |x: &[f32]| 0.0 - reference::row_f64(&divided(x), target).loss.hi;
                for (got, want) in
                    [(got.base_logprobs[0], of(&p)), (got.other_logprobs[0], of(&q))]
                {
                    let close = (got - want).abs() <= 4e-15 * want.abs() + 1e-300;
                    assert!(close || got == want, "{backend}: {got} {want}");
                }
                let delta = of(&q).exp() - of(&p).exp();
                assert!((got.delta_p[0] - delta).abs() < 1e-14, "{got:?} {delta}");
            }
        });
    }

    #[test]
    fn all_types_and_all_bit_exact_backends_agree(seed: u64, vocab in 1usize..2500) {
        let mut rng = Rng::new(seed);
        let p = Kind::any(&mut rng).row(&mut rng, vocab);
        let q = neighbour(&mut rng, &p);
        let target = rng.below(vocab);
        let (p_bf, p_f16) = (p.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
            p.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>());
        let (q_bf, q_f16) = (q.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
            q.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>());
        let widened = |x: &[bf16]| x.iter().map(|x| f64::from(x.to_f32())).collect::<Vec<_>>();
        let widened_f16 = |x: &[f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let wide: Vec<f64> = p.iter().map(|&x| x.into()).collect();
        let mut first: Option<Vec<Vec<u64>>> = None;
        for_each_backend(|backend| {
            let compare = Compare::new().backend(backend).beta(0.3).temperature(1.25);
            let all = [
                (pair_at(compare, &p, &q, target), pair_at(compare, &wide, &q, target)),
                (
                    pair_at(compare, &p, &q_bf, target),
                    pair_at(compare, &p, &widened(&q_bf), target),
                ),
                (
                    pair_at(compare, &p_f16, &q_bf, target),
                    pair_at(compare, &widened_f16(&p_f16), &widened(&q_bf), target),
                ),
                (
                    pair_at(compare, &p_bf, &q_f16, target),
                    pair_at(compare, &widened(&p_bf), &widened_f16(&q_f16), target),
                ),
            ];
            for (narrow, wide) in &all {
                assert_eq!(narrow.keys(), wide.keys(), "{backend}");
            }
            if backend.is_bit_exact() {
                let keys: Vec<_> = all.iter().map(|(narrow, _)| narrow.keys()).collect();
                assert_eq!(first.get_or_insert_with(|| keys.clone()), &keys, "{backend}");
            }
        });
    }
}

#[test]
fn rows_of_f64_and_their_range() {
    for_each_backend(|backend| {
        let compare = Compare::new().backend(backend);
        let mut rng = Rng::new(11);
        for _ in 0..40 {
            let vocab = 1 + rng.below(3000);
            let offset = rng.pick(&[0.0, 1e4, -1e9]);
            let p: Vec<f64> = (0..vocab).map(|_| offset + 3.0 * f64::from(rng.normal())).collect();
            let step = rng.pick(&[1e-12, 1e-9, 1e-3, 1.0]);
            let q: Vec<f64> = p.iter().map(|x| x + step * f64::from(rng.normal())).collect();
            check(backend.name(), four(&pair(compare, &p, &q)), exact(&p, &q, 0.5));
        }
        let extremes = pair(compare, &[1e300, -1e300], &[-1e300, 1e300]);
        check("1e300", four(&extremes), [2e300, 2e300, 2f64.ln(), 1.0]);
    });
}

#[test]
fn any_temperature_divides_both() {
    for_each_backend(|backend| {
        let mut rng = Rng::new(21);
        for temperature in [0.1, 0.7, 1.3, 3.0, 1e-3] {
            let p: Vec<f32> = (0..700).map(|_| rng.normal()).collect();
            let q: Vec<f32> = p.iter().map(|x| x + 0.3 * rng.normal()).collect();
            let divided =
                |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x) / temperature).collect() };
            let compare = Compare::new().backend(backend).temperature(temperature);
            let got = four(&pair(compare, &p, &q));
            let want = exact(&divided(&p), &divided(&q), 0.5);
            for (got, want) in got.into_iter().zip(want) {
                let close = (got - want).abs() <= 1e-13 + 1e-12 * want;
                assert!(close, "{backend}, {temperature}: {got} {want}");
            }
        }
    });
}

/// Two quantisations of a model: a KL divergence of a millionth and less keeps its digits.
#[test]
fn a_tiny_divergence_keeps_digits() {
    let mut rng = Rng::new(5);
    let vocab = 50_257;
    let p: Vec<f32> = (0..vocab).map(|_| 3.0 * rng.normal()).collect();
    for (noise, least) in [(1e-2, 9.0), (1e-3, 8.0), (1e-4, 6.0), (1e-5, 4.0)] {
        let q: Vec<f32> = p.iter().map(|&x| x + noise * rng.normal()).collect();
        let want = exact(&p, &q, 0.5);
        for_each_backend(|backend| {
            let got = four(&pair(Compare::new().backend(backend), &p, &q));
            let digits = [0, 1, 2].map(|i| -((got[i] - want[i]) / want[i]).abs().log10());
            println!("{backend}, KL {:.3e}: {digits:.1?} digits of KL, reverse KL, JSD", want[0]);
            assert!(digits.into_iter().all(|digits| digits >= least), "{got:?} {want:?}");
        });
    }
}

/// Rows of every kind, each beside a neighbour.
fn matrices(rows: usize, vocab: usize) -> (Vec<f32>, Vec<f32>, Vec<i64>) {
    let mut rng = Rng::new(3);
    let (mut p, mut q, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rows {
        let row = Kind::any(&mut rng).row(&mut rng, vocab);
        q.extend(neighbour(&mut rng, &row));
        targets.push(if rng.below(4) == 0 { -100 } else { rng.below(vocab) as i64 });
        p.extend(row);
    }
    (p, q, targets)
}

fn transposed<T: Copy>(x: &[T], rows: usize, vocab: usize) -> Vec<T> {
    (0..vocab).flat_map(|j| (0..rows).map(move |i| x[i * vocab + j])).collect()
}

#[test]
fn layouts_threads_and_rows_do_not_matter() {
    let (rows, vocab) = (45, 2100); // more than what a thread is worth, and odd
    let (p, q, targets) = matrices(rows, vocab);
    let q: Vec<bf16> = q.iter().map(|&x| bf16::from_f32(x)).collect();
    let (p_columns, q_columns) = (transposed(&p, rows, vocab), transposed(&q, rows, vocab));
    let padded: Vec<f32> =
        p.chunks(vocab).flat_map(|row| row.iter().copied().chain([f32::NAN; 3])).collect();
    let lists: Vec<&[bf16]> = q.chunks(vocab).collect();
    let p_layouts = [
        Logits::new(&p, rows, vocab).unwrap(),
        Logits::classes_first(&p_columns, 1, vocab, rows).unwrap(),
        Logits::with_stride(&padded, rows, vocab, vocab + 3).unwrap(),
    ];
    let q_layouts = [
        Logits::new(&q, rows, vocab).unwrap(),
        Logits::classes_first(&q_columns, 1, vocab, rows).unwrap(),
        Logits::from_rows(&lists, vocab).unwrap(),
    ];
    let mut words = vec![u32::MAX; vocab.div_ceil(32)];
    words[3] = 0b1010;
    let mask = AllowedTokens::new(&words).stride(0);
    for_each_backend(|backend| {
        let compare = Compare::new().backend(backend).targets(&targets).allowed_tokens(mask);
        let compare = compare.temperature(0.7).beta(0.2);
        let mut want: Option<Vec<u64>> = None;
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (i, p) in p_layouts.into_iter().enumerate() {
                for (j, q) in q_layouts.into_iter().enumerate() {
                    let mut got = Results::new(rows);
                    pool.install(|| compare.divergences(p, q, got.all()).unwrap());
                    let keys = got.keys();
                    let want = want.get_or_insert_with(|| keys.clone());
                    assert_eq!(&keys, want, "{backend}, {threads} threads, layouts {i} and {j}");
                }
            }
        }
        // Row by row.
        let (p, q) = (&p, &q);
        let mut got = Results::new(rows);
        compare.divergences(p_layouts[0], q_layouts[0], got.all()).unwrap();
        for (i, &target) in targets.iter().enumerate() {
            let range = i * vocab..(i + 1) * vocab;
            let ids = [target];
            let mut row = Results::new(1);
            let (p, q) = (&p[range.clone()], &q[range]);
            let (p, q) = (Logits::new(p, 1, vocab).unwrap(), Logits::new(q, 1, vocab).unwrap());
            compare.targets(&ids).divergences(p, q, row.all()).unwrap();
            let same = [
                (row.kl[0], got.kl[i]),
                (row.jsd[0], got.jsd[i]),
                (row.delta_p[0], got.delta_p[i]),
                (row.total_variation[0], got.total_variation[i]),
            ];
            assert!(same.iter().all(|&(a, b)| key64(a) == key64(b)), "row {i}: {same:?}");
            if target == -100 {
                assert_eq!((got.kl[i], got.delta_p[i], got.same_top[i]), (0.0, 0.0, false));
            }
        }
    });
}

#[test]
fn a_mask_is_as_infinities_are() {
    for_each_backend(|backend| {
        let mut rng = Rng::new(9);
        for vocab in [1usize, 31, 32, 33, 1000, 1024, 1025, 2100] {
            let words: Vec<u32> = (0..vocab.div_ceil(32))
                .map(|_| rng.pick(&[0, u32::MAX, 0x5555_1234]) | 1)
                .collect();
            let allowed = |j: usize| words[j / 32] >> (j % 32) & 1 == 1;
            let p = Kind::Gaussian.row(&mut rng, vocab);
            let q = Kind::Gaussian.row(&mut rng, vocab);
            let masked = |x: &[f32]| -> Vec<f32> {
                x.iter().enumerate().map(|(j, &x)| if allowed(j) { x } else { MASK }).collect()
            };
            // Whatever is in memory.
            let hidden: Vec<f32> =
                (0..vocab).map(|j| if allowed(j) { p[j] } else { f32::NAN }).collect();
            for target in [0, vocab - 1] {
                let compare = Compare::new().backend(backend);
                let got = compare.allowed_tokens(AllowedTokens::new(&words));
                let want = pair_at(compare, &masked(&p), &masked(&q), target);
                assert_eq!(pair_at(got, &hidden, &q, target).keys(), want.keys(), "{vocab}");
            }
        }
    });
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_written() {
    let x = [0.0_f32; 6];
    let logits = Logits::new(&x, 2, 3).unwrap();
    let targets = [0i64, 1];
    let probs = [0.5_f32; 6];
    let ids = [0i64, 1];
    let refuse = |compare: Compare<'_>, other: Logits<'_, f32>, error: Error, text: &str| {
        assert_eq!(error.to_string(), text);
        let mut results = Results::new(2);
        let before = results.keys();
        assert_eq!(compare.divergences(logits, other, results.divergences()), Err(error.clone()));
        assert_eq!(compare.evaluate(logits, other, results.divergences()), Err(error));
        assert_eq!(results.keys(), before);
    };
    let new = Compare::new();
    let other = Logits::new(&x, 3, 2).unwrap();
    let error = Error::ComparedShape { base: (2, 3), other: (3, 2) };
    refuse(new, other, error, "the base is 2 x 3, but the other is 3 x 2");
    let option = |option, value: &str, range| Error::Option { option, value: value.into(), range };
    for (t, value) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (INF, "inf")] {
        let range = "a positive number of the range of f32";
        let text = format!("temperature = {value} is not {range}");
        refuse(new.temperature(t), logits, option("temperature", value, range), &text);
    }
    for (beta, value) in [(-0.1, "-0.1"), (1.1, "1.1"), (f64::NAN, "NaN")] {
        let text = format!("beta = {value} is not between 0 and 1");
        refuse(new.beta(beta), logits, option("beta", value, "between 0 and 1"), &text);
    }
    let classes = "models are compared at targets that are classes, not probabilities";
    let sparse = SparseProbs::new(&ids[..], &probs[..2], 1);
    refuse(new.targets(Targets::probs(&probs)), logits, Error::ComparedProbs, classes);
    refuse(new.targets(sparse), logits, Error::ComparedProbs, classes);
    let count = Error::TargetCount { rows: 2, targets: 1 };
    let next = "; where each row predicts the next token, give all tokens to Targets::shifted";
    refuse(new.targets(&targets[..1]), logits, count, &format!("1 targets for 2 rows{next}"));
    let range = Error::TargetOutOfRange { row: 1, target: 3, vocab: 3 };
    let text = "row 1: target 3 is out of range for a vocabulary of 3";
    refuse(new.targets(&[0i64, 3]), logits, range, text);
    let ignored = Error::TargetOutOfRange { row: 0, target: -100, vocab: 3 };
    let text = "row 0: target -100 is out of range for a vocabulary of 3; \
                ignore_index(-100) ignores such rows";
    refuse(new.targets(&[-100i64, 3]).no_ignore_index(), logits, ignored, text);
    let words = [7u32];
    let length = Error::InputLength { what: "words of allowed tokens", len: 1, expected: 2 };
    let text = "words of allowed tokens: 1 values instead of 2; \
                AllowedTokens::stride(0) has one mask for all rows";
    refuse(new.allowed_tokens(AllowedTokens::new(&words)), logits, length, text);
    if let Some(&backend) = Backend::ALL.iter().find(|backend| !backend.is_available()) {
        let available = Backend::available();
        let error = Error::BackendUnavailable { requested: backend, available };
        refuse(new.backend(backend), logits, error.clone(), &error.to_string());
    }

    // Outputs: too short, or of targets that are not there.
    let mut short = [1.0];
    let length = |output| Err(Error::OutputLength { output, len: 1, expected: 2 });
    let outputs = CompareOutputs::new().kl(&mut short);
    assert_eq!(new.divergences(logits, logits, outputs), length("kl"));
    let outputs = CompareOutputs::new().jsd(&mut short);
    assert_eq!(new.divergences(logits, logits, outputs), length("jsd"));
    let outputs = CompareOutputs::new().delta_p(&mut short);
    assert_eq!(
        new.targets(&targets).evaluate(logits, logits, outputs).map(|_| ()),
        length("delta_p")
    );
    let mut flags = [true];
    let outputs = CompareOutputs::new().same_top(&mut flags);
    assert_eq!(new.divergences(logits, logits, outputs), length("same_top"));
    let mut two = [1.0; 2];
    let outputs = CompareOutputs::new().other_logprobs(&mut two);
    let none = Err(Error::TargetCount { rows: 2, targets: 0 });
    assert_eq!(new.divergences(logits, logits, outputs), none);
    assert_eq!((short, flags, two), ([1.0], [true], [1.0; 2]));

    // Rows of no elements may be more than memory.
    let units = Logits::<f32>::new(&[], usize::MAX, 0).unwrap();
    let error = Error::Overflow { rows: usize::MAX, elements: 0 };
    assert_eq!(new.evaluate(units, units, CompareOutputs::new()), Err(error));
    assert_eq!(new.divergences(units, units, CompareOutputs::new()), Ok(()));
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// `mean_and_uncertainty` of llama.cpp, without its cut at ten values.
fn naive(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let value = mean(values);
    let square = values.iter().map(|x| x * x).sum::<f64>() / n - value * value;
    Estimate { value, stderr: (square.max(0.0) / (n - 1.0)).sqrt() }
}

#[track_caller]
fn close(what: &str, got: Estimate, want: Estimate) {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + b.abs()) || key64(a) == key64(b);
    assert!(close(got.value, want.value), "{what}: {got:?} {want:?}");
    assert!(close(got.stderr, want.stderr), "{what}: {got:?} {want:?}");
}

/// Logits of two models that are much alike.
fn two_models(rows: usize, vocab: usize) -> (Vec<f32>, Vec<f32>, Vec<i64>) {
    let mut rng = Rng::new(17);
    let p: Vec<f32> = (0..rows * vocab).map(|_| 2.0 * rng.normal()).collect();
    let q = p.iter().map(|&x| x + 0.2 * rng.normal()).collect();
    let targets = (0..rows).map(|i| if i % 7 == 3 { -100 } else { rng.below(vocab) as i64 });
    (p, q, targets.collect())
}

#[test]
fn statistics_are_those_of_llama_cpp() {
    let (rows, vocab) = (200, 50);
    let (p, q, targets) = two_models(rows, vocab);
    let (base, other) =
        (Logits::new(&p, rows, vocab).unwrap(), Logits::new(&q, rows, vocab).unwrap());
    let compare = Compare::new().targets(&targets);
    let mut results = Results::new(rows);
    let all = compare.evaluate(base, other, results.all()).unwrap();
    let mut again = Results::new(rows);
    compare.divergences(base, other, again.all()).unwrap();
    assert_eq!(results.keys(), again.keys());

    let kept = |values: &[f64]| -> Vec<f64> {
        values.iter().zip(&targets).filter(|(_, t)| **t != -100).map(|(&x, _)| x).collect()
    };
    let kl = kept(&results.kl);
    let n = kl.len() as f64;
    let at = all.at_targets().unwrap();
    assert_eq!((all.count(), all.ignored()), (kl.len() as u64, (rows - kl.len()) as u64));
    assert_eq!(all.kl(), kl);
    assert_eq!(at.base_logprobs(), kept(&results.base_logprobs));
    assert_eq!(at.other_logprobs(), kept(&results.other_logprobs));
    assert_eq!(at.delta_p(), kept(&results.delta_p));

    close("KLD", all.mean_kl(), naive(&kl));
    let same = results.same_top.iter().filter(|same| **same).count() as f64 / n;
    let want = Estimate { value: same, stderr: (same * (1.0 - same) / (n - 1.0)).sqrt() };
    close("same top", all.same_top(), want);
    assert!(same > 0.5 && same < 1.0);

    let (b, a) = (at.base_logprobs(), at.other_logprobs());
    let nll = |x: &[f64]| naive(&x.iter().map(|x| -x).collect::<Vec<_>>());
    let (of_b, of_a) = (nll(b), nll(a));
    let exp = |e: Estimate| {
        let value = e.value.exp();
        Estimate { value, stderr: value * e.stderr }
    };
    let (ppl_b, ppl_a) = (exp(of_b), exp(of_a));
    close("PPL(base)", at.base_perplexity(), ppl_b);
    close("PPL(Q)", at.other_perplexity(), ppl_a);
    let product = a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / n;
    let covariance = (product - of_a.value * of_b.value) / (n - 1.0);
    let cor = covariance / (of_a.stderr * of_b.stderr);
    assert!((at.correlation() - cor).abs() < 1e-9 && cor > 0.9, "{cor}");
    let ratio = Estimate {
        value: of_a.value - of_b.value,
        stderr: (of_a.stderr.powi(2) + of_b.stderr.powi(2) - 2.0 * covariance).sqrt(),
    };
    close("ln ratio", at.log_ratio(), ratio);
    close("ratio", at.ratio(), exp(ratio));
    let covariance = ppl_a.value * ppl_b.value * covariance;
    let difference = Estimate {
        value: ppl_a.value - ppl_b.value,
        stderr: (ppl_a.stderr.powi(2) + ppl_b.stderr.powi(2) - 2.0 * covariance).sqrt(),
    };
    close("difference", at.difference(), difference);
    let delta = at.delta_p();
    close("mean dp", at.mean_delta_p(), naive(delta));
    let squares = naive(&delta.iter().map(|d| d * d).collect::<Vec<_>>());
    let rms = squares.value.sqrt();
    let want = Estimate { value: rms, stderr: 0.5 / rms * squares.stderr };
    close("RMS dp", at.rms_delta_p(), want);
    for (values, got) in [
        (&kl[..], all.kl_percentiles([0.0, 0.001, 0.01, 0.5, 0.77, 0.999, 1.0])),
        (delta, at.delta_p_percentiles([0.0, 0.001, 0.01, 0.5, 0.77, 0.999, 1.0])),
    ] {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        for (f, got) in [0.0, 0.001, 0.01, 0.5, 0.77, 0.999, 1.0].into_iter().zip(got) {
            let at = f * (n - 1.0);
            let (i, share) = (at as usize, at.fract());
            let next = sorted[(i + 1).min(sorted.len() - 1)];
            let want = (1.0 - share) * sorted[i] + share * next;
            assert!((got - want).abs() <= 1e-15 * want.abs(), "{f}: {got} {want}");
        }
    }

    // Batches are one comparison.
    for size in [1, 13, 199] {
        let mut appended = Comparison::default();
        for start in (0..rows).step_by(size) {
            let range = start..rows.min(start + size);
            let elements = range.start * vocab..range.end * vocab;
            let of = |x| Logits::new(x, range.len(), vocab).unwrap();
            let compare = Compare::new().targets(&targets[range.clone()]);
            let (p, q) = (of(&p[elements.clone()]), of(&q[elements]));
            appended.append(compare.evaluate(p, q, CompareOutputs::new()).unwrap());
        }
        assert_eq!(appended, all, "batches of {size}");
    }

    // Without targets every row counts; what is about targets is known if it is for both.
    let without = Compare::new().evaluate(base, other, CompareOutputs::new()).unwrap();
    assert_eq!((without.count(), without.ignored()), (rows as u64, 0));
    assert!(without.at_targets().is_none());
    let mut mixed = all.clone();
    mixed.append(without.clone());
    assert!(mixed.at_targets().is_none());
    assert_eq!(mixed.count(), all.count() + without.count());
    let mut mixed = all.clone();
    mixed.append(Comparison::default());
    assert_eq!(mixed, all);
}

#[test]
fn statistics_of_few_rows_and_of_one_model() {
    let (p, _, targets) = two_models(8, 30);
    let of = |rows: usize| Logits::new(&p[..rows * 30], rows, 30).unwrap();
    let evaluate = |rows: usize| {
        let compare = Compare::new().targets(&targets[..rows]);
        compare.evaluate(of(rows), of(rows), CompareOutputs::new()).unwrap()
    };
    let none = evaluate(0);
    let at = none.at_targets().unwrap();
    for e in [none.mean_kl(), none.same_top(), at.ratio(), at.difference(), at.rms_delta_p()] {
        assert!(e.value.is_nan() && e.stderr.is_nan(), "{e:?}");
    }
    assert!(none.kl_percentiles([0.5])[0].is_nan() && at.correlation().is_nan());

    let one = evaluate(1);
    let at = one.at_targets().unwrap();
    for e in [one.mean_kl(), one.same_top(), at.ratio(), at.difference(), at.rms_delta_p()] {
        assert!(!e.value.is_nan() && e.stderr.is_nan(), "{e:?}");
    }
    assert_eq!(one.kl_percentiles([0.0, 0.3, 1.0, -1.0, 9.0]), [0.0; 5]);

    // A model compared with itself.
    let same = evaluate(8);
    let at = same.at_targets().unwrap();
    let zero = Estimate { value: 0.0, stderr: 0.0 };
    assert_eq!([same.mean_kl(), at.log_ratio(), at.mean_delta_p(), at.rms_delta_p()], [zero; 4]);
    assert_eq!(at.difference(), zero);
    assert_eq!((at.ratio().value, same.same_top().value), (1.0, 1.0));
    assert_eq!(at.correlation(), 1.0);

    // An infinity is one, a NaN is one, and neither is anywhere else.
    let (x, y) = ([0.0, 0.0, 0.0, 1.0, 1.0, 0.0], [0.0, MASK, 0.0, 1.0, 1.0, 0.0]);
    let (x, y) = (Logits::new(&x, 3, 2).unwrap(), Logits::new(&y, 3, 2).unwrap());
    let all = Compare::new().evaluate(x, y, CompareOutputs::new()).unwrap();
    assert_eq!(all.kl_percentiles([0.0, 0.5, 0.75, 1.0]), [0.0, 0.0, INF, INF]);
    assert_eq!(all.mean_kl().value, INF);
    let x = [f32::NAN, 0.0, 0.0, 1.0, 1.0, 0.0];
    let all = Compare::new().evaluate(Logits::new(&x, 3, 2).unwrap(), y, CompareOutputs::new());
    let all = all.unwrap();
    assert!(all.mean_kl().value.is_nan() && all.kl_percentiles([0.0])[0].is_nan());
}

#[test]
fn rows_without_a_result_are_counted() {
    for_each_backend(|backend| {
        let p = [f32::NAN, 0.0, 0.0, 1.0, MASK, MASK, f32::NAN, 0.0, 1.0, 0.0];
        let q = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, f32::INFINITY];
        // The first bad row is ignored.
        let targets = [-100i64, 1, 0, 0, 1];
        let of = |rows: std::ops::Range<usize>, with_targets: bool| {
            let compare = Compare::new().backend(backend);
            let compare =
                if with_targets { compare.targets(&targets[rows.clone()]) } else { compare };
            let (n, x) = (rows.len(), 2 * rows.start..2 * rows.end);
            let (p, q) = (Logits::new(&p[x.clone()], n, 2), Logits::new(&q[x], n, 2));
            compare.evaluate(p.unwrap(), q.unwrap(), CompareOutputs::new()).unwrap()
        };
        let all = of(0..5, true);
        assert_eq!((all.nan_rows(), all.first_nan_row(), all.count()), (3, Some(2), 4));
        // One row of four agrees, and its log-probabilities have a mean no more.
        assert_eq!(all.same_top().value, 0.25);
        assert!(all.mean_kl().value.is_nan());
        let all = of(0..5, false);
        assert_eq!((all.nan_rows(), all.first_nan_row()), (4, Some(0)));
        let good = of(1..2, true);
        assert_eq!((good.nan_rows(), good.first_nan_row()), (0, None));
        for cuts in [&[0, 1, 5][..], &[0, 2, 3, 5], &[0, 0, 5]] {
            let mut merged = Comparison::default();
            cuts.windows(2).for_each(|cut| merged.append(of(cut[0]..cut[1], true)));
            assert_eq!((merged.nan_rows(), merged.first_nan_row()), (3, Some(2)), "{cuts:?}");
        }
    });
}
