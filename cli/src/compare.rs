//! `xent compare`: how far the logits of one model are from those of another.
#![forbid(unsafe_code)]

use crate::args::{Compute, Source, Transform};
use crate::command::{self, bad_input, in_pool, in_words};
use crate::error::{Error, complain};
use crate::format::{number, shortest};
use crate::input::{Input, Layout};
use crate::json::{ByNumber, Field, Statistic};
use crate::nan::NanRows;
use crate::number::{Logit, for_logits};
use crate::tensor::{self, Named, wrong};
use safetensors::SafeTensors;
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use xent::{
    AtTargets, Backend, CompareOutputs, Comparison, CrossEntropy, Estimate, Logits, RowOutputs,
    Targets,
};

const EXAMPLES: &str = "\
Examples:
  xent compare f16.safetensors q4.safetensors
  xent compare f16.safetensors q4.safetensors --targets input_ids --shift --vocab 50257
  xent compare teacher.safetensors student.safetensors --temperature 2 --json | jq .kl
  xent compare both.safetensors both.safetensors --logits f16 --other-logits q4
  xent compare f16.safetensors q4.safetensors --targets input_ids --shift --mask attention_mask

A divergence of NaN is a result: rows that make it so are counted on standard error and in JSON.
Exit status: 0 if the files were compared, 1 if a file is at fault, 2 if the command line is.";

/// How far the logits of one model, Q, are from those of another, the base
///
/// Prints what `llama-perplexity --kl-divergence` does, with its formulas. Both files hold logits
/// as `xent score` takes them, of as many rows and classes; their types may differ. Targets and
/// what else has an element per row, if there are any, are in the file of the base: without targets
/// there are no perplexities and no probabilities of tokens, and all rows count but those of a
/// mask. KLD is KL(base||Q) of a row, in nats; Δp is the probability of the target under Q less
/// that under the base; `Same top p` counts rows with the same most probable class. Standard errors
/// follow the ±, where there is more than one row. Divergences and probabilities are computed in
/// f64, and so are ratio and difference of perplexities, which keep their digits where models
/// agree. The perplexities themselves are those of `xent score`, from a pass of their own over both
/// files. The files are mapped into memory.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The safetensors file of the base
    #[arg(value_name = "BASE.safetensors")]
    base: PathBuf,

    /// The safetensors file of the model that is compared with it
    #[arg(value_name = "OTHER.safetensors")]
    other: PathBuf,

    #[command(flatten)]
    source: Source,

    /// Name of the logits tensor in OTHER, if that is another one
    #[arg(long, value_name = "NAME")]
    other_logits: Option<String>,

    #[command(flatten)]
    transform: Transform,

    /// Share of the base in the mixture M of the Jensen-Shannon divergence, 0 to 1
    ///
    /// It is B KL(base||M) + (1 - B) KL(Q||M); at 0 KL(base||Q), and at 1 KL(Q||base).
    #[arg(long, value_name = "B", default_value_t = 0.5, allow_negative_numbers = true)]
    beta: f64,

    #[command(flatten)]
    compute: Compute,

    /// Print one JSON object instead of text
    ///
    /// The standard error of a statistic `x` is `x_stderr`, and its percentiles by their fraction
    /// are `x_percentiles`. Probabilities are of 1, not in percent. Numbers that JSON cannot hold
    /// are null, and beside each such `x` there is `x_is`: nan, inf or -inf. `nan_rows` counts the
    /// rows whose divergence is NaN, and `first_nan_row` is the first of them.
    #[arg(long)]
    json: bool,
}

/// One of the files.
struct Model<'m, 'a> {
    file: &'m Path,
    tensors: SafeTensors<'a>,
    logits: Named<'m, 'a>,
}

impl<'m, 'a> Model<'m, 'a> {
    fn new(file: &'m Path, bytes: &'a [u8], logits: &'m str) -> Result<Self, Error> {
        let tensors = command::tensors(file, bytes)?;
        let logits = command::logits(file, &tensors, logits)?;
        Ok(Model { file, tensors, logits })
    }

