//! The same bits whatever the layout of logits, gradient and targets, and from a mask as from logits of -inf.

use common::{Kind, Rng, any_target, for_each_backend, thin};
use std::fmt::Debug;
use std::ops::Range;
use xent::{AllowedTokens, Backend, CrossEntropy, Element, Error, Evaluation, Gradient, Logits};
use xent::{
    Floats, LogSumExp, LogitsMut, RowOutputs, Softmax, SparseProbs, Targets, Upstream, bf16, f16,
};

/// A type of logits, with its numbers as bits.
trait Number: Element<Real: Bits> + Bits {
    const NAME: &'static str;
    const MASKED: Self;
    fn of(x: f32) -> Self;
}

trait Bits: Copy + Debug {
    /// One NaN for all.
    fn bits(self) -> u64;
    const NAN: Self;
}

macro_rules! numbers {
    ($($type:ident $of:expr, $masked:expr;)*) => {$(
        impl Bits for $type {
            fn bits(self) -> u64 {
                if self.is_nan() { u64::MAX } else { self.to_bits().into() }
            }
            const NAN: Self = $type::NAN;
        }
        impl Number for $type {
            const NAME: &'static str = stringify!($type);
            const MASKED: Self = $type::NEG_INFINITY;
            fn of(x: f32) -> Self {
                $of(x)
            }
        }
    )*};
}
numbers! {
    f32 |x| x, f32::NEG_INFINITY;
    // A third, so that not all digits are those of an `f32`.
    f64 |x| f64::from(x) / 3.0, f64::NEG_INFINITY;
    bf16 bf16::from_f32, bf16::NEG_INFINITY;
    f16 f16::from_f32, f16::NEG_INFINITY;
}

fn all_bits<T: Bits>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.bits()).collect()
}

/// `[batch, time, vocab]`, contiguous, with a target for each row.
#[derive(Clone, Debug)]
struct Batch<T> {
    shape: [usize; 3],
    logits: Vec<T>,
    targets: Vec<i64>,
}

impl<T: Number> Batch<T> {
    fn random(rng: &mut Rng, shape: [usize; 3]) -> Self {
        let [batch, time, vocab] = shape;
        let (mut logits, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..batch * time {
            let row = Kind::any(rng).row(rng, vocab);
            let ignored = rng.below(8) == 0;
            targets.push(if ignored { -100 } else { any_target(rng, &row) as i64 });
            logits.extend(row.into_iter().map(T::of));
        }
        Batch { shape, logits, targets }
    }

    fn rows(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn vocab(&self) -> usize {
        self.shape[2]
    }
}

/// Where in memory the element of a batch, time and class is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Strides([usize; 3]),
    /// Rows in another order, each in a slice of its own.
    List,
}

impl Layout {
    /// Layouts that can be read, and whether they can be written too. Some with gaps, some without.
    fn all([batch, time, vocab]: [usize; 3]) -> Vec<(Layout, bool)> {
        let (row, wide) = (vocab + 3, time + 2);
        vec![
            (Layout::Strides([time * vocab, vocab, 1]), true),
            (Layout::Strides([time * row, row, 1]), true),
            (Layout::Strides([time * row + 5, row, 1]), true),
            // `[time, batch, vocab]`
            (Layout::Strides([vocab, batch * vocab, 1]), batch == 1 || time == 1),
            // `[batch, vocab, time]`
            (Layout::Strides([vocab * time, 1, time]), true),
            (Layout::Strides([vocab * wide + 7, 1, wide]), true),
            // `[vocab, batch, time]`
            (Layout::Strides([time, 1, batch * time]), batch == 1),
            (Layout::List, true),
        ]
    }

    /// The memory, with something else where there is no element.
    fn pack<T: Bits>(self, shape: [usize; 3], contiguous: &[T]) -> Vec<T> {
        let [batch, time, vocab] = shape;
        let [sb, st, sv] = self.strides(shape);
        let last = (batch - 1) * sb + (time - 1) * st + (vocab - 1) * sv;
        let mut data = vec![T::NAN; last + 1];
        for (i, &x) in contiguous.iter().enumerate() {
            data[Self::place(shape, [sb, st, sv], i)] = x;
        }
        data
    }

