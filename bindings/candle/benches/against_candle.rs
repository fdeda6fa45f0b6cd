//! How much faster than candle's own loss, in one run.
//!
//! ```text
//! cargo bench -p xent-candle --bench against_candle [-- --quick | --rounds N] [--rows N] [--vocab V]
//! ```
//!
//! They take turns, round after round, on the same logits, in an order that is turned round each time, after a call of each
//! without a clock. What is printed are medians over the rounds: of the times, and of the ratio within each round.
//! Each call makes its tensors anew, as a training step does, and drops them before the clock stops.
//!
//! Before that, loss and gradient of both are compared with those of candle in f64, over at most 64 of the rows.
//!
//! Below stands what of the backward pass is `xent`'s, what candle's `GradStore` adds whatever the operation (it makes a
//! matrix of zeros for each gradient and adds the gradient to it, into a third one), and what fresh pages cost.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use clap::Parser;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;
use xent_candle::xent::{
    Backend, CrossEntropy, Gradient, LogSumExp, Logits, LogitsMut, RowOutputs,
};

#[derive(Parser)]
struct Args {
    /// Few rows and rounds: to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Rounds to take medians over.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    #[arg(long, default_value_t = 1024)]
    rows: usize,
    #[arg(long, default_value_t = 50_257)]
    vocab: usize,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;

const CANDLE: Loss = candle_nn::loss::cross_entropy;
const XENT: Loss = xent_candle::cross_entropy;

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.rounds, args.rows) = (args.rounds.min(3), args.rows.min(64));
    }
    if args.rounds == 0 || args.rows == 0 || args.vocab == 0 {
        bail!("there is nothing to measure without rounds, rows and classes")
    }
    println!(
        "{}, {} threads, backend {}, {} x {}, medians of {} rounds{}",
        cpu(),
        rayon::current_num_threads(),
        Backend::selected().map_err(candle_core::Error::wrap)?,
        args.rows,
        args.vocab,
        args.rounds,
        if args.quick { " (quick: no figures to quote)" } else { "" },
    );
    println!("{:>28} {:>12} {:>12} {:>8}", "", "candle, ms", "xent, ms", "ratio");
    let logits = Tensor::randn(0f32, 3., (args.rows, args.vocab), &Device::Cpu)?;
    let targets: Vec<u32> =
        (0..args.rows).map(|i| ((i * 7919 + args.vocab / 3) % args.vocab) as u32).collect();
    let targets = Tensor::new(targets, &Device::Cpu)?;
    measure(&args, &logits, &targets)?;
    measure(&args, &logits.to_dtype(DType::BF16)?, &targets)?;
    parts(&args, &logits, &targets)
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown CPU", |(_, name)| name).to_owned()
}

/// Loss, and loss with gradient, of one type of logits.
fn measure(args: &Args, logits: &Tensor, targets: &Tensor) -> Result<()> {
    let dtype = logits.dtype().as_str();
    let var = Var::from_tensor(logits)?;
    check(logits, targets)?;
    let forward = |loss: Loss| loss(logits, targets).map(drop);
    let backward = |loss: Loss| loss(&var, targets)?.backward().map(drop);
    in_turn(args, &|| forward(CANDLE), &[(&format!("{dtype} forward"), &|| forward(XENT))])?;
    let options = CrossEntropy::new();
    let one_pass = || xent_candle::loss_and_gradient(&options, logits, targets).map(drop);
    in_turn(
        args,
        &|| backward(CANDLE),
        &[
            (&format!("{dtype} forward+backward"), &|| backward(XENT)),
            (&format!("{dtype} loss_and_gradient"), &one_pass),
        ],
    )
}

type Call<'a> = &'a dyn Fn() -> Result<()>;

/// candle's, and others by their names, by turns.
fn in_turn(args: &Args, candle: Call<'_>, others: &[(&str, Call<'_>)]) -> Result<()> {
    let calls: Vec<Call<'_>> = [candle].into_iter().chain(others.iter().map(|&(_, f)| f)).collect();
    calls.iter().try_for_each(|call| call())?;
    let mut times = vec![vec![]; calls.len()];
    for round in 0..args.rounds {
        for turn in 0..calls.len() {
            let i = if round % 2 == 0 { turn } else { calls.len() - 1 - turn };
            times[i].push(seconds(calls[i])?);
        }
    }
    for (&(name, _), xent) in others.iter().zip(&times[1..]) {
        let ratios = times[0].iter().zip(xent).map(|(a, b)| a / b).collect();
        let (candle, xent) = (1e3 * median(times[0].clone()), 1e3 * median(xent.clone()));
        println!("{name:>28} {candle:>12.2} {xent:>12.2} {:>8.1}", median(ratios));
    }
    Ok(())
}

