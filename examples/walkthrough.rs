//! From logits to loss, perplexity and accuracy, in two acts: the random logits of a well-known
//! notebook on how transformers are trained, and those of a real language model.
//!
//! `cargo run --release --example walkthrough`
//!
//! Everything it reads is embedded. It fails if backends that promise equal bits do not keep it.

#[path = "support/notebook.rs"]
mod notebook;
#[path = "support/real.rs"]
mod real;

use notebook::{BATCH, Notebook, TIME, VOCAB};
use real::Real;
use std::error::Error;
use xent::reference::{two_pass_f32, ulp_error};
use xent::{Backend, CrossEntropy, Evaluation, Logits, RowOutputs, Softmax};

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<&str> = Backend::available().iter().map(|b| b.name()).collect();
    println!("xent on this machine: {} (default: {})", names.join(", "), Backend::selected()?);
    let mut agree = notebook_walk()?;
    agree &= real_walk()?;
    if agree { Ok(()) } else { Err("backends disagree: this is a bug".into()) }
}

/// The notebook's cells, in its order.
fn notebook_walk() -> Result<bool, Box<dyn Error>> {
    title("1. The notebook: a model that guesses");
    let book = Notebook::new();
    println!("Input tokens, [{BATCH}, {TIME}], from seed 42:");
    book.inputs.chunks(TIME).for_each(|sequence| println!("  {sequence:?}"));
    println!("Target tokens, the next one at each position:");
    book.targets.chunks(TIME).for_each(|sequence| println!("  {sequence:?}"));

    step("Logits");
    let rows = BATCH * TIME;
    println!("The model returns [{BATCH}, {TIME}, {VOCAB}]: {VOCAB} numbers per position.");
    println!("Positions are independent, so flatten them to [{rows}, {VOCAB}].");
    // A view, checked once. Nothing is copied.
    let logits = Logits::new(&book.logits, rows, VOCAB)?;

    step("Softmax turns logits into probabilities");
    let mut probabilities = vec![0.0; rows * VOCAB];
    Softmax::new().softmax(logits, &mut probabilities)?;
    let sum: f32 = probabilities[..VOCAB].iter().sum();
    println!("Those of the first position sum to {sum:.4}.");

    step("The most probable token is the prediction");
    let mut predicted = vec![0; rows];
    CrossEntropy::new().evaluate(
        logits,
        &book.targets,
        RowOutputs::new().argmax(&mut predicted),
    )?;
    predicted.chunks(TIME).for_each(|sequence| println!("  {sequence:?}"));

    step("What did the model think of the right tokens?");
    let chosen: Vec<f32> = (probabilities.chunks(VOCAB).zip(&book.targets))
        .map(|(row, &target)| row[target as usize])
        .collect();
    chosen.iter().zip(&book.targets).for_each(|(p, t)| println!("  token {t:>5}: {p:.4e}"));

    step("Two numbers that look alike");
    let mean = chosen.iter().sum::<f32>() / rows as f32;
    let naive = -mean.ln();
    let loss = CrossEntropy::new().forward(logits, &book.targets)?;
    println!("  -log of the mean probability, {mean:.4e}   {naive:.4}   (naive)");
    println!("  mean of the -log probabilities             {loss:.4}   (cross-entropy)");
    println!("They differ because the log of a mean is not the mean of the logs: by Jensen's");
    println!("inequality the naive number is never above the loss that training minimises.");

    step("Perplexity");
    let evaluation = CrossEntropy::new().evaluate(logits, &book.targets, RowOutputs::new())?;
    println!("  e^loss = {:.2}", evaluation.perplexity());
    println!("As hard as picking one of so many tokens blindly; the vocabulary has {VOCAB}.");

    step("The same on every backend");
    let results = on_every_backend(logits, &book.targets)?;
    println!("  {:<9} {:>18} {:>12}", "backend", "loss", "perplexity");
    for Results { backend, evaluation: e, .. } in &results {
        println!("  {backend:<9} {:>18.15} {:>12.2}", e.loss(), e.perplexity());
    }
    Ok(report_agreement(&results))
}

