//! Where the results of rows go.

use super::loss_stats::LossStats;
use super::pass::Trained;
use super::row::Row;
use crate::data::error::Error;
use crate::data::number::Float;
use crate::data::saved::LogSumExp;

/// Where the results of rows go; what is not asked for is `None`.
#[derive(Debug)]
pub(crate) struct RowSlices<'a, R> {
    pub(crate) rows: Option<&'a mut [Row]>,
    pub(crate) losses: Option<&'a mut [R]>,
    pub(crate) logsumexp: Option<&'a mut [R]>,
    pub(crate) logprobs: Option<&'a mut [R]>,
    pub(crate) argmax: Option<&'a mut [i64]>,
    pub(crate) z_losses: Option<&'a mut [R]>,
    pub(crate) saved: Option<&'a mut [LogSumExp<R>]>,
    /// Instead of losses, of a shard.
    pub(crate) stats: Option<&'a mut [LossStats]>,
}

impl<R> Default for RowSlices<'_, R> {
    fn default() -> Self {
        RowSlices {
            rows: None,
            losses: None,
            logsumexp: None,
            logprobs: None,
            argmax: None,
            z_losses: None,
            saved: None,
            stats: None,
        }
    }
}

pub(crate) fn split<T>(
    slice: Option<&mut [T]>,
    mid: usize,
) -> (Option<&mut [T]>, Option<&mut [T]>) {
    slice.map(|slice| slice.split_at_mut(mid)).unzip()
}

impl<'a, R: Float> RowSlices<'a, R> {
    pub(crate) fn check(&self, rows: usize) -> Result<(), Error> {
        let lengths = [
            ("losses", self.losses.as_ref().map(|x| x.len())),
            ("logsumexp", self.logsumexp.as_ref().map(|x| x.len())),
            ("logprobs", self.logprobs.as_ref().map(|x| x.len())),
            ("argmax", self.argmax.as_ref().map(|x| x.len())),
            ("z_losses", self.z_losses.as_ref().map(|x| x.len())),
            ("saved", self.saved.as_ref().map(|x| x.len())),
            ("stats", self.stats.as_ref().map(|x| x.len())),
        ];
        for (output, len) in lengths {
            if let Some(len) = len.filter(|&len| len != rows) {
                return Err(Error::OutputLength { output, len, expected: rows });
            }
        }
        Ok(())
    }

    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        let (rows_a, rows_b) = split(self.rows, row);
        let (losses_a, losses_b) = split(self.losses, row);
        let (logsumexp_a, logsumexp_b) = split(self.logsumexp, row);
        let (logprobs_a, logprobs_b) = split(self.logprobs, row);
        let (argmax_a, argmax_b) = split(self.argmax, row);
        let (z_losses_a, z_losses_b) = split(self.z_losses, row);
        let (saved_a, saved_b) = split(self.saved, row);
        let (stats_a, stats_b) = split(self.stats, row);
        let a = RowSlices {
            rows: rows_a,
            losses: losses_a,
            logsumexp: logsumexp_a,
            logprobs: logprobs_a,
            argmax: argmax_a,
            z_losses: z_losses_a,
            saved: saved_a,
            stats: stats_a,
        };
        let b = RowSlices {
            rows: rows_b,
            losses: losses_b,
            logsumexp: logsumexp_b,
            logprobs: logprobs_b,
            argmax: argmax_b,
            z_losses: z_losses_b,
            saved: saved_b,
            stats: stats_b,
        };
        (a, b)
    }

    /// It takes two or three scalar functions, so only where it is asked for.
    #[inline(always)]
    pub(crate) fn wants_logsumexp(&self) -> bool {
        self.logsumexp.is_some()
    }

    /// Whether something is asked for that only the training kernels yield.
    pub(crate) fn wants_training(&self) -> bool {
        self.z_losses.is_some() || self.saved.is_some() || self.stats.is_some()
    }

    /// One row, rounded to the type of the outputs.
    #[inline(always)]
    pub(crate) fn write(&mut self, i: usize, row: Row, logsumexp: f64, argmax: i64) {
        if let Some(losses) = &mut self.losses {
            losses[i] = R::from_f64(row.loss + row.z_loss);
        }
        if let Some(out) = &mut self.logsumexp {
            out[i] = R::from_f64(logsumexp);
        }
        if let Some(logprobs) = &mut self.logprobs {
            // 0 - nll rather than -nll, and of what was rounded: the logarithm of probability 1 is +0.
            logprobs[i] = R::from_f64(0.0 - R::from_f64(row.nll).into());
        }
        if let Some(out) = &mut self.argmax {
            out[i] = argmax;
        }
        if let Some(rows) = &mut self.rows {
            rows[i] = row;
        }
    }

    /// As [`RowSlices::write`], with what only the training kernels know.
    #[inline(always)]
    pub(crate) fn write_trained(
        &mut self,
        i: usize,
        Trained { row, lse, argmax, .. }: Trained,
        saved: LogSumExp<R>,
    ) {
        if let Some(out) = &mut self.z_losses {
            out[i] = R::from_f64(row.z_loss);
        }
        if let Some(out) = &mut self.saved {
            out[i] = saved;
        }
        self.write(i, row, lse.value(), argmax);
    }

    #[inline(always)]
    pub(crate) fn write_ignored(&mut self, i: usize) {
        if let Some(out) = &mut self.stats {
            out[i] = LossStats::default();
        }
        if let Some(out) = &mut self.z_losses {
            out[i] = R::from_f64(0.0);
        }
        if let Some(out) = &mut self.saved {
            out[i] = LogSumExp { hi: R::from_f64(0.0), lo: R::from_f64(0.0) };
        }
        self.write(i, Row::IGNORED, 0.0, -1);
    }
}
