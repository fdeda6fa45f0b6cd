//! The loss where the vocabulary is spread over processes.
#![forbid(unsafe_code)]

use crate::api::cross_entropy::{Call, CrossEntropy, RowOutputs};
use crate::api::evaluation::Evaluation;
use crate::api::gradient::{Gradient, Upstream, in_place};
use crate::api::logprobs::Shard;
use crate::data::error::Error;
use crate::data::logits::{Logits, LogitsMut};
use crate::data::saved::LogSumExp;
use crate::data::targets::{AnyTargets, RowTarget, Targets};
use crate::dispatch::element::Element;
use crate::kernel::loss_stats::LossStats;
use crate::kernel::outputs::RowSlices;
use crate::kernel::pass::Trained;
use crate::kernel::row::Row;
use crate::simd::float_env;

/// Cross-entropy of a vocabulary of which each process has a part of the columns, as with tensor parallelism: what
/// [`CrossEntropy::shard`] makes.
///
/// Each process computes [`stats`](ShardedCrossEntropy::stats) of its part; the processes exchange them, all-gather or
/// all-reduce with [`LossStats::merge`]; then each one has the loss of all rows
/// ([`evaluate`](ShardedCrossEntropy::evaluate)) and computes the gradient of its own classes
/// ([`backward`](ShardedCrossEntropy::backward)) without any further exchange. Megatron-LM's
/// `vocab_parallel_cross_entropy` takes three all-reduces, of the maximum, the target's logit and the sum.
///
/// Logits are computed in `f32`. Targets are class ids of the whole vocabulary; all other options are those of
/// [`CrossEntropy`], but for class weights. A mask is that of the shard.
///
/// ```
/// use xent::{CrossEntropy, Gradient, Logits, LogitsMut, LossStats, RowOutputs, Shard};
///
/// let (left, right, targets) = ([1.0_f32, 3.0], [2.0_f32, 0.0], [2i64]);
/// let ce = CrossEntropy::new();
/// let shards = [ce.clone().shard(Shard::new(0, 4)), ce.shard(Shard::new(2, 4))];
///
/// // Each process for itself:
/// let mut stats = [[LossStats::default()]; 2];
/// shards[0].stats(Logits::new(&left, 1, 2)?, &targets, &mut stats[0])?;
/// shards[1].stats(Logits::new(&right, 1, 2)?, &targets, &mut stats[1])?;
/// // After an exchange, all of them:
/// let merged = [stats[0][0].merge(&stats[1][0])];
/// let mut saved = [Default::default()];
/// let out = RowOutputs::new().saved(&mut saved);
/// let evaluation = shards[0].evaluate(&merged, &targets, out)?;
/// assert_eq!(evaluation.loss() as f32, 1.4401897);
/// // And each for itself again:
/// let mut g = [0.0; 2];
/// let gradient = Gradient::new(LogitsMut::new(&mut g, 1, 2)?);
/// shards[1].backward(Logits::new(&right, 1, 2)?, &targets, &saved, gradient)?;
/// assert_eq!(g, [-0.7631172, 0.032058604]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ShardedCrossEntropy<'a> {
    loss: CrossEntropy<'a>,
    first: usize,
    vocab: usize,
}