    fn strides(self, [_, time, vocab]: [usize; 3]) -> [usize; 3] {
        match self {
            Layout::Strides(strides) => strides,
            Layout::List => [time * (vocab + 1), vocab + 1, 1],
        }
    }

    fn place([_, time, vocab]: [usize; 3], [sb, st, sv]: [usize; 3], i: usize) -> usize {
        let (row, class) = (i / vocab, i % vocab);
        row / time * sb + row % time * st + class * sv
    }

    fn unpack<T: Bits>(self, shape: [usize; 3], data: &[T]) -> Vec<T> {
        let strides = self.strides(shape);
        let n = shape.iter().product();
        (0..n).map(|i| data[Self::place(shape, strides, i)]).collect()
    }

    fn with_view<T: Number, U>(
        self,
        shape: [usize; 3],
        data: &[T],
        f: impl FnOnce(Logits<'_, T>) -> U,
    ) -> U {
        let [_, _, vocab] = shape;
        match self {
            Layout::Strides(strides) => f(Logits::strided(data, shape, strides).unwrap()),
            Layout::List => {
                let rows: Vec<&[T]> = data.chunks(vocab + 1).collect();
                f(Logits::from_rows(&rows, vocab).unwrap())
            }
        }
    }

    fn view_mut<T: Number>(self, shape: [usize; 3], data: &mut [T]) -> LogitsMut<'_, T> {
        let [_, _, vocab] = shape;
        match self {
            Layout::Strides(strides) => LogitsMut::strided(data, shape, strides).unwrap(),
            Layout::List => {
                LogitsMut::from_rows(data.chunks_mut(vocab + 1).collect(), vocab).unwrap()
            }
        }
    }
}

/// Calls `f` with memory in that layout, and returns its elements in order. What is no element has to stay
/// as it is.
fn rewritten<T: Number>(
    layout: Layout,
    shape: [usize; 3],
    contiguous: &[T],
    f: impl FnOnce(LogitsMut<'_, T>),
) -> Vec<u64> {
    let mut data = layout.pack(shape, contiguous);
    let before = data.clone();
    f(layout.view_mut(shape, &mut data));
    let strides = layout.strides(shape);
    let mut between = vec![true; data.len()];
    (0..contiguous.len()).for_each(|i| between[Layout::place(shape, strides, i)] = false);
    for (i, _) in between.into_iter().enumerate().filter(|&(_, between)| between) {
        assert_eq!(data[i].bits(), before[i].bits(), "element {i}, which is none of the matrix");
    }
    all_bits(&layout.unpack(shape, &data))
}

/// Everything that is known of a batch.
#[derive(Debug, PartialEq)]
struct Results {
    loss: u64,
    evaluation: Evaluation,
    losses: Vec<u64>,
    rows: Vec<Vec<u64>>,
    argmax: Vec<i64>,
    gradient: Vec<u64>,
    accumulated: Vec<u64>,
    backward: Vec<u64>,
    softmax: [Vec<u64>; 2],
    logsumexp: Vec<u64>,
}

/// How the results are computed: in which layout the logits and everything else that has rows of them are.
#[derive(Clone, Copy)]
struct How<'a> {
    ce: &'a CrossEntropy<'a>,
    softmax: &'a Softmax<'a>,
    targets: Targets<'a>,
    reads: Layout,
    writes: Layout,
}

impl How<'_> {
    fn results<T: Number>(self, batch: &Batch<T>) -> Results {
        let data = self.reads.pack(batch.shape, &batch.logits);
        self.reads.with_view(batch.shape, &data, |logits| self.of(logits, batch))
    }

