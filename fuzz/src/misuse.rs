//! Lengths that do not fit, in views, outputs and everything else: errors that say what is wrong, nothing
//! written, no panic.

use crate::case::Case;
use crate::input::Input;
use crate::number::{Logit, Number, bits};
use crate::refusal::{UNTOUCHED, refuses, says_what_is_wrong};
use xent::{
    Backend, Error, Evaluation, Gradient, LogSumExp, Logits, LogitsMut, RowOutputs, Softmax,
};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => views::<f32>(&mut input),
        1 if input.flag() => views::<f64>(&mut input),
        1 => strided_views::<f32>(&mut input),
        2 => calls::<f32>(&mut input),
        _ => calls::<f64>(&mut input),
    }
}

/// A count of anything: mostly small, sometimes such that products overflow.
fn count(input: &mut Input<'_>) -> usize {
    match input.byte() {
        byte @ 0..=199 => usize::from(byte % 12),
        200..=219 => 1 << (input.byte() % 64),
        220..=239 => usize::MAX - input.below(4),
        _ => input.long() as usize,
    }
}

/// Views of three dimensions, of which few fit: those that do can be read, and those that can be written have
/// no two elements in one place.
fn strided_views<T: Logit>(input: &mut Input<'_>) {
    let shape = [count(input), count(input), count(input)];
    let strides = [count(input), count(input), count(input)];
    let len = input.below(400);
    let mut data: Vec<T> = (0..len).map(|i| T::round((i % 7) as f64)).collect();
    let last = shape.iter().zip(strides).try_fold(0u128, |sum, (&n, stride)| {
        let span = (n.checked_sub(1)? as u128).checked_mul(stride as u128)?;
        sum.checked_add(span)
    });
    let is_empty = shape.contains(&0);
    let fits = is_empty || last.is_some_and(|last| last < len as u128);
    let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
    let is_small =
        [product(&shape[..2]), product(&shape)].iter().all(|n| n.is_some_and(|n| n < 4000));

    let view = Logits::strided(&data, shape, strides);
    assert!(fits || view.is_err(), "{shape:?} {strides:?} in {len}");
    let readable = view.is_ok();
    match view {
        Err(error) => says_what_is_wrong(&error),
        Ok(x) if is_small => {
            let rows = x.rows();
            assert_eq!((rows, x.vocab()), (shape[0] * shape[1], shape[2]));
            let mut lse = vec![T::Real::round(UNTOUCHED); rows];
            Softmax::new().logsumexp(x, &mut lse).expect("there is one output for each row");
        }
        Ok(_) => {}
    }
    match LogitsMut::strided(&mut data, shape, strides) {
        Err(error) => says_what_is_wrong(&error),
        Ok(x) => {
            assert!(readable);
            if !is_empty {
                // No memory for more rows: each has elements of its own.
                assert!(is_small, "{shape:?} {strides:?} in {len}");
                Softmax::new().softmax_in_place(x).expect("nothing is wrong");
                let place = |i: usize| {
                    let [_, time, vocab] = shape;
                    let (row, class) = (i / vocab, i % vocab);
                    row / time * strides[0] + row % time * strides[1] + class * strides[2]
                };
                let mut places: Vec<usize> = (0..shape.iter().product()).map(place).collect();
                places.sort_unstable();
                assert!(places.is_sorted_by(|a, b| a < b), "{shape:?} {strides:?} overlap");
            }
        }
    }
}

fn views<T: Logit>(input: &mut Input<'_>) {
    let (rows, vocab, stride) = (count(input), count(input), count(input));
    let right = match input.byte() % 4 {
        0 => rows.checked_mul(vocab),
        1 => rows.checked_sub(1).and_then(|n| n.checked_mul(stride)?.checked_add(vocab)),
        2 => rows.checked_mul(stride),
        _ => None,
    };
    let right = right.filter(|&len| len <= 256).unwrap_or(input.below(64));
    let len = input.length(right);
    let mut data = vec![T::round(1.0); len];

    let wanted = contiguous_problem(len, rows, vocab);
    let view = Logits::new(&data, rows, vocab);
    answers(view.map(|x| (x.rows(), x.vocab())), wanted.clone(), (rows, vocab));
    let view = LogitsMut::new(&mut data, rows, vocab);
    answers(view.map(|x| (x.rows(), x.vocab())), wanted, (rows, vocab));

    let wanted = strided_problem(len, rows, vocab, stride);
    let view = Logits::with_stride(&data, rows, vocab, stride);
    answers(view.map(|x| (x.rows(), x.vocab())), wanted.clone(), (rows, vocab));
    let view = LogitsMut::with_stride(&mut data, rows, vocab, stride);
    answers(view.map(|x| (x.rows(), x.vocab())), wanted.clone(), (rows, vocab));
    if wanted.is_none() {
        edges(&mut data, rows, vocab, stride);
        softmax_lengths(input, &data, rows, vocab, stride);
    }
}

