//! How far every kernel is from the speed of reading.
//!
//! ```text
//! cargo bench --bench limits [-- --quick | --rounds N] [--filter SUBSTRING] [--huge-pages] [--list]
//! ```
//!
//! The limit is the largest element of the same bytes, found with the fastest backend eight vectors
//! at a time: no kernel can take less than it takes to read. It is the limit of all backends, also
//! of those with narrower vectors, and with many threads each reads one contiguous range. For gradients
//! it is `memcpy` of the matrix, which moves as many bytes, and for gradients in place ("in place, own")
//! also a pass that multiplies every element by a number, in place. For a single short row ("call") the
//! limit is the kernel itself, called without the public API.
//!
//! `bf16`, `f16` and `f64` have the limits of as many bytes. "convert, forward" is what they are compared with: the
//! matrix is converted to `f32` first, with all threads, and the loss is that of the `f32` matrix.
//!
//! "padded", "classes first" and "images" (32 of 21 classes) take the same memory for another layout, and
//! "masked" has a bit mask that half of the classes pass: their limits are those of the plain layout.
//!
//! "logprob" and what follows is `LogProbs`: of one row of 151,936, which the second-level cache holds, and of 32 rows of
//! ten times as many. Targets are drawn tokens, or "of any" token. "scalar engine" is the code that it replaces.
//!
//! Everything runs in turn, round after round, and every measurement stands between two of its limit:
//! a change in clock speed, or a neighbour on a shared machine, meets both. A measurement is one call,
//! or for short ones, and for the limit they have, the fastest of a few batches of calls. `ratio` is
//! the median over the rounds of limit / time, 1.0 being the speed of reading; `seconds` is the median
//! time of one call, and `limit_seconds` is `ratio * seconds`.
//!
//! It prints a table and writes `limits.json` to the target directory. `--filter` selects lines of the
//! table by a part of a name like `forward avx512 1024x50257 t2 f32`, and `--list` prints all names.
//! `--huge-pages` asks the system for them (Linux), to see how much of the waiting is for page tables.

#[allow(dead_code, reason = "a part of it is for the other benches")]
mod common;
#[path = "limits/layouts.rs"]
mod layouts;
#[path = "limits/logprobs.rs"]
mod logprobs;

use clap::Parser;
use common::{Batch, Pages, all_threads, fastest_backend, pool, print_skipped};
use rayon::ThreadPool;
use rayon::prelude::*;
use serde::Serialize;
use std::fmt::{self, Display, Formatter};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use xent::{
    Backend, CrossEntropy, Element, Error, Gradient, LogSumExp, Logits, LogitsMut, RowOutputs,
};
use xent::{bf16, f16, internals};

/// The least time between two looks at the clock: short calls are repeated to fill it.
///
/// Less than a time slice of an operating system, so that not every batch is interrupted where there
/// is other work.
const BATCH: Duration = Duration::from_micros(400);

/// The number of batches of short calls of which the fastest counts.
const BATCHES: u32 = 5;

const VALID: &str = "the arguments are valid";

