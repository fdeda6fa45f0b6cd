//! Two rows of logits: how far the distributions are apart that they stand for.
//!
//! Rows of any type are widened to `f64` a block at a time, so that there is one kernel, and one entry per
//! backend. A pair is gone through two or three times, and read from memory the first time: for the largest
//! logits, for the sums that the Kullback-Leibler divergences are made of, and if they are wanted for the
//! Jensen-Shannon divergence and the total variation, whose terms need the probabilities themselves.

use super::exp::{Parts64, Scale64};
use super::scan::max_lane;
use crate::data::logits::Logits;
use crate::data::masks::{Allowed, AllowedRows};
use crate::data::targets::TargetRows;
use crate::kernel::blocks::{BLOCK, ranges};
use crate::kernel::outputs::split;
use crate::kernel::transform::{self, Staged};
use crate::math::{self, Compensated};
use crate::simd::Op;
use crate::simd::{LANES_64, Lane, Lanes64, Simd};
use half::{bf16, f16};
use std::ops::Range;

/// Logits of a type that only the code which widens them knows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AnyLogits<'a> {
    F32(Logits<'a, f32>),
    F64(Logits<'a, f64>),
    Bf16(Logits<'a, bf16>),
    F16(Logits<'a, f16>),
}

/// Evaluates an expression for the logits of whichever type they are.
macro_rules! for_any {
    ($any:expr, $logits:ident => $body:expr) => {
        match $any {
            AnyLogits::F32($logits) => $body,
            AnyLogits::F64($logits) => $body,
            AnyLogits::Bf16($logits) => $body,
            AnyLogits::F16($logits) => $body,
        }
    };
}
pub(crate) use for_any;

impl<'a> AnyLogits<'a> {
    pub(crate) fn rows(&self) -> usize {
        for_any!(self, logits => logits.rows())
    }

    pub(crate) fn vocab(&self) -> usize {
        for_any!(self, logits => logits.vocab())
    }

    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        macro_rules! split {
            ($($type:ident)*) => {
                match self {
                    $(AnyLogits::$type(logits) => {
                        let (a, b) = logits.split_at(row);
                        (AnyLogits::$type(a), AnyLogits::$type(b))
                    })*
                }
            };
        }
        split!(F32 F64 Bf16 F16)
    }

    #[inline(always)]
    fn row(&self, i: usize) -> AnyRow<'a> {
        match self {
            AnyLogits::F32(logits) => AnyRow::F32(logits.row(i)),
            AnyLogits::F64(logits) => AnyRow::F64(logits.row(i)),
            AnyLogits::Bf16(logits) => AnyRow::Bf16(logits.row(i)),
            AnyLogits::F16(logits) => AnyRow::F16(logits.row(i)),
        }
    }
}

#[derive(Clone, Copy)]
enum AnyRow<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

/// Pairs of rows and where their results go. The matrices are of one shape.
pub(crate) struct Job<'a> {
    pub(crate) base: AnyLogits<'a>,
    pub(crate) other: AnyLogits<'a>,
    pub(crate) targets: Option<TargetRows<'a>>,
    pub(crate) allowed: Option<AllowedRows<'a>>,
    /// What logits are multiplied by: 1 / temperature.
    pub(crate) rate: f64,
    /// The share of the base in what the Jensen-Shannon divergence is from.
    pub(crate) beta: f64,
    pub(crate) out: Outputs<'a>,
}

/// Where the results of rows go; what is not asked for is `None`.
#[derive(Debug, Default)]
pub(crate) struct Outputs<'a> {
    pub(crate) kl: Option<&'a mut [f64]>,
    pub(crate) reverse_kl: Option<&'a mut [f64]>,
    pub(crate) jsd: Option<&'a mut [f64]>,
    pub(crate) total_variation: Option<&'a mut [f64]>,
    pub(crate) base_logprobs: Option<&'a mut [f64]>,
    pub(crate) other_logprobs: Option<&'a mut [f64]>,
    pub(crate) delta_p: Option<&'a mut [f64]>,
    pub(crate) same_top: Option<&'a mut [bool]>,
}

