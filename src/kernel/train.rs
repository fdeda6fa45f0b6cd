//! Loss and gradient of a group of rows, with every option: what `forward` does for the plain loss.
//!
//! What a row needs from its element type is in [`RowKernel`]; the formulas are here, in `f64`, once for
//! all types.

use super::blocks::CHUNK;
use super::expsum::{ExpSum, Lse};
use super::loss_stats::LossStats;
use super::outputs::RowSlices;
use super::pass::{
    Config, GradientRows, Minus, Pass, Place, RowKernel, Store, Trained, UpstreamRows, Weights,
};
use super::probs::Probs;
use super::transform::Transform;
use crate::data::floats::Floats;
use crate::data::logits::Logits;
use crate::data::masks::{Allowed, AllowedRows};
use crate::data::number::Number;
use crate::data::saved::LogSumExp;
use crate::data::targets::{AnyTargets, RowTarget};
use crate::math;
use crate::simd::Op;
use crate::simd::Simd;

/// A group of rows, where they come from and where their results go.
pub(crate) struct Job<'a, T: Number> {
    pub(crate) config: &'a Config<'a, T::Float>,
    /// `None`: the logits are where the gradient goes.
    pub(crate) logits: Option<Logits<'a, T>>,
    pub(crate) targets: AnyTargets<'a, T::Float>,
    pub(crate) token_weights: Option<Floats<'a>>,
    pub(crate) allowed: Option<AllowedRows<'a>>,
    /// Of an earlier pass, whose losses are not wanted again.
    pub(crate) saved: Option<&'a [LogSumExp<T::Float>]>,
    pub(crate) out: RowSlices<'a, T::Float>,
    pub(crate) gradient: Option<GradientRows<'a, T>>,
}

impl<T: RowKernel> Op for &mut Job<'_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run(s, self);
    }
}

#[inline(always)]
fn run<S: Simd, T: RowKernel>(s: S, job: &mut Job<'_, T>) {
    let (rows, stride) = match (&job.logits, &job.gradient) {
        (Some(logits), _) => (logits.rows(), logits.stride()),
        (None, Some(gradient)) => (gradient.to.rows(), gradient.to.stride()),
        (None, None) => (0, 0),
    };
    for i in 0..rows {
        let target = job.targets.get(i);
        let mut gradient = job.gradient.as_mut().map(|gradient| RowGradient {
            to: gradient.to.row_mut(i),
            upstream: match gradient.upstream {
                UpstreamRows::All(upstream) => upstream,
                UpstreamRows::Each(each) => each.get(i),
            },
            store: gradient.store,
        });
        if let RowTarget::Ignored = target {
            // An ignored row is never read: it may hold anything.
            job.out.write_ignored(i);
            if let Some(gradient) = gradient {
                gradient.zero();
            }
            continue;
        }
        let row = OneRow {
            config: job.config,
            transform: Transform {
                allowed: job.allowed.map(|allowed| allowed.row(i)),
                ..job.config.transform
            },
            x: job.logits.map(|logits| logits.row(i)),
            target,
            first_class: job.config.first_class,
            is_shard: job.out.stats.is_some(),
            token_weight: job.token_weights.map_or(1.0, |weights| weights.get(i)),
            saved: job.saved.map(|saved| T::lse(&saved[i])),
            stride,
        };
        // What is to be merged with other shards goes chunk by chunk, as their sums are merged exactly.
        let (mut start, len, step) = match &mut job.out.stats {
            Some(stats) => {
                stats[i] = LossStats::empty(S::FUSED);
                (0, row.x.map_or(0, <[T]>::len), CHUNK)
            }
            None => (0, 0, usize::MAX),
        };
        loop {
            let part = row.part(start, step);
            let trained = part.run(s, gradient.take());
            if let Some(stats) = &mut job.out.stats {
                let first = part.first_class;
                let classes = first..first + part.x.map_or(0, <[T]>::len);
                let smoothed = job.config.smoothing != 0.0;
                stats[i].add_part(classes, part.is_target_here(), &trained.pass, smoothed);
            } else if job.saved.is_none() {
                let saved = T::saved(trained.lse);
                job.out.write_trained(i, trained, saved);
            }
            start = start.saturating_add(step);
            if start >= len {
                break;
            }
        }
    }
}

/// The gradient of one row: where it goes, and the upstream gradient of its loss.
struct RowGradient<'a, T> {
    to: &'a mut [T],
    upstream: f64,
    store: Store,
}

