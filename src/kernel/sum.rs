//! The single pass over a row: the sum of the exponentials of all classes but one.
//!
//! A row is chunks of 32,768 elements, a chunk is blocks of 1,024 (4 KiB: L1), a block is steps of
//! four vectors. A chunk has one reference exponent; its statistics are merged in order.

use super::blocks::{BLOCK, CHUNK, PREFETCH, STEP, Step, as_steps, max_lane, padded, ranges};
use super::exp::{self, Parts, Scale};
use super::expsum::{DEPTH, ExpSum, FIELD, HEADROOM};
use super::total::Total;
use super::transform::{Staged, Transform, ZeroBelow, has_subnormals, stage_any, subnormal_bits};
use crate::data::masks::Allowed;
use crate::simd::{AnyRow, LANES, Lane, Local, Op, Simd};
use std::ops::Range;
use std::slice::from_ref;

/// A row as whole steps. The last elements are padded with -inf and the class to leave out is replaced
/// by it, in copies of the two steps concerned: no loop has a masked tail.
pub(super) struct Steps<'a, T> {
    whole: &'a [Step<T>],
    tail: Step<T>,
    patch: Step<T>,
    /// The index of `patch`; larger than any if there is none.
    patched: usize,
    len: usize,
}

impl<'a, T: Lane> Steps<'a, T> {
    #[inline(always)]
    pub(super) fn new(row: &'a [T], skip: Option<usize>) -> Self {
        let (whole, rest) = as_steps(row);
        let mut steps = Steps {
            whole,
            tail: padded(rest, T::NEG_INFINITY),
            patch: [[T::NEG_INFINITY; LANES]; 4],
            patched: usize::MAX,
            len: row.len().div_ceil(STEP),
        };
        if let Some(class) = skip {
            steps.patch = *steps.get(class / STEP);
            steps.patch.as_flattened_mut()[class % STEP] = T::NEG_INFINITY;
            steps.patched = class / STEP;
        }
        steps
    }

    #[inline(always)]
    fn get(&self, i: usize) -> &Step<T> {
        self.whole.get(i).unwrap_or(&self.tail)
    }

    /// A step without the class to leave out.
    #[inline(always)]
    pub(super) fn step(&self, i: usize) -> &Step<T> {
        if i == self.patched { &self.patch } else { self.get(i) }
    }

    /// The steps of a block, in order. All but the first piece are empty in most blocks.
    #[inline(always)]
    fn pieces(&self, block: Range<usize>) -> [&[Step<T>]; 4] {
        let whole = |steps: Range<usize>| {
            let end = steps.end.min(self.whole.len());
            &self.whole[steps.start.min(end)..end]
        };
        let Range { start, end } = block;
        let tail = if end > self.whole.len() { from_ref(&self.tail) } else { &[] };
        if !block.contains(&self.patched) {
            return [whole(block), &[], &[], tail];
        }
        let tail = if self.patched < self.whole.len() { tail } else { &[] };
        let (before, after) = (whole(start..self.patched), whole(self.patched + 1..end));
        [before, from_ref(&self.patch), after, tail]
    }

    /// The largest element, NaN ignored; -inf if there is none.
    #[inline(always)]
    fn max<S: Simd>(&self, s: S, block: Range<usize>) -> f32 {
        let mut max = [s.splat(f32::NEG_INFINITY); 4];
        for piece in self.pieces(block) {
            for step in piece {
                for (max, lanes) in max.iter_mut().zip(step) {
                    *max = s.max_or(T::load(s, lanes), *max);
                }
            }
        }
        let max = s.max_or(s.max_or(max[0], max[1]), s.max_or(max[2], max[3]));
        max_lane(s.to_lanes(max))
    }

