//! [`LogProbs`] against the oracle, and its results against each other: their bits depend on the row and the options only.

use common::{Kind, Rng, any_target, for_each_backend, property, thin};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use xent::reference::{self, Precise};
use xent::{
    AllowedTokens, Backend, CrossEntropy, Element, Error, LogProbs, LogitBias, Logits, RowOutputs,
    RowStats, Sample, Shard, Targets, TokenLogProbs, TokenOutputs, bf16, f16,
};

const INF: f32 = f32::INFINITY;

trait Bits: Copy + Debug {
    /// One NaN for all.
    fn bits(self) -> u64;
    const NAN: Self;
    const NEG_INF: Self;
}

/// A type of logits.
trait Number: Element<Real: Bits + Ready + Into<f64>> + Bits + Into<f64> {
    const NAME: &'static str;
    fn of(x: f32) -> Self;
    /// As [`LogProbs`] computes it.
    fn transformed(self, bias: Option<f32>, temperature: f64) -> Self::Real;
    fn ulp(got: Self::Real, exact: Precise) -> f64;
    fn ulp_of(x: f64) -> f64;
    fn exact_log_softmax(row: &[Self]) -> Vec<Precise>;
    fn exact_logsumexp(row: &[Self]) -> Precise;
    fn exact_entropy(row: &[Self]) -> Precise;
}

fn precise(hi: f64) -> Precise {
    Precise { hi, lo: 0.0 }
}

macro_rules! bits {
    ($($type:ident)*) => {$(
        impl Bits for $type {
            fn bits(self) -> u64 {
                if self.is_nan() { u64::MAX } else { self.to_bits().into() }
            }
            const NAN: Self = $type::NAN;
            const NEG_INF: Self = $type::NEG_INFINITY;
        }
    )*};
}
bits!(f32 f64 bf16 f16);

macro_rules! single {
    ($($type:ident $of:expr;)*) => {$(
        impl Number for $type {
            const NAME: &'static str = stringify!($type);
            fn of(x: f32) -> Self {
                $of(x)
            }
            fn transformed(self, bias: Option<f32>, temperature: f64) -> f32 {
                let x = f32::from(self);
                bias.map_or(x, |bias| if bias == f32::NEG_INFINITY { bias } else { x + bias })
                    / temperature as f32
            }
            fn ulp(got: f32, exact: Precise) -> f64 {
                reference::ulp_error(got, exact.hi)
            }
            fn ulp_of(x: f64) -> f64 {
                let x = x as f32;
                f64::from(x) - f64::from(x.next_down())
            }
            fn exact_log_softmax(row: &[Self]) -> Vec<Precise> {
                reference::log_softmax(row).into_iter().map(precise).collect()
            }
            fn exact_logsumexp(row: &[Self]) -> Precise {
                precise(reference::logsumexp(row))
            }
            fn exact_entropy(row: &[Self]) -> Precise {
                precise(reference::entropy(row))
            }
        }
    )*};
}
single! {
    f32 |x| x;
    bf16 bf16::from_f32;
    f16 f16::from_f32;
}

impl Number for f64 {
    const NAME: &'static str = "f64";
    fn of(x: f32) -> Self {
        // A third, so that not all digits are those of an `f32`.
        f64::from(x) / 3.0
    }
    fn transformed(self, bias: Option<f32>, temperature: f64) -> f64 {
        bias.map_or(self, |bias| {
            if bias == f32::NEG_INFINITY { bias.into() } else { self + f64::from(bias) }
        }) / temperature
    }
    fn ulp(got: f64, exact: Precise) -> f64 {
        reference::ulp_error_f64(got, exact)
    }
    fn ulp_of(x: f64) -> f64 {
        x - x.next_down()
    }
    fn exact_log_softmax(row: &[Self]) -> Vec<Precise> {
        reference::log_softmax_f64(row)
    }
    fn exact_logsumexp(row: &[Self]) -> Precise {
        reference::logsumexp_f64(row)
    }
    /// From probabilities of 68 bits: all terms have one sign, so that their errors add up to next to nothing.
    fn exact_entropy(row: &[Self]) -> Precise {
        let (p, log_p) = (reference::softmax_f64(row), reference::log_softmax_f64(row));
        let (mut sum, mut lost) = (0.0_f64, 0.0);
        for (p, l) in p.into_iter().zip(log_p).filter(|(p, _)| p.hi != 0.0) {
            let term = -p.hi * l.hi;
            let next = sum + term;
            lost += if sum >= term { (sum - next) + term } else { (term - next) + sum };
            lost += (-p.hi).mul_add(l.hi, -term) - p.hi * l.lo - p.lo * l.hi;
            sum = next;
        }
        Precise { hi: sum, lo: lost }
    }
}

fn all_bits<T: Bits>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.bits()).collect()
}

fn ids(values: &[i64]) -> Vec<u64> {
    values.iter().map(|&id| id as u64).collect()
}

/// Everything that was found, by name.
fn found_bits<R: Bits>(found: &TokenLogProbs<R>) -> Vec<(&'static str, Vec<u64>)> {
    vec![
        ("logprobs", all_bits(&found.logprobs)),
        ("ranks", ids(&found.ranks)),
        ("strict_ranks", ids(&found.strict_ranks)),
        ("candidates", all_bits(&found.candidates)),
        ("top_ids", ids(&found.top_ids)),
        ("top_logprobs", all_bits(&found.top_logprobs)),
        ("argmax", ids(&found.argmax)),
        ("entropy", all_bits(&found.entropy)),
        ("varentropy", all_bits(&found.varentropy)),
        ("logsumexp", all_bits(&found.logsumexp)),
        ("sampled", ids(&found.sampled)),
        ("sampled_logprobs", all_bits(&found.sampled_logprobs)),
    ]
}

#[track_caller]
fn assert_same<R: Bits>(got: &TokenLogProbs<R>, want: &TokenLogProbs<R>, what: &str) {
    for ((name, got), (_, want)) in found_bits(got).into_iter().zip(found_bits(want)) {
        assert_eq!(got, want, "{name}: {what}");
    }
}

/// The lengths around everything that kernels count in, and a real vocabulary.
fn lengths() -> Vec<usize> {
    let all =
        [1, 2, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 32_767, 32_768, 32_769, 50_257, 98_309];
    let most = if thin() > 1 { 1025 } else { usize::MAX };
    all.into_iter().filter(|&vocab| vocab <= most).collect()
}

/// Rows that break what can be broken, by name.
fn rows(rng: &mut Rng, vocab: usize) -> Vec<(String, Vec<f32>)> {
    let kinds = Kind::ORDINARY.iter().chain([&Kind::Special, &Kind::Special]);
    let mut rows: Vec<_> = kinds.map(|&kind| (format!("{kind:?}"), kind.row(rng, vocab))).collect();
    let mut add = |name: &str, row: Vec<f32>| rows.push((name.to_owned(), row));
    let normal = |rng: &mut Rng, around: f32, by: f32| -> Vec<f32> {
        (0..vocab).map(|_| around + by * rng.normal()).collect()
    };
    for rest in [1e-3, 1e-7, 1e-12, 1e-30] {
        // The largest has the probability 1 - rest, about.
        let mut row = normal(rng, 0.0, 0.1);
        row[rng.below(vocab)] = (vocab as f64 / rest).ln() as f32;
        add(&format!("confident, {rest:e}"), row);
    }
    for (around, by) in [
        (-20.0, 0.01),
        (1e3, 0.01),
        (1e5, 1.0),
        (1e6, 3.0),
        (1e30, 1e24),
        (3e38, 1e37),
        (-3e38, 1e37),
    ] {
        add(&format!("{around:e} +- {by:e}"), normal(rng, around, by));
    }
    for special in [f32::NAN, INF, -INF] {
        let mut row = normal(rng, 1.0, 2.0);
        row[rng.below(vocab)] = special;
        add(&format!("a {special}"), row);
    }
    let mut row = normal(rng, 1.0, 2.0);
    row[rng.below(vocab)] = INF;
    row[rng.below(vocab)] = f32::NAN;
    add("inf and NaN", row);
    // Two that share all but nothing, apart from each other.
    let mut row = normal(rng, -60.0, 0.5);
    row[rng.below(vocab)] = 3.0;
    row[vocab - 1] = 2.5;
    add("two", row);
    rows
}

