//! What an inference engine asks about a row, or a part of one, in one pass: `kernels.md` explains it.
//!
//! The loop over exponentials is that of the loss ([`sum_steps`]), with the target left out as there. What else is
//! wanted is looked for in each block while it is in the first-level cache, and mostly not found: the largest
//! element of the block tells whether it can matter to a rank, the top k, or a draw.

use super::blocks::{BLOCK, CHUNK, STEP, Step, as_steps, max_lane, padded, ranges};
use super::expsum::ExpSum;
use super::gumbel;
use super::part::{Draw, Part, Wanted};
use super::row_stats::{Drawn, NONE, RowStats};
use super::sum::{self, BlockSum, Careful, Center, ChunkSum, Steps, sum_steps};
use super::top::{MAX_TOP_K, Top};
use super::total::Moments;
use super::transform::{Staged, Transform, stage_cooled, stage_raw, widen_any};
use crate::math;
use crate::simd::Op;
use crate::simd::{AnyRow, LANES, Local, Simd};
use std::ops::Range;

impl Part<'_> {
    fn plain(&self) -> Option<&[f32]> {
        match self.row {
            AnyRow::F32(x) if self.transform.is_identity() => Some(x),
            _ => None,
        }
    }

    /// The logits of a block after their transform, and -inf up to the end of the buffer. Before the temperature they go
    /// to `raw` too, if there is one.
    #[inline(always)]
    fn stage<S: Simd>(
        &self,
        s: S,
        block: Range<usize>,
        staged: &mut Staged<f32>,
        raw: Option<&mut Staged<f32>>,
    ) {
        s.outlined(StagePart { part: self, block, staged, raw });
    }

    #[inline(always)]
    fn stage_here<S: Simd>(
        &self,
        s: S,
        block: Range<usize>,
        staged: &mut Staged<f32>,
        raw: Option<&mut Staged<f32>>,
    ) {
        let z = &mut staged.0[..block.len()];
        widen_any(s, self.row, block.clone(), z);
        stage_raw(s, &self.transform, block.start, z, None);
        if let Some(raw) = raw {
            raw.0[..block.len()].copy_from_slice(z);
        }
        stage_cooled(s, &self.transform, z);
        staged.0[block.len()..].fill(f32::NEG_INFINITY);
    }
}

/// [`Part::stage`], for all types.
struct StagePart<'a> {
    part: &'a Part<'a>,
    block: Range<usize>,
    staged: &'a mut Staged<f32>,
    raw: Option<&'a mut Staged<f32>>,
}

impl Op for StagePart<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        let StagePart { part, block, staged, raw } = self;
        part.stage_here(s, block, staged, raw);
    }
}

/// The sums over a chunk while it is being read, and over its block with the largest element.
#[derive(Clone, Copy)]
struct Chunk<S: Simd> {
    sum: ChunkSum<S>,
    /// `sum(e^x (x - center)^n)` for n = 1, 2, in the units of the sum.
    moments: [S::Wide; 2],
    /// What may have been taken for 0 as it was staged: order among such numbers is not to be told from the sums.
    faint: f32,
    /// The largest element so far, once there is one.
    center: f32,
    /// The same, of blocks that were added.
    best_max: f32,
    /// The class that the block with that element starts with, and what the block added.
    best_block: usize,
    best: [S::Wide; 3],
}

impl<S: Simd> Chunk<S> {
    #[inline(always)]
    fn new(s: S, start: usize, transform: &Transform<'_>) -> Self {
        let zero = s.wide_zero();
        Chunk {
            sum: ChunkSum::new(s),
            moments: [zero; 2],
            faint: transform.faint(),
            center: f32::NEG_INFINITY,
            best_max: f32::NEG_INFINITY,
            best_block: start,
            best: [zero; 3],
        }
    }

    /// Adds a block that starts with class `start`. Returns the steps of it that have elements not below `bound`, and its
    /// sum unless there is none or it took a look.
    #[inline(always)]
    fn add_block(
        &mut self,
        s: S,
        steps: &Steps<'_, f32>,
        block: Range<usize>,
        start: usize,
        level: u8,
        bound: f32,
    ) -> (u32, Option<BlockSum<S>>) {
        s.outlined(AddBlock { to: self, steps, block, start, level, bound })
    }