    #[inline(always)]
    fn any_nan<S: Simd>(&self, s: S, block: Range<usize>) -> bool {
        for piece in self.pieces(block) {
            for step in piece {
                for lanes in step {
                    if nan_bits(s, T::load(s, lanes)) != 0 {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Whether some of `samples` vectors of a block, spread over it, have elements that a CPU may take a hundred times as
    /// long for: subnormal ones, and those whose exponentials are.
    ///
    /// Samples, as a look at every element would cost a tenth of the pass; what they miss is rare enough not to matter.
    #[inline(always)]
    fn has_tiny<S: Simd>(&self, s: S, block: Range<usize>, at: &ExpSum, samples: usize) -> bool {
        let [from, to] = tiny_range(at);
        let (from, to) = (s.splat(from), s.splat(to));
        let vectors = 4 * block.len();
        let by = (vectors / samples).max(1);
        // Another lane of the steps in every block.
        let mut i = (block.start / (BLOCK / STEP)) % by;
        let mut found = 0;
        while i < vectors {
            let x = T::load(s, &self.step(block.start + i / 4)[i % 4]);
            found |= subnormal_bits(s, x) | s.gt_bits(x, from) & s.gt_bits(to, x);
            i += by;
        }
        found != 0
    }
}

/// Lanes with a NaN.
#[inline(always)]
pub(super) fn nan_bits<S: Simd>(s: S, x: S::V) -> u16 {
    !s.ge_bits(x, x)
}

/// The elements, counted from 0, whose powers of two are above 0 but below [`FAINT`].
#[inline(always)]
fn tiny_range(at: &ExpSum) -> [f32; 2] {
    let zero = (at.exponent - FIELD) * std::f32::consts::LN_2;
    [zero, zero + FAINT_FIELD * std::f32::consts::LN_2].map(|x| x + at.origin)
}

/// What a sum takes for 0 where it avoids numbers that are subnormal: products of smaller powers of two with corrections
/// would be. It is 2^-98 of a reference whose power is 2^-5, and sums are never below 2^-15.
const FAINT: f32 = 1.0 / (1u128 << 103) as f32;
const FAINT_FIELD: f32 = 24.0;

/// Set in the exponent fields from 112 (which is `FIELD - DEPTH`) to 127, and in none from 96 to 111.
const FIELD_IS_NEAR: u32 = 16;

/// How far the reference of a chunk may move down in all. What is 2^-64 of its largest does not matter.
const LOWEST: f32 = 64.0;

/// What exceeds this in a power of two is summed in [`BlockSum::hi`], the rest in `low`.
///
/// Both sums are exact where it matters: what goes to `hi` is a multiple of 2^-15, what goes to `low`
/// at most that. In one sum, a power 2^-24 times the largest would be lost to rounding.
const COARSE: f32 = 1.0 / 32_768.0;

/// What [`BlockSum::hi`] starts from, to be subtracted in the end.
///
/// The sum of a block stays within [256, 512) with it, where one unit of the last place is 2^-15:
/// coarse powers are added exactly, and the error of adding anything smaller than `hi` is exact.
const ANCHOR: f32 = 384.0;

/// How far ahead the first line of each step is asked for, in bytes: four pages. Of `f32`: a step of 16 bits has
/// half as many lines for as much arithmetic, and gains nothing by it.
///
/// The hardware prefetcher would fetch the rest of a page, but stops at its end; one line in four, this
/// early, sets it to work on pages that the loop has not reached yet, and has their addresses translated.
const PREFETCH_FAR: usize = 16_384;

/// A sum in three parts, and the union of the bits of all `z`.
pub(super) struct BlockSum<S: Simd> {
    /// Multiples of 2^-15, and [`ANCHOR`].
    hi: S::V,
    /// Powers of two up to 2^-15.
    low: S::V,
    /// What rounding took from corrections when they were added to `hi`.
    lost: S::V,
    bits: S::V,
    /// The largest element, NaN ignored, if it was asked for.
    max: S::V,
    /// The steps that have elements not below the bound, a bit each, the first one lowest; if they were asked for.
    pub(super) hits: u32,
    /// `sum(e^x (x - center))` and what was lost of it, and so for the square, if they were asked for.
    pub(super) first: [S::V; 2],
    pub(super) second: [S::V; 2],
}

/// What [`sum_steps`] yields besides the sum: nothing, the largest element, or the steps that have large ones, and with
/// these the first moment, or both.
pub(crate) const PLAIN: u8 = 0;
pub(crate) const MAX: u8 = 1;
pub(crate) const STEPS: u8 = 2;
pub(crate) const FIRST: u8 = 3;
pub(crate) const SECOND: u8 = 4;

/// Where the first and the second moment of the elements around it are taken, less the origin; and what their sums
/// start from, as [`ANCHOR`].
#[derive(Clone, Copy)]
pub(super) struct Center {
    at: f32,
    pub(super) anchors: [f32; 2],
}

impl Center {
    /// Of sums with that reference; `at` is at most a reference move above it, or any distance.
    ///
    /// Powers of two are at most 1, elements at most 3.5 above the reference. So eight terms are at most
    /// 12 (d + 3.5) in magnitude if the center is d from the reference, and the 64 of a block less than the anchor.
    #[inline(always)]
    pub(super) fn new<S: Simd>(at: f32, sum: &ExpSum) -> Self {
        let at = at - sum.origin;
        // Differences from a subnormal number are subnormal ones, which take long.
        let at = if at.abs() < f32::MIN_POSITIVE { 0.0 } else { at };
        let far = (at - sum.exponent * exp::ln_2_step(S::FUSED) as f32).abs() + 4.0;
        let first = (256.0 * far).max(1024.0);
        Center { at, anchors: [first, first * far] }
    }
}

// A function rather than a closure: a closure cannot be told to be inlined, and one that is not
// has no access to the vector instructions.
#[inline(always)]
fn split<S: Simd, T: Lane, const CAREFUL: bool>(
    s: S,
    lanes: &[T; LANES],
    scale: &Scale<S>,
    origin: S::V,
) -> Parts<S> {
    let x = T::load(s, lanes);
    if !CAREFUL {
        return scale.split::<false>(s, x);
    }
    let x = s.zero_below(x, s.splat(f32::MIN_POSITIVE));
    let parts = scale.split::<false>(s, s.sub(x, origin));
    Parts { s: s.zero_below(parts.s, s.splat(FAINT)), ..parts }
}

/// Adds a power of two to its two sums: what exceeds `coarse` to the first, the rest to the second.
#[inline(always)]
fn add_powers<S: Simd>(s: S, (hi, low): (S::V, S::V), power: S::V, coarse: S::V) -> (S::V, S::V) {
    let small = s.min(power, coarse);
    (s.add(hi, s.sub(power, small)), s.add(low, small))
}

/// Adds to an anchored sum, and what rounding takes from that to another.
#[inline(always)]
fn add_anchored<S: Simd>(s: S, [hi, lost]: [S::V; 2], v: S::V) -> [S::V; 2] {
    // Exact, as |hi| >= |v|.
    let sum = s.add(hi, v);
    [sum, s.add(lost, s.sub(v, s.sub(sum, hi)))]
}

/// Sums with care, in a function of its own, as few rows need it: the largest element too, or with
/// `MOMENTS` both moments.
pub(super) struct Careful<'a, T, const MOMENTS: bool> {
    pub(super) steps: &'a Steps<'a, T>,
    pub(super) block: Range<usize>,
    pub(super) at: &'a ExpSum,
    pub(super) center: Center,
    pub(super) bound: f32,
}

impl<S: Simd, T: Lane, const MOMENTS: bool> Local<S> for Careful<'_, T, MOMENTS> {
    type Out = BlockSum<S>;

    #[inline(always)]
    fn on(self, s: S) -> BlockSum<S> {
        let Careful { steps, block, at, center, bound } = self;
        if MOMENTS {
            return sum_steps::<S, T, true, SECOND>(s, steps, block, at, center, bound);
        }
        sum_steps::<S, T, true, MAX>(s, steps, block, at, center, bound)
    }
}

/// Sums the exponentials of the steps of a block, and what `LEVEL` says.
///
/// `CAREFUL` subtracts the origin first, and takes for 0 what is or makes subnormal numbers, with the same sum.
#[inline(always)]
pub(super) fn sum_steps<S: Simd, T: Lane, const CAREFUL: bool, const LEVEL: u8>(
    s: S,
    steps: &Steps<'_, T>,
    block: Range<usize>,
    at: &ExpSum,
    center: Center,
    bound: f32,
) -> BlockSum<S> {
    let scale = Scale::<S>::new(s, at.exponent, FIELD);
    let origin = s.splat(at.origin);
    let coarse = s.splat(COARSE);
    let zero = s.splat(0.0);
    let mut hi = s.splat(ANCHOR);
    let mut low = zero;
    let mut lost = zero;
    let mut bits = zero;
    let mut max = s.splat(f32::NEG_INFINITY);
    let [mut first, mut second] =
        [[s.splat(center.anchors[0]), zero], [s.splat(center.anchors[1]), zero]];
    let center = s.splat(center.at);
    let bound = s.splat(bound);
    let (mut hits, mut step_bit) = (0, 1);
    // Moments of some steps are added up before they go to the anchored sums.
    let group = if LEVEL >= FIRST { 2 } else { BLOCK / STEP };
    for piece in steps.pieces(block) {
        for group in piece.chunks(group) {
            let mut moments = [zero; 2];
            for step in group {
                for lanes in step.iter().step_by(T::PER_LINE) {
                    s.prefetch(lanes.as_ptr().wrapping_byte_add(PREFETCH));
                }
                if T::PER_LINE == 1 {
                    s.prefetch_far(step[0].as_ptr().wrapping_byte_add(PREFETCH_FAR));
                }
                if LEVEL == MAX {
                    for lanes in step {
                        max = s.max_or(T::load(s, lanes), max);
                    }
                }
                if LEVEL >= STEPS {
                    let [a, b, c, d] = step;
                    let ab = s.max_or(T::load(s, a), T::load(s, b));
                    let max = s.max_or(ab, s.max_or(T::load(s, c), T::load(s, d)));
                    // A lane with a NaN may be missed: rows that have one are looked through again.
                    if s.ge_bits(max, bound) != 0 {
                        hits |= step_bit;
                    }
                    step_bit <<= 1;
                }
                let a = split::<S, T, CAREFUL>(s, &step[0], &scale, origin);
                let b = split::<S, T, CAREFUL>(s, &step[1], &scale, origin);
                let rest = s.mul_add(b.s, b.q, s.mul(a.s, a.q));
                bits = s.or3(bits, a.z, b.z);
                (hi, low) = add_powers(s, (hi, low), a.s, coarse);
                (hi, low) = add_powers(s, (hi, low), b.s, coarse);
                moments = add_moments::<S, LEVEL>(s, &a, &b, center, moments);
                let c = split::<S, T, CAREFUL>(s, &step[2], &scale, origin);
                let d = split::<S, T, CAREFUL>(s, &step[3], &scale, origin);
                let rest = s.mul_add(d.s, d.q, s.mul_add(c.s, c.q, rest));
                bits = s.or3(bits, c.z, d.z);
                (hi, low) = add_powers(s, (hi, low), c.s, coarse);
                (hi, low) = add_powers(s, (hi, low), d.s, coarse);
                moments = add_moments::<S, LEVEL>(s, &c, &d, center, moments);
                // What rounding takes from this sum has a sum of its own: in the next chain it would be larger
                // than what small elements add.
                [hi, lost] = add_anchored(s, [hi, lost], rest);
            }
            if LEVEL >= FIRST {
                first = add_anchored(s, first, moments[0]);
            }
            if LEVEL >= SECOND {
                second = add_anchored(s, second, moments[1]);
            }
        }
    }
    BlockSum { hi, low, lost, bits, max, hits, first, second }
}

/// `e^x (x - center)` and `e^x (x - center)^2` of two vectors, added to `sums`.
///
/// The power of two is multiplied last, which is exact: what is rounded is `(1 + q) d`.
#[inline(always)]
fn add_moments<S: Simd, const LEVEL: u8>(
    s: S,
    a: &Parts<S>,
    b: &Parts<S>,
    center: S::V,
    [mut first, mut second]: [S::V; 2],
) -> [S::V; 2] {
    if LEVEL < FIRST {
        return [first, second];
    }
    for part in [a, b] {
        let d = s.sub(part.x, center);
        let term = s.mul_add(part.q, d, d);
        first = s.mul_add(part.s, term, first);
        if LEVEL >= SECOND {
            second = s.mul_add(part.s, s.mul(term, d), second);
        }
    }
    [first, second]
}

impl<S: Simd> BlockSum<S> {
    /// Whether the reference was right: nothing too far above it for the sums, something near it. After a look only
    /// a NaN can be left in the bits, and that shows in the sum.
    #[inline(always)]
    pub(super) fn fits(&self, s: S) -> bool {
        s.has_bits(self.bits, FIELD_IS_NEAR) && exp::fields_fit(s, self.bits)
    }

    #[inline(always)]
    pub(super) fn add_to(&self, s: S, sums: S::Wide) -> S::Wide {
        let sums = s.wide_add(sums, s.sub(self.hi, s.splat(ANCHOR)));
        s.wide_add(s.wide_add(sums, self.low), self.lost)
    }

    /// The largest element, NaN ignored, if it was asked for.
    #[inline(always)]
    pub(super) fn max(&self, s: S) -> f32 {
        max_lane(s.to_lanes(self.max))
    }
}

/// The sum of one chunk while it is being read: 16 lanes of `f64`.
#[derive(Clone, Copy)]
pub(super) struct ChunkSum<S: Simd> {
    s: S,
    pub(super) at: ExpSum,
    /// The highest exponent that the reference had.
    pub(super) top: f32,
    pub(super) sums: S::Wide,
    /// The largest element of the last block, if it was asked for.
    pub(super) max: f32,
    /// Whether the last block did not fit at once: then the next may not either.
    pub(super) moved: bool,
    /// Whether tiny numbers were seen in this chunk; `None` before its first block.
    tiny: Option<bool>,
}

/// How many vectors are looked at for tiny numbers, of the first block of a chunk and of the others.
const SAMPLES: [usize; 2] = [16, 2];

impl<S: Simd> ChunkSum<S> {
    #[inline(always)]
    pub(super) fn new(s: S) -> Self {
        ChunkSum {
            s,
            at: ExpSum::EMPTY,
            top: f32::NEG_INFINITY,
            sums: s.wide_zero(),
            max: f32::NEG_INFINITY,
            moved: false,
            tiny: None,
        }
    }

    /// Whether two sums go on alike.
    #[inline(always)]
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.at == other.at && self.top == other.top
    }

    /// Before a block is summed: whether that takes [`sum_steps`] with care.
    #[inline(always)]
    pub(super) fn takes_care<T: Lane>(
        &mut self,
        steps: &Steps<'_, T>,
        block: Range<usize>,
    ) -> bool {
        if self.tiny != Some(true) {
            let samples = SAMPLES[usize::from(self.tiny.is_some())];
            self.tiny = Some(steps.has_tiny(self.s, block, &self.at, samples));
        }
        self.at.origin != 0.0 || self.tiny == Some(true)
    }

    /// Whether the reference is to be moved, or cannot be, before a block is summed: what would be found out after it,
    /// looked for where the block before makes it likely.
    #[inline(always)]
    pub(super) fn is_off<T: Lane>(&self, steps: &Steps<'_, T>, block: Range<usize>) -> bool {
        if !self.moved {
            return self.at.is_empty();
        }
        let s = self.s;
        let max = s.splat(s.outlined(BlockMax { steps, block }) - self.at.origin);
        let z = Scale::<S>::new(s, self.at.exponent, FIELD).split::<false>(s, max).z;
        // With no field above 15 there is none of those that are near.
        !exp::fields_fit(s, z) || !s.has_bits(z, 127 & !15)
    }

    #[inline(always)]
    fn add_block<T: Lane, const LEVEL: u8>(&mut self, steps: &Steps<'_, T>, block: Range<usize>) {
        // Moments are for the chunks of `logprobs`, and so are large elements.
        let center = Center { at: 0.0, anchors: [0.0; 2] };
        let mut looked = false;
        if self.is_off(steps, block.clone()) {
            if !self.look(steps, block.clone()) {
                return;
            }
            looked = true;
        }
        loop {
            let (s, at) = (self.s, self.at);
            let sum = if self.takes_care(steps, block.clone()) {
                let block = block.clone();
                s.outlined(Careful::<T, false> { steps, block, at: &at, center, bound: 0.0 })
            } else {
                sum_steps::<S, T, false, LEVEL>(s, steps, block.clone(), &at, center, 0.0)
            };
            if looked || sum.fits(self.s) {
                self.moved = looked;
                self.add(&sum);
                if LEVEL == MAX {
                    self.max = sum.max(self.s);
                }
                return;
            }
            if !self.look(steps, block.clone()) {
                return;
            }
            looked = true;
        }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, block: &BlockSum<S>) {
        self.sums = block.add_to(self.s, self.sums);
    }

    /// Moves the reference to the largest element of a block if that is above what fits, or far below.
    /// False if there is nothing to sum: only -inf, or +inf.
    #[inline(always)]
    pub(super) fn look<T: Lane>(&mut self, steps: &Steps<'_, T>, block: Range<usize>) -> bool {
        let s = self.s;
        s.outlined(Look { sum: self, steps, block })
    }

    /// The sum, relative to the highest reference: what `ln 2` is off by counts from there.
    #[inline(always)]
    pub(super) fn finish(self) -> ExpSum {
        let to = ExpSum { exponent: self.at.exponent.max(self.top), ..self.at };
        ExpSum { sum: self.s.wide_sum(self.sums) * self.at.scale_to::<S>(&to), ..to }
    }
}

/// The largest element of a block.
struct BlockMax<'a, 'r, T> {
    steps: &'a Steps<'r, T>,
    block: Range<usize>,
}

impl<T: Lane> Op for BlockMax<'_, '_, T> {
    type Out = f32;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> f32 {
        self.steps.max(s, self.block)
    }
}

/// [`ChunkSum::look`], which is rare.
struct Look<'a, 'r, S: Simd, T> {
    sum: &'a mut ChunkSum<S>,
    steps: &'a Steps<'r, T>,
    block: Range<usize>,
}

impl<S: Simd, T: Lane> Local<S> for Look<'_, '_, S, T> {
    type Out = bool;

    #[inline(always)]
    fn on(self, s: S) -> bool {
        let Look { sum, steps, block } = self;
        let max = steps.max(s, block.clone());
        sum.max = max;
        if max.is_infinite() {
            sum.at.inf |= max > 0.0;
            sum.at.nan |= steps.any_nan(s, block);
            return false;
        }
        let mut to = ExpSum { origin: 0.0, exponent: exp::exponent_of(max), ..sum.at };
        let above = exp::exponent_of(max - sum.at.origin) - sum.at.exponent;
        if sum.at.is_empty() || above > HEADROOM - 1.0 {
            if to.exponent.abs() > exp::max_exponent::<S>() {
                (to.origin, to.exponent) = (max, 0.0);
            }
            // Of two origins only the last counts.
            let top = if to.origin == sum.at.origin { sum.top } else { f32::NEG_INFINITY };
            sum.top = top.max(to.exponent);
        } else if above < -DEPTH && sum.at.origin == 0.0 {
            to.exponent = to.exponent.max(sum.top - LOWEST);
        } else {
            return true;
        }
        let factor = sum.at.scale_to::<S>(&to);
        sum.sums = s.wide_scale(sum.sums, factor);
        sum.at = to;
        true
    }
}

/// `sum(x - from)`, or with weights `sum(w (x - from))`: of differences, as logits may be large and close
/// to each other.
pub(crate) struct Differences<'a, S: Simd> {
    /// `None`: the logits themselves, each added in `f64`.
    from: Option<f32>,
    weights: Option<&'a [f32]>,
    sums: S::Wide,
}

impl<'a, S: Simd> Differences<'a, S> {
    #[inline(always)]
    pub(crate) fn new(s: S, from: Option<f32>, weights: Option<&'a [f32]>) -> Self {
        Differences { from, weights, sums: s.wide_zero() }
    }

