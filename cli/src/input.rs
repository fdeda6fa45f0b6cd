//! Logits, targets and what else goes with them in a safetensors file, which nobody vouches for.
#![forbid(unsafe_code)]

use crate::args::{Source, TARGETS};
use crate::number::{Integers, Logit, Number, Reals};
use crate::tensor::{Error, LOGITS, Named, Role, alternatives, describe, wrong};
use crate::tokens::{Documents, Kept, Mask, PerToken, Steps};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::ops::Range;
use std::ptr;
use xent::{CrossEntropy, Floats, Ids, Logits, Targets, Upstream};

/// Checked tensors, all of one shape and of types that go together.
#[derive(Debug)]
pub(crate) struct Input<'a, T: Logit> {
    pub(crate) logits: Cow<'a, [T]>,
    pub(crate) layout: Layout,
    pub(crate) answers: Answers<'a>,
    pub(crate) kept: Kept<'a>,
    /// Targets of rows that are left out. The first stands for those of rows that have none.
    pub(crate) ignored: Vec<i64>,
    pub(crate) token_weights: Option<PerToken<Reals<'a>>>,
    pub(crate) weight: Option<Cow<'a, [T::Real]>>,
    pub(crate) upstream: Derivative<'a>,
}

/// Names of tensors that only a loss has a use for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LossTensors<'n> {
    pub(crate) target_probs: Option<&'n str>,
    pub(crate) weight: Option<&'n str>,
    pub(crate) upstream: Option<&'n str>,
}

/// How the file has the logits, and which of them count.
#[derive(Debug)]
pub(crate) struct Layout {
    /// `[rows, stored]` or `[batch, time, stored]`.
    pub(crate) shape: Vec<usize>,
    pub(crate) rows: usize,
    /// Rows of a sequence: without a batch, all.
    pub(crate) sequence: usize,
    /// Classes of a row in the file.
    pub(crate) stored: usize,
    /// Those that are no padding.
    pub(crate) vocab: usize,
}

/// What the model should have predicted.
#[derive(Debug)]
pub(crate) enum Answers<'a> {
    Ids(PerToken<Integers<'a>>),
    Probs(Reals<'a>),
    /// Nobody says.
    Unknown,
}

/// Some rows, as the library takes what goes with them.
#[derive(Debug)]
pub(crate) struct Part<'i, R: Number> {
    given: Option<Given<'i, R>>,
    weights: Option<Weights<'i>>,
}

#[derive(Debug)]
enum Given<'i, R: Number> {
    Stored(Ids<'i>),
    Ids(Vec<i64>),
    Probs(Cow<'i, [R]>),
}

#[derive(Debug)]
enum Weights<'i> {
    Stored(Floats<'i>),
    Moved(Vec<f64>),
}

/// What the gradient is multiplied by.
#[derive(Debug)]
pub(crate) enum Derivative<'a> {
    OfAll(f64),
    OfRows(Reals<'a>),
}

impl<R: Number> Part<'_, R> {
    /// `None` if all rows count, and no target is known.
    pub(crate) fn known_targets(&self) -> Option<Targets<'_>> {
        self.given.as_ref().map(|given| match given {
            Given::Stored(ids) => (*ids).into(),
            Given::Ids(ids) => ids.into(),
            Given::Probs(probs) => Targets::probs(R::floats(probs)),
        })
    }

    pub(crate) fn targets(&self) -> Targets<'_> {
        self.known_targets().unwrap_or_else(|| (&[0i64; 0]).into())
    }

    /// With the token weights of these rows, if there are any.
    pub(crate) fn weigh<'p>(&'p self, ce: &CrossEntropy<'p>) -> CrossEntropy<'p> {
        match &self.weights {
            None => ce.clone(),
            Some(Weights::Stored(weights)) => ce.clone().token_weights(*weights),
            Some(Weights::Moved(weights)) => ce.clone().token_weights(weights),
        }
    }
}

