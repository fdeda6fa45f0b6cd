//! How much longer each operation takes for some rows than for random ones: `cargo bench --bench data [-- CLASSES]`.
//!
//! One row of 151,936 classes, or as many as asked for, on one thread; medians of ratios that are taken in turn.
//! `--row` and `--operation` select by a part of a name, and `--list` prints all names.

#[allow(dead_code, reason = "a part of it is for the other benches")]
mod common;

use clap::Parser;
use common::{Batch, fastest_backend};
use std::hint::black_box;
use std::time::{Duration, Instant};
use xent::{
    Backend, Compare, CompareOutputs, CrossEntropy, Gradient, LogProbs, Logits, LogitsMut,
    RowOutputs, Sample, Softmax, TokenOutputs,
};

const VALID: &str = "the arguments are valid";

/// Rounds at most, and how long they may take together.
const ROUNDS: usize = 31;
const PATIENCE: Duration = Duration::from_millis(60);

type Row = (&'static str, Vec<f32>);
type Operation<'a> = (&'static str, Box<dyn FnMut(&[f32]) + 'a>);

/// Rows whose time has been another than that of random ones somewhere.
fn rows(random: &[f32]) -> Vec<Row> {
    let n = random.len();
    let from = |f: &dyn Fn(usize) -> f32| (0..n).map(f).collect::<Vec<f32>>();
    // Some indices, as good as random.
    let is_one_in = |i: usize, k: usize| (i * 7919 + i / 97).is_multiple_of(k);
    let mut ascending = random.to_vec();
    ascending.sort_by(f32::total_cmp);
    let descending = ascending.iter().rev().copied().collect();
    let with = |at: usize, x: f32| {
        let mut row = random.to_vec();
        row[at] = x;
        row
    };
    let subnormal = |i: usize| f32::from_bits((i * 7919 % 8_000_000) as u32 + 1);
    vec![
        ("ascending", ascending),
        ("descending", descending),
        ("0.1 i", from(&|i| 0.1 * i as f32)),
        ("-0.1 i", from(&|i| -0.1 * i as f32)),
        ("3 i", from(&|i| 3.0 * i as f32)),
        ("stairs", from(&|i| 7.0 * (i / 1024) as f32)),
        ("all equal", vec![1.5; n]),
        ("all 0", vec![0.0; n]),
        ("subnormal", from(&subnormal)),
        ("-subnormal", from(&|i| -subnormal(i))),
        ("1% subnormal", from(&|i| if is_one_in(i, 100) { 1e-40 } else { random[i] })),
        ("sigma 20", random.iter().map(|x| x * 20.0 / 3.0).collect()),
        ("sigma 60", random.iter().map(|x| x * 20.0).collect()),
        ("times 1e30", random.iter().map(|x| x * 1e30).collect()),
        ("one sure", with(n / 3, 30.0)),
        ("NaN at the end", with(n - 1, f32::NAN)),
        ("all NaN", vec![f32::NAN; n]),
        ("an infinity", with(n / 2, f32::INFINITY)),
        ("9 in 10 masked", from(&|i| if is_one_in(i, 10) { random[i] } else { f32::NEG_INFINITY })),
        ("masked prefix", from(&|i| if i + 100 < n { f32::NEG_INFINITY } else { random[i] })),
        ("all masked", vec![f32::NEG_INFINITY; n]),
    ]
}

fn logits(x: &[f32]) -> Logits<'_> {
    Logits::new(x, 1, x.len()).expect(VALID)
}

