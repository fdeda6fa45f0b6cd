//! What is asked about a row, or about some classes of one.

use super::gumbel::Key;
use super::transform::Transform;
use crate::simd::AnyRow;
use std::ops::Range;

/// What to find out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wanted {
    /// [`sum::STEPS`], or for the entropy [`sum::FIRST`], for its variance [`sum::SECOND`].
    pub(crate) level: u8,
    pub(crate) ranks: bool,
    /// The strict ranks too.
    pub(crate) strict_ranks: bool,
    pub(crate) top_k: usize,
    /// The loss of the target.
    pub(crate) loss: bool,
}

/// Some classes of a row, from the beginning of a chunk on.
#[derive(Clone)]
pub(crate) struct Part<'a, X = AnyRow<'a>> {
    pub(crate) row: X,
    pub(crate) classes: Range<usize>,
    pub(crate) transform: Transform<'a>,
    pub(crate) wanted: Wanted,
    /// The target, if it is of these classes.
    pub(crate) target: Option<usize>,
    /// Its logit before the temperature, wherever it is.
    pub(crate) target_logit: Option<f64>,
    pub(crate) draw: Option<Draw>,
    /// The token that class 0 is.
    pub(crate) first_id: u32,
    /// How many tokens there are, with those that are not of this row.
    pub(crate) vocab: u32,
}

/// How to draw a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Draw {
    pub(crate) key: Key,
    pub(crate) temperature: f64,
}

impl<'a, X> Part<'a, X> {
    /// The same of another row.
    pub(crate) fn of<Y>(&self, row: Y) -> Part<'a, Y> {
        let Part { transform, wanted, target, target_logit, draw, first_id, vocab, .. } = *self;
        let classes = self.classes.clone();
        Part { row, classes, transform, wanted, target, target_logit, draw, first_id, vocab }
    }

    /// Some of these classes.
    #[cfg(feature = "rayon")]
    pub(crate) fn classes(&self, classes: Range<usize>) -> Self
    where
        X: Clone,
    {
        let target = self.target.filter(|target| classes.contains(target));
        Part { classes, target, ..self.clone() }
    }

    pub(crate) fn id(&self, class: usize) -> u32 {
        self.first_id + class as u32
    }
}
