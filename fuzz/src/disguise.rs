//! The same case in other words: what a mask forbids instead of -inf, and tokens instead of targets.

use crate::case::{Case, OwnedIds, OwnedTargets};
use crate::input::Input;
use crate::mask::Mask;
use crate::number::Logit;

/// A plain case and the same in disguise, whose results must have the same bits.
pub fn disguise<T: Logit>(input: &mut Input<'_>, case: Case<T>) -> (Case<T>, Case<T>) {
    let (mut plain, mut disguised) = (case.clone(), case);
    let options = &plain.options;
    // A cap of all makes a number of -inf, but not of what a mask forbids.
    let caps_masks = options.softcap.is_some() && options.caps_infinities;
    if input.one_in(3) && !caps_masks {
        let mask = Mask::any(input, plain.rows, plain.vocab);
        mask.apply(&mut plain.x, plain.vocab);
        disguised.options.mask = Some(mask);
    }
    if input.one_in(3)
        && let Some((by_hand, shifted)) = shift(input, &plain)
    {
        (plain.targets, disguised.targets) = (by_hand, shifted);
    }
    (plain, disguised)
}

fn shift<T: Logit>(input: &mut Input<'_>, case: &Case<T>) -> Option<(OwnedTargets, OwnedTargets)> {
    let (OwnedTargets::Classes(ids), Some(&ignored)) =
        (&case.targets, case.options.ignored.0.first())
    else {
        return None;
    };
    let values: Option<Vec<i64>> = ids.values().into_iter().map(|id| id.try_into().ok()).collect();
    let values = values.filter(|values| values.len() == case.rows && case.rows > 0)?;
    let batch = 1 + input.below(4);
    let sequence = if case.rows.is_multiple_of(batch) { case.rows / batch } else { case.rows };
    let shift = input.below(sequence);
    let by_hand = (0..case.rows)
        .map(|row| if row % sequence + shift < sequence { values[row + shift] } else { ignored });
    let by_hand = OwnedTargets::Classes(OwnedIds::I64(by_hand.collect()));
    Some((by_hand, OwnedTargets::Shifted { ids: ids.clone(), sequence, shift }))
}
