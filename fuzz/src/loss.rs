//! Losses and gradients: every way to get them, on every backend.

use crate::answer::{Answer, Outputs};
use crate::case::{Case, OwnedTargets};
use crate::disguise::disguise;
use crate::input::{Input, Numbers};
use crate::layout::Layout;
use crate::number::{Logit, Number, keys};
use crate::oracle;
use crate::refusal::UNTOUCHED;
use crate::threads::with_threads;
use half::{bf16, f16};
use std::fmt::Debug;
use xent::{Backend, CrossEntropy, Error, Evaluation, Gradient, LogSumExp, RowOutputs};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => check(&mut input, |_: &Case<f32>, _, _| {}),
        1 => check(&mut input, |_: &Case<f64>, _, _| {}),
        2 => check(&mut input, has_the_bits_of_f32::<bf16>),
        _ => check(&mut input, has_the_bits_of_f32::<f16>),
    }
}

/// Where logits are, and where the gradient goes.
#[derive(Clone, Copy, Debug)]
struct Layouts {
    x: Layout,
    gradient: Layout,
}

const CONTIGUOUS: Layouts = Layouts { x: Layout::CONTIGUOUS, gradient: Layout::CONTIGUOUS };

fn check<T: Logit>(input: &mut Input<'_>, more: impl Fn(&Case<T>, Backend, &Told<T>)) {
    let layouts = [(); 2].map(|()| Layouts { x: Layout::any(input), gradient: Layout::any(input) });
    let case = Case::<T>::any(input);
    let (case, disguised) = disguise(input, case);
    let problems = case.problems();
    // What goes to other threads is too much for the oracle, and a third of it for one lane at a time.
    let is_large = case.rows * case.vocab > 30_000;
    let is_long = case.rows * case.vocab > 10_000;
    let available = Backend::available().iter().copied();
    let backends: Vec<Backend> = available.filter(|&b| b != Backend::Scalar || !is_long).collect();
    let told = |case: &Case<T>, backend, layouts, three| {
        with_threads(three, || Told::new(case, backend, layouts, &problems))
    };
    let exact = backends.iter().copied().find(|backend| backend.is_bit_exact());
    let exact = exact.expect("there is more than `portable`");
    let want = told(&case, exact, CONTIGUOUS, false);
    if let Some(answer) = &want.answer
        && !is_large
    {
        oracle::check(&case, answer, exact);
        sparse_is_dense(&case, &want, exact);
    }
    more(&case, exact, &want);

    let unread =
        if want.answer.is_some() { poison(&disguised, &case.is_ignored()) } else { disguised };
    for (i, &backend) in backends.iter().enumerate() {
        let got = told(&unread, backend, layouts[i % 2], i % 2 == 0);
        if backend.is_bit_exact() {
            got.same_as(&want, &|| format!("{backend} and {exact}, {layouts:?}, {case:?}"));
        } else {
            got.as_valid_as(&want, &|| format!("{backend} and {exact}, {case:?}"));
            if let Some(answer) = &got.answer
                && !is_large
            {
                oracle::check(&case, answer, backend);
            }
            more(&case, backend, &got);
        }
    }
    if is_large {
        let fastest = backends[backends.len() - 1];
        told(&unread, fastest, layouts[0], true).same_as(&want, &|| "three threads".to_owned());
        told(&unread, fastest, layouts[1], false).same_as(&want, &|| "one thread".to_owned());
    }
}

/// The case with nothing but NaN in ignored rows, which are not to be read.
fn poison<T: Logit>(case: &Case<T>, ignored: &[bool]) -> Case<T> {
    let mut case = case.clone();
    for (i, _) in ignored.iter().enumerate().filter(|(_, ignored)| **ignored) {
        case.x[i * case.vocab..][..case.vocab].fill(T::round(f64::NAN));
    }
    case
}

/// The same probabilities for all classes: the same bits.
fn sparse_is_dense<T: Logit>(case: &Case<T>, want: &Told<T>, backend: Backend) {
    let OwnedTargets::Sparse { ids, probs, k } = &case.targets else { return };
    let mut dense = vec![0.0; case.rows * case.vocab];
    for (i, id) in ids.values().into_iter().enumerate() {
        if !case.options.ignored.contains(id) {
            let p = &mut dense[i / k * case.vocab + id as usize];
            // Two probabilities of a class are added in the precision of the results.
            *p = T::Real::round(*p + probs.get(i)).value();
        }
    }
    let mut dense = Case {
        targets: OwnedTargets::Dense(Numbers::new(dense.into_iter(), probs.is_double())),
        ..case.clone()
    };
    dense.options.ignored.0.clear();
    let got = Told::new(&dense, backend, CONTIGUOUS, &[]);
    for (got, want) in got.calls.iter().zip(&want.calls) {
        // Which class is the most probable one of several that are alike depends on what is listed.
        let [got_values, want_values] = [got, want].map(|call| call.values.as_ref().map(|v| &v.0));
        assert!(got_values == want_values, "{}: dense is not sparse, {case:?}", got.what);
    }
}