/// What a pair of rows yields.
#[derive(Clone, Copy)]
struct Compared {
    kl: f64,
    reverse_kl: f64,
    jsd: f64,
    total_variation: f64,
    /// Log-probabilities of the target.
    logprobs: [f64; 2],
    delta_p: f64,
    same_top: bool,
}

impl Compared {
    const IGNORED: Compared = Compared { same_top: false, ..Compared::all(0.0) };

    const fn all(x: f64) -> Self {
        Compared {
            kl: x,
            reverse_kl: x,
            jsd: x,
            total_variation: x,
            logprobs: [x; 2],
            delta_p: x,
            same_top: false,
        }
    }
}

impl Outputs<'_> {
    #[inline(always)]
    fn write(&mut self, i: usize, row: &Compared) {
        let [base, other] = row.logprobs;
        for (out, x) in [
            (&mut self.kl, row.kl),
            (&mut self.reverse_kl, row.reverse_kl),
            (&mut self.jsd, row.jsd),
            (&mut self.total_variation, row.total_variation),
            (&mut self.base_logprobs, base),
            (&mut self.other_logprobs, other),
            (&mut self.delta_p, row.delta_p),
        ] {
            if let Some(out) = out {
                out[i] = x;
            }
        }
        if let Some(out) = &mut self.same_top {
            out[i] = row.same_top;
        }
    }
}

/// Adds the sum of 8 lanes, by adding the upper half to the lower until one is left.
#[inline(always)]
fn add_lanes(sum: &mut Compensated, mut lanes: Lanes64) {
    let mut width = LANES_64;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    sum.add(lanes[0]);
}

/// The largest logit of a row, NaN if there is one, -inf if there are none; and where it is first.
#[derive(Clone, Copy)]
struct Peak {
    max: f64,
    at: usize,
}

/// Sums over the classes, with `a` and `b` the logits relative to the largest of their row.
struct Sums {
    /// `sum e^a` and `sum e^b`, each over all classes but the largest: of probabilities close to 1 the
    /// logarithm then keeps its digits.
    others: [f64; 2],
    /// `sum e^a (a - b)`
    forward: f64,
    /// `sum e^b (b - a)`
    reverse: f64,
}

struct Pair<'a> {
    rows: [AnyRow<'a>; 2],
    allowed: Option<Allowed<'a>>,
    rate: f64,
    vocab: usize,
}

#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, job: &mut Job<'_>) {
    let out = &mut job.out;
    for i in 0..job.base.rows() {
        let mut target = None;
        if let Some(targets) = &job.targets {
            target = targets.get(i);
            if target.is_none() {
                // An ignored row is never read: it may hold anything.
                out.write(i, &Compared::IGNORED);
                continue;
            }
        }
        let pair = Pair {
            rows: [job.base.row(i), job.other.row(i)],
            allowed: job.allowed.map(|allowed| allowed.row(i)),
            rate: job.rate,
            vocab: job.base.vocab(),
        };
        let jsd = job.beta > 0.0 && job.beta < 1.0 && out.jsd.is_some();
        let wanted = (jsd, out.total_variation.is_some());
        out.write(i, &pair.compare(s, job.beta, wanted, target));
    }
}

/// `weight * x`; 0 for a weight of 0, or what is nothing beside the 1 that the largest class weighs.
#[inline(always)]
fn term(weight: f64, x: f64) -> f64 {
    if weight < f64::MIN_POSITIVE { 0.0 } else { weight * x }
}

