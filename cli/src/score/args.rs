//! The command line of `xent score`.
#![forbid(unsafe_code)]

use crate::args::{Compute, Source, Transform};
use crate::format::shortest;
use crate::input::LossTensors;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

const EXAMPLES: &str = "\
Examples:
  xent score dump.safetensors
  xent score dump.safetensors --logits lm_head.out --targets labels --ignore-index -1
  xent score dump.safetensors --json | jq .perplexity
  xent score dump.safetensors --json --per-token | jq -c '.rows[] | select(.loss > 9)'
  xent score dump.safetensors --targets input_ids --shift --vocab 50257
  xent score dump.safetensors --label-smoothing 0.1 --weight class_weights --grad grad.safetensors
  xent score student.safetensors --target-probs teacher --temperature 2
  xent score batch.safetensors --targets input_ids --shift --mask attention_mask
  xent score packed.safetensors --targets input_ids --shift --offsets cu_seqlens
  xent score dump.safetensors --ignore-index -100,50256 --token-weights loss_weights

A loss of NaN is a result: rows that make it so are counted on standard error and in JSON.
Exit status: 0 if the file was scored, 1 if a file is at fault, 2 if the command line is.";

/// Loss, perplexity and accuracy of the logits in a safetensors file, and the gradient of the loss
///
/// The file holds logits, F32, F64, BF16 or F16 of shape [rows, vocab] or [batch, time, vocab], and
/// one target class per row, of any integer type and of shape [rows] or [batch, time], already
/// shifted: row i is the prediction of target i. For tokens as they went into the model there is
/// --shift. Rows are counted through all sequences: that of [b, t] is b * time + t. Dimensions of 1
/// may be missing or added in what has an element per row. What is computed from half formats is
/// F32, and their gradient is of their own type. The file is mapped into memory rather than read,
/// so it may be larger than memory, and must not be changed meanwhile. The time reported is that of
/// the one pass over the logits, waiting for the disk included.
///
/// With p the softmax of a row and t its target, the loss of the row is -ln p[t]. Perplexity, bits per
/// token, accuracy and standard errors are always those of -ln p[t], whatever --label-smoothing,
/// --weight and --z-loss make of the loss; for --target-probs, of the cross-entropy of the row.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The safetensors file
    #[arg(value_name = "FILE.safetensors")]
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) source: Source,

    /// How row losses become one loss: none, sum, mean, or mean-over:N to divide their sum by N
    ///
    /// `mean` divides the sum by the number of kept rows, or with --weight (and targets that are
    /// classes) by the sum of the weights of their targets; the z-loss always by the number of kept
    /// rows. With --token-weights each of these counts as much as its row weighs. `none` implies
    /// --per-token. Perplexity, bits per token and standard errors are always those of the mean
    /// over the kept rows.
    #[arg(long, value_name = "R", default_value = "mean")]
    pub(crate) reduction: Reduction,

    #[command(flatten)]
    pub(crate) compute: Compute,

    /// Also print what was found of each row
    ///
    /// A table above the summary; in JSON `rows`, a list of objects with `row`, `target`, `loss`,
    /// `lse`, `logprob`, `argmax` and `correct`. The target is what the row was scored against:
    /// with --shift the token K rows later, with --target-probs the most probable class. Rows that
    /// do not count are marked `ignored`; those that were not read have no numbers.
    #[arg(long)]
    pub(crate) per_token: bool,

    /// Print one JSON object instead of text
    ///
    /// The standard error of a statistic `x` is `x_stderr`. Numbers are in the shortest form that
    /// reads back as the same number. Those that JSON cannot hold are null, and beside each such
    /// `x` there is `x_is`: nan, inf or -inf, or none where no loss was asked for. `loss_is` is
    /// always there. `nll` is the mean of -ln p[t], which `loss` is too unless options make it
    /// another. `nan_rows` counts the rows whose loss is NaN, and `first_nan_row` is the first of
    /// them. --z-loss adds `cross_entropy` and `z_loss`, the two parts of `loss`, and `z_loss` to
    /// each row. In a row that does not count `ignored` is true.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) loss: Loss,

    #[command(flatten)]
    pub(crate) gradient: Gradient,
}