impl Derivative<'_> {
    /// Of a range of rows, divided by a number. With 1 it is what the file has, to the bit.
    pub(crate) fn upstream<'d>(
        &self,
        rows: Range<usize>,
        divisor: f64,
        buffer: &'d mut Vec<f64>,
    ) -> Upstream<'d> {
        match self {
            Derivative::OfAll(derivative) => (derivative / divisor).into(),
            Derivative::OfRows(each) => {
                buffer.clear();
                buffer.extend(rows.map(|row| each.get(row) / divisor));
                Upstream::rows(&*buffer)
            }
        }
    }
}

impl Layout {
    fn new(logits: &Named<'_, '_>, vocab: Option<usize>) -> Result<Self, Error> {
        let Named { name, view } = logits;
        let (rows, sequence, stored) = match *view.shape() {
            [rows, stored] => (rows, rows, stored),
            // No more than can be counted, even of rows without classes: such a file is not valid.
            [batch, time, stored] => (batch * time, time, stored),
            _ => return Err(wrong(name, view, LOGITS)),
        };
        let vocab = vocab.unwrap_or(stored);
        if vocab > stored {
            let expected = format!("{vocab} or more classes for --vocab {vocab}");
            return Err(wrong(name, view, &expected));
        }
        Ok(Layout { shape: view.shape().to_vec(), rows, sequence, stored, vocab })
    }

    /// The shape of what has an element per row: `[rows]` or `[batch, time]`.
    fn of_rows(&self) -> &[usize] {
        &self.shape[..self.shape.len() - 1]
    }

    /// The shape of the logits without padding.
    fn of_classes(&self) -> Vec<usize> {
        [self.of_rows(), &[self.vocab]].concat()
    }

    fn is_batch(&self) -> bool {
        self.shape.len() == 3
    }
}

impl<'a, T: Logit> Input<'a, T> {
    /// Nothing but logits, which are of type `T`.
    pub(crate) fn bare(logits: &Named<'_, 'a>, vocab: Option<usize>) -> Result<Self, Error> {
        let layout = Layout::new(logits, vocab)?;
        let steps = Steps { by: 0, sequence: layout.sequence, documents: None };
        Ok(Input {
            logits: T::read(logits.view.data()),
            layout,
            answers: Answers::Unknown,
            kept: Kept { steps, mask: None, weights: None },
            // What stands for the class of a row that counts is not to be ignored.
            ignored: vec![-1],
            token_weights: None,
            weight: None,
            upstream: Derivative::OfAll(1.0),
        })
    }

    /// Finds everything that goes with these logits, and checks its types and shapes.
    pub(crate) fn new(
        tensors: &SafeTensors<'a>,
        logits: &Named<'_, 'a>,
        source: &Source,
        of_loss: LossTensors<'_>,
    ) -> Result<Self, Error> {
        let bare = Self::bare(logits, source.vocab)?;
        let find = Finder { tensors, logits, layout: &bare.layout, source };
        let steps = find.steps()?;
        let answers = match of_loss.target_probs {
            Some(name) => Answers::Probs(find.probs::<T::Real>(name)?),
            None => {
                let what = ("targets", "targets");
                let read = |_: &str, view: &TensorView<'a>| Ok(Integers::new(view));
                Answers::Ids(find.per_token(what, source.targets(), &Integers::TYPES, read)?)
            }
        };
        let weight = match of_loss.weight {
            Some(name) => Some(find.class_weights::<T::Real>(name)?),
            None => None,
        };
        let upstream = match of_loss.upstream {
            Some(name) => find.upstream(name)?,
            None => Derivative::OfAll(1.0),
        };
        let kept = Kept { steps, mask: find.mask()?, weights: None };
        let (ignored, token_weights) = (source.rows.ignore_index.clone(), find.token_weights()?);
        Ok(Input { answers, kept, ignored, token_weights, weight, upstream, ..bare })
    }

