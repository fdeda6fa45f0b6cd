//! Two models compared, and scores of sequences.

use crate::case::{Ignored, OwnedIds, shape};
use crate::input::Input;
use crate::layout::Layout;
use crate::mask::Mask;
use crate::number::{Logit, Number, keys};
use crate::oracle::argmax;
use crate::refusal::{UNTOUCHED, refuses, said};
use crate::threads::with_threads;
use half::{bf16, f16};
use xent::reference::{self, row_f64};
use xent::{Backend, Compare, CompareOutputs, CrossEntropy, Error, Logits, SequenceScore};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 8 {
        0 | 1 => check::<f32, f32>(&mut input),
        2 => check::<f32, bf16>(&mut input),
        3 => check::<f64, f32>(&mut input),
        4 => check::<f16, f64>(&mut input),
        5 => sequences::<f32>(&mut input),
        6 => sequences::<f64>(&mut input),
        _ => sequences::<bf16>(&mut input),
    }
}

#[derive(Debug)]
struct Pair<P, Q> {
    rows: usize,
    vocab: usize,
    p: Vec<P>,
    q: Vec<Q>,
    targets: Option<OwnedIds>,
    ignored: Ignored,
    temperature: f64,
    beta: f64,
    mask: Option<Mask>,
    /// Of the outputs, in the order of [`OUTPUTS`].
    lengths: [Option<usize>; 8],
}

const OUTPUTS: [&str; 8] = [
    "kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "base_logprobs",
    "other_logprobs",
    "delta_p",
    "same_top",
];

impl<P: Logit, Q: Logit> Pair<P, Q> {
    fn any(input: &mut Input<'_>) -> Self {
        let (rows, vocab) = shape(input);
        let ignored = match input.below(4) {
            0 => Ignored(vec![-100]),
            1 => Ignored(vec![0]),
            2 => Ignored(vec![]),
            _ => Ignored::any(input),
        };
        let targets = input.flag().then(|| {
            let len = input.length(rows);
            OwnedIds::any(input, len, vocab, &ignored)
        });
        let bits = input.byte();
        let mut lengths = [None; 8];
        for (i, len) in lengths.iter_mut().enumerate() {
            let is_given = targets.is_some() || !(4..7).contains(&i) || input.one_in(32);
            if bits >> i & 1 == 0 && is_given {
                *len = Some(input.length(rows));
            }
        }
        let (temperature, beta) =
            (input.option(&[1.0, 0.25, 2.0]), input.option(&[0.5, 0.0, 1.0, 0.3]));
        let mask = input.one_in(4).then(|| Mask::any(input, rows, vocab));
        let p: Vec<P> = (0..rows).flat_map(|_| input.row(vocab)).collect();
        let q: Vec<Q> = match input.byte() % 4 {
            0 => (0..rows).flat_map(|_| input.row(vocab)).collect(),
            // A model that is much like the other, or the same but for rounding.
            kind => {
                let by = if kind == 1 { 0.0 } else { input.option(&[1e-3, 1e-6, 0.1]) };
                let near =
                    |(i, p): (usize, &P)| Q::round(p.value() + by * ((i * 7 % 11) as f64 - 5.0));
                p.iter().enumerate().map(near).collect()
            }
        };
        Pair { rows, vocab, p, q, targets, ignored, temperature, beta, mask, lengths }
    }

    fn compare(&self, backend: Backend) -> Compare<'_> {
        let mut compare =
            Compare::new().backend(backend).temperature(self.temperature).beta(self.beta);
        compare = match &self.ignored.0[..] {
            [] => compare.no_ignore_index(),
            [one] => compare.ignore_index(*one),
            all => compare.ignore_indices(all),
        };
        if let Some(ids) = &self.targets {
            compare = compare.targets(ids.ids());
        }
        match &self.mask {
            Some(mask) => compare.allowed_tokens(mask.allowed()),
            None => compare,
        }
    }

    fn problems(&self) -> Vec<Error> {
        let (rows, vocab) = (self.rows, self.vocab);
        let mut problems = Vec::new();
        let mut option = |option, value: f64, allowed: bool, range| {
            if !allowed {
                problems.push(Error::Option { option, value: said(value), range });
            }
        };
        let (t, single) = (self.temperature, self.temperature as f32);
        let range = "a positive number of the range of f32";
        option("temperature", t, single.is_normal() && single > 0.0, range);
        option("beta", self.beta, (0.0..=1.0).contains(&self.beta), "between 0 and 1");
        for (i, (output, len)) in OUTPUTS.into_iter().zip(self.lengths).enumerate() {
            if let Some(len) = len.filter(|&len| len != rows) {
                problems.push(Error::OutputLength { output, len, expected: rows });
            }
            if len.is_some() && (4..7).contains(&i) && self.targets.is_none() {
                problems.push(Error::TargetCount { rows, targets: 0 });
            }
        }
        problems.extend(target_problem(self.targets.as_ref(), &self.ignored, rows, vocab));
        problems
    }

    fn is_ignored(&self, row: usize) -> bool {
        let id = self.targets.as_ref().map(|ids| ids.values()[row]);
        id.is_some_and(|id| self.ignored.contains(id))
    }
}

