//! The same case in other words: what a mask forbids instead of -inf, and tokens instead of targets.

use crate::case::{Case, OwnedIds, OwnedTargets};
use crate::input::Input;
use crate::number::{Logit, Number};
use xent::AllowedTokens;

/// The bit mask of each row.
#[derive(Clone, Debug)]
pub struct Mask {
    words: Vec<u32>,
    stride: usize,
}

impl Mask {
    /// With the class of each row that it must allow, as a loss of infinity says little.
    pub fn any(input: &mut Input<'_>, rows: usize, vocab: usize) -> Self {
        let len = vocab.div_ceil(32);
        let stride = input.pick(&[len, 0, len + 1]);
        let mut state = input.long();
        let kind = input.byte() % 4;
        let words = (0..rows.max(1) * stride + len).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let word = (state >> 32) as u32;
            match kind {
                0 => word,
                1 => [0, u32::MAX, word][state as usize >> 8 & 1],
                2 => !(1 << (word % 32)),
                _ => 1 << (word % 32),
            }
        });
        Mask { words: words.collect(), stride }
    }

    pub fn allowed(&self) -> AllowedTokens<'_> {
        AllowedTokens::new(&self.words).stride(self.stride)
    }

    pub fn is_allowed(&self, row: usize, class: usize) -> bool {
        self.words[row * self.stride + class / 32] >> (class % 32) & 1 == 1
    }

    /// -inf over what is not allowed.
    pub fn apply<T: Number>(&self, x: &mut [T], vocab: usize) {
        for (i, x) in x.iter_mut().enumerate() {
            if !self.is_allowed(i / vocab, i % vocab) {
                *x = T::round(f64::NEG_INFINITY);
            }
        }
    }
}

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
