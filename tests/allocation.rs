//! What calls allocate, and that small ones leave the thread pool alone.
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]

use common::{Rng, for_each_backend};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use xent::{
    AllowedTokens, Backend, Compare, CompareOutputs, CrossEntropy, Gradient, LogProbs, LogSumExp,
    LogitBias, Logits, LogitsMut, RowOutputs, RowStats, Sample, SequenceScore, Shard, Softmax,
    SparseProbs, Targets, TokenOutputs,
};

/// The system allocator, counting what is asked of it.
struct Counting;

/// Bytes asked for by all threads.
static BYTES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Calls by this thread. Not dropped and not lazily made: neither may happen in an allocator.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// Bytes asked for by this thread.
    static OWN_BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    BYTES.fetch_add(bytes, Relaxed);
    CALLS.set(CALLS.get() + 1);
    OWN_BYTES.set(OWN_BYTES.get() + bytes);
}

// SAFETY: every call is passed on to the system allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator by this thread during `f`.
fn calls(f: impl FnOnce()) -> usize {
    let before = CALLS.get();
    f();
    CALLS.get() - before
}

/// Bytes that all threads ask for during `f`.
fn bytes(f: impl FnOnce()) -> usize {
    let before = BYTES.load(Relaxed);
    f();
    BYTES.load(Relaxed) - before
}

/// Bytes that this thread asks for during `f`.
fn own_bytes(f: impl FnOnce()) -> usize {
    let before = OWN_BYTES.get();
    f();
    OWN_BYTES.get() - before
}

fn matrix(rows: usize, vocab: usize) -> (Vec<f32>, Vec<i64>) {
    let mut rng = Rng::new(1);
    let data = (0..rows * vocab).map(|_| rng.normal()).collect();
    (data, (0..rows).map(|_| rng.below(vocab) as i64).collect())
}

/// Every call that yields a gradient, with the kinds of targets and all options.
fn for_each_training(
    plain: &CrossEntropy,
    data: &mut [f32],
    rows: usize,
    vocab: usize,
    check: &mut dyn FnMut(&str, &mut dyn FnMut()),
) {
    let (weights, probs) = (vec![0.5_f32; vocab], vec![0.25_f32; rows * vocab]);
    let (ids, token_weights) = (vec![0i64; 2 * rows], vec![2.0_f32; rows]);
    let all = plain.clone().class_weights(&weights).token_weights(&token_weights);
    let all = all.label_smoothing(0.1).z_loss(0.1).softcap(30.0).logit_scale(0.5).temperature(2.0);
    let sparse = SparseProbs::new(&ids, &probs[..2 * rows], 2);
    let mut stats = vec![LogSumExp::default(); rows];
    let mut g = vec![0.0; rows * vocab];
    for (kind, targets) in [
        ("ids", Targets::from(&ids[..rows])),
        ("probabilities", Targets::probs(&probs)),
        ("sparse", sparse.into()),
    ] {
        for (options, ce) in [("plain", plain), ("all options", &all)] {
            let mut check = |name: &str, call: &mut dyn FnMut()| {
                check(&format!("{name}, {kind}, {options}"), call);
            };
            check("forward_backward", &mut || {
                let logits = Logits::new(data, rows, vocab).unwrap();
                let to = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap());
                let outputs = RowOutputs::new().saved(&mut stats);
                ce.forward_backward(logits, targets, to, outputs).unwrap();
            });
            check("saved", &mut || {
                let logits = Logits::new(data, rows, vocab).unwrap();
                let to = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap());
                ce.backward(logits, targets, &stats, to.accumulate()).unwrap();
            });
            check("saved, in place", &mut || {
                let logits = LogitsMut::new(data, rows, vocab).unwrap();
                ce.backward_in_place(logits, targets, &stats, 1.0).unwrap();
            });
            check("in place", &mut || {
                let logits = LogitsMut::new(data, rows, vocab).unwrap();
                ce.forward_backward_in_place(logits, targets, 1.0, RowOutputs::new()).unwrap();
            });
        }
    }
}