    #[inline(always)]
    pub(crate) fn sum(&self, s: S) -> f64 {
        s.wide_sum(self.sums)
    }

    /// Two sums, of every other pair of vectors. In the same order as with weights: weights of 1 change no
    /// bit.
    #[inline(always)]
    fn step(s: S, from: S::V, (ab, cd): (S::V, S::V), step: &Step) -> (S::V, S::V) {
        let ab = s.add(ab, s.sub(s.load(&step[0]), from));
        let cd = s.add(cd, s.sub(s.load(&step[2]), from));
        let ab = s.add(ab, s.sub(s.load(&step[1]), from));
        let cd = s.add(cd, s.sub(s.load(&step[3]), from));
        (ab, cd)
    }

    #[inline(always)]
    fn weighted_step(
        s: S,
        from: S::V,
        (ab, cd): (S::V, S::V),
        step: &Step,
        w: &Step,
    ) -> (S::V, S::V) {
        let ab = s.mul_add(s.load(&w[0]), s.sub(s.load(&step[0]), from), ab);
        let cd = s.mul_add(s.load(&w[2]), s.sub(s.load(&step[2]), from), cd);
        let ab = s.mul_add(s.load(&w[1]), s.sub(s.load(&step[1]), from), ab);
        let cd = s.mul_add(s.load(&w[3]), s.sub(s.load(&step[3]), from), cd);
        (ab, cd)
    }
}

impl<S: Simd> Differences<'_, S> {
    /// Adds those of a block from element `start` of the row on, the one to leave out among them: a loop
    /// of its own, while they are in the first-level cache.
    #[inline(always)]
    fn block(&mut self, s: S, block: &[f32], start: usize) {
        let mut copy;
        let mut block = block;
        if has_subnormals(s, block) {
            // As what they add to such a sum is nothing, and products with them take long.
            copy = Staged([0.0; BLOCK]);
            copy.0[..block.len()].copy_from_slice(block);
            exp::map_lanes(
                s,
                &mut copy.0[..block.len()],
                &ZeroBelow::<S>(s.splat(f32::MIN_POSITIVE)),
            );
            block = &copy.0[..block.len()];
        }
        let mut sums = (s.splat(0.0), s.splat(0.0));
        let (steps, rest) = as_steps(block);
        let Some(anchor) = self.from else {
            // Without an element that the others are likely to be near, differences in `f32` lose digits.
            for step in steps {
                for lanes in step {
                    self.sums = s.wide_add(self.sums, s.load(lanes));
                }
            }
            for lanes in &padded(rest, 0.0) {
                self.sums = s.wide_add(self.sums, s.load(lanes));
            }
            return;
        };
        let from = s.splat(anchor);
        match self.weights {
            None => {
                for step in steps {
                    sums = Self::step(s, from, sums, step);
                }
                if !rest.is_empty() {
                    sums = Self::step(s, from, sums, &padded(rest, anchor));
                }
            }
            Some(weights) => {
                let (weights, weights_rest) = as_steps(&weights[start..][..block.len()]);
                for (step, w) in steps.iter().zip(weights) {
                    sums = Self::weighted_step(s, from, sums, step, w);
                }
                if !rest.is_empty() {
                    let w = padded(weights_rest, 0.0);
                    sums = Self::weighted_step(s, from, sums, &padded(rest, anchor), &w);
                }
            }
        }
        self.sums = s.wide_add(self.sums, s.add(sums.0, sums.1));
    }
}