    fn bad(&self, error: tensor::Error) -> Error {
        bad_input(self.file, error)
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let name = &args.source.logits;
    let other_name = args.other_logits.as_ref().unwrap_or(name);
    let (base, other) = (command::map(&args.base)?, command::map(&args.other)?);
    let base = Model::new(&args.base, &base, name)?;
    let other = Model::new(&args.other, &other, other_name)?;
    for_logits!(base.logits.view.dtype(), P => with_base::<P>(&base, &other, args))
}

fn with_base<P: Logit>(
    base: &Model<'_, '_>,
    other: &Model<'_, '_>,
    args: &Args,
) -> Result<(), Error> {
    let p = Input::<P>::unweighted(&base.tensors, &base.logits, &args.source)
        .map_err(|error| base.bad(error))?;
    let dtype = other.logits.view.dtype();
    let summary = for_logits!(dtype, Q => compare::<P, Q>(base, &p, other, args))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = if args.json { summary.json(&mut out) } else { summary.text(&mut out) };
    printed.and_then(|()| out.flush()).map_err(Error::Output)
}

fn compare<P: Logit, Q: Logit>(
    base: &Model<'_, '_>,
    p: &Input<'_, P>,
    other: &Model<'_, '_>,
    args: &Args,
) -> Result<Summary, Error> {
    let q = Input::<Q>::bare(&other.logits, args.source.vocab).map_err(|error| other.bad(error))?;
    let Layout { rows, vocab, .. } = p.layout;
    if (q.layout.rows, q.layout.vocab) != (rows, vocab) {
        let (name, file) = (base.logits.name, base.file.display());
        let fewer = vocab.min(q.layout.vocab);
        let common = match q.layout.rows == rows && fewer > 0 {
            true => format!("; `--vocab {fewer}` compares the first {fewer} classes"),
            false => String::new(),
        };
        let expected = format!("{rows} rows of {vocab} classes, as `{name}` of {file} has{common}");
        return Err(other.bad(wrong(other.logits.name, &other.logits.view, &expected)));
    }
    let failed = |error| in_words(error, p, base.file, &args.source);
    p.check_targets().map_err(failed)?;
    let summary = in_pool(args.compute, || -> Result<Summary, xent::Error> {
        let backend = args.compute.backend()?;
        let mut compare = xent::Compare::new().backend(backend).beta(args.beta);
        if let Some(temperature) = args.transform.temperature {
            compare = compare.temperature(temperature);
        }
        let part = p.part(0..rows);
        if let Some(targets) = part.known_targets() {
            compare = compare.ignore_indices(&p.ignored).targets(targets);
        }
        let (base, other) = (p.logits(0..rows)?, q.logits(0..rows)?);
        // Rows without classes may be more than memory; others have their elements in a file.
        let len = if vocab == 0 { 0 } else { rows };
        let [mut reverse_kl, mut jsd, mut tv] = [(); 3].map(|()| vec![0.0; len]);
        let mut outputs = CompareOutputs::new();
        if len > 0 {
            let all = outputs.reverse_kl(&mut reverse_kl).jsd(&mut jsd);
            outputs = all.total_variation(&mut tv);
        }
        let begin = Instant::now();
        let comparison = compare.evaluate(base, other, outputs)?;
        let perplexities = match part.known_targets().filter(|_| p.has_targets()) {
            Some(targets) => {
                let mut ce = CrossEntropy::new().ignore_indices(&p.ignored).backend(backend);
                if let Some(temperature) = args.transform.temperature {
                    ce = ce.temperature(temperature);
                }
                Some([perplexity(&ce, base, targets)?, perplexity(&ce, other, targets)?])
            }
            None => None,
        };
        let seconds = begin.elapsed().as_secs_f64();
        let mean = |mut values: Vec<f64>| {
            let mut row = 0..;
            values.retain(|_| row.next().is_some_and(|row| p.is_kept(row)));
            Estimate::of(&values)
        };
        let bytes =
            comparison.count() as f64 * vocab as f64 * (size_of::<P>() + size_of::<Q>()) as f64;
        Ok(Summary {
            reverse_kl: mean(reverse_kl),
            jsd: mean(jsd),
            total_variation: mean(tv),
            nan: (&comparison).into(),
            perplexities,
            comparison,
            beta: args.beta,
            vocab,
            backend,
            threads: rayon::current_num_threads(),
            seconds,
            gb_per_s: bytes / seconds / 1e9,
        })
    })?;
    let summary = summary.map_err(failed)?;
    let why = |row| {
        let of = |why: Option<&str>, name| why.map(|why| format!("{why} in {name}"));
        of(p.bad_logits(row), "the base").or_else(|| of(q.bad_logits(row), "the other"))
    };
    if let Some(warning) = summary.nan.warning("divergence", why) {
        complain(&format!("{}: {warning}", args.base.display()));
    }
    Ok(summary)
}

/// In one call, as `xent score` makes it: sums of sums may differ in their last digits.
fn perplexity<T: Logit>(
    ce: &CrossEntropy<'_>,
    logits: Logits<'_, T>,
    targets: Targets<'_>,
) -> Result<Estimate, xent::Error> {
    let evaluation = ce.evaluate(logits, targets, RowOutputs::new())?;
    Ok(Estimate { value: evaluation.perplexity(), stderr: evaluation.perplexity_stderr() })
}

/// Everything that there is to report.
struct Summary {
    comparison: Comparison,
    /// Of the base and of the other, if the targets of the comparison are no stand-ins.
    perplexities: Option<[Estimate; 2]>,
    /// Of the divergence.
    nan: NanRows,
    reverse_kl: Estimate,
    jsd: Estimate,
    total_variation: Estimate,
    beta: f64,
    vocab: usize,
    backend: Backend,
    threads: usize,
    seconds: f64,
    /// Bytes of logits of both per second; ignored rows are not read and do not count.
    gb_per_s: f64,
}

/// From the largest to the smallest, with what llama.cpp calls them.
const OF_KL: [(&str, f64); 11] = [
    ("Maximum", 1.0),
    ("99.9%", 0.999),
    ("99.0%", 0.99),
    ("95.0%", 0.95),
    ("90.0%", 0.9),
    ("Median", 0.5),
    ("10.0%", 0.1),
    (" 5.0%", 0.05),
    (" 1.0%", 0.01),
    (" 0.1%", 0.001),
    ("Minimum", 0.0),
];
const OF_DELTA_P: [(&str, f64); 13] = [
    ("Maximum", 1.0),
    ("99.9%", 0.999),
    ("99.0%", 0.99),
    ("95.0%", 0.95),
    ("90.0%", 0.9),
    ("75.0%", 0.75),
    ("Median", 0.5),
    ("25.0%", 0.25),
    ("10.0%", 0.1),
    (" 5.0%", 0.05),
    (" 1.0%", 0.01),
    (" 0.1%", 0.001),
    ("Minimum", 0.0),
];

/// Six decimals, as llama.cpp has them, but not hundreds of digits before them.
fn decimals(x: f64) -> String {
    if x.abs() < 1e12 { format!("{x:10.6}") } else { format!("{:>10}", number(x)) }
}

/// `value ± error`; of one row there is no standard error.
fn estimate(Estimate { value, stderr }: Estimate) -> String {
    if stderr.is_nan() {
        decimals(value)
    } else {
        format!("{} ± {}", decimals(value), decimals(stderr))
    }
}

fn percent(Estimate { value, stderr }: Estimate) -> String {
    let (value, stderr) = (100.0 * value, 100.0 * stderr);
    if stderr.is_nan() {
        format!("{value:6.3} %")
    } else {
        format!("{value:6.3} ± {stderr:5.3} %")
    }
}

impl Summary {
    fn at_targets(&self) -> Option<(&AtTargets, [Estimate; 2])> {
        self.comparison.at_targets().zip(self.perplexities)
    }

