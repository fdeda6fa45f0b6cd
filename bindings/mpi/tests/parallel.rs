//! Ranks of `mpirun`, each with its shard, find what one process finds.
//!
//! Every test starts its own executable under `mpirun`, with its name to be run there: the same function is what
//! starts the ranks and what they do. A rank that fails ends all of them with `abort`, as the end of MPI would wait.

#[path = "../../../examples/support/real.rs"]
#[allow(dead_code, reason = "shared with other tests, which use more of it")]
mod real;

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use std::io::Write as _;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use xent::{
    CrossEntropy, Element, Evaluation, Gradient, LogProbs, LogSumExp, Logits, LogitsMut, Reduction,
    RowOutputs, Sample, bf16, f16,
};
use xent_mpi::{Error, VocabParallel, chunks, even};

/// One after the other: machines have few cores, and ranks that wait take all of theirs.
static TURN: Mutex<()> = Mutex::new(());

/// Set for ranks.
const IS_RANK: &str = "XENT_TEST_IS_RANK";

const DONE: &str = "the rank has done its part";

/// Runs the test of that name on so many ranks, or this rank of it. `None` in a rank.
fn on_ranks(
    ranks: usize,
    test: &str,
    rank: impl FnOnce(&SimpleCommunicator),
) -> Option<(Output, Duration)> {
    if std::env::var_os(IS_RANK).is_some() {
        // The main thread is that of the harness.
        let threading = mpi::Threading::Serialized;
        let (universe, _) =
            mpi::initialize_with_threading(threading).expect("one test per process");
        let world = universe.world();
        if catch_unwind(AssertUnwindSafe(|| rank(&world))).is_err() {
            world.abort(101);
        }
        say(DONE.to_owned());
        return None;
    }
    let turn = TURN.lock().unwrap_or_else(|failed| failed.into_inner());
    let start = Instant::now();
    let output = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("RAYON_NUM_THREADS", "2")
        .env(IS_RANK, "1")
        .output()
        .expect("mpirun: Open MPI has to be installed");
    let took = start.elapsed();
    drop(turn);
    Some((output, took))
}

/// A line at once, or what other ranks write would come between.
fn say(mut line: String) {
    line.push('\n');
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// As [`on_ranks`], where all ranks have to succeed.
fn succeeds(ranks: usize, test: &str, rank: impl FnOnce(&SimpleCommunicator)) {
    if let Some((output, _)) = on_ranks(ranks, test, rank) {
        let (out, err) = text(&output);
        assert!(output.status.success(), "{test}\n{out}\n{err}");
        // Each rank has run its test: nothing was filtered out.
        assert_eq!(err.matches(DONE).count(), ranks, "{out}\n{err}");
    }
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn rank_of(world: &SimpleCommunicator) -> (usize, usize) {
    (world.rank() as usize, world.size() as usize)
}

/// SplitMix64: the same numbers on all ranks.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5) * 30.0
    }
}

/// The columns of a rank.
fn columns<T: Copy>(x: &[T], rows: usize, classes: &Range<usize>) -> Vec<T> {
    let vocab = x.len() / rows;
    (0..rows).flat_map(|row| x[row * vocab..][classes.clone()].iter().copied()).collect()
}

#[derive(Debug, PartialEq)]
struct Found {
    losses: Vec<f32>,
    logprobs: Vec<f32>,
    logsumexp: Vec<f32>,
    saved: Vec<LogSumExp>,
    evaluation: Evaluation,
}