fn seconds(f: impl Fn() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// That both compute the same, as far as their rounding allows: of some rows, against candle in f64.
fn check(logits: &Tensor, targets: &Tensor) -> Result<()> {
    let rows = logits.dim(0)?.min(64);
    let (logits, targets) = (logits.narrow(0, 0, rows)?, targets.narrow(0, 0, rows)?);
    let of = |loss: Loss, dtype| -> Result<(f64, Tensor)> {
        let var = Var::from_tensor(&logits.to_dtype(dtype)?)?;
        let loss = loss(&var, &targets)?;
        let Some(gradient) = loss.backward()?.remove(&var) else { bail!("no gradient") };
        Ok((loss.to_dtype(DType::F64)?.to_scalar()?, gradient.to_dtype(DType::F64)?))
    };
    let most = |t: &Tensor| t.abs()?.max_all()?.to_scalar::<f64>();
    let (exact, exact_gradient) = of(CANDLE, DType::F64)?;
    let off = |(loss, gradient): (f64, Tensor)| -> Result<(f64, f64)> {
        let apart = most(&(gradient - &exact_gradient)?)? / most(&exact_gradient)?;
        Ok((((loss - exact) / exact).abs(), apart))
    };
    let dtype = logits.dtype();
    let (candle, xent) = (off(of(CANDLE, dtype)?)?, off(of(XENT, dtype)?)?);
    println!(
        "{:>28} off from f64: loss {:.1e} and {:.1e}, gradient {:.1e} and {:.1e} of the largest",
        format!("{} check, {rows} rows", dtype.as_str()),
        candle.0,
        xent.0,
        candle.1,
        xent.1,
    );
    // candle's sums in bf16 have hardly a digit, so that this can only be asked of ours.
    let (ours, theirs) = if dtype == DType::F32 { (1e-6, 1e-3) } else { (4e-3, f64::INFINITY) };
    let within = |(loss, gradient): (f64, f64), bound| loss <= bound && gradient <= bound;
    if !within(xent, ours) || !within(candle, theirs) {
        bail!("the two do not compute the same")
    }
    Ok(())
}

/// Where the time of the backward pass goes, of f32.
fn parts(args: &Args, logits: &Tensor, targets: &Tensor) -> Result<()> {
    let (rows, vocab) = (args.rows, args.vocab);
    let x: Vec<f32> = logits.flatten_all()?.to_vec1()?;
    let ids: Vec<u32> = targets.to_vec1()?;
    let ce = CrossEntropy::new();
    let wrap = candle_core::Error::wrap;
    let view = Logits::new(&x, rows, vocab).map_err(wrap)?;
    let mut saved = vec![LogSumExp::default(); rows];
    ce.evaluate(view, &ids, RowOutputs::new().saved(&mut saved)).map_err(wrap)?;
    let fill = |to: &mut [f32]| {
        let to = LogitsMut::new(to, rows, vocab)?;
        ce.backward(view, &ids, &saved, Gradient::new(to))
    };

    let var = Var::from_tensor(logits)?;
    let mut again = vec![0.0; rows * vocab];
    let gradient = Tensor::ones((rows, vocab), DType::F32, &Device::Cpu)?;
    let (mut warm, mut whole, mut stores, mut fresh) = (vec![], vec![], vec![], vec![]);
    for _ in 0..args.rounds {
        let start = Instant::now();
        fill(&mut again).map_err(wrap)?;
        warm.push(start.elapsed().as_secs_f64());

        let loss = xent_candle::cross_entropy(&var, targets)?;
        whole.push(seconds(|| loss.backward().map(drop))?);

        stores.push(seconds(|| {
            gradient.zeros_like()?.add(&gradient).map(|sum| drop(black_box(sum)))
        })?);

        fresh.push(seconds(|| {
            let mut pages = black_box(vec![0.0_f32; rows * vocab]);
            pages.par_chunks_mut(256 * 1024).for_each(|part| {
                part.iter_mut().step_by(1024).for_each(|x| *x = black_box(0.0));
            });
            drop(black_box(pages));
            Ok(())
        })?);
    }
    let [warm, whole, stores, fresh] =
        [warm, whole, stores, fresh].map(|seconds| 1e3 * median(seconds));
    println!("the f32 backward pass with xent, {whole:.2} ms:");
    println!("{warm:>28.2} for the gradient alone, into memory that was used before");
    println!("{stores:>28.2} for zeros to which candle's GradStore adds it");
    println!(
        "{fresh:>28.2} for fresh memory of that size: to touch its pages, and to give it back"
    );
    println!("{:>28.2} for the rest", whole - warm - stores - fresh);
    Ok(())
}
