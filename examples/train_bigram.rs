//! Trains a language model on a book with the loss and the gradients of this crate, and draws how the loss
//! sinks to the smallest one possible, which is known for this model.
//!
//! `cargo run --release --example train_bigram -- --help`
//!
//! How a step of training works is in `support/bigram.rs`; `tests/train_bigram.rs` holds every backend to
//! the same bits.

#[path = "support/bigram.rs"]
mod bigram;
#[path = "support/plot.rs"]
mod plot;

use bigram::{Corpus, Model, Options, Trainer};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use plot::Curves;
use rand_mt::Mt;
use std::error::Error;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;
use xent::{Backend, CrossEntropy, Evaluation, Softmax};

static BOOK: &str = include_str!("data/alice.txt");

/// Trains a model that predicts each character of a text from the one before it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Text to train on, in UTF-8 [default: Alice's Adventures in Wonderland]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// How many characters the next one is predicted from
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    context: NonZeroUsize,
    /// How often the training text is read
    #[arg(long, value_name = "N", default_value_t = at_least_one(Options::default().epochs))]
    epochs: NonZeroUsize,
    /// Characters to predict per step
    #[arg(long, value_name = "N", default_value_t = at_least_one(Options::default().batch))]
    batch: NonZeroUsize,
    /// Learning rate of the first step
    #[arg(long, value_name = "RATE", default_value_t = Options::default().learning_rate, value_parser = rate)]
    learning_rate: f32,
    /// Seed of the order of training, and of what the model writes
    #[arg(long, value_name = "N", default_value_t = Options::default().seed)]
    seed: u32,
    /// Picture of the losses
    #[arg(long, value_name = "FILE", default_value = "target/train_bigram.svg")]
    svg: PathBuf,
}

fn at_least_one(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("defaults are above 0")
}

fn rate(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("it has to be a positive number".to_owned()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let options = Options {
        context: arguments.context.get(),
        epochs: arguments.epochs.get(),
        batch: arguments.batch.get(),
        learning_rate: arguments.learning_rate,
        seed: arguments.seed,
    };
    let text = match &arguments.text {
        Some(path) => &fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?,
        None => BOOK,
    };
    let corpus = Corpus::new(text);
    let (training, held_out) = (corpus.training(options.context), corpus.held_out());
    if training.is_empty() {
        return Err(format!("{} characters are too few to train on", corpus.tokens.len()).into());
    }
    println!(
        "Text: {} characters, {} different ones; {} to train on, the last {} held out.",
        corpus.tokens.len(),
        corpus.vocab(),
        training.len(),
        held_out.len()
    );
    let task = match options.context {
        1 => "each character from the one before it".to_owned(),
        n => format!("each character from the {n} before it"),
    };
    let parameters = options.context * corpus.vocab().pow(2);
    println!("Model: {task}, {parameters} parameters. Backend: {}.\n", Backend::selected()?);

    let loss = CrossEntropy::new();
    let evaluate = |model: &Model| -> Result<[Evaluation; 2], xent::Error> {
        Ok([
            model.evaluate(&loss, &corpus.tokens, training.clone())?,
            model.evaluate(&loss, &corpus.tokens, held_out.clone())?,
        ])
    };
    println!("{:20} | {:^29} | {:^29}", "", "training text", "held-out text");
    let columns = format!("{:>8} {:>11} {:>8}", "loss", "perplexity", "hits");
    println!("{:20} | {columns} | {columns}", "");

    let start = Instant::now();
    let mut trainer = Trainer::new(&corpus, loss.clone(), options);
    report("untrained", &evaluate(&trainer.model)?);
    let mut curves = Curves::default();
    let bar = ProgressBar::new((options.epochs * trainer.steps_per_epoch()) as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} step {pos}/{len}, loss {msg}, {eta} left",
    )?);
    for epoch in 1..=options.epochs {
        trainer.epoch(|batch_loss| {
            curves.batches.push(batch_loss);
            bar.set_message(format!("{batch_loss:.3}"));
            bar.inc(1);
        })?;
        let losses = evaluate(&trainer.model)?;
        curves.training.push(losses[0].loss());
        curves.held_out.push(losses[1].loss());
        bar.suspend(|| report(&format!("epoch {epoch}"), &losses));
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();

    // What can be reached is known for one character of context: the frequencies of the training text.
    let exact = evaluate(&Model::of_counts(&corpus, corpus.training(1), 0.0))?;
    let added = evaluate(&Model::of_counts(&corpus, corpus.training(1), 0.1))?;
    println!();
    report("bigram counts", &exact);
    report("bigram counts + 0.1", &added);
    println!(
        "\nNo model that knows one character can have a smaller loss on the training text than the one\n\
         made of its counts. That one takes a pair of characters that is not in it for impossible, which\n\
         is an infinite loss where the pair occurs; 0.1 added to each count avoids it."
    );

    let mut tokens = corpus.tokens[training.end - options.context..training.end].to_vec();
    let mut random = Mt::new(options.seed);
    trainer.model.write(&Softmax::new(), &mut tokens, 300, &mut random)?;
    println!("\nThe model writes:\n{}\n", corpus.text(&tokens[options.context..]));

    curves.training_goal = exact[0].loss();
    curves.held_out_goal = added[1].loss();
    let title = format!("Predicting {task}");
    if let Some(folder) = arguments.svg.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = arguments.svg.display();
    plot::draw(&arguments.svg, &title, &curves).map_err(|e| format!("{file}: {e}"))?;
    println!("{seconds:.1} s. The losses are drawn in {file}.");
    Ok(())
}

/// Prints a line of the table.
fn report(name: &str, losses: &[Evaluation; 2]) {
    print!("{name:>20}");
    for e in losses {
        let hits = 100.0 * e.accuracy().unwrap_or(f64::NAN);
        print!(" | {:>8.5} {:>11.3} {hits:>6.1} %", e.loss(), e.perplexity());
    }
    println!();
}