/// What one read of a row yields.
pub(crate) struct RowSum {
    /// Over all classes but one.
    pub(crate) sum: ExpSum,
    /// The largest element of these classes, NaN ignored; -inf if it was not asked for.
    pub(crate) max: f32,
    /// Where the first block with that element starts.
    pub(crate) max_block: usize,
}

impl RowSum {
    pub(crate) fn plain(sum: ExpSum) -> RowSum {
        RowSum { sum, max: f32::NEG_INFINITY, max_block: 0 }
    }
}

/// Reads a row once. Class `skip` is left out; `LEVEL` is [`PLAIN`], or [`MAX`] to find the largest element too.
///
/// Inlined: short rows have no time for a call. [`sum_of`] is for the others.
#[inline(always)]
pub(crate) fn row<S: Simd, T: Lane, const LEVEL: u8>(
    s: S,
    row: &[T],
    skip: Option<usize>,
) -> RowSum {
    let steps = Steps::new(row, skip);
    let mut out = RowSum::plain(ExpSum::EMPTY);
    let mut total = Total::empty(S::FUSED);
    for chunk in ranges(0..steps.len, CHUNK / STEP) {
        let is_only = chunk.len() == steps.len;
        let mut sum = ChunkSum::new(s);
        for block in ranges(chunk, BLOCK / STEP) {
            let start = block.start * STEP;
            sum.add_block::<T, LEVEL>(&steps, block);
            if LEVEL == MAX && sum.max > out.max {
                (out.max, out.max_block) = (sum.max, start);
            }
        }
        let sum = sum.finish();
        out.sum = if is_only { sum } else { total.with_sum(&sum) };
    }
    out
}

