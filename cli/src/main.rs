//! `xent score`: loss, perplexity and accuracy of logits that any framework wrote to a file; `xent logprobs`: their
//! log-probabilities, token by token; `xent compare`: how far those of one model are from those of another.
#![deny(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod args;
mod compare;
mod file;
mod gradient;
mod input;
mod json;
mod logprobs;
mod nan;
mod number;
mod report;
mod score;
mod tokens;

use args::{Args, Command, Score};
use clap::Parser;
use gradient::GradientFile;
use half::{bf16, f16};
use input::Input;
use memmap2::Mmap;
use number::Logit;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use score::Scores;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {error}", file.display())]
    File { file: PathBuf, error: file::Error },
    #[error("{}: {error}", file.display())]
    Input { file: PathBuf, error: input::Error },
    // What the library says beyond that is about its calls.
    #[error(
        "{}: {tensor}: row {row}: target {target} is out of range for a vocabulary of {vocab}; {}",
        file.display(),
        ignored_ids(ignored)
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
    #[error("{0}")]
    Usage(xent::Error),
    #[error("--{} {value}: it must be {range}", option.replace('_', "-"))]
    Option { option: &'static str, value: String, range: &'static str },
    #[error("cannot start {threads} threads: {error}")]
    Threads { threads: u16, error: rayon::ThreadPoolBuildError },
    #[error("standard output: {0}")]
    Output(io::Error),
}

fn ignored_ids(ids: &[i64]) -> String {
    match ids {
        [id] => format!("the ignore index is {id}"),
        ids => {
            let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
            format!("the ignore indices are {}", ids.join(", "))
        }
    }
}

const DATA: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let error = match Args::try_parse() {
        Ok(Args { command }) => match run(&command) {
            Ok(()) => return ExitCode::SUCCESS,
            // Whoever read the output has seen enough of it.
            Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Err(error) => error,
        },
        Err(error) => return bad_usage(&error),
    };
    let usage = matches!(
        error,
        Error::Usage(_)
            | Error::Option { .. }
            | Error::Gradient { error: gradient::Error::IsInput, .. }
    );
    complain(&error.to_string());
    ExitCode::from(if usage { USAGE } else { DATA })
}

fn run(command: &Command) -> Result<(), Error> {
    match command {
        Command::Score(args) => score(args),
        Command::Compare(args) => compare::run(args),
        Command::Logprobs(args) => logprobs::run(args),
    }
}

fn bad_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
    };
    match error.kind() {
        DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand => {
            // If nobody reads the help there is nobody to tell.
            let _ = error.print();
        }
        _ => complain(&args::one_line(error)),
    }
    ExitCode::from(error.exit_code().try_into().unwrap_or(USAGE))
}

/// One line on standard error, whatever the names in a file have in them.
fn complain(message: &str) {
    let mut line = String::from("xent: ");
    for c in message.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    // Unlike `eprintln!` this does not panic if standard error is closed.
    let _ = writeln!(io::stderr(), "{line}");
}

fn score(args: &Score) -> Result<(), Error> {
    let file = map(&args.file)?;
    let tensors = tensors(&args.file, &file)?;
    let logits = logits(&args.file, &tensors, &args.logits)?;
    match logits.dtype() {
        Dtype::BF16 => score_as::<bf16>(&tensors, &logits, args),
        Dtype::F16 => score_as::<f16>(&tensors, &logits, args),
        Dtype::F64 => score_as::<f64>(&tensors, &logits, args),
        _ => score_as::<f32>(&tensors, &logits, args),
    }
}

fn map(file: &Path) -> Result<Mmap, Error> {
    file::map(file).map_err(|error| Error::File { file: file.to_owned(), error })
}

fn tensors<'a>(file: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, Error> {
    file::tensors(bytes).map_err(|error| Error::File { file: file.to_owned(), error })
}

fn logits<'a>(file: &Path, tensors: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, Error> {
    input::logits(tensors, name).map_err(|error| Error::Input { file: file.to_owned(), error })
}

fn score_as<T: Logit>(
    tensors: &SafeTensors<'_>,
    logits: &TensorView<'_>,
    args: &Score,
) -> Result<(), Error> {
    let input = Input::<T>::new(tensors, logits, args)
        .map_err(|error| Error::Input { file: args.file.clone(), error })?;
    input.check_targets().map_err(|error| scoring_error(error, &input, args))?;
    let run = |gradient: Option<&mut [T]>| {
        in_pool(args.threads, || score::run(&input, args, gradient))?
            .map_err(|error| scoring_error(error, &input, args))
    };
    let scores = match &args.gradient.grad {
        None => run(None)?,
        Some(to) => {
            let bad_gradient = |error| Error::Gradient { file: to.clone(), error };
            let mut file = GradientFile::new::<T>(to, &args.file, &input.layout.shape)
                .map_err(bad_gradient)?;
            let scores = run(Some(file.elements()))?;
            file.finish::<T>().map_err(bad_gradient)?;
            scores
        }
    };
    if let Some(warning) = scores.nan.warning("loss", |row| input.bad_logits(row)) {
        complain(&format!("{}: {warning}", args.file.display()));
    }
    print(&scores, &input, args).map_err(Error::Output)
}

fn in_pool<T: Send>(threads: Option<u16>, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let Some(threads) = threads else { return Ok(work()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build();
    Ok(pool.map_err(|error| Error::Threads { threads, error })?.install(work))
}

fn scoring_error<T: Logit>(error: xent::Error, input: &Input<'_, T>, args: &Score) -> Error {
    let file = args.file.clone();
    match error {
        xent::Error::TargetOutOfRange { row, target, vocab } => {
            let tensor = &args.targets;
            let tensor = match input.index_of_target(row) {
                Some(index) => format!("tensor `{tensor}` at {index:?}"),
                None => format!("tensor `{tensor}`"),
            };
            let ignored = args.rows.ignore_index.clone();
            Error::Target { file, tensor, row, target, vocab, ignored }
        }
        // A backend is a bad `XENT_BACKEND`: `--backend` was checked with the rest of the command line.
        xent::Error::UnknownBackend { .. }
        | xent::Error::BackendUnavailable { .. }
        | xent::Error::IgnoreIndexWithProbs { .. } => Error::Usage(error),
        xent::Error::Option { option, value, range } => Error::Option { option, value, range },
        _ => Error::Score { file, error },
    }
}

fn print<T: Logit>(scores: &Scores<T::Real>, input: &Input<'_, T>, args: &Score) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    report::print(&mut out, scores, input, args)?;
    out.flush()
}