fn found(rows: usize, evaluate: impl FnOnce(RowOutputs<'_>) -> Evaluation) -> Found {
    let [mut losses, mut logprobs, mut logsumexp] = [(); 3].map(|()| vec![7.0; rows]);
    let mut saved = vec![LogSumExp::default(); rows];
    let out = RowOutputs::new()
        .losses(&mut losses)
        .logprobs(&mut logprobs)
        .logsumexp(&mut logsumexp)
        .saved(&mut saved);
    let evaluation = evaluate(out);
    Found { losses, logprobs, logsumexp, saved, evaluation }
}

/// Forward and backward of ranks, and of one process: the same bits where shards begin at chunks, else 1 ULP; and in any
/// case the gradient of the same `saved`.
fn check<T: Element<Real = f32> + PartialEq + std::fmt::Debug>(
    world: &SimpleCommunicator,
    ce: &CrossEntropy<'_>,
    x: &[T],
    targets: &[i64],
    classes: Range<usize>,
    same_bits: bool,
) {
    let rows = targets.len();
    let vocab = x.len() / rows;
    let mine = columns(x, rows, &classes);
    let logits = Logits::new(&mine, rows, classes.len()).unwrap();
    let parallel =
        VocabParallel::new(world, classes.clone(), vocab).timeout(Duration::from_secs(60));
    let all = Logits::new(x, rows, vocab).unwrap();
    let whole = found(rows, |out| ce.evaluate(all, targets, out).unwrap());
    let got = found(rows, |out| parallel.cross_entropy(ce, logits, targets, out).unwrap());
    if same_bits {
        assert_eq!(got, whole);
    }
    for (got, want) in [
        (&got.losses, &whole.losses),
        (&got.logprobs, &whole.logprobs),
        (&got.logsumexp, &whole.logsumexp),
    ] {
        for (a, b) in got.iter().zip(want) {
            assert!(a.to_bits().abs_diff(b.to_bits()) <= 1, "{a:e} {b:e}");
        }
    }
    let (loss, want) = (got.evaluation.loss(), whole.evaluation.loss());
    assert!((loss - want).abs() <= 1e-9 * want.abs(), "{loss} {want}");

    let mut whole = vec![T::default(); x.len()];
    let to = Gradient::new(LogitsMut::new(&mut whole, rows, vocab).unwrap()).upstream(0.5);
    ce.backward(all, targets, &got.saved, to).unwrap();
    let want = columns(&whole, rows, &classes);
    let mut g = vec![T::default(); mine.len()];
    let to = Gradient::new(LogitsMut::new(&mut g, rows, classes.len()).unwrap()).upstream(0.5);
    parallel.backward(ce, logits, targets, &got.saved, to).unwrap();
    assert_eq!(g, want);
    g.fill(T::default());
    let to = Gradient::new(LogitsMut::new(&mut g, rows, classes.len()).unwrap()).upstream(0.5);
    let again = parallel.forward_backward(ce, logits, targets, to).unwrap();
    assert_eq!((&g, again), (&want, got.evaluation));
    let mut x = mine;
    let to = LogitsMut::new(&mut x, rows, classes.len()).unwrap();
    parallel.backward_in_place(ce, to, targets, &got.saved, 0.5).unwrap();
    assert_eq!(x, want);
}

/// 49,152 classes on four ranks: cut at chunks two have none.
fn real_logits_on(world: &SimpleCommunicator) {
    let real = real::Real::load().unwrap();
    let (rank, ranks) = rank_of(world);
    for split in [even, chunks] {
        let classes = split(real.vocab, rank, ranks);
        let same_bits = split(real.vocab, 1, 4).start % 32_768 == 0;
        let ce = CrossEntropy::new();
        check(world, &ce, &real.logits, &real.targets, classes, same_bits);
    }
}

#[test]
fn real_logits() {
    succeeds(4, "real_logits", real_logits_on);
}

#[test]
fn real_logits_of_two_ranks() {
    succeeds(2, "real_logits_of_two_ranks", real_logits_on);
}

#[test]
fn real_logits_of_one_rank() {
    succeeds(1, "real_logits_of_one_rank", real_logits_on);
}

/// Four ranks with a chunk or more each, all types and options, also cut anywhere, and out of order.
#[test]
fn synthetic_logits() {
    succeeds(4, "synthetic_logits", |world| {
        let (rank, ranks) = rank_of(world);
        let (rows, vocab) = (5, 151_936);
        let mut next = numbers(7);
        let x: Vec<f32> = (0..rows * vocab).map(|_| next()).collect();
        let targets = [0, 151_935, -100, 65_536, 65_535];
        let weights = [1.0_f32, 0.5, 3.0, 2.0, 1.0];
        let ce = CrossEntropy::new().z_loss(1e-4).token_weights(&weights).softcap(30.0);
        let ce = ce.reduction(Reduction::Sum);
        let cuts = [0, 1, 70_001, 70_001, vocab];
        let uneven = cuts[rank]..cuts[rank + 1];
        let reversed = chunks(vocab, ranks - 1 - rank, ranks);
        let splits = [(chunks(vocab, rank, ranks), true), (reversed, true), (uneven, false)];
        for (classes, same_bits) in splits {
            check(world, &CrossEntropy::new(), &x, &targets, classes.clone(), same_bits);
            check(world, &ce, &x, &targets, classes.clone(), same_bits);
            let half: Vec<bf16> = x.iter().copied().map(bf16::from_f32).collect();
            check(world, &ce, &half, &targets, classes.clone(), same_bits);
            let half: Vec<f16> = x.iter().copied().map(f16::from_f32).collect();
            check(world, &CrossEntropy::new(), &half, &targets, classes, same_bits);
        }
    });
}

/// More rows than one exchange takes.
#[test]
fn many_rows() {
    succeeds(3, "many_rows", |world| {
        let (rank, ranks) = rank_of(world);
        let (rows, vocab) = (20_000, 10);
        let mut next = numbers(1);
        let x: Vec<f32> = (0..rows * vocab).map(|_| next()).collect();
        let targets: Vec<i64> =
            (0..rows as i64).map(|i| i % 11).map(|t| [t, -100][(t == 10) as usize]).collect();
        check(world, &CrossEntropy::new(), &x, &targets, even(vocab, rank, ranks), false);
        // None at all.
        let parallel = VocabParallel::new(world, even(vocab, rank, ranks), vocab);
        let none = Logits::<f32>::new(&[], 0, parallel.classes().len()).unwrap();
        let targets: &[i64] = &[];
        let e = parallel.cross_entropy(&CrossEntropy::new(), none, targets, RowOutputs::new());
        assert!(e.unwrap().loss().is_nan());
    });
}

/// Log-probabilities, ranks, the most probable tokens, entropy and samples over ranks.
#[test]
fn row_stats() {
    succeeds(3, "row_stats", |world| {
        let real = real::Real::load().unwrap();
        let (rank, ranks) = rank_of(world);
        let samples: Vec<Sample> = (0..real.rows as u64).map(|i| Sample::new(5, i)).collect();
        let ask = LogProbs::new().targets(&real.targets).top_k(20).ranks(true).entropy(true);
        let ask = ask.sample(&samples);
        let all = Logits::new(&real.logits, real.rows, real.vocab).unwrap();
        let want = ask.collect(all).unwrap();
        let classes = even(real.vocab, rank, ranks);
        let mine = columns(&real.logits, real.rows, &classes);
        let logits = Logits::new(&mine, real.rows, classes.len()).unwrap();
        let parallel = VocabParallel::new(world, classes, real.vocab);
        let first = parallel.row_stats(&LogProbs::new().targets(&real.targets), logits, None);
        let at_targets: Vec<f32> =
            first.unwrap().iter().map(|stats| stats.target_logit().unwrap()).collect();
        let stats = parallel.row_stats(&ask, logits, Some(&at_targets)).unwrap();
        for (row, stats) in stats.iter().enumerate() {
            assert_eq!(stats.rank().unwrap() as i64, want.ranks[row]);
            assert_eq!(i64::from(stats.argmax().unwrap()), real.argmax[row]);
            assert_eq!(i64::from(stats.sampled().unwrap()), want.sampled[row]);
            let ids: Vec<i64> = stats.top_k().map(|token| token.id.into()).collect();
            assert_eq!(ids, want.top(row).map(|(id, _)| id).collect::<Vec<_>>());
            let logprob = stats.logprob().unwrap() as f32;
            assert!(logprob.to_bits().abs_diff(want.logprobs[row].to_bits()) <= 1);
            let entropy = stats.entropy().unwrap() as f32;
            assert!(entropy.to_bits().abs_diff(want.entropy[row].to_bits()) <= 1);
        }
    });
}

/// A call in which rank 1 has other arguments than the rest.
fn with_other<'a>(
    world: &SimpleCommunicator,
    rows: usize,
    classes: Range<usize>,
    vocab: usize,
    ce: &CrossEntropy<'_>,
    targets: impl Into<xent::Targets<'a>>,
) -> Result<Evaluation, Error> {
    let x = vec![0.0_f32; rows * classes.len()];
    let logits = Logits::new(&x, rows, classes.len()).unwrap();
    let mut losses = vec![7.0; rows];
    let parallel = VocabParallel::new(world, classes, vocab).timeout(Duration::from_secs(60));
    let out = RowOutputs::new().losses(&mut losses);
    let result = parallel.cross_entropy(ce, logits, targets, out);
    assert!(result.is_ok() || losses.iter().all(|&loss| loss == 7.0));
    result
}

