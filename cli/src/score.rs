//! The pass over the rows.
#![forbid(unsafe_code)]

use crate::args::{Reduction, Score};
use crate::input::{Input, Layout};
use crate::number::Logit;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::time::{Duration, Instant};
use xent::{Backend, CrossEntropy, Evaluation, Gradient, LogitsMut, RowOutputs};

/// Bytes of logits below which even a disk is done before anyone wonders.
const LONG: usize = 1 << 30;

/// Bytes of logits from one step of the progress bar to the next.
const GROUP: usize = 64 << 20;

/// Everything that there is to report.
#[derive(Debug)]
pub(crate) struct Scores<R> {
    pub(crate) evaluation: Evaluation,
    /// If rows were asked for.
    pub(crate) rows: Option<RowScores<R>>,
    pub(crate) backend: Backend,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
    /// Bytes of logits per second; ignored rows are not read and do not count.
    pub(crate) gb_per_s: f64,
}

/// One element per row of each.
#[derive(Debug, PartialEq)]
pub(crate) struct RowScores<R> {
    pub(crate) losses: Vec<R>,
    pub(crate) logprobs: Vec<R>,
    pub(crate) logsumexp: Vec<R>,
    pub(crate) argmax: Vec<i64>,
    /// If there is a z-loss.
    pub(crate) z_losses: Option<Vec<R>>,
}

impl<R: Default + Clone> RowScores<R> {
    fn new(rows: usize, z_loss: bool) -> Self {
        let zeros = || vec![R::default(); rows];
        RowScores {
            losses: zeros(),
            logprobs: zeros(),
            logsumexp: zeros(),
            argmax: vec![0; rows],
            z_losses: z_loss.then(zeros),
        }
    }

    fn outputs(&mut self, rows: Range<usize>) -> RowOutputs<'_, R> {
        let outputs = RowOutputs::new()
            .losses(&mut self.losses[rows.clone()])
            .logprobs(&mut self.logprobs[rows.clone()])
            .logsumexp(&mut self.logsumexp[rows.clone()])
            .argmax(&mut self.argmax[rows.clone()]);
        match &mut self.z_losses {
            Some(z_losses) => outputs.z_losses(&mut z_losses[rows]),
            None => outputs,
        }
    }
}

/// Scores all rows in the current rayon pool, and writes their gradient to where one is wanted.
pub(crate) fn run<T: Logit>(
    input: &Input<'_, T>,
    args: &Score,
    gradient: Option<&mut [T]>,
) -> Result<Scores<T::Real>, xent::Error> {
    let backend = args.backend.map_or_else(Backend::selected, Ok)?;
    let reduction = match args.reduction {
        // The loss is not shown, but it has a gradient: that of a sum is the one of each row.
        Reduction::None | Reduction::Sum => xent::Reduction::Sum,
        Reduction::MeanOver(count) => xent::Reduction::MeanOver(count),
        Reduction::Mean => xent::Reduction::Mean,
    };
    let ce = input.cross_entropy(args).reduction(reduction).backend(backend);
    // Without classes there is no memory that bounds the number of rows, so no memory is asked for.
    let Layout { rows: all, vocab, .. } = input.layout;
    if vocab == 0 && all > 0 && args.loss.target_probs.is_some() {
        return Err(xent::Error::NoClasses { rows: all });
    }
    let mut rows = args.wants_rows().then(|| RowScores::new(all, args.loss.z_loss.is_some()));
    // In this order, as the classes of no rows may be more than can be counted in bytes.
    let logits_bytes = all * vocab * size_of::<T>();
    let watched = logits_bytes >= LONG && io::stderr().is_terminal();
    // A sum of sums may differ in its last bits from one sum: text does not show them, but what programs
    // read must not depend on who is watching. A gradient is divided by the weight of all rows.
    let in_one_call = args.json || gradient.is_some();
    let (bar, group) = match (watched, in_one_call) {
        (false, _) => (ProgressBar::hidden(), all),
        (true, true) => (spinner(logits_bytes), all),
        (true, false) => (progress(logits_bytes), GROUP / (vocab * size_of::<T>()).max(1)),
    };

    let begin = Instant::now();
    let evaluation = match gradient {
        Some(gradient) => differentiate(&ce, input, rows.as_mut(), gradient),
        None => evaluate(&ce, input, rows.as_mut(), group.max(1), &bar),
    };
    let seconds = begin.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let evaluation = evaluation?;

    let bytes = evaluation.count() as f64 * vocab as f64 * size_of::<T>() as f64;
    Ok(Scores {
        evaluation,
        rows,
        backend,
        threads: rayon::current_num_threads(),
        seconds,
        gb_per_s: bytes / seconds / 1e9,
    })
}