    /// As llama.cpp lays it out.
    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let all = &self.comparison;
        if let Some((at, [of_base, of_other])) = self.at_targets() {
            writeln!(out, "====== Perplexity statistics ======")?;
            for (name, e) in [("Mean PPL(Q)", of_other), ("Mean PPL(base)", of_base)] {
                writeln!(out, "{name:<30}: {}", estimate(e))?;
            }
            let correlation = 100.0 * at.correlation();
            writeln!(out, "Cor(ln(PPL(Q)), ln(PPL(base))): {correlation:6.2}%")?;
            for (name, e) in [
                ("Mean ln(PPL(Q)/PPL(base))", at.log_ratio()),
                ("Mean PPL(Q)/PPL(base)", at.ratio()),
                ("Mean PPL(Q)-PPL(base)", at.difference()),
            ] {
                writeln!(out, "{name:<30}: {}", estimate(e))?;
            }
            writeln!(out)?;
        }
        writeln!(out, "====== KL divergence statistics ======")?;
        writeln!(out, "Mean    KLD: {}", estimate(all.mean_kl()))?;
        let values = all.kl_percentiles(OF_KL.map(|(_, fraction)| fraction));
        for ((name, _), value) in OF_KL.iter().zip(values) {
            writeln!(out, "{name:<7} KLD: {}", decimals(value))?;
        }
        writeln!(out, "\n====== Other divergences ======")?;
        writeln!(out, "Mean reverse KLD    : {}", estimate(self.reverse_kl))?;
        let jsd = format!("Mean JSD, beta {}", shortest(self.beta));
        writeln!(out, "{jsd:<20}: {}", estimate(self.jsd))?;
        writeln!(out, "Mean total variation: {}", estimate(self.total_variation))?;
        writeln!(out, "\n====== Token probability statistics ======")?;
        if let Some((at, _)) = self.at_targets() {
            writeln!(out, "Mean    Δp: {}", percent(at.mean_delta_p()))?;
            let values = at.delta_p_percentiles(OF_DELTA_P.map(|(_, fraction)| fraction));
            for ((name, _), value) in OF_DELTA_P.iter().zip(values) {
                writeln!(out, "{name:<7} Δp: {:6.3}%", 100.0 * value)?;
            }
            writeln!(out, "RMS Δp    : {}", percent(at.rms_delta_p()))?;
        }
        writeln!(out, "Same top p: {}", percent(all.same_top()))?;
        writeln!(out, "\nrows            {} kept, {} ignored", all.count(), all.ignored())?;
        let plural = if self.threads == 1 { "" } else { "s" };
        writeln!(out, "backend         {}, {} thread{plural}", self.backend, self.threads)?;
        writeln!(out, "time            {:.6} s, {:.2} GB/s", self.seconds, self.gb_per_s)
    }