fn target_problem(
    ids: Option<&OwnedIds>,
    ignored: &Ignored,
    rows: usize,
    vocab: usize,
) -> Option<Error> {
    let ids = ids?.values();
    if ids.len() != rows {
        return Some(Error::TargetCount { rows, targets: ids.len() });
    }
    let is_fine = |id: i128| ignored.contains(id) || (0..vocab as i128).contains(&id);
    let row = ids.iter().position(|&id| !is_fine(id))?;
    Some(Error::TargetOutOfRange { row, target: ids[row], vocab })
}

#[derive(Clone, Debug)]
struct Results {
    numbers: [Vec<f64>; 7],
    same_top: Vec<bool>,
}

impl Results {
    fn keys(&self) -> ([Vec<u64>; 7], &[bool]) {
        (self.numbers.clone().map(|values| keys(&values)), &self.same_top)
    }
}

fn compared<P: Logit, Q: Logit>(
    pair: &Pair<P, Q>,
    backend: Backend,
    layouts: [Layout; 2],
    all: bool,
) -> Result<Results, Error> {
    let len = |i: usize| pair.lengths[i];
    let mut out = Results {
        numbers: [0, 1, 2, 3, 4, 5, 6].map(|i| vec![UNTOUCHED; len(i).unwrap_or(0)]),
        same_top: vec![true; len(7).unwrap_or(0)],
    };
    let before = out.clone();
    let [kl, reverse_kl, jsd, total_variation, base, other, delta_p] = &mut out.numbers;
    let mut outputs = CompareOutputs::new();
    macro_rules! give {
        ($($i:literal $set:ident $values:expr),*) => {$(
            if len($i).is_some() {
                outputs = outputs.$set($values);
            }
        )*};
    }
    give!(0 kl kl, 1 reverse_kl reverse_kl, 2 jsd jsd, 3 total_variation total_variation);
    give!(4 base_logprobs base, 5 other_logprobs other, 6 delta_p delta_p);
    give!(7 same_top & mut out.same_top);
    let (p, q) = (
        layouts[0].place(&pair.p, pair.rows, pair.vocab),
        layouts[1].place(&pair.q, pair.rows, pair.vocab),
    );
    let compare = pair.compare(backend);
    let result = if all {
        compare.evaluate(p.logits(), q.logits(), outputs).map(|all| {
            let ignored = (0..pair.rows).filter(|&row| pair.is_ignored(row)).count() as u64;
            assert_eq!((all.count(), all.ignored()), (pair.rows as u64 - ignored, ignored));
            assert_eq!(all.nan_rows(), all.kl().iter().filter(|kl| kl.is_nan()).count() as u64);
            let _ = (all.mean_kl(), all.same_top(), all.kl_percentiles([0.0, 0.3, f64::NAN, 2.0]));
            if let Some(at) = all.at_targets() {
                let _ = (at.base_perplexity(), at.other_perplexity());
                let r = at.correlation();
                assert!(r.is_nan() || r.abs() <= 1.0, "{at:?}");
                let _ = (at.log_ratio(), at.ratio(), at.difference(), at.mean_delta_p());
                let _ = (at.rms_delta_p(), at.delta_p_percentiles([0.5, -1.0]));
            }
            let mut twice = all.clone();
            twice.append(all.clone());
            assert_eq!(twice.count(), 2 * all.count());
            assert_eq!(twice.nan_rows(), 2 * all.nan_rows());
            assert_eq!(twice.first_nan_row(), all.first_nan_row());
        })
    } else {
        compare.divergences(p.logits(), q.logits(), outputs)
    };
    if result.is_err() {
        assert!(out.keys() == before.keys(), "written in spite of {result:?}");
    }
    result.map(|()| out)
}

fn check<P: Logit, Q: Logit>(input: &mut Input<'_>) {
    let layouts = [(); 2].map(|()| [Layout::any(input), Layout::any(input)]);
    let pair = Pair::<P, Q>::any(input);
    let problems = pair.problems();
    let is_large = pair.rows * pair.vocab > 30_000;
    let mut want: Option<Results> = None;
    for (i, &backend) in Backend::available().iter().enumerate() {
        let at = || format!("{backend}, {layouts:?}, {pair:?}");
        let got = |layouts, all, three| {
            let result = with_threads(three, || compared(&pair, backend, layouts, all));
            refuses(&result, &problems);
            result.ok()
        };
        let plain = got([Layout::CONTIGUOUS; 2], false, i % 2 == 0);
        let other = got(layouts[i % 2], true, i % 2 == 1);
        let (Some(results), Some(other)) = (plain, other) else { continue };
        assert!(results.keys() == other.keys(), "{results:?} and {other:?}, {}", at());
        if backend.is_bit_exact()
            && let Some(want) = &want
        {
            assert!(results.keys() == want.keys(), "{results:?} and {want:?}, {}", at());
            continue;
        }
        if !is_large {
            (0..pair.rows).for_each(|row| oracle(&pair, row, &results, &at));
        }
        if backend.is_bit_exact() {
            want = Some(results);
        }
    }
}

