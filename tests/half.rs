//! Rows of `bf16` and `f16`: exact conversions, the bits of the same row in `f32`, gradients rounded once.

use common::{Kind, Rng, any_target, for_each_backend, key, keys, property, thin};
use proptest::prelude::*;
use xent::internals::{narrow_bf16, narrow_f16, widen_bf16, widen_f16};
use xent::{Backend, CrossEntropy, Element, Error, Gradient, Logits, LogitsMut, RowOutputs};
use xent::{LogSumExp, Softmax, SparseProbs, Targets, Upstream, bf16, f16};

/// What the tests want to know of both types.
trait Half: Element<Real = f32> {
    const NAME: &'static str;
    fn bits(self) -> u16;
    fn from_bits(bits: u16) -> Self;
    /// By the `half` crate, one at a time.
    fn to_f32(self) -> f32;
    fn round(x: f32) -> Self;
    fn widen(backend: Backend, from: &[Self], to: &mut [f32]) -> Result<(), Error>;
    fn narrow(backend: Backend, from: &[f32], to: &mut [Self]) -> Result<(), Error>;
}

macro_rules! half {
    ($($type:ident $widen:ident $narrow:ident $nan:literal),*) => {$(
        impl Half for $type {
            const NAME: &'static str = stringify!($type);
            fn bits(self) -> u16 {
                self.to_bits()
            }
            fn from_bits(bits: u16) -> Self {
                $type::from_bits(bits)
            }
            fn to_f32(self) -> f32 {
                self.to_f32_const()
            }
            fn round(x: f32) -> Self {
                if x.is_nan() { $type::from_bits($nan) } else { $type::from_f32_const(x) }
            }
            fn widen(backend: Backend, from: &[Self], to: &mut [f32]) -> Result<(), Error> {
                $widen(backend, from, to)
            }
            fn narrow(backend: Backend, from: &[f32], to: &mut [Self]) -> Result<(), Error> {
                $narrow(backend, from, to)
            }
        }
    )*};
}
half!(bf16 widen_bf16 narrow_bf16 0x7fc0, f16 widen_f16 narrow_f16 0x7e00);

fn bits<T: Half>(values: &[T]) -> Vec<u16> {
    values.iter().map(|x| x.bits()).collect()
}

fn wide<T: Half>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

fn rounded<T: Half>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&x| T::round(x)).collect()
}

fn widening_is_exact<T: Half>(backend: Backend) {
    let all: Vec<T> = (0..=u16::MAX).map(T::from_bits).collect();
    // Odd lengths, so that every number is in a whole vector once and in the rest once.
    for from in [&all[..], &all[1..], &all[..all.len() - 7]] {
        let mut got = vec![0.5; from.len()];
        T::widen(backend, from, &mut got).unwrap();
        for (x, got) in from.iter().zip(got) {
            assert_eq!(key(got), key(x.to_f32()), "{} {:#x} on {backend}", T::NAME, x.bits());
        }
    }
}

#[test]
fn every_number_is_widened_exactly() {
    for_each_backend(|backend| {
        widening_is_exact::<bf16>(backend);
        widening_is_exact::<f16>(backend);
    });
}

fn rounding_is_to_nearest_even<T: Half>(
    backend: Backend,
    lower: impl Iterator<Item = u16> + Clone,
) {
    let mut got: Vec<T> = Vec::new();
    let mut from = Vec::new();
    for upper in 0..=u16::MAX {
        from.clear();
        from.extend(
            lower.clone().map(|lower| f32::from_bits(u32::from(upper) << 16 | u32::from(lower))),
        );
        got.resize(from.len(), T::default());
        T::narrow(backend, &from, &mut got).unwrap();
        for (&x, &got) in from.iter().zip(&got) {
            assert_eq!(got.bits(), T::round(x).bits(), "{x:e} to {} on {backend}", T::NAME);
        }
    }
}

