//! Throughput of the kernels and of the public API: `cargo bench --bench forward`.
//!
//! Rows are spread over all threads of the machine unless a name says otherwise. For how far that is
//! from what the memory can deliver see `limits.rs`.

#[allow(dead_code, reason = "shared with `limits`, which uses more of it")]
mod common;

use common::{Batch, all_threads, fastest_backend, pool, print_skipped};
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;
use xent::{Backend, CrossEntropy, RowOutputs, Softmax, internals};

const VALID: &str = "the arguments are valid";

/// What slow code is measured up to; seconds per call are beyond it.
const MAX_ELEMENTS_SCALAR: usize = 200_000;
const MAX_ELEMENTS_TWO_PASS: usize = 20_000_000;

/// Opens the group of one shape.
fn group<'a>(
    c: &'a mut Criterion,
    name: &str,
    rows: usize,
    vocab: usize,
) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(format!("{name}/{rows}x{vocab}"));
    group.throughput(Throughput::Bytes((rows * vocab * size_of::<f32>()) as u64));
    if rows * vocab > 1_000_000 {
        group.sample_size(10);
    }
    group
}

/// The backends for this many elements.
fn backends(elements: usize) -> impl Iterator<Item = Backend> {
    let all = Backend::available().iter().copied();
    all.filter(move |&b| b.name() != "scalar" || elements <= MAX_ELEMENTS_SCALAR)
}

/// The loss of every row, by all backends and by the code that people write by hand.
fn losses(c: &mut Criterion, name: &str, rows: usize, vocab: usize) {
    // Made when the first benchmark that was selected asks for it.
    let batch = LazyCell::new(|| Batch::new(rows, vocab));
    let mut out = vec![0.0; rows];
    let mut group = group(c, name, rows, vocab);
    for backend in backends(rows * vocab) {
        let loss = CrossEntropy::new().backend(backend);
        group.bench_function(backend.name(), |b| {
            let (logits, targets) = (batch.logits(), &batch.targets);
            b.iter(|| loss.forward_into(black_box(logits), targets, &mut out).expect(VALID));
        });
    }
    if rows * vocab <= MAX_ELEMENTS_TWO_PASS {
        group.bench_function("two_pass", |b| {
            let batch = &*batch;
            b.iter(|| black_box(batch).two_pass(&mut out));
        });
    }
    group.finish();
}

fn forward(c: &mut Criterion) {
    print_skipped();
    println!("skipped: scalar above {MAX_ELEMENTS_SCALAR} elements");
    println!("skipped: two_pass above {MAX_ELEMENTS_TWO_PASS} elements");
    for vocab in [128, 1000, 32_000, 50_257, 151_936] {
        losses(c, "forward", 1, vocab);
    }
    for (rows, vocab) in [(16, 50_257), (256, 50_257), (1024, 151_936)] {
        losses(c, "forward", rows, vocab);
    }
}

/// Rows for which the work around the pass over a row shows.
fn short_rows(c: &mut Criterion) {
    for vocab in [64, 128, 256, 512, 1024] {
        losses(c, "short_rows", 131_072 / vocab, vocab);
    }
}

fn threads(c: &mut Criterion) {
    if !cfg!(feature = "rayon") {
        println!("skipped: threads, of which there is one without the feature `rayon`");
        return;
    }
    let batch = LazyCell::new(|| Batch::new(256, 50_257));
    let mut out = vec![0.0; 256];
    let mut group = group(c, "threads", 256, 50_257);
    let loss = CrossEntropy::new().backend(fastest_backend());
    let all = all_threads();
    // Every number of threads of a large machine would take an hour.
    for threads in (1..=all).filter(|&n| n <= 8 || n.is_power_of_two() || n == all) {
        group.bench_function(threads.to_string(), |b| {
            let (logits, targets, pool) = (batch.logits(), &batch.targets, pool(threads));
            // Inside, since entering a pool takes as long as a short call.
            pool.install(|| {
                b.iter(|| loss.forward_into(black_box(logits), targets, &mut out).expect(VALID));
            });
        });
    }
    group.finish();
}

/// One short row through each function of the public API, and through the kernel without it.
fn call(c: &mut Criterion) {
    let batch = Batch::new(1, 1000);
    let (logits, targets) = (batch.logits(), &batch.targets);
    let mut out = [0.0];
    for backend in Backend::available().iter().copied() {
        let loss = CrossEntropy::new().backend(backend);
        let mut group = group(c, &format!("call/{backend}"), 1, 1000);
        group.bench_function("kernel", |b| {
            b.iter(|| internals::row_loss(backend, black_box(&batch.logits), batch.target(0)));
        });
        group.bench_function("forward", |b| b.iter(|| loss.forward(black_box(logits), targets)));
        group.bench_function("forward_into", |b| {
            b.iter(|| loss.forward_into(black_box(logits), targets, &mut out));
        });
        group.bench_function("evaluate", |b| {
            b.iter(|| loss.evaluate(black_box(logits), targets, RowOutputs::new()));
        });
        group.finish();
    }
}

fn softmax(c: &mut Criterion) {
    for (rows, vocab) in [(1, 50_257), (16, 50_257)] {
        let batch = LazyCell::new(|| Batch::new(rows, vocab));
        let mut out = vec![0.0; rows * vocab];
        for backend in backends(rows * vocab) {
            let softmax = Softmax::new().backend(backend);
            let mut group = group(c, &format!("softmax/{backend}"), rows, vocab);
            group.bench_function("softmax", |b| {
                let logits = batch.logits();
                b.iter(|| softmax.softmax(black_box(logits), &mut out).expect(VALID));
            });
            group.bench_function("log_softmax", |b| {
                let logits = batch.logits();
                b.iter(|| softmax.log_softmax(black_box(logits), &mut out).expect(VALID));
            });
            group.bench_function("logsumexp", |b| {
                let logits = batch.logits();
                b.iter(|| softmax.logsumexp(black_box(logits), &mut out[..rows]).expect(VALID));
            });
            group.finish();
        }
    }
}

fn exp(c: &mut Criterion) {
    let values = Batch::new(1, 4096).logits;
    let mut group = group(c, "exp", 1, values.len());
    for backend in Backend::available().iter().copied() {
        group.bench_function(backend.name(), |b| {
            // A fresh copy each time: the exponential of an exponential soon overflows.
            let exp = |values: &mut Vec<f32>| internals::exp(backend, values);
            b.iter_batched_ref(|| values.clone(), exp, BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
        .without_plots();
    targets = forward, short_rows, threads, call, softmax, exp
}
criterion_main!(benches);
