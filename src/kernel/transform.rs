//! What is done to logits before the softmax: mask, scale, bias, softcap, temperature.

use super::blocks::{BLOCK, PREFETCH};
use super::exp::{Map, Scale, map_lanes as each};
use crate::data::masks::Allowed;
use crate::math;
use crate::simd::Op;
use crate::simd::{AnyRow, LANES, Lane, Simd};
use std::ops::Range;

/// `z = (cap(scale * x + bias) - origin) / temperature` with `cap(u) = c tanh(u / c)`, and -inf for classes that may not
/// be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Transform<'a> {
    pub(crate) scale: f64,
    pub(crate) temperature: f64,
    /// 0, but for rows that a low temperature takes out of the range of `f32`: their largest logit.
    pub(crate) origin: f64,
    pub(crate) softcap: Option<Softcap>,
    pub(crate) allowed: Option<Allowed<'a>>,
    /// What is added to some classes, in ascending order. For losses there is none.
    pub(crate) bias: &'a [(u32, f32)],
}

/// `c tanh(x / c)`
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Softcap {
    pub(crate) cap: f64,
    /// -inf stays -inf and +inf stays +inf, instead of becoming `-c` and `c`.
    pub(crate) keep_infinite: bool,
}

impl Transform<'_> {
    pub(crate) const IDENTITY: Transform<'static> = Transform {
        scale: 1.0,
        temperature: 1.0,
        origin: 0.0,
        softcap: None,
        allowed: None,
        bias: &[],
    };

    #[inline(always)]
    pub(crate) fn is_identity(&self) -> bool {
        *self == Transform::IDENTITY
    }

    /// Whether it leaves logits as they are, but for the temperature.
    #[inline(always)]
    fn is_raw_identity(&self) -> bool {
        self.scale == 1.0
            && self.softcap.is_none()
            && self.allowed.is_none()
            && self.bias.is_empty()
    }

    #[inline(always)]
    pub(crate) fn is_allowed(&self, class: usize) -> bool {
        self.allowed.is_none_or(|allowed| allowed.contains(class))
    }

    /// `z` of one `f64` and the derivative of the softcap there. Plain code: it is rarely wanted of `f64`.
    #[inline(always)]
    pub(crate) fn one(&self, class: usize, x: f64) -> (f64, f64) {
        let (z, slope) = self.one_raw(class, x);
        (self.cooled(z), slope)
    }

    /// As [`Transform::one`], before the temperature.
    #[inline(always)]
    pub(crate) fn one_raw(&self, class: usize, x: f64) -> (f64, f64) {
        let is_allowed = self.is_allowed(class);
        let x = if is_allowed { x } else { f64::NEG_INFINITY };
        let (mut z, mut slope) = (x * self.scale, 1.0);
        if !self.bias.is_empty()
            && let Ok(at) = self.bias.binary_search_by_key(&class, |&(id, _)| id as usize)
        {
            let b = self.bias[at].1;
            z = if b == f32::NEG_INFINITY { b.into() } else { z + f64::from(b) };
        }
        if let Some(Softcap { cap, keep_infinite }) = self.softcap {
            let u = 2.0 * (z / cap).abs();
            let e = math::exp(-u);
            // As in `Cap` and `Slope` below.
            slope = 4.0 * e / (1.0 + e) / (1.0 + e);
            if z.is_finite() || !keep_infinite {
                z = (cap * (math::one_minus_exp_neg(u) / (1.0 + e))).copysign(z);
            }
        }
        (if is_allowed { z } else { x }, slope)
    }

    /// What the temperature makes of a logit.
    #[inline(always)]
    pub(crate) fn cooled(&self, z: f64) -> f64 {
        (if self.origin == 0.0 { z } else { z - self.origin }) / self.temperature
    }

    /// As [`Transform::cooled`], with the bits of [`stage`].
    #[inline(always)]
    pub(crate) fn cooled_f32(&self, z: f32) -> f32 {
        if self.temperature == 1.0 {
            return z;
        }
        (if self.origin == 0.0 { z } else { z - self.origin as f32 }) / self.temperature as f32
    }

    /// What logits are below after the temperature that [`stage`] may take for 0; 0 if it takes none.
    #[inline(always)]
    pub(crate) fn faint(&self) -> f32 {
        if self.temperature == 1.0 {
            return 0.0;
        }
        (f32::MIN_POSITIVE / self.temperature as f32).max(f32::MIN_POSITIVE)
    }

    /// A logit as [`stage_raw`] leaves it, without the options that only losses have.
    pub(crate) fn raw_f32(&self, class: usize, x: f32) -> f32 {
        if !self.is_allowed(class) {
            return f32::NEG_INFINITY;
        }
        let mut z = x;
        if let Ok(at) = self.bias.binary_search_by_key(&class, |&(id, _)| id as usize) {
            z = biased(z, self.bias[at].1);
        }
        z
    }

    /// `z` of each, in place, from class `start` on.
    #[inline(always)]
    pub(crate) fn apply(&self, start: usize, x: &mut [f64]) {
        for (i, x) in x.iter_mut().enumerate() {
            *x = self.one(start + i, *x).0;
        }
    }

    /// The derivative of `z` by `x`, without that of the softcap.
    #[inline(always)]
    pub(crate) fn slope(&self) -> f64 {
        self.scale / self.temperature
    }
}