    fn of<T: Number>(self, logits: Logits<'_, T>, batch: &Batch<T>) -> Results {
        let How { ce, softmax, targets, writes, .. } = self;
        let (shape, rows) = (batch.shape, batch.rows());
        assert_eq!((logits.rows(), logits.vocab()), (rows, batch.vocab()));
        let zero = || vec![T::Real::default(); rows];
        let loss = ce.forward(logits, targets).unwrap();
        let mut losses = zero();
        ce.forward_into(logits, targets, &mut losses).unwrap();
        let (mut nll, mut lse, mut z, mut argmax) = (zero(), zero(), zero(), vec![0; rows]);
        let mut stats = vec![LogSumExp::default(); rows];
        let outputs = RowOutputs::new()
            .logprobs(&mut nll)
            .logsumexp(&mut lse)
            .z_losses(&mut z)
            .argmax(&mut argmax)
            .saved(&mut stats);
        let evaluation = ce.evaluate(logits, targets, outputs).unwrap();
        assert_eq!(loss.to_bits(), evaluation.loss().to_bits());
        let (hi, lo): (Vec<_>, Vec<_>) = stats.iter().map(|s| (s.hi, s.lo)).unzip();

        let each: Vec<f64> = (0..rows).map(|row| (row % 5) as f64 * 0.5 - 0.5).collect();
        let filled = vec![T::of(-1.5); batch.logits.len()];
        let gradient = rewritten(writes, shape, &filled, |to| {
            let to = Gradient::new(to).upstream(Upstream::rows(&each));
            ce.forward_backward(logits, targets, to, RowOutputs::new()).unwrap();
        });
        let in_place = rewritten(writes, shape, &batch.logits, |to| {
            let upstream = Upstream::rows(&each);
            ce.forward_backward_in_place(to, targets, upstream, RowOutputs::new()).unwrap();
        });
        assert_eq!(in_place, gradient);
        let old: Vec<T> = (0..filled.len()).map(|i| T::of((i % 11) as f32 * 0.3 - 1.0)).collect();
        let accumulated = rewritten(writes, shape, &old, |to| {
            let to = Gradient::new(to).accumulate();
            ce.forward_backward(logits, targets, to, RowOutputs::new()).unwrap();
        });
        let backward = rewritten(writes, shape, &batch.logits, |to| {
            ce.backward_in_place(to, targets, &stats, 0.75).unwrap();
        });

        let mut probabilities = filled.clone();
        softmax.softmax(logits, &mut probabilities).unwrap();
        let softmax_in_place =
            rewritten(writes, shape, &batch.logits, |to| softmax.softmax_in_place(to).unwrap());
        assert_eq!(softmax_in_place, all_bits(&probabilities));
        softmax.log_softmax(logits, &mut probabilities).unwrap();
        let log_in_place =
            rewritten(writes, shape, &batch.logits, |to| softmax.log_softmax_in_place(to).unwrap());
        assert_eq!(log_in_place, all_bits(&probabilities));
        let mut logsumexp = zero();
        softmax.logsumexp(logits, &mut logsumexp).unwrap();
        Results {
            loss: loss.bits(),
            evaluation,
            losses: all_bits(&losses),
            rows: [nll, lse, z, hi, lo].iter().map(|values| all_bits(values)).collect(),
            argmax,
            gradient,
            accumulated,
            backward,
            softmax: [softmax_in_place, log_in_place],
            logsumexp: all_bits(&logsumexp),
        }
    }
}

/// NaN is not equal to itself, and most batches have a row of them.
fn assert_same(got: &Results, want: &Results, what: &str) {
    let comparable = |results: &Results| format!("{results:?}");
    if comparable(got) != comparable(want) {
        assert_eq!(got.losses, want.losses, "losses, {what}");
        assert_eq!(got.rows, want.rows, "rows, {what}");
        assert_eq!(got.gradient, want.gradient, "gradient, {what}");
        assert_eq!(got.accumulated, want.accumulated, "accumulated, {what}");
        assert_eq!(got.softmax, want.softmax, "softmax, {what}");
        panic!("{what}: {got:?} instead of {want:?}");
    }
}

/// Shapes around the sizes of tiles and blocks.
fn any_shape(rng: &mut Rng) -> [usize; 3] {
    let batch = 1 + rng.below(3);
    let time = [1, 2 + rng.below(6), 15 + rng.below(4), 31 + rng.below(40)][rng.below(4)];
    let vocab = [1 + rng.below(5), 15 + rng.below(4), 60 + rng.below(10), 1020 + rng.below(8)];
    [batch, time, vocab[rng.below(4)]]
}

fn options<'a>(which: usize, weights: Option<&'a Weights>) -> CrossEntropy<'a> {
    let ce = CrossEntropy::new().z_loss(0.125);
    match (which, weights) {
        (0, _) => CrossEntropy::new(),
        (1, _) => ce.label_smoothing(0.1).temperature(0.5),
        (2, Some(Weights::F32(w))) => ce.label_smoothing(0.1).class_weights(w).softcap(20.0),
        (2, Some(Weights::F64(w))) => ce.label_smoothing(0.1).class_weights(w).softcap(20.0),
        _ => ce.softcap_of_all(9.0).logit_scale(0.5),
    }
}

