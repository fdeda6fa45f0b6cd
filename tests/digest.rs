//! The bits of all results on a fixed corpus, as one SHA-256 per operation: every bit-exact backend, any
//! number of threads and every architecture has to reproduce `tests/digest.txt`.
//!
//! Nothing here is shared with the other tests, and nothing calls a function of the C library: the corpus
//! must be the same bits everywhere and for good. An operation to come (an option, another element type)
//! is one more function in [`OPERATIONS`] and one more line in the file.

use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::LazyLock;
use xent::{
    AllowedTokens, Backend, CrossEntropy, Element, Gradient, LogProbs, LogSumExp, LogitBias,
    Logits, LogitsMut, RowOutputs, RowStats, Sample, Shard, Softmax, Targets, TokenLogProbs, bf16,
    f16,
};

const EXPECTED: &str = include_str!("digest.txt");

const THREADS: [usize; 4] = [1, 2, 3, 8];

/// The same for emulated machines, where every pass over the corpus takes a quarter of a minute.
const FEW_THREADS: [usize; 2] = [1, 3];

/// What is computed of every batch, and hashed under names of its own.
const OPERATIONS: &[fn(Backend, &Batch, &mut Digests)] = &[
    corpus,
    evaluate,
    forward,
    softmax,
    gradient,
    options,
    probabilities,
    double,
    bf16_rows,
    f16_rows,
    logprobs,
    shards,
];

/// The inputs: if this line differs and others do too, the corpus has changed and not the results.
fn corpus(_: Backend, batch: &Batch, digests: &mut Digests) {
    digests.add("corpus", [batch.rows as u64, batch.vocab as u64]);
    digests.add("corpus", batch.logits.iter().map(|x| x.to_bits()));
    digests.add("corpus", batch.targets.iter().map(|&target| target as u64));
}

fn evaluate(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let rows = batch.rows;
    let (mut losses, mut logprobs, mut lse) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
    let mut argmax = vec![0; rows];
    let outputs = RowOutputs::new()
        .losses(&mut losses)
        .logprobs(&mut logprobs)
        .logsumexp(&mut lse)
        .argmax(&mut argmax);
    let ce = CrossEntropy::new().backend(backend);
    let e = ce.evaluate(batch.view(), &batch.targets, outputs).unwrap();
    digests.add("evaluate.losses", bits(&losses));
    digests.add("evaluate.logprobs", bits(&logprobs));
    digests.add("evaluate.logsumexp", bits(&lse));
    digests.add("evaluate.argmax", argmax.iter().map(|&class| class as u64));
    digests.add("evaluation", [e.loss(), e.stderr()].map(bits64));
    digests.add("evaluation", [e.correct().unwrap(), e.count(), e.ignored()]);
}

/// Without the argmax it is another kernel.
fn forward(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let ce = CrossEntropy::new().backend(backend);
    let mut losses = vec![0.0; batch.rows];
    ce.forward_into(batch.view(), &batch.targets, &mut losses).unwrap();
    digests.add("forward.losses", bits(&losses));
    digests.add("forward", [bits64(ce.forward(batch.view(), &batch.targets).unwrap())]);
}

fn softmax(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let softmax = Softmax::new().backend(backend);
    let mut out = vec![0.0; batch.logits.len()];
    softmax.softmax(batch.view(), &mut out).unwrap();
    digests.add("softmax", bits(&out));
    softmax.log_softmax(batch.view(), &mut out).unwrap();
    digests.add("log_softmax", bits(&out));
    let lse = &mut out[..batch.rows];
    softmax.logsumexp(batch.view(), lse).unwrap();
    digests.add("logsumexp", bits(lse));
}

/// Losses, statistics and gradient of logits of any type.
struct Trained<T: Element> {
    losses: Vec<T::Real>,
    stats: Vec<LogSumExp<T::Real>>,
    gradient: Vec<T>,
}

fn train<'a, T: Element>(
    ce: &CrossEntropy<'_>,
    logits: Logits<'_, T>,
    targets: impl Into<Targets<'a>>,
) -> Trained<T> {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let mut trained = Trained {
        losses: vec![T::Real::default(); rows],
        stats: vec![LogSumExp::default(); rows],
        gradient: vec![T::default(); rows * vocab],
    };
    let outputs = RowOutputs::new().losses(&mut trained.losses).saved(&mut trained.stats);
    let to = Gradient::new(LogitsMut::new(&mut trained.gradient, rows, vocab).unwrap());
    ce.forward_backward(logits, targets, to, outputs).unwrap();
    trained
}

