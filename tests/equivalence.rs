//! The same bits from every backend, thread count, position, alignment and stride.

use common::{Kind, Rng, any_target, argmax, distance, for_each_backend};
use common::{key, key64, keys, property, thin};
use proptest::prelude::*;
use std::sync::LazyLock;
use xent::{Backend, CrossEntropy, Logits, LogitsMut, RowOutputs, Softmax, reference};

/// A matrix in a larger slice: rows `stride` apart, the first one `offset` into it.
#[derive(Clone, Debug)]
struct Matrix {
    rows: usize,
    vocab: usize,
    stride: usize,
    offset: usize,
    data: Vec<f32>,
    targets: Vec<i64>,
}

impl Matrix {
    /// What is not part of the matrix is NaN: reading it would show.
    fn pack(rows: &[Vec<f32>], targets: &[i64], padding: usize, offset: usize) -> Matrix {
        let vocab = rows.first().map_or(0, Vec::len);
        let stride = vocab + padding;
        let mut data = vec![f32::NAN; offset + rows.len() * stride];
        for (i, row) in rows.iter().enumerate() {
            data[offset + i * stride..][..vocab].copy_from_slice(row);
        }
        let targets = targets.to_vec();
        Matrix { rows: rows.len(), vocab, stride, offset, data, targets }
    }

    fn logits(&self) -> Logits<'_> {
        let data = &self.data[self.offset..];
        Logits::with_stride(data, self.rows, self.vocab, self.stride).unwrap()
    }
}

/// Rows of a random kind each, and a target for each; now and then one to ignore.
fn random_rows(seed: u64, rows: usize, vocab: usize) -> (Vec<Vec<f32>>, Vec<i64>) {
    let mut rng = Rng::new(seed);
    let row = |_| {
        let row = Kind::any(&mut rng).row(&mut rng, vocab);
        let ignored = vocab == 0 || rng.below(8) == 0;
        let target = if ignored { -100 } else { any_target(&mut rng, &row) as i64 };
        (row, target)
    };
    (0..rows).map(row).unzip()
}

/// Every result of one row, as bits.
#[derive(Clone, Debug, PartialEq)]
struct RowBits {
    loss: u32,
    logprob: u32,
    logsumexp: u32,
    argmax: i64,
    /// Loss without the argmax, which is another kernel.
    plain_loss: u32,
    row_logsumexp: u32,
    softmax: Vec<u32>,
    log_softmax: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq)]
struct Results {
    rows: Vec<RowBits>,
    loss: u64,
    stderr: u64,
    correct: Option<u64>,
    count: u64,
}