enum Weights {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

fn weights<T: Number>(vocab: usize) -> Weights {
    let w = (0..vocab).map(|class| (class % 9) as f32 * 0.25);
    if T::NAME == "f64" {
        Weights::F64(w.map(f64::from).collect())
    } else {
        Weights::F32(w.collect())
    }
}

fn layouts_agree<T: Number>(backend: Backend, seeds: Range<u64>) {
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let shape = any_shape(&mut rng);
        let batch = Batch::<T>::random(&mut rng, shape);
        let weights = weights::<T>(shape[2]);
        let ce = options(rng.below(4), Some(&weights)).backend(backend);
        let softmax = Softmax::new().backend(backend);
        let targets = (&batch.targets).into();
        let layouts = Layout::all(shape);
        let plain = layouts[0].0;
        let how = How { ce: &ce, softmax: &softmax, targets, reads: plain, writes: plain };
        let want = how.results(&batch);
        let (reads, _) = layouts[rng.below(layouts.len())];
        let writable: Vec<Layout> = layouts.iter().filter(|l| l.1).map(|l| l.0).collect();
        let writes = writable[rng.below(writable.len())];
        let what = format!("{} {shape:?} from {reads:?} to {writes:?}, seed {seed}", T::NAME);
        assert_same(&How { reads, writes, ..how }.results(&batch), &want, &what);
    }
}

#[test]
fn results_do_not_depend_on_the_layout() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let cases = (160 / thin() as u64).max(4);
    for_each_backend(|backend| {
        let cases = if backend == Backend::Scalar { cases / 4 } else { cases };
        pool.install(|| layouts_agree::<f32>(backend, 0..cases));
        layouts_agree::<f64>(backend, 1000..1000 + cases);
        pool.install(|| layouts_agree::<bf16>(backend, 2000..2000 + cases));
        layouts_agree::<f16>(backend, 3000..3000 + cases);
    });
}

/// More rows and classes than a panel has, so that there are several, and work for several threads. What goes
/// with the rows has to be cut where they are.
fn panels_agree<T: Number>(backend: Backend, shape: [usize; 3]) {
    let [batch, time, vocab] = shape;
    let rows = batch * time;
    let mut rng = Rng::new(vocab as u64);
    let logits = (0..rows * vocab).map(|_| T::of(rng.normal())).collect();
    let ignored = |rng: &mut Rng| if rng.below(5) == 0 { -100 } else { rng.below(vocab) as i64 };
    let targets: Vec<i64> = (0..rows).map(|_| ignored(&mut rng)).collect();
    let x: Batch<T> = Batch { shape, logits, targets };
    let numbers = |rng: &mut Rng, n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal()).collect() };
    let (dense, sparse) = (numbers(&mut rng, rows * vocab), numbers(&mut rng, rows * 2));
    let (dense_64, sparse_64): (Vec<f64>, Vec<f64>) =
        (dense.iter().map(|&p| p.into()).collect(), sparse.iter().map(|&p| p.into()).collect());
    let sparse_ids: Vec<u32> = (0..rows * 2).map(|_| rng.below(vocab) as u32).collect();
    let (dense, sparse): (Floats<'_>, Floats<'_>) = match T::NAME {
        "f64" => ((&dense_64).into(), (&sparse_64).into()),
        _ => ((&dense).into(), (&sparse).into()),
    };
    let token_weights = numbers(&mut rng, rows);
    let stride = vocab.div_ceil(32) + 3;
    let words = any_mask(&mut rng, rows * stride);
    let mask = AllowedTokens::new(&words).stride(stride);
    let all_targets: [Targets<'_>; 4] = [
        (&x.targets).into(),
        Targets::shifted(&x.targets, time, 2.min(time - 1)),
        Targets::probs(dense),
        SparseProbs::new(&sparse_ids, sparse, 2).into(),
    ];
    let (plain, columns) = (Layout::all(shape)[0].0, Layout::all(shape)[4].0);
    for (i, targets) in all_targets.into_iter().enumerate() {
        let mut ce = CrossEntropy::new().backend(backend);
        let mut softmax = Softmax::new().backend(backend);
        if i % 2 == 1 {
            ce = ce.token_weights(&token_weights).z_loss(0.01).allowed_tokens(mask);
            softmax = softmax.allowed_tokens(mask);
        }
        let how = How { ce: &ce, softmax: &softmax, targets, reads: plain, writes: plain };
        let want = how.results(&x);
        for (reads, writes) in [(columns, columns), (columns, Layout::List), (plain, columns)] {
            let got = How { reads, writes, ..how }.results(&x);
            assert_same(&got, &want, &format!("{} {shape:?} {reads:?} {writes:?}", T::NAME));
        }
    }
}

