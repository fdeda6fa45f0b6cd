//! Sums that are exact where it matters, and the same in whatever order numbers and sums are added.
//!
//! The idea is that of Demmel and Nguyen's reproducible summation ("Parallel Reproducible Summation", 2015): bins
//! at fixed powers of two, of which those far below the largest number are dropped. Whether a bin is kept depends
//! on the largest number alone, hence not on the order.
#![forbid(unsafe_code)]

use super::functions::exp2_int;

/// Bits from one bin to the next.
const WIDTH: i32 = 64;

/// The bin of the largest number, and two below: everything down to 2^-128 of it counts.
const BINS: usize = 3;

/// A sum of numbers `v * 2^exponent`, which may be far beyond what an `f64` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactSum {
    /// Of the first bin: it counts units of `2^(64 * top)`. `i32::MIN` if nothing but 0 was added.
    top: i32,
    /// Not carried into each other: a bin that is dropped leaves nothing in the next.
    bins: [i128; BINS],
}

impl ExactSum {
    /// The sum of no terms.
    pub const ZERO: ExactSum = ExactSum { top: i32::MIN, bins: [0; BINS] };

    /// The size of [`ExactSum::to_bytes`].
    pub const BYTES: usize = 4 + 16 * BINS;

    /// Adds a finite number.
    pub fn add(&mut self, v: f64, exponent: i32) {
        let bits = v.to_bits();
        let field = (bits >> 52) as i32 & 0x7ff;
        let fraction = bits & ((1 << 52) - 1);
        debug_assert!(field < 0x7ff, "{v}");
        let (mantissa, place) =
            if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
        if mantissa == 0 {
            return;
        }
        let place = place + exponent;
        let bin = place.div_euclid(WIDTH);
        let shifted = u128::from(mantissa) << place.rem_euclid(WIDTH);
        for (bin, piece) in [(bin + 1, shifted >> WIDTH), (bin, shifted & u128::from(u64::MAX))] {
            if piece != 0 {
                self.raise(bin);
                if let Some(sum) = self.bins.get_mut((self.top - bin) as usize) {
                    let piece = piece as i128;
                    *sum = sum.wrapping_add(if v < 0.0 { -piece } else { piece });
                }
            }
        }
    }

    /// Adds what was summed elsewhere.
    pub fn merge(&mut self, other: &ExactSum) {
        if other.top == i32::MIN {
            return;
        }
        self.raise(other.top);
        let down = self.top.abs_diff(other.top) as usize;
        for (sum, piece) in self.bins.iter_mut().skip(down).zip(other.bins) {
            // What comes from elsewhere may be anything; sums of rows are far from overflowing.
            *sum = sum.wrapping_add(piece);
        }
    }

    /// Makes `top` the first bin unless it is below.
    fn raise(&mut self, top: i32) {
        if top <= self.top {
            return;
        }
        let by = top.abs_diff(self.top) as usize;
        let bins = self.bins;
        self.bins = [0; BINS];
        for (to, from) in self.bins.iter_mut().skip(by).zip(bins) {
            *to = from;
        }
        self.top = top;
    }

    /// The sum divided by `2^exponent`, within 1 ULP; exactly what was added if that was one number.
    pub fn relative_to(&self, exponent: i32) -> f64 {
        if self.top == i32::MIN {
            return 0.0;
        }
        let mut bins = carried(self.bins);
        let negative = bins[0] < 0;
        if negative {
            // Digits of one sign, or the first could cancel against the rest.
            bins = carried(bins.map(i128::wrapping_neg));
        }
        let [a, b, c] = bins.map(|bin| bin as f64);
        let unit = exp2_int(WIDTH);
        let sum = (a * unit + b) * unit + c;
        let sum = if negative { -sum } else { sum };
        // In two factors, as the sum has up to 2^191 units.
        let by = i64::from(WIDTH) * (i64::from(self.top) - 2) - i64::from(exponent);
        let by = by.clamp(-2000, 2000) as i32;
        sum * exp2_int(by / 2) * exp2_int(by - by / 2)
    }

    /// The same on every machine.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (top, bins) = bytes.split_at_mut(4);
        top.copy_from_slice(&self.top.to_le_bytes());
        for (to, bin) in bins.chunks_exact_mut(16).zip(self.bins) {
            to.copy_from_slice(&bin.to_le_bytes());
        }
        bytes
    }

    /// `None` for what [`ExactSum::to_bytes`] does not make.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (top, bins) = bytes.split_at(4);
        let top = i32::from_le_bytes(top.try_into().ok()?);
        let mut sum = ExactSum { top, bins: [0; BINS] };
        for (bin, from) in sum.bins.iter_mut().zip(bins.chunks_exact(16)) {
            *bin = i128::from_le_bytes(from.try_into().ok()?);
        }
        // Far from where additions overflow: 2^56 numbers.
        let small = sum.bins.iter().all(|bin| bin.unsigned_abs() < 1 << 120);
        let near = top == i32::MIN && sum.bins == [0; BINS] || top.unsigned_abs() < 1 << 20;
        (small && near).then_some(sum)
    }
}

/// All bins but the first between 0 and 2^64.
fn carried(mut bins: [i128; BINS]) -> [i128; BINS] {
    for i in (1..BINS).rev() {
        bins[i - 1] = bins[i - 1].wrapping_add(bins[i] >> WIDTH);
        bins[i] &= i128::from(u64::MAX);
    }
    bins
}
