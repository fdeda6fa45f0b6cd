//! `a e^(x - lse) - b v` and what gradients make of it.

use super::exp::{Parts64, Scale64};
use super::scan::padded;
use crate::math::double_double::{Dd, LN_2};
use crate::math::exp2_int;
use crate::simd::{LANES_64, Lanes64, Simd};

/// What is subtracted from the exponential.
#[derive(Clone, Copy, Debug)]
pub enum Subtract<'a> {
    /// Nothing.
    Nothing,
    /// The same number from every element.
    Constant(f64),
    /// A number times the element of a slice.
    Times(f64, &'a [f64]),
}

/// `(a e^(x[j] - hi - lo) - subtract[j]) slope[j]`
#[derive(Clone, Copy, Debug)]
pub struct ScaledExp<'a> {
    /// Any number; huge and tiny ones do not overflow or vanish before the result does.
    pub a: f64,
    /// `hi` and `lo` of a logsumexp, at least about as large as every `x`. If they are not finite, the
    /// exponential is NaN.
    pub lse: (f64, f64),
    /// What is subtracted from it.
    pub subtract: Subtract<'a>,
    /// Factors of the whole.
    pub slope: Option<&'a [f64]>,
}

/// Where `x` comes from and where results go to.
#[derive(Debug)]
pub enum Place<'a> {
    /// The slice holds `x` and is overwritten.
    InPlace(&'a mut [f64]),
    /// From the first slice to the second.
    Write(&'a [f64], &'a mut [f64]),
    /// As `Write`, past the caches.
    Stream(&'a [f64], &'a mut [f64]),
    /// From the first slice, added to the last number times what is in the second.
    Add(&'a [f64], &'a mut [f64], f64),
}

// What a loop was compiled for: `x` is in the same place; written, streamed or added.
const IN_PLACE: u8 = 0;
const WRITE: u8 = 1;
const STREAM: u8 = 2;
const ADD: u8 = 3;

// `Subtract`
const NOTHING: u8 = 0;
const CONSTANT: u8 = 1;
const TIMES: u8 = 2;

/// Calculates the terms of `x` for every element. All slices must be of one length.
///
/// The exponential times `a` is within 1.5 ULP of what `hi` and `lo` give; 0 may stand for what is below
/// 2^-1022. Where `hi` is beyond 1e14, `lo` holds the logarithm of a sum in one `f64`, and its rounding
/// adds up to half a unit of the last place of it.
#[inline(always)]
pub(crate) fn scaled_exp<S: Simd>(s: S, terms: &ScaledExp<'_>, place: Place<'_>) {
    match place {
        Place::InPlace(g) => choose_subtract::<S, IN_PLACE>(s, terms, &[], g, 0.0),
        Place::Write(x, g) => choose_subtract::<S, WRITE>(s, terms, x, g, 0.0),
        Place::Stream(x, g) => choose_subtract::<S, STREAM>(s, terms, x, g, 0.0),
        Place::Add(x, g, beta) => choose_subtract::<S, ADD>(s, terms, x, g, beta),
    }
}

#[inline(always)]
fn choose_subtract<S: Simd, const TO: u8>(
    s: S,
    terms: &ScaledExp<'_>,
    x: &[f64],
    g: &mut [f64],
    beta: f64,
) {
    let (b, v): (f64, &[f64]) = match terms.subtract {
        Subtract::Nothing => (0.0, &[]),
        Subtract::Constant(b) => (b, &[]),
        Subtract::Times(b, v) => (b, v),
    };
    let all = Slices { x, v, slope: terms.slope.unwrap_or(&[]) };
    let at = Operands::new(s, terms.a, terms.lse, b, beta);
    match (terms.subtract, terms.slope) {
        (Subtract::Nothing, None) => every::<S, TO, NOTHING, false>(s, &at, all, g),
        (Subtract::Nothing, Some(_)) => every::<S, TO, NOTHING, true>(s, &at, all, g),
        (Subtract::Constant(_), None) => every::<S, TO, CONSTANT, false>(s, &at, all, g),
        (Subtract::Constant(_), Some(_)) => every::<S, TO, CONSTANT, true>(s, &at, all, g),
        (Subtract::Times(..), None) => every::<S, TO, TIMES, false>(s, &at, all, g),
        (Subtract::Times(..), Some(_)) => every::<S, TO, TIMES, true>(s, &at, all, g),
    }
}

/// What is read; empty where it is absent.
#[derive(Clone, Copy)]
struct Slices<'a> {
    x: &'a [f64],
    v: &'a [f64],
    slope: &'a [f64],
}

struct Operands<S: Simd> {
    scale: Scale64<S>,
    origin: S::D,
    /// The part of `a e^-lse` that is not a power of two.
    hi: S::D,
    lo: S::D,
    b: S::D,
    beta: S::D,
}

/// `a` as a number in [2, 4) times a power of two.
fn split_exponent(a: f64) -> (f64, f64) {
    const EXPONENT: u64 = 0x7ff << 52;
    if a == 0.0 || !a.is_finite() {
        return (a, 0.0);
    }
    if a.abs() < f64::MIN_POSITIVE {
        let (m, k) = split_exponent(a * exp2_int(54));
        return (m, k - 54.0);
    }
    let k = ((a.to_bits() & EXPONENT) >> 52) as f64 - 1024.0;
    (f64::from_bits(a.to_bits() & !EXPONENT | 1024 << 52), k)
}