fn gradient(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let ce = CrossEntropy::new().backend(backend);
    let Trained { losses, stats, mut gradient } = train(&ce, batch.view(), &batch.targets);
    digests.add("gradient.losses", bits(&losses));
    digests.add("gradient.stats", stats.iter().flat_map(|s| [s.hi, s.lo].map(f32_bits)));
    digests.add("gradient", bits(&gradient));
    let to = Gradient::new(LogitsMut::new(&mut gradient, batch.rows, batch.vocab).unwrap());
    ce.backward(batch.view(), &batch.targets, &stats, to.upstream(0.75)).unwrap();
    digests.add("backward", bits(&gradient));
}

/// One after the other, and then all.
fn options(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let weights: Vec<f32> = (0..batch.vocab).map(|class| (class % 9) as f32 * 0.25).collect();
    let token_weights: Vec<f32> = (0..batch.rows).map(|row| 1.5 - (row % 4) as f32 * 0.5).collect();
    let ce = CrossEntropy::new().backend(backend);
    let all = ce.clone().label_smoothing(0.125).class_weights(&weights).z_loss(0.25).softcap(20.0);
    let ces = [
        ("options.smoothing", ce.clone().label_smoothing(0.125)),
        ("options.class_weights", ce.clone().class_weights(&weights)),
        ("options.token_weights", ce.clone().token_weights(&token_weights)),
        ("options.z_loss", ce.clone().z_loss(0.25)),
        ("options.softcap", ce.clone().softcap(20.0)),
        ("options.scale", ce.logit_scale(0.3).temperature(0.7)),
        ("options.all", all.token_weights(&token_weights).logit_scale(0.3).temperature(0.7)),
    ];
    for (name, ce) in ces {
        let Trained { losses, gradient, .. } = train(&ce, batch.view(), &batch.targets);
        digests.add(name, bits(&losses));
        digests.add(name, bits(&gradient));
    }
}

fn probabilities(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let mut probs = vec![0.0; batch.logits.len()];
    for (i, p) in probs.iter_mut().enumerate() {
        *p = if i % 3 == 0 { 0.0 } else { (i % 17) as f32 / 64.0 };
    }
    let ce = CrossEntropy::new().backend(backend);
    for (name, ce) in [("probs", ce.clone()), ("probs.smoothing", ce.label_smoothing(0.125))] {
        let ce = ce.no_ignore_index();
        let Trained { losses, gradient, .. } = train(&ce, batch.view(), Targets::probs(&probs));
        digests.add(name, bits(&losses));
        digests.add(name, bits(&gradient));
    }
}

fn double(backend: Backend, batch: &Batch, digests: &mut Digests) {
    // A third, so that not all digits are those of an `f32`.
    let logits: Vec<f64> = batch.logits.iter().map(|&x| f64::from(x) / 3.0).collect();
    let view = Logits::new(&logits, batch.rows, batch.vocab).unwrap();
    let ce = CrossEntropy::new().backend(backend);
    let smooth = ce.clone().label_smoothing(0.125).softcap(20.0);
    for (name, ce) in [("f64", ce), ("f64.options", smooth)] {
        let Trained { losses, gradient, .. } = train(&ce, view, &batch.targets);
        digests.add(name, losses.iter().chain(&gradient).map(|&x| bits64(x)));
    }
    let mut p = vec![0.0; logits.len()];
    Softmax::new().backend(backend).softmax(view, &mut p).unwrap();
    digests.add("f64.softmax", p.iter().map(|&x| bits64(x)));
}