#[test]
fn rounding_is_to_nearest_even_around_all_ties() {
    let edges =
        [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xffff];
    let lower = edges.into_iter().chain((0..=u16::MAX).step_by(7919 * thin()));
    for_each_backend(|backend| {
        rounding_is_to_nearest_even::<bf16>(backend, lower.clone());
        rounding_is_to_nearest_even::<f16>(backend, lower.clone());
    });
}

#[test]
#[ignore = "every f32, minutes"]
fn every_f32_is_rounded_to_nearest_even() {
    for_each_backend(|backend| {
        if backend != Backend::Scalar {
            rounding_is_to_nearest_even::<bf16>(backend, 0..=u16::MAX);
            rounding_is_to_nearest_even::<f16>(backend, 0..=u16::MAX);
        }
    });
}

/// Everything that a pass tells about each row, as bits.
#[derive(Debug, PartialEq)]
struct Told {
    losses: Vec<u32>,
    logprobs: Vec<u32>,
    logsumexp: Vec<u32>,
    z_losses: Vec<u32>,
    stats: Vec<(u32, u32)>,
    argmax: Vec<i64>,
    loss: u64,
    correct: Option<u64>,
}

fn told(
    rows: usize,
    pass: impl FnOnce(RowOutputs<'_>) -> Result<xent::Evaluation, Error>,
) -> (Told, Vec<LogSumExp>) {
    let (mut losses, mut logprobs) = (vec![-1.0; rows], vec![-1.0; rows]);
    let (mut logsumexp, mut z_losses) = (vec![-1.0; rows], vec![-1.0; rows]);
    let (mut stats, mut argmax) = (vec![LogSumExp::default(); rows], vec![-2; rows]);
    let outputs = RowOutputs::new()
        .losses(&mut losses)
        .logprobs(&mut logprobs)
        .logsumexp(&mut logsumexp)
        .z_losses(&mut z_losses)
        .saved(&mut stats)
        .argmax(&mut argmax);
    let e = pass(outputs).unwrap();
    let told = Told {
        losses: keys(&losses),
        logprobs: keys(&logprobs),
        logsumexp: keys(&logsumexp),
        z_losses: keys(&z_losses),
        stats: stats.iter().map(|stats| (key(stats.hi), key(stats.lo))).collect(),
        argmax,
        loss: common::key64(e.loss()),
        correct: e.correct(),
    };
    (told, stats)
}

/// The results of the forward kernels, which are others than those of training.
fn forward<T: Element<Real = f32>>(
    ce: &CrossEntropy,
    x: Logits<'_, T>,
    targets: &[i64],
) -> (Vec<u32>, Vec<u32>, Vec<i64>) {
    let (mut losses, mut same) = (vec![-1.0; x.rows()], vec![-1.0; x.rows()]);
    let (mut lse, mut argmax) = (vec![-1.0; x.rows()], vec![-2; x.rows()]);
    ce.forward_into(x, targets, &mut losses).unwrap();
    let outputs = RowOutputs::new().losses(&mut same).logsumexp(&mut lse).argmax(&mut argmax);
    ce.evaluate(x, targets, outputs).unwrap();
    assert_eq!(keys(&losses), keys(&same));
    (keys(&losses), keys(&lse), argmax)
}

fn softmaxes<T: Element<Real = f32>>(
    backend: Backend,
    x: Logits<'_, T>,
) -> (Vec<T>, Vec<T>, Vec<u32>) {
    let softmax = Softmax::new().backend(backend);
    let (mut p, mut log_p) =
        (vec![T::default(); x.rows() * x.vocab()], vec![T::default(); x.rows() * x.vocab()]);
    let mut lse = vec![-1.0; x.rows()];
    softmax.softmax(x, &mut p).unwrap();
    softmax.log_softmax(x, &mut log_p).unwrap();
    softmax.logsumexp(x, &mut lse).unwrap();
    (p, log_p, keys(&lse))
}

/// A matrix with a stride whose padding is NaN, and targets, some of which are ignored.
struct Matrix<T> {
    rows: usize,
    vocab: usize,
    stride: usize,
    data: Vec<T>,
    targets: Vec<i64>,
}

impl<T: Half> Matrix<T> {
    /// Ignored rows are NaN as well: reading them would show.
    fn random(rng: &mut Rng, rows: usize, vocab: usize, stride: usize) -> Self {
        let mut data = vec![T::round(f32::NAN); rows * stride];
        let mut targets = vec![-100; rows];
        for i in 0..rows {
            if vocab == 0 || rng.below(6) == 0 {
                continue;
            }
            let mut row = Kind::any(rng).row(rng, vocab);
            let to = &mut data[i * stride..][..vocab];
            for (to, x) in to.iter_mut().zip(&mut row) {
                *to = T::round(*x);
                *x = to.to_f32();
            }
            targets[i] = any_target(rng, &row) as i64;
        }
        Matrix { rows, vocab, stride, data, targets }
    }

    fn wide(&self) -> Matrix<f32> {
        let (targets, data) = (self.targets.clone(), wide(&self.data));
        Matrix { targets, data, rows: self.rows, vocab: self.vocab, stride: self.stride }
    }
}

impl<T: Element> Matrix<T> {
    fn logits(&self) -> Logits<'_, T> {
        Logits::with_stride(&self.data, self.rows, self.vocab, self.stride).unwrap()
    }

    fn contiguous(&self) -> Vec<T> {
        (0..self.rows).flat_map(|i| self.logits().row(i).to_vec()).collect()
    }
}

