//! What is printed, as text or as JSON.
#![forbid(unsafe_code)]

use crate::args::{Reduction, Score};
use crate::input::{Answers, Input};
use crate::number::{Logit, Number};
use crate::score::{RowScores, Scores};
use serde::{Serialize, Serializer};
use std::io::{self, Write};

/// Row results along with the targets that they are for.
struct Rows<'a, R: Number> {
    scores: &'a RowScores<R>,
    targets: &'a Answers<'a, R>,
    /// Whether JSON has the targets too, since the file has them elsewhere.
    shifted: bool,
}

/// Numbers of one row stay `f32` where the logits are, whose shortest form is shorter than that of the
/// same `f64`.
#[derive(Serialize)]
struct Row<R> {
    loss: R,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_is: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    z_loss: Option<R>,
    lse: R,
    logprob: R,
    argmax: i64,
    correct: bool,
    #[serde(skip)]
    class: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<i64>,
}

impl<R: Number> Rows<'_, R> {
    fn row(&self, i: usize) -> Row<R> {
        let loss = self.scores.losses[i];
        let argmax = self.scores.argmax[i];
        let class = self.targets.class(i);
        Row {
            loss,
            loss_is: (!loss.into().is_finite()).then(|| kind(loss.into())),
            z_loss: self.scores.z_losses.as_ref().map(|z_losses| z_losses[i]),
            lse: self.scores.logsumexp[i],
            logprob: self.scores.logprobs[i],
            argmax,
            // The argmax of an ignored row is -1, which may be the ignore index.
            correct: argmax >= 0 && argmax == class,
            class,
            target: self.shifted.then_some(class),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Row<R>> {
        (0..self.scores.losses.len()).map(|i| self.row(i))
    }
}

pub(crate) fn kind(loss: f64) -> &'static str {
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
struct Report<'a, R: Number> {
    loss: Option<f64>,
    loss_is: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cross_entropy: Option<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    z_loss: Option<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nll: Option<f64>,
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
    rows: Option<Rows<'a, R>>,
}

/// Row by row, so that no second copy of all rows is made.
fn sequence<R: Number, S: Serializer>(
    rows: &Option<Rows<'_, R>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rows.iter().flat_map(Rows::iter))
}

/// Prints what `args` asks for.
pub(crate) fn print<T: Logit>(
    out: &mut impl Write,
    scores: &Scores<T::Real>,
    input: &Input<'_, T>,
    args: &Score,
) -> io::Result<()> {
    let (targets, shifted) = (&input.targets, args.shift.is_some());
    let rows = scores.rows.as_ref().map(|scores| Rows { scores, targets, shifted });
    if args.json {
        return json(out, scores, rows, input.layout.vocab, args);
    }
    if let Some(rows) = rows {
        table(out, &rows)?;
        writeln!(out)?;
    }
    summary(out, scores, args)
}

fn json<R: Number>(
    out: &mut impl Write,
    scores: &Scores<R>,
    rows: Option<Rows<'_, R>>,
    vocab: usize,
    args: &Score,
) -> io::Result<()> {
    let e = &scores.evaluation;
    let reduced = |loss: f64| (args.reduction != Reduction::None).then_some(loss);
    let part = |part: f64| args.loss.z_loss.map(|_| reduced(part));
    let loss = reduced(e.loss());
    let report = Report {
        loss,
        loss_is: loss.map_or("none", kind),
        cross_entropy: part(e.cross_entropy()),
        z_loss: part(e.z_loss()),
        nll: args.has_nll_of_its_own().then(|| e.mean()),
        reduction: args.reduction.to_string(),
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

fn table<R: Number>(out: &mut impl Write, rows: &Rows<'_, R>) -> io::Result<()> {
    let w = R::WIDTH;
    write!(out, "{:>8} {:>8} {:>w$}", "row", "target", "loss")?;
    if rows.scores.z_losses.is_some() {
        write!(out, " {:>w$}", "z-loss")?;
    }
    writeln!(out, " {:>w$} {:>w$} {:>8} correct", "logprob", "lse", "argmax")?;
    for (i, row) in rows.iter().enumerate() {
        let Row { loss, z_loss, lse, logprob, argmax, correct, class, .. } = row;
        let correct = match (argmax, correct) {
            (-1, _) => "ignored",
            (_, true) => "yes",
            (_, false) => "no",
        };
        // `Debug` of a float is the shortest form too, with an exponent where `Display` would
        // print dozens of zeros.
        write!(out, "{i:>8} {class:>8} {loss:>w$?}")?;
        if let Some(z_loss) = z_loss {
            write!(out, " {z_loss:>w$?}")?;
        }
        writeln!(out, " {logprob:>w$?} {lse:>w$?} {argmax:>8} {correct}")?;
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

fn summary<R>(out: &mut impl Write, scores: &Scores<R>, args: &Score) -> io::Result<()> {
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
