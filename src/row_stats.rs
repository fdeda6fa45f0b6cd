//! Statistics of a row, or of a part of one, that can be merged.
#![forbid(unsafe_code)]

use crate::bytes::{In, Out, total_bytes};
use crate::kernel::logprobs::Wanted;
use crate::kernel::sum;
use crate::kernel::top::{MAX_TOP_K, Top};
use crate::kernel::total::Total;
use crate::logprobs::{Found, rounded};
use crate::{Error, LogSumExp, math};

/// No token.
pub(crate) const NONE: u32 = u32::MAX;

/// What the pass over a row found out, or over the shard of a vocabulary: merged with what was found over the other
/// shards it says everything about the row that [`LogProbs`](crate::LogProbs) does. What
/// [`LogProbs::row_stats`](crate::LogProbs::row_stats) yields.
///
/// [`RowStats::merge`] is commutative and associative, to the bit: sums are kept exactly. Shards that begin at multiples
/// of [`RowStats::CHUNK`] have the parts that a whole row has, and yield its bits; other shards the same within 1 ULP,
/// the varentropy within what [`LogProbs`](crate::LogProbs) says of it (`tests/shards.rs`). (The last digits of merged sums may depend on the order where logits are beyond 363,000, or
/// without fused multiply-add beyond 355.) [`RowStats::default`] is the identity. [`RowStats::to_bytes`] is a fixed
/// number of bytes for any transport.
///
/// What was not asked for in all of the merged parts is `None`.
///
/// ```
/// use xent::{LogProbs, Logits, RowStats, Shard};
///
/// let row = [1.0_f32, 3.0, 2.0, 0.0];
/// let part = |first: usize, x: &[f32]| -> Result<RowStats, xent::Error> {
///     let mut stats = [RowStats::default()];
///     let ask = LogProbs::new().targets(&[2i64]).top_k(2).entropy(true);
///     ask.row_stats(Logits::new(x, 1, 2)?, Shard::new(first, 4), &mut stats)?;
///     Ok(stats[0])
/// };
/// let row = part(0, &row[..2])?.merge(&part(2, &row[2..])?); // of two processes, say
/// assert_eq!(row.loss().map(|loss| loss as f32), Some(1.4401897));
/// assert_eq!(row.top_k().map(|top| top.id).collect::<Vec<_>>(), [1, 2]);
/// assert_eq!(row.argmax(), Some(1));
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RowStats {
    /// Over all classes but the target.
    pub(crate) all: Total,
    /// Over all but the target and the largest of the others.
    pub(crate) tail: Total,
    pub(crate) best: f32,
    pub(crate) best_id: u32,
    pub(crate) target: f32,
    pub(crate) target_id: u32,
    /// Other classes that are at least the target, and above it.
    pub(crate) ge: u64,
    pub(crate) gt: u64,
    pub(crate) first_id: u32,
    pub(crate) nan_id: u32,
    pub(crate) top: Top<f32>,
    pub(crate) drawn: Drawn,
    has: u8,
}

/// A token that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) score: f64,
    pub(crate) id: u32,
    pub(crate) logit: f32,
}

impl Drawn {
    const NOTHING: Drawn = Drawn { score: f64::NEG_INFINITY, id: NONE, logit: f32::NEG_INFINITY };

    pub(crate) fn offer(&mut self, other: Drawn) {
        if other.score > self.score || other.score == self.score && other.id < self.id {
            *self = other;
        }
    }
}

/// One of the tokens with the largest logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopToken {
    /// Its number in the whole vocabulary.
    pub id: u32,
    /// After temperature, bias and mask.
    pub logit: f32,
    /// Rounded to `f32`.
    pub logprob: f32,
}

const HAS_ENTROPY: u8 = 1;
const HAS_VARENTROPY: u8 = 2;
const HAS_RANKS: u8 = 4;
const HAS_DRAWN: u8 = 8;
const HAS_ALL: u8 = 15;