    #[inline(always)]
    fn add_block_here(
        &mut self,
        s: S,
        steps: &Steps<'_, f32>,
        block: Range<usize>,
        start: usize,
        level: u8,
        bound: f32,
    ) -> (u32, Option<BlockSum<S>>) {
        let mut looked = false;
        if self.sum.is_off(steps, block.clone()) {
            if !self.look(s, steps, block.clone()) {
                return (self.without_sum(start), None);
            }
            looked = true;
        }
        // New maxima are to be found, whoever asks.
        let bound = self.best_max.min(bound);
        let bound = if bound > 0.0 && bound <= self.faint { 0.0 } else { bound };
        loop {
            let careful = self.sum.takes_care(steps, block.clone());
            let at = &self.sum.at;
            let center = Center::new::<S>(self.center, at);
            macro_rules! sum {
                ($level:expr) => {
                    sum_steps::<S, f32, false, { $level }>(
                        s,
                        steps,
                        block.clone(),
                        at,
                        center,
                        bound,
                    )
                };
            }
            let block_sum = match (level, careful) {
                (_, true) => {
                    let block = block.clone();
                    s.outlined(Careful::<f32, true> { steps, block, at, center, bound })
                }
                (sum::SECOND, false) => sum!(sum::SECOND),
                (sum::FIRST, false) => sum!(sum::FIRST),
                (_, false) => sum!(sum::STEPS),
            };
            if looked || block_sum.fits(s) {
                self.sum.moved = looked;
                self.sum.add(&block_sum);
                if level >= sum::FIRST {
                    self.moments = add_moments(s, self.moments, &block_sum, center);
                }
                let max = self.max_of_hits(s, steps, block.start, block_sum.hits);
                if max > self.best_max {
                    let zero = s.wide_zero();
                    let [first, second] = add_moments(s, [zero; 2], &block_sum, center);
                    self.best = [block_sum.add_to(s, zero), first, second];
                    (self.best_max, self.best_block) = (max, start);
                    self.recenter(s, max);
                }
                return (block_sum.hits, (!looked).then_some(block_sum));
            }
            if !self.look(s, steps, block.clone()) {
                return (self.without_sum(start), None);
            }
            looked = true;
        }
    }

    /// The largest element of these steps, if it is above the largest so far; or else that.
    #[inline(always)]
    fn max_of_hits(&self, s: S, steps: &Steps<'_, f32>, first: usize, mut hits: u32) -> f32 {
        let known = s.splat(self.best_max);
        let mut max = known;
        while hits != 0 {
            let step = steps.step(first + hits.trailing_zeros() as usize);
            hits &= hits - 1;
            for lanes in step {
                max = s.max_or(s.load(lanes), max);
            }
        }
        let is_above = s.gt_bits(max, known) != 0;
        if is_above { max_lane(s.to_lanes(max)) } else { self.best_max }
    }

    /// A block of which nothing was added: of -inf and NaN, or with +inf. All of it has to be looked at.
    #[inline(always)]
    fn without_sum(&mut self, start: usize) -> u32 {
        if self.sum.max > self.best_max {
            // +inf: the row has no probabilities, but an argmax.
            (self.center, self.best_max, self.best_block) = (self.sum.max, self.sum.max, start);
        }
        u32::MAX
    }

    /// As [`ChunkSum::look`].
    #[inline(always)]
    fn look(&mut self, s: S, steps: &Steps<'_, f32>, block: Range<usize>) -> bool {
        let from = self.sum.at;
        let found = self.sum.look(steps, block);
        if found {
            let factor = from.scale_to::<S>(&self.sum.at);
            // Loops, as no closure is sure to be inlined.
            for sums in self.moments.iter_mut().chain(&mut self.best) {
                *sums = s.wide_scale(*sums, factor);
            }
            self.recenter(s, self.sum.max);
        }
        found
    }

    /// Takes the moments around `to` if that is above the center: all elements are below then, and what is rounded is
    /// in proportion to what they add to the entropy.
    #[inline(always)]
    fn recenter(&mut self, s: S, to: f32) {
        if to <= self.center {
            return;
        }
        if self.center > f32::NEG_INFINITY {
            let by = f64::from(self.center) - f64::from(to);
            let [first, second] = self.moments;
            self.moments = moved(s, [self.sum.sums, first, second], by);
            let [first, second] = moved(s, self.best, by);
            self.best = [self.best[0], first, second];
        }
        self.center = to;
    }
}

/// [`Chunk::add_block`], compiled once: it has the loops of all levels.
struct AddBlock<'a, 'r, S: Simd> {
    to: &'a mut Chunk<S>,
    steps: &'a Steps<'r, f32>,
    block: Range<usize>,
    start: usize,
    level: u8,
    bound: f32,
}

impl<S: Simd> Local<S> for AddBlock<'_, '_, S> {
    type Out = (u32, Option<BlockSum<S>>);

    #[inline(always)]
    fn on(self, s: S) -> Self::Out {
        let AddBlock { to, steps, block, start, level, bound } = self;
        to.add_block_here(s, steps, block, start, level, bound)
    }
}

