//! The gradient of a row: one read of the logits, one write.
//!
//! `g[j] = (a p[j] - b v[j]) slope[j]`, with `p` the softmax, `v` absent, 1 or given, and the slope that of
//! a softcap. What is absent is not computed: each combination is a loop of its own.

use super::blocks::{BLOCK, ranges};
use super::exp::{Map, Scale, map_lanes, max_exponent};
use super::expsum::Lse;
use super::pass::{Minus, Place, Store};
use super::probs::StageProbs;
use super::transform::{Staged, Transform, ZeroBelow, has_subnormals, narrow, stage};
use crate::math;
use crate::simd::stream::{Part, Streamed, Streaming, Vectors};
use crate::simd::{LANES, Lane, Local, Simd};
use std::f64::consts::{LN_2, LOG2_E};
use std::mem::take;

/// Where the gradient of a row goes. When this is dropped, all of it may be read, and told of to other
/// threads.
pub(crate) enum Destination<'a, S: Simd, T: Streamed<S>> {
    Plain(&'a mut [T]),
    Add(&'a mut [T]),
    Stream(Streaming<'a, S, T>),
}

/// Some of its elements.
pub(crate) enum Piece<'a, S: Simd, T: Streamed<S>> {
    Plain(&'a mut [T]),
    Add(&'a mut [T]),
    Stream(Part<'a, S, T>),
}

impl<'a, S: Simd, T: Streamed<S>> Destination<'a, S, T> {
    /// What is read, as the logits are there, is not streamed.
    #[inline(always)]
    pub(crate) fn new(s: S, store: Store, in_place: bool, to: &'a mut [T]) -> Self {
        match store {
            _ if in_place => Destination::Plain(to),
            Store::Plain => Destination::Plain(to),
            Store::Add => Destination::Add(to),
            Store::Stream => Destination::Stream(Streaming::new(s, to)),
        }
    }

    /// The next elements.
    #[inline(always)]
    pub(crate) fn next(&mut self, len: usize) -> Piece<'_, S, T> {
        #[inline(always)]
        fn next<'a, T>(left: &mut &'a mut [T], len: usize) -> &'a mut [T] {
            let (part, rest) = take(left).split_at_mut(len);
            *left = rest;
            part
        }
        match self {
            Destination::Plain(to) => Piece::Plain(next(to, len)),
            Destination::Add(to) => Piece::Add(next(to, len)),
            Destination::Stream(streaming) => Piece::Stream(streaming.next(len)),
        }
    }
}

impl<S: Simd, T: Streamed<S>> Piece<'_, S, T> {
    /// What is there; nothing where nobody may read it.
    #[inline(always)]
    pub(crate) fn old(&self) -> &[T] {
        match self {
            Piece::Plain(to) | Piece::Add(to) => to,
            Piece::Stream(_) => &[],
        }
    }
}

// The values of the const parameters.
const NOTHING: u8 = 0;
const CONSTANT: u8 = 1;
const VALUES: u8 = 2;
const PLAIN: u8 = 0;
const ADD: u8 = 1;
/// The logits are where the gradient goes.
const IN_PLACE: u8 = 2;

/// Which of the first three it takes.
fn subtract_of(minus: &Minus<'_, f32>) -> u8 {
    match minus {
        Minus::Nothing => NOTHING,
        Minus::Constant(_) => CONSTANT,
        Minus::Weights(..) | Minus::Probs(..) => VALUES,
    }
}

/// `a e^(x - lse) - b v`
///
/// Calls take a copy: of a reference the compiler would think that the stores of a loop change it.
#[derive(Clone, Copy)]
struct Scaled<S: Simd> {
    scale: Scale<S>,
    /// `a e^(-lse)`, less the power of two that is in `scale`.
    h: S::V,
    b: S::V,
    /// Subtracted from `x` beforehand; 0 but for rows that are astronomically large.
    origin: f32,
    /// From an element to the one to ask memory for.
    ahead: usize,
}

impl<S: Simd> Scaled<S> {
    #[inline(always)]
    fn new(s: S, a: f64, lse: Lse, b: f64, ahead: usize) -> Self {
        // As in the forward pass, elements far from 0 are moved before they are split.
        let limit = f64::from(max_exponent::<S>()) * LN_2;
        let near = lse.value().abs() <= limit;
        let (origin, lse) = if near { (0.0, lse.value()) } else { (lse.hi as f32, lse.lo) };
        // An infinite `h` would make NaN of a negative `q`; what is this large makes infinities anyway.
        let a = a.clamp(-BEYOND, BEYOND);
        // The size of `a` is in the power of two: a factor out of the range of normal numbers would
        // lose digits where its product with a probability does not. And powers of two change no bits.
        let size = math::exponent(a).min(LARGEST);
        let exponent = ((lse * LOG2_E) as f32).round_ties_even();
        let h = a * math::exp2_int(-size) * math::exp(f64::from(exponent) * LN_2 - lse);
        Scaled {
            scale: Scale::new(s, exponent - size as f32, 127.0),
            h: s.splat(h as f32),
            b: s.splat(b as f32),
            origin,
            ahead,
        }
    }