/// Losses have the bits of those of the widened row, gradients are rounded once.
fn has_the_bits_of_f32<T: Logit>(case: &Case<T>, backend: Backend, told: &Told<T>) {
    let wide = case.with(case.x.iter().map(|x| x.value() as f32).collect());
    let want = Told::<f32>::new(&wide, backend, CONTIGUOUS, &case.problems());
    let (Some(got), Some(want)) = (&told.answer, &want.answer) else {
        assert_eq!(told.answer.is_some(), want.answer.is_some());
        return;
    };
    assert!(got.outputs.keys() == want.outputs.keys(), "not the bits of f32: {case:?}");
    let got_loss = evaluation_keys(&got.evaluation);
    assert!(got_loss == evaluation_keys(&want.evaluation), "not the bits of f32: {case:?}");
    let classes = match &case.targets {
        OwnedTargets::Classes(ids) => ids.values(),
        _ => vec![-1; case.rows],
    };
    for (what, got, want) in
        [("gradient", &got.gradient, &want.gradient), ("saved", &got.saved, &want.saved)]
    {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            // At a target the `f32` was rounded before, from `f64`.
            let is_target = classes[i / case.vocab] == (i % case.vocab) as i128;
            let (got, once) = (got.key(), T::round(want.value()).key());
            let apart = got.abs_diff(once);
            assert!(
                apart <= u64::from(is_target),
                "{what} {i} of {backend}: {got:#x}, not {once:#x}, {case:?}"
            );
        }
    }
}

/// The numbers of an evaluation but for what was correct.
fn evaluation_keys(e: &Evaluation) -> Vec<u64> {
    let numbers = [
        e.loss(),
        e.cross_entropy(),
        e.z_loss(),
        e.sum(),
        e.mean(),
        e.stderr(),
        e.perplexity(),
        e.perplexity_stderr(),
        e.bits_per_token(),
        e.bits_per_byte(0),
    ];
    let numbers = numbers.map(f64::key);
    numbers.into_iter().chain([e.count(), e.ignored()]).collect()
}

/// One call: its name, and what came of it as bits.
#[derive(Debug)]
struct Call {
    what: &'static str,
    /// The second is the number of correct rows.
    values: Result<(Vec<u64>, Option<u64>), Error>,
}

/// What every function has to say about a case.
struct Told<T: Logit> {
    calls: Vec<Call>,
    /// `None` if there were errors.
    answer: Option<Answer<T>>,
}

/// Everything that is needed to make a call.
struct Caller<'a, T: Logit> {
    case: &'a Case<T>,
    ce: CrossEntropy<'a>,
    layouts: Layouts,
    problems: &'a [Error],
    calls: Vec<Call>,
}

impl<T: Logit> Told<T> {
    /// Calls everything; `problems` are those that every call has.
    fn new(case: &Case<T>, backend: Backend, layouts: Layouts, problems: &[Error]) -> Self {
        let ce = case.options.cross_entropy(backend);
        let mut caller = Caller { case, ce, layouts, problems, calls: Vec::new() };
        let forward = caller.forwards();
        let trained = caller.gradients();
        if let (Some((losses, all)), Some(trained)) = (&forward, &trained) {
            let [got, want] = [&trained.outputs, all].map(Outputs::keys);
            assert!(got == want, "with and without a gradient: {case:?}");
            let losses = keys(losses);
            assert!(losses == keys(&all.losses), "forward_into and evaluate: {case:?}");
        }
        let Caller { calls, .. } = caller;
        Told { calls, answer: trained }
    }

    fn same_as(&self, want: &Self, context: &dyn Fn() -> String) {
        for (got, want) in self.calls.iter().zip(&want.calls) {
            assert!(
                got.values == want.values,
                "{}: {:x?} and {:x?}: {}",
                got.what,
                got.values,
                want.values,
                context()
            );
        }
    }

    /// The same errors.
    fn as_valid_as(&self, want: &Self, context: &dyn Fn() -> String) {
        for (got, want) in self.calls.iter().zip(&want.calls) {
            let [got_error, want_error] = [got, want].map(|call| call.values.as_ref().err());
            assert!(
                got_error == want_error,
                "{}: {got_error:?} and {want_error:?}: {}",
                got.what,
                context()
            );
        }
    }
}