macro_rules! half_rows {
    ($name:ident $type:ident) => {
        /// The corpus rounded to 16 bits.
        fn $name(backend: Backend, batch: &Batch, digests: &mut Digests) {
            let (rows, vocab) = (batch.rows, batch.vocab);
            let logits: Vec<$type> = batch.logits.iter().map(|&x| $type::from_f32(x)).collect();
            let view = Logits::new(&logits, rows, vocab).unwrap();
            let numbers = |values: &[$type]| -> Vec<u32> {
                values.iter().map(|x| u32::from(x.to_bits())).collect()
            };
            let (mut losses, mut g) = (vec![0.0; rows], logits.clone());
            let ce = CrossEntropy::new().backend(backend);
            ce.forward_into(view, &batch.targets, &mut losses).unwrap();
            digests.add(concat!(stringify!($type), ".forward"), bits(&losses));
            let to = LogitsMut::new(&mut g, rows, vocab).unwrap();
            let outputs = RowOutputs::new().losses(&mut losses);
            ce.forward_backward_in_place(to, &batch.targets, 1.0, outputs).unwrap();
            digests.add(concat!(stringify!($type), ".losses"), bits(&losses));
            digests.add(concat!(stringify!($type), ".gradient"), numbers(&g));
            let softmax = Softmax::new().backend(backend);
            softmax.softmax(view, &mut g).unwrap();
            digests.add(concat!(stringify!($type), ".softmax"), numbers(&g));
            softmax.log_softmax(view, &mut g).unwrap();
            digests.add(concat!(stringify!($type), ".log_softmax"), numbers(&g));
        }
    };
}
half_rows!(bf16_rows bf16);
half_rows!(f16_rows f16);

/// At temperatures of all kinds.
fn samples(rows: usize) -> Vec<Sample> {
    let t = |row: usize| [0.0, 0.625, 1.0, 1.5][row % 4];
    (0..rows).map(|row| Sample::new(row as u64 % 3, row as u64).temperature(t(row))).collect()
}

/// Everything that [`LogProbs`] finds.
fn logprobs(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let (rows, vocab) = (batch.rows, batch.vocab);
    let samples = samples(rows);
    let candidates: Vec<u32> = (0..2 * rows).map(|i| ((i * i + 3 * i) % vocab) as u32).collect();
    let ask = LogProbs::new().targets(&batch.targets).candidates(&candidates, 2);
    let ask = ask.top_k(vocab.min(20)).ranks(true).entropy(true).varentropy(true);
    let ask = ask.sample(&samples).backend(backend);
    let found = ask.collect(batch.view()).unwrap();
    let ids = |ids: &[i64]| ids.iter().map(|&id| id as u64).collect::<Vec<_>>();
    digests.add("logprobs", bits(&found.logprobs));
    digests.add("logprobs.ranks", ids(&found.ranks));
    digests.add("logprobs.strict_ranks", ids(&found.strict_ranks));
    digests.add("logprobs.candidates", bits(&found.candidates));
    digests.add("logprobs.top_ids", ids(&found.top_ids));
    digests.add("logprobs.top_logprobs", bits(&found.top_logprobs));
    digests.add("logprobs.argmax", ids(&found.argmax));
    digests.add("logprobs.entropy", bits(&found.entropy));
    digests.add("logprobs.varentropy", bits(&found.varentropy));
    digests.add("logprobs.logsumexp", bits(&found.logsumexp));
    digests.add("logprobs.sampled", ids(&found.sampled));
    digests.add("logprobs.sampled_logprobs", bits(&found.sampled_logprobs));

    let mask: Vec<u32> = (0..rows * vocab.div_ceil(32)).map(|i| !(1 << (i % 31))).collect();
    let bias: Vec<(u32, f32)> =
        (0..vocab as u32).step_by(7).map(|id| (id, (id % 5) as f32 * 0.75 - 1.0)).collect();
    let changed = ask.allowed_tokens(AllowedTokens::new(&mask)).temperature(0.7);
    let found = changed.logit_bias(LogitBias::new(&bias)).collect(batch.view()).unwrap();
    digests.add("logprobs.options", numbers(&found, |x| f32_bits(x).into()));

    // Rows of `f64` take longer than all else.
    if rows * vocab < 50_000 {
        let logits: Vec<f64> = batch.logits.iter().map(|&x| f64::from(x) / 3.0).collect();
        let found = ask.collect(Logits::new(&logits, rows, vocab).unwrap()).unwrap();
        digests.add("f64.logprobs", numbers(&found, bits64));
    }
    let logits: Vec<bf16> = batch.logits.iter().map(|&x| bf16::from_f32(x)).collect();
    let found = ask.collect(Logits::new(&logits, rows, vocab).unwrap()).unwrap();
    digests.add("bf16.logprobs", numbers(&found, |x| f32_bits(x).into()));
    let logits: Vec<f16> = batch.logits.iter().map(|&x| f16::from_f32(x)).collect();
    let found = ask.collect(Logits::new(&logits, rows, vocab).unwrap()).unwrap();
    digests.add("f16.logprobs", numbers(&found, |x| f32_bits(x).into()));
}

