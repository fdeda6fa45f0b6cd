//! What shards of a vocabulary merge to a loss.
#![forbid(unsafe_code)]

use super::bytes::{In, Out, total_bytes};
use super::expsum::Lse;
use super::pass::Pass;
use super::total::{Moments, Total};
use crate::data::error::Error;
use crate::data::saved::LogSumExp;
use crate::math::exact::ExactSum;
use crate::simd::float_env;
use std::ops::Range;

/// What the pass over a row found out for its loss, or over the shard of a vocabulary: what processes that have a part
/// of the vocabulary each tell each other. What [`ShardedCrossEntropy::stats`](crate::ShardedCrossEntropy::stats)
/// yields and [`ShardedCrossEntropy::evaluate`](crate::ShardedCrossEntropy::evaluate) takes.
///
/// [`LossStats::merge`] is commutative and associative, to the bit: sums are kept exactly, as in
/// [`RowStats`](crate::RowStats), which is ten times as large and knows ranks, the most probable tokens and the entropy.
/// With shards that begin at multiples of [`LossStats::CHUNK`] the loss has the bits of the whole row; with others it is
/// the same within 1 ULP, and with label smoothing always within 3 (of a loss that is not close to 0: `tests/sharded.rs`). (The
/// last digits of merged sums may depend on the order where logits are beyond 363,000, or without fused multiply-add beyond 355, or
/// where only some of the machines have that.)
/// [`LossStats::default`] is the identity.
///
/// ```
/// use xent::{CrossEntropy, Logits, LossStats, Shard};
///
/// let row = [1.0_f32, 3.0, 2.0, 0.0];
/// let part = |first: usize, x: &[f32]| -> Result<LossStats, xent::Error> {
///     let mut stats = [LossStats::default()];
///     let shard = CrossEntropy::new().shard(Shard::new(first, 4));
///     shard.stats(Logits::new(x, 1, 2)?, &[2i64], &mut stats)?;
///     Ok(stats[0])
/// };
/// let row = part(0, &row[..2])?.merge(&part(2, &row[2..])?); // of two processes, say
/// assert_eq!(row.classes(), 4);
/// assert_eq!(row.loss().map(|loss| loss as f32), Some(1.4401897));
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossStats {
    /// Over all classes but the target; without moments.
    total: Total,
    /// Of all transformed logits, the target's too, and whether one was infinite; only for label smoothing.
    logits: ExactSum,
    masked: bool,
    target: f32,
    /// How many shards have the target: one, or something is wrong.
    owners: u32,
    classes: u64,
    /// Adds up to that of the whole vocabulary if parts leave no gap and do not overlap.
    seams: u64,
}

/// A number for where a range begins, less one for where it ends: those of neighbours cancel.
pub(crate) fn seams(classes: Range<usize>) -> u64 {
    // The finalizer of MurmurHash3.
    let mix = |at: usize| {
        let mut x = at as u64;
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            x = (x ^ x >> 33).wrapping_mul(factor);
        }
        x ^ x >> 33
    };
    mix(classes.start).wrapping_sub(mix(classes.end))
}

impl Default for LossStats {
    /// The identity of [`LossStats::merge`]: no classes.
    fn default() -> Self {
        LossStats::empty(true)
    }
}

impl LossStats {
    /// Where a shard has to begin so that merged results have the bits of the whole row: at a multiple of this many
    /// classes.
    pub const CHUNK: usize = crate::kernel::blocks::CHUNK;

    pub(crate) fn empty(fused: bool) -> Self {
        LossStats {
            total: Total::empty(fused),
            logits: ExactSum::ZERO,
            masked: false,
            target: f32::NEG_INFINITY,
            owners: 0,
            classes: 0,
            seams: 0,
        }
    }

    /// Adds classes, whose logits are only summed for label smoothing.
    pub(crate) fn add_part(
        &mut self,
        classes: Range<usize>,
        has_target: bool,
        pass: &Pass,
        smoothed: bool,
    ) {
        if classes.is_empty() {
            return;
        }
        self.total.add(&Moments { sum: pass.sum, first: 0.0, second: 0.0 });
        if has_target {
            self.target = pass.z as f32;
            self.owners += 1;
        }
        if smoothed {
            let logits = pass.differences + classes.len() as f64 * pass.z;
            if logits.is_finite() {
                self.logits.add(logits, 0);
            } else {
                self.masked = true;
            }
        }
        self.classes += classes.len() as u64;
        self.seams = self.seams.wrapping_add(seams(classes));
    }

    /// The statistics of the classes of both, which must not have any in common: when all are merged
    /// [`ShardedCrossEntropy::evaluate`](crate::ShardedCrossEntropy::evaluate) finds out. They must stem from calls with the same
    /// options, which it cannot.
    pub fn merge(&self, other: &LossStats) -> LossStats {
        float_env::scope(|| self.merge_here(other))
    }

