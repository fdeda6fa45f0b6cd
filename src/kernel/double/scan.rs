//! What looks at a slice or changes it element by element.

use crate::data::masks::Allowed;
use crate::math::double_double::Dd;
use crate::simd::Op;
use crate::simd::{LANES_64, Lanes64, Simd};

/// A function of one vector. A trait rather than a closure: a closure cannot be told to be inlined,
/// and one that is not has no access to the vector instructions.
pub(crate) trait Map<S: Simd> {
    fn map(&self, s: S, x: S::D) -> S::D;
}

/// Applies `f` to every value in place, the last ones padded to a vector.
#[inline(always)]
pub(crate) fn map_lanes<S: Simd>(s: S, values: &mut [f64], f: &impl Map<S>) {
    let (whole, rest) = values.as_chunks_mut::<LANES_64>();
    for lanes in whole {
        s.dstore(lanes, f.map(s, s.dload(lanes)));
    }
    if !rest.is_empty() {
        let y = s.to_lanes64(f.map(s, s.dload(&padded(rest, 0.0))));
        rest.copy_from_slice(&y[..rest.len()]);
    }
}

/// Up to 8 values, and `with` in the lanes that are left.
#[inline(always)]
pub(crate) fn padded(values: &[f64], with: f64) -> Lanes64 {
    let mut lanes = [with; LANES_64];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// The largest of 8 numbers none of which is NaN.
#[inline(always)]
pub(crate) fn max_lane(lanes: Lanes64) -> f64 {
    let mut max = lanes[0];
    for x in lanes {
        max = if x > max { x } else { max };
    }
    max
}

/// The first index of the largest element, of the first NaN if there is one; 0 for no elements.
#[inline(always)]
pub(crate) fn argmax<S: Simd>(s: S, row: &[f64]) -> usize {
    /// Elements between two looks at the lanes.
    const BLOCK: usize = 1024;
    let (mut best, mut best_block) = (f64::NEG_INFINITY, 0);
    for (i, block) in row.chunks(BLOCK).enumerate() {
        let mut max = s.dsplat(f64::NEG_INFINITY);
        let (whole, rest) = block.as_chunks::<LANES_64>();
        let rest = padded(rest, f64::NEG_INFINITY);
        for lanes in whole.iter().chain([&rest]) {
            let x = s.dload(lanes);
            if s.dhas_nan(x) {
                return position(row, i * BLOCK, f64::is_nan);
            }
            max = s.dmax_or(x, max);
        }
        let max = max_lane(s.to_lanes64(max));
        if max > best {
            (best, best_block) = (max, i * BLOCK);
        }
    }
    position(row, best_block, |x| x == best)
}

/// As [`argmax`], of the classes that may be. Plain code: it is rarely wanted.
#[inline(always)]
pub(crate) fn masked_argmax(row: &[f64], allowed: Allowed<'_>) -> usize {
    let (mut best, mut at) = (f64::NEG_INFINITY, 0);
    for (class, &x) in row.iter().enumerate() {
        if allowed.contains(class) {
            if x.is_nan() {
                return class;
            }
            if x > best {
                (best, at) = (x, class);
            }
        }
    }
    at
}

/// The first index from `start` on for which `wanted` holds; `start` if there is none.
fn position(row: &[f64], start: usize, wanted: impl Fn(f64) -> bool) -> usize {
    start + row[start..].iter().position(|&x| wanted(x)).unwrap_or(0)
}

/// A sum of 8 lanes in two parts.
struct Sum<S: Simd> {
    hi: S::D,
    lo: S::D,
}

impl<S: Simd> Sum<S> {
    /// `hi + lo = a + b`, exactly.
    #[inline(always)]
    fn exact(s: S, a: S::D, b: S::D) -> Self {
        let hi = s.dadd(a, b);
        let from_b = s.dsub(hi, a);
        Sum { hi, lo: s.dadd(s.dsub(a, s.dsub(hi, from_b)), s.dsub(b, from_b)) }
    }
}

/// `sum_j (x[j] - from)`, or `sum_j weights[j] (x[j] - from)`, which must be as many, for finite `from`,
/// rounded once or nearly so. Infinities and NaN give what they give in plain sums: `0 * inf` is NaN.
#[inline(always)]
pub(crate) fn sum_from<S: Simd>(s: S, x: &[f64], weights: Option<&[f64]>, from: f64) -> f64 {
    match weights {
        None => sum_lanes::<S, false>(s, x, &[], from),
        Some(weights) => sum_lanes::<S, true>(s, x, weights, from),
    }
}

#[inline(always)]
fn sum_lanes<S: Simd, const WEIGHTS: bool>(s: S, x: &[f64], weights: &[f64], from: f64) -> f64 {
    let (whole, rest) = x.as_chunks::<LANES_64>();
    let (whole_weights, rest_weights) = weights.as_chunks::<LANES_64>();
    let minus = s.dsplat(-from);
    let zero = s.dsplat(0.0);
    let mut sum = Sum::<S> { hi: zero, lo: zero };
    for (i, lanes) in whole.iter().enumerate() {
        let w = if WEIGHTS { s.dload(&whole_weights[i]) } else { zero };
        sum = add_term::<S, WEIGHTS>(s, sum, s.dload(lanes), minus, w);
    }
    if !rest.is_empty() {
        // Lanes of `from` add 0.
        let w = s.dload(&padded(rest_weights, 0.0));
        sum = add_term::<S, WEIGHTS>(s, sum, s.dload(&padded(rest, from)), minus, w);
    }
    let (hi, lo) = (s.to_lanes64(sum.hi), s.to_lanes64(sum.lo));
    let mut all = Dd::ZERO;
    let mut plain = 0.0;
    for i in 0..LANES_64 {
        all = all + Dd::sum(hi[i], lo[i]);
        plain += hi[i];
    }
    // What rounding takes from infinity is NaN.
    if plain.is_finite() { all.hi } else { plain }
}

#[inline(always)]
fn add_term<S: Simd, const WEIGHTS: bool>(
    s: S,
    sum: Sum<S>,
    x: S::D,
    minus: S::D,
    w: S::D,
) -> Sum<S> {
    let mut term = Sum::<S>::exact(s, x, minus);
    if WEIGHTS {
        let hi = s.dmul(w, term.hi);
        // What rounding takes from the product; 0 without fused multiply-add.
        let lo = s.dmul_add(w, term.lo, s.dmul_add(w, term.hi, s.dsub(s.dsplat(0.0), hi)));
        term = Sum { hi, lo };
    }
    let next = Sum::<S>::exact(s, sum.hi, term.hi);
    Sum { hi: next.hi, lo: s.dadd(sum.lo, s.dadd(next.lo, term.lo)) }
}

/// The sum of `x - from`, weighted if there are weights.
pub(crate) struct SumFrom<'a> {
    pub(crate) x: &'a [f64],
    pub(crate) weights: Option<&'a [f64]>,
    pub(crate) from: f64,
}

impl Op for SumFrom<'_> {
    type Out = f64;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> f64 {
        sum_from(s, self.x, self.weights, self.from)
    }
}
