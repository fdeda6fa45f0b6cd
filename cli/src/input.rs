//! Logits, targets and what else goes with them in a safetensors file, which nobody vouches for.

use crate::args::Score;
use crate::number::{Logit, Number, Stored, read};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::borrow::Cow;
use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::ptr;
use xent::{CrossEntropy, Logits, Targets, Upstream};

/// What is wrong with the file, apart from its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is {0}, expected a safetensors file")]
    NotAFile(&'static str),
    #[error("not a valid safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    #[error("no tensor `{name}` for the {what}; {others}")]
    Missing { what: &'static str, name: String, others: String },
    #[error("tensor `{name}` is {found}, expected {expected}")]
    Tensor { name: String, found: String, expected: String },
}

/// Maps the file into memory.
pub(crate) fn map(path: &Path) -> Result<Mmap, Error> {
    // Asked before opening, as opening a pipe would wait for someone to write to it.
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(Error::NotAFile("a directory"));
    }
    if !metadata.is_file() {
        return Err(Error::NotAFile("a pipe or a device, which cannot be mapped into memory"));
    }
    if metadata.len() == 0 {
        return Err(Error::NotAFile("empty"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is private to this process and only ever read. That no other process changes
    // or truncates the file meanwhile cannot be enforced; the help text asks for it, as every
    // program that maps files must.
    #[allow(unsafe_code)]
    Ok(unsafe { Mmap::map(&file) }?)
}

/// Checked tensors, all of one shape and of types that go together.
#[derive(Debug)]
pub(crate) struct Input<'a, T: Logit> {
    pub(crate) logits: Cow<'a, [T]>,
    pub(crate) layout: Layout,
    pub(crate) targets: Answers<'a, T::Real>,
    pub(crate) weight: Option<Cow<'a, [T::Real]>>,
    pub(crate) upstream: Derivative<'a>,
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
pub(crate) enum Answers<'a, R: Number> {
    Ids { ids: Ids<'a>, shift: Option<Shift> },
    Probs { probs: Cow<'a, [R]>, vocab: usize },
}

/// Targets in the type that the file has them in.
#[derive(Debug)]
pub(crate) enum Ids<'a> {
    I64(Cow<'a, [i64]>),
    I32(Cow<'a, [i32]>),
    U32(Cow<'a, [u32]>),
}

/// Targets further on in their sequence than the rows that predict them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shift {
    /// How far: at least 1, and less than `sequence`.
    pub(crate) by: usize,
    pub(crate) sequence: usize,
    /// The target of rows that have none.
    pub(crate) ignore_index: i64,
}

/// What the gradient is multiplied by.
#[derive(Debug)]
pub(crate) enum Derivative<'a> {
    OfAll(f64),
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
}

impl<R: Number> Answers<'_, R> {
    /// Those of a group of rows, see [`Answers::group_end`].
    pub(crate) fn targets(&self, rows: Range<usize>) -> Targets<'_> {
        match self {
            Answers::Ids { ids, shift: None } => ids.part(rows).into(),
            Answers::Ids { ids, shift: Some(shift) } => shift.targets(ids, rows),
            Answers::Probs { probs, vocab } => {
                Targets::probs(R::floats(&probs[rows.start * vocab..rows.end * vocab]))
            }
        }
    }

    /// The target of a row; the first of the most probable classes, as the library counts correct rows.
    pub(crate) fn class(&self, row: usize) -> i64 {
        match self {
            Answers::Ids { ids, shift: None } => ids.get(row),
            Answers::Ids { ids, shift: Some(shift) } => {
                shift.token(row).map_or(shift.ignore_index, |token| ids.get(token))
            }
            Answers::Probs { probs, vocab } => {
                let probs = &probs[row * vocab..][..*vocab];
                let best =
                    (0..*vocab).reduce(|best, j| if probs[j] > probs[best] { j } else { best });
                best.map_or(-1, |class| class as i64)
            }
        }
    }

    /// Where a group of rows ends that is scored in one call, out of `count` from `start` on: `size` later, or
    /// where the shift needs it to.
    pub(crate) fn group_end(&self, start: usize, size: usize, count: usize) -> usize {
        match self {
            Answers::Ids { shift: Some(shift), .. } => shift.group_end(start, size, count),
            _ => start + size.min(count - start),
        }
    }
}

impl Ids<'_> {
    fn part(&self, range: Range<usize>) -> xent::Ids<'_> {
        match self {
            Ids::I64(ids) => ids[range].into(),
            Ids::I32(ids) => ids[range].into(),
            Ids::U32(ids) => ids[range].into(),
        }
    }

    fn get(&self, i: usize) -> i64 {
        match self {
            Ids::I64(ids) => ids[i],
            Ids::I32(ids) => ids[i].into(),
            Ids::U32(ids) => ids[i].into(),
        }
    }
}

