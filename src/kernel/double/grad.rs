//! `a e^(x - lse) - b v` and what gradients make of it.

use super::exp::{Parts64, Scale64};
use super::scan::padded;
use crate::math::double_double::{Dd, LN_2};
use crate::math::exp2_int;
use crate::simd::Simd;

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
    /// As `Write`, past the caches: to be followed by a fence.
    Stream(&'a [f64], &'a mut [f64]),
    /// From the first slice, added to the last number times what is in the second.
    Add(&'a [f64], &'a mut [f64], f64),
}

// What a loop was compiled for: `Subtract`.
const NOTHING: u8 = 0;
const CONSTANT: u8 = 1;
const TIMES: u8 = 2;

/// Elements that are calculated at once: what is overwritten is copied first, into L1.
const BLOCK: usize = 1024;

/// Calculates the terms of `x` for every element. All slices must be of one length.
///
/// The exponential times `a` is within 1.5 ULP of what `hi` and `lo` give; 0 may stand for what is below
/// 2^-1022. Where `hi` is beyond 1e14, `lo` holds the logarithm of a sum in one `f64`, and its rounding
/// adds up to half a unit of the last place of it.
#[inline(always)]
pub(crate) fn scaled_exp<S: Simd>(s: S, terms: &ScaledExp<'_>, place: Place<'_>) {
    let (x, g, beta, stream) = match place {
        Place::InPlace(g) => (None, g, None, false),
        Place::Write(x, g) => (Some(x), g, None, false),
        Place::Stream(x, g) => (Some(x), g, None, true),
        Place::Add(x, g, beta) => (Some(x), g, Some(beta), false),
    };
    let (b, v) = match terms.subtract {
        Subtract::Nothing => (0.0, None),
        Subtract::Constant(b) => (b, None),
        Subtract::Times(b, v) => (b, Some(v)),
    };
    let at = Operands::new(s, terms.a, terms.lse, b, beta.unwrap_or(0.0), stream);
    let mut copy = [0.0; BLOCK];
    // Vectors that are streamed must be aligned: the first block, which may be empty, ends where they are.
    let first = if stream { g.as_ptr().align_offset(64).min(g.len()) } else { 0 };
    let (mut start, mut end, len) = (0, first, g.len());
    loop {
        let all = start..end;
        let g = &mut g[all.clone()];
        let x = match x {
            Some(x) => &x[all.clone()],
            None => {
                copy[..g.len()].copy_from_slice(g);
                &copy[..g.len()]
            }
        };
        let v = v.map_or(&[][..], |v| &v[all.clone()]);
        let slope = terms.slope.map_or(&[][..], |slope| &slope[all]);
        let from = Slices { x, v, slope };
        choose(s, &at, &terms.subtract, beta.is_some(), from, g);
        if end == len {
            break;
        }
        (start, end) = (end, (end + BLOCK).min(len));
    }
}

#[inline(always)]
fn choose<S: Simd>(
    s: S,
    at: &Operands<S>,
    subtract: &Subtract<'_>,
    add: bool,
    from: Slices<'_>,
    g: &mut [f64],
) {
    use Subtract::{Constant, Nothing, Times};
    match (subtract, !from.slope.is_empty(), add) {
        (Nothing, false, false) => block::<S, NOTHING, false, false>(s, at, from, g),
        (Nothing, false, true) => block::<S, NOTHING, false, true>(s, at, from, g),
        (Nothing, true, false) => block::<S, NOTHING, true, false>(s, at, from, g),
        (Nothing, true, true) => block::<S, NOTHING, true, true>(s, at, from, g),
        (Constant(_), false, false) => block::<S, CONSTANT, false, false>(s, at, from, g),
        (Constant(_), false, true) => block::<S, CONSTANT, false, true>(s, at, from, g),
        (Constant(_), true, false) => block::<S, CONSTANT, true, false>(s, at, from, g),
        (Constant(_), true, true) => block::<S, CONSTANT, true, true>(s, at, from, g),
        (Times(..), false, false) => block::<S, TIMES, false, false>(s, at, from, g),
        (Times(..), false, true) => block::<S, TIMES, false, true>(s, at, from, g),
        (Times(..), true, false) => block::<S, TIMES, true, false>(s, at, from, g),
        (Times(..), true, true) => block::<S, TIMES, true, true>(s, at, from, g),
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
    /// Whether results go past the caches.
    stream: bool,
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
    fn new(s: S, a: f64, (hi, lo): (f64, f64), b: f64, beta: f64, stream: bool) -> Self {
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
            stream,
        }
    }

    #[inline(always)]
    fn calculate<const SUBTRACT: u8, const SLOPE: bool, const ADD: bool>(
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
        if ADD { s.dmul_add(self.beta, g, y) } else { y }
    }
}

#[inline(always)]
fn block<S: Simd, const SUBTRACT: u8, const SLOPE: bool, const ADD: bool>(
    s: S,
    at: &Operands<S>,
    from: Slices<'_>,
    g: &mut [f64],
) {
    let (x, x_rest) = from.x.as_chunks();
    let (v, v_rest) = from.v.as_chunks();
    let (slope, slope_rest) = from.slope.as_chunks();
    let (g, g_rest) = g.as_chunks_mut();
    // The last elements as one more vector, so that there is one loop.
    let rest = [padded(x_rest, 0.0), padded(v_rest, 0.0), padded(slope_rest, 0.0)];
    let mut last = [padded(g_rest, 0.0)];
    let more = usize::from(!g_rest.is_empty());
    let zero = s.dsplat(0.0);
    let pieces = [(x, v, slope, g), (&rest[0..1], &rest[1..2], &rest[2..3], &mut last[..more])];
    for (x, v, slope, g) in pieces {
        for (i, g) in g.iter_mut().enumerate() {
            let v = if SUBTRACT == TIMES { s.dload(&v[i]) } else { zero };
            let slope = if SLOPE { s.dload(&slope[i]) } else { zero };
            let old = if ADD { s.dload(g) } else { zero };
            let y = at.calculate::<SUBTRACT, SLOPE, ADD>(s, s.dload(&x[i]), v, slope, old);
            if at.stream { s.dstream(g, y) } else { s.dstore(g, y) }
        }
    }
    g_rest.copy_from_slice(&last[0][..g_rest.len()]);
}
