//! What a pass over a row takes and yields, whatever the element type: the words that loss, gradient and
//! shards have in common.

use super::expsum::{ExpSum, Lse};
use super::probs::Probs;
use super::row::Row;
use super::transform::Transform;
use crate::data::floats::Floats;
use crate::data::logits::LogitsMut;
use crate::data::masks::Allowed;
use crate::data::number::Number;
use crate::data::saved::LogSumExp;
use crate::simd::Simd;

/// The options, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config<'a, R> {
    /// Without the mask, which rows have of their own.
    pub(crate) transform: Transform<'static>,
    pub(crate) smoothing: f64,
    pub(crate) z_loss: f64,
    pub(crate) weights: Option<&'a [R]>,
    /// Sum of the class weights, their number if there are none.
    pub(crate) weight_sum: f64,
    /// Of the whole vocabulary, and where in it class 0 of the logits is.
    pub(crate) vocab: usize,
    pub(crate) first_class: usize,
    /// What gradients are divided by: that of the cross-entropy, and that of the z-loss.
    pub(crate) denominators: (f64, f64),
    pub(crate) argmax: bool,
}

impl<R> Config<'_, R> {
    /// The loss of a row whose target is a class with that weight, without z-loss and token weight.
    #[inline(always)]
    pub(crate) fn class_loss(&self, weight: f64, pass: &Pass) -> f64 {
        let loss = weight * pass.nll;
        let e = self.smoothing;
        if e == 0.0 {
            return loss;
        }
        // -sum(w ln p) over all classes. Without a finite logit to take differences from, the part of
        // the target is infinite.
        let all = if pass.z == f64::NEG_INFINITY {
            loss
        } else {
            self.weight_sum * pass.nll - pass.differences
        };
        (1.0 - e) * loss + e / self.vocab as f64 * all
    }

    /// What a row yields to a reduction.
    #[inline(always)]
    pub(crate) fn row(
        &self,
        loss: f64,
        nll: f64,
        weight: f64,
        lse: &Lse,
        token_weight: f64,
        at_argmax: bool,
    ) -> Row {
        let z_loss = match self.z_loss {
            0.0 => 0.0,
            factor => factor * lse.value() * lse.value(),
        };
        Row {
            loss: token_weight * loss,
            nll,
            z_loss: token_weight * z_loss,
            weight: token_weight * weight,
            token_weight,
            kept: true,
            at_argmax,
        }
    }
}

/// Where gradients go, and what they are multiplied by.
pub(crate) struct GradientRows<'a, T> {
    pub(crate) to: LogitsMut<'a, T>,
    pub(crate) upstream: UpstreamRows<'a>,
    pub(crate) store: Store,
}

/// The derivative of what is trained by the loss, or by each row's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum UpstreamRows<'a> {
    All(f64),
    Each(Floats<'a>),
}

impl<T> GradientRows<'_, T> {
    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        let GradientRows { to, upstream, store } = self;
        let (a, b) = to.split_at(row);
        let (upstream_a, upstream_b) = match upstream {
            UpstreamRows::All(_) => (upstream, upstream),
            UpstreamRows::Each(each) => {
                let (a, b) = each.split_at(row);
                (UpstreamRows::Each(a), UpstreamRows::Each(b))
            }
        };
        (
            GradientRows { to: a, upstream: upstream_a, store },
            GradientRows { to: b, upstream: upstream_b, store },
        )
    }
}

/// What the pass over a row yields, one class of which was left out of the sum: the target, or the largest
/// where targets are probabilities.
#[derive(Clone, Copy)]
pub(crate) struct Pass {
    /// Negative log-probability of that class.
    pub(crate) nll: f64,
    pub(crate) lse: Lse,
    /// Over the others, where rows are computed in `f32`.
    pub(crate) sum: ExpSum,
    /// Its transformed logit, and the derivative of the softcap there; 0 if it is not of this part.
    pub(crate) z: f64,
    pub(crate) slope: f64,
    /// `sum(w (z - z[class]))`, if it was asked for.
    pub(crate) differences: f64,
}

/// Where the elements of a gradient come from and go to.
pub(crate) struct Place<'a, T> {
    /// `None`: they are in `to`.
    pub(crate) x: Option<&'a [T]>,
    pub(crate) to: &'a mut [T],
    pub(crate) store: Store,
    /// How far from each element the one is that memory should be asked for with it.
    pub(crate) ahead: usize,
}

/// What is subtracted from the scaled probabilities of a gradient.
pub(crate) enum Minus<'a, R> {
    Nothing,
    /// This from each.
    Constant(f64),
    /// A multiple of the class weights.
    Weights(f64, &'a [R]),
    /// A multiple of the probability targets.
    Probs(f64, &'a Probs<'a, R>),
}

/// Of the classes, if they have any.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a, R>(pub(crate) Option<&'a [R]>);

/// The passes over a row of one element type.
///
/// Each is called in one place only: they are inlined, and every copy is compiled for every backend.
pub(crate) trait RowKernel: Number {
    /// The pass over a row, `class` left out of the sum if there is such a class; with the sum of differences from
    /// it, times the class weights, if `smoothing`.
    fn pass<S: Simd>(
        s: S,
        x: &[Self],
        class: usize,
        transform: &Transform<'_>,
        smoothing: Option<Weights<'_, Self::Float>>,
    ) -> Pass;

    /// `z` of the logit of a class, and the derivative of the softcap there.
    fn transform<S: Simd>(s: S, transform: &Transform<'_>, class: usize, x: Self) -> (f64, f64);

    /// `sum(v)` and `sum(v (lse - z))` for probability targets.
    fn expected<S: Simd>(
        s: S,
        x: &[Self],
        transform: &Transform<'_>,
        probs: &Probs<'_, Self::Float>,
        lse: Lse,
    ) -> (f64, f64);

    /// `(a p - minus) * slope` for every class of a row.
    fn gradient<S: Simd>(
        s: S,
        place: Place<'_, Self>,
        transform: &Transform<'_>,
        scaled: (f64, Lse),
        minus: &Minus<'_, Self::Float>,
    );

    /// The first class that may be with the largest logit, NaN ignored; 0 if there is none.
    fn argmax<S: Simd>(s: S, x: &[Self], allowed: Option<Allowed<'_>>) -> usize;

    fn is_nan(x: Self) -> bool;

    /// The first class that may be with a NaN.
    fn first_nan<S: Simd>(s: S, x: &[Self], allowed: Option<Allowed<'_>>) -> Option<usize> {
        let _ = s;
        let may_be = |class| allowed.is_none_or(|allowed| allowed.contains(class));
        (0..x.len()).find(|&class| Self::is_nan(x[class]) && may_be(class))
    }

    /// `old + g`, or `g`, rounded once.
    fn rounded(g: f64, old: Option<Self>) -> Self;

    fn lse(stats: &LogSumExp<Self::Float>) -> Lse;

    fn saved(lse: Lse) -> LogSumExp<Self::Float>;
}

/// What one row yields to its caller.
pub(crate) struct Trained {
    pub(crate) row: Row,
    pub(crate) lse: Lse,
    pub(crate) argmax: i64,
    pub(crate) pass: Pass,
}

/// How results reach the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// They replace what is there.
    Plain,
    /// As `Plain`, past the caches: for gradients that would not stay in them.
    Stream,
    /// They are added to what is there.
    Add,
}
