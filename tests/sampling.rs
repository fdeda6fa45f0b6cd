//! Draws: that they have the probabilities they should have, and that nothing but seed, position and logits decides.
//!
//! Seeds are fixed, and so are the draws: what passes once passes always.

use common::{Kind, Rng, for_each_backend, property, thin};
use proptest::prelude::*;
use std::collections::BTreeSet;
use xent::{
    AllowedTokens, Backend, Error, LogProbs, Logits, RowStats, Sample, Sampler, Shard,
    TokenOutputs, bf16, reference,
};

/// Philox4x32-10, written from the paper (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let wide = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (hi0, lo0) = wide(0xd251_1f53, counter[0]);
        let (hi1, lo1) = wide(0xcd9e_8d57, counter[2]);
        counter = [hi1 ^ counter[1] ^ key[0], lo1, hi0 ^ counter[3] ^ key[1], lo0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// The 64 random bits of a token: halves from two counters, each of which serves the four tokens that are 16 apart.
fn random_bits(sample: Sample, id: u32) -> u64 {
    let word = |half: u32| {
        let counter = id / 64 * 16 + id % 16;
        let position = [sample.position as u32, (sample.position >> 32) as u32];
        let key = [sample.seed as u32, (sample.seed >> 32) as u32];
        philox([counter, half, position[0], position[1]], key)[(id / 16 % 4) as usize]
    };
    u64::from(word(0)) << 32 | u64::from(word(1))
}

/// `-ln(-ln u)` of `u = 1 - (bits + 1/2) / 2^64`, with the functions of the standard library.
fn gumbel(bits: u64) -> f64 {
    let v = (bits as f64 + 0.5) * 2f64.powi(-64);
    let w = (!bits as f64 + 0.5) * 2f64.powi(-64);
    let exponential = if v < 0.5 { -(-v).ln_1p() } else { -w.ln() };
    -exponential.ln()
}

/// The token with the largest score, and by how much; `None` if there is none that can be drawn.
fn naive(row: &[f32], sample: Sample) -> Option<(usize, f64)> {
    if row.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        return None;
    }
    let (mut best, mut lead) = (None, f64::INFINITY);
    for (id, &z) in row.iter().enumerate().filter(|(_, z)| **z > f32::NEG_INFINITY) {
        let t = sample.temperature;
        let noise = if t == 0.0 { 0.0 } else { t * gumbel(random_bits(sample, id as u32)) };
        let score = f64::from(z) + noise;
        match best {
            Some((_, before)) if score <= before => lead = lead.min(before - score),
            _ => {
                lead = best.map_or(f64::INFINITY, |(_, before)| score - before);
                best = Some((id, score));
            }
        }
    }
    best.map(|(id, _)| (id, lead))
}

fn draws(row: &[f32], samples: &[Sample], ask: LogProbs<'_>) -> Vec<i64> {
    let views = vec![row; samples.len()];
    let logits = Logits::from_rows(&views, row.len()).unwrap();
    let mut tokens = vec![-7; samples.len()];
    ask.sample(samples).run(logits, TokenOutputs::new().sampled(&mut tokens)).unwrap();
    tokens
}

/// The probability that a chi-square of so many degrees of freedom is as large (Wilson and Hilferty).
fn tail_of_chi_square(x: f64, degrees: f64) -> f64 {
    let z = ((x / degrees).cbrt() - (1.0 - 2.0 / (9.0 * degrees))) / (2.0 / (9.0 * degrees)).sqrt();
    // Of a normal distribution, by numerical integration.
    let (mut sum, step) = (0.0, 1e-3);
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let mut at = z;
    while at < 12.0 {
        sum += step * density(at + step / 2.0);
        at += step;
    }
    sum
}

/// How likely counts are that are as far from what is expected; tokens expected less than 10 times are taken as one.
fn likelihood(counts: &[usize], p: &[f64]) -> f64 {
    let n = counts.iter().sum::<usize>() as f64;
    let (mut rest, mut rest_expected, mut sum, mut cells) = (0.0, 0.0, 0.0, 0.0);
    for (&count, &p) in counts.iter().zip(p) {
        let (count, expected) = (count as f64, n * p);
        if expected < 10.0 {
            rest += count;
            rest_expected += expected;
        } else {
            sum += (count - expected).powi(2) / expected;
            cells += 1.0;
        }
    }
    if rest_expected > 5.0 {
        sum += (rest - rest_expected).powi(2) / rest_expected;
        cells += 1.0;
    } else {
        assert!(rest < 30.0, "{rest} draws of tokens that {rest_expected} are expected of");
    }
    // A single token that has everything is no test, where draws are thinned.
    if cells > 1.0 { tail_of_chi_square(sum, cells - 1.0) } else { 1.0 }
}

/// The test of the test.
#[test]
fn chi_square() {
    // From tables: 5% and 1% points.
    for (x, degrees, p) in [(18.307, 10.0, 0.05), (23.209, 10.0, 0.01), (124.342, 100.0, 0.05)] {
        let got = tail_of_chi_square(x, degrees);
        assert!((got / p - 1.0).abs() < 0.03, "{got} {p}");
    }
    // Counts that are as they should be, and some that are not.
    assert!(likelihood(&[500, 300, 200], &[0.5, 0.3, 0.2]) > 0.9);
    assert!(likelihood(&[540, 280, 180], &[0.5, 0.3, 0.2]) < 0.05);
    assert!(likelihood(&[600, 250, 150], &[0.5, 0.3, 0.2]) < 1e-6);
}

