//! What the tests share: numbers, and gradients as `f64`.
#![allow(dead_code, reason = "not every test file uses everything")]

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::ProptestConfig;

pub(crate) const CPU: &Device = &Device::Cpu;

/// So many cases, or fewer where the variable PROPTEST_CASES asks for fewer: for runs under an interpreter or emulator.
pub(crate) fn property(cases: u32) -> ProptestConfig {
    let asked = ProptestConfig::default().cases;
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { cases.min(asked) } else { cases };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Numbers that are the same on every machine, about normally distributed with standard deviation 2.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| 2.0 * (0..12).map(|_| uniform()).sum::<f32>()).collect()
}

pub(crate) fn logits(shape: (usize, usize), dtype: DType, seed: u64) -> Tensor {
    let (rows, vocab) = shape;
    Tensor::from_vec(noise(rows * vocab, seed), shape, CPU).unwrap().to_dtype(dtype).unwrap()
}

pub(crate) fn ids(rows: usize, vocab: usize) -> Tensor {
    let ids: Vec<i64> = (0..rows).map(|i| (i * 7919 % vocab) as i64).collect();
    Tensor::new(ids, CPU).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

pub(crate) fn value(tensor: &Tensor) -> f64 {
    assert_eq!(tensor.rank(), 0);
    values(tensor)[0]
}

/// The value of what `f` makes of the logits, and its gradient by them.
pub(crate) fn trained(
    logits: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let var = Var::from_tensor(logits)?;
    let loss = f(&var)?;
    let gradient = loss.backward()?.remove(&var).expect("there is a gradient");
    assert_eq!((gradient.dims(), gradient.dtype()), (logits.dims(), logits.dtype()));
    Ok((loss, gradient))
}

/// The largest difference, over the largest of the second.
pub(crate) fn relative(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let scale = most(&mut b.iter().map(|x| x.abs()));
    let apart = most(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs()));
    if apart == 0.0 { 0.0 } else { apart / scale }
}
