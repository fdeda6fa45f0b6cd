//! What one row yields to a reduction.

/// What one row yields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// The loss before it is rounded: weighted and smoothed, without the z-loss.
    pub(crate) loss: f64,
    /// Negative log-probability of the target.
    pub(crate) nll: f64,
    pub(crate) z_loss: f64,
    /// What the row counts in a mean: weights of its class and of itself, and of itself only.
    pub(crate) weight: f64,
    pub(crate) token_weight: f64,
    pub(crate) kept: bool,
    /// Whether the target is the argmax, if that was asked for.
    pub(crate) at_argmax: bool,
}

impl Row {
    pub(crate) const IGNORED: Row = Row {
        loss: 0.0,
        nll: 0.0,
        z_loss: 0.0,
        weight: 0.0,
        token_weight: 0.0,
        kept: false,
        at_argmax: false,
    };

    /// A row without any options.
    #[inline(always)]
    pub(crate) fn plain(nll: f64, at_argmax: bool) -> Row {
        Row { loss: nll, nll, z_loss: 0.0, weight: 1.0, token_weight: 1.0, kept: true, at_argmax }
    }

    /// Whether it is one of those that statistics are over. A weight of 0 is a mask.
    pub(crate) fn counts(&self) -> bool {
        self.kept && self.token_weight != 0.0
    }

    /// Whether its target is the most probable class. Without a distribution there is none, though an argmax.
    pub(crate) fn is_correct(&self) -> bool {
        self.at_argmax && !self.nll.is_nan()
    }

    pub(crate) fn is_nan(&self) -> bool {
        self.kept && (self.nll.is_nan() || (self.loss + self.z_loss).is_nan())
    }
}