#[test]
fn large_matrices_are_cut_into_panels() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let backend = common::fastest();
    // Outside of a pool, too.
    panels_agree::<f32>(backend, [1, 40, 9000]);
    if thin() > 1 {
        return println!("that was one panel and a part of one, and no more of them");
    }
    panels_agree::<f32>(backend, [1, 30_000, 21]);
    pool.install(|| {
        panels_agree::<f32>(backend, [3, 700, 500]);
        panels_agree::<f32>(backend, [3000, 3, 70]);
        panels_agree::<f64>(backend, [2, 300, 1100]);
        panels_agree::<bf16>(backend, [2, 900, 700]);
    });
}

/// Writes -inf where the mask has no bit.
fn masked<T: Number>(batch: &Batch<T>, words: &[u32], stride: usize) -> Batch<T> {
    let mut batch = batch.clone();
    let vocab = batch.vocab();
    for (i, x) in batch.logits.iter_mut().enumerate() {
        let (row, class) = (i / vocab, i % vocab);
        if words[row * stride + class / 32] >> (class % 32) & 1 == 0 {
            *x = T::MASKED;
        }
    }
    batch
}

fn any_mask(rng: &mut Rng, words: usize) -> Vec<u32> {
    let kind = rng.below(4);
    let word = |rng: &mut Rng| match kind {
        0 => rng.bits() as u32,
        1 => [0, u32::MAX, 1 << rng.below(32)][rng.below(3)],
        2 => {
            if rng.below(16) == 0 {
                1 << rng.below(32)
            } else {
                0
            }
        }
        _ => u32::MAX,
    };
    (0..words).map(|_| word(rng)).collect()
}

fn masks_agree<T: Number>(backend: Backend, seeds: Range<u64>) {
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let shape = any_shape(&mut rng);
        let batch = Batch::<T>::random(&mut rng, shape);
        let weights = weights::<T>(shape[2]);
        // A cap of all would make -inf a number, but not what a mask excludes: tests/edge_cases.rs.
        let ce = options(rng.below(3), Some(&weights)).backend(backend);
        let softmax = Softmax::new().backend(backend);
        let len = shape[2].div_ceil(32);
        let stride = [0, len, len + 1][rng.below(3)];
        let words = any_mask(&mut rng, (batch.rows() - 1) * stride + len);
        let mask = if rng.below(2) == 0 || stride != len {
            AllowedTokens::new(&words).stride(stride)
        } else {
            AllowedTokens::new(&words)
        };
        let layouts: Vec<Layout> =
            Layout::all(shape).into_iter().filter(|l| l.1).map(|l| l.0).collect();
        let (targets, plain) = ((&batch.targets).into(), layouts[0]);
        let how = How { ce: &ce, softmax: &softmax, targets, reads: plain, writes: plain };
        let want = how.results(&masked(&batch, &words, stride));
        let (ce, softmax) = (ce.clone().allowed_tokens(mask), softmax.clone().allowed_tokens(mask));
        let (reads, writes) =
            (layouts[rng.below(layouts.len())], layouts[rng.below(layouts.len())]);
        let got = How { ce: &ce, softmax: &softmax, reads, writes, ..how }.results(&batch);
        let what = format!("{} {shape:?} stride {stride}, seed {seed}", T::NAME);
        assert_same(&got, &want, &what);
    }
}

