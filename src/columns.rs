//! Matrices whose classes are far apart, `[batch, vocab, positions]`, by way of rows.
//!
//! Kernels go along rows. So some rows at a time, a panel, are transposed into a buffer that stays in the
//! cache, and computed there; gradients are transposed back. Every panel is an ordinary call: whatever can be
//! asked of rows can be asked of columns, with the same bits.
#![forbid(unsafe_code)]

use crate::backend::Kernels;
use crate::kernel::gradient::Store;
use crate::kernel::train::GradientRows;
use crate::kernel::transpose::{Outer, Transpose};
use crate::kernel::{softmax, train};
use crate::rows::{Rows, for_each_group};
use crate::{Element, Logits, LogitsMut};
use std::ops::Range;

/// Bytes of a panel, per thread: what the second-level caches of most machines hold.
const PANEL: usize = 1 << 20;

/// Rows of a panel at least: as many as lanes, whatever the vocabulary. Each cache line of a class is then
/// read once.
const LEAST: usize = 32;

/// Rows or classes of a tile: one is not worth a task of its own.
#[cfg_attr(not(feature = "rayon"), allow(dead_code))]
const TILE: usize = 16;

/// From row `first` on.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    data: &'a [T],
    first: usize,
    shape: Shape,
}

/// Where what is.
#[derive(Clone, Copy, Debug)]
struct Shape {
    positions: usize,
    batch_stride: usize,
    class_stride: usize,
}

impl<T> Clone for Columns<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Columns<'_, T> {}

/// A range of rows that are positions of one batch.
struct Segment {
    /// Of the first row, from the first of the range.
    row: usize,
    batch: usize,
    positions: Range<usize>,
}

impl Shape {
    fn segments(self, rows: Range<usize>) -> impl Iterator<Item = Segment> {
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

impl<T: Element> Columns<'_, T> {
    /// The first rows, as many as there is room for.
    fn gather(self, kernels: Kernels, to: LogitsMut<'_, T>) {
        for_each_group(Gather { from: self, to }, &|job: &mut Gather<'_, T>| job.run(kernels));
    }
}

/// What is to be copied into rows.
struct Gather<'a, T> {
    from: Columns<'a, T>,
    to: LogitsMut<'a, T>,
}

impl<T: Element> Gather<'_, T> {
    fn run(&mut self, kernels: Kernels) {
        let Columns { data, first, shape } = self.from;
        let (rows, vocab) = (self.to.rows(), self.to.vocab());
        let to = self.to.contiguous();
        for Segment { row, batch, positions } in shape.segments(first..first + rows) {
            let from = &data[batch * shape.batch_stride + positions.start..];
            let to = &mut to[row * vocab..];
            T::transpose(
                kernels,
                &mut Transpose {
                    from,
                    from_stride: shape.class_stride,
                    to,
                    to_stride: vocab,
                    rows: vocab,
                    columns: positions.len(),
                    outer: Outer::Rows,
                },
            );
        }
    }
}

impl<T: Element> Rows for Gather<'_, T> {
    fn rows(&self) -> usize {
        self.to.rows()
    }
    fn vocab(&self) -> usize {
        self.to.vocab()
    }
    fn split_at(self, row: usize) -> (Self, Self) {
        let (a, b) = self.to.split_at(row);
        (Gather { from: self.from, to: a }, Gather { from: self.from.from(row), to: b })
    }
    fn least(&self) -> usize {
        TILE
    }
}

#[derive(Debug)]
pub(crate) struct ColumnsMut<'a, T> {
    data: &'a mut [T],
    vocab: usize,
    shape: Shape,
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

    fn columns(&self, row: usize) -> Columns<'_, T> {
        Columns { data: self.data, first: row, shape: self.shape }
    }
}

impl<T: Element> ColumnsMut<'_, T> {
    /// Copies contiguous rows to where rows `first` and those after it are.
    fn scatter(&mut self, kernels: Kernels, from: &[T], first: usize) {
        let rows = first..first + from.len() / self.vocab;
        for Segment { row, batch, positions } in self.shape.segments(rows) {
            let data = &mut self.data[batch * self.shape.batch_stride..];
            let job = Scatter {
                from: &from[row * self.vocab..][..positions.len() * self.vocab],
                first_class: 0,
                classes: self.vocab,
                vocab: self.vocab,
                to: data,
                class_stride: self.shape.class_stride,
                positions,
            };
            for_each_group(job, &|job: &mut Scatter<'_, T>| job.run(kernels));
        }
    }
}

/// What is to be copied out of rows: some classes of them.
struct Scatter<'a, T> {
    from: &'a [T],
    vocab: usize,
    first_class: usize,
    classes: usize,
    /// From the first class on.
    to: &'a mut [T],
    class_stride: usize,
    positions: Range<usize>,
}

impl<T: Element> Scatter<'_, T> {
    fn run(&mut self, kernels: Kernels) {
        T::transpose(
            kernels,
            &mut Transpose {
                from: &self.from[self.first_class..],
                from_stride: self.vocab,
                to: &mut self.to[self.positions.start..],
                to_stride: self.class_stride,
                rows: self.positions.len(),
                columns: self.classes,
                outer: Outer::Columns,
            },
        );
    }
}

