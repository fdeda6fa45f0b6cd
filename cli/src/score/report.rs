//! What is printed, as text or as JSON.
#![forbid(unsafe_code)]

use super::args::{Args, Reduction};
use super::pass::{RowScores, Scores};
use crate::format::number;
use crate::input::Input;
use crate::json::{Field, Statistic, kind};
use crate::number::{Logit, Number};
use serde::{Serialize, Serializer};
use std::io::{self, Write};
use xent::Estimate;

/// Row results along with the targets that they are for.
struct Rows<'a, T: Logit> {
    scores: &'a RowScores<T::Real>,
    input: &'a Input<'a, T>,
}

#[derive(Serialize)]
struct Row<R: Number> {
    row: usize,
    target: i64,
    /// Whether it does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    ignored: Option<bool>,
    #[serde(flatten)]
    found: Option<Found<R>>,
}

/// What is known of a row that was read.
///
/// Numbers stay `f32` where the logits are, whose shortest form is shorter than that of the same
/// `f64`.
#[derive(Serialize)]
struct Found<R: Number> {
    #[serde(flatten)]
    loss: Field<R>,
    #[serde(flatten)]
    z_loss: Option<Field<R>>,
    #[serde(flatten)]
    lse: Field<R>,
    #[serde(flatten)]
    logprob: Field<R>,
    argmax: i64,
    correct: bool,
}

