//! What [`super::super::logprobs`] finds, of a row of `f64`. In plain code: engines have logits of 32 bits or fewer.

use crate::kernel::gumbel;
use crate::kernel::part::Part;
use crate::kernel::row_stats::{Distribution, NONE};
use crate::kernel::top::Top;
use crate::math::{self, Compensated};

/// What was found. Ids are those of the vocabulary.
pub(crate) struct Found {
    pub(crate) distribution: Distribution,
    pub(crate) logsumexp: f64,
    /// At least the target, and above it.
    pub(crate) ranks: (u64, u64),
    pub(crate) argmax: u32,
    /// The largest logit before the temperature; -inf if there is a NaN.
    pub(crate) max: f64,
    /// A token that was drawn, and its logit.
    pub(crate) drawn: Option<(u32, f64)>,
}

/// Two passes over a row that has classes: what is largest, then the sums.
pub(crate) fn run(part: &Part<'_, &[f64]>, top: &mut Top<f64>) -> Found {
    // Temperatures make equals of numbers that are not: order is that before.
    let raw = |class: usize| part.transform.one_raw(class, part.row[class]).0;
    let cooled = |raw: f64| part.transform.cooled(raw);
    let target = part.target_logit.unwrap_or(f64::NAN);
    top.clear(part.wanted.top_k);
    let (mut max, mut argmax, mut nan) = (f64::NEG_INFINITY, 0, None);
    let (mut ge, mut gt) = (0, 0);
    let mut drawn: Option<(f64, usize, f64)> = None;
    for class in 0..part.row.len() {
        let raw = raw(class);
        if raw > max {
            (max, argmax) = (raw, class);
        }
        if raw.is_nan() && nan.is_none() {
            nan = Some(class);
        }
        ge += u64::from(raw >= target);
        gt += u64::from(raw > target);
        top.insert(raw, part.id(class));
        let z = cooled(raw);
        if let Some(draw) = part.draw.filter(|draw| draw.temperature > 0.0)
            && z > f64::NEG_INFINITY
        {
            let g = gumbel::from_bits(gumbel::bits(draw.key, part.id(class)));
            let score = z + draw.temperature * g;
            if drawn.is_none_or(|(best, ..)| score > best) {
                drawn = Some((score, class, z));
            }
        }
    }
    top.sort();
    let raw_max = max;
    let max = cooled(raw_max);
    if part.draw.is_some_and(|draw| draw.temperature == 0.0) && max > f64::NEG_INFINITY {
        drawn = Some((max, argmax, max));
    }
    let poisoned = nan.is_some() || max == f64::INFINITY;
    let distribution = if poisoned || !max.is_finite() {
        Distribution::NAN
    } else {
        let mut sums = [Compensated::default(), Compensated::default(), Compensated::default()];
        for class in (0..part.row.len()).filter(|&class| class != argmax) {
            let z = cooled(raw(class));
            let below = max - z;
            let e = math::exp(-below);
            if e > 0.0 {
                // What rounding took from the difference is a part of the exponential as large.
                let minus_z = below - max;
                let lost = (max - (below - minus_z)) + (-z - minus_z);
                let e = e - e * lost;
                for (sum, v) in sums.iter_mut().zip([e, e * below, e * below * below]) {
                    sum.add(v);
                }
            }
        }
        let [sum, first, second] = sums.map(|sum| sum.value());
        Distribution::new(max, sum, first, second)
    };
    let origin = part.transform.origin / part.transform.temperature;
    let logsumexp = match nan {
        Some(_) => f64::NAN,
        None if max.is_infinite() => max,
        None => origin + max + distribution.nll,
    };
    Found {
        distribution,
        logsumexp,
        ranks: (ge, gt + u64::from(!target.is_nan())),
        max: if nan.is_some() { f64::NEG_INFINITY } else { raw_max },
        argmax: if part.row.is_empty() { NONE } else { part.id(nan.unwrap_or(argmax)) },
        drawn: drawn.filter(|_| !poisoned).map(|(_, class, z)| (part.id(class), z)),
    }
}