impl<T: Logit> Caller<'_, T> {
    /// Notes what came of a call, and whether that is what the documentation says.
    fn note<U>(
        &mut self,
        what: &'static str,
        result: Result<U, Error>,
        upstream: bool,
        values: impl FnOnce(&U) -> (Vec<u64>, Option<u64>),
    ) -> Option<U> {
        let of_upstream = self.case.upstream_problem().filter(|_| upstream);
        let case = self.case;
        match &result {
            Ok(_) => assert!(
                self.problems.is_empty() && of_upstream.is_none(),
                "{what}: accepted in spite of {:?} {of_upstream:?}: {case:?}",
                self.problems
            ),
            Err(error) => assert!(
                self.problems.iter().chain(&of_upstream).any(|problem| problem == error),
                "{what}: {error:?}, which is not what is wrong, {:?}: {case:?}",
                self.problems
            ),
        }
        let noted = result.as_ref().map(values).map_err(Error::clone);
        self.calls.push(Call { what, values: noted });
        result.ok()
    }

    /// The forward passes, and that they agree: row losses, and all outputs.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn forwards(&mut self) -> Option<(Vec<T::Real>, Outputs<T::Real>)> {
        let (case, rows) = (self.case, self.case.rows);
        let placed = self.layouts.x.place(&case.x, rows, case.vocab);
        let (x, targets) = (placed.logits(), case.targets.targets());
        let forward = self.ce.forward(x, targets);
        let loss = self.note("forward", forward, false, |loss| (vec![loss.key()], None));

        let mut losses = vec![T::Real::round(UNTOUCHED); rows];
        let into = self.ce.forward_into(x, targets, &mut losses);
        let into = self.note("forward_into", into, false, |()| (keys(&losses), None));
        let untouched = || losses.iter().all(|x| x.value() == UNTOUCHED);
        assert!(into.is_some() || untouched(), "written in spite of an error: {case:?}");

        let mut plain = Outputs::new(rows);
        let evaluated = self.ce.evaluate(x, targets, plain.plain());
        let evaluated = self.note("evaluate, plain outputs", evaluated, false, |e| {
            (evaluation_keys(e).into_iter().chain(plain.plain_keys()).collect(), e.correct())
        });
        assert!(evaluated.is_some() || plain.is_untouched(), "written: {case:?}");

        let mut all = Outputs::new(rows);
        let everything = self.ce.evaluate(x, targets, all.all());
        let everything = self.note("evaluate, all outputs", everything, false, |e| {
            (evaluation_keys(e).into_iter().chain(all.keys()).collect(), e.correct())
        });
        assert!(everything.is_some() || all.is_untouched(), "written: {case:?}");
        placed.rows();
        let (loss, plain_e, e) = (loss?, evaluated?, everything?);
        assert!(plain.plain_keys() == all.plain_keys(), "of different kernels: {case:?}");
        assert_eq!(plain_e.correct(), e.correct(), "{case:?}");
        assert_eq!(loss.key(), plain_e.loss().key(), "{case:?}");
        // A sum of nothing but zeros may have either sign.
        assert_eq!((loss + 0.0).key(), (e.loss() + 0.0).key(), "{loss} {}: {case:?}", e.loss());
        Some((losses, all))
    }

    /// The gradient, to every kind of place and from saved statistics.
    fn gradients(&mut self) -> Option<Answer<T>> {
        let case = self.case;
        let (rows, vocab) = (case.rows, case.vocab);
        let placed = self.layouts.x.place(&case.x, rows, vocab);
        let (x, targets) = (placed.logits(), case.targets.targets());
        let upstream = || case.upstream.upstream();
        let (layout, before) = (self.layouts.gradient, vec![T::round(UNTOUCHED); rows * vocab]);
        let answer = |g: &[T], e: Option<&Evaluation>| {
            let e_keys = e.map(evaluation_keys).into_iter().flatten();
            (e_keys.chain(keys(g)).collect(), e.and_then(|e| e.correct()))
        };

        let mut g = layout.place(&before, rows, vocab);
        let mut outputs = Outputs::new(rows);
        let to = Gradient::new(g.logits_mut()).upstream(upstream());
        let result = self.ce.forward_backward(x, targets, to, outputs.all());
        let gradient = g.rows();
        let evaluation =
            self.note("forward_backward", result, true, |e| answer(&gradient, Some(e)));
        let untouched = |g: &[T]| keys(g) == keys(&before);
        assert!(evaluation.is_some() || untouched(&gradient) && outputs.is_untouched());

        let old: Vec<T> =
            (0..rows * vocab).map(|i| T::round((i % 11) as f64 * 0.3 - 1.0)).collect();
        let mut g = layout.place(&old, rows, vocab);
        let to = Gradient::new(g.logits_mut()).upstream(upstream()).accumulate();
        let result = self.ce.forward_backward(x, targets, to, RowOutputs::new());
        let sum = g.rows();
        let summed = self.note("accumulate", result, true, |e| answer(&sum, Some(e)));
        assert!(summed.is_some() || keys(&sum) == keys(&old), "written: {case:?}");

        let mut place = self.layouts.x.place(&case.x, rows, vocab);
        let (to, mut same) = (place.logits_mut(), Outputs::new(rows));
        let result = self.ce.forward_backward_in_place(to, targets, upstream(), same.all());
        let in_place = place.rows();
        let replaced = self.note("in place", result, true, |e| answer(&in_place, Some(e)));
        let unchanged = |g: &[T]| keys(g) == keys(&case.x);
        assert!(replaced.is_some() || unchanged(&in_place) && same.is_untouched(), "{case:?}");

        let mut g = layout.place(&before, rows, vocab);
        let to = Gradient::new(g.logits_mut()).upstream(upstream());
        let result = self.ce.backward(x, targets, &outputs.stats, to);
        let saved = g.rows();
        let backward = self.note("backward", result, true, |()| answer(&saved, None));
        assert!(backward.is_some() || untouched(&saved), "written: {case:?}");

        let mut place = self.layouts.x.place(&case.x, rows, vocab);
        let to = place.logits_mut();
        let result = self.ce.backward_in_place(to, targets, &outputs.stats, upstream());
        let saved_in_place = place.rows();
        let backward =
            self.note("backward in place", result, true, |()| answer(&saved_in_place, None));
        assert!(backward.is_some() || unchanged(&saved_in_place), "written: {case:?}");
        placed.rows();

        let evaluation = evaluation?;
        assert!(keys(&in_place) == keys(&gradient), "in place is not out of place: {case:?}");
        assert!(same.keys() == outputs.keys(), "in place is not out of place: {case:?}");
        assert!(keys(&saved_in_place) == keys(&saved), "saved, in place: {case:?}");
        check_sum(case, &old, &gradient, &sum);
        check_ignored(case, &outputs, &[&gradient, &saved, &in_place]);
        Some(Answer { outputs, evaluation, gradient, saved })
    }
}