/// The distribution of a row, as far as anyone asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Distribution {
    /// The largest logit.
    pub(crate) max: f64,
    /// `-ln` of its probability.
    pub(crate) nll: f64,
    pub(crate) entropy: f64,
    pub(crate) varentropy: f64,
}

impl Distribution {
    /// From `e^(x - max)` and its first two moments about `max`, over all elements but `max` itself.
    pub(crate) fn new(max: f64, sum: f64, first: f64, second: f64) -> Self {
        let all = 1.0 + sum;
        // Not `max`, which would make 0 of NaN.
        let positive = |x: f64| if x < 0.0 { 0.0 } else { x };
        let (nll, mean) = (math::ln_1p(sum), positive(first) / all);
        let varentropy = positive(second / all - mean * mean);
        Distribution { max, nll, entropy: nll + mean, varentropy }
    }

    pub(crate) const NAN: Distribution =
        Distribution { max: f64::NAN, nll: f64::NAN, entropy: f64::NAN, varentropy: f64::NAN };

    /// 0 rather than -0 for a probability of 1.
    pub(crate) fn logprob(&self, z: f64) -> f64 {
        0.0 - ((self.max - z) + self.nll)
    }
}

/// What a part of a row was asked, besides [`Wanted`]: the rank of a target, to draw a token.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) target: bool,
    pub(crate) draw: bool,
}

impl Default for RowStats {
    /// The identity of [`RowStats::merge`]: no classes.
    fn default() -> Self {
        let empty = Total::empty(true);
        RowStats {
            all: empty,
            tail: empty,
            best: f32::NEG_INFINITY,
            best_id: NONE,
            target: f32::NEG_INFINITY,
            target_id: NONE,
            ge: 0,
            gt: 0,
            first_id: NONE,
            nan_id: NONE,
            top: Top::new(MAX_TOP_K),
            drawn: Drawn::NOTHING,
            has: HAS_ALL,
        }
    }
}

impl PartialEq for RowStats {
    fn eq(&self, other: &Self) -> bool {
        self.to_bytes() == other.to_bytes()
    }
}

impl RowStats {
    /// Where a shard has to begin so that merged results have the bits of the whole row: at a multiple of this many
    /// classes.
    pub const CHUNK: usize = sum::CHUNK;

    pub(crate) fn clear(&mut self, fused: bool, wanted: &Wanted, known: Known, first_id: u32) {
        let level = |level, flag| if wanted.level >= level { flag } else { 0 };
        (self.all, self.tail) = (Total::empty(fused), Total::empty(fused));
        (self.best, self.best_id) = (f32::NEG_INFINITY, NONE);
        (self.target, self.target_id) = (f32::NEG_INFINITY, NONE);
        (self.ge, self.gt) = (0, 0);
        (self.first_id, self.nan_id) = (first_id, NONE);
        self.top.clear(wanted.top_k);
        self.drawn = Drawn::NOTHING;
        self.has = level(sum::FIRST, HAS_ENTROPY)
            | level(sum::SECOND, HAS_VARENTROPY)
            | if wanted.ranks && known.target { HAS_RANKS } else { 0 }
            | if known.draw { HAS_DRAWN } else { 0 };
    }

    /// The statistics of the classes of both, which must not have any in common. They must stem from calls with the
    /// same options.
    pub fn merge(&self, other: &RowStats) -> RowStats {
        let mut merged = *self;
        merged.add(other);
        merged
    }

    pub(crate) fn add(&mut self, other: &RowStats) {
        let is_lower = other.best == self.best && other.best_id < self.best_id;
        if other.best > self.best || is_lower {
            let mut tail = other.tail;
            tail.merge(&self.all);
            self.tail = tail;
            (self.best, self.best_id) = (other.best, other.best_id);
        } else {
            self.tail.merge(&other.all);
        }
        self.all.merge(&other.all);
        self.flag_tail();
        if other.target_id != NONE {
            (self.target, self.target_id) = (other.target, other.target_id);
        }
        self.ge = self.ge.saturating_add(other.ge);
        self.gt = self.gt.saturating_add(other.gt);
        self.first_id = self.first_id.min(other.first_id);
        self.nan_id = self.nan_id.min(other.nan_id);
        self.top.merge(&other.top);
        self.drawn.offer(other.drawn);
        self.has &= other.has;
        if self.nan_id != NONE {
            self.forget_largest();
        }
    }