fn main() {
    let options = Options::parse();
    if !options.list {
        print_header(&options);
    }

    let pages = if options.huge_pages { Pages::Huge } else { Pages::Usual };
    let batch = |rows, vocab| Batch::in_pages(rows, vocab, pages);
    let one_row = batch(1, 49_152);
    let cached = batch(16, 50_257);
    let large = batch(1024, 50_257);
    let short = batch(1, 1000);
    let halves = (rounded::<bf16>(&one_row, 1), rounded::<f16>(&one_row, 1));
    let large_halves = (rounded::<bf16>(&large, 1024), rounded::<f16>(&large, 1024));
    let half_scratch = (Mutex::new(large_halves.0.clone()), Mutex::new(large_halves.1.clone()));
    // As many bytes as the batch has.
    let double = rounded::<f64>(&large, 512);
    let double_scratch = Mutex::new(double.clone());
    // One gradient for all: no more than one of its users runs at a time.
    let scratch = Mutex::new(large.logits.clone());
    let mask = layouts::mask(&large);
    let decode = batch(1, 151_936);
    let chosen = logprobs::drawn(&decode);
    let long = batch(1, 524_288);
    let long_chosen = logprobs::drawn(&long);
    let server = batch(10 * 32, 151_936);
    let served = logprobs::drawn(&server);
    let pools: Vec<ThreadPool> = if all_threads() == 1 { vec![1] } else { vec![1, all_threads()] }
        .into_iter()
        .map(pool)
        .collect();

    let mut groups = vec![against_reading(&one_row, &pools[0], Backend::available())];
    // With more than one row it would take most of the time.
    let is_fast = |backend: &Backend| backend.name() != "scalar";
    let fast: Vec<Backend> = Backend::available().iter().copied().filter(is_fast).collect();
    for batch in [&cached, &large] {
        groups.extend(pools.iter().map(|pool| against_reading(batch, pool, &fast)));
    }
    for pool in &pools {
        groups.push(against_copying(&large, pool, &fast, &scratch));
        groups.push(against_rewriting(&large, pool, &fast, &scratch));
    }
    groups.push(typed_against_reading(&one_row, &halves.0, &pools[0], &fast, &scratch));
    groups.push(typed_against_reading(&one_row, &halves.1, &pools[0], &fast, &scratch));
    for pool in &pools {
        groups.push(typed_against_reading(&large, &large_halves.0, pool, &fast, &scratch));
        groups.push(typed_against_reading(&large, &large_halves.1, pool, &fast, &scratch));
        groups.push(typed_against_copying(&large, pool, &fast, &scratch, &half_scratch.0));
        groups.push(typed_against_copying(&large, pool, &fast, &scratch, &half_scratch.1));
        groups.push(typed_against_reading(&large, &double, pool, &fast, &scratch));
        groups.push(typed_against_copying(&large, pool, &fast, &scratch, &double_scratch));
    }
    for pool in &pools {
        groups.push(layouts::against_reading(&large, pool, &fast, &mask));
        groups.push(layouts::against_copying(&large, pool, &fast, &scratch, &mask));
    }
    for pool in &pools {
        groups.push(logprobs::against_reading(&decode, 1, &chosen, pool, &fast));
        groups.push(logprobs::against_reading(&long, 1, &long_chosen, pool, &fast));
        groups.push(logprobs::against_reading(&server, 32, &served, pool, &fast));
    }
    groups.extend(Backend::available().iter().map(|&backend| against_kernel(&short, backend)));
    let all: Vec<Name> = groups.iter().flat_map(Group::names).collect();
    for group in &mut groups {
        group.select(&options.filter);
    }
    groups.retain(|group| !group.variants.is_empty());
    if groups.is_empty() {
        eprintln!("no measurement has {:?} in its name; there are", options.filter);
        eprintln!("  operations {}", distinct(all.iter().map(|name| name.op.to_owned())));
        eprintln!("  backends   {}", distinct(all.iter().map(|name| name.backend.to_owned())));
        eprintln!("  matrices   {}", distinct(all.iter().map(|name| name.matrix.clone())));
        eprintln!("and --list prints all names");
        std::process::exit(2);
    }
    if options.list {
        groups.iter().flat_map(Group::names).for_each(|name| println!("{name}"));
        return;
    }

    run_rounds(&mut groups, &options);
    let lines: Vec<Line> = groups.iter().flat_map(Group::lines).collect();
    print_table(&lines);
    if options.bench {
        write_json(&lines);
    }
}

/// How far every kernel is from the speed of reading, which no kernel can exceed.
///
/// Without options the measurement takes up to four minutes. It prints a table, and writes limits.json
/// to the target directory.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench limits --")]
struct Options {
    /// Three rounds of at most five seconds: whether everything works, not how fast it is.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// The number of rounds [default: 80, or as many as begin within 170 seconds]
    #[arg(long, value_name = "N")]
    rounds: Option<NonZeroUsize>,
    /// Measures only what has this in its name, such as "forward avx512 1024x50257 t2 f32".
    #[arg(long, value_name = "SUBSTRING", default_value = "", hide_default_value = true)]
    filter: String,
    /// Asks the system for huge pages (Linux).
    #[arg(long)]
    huge_pages: bool,
    /// Prints the names of all measurements, or of those that the filter selects, and measures nothing.
    #[arg(long)]
    list: bool,
    /// Cargo passes it when benches are run to measure, not to test that they work.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// The number of rounds, and how long after the start the last one may begin.
    fn rounds(&self) -> (usize, Duration) {
        match self.rounds {
            Some(rounds) => (rounds.get(), Duration::MAX),
            None if self.quick || !self.bench => (3, Duration::from_secs(5)),
            None => (80, Duration::from_secs(170)),
        }
    }
}