/// What does not go together is the same error on all ranks, and they can go on.
#[test]
fn mismatches() {
    succeeds(3, "mismatches", |world| {
        let (rank, _) = rank_of(world);
        let ce = CrossEntropy::new();
        let third = |rank: usize| 10 * rank..10 * rank + 10;
        let ok = || {
            let loss = with_other(world, 2, third(rank), 30, &ce, &[1i64, 29]).unwrap();
            assert_eq!(loss.loss() as f32, 30f32.ln());
        };
        ok();
        let pick = |usual: usize, other: usize| if rank == 1 { other } else { usual };

        let rows = pick(2, 3);
        let error = with_other(world, rows, third(rank), 30, &ce, &vec![1i64; rows]).unwrap_err();
        assert_eq!(error, Error::Mismatch { rank: 1, what: "rows", theirs: 3, of_rank_0: 2 });
        ok();
        let vocab = pick(30, 31);
        let error = with_other(world, 2, third(rank), vocab, &ce, &[1i64, 2]).unwrap_err();
        let what = "a vocabulary of";
        assert_eq!(error, Error::Mismatch { rank: 1, what, theirs: 31, of_rank_0: 30 });
        // A gap, an overlap, too few.
        for (start, end) in [(11, 20), (9, 20), (10, 19)] {
            let classes = if rank == 1 { start..end } else { third(rank) };
            let error = with_other(world, 2, classes, 30, &ce, &[1i64, 2]).unwrap_err();
            let of =
                |rank, classes: Range<usize>, expected| Error::Shards { rank, classes, expected };
            let want = if end == 19 { of(2, 20..30, 19) } else { of(1, start..end, 10) };
            // Of an overlap the later shard is the one that is named.
            assert_eq!(error, want);
        }
        let classes = if rank == 2 { 20..29 } else { third(rank) };
        let error = with_other(world, 2, classes, 30, &ce, &[1i64, 2]).unwrap_err();
        assert_eq!(error, Error::MissingClasses { end: 29, vocab: 30 });
        ok();
        // Other options, other targets.
        let other = if rank == 1 { ce.clone().z_loss(0.1) } else { ce.clone() };
        let error = with_other(world, 2, third(rank), 30, &other, &[1i64, 2]).unwrap_err();
        assert!(matches!(error, Error::Mismatch { rank: 1, .. }), "{error}");
        let targets = if rank == 1 { [1i64, 3] } else { [1, 2] };
        let error = with_other(world, 2, third(rank), 30, &ce, &targets).unwrap_err();
        assert!(error.to_string().starts_with("rank 1 has options and targets of fingerprint"));
        // What one rank alone can see.
        let targets = if rank == 1 { [1i64, 30] } else { [1, 2] };
        let error = with_other(world, 2, third(rank), 30, &ce, &targets).unwrap_err();
        let message = "row 1: target 30 is out of range for a vocabulary of 30";
        let own = xent::Error::TargetOutOfRange { row: 1, target: 30, vocab: 30 };
        let others = Error::OtherRank { rank: 1, message: message.to_owned() };
        assert_eq!(error, if rank == 1 { Error::Xent(own) } else { others });
        ok();

        // Logits, outputs and gradients of the wrong shape.
        let x = [0.0_f32; 20];
        let parallel = VocabParallel::new(world, third(rank), 30).timeout(Duration::from_secs(60));
        let narrow = Logits::new(&x[..18], 2, 9).unwrap();
        let usual = Logits::new(&x, 2, 10).unwrap();
        let logits = if rank == 1 { narrow } else { usual };
        let error = parallel.cross_entropy(&ce, logits, &[1i64, 2], RowOutputs::new()).unwrap_err();
        assert!(error.to_string().contains("a shard of 9 classes from 10 on"), "{error}");
        let mut losses = [7.0; 2];
        let out = RowOutputs::new().losses(&mut losses[..pick(2, 1)]);
        let error = parallel.cross_entropy(&ce, usual, &[1i64, 2], out).unwrap_err();
        assert!(error.to_string().contains("losses"), "{error}");
        let mut g = [7.0_f32; 20];
        let to = LogitsMut::new(&mut g[..pick(20, 18)], 2, pick(10, 9)).unwrap();
        let error =
            parallel.forward_backward(&ce, usual, &[1i64, 2], Gradient::new(to)).unwrap_err();
        assert!(error.to_string().contains("gradient"), "{error}");
        assert_eq!((losses, g), ([7.0; 2], [7.0; 20]));
        ok();
        // Another call: the ranks see it.
        let ask = LogProbs::new().targets(&[1i64, 2]);
        let error = if rank == 1 {
            parallel.row_stats(&ask, usual, None).unwrap_err()
        } else {
            parallel.cross_entropy(&ce, usual, &[1i64, 2], RowOutputs::new()).unwrap_err()
        };
        let what = "a call of kind";
        assert_eq!(error, Error::Mismatch { rank: 1, what, theirs: 2, of_rank_0: 1 });
        ok();
    });
}

