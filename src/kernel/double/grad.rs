//! `a e^(x - lse) - b v` and what gradients make of it.

use super::exp::{Parts64, Scale64};
use super::scan::padded;
use crate::kernel::gradient::{Destination, Piece};
use crate::kernel::pass::Store;
use crate::math::double_double::{Dd, LN_2};
use crate::math::exp2_int;
use crate::simd::Op;
use crate::simd::stream::Part;
use crate::simd::{LANES_64, Lanes64, Local, Simd, stream};
use std::mem::take;
use std::slice::from_ref;

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

// What a loop was compiled for: `Subtract`.
const NOTHING: u8 = 0;
const CONSTANT: u8 = 1;
const TIMES: u8 = 2;

/// Elements that are calculated at once: what is overwritten is copied first, into L1.
const BLOCK: usize = 128 * LANES_64;

/// Calculates the terms for every element of a slice. All slices must be of one length.
#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, terms: &ScaledExp<'_>, place: Place<'_>) {
    let (x, store, g, beta) = match place {
        Place::InPlace(g) => (None, Store::Plain, g, 0.0),
        Place::Write(x, g) => (Some(x), Store::Plain, g, 0.0),
        Place::Stream(x, g) => (Some(x), Store::Stream, g, 0.0),
        Place::Add(x, g, beta) => (Some(x), Store::Add, g, beta),
    };
    let len = g.len();
    let mut to = Destination::new(s, store, x.is_none(), g);
    scaled_exp(s, terms, x, to.next(len), beta);
}

/// Calculates the terms of `x`, or of what is in `to`, for every element. All slices must be of one
/// length. Where results are added, it is to `beta` times what is there.
///
/// The exponential times `a` is within 1.5 ULP of what `hi` and `lo` give; 0 may stand for what is below
/// 2^-1022. Where `hi` is beyond 1e14, `lo` holds the logarithm of a sum in one `f64`, and its rounding
/// adds up to half a unit of the last place of it.
#[inline(always)]
pub(crate) fn scaled_exp<S: Simd>(
    s: S,
    terms: &ScaledExp<'_>,
    x: Option<&[f64]>,
    to: Piece<'_, S, f64>,
    beta: f64,
) {
    s.outlined(Calculate { terms, x, to, beta });
}

/// [`scaled_exp`], once for all that call it.
struct Calculate<'a, S: Simd> {
    terms: &'a ScaledExp<'a>,
    x: Option<&'a [f64]>,
    to: Piece<'a, S, f64>,
    beta: f64,
}

impl<S: Simd> Local<S> for Calculate<'_, S> {
    type Out = ();

    #[inline(always)]
    fn on(self, s: S) {
        let Calculate { terms, x, to, beta } = self;
        calculate(s, terms, x, to, beta);
    }
}

#[inline(always)]
fn calculate<S: Simd>(
    s: S,
    terms: &ScaledExp<'_>,
    x: Option<&[f64]>,
    to: Piece<'_, S, f64>,
    beta: f64,
) {
    let (b, v) = match terms.subtract {
        Subtract::Nothing => (0.0, None),
        Subtract::Constant(b) => (b, None),
        Subtract::Times(b, v) => (b, Some(v)),
    };
    let at = Operands::new(s, terms.a, terms.lse, b, beta);
    let add = matches!(to, Piece::Add(_));
    let (mut head, mut vectors, mut tail) = match to {
        Piece::Plain(g) | Piece::Add(g) => {
            let (vectors, tail) = g.as_chunks_mut();
            (&mut [][..], Vectors::Stored(vectors), tail)
        }
        Piece::Stream(Part { head, vectors, tail }) => (head, Vectors::Streamed(vectors), tail),
    };
    let len = head.len() + vectors.len() * LANES_64 + tail.len();
    let mut copy = [[0.0; LANES_64]; BLOCK / LANES_64];
    let mut done = 0;
    while done < len {
        // What is no whole vector is copied into one, so that there is one loop.
        let mut edge = match (head.is_empty(), vectors.len()) {
            (false, _) => Some(take(&mut head)),
            (true, 0) => Some(take(&mut tail)),
            _ => None,
        };
        let count = edge.as_ref().map_or((vectors.len() * LANES_64).min(BLOCK), |edge| edge.len());
        let all = done..done + count;
        let [x, v, slope] = [x, v, terms.slope].map(|slice| match slice {
            Some(slice) => &slice[all.clone()],
            None => &[],
        });
        let mut last = [[0.0; LANES_64]];
        let padded_parts;
        let (from, to) = match &edge {
            Some(edge) => {
                last[0][..count].copy_from_slice(edge);
                let x = if x.is_empty() { edge } else { x };
                padded_parts = [padded(x, 0.0), padded(v, 0.0), padded(slope, 0.0)];
                let [x, v, slope] = padded_parts.each_ref().map(from_ref);
                (Slices { x, v, slope }, Vectors::Stored(&mut last))
            }
            None => {
                let to = vectors.take(count / LANES_64);
                let x = match x.as_chunks().0 {
                    [] => {
                        let copy = &mut copy[..to.len()];
                        copy.copy_from_slice(to.old());
                        &*copy
                    }
                    x => x,
                };
                (Slices { x, v: v.as_chunks().0, slope: slope.as_chunks().0 }, to)
            }
        };
        choose(s, &at, terms, add, from, to);
        if let Some(edge) = &mut edge {
            edge.copy_from_slice(&last[0][..count]);
        }
        done += count;
    }
}

