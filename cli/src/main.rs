//! `xent score`: loss, perplexity and accuracy of logits that any framework wrote to a file; `xent logprobs`: their
//! log-probabilities, token by token; `xent compare`: how far those of one model are from those of another.
#![deny(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod args;
mod command;
mod compare;
mod error;
mod file;
mod format;
mod gradient;
mod input;
mod json;
mod logprobs;
mod nan;
mod number;
mod score;
mod tensor;
mod tokens;

use clap::{Parser, Subcommand};
use error::{Error, complain};
use std::io;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "xent", version, about, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Score(score::Args),
    Compare(compare::Args),
    Logprobs(logprobs::Args),
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
        Error::Environment(_)
            | Error::IgnoredClass(_)
            | Error::Option { .. }
            | Error::Gradient { error: gradient::Error::IsInput, .. }
    );
    complain(&error.to_string());
    ExitCode::from(if usage { USAGE } else { DATA })
}

fn run(command: &Command) -> Result<(), Error> {
    match command {
        Command::Score(args) => score::run(args),
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
        _ => complain(&one_line(error)),
    }
    ExitCode::from(error.exit_code().try_into().unwrap_or(USAGE))
}

/// What clap has to say about a bad command line, in one line: all but its usage summary.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let paragraphs = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let said = paragraphs.filter(|p| !p.starts_with("Usage:") && !p.starts_with("For more"));
    let command = std::env::args_os().nth(1).unwrap_or_default();
    let help = match command.to_str() {
        Some(command @ ("compare" | "logprobs")) => format!("xent {command} --help"),
        _ => "xent score --help".to_owned(),
    };
    said.filter(|p| !p.is_empty()).collect::<Vec<_>>().join("; ") + &format!("; see `{help}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }
}
