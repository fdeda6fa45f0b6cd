//! The single pass over a row: the sum of the exponentials of all classes but one.
//!
//! A row is chunks of 32,768 elements, a chunk is blocks of 1,024 (8 KiB: L1). A chunk has references of
//! its own; what was summed relative to one is a part of the row, and parts are merged in order.

use super::exp::{self, Parts64, Scale64};
use crate::kernel::blocks::PREFETCH;
use crate::kernel::transform::Transform;
use crate::math::double_double::{Dd, LN_2};
use crate::math::exp2_int;
use crate::simd::{LANES_64, Lanes64, Local, Op, Simd};
use std::ops::Range;
use std::slice::from_ref;

/// Vectors that are processed between two looks at the reference.
const BLOCK: usize = 1024 / LANES_64;

/// Vectors with references of their own, so that a row that is cut at multiples of this has the same
/// parts as a whole one.
const CHUNK: usize = 32 * BLOCK;

/// The exponent field of the reference: a class 2^5 times as probable still fits (see `kernel/sum.rs`),
/// and what is 2^-1018 times as probable or less is exactly 0.
const FIELD: f64 = 1018.0;
const HEADROOM: f64 = 5.0;

/// What [`BlockSum::hi`] starts from, to be subtracted in the end.
///
/// The sum of a block stays within [256, 512) with it, so that `hi` is always the larger operand: what
/// rounding takes from an addition is then exact, in three operations.
const ANCHOR: f64 = 256.0;

/// A row as whole vectors. The last elements are padded with -inf and the class to leave out is replaced
/// by it, in copies of the two vectors concerned: no loop has a masked tail.
#[derive(Clone, Copy)]
struct Vectors<'a> {
    whole: &'a [Lanes64],
    tail: Lanes64,
    patch: Lanes64,
    /// The index of `patch`; larger than any if there is none.
    patched: usize,
    len: usize,
}

impl<'a> Vectors<'a> {
    #[inline(always)]
    fn new(row: &'a [f64], skip: Option<usize>) -> Self {
        let (whole, rest) = row.as_chunks::<LANES_64>();
        let mut tail = [f64::NEG_INFINITY; LANES_64];
        tail[..rest.len()].copy_from_slice(rest);
        let (mut patch, mut patched) = (tail, usize::MAX);
        if let Some(class) = skip {
            patched = class / LANES_64;
            patch = *whole.get(patched).unwrap_or(&tail);
            patch[class % LANES_64] = f64::NEG_INFINITY;
        }
        Vectors { whole, tail, patch, patched, len: row.len().div_ceil(LANES_64) }
    }

    /// The vectors of a block, in order. All but the first piece are empty in most blocks.
    #[inline(always)]
    fn pieces(&self, block: Range<usize>) -> [&[Lanes64]; 4] {
        let all = self.whole.len();
        let Range { start, end } = block;
        let tail = if end > all { from_ref(&self.tail) } else { &[] };
        let whole = &self.whole[start..end.min(all)];
        if !block.contains(&self.patched) {
            return [whole, &[], &[], tail];
        }
        if self.patched == all {
            return [whole, from_ref(&self.patch), &[], &[]];
        }
        let (before, from) = whole.split_at(self.patched - start);
        [before, from_ref(&self.patch), &from[1..], tail]
    }

    /// The largest element, NaN ignored; -inf if there is none.
    #[inline(always)]
    fn max<S: Simd>(&self, s: S, block: Range<usize>) -> f64 {
        let mut max = s.dsplat(f64::NEG_INFINITY);
        for piece in self.pieces(block) {
            for lanes in piece {
                max = s.dmax_or(s.dload(lanes), max);
            }
        }
        super::scan::max_lane(s.to_lanes64(max))
    }

    fn any_nan(&self, block: Range<usize>) -> bool {
        self.pieces(block).into_iter().any(|piece| piece.as_flattened().iter().any(|x| x.is_nan()))
    }
}

/// What exponentials are relative to: `e^origin 2^exponent`.
#[derive(Clone, Copy)]
struct Reference {
    /// Subtracted from every `x` before it is split, which is exact for all that counts; 0 but for rows
    /// that are astronomically large.
    origin: f64,
    /// An integer; -inf as long as nothing but -inf was seen.
    exponent: f64,
}

impl Reference {
    const NONE: Reference = Reference { origin: 0.0, exponent: f64::NEG_INFINITY };