impl Shift {
    /// What `args` asks for, if that changes anything.
    fn new(logits: &TensorView<'_>, layout: &Layout, args: &Score) -> Result<Option<Self>, Error> {
        let by = args.shift.unwrap_or(0);
        if by == 0 || layout.rows == 0 {
            return Ok(None);
        }
        let sequence = layout.sequence;
        if by >= sequence {
            let of_what = if layout.is_batch() { "sequences of " } else { "" };
            let rows = by.saturating_add(1);
            let expected = format!("{of_what}{rows} or more rows for --shift {by}");
            return Err(wrong(&args.logits, logits, &expected));
        }
        Ok(Some(Shift { by, sequence, ignore_index: args.ignore_index }))
    }

    /// Which of the tokens is the target of a row.
    fn token(&self, row: usize) -> Option<usize> {
        (row % self.sequence + self.by < self.sequence).then_some(row + self.by)
    }

    /// Whole sequences if they fit into `size` rows, or else a part of one. Of a sequence that goes on, more
    /// rows are left than the shift, so that all rows of the part have a target.
    fn group_end(&self, start: usize, size: usize, count: usize) -> usize {
        if size >= self.sequence {
            // With groups of one size, none of these begins within a sequence.
            return start + size.min(count - start) / self.sequence * self.sequence;
        }
        let left = self.sequence - start % self.sequence;
        start + if size.saturating_add(self.by) < left { size } else { left }
    }

    fn targets<'i>(&self, ids: &'i Ids<'_>, rows: Range<usize>) -> Targets<'i> {
        if rows.end.is_multiple_of(self.sequence) {
            // The rest of a sequence is like a short sequence.
            let sequence = self.sequence.min(rows.len());
            Targets::shifted(ids.part(rows), sequence, self.by)
        } else {
            ids.part(rows.start + self.by..rows.end + self.by).into()
        }
    }
}

impl Derivative<'_> {
    pub(crate) fn upstream(&self) -> Upstream<'_> {
        match self {
            Derivative::OfAll(derivative) => (*derivative).into(),
            Derivative::F32(each) => Upstream::rows(&each[..]),
            Derivative::F64(each) => Upstream::rows(&each[..]),
        }
    }
}

/// Finds the logits and checks that they are some.
pub(crate) fn logits<'a>(tensors: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, Error> {
    let is_logits = |view: &TensorView<'_>| {
        let types = [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F16];
        types.contains(&view.dtype()) && [2, 3].contains(&view.shape().len())
    };
    let role = Role { what: "logits", flag: "logits", fits: &is_logits };
    let view = role.find(tensors, name)?;
    if is_logits(&view) { Ok(view) } else { Err(wrong(name, &view, LOGITS)) }
}

const LOGITS: &str = "F32, F64, BF16 or F16 [rows, vocab] or [batch, time, vocab]";