    /// For what has no weighted mean: rows whose token weight is 0 do not count, all others count
    /// alike. There need not be targets, unless an option asks for them.
    pub(crate) fn unweighted(
        tensors: &SafeTensors<'a>,
        logits: &Named<'_, 'a>,
        source: &Source,
    ) -> Result<Self, Error> {
        let has_targets = source.asks_for_targets() || tensors.tensor(TARGETS).is_ok();
        let mut input = if has_targets {
            Self::new(tensors, logits, source, LossTensors::default())?
        } else {
            let mut input = Self::bare(logits, source.vocab)?;
            let find = Finder { tensors, logits, layout: &input.layout, source };
            (input.kept.mask, input.token_weights) = (find.mask()?, find.token_weights()?);
            let is_all = input.kept.mask.is_none() && input.token_weights.is_none();
            // A class stands for the target of a row that counts.
            if !is_all && input.layout.vocab == 0 && input.layout.rows > 0 {
                return Err(wrong(logits.name, &logits.view, "1 or more classes"));
            }
            input
        };
        input.kept.weights = input.token_weights.take();
        Ok(input)
    }

    /// A range of rows, without their padding.
    pub(crate) fn logits(&self, rows: Range<usize>) -> Result<Logits<'_, T>, xent::Error> {
        let Layout { stored, vocab, .. } = self.layout;
        let logits = &self.logits[rows.start * stored..rows.end * stored];
        Logits::with_stride(logits, rows.len(), vocab, stored)
    }

    pub(crate) fn has_targets(&self) -> bool {
        !matches!(self.answers, Answers::Unknown)
    }

    /// The class id that a row was to predict, unless it is left out.
    fn id(&self, row: usize) -> Option<i128> {
        let Answers::Ids(ids) = &self.answers else { return None };
        let element = self.kept.steps.element(row, ids.is_cut).filter(|_| self.kept.counts(row))?;
        Some(ids.values.get(element))
    }

    fn is_ignored(&self, id: i128) -> bool {
        self.ignored.iter().any(|&ignored| id == ignored.into())
    }

    /// Whether a row counts in means: it is kept, and its token weight is not 0.
    pub(crate) fn counts(&self, row: usize) -> bool {
        self.is_kept(row) && self.weight_of(row) != 0.0
    }

    /// Whether a row is read.
    pub(crate) fn is_kept(&self, row: usize) -> bool {
        match self.answers {
            Answers::Ids(_) => self.id(row).is_some_and(|id| !self.is_ignored(id)),
            Answers::Probs(_) | Answers::Unknown => self.kept.counts(row),
        }
    }

    /// The target of a row, checked; the first of the most probable classes, as the library counts
    /// correct rows; one of the ignored ids if the row is left out.
    pub(crate) fn class(&self, row: usize) -> i64 {
        let class = match &self.answers {
            Answers::Ids(_) => self.id(row).and_then(|id| i64::try_from(id).ok()),
            Answers::Probs(probs) if self.kept.counts(row) => {
                let vocab = self.layout.vocab;
                let q = |j| probs.get(row * vocab + j);
                let best = (0..vocab).reduce(|best, j| if q(j) > q(best) { j } else { best });
                Some(best.map_or(-1, |class| class as i64))
            }
            Answers::Unknown if self.kept.counts(row) => Some(0),
            Answers::Probs(_) | Answers::Unknown => None,
        };
        class.unwrap_or_else(|| self.no_target())
    }

    /// What stands for a target of rows that are left out.
    fn no_target(&self) -> i64 {
        self.ignored.first().copied().unwrap_or(-1)
    }

    /// That all targets are classes, or ignored.
    pub(crate) fn check_targets(&self) -> Result<(), xent::Error> {
        let Layout { rows, vocab, .. } = self.layout;
        if let Answers::Ids(_) = self.answers {
            for row in 0..rows {
                let Some(target) = self.id(row) else { continue };
                let is_class = usize::try_from(target).is_ok_and(|class| class < vocab);
                if !is_class && !self.is_ignored(target) {
                    return Err(xent::Error::TargetOutOfRange { row, target, vocab });
                }
            }
        }
        Ok(())
    }

    /// What goes with the logits of a range of rows that ends where [`Input::part_end`] has it.
    /// Targets must have been checked.
    pub(crate) fn part(&self, rows: Range<usize>) -> Part<'_, T::Real> {
        let (steps, vocab) = (&self.kept.steps, self.layout.vocab);
        let is_stored = self.kept.is_all() && steps.are_none();
        let stored = match &self.answers {
            Answers::Ids(ids) if is_stored => ids.values.ids(rows.clone()),
            _ => None,
        };
        let given = match (&self.answers, stored) {
            (_, Some(ids)) => Some(Given::Stored(ids)),
            (Answers::Unknown, _) if is_stored => None,
            (Answers::Probs(probs), _) if rows.is_empty() || self.kept.counts(rows.start) => {
                let range = rows.start * vocab..rows.end * vocab;
                Some(Given::Probs(T::Real::widened(probs, range)))
            }
            (Answers::Probs(_), _) => Some(Given::Ids(vec![self.no_target(); rows.len()])),
            (Answers::Ids(_) | Answers::Unknown, _) => {
                Some(Given::Ids(rows.clone().map(|row| self.class(row)).collect()))
            }
        };
        let weights = self.token_weights.as_ref().map(|weights| {
            let stored = steps.are_none().then(|| weights.values.floats(rows.clone())).flatten();
            let moved = |row| steps.element(row, weights.is_cut).map(|i| weights.values.get(i));
            // That of a row without a target is never used.
            let moved = || rows.clone().map(|row| moved(row).unwrap_or(0.0)).collect();
            stored.map_or_else(|| Weights::Moved(moved()), Weights::Stored)
        });
        Part { given, weights }
    }

    /// Where a part of the rows ends that begins at `start`: at most `size` later. Probabilities of
    /// rows that are left out cannot be told to the library: such rows are a part of their own.
    pub(crate) fn part_end(&self, start: usize, size: usize) -> usize {
        let end = start + size.min(self.layout.rows - start);
        if !matches!(self.answers, Answers::Probs(_)) || self.kept.is_all() || end == start {
            return end;
        }
        let counts = self.kept.counts(start);
        (start + 1..end).find(|&row| self.kept.counts(row) != counts).unwrap_or(end)
    }

    /// How many rows a part may have for what is copied of it to be no more than `bytes`.
    pub(crate) fn most_rows(&self, bytes: usize) -> usize {
        match &self.answers {
            Answers::Probs(probs) if matches!(T::Real::widened(probs, 0..0), Cow::Owned(_)) => {
                let row = self.layout.vocab.saturating_mul(size_of::<T::Real>());
                (bytes / row.max(1)).max(1)
            }
            _ => usize::MAX,
        }
    }

    /// The sum of the token weights of the rows that count, or their number.
    pub(crate) fn weight_of_rows(&self) -> f64 {
        let rows = (0..self.layout.rows).filter(|&row| self.is_kept(row));
        rows.fold(0.0, |sum, row| sum + self.weight_of(row))
    }

    /// The token weight of a row, 1 unless the file has others.
    fn weight_of(&self, row: usize) -> f64 {
        self.token_weights.as_ref().map_or(1.0, |weights| {
            let element = self.kept.steps.element(row, weights.is_cut);
            element.map_or(0.0, |i| weights.values.get(i))
        })
    }

    /// Why the loss of a row is NaN, if its logits are the reason.
    pub(crate) fn bad_logits(&self, row: usize) -> Option<&'static str> {
        let Layout { stored, vocab, .. } = self.layout;
        let x = || self.logits[row * stored..][..vocab].iter().map(|&x| -> f64 { x.into() });
        if x().any(f64::is_nan) {
            Some("a logit is NaN")
        } else if x().any(|x| x == f64::INFINITY) {
            Some("a logit is +inf")
        } else if vocab > 0 && x().all(|x| x == f64::NEG_INFINITY) {
            Some("all logits are -inf")
        } else {
            None
        }
    }

    /// Where the file has the target of a row, unless it is just that row.
    pub(crate) fn index_of_target(&self, row: usize) -> Option<Vec<usize>> {
        let Answers::Ids(ids) = &self.answers else { return None };
        let index = ids.index(self.kept.steps.element(row, ids.is_cut)?);
        (index != [row]).then_some(index)
    }
}

