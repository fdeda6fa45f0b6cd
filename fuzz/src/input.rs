//! From bytes to numbers and choices. Whatever the bytes are, there is an answer; where they end, zeros
//! follow, and zeros are the tamest choice.

use crate::number::Number;
use arbitrary::Unstructured;
use half::f16;
use xent::Floats;

pub struct Input<'a>(Unstructured<'a>);

const SPECIAL: [f64; 16] = [
    0.0,
    -0.0,
    1.0,
    f64::NEG_INFINITY,
    f64::INFINITY,
    f64::NAN,
    f32::MAX as f64,
    f32::MIN as f64,
    f32::MIN_POSITIVE as f64,
    f64::MAX,
    f64::MIN_POSITIVE,
    5e-324,
    1e-45,
    -1e-45,
    1e30,
    88.7,
];

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Input(Unstructured::new(data))
    }

    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub fn word(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub fn long(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// Below `n`, which may be 65,536 at most and must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n <= 256 { usize::from(self.byte()) % n } else { usize::from(self.word()) % n }
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// True for one byte out of `n`, but not for 0 and 255, which mutations make often.
    pub fn one_in(&mut self, n: u8) -> bool {
        self.byte() % n == n / 2
    }

    /// A length that is rarely not the right one.
    pub fn length(&mut self, right: usize) -> usize {
        match self.byte() {
            101 => right + 1,
            102 => right.saturating_sub(1),
            103 => 0,
            _ => right,
        }
    }

    /// Of every size, and NaN and infinities.
    pub fn number(&mut self) -> f64 {
        match self.byte() % 8 {
            0..=2 => f64::from(self.byte() as i8) / 8.0,
            3 => self.pick(&SPECIAL),
            4 => f64::from(f32::from_bits(self.long() as u32)),
            5 => f64::from_bits(self.long()),
            6 => f64::from(self.byte() as i8) * 10f64.powi(i32::from(self.byte() % 81) - 40),
            _ => f64::from(f16::from_bits(self.word())),
        }
    }

    /// A number that options of everyday use have, or any.
    pub fn option(&mut self, usual: &[f64]) -> f64 {
        match self.byte() % 8 {
            0..=3 => usual[0],
            4..=6 => self.pick(usual),
            _ => self.number(),
        }
    }

    /// Mostly small numbers that are not negative, as weights and probabilities are.
    fn weight(&mut self) -> f64 {
        match self.byte() {
            byte @ 0..=199 => f64::from(byte) / 64.0,
            200..=229 => 0.0,
            _ => self.number(),
        }
    }

    /// As many weights as asked for, repeated after a few.
    pub fn weights(&mut self, len: usize, double: bool) -> Numbers {
        let period: Vec<f64> = (0..len.min(1 + self.below(24))).map(|_| self.weight()).collect();
        Numbers::new(period.into_iter().cycle().take(len), double)
    }

    /// A row of logits.
    pub fn row<T: Number>(&mut self, vocab: usize) -> Vec<T> {
        let mut row = self.fill(vocab);
        if vocab > 0 {
            for _ in 0..self.byte() % 4 {
                let (value, at) = (self.number(), self.below(vocab.min(1 << 16)));
                let value = match self.byte() % 4 {
                    0 => T::round(value),
                    // A tie, perhaps of classes far apart.
                    2 => largest(&row),
                    _ => T::round(f64::NEG_INFINITY),
                };
                let len = if self.flag() { vocab - at } else { 1 };
                row[at..][..len].fill(value);
            }
        }
        row
    }

    fn fill<T: Number>(&mut self, vocab: usize) -> Vec<T> {
        match self.byte() % 8 {
            // Small numbers, of some variety without a byte for each.
            0 | 1 => {
                let (mut state, spread) = (self.word().into(), self.pick(&[2.0, 0.1, 10.0, 40.0]));
                let mean = self.pick(&[0.0, -7.5, 300.0, 1e4, -1e6, 1e30]);
                let next = |_| T::round(mean + spread * noise(&mut state));
                (0..vocab).map(next).collect()
            }
            2 => vec![T::round(self.number()); vocab],
            3 => {
                let (from, step) = (self.number(), self.number());
                (0..vocab).map(|j| T::round(from + j as f64 * step)).collect()
            }
            4 | 5 => {
                let few: Vec<T> =
                    (0..1 + self.below(16)).map(|_| T::round(self.number())).collect();
                few.into_iter().cycle().take(vocab).collect()
            }
            6 => {
                let mut state = self.long();
                let any = |_| T::from_low_bits(random(&mut state));
                (0..vocab).map(any).collect()
            }
            _ => (0..vocab).map(|_| self.raw()).collect(),
        }
    }

    fn raw<T: Number>(&mut self) -> T {
        let bits = if size_of::<T>() == 2 { self.word().into() } else { self.long() };
        T::from_low_bits(bits)
    }
}

/// The largest number, or one of those that are not comparable.
fn largest<T: Number>(row: &[T]) -> T {
    let larger = |a: T, b: T| if b.value() > a.value() { b } else { a };
    row.iter().copied().reduce(larger).unwrap_or(T::round(0.0))
}

/// A step of splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sum of four uniform numbers, of variance 1: close enough to normal.
fn noise(state: &mut u64) -> f64 {
    let uniform = |_| (random(state) >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
    (0..4).map(uniform).sum::<f64>() * 3f64.sqrt()
}

/// Weights and probabilities, in either precision.
#[derive(Clone, Debug)]
pub enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Numbers {
    pub fn new(values: impl Iterator<Item = f64>, double: bool) -> Self {
        match double {
            true => Numbers::F64(values.collect()),
            false => Numbers::F32(values.map(|x| x as f32).collect()),
        }
    }

    pub fn floats(&self) -> Floats<'_> {
        match self {
            Numbers::F32(values) => values.into(),
            Numbers::F64(values) => values.into(),
        }
    }

    pub fn len(&self) -> usize {
        self.floats().len()
    }

    pub fn is_double(&self) -> bool {
        matches!(self, Numbers::F64(_))
    }

    pub fn get(&self, i: usize) -> f64 {
        match self {
            Numbers::F32(values) => values[i].into(),
            Numbers::F64(values) => values[i],
        }
    }

    pub fn values(&self) -> Vec<f64> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }
}
