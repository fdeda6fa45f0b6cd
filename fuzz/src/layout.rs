//! The same matrix in memory in different ways. Every result must have the same bits in each of them.

use crate::input::Input;
use crate::number::{Number, bits};
use xent::{Logits, LogitsMut};

/// Where rows are in a slice, with `before` elements before the view and `after` at its end.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    kind: Kind,
    before: usize,
    after: usize,
    /// Between what would touch otherwise: rows or classes, and batches.
    gaps: [usize; 2],
    /// Batches, if the rows are a multiple of them.
    batch: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Contiguous,
    Strided,
    /// `[batch, time, vocab]`
    Batches,
    /// `[batch, vocab, time]`
    ClassesFirst,
    /// Each row in a slice of its own, where it is written; as `Strided` where it is only read.
    List,
}

impl Layout {
    pub const CONTIGUOUS: Layout =
        Layout { kind: Kind::Contiguous, before: 0, after: 0, gaps: [0; 2], batch: 1 };

    pub fn any(input: &mut Input<'_>) -> Self {
        let kinds =
            [Kind::Contiguous, Kind::Strided, Kind::Batches, Kind::ClassesFirst, Kind::List];
        match input.pick(&kinds) {
            Kind::Contiguous => Layout::CONTIGUOUS,
            kind => Layout {
                kind,
                before: input.below(17),
                after: input.below(5),
                gaps: [input.below(20), input.below(5)],
                batch: 1 + input.below(4),
            },
        }
    }

    fn shape(self, rows: usize, vocab: usize) -> [usize; 3] {
        let batch = match self.kind {
            Kind::Batches | Kind::ClassesFirst if rows.is_multiple_of(self.batch) => self.batch,
            _ => 1,
        };
        [batch, rows / batch, vocab]
    }

    fn strides(self, [_, time, vocab]: [usize; 3]) -> [usize; 3] {
        let [inner, outer] = self.gaps;
        match self.kind {
            Kind::ClassesFirst => [vocab * (time + inner) + outer, 1, time + inner],
            _ => [time * (vocab + inner) + outer, vocab + inner, 1],
        }
    }

    /// The rows in this layout; everything else is NaN, so that reading it would show.
    pub fn place<T: Number>(self, values: &[T], rows: usize, vocab: usize) -> Placed<T> {
        let shape = self.shape(rows, vocab);
        let strides = self.strides(shape);
        let last: usize = shape.iter().zip(strides).map(|(n, s)| n.saturating_sub(1) * s).sum();
        let span = match (rows, vocab) {
            (0, _) => 0,
            // A stride is room that rows take, even rows of nothing.
            (_, 0) => {
                if self.kind == Kind::Strided {
                    last
                } else {
                    0
                }
            }
            _ => last + 1,
        };
        // Of exactly that capacity: an address sanitizer sees the first element beyond it.
        let mut data = vec![T::round(f64::NAN); self.before + span + self.after];
        for (i, &x) in values.iter().enumerate() {
            data[self.before + offset(shape, strides, i)] = x;
        }
        Placed { layout: self, data, shape, strides }
    }
}

fn offset([_, time, vocab]: [usize; 3], [sb, st, sv]: [usize; 3], i: usize) -> usize {
    let (row, class) = (i / vocab, i % vocab);
    row / time * sb + row % time * st + class * sv
}

/// A matrix in a slice of its own.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    layout: Layout,
    data: Vec<T>,
    shape: [usize; 3],
    strides: [usize; 3],
}

const FITS: &str = "the slice is as long as it must be";

impl<T: Number> Placed<T> {
    pub fn logits(&self) -> Logits<'_, T> {
        let (data, [_, rows, vocab]) = (&self.data[self.layout.before..], self.shape);
        let view = match self.layout.kind {
            Kind::Contiguous => Logits::new(data, rows, vocab),
            Kind::Strided => Logits::with_stride(data, rows, vocab, self.strides[1]),
            _ => Logits::strided(data, self.shape, self.strides),
        };
        view.expect(FITS)
    }

    pub fn logits_mut(&mut self) -> LogitsMut<'_, T> {
        let (data, [_, rows, vocab]) = (&mut self.data[self.layout.before..], self.shape);
        let stride = self.strides[1];
        let view = match self.layout.kind {
            Kind::Contiguous => LogitsMut::new(data, rows, vocab),
            Kind::Strided => LogitsMut::with_stride(data, rows, vocab, stride),
            Kind::List if vocab > 0 => {
                let slices = data.chunks_mut(stride).filter(|row| row.len() >= vocab).take(rows);
                LogitsMut::from_rows(slices.collect(), vocab)
            }
            _ => LogitsMut::strided(data, self.shape, self.strides),
        };
        view.expect(FITS)
    }

    /// The rows, contiguous. What is between them must be as it was.
    pub fn rows(&self) -> Vec<T> {
        let [batch, time, vocab] = self.shape;
        let at = |i| self.data[self.layout.before + offset(self.shape, self.strides, i)];
        let rows: Vec<T> = (0..batch * time * vocab).map(at).collect();
        let again = self.layout.place(&rows, batch * time, vocab);
        assert!(bits(&again.data) == bits(&self.data), "written outside of the rows: {self:?}");
        rows
    }
}