/// Moments around a point `by` further down.
#[inline(always)]
fn moved<S: Simd>(s: S, [sum, first, second]: [S::Wide; 3], by: f64) -> [S::Wide; 2] {
    let from_sum = s.wide_scale(sum, by);
    let twice = s.wide_plus(s.wide_plus(first, first), from_sum);
    [s.wide_plus(first, from_sum), s.wide_plus(second, s.wide_scale(twice, by))]
}

#[inline(always)]
fn add_moments<S: Simd>(
    s: S,
    moments: [S::Wide; 2],
    block: &BlockSum<S>,
    center: Center,
) -> [S::Wide; 2] {
    let mut sums = moments;
    let parts = [block.first, block.second];
    for ((sums, [hi, lost]), anchor) in sums.iter_mut().zip(parts).zip(center.anchors) {
        *sums = s.wide_add(s.wide_add(*sums, s.sub(hi, s.splat(anchor))), lost);
    }
    sums
}

/// [`ChunkSums::new`].
struct EndOfChunk<'a, S: Simd> {
    sums: &'a Chunk<S>,
    chunk: Range<usize>,
    level: u8,
}

impl<S: Simd> Local<S> for EndOfChunk<'_, S> {
    type Out = ChunkSums;

    #[inline(always)]
    fn on(self, s: S) -> ChunkSums {
        ChunkSums::new_here(s, self.sums, self.chunk, self.level)
    }
}

/// Sums over a whole chunk, and without its largest element.
struct ChunkSums {
    to: ExpSum,
    all: [f64; 3],
    best_block: [f64; 3],
    center: f32,
    block_start: usize,
    chunk: Range<usize>,
}

impl ChunkSums {
    #[inline(always)]
    fn new<S: Simd>(s: S, sums: &Chunk<S>, chunk: Range<usize>, level: u8) -> Self {
        s.outlined(EndOfChunk { sums, chunk, level })
    }

    #[inline(always)]
    fn new_here<S: Simd>(s: S, sums: &Chunk<S>, chunk: Range<usize>, level: u8) -> Self {
        let at = sums.sum.at;
        // As `ChunkSum::finish`.
        let to = ExpSum { exponent: at.exponent.max(sums.sum.top), ..at };
        let factor = at.scale_to::<S>(&to);
        let [first, second] = sums.moments;
        ChunkSums {
            to,
            all: total(s, [sums.sum.sums, first, second], factor, level),
            best_block: total(s, sums.best, factor, level),
            center: sums.center,
            block_start: sums.best_block,
            chunk,
        }
    }

    /// Sums around the center as moments around the origin.
    fn moments(&self, [sum, first, second]: [f64; 3]) -> Moments {
        let by = f64::from(self.center) - f64::from(self.to.origin);
        if self.to.is_empty() || !by.is_finite() {
            // With +inf there is no sum, but what was a NaN still has to show.
            let nan = self.to.nan | (!self.to.is_empty() && sum.is_nan());
            return Moments { sum: ExpSum { nan, ..self.to }, first: 0.0, second: 0.0 };
        }
        Moments {
            sum: ExpSum { sum, ..self.to },
            first: first + by * sum,
            second: second + by * (2.0 * first + by * sum),
        }
    }

    /// What is left of the chunk without its largest element, and the class that this is.
    ///
    /// The block that has it is summed again without it, and changed for the one that was summed with it. Where little is
    /// left that way, the whole chunk is, with a reference of its own.
    #[inline(always)]
    fn tail<S: Simd>(&self, s: S, part: &Part<'_>) -> (Moments, usize) {
        let block = self.block_start..self.chunk.end.min(self.block_start + BLOCK);
        let center = Center::new::<S>(self.center, &self.to);
        let mut staged = Staged([0.0; BLOCK]);
        part.stage(s, block.clone(), &mut staged, None);
        let at = sum::first_equal(s, &staged.0, self.center);
        staged.0[at] = f32::NEG_INFINITY;
        let best = block.start + at;
        let steps = Steps::new(&staged.0, None);
        let all = 0..BLOCK / STEP;
        let sum = s.outlined(Careful::<f32, true> {
            steps: &steps,
            block: all,
            at: &self.to,
            center,
            bound: 0.0,
        });
        let zero = s.wide_zero();
        let [first, second] = add_moments(s, [zero; 2], &sum, center);
        let mut rest = total(s, [sum.add_to(s, zero), first, second], 1.0, sum::SECOND);
        if block != self.chunk {
            for ((rest, all), block) in rest.iter_mut().zip(self.all).zip(self.best_block) {
                *rest += all - block;
            }
        }
        // Sums are made for what is not far below the reference. (And if there is 2^-24 left, what rounding to `f64` took
        // from the difference might show.)
        let is_tiny = rest[0] < self.all[0] / 512.0;
        let rest = if is_tiny { self.alone(s, part, best) } else { self.moments(rest) };
        (rest, best)
    }

