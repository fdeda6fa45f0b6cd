//! `xent logprobs`: what an inference engine says of the tokens of logits that are in a file.
#![forbid(unsafe_code)]

use crate::args::{Compute, Source, Transform};
use crate::command::{self, bad_input, in_pool, in_words};
use crate::error::Error;
use crate::input::Input;
use crate::json::Field;
use crate::number::{Logit, Number, for_logits};
use crate::tensor::{Named, wrong};
use safetensors::SafeTensors;
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;
use xent::{LogProbs, Sample, TokenLogProbs};

const EXAMPLES: &str = "\
Examples:
  xent logprobs dump.safetensors
  xent logprobs dump.safetensors --top 5 --entropy --targets input_ids --shift --vocab 50257
  xent logprobs dump.safetensors --json | jq -c 'select(.rank > 100) | [.row, .target, .logprob]'
  xent logprobs dump.safetensors --json --top 20 | jq -c '[.top[]?.id]'
  xent logprobs dump.safetensors --sample 42 --sample-temperature 0.8
  xent logprobs packed.safetensors --targets input_ids --shift --offsets cu_seqlens

Exit status: 0 if the file was read to its end, 1 if a file is at fault, 2 if the command line is.";

/// Log-probabilities of the tokens that logits in a safetensors file are of, row by row
///
/// Of each row: the target, its log-probability and its rank, the argmax, and what the options ask
/// for. Without targets there are the argmax and its log-probability, and no ranks. The file
/// is that of `xent score`. Rows are printed as they are computed, a bounded number at a time, so
/// that neither the file nor the output needs to fit into memory; targets are checked before
/// anything is printed. Rows are counted through all sequences. The last line has the means over
/// the rows that are not ignored, and says how many of these have log-probability NaN, and which is
/// the first, if any do; it is not correct then.
///
/// With z the logits divided by --temperature, the log-probability of token t is z[t] - ln(sum_j e^z[j]).
/// The rank of a token is the number of logits that are at least its own: 1 for the largest, and where
/// others are equal the last place that they share, as in vLLM. Entropies are in nats.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The safetensors file
    #[arg(value_name = "FILE.safetensors")]
    file: PathBuf,

    #[command(flatten)]
    source: Source,

    #[command(flatten)]
    transform: Transform,

    /// Also print the K most probable tokens, `id:logprob`, at most 128
    ///
    /// In descending order, of equals the lower id first. 0 prints none, and more than the
    /// vocabulary all.
    #[arg(long, value_name = "K", default_value_t = 0, allow_negative_numbers = true)]
    top: usize,

    /// Also print the entropy of each row, in nats
    #[arg(long)]
    entropy: bool,

    /// Also print the variance of the log-probability of a token of the row, in square nats
    #[arg(long)]
    varentropy: bool,

    /// Also draw a token of each row, and print it and its log-probability
    ///
    /// The draw follows from SEED, the number of the row and the logits alone: it is the same with any
    /// number of threads and any backend. -1 (null in JSON) where nothing can be drawn.
    #[arg(long, value_name = "SEED", allow_negative_numbers = true)]
    sample: Option<u64>,

    /// Divides what --temperature leaves of the logits once more, for the draw alone; 0 is the argmax
    #[arg(
        long,
        value_name = "T",
        requires = "sample",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    sample_temperature: f64,

    #[command(flatten)]
    compute: Compute,

    /// Print one JSON object per row, each on a line of its own, instead of text
    ///
    /// The keys are `row`, `target`, `logprob`, `rank`, `strict_rank` (one more than the number of
    /// logits above that of the target), `argmax`, without targets `argmax_logprob` instead of all
    /// that is about them, and as asked for `entropy`, `varentropy`,
    /// `sampled`, `sampled_logprob` and `top`, a list of `id` and `logprob`. Ignored rows have
    /// `row`, `target` and `"ignored":true` alone. Numbers are in the shortest form that reads back
    /// as the same number. Those that JSON cannot hold are null, and beside each such `x` there is
    /// `x_is`: nan, inf or -inf, or none for `sampled` where nothing can be drawn. There is no last
    /// line with means.
    #[arg(long)]
    json: bool,
}