/// The worst error of each output of each type, and where.
#[derive(Default)]
struct Worst(BTreeMap<(&'static str, &'static str), (f64, String)>);

impl Worst {
    fn add(&mut self, of: (&'static str, &'static str), error: f64, what: impl FnOnce() -> String) {
        let worst = self.0.entry(of).or_insert((0.0, String::new()));
        if error > worst.0 || error.is_nan() {
            *worst = (error, what());
        }
    }
}

/// What is documented, in ULP of the type of the results. Of the varentropy in 2^-20 of the mean square.
fn bound((of_type, output): (&str, &str)) -> f64 {
    match (of_type, output) {
        (_, "varentropy") => 1.0,
        (_, "varentropy, of the mean square alone" | "logsumexp, also near 0") => f64::INFINITY,
        (_, "entropy") => 4.0,
        ("f64", _) => 4.0,
        (_, "logprobs") => 1.0,
        _ => 2.0,
    }
}

/// All that is known of a row.
struct Oracle {
    log_p: Vec<Precise>,
    logsumexp: Precise,
    entropy: Precise,
    varentropy: f64,
    mean_square: f64,
    argmax: usize,
    top: Vec<usize>,
}

impl Oracle {
    fn new<T: Number>(row: &[T]) -> Self {
        let log_p = T::exact_log_softmax(row);
        let top_log_p = log_p.iter().map(|l| l.hi).fold(f64::NEG_INFINITY, f64::max);
        let square = |l: &Precise| match l.hi.exp() {
            0.0 => 0.0,
            p => p * (l.hi - top_log_p).powi(2),
        };
        Oracle {
            logsumexp: T::exact_logsumexp(row),
            entropy: T::exact_entropy(row),
            varentropy: reference::varentropy(row),
            mean_square: log_p.iter().map(square).sum(),
            argmax: reference::row(row, 0).argmax,
            top: reference::top_k(row, LogProbs::MAX_TOP_K),
            log_p,
        }
    }
}

/// Row after row against the oracle, with four targets each.
fn check_against_oracle<T: Number>(worst: &mut Worst) {
    let mut rng = Rng::new(17);
    for (n, vocab) in lengths().into_iter().enumerate() {
        if T::NAME == "f64" && vocab > 50_257 {
            continue;
        }
        for (m, (name, row)) in rows(&mut rng, vocab).into_iter().enumerate() {
            let row: Vec<T> = row.into_iter().map(T::of).collect();
            let oracle = Oracle::new(&row);
            let targets = [oracle.argmax, rng.below(vocab), vocab - 1, 0].map(|id| id as i64);
            let candidates: Vec<u32> = (0..12).map(|_| rng.below(vocab) as u32).collect();
            let samples: Vec<Sample> = (0..4).map(|i| Sample::new(5, i)).collect();
            let ks = [0, 1, 2, 20, 63, 64, 65, 128, vocab];
            let k = ks[(n + m) % ks.len()].min(vocab).min(128);
            let views = [&row[..]; 4];
            let logits = Logits::from_rows(&views, vocab).unwrap();
            for_each_backend_quietly(|backend| {
                let ask = LogProbs::new().targets(&targets).candidates(&candidates, 3).top_k(k);
                let ask = ask.ranks(true).entropy(true).varentropy(true).sample(&samples);
                let found = ask.backend(backend).collect(logits).unwrap();
                let what = || format!("{name} of {vocab}, {backend}");
                check_rows(&row, &oracle, &targets, &candidates, &found, worst, &what);
                if T::NAME != "f64" {
                    let mut want = [T::Real::default(); 4];
                    let ce = CrossEntropy::new().backend(backend);
                    let outputs = RowOutputs::new().logprobs(&mut want);
                    ce.evaluate(logits, &targets, outputs).unwrap();
                    assert_eq!(all_bits(&found.logprobs), all_bits(&want), "{}", what());
                }
            });
        }
    }
}

/// [`for_each_backend`] says which are run; not for each row.
fn for_each_backend_quietly(test: impl FnMut(Backend)) {
    Backend::available().iter().copied().for_each(test);
}

fn check_rows<T: Number>(
    row: &[T],
    oracle: &Oracle,
    targets: &[i64],
    candidates: &[u32],
    found: &TokenLogProbs<T::Real>,
    worst: &mut Worst,
    what: &dyn Fn() -> String,
) {
    let k = found.k;
    let each = candidates.len() / targets.len();
    let mut ulp = |output, got: T::Real, exact: Precise, id: i64| {
        worst.add((T::NAME, output), T::ulp(got, exact), || {
            format!("{}, {output} {id}: {got:?} for {exact:?}", what())
        });
    };
    for (i, &target) in targets.iter().enumerate() {
        let log_p = |id: i64| oracle.log_p[id as usize];
        ulp("logprobs", found.logprobs[i], log_p(target), target);
        ulp("logsumexp, also near 0", found.logsumexp[i], oracle.logsumexp, -1);
        ulp("entropy", found.entropy[i], oracle.entropy, -1);
        let here = i * each..(i + 1) * each;
        for (&id, &got) in candidates[here.clone()].iter().zip(&found.candidates[here]) {
            let id = id.into();
            ulp("candidates", got, log_p(id), id);
        }
        let (got_ids, got) = (&found.top_ids[i * k..][..k], &found.top_logprobs[i * k..][..k]);
        let want: Vec<i64> = oracle.top[..k].iter().map(|&id| id as i64).collect();
        assert_eq!(got_ids, want, "top {k}: {}", what());
        for (j, (&id, &got_of_id)) in got_ids.iter().zip(got).enumerate() {
            ulp("top_k", got_of_id, log_p(id), id);
            let descends =
                j == 0 || !matches!(got_of_id.partial_cmp(&got[j - 1]), Some(Ordering::Greater));
            assert!(descends, "{}", what());
        }
        let (ge, gt) = reference::rank(row, target as usize);
        let ranks = (found.ranks[i], found.strict_ranks[i]);
        assert_eq!(ranks, (ge as i64, gt as i64), "target {target}: {}", what());
        assert_eq!(found.argmax[i], oracle.argmax as i64, "{}", what());
        let id = found.sampled[i];
        let can_sample = oracle.entropy.hi.is_finite();
        assert_eq!(id >= 0, can_sample, "sampled {id}: {}", what());
        let exact = if can_sample { log_p(id) } else { precise(f64::NAN) };
        assert!(!can_sample || exact.hi > f64::NEG_INFINITY, "sampled {id}: {}", what());
        ulp("sampled", found.sampled_logprobs[i], exact, id);
    }
    // Where a largest logit and what is added to it cancel, digits are lost.
    let size = row[oracle.argmax].into().abs().max(1.0);
    for &got in &found.logsumexp {
        let exact = oracle.logsumexp;
        let error = if size.is_finite() && exact.hi.abs() < size {
            ((got.into() - exact.hi) - exact.lo).abs() / T::ulp_of(size)
        } else {
            T::ulp(got, exact)
        };
        worst.add((T::NAME, "logsumexp"), error, || format!("{}: {got:?} {exact:?}", what()));
    }
    for &got in &found.varentropy {
        let got: f64 = got.into();
        let off = if got.is_nan() && oracle.varentropy.is_nan() {
            0.0
        } else {
            (got - oracle.varentropy).abs()
        };
        // Nothing is below the least number.
        let of_square = oracle.mean_square.max(f64::from(f32::MIN_POSITIVE)) / 1_048_576.0;
        let of_largest = if T::NAME == "f64" { 0.0 } else { cancelled(row) };
        for (name, unit) in [
            ("varentropy", of_square + of_largest),
            ("varentropy, of the mean square alone", of_square),
        ] {
            let error = off / unit;
            worst.add((T::NAME, name), if error.is_nan() { f64::INFINITY } else { error }, || {
                let Oracle { varentropy, mean_square, .. } = oracle;
                format!("{}: {got:e} for {varentropy:e}, mean square {mean_square:e}", what())
            });
        }
    }
}