/// Vectors to be written, of which those that are streamed cannot be read.
enum Vectors<'a, S: Simd> {
    Stored(&'a mut [Lanes64]),
    Streamed(stream::Vectors<'a, S, f64>),
}

impl<S: Simd> Vectors<'_, S> {
    #[inline(always)]
    fn len(&self) -> usize {
        match self {
            Vectors::Stored(to) => to.len(),
            Vectors::Streamed(to) => to.len(),
        }
    }

    /// The first of them, which are then no longer among these.
    #[inline(always)]
    fn take(&mut self, len: usize) -> Self {
        match self {
            Vectors::Stored(to) => {
                let (taken, left) = take(to).split_at_mut(len);
                *to = left;
                Vectors::Stored(taken)
            }
            Vectors::Streamed(to) => Vectors::Streamed(to.take(len)),
        }
    }

    #[inline(always)]
    fn old(&self) -> &[Lanes64] {
        match self {
            Vectors::Stored(to) => to,
            Vectors::Streamed(_) => &[],
        }
    }

    #[inline(always)]
    fn put(&mut self, s: S, i: usize, v: S::D) {
        match self {
            Vectors::Stored(to) => s.dstore(&mut to[i], v),
            Vectors::Streamed(to) => to.put(i, v),
        }
    }
}

#[inline(always)]
fn choose<S: Simd>(
    s: S,
    at: &Operands<S>,
    terms: &ScaledExp<'_>,
    add: bool,
    from: Slices<'_>,
    to: Vectors<'_, S>,
) {
    use Subtract::{Constant, Nothing, Times};
    match (&terms.subtract, terms.slope.is_some(), add) {
        (Nothing, false, false) => block::<S, NOTHING, false, false>(s, at, from, to),
        (Nothing, false, true) => block::<S, NOTHING, false, true>(s, at, from, to),
        (Nothing, true, false) => block::<S, NOTHING, true, false>(s, at, from, to),
        (Nothing, true, true) => block::<S, NOTHING, true, true>(s, at, from, to),
        (Constant(_), false, false) => block::<S, CONSTANT, false, false>(s, at, from, to),
        (Constant(_), false, true) => block::<S, CONSTANT, false, true>(s, at, from, to),
        (Constant(_), true, false) => block::<S, CONSTANT, true, false>(s, at, from, to),
        (Constant(_), true, true) => block::<S, CONSTANT, true, true>(s, at, from, to),
        (Times(..), false, false) => block::<S, TIMES, false, false>(s, at, from, to),
        (Times(..), false, true) => block::<S, TIMES, false, true>(s, at, from, to),
        (Times(..), true, false) => block::<S, TIMES, true, false>(s, at, from, to),
        (Times(..), true, true) => block::<S, TIMES, true, true>(s, at, from, to),
    }
}

/// What is read, a vector for each that is written; anything where it is absent.
#[derive(Clone, Copy)]
struct Slices<'a> {
    x: &'a [Lanes64],
    v: &'a [Lanes64],
    slope: &'a [Lanes64],
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
    Slices { x, v, slope }: Slices<'_>,
    mut to: Vectors<'_, S>,
) {
    let zero = s.dsplat(0.0);
    for i in 0..to.len() {
        let v = if SUBTRACT == TIMES { s.dload(&v[i]) } else { zero };
        let slope = if SLOPE { s.dload(&slope[i]) } else { zero };
        let old = if ADD { s.dload(&to.old()[i]) } else { zero };
        let y = at.calculate::<SUBTRACT, SLOPE, ADD>(s, s.dload(&x[i]), v, slope, old);
        to.put(s, i, y);
    }
}

/// The terms of a gradient, to be put in their place.
pub(crate) struct Terms<'a>(pub(crate) &'a ScaledExp<'a>, pub(crate) Place<'a>);

impl Op for Terms<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run(s, self.0, self.1);
    }
}
