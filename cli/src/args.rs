//! The command line.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use xent::Backend;

#[derive(Debug, Parser)]
#[command(name = "xent", version, about, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Score(Score),
}

const EXAMPLES: &str = "\
Examples:
  xent score dump.safetensors
  xent score dump.safetensors --logits lm_head.out --targets labels --ignore-index -1
  xent score dump.safetensors --json | jq .perplexity

Exit status: 0 if the file was scored, 1 if the file is at fault, 2 if the command line is.";

/// Loss, perplexity and accuracy of the logits in a safetensors file
///
/// The file holds logits, F32 of shape (rows, vocab), and one target class per row, I64, I32 or U32
/// of shape (rows), already shifted: row i is the prediction of target i. It is mapped into memory
/// rather than read, so it may be larger than memory, and must not be changed meanwhile. The time
/// reported is that of the one pass over the logits, waiting for the disk included.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Score {
    /// The safetensors file
    #[arg(value_name = "FILE.safetensors")]
    pub(crate) file: PathBuf,

    /// Name of the logits tensor
    #[arg(long, value_name = "NAME", default_value = "logits")]
    pub(crate) logits: String,

    /// Name of the targets tensor
    #[arg(long, value_name = "NAME", default_value = "targets")]
    pub(crate) targets: String,

    /// Target of the rows to leave out
    #[arg(long, value_name = "I", default_value_t = -100, allow_negative_numbers = true)]
    pub(crate) ignore_index: i64,

    /// How row losses become one loss: none, sum, mean, or mean-over:N to divide their sum by N
    ///
    /// `none` implies --per-token. Perplexity, bits per token and standard errors are always those
    /// of the mean over the kept rows.
    #[arg(long, value_name = "R", default_value = "mean")]
    pub(crate) reduction: Reduction,

    /// Instructions to use: scalar, portable, neon, avx2 or avx512
    ///
    /// By default that of the environment variable XENT_BACKEND, or else the fastest that this
    /// machine can run.
    #[arg(long, value_name = "B", value_parser = available_backend)]
    pub(crate) backend: Option<Backend>,

    /// Threads, 1 to 1024; by default one per core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Also print one line per row
    #[arg(long)]
    pub(crate) per_token: bool,

    /// Print one JSON object, rows included, instead of text
    ///
    /// Numbers are in the shortest form that reads back as the same number; those that JSON cannot
    /// hold are null, and `loss_is` tells nan from inf.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Score {
    /// Whether there is anything to print row by row.
    pub(crate) fn wants_rows(&self) -> bool {
        self.json || self.per_token || self.reduction == Reduction::None
    }
}

/// The loss that is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reduction {
    /// Row by row only.
    None,
    Sum,
    Mean,
    MeanOver(f64),
}

impl FromStr for Reduction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Reduction::None),
            "sum" => Ok(Reduction::Sum),
            "mean" => Ok(Reduction::Mean),
            _ => match text.strip_prefix("mean-over:").map(str::parse::<f64>) {
                Some(Ok(count)) if count > 0.0 && count.is_finite() => {
                    Ok(Reduction::MeanOver(count))
                }
                Some(_) => Err("N of mean-over:N must be a finite number above 0".to_owned()),
                None => Err("expected none, sum, mean or mean-over:N".to_owned()),
            },
        }
    }
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reduction::None => f.write_str("none"),
            Reduction::Sum => f.write_str("sum"),
            Reduction::Mean => f.write_str("mean"),
            Reduction::MeanOver(count) => write!(f, "mean-over:{count}"),
        }
    }
}

fn available_backend(name: &str) -> Result<Backend, xent::Error> {
    let backend: Backend = name.parse()?;
    if backend.is_available() {
        Ok(backend)
    } else {
        let available = Backend::available();
        Err(xent::Error::BackendUnavailable { requested: backend, available })
    }
}

/// What clap has to say about a bad command line, in one line: all but its usage summary.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let paragraphs = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let said = paragraphs.filter(|p| !p.starts_with("Usage:") && !p.starts_with("For more"));
    said.filter(|p| !p.is_empty()).collect::<Vec<_>>().join("; ") + "; see `xent score --help`"
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn reductions_read_back_as_written() {
        for text in ["none", "sum", "mean", "mean-over:8", "mean-over:0.5"] {
            assert_eq!(text.parse::<Reduction>().unwrap().to_string(), text);
        }
        for text in ["", "Mean", "batchmean", "mean-over", "mean-over:", "mean-over:x"] {
            assert!(text.parse::<Reduction>().is_err(), "{text}");
        }
        for count in ["0", "-1", "nan", "inf", "1e999"] {
            assert!(format!("mean-over:{count}").parse::<Reduction>().is_err(), "{count}");
        }
    }
}