    fn at(x: f64) -> Reference {
        let exponent = exp::exponent_of(x);
        if exponent.abs() <= exp::MAX_EXPONENT {
            Reference { origin: 0.0, exponent }
        } else {
            Reference { origin: x, exponent: 0.0 }
        }
    }

    #[inline(always)]
    fn is_none(&self) -> bool {
        self.exponent == f64::NEG_INFINITY
    }

    /// Its logarithm, roughly.
    #[inline(always)]
    fn ln(&self) -> f64 {
        self.origin + self.exponent * LN_2.hi
    }

    /// The factor that turns a sum relative to `self` into one relative to `to`, which is not lower: a
    /// power of two, hence exact, unless an origin is involved.
    #[inline(always)]
    fn scale_to(&self, to: &Reference) -> Dd {
        if self.origin == to.origin {
            Dd::new(exp2_int((self.exponent - to.exponent) as i32))
        } else if self.origin - to.origin < -2.0 * exp::MAX_EXPONENT {
            Dd::ZERO
        } else {
            let exponents = LN_2 * (self.exponent - to.exponent);
            (Dd::sum(self.origin, -to.origin) + exponents).exp()
        }
    }
}

/// `sum(e^x)` of a part of a row, as a multiple of a reference.
#[derive(Clone, Copy)]
pub(crate) struct RowSum64 {
    at: Reference,
    sum: Dd,
    /// A NaN or +inf was seen where it does not show in `sum`.
    nan: bool,
    inf: bool,
}

/// A sum in two parts, and the union of the bits of all `z`.
struct BlockSum<S: Simd> {
    /// With [`ANCHOR`].
    hi: S::D,
    /// What rounding took from the elements and from their sum.
    lo: S::D,
    bits: S::D,
}

#[inline(always)]
fn sum_block<S: Simd>(
    s: S,
    vectors: &Vectors<'_>,
    block: Range<usize>,
    at: &Reference,
) -> BlockSum<S> {
    let scale = Scale64::<S>::new(s, at.exponent, FIELD);
    let origin = s.dsplat(at.origin);
    let mut hi = s.dsplat(ANCHOR);
    let mut lo = s.dsplat(0.0);
    let mut bits = s.dsplat(0.0);
    for piece in vectors.pieces(block) {
        for lanes in piece {
            // A vector is a cache line.
            s.prefetch(lanes.as_ptr().wrapping_byte_add(PREFETCH));
            let Parts64 { s: power, q, z } = scale.split(s, s.dsub(s.dload(lanes), origin));
            // `power * q` is exact, so this is the whole element in two parts.
            let term = s.dmul_add(power, q, power);
            let rest = s.dmul_add(power, q, s.dsub(power, term));
            let sum = s.dadd(hi, term);
            let lost = s.dsub(term, s.dsub(sum, hi));
            lo = s.dadd(lo, s.dadd(lost, rest));
            hi = sum;
            bits = s.dor(bits, z);
        }
    }
    BlockSum { hi, lo, bits }
}

/// One chunk while it is being read.
struct ChunkSum<S: Simd> {
    s: S,
    /// What was summed relative to earlier references.
    done: RowSum64,
    /// The reference now, and what was summed relative to it: 8 lanes in two parts.
    at: Reference,
    hi: S::D,
    lo: S::D,
}

impl<S: Simd> ChunkSum<S> {
    #[inline(always)]
    fn new(s: S) -> Self {
        let zero = s.dsplat(0.0);
        ChunkSum { s, done: RowSum64::EMPTY, at: Reference::NONE, hi: zero, lo: zero }
    }

    #[inline(always)]
    fn add_block(&mut self, vectors: &Vectors<'_>, block: Range<usize>) {
        let mut looked = false;
        loop {
            if !self.at.is_none() {
                let sum = sum_block(self.s, vectors, block.clone(), &self.at);
                // After a look only a NaN can be left in the bits, and that shows in the sum.
                if looked || exp::fields_fit(self.s, sum.bits) {
                    return self.add(sum);
                }
            }
            if !self.look(vectors, block.clone()) {
                return;
            }
            looked = true;
        }
    }

    #[inline(always)]
    fn add(&mut self, block: BlockSum<S>) {
        let s = self.s;
        let new = s.dsub(block.hi, s.dsplat(ANCHOR));
        // As `Dd::sum`: nothing is known of which is larger.
        let hi = s.dadd(self.hi, new);
        let from_new = s.dsub(hi, self.hi);
        let lost = s.dadd(s.dsub(self.hi, s.dsub(hi, from_new)), s.dsub(new, from_new));
        self.lo = s.dadd(self.lo, s.dadd(lost, block.lo));
        self.hi = hi;
    }