    fn json(&self, out: &mut impl Write) -> io::Result<()> {
        let all = &self.comparison;
        let report = Report {
            kl: Statistic::new("kl", all.mean_kl()),
            kl_percentiles: percentiles(all.kl_percentiles(FRACTIONS)),
            reverse_kl: Statistic::new("reverse_kl", self.reverse_kl),
            jsd: Statistic::new("jsd", self.jsd),
            beta: self.beta,
            total_variation: Statistic::new("total_variation", self.total_variation),
            same_top: Statistic::new("same_top", all.same_top()),
            targets: self.at_targets().map(|(at, of_models)| TargetReport::new(at, of_models)),
            count: all.count(),
            ignored: all.ignored(),
            nan_rows: self.nan.count,
            first_nan_row: self.nan.first,
            vocab: self.vocab,
            backend: self.backend.name(),
            threads: self.threads,
            seconds: Field::number("seconds", self.seconds),
            gb_per_s: Field::number("gb_per_s", self.gb_per_s),
        };
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)
    }
}

/// Numbers that are not finite are written as null by the serializer.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    kl: Statistic,
    kl_percentiles: ByNumber<13>,
    #[serde(flatten)]
    reverse_kl: Statistic,
    #[serde(flatten)]
    jsd: Statistic,
    beta: f64,
    #[serde(flatten)]
    total_variation: Statistic,
    #[serde(flatten)]
    same_top: Statistic,
    #[serde(skip_serializing_if = "Option::is_none")]
    targets: Option<TargetReport>,
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
}

#[derive(Serialize)]
struct TargetReport {
    #[serde(flatten)]
    perplexity: Statistic,
    #[serde(flatten)]
    base_perplexity: Statistic,
    #[serde(flatten)]
    correlation: Field<f64>,
    #[serde(flatten)]
    log_ratio: Statistic,
    #[serde(flatten)]
    ratio: Statistic,
    #[serde(flatten)]
    difference: Statistic,
    #[serde(flatten)]
    delta_p: Statistic,
    delta_p_percentiles: ByNumber<13>,
    #[serde(flatten)]
    rms_delta_p: Statistic,
}

impl TargetReport {
    fn new(at: &AtTargets, [of_base, of_other]: [Estimate; 2]) -> Self {
        TargetReport {
            perplexity: Statistic::new("perplexity", of_other),
            base_perplexity: Statistic::new("base_perplexity", of_base),
            correlation: Field::number("correlation", at.correlation()),
            log_ratio: Statistic::new("log_ratio", at.log_ratio()),
            ratio: Statistic::new("ratio", at.ratio()),
            difference: Statistic::new("difference", at.difference()),
            delta_p: Statistic::new("delta_p", at.mean_delta_p()),
            delta_p_percentiles: percentiles(at.delta_p_percentiles(FRACTIONS)),
            rms_delta_p: Statistic::new("rms_delta_p", at.rms_delta_p()),
        }
    }
}

const FRACTIONS: [f64; 13] =
    [0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0];

fn percentiles(values: [f64; 13]) -> ByNumber<13> {
    ByNumber { keys: FRACTIONS, values }
}