#[test]
fn masks_are_as_logits_of_minus_infinity() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let cases = (120 / thin() as u64).max(4);
    for_each_backend(|backend| {
        let cases = if backend == Backend::Scalar { cases / 4 } else { cases };
        pool.install(|| masks_agree::<f32>(backend, 0..cases));
        masks_agree::<f64>(backend, 1000..1000 + cases);
        pool.install(|| masks_agree::<bf16>(backend, 2000..2000 + cases));
        masks_agree::<f16>(backend, 3000..3000 + cases);
    });
}

#[test]
fn a_mask_is_applied_after_a_cap_of_all() {
    for_each_backend(|backend| {
        let x = [1.0_f32, 2.0, f32::NAN, 3.0];
        let logits = Logits::new(&x, 1, 4).unwrap();
        let ce = CrossEntropy::new().backend(backend).softcap_of_all(5.0);
        let masked = ce.clone().allowed_tokens(AllowedTokens::from_i32(&[0b1011]));
        let mut g = [f32::NAN; 4];
        let to = Gradient::new(LogitsMut::new(&mut g, 1, 4).unwrap());
        let loss = masked.forward_backward(logits, &[0i64], to, RowOutputs::new()).unwrap().loss();
        let three = [1.0_f32, 2.0, 3.0];
        let mut want = [f32::NAN; 3];
        let to = Gradient::new(LogitsMut::new(&mut want, 1, 3).unwrap());
        let three = Logits::new(&three, 1, 3).unwrap();
        let of_three = ce.forward_backward(three, &[0i64], to, RowOutputs::new()).unwrap().loss();
        assert_eq!(loss.to_bits(), of_three.to_bits());
        assert_eq!(g, [want[0], want[1], 0.0, want[2]]);
    });
}

#[test]
fn shifted_targets_are_those_of_later_rows() {
    for_each_backend(|backend| {
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let (batch, time) = (1 + rng.below(4), 1 + rng.below(9));
            let shape = [batch, time, 1 + rng.below(40)];
            let x = Batch::<f32>::random(&mut rng, shape);
            let shift = rng.below(time);
            let mut tokens = x.targets.clone();
            let mut by_hand = vec![-100; batch * time];
            for (row, target) in by_hand.iter_mut().enumerate() {
                if row % time + shift < time {
                    *target = tokens[row + shift];
                }
                if row % time < shift {
                    // Never a target.
                    tokens[row] = i64::MAX;
                }
            }
            let (ce, softmax) = (CrossEntropy::new().backend(backend), Softmax::new());
            let layouts = Layout::all(shape);
            let how = How {
                ce: &ce,
                softmax: &softmax,
                targets: (&by_hand).into(),
                reads: layouts[0].0,
                writes: layouts[0].0,
            };
            let want = how.results(&x);
            let targets = Targets::shifted(&tokens, time, shift);
            let (reads, writes) = (layouts[rng.below(layouts.len())].0, layouts[0].0);
            let got = How { targets, reads, writes, ..how }.results(&x);
            assert_same(&got, &want, &format!("shift {shift} of {shape:?}, seed {seed}"));
        }
    });
}

