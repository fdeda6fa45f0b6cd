//! Everything that is asked about rows at inference: every output, with every option, on every backend.

use crate::case::shape;
use crate::input::Input;
use crate::layout::Layout;
use crate::naive::Row;
use crate::number::{Logit, Number, keys};
use crate::question::{Asked, Question};
use crate::refusal::{UNTOUCHED, refuses};
use crate::shards;
use crate::threads::with_threads;
use half::{bf16, f16};
use xent::{Backend, Error, Logits, Sample, Sampler, TokenLogProbs, TokenOutputs};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 8 {
        0..=2 => check::<f32>(&mut input, shards::check),
        3 => check::<f64>(&mut input, |_, _, _| {}),
        4 => check::<bf16>(&mut input, shards::check),
        5 => check::<f16>(&mut input, shards::check),
        _ => shards::any_bytes(&mut input),
    }
}

type Found<T> = TokenLogProbs<<T as xent::Element>::Real>;

fn check<T: Logit>(input: &mut Input<'_>, more: impl Fn(&Asked<T>, &mut Input<'_>, &[Found<T>]))
where
    T::Real: Logit + xent::Element<Real = T::Real>,
{
    let layouts = [Layout::any(input), Layout::any(input)];
    let (mut rows, mut vocab) = shape(input);
    // Several chunks: what is cut in parts where there are fewer rows than threads.
    if input.one_in(64) {
        (rows, vocab) = (1 + input.below(2), 32_700 + input.below(40_000));
    }
    let question = Question::any(input, rows, vocab);
    let x: Vec<T> = (0..rows).flat_map(|_| input.row(vocab)).collect();
    let asked = Asked { rows, vocab, question, x };
    let problems = asked.question.problems(rows, vocab);
    let wanted: Vec<Wanted> =
        (0..2).map(|_| Wanted::any(input, &asked, problems.is_empty())).collect();

    let is_large = rows * vocab > 30_000;
    let is_long = rows * vocab > 10_000;
    let available = Backend::available().iter().copied();
    let backends: Vec<Backend> = available.filter(|&b| b != Backend::Scalar || !is_long).collect();
    let mut want: Option<Found<T>> = None;
    let mut all = Vec::new();
    for (i, &backend) in backends.iter().enumerate() {
        let at = || format!("{backend}, {layouts:?}, {asked:?}");
        let result = collect(&asked, backend, Layout::CONTIGUOUS, i % 2 == 1);
        refuses(&result, &problems);
        let again = collect(&asked, backend, layouts[i % 2], i % 2 == 0 || is_large);
        assert!(result.is_ok() == again.is_ok(), "{again:?}, {}", at());
        for wanted in &wanted {
            wanted.check(&asked, backend, layouts[i % 2], &problems, result.as_ref().ok());
        }
        let (Ok(found), Ok(again)) = (result, again) else { continue };
        same(&found, &again, &|| format!("layout or threads, {}", at()));
        if backend.is_bit_exact()
            && let Some(want) = &want
        {
            same(&found, want, &|| format!("bits, {}", at()));
        } else {
            is_of_transformed(&asked, &found, backend);
            oracle(&asked, &found, backend);
            samplers(input, &asked, &found);
        }
        if backend.is_bit_exact() {
            want.get_or_insert_with(|| found.clone());
        }
        all.push(found);
    }
    if problems.is_empty() {
        more(&asked, input, &all);
    }
}

fn collect<T: Logit>(
    asked: &Asked<T>,
    backend: Backend,
    layout: Layout,
    three: bool,
) -> Result<Found<T>, Error> {
    let placed = layout.place(&asked.x, asked.rows, asked.vocab);
    with_threads(three, || asked.question.ask(backend).collect(placed.logits()))
}

