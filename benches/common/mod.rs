//! What the benches share: the data and the threads.

use rayon::prelude::*;
use std::f64::consts::TAU;
use std::thread::available_parallelism;
use xent::{Backend, Logits, LogitsMut};

/// Logits as a model makes them, and a target for each row.
pub(crate) struct Batch {
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
    pub(crate) logits: Vec<f32>,
    pub(crate) targets: Vec<i64>,
    /// Class weights.
    pub(crate) weights: Vec<f32>,
}

impl Batch {
    /// Normally distributed with standard deviation 3; every eighth row is sure of its target.
    ///
    /// A plain `Vec` as callers have it, without any care for page size or alignment. All of it is
    /// written here, so that no page is touched for the first time while the clock runs.
    pub(crate) fn new(rows: usize, vocab: usize) -> Self {
        Batch::in_pages(rows, vocab, Pages::Usual)
    }

    /// As [`Batch::new`], in pages of this size.
    pub(crate) fn in_pages(rows: usize, vocab: usize, pages: Pages) -> Self {
        let mut logits = Vec::with_capacity(rows * vocab);
        if pages == Pages::Huge {
            ask_for_huge_pages(&mut logits);
        }
        logits.resize(rows * vocab, 0.0);
        // Steps of a prime spread the targets over the row.
        let target = |i| ((i * 7919 + vocab / 3) % vocab) as i64;
        let targets: Vec<i64> = (0..rows).map(target).collect();
        logits.par_chunks_mut(vocab).enumerate().for_each(|(i, row)| {
            fill_gaussian(row, i as u64);
            if i % 8 == 7 {
                row[targets[i] as usize] = 25.0;
            }
        });
        let weights = (0..vocab).map(|class| 0.5 + (class % 7) as f32 * 0.25).collect();
        Batch { rows, vocab, logits, targets, weights }
    }

    pub(crate) fn logits(&self) -> Logits<'_> {
        Logits::new(&self.logits, self.rows, self.vocab).expect("the shape is that of the data")
    }

    /// Another matrix of the same shape.
    pub(crate) fn matrix<'a>(&self, data: &'a mut [f32]) -> LogitsMut<'a> {
        LogitsMut::new(data, self.rows, self.vocab).expect("the shape is that of the data")
    }

    pub(crate) fn target(&self, row: usize) -> usize {
        self.targets[row] as usize
    }

    /// The losses of all rows as code written by hand computes them, rows spread over the pool.
    pub(crate) fn two_pass(&self, losses: &mut [f32]) {
        let rows = self.logits.par_chunks(self.vocab).zip(&self.targets).zip(losses);
        rows.for_each(|((row, &target), loss)| {
            *loss = xent::reference::two_pass_f32(row, target as usize);
        });
    }
}

/// Pages of memory: those that the system chooses, or large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    Usual,
    Huge,
}

/// Linux only; elsewhere, or where the system refuses, the pages are the usual ones.
fn ask_for_huge_pages(logits: &mut Vec<f32>) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = logits.as_mut_ptr();
        let bytes = logits.capacity() * size_of::<f32>();
        let skip = start.align_offset(HUGE).saturating_mul(size_of::<f32>());
        if skip < bytes {
            // SAFETY: the range lies within the allocation, and this advice does not change contents.
            let refused = unsafe {
                let from = start.cast::<u8>().add(skip);
                libc::madvise(from.cast(), bytes - skip, libc::MADV_HUGEPAGE)
            };
            assert_eq!(refused, 0, "madvise(MADV_HUGEPAGE) was refused");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = logits;
}

/// Box-Muller over SplitMix64: the same numbers on every machine, to the last bits of its `libm`.
fn fill_gaussian(row: &mut [f32], seed: u64) {
    let mut state = seed.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // In (0, 1]: the logarithm of 0 is not wanted.
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / 2f64.powi(53)
    };
    for pair in row.chunks_mut(2) {
        let radius = 3.0 * (-2.0 * uniform().ln()).sqrt();
        let (sin, cos) = (TAU * uniform()).sin_cos();
        for (x, direction) in pair.iter_mut().zip([sin, cos]) {
            *x = (radius * direction) as f32;
        }
    }
}

/// The backend that is used where none is asked for: the last of the available ones.
pub(crate) fn fastest_backend() -> Backend {
    *Backend::available().last().expect("there is always a backend")
}

/// The number of threads of this machine; 1 if the crate was built to use one only.
pub(crate) fn all_threads() -> usize {
    if cfg!(feature = "rayon") { available_parallelism().map_or(1, |n| n.get()) } else { 1 }
}

pub(crate) fn pool(threads: usize) -> rayon::ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.expect("threads can be started");
    assert_eq!(pool.current_num_threads(), threads);
    pool
}

/// Says what is not measured because this machine cannot run it.
pub(crate) fn print_skipped() {
    for backend in Backend::ALL.iter().filter(|backend| !backend.is_available()) {
        println!("skipped: {backend}, which this CPU cannot run");
    }
}