    /// The sums over the chunk without a class, with a reference of their own.
    #[inline(always)]
    fn alone<S: Simd>(&self, s: S, part: &Part<'_>, best: usize) -> Moments {
        let mut staged = Staged([0.0; BLOCK]);
        let mut sums = Chunk::new(s, self.chunk.start, &part.transform);
        for block in ranges(self.chunk.clone(), BLOCK) {
            let start = block.start;
            part.stage(s, block.clone(), &mut staged, None);
            if block.contains(&best) {
                staged.0[best - start] = f32::NEG_INFINITY;
            }
            let steps = Steps::new(&staged.0, None);
            sums.add_block(s, &steps, 0..BLOCK / STEP, start, sum::SECOND, f32::INFINITY);
        }
        let sums = ChunkSums::new(s, &sums, self.chunk.clone(), sum::SECOND);
        sums.moments(sums.all)
    }
}

/// The sums of lanes, as far as they were taken.
#[inline(always)]
fn total<S: Simd>(s: S, sums: [S::Wide; 3], factor: f64, level: u8) -> [f64; 3] {
    let [zeroth, first, second] = sums;
    let mut totals = [s.wide_sum(zeroth) * factor, 0.0, 0.0];
    if level >= sum::FIRST {
        totals[1] = s.wide_sum(first) * factor;
    }
    if level >= sum::SECOND {
        totals[2] = s.wide_sum(second) * factor;
    }
    totals
}

/// The statistics of a part of a row. Everything that `out` had is overwritten.
#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, part: &Part<'_>, out: &mut RowStats) {
    out.clear(S::FUSED, part);
    let (mut staged, mut raw) = (Staged([0.0; BLOCK]), Staged([0.0; BLOCK]));
    let mut patched = Staged([0.0; BLOCK]);
    let plain = part.plain();
    let has_temperature = part.transform.temperature != 1.0;
    let mut best: Option<ChunkSums> = None;
    let mut has_nan = false;
    if let Some(target) = part.target {
        out.target = part.target_logit.map_or(f32::NAN, |z| z as f32);
        out.target_id = part.id(target);
    }
    let mut seek = Seek::new(part);
    for chunk in ranges(part.classes.clone(), CHUNK) {
        let in_chunk = part.target.filter(|target| part.wanted.loss && chunk.contains(target));
        let whole = plain.map(|x| Steps::new(&x[chunk.clone()], None));
        let mut sums = Chunk::new(s, chunk.start, &part.transform);
        // The sum that the loss is made of leaves out the target: from its block on another one.
        let mut others: Option<Chunk<S>> = None;
        for block in ranges(chunk.clone(), BLOCK) {
            let start = block.start;
            // Moments of two steps are rounded together: of the same two whether or not there is a transform. An
            // incomplete step is not next to the others where they are.
            let is_apart = !block.len().is_multiple_of(STEP);
            let whole = whole.as_ref().filter(|_| part.wanted.level < sum::FIRST || !is_apart);
            let target = in_chunk.filter(|target| block.contains(target));
            if whole.is_none() {
                let raw = has_temperature.then_some(&mut raw);
                part.stage(s, block.clone(), &mut staged, raw);
            }
            let copied;
            let (steps, range) = match whole {
                Some(steps) => {
                    (steps, (start - chunk.start) / STEP..(block.end - chunk.start).div_ceil(STEP))
                }
                None => {
                    copied = Steps::new(&staged.0, None);
                    (&copied, 0..block.len().div_ceil(STEP))
                }
            };
            // The sum that the loss is made of has the same blocks, but for that of the target.
            let mut without_target = None;
            if let Some(target) = target {
                others = Some(sums);
                let z = plain.map_or(&staged.0[..block.len()], |x| &x[block.clone()]);
                patched.0[..z.len()].copy_from_slice(z);
                patched.0[z.len()..].fill(f32::NEG_INFINITY);
                patched.0[target - start] = f32::NEG_INFINITY;
                let steps = Steps::new(&patched.0, None);
                without_target = Some((steps, 0..block.len().div_ceil(STEP)));
            }
            let alike =
                target.is_none() && others.is_some_and(|others| others.sum.is_at(&sums.sum));
            let (level, bound) = (part.wanted.level, part.transform.cooled_f32(seek.bound()));
            let (mut hits, mut block_sum) = (0, None);
            // A loop, as what adds a block is inlined wherever it is called.
            for (i, sums) in [Some(&mut sums), others.as_mut()].into_iter().flatten().enumerate() {
                let is_others = i == 1;
                if is_others
                    && alike
                    && let Some(block_sum) = &block_sum
                {
                    sums.sum.add(block_sum);
                    continue;
                }
                let (level, bound) =
                    if is_others { (sum::STEPS, f32::INFINITY) } else { (level, bound) };
                let (steps, range) = match &without_target {
                    Some((steps, range)) if is_others => (steps, range),
                    _ => (steps, &range),
                };
                let added = sums.add_block(s, steps, range.clone(), start, level, bound);
                if !is_others {
                    (hits, block_sum) = added;
                }
            }
            let z = plain.map_or(&staged.0[..block.len()], |x| &x[block.clone()]);
            let raw = if has_temperature { &raw.0[..block.len()] } else { z };
            let own = part.target.filter(|target| block.contains(target));
            seek.add(s, raw, hits, own.map(|own| own - start), part.id(start), out);
            if let Some(draw) = part.draw.filter(|draw| draw.temperature > 0.0) {
                add_drawn(s, z, part.id(start), draw, &mut out.drawn);
            }
        }
        let sums = ChunkSums::new(s, &sums, chunk.clone(), part.wanted.level);
        let all = sums.moments(sums.all);
        has_nan |= all.sum.nan | all.sum.sum.is_nan();
        if part.wanted.loss {
            // No closure, which would not be inlined.
            let others = match &others {
                Some(others) => {
                    let others = ChunkSums::new(s, others, chunk, sum::STEPS);
                    others.moments(others.all).sum
                }
                None => all.sum,
            };
            out.others.add(&Moments { sum: others, first: 0.0, second: 0.0 });
        }
        let is_best = best.as_ref().is_none_or(|best| sums.center > best.center);
        if is_best {
            // What was the best until now is part of the rest.
            out.tail = out.all;
            best = Some(sums);
        } else {
            out.tail.add(&all);
        }
        out.all.add(&all);
    }
    if let Some(best) = &best
        && best.center > f32::NEG_INFINITY
    {
        let (tail, class) = best.tail(s, part);
        out.tail.add(&tail);
        (out.best, out.best_id) = (best.center, part.id(class));
    }
    if has_temperature {
        // A temperature makes equals of numbers that are not.
        (out.best, out.best_id) = seek.best;
    }
    out.flag_tail();
    if part.draw.is_some_and(|draw| draw.temperature == 0.0) {
        out.draw_greedily();
    }
    out.top.sort();
    if has_nan {
        // Comparisons do not find NaN. Such a row is lost anyway; this is only about saying where.
        find_nan(s, part, out);
    }
}