fn forward_has_the_bits_of_f32<T: Half>(backend: Backend, x: &Matrix<T>) {
    let ce = CrossEntropy::new().backend(backend);
    let wide = x.wide();
    let got = forward(&ce, x.logits(), &x.targets);
    assert_eq!(got, forward(&ce, wide.logits(), &x.targets), "{} on {backend}", T::NAME);

    let (p, log_p, lse) = softmaxes(backend, x.logits());
    let (exact_p, exact_log_p, exact_lse) = softmaxes(backend, wide.logits());
    assert_eq!(lse, exact_lse);
    assert_eq!(bits(&p), bits(&rounded::<T>(&exact_p)), "softmax of {} on {backend}", T::NAME);
    assert_eq!(bits(&log_p), bits(&rounded::<T>(&exact_log_p)), "log-softmax of {}", T::NAME);

    let mut in_place = x.data.clone();
    let view = LogitsMut::with_stride(&mut in_place, x.rows, x.vocab, x.stride).unwrap();
    Softmax::new().backend(backend).softmax_in_place(view).unwrap();
    let got = Matrix { data: in_place, targets: Vec::new(), ..*x };
    assert_eq!(bits(&got.contiguous()), bits(&p));
    let mut in_place = x.contiguous();
    let view = LogitsMut::new(&mut in_place, x.rows, x.vocab).unwrap();
    Softmax::new().backend(backend).log_softmax_in_place(view).unwrap();
    assert_eq!(bits(&in_place), bits(&log_p));
}

/// Options, of which every combination has to do.
#[derive(Debug)]
struct Options {
    smoothing: f64,
    z_loss: f64,
    softcap: Option<f64>,
    scale: f64,
    temperature: f64,
    weights: Option<Vec<f32>>,
    token_weights: Option<Vec<f32>>,
}

impl Options {
    fn random(rng: &mut Rng, rows: usize, vocab: usize) -> Self {
        let mut weights = |n: usize| (0..n).map(|_| rng.normal()).collect::<Vec<f32>>();
        let (class, token) = (weights(vocab), weights(rows));
        Options {
            smoothing: rng.pick(&[0.0, 0.0, 0.1, 1.0]),
            z_loss: rng.pick(&[0.0, 0.0, 1e-3]),
            softcap: rng.pick(&[None, None, Some(30.0)]),
            scale: rng.pick(&[1.0, 1.0, 0.25]),
            temperature: rng.pick(&[1.0, 1.0, 0.7]),
            weights: (rng.below(3) == 0).then_some(class),
            token_weights: (rng.below(3) == 0).then_some(token),
        }
    }

    const NONE: Options = Options {
        smoothing: 0.0,
        z_loss: 0.0,
        softcap: None,
        scale: 1.0,
        temperature: 1.0,
        weights: None,
        token_weights: None,
    };

