//! The exponential of the kernels against `f64`, over every `f32` for which `e^x` is normal.

use common::{distance, fastest, for_each_backend, thin};
use rayon::prelude::*;
use std::f64::consts::{LN_2, LOG2_E};
use xent::{Backend, EXP_MAX_ULP, internals};

/// The largest error of the portable backend where it has no fused multiply-add.
const UNFUSED_MAX_ULP: f64 = 1.0;

/// Numbers that are handed to a kernel at once.
const BATCH: usize = 4096;

/// The first and last `x` with a normal `e^x`; above 88.02 kernels promise nothing.
const LAST_POSITIVE: f32 = 88.02;
const LAST_NEGATIVE: f32 = -87.336_54;

/// `e^x` within 2 ULP of `f64` for `|x| < 700`: additions and multiplications only, so that the
/// compiler makes vector code of a loop over it. The C library would take minutes.
#[inline(always)]
fn exp(x: f64) -> f64 {
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN_2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN_2_LO: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    const { assert!(LN_2_HI + LN_2_LO == LN_2) };
    let z = x * LOG2_E + ROUND;
    let k = z - ROUND;
    let r = (x - k * LN_2_HI) - k * LN_2_LO;
    let mut p = 1.0 / 6_227_020_800.0;
    p = p * r + 1.0 / 479_001_600.0;
    p = p * r + 1.0 / 39_916_800.0;
    p = p * r + 1.0 / 3_628_800.0;
    p = p * r + 1.0 / 362_880.0;
    p = p * r + 1.0 / 40_320.0;
    p = p * r + 1.0 / 5_040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    let power = f64::from_bits((z.to_bits() << 52).wrapping_add(1023 << 52));
    (1.0 + (r + r * r * p)) * power
}

/// The error of `got` in units of the last place of a normal `f32` of the size of `exact`.
#[inline(always)]
fn ulp(got: f32, exact: f64) -> f64 {
    let exponent = exact.to_bits() & (0x7ff << 52);
    // 2^(23 - exponent), so that there is no division.
    let per_unit = f64::from_bits(((2046 + 23) << 52) - exponent);
    (f64::from(got) - exact).abs() * per_unit
}

#[derive(Clone, Copy, Debug)]
struct Worst {
    ulp: f64,
    x: f32,
}

impl Worst {
    fn or(self, other: Worst) -> Worst {
        // A NaN is worse than anything.
        if other.ulp > self.ulp || other.ulp.is_nan() { other } else { self }
    }
}

/// The worst of a batch. The maximum alone is vector code; who it was is asked where it matters.
fn worst_of_batch(backend: Backend, x: &[f32; BATCH], worst: Worst) -> Worst {
    let mut y = *x;
    internals::exp(backend, &mut y).unwrap();
    let mut max = [0.0_f64; 16];
    let mut sane = true;
    for (x, y) in x.as_chunks::<16>().0.iter().zip(y.as_chunks::<16>().0) {
        for i in 0..16 {
            let error = ulp(y[i], exp(f64::from(x[i])));
            max[i] = if error > max[i] { error } else { max[i] };
            sane &= error < 1e9;
        }
    }
    if sane && max.iter().all(|&max| max <= worst.ulp) {
        return worst;
    }
    let all = x.iter().zip(&y).map(|(&x, &y)| Worst { ulp: ulp(y, exp(f64::from(x))), x });
    all.fold(worst, Worst::or)
}

/// The worst over every `step`th bit pattern from 0 to `x`, and how many there were.
fn sweep(backend: Backend, last: f32, step: usize) -> (Worst, u64) {
    let sign = last.to_bits() & 0x8000_0000;
    let last = last.to_bits() & 0x7fff_ffff;
    let count = last as usize / step + 1;
    let start = Worst { ulp: 0.0, x: 0.0 };
    let worst = (0..count.div_ceil(BATCH * 64)).into_par_iter().map(|group| {
        let mut worst = start;
        for batch in group * 64..(group + 1) * 64 {
            // The last batch repeats the last number.
            let bits = |i: usize| (((batch * BATCH + i) * step) as u32).min(last) | sign;
            let x = std::array::from_fn(|i| f32::from_bits(bits(i)));
            worst = worst_of_batch(backend, &x, worst);
            if (batch + 1) * BATCH >= count {
                break;
            }
        }
        worst
    });
    (worst.reduce(|| start, Worst::or), count as u64)
}

fn sweep_both(backend: Backend, step: usize) -> (Worst, u64) {
    let (a, n) = sweep(backend, LAST_POSITIVE, step);
    let (b, m) = sweep(backend, LAST_NEGATIVE, step);
    let worst = a.or(b);
    println!("{backend}: {} numbers, worst {:.6} ULP at x = {:?}", n + m, worst.ulp, worst.x);
    (worst, n + m)
}

