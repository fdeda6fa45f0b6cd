//! Groups of rows: over the cores with rayon, or one after the other.
#![forbid(unsafe_code)]

use crate::data::error::Error;
use crate::data::saved::LogSumExp;
use crate::dispatch::element::{Element, Real};
use crate::kernel::double::compare;
use crate::kernel::forward::Row;
use crate::kernel::loss_stats::LossStats;
use crate::kernel::train::{GradientRows, Trained, UpstreamRows};
use crate::kernel::{forward, softmax, train};
use std::cell::Cell;

/// Elements below which work is not worth handing to another thread: about 8 microseconds.
///
/// Also the smallest piece that a batch is cut into.
#[cfg(feature = "rayon")]
const GRAIN: usize = 65_536;

/// Classes from which on a row is cut into parts where there are threads for it: 50 microseconds of work. Two threads take
/// 0.53 times as long as one for 524,288 if the other is awake, and as long as one if it has to be woken; for 151,936
/// between 0.65 and 1.6 times.
const SPREAD: usize = 8 * crate::kernel::sum::CHUNK;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Calls `f`, and computes whatever this crate is asked for meanwhile on the calling thread, without starting or waiting
/// for any other: for engines that have threads of their own. Results have the same bits.
///
/// ```
/// use xent::{CrossEntropy, Logits};
///
/// let x = vec![0.0_f32; 4 * 50_257];
/// let logits = Logits::new(&x, 4, 50_257)?;
/// let loss = xent::on_calling_thread(|| CrossEntropy::new().forward(logits, &[0i64; 4]))?;
/// assert_eq!(loss, CrossEntropy::new().forward(logits, &[0i64; 4])?);
/// # Ok::<(), xent::Error>(())
/// ```
pub fn on_calling_thread<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    f()
}

#[cfg(feature = "rayon")]
fn is_alone() -> bool {
    ALONE.get()
}

/// How many threads there are for work of this thread. Starts the global pool.
pub(crate) fn threads() -> usize {
    #[cfg(feature = "rayon")]
    if !is_alone() {
        return rayon::current_num_threads();
    }
    1
}

/// Work on rows that can be cut in two.
pub(crate) trait Rows: Send + Sized {
    fn rows(&self) -> usize;
    fn vocab(&self) -> usize;
    fn split_at(self, row: usize) -> (Self, Self);

    /// The fewest rows that are worth a call.
    #[cfg_attr(not(feature = "rayon"), allow(dead_code))]
    fn least(&self) -> usize {
        1
    }
}

/// Calls `f` with every group of rows, on the caller's rayon pool if that pays.
///
/// Where the cuts are does not matter to the results: each row has its own place.
#[inline]
pub(crate) fn for_each_group<W: Rows>(mut work: W, f: &(impl Fn(&mut W) + Sync)) {
    #[cfg(feature = "rayon")]
    if work.rows() > 1 && is_worth_threads(&work) {
        let grain = (GRAIN / work.vocab()).max(work.least());
        return in_parallel(work, grain, f);
    }
    f(&mut work);
}

#[cfg(feature = "rayon")]
#[inline]
pub(crate) fn is_worth_threads(work: &impl Rows) -> bool {
    work.rows().saturating_mul(work.vocab()) > GRAIN && !is_alone()
}