    /// Staged logits, subnormal ones taken for 0 as they take long and their exponential is 1.
    #[inline(always)]
    fn move_to_origin(&self, s: S, z: &mut [f32]) {
        if has_subnormals(s, z) {
            map_lanes(s, z, &ZeroBelow::<S>(s.splat(f32::MIN_POSITIVE)));
        }
        if self.origin != 0.0 {
            map_lanes(s, z, &Shift::<S>(s.splat(self.origin)));
        }
    }

    #[inline(always)]
    fn at<const SUBTRACT: u8>(&self, s: S, x: S::V, v: S::V) -> S::V {
        let exp = self.scale.split::<true>(s, x);
        let h = s.mul_add(self.h, exp.q, self.h);
        match SUBTRACT {
            NOTHING => s.mul(exp.s, h),
            CONSTANT => s.mul_add(exp.s, h, self.b),
            _ => s.neg_mul_add(self.b, v, s.mul(exp.s, h)),
        }
    }
}

/// The exponent of the largest factor that is left to the power of two.
const LARGEST: i32 = 122;

/// A factor whose product with any normal number is beyond `f32`, and whose quotient by `2^LARGEST` is not.
const BEYOND: f64 = 3e74;

/// One stretch of a row: where its elements come from. `values` are as long as what is written where the loop
/// reads them, as is `from` unless the logits are there.
#[derive(Clone, Copy)]
struct Stretch<'a, T = f32> {
    from: &'a [T],
    values: &'a [f32],
}

/// The beginning of a slice that is read, nothing of one that is not.
#[inline(always)]
fn vectors<T>(used: bool, slice: &[T], len: usize) -> (&[[T; LANES]], &[T]) {
    let slice = if used { &slice[..len] } else { &[] };
    slice.as_chunks::<LANES>()
}

impl<'a, T: Lane> Stretch<'a, T> {
    #[inline(always)]
    fn run<S: Simd, const SUBTRACT: u8, const STORE: u8>(
        self,
        s: S,
        scaled: &Scaled<S>,
        to: &mut [T],
    ) {
        let len = to.len();
        let (from, from_rest) = vectors(STORE != IN_PLACE, self.from, len);
        let (values, values_rest) = vectors(SUBTRACT == VALUES, self.values, len);
        let (to, to_rest) = to.as_chunks_mut::<LANES>();
        let zero = s.splat(0.0);
        for i in 0..to.len() {
            let x = if STORE == IN_PLACE { &to[i] } else { &from[i] };
            s.prefetch_far(x.as_ptr().wrapping_add(scaled.ahead));
            let x = T::load(s, x);
            let v = if SUBTRACT == VALUES { s.load(&values[i]) } else { zero };
            let mut g = scaled.at::<SUBTRACT>(s, x, v);
            if STORE == ADD {
                g = s.add(T::load(s, &to[i]), g);
            }
            T::store(s, &mut to[i], g);
        }
        let rest = Stretch { from: from_rest, values: values_rest };
        rest.part_of_a_vector(s, scaled, SUBTRACT, STORE, to_rest);
    }

    /// As [`Stretch::run`], of vectors that go past the caches.
    #[inline(always)]
    fn stream<S: Simd, const SUBTRACT: u8>(
        self,
        s: S,
        scaled: &Scaled<S>,
        mut to: Vectors<'_, S, T>,
    ) {
        let len = to.len() * LANES;
        let (from, _) = vectors(true, self.from, len);
        let (values, _) = vectors(SUBTRACT == VALUES, self.values, len);
        let zero = s.splat(0.0);
        for i in 0..to.len() {
            s.prefetch_far(from[i].as_ptr().wrapping_add(scaled.ahead));
            let v = if SUBTRACT == VALUES { s.load(&values[i]) } else { zero };
            to.put(i, scaled.at::<SUBTRACT>(s, T::load(s, &from[i]), v));
        }
    }

    /// Up to a vector: for all loops, as it is short.
    #[inline(always)]
    fn part_of_a_vector<S: Simd>(
        self,
        s: S,
        scaled: &Scaled<S>,
        subtract: u8,
        store: u8,
        to: &mut [T],
    ) {
        if !to.is_empty() {
            s.outlined(PartOfAVector { stretch: self, scaled: *scaled, subtract, store, to });
        }
    }