/// All of it, one after the other.
fn numbers<R: Copy>(found: &TokenLogProbs<R>, bits: impl Fn(R) -> u64) -> Vec<u64> {
    let reals = [
        &found.logprobs,
        &found.candidates,
        &found.top_logprobs,
        &found.entropy,
        &found.varentropy,
        &found.logsumexp,
        &found.sampled_logprobs,
    ];
    let ids = [&found.ranks, &found.strict_ranks, &found.top_ids, &found.argmax, &found.sampled];
    let reals = reals.into_iter().flatten().map(|&x| bits(x));
    reals.chain(ids.into_iter().flatten().map(|&id| id as u64)).collect()
}

/// The statistics of a third of the vocabulary and of the rest, and what both say together.
fn shards(backend: Backend, batch: &Batch, digests: &mut Digests) {
    let (rows, vocab) = (batch.rows, batch.vocab);
    let samples = samples(rows);
    let ask = LogProbs::new().targets(&batch.targets).top_k(vocab.min(5)).ranks(true);
    let ask = ask.varentropy(true).sample(&samples).backend(backend);
    let part = |first: usize, end: usize| {
        let part = batch.logits.chunks(vocab).map(|row| &row[first..end]);
        let list: Vec<&[f32]> = part.collect();
        let mut stats = vec![RowStats::default(); rows];
        let logits = Logits::from_rows(&list, end - first).unwrap();
        ask.row_stats(logits, Shard::new(first, vocab), &mut stats).unwrap();
        stats
    };
    let cut = vocab / 3;
    for (a, b) in part(0, cut).iter().zip(&part(cut, vocab)) {
        let row = b.merge(a).unwrap();
        let numbers = [row.loss(), Some(row.logsumexp()), row.entropy(), row.varentropy()];
        digests.add("shards", numbers.map(|x| bits64(x.unwrap_or(0.0))));
        digests.add("shards", row.top_k().flat_map(|t| [t.id, f32_bits(t.logit)]));
        digests
            .add("shards", [row.argmax(), row.sampled()].map(|id| id.map_or(u64::MAX, u64::from)));
        // Which NaN it is that a row has is up to the processor.
        if row.entropy().is_some_and(|x| !x.is_nan()) {
            digests.add(
                "shards.bytes",
                row.to_bytes().as_chunks().0.iter().map(|&x| u32::from_le_bytes(x)),
            );
        }
    }
}

/// Every NaN is the same NaN: which one an operation returns is up to the processor.
fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().copied().map(f32_bits)
}

fn f32_bits(x: f32) -> u32 {
    if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }
}

fn bits64(x: f64) -> u64 {
    if x.is_nan() { 0x7ff8_0000_0000_0000 } else { x.to_bits() }
}

/// Numbers as the bytes that are hashed.
trait Bytes {
    fn append_to(self, bytes: &mut Vec<u8>);
}

impl Bytes for u32 {
    fn append_to(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
}

impl Bytes for u64 {
    fn append_to(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
}

/// A hash per name, in the order of the first mention.
#[derive(Default)]
struct Digests(Vec<(&'static str, Sha256)>);

impl Digests {
    fn add<T: Bytes>(&mut self, name: &'static str, values: impl IntoIterator<Item = T>) {
        let mut bytes = Vec::new();
        values.into_iter().for_each(|value| value.append_to(&mut bytes));
        let at = self.0.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.0.push((name, Sha256::new()));
            self.0.len() - 1
        });
        self.0[at].1.update(bytes);
    }

    /// As in the file.
    fn lines(self) -> Vec<String> {
        let line = |(name, hash): (&str, Sha256)| {
            let mut line = format!("{name} ");
            hash.finalize().iter().for_each(|byte| write!(line, "{byte:02x}").unwrap());
            line
        };
        self.0.into_iter().map(line).collect()
    }
}

fn compute(backend: Backend, corpus: &[Batch]) -> Vec<String> {
    let mut digests = Digests::default();
    for batch in corpus {
        OPERATIONS.iter().for_each(|operation| operation(backend, batch, &mut digests));
    }
    digests.lines()
}

/// Every bit-exact backend with every number of threads.
#[test]
fn every_backend_reproduces_the_committed_digests() {
    let expected: Vec<&str> =
        EXPECTED.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let is_emulated = std::env::var_os("XENT_TEST_RUNNER").is_some_and(|runner| !runner.is_empty());
    let threads = if is_emulated { &FEW_THREADS[..] } else { &THREADS };
    let mut ran = Vec::new();
    for &backend in Backend::ALL {
        if !backend.is_available() || !backend.is_bit_exact() {
            let why =
                if backend.is_available() { "build has other bits" } else { "machine lacks it" };
            println!("backend {backend}: skipped, this {why}");
            continue;
        }
        for &threads in threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| compute(backend, &CORPUS));
            assert!(got == expected, "{}", message(backend, threads, &expected, &got));
        }
        println!("backend {backend}: run, with {threads:?} threads");
        ran.push(backend);
    }
    assert!(ran.contains(&Backend::Scalar));
    assert!(ran.contains(Backend::available().last().unwrap()));
}