/// A part of a row after its transform, and the derivative of the softcap there.
///
/// Rows with a transform are brought into this buffer block by block, in the first-level cache, so that
/// the loops over them are the same as those over plain rows.
#[repr(align(64))]
pub(crate) struct Staged<T>(pub(crate) [T; BLOCK]);

/// Up to a block of transformed `x`, from class `start` on, into the beginning of `z`, and if wanted the
/// derivative of the softcap into that of `slope`.
#[inline(always)]
pub(crate) fn stage<S: Simd, T: Lane>(
    s: S,
    transform: &Transform<'_>,
    start: usize,
    x: &[T],
    z: &mut [f32],
    slope: Option<&mut [f32]>,
) {
    let z = &mut z[..x.len()];
    widen(s, x, z);
    stage_in_place(s, transform, start, z, slope);
}

/// As [`stage`], of logits that are there already.
#[inline(always)]
fn stage_in_place<S: Simd>(
    s: S,
    transform: &Transform<'_>,
    start: usize,
    z: &mut [f32],
    slope: Option<&mut [f32]>,
) {
    stage_raw(s, transform, start, z, slope);
    stage_cooled(s, transform, z);
}

/// What [`stage`] does before the temperature.
///
/// A call, as it is long and every kernel has it.
#[inline(always)]
pub(crate) fn stage_raw<S: Simd>(
    s: S,
    transform: &Transform<'_>,
    start: usize,
    z: &mut [f32],
    slope: Option<&mut [f32]>,
) {
    if !transform.is_raw_identity() {
        s.outlined(StageRaw { transform, start, z, slope });
    }
}

struct StageRaw<'a> {
    transform: &'a Transform<'a>,
    start: usize,
    z: &'a mut [f32],
    slope: Option<&'a mut [f32]>,
}

impl Op for StageRaw<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        let StageRaw { transform, start, z, slope } = self;
        if let Some(allowed) = transform.allowed {
            // First: what may not be may be anything, and its slope has to be a number.
            mask(s, allowed, start, z);
        }
        if transform.scale != 1.0 || transform.softcap.is_some() {
            drop_subnormals(s, transform, z);
        }
        if transform.scale != 1.0 {
            let k = s.splat(transform.scale as f32);
            each(s, z, &Multiply::<S>(k));
        }
        if !transform.bias.is_empty() {
            add_bias(transform.bias, start, z);
        }
        if let Some(softcap) = transform.softcap {
            let cap = Cap::<S>::new(s, softcap);
            if let Some(slope) = slope {
                let slope = &mut slope[..z.len()];
                slope.copy_from_slice(z);
                each(s, slope, &Slope::<S>(&cap));
            }
            each(s, z, &cap);
            if let Some(allowed) = transform.allowed
                && !softcap.keep_infinite
            {
                mask(s, allowed, start, z);
            }
        }
    }
}

/// What [`stage`] does for the temperature.
#[inline(always)]
pub(crate) fn stage_cooled<S: Simd>(s: S, transform: &Transform<'_>, z: &mut [f32]) {
    if transform.temperature != 1.0 {
        s.outlined(StageCooled { transform, z });
    }
}

struct StageCooled<'a> {
    transform: &'a Transform<'a>,
    z: &'a mut [f32],
}

impl Op for StageCooled<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        let StageCooled { transform, z } = self;
        drop_subnormals(s, transform, z);
        if transform.origin != 0.0 {
            each(s, z, &Subtract::<S>(s.splat(transform.origin as f32)));
        }
        each(s, z, &Divide::<S>(s.splat(transform.temperature as f32)));
    }
}