impl Pair<'_> {
    #[inline(always)]
    fn compare<S: Simd>(
        &self,
        s: S,
        beta: f64,
        (wants_jsd, wants_tv): (bool, bool),
        target: Option<usize>,
    ) -> Compared {
        let peaks = self.peaks(s);
        if !peaks[0].max.is_finite() || !peaks[1].max.is_finite() {
            return Compared::all(f64::NAN);
        }
        let same_top = peaks[0].at == peaks[1].at;
        let sums = self.sums(s, &peaks);
        let ln = sums.others.map(math::ln_1p);
        let apart = ln[0] - ln[1];
        // Never negative but for rounding.
        let kl = (sums.forward / (1.0 + sums.others[0]) - apart).max(0.0);
        let reverse_kl = (sums.reverse / (1.0 + sums.others[1]) + apart).max(0.0);
        let mut row = Compared { kl, reverse_kl, same_top, ..Compared::all(0.0) };
        row.jsd = if beta == 0.0 { kl } else { reverse_kl };
        if wants_jsd | wants_tv {
            let (jsd, tv) = self.spread(s, &peaks, &sums, apart, beta, wants_jsd);
            if wants_jsd {
                row.jsd = jsd;
            }
            row.total_variation = tv;
        }
        if let Some(class) = target {
            let [a, b] = self.at(class, &peaks);
            row.logprobs = [a - ln[0], b - ln[1]];
            row.delta_p = math::exp(row.logprobs[1]) - math::exp(row.logprobs[0]);
        }
        row
    }

    /// A block of a row in `f64`, the last vector padded with -inf; the vectors.
    #[inline(always)]
    fn stage<'b, S: Simd>(
        &self,
        s: S,
        which: usize,
        block: Range<usize>,
        to: &'b mut Staged<f64>,
    ) -> &'b mut [Lanes64] {
        let vectors = block.len().div_ceil(LANES_64);
        s.outlined(StageBlock { pair: self, which, block, to: &mut *to });
        &mut to.0.as_chunks_mut().0[..vectors]
    }

    #[inline(always)]
    fn stage_here<S: Simd>(&self, s: S, which: usize, block: Range<usize>, to: &mut Staged<f64>) {
        let z = &mut to.0[..block.len()];
        let mut single = Staged([0.0_f32; BLOCK]);
        let single = &mut single.0[..block.len()];
        let from = match self.rows[which] {
            AnyRow::F64(x) => {
                z.copy_from_slice(&x[block.clone()]);
                None
            }
            AnyRow::F32(x) => Some(&x[block.clone()]),
            AnyRow::Bf16(x) => {
                transform::widen(s, &x[block.clone()], single);
                Some(&*single)
            }
            AnyRow::F16(x) => {
                transform::widen(s, &x[block.clone()], single);
                Some(&*single)
            }
        };
        if let Some(from) = from {
            for (z, &x) in z.iter_mut().zip(from) {
                *z = f64::from(x);
            }
        }
        if let Some(Allowed(words)) = self.allowed {
            Allowed(&words[block.start / 32..]).fill_others(z, f64::NEG_INFINITY);
        }
        let vectors = block.len().div_ceil(LANES_64);
        to.0[block.len()..vectors * LANES_64].fill(f64::NEG_INFINITY);
    }

    /// The logits of a class, relative to the largest.
    #[inline(always)]
    fn at(&self, class: usize, peaks: &[Peak; 2]) -> [f64; 2] {
        let mut z = [f64::NEG_INFINITY; 2];
        if self.allowed.is_none_or(|allowed| allowed.contains(class)) {
            z = self.rows.map(|row| match row {
                AnyRow::F32(x) => x[class].into(),
                AnyRow::F64(x) => x[class],
                AnyRow::Bf16(x) => x[class].widen().into(),
                AnyRow::F16(x) => x[class].widen().into(),
            });
        }
        [0, 1].map(|i| (z[i] - peaks[i].max) * self.rate)
    }

    #[inline(always)]
    fn peaks<S: Simd>(&self, s: S) -> [Peak; 2] {
        let mut staged = Staged([0.0; BLOCK]);
        let mut peaks = [Peak { max: f64::NEG_INFINITY, at: 0 }; 2];
        for (which, peak) in peaks.iter_mut().enumerate() {
            for block in ranges(0..self.vocab, BLOCK) {
                let start = block.start;
                let vectors = self.stage(s, which, block, &mut staged);
                let mut max = s.dsplat(f64::NEG_INFINITY);
                let mut nan = false;
                for lanes in &*vectors {
                    let x = s.dload(lanes);
                    nan |= s.dhas_nan(x);
                    max = s.dmax_or(x, max);
                }
                let max = max_lane(s.to_lanes64(max));
                if nan {
                    let at = vectors.as_flattened().iter().position(|x| x.is_nan());
                    *peak = Peak { max: f64::NAN, at: start + at.unwrap_or(0) };
                    break;
                }
                if max > peak.max {
                    let at = vectors.as_flattened().iter().position(|&x| x == max);
                    *peak = Peak { max, at: start + at.unwrap_or(0) };
                }
            }
        }
        peaks
    }

    /// With finite peaks.
    #[inline(always)]
    fn sums<S: Simd>(&self, s: S, peaks: &[Peak; 2]) -> Sums {
        // Field 1023 is s = 1 for exponent 0, that of the largest.
        let scale = Scale64::<S>::new(s, 0.0, 1023.0);
        let (rate, zero) = (s.dsplat(self.rate), s.dsplat(0.0));
        let [max_x, max_y] = peaks.map(|peak| s.dsplat(peak.max));
        let mut staged = [Staged([0.0; BLOCK]), Staged([0.0; BLOCK])];
        let [mut of_base, mut of_other, mut forward, mut reverse] = [Compensated::default(); 4];
        for block in ranges(0..self.vocab, BLOCK) {
            for (which, staged) in staged.iter_mut().enumerate() {
                let vectors = self.stage(s, which, block.clone(), staged).as_flattened_mut();
                for peak in peaks.iter().filter(|peak| block.contains(&peak.at)) {
                    vectors[peak.at - block.start] = f64::NEG_INFINITY;
                }
            }
            let vectors = block.len().div_ceil(LANES_64);
            let [x, y] = staged.each_ref().map(|staged| &staged.0.as_chunks().0[..vectors]);
            let (mut sum_u, mut sum_v) = (zero, zero);
            let (mut above, mut below) = ((zero, zero), (zero, zero));
            for (x, y) in x.iter().zip(y) {
                let a = s.dmul(s.dsub(s.dload(x), max_x), rate);
                let b = s.dmul(s.dsub(s.dload(y), max_y), rate);
                let exp_a = scale.split(s, a);
                let exp_b = scale.split(s, b);
                let u = s.dmul_add(exp_a.s, exp_a.q, exp_a.s);
                let v = s.dmul_add(exp_b.s, exp_b.q, exp_b.s);
                sum_u = s.dadd(sum_u, u);
                sum_v = s.dadd(sum_v, v);
                // Positive and negative terms have sums of their own: 0 times infinity, of a class that is
                // masked, is in neither of them, as the maximum takes NaN for 0.
                let d = s.dsub(a, b);
                let (t, w) = (s.dmul(u, d), s.dmul(v, d));
                above.0 = s.dadd(above.0, s.dmax_or(t, zero));
                below.0 = s.dadd(below.0, s.dmax_or(s.dsub(zero, t), zero));
                above.1 = s.dadd(above.1, s.dmax_or(s.dsub(zero, w), zero));
                below.1 = s.dadd(below.1, s.dmax_or(w, zero));
            }
            add_lanes(&mut of_base, s.to_lanes64(sum_u));
            add_lanes(&mut of_other, s.to_lanes64(sum_v));
            add_lanes(&mut forward, s.to_lanes64(s.dsub(above.0, below.0)));
            add_lanes(&mut reverse, s.to_lanes64(s.dsub(above.1, below.1)));
        }
        // The largest of both rows were left out above.
        let [first, second] = peaks.map(|peak| peak.at);
        for class in [Some(first), Some(second).filter(|&second| second != first)] {
            let Some(class) = class else { continue };
            let [a, b] = self.at(class, peaks);
            let (u, v) = (math::exp(a), math::exp(b));
            if class != first {
                of_base.add(u);
            }
            if class != second {
                of_other.add(v);
            }
            forward.add(term(u, a - b));
            reverse.add(term(v, b - a));
        }
        Sums {
            others: [of_base.value(), of_other.value()],
            forward: forward.value(),
            reverse: reverse.value(),
        }
    }

    /// The Jensen-Shannon divergence, or 0 if it is not wanted, and the total variation. `apart` is by how much
    /// the logarithm of the sum of the base is larger.
    #[inline(always)]
    fn spread<S: Simd>(
        &self,
        s: S,
        peaks: &[Peak; 2],
        sums: &Sums,
        apart: f64,
        beta: f64,
        wants_jsd: bool,
    ) -> (f64, f64) {
        let scale = Scale64::<S>::new(s, 0.0, 1023.0);
        let (rate, apart) = (s.dsplat(self.rate), s.dsplat(apart));
        let [max_x, max_y] = peaks.map(|peak| s.dsplat(peak.max));
        let [of_base, of_other] = sums.others.map(|sum| s.dsplat(1.0 / (1.0 + sum)));
        let mut staged = [Staged([0.0; BLOCK]), Staged([0.0; BLOCK])];
        let mut differences = Staged([0.0; BLOCK]);
        let [mut jsd, mut tv] = [Compensated::default(); 2];
        for block in ranges(0..self.vocab, BLOCK) {
            for (which, staged) in staged.iter_mut().enumerate() {
                self.stage(s, which, block.clone(), staged);
            }
            let len = block.len().next_multiple_of(LANES_64);
            let [x, y] = staged.each_mut().map(|staged| &mut staged.0[..len]);
            let d = &mut differences.0[..len];
            let mut sum = s.dsplat(0.0);
            let pairs = x.as_chunks_mut().0.iter_mut().zip(y.as_chunks_mut().0);
            for ((x, y), d) in pairs.zip(d.as_chunks_mut().0) {
                let a = s.dmul(s.dsub(s.dload(x), max_x), rate);
                let b = s.dmul(s.dsub(s.dload(y), max_y), rate);
                let Parts64 { s: power, q, .. } = scale.split(s, a);
                let p = s.dmul(s.dmul_add(power, q, power), of_base);
                let Parts64 { s: power, q, .. } = scale.split(s, b);
                let q = s.dmul(s.dmul_add(power, q, power), of_other);
                sum = s.dadd(sum, s.dmax_or(s.dsub(p, q), s.dsub(q, p)));
                if wants_jsd {
                    s.dstore(x, p);
                    s.dstore(y, q);
                    s.dstore(d, s.dsub(s.dsub(a, b), apart));
                }
            }
            add_lanes(&mut tv, s.to_lanes64(sum));
            if wants_jsd {
                // Divisions and logarithms, which vectors of `Simd64` do not have, but compilers do.
                for ((&mut p, &mut q), d) in x.iter_mut().zip(y).zip(&mut *d) {
                    *d = mixed(p, q, *d, beta);
                }
                let mut sum = s.dsplat(0.0);
                for terms in d.as_chunks().0 {
                    sum = s.dadd(sum, s.dload(terms));
                }
                add_lanes(&mut jsd, s.to_lanes64(sum));
            }
        }
        (jsd.value().max(0.0), (0.5 * tv.value()).min(1.0))
    }
}

