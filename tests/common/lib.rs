//! What the tests share: backends by name, rows that look for trouble, distances.

pub mod imports;
pub mod pages;
pub mod training;

/// The pages of the repository. Their examples are tests, which `cargo test --doc` compiles and runs.
#[cfg(doctest)]
mod documentation {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/inference.md")]
    struct Inference;
    #[doc = include_str!("../../docs/layouts.md")]
    struct Layouts;
    #[doc = include_str!("../../docs/mpi.md")]
    struct Mpi;
    #[doc = include_str!("../golden/README.md")]
    struct Golden;
}

use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use std::ffi::OsStr;
use std::process::Command;
use xent::Backend;

/// Calls `test` with every backend of this machine, and says which were run and which were not.
pub fn for_each_backend(mut test: impl FnMut(Backend)) {
    for &backend in Backend::ALL {
        if backend.is_available() {
            println!("backend {backend}: run");
            test(backend);
        } else {
            println!("backend {backend}: skipped, this machine cannot run it");
        }
    }
    // The rest of the set is asserted once, by tests/dispatch.rs.
    assert!(Backend::Scalar.is_available() && Backend::Portable.is_available());
}

/// A command that runs `program`, which was built for the machine that the tests run on: by the emulator
/// that `XENT_TEST_RUNNER` names, if any, since an emulated process cannot start another like itself.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    match std::env::var_os("XENT_TEST_RUNNER") {
        Some(runner) if !runner.is_empty() => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
        _ => Command::new(program),
    }
}

/// `XENT_TEST_THIN=n` makes tests that try every number, or millions, try one in `n`: for emulated
/// machines, which take minutes for what others do in a second. 1 unless it is set.
pub fn thin() -> usize {
    let Some(value) = std::env::var_os("XENT_TEST_THIN").filter(|value| !value.is_empty()) else {
        return 1;
    };
    let n = value.to_str().and_then(|value| value.parse().ok()).filter(|&n| n > 0);
    let n = n.unwrap_or_else(|| panic!("XENT_TEST_THIN is {value:?}: not a number above 0"));
    println!("thinned by XENT_TEST_THIN: one number in {n}");
    n
}

/// Property tests of so many cases, or fewer if `PROPTEST_CASES` says so.
///
/// The cases are the same in every run, so that a change is judged by its own failures. With
/// `XENT_TEST_RANDOM=1`, as `ci/full.sh` has it, they are new ones; `PROPTEST_RNG_SEED` chooses others.
pub fn property(cases: u32) -> ProptestConfig {
    let asked = ProptestConfig::default();
    let has_cases = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if has_cases { cases.min(asked.cases) } else { cases };
    let is_random = std::env::var_os("XENT_TEST_RANDOM").is_some_and(|value| value == "1");
    let rng_seed = match asked.rng_seed {
        RngSeed::Random if !is_random => RngSeed::Fixed(0x7865_6e74),
        seed => seed,
    };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..asked }
}

/// The fastest backend of this machine, whatever the environment asks for.
pub fn fastest() -> Backend {
    *Backend::available().last().expect("there is always one")
}

/// A small generator of random numbers (xorshift64*): the same rows on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        // Spreads the bits of small seeds (a step of splitmix64); the state must not be 0.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Rng((z ^ (z >> 31)) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Close enough to a normal distribution: the sum of twelve uniform numbers.
    pub fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Kinds of rows, most of which broke some softmax somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gaussian,
    SortedUp,
    SortedDown,
    /// Constant steps, so steep that the largest exponential so far moves all the time.
    Ramp,
    /// One logit is 0.1 to 110 above the rest.
    OneHuge,
    AllEqual,
    /// A Gaussian around 1e4, 1e6, 1e30 or their negatives.
    Offset,
    Denormals,
    MaskedPrefix,
    MaskedSuffix,
    MaskedRandomly,
    MaskedButOne,
    MaskedEntirely,
    /// Largest and smallest finite numbers.
    Extremes,
    /// Few different values.
    Ties,
    /// Zeros of both signs.
    Zeros,
    /// Any finite bit pattern.
    RandomBits,
    /// Most classes just at the edge of what counts, 60 to 100 below the largest.
    Deep,
    /// Ever larger values that are ever rarer.
    Spikes,
    /// Everything 40 below 0 or lower, then the bulk: the first block says nothing about the row.
    LateBulk,
    /// NaN, +inf and -inf among the classes.
    Special,
}

