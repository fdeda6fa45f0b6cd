//! `e^x` as an exact power of two and a small correction: `e^x = s + s * q`.
//!
//! With `n = round(x / ln 2)` and `f = x - n ln 2`, `s = 2^n` and `q = e^f - 1`, `|q| < 0.42`.
//! Keeping the two apart costs nothing and is what makes sums accurate: powers of two add up
//! exactly, and what is rounded is `q`, not `1 + q`. `kernels.md` has the error table.

use crate::simd::Op;
use crate::simd::{LANES, Lane, Simd};
use std::f64::consts::LN_2;

/// `1.5 * 2^23`: adding it leaves an integer in the low bits of an `f32`.
const ROUND: f32 = 12_582_912.0;

/// The bits of [`ROUND`]; `z` has these and its exponent field below them.
const ROUND_BITS: u32 = 0x4b40_0000;

const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// `ln 2` rounded to `f32`: 1.9e-9 too large, a sixteenth of what rounding could have done. Its product
/// with an exponent is exact inside a fused multiply-add, so one constant does for sums.
const LN_2_FUSED: f32 = std::f32::consts::LN_2;

/// `ln 2` in two parts for targets without fused multiply-add: the first has 14 significant bits,
/// so that its product with an exponent below 1024 is exact.
const LN_2_HI: f32 = 0.693_145_75;
const LN_2_LO: f32 = 1.428_606_8e-6;

/// Minimax coefficients of `(e^f - 1 - f) / f^2` over `|f| <= 0.3505`; relative error of `e^f` 3.4e-9.
const C: [f32; 5] = [0.499_999_94, 0.166_665_17, 0.041_668_292, 0.008_369_273_5, 0.001_381_998_2];

/// Where the exponential is centred: exponents are counted from `exponent`, and the class there
/// gets the exponent field `field`.
#[derive(Clone, Copy)]
pub(crate) struct Scale<S: Simd> {
    /// [`ROUND`] + field - exponent
    round: S::V,
    /// An `x` with exponent field 0, for which `s` is exactly 0.
    zero: S::V,
    log2_e: S::V,
    ln_2: S::V,
}

/// The two parts of an exponential, `z`, whose low bits are the exponent field, and the `x` that it is of: that
/// with exponent field 0, if it was below.
pub(crate) struct Parts<S: Simd> {
    pub(crate) x: S::V,
    pub(crate) s: S::V,
    pub(crate) q: S::V,
    pub(crate) z: S::V,
}

/// How far from 0 the exponent of a reference may be; beyond, `x` is moved before it is split.
///
/// With fused arithmetic the limit is the accuracy of `x * LOG2_E`, which may then be off by so much
/// that `f` leaves the range of the polynomial; without, that of the first part of `ln 2`.
pub(crate) const fn max_exponent<S: Simd>() -> f32 {
    if S::FUSED { 524_288.0 } else { 512.0 }
}

/// The `ln 2` that exponents count in, on backends with fused multiply-add or on others.
pub(crate) const fn ln_2_step(fused: bool) -> f64 {
    if fused { LN_2_FUSED as f64 } else { LN_2_HI as f64 + LN_2_LO as f64 }
}

/// What [`LN_2_FUSED`] is too large by: an element `n` exponents below the reference is counted too large
/// by a factor `e^(n * 1.9e-9)`.
const LN_2_FUSED_EXCESS: f32 = (LN_2_FUSED as f64 - LN_2) as f32;

/// The exponent of `x`, an integer.
pub(crate) fn exponent_of(x: f32) -> f32 {
    (x * LOG2_E).round_ties_even()
}

impl<S: Simd> Scale<S> {
    /// Exponents from `exponent - field` (where `s` is cut to 0) upwards; `s` is the power of two
    /// with `field` in its exponent bits for an `x` whose exponent is `exponent`.
    #[inline(always)]
    pub(crate) fn new(s: S, exponent: f32, field: f32) -> Self {
        Scale {
            round: s.splat(ROUND + (field - exponent)),
            zero: s.splat((exponent - field) * LN_2_FUSED),
            log2_e: s.splat(LOG2_E),
            ln_2: s.splat(LN_2_FUSED),
        }
    }