/// The statistics that an evaluation of a model reports, against references in `f64`.
fn real_walk() -> Result<bool, Box<dyn Error>> {
    title("2. A real model: SmolLM2-135M-Instruct reads the GPL-3");
    let real = Real::load()?;
    let logits = Logits::new(&real.logits, real.rows, real.vocab)?;
    println!("Logits: [{}, {}], f32, ten places of the licence.", logits.rows(), logits.vocab());

    step("Token by token");
    let (mut losses, mut argmax) = (vec![0.0; real.rows], vec![0; real.rows]);
    // One read of the logits fills all that is asked for; nothing else is computed.
    let wanted = RowOutputs::new().losses(&mut losses).argmax(&mut argmax);
    CrossEntropy::new().evaluate(logits, &real.targets, wanted)?;
    println!("  {:>6} {:>9} {:>14} {:>16}", "target", "predicted", "loss", "exact (f64)");
    for (i, (loss, exact)) in losses.iter().zip(&real.losses).enumerate() {
        let (target, best) = (real.targets[i], argmax[i]);
        let mark = if target == best { "hit" } else { "" };
        println!("  {target:>6} {best:>9} {loss:>14} {exact:>16.11} {mark:>4}");
    }
    let same = argmax.iter().zip(&real.argmax).filter(|(a, b)| a == b).count();
    println!("{same} of {} predictions are those of PyTorch.", real.rows);

    step("All of them, on every backend");
    let results = on_every_backend(logits, &real.targets)?;
    println!(
        "  {:<9} {:>17} {:>18} {:>10} {:>9} {:>13}",
        "backend", "loss", "perplexity", "bits/token", "accuracy", "largest error"
    );
    for Results { backend, evaluation: e, losses, .. } in &results {
        let perplexity = format!("{:.2} +/- {:.2}", e.perplexity(), e.perplexity_stderr());
        println!(
            "  {backend:<9} {:>17.14} {perplexity:>18} {:>10.4} {:>8.0}% {:>9.3} ULP",
            e.loss(),
            e.bits_per_token(),
            100.0 * e.accuracy().unwrap_or(f64::NAN),
            largest_error(losses, &real.losses),
        );
    }
    println!("  {:<9} {:>17.14}", "exact", real.mean_loss);

    let by_hand: Vec<f32> = (real.targets.iter().enumerate())
        .map(|(i, &target)| two_pass_f32(logits.row(i), target as usize))
        .collect();
    println!("The same losses in plain f32, a pass for the maximum and one for the sum, are up to");
    println!("{:.0} ULP off, where the model is sure.", largest_error(&by_hand, &real.losses));
    Ok(report_agreement(&results))
}

/// What one backend makes of a batch.
struct Results {
    backend: Backend,
    evaluation: Evaluation,
    losses: Vec<f32>,
    logsumexp: Vec<f32>,
    argmax: Vec<i64>,
}

fn on_every_backend(logits: Logits<'_>, targets: &[i64]) -> Result<Vec<Results>, xent::Error> {
    let run = |&backend: &Backend| {
        let rows = logits.rows();
        let (mut losses, mut logsumexp, mut argmax) =
            (vec![0.0; rows], vec![0.0; rows], vec![0; rows]);
        let wanted =
            RowOutputs::new().losses(&mut losses).logsumexp(&mut logsumexp).argmax(&mut argmax);
        let evaluation = CrossEntropy::new().backend(backend).evaluate(logits, targets, wanted)?;
        Ok(Results { backend, evaluation, losses, logsumexp, argmax })
    };
    Backend::available().iter().map(run).collect()
}

/// Whether backends with fused multiply-add returned the same bits, as they promise.
fn report_agreement(results: &[Results]) -> bool {
    let bits = |r: &Results| {
        let rows: Vec<u32> = r.losses.iter().chain(&r.logsumexp).map(|x| x.to_bits()).collect();
        (r.evaluation.loss().to_bits(), rows, r.argmax.clone())
    };
    let (fused, others): (Vec<_>, Vec<_>) = results.iter().partition(|r| r.backend.is_bit_exact());
    let agree = fused.iter().all(|r| bits(r) == bits(fused[0]));
    let names: Vec<&str> = fused.iter().map(|r| r.backend.name()).collect();
    println!(
        "Loss, row losses, logsumexp and predictions of {}: {}.",
        names.join(", "),
        if agree { "all bits are equal" } else { "THE BITS DIFFER" }
    );
    for r in others {
        println!(
            "({} has the instructions that this program was compiled for, and no fused multiply-add \
             among them:\nthe same error bounds, but last bits of its own.)",
            r.backend
        );
    }
    agree
}

fn largest_error(losses: &[f32], exact: &[f64]) -> f64 {
    losses.iter().zip(exact).map(|(&loss, &exact)| ulp_error(loss, exact)).fold(0.0, f64::max)
}

fn title(text: &str) {
    println!("\n{text}\n{}", "=".repeat(text.len()));
}

fn step(text: &str) {
    println!("\n-- {text}");
}