/// [`Pair::stage`], for all types.
struct StageBlock<'a> {
    pair: &'a Pair<'a>,
    which: usize,
    block: Range<usize>,
    to: &'a mut Staged<f64>,
}

impl Op for StageBlock<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        self.pair.stage_here(s, self.which, self.block, self.to);
    }
}

/// A term of the Jensen-Shannon divergence, `beta p ln(p / m) + (1 - beta) q ln(q / m)` with
/// `m = beta p + (1 - beta) q`, for `d = ln(p / q)`. 0 where both are 0.
///
/// One logarithm, and of a number close to 1 where the two are close: with `g` how much smaller `m` is than
/// the larger of the two, of which it is a part, this is `-m ln(1 - g) - c |d|`, `c` the smaller one's part of `m`.
#[inline(always)]
fn mixed(p: f64, q: f64, d: f64, beta: f64) -> f64 {
    /// Below 1, so that the logarithm is finite: `m` is 0, or nearly so, where `g` is larger.
    const MOST: f64 = 1.0 - f64::EPSILON / 2.0;
    let of_base = p >= q;
    let (large, small) = if of_base { (p, q) } else { (q, p) };
    let share = if of_base { 1.0 - beta } else { beta };
    let less = share * (large - small);
    let g = less / large;
    // Not a number where both are 0.
    let g = if g < MOST { g } else { MOST };
    let below = share * small * d.abs();
    // 0 times infinity, of what is masked.
    let below = if small > 0.0 { below } else { 0.0 };
    (large - less) * minus_ln_1m(g) - below
}

