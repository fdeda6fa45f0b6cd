//! The loss over ranks.
#![forbid(unsafe_code)]

use crate::Error;
use crate::agreement::{Call, Plan, agree};
use crate::exchange::all_gather;
use mpi::traits::Communicator;
use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;
use xent::{
    CrossEntropy, Element, Evaluation, Gradient, LogProbs, LogSumExp, Logits, LogitsMut, LossStats,
    RowOutputs, RowStats, Shard, ShardedCrossEntropy, Targets, Upstream,
};

/// Bytes that all ranks together send at once: statistics of more rows go in several exchanges, as MPI counts in `int`, and
/// every rank has memory for all.
const BATCH: usize = 16 << 20;

/// The classes of a rank if all ranks have as many, but for one more of the first ones: the layout of most trainers.
///
/// ```
/// # use xent_mpi::even;
/// assert_eq!([0, 1, 2].map(|rank| even(50_257, rank, 3)), [0..16_753, 16_753..33_505, 33_505..50_257]);
/// ```
///
/// # Panics
/// Unless `rank < ranks`.
pub fn even(vocab: usize, rank: usize, ranks: usize) -> Range<usize> {
    assert!(rank < ranks, "rank {rank} of {ranks}");
    let (each, more) = (vocab / ranks, vocab % ranks);
    let start = |rank: usize| each * rank + rank.min(more);
    start(rank)..start(rank + 1)
}

/// The classes of a rank if shards begin at multiples of [`LossStats::CHUNK`], with which results have the bits of one
/// process: as even as chunks of 32,768 allow, for small vocabularies not very, and some ranks may have none.
///
/// ```
/// # use xent_mpi::chunks;
/// assert_eq!([0, 1, 2].map(|rank| chunks(151_936, rank, 3)), [0..65_536, 65_536..131_072, 131_072..151_936]);
/// ```
///
/// # Panics
/// Unless `rank < ranks`.
pub fn chunks(vocab: usize, rank: usize, ranks: usize) -> Range<usize> {
    let Range { start, end } = even(vocab.div_ceil(LossStats::CHUNK), rank, ranks);
    let class = |chunk: usize| chunk.saturating_mul(LossStats::CHUNK).min(vocab);
    class(start)..class(end)
}

/// Cross-entropy over the ranks of a communicator, of which each has some classes of the vocabulary for all rows.
///
/// Every method but the backward ones is collective: all ranks have to make the same calls in the same order, with the
/// same targets and options, and each with its own logits `[rows, classes]`. Whatever is wrong with the arguments of one
/// rank is an error on all of them; see [`Error`]. All ranks get the same results.
///
/// MPI has to be initialized for threads: at the level `Funneled` where the main thread makes the calls, else `Serialized`. xent's
/// own threads do not call MPI.
///
/// ```no_run
/// use xent_mpi::mpi::{self, traits::*};
/// use xent_mpi::xent::{CrossEntropy, Logits, RowOutputs};
/// use xent_mpi::{VocabParallel, even};
///
/// let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled).expect("the first time");
/// let world = universe.world();
/// let (rows, vocab) = (2, 50_257);
/// let classes = even(vocab, world.rank() as usize, world.size() as usize);
/// let logits = vec![0.0_f32; rows * classes.len()]; // of the columns of this rank
/// let logits = Logits::new(&logits, rows, classes.len())?;
///
/// let parallel = VocabParallel::new(&world, classes, vocab);
/// let targets = [11i64, 50_000]; // of the whole vocabulary, the same on all ranks
/// let loss = parallel.cross_entropy(&CrossEntropy::new(), logits, &targets, RowOutputs::new())?;
/// assert!((loss.perplexity() - 50_257.0).abs() < 0.01);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct VocabParallel<'c, C> {
    comm: &'c C,
    classes: Range<usize>,
    vocab: usize,
    timeout: Duration,
    given_up: Cell<bool>,
}

impl<'c, C: Communicator> VocabParallel<'c, C> {
    /// This rank has these classes of a vocabulary of `vocab`. The shards of all ranks must be the whole vocabulary, in
    /// any order; some may be empty. That is checked in every exchange; this call is not one.
    pub fn new(comm: &'c C, classes: Range<usize>, vocab: usize) -> Self {
        let timeout = Duration::from_secs(600);
        VocabParallel { comm, classes, vocab, timeout, given_up: Cell::new(false) }
    }

    /// How long to wait for the other ranks in one exchange, 10 minutes if this is not called: then the call returns
    /// [`Error::NoAnswer`], and all after it [`Error::GivenUp`]: another `VocabParallel` must not use the communicator any more
    /// either. It has to be longer than ranks may be apart.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The classes of this rank.
    pub fn classes(&self) -> Range<usize> {
        self.classes.clone()
    }

