//! Validated views of `[rows, vocab]` matrices.
#![forbid(unsafe_code)]

use crate::data::columns::{Columns, ColumnsMut};
use crate::data::error::Error;
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use std::{mem, vec};

/// A `[rows, vocab]` matrix of logits in memory that the caller has, checked once: `f32`, `f64`, `bf16` or
/// `f16`, see [`Element`](crate::Element).
///
/// Nothing is copied. What is in memory but not in the matrix, as the padding of a vocabulary, is never read.
/// Results do not depend on the layout, to the bit.
///
/// | memory | constructor |
/// |---|---|
/// | `[rows, vocab]` | [`Logits::new`] |
/// | rows padded, or part of a larger matrix | [`Logits::with_stride`] |
/// | any view of `[batch, time, vocab]`, as other libraries describe it | [`Logits::strided`] |
/// | `[batch, vocab, positions]`, as PyTorch has images | [`Logits::classes_first`] |
/// | rows here and there | [`Logits::from_rows`] |
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
    layout: Layout<'a, T>,
    rows: usize,
    vocab: usize,
}

/// As [`Logits`], for functions that overwrite the logits, and for gradients. Rows may not overlap, and what is
/// between them is neither read nor written.
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
    layout: LayoutMut<'a, T>,
    rows: usize,
    vocab: usize,
}

#[derive(Debug)]
enum Layout<'a, T> {
    Strided {
        data: &'a [T],
        stride: usize,
    },
    /// From row `first` on.
    Batched {
        data: &'a [T],
        first: usize,
        grid: Grid,
    },
    List(&'a [&'a [T]]),
    ClassesFirst(Columns<'a, T>),
}