/// What is looked for among the largest elements, of logits before the temperature.
struct Seek {
    /// The target, whose rank is wanted, if it is a number.
    ranked: Option<f32>,
    strict: bool,
    /// What an element must not be below to be one of the top `k`.
    least: f32,
    k: usize,
    /// The largest and its token, where it cannot be told from the sums.
    best: (f32, u32),
    wants_best: bool,
}

impl Seek {
    fn new(part: &Part<'_>) -> Self {
        let Wanted { ranks, strict_ranks, top_k, .. } = part.wanted;
        let target = part.target_logit.map(|z| z as f32);
        Seek {
            ranked: target.filter(|target| ranks && !target.is_nan()),
            strict: strict_ranks,
            least: if top_k > 0 { f32::NEG_INFINITY } else { f32::INFINITY },
            k: top_k,
            best: (f32::NEG_INFINITY, NONE),
            wants_best: part.transform.temperature != 1.0,
        }
    }

    /// Steps without an element that is at least this have nothing.
    fn bound(&self) -> f32 {
        self.least.min(self.ranked.unwrap_or(f32::INFINITY))
    }

    /// Looks through the steps of a block that `hits` says; `target` is the class to leave out in ranks, and `first_id` the
    /// token of the first class, of the block.
    #[inline(always)]
    fn add<S: Simd>(
        &mut self,
        s: S,
        z: &[f32],
        mut hits: u32,
        target: Option<usize>,
        first_id: u32,
        out: &mut RowStats,
    ) {
        if self.ranked.is_none() && self.k == 0 && !self.wants_best {
            return;
        }
        if self.k > 0 {
            let is_first = out.top.is_empty() && z.len() == BLOCK;
            if is_first || self.are_many(s, z, hits, &out.top) {
                let least = kth_of_groups(s, z, self.k);
                if least > self.least {
                    self.least = least;
                    out.top.drop_below(least);
                }
            }
        }
        if self.wants_best {
            self.see_best(s, z, hits, first_id);
        }
        while hits != 0 {
            let start = STEP * hits.trailing_zeros() as usize;
            hits &= hits - 1;
            if start >= z.len() {
                return;
            }
            let step = &z[start..z.len().min(start + STEP)];
            if let Some(ranked) = self.ranked {
                let own = target.is_some_and(|target| (start..start + STEP).contains(&target));
                out.ge += u64::from(count::<S, false>(s, step, ranked)) - u64::from(own);
                if self.strict {
                    out.gt += u64::from(count::<S, true>(s, step, ranked));
                }
            }
            if self.k > 0 {
                self.add_top(s, step, first_id + start as u32, &mut out.top);
            }
        }
    }