/// Bytes of logits that are asked about in one call.
const BATCH_BYTES: usize = 64 << 20;

/// How many rows at most: what is found of each needs memory too.
const BATCH_ROWS: usize = 1 << 14;

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let file = command::map(&args.file)?;
    let tensors = command::tensors(&args.file, &file)?;
    let logits = command::logits(&args.file, &tensors, &args.source.logits)?;
    for_logits!(logits.view.dtype(), T => print::<T>(&tensors, &logits, args))
}

fn print<T: Logit>(
    tensors: &SafeTensors<'_>,
    logits: &Named<'_, '_>,
    args: &Args,
) -> Result<(), Error> {
    let bad = |error| bad_input(&args.file, error);
    let input = Input::<T>::unweighted(tensors, logits, &args.source).map_err(bad)?;
    // Without targets such rows need no memory: there may be more than anyone can count.
    if !input.has_targets() && input.layout.vocab == 0 && input.layout.rows > 0 {
        return Err(bad(wrong(logits.name, &logits.view, "1 or more classes")));
    }
    let pass = Pass { input, args };
    // Standard output is not locked: whichever thread of the pool runs this writes to it.
    let row = pass.input.layout.vocab.saturating_mul(size_of::<T>());
    let size = (BATCH_BYTES / row.max(1)).clamp(1, BATCH_ROWS);
    in_pool(args.compute, || pass.run(&mut BufWriter::new(io::stdout()), size))?
}

/// All that a pass over the rows needs.
struct Pass<'p, 'a, T: Logit> {
    input: Input<'a, T>,
    args: &'p Args,
}

impl<T: Logit> Pass<'_, '_, T> {
    /// `size` rows at a time.
    fn run(&self, out: &mut impl Write, size: usize) -> Result<(), Error> {
        let rows = self.input.layout.rows;
        // All at once: output that breaks off because of one is of little use.
        self.input.check_targets().map_err(|error| self.error(error))?;
        let mut totals = Totals::default();
        let (mut start, mut is_first) = (0, true);
        // Of no rows there is a batch too, as their options are checked.
        while start < rows || is_first {
            let end = self.input.part_end(start, size);
            let found = self.ask(start..end).map_err(|error| self.error(error))?;
            let batch = Batch { pass: self, first: start, found };
            batch.print(out, is_first, &mut totals).map_err(Error::Output)?;
            (start, is_first) = (end, false);
        }
        if !self.args.json {
            self.summary(out, &totals).map_err(Error::Output)?;
        }
        out.flush().map_err(Error::Output)
    }

    fn ask(&self, rows: Range<usize>) -> Result<TokenLogProbs<T::Real>, xent::Error> {
        let (args, vocab) = (self.args, self.input.layout.vocab);
        let draw = |seed| {
            let sample = |row| Sample::new(seed, row as u64).temperature(args.sample_temperature);
            rows.clone().map(sample).collect::<Vec<_>>()
        };
        let samples = args.sample.map(draw);
        // More than there are is all of them.
        let top = args.top.min(vocab);
        if top > LogProbs::MAX_TOP_K {
            let (value, range) = (args.top.to_string(), "at most 128");
            return Err(xent::Error::Option { option: "top", value, range });
        }
        let has_targets = self.input.has_targets();
        // The log-probability of the argmax.
        let needed = usize::from(!has_targets && vocab > 0);
        let part = self.input.part(rows.clone());
        let mut ask = LogProbs::new()
            .ignore_indices(&self.input.ignored)
            .backend(args.compute.backend()?)
            .temperature(args.transform.temperature.unwrap_or(1.0))
            .top_k(top.max(needed))
            .ranks(has_targets)
            .entropy(args.entropy)
            .varentropy(args.varentropy);
        if let Some(targets) = part.known_targets() {
            ask = ask.targets(targets);
        }
        if let Some(samples) = &samples {
            ask = ask.sample(samples);
        }
        ask.collect(self.input.logits(rows)?)
    }