/// -inf over what may not be, of logits from class `start` on, a multiple of 16 unless they are few.
#[inline(always)]
fn mask<S: Simd>(s: S, allowed: Allowed<'_>, start: usize, z: &mut [f32]) {
    let (lanes, rest) = z.as_chunks_mut::<LANES>();
    let end = start + LANES * lanes.len();
    for (i, z) in lanes.iter_mut().enumerate() {
        let kept = s.keep_bits(s.load(z), allowed.bits(start + LANES * i));
        s.store(z, kept);
    }
    for (i, z) in rest.iter_mut().enumerate() {
        if !allowed.contains(end + i) {
            *z = f32::NEG_INFINITY;
        }
    }
}

/// The largest factor of logits with which subnormal ones make no difference: `e^z` is 1 in `f64` too.
const SLOPE_OF_NOTHING: f64 = 1e20;

/// Takes subnormal numbers for 0, which products and quotients take a hundred times as long for, if there are some.
#[inline(always)]
fn drop_subnormals<S: Simd>(s: S, transform: &Transform<'_>, z: &mut [f32]) {
    if transform.slope() <= SLOPE_OF_NOTHING && has_subnormals(s, z) {
        each(s, z, &ZeroBelow::<S>(s.splat(f32::MIN_POSITIVE)));
    }
}

/// Whether some of a few vectors, spread over the elements, have subnormal numbers.
#[inline(always)]
pub(crate) fn has_subnormals<S: Simd, T: Lane>(s: S, x: &[T]) -> bool {
    const SAMPLES: usize = 16;
    let (lanes, _) = x.as_chunks::<LANES>();
    let by = if lanes.len() <= SAMPLES * SAMPLES {
        (lanes.len() / SAMPLES).max(1)
    } else {
        // One in 17: rows are often made of powers of two.
        SAMPLES + 1
    };
    let mut found = 0;
    for lanes in lanes.iter().step_by(by) {
        found |= subnormal_bits(s, T::load(s, lanes));
    }
    found != 0
}

/// Lanes with a subnormal number.
#[inline(always)]
pub(crate) fn subnormal_bits<S: Simd>(s: S, x: S::V) -> u16 {
    let x = s.neg_abs(x);
    s.gt_bits(x, s.splat(-f32::MIN_POSITIVE)) & s.gt_bits(s.splat(0.0), x)
}

/// 0 for what is below a bound.
pub(crate) struct ZeroBelow<S: Simd>(pub(crate) S::V);

impl<S: Simd> Map<S> for ZeroBelow<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        s.zero_below(x, self.0)
    }
}

/// -inf bans a token, whatever its logit is.
fn biased(z: f32, b: f32) -> f32 {
    if b == f32::NEG_INFINITY { b } else { z + b }
}

fn add_bias(bias: &[(u32, f32)], start: usize, z: &mut [f32]) {
    let first = bias.partition_point(|&(id, _)| (id as usize) < start);
    for &(id, b) in &bias[first..] {
        let Some(z) = z.get_mut(id as usize - start) else { break };
        *z = biased(*z, b);
    }
}

/// The numbers of a slice in `f32`, into one as long.
#[inline(always)]
pub(crate) fn widen<S: Simd, T: Lane>(s: S, from: &[T], to: &mut [f32]) {
    let (from, rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (from, to) in from.iter().zip(to) {
        s.store(to, T::load(s, from));
    }
    for (from, to) in rest.iter().zip(to_rest) {
        *to = from.widen();
    }
}

/// As [`widen`], of some elements of a row, whose memory is asked for as far ahead as that of others.
#[inline(always)]
pub(crate) fn widen_any<S: Simd>(s: S, row: AnyRow<'_>, block: Range<usize>, to: &mut [f32]) {
    #[inline(always)]
    fn ahead_and_widen<S: Simd, T: Lane>(s: S, x: &[T], to: &mut [f32]) {
        prefetch_ahead(s, x);
        widen(s, x, to);
    }
    match row {
        AnyRow::F32(x) => ahead_and_widen(s, &x[block], to),
        AnyRow::Bf16(x) => ahead_and_widen(s, &x[block], to),
        AnyRow::F16(x) => ahead_and_widen(s, &x[block], to),
    }
}

/// Asks for memory as far ahead of a block as the sums of plain rows do, of which a copy is summed.
#[inline(always)]
pub(super) fn prefetch_ahead<S: Simd, T: Lane>(s: S, block: &[T]) {
    for line in block.chunks(LANES * T::PER_LINE) {
        s.prefetch(line.as_ptr().wrapping_byte_add(PREFETCH));
    }
}

/// As [`stage`], of some elements of a row of any type, from the first of them on.
#[inline(always)]
pub(crate) fn stage_any<S: Simd>(
    s: S,
    transform: &Transform<'_>,
    row: AnyRow<'_>,
    block: Range<usize>,
    z: &mut [f32],
) {
    let start = block.start;
    let z = &mut z[..block.len()];
    widen_any(s, row, block, z);
    stage_in_place(s, transform, start, z, None);
}

/// The numbers of a slice rounded into one as long, or their sums with what is there.
#[inline(always)]
pub(crate) fn narrow<S: Simd, T: Lane>(s: S, from: &[f32], to: &mut [T], add: bool) {
    let (from, rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    if add {
        for (from, to) in from.iter().zip(to) {
            let sum = s.add(T::load(s, to), s.load(from));
            T::store(s, to, sum);
        }
    } else {
        for (from, to) in from.iter().zip(to) {
            T::store(s, to, s.load(from));
        }
    }
    for (&from, to) in rest.iter().zip(to_rest) {
        // Not the sum with 0, which has no sign.
        *to = T::round(f64::from(if add { to.widen() + from } else { from }));
    }
}

/// `z` and the derivative of the softcap for one logit: the same bits as in a block.
#[inline(always)]
pub(crate) fn stage_one<S: Simd, T: Lane>(
    s: S,
    transform: &Transform<'_>,
    class: usize,
    x: T,
) -> (f32, f32) {
    let (mut z, mut slope) = ([0.0], [1.0]);
    stage(s, transform, class, &[x], &mut z, Some(&mut slope));
    (z[0], slope[0])
}

struct Multiply<S: Simd>(S::V);

impl<S: Simd> Map<S> for Multiply<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        s.mul(x, self.0)
    }
}

