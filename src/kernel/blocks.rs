//! How rows are cut: vectors, steps, blocks, chunks.

use crate::simd::{LANES, Lanes};
use std::ops::Range;

/// The unit of work: four vectors, 64 elements.
pub(crate) type Step<T = f32> = [[T; LANES]; 4];

pub(crate) const STEP: usize = 4 * LANES;

/// Elements that are processed between two looks at the reference.
pub(crate) const BLOCK: usize = 1024;

/// Elements with a reference of their own. Rows are the merge of their chunks, so a row that is cut
/// at multiples of this has the same parts as a whole one.
pub(crate) const CHUNK: usize = 32 * BLOCK;

/// A range cut into pieces of `len`, the last one shorter.
pub(crate) fn ranges(all: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    all.clone().step_by(len).map(move |start| start..(start + len).min(all.end))
}

/// Whole steps, and what is left.
#[inline(always)]
pub(crate) fn as_steps<T>(elements: &[T]) -> (&[Step<T>], &[T]) {
    let (vectors, _) = elements.as_chunks::<LANES>();
    let (steps, _) = vectors.as_chunks::<4>();
    (steps, &elements[steps.len() * STEP..])
}

/// Less than a step, filled up with `fill`.
#[inline(always)]
pub(crate) fn padded<T: Copy>(elements: &[T], fill: T) -> Step<T> {
    let mut step = [[fill; LANES]; 4];
    step.as_flattened_mut()[..elements.len()].copy_from_slice(elements);
    step
}

/// The largest of 16 numbers none of which is NaN.
#[inline(always)]
pub(crate) fn max_lane(mut lanes: Lanes) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
    }
    lanes[0]
}

/// How far ahead memory is asked for, in bytes: two pages. The loop keeps the arithmetic units so busy
/// that few loads of later steps get started by themselves.
pub(crate) const PREFETCH: usize = 8192;