/// What cancels in a variance: moments are kept around 0 up to logits of 363,000.
fn cancelled<T: Number>(row: &[T]) -> f64 {
    let finite = row.iter().map(|&x| x.into()).filter(|x: &f64| x.is_finite());
    finite.fold(0.0, |max: f64, x| max.max(x.abs())).min(4e5).powi(2) * 2f64.powi(-50)
}

#[test]
fn all_outputs_are_as_exact_as_documented() {
    for_each_backend(|_| {});
    let mut worst = Worst::default();
    check_against_oracle::<f32>(&mut worst);
    check_against_oracle::<bf16>(&mut worst);
    check_against_oracle::<f16>(&mut worst);
    check_against_oracle::<f64>(&mut worst);
    let mut wrong = Vec::new();
    for (of, (error, what)) in worst.0 {
        println!("{of:?}: {error:.3}, {what}");
        if error > bound(of) {
            wrong.push(format!("{of:?}: {error:.3} > {}: {what}", bound(of)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows of a batch with their targets, one in eight ignored.
struct Batch<T> {
    rows: usize,
    vocab: usize,
    logits: Vec<T>,
    targets: Vec<i64>,
    candidates: Vec<i64>,
    samples: Vec<Sample>,
    k: usize,
}

const CANDIDATES: usize = 2;

impl<T: Number> Batch<T> {
    fn random(rng: &mut Rng, rows: usize, vocab: usize) -> Self {
        let mut batch = Batch {
            rows,
            vocab,
            logits: Vec::new(),
            targets: Vec::new(),
            candidates: (0..rows * CANDIDATES).map(|_| rng.below(vocab) as i64).collect(),
            samples: Vec::new(),
            k: rng.below(vocab.min(128) + 1),
        };
        for i in 0..rows {
            let mut row = Kind::any(rng).row(rng, vocab);
            let ignored = rng.below(8) == 0;
            batch.targets.push(if ignored { -100 } else { any_target(rng, &row) as i64 });
            if ignored {
                // If it were read, it would show.
                row.fill(f32::NAN);
            }
            batch.logits.extend(row.into_iter().map(T::of));
            let temperature = rng.pick(&[0.0, 0.3, 1.0, 2.5]);
            batch.samples.push(Sample::new(rng.bits(), i as u64).temperature(temperature));
        }
        batch
    }

    fn view(&self) -> Logits<'_, T> {
        Logits::new(&self.logits, self.rows, self.vocab).unwrap()
    }

    fn ask(&self) -> LogProbs<'_> {
        LogProbs::new()
            .targets(&self.targets)
            .candidates(&self.candidates, CANDIDATES)
            .top_k(self.k)
            .ranks(true)
            .entropy(true)
            .varentropy(true)
            .sample(&self.samples)
    }
}

/// Some of the outputs, into buffers that hold something else before. The rest is empty.
fn some_outputs<T: Number>(
    ask: &LogProbs<'_>,
    logits: Logits<'_, T>,
    k: usize,
    wanted: u32,
) -> TokenLogProbs<T::Real> {
    let n = logits.rows();
    let has = |bit: u32| wanted >> bit & 1 == 1;
    let reals = |bit: u32, each: usize| vec![T::Real::NAN; if has(bit) { n * each } else { 0 }];
    let integers = |bit: u32, each: usize| vec![-7; if has(bit) { n * each } else { 0 }];
    let mut found = TokenLogProbs::<T::Real>::default();
    found.k = k;
    found.logprobs = reals(0, 1);
    found.ranks = integers(1, 1);
    found.strict_ranks = integers(2, 1);
    found.candidates = reals(3, CANDIDATES);
    (found.top_ids, found.top_logprobs) = (integers(4, k), reals(4, k));
    found.argmax = integers(5, 1);
    found.entropy = reals(6, 1);
    found.varentropy = reals(7, 1);
    found.logsumexp = reals(8, 1);
    found.sampled = integers(9, 1);
    found.sampled_logprobs = reals(10, 1);
    let mut out = TokenOutputs::new();
    if has(0) {
        out = out.logprobs(&mut found.logprobs);
    }
    if has(1) {
        out = out.ranks(&mut found.ranks);
    }
    if has(2) {
        out = out.strict_ranks(&mut found.strict_ranks);
    }
    if has(3) {
        out = out.candidates(&mut found.candidates);
    }
    if has(4) {
        out = out.top_k(&mut found.top_ids, &mut found.top_logprobs);
    }
    if has(5) {
        out = out.argmax(&mut found.argmax);
    }
    if has(6) {
        out = out.entropy(&mut found.entropy);
    }
    if has(7) {
        out = out.varentropy(&mut found.varentropy);
    }
    if has(8) {
        out = out.logsumexp(&mut found.logsumexp);
    }
    if has(9) {
        out = out.sampled(&mut found.sampled);
    }
    if has(10) {
        out = out.sampled_logprobs(&mut found.sampled_logprobs);
    }
    ask.run(logits, out).unwrap();
    found
}

/// One in eight rows is ignored, and has 0 and -1 for everything.
fn check_ignored<T: Number>(batch: &Batch<T>, found: &TokenLogProbs<T::Real>, what: &str) {
    let zero = T::Real::default().bits();
    for i in (0..batch.rows).filter(|&i| batch.targets[i] == -100) {
        let k = found.k;
        let reals = [&found.logprobs, &found.entropy, &found.varentropy, &found.logsumexp];
        for reals in reals.into_iter().chain([&found.sampled_logprobs]) {
            assert_eq!(reals[i].bits(), zero, "{what}");
        }
        for reals in [&found.top_logprobs[i * k..][..k], &found.candidates[i * CANDIDATES..][..2]] {
            assert!(reals.iter().all(|x| x.bits() == zero), "{what}");
        }
        assert!(found.top_ids[i * k..][..k].iter().all(|&id| id == -1), "{what}");
        assert_eq!((found.ranks[i], found.strict_ranks[i]), (0, 0), "{what}");
        assert_eq!((found.argmax[i], found.sampled[i]), (-1, -1), "{what}");
    }
}

/// Bits do not depend on which other outputs are wanted, nor on the layout of the logits.
fn check_batch<T: Number>(seed: u64, rows: usize, vocab: usize) {
    let mut rng = Rng::new(seed);
    let batch = Batch::<T>::random(&mut rng, rows, vocab);
    for &backend in Backend::available() {
        let what = format!("{} {rows} x {vocab}, {backend}", T::NAME);
        let ask = batch.ask().backend(backend);
        let all = ask.collect(batch.view()).unwrap();
        check_ignored(&batch, &all, &what);
        let all_of = found_bits(&all);
        // Each alone, and some together.
        for wanted in (0..11).map(|bit| 1 << bit).chain((0..5).map(|_| rng.below(1 << 11) as u32)) {
            let some = found_bits(&some_outputs(&ask, batch.view(), batch.k, wanted));
            for ((name, some), (_, all)) in some.into_iter().zip(&all_of) {
                assert!(some.is_empty() || some == *all, "{name} of {wanted:b}, {what}");
            }
        }
        if T::NAME != "f64" {
            let mut want = vec![T::Real::default(); rows];
            let ce = CrossEntropy::new().backend(backend);
            ce.evaluate(batch.view(), &batch.targets, RowOutputs::new().logprobs(&mut want))
                .unwrap();
            assert_eq!(all_bits(&all.logprobs), all_bits(&want), "{what}");
        }

        let stride = vocab + 1 + rng.below(5);
        let mut gaps = vec![T::NAN; rows * stride];
        for (to, row) in gaps.chunks_mut(stride).zip(batch.logits.chunks(vocab)) {
            to[..vocab].copy_from_slice(row);
        }
        let strided = Logits::with_stride(&gaps, rows, vocab, stride).unwrap();
        assert_same(&ask.collect(strided).unwrap(), &all, &format!("strided, {what}"));
        let list: Vec<&[T]> = gaps.chunks(stride).collect();
        let list = Logits::from_rows(&list, vocab).unwrap();
        assert_same(&ask.collect(list).unwrap(), &all, &format!("from_rows, {what}"));
        let mut columns = vec![T::NAN; rows * vocab];
        for (i, row) in batch.logits.chunks(vocab).enumerate() {
            for (j, &x) in row.iter().enumerate() {
                columns[j * rows + i] = x;
            }
        }
        let columns = Logits::classes_first(&columns, 1, vocab, rows).unwrap();
        assert_same(&ask.collect(columns).unwrap(), &all, &format!("classes_first, {what}"));
        let view = Logits::strided(&gaps, [1, rows, vocab], [0, stride, 1]).unwrap();
        assert_same(&ask.collect(view).unwrap(), &all, &format!("a view, {what}"));
    }
}

/// What is done to logits has the bits of having it done before.
fn check_transform<T: Number>(seed: u64, rows: usize, vocab: usize) {
    let mut rng = Rng::new(seed);
    let mut batch = Batch::<T>::random(&mut rng, rows, vocab);
    // Halves are widened first, the sum would have to be rounded back.
    let temperature = rng.pick(&[1.0, 0.7, 2.0, 1.0 / 3.0, 1e-3, 50.0]);
    let words = vocab.div_ceil(32);
    let share = rng.pick(&[u32::MAX, 0, 0x5555_5555]);
    let mask: Vec<u32> = (0..rows * words).map(|_| rng.bits() as u32 | share).collect();
    let is_allowed = |i: usize, j: usize| mask[i * words + j / 32] >> (j % 32) & 1 == 1;
    let (mut entries, mut offsets) = (Vec::new(), vec![0]);
    for i in 0..rows {
        for id in 0..vocab {
            if rng.below(4 + vocab / 8) == 0 {
                entries.push((id as u32, rng.pick(&[-INF, -100.0, -0.5, 0.3, 7.0, 100.0])));
            }
        }
        offsets.push(entries.len());
        // Now and then a target that no transform can do anything to.
        if rng.below(6) == 0 && batch.targets[i] >= 0 {
            let id = batch.targets[i] as usize;
            batch.logits[i * vocab + id] = rng.pick(&[T::NAN, T::NEG_INF]);
        }
    }
    let with_mask = rng.below(3) > 0;
    let bias = LogitBias::per_row(&entries, &offsets);
    let (mut ready, mut ordered): (Vec<T::Real>, Vec<T::Real>) = Default::default();
    for i in 0..rows {
        for j in 0..vocab {
            let here = &entries[offsets[i]..offsets[i + 1]];
            let bias = here.iter().find(|&&(id, _)| id as usize == j).map(|&(_, bias)| bias);
            let z = batch.logits[i * vocab + j].transformed(bias, temperature);
            let raw = batch.logits[i * vocab + j].transformed(bias, 1.0);
            let out = with_mask && !is_allowed(i, j);
            ready.push(if out { T::Real::NEG_INF } else { z });
            ordered.push(if out { T::Real::NEG_INF } else { raw });
        }
    }
    // What a low temperature takes out of range is not as if it had been infinite: see below.
    let is_out = |(&z, &raw): (&T::Real, &T::Real)| !z.into().is_finite() && raw.into().is_finite();
    if ready.iter().zip(&ordered).any(is_out) {
        return;
    }
    for &backend in Backend::available() {
        let ask = batch.ask().backend(backend);
        let mut transformed = ask.temperature(temperature).logit_bias(bias);
        if with_mask {
            transformed = transformed.allowed_tokens(AllowedTokens::new(&mask));
        }
        let got = transformed.collect(batch.view()).unwrap();
        let what = format!("{} {rows} x {vocab} at {temperature}, {backend}", T::NAME);
        check_ignored(&batch, &got, &what);
        let mut want = T::Real::collect(&ask, &ready, rows, vocab);
        // The order is that before the temperature, which may make equals of others.
        let ordered = T::Real::collect(&ask, &ordered, rows, vocab);
        (want.top_ids, want.argmax) = (ordered.top_ids, ordered.argmax);
        (want.ranks, want.strict_ranks) = (ordered.ranks, ordered.strict_ranks);
        for (i, sample) in batch.samples.iter().enumerate() {
            if sample.temperature == 0.0 {
                want.sampled[i] = ordered.sampled[i];
            }
        }
        assert_same(&got, &want, &what);
    }
}

/// A temperature changes no order, and takes nothing out of range.
#[test]
fn temperatures_keep_order() {
    fn check<T: Number>(backend: Backend) {
        let of = |row: &[f32]| row.iter().map(|&x| T::of(x)).collect::<Vec<T>>();
        let ask = |row: &[f32], target: i64, temperature: f64, sample: Sample| {
            let (row, targets, samples) = (of(row), [target], [sample]);
            let logits = Logits::new(&row, 1, row.len()).unwrap();
            let ask = LogProbs::new().targets(&targets).ranks(true).entropy(true).top_k(2);
            let ask = ask.sample(&samples).temperature(temperature).backend(backend);
            ask.collect(logits).unwrap()
        };
        let greedy = Sample::new(1, 1).temperature(0.0);
        // Far apart at any temperature.
        for (row, best) in
            [([10.0_f32, 20.0, 30.0], 2), ([-30.0, -10.0, -20.0], 1), ([1e30, -1e30, 0.0], 0)]
        {
            let size = row.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            if !T::of(size).into().is_finite() {
                continue;
            }
            for temperature in [2e-38, 1e-30, 1.2e-38, 1e-10] {
                let what = format!("{} {row:?} at {temperature}, {backend}", T::NAME);
                let found = ask(&row, best, temperature, greedy);
                assert_eq!(found.argmax, [best], "{what}");
                assert_eq!((found.ranks[0], found.top_ids[0]), (1, best), "{what}");
                assert_eq!(found.sampled, [best], "{what}");
                let numbers = [found.logprobs[0], found.top_logprobs[0], found.entropy[0]];
                assert!(numbers.iter().all(|&x| x.into() == 0.0), "{what}: {numbers:?}");
                let other = ask(&row, (best + 1) % 3, temperature, Sample::new(3, 3));
                assert_eq!((other.argmax[0], other.sampled[0]), (best, best), "{what}");
                assert!(other.logprobs[0].into() < -1e9, "{what}: {other:?}");
                assert_eq!(other.top_logprobs[0].into(), 0.0, "{what}");
            }
        }
        // Ties stay ties.
        let found = ask(&[7.0, 7.0, 3.0], 1, 2e-38, greedy);
        assert_eq!((found.argmax[0], found.ranks[0], found.strict_ranks[0]), (0, 2, 1));
        assert!((found.logprobs[0].into() + 2f64.ln()).abs() < 1e-6);
        // What is lost is lost.
        for row in [[1.0, f32::NAN, 2.0], [1.0, INF, 2.0], [-INF; 3]] {
            let found = ask(&row, 0, 2e-38, greedy);
            assert!(found.logprobs[0].into().is_nan() && found.sampled[0] == -1, "{row:?}");
        }
    }
    for_each_backend(|backend| {
        check::<f32>(backend);
        check::<f64>(backend);
        check::<bf16>(backend);
        check::<f16>(backend);
        // Numbers that are the same after a division: of 50 rows, every pair of neighbours in either order.
        for i in 0..50 {
            let low = 21.0 + i as f32;
            let high = low.next_up();
            for temperature in [1.2, 0.7, 3.0, 1e-3, 777.0] {
                for (row, best) in [([low, high], 1), ([high, low], 0)] {
                    let logits = Logits::new(&row, 1, 2).unwrap();
                    let samples = [Sample::new(i, 0).temperature(0.0)];
                    let targets = [best];
                    let ask = LogProbs::new().temperature(temperature).backend(backend);
                    let ask = ask.targets(&targets).ranks(true).top_k(2).sample(&samples);
                    let found = ask.collect(logits).unwrap();
                    assert_eq!(
                        (found.argmax[0], found.top_ids[0], found.sampled[0]),
                        (best, best, best)
                    );
                    assert_eq!((found.ranks[0], found.strict_ranks[0]), (1, 1));
                    let ce = CrossEntropy::new().temperature(temperature).backend(backend);
                    let mut argmax = [0];
                    ce.evaluate(logits, &targets, RowOutputs::new().argmax(&mut argmax)).unwrap();
                    assert_eq!(argmax, [best]);
                }
            }
        }
    });
}

/// What is said of a row does not depend on its target, nor on whether it has one.
#[test]
fn targets_change_nothing_but_what_is_of_them() {
    let rows = if thin() > 1 { 30 } else { 1500 };
    for_each_backend(|backend| {
        let mut rng = Rng::new(5);
        for i in 0..rows {
            let vocab = rng.pick(&[2, 3, 17, 64, 300, 1024, 1500]);
            let mut row: Vec<f32> = (0..vocab).map(|_| 4.0 * rng.normal()).collect();
            if i % 3 == 0 {
                row[rng.below(vocab)] += rng.pick(&[5.0, 12.0, 40.0]);
            }
            if i == 0 {
                row = vec![-1.0, 0.4375];
            }
            let vocab = row.len();
            let logits = Logits::new(&row, 1, vocab).unwrap();
            let samples = [Sample::new(i as u64, 7)];
            let temperature = rng.pick(&[1.0, 1.0, 0.8]);
            let ask = LogProbs::new().backend(backend).temperature(temperature).top_k(vocab.min(8));
            let ask = ask.entropy(true).varentropy(true).sample(&samples);
            let ids = [0, vocab as i64 - 1];
            let ask = ask.candidates(&ids, 2);
            let without = ask.collect(logits).unwrap();
            let targets = [0, vocab - 1, rng.below(vocab), without.argmax[0] as usize];
            for target in targets {
                let target = [target];
                let mut with = ask.targets(&target).ranks(true).collect(logits).unwrap();
                (with.logprobs, with.ranks, with.strict_ranks) = (vec![], vec![], vec![]);
                assert_same(&with, &without, &format!("row {i}, target {target:?}, {backend}"));
            }
        }
    });
}

/// A type of results, which is one of logits with results of its own type.
trait Ready: Sized {
    fn collect(ask: &LogProbs<'_>, x: &[Self], rows: usize, vocab: usize) -> TokenLogProbs<Self>;
}

macro_rules! ready {
    ($($type:ident)*) => {$(
        impl Ready for $type {
            fn collect(ask: &LogProbs<'_>, x: &[$type], rows: usize, vocab: usize) -> TokenLogProbs<$type> {
                ask.collect(Logits::new(x, rows, vocab).unwrap()).unwrap()
            }
        }
    )*};
}
ready!(f32 f64);

fn any_vocab() -> impl Strategy<Value = usize> {
    let long = if thin() > 1 { 1025 } else { 5000 };
    prop_oneof![4 => 1..70usize, 2 => 60..140usize, 2 => 1000..1100usize, 1 => 1..long as usize]
}

proptest! {
    #![proptest_config(property(48))]

    #[test]
    fn bits_do_not_depend_on_layouts_and_other_outputs(seed: u64, rows in 1..6usize, vocab in any_vocab()) {
        check_batch::<f32>(seed, rows, vocab);
        check_batch::<bf16>(seed, rows, vocab);
        check_batch::<f16>(seed, rows, vocab);
        check_batch::<f64>(seed, rows, vocab);
    }

    #[test]
    fn options_are_as_if_applied_before(seed: u64, rows in 1..6usize, vocab in any_vocab()) {
        check_transform::<f32>(seed, rows, vocab);
        check_transform::<bf16>(seed, rows, vocab);
        check_transform::<f16>(seed, rows, vocab);
        check_transform::<f64>(seed, rows, vocab);
    }
}

/// Of many rows, of fewer rows than threads, and of one that is cut into parts.
#[test]
fn bits_do_not_depend_on_threads() {
    let mut shapes =
        vec![(1, 65_537), (1, 262_149), (2, 131_072), (4, 70_000), (300, 1000), (7, 40_000)];
    if thin() > 1 {
        shapes = vec![(1, 66_000), (90, 1000)];
    }
    let pools =
        [1, 2, 3, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for_each_backend(|backend| {
        for (i, &(rows, vocab)) in shapes.iter().enumerate() {
            fn check<T: Number>(
                pools: &[rayon::ThreadPool],
                backend: Backend,
                (seed, rows, vocab): (u64, usize, usize),
            ) {
                let mut rng = Rng::new(seed);
                let mut batch = Batch::<T>::random(&mut rng, rows, vocab);
                batch.k = 40;
                if rows == 1 {
                    // Not the one that is ignored.
                    batch.targets[0] = rng.below(vocab) as i64;
                    batch.logits.iter_mut().for_each(|x| *x = T::of(3.0 * rng.normal()));
                }
                let bias = [(1, 3.0), (vocab as u32 - 2, -1.0)];
                let plain = batch.ask().backend(backend);
                let transformed = plain.logit_bias(LogitBias::new(&bias)).temperature(0.9);
                for ask in [plain, transformed] {
                    let all = pools.iter().map(|pool| pool.install(|| ask.collect(batch.view())));
                    let all: Vec<_> = all.map(Result::unwrap).collect();
                    for (got, pool) in all.iter().zip(pools) {
                        let threads = pool.current_num_threads();
                        let what = format!("{} {rows} x {vocab}, {backend}, {threads}", T::NAME);
                        assert_same(got, &all[0], &what);
                    }
                }
            }
            for seed in 0..2 {
                let shape = (10 * i as u64 + seed, rows, vocab);
                check::<f32>(&pools, backend, shape);
                check::<bf16>(&pools, backend, shape);
            }
        }
        // A NaN, or a mask, in any of the parts.
        for at in [0, 40_000, 98_308] {
            for special in [f32::NAN, INF, -INF] {
                let mut rng = Rng::new(3);
                let mut row: Vec<f32> = (0..98_309).map(|_| rng.normal()).collect();
                row[at] = special;
                row[65_000] = special;
                let logits = Logits::new(&row, 1, row.len()).unwrap();
                let target = [40_001i64];
                let ask = LogProbs::new().targets(&target).top_k(9).ranks(true).entropy(true);
                let ask = ask.backend(backend);
                let [one, more @ ..] =
                    pools.each_ref().map(|pool| pool.install(|| ask.collect(logits)).unwrap());
                assert_eq!(
                    one.top_ids,
                    reference::top_k(&row, 9).iter().map(|&id| id as i64).collect::<Vec<_>>()
                );
                assert_eq!(one.argmax[0], reference::row(&row, 0).argmax as i64);
                for more in &more {
                    assert_same(more, &one, &format!("{special} at {at}, {backend}"));
                }
            }
        }
    });
}

/// Targets that are those of later rows.
#[test]
fn shifted_targets_are_those_of_later_rows() {
    let mut rng = Rng::new(8);
    let x: Vec<f32> = (0..6 * 40).map(|_| rng.normal()).collect();
    let logits = Logits::new(&x, 6, 40).unwrap();
    let ids = [3u32, 39, 0, 7, 7, 12];
    for_each_backend(|backend| {
        let ask = LogProbs::new().ranks(true).entropy(true).backend(backend);
        let shifted = ask.targets(Targets::shifted(&ids, 3, 1)).collect(logits).unwrap();
        let explicit = ask.targets(&[39i64, 0, -100, 7, 12, -100]).collect(logits).unwrap();
        assert_same(&shifted, &explicit, "shifted");
    });
}

/// Ids of any type, and `ignore_index`.
#[test]
fn ids_may_be_of_any_type() {
    let x = [0.5_f32, 2.0, -1.0, 4.0];
    let logits = Logits::new(&x, 2, 2).unwrap();
    for_each_backend(|backend| {
        let ask = LogProbs::new().backend(backend);
        let want = ask.targets(&[1i64, 0]).candidates(&[0i64, 1], 1).collect(logits).unwrap();
        let others = [
            ask.targets(&[1i32, 0]).candidates(&[0i32, 1], 1).collect(logits).unwrap(),
            ask.targets(&[1u32, 0]).candidates(&[0u32, 1], 1).collect(logits).unwrap(),
            ask.targets(&[1usize, 0]).candidates(&[0usize, 1], 1).collect(logits).unwrap(),
        ];
        others.iter().for_each(|other| assert_same(other, &want, "types"));
        // The ignored class is a class like any other, elsewhere.
        let ignored = ask.targets(&[1i64, 0]).ignore_index(1).collect(logits).unwrap();
        assert_eq!((ignored.logprobs[0], ignored.argmax[0]), (0.0, -1));
        assert_eq!(ignored.logprobs[1].to_bits(), want.logprobs[1].to_bits());
    });
}

#[test]
fn special_rows() {
    // S19, S20, S25, and the list of cases of PyTorch.
    let (nan, inf) = (f32::NAN, INF);
    for_each_backend(|backend| {
        let ask = LogProbs::new().ranks(true).entropy(true).varentropy(true).backend(backend);
        let row = |x: &[f32], target: i64, k| {
            let targets = [target];
            let ask = ask.targets(&targets).top_k(k);
            ask.collect(Logits::new(x, 1, x.len()).unwrap()).unwrap()
        };
        let found = row(&[1.0, nan, 3.0, inf], 0, 3);
        assert_eq!((found.top_ids, found.argmax), (vec![1, 3, 2], vec![1]));
        assert!(found.logprobs[0].is_nan() && found.logsumexp[0].is_nan());
        assert_eq!(found.ranks, [3]);
        let found = row(&[1.0, 3.0, 3.0, 3.0, 2.0], 2, 5);
        assert_eq!((found.ranks, found.strict_ranks), (vec![3], vec![1]));
        assert_eq!(found.top_ids, [1, 2, 3, 4, 0]);
        let found = row(&[-0.0, 0.0], 1, 2);
        assert_eq!((found.top_ids, found.argmax), (vec![0, 1], vec![0]));
        assert_eq!((found.ranks, found.strict_ranks), (vec![2], vec![1]));
        let found = row(&[-inf, -inf], 1, 1);
        assert!(found.logprobs[0].is_nan() && found.entropy[0].is_nan());
        assert_eq!((found.logsumexp, found.argmax), (vec![-inf], vec![0]));
        assert_eq!((found.top_ids, found.ranks), (vec![0], vec![2]));
        let found = row(&[inf, 1.0], 0, 1);
        assert!(found.logprobs[0].is_nan() && found.varentropy[0].is_nan());
        assert_eq!((found.logsumexp, found.argmax), (vec![inf], vec![0]));
        let found = row(&[-inf, 1.0, 2.0], 0, 2);
        assert_eq!(found.logprobs, [-inf]);
        assert_eq!(found.entropy, [0.582_203_1]);
        // One class has everything: exactly 0, and not -0.
        for x in [&[7.0][..], &[7.0, -inf, -inf], &[200.0, 0.0, 0.0]] {
            let found = row(x, 0, 1);
            for zero in [found.logprobs, found.entropy, found.varentropy, found.top_logprobs] {
                assert_eq!(zero[0].to_bits(), 0, "{x:?}");
            }
        }
        for equal in [0.0, -55.5, 3e5, 1e30, -3e38] {
            let found = row(&[equal; 1000], 17, 3);
            assert_eq!(found.entropy, [1000f32.ln()], "{equal}");
            let varentropy = f64::from(found.varentropy[0]);
            assert!(varentropy <= cancelled(&[equal]), "{equal}: {varentropy:e}");
            assert_eq!(found.top_ids, [0, 1, 2]);
        }
    });
}

/// No rows, and rows of no classes.
#[test]
fn nothing_is_something_too() {
    fn check<T: Number>(backend: Backend) {
        let ask = LogProbs::new().entropy(true).varentropy(true).backend(backend);
        let none =
            ask.targets(&[] as &[i64]).collect(Logits::<T>::new(&[], 0, 9).unwrap()).unwrap();
        assert!(none.logprobs.is_empty() && none.argmax.is_empty());
        let samples = [Sample::new(1, 2); 2];
        let ask = ask.sample(&samples);
        let empty = ask.collect(Logits::<T>::new(&[], 2, 0).unwrap()).unwrap();
        assert_eq!(empty.argmax, [-1; 2], "{} {backend}", T::NAME);
        assert_eq!(empty.sampled, [-1; 2]);
        assert!(empty.logsumexp.iter().all(|&x| x.into() == f64::NEG_INFINITY));
        let all = [&empty.entropy, &empty.varentropy, &empty.sampled_logprobs];
        assert!(all.into_iter().flatten().all(|&x| Into::<f64>::into(x).is_nan()));
        let ignored = ask.targets(&[-100i64; 2]);
        let ignored = ignored.collect(Logits::<T>::new(&[], 2, 0).unwrap()).unwrap();
        assert_eq!((ignored.argmax, ignored.sampled), (vec![-1; 2], vec![-1; 2]));
    }
    for_each_backend(|backend| {
        check::<f32>(backend);
        check::<bf16>(backend);
        check::<f64>(backend);
    });
}

/// Two rows of three.
const X: [f32; 6] = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0];

/// Refused, with all outputs as they were.
#[track_caller]
fn refuses(ask: &LogProbs<'_>, k: usize, expected: &Error) {
    let logits = Logits::new(&X, 2, 3).unwrap();
    for backend in Backend::available().iter().map(|&backend| Some(backend)).chain([None]) {
        let ask = backend.map_or(*ask, |backend| ask.backend(backend));
        let (mut reals, mut integers) = ([[7.0_f32; 6]; 6], [[-7_i64; 6]; 4]);
        let [a, b, c, d, e, f] = &mut reals;
        let [g, h, i, j] = &mut integers;
        let mut top_ids = vec![-7; 2 * k];
        let mut top = vec![7.0; 2 * k];
        let out = TokenOutputs::new()
            .logprobs(&mut a[..2])
            .candidates(&mut b[..2])
            .entropy(&mut c[..2])
            .varentropy(&mut d[..2])
            .logsumexp(&mut e[..2])
            .sampled_logprobs(&mut f[..2])
            .ranks(&mut g[..2])
            .strict_ranks(&mut h[..2])
            .argmax(&mut i[..2])
            .sampled(&mut j[..2])
            .top_k(&mut top_ids, &mut top);
        assert_eq!(ask.run(logits, out).unwrap_err(), *expected);
        assert_eq!((reals, integers), ([[7.0; 6]; 6], [[-7; 6]; 4]));
        assert!(top_ids.iter().all(|&id| id == -7) && top.iter().all(|&x| x == 7.0));
    }
}

#[test]
fn errors_come_before_any_output() {
    let samples = [Sample::new(1, 1); 2];
    let good = LogProbs::new().targets(&[0i64, 1]).candidates(&[0i64, 1], 1).sample(&samples);
    let good = good.top_k(2);
    let option = |option, value: &str, range| Error::Option { option, value: value.into(), range };

    refuses(&good.targets(&[0i64]), 2, &Error::TargetCount { rows: 2, targets: 1 });
    for (id, target) in [(3, 3), (-1, -1), (i64::MIN, i64::MIN.into())] {
        let ids = [0i64, id];
        refuses(&good.targets(&ids), 2, &Error::TargetOutOfRange { row: 1, target, vocab: 3 });
    }
    let shifted = |sequence, shift| Targets::shifted(&[0i64, 0], sequence, shift);
    refuses(&good.targets(shifted(3, 1)), 2, &Error::Sequence { rows: 2, sequence: 3 });
    refuses(&good.targets(shifted(2, 2)), 2, &Error::Shift { shift: 2, sequence: 2 });
    let probs = option("targets", "probabilities", "a class id per row");
    refuses(&good.targets(Targets::probs(&[0.5_f32; 6])), 2, &probs);

    let input = |what, len| Error::InputLength { what, len, expected: 2 };
    refuses(&good.candidates(&[0i64], 1), 2, &input("candidates", 1));
    for (id, at) in [(3, 1), (-1, 1), (-100, 1), (i64::MAX, 0)] {
        let mut ids = [0i64; 2];
        ids[at] = id;
        let error = Error::CandidateOutOfRange { row: at, id: id.into(), vocab: 3 };
        refuses(&good.candidates(&ids, 1), 2, &error);
    }
    refuses(
        &good.candidates(&[0i64; 2], usize::MAX),
        2,
        &Error::Overflow { rows: 2, elements: usize::MAX },
    );
    refuses(&good.sample(&samples[..1]), 2, &input("samples", 1));
    for (t, temperature) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let samples = [samples[0], samples[0].temperature(t)];
        let temperature = temperature.to_owned();
        refuses(&good.sample(&samples), 2, &Error::SampleTemperature { row: 1, temperature });
    }
    for (t, value) in [
        (0.0, "0"),
        (-1.0, "-1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
        (1e39, "1e39"),
        (1e-38, "1e-38"),
    ] {
        let error = option("temperature", value, "a positive number of the range of f32");
        refuses(&good.temperature(t), 2, &error);
    }
    for k in [129, usize::MAX] {
        let value = k.to_string();
        let error = option("top_k", &value, "at most 128, the most tokens that are found of a row");
        refuses(&good.top_k(k), 2, &error);
        let logits = Logits::new(&X, 2, 3).unwrap();
        assert_eq!(good.top_k(k).collect(logits), Err(error));
    }
    let ascend = "its token must be above that of the entry before it; \
                  sort entries by token, with each token once";
    for (entries, entry, range) in [
        (&[(3, 1.0)][..], 0, "the token must be in the vocabulary"),
        (&[(0, 1.0), (0, 1.0)], 1, ascend),
        (&[(0, 1.0), (2, 1.0), (1, 1.0)], 2, ascend),
        (&[(0, 1.0), (1, f32::NAN)], 1, "the value must be a number or -inf"),
        (&[(1, INF)], 0, "the value must be a number or -inf"),
    ] {
        let (id, value) = (entries[entry].0, entries[entry].1.to_string());
        let error = Error::LogitBias { entry, id, value, range };
        refuses(&good.logit_bias(LogitBias::new(entries)), 2, &error);
    }
    let entries = [(0, 1.0), (2, 1.0)];
    let lengths = Error::InputLength { what: "offsets of logit biases", len: 2, expected: 3 };
    refuses(&good.logit_bias(LogitBias::per_row(&entries, &[0, 1])), 2, &lengths);
    for (offsets, last) in [([0, 2, 1], "1"), ([0, 1, 3], "3"), ([2, 1, 2], "2")] {
        let range = "ascending, up to the number of entries";
        let error = option("offsets of logit biases", &format!("(.., {last})"), range);
        refuses(&good.logit_bias(LogitBias::per_row(&entries, &offsets)), 2, &error);
    }
    let words = Error::InputLength { what: "words of allowed tokens", len: 1, expected: 2 };
    refuses(&good.allowed_tokens(AllowedTokens::new(&[7])), 2, &words);
    for (ask, output, needs) in [
        (LogProbs::new().candidates(&[0i64, 1], 1).sample(&samples), "logprobs", "targets"),
        (LogProbs::new().targets(&[0i64, 1]).sample(&samples), "candidates", "candidates"),
        (LogProbs::new().targets(&[0i64, 1]).candidates(&[0i64, 1], 1), "sampled", "samples"),
    ] {
        refuses(&ask.top_k(2), 2, &Error::Missing { output, needs });
    }
    let error = Error::OutputLength { output: "top_k ids", len: 6, expected: 4 };
    refuses(&good, 3, &error);
    // What is right with all of it.
    assert!(good.collect(Logits::new(&X, 2, 3).unwrap()).is_ok());
    for &backend in Backend::ALL.iter().filter(|backend| !backend.is_available()) {
        let result = good.backend(backend).collect(Logits::new(&X, 2, 3).unwrap());
        assert!(matches!(result, Err(Error::BackendUnavailable { .. })), "{backend}");
    }
}

/// All that there are.
#[test]
fn a_top_k_above_the_vocabulary() {
    fn check<T: xent::Element<Real: PartialEq + std::fmt::Debug>>(x: &[T], vocab: usize) {
        let logits = Logits::new(x, 2, vocab).unwrap();
        for_each_backend(|backend| {
            let ask = LogProbs::new().backend(backend);
            let all = ask.top_k(vocab).collect(logits).unwrap();
            for k in [vocab + 1, 100, 128] {
                let found = ask.top_k(k).collect(logits).unwrap();
                assert_eq!(found, all, "{backend}, {k}");
                assert_eq!((found.k, found.top(1).count()), (vocab, vocab));
                let mut ids = vec![-7; 2 * vocab];
                let mut top = all.top_logprobs.clone();
                ask.top_k(k).run(logits, TokenOutputs::new().top_k(&mut ids, &mut top)).unwrap();
                assert_eq!((&ids, &top), (&all.top_ids, &all.top_logprobs));
                let mut ids = vec![-7; 2 * k];
                let result =
                    ask.top_k(k).run(logits, TokenOutputs::new().top_k(&mut ids, &mut top));
                let (output, len, expected) = ("top_k ids", 2 * k, 2 * vocab);
                assert_eq!(result, Err(Error::OutputLength { output, len, expected }));
            }
        });
    }
    check(&X, 3);
    check(&X.map(f64::from), 3);
    check(&X.map(bf16::from_f32), 3);
    check(&X.map(f16::from_f32), 3);
    let mut stats = [RowStats::default(); 2];
    let logits = Logits::new(&X, 2, 3).unwrap();
    LogProbs::new().top_k(128).row_stats(logits, Shard::new(1, 5), &mut stats).unwrap();
    assert_eq!(stats.map(|row| row.top_k().count()), [3; 2]);
    let none = Logits::<f32>::new(&[], 2, 0).unwrap();
    let found = LogProbs::new().top_k(5).collect(none).unwrap();
    assert_eq!((found.k, found.top_ids), (0, vec![]));
}

/// What has no target has no log-probability, which 0 would be: that of a token that is certain.
#[test]
fn targets_of_rows() {
    let logits = Logits::new(&X, 2, 3).unwrap();
    let of = |ask: LogProbs<'_>| {
        let found = ask.collect(logits).unwrap();
        let logprobs = [0, 1, 2].map(|row| found.logprob(row).is_some());
        (found.targets, logprobs)
    };
    let new = LogProbs::new();
    assert_eq!(of(new), (vec![], [false; 3]));
    assert_eq!(of(new.targets(&[2i64, 0])), (vec![2, 0], [true, true, false]));
    assert_eq!(of(new.targets(&[-100i32, 0])), (vec![-1, 0], [false, true, false]));
    assert_eq!(of(new.targets(&[-100i64; 2])), (vec![-1, -1], [false; 3]));
    let one = new.targets(&[1u32, 2]).ignore_index(1);
    assert_eq!(of(one), (vec![-1, 2], [false, true, false]));
    let shifted = new.targets(Targets::shifted(&[0usize, 1], 2, 1));
    assert_eq!(of(shifted), (vec![1, -1], [true, false, false]));
    let apart = new.targets(Targets::shifted(&[0usize, 1], 1, 0));
    assert_eq!(of(apart), (vec![0, 1], [true, true, false]));
}

/// Each output, of a wrong length.
#[test]
fn outputs_have_the_length_of_the_rows() {
    let logits = Logits::new(&X, 2, 3).unwrap();
    let samples = [Sample::new(1, 1); 2];
    let ask =
        LogProbs::new().targets(&[0i64, 1]).candidates(&[0i64; 4], 2).sample(&samples).top_k(1);
    for len in [0, 1, 3] {
        let (mut x, mut n) = (vec![7.0_f32; len], vec![-7_i64; len]);
        let (mut other, mut two) = ([7.0_f32; 2], [-7_i64; 2]);
        let check = |output: &'static str, expected, out: TokenOutputs<'_>| {
            let error = Error::OutputLength { output, len, expected };
            assert_eq!(ask.run(logits, out), Err(error));
        };
        check("logprobs", 2, TokenOutputs::new().logprobs(&mut x));
        check("candidates", 4, TokenOutputs::new().candidates(&mut x));
        check("entropy", 2, TokenOutputs::new().entropy(&mut x));
        check("varentropy", 2, TokenOutputs::new().varentropy(&mut x));
        check("logsumexp", 2, TokenOutputs::new().logsumexp(&mut x));
        check("sampled_logprobs", 2, TokenOutputs::new().sampled_logprobs(&mut x));
        check("ranks", 2, TokenOutputs::new().ranks(&mut n));
        check("strict_ranks", 2, TokenOutputs::new().strict_ranks(&mut n));
        check("argmax", 2, TokenOutputs::new().argmax(&mut n));
        check("sampled", 2, TokenOutputs::new().sampled(&mut n));
        check("top_k ids", 2, TokenOutputs::new().top_k(&mut n, &mut other));
        check("top_k logprobs", 2, TokenOutputs::new().top_k(&mut two, &mut x));
        // One that is right, besides.
        check("entropy", 2, TokenOutputs::new().logprobs(&mut other).entropy(&mut x));
        assert_eq!((x, n), (vec![7.0; len], vec![-7; len]));
        assert_eq!((other, two), ([7.0; 2], [-7; 2]));
    }
}

/// Logits of a real language model and what PyTorch computes from them in `f64`: `tests/real/README.md`.
#[test]
fn rows_of_a_language_model() {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "real", "smollm2_gpl3_rows.safetensors"].iter().collect();
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| file.tensor(name).unwrap().data().as_chunks().0.to_vec();
    let f64s = |name| numbers(name).into_iter().map(f64::from_le_bytes).collect::<Vec<_>>();
    let i64s = |name| numbers(name).into_iter().map(i64::from_le_bytes).collect::<Vec<_>>();
    let logits = file.tensor("logits").unwrap();
    let (rows, vocab) = (logits.shape()[0], logits.shape()[1]);
    let x: Vec<f32> = logits.data().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
    let targets = i64s("targets");
    let plus_one = |counts: Vec<i64>| counts.into_iter().map(|n| n + 1).collect::<Vec<_>>();
    let top: Vec<i64> =
        x.chunks(vocab).flat_map(|row| reference::top_k(row, 20)).map(|id| id as i64).collect();
    let losses: Vec<f64> = f64s("row_loss_f64").into_iter().map(|loss| -loss).collect();
    let varentropy: Vec<f64> = x.chunks(vocab).map(reference::varentropy).collect();
    let mut worst = BTreeMap::new();
    for_each_backend(|backend| {
        let ask = LogProbs::new().targets(&targets).top_k(20).ranks(true).entropy(true);
        let ask = ask.varentropy(true).backend(backend);
        let found = ask.collect(Logits::new(&x, rows, vocab).unwrap()).unwrap();
        assert_eq!(found.ranks, i64s("rank_ge"), "{backend}");
        assert_eq!(found.strict_ranks, plus_one(i64s("rank_gt")), "{backend}");
        assert_eq!(found.argmax, i64s("argmax"), "{backend}");
        assert_eq!(found.top_ids, top, "{backend}");
        for (name, got, want) in [
            ("logprobs", &found.logprobs, &losses),
            ("top 20", &found.top_logprobs, &f64s("top20_logprob_f64")),
            ("logsumexp", &found.logsumexp, &f64s("lse_f64")),
            ("entropy", &found.entropy, &f64s("entropy_f64")),
            ("varentropy", &found.varentropy, &varentropy),
        ] {
            assert_eq!(got.len(), want.len(), "{name}");
            for (&got, &want) in got.iter().zip(want) {
                // Where a probability is close to 1, `f64` of PyTorch has an absolute error.
                let floor = 1e-15 / f64::from(f32::EPSILON * got.abs());
                let error = (reference::ulp_error(got, want) - floor).max(0.0);
                let worst = worst.entry(name).or_insert(0.0_f64);
                *worst = worst.max(error);
            }
        }
    });
    println!("worst errors in ULP, {rows} rows: {worst:?}");
    assert!(worst.values().all(|&error| error <= 1.0), "{worst:?}");
}