impl Layout {
    pub(crate) fn new(logits: &TensorView<'_>, args: &Score) -> Result<Self, Error> {
        let (rows, sequence, stored) = match *logits.shape() {
            [rows, stored] => (rows, rows, stored),
            // No more than can be counted, even of rows without classes: such a file is not valid.
            [batch, time, stored] => (batch * time, time, stored),
            _ => return Err(wrong(&args.logits, logits, LOGITS)),
        };
        let vocab = args.vocab.unwrap_or(stored);
        if vocab > stored {
            let expected = format!("{vocab} or more classes for --vocab {vocab}");
            return Err(wrong(&args.logits, logits, &expected));
        }
        Ok(Layout { shape: logits.shape().to_vec(), rows, sequence, stored, vocab })
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

    /// Where a row is in a tensor that has an element per row.
    fn index(&self, row: usize) -> Vec<usize> {
        if self.is_batch() { vec![row / self.sequence, row % self.sequence] } else { vec![row] }
    }
}

impl<'a, T: Logit> Input<'a, T> {
    /// Finds everything that goes with these logits, which are of type `T`, and checks its types and
    /// shapes.
    pub(crate) fn new(
        tensors: &SafeTensors<'a>,
        logits: &TensorView<'a>,
        args: &Score,
    ) -> Result<Self, Error> {
        let layout = Layout::new(logits, args)?;
        let find = Finder { tensors, logits, args };
        let real = T::Real::DTYPE;
        let targets = match &args.loss.target_probs {
            Some(name) => {
                let role = ("target probabilities", "target-probs");
                let view = find.tensor(role, name, &[real], &[&layout.of_classes()])?;
                Answers::Probs { probs: Stored::read(view.data()), vocab: layout.vocab }
            }
            None => {
                let types = [Dtype::I64, Dtype::I32, Dtype::U32];
                let role = ("targets", "targets");
                let view = find.tensor(role, &args.targets, &types, &[layout.of_rows()])?;
                let bytes = view.data();
                let ids = match view.dtype() {
                    Dtype::I64 => Ids::I64(read(bytes, i64::from_le_bytes)),
                    Dtype::I32 => Ids::I32(read(bytes, i32::from_le_bytes)),
                    _ => Ids::U32(read(bytes, u32::from_le_bytes)),
                };
                Answers::Ids { ids, shift: Shift::new(logits, &layout, args)? }
            }
        };
        let weight = match &args.loss.weight {
            Some(name) => {
                let role = ("class weights", "weight");
                let view = find.tensor(role, name, &[real], &[&[layout.vocab]])?;
                Some(Stored::read(view.data()))
            }
            None => None,
        };
        let upstream = match &args.gradient.upstream {
            Some(name) => {
                let role = ("upstream gradient", "upstream");
                let types = [Dtype::F32, Dtype::F64];
                let view = find.tensor(role, name, &types, &[layout.of_rows(), &[]])?;
                Derivative::new(&view)
            }
            None => Derivative::OfAll(1.0),
        };
        let logits = T::read(logits.data());
        Ok(Input { logits, layout, targets, weight, upstream })
    }

    /// A range of rows, without their padding.
    pub(crate) fn logits(&self, rows: Range<usize>) -> Result<Logits<'_, T>, xent::Error> {
        let Layout { stored, vocab, .. } = self.layout;
        let logits = &self.logits[rows.start * stored..rows.end * stored];
        Logits::with_stride(logits, rows.len(), vocab, stored)
    }

    /// Where the file has the target of a row, unless it is just that row.
    pub(crate) fn index_of_target(&self, row: usize) -> Option<Vec<usize>> {
        let token = match &self.targets {
            Answers::Ids { shift: Some(shift), .. } => shift.token(row)?,
            _ => row,
        };
        let index = self.layout.index(token);
        (index != [row]).then_some(index)
    }

    /// The loss that `args` asks for, but for its reduction.
    pub(crate) fn cross_entropy(&self, args: &Score) -> CrossEntropy<'_> {
        let options = &args.loss;
        let mut ce = CrossEntropy::new().ignore_index(args.ignore_index);
        if let Some(weight) = &self.weight {
            ce = ce.class_weights(T::Real::floats(weight));
        }
        if let Some(e) = options.label_smoothing {
            ce = ce.label_smoothing(e);
        }
        if let Some(factor) = options.z_loss {
            ce = ce.z_loss(factor);
        }
        if let Some(c) = options.softcap {
            ce = ce.softcap(c);
        }
        if let Some(scale) = options.logit_scale {
            ce = ce.logit_scale(scale);
        }
        if let Some(temperature) = options.temperature {
            ce = ce.temperature(temperature);
        }
        ce
    }
}