/// A rank that hangs: the others say so after the time that they were given, and `abort` ends all.
#[test]
fn a_rank_that_does_not_answer() {
    let output = on_ranks(3, "a_rank_that_does_not_answer", |world| {
        let (rank, ranks) = rank_of(world);
        if rank == 1 {
            std::thread::sleep(Duration::from_secs(300));
            unreachable!("ended by the others");
        }
        let waited = Duration::from_secs(2);
        let x = [0.0_f32; 2];
        let logits = Logits::new(&x, 2, 1).unwrap();
        let parallel = VocabParallel::new(world, rank..rank + 1, 3).timeout(waited);
        let mut losses = [7.0; 2];
        let mut call = || {
            let out = RowOutputs::new().losses(&mut losses);
            parallel.cross_entropy(&CrossEntropy::new(), logits, &[0i64, 1], out)
        };
        let error = call().unwrap_err();
        assert_eq!(error, Error::NoAnswer { rank, ranks, waited });
        assert_eq!(call(), Err(Error::GivenUp));
        assert_eq!(losses, [7.0; 2]);
        say(format!("rank {rank} ends all: {error}"));
        // So that the other one too finds out for itself.
        std::thread::sleep(Duration::from_secs(1));
        world.abort(3);
    });
    if let Some((output, took)) = output {
        let (out, err) = text(&output);
        let message = "waited 2s for the others: one has died, hangs or makes other calls";
        assert_eq!(err.matches(message).count(), 2, "{out}\n{err}");
        assert!(!output.status.success());
        assert!(took < Duration::from_secs(200));
    }
}

/// A rank that dies: `mpirun` ends the others, whatever they wait for.
#[test]
fn a_rank_that_dies() {
    let output = on_ranks(3, "a_rank_that_dies", |world| {
        let (rank, _) = rank_of(world);
        let parallel = VocabParallel::new(world, rank..rank + 1, 3);
        let logits = Logits::new(&[0.0_f32], 1, 1).unwrap();
        let ce = CrossEntropy::new();
        parallel.cross_entropy(&ce, logits, &[0i64], RowOutputs::new()).unwrap();
        if rank == 1 {
            std::process::abort();
        }
        let error = parallel.cross_entropy(&ce, logits, &[0i64], RowOutputs::new());
        say(format!("not ended by mpirun: {error:?}"));
        world.abort(3);
    });
    if let Some((output, took)) = output {
        let (out, err) = text(&output);
        assert!(!output.status.success(), "{out}\n{err}");
        assert!(out.contains("rank 1") || err.contains("rank 1"), "{out}\n{err}");
        assert!(took < Duration::from_secs(100));
    }
}