    fn merge_here(&self, other: &LossStats) -> LossStats {
        let mut merged = *self;
        merged.total.merge(&other.total);
        merged.logits.merge(&other.logits);
        merged.masked |= other.masked;
        merged.owners = self.owners.saturating_add(other.owners);
        merged.classes = self.classes.saturating_add(other.classes);
        merged.seams = self.seams.wrapping_add(other.seams);
        if other.owners > 0 {
            // Of two, which is an error, the one that does not depend on the order.
            let is_other = self.owners == 0 || other.target.total_cmp(&self.target).is_gt();
            merged.target = if is_other { other.target } else { self.target };
        }
        merged
    }

    /// How many classes were merged.
    pub fn classes(&self) -> u64 {
        self.classes
    }

    /// Whether each class of a vocabulary was merged once.
    pub(crate) fn is_seamless(&self, vocab: usize) -> bool {
        self.seams == seams(0..vocab)
    }

    pub(crate) fn owners(&self) -> u32 {
        self.owners
    }

    /// The negative log-probability of the target, with the bits that [`CrossEntropy`](crate::CrossEntropy) yields
    /// before it rounds to `f32`; `None` if none of the shards has it.
    ///
    /// Rounded to `f32` within 1 ULP. NaN for rows with NaN or +inf, or nothing but -inf.
    pub fn loss(&self) -> Option<f64> {
        let loss = || self.total.sum().loss(self.total.fused, self.target);
        (self.owners > 0).then(|| float_env::scope(loss))
    }

    /// The transformed logit of the target.
    pub fn target_logit(&self) -> Option<f32> {
        (self.owners > 0).then_some(self.target)
    }

    /// `ln(sum_j e^z[j])`: -inf for nothing but -inf or no classes, +inf if there is one, NaN if there is one.
    pub fn logsumexp(&self) -> f64 {
        float_env::scope(|| self.lse().value())
    }

    /// The logsumexp as [`ShardedCrossEntropy::backward`](crate::ShardedCrossEntropy::backward) needs it.
    pub fn saved(&self) -> LogSumExp {
        float_env::scope(|| Lse::saved(self.lse()))
    }

    fn lse(&self) -> Lse {
        let sum = self.total.sum();
        match self.loss() {
            Some(loss) => sum.lse_with(self.total.fused, self.target, loss),
            None => sum.lse(self.total.fused),
        }
    }

    /// As if one pass had seen the whole row.
    pub(crate) fn pass(&self) -> Pass {
        let z = f64::from(self.target);
        let differences = if self.masked {
            f64::NEG_INFINITY
        } else {
            self.logits.relative_to(0) - self.classes as f64 * z
        };
        Pass {
            nll: self.loss().unwrap_or(f64::NAN),
            lse: self.lse(),
            sum: self.total.sum(),
            z,
            slope: 1.0,
            differences,
        }
    }
}

/// Of the format of [`LossStats::to_bytes`], its first byte.
const VERSION: u8 = 1;

impl LossStats {
    /// The size of [`LossStats::to_bytes`].
    pub const BYTES: usize = 1 + total_bytes(1) + ExactSum::BYTES + 1 + 4 + 4 + 2 * 8;

    /// Everything, in little-endian order on every machine. The format is that of this version of the crate.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = Out(&mut bytes);
        out.put([VERSION]);
        out.total(&self.total, 1);
        out.put(self.logits.to_bytes());
        out.put([u8::from(self.masked)]);
        out.put(self.target.to_le_bytes());
        out.put(self.owners.to_le_bytes());
        out.put(self.classes.to_le_bytes());
        out.put(self.seams.to_le_bytes());
        bytes
    }

    /// What [`LossStats::to_bytes`] was called on.
    ///
    /// # Errors
    /// [`Error::RowStatsBytes`] for bytes that it does not make.
    ///
    /// ```
    /// use xent::LossStats;
    ///
    /// let bytes = LossStats::default().to_bytes();
    /// assert_eq!(LossStats::from_bytes(&bytes)?, LossStats::default());
    /// assert!(LossStats::from_bytes(&[0xff; LossStats::BYTES]).is_err());
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<LossStats, Error> {
        float_env::scope(|| Self::read(In(bytes))).ok_or(Error::RowStatsBytes)
    }

    fn read(mut from: In<'_>) -> Option<LossStats> {
        if from.take()? != [VERSION] {
            return None;
        }
        let (total, logits) = (from.total(1)?, from.sum()?);
        let [masked] = from.take()?;
        let (target, owners) = (from.f32()?, from.u32()?);
        let (classes, seams) = (from.u64()?, from.u64()?);
        let masked = (masked < 2).then_some(masked == 1)?;
        Some(LossStats { total, logits, masked, target, owners, classes, seams })
    }
}
