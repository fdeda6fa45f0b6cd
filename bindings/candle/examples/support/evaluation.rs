//! Which tokens are scored in which window, and their scores, by candle and by xent.

use crate::llama::Llama;
use candle_core::{D, DType, Device, Result, Tensor, bail};
use std::ops::Range;
use std::time::{Duration, Instant};
use xent_candle::xent::{CrossEntropy, Evaluation, reference};

/// What the model reads at once, and of which tokens it is asked how probable they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) context: Range<usize>,
    /// Each is predicted from the tokens of the context before it, and there is at least one.
    pub(crate) scored: Range<usize>,
}

/// Which tokens of a window are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scored {
    /// Those that no window before has scored; with windows side by side, all but their first.
    New,
    /// Of full windows those after the first half and one, as llama.cpp does, without those that a window before has scored.
    SecondHalf,
}

/// Windows of `size` tokens that begin `stride` apart, over `tokens` tokens.
pub(crate) fn windows(tokens: usize, size: usize, stride: usize, scored: Scored) -> Vec<Window> {
    let mut windows = vec![];
    let mut done = 0;
    for start in (0..tokens).step_by(stride.max(1)) {
        let end = tokens.min(start + size);
        let first = match scored {
            Scored::New => done.max(start + 1),
            Scored::SecondHalf => done.max(start + size / 2 + 1),
        };
        let full = end - start == size;
        if first < end && (full || scored == Scored::New) {
            windows.push(Window { context: start..end, scored: first..end });
            done = end;
        }
        if end == tokens {
            break;
        }
    }
    windows
}

/// What there is to know, in the way that it is computed without this crate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ByCandle {
    pub(crate) losses: Sums,
    pub(crate) correct: u64,
}

/// From which mean and standard error follow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) count: u64,
    pub(crate) sum: f64,
    squares: f64,
}

impl Sums {
    pub(crate) fn add(&mut self, loss: f64) {
        self.count += 1;
        self.sum += loss;
        self.squares += loss * loss;
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Of the perplexity, `e^mean sqrt(variance / (n - 1))`.
    pub(crate) fn perplexity_stderr(&self) -> f64 {
        let (n, mean) = (self.count as f64, self.mean());
        mean.exp() * ((self.squares / n - mean * mean) / (n - 1.0)).sqrt()
    }
}

/// All that is printed.
pub(crate) struct Report {
    pub(crate) xent: Evaluation,
    pub(crate) candle: ByCandle,
    /// Of the losses in f64 of the same logits.
    pub(crate) exact: Sums,
    /// Of the text that the scored tokens stand for.
    pub(crate) bytes: u64,
    pub(crate) vocab: usize,
    pub(crate) model_time: Duration,
    pub(crate) candle_time: Duration,
    pub(crate) xent_time: Duration,
}

/// Scores the windows; `bos` takes the place of the first token of each, `bytes` says how many of the text a token stands
/// for, and `progress` is called after each window with the number of tokens that it scored.
pub(crate) fn run(
    model: &Llama,
    tokens: &[u32],
    windows: &[Window],
    bos: Option<u32>,
    bytes: impl Fn(u32) -> u64,
    mut progress: impl FnMut(u64),
) -> Result<Report> {
    let mut report: Option<Report> = None;
    for Window { context, scored } in windows {
        let mut read = tokens[context.clone()].to_vec();
        if let (Some(bos), Some(first)) = (bos, read.first_mut()) {
            *first = bos;
        }
        let start = Instant::now();
        let states = model.states(&read)?;
        // The state of a token predicts the next one.
        let states = states.narrow(0, scored.start - 1 - context.start, scored.len())?;
        let logits = model.logits(&states)?;
        let model_time = start.elapsed();
        let targets = Tensor::new(&tokens[scored.clone()], &Device::Cpu)?;

        // Both once without a clock, so that neither pays for what the model left in the caches; then twice, in an order
        // that is the same from both ends.
        let by_xent = || xent_candle::evaluate(&CrossEntropy::new(), &logits, &targets);
        let (candle, xent) = (by_candle(&logits, &targets)?, by_xent()?);
        let candle_before = timed(|| by_candle(&logits, &targets))?;
        let xent_time = (timed(by_xent)? + timed(by_xent)?) / 2;
        let candle_time = (candle_before + timed(|| by_candle(&logits, &targets))?) / 2;
        let next = Report {
            xent,
            candle,
            exact: exact(&logits, &tokens[scored.clone()])?,
            bytes: tokens[scored.clone()].iter().map(|&token| bytes(token)).sum(),
            vocab: logits.dim(D::Minus1)?,
            model_time,
            candle_time,
            xent_time,
        };
        report = Some(match report {
            Some(report) => report.merge(next),
            None => next,
        });
        progress(scored.len() as u64);
    }
    match report {
        Some(report) => Ok(report),
        None => bail!("no window has a token to score: there are {} tokens", tokens.len()),
    }
}

fn timed<T>(f: impl Fn() -> Result<T>) -> Result<Duration> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed())
}

impl Report {
    fn merge(self, next: Report) -> Report {
        let sums = |a: Sums, b: Sums| Sums {
            count: a.count + b.count,
            sum: a.sum + b.sum,
            squares: a.squares + b.squares,
        };
        Report {
            xent: self.xent.merge(&next.xent),
            candle: ByCandle {
                losses: sums(self.candle.losses, next.candle.losses),
                correct: self.candle.correct + next.candle.correct,
            },
            exact: sums(self.exact, next.exact),
            bytes: self.bytes + next.bytes,
            vocab: next.vocab,
            model_time: self.model_time + next.model_time,
            candle_time: self.candle_time + next.candle_time,
            xent_time: self.xent_time + next.xent_time,
        }
    }
}

/// `candle_nn::loss::cross_entropy` without its mean, as a standard error needs the loss of each token, and the argmax.
fn by_candle(logits: &Tensor, targets: &Tensor) -> Result<ByCandle> {
    let log_p = candle_nn::ops::log_softmax(logits, 1)?;
    let losses = log_p.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?.neg()?;
    let mut sums = Sums::default();
    losses.to_vec1::<f32>()?.iter().for_each(|&loss| sums.add(loss.into()));
    let correct = logits.argmax(D::Minus1)?.eq(targets)?.to_dtype(DType::U32)?.sum_all()?;
    Ok(ByCandle { losses: sums, correct: correct.to_scalar::<u32>()?.into() })
}

/// In f64 from the same logits, row by row.
fn exact(logits: &Tensor, targets: &[u32]) -> Result<Sums> {
    let mut sums = Sums::default();
    for (i, &target) in targets.iter().enumerate() {
        let row: Vec<f32> = logits.get(i)?.to_vec1()?;
        sums.add(reference::row(&row, target as usize).loss);
    }
    Ok(sums)
}