    fn cross_entropy(&self, backend: Backend) -> CrossEntropy<'_> {
        let mut ce = CrossEntropy::new()
            .backend(backend)
            .label_smoothing(self.smoothing)
            .z_loss(self.z_loss)
            .logit_scale(self.scale)
            .temperature(self.temperature);
        if let Some(c) = self.softcap {
            ce = ce.softcap(c);
        }
        if let Some(weights) = &self.weights {
            ce = ce.class_weights(weights);
        }
        if let Some(weights) = &self.token_weights {
            ce = ce.token_weights(weights);
        }
        ce
    }
}

/// Every way to a gradient gives that of the widened rows, rounded.
fn gradients_are_those_of_f32<'t, T: Half>(
    ce: &CrossEntropy,
    x: &Matrix<T>,
    targets: impl Into<Targets<'t>> + Copy,
    upstream: Upstream<'_>,
) {
    let (rows, vocab, stride) = (x.rows, x.vocab, x.stride);
    let wide = x.wide();
    let mut exact = vec![-1.0; rows * vocab];
    let (exact_told, _) = told(rows, |outputs| {
        let to = LogitsMut::new(&mut exact, rows, vocab).unwrap();
        ce.forward_backward(wide.logits(), targets, Gradient::new(to).upstream(upstream), outputs)
    });
    let mut g = vec![T::round(-1.0); rows * vocab];
    let (got_told, stats) = told(rows, |outputs| {
        let to = LogitsMut::new(&mut g, rows, vocab).unwrap();
        ce.forward_backward(x.logits(), targets, Gradient::new(to).upstream(upstream), outputs)
    });
    assert_eq!(got_told, exact_told, "{}", T::NAME);
    for (j, (g, &exact)) in g.iter().zip(&exact).enumerate() {
        // At the target `exact` was rounded before.
        let (got, once) = (g.bits(), T::round(exact).bits());
        let is_target = x.targets[j / vocab] == (j % vocab) as i64;
        let close = got.abs_diff(once) <= u16::from(is_target);
        assert!(close, "{} {j}: {got:#x} instead of {once:#x}, {exact:e}", T::NAME);
    }

    let mut in_place = x.data.clone();
    let (again, _) = told(rows, |outputs| {
        let view = LogitsMut::with_stride(&mut in_place, rows, vocab, stride).unwrap();
        ce.forward_backward_in_place(view, targets, upstream, outputs)
    });
    assert_eq!(again, got_told);
    let between = |data: &[T]| {
        let kept = data.chunks(stride.max(1)).flat_map(|row| row[vocab.min(row.len())..].to_vec());
        bits(&kept.collect::<Vec<T>>())
    };
    assert_eq!(between(&in_place), between(&x.data), "what lies between rows");
    let in_place = Matrix { data: in_place, targets: Vec::new(), ..*x };
    assert_eq!(bits(&in_place.contiguous()), bits(&g), "in place");

    let mut saved = vec![T::round(-1.0); rows * vocab];
    let to = LogitsMut::new(&mut saved, rows, vocab).unwrap();
    ce.backward(x.logits(), targets, &stats, Gradient::new(to).upstream(upstream)).unwrap();
    let mut saved_exact = vec![-1.0; rows * vocab];
    let to = LogitsMut::new(&mut saved_exact, rows, vocab).unwrap();
    ce.backward(wide.logits(), targets, &stats, Gradient::new(to).upstream(upstream)).unwrap();
    for (j, (g, &exact)) in saved.iter().zip(&saved_exact).enumerate() {
        let is_target = x.targets[j / vocab] == (j % vocab) as i64;
        assert!(g.bits().abs_diff(T::round(exact).bits()) <= u16::from(is_target));
    }
    let mut saved_in_place = x.contiguous();
    let view = LogitsMut::new(&mut saved_in_place, rows, vocab).unwrap();
    ce.backward_in_place(view, targets, &stats, upstream).unwrap();
    assert_eq!(bits(&saved_in_place), bits(&saved));

    let old = |j: usize| T::round((j % 7) as f32 * 0.37 - 1.0);
    let mut sum: Vec<T> = (0..rows * vocab).map(old).collect();
    let to = LogitsMut::new(&mut sum, rows, vocab).unwrap();
    let gradient = Gradient::new(to).upstream(upstream).accumulate();
    ce.forward_backward(x.logits(), targets, gradient, RowOutputs::new()).unwrap();
    for (j, (sum, &exact)) in sum.iter().zip(&exact).enumerate() {
        let is_target = x.targets[j / vocab] == (j % vocab) as i64;
        let (got, once) = (sum.bits(), T::round(old(j).to_f32() + exact).bits());
        let is_ignored = x.targets[j / vocab] == -100 && exact == 0.0;
        let once = if is_ignored { old(j).bits() } else { once };
        assert!(got.abs_diff(once) <= u16::from(is_target), "sum {j}: {got:#x} {once:#x}");
    }
}