/// The values without repetitions, in the order in which they come first.
fn distinct(values: impl Iterator<Item = String>) -> String {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen.join(", ")
}

/// What a measurement is selected by.
struct Name {
    op: &'static str,
    backend: &'static str,
    matrix: String,
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.op, self.backend, self.matrix)
    }
}

/// Something to time.
struct Timed<'a> {
    run: Box<dyn FnMut() + Send + 'a>,
    /// Calls in a batch.
    repetitions: u32,
}

impl<'a> Timed<'a> {
    fn new(run: impl FnMut() + Send + 'a) -> Self {
        Timed { run: Box::new(run), repetitions: 1 }
    }

    fn batch(&mut self) -> Duration {
        let start = Instant::now();
        for _ in 0..self.repetitions {
            (self.run)();
        }
        start.elapsed()
    }

    fn calibrate(&mut self) {
        while self.batch() < BATCH {
            self.repetitions *= 2;
        }
    }

    /// The time of one call.
    fn seconds(&mut self, batches: u32) -> f64 {
        let fastest = (0..batches).map(|_| self.batch()).min();
        fastest.expect("at least one batch").as_secs_f64() / f64::from(self.repetitions)
    }
}

/// A line of the table in the making.
struct Variant<'a> {
    op: &'static str,
    backend: &'static str,
    timed: Timed<'a>,
    samples: Vec<Sample>,
}

struct Sample {
    seconds: f64,
    limit: f64,
}

impl<'a> Variant<'a> {
    fn new(op: &'static str, backend: &'static str, run: impl FnMut() + Send + 'a) -> Self {
        Variant { op, backend, timed: Timed::new(run), samples: Vec::new() }
    }
}

/// Variants with the same input, the same threads and the same limit.
struct Group<'a> {
    batch: &'a Batch,
    rows: usize,
    dtype: &'static str,
    /// Where it runs; on the calling thread, outside of any pool, if there is none.
    pool: Option<&'a ThreadPool>,
    limit: Timed<'a>,
    variants: Vec<Variant<'a>>,
}