struct Subtract<S: Simd>(S::V);

impl<S: Simd> Map<S> for Subtract<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        s.sub(x, self.0)
    }
}

struct Divide<S: Simd>(S::V);

impl<S: Simd> Map<S> for Divide<S> {
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        s.div(x, self.0)
    }
}

struct Cap<S: Simd> {
    cap: S::V,
    /// `2 / cap`
    rate: S::V,
    scale: Scale<S>,
    keep_infinite: bool,
}

impl<S: Simd> Cap<S> {
    #[inline(always)]
    fn new(s: S, Softcap { cap, keep_infinite }: Softcap) -> Self {
        Cap {
            cap: s.splat(cap as f32),
            rate: s.splat((2.0 / cap) as f32),
            scale: Scale::new(s, 0.0, 127.0),
            keep_infinite,
        }
    }

    /// `e^(-2 |x| / cap)` as a power of two and a correction.
    #[inline(always)]
    fn exp(&self, s: S, x: S::V) -> (S::V, S::V) {
        let parts = self.scale.split::<true>(s, s.mul(s.neg_abs(x), self.rate));
        (parts.s, parts.q)
    }
}

impl<S: Simd> Map<S> for Cap<S> {
    /// With `e = e^(-2|x|/c) = p + p q`, `tanh(|x|/c) = (1 - e) / (1 + e)`. The difference is taken of
    /// the parts: for small `x`, where `p` is 1, it is `-q`, which has all its digits.
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        let one = s.splat(1.0);
        let (p, q) = self.exp(s, x);
        let above = s.neg_mul_add(p, q, s.sub(one, p));
        let below = s.mul_add(p, q, s.add(one, p));
        let capped = s.copy_sign(s.mul(self.cap, s.div(above, below)), x);
        if self.keep_infinite { s.where_finite(x, capped) } else { capped }
    }
}

struct Slope<'a, S: Simd>(&'a Cap<S>);

impl<S: Simd> Map<S> for Slope<'_, S> {
    /// `1 - tanh^2 = 4 e / (1 + e)^2`, from what is small where the derivative is.
    #[inline(always)]
    fn map(&self, s: S, x: S::V) -> S::V {
        let one = s.splat(1.0);
        let (p, q) = self.0.exp(s, x);
        let e = s.mul_add(p, q, p);
        let below = s.add(one, e);
        s.div(s.div(s.mul(s.splat(4.0), e), below), below)
    }
}

/// [`widen`], as benches call it.
pub(crate) struct Widen<'a, T>(pub(crate) &'a [T], pub(crate) &'a mut [f32]);

impl<T: Lane> Op for Widen<'_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        widen(s, self.0, self.1);
    }
}

/// [`narrow`], as benches call it.
pub(crate) struct Narrow<'a, T>(pub(crate) &'a [f32], pub(crate) &'a mut [T]);

impl<T: Lane> Op for Narrow<'_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        narrow(s, self.0, self.1, false);
    }
}
