//! Whatever a command may fail for, and where that is said.
#![forbid(unsafe_code)]

use crate::file;
use crate::gradient;
use crate::tensor;
use std::io::{self, Write};
use std::path::PathBuf;

/// Whatever a command may fail for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: {error}", file.display())]
    File { file: PathBuf, error: file::Error },
    #[error("{}: {error}", file.display())]
    Input { file: PathBuf, error: tensor::Error },
    // What the library says beyond that is about its calls.
    #[error(
        "{}: {tensor}: row {row}: target {target} is out of range for a vocabulary of {vocab}; {}",
        file.display(),
        ignored_ids(ignored, *target)
    )]
    Target {
        file: PathBuf,
        tensor: String,
        row: usize,
        target: i128,
        vocab: usize,
        ignored: Vec<i64>,
    },
    #[error("{}: {error}", file.display())]
    Score { file: PathBuf, error: xent::Error },
    #[error("{}: {error}", file.display())]
    Gradient { file: PathBuf, error: gradient::Error },
    // `--backend` was checked with the rest of the command line.
    #[error("environment variable XENT_BACKEND: {0}; unset it, or say --backend")]
    Environment(xent::Error),
    #[error(
        "--ignore-index {0} is a class, and with --target-probs no row has a target to compare it with; \
         leave rows out with --mask"
    )]
    IgnoredClass(i64),
    #[error("--{} {value}: it must be {range}", option.replace('_', "-"))]
    Option { option: &'static str, value: String, range: &'static str },
    #[error("cannot start {threads} threads: {error}; ask for fewer with --threads")]
    Threads { threads: u16, error: rayon::ThreadPoolBuildError },
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// What is ignored, and how a target that is not would be.
fn ignored_ids(ids: &[i64], target: i128) -> String {
    let list = |between| ids.iter().map(i64::to_string).collect::<Vec<_>>().join(between);
    let are = if ids.len() == 1 { "index is" } else { "indices are" };
    let mut text = format!("the ignore {are} {}", list(", "));
    // Others are no ids that the option takes.
    if i64::try_from(target).is_ok() {
        text += &format!("; `--ignore-index={},{target}` leaves out such rows too", list(","));
    }
    text
}

/// One line on standard error, whatever the names in a file have in them.
pub(crate) fn complain(message: &str) {
    let mut line = String::from("xent: ");
    for c in message.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    // Unlike `eprintln!` this does not panic if standard error is closed.
    let _ = writeln!(io::stderr(), "{line}");
}