/// Finds what has to go with the logits.
struct Finder<'t, 'a> {
    tensors: &'t SafeTensors<'a>,
    logits: &'t Named<'t, 'a>,
    layout: &'t Layout,
    source: &'t Source,
}

/// What a tensor is called in messages, and the option that names it.
type What = (&'static str, &'static str);

/// A shape, and whether another will do in its place.
type Shape<'s> = (&'s [usize], fn(&[usize], &[usize]) -> bool);

impl<'a> Finder<'_, 'a> {
    /// Finds a tensor of one of these types and shapes. Also which shape it is.
    fn tensor(
        &self,
        (what, flag): What,
        name: &str,
        types: &[Dtype],
        shapes: &[Shape<'_>],
    ) -> Result<(TensorView<'a>, usize), Error> {
        let shape_of = |view: &TensorView<'_>| {
            let of_type = types.contains(&view.dtype()).then_some(view.shape())?;
            shapes.iter().position(|(shape, will_do)| will_do(shape, of_type))
        };
        // Nobody means the logits themselves, although their shape may be that of probabilities.
        let may_be_meant = |view: &TensorView<'_>| {
            shape_of(view).is_some() && !ptr::eq(view.data(), self.logits.view.data())
        };
        let view = Role { what, flag, fits: &may_be_meant }.find(self.tensors, name)?;
        match shape_of(&view) {
            Some(shape) => Ok((view, shape)),
            None => Err(self.does_not_fit(name, &view, types, shapes)),
        }
    }

    fn does_not_fit(
        &self,
        name: &str,
        view: &TensorView<'_>,
        types: &[Dtype],
        shapes: &[Shape<'_>],
    ) -> Error {
        let types = alternatives(types.iter().map(Dtype::to_string));
        let shapes = alternatives(shapes.iter().map(|(shape, _)| format!("{shape:?}")));
        let (logits, found) = (self.logits.name, describe(&self.logits.view));
        let vocab = self.source.vocab.map_or_else(String::new, |n| format!(" and --vocab {n}"));
        wrong(name, view, &format!("{types} {shapes} to go with `{logits}` {found}{vocab}"))
    }

    /// What is wrong with a tensor of tokens, with a hint if it has one token fewer per sequence.
    fn of_tokens(&self, mut error: Error) -> Error {
        let mut cut = self.layout.of_rows().to_vec();
        if let (Some(time @ 2..), None) = (cut.last_mut(), self.source.shift)
            && let Error::Tensor { name, expected, .. } = &mut error
            && let Ok(view) = self.tensors.tensor(name)
        {
            *time -= 1;
            if view.shape().len() >= cut.len() && is_same_but_for_1(&cut, view.shape()) {
                expected.push_str("; `--shift` takes one token fewer per sequence");
            }
        }
        error
    }

    /// Finds what has an element per row, or per token, and reads it.
    fn per_token<V>(
        &self,
        what: What,
        name: &str,
        types: &[Dtype],
        read: impl FnOnce(&str, &TensorView<'a>) -> Result<Option<V>, Error>,
    ) -> Result<PerToken<V>, Error> {
        let all = self.layout.of_rows();
        let mut cut = all.to_vec();
        let mut shapes: Vec<Shape<'_>> = vec![(all, is_same_but_for_1)];
        if let (Some(time), by @ 1..) = (cut.last_mut(), self.source.shift.unwrap_or(0))
            && by < *time
        {
            *time -= by;
            shapes.push((&cut, is_same_but_for_1));
        }
        let (view, shape) =
            self.tensor(what, name, types, &shapes).map_err(|error| self.of_tokens(error))?;
        let Some(values) = read(name, &view)? else {
            return Err(self.does_not_fit(name, &view, types, &shapes));
        };
        Ok(PerToken { values, shape: view.shape().to_vec(), is_cut: shape > 0 })
    }

    /// From rows to their targets.
    fn steps(&self) -> Result<Steps<'a>, Error> {
        let Layout { rows, sequence, .. } = *self.layout;
        let documents = match &self.source.rows.offsets {
            None => None,
            Some(name) => {
                let what = ("offsets of documents", "offsets");
                let is_list = |view: &TensorView<'_>| {
                    let shape = view.shape();
                    let long = shape.iter().filter(|&&n| n != 1).count();
                    Integers::TYPES.contains(&view.dtype()) && !shape.is_empty() && long <= 1
                };
                let role = Role { what: what.0, flag: what.1, fits: &is_list };
                let view = role.find(self.tensors, name)?;
                let Some(offsets) = Integers::new(&view).filter(|_| is_list(&view)) else {
                    let types = alternatives(Integers::TYPES.iter().map(Dtype::to_string));
                    return Err(wrong(name, &view, &format!("{types} [documents + 1]")));
                };
                Some(Documents::new(name, offsets, rows)?)
            }
        };
        let by = self.source.shift.unwrap_or(0);
        // Of no rows none is without a target, and documents may be of one token.
        if by >= sequence && by > 0 && rows > 0 && documents.is_none() {
            let of_what = if self.layout.is_batch() { "sequences of " } else { "" };
            let rows = by.saturating_add(1);
            let expected = format!("{of_what}{rows} or more rows for --shift {by}");
            return Err(wrong(self.logits.name, &self.logits.view, &expected));
        }
        Ok(Steps { by, sequence, documents })
    }

    fn mask(&self) -> Result<Option<PerToken<Mask<'a>>>, Error> {
        let Some(name) = &self.source.rows.mask else { return Ok(None) };
        self.per_token(("mask", "mask"), name, &Mask::types(), Mask::new).map(Some)
    }

    fn token_weights(&self) -> Result<Option<PerToken<Reals<'a>>>, Error> {
        let Some(name) = &self.source.rows.token_weights else { return Ok(None) };
        let what = ("token weights", "token-weights");
        self.per_token(what, name, &Reals::TYPES, |_, view| Ok(Reals::new(view))).map(Some)
    }

    fn probs<R: Number>(&self, name: &str) -> Result<Reals<'a>, Error> {
        let shape = self.layout.of_classes();
        let shapes: [Shape<'_>; 1] = [(&shape, are_rows_of_as_many)];
        let what = ("target probabilities", "target-probs");
        let (view, _) = self.tensor(what, name, R::HOLDS, &shapes)?;
        Reals::new(&view).ok_or_else(|| self.does_not_fit(name, &view, R::HOLDS, &shapes))
    }

    fn class_weights<R: Number>(&self, name: &str) -> Result<Cow<'a, [R]>, Error> {
        let shapes: [Shape<'_>; 1] = [(&[self.layout.vocab], is_same)];
        let (view, _) = self.tensor(("class weights", "weight"), name, R::HOLDS, &shapes)?;
        let reals = Reals::new(&view).map(R::all);
        reals.ok_or_else(|| self.does_not_fit(name, &view, R::HOLDS, &shapes))
    }

    fn upstream(&self, name: &str) -> Result<Derivative<'a>, Error> {
        let shapes: [Shape<'_>; 2] = [(self.layout.of_rows(), is_same_but_for_1), (&[], is_same)];
        let what = ("upstream gradient", "upstream");
        let (view, _) = self.tensor(what, name, &Reals::TYPES, &shapes)?;
        match Reals::new(&view) {
            Some(all) if view.shape().is_empty() => Ok(Derivative::OfAll(all.get(0))),
            Some(each) => Ok(Derivative::OfRows(each)),
            None => Err(self.does_not_fit(name, &view, &Reals::TYPES, &shapes)),
        }
    }
}

fn is_same(a: &[usize], b: &[usize]) -> bool {
    a == b
}

/// Whether two shapes are the same without dimensions of 1, which say nothing about where elements
/// are.
fn is_same_but_for_1(a: &[usize], b: &[usize]) -> bool {
    let long =
        |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&n| n != 1).collect() };
    long(a) == long(b)
}

/// The same of shapes whose last dimension is that of classes.
fn are_rows_of_as_many(a: &[usize], b: &[usize]) -> bool {
    match (a, b) {
        ([a @ .., of_a], [b @ .., of_b]) => of_a == of_b && is_same_but_for_1(a, b),
        _ => false,
    }
}