    /// Moves the reference to the largest element of a block if that is above what fits. False if
    /// there is nothing to sum: only -inf, or +inf.
    #[inline(always)]
    fn look(&mut self, vectors: &Vectors<'_>, block: Range<usize>) -> bool {
        let max = vectors.max(self.s, block.clone());
        if max.is_infinite() {
            self.done.inf |= max > 0.0;
            self.done.nan |= vectors.any_nan(block);
            return false;
        }
        let above = exp::exponent_of(max - self.at.origin) - self.at.exponent;
        if self.at.is_none() || above >= HEADROOM {
            self.end_part();
            self.at = Reference::at(max);
        }
        true
    }

    /// Merges what was summed relative to this reference into the rest.
    #[inline(always)]
    fn end_part(&mut self) {
        let s = self.s;
        s.outlined(EndPart(self));
    }

    #[inline(always)]
    fn end_part_here(&mut self) {
        let (hi, lo) = (self.s.to_lanes64(self.hi), self.s.to_lanes64(self.lo));
        let mut lanes = [Dd::ZERO; LANES_64];
        for i in 0..LANES_64 {
            lanes[i] = Dd::sum(hi[i], lo[i]);
        }
        let mut width = LANES_64;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] = lanes[i] + lanes[i + width];
            }
        }
        let sum = lanes[0] * exp2_int(HEADROOM as i32);
        let part = RowSum64 { at: self.at, sum, ..RowSum64::EMPTY };
        self.done = self.done.merge(&part);
        self.hi = self.s.dsplat(0.0);
        self.lo = self.hi;
    }
}

/// [`ChunkSum::end_part`].
struct EndPart<'a, S: Simd>(&'a mut ChunkSum<S>);

impl<S: Simd> Local<S> for EndPart<'_, S> {
    type Out = ();

    #[inline(always)]
    fn on(self, _: S) {
        self.0.end_part_here();
    }
}

impl RowSum64 {
    pub(crate) const EMPTY: RowSum64 =
        RowSum64 { at: Reference::NONE, sum: Dd::ZERO, nan: false, inf: false };

    /// The sum over both parts.
    #[inline(always)]
    fn merge(&self, other: &RowSum64) -> RowSum64 {
        let (nan, inf) = (self.nan | other.nan, self.inf | other.inf);
        let (low, high) = if self.at.ln() < other.at.ln() { (self, other) } else { (other, self) };
        if low.at.is_none() {
            return RowSum64 { nan, inf, ..*high };
        }
        RowSum64 { sum: high.sum + low.sum * low.at.scale_to(&high.at), nan, inf, ..*high }
    }

    /// Whether the softmax of the row is NaN: a NaN or +inf was seen.
    #[inline(always)]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.nan | self.inf | self.sum.hi.is_nan()
    }

    /// `ln(1 + sum(e^(x - target)))`, the loss of a row whose other classes were summed, as `hi + lo`; `hi`
    /// alone is within 2 ULP.
    ///
    /// The target never enters a sum, so that the loss of a confident row keeps all its digits.
    #[inline(always)]
    pub(crate) fn loss_parts<S: Simd>(&self, s: S, target: f64) -> (f64, f64) {
        s.outlined(LossParts(self, target))
    }

    #[inline(always)]
    fn loss_parts_here(&self, target: f64) -> (f64, f64) {
        if self.is_poisoned() || target.is_nan() || target == f64::INFINITY {
            return (f64::NAN, 0.0);
        }
        if self.at.is_none() {
            return (if target == f64::NEG_INFINITY { f64::NAN } else { 0.0 }, 0.0);
        }
        // Beyond the range of f64; a target of -inf too.
        let apart = self.at.origin - target;
        if apart.is_infinite() {
            return (apart.max(0.0), 0.0);
        }
        let gap = Dd::sum(self.at.origin, -target) + LN_2 * self.at.exponent;
        let loss =
            if gap.hi < 600.0 { (self.sum * gap.exp()).ln_1p() } else { gap + self.sum.ln() };
        (loss.hi, loss.lo)
    }

    /// `ln(sum(e^x))` as `hi + lo`; -inf for nothing but -inf, +inf if there was one, NaN if there
    /// was one.
    #[inline(always)]
    pub(crate) fn lse<S: Simd>(&self, s: S) -> (f64, f64) {
        s.outlined(LseParts(self))
    }

    #[inline(always)]
    fn lse_here(&self) -> (f64, f64) {
        if self.nan | self.sum.hi.is_nan() {
            (f64::NAN, 0.0)
        } else if self.inf {
            (f64::INFINITY, 0.0)
        } else if self.at.is_none() {
            (f64::NEG_INFINITY, 0.0)
        } else {
            // The origin last: beside 1e30, two numbers do not hold what the others have of digits.
            let lse = Dd::new(self.at.origin) + (LN_2 * self.at.exponent + self.sum.ln());
            (lse.hi, lse.lo)
        }
    }

    /// `ln(e^target + sum(e^x))` as `hi + lo`: over all classes, if only the target was left out.
    #[inline(always)]
    pub(crate) fn lse_with<S: Simd>(&self, s: S, target: f64) -> (f64, f64) {
        if target.is_nan() {
            return (f64::NAN, 0.0);
        }
        if self.is_poisoned() || target == f64::NEG_INFINITY {
            return self.lse(s);
        }
        let (loss, rest) = self.loss_parts(s, target);
        // In a sum with a loss that is larger than 600, a target of 1e30 would cancel, and it does not
        // count. Of +inf the loss is NaN.
        if loss > 600.0 {
            return self.lse(s);
        }
        if loss.is_nan() {
            return (target, 0.0);
        }
        let lse = Dd::new(target) + Dd { hi: loss, lo: rest };
        (lse.hi, lse.lo)
    }
}