/// What makes the loss another one than -ln p[t].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of the loss")]
pub(crate) struct Loss {
    /// Name of a tensor of target probabilities, instead of --targets
    ///
    /// Of the shape and type of the logits, or of BF16 or F16; for F64 logits also of F32. With q
    /// its row, the loss is -sum_j q[j] ln p[j]; rows need not sum to 1.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["targets", "shift", "offsets"])]
    pub(crate) target_probs: Option<String>,

    /// Share of each target's probability that goes to all classes alike, 0 to 1 [default: 0]
    ///
    /// loss = (1 - E) w[t] (-ln p[t]) + E / vocab * sum_c w[c] (-ln p[c]), with w the class weights or
    /// 1; target probabilities q become (1 - E) q + E / vocab.
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    pub(crate) label_smoothing: Option<f64>,

    /// Name of a tensor of class weights, [vocab], of the type of the logits or of 16 bits
    ///
    /// The loss of a row is multiplied by the weight of its target, and a mean divided by the sum of
    /// these. With --target-probs each term of the loss has the weight of its class, and a mean is
    /// over the number of rows.
    #[arg(long, value_name = "NAME")]
    pub(crate) weight: Option<String>,

    /// Adds F * lse^2 to the loss of each row, with lse its logsumexp; F >= 0 [default: 0]
    ///
    /// Not multiplied by class weights.
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) z_loss: Option<f64>,

    /// Bounds logits by C * tanh(x / C), C > 0; -inf stays a mask [default: no bound]
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    pub(crate) softcap: Option<f64>,

    /// Multiplies logits, before --softcap; K > 0 [default: 1]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) logit_scale: Option<f64>,

    #[command(flatten)]
    pub(crate) transform: Transform,
}

/// The gradient and where it goes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Gradient")]
pub(crate) struct Gradient {
    /// Writes the gradient of the loss by the logits to this file
    ///
    /// As tensor `grad`, of the shape and type of the logits, 0 where --vocab leaves padding. It is the
    /// gradient of the loss that --reduction asks for; for `none`, of the sum of the row losses. The file
    /// is replaced if it exists, once the gradient is complete: it is written to a temporary file beside
    /// it first.
    #[arg(long, value_name = "OUT.safetensors")]
    pub(crate) grad: Option<PathBuf>,

    /// Name of a tensor that the gradient is multiplied by, F32, F64, BF16 or F16
    ///
    /// Of shape [], the derivative of what is trained by the loss; or of the shape of the targets, that
    /// by the loss of each row, before the division that a mean implies. [default: 1]
    #[arg(long, value_name = "NAME", requires = "grad")]
    pub(crate) upstream: Option<String>,
}

impl Args {
    /// Whether there is anything to print row by row.
    pub(crate) fn wants_rows(&self) -> bool {
        self.per_token || self.reduction == Reduction::None
    }

    /// Whether the mean of the row losses may be another number than that of the negative
    /// log-probabilities. Those of target probabilities are defined as their cross-entropy, weights and
    /// smoothing included.
    pub(crate) fn has_nll_of_its_own(&self) -> bool {
        let Loss { target_probs, label_smoothing, weight, z_loss, .. } = &self.loss;
        z_loss.is_some()
            || target_probs.is_none() && (label_smoothing.is_some() || weight.is_some())
    }

    /// The names of the tensors that only a loss has a use for.
    pub(crate) fn tensors(&self) -> LossTensors<'_> {
        LossTensors {
            target_probs: self.loss.target_probs.as_deref(),
            weight: self.loss.weight.as_deref(),
            upstream: self.gradient.upstream.as_deref(),
        }
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
            Reduction::MeanOver(count) => write!(f, "mean-over:{}", shortest(*count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_read_back_as_written() {
        for text in ["none", "sum", "mean", "mean-over:8", "mean-over:0.5", "mean-over:1e-38"] {
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