/// Every output of [`LogProbs`], with and without all options, and statistics of shards.
fn for_each_logprobs(
    backend: Backend,
    logits: Logits<'_>,
    targets: &[i64],
    check: &mut dyn FnMut(&str, &mut dyn FnMut()),
) {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let samples = vec![Sample::new(1, 2); rows];
    let (mask, bias) = (vec![u32::MAX - 1; vocab.div_ceil(32)], [(1, 2.0), (99, -1.0)]);
    let ask = LogProbs::new().targets(targets).candidates(targets, 1).sample(&samples).top_k(20);
    let ask = ask.backend(backend);
    let changed = ask.temperature(0.7).logit_bias(LogitBias::new(&bias));
    let changed = changed.allowed_tokens(AllowedTokens::new(&mask).stride(0));
    let mut reals = vec![0.0; 6 * rows];
    let mut ids = vec![0; 4 * rows];
    let (mut top_ids, mut top) = (vec![0; 20 * rows], vec![0.0; 20 * rows]);
    let mut stats = vec![RowStats::default(); rows];
    for (options, ask) in [("plain", ask), ("all options", changed)] {
        check(&format!("logprobs, {options}"), &mut || {
            ask.run(logits, TokenOutputs::new().logprobs(&mut reals[..rows])).unwrap();
        });
        check(&format!("all of LogProbs, {options}"), &mut || {
            let mut reals = reals.chunks_mut(rows);
            let mut ids = ids.chunks_mut(rows);
            let (mut real, mut id) = (|| reals.next().unwrap(), || ids.next().unwrap());
            let out = TokenOutputs::new()
                .logprobs(real())
                .candidates(real())
                .entropy(real())
                .varentropy(real())
                .logsumexp(real())
                .sampled_logprobs(real())
                .ranks(id())
                .strict_ranks(id())
                .argmax(id())
                .sampled(id())
                .top_k(&mut top_ids, &mut top);
            ask.run(logits, out).unwrap();
        });
        check(&format!("row_stats, {options}"), &mut || {
            let ask = ask.ranks(true).varentropy(true);
            ask.row_stats(logits, Shard::new(0, vocab), &mut stats).unwrap();
        });
    }
    check("merge", &mut || {
        let merged = stats[0].merge(&RowStats::default()).unwrap();
        assert!(RowStats::from_bytes(&merged.to_bytes()).is_ok());
    });
}

/// Comparisons and scores of sequences, with few enough elements to stay on this thread.
fn comparisons(backend: Backend) {
    const ROWS: usize = 20;
    const VOCAB: usize = 3000;
    let mut rng = Rng::new(1);
    let mut random = || -> Vec<f32> { (0..ROWS * VOCAB).map(|_| rng.normal()).collect() };
    let (p, q) = (random(), random());
    let (base, other) =
        (Logits::new(&p, ROWS, VOCAB).unwrap(), Logits::new(&q, ROWS, VOCAB).unwrap());
    let targets: Vec<i64> = (0..ROWS as i64).map(|i| if i % 3 == 0 { -100 } else { i }).collect();
    let [mut kl, mut jsd, mut delta_p] = [[0.0; ROWS]; 3];
    let mut scores = [SequenceScore::default(); 2];
    let compare = Compare::new().backend(backend).targets(&targets);
    let n = own_bytes(|| {
        let outputs = CompareOutputs::new().kl(&mut kl).jsd(&mut jsd).delta_p(&mut delta_p);
        compare.divergences(base, other, outputs).unwrap();
    });
    assert_eq!(n, 0, "{backend}: divergences");
    let n = own_bytes(|| _ = compare.evaluate(base, other, CompareOutputs::new()).unwrap());
    assert_eq!(n, 33 * ROWS, "{backend}: evaluate");
    let ce = CrossEntropy::new().backend(backend);
    let n = own_bytes(|| ce.sequences(base, &targets, &[0, 5, ROWS], &mut scores).unwrap());
    assert_eq!(n, 48 * ROWS, "{backend}: sequences");
}