/// The first and the last row of a valid view are in the slice.
fn edges<T: Logit>(data: &mut [T], rows: usize, vocab: usize, stride: usize) {
    let Some(last) = rows.checked_sub(1) else { return };
    let view = Logits::with_stride(data, rows, vocab, stride).expect("it was valid before");
    assert_eq!((view.row(0).len(), view.row(last).len()), (vocab, vocab));
    let mut view = LogitsMut::with_stride(data, rows, vocab, stride).expect("it was valid before");
    assert_eq!(view.row_mut(last).len(), vocab);
}

fn contiguous_problem(len: usize, rows: usize, vocab: usize) -> Option<Error> {
    match rows.checked_mul(vocab) {
        None => Some(Error::Overflow { rows, elements: vocab }),
        Some(needed) => (needed != len).then_some(Error::Length { rows, vocab, len }),
    }
}

fn strided_problem(len: usize, rows: usize, vocab: usize, stride: usize) -> Option<Error> {
    if stride < vocab {
        return Some(Error::Stride { stride, vocab });
    }
    if rows.checked_mul(stride).is_none() {
        return Some(Error::Overflow { rows, elements: stride });
    }
    let needed = if rows == 0 { 0 } else { (rows - 1) * stride + vocab };
    (len < needed).then_some(Error::StridedLength { rows, vocab, stride, needed, len })
}

fn answers<U: PartialEq + std::fmt::Debug>(
    got: Result<U, Error>,
    problem: Option<Error>,
    right: U,
) {
    if let Err(error) = &got {
        says_what_is_wrong(error);
    }
    assert_eq!(got, problem.map_or(Ok(right), Err));
}

/// Outputs of any length, for a matrix that may have any number of empty rows.
fn softmax_lengths<T: Logit>(
    input: &mut Input<'_>,
    data: &[T],
    rows: usize,
    vocab: usize,
    stride: usize,
) {
    let backend = input.pick(Backend::ALL);
    let x = Logits::with_stride(data, rows, vocab, stride).expect("it was valid before");
    let softmax = Softmax::new().backend(backend);
    let right = rows * vocab;
    let mut out = vec![T::round(UNTOUCHED); input.length(right)];
    let (len, before) = (out.len(), bits(&out));
    let problem = |output, len, expected| {
        let length = (len != expected).then_some(Error::OutputLength { output, len, expected });
        unavailable(backend).into_iter().chain(length).collect::<Vec<_>>()
    };
    let problems = problem("out", len, right);
    for log in [false, true] {
        let result =
            if log { softmax.log_softmax(x, &mut out) } else { softmax.softmax(x, &mut out) };
        refuses(&result, &problems);
        assert!(result.is_ok() || bits(&out) == before, "written in spite of {result:?}");
    }
    let mut out = vec![T::Real::round(UNTOUCHED); input.length(rows.min(300))];
    let (len, before) = (out.len(), bits(&out));
    let result = softmax.logsumexp(x, &mut out);
    refuses(&result, &problem("logsumexp", len, rows));
    assert!(result.is_ok() || bits(&out) == before, "written in spite of {result:?}");
}

fn unavailable(backend: Backend) -> Option<Error> {
    let available = Backend::available();
    (!backend.is_available()).then_some(Error::BackendUnavailable { requested: backend, available })
}

/// Lengths of everything that a call writes to, or that goes with a gradient.
#[derive(Debug)]
struct Lengths {
    outputs: [usize; 6],
    stats: usize,
    gradient: (usize, usize),
}

const OUTPUTS: [&str; 6] = ["losses", "z_losses", "logprobs", "logsumexp", "argmax", "saved"];

impl Lengths {
    fn any(input: &mut Input<'_>, rows: usize, vocab: usize) -> Self {
        Lengths {
            outputs: OUTPUTS.map(|_| input.length(rows)),
            stats: input.length(rows),
            gradient: (input.length(rows), input.length(vocab)),
        }
    }

    fn output_problems(&self, rows: usize) -> impl Iterator<Item = Error> {
        let wrong = OUTPUTS.into_iter().zip(self.outputs).filter(move |(_, len)| *len != rows);
        wrong.map(move |(output, len)| Error::OutputLength { output, len, expected: rows })
    }

    fn stats_problem(&self, rows: usize) -> Option<Error> {
        let (what, len) = ("row statistics", self.stats);
        (len != rows).then_some(Error::InputLength { what, len, expected: rows })
    }

    fn gradient_problem(&self, rows: usize, vocab: usize) -> Option<Error> {
        let (gradient, logits) = (self.gradient, (rows, vocab));
        (gradient != logits).then_some(Error::GradientShape { gradient, logits })
    }
}

/// Outputs of some lengths, of which it can be told whether they were written to.
struct Written<R> {
    values: [Vec<R>; 4],
    argmax: Vec<i64>,
    stats: Vec<LogSumExp<R>>,
}

impl<R: Number> Written<R> {
    fn new(lengths: &[usize; 6]) -> Self {
        let untouched = R::round(UNTOUCHED);
        Written {
            values: [0, 1, 2, 3].map(|i| vec![untouched; lengths[i]]),
            argmax: vec![UNTOUCHED as i64; lengths[4]],
            stats: vec![LogSumExp { hi: untouched, lo: untouched }; lengths[5]],
        }
    }

