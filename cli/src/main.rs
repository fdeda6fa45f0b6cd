//! `xent score`: loss, perplexity and accuracy of logits that any framework wrote to a file.
#![deny(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod args;
mod input;
mod report;
mod score;

use args::{Args, Command, Score};
use clap::Parser;
use input::Input;
use score::Scores;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {error}", file.display())]
    Input { file: PathBuf, error: input::Error },
    #[error("{}: tensor `{tensor}`: {error}; the ignore index is {ignore_index}", file.display())]
    Target { file: PathBuf, tensor: String, error: xent::Error, ignore_index: i64 },
    #[error("{}: {error}", file.display())]
    Score { file: PathBuf, error: xent::Error },
    #[error("{0}")]
    Backend(xent::Error),
    #[error("cannot start {threads} threads: {error}")]
    Threads { threads: u16, error: rayon::ThreadPoolBuildError },
    #[error("standard output: {0}")]
    Output(io::Error),
}

const DATA: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let error = match Args::try_parse() {
        Ok(Args { command: Command::Score(args) }) => match score(&args) {
            Ok(()) => return ExitCode::SUCCESS,
            // Whoever read the output has seen enough of it.
            Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Err(error) => error,
        },
        Err(error) => return bad_usage(&error),
    };
    let usage = matches!(error, Error::Backend(_));
    complain(&error.to_string());
    ExitCode::from(if usage { USAGE } else { DATA })
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
    let bad_input = |error| Error::Input { file: args.file.clone(), error };
    let file = input::map(&args.file).map_err(bad_input)?;
    let input = Input::new(&file, &args.logits, &args.targets).map_err(bad_input)?;
    let scores = in_pool(args.threads, || score::run(&input, args))?
        .map_err(|error| scoring_error(error, args))?;
    print(&scores, &input, args).map_err(Error::Output)
}

fn in_pool<T: Send>(threads: Option<u16>, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let Some(threads) = threads else { return Ok(work()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build();
    Ok(pool.map_err(|error| Error::Threads { threads, error })?.install(work))
}

fn scoring_error(error: xent::Error, args: &Score) -> Error {
    let file = args.file.clone();
    match error {
        xent::Error::TargetOutOfRange { .. } => {
            let (tensor, ignore_index) = (args.targets.clone(), args.ignore_index);
            Error::Target { file, tensor, error, ignore_index }
        }
        // A bad `XENT_BACKEND`: `--backend` was checked with the rest of the command line.
        xent::Error::UnknownBackend { .. } | xent::Error::BackendUnavailable { .. } => {
            Error::Backend(error)
        }
        _ => Error::Score { file, error },
    }
}

fn print(scores: &Scores, input: &Input<'_>, args: &Score) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    report::print(&mut out, scores, input, args)?;
    out.flush()
}
