//! What is added to the logits of some tokens.
#![forbid(unsafe_code)]

use crate::data::error::{Error, number};

/// A number for some tokens, which is added to their logits: OpenAI's `logit_bias`. In `f32` where the logits are, with
/// the bits that adding them beforehand would give.
///
/// Pairs of token and number, in ascending order of the tokens. Numbers may be -inf, which bans a token.
///
/// ```
/// use xent::{LogProbs, LogitBias, Logits, TokenOutputs};
///
/// let bias = [(0, f32::NEG_INFINITY), (2, 1.5)];
/// let mut argmax = [0];
/// LogProbs::new()
///     .logit_bias(LogitBias::new(&bias))
///     .run(Logits::new(&[3.0_f32, 2.0, 1.0], 1, 3)?, TokenOutputs::new().argmax(&mut argmax))?;
/// assert_eq!(argmax, [2]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitBias<'a> {
    entries: &'a [(u32, f32)],
    offsets: Option<&'a [usize]>,
}

impl<'a> LogitBias<'a> {
    /// The same for all rows. Checked when it is used, against the logits: [`Error::LogitBias`] for tokens that do not
    /// ascend or are not in the vocabulary, and for numbers that are NaN or +inf.
    pub const fn new(entries: &'a [(u32, f32)]) -> Self {
        LogitBias { entries, offsets: None }
    }

    /// For each row those from `offsets[row]` to `offsets[row + 1]`, which ascend within the row. One offset more than
    /// there are rows, or [`Error::InputLength`]; and they must not descend, nor exceed the entries, or
    /// [`Error::Option`].
    ///
    /// ```
    /// use xent::{LogProbs, LogitBias, Logits, TokenOutputs};
    ///
    /// let (entries, offsets) = ([(1, 9.0), (2, 9.0)], [0, 1, 1, 2]);
    /// let bias = LogitBias::per_row(&entries, &offsets);
    /// let mut argmax = [0; 3];
    /// LogProbs::new()
    ///     .logit_bias(bias)
    ///     .run(Logits::new(&[0.0_f32; 9], 3, 3)?, TokenOutputs::new().argmax(&mut argmax))?;
    /// assert_eq!(argmax, [1, 0, 2]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    pub const fn per_row(entries: &'a [(u32, f32)], offsets: &'a [usize]) -> Self {
        LogitBias { entries, offsets: Some(offsets) }
    }

    pub(crate) fn rows(self, rows: usize, vocab: usize) -> Result<BiasRows<'a>, Error> {
        if let Some(offsets) = self.offsets {
            let expected = rows.checked_add(1).ok_or(Error::Overflow { rows, elements: 1 })?;
            Error::check_input("offsets of logit biases", offsets.len(), expected)?;
            let descends = offsets.windows(2).any(|pair| pair[0] > pair[1]);
            let last = offsets.last().copied().unwrap_or(0);
            if descends || last > self.entries.len() {
                return Err(Error::Option {
                    option: "offsets of logit biases",
                    value: format!("(.., {last})"),
                    range: "ascending, up to the number of entries",
                });
            }
        }
        let checked = BiasRows { entries: self.entries, offsets: self.offsets };
        match self.offsets {
            None => check(self.entries, 0, vocab)?,
            Some(offsets) => {
                for (row, &start) in offsets[..rows].iter().enumerate() {
                    check(checked.row(row), start, vocab)?;
                }
            }
        }
        Ok(checked)
    }
}

fn check(entries: &[(u32, f32)], start: usize, vocab: usize) -> Result<(), Error> {
    for (i, &(id, value)) in entries.iter().enumerate() {
        let range = if id as usize >= vocab {
            "the token must be in the vocabulary"
        } else if i > 0 && entries[i - 1].0 >= id {
            "its token must be above that of the entry before it; sort entries by token, with each token once"
        } else if value.is_nan() || value == f32::INFINITY {
            "the value must be a number or -inf"
        } else {
            continue;
        };
        return Err(Error::LogitBias { entry: start + i, id, value: number(value), range });
    }
    Ok(())
}

/// Biases that were checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BiasRows<'a> {
    entries: &'a [(u32, f32)],
    offsets: Option<&'a [usize]>,
}

impl<'a> BiasRows<'a> {
    pub(crate) fn row(self, row: usize) -> &'a [(u32, f32)] {
        self.offsets.map_or(self.entries, |offsets| &self.entries[offsets[row]..offsets[row + 1]])
    }
}