/// `-ln(1 - g)` for `0 <= g < 1`, within 2 ULP or so: as `math::ln_1p`, without branches.
#[inline(always)]
fn minus_ln_1m(g: f64) -> f64 {
    /// What is added to the bits of a number, so that its exponent field is that of the nearest power of two.
    const TO_NEAREST: u64 = 0x3ff0_0000_0000_0000 - 0x3fe6_a09e_667f_3bcd;
    const LN_2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN_2_LO: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    /// `2^52`, which leaves an integer in the low bits.
    const ROUND: f64 = 4_503_599_627_370_496.0;
    let y = 1.0 - g;
    // What rounding took from y.
    let lost = (1.0 - y) - g;
    // y = m 2^(field - 1023) with m in [sqrt(1/2), sqrt(2)).
    let field = (y.to_bits() + TO_NEAREST) >> 52;
    let m = f64::from_bits(y.to_bits() + (1023 << 52) - (field << 52));
    let k = f64::from_bits(ROUND.to_bits() | field) - (ROUND + 1023.0);
    let t = (m - 1.0) / (m + 1.0);
    let z = t * t;
    let mut series = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = series * z + 1.0 / odd;
    }
    let ln = k * LN_2_HI + (k * LN_2_LO + (2.0 * t + 2.0 * t * z * series));
    -(ln + lost / y)
}

