//! Files, threads and errors, as all commands have them.
#![forbid(unsafe_code)]

use crate::args::{Compute, Source};
use crate::error::Error;
use crate::file;
use crate::input::Input;
use crate::number::Logit;
use crate::tensor::{self, Named};
use memmap2::Mmap;
use safetensors::SafeTensors;
use std::path::Path;

pub(crate) fn map(file: &Path) -> Result<Mmap, Error> {
    file::map(file).map_err(|error| Error::File { file: file.to_owned(), error })
}

pub(crate) fn tensors<'a>(file: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, Error> {
    file::tensors(bytes).map_err(|error| Error::File { file: file.to_owned(), error })
}

pub(crate) fn logits<'n, 'a>(
    file: &Path,
    tensors: &SafeTensors<'a>,
    name: &'n str,
) -> Result<Named<'n, 'a>, Error> {
    tensor::logits(tensors, name).map_err(|error| bad_input(file, error))
}

pub(crate) fn bad_input(file: &Path, error: tensor::Error) -> Error {
    Error::Input { file: file.to_owned(), error }
}

/// Runs where rows are spread over as many threads as were asked for.
pub(crate) fn in_pool<T: Send>(
    compute: Compute,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    let Some(threads) = compute.threads else { return Ok(work()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build();
    Ok(pool.map_err(|error| Error::Threads { threads, error })?.install(work))
}

/// What the library says of these rows, in the words of the command line.
pub(crate) fn in_words<T: Logit>(
    error: xent::Error,
    input: &Input<'_, T>,
    file: &Path,
    source: &Source,
) -> Error {
    let file = file.to_owned();
    match error {
        xent::Error::TargetOutOfRange { row, target, vocab } => {
            let tensor = source.targets();
            let tensor = match input.index_of_target(row) {
                Some(index) => format!("tensor `{tensor}` at {index:?}"),
                None => format!("tensor `{tensor}`"),
            };
            let ignored = source.rows.ignore_index.clone();
            Error::Target { file, tensor, row, target, vocab, ignored }
        }
        xent::Error::UnknownBackend { .. } | xent::Error::BackendUnavailable { .. } => {
            Error::Environment(error)
        }
        xent::Error::IgnoreIndexWithProbs { ignore_index } => Error::IgnoredClass(ignore_index),
        xent::Error::Option { option, value, range } => Error::Option { option, value, range },
        _ => Error::Score { file, error },
    }
}
