//! Statistics of a row, or of a part of one, that can be merged.
#![forbid(unsafe_code)]

use super::bytes::{In, Out, total_bytes};
use super::loss_stats::seams;
use super::part::Part;
use super::sum;
use super::top::{MAX_TOP_K, Top};
use super::total::Total;
use super::transform::Transform;
use crate::data::error::{Error, number};
use crate::data::number::Float;
use crate::data::saved::LogSumExp;
use crate::math;
use crate::simd::float_env;

/// No token.
pub(crate) const NONE: u32 = u32::MAX;

/// What the pass over a row found out, or over the shard of a vocabulary: merged with what was found over the other
/// shards it says everything about the row that [`LogProbs`](crate::LogProbs) does. What
/// [`LogProbs::row_stats`](crate::LogProbs::row_stats) yields.
///
/// [`RowStats::merge`] is commutative and associative, to the bit: sums are kept exactly. It refuses shards that overlap;
/// what has a gap in it answers nothing until that is filled, and [`RowStats::check`] says whether all classes of the
/// vocabulary are there. Shards that begin at multiples
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
/// let row = part(0, &row[..2])?.merge(&part(2, &row[2..])?)?; // of two processes, say
/// row.check(0)?;
/// assert_eq!(row.loss().map(|loss| loss as f32), Some(1.4401897));
/// assert_eq!(row.top_k().map(|top| top.id).collect::<Vec<_>>(), [1, 2]);
/// assert_eq!(row.argmax(), Some(1));
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RowStats {
    /// Over all classes: nothing of it depends on the target.
    pub(crate) all: Total,
    /// Over all but the largest.
    pub(crate) tail: Total,
    /// Over all but the target, without moments: what the loss is made of.
    pub(crate) others: Total,
    /// The largest logit before the temperature, as all logits here.
    pub(crate) best: f32,
    pub(crate) best_id: u32,
    pub(crate) target: f32,
    pub(crate) target_id: u32,
    /// Other classes that are at least the target, and above it.
    pub(crate) ge: u64,
    pub(crate) gt: u64,
    pub(crate) nan_id: u32,
    pub(crate) top: Top<f32>,
    pub(crate) drawn: Drawn,
    has: u8,
    classes: Classes,
    temperature: f64,
    /// That of the transform, which no shard has.
    origin: f32,
}

/// Which classes of the vocabulary were seen.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Classes {
    /// Of the whole vocabulary; 0 if nothing was seen.
    vocab: u32,
    /// From the first of them to beyond the last: `NONE` and 0 if there are none.
    first: u32,
    end: u32,
    count: u64,
    /// As of [`crate::LossStats`].
    seams: u64,
}

impl Classes {
    const NONE: Classes = Classes { vocab: 0, first: NONE, end: 0, count: 0, seams: 0 };

    fn new(vocab: u32, first: u32, end: u32) -> Self {
        if first >= end {
            return Classes { vocab, ..Classes::NONE };
        }
        let count = u64::from(end - first);
        Classes { vocab, first, end, count, seams: seams(first as usize..end as usize) }
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether each class from the first to the last was seen once.
    fn is_contiguous(&self) -> bool {
        self.is_empty() || self.seams == seams(self.first as usize..self.end as usize)
    }

    fn with(&self, other: &Classes) -> Classes {
        Classes {
            vocab: self.vocab.max(other.vocab),
            first: self.first.min(other.first),
            end: self.end.max(other.end),
            count: self.count.saturating_add(other.count),
            seams: self.seams.wrapping_add(other.seams),
        }
    }

    /// Whether both have a class for sure. Parts with gaps may each have what the other lacks.
    fn overlap(&self, other: &Classes) -> bool {
        if self.is_empty() || other.is_empty() {
            return false;
        }
        let both = self.with(other);
        let too_many = both.count > u64::from(both.end) - u64::from(both.first);
        let meet = self.first < other.end && other.first < self.end;
        too_many || meet && self.is_contiguous() && other.is_contiguous()
    }
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
        // Not `max`, which would make 0 of NaN; and of two zeros one, whatever the order of sums.
        let positive = |x: f64| if x < 0.0 { 0.0 } else { x + 0.0 };
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

/// Memory for one row at a time.
pub(crate) struct Scratch<R> {
    pub(crate) stats: RowStats,
    pub(crate) top: Top<R>,
}

/// What was found about a row, in numbers that are not rounded yet.
pub(crate) struct Found<'s, R> {
    pub(crate) distribution: Distribution,
    /// Of the target, if the pass had a sum without it; or else that of its logit.
    pub(crate) logprob: Option<f64>,
    pub(crate) logsumexp: f64,
    pub(crate) ranks: (u64, u64),
    pub(crate) top: &'s [(R, u32)],
    pub(crate) argmax: i64,
    /// The largest logit before the temperature; -inf if there is a NaN.
    pub(crate) max: f64,
    pub(crate) drawn: Option<(u32, f64)>,
}

impl<R> Found<'_, R> {
    /// Whether a low temperature, and not the row, has made infinities.
    pub(crate) fn is_out_of_range(&self, transform: &Transform<'_>) -> bool {
        transform.temperature < 1.0 && self.distribution.nll.is_nan() && self.max.is_finite()
    }
}