fn oracle<P: Logit, Q: Logit>(
    pair: &Pair<P, Q>,
    row: usize,
    results: &Results,
    at: &dyn Fn() -> String,
) {
    let number = |i: usize| results.numbers[i].get(row).copied();
    if pair.is_ignored(row) {
        assert!((0..7).all(|i| number(i).is_none_or(|x| x.to_bits() == 0)), "{}", at());
        assert!(results.same_top.get(row) != Some(&true), "{}", at());
        return;
    }
    let of = |values: Vec<f64>| -> Vec<f64> {
        let mut values = values;
        if let Some(mask) = &pair.mask {
            for (class, x) in values.iter_mut().enumerate() {
                *x = if mask.is_allowed(row, class) { *x } else { f64::NEG_INFINITY };
            }
        }
        values
    };
    let (from, vocab) = (row * pair.vocab, pair.vocab);
    let p = of(pair.p[from..][..vocab].iter().map(|x| x.value()).collect());
    let q = of(pair.q[from..][..vocab].iter().map(|x| x.value()).collect());
    let is_poisoned = |x: &[f64]| x.is_empty() || !x[argmax(x)].is_finite();
    let poisoned = is_poisoned(&p) || is_poisoned(&q);
    if let Some(&same) = results.same_top.get(row) {
        assert_eq!(same, !poisoned && argmax(&p) == argmax(&q), "row {row}, {}", at());
    }
    // Divisions by these are exact; and differences of the largest numbers of all are not.
    let is_exact = [1.0, 0.25, 0.5, 2.0, 4.0].contains(&pair.temperature);
    let is_far = |x: &[f64]| x.iter().any(|x| x.is_finite() && x.abs() > 1e290);
    let is_tiny = |x: &[f64]| x.iter().any(|x| *x != 0.0 && x.abs() < 1e-290);
    if !is_exact || [&p, &q].into_iter().any(|x| is_far(x) || is_tiny(x)) {
        return;
    }
    let divided = |x: &[f64]| x.iter().map(|x| x / pair.temperature).collect::<Vec<_>>();
    let (p, q) = (divided(&p), divided(&q));
    let close = |what: &str, got: Option<f64>, want: f64, absolute: f64, relative: f64| {
        let Some(got) = got else { return };
        let same = got == want || got.is_nan() && want.is_nan();
        let near = (got - want).abs() <= absolute + relative * want.abs();
        assert!(same || near, "{what} of row {row}: {got:e} for {want:e}, {}", at());
    };
    close("kl", number(0), reference::kl(&p, &q), 1e-14, 1e-13);
    close("reverse kl", number(1), reference::kl(&q, &p), 1e-14, 1e-13);
    close("jsd", number(2), reference::jsd(&p, &q, pair.beta), 1e-14, 1e-13);
    close("tv", number(3), reference::total_variation(&p, &q), 1e-14, 1e-13);
    let Some(ids) = &pair.targets else { return };
    let class = ids.values()[row] as usize;
    let logprob = |x: &[f64]| if poisoned { f64::NAN } else { -row_f64(x, class).loss.hi };
    close("base", number(4), logprob(&p), 1e-300, 4e-15);
    close("other", number(5), logprob(&q), 1e-300, 4e-15);
    let delta = logprob(&q).exp() - logprob(&p).exp();
    close("delta p", number(6), delta, 1e-14, 0.0);
}

