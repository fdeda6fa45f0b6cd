//! What an inference engine asks for, output by output, and the code that it has for that now.

use super::{Group, Timed, VALID, Variant, fastest_backend, read};
use crate::common::Batch;
use rayon::ThreadPool;
use std::hint::black_box;
use xent::{Backend, CrossEntropy, LogProbs, Logits, Sample, TokenOutputs};

const K: usize = 20;

/// One token of each row, drawn from its distribution as a decoder draws them: that of the median rank of nine.
pub(super) fn drawn(batch: &Batch) -> Vec<i64> {
    let draws = (0..9).map(|seed| {
        let samples: Vec<Sample> =
            (0..batch.rows as u64).map(|row| Sample::new(seed, row)).collect();
        let (mut tokens, mut ranks) = (vec![0; batch.rows], vec![0; batch.rows]);
        let out = TokenOutputs::new().sampled(&mut tokens);
        LogProbs::new().sample(&samples).run(batch.logits(), out).expect(VALID);
        let out = TokenOutputs::new().ranks(&mut ranks);
        LogProbs::new().targets(&tokens).run(batch.logits(), out).expect(VALID);
        ranks.into_iter().zip(tokens).collect::<Vec<_>>()
    });
    let draws: Vec<Vec<(i64, i64)>> = draws.collect();
    let median = |row: usize| {
        let mut ranked: Vec<(i64, i64)> = draws.iter().map(|draw| draw[row]).collect();
        ranked.sort_unstable();
        ranked[ranked.len() / 2]
    };
    (0..batch.rows).map(|row| median(row).1).collect()
}

/// What is written; the rest is not computed.
#[derive(Clone, Copy)]
struct Asked {
    name: &'static str,
    /// The target is any token, most of which are far from likely.
    any: bool,
    argmax: bool,
    rank: bool,
    top_k: usize,
    entropy: bool,
    varentropy: bool,
    sample: bool,
}

const NOTHING: Asked = Asked {
    name: "logprob",
    any: false,
    argmax: false,
    rank: false,
    top_k: 0,
    entropy: false,
    varentropy: false,
    sample: false,
};

const ASKED: [Asked; 10] = [
    NOTHING,
    Asked { name: "logprob+argmax", argmax: true, ..NOTHING },
    Asked { name: "logprob+rank", rank: true, ..NOTHING },
    Asked { name: "logprob+rank of any", any: true, rank: true, ..NOTHING },
    Asked { name: "logprob+top20", top_k: K, ..NOTHING },
    Asked { name: "logprob+top128", top_k: 128, ..NOTHING },
    Asked { name: "logprob+entropy", entropy: true, ..NOTHING },
    Asked { name: "logprob+varentropy", varentropy: true, ..NOTHING },
    Asked { name: "logprob+sample", sample: true, ..NOTHING },
    Asked { name: "rank+top20+entropy", rank: true, top_k: K, entropy: true, ..NOTHING },
];

/// Rows in turn, `rows` at a time, so that more rows than one step of a decoder has are in memory.
struct Steps<'a> {
    batch: &'a Batch,
    targets: &'a [i64],
    rows: usize,
    next: usize,
}

impl<'a> Steps<'a> {
    fn next(&mut self) -> (Logits<'a>, &'a [i64]) {
        let first = self.next;
        self.next = (first + self.rows) % self.batch.rows;
        let vocab = self.batch.vocab;
        let x = &self.batch.logits[first * vocab..][..self.rows * vocab];
        let logits = Logits::new(black_box(x), self.rows, vocab).expect(VALID);
        (logits, &self.targets[first..][..self.rows])
    }
}

