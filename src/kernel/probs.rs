//! Probability targets of a row.

use super::blocks::{BLOCK, Step, as_steps, padded, ranges};
use super::expsum::Lse;
use super::transform::{Staged, Transform, stage_any};
use crate::data::number::Float;
use crate::data::targets::Given;
use crate::simd::{AnyRow, Lanes, Op, Simd};
use std::ops::Range;

/// The probabilities of one row, with what becomes of them: `v[j] = w[j] ((1 - e) t[j] + e / V)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probs<'a, R> {
    pub(crate) given: Given<'a, R>,
    pub(crate) smoothing: f64,
    pub(crate) weights: Option<&'a [R]>,
    pub(crate) vocab: usize,
}

impl<'a, R: Float> Probs<'a, R> {
    /// The given probabilities, if they are all there is to it.
    #[inline(always)]
    pub(crate) fn as_they_are(&self) -> Option<&'a [R]> {
        match self.given {
            Given::Dense(t) if self.smoothing == 0.0 && self.weights.is_none() => Some(t),
            _ => None,
        }
    }

    /// `v` of a block of classes.
    #[inline(always)]
    pub(crate) fn stage(&self, block: Range<usize>, v: &mut [R]) {
        match self.given {
            Given::Dense(t) => v.copy_from_slice(&t[block.clone()]),
            Given::Sparse { ids, probs, ignored } => {
                v.fill(R::default());
                for (i, &p) in probs.iter().enumerate() {
                    let id = ids.get(i);
                    // What is ignored is not a class of the block, or is to be left out.
                    if !ignored.contains(id)
                        && let Ok(class) = usize::try_from(id)
                        && block.contains(&class)
                    {
                        let v = &mut v[class - block.start];
                        *v = R::from_f64((*v).into() + p.into());
                    }
                }
            }
        }
        // Rounded once, whatever there is of them: without smoothing `v * 1 + 0` is exact.
        let (keep, uniform) = (1.0 - self.smoothing, self.smoothing / self.vocab as f64);
        match self.weights {
            Some(weights) => {
                for (v, &w) in v.iter_mut().zip(&weights[block]) {
                    *v = R::from_f64(((*v).into() * keep + uniform) * w.into());
                }
            }
            None if self.smoothing != 0.0 => {
                for v in v.iter_mut() {
                    *v = R::from_f64((*v).into() * keep + uniform);
                }
            }
            None => {}
        }
    }

    /// The class with the largest given probability, the first of several; the target to be correct
    /// about. `None` for no classes.
    pub(crate) fn most_probable(&self) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        let mut see = |class: usize, p: f64| {
            let better = |(at, top): (usize, f64)| p > top || p == top && class < at;
            if best.is_none_or(better) {
                best = Some((class, p));
            }
        };
        match self.given {
            Given::Dense(t) => t.iter().enumerate().for_each(|(j, &p)| see(j, p.into())),
            Given::Sparse { ids, probs, ignored } => {
                for i in 0..probs.len() {
                    let id = ids.get(i);
                    if !ignored.contains(id) {
                        // An id that stands twice has both probabilities.
                        let same = (0..probs.len()).filter(|&j| ids.get(j) == id);
                        let p = same.map(|j| probs[j].into()).sum();
                        see(usize::try_from(id).unwrap_or(usize::MAX), p);
                    }
                }
            }
        }
        best.map(|(class, _)| class)
    }
}

/// The `v` of a block of classes: [`Probs::stage`], which is long.
pub(crate) struct StageProbs<'a, R> {
    pub(crate) probs: &'a Probs<'a, R>,
    pub(crate) block: Range<usize>,
    pub(crate) v: &'a mut [R],
}

impl<R: Float> Op for StageProbs<'_, R> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, _: S) {
        self.probs.stage(self.block, self.v);
    }
}

/// `sum(v)` and `sum(v (lse - z))`, where a `v` of 0 counts as 0 whatever its `z` is.
pub(crate) struct Expected<'a> {
    pub(crate) x: AnyRow<'a>,
    pub(crate) transform: &'a Transform<'a>,
    pub(crate) probs: &'a Probs<'a, f32>,
    pub(crate) lse: Lse,
}

impl Op for Expected<'_> {
    type Out = (f64, f64);

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> (f64, f64) {
        let Expected { x, transform, probs, lse } = self;
        let mut sums = Sums::<S> {
            hi: s.splat(lse.hi as f32),
            lo: s.splat(lse.lo as f32),
            total: s.wide_zero(),
            loss: s.wide_zero(),
        };
        let (mut z, mut v) = (Staged([0.0; BLOCK]), Staged([0.0; BLOCK]));
        for block in ranges(0..x.len(), BLOCK) {
            let len = block.len();
            let z = match x {
                AnyRow::F32(x) if transform.is_identity() => &x[block.clone()],
                _ => {
                    stage_any(s, transform, x, block.clone(), &mut z.0);
                    &z.0[..len]
                }
            };
            let v = match probs.as_they_are() {
                Some(v) => &v[block],
                None => {
                    s.outlined(StageProbs { probs, block, v: &mut v.0[..len] });
                    &v.0[..len]
                }
            };
            sums.add_block(s, z, v);
        }
        (s.wide_sum(sums.total), s.wide_sum(sums.loss))
    }
}

struct Sums<S: Simd> {
    hi: S::V,
    lo: S::V,
    total: S::Wide,
    loss: S::Wide,
}

impl<S: Simd> Sums<S> {
    #[inline(always)]
    fn add_block(&mut self, s: S, z: &[f32], v: &[f32]) {
        let (steps, rest) = as_steps(z);
        let (probs, probs_rest) = as_steps(v);
        for (z, v) in steps.iter().zip(probs) {
            self.add_step(s, z, v);
        }
        if !rest.is_empty() {
            self.add_step(s, &padded(rest, 0.0), &padded(probs_rest, 0.0));
        }
    }

    /// `v` and `v (lse - z)`
    #[inline(always)]
    fn term(&self, s: S, z: &Lanes, v: &Lanes) -> (S::V, S::V) {
        let v = s.load(v);
        // Two steps: `lse` in one `f32` would lose digits where it is large.
        (v, s.mul_nonzero(v, s.add(s.sub(self.hi, s.load(z)), self.lo)))
    }

    /// Widened after every step: what is off in `sum(v)` is off in every gradient of the row.
    #[inline(always)]
    fn add_step(&mut self, s: S, z: &Step, v: &Step) {
        let ((a, la), (b, lb)) = (self.term(s, &z[0], &v[0]), self.term(s, &z[1], &v[1]));
        let ((c, lc), (d, ld)) = (self.term(s, &z[2], &v[2]), self.term(s, &z[3], &v[3]));
        self.total = s.wide_add(self.total, s.add(s.add(a, b), s.add(c, d)));
        self.loss = s.wide_add(self.loss, s.add(s.add(la, lb), s.add(lc, ld)));
    }
}