fn check<T: Half>(seed: u64, rows: usize, vocab: usize, padding: usize) {
    let mut rng = Rng::new(seed);
    let x = Matrix::<T>::random(&mut rng, rows, vocab, vocab + padding);
    let options = Options::random(&mut rng, rows, vocab);
    let each: Vec<f32> = (0..rows).map(|_| rng.normal()).collect();
    let probs: Vec<f32> = (0..rows * vocab).map(|_| rng.unit() as f32).collect();
    let k = 3.min(vocab);
    let ids: Vec<i64> = (0..rows * k).map(|i| (i % vocab.max(1)) as i64).collect();
    let sparse = SparseProbs::new(&ids, &probs[..rows * k], k);
    for &backend in Backend::available() {
        forward_has_the_bits_of_f32(backend, &x);
        if vocab == 0 {
            continue;
        }
        for options in [&Options::NONE, &options] {
            let ce = options.cross_entropy(backend);
            gradients_are_those_of_f32(&ce, &x, &x.targets[..], Upstream::rows(&each));
            gradients_are_those_of_f32(&ce, &x, Targets::probs(&probs), 0.5.into());
            gradients_are_those_of_f32(&ce, &x, Targets::Sparse(sparse), 0.5.into());
        }
    }
}

proptest! {
    #![proptest_config(property(60))]

    #[test]
    fn bf16_rows_are_computed_as_f32(
        seed: u64, rows in 0_usize..4, vocab in 0_usize..150, padding in 0_usize..20,
    ) {
        check::<bf16>(seed, rows, vocab, padding);
    }

    #[test]
    fn f16_rows_are_computed_as_f32(
        seed: u64, rows in 0_usize..4, vocab in 0_usize..150, padding in 0_usize..20,
    ) {
        check::<f16>(seed, rows, vocab, padding);
    }
}

#[test]
fn long_rows_and_many() {
    for (rows, vocab, padding) in [(2, 1023, 1), (1, 2500, 0), (1, 33_000, 3), (9, 10_007, 0)] {
        check::<bf16>(rows as u64, rows, vocab, padding);
        check::<f16>(rows as u64 + 100, rows, vocab, padding);
    }
}

/// All backends that fuse give the same bits, also where nothing is compared with `f32`.
#[test]
fn backends_agree() {
    fn results<T: Half>(
        backend: Backend,
        x: &Matrix<T>,
        options: &Options,
    ) -> impl PartialEq + use<T> {
        let ce = options.cross_entropy(backend);
        let mut g = vec![T::default(); x.rows * x.vocab];
        let told = told(x.rows, |outputs| {
            let gradient = Gradient::new(LogitsMut::new(&mut g, x.rows, x.vocab).unwrap());
            ce.forward_backward(x.logits(), &x.targets, gradient, outputs)
        });
        let (p, log_p, lse) = softmaxes(backend, x.logits());
        (told.0, forward(&ce, x.logits(), &x.targets), lse, bits(&g), bits(&p), bits(&log_p))
    }
    fn agree<T: Half>(seed: u64) {
        let mut rng = Rng::new(seed);
        let vocab = 1 + rng.below(3000);
        let x = Matrix::<T>::random(&mut rng, 3, vocab, vocab);
        let options = Options::random(&mut rng, 3, vocab);
        let expected = results(Backend::Scalar, &x, &options);
        for &backend in Backend::available().iter().filter(|backend| backend.is_bit_exact()) {
            assert!(results(backend, &x, &options) == expected, "{} on {backend}: {seed}", T::NAME);
        }
    }
    for seed in 0..(60 / thin()).max(3) as u64 {
        agree::<bf16>(seed);
        agree::<f16>(seed);
    }
}

