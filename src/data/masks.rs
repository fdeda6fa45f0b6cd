//! Masks of the classes that may be.
#![forbid(unsafe_code)]

use crate::data::error::{Error, WORDS};
use wide::bytemuck;

/// Which classes of each row may be, a bit for each: what grammar-constrained decoders hold (xgrammar,
/// llguidance). Bit `j % 32` of word `j / 32` of a row, the lowest first, is class `j`; the bits beyond the
/// vocabulary do not matter.
///
/// Results have the bits that they have with -inf over the logits of the other classes, which are not copied
/// for it.
///
/// ```
/// use xent::{AllowedTokens, Logits, Softmax};
///
/// let logits = Logits::new(&[0.0_f32, 0.0, 7.0, 0.0, 0.0, 7.0], 2, 3)?;
/// let mut p = [0.0; 6];
/// Softmax::new().allowed_tokens(AllowedTokens::new(&[0b011, 0b001])).softmax(logits, &mut p)?;
/// assert_eq!(p, [0.5, 0.5, 0.0, 1.0, 0.0, 0.0]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllowedTokens<'a> {
    words: &'a [u32],
    stride: Option<usize>,
}

impl<'a> AllowedTokens<'a> {
    /// `[rows, words]`, contiguous, with as many words as a vocabulary takes: `vocab / 32` rounded up. Lengths
    /// are checked when it is used, against the logits: [`Error::InputLength`].
    pub const fn new(words: &'a [u32]) -> Self {
        AllowedTokens { words, stride: None }
    }

    /// As [`AllowedTokens::new`], of the signed words that Python libraries have.
    pub fn from_i32(words: &'a [i32]) -> Self {
        Self::new(bytemuck::cast_slice(words))
    }

    /// Rows of words that start `stride` words apart; 0 for one mask of all rows. Another stride that is less
    /// than the words of a row is an [`Error::Option`] when it is used.
    ///
    /// ```
    /// use xent::{AllowedTokens, Logits, Softmax};
    ///
    /// let logits = Logits::new(&[0.0_f32, 0.0, 7.0, 0.0, 1.0, 7.0], 2, 3)?;
    /// let all = AllowedTokens::new(&[0b011]).stride(0);
    /// let mut lse = [0.0; 2];
    /// Softmax::new().allowed_tokens(all).logsumexp(logits, &mut lse)?;
    /// assert_eq!(lse, [0.6931472, 1.3132616]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn stride(mut self, stride: usize) -> Self {
        self.stride = Some(stride);
        self
    }

    pub(crate) const fn words(self) -> &'a [u32] {
        self.words
    }

    /// The same masks in other memory.
    pub(crate) const fn over(self, words: &[u32]) -> AllowedTokens<'_> {
        AllowedTokens { words, stride: self.stride }
    }

    /// The masks of so many rows, checked.
    pub(crate) fn rows(self, rows: usize, vocab: usize) -> Result<AllowedRows<'a>, Error> {
        let len = vocab.div_ceil(32);
        let stride = self.stride.unwrap_or(len);
        if stride != 0 && stride < len {
            let range = "0, or at least the words of a row: vocab / 32 rounded up";
            return Err(Error::Option {
                option: "stride of allowed tokens",
                value: stride.to_string(),
                range,
            });
        }
        let needed = match rows.checked_sub(1).map(|before| before.checked_mul(stride)) {
            None => Some(0),
            Some(last) => last.and_then(|last| last.checked_add(len)),
        };
        let Some(expected) = needed else {
            return Err(Error::Overflow { rows, elements: stride });
        };
        if self.stride.is_none() || self.words.len() < expected {
            Error::check_input(WORDS, self.words.len(), expected)?;
        }
        Ok(AllowedRows { words: self.words, first: 0, stride, len })
    }
}

/// The masks of rows, from row `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllowedRows<'a> {
    pub(crate) words: &'a [u32],
    pub(crate) first: usize,
    /// From the mask of one row to that of the next, and of how many words it is.
    pub(crate) stride: usize,
    pub(crate) len: usize,
}

impl<'a> AllowedRows<'a> {
    #[inline(always)]
    pub(crate) fn row(self, i: usize) -> Allowed<'a> {
        Allowed(&self.words[(self.first + i) * self.stride..][..self.len])
    }

    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        (self, AllowedRows { first: self.first + row, ..self })
    }
}

/// The mask of a row: whether a class may be, a bit for each, the lowest of a word first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Allowed<'a>(pub(crate) &'a [u32]);

impl Allowed<'_> {
    #[inline(always)]
    pub(crate) fn contains(self, class: usize) -> bool {
        self.0[class / 32] >> (class % 32) & 1 == 1
    }

    /// `value` over what may not be.
    #[inline(always)]
    pub(crate) fn fill_others<T: Copy>(self, row: &mut [T], value: T) {
        for (row, &word) in row.chunks_mut(32).zip(self.0) {
            // Most words of most masks are one or the other.
            match word {
                0 => row.fill(value),
                u32::MAX => {}
                _ => {
                    for (i, x) in row.iter_mut().enumerate() {
                        *x = if word >> i & 1 == 1 { *x } else { value };
                    }
                }
            }
        }
    }

    /// Of 16 classes, of which the first is a multiple of 16.
    #[inline(always)]
    pub(crate) fn bits(self, class: usize) -> u16 {
        (self.0[class / 32] >> (class % 32)) as u16
    }
}