impl<'a> Outputs<'a> {
    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        let (kl_a, kl_b) = split(self.kl, row);
        let (reverse_kl_a, reverse_kl_b) = split(self.reverse_kl, row);
        let (jsd_a, jsd_b) = split(self.jsd, row);
        let (total_variation_a, total_variation_b) = split(self.total_variation, row);
        let (base_logprobs_a, base_logprobs_b) = split(self.base_logprobs, row);
        let (other_logprobs_a, other_logprobs_b) = split(self.other_logprobs, row);
        let (delta_p_a, delta_p_b) = split(self.delta_p, row);
        let (same_top_a, same_top_b) = split(self.same_top, row);
        let a = Outputs {
            kl: kl_a,
            reverse_kl: reverse_kl_a,
            jsd: jsd_a,
            total_variation: total_variation_a,
            base_logprobs: base_logprobs_a,
            other_logprobs: other_logprobs_a,
            delta_p: delta_p_a,
            same_top: same_top_a,
        };
        let b = Outputs {
            kl: kl_b,
            reverse_kl: reverse_kl_b,
            jsd: jsd_b,
            total_variation: total_variation_b,
            base_logprobs: base_logprobs_b,
            other_logprobs: other_logprobs_b,
            delta_p: delta_p_b,
            same_top: same_top_b,
        };
        (a, b)
    }
}

impl Op for &mut Job<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run(s, self);
    }
}