/// Calls every function of the API, in place and out of place.
fn compute(backend: Backend, matrix: &Matrix) -> Results {
    let logits = matrix.logits();
    let (rows, vocab) = (matrix.rows, matrix.vocab);
    let mut losses = vec![0.0; rows];
    let mut logprobs = vec![0.0; rows];
    let mut lse = vec![0.0; rows];
    let mut best = vec![0; rows];
    let ce = CrossEntropy::new().backend(backend);
    let all = RowOutputs::new()
        .losses(&mut losses)
        .logprobs(&mut logprobs)
        .logsumexp(&mut lse)
        .argmax(&mut best);
    let e = ce.evaluate(logits, &matrix.targets, all).unwrap();
    assert_eq!(key64(e.loss()), key64(ce.forward(logits, &matrix.targets).unwrap()));
    let mut plain = vec![0.0; rows];
    ce.forward_into(logits, &matrix.targets, &mut plain).unwrap();

    let softmax = Softmax::new().backend(backend);
    let mut row_lse = vec![0.0; rows];
    softmax.logsumexp(logits, &mut row_lse).unwrap();
    let mut p = vec![0.0; rows * vocab];
    softmax.softmax(logits, &mut p).unwrap();
    let mut log_p = vec![0.0; rows * vocab];
    softmax.log_softmax(logits, &mut log_p).unwrap();

    let in_place = |f: &dyn Fn(LogitsMut<'_>), expected: &[f32]| {
        let mut data = matrix.data.clone();
        let logits = &mut data[matrix.offset..];
        f(LogitsMut::with_stride(logits, rows, vocab, matrix.stride).unwrap());
        let mut written = Matrix { data, ..matrix.clone() };
        for i in 0..rows {
            assert_eq!(keys(written.logits().row(i)), keys(&expected[i * vocab..][..vocab]));
            let start = matrix.offset + i * matrix.stride;
            written.data[start..][..vocab].copy_from_slice(matrix.logits().row(i));
        }
        // The rows put back, everything between them is as it was.
        assert_eq!(keys(&written.data), keys(&matrix.data));
    };
    in_place(&|logits| softmax.softmax_in_place(logits).unwrap(), &p);
    in_place(&|logits| softmax.log_softmax_in_place(logits).unwrap(), &log_p);

    let row = |i: usize| RowBits {
        loss: key(losses[i]),
        logprob: key(logprobs[i]),
        logsumexp: key(lse[i]),
        argmax: best[i],
        plain_loss: key(plain[i]),
        row_logsumexp: key(row_lse[i]),
        softmax: keys(&p[i * vocab..][..vocab]),
        log_softmax: keys(&log_p[i * vocab..][..vocab]),
    };
    Results {
        rows: (0..rows).map(row).collect(),
        loss: key64(e.loss()),
        stderr: key64(e.stderr()),
        correct: e.correct(),
        count: e.count(),
    }
}

/// Sizes around everything that a kernel counts in: vectors, steps, blocks, chunks.
fn vocab() -> impl Strategy<Value = usize> {
    let edges = vec![0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1023, 1024, 1025];
    prop_oneof![
        6 => prop::sample::select(edges),
        4 => 0..200_usize,
        3 => 1000..3100_usize,
        1 => 32_700..33_000_usize,
    ]
}

proptest! {
    #![proptest_config(property(300))]

    #[test]
    fn backends_agree(
        seed: u64,
        rows in 1..=6_usize,
        vocab in vocab(),
        padding in 0..20_usize,
        offset in 0..16_usize,
    ) {
        let (rows, targets) = random_rows(seed, rows, vocab);
        let matrix = Matrix::pack(&rows, &targets, padding, offset);
        let want = compute(Backend::Scalar, &matrix);
        for &backend in Backend::available() {
            let got = compute(backend, &matrix);
            if backend.is_bit_exact() {
                prop_assert_eq!(&got, &want, "{}", backend);
                continue;
            }
            // The same answers, within the error bounds of tests/accuracy.rs.
            prop_assert_eq!((got.count, got.correct), (want.count, want.correct));
            for (got, want) in got.rows.iter().zip(&want.rows) {
                let apart = distance(f32::from_bits(got.loss), f32::from_bits(want.loss));
                prop_assert!(apart <= 2, "{}: losses {} apart", backend, apart);
                prop_assert_eq!(got.loss, got.plain_loss);
                prop_assert_eq!(got.argmax, want.argmax);
            }
        }
    }

    #[test]
    fn a_row_does_not_know_where_it_is(
        seed: u64,
        rows in 1..=6_usize,
        vocab in vocab(),
        padding in 0..20_usize,
        offset in 1..16_usize,
        backend in prop::sample::select(Backend::available()),
        rotation in 0..6_usize,
    ) {
        let (mut rows, mut targets) = random_rows(seed, rows, vocab);
        let plain = compute(backend, &Matrix::pack(&rows, &targets, 0, 0));
        let moved = compute(backend, &Matrix::pack(&rows, &targets, padding, offset));
        prop_assert_eq!(&moved, &plain);
        for (i, row) in rows.iter().enumerate() {
            let one = Matrix::pack(std::slice::from_ref(row), &targets[i..=i], 0, offset);
            prop_assert_eq!(&compute(backend, &one).rows[0], &plain.rows[i]);
        }
        let rotation = rotation % rows.len();
        rows.rotate_left(rotation);
        targets.rotate_left(rotation);
        rows.reverse();
        targets.reverse();
        let mut permuted = compute(backend, &Matrix::pack(&rows, &targets, 0, 0));
        permuted.rows.reverse();
        permuted.rows.rotate_right(rotation);
        prop_assert_eq!(&permuted.rows, &plain.rows);
        prop_assert_eq!(permuted.correct, plain.correct);
    }

    #[test]
    fn argmax_is_that_of_the_oracle(
        seed: u64,
        vocab in 1..2100_usize,
        backend in prop::sample::select(Backend::available()),
    ) {
        let mut rng = Rng::new(seed);
        let row = Kind::any(&mut rng).row(&mut rng, vocab);
        let target = any_target(&mut rng, &row);
        let want = reference::row(&row, target).argmax;
        prop_assert_eq!(argmax(&row), want);
        let mut got = [0];
        let e = CrossEntropy::new().backend(backend).evaluate(
            Logits::new(&row, 1, vocab).unwrap(),
            &[target],
            RowOutputs::new().argmax(&mut got),
        );
        prop_assert_eq!(got, [want as i64]);
        // A row without a distribution has an argmax, and is never correct.
        let e = e.unwrap();
        let right = target == want && !e.loss().is_nan();
        prop_assert_eq!(e.correct(), Some(u64::from(right)));
    }
}

