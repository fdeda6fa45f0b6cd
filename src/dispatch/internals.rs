//! Kernels by themselves, for the benches and the tests of this crate. Not part of the API.

use crate::data::error::Error;
use crate::kernel::double::grad::Terms;
use crate::kernel::double::scan::SumFrom;
use crate::kernel::forward::RowLoss;
use crate::kernel::transform::{Narrow, Widen};
use crate::kernel::{double, exp, read};
use crate::simd::backend::Backend;
use half::{bf16, f16};

/// `e^x` of every element, in place, for `x <= 88.02`.
#[inline(never)]
pub fn exp(backend: Backend, values: &mut [f32]) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(exp::Exponentials(values)))
}

/// The largest element: the time it takes is the limit of every kernel.
#[inline(never)]
pub fn read(backend: Backend, values: &[f32]) -> Result<f32, Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(read::Read(values)))
}

/// Every element times `factor`: the limit of kernels that overwrite their input.
#[inline(never)]
pub fn rewrite(backend: Backend, values: &mut [f32], factor: f32) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(read::Rewrite(values, factor)))
}

/// Calls `f` in the floating-point environment that this crate computes in, and gives the caller's
/// back: for the arithmetic of bindings. `f` runs no code of their callers, and waits for no other
/// thread.
#[inline(never)]
pub fn in_default_float_env<R>(f: impl FnOnce() -> R) -> R {
    crate::simd::float_env::scope(f)
}

/// All numbers in `f32`.
#[inline(never)]
pub fn widen_bf16(backend: Backend, from: &[bf16], to: &mut [f32]) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(Widen(from, to)))
}

/// All numbers in `f32`.
#[inline(never)]
pub fn widen_f16(backend: Backend, from: &[f16], to: &mut [f32]) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(Widen(from, to)))
}

/// All numbers rounded.
#[inline(never)]
pub fn narrow_bf16(backend: Backend, from: &[f32], to: &mut [bf16]) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(Narrow(from, to)))
}

/// All numbers rounded.
#[inline(never)]
pub fn narrow_f16(backend: Backend, from: &[f32], to: &mut [f16]) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(Narrow(from, to)))
}

/// The loss of one row, `target < logits.len()`, without any check of the arguments.
#[inline(never)]
pub fn row_loss(backend: Backend, logits: &[f32], target: usize) -> Result<f64, Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(RowLoss(logits, target)))
}

/// A bound of the error, in ULP, of [`exp_f64`] where multiply-add is fused.
///
/// Relative to `1 + q >= 0.707`, in units of 2^-53: the rounding of `f` 0.25, of `q` 0.35, of `f^2` and
/// the polynomial 0.18, the polynomial itself 0.09. That is 0.87 before the power of two and the
/// correction become one `f64`, which adds half an ULP and which sums do not do. The worst that was
/// seen in a million samples is 1.01.
pub const EXP_F64_MAX_ULP: f64 = 1.37;

pub use crate::kernel::double::grad::{Place, ScaledExp, Subtract};
pub use crate::kernel::top::{MAX_TOP_K, Top};

/// Functions of `f64`, and a sum in any order.
pub mod arithmetic {
    pub use crate::math::exact::ExactSum;
    pub use crate::math::{
        exp, exp2_int, exponent, ln, ln_1p, neg_ln_one_minus, one_minus_exp_neg,
    };
}

/// The random numbers of tokens.
pub mod random {
    pub use crate::kernel::gumbel::{Key, MOST, bits, from_bits, high_words, philox};
}

/// Conversions of single numbers.
pub mod rounding {
    pub use crate::simd::half::{round_bf16, round_f16, round_to_odd, widen_bf16, widen_f16};
}

/// `e^x` of every element, in place, for `x <= 709.4`.
#[inline(never)]
pub fn exp_f64(backend: Backend, values: &mut [f64]) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(double::exp::Exponentials(values)))
}

/// The sum of `x - from`, weighted if there are weights.
#[inline(never)]
pub fn sum_from_f64(
    backend: Backend,
    x: &[f64],
    weights: Option<&[f64]>,
    from: f64,
) -> Result<f64, Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(SumFrom { x, weights, from }))
}

/// The terms of a gradient; all slices must be of one length.
#[inline(never)]
pub fn scaled_exp_f64(
    backend: Backend,
    terms: &ScaledExp<'_>,
    place: Place<'_>,
) -> Result<(), Error> {
    Backend::kernels(Some(backend)).map(|kernels| kernels.run(Terms(terms, place)))
}

/// Every operation of the vectors, by itself.
#[cfg(feature = "scalar")]
pub mod conformance {
    use crate::data::error::Error;
    use crate::simd::backend::Backend;
    use crate::simd::conformance::Operations;
    pub use crate::simd::conformance::{Operands, Outcome};

    /// What each operation of a backend makes of the operands.
    #[inline(never)]
    pub fn operations(backend: Backend, operands: &Operands) -> Result<Vec<Outcome>, Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.run(Operations(operands)))
    }
}