/// All that was found, by bits.
fn facts<R: Number>(found: &TokenLogProbs<R>) -> [Vec<u64>; 12] {
    let ids = |ids: &[i64]| ids.iter().map(|&id| id as u64).collect();
    [
        keys(&found.logprobs),
        ids(&found.ranks),
        ids(&found.strict_ranks),
        keys(&found.candidates),
        ids(&found.top_ids),
        keys(&found.top_logprobs),
        ids(&found.argmax),
        keys(&found.entropy),
        keys(&found.varentropy),
        keys(&found.logsumexp),
        ids(&found.sampled),
        keys(&found.sampled_logprobs),
    ]
}

const OUTPUTS: [&str; 12] = [
    "logprobs",
    "ranks",
    "strict_ranks",
    "candidates",
    "top_k ids",
    "top_k logprobs",
    "argmax",
    "entropy",
    "varentropy",
    "logsumexp",
    "sampled",
    "sampled_logprobs",
];

fn same<R: Number>(got: &TokenLogProbs<R>, want: &TokenLogProbs<R>, at: &dyn Fn() -> String) {
    for ((got, want), name) in facts(got).into_iter().zip(facts(want)).zip(OUTPUTS) {
        assert!(got == want, "{name}: {got:x?} and {want:x?}, {}", at());
    }
}

/// What is done to logits has the bits of having it done before.
fn is_of_transformed<T: Logit>(asked: &Asked<T>, found: &Found<T>, backend: Backend)
where
    T::Real: Logit + xent::Element<Real = T::Real>,
{
    let z = asked.question.transformed(&asked.x, asked.vocab);
    let logits = Logits::new(&z, asked.rows, asked.vocab).expect("as many as before");
    let plain = asked.question.plain(backend).collect(logits).expect("as before");
    same(found, &plain, &|| format!("not that of {z:?}, {backend}, {asked:?}"));
}

fn oracle<T: Logit>(asked: &Asked<T>, found: &Found<T>, backend: Backend) {
    let question = &asked.question;
    let z = question.transformed(&asked.x, asked.vocab);
    let targets = question.targets(asked.rows);
    let each = question.candidates.as_ref().map_or(0, |(_, k)| *k);
    let candidates = question.candidates.as_ref().map(|(ids, _)| ids.values());
    let k = question.top_k.min(asked.vocab);
    assert_eq!(found.k, k);
    let of_targets = |target: Option<usize>| target.map_or(-1, |target| target as i64);
    let wanted = targets.iter().flatten().map(|&target| of_targets(target));
    assert!(found.targets.iter().copied().eq(wanted), "{:?}", found.targets);
    for i in 0..asked.rows {
        let target = targets.as_ref().map(|targets| targets[i]);
        let at = |what: &str| format!("{what} of row {i} on {backend}, {asked:?}");
        let logprobs = found.logprobs.get(i).copied();
        let candidates = candidates.as_ref().map_or(&[][..], |ids| &ids[i * each..][..each]);
        let of_candidates = &found.candidates[i * each..][..each];
        let (ids, top) = (&found.top_ids[i * k..][..k], &found.top_logprobs[i * k..][..k]);
        if target == Some(None) {
            let zeros =
                [&found.entropy, &found.varentropy, &found.logsumexp, &found.sampled_logprobs];
            let zeros = zeros.into_iter().filter_map(|values| values.get(i));
            let zeros = zeros.chain(&logprobs).chain(of_candidates).chain(top);
            assert!({ zeros }.all(|x| x.bits() == 0), "{}", at("not 0"));
            let nothing = found.sampled.get(i).into_iter().chain(ids).chain([&found.argmax[i]]);
            assert!({ nothing }.all(|&id| id == -1), "{}", at("a token"));
            let mut ranks = found.ranks.get(i).into_iter().chain(found.strict_ranks.get(i));
            assert!(ranks.all(|&rank| rank == 0), "{}", at("a rank"));
            continue;
        }
        let row = Row::new::<T::Real>(&z[i * asked.vocab..][..asked.vocab]);
        assert_eq!(found.argmax[i], row.argmax(), "{}", at("argmax"));
        row.check_logsumexp(found.logsumexp[i].value(), &|| at("logsumexp"));
        let logprob = |what, id: i128, got: T::Real| {
            row.check_logprob(id as usize, got.value(), &|| at(what));
            let is_target = target.flatten().is_some_and(|target| id == target as i128);
            let same = !is_target || Some(got.key()) == logprobs.map(|logprob| logprob.key());
            assert!(same, "another logprob than the target's, {}", at(what));
        };
        if let Some(Some(target)) = target {
            logprob("logprob", target as i128, found.logprobs[i]);
            if question.ranks {
                let got = (found.ranks[i], found.strict_ranks[i]);
                assert_eq!(got, row.ranks(target), "{}", at("ranks"));
            }
        }
        for (&id, &got) in candidates.iter().zip(of_candidates) {
            logprob("candidate", id, got);
        }
        assert_eq!(ids, row.top(k), "{}", at("top k"));
        for (&id, &got) in ids.iter().zip(top) {
            logprob("top k", id.into(), got);
        }
        if let Some(got) = found.entropy.get(i) {
            row.check_entropy(got.value(), &|| at("entropy"));
        }
        if let Some(got) = found.varentropy.get(i) {
            row.check_varentropy(got.value(), &|| at("varentropy"));
        }
        if let Some(samples) = &question.samples {
            let (id, got) = (found.sampled[i], found.sampled_logprobs[i]);
            row.check_sampled(id, samples[i], &|| at("sampled"));
            if id >= 0 {
                logprob("sampled", id.into(), got);
            } else {
                assert!(got.value().is_nan(), "{}", at("sampled"));
            }
        }
    }
}