    /// In the words of the command line.
    fn error(&self, error: xent::Error) -> Error {
        match error {
            xent::Error::SampleTemperature { temperature: value, .. } => {
                let range = "finite and not negative";
                Error::Option { option: "sample_temperature", value, range }
            }
            error => in_words(error, &self.input, &self.args.file, &self.args.source),
        }
    }

    fn summary(&self, out: &mut impl Write, totals: &Totals) -> io::Result<()> {
        let Totals { kept, ignored, correct, .. } = *totals;
        let mean = |sum: f64| sum / kept as f64;
        let logprob = mean(totals.logprob);
        writeln!(out)?;
        if self.input.has_targets() {
            write!(out, "rows {kept} kept, {ignored} ignored; mean logprob {}", digits(logprob))?;
            write!(out, "; perplexity {}", digits((-logprob).exp()))?;
            if kept > 0 {
                let percent = 100.0 * mean(correct as f64);
                write!(out, "; accuracy {percent:.2} % ({correct} of {kept})")?;
            }
        } else {
            let left_out = match ignored {
                0 => String::new(),
                _ => format!(" kept, {ignored} ignored"),
            };
            let logprob = digits(logprob);
            write!(out, "rows {kept}{left_out}; mean logprob of the argmax {logprob}")?;
        }
        if self.args.entropy {
            write!(out, "; mean entropy {}", digits(mean(totals.entropy)))?;
        }
        if let Some(row) = totals.first_nan {
            let rows = if totals.nan == 1 { "row" } else { "rows" };
            write!(out, "; NaN in {} {rows}, first in row {row}", totals.nan)?;
        }
        writeln!(out)
    }
}

/// Six digits: what is summed was rounded, to seven or so.
fn digits(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format!("{x:.5}");
    }
    match 5 - x.abs().log10().floor() as i32 {
        decimals @ 0..=8 => format!("{x:.0$}", decimals as usize),
        _ => format!("{x:.5e}"),
    }
}

/// Sums over rows, in their order: the size of batches does not matter.
#[derive(Default)]
struct Totals {
    kept: u64,
    ignored: u64,
    /// Rows whose argmax is the target, and is a number.
    correct: u64,
    /// Rows whose log-probability is NaN.
    nan: u64,
    first_nan: Option<usize>,
    logprob: f64,
    entropy: f64,
}

/// Some rows, of which everything is known.
struct Batch<'p, 'a, T: Logit> {
    pass: &'p Pass<'p, 'a, T>,
    first: usize,
    found: TokenLogProbs<T::Real>,
}

#[derive(Serialize)]
struct Row<R: Number> {
    row: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ignored: Option<bool>,
    #[serde(flatten)]
    found: Option<Found<R>>,
}

/// What is known of a row that is not ignored.
#[derive(Serialize)]
struct Found<R: Number> {
    #[serde(flatten)]
    logprob: Option<Field<R>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict_rank: Option<i64>,
    argmax: i64,
    /// Where there are no targets.
    #[serde(flatten)]
    argmax_logprob: Option<Field<R>>,
    #[serde(flatten)]
    entropy: Option<Field<R>>,
    #[serde(flatten)]
    varentropy: Option<Field<R>>,
    #[serde(flatten)]
    sampled: Option<Field<Option<i64>>>,
    #[serde(flatten)]
    sampled_logprob: Option<Field<R>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<Vec<Token<R>>>,
}

impl<R: Number> Found<R> {
    /// The log-probability of the target, or without targets of the argmax.
    fn main_logprob(&self) -> Option<Field<R>> {
        self.logprob.or(self.argmax_logprob)
    }
}

#[derive(Serialize)]
struct Token<R: Number> {
    id: i64,
    #[serde(flatten)]
    logprob: Field<R>,
}

impl<T: Logit> Batch<'_, '_, T> {
    fn row(&self, i: usize) -> Row<T::Real> {
        let input = &self.pass.input;
        let row = self.first + i;
        let target = input.has_targets().then(|| input.class(row));
        let is_ignored = !input.is_kept(row);
        let found = (!is_ignored).then(|| self.found(i));
        Row { row, target, ignored: is_ignored.then_some(true), found }
    }

