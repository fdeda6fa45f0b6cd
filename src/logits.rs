//! Validated views of `[rows, vocab]` matrices.
#![forbid(unsafe_code)]

use crate::Error;
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};

/// A `[rows, vocab]` matrix of logits in a slice, checked once: `f32`, `f64`, `bf16` or `f16`, see
/// [`Element`](crate::Element).
///
/// Rows are contiguous; the distance from one to the next is `vocab`, or a larger stride where rows
/// are padded or part of a larger matrix. What lies between rows is never read.
///
/// ```
/// use xent::Logits;
///
/// let data: Vec<f32> = (0..8).map(|x| x as f32).collect();
/// let contiguous = Logits::new(&data, 2, 4)?;
/// assert_eq!(contiguous.row(1), &[4.0, 5.0, 6.0, 7.0]);
///
/// // Three classes in rows of four; the slice may end with the last class.
/// let padded = Logits::with_stride(&data[..7], 2, 3, 4)?;
/// assert_eq!(padded.row(1), &[4.0, 5.0, 6.0]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Debug)]
pub struct Logits<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    vocab: usize,
    stride: usize,
}

/// As [`Logits`], for functions that overwrite the logits.
///
/// ```
/// use xent::{LogitsMut, Softmax};
///
/// let mut data = [0.0, 0.0, 1.0, 1.0];
/// Softmax::new().softmax_in_place(LogitsMut::new(&mut data, 2, 2)?)?;
/// assert_eq!(data, [0.5; 4]);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Debug)]
pub struct LogitsMut<'a, T = f32> {
    data: &'a mut [T],
    rows: usize,
    vocab: usize,
    stride: usize,
}

fn check_contiguous(len: usize, rows: usize, vocab: usize) -> Result<(), Error> {
    match rows.checked_mul(vocab) {
        None => Err(Error::Overflow { rows, elements: vocab }),
        Some(needed) if needed != len => Err(Error::Length { rows, vocab, len }),
        Some(_) => Ok(()),
    }
}

fn check_strided(len: usize, rows: usize, vocab: usize, stride: usize) -> Result<(), Error> {
    if stride < vocab {
        return Err(Error::Stride { stride, vocab });
    }
    if rows.checked_mul(stride).is_none() {
        return Err(Error::Overflow { rows, elements: stride });
    }
    let needed = if rows == 0 { 0 } else { (rows - 1) * stride + vocab };
    if len < needed {
        return Err(Error::StridedLength { rows, vocab, stride, needed, len });
    }
    Ok(())
}

impl<T> Clone for Logits<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Logits<'_, T> {}

impl<'a, T> Logits<'a, T> {
    /// A contiguous matrix: `data` has exactly `rows * vocab` elements, row after row.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Overflow`].
    pub fn new(data: &'a [T], rows: usize, vocab: usize) -> Result<Self, Error> {
        check_contiguous(data.len(), rows, vocab)?;
        Ok(Logits { data, rows, vocab, stride: vocab })
    }

    /// Rows of `vocab` elements that start `stride` elements apart. The last row needs no padding
    /// after it, and the slice may be longer than the matrix.
    ///
    /// # Errors
    /// [`Error::Stride`] if `stride < vocab`, [`Error::StridedLength`], [`Error::Overflow`].
    pub fn with_stride(
        data: &'a [T],
        rows: usize,
        vocab: usize,
        stride: usize,
    ) -> Result<Self, Error> {
        check_strided(data.len(), rows, vocab, stride)?;
        Ok(Logits { data, rows, vocab, stride })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of classes of a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Elements from the start of one row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row out of range");
        &self.data[i * self.stride..][..self.vocab]
    }

    #[cfg_attr(not(feature = "rayon"), allow(dead_code))]
    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        // The last row may end before its stride does, or have no elements at all.
        let (a, b) = self.data.split_at((row * self.stride).min(self.data.len()));
        (Logits { data: a, rows: row, ..self }, Logits { data: b, rows: self.rows - row, ..self })
    }
}