#[derive(Debug)]
enum LayoutMut<'a, T> {
    Strided {
        data: &'a mut [T],
        stride: usize,
    },
    /// From row `first` on, which is where `data` begins.
    Batched {
        data: &'a mut [T],
        first: usize,
        grid: Grid,
    },
    /// An iterator, as it can be split without moving what is left.
    List(vec::IntoIter<&'a mut [T]>),
    ClassesFirst(ColumnsMut<'a, T>),
}

/// Where rows are that come in batches.
#[derive(Clone, Copy, Debug)]
struct Grid {
    time: usize,
    batch_stride: usize,
    time_stride: usize,
}

impl Grid {
    #[inline(always)]
    fn offset(&self, row: usize) -> usize {
        row / self.time * self.batch_stride + row % self.time * self.time_stride
    }
}

/// What strides mean.
enum Strided {
    Nothing,
    Rows { stride: usize },
    Grid(Grid),
    Columns { batch_stride: usize, class_stride: usize },
}

impl Strided {
    fn new(len: usize, shape: [usize; 3], strides: [usize; 3]) -> Result<Self, Error> {
        let [batch, time, vocab] = shape;
        if batch == 0 || time == 0 || vocab == 0 {
            return match batch.checked_mul(time) {
                Some(_) => Ok(Strided::Nothing),
                None => Err(Error::Overflow { rows: batch, elements: time }),
            };
        }
        let mut needed = 1u128;
        for (n, stride) in shape.into_iter().zip(strides) {
            needed = needed.saturating_add((n as u128 - 1) * stride as u128);
        }
        if needed > len as u128 {
            return Err(Error::StridedShape { shape, strides, needed, len });
        }
        // A slice of units, or strides of 0, may have more rows than can be counted.
        if batch.checked_mul(time).and_then(|rows| rows.checked_mul(vocab)).is_none() {
            let rows = batch.saturating_mul(time);
            return Err(Error::Overflow { rows, elements: vocab });
        }
        let [batch_stride, time_stride, class_stride] = strides;
        Ok(if class_stride == 1 || vocab == 1 {
            if batch == 1 && time == 1 {
                // Its strides may be anything.
                Strided::Rows { stride: vocab }
            } else if batch == 1 || Some(batch_stride) == time_stride.checked_mul(time) {
                Strided::Rows { stride: time_stride }
            } else if time == 1 {
                Strided::Rows { stride: batch_stride }
            } else {
                Strided::Grid(Grid { time, batch_stride, time_stride })
            }
        } else if class_stride != 0 && (time_stride == 1 || time == 1) {
            Strided::Columns { batch_stride, class_stride }
        } else {
            return Err(Error::Strides { shape, strides });
        })
    }

    /// That no two elements of the matrix are one, and that rows follow one another in memory.
    fn check_disjoint(&self, shape: [usize; 3], strides: [usize; 3]) -> Result<(), Error> {
        let [batch, time, vocab] = shape;
        // Between neighbours, and how much memory each takes. None of these overflows: all are within a slice.
        let inner = |n: usize, stride: usize, size: usize| n == 1 || stride >= size;
        let apart = match *self {
            Strided::Nothing => true,
            Strided::Rows { stride } => inner(batch * time, stride, vocab),
            Strided::Grid(grid) => {
                let size = (time - 1) * grid.time_stride + vocab;
                inner(time, grid.time_stride, vocab) && inner(batch, grid.batch_stride, size)
            }
            Strided::Columns { batch_stride, class_stride } => {
                let size = (vocab - 1) * class_stride + time;
                inner(vocab, class_stride, time) && inner(batch, batch_stride, size)
            }
        };
        if apart { Ok(()) } else { Err(Error::Overlap { shape, strides }) }
    }
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

fn check_rows(lengths: impl ExactSizeIterator<Item = usize>, vocab: usize) -> Result<(), Error> {
    let rows = lengths.len();
    if rows.checked_mul(vocab).is_none() {
        // Rows may be one and the same.
        return Err(Error::Overflow { rows, elements: vocab });
    }
    match lengths.enumerate().find(|&(_, len)| len < vocab) {
        Some((row, len)) => Err(Error::RowLength { row, len, vocab }),
        None => Ok(()),
    }
}

/// The shape of a contiguous `[batch, vocab, positions]` as that of a view of `[batch, positions, vocab]`.
fn classes_first(
    len: usize,
    batch: usize,
    vocab: usize,
    positions: usize,
) -> Result<([usize; 3], [usize; 3]), Error> {
    let Some(rows) = batch.checked_mul(positions) else {
        return Err(Error::Overflow { rows: batch, elements: positions });
    };
    check_contiguous(len, rows, vocab)?;
    // The first cannot overflow unless there are no rows.
    let batch_stride = vocab.saturating_mul(positions);
    Ok(([batch, positions, vocab], [batch_stride, 1, positions]))
}

impl<T> Clone for Layout<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Layout<'_, T> {}

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
        Ok(Logits { layout: Layout::Strided { data, stride: vocab }, rows, vocab })
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
        Ok(Logits { layout: Layout::Strided { data, stride }, rows, vocab })
    }

    /// A view of shape `[batch, time, vocab]` with these strides, in elements: how candle, ndarray and PyTorch
    /// describe tensors. The slice begins with the first element. Row `b * time + t` is that of `[b, t]`.
    ///
    /// Either the classes or the positions in time have to be next to each other (stride 1, or only one of
    /// them). In the second case see [`Logits::classes_first`]. Rows may overlap: batch and time strides of 0
    /// repeat them.
    ///
    /// ```
    /// use xent::Logits;
    ///
    /// let data: Vec<f32> = (0..12).map(|x| x as f32).collect();
    /// // [time, batch, vocab] in memory, without the last of 3 classes: 2 sequences of 2.
    /// let logits = Logits::strided(&data, [2, 2, 2], [3, 6, 1])?;
    /// assert_eq!([logits.row(0), logits.row(1)], [&[0.0, 1.0], &[6.0, 7.0]]); // of the first sequence
    /// assert_eq!([logits.row(2), logits.row(3)], [&[3.0, 4.0], &[9.0, 10.0]]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StridedShape`] if the slice is too short, [`Error::Strides`] if neither classes nor positions
    /// are next to each other, [`Error::Overflow`].
    pub fn strided(data: &'a [T], shape: [usize; 3], strides: [usize; 3]) -> Result<Self, Error> {
        let [batch, time, vocab] = shape;
        let layout = match Strided::new(data.len(), shape, strides)? {
            Strided::Nothing => Layout::Strided { data: &[], stride: 0 },
            Strided::Rows { stride } => Layout::Strided { data, stride },
            Strided::Grid(grid) => Layout::Batched { data, first: 0, grid },
            Strided::Columns { batch_stride, class_stride } => {
                Layout::ClassesFirst(Columns::new(data, time, batch_stride, class_stride))
            }
        };
        Ok(Logits { layout, rows: batch * time, vocab })
    }

    /// A contiguous `[batch, vocab, positions]`, what PyTorch calls the K-dimensional loss: the classes of a
    /// row are `positions` elements apart. Row `b * positions + i` is `[b, .., i]`; of images, `positions` are
    /// their pixels.
    ///
    /// Vectors go along rows, so some rows at a time are transposed into a buffer, and gradients back, also rows
    /// that are ignored. Calls allocate it, twice if a gradient goes to such a matrix too: about 1 MiB per thread,
    /// or 16 rows per thread if these are more, but not beyond 64 MiB. kernels.md has what it costs.
    ///
    /// [`Softmax::softmax`](crate::Softmax::softmax) and `log_softmax` write contiguous rows whatever the layout
    /// of the logits; in place the layout stays.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let data = [1.0_f32, 0.5, 2.0, -1.0, 3.0, 2.0]; // rows [1, 2, 3] and [0.5, -1, 2]
    /// let loss = CrossEntropy::new().forward(Logits::classes_first(&data, 1, 3, 2)?, &[2i64, 1])?;
    /// assert!((loss - 1.8244586).abs() < 1e-6);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Overflow`].
    pub fn classes_first(
        data: &'a [T],
        batch: usize,
        vocab: usize,
        positions: usize,
    ) -> Result<Self, Error> {
        let (shape, strides) = classes_first(data.len(), batch, vocab, positions)?;
        Self::strided(data, shape, strides)
    }

    /// Rows that are anywhere, as pages of a cache or sequences of several requests. Of each, the first `vocab`
    /// elements are read.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let (a, b) = (vec![1.0_f32, 2.0, 3.0], vec![0.5, -1.0, 2.0, f32::NAN]);
    /// let loss = CrossEntropy::new().forward(Logits::from_rows(&[&a, &b], 3)?, &[2i64, 1])?;
    /// assert!((loss - 1.8244586).abs() < 1e-6);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::RowLength`] if a row has fewer than `vocab` elements, [`Error::Overflow`].
    pub fn from_rows(rows: &'a [&'a [T]], vocab: usize) -> Result<Self, Error> {
        check_rows(rows.iter().map(|row| row.len()), vocab)?;
        Ok(Logits { layout: Layout::List(rows), rows: rows.len(), vocab })
    }

    /// The number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of classes of a row.
    #[inline]
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i >= rows`, or if the classes of a row are not next to each other.
    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row out of range");
        match self.layout {
            Layout::Strided { data, stride } => &data[i * stride..][..self.vocab],
            Layout::Batched { data, first, grid } => &data[grid.offset(first + i)..][..self.vocab],
            Layout::List(rows) => &rows[i][..self.vocab],
            Layout::ClassesFirst(_) => panic!("the classes of a row are not next to each other"),
        }
    }

    /// Where the same class of the next row is most often, in elements: for hints.
    #[inline]
    pub(crate) fn stride(&self) -> usize {
        match self.layout {
            Layout::Strided { stride, .. } => stride,
            Layout::Batched { grid, .. } => grid.time_stride,
            Layout::List(_) | Layout::ClassesFirst(_) => self.vocab,
        }
    }

    /// The matrix, if its classes are not next to each other.
    #[inline]
    pub(crate) fn columns(&self) -> Option<Columns<'a, T>> {
        match self.layout {
            Layout::ClassesFirst(columns) => Some(columns),
            _ => None,
        }
    }

    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        let (a, b) = match self.layout {
            // The last row may end before its stride does, or have no elements at all; rows may overlap.
            Layout::Strided { data, stride } => (
                self.layout,
                Layout::Strided { data: &data[(row * stride).min(data.len())..], stride },
            ),
            Layout::Batched { data, first, grid } => {
                (self.layout, Layout::Batched { data, first: first + row, grid })
            }
            Layout::List(rows) => {
                let (a, b) = rows.split_at(row);
                (Layout::List(a), Layout::List(b))
            }
            Layout::ClassesFirst(columns) => (self.layout, Layout::ClassesFirst(columns.from(row))),
        };
        let Logits { rows, vocab, .. } = self;
        (Logits { layout: a, rows: row, vocab }, Logits { layout: b, rows: rows - row, vocab })
    }
}

impl<'a, T> LogitsMut<'a, T> {
    /// As [`Logits::new`].
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Overflow`].
    pub fn new(data: &'a mut [T], rows: usize, vocab: usize) -> Result<Self, Error> {
        check_contiguous(data.len(), rows, vocab)?;
        Ok(LogitsMut { layout: LayoutMut::Strided { data, stride: vocab }, rows, vocab })
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
        Ok(LogitsMut { layout: LayoutMut::Strided { data, stride }, rows, vocab })
    }

    /// As [`Logits::strided`]. Rows have to follow one another in memory in their order, or of columns the
    /// batches: of `[time, batch, vocab]` in memory make rows with [`LogitsMut::from_rows`].
    ///
    /// # Errors
    /// As [`Logits::strided`], and [`Error::Overlap`].
    pub fn strided(
        data: &'a mut [T],
        shape: [usize; 3],
        strides: [usize; 3],
    ) -> Result<Self, Error> {
        let [batch, time, vocab] = shape;
        let strided = Strided::new(data.len(), shape, strides)?;
        strided.check_disjoint(shape, strides)?;
        let layout = match strided {
            Strided::Nothing => LayoutMut::Strided { data: &mut [], stride: 0 },
            Strided::Rows { stride } => LayoutMut::Strided { data, stride },
            Strided::Grid(grid) => LayoutMut::Batched { data, first: 0, grid },
            Strided::Columns { batch_stride, class_stride } => LayoutMut::ClassesFirst(
                ColumnsMut::new(data, [batch, time, vocab], batch_stride, class_stride),
            ),
        };
        Ok(LogitsMut { layout, rows: batch * time, vocab })
    }

    /// As [`Logits::classes_first`].
    ///
    /// ```
    /// use xent::{LogitsMut, Softmax};
    ///
    /// let mut data = [0.0, 0.0, 0.0, f32::NEG_INFINITY]; // rows [0, 0] and [0, -inf]
    /// Softmax::new().softmax_in_place(LogitsMut::classes_first(&mut data, 1, 2, 2)?)?;
    /// assert_eq!(data, [0.5, 1.0, 0.5, 0.0]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Overflow`].
    pub fn classes_first(
        data: &'a mut [T],
        batch: usize,
        vocab: usize,
        positions: usize,
    ) -> Result<Self, Error> {
        let (shape, strides) = classes_first(data.len(), batch, vocab, positions)?;
        Self::strided(data, shape, strides)
    }

    /// As [`Logits::from_rows`].
    ///
    /// ```
    /// use xent::{LogitsMut, Softmax};
    ///
    /// let mut data = [0.0, 0.0, 7.0, 0.0, f32::NEG_INFINITY, 7.0]; // two classes in rows of three
    /// let rows = data.chunks_mut(3).rev().collect();
    /// Softmax::new().softmax_in_place(LogitsMut::from_rows(rows, 2)?)?;
    /// assert_eq!(data, [0.5, 0.5, 7.0, 1.0, 0.0, 7.0]);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Logits::from_rows`].
    pub fn from_rows(rows: Vec<&'a mut [T]>, vocab: usize) -> Result<Self, Error> {
        check_rows(rows.iter().map(|row| row.len()), vocab)?;
        Ok(LogitsMut { rows: rows.len(), layout: LayoutMut::List(rows.into_iter()), vocab })
    }

    /// The number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of classes of a row.
    #[inline]
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i >= rows`, or if the classes of a row are not next to each other.
    #[inline(always)]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row out of range");
        match &mut self.layout {
            LayoutMut::Strided { data, stride } => &mut data[i * *stride..][..self.vocab],
            LayoutMut::Batched { data, first, grid } => {
                &mut data[grid.offset(*first + i) - grid.offset(*first)..][..self.vocab]
            }
            LayoutMut::List(rows) => &mut rows.as_mut_slice()[i][..self.vocab],
            LayoutMut::ClassesFirst(_) => panic!("the classes of a row are not next to each other"),
        }
    }

    /// The memory of a matrix made by [`LogitsMut::with_stride`], or a part of one, and the stride.
    pub(crate) fn memory(&mut self) -> (&mut [T], usize) {
        match &mut self.layout {
            LayoutMut::Strided { data, stride } => (data, *stride),
            _ => unreachable!("only for matrices of one stride"),
        }
    }

    /// As [`Logits::stride`].
    #[inline]
    pub(crate) fn stride(&self) -> usize {
        match self.layout {
            LayoutMut::Strided { stride, .. } => stride,
            LayoutMut::Batched { grid, .. } => grid.time_stride,
            LayoutMut::List(_) | LayoutMut::ClassesFirst(_) => self.vocab,
        }
    }

    /// The matrix, if its classes are not next to each other. A matrix without memory is left, whose rows
    /// cannot be accessed.
    pub(crate) fn take_columns(&mut self) -> Option<ColumnsMut<'a, T>> {
        if !matches!(self.layout, LayoutMut::ClassesFirst(_)) {
            return None;
        }
        match mem::replace(&mut self.layout, LayoutMut::Strided { data: &mut [], stride: 0 }) {
            LayoutMut::ClassesFirst(columns) => Some(columns),
            _ => None,
        }
    }

    pub(crate) fn split_at(self, row: usize) -> (Self, Self) {
        let LogitsMut { layout, rows, vocab } = self;
        let (a, b) = match layout {
            LayoutMut::Strided { data, stride } => {
                let (a, b) = data.split_at_mut((row * stride).min(data.len()));
                (LayoutMut::Strided { data: a, stride }, LayoutMut::Strided { data: b, stride })
            }
            LayoutMut::Batched { data, first, grid } => {
                let start = grid.offset(first + row) - grid.offset(first);
                let (a, b) = data.split_at_mut(start.min(data.len()));
                (
                    LayoutMut::Batched { data: a, first, grid },
                    LayoutMut::Batched { data: b, first: first + row, grid },
                )
            }
            LayoutMut::List(mut rows) => {
                let a: Vec<_> = rows.by_ref().take(row).collect();
                (LayoutMut::List(a.into_iter()), LayoutMut::List(rows))
            }
            LayoutMut::ClassesFirst(_) => unreachable!("taken before rows are spread"),
        };
        (
            LogitsMut { layout: a, rows: row, vocab },
            LogitsMut { layout: b, rows: rows - row, vocab },
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