/// `rows` at a time of a batch, whose number of rows is a multiple, with these tokens as targets.
pub(super) fn against_reading<'a>(
    batch: &'a Batch,
    rows: usize,
    tokens: &'a [i64],
    pool: &'a ThreadPool,
    backends: &[Backend],
) -> Group<'a> {
    let threads = pool.current_num_threads();
    let steps = || Steps { batch, targets: tokens, rows, next: 0 };
    let mut all = steps();
    let limit = Timed::new(move || {
        let (logits, _) = all.next();
        black_box(read(fastest_backend(), logits_of(logits, batch), threads));
    });
    let mut variants = Vec::new();
    if rows == 1 {
        let mut all = steps();
        variants.push(Variant::new("scalar engine", "none", move || {
            let (logits, targets) = all.next();
            black_box(scalar_engine(logits_of(logits, batch), targets[0] as usize));
        }));
    }
    for &backend in backends {
        let ce = CrossEntropy::new().backend(backend);
        let (mut all, mut losses) = (steps(), vec![0.0; rows]);
        variants.push(Variant::new("forward", backend.name(), move || {
            let (logits, targets) = all.next();
            ce.forward_into(logits, targets, &mut losses).expect(VALID);
            black_box(&losses);
        }));
        for asked in ASKED {
            let mut all = steps();
            if asked.any {
                all.targets = &batch.targets;
            }
            let mut floats = vec![0.0; 4 * rows];
            let (mut ids, mut top) = (vec![0; asked.top_k * rows], vec![0.0; asked.top_k * rows]);
            let (mut ranks, mut sampled, mut argmax) =
                (vec![0; rows], vec![0; rows], vec![0; rows]);
            let samples: Vec<Sample> = (0..rows as u64).map(|row| Sample::new(2, row)).collect();
            variants.push(Variant::new(asked.name, backend.name(), move || {
                let (logits, targets) = all.next();
                let mut floats = floats.chunks_exact_mut(rows);
                let mut next = || floats.next().expect("there are enough");
                let mut ask = LogProbs::new().backend(backend).targets(targets).top_k(asked.top_k);
                let mut out = TokenOutputs::new().logprobs(next());
                if asked.argmax {
                    out = out.argmax(&mut argmax);
                }
                if asked.rank {
                    out = out.ranks(&mut ranks);
                }
                if asked.top_k > 0 {
                    out = out.top_k(&mut ids, &mut top);
                }
                if asked.entropy {
                    out = out.entropy(next());
                }
                if asked.varentropy {
                    out = out.varentropy(next());
                }
                if asked.sample {
                    ask = ask.sample(&samples);
                    out = out.sampled(&mut sampled);
                }
                ask.run(logits, out).expect(VALID);
                black_box((&ranks, &ids, &top, &sampled, &argmax));
            }));
        }
    }
    Group { batch, rows, dtype: "f32", pool: Some(pool), limit, variants }
}

fn logits_of<'a>(logits: Logits<'a>, batch: &'a Batch) -> &'a [f32] {
    // The rows of a contiguous matrix are one slice.
    let (first, rows) = (logits.row(0).as_ptr() as usize, logits.rows());
    let start = (first - batch.logits.as_ptr() as usize) / size_of::<f32>();
    &batch.logits[start..][..rows * batch.vocab]
}

/// What engines have: the maximum, then the sum in `f64`, then the top k by insertion into a sorted list.
fn scalar_engine(row: &[f32], target: usize) -> (f32, usize, Vec<(f32, usize)>) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    let logsumexp = f64::from(max) + sum.ln();
    let logprob = |x: f32| (f64::from(x) - logsumexp) as f32;
    let rank = row.iter().filter(|&&x| x >= row[target]).count();
    let mut top: Vec<(f32, usize)> = Vec::with_capacity(K + 1);
    for (id, &x) in row.iter().enumerate() {
        if top.len() < K || x > top[K - 1].0 {
            let at = top.partition_point(|&(y, _)| y >= x);
            top.insert(at, (x, id));
            top.truncate(K);
        }
    }
    for (x, _) in &mut top {
        *x = logprob(*x);
    }
    (logprob(row[target]), rank, top)
}
