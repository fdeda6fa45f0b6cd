//! What is asked about a row at inference, by scanning all tokens.

use crate::number::Number;
use crate::oracle::{argmax, ulps};
use xent::Sample;
use xent::reference::{self, Precise, ulp_error_f64};

/// A row after all transforms.
pub struct Row {
    z: Vec<f64>,
    is_double: bool,
    /// Whether it has probabilities: a largest number, and it is finite.
    is_proper: bool,
    log_p: Vec<Precise>,
}

impl Row {
    pub fn new<R: Number>(z: &[R]) -> Self {
        let z: Vec<f64> = z.iter().map(|z| z.value()).collect();
        let is_double = size_of::<R>() == 8;
        let max = z.get(argmax(&z)).copied().unwrap_or(f64::NEG_INFINITY);
        let single = |hi| Precise { hi, lo: 0.0 };
        let log_p = match is_double {
            true => reference::log_softmax_f64(&z),
            false => reference::log_softmax(&z).into_iter().map(single).collect(),
        };
        Row { z, is_double, is_proper: max.is_finite(), log_p }
    }

    fn max(&self) -> f64 {
        self.z[argmax(&self.z)]
    }

    pub fn argmax(&self) -> i64 {
        if self.z.is_empty() { -1 } else { argmax(&self.z) as i64 }
    }

    /// How many are at least the target, and one more than are above it; nothing for NaN.
    pub fn ranks(&self, target: usize) -> (i64, i64) {
        let own = self.z[target];
        let count = |f: &dyn Fn(f64) -> bool| self.z.iter().filter(|&&z| f(z)).count() as i64;
        if own.is_nan() { (0, 0) } else { (count(&|z| z >= own), 1 + count(&|z| z > own)) }
    }

    /// NaN first, of equals the lower id.
    pub fn top(&self, k: usize) -> Vec<i64> {
        let mut ids: Vec<usize> = (0..self.z.len()).collect();
        // -0 and 0 are equal.
        let size = |id: usize| if self.z[id].is_nan() { f64::INFINITY } else { self.z[id] + 0.0 };
        let nan_first = |id: usize| !self.z[id].is_nan();
        ids.sort_by(|&a, &b| {
            nan_first(a).cmp(&nan_first(b)).then(size(b).total_cmp(&size(a))).then(a.cmp(&b))
        });
        ids.into_iter().take(k).map(|id| id as i64).collect()
    }

    /// By what share of itself what is left beside the largest may be off, besides rounding: kernels count powers of
    /// two in a rounded `ln 2`, from the largest on.
    fn drift(&self) -> f64 {
        let (best, max) = (argmax(&self.z), self.max());
        let others = self.z.iter().enumerate().filter(|&(id, z)| id != best && z.is_finite());
        let second = others.map(|(_, &z)| z).fold(f64::NEG_INFINITY, f64::max);
        if self.is_double { 0.0 } else { (max - second).min(110.0) * 2.8e-9 }
    }

    pub fn check_logprob(&self, id: usize, got: f64, at: &dyn Fn() -> String) {
        let exact = self.log_p[id];
        if !self.is_proper {
            assert!(got.is_nan(), "{got:e} of a row without probabilities, {}", at());
            return;
        }
        let (error, bound) = match self.is_double {
            true => (ulp_error_f64(got, exact), 4.0),
            false => (ulps(got, exact.hi, 0.0, exact.hi, self.drift() * exact.hi.abs()), 2.0),
        };
        assert!(error <= bound, "{got:e} for {exact:?}, {error} ULP, {}", at());
        assert!(got.is_nan() || got.to_bits() != (-0.0f64).to_bits(), "-0, {}", at());
    }

    pub fn check_logsumexp(&self, got: f64, at: &dyn Fn() -> String) {
        let exact = reference::logsumexp_f64(&self.z);
        if !self.is_proper {
            let same = got == exact.hi || got.is_nan() && exact.hi.is_nan();
            assert!(same, "{got:e} for {exact:?}, {}", at());
            return;
        }
        // Where the largest logit and what is added to it cancel, it is the absolute error that counts.
        let of = exact.hi.abs().max(self.max().abs()).max(1.0);
        let unit = if self.is_double { f64::EPSILON } else { f64::from(f32::EPSILON) };
        let bound = if self.is_double { 4.0 } else { 1.0 };
        let rounded_away = !self.is_double && got == f64::from(exact.hi as f32);
        let error = ((got - exact.hi) - exact.lo).abs() / (unit * of);
        assert!(rounded_away || error <= bound, "{got:e} for {exact:?}, {error}, {}", at());
    }