/// Into how many parts each row is to be cut, for threads that would have nothing to do where rows are few and long: 1
/// for most. `cost` is how many times as long as usual a class takes.
#[inline]
pub(crate) fn parts_of_rows(rows: usize, vocab: usize, cost: usize) -> usize {
    // In this order: asking for the number of threads starts the global pool.
    if rows == 0 || vocab.saturating_mul(cost) < SPREAD { 1 } else { (threads() / rows).max(1) }
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

impl<'a, R: Real> RowSlices<'a, R> {
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

    fn split_at(self, row: usize) -> (Self, Self) {
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

impl<T: Element> Rows for forward::Job<'_, T> {
    fn rows(&self) -> usize {
        self.logits.rows()
    }
    fn vocab(&self) -> usize {
        self.logits.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (logits_a, logits_b) = self.logits.split_at(row);
        let (targets_a, targets_b) = self.targets.split_at(row);
        let (a, b) = self.out.split_at(row);
        let argmax = self.argmax;
        (
            forward::Job { logits: logits_a, targets: targets_a, out: a, argmax },
            forward::Job { logits: logits_b, targets: targets_b, out: b, argmax },
        )
    }
}

impl<T: Element> Rows for train::Job<'_, T> {
    fn rows(&self) -> usize {
        let gradient = self.gradient.as_ref().map_or(0, |gradient| gradient.to.rows());
        self.logits.map_or(gradient, |logits| logits.rows())
    }
    fn vocab(&self) -> usize {
        let gradient = self.gradient.as_ref().map_or(0, |gradient| gradient.to.vocab());
        self.logits.map_or(gradient, |logits| logits.vocab())
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (logits_a, logits_b) = self.logits.map(|logits| logits.split_at(row)).unzip();
        let (targets_a, targets_b) = self.targets.split_at(row);
        let (weights_a, weights_b) = self.token_weights.map(|w| w.split_at(row)).unzip();
        let (allowed_a, allowed_b) = self.allowed.map(|allowed| allowed.split_at(row)).unzip();
        let (saved_a, saved_b) = self.saved.map(|saved| saved.split_at(row)).unzip();
        let (out_a, out_b) = self.out.split_at(row);
        let (gradient_a, gradient_b) = self.gradient.map(|g| g.split_at(row)).unzip();
        (
            train::Job {
                config: self.config,
                logits: logits_a,
                targets: targets_a,
                token_weights: weights_a,
                allowed: allowed_a,
                saved: saved_a,
                out: out_a,
                gradient: gradient_a,
            },
            train::Job {
                config: self.config,
                logits: logits_b,
                targets: targets_b,
                token_weights: weights_b,
                allowed: allowed_b,
                saved: saved_b,
                out: out_b,
                gradient: gradient_b,
            },
        )
    }
}

impl<T> GradientRows<'_, T> {
    fn split_at(self, row: usize) -> (Self, Self) {
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

impl<T: Element> Rows for softmax::Job<'_, T> {
    fn rows(&self) -> usize {
        self.dst.rows()
    }
    fn vocab(&self) -> usize {
        self.dst.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (src_a, src_b) = self.src.map(|src| src.split_at(row)).unzip();
        let (dst_a, dst_b) = self.dst.split_at(row);
        let (allowed_a, allowed_b) = self.allowed.map(|allowed| allowed.split_at(row)).unzip();
        let log = self.log;
        (
            softmax::Job { src: src_a, dst: dst_a, allowed: allowed_a, log },
            softmax::Job { src: src_b, dst: dst_b, allowed: allowed_b, log },
        )
    }
}

impl<T: Element> Rows for softmax::LogSumExpJob<'_, T> {
    fn rows(&self) -> usize {
        self.logits.rows()
    }
    fn vocab(&self) -> usize {
        self.logits.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (logits_a, logits_b) = self.logits.split_at(row);
        let (out_a, out_b) = self.out.split_at_mut(row);
        let (allowed_a, allowed_b) = self.allowed.map(|allowed| allowed.split_at(row)).unzip();
        (
            softmax::LogSumExpJob { logits: logits_a, out: out_a, allowed: allowed_a },
            softmax::LogSumExpJob { logits: logits_b, out: out_b, allowed: allowed_b },
        )
    }
}

impl<'a> compare::Outputs<'a> {
    fn split_at(self, row: usize) -> (Self, Self) {
        let (kl_a, kl_b) = split(self.kl, row);
        let (reverse_kl_a, reverse_kl_b) = split(self.reverse_kl, row);
        let (jsd_a, jsd_b) = split(self.jsd, row);
        let (total_variation_a, total_variation_b) = split(self.total_variation, row);
        let (base_logprobs_a, base_logprobs_b) = split(self.base_logprobs, row);
        let (other_logprobs_a, other_logprobs_b) = split(self.other_logprobs, row);
        let (delta_p_a, delta_p_b) = split(self.delta_p, row);
        let (same_top_a, same_top_b) = split(self.same_top, row);
        let a = compare::Outputs {
            kl: kl_a,
            reverse_kl: reverse_kl_a,
            jsd: jsd_a,
            total_variation: total_variation_a,
            base_logprobs: base_logprobs_a,
            other_logprobs: other_logprobs_a,
            delta_p: delta_p_a,
            same_top: same_top_a,
        };
        let b = compare::Outputs {
            kl: kl_b,
            reverse_kl: reverse_kl_b,
            jsd: jsd_b,
            total_variation: total_variation_b,
            base_logprobs: base_logprobs_b,
            other_logprobs: other_logprobs_b,
            delta_p: delta_p_b,
            same_top: same_top_b,
        };
        (a, b)
    }
}

impl Rows for compare::Job<'_> {
    fn rows(&self) -> usize {
        self.base.rows()
    }
    fn vocab(&self) -> usize {
        self.base.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (base_a, base_b) = self.base.split_at(row);
        let (other_a, other_b) = self.other.split_at(row);
        let (targets_a, targets_b) = self.targets.map(|targets| targets.split_at(row)).unzip();
        let (allowed_a, allowed_b) = self.allowed.map(|allowed| allowed.split_at(row)).unzip();
        let (out_a, out_b) = self.out.split_at(row);
        let (rate, beta) = (self.rate, self.beta);
        (
            compare::Job {
                base: base_a,
                other: other_a,
                targets: targets_a,
                allowed: allowed_a,
                rate,
                beta,
                out: out_a,
            },
            compare::Job {
                base: base_b,
                other: other_b,
                targets: targets_b,
                allowed: allowed_b,
                rate,
                beta,
                out: out_b,
            },
        )
    }
}