    /// The first elements of what is not empty, and the rest.
    fn split_at(self, mid: usize) -> (Self, Self) {
        fn split<T>(slice: &[T], mid: usize) -> (&[T], &[T]) {
            slice.split_at(if slice.is_empty() { 0 } else { mid })
        }
        let (from, from_rest) = split(self.from, mid);
        let (values, values_rest) = split(self.values, mid);
        (Stretch { from, values }, Stretch { from: from_rest, values: values_rest })
    }

    #[inline(always)]
    fn with_store<S: Simd, const SUBTRACT: u8>(
        self,
        s: S,
        scaled: &Scaled<S>,
        to: Piece<'_, S, T>,
        in_place: bool,
    ) {
        match to {
            Piece::Plain(to) if in_place => self.run::<S, SUBTRACT, IN_PLACE>(s, scaled, to),
            Piece::Plain(to) => self.run::<S, SUBTRACT, PLAIN>(s, scaled, to),
            Piece::Add(to) => self.run::<S, SUBTRACT, ADD>(s, scaled, to),
            Piece::Stream(Part { head, vectors, tail }) => {
                let (first, rest) = self.split_at(head.len());
                let (lines, last) = rest.split_at(vectors.len() * LANES);
                first.part_of_a_vector(s, scaled, SUBTRACT, PLAIN, head);
                lines.stream::<S, SUBTRACT>(s, scaled, vectors);
                last.part_of_a_vector(s, scaled, SUBTRACT, PLAIN, tail);
            }
        }
    }
}

/// [`Stretch::part_of_a_vector`].
struct PartOfAVector<'a, S: Simd, T> {
    stretch: Stretch<'a, T>,
    scaled: Scaled<S>,
    subtract: u8,
    store: u8,
    to: &'a mut [T],
}

impl<S: Simd, T: Lane> Local<S> for PartOfAVector<'_, S, T> {
    type Out = ();

    #[inline(always)]
    fn on(self, s: S) {
        fn lanes<T: Lane>(part: &[T]) -> [T; LANES] {
            let mut lanes = [T::default(); LANES];
            lanes[..part.len()].copy_from_slice(part);
            lanes
        }
        let PartOfAVector { stretch, scaled, subtract, store, to } = self;
        let x = T::load(s, &lanes(if store == IN_PLACE { to } else { stretch.from }));
        let mut g = match subtract {
            NOTHING => scaled.at::<NOTHING>(s, x, x),
            CONSTANT => scaled.at::<CONSTANT>(s, x, x),
            _ => scaled.at::<VALUES>(s, x, s.load(&lanes(stretch.values))),
        };
        if store == ADD {
            g = s.add(T::load(s, &lanes(to)), g);
        }
        let mut last = [T::default(); LANES];
        T::store(s, &mut last, g);
        to.copy_from_slice(&last[..to.len()]);
    }
}

/// Up to a block of staged logits: `(a p - minus) slope`, in place. One for all types, and as the loops are few, all
/// of them have a slope.
struct StagedBlock<'a, S: Simd> {
    scaled: Scaled<S>,
    subtract: u8,
    z: &'a mut Staged<f32>,
    /// All of them, or none, if they are not subtracted.
    values: &'a [f32],
    slopes: &'a Staged<f32>,
    len: usize,
}

impl<S: Simd> Local<S> for StagedBlock<'_, S> {
    type Out = ();

    #[inline(always)]
    fn on(self, s: S) {
        let StagedBlock { scaled, subtract, z, values, slopes, len } = self;
        scaled.move_to_origin(s, &mut z.0[..len]);
        // What is left of the buffers is computed too: there is no part of a vector.
        let (z, _) = z.0.as_chunks_mut::<LANES>();
        let (slopes, _) = slopes.0.as_chunks::<LANES>();
        let z = &mut z[..len.div_ceil(LANES)];
        match subtract {
            NOTHING => {
                for (z, slope) in z.iter_mut().zip(slopes) {
                    let x = s.load(z);
                    s.store(z, s.mul(scaled.at::<NOTHING>(s, x, x), s.load(slope)));
                }
            }
            CONSTANT => {
                for (z, slope) in z.iter_mut().zip(slopes) {
                    let x = s.load(z);
                    s.store(z, s.mul(scaled.at::<CONSTANT>(s, x, x), s.load(slope)));
                }
            }
            _ => {
                let (values, rest) = values.as_chunks::<LANES>();
                let mut last = [0.0; LANES];
                last[..rest.len()].copy_from_slice(rest);
                for (i, (z, slope)) in z.iter_mut().zip(slopes).enumerate() {
                    let v = s.load(values.get(i).unwrap_or(&last));
                    let g = scaled.at::<VALUES>(s, s.load(z), v);
                    s.store(z, s.mul(g, s.load(slope)));
                }
            }
        }
    }
}