    /// `-ln p` of the largest, and the first moments of what the others are below it: no sum that cancels.
    fn moments(&self) -> [f64; 3] {
        let (best, max) = (argmax(&self.z), self.max());
        let mut sums = [0.0; 3];
        for (_, &z) in self.z.iter().enumerate().filter(|&(id, _)| id != best) {
            let below = max - z;
            let e = (-below).exp();
            if e > 0.0 {
                sums = [sums[0] + e, sums[1] + e * below, sums[2] + e * below * below];
            }
        }
        let [sum, first, second] = sums;
        [sum.ln_1p(), first / (1.0 + sum), second / (1.0 + sum)]
    }

    pub fn check_entropy(&self, got: f64, at: &dyn Fn() -> String) {
        if !self.is_proper {
            assert!(got.is_nan(), "{got:e} of a row without probabilities, {}", at());
            return;
        }
        let [nll, mean, _] = self.moments();
        let exact = nll + mean;
        // The sum has as many digits as `f64` after so many additions, and no more.
        let error = match self.is_double {
            true => (got - exact).abs() / (1e-12 * exact + 1e-290),
            false => ulps(got, exact, 0.0, exact, self.drift() * exact) / 4.0,
        };
        assert!(error <= 1.0, "{got:e} for {exact:e}, {error}, {}", at());
    }

    pub fn check_varentropy(&self, got: f64, at: &dyn Fn() -> String) {
        if !self.is_proper {
            assert!(got.is_nan(), "{got:e} of a row without probabilities, {}", at());
            return;
        }
        let [_, mean, square] = self.moments();
        let exact = square - mean * mean;
        assert!(got >= 0.0, "{got:e}, {}", at());
        // Moments are kept around 0 up to logits of 363,000.
        let finite = self.z.iter().filter(|z| z.is_finite());
        let size = finite.fold(0.0f64, |size, z| size.max(z.abs())).min(4e5);
        let moved = if self.is_double { 0.0 } else { size * size * 2f64.powi(-50) };
        let allowed = square.max(f64::from(f32::MIN_POSITIVE)) * 2f64.powi(-20) + moved;
        let error = (got - exact).abs() / allowed;
        assert!(error <= 1.0, "{got:e} for {exact:e}, {error}, {}", at());
    }

    /// The token with the largest score, but for rounding.
    pub fn check_sampled(&self, id: i64, sample: Sample, at: &dyn Fn() -> String) {
        if !self.is_proper {
            assert_eq!(id, -1, "{}", at());
            return;
        }
        if sample.temperature == 0.0 {
            assert_eq!(id, self.argmax(), "{}", at());
            return;
        }
        let t = sample.temperature;
        let score = |id: usize| self.z[id] + t * gumbel(sample.seed, sample.position, id as u32);
        let possible = (0..self.z.len()).filter(|&id| self.z[id] > f64::NEG_INFINITY);
        let best = possible.map(score).fold(f64::NEG_INFINITY, f64::max);
        let drawn = usize::try_from(id).ok().filter(|&id| id < self.z.len());
        let drawn = drawn.unwrap_or_else(|| panic!("{id}, {}", at()));
        assert!(self.z[drawn] > f64::NEG_INFINITY, "{id} cannot be, {}", at());
        let allowed = 1e-13 * (self.max().abs() + 50.0 * t);
        let got = score(drawn);
        let fine = got == best || got >= best - allowed;
        assert!(fine, "{id} with {got:e}, but there is {best:e}, {}", at());
    }
}

/// `-ln(-ln u)` with the random number `u` of a token.
fn gumbel(seed: u64, position: u64, id: u32) -> f64 {
    // Words of 64 tokens are spread over the four of 16 counters.
    let counter = id / 64 * 16 + id % 16;
    let word = |half| philox(seed, [counter, half, position as u32, (position >> 32) as u32]);
    let [high, low] = [0, 1].map(|half| word(half)[id as usize / 16 % 4]);
    let bits = u64::from(high) << 32 | u64::from(low);
    let unit = 2f64.powi(-64);
    let exponential = match bits >> 62 {
        0 => -(-(bits as f64 + 0.5) * unit).ln_1p(),
        _ => -(((!bits) as f64 + 0.5) * unit).ln(),
    };
    -exponential.ln()
}

/// Philox4x32-10, as in the paper.
fn philox(seed: u64, mut counter: [u32; 4]) -> [u32; 4] {
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xd251_1f53;
        let b = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}