/// The sum over a transformed row without class `skip`, and that of the differences of its elements, if they are wanted.
#[inline(always)]
pub(crate) fn sum_of<S: Simd>(
    s: S,
    row: AnyRow<'_>,
    skip: Option<usize>,
    transform: &Transform<'_>,
    differences: Option<Differences<'_, S>>,
) -> (ExpSum, f64) {
    let is_converted_alone = transform.is_identity() && differences.is_none();
    match row {
        AnyRow::F32(row) if transform.is_identity() => {
            s.outlined(PlainRow { row, skip, differences })
        }
        AnyRow::Bf16(row) if is_converted_alone => (s.outlined(ConvertedRow { row, skip }), 0.0),
        AnyRow::F16(row) if is_converted_alone => (s.outlined(ConvertedRow { row, skip }), 0.0),
        _ => s.outlined(StagedRow { row, skip, transform, differences }),
    }
}

/// A row as it is.
struct PlainRow<'a, S: Simd> {
    row: &'a [f32],
    skip: Option<usize>,
    differences: Option<Differences<'a, S>>,
}

impl<S: Simd> Local<S> for PlainRow<'_, S> {
    type Out = (ExpSum, f64);

    #[inline(always)]
    fn on(self, s: S) -> (ExpSum, f64) {
        let PlainRow { row, skip, mut differences } = self;
        let steps = Steps::new(row, skip);
        let mut out = ExpSum::EMPTY;
        let mut total = Total::empty(S::FUSED);
        for chunk in ranges(0..steps.len, CHUNK / STEP) {
            let is_only = chunk.len() == steps.len;
            let mut sum = ChunkSum::new(s);
            for block in ranges(chunk, BLOCK / STEP) {
                sum.add_block::<f32, PLAIN>(&steps, block.clone());
                if let Some(differences) = &mut differences {
                    let start = block.start * STEP;
                    differences.block(s, &row[start..row.len().min(block.end * STEP)], start);
                }
            }
            let sum = sum.finish();
            out = if is_only { sum } else { total.with_sum(&sum) };
        }
        (out, differences.map_or(0.0, |differences| differences.sum(s)))
    }
}

