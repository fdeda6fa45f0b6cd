//! The passes over a row of `f32`, or of `bf16` or `f16`: these are computed in `f32`, with the bits that a row of
//! `f32` with the same numbers has.

use super::expsum::Lse;
use super::gradient;
use super::pass::{Minus, Pass, Place, RowKernel, Weights};
use super::probs::{self, Probs};
use super::sum::{self, Differences};
use super::transform::{Transform, stage_one};
use crate::data::masks::Allowed;
use crate::data::number::Number;
use crate::data::saved::LogSumExp;
use crate::simd::{Lane, Simd};

/// A type that is computed in `f32`.
pub(crate) trait Single: Lane + Number<Real = f32> {
    /// As [`RowKernel::gradient`]: what needs no conversion has loops of its own.
    fn gradient<S: Simd>(
        s: S,
        place: Place<'_, Self>,
        transform: &Transform<'_>,
        scaled: (f64, Lse),
        minus: &Minus<'_, f32>,
    );
}

macro_rules! singles {
    ($($type:ty: $gradient:path;)*) => {$(
        impl Single for $type {
            #[inline(always)]
            fn gradient<S: Simd>(
                s: S,
                place: Place<'_, Self>,
                transform: &Transform<'_>,
                scaled: (f64, Lse),
                minus: &Minus<'_, f32>,
            ) {
                $gradient(s, place, transform, scaled, minus);
            }
        }
    )*};
}
singles! {
    f32: gradient::row;
    half::bf16: gradient::converted_row;
    half::f16: gradient::converted_row;
}

impl<T: Single> RowKernel for T {
    #[inline(always)]
    fn pass<S: Simd>(
        s: S,
        x: &[T],
        class: usize,
        transform: &Transform<'_>,
        smoothing: Option<Weights<'_, f32>>,
    ) -> Pass {
        let skip = Some(class).filter(|&class| class < x.len());
        let one = skip.map(|class| stage_one(s, transform, class, x[class]));
        let (z, slope) = one.unwrap_or((0.0, 0.0));
        let from = one.map(|(z, _)| z);
        let mut extra = smoothing.map(|Weights(weights)| Differences::<S>::new(s, from, weights));
        let sum = match T::as_f32(x) {
            Some(x) if transform.is_identity() => {
                sum::row_and::<S, f32, { sum::PLAIN }>(s, x, skip, &mut extra).sum
            }
            _ => sum::transformed_row_and(s, x, skip, transform, &mut extra),
        };
        let nll = sum.loss(S::FUSED, z);
        let mut differences = extra.map_or(0.0, |extra| extra.sum(s));
        if let Some(Weights(weights)) = smoothing
            && !differences.is_finite()
            && z.is_finite()
            && !sum.is_poisoned()
        {
            differences = far_apart(s, x, z, transform, weights);
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
        probs::expected(s, x, transform, probs, lse)
    }

    #[inline(always)]
    fn gradient<S: Simd>(
        s: S,
        place: Place<'_, T>,
        transform: &Transform<'_>,
        scaled: (f64, Lse),
        minus: &Minus<'_, f32>,
    ) {
        <T as Single>::gradient(s, place, transform, scaled, minus);
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

/// `sum(w (z - from))` in `f64`, for logits that are too far apart for [`Differences`]; infinite for a mask.
#[inline(always)]
fn far_apart<S: Simd, T: Lane>(
    s: S,
    x: &[T],
    from: f32,
    transform: &Transform<'_>,
    weights: Option<&[f32]>,
) -> f64 {
    let mut sum = 0.0;
    for (j, &x) in x.iter().enumerate() {
        let (z, _) = stage_one(s, transform, j, x);
        let weight = weights.map_or(1.0, |weights| f64::from(weights[j]));
        sum += weight * (f64::from(z) - f64::from(from));
    }
    sum
}