fn message(backend: Backend, threads: usize, expected: &[&str], got: &[String]) -> String {
    let changed = got.iter().filter(|line| !expected.contains(&line.as_str()));
    let changed: Vec<&str> = changed.filter_map(|line| line.split(' ').next()).collect();
    format!(
        "{backend} on {}, {threads} thread(s): other bits than in tests/digest.txt of {changed:?}.\n\
         If only this backend, number of threads or machine has them, it is wrong. If all have, users \
         will get other bits than before: a changed digest is a deliberate act, to be noted in \
         CHANGELOG.md. The file would be\n{}",
        std::env::consts::ARCH,
        got.join("\n")
    )
}

/// Rows of one length, with targets.
struct Batch {
    rows: usize,
    vocab: usize,
    logits: Vec<f32>,
    targets: Vec<i64>,
}

impl Batch {
    fn view(&self) -> Logits<'_> {
        Logits::new(&self.logits, self.rows, self.vocab).unwrap()
    }
}

/// splitmix64, of which floats are made by exact conversions and single rounded operations only.
struct Generator(u64);

impl Generator {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`, well enough.
    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in `[-1, 1)`, a multiple of 2^-23.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// A bell between -4 and 4.
    fn bell(&mut self) -> f32 {
        self.unit() + self.unit() + self.unit() + self.unit()
    }
}

const INF: f32 = f32::INFINITY;

/// Rows by what is difficult about them. The order is part of the corpus: append only.
const KINDS: &[fn(&mut Generator, &mut [f32])] = &[
    // What a model returns: a bell, and a better class or two.
    |g, row| {
        row.fill_with(|| 3.0 * g.bell());
        for _ in 0..2 {
            row[g.below(row.len())] += 9.0;
        }
    },
    |g, row| row.fill_with(|| 0.01 * g.unit()),
    |g, row| row.fill_with(|| 40.0 * g.unit() - 17.0),
    // Sorted both ways: the largest moves with every vector, or never.
    |g, row| {
        row.fill_with(|| 8.0 * g.bell());
        row.sort_by(f32::total_cmp);
    },
    |g, row| {
        row.fill_with(|| 8.0 * g.bell());
        row.sort_by(|a, b| b.total_cmp(a));
    },
    // Ties, of many and of all.
    |g, row| row.fill_with(|| g.below(5) as f32 * 1.5 - 2.0),
    |g, row| row.fill(g.unit() * 100.0),
    |g, row| row.fill_with(|| if g.below(2) == 0 { 0.0 } else { -0.0 }),
    // A confident row: what is left of the loss is small.
    |g, row| {
        row.fill_with(|| g.bell());
        row[g.below(row.len())] = 4.0 + g.below(1000) as f32 * 0.125;
    },
    // Small classes under a large one, near the edge of what counts.
    |g, row| {
        row.fill_with(|| -75.0 + 20.0 * g.unit());
        row[g.below(row.len())] = 5.0;
    },
    // Steps, so steep that the reference moves all the time.
    |g, row| {
        let step = [0.01, 0.7, 6.5, -0.3][g.below(4)];
        (0..).zip(row).for_each(|(j, x): (u16, _)| *x = f32::from(j % 8192) * step);
    },
    // The first blocks say nothing about the rest.
    |g, row| {
        row.fill_with(|| g.bell());
        let start = row.len() * 3 / 5;
        row[..start].iter_mut().for_each(|x| *x -= 130.0 + 60.0 * g.unit());
    },
    // Large offsets.
    |g, row| {
        let offset = [1e4, -1e4, 1e6, -1e6, 3e9, 1e30, -1e30][g.below(7)];
        row.fill_with(|| offset + 5.0 * g.bell());
    },
    |g, row| row.fill_with(|| [f32::MAX, f32::MIN, 0.0, 1e38, -1e38, 1.0][g.below(6)]),
    // Subnormal numbers, and any finite ones.
    |g, row| row.fill_with(|| f32::from_bits(g.bits() as u32 & 0x807f_ffff)),
    |g, row| {
        row.fill_with(|| {
            let x = f32::from_bits(g.bits() as u32);
            if x.is_finite() { x } else { -1.0 }
        });
    },
    // Masks: a prefix, a suffix, here and there, all but one.
    |g, row| {
        row.fill_with(|| 2.0 * g.bell());
        let end = g.below(row.len());
        row[..end].fill(-INF);
    },
    |g, row| {
        row.fill_with(|| 2.0 * g.bell());
        let start = 1 + g.below(row.len());
        row[start..].fill(-INF);
    },
    |g, row| row.fill_with(|| if g.below(3) == 0 { 2.0 * g.bell() } else { -INF }),
    |g, row| {
        row.fill(-INF);
        row[g.below(row.len())] = -20.0;
    },
    // Rows without a finite loss.
    |_, row| row.fill(-INF),
    |g, row| {
        row.fill_with(|| 2.0 * g.bell());
        row[g.below(row.len())] = f32::NAN;
    },
    |g, row| {
        row.fill_with(|| 2.0 * g.bell());
        row[g.below(row.len())] = INF;
    },
    |g, row| row.fill_with(|| [f32::NAN, INF, -INF, 0.0][g.below(4)]),
];

/// The kinds from this one on make the mean of a batch NaN or infinite.
const WITHOUT_FINITE_LOSS: usize = 20;

/// Rows of the given kinds. The target is random or, as in a trained model, one of the largest; some are
/// to be ignored.
fn batch(g: &mut Generator, vocab: usize, kinds: impl Iterator<Item = usize>) -> Batch {
    let mut batch = Batch { rows: 0, vocab, logits: Vec::new(), targets: Vec::new() };
    for kind in kinds {
        let mut row = vec![0.0; vocab];
        KINDS[kind % KINDS.len()](g, &mut row);
        let mut target = g.below(vocab);
        if g.below(3) > 0 {
            for (j, x) in row.iter().enumerate() {
                target = if *x > row[target] { j } else { target };
            }
        }
        // A masked target makes the loss infinite: now and then only.
        if row[target] == -INF && g.below(8) > 0 {
            target = row.iter().position(|&x| x > -INF).unwrap_or(target);
        }
        batch.targets.push(if g.below(13) == 0 { -100 } else { target as i64 });
        batch.logits.append(&mut row);
        batch.rows += 1;
    }
    batch
}

/// The order is part of the corpus: append only.
static CORPUS: LazyLock<Vec<Batch>> = LazyLock::new(|| {
    let mut g = Generator(20_240_229);
    let mut corpus = Vec::new();
    // Around everything that kernels count in: vectors, steps, blocks; rows of every kind.
    for vocab in [
        1, 2, 3, 5, 8, 13, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 127, 128, 129, 255, 1000,
        1023, 1024, 1025, 2047, 2049, 4097,
    ] {
        corpus.push(batch(&mut g, vocab, 0..WITHOUT_FINITE_LOSS));
        corpus.push(batch(&mut g, vocab, WITHOUT_FINITE_LOSS..KINDS.len()));
    }
    // Long rows, around chunks and up to real vocabularies: a few kinds each, so that all have their turn.
    for (i, vocab) in
        [8_192, 32_000, 32_767, 32_768, 32_769, 50_257, 65_537, 70_001].into_iter().enumerate()
    {
        let first = 3 * i;
        corpus.push(batch(&mut g, vocab, first..first + 3));
        corpus.push(batch(&mut g, vocab, std::iter::once(0)));
    }
    // Many short rows: cut into groups of rows for the threads.
    corpus.push(batch(&mut g, 257, (0..600).map(|i| i % WITHOUT_FINITE_LOSS)));
    // The kinds up to here have losses of ordinary size, so that every one counts in the sum.
    corpus.push(batch(&mut g, 300, (0..300).map(|i| i % 12)));
    corpus
});