#[test]
fn the_domain_ends_where_results_stop_being_normal() {
    let normal = f64::from(f32::MIN_POSITIVE);
    assert!(f64::from(LAST_NEGATIVE).exp() >= normal);
    assert!(f64::from(LAST_NEGATIVE.next_down()).exp() < normal);
    assert!(f64::from(LAST_POSITIVE).exp() < f64::from(f32::MAX));
}

#[test]
fn the_oracle_agrees_with_the_standard_library() {
    let (mut tried, thin) = (0, thin());
    for (sign, last) in [(0, LAST_POSITIVE), (0x8000_0000, LAST_NEGATIVE)] {
        for bits in (0..=last.to_bits() & 0x7fff_ffff).step_by(997 * thin) {
            let x = f64::from(f32::from_bits(bits | sign));
            let (got, want) = (exp(x), x.exp());
            assert!((got - want).abs() <= 4.0 * f64::EPSILON * want, "{x:e}: {got:e}, {want:e}");
            assert_eq!(ulp(want as f32, got), xent::reference::ulp_error(want as f32, got));
            tried += 1;
        }
    }
    assert!(tried > 2_000_000 / thin);
}

#[test]
fn every_number_is_within_the_stated_bound() {
    let thin = thin();
    let (worst, tried) = sweep_both(fastest(), thin);
    assert!(tried > 2_200_000_000 / thin as u64);
    assert!(worst.ulp <= EXP_MAX_ULP, "{worst:?}");
}

#[test]
fn backends_agree() {
    let thin = thin();
    for_each_backend(|backend| {
        if !backend.is_bit_exact() {
            let (worst, tried) = sweep_both(backend, 199 * thin);
            assert!(tried > 10_000_000 / thin as u64);
            assert!(worst.ulp <= UNFUSED_MAX_ULP, "{worst:?}");
            return;
        }
        let mut tried = 0_u64;
        for (sign, last) in [(0, LAST_POSITIVE), (0x8000_0000, f32::NEG_INFINITY)] {
            let all: Vec<u32> = (0..=last.to_bits() & 0x7fff_ffff).step_by(211 * thin).collect();
            tried += all.len() as u64;
            all.par_chunks(BATCH).for_each(|bits| {
                let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(b | sign)).collect();
                let (mut got, mut want) = (x.clone(), x.clone());
                internals::exp(backend, &mut got).unwrap();
                internals::exp(fastest(), &mut want).unwrap();
                for ((x, got), want) in x.iter().zip(got).zip(want) {
                    assert_eq!(got.to_bits(), want.to_bits(), "{backend}: e^{x:?}");
                }
            });
        }
        assert!(tried > 10_000_000 / thin as u64);
        println!("{backend}: {tried} numbers with the bits of {}", fastest());
    });
}

#[test]
fn below_the_domain_results_vanish() {
    let thin = thin();
    for_each_backend(|backend| {
        let first = LAST_NEGATIVE.next_down().to_bits();
        let near: Vec<u32> = (first..(-90.0f32).to_bits()).step_by(thin).collect();
        let far = (first..=f32::NEG_INFINITY.to_bits()).step_by(509 * thin);
        let x: Vec<f32> = near.into_iter().chain(far).map(f32::from_bits).collect();
        let mut y = x.clone();
        internals::exp(backend, &mut y).unwrap();
        for (x, y) in x.iter().zip(y) {
            // 2^-126.5 is where the last power of two is cut off.
            let cut = f64::from(*x) < -126.5 * std::f64::consts::LN_2 - 1e-5;
            assert!(y == 0.0 || !cut, "{backend}: e^{x:?} = {y:?}");
            assert!(y <= f32::MIN_POSITIVE, "{backend}: e^{x:?} = {y:?}");
        }
    });
}

#[test]
fn special_values() {
    for_each_backend(|backend| {
        // At every place of a vector, and in one that is padded.
        for place in 0..37 {
            let mut x = [1.0; 37];
            for (value, want) in
                [(f32::NEG_INFINITY, 0.0), (f32::MIN, 0.0), (0.0, 1.0), (-0.0, 1.0), (1e-45, 1.0)]
            {
                x[place] = value;
                let mut y = x;
                internals::exp(backend, &mut y).unwrap();
                assert_eq!(y[place].to_bits(), f32::to_bits(want), "{backend}: e^{value:?}");
            }
            x[place] = f32::NAN;
            internals::exp(backend, &mut x).unwrap();
            for (i, y) in x.into_iter().enumerate() {
                assert_eq!(y.is_nan(), i == place, "{backend}: {y:?} at {i}, NaN at {place}");
                assert!(i == place || distance(y, std::f32::consts::E) <= 1);
            }
        }
    });
}