impl<T: Element> Rows for Scatter<'_, T> {
    fn rows(&self) -> usize {
        self.classes
    }
    fn vocab(&self) -> usize {
        self.positions.len()
    }
    fn split_at(self, class: usize) -> (Self, Self) {
        let (a, b) = self.to.split_at_mut(class * self.class_stride);
        let positions = self.positions.clone();
        (
            Scatter { classes: class, to: a, positions, ..self },
            Scatter {
                first_class: self.first_class + class,
                classes: self.classes - class,
                to: b,
                ..self
            },
        )
    }
    fn least(&self) -> usize {
        TILE
    }
}

/// Work whose logits or whose output may be columns.
pub(crate) trait Panels<T: Element>: Rows {
    /// Does it, with the logits and the output that are given instead of those that are not rows.
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, to: Option<LogitsMut<'_, T>>);
}

impl<T: Element> Panels<T> for train::Job<'_, T> {
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, to: Option<LogitsMut<'_, T>>) {
        let gradient = self.gradient.map(|gradient| match to {
            None => gradient,
            // It is read again, to be transposed.
            Some(to) if gradient.store == Store::Stream => {
                GradientRows { to, store: Store::Plain, ..gradient }
            }
            Some(to) => GradientRows { to, ..gradient },
        });
        let job = train::Job { logits: x.or(self.logits), gradient, ..self };
        for_each_group(job, &|job: &mut train::Job<'_, T>| T::train(kernels, job));
    }
}

impl<T: Element> Panels<T> for softmax::Job<'_, T> {
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, to: Option<LogitsMut<'_, T>>) {
        let job = softmax::Job { src: x.or(self.src), dst: to.unwrap_or(self.dst), ..self };
        for_each_group(job, &|job: &mut softmax::Job<'_, T>| match job.log {
            true => T::log_softmax(kernels, job),
            false => T::softmax(kernels, job),
        });
    }
}

impl<T: Element> Panels<T> for softmax::LogSumExpJob<'_, T> {
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, _: Option<LogitsMut<'_, T>>) {
        let job = softmax::LogSumExpJob { logits: x.unwrap_or(self.logits), ..self };
        for_each_group(job, &|job: &mut softmax::LogSumExpJob<'_, T>| T::logsumexp(kernels, job));
    }
}

/// The columns that are written, and whether what they hold matters.
pub(crate) struct Output<'a, T> {
    pub(crate) columns: ColumnsMut<'a, T>,
    pub(crate) read: bool,
}

/// Does work whose logits are `x`, if they are columns, and whose output is `to`, if that is.
pub(crate) fn run<T: Element>(
    kernels: Kernels,
    work: impl Panels<T>,
    x: Option<Columns<'_, T>>,
    to: Option<Output<'_, T>>,
) {
    if x.is_none() && to.is_none() {
        return work.run(kernels, None, None);
    }
    let (rows, vocab) = (work.rows(), work.vocab());
    let len = panel_rows(vocab, size_of::<T>()).min(rows);
    // In the order of the classes, with the rest of the last vector.
    let buffer = |used: bool| if used { vec![T::default(); len * vocab] } else { Vec::new() };
    let (mut gathered, mut written) = (buffer(x.is_some()), buffer(to.is_some()));
    let (mut x, mut to, mut work, mut first) = (x, to, work, 0);
    while first < rows {
        let panel = len.min(rows - first);
        let (head, tail) = work.split_at(panel);
        work = tail;
        let size = panel * vocab;
        let logits = x.as_mut().map(|x| {
            x.gather(kernels, view_mut(&mut gathered[..size], panel, vocab));
            *x = x.from(panel);
            view(&gathered[..size], panel, vocab)
        });
        let output = to.as_ref().map(|to| {
            if to.read {
                to.columns
                    .columns(first)
                    .gather(kernels, view_mut(&mut written[..size], panel, vocab));
            }
            view_mut(&mut written[..size], panel, vocab)
        });
        head.run(kernels, logits, output);
        if let Some(to) = &mut to {
            to.columns.scatter(kernels, &written[..size], first);
        }
        first += panel;
    }
}

const FITS: &str = "a panel is a contiguous matrix";

fn view<T>(data: &[T], rows: usize, vocab: usize) -> Logits<'_, T> {
    Logits::new(data, rows, vocab).expect(FITS)
}

fn view_mut<T>(data: &mut [T], rows: usize, vocab: usize) -> LogitsMut<'_, T> {
    LogitsMut::new(data, rows, vocab).expect(FITS)
}

/// A power of two, so that halves of it are whole tiles.
fn panel_rows(vocab: usize, bytes: usize) -> usize {
    #[cfg(feature = "rayon")]
    let threads = rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    let threads = 1;
    let fit = PANEL / (vocab * bytes).min(PANEL);
    (1 << (fit * threads).ilog2()).max(LEAST * threads.next_power_of_two())
}
