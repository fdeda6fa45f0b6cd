//! Matrices whose classes are far apart, `[batch, vocab, positions]`, by way of rows.
//!
//! Kernels go along rows. So some rows at a time, a panel, are transposed into a buffer that stays in the
//! cache, and computed there; gradients are transposed back. Every panel is an ordinary call: whatever can be
//! asked of rows can be asked of columns, with the same bits.
#![forbid(unsafe_code)]

use crate::data::columns::{Columns, ColumnsMut, Segment};
use crate::data::logits::{Logits, LogitsMut};
use crate::dispatch::element::Element;
use crate::dispatch::entries;
use crate::kernel::double::compare::{self, AnyLogits, for_any};
use crate::kernel::pass::{GradientRows, Store};
use crate::kernel::transpose::{Outer, Transpose};
use crate::kernel::{forward, softmax, train};
use crate::rows::parallel::{Rows, for_each_group};
#[cfg(feature = "rayon")]
use crate::rows::parallel::{in_pool, is_worth_threads, threads};
use crate::simd::backend::Kernels;
use std::ops::Range;

/// Bytes of a panel, per thread: what the second-level caches of most machines hold.
const PANEL: usize = 1 << 20;

/// Rows of a panel at least, per thread, also of a large vocabulary: a tile, whose lines are then read once.
const LEAST: usize = 16;

/// Bytes of a panel at most, unless they are fewer than [`LEAST`] rows.
const MOST: usize = 64 << 20;

/// Rows or classes of a tile: one is not worth a task of its own.
#[cfg_attr(not(feature = "rayon"), allow(dead_code))]
const TILE: usize = 16;