impl<'a, T> LogitsMut<'a, T> {
    /// As [`Logits::new`].
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Overflow`].
    pub fn new(data: &'a mut [T], rows: usize, vocab: usize) -> Result<Self, Error> {
        check_contiguous(data.len(), rows, vocab)?;
        Ok(LogitsMut { data, rows, vocab, stride: vocab })
    }

    /// As [`Logits::with_stride`]. What lies between rows is neither read nor written.
    ///
    /// # Errors
    /// [`Error::Stride`] if `stride < vocab`, [`Error::StridedLength`], [`Error::Overflow`].
    pub fn with_stride(
        data: &'a mut [T],
        rows: usize,
        vocab: usize,
        stride: usize,
    ) -> Result<Self, Error> {
        check_strided(data.len(), rows, vocab, stride)?;
        Ok(LogitsMut { data, rows, vocab, stride })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of classes of a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Elements from the start of one row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row out of range");
        &mut self.data[i * self.stride..][..self.vocab]
    }

    #[cfg_attr(not(feature = "rayon"), allow(dead_code))]
    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        let LogitsMut { data, rows, vocab, stride } = self;
        let (a, b) = data.split_at_mut((row * stride).min(data.len()));
        (
            LogitsMut { data: a, rows: row, vocab, stride },
            LogitsMut { data: b, rows: rows - row, vocab, stride },
        )
    }
}

macro_rules! from_bits {
    ($($type:ident $one:literal),*) => {$(
        impl<'a> Logits<'a, $type> {
            /// As [`Logits::new`], of the bits of the numbers: for callers that do not use the `half` crate.
            ///
            /// ```
            #[doc = concat!("use xent::{CrossEntropy, Logits, ", stringify!($type), "};")]
            ///
            #[doc = concat!("let x: [u16; 2] = [", $one, ", 0];")]
            #[doc = concat!("let logits = Logits::<", stringify!($type), ">::from_bits(&x, 1, 2)?;")]
            /// let mut losses = [0.0_f32];
            /// CrossEntropy::new().forward_into(logits, &[0i64], &mut losses)?;
            /// assert_eq!(losses, [0.3132617]); // ln(1 + 1/e)
            /// # Ok::<(), xent::Error>(())
            /// ```
            ///
            /// # Errors
            /// As [`Logits::new`].
            pub fn from_bits(data: &'a [u16], rows: usize, vocab: usize) -> Result<Self, Error> {
                Self::new(data.reinterpret_cast(), rows, vocab)
            }

            /// As [`Logits::with_stride`], of the bits of the numbers.
            ///
            /// # Errors
            /// As [`Logits::with_stride`].
            pub fn from_bits_with_stride(
                data: &'a [u16],
                rows: usize,
                vocab: usize,
                stride: usize,
            ) -> Result<Self, Error> {
                Self::with_stride(data.reinterpret_cast(), rows, vocab, stride)
            }
        }

        impl<'a> LogitsMut<'a, $type> {
            /// As [`LogitsMut::new`], of the bits of the numbers, which are overwritten with those of others.
            ///
            /// # Errors
            /// As [`LogitsMut::new`].
            pub fn from_bits(data: &'a mut [u16], rows: usize, vocab: usize) -> Result<Self, Error> {
                Self::new(data.reinterpret_cast_mut(), rows, vocab)
            }

            /// As [`LogitsMut::with_stride`], of the bits of the numbers.
            ///
            /// # Errors
            /// As [`LogitsMut::with_stride`].
            pub fn from_bits_with_stride(
                data: &'a mut [u16],
                rows: usize,
                vocab: usize,
                stride: usize,
            ) -> Result<Self, Error> {
                Self::with_stride(data.reinterpret_cast_mut(), rows, vocab, stride)
            }
        }
    )*};
}
from_bits!(bf16 "0x3f80", f16 "0x3c00");
