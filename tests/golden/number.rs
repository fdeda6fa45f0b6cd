//! The types that logits are stored in, and errors in units of their last place.

use crate::golden_data::{Case, Tensors};
use std::fmt::LowerExp;
use xent::{Floats, Real};

/// The error of the references themselves, by comparison with 50-digit arithmetic:
/// `4e-16 * max(1, |v|)`. For `f32` it is 1e-8 ULP of anything above 1 and does not matter; for `f64` it
/// is 2 ULP.
pub(crate) const FLOOR: f64 = 4e-16;

/// A type of logits, and of everything that goes with them.
pub(crate) trait Number: Real + LowerExp {
    /// As `cases.json` calls it.
    const DTYPE: &'static str;
    /// The unit of the last place of 1.
    const EPSILON: f64;
    const MIN_POSITIVE: f64;
    /// What rounding a loss to the type costs, in ULP; sums are taken in `f64` before.
    const ROUNDING: f64;
    /// Bounds are those of `f32`, but at most this. Of `f64` no error was seen beyond what the references
    /// may be off by.
    const MOST: f64;
    /// What the two numbers of [`xent::LogSumExp`] may be off by, relative to the logsumexp.
    const SAVED: f64;
    /// The logsumexp from which on they are off by more.
    const HUGE: f64;

    fn round(v: f64) -> Self;
    fn bits(self) -> u64;
    fn floats(values: &[Self]) -> Floats<'_>;
    fn load(file: &Tensors, case: &Case, name: &str) -> Vec<Self>;
}

impl Number for f32 {
    const DTYPE: &'static str = "f32";
    const EPSILON: f64 = f32::EPSILON as f64;
    const MIN_POSITIVE: f64 = f32::MIN_POSITIVE as f64;
    const ROUNDING: f64 = 0.5;
    const MOST: f64 = f64::INFINITY;
    const SAVED: f64 = 1.0 / (1u64 << 47) as f64;
    const HUGE: f64 = (1u64 << 24) as f64;

    fn round(v: f64) -> f32 {
        v as f32
    }

    fn bits(self) -> u64 {
        self.to_bits().into()
    }

    fn floats(values: &[f32]) -> Floats<'_> {
        values.into()
    }

    fn load(file: &Tensors, case: &Case, name: &str) -> Vec<f32> {
        file.f32s(case, name)
    }
}

impl Number for f64 {
    const DTYPE: &'static str = "f64";
    const EPSILON: f64 = f64::EPSILON;
    const MIN_POSITIVE: f64 = f64::MIN_POSITIVE;
    const ROUNDING: f64 = 0.0;
    const MOST: f64 = 0.25;
    const SAVED: f64 = f64::EPSILON * f64::EPSILON;
    const HUGE: f64 = (1u64 << 53) as f64;

    fn round(v: f64) -> f64 {
        v
    }

    fn bits(self) -> u64 {
        self.to_bits()
    }

    fn floats(values: &[f64]) -> Floats<'_> {
        values.into()
    }

    fn load(file: &Tensors, case: &Case, name: &str) -> Vec<f64> {
        file.f64s(case, name)
    }
}

/// The unit of the last place of `v` as a `T`; that of the subnormal numbers for 0.
pub(crate) fn ulp<T: Number>(v: f64) -> f64 {
    let exponent = (v.abs().to_bits() >> 52) as i32 - 1023;
    let smallest = (T::MIN_POSITIVE.to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent.max(smallest)) * T::EPSILON
}

/// How far `got` is from `exact`, in `unit`s, beyond the `slack` that the reference may be off by itself.
///
/// 0 for two NaN, and for infinities that agree; a reference beyond the range of `T` is one.
pub(crate) fn error<T: Number>(got: T, exact: f64, unit: f64, slack: f64) -> f64 {
    let (got, rounded): (f64, f64) = (got.into(), T::round(exact).into());
    if got.is_nan() || rounded.is_nan() {
        return if got.is_nan() && rounded.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if got.is_infinite() || rounded.is_infinite() {
        return if got == rounded { 0.0 } else { f64::INFINITY };
    }
    // Not finite, they would excuse anything.
    assert!(unit.is_finite() && slack.is_finite(), "{exact:e}: in {unit}, less {slack}");
    (((got - exact).abs() - slack) / unit).max(0.0)
}

/// [`error`] in ULP of the reference, which is as exact as [`FLOOR`] says.
pub(crate) fn error_beyond_floor<T: Number>(got: T, exact: f64) -> f64 {
    error(got, exact, ulp::<T>(exact), FLOOR * exact.abs().max(1.0))
}

pub(crate) fn bits<T: Number>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.bits()).collect()
}

/// The rows, `stride` apart, with NaN in between.
pub(crate) fn strided<T: Number>(x: &[T], rows: usize, classes: usize, stride: usize) -> Vec<T> {
    let mut out = vec![T::round(f64::NAN); rows * stride];
    for i in 0..rows {
        out[i * stride..][..classes].copy_from_slice(&x[i * classes..][..classes]);
    }
    out
}
