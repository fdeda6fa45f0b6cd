//! `e^x` as an exact power of two and a small correction: `e^x = s + s * q`, see `kernel/exp.rs`.

use super::scan::{Map, map_lanes};
use crate::simd::Op;
use crate::simd::Simd;
use std::f64::consts::{LN_2, LOG2_E};

/// `1.5 * 2^52`: adding it leaves an integer in the low bits of an `f64`.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// The bits of [`ROUND`]; `z` has these and its exponent field below them.
const ROUND_BITS: u64 = 0x4338_0000_0000_0000;

/// `ln 2` in two parts. The first has 32 significant bits, so that its product with an exponent of up
/// to 21 bits is exact, and so is the difference to `x`, with and without fused multiply-add.
const LN_2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN_2_LO: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);

/// Minimax coefficients of `(e^f - 1 - f) / f^2` over `|f| <= 0.34668`; relative error of `e^f` 1.1e-17,
/// which is 2^-56.4.
const C: [f64; 10] = [
    0.500_000_000_000_001_1,
    0.166_666_666_666_664_13,
    0.041_666_666_666_529_93,
    0.008_333_333_333_494_73,
    0.001_388_888_894_369_724_6,
    0.000_198_412_695_061_599_04,
    2.480_149_302_170_99e-5,
    2.755_758_659_859_482_2e-6,
    2.763_027_831_595_848e-7,
    2.500_003_875_360_076e-8,
];

/// How far from 0 the exponent of a reference may be; beyond, `x` is moved before it is split.
pub(crate) const MAX_EXPONENT: f64 = 1_048_576.0;

/// The exponent of `x`, an integer.
pub(crate) fn exponent_of(x: f64) -> f64 {
    (x * LOG2_E).round_ties_even()
}

/// Where the exponential is centred: exponents are counted from `exponent`, and the class there
/// gets the exponent field `field`.
#[derive(Clone, Copy)]
pub(crate) struct Scale64<S: Simd> {
    /// [`ROUND`] + field - exponent
    round: S::D,
    /// An `x` with exponent field 0, for which `s` is exactly 0.
    zero: S::D,
}

/// The two parts of an exponential, and `z`, whose low bits are the exponent field.
pub(crate) struct Parts64<S: Simd> {
    pub(crate) s: S::D,
    pub(crate) q: S::D,
    pub(crate) z: S::D,
}

impl<S: Simd> Scale64<S> {
    /// Exponents from `exponent - field` (where `s` is cut to 0) upwards, to field 2046; `s` is the
    /// power of two with `field` in its exponent bits for an `x` whose exponent is `exponent`.
    #[inline(always)]
    pub(crate) fn new(s: S, exponent: f64, field: f64) -> Self {
        Scale64 {
            round: s.dsplat(ROUND + (field - exponent)),
            zero: s.dsplat((exponent - field) * LN_2),
        }
    }

    /// Splits `e^x`. -inf and everything else below the cut-off gives exactly 0, NaN gives NaN.
    #[inline(always)]
    pub(crate) fn split(&self, s: S, x: S::D) -> Parts64<S> {
        let x = s.dmax_or(self.zero, x);
        let z = s.dmul_add(x, s.dsplat(LOG2_E), self.round);
        let n = s.dsub(z, self.round);
        let f = s.dneg_mul_add(n, s.dsplat(LN_2_HI), x);
        let f = s.dneg_mul_add(n, s.dsplat(LN_2_LO), f);
        let mut p = s.dsplat(C[9]);
        p = s.dmul_add(p, f, s.dsplat(C[8]));
        p = s.dmul_add(p, f, s.dsplat(C[7]));
        p = s.dmul_add(p, f, s.dsplat(C[6]));
        p = s.dmul_add(p, f, s.dsplat(C[5]));
        p = s.dmul_add(p, f, s.dsplat(C[4]));
        p = s.dmul_add(p, f, s.dsplat(C[3]));
        p = s.dmul_add(p, f, s.dsplat(C[2]));
        p = s.dmul_add(p, f, s.dsplat(C[1]));
        p = s.dmul_add(p, f, s.dsplat(C[0]));
        let q = s.dmul_add(s.dmul(f, f), p, f);
        Parts64 { s: s.dexponent_from_bits(z), q, z }
    }
}

/// Whether every `z` that went into `bits` (by bitwise or) has an exponent field of at most 1023:
/// no power of two above 1, no NaN.
///
/// Larger numbers than the largest admissible `z` have a bit that it lacks. Smaller ones do not occur:
/// `split` clamps.
#[inline(always)]
pub(crate) fn fields_fit<S: Simd>(s: S, bits: S::D) -> bool {
    !s.dhas_bits(bits, !(ROUND_BITS | 1023))
}

/// `e^x` of every element, in place: what the accuracy test measures.
///
/// For `x <= 709.4`; 0 where the result would be below 2^-1022.5.
#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, values: &mut [f64]) {
    // Field 1023 is s = 1 for exponent 0.
    map_lanes(s, values, &Exp { scale: Scale64::<S>::new(s, 0.0, 1023.0) });
}

struct Exp<S: Simd> {
    scale: Scale64<S>,
}

impl<S: Simd> Map<S> for Exp<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::D) -> S::D {
        let Parts64 { s: power, q, .. } = self.scale.split(s, x);
        s.dmul_add(power, q, power)
    }
}

/// `e^x` of every element, in place.
pub(crate) struct Exponentials<'a>(pub(crate) &'a mut [f64]);

impl Op for Exponentials<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run(s, self.0);
    }
}