/// What is timed, each with buffers of its own.
fn operations<'a>(n: usize, target: &'a [i64; 1], backend: Backend) -> Vec<Operation<'a>> {
    let ce = CrossEntropy::new().backend(backend);
    let ask = LogProbs::new().backend(backend);
    let forward = |ce: CrossEntropy<'a>| {
        move |x: &[f32]| {
            let mut loss = [0.0];
            ce.forward_into(logits(x), target, &mut loss).expect(VALID);
            black_box(loss);
        }
    };
    let top = |ask: LogProbs<'a>, k: usize| {
        let k = k.min(n);
        let (mut ids, mut logprobs) = (vec![0; k], vec![0.0; k]);
        move |x: &[f32]| {
            let out = TokenOutputs::new().top_k(&mut ids, &mut logprobs);
            ask.top_k(k).run(logits(x), out).expect(VALID);
        }
    };
    let (mut gradient, mut probs) = (vec![0.0; n], vec![0.0; n]);
    let backward = ce.clone();
    let softmax = Softmax::new().backend(backend);
    static SAMPLES: [Sample; 1] = [Sample::new(1, 2)];
    vec![
        ("forward", Box::new(forward(ce.clone()))),
        ("at T 0.7", Box::new(forward(ce.clone().temperature(0.7)))),
        ("smoothed", Box::new(forward(ce.label_smoothing(0.1)))),
        (
            "gradient",
            Box::new(move |x| {
                let to = LogitsMut::new(&mut gradient, 1, n).expect(VALID);
                let to = Gradient::new(to);
                backward.forward_backward(logits(x), target, to, RowOutputs::new()).expect(VALID);
            }),
        ),
        ("softmax", Box::new(move |x| softmax.softmax(logits(x), &mut probs).expect(VALID))),
        ("top 20", Box::new(top(ask, 20))),
        ("top 128", Box::new(top(ask, 128))),
        ("top, T 0.7", Box::new(top(ask.temperature(0.7), 20))),
        (
            "rank",
            Box::new(move |x| {
                let mut rank = [0];
                let out = TokenOutputs::new().ranks(&mut rank);
                ask.targets(target).run(logits(x), out).expect(VALID);
            }),
        ),
        (
            "entropy",
            Box::new(move |x| {
                let mut entropy = [0.0];
                ask.run(logits(x), TokenOutputs::new().entropy(&mut entropy)).expect(VALID);
            }),
        ),
        (
            "sample",
            Box::new(move |x| {
                let mut token = [0];
                let out = TokenOutputs::new().sampled(&mut token);
                ask.sample(&SAMPLES).run(logits(x), out).expect(VALID);
            }),
        ),
        (
            "compare",
            Box::new(move |x| {
                let mut kl = [0.0];
                let (compare, out) = (Compare::new().backend(backend), CompareOutputs::new());
                compare.divergences(logits(x), logits(x), out.kl(&mut kl)).expect(VALID);
            }),
        ),
    ]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How much longer each operation takes for some rows than for random ones.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench data --")]
struct Options {
    /// The length of the row.
    #[arg(default_value = "151936", value_parser = clap::value_parser!(u32).range(1..))]
    classes: u32,
    /// Takes only the rows that have this in their name.
    #[arg(long, value_name = "SUBSTRING", default_value = "", hide_default_value = true)]
    row: String,
    /// Takes only the operations that have this in their name.
    #[arg(long, value_name = "SUBSTRING", default_value = "", hide_default_value = true)]
    operation: String,
    /// Prints the names of rows and operations, and measures nothing.
    #[arg(long)]
    list: bool,
    /// Cargo passes it.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// Keeps what has `part` in its name; where nothing has, says what there is, and ends the program.
fn select<T>(what: &str, all: &mut Vec<(&'static str, T)>, part: &str) {
    if !all.iter().any(|(name, _)| name.contains(part)) {
        let names: Vec<&str> = all.iter().map(|&(name, _)| name).collect();
        eprintln!("no {what} has {part:?} in its name; there are {}", names.join(", "));
        std::process::exit(2);
    }
    all.retain(|(name, _)| name.contains(part));
}

fn main() {
    let options = Options::parse();
    let batch = Batch::new(1, options.classes as usize);
    let target = [(batch.vocab / 3) as i64];
    let backend = fastest_backend();
    let mut rows = rows(&batch.logits);
    let mut all = operations(batch.vocab, &target, backend);
    select("row", &mut rows, &options.row);
    select("operation", &mut all, &options.operation);
    if options.list {
        rows.iter().for_each(|(name, _)| println!("row {name}"));
        all.iter().for_each(|(name, _)| println!("operation {name}"));
        return;
    }
    println!("one row of {} classes, {backend}; random: us, others: ratio to random", batch.vocab);
    let seconds = |f: &mut dyn FnMut(&[f32]), x: &[f32]| {
        let start = Instant::now();
        f(x);
        start.elapsed().as_secs_f64()
    };
    xent::on_calling_thread(|| {
        print!("{:15}", "");
        for (name, _) in &all {
            print!("{name:>11}");
        }
        print!("\n{:15}", "random");
        for (_, f) in &mut all {
            let times = (0..ROUNDS).map(|_| 1e6 * seconds(f, &batch.logits)).collect();
            print!("{:>11.1}", median(times));
        }
        println!();
        for (name, x) in &rows {
            print!("{name:15}");
            for (_, f) in &mut all {
                let start = Instant::now();
                let mut ratios = Vec::new();
                f(x);
                while ratios.len() < 3 || ratios.len() < ROUNDS && start.elapsed() < PATIENCE {
                    let random = seconds(f, &batch.logits);
                    ratios.push(seconds(f, x) / random);
                }
                print!("{:>11.2}", median(ratios));
            }
            println!();
        }
    });
}
