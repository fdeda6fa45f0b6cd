//! Masks of allowed tokens.

use crate::input::Input;
use crate::number::Number;
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
