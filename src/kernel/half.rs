//! The passes over a row of `bf16` or `f16`: computed in `f32`, with the bits that a row of `f32` with the
//! same numbers has.

use super::gradient;
use super::probs::{self, Probs};
use super::single::far_apart;
use super::sum::{self, Differences, Lse};
use super::train::{Minus, Pass, Place, RowKernel, Weights};
use super::transform::{Allowed, Transform, stage_one};
use crate::Element;
use crate::simd::{Lane, Simd};
use crate::stats::RowStats;

/// A type that has to be converted.
pub(crate) trait Half: Lane + Element<Real = f32> {}

impl Half for half::bf16 {}
impl Half for half::f16 {}

impl<S: Simd, T: Half> RowKernel<S> for T {
    #[inline(always)]
    fn pass(
        s: S,
        x: &[T],
        class: usize,
        transform: &Transform<'_>,
        smoothing: Option<Weights<'_, f32>>,
    ) -> Pass {
        let (z, slope) =
            x.get(class).map_or((f32::NAN, 0.0), |&x| stage_one(s, transform, class, x));
        let mut extra = smoothing.map(|Weights(weights)| Differences::<S>::new(s, z, weights));
        let sum = sum::transformed_row_and(s, x, Some(class), transform, &mut extra);
        let nll = sum.loss::<S>(z);
        let mut differences = extra.map_or(0.0, |extra| extra.sum(s));
        if let Some(Weights(weights)) = smoothing
            && !differences.is_finite()
            && z.is_finite()
            && !nll.is_nan()
        {
            differences = far_apart(s, x, z, differences, transform, weights);
        }
        Pass {
            nll,
            lse: sum.lse_with::<S>(z, nll),
            z: f64::from(z),
            slope: f64::from(slope),
            differences,
        }
    }

    #[inline(always)]
    fn transform(s: S, transform: &Transform<'_>, class: usize, x: T) -> (f64, f64) {
        let (z, slope) = stage_one(s, transform, class, x);
        (f64::from(z), f64::from(slope))
    }

    #[inline(always)]
    fn expected(
        s: S,
        x: &[T],
        transform: &Transform<'_>,
        probs: &Probs<'_, f32>,
        lse: Lse,
    ) -> (f64, f64) {
        probs::expected(s, x, transform, probs, lse)
    }

    #[inline(always)]
    fn gradient(
        s: S,
        place: Place<'_, T>,
        transform: &Transform<'_>,
        scaled: (f64, Lse),
        minus: &Minus<'_, f32>,
    ) {
        gradient::converted_row(s, place, transform, scaled, minus);
    }

    #[inline(always)]
    fn argmax(s: S, x: &[T], allowed: Option<Allowed<'_>>) -> usize {
        sum::argmax_ignoring_nan(s, x, allowed)
    }

    #[inline(always)]
    fn is_nan(x: T) -> bool {
        x.widen().is_nan()
    }

    #[inline(always)]
    fn rounded(g: f64, old: Option<T>) -> T {
        T::round(old.map_or(0.0, |old| f64::from(old.widen())) + g)
    }

    #[inline(always)]
    fn lse(stats: &RowStats<f32>) -> Lse {
        <f32 as RowKernel<S>>::lse(stats)
    }

    #[inline(always)]
    fn stats(lse: Lse) -> RowStats<f32> {
        <f32 as RowKernel<S>>::stats(lse)
    }
}