impl<T: Logit> Rows<'_, T> {
    fn row(&self, row: usize) -> Row<T::Real> {
        let target = self.input.class(row);
        let ignored = (!self.input.counts(row)).then_some(true);
        let found = self.input.is_kept(row).then(|| self.found(row, target));
        Row { row, target, ignored, found }
    }

    fn found(&self, row: usize, target: i64) -> Found<T::Real> {
        let (scores, argmax) = (self.scores, self.scores.argmax[row]);
        let logprob = scores.logprobs[row];
        Found {
            loss: Field::number("loss", scores.losses[row]),
            z_loss: scores.z_losses.as_ref().map(|all| Field::number("z_loss", all[row])),
            lse: Field::number("lse", scores.logsumexp[row]),
            logprob: Field::number("logprob", logprob),
            argmax,
            // The argmax of a row with a NaN is the NaN, which is no prediction.
            correct: argmax == target && !logprob.into().is_nan(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Row<T::Real>> {
        (0..self.scores.losses.len()).map(|row| self.row(row))
    }
}

/// Numbers that are not finite are written as null by the serializer.
#[derive(Serialize)]
struct Report<'a, T: Logit> {
    loss: Option<f64>,
    loss_is: &'static str,
    #[serde(flatten)]
    cross_entropy: Option<Field<Option<f64>>>,
    #[serde(flatten)]
    z_loss: Option<Field<Option<f64>>>,
    #[serde(flatten)]
    nll: Statistic,
    reduction: String,
    #[serde(flatten)]
    perplexity: Statistic,
    #[serde(flatten)]
    bits_per_token: Field<f64>,
    #[serde(flatten)]
    accuracy: Option<Field<f64>>,
    count: u64,
    ignored: u64,
    nan_rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_nan_row: Option<u64>,
    vocab: usize,
    backend: &'static str,
    threads: usize,
    #[serde(flatten)]
    seconds: Field<f64>,
    #[serde(flatten)]
    gb_per_s: Field<f64>,
    #[serde(serialize_with = "sequence", skip_serializing_if = "Option::is_none")]
    rows: Option<Rows<'a, T>>,
}

/// Row by row, so that no second copy of all rows is made.
fn sequence<T: Logit, S: Serializer>(
    rows: &Option<Rows<'_, T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rows.iter().flat_map(Rows::iter))
}

/// Prints what `args` asks for.
pub(crate) fn print<T: Logit>(
    out: &mut impl Write,
    scores: &Scores<T::Real>,
    input: &Input<'_, T>,
    args: &Args,
) -> io::Result<()> {
    let rows = scores.rows.as_ref().map(|scores| Rows { scores, input });
    if args.json {
        return json(out, scores, rows, input.layout.vocab, args);
    }
    if let Some(rows) = rows {
        table(out, &rows)?;
        writeln!(out)?;
    }
    summary(out, scores, args)
}

fn json<T: Logit>(
    out: &mut impl Write,
    scores: &Scores<T::Real>,
    rows: Option<Rows<'_, T>>,
    vocab: usize,
    args: &Args,
) -> io::Result<()> {
    let e = &scores.evaluation;
    let is_reduced = args.reduction != Reduction::None;
    let part = |key, part: f64| {
        args.loss.z_loss.map(|_| match is_reduced {
            true => Field::some(Field::number(key, part)),
            false => Field::none(key),
        })
    };
    let statistic = |key, value, stderr| Statistic::new(key, Estimate { value, stderr });
    let loss = is_reduced.then(|| e.loss());
    let report = Report {
        loss,
        loss_is: loss.map_or("none", kind),
        cross_entropy: part("cross_entropy", e.cross_entropy()),
        z_loss: part("z_loss", e.z_loss()),
        nll: statistic("nll", e.mean(), e.stderr()),
        reduction: args.reduction.to_string(),
        perplexity: statistic("perplexity", e.perplexity(), e.perplexity_stderr()),
        bits_per_token: Field::number("bits_per_token", e.bits_per_token()),
        accuracy: e.accuracy().map(|accuracy| Field::number("accuracy", accuracy)),
        count: e.count(),
        ignored: e.ignored(),
        nan_rows: scores.nan.count,
        first_nan_row: scores.nan.first,
        vocab,
        backend: scores.backend.name(),
        threads: scores.threads,
        seconds: Field::number("seconds", scores.seconds),
        gb_per_s: Field::number("gb_per_s", scores.gb_per_s),
        rows,
    };
    serde_json::to_writer(&mut *out, &report)?;
    writeln!(out)
}

fn table<T: Logit>(out: &mut impl Write, rows: &Rows<'_, T>) -> io::Result<()> {
    let w = T::Real::WIDTH;
    write!(out, "{:>8} {:>8} {:>w$}", "row", "target", "loss")?;
    if rows.scores.z_losses.is_some() {
        write!(out, " {:>w$}", "z-loss")?;
    }
    writeln!(out, " {:>w$} {:>w$} {:>8} correct", "logprob", "lse", "argmax")?;
    for Row { row, target, ignored, found } in rows.iter() {
        write!(out, "{row:>8} {target:>8}")?;
        let Some(Found { loss, z_loss, lse, logprob, argmax, correct }) = found else {
            write!(out, " {:>w$}", "-")?;
            if rows.scores.z_losses.is_some() {
                write!(out, " {:>w$}", "-")?;
            }
            writeln!(out, " {:>w$} {:>w$} {:>8} ignored", "-", "-", "-")?;
            continue;
        };
        let correct = match (ignored, correct) {
            (Some(_), _) => "ignored",
            (None, true) => "yes",
            (None, false) => "no",
        };
        // `Debug` of a float is the shortest form too, with an exponent where `Display` would
        // print dozens of zeros.
        write!(out, " {:>w$?}", loss.value)?;
        if let Some(z_loss) = z_loss {
            write!(out, " {:>w$?}", z_loss.value)?;
        }
        writeln!(out, " {:>w$?} {:>w$?} {argmax:>8} {correct}", logprob.value, lse.value)?;
    }
    Ok(())
}

fn summary<R>(out: &mut impl Write, scores: &Scores<R>, args: &Args) -> io::Result<()> {
    let e = &scores.evaluation;
    // Of one row there is no standard error.
    let with_error = |value: f64, error: f64| match e.count() {
        0 | 1 => number(value),
        _ => format!("{} +/- {}", number(value), number(error)),
    };
    let has_nll = args.has_nll_of_its_own();
    match args.reduction {
        Reduction::None => {}
        // The standard error is that of the mean of the negative log-probabilities.
        Reduction::Mean if !has_nll => {
            let mean = with_error(e.loss(), e.stderr());
            writeln!(out, "loss            {mean} (mean)")?;
        }
        reduction => writeln!(out, "loss            {} ({reduction})", number(e.loss()))?,
    }
    if args.loss.z_loss.is_some() && args.reduction != Reduction::None {
        writeln!(out, "  cross-entropy {}", number(e.cross_entropy()))?;
        writeln!(out, "  z-loss        {}", number(e.z_loss()))?;
    }
    if has_nll {
        writeln!(out, "nll             {} (mean)", with_error(e.mean(), e.stderr()))?;
    }
    let perplexity = with_error(e.perplexity(), e.perplexity_stderr());
    writeln!(out, "perplexity      {perplexity}")?;
    writeln!(out, "bits per token  {}", number(e.bits_per_token()))?;
    if let (Some(accuracy), Some(correct)) = (e.accuracy(), e.correct()) {
        let (percent, count) = (100.0 * accuracy, e.count());
        writeln!(out, "accuracy        {percent:.2} % ({correct} of {count})")?;
    }
    writeln!(out, "rows            {} kept, {} ignored", e.count(), e.ignored())?;
    let plural = if scores.threads == 1 { "" } else { "s" };
    writeln!(out, "backend         {}, {} thread{plural}", scores.backend, scores.threads)?;
    writeln!(out, "time            {:.6} s, {:.2} GB/s", scores.seconds, scores.gb_per_s)
}
