//! The rows with the largest errors of gradients that fuzzing has found: within the bounds that
//! `CrossEntropy::forward_backward` documents.

use common::for_each_backend;
use xent::reference::{self, Options, Target};
use xent::{Backend, CrossEntropy, Gradient, Logits, LogitsMut, Reduction, RowOutputs};

/// One unit in the last place.
fn ulp(x: f64) -> f64 {
    let exponent = (x.abs().to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent - 23)
}

/// The largest error of a gradient with class 0 as target, in ULP of the larger of the two terms that are
/// subtracted.
fn error(
    backend: Backend,
    x: &[f32],
    upstream: f32,
    smoothing: f64,
    weights: Option<&[f32]>,
) -> f64 {
    let vocab = x.len();
    let wide: Option<Vec<f64>> = weights.map(|weights| weights.iter().map(|&w| w.into()).collect());
    let options = Options {
        label_smoothing: smoothing,
        class_weights: wide.as_deref(),
        ..Options::default()
    };
    let mut ce = CrossEntropy::new().backend(backend).reduction(Reduction::Sum);
    ce = ce.label_smoothing(smoothing);
    if let Some(weights) = weights {
        ce = ce.class_weights(weights);
    }
    let mut g = vec![0.0; vocab];
    let to = LogitsMut::new(&mut g, 1, vocab).unwrap();
    let to = Gradient::new(to).upstream(f64::from(upstream));
    ce.forward_backward(Logits::new(x, 1, vocab).unwrap(), &[0i64], to, RowOutputs::new()).unwrap();

    let exact = reference::gradient(x, Target::Class(0), &options, [upstream.into(); 2]);
    let p = reference::softmax(x);
    let factor = |j: usize| {
        let given = if j == 0 { 1.0 - smoothing } else { 0.0 };
        (given + smoothing / vocab as f64) * wide.as_ref().map_or(1.0, |weights| weights[j])
    };
    let sum: f64 = (0..vocab).map(factor).sum();
    let error = |j: usize| {
        let larger = f64::from(upstream) * (sum * p[j]).max(factor(j));
        let of = if smoothing == 0.0 { exact[j] } else { larger };
        (f64::from(g[j]) - exact[j]).abs() / ulp(of)
    };
    (0..vocab).map(error).fold(0.0, f64::max)
}

/// Within what is documented: so much where multiply-add is fused, half a unit more where it may not be.
fn check(bound: f64, x: &[f32], upstream: f32, smoothing: f64, weights: Option<&[f32]>) {
    for_each_backend(|backend| {
        let error = error(backend, x, upstream, smoothing, weights);
        println!("{backend}: {error:.2} ULP");
        let portable = if backend == Backend::Portable { 0.5 } else { 0.0 };
        assert!(error <= bound + portable, "{backend}: {error} ULP");
    });
}

/// 2.14 ULP without fused multiply-add.
#[test]
fn plain_loss() {
    check(2.0, &[-1.7781171, -3.823105, 3.1220944], 0.9761394, 0.0, None);
}

/// 2.37 ULP.
#[test]
fn smoothing() {
    check(2.5, &[-1.7321162, 1.7747259, 3.942994], 1.0551927, 0.1, None);
}

/// 2.71 ULP without fused multiply-add.
#[test]
fn smoothing_and_weights() {
    let x = [0.80954516, -2.4530845, 3.8593981, 1.9214971, -0.03860402];
    let weights = [1.1283772, 1.0845833, 1.216485, 1.2975959, 0.95743465];
    check(2.5, &x, 0.80879074, 0.1, Some(&weights));
}