    /// Whether so many elements of these steps may be among the largest that a look at the whole block first is less work
    /// than to enter them one after the other.
    #[inline(always)]
    fn are_many<S: Simd>(&self, s: S, z: &[f32], mut hits: u32, top: &Top<f32>) -> bool {
        let most = self.k as u32 + STEP as u32;
        let is_full = self.is_full(top);
        let mut candidates = 0;
        while hits != 0 && candidates <= most {
            let start = STEP * hits.trailing_zeros() as usize;
            hits &= hits - 1;
            if start >= z.len() {
                break;
            }
            let step = &z[start..z.len().min(start + STEP)];
            candidates += if is_full {
                count::<S, true>(s, step, self.least)
            } else {
                count::<S, false>(s, step, self.least)
            };
        }
        candidates > most
    }

    /// Whether an element must be above the least to be one of the largest: of equals the first ones count, and they
    /// have come.
    #[inline(always)]
    fn is_full(&self, top: &Top<f32>) -> bool {
        top.least().is_some_and(|least| least >= self.least)
    }

    /// Looks for the largest element in the steps of a block that `hits` says.
    #[inline(always)]
    fn see_best<S: Simd>(&mut self, s: S, z: &[f32], mut hits: u32, first_id: u32) {
        let mut max = s.splat(self.best.0);
        let mut rest: &[f32] = &[];
        while hits != 0 {
            let start = STEP * hits.trailing_zeros() as usize;
            hits &= hits - 1;
            let Some(step) = z.get(start..).filter(|step| !step.is_empty()) else { break };
            let (lanes, last) = step[..step.len().min(STEP)].as_chunks::<LANES>();
            for lanes in lanes {
                max = s.max_or(s.load(lanes), max);
            }
            // Of the last step alone.
            rest = last;
        }
        let max = max_lane(s.to_lanes(max));
        let max = rest.iter().fold(max, |max, &z| if z > max { z } else { max });
        if max > self.best.0 {
            self.best = (max, first_id + sum::first_equal(s, z, max) as u32);
        }
    }

    /// Enters what is one of the largest.
    #[inline(always)]
    fn add_top<S: Simd>(&mut self, s: S, step: &[f32], first_id: u32, top: &mut Top<f32>) {
        let (lanes, rest) = step.as_chunks::<LANES>();
        for (i, lanes) in lanes.iter().enumerate() {
            let (z, least) = (s.load(lanes), s.splat(self.least));
            let mut bits =
                if self.is_full(top) { s.gt_bits(z, least) } else { s.ge_bits(z, least) };
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.enter(lanes[lane], first_id + (LANES * i + lane) as u32, top);
            }
        }
        for (&z, id) in rest.iter().zip(first_id + (LANES * lanes.len()) as u32..) {
            if z >= self.least {
                self.enter(z, id, top);
            }
        }
    }

    fn enter(&mut self, z: f32, id: u32, top: &mut Top<f32>) {
        // Of equals the first ones count, and they have come.
        if top.least().is_none_or(|least| z > least) {
            top.insert(z, id);
            if let Some(least) = top.least() {
                self.least = self.least.max(least);
            }
        }
    }
}

/// How many elements of a step are at least `bound`, or `ABOVE` it.
#[inline(always)]
fn count<S: Simd, const ABOVE: bool>(s: S, z: &[f32], bound: f32) -> u32 {
    let bounds = s.splat(bound);
    let mut count = 0;
    // Most steps are whole.
    if let ([step], []) = as_steps(z) {
        for lanes in step {
            let z = s.load(lanes);
            let bits = if ABOVE { s.gt_bits(z, bounds) } else { s.ge_bits(z, bounds) };
            count += bits.count_ones();
        }
        return count;
    }
    for &z in z {
        count += u32::from(if ABOVE { z > bound } else { z >= bound });
    }
    count
}