impl<'w> CrossEntropy<'w> {
    /// The same loss, of which this process has a shard of the vocabulary. ([`Shard::target_logits`] are of no use to it.)
    pub fn shard(self, shard: Shard<'_>) -> ShardedCrossEntropy<'w> {
        ShardedCrossEntropy { loss: self, first: shard.first, vocab: shard.vocab }
    }
}

impl ShardedCrossEntropy<'_> {
    /// What the shard has to say about each row: its logits are `[rows, classes]`, one of `out` per row. Reads the
    /// logits once, and does not allocate, except for [`Logits::classes_first`]. Ignored rows are not read, and yield [`LossStats::default`].
    ///
    /// # Errors
    /// As [`CrossEntropy::evaluate`], and [`Error::Shard`] for a shard that is not part of the vocabulary,
    /// [`Error::OutputLength`] unless there is one of `out` per row, [`Error::Option`] for class weights and for targets
    /// that are probabilities. On error `out` is as it was.
    pub fn stats<'a, T: Element<Real = f32>>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        out: &mut [LossStats],
    ) -> Result<(), Error> {
        let out = RowSlices { stats: Some(out), ..RowSlices::default() };
        self.run(Call::new(Some(logits), targets.into(), out, None))
    }

    /// The loss of all rows, from what the shards of the whole vocabulary merged to. Without argmax: see
    /// [`RowStats`](crate::RowStats) for it.
    ///
    /// # Errors
    /// Those of options and targets as [`CrossEntropy::evaluate`], with as many rows as there are of `merged`;
    /// [`Error::ShardClasses`], [`Error::ShardSeams`] and [`Error::ShardTarget`] for a row whose shards are not the whole
    /// vocabulary, each class once; [`Error::Missing`] for an argmax. On error the outputs are as they were.
    pub fn evaluate<'a>(
        &self,
        merged: &[LossStats],
        targets: impl Into<Targets<'a>>,
        outputs: RowOutputs<'_, f32>,
    ) -> Result<Evaluation, Error> {
        let targets = targets.into();
        float_env::scope(|| self.evaluate_here(merged, targets, outputs))
    }

    fn evaluate_here(
        &self,
        merged: &[LossStats],
        targets: Targets<'_>,
        outputs: RowOutputs<'_, f32>,
    ) -> Result<Evaluation, Error> {
        let (loss, rows, vocab) = (&self.loss, merged.len(), self.vocab);
        self.check_weights()?;
        loss.check_reduction()?;
        loss.check_options(rows, vocab)?;
        let config = loss.config::<f32>(vocab, 0)?;
        let targets = targets.ids_only()?;
        let targets = AnyTargets::<f32>::new(targets, loss.ignored, rows, vocab)?;
        self.check_outputs(&outputs, rows)?;
        let mut out = outputs.slices;
        for (row, stats) in merged.iter().enumerate() {
            let RowTarget::Class(target) = targets.get(row) else { continue };
            if stats.classes() != vocab as u64 {
                let classes = stats.classes();
                return Err(Error::ShardClasses { row, classes, vocab });
            }
            if !stats.is_seamless(vocab) {
                return Err(Error::ShardSeams { row });
            }
            if stats.owners() != 1 {
                return Err(Error::ShardTarget { row, target, shards: stats.owners() });
            }
        }
        let mut kept = Vec::new();
        if kept.try_reserve_exact(rows).is_err() {
            return Err(Error::Overflow { rows, elements: vocab });
        }
        for (i, stats) in merged.iter().enumerate() {
            let RowTarget::Class(_) = targets.get(i) else {
                out.write_ignored(i);
                kept.push(Row::IGNORED);
                continue;
            };
            let pass = stats.pass();
            let token_weight = loss.token_weights.map_or(1.0, |weights| weights.get(i));
            let each = config.class_loss(1.0, &pass);
            let row = config.row(each, pass.nll, 1.0, &pass.lse, token_weight, false);
            kept.push(row);
            out.write_trained(
                i,
                Trained { row, lse: pass.lse, argmax: -1, pass },
                pass.lse.saved(),
            );
        }
        Ok(Evaluation::new(&kept, false, loss.reduction, loss.empty_mean))
    }

    /// The gradient by the logits of this shard, from the merged statistics: `saved` is what
    /// [`ShardedCrossEntropy::evaluate`] wrote to [`RowOutputs::saved`]. The bits are those that
    /// [`CrossEntropy::backward`] computes for these classes with the same `saved`. A mean is over the rows of the call.
    ///
    /// # Errors
    /// As [`CrossEntropy::backward`] and [`ShardedCrossEntropy::stats`]. On error nothing was written.
    pub fn backward<'a, T: Element<Real = f32>>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        saved: &[LogSumExp],
        gradient: Gradient<'_, T>,
    ) -> Result<(), Error> {
        let gradient = Some(gradient.rows());
        let call = Call::new(Some(logits), targets.into(), RowSlices::default(), gradient);
        self.run(Call { saved: Some(saved), ..call })
    }

    /// As [`ShardedCrossEntropy::backward`], with the gradient in place of the logits.
    ///
    /// # Errors
    /// As [`ShardedCrossEntropy::backward`]. On error the logits are as they were.
    pub fn backward_in_place<'a, 'u, T: Element<Real = f32>>(
        &self,
        logits: LogitsMut<'_, T>,
        targets: impl Into<Targets<'a>>,
        saved: &[LogSumExp],
        upstream: impl Into<Upstream<'u>>,
    ) -> Result<(), Error> {
        let gradient = in_place(logits, upstream.into());
        let call = Call::new(None, targets.into(), RowSlices::default(), gradient);
        self.run(Call { saved: Some(saved), ..call })
    }

    /// Whether [`ShardedCrossEntropy::evaluate`] would write so many rows into these: for processes that have to agree that
    /// all will succeed before they exchange anything.
    ///
    /// # Errors
    /// [`Error::OutputLength`], and [`Error::Missing`] for an argmax.
    pub fn check_outputs(&self, outputs: &RowOutputs<'_>, rows: usize) -> Result<(), Error> {
        if outputs.count_correct {
            return Err(Error::Missing { output: "argmax", needs: "RowStats" });
        }
        outputs.slices.check(rows)
    }

    /// Whether [`ShardedCrossEntropy::backward`] would write the gradient of so many rows and classes, as
    /// [`ShardedCrossEntropy::check_outputs`].
    ///
    /// # Errors
    /// [`Error::GradientShape`], and [`Error::InputLength`] for upstream gradients.
    pub fn check_gradient<T>(
        &self,
        gradient: &Gradient<'_, T>,
        rows: usize,
        classes: usize,
    ) -> Result<(), Error> {
        gradient.check((rows, classes))
    }

    /// A number that all processes which share so many rows have in common: of the vocabulary, the options (other than
    /// mask and backend), the targets and the token weights. Ids to ignore count as a set.
    /// Different numbers say that statistics must not be merged.
    ///
    /// ```
    /// use xent::{CrossEntropy, Shard};
    ///
    /// let ce = CrossEntropy::new();
    /// let (a, b) = (ce.clone().shard(Shard::new(0, 4)), ce.clone().shard(Shard::new(2, 4)));
    /// assert_eq!(a.fingerprint(2, &[2i64, 3])?, b.fingerprint(2, &[2i32, 3])?);
    /// assert_ne!(a.fingerprint(2, &[2i64, 3])?, b.fingerprint(2, &[3i64, 2])?);
    /// let c = ce.z_loss(1e-4).shard(Shard::new(2, 4));
    /// assert_ne!(a.fingerprint(2, &[2i64, 3])?, c.fingerprint(2, &[2i64, 3])?);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of the targets, as [`ShardedCrossEntropy::stats`].
    pub fn fingerprint<'a>(
        &self,
        rows: usize,
        targets: impl Into<Targets<'a>>,
    ) -> Result<u64, Error> {
        let targets = targets.into().ids_only()?;
        let targets = AnyTargets::<f32>::new(targets, self.loss.ignored, rows, self.vocab)?;
        let mut hash = self.vocab as u64;
        let mut mix = |word: u64| {
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        };
        self.loss.common().into_iter().for_each(&mut mix);
        for row in 0..rows {
            let target = match targets.get(row) {
                RowTarget::Class(class) => class as u64,
                _ => u64::MAX,
            };
            mix(target);
            let weight = self.loss.token_weights.filter(|weights| weights.len() == rows);
            mix(weight.map_or(0, |weights| float_env::scope(|| weights.get(row).to_bits())));
        }
        Ok(hash)
    }

    fn run<T: Element<Real = f32>>(&self, call: Call<'_, T>) -> Result<(), Error> {
        let (first, classes, vocab) = (self.first, call.vocab(), self.vocab);
        if first.checked_add(classes).is_none_or(|end| end > vocab) {
            return Err(Error::Shard { first, classes, vocab });
        }
        self.check_weights()?;
        self.loss.run(Call { shard: Some((first, vocab)), ..call }, false)
    }

    /// Of which a shard could not tell the weight of a target that is elsewhere.
    fn check_weights(&self) -> Result<(), Error> {
        let (option, value) = ("class_weights", "given".to_owned());
        match self.loss.class_weights {
            Some(_) => Err(Error::Option { option, value, range: "none for a sharded vocabulary" }),
            None => Ok(()),
        }
    }
}