impl<'a> Derivative<'a> {
    /// From a tensor that was checked.
    fn new(view: &TensorView<'a>) -> Self {
        let is_scalar = view.shape().is_empty();
        match view.dtype() {
            Dtype::F32 => match f32::read(view.data()) {
                all if is_scalar => Derivative::OfAll(all[0].into()),
                each => Derivative::F32(each),
            },
            _ => match f64::read(view.data()) {
                all if is_scalar => Derivative::OfAll(all[0]),
                each => Derivative::F64(each),
            },
        }
    }
}

/// Finds what has to go with the logits.
struct Finder<'t, 'a> {
    tensors: &'t SafeTensors<'a>,
    logits: &'t TensorView<'a>,
    args: &'t Score,
}

impl<'a> Finder<'_, 'a> {
    fn tensor(
        &self,
        (what, flag): (&'static str, &'static str),
        name: &str,
        types: &[Dtype],
        shapes: &[&[usize]],
    ) -> Result<TensorView<'a>, Error> {
        let fits =
            |view: &TensorView<'_>| types.contains(&view.dtype()) && shapes.contains(&view.shape());
        // Nobody means the logits themselves, although their shape may be that of probabilities.
        let may_be_meant =
            |view: &TensorView<'_>| fits(view) && !ptr::eq(view.data(), self.logits.data());
        let view = Role { what, flag, fits: &may_be_meant }.find(self.tensors, name)?;
        if fits(&view) {
            return Ok(view);
        }
        let types = alternatives(types.iter().map(Dtype::to_string));
        let shapes = alternatives(shapes.iter().map(|shape| format!("{shape:?}")));
        let (logits, found) = (&self.args.logits, describe(self.logits));
        let vocab = self.args.vocab.map_or_else(String::new, |n| format!(" and --vocab {n}"));
        Err(wrong(name, &view, &format!("{types} {shapes} to go with `{logits}` {found}{vocab}")))
    }
}

/// `A`, `A or B`, `A, B or C`
fn alternatives(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    match &texts[..] {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

fn wrong(name: &str, view: &TensorView<'_>, expected: &str) -> Error {
    Error::Tensor { name: name.to_owned(), found: describe(view), expected: expected.to_owned() }
}

pub(crate) fn describe(view: &TensorView<'_>) -> String {
    format!("{} {:?}", view.dtype(), view.shape())
}

/// What a tensor is for.
struct Role<'f> {
    what: &'static str,
    flag: &'static str,
    /// Whether a tensor could be it.
    fits: &'f dyn Fn(&TensorView<'_>) -> bool,
}

impl Role<'_> {
    fn find<'a>(&self, tensors: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, Error> {
        tensors.tensor(name).map_err(|_| Error::Missing {
            what: self.what,
            name: name.to_owned(),
            others: self.list(tensors),
        })
    }

    /// What the file has instead of the tensor that was asked for.
    fn list(&self, tensors: &SafeTensors<'_>) -> String {
        const SHOWN: usize = 16;
        let mut all = tensors.tensors();
        if all.is_empty() {
            return "the file has no tensors".to_owned();
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let show = |(name, view): &(String, TensorView<'_>)| format!("`{name}` {}", describe(view));
        let shown: Vec<String> = all.iter().take(SHOWN).map(show).collect();
        let mut text = format!("the file has {}", shown.join(", "));
        if all.len() > SHOWN {
            let _ = write!(text, " and {} more", all.len() - SHOWN);
        }
        let mut candidates = all.iter().filter(|(_, view)| (self.fits)(view));
        if let (Some((name, _)), None) = (candidates.next(), candidates.next()) {
            let _ = write!(text, "; try `--{} {name}`", self.flag);
        }
        text
    }
}
