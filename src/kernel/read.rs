//! The limit that the benches compare with: reading a slice, as fast as this backend can.

use super::blocks::max_lane;
use crate::simd::Op;
use crate::simd::{LANES, Simd};

/// The largest element (NaN ignored), eight vectors at a time: one load and one maximum each.
#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (groups, vectors) = vectors.as_chunks::<8>();
    let mut max = [s.splat(f32::NEG_INFINITY); 8];
    for group in groups {
        for (max, lanes) in max.iter_mut().zip(group) {
            *max = s.max_or(s.load(lanes), *max);
        }
    }
    let mut all = f32::NEG_INFINITY;
    for max in max {
        all = all.max(max_lane(s.to_lanes(max)));
    }
    vectors.as_flattened().iter().chain(rest).fold(all, |all, &x| if x > all { x } else { all })
}

/// Every element times `factor`, in place: the limit of kernels that overwrite their input.
#[inline(always)]
pub(crate) fn rewrite<S: Simd>(s: S, values: &mut [f32], factor: f32) {
    let factor_v = s.splat(factor);
    let (vectors, rest) = values.as_chunks_mut::<LANES>();
    for lanes in vectors {
        let product = s.mul(s.load(lanes), factor_v);
        s.store(lanes, product);
    }
    for x in rest {
        *x *= factor;
    }
}

/// The largest element.
pub(crate) struct Read<'a>(pub(crate) &'a [f32]);

impl Op for Read<'_> {
    type Out = f32;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> f32 {
        run(s, self.0)
    }
}

/// Every element times a factor, in place.
pub(crate) struct Rewrite<'a>(pub(crate) &'a mut [f32], pub(crate) f32);

impl Op for Rewrite<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        rewrite(s, self.0, self.1);
    }
}