/// Scores of sequences are sums of what their rows have; the same as of calls with their rows alone.
fn sequences<T: Logit>(input: &mut Input<'_>) {
    let layout = Layout::any(input);
    let (rows, vocab) = shape(input);
    let mut offsets = vec![0];
    while offsets[offsets.len() - 1] < rows && offsets.len() < 20 {
        offsets.push((offsets[offsets.len() - 1] + input.below(5)).min(rows));
    }
    *offsets.last_mut().expect("there is one") = if offsets.len() > 1 { rows } else { 0 };
    match input.byte() {
        101 => offsets.clear(),
        102 => offsets.push(rows + 1),
        103 => offsets[0] = 1,
        104 => offsets.reverse(),
        105 => offsets.push(usize::MAX),
        _ => {}
    }
    let ignored = match input.one_in(4) {
        true => Ignored::any(input),
        false => Ignored(vec![-100]),
    };
    let len = input.length(rows);
    let ids = OwnedIds::any(input, len, vocab, &ignored);
    let lengths = input.length(offsets.len().saturating_sub(1));
    let x: Vec<T> = (0..rows).flat_map(|_| input.row(vocab)).collect();
    let none = offsets.is_empty().then_some(Error::NoOffsets);
    let mut problems: Vec<Error> =
        none.or_else(|| offset_problem(&offsets, rows)).into_iter().collect();
    if problems.is_empty() && lengths != offsets.len() - 1 {
        let (output, expected) = ("scores", offsets.len() - 1);
        problems.push(Error::OutputLength { output, len: lengths, expected });
    }
    problems.extend(target_problem(Some(&ids), &ignored, rows, vocab));
    let untouched = SequenceScore { logprob: UNTOUCHED, tokens: 77, first_mismatch: Some(7) };
    let mut want: Option<Vec<SequenceScore>> = None;
    for (i, &backend) in Backend::available().iter().enumerate() {
        let at = || format!("{backend}, {offsets:?}, {ids:?}, {rows} x {vocab}, {x:?}");
        let ce = CrossEntropy::new().backend(backend).ignore_indices(&ignored.0);
        let mut scores = vec![untouched; lengths];
        let placed = layout.place(&x, rows, vocab);
        let result = with_threads(i % 2 == 0, || {
            ce.sequences(placed.logits(), ids.ids(), &offsets, &mut scores)
        });
        refuses(&result, &problems);
        if result.is_err() {
            assert!(scores.iter().all(|score| *score == untouched), "{}", at());
            continue;
        }
        let classes = ids.values();
        for (score, pair) in scores.iter().zip(offsets.windows(2)) {
            let (first, count) = (pair[0], pair[1] - pair[0]);
            let view = Logits::new(&x[first * vocab..pair[1] * vocab], count, vocab);
            // Without a list: -100 for whatever is ignored.
            let plain = |&id| if ignored.contains(id) { -100 } else { id as i64 };
            let own: Vec<i64> = classes[first..pair[1]].iter().map(plain).collect();
            let one = CrossEntropy::new().backend(backend);
            let alone = one.score_sequences(view.expect("some rows"), &own, &[0, count]);
            assert!(same_score(&alone.expect("valid")[0], score), "{score:?} alone, {}", at());
            let row = |i: usize| {
                let row: Vec<f64> =
                    x[(first + i) * vocab..][..vocab].iter().map(|x| x.value()).collect();
                (own[i] != -100).then(|| (row, own[i] as usize))
            };
            let kept = (0..count).filter_map(row);
            let tokens = kept.clone().count();
            let missed = |(x, class): (Vec<f64>, usize)| {
                argmax(&x) != class || row_f64(&x, class).loss.hi.is_nan()
            };
            let mismatch = (0..count).find(|&i| row(i).is_some_and(missed));
            assert_eq!((score.tokens, score.first_mismatch), (tokens, mismatch), "{}", at());
            let losses: Vec<f64> = kept.map(|(x, class)| row_f64(&x, class).loss.hi).collect();
            let exact: f64 = losses.iter().map(|loss| 0.0 - loss).sum();
            let size: f64 = losses.iter().map(|loss| loss.abs()).sum();
            // A loss of f32 has about 30 digits of two, and its sum no fewer.
            let near = (score.logprob - exact).abs() <= 1e-7 * size + 1e-37;
            let same = score.logprob == exact || score.logprob.is_nan() && exact.is_nan();
            assert!(same || near || size > 1e38, "{score:?} for {exact:e}, {}", at());
        }
        if backend.is_bit_exact() {
            let want = want.get_or_insert_with(|| scores.clone());
            let same = scores.iter().zip(&*want).all(|(a, b)| same_score(a, b));
            assert!(same, "{scores:?} and {want:?}, {}", at());
        }
    }
}

fn same_score(a: &SequenceScore, b: &SequenceScore) -> bool {
    let rest = |score: &SequenceScore| (score.tokens, score.first_mismatch);
    a.logprob.key() == b.logprob.key() && rest(a) == rest(b)
}

fn offset_problem(offsets: &[usize], rows: usize) -> Option<Error> {
    let (&first, &last) = (offsets.first()?, offsets.last()?);
    if first != 0 {
        return Some(Error::OffsetBound { index: 0, offset: first, expected: 0 });
    }
    if let Some(i) = (1..offsets.len()).find(|&i| offsets[i] < offsets[i - 1]) {
        let (offset, before) = (offsets[i], offsets[i - 1]);
        return Some(Error::OffsetOrder { index: i, offset, before });
    }
    let index = offsets.len() - 1;
    (last != rows).then_some(Error::OffsetBound { index, offset: last, expected: rows })
}
