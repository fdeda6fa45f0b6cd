//! Groups of rows: over the cores with rayon, or one after the other.
#![forbid(unsafe_code)]

use crate::Error;
use crate::kernel::forward::Row;
use crate::kernel::{forward, softmax};

/// Elements below which work is not worth handing to another thread: about 8 microseconds.
///
/// Also the smallest piece that a batch is cut into.
#[cfg(feature = "rayon")]
const GRAIN: usize = 65_536;

/// Work on rows that can be cut in two.
#[cfg_attr(not(feature = "rayon"), allow(dead_code))]
pub(crate) trait Rows: Send + Sized {
    fn rows(&self) -> usize;
    fn vocab(&self) -> usize;
    fn split_at(self, row: usize) -> (Self, Self);
}

/// Calls `f` with every group of rows, on the caller's rayon pool if that pays.
///
/// Where the cuts are does not matter to the results: each row has its own place.
#[inline]
pub(crate) fn for_each_group<W: Rows>(mut work: W, f: &(impl Fn(&mut W) + Sync)) {
    #[cfg(feature = "rayon")]
    if work.rows() > 1 && work.rows().saturating_mul(work.vocab()) > GRAIN {
        let grain = (GRAIN / work.vocab()).max(1);
        return in_parallel(work, grain, f);
    }
    f(&mut work);
}

#[cfg(feature = "rayon")]
fn in_parallel<W: Rows>(mut work: W, grain: usize, f: &(impl Fn(&mut W) + Sync)) {
    if work.rows() <= grain {
        return f(&mut work);
    }
    let middle = work.rows() / 2;
    let (a, b) = work.split_at(middle);
    rayon::join(|| in_parallel(a, grain, f), || in_parallel(b, grain, f));
}

/// Where the results of rows go; what is not asked for is `None`.
#[derive(Debug, Default)]
pub(crate) struct RowSlices<'a> {
    pub(crate) rows: Option<&'a mut [Row]>,
    pub(crate) losses: Option<&'a mut [f32]>,
    pub(crate) logsumexp: Option<&'a mut [f32]>,
    pub(crate) logprobs: Option<&'a mut [f32]>,
    pub(crate) argmax: Option<&'a mut [i64]>,
}

#[cfg_attr(not(feature = "rayon"), allow(dead_code))]
fn split<T>(slice: Option<&mut [T]>, mid: usize) -> (Option<&mut [T]>, Option<&mut [T]>) {
    slice.map(|slice| slice.split_at_mut(mid)).unzip()
}

impl RowSlices<'_> {
    pub(crate) fn check(&self, rows: usize) -> Result<(), Error> {
        let lengths = [
            ("losses", self.losses.as_ref().map(|x| x.len())),
            ("logsumexp", self.logsumexp.as_ref().map(|x| x.len())),
            ("logprobs", self.logprobs.as_ref().map(|x| x.len())),
            ("argmax", self.argmax.as_ref().map(|x| x.len())),
        ];
        for (output, len) in lengths {
            if let Some(len) = len.filter(|&len| len != rows) {
                return Err(Error::OutputLength { output, len, expected: rows });
            }
        }
        Ok(())
    }

    /// It takes two or three scalar functions, so only where it is asked for.
    #[inline(always)]
    pub(crate) fn wants_logsumexp(&self) -> bool {
        self.logsumexp.is_some()
    }

    #[inline(always)]
    pub(crate) fn write(&mut self, i: usize, row: Row, logsumexp: f64, argmax: i64) {
        if let Some(losses) = &mut self.losses {
            losses[i] = row.loss as f32;
        }
        if let Some(out) = &mut self.logsumexp {
            out[i] = logsumexp as f32;
        }
        if let Some(logprobs) = &mut self.logprobs {
            // 0 - loss rather than -loss: the logarithm of probability 1 is +0.
            logprobs[i] = 0.0 - row.loss as f32;
        }
        if let Some(out) = &mut self.argmax {
            out[i] = argmax;
        }
        if let Some(rows) = &mut self.rows {
            rows[i] = row;
        }
    }
}

impl Rows for forward::Job<'_> {
    fn rows(&self) -> usize {
        self.logits.rows()
    }
    fn vocab(&self) -> usize {
        self.logits.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (logits_a, logits_b) = self.logits.split_at(row);
        let (targets_a, targets_b) = self.targets.split_at(row);
        let (rows_a, rows_b) = split(self.out.rows, row);
        let (losses_a, losses_b) = split(self.out.losses, row);
        let (logsumexp_a, logsumexp_b) = split(self.out.logsumexp, row);
        let (logprobs_a, logprobs_b) = split(self.out.logprobs, row);
        let (argmax_a, argmax_b) = split(self.out.argmax, row);
        let a = RowSlices {
            rows: rows_a,
            losses: losses_a,
            logsumexp: logsumexp_a,
            logprobs: logprobs_a,
            argmax: argmax_a,
        };
        let b = RowSlices {
            rows: rows_b,
            losses: losses_b,
            logsumexp: logsumexp_b,
            logprobs: logprobs_b,
            argmax: argmax_b,
        };
        (
            forward::Job { logits: logits_a, targets: targets_a, out: a },
            forward::Job { logits: logits_b, targets: targets_b, out: b },
        )
    }
}

impl Rows for softmax::Job<'_> {
    fn rows(&self) -> usize {
        self.dst.rows()
    }
    fn vocab(&self) -> usize {
        self.dst.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (src_a, src_b) = self.src.map(|src| src.split_at(row)).unzip();
        let (dst_a, dst_b) = self.dst.split_at(row);
        (softmax::Job { src: src_a, dst: dst_a }, softmax::Job { src: src_b, dst: dst_b })
    }
}

impl Rows for softmax::LogSumExpJob<'_> {
    fn rows(&self) -> usize {
        self.logits.rows()
    }
    fn vocab(&self) -> usize {
        self.logits.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (logits_a, logits_b) = self.logits.split_at(row);
        let (out_a, out_b) = self.out.split_at_mut(row);
        (
            softmax::LogSumExpJob { logits: logits_a, out: out_a },
            softmax::LogSumExpJob { logits: logits_b, out: out_b },
        )
    }
}