    /// What says that a row is lost says so of both sums, or it would depend on the order which of them does.
    pub(crate) fn flag_tail(&mut self) {
        (self.tail.nan, self.tail.inf) = (self.all.nan, self.all.inf);
    }

    /// Of a row with NaN, whose distribution and draw are not defined.
    pub(crate) fn forget_largest(&mut self) {
        (self.best, self.best_id) = (f32::NEG_INFINITY, NONE);
        self.tail = Total::empty(self.all.fused);
        self.flag_tail();
        self.drawn = Drawn::NOTHING;
    }

    /// The token with the largest logit, as temperature 0 draws it.
    pub(crate) fn draw_greedily(&mut self) {
        let (mut logit, mut id) = (self.best, self.best_id);
        if self.target > logit || self.target == logit && self.target_id < id {
            (logit, id) = (self.target, self.target_id);
        }
        if id != NONE && logit > f32::NEG_INFINITY {
            self.drawn = Drawn { score: logit.into(), id, logit };
        }
    }

    fn fused(&self) -> bool {
        self.all.fused
    }

    pub(crate) fn distribution(&self) -> Distribution {
        let (max, other) = if self.target > self.best {
            (self.target, self.best)
        } else {
            (self.best, self.target)
        };
        let poisoned = self.all.nan | self.all.inf || self.target.is_nan();
        if poisoned || !max.is_finite() {
            return Distribution::NAN;
        }
        let max = f64::from(max);
        let mut distribution = [0.0; 3];
        let tail = self.tail.moments();
        if !tail.sum.is_empty() {
            let factor = math::exp(tail.sum.ln_unit(self.fused(), -max));
            let by = max - f64::from(tail.sum.origin());
            let [sum, first, second] = [tail.sum.sum, tail.first, tail.second].map(|v| factor * v);
            distribution = [sum, by * sum - first, second - by * (2.0 * first - by * sum)];
        }
        if other > f32::NEG_INFINITY {
            let below = max - f64::from(other);
            let e = math::exp(-below);
            if e > 0.0 {
                for (v, power) in distribution.iter_mut().zip([e, e * below, e * below * below]) {
                    *v += power;
                }
            }
        }
        let [sum, first, second] = distribution;
        Distribution::new(max, sum, first, second)
    }

    /// The negative log-probability of the target, with the bits that [`CrossEntropy`](crate::CrossEntropy) yields
    /// before it rounds to `f32`; `None` if none of the shards has it.
    ///
    /// Rounded to `f32` within 1 ULP. NaN for rows with NaN or +inf, or nothing but -inf.
    pub fn loss(&self) -> Option<f64> {
        self.has_target().then(|| self.all.sum().loss(self.fused(), self.target))
    }

    fn has_target(&self) -> bool {
        self.target_id != NONE
    }

    /// The log-probability of the target: the negative of [`RowStats::loss`].
    pub fn logprob(&self) -> Option<f64> {
        self.loss().map(|loss| 0.0 - loss)
    }

    /// The transformed logit of the target, which other shards need to count its rank
    /// ([`Shard::target_logits`](crate::Shard::target_logits)).
    pub fn target_logit(&self) -> Option<f32> {
        self.has_target().then_some(self.target)
    }

    /// `ln(sum_j e^z[j])`: -inf for nothing but -inf or no classes, +inf if there is one, NaN if there is one.
    pub fn logsumexp(&self) -> f64 {
        self.lse().value()
    }