    fn found(&self, i: usize) -> Found<T::Real> {
        let (args, found) = (self.pass.args, &self.found);
        let of_row = |key, all: &[T::Real]| all.get(i).map(|&x| Field::number(key, x));
        let token = |(id, logprob)| Token { id, logprob: Field::number("logprob", logprob) };
        let sampled = |&id: &i64| match id {
            0.. => Field::some(Field::integer("sampled", id)),
            _ => Field::none("sampled"),
        };
        // Without targets the library may have been told stand-ins.
        let has_targets = self.pass.input.has_targets();
        // The argmax is the first of the top.
        let of_argmax = |(_, logprob)| Field::number("argmax_logprob", logprob);
        Found {
            logprob: of_row("logprob", &found.logprobs).filter(|_| has_targets),
            rank: found.ranks.get(i).copied(),
            strict_rank: found.strict_ranks.get(i).copied(),
            argmax: found.argmax[i],
            argmax_logprob: found.top(i).next().map(of_argmax).filter(|_| !has_targets),
            entropy: of_row("entropy", &found.entropy),
            varentropy: of_row("varentropy", &found.varentropy),
            sampled: found.sampled.get(i).map(sampled),
            sampled_logprob: of_row("sampled_logprob", &found.sampled_logprobs),
            top: (args.top > 0).then(|| found.top(i).map(token).collect()),
        }
    }

    fn print(&self, out: &mut impl Write, is_first: bool, totals: &mut Totals) -> io::Result<()> {
        let args = self.pass.args;
        if is_first && !args.json {
            self.header(out)?;
        }
        for row in (0..self.found.argmax.len()).map(|i| self.row(i)) {
            totals.add(&row);
            if args.json {
                serde_json::to_writer(&mut *out, &row)?;
                writeln!(out)?;
            } else {
                self.line(out, &row)?;
            }
        }
        Ok(())
    }

    fn header(&self, out: &mut impl Write) -> io::Result<()> {
        let (Pass { args, input, .. }, w) = (self.pass, T::Real::WIDTH);
        write!(out, "{:>8}", "row")?;
        if input.has_targets() {
            write!(out, " {:>8} {:>w$} {:>8} {:>8}", "target", "logprob", "rank", "argmax")?;
        } else {
            write!(out, " {:>8} {:>w$}", "argmax", "argmax-logprob")?;
        }
        for (wanted, name) in [(args.entropy, "entropy"), (args.varentropy, "varentropy")] {
            if wanted {
                write!(out, " {name:>w$}")?;
            }
        }
        if args.sample.is_some() {
            write!(out, " {:>8} {:>w$}", "sampled", "logprob")?;
        }
        writeln!(out, "{}", if args.top > 0 { " top" } else { "" })
    }

    fn line(&self, out: &mut impl Write, row: &Row<T::Real>) -> io::Result<()> {
        let (args, w) = (self.pass.args, T::Real::WIDTH);
        let Row { row, target, found, .. } = row;
        let found = found.as_ref();
        // `Debug` of a float is the shortest form too, with an exponent where `Display` would
        // print dozens of zeros.
        let float = |x: Option<Field<T::Real>>| {
            x.map_or_else(|| "-".to_owned(), |Field { value, .. }| format!("{value:?}"))
        };
        let int = |x: Option<i64>| x.map_or_else(|| "-".to_owned(), |x| x.to_string());
        let logprob = float(found.and_then(Found::main_logprob));
        let argmax = int(found.map(|found| found.argmax));
        write!(out, "{row:>8}")?;
        if let Some(target) = target {
            let rank = int(found.and_then(|found| found.rank));
            write!(out, " {target:>8} {logprob:>w$} {rank:>8} {argmax:>8}")?;
        } else {
            write!(out, " {argmax:>8} {logprob:>w$}")?;
        }
        if args.entropy {
            write!(out, " {:>w$}", float(found.and_then(|found| found.entropy)))?;
        }
        if args.varentropy {
            write!(out, " {:>w$}", float(found.and_then(|found| found.varentropy)))?;
        }
        if args.sample.is_some() {
            let sampled = found.and_then(|found| found.sampled).map(|id| id.value.unwrap_or(-1));
            let logprob = float(found.and_then(|found| found.sampled_logprob));
            write!(out, " {:>8} {logprob:>w$}", int(sampled))?;
        }
        if args.top > 0 && found.is_none() {
            write!(out, " -")?;
        }
        for Token { id, logprob } in found.iter().flat_map(|found| found.top.iter().flatten()) {
            write!(out, " {id}:{:?}", logprob.value)?;
        }
        writeln!(out)
    }
}

