//! The passes over a row of `f32`, or of `bf16` or `f16`: these are computed in `f32`, with the bits that a row of
//! `f32` with the same numbers has.

use super::blocks::{BLOCK, ranges};
use super::expsum::Lse;
use super::gradient;
use super::pass::{Minus, Pass, Place, RowKernel, Weights};
use super::probs::{Expected, Probs};
use super::sum::{self, Differences};
use super::transform::{Staged, Transform, stage_any, stage_one};
use crate::data::masks::Allowed;
use crate::data::number::Number;
use crate::data::saved::LogSumExp;
use crate::simd::{AnyRow, Lane, Op, Simd};

/// A type that is computed in `f32`.
pub(crate) trait Single: Lane + Number<Float = f32> {}

impl<T: Lane + Number<Float = f32>> Single for T {}

impl<T: Single> RowKernel for T {
    #[inline(always)]
    fn pass<S: Simd>(
        s: S,
        x: &[T],
        class: usize,
        transform: &Transform<'_>,
        smoothing: Option<Weights<'_, f32>>,
    ) -> Pass {
        s.outlined(OnePass { x: T::any(x), class, transform, smoothing })
    }

    #[inline(always)]
    fn transform<S: Simd>(s: S, transform: &Transform<'_>, class: usize, x: T) -> (f64, f64) {
        let (z, slope) = stage_one(s, transform, class, x);
        (f64::from(z), f64::from(slope))
    }

    #[inline(always)]
    fn expected<S: Simd>(
        s: S,
        x: &[T],
        transform: &Transform<'_>,
        probs: &Probs<'_, f32>,
        lse: Lse,
    ) -> (f64, f64) {
        s.outlined(Expected { x: T::any(x), transform, probs, lse })
    }

    #[inline(always)]
    fn gradient<S: Simd>(
        s: S,
        place: Place<'_, T>,
        transform: &Transform<'_>,
        scaled: (f64, Lse),
        minus: &Minus<'_, f32>,
    ) {
        gradient::row(s, place, transform, scaled, minus);
    }

    #[inline(always)]
    fn argmax<S: Simd>(s: S, x: &[T], allowed: Option<Allowed<'_>>) -> usize {
        sum::argmax_ignoring_nan(s, x, allowed)
    }

    #[inline(always)]
    fn is_nan(x: T) -> bool {
        x.widen().is_nan()
    }

    #[inline(always)]
    fn first_nan<S: Simd>(s: S, x: &[T], allowed: Option<Allowed<'_>>) -> Option<usize> {
        let Some(allowed) = allowed else { return sum::first_nan(s, x) };
        let mut from = 0;
        while let Some(nan) = sum::first_nan(s, &x[from..]) {
            if allowed.contains(from + nan) {
                return Some(from + nan);
            }
            from += nan + 1;
        }
        None
    }

    #[inline(always)]
    fn rounded(g: f64, old: Option<T>) -> T {
        T::round(old.map_or(0.0, |old| f64::from(old.widen())) + g)
    }

    #[inline(always)]
    fn lse(stats: &LogSumExp<f32>) -> Lse {
        Lse { hi: f64::from(stats.hi), lo: f64::from(stats.lo) }
    }

    #[inline(always)]
    fn saved(lse: Lse) -> LogSumExp<f32> {
        lse.saved()
    }
}

/// The pass over a row of any of the types.
struct OnePass<'a> {
    x: AnyRow<'a>,
    class: usize,
    transform: &'a Transform<'a>,
    smoothing: Option<Weights<'a, f32>>,
}

impl Op for OnePass<'_> {
    type Out = Pass;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> Pass {
        let OnePass { x, class, transform, smoothing } = self;
        let skip = Some(class).filter(|&class| class < x.len());
        let one = skip.map(|class| stage_one(s, transform, class, x.get(class)));
        let (z, slope) = one.unwrap_or((0.0, 0.0));
        let from = one.map(|(z, _)| z);
        let differences = smoothing.map(|Weights(weights)| Differences::<S>::new(s, from, weights));
        let (sum, mut differences) = sum::sum_of(s, x, skip, transform, differences);
        let nll = sum.loss(S::FUSED, z);
        if let Some(Weights(weights)) = smoothing
            && !differences.is_finite()
            && z.is_finite()
            && !sum.is_poisoned()
        {
            differences = s.outlined(FarApart { x, from: z, transform, weights });
        }
        Pass {
            nll,
            lse: sum.lse_with(S::FUSED, z, nll),
            sum,
            z: f64::from(z),
            slope: f64::from(slope),
            differences,
        }
    }
}

/// `sum(w (z - from))` in `f64`, for logits that are too far apart for [`Differences`]; infinite for a mask.
struct FarApart<'a> {
    x: AnyRow<'a>,
    from: f32,
    transform: &'a Transform<'a>,
    weights: Option<&'a [f32]>,
}

impl Op for FarApart<'_> {
    type Out = f64;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> f64 {
        let FarApart { x, from, transform, weights } = self;
        let mut staged = Staged([0.0; BLOCK]);
        let mut sum = 0.0;
        for block in ranges(0..x.len(), BLOCK) {
            let start = block.start;
            let z = &mut staged.0[..block.len()];
            stage_any(s, transform, x, block, z);
            for (j, &z) in z.iter().enumerate() {
                let weight = weights.map_or(1.0, |weights| f64::from(weights[start + j]));
                sum += weight * (f64::from(z) - f64::from(from));
            }
        }
        sum
    }
}
