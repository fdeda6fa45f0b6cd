//! The pass over the rows.
#![forbid(unsafe_code)]

use crate::args::{Reduction, Score};
use crate::input::Input;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::time::{Duration, Instant};
use xent::{Backend, CrossEntropy, Evaluation, Logits, RowOutputs};

/// Bytes of logits below which even a disk is done before anyone wonders.
const LONG: usize = 1 << 30;

/// Bytes of logits from one step of the progress bar to the next.
const GROUP: usize = 64 << 20;

/// Everything that there is to report.
#[derive(Debug)]
pub(crate) struct Scores {
    pub(crate) evaluation: Evaluation,
    /// If rows were asked for.
    pub(crate) rows: Option<RowScores>,
    pub(crate) backend: Backend,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
    /// Bytes of logits per second; ignored rows are not read and do not count.
    pub(crate) gb_per_s: f64,
}

/// One element per row of each.
#[derive(Debug, PartialEq)]
pub(crate) struct RowScores {
    pub(crate) losses: Vec<f32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) logsumexp: Vec<f32>,
    pub(crate) argmax: Vec<i64>,
}

impl RowScores {
    fn new(rows: usize) -> Self {
        RowScores {
            losses: vec![0.0; rows],
            logprobs: vec![0.0; rows],
            logsumexp: vec![0.0; rows],
            argmax: vec![0; rows],
        }
    }

    fn outputs(&mut self, rows: Range<usize>) -> RowOutputs<'_> {
        RowOutputs::new()
            .losses(&mut self.losses[rows.clone()])
            .logprobs(&mut self.logprobs[rows.clone()])
            .logsumexp(&mut self.logsumexp[rows.clone()])
            .argmax(&mut self.argmax[rows])
    }
}

/// Scores all rows in the current rayon pool.
pub(crate) fn run(input: &Input<'_>, args: &Score) -> Result<Scores, xent::Error> {
    let backend = args.backend.map_or_else(Backend::selected, Ok)?;
    let reduction = match args.reduction {
        Reduction::Sum => xent::Reduction::Sum,
        Reduction::MeanOver(count) => xent::Reduction::MeanOver(count),
        Reduction::Mean | Reduction::None => xent::Reduction::Mean,
    };
    let ce =
        CrossEntropy::new().ignore_index(args.ignore_index).reduction(reduction).backend(backend);
    let mut rows = args.wants_rows().then(|| RowScores::new(input.rows));
    let logits_bytes = size_of_val(&*input.logits);
    let watched = logits_bytes >= LONG && io::stderr().is_terminal();
    let (bar, group) = match (watched, args.json) {
        (false, _) => (ProgressBar::hidden(), input.rows),
        // A sum of sums may differ in its last bits from one sum: text does not show them, but what
        // programs read must not depend on who is watching.
        (true, true) => (spinner(logits_bytes), input.rows),
        (true, false) => (progress(logits_bytes), GROUP / (input.vocab * size_of::<f32>()).max(1)),
    };

    let begin = Instant::now();
    let evaluation = evaluate(&ce, input, rows.as_mut(), group.max(1), &bar);
    let seconds = begin.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let evaluation = evaluation?;

    let bytes = evaluation.count() as f64 * input.vocab as f64 * size_of::<f32>() as f64;
    Ok(Scores {
        evaluation,
        rows,
        backend,
        threads: rayon::current_num_threads(),
        seconds,
        gb_per_s: bytes / seconds / 1e9,
    })
}

/// Evaluates `group` rows at a time.
fn evaluate(
    ce: &CrossEntropy,
    input: &Input<'_>,
    mut rows: Option<&mut RowScores>,
    group: usize,
    bar: &ProgressBar,
) -> Result<Evaluation, xent::Error> {
    let mut evaluate = |range: Range<usize>| {
        let logits = &input.logits[range.start * input.vocab..range.end * input.vocab];
        let outputs = match rows.as_deref_mut() {
            None => RowOutputs::new().count_correct(),
            Some(rows) => rows.outputs(range.clone()),
        };
        let targets = input.targets.targets(range.clone());
        let evaluation =
            ce.evaluate(Logits::new(logits, range.len(), input.vocab)?, targets, outputs);
        bar.inc(size_of_val(logits) as u64);
        evaluation.map_err(|error| match error {
            xent::Error::TargetOutOfRange { row, target, vocab } => {
                xent::Error::TargetOutOfRange { row: range.start + row, target, vocab }
            }
            error => error,
        })
    };
    let mut done = group.min(input.rows);
    let mut all = evaluate(0..done)?;
    while done < input.rows {
        let end = done + group.min(input.rows - done);
        all = all.merge(&evaluate(done..end)?);
        done = end;
    }
    Ok(all)
}

const STYLE: &str = "the template is constant";

fn progress(bytes: usize) -> ProgressBar {
    let style = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect(STYLE);
    ProgressBar::new(bytes as u64).with_style(style)
}

fn spinner(bytes: usize) -> ProgressBar {
    let style = "{spinner} {msg} of logits, {elapsed}";
    let style = ProgressStyle::with_template(style).expect(STYLE);
    let message = HumanBytes(bytes as u64).to_string();
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Ids;

    const ROWS: usize = 23;
    const VOCAB: usize = 19;

    fn input(targets: &[i64]) -> Input<'_> {
        let logits = (0..ROWS * VOCAB).map(|i| (i * i % 101) as f32 * 0.1).collect();
        Input { logits, rows: ROWS, vocab: VOCAB, targets: Ids::I64(targets.into()) }
    }

    fn evaluate(input: &Input<'_>, group: usize) -> Result<(Evaluation, RowScores), xent::Error> {
        let mut rows = RowScores::new(ROWS);
        let bar = ProgressBar::hidden();
        let all = super::evaluate(&CrossEntropy::new(), input, Some(&mut rows), group, &bar)?;
        assert_eq!(bar.position() as usize, ROWS * VOCAB * size_of::<f32>());
        Ok((all, rows))
    }

    #[test]
    fn groups_do_not_matter() {
        let targets: Vec<i64> =
            (0..ROWS as i64).map(|i| if i < 5 { -100 } else { i % 19 }).collect();
        let input = input(&targets);
        let (whole, rows) = evaluate(&input, ROWS).unwrap();
        assert_eq!((whole.count(), whole.ignored()), (18, 5));
        for group in 1..=ROWS + 1 {
            let (all, grouped) = evaluate(&input, group).unwrap();
            assert_eq!(grouped, rows, "groups of {group}");
            assert_eq!(all.count(), whole.count());
            assert_eq!(all.ignored(), whole.ignored());
            assert_eq!(all.correct(), whole.correct());
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-14 * b.abs();
            assert!(close(all.loss(), whole.loss()), "groups of {group}: {all:?} {whole:?}");
            assert!(close(all.stderr(), whole.stderr()), "groups of {group}: {all:?} {whole:?}");
        }
    }

    #[test]
    fn errors_name_the_row_of_the_file() {
        let mut targets = [0; ROWS];
        targets[17] = 19;
        let error = xent::Error::TargetOutOfRange { row: 17, target: 19, vocab: VOCAB };
        for group in [1, 4, 17, 18, ROWS] {
            assert_eq!(evaluate(&input(&targets), group).unwrap_err(), error, "groups of {group}");
        }
    }
}