    fn lse(&self) -> sum::Lse {
        let sum = self.all.sum();
        match self.loss() {
            Some(loss) => sum.lse_with(self.fused(), self.target, loss),
            None => sum.lse(self.fused()),
        }
    }

    /// The logsumexp as [`CrossEntropy::backward`](crate::CrossEntropy::backward) needs it: with it each shard computes
    /// the gradient of its own classes.
    pub fn saved(&self) -> LogSumExp {
        crate::kernel::single::saved(self.lse())
    }

    /// The log-probability of a token with that logit (as the transform leaves it).
    pub fn logprob_of(&self, logit: f32) -> f64 {
        self.distribution().logprob(logit.into())
    }

    /// How many logits are at least that of the target, itself among them: what vLLM calls rank. 0 for a NaN.
    pub fn rank(&self) -> Option<u64> {
        self.ranks().map(|(ge, _)| ge)
    }

    /// One more than how many logits are above that of the target. 0 for a NaN.
    pub fn strict_rank(&self) -> Option<u64> {
        self.ranks().map(|(_, gt)| gt)
    }

    fn ranks(&self) -> Option<(u64, u64)> {
        (self.has(HAS_RANKS) && self.has_target()).then(|| {
            if self.target.is_nan() {
                (0, 0)
            } else {
                (self.ge.saturating_add(1), self.gt.saturating_add(1))
            }
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.has & flag != 0
    }

    /// The tokens with the largest logits, in descending order, of equals the lowest first: as many as were asked for,
    /// or as there are classes.
    pub fn top_k(&self) -> impl Iterator<Item = TopToken> + '_ {
        let distribution = self.distribution();
        let mut last = f32::INFINITY;
        self.top.entries().iter().map(move |&(logit, id)| {
            let logprob: f32 = rounded(self.logprob_at(&distribution, id, logit));
            // The target may be rounded up where one before it, with the same logit, is not.
            if logprob.is_nan() || logprob < last {
                last = logprob;
            }
            TopToken { id, logit, logprob: last }
        })
    }

    /// Everything, for [`TokenOutputs`](crate::TokenOutputs).
    pub(crate) fn found(&self) -> Found<'_, f32> {
        Found {
            distribution: self.distribution(),
            logprob: self.logprob(),
            logsumexp: self.logsumexp(),
            ranks: self.ranks().unwrap_or((0, 0)),
            top: self.top.entries(),
            argmax: self.argmax().map_or(-1, i64::from),
            drawn: self.drawn().map(|drawn| (drawn.id, drawn.logit.into())),
        }
    }

    /// The target has the log-probability that its loss says, to the bit.
    pub(crate) fn logprob_at(&self, distribution: &Distribution, id: u32, logit: f32) -> f64 {
        match self.logprob() {
            Some(logprob) if id == self.target_id => logprob,
            _ => distribution.logprob(logit.into()),
        }
    }

    /// The first token with the largest logit, or with a NaN if there is one; `None` without classes.
    pub fn argmax(&self) -> Option<u32> {
        if self.nan_id != NONE {
            return Some(self.nan_id);
        }
        let mut best = (self.best, self.best_id);
        if self.target > best.0 || self.target == best.0 && self.target_id < best.1 {
            best = (self.target, self.target_id);
        }
        // With nothing but -inf, as in PyTorch, the first.
        let id = if best.0 == f32::NEG_INFINITY { self.first_id } else { best.1 };
        (id != NONE).then_some(id)
    }

    /// `-sum_j p[j] ln p[j]` in nats, if it was asked for. Also where it is tiny all digits count: see
    /// [`LogProbs`](crate::LogProbs).
    pub fn entropy(&self) -> Option<f64> {
        self.has(HAS_ENTROPY).then(|| self.distribution().entropy)
    }

    /// The variance of `ln p[j]` under `p`, if it was asked for.
    pub fn varentropy(&self) -> Option<f64> {
        self.has(HAS_VARENTROPY).then(|| self.distribution().varentropy)
    }

