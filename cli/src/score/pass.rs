//! The pass over the rows.
#![forbid(unsafe_code)]

use super::args::{Args, Loss, Reduction};
use crate::input::{Answers, Input, Layout};
use crate::nan::NanRows;
use crate::number::{Logit, Number};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::time::{Duration, Instant};
use xent::{Backend, CrossEntropy, Evaluation, Gradient, LogitsMut, RowOutputs};

/// Bytes of logits below which even a disk is done before anyone wonders.
const LONG: usize = 1 << 30;

/// Bytes of logits from one step of the progress bar to the next, or of target probabilities that
/// are widened at once.
const GROUP: usize = 64 << 20;

/// Everything that there is to report.
#[derive(Debug)]
pub(crate) struct Scores<R> {
    pub(crate) evaluation: Evaluation,
    /// If rows were asked for.
    pub(crate) rows: Option<RowScores<R>>,
    /// Of the losses.
    pub(crate) nan: NanRows,
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
    args: &Args,
    gradient: Option<&mut [T]>,
) -> Result<Scores<T::Real>, xent::Error> {
    let backend = args.compute.backend()?;
    let reduction = match args.reduction {
        // The loss is not shown, but it has a gradient: that of a sum is the one of each row.
        Reduction::None | Reduction::Sum => xent::Reduction::Sum,
        Reduction::MeanOver(count) => xent::Reduction::MeanOver(count),
        Reduction::Mean => xent::Reduction::Mean,
    };
    let ce = cross_entropy(input, &args.loss).reduction(reduction).backend(backend);
    // Without classes there is no memory that bounds the number of rows, so no memory is asked for.
    let Layout { rows: all, vocab, .. } = input.layout;
    if vocab == 0 && all > 0 && matches!(input.answers, Answers::Probs(_)) {
        return Err(xent::Error::NoClasses { rows: all });
    }
    // The library is not told of probabilities where a mask leaves out all rows.
    let class = input.ignored.iter().find(|&&ignored| ignored >= 0);
    if let (Answers::Probs(_), Some(&ignore_index)) = (&input.answers, class) {
        return Err(xent::Error::IgnoreIndexWithProbs { ignore_index });
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

    let group = group.clamp(1, input.most_rows(GROUP));
    let begin = Instant::now();
    let evaluation = match gradient {
        Some(gradient) => differentiate(&ce, input, reduction, rows.as_mut(), group, gradient),
        None => evaluate(&ce, input, rows.as_mut(), group, &bar),
    };
    let seconds = begin.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let evaluation = evaluation?;

    let bytes = evaluation.count() as f64 * vocab as f64 * size_of::<T>() as f64;
    Ok(Scores {
        nan: (&evaluation).into(),
        evaluation,
        rows,
        backend,
        threads: rayon::current_num_threads(),
        seconds,
        gb_per_s: bytes / seconds / 1e9,
    })
}

/// The loss that the options ask for, but for its reduction.
fn cross_entropy<'i, T: Logit>(input: &'i Input<'_, T>, options: &Loss) -> CrossEntropy<'i> {
    let mut ce = CrossEntropy::new().ignore_indices(&input.ignored);
    if let Some(weight) = &input.weight {
        ce = ce.class_weights(T::Real::floats(weight));
    }
    if let Some(e) = options.label_smoothing {
        ce = ce.label_smoothing(e);
    }
    if let Some(factor) = options.z_loss {
        ce = ce.z_loss(factor);
    }
    if let Some(c) = options.softcap {
        ce = ce.softcap(c);
    }
    if let Some(scale) = options.logit_scale {
        ce = ce.logit_scale(scale);
    }
    if let Some(temperature) = options.transform.temperature {
        ce = ce.temperature(temperature);
    }
    ce
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

/// Evaluates all rows and writes their gradient, in one call if `group` and the mask let it.
fn differentiate<T: Logit>(
    ce: &CrossEntropy,
    input: &Input<'_, T>,
    reduction: xent::Reduction,
    mut rows: Option<&mut RowScores<T::Real>>,
    group: usize,
    gradient: &mut [T],
) -> Result<Evaluation, xent::Error> {
    let Layout { rows: count, stored, vocab, .. } = input.layout;
    let mut buffer = Vec::new();
    let mut differentiate = |ce: &CrossEntropy, range: Range<usize>, divisor: f64| {
        let part = input.part(range.clone());
        let logits = input.logits(range.clone())?;
        let gradient = &mut gradient[range.start * stored..range.end * stored];
        let gradient = LogitsMut::with_stride(gradient, range.len(), vocab, stored)?;
        let upstream = input.upstream.upstream(range.clone(), divisor, &mut buffer);
        let gradient = Gradient::new(gradient).upstream(upstream);
        let outputs = outputs(rows.as_deref_mut(), range);
        part.weigh(ce).forward_backward(logits, part.targets(), gradient, outputs)
    };
    if input.part_end(0, group) == count {
        return differentiate(ce, 0..count, 1.0);
    }
    // Only rows with target probabilities are in parts, each of which weighs 1 times its token
    // weight. A part does not know how much the others weigh: it has the gradient of a sum, of a
    // derivative that was divided before.
    let divisor = match reduction {
        xent::Reduction::MeanOver(count) => count,
        xent::Reduction::Mean => input.weight_of_rows(),
        _ => 1.0,
    };
    let of_sum = ce.clone().reduction(xent::Reduction::Sum);
    let mut all = differentiate(ce, 0..0, 1.0)?;
    let mut done = 0;
    while done < count {
        let end = input.part_end(done, group);
        all = all.merge(&differentiate(&of_sum, done..end, divisor)?);
        done = end;
    }
    Ok(all)
}

/// Evaluates at most `group` rows at a time.
fn evaluate<T: Logit>(
    ce: &CrossEntropy,
    input: &Input<'_, T>,
    mut rows: Option<&mut RowScores<T::Real>>,
    group: usize,
    bar: &ProgressBar,
) -> Result<Evaluation, xent::Error> {
    let mut evaluate = |range: Range<usize>| {
        let part = input.part(range.clone());
        let logits = input.logits(range.clone())?;
        let outputs = outputs(rows.as_deref_mut(), range.clone());
        let evaluation = part.weigh(ce).evaluate(logits, part.targets(), outputs);
        bar.inc((range.len() * input.layout.vocab * size_of::<T>()) as u64);
        evaluation
    };
    let count = input.layout.rows;
    if input.part_end(0, group) == count {
        return evaluate(0..count);
    }
    let mut all = evaluate(0..0)?;
    let mut done = 0;
    while done < count {
        let end = input.part_end(done, group);
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
    use crate::input::{Answers, Derivative};
    use crate::number::{Integers, Reals};
    use crate::tokens::{Kept, Mask, PerToken, Steps};

    const ROWS: usize = 24;
    const VOCAB: usize = 19;

    type Scored = (Evaluation, RowScores<f32>);

    fn input<'a>(answers: Answers<'a>, mask: Option<&'a [u8]>) -> Input<'a, f32> {
        let logits = (0..ROWS * VOCAB).map(|i| (i * i % 101) as f32 * 0.1).collect();
        let shape = vec![ROWS, VOCAB];
        let layout = Layout { shape, rows: ROWS, sequence: ROWS, stored: VOCAB, vocab: VOCAB };
        let steps = Steps { by: 0, sequence: ROWS, documents: None };
        let mask = mask.map(|mask| per_token(Mask::Bools(mask)));
        Input {
            logits,
            layout,
            answers,
            kept: Kept { steps, mask, weights: None },
            ignored: vec![-100],
            token_weights: None,
            weight: None,
            upstream: Derivative::OfAll(0.75),
        }
    }

    fn per_token<V>(values: V) -> PerToken<V> {
        PerToken { values, shape: vec![ROWS], is_cut: false }
    }

    fn ids(ids: &[i64]) -> Answers<'_> {
        Answers::Ids(per_token(Integers::I64(ids.into())))
    }

    fn probs() -> Answers<'static> {
        Answers::Probs(Reals::F32((0..ROWS * VOCAB).map(|i| (i % 7) as f32 * 0.05).collect()))
    }

    fn evaluate(ce: &CrossEntropy, input: &Input<'_, f32>, group: usize) -> Scored {
        let mut rows = RowScores::new(ROWS, true);
        let bar = ProgressBar::hidden();
        let all = super::evaluate(ce, input, Some(&mut rows), group, &bar).unwrap();
        assert_eq!(bar.position() as usize, ROWS * VOCAB * size_of::<f32>());
        (all, rows)
    }

    #[track_caller]
    fn same(all: &Evaluation, whole: &Evaluation) {
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
            let (a, b) = (number(all), number(whole));
            assert!((a - b).abs() <= 1e-14 * b.abs(), "{all:?} {whole:?}");
        }
    }

    #[test]
    fn groups_do_not_matter() {
        let targets: Vec<i64> =
            (0..ROWS as i64).map(|i| if i < 5 { -100 } else { i % 19 }).collect();
        // Some of both signs, so that groups differ in what their means are divided by.
        let weights: Vec<f32> = (0..VOCAB).map(|i| (i % 5) as f32 - 0.75).collect();
        let (ids, probs) = (input(ids(&targets), None), input(probs(), None));
        let plain = CrossEntropy::new();
        let options = plain.clone().class_weights(&weights).label_smoothing(0.1).z_loss(0.01);
        for (input, ce, kept) in
            [(&ids, &plain, 19), (&ids, &options, 19), (&probs, &plain, 24), (&probs, &options, 24)]
        {
            let (whole, rows) = evaluate(ce, input, ROWS);
            assert_eq!((whole.count(), whole.ignored()), (kept, ROWS as u64 - kept));
            for group in 1..=ROWS + 1 {
                let (all, grouped) = evaluate(ce, input, group);
                assert_eq!(grouped, rows, "groups of {group}");
                same(&all, &whole);
            }
        }
    }

    /// Of probabilities a mask makes parts; the rows that are left are those of a file without the
    /// others.
    #[test]
    fn probabilities_of_masked_rows_do_not_count() {
        let mask: Vec<u8> = (0..ROWS).map(|i| u8::from(i % 5 > 1 && i != 12)).collect();
        let masked = input(probs(), Some(&mask));
        let whole = input(probs(), None);
        let weights: Vec<f64> = (0..ROWS).map(|i| 0.5 + (i % 3) as f64).collect();
        let of_mask: Vec<f64> = weights.iter().zip(&mask).map(|(w, &m)| w * f64::from(m)).collect();
        let kept = mask.iter().filter(|&&m| m == 1).count() as u64;
        for reduction in
            [xent::Reduction::Mean, xent::Reduction::Sum, xent::Reduction::MeanOver(7.0)]
        {
            for group in [1, 4, ROWS] {
                let ce = CrossEntropy::new().reduction(reduction).z_loss(0.01).label_smoothing(0.1);
                let (all, rows_of_mask) = evaluate(&ce, &masked, group);
                assert_eq!((all.count(), all.ignored()), (kept, ROWS as u64 - kept));
                let (_, rows_of_all) = evaluate(&ce, &whole, ROWS);
                for (row, &m) in mask.iter().enumerate() {
                    let loss = if m == 1 { rows_of_all.losses[row] } else { 0.0 };
                    assert_eq!(rows_of_mask.losses[row], loss, "row {row}");
                    assert_eq!(rows_of_mask.argmax[row] == -1, m == 0, "row {row}");
                }

                let differentiate = |input: &Input<'_, f32>, group: usize| {
                    let mut rows = RowScores::new(ROWS, true);
                    let mut grad = vec![f32::NAN; ROWS * VOCAB];
                    let all = super::differentiate(
                        &ce,
                        input,
                        reduction,
                        Some(&mut rows),
                        group,
                        &mut grad,
                    );
                    (all.unwrap(), rows, grad)
                };
                let weighted = |answers, mask, weights: &[f64]| {
                    let weights = per_token(Reals::F64(weights.to_vec().into()));
                    Input { token_weights: Some(weights), ..input(answers, mask) }
                };
                // Rows of weight 0 have no part in a loss and its gradient either.
                let (a, rows_a, grad_a) =
                    differentiate(&weighted(probs(), Some(&mask), &weights), group);
                let (b, _, grad_b) = differentiate(&weighted(probs(), None, &of_mask), ROWS);
                assert_eq!((a.count(), a.ignored()), (kept, ROWS as u64 - kept));
                assert!((a.loss() - b.loss()).abs() <= 1e-14 * b.loss(), "{a:?} {b:?}");
                assert_eq!(rows_a, evaluate_rows(&ce, &weighted(probs(), Some(&mask), &weights)));
                for (a, b) in grad_a.iter().zip(&grad_b) {
                    assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} {b}");
                }
            }
        }
    }

    fn evaluate_rows(ce: &CrossEntropy, input: &Input<'_, f32>) -> RowScores<f32> {
        evaluate(ce, input, ROWS).1
    }

    #[test]
    fn errors_name_the_row_of_the_file() {
        let mut targets = [0; ROWS];
        targets[17] = 19;
        let error = xent::Error::TargetOutOfRange { row: 17, target: 19, vocab: VOCAB };
        assert_eq!(input(ids(&targets), None).check_targets(), Err(error));
        let mask: Vec<u8> = (0..ROWS).map(|i| u8::from(i != 17)).collect();
        assert_eq!(input(ids(&targets), Some(&mask)).check_targets(), Ok(()));
    }
}