/// What was staged, where it goes.
struct Put<'a, S: Simd, T: Streamed<S>> {
    from: &'a [f32],
    to: Piece<'a, S, T>,
}

impl<S: Simd, T: Lane> Local<S> for Put<'_, S, T> {
    type Out = ();

    #[inline(always)]
    fn on(self, s: S) {
        let Put { from, to } = self;
        let to = match to {
            Piece::Plain(to) => to,
            Piece::Add(to) => return narrow(s, from, to, true),
            Piece::Stream(Part { head, mut vectors, tail }) => {
                let (first, from) = from.split_at(head.len());
                let (lines, last) = from.as_chunks::<LANES>();
                for (i, line) in lines.iter().enumerate() {
                    vectors.put(i, s.load(line));
                }
                for (to, from) in [(head, first), (tail, last)] {
                    for (to, &from) in to.iter_mut().zip(from) {
                        *to = T::round(f64::from(from));
                    }
                }
                return;
            }
        };
        narrow(s, from, to, false);
    }
}

/// The gradient of one row by its logits.
///
/// The factors `a` and `b` contain the derivative of scale and temperature, but not that of the softcap.
/// Logits as they are have a loop of their own; of types that have to be converted only those from which
/// nothing is subtracted. All others are staged, and computed a block at a time.
#[inline(always)]
pub(crate) fn row<S: Simd, T: Lane>(
    s: S,
    Place { x, to: g, store, ahead }: Place<'_, T>,
    transform: &Transform<'_>,
    (a, lse): (f64, Lse),
    minus: &Minus<'_, f32>,
) {
    if !lse.value().is_finite() || a.is_nan() {
        g.fill(T::NAN);
        return;
    }
    let b = match *minus {
        Minus::Nothing => 0.0,
        Minus::Constant(b) => -b,
        Minus::Weights(b, _) | Minus::Probs(b, _) => b,
    };
    let mut scaled = Scaled::<S>::new(s, a, lse, b, ahead);
    let is_careful = has_subnormals(s, x.unwrap_or(g));
    let as_it_is = transform.is_identity() && scaled.origin == 0.0 && !is_careful;
    let whole = match *minus {
        _ if !as_it_is => None,
        Minus::Nothing => Some(&[][..]),
        _ if T::IS_CONVERTED => None,
        Minus::Constant(_) => Some(&[][..]),
        Minus::Weights(_, values) => Some(values),
        Minus::Probs(_, probs) => probs.as_they_are(),
    };
    let (len, in_place) = (g.len(), x.is_none());
    let mut to = Destination::new(s, store, in_place, g);
    if let Some(values) = whole {
        let stretch = Stretch { from: x.unwrap_or(&[]), values };
        let to = to.next(len);
        return match minus {
            Minus::Nothing => stretch.with_store::<S, NOTHING>(s, &scaled, to, in_place),
            // Decided above; here the loops are left out.
            _ if T::IS_CONVERTED => {}
            Minus::Constant(_) => stretch.with_store::<S, CONSTANT>(s, &scaled, to, in_place),
            _ => stretch.with_store::<S, VALUES>(s, &scaled, to, in_place),
        };
    }
    // What is staged is not what memory is to be asked for.
    scaled.ahead = 0;
    let (mut z, mut slopes) = (Staged([0.0; BLOCK]), Staged([1.0; BLOCK]));
    let mut values = Staged([0.0; BLOCK]);
    for block in ranges(0..len, BLOCK) {
        let len = block.len();
        let to = to.next(len);
        let x = match x {
            Some(x) => &x[block.clone()],
            None => to.old(),
        };
        for line in x.chunks(LANES * T::PER_LINE) {
            s.prefetch_far(line.as_ptr().wrapping_add(ahead));
        }
        let slope = transform.softcap.is_some().then_some(&mut slopes.0[..]);
        stage(s, transform, block.start, x, &mut z.0, slope);
        let values = match *minus {
            Minus::Nothing | Minus::Constant(_) => &[],
            Minus::Weights(_, values) => &values[block],
            Minus::Probs(_, probs) => match probs.as_they_are() {
                Some(values) => &values[block],
                None => {
                    s.outlined(StageProbs { probs, block, v: &mut values.0[..len] });
                    &values.0[..len]
                }
            },
        };
        let subtract = subtract_of(minus);
        let (z_block, slopes) = (&mut z, &slopes);
        s.outlined(StagedBlock { scaled, subtract, z: z_block, values, slopes, len });
        s.outlined(Put { from: &z.0[..len], to });
    }
}

struct Shift<S: Simd>(S::V);

impl<S: Simd> Map<S> for Shift<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        s.sub(x, self.0)
    }
}