/// A row that is converted as it is read, and nothing else.
pub(crate) struct ConvertedRow<'a, T> {
    pub(crate) row: &'a [T],
    pub(crate) skip: Option<usize>,
}

impl<T: Lane> Op for ConvertedRow<'_, T> {
    type Out = ExpSum;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> ExpSum {
        row::<S, T, PLAIN>(s, self.row, self.skip).sum
    }
}

/// A row that is staged block by block.
struct StagedRow<'a, S: Simd> {
    row: AnyRow<'a>,
    skip: Option<usize>,
    transform: &'a Transform<'a>,
    differences: Option<Differences<'a, S>>,
}

impl<S: Simd> Local<S> for StagedRow<'_, S> {
    type Out = (ExpSum, f64);

    #[inline(always)]
    fn on(self, s: S) -> (ExpSum, f64) {
        let StagedRow { row, skip, transform, mut differences } = self;
        let mut out = ExpSum::EMPTY;
        let mut total = Total::empty(S::FUSED);
        let mut staged = Staged([0.0; BLOCK]);
        for chunk in ranges(0..row.len(), CHUNK) {
            let is_only = chunk.len() == row.len();
            let mut sum = ChunkSum::new(s);
            for block in ranges(chunk, BLOCK) {
                let (start, len) = (block.start, block.len());
                stage_any(s, transform, row, block.clone(), &mut staged.0);
                if let Some(differences) = &mut differences {
                    differences.block(s, &staged.0[..len], start);
                }
                // No transform of -inf is needed where there is no class.
                staged.0[len..].fill(f32::NEG_INFINITY);
                if let Some(class) = skip.filter(|class| block.contains(class)) {
                    staged.0[class - start] = f32::NEG_INFINITY;
                }
                let steps = Steps::new(&staged.0, None);
                sum.add_block::<f32, PLAIN>(&steps, 0..len.div_ceil(STEP));
            }
            let sum = sum.finish();
            out = if is_only { sum } else { total.with_sum(&sum) };
        }
        (out, differences.map_or(0.0, |differences| differences.sum(s)))
    }
}