impl Group<'_> {
    fn threads(&self) -> usize {
        self.pool.map_or(1, ThreadPool::current_num_threads)
    }

    fn matrix(&self) -> String {
        format!("{}x{} t{} {}", self.rows, self.batch.vocab, self.threads(), self.dtype)
    }

    fn names(&self) -> Vec<Name> {
        let matrix = self.matrix();
        let name = |v: &Variant<'_>| Name { op: v.op, backend: v.backend, matrix: matrix.clone() };
        self.variants.iter().map(name).collect()
    }

    fn select(&mut self, filter: &str) {
        let mut selected = self.names().into_iter().map(|name| name.to_string().contains(filter));
        self.variants.retain(|_| selected.next().expect("each variant has a name"));
    }

    /// Timers are read inside the pool: entering it takes as long as a short call.
    fn in_pool(&mut self, f: impl FnOnce(&mut Self) + Send) {
        match self.pool {
            Some(pool) => pool.install(|| f(self)),
            None => f(self),
        }
    }

    fn calibrate(&mut self) {
        self.limit.calibrate();
        for variant in &mut self.variants {
            variant.timed.calibrate();
        }
    }

    fn round(&mut self) {
        // The same for all, or what is long would be interrupted more often than its limit.
        let batches = if self.limit.repetitions > 1 { BATCHES } else { 1 };
        // Brings the data back that other groups have driven from the cache.
        self.limit.batch();
        let mut before = self.limit.seconds(batches);
        for variant in &mut self.variants {
            let seconds = variant.timed.seconds(batches);
            let after = self.limit.seconds(batches);
            variant.samples.push(Sample { seconds, limit: (before + after) / 2.0 });
            before = after;
        }
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        self.variants.iter().map(|variant| {
            let seconds = median(variant.samples.iter().map(|s| s.seconds));
            let ratio = median(variant.samples.iter().map(|s| s.limit / s.seconds));
            Line {
                op: variant.op,
                backend: variant.backend,
                dtype: self.dtype,
                rows: self.rows,
                vocab: self.batch.vocab,
                threads: self.threads(),
                seconds,
                limit_seconds: ratio * seconds,
                ratio,
            }
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// One object of `limits.json`.
#[derive(Serialize)]
struct Line {
    op: &'static str,
    backend: &'static str,
    dtype: &'static str,
    rows: usize,
    vocab: usize,
    threads: usize,
    seconds: f64,
    limit_seconds: f64,
    ratio: f64,
}

/// The operations on a batch, against reading it.
///
/// "read" is the limit of each backend by itself. That of the fastest one is measured against its own
/// kind: how far its ratio is from 1 is the error to expect of all ratios of the group.
fn against_reading<'a>(batch: &'a Batch, pool: &'a ThreadPool, backends: &[Backend]) -> Group<'a> {
    let threads = pool.current_num_threads();
    let read_all =
        move |backend| move || _ = black_box(read(backend, black_box(&batch.logits), threads));
    let mut losses = vec![0.0; batch.rows];
    let mut variants = vec![Variant::new("two_pass", "none", move || {
        black_box(batch).two_pass(&mut losses);
    })];
    for &backend in backends {
        variants.push(Variant::new("read", backend.name(), read_all(backend)));
        variants.push(forward("forward", batch, backend));
        variants.push(forward_argmax(batch, backend));
        variants.extend(options(batch).into_iter().map(|(name, loss)| {
            let mut losses = vec![0.0; batch.rows];
            let loss = loss.backend(backend);
            let op = ["forward+smoothing", "forward+smoothing+weights", "forward+z-loss"][name];
            Variant::new(op, backend.name(), move || {
                loss.forward_into(black_box(batch.logits()), &batch.targets, &mut losses)
                    .expect(VALID);
                black_box(&losses);
            })
        }));
    }
    let limit = Timed::new(read_all(fastest_backend()));
    Group { batch, rows: batch.rows, dtype: "f32", pool: Some(pool), limit, variants }
}

/// The largest value, found by `threads` threads of the current pool, each in a range of its own.
fn read(backend: Backend, values: &[f32], threads: usize) -> f32 {
    if threads == 1 {
        return internals::read(backend, values).expect(VALID);
    }
    let half = threads / 2;
    let (a, b) = values.split_at(values.len() / threads * half);
    let (a, b) = rayon::join(|| read(backend, a, half), || read(backend, b, threads - half));
    a.max(b)
}

/// The options whose cost is measured: smoothing, smoothing with class weights, z-loss.
fn options(batch: &Batch) -> [(usize, CrossEntropy<'_>); 3] {
    let smoothed = CrossEntropy::new().label_smoothing(0.1);
    let weighted = smoothed.clone().class_weights(&batch.weights);
    [(0, smoothed), (1, weighted), (2, CrossEntropy::new().z_loss(1e-4))]
}

/// Gradients against a copy of the matrix.
fn against_copying<'a>(
    batch: &'a Batch,
    pool: &'a ThreadPool,
    backends: &[Backend],
    scratch: &'a Mutex<Vec<f32>>,
) -> Group<'a> {
    let threads = pool.current_num_threads();
    let limit = Timed::new(move || copy(&batch.logits, &mut lock(scratch), threads));
    let mut variants = Vec::new();
    for &backend in backends {
        let loss = CrossEntropy::new().backend(backend);
        let mut stats = vec![LogSumExp::default(); batch.rows];
        let outputs = RowOutputs::new().saved(&mut stats);
        loss.evaluate(batch.logits(), &batch.targets, outputs).expect(VALID);
        let backward = loss.clone();
        variants.push(Variant::new("forward+backward", backend.name(), move || {
            let mut to = lock(scratch);
            let gradient = Gradient::new(batch.matrix(&mut to));
            let outputs = RowOutputs::new();
            let all = loss.forward_backward(batch.logits(), &batch.targets, gradient, outputs);
            black_box(all.expect(VALID));
        }));
        variants.push(Variant::new("backward", backend.name(), move || {
            let mut to = lock(scratch);
            let gradient = Gradient::new(batch.matrix(&mut to));
            backward.backward(batch.logits(), &batch.targets, &stats, gradient).expect(VALID);
        }));
        let plain = CrossEntropy::new().backend(backend);
        variants.push(in_place("in place", batch, backend, plain, scratch));
        for (name, loss) in options(batch) {
            let op = ["in place+smoothing", "in place+smoothing+weights", "in place+z-loss"][name];
            variants.push(in_place(op, batch, backend, loss.backend(backend), scratch));
        }
    }
    Group { batch, rows: batch.rows, dtype: "f32", pool: Some(pool), limit, variants }
}

/// The gradient in place against the least that anything in place can do.
fn against_rewriting<'a>(
    batch: &'a Batch,
    pool: &'a ThreadPool,
    backends: &[Backend],
    scratch: &'a Mutex<Vec<f32>>,
) -> Group<'a> {
    let threads = pool.current_num_threads();
    let limit = Timed::new(move || rewrite(fastest_backend(), &mut lock(scratch), threads));
    let variants = backends.iter().map(|&backend| {
        let loss = CrossEntropy::new().backend(backend);
        in_place("in place, own", batch, backend, loss, scratch)
    });
    Group {
        batch,
        rows: batch.rows,
        dtype: "f32",
        pool: Some(pool),
        limit,
        variants: variants.collect(),
    }
}