/// Splitting work over threads splits everything that goes with it.
#[test]
fn work_of_every_layout_is_spread_over_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let shape = [3, 40, 2000];
    let mut rng = Rng::new(11);
    let x = Batch::<f32>::random(&mut rng, shape);
    let len = shape[2].div_ceil(32);
    let words = any_mask(&mut rng, 120 * len);
    let ce = CrossEntropy::new().label_smoothing(0.1).allowed_tokens(AllowedTokens::new(&words));
    let softmax = Softmax::new().allowed_tokens(AllowedTokens::new(&words));
    let targets = Targets::shifted(&x.targets, 40, 3);
    let layouts = Layout::all(shape);
    let how =
        How { ce: &ce, softmax: &softmax, targets, reads: layouts[0].0, writes: layouts[0].0 };
    let want = how.results(&x);
    for &(layout, writable) in &layouts {
        let how =
            How { reads: layout, writes: if writable { layout } else { layouts[0].0 }, ..how };
        assert_same(&pool.install(|| how.results(&x)), &want, &format!("{layout:?}"));
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let data = [0.0_f32; 24];
    let strided = |shape, strides| Logits::strided(&data, shape, strides).unwrap_err();
    let (shape, strides) = ([2, 3, 4], [12, 4, 1]);
    assert!(Logits::strided(&data, shape, strides).is_ok());
    let short = Logits::strided(&data[..23], shape, strides).unwrap_err();
    assert_eq!(short, Error::StridedShape { shape, strides, needed: 24, len: 23 });
    assert_eq!(
        short.to_string(),
        "shape [2, 3, 4] with strides [12, 4, 1] needs 24 elements, but the slice has 23"
    );
    let far = [usize::MAX; 3];
    assert!(matches!(strided(far, far), Error::StridedShape { .. }));
    assert!(matches!(strided([2, 2, 2], far), Error::StridedShape { .. }));
    assert_eq!(
        strided([2, 2, 2], [8, 2, 4]).to_string(),
        "strides [8, 2, 4] of shape [2, 2, 2]: the last, or the one before, must be 1"
    );
    // Classes that are one and the same would be more than memory.
    assert_eq!(
        strided([1, 2, usize::MAX / 4], [0, 1, 0]),
        Error::Strides { shape: [1, 2, usize::MAX / 4], strides: [0, 1, 0] }
    );
    // Rows that repeat take no memory, but are counted.
    let endless = strided([usize::MAX, 2, 4], [0, 0, 1]);
    assert_eq!(endless, Error::Overflow { rows: usize::MAX, elements: 4 });
    assert!(Logits::strided(&data, [usize::MAX, 0, 4], [0, 0, 1]).is_ok());
    assert!(Logits::strided(&data, [usize::MAX, 2, 0], [0, 0, 1]).is_err());
    assert!(Logits::strided(&data, [1, 1, 4], [usize::MAX, usize::MAX, 1]).is_ok());

    let mut data = data;
    let mut overlaps = |shape, strides| LogitsMut::strided(&mut data, shape, strides).is_err();
    assert!(!overlaps([2, 3, 4], [12, 4, 1]));
    assert!(overlaps([2, 3, 4], [12, 3, 1]), "rows overlap");
    assert!(overlaps([2, 3, 4], [11, 4, 1]), "batches overlap");
    assert!(overlaps([2, 3, 4], [4, 8, 1]), "time before batch");
    assert!(overlaps([2, 3, 4], [12, 1, 2]), "classes overlap");
    assert!(overlaps([2, 3, 4], [0, 1, 3]), "batches are one");
    let error = LogitsMut::strided(&mut data, [2, 3, 4], [4, 8, 1]).unwrap_err();
    let text = "strides [4, 8, 1] of shape [2, 3, 4]: rows to be written must follow one another";
    assert_eq!(error.to_string(), text);

    let error = Logits::classes_first(&data, 2, 4, 4).unwrap_err();
    assert_eq!(error, Error::Length { rows: 8, vocab: 4, len: 24 });
    assert!(Logits::<f32>::classes_first(&[], usize::MAX, 4, 4).is_err());
    assert!(Logits::<f32>::classes_first(&[], 0, usize::MAX, usize::MAX).is_ok());

    let many = Logits::strided(&data, [1, 1 << 60, 1], [0, 0, 1]).unwrap();
    let error = CrossEntropy::new().forward(many, Targets::probs(&[0.0_f32; 0])).unwrap_err();
    assert_eq!(
        error,
        Error::InputLength { what: "target probabilities", len: 0, expected: 1 << 60 }
    );
    let none = SparseProbs::new(&[0i64; 0], &[0.0_f32; 0], 0);
    let error = CrossEntropy::new().forward(many, none).unwrap_err();
    assert_eq!(error, Error::Overflow { rows: 1 << 60, elements: 1 });

    let (long, short) = ([0.0_f32; 5], [0.0_f32; 3]);
    let error = Logits::from_rows(&[&long[..], &short], 4).unwrap_err();
    assert_eq!(error, Error::RowLength { row: 1, len: 3, vocab: 4 });
    assert_eq!(error.to_string(), "row 1 has 3 elements, fewer than the vocabulary of 4");
    let units: [&[()]; 2] = [&[(); usize::MAX]; 2];
    assert!(matches!(Logits::from_rows(&units, usize::MAX), Err(Error::Overflow { .. })));

    let (x, ids) = ([0.0_f32; 12], [0i64; 6]);
    let logits = Logits::new(&x, 6, 2).unwrap();
    let shifted = |sequence, shift| {
        CrossEntropy::new().forward(logits, Targets::shifted(&ids, sequence, shift)).unwrap_err()
    };
    assert_eq!(shifted(4, 1), Error::Sequence { rows: 6, sequence: 4 });
    assert_eq!(shifted(0, 0), Error::Sequence { rows: 6, sequence: 0 });
    assert_eq!(shifted(3, 3), Error::Shift { shift: 3, sequence: 3 });
    assert_eq!(shifted(3, usize::MAX), Error::Shift { shift: usize::MAX, sequence: 3 });
    let error = CrossEntropy::new().forward(logits, Targets::shifted(&ids[..5], 5, 1)).unwrap_err();
    assert_eq!(error, Error::TargetCount { rows: 6, targets: 5 });
    let tokens = [9i64, 0, 1, 9, 0, 2];
    let error = CrossEntropy::new().forward(logits, Targets::shifted(&tokens, 3, 1)).unwrap_err();
    assert_eq!(error, Error::TargetOutOfRange { row: 4, target: 2, vocab: 2 });

    let masked = |mask| CrossEntropy::new().allowed_tokens(mask).forward(logits, &ids);
    assert!(masked(AllowedTokens::new(&[1; 6])).is_ok());
    let error = masked(AllowedTokens::new(&[1; 5])).unwrap_err();
    assert_eq!(error.to_string(), "words of allowed tokens: 5 values instead of 6");
    assert!(masked(AllowedTokens::new(&[1; 7])).is_err());
    assert!(masked(AllowedTokens::new(&[1; 7]).stride(1)).is_ok());
    assert!(masked(AllowedTokens::new(&[1]).stride(0)).is_ok());
    assert!(masked(AllowedTokens::new(&[]).stride(0)).is_err());
    assert!(masked(AllowedTokens::new(&[1; 9]).stride(usize::MAX)).is_err());
    let x = [0.0_f32; 66];
    let logits = Logits::new(&x, 2, 33).unwrap();
    let mut out = [7.0; 66];
    let narrow = Softmax::new().allowed_tokens(AllowedTokens::new(&[1; 9]).stride(1));
    let error = narrow.softmax(logits, &mut out).unwrap_err();
    assert!(error.to_string().starts_with("stride of allowed tokens = 1 is not 0, or"), "{error}");
    assert_eq!(out, [7.0; 66]);
}