fn outputs<R: Default + Clone>(
    rows: Option<&mut RowScores<R>>,
    range: Range<usize>,
) -> RowOutputs<'_, R> {
    match rows {
        None => RowOutputs::new().count_correct(),
        Some(rows) => rows.outputs(range),
    }
}

/// Evaluates all rows and writes their gradient.
fn differentiate<T: Logit>(
    ce: &CrossEntropy,
    input: &Input<'_, T>,
    rows: Option<&mut RowScores<T::Real>>,
    gradient: &mut [T],
) -> Result<Evaluation, xent::Error> {
    let Layout { rows: count, stored, vocab, .. } = input.layout;
    let all = 0..count;
    let logits = input.logits(all.clone())?;
    let gradient = LogitsMut::with_stride(gradient, count, vocab, stored)?;
    let gradient = Gradient::new(gradient).upstream(input.upstream.upstream());
    let targets = input.targets.targets(all.clone());
    ce.forward_backward(logits, targets, gradient, outputs(rows, all))
}

/// Evaluates about `group` rows at a time.
fn evaluate<T: Logit>(
    ce: &CrossEntropy,
    input: &Input<'_, T>,
    mut rows: Option<&mut RowScores<T::Real>>,
    group: usize,
    bar: &ProgressBar,
) -> Result<Evaluation, xent::Error> {
    let mut evaluate = |range: Range<usize>| {
        let logits = input.logits(range.clone())?;
        let outputs = outputs(rows.as_deref_mut(), range.clone());
        let targets = input.targets.targets(range.clone());
        let evaluation = ce.evaluate(logits, targets, outputs);
        bar.inc((range.len() * input.layout.vocab * size_of::<T>()) as u64);
        evaluation.map_err(|error| match error {
            xent::Error::TargetOutOfRange { row, target, vocab } => {
                xent::Error::TargetOutOfRange { row: range.start + row, target, vocab }
            }
            error => error,
        })
    };
    let count = input.layout.rows;
    let mut done = input.targets.group_end(0, group, count);
    let mut all = evaluate(0..done)?;
    while done < count {
        let end = input.targets.group_end(done, group, count);
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
    use crate::input::{Answers, Derivative, Ids, Shift};

    const ROWS: usize = 24;
    const VOCAB: usize = 19;

    type Scored = Result<(Evaluation, RowScores<f32>), xent::Error>;

    fn input(targets: Answers<'_, f32>) -> Input<'_, f32> {
        let logits = (0..ROWS * VOCAB).map(|i| (i * i % 101) as f32 * 0.1).collect();
        let upstream = Derivative::OfAll(1.0);
        let shape = vec![ROWS, VOCAB];
        let layout = Layout { shape, rows: ROWS, sequence: ROWS, stored: VOCAB, vocab: VOCAB };
        Input { logits, layout, targets, weight: None, upstream }
    }

    fn ids(ids: &[i64], shift: Option<Shift>) -> Input<'_, f32> {
        input(Answers::Ids { ids: Ids::I64(ids.into()), shift })
    }

    fn evaluate(ce: &CrossEntropy, input: &Input<'_, f32>, group: usize) -> Scored {
        let mut rows = RowScores::new(ROWS, true);
        let bar = ProgressBar::hidden();
        let all = super::evaluate(ce, input, Some(&mut rows), group, &bar)?;
        assert_eq!(bar.position() as usize, ROWS * VOCAB * size_of::<f32>());
        Ok((all, rows))
    }

    #[test]
    fn groups_do_not_matter() {
        let targets: Vec<i64> =
            (0..ROWS as i64).map(|i| if i < 5 { -100 } else { i % 19 }).collect();
        // Some of both signs, so that groups differ in what their means are divided by.
        let weights: Vec<f32> = (0..VOCAB).map(|i| (i % 5) as f32 - 0.75).collect();
        let probs = (0..ROWS * VOCAB).map(|i| (i % 7) as f32 * 0.05).collect();
        let (ids, probs) = (ids(&targets, None), input(Answers::Probs { probs, vocab: VOCAB }));
        let plain = CrossEntropy::new();
        let options = plain.clone().class_weights(&weights).label_smoothing(0.1).z_loss(0.01);
        for (input, ce, kept) in
            [(&ids, &plain, 19), (&ids, &options, 19), (&probs, &plain, 24), (&probs, &options, 24)]
        {
            let (whole, rows) = evaluate(ce, input, ROWS).unwrap();
            assert_eq!((whole.count(), whole.ignored()), (kept, ROWS as u64 - kept));
            for group in 1..=ROWS + 1 {
                let (all, grouped) = evaluate(ce, input, group).unwrap();
                assert_eq!(grouped, rows, "groups of {group}");
                assert_eq!(all.count(), whole.count());
                assert_eq!(all.ignored(), whole.ignored());
                assert_eq!(all.correct(), whole.correct());
                for number in [
                    Evaluation::loss,
                    Evaluation::cross_entropy,
                    Evaluation::z_loss,
                    Evaluation::mean,
                    Evaluation::stderr,
                ] {
                    let (a, b) = (number(&all), number(&whole));
                    let close = (a - b).abs() <= 1e-14 * b.abs();
                    assert!(close, "groups of {group}: {all:?} {whole:?}");
                }
            }
        }
    }

    const SHIFTS: [(usize, usize); 9] =
        [(24, 1), (24, 4), (24, 23), (12, 1), (12, 5), (8, 1), (8, 7), (3, 2), (2, 1)];

    fn shift(sequence: usize, by: usize) -> Option<Shift> {
        Some(Shift { by, sequence, ignore_index: -100 })
    }

    #[test]
    fn groups_do_not_matter_to_a_shift() {
        let tokens: Vec<i64> = (0..ROWS as i64).map(|i| i * i % 19).collect();
        let ce = CrossEntropy::new().z_loss(0.01);
        for (sequence, by) in SHIFTS {
            let target = |row: usize| match row % sequence + by < sequence {
                true => tokens[row + by],
                false => -100,
            };
            let by_hand: Vec<i64> = (0..ROWS).map(target).collect();
            let (whole, rows) = evaluate(&ce, &ids(&by_hand, None), ROWS).unwrap();
            let shifted = ids(&tokens, shift(sequence, by));
            for (row, &target) in by_hand.iter().enumerate() {
                assert_eq!(shifted.targets.class(row), target);
            }
            for group in 1..=ROWS + 1 {
                let (all, grouped) = evaluate(&ce, &shifted, group).unwrap();
                let case = format!("{by} in {sequence}, groups of {group}");
                assert_eq!(grouped, rows, "{case}");
                assert_eq!(all.count(), whole.count(), "{case}");
                assert_eq!(all.ignored(), whole.ignored(), "{case}");
                assert!((all.loss() - whole.loss()).abs() <= 1e-14 * whole.loss(), "{case}");
            }
        }
    }

    #[test]
    fn a_shift_stretches_groups_only_as_far_as_it_must() {
        for (sequence, by) in SHIFTS {
            let tokens = [0; ROWS];
            let targets = ids(&tokens, shift(sequence, by)).targets;
            for group in 1..=ROWS + 1 {
                let mut start = 0;
                while start < ROWS {
                    let end = targets.group_end(start, group, ROWS);
                    let case = format!("{by} in {sequence}: {start}..{end} for {group}");
                    assert!(start < end && end <= ROWS, "{case}");
                    assert!(end - start <= group + by, "{case}");
                    let whole = start.is_multiple_of(sequence) && end.is_multiple_of(sequence);
                    assert!(whole || start / sequence == (end - 1) / sequence, "{case}");
                    start = end;
                }
            }
        }
    }

    #[test]
    fn errors_name_the_row_of_the_file() {
        let mut targets = [0; ROWS];
        targets[17] = 19;
        let error = xent::Error::TargetOutOfRange { row: 17, target: 19, vocab: VOCAB };
        for group in [1, 4, 17, 18, ROWS] {
            let got = evaluate(&CrossEntropy::new(), &ids(&targets, None), group).unwrap_err();
            assert_eq!(got, error, "groups of {group}");
        }
        for (sequence, by, row) in [(24, 1, 16), (24, 4, 13), (8, 1, 16), (12, 5, 12), (6, 5, 12)] {
            let error = xent::Error::TargetOutOfRange { row, target: 19, vocab: VOCAB };
            for group in 1..=ROWS {
                let input = ids(&targets, shift(sequence, by));
                let got = evaluate(&CrossEntropy::new(), &input, group).unwrap_err();
                assert_eq!(got, error, "{by} in {sequence}, groups of {group}");
            }
        }
        // The first tokens of a sequence are nobody's targets.
        let input = ids(&targets, shift(8, 2));
        assert!(evaluate(&CrossEntropy::new(), &input, 5).is_ok());
    }
}