impl Totals {
    fn add<R: Number>(&mut self, row: &Row<R>) {
        let Some(found) = &row.found else {
            self.ignored += 1;
            return;
        };
        self.kept += 1;
        let logprob = found.main_logprob().map_or(f64::NAN, |logprob| logprob.value.into());
        if logprob.is_nan() {
            self.nan += 1;
            self.first_nan.get_or_insert(row.row);
        }
        self.correct += u64::from(!logprob.is_nan() && row.target == Some(found.argmax));
        self.logprob += logprob;
        self.entropy += found.entropy.map_or(0.0, |entropy| entropy.value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Answers, Derivative, Layout};
    use crate::number::Integers;
    use crate::tokens::{Kept, PerToken, Steps};
    use clap::Parser;

    const ROWS: usize = 24;
    const VOCAB: usize = 19;

    fn printed(args: &Args, ids: Option<&[i64]>, sequence: usize, size: usize) -> String {
        let logits = (0..ROWS * VOCAB).map(|i| (i * i % 101) as f32 * 0.1).collect();
        let answers = ids.map_or(Answers::Unknown, |ids| {
            let values = Integers::I64(ids.into());
            Answers::Ids(PerToken { values, shape: vec![ROWS], is_cut: false })
        });
        let shape = vec![ROWS, VOCAB];
        let steps = Steps { by: args.source.shift.unwrap_or(0), sequence, documents: None };
        let input = Input::<f32> {
            logits,
            layout: Layout { shape, rows: ROWS, sequence, stored: VOCAB, vocab: VOCAB },
            answers,
            kept: Kept { steps, mask: None, weights: None },
            ignored: args.source.rows.ignore_index.clone(),
            token_weights: None,
            weight: None,
            upstream: Derivative::OfAll(1.0),
        };
        let pass = Pass { input, args };
        let mut out = Vec::new();
        pass.run(&mut out, size).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn six_digits() {
        for (x, text) in [
            (0.0, "0.00000"),
            (-0.0, "-0.00000"),
            (-3.6072787, "-3.60728"),
            (36.865611, "36.8656"),
            (123456.7, "123457"),
            (1234567.8, "1.23457e6"),
            (0.00123456789, "0.00123457"),
            (0.000123456789, "1.23457e-4"),
            (1e300, "1.00000e300"),
            (f64::MIN_POSITIVE, "2.22507e-308"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(digits(x), text);
        }
    }

    #[test]
    fn batches_do_not_matter() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let ids: Vec<i64> =
            (0..ROWS as i64).map(|i| if i % 7 == 1 { -100 } else { i % 19 }).collect();
        let all = ["xent", "x", "--top=3", "--entropy", "--varentropy", "--sample=7"];
        for (more, ids, sequence) in [
            (&[][..], Some(&ids[..]), ROWS),
            (&["--json"], Some(&ids), ROWS),
            (&[], None, ROWS),
            (&["--json"], None, ROWS),
            (&["--shift=1"], Some(&ids), ROWS),
            (&["--shift=5", "--json"], Some(&ids), 12),
            (&["--shift=2"], Some(&ids), 3),
        ] {
            let args = Line::parse_from(all.iter().chain(more)).args;
            let whole = printed(&args, ids, sequence, ROWS);
            // A header, an empty line and a summary go with text.
            assert_eq!(whole.lines().count(), if args.json { ROWS } else { ROWS + 3 }, "{whole}");
            for size in 1..=ROWS + 1 {
                assert_eq!(printed(&args, ids, sequence, size), whole, "{more:?}, {size} at once");
            }
        }
    }
}