impl Kind {
    /// Rows with a finite loss for some target, or nothing but a mask.
    pub const ORDINARY: &'static [Kind] = &[
        Kind::Gaussian,
        Kind::SortedUp,
        Kind::SortedDown,
        Kind::Ramp,
        Kind::OneHuge,
        Kind::AllEqual,
        Kind::Offset,
        Kind::Denormals,
        Kind::MaskedPrefix,
        Kind::MaskedSuffix,
        Kind::MaskedRandomly,
        Kind::MaskedButOne,
        Kind::MaskedEntirely,
        Kind::Extremes,
        Kind::Ties,
        Kind::Zeros,
        Kind::RandomBits,
        Kind::Deep,
        Kind::Spikes,
        Kind::LateBulk,
    ];

    pub fn any(rng: &mut Rng) -> Kind {
        if rng.below(8) == 0 { Kind::Special } else { rng.pick(Kind::ORDINARY) }
    }

    /// A row of this kind.
    pub fn row(self, rng: &mut Rng, vocab: usize) -> Vec<f32> {
        let mut row = vec![0.0; vocab];
        self.fill(rng, &mut row);
        row
    }

    pub fn fill(self, rng: &mut Rng, row: &mut [f32]) {
        let sigma = rng.pick(&[0.01, 0.5, 1.0, 3.0, 10.0, 30.0]);
        let mean = rng.pick(&[0.0, 0.0, -7.5, 20.0, 300.0]);
        for x in row.iter_mut() {
            *x = mean + sigma * rng.normal();
        }
        let vocab = row.len();
        match self {
            Kind::Gaussian => {}
            Kind::SortedUp => row.sort_by(f32::total_cmp),
            Kind::SortedDown => row.sort_by(|a, b| b.total_cmp(a)),
            Kind::Ramp => {
                let step = rng.pick(&[0.001, 0.05, 0.5, 1.0, 5.6, 90.0, -0.01, -0.7]);
                fill_with(row, |j| j as f32 * step - mean);
            }
            Kind::OneHuge if vocab > 0 => {
                if rng.below(2) == 0 {
                    row.fill(mean);
                }
                let gap = (1 + rng.below(1100)) as f32 * 0.1;
                let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row[rng.below(vocab)] = best + gap;
            }
            Kind::OneHuge => {}
            Kind::AllEqual => {
                let value = rng.pick(&[0.0, -0.0, 1.0, -55.5, 1e4, 1e6, 1e30, -1e30, f32::MIN]);
                row.fill(value);
            }
            Kind::Offset => {
                let offset = rng.pick(&[1e4, -1e4, 1e6, -1e6, 1e30, -1e30]);
                row.iter_mut().for_each(|x| *x += offset);
            }
            Kind::Denormals => fill_with(row, |_| {
                let sign = (rng.bits() as u32) & 0x8000_0000;
                f32::from_bits(sign | (rng.bits() as u32 & 0x007f_ffff))
            }),
            Kind::MaskedPrefix => {
                let end = rng.below(vocab + 1);
                row[..end].fill(f32::NEG_INFINITY);
            }
            Kind::MaskedSuffix => {
                let start = rng.below(vocab + 1);
                row[start..].fill(f32::NEG_INFINITY);
            }
            Kind::MaskedRandomly => {
                let share = rng.pick(&[0.1, 0.5, 0.9, 0.999]);
                let masked = |x: &mut f32| *x = f32::NEG_INFINITY;
                row.iter_mut().filter(|_| rng.unit() < share).for_each(masked);
            }
            Kind::MaskedButOne => {
                let kept = rng.below(vocab.max(1));
                fill_with(row, |j| if j == kept { mean } else { f32::NEG_INFINITY });
            }
            Kind::MaskedEntirely => row.fill(f32::NEG_INFINITY),
            Kind::Extremes => {
                let values = [f32::MAX, f32::MIN, f32::MAX / 2.0, 0.0, 1e30, -1e30, 1e-45, 88.0];
                let values = &values[rng.below(3)..];
                fill_with(row, |_| rng.pick(values));
            }
            Kind::Ties => fill_with(row, |_| rng.below(4) as f32 * 2.5 - 4.0),
            Kind::Zeros => fill_with(row, |_| rng.pick(&[0.0, -0.0])),
            Kind::RandomBits => fill_with(row, |_| {
                let x = f32::from_bits(rng.bits() as u32);
                if x.is_finite() { x } else { 1.0 }
            }),
            Kind::Deep => {
                let keep = rng.pick(&[0.5, 0.01, 0.0]);
                fill_with(row, |_| {
                    if rng.unit() < keep { mean } else { mean - 60.0 - 40.0 * rng.unit() as f32 }
                });
                if vocab > 0 {
                    row[rng.below(vocab)] = mean;
                }
            }
            Kind::Spikes => {
                row.iter_mut().for_each(|x| *x += -2.0 * (1e-9 + rng.unit()).ln() as f32);
            }
            Kind::LateBulk => {
                let start = rng.below(vocab.max(1));
                row[..start].iter_mut().for_each(|x| *x -= 40.0 + 200.0 * rng.unit() as f32);
            }
            Kind::Special => {
                let share = rng.pick(&[0.001, 0.1, 0.9]);
                let values = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                let from = rng.below(values.len());
                let values = &values[from..=from + rng.below(values.len() - from)];
                for x in row.iter_mut() {
                    if rng.unit() < share {
                        *x = rng.pick(values);
                    }
                }
            }
        }
    }
}

fn fill_with(row: &mut [f32], mut value: impl FnMut(usize) -> f32) {
    row.iter_mut().enumerate().for_each(|(j, x)| *x = value(j));
}

/// A target: any class, or the most probable one half of the time.
pub fn any_target(rng: &mut Rng, row: &[f32]) -> usize {
    if rng.below(2) == 0 { argmax(row) } else { rng.below(row.len()) }
}

/// The first NaN, or else the first of the largest, as PyTorch has it.
pub fn argmax(row: &[f32]) -> usize {
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

/// The number of representable numbers from `a` to `b`; 0 for two NaN, and infinitely many to a NaN
/// or an infinity from anything else.
pub fn distance(a: f32, b: f32) -> u32 {
    // Orders floats as integers; both zeros are 0.
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

/// Bits to compare by: every NaN is the same NaN, since its payload carries no meaning.
pub fn key(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// As [`key`], for `f64`.
pub fn key64(x: f64) -> u64 {
    if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() }
}

pub fn keys(values: &[f32]) -> Vec<u32> {
    values.iter().copied().map(key).collect()
}