/// Loss and gradient over whatever is in `scratch`: logits the first time, then gradients, which take as
/// long.
fn in_place<'a>(
    op: &'static str,
    batch: &'a Batch,
    backend: Backend,
    loss: CrossEntropy<'a>,
    scratch: &'a Mutex<Vec<f32>>,
) -> Variant<'a> {
    Variant::new(op, backend.name(), move || {
        let mut x = lock(scratch);
        let outputs = RowOutputs::new();
        let x = batch.matrix(&mut x);
        let all = loss.forward_backward_in_place(x, &batch.targets, 1.0, outputs);
        black_box(all.expect(VALID));
    })
}

fn lock<T>(scratch: &Mutex<Vec<T>>) -> std::sync::MutexGuard<'_, Vec<T>> {
    scratch.lock().expect("no user has panicked")
}

/// `memcpy` by `threads` threads of the current pool, each of a range of its own.
fn copy(from: &[f32], to: &mut [f32], threads: usize) {
    if threads == 1 {
        black_box(to).copy_from_slice(black_box(from));
        return;
    }
    let (half, at) = (threads / 2, from.len() / threads * (threads / 2));
    let ((from_a, from_b), (to_a, to_b)) = (from.split_at(at), to.split_at_mut(at));
    rayon::join(|| copy(from_a, to_a, half), || copy(from_b, to_b, threads - half));
}

/// Every element times 1, by `threads` threads of the current pool, each in a range of its own.
fn rewrite(backend: Backend, values: &mut [f32], threads: usize) {
    if threads == 1 {
        return internals::rewrite(backend, values, black_box(1.0)).expect(VALID);
    }
    let half = threads / 2;
    let (a, b) = values.split_at_mut(values.len() / threads * half);
    rayon::join(|| rewrite(backend, a, half), || rewrite(backend, b, threads - half));
}

/// Another type of logits than `f32`.
trait Typed: Element {
    const NAME: &'static str;
    fn round(x: f32) -> Self;

    /// The conversion to `f32`, of types that losses could be computed of by that.
    fn widen(backend: Backend, from: &[Self], to: &mut [f32]) -> Option<Result<(), Error>>;
}

impl Typed for bf16 {
    const NAME: &'static str = "bf16";
    fn round(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn widen(backend: Backend, from: &[Self], to: &mut [f32]) -> Option<Result<(), Error>> {
        Some(internals::widen_bf16(backend, from, to))
    }
}

impl Typed for f16 {
    const NAME: &'static str = "f16";
    fn round(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn widen(backend: Backend, from: &[Self], to: &mut [f32]) -> Option<Result<(), Error>> {
        Some(internals::widen_f16(backend, from, to))
    }
}

impl Typed for f64 {
    const NAME: &'static str = "f64";
    fn round(x: f32) -> Self {
        x.into()
    }
    fn widen(_: Backend, _: &[Self], _: &mut [f32]) -> Option<Result<(), Error>> {
        None
    }
}

fn rounded<T: Typed>(batch: &Batch, rows: usize) -> Vec<T> {
    batch.logits[..rows * batch.vocab].iter().map(|&x| T::round(x)).collect()
}

/// As many bytes as `x` has, in numbers of the batch.
fn as_many<'a, T>(batch: &'a Batch, x: &[T]) -> &'a [f32] {
    &batch.logits[..size_of_val(x) / size_of::<f32>()]
}