    /// The token that was drawn; `None` if nothing was asked to be, or nothing can be: in a row with NaN or +inf, or with
    /// nothing but -inf.
    pub fn sampled(&self) -> Option<u32> {
        self.drawn().map(|drawn| drawn.id)
    }

    pub(crate) fn drawn(&self) -> Option<Drawn> {
        let poisoned =
            self.all.nan | self.all.inf | self.target.is_nan() || self.target == f32::INFINITY;
        (self.has(HAS_DRAWN) && !poisoned && self.drawn.id != NONE).then_some(self.drawn)
    }
}

/// Of the format of [`RowStats::to_bytes`], its first byte.
const VERSION: u8 = 1;

/// Of a [`Total`]: with both moments.
const SUMS: usize = 3;

impl RowStats {
    /// The size of [`RowStats::to_bytes`].
    pub const BYTES: usize = 1 + 2 * total_bytes(SUMS) + 4 * 6 + 8 * 2 + 16 + 1 + 4 + 8 * MAX_TOP_K;

    /// Everything, in little-endian order on every machine. The format is that of this version of the crate.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = Out(&mut bytes);
        out.put([VERSION]);
        out.total(&self.all, SUMS);
        out.total(&self.tail, SUMS);
        for x in [self.best, self.target] {
            out.put(x.to_le_bytes());
        }
        for x in [self.best_id, self.target_id, self.first_id, self.nan_id] {
            out.put(x.to_le_bytes());
        }
        for x in [self.ge, self.gt] {
            out.put(x.to_le_bytes());
        }
        out.put(self.drawn.score.to_le_bytes());
        out.put(self.drawn.id.to_le_bytes());
        out.put(self.drawn.logit.to_le_bytes());
        out.put([self.has]);
        out.put((self.top.k() as u16).to_le_bytes());
        out.put((self.top.entries().len() as u16).to_le_bytes());
        for &(value, id) in self.top.entries() {
            out.put(value.to_le_bytes());
            out.put(id.to_le_bytes());
        }
        bytes
    }

    /// What [`RowStats::to_bytes`] was called on.
    ///
    /// # Errors
    /// [`Error::RowStatsBytes`] for bytes that it does not make.
    ///
    /// ```
    /// use xent::RowStats;
    ///
    /// let bytes = RowStats::default().to_bytes();
    /// assert_eq!(RowStats::from_bytes(&bytes)?, RowStats::default());
    /// assert!(RowStats::from_bytes(&[0xff; RowStats::BYTES]).is_err());
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<RowStats, Error> {
        Self::read(In(bytes)).ok_or(Error::RowStatsBytes)
    }

    fn read(mut from: In<'_>) -> Option<RowStats> {
        if from.take()? != [VERSION] {
            return None;
        }
        let (all, tail) = (from.total(SUMS)?, from.total(SUMS)?);
        let [best, target] = [from.f32()?, from.f32()?];
        let [best_id, target_id, first_id, nan_id] =
            [from.u32()?, from.u32()?, from.u32()?, from.u32()?];
        let [ge, gt] = [from.u64()?, from.u64()?];
        let drawn = Drawn {
            score: from.take().map(f64::from_le_bytes)?,
            id: from.u32()?,
            logit: from.f32()?,
        };
        let [has] = from.take()?;
        let k = usize::from(from.take().map(u16::from_le_bytes)?);
        let len = usize::from(from.take().map(u16::from_le_bytes)?);
        let counts_fit = ge < 1 << 62 && gt < 1 << 62;
        if has > HAS_ALL || k > MAX_TOP_K || len > k || !counts_fit || best.is_nan() {
            return None;
        }
        let mut top = Top::new(k);
        for _ in 0..len {
            let (value, id) = (from.f32()?, from.u32()?);
            top.insert(value, id);
        }
        top.sort();
        Some(RowStats {
            all,
            tail,
            best,
            best_id,
            target,
            target_id,
            ge,
            gt,
            first_id,
            nan_id,
            top,
            drawn,
            has,
        })
    }
}