/// Filters of the top k: a token of it, or an error.
fn samplers<T: Logit>(input: &mut Input<'_>, asked: &Asked<T>, found: &Found<T>) {
    let mut sampler = Sampler::new();
    if input.flag() {
        sampler = sampler.top_k(input.below(6));
    }
    if input.flag() {
        sampler = sampler.top_p(input.option(&[0.9, 0.5, 1.0, 0.0]));
    }
    if input.flag() {
        sampler = sampler.min_p(input.option(&[0.05, 0.5, 1.0, 0.0]));
    }
    let sample = Sample::new(input.long(), 1).temperature(input.option(&[1.0, 0.0, 0.7]));
    let k = found.k;
    for i in 0..asked.rows {
        let (ids, top) = (&found.top_ids[i * k..][..k], &found.top_logprobs[i * k..][..k]);
        let drawn = sampler.draw(ids, top, asked.vocab, sample);
        if let Ok(drawn) = drawn {
            assert!(ids.contains(&drawn), "{drawn} of {ids:?} {top:?}, {sampler:?}");
            let one = sampler.top_k(1).draw(ids, top, asked.vocab, sample);
            assert_eq!(one, Ok(ids[0]), "{top:?}, {sampler:?}");
        }
        let reverse: Vec<T::Real> = top.iter().rev().copied().collect();
        let _ = sampler.draw(ids, &reverse, asked.vocab, sample);
    }
}

/// Some of the outputs, with their lengths.
#[derive(Debug)]
struct Wanted {
    lengths: [Option<usize>; 12],
    each: [usize; 12],
}

impl Wanted {
    fn any<T>(input: &mut Input<'_>, asked: &Asked<T>, fits: bool) -> Self {
        let question = &asked.question;
        let bits = input.word();
        let k = question.candidates.as_ref().map_or(0, |(_, k)| *k);
        let has_top = bits & 3 << 4 != 0;
        let mut each = [1; 12];
        each[3] = k;
        (each[4], each[5]) = (question.top_k.min(asked.vocab), question.top_k.min(asked.vocab));
        let mut lengths = [None; 12];
        for (i, len) in lengths.iter_mut().enumerate() {
            // Both or none, as there is one setter.
            let wanted = if i == 4 || i == 5 { has_top } else { bits >> i & 1 == 1 };
            if wanted {
                // What no memory holds is wrong anyway.
                let right = asked.rows.saturating_mul(each[i]).min(5000);
                *len = Some(input.length(right));
            }
        }
        // Without targets and the like most that is wanted is missing something.
        let needs = [
            (question.targets.is_none(), &[0, 1, 2][..]),
            (question.candidates.is_none(), &[3]),
            (question.samples.is_none(), &[10, 11]),
        ];
        for (missing, outputs) in needs {
            if missing && fits && !input.one_in(8) {
                outputs.iter().for_each(|&output| lengths[output] = None);
            }
        }
        Wanted { lengths, each }
    }