/// Copies the first rows of columns, as many as there is room for.
fn gather<T: Element>(kernels: Kernels, from: Columns<'_, T>, to: LogitsMut<'_, T>) {
    for_each_group(Gather { from, to }, &|job: &mut Gather<'_, T>| job.run(kernels));
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
        let (to, to_stride) = self.to.memory();
        for Segment { row, batch, positions } in shape.segments(first..first + rows) {
            let from = &data[batch * shape.batch_stride + positions.start..];
            let to = &mut to[row * to_stride..];
            T::transpose(
                kernels,
                &mut Transpose {
                    from,
                    from_stride: shape.class_stride,
                    to,
                    to_stride,
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

/// Copies rows, `stride` apart, to where rows `rows` of the columns are.
fn scatter<T: Element>(
    kernels: Kernels,
    from: &[T],
    stride: usize,
    to: &mut ColumnsMut<'_, T>,
    rows: Range<usize>,
) {
    let shape = to.shape;
    for Segment { row, batch, positions } in shape.segments(rows) {
        let job = Scatter {
            from: &from[row * stride..],
            from_stride: stride,
            first_class: 0,
            classes: to.vocab,
            to: &mut to.data[batch * shape.batch_stride..],
            class_stride: shape.class_stride,
            positions,
        };
        for_each_group(job, &|job: &mut Scatter<'_, T>| job.run(kernels));
    }
}

/// What is to be copied out of rows: some classes of them.
struct Scatter<'a, T> {
    from: &'a [T],
    from_stride: usize,
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
                from_stride: self.from_stride,
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

impl<T: Element> Panels<T> for forward::Job<'_, T> {
    #[inline(always)]
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, _: Option<LogitsMut<'_, T>>) {
        let job = forward::Job { logits: x.unwrap_or(self.logits), ..self };
        for_each_group(job, &|job: &mut forward::Job<'_, T>| T::forward(kernels, job));
    }
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
#[inline(always)]
pub(crate) fn run<T: Element>(
    kernels: Kernels,
    work: impl Panels<T>,
    x: Option<Columns<'_, T>>,
    to: Option<Output<'_, T>>,
) {
    if x.is_none() && to.is_none() {
        return work.run(kernels, None, None);
    }
    // Panels are many: their threads are not to be waited for from outside the pool, each time.
    #[cfg(feature = "rayon")]
    if is_worth_threads(&work) {
        let mut arguments = Some((work, x, to));
        in_pool(&mut || {
            if let Some((work, x, to)) = arguments.take() {
                panels(kernels, work, x, to, threads());
            }
        });
        return;
    }
    // Not to be asked for otherwise: that starts the global pool.
    panels(kernels, work, x, to, 1);
}

#[inline(never)]
fn panels<T: Element>(
    kernels: Kernels,
    mut work: impl Panels<T>,
    x: Option<Columns<'_, T>>,
    mut to: Option<Output<'_, T>>,
    threads: usize,
) {
    let (rows, vocab) = (work.rows(), work.vocab());
    let len = panel_rows(vocab, size_of::<T>(), threads).min(rows);
    let panel = |used: bool| used.then(|| Panel::new(len, vocab));
    let (mut gathered, mut written) = (panel(x.is_some()), panel(to.is_some()));
    let mut first = 0;
    while first < rows {
        let range = first..rows.min(first + len);
        let (head, tail) = work.split_at(range.len());
        work = tail;
        let logits = gathered.as_mut().zip(x).map(|(panel, x)| {
            gather(kernels, x.from(first), panel.view_mut(range.len()));
            panel.view(range.len())
        });
        let output = written.as_mut().zip(to.as_ref()).map(|(panel, to)| {
            if to.read {
                gather(kernels, to.columns.columns(first), panel.view_mut(range.len()));
            }
            panel.view_mut(range.len())
        });
        head.run(kernels, logits, output);
        if let Some((panel, to)) = written.as_mut().zip(to.as_mut()) {
            scatter(kernels, panel.memory(), panel.stride, &mut to.columns, range.clone());
        }
        first = range.end;
    }
}

/// Rows in a buffer. Each begins at a cache line, so that what is written of it at a time is whole lines.
struct Panel<T> {
    data: Vec<T>,
    start: usize,
    vocab: usize,
    stride: usize,
}

impl<T: Element> Panel<T> {
    fn new(rows: usize, vocab: usize) -> Self {
        let line = 64 / size_of::<T>();
        let lines = vocab.div_ceil(line);
        // An odd number of them: powers of two would put all rows into few sets of the cache.
        let stride = (lines | 1) * line;
        let data = vec![T::default(); rows * stride + line];
        let start = data.as_ptr().align_offset(64).min(line);
        Panel { data, start, vocab, stride }
    }

    fn memory(&self) -> &[T] {
        &self.data[self.start..]
    }

    fn view(&self, rows: usize) -> Logits<'_, T> {
        Logits::with_stride(self.memory(), rows, self.vocab, self.stride).expect(FITS)
    }

    fn view_mut(&mut self, rows: usize) -> LogitsMut<'_, T> {
        let data = &mut self.data[self.start..];
        LogitsMut::with_stride(data, rows, self.vocab, self.stride).expect(FITS)
    }
}

const FITS: &str = "a panel is a matrix";

/// A power of two, so that halves of it are whole tiles.
fn panel_rows(vocab: usize, bytes: usize, threads: usize) -> usize {
    let row = vocab.saturating_mul(bytes);
    let most = (MOST / row).max(LEAST);
    let rows = (PANEL / row).max(LEAST).saturating_mul(threads);
    1 << rows.min(most).ilog2()
}

/// Compares two matrices, of which each may be columns.
pub(crate) fn compare(kernels: Kernels, job: compare::Job<'_>) {
    for_any!(job.base, logits => run(kernels, ByBase(job), logits.columns(), None));
}

/// A comparison whose base may be columns; in a panel of it, the other may be.
struct ByBase<'a>(compare::Job<'a>);

/// A comparison whose other logits may be columns.
struct ByOther<'a>(compare::Job<'a>);

macro_rules! rows_of_job {
    ($($by:ident)*) => {$(
        impl Rows for $by<'_> {
            fn rows(&self) -> usize {
                self.0.rows()
            }
            fn vocab(&self) -> usize {
                self.0.vocab()
            }
            fn split_at(self, row: usize) -> (Self, Self) {
                let (a, b) = self.0.split_at(row);
                ($by(a), $by(b))
            }
        }
    )*};
}
rows_of_job!(ByBase ByOther);

impl<T: Element> Panels<T> for ByBase<'_> {
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, _: Option<LogitsMut<'_, T>>) {
        let ByBase(job) = self;
        let job = compare::Job { base: x.map_or(job.base, T::any), ..job };
        for_any!(job.other, logits => run(kernels, ByOther(job), logits.columns(), None));
    }
}

impl<T: Element> Panels<T> for ByOther<'_> {
    fn run(self, kernels: Kernels, x: Option<Logits<'_, T>>, _: Option<LogitsMut<'_, T>>) {
        let ByOther(job) = self;
        let job = compare::Job { other: x.map_or(job.other, T::any), ..job };
        for_each_group(job, &|job: &mut compare::Job<'_>| entries::compare(kernels, job));
    }
}