    fn outputs(&mut self) -> RowOutputs<'_, R> {
        let [losses, z_losses, logprobs, logsumexp] = &mut self.values;
        RowOutputs::new()
            .losses(losses)
            .z_losses(z_losses)
            .logprobs(logprobs)
            .logsumexp(logsumexp)
            .argmax(&mut self.argmax)
            .saved(&mut self.stats)
    }

    fn is_untouched(&self) -> bool {
        let stats = self.stats.iter().flat_map(|stats| [stats.hi, stats.lo]);
        let mut values = self.values.iter().flatten().copied().chain(stats);
        values.all(|x| x.value() == UNTOUCHED)
            && self.argmax.iter().all(|&class| class == UNTOUCHED as i64)
    }
}

fn calls<T: Logit>(input: &mut Input<'_>) {
    let (rows, vocab) = (input.below(6), input.below(20));
    let lengths = Lengths::any(input, rows, vocab);
    let backend = input.pick(Backend::ALL);
    let case = Case::<T>::of_shape(input, rows, vocab);
    let mut problems = case.problems();
    problems.extend(unavailable(backend));
    let ce = case.options.cross_entropy(backend);
    let targets = case.targets.targets();
    let x = Logits::new(&case.x, rows, vocab).expect("the slice is as long as it must be");
    let upstream = || case.upstream.upstream();
    let with = |more: &[Option<Error>]| {
        problems.iter().cloned().chain(more.iter().flatten().cloned()).collect::<Vec<_>>()
    };
    let with_outputs = |more: Vec<Error>| {
        more.into_iter().chain(lengths.output_problems(rows)).collect::<Vec<_>>()
    };

    refuses(&ce.forward(x, targets), &problems);
    let mut losses = vec![T::Real::round(UNTOUCHED); lengths.outputs[0]];
    let (output, len) = (OUTPUTS[0], lengths.outputs[0]);
    let wrong = (len != rows).then_some(Error::OutputLength { output, len, expected: rows });
    let result = ce.forward_into(x, targets, &mut losses);
    refuses(&result, &with(&[wrong]));
    assert!(result.is_ok() || losses.iter().all(|x| x.value() == UNTOUCHED), "{result:?}");

    let checked = |result: Result<Evaluation, Error>, problems: &[Error], out: &Written<_>| {
        refuses(&result, problems);
        assert!(result.is_ok() || out.is_untouched(), "written in spite of {result:?}");
        result.is_ok()
    };
    let mut out = Written::<T::Real>::new(&lengths.outputs);
    let result = ce.evaluate(x, targets, out.outputs());
    checked(result, &with_outputs(with(&[])), &out);

    let mut out = Written::<T::Real>::new(&lengths.outputs);
    let (g_rows, g_vocab) = lengths.gradient;
    let mut g = vec![T::round(UNTOUCHED); g_rows * g_vocab];
    let to = LogitsMut::new(&mut g, g_rows, g_vocab).expect("the slice is as long as it must be");
    let to = Gradient::new(to).upstream(upstream());
    let of_gradient = [lengths.gradient_problem(rows, vocab), case.upstream_problem()];
    let result = ce.forward_backward(x, targets, to, out.outputs());
    let ok = checked(result, &with_outputs(with(&of_gradient)), &out);
    assert!(ok || g.iter().all(|x| x.value() == UNTOUCHED), "gradient written");

    let mut out = Written::<T::Real>::new(&lengths.outputs);
    let mut place = case.x.clone();
    let to = LogitsMut::new(&mut place, rows, vocab).expect("the slice is as long as it must be");
    let result = ce.forward_backward_in_place(to, targets, upstream(), out.outputs());
    let of_upstream = case.upstream_problem();
    let ok = checked(result, &with_outputs(with(std::slice::from_ref(&of_upstream))), &out);
    assert!(ok || bits(&place) == bits(&case.x), "logits written");

    let stats = vec![LogSumExp::default(); lengths.stats];
    g.fill(T::round(UNTOUCHED));
    let to = LogitsMut::new(&mut g, g_rows, g_vocab).expect("the slice is as long as it must be");
    let result = ce.backward(x, targets, &stats, Gradient::new(to).upstream(upstream()));
    let [shape, of_upstream] = of_gradient;
    let of_stats = lengths.stats_problem(rows);
    refuses(&result, &with(&[shape, of_upstream.clone(), of_stats.clone()]));
    assert!(result.is_ok() || g.iter().all(|x| x.value() == UNTOUCHED), "gradient written");

    let mut place = case.x.clone();
    let to = LogitsMut::new(&mut place, rows, vocab).expect("the slice is as long as it must be");
    let result = ce.backward_in_place(to, targets, &stats, upstream());
    refuses(&result, &with(&[of_upstream, of_stats]));
    assert!(result.is_ok() || bits(&place) == bits(&case.x), "logits written");
}