/// A number that at least `k` elements of up to a block are as large as, and few more; -inf if it has fewer.
///
/// Of the maxima of 128 groups of elements: bisected, as to select one takes ten times as long.
#[inline(always)]
fn kth_of_groups<S: Simd>(s: S, z: &[f32], k: usize) -> f32 {
    const { assert!(MAX_TOP_K <= 8 * LANES) };
    let (steps, rest) = as_steps(z);
    let mut groups = [[s.splat(f32::NEG_INFINITY); 4]; 2];
    let rest = padded(rest, f32::NEG_INFINITY);
    for (i, step) in steps.iter().chain([&rest]).enumerate() {
        // Neighbours apart, as rows may rise.
        for (max, lanes) in groups[i % 2].iter_mut().zip(step) {
            *max = s.max_or(s.load(lanes), *max);
        }
    }
    let (mut top, mut bottom) = (groups[0][0], groups[0][0]);
    for &group in groups.as_flattened() {
        top = s.max_or(group, top);
        bottom = s.min(group, bottom);
    }
    let (top, bottom) = (s.to_lanes(top), s.to_lanes(bottom));
    let mut least = bottom.into_iter().fold(f32::INFINITY, f32::min);
    let mut most = max_lane(top);
    for _ in 0..MOST_CUTS {
        let middle = between(least, most);
        if middle == least {
            break;
        }
        let bound = s.splat(middle);
        let mut count = 0;
        for &group in groups.as_flattened() {
            count += s.ge_bits(group, bound).count_ones() as usize;
        }
        if count >= k {
            least = middle;
        } else {
            most = middle;
        }
        if count == k {
            break;
        }
    }
    least
}

/// After so many cuts what is left is a few units of the last place, or it does not matter.
const MOST_CUTS: usize = 16;

/// A number between two others, halfway in the order of all numbers of `f32`.
fn between(a: f32, b: f32) -> f32 {
    let order = |x: f32| {
        let bits = x.to_bits() as i32;
        i64::from(bits ^ ((bits >> 31) as u32 >> 1) as i32)
    };
    let middle = ((order(a) + order(b)) >> 1) as i32;
    f32::from_bits((middle ^ ((middle >> 31) as u32 >> 1) as i32) as u32)
}

/// The largest element, NaN ignored.
#[inline(always)]
fn max<S: Simd>(s: S, z: &[f32]) -> f32 {
    let (lanes, rest) = z.as_chunks::<LANES>();
    let mut max = s.splat(f32::NEG_INFINITY);
    for lanes in lanes {
        max = s.max_or(s.load(lanes), max);
    }
    rest.iter().fold(max_lane(s.to_lanes(max)), |max, &z| if z > max { z } else { max })
}

/// Draws among the tokens of a block too: the largest `z + temperature * g`, of equals the lowest id.
///
/// A token can only win if its random number is below `e^((z - score) / temperature)`, where `score` is the best
/// until now: that is compared first, of all at once, with the upper halves of the random numbers.
#[inline(always)]
fn add_drawn<S: Simd>(s: S, z: &[f32], first_id: u32, draw: Draw, drawn: &mut Drawn) {
    let max = max(s, z);
    if !max.is_finite() {
        return;
    }
    let Draw { key, temperature } = draw;
    if drawn.id == NONE || drawn.score < f64::from(max) {
        // Something to compare with: where rows rise all tokens would beat what came before.
        let at = sum::first_equal(s, z, max);
        let id = first_id + at as u32;
        let score = gumbel::score(z[at], temperature, key, id);
        drawn.offer(Drawn { score, id, logit: z[at] });
    }
    if (drawn.score - f64::from(max)) / temperature > gumbel::MOST {
        return;
    }
    let end = first_id + z.len() as u32;
    for group in (first_id / STEP as u32 * STEP as u32..end).step_by(STEP) {
        // A part of a row may begin anywhere, its tokens have their numbers all the same.
        let skipped = first_id.saturating_sub(group) as usize;
        let from = (group.max(first_id) - first_id) as usize;
        let here = &z[from..z.len().min(from + STEP - skipped)];
        let mut step: Step = [[f32::NEG_INFINITY; LANES]; 4];
        step.as_flattened_mut()[skipped..skipped + here.len()].copy_from_slice(here);
        let words = gumbel::high_words(key, group);
        let passing = below(&words, bound(max, temperature, drawn.score));
        if passing {
            let chances = Chances::<S>::new(s, temperature, drawn.score);
            for (j, (lanes, words)) in step.iter().zip(&words).enumerate() {
                let chance = chances.of(s, s.load(lanes));
                let mut word = [0.0; LANES];
                for (to, &from) in word.iter_mut().zip(words) {
                    *to = from as f32;
                }
                let mut bits = s.ge_bits(chance, s.load(&word));
                while bits != 0 {
                    let lane = bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    let (logit, id) = (lanes[lane], group + (LANES * j + lane) as u32);
                    if logit > f32::NEG_INFINITY {
                        drawn.offer(Drawn {
                            score: gumbel::score(logit, temperature, key, id),
                            id,
                            logit,
                        });
                    }
                }
            }
        }
    }
}