#[test]
fn draws_have_the_probabilities_of_the_softmax() {
    let n = (200_000 / thin()).max(4000);
    let mut rng = Rng::new(21);
    // Every backend draws the same tokens, as the test below shows.
    for vocab in [2, 50, 67, 3000] {
        for spread in [0.0, 1.0, 3.0] {
            let row: Vec<f32> = (0..vocab).map(|_| spread * rng.normal()).collect();
            for t in [0.5, 1.0, 2.0] {
                let n = if vocab > 100 { n / 4 } else { n };
                let seed = rng.bits();
                let samples: Vec<Sample> =
                    (0..n as u64).map(|i| Sample::new(seed, i).temperature(t)).collect();
                let mut counts = vec![0; vocab];
                for token in draws(&row, &samples, LogProbs::new()) {
                    counts[token as usize] += 1;
                }
                let z: Vec<f64> = row.iter().map(|&z| f64::from(z) / t).collect();
                let p = likelihood(&counts, &reference::softmax(&z));
                println!("{vocab} tokens, spread {spread}, temperature {t}: {p:.3}");
                // One draw of 36 is below 0.01 one time in three.
                assert!(p > 1e-3, "{vocab} tokens, spread {spread}, temperature {t}: {p}");
            }
        }
    }
}

/// The same for seeds instead of positions, and neighbours in either are as good as independent.
#[test]
fn seeds_and_positions_are_independent() {
    let n = (100_000 / thin()).max(4000);
    let row = [0.0_f32; 8];
    let by_seed: Vec<Sample> = (0..n as u64).map(|seed| Sample::new(seed, 3)).collect();
    let by_position: Vec<Sample> = (0..n as u64).map(|i| Sample::new(3, i << 32)).collect();
    for samples in [by_seed, by_position] {
        let tokens = draws(&row, &samples, LogProbs::new());
        let mut pairs = vec![0; 64];
        for pair in tokens.chunks_exact(2) {
            pairs[(8 * pair[0] + pair[1]) as usize] += 1;
        }
        let p = likelihood(&pairs, &[1.0 / 64.0; 64]);
        assert!(p > 1e-3, "{p}");
    }
}

/// The random numbers are what they are said to be: their tails too, of which draws of rare tokens are made.
#[test]
fn tails_of_random_numbers() {
    // P(g > x) = 1 - e^(-e^-x), of ten million; the largest is where it should be.
    let n = 10_000_000 / thin() as u32;
    let sample = Sample::new(99, 1);
    let mut counts = [0u32; 5];
    let bounds = [-2.0_f64, 0.0, 3.0, 8.0, 12.0];
    for id in 0..n {
        let g = gumbel(random_bits(sample, id));
        for (count, bound) in counts.iter_mut().zip(bounds) {
            *count += u32::from(g > bound);
        }
    }
    for (count, bound) in counts.into_iter().zip(bounds) {
        let p = -(-(-bound).exp()).exp_m1();
        let expected = f64::from(n) * p;
        let sigma = (expected * (1.0 - p)).sqrt();
        let off = (f64::from(count) - expected).abs();
        assert!(off <= 4.0 * sigma, "{count} of {expected} above {bound}");
    }
    // A token that is 12 below is drawn about 6 times in a million: 64 of them 4 times in 10,000.
    let mut row = [-12.0_f32; 65];
    row[64] = 0.0;
    let n = (1_000_000 / thin()).max(10_000);
    let samples: Vec<Sample> = (0..n as u64).map(|i| Sample::new(7, i)).collect();
    let rare = draws(&row, &samples, LogProbs::new()).into_iter().filter(|&id| id < 64).count();
    let expected = n as f64 * 64.0 * (-12f64).exp() / (1.0 + 64.0 * (-12f64).exp());
    let off = (rare as f64 - expected).abs();
    assert!(off <= 4.0 * expected.sqrt(), "{rare} of {expected}");
}