/// Pools of 1 to 8 threads, on a machine of any size.
static POOLS: LazyLock<Vec<rayon::ThreadPool>> = LazyLock::new(|| {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    (1..=8).map(pool).collect()
});

/// Batches that are cut into many groups, the last of them uneven.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut tried = 0;
    let pools: Vec<_> = POOLS[1..].iter().step_by(if thin() > 1 { 3 } else { 1 }).collect();
    for_each_backend(|backend| {
        for (rows, vocab) in [(1, 131_072), (3, 70_001), (7, 40_000), (53, 5_003), (2_500, 64)] {
            let (rows, targets) = random_rows(rows as u64, rows, vocab);
            let matrix = Matrix::pack(&rows, &targets, 3, 1);
            // One row at a time never leaves its thread.
            let alone: Vec<RowBits> = (0..matrix.rows)
                .map(|i| Matrix::pack(&rows[i..=i], &targets[i..=i], 0, 0))
                .map(|one| compute(backend, &one).rows.remove(0))
                .collect();
            let want = POOLS[0].install(|| compute(backend, &matrix));
            assert!(want.rows == alone, "{backend}, {} rows of {vocab}", matrix.rows);
            for pool in &pools {
                let got = pool.install(|| compute(backend, &matrix));
                assert!(got == want, "{backend}, {} threads", pool.current_num_threads());
                tried += 1;
            }
        }
    });
    assert_eq!(tried, pools.len() * 5 * Backend::available().len());
}

/// The reduced loss is the sum in row order of losses that were not rounded to `f32`.
#[test]
fn the_sum_is_taken_in_row_order() {
    for_each_backend(|backend| {
        let (rows, vocab) = (300, 700);
        let mut rng = Rng::new(7);
        let data: Vec<f32> = (0..rows * vocab).map(|_| 4.0 * rng.normal()).collect();
        let targets: Vec<usize> = (0..rows).map(|_| rng.below(vocab)).collect();
        let row = |(row, &target)| xent::internals::row_loss(backend, row, target).unwrap();
        let sum: f64 = data.chunks(vocab).zip(&targets).map(row).sum();
        let logits = Logits::new(&data, rows, vocab).unwrap();
        let ce = CrossEntropy::new().backend(backend);
        for pool in POOLS.iter() {
            let loss = pool.install(|| ce.forward(logits, &targets).unwrap());
            assert_eq!(loss.to_bits(), (sum / rows as f64).to_bits(), "{backend}");
        }
    });
}