    /// Splits `e^x`. -inf and everything else below the cut-off gives exactly 0, NaN gives NaN.
    ///
    /// Exponents count in [`ln_2_step`], or with `EXACT`, which costs one more operation where there is
    /// a difference, in `ln 2`.
    #[inline(always)]
    pub(crate) fn split<const EXACT: bool>(&self, s: S, x: S::V) -> Parts<S> {
        let x = s.max_or(self.zero, x);
        let clamped = x;
        let z = s.mul_add(x, self.log2_e, self.round);
        let n = s.sub(z, self.round);
        let f = if S::FUSED {
            let f = s.neg_mul_add(n, self.ln_2, x);
            if EXACT { s.mul_add(n, s.splat(LN_2_FUSED_EXCESS), f) } else { f }
        } else {
            let x = s.sub(x, s.mul(n, s.splat(LN_2_HI)));
            s.sub(x, s.mul(n, s.splat(LN_2_LO)))
        };
        let mut p = s.splat(C[4]);
        p = s.mul_add(p, f, s.splat(C[3]));
        p = s.mul_add(p, f, s.splat(C[2]));
        p = s.mul_add(p, f, s.splat(C[1]));
        p = s.mul_add(p, f, s.splat(C[0]));
        let q = s.mul_add(s.mul(f, f), p, f);
        Parts { x: clamped, s: s.exponent_from_bits(z), q, z }
    }
}

/// Whether every `z` that went into `bits` (by bitwise or) has an exponent field of at most 127:
/// no power of two above 1, no NaN.
///
/// Larger numbers than the largest admissible `z` have a bit that it lacks, since the exponent of
/// [`ROUND`] is `0b1001_0110` and numbers beyond its binade have a larger one. Smaller ones do not
/// occur: `split` clamps.
#[inline(always)]
pub(crate) fn fields_fit<S: Simd>(s: S, bits: S::V) -> bool {
    !s.has_bits(bits, !(ROUND_BITS | 127))
}

/// `e^x` of every element, in place: what the accuracy test and the benches measure.
///
/// For `x <= 88.02`; 0 where the result would be below 2^-126.5.
#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, values: &mut [f32]) {
    // Field 127 is s = 1 for exponent 0.
    map_lanes(s, values, &Exp { scale: Scale::<S>::new(s, 0.0, 127.0) });
}

struct Exp<S: Simd> {
    scale: Scale<S>,
}

impl<S: Simd> Map<S> for Exp<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        let Parts { s: power, q, .. } = self.scale.split::<true>(s, x);
        s.mul_add(power, q, power)
    }
}

/// A function of one vector. A trait rather than a closure: a closure cannot be told to be inlined,
/// and one that is not has no access to the vector instructions.
pub(crate) trait Map<S: Simd> {
    fn map(&self, s: S, x: S::V) -> S::V;
}

/// Applies `f` to every value in place, the last ones padded to a vector.
#[inline(always)]
pub(crate) fn map_lanes<S: Simd, T: Lane>(s: S, values: &mut [T], f: &impl Map<S>) {
    let (whole, rest) = values.as_chunks_mut::<LANES>();
    for lanes in whole {
        T::store(s, lanes, f.map(s, T::load(s, lanes)));
    }
    if !rest.is_empty() {
        let mut last = [T::default(); LANES];
        last[..rest.len()].copy_from_slice(rest);
        let y = f.map(s, T::load(s, &last));
        T::store(s, &mut last, y);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// `e^x` of every element, in place.
pub(crate) struct Exponentials<'a>(pub(crate) &'a mut [f32]);

impl Op for Exponentials<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run(s, self.0);
    }
}