/// The first index of the largest element that may be, NaN ignored; 0 if there is none.
#[inline(always)]
pub(crate) fn argmax_ignoring_nan<S: Simd, T: Lane>(
    s: S,
    row: &[T],
    allowed: Option<Allowed<'_>>,
) -> usize {
    match allowed {
        None => s.outlined(Argmax(row)),
        Some(allowed) => s.outlined(MaskedArgmax(T::any(row), allowed)),
    }
}

struct Argmax<'a, T>(&'a [T]);

impl<T: Lane> Op for Argmax<'_, T> {
    type Out = usize;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> usize {
        let Argmax(row) = self;
        let steps = Steps::new(row, None);
        let mut best = (f32::NEG_INFINITY, 0);
        for block in ranges(0..steps.len, BLOCK / STEP) {
            let start = block.start * STEP;
            let max = steps.max(s, block);
            if max > best.0 {
                best = (max, start);
            }
        }
        first_in_block(s, row, best.1, best.0)
    }
}

/// Of a row under a mask, staged block by block.
struct MaskedArgmax<'a>(AnyRow<'a>, Allowed<'a>);

impl Op for MaskedArgmax<'_> {
    type Out = usize;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> usize {
        let MaskedArgmax(row, allowed) = self;
        let mask = Transform { allowed: Some(allowed), ..Transform::IDENTITY };
        let mut staged = Staged([0.0; BLOCK]);
        let mut best = (f32::NEG_INFINITY, 0);
        for block in ranges(0..row.len(), BLOCK) {
            let start = block.start;
            let z = &mut staged.0[..block.len()];
            stage_any(s, &mask, row, block, z);
            let steps = Steps::new(z, None);
            let max = steps.max(s, 0..steps.len);
            if max > best.0 {
                best = (max, start + first_equal(s, z, max));
            }
        }
        best.1
    }
}

