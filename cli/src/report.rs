//! What is printed, as text or as JSON.
#![forbid(unsafe_code)]

use crate::args::{Reduction, Score};
use crate::input::{Ids, Input};
use crate::score::{RowScores, Scores};
use serde::{Serialize, Serializer};
use std::io::{self, Write};

/// Row results along with the targets that they are for.
struct Rows<'a> {
    scores: &'a RowScores,
    targets: &'a Ids<'a>,
}

/// Numbers of one row stay `f32`, whose shortest form is shorter than that of the same `f64`.
#[derive(Serialize)]
struct Row {
    loss: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_is: Option<&'static str>,
    lse: f32,
    logprob: f32,
    argmax: i64,
    correct: bool,
}

impl Rows<'_> {
    fn row(&self, i: usize) -> Row {
        let loss = self.scores.losses[i];
        let argmax = self.scores.argmax[i];
        Row {
            loss,
            loss_is: (!loss.is_finite()).then(|| kind(loss.into())),
            lse: self.scores.logsumexp[i],
            logprob: self.scores.logprobs[i],
            argmax,
            // The argmax of an ignored row is -1, which may be the ignore index.
            correct: argmax >= 0 && argmax == self.targets.get(i),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Row> {
        (0..self.scores.losses.len()).map(|i| self.row(i))
    }
}

fn kind(loss: f64) -> &'static str {
    if loss.is_nan() {
        "nan"
    } else if loss == f64::INFINITY {
        "inf"
    } else if loss == f64::NEG_INFINITY {
        "-inf"
    } else {
        "finite"
    }
}

/// Numbers that are not finite are written as null by the serializer.
#[derive(Serialize)]
struct Report<'a> {
    loss: Option<f64>,
    loss_is: &'static str,
    reduction: String,
    perplexity: f64,
    perplexity_stderr: f64,
    stderr: f64,
    bits_per_token: f64,
    accuracy: Option<f64>,
    count: u64,
    ignored: u64,
    vocab: usize,
    backend: &'static str,
    threads: usize,
    seconds: f64,
    gb_per_s: f64,
    #[serde(serialize_with = "sequence")]
    rows: Option<Rows<'a>>,
}

/// Row by row, so that no second copy of all rows is made.
fn sequence<S: Serializer>(rows: &Option<Rows<'_>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rows.iter().flat_map(Rows::iter))
}

/// Prints what `args` asks for.
pub(crate) fn print(
    out: &mut impl Write,
    scores: &Scores,
    input: &Input<'_>,
    args: &Score,
) -> io::Result<()> {
    let rows = scores.rows.as_ref().map(|scores| Rows { scores, targets: &input.targets });
    if args.json {
        return json(out, scores, rows, input.vocab, args.reduction);
    }
    if let Some(rows) = rows {
        table(out, &rows)?;
        writeln!(out)?;
    }
    summary(out, scores, args.reduction)
}

fn json(
    out: &mut impl Write,
    scores: &Scores,
    rows: Option<Rows<'_>>,
    vocab: usize,
    reduction: Reduction,
) -> io::Result<()> {
    let e = &scores.evaluation;
    let loss = (reduction != Reduction::None).then(|| e.loss());
    let report = Report {
        loss,
        loss_is: loss.map_or("none", kind),
        reduction: reduction.to_string(),
        perplexity: e.perplexity(),
        perplexity_stderr: e.perplexity_stderr(),
        stderr: e.stderr(),
        bits_per_token: e.bits_per_token(),
        accuracy: e.accuracy(),
        count: e.count(),
        ignored: e.ignored(),
        vocab,
        backend: scores.backend.name(),
        threads: scores.threads,
        seconds: scores.seconds,
        gb_per_s: scores.gb_per_s,
        rows,
    };
    serde_json::to_writer(&mut *out, &report)?;
    writeln!(out)
}

fn table(out: &mut impl Write, rows: &Rows<'_>) -> io::Result<()> {
    writeln!(
        out,
        "{:>8} {:>8} {:>14} {:>14} {:>14} {:>8} correct",
        "row", "target", "loss", "logprob", "lse", "argmax"
    )?;
    for (i, row) in rows.iter().enumerate() {
        let Row { loss, lse, logprob, argmax, correct, .. } = row;
        let correct = match (argmax, correct) {
            (-1, _) => "ignored",
            (_, true) => "yes",
            (_, false) => "no",
        };
        let target = rows.targets.get(i);
        // `Debug` of a float is the shortest form too, with an exponent where `Display` would
        // print dozens of zeros.
        writeln!(
            out,
            "{i:>8} {target:>8} {loss:>14?} {logprob:>14?} {lse:>14?} {argmax:>8} {correct}"
        )?;
    }
    Ok(())
}

/// Six decimals, or six digits after the first where decimals would show nothing.
fn number(x: f64) -> String {
    if x != 0.0 && x.is_finite() && !(1e-3..1e12).contains(&x.abs()) {
        format!("{x:.6e}")
    } else {
        format!("{x:.6}")
    }
}

fn summary(out: &mut impl Write, scores: &Scores, reduction: Reduction) -> io::Result<()> {
    let e = &scores.evaluation;
    // Of one row there is no standard error.
    let with_error = |value: f64, error: f64| match e.count() {
        0 | 1 => number(value),
        _ => format!("{} +/- {}", number(value), number(error)),
    };
    match reduction {
        Reduction::None => {}
        Reduction::Mean => {
            let mean = with_error(e.loss(), e.stderr());
            writeln!(out, "loss            {mean} (mean)")?;
        }
        _ => writeln!(out, "loss            {} ({reduction})", number(e.loss()))?,
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
