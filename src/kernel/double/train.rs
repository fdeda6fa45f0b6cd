//! The passes over a row of `f64`.

use super::grad::{ScaledExp, Subtract, scaled_exp};
use super::scan::{self, SumFrom};
use super::sum;
use crate::data::masks::Allowed;
use crate::data::saved::LogSumExp;
use crate::kernel::blocks::{BLOCK, ranges};
use crate::kernel::expsum::{ExpSum, Lse};
use crate::kernel::gradient::Destination;
use crate::kernel::pass::{Minus, Pass, Place, RowKernel, Weights};
use crate::kernel::probs::{Probs, StageProbs};
use crate::kernel::transform::{Staged, Transform};
use crate::simd::Simd;

impl RowKernel for f64 {
    #[inline(always)]
    fn pass<S: Simd>(
        s: S,
        x: &[f64],
        class: usize,
        transform: &Transform<'_>,
        smoothing: Option<Weights<'_, f64>>,
    ) -> Pass {
        let (z, slope) = x.get(class).map_or((f64::NAN, 0.0), |&x| transform.one(class, x));
        let skip = Some(class).filter(|&class| class < x.len());
        let sum = sum::transformed_row(s, x, skip, transform);
        let mut differences = 0.0;
        if let Some(Weights(weights)) = smoothing {
            let mut staged = Staged([0.0; BLOCK]);
            for block in ranges(0..x.len(), BLOCK) {
                let part = &mut staged.0[..block.len()];
                part.copy_from_slice(&x[block.clone()]);
                if !transform.is_identity() {
                    transform.apply(block.start, part);
                }
                let weights = weights.map(|weights| &weights[block]);
                differences += s.outlined(SumFrom { x: part, weights, from: z });
            }
        }
        let (nll, _) = sum.loss_parts(s, z);
        let (hi, lo) = sum.lse_with(s, z);
        Pass { nll, lse: Lse { hi, lo }, sum: ExpSum::EMPTY, z, slope, differences }
    }

    #[inline(always)]
    fn transform<S: Simd>(_: S, transform: &Transform<'_>, class: usize, x: f64) -> (f64, f64) {
        transform.one(class, x)
    }

    #[inline(always)]
    fn expected<S: Simd>(
        s: S,
        x: &[f64],
        transform: &Transform<'_>,
        probs: &Probs<'_, f64>,
        lse: Lse,
    ) -> (f64, f64) {
        let (mut total, mut below) = (0.0, 0.0);
        let (mut z, mut v) = (Staged([0.0; BLOCK]), Staged([0.0; BLOCK]));
        for block in ranges(0..x.len(), BLOCK) {
            let (z, v) = (&mut z.0[..block.len()], &mut v.0[..block.len()]);
            z.copy_from_slice(&x[block.clone()]);
            if !transform.is_identity() {
                transform.apply(block.start, z);
            }
            s.outlined(StageProbs { probs, block, v: &mut *v });
            for (z, &v) in z.iter_mut().zip(&*v) {
                // 0 times infinity is to be 0.
                *z = if v == 0.0 { lse.hi } else { *z };
            }
            total += s.outlined(SumFrom { x: v, weights: None, from: 0.0 });
            below += s.outlined(SumFrom { x: z, weights: Some(v), from: lse.hi });
        }
        (total, lse.lo * total - below)
    }

    #[inline(always)]
    fn gradient<S: Simd>(
        s: S,
        Place { x, to: g, store, .. }: Place<'_, f64>,
        transform: &Transform<'_>,
        (a, lse): (f64, Lse),
        minus: &Minus<'_, f64>,
    ) {
        if !lse.value().is_finite() || a.is_nan() {
            g.fill(f64::NAN);
            return;
        }
        // All in one where nothing needs to be staged.
        let plain = transform.is_identity() && !matches!(minus, Minus::Probs(..));
        let (mut z, mut slope) = (Staged([0.0; BLOCK]), Staged([0.0; BLOCK]));
        let mut v = Staged([0.0; BLOCK]);
        let len = g.len();
        let mut to = Destination::new(s, store, x.is_none(), g);
        for block in ranges(0..len, if plain { len.max(1) } else { BLOCK }) {
            let to = to.next(block.len());
            let from = match x {
                _ if !plain => {
                    let z = &mut z.0[..block.len()];
                    z.copy_from_slice(x.map_or(to.old(), |x| &x[block.clone()]));
                    for (i, (z, slope)) in z.iter_mut().zip(&mut slope.0).enumerate() {
                        (*z, *slope) = transform.one(block.start + i, *z);
                    }
                    Some(&*z)
                }
                Some(x) => Some(&x[block.clone()]),
                None => None,
            };
            let subtract = match *minus {
                Minus::Nothing => Subtract::Nothing,
                Minus::Constant(b) => Subtract::Constant(b),
                Minus::Weights(b, weights) => Subtract::Times(b, &weights[block.clone()]),
                Minus::Probs(b, probs) => {
                    let v = &mut v.0[..block.len()];
                    s.outlined(StageProbs { probs, block: block.clone(), v: &mut *v });
                    Subtract::Times(b, v)
                }
            };
            let softcap = transform.softcap.is_some();
            // Only if it is needed: a plain row is one block, longer than this.
            let slope = softcap.then(|| &slope.0[..block.len()]);
            let terms = ScaledExp { a, lse: (lse.hi, lse.lo), subtract, slope };
            scaled_exp(s, &terms, from, to, 1.0);
        }
    }

    #[inline(always)]
    fn argmax<S: Simd>(s: S, x: &[f64], allowed: Option<Allowed<'_>>) -> usize {
        match allowed {
            None => scan::argmax(s, x),
            Some(allowed) => scan::masked_argmax(x, allowed),
        }
    }

    #[inline(always)]
    fn is_nan(x: f64) -> bool {
        x.is_nan()
    }

    #[inline(always)]
    fn rounded(g: f64, old: Option<f64>) -> f64 {
        old.unwrap_or(0.0) + g
    }

    #[inline(always)]
    fn lse(stats: &LogSumExp<f64>) -> Lse {
        Lse { hi: stats.hi, lo: stats.lo }
    }

    #[inline(always)]
    fn saved(lse: Lse) -> LogSumExp<f64> {
        LogSumExp { hi: lse.hi, lo: lse.lo }
    }
}