impl<S: Simd> Operands<S> {
    #[inline(always)]
    fn new(s: S, a: f64, (hi, lo): (f64, f64), b: f64, beta: f64) -> Self {
        // a e^(x - lse) = s (1 + q) m e^(exponent ln2 - lse) with s = 2^(n - exponent + k). The last factor
        // is within [1.4, 5.7] and needs two parts, or its rounding would show in every result.
        let (m, k) = split_exponent(a);
        let origin = if hi.abs() > 524_288.0 { hi } else { 0.0 };
        let lse = Dd::sum(hi - origin, lo);
        let exponent = super::exp::exponent_of(lse.hi);
        let factor = (LN_2 * exponent - lse).exp() * m;
        Operands {
            scale: Scale64::new(s, exponent, 1023.0 + k),
            origin: s.dsplat(origin),
            hi: s.dsplat(factor.hi),
            lo: s.dsplat(factor.lo),
            b: s.dsplat(b),
            beta: s.dsplat(beta),
        }
    }

    #[inline(always)]
    fn calculate<const TO: u8, const SUBTRACT: u8, const SLOPE: bool>(
        &self,
        s: S,
        x: S::D,
        v: S::D,
        slope: S::D,
        g: S::D,
    ) -> S::D {
        let Parts64 { s: power, q, .. } = self.scale.split(s, s.dsub(x, self.origin));
        let low = s.dmul_add(self.lo, q, self.lo);
        let mut y = s.dmul(power, s.dadd(self.hi, s.dmul_add(self.hi, q, low)));
        if SUBTRACT == CONSTANT {
            y = s.dsub(y, self.b);
        }
        if SUBTRACT == TIMES {
            y = s.dneg_mul_add(self.b, v, y);
        }
        if SLOPE {
            y = s.dmul(y, slope);
        }
        if TO == ADD { s.dmul_add(self.beta, g, y) } else { y }
    }
}

#[inline(always)]
fn every<S: Simd, const TO: u8, const SUBTRACT: u8, const SLOPE: bool>(
    s: S,
    at: &Operands<S>,
    all: Slices<'_>,
    g: &mut [f64],
) {
    // Vectors that are streamed must be aligned; of each element only its value matters, so that they
    // may start anywhere.
    let start = if TO == STREAM { g.as_ptr().align_offset(64).min(g.len()) } else { 0 };
    let (head, g) = g.split_at_mut(start);
    let (first, all) = all.split_at(start);
    few::<S, TO, SUBTRACT, SLOPE>(s, at, first, head);
    let (g, g_rest) = g.as_chunks_mut::<LANES_64>();
    let (x, v, slope) =
        (all.x.as_chunks().0, all.v.as_chunks().0, all.slope.as_chunks::<LANES_64>().0);
    let zero = s.dsplat(0.0);
    for (i, g) in g.iter_mut().enumerate() {
        let x: &Lanes64 = if TO == IN_PLACE { g } else { &x[i] };
        let v = if SUBTRACT == TIMES { s.dload(&v[i]) } else { zero };
        let slope = if SLOPE { s.dload(&slope[i]) } else { zero };
        let old = if TO == ADD { s.dload(g) } else { zero };
        let y = at.calculate::<TO, SUBTRACT, SLOPE>(s, s.dload(x), v, slope, old);
        if TO == STREAM { s.dstream(g, y) } else { s.dstore(g, y) }
    }
    let (_, rest) = all.split_at(g.len() * LANES_64);
    few::<S, TO, SUBTRACT, SLOPE>(s, at, rest, g_rest);
    if TO == STREAM {
        s.dstream_end();
    }
}

/// Less than 8 elements.
#[inline(always)]
fn few<S: Simd, const TO: u8, const SUBTRACT: u8, const SLOPE: bool>(
    s: S,
    at: &Operands<S>,
    all: Slices<'_>,
    g: &mut [f64],
) {
    if g.is_empty() {
        return;
    }
    let x = s.dload(&padded(if TO == IN_PLACE { g } else { all.x }, 0.0));
    let (v, slope) = (s.dload(&padded(all.v, 0.0)), s.dload(&padded(all.slope, 0.0)));
    let old = s.dload(&padded(g, 0.0));
    let y = at.calculate::<TO, SUBTRACT, SLOPE>(s, x, v, slope, old);
    g.copy_from_slice(&s.to_lanes64(y)[..g.len()]);
}

impl<'a> Slices<'a> {
    #[inline(always)]
    fn split_at(self, at: usize) -> (Slices<'a>, Slices<'a>) {
        let (x, v, slope) = (split_if(self.x, at), split_if(self.v, at), split_if(self.slope, at));
        (Slices { x: x.0, v: v.0, slope: slope.0 }, Slices { x: x.1, v: v.1, slope: slope.1 })
    }
}

/// Two parts of a slice; two empty ones of an empty one.
#[inline(always)]
fn split_if(slice: &[f64], at: usize) -> (&[f64], &[f64]) {
    slice.split_at(at.min(slice.len()))
}