/// As the loss rounds: 0 rather than -0 also where a number is rounded to 0.
pub(crate) fn rounded<R: Float>(logprob: f64) -> R {
    R::from_f64(0.0 - R::from_f64(0.0 - logprob).into())
}

impl Default for RowStats {
    /// The identity of [`RowStats::merge`]: no classes.
    fn default() -> Self {
        let empty = Total::empty(true);
        RowStats {
            all: empty,
            tail: empty,
            others: empty,
            best: f32::NEG_INFINITY,
            best_id: NONE,
            target: f32::NEG_INFINITY,
            target_id: NONE,
            ge: 0,
            gt: 0,
            nan_id: NONE,
            top: Top::new(MAX_TOP_K),
            drawn: Drawn::NOTHING,
            has: HAS_ALL,
            classes: Classes::NONE,
            temperature: 1.0,
            origin: 0.0,
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
    pub const CHUNK: usize = crate::kernel::blocks::CHUNK;

    pub(crate) fn clear(&mut self, fused: bool, part: &Part<'_>) {
        let wanted = &part.wanted;
        let level = |level, flag| if wanted.level >= level { flag } else { 0 };
        let empty = Total::empty(fused);
        (self.all, self.tail, self.others) = (empty, empty, empty);
        (self.best, self.best_id) = (f32::NEG_INFINITY, NONE);
        (self.target, self.target_id) = (f32::NEG_INFINITY, NONE);
        (self.ge, self.gt) = (0, 0);
        self.nan_id = NONE;
        self.top.clear(wanted.top_k);
        self.drawn = Drawn::NOTHING;
        self.has = level(sum::FIRST, HAS_ENTROPY)
            | level(sum::SECOND, HAS_VARENTROPY)
            | if wanted.ranks && part.target_logit.is_some() { HAS_RANKS } else { 0 }
            | if part.draw.is_some() { HAS_DRAWN } else { 0 };
        let (first, end) = (part.id(part.classes.start), part.id(part.classes.end));
        self.classes = Classes::new(part.vocab, first, end);
        let Transform { temperature, origin, .. } = part.transform;
        (self.temperature, self.origin) = (temperature, origin as f32);
    }

    /// A logit as the temperature leaves it.
    fn cooled(&self, logit: f32) -> f32 {
        let (temperature, origin) = (self.temperature, f64::from(self.origin));
        Transform { temperature, origin, ..Transform::IDENTITY }.cooled_f32(logit)
    }

    /// The statistics of the classes of both, which must not have any in common. They must stem from calls with the
    /// same options.
    ///
    /// # Errors
    /// [`Error::ShardOverlap`] for shards that have classes in common, as far as can be told before all are merged: of
    /// neighbours always, of merged parts with gaps if they are too many for what they are part of, and
    /// [`RowStats::check`] finds the rest. [`Error::ShardOptions`] for shards of vocabularies of different sizes, or at
    /// different temperatures.
    ///
    /// ```
    /// use xent::{LogProbs, Logits, RowStats, Shard};
    ///
    /// let part = |first: usize, x: &[f32]| -> Result<RowStats, xent::Error> {
    ///     let mut stats = [RowStats::default()];
    ///     let logits = Logits::new(x, 1, x.len())?;
    ///     LogProbs::new().row_stats(logits, Shard::new(first, 4), &mut stats)?;
    ///     Ok(stats[0])
    /// };
    /// let (a, b) = (part(0, &[1.0, 2.0, 3.0])?, part(1, &[2.0, 3.0, 0.5])?);
    /// let error = a.merge(&b).unwrap_err().to_string();
    /// assert_eq!(error, "the shards of classes 0..3 and 1..4 overlap");
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub fn merge(&self, other: &RowStats) -> Result<RowStats, Error> {
        let (a, b) = (&self.classes, &other.classes);
        if a.vocab != 0 && b.vocab != 0 {
            if a.vocab != b.vocab {
                let (a, b) = (a.vocab.to_string(), b.vocab.to_string());
                return Err(Error::ShardOptions { what: "vocabulary", a, b });
            }
            // Of bits: the environment of the caller has no part in it.
            if self.temperature.to_bits() != other.temperature.to_bits() {
                let (a, b) = (number(self.temperature), number(other.temperature));
                return Err(Error::ShardOptions { what: "temperature", a, b });
            }
        }
        if a.overlap(b) || self.has_target() && other.has_target() {
            let [a, b] = [a, b].map(|classes| (classes.first as usize, classes.end as usize));
            return Err(Error::ShardOverlap { a, b });
        }
        let mut merged = *self;
        float_env::scope(|| merged.add(other));
        Ok(merged)
    }

    /// Whether each class of the vocabulary was merged once.
    ///
    /// # Errors
    /// [`Error::ShardClasses`] if there are more or fewer classes than the vocabulary has, [`Error::ShardSeams`] if there
    /// are as many, but some twice and others not at all. They name `row`, which only the caller knows.
    pub fn check(&self, row: usize) -> Result<(), Error> {
        let Classes { vocab, first, end, count, .. } = self.classes;
        if count != u64::from(vocab) {
            return Err(Error::ShardClasses { row, classes: count, vocab: vocab as usize });
        }
        if !self.classes.is_contiguous() || count > 0 && (first, end) != (0, vocab) {
            return Err(Error::ShardSeams { row });
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, other: &RowStats) {
        if self.classes.vocab == 0 {
            (self.temperature, self.origin) = (other.temperature, other.origin);
        }
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
        self.others.merge(&other.others);
        self.flag_tail();
        if other.target_id != NONE {
            (self.target, self.target_id) = (other.target, other.target_id);
        }
        self.ge = self.ge.saturating_add(other.ge);
        self.gt = self.gt.saturating_add(other.gt);
        self.classes = self.classes.with(&other.classes);
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
        let (logit, id) = (self.best, self.best_id);
        if id != NONE && logit > f32::NEG_INFINITY {
            self.drawn = Drawn { score: logit.into(), id, logit: self.cooled(logit) };
        }
    }

    fn fused(&self) -> bool {
        self.all.fused
    }

    /// That of the row, whatever the target.
    pub(crate) fn distribution(&self) -> Distribution {
        let max = self.cooled(self.best);
        let poisoned = self.all.nan | self.all.inf;
        if poisoned || !max.is_finite() || !self.classes.is_contiguous() {
            return Distribution::NAN;
        }
        let max = f64::from(max);
        let tail = self.tail.moments();
        if tail.sum.is_empty() {
            return Distribution::new(max, 0.0, 0.0, 0.0);
        }
        let factor = math::exp(tail.sum.ln_unit(self.fused(), -max));
        let by = max - f64::from(tail.sum.origin());
        let [sum, first, second] = [tail.sum.sum, tail.first, tail.second].map(|v| factor * v);
        Distribution::new(max, sum, by * sum - first, second - by * (2.0 * first - by * sum))
    }

    /// The negative log-probability of the target, with the bits that [`CrossEntropy`](crate::CrossEntropy) yields
    /// before it rounds to `f32`; `None` if none of the shards has it.
    ///
    /// Rounded to `f32` within 1 ULP. NaN for rows with NaN or +inf, or nothing but -inf.
    pub fn loss(&self) -> Option<f64> {
        float_env::scope(|| self.loss_here())
    }

    fn loss_here(&self) -> Option<f64> {
        let others = || self.others.sum().loss(self.fused(), self.cooled(self.target));
        (self.has_target() && self.classes.is_contiguous()).then(others)
    }

    fn has_target(&self) -> bool {
        self.target_id != NONE
    }

    /// The log-probability of the target: the negative of [`RowStats::loss`].
    pub fn logprob(&self) -> Option<f64> {
        float_env::scope(|| self.logprob_here())
    }

    fn logprob_here(&self) -> Option<f64> {
        self.loss_here().map(|loss| 0.0 - loss)
    }

    /// The logit of the target after bias and mask and before the temperature, which other shards need to count its rank
    /// ([`Shard::target_logits`](crate::Shard::target_logits)).
    pub fn target_logit(&self) -> Option<f32> {
        self.has_target().then_some(self.target)
    }

    /// `ln(sum_j e^z[j])`: -inf for nothing but -inf or no classes, +inf if there is one, NaN if there is one, or a gap.
    pub fn logsumexp(&self) -> f64 {
        float_env::scope(|| self.logsumexp_here())
    }

    fn logsumexp_here(&self) -> f64 {
        if !self.classes.is_contiguous() {
            return f64::NAN;
        }
        self.all.sum().lse(self.fused()).value() + f64::from(self.origin) / self.temperature
    }

    /// The logsumexp as [`CrossEntropy::backward`](crate::CrossEntropy::backward) needs it: with it each shard computes
    /// the gradient of its own classes. With a target it has the bits that
    /// [`RowOutputs::saved`](crate::RowOutputs::saved) has.
    pub fn saved(&self) -> LogSumExp {
        float_env::scope(|| {
            let lse = match self.loss_here() {
                Some(loss) => {
                    self.others.sum().lse_with(self.fused(), self.cooled(self.target), loss)
                }
                None => self.all.sum().lse(self.fused()),
            };
            lse.saved()
        })
    }

    /// The log-probability of a token with that logit, as the transform leaves it: [`TopToken::logit`].
    pub fn logprob_of(&self, logit: f32) -> f64 {
        float_env::scope(|| self.distribution().logprob(logit.into()))
    }

    /// How many logits are at least that of the target, itself among them: what vLLM calls rank. 0 for a NaN.
    pub fn rank(&self) -> Option<u64> {
        float_env::scope(|| self.ranks().map(|(ge, _)| ge))
    }

    /// One more than how many logits are above that of the target. 0 for a NaN.
    pub fn strict_rank(&self) -> Option<u64> {
        float_env::scope(|| self.ranks().map(|(_, gt)| gt))
    }

    fn ranks(&self) -> Option<(u64, u64)> {
        (self.has(HAS_RANKS) && self.has_target() && self.classes.is_contiguous()).then(|| {
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
        let distribution = float_env::scope(|| self.distribution());
        let entries = if self.classes.is_contiguous() { self.top.entries() } else { &[] };
        let token = move |&(logit, id): &(f32, u32)| {
            let logit = self.cooled(logit);
            TopToken { id, logit, logprob: rounded(distribution.logprob(logit.into())) }
        };
        entries.iter().map(move |entry| float_env::scope(|| token(entry)))
    }

    /// Everything, for [`TokenOutputs`](crate::TokenOutputs).
    pub(crate) fn found(&self) -> Found<'_, f32> {
        Found {
            distribution: self.distribution(),
            logprob: self.logprob_here(),
            logsumexp: self.logsumexp_here(),
            ranks: self.ranks().unwrap_or((0, 0)),
            top: self.top.entries(),
            argmax: self.argmax_here().map_or(-1, i64::from),
            max: self.best.into(),
            drawn: self.drawn().map(|drawn| (drawn.id, drawn.logit.into())),
        }
    }

    /// The first token with the largest logit, or with a NaN if there is one; `None` without classes.
    pub fn argmax(&self) -> Option<u32> {
        float_env::scope(|| self.argmax_here())
    }

    fn argmax_here(&self) -> Option<u32> {
        if self.nan_id != NONE {
            return Some(self.nan_id).filter(|_| self.classes.is_contiguous());
        }
        // With nothing but -inf, as in PyTorch, the first.
        let id = if self.best == f32::NEG_INFINITY { self.classes.first } else { self.best_id };
        (id != NONE && self.classes.is_contiguous()).then_some(id)
    }

    /// `-sum_j p[j] ln p[j]` in nats, if it was asked for. Also where it is tiny all digits count: see
    /// [`LogProbs`](crate::LogProbs).
    pub fn entropy(&self) -> Option<f64> {
        self.has(HAS_ENTROPY).then(|| float_env::scope(|| self.distribution()).entropy)
    }

    /// The variance of `ln p[j]` under `p`, if it was asked for.
    pub fn varentropy(&self) -> Option<f64> {
        self.has(HAS_VARENTROPY).then(|| float_env::scope(|| self.distribution()).varentropy)
    }

    /// The token that was drawn; `None` if nothing was asked to be, or nothing can be: in a row with NaN or +inf, or with
    /// nothing but -inf.
    pub fn sampled(&self) -> Option<u32> {
        float_env::scope(|| self.drawn()).map(|drawn| drawn.id)
    }

    pub(crate) fn drawn(&self) -> Option<Drawn> {
        let poisoned = self.all.nan | self.all.inf || !self.classes.is_contiguous();
        (self.has(HAS_DRAWN) && !poisoned && self.drawn.id != NONE).then_some(self.drawn)
    }
}

/// Of the format of [`RowStats::to_bytes`], its first byte.
const VERSION: u8 = 2;

/// Of a [`Total`]: with both moments.
const SUMS: usize = 3;

impl RowStats {
    /// The size of [`RowStats::to_bytes`].
    pub const BYTES: usize =
        1 + 2 * total_bytes(SUMS) + total_bytes(1) + 4 * 8 + 8 * 5 + 16 + 1 + 4 + 8 * MAX_TOP_K;

    /// Everything, in little-endian order on every machine. The format is that of this version of the crate.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = Out(&mut bytes);
        out.put([VERSION]);
        out.total(&self.all, SUMS);
        out.total(&self.tail, SUMS);
        out.total(&self.others, 1);
        for x in [self.best, self.target] {
            out.put(x.to_le_bytes());
        }
        let Classes { vocab, first, end, count, seams } = self.classes;
        for x in [self.best_id, self.target_id, self.nan_id, vocab, first, end] {
            out.put(x.to_le_bytes());
        }
        for x in [self.ge, self.gt, count, seams] {
            out.put(x.to_le_bytes());
        }
        out.put(self.temperature.to_le_bytes());
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
        float_env::scope(|| Self::read(In(bytes))).ok_or(Error::RowStatsBytes)
    }

    fn read(mut from: In<'_>) -> Option<RowStats> {
        if from.take()? != [VERSION] {
            return None;
        }
        let (all, tail, others) = (from.total(SUMS)?, from.total(SUMS)?, from.total(1)?);
        let [best, target] = [from.f32()?, from.f32()?];
        let [best_id, target_id, nan_id] = [from.u32()?, from.u32()?, from.u32()?];
        let [vocab, first, end] = [from.u32()?, from.u32()?, from.u32()?];
        let [ge, gt, count, seams] = [from.u64()?, from.u64()?, from.u64()?, from.u64()?];
        let classes = Classes { vocab, first, end, count, seams };
        let temperature = from.take().map(f64::from_le_bytes)?;
        let drawn = Drawn {
            score: from.take().map(f64::from_le_bytes)?,
            id: from.u32()?,
            logit: from.f32()?,
        };
        let [has] = from.take()?;
        let k = usize::from(from.take().map(u16::from_le_bytes)?);
        let len = usize::from(from.take().map(u16::from_le_bytes)?);
        let counts_fit = ge < 1 << 62 && gt < 1 << 62;
        let is_range = if count == 0 {
            Classes { vocab, ..Classes::NONE } == classes
        } else {
            first < end && end <= vocab
        };
        let is_warm = Error::check_positive("temperature", temperature).is_ok();
        if has > HAS_ALL || k > MAX_TOP_K || len > k || !counts_fit || best.is_nan() {
            return None;
        }
        if !is_range || !is_warm {
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
            others,
            best,
            best_id,
            target,
            target_id,
            ge,
            gt,
            nan_id,
            top,
            drawn,
            has,
            classes,
            temperature,
            origin: 0.0,
        })
    }
}