    fn problems(&self, question: &Question, rows: usize) -> Vec<Error> {
        let mut problems = Vec::new();
        for (i, output) in OUTPUTS.into_iter().enumerate() {
            let Some(len) = self.lengths[i] else { continue };
            let (needs, is_given) = match i {
                0..=2 => ("targets", question.targets.is_some()),
                3 => ("candidates", question.candidates.is_some()),
                4 | 5 => ("LogProbs::top_k(k), how many to find", question.top_k > 0 || len == 0),
                10.. => ("samples", question.samples.is_some()),
                _ => ("", true),
            };
            if !is_given {
                problems.push(Error::Missing { output, needs });
                continue;
            }
            match rows.checked_mul(self.each[i]) {
                None => problems.push(Error::Overflow { rows, elements: self.each[i] }),
                Some(expected) if expected != len => {
                    problems.push(Error::OutputLength { output, len, expected });
                }
                Some(_) => {}
            }
        }
        problems
    }

    /// The same bits as with all outputs; and nothing is written if anything is wrong.
    fn check<T: Logit>(
        &self,
        asked: &Asked<T>,
        backend: Backend,
        layout: Layout,
        problems: &[Error],
        all: Option<&Found<T>>,
    ) {
        let real = |i: usize| vec![T::Real::round(UNTOUCHED); self.lengths[i].unwrap_or(0)];
        let id = |i: usize| vec![UNTOUCHED as i64; self.lengths[i].unwrap_or(0)];
        let mut got = TokenLogProbs::<T::Real>::default();
        (got.logprobs, got.ranks, got.strict_ranks, got.candidates) =
            (real(0), id(1), id(2), real(3));
        (got.top_ids, got.top_logprobs, got.argmax, got.entropy) = (id(4), real(5), id(6), real(7));
        (got.varentropy, got.logsumexp) = (real(8), real(9));
        (got.sampled, got.sampled_logprobs) = (id(10), real(11));
        let before = facts(&got);
        let mut out = TokenOutputs::new();
        let has = |i: usize| self.lengths[i].is_some();
        macro_rules! give {
            ($($i:literal $set:ident $field:ident),*) => {$(
                if has($i) {
                    out = out.$set(&mut got.$field);
                }
            )*};
        }
        give!(0 logprobs logprobs, 1 ranks ranks, 2 strict_ranks strict_ranks, 3 candidates candidates);
        give!(6 argmax argmax, 7 entropy entropy, 8 varentropy varentropy, 9 logsumexp logsumexp);
        give!(10 sampled sampled, 11 sampled_logprobs sampled_logprobs);
        if has(4) {
            out = out.top_k(&mut got.top_ids, &mut got.top_logprobs);
        }
        // Only what is wanted of the top k is looked at.
        let of_top =
            |error: &&Error| has(4) || !matches!(error, Error::Option { option: "top_k", .. });
        let mut problems: Vec<Error> = problems.iter().filter(of_top).cloned().collect();
        problems.extend(self.problems(&asked.question, asked.rows));
        let placed = layout.place(&asked.x, asked.rows, asked.vocab);
        let result = asked.question.ask(backend).run(placed.logits(), out);
        refuses(&result, &problems);
        let at = || format!("{backend}, {self:?}, {asked:?}");
        if result.is_err() {
            assert!(facts(&got) == before, "written in spite of {result:?}, {}", at());
            return;
        }
        let Some(all) = all else { return };
        for (i, (got, all)) in facts(&got).into_iter().zip(facts(all)).enumerate() {
            // What the builder did not ask `collect` for there is not.
            let is_there = has(i) && !(all.is_empty() && asked.rows > 0);
            assert!(!is_there || got == all, "{}: {got:x?} and {all:x?}, {}", OUTPUTS[i], at());
        }
    }
}