/// Whether any is at most `bound`.
#[inline(always)]
fn below(words: &[[u32; LANES]; 4], bound: u32) -> bool {
    let mut any = [0; LANES];
    for words in words {
        for (any, &word) in any.iter_mut().zip(words) {
            *any |= u32::from(word <= bound);
        }
    }
    any.iter().fold(0, |a, b| a | b) != 0
}

/// How much larger bounds are made than they are: more than all that rounding does to them.
const SLACK: f64 = 1.0 + 1e-4;

/// What the upper half of the random number of a token with that logit is at most, if it wins.
fn bound(max: f32, temperature: f64, score: f64) -> u32 {
    let chance = math::exp(((f64::from(max) - score) / temperature).min(0.0));
    // The cast saturates.
    (chance * SLACK * 4_294_967_296.0) as u32
}

/// `e^((z - score) / temperature)` in units of the upper halves of random numbers.
struct Chances<S: Simd> {
    scale: super::exp::Scale<S>,
    score: S::V,
    rate: S::V,
    unit: S::V,
    zero: S::V,
}

impl<S: Simd> Chances<S> {
    #[inline(always)]
    fn new(s: S, temperature: f64, score: f64) -> Self {
        Chances {
            scale: super::exp::Scale::new(s, 0.0, 127.0),
            // Rounded down: chances may be too large. Of scores that a difference might overflow with, they are 1.
            score: s.splat(if score.abs() < 1e38 {
                (score as f32).next_down()
            } else {
                f32::NEG_INFINITY
            }),
            rate: s.splat(((1.0 / temperature) as f32).min(f32::MAX)),
            unit: s.splat((SLACK * 4_294_967_296.0) as f32),
            zero: s.splat(0.0),
        }
    }

    #[inline(always)]
    fn of(&self, s: S, z: S::V) -> S::V {
        let x = s.mul(s.sub(z, self.score), self.rate);
        // `max_or` of the negative, since what is NaN must not be compared.
        let x = s.sub(self.zero, s.max_or(s.sub(self.zero, x), self.zero));
        let e = self.scale.split::<true>(s, x);
        s.mul(self.unit, s.mul_add(e.s, e.q, e.s))
    }
}

/// Finds the first NaN of a part that has some, its largest elements and the rank of the target.
#[inline(always)]
fn find_nan<S: Simd>(s: S, part: &Part<'_>, out: &mut RowStats) {
    let (mut staged, mut raw) = (Staged([0.0; BLOCK]), Staged([0.0; BLOCK]));
    out.top.clear(part.wanted.top_k);
    (out.ge, out.gt) = (0, 0);
    // What was found depends on where NaN were in their vectors.
    out.forget_largest();
    let mut seek = Seek::new(part);
    for block in ranges(part.classes.clone(), BLOCK) {
        let (start, first_id) = (block.start, part.id(block.start));
        let own = part.target.filter(|target| block.contains(target));
        part.stage(s, block.clone(), &mut staged, Some(&mut raw));
        let raw = &raw.0[..block.len()];
        // Steps with elements that are not below the bound.
        let (mut hits, bound) = (0, seek.bound());
        for (i, step) in raw.chunks(STEP).enumerate() {
            hits |= u32::from(count::<S, false>(s, step, bound) > 0) << i;
        }
        let (lanes, _) = staged.0.as_chunks::<LANES>();
        for (lanes, first) in lanes.iter().zip((first_id..).step_by(LANES)) {
            let mut nan = sum::nan_bits(s, s.load(lanes));
            if nan != 0 && out.nan_id == NONE {
                out.nan_id = first + nan.trailing_zeros();
            }
            // They are above all numbers, and the first ones come first.
            while nan != 0 && seek.k > 0 && out.top.least().is_none_or(|least| !least.is_nan()) {
                out.top.insert(f32::NAN, first + nan.trailing_zeros());
                nan &= nan - 1;
            }
        }
        seek.add(s, raw, hits, own.map(|own| own - start), first_id, out);
    }
    out.top.sort();
}

/// The statistics of some classes of a row.
pub(crate) struct Statistics<'a> {
    pub(crate) part: &'a Part<'a>,
    pub(crate) out: &'a mut RowStats,
}

impl Op for Statistics<'_> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run(s, self.part, self.out);
    }
}
