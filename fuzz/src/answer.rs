//! What the functions of a loss write and return.

use crate::number::{Logit, Number, keys};
use crate::refusal::UNTOUCHED;
use xent::{Evaluation, LogSumExp, RowOutputs};

pub struct Outputs<R> {
    pub losses: Vec<R>,
    pub z_losses: Vec<R>,
    pub logprobs: Vec<R>,
    pub logsumexp: Vec<R>,
    pub argmax: Vec<i64>,
    pub stats: Vec<LogSumExp<R>>,
}

impl<R: Number> Outputs<R> {
    pub fn new(rows: usize) -> Self {
        let untouched = R::round(UNTOUCHED);
        let values = || vec![untouched; rows];
        Outputs {
            losses: values(),
            z_losses: values(),
            logprobs: values(),
            logsumexp: values(),
            argmax: vec![UNTOUCHED as i64; rows],
            stats: vec![LogSumExp { hi: untouched, lo: untouched }; rows],
        }
    }

    pub fn all(&mut self) -> RowOutputs<'_, R> {
        RowOutputs::new()
            .losses(&mut self.losses)
            .z_losses(&mut self.z_losses)
            .logprobs(&mut self.logprobs)
            .logsumexp(&mut self.logsumexp)
            .argmax(&mut self.argmax)
            .saved(&mut self.stats)
    }

    /// Without those that only the training kernels yield.
    pub fn plain(&mut self) -> RowOutputs<'_, R> {
        RowOutputs::new()
            .losses(&mut self.losses)
            .logprobs(&mut self.logprobs)
            .logsumexp(&mut self.logsumexp)
            .argmax(&mut self.argmax)
    }

    pub fn plain_keys(&self) -> Vec<u64> {
        let all = [&self.losses, &self.logprobs, &self.logsumexp];
        let values = all.into_iter().flat_map(|values| keys(values));
        values.chain(self.argmax.iter().map(|&class| class as u64)).collect()
    }

    pub fn keys(&self) -> Vec<u64> {
        let stats = self.stats.iter().flat_map(|stats| [stats.hi.key(), stats.lo.key()]);
        self.plain_keys().into_iter().chain(keys(&self.z_losses)).chain(stats).collect()
    }

    pub fn is_untouched(&self) -> bool {
        self.keys() == Self::new(self.losses.len()).keys()
    }
}

/// What a valid case yields.
pub struct Answer<T: Logit> {
    pub outputs: Outputs<T::Real>,
    pub evaluation: Evaluation,
    pub gradient: Vec<T>,
    /// From saved statistics.
    pub saved: Vec<T>,
}