/// The first NaN.
#[inline(always)]
pub(crate) fn first_nan<S: Simd, T: Lane>(s: S, row: &[T]) -> Option<usize> {
    s.outlined(FirstNan(row))
}

struct FirstNan<'a, T>(&'a [T]);

impl<T: Lane> Op for FirstNan<'_, T> {
    type Out = Option<usize>;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> Option<usize> {
        let (lanes, rest) = self.0.as_chunks::<LANES>();
        for (i, lanes) in lanes.iter().enumerate() {
            let nan = nan_bits(s, T::load(s, lanes));
            if nan != 0 {
                return Some(LANES * i + nan.trailing_zeros() as usize);
            }
        }
        let at = rest.iter().position(|x| x.widen().is_nan());
        at.map(|at| LANES * lanes.len() + at)
    }
}

/// The first index of `value` in the block that starts at `start`; `start` if it is not there.
#[inline(always)]
pub(crate) fn first_in_block<S: Simd, T: Lane>(s: S, row: &[T], start: usize, value: f32) -> usize {
    start + first_equal(s, &row[start..row.len().min(start + BLOCK)], value)
}

/// The first index of `value`; 0 if it is not there.
#[inline(always)]
pub(crate) fn first_equal<S: Simd, T: Lane>(s: S, row: &[T], value: f32) -> usize {
    let (lanes, rest) = row.as_chunks::<LANES>();
    let wanted = s.splat(value);
    for (i, lanes) in lanes.iter().enumerate() {
        let x = T::load(s, lanes);
        let equal = s.ge_bits(x, wanted) & s.ge_bits(wanted, x);
        if equal != 0 {
            return LANES * i + equal.trailing_zeros() as usize;
        }
    }
    let at = rest.iter().position(|x| x.widen() == value);
    at.map_or(0, |at| LANES * lanes.len() + at)
}