/// Losses of the first rows of the batch in another type, against reading as many bytes.
fn typed_against_reading<'a, T: Typed>(
    batch: &'a Batch,
    x: &'a [T],
    pool: &'a ThreadPool,
    backends: &[Backend],
    scratch: &'a Mutex<Vec<f32>>,
) -> Group<'a> {
    let vocab = batch.vocab;
    let (rows, threads) = (x.len() / vocab, pool.current_num_threads());
    let (bytes, targets) = (as_many(batch, x), &batch.targets[..rows]);
    let limit = Timed::new(move || {
        black_box(read(fastest_backend(), black_box(bytes), threads));
    });
    let mut variants = Vec::new();
    for &backend in backends {
        let view = move || Logits::new(black_box(x), rows, vocab).expect(VALID);
        let loss = CrossEntropy::new().backend(backend);
        let (evaluate, of_wide) = (loss.clone(), loss.clone());
        let results = || vec![T::Real::default(); rows];
        let mut losses = results();
        variants.push(Variant::new("forward", backend.name(), move || {
            loss.forward_into(view(), targets, &mut losses).expect(VALID);
            black_box(&losses);
        }));
        let (mut losses, mut argmax) = (results(), vec![0; rows]);
        variants.push(Variant::new("forward+argmax", backend.name(), move || {
            let outputs = RowOutputs::new().losses(&mut losses).argmax(&mut argmax);
            black_box(evaluate.evaluate(view(), targets, outputs).expect(VALID));
        }));
        if T::widen(backend, &[], &mut []).is_none() {
            continue;
        }
        let mut losses = vec![0.0; rows];
        variants.push(Variant::new("convert, forward", backend.name(), move || {
            let wide = &mut lock(scratch)[..x.len()];
            let rows_of_both = wide.par_chunks_mut(vocab).zip(black_box(x).par_chunks(vocab));
            rows_of_both.for_each(|(to, from)| _ = T::widen(backend, from, to));
            let wide = Logits::new(wide, rows, vocab).expect(VALID);
            of_wide.forward_into(wide, targets, &mut losses).expect(VALID);
            black_box(&losses);
        }));
    }
    Group { batch, rows, dtype: T::NAME, pool: Some(pool), limit, variants }
}

/// The gradient in place of rows of another type, against a copy of as many bytes.
fn typed_against_copying<'a, T: Typed>(
    batch: &'a Batch,
    pool: &'a ThreadPool,
    backends: &[Backend],
    scratch: &'a Mutex<Vec<f32>>,
    typed_scratch: &'a Mutex<Vec<T>>,
) -> Group<'a> {
    let threads = pool.current_num_threads();
    let rows = lock(typed_scratch).len() / batch.vocab;
    let (bytes, targets) = (as_many(batch, &lock(typed_scratch)), &batch.targets[..rows]);
    let limit = Timed::new(move || copy(bytes, &mut lock(scratch)[..bytes.len()], threads));
    let variants = backends.iter().map(|&backend| {
        let loss = CrossEntropy::new().backend(backend);
        Variant::new("in place", backend.name(), move || {
            let mut x = lock(typed_scratch);
            let x = LogitsMut::new(&mut x, rows, batch.vocab).expect(VALID);
            let all = loss.forward_backward_in_place(x, targets, 1.0, RowOutputs::new());
            black_box(all.expect(VALID));
        })
    });
    let variants = variants.collect();
    Group { batch, rows, dtype: T::NAME, pool: Some(pool), limit, variants }
}

/// The public API on a row so short that overhead shows, against the kernel without it.
fn against_kernel(batch: &Batch, backend: Backend) -> Group<'_> {
    let limit = Timed::new(move || {
        let loss = internals::row_loss(backend, black_box(&batch.logits), batch.target(0));
        black_box(loss.expect(VALID));
    });
    let loss = CrossEntropy::new().backend(backend);
    let reduced = loss.clone();
    let variants = vec![
        forward("call", batch, backend),
        Variant::new("call forward", backend.name(), move || {
            black_box(reduced.forward(black_box(batch.logits()), &batch.targets).expect(VALID));
        }),
        Variant::new("call evaluate", backend.name(), move || {
            let all = loss.evaluate(black_box(batch.logits()), &batch.targets, RowOutputs::new());
            black_box(all.expect(VALID));
        }),
    ];
    Group { batch, rows: batch.rows, dtype: "f32", pool: None, limit, variants }
}

fn forward<'a>(op: &'static str, batch: &'a Batch, backend: Backend) -> Variant<'a> {
    let loss = CrossEntropy::new().backend(backend);
    let mut losses = vec![0.0; batch.rows];
    Variant::new(op, backend.name(), move || {
        loss.forward_into(black_box(batch.logits()), &batch.targets, &mut losses).expect(VALID);
        black_box(&losses);
    })
}

