//! Tensors of a file by their names, and what is wrong with them.
#![forbid(unsafe_code)]

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::fmt::Write;

/// What is wrong with the tensors of a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no tensor `{name}` for the {what}; {others}")]
    Missing { what: &'static str, name: String, others: String },
    #[error("tensor `{name}` is {found}, expected {expected}")]
    Tensor { name: String, found: String, expected: String },
    #[error("tensor `{name}`: {at} is {value}, expected {expected}")]
    Element { name: String, at: String, value: String, expected: String },
    #[error("tensor `{name}` has no offsets: n documents have n + 1 of them")]
    NoOffsets { name: String },
}

/// A tensor and its name.
#[derive(Debug)]
pub(crate) struct Named<'n, 'a> {
    pub(crate) name: &'n str,
    pub(crate) view: TensorView<'a>,
}

/// Finds the logits and checks that they are some.
pub(crate) fn logits<'n, 'a>(
    tensors: &SafeTensors<'a>,
    name: &'n str,
) -> Result<Named<'n, 'a>, Error> {
    let is_logits = |view: &TensorView<'_>| {
        let types = [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F16];
        types.contains(&view.dtype()) && [2, 3].contains(&view.shape().len())
    };
    let role = Role { what: "logits", flag: "logits", fits: &is_logits };
    let view = role.find(tensors, name)?;
    if is_logits(&view) { Ok(Named { name, view }) } else { Err(wrong(name, &view, LOGITS)) }
}

pub(crate) const LOGITS: &str = "F32, F64, BF16 or F16 [rows, vocab] or [batch, time, vocab]";

/// `A`, `A or B`, `A, B or C`
pub(crate) fn alternatives(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    match &texts[..] {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

pub(crate) fn wrong(name: &str, view: &TensorView<'_>, expected: &str) -> Error {
    Error::Tensor { name: name.to_owned(), found: describe(view), expected: expected.to_owned() }
}

pub(crate) fn describe(view: &TensorView<'_>) -> String {
    format!("{} {:?}", view.dtype(), view.shape())
}

/// What a tensor is for.
pub(crate) struct Role<'f> {
    pub(crate) what: &'static str,
    pub(crate) flag: &'static str,
    /// Whether a tensor could be it.
    pub(crate) fits: &'f dyn Fn(&TensorView<'_>) -> bool,
}

impl Role<'_> {
    pub(crate) fn find<'a>(
        &self,
        tensors: &SafeTensors<'a>,
        name: &str,
    ) -> Result<TensorView<'a>, Error> {
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
        let _ = match (candidates.next(), candidates.next()) {
            (Some((name, _)), None) => write!(text, "; try `--{} {name}`", self.flag),
            (Some(_), Some(_)) => write!(text, "; name the right one with `--{}`", self.flag),
            (None, _) => Ok(()),
        };
        text
    }
}