/// [`RowSum64::loss_parts`]: long, and once for all that call it.
struct LossParts<'a>(&'a RowSum64, f64);

impl Op for LossParts<'_> {
    type Out = (f64, f64);

    #[inline(always)]
    fn on<S: Simd>(self, _: S) -> (f64, f64) {
        self.0.loss_parts_here(self.1)
    }
}

/// [`RowSum64::lse`].
struct LseParts<'a>(&'a RowSum64);

impl Op for LseParts<'_> {
    type Out = (f64, f64);

    #[inline(always)]
    fn on<S: Simd>(self, _: S) -> (f64, f64) {
        self.0.lse_here()
    }
}

/// Reads a row once. Class `skip` is left out.
#[inline(always)]
pub(crate) fn row<S: Simd>(s: S, row: &[f64], skip: Option<usize>) -> RowSum64 {
    transformed_row(s, row, skip, &Transform::IDENTITY)
}

/// As [`row`] for the transformed elements of a row, which are staged block by block.
#[inline(always)]
pub(crate) fn transformed_row<S: Simd>(
    s: S,
    row: &[f64],
    skip: Option<usize>,
    transform: &Transform<'_>,
) -> RowSum64 {
    s.outlined(SumOfRow { row, skip, transform })
}

struct SumOfRow<'a> {
    row: &'a [f64],
    skip: Option<usize>,
    transform: &'a Transform<'a>,
}

impl Op for SumOfRow<'_> {
    type Out = RowSum64;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> RowSum64 {
        let SumOfRow { row, skip, transform } = self;
        let plain = Vectors::new(row, skip);
        let mut staged = [[f64::NEG_INFINITY; LANES_64]; BLOCK];
        let mut sum = RowSum64::EMPTY;
        for chunk in ranges(0..plain.len, CHUNK) {
            let mut part = ChunkSum::new(s);
            for block in ranges(chunk, BLOCK) {
                let (vectors, block) = if transform.is_identity() {
                    (plain, block)
                } else {
                    let start = block.start * LANES_64;
                    let x = &row[start..row.len().min(block.end * LANES_64)];
                    let z = staged.as_flattened_mut();
                    z[..x.len()].copy_from_slice(x);
                    transform.apply(start, &mut z[..x.len()]);
                    // No class, no transform of it.
                    z[x.len()..].fill(f64::NEG_INFINITY);
                    if let Some(class) =
                        skip.filter(|class| (start..start + x.len()).contains(class))
                    {
                        z[class - start] = f64::NEG_INFINITY;
                    }
                    (Vectors::new(staged.as_flattened(), None), 0..block.len())
                };
                part.add_block(&vectors, block);
            }
            part.end_part();
            sum = sum.merge(&part.done);
        }
        sum
    }
}

/// A range cut into pieces of `len`, the last one shorter.
fn ranges(all: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    all.clone().step_by(len).map(move |start| start..(start + len).min(all.end))
}