/// One test, so that no other allocates in between. Pools are its own, not the global one.
#[test]
fn calls_allocate_what_they_say() {
    for_each_backend(|backend| {
        comparisons(backend);
        let ce = CrossEntropy::new().backend(backend);
        let softmax = Softmax::new().backend(backend);

        // Small calls: nothing at all, and no thread.
        for (rows, vocab) in [(1, 1000), (1, 50_257), (3, 300)] {
            let (mut data, targets) = matrix(rows, vocab);
            let mut losses = vec![0.0; rows];
            let mut argmax = vec![0; rows];
            let mut p = vec![0.0; rows * vocab];
            let what = format!("{backend}, {rows} rows of {vocab}");
            let logits = Logits::new(&data, rows, vocab).unwrap();
            let n = calls(|| ce.forward_into(logits, &targets, &mut losses).unwrap());
            assert_eq!(n, 0, "forward_into: {what}");
            let outputs = RowOutputs::new().losses(&mut losses).argmax(&mut argmax);
            let n = calls(|| _ = ce.evaluate(logits, &targets, outputs).unwrap());
            assert_eq!(n, 0, "evaluate: {what}");
            let n = calls(|| _ = ce.forward(logits, &targets).unwrap());
            assert_eq!(n, 0, "forward: {what}");
            let n = calls(|| softmax.softmax(logits, &mut p).unwrap());
            assert_eq!(n, 0, "softmax: {what}");
            let n = calls(|| softmax.logsumexp(logits, &mut losses).unwrap());
            assert_eq!(n, 0, "logsumexp: {what}");
            for_each_logprobs(backend, logits, &targets, &mut |name, call| {
                assert_eq!(calls(call), 0, "{name}: {what}");
            });
            let logits = LogitsMut::new(&mut data, rows, vocab).unwrap();
            let n = calls(|| softmax.log_softmax_in_place(logits).unwrap());
            assert_eq!(n, 0, "log_softmax_in_place: {what}");
            for_each_training(&ce, &mut data, rows, vocab, &mut |name, call| {
                assert_eq!(calls(call), 0, "{name}: {what}");
            });
        }

        // Large batches: what a pool needs for its own bookkeeping, and 48 bytes per row.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let (rows, vocab) = (4000, 1000);
        let (data, targets) = matrix(rows, vocab);
        let logits = Logits::new(&data, rows, vocab).unwrap();
        let mut losses = vec![0.0; rows];
        let fixed = 16_384;
        pool.install(|| {
            let n = bytes(|| ce.forward_into(logits, &targets, &mut losses).unwrap());
            println!("{backend}: forward_into, {n} bytes");
            assert!(n <= fixed, "{backend}: {n} bytes for {rows} rows");
            let n = bytes(|| _ = ce.forward(logits, &targets).unwrap());
            println!("{backend}: forward, {n} bytes");
            assert!(n >= rows && n <= fixed + 48 * rows, "{backend}: {n} bytes for {rows} rows");
            let mut p = vec![0.0; rows * vocab];
            let n = bytes(|| softmax.softmax(logits, &mut p).unwrap());
            println!("{backend}: softmax, {n} bytes");
            assert!(n <= fixed, "{backend}: {n} bytes for {rows} rows");
            for_each_logprobs(backend, logits, &targets, &mut |name, call| {
                let n = bytes(call);
                assert!(n <= fixed, "{backend}: {name}, {n} bytes for {rows} rows");
            });
            let rows = rows / 8;
            let mut data = data[..rows * vocab].to_vec();
            for_each_training(&ce, &mut data, rows, vocab, &mut |name, call| {
                let n = bytes(call);
                // Statistics are at hand: there is no loss to reduce.
                let each = if name.contains("saved") { 0 } else { 48 };
                assert!(n <= fixed + each * rows, "{backend}: {name}, {n} bytes for {rows} rows");
            });
        });
    });

    // Only possible where nothing has started the global pool before.
    let global = rayon::ThreadPoolBuilder::new().num_threads(2).build_global();
    assert!(global.is_ok(), "a small call has started the thread pool");
}