/// Draws of all kinds of rows, at all temperatures, are those of a scan that computes every score.
fn check_against_naive(seed: u64, vocab: usize, backends: &[Backend]) {
    let mut rng = Rng::new(seed);
    let kind = Kind::any(&mut rng);
    let row = kind.row(&mut rng, vocab);
    let temperatures = [0.0, 1e-310, 1e-30, 1e-3, 0.25, 1.0, 4.0, 1e6, 1e300];
    let samples: Vec<Sample> = temperatures
        .map(|t| Sample::new(rng.bits(), rng.bits()).temperature(t))
        .into_iter()
        .collect();
    let want: Vec<_> = samples.iter().map(|&sample| naive(&row, sample)).collect();
    for &backend in backends {
        let got = draws(&row, &samples, LogProbs::new().backend(backend));
        for ((&got, want), sample) in got.iter().zip(&want).zip(&samples) {
            let what = format!("{kind:?} of {vocab}, seed {seed}, {backend}, {sample:?}");
            match *want {
                None => assert_eq!(got, -1, "{what}"),
                // Logarithms of the standard library differ in their last digits.
                Some((id, lead)) => {
                    let t = sample.temperature;
                    let sure =
                        t == 0.0 || lead == 0.0 || lead > 1e-12 * t.max(f64::from(row[id].abs()));
                    assert!(got == id as i64 || !sure, "{got} instead of {id}, {lead:e}: {what}");
                    assert!(row[got as usize] > f32::NEG_INFINITY, "{what}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(property(400))]

    #[test]
    fn draws_are_those_of_a_naive_scan(seed: u64, vocab in 1..1200usize) {
        check_against_naive(seed, vocab, Backend::available());
    }
}

#[test]
fn draws_of_long_rows_are_those_of_a_naive_scan() {
    let lengths: &[usize] =
        if thin() > 1 { &[1025] } else { &[1024, 32_768, 32_769, 50_257, 98_309] };
    let mut rng = Rng::new(2);
    for_each_backend(|backend| {
        for &vocab in lengths {
            for _ in 0..3 {
                check_against_naive(rng.bits(), vocab, &[backend]);
            }
        }
    });
}

#[test]
fn threads_and_shards_do_not_matter() {
    let vocab = if thin() > 1 { 66_000 } else { 151_936 };
    let mut rng = Rng::new(5);
    let row: Vec<f32> = (0..vocab).map(|_| 2.0 * rng.normal()).collect();
    let logits = Logits::new(&row, 1, vocab).unwrap();
    for_each_backend(|backend| {
        for position in 0..10 {
            let samples = [Sample::new(31, position).temperature(1.0 + position as f64)];
            let (id, _) = naive(&row, samples[0]).unwrap();
            let ask = LogProbs::new().sample(&samples).backend(backend);
            for threads in [1, 2, 3, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut token = [0];
                pool.install(|| ask.run(logits, TokenOutputs::new().sampled(&mut token)).unwrap());
                assert_eq!(token, [id as i64], "{backend}, {threads} threads");
            }
            let cut = 1 + rng.below(vocab - 1);
            let part = |from: usize, to: usize| {
                let x = Logits::new(&row[from..to], 1, to - from).unwrap();
                let mut stats = [RowStats::default()];
                ask.row_stats(x, Shard::new(from, vocab), &mut stats).unwrap();
                stats[0]
            };
            let both = part(cut, vocab).merge(&part(0, cut)).unwrap();
            assert_eq!(both.sampled(), Some(id as u32), "{backend}, cut at {cut}");
        }
    });
}

/// Of the temperature of the distribution, too: logits are divided by it first.
#[test]
fn temperatures_multiply() {
    let row: Vec<f32> = (0..100).map(|j| (j % 13) as f32).collect();
    let halved: Vec<f32> = row.iter().map(|z| z / 2.0).collect();
    let samples: Vec<Sample> = (0..100).map(|i| Sample::new(8, i).temperature(0.5)).collect();
    for_each_backend(|backend| {
        let ask = LogProbs::new().backend(backend);
        let at_two = draws(&row, &samples, ask.temperature(2.0));
        assert_eq!(at_two, draws(&halved, &samples, ask));
        // And the log-probabilities are of that distribution, not of the sample.
        let views = vec![&row[..]; samples.len()];
        let logits = Logits::from_rows(&views, 100).unwrap();
        let found = ask.temperature(2.0).sample(&samples).collect(logits).unwrap();
        let log_p = reference::log_softmax(&halved);
        for (&id, &got) in found.sampled.iter().zip(&found.sampled_logprobs) {
            assert!(reference::ulp_error(got, log_p[id as usize]) <= 2.0);
        }
    });
}

#[test]
fn masked_tokens_are_never_drawn() {
    let vocab = 70;
    let mut rng = Rng::new(13);
    for_each_backend(|backend| {
        for position in 0..(300 / thin()).max(20) as u64 {
            let mut row: Vec<f32> = (0..vocab).map(|_| rng.normal()).collect();
            row.iter_mut().filter(|_| rng.unit() < 0.7).for_each(|x| *x = f32::NEG_INFINITY);
            let mask: Vec<u32> = (0..3).map(|_| rng.bits() as u32).collect();
            let is_allowed =
                |id: usize| mask[id / 32] >> (id % 32) & 1 == 1 && row[id] > f32::NEG_INFINITY;
            for t in [0.0, 0.1, 1.0, 100.0] {
                let sample = [Sample::new(1, position).temperature(t)];
                let ask =
                    LogProbs::new().backend(backend).allowed_tokens(AllowedTokens::new(&mask));
                let token = draws(&row, &sample, ask)[0];
                if (0..vocab).any(is_allowed) {
                    assert!(is_allowed(token as usize), "{token}");
                } else {
                    assert_eq!(token, -1);
                }
            }
        }
    });
}

#[test]
fn rows_that_cannot_be_sampled() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for_each_backend(|backend| {
        let long = |at: usize, x: f32| {
            let mut row = vec![0.0; 3000];
            row[at] = x;
            row
        };
        for row in [
            vec![nan],
            vec![inf],
            vec![-inf],
            vec![-inf; 2000],
            vec![1.0, inf, 2.0],
            long(2999, nan),
            long(0, inf),
            long(1500, nan),
        ] {
            for t in [0.0, 0.5, 1.0] {
                let ask = LogProbs::new().backend(backend);
                let samples = [Sample::new(4, 4).temperature(t)];
                for target in [None, Some([0i64]), Some([row.len() as i64 - 1])] {
                    let ask = target.as_ref().map_or(ask, |target| ask.targets(target));
                    let logits = Logits::new(&row, 1, row.len()).unwrap();
                    let found = ask.sample(&samples).collect(logits).unwrap();
                    assert_eq!(found.sampled, [-1], "{backend}, temperature {t}");
                    assert!(found.sampled_logprobs[0].is_nan());
                }
            }
        }
    });
}

#[test]
fn temperature_0_is_the_argmax() {
    let mut rng = Rng::new(30);
    for_each_backend(|backend| {
        for _ in 0..(200 / thin()).max(20) {
            let vocab = 1 + rng.below(2000);
            let row = rng.pick(Kind::ORDINARY).row(&mut rng, vocab);
            let samples = [Sample::new(rng.bits(), 0).temperature(0.0)];
            let target = [rng.below(vocab) as i64];
            for ask in [LogProbs::new(), LogProbs::new().targets(&target)] {
                let logits = Logits::new(&row, 1, vocab).unwrap();
                let found = ask.backend(backend).sample(&samples).collect(logits).unwrap();
                let all_masked = row.iter().all(|&x| x == f32::NEG_INFINITY);
                assert_eq!(found.sampled[0], if all_masked { -1 } else { found.argmax[0] });
            }
        }
    });
}

/// `f64` in plain code, from the same random numbers.
#[test]
fn rows_of_f64() {
    let mut rng = Rng::new(14);
    for position in 0..100 {
        let row: Vec<f32> = (0..500).map(|_| 2.0 * rng.normal()).collect();
        let doubles: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        for t in [0.0, 1.0, 3.0] {
            let samples = [Sample::new(6, position).temperature(t)];
            let found = LogProbs::new().sample(&samples);
            let found = found.collect(Logits::new(&doubles, 1, 500).unwrap()).unwrap();
            let want = naive(&row, samples[0]).map(|(id, _)| id as i64);
            assert_eq!(Some(found.sampled[0]), want);
        }
    }
}

/// Filters applied to the whole vocabulary, one after the other; the draw among what is left.
fn naive_sampler(
    logprobs: &[(i64, f32)],
    (top_k, top_p, min_p): (Option<usize>, Option<f64>, Option<f64>),
    sample: Sample,
) -> i64 {
    let t = sample.temperature;
    let weight = |&(_, logprob): &(i64, f32)| {
        let below = f64::from(logprob) - f64::from(logprobs[0].1);
        if below == 0.0 {
            1.0
        } else if t == 0.0 {
            0.0
        } else {
            (below / t).exp()
        }
    };
    let mut left = logprobs.to_vec();
    if let Some(k) = top_k {
        left.truncate(k);
    }
    if let Some(p) = top_p.filter(|&p| p < 1.0) {
        let all: f64 = left.iter().map(weight).sum();
        let mut sum = 0.0;
        let n = left.iter().take_while(|token| {
            let goes_on = sum < p * all;
            sum += weight(token);
            goes_on
        });
        let n = n.count().max(1);
        left.truncate(n);
    }
    if let Some(p) = min_p {
        let first = left[0];
        left.retain(|token| weight(token) >= p);
        if left.is_empty() {
            left.push(first);
        }
    }
    let score = |&(id, logprob): &(i64, f32)| {
        let noise = if t == 0.0 { 0.0 } else { t * gumbel(random_bits(sample, id as u32)) };
        f64::from(logprob) + noise
    };
    let mut best = left[0];
    for token in &left {
        let (a, b) = (score(token), score(&best));
        if a > b || a == b && token.0 < best.0 {
            best = *token;
        }
    }
    best.0
}

fn with(top_k: Option<usize>, top_p: Option<f64>, min_p: Option<f64>) -> Sampler {
    let mut sampler = Sampler::new();
    if let Some(k) = top_k {
        sampler = sampler.top_k(k);
    }
    if let Some(p) = top_p {
        sampler = sampler.top_p(p);
    }
    if let Some(p) = min_p {
        sampler = sampler.min_p(p);
    }
    sampler
}

proptest! {
    #![proptest_config(property(3000))]

    /// With all tokens known there is always an answer, and with some the same or none.
    #[test]
    fn filters_are_those_of_the_whole_vocabulary(
        seed: u64,
        vocab in 1..=128usize,
        top_k in prop::option::of(0..140usize),
        top_p in prop::option::of(prop_oneof![
            3 => 0.0..1.0f64, 1 => Just(1.0), 1 => Just(0.0), 1 => Just(2.0), 1 => Just(0.999_999)
        ]),
        min_p in prop::option::of(prop_oneof![3 => 0.0..0.3f64, 1 => Just(0.0), 1 => Just(1.0), 1 => Just(3.0)]),
        t in prop::sample::select(vec![0.0, 0.3, 1.0, 1.0, 1.0, 2.0]),
    ) {
        let mut rng = Rng::new(seed);
        let spread = rng.pick(&[0.1, 2.0, 10.0]);
        let mut row: Vec<f32> = (0..vocab).map(|_| spread * rng.normal()).collect();
        if rng.below(3) == 0 {
            row.iter_mut().for_each(|x| *x = x.round());
        }
        let logits = Logits::new(&row, 1, vocab).unwrap();
        let found = LogProbs::new().top_k(vocab).collect(logits).unwrap();
        let all: Vec<(i64, f32)> = found.top(0).collect();
        let sample = Sample::new(rng.bits(), rng.bits()).temperature(t);
        let sampler = with(top_k, top_p, min_p);
        let top_k = top_k.filter(|&k| k > 0);
        // What is so close to a bound that rounding decides may be on either side of it.
        let wants = [1.0, 1.0 - 1e-4].map(|low| {
            let below = |p: Option<f64>| p.map(|p| if p < 1.0 { p * low } else { p });
            [1.0, 1.0 - 1e-5].map(|lower| {
                let top_p = top_p.map(|p| if p < 1.0 { p * lower } else { p });
                naive_sampler(&all, (top_k, top_p, below(min_p)), sample)
            })
        });
        let is_right = |token: i64| wants.iter().flatten().any(|&want| want == token);
        let draw = |known: usize| {
            sampler.draw(&found.top_ids[..known], &found.top_logprobs[..known], vocab, sample)
        };
        let got = draw(vocab);
        prop_assert!(got.as_ref().is_ok_and(|&token| is_right(token)), "{got:?}, {wants:?}");
        let known = 1 + rng.below(vocab);
        let of_all = top_p.is_some_and(|p| p < 1.0) && top_k.is_none_or(|k| k >= vocab);
        match draw(known) {
            Ok(token) => prop_assert!(is_right(token), "{token}, {wants:?}"),
            Err(Error::TooFewTokens { known: n, .. }) => prop_assert!(n == known && n < vocab),
            Err(Error::Option { option: "temperature", .. }) => {
                prop_assert!(of_all && known < vocab && t != 0.0 && t != 1.0);
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
        // Where the first filter says how many are left there is always an answer.
        if top_k.is_some_and(|k| k <= known) {
            prop_assert!(draw(known).is_ok_and(is_right));
        }
    }
}

/// Statistics of a row, with its most probable tokens.
fn stats(ask: LogProbs<'_>, row: &[f32]) -> RowStats {
    let mut stats = [RowStats::default()];
    let logits = Logits::new(row, 1, row.len()).unwrap();
    ask.row_stats(logits, Shard::new(0, row.len()), &mut stats).unwrap();
    stats[0]
}

/// All tokens that some hundred draws have.
fn drawn(n: u64, draw: impl Fn(u64) -> Result<i64, Error>) -> BTreeSet<i64> {
    (0..n).map(|i| draw(i).unwrap()).collect()
}

/// Draws among the first `known` tokens of a row: as `f32`, as `f64`, as 16 bits, and as statistics.
type Way = (&'static str, Box<dyn Fn(Sampler, usize, Sample) -> Result<i64, Error>>);

fn ways(row: &[f32]) -> Vec<Way> {
    let (vocab, owned) = (row.len(), row.to_vec());
    let k = vocab.min(LogProbs::MAX_TOP_K);
    let ask = LogProbs::new().top_k(k);
    let single = ask.collect(Logits::new(row, 1, vocab).unwrap()).unwrap();
    let wide: Vec<f64> = row.iter().map(|&x| x.into()).collect();
    let double = ask.collect(Logits::new(&wide, 1, vocab).unwrap()).unwrap();
    let narrow: Vec<bf16> = row.iter().map(|&x| bf16::from_f32(x)).collect();
    let is_narrow = narrow.iter().zip(row).all(|(x, y)| x.to_f32() == *y);
    let half = ask.collect(Logits::new(&narrow, 1, vocab).unwrap()).unwrap();
    let mut ways: Vec<Way> = vec![
        (
            "f32",
            Box::new(move |sampler, known, sample| {
                sampler.draw(&single.top_ids[..known], &single.top_logprobs[..known], vocab, sample)
            }),
        ),
        (
            "f64",
            Box::new(move |sampler, known, sample| {
                sampler.draw(&double.top_ids[..known], &double.top_logprobs[..known], vocab, sample)
            }),
        ),
        (
            "stats",
            Box::new(move |sampler, known, sample| {
                sampler.draw_row(&stats(LogProbs::new().top_k(known), &owned), vocab, sample)
            }),
        ),
    ];
    if is_narrow {
        ways.push((
            "bf16",
            Box::new(move |sampler, known, sample| {
                sampler.draw(&half.top_ids[..known], &half.top_logprobs[..known], vocab, sample)
            }),
        ));
    }
    ways
}

/// That `top_p` leaves so many tokens, fewer than there are: these will do, and one less will not.
#[track_caller]
fn leaves(row: &[f32], ways: &[Way], p: f64, count: usize) {
    let sampler = Sampler::new().top_p(p);
    let sample = Sample::new(3, 5);
    for (way, draw) in ways {
        let what = format!("{way}: {p} of {}", row.len());
        let got = draw(sampler, count, sample);
        assert!(got.is_ok(), "{got:?} of {count}, {what}");
        if count > 1 {
            let got = draw(sampler, count - 1, sample);
            let error = Error::TooFewTokens { option: "top_p", known: count - 1 };
            assert_eq!(got, Err(error), "{what}");
        }
    }
}

#[test]
fn top_p_of_equal_tokens() {
    let row = [0.0_f32; 4];
    for (way, draw) in ways(&row) {
        let tokens = |p: f64, known: usize| {
            drawn(200, |i| draw(Sampler::new().top_p(p), known, Sample::new(11, i)))
        };
        assert_eq!(tokens(0.25, 2), [0].into(), "{way}");
        assert_eq!(tokens(0.5, 2), [0, 1].into(), "{way}");
        assert_eq!(tokens(0.75, 3), [0, 1, 2].into(), "{way}");
        assert_eq!(tokens(0.250_001, 2), [0, 1].into(), "{way}");
        assert_eq!(tokens(0.249_999, 2), [0].into(), "{way}");
        assert_eq!(tokens(0.750_001, 4), [0, 1, 2, 3].into(), "{way}");
        // Of all that is known there is always an answer.
        for p in [0.999_999_999, 1.0 - 2f64.powi(-53), 1.0] {
            assert_eq!(tokens(p, 4), [0, 1, 2, 3].into(), "{way}");
        }
    }
    // `j` of `vocab`, for all of them: the quotient is rounded, up or down.
    for vocab in [2, 3, 5, 6, 7, 9, 10, 11, 49, 100, 127, 129, 1000, 1023, 50_257, 151_936] {
        for x in [0.0, 1.5, -20.0, 1e4] {
            if thin() > 1 && vocab > 10 || vocab > 1000 && x != 1.5 {
                continue;
            }
            let row = vec![x; vocab];
            let ways = ways(&row);
            let step = if vocab > 1000 { 17 } else { 1 };
            for j in (1..vocab.min(128)).step_by(step) {
                let p = j as f64 / vocab as f64;
                leaves(&row, &ways, p, j);
                leaves(&row, &ways, p * (1.0 - 1e-5), j);
                if j < vocab.min(128) - 1 {
                    leaves(&row, &ways, p * (1.0 + 1e-5), j + 1);
                }
            }
        }
    }
    // Decimal fractions are rounded too.
    let row = [2.0_f32; 10];
    let ways = ways(&row);
    for (i, p) in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9].into_iter().enumerate() {
        leaves(&row, &ways, p, i + 1);
    }
    // One more than a tenth is not.
    for p in [0.1 + 0.2, 0.7 + 1e-16, 1.0 - 0.9] {
        leaves(&row, &ways, p, (p * 10.0).round() as usize);
    }
}

/// Some tokens of a high logit among others of a low one: the sums are no fractions that one could round.
#[test]
fn top_p_of_hot_tokens() {
    for vocab in [20, 1000, 32_000] {
        for (hot, x) in [(1, 4.0_f32), (3, 0.5), (7, 2.25), (5, 9.0), (10, 15.0), (4, -3.0)] {
            let (high, low) = if x > 0.0 { (x, 0.0) } else { (0.0, x) };
            let mut row = vec![low; vocab];
            (0..hot).for_each(|i| row[i * (vocab / hot)] = high);
            let (e, rest) = (f64::from(high).exp(), (vocab - hot) as f64 * f64::from(low).exp());
            let p = e / (hot as f64 * e + rest);
            let ways = ways(&row);
            for j in 1..=hot {
                leaves(&row, &ways, j as f64 * p, j);
                leaves(&row, &ways, j as f64 * p * (1.0 - 1e-5), j);
            }
            if hot > 1 && p * (hot as f64) < 0.99 {
                leaves(&row, &ways, p * (1.0 + 1e-5), 2);
            }
        }
    }
}

/// A temperature does not make a number of what rounding left.
#[test]
fn top_p_after_top_k_at_a_temperature() {
    let equal = [7.25_f32; 9];
    for t in [1e-12, 1e-6, 0.01, 0.7, 1.0, 3.0, 1e6] {
        for (way, draw) in ways(&equal) {
            let tokens = |k: usize, p: f64| {
                let sampler = Sampler::new().top_k(k).top_p(p);
                drawn(200, |i| draw(sampler, 5, Sample::new(1, i).temperature(t)))
            };
            let what = format!("{way} at {t}");
            for j in 1..5 {
                assert_eq!(tokens(4, j as f64 / 4.0), (0..j).collect(), "{j}, {what}");
                assert_eq!(tokens(5, j as f64 / 5.0), (0..j).collect(), "{j}, {what}");
            }
            assert_eq!(tokens(2, 0.5), [0].into(), "{what}");
            assert_eq!(tokens(2, 0.51), [0, 1].into(), "{what}");
            assert_eq!(tokens(3, 0.7), [0, 1, 2].into(), "{what}");
        }
    }
    // Twice as probable as the others, at the temperature.
    for t in [0.5_f32, 1.0, 2.0] {
        let row = [t * std::f32::consts::LN_2, 0.0, 0.0, -50.0];
        for (way, draw) in ways(&row) {
            let tokens = |p: f64| {
                let sampler = Sampler::new().top_k(3).top_p(p);
                drawn(200, |i| draw(sampler, 3, Sample::new(1, i).temperature(t.into())))
            };
            assert_eq!(tokens(0.4999), [0].into(), "{way} at {t}");
            if way == "f32" {
                assert_eq!(tokens(0.5), [0].into(), "{way} at {t}");
                assert_eq!(tokens(0.75), [0, 1].into(), "{way} at {t}");
            }
            assert_eq!(tokens(0.501), [0, 1].into(), "{way} at {t}");
            assert_eq!(tokens(0.751), [0, 1, 2].into(), "{way} at {t}");
        }
    }
}

#[test]
fn min_p_at_its_bound() {
    for p in [0.5_f64, 0.1, 0.05, 0.9, 0.7] {
        for base in [0.0_f32, 3.3, -12.0, 20.0] {
            let row = [base, base + p.ln() as f32, -60.0, -60.0];
            for (way, draw) in ways(&row) {
                let tokens = |p: f64, t: f64| {
                    let sampler = Sampler::new().min_p(p);
                    drawn(4000, |i| draw(sampler, 3, Sample::new(1, i).temperature(t)))
                };
                // With another base the difference of the logits is not that of `f64`.
                if way == "stats" || base == 0.0 && way == "f32" {
                    assert_eq!(tokens(p, 1.0), [0, 1].into(), "{way}, {p}, {base}");
                }
                assert_eq!(tokens(p * (1.0 - 1e-5), 1.0), [0, 1].into(), "{way}, {p}, {base}");
                assert_eq!(tokens(p * (1.0 + 1e-5), 1.0), [0].into(), "{way}, {p}, {base}");
                assert_eq!(tokens(0.999 * p * p, 0.5), [0, 1].into(), "{way}, {p}, {base}");
            }
        }
    }
    let double = [0.0_f64, 0.5f64.ln(), -60.0];
    let found = LogProbs::new().top_k(3).collect(Logits::new(&double, 1, 3).unwrap()).unwrap();
    for (p, tokens) in [(0.5, &[0, 1][..]), (0.5 + 1e-14, &[0]), (0.5 - 1e-14, &[0, 1])] {
        let sampler = Sampler::new().min_p(p);
        let draw = |i| sampler.draw(&found.top_ids, &found.top_logprobs, 3, Sample::new(1, i));
        assert_eq!(drawn(200, draw), tokens.iter().copied().collect(), "{p}");
    }
    // Ties with the first, of which 1 leaves all and more than 1 only one; and what is not quite as large.
    let row = [2.0_f32, 2.0, 2.0_f32.next_down(), 1.0];
    for (way, draw) in ways(&row) {
        let tokens = |p: f64| drawn(200, |i| draw(Sampler::new().min_p(p), 4, Sample::new(1, i)));
        let ties = tokens(1.0);
        // In `f32` neighbours may have the same log-probability.
        assert!(ties == [0, 1].into() || way == "f32" && ties == [0, 1, 2].into(), "{ties:?}");
        assert_eq!(tokens(1.0 + 1e-9), [0].into(), "{way}");
        assert_eq!(tokens(0.999), [0, 1, 2].into(), "{way}");
    }
}

#[test]
fn top_k_of_equal_tokens_leaves_the_lowest_ids() {
    let row = [1.0_f32, 3.0, 2.0, 3.0, 2.0, 2.0, 3.0];
    for (way, draw) in ways(&row) {
        for (k, left) in [(1, &[1][..]), (2, &[1, 3]), (3, &[1, 3, 6]), (4, &[1, 2, 3, 6])] {
            let sampler = Sampler::new().top_k(k);
            let tokens = drawn(400, |i| draw(sampler, 5, Sample::new(1, i).temperature(3.0)));
            assert_eq!(tokens, left.iter().copied().collect(), "{way}, {k}");
        }
    }
}

/// 0 is off, as elsewhere, and more than the vocabulary is all of it.
#[test]
fn top_k_of_nothing_and_of_more_than_there_is() {
    assert_eq!(Sampler::new().top_k(0), Sampler::new());
    assert_eq!(Sampler::new().top_k(5).top_k(0), Sampler::new());
    let row = [0.0_f32, 1.0, 2.0, -1.0, 0.5];
    for (way, draw) in ways(&row) {
        for k in [0, 5, 6, 128, 1000, usize::MAX] {
            for position in 0..50 {
                for t in [0.0, 0.5, 1.0, 2.0] {
                    let sample = Sample::new(9, position).temperature(t);
                    for more in [
                        Sampler::new(),
                        Sampler::new().top_p(0.8),
                        Sampler::new().min_p(0.2),
                        Sampler::new().top_p(0.9).min_p(0.1),
                    ] {
                        let got = draw(more.top_k(k), 5, sample);
                        assert!(got.is_ok(), "{way}, {k}: {got:?}");
                        assert_eq!(got, draw(more, 5, sample), "{way}, {k}");
                        assert_eq!(
                            got,
                            draw(more.top_k(k).top_p(1.0).top_k(k), 5, sample).and(got.clone())
                        );
                        // Of some tokens: the same, or the same error.
                        let some = draw(more.top_k(k), 3, sample);
                        assert!(some.is_err() || some == got, "{way}, {k}: {some:?}");
                    }
                    // What is off needs no temperature.
                    let off = Sampler::new().top_p(1.0).min_p(0.3);
                    let got = draw(off, 4, sample);
                    assert_eq!(got, draw(Sampler::new().min_p(0.3), 4, sample), "{way}");
                    assert!(got.is_ok() || t == 2.0, "{way}, {t}: {got:?}");
                }
            }
        }
    }
}

#[test]
fn rows_draw_what_the_pass_draws() {
    let mut rng = Rng::new(77);
    for position in 0..(400 / thin()).max(40) as u64 {
        let vocab = 1 + rng.below(128);
        let kind = Kind::any(&mut rng);
        let row = kind.row(&mut rng, vocab);
        for t in [0.0, 1e-30, 0.5, 1.0, 2.0, 1e300] {
            let samples = [Sample::new(23, position).temperature(t)];
            let row_stats = stats(LogProbs::new().top_k(vocab).sample(&samples), &row);
            let want = row_stats.sampled().map(i64::from);
            for sampler in
                [Sampler::new(), Sampler::new().top_k(vocab), Sampler::new().top_p(1.0).min_p(0.0)]
            {
                let got = sampler.draw_row(&row_stats, vocab, samples[0]);
                match want {
                    Some(token) => assert_eq!(got, Ok(token), "{kind:?}, {t}"),
                    None => {
                        assert_eq!(got, Err(Error::NothingToSample { known: vocab }), "{kind:?}")
                    }
                }
            }
        }
    }
    // Of shards, merged; and filters that bite, as by way of log-probabilities.
    let row: Vec<f32> = (0..5000).map(|_| 3.0 * rng.normal()).collect();
    let part = |from: usize, to: usize| {
        let x = Logits::new(&row[from..to], 1, to - from).unwrap();
        let mut stats = [RowStats::default()];
        let ask = LogProbs::new().top_k(100);
        ask.row_stats(x, Shard::new(from, 5000), &mut stats).unwrap();
        stats[0]
    };
    let merged = part(0, 2048).merge(&part(2048, 5000)).unwrap();
    let found = LogProbs::new().top_k(100).collect(Logits::new(&row, 1, 5000).unwrap()).unwrap();
    for i in 0..500 {
        for sampler in [
            Sampler::new().top_k(40),
            Sampler::new().top_p(0.3),
            Sampler::new().min_p(0.2),
            Sampler::new().top_k(50).top_p(0.9).min_p(0.05),
        ] {
            let sample = Sample::new(5, i);
            let want = sampler.draw(&found.top_ids, &found.top_logprobs, 5000, sample);
            assert_eq!(sampler.draw_row(&merged, 5000, sample), want, "{sampler:?}");
        }
    }
}

/// From 1 on, `top_p` leaves all: also those that no sum shows.
#[test]
fn top_p_of_1_leaves_all() {
    // The second token has a probability of 1e-26: too little for a sum, not for a draw at temperature 1 of many tokens.
    let row = [60.0_f32, 0.0, 0.0];
    let found = LogProbs::new().top_k(3).collect(Logits::new(&row, 1, 3).unwrap()).unwrap();
    let known = |n: usize| (&found.top_ids[..n], &found.top_logprobs[..n]);
    for p in [1.0, 1.5, f64::INFINITY] {
        let (ids, logprobs) = known(1);
        let sample = Sample::new(0, 0);
        let got = Sampler::new().top_p(p).draw(ids, logprobs, 3, sample);
        assert!(matches!(got, Err(Error::TooFewTokens { known: 1, .. })), "{p}: {got:?}");
        // At a temperature where the others have their part, after `top_k`, which leaves all too.
        let sampler = Sampler::new().top_k(3).top_p(p);
        let (ids, logprobs) = known(3);
        let tokens =
            (0..300).map(|i| sampler.draw(ids, logprobs, 3, Sample::new(0, i).temperature(30.0)));
        let others = tokens.filter(|token| *token != Ok(0)).count();
        assert!(others > 20, "{p}: {others}");
    }
}

#[test]
fn no_filter_draws_what_the_row_draws() {
    let mut rng = Rng::new(40);
    for position in 0..(500 / thin()).max(50) as u64 {
        let row: Vec<f32> = (0..128).map(|_| 2.0 * rng.normal()).collect();
        for t in [0.0, 0.5, 1.0, 2.0] {
            let samples = [Sample::new(17, position).temperature(t)];
            let ask = LogProbs::new().top_k(128).sample(&samples);
            let found = ask.collect(Logits::new(&row, 1, 128).unwrap()).unwrap();
            for sampler in [
                Sampler::new(),
                Sampler::default(),
                Sampler::new().top_k(128),
                Sampler::new().top_k(1000).top_p(1.0).min_p(0.0),
            ] {
                let got = sampler.draw(&found.top_ids, &found.top_logprobs, 128, samples[0]);
                assert_eq!(got, Ok(found.sampled[0]), "{position}, {t}");
            }
        }
    }
}

/// The same of `f64`.
#[test]
fn filters_of_f64() {
    let row = [1.0, 5.0, 4.0, 0.0, 0.5, -1.0];
    let found = LogProbs::new().top_k(4).collect(Logits::new(&row, 1, 6).unwrap()).unwrap();
    for position in 0..50 {
        let sample = Sample::new(1, position);
        let draw = |sampler: Sampler| sampler.draw(&found.top_ids, &found.top_logprobs, 6, sample);
        assert_eq!(draw(Sampler::new().top_k(1)), Ok(1));
        assert!(matches!(draw(Sampler::new().top_p(0.9)), Ok(1 | 2)));
        assert!(matches!(draw(Sampler::new().top_k(3)), Ok(0..=2)));
    }
}

#[test]
fn samplers_refuse() {
    let (ids, logprobs) = ([4i64, 7, 1], [-0.5_f32, -1.5, -2.5]);
    let sample = Sample::new(1, 1);
    let draw = |sampler: Sampler, sample| sampler.draw(&ids, &logprobs, 10, sample);
    let too_few = |option| Err(Error::TooFewTokens { option, known: 3 });
    assert_eq!(draw(Sampler::new().top_k(4), sample), too_few("top_k"));
    assert_eq!(draw(Sampler::new().top_p(0.99), sample), too_few("top_p"));
    assert_eq!(draw(Sampler::new().min_p(0.01), sample), too_few("min_p"));
    assert!(matches!(draw(Sampler::new(), sample), Err(Error::TooFewTokens { .. })));
    for (sampler, option, value) in [
        (Sampler::new().top_p(-0.1), "top_p", "-0.1"),
        (Sampler::new().top_p(f64::NAN), "top_p", "NaN"),
        (Sampler::new().min_p(-1.0), "min_p", "-1"),
        (Sampler::new().min_p(f64::NAN), "min_p", "NaN"),
    ] {
        let error = Error::Option { option, value: value.to_owned(), range: "at least 0" };
        assert_eq!(draw(sampler, sample), Err(error));
    }
    assert_eq!(draw(Sampler::new().top_k(0), sample), too_few("no filter"));
    let range = "1 or 0, where top_p is of the whole vocabulary (after top_k it may be any)";
    let error = Error::Option { option: "temperature", value: "0.5".to_owned(), range };
    assert_eq!(draw(Sampler::new().top_p(0.1), sample.temperature(0.5)), Err(error));
    assert!(draw(Sampler::new().top_k(2).top_p(0.1), sample.temperature(0.5)).is_ok());
    assert_eq!(draw(Sampler::new().top_p(0.1), sample.temperature(0.0)), Ok(4));
    for (t, temperature) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let error = Error::SampleTemperature { row: 0, temperature: temperature.to_owned() };
        assert_eq!(draw(Sampler::new().top_k(1), sample.temperature(t)), Err(error));
    }
    // What is left is known, whatever an earlier filter would have left of what is not.
    let after = |p| draw(Sampler::new().top_k(500).min_p(p), sample);
    assert!(matches!(after(0.5), Ok(4)) && matches!(after(0.2), Ok(4 | 7)));
    assert_eq!(after(0.01), too_few("min_p"));
    assert_eq!(draw(Sampler::new().top_k(5).min_p(0.5).top_p(0.5), sample), too_few("top_k"));
    // Of the whole vocabulary, in which the first has 0.6.
    assert_eq!(draw(Sampler::new().top_k(500).min_p(0.5).top_p(0.5), sample), Ok(4));
    assert_eq!(draw(Sampler::new(), sample.temperature(0.0)), Ok(4));
    assert!(draw(Sampler::new().top_k(2), sample.temperature(f64::MAX)).is_ok());
    let k1 = Sampler::new().top_k(1);
    for id in [-1, i64::from(u32::MAX)] {
        let error = Error::NotAToken { row: 0, id: id.into() };
        assert_eq!(k1.draw(&[id], &[-0.5_f32], 10, sample), Err(error));
    }
    let what = "log-probabilities of tokens";
    let error = Error::InputLength { what, len: 2, expected: 3 };
    assert_eq!(k1.draw(&ids, &logprobs[..2], 10, sample), Err(error));
    for logprobs in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [-0.5, -1.0, f32::NAN]] {
        let error = Error::NothingToSample { known: 3 };
        assert_eq!(k1.draw(&ids, &logprobs, 10, sample), Err(error));
    }
    let error = Error::NothingToSample { known: 0 };
    assert_eq!(k1.draw::<f32>(&[], &[], 10, sample), Err(error));
    // What is masked is not drawn, even if nothing else is cut off.
    let masked = [-0.5_f32, f32::NEG_INFINITY, f32::NEG_INFINITY];
    for position in 0..20 {
        let sample = Sample::new(2, position).temperature(1e3);
        assert_eq!(Sampler::new().top_k(3).draw(&ids, &masked, 10, sample), Ok(4));
    }
}
