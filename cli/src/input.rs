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
use xent::{CrossEntropy, Targets, Upstream};

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
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
    pub(crate) targets: Answers<'a, T::Real>,
    pub(crate) weight: Option<Cow<'a, [T::Real]>>,
    pub(crate) upstream: Derivative<'a>,
}

/// What the model should have predicted.
#[derive(Debug)]
pub(crate) enum Answers<'a, R: Number> {
    Ids(Ids<'a>),
    Probs { probs: Cow<'a, [R]>, vocab: usize },
}

/// Targets in the type that the file has them in.
#[derive(Debug)]
pub(crate) enum Ids<'a> {
    I64(Cow<'a, [i64]>),
    I32(Cow<'a, [i32]>),
    U32(Cow<'a, [u32]>),
}

/// What the gradient is multiplied by.
#[derive(Debug)]
pub(crate) enum Derivative<'a> {
    OfAll(f64),
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
}

impl<R: Number> Answers<'_, R> {
    /// Those of a range of rows.
    pub(crate) fn targets(&self, rows: Range<usize>) -> Targets<'_> {
        match self {
            Answers::Ids(Ids::I64(ids)) => ids[rows].into(),
            Answers::Ids(Ids::I32(ids)) => ids[rows].into(),
            Answers::Ids(Ids::U32(ids)) => ids[rows].into(),
            Answers::Probs { probs, vocab } => {
                Targets::probs(R::floats(&probs[rows.start * vocab..rows.end * vocab]))
            }
        }
    }

    /// The target of a row; the first of the most probable classes, as the library counts correct rows.
    pub(crate) fn class(&self, row: usize) -> i64 {
        match self {
            Answers::Ids(Ids::I64(ids)) => ids[row],
            Answers::Ids(Ids::I32(ids)) => ids[row].into(),
            Answers::Ids(Ids::U32(ids)) => ids[row].into(),
            Answers::Probs { probs, vocab } => {
                let probs = &probs[row * vocab..][..*vocab];
                let best =
                    (0..*vocab).reduce(|best, j| if probs[j] > probs[best] { j } else { best });
                best.map_or(-1, |class| class as i64)
            }
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
        types.contains(&view.dtype()) && view.shape().len() == 2
    };
    let role = Role { what: "logits", flag: "logits", fits: &is_logits };
    let view = role.find(tensors, name)?;
    let expected = "F32, F64, BF16 or F16 [rows, vocab]";
    if is_logits(&view) { Ok(view) } else { Err(wrong(name, &view, expected)) }
}

impl<'a, T: Logit> Input<'a, T> {
    /// Finds everything that goes with these logits, which are of type `T`, and checks its types and
    /// shapes.
    pub(crate) fn new(
        tensors: &SafeTensors<'a>,
        logits: &TensorView<'a>,
        args: &Score,
    ) -> Result<Self, Error> {
        let &[rows, vocab] = logits.shape() else {
            return Err(wrong(&args.logits, logits, "[rows, vocab]"));
        };
        let find = Finder { tensors, logits, logits_name: &args.logits };
        let real = T::Real::DTYPE;
        let targets = match &args.loss.target_probs {
            Some(name) => {
                let role = ("target probabilities", "target-probs");
                let view = find.tensor(role, name, &[real], &[&[rows, vocab]])?;
                Answers::Probs { probs: Stored::read(view.data()), vocab }
            }
            None => {
                let types = [Dtype::I64, Dtype::I32, Dtype::U32];
                let view =
                    find.tensor(("targets", "targets"), &args.targets, &types, &[&[rows]])?;
                let bytes = view.data();
                Answers::Ids(match view.dtype() {
                    Dtype::I64 => Ids::I64(read(bytes, i64::from_le_bytes)),
                    Dtype::I32 => Ids::I32(read(bytes, i32::from_le_bytes)),
                    _ => Ids::U32(read(bytes, u32::from_le_bytes)),
                })
            }
        };
        let weight = match &args.loss.weight {
            Some(name) => {
                let view = find.tensor(("class weights", "weight"), name, &[real], &[&[vocab]])?;
                Some(Stored::read(view.data()))
            }
            None => None,
        };
        let upstream = match &args.gradient.upstream {
            Some(name) => {
                let role = ("upstream gradient", "upstream");
                let types = [Dtype::F32, Dtype::F64];
                let view = find.tensor(role, name, &types, &[&[rows], &[]])?;
                Derivative::new(&view)
            }
            None => Derivative::OfAll(1.0),
        };
        let logits = T::read(logits.data());
        Ok(Input { logits, rows, vocab, targets, weight, upstream })
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
    logits_name: &'t str,
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
        let (logits, found) = (self.logits_name, describe(self.logits));
        Err(wrong(name, &view, &format!("{types} {shapes} to go with `{logits}` {found}")))
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

fn describe(view: &TensorView<'_>) -> String {
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
