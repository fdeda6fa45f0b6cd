//! Each operation of each backend is that of `scalar`, lane by lane: what makes every kernel the same on all of them.

use common::{Rng, for_each_backend, thin};
use xent::Backend;
use xent::internals::conformance::{Operands, Outcome, operations};

/// Numbers where instruction sets differ, if they do.
const SPECIAL: [f32; 24] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    1e-45,
    -1e-45,
    1.1e-38,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    65_504.0,
    65_520.0,
    65_519.996,
    5.960_464_5e-8,
    2.980_232_2e-8,
    1.000_000_1,
    0.999_999_94,
    8_388_608.0,
    8_388_607.5,
    0.5,
];

/// As [`SPECIAL`]; all of that too, exactly widened.
const SPECIAL_64: [f64; 8] = [
    f64::MIN_POSITIVE,
    -5e-324,
    f64::MAX,
    f64::MIN,
    1.000_000_000_000_000_2,
    0.999_999_999_999_999_9,
    4_503_599_627_370_496.0,
    4_503_599_627_370_495.5,
];

fn f32_of(rng: &mut Rng) -> f32 {
    match rng.below(4) {
        0 => rng.pick(&SPECIAL),
        // Any bits, signalling NaN too.
        1 => f32::from_bits(rng.bits() as u32),
        // Between two numbers of a half format, or close to that.
        2 => f32::from_bits((rng.bits() as u32 & 0xffff_f000) ^ rng.below(3) as u32),
        _ => rng.normal() * rng.pick(&[1e-3, 1.0, 100.0]),
    }
}

fn f64_of(rng: &mut Rng) -> f64 {
    match rng.below(4) {
        0 => rng.pick(&SPECIAL_64),
        1 => f64::from_bits(rng.bits()),
        2 => f32_of(rng).into(),
        _ => f64::from(rng.normal()),
    }
}

fn operands(rng: &mut Rng) -> Operands {
    let one_of = [0, 1 << 31, u64::MAX, 0x7f80_0000_7f80_0000];
    let mask = rng.pick(&one_of) & rng.bits() | 1 << rng.below(64);
    Operands {
        f32: std::array::from_fn(|_| std::array::from_fn(|_| f32_of(rng))),
        f64: std::array::from_fn(|_| std::array::from_fn(|_| f64_of(rng))),
        u16: std::array::from_fn(|_| rng.bits() as u16),
        bits: rng.bits() as u16,
        mask,
        factor: f64_of(rng),
    }
}

/// The bits of a lane, of which NaN that come out of arithmetic are one: which they are is not defined. Half formats
/// and moves of bits have one NaN, or keep it.
fn canonical(name: &str, width: u32, bits: u64) -> u64 {
    let keeps_bits = [
        "exponent_from_bits",
        "neg_abs",
        "copy_sign",
        "keep_bits",
        "or3",
        "load_u16",
        "transpose",
        "load",
        "stream",
        "dexponent_from_bits",
        "dor",
        "dload",
        "dstream",
    ];
    match width {
        32 if f32::from_bits(bits as u32).is_nan() && !keeps_bits.contains(&name) => u64::MAX,
        64 if f64::from_bits(bits).is_nan() && !keeps_bits.contains(&name) => u64::MAX,
        _ => bits,
    }
}

/// What `scalar` would have without fused multiply-add: two roundings.
fn unfused(want: &mut [Outcome], operands: &Operands) {
    let [a, b, c] = operands.f32;
    let [x, y, z] = operands.f64;
    for outcome in want {
        let sign = if outcome.name.contains("neg") { -1.0 } else { 1.0 };
        match outcome.name {
            "mul_add" | "neg_mul_add" => {
                let lane = |i: usize| c[i] + sign as f32 * (a[i] * b[i]);
                outcome.lanes = (0..16).map(|i| lane(i).to_bits().into()).collect();
            }
            "dmul_add" | "dneg_mul_add" => {
                let lane = |i: usize| z[i] + sign * (x[i] * y[i]);
                outcome.lanes = (0..8).map(|i| lane(i).to_bits()).collect();
            }
            _ => {}
        }
    }
}

fn check(backend: Backend, operands: &Operands) {
    let got = operations(backend, operands).unwrap();
    let mut want = operations(Backend::Scalar, operands).unwrap();
    if !backend.is_bit_exact() {
        unfused(&mut want, operands);
    }
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(&want) {
        let Outcome { name, width, lanes } = want;
        assert_eq!((got.name, got.width, got.lanes.len()), (*name, *width, lanes.len()));
        for (i, (&got, &want)) in got.lanes.iter().zip(lanes).enumerate() {
            let [got, want] = [got, want].map(|bits| canonical(name, *width, bits));
            assert_eq!(
                got, want,
                "{name}, lane {i}: {got:#x}, not {want:#x}, {backend}; {operands:x?}"
            );
        }
    }
}

#[test]
fn operations_are_those_of_scalar() {
    let rounds = 40_000 / thin();
    for_each_backend(|backend| {
        let mut rng = Rng::new(1);
        for _ in 0..rounds {
            check(backend, &operands(&mut rng));
        }
    });
}

#[test]
fn every_number_of_the_half_formats_is_widened_alike() {
    for_each_backend(|backend| {
        let mut operands = operands(&mut Rng::new(2));
        for first in (0..=u16::MAX).step_by(16 * thin()) {
            operands.u16 = std::array::from_fn(|i| first | i as u16);
            check(backend, &operands);
        }
    });
}

#[test]
fn a_wrong_lane_is_found() {
    let operands = operands(&mut Rng::new(3));
    let outcomes = operations(Backend::Scalar, &operands).unwrap();
    let names: std::collections::BTreeSet<_> = outcomes.iter().map(|one| one.name).collect();
    // Each operation of `Simd` and `Simd64` that has a result.
    assert_eq!(names.len(), 48, "{names:?}");
    let add = outcomes.iter().find(|one| one.name == "add").unwrap();
    let sum = operands.f32[0][5] + operands.f32[1][5];
    assert_eq!(canonical("add", 32, add.lanes[5]), canonical("add", 32, sum.to_bits().into()));
}