impl<T: Number> RowGradient<'_, T> {
    /// Writes, or adds, that nothing depends on the logits of the row.
    #[inline(always)]
    fn zero(self) {
        if self.store != Store::Add {
            self.to.fill(T::default());
        }
    }
}

/// One row that is not ignored.
struct OneRow<'a, T: Number> {
    config: &'a Config<'a, T::Float>,
    transform: Transform<'a>,
    /// `None`: the logits are where the gradient goes.
    x: Option<&'a [T]>,
    target: RowTarget<'a, T::Float>,
    /// Where in the vocabulary its first class is: the target may be another's.
    first_class: usize,
    /// Whether its sums are to be merged with others.
    is_shard: bool,
    token_weight: f64,
    saved: Option<Lse>,
    /// From an element to the same one of the next row.
    stride: usize,
}

/// How far ahead logits are asked for where the gradient is all there is to compute, in elements.
const AHEAD: usize = 2048;

/// What the gradient of a row is made of: `a p - minus`, and at the target class a value of its own.
struct Terms<'a, R> {
    a: f64,
    minus: Minus<'a, R>,
    at_target: Option<(usize, f64)>,
}

impl<T: Number> OneRow<'_, T> {
    /// `len` classes from `start` on, a multiple of 32 as masks have words of as many.
    #[inline(always)]
    fn part(&self, start: usize, len: usize) -> OneRow<'_, T> {
        let allowed = self.transform.allowed.map(|Allowed(words)| Allowed(&words[start / 32..]));
        OneRow {
            x: self.x.map(|x| &x[start..x.len().min(start.saturating_add(len))]),
            transform: Transform { allowed, ..self.transform },
            first_class: self.first_class + start,
            ..*self
        }
    }

    /// Where a target is among these classes, or beyond their end if it is not.
    #[inline(always)]
    fn class(&self, target: usize) -> usize {
        target.wrapping_sub(self.first_class)
    }

    /// What logits are to be counted from where a low temperature has made infinities of them: the largest, of which
    /// the others are then far enough away to have no probability.
    #[inline(always)]
    fn origin<S: Simd>(&self, s: S, x: &[T], transform: &Transform<'_>, pass: &Pass) -> Option<f64>
    where
        T: RowKernel,
    {
        let is_lost = pass.nll.is_nan() && transform.temperature < 1.0;
        if !is_lost || transform.origin != 0.0 || self.is_shard {
            return None;
        }
        let largest = T::argmax(s, x, transform.allowed);
        let before = Transform { temperature: 1.0, ..*transform };
        let (z, _) = T::transform(s, &before, largest, *x.get(largest)?);
        Some(z).filter(|z| z.is_finite() && *z != 0.0)
    }

    #[inline(always)]
    fn is_target_here(&self) -> bool {
        let len = self.x.map_or(0, <[T]>::len);
        matches!(self.target, RowTarget::Class(target) if self.class(target) < len)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, mut gradient: Option<RowGradient<'_, T>>) -> Trained
    where
        T: RowKernel,
    {
        let Config { smoothing, weights, .. } = *self.config;
        let mut transform = self.transform;
        let x = match (self.x, &gradient) {
            (Some(x), _) => x,
            (None, Some(gradient)) => &*gradient.to,
            (None, None) => &[],
        };
        let probs = match self.target {
            RowTarget::Probs(given) => Some(Probs { given, smoothing, weights, vocab: x.len() }),
            _ => None,
        };
        let is_class = probs.is_none();
        // In a pass of its own a gradient knows the sum: any class will do.
        let sums_probs = !is_class && self.saved.is_none();
        let largest =
            if self.config.argmax || sums_probs { T::argmax(s, x, transform.allowed) } else { 0 };
        // A distribution that the model is sure of keeps the digits of its loss if the largest class is
        // left out of the sum. Transforms are monotone: they do not change which it is.
        let class = match self.target {
            RowTarget::Class(target) => self.class(target),
            _ => largest,
        };
        let smoothed = (smoothing != 0.0 && is_class).then_some(Weights(weights));
        let mut pass = match self.saved {
            None => {
                let mut pass;
                // Once, or twice for a row that a low temperature takes out of range: a loop, as a pass is inlined.
                loop {
                    pass = T::pass(s, x, class, &transform, smoothed);
                    match self.origin(s, x, &transform, &pass) {
                        Some(origin) => transform.origin = origin,
                        None => break,
                    }
                }
                pass
            }
            Some(lse) => {
                // Without the target among the classes there is nothing to subtract from its probability.
                let (z, slope) = match x.get(class) {
                    Some(&x) => T::transform(s, &transform, class, x),
                    None => (f64::NAN, 0.0),
                };
                let nll = (lse.hi - z) + lse.lo;
                Pass { nll, lse, sum: ExpSum::EMPTY, z, slope, differences: 0.0 }
            }
        };
        let (lse, transform) = (pass.lse, &transform);
        if transform.origin != 0.0 {
            pass.lse.hi += transform.origin / transform.temperature;
        }
        let (loss, nll, weight, terms);
        if let Some(probs) = &probs {
            let total;
            (total, loss) = if pass.nll.is_nan() {
                (f64::NAN, f64::NAN)
            } else if self.saved.is_some() {
                T::expected(s, x, transform, probs, lse)
            } else {
                T::expected(s, x, transform, probs, Lse { hi: pass.z, lo: pass.nll })
            };
            (nll, weight) = (loss, 1.0);
            terms = gradient.as_ref().map(|gradient| {
                let (up, rest) = self.factors(gradient.upstream, pass.lse);
                Terms { a: up * total + rest, minus: Minus::Probs(up, probs), at_target: None }
            });
        } else {
            weight = weights.map_or(1.0, |weights| weights[class].into());
            nll = pass.nll;
            loss = self.config.class_loss(weight, &pass);
            terms = gradient
                .as_ref()
                .map(|gradient| self.class_terms(class, weight, &pass, gradient.upstream));
        }
        let mut best = largest;
        if self.config.argmax
            && (nll.is_nan() || T::is_nan(x[largest]))
            && let Some(nan) = T::first_nan(s, x, transform.allowed)
        {
            best = nan;
        }
        let to_be = || probs.as_ref().map_or(Some(class), Probs::most_probable);
        if let Some(gradient) = gradient.take_if(|gradient| gradient.upstream == 0.0) {
            // Also where a factor of the gradient is NaN.
            gradient.zero();
        } else if let Some((terms, RowGradient { to, store, .. })) = terms.zip(gradient) {
            let len = to.len();
            let at_target =
                terms.at_target.filter(|&(class, _)| class < len && lse.value().is_finite());
            let old = at_target.filter(|_| store == Store::Add).map(|(class, _)| to[class]);
            // While gradients are computed from the cache, memory has time for the next row.
            let ahead = if self.saved.is_some() { AHEAD } else { self.stride };
            let place = Place { x: self.x, to: &mut *to, store, ahead };
            T::gradient(s, place, transform, (terms.a, lse), &terms.minus);
            if let Some((class, g)) = at_target {
                to[class] = T::rounded(g, old);
            }
        }
        let at_argmax = self.config.argmax && to_be() == Some(best);
        Trained {
            row: self.config.row(loss, nll, weight, &pass.lse, self.token_weight, at_argmax),
            lse: pass.lse,
            argmax: best as i64,
            pass,
        }
    }

    /// What the gradient of the cross-entropy is multiplied by, and the part of the factor of `p` that the
    /// z-loss adds.
    #[inline(always)]
    fn factors(&self, upstream: f64, lse: Lse) -> (f64, f64) {
        let up = upstream * self.token_weight * self.config.transform.slope();
        let (denominator, z_denominator) = self.config.denominators;
        let z = match self.config.z_loss {
            0.0 => 0.0,
            factor => up / z_denominator * 2.0 * factor * lse.value(),
        };
        (up / denominator, z)
    }

    #[inline(always)]
    fn class_terms<'a>(
        &'a self,
        class: usize,
        weight: f64,
        pass: &Pass,
        upstream: f64,
    ) -> Terms<'a, T::Float> {
        let Config { smoothing: e, weights, weight_sum, .. } = *self.config;
        let (up, mut rest) = self.factors(upstream, pass.lse);
        let target = up * (1.0 - e) * weight;
        // The one-hot term is folded before anything is rounded, and from the loss: the 1 - p of a
        // confident target has no digits left in p.
        let mut at_target = -target * math::one_minus_exp_neg(pass.nll);
        let mut each = 0.0;
        if e != 0.0 {
            each = up * e / self.config.vocab as f64;
            rest += each * weight_sum;
            at_target -= each * weight;
        }
        if rest != 0.0 {
            at_target += rest * math::exp(-pass.nll);
        }
        let minus = match weights {
            _ if e == 0.0 => Minus::Nothing,
            None => Minus::Constant(each),
            Some(weights) => Minus::Weights(each, weights),
        };
        let at_target = Some((class, at_target * pass.slope));
        Terms { a: target + rest, minus, at_target }
    }
}
