//! Matrices whose classes are far apart, `[batch, vocab, positions]`.

use std::ops::Range;

/// From row `first` on.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) first: usize,
    pub(crate) shape: Shape,
}

/// Where what is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) positions: usize,
    pub(crate) batch_stride: usize,
    pub(crate) class_stride: usize,
}

impl<T> Clone for Columns<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Columns<'_, T> {}

/// A range of rows that are positions of one batch.
pub(crate) struct Segment {
    /// Of the first row, from the first of the range.
    pub(crate) row: usize,
    pub(crate) batch: usize,
    pub(crate) positions: Range<usize>,
}

impl Shape {
    pub(crate) fn segments(self, rows: Range<usize>) -> impl Iterator<Item = Segment> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            if next == rows.end {
                return None;
            }
            let (batch, start) = (next / self.positions, next % self.positions);
            let end = self.positions.min(start + (rows.end - next));
            let segment = Segment { row: next - rows.start, batch, positions: start..end };
            next += end - start;
            Some(segment)
        })
    }
}

impl<'a, T> Columns<'a, T> {
    /// Of checked strides. There is a row, and a class.
    pub(crate) fn new(
        data: &'a [T],
        positions: usize,
        batch_stride: usize,
        class_stride: usize,
    ) -> Self {
        Columns { data, first: 0, shape: Shape { positions, batch_stride, class_stride } }
    }

    /// From that row on.
    pub(crate) fn from(self, row: usize) -> Self {
        Columns { first: self.first + row, ..self }
    }
}

#[derive(Debug)]
pub(crate) struct ColumnsMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) vocab: usize,
    pub(crate) shape: Shape,
}

impl<'a, T> ColumnsMut<'a, T> {
    /// Of checked strides: no two classes overlap. There is a row, and a class.
    pub(crate) fn new(
        data: &'a mut [T],
        [_, positions, vocab]: [usize; 3],
        batch_stride: usize,
        class_stride: usize,
    ) -> Self {
        ColumnsMut { data, vocab, shape: Shape { positions, batch_stride, class_stride } }
    }

    pub(crate) fn columns(&self, row: usize) -> Columns<'_, T> {
        Columns { data: self.data, first: row, shape: self.shape }
    }
}
