//! Groups of rows: over the cores with rayon, or one after the other.
#![forbid(unsafe_code)]

use crate::dispatch::element::Element;
use crate::dispatch::entries;
use crate::kernel::blocks::CHUNK;
use crate::kernel::double::compare;
use crate::kernel::part::Part;
use crate::kernel::row_stats::RowStats;
use crate::kernel::{forward, softmax, train};
use crate::simd::backend::Kernels;
#[cfg(feature = "rayon")]
use crate::simd::float_env;
use std::cell::Cell;

/// Elements below which work is not worth handing to another thread: about 8 microseconds.
///
/// Also the smallest piece that a batch is cut into.
#[cfg(feature = "rayon")]
const GRAIN: usize = 65_536;

/// Classes from which on a row is cut into parts where there are threads for it: 50 microseconds of work. Two threads take
/// 0.53 times as long as one for 524,288 if the other is awake, and as long as one if it has to be woken; for 151,936
/// between 0.65 and 1.6 times.
const SPREAD: usize = 8 * CHUNK;

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
pub(crate) fn for_each_group<W: Rows>(mut work: W, f: &(dyn Fn(&mut W) + Sync)) {
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
fn in_parallel<W: Rows>(mut work: W, grain: usize, f: &(dyn Fn(&mut W) + Sync)) {
    if work.rows() <= grain {
        return f(&mut work);
    }
    let middle = work.rows() / 2;
    let (a, b) = work.split_at(middle);
    let (mut a, mut b) = (Some(a), Some(b));
    join(&mut || a.take().into_iter().for_each(|a| in_parallel(a, grain, f)), &mut || {
        b.take().into_iter().for_each(|b| in_parallel(b, grain, f))
    });
}

/// Calls both, one of them perhaps on another thread. Not generic: every instance of rayon's takes as much
/// code as a kernel.
#[cfg(feature = "rayon")]
#[inline(never)]
fn join(a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
    rayon::join(a, b);
}

/// Calls `f` on a thread of the pool, which need not be waited for from outside then, each time that `f`
/// hands work to others.
#[cfg(feature = "rayon")]
#[inline(never)]
pub(crate) fn in_pool(f: &mut (dyn FnMut() + Send)) {
    rayon::join(f, || ());
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

/// The statistics of some classes of a row, cut into so many parts on threads of their own.
///
/// It is cut at chunks: what is merged is exact, so that the bits do not depend on how often.
#[inline(never)]
pub(crate) fn row_stats(kernels: Kernels, part: &Part<'_>, parts: usize, out: &mut RowStats) {
    #[cfg(feature = "rayon")]
    {
        let classes = part.classes.clone();
        let chunks = classes.len().div_ceil(CHUNK);
        if parts > 1 && chunks > 1 {
            let left = parts / 2;
            let cut = classes.start + (chunks * left / parts).max(1) * CHUNK;
            let (a, b) = (part.classes(classes.start..cut), part.classes(cut..classes.end));
            let mut rest = RowStats::default();
            join(&mut || row_stats(kernels, &a, left, out), &mut || {
                row_stats(kernels, &b, parts - left, &mut rest)
            });
            return float_env::scope(|| out.add(&rest));
        }
    }
    let _ = parts;
    entries::row_stats(kernels, part, out);
}