fn forward_argmax(batch: &Batch, backend: Backend) -> Variant<'_> {
    let loss = CrossEntropy::new().backend(backend);
    let mut losses = vec![0.0; batch.rows];
    let mut argmax = vec![0; batch.rows];
    Variant::new("forward+argmax", backend.name(), move || {
        let outputs = RowOutputs::new().losses(&mut losses).argmax(&mut argmax);
        black_box(loss.evaluate(black_box(batch.logits()), &batch.targets, outputs).expect(VALID));
    })
}

fn run_rounds(groups: &mut [Group<'_>], options: &Options) {
    for group in groups.iter_mut() {
        group.in_pool(Group::calibrate);
    }
    let start = Instant::now();
    let (most, time) = options.rounds();
    let mut rounds = 0;
    while rounds == 0 || (rounds < most && start.elapsed() < time) {
        for group in groups.iter_mut() {
            group.in_pool(Group::round);
        }
        rounds += 1;
    }
    println!("{rounds} rounds in {:.0} s\n", start.elapsed().as_secs_f64());
}

fn print_header(options: &Options) {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    println!("command: cargo bench --bench limits -- {}", args.join(" "));
    println!("CPU:     {}, {} threads", cpu.map_or("unknown", |(_, name)| name), all_threads());
    if let Some((level, size)) = last_cache() {
        println!("cache:   {size} at level {level}; what fits in it is not read from DRAM");
    }
    println!("build:   RUSTFLAGS {:?}, portable has {}", RUSTFLAGS, portable_instructions());
    println!("limit:   reading with {}, for all backends", fastest_backend());
    if cfg!(debug_assertions) || options.rounds().0 < 20 {
        println!("This run is a test that everything works: do not quote its figures.");
    }
    print_skipped();
    if Backend::available().iter().any(|backend| backend.name() == "scalar") {
        println!("skipped: scalar with more than one row, which would take most of the time");
    }
}

/// As far as the environment of the compiler shows it; flags from configuration files do not.
const RUSTFLAGS: &str = match option_env!("RUSTFLAGS") {
    Some(flags) => flags,
    None => "",
};

/// The widest instructions that code without run-time detection was compiled for.
fn portable_instructions() -> &'static str {
    match () {
        () if cfg!(target_feature = "avx512f") => "AVX-512",
        () if cfg!(all(target_feature = "avx2", target_feature = "fma")) => "AVX2 and FMA",
        () if cfg!(target_feature = "avx") => "AVX",
        () if cfg!(target_feature = "sse2") => "SSE2",
        () => "the instructions of the target",
    }
}

/// Level and size of the outermost cache, where Linux tells.
fn last_cache() -> Option<(u32, String)> {
    let cache = |index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name| std::fs::read_to_string(format!("{path}/{name}")).ok();
        Some((read("level")?.trim().parse().ok()?, read("size")?.trim().to_owned()))
    };
    (0..8).map_while(cache).max_by_key(|(level, _)| *level)
}

fn print_table(lines: &[Line]) {
    println!(
        "{:26} {:8} {:5} {:>13} {:>8} {:>11} {:>8} {:>11} {:>6}",
        "op", "backend", "dtype", "rows x vocab", "threads", "time us", "GB/s", "limit us", "ratio",
    );
    for line in lines {
        let shape = format!("{} x {}", line.rows, line.vocab);
        let element = match line.dtype {
            "f64" => 8,
            "f32" => 4,
            _ => 2,
        };
        let writes = line.op.contains("backward") || line.op.contains("in place");
        let bytes = (line.rows * line.vocab * element * (1 + usize::from(writes))) as f64;
        println!(
            "{:26} {:8} {:5} {shape:>13} {:>8} {:>11.3} {:>8.1} {:>11.3} {:>6.3}",
            line.op,
            line.backend,
            line.dtype,
            line.threads,
            line.seconds * 1e6,
            bytes / line.seconds / 1e9,
            line.limit_seconds * 1e6,
            line.ratio,
        );
    }
}

fn write_json(lines: &[Line]) {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let path = target.join("limits.json");
    let json = serde_json::to_string_pretty(lines).expect("numbers and names can be written");
    match std::fs::write(&path, json + "\n") {
        Ok(()) => println!("\n{} lines written to {}", lines.len(), path.display()),
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            std::process::exit(1);
        }
    }
}
