//! Logits and targets in a safetensors file, which nobody vouches for.

use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::borrow::Cow;
use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;
use xent::Targets;

/// What is wrong with the file, apart from its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is {0}, expected a safetensors file")]
    NotAFile(&'static str),
    #[error("not a valid safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    #[error("no tensor `{name}` for the {role}; {others}")]
    Missing { role: &'static str, name: String, others: String },
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

/// A checked pair of tensors.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) logits: Cow<'a, [f32]>,
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
    pub(crate) targets: Ids<'a>,
}

/// Targets in the type that the file has them in.
#[derive(Debug)]
pub(crate) enum Ids<'a> {
    I64(Cow<'a, [i64]>),
    I32(Cow<'a, [i32]>),
    U32(Cow<'a, [u32]>),
}

impl Ids<'_> {
    /// Those of a range of rows.
    pub(crate) fn targets(&self, rows: Range<usize>) -> Targets<'_> {
        match self {
            Ids::I64(ids) => ids[rows].into(),
            Ids::I32(ids) => ids[rows].into(),
            Ids::U32(ids) => ids[rows].into(),
        }
    }

    pub(crate) fn get(&self, row: usize) -> i64 {
        match self {
            Ids::I64(ids) => ids[row],
            Ids::I32(ids) => ids[row].into(),
            Ids::U32(ids) => ids[row].into(),
        }
    }
}

impl<'a> Input<'a> {
    /// Finds both tensors and checks their types and shapes.
    pub(crate) fn new(file: &'a [u8], logits: &str, targets: &str) -> Result<Self, Error> {
        let tensors = SafeTensors::deserialize(file)?;
        let logits_view = find(&tensors, "logits", logits)?;
        let wrong = |name: &str, view: &TensorView<'_>, expected: String| {
            Err(Error::Tensor { name: name.to_owned(), found: describe(view), expected })
        };
        let (&[rows, vocab], Dtype::F32) = (logits_view.shape(), logits_view.dtype()) else {
            return wrong(logits, &logits_view, "F32 [rows, vocab]".to_owned());
        };
        let targets_view = find(&tensors, "targets", targets)?;
        let bytes = targets_view.data();
        let ids = match (targets_view.shape(), targets_view.dtype()) {
            ([len], Dtype::I64) if *len == rows => Ids::I64(numbers(bytes, i64::from_le_bytes)),
            ([len], Dtype::I32) if *len == rows => Ids::I32(numbers(bytes, i32::from_le_bytes)),
            ([len], Dtype::U32) if *len == rows => Ids::U32(numbers(bytes, u32::from_le_bytes)),
            _ => {
                let found = describe(&logits_view);
                let expected = format!("I64, I32 or U32 [{rows}] to go with `{logits}` {found}");
                return wrong(targets, &targets_view, expected);
            }
        };
        let logits = numbers(logits_view.data(), f32::from_le_bytes);
        Ok(Input { logits, rows, vocab, targets: ids })
    }
}

/// The elements of a tensor, where they are if possible.
///
/// Nothing makes a writer align its tensors, although most do: elements that start at an odd address
/// are copied. So are all elements on a big-endian machine, since those of the file are not.
fn numbers<T: bytemuck::AnyBitPattern, const N: usize>(
    bytes: &[u8],
    from_le: fn([u8; N]) -> T,
) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) if cfg!(target_endian = "little") => Cow::Borrowed(numbers),
        _ => Cow::Owned(bytes.as_chunks().0.iter().map(|&element| from_le(element)).collect()),
    }
}

fn find<'a>(
    tensors: &SafeTensors<'a>,
    role: &'static str,
    name: &str,
) -> Result<TensorView<'a>, Error> {
    tensors.tensor(name).map_err(|_| Error::Missing {
        role,
        name: name.to_owned(),
        others: list(tensors, role),
    })
}

fn describe(view: &TensorView<'_>) -> String {
    format!("{} {:?}", view.dtype(), view.shape())
}

/// What the file has instead of the tensor that was asked for.
fn list(tensors: &SafeTensors<'_>, role: &str) -> String {
    const SHOWN: usize = 16;
    let mut all = tensors.tensors();
    if all.is_empty() {
        return "the file has no tensors".to_owned();
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let shown = all.iter().take(SHOWN).map(|(name, view)| format!("`{name}` {}", describe(view)));
    let mut text = format!("the file has {}", shown.collect::<Vec<_>>().join(", "));
    if all.len() > SHOWN {
        let _ = write!(text, " and {} more", all.len() - SHOWN);
    }
    let candidate = |view: &TensorView<'_>| match role {
        "logits" => view.dtype() == Dtype::F32 && view.shape().len() == 2,
        _ => {
            matches!(view.dtype(), Dtype::I64 | Dtype::I32 | Dtype::U32) && view.shape().len() == 1
        }
    };
    let mut candidates = all.iter().filter(|(_, view)| candidate(view));
    if let (Some((name, _)), None) = (candidates.next(), candidates.next()) {
        let _ = write!(text, "; try `--{role} {name}`");
    }
    text
}