/// Rows that are read only may overlap, and be one and the same.
#[test]
fn rows_may_be_repeated() {
    let x = [0.0_f32, 1.0, 2.0, 3.0];
    let ids = [0i64, 1, 1, 0];
    let loss = |logits: Logits<'_>| CrossEntropy::new().forward(logits, &ids).unwrap();
    let by_hand = |rows: &[&[f32]]| loss(Logits::from_rows(rows, 3).unwrap());
    assert_eq!(
        loss(Logits::strided(&x, [2, 2, 3], [0, 1, 1]).unwrap()),
        by_hand(&[&x[..3], &x[1..], &x[..3], &x[1..]])
    );
    assert_eq!(
        loss(Logits::strided(&x, [2, 2, 3], [1, 0, 1]).unwrap()),
        by_hand(&[&x[..3], &x[..3], &x[1..], &x[1..]])
    );
}

#[test]
fn nothing_is_nothing_in_every_layout() {
    let none: [i64; 0] = [];
    let loss = |logits: Logits<'_>| CrossEntropy::new().forward(logits, &none);
    for shape in [[0, 3, 4], [3, 0, 4]] {
        assert!(loss(Logits::strided(&[], shape, [0, 1, 7]).unwrap()).unwrap().is_nan());
    }
    assert!(loss(Logits::classes_first(&[], 0, 3, 4).unwrap()).unwrap().is_nan());
    assert!(loss(Logits::from_rows(&[], 4).unwrap()).unwrap().is_nan());
    // Rows without classes.
    let no_classes = Logits::<f32>::classes_first(&[], 2, 0, 3).unwrap();
    let mut lse = [7.0; 6];
    Softmax::new().logsumexp(no_classes, &mut lse).unwrap();
    assert_eq!(lse, [f32::NEG_INFINITY; 6]);
    Softmax::new().softmax(no_classes, &mut []).unwrap();
    Softmax::new()
        .softmax_in_place(LogitsMut::<f32>::classes_first(&mut [], 2, 0, 3).unwrap())
        .unwrap();
}