    /// Loss and statistics of all rows, as [`CrossEntropy::evaluate`] has them of whole rows: the same bits if all shards
    /// begin at multiples of [`LossStats::CHUNK`] ([`chunks`]), else the same within 1 ULP per row (`tests/parallel.rs`). What
    /// [`LossStats`] says of label smoothing, of enormous logits and of machines that differ holds here.
    ///
    /// One read of the logits, and two exchanges: an agreement of 304 bytes a rank, and the statistics,
    /// [`LossStats::BYTES`] a row, in pieces of 16 MiB of all ranks. No argmax: see [`VocabParallel::row_stats`]. [`RowOutputs::saved`] is what
    /// [`VocabParallel::backward`] needs.
    ///
    /// # Errors
    /// [`Error::Xent`] for what [`ShardedCrossEntropy::stats`] and [`ShardedCrossEntropy::evaluate`] refuse, on the rank
    /// whose arguments these are, and [`Error::OtherRank`] on the others; [`Error::Mismatch`], [`Error::Shards`] and
    /// [`Error::MissingClasses`] for ranks that do not go together, [`Error::Protocol`], [`Error::NoAnswer`] and
    /// [`Error::GivenUp`]. On error no output was written.
    pub fn cross_entropy<'a, T: Element<Real = f32>>(
        &self,
        loss: &CrossEntropy<'_>,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        outputs: RowOutputs<'_>,
    ) -> Result<Evaluation, Error> {
        let (shard, targets) = (self.shard(loss), targets.into());
        self.forward(&shard, logits, targets, outputs, Ok(()))
    }

    /// As [`VocabParallel::cross_entropy`], and the gradient by the logits of this rank: what
    /// [`VocabParallel::backward`] writes. (Of a confident target it is a little less exact than that of
    /// [`CrossEntropy::forward_backward`], which need not go by way of 8 saved bytes: see [`CrossEntropy::backward`].)
    ///
    /// # Errors
    /// As [`VocabParallel::cross_entropy`], and those of [`ShardedCrossEntropy::backward`] for the gradient. On error no
    /// output and no gradient was written.
    pub fn forward_backward<'a, T: Element<Real = f32>>(
        &self,
        loss: &CrossEntropy<'_>,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        gradient: Gradient<'_, T>,
    ) -> Result<Evaluation, Error> {
        let (shard, targets) = (self.shard(loss), targets.into());
        let checked = shard.check_gradient(&gradient, logits.rows(), logits.vocab());
        // Without memory for so many rows the error is that of the outputs, which are too few then.
        let mut saved: Vec<LogSumExp> = identities(logits.rows()).unwrap_or_default();
        let outputs = RowOutputs::new().saved(&mut saved);
        let evaluation = self.forward(&shard, logits, targets, outputs, checked)?;
        shard.backward(logits, targets, &saved, gradient)?;
        Ok(evaluation)
    }

    /// The gradient by the logits of this rank, from what [`VocabParallel::cross_entropy`] wrote to
    /// [`RowOutputs::saved`]: no exchange. The bits are those that [`CrossEntropy::backward`] computes of whole rows with
    /// the same `saved`.
    ///
    /// # Errors
    /// [`Error::Xent`] for what [`ShardedCrossEntropy::backward`] refuses. On error nothing was written.
    pub fn backward<'a, T: Element<Real = f32>>(
        &self,
        loss: &CrossEntropy<'_>,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        saved: &[LogSumExp],
        gradient: Gradient<'_, T>,
    ) -> Result<(), Error> {
        self.check_classes(logits.vocab())?;
        Ok(self.shard(loss).backward(logits, targets, saved, gradient)?)
    }

    /// As [`VocabParallel::backward`], with the gradient in place of the logits.
    ///
    /// # Errors
    /// As [`VocabParallel::backward`]. On error the logits are as they were.
    pub fn backward_in_place<'a, 'u, T: Element<Real = f32>>(
        &self,
        loss: &CrossEntropy<'_>,
        logits: LogitsMut<'_, T>,
        targets: impl Into<Targets<'a>>,
        saved: &[LogSumExp],
        upstream: impl Into<Upstream<'u>>,
    ) -> Result<(), Error> {
        self.check_classes(logits.vocab())?;
        Ok(self.shard(loss).backward_in_place(logits, targets, saved, upstream)?)
    }

    /// What [`LogProbs`] finds out about each row of the whole vocabulary: log-probabilities, the most probable tokens,
    /// entropy, samples. Ranks of targets take the logits of these: `target_logits`, which
    /// [`RowStats::target_logit`] has after an exchange without them.
    ///
    /// Two exchanges, of which the second is of [`RowStats::BYTES`] a row. Bias and mask are those of the shard. That all
    /// ranks ask the same is not checked, but for the rows and the vocabulary.
    ///
    /// # Errors
    /// As [`VocabParallel::cross_entropy`], and [`Error::Xent`] for what [`LogProbs::row_stats`] refuses.
    pub fn row_stats<T: Element<Real = f32>>(
        &self,
        ask: &LogProbs<'_>,
        logits: Logits<'_, T>,
        target_logits: Option<&[f32]>,
    ) -> Result<Vec<RowStats>, Error> {
        self.check_communicator()?;
        let rows = logits.rows();
        let mut shard = Shard::new(self.classes.start, self.vocab);
        if let Some(logits) = target_logits {
            shard = shard.target_logits(logits);
        }
        let mut stats = Vec::new();
        let mut local = || {
            self.check_classes(logits.vocab())?;
            stats = identities(rows)?;
            ask.row_stats(logits, shard, &mut stats)
        };
        let local = local();
        self.agree(Call::RowStats, rows, local.map(|()| 0))?;
        self.merge(&mut stats, RowStats::to_bytes, RowStats::from_bytes, RowStats::merge)?;
        Ok(stats)
    }

    fn forward<T: Element<Real = f32>>(
        &self,
        shard: &ShardedCrossEntropy<'_>,
        logits: Logits<'_, T>,
        targets: Targets<'_>,
        outputs: RowOutputs<'_>,
        checked: Result<(), xent::Error>,
    ) -> Result<Evaluation, Error> {
        self.check_communicator()?;
        let (rows, mut stats) = (logits.rows(), Vec::new());
        let local = || {
            checked?;
            self.check_classes(logits.vocab())?;
            shard.check_outputs(&outputs, rows)?;
            let fingerprint = shard.fingerprint(rows, targets)?;
            stats = identities(rows)?;
            shard.stats(logits, targets, &mut stats)?;
            Ok(fingerprint)
        };
        let local = local();
        self.agree(Call::Loss, rows, local)?;
        let merge = |a: &LossStats, b: &LossStats| Ok(a.merge(b));
        self.merge(&mut stats, LossStats::to_bytes, LossStats::from_bytes, merge)?;
        Ok(shard.evaluate(&stats, targets, outputs)?)
    }

    fn shard<'w>(&self, loss: &CrossEntropy<'w>) -> ShardedCrossEntropy<'w> {
        loss.clone().shard(Shard::new(self.classes.start, self.vocab))
    }

    fn check_classes(&self, classes: usize) -> Result<(), xent::Error> {
        if classes == self.classes.len() {
            return Ok(());
        }
        Err(xent::Error::Shard { first: self.classes.start, classes, vocab: self.vocab })
    }

    /// That an exchange is possible at all.
    fn check_communicator(&self) -> Result<(), Error> {
        if self.comm.test_inter() {
            return Err(Error::InterCommunicator);
        }
        if self.given_up.get() { Err(Error::GivenUp) } else { Ok(()) }
    }

    /// Comes back when all ranks have come, with `Ok` if all of them can go on.
    fn agree(&self, call: Call, rows: usize, local: Result<u64, xent::Error>) -> Result<(), Error> {
        let plan = Plan {
            call,
            rows,
            classes: self.classes(),
            vocab: self.vocab,
            fingerprint: *local.as_ref().unwrap_or(&0),
            error: local.as_ref().err().map(ToString::to_string),
        };
        let agreed = agree(&self.all_gather(plan.to_bytes())?);
        // The own error in full.
        local?;
        agreed
    }

    /// Replaces the statistics of this rank's classes by those of all, in the order of ranks.
    fn merge<S: Clone, const BYTES: usize>(
        &self,
        stats: &mut [S],
        to_bytes: impl Fn(&S) -> [u8; BYTES],
        from_bytes: impl Fn(&[u8; BYTES]) -> Result<S, xent::Error>,
        merge: impl Fn(&S, &S) -> Result<S, xent::Error>,
    ) -> Result<(), Error> {
        let ranks = self.comm.size() as usize;
        for stats in stats.chunks_mut((BATCH / BYTES / ranks).max(1)) {
            let mine = stats.iter().flat_map(&to_bytes).collect();
            let all = self.all_gather(mine)?;
            let (all, _) = all.as_chunks::<BYTES>();
            for (rank, theirs) in all.chunks(stats.len()).enumerate() {
                for (merged, bytes) in stats.iter_mut().zip(theirs) {
                    let theirs = from_bytes(bytes).map_err(|_| Error::Protocol { rank })?;
                    *merged = if rank == 0 { theirs } else { merge(merged, &theirs)? };
                }
            }
        }
        Ok(())
    }

    fn all_gather(&self, mine: Vec<u8>) -> Result<Vec<u8>, Error> {
        all_gather(self.comm, mine, self.timeout).ok_or_else(|| {
            self.given_up.set(true);
            let (rank, ranks) = (self.comm.rank() as usize, self.comm.size() as usize);
            Error::NoAnswer { rank, ranks, waited: self.timeout }
        })
    }
}

/// As many, if there is memory for them: rows of an empty shard may be any number.
fn identities<S: Clone + Default>(rows: usize) -> Result<Vec<S>, xent::Error> {
    let mut all = Vec::new();
    if all.try_reserve_exact(rows).is_err() {
        return Err(xent::Error::Overflow { rows, elements: size_of::<S>() });
    }
    all.resize(rows, S::default());
    Ok(all)
}