/// Past the caches, from any address.
#[test]
fn large_gradients_are_streamed() {
    fn streamed<T: Half>(backend: Backend) {
        let (rows, vocab) = (17, 1_000_003);
        let data: Vec<T> = (0..rows * vocab).map(|j| T::round((j % 1009) as f32 * 0.01)).collect();
        let x = Logits::new(&data, rows, vocab).unwrap();
        let targets = vec![5i64; rows];
        let ce = CrossEntropy::new().backend(backend);
        let mut out = vec![T::round(-1.0); rows * vocab + 1];
        let to = LogitsMut::new(&mut out[1..], rows, vocab).unwrap();
        ce.forward_backward(x, &targets, Gradient::new(to), RowOutputs::new()).unwrap();
        let mut in_place = data.clone();
        let to = LogitsMut::new(&mut in_place, rows, vocab).unwrap();
        ce.forward_backward_in_place(to, &targets, 1.0, RowOutputs::new()).unwrap();
        assert!(bits(&out[1..]) == bits(&in_place), "{} on {backend}", T::NAME);
        assert_eq!(out[0].bits(), T::round(-1.0).bits());
    }
    for &backend in Backend::available().iter().filter(|&&backend| backend > Backend::Portable) {
        streamed::<bf16>(backend);
        streamed::<f16>(backend);
    }
}

#[test]
fn bits_are_views() {
    let data = [0x3f80, 0x4000, 0x7fff, 0x4040, 0xc000];
    let logits = Logits::<bf16>::from_bits_with_stride(&data, 2, 2, 3).unwrap();
    assert_eq!(logits.row(0), [bf16::from_f32(1.0), bf16::from_f32(2.0)]);
    assert_eq!(logits.row(1), [bf16::from_f32(3.0), bf16::from_f32(-2.0)]);
    let mut data = [0x3c00_u16, 0x3c00];
    Softmax::new().softmax_in_place(LogitsMut::<f16>::from_bits(&mut data, 1, 2).unwrap()).unwrap();
    assert_eq!(data, [0x3800, 0x3800]);
    assert!(Logits::<f16>::from_bits(&data, 1, 3).is_err());
}

/// A gradient too large for `f16` becomes infinite, one too small a subnormal number or 0.
#[test]
fn ranges_of_gradients() {
    for_each_backend(|backend| {
        let ce = CrossEntropy::new().backend(backend);
        let mut x = [f16::from_f32(1.0); 2];
        let view = LogitsMut::new(&mut x, 1, 2).unwrap();
        ce.forward_backward_in_place(view, &[0i64], 1e6, RowOutputs::new()).unwrap();
        assert_eq!(x, [f16::NEG_INFINITY, f16::INFINITY]);
        let mut x = [f16::from_f32(0.0), f16::from_f32(-15.0), f16::from_f32(-20.0)];
        let view = LogitsMut::new(&mut x, 1, 3).unwrap();
        ce.forward_backward_in_place(view, &[0i64], 1.0, RowOutputs::new()).unwrap();
        assert_eq!(x.map(f16::to_bits), [0x8005, 0x0005, 0]);
        let mut x = [bf16::from_f32(0.0), bf16::from_f32(-86.0)];
        let view = LogitsMut::new(&mut x, 1, 2).unwrap();
        ce.forward_backward_in_place(view, &[0i64], 1e30, RowOutputs::new()).unwrap();
        assert_eq!(x[1], bf16::from_f64(1e30 * (-86f64).exp()));
        assert_eq!(x[0], -x[1]);
    });
}