/// Added to what is there: rounded once more, and not at all where a row is ignored.
fn check_sum<T: Logit>(case: &Case<T>, old: &[T], gradient: &[T], sum: &[T]) {
    let ignored = case.is_ignored();
    // Half a unit of the sum, half a unit of the gradient, and where that is a half of another.
    let unit = T::epsilon();
    for (i, &sum) in sum.iter().enumerate() {
        let (old, g, sum) = (old[i].value(), gradient[i].value(), sum.value());
        let at = || format!("{i}: {old:e} + {g:e} is {sum:e}, {case:?}");
        if ignored[i / case.vocab] {
            assert!(sum == old, "{}", at());
        } else if !g.is_finite() {
            // What is out of range for the gradient need not be for the sum of it and another number.
            assert!(
                !sum.is_finite() || g.is_infinite() && sum.abs() > T::largest() / 2.0,
                "{}",
                at()
            );
        } else if sum.is_finite() {
            let size = old.abs().max(g.abs()).max(sum.abs());
            assert!((old + g - sum).abs() <= unit * size, "{}", at());
        } else {
            assert!(g.abs() >= T::largest() / 2.0, "{}", at());
        }
    }
}

/// Nothing comes of ignored rows.
fn check_ignored<T: Logit>(case: &Case<T>, outputs: &Outputs<T::Real>, gradients: &[&Vec<T>]) {
    for (i, _) in case.is_ignored().into_iter().enumerate().filter(|(_, ignored)| *ignored) {
        let row = i * case.vocab..(i + 1) * case.vocab;
        let zero = |g: &&Vec<T>| g[row.clone()].iter().all(|g| g.bits() == 0);
        assert!(gradients.iter().all(zero), "gradient of the ignored row {i}: {case:?}");
        let LogSumExp { hi, lo } = outputs.stats[i];
        let numbers = [&outputs.losses, &outputs.z_losses, &outputs.logprobs, &outputs.logsumexp];
        let numbers = numbers.map(|values| values[i]).into_iter().chain([hi, lo]);
        let zeros = numbers.into_iter().all(|x| x.bits() == 0);
        assert!(zeros && outputs.argmax[i] == -1, "outputs of the ignored row {i}: {case:?}");
    }
}
